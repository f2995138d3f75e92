// Free ranges of some space, sorted and merged: the bookkeeping below pools and tables.
#ifndef LLI_EXTENTS_H
#define LLI_EXTENTS_H

#include "base/base.h"

struct lli_extent {
    uint64_t offset;
    uint64_t size;
};

struct lli_extents {
    struct lli_extent *free; // sorted by offset, no two touch
    size_t num_free;
    size_t capacity;
    size_t num_taken; // each may become an extent of its own: room for it is kept
};

void lli_extents_init(struct lli_extents *extents);
void lli_extents_fini(struct lli_extents *extents);

// Adds space.  LLM_OUT_OF_MEMORY if the bookkeeping can't grow.
llm_status lli_extents_add(struct lli_extents *extents, uint64_t offset, uint64_t size);

// Takes `size` at a multiple of `align` (a power of two) from the smallest range that has room.
// False if none has, or if the bookkeeping can't grow.
bool lli_extents_take(struct lli_extents *extents, uint64_t size, uint64_t align,
                      uint64_t *ret_offset);

// Gives back what was taken.  Never fails.
void lli_extents_give(struct lli_extents *extents, uint64_t offset, uint64_t size);

#endif

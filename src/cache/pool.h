// The memory of one device from which caches are allocated: one memory file that peers on this host
// can map read-only, divided into tiers (§4.6).  The caller serialises all calls.
#ifndef LLI_POOL_H
#define LLI_POOL_H

#include "base/base.h"
#include "cache/extents.h"
#include "options/options.h"

#define LLI_POOL_ALIGN 512u

// The address space of a pool, which may outlive it.
struct lli_mapping;
struct lli_mapping *lli_mapping_hold(struct lli_mapping *mapping);
void lli_mapping_put(struct lli_mapping *mapping);

struct lli_pool_class {
    struct lli_pool_tier tier;
    struct lli_extents extents; // what this tier has taken from the pool and not handed out
};

struct lli_pool {
    int fd;
    struct lli_mapping *mapping;
    uint8_t *base; // of the mapping
    uint64_t bytes;
    uint64_t bytes_used;
    struct lli_extents extents; // what no tier has taken
    struct lli_pool_class *classes;
    size_t num_classes; // 0: allocations come straight from `extents`
    bool keeps_pages;   // the system doesn't take them back, which has been said
};

// The size that a pool has if `bytes` were asked for, and these tiers: 0 means the tiers' sum.  0: that
// is for the caller to choose.
uint64_t lli_pool_size(uint64_t bytes, const struct lli_pool_tier *tiers, size_t num_tiers);
// Only memory that is touched is taken.  LLM_FAILED on failure.
llm_status lli_pool_open(struct lli_pool *pool, uint64_t bytes, const struct lli_pool_tier *tiers,
                         size_t num_tiers);
void lli_pool_close(struct lli_pool *pool);

// False when the pool, or the tier that serves this size, is exhausted.
bool lli_pool_alloc(struct lli_pool *pool, uint64_t bytes, uint64_t *ret_offset);
// `bytes` as given to alloc.  The pages go back to the system; nobody who maps the pool sees what
// was in there any more.
void lli_pool_free(struct lli_pool *pool, uint64_t offset, uint64_t bytes);

#endif

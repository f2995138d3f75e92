// Copying by a plan between memory that this process can reach: the transports "local" and "shm",
// and copies within an instance.
#ifndef LLI_MAPPED_H
#define LLI_MAPPED_H

#include "base/base.h"
#include "transport/plan.h"

// A copy in progress; it can be done in portions.
struct lli_mapped_copy {
    const struct lli_plan *plan;
    const uintptr_t *src_tensors; // addresses; plan->num_tensors
    const uintptr_t *dst_tensors; // likewise
    uint64_t position;
    bool streaming; // past the caches
};

void lli_mapped_copy_init(struct lli_mapped_copy *copy, const struct lli_plan *plan,
                          const uintptr_t *src_tensors, const uintptr_t *dst_tensors);

// Copies up to about `bytes_max` more.  True when everything has been copied; what has been is then
// visible to all.
bool lli_mapped_copy_some(struct lli_mapped_copy *copy, uint64_t bytes_max);

// Copies everything, unless the deadline passes first: then false, and nothing more is written.
bool lli_mapped_copy_all(struct lli_mapped_copy *copy, uint64_t deadline_ns);

#endif

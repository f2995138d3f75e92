// A plan: which bytes of which tensors move, in which order.  Pure: no lock, no I/O, no clock.
//
// Every selected tensor moves the same runs, so they are merged once per call and not once per
// tensor.  The bytes form one stream, tensor after tensor, run after run; a position in it is found
// without walking.  Over a network each end has a plan of its own side; the streams are the same.
#ifndef LLI_PLAN_H
#define LLI_PLAN_H

#include "base/base.h"

struct lli_run {
    uint64_t src_offset; // bytes from the start of the tensor
    uint64_t dst_offset;
    uint64_t bytes;
    uint64_t position; // bytes of this tensor's stream before the run
};

struct lli_plan {
    uint64_t num_tensors; // selected ones, over all devices
    struct lli_run *runs;
    size_t num_runs;
    uint64_t tensor_bytes; // of each tensor
    uint64_t total_bytes;
};

// Consecutive blocks, as they travel in a request.
struct lli_block_run {
    uint64_t first;
    uint64_t count;
};

// A place in the stream.
struct lli_place {
    uint64_t tensor;
    size_t run;
    uint64_t offset; // into the run
};

// One run.
llm_status lli_plan_slot(struct lli_plan *ret_plan, uint64_t num_tensors, uint64_t src_offset,
                         uint64_t dst_offset, uint64_t bytes);
// Block src_blocks[i] -> dst_blocks[i], both of `stride` bytes; neighbours on both sides merge.
// The indices have been checked.
llm_status lli_plan_blocks(struct lli_plan *ret_plan, uint64_t num_tensors,
                           const uint64_t *src_blocks, const uint64_t *dst_blocks,
                           size_t num_blocks, uint64_t stride);
// `bytes` from src_offset on, cut into pieces of `stride`, which go to dst_blocks in order; the last
// one may be shorter.  There are blocks enough.
llm_status lli_plan_scatter(struct lli_plan *ret_plan, uint64_t num_tensors, uint64_t src_offset,
                            const uint64_t *dst_blocks, size_t num_blocks, uint64_t stride,
                            uint64_t bytes);
// Leaves the first `tensor_bytes` of each tensor's stream.
void lli_plan_truncate(struct lli_plan *plan, uint64_t tensor_bytes);
// One side alone: src_offset and dst_offset are the same.
llm_status lli_plan_side(struct lli_plan *ret_plan, uint64_t num_tensors,
                         const struct lli_block_run *runs, size_t num_runs, uint64_t stride);
// Both sides, each as runs with as many blocks in all.
llm_status lli_plan_pairs(struct lli_plan *ret_plan, uint64_t num_tensors,
                          const struct lli_block_run *src, size_t num_src,
                          const struct lli_block_run *dst, size_t num_dst, uint64_t stride);
// Harmless on an empty plan.
void lli_plan_fini(struct lli_plan *plan);

// `position` < total_bytes.
struct lli_place lli_plan_locate(const struct lli_plan *plan, uint64_t position);

// Merges neighbours of one list.  *ret_runs is the caller's to free.
llm_status lli_block_runs_merge(const uint64_t *blocks, size_t num_blocks,
                                struct lli_block_run **ret_runs, size_t *ret_num_runs);

#endif

// What a cache looks like in bytes (§1, §2.3).
#ifndef LLI_GEOMETRY_H
#define LLI_GEOMETRY_H

#include "base/base.h"

enum { LLI_NUM_DIMS_MAX = 31 };

struct lli_geometry {
    uint32_t placement;
    uint32_t num_tensors;
    int32_t data_type;
    uint64_t num_slots;    // shape[0]: batches, or blocks
    uint64_t stride;       // bytes from slot to slot
    uint64_t tensor_bytes; // of one tensor; may exceed num_slots * stride with sub-byte types
};

// Computes sizes from data type and shape, in the order of §9.2: dimensions, overflow, data type.
// An empty shape is one element in one slot.  LLM_PARAM_INVALID with the value named.
llm_status lli_geometry_compute(const llm_cache_desc *desc, struct lli_geometry *ret_geometry);

#endif

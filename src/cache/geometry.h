// What a cache looks like in bytes (§1, §2.3).
#ifndef LLI_GEOMETRY_H
#define LLI_GEOMETRY_H

#include "base/base.h"

enum { LLI_NUM_DIMS_MAX = LLM_DIMS_MAX };

struct lli_geometry {
    uint32_t placement;
    uint32_t num_tensors;
    int32_t data_type;     // LLM_DT_UNDEFINED: a peer's, which doesn't say
    uint64_t num_slots;    // shape[0]: batches, or blocks
    uint64_t stride;       // bytes from slot to slot
    uint64_t tensor_bytes; // of one tensor; may exceed num_slots * stride with sub-byte types
    uint32_t num_dims;     // 0: as the data type
    int64_t dims[LLI_NUM_DIMS_MAX];
};

// Computes sizes from data type and shape, in the order of §9.2: dimensions, overflow, data type.
// An empty shape is one element in one slot.  LLM_PARAM_INVALID with the value named.
llm_status lli_geometry_compute(const llm_cache_desc *desc, struct lli_geometry *ret_geometry);

// Do a peer's dimensions, if it has said them, make up its sizes?
bool lli_geometry_shape_is_sound(const struct lli_geometry *geometry);

// "LLM_DT_BF16".  Static.
const char *lli_data_type_name(int32_t data_type);
// Do numbers of one type mean the same in the other?  Equal types do, signed and unsigned integers of
// one width, which hold whatever an application packs into them, and whatever isn't known.
bool lli_data_types_agree(int32_t a, int32_t b);

#endif

#include "cache/geometry.h"

#include "base/log.h"

static llm_status
count_elements(const llm_cache_desc *desc, uint64_t *ret_num_elements)
{
    uint64_t num_elements = 1;
    for (size_t i = 0; i < desc->num_dims; i++) {
        if (desc->shape[i] <= 0)
            return lli_fail(LLM_PARAM_INVALID, "cache", "shape[%zu] is %lld, expected more than 0",
                            i, (long long)desc->shape[i]);
        if (lli_mul_overflow(num_elements, (uint64_t)desc->shape[i], &num_elements) ||
            num_elements > INT64_MAX)
            return lli_fail(LLM_PARAM_INVALID, "cache",
                            "the product of the shape overflows 64 bits at shape[%zu] = %lld", i,
                            (long long)desc->shape[i]);
    }
    *ret_num_elements = num_elements;
    return LLM_SUCCESS;
}

llm_status
lli_geometry_compute(const llm_cache_desc *desc, struct lli_geometry *ret_geometry)
{
    uint64_t num_elements = 0;
    uint64_t num_bits = 0;
    LLI_TRY(count_elements(desc, &num_elements));

    uint32_t element_bits = llm_data_type_bits(desc->data_type);
    if (element_bits == 0)
        return lli_fail(LLM_PARAM_INVALID, "cache",
                        "data_type is %d, expected a type that has a size", desc->data_type);
    if (lli_mul_overflow(num_elements, element_bits, &num_bits) || num_bits > UINT64_MAX - 7)
        return lli_fail(LLM_PARAM_INVALID, "cache",
                        "a tensor of %llu elements of %u bits overflows 64 bits",
                        (unsigned long long)num_elements, element_bits);

    uint64_t num_slots = desc->num_dims > 0 ? (uint64_t)desc->shape[0] : 1;
    uint64_t tensor_bytes = (num_bits + 7) / 8;
    *ret_geometry = (struct lli_geometry){
        .placement = desc->placement,
        .num_tensors = desc->num_tensors,
        .data_type = desc->data_type,
        .num_slots = num_slots,
        .stride = tensor_bytes / num_slots,
        .tensor_bytes = tensor_bytes,
    };
    // Copies know no limit of dimensions, and don't look at them.
    if (desc->num_dims <= LLI_NUM_DIMS_MAX)
        ret_geometry->num_dims = (uint32_t)desc->num_dims;
    for (uint32_t i = 0; i < ret_geometry->num_dims; i++)
        ret_geometry->dims[i] = desc->shape[i];
    return LLM_SUCCESS;
}

bool
lli_geometry_shape_is_sound(const struct lli_geometry *geometry)
{
    uint64_t num_elements = 1;
    uint64_t num_bits;
    uint32_t element_bits = llm_data_type_bits(geometry->data_type);
    for (uint32_t i = 0; i < geometry->num_dims; i++) {
        if (geometry->dims[i] <= 0 ||
            lli_mul_overflow(num_elements, (uint64_t)geometry->dims[i], &num_elements))
            return false;
    }
    if (geometry->num_dims == 0)
        return true;
    if ((uint64_t)geometry->dims[0] != geometry->num_slots)
        return false;
    return element_bits == 0 ||
           (!lli_mul_overflow(num_elements, element_bits, &num_bits) &&
            num_bits <= UINT64_MAX - 7 && (num_bits + 7) / 8 == geometry->tensor_bytes);
}

const char *
lli_data_type_name(int32_t data_type)
{
    switch (data_type) {
#define X(name, value, bits)                                                                       \
    case value:                                                                                    \
        return #name;
        LLM_DATA_TYPE_MAP(X)
#undef X
    default:
        return "an unknown data type";
    }
}

// Signed integers stand for unsigned ones.
static int32_t
kind_of(int32_t data_type)
{
    switch (data_type) {
    case LLM_DT_UINT2:
        return LLM_DT_INT2;
    case LLM_DT_UINT8:
        return LLM_DT_INT8;
    case LLM_DT_UINT16:
        return LLM_DT_INT16;
    case LLM_DT_UINT32:
        return LLM_DT_INT32;
    case LLM_DT_UINT64:
        return LLM_DT_INT64;
    default:
        return data_type;
    }
}

bool
lli_data_types_agree(int32_t a, int32_t b)
{
    return a == LLM_DT_UNDEFINED || b == LLM_DT_UNDEFINED || kind_of(a) == kind_of(b);
}

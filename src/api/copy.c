// Local copies (§9): on the addresses in the callers' structs alone.
#include "api/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "transport/mapped.h"

// A caller's cache, checked.
struct side {
    const char *name;
    llm_cache cache;
    struct lli_geometry geometry;
};

static llm_status
read_struct(const llm_cache *cache, const char *name, struct side *ret_side)
{
    llm_cache_desc desc;
    ret_side->name = name;
    LLI_TRY(LLI_CHECK_STRUCT(cache, llm_cache, &ret_side->cache));
    LLI_TRY(LLI_CHECK_STRUCT(ret_side->cache.desc, llm_cache_desc, &desc));
    if (desc.placement > LLM_PLACEMENT_DEVICE)
        return lli_fail(LLM_PARAM_INVALID, "copy", "%s: placement is %u, expected 0 or 1", name,
                        desc.placement);
    ret_side->geometry.placement = desc.placement;
    return LLM_SUCCESS;
}

// The entry check of §9.2.
static llm_status
check_entry(const llm_datadist *dd, struct side *side)
{
    llm_cache_desc desc;
    LLI_TRY(LLI_CHECK_STRUCT(side->cache.desc, llm_cache_desc, &desc));
    if (desc.shape == NULL)
        desc.num_dims = 0;
    LLI_TRY(lli_geometry_compute(&desc, &side->geometry));
    uint64_t expected = (uint64_t)desc.num_tensors * dd->options.num_devices;
    if (side->cache.num_tensor_addrs != expected)
        return lli_fail(LLM_PARAM_INVALID, "copy",
                        "%s: there are %zu tensor addresses, expected %llu", side->name,
                        side->cache.num_tensor_addrs, (unsigned long long)expected);
    for (size_t i = 0; i < expected; i++) {
        if (side->cache.tensor_addrs == NULL || side->cache.tensor_addrs[i] == 0)
            return lli_fail(LLM_PARAM_INVALID, "copy", "%s: tensor address %zu is 0", side->name,
                            i);
    }
    return LLM_SUCCESS;
}

static llm_status
check_same_tensors(const struct side *src, const struct side *dst)
{
    if (src->geometry.num_tensors == dst->geometry.num_tensors)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "copy", "src has %u tensors, dst has %u",
                    src->geometry.num_tensors, dst->geometry.num_tensors);
}

static void
run(const struct lli_plan *plan, const struct side *src, const struct side *dst)
{
    struct lli_mapped_copy copy;
    lli_mapped_copy_init(&copy, plan, src->cache.tensor_addrs, dst->cache.tensor_addrs);
    (void)lli_mapped_copy_all(&copy, UINT64_MAX);
}

static llm_status
check_index(const char *name, uint64_t index, const struct side *side)
{
    if (index < side->geometry.num_slots)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "copy", "%s is %llu, %s has %llu", name,
                    (unsigned long long)index, side->name,
                    (unsigned long long)side->geometry.num_slots);
}

// Checks 7 and 8 of §9.3.
static llm_status
check_span(const struct side *src, const struct side *dst, uint64_t offset, int64_t size,
           uint64_t *ret_bytes)
{
    const struct side *sides[] = {src, dst};
    for (size_t i = 0; i < 2; i++) {
        if (offset > 0 && offset >= sides[i]->geometry.stride)
            return lli_fail(LLM_PARAM_INVALID, "copy", "offset is %llu, the stride of %s is %llu",
                            (unsigned long long)offset, sides[i]->name,
                            (unsigned long long)sides[i]->geometry.stride);
    }
    uint64_t bytes = size == -1 ? src->geometry.stride - offset : (uint64_t)size;
    for (size_t i = 0; i < 2; i++) {
        if (bytes > sides[i]->geometry.stride - offset)
            return lli_fail(LLM_PARAM_INVALID, "copy",
                            "%llu bytes from offset %llu don't fit the stride of %s, %llu",
                            (unsigned long long)bytes, (unsigned long long)offset, sides[i]->name,
                            (unsigned long long)sides[i]->geometry.stride);
    }
    *ret_bytes = bytes;
    return LLM_SUCCESS;
}

llm_status
llm_copy_kv_cache(llm_datadist *dd, const llm_cache *src_cache, const llm_cache *dst_cache,
                  uint32_t src_batch_index, uint32_t dst_batch_index, uint64_t offset, int64_t size)
{
    struct side src = {0};
    struct side dst = {0};
    struct lli_plan plan;
    uint64_t bytes = 0;
    LLI_TRY(lli_check_initialized(dd, "llm_copy_kv_cache"));
    LLI_TRY(read_struct(src_cache, "src", &src));
    LLI_TRY(read_struct(dst_cache, "dst", &dst));
    if (src.geometry.placement == LLM_PLACEMENT_HOST)
        return lli_fail(LLM_PARAM_INVALID, "copy",
                        "src is host memory: llm_copy_kv_cache copies from device memory");
    LLI_TRY(check_entry(dd, &src));
    LLI_TRY(check_entry(dd, &dst));
    if (size != -1 && size <= 0)
        return lli_fail(LLM_PARAM_INVALID, "copy", "size is %lld, expected -1 or more than 0",
                        (long long)size);
    LLI_TRY(check_index("src_batch_index", src_batch_index, &src));
    LLI_TRY(check_index("dst_batch_index", dst_batch_index, &dst));
    LLI_TRY(check_span(&src, &dst, offset, size, &bytes));
    LLI_TRY(check_same_tensors(&src, &dst));
    LLI_TRY(lli_plan_slot(&plan, src.cache.num_tensor_addrs,
                          src_batch_index * src.geometry.stride + offset,
                          dst_batch_index * dst.geometry.stride + offset, bytes));
    run(&plan, &src, &dst);
    lli_plan_fini(&plan);
    return LLM_SUCCESS;
}

// Checks 7 and 8 of §9.4, for all lists before anything moves.
static llm_status
check_lists(const struct side *src, const struct side *dst, const uint64_t *src_blocks,
            size_t num_src_blocks, const uint64_t *const *dst_blocks_list,
            const size_t *num_dst_blocks, size_t num_dst_lists)
{
    for (size_t j = 0; j < num_dst_lists; j++) {
        if (num_dst_blocks[j] != num_src_blocks || dst_blocks_list[j] == NULL)
            return lli_fail(LLM_PARAM_INVALID, "copy",
                            "dst_blocks_list[%zu] has %zu blocks, src_blocks has %zu", j,
                            num_dst_blocks[j], num_src_blocks);
    }
    for (size_t k = 0; k < num_src_blocks; k++)
        LLI_TRY(check_index("a source block", src_blocks[k], src));
    for (size_t j = 0; j < num_dst_lists; j++) {
        for (size_t k = 0; k < num_src_blocks; k++)
            LLI_TRY(check_index("a destination block", dst_blocks_list[j][k], dst));
    }
    return LLM_SUCCESS;
}

// All plans are made before the first byte moves.
static llm_status
copy_lists(const struct side *src, const struct side *dst, const uint64_t *src_blocks,
           size_t num_src_blocks, const uint64_t *const *dst_blocks_list, size_t num_dst_lists)
{
    struct lli_plan *plans = lli_calloc(num_dst_lists, sizeof(*plans));
    if (plans == NULL)
        return lli_fail(LLM_OUT_OF_MEMORY, "copy", "no memory for %zu plans", num_dst_lists);
    llm_status status = LLM_SUCCESS;
    for (size_t j = 0; j < num_dst_lists && status == LLM_SUCCESS; j++)
        status = lli_plan_blocks(&plans[j], src->cache.num_tensor_addrs, src_blocks,
                                 dst_blocks_list[j], num_src_blocks, src->geometry.stride);
    for (size_t j = 0; j < num_dst_lists && status == LLM_SUCCESS; j++)
        run(&plans[j], src, dst);
    for (size_t j = 0; j < num_dst_lists; j++)
        lli_plan_fini(&plans[j]);
    lli_free(plans);
    return status;
}

llm_status
llm_copy_kv_blocks(llm_datadist *dd, const llm_cache *src_cache, const llm_cache *dst_cache,
                   const uint64_t *src_blocks, size_t num_src_blocks,
                   const uint64_t *const *dst_blocks_list, const size_t *num_dst_blocks,
                   size_t num_dst_lists)
{
    struct side src = {0};
    struct side dst = {0};
    LLI_TRY(lli_check_initialized(dd, "llm_copy_kv_blocks"));
    if (src_blocks == NULL || num_src_blocks == 0)
        return lli_fail(LLM_PARAM_INVALID, "copy", "src_blocks is empty");
    if (dst_blocks_list == NULL || num_dst_blocks == NULL || num_dst_lists == 0)
        return lli_fail(LLM_PARAM_INVALID, "copy", "dst_blocks_list is empty");
    LLI_TRY(read_struct(src_cache, "src", &src));
    LLI_TRY(read_struct(dst_cache, "dst", &dst));
    LLI_TRY(check_entry(dd, &src));
    LLI_TRY(check_entry(dd, &dst));
    if (src.geometry.stride != dst.geometry.stride)
        return lli_fail(
            LLM_PARAM_INVALID, "copy", "block sizes differ: %llu bytes in src, %llu in dst",
            (unsigned long long)src.geometry.stride, (unsigned long long)dst.geometry.stride);
    if (src.geometry.placement == LLM_PLACEMENT_HOST &&
        dst.geometry.placement == LLM_PLACEMENT_HOST)
        return lli_fail(LLM_PARAM_INVALID, "copy", "src and dst are both host memory");
    LLI_TRY(check_lists(&src, &dst, src_blocks, num_src_blocks, dst_blocks_list, num_dst_blocks,
                        num_dst_lists));
    LLI_TRY(check_same_tensors(&src, &dst));
    return copy_lists(&src, &dst, src_blocks, num_src_blocks, dst_blocks_list, num_dst_lists);
}

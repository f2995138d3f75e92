// Caches (§7).
#include "api/check.h"
#include "base/log.h"

// Checks 2 to 5 of §7.1.
static llm_status
check_desc(const llm_cache_desc *desc, struct lli_geometry *ret_geometry)
{
    if (desc->num_tensors == 0)
        return lli_fail(LLM_PARAM_INVALID, "cache", "num_tensors is 0, expected 1 or more");
    if (desc->placement != LLM_PLACEMENT_DEVICE)
        return lli_fail(LLM_PARAM_INVALID, "cache",
                        "placement is %u, expected 1 (device): caches are allocated from device "
                        "memory",
                        desc->placement);
    if (desc->num_dims == 0 || desc->num_dims > LLI_NUM_DIMS_MAX || desc->shape == NULL)
        return lli_fail(LLM_PARAM_INVALID, "cache", "the shape has %zu dimensions, expected 1..%d",
                        desc->shape == NULL ? 0 : desc->num_dims, LLI_NUM_DIMS_MAX);
    return lli_geometry_compute(desc, ret_geometry);
}

llm_status
llm_allocate_cache(llm_datadist *dd, const llm_cache_desc *desc, llm_cache *cache)
{
    llm_cache_desc known;
    llm_cache out;
    struct lli_geometry geometry;
    int64_t id;
    LLI_TRY(lli_check_initialized(dd, "llm_allocate_cache"));
    LLI_TRY(LLI_CHECK_STRUCT(desc, llm_cache_desc, &known));
    LLI_TRY(LLI_CHECK_STRUCT(cache, llm_cache, &out));
    LLI_TRY(check_desc(&known, &geometry));
    uint64_t num_addresses = (uint64_t)geometry.num_tensors * dd->options.num_devices;
    if (out.tensor_addrs == NULL || out.num_tensor_addrs < num_addresses)
        return lli_fail(LLM_PARAM_INVALID, "cache",
                        "there is room for %zu tensor addresses, expected %llu",
                        out.tensor_addrs == NULL ? 0 : out.num_tensor_addrs,
                        (unsigned long long)num_addresses);
    LLI_TRY(lli_registry_allocate(&dd->registry, &geometry, &id, out.tensor_addrs));
    cache->cache_id = id;
    cache->desc = desc;
    cache->num_tensor_addrs = num_addresses;
    lli_log(LLM_LOG_INFO, "cache", "cache %lld: %u tensors of %llu bytes on %zu device(s)",
            (long long)id, geometry.num_tensors, (unsigned long long)geometry.tensor_bytes,
            dd->options.num_devices);
    return LLM_SUCCESS;
}

llm_status
llm_deallocate_cache(llm_datadist *dd, int64_t cache_id)
{
    LLI_TRY(lli_check_initialized(dd, "llm_deallocate_cache"));
    LLI_TRY(lli_registry_deallocate(&dd->registry, cache_id));
    lli_log(LLM_LOG_INFO, "cache", "cache %lld is deallocated", (long long)cache_id);
    return LLM_SUCCESS;
}

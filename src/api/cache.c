// Caches (§7).
#include "api/check.h"
#include "base/lock.h"
#include "base/log.h"
#include "cache/holds.h"

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
        return lli_fail(
            LLM_PARAM_INVALID, "cache", "there is room for %zu tensor addresses, expected %llu",
            out.tensor_addrs == NULL ? 0 : out.num_tensor_addrs, (unsigned long long)num_addresses);
    LLI_TRY(lli_registry_allocate(&dd->registry, &geometry, &id, out.tensor_addrs));
    out.cache_id = id;
    out.desc = desc;
    out.num_tensor_addrs = num_addresses;
    LLI_WRITE_STRUCT(&out, llm_cache, cache);
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

llm_status
llm_hold_memory(llm_datadist *dd, int64_t cache_id, llm_memory_hold **ret_hold)
{
    LLI_TRY(lli_check_initialized(dd, "llm_hold_memory"));
    if (ret_hold == NULL)
        return lli_fail(LLM_PARAM_INVALID, "api", "llm_hold_memory: ret_hold is NULL");
    return lli_holds_take(&dd->registry, cache_id, ret_hold);
}

void
llm_release_memory(llm_memory_hold *hold)
{
    lli_holds_release(hold);
}

// §13.2.
static llm_status
check_registration(const llm_datadist *dd, const llm_cache_desc *desc, const uint64_t *addrs,
                   size_t num_addrs)
{
    if (dd->options.num_devices > 1)
        return lli_fail(LLM_FEATURE_NOT_ENABLED, "cache",
                        "registration works with one device, this instance has %zu",
                        dd->options.num_devices);
    if (addrs == NULL || num_addrs == 0)
        return lli_fail(LLM_PARAM_INVALID, "cache", "addrs is empty");
    if (num_addrs != desc->num_tensors)
        return lli_fail(LLM_PARAM_INVALID, "cache", "there are %zu addresses for %u tensors",
                        num_addrs, desc->num_tensors);
    for (size_t i = 0; i < num_addrs; i++) {
        if (addrs[i] == 0)
            return lli_fail(LLM_PARAM_INVALID, "cache", "addrs[%zu] is 0", i);
    }
    if (desc->num_dims == 0 || desc->num_dims > LLI_NUM_DIMS_MAX || desc->shape == NULL)
        return lli_fail(LLM_PARAM_INVALID, "cache", "the shape has %zu dimensions, expected 1..%d",
                        desc->shape == NULL ? 0 : desc->num_dims, LLI_NUM_DIMS_MAX);
    if (desc->placement > LLM_PLACEMENT_DEVICE)
        return lli_fail(LLM_PARAM_INVALID, "cache", "placement is %u, expected 0 or 1",
                        desc->placement);
    return LLM_SUCCESS;
}

// A tensor must not wrap around the address space.
static llm_status
check_extent(const struct lli_geometry *geometry, const uint64_t *addrs)
{
    for (size_t i = 0; i < geometry->num_tensors; i++) {
        uint64_t end;
        if (lli_add_overflow(addrs[i], geometry->tensor_bytes, &end))
            return lli_fail(LLM_PARAM_INVALID, "cache",
                            "addrs[%zu] is %#llx: %llu bytes from there leave the address space", i,
                            (unsigned long long)addrs[i],
                            (unsigned long long)geometry->tensor_bytes);
    }
    return LLM_SUCCESS;
}

// Whoever becomes version 2 listens from then on, at the address given at initialization (§13.3); if
// it can't, it stays what it was.
static llm_status
register_locked(llm_datadist *dd, const struct lli_geometry *geometry, const uint64_t *addrs,
                int64_t *ret_cache_id)
{
    struct lli_endpoint place;
    bool is_first = !atomic_load(&dd->version_2);
    bool has_address = is_first && dd->options.listen_later != NULL;
    if (has_address) {
        LLI_TRY(lli_options_parse_listen(dd->options.listen_later, &place));
        LLI_TRY(lli_engine_relisten(dd, &place));
    }
    llm_status status = lli_registry_register(&dd->registry, geometry, addrs, ret_cache_id);
    if (status != LLM_SUCCESS && has_address)
        (void)lli_engine_relisten(dd, NULL);
    if (status != LLM_SUCCESS || !is_first)
        return status;
    atomic_store(&dd->version_2, true);
    lli_log(LLM_LOG_INFO, "cache",
            "cluster %llu registers memory: from now on version 2 of the interface holds",
            (unsigned long long)dd->cluster_id);
    return LLM_SUCCESS;
}

llm_status
llm_register_kv_cache(llm_datadist *dd, const llm_cache_desc *desc, const uint64_t *addrs,
                      size_t num_addrs, int64_t *ret_cache_id)
{
    llm_cache_desc known;
    struct lli_geometry geometry;
    LLI_TRY(lli_check_initialized(dd, "llm_register_kv_cache"));
    LLI_TRY(LLI_CHECK_STRUCT(desc, llm_cache_desc, &known));
    LLI_TRY(check_registration(dd, &known, addrs, num_addrs));
    LLI_TRY(lli_geometry_compute(&known, &geometry));
    LLI_TRY(check_extent(&geometry, addrs));
    if (ret_cache_id == NULL)
        return lli_fail(LLM_PARAM_INVALID, "cache", "ret_cache_id is NULL");
    lli_lock(&dd->life_lock);
    llm_status status = register_locked(dd, &geometry, addrs, ret_cache_id);
    lli_unlock(&dd->life_lock);
    if (status != LLM_SUCCESS)
        return status;
    lli_log(LLM_LOG_INFO, "cache", "cache %lld: %u registered tensors of %llu bytes",
            (long long)*ret_cache_id, geometry.num_tensors,
            (unsigned long long)geometry.tensor_bytes);
    return LLM_SUCCESS;
}

llm_status
llm_unregister_kv_cache(llm_datadist *dd, int64_t cache_id)
{
    LLI_TRY(lli_check_initialized(dd, "llm_unregister_kv_cache"));
    lli_registry_unregister(&dd->registry, cache_id);
    return LLM_SUCCESS;
}

// Keys, and what is known of caches.
#include "api/check.h"
#include "api/transfer.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "cache/keys.h"

llm_status
lli_read_key(const llm_cache_key *key, struct lli_key *ret_key)
{
    llm_cache_key known;
    LLI_TRY(LLI_CHECK_STRUCT(key, llm_cache_key, &known));
    if (known.kind > LLM_KEY_BLOCKS)
        return lli_fail(LLM_PARAM_INVALID, "cache", "key.kind is %u, expected 0..3", known.kind);
    if (known.kind == LLM_KEY_BLOCKS && known.id != 0)
        return lli_fail(LLM_PARAM_INVALID, "cache", "the id of a blocks key is %llu, expected 0",
                        (unsigned long long)known.id);
    *ret_key = (struct lli_key){.kind = known.kind, .id = known.id, .model_id = known.model_id};
    return LLM_SUCCESS;
}

static llm_status
read_keys(const llm_cache_key *keys, size_t num_keys, struct lli_key *ret_keys)
{
    for (size_t i = 0; i < num_keys; i++) {
        LLI_TRY(lli_read_key(LLI_STRUCT_AT(keys, llm_cache_key, i), &ret_keys[i]));
        if (ret_keys[i].kind == LLM_KEY_BLOCKS && num_keys > 1)
            return lli_fail(LLM_PARAM_INVALID, "cache",
                            "keys[%zu] is a blocks key, which names a whole cache, among %zu keys",
                            i, num_keys);
    }
    return LLM_SUCCESS;
}

llm_status
llm_bind_cache_keys(llm_datadist *dd, int64_t cache_id, const llm_cache_key *keys, size_t num_keys)
{
    LLI_TRY(lli_check_initialized(dd, "llm_bind_cache_keys"));
    if (keys == NULL || num_keys == 0)
        return lli_fail(LLM_PARAM_INVALID, "cache", "keys is empty");
    struct lli_key *known = lli_calloc(num_keys, sizeof(*known));
    if (known == NULL)
        return lli_fail(LLM_OUT_OF_MEMORY, "cache", "no memory for %zu keys", num_keys);
    llm_status status = read_keys(keys, num_keys, known);
    if (status == LLM_SUCCESS)
        status = lli_keys_bind(&dd->registry, cache_id, known, num_keys);
    lli_free(known);
    return status;
}

llm_status
llm_remove_cache_key(llm_datadist *dd, const llm_cache_key *key)
{
    struct lli_key known;
    LLI_TRY(lli_check_initialized(dd, "llm_remove_cache_key"));
    LLI_TRY(lli_read_key(key, &known));
    lli_keys_remove(&dd->registry, &known);
    return LLM_SUCCESS;
}

// ---- what is known ----

static void
write_info(llm_cache_info *info, const struct lli_answer *answer)
{
    const struct lli_geometry *geometry = &answer->geometry;
    llm_cache_info known = {
        .cache_id = answer->cache_id,
        .batch_index = (uint32_t)answer->slot,
        .placement = geometry->placement,
        .num_tensors = geometry->num_tensors,
        .registered = answer->registered,
        .num_slots = geometry->num_slots,
        .stride = geometry->stride,
        .tensor_bytes = geometry->tensor_bytes,
        .generation = answer->generation,
        .data_type = geometry->data_type,
        .num_dims = geometry->num_dims,
    };
    memcpy(known.dims, geometry->dims, geometry->num_dims * sizeof(known.dims[0]));
    LLI_WRITE_STRUCT(&known, llm_cache_info, info);
}

llm_status
llm_get_cache_info(llm_datadist *dd, int64_t cache_id, llm_cache_info *info)
{
    llm_cache_info known;
    struct lli_cache *cache;
    LLI_TRY(lli_check_initialized(dd, "llm_get_cache_info"));
    LLI_TRY(LLI_CHECK_STRUCT(info, llm_cache_info, &known));
    LLI_TRY(lli_hold_local(dd, cache_id, &cache));
    struct lli_answer answer = {
        .cache_id = cache->id,
        .geometry = cache->geometry,
        .registered = cache->registered,
        .generation = cache->generation,
    };
    lli_registry_put(&dd->registry, cache);
    write_info(info, &answer);
    return LLM_SUCCESS;
}

llm_status
llm_query_cache(llm_datadist *dd, const llm_cache_index *index, llm_cache_info *info)
{
    llm_cache_index known_index;
    llm_cache_info known;
    struct lli_answer answer;
    LLI_TRY(lli_check_initialized(dd, "llm_query_cache"));
    LLI_TRY(lli_read_index(index, &known_index));
    LLI_TRY(LLI_CHECK_STRUCT(info, llm_cache_info, &known));
    struct lli_request request = {
        .kind = LLI_REQUEST_SLOT,
        .cache_id = known_index.cache_id,
        .slot = known_index.batch_index,
        .generation = known_index.generation,
    };
    if (known_index.key != NULL) {
        request.by = LLI_BY_KEY;
        request.slot = 0;
        LLI_TRY(lli_read_key(known_index.key, &request.key));
    }
    uint64_t deadline_ns = lli_deadline_after_ms(dd->options.sync_wait_ms);
    lli_renew_link(dd, known_index.cluster_id, deadline_ns);
    llm_status status =
        lli_transfer_query(&dd->node, known_index.cluster_id, &request, deadline_ns, &answer);
    if (status != LLM_SUCCESS)
        return lli_transfer_status(dd, status);
    write_info(info, &answer);
    return LLM_SUCCESS;
}

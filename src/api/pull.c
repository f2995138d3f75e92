// Pulls (§8.2, §8.3, §13.5).
#include "api/transfer.h"
#include "base/log.h"
#include "base/os.h"

static llm_status
check_size(int64_t size)
{
    if (size == -1 || size > 0)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer", "size is %lld, expected -1 or more than 0",
                    (long long)size);
}

static llm_status
check_not_own(const llm_datadist *dd, const llm_cache_index *index)
{
    if (index->cluster_id != dd->cluster_id || !atomic_load(&dd->version_2))
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer", "cluster %llu is this instance itself",
                    (unsigned long long)index->cluster_id);
}

// Selects tensors on both sides: the ranges if both are given, else all.
static llm_status
select_pulled(const struct lli_layers *layers, const struct lli_geometry *geometry,
              struct lli_transfer_args *args)
{
    uint32_t per_layer = layers->tensors_per_layer;
    if (!lli_layers_given(layers->src_first, layers->src_last) ||
        !lli_layers_given(layers->dst_first, layers->dst_last)) {
        // Where nothing says what a layer is, the default need not divide.
        if (per_layer != 2)
            LLI_TRY(lli_check_divides(per_layer, geometry->num_tensors));
        args->all_tensors = true;
        args->num_tensors = geometry->num_tensors;
        return LLM_SUCCESS;
    }
    uint64_t end = ((uint64_t)layers->dst_last + 1) * per_layer;
    if (end > geometry->num_tensors)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "dst_layer_range ends at tensor %llu, the local cache has %u tensors",
                        (unsigned long long)end, geometry->num_tensors);
    LLI_TRY(lli_check_divides(per_layer, geometry->num_tensors));
    uint64_t src_first = (uint64_t)layers->src_first * per_layer;
    args->local_first_tensor = (uint32_t)layers->dst_first * per_layer;
    args->num_tensors = (uint32_t)(end - args->local_first_tensor);
    args->tensors_per_layer = per_layer;
    // No cache has so many: the peer's will say so, when it is known that there is a link, and a cache.
    args->remote_first_tensor = (uint32_t)lli_min(src_first, UINT32_MAX - args->num_tensors);
    return LLM_SUCCESS;
}

static llm_status
check_pull_layers(const llm_kv_cache_ext_param *param, struct lli_layers *ret_layers)
{
    LLI_TRY(lli_read_layers(param, ret_layers));
    if (lli_layers_given(ret_layers->src_first, ret_layers->src_last) &&
        lli_layers_given(ret_layers->dst_first, ret_layers->dst_last))
        LLI_TRY(lli_check_equal_length(ret_layers));
    return LLM_SUCCESS;
}

static llm_status
pull_slot(llm_datadist *dd, struct lli_transfer_args *args, const struct lli_layers *layers,
          int64_t size, uint64_t start_ns, uint64_t *ret_transfer_id)
{
    const struct lli_geometry *geometry = &args->cache->geometry;
    LLI_TRY(lli_check_slot("batch_index", args->local_slot, geometry));
    LLI_TRY(select_pulled(layers, geometry, args));
    if (layers->dst_offset > 0 && layers->dst_offset >= geometry->stride)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "dst_offset is %llu, the stride of the local cache is %llu",
                        (unsigned long long)layers->dst_offset,
                        (unsigned long long)geometry->stride);
    uint64_t left = geometry->stride - layers->dst_offset;
    if (size > 0 && (uint64_t)size > left)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "size is %lld, the stride of the local cache is %llu and dst_offset %llu",
                        (long long)size, (unsigned long long)geometry->stride,
                        (unsigned long long)layers->dst_offset);
    args->bytes = size == -1 ? left : (uint64_t)size;
    args->local_offset = layers->dst_offset;
    args->remote_offset = layers->src_offset;
    return lli_go(dd, args, layers, start_ns, ret_transfer_id);
}

static llm_status
pull_kv_cache(llm_datadist *dd, const char *call, const llm_cache_index *src, const llm_cache *dst,
              uint32_t dst_batch_index, int64_t size, const llm_kv_cache_ext_param *param,
              uint64_t *ret_transfer_id)
{
    llm_cache_index from;
    llm_cache to;
    struct lli_layers layers;
    LLI_TRY(lli_check_initialized(dd, call));
    uint64_t start_ns = lli_now_ns();
    LLI_TRY(lli_read_index(src, &from));
    LLI_TRY(LLI_CHECK_STRUCT(dst, llm_cache, &to));
    LLI_TRY(check_size(size));
    LLI_TRY(check_pull_layers(param, &layers));
    LLI_TRY(lli_check_role(dd, LLM_ROLE_DECODER, "pull"));
    LLI_TRY(check_not_own(dd, &from));
    struct lli_transfer_args args = {
        .kind = LLI_REQUEST_SLOT,
        .remote_slot = from.batch_index,
        .local_slot = dst_batch_index,
    };
    LLI_TRY(lli_read_target(&from, &layers, &args));
    LLI_TRY(lli_hold_local(dd, to.cache_id, &args.cache));
    llm_status status = pull_slot(dd, &args, &layers, size, start_ns, ret_transfer_id);
    lli_registry_put(&dd->registry, args.cache);
    return status;
}

llm_status
llm_pull_kv_cache(llm_datadist *dd, const llm_cache_index *src, const llm_cache *dst,
                  uint32_t dst_batch_index, int64_t size, const llm_kv_cache_ext_param *param)
{
    return pull_kv_cache(dd, "llm_pull_kv_cache", src, dst, dst_batch_index, size, param, NULL);
}

llm_status
llm_start_pull_kv_cache(llm_datadist *dd, const llm_cache_index *src, const llm_cache *dst,
                        uint32_t dst_batch_index, int64_t size, const llm_kv_cache_ext_param *param,
                        uint64_t *ret_transfer_id)
{
    const char *call = "llm_start_pull_kv_cache";
    LLI_TRY(lli_check_start(dd, call, ret_transfer_id));
    return pull_kv_cache(dd, call, src, dst, dst_batch_index, size, param, ret_transfer_id);
}

// ---- a slot into blocks ----

static llm_status
check_dst_blocks(const uint64_t *dst_blocks, size_t num_dst_blocks)
{
    if (dst_blocks != NULL && num_dst_blocks > 0)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer", "dst_blocks is empty");
}

static llm_status
pull_to_blocks(llm_datadist *dd, struct lli_transfer_args *args, const struct lli_layers *layers,
               int64_t size, uint64_t start_ns, uint64_t *ret_transfer_id)
{
    const struct lli_geometry *geometry = &args->cache->geometry;
    LLI_TRY(lli_check_blocks("dst_blocks", args->local_blocks, args->num_blocks, geometry));
    LLI_TRY(select_pulled(layers, geometry, args));
    uint64_t room;
    if (lli_mul_overflow(args->num_blocks, geometry->stride, &room))
        room = UINT64_MAX;
    if (size > 0 && (uint64_t)size > room)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "size is %lld, the %zu blocks of dst_blocks hold %llu bytes",
                        (long long)size, args->num_blocks, (unsigned long long)room);
    args->bytes = size == -1 ? room : (uint64_t)size;
    args->bytes_min = size == -1 ? geometry->stride : 0;
    args->remote_offset = layers->src_offset;
    return lli_go(dd, args, layers, start_ns, ret_transfer_id);
}

static llm_status
pull_kv_cache_to_blocks(llm_datadist *dd, const char *call, const llm_cache_index *src,
                        const llm_cache *dst, const uint64_t *dst_blocks, size_t num_dst_blocks,
                        int64_t size, const llm_kv_cache_ext_param *param,
                        uint64_t *ret_transfer_id)
{
    llm_cache_index from;
    llm_cache to;
    struct lli_layers layers;
    LLI_TRY(lli_check_initialized(dd, call));
    uint64_t start_ns = lli_now_ns();
    LLI_TRY(lli_read_index(src, &from));
    LLI_TRY(LLI_CHECK_STRUCT(dst, llm_cache, &to));
    LLI_TRY(check_size(size));
    LLI_TRY(check_pull_layers(param, &layers));
    if (layers.dst_offset != 0)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "dst_offset is %llu, expected 0: blocks are filled from their beginning",
                        (unsigned long long)layers.dst_offset);
    LLI_TRY(lli_check_role(dd, LLM_ROLE_DECODER, "pull"));
    LLI_TRY(check_not_own(dd, &from));
    LLI_TRY(check_dst_blocks(dst_blocks, num_dst_blocks));
    struct lli_transfer_args args = {
        .kind = LLI_REQUEST_SLOT,
        .remote_slot = from.batch_index,
        .local_blocks = dst_blocks,
        .num_blocks = num_dst_blocks,
    };
    LLI_TRY(lli_read_target(&from, &layers, &args));
    LLI_TRY(lli_hold_local(dd, to.cache_id, &args.cache));
    llm_status status = pull_to_blocks(dd, &args, &layers, size, start_ns, ret_transfer_id);
    lli_registry_put(&dd->registry, args.cache);
    return status;
}

llm_status
llm_pull_kv_cache_to_blocks(llm_datadist *dd, const llm_cache_index *src, const llm_cache *dst,
                            const uint64_t *dst_blocks, size_t num_dst_blocks, int64_t size,
                            const llm_kv_cache_ext_param *param)
{
    return pull_kv_cache_to_blocks(dd, "llm_pull_kv_cache_to_blocks", src, dst, dst_blocks,
                                   num_dst_blocks, size, param, NULL);
}

llm_status
llm_start_pull_kv_cache_to_blocks(llm_datadist *dd, const llm_cache_index *src,
                                  const llm_cache *dst, const uint64_t *dst_blocks,
                                  size_t num_dst_blocks, int64_t size,
                                  const llm_kv_cache_ext_param *param, uint64_t *ret_transfer_id)
{
    const char *call = "llm_start_pull_kv_cache_to_blocks";
    LLI_TRY(lli_check_start(dd, call, ret_transfer_id));
    return pull_kv_cache_to_blocks(dd, call, src, dst, dst_blocks, num_dst_blocks, size, param,
                                   ret_transfer_id);
}

// ---- blocks into blocks ----

static llm_status
pull_blocks(llm_datadist *dd, struct lli_transfer_args *args, const struct lli_layers *layers,
            uint64_t start_ns, uint64_t *ret_transfer_id)
{
    const struct lli_geometry *geometry = &args->cache->geometry;
    LLI_TRY(lli_check_blocks("dst_blocks", args->local_blocks, args->num_blocks, geometry));
    LLI_TRY(select_pulled(layers, geometry, args));
    return lli_go(dd, args, layers, start_ns, ret_transfer_id);
}

static llm_status
pull_kv_blocks(llm_datadist *dd, const char *call, const llm_cache_index *src, const llm_cache *dst,
               const uint64_t *src_blocks, size_t num_src_blocks, const uint64_t *dst_blocks,
               size_t num_dst_blocks, const llm_kv_cache_ext_param *param,
               uint64_t *ret_transfer_id)
{
    llm_cache_index from;
    llm_cache to;
    struct lli_layers layers;
    LLI_TRY(lli_check_initialized(dd, call));
    uint64_t start_ns = lli_now_ns();
    LLI_TRY(lli_read_index(src, &from));
    LLI_TRY(LLI_CHECK_STRUCT(dst, llm_cache, &to));
    if (from.key == NULL)
        LLI_TRY(lli_check_no_batch(&from));
    LLI_TRY(check_pull_layers(param, &layers));
    LLI_TRY(lli_check_role(dd, LLM_ROLE_DECODER, "pull"));
    LLI_TRY(check_not_own(dd, &from));
    LLI_TRY(lli_check_lists(src_blocks, num_src_blocks, dst_blocks, num_dst_blocks));
    struct lli_transfer_args args = {
        .kind = LLI_REQUEST_BLOCKS,
        .local_blocks = dst_blocks,
        .remote_blocks = src_blocks,
        .num_blocks = num_src_blocks,
    };
    LLI_TRY(lli_read_target(&from, &layers, &args));
    LLI_TRY(lli_check_no_offsets(&layers));
    LLI_TRY(lli_hold_local(dd, to.cache_id, &args.cache));
    llm_status status = pull_blocks(dd, &args, &layers, start_ns, ret_transfer_id);
    lli_registry_put(&dd->registry, args.cache);
    return status;
}

llm_status
llm_pull_kv_blocks(llm_datadist *dd, const llm_cache_index *src, const llm_cache *dst,
                   const uint64_t *src_blocks, size_t num_src_blocks, const uint64_t *dst_blocks,
                   size_t num_dst_blocks, const llm_kv_cache_ext_param *param)
{
    return pull_kv_blocks(dd, "llm_pull_kv_blocks", src, dst, src_blocks, num_src_blocks,
                          dst_blocks, num_dst_blocks, param, NULL);
}

llm_status
llm_start_pull_kv_blocks(llm_datadist *dd, const llm_cache_index *src, const llm_cache *dst,
                         const uint64_t *src_blocks, size_t num_src_blocks,
                         const uint64_t *dst_blocks, size_t num_dst_blocks,
                         const llm_kv_cache_ext_param *param, uint64_t *ret_transfer_id)
{
    const char *call = "llm_start_pull_kv_blocks";
    LLI_TRY(lli_check_start(dd, call, ret_transfer_id));
    return pull_kv_blocks(dd, call, src, dst, src_blocks, num_src_blocks, dst_blocks,
                          num_dst_blocks, param, ret_transfer_id);
}

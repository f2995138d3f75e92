// Pushes (§8.4, §8.5, §13.5).
#include "api/transfer.h"
#include "base/log.h"
#include "base/os.h"

// The caller's own description of the source; NULL stands for the allocated cache's.
struct pushed {
    llm_cache cache;
    bool has_desc;
    uint32_t placement;
    uint32_t num_tensors;
};

static llm_status
read_pushed(const llm_cache *src, bool version_2, struct pushed *ret_pushed)
{
    llm_cache_desc desc;
    *ret_pushed = (struct pushed){.placement = LLM_PLACEMENT_DEVICE};
    LLI_TRY(LLI_CHECK_STRUCT(src, llm_cache, &ret_pushed->cache));
    if (ret_pushed->cache.desc != NULL) {
        LLI_TRY(LLI_CHECK_STRUCT(ret_pushed->cache.desc, llm_cache_desc, &desc));
        ret_pushed->has_desc = true;
        ret_pushed->placement = desc.placement;
        ret_pushed->num_tensors = desc.num_tensors;
    }
    // In version 2 the cache id is enough.
    if (version_2 && ret_pushed->num_tensors == 0)
        ret_pushed->has_desc = false;
    if (ret_pushed->placement != LLM_PLACEMENT_DEVICE)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "the placement of the source is %u, expected 1 (device)",
                        ret_pushed->placement);
    return LLM_SUCCESS;
}

// Checks 4 and 5 of §8.4.
static llm_status
check_push_layers(const llm_kv_cache_ext_param *param, const struct pushed *pushed,
                  const llm_cache_index *to, struct lli_layers *ret_layers)
{
    LLI_TRY(lli_read_layers(param, ret_layers));
    // Where the addresses say it, the range doesn't.
    if (to->addrs != NULL) {
        ret_layers->dst_first = ret_layers->src_first;
        ret_layers->dst_last = ret_layers->src_last;
    }
    LLI_TRY(lli_check_no_offsets(ret_layers));
    LLI_TRY(lli_check_equal_length(ret_layers));
    if (ret_layers->src_first == -1 && pushed->has_desc && pushed->num_tensors == 0)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "num_tensors of the source is 0, expected 1 or more to push all layers");
    return LLM_SUCCESS;
}

// Checks 6 and 7.
static llm_status
check_pusher(const llm_datadist *dd)
{
    if (dd->options.num_devices > 1)
        return lli_fail(LLM_FEATURE_NOT_ENABLED, "transfer",
                        "push works with one device, this instance has %zu",
                        dd->options.num_devices);
    return lli_check_role(dd, LLM_ROLE_PROMPT, "push");
}

// In version 2 a missing link is said before anything about layers (§13.5).
static llm_status
check_linked(llm_datadist *dd, uint64_t cluster_id)
{
    struct lli_link *link;
    if (!atomic_load(&dd->version_2))
        return LLM_SUCCESS;
    link = lli_links_find(&dd->node, cluster_id);
    bool broken = link != NULL && lli_link_is_broken(link);
    if (link != NULL)
        lli_link_put(link);
    // It is made anew, or told, when the push begins.
    if (broken)
        return LLM_SUCCESS;
    LLI_TRY(lli_transfer_status(dd, lli_links_acquire(&dd->node, cluster_id, &link)));
    lli_links_release(link);
    return LLM_SUCCESS;
}

// A range of layers, all of them to be checked before the first moves: 10 and 11.
static llm_status
select_pushed(const struct lli_layers *layers, const struct pushed *pushed,
              const struct lli_geometry *geometry, struct lli_transfer_args *args)
{
    uint32_t per_layer = layers->tensors_per_layer;
    int64_t local_layers = lli_max(geometry->num_tensors / per_layer, 1);
    int64_t src_first = layers->src_first;
    int64_t src_last = layers->src_last;
    int64_t dst_first = layers->dst_first;
    if (!lli_layers_given(layers->src_first, layers->src_last)) {
        uint32_t num_tensors = pushed->has_desc ? pushed->num_tensors : geometry->num_tensors;
        src_first = dst_first = 0;
        src_last = (int64_t)(((uint64_t)num_tensors + per_layer - 1) / per_layer) - 1;
    }
    int64_t dst_last = dst_first + (src_last - src_first);
    if (src_last >= local_layers)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "source layer %lld is out of range, the local cache has %lld",
                        (long long)lli_max((uint64_t)src_first, (uint64_t)local_layers),
                        (long long)local_layers);
    if (dst_first < 0 || dst_last >= local_layers)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "dst_layer_range {%lld, %lld} is out of range, the local cache has %lld "
                        "layers",
                        (long long)dst_first, (long long)dst_last, (long long)local_layers);
    LLI_TRY(lli_check_divides(per_layer, geometry->num_tensors));
    args->local_first_tensor = (uint32_t)src_first * per_layer;
    args->remote_first_tensor = (uint32_t)dst_first * per_layer;
    args->num_tensors = (uint32_t)(src_last - src_first + 1) * per_layer;
    args->tensors_per_layer = per_layer;
    return LLM_SUCCESS;
}

static llm_status
check_addresses(const struct lli_transfer_args *args, size_t num_addrs)
{
    if (args->by != LLI_BY_ADDRESS)
        return LLM_SUCCESS;
    if (num_addrs > LLM_ADDRS_MAX)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "there are %zu addrs, at most %d in one call", num_addrs, LLM_ADDRS_MAX);
    if (num_addrs == args->num_tensors)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer", "there are %zu addrs for %u tensors", num_addrs,
                    args->num_tensors);
}

static llm_status
push_slot(llm_datadist *dd, struct lli_transfer_args *args, const struct lli_layers *layers,
          const struct pushed *pushed, size_t num_addrs, uint64_t start_ns,
          uint64_t *ret_transfer_id)
{
    const struct lli_geometry *geometry = &args->cache->geometry;
    LLI_TRY(check_linked(dd, args->cluster_id));
    LLI_TRY(lli_check_slot("src_batch_index", args->local_slot, geometry));
    LLI_TRY(select_pushed(layers, pushed, geometry, args));
    LLI_TRY(check_addresses(args, num_addrs));
    args->bytes = geometry->stride;
    return lli_go(dd, args, layers, start_ns, ret_transfer_id);
}

static llm_status
push_kv_cache(llm_datadist *dd, const char *call, const llm_cache *src, const llm_cache_index *dst,
              uint32_t src_batch_index, int64_t size, const llm_kv_cache_ext_param *param,
              uint64_t *ret_transfer_id)
{
    llm_cache_index to;
    struct pushed pushed;
    struct lli_layers layers;
    LLI_TRY(lli_check_initialized(dd, call));
    uint64_t start_ns = lli_now_ns();
    LLI_TRY(lli_read_index(dst, &to));
    LLI_TRY(read_pushed(src, atomic_load(&dd->version_2), &pushed));
    if (size != -1)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "size is %lld, expected -1 for a push",
                        (long long)size);
    LLI_TRY(check_push_layers(param, &pushed, &to, &layers));
    LLI_TRY(check_pusher(dd));
    struct lli_transfer_args args = {
        .push = true,
        .kind = LLI_REQUEST_SLOT,
        .remote_slot = to.batch_index,
        .local_slot = src_batch_index,
    };
    LLI_TRY(lli_read_target(&to, &layers, &args));
    LLI_TRY(lli_hold_local(dd, pushed.cache.cache_id, &args.cache));
    llm_status status =
        push_slot(dd, &args, &layers, &pushed, to.num_addrs, start_ns, ret_transfer_id);
    lli_registry_put(&dd->registry, args.cache);
    return status;
}

llm_status
llm_push_kv_cache(llm_datadist *dd, const llm_cache *src, const llm_cache_index *dst,
                  uint32_t src_batch_index, int64_t size, const llm_kv_cache_ext_param *param)
{
    return push_kv_cache(dd, "llm_push_kv_cache", src, dst, src_batch_index, size, param, NULL);
}

llm_status
llm_start_push_kv_cache(llm_datadist *dd, const llm_cache *src, const llm_cache_index *dst,
                        uint32_t src_batch_index, int64_t size, const llm_kv_cache_ext_param *param,
                        uint64_t *ret_transfer_id)
{
    const char *call = "llm_start_push_kv_cache";
    LLI_TRY(lli_check_start(dd, call, ret_transfer_id));
    return push_kv_cache(dd, call, src, dst, src_batch_index, size, param, ret_transfer_id);
}

static llm_status
push_blocks(llm_datadist *dd, struct lli_transfer_args *args, const struct lli_layers *layers,
            const struct pushed *pushed, size_t num_addrs, uint64_t start_ns,
            uint64_t *ret_transfer_id)
{
    const struct lli_geometry *geometry = &args->cache->geometry;
    LLI_TRY(check_linked(dd, args->cluster_id));
    LLI_TRY(select_pushed(layers, pushed, geometry, args));
    LLI_TRY(lli_check_blocks("src_blocks", args->local_blocks, args->num_blocks, geometry));
    LLI_TRY(check_addresses(args, num_addrs));
    return lli_go(dd, args, layers, start_ns, ret_transfer_id);
}

static llm_status
push_kv_blocks(llm_datadist *dd, const char *call, const llm_cache *src, const llm_cache_index *dst,
               const uint64_t *src_blocks, size_t num_src_blocks, const uint64_t *dst_blocks,
               size_t num_dst_blocks, const llm_kv_cache_ext_param *param,
               uint64_t *ret_transfer_id)
{
    llm_cache_index to;
    struct pushed pushed;
    struct lli_layers layers;
    LLI_TRY(lli_check_initialized(dd, call));
    uint64_t start_ns = lli_now_ns();
    LLI_TRY(lli_read_index(dst, &to));
    LLI_TRY(read_pushed(src, atomic_load(&dd->version_2), &pushed));
    LLI_TRY(lli_check_lists(src_blocks, num_src_blocks, dst_blocks, num_dst_blocks));
    if (to.key == NULL && to.addrs == NULL)
        LLI_TRY(lli_check_no_batch(&to));
    LLI_TRY(check_push_layers(param, &pushed, &to, &layers));
    LLI_TRY(check_pusher(dd));
    struct lli_transfer_args args = {
        .push = true,
        .kind = LLI_REQUEST_BLOCKS,
        .local_blocks = src_blocks,
        .remote_blocks = dst_blocks,
        .num_blocks = num_src_blocks,
    };
    LLI_TRY(lli_read_target(&to, &layers, &args));
    LLI_TRY(lli_hold_local(dd, pushed.cache.cache_id, &args.cache));
    llm_status status =
        push_blocks(dd, &args, &layers, &pushed, to.num_addrs, start_ns, ret_transfer_id);
    lli_registry_put(&dd->registry, args.cache);
    return status;
}

llm_status
llm_push_kv_blocks(llm_datadist *dd, const llm_cache *src, const llm_cache_index *dst,
                   const uint64_t *src_blocks, size_t num_src_blocks, const uint64_t *dst_blocks,
                   size_t num_dst_blocks, const llm_kv_cache_ext_param *param)
{
    return push_kv_blocks(dd, "llm_push_kv_blocks", src, dst, src_blocks, num_src_blocks,
                          dst_blocks, num_dst_blocks, param, NULL);
}

llm_status
llm_start_push_kv_blocks(llm_datadist *dd, const llm_cache *src, const llm_cache_index *dst,
                         const uint64_t *src_blocks, size_t num_src_blocks,
                         const uint64_t *dst_blocks, size_t num_dst_blocks,
                         const llm_kv_cache_ext_param *param, uint64_t *ret_transfer_id)
{
    const char *call = "llm_start_push_kv_blocks";
    LLI_TRY(lli_check_start(dd, call, ret_transfer_id));
    return push_kv_blocks(dd, call, src, dst, src_blocks, num_src_blocks, dst_blocks,
                          num_dst_blocks, param, ret_transfer_id);
}

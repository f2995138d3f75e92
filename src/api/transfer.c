// Transfers (§8, §13.5): the checks of the caller's side, in the specification's order.  Each call
// has one body; with a `ret_transfer_id` it starts the transfer, without one it runs it to its end.
#include "transfer/transfer.h"
#include "api/check.h"
#include "base/log.h"
#include "base/os.h"

// ---- layers (§8.1) ----

struct layers {
    int32_t src_first;
    int32_t src_last;
    int32_t dst_first;
    int32_t dst_last;
    uint32_t tensors_per_layer;
    uint32_t timeout_ms; // 0: the option's
    const void *notification;
    size_t notification_bytes;
};

enum { EXT_PARAM_FIRST_BYTES = offsetof(llm_kv_cache_ext_param, tensor_num_per_layer) + 4 };

static bool
is_given(int32_t first, int32_t last)
{
    return first >= 0 && last >= 0;
}

static llm_status
check_range(const char *name, int32_t first, int32_t last)
{
    if (first >= -1 && last >= -1 && first <= last)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer",
                    "%s is {%d, %d}, expected {first, last} with -1 <= first <= last", name, first,
                    last);
}

static llm_status
check_notification(const llm_kv_cache_ext_param *param)
{
    if (param->notification_bytes <= LLM_NOTIFICATION_BYTES_MAX &&
        (param->notification != NULL || param->notification_bytes == 0))
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer",
                    "the notification is %s of %zu bytes, expected "
                    "0..%d bytes",
                    param->notification == NULL ? "NULL" : "one", param->notification_bytes,
                    LLM_NOTIFICATION_BYTES_MAX);
}

// Checks 1 to 3 of KvCacheExtParam.
static llm_status
read_layers(const llm_kv_cache_ext_param *param, struct layers *ret_layers)
{
    llm_kv_cache_ext_param known = LLM_KV_CACHE_EXT_PARAM_INIT;
    if (param != NULL)
        LLI_TRY(lli_check_struct(param, "llm_kv_cache_ext_param", EXT_PARAM_FIRST_BYTES,
                                 sizeof(known), &known));
    LLI_TRY(check_range("src_layer_range", known.src_layer_range[0], known.src_layer_range[1]));
    LLI_TRY(check_range("dst_layer_range", known.dst_layer_range[0], known.dst_layer_range[1]));
    if (known.tensor_num_per_layer < 1 || known.tensor_num_per_layer > UINT8_MAX)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "tensor_num_per_layer is %u, expected 1..255", known.tensor_num_per_layer);
    LLI_TRY(check_notification(&known));
    *ret_layers = (struct layers){
        .src_first = known.src_layer_range[0],
        .src_last = known.src_layer_range[1],
        .dst_first = known.dst_layer_range[0],
        .dst_last = known.dst_layer_range[1],
        .tensors_per_layer = known.tensor_num_per_layer,
        .timeout_ms = known.timeout_ms,
        .notification = known.notification_bytes > 0 ? known.notification : NULL,
        .notification_bytes = known.notification_bytes,
    };
    return LLM_SUCCESS;
}

static llm_status
check_equal_length(const struct layers *layers)
{
    if ((int64_t)layers->src_last - layers->src_first ==
        (int64_t)layers->dst_last - layers->dst_first)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer",
                    "src_layer_range {%d, %d} and dst_layer_range {%d, %d} have different lengths",
                    layers->src_first, layers->src_last, layers->dst_first, layers->dst_last);
}

static llm_status
check_divides(uint32_t tensors_per_layer, uint32_t num_tensors)
{
    if (num_tensors % tensors_per_layer == 0)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer",
                    "tensor_num_per_layer is %u, which doesn't divide the cache's %u tensors",
                    tensors_per_layer, num_tensors);
}

// ---- what all four calls share ----

static llm_status
check_start(const llm_datadist *dd, const char *call, const uint64_t *ret_transfer_id)
{
    LLI_TRY(lli_check_initialized(dd, call));
    if (ret_transfer_id == NULL)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "%s: ret_transfer_id is NULL", call);
    return LLM_SUCCESS;
}

static llm_status
hold_cache(llm_datadist *dd, int64_t cache_id, struct lli_cache **ret_cache)
{
    *ret_cache = lli_registry_hold(&dd->registry, cache_id);
    if (*ret_cache == NULL)
        return lli_fail(LLM_KV_CACHE_NOT_EXIST, "transfer", "there is no local cache with id %lld",
                        (long long)cache_id);
    return LLM_SUCCESS;
}

static llm_status
check_role(const llm_datadist *dd, int role, const char *what)
{
    int current = atomic_load(&dd->role);
    // In version 2 the role is a label.
    if (current == role || atomic_load(&dd->version_2))
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer", "a %s can't %s, only a %s can",
                    lli_role_name(current), what, lli_role_name(role));
}

static llm_status
check_slot(const char *name, uint64_t slot, const struct lli_geometry *geometry)
{
    if (slot < geometry->num_slots)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer", "%s is %llu, the local cache has %llu batches",
                    name, (unsigned long long)slot, (unsigned long long)geometry->num_slots);
}

// Without a branch in the loop: the lists are long, and almost always right.
static bool
all_below(const uint64_t *blocks, size_t num_blocks, uint64_t limit)
{
    // The top bit is set in blocks[i] or in what remains to the limit if, and only if, it's beyond.
    uint64_t bits = 0;
    for (size_t i = 0; i < num_blocks; i++)
        bits |= blocks[i] | (limit - 1 - blocks[i]);
    return bits >> 63 == 0;
}

static llm_status
check_blocks(const char *name, const uint64_t *blocks, size_t num_blocks,
             const struct lli_geometry *geometry)
{
    if (all_below(blocks, num_blocks, geometry->num_slots))
        return LLM_SUCCESS;
    for (size_t i = 0; i < num_blocks; i++) {
        if (blocks[i] >= geometry->num_slots)
            return lli_fail(LLM_PARAM_INVALID, "transfer",
                            "%s[%zu] is %llu, the local cache has %llu blocks", name, i,
                            (unsigned long long)blocks[i], (unsigned long long)geometry->num_slots);
    }
    return LLM_SUCCESS;
}

static llm_status
check_lists(const uint64_t *src_blocks, size_t num_src_blocks, const uint64_t *dst_blocks,
            size_t num_dst_blocks)
{
    if (src_blocks == NULL || num_src_blocks == 0)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "src_blocks is empty");
    if (num_src_blocks != num_dst_blocks || dst_blocks == NULL)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "src_blocks has %zu entries, dst_blocks %zu",
                        num_src_blocks, dst_blocks == NULL ? 0 : num_dst_blocks);
    return LLM_SUCCESS;
}

static llm_status
check_no_batch(const llm_cache_index *index)
{
    if (index->batch_index == 0)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer", "batch_index is %u, expected 0 for blocks",
                    index->batch_index);
}

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

// Fills in what doesn't depend on the kind of transfer, and goes.
static llm_status
go(llm_datadist *dd, struct lli_transfer_args *args, const struct layers *layers, uint64_t start_ns,
   uint64_t *ret_transfer_id)
{
    uint64_t timeout_ms = layers->timeout_ms;
    // The option's time limit counts per layer of a push (§10.3).
    if (timeout_ms == 0)
        timeout_ms = (uint64_t)dd->options.sync_wait_ms *
                     (args->push ? lli_max(args->num_tensors / layers->tensors_per_layer, 1) : 1);
    uint64_t timeout_ns;
    if (lli_mul_overflow(timeout_ms, 1000000, &timeout_ns) ||
        lli_add_overflow(start_ns, timeout_ns, &args->deadline_ns))
        args->deadline_ns = UINT64_MAX;
    args->version_2 = atomic_load(&dd->version_2);
    args->notification = layers->notification;
    args->notification_bytes = layers->notification_bytes;
    llm_status status = ret_transfer_id != NULL
                            ? lli_transfer_start(&dd->node, args, ret_transfer_id)
                            : lli_transfer_run(&dd->node, args);
    return lli_transfer_status(dd, status);
}

// ---- pull (§8.2, §8.3) ----

// Selects tensors on both sides: the ranges if both are given, else all.
static llm_status
select_pulled(const struct layers *layers, const struct lli_geometry *geometry,
              struct lli_transfer_args *args)
{
    uint32_t per_layer = layers->tensors_per_layer;
    if (!is_given(layers->src_first, layers->src_last) ||
        !is_given(layers->dst_first, layers->dst_last)) {
        // Where nothing says what a layer is, the default need not divide.
        if (per_layer != 2)
            LLI_TRY(check_divides(per_layer, geometry->num_tensors));
        args->all_tensors = true;
        args->num_tensors = geometry->num_tensors;
        return LLM_SUCCESS;
    }
    uint64_t end = ((uint64_t)layers->dst_last + 1) * per_layer;
    if (end > geometry->num_tensors)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "dst_layer_range ends at tensor %llu, the local cache has %u tensors",
                        (unsigned long long)end, geometry->num_tensors);
    LLI_TRY(check_divides(per_layer, geometry->num_tensors));
    uint64_t src_first = (uint64_t)layers->src_first * per_layer;
    args->local_first_tensor = (uint32_t)layers->dst_first * per_layer;
    args->num_tensors = (uint32_t)(end - args->local_first_tensor);
    args->tensors_per_layer = per_layer;
    if (src_first > UINT32_MAX - args->num_tensors)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "src_layer_range begins at tensor %llu",
                        (unsigned long long)src_first);
    args->remote_first_tensor = (uint32_t)src_first;
    return LLM_SUCCESS;
}

static llm_status
check_pull_layers(const llm_kv_cache_ext_param *param, struct layers *ret_layers)
{
    LLI_TRY(read_layers(param, ret_layers));
    if (is_given(ret_layers->src_first, ret_layers->src_last) &&
        is_given(ret_layers->dst_first, ret_layers->dst_last))
        LLI_TRY(check_equal_length(ret_layers));
    return LLM_SUCCESS;
}

static llm_status
pull_slot(llm_datadist *dd, struct lli_transfer_args *args, const struct layers *layers,
          int64_t size, uint64_t start_ns, uint64_t *ret_transfer_id)
{
    const struct lli_geometry *geometry = &args->cache->geometry;
    LLI_TRY(check_slot("batch_index", args->local_slot, geometry));
    LLI_TRY(select_pulled(layers, geometry, args));
    if (size > 0 && (uint64_t)size > geometry->stride)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "size is %lld, the stride of the local cache is %llu", (long long)size,
                        (unsigned long long)geometry->stride);
    args->bytes = size == -1 ? geometry->stride : (uint64_t)size;
    return go(dd, args, layers, start_ns, ret_transfer_id);
}

static llm_status
pull_kv_cache(llm_datadist *dd, const char *call, const llm_cache_index *src, const llm_cache *dst,
              uint32_t dst_batch_index, int64_t size, const llm_kv_cache_ext_param *param,
              uint64_t *ret_transfer_id)
{
    llm_cache_index from;
    llm_cache to;
    struct layers layers;
    LLI_TRY(lli_check_initialized(dd, call));
    uint64_t start_ns = lli_now_ns();
    LLI_TRY(LLI_CHECK_STRUCT(src, llm_cache_index, &from));
    LLI_TRY(LLI_CHECK_STRUCT(dst, llm_cache, &to));
    LLI_TRY(check_size(size));
    LLI_TRY(check_pull_layers(param, &layers));
    LLI_TRY(check_role(dd, LLM_ROLE_DECODER, "pull"));
    LLI_TRY(check_not_own(dd, &from));
    struct lli_transfer_args args = {
        .kind = LLI_REQUEST_SLOT,
        .cluster_id = from.cluster_id,
        .remote_cache_id = from.cache_id,
        .remote_slot = from.batch_index,
        .local_slot = dst_batch_index,
    };
    LLI_TRY(hold_cache(dd, to.cache_id, &args.cache));
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
    LLI_TRY(check_start(dd, call, ret_transfer_id));
    return pull_kv_cache(dd, call, src, dst, dst_batch_index, size, param, ret_transfer_id);
}

static llm_status
pull_blocks(llm_datadist *dd, struct lli_transfer_args *args, const struct layers *layers,
            uint64_t start_ns, uint64_t *ret_transfer_id)
{
    const struct lli_geometry *geometry = &args->cache->geometry;
    LLI_TRY(check_blocks("dst_blocks", args->local_blocks, args->num_blocks, geometry));
    LLI_TRY(select_pulled(layers, geometry, args));
    return go(dd, args, layers, start_ns, ret_transfer_id);
}

static llm_status
pull_kv_blocks(llm_datadist *dd, const char *call, const llm_cache_index *src, const llm_cache *dst,
               const uint64_t *src_blocks, size_t num_src_blocks, const uint64_t *dst_blocks,
               size_t num_dst_blocks, const llm_kv_cache_ext_param *param,
               uint64_t *ret_transfer_id)
{
    llm_cache_index from;
    llm_cache to;
    struct layers layers;
    LLI_TRY(lli_check_initialized(dd, call));
    uint64_t start_ns = lli_now_ns();
    LLI_TRY(LLI_CHECK_STRUCT(src, llm_cache_index, &from));
    LLI_TRY(LLI_CHECK_STRUCT(dst, llm_cache, &to));
    LLI_TRY(check_no_batch(&from));
    LLI_TRY(check_pull_layers(param, &layers));
    LLI_TRY(check_role(dd, LLM_ROLE_DECODER, "pull"));
    LLI_TRY(check_not_own(dd, &from));
    LLI_TRY(check_lists(src_blocks, num_src_blocks, dst_blocks, num_dst_blocks));
    struct lli_transfer_args args = {
        .kind = LLI_REQUEST_BLOCKS,
        .cluster_id = from.cluster_id,
        .remote_cache_id = from.cache_id,
        .local_blocks = dst_blocks,
        .remote_blocks = src_blocks,
        .num_blocks = num_src_blocks,
    };
    LLI_TRY(hold_cache(dd, to.cache_id, &args.cache));
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
    LLI_TRY(check_start(dd, call, ret_transfer_id));
    return pull_kv_blocks(dd, call, src, dst, src_blocks, num_src_blocks, dst_blocks,
                          num_dst_blocks, param, ret_transfer_id);
}

// ---- push (§8.4, §8.5) ----

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
                  struct layers *ret_layers)
{
    LLI_TRY(read_layers(param, ret_layers));
    LLI_TRY(check_equal_length(ret_layers));
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
    return check_role(dd, LLM_ROLE_PROMPT, "push");
}

// In version 2 a missing link is said before anything about layers (§13.5).
static llm_status
check_linked(llm_datadist *dd, uint64_t cluster_id)
{
    struct lli_link *link;
    if (!atomic_load(&dd->version_2))
        return LLM_SUCCESS;
    LLI_TRY(lli_transfer_status(dd, lli_links_acquire(&dd->node, cluster_id, &link)));
    lli_links_release(link);
    return LLM_SUCCESS;
}

// A range of layers, all of them to be checked before the first moves: 10 and 11.
static llm_status
select_pushed(const struct layers *layers, const struct pushed *pushed,
              const struct lli_geometry *geometry, struct lli_transfer_args *args)
{
    uint32_t per_layer = layers->tensors_per_layer;
    int64_t local_layers = lli_max(geometry->num_tensors / per_layer, 1);
    int64_t src_first = layers->src_first;
    int64_t src_last = layers->src_last;
    int64_t dst_first = layers->dst_first;
    if (!is_given(layers->src_first, layers->src_last)) {
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
    LLI_TRY(check_divides(per_layer, geometry->num_tensors));
    args->local_first_tensor = (uint32_t)src_first * per_layer;
    args->remote_first_tensor = (uint32_t)dst_first * per_layer;
    args->num_tensors = (uint32_t)(src_last - src_first + 1) * per_layer;
    args->tensors_per_layer = per_layer;
    return LLM_SUCCESS;
}

static llm_status
push_slot(llm_datadist *dd, struct lli_transfer_args *args, const struct layers *layers,
          const struct pushed *pushed, uint64_t start_ns, uint64_t *ret_transfer_id)
{
    const struct lli_geometry *geometry = &args->cache->geometry;
    LLI_TRY(check_linked(dd, args->cluster_id));
    LLI_TRY(check_slot("src_batch_index", args->local_slot, geometry));
    LLI_TRY(select_pushed(layers, pushed, geometry, args));
    args->bytes = geometry->stride;
    return go(dd, args, layers, start_ns, ret_transfer_id);
}

static llm_status
push_kv_cache(llm_datadist *dd, const char *call, const llm_cache *src, const llm_cache_index *dst,
              uint32_t src_batch_index, int64_t size, const llm_kv_cache_ext_param *param,
              uint64_t *ret_transfer_id)
{
    llm_cache_index to;
    struct pushed pushed;
    struct layers layers;
    LLI_TRY(lli_check_initialized(dd, call));
    uint64_t start_ns = lli_now_ns();
    LLI_TRY(LLI_CHECK_STRUCT(dst, llm_cache_index, &to));
    LLI_TRY(read_pushed(src, atomic_load(&dd->version_2), &pushed));
    if (size != -1)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "size is %lld, expected -1 for a push",
                        (long long)size);
    LLI_TRY(check_push_layers(param, &pushed, &layers));
    LLI_TRY(check_pusher(dd));
    struct lli_transfer_args args = {
        .push = true,
        .kind = LLI_REQUEST_SLOT,
        .cluster_id = to.cluster_id,
        .remote_cache_id = to.cache_id,
        .remote_slot = to.batch_index,
        .local_slot = src_batch_index,
    };
    LLI_TRY(hold_cache(dd, pushed.cache.cache_id, &args.cache));
    llm_status status = push_slot(dd, &args, &layers, &pushed, start_ns, ret_transfer_id);
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
    LLI_TRY(check_start(dd, call, ret_transfer_id));
    return push_kv_cache(dd, call, src, dst, src_batch_index, size, param, ret_transfer_id);
}

static llm_status
push_blocks(llm_datadist *dd, struct lli_transfer_args *args, const struct layers *layers,
            const struct pushed *pushed, uint64_t start_ns, uint64_t *ret_transfer_id)
{
    const struct lli_geometry *geometry = &args->cache->geometry;
    LLI_TRY(check_linked(dd, args->cluster_id));
    LLI_TRY(select_pushed(layers, pushed, geometry, args));
    LLI_TRY(check_blocks("src_blocks", args->local_blocks, args->num_blocks, geometry));
    return go(dd, args, layers, start_ns, ret_transfer_id);
}

static llm_status
push_kv_blocks(llm_datadist *dd, const char *call, const llm_cache *src, const llm_cache_index *dst,
               const uint64_t *src_blocks, size_t num_src_blocks, const uint64_t *dst_blocks,
               size_t num_dst_blocks, const llm_kv_cache_ext_param *param,
               uint64_t *ret_transfer_id)
{
    llm_cache_index to;
    struct pushed pushed;
    struct layers layers;
    LLI_TRY(lli_check_initialized(dd, call));
    uint64_t start_ns = lli_now_ns();
    LLI_TRY(LLI_CHECK_STRUCT(dst, llm_cache_index, &to));
    LLI_TRY(read_pushed(src, atomic_load(&dd->version_2), &pushed));
    LLI_TRY(check_lists(src_blocks, num_src_blocks, dst_blocks, num_dst_blocks));
    LLI_TRY(check_no_batch(&to));
    LLI_TRY(check_push_layers(param, &pushed, &layers));
    LLI_TRY(check_pusher(dd));
    struct lli_transfer_args args = {
        .push = true,
        .kind = LLI_REQUEST_BLOCKS,
        .cluster_id = to.cluster_id,
        .remote_cache_id = to.cache_id,
        .local_blocks = src_blocks,
        .remote_blocks = dst_blocks,
        .num_blocks = num_src_blocks,
    };
    LLI_TRY(hold_cache(dd, pushed.cache.cache_id, &args.cache));
    llm_status status = push_blocks(dd, &args, &layers, &pushed, start_ns, ret_transfer_id);
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
    LLI_TRY(check_start(dd, call, ret_transfer_id));
    return push_kv_blocks(dd, call, src, dst, src_blocks, num_src_blocks, dst_blocks,
                          num_dst_blocks, param, ret_transfer_id);
}

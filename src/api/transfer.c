#include "api/transfer.h"

#include "base/log.h"
#include "base/os.h"
#include "link/connect.h"

// ---- layers (§8.1) ----

bool
lli_layers_given(int32_t first, int32_t last)
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

static llm_status
check_switch(const char *name, uint32_t value)
{
    if (value <= 1)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer", "%s is %u, expected 0 or 1", name, value);
}

static llm_status
read_progress(const llm_progress *progress, llm_progress *ret_progress)
{
    if (progress == NULL)
        return LLM_SUCCESS;
    return LLI_CHECK_STRUCT(progress, llm_progress, ret_progress);
}

// Checks 1 to 3 of KvCacheExtParam.
llm_status
lli_read_layers(const llm_kv_cache_ext_param *param, struct lli_layers *ret_layers)
{
    llm_kv_cache_ext_param known = LLM_KV_CACHE_EXT_PARAM_INIT;
    if (param != NULL)
        LLI_TRY(LLI_CHECK_STRUCT(param, llm_kv_cache_ext_param, &known));
    LLI_TRY(check_range("src_layer_range", known.src_layer_range[0], known.src_layer_range[1]));
    LLI_TRY(check_range("dst_layer_range", known.dst_layer_range[0], known.dst_layer_range[1]));
    if (known.tensor_num_per_layer < 1 || known.tensor_num_per_layer > UINT8_MAX)
        return lli_fail(LLM_PARAM_INVALID, "transfer",
                        "tensor_num_per_layer is %u, expected 1..255", known.tensor_num_per_layer);
    LLI_TRY(check_notification(&known));
    LLI_TRY(check_switch("keep_key", known.keep_key));
    LLI_TRY(check_switch("release_lease", known.release_lease));
    LLI_TRY(check_switch("allow_other_type", known.allow_other_type));
    if (known.reserved != 0)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "reserved is %u, expected 0",
                        known.reserved);
    memset(ret_layers, 0, sizeof(*ret_layers));
    LLI_TRY(read_progress(known.progress, &ret_layers->progress));
    *ret_layers = (struct lli_layers){
        .src_first = known.src_layer_range[0],
        .src_last = known.src_layer_range[1],
        .dst_first = known.dst_layer_range[0],
        .dst_last = known.dst_layer_range[1],
        .tensors_per_layer = known.tensor_num_per_layer,
        .timeout_ms = known.timeout_ms,
        .notification = known.notification_bytes > 0 ? known.notification : NULL,
        .notification_bytes = known.notification_bytes,
        .src_offset = known.src_offset,
        .dst_offset = known.dst_offset,
        .keep_key = known.keep_key != 0,
        .release_lease = known.release_lease != 0,
        .allow_other_type = known.allow_other_type != 0,
        .progress = ret_layers->progress,
        .callers_progress = known.progress,
        .interrupt = {known.interrupted, known.interrupted_arg},
    };
    return LLM_SUCCESS;
}

llm_status
lli_check_equal_length(const struct lli_layers *layers)
{
    if ((int64_t)layers->src_last - layers->src_first ==
        (int64_t)layers->dst_last - layers->dst_first)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer",
                    "src_layer_range {%d, %d} and dst_layer_range {%d, %d} have different lengths",
                    layers->src_first, layers->src_last, layers->dst_first, layers->dst_last);
}

llm_status
lli_check_divides(uint32_t tensors_per_layer, uint32_t num_tensors)
{
    if (num_tensors % tensors_per_layer == 0)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer",
                    "tensor_num_per_layer is %u, which doesn't divide the cache's %u tensors",
                    tensors_per_layer, num_tensors);
}

// ---- the peer's side ----

static llm_status
read_key(const llm_cache_key *key, bool slots, struct lli_transfer_args *args)
{
    args->by = LLI_BY_KEY;
    LLI_TRY(lli_read_key(key, &args->key));
    if (args->key.kind != LLM_KEY_NONE && (args->key.kind == LLM_KEY_BLOCKS) != slots)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer", "key.kind is %u, expected %s", args->key.kind,
                    slots ? "1 or 2 (a request or a prefix) for a slot" : "3 (blocks)");
}

static llm_status
check_generation(const llm_cache_index *index, const struct lli_layers *layers)
{
    if (index->generation != 0 || !layers->release_lease)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer",
                    "release_lease is 1, but generation is 0: no lease is named");
}

llm_status
lli_read_index(const llm_cache_index *index, llm_cache_index *ret_index)
{
    return LLI_CHECK_STRUCT(index, llm_cache_index, ret_index);
}

llm_status
lli_read_target(const llm_cache_index *index, const struct lli_layers *layers,
                struct lli_transfer_args *args)
{
    args->cluster_id = index->cluster_id;
    args->remote_cache_id = index->cache_id;
    args->generation = index->generation;
    LLI_TRY(check_generation(index, layers));
    if (index->addrs != NULL) {
        args->by = LLI_BY_ADDRESS;
        args->remote_addresses = index->addrs;
        if (!args->push || layers->callers_progress != NULL || index->generation != 0)
            return lli_fail(LLM_PARAM_INVALID, "transfer",
                            "addrs is given, which only a push without progress and generation "
                            "can use");
        return LLM_SUCCESS;
    }
    if (index->key != NULL)
        return read_key(index->key, args->kind == LLI_REQUEST_SLOT && !args->push, args);
    return LLM_SUCCESS;
}

llm_status
lli_check_no_offsets(const struct lli_layers *layers)
{
    if (layers->src_offset == 0 && layers->dst_offset == 0)
        return LLM_SUCCESS;
    return lli_fail(
        LLM_PARAM_INVALID, "transfer",
        "src_offset is %llu and dst_offset %llu, expected 0: offsets are for slots that "
        "are pulled",
        (unsigned long long)layers->src_offset, (unsigned long long)layers->dst_offset);
}

// ---- what all calls share ----

llm_status
lli_check_start(const llm_datadist *dd, const char *call, const uint64_t *ret_transfer_id)
{
    LLI_TRY(lli_check_initialized(dd, call));
    if (ret_transfer_id == NULL)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "%s: ret_transfer_id is NULL", call);
    return LLM_SUCCESS;
}

llm_status
lli_hold_local(llm_datadist *dd, int64_t cache_id, struct lli_cache **ret_cache)
{
    *ret_cache = lli_registry_hold(&dd->registry, cache_id);
    if (*ret_cache == NULL)
        return lli_fail(LLM_KV_CACHE_NOT_EXIST, "transfer", "there is no local cache with id %lld",
                        (long long)cache_id);
    return LLM_SUCCESS;
}

llm_status
lli_check_role(const llm_datadist *dd, int role, const char *what)
{
    int current = atomic_load(&dd->role);
    // In version 2 the role is a label.
    if (current == role || atomic_load(&dd->version_2))
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer", "a %s can't %s, only a %s can",
                    lli_role_name(current), what, lli_role_name(role));
}

llm_status
lli_check_slot(const char *name, uint64_t slot, const struct lli_geometry *geometry)
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

llm_status
lli_check_blocks(const char *name, const uint64_t *blocks, size_t num_blocks,
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

llm_status
lli_check_lists(const uint64_t *src_blocks, size_t num_src_blocks, const uint64_t *dst_blocks,
                size_t num_dst_blocks)
{
    if (src_blocks == NULL || num_src_blocks == 0)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "src_blocks is empty");
    if (num_src_blocks != num_dst_blocks || dst_blocks == NULL)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "src_blocks has %zu entries, dst_blocks %zu",
                        num_src_blocks, dst_blocks == NULL ? 0 : num_dst_blocks);
    return LLM_SUCCESS;
}

llm_status
lli_check_no_batch(const llm_cache_index *index)
{
    if (index->batch_index == 0)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "transfer", "batch_index is %u, expected 0 for blocks",
                    index->batch_index);
}

void
lli_renew_link(llm_datadist *dd, uint64_t cluster_id, uint64_t deadline_ns)
{
    enum lli_relink relink = dd->options.relink;
    if (relink == LLI_RELINK_ALWAYS ||
        (relink == LLI_RELINK_IN_VERSION_2 && atomic_load(&dd->version_2)))
        lli_link_renew(&dd->node, cluster_id, deadline_ns);
}

// Again if memory can't be read any more: then its owner sends it.
static llm_status
run(llm_datadist *dd, struct lli_transfer_args *args)
{
    int64_t cache_id = args->cache->id;
    lli_renew_link(dd, args->cluster_id, args->deadline_ns);
    llm_status status = lli_transfer_run(&dd->node, args);
    if (!args->lost_reading)
        return status;
    // Who frees the cache doesn't wait for the link.
    lli_registry_put(&dd->registry, args->cache);
    lli_renew_link(dd, args->cluster_id, args->deadline_ns);
    lli_link_await_data(&dd->node, args->cluster_id, args->deadline_ns);
    LLI_TRY(lli_hold_local(dd, cache_id, &args->cache));
    return lli_transfer_run(&dd->node, args);
}

// Fills in what doesn't depend on the kind of transfer, and goes.
llm_status
lli_go(llm_datadist *dd, struct lli_transfer_args *args, const struct lli_layers *layers,
       uint64_t start_ns, uint64_t *ret_transfer_id)
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
    llm_progress progress = layers->progress;
    progress.bytes_moved = 0;
    args->version_2 = atomic_load(&dd->version_2);
    args->notification = layers->notification;
    args->notification_bytes = layers->notification_bytes;
    args->keep_key = layers->keep_key;
    args->release_lease = layers->release_lease;
    args->allow_other_type = layers->allow_other_type;
    args->interrupt = layers->interrupt;
    args->progress = layers->callers_progress != NULL ? &progress : NULL;
    llm_status status = ret_transfer_id != NULL
                            ? lli_transfer_start(&dd->node, args, ret_transfer_id)
                            : run(dd, args);
    if (layers->callers_progress != NULL && ret_transfer_id == NULL)
        LLI_WRITE_STRUCT(&progress, llm_progress, layers->callers_progress);
    return lli_transfer_status(dd, status);
}

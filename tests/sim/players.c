// What the processes do: random calls of the library, each judged by what it returns, how long it takes,
// and what it leaves in memory.
#include <stdio.h>
#include <string.h>

#include "notes.h"
#include "scenario.h"

struct worker {
    struct node *node;
    unsigned number;
    uint64_t thread;
    struct cache *lent; // the cache that it opens leases on
};

static struct worker workers[NODES_MAX][WORKERS_PER_NODE];

static const struct sim_api *
api(void)
{
    return sim_current_process()->module->api;
}

static bool
is_any(llm_status status, const llm_status *allowed, size_t num_allowed)
{
    for (size_t i = 0; i < num_allowed; i++) {
        if (allowed[i] == status)
            return true;
    }
    return false;
}

#define EXPECT(call, status, ...)                                                                  \
    do {                                                                                           \
        const llm_status allowed_[] = {__VA_ARGS__};                                               \
        if (!is_any(status, allowed_, SIM_COUNT(allowed_)))                                        \
            sim_fail("%s: %s returned %s, which it must not", sim_current_process()->name, call,   \
                     api()->llm_status_name(status));                                              \
    } while (0)

// ---- bounds ----

struct watch {
    uint64_t start_ns;
    uint64_t hindered_ns;
};

static struct watch
watch_begin(void)
{
    return (struct watch){sim.now_ns, sim_process_hindered_ns(sim_current_process())};
}

static void
watch_end(struct watch watch, const char *call, uint64_t bound_ns)
{
    uint64_t hindered_ns = sim_process_hindered_ns(sim_current_process()) - watch.hindered_ns;
    uint64_t took_ns = sim.now_ns - watch.start_ns;
    if (took_ns > bound_ns + hindered_ns)
        sim_fail("%s: %s took %llu ms, %llu of them hindered; its bound is %llu ms",
                 sim_current_process()->name, call, (unsigned long long)(took_ns / SIM_MS),
                 (unsigned long long)(hindered_ns / SIM_MS),
                 (unsigned long long)(bound_ns / SIM_MS));
}

static uint64_t
tick_ns(const struct node *node)
{
    uint64_t tick_ms = node->liveness_ms / 5;
    return (tick_ms < 10 ? 10 : tick_ms > 100 ? 100 : tick_ms) * SIM_MS;
}

// How long the death of a peer may go unnoticed.
static uint64_t
notice_ns(const struct node *node, const struct node *peer)
{
    uint64_t liveness_ms =
        node->liveness_ms > peer->liveness_ms ? node->liveness_ms : peer->liveness_ms;
    return liveness_ms * SIM_MS + 4 * tick_ns(node) + 100 * SIM_MS;
}

// ---- caches ----

static llm_cache_desc
describe(const struct cache *cache, int64_t shape[2])
{
    shape[0] = cache->num_slots;
    shape[1] = (int64_t)cache->stride;
    return (llm_cache_desc){.struct_size = sizeof(llm_cache_desc),
                            .placement = LLM_PLACEMENT_DEVICE,
                            .num_tensors = cache->num_tensors,
                            .data_type = LLM_DT_UINT8,
                            .shape = shape,
                            .num_dims = 2};
}

static struct cache *
new_cache(struct node *node, bool target)
{
    return model_cache_new(node, sim_current_process(), node->cluster_id, target,
                           scenario.num_tensors, (uint32_t)sim_between(2, SLOTS_MAX),
                           scenario.stride);
}

static bool
allocate_cache(struct node *node, struct cache *cache)
{
    int64_t shape[2];
    uintptr_t addresses[TENSORS_MAX];
    uint8_t *tensors[TENSORS_MAX];
    llm_cache_desc desc = describe(cache, shape);
    llm_cache made = {sizeof(made), 0, NULL, addresses, TENSORS_MAX};
    llm_status status = api()->llm_allocate_cache(node->dd, &desc, &made);
    if (!scenario.faults.memory)
        EXPECT("llm_allocate_cache", status, LLM_SUCCESS);
    if (status != LLM_SUCCESS)
        return false;
    for (uint32_t t = 0; t < cache->num_tensors; t++)
        tensors[t] = (uint8_t *)addresses[t];
    model_cache_born(cache, made.cache_id, tensors);
    return true;
}

static bool
register_cache(struct node *node, struct cache *cache)
{
    int64_t shape[2];
    uint64_t addresses[TENSORS_MAX];
    uint8_t *tensors[TENSORS_MAX];
    int64_t id;
    llm_cache_desc desc = describe(cache, shape);
    cache->registered = true;
    for (uint32_t t = 0; t < cache->num_tensors; t++) {
        tensors[t] = sim_alloc(sim_current_process(), cache->num_slots * cache->stride);
        memset(tensors[t], 0, cache->num_slots * cache->stride);
        addresses[t] = (uintptr_t)tensors[t];
    }
    llm_status status =
        api()->llm_register_kv_cache(node->dd, &desc, addresses, cache->num_tensors, &id);
    if (!scenario.faults.memory)
        EXPECT("llm_register_kv_cache", status, LLM_SUCCESS);
    if (status == LLM_SUCCESS) {
        model_cache_born(cache, id, tensors);
        return true;
    }
    for (uint32_t t = 0; t < cache->num_tensors; t++)
        sim_dealloc(tensors[t]);
    return false;
}

static void
learn_generation(struct node *node, struct cache *cache)
{
    llm_cache_info info = {.struct_size = sizeof(info)};
    llm_status status = api()->llm_get_cache_info(node->dd, cache->id, &info);
    // Another worker may free it already.
    EXPECT("llm_get_cache_info", status, LLM_SUCCESS, LLM_KV_CACHE_NOT_EXIST);
    cache->generation = info.generation;
}

static struct cache *
make_cache(struct node *node, bool target)
{
    struct cache *cache = new_cache(node, target);
    bool made = scenario.version_2 && sim_chance(2) ? register_cache(node, cache)
                                                    : allocate_cache(node, cache);
    if (made) {
        learn_generation(node, cache);
        sim_trace("%s: %s %s cache %lld is #%u", sim_current_process()->name,
                  cache->registered ? "registered" : "allocated", target ? "target" : "source",
                  (long long)cache->id, cache->number);
        return cache;
    }
    cache->end_ns = sim.now_ns;
    cache->ending = true;
    return NULL;
}

// The memory is the caller's again: nobody may write there.
static void
guard_memory(const struct cache *cache)
{
    struct cache *guard = model_cache_new(cache->node, cache->process, 0, false, cache->num_tensors,
                                          cache->num_slots, cache->stride);
    guard->registered = true;
    guard->ending = true;
    model_cache_born(guard, 0, cache->tensors);
    if (sim_chance(2))
        return;
    guard->readable = false;
    for (uint32_t t = 0; t < cache->num_tensors; t++)
        sim_dealloc(cache->tensors[t]);
}

static void
free_cache(struct node *node, struct cache *cache)
{
    struct watch watch = watch_begin();
    model_cache_ends(cache);
    sim_trace("%s: frees cache #%u", sim_current_process()->name, cache->number);
    if (!cache->registered) {
        EXPECT("llm_deallocate_cache", api()->llm_deallocate_cache(node->dd, cache->id),
               LLM_SUCCESS);
        model_cache_ended(cache);
        watch_end(watch, "llm_deallocate_cache", 50 * SIM_MS);
        return;
    }
    EXPECT("llm_unregister_kv_cache", api()->llm_unregister_kv_cache(node->dd, cache->id),
           LLM_SUCCESS);
    model_cache_ended(cache);
    guard_memory(cache);
}

static void
free_guards(void)
{
    for (struct cache *cache = model_caches(); cache != NULL; cache = cache->next) {
        if (cache->process != sim_current_process() || !cache->registered || !cache->readable)
            continue;
        cache->readable = false;
        for (uint32_t t = 0; t < cache->num_tensors; t++)
            sim_dealloc(cache->tensors[t]);
    }
}

// A random cache of a node's present process; NULL if there is none.
static struct cache *
some_cache(const struct node *node, bool target, bool leased)
{
    struct cache *chosen = NULL;
    uint64_t count = 0;
    for (struct cache *cache = model_caches(); cache != NULL; cache = cache->next) {
        if (cache->node == node && cache->target == target && cache->readable && cache->id != 0 &&
            !cache->ending && cache->process->alive && (leased || !cache->leased) &&
            sim_below(++count) == 0)
            chosen = cache;
    }
    return chosen;
}

static size_t
count_caches(const struct node *node, bool target)
{
    size_t count = 0;
    for (const struct cache *cache = model_caches(); cache != NULL; cache = cache->next)
        count += cache->node == node && cache->target == target && !cache->leased &&
                 cache->readable && cache->id != 0;
    return count;
}

// A cache of whatever process the node has had.
static struct cache *
some_old_cache(const struct node *node, bool target)
{
    struct cache *chosen = NULL;
    uint64_t count = 0;
    for (struct cache *cache = model_caches(); cache != NULL; cache = cache->next) {
        if (cache->node == node && cache->target == target && cache->id != 0 && !cache->lent &&
            sim_below(++count) == 0)
            chosen = cache;
    }
    return chosen;
}

// What a push under a name from earlier times finds: the target that has the name now, or nothing, and
// nothing will come.  NULL: something else has it, or may get it.
static struct cache *
pushed_by_name(struct cache *old)
{
    const struct sim_process *process = old->node->seat->process;
    bool used_up = false;
    for (struct cache *cache = model_caches(); cache != NULL; cache = cache->next) {
        if (cache->node != old->node || cache->process != process)
            continue;
        if (cache->id == old->id && (cache->lent || !cache->ending))
            return cache->target ? cache : NULL;
        used_up |= cache->id >= old->id;
    }
    return used_up ? old : NULL;
}

// ---- links ----

struct addresses {
    char local_text[16], remote_text[16];
    llm_ip_info local, remote;
    llm_cluster_info cluster;
};

static void
host_text(int host, char text[16])
{
    uint32_t ip = ntohl(sim_host_address(host).s_addr);
    snprintf(text, 16, "%u.%u.%u.%u", ip >> 24 & 255, ip >> 16 & 255, ip >> 8 & 255, ip & 255);
}

static void
fill_addresses(const struct node *node, const struct node *peer, struct addresses *ret)
{
    host_text(node->seat->host, ret->local_text);
    host_text(peer->seat->host, ret->remote_text);
    ret->local = (llm_ip_info){ret->local_text, 0};
    ret->remote = (llm_ip_info){ret->remote_text, peer->port};
    ret->cluster = (llm_cluster_info){.struct_size = sizeof(ret->cluster),
                                      .remote_cluster_id = peer->cluster_id,
                                      .local_ip_infos = &ret->local,
                                      .num_local_ip_infos = 1,
                                      .remote_ip_infos = &ret->remote,
                                      .num_remote_ip_infos = 1};
}

static llm_status
link_with(struct node *node, struct node *peer, int32_t timeout_ms)
{
    struct addresses addresses;
    llm_status ret = LLM_FAILED;
    size_t num_rets = 0;
    struct pair *pair = scenario_pair(node, peer);
    struct watch watch = watch_begin();
    fill_addresses(node, peer, &addresses);
    pair->links_made++;
    llm_status status =
        api()->llm_link_clusters(node->dd, &addresses.cluster, 1, &ret, &num_rets, timeout_ms);
    pair->links_made++;
    watch_end(watch, "llm_link_clusters", (uint64_t)timeout_ms * SIM_MS + 200 * SIM_MS);
    sim_trace("%s: linking with cluster %llu: %s", sim_current_process()->name,
              (unsigned long long)peer->cluster_id, api()->llm_status_name(status));
    if (status == LLM_SUCCESS) {
        pair->link_ns = watch.start_ns;
        pair->linked = true;
        scenario.links++;
    }
    if (scenario.calm)
        EXPECT("llm_link_clusters", status, LLM_SUCCESS, LLM_ALREADY_LINK, LLM_PROCESSING_LINK);
    EXPECT("llm_link_clusters", status, LLM_SUCCESS, LLM_ALREADY_LINK, LLM_PROCESSING_LINK,
           LLM_LINK_FAILED, LLM_WAIT_PROC_TIMEOUT, LLM_TIMEOUT, LLM_FAILED, LLM_OUT_OF_MEMORY);
    return status;
}

static void
unlink_from(struct node *node, struct node *peer, bool force)
{
    struct addresses addresses;
    llm_status ret = LLM_FAILED;
    size_t num_rets = 0;
    int32_t timeout_ms = (int32_t)sim_between(50, 1000);
    struct pair *pair = scenario_pair(node, peer);
    struct watch watch = watch_begin();
    fill_addresses(node, peer, &addresses);
    // A listener knows the link by the address that its peer came from, whatever the port.
    pair->linked = false;
    llm_status status = api()->llm_unlink_clusters(node->dd, &addresses.cluster, 1, &ret, &num_rets,
                                                   timeout_ms, force);
    watch_end(watch, "llm_unlink_clusters", (uint64_t)timeout_ms * SIM_MS + 200 * SIM_MS);
    sim_trace("%s: unlinking cluster %llu%s: %s", sim_current_process()->name,
              (unsigned long long)peer->cluster_id, force ? " by force" : "",
              api()->llm_status_name(status));
    EXPECT("llm_unlink_clusters", status, LLM_SUCCESS, LLM_UNLINK_FAILED, LLM_PROCESSING_LINK,
           LLM_NOT_YET_LINK, LLM_LINK_BUSY, LLM_WAIT_PROC_TIMEOUT, LLM_TIMEOUT,
           LLM_NOTIFY_PROMPT_UNLINK_FAILED, LLM_FAILED, LLM_OUT_OF_MEMORY);
}

static bool
is_ready(const struct node *node, const struct node *peer)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    llm_status status = api()->llm_get_link_info(node->dd, peer->cluster_id, &info);
    EXPECT("llm_get_link_info", status, LLM_SUCCESS, LLM_NOT_YET_LINK);
    return status == LLM_SUCCESS && info.state == LLM_LINK_READY;
}

static void
must_have_noticed(const struct node *node, const struct node *peer, uint64_t since_ns,
                  uint64_t hindered_then, const char *what)
{
    uint64_t hindered_ns = sim_process_hindered_ns(sim_current_process()) - hindered_then;
    if (sim.now_ns - since_ns > notice_ns(node, peer) + hindered_ns)
        sim_fail("%s takes the link to cluster %llu for good %llu ms after %s",
                 sim_current_process()->name, (unsigned long long)peer->cluster_id,
                 (unsigned long long)((sim.now_ns - since_ns) / SIM_MS), what);
}

// Looks at the link to a peer, and what it must know about it.
static void
probe(const struct node *node, const struct node *peer)
{
    const struct seat *there = peer->seat;
    int from = there->host;
    int to = node->seat->host;
    bool is_dead = there->process == NULL || !there->process->alive;
    bool is_blocked = sim_net.blocked[from][to];
    uint64_t died_at = there->died_at;
    uint64_t blocked_since = sim_net.blocked_since[from][to];
    bool ready = is_ready(node, peer);
    model_link_seen(node, peer->cluster_id, ready, scenario_pair(node, peer)->link_ns);
    if (ready && is_dead && there->died_at == died_at && !there->process->alive)
        must_have_noticed(node, peer, died_at, there->hindered_then[node->seat->index],
                          "its process died");
    if (ready && is_blocked && sim_net.blocked[from][to] &&
        sim_net.blocked_since[from][to] == blocked_since)
        must_have_noticed(node, peer, blocked_since,
                          scenario.partition_hindered[from][to][node->seat->index],
                          "it fell silent");
}

static struct node *
some_peer(const struct node *node)
{
    struct node *chosen = NULL;
    uint64_t count = 0;
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        struct node *peer = &scenario.nodes[i];
        if (peer->is_prompt != node->is_prompt && sim_below(++count) == 0)
            chosen = peer;
    }
    return chosen;
}

// ---- transfers ----

static bool
can_pull(const struct node *node)
{
    return scenario.version_2 || !node->is_prompt;
}

static bool
can_push(const struct node *node)
{
    return scenario.version_2 || node->is_prompt;
}

struct call {
    struct op op; // what will be done
    llm_cache local;
    llm_cache_index remote;
    llm_kv_cache_ext_param param;
    uint8_t note[64];
    int64_t size;
};

static void
choose_tensors(struct call *call)
{
    struct op *op = &call->op;
    uint32_t num_layers = scenario.num_tensors / 2;
    op->num_tensors = scenario.num_tensors;
    call->param = (llm_kv_cache_ext_param)LLM_KV_CACHE_EXT_PARAM_INIT;
    if (!sim_chance(4))
        return;
    uint32_t count = (uint32_t)sim_between(1, num_layers);
    int32_t local = (int32_t)sim_below(num_layers - count + 1);
    int32_t remote = (int32_t)sim_below(num_layers - count + 1);
    op->num_tensors = 2 * count;
    op->local_tensor = 2 * (uint32_t)local;
    op->remote_tensor = 2 * (uint32_t)remote;
    int32_t src = op->push ? local : remote;
    int32_t dst = op->push ? remote : local;
    call->param.src_layer_range[0] = src;
    call->param.src_layer_range[1] = src + (int32_t)count - 1;
    call->param.dst_layer_range[0] = dst;
    call->param.dst_layer_range[1] = dst + (int32_t)count - 1;
}

static void
choose_limits(struct call *call, const struct node *node, const struct node *peer)
{
    struct op *op = &call->op;
    uint64_t timeout_ms = node->sync_ms;
    if (op->push)
        timeout_ms *= op->num_tensors / 2;
    if (!scenario.calm && sim_chance(3))
        timeout_ms = call->param.timeout_ms = (uint32_t)sim_between(1, 300);
    if (scenario.calm)
        timeout_ms = call->param.timeout_ms = 20000;
    op->bound_ns = timeout_ms * SIM_MS + notice_ns(node, peer) + 100 * SIM_MS;
}

static void
choose_slots(struct call *call, const struct cache *there)
{
    struct op *op = &call->op;
    op->whole_slot = sim_chance(3);
    op->num_slots = op->whole_slot ? 1 : (size_t)sim_between(1, 2 + sim_below(BLOCKS_MAX - 1));
    if (op->num_slots > BLOCKS_MAX)
        op->num_slots = BLOCKS_MAX;
    op->bytes = scenario.stride;
    call->size = -1;
    if (op->whole_slot && !op->push && sim_chance(2)) {
        op->bytes = sim_between(1, scenario.stride);
        call->size = (int64_t)op->bytes;
    }
    (void)there;
}

// Draws an operation between two caches; false if there is no room for it.
static bool
prepare(struct call *call, struct node *node, struct node *peer, bool push, struct cache *here,
        struct cache *there)
{
    memset(call, 0, sizeof(*call));
    struct op *op = &call->op;
    op->node = node;
    op->process = sim_current_process();
    op->push = push;
    op->local = here;
    op->cluster_id = peer->cluster_id;
    op->remote_id = there->id;
    op->leased = there->leased;
    op->generation = there->leased || sim_chance(2) ? there->generation : 0;

    op->links_made = scenario_pair(node, peer)->links_made;
    choose_tensors(call);
    choose_slots(call, there);
    choose_limits(call, node, peer);
    call->param.release_lease = there->leased && sim_chance(2);
    uint64_t *read = push ? op->local_slots : op->remote_slots;
    uint64_t *written = push ? op->remote_slots : op->local_slots;
    const struct cache *from = push ? here : there;
    const struct cache *to = push ? there : here;
    for (size_t i = 0; i < op->num_slots; i++)
        read[i] = i > 0 && sim_chance(2) && read[i - 1] + 1 < from->num_slots
                      ? read[i - 1] + 1
                      : sim_below(from->num_slots);
    if (!model_pick_slots(to, op->num_slots, written))
        return false;
    call->local = (llm_cache){.struct_size = sizeof(llm_cache), .cache_id = here->id};
    call->remote =
        (llm_cache_index){.struct_size = sizeof(llm_cache_index),
                          .cluster_id = peer->cluster_id,
                          .cache_id = there->id,
                          .generation = op->generation,
                          .batch_index = op->whole_slot ? (uint32_t)op->remote_slots[0] : 0};
    op->notified = sim_chance(4);
    return true;
}

static void
add_note(struct call *call, struct op *op, const struct node *peer)
{
    if (!op->notified)
        return;
    call->param.notification = call->note;
    call->param.notification_bytes = notes_write(call->note, sizeof(call->note), op, peer);
}

static llm_status
run_call(struct node *node, struct call *call, const struct op *op)
{
    uint32_t slot = (uint32_t)op->local_slots[0];
    if (op->push)
        return op->whole_slot
                   ? api()->llm_push_kv_cache(node->dd, &call->local, &call->remote, slot, -1,
                                              &call->param)
                   : api()->llm_push_kv_blocks(node->dd, &call->local, &call->remote,
                                               op->local_slots, op->num_slots, op->remote_slots,
                                               op->num_slots, &call->param);
    return op->whole_slot ? api()->llm_pull_kv_cache(node->dd, &call->remote, &call->local, slot,
                                                     call->size, &call->param)
                          : api()->llm_pull_kv_blocks(node->dd, &call->remote, &call->local,
                                                      op->remote_slots, op->num_slots,
                                                      op->local_slots, op->num_slots, &call->param);
}

static llm_status
start_call(struct node *node, struct call *call, const struct op *op, uint64_t *ret_id)
{
    uint32_t slot = (uint32_t)op->local_slots[0];
    if (op->push)
        return op->whole_slot
                   ? api()->llm_start_push_kv_cache(node->dd, &call->local, &call->remote, slot, -1,
                                                    &call->param, ret_id)
                   : api()->llm_start_push_kv_blocks(
                         node->dd, &call->local, &call->remote, op->local_slots, op->num_slots,
                         op->remote_slots, op->num_slots, &call->param, ret_id);
    return op->whole_slot
               ? api()->llm_start_pull_kv_cache(node->dd, &call->remote, &call->local, slot,
                                                call->size, &call->param, ret_id)
               : api()->llm_start_pull_kv_blocks(node->dd, &call->remote, &call->local,
                                                 op->remote_slots, op->num_slots, op->local_slots,
                                                 op->num_slots, &call->param, ret_id);
}

// A push whose link has gone may go on at the peer until that notices.
static bool
is_in_doubt(const struct node *node, const struct node *peer, const struct op *op,
            llm_status status)
{
    return op->push && status != LLM_SUCCESS &&
           (!is_ready(node, peer) || scenario_pair(node, peer)->links_made != op->links_made);
}

static void
conclude(struct node *node, struct node *peer, struct op *op, llm_status status)
{
    notes_op_ended(op, peer, status);
    model_op_ended(op, status);
    model_op_forget(op, is_in_doubt(node, peer, op, status));
}

static bool
may_go_on(llm_status status)
{
    return scenario.phase == CHAOS && status != LLM_SUCCESS && status != LLM_CACHE_STALE &&
           status != LLM_KV_CACHE_NOT_EXIST && status != LLM_PARAM_INVALID && !sim_chance(4);
}

// Tries again where it was cut, maybe over another link.
static llm_status
run_with_progress(struct node *node, struct node *peer, struct call *call, struct op *op)
{
    llm_progress progress = {.struct_size = sizeof(progress)};
    call->param.progress = &progress;
    for (;;) {
        llm_status status = run_call(node, call, op);
        // It may have been asked for by a lease's.
        if (op->generation == 0)
            op->generation = progress.generation;
        model_op_ended(op, status);
        if (!op->push || status == LLM_SUCCESS)
            model_op_check_progress(op, progress.bytes_arrived);
        bool in_doubt = is_in_doubt(node, peer, op, status);
        if (!may_go_on(status) || op->local->ending) {
            model_op_forget(op, in_doubt);
            return status;
        }
        sim_sleep(sim_below(50 * SIM_MS));
        if (!node->is_prompt && !is_ready(node, peer))
            (void)link_with(node, peer, 300);
        model_op_again(op, in_doubt);
    }
}

// A started transfer: looked at, awaited, cancelled, as chance has it.
static llm_status
follow(struct node *node, struct op *op, uint64_t id)
{
    llm_status status = LLM_TRANSFER_PENDING;
    while (status == LLM_TRANSFER_PENDING) {
        switch (sim_below(scenario.calm ? 3 : 8)) {
        case 0:
            status = api()->llm_transfer_poll(node->dd, id);
            break;
        case 1:
            sim_sleep(sim_below(5 * SIM_MS));
            break;
        case 2:
            status = api()->llm_transfer_wait(node->dd, id, (int32_t)sim_below(200));
            break;
        case 3:
            status = api()->llm_transfer_wait(node->dd, id, -1);
            if (status == LLM_TRANSFER_PENDING)
                sim_fail("a transfer is pending after a wait without limit");
            break;
        case 4:
            op->cancelled = true;
            EXPECT("llm_transfer_cancel", api()->llm_transfer_cancel(node->dd, id), LLM_SUCCESS);
            status = api()->llm_transfer_poll(node->dd, id);
            if (status == LLM_TRANSFER_PENDING)
                sim_fail("a transfer is pending after it was cancelled");
            break;
        case 5:
            op->cancelled = true;
            EXPECT("llm_transfer_release", api()->llm_transfer_release(node->dd, id), LLM_SUCCESS);
            return LLM_TRANSFER_CANCELLED;
        default:
            break;
        }
    }
    return status;
}

static llm_status
start_and_follow(struct node *node, struct node *peer, struct call *call, struct op *op)
{
    uint64_t id;
    op->bound_ns += 300 * SIM_MS;
    llm_status status = start_call(node, call, op, &id);
    if (status != LLM_SUCCESS) {
        conclude(node, peer, op, status);
        return status;
    }
    status = follow(node, op, id);
    bool released = op->cancelled && status == LLM_TRANSFER_CANCELLED &&
                    api()->llm_transfer_poll(node->dd, id) == LLM_PARAM_INVALID;
    conclude(node, peer, op, status);
    if (released)
        return status;
    // One ending, whoever asks and when.
    for (uint64_t i = sim_below(3); i > 0; i--) {
        llm_status again = sim_chance(2) ? api()->llm_transfer_poll(node->dd, id)
                                         : api()->llm_transfer_wait(node->dd, id, -1);
        if (again != status)
            sim_fail("a transfer ended with %s, and then with %s", api()->llm_status_name(status),
                     api()->llm_status_name(again));
        sim_sleep(sim_below(2 * SIM_MS));
    }
    EXPECT("llm_transfer_release", api()->llm_transfer_release(node->dd, id), LLM_SUCCESS);
    return status;
}

static llm_status
transfer(struct node *node, struct node *peer, bool push, struct cache *here, struct cache *there)
{
    struct call call;
    if (!prepare(&call, node, peer, push, here, there))
        return LLM_TRANSFER_PENDING;
    struct op *op = model_op_begin(&call.op);
    // Without a generation, a push that goes on may meet another cache of that name.
    if (!scenario.calm && (!push || op->generation != 0) && sim_chance(5)) {
        op->notified = false;
        return run_with_progress(node, peer, &call, op);
    }
    add_note(&call, op, peer);
    if (sim_chance(2))
        return start_and_follow(node, peer, &call, op);
    llm_status status = run_call(node, &call, op);
    conclude(node, peer, op, status);
    return status;
}

static void
some_transfer(struct node *node)
{
    struct node *peer = some_peer(node);
    bool push = can_push(node) && (!can_pull(node) || sim_chance(2));
    struct cache *here = some_cache(node, !push, false);
    // The dead are asked as well.
    bool by_old_name = !scenario.calm && (!peer->up || sim_chance(8));
    struct cache *there = by_old_name ? some_old_cache(peer, push) : some_cache(peer, push, true);
    // Nobody else writes where a push does: not even under an old name.
    if (there != NULL && push)
        there = pushed_by_name(there);
    if (here == NULL || there == NULL || (scenario.calm && !scenario_pair(node, peer)->linked) ||
        (!scenario_pair(node, peer)->linked && !sim_chance(4)))
        return;
    (void)transfer(node, peer, push, here, there);
}

// ---- notifications ----

static void
poll_notifications(struct node *node)
{
    uint8_t bytes[LLM_NOTIFICATION_BYTES_MAX];
    size_t num_bytes;
    uint64_t from;
    llm_status status;
    while ((status = api()->llm_poll_notification(node->dd, &from, bytes, sizeof(bytes),
                                                  &num_bytes)) == LLM_SUCCESS)
        notes_read(bytes, num_bytes, node, from);
    EXPECT("llm_poll_notification", status, LLM_NO_NOTIFICATION);
}

// ---- leases ----

// The memory is the owner's again: whoever read for too long must not have a success with this.
static void
overwrite(const struct cache *cache)
{
    for (uint32_t t = 0; t < cache->num_tensors; t++)
        memset(cache->tensors[t], 0xdd, cache->num_slots * cache->stride);
}

static void
await_lease(struct node *node, struct cache *lease)
{
    llm_status status = LLM_LEASE_ACTIVE;
    while (status == LLM_LEASE_ACTIVE && !sim_chance(10)) {
        if (sim_chance(5))
            EXPECT(
                "llm_lease_renew",
                api()->llm_lease_renew(node->dd, lease->generation, (uint32_t)sim_between(1, 50)),
                LLM_SUCCESS, LLM_CACHE_STALE);
        status = api()->llm_lease_wait(node->dd, lease->generation, (int32_t)sim_below(30));
        EXPECT("llm_lease_wait", status, LLM_LEASE_ACTIVE, LLM_SUCCESS, LLM_LEASE_EXPIRED);
    }
    model_cache_ends(lease);
    struct watch watch = watch_begin();
    if (status == LLM_LEASE_ACTIVE)
        EXPECT("llm_lease_close", api()->llm_lease_close(node->dd, lease->generation), LLM_SUCCESS);
    watch_end(watch, "llm_lease_close",
              (node->sync_ms + node->liveness_ms) * SIM_MS + 4 * tick_ns(node) + 100 * SIM_MS);
    model_cache_ended(lease);
    overwrite(lease);
    if (status != LLM_LEASE_ACTIVE)
        EXPECT("llm_lease_close", api()->llm_lease_close(node->dd, lease->generation), LLM_SUCCESS);
}

// Lends the blocks of a cache of this worker's, for a while, again and again with new contents.
static void
lend(struct node *node, struct worker *worker)
{
    uint64_t generation;
    if (worker->lent == NULL) {
        worker->lent = new_cache(node, false);
        if (!allocate_cache(node, worker->lent)) {
            model_cache_ends(worker->lent);
            worker->lent = NULL;
            return;
        }
        worker->lent->lent = true;
        model_cache_ends(worker->lent);
        learn_generation(node, worker->lent);
    }
    const struct cache *lent = worker->lent;
    llm_lease_desc desc = {.struct_size = sizeof(desc),
                           .cache_id = lent->id,
                           .duration_ms = (uint32_t)sim_between(1, 100),
                           .num_releases = (uint32_t)sim_below(3)};
    llm_status status = api()->llm_lease_open(node->dd, &desc, &generation);
    if (!scenario.faults.memory)
        EXPECT("llm_lease_open", status, LLM_SUCCESS);
    if (status != LLM_SUCCESS)
        return;
    struct cache *lease = model_cache_new(node, sim_current_process(), node->cluster_id, false,
                                          lent->num_tensors, lent->num_slots, lent->stride);
    lease->leased = true;
    lease->generation = generation;
    model_cache_born(lease, lent->id, lent->tensors);
    sim_trace("%s: lease %llu on cache %lld is #%u", sim_current_process()->name,
              (unsigned long long)generation, (long long)lease->id, lease->number);
    await_lease(node, lease);
}

// ---- workers ----

static void
change_caches(struct node *node)
{
    bool target = !can_push(node) || (can_pull(node) && sim_chance(2));
    if (count_caches(node, target) >= 4 || (scenario.faults.churn && sim_chance(2))) {
        struct cache *cache = scenario.faults.churn ? some_cache(node, target, false) : NULL;
        if (cache != NULL)
            free_cache(node, cache);
        return;
    }
    (void)make_cache(node, target);
}

static void
act(struct worker *worker)
{
    struct node *node = worker->node;
    struct node *peer = some_peer(node);
    switch (sim_below(17)) {
    case 0:
    case 1:
        if (!node->is_prompt && !scenario_pair(node, peer)->linked && peer->up)
            (void)link_with(node, peer, scenario.calm ? 20000 : (int32_t)sim_between(20, 1500));
        break;
    case 2:
        if (!node->is_prompt && !scenario.calm)
            (void)link_with(node, peer, (int32_t)sim_between(20, 1500));
        break;
    case 3:
        if (scenario.faults.unlinks)
            unlink_from(node, peer, sim_chance(2));
        break;
    case 4:
        change_caches(node);
        break;
    case 5:
        poll_notifications(node);
        break;
    case 6:
    case 7:
        probe(node, peer);
        break;
    case 8:
        if (can_push(node) && !scenario.calm)
            lend(node, worker);
        break;
    default:
        some_transfer(node);
    }
}

static void *
worker_main(void *arg)
{
    struct worker *worker = arg;
    while (scenario.phase == CHAOS) {
        act(worker);
        sim_sleep(sim_below(2 * scenario.pause_ns));
    }
    return NULL;
}

// ---- the final round: nothing goes wrong any more, so everything works ----

static void
probe_all(const struct node *node)
{
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        if (scenario.nodes[i].is_prompt != node->is_prompt)
            probe(node, &scenario.nodes[i]);
    }
}

static void
final_transfer(struct node *node, struct node *peer, bool push)
{
    struct cache *here = make_cache(node, !push);
    struct cache *there = NULL;
    llm_status status = LLM_TRANSFER_PENDING;
    // Its slots may be waiting for the end of a push that took another cache's name for this one's.
    for (int i = 0; i < 10000 && status == LLM_TRANSFER_PENDING; i++) {
        there = some_cache(peer, push, false);
        if (here != NULL && there != NULL)
            status = transfer(node, peer, push, here, there);
        sim_sleep(SIM_MS);
        probe_all(node);
    }
    // It may have been cancelled by who started it, or run into a limit of a millisecond.
    if (status != LLM_SUCCESS && status != LLM_TRANSFER_CANCELLED &&
        status != LLM_WAIT_PROC_TIMEOUT && status != LLM_TIMEOUT)
        sim_fail("%s: a %s over a new link ended with %s, although nothing goes wrong any more",
                 sim_current_process()->name, push ? "push" : "pull",
                 api()->llm_status_name(status));
}

// A transfer that the peer has begun may keep the old link for a while.
static llm_status
relink(struct node *node, struct node *peer)
{
    llm_status status = LLM_ALREADY_LINK;
    uint64_t end_ns = sim.now_ns + 10000 * SIM_MS;
    while (status == LLM_ALREADY_LINK && sim.now_ns < end_ns) {
        unlink_from(node, peer, true);
        status = link_with(node, peer, 3000);
        sim_sleep(10 * SIM_MS);
    }
    return status;
}

static void
settle_decoder(struct node *node)
{
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        struct node *peer = &scenario.nodes[i];
        llm_status status = LLM_FAILED;
        if (!peer->is_prompt)
            continue;
        while (!peer->settling)
            sim_sleep(SIM_MS);
        if (!scenario.calm) {
            status = relink(node, peer);
            if (status != LLM_SUCCESS)
                sim_fail(
                    "%s can't link with cluster %llu, although nothing goes wrong any more: %s",
                    sim_current_process()->name, (unsigned long long)peer->cluster_id,
                    api()->llm_status_name(status));
        } else if (!scenario_pair(node, peer)->linked) {
            (void)link_with(node, peer, 3000);
        }
        if (can_pull(node))
            final_transfer(node, peer, false);
        scenario_pair(node, peer)->final_link = true;
    }
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        while (scenario.nodes[i].is_prompt && !scenario_pair(node, &scenario.nodes[i])->final_push)
            sim_sleep(SIM_MS);
    }
}

static void
settle_prompt(struct node *node)
{
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        struct node *peer = &scenario.nodes[i];
        if (peer->is_prompt)
            continue;
        while (!scenario_pair(node, peer)->final_link)
            sim_sleep(SIM_MS);
        final_transfer(node, peer, true);
        scenario_pair(node, peer)->final_push = true;
    }
}

static void
settle(struct node *node)
{
    // What peers take from here, or put there, for sure.
    while (scenario.phase == CHAOS)
        sim_sleep(SIM_MS);
    if (can_push(node))
        (void)make_cache(node, false);
    if (can_pull(node))
        (void)make_cache(node, true);
    node->settling = true;
    if (node->is_prompt)
        settle_prompt(node);
    else
        settle_decoder(node);
    scenario.num_settled++;
    while (scenario.phase != ENDING)
        sim_sleep(SIM_MS);
    // What is on its way arrives.
    sim_sleep(300 * SIM_MS);
    poll_notifications(node);
    notes_check(node);
    for (int i = 0; i < 2; i++) {
        probe_all(node);
        sim_sleep(30 * SIM_MS);
    }
}

// ---- the life of an instance ----

// Nobody is taken for dead without a cause: it was hindered, or we were, or the network.
static void
judge_silence(const struct node *node, const struct node *peer)
{
    const struct sim_process *there = peer->seat->process;
    bool same_host = peer->seat->host == node->seat->host;
    // One that is stopped gets no more time than a silent one.
    bool mapped = same_host && !scenario.faults.stops && strcmp(node->transports, "tcp") != 0 &&
                  strcmp(peer->transports, "tcp") != 0;
    uint64_t patience_ns = node->liveness_ms * SIM_MS * (mapped ? 8 : 1) / 2;
    if (there == NULL || !there->alive || there->started_at + patience_ns * 2 > sim.now_ns ||
        (!same_host &&
         (scenario.faults.partitions || scenario.faults.losses || scenario.faults.power)))
        return;
    if (sim_process_hindered_ns(there) + sim_process_hindered_ns(sim_current_process()) <
        patience_ns)
        sim_fail("%s takes cluster %llu for dead, which is well", sim_current_process()->name,
                 (unsigned long long)peer->cluster_id);
}

static void
log_line(void *arg, llm_log_level level, const char *line)
{
    unsigned long long from, about;
    sim_trace("  %s: %s", sim_current_process()->name, line);
    // Afterwards every call says so, as an error.
    if (level != LLM_LOG_WARN || strstr(line, "silent") == NULL ||
        sscanf(line, "link: the link to cluster %llu is broken: the peer has been silent for %llu",
               &about, &from) != 2)
        return;
    const struct seat *seat = arg;
    // A line doesn't tell which instance of the process speaks.
    if (seat->num_nodes == 1 && scenario_node(about) != NULL)
        judge_silence(seat->nodes[0], scenario_node(about));
}

static bool
initialize(struct node *node)
{
    char listen[32], ip[16], sync[16], liveness[16], connections[16];
    size_t count = 0;
    llm_option options[10];
    host_text(node->seat->host, ip);
    snprintf(listen, sizeof(listen), "%s:%u", ip, node->port);
    snprintf(sync, sizeof(sync), "%u", node->sync_ms);
    snprintf(liveness, sizeof(liveness), "%u", node->liveness_ms);
    snprintf(connections, sizeof(connections), "%u", (unsigned)sim_between(1, 4));
    options[count++] = (llm_option){LLM_OPTION_DEVICE_ID, "0"};
    options[count++] = (llm_option){LLM_OPTION_SYNC_CACHE_WAIT_TIME, sync};
    options[count++] = (llm_option){LLM_OPTION_LIVENESS_TIME, liveness};
    options[count++] = (llm_option){LLM_OPTION_TRANSPORTS, node->transports};
    options[count++] = (llm_option){LLM_OPTION_TCP_CONNECTIONS, connections};
    options[count++] = (llm_option){LLM_OPTION_LOG_LEVEL, "info"};
    if (node->is_prompt)
        options[count++] = (llm_option){LLM_OPTION_LISTEN_IP_INFO, listen};
    if (node->checksum)
        options[count++] = (llm_option){LLM_OPTION_CHECKSUM, "crc32c"};
    if (scenario.version_2)
        options[count++] = (llm_option){LLM_OPTION_LOCAL_COMM_RES, ""};
    llm_status status = api()->llm_initialize(node->dd, options, count);
    if (!scenario.faults.memory)
        EXPECT("llm_initialize", status, LLM_SUCCESS);
    return status == LLM_SUCCESS;
}

static void
open_node(struct node *node)
{
    while (api()->llm_create(node->cluster_id, node->is_prompt ? LLM_ROLE_PROMPT : LLM_ROLE_DECODER,
                             &node->dd) != LLM_SUCCESS)
        sim_sleep(SIM_MS);
    while (!initialize(node))
        sim_sleep(SIM_MS);
    while (can_push(node) && make_cache(node, false) == NULL)
        sim_sleep(SIM_MS);
    while (can_pull(node) && make_cache(node, true) == NULL)
        sim_sleep(SIM_MS);
    node->up = true;
}

static void
close_node(struct node *node)
{
    if (sim_chance(3)) {
        struct node *peer = some_peer(node);
        unlink_from(node, peer, false);
    }
    struct watch watch = watch_begin();
    for (struct cache *cache = model_caches(); cache != NULL; cache = cache->next) {
        if (cache->node == node && cache->process == sim_current_process() && cache->id != 0 &&
            !cache->registered)
            model_cache_ends(cache);
    }
    if (sim_chance(2))
        api()->llm_finalize(node->dd);
    api()->llm_destroy(node->dd);
    node->dd = NULL;
    watch_end(watch, "llm_finalize", 200 * SIM_MS);
}

static void *
node_main(void *arg)
{
    struct node *node = arg;
    open_node(node);
    for (unsigned i = 0; i < WORKERS_PER_NODE; i++) {
        struct worker *worker = &workers[node->index][i];
        *worker = (struct worker){.node = node, .number = i};
        worker->thread =
            sim_coro_id(sim_spawn(sim_current_process(), "worker", worker_main, worker));
    }
    for (unsigned i = 0; i < WORKERS_PER_NODE; i++)
        sim_join(workers[node->index][i].thread);
    settle(node);
    close_node(node);
    return NULL;
}

void *
player_main(void *arg)
{
    struct seat *seat = arg;
    uint64_t threads[NODES_MAX];
    api()->llm_set_log_sink(log_line, seat);
    for (size_t i = 0; i < seat->num_nodes; i++) {
        seat->nodes[i]->up = false;
        seat->nodes[i]->settling = false;
        threads[i] =
            sim_coro_id(sim_spawn(sim_current_process(), "node", node_main, seat->nodes[i]));
    }
    for (size_t i = 0; i < seat->num_nodes; i++)
        sim_join(threads[i]);
    free_guards();
    seat->finished = true;
    return NULL;
}

// Pulls and pushes: awaited, started, cut and gone on with.
#include <string.h>

#include "notes.h"
#include "play.h"

bool
play_can_pull(const struct node *node)
{
    return scenario.version_2 || !node->is_prompt;
}

bool
play_can_push(const struct node *node)
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
    if (scenario_is_calm(node, peer))
        timeout_ms = call->param.timeout_ms = 20000;
    // A peer that reads nothing, and has time.
    if (scenario.only_unread && !scenario_reads(node))
        timeout_ms = call->param.timeout_ms = 10000;
    op->timeout_ns = timeout_ms * SIM_MS;
    op->bound_ns = timeout_ms * SIM_MS + play_notice_ns(node, peer) + 100 * SIM_MS;
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
                   ? play_api()->llm_push_kv_cache(node->dd, &call->local, &call->remote, slot, -1,
                                                   &call->param)
                   : play_api()->llm_push_kv_blocks(node->dd, &call->local, &call->remote,
                                                    op->local_slots, op->num_slots,
                                                    op->remote_slots, op->num_slots, &call->param);
    return op->whole_slot
               ? play_api()->llm_pull_kv_cache(node->dd, &call->remote, &call->local, slot,
                                               call->size, &call->param)
               : play_api()->llm_pull_kv_blocks(node->dd, &call->remote, &call->local,
                                                op->remote_slots, op->num_slots, op->local_slots,
                                                op->num_slots, &call->param);
}

static llm_status
start_call(struct node *node, struct call *call, const struct op *op, uint64_t *ret_id)
{
    uint32_t slot = (uint32_t)op->local_slots[0];
    if (op->push)
        return op->whole_slot
                   ? play_api()->llm_start_push_kv_cache(node->dd, &call->local, &call->remote,
                                                         slot, -1, &call->param, ret_id)
                   : play_api()->llm_start_push_kv_blocks(
                         node->dd, &call->local, &call->remote, op->local_slots, op->num_slots,
                         op->remote_slots, op->num_slots, &call->param, ret_id);
    return op->whole_slot
               ? play_api()->llm_start_pull_kv_cache(node->dd, &call->remote, &call->local, slot,
                                                     call->size, &call->param, ret_id)
               : play_api()->llm_start_pull_kv_blocks(
                     node->dd, &call->remote, &call->local, op->remote_slots, op->num_slots,
                     op->local_slots, op->num_slots, &call->param, ret_id);
}

// Has the peer been asked to confirm the end, and the caller has waited for that in vain?
static bool
is_unconfirmed(const struct node *node, const struct op *op)
{
    uint64_t asked_ns = op->start_ns + op->timeout_ns;
    if (op->cancelled && op->cancelled_ns < asked_ns)
        asked_ns = op->cancelled_ns;
    return sim.now_ns >= asked_ns + node->liveness_ms * SIM_MS / 2;
}

// A push whose link has gone, or whose end wasn't confirmed, may go on at the peer until that notices.
// Another transfer may have made the link anew.
static bool
is_in_doubt(const struct node *node, const struct node *peer, const struct op *op,
            llm_status status)
{
    return op->push && status != LLM_SUCCESS &&
           (!play_is_ready(node, peer) || node->relinks || is_unconfirmed(node, op) ||
            scenario_pair(node, peer)->links_made != op->links_made);
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
        if (!node->is_prompt && !play_is_ready(node, peer))
            (void)play_link_with(node, peer, 300);
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
            status = play_api()->llm_transfer_poll(node->dd, id);
            break;
        case 1:
            sim_sleep(sim_below(5 * SIM_MS));
            break;
        case 2:
            status = play_api()->llm_transfer_wait(node->dd, id, (int32_t)sim_below(200));
            break;
        case 3:
            status = play_api()->llm_transfer_wait(node->dd, id, -1);
            if (status == LLM_TRANSFER_PENDING)
                sim_fail("a transfer is pending after a wait without limit");
            break;
        case 4:
            op->cancelled = true;
            op->cancelled_ns = sim.now_ns;
            EXPECT("llm_transfer_cancel", play_api()->llm_transfer_cancel(node->dd, id),
                   LLM_SUCCESS);
            status = play_api()->llm_transfer_poll(node->dd, id);
            if (status == LLM_TRANSFER_PENDING)
                sim_fail("a transfer is pending after it was cancelled");
            break;
        case 5:
            op->cancelled = true;
            op->cancelled_ns = sim.now_ns;
            EXPECT("llm_transfer_release", play_api()->llm_transfer_release(node->dd, id),
                   LLM_SUCCESS);
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
                    play_api()->llm_transfer_poll(node->dd, id) == LLM_PARAM_INVALID;
    conclude(node, peer, op, status);
    if (released)
        return status;
    // One ending, whoever asks and when.
    for (uint64_t i = sim_below(3); i > 0; i--) {
        llm_status again = sim_chance(2) ? play_api()->llm_transfer_poll(node->dd, id)
                                         : play_api()->llm_transfer_wait(node->dd, id, -1);
        if (again != status)
            sim_fail("a transfer ended with %s, and then with %s",
                     play_api()->llm_status_name(status), play_api()->llm_status_name(again));
        sim_sleep(sim_below(2 * SIM_MS));
    }
    EXPECT("llm_transfer_release", play_api()->llm_transfer_release(node->dd, id), LLM_SUCCESS);
    return status;
}

llm_status
play_transfer(struct node *node, struct node *peer, bool push, struct cache *here,
              struct cache *there)
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

void
play_some_transfer(struct node *node)
{
    struct node *peer = play_some_peer(node);
    bool push = play_can_push(node) && (!play_can_pull(node) || sim_chance(2));
    struct cache *here = play_some_cache(node, !push, false);
    // The dead are asked as well.
    bool by_old_name = !scenario.calm && (!peer->up || sim_chance(8));
    struct cache *there =
        by_old_name ? play_some_old_cache(peer, push) : play_some_cache(peer, push, true);
    // Nobody else writes where a push does: not even under an old name.
    if (there != NULL && push)
        there = play_pushed_by_name(there);
    if (here == NULL || there == NULL ||
        (scenario_is_calm(node, peer) && !scenario_pair(node, peer)->linked) ||
        (!scenario_pair(node, peer)->linked && !sim_chance(4)))
        return;
    (void)play_transfer(node, peer, push, here, there);
}

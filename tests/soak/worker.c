// A worker: threads that make random calls on the seats of their process, and judge what came.
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "multi/process.h"
#include "soak/seat.h"

enum { TARGETS = 4, STARTED_MAX = 4, LINK_MS = 3000, NOTE_MAGIC = 0x50a4 };

// A cache that one thread alone pulls into.
struct target {
    struct cache cache;
    uint64_t life; // of the instance that it belongs to
    uint64_t background;
    uint64_t checksum; // after the last call that could write here
};

struct thread {
    pthread_t handle;
    struct worker *worker;
    struct thread_board *board;
    unsigned number;
    uint64_t dice;
    uint64_t num_pushes;
    struct target targets[SEATS_PER_WORKER][TARGETS];
};

struct worker {
    unsigned index;
    struct worker_board *board;
    struct seat seats[SEATS_PER_WORKER];
    struct thread threads[THREADS];
};

struct note {
    uint32_t magic;
    uint32_t seat;
    uint64_t filler[16];
};

// Where a thread is, for the driver's complaint about one that stays there.
#define AT(thread) atomic_store(&(thread)->board->line, __LINE__)

// ---- targets ----

static void
refill(struct target *target, uint64_t *dice)
{
    target->background = roll(dice, 1 << 20);
    memory_fill(&target->cache.memory, NO_SEAT, 0, target->background);
}

// What was the target's must have stayed as it was; the target is fresh afterwards.
static struct target *
take_target(struct thread *th, struct seat *seat, unsigned number, unsigned stride_class)
{
    unsigned place = seat->index % SEATS_PER_WORKER;
    struct target *target = &th->targets[place][number];
    struct cache *cache = &target->cache;
    bool is_old = target->life != seat->life;
    bool is_ours = cache->id != 0 && (!is_old || cache->registered);
    if (is_ours) {
        count(COUNT_late_checks, 1);
        WRONG_UNLESS(memory_checksum(&cache->memory) == target->checksum,
                     "cluster %llu: bytes landed in cache %lld after the call had returned%s",
                     (unsigned long long)seat_cluster(seat->index), (long long)cache->id,
                     is_old ? ", or after finalize" : "");
    }
    if (is_old) {
        memory_unmap(&cache->memory);
        cache->id = 0;
    }
    if (cache->id != 0 && (cache->memory.stride_class != stride_class || roll(&th->dice, 50) == 0))
        cache_close(seat, cache, NULL, &th->dice);
    target->life = seat->life;
    if (cache->id == 0) {
        if (!cache_open(seat, cache, stride_class, 0, false, &th->dice))
            return NULL;
    }
    refill(target, &th->dice);
    target->checksum = memory_checksum(&cache->memory);
    return target;
}

// ---- jobs ----

// One transfer: what is asked, and what must have come after success.
struct job {
    bool push;
    bool slot;
    unsigned peer;
    uint64_t peer_incarnation;
    uint64_t remote_card;
    int64_t local_id;
    struct target *target; // of a pull
    uint64_t source_name;  // seat, incarnation and serial number of what is moved
    uint64_t src_blocks[BLOCKS];
    uint64_t dst_blocks[BLOCKS];
    size_t num_blocks;
    int src_layer; // -1: all
    int dst_layer;
    int64_t size;
    struct note note;
    llm_kv_cache_ext_param param;
    struct content content;
};

static void
choose_blocks(struct job *job, uint64_t *dice)
{
    job->num_blocks = job->slot ? 1 : 1 + roll(dice, BLOCKS);
    for (uint64_t i = 0; i < BLOCKS; i++)
        job->dst_blocks[i] = i;
    for (size_t i = 0; i < job->num_blocks; i++) {
        size_t other = i + roll(dice, BLOCKS - i);
        uint64_t block = job->dst_blocks[other];
        job->dst_blocks[other] = job->dst_blocks[i];
        job->dst_blocks[i] = block;
        job->src_blocks[i] = roll(dice, BLOCKS);
    }
}

static void
choose_param(struct job *job, unsigned seat, uint64_t *dice)
{
    static const uint32_t timeouts[] = {0, 0, 0, 0, 0, 1, 10, 100};
    job->param = (llm_kv_cache_ext_param)LLM_KV_CACHE_EXT_PARAM_INIT;
    job->src_layer = job->dst_layer = -1;
    if (roll(dice, 3) == 0) {
        job->src_layer = (int)roll(dice, LAYERS);
        job->dst_layer = (int)roll(dice, LAYERS);
        for (unsigned i = 0; i < 2; i++) {
            job->param.src_layer_range[i] = job->src_layer;
            job->param.dst_layer_range[i] = job->dst_layer;
        }
    }
    job->param.timeout_ms = timeouts[roll(dice, 8)];
    if (roll(dice, 4) == 0) {
        job->note = (struct note){.magic = NOTE_MAGIC, .seat = seat};
        job->param.notification = &job->note;
        job->param.notification_bytes = 8 + 8 * roll(dice, 17);
    }
}

// What the destination must hold afterwards.
static void
foresee(struct job *job, unsigned stride_class)
{
    job->content.part = job->size > 0 ? (uint64_t)job->size : strides[stride_class];
    unsigned first_src = job->src_layer < 0 ? 0 : (unsigned)job->src_layer * TENSORS_PER_LAYER;
    unsigned first_dst = job->dst_layer < 0 ? 0 : (unsigned)job->dst_layer * TENSORS_PER_LAYER;
    unsigned num_tensors = job->src_layer < 0 ? TENSORS : TENSORS_PER_LAYER;
    memset(job->content.names, 0, sizeof(job->content.names));
    for (unsigned t = 0; t < num_tensors; t++) {
        for (size_t i = 0; i < job->num_blocks; i++)
            job->content.names[first_dst + t][job->dst_blocks[i]] =
                job->source_name | (first_src + t) << 8 | job->src_blocks[i];
    }
}

static uint64_t
job_bytes(const struct job *job)
{
    return job->content.part * job->num_blocks * (job->src_layer < 0 ? TENSORS : TENSORS_PER_LAYER);
}

static llm_status
call_pull(struct seat *seat, const struct job *job, uint64_t *ret_transfer)
{
    llm_cache_index src = {
        .struct_size = sizeof(src),
        .cluster_id = seat_cluster(job->peer),
        .cache_id = card_id(job->remote_card),
    };
    llm_cache dst = {.struct_size = sizeof(dst), .cache_id = job->local_id};
    if (!job->slot)
        return ret_transfer != NULL
                   ? llm_start_pull_kv_blocks(seat->dd, &src, &dst, job->src_blocks,
                                              job->num_blocks, job->dst_blocks, job->num_blocks,
                                              &job->param, ret_transfer)
                   : llm_pull_kv_blocks(seat->dd, &src, &dst, job->src_blocks, job->num_blocks,
                                        job->dst_blocks, job->num_blocks, &job->param);
    src.batch_index = (uint32_t)job->src_blocks[0];
    uint32_t slot = (uint32_t)job->dst_blocks[0];
    return ret_transfer != NULL
               ? llm_start_pull_kv_cache(seat->dd, &src, &dst, slot, job->size, &job->param,
                                         ret_transfer)
               : llm_pull_kv_cache(seat->dd, &src, &dst, slot, job->size, &job->param);
}

static llm_status
call_push(struct seat *seat, const struct job *job, uint64_t *ret_transfer)
{
    llm_cache_index dst = {
        .struct_size = sizeof(dst),
        .cluster_id = seat_cluster(job->peer),
        .cache_id = card_id(job->remote_card),
    };
    llm_cache src = {.struct_size = sizeof(src), .cache_id = job->local_id};
    if (!job->slot)
        return ret_transfer != NULL
                   ? llm_start_push_kv_blocks(seat->dd, &src, &dst, job->src_blocks,
                                              job->num_blocks, job->dst_blocks, job->num_blocks,
                                              &job->param, ret_transfer)
                   : llm_push_kv_blocks(seat->dd, &src, &dst, job->src_blocks, job->num_blocks,
                                        job->dst_blocks, job->num_blocks, &job->param);
    dst.batch_index = (uint32_t)job->dst_blocks[0];
    uint32_t slot = (uint32_t)job->src_blocks[0];
    return ret_transfer != NULL
               ? llm_start_push_kv_cache(seat->dd, &src, &dst, slot, -1, &job->param, ret_transfer)
               : llm_push_kv_cache(seat->dd, &src, &dst, slot, -1, &job->param);
}

static llm_status
call_transfer(struct seat *seat, const struct job *job, uint64_t *ret_transfer)
{
    return job->push ? call_push(seat, job, ret_transfer) : call_pull(seat, job, ret_transfer);
}

// The peer has been the same incarnation all the time, so names and sizes are what was read.
static bool
same_peer(const struct job *job)
{
    return atomic_load(&board->seats[job->peer].incarnation) == job->peer_incarnation;
}

static bool
may_happen(const struct job *job, llm_status status)
{
    switch (status) {
    case LLM_SUCCESS:
    case LLM_FAILED:
    case LLM_KV_CACHE_NOT_EXIST:
    case LLM_NOT_YET_LINK:
    case LLM_LINK_BUSY:
    case LLM_WAIT_PROC_TIMEOUT:
    case LLM_TIMEOUT:
    case LLM_TRANSFER_CANCELLED:
        return true;
    case LLM_PARAM_INVALID:
        return !same_peer(job);
    default:
        return false;
    }
}

static void
count_transport(struct seat *seat, unsigned peer)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    if (llm_get_link_info(seat->dd, seat_cluster(peer), &info) != LLM_SUCCESS)
        return;
    if (strcmp(info.transport, "local") == 0)
        count(COUNT_over_local, 1);
    else if (strcmp(info.transport, "shm") == 0)
        count(COUNT_over_shm, 1);
    else
        count(COUNT_over_tcp, 1);
}

static void
count_end(struct seat *seat, const struct job *job, llm_status status)
{
    char why[256];
    llm_last_error(why, sizeof(why));
    WRONG_UNLESS(may_happen(job, status), "a %s ended with %s: %s", job->push ? "push" : "pull",
                 llm_status_name(status), why);
    if (status == LLM_SUCCESS) {
        count(COUNT_transfers, 1);
        count(COUNT_bytes, job_bytes(job));
        count_transport(seat, job->peer);
    } else if (status == LLM_TIMEOUT || status == LLM_WAIT_PROC_TIMEOUT) {
        count(COUNT_timed_out, 1);
    } else if (status == LLM_TRANSFER_CANCELLED) {
        count(COUNT_cancelled, 1);
    } else {
        count(COUNT_failed, 1);
    }
}

// ---- peers ----

static unsigned
choose_peer(const struct seat *seat, uint64_t *dice)
{
    unsigned num_seats = board->num_workers * SEATS_PER_WORKER;
    return (seat->index + 1 + (unsigned)roll(dice, num_seats - 1)) % num_seats;
}

static bool
is_linked(struct seat *seat, unsigned peer)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    return llm_get_link_info(seat->dd, seat_cluster(peer), &info) == LLM_SUCCESS &&
           info.state == LLM_LINK_READY;
}

static void
link_to(struct thread *th, struct seat *seat, unsigned peer)
{
    char why[256];
    if (!seat->version_2 && seat->role != LLM_ROLE_DECODER)
        return;
    AT(th);
    llm_status status = seat_link(seat, peer, LINK_MS);
    llm_last_error(why, sizeof(why));
    WRONG_UNLESS(status == LLM_SUCCESS || status == LLM_ALREADY_LINK || status == LLM_LINK_FAILED ||
                     status == LLM_PROCESSING_LINK || status == LLM_WAIT_PROC_TIMEOUT ||
                     status == LLM_TIMEOUT,
                 "llm_link_clusters: %s: %s", llm_status_name(status), why);
    if (status == LLM_SUCCESS)
        count(COUNT_links, 1);
}

// Version 2 answers with the cluster's own status, version 1 with LLM_UNLINK_FAILED.
static bool
may_end_unlink(const struct seat *seat, llm_status status)
{
    switch (status) {
    case LLM_SUCCESS:
    case LLM_UNLINK_FAILED:
    case LLM_PROCESSING_LINK:
        return true;
    case LLM_LINK_BUSY:
    case LLM_TIMEOUT:
    case LLM_NOTIFY_PROMPT_UNLINK_FAILED:
        return seat->version_2;
    default:
        return false;
    }
}

static void
unlink_from(struct thread *th, struct seat *seat)
{
    char why[256];
    AT(th);
    llm_status status =
        seat_unlink(seat, choose_peer(seat, &th->dice), LINK_MS, roll(&th->dice, 2) == 0);
    llm_last_error(why, sizeof(why));
    WRONG_UNLESS(may_end_unlink(seat, status), "llm_unlink_clusters: %s: %s",
                 llm_status_name(status), why);
    count(COUNT_unlinks, status == LLM_SUCCESS);
}

// ---- pulls ----

static bool
prepare_pull(struct thread *th, struct seat *seat, unsigned target_number, struct job *job)
{
    *job = (struct job){.peer = choose_peer(seat, &th->dice), .size = -1};
    struct seat_board *peer = &board->seats[job->peer];
    if (!seat->version_2 && seat->role != LLM_ROLE_DECODER)
        return false;
    job->peer_incarnation = atomic_load(&peer->incarnation);
    job->remote_card = atomic_load(&peer->sources[roll(&th->dice, SOURCES)]);
    if (job->remote_card == 0)
        return false;
    if (!is_linked(seat, job->peer) && roll(&th->dice, 2) == 0)
        link_to(th, seat, job->peer);
    unsigned stride_class = card_class(job->remote_card);
    AT(th);
    job->target = take_target(th, seat, target_number, stride_class);
    if (job->target == NULL)
        return false;
    job->local_id = job->target->cache.id;
    job->source_name =
        name_of(job->peer, job->peer_incarnation, card_serial(job->remote_card), 0, 0);
    job->slot = roll(&th->dice, 3) == 0;
    if (job->slot && roll(&th->dice, 2) == 0)
        job->size = (int64_t)(1 + roll(&th->dice, strides[stride_class]));
    choose_blocks(job, &th->dice);
    choose_param(job, seat->index, &th->dice);
    foresee(job, stride_class);
    return true;
}

static void
judge_pull(struct seat *seat, const struct job *job, llm_status status)
{
    struct target *target = job->target;
    char why[256];
    target->checksum = memory_checksum(&target->cache.memory);
    bool strictly = status == LLM_SUCCESS && same_peer(job);
    if (status == LLM_SUCCESS && !strictly)
        count(COUNT_unjudged, 1);
    WRONG_UNLESS(
        memory_holds(&target->cache.memory, &job->content, target->background, strictly, why),
        "cluster %llu pulled from cache %lld of cluster %llu, with %s: %s",
        (unsigned long long)seat_cluster(seat->index), (long long)card_id(job->remote_card),
        (unsigned long long)seat_cluster(job->peer), llm_status_name(status), why);
}

static void
pull(struct thread *th, struct seat *seat)
{
    struct job job;
    if (!prepare_pull(th, seat, 0, &job))
        return;
    AT(th);
    llm_status status = call_transfer(seat, &job, NULL);
    count_end(seat, &job, status);
    judge_pull(seat, &job, status);
}

// ---- pushes ----

// A place for a push whose goal's owner will look for it; NULL: all are taken.
static struct push_board *
find_slot(struct thread *th, struct seat *seat, unsigned *ret_slot)
{
    for (unsigned i = 0; i < PUSHES; i++) {
        struct push_board *push = &seat->board->pushes[th->number][i];
        uint64_t state = atomic_load(&board->seats[push->seat].goals[push->goal].state);
        *ret_slot = i;
        if (push->state == 0 || (state << 4) != (push->state << 4))
            return push;
    }
    return NULL;
}

static bool
prepare_push(struct thread *th, struct seat *seat, struct job *job, struct push_board *push)
{
    *job = (struct job){.push = true, .peer = choose_peer(seat, &th->dice), .size = -1};
    struct seat_board *peer = &board->seats[job->peer];
    if (!seat->version_2 && seat->role != LLM_ROLE_PROMPT)
        return false;
    push->state = 0;
    push->seat = job->peer;
    push->goal = (unsigned)roll(&th->dice, GOALS);
    job->peer_incarnation = atomic_load(&peer->incarnation);
    job->remote_card = atomic_load(&peer->goals[push->goal].card);
    if (job->remote_card == 0)
        return false;
    unsigned stride_class = card_class(job->remote_card);
    uint64_t card = 0;
    for (unsigned i = 0, first = (unsigned)roll(&th->dice, SOURCES); i < SOURCES; i++) {
        card = atomic_load(&seat->board->sources[(first + i) % SOURCES]);
        if (card != 0 && card_class(card) == stride_class)
            break;
        card = 0;
    }
    if (card == 0)
        return false;
    if (!is_linked(seat, job->peer) && roll(&th->dice, 2) == 0)
        link_to(th, seat, job->peer);
    job->local_id = card_id(card);
    job->source_name = name_of(seat->index, seat->incarnation, card_serial(card), 0, 0);
    job->slot = roll(&th->dice, 3) == 0;
    choose_blocks(job, &th->dice);
    choose_param(job, seat->index, &th->dice);
    foresee(job, stride_class);
    return true;
}

// False: somebody else has it, or it's gone.
static bool
take_goal(struct thread *th, struct seat *seat, const struct job *job, struct push_board *push,
          unsigned slot)
{
    struct goal_board *goal = &board->seats[job->peer].goals[push->goal];
    uint64_t free_state = atomic_load(&goal->state);
    uint64_t taken =
        goal_state(GOAL_TAKEN, seat->index, th->number, slot, seat->incarnation, ++th->num_pushes);
    if (free_state >> 60 != GOAL_FREE)
        return false;
    push->content = job->content;
    push->state = taken;
    if (!atomic_compare_exchange_strong(&goal->state, &free_state, taken)) {
        push->state = 0;
        return false;
    }
    if (atomic_load(&goal->card) == job->remote_card)
        return true;
    atomic_compare_exchange_strong(&goal->state, &taken,
                                   goal_state(GOAL_FREE, 0, 0, 0, 0, free_state & 0xffffffff));
    push->state = 0;
    return false;
}

static void
leave_goal(struct seat *seat, const struct job *job, struct push_board *push, llm_status status)
{
    struct goal_board *goal = &board->seats[job->peer].goals[push->goal];
    uint64_t taken = push->state;
    uint64_t phase = status == LLM_SUCCESS ? GOAL_ARRIVED : GOAL_FAILED;
    llm_link_info info = {.struct_size = sizeof(info)};
    char why[128];
    llm_last_error(why, sizeof(why));
    (void)llm_get_link_info(seat->dd, seat_cluster(job->peer), &info);
    snprintf(push->how, sizeof(push->how), "%s over %s: %s", llm_status_name(status),
             info.transport, status == LLM_SUCCESS ? "" : why);
    atomic_compare_exchange_strong(&goal->state, &taken, phase << 60 | (taken << 4) >> 4);
}

static llm_status
end_started(struct thread *th, struct seat *seat, uint64_t transfer)
{
    uint64_t fate = roll(&th->dice, 4);
    AT(th);
    if (fate == 0)
        WRONG_UNLESS(llm_transfer_cancel(seat->dd, transfer) == LLM_SUCCESS, "cancel");
    if (fate == 1)
        (void)llm_transfer_wait(seat->dd, transfer, 1);
    AT(th);
    llm_status status = llm_transfer_wait(seat->dd, transfer, -1);
    AT(th);
    WRONG_UNLESS(llm_transfer_poll(seat->dd, transfer) == status, "a result changed");
    WRONG_UNLESS(llm_transfer_release(seat->dd, transfer) == LLM_SUCCESS, "release");
    return status;
}

static void
push(struct thread *th, struct seat *seat)
{
    struct job job;
    unsigned slot;
    struct push_board *shown = find_slot(th, seat, &slot);
    if (shown == NULL || !prepare_push(th, seat, &job, shown) ||
        !take_goal(th, seat, &job, shown, slot))
        return;
    uint64_t transfer;
    llm_status status;
    AT(th);
    if (roll(&th->dice, 3) == 0) {
        status = call_transfer(seat, &job, &transfer);
        if (status == LLM_SUCCESS)
            status = end_started(th, seat, transfer);
    } else {
        status = call_transfer(seat, &job, NULL);
    }
    leave_goal(seat, &job, shown, status);
    count_end(seat, &job, status);
}

// ---- several at once ----

// Starts pulls into different targets; those that could not begin have transfer 0.
static size_t
start_pulls(struct thread *th, struct seat *seat, struct job *jobs, uint64_t *transfers)
{
    size_t num_started = 0;
    for (unsigned i = 0; i < STARTED_MAX; i++) {
        transfers[i] = 0;
        if (!prepare_pull(th, seat, i % TARGETS, &jobs[i]))
            continue;
        AT(th);
        llm_status status = call_transfer(seat, &jobs[i], &transfers[i]);
        if (status == LLM_SUCCESS) {
            num_started++;
            continue;
        }
        transfers[i] = 0;
        count_end(seat, &jobs[i], status);
        judge_pull(seat, &jobs[i], status);
    }
    return num_started;
}

static void
pull_side_by_side(struct thread *th, struct seat *seat)
{
    struct job jobs[STARTED_MAX];
    uint64_t transfers[STARTED_MAX];
    (void)start_pulls(th, seat, jobs, transfers);
    for (unsigned i = 0; i < STARTED_MAX; i++) {
        if (transfers[i] == 0)
            continue;
        if (roll(&th->dice, 6) == 0) {
            // Forgotten: nothing may land any more, whatever has landed.
            AT(th);
            WRONG_UNLESS(llm_transfer_release(seat->dd, transfers[i]) == LLM_SUCCESS, "release");
            count(COUNT_cancelled, 1);
            judge_pull(seat, &jobs[i], LLM_TRANSFER_CANCELLED);
            continue;
        }
        llm_status status = end_started(th, seat, transfers[i]);
        count_end(seat, &jobs[i], status);
        judge_pull(seat, &jobs[i], status);
    }
}

// ---- copies within the process ----

static llm_cache
describe_cache(struct cache *cache, llm_cache_desc *desc, int64_t shape[2], bool host)
{
    shape[0] = BLOCKS;
    shape[1] = (int64_t)strides[cache->memory.stride_class];
    *desc = (llm_cache_desc){
        .struct_size = sizeof(*desc),
        .placement = host ? LLM_PLACEMENT_HOST : LLM_PLACEMENT_DEVICE,
        .num_tensors = TENSORS,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = 2,
    };
    return (llm_cache){
        .struct_size = sizeof(llm_cache),
        .cache_id = cache->id,
        .desc = desc,
        .tensor_addrs = cache->memory.tensors,
        .num_tensor_addrs = TENSORS,
    };
}

static void
copy_here(struct thread *th, struct seat *seat)
{
    unsigned stride_class = (unsigned)roll(&th->dice, CLASSES);
    AT(th);
    struct target *from = take_target(th, seat, 0, stride_class);
    struct target *to = take_target(th, seat, 1, stride_class);
    llm_cache_desc descs[2];
    int64_t shapes[2][2];
    char why[256];
    if (from == NULL || to == NULL)
        return;
    llm_cache src = describe_cache(&from->cache, &descs[0], shapes[0], false);
    llm_cache dst = describe_cache(&to->cache, &descs[1], shapes[1], roll(&th->dice, 2) == 0);
    struct job job = {.size = -1, .slot = roll(&th->dice, 2) == 0, .src_layer = -1};
    job.dst_layer = -1;
    job.source_name = name_of(NO_SEAT, 0, from->background, 0, 0);
    choose_blocks(&job, &th->dice);
    foresee(&job, stride_class);
    const uint64_t *lists[1] = {job.dst_blocks};
    llm_status status = job.slot
                            ? llm_copy_kv_cache(seat->dd, &src, &dst, (uint32_t)job.src_blocks[0],
                                                (uint32_t)job.dst_blocks[0], 0, -1)
                            : llm_copy_kv_blocks(seat->dd, &src, &dst, job.src_blocks,
                                                 job.num_blocks, lists, &job.num_blocks, 1);
    WRONG_UNLESS(status == LLM_SUCCESS, "a copy ended with %s", llm_status_name(status));
    WRONG_UNLESS(memory_holds(&to->cache.memory, &job.content, to->background, true, why),
                 "a copy: %s", why);
    to->checksum = memory_checksum(&to->cache.memory);
    count(COUNT_copies, 1);
}

// ---- notifications, and looking inside ----

static void
poll_notes(struct thread *th, struct seat *seat)
{
    struct note note;
    uint64_t from;
    size_t num_bytes;
    AT(th);
    for (unsigned i = 0; i < 200; i++) {
        if (llm_poll_notification(seat->dd, &from, &note, sizeof(note), &num_bytes) != LLM_SUCCESS)
            return;
        WRONG_UNLESS(num_bytes >= 8 && note.magic == NOTE_MAGIC && seat_cluster(note.seat) == from,
                     "a notification of %zu bytes from cluster %llu isn't one", num_bytes,
                     (unsigned long long)from);
        count(COUNT_notifications, 1);
    }
}

static void
look_inside(struct thread *th, struct seat *seat)
{
    uint64_t ids[SEATS_MAX];
    size_t num_ids;
    AT(th);
    WRONG_UNLESS(llm_list_links(seat->dd, ids, SEATS_MAX, &num_ids) == LLM_SUCCESS &&
                     num_ids <= SEATS_MAX,
                 "the list of links");
    WRONG_UNLESS(llm_transfer_poll(seat->dd, roll(&th->dice, UINT64_MAX)) == LLM_PARAM_INVALID,
                 "a transfer that doesn't exist");
}

// ---- faults that a process does to itself ----

// Cuts one of the TCP connections of this process, whichever.
static void
cut_connection(struct thread *th)
{
    unsigned wanted = atomic_load(&th->worker->board->cuts_wanted);
    if (wanted == 0 ||
        !atomic_compare_exchange_strong(&th->worker->board->cuts_wanted, &wanted, wanted - 1))
        return;
    DIR *directory = opendir("/proc/self/fd");
    int chosen = -1;
    uint64_t num_seen = 0;
    for (struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;) {
        struct sockaddr_in address;
        socklen_t length = sizeof(address);
        int fd = atoi(entry->d_name);
        if (entry->d_name[0] == '.' || syscall(SYS_getpeername, fd, &address, &length) != 0 ||
            address.sin_family != AF_INET)
            continue;
        if (roll(&th->dice, ++num_seen) == 0)
            chosen = fd;
    }
    if (directory != NULL)
        closedir(directory);
    // What has become of that descriptor meanwhile is cut all the same, or is no socket.
    if (chosen >= 0 && syscall(SYS_shutdown, chosen, SHUT_RDWR) == 0)
        count(COUNT_cuts, 1);
}

// ---- life ----

static uint64_t
count_entries(const char *path)
{
    DIR *directory = opendir(path);
    uint64_t number = 0;
    while (directory != NULL && readdir(directory) != NULL)
        number++;
    if (directory != NULL)
        closedir(directory);
    return number - 2;
}

static uint64_t
resident_kb(void)
{
    unsigned long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL && fscanf(file, "%*u %llu", &pages) != 1)
        pages = 0;
    if (file != NULL)
        fclose(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE) / 1024;
}

// No instance is open: whatever is still there stays for ever.
static void
take_rest(struct worker *w)
{
    struct rest rest = {
        .rss_kb = resident_kb(),
        .descriptors = count_entries("/proc/self/fd") - 1, // of the directory itself
        .threads = count_entries("/proc/self/task"),
    };
    // The first time everything in this process has been used once.
    bool is_first = atomic_load(&w->board->rests) == 0;
    if (is_first)
        w->board->first = rest;
    w->board->last = rest;
    atomic_fetch_add(&w->board->rests, 1);
    if (is_first)
        return;
    WRONG_UNLESS(rest.descriptors == w->board->first.descriptors,
                 "%llu descriptors are open at rest, %llu were",
                 (unsigned long long)rest.descriptors,
                 (unsigned long long)w->board->first.descriptors);
    WRONG_UNLESS(rest.threads == w->board->first.threads, "%llu threads run at rest, %llu did",
                 (unsigned long long)rest.threads, (unsigned long long)w->board->first.threads);
}

static void
live_again(struct thread *th, struct seat *seat)
{
    struct job jobs[STARTED_MAX];
    uint64_t transfers[STARTED_MAX];
    AT(th);
    pthread_rwlock_wrlock(&seat->lock);
    bool under_way = roll(&th->dice, 2) == 0 && start_pulls(th, seat, jobs, transfers) > 0;
    AT(th);
    seat_close(seat, &th->dice);
    for (unsigned i = 0; under_way && i < STARTED_MAX; i++) {
        struct target *target = jobs[i].target;
        if (transfers[i] != 0 && target->cache.registered)
            target->checksum = memory_checksum(&target->cache.memory);
    }
    AT(th);
    (void)seat_open(seat, &th->dice);
    pthread_rwlock_unlock(&seat->lock);
}

static void
rest_all(struct thread *th)
{
    struct worker *w = th->worker;
    for (unsigned i = 0; i < SEATS_PER_WORKER; i++) {
        AT(th);
        pthread_rwlock_wrlock(&w->seats[i].lock);
        seat_close(&w->seats[i], &th->dice);
    }
    take_rest(w);
    for (unsigned i = 0; i < SEATS_PER_WORKER; i++) {
        (void)seat_open(&w->seats[i], &th->dice);
        pthread_rwlock_unlock(&w->seats[i].lock);
    }
}

// ---- the worker ----

static void
step_with(struct thread *th, struct seat *seat)
{
    uint64_t number = roll(&th->dice, 100);
    if (number < 42)
        pull(th, seat);
    else if (number < 66)
        push(th, seat);
    else if (number < 76)
        pull_side_by_side(th, seat);
    else if (number < 80)
        copy_here(th, seat);
    else if (number < 85)
        seat_change_source(seat, &th->dice);
    else if (number < 86)
        seat_change_goal(seat, &th->dice);
    else if (number < 93)
        poll_notes(th, seat);
    else if (number < 96)
        look_inside(th, seat);
    else if (number < 99)
        link_to(th, seat, choose_peer(seat, &th->dice));
    else
        unlink_from(th, seat);
}

static void
step(struct thread *th)
{
    struct seat *seat = &th->worker->seats[roll(&th->dice, SEATS_PER_WORKER)];
    uint64_t number = roll(&th->dice, 2000);
    cut_connection(th);
    if (number < 4) {
        live_again(th, seat);
    } else if (number < 7) {
        rest_all(th);
    } else if (number < 10) {
        AT(th);
        pthread_rwlock_wrlock(&seat->lock);
        seat_change_role(seat, &th->dice);
        pthread_rwlock_unlock(&seat->lock);
    } else {
        AT(th);
        pthread_rwlock_rdlock(&seat->lock);
        seat_check_goals(seat);
        step_with(th, seat);
        pthread_rwlock_unlock(&seat->lock);
    }
    count(COUNT_steps, 1);
}

static void *
thread_run(void *arg)
{
    struct thread *th = arg;
    while (!atomic_load(&board->over) && !atomic_load(&board->is_wrong)) {
        atomic_store(&th->board->began_ms, soak_now_ms());
        step(th);
    }
    atomic_store(&th->board->began_ms, 0);
    return NULL;
}

static void
start_thread(struct worker *w, unsigned number, uint64_t life)
{
    struct thread *th = &w->threads[number];
    th->worker = w;
    th->board = &w->board->threads[number];
    th->number = number;
    th->num_pushes = life << 20;
    th->dice = mix(board->seed ^ mix(w->index * 64 + number + 1) ^ mix(life));
    if (pthread_create(&th->handle, NULL, thread_run, th) != 0)
        abort();
}

static void
close_thread(struct thread *th)
{
    for (unsigned i = 0; i < SEATS_PER_WORKER; i++) {
        for (unsigned j = 0; j < TARGETS; j++)
            memory_unmap(&th->targets[i][j].cache.memory);
    }
}

int
worker_run(unsigned index)
{
    static struct worker worker;
    struct worker *w = &worker;
    w->index = index;
    w->board = &board->workers[index];
    uint64_t life = atomic_fetch_add(&w->board->life, 1);
    uint64_t dice = mix(board->seed ^ mix(index + 1000) ^ mix(life + 1));
    atomic_store(&w->board->rests, 0);
    for (unsigned i = 0; i < SEATS_PER_WORKER; i++) {
        seat_init(&w->seats[i], index * SEATS_PER_WORKER + i);
        if (!seat_open(&w->seats[i], &dice))
            return 1;
    }
    for (unsigned i = 0; i < THREADS; i++)
        start_thread(w, i, life);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(w->threads[i].handle, NULL);
    for (unsigned i = 0; i < SEATS_PER_WORKER; i++) {
        seat_close(&w->seats[i], &dice);
        seat_destroy(&w->seats[i]);
    }
    for (unsigned i = 0; i < THREADS; i++)
        close_thread(&w->threads[i]);
    return atomic_load(&board->is_wrong) ? 1 : 0;
}

#include "soak/job.h"

#include <string.h>

// ---- choosing ----

struct job
job_of_pull(unsigned peer, uint64_t incarnation, uint64_t card)
{
    return (struct job){
        .peer = peer,
        .peer_incarnation = incarnation,
        .remote_card = card,
        .source_name = name_of(peer, incarnation, card_serial(card), 0, 0),
        .size = -1,
        .src_layer = -1,
        .dst_layer = -1,
    };
}

void
job_choose_blocks(struct job *job, uint64_t *dice)
{
    job->num_blocks = job->num_once = job->shape == SHAPE_SLOT ? 1 : 1 + roll(dice, BLOCKS);
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

void
job_repeat(struct job *job, unsigned times)
{
    for (; job->num_blocks < job->num_once * times; job->num_blocks++) {
        job->src_blocks[job->num_blocks] = job->src_blocks[job->num_blocks - job->num_once];
        job->dst_blocks[job->num_blocks] = job->dst_blocks[job->num_blocks - job->num_once];
    }
}

// Has the caller of a transfer that waits had enough?
static int
is_impatient(void *arg)
{
    uint64_t *patience = arg;
    return --*patience == 0;
}

void
job_choose_param(struct job *job, unsigned seat, uint64_t *dice)
{
    static const uint32_t timeouts[] = {0, 0, 0, 0, 0, 1, 10, 100};
    job->param = (llm_kv_cache_ext_param)LLM_KV_CACHE_EXT_PARAM_INIT;
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
    if (roll(dice, 8) == 0) {
        job->patience = 1 + roll(dice, 4);
        job->param.interrupted = is_impatient;
        job->param.interrupted_arg = &job->patience;
    }
}

// Part of a slot, from wherever to wherever.
static void
choose_part_of_slot(struct job *job, uint64_t src_stride, uint64_t dst_stride, uint64_t *dice)
{
    if (job->shape == SHAPE_SLOT && roll(dice, 3) == 0) {
        job->param.dst_offset = roll(dice, dst_stride);
        dst_stride -= job->param.dst_offset;
    }
    if (roll(dice, 2) == 0)
        job->param.src_offset = roll(dice, src_stride - dst_stride + 1);
    uint64_t room = src_stride - job->param.src_offset;
    uint64_t most = job->shape == SHAPE_SLOT ? dst_stride : dst_stride * job->num_blocks;
    most = most < room ? most : room;
    job->size = roll(dice, 2) == 0 ? -1 : (int64_t)(1 + roll(dice, most));
}

static void
choose_parts(struct job *job, unsigned src_class, unsigned dst_class, uint64_t *dice)
{
    if (job->shape == SHAPE_BLOCKS || (job->shape == SHAPE_SLOT && roll(dice, 2) == 0))
        return;
    choose_part_of_slot(job, strides[src_class], strides[dst_class], dice);
}

bool
job_choose_pull(struct thread *th, struct seat *seat, unsigned target_number, struct job *job)
{
    unsigned src_class = card_class(job->remote_card);
    unsigned dst_class = src_class;
    if (job->shape != SHAPE_BLOCKS && roll(&th->dice, 2) == 0)
        dst_class = (unsigned)roll(&th->dice, src_class + 1);
    AT(th);
    job->target = take_target(th, seat, target_number, dst_class);
    if (job->target == NULL)
        return false;
    job->local_id = job->target->cache.id;
    if (job->num_blocks == 0)
        job_choose_blocks(job, &th->dice);
    job_choose_param(job, seat->index, &th->dice);
    choose_parts(job, src_class, dst_class, &th->dice);
    job_foresee(job, src_class, dst_class);
    return true;
}

// ---- foreseeing ----

// What goes to the block number `index` of the list, maybe nothing.
static struct piece
foresee_piece(const struct job *job, size_t index, uint64_t src_stride, uint64_t dst_stride)
{
    uint64_t room = src_stride - job->param.src_offset;
    uint64_t first = index * dst_stride;
    if (job->shape == SHAPE_BLOCKS)
        return (struct piece){.num_bytes = dst_stride};
    if (job->shape == SHAPE_SLOT)
        return (struct piece){
            .from = job->param.src_offset,
            .at = job->param.dst_offset,
            .num_bytes = job->size > 0 ? (uint64_t)job->size : dst_stride - job->param.dst_offset,
        };
    uint64_t whole = job->num_blocks * dst_stride < room ? job->num_blocks * dst_stride : room;
    if (job->size > 0)
        whole = (uint64_t)job->size;
    if (first >= whole)
        return (struct piece){.num_bytes = 0};
    return (struct piece){
        .from = job->param.src_offset + first,
        .num_bytes = whole - first < dst_stride ? whole - first : dst_stride,
    };
}

void
job_foresee(struct job *job, unsigned src_class, unsigned dst_class)
{
    unsigned first_src = job->src_layer < 0 ? 0 : (unsigned)job->src_layer * TENSORS_PER_LAYER;
    unsigned first_dst = job->dst_layer < 0 ? 0 : (unsigned)job->dst_layer * TENSORS_PER_LAYER;
    unsigned num_tensors = job->src_layer < 0 ? TENSORS : TENSORS_PER_LAYER;
    memset(&job->content, 0, sizeof(job->content));
    job->num_bytes = 0;
    for (unsigned t = 0; t < num_tensors; t++) {
        for (size_t i = 0; i < job->num_blocks; i++) {
            struct piece piece = foresee_piece(job, i, strides[src_class], strides[dst_class]);
            size_t src = job->shape == SHAPE_SLOT_TO_BLOCKS ? 0 : i;
            piece.name = job->source_name | (first_src + t) << 8 | job->src_blocks[src];
            job->content.pieces[first_dst + t][job->dst_blocks[i]] = piece;
            job->num_bytes += piece.num_bytes;
        }
    }
}

// ---- calling ----

llm_cache_index
job_index(const struct job *job)
{
    llm_cache_index index = {
        .struct_size = sizeof(index),
        .cluster_id = seat_cluster(job->peer),
        .cache_id = card_id(job->remote_card),
        .generation = job->generation,
        .key = job->by_key ? &job->key : NULL,
    };
    if (job->by_address) {
        index.addrs = job->addresses;
        index.num_addrs = job->src_layer < 0 ? TENSORS : TENSORS_PER_LAYER;
    }
    return index;
}

static llm_status
call_pull(struct seat *seat, const struct job *job, uint64_t *ret_transfer)
{
    llm_cache_index src = job_index(job);
    llm_cache dst = {.struct_size = sizeof(dst), .cache_id = job->local_id};
    const llm_kv_cache_ext_param *param = &job->param;
    if (job->shape == SHAPE_BLOCKS)
        return ret_transfer != NULL
                   ? llm_start_pull_kv_blocks(seat->dd, &src, &dst, job->src_blocks,
                                              job->num_blocks, job->dst_blocks, job->num_blocks,
                                              param, ret_transfer)
                   : llm_pull_kv_blocks(seat->dd, &src, &dst, job->src_blocks, job->num_blocks,
                                        job->dst_blocks, job->num_blocks, param);
    src.batch_index = (uint32_t)job->src_blocks[0];
    if (job->shape == SHAPE_SLOT_TO_BLOCKS)
        return ret_transfer != NULL
                   ? llm_start_pull_kv_cache_to_blocks(seat->dd, &src, &dst, job->dst_blocks,
                                                       job->num_blocks, job->size, param,
                                                       ret_transfer)
                   : llm_pull_kv_cache_to_blocks(seat->dd, &src, &dst, job->dst_blocks,
                                                 job->num_blocks, job->size, param);
    uint32_t slot = (uint32_t)job->dst_blocks[0];
    return ret_transfer != NULL
               ? llm_start_pull_kv_cache(seat->dd, &src, &dst, slot, job->size, param, ret_transfer)
               : llm_pull_kv_cache(seat->dd, &src, &dst, slot, job->size, param);
}

static llm_status
call_push(struct seat *seat, const struct job *job, uint64_t *ret_transfer)
{
    llm_cache_index dst = job_index(job);
    llm_cache src = {.struct_size = sizeof(src), .cache_id = job->local_id};
    const llm_kv_cache_ext_param *param = &job->param;
    if (job->shape == SHAPE_BLOCKS)
        return ret_transfer != NULL
                   ? llm_start_push_kv_blocks(seat->dd, &src, &dst, job->src_blocks,
                                              job->num_blocks, job->dst_blocks, job->num_blocks,
                                              param, ret_transfer)
                   : llm_push_kv_blocks(seat->dd, &src, &dst, job->src_blocks, job->num_blocks,
                                        job->dst_blocks, job->num_blocks, param);
    dst.batch_index = (uint32_t)job->dst_blocks[0];
    uint32_t slot = (uint32_t)job->src_blocks[0];
    return ret_transfer != NULL
               ? llm_start_push_kv_cache(seat->dd, &src, &dst, slot, -1, param, ret_transfer)
               : llm_push_kv_cache(seat->dd, &src, &dst, slot, -1, param);
}

llm_status
job_call(struct seat *seat, const struct job *job, uint64_t *ret_transfer)
{
    return job->push ? call_push(seat, job, ret_transfer) : call_pull(seat, job, ret_transfer);
}

llm_status
job_end(struct thread *th, struct seat *seat, uint64_t transfer)
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

// ---- judging ----

bool
job_same_peer(const struct job *job)
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
    case LLM_CACHE_STALE:
        return job->generation != 0 || job->param.progress != NULL;
    case LLM_PARAM_INVALID:
        // What was at an address may be gone as well.
        return job->by_address || !job_same_peer(job);
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

void
job_count(struct seat *seat, const struct job *job, llm_status status)
{
    char why[256];
    llm_last_error(why, sizeof(why));
    WRONG_UNLESS(may_happen(job, status), "a %s ended with %s: %s", job->push ? "push" : "pull",
                 llm_status_name(status), why);
    if (status == LLM_SUCCESS) {
        count(COUNT_transfers, 1);
        count(COUNT_bytes, job->num_bytes);
        count(COUNT_into_blocks, job->shape == SHAPE_SLOT_TO_BLOCKS);
        count(COUNT_by_address, job->by_address);
        count(COUNT_by_key, job->by_key);
        count(COUNT_after_silence, (atomic_load(&seat->heard_again) >> job->peer & 1) != 0);
        count_transport(seat, job->peer);
    } else if (status == LLM_TIMEOUT || status == LLM_WAIT_PROC_TIMEOUT) {
        count(COUNT_timed_out, 1);
    } else if (status == LLM_TRANSFER_CANCELLED) {
        count(COUNT_cancelled, 1);
    } else if (status == LLM_CACHE_STALE) {
        count(COUNT_stale, 1);
    } else {
        count(COUNT_failed, 1);
    }
}

void
job_judge_pull(struct seat *seat, const struct job *job, llm_status status)
{
    struct target *target = job->target;
    char why[256];
    target->checksum = memory_checksum(&target->cache.memory);
    // Generations and keys never come again, ids may.
    bool is_named = job->generation != 0 || job->by_key;
    bool strictly = status == LLM_SUCCESS && (is_named || job_same_peer(job));
    if (status == LLM_SUCCESS && !strictly)
        count(COUNT_unjudged, 1);
    WRONG_UNLESS(
        memory_holds(&target->cache.memory, &job->content, target->background, strictly, why),
        "cluster %llu pulled from cache %lld of cluster %llu, %s, with %s: %s",
        (unsigned long long)seat_cluster(seat->index), (long long)card_id(job->remote_card),
        (unsigned long long)seat_cluster(job->peer),
        job->by_key            ? "by key"
        : job->generation != 0 ? "by generation"
                               : "by id",
        llm_status_name(status), why);
}

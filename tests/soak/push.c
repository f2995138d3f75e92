// Pushes to the goals of the peers, whose owners look at what has come.
#include <stdio.h>
#include <string.h>

#include "soak/job.h"

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

// One of our sources with that stride; 0: none.
static uint64_t
choose_source(struct seat *seat, unsigned stride_class, uint64_t *dice)
{
    for (unsigned i = 0, first = (unsigned)roll(dice, SOURCES); i < SOURCES; i++) {
        uint64_t card = atomic_load(&seat->board->sources[(first + i) % SOURCES]);
        if (card != 0 && card_class(card) == stride_class)
            return card;
    }
    return 0;
}

// Sometimes the goal is named by where it is: nothing else will ever be there.
static void
perhaps_address(struct job *job, const struct goal_board *goal, uint64_t *dice)
{
    unsigned first = job->dst_layer < 0 ? 0 : (unsigned)job->dst_layer * TENSORS_PER_LAYER;
    uint64_t slot = job->shape == SHAPE_SLOT ? job->dst_blocks[0] : 0;
    if (roll(dice, 3) != 0)
        return;
    for (unsigned t = first; t < TENSORS; t++)
        job->addresses[t - first] =
            atomic_load(&goal->addresses[t]) + slot * strides[card_class(job->remote_card)];
    job->by_address =
        atomic_load(&goal->addresses[0]) != 0 && atomic_load(&goal->card) == job->remote_card;
}

static bool
prepare_push(struct thread *th, struct seat *seat, struct job *job, struct push_board *push)
{
    unsigned peer = choose_peer(seat, &th->dice);
    struct seat_board *shown = &board->seats[peer];
    if (!seat->version_2 && seat->role != LLM_ROLE_PROMPT)
        return false;
    push->state = 0;
    push->seat = peer;
    push->goal = (unsigned)roll(&th->dice, GOALS);
    struct goal_board *goal = &shown->goals[push->goal];
    uint64_t incarnation = atomic_load(&shown->incarnation);
    uint64_t card = atomic_load(&goal->card);
    uint64_t source = choose_source(seat, card_class(card), &th->dice);
    if (card == 0 || source == 0)
        return false;
    perhaps_link(th, seat, peer);
    *job = job_of_pull(peer, incarnation, card);
    job->push = true;
    job->local_id = card_id(source);
    job->source_name = name_of(seat->index, seat->incarnation, card_serial(source), 0, 0);
    job->shape = roll(&th->dice, 3) == 0 ? SHAPE_SLOT : SHAPE_BLOCKS;
    job_choose_blocks(job, &th->dice);
    job_choose_param(job, seat->index, &th->dice);
    job_foresee(job, card_class(card), card_class(card));
    perhaps_address(job, goal, &th->dice);
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

// The peer didn't say that it is over, and may not know.
static bool
is_uncertain(llm_status status, const char *why)
{
    if (status == LLM_TIMEOUT || status == LLM_WAIT_PROC_TIMEOUT ||
        status == LLM_TRANSFER_CANCELLED)
        return strstr(why, "it was given up") == NULL;
    return status == LLM_FAILED;
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
    push->is_uncertain = is_uncertain(status, why);
    (void)llm_get_link_info(seat->dd, seat_cluster(job->peer), &info);
    snprintf(push->how, sizeof(push->how), "%s over %s%s: %s", llm_status_name(status),
             info.transport, job->by_address ? ", by address" : "",
             status == LLM_SUCCESS ? "" : why);
    atomic_compare_exchange_strong(&goal->state, &taken, phase << 60 | (taken << 4) >> 4);
}

static llm_status
attempt(struct thread *th, struct seat *seat, const struct job *job)
{
    uint64_t transfer;
    AT(th);
    if (roll(&th->dice, 3) != 0)
        return job_call(seat, job, NULL);
    llm_status status = job_call(seat, job, &transfer);
    return status == LLM_SUCCESS ? job_end(th, seat, transfer) : status;
}

// Goes on after a failure, some times.
static llm_status
attempt_on(struct thread *th, struct seat *seat, struct job *job)
{
    llm_progress progress = {.struct_size = sizeof(progress)};
    llm_status status = LLM_FAILED;
    job->param.progress = &progress;
    for (unsigned i = 0; i < 4 && status != LLM_SUCCESS && job_same_peer(job); i++) {
        uint64_t before = progress.bytes_arrived;
        job->param.timeout_ms = roll(&th->dice, 2) == 0 ? 0 : 1 + (uint32_t)roll(&th->dice, 20);
        AT(th);
        status = job_call(seat, job, NULL);
        WRONG_UNLESS(
            progress.bytes_arrived <= job->num_bytes && progress.bytes_moved <= job->num_bytes &&
                (status != LLM_SUCCESS || progress.bytes_arrived == job->num_bytes),
            "a push of %llu bytes that ended with %s: %llu have arrived, %llu moved",
            (unsigned long long)job->num_bytes, llm_status_name(status),
            (unsigned long long)progress.bytes_arrived, (unsigned long long)progress.bytes_moved);
        count(COUNT_continued, before > 0);
        count(COUNT_resumed_bytes, before);
        if (status == LLM_CACHE_STALE)
            break;
        if (status != LLM_SUCCESS)
            perhaps_link(th, seat, job->peer);
    }
    return status;
}

void
push(struct thread *th, struct seat *seat)
{
    struct job job;
    unsigned slot;
    struct push_board *shown = find_slot(th, seat, &slot);
    if (shown == NULL || !prepare_push(th, seat, &job, shown) ||
        !take_goal(th, seat, &job, shown, slot))
        return;
    bool goes_on = !job.by_address && roll(&th->dice, 4) == 0;
    llm_status status = goes_on ? attempt_on(th, seat, &job) : attempt(th, seat, &job);
    leave_goal(seat, &job, shown, status);
    job_count(seat, &job, status);
}

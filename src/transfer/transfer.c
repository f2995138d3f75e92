#include "transfer/transfer.h"

#include <stdio.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "link/paths.h"
#include "transfer/ask.h"
#include "transfer/copies.h"
#include "transfer/pull_here.h"
#include "transfer/serve.h"

// How many transfers of a link the peer is asked for at a time.  The others wait for their turn here, in
// order: it refuses more, and what it would have to answer could fill both ends' connections.  Fewer
// than it serves, since what was cancelled may have a last frame on its way there.
enum { ASKED_PER_LINK_MAX = LLI_SERVES_PER_LINK_MAX - 64 };

struct transfer {
    _Atomic unsigned references; // the caller's, and the loop's until it has ended
    struct lli_list node;        // in link->transfers or link->waiting; the loop's thread
    struct lli_list in_started;  // in node->started; guarded by links_lock
    uint64_t id;
    struct lli_link *link;   // acquired, until it has ended
    struct lli_cache *cache; // held, likewise; or NULL: it was let go before
    bool push;
    bool started;    // somebody may wait for the eventfd
    bool copying;    // a pull on one host, in portions
    bool asks_first; // what the peer has decides what is asked for
    uint64_t deadline_ns;
    struct lli_request request;
    uint64_t bytes_min;  // of a slot whose length only the peer knows; 0: it is request.bytes
    uint64_t generation; // of the peer's cache, if it is known
    bool slot_has_request;
    bool resumes;         // `progress` was given
    struct lli_plan plan; // this side, or both when copying
    uintptr_t *tensors;   // this side
    struct lli_task start;
    uint8_t *notification; // of a pull
    size_t notification_bytes;

    // The loop's thread.
    struct lli_stream_job job;
    struct lli_copy_job copy;
    struct lli_ask ask;
    bool in_stream;
    bool in_copies;
    bool waiting;    // for its turn
    bool has_turn;   // to ask the peer
    bool is_to_tell; // all has arrived, of which the owner must know
    size_t num_runs; // that its turn stands for
    bool asking;     // `ask` is under way
    bool ended;
    bool cancelled;
    llm_status cancel_status;
    uint64_t cancelled_tick;
    // A push whose caller doesn't wait any longer for the peer to confirm its end.
    bool left_behind;
    // A push that has ended at the peer while frames that had begun are still leaving here.
    bool leaving;
    llm_status leaving_status;
    char leaving_text[LLI_REASON_BYTES];

    pthread_mutex_t lock;
    pthread_cond_t ended_cond;
    bool done;             // guarded by lock
    llm_status status;     // guarded by lock
    llm_progress progress; // guarded by lock
    char text[LLI_REASON_BYTES];
};

static void
put(struct transfer *t)
{
    if (atomic_fetch_sub(&t->references, 1) > 1)
        return;
    lli_request_fini(&t->request);
    lli_plan_fini(&t->plan);
    lli_free(t->tensors);
    lli_free(t->notification);
    pthread_cond_destroy(&t->ended_cond);
    pthread_mutex_destroy(&t->lock);
    lli_free(t);
}

static void
let_cache_go(struct transfer *t)
{
    if (t->cache != NULL)
        lli_registry_put(t->link->node->registry, t->cache);
    t->cache = NULL;
}

// Gives back what a transfer holds while it runs.
static void
let_go(struct transfer *t)
{
    let_cache_go(t);
    if (t->left_behind)
        lli_link_put(t->link);
    else
        lli_links_release(t->link);
}

void
lli_transfer_announce_end(struct lli_node *node)
{
    lli_event_signal(node->transfer_fd);
}

// All bytes before `position` have arrived.
static void
note_progress(struct transfer *t, uint64_t position)
{
    pthread_mutex_lock(&t->lock);
    if (!t->done && position > t->progress.bytes_arrived) {
        t->progress.bytes_moved += position - t->progress.bytes_arrived;
        t->progress.bytes_arrived = position;
    }
    pthread_mutex_unlock(&t->lock);
}

static void give_turn_back(struct transfer *t);

// The result, once.
static void
tell(struct transfer *t, struct lli_node *node, llm_status status, const char *text)
{
    pthread_mutex_lock(&t->lock);
    bool first = !t->done;
    if (first) {
        t->status = status;
        snprintf(t->text, sizeof(t->text), "%s", text);
        t->done = true;
        pthread_cond_broadcast(&t->ended_cond);
    }
    pthread_mutex_unlock(&t->lock);
    if (first && t->started)
        lli_transfer_announce_end(node);
}

// The one end.
static void
end(struct transfer *t, llm_status status, const char *text)
{
    struct lli_node *node = t->link->node;
    char why[LLI_REASON_BYTES];
    lli_list_remove(&t->node);
    t->ended = true;
    t->waiting = false;
    give_turn_back(t);
    if (t->asking)
        lli_ask_forget(&t->ask);
    t->asking = false;
    if (status == LLM_SUCCESS)
        note_progress(t, t->plan.total_bytes);
    if (status == LLM_SUCCESS && t->notification != NULL)
        lli_link_send(t->link, LLI_NOTIFY, 0, t->notification, t->notification_bytes);
    // The text may be the link's, which may not outlive its last transfer.
    snprintf(why, sizeof(why), "%s", text);
    let_go(t);
    tell(t, node, status, why);
    put(t);
}

// Ends a transfer that may have bytes under way.
static void
stop_and_end(struct transfer *t, llm_status status, const char *text)
{
    if (t->in_stream && t->push) {
        // A frame that has begun must be completed, out of memory that the caller still holds.
        t->leaving = true;
        t->leaving_status = status;
        snprintf(t->leaving_text, sizeof(t->leaving_text), "%s", text);
        lli_stream_cancel_send(&t->link->stream, &t->job);
        return;
    }
    if (t->in_stream) {
        t->in_stream = false;
        lli_stream_cancel_receive(&t->link->stream, &t->job);
        note_progress(t, lli_stream_arrived(&t->link->stream, &t->job));
    }
    if (t->in_copies) {
        t->in_copies = false;
        if (lli_copies_cancel(&t->copy))
            note_progress(t, t->copy.copy.position);
    }
    end(t, status, text);
}

// ---- the owner learns that a pull has arrived ----

static void
owner_told(struct lli_ask *ask, llm_status status, const char *text,
           const struct lli_answer *answer)
{
    struct transfer *t = LLI_CONTAINER_OF(ask, struct transfer, ask);
    (void)answer;
    t->asking = false;
    end(t, status, text);
}

static void wait_for_turn(struct transfer *t);

static void
tell_owner(struct transfer *t)
{
    struct lli_request done = lli_describe_done(&t->request, t->generation);
    t->asking = true;
    t->ask.answered = owner_told;
    lli_ask_send(t->link, &t->ask, LLI_DONE, &done);
}

static void
tell_owner_and_end(struct transfer *t)
{
    note_progress(t, t->plan.total_bytes);
    t->is_to_tell = lli_describe_tells(&t->request, t->slot_has_request);
    if (!t->is_to_tell)
        end(t, LLM_SUCCESS, "");
    else if (t->has_turn)
        tell_owner(t);
    else
        wait_for_turn(t);
}

// The peer needn't send the rest.
static void
end_corrupt(struct transfer *t)
{
    char why[LLI_REASON_BYTES];
    lli_link_send(t->link, LLI_CANCEL, t->id, NULL, 0);
    note_progress(t, lli_stream_arrived(&t->link->stream, &t->job));
    llm_status status =
        lli_source_describe_mismatch(&t->plan, t->job.corrupt_position, why, sizeof(why));
    end(t, status, why);
}

static void
stream_done(struct lli_stream_job *job)
{
    struct transfer *t = LLI_CONTAINER_OF(job, struct transfer, job);
    t->in_stream = false;
    if (t->job.is_corrupt) {
        end_corrupt(t);
    } else if (!t->push) {
        t->slot_has_request |= (t->job.flags & LLI_FLAG_TELL_WHEN_DONE) != 0;
        tell_owner_and_end(t);
    } else if (t->leaving)
        end(t, t->leaving_status, t->leaving_text);
    else if (t->left_behind)
        let_cache_go(t);
    // Otherwise the bytes have left, or no more will; the peer will say what became of them.
}

static void
copy_done(struct lli_copy_job *job, llm_status status, const char *text)
{
    struct transfer *t = LLI_CONTAINER_OF(job, struct transfer, copy);
    t->in_copies = false;
    if (status == LLM_SUCCESS)
        tell_owner_and_end(t);
    else
        end(t, status, text);
}

static void
join_stream(struct transfer *t)
{
    t->job = (struct lli_stream_job){
        .id = t->id,
        .plan = &t->plan,
        .tensors = t->tensors,
        .is_source = t->push,
        .holes = t->link->node->holes,
        .start_position = t->request.start_position,
        .done = stream_done,
    };
    lli_list_init(&t->job.node);
    t->in_stream = true;
    if (t->push)
        lli_stream_send(&t->link->stream, &t->job);
    else
        lli_stream_receive(&t->link->stream, &t->job);
}

static uint64_t
bytes_to_move(const struct transfer *t)
{
    return t->plan.total_bytes - t->request.start_position;
}

static void
send_request(struct transfer *t)
{
    size_t bytes_max = lli_request_bytes(&t->request);
    uint8_t *bytes = bytes_max <= LLI_REQUEST_BODY_BYTES_MAX ? lli_malloc(bytes_max) : NULL;
    if (bytes == NULL) {
        bool too_long = bytes_max > LLI_REQUEST_BODY_BYTES_MAX;
        end(t, too_long ? LLM_PARAM_INVALID : LLM_OUT_OF_MEMORY,
            too_long ? "the list of blocks is too long for one request" : "out of memory");
        return;
    }
    struct lli_writer w;
    lli_writer_init(&w, bytes, bytes_max);
    lli_request_write(&w, &t->request);
    // The peer's bytes may arrive as soon as it has the request.
    if (!t->push && bytes_to_move(t) > 0)
        join_stream(t);
    lli_link_send(t->link, t->push ? LLI_PUSH : LLI_PULL, t->id, bytes, w.size);
    lli_free(bytes);
}

// ---- the peer is asked first ----

// What the peer has decides how much moves.
static llm_status
take_length(struct transfer *t, const struct lli_answer *answer, char *why, size_t why_size)
{
    if (t->bytes_min == 0)
        return LLM_SUCCESS;
    uint64_t offset = t->request.offset;
    uint64_t left = offset < answer->geometry.stride ? answer->geometry.stride - offset : 0;
    if (left < t->bytes_min) {
        snprintf(why, why_size, "the remote slot has %llu bytes from offset %llu on, expected %llu",
                 (unsigned long long)left, (unsigned long long)offset,
                 (unsigned long long)t->bytes_min);
        return LLM_PARAM_INVALID;
    }
    t->request.bytes = lli_min(t->request.bytes, left);
    t->bytes_min = 0;
    lli_plan_truncate(&t->plan, t->request.bytes);
    return LLM_SUCCESS;
}

static llm_status
resume(struct transfer *t, const struct lli_answer *answer, char *why, size_t why_size)
{
    if (!t->resumes)
        return LLM_SUCCESS;
    pthread_mutex_lock(&t->lock);
    llm_status status = lli_describe_resume(&t->progress, &t->request, answer->generation,
                                            t->plan.total_bytes, why, why_size);
    // Of a push the peer knows best what has arrived.
    if (status == LLM_SUCCESS && t->push)
        t->progress.bytes_arrived =
            lli_min(lli_max(t->progress.bytes_arrived, answer->bytes_arrived), t->plan.total_bytes);
    if (t->push)
        t->progress.token = t->id;
    t->request.start_position = t->progress.bytes_arrived;
    pthread_mutex_unlock(&t->lock);
    if (t->request.generation == 0)
        t->request.generation = answer->generation;
    return status;
}

static void
peer_answered(struct lli_ask *ask, llm_status status, const char *text,
              const struct lli_answer *answer)
{
    struct transfer *t = LLI_CONTAINER_OF(ask, struct transfer, ask);
    char why[LLI_REASON_BYTES];
    snprintf(why, sizeof(why), "%s", text);
    t->asking = false;
    t->request.key.stamp = answer->key_stamp;
    if (status == LLM_SUCCESS)
        status = take_length(t, answer, why, sizeof(why));
    if (status == LLM_SUCCESS)
        status = resume(t, answer, why, sizeof(why));
    if (status != LLM_SUCCESS) {
        end(t, status, why);
        return;
    }
    t->generation = answer->generation;
    t->slot_has_request = answer->slot_has_request;
    send_request(t);
}

static void
ask_peer(struct transfer *t)
{
    if (t->push)
        t->request.token = t->progress.token;
    t->asking = true;
    t->ask.answered = peer_answered;
    lli_ask_send(t->link, &t->ask, LLI_QUERY, &t->request);
}

// ---- turns ----

static bool
has_room(const struct lli_link *link)
{
    return link->num_asked < ASKED_PER_LINK_MAX && link->num_runs_asked < LLI_RUNS_PER_LINK_MAX;
}

static void
take_turn(struct transfer *t)
{
    struct lli_link *link = t->link;
    t->waiting = false;
    t->has_turn = true;
    t->num_runs = t->is_to_tell ? 0 : t->request.num_runs + t->request.num_source_runs;
    link->num_asked++;
    link->num_runs_asked += t->num_runs;
    lli_list_append(&link->transfers, &t->node);
    if (t->is_to_tell)
        tell_owner(t);
    else if (t->asks_first)
        ask_peer(t);
    else
        send_request(t);
}

// As many as there is room for.  One that ends at once gives its turn back in here.
static void
admit(struct lli_link *link)
{
    if (link->admitting)
        return;
    link->admitting = true;
    while (link->control != NULL && has_room(link) && !lli_list_empty(&link->waiting)) {
        struct transfer *t = LLI_LIST_ENTRY(link->waiting.next, struct transfer, node);
        lli_list_remove(&t->node);
        take_turn(t);
    }
    link->admitting = false;
}

// The transfer still holds the link.
static void
give_turn_back(struct transfer *t)
{
    if (!t->has_turn)
        return;
    t->has_turn = false;
    t->link->num_asked--;
    t->link->num_runs_asked -= t->num_runs;
    admit(t->link);
}

static void
wait_for_turn(struct transfer *t)
{
    t->waiting = true;
    lli_list_remove(&t->node);
    lli_list_append(&t->link->waiting, &t->node);
    admit(t->link);
}

static void
begin(struct lli_task *task)
{
    struct transfer *t = LLI_CONTAINER_OF(task, struct transfer, start);
    struct lli_link *link = t->link;
    if (lli_link_is_broken(link)) {
        if (t->copying)
            (void)lli_copies_cancel(&t->copy);
        end(t, link->broken_status, link->broken_reason);
    } else if (t->copying) {
        t->in_copies = true;
        lli_list_append(&link->transfers, &t->node);
        lli_copies_add(link->node, &t->copy, &t->plan, t->tensors, t->request.start_position);
    } else {
        wait_for_turn(t);
    }
}

// Did nothing come, although the peer was asked?  Of a push, nobody knows.
static bool
is_suspicious(struct transfer *t)
{
    return t->push ? !t->request.fetch
                   : t->in_stream &&
                         lli_stream_arrived(&t->link->stream, &t->job) == t->request.start_position;
}

// Begins to end a transfer; a push ends when the peer has confirmed that nothing lands any more.
static void
cancel_here(struct transfer *t, llm_status status)
{
    if (t->ended || t->cancelled)
        return;
    t->cancelled = true;
    t->cancel_status = status;
    t->cancelled_tick = t->link->node->tick;
    bool asked = !t->copying && !t->asking && !t->waiting;
    if (asked && status == LLM_WAIT_PROC_TIMEOUT && is_suspicious(t))
        lli_paths_suspect(t->link);
    if (asked)
        lli_link_send(t->link, LLI_CANCEL, t->id, NULL, 0);
    if (!t->push || !asked)
        stop_and_end(t, status, lli_interrupt_text(status));
    else if (t->in_stream)
        lli_stream_cancel_send(&t->link->stream, &t->job);
}

struct cancel_call {
    struct transfer *transfer;
    llm_status status;
};

static void
run_cancel(void *arg)
{
    struct cancel_call *call = arg;
    cancel_here(call->transfer, call->status);
}

// ---- what the peer says ----

static struct transfer *
find_transfer(struct lli_link *link, uint64_t id)
{
    LLI_LIST_FOR(node, &link->transfers) {
        struct transfer *t = LLI_LIST_ENTRY(node, struct transfer, node);
        if (t->id == id && !t->copying)
            return t;
    }
    return NULL;
}

static bool
on_result(struct transfer *t, const struct lli_outcome *outcome)
{
    // Success of a push means that all bytes have landed, so all have left, although the thread that
    // sent the last ones may not have said so yet; a pull counts its bytes.
    bool too_early = t->push ? t->in_stream && !lli_stream_has_begun_all(&t->link->stream, &t->job)
                             : bytes_to_move(t) > 0;
    if (outcome->status == LLM_SUCCESS && too_early)
        return false;
    if (outcome->status == LLM_SUCCESS && !t->push)
        tell_owner_and_end(t);
    else
        stop_and_end(t, outcome->status, outcome->text);
    return true;
}

static bool
on_accepted(struct transfer *t)
{
    if (!t->push || t->request.fetch || t->job.plan != NULL || bytes_to_move(t) == 0)
        return false;
    if (!t->cancelled)
        join_stream(t);
    return true;
}

bool
lli_transfers_message(struct lli_link *link, const struct lli_message_header *header,
                      struct lli_reader *body)
{
    struct transfer *t = find_transfer(link, header->transfer_id);
    struct lli_outcome outcome;
    if (header->type == LLI_RESULT && !lli_outcome_read(body, &outcome))
        return false;
    // It may have been cancelled a moment ago.
    if (t == NULL)
        return true;
    // It has not been asked for yet, or has arrived; the peer may have given up its last frames.
    if (t->asking)
        return header->type == LLI_RESULT && !t->push;
    switch (header->type) {
    case LLI_PUSH_ACCEPTED:
        return on_accepted(t);
    case LLI_RESULT:
        return on_result(t, &outcome);
    case LLI_CANCELLED:
        if (!t->cancelled)
            return false;
        stop_and_end(t, t->cancel_status, "it was given up");
        return true;
    default:
        return false;
    }
}

void
lli_transfers_broken(struct lli_link *link, llm_status status)
{
    LLI_LIST_FOR(node, &link->waiting)
        end(LLI_LIST_ENTRY(node, struct transfer, node), status, link->broken_reason);
    LLI_LIST_FOR(node, &link->transfers) {
        struct transfer *t = LLI_LIST_ENTRY(node, struct transfer, node);
        if (t->in_copies && lli_copies_cancel(&t->copy))
            note_progress(t, t->copy.copy.position);
        if (t->in_stream && !t->push)
            note_progress(t, lli_stream_arrived(&t->link->stream, &t->job));
        t->in_copies = t->in_stream = false;
        end(t, t->cancelled ? t->cancel_status : status, link->broken_reason);
    }
}

// ---- time ----

// Somebody waits until the local cache is let go.
static bool
is_overdue(const struct transfer *t)
{
    return t->cache != NULL && t->cache->registered && atomic_load(&t->cache->overdue);
}

// The caller waits for the confirmation of a cancel for as long as silence makes a link suspect here,
// whatever the peer would like; then it is left behind, and the link waits for it until the peer is dead.  Who unregisters the cache waits for no more than a frame that has
// begun, and for that a tick or two.
static bool
is_late(const struct transfer *t, uint64_t now_ns)
{
    const struct lli_node *node = t->link->node;
    bool overdue = is_overdue(t);
    if (!t->cancelled)
        return overdue || (t->started && now_ns >= t->deadline_ns);
    uint64_t ticks = node->tick - t->cancelled_tick;
    uint64_t patience_ticks =
        t->left_behind ? t->link->dead_ticks : node->options->liveness_ms / node->tick_ms + 1;
    return ticks > patience_ticks || (overdue && (!t->in_stream || ticks >= 2));
}

static struct transfer *
find_late_in(struct lli_list *list, uint64_t now_ns)
{
    LLI_LIST_FOR(node, list) {
        struct transfer *t = LLI_LIST_ENTRY(node, struct transfer, node);
        if (is_late(t, now_ns))
            return t;
    }
    return NULL;
}

// Finds a transfer that has run out of time, or one whose cancel isn't confirmed; with a reference.
static struct transfer *
find_late(struct lli_node *node, uint64_t now_ns)
{
    struct transfer *found = NULL;
    pthread_mutex_lock(&node->links_lock);
    LLI_LIST_FOR(item, &node->links) {
        struct lli_link *link = LLI_LIST_ENTRY(item, struct lli_link, in_table);
        if (found == NULL)
            found = find_late_in(&link->transfers, now_ns);
        if (found == NULL)
            found = find_late_in(&link->waiting, now_ns);
    }
    pthread_mutex_unlock(&node->links_lock);
    if (found != NULL)
        atomic_fetch_add(&found->references, 1);
    return found;
}

// The caller of a push gets its result, and may use its memory for something else as soon as no frame
// out of it is under way.  The peer reads of the end before anything that is begun later.
static void
leave_behind(struct transfer *t)
{
    t->left_behind = true;
    lli_link_hold(t->link);
    lli_links_release(t->link);
    if (!t->in_stream)
        let_cache_go(t);
    tell(t, t->link->node, t->cancel_status, "the peer has not confirmed the end of the push");
}

void
lli_transfers_tick(struct lli_node *node, uint64_t now_ns)
{
    for (struct transfer *t; (t = find_late(node, now_ns)) != NULL; put(t)) {
        if (!t->cancelled)
            cancel_here(t, is_overdue(t) ? LLM_KV_CACHE_NOT_EXIST : LLM_WAIT_PROC_TIMEOUT);
        else if (is_overdue(t) && !t->in_stream)
            let_cache_go(t);
        else if (!t->left_behind && !is_overdue(t))
            leave_behind(t);
        else
            lli_link_break(t->link, LLM_WAIT_PROC_TIMEOUT,
                           "the peer doesn't confirm that a push was cancelled");
    }
}

// ---- starting and waiting ----

static bool
peer_can_fetch(const struct lli_link *link, const struct lli_transfer_args *args)
{
    return link->view != NULL && (!args->cache->registered || link->peer_can_read);
}

static bool
can_copy(struct lli_link *link, const struct lli_transfer_args *args)
{
    struct lli_request names = lli_describe_names(args);
    return !args->push && link->view != NULL && !lli_source_needs_owner(link, &names);
}

static llm_status
no_memory(void)
{
    return lli_fail(LLM_OUT_OF_MEMORY, "transfer", "no memory to describe the transfer");
}

static llm_status
resume_copy(struct transfer *t, const struct lli_transfer_args *args)
{
    char why[LLI_REASON_BYTES];
    if (!t->resumes)
        return LLM_SUCCESS;
    llm_status status = lli_describe_resume(&t->progress, &t->request, t->generation,
                                            t->plan.total_bytes, why, sizeof(why));
    t->request.start_position = t->progress.bytes_arrived;
    return status == LLM_SUCCESS ? status : lli_describe_failure(args, status, why);
}

static llm_status
prepare_copy(struct transfer *t, const struct lli_transfer_args *args)
{
    char why[LLI_REASON_BYTES];
    LLI_TRY(lli_describe_source(t->link, args, &t->copy.source));
    lli_list_init(&t->copy.node);
    t->copy.done = copy_done;
    t->copying = true;
    t->request = lli_describe_names(args);
    t->request.slot = t->copy.source.slot;
    t->generation = t->copy.source.remote.generation;
    t->request.key.stamp = t->copy.source.remote.key_stamp;
    t->slot_has_request = (t->copy.source.remote.flags & LLI_ENTRY_HAS_REQUESTS) != 0;
    llm_status status = lli_describe_pull(args, &t->copy.source, &t->plan);
    if (status == LLM_SUCCESS)
        status = resume_copy(t, args);
    if (status == LLM_SUCCESS)
        status = lli_describe_tensors(args, &t->tensors);
    if (status != LLM_SUCCESS)
        (void)lli_source_close(&t->copy.source, NULL, why, sizeof(why));
    return status;
}

static llm_status
prepare_conversation(struct transfer *t, const struct lli_transfer_args *args)
{
    LLI_TRY(lli_describe_request(args, &t->request));
    t->bytes_min = args->bytes_min;
    // A key must lead to the same cache until the owner is told.
    t->asks_first = t->resumes || t->bytes_min != 0 ||
                    (args->by == LLI_BY_KEY && lli_describe_tells(&t->request, false));
    LLI_TRY(lli_describe_side(args, &t->plan));
    if (args->push) {
        t->request.notification = args->notification;
        t->request.notification_bytes = (uint32_t)args->notification_bytes;
        if (peer_can_fetch(t->link, args))
            return lli_describe_fetch(args, &t->request);
    }
    return lli_describe_tensors(args, &t->tensors);
}

// A push carries its notification with the request, which outlives the caller's argument.
static llm_status
keep_notification(struct transfer *t, const struct lli_transfer_args *args)
{
    if (args->notification == NULL)
        return LLM_SUCCESS;
    uint8_t *copy = lli_malloc(args->notification_bytes);
    if (copy == NULL)
        return no_memory();
    memcpy(copy, args->notification, args->notification_bytes);
    if (args->push) {
        t->request.notification = copy;
        t->request.owns_notification = true;
    } else {
        t->notification = copy;
        t->notification_bytes = args->notification_bytes;
    }
    return LLM_SUCCESS;
}

static llm_status
prepare(struct transfer *t, const struct lli_transfer_args *args)
{
    LLI_TRY(t->started && can_copy(t->link, args) ? prepare_copy(t, args)
                                                  : prepare_conversation(t, args));
    llm_status status = keep_notification(t, args);
    char why[LLI_REASON_BYTES];
    if (status != LLM_SUCCESS && t->copying)
        (void)lli_source_close(&t->copy.source, NULL, why, sizeof(why));
    return status;
}

// Takes over `link`, also on failure.
static llm_status
new_transfer(struct lli_link *link, const struct lli_transfer_args *args, bool started,
             struct transfer **ret_transfer)
{
    struct transfer *t = lli_calloc(1, sizeof(*t));
    if (t == NULL) {
        lli_links_release(link);
        return no_memory();
    }
    atomic_init(&t->references, 1);
    pthread_mutex_init(&t->lock, NULL);
    lli_cond_init(&t->ended_cond);
    lli_list_init(&t->node);
    lli_list_init(&t->in_started);
    t->link = link;
    t->cache = args->cache;
    t->push = args->push;
    t->started = started;
    t->deadline_ns = args->deadline_ns;
    t->start.run = begin;
    lli_list_init(&t->ask.node);
    if (args->progress != NULL) {
        t->resumes = true;
        t->progress = *args->progress;
        t->progress.bytes_moved = 0;
    }
    // The two ends of a link number their transfers apart.
    t->id =
        (atomic_fetch_add(&link->node->next_transfer, 1) + 1) * 2 + (link->connected_by_us ? 1 : 0);
    lli_registry_hold_again(link->node->registry, args->cache);
    llm_status status = prepare(t, args);
    if (status != LLM_SUCCESS) {
        let_go(t);
        put(t);
        return status;
    }
    *ret_transfer = t;
    return LLM_SUCCESS;
}

// Hands it to the loop, which has a reference of its own.
static void
launch(struct transfer *t)
{
    struct lli_loop *loop = t->link->node->loop;
    atomic_fetch_add(&t->references, 1);
    lli_loop_post(loop, &t->start);
}

static bool
wait_until(struct transfer *t, uint64_t deadline_ns)
{
    bool in_time = true;
    pthread_mutex_lock(&t->lock);
    while (!t->done && in_time)
        in_time = lli_cond_wait_until(&t->ended_cond, &t->lock, deadline_ns);
    bool done = t->done;
    pthread_mutex_unlock(&t->lock);
    return done;
}

static void
cancel_and_wait(struct lli_node *node, struct transfer *t, llm_status status)
{
    struct cancel_call call = {.transfer = t, .status = status};
    lli_loop_call(node->loop, run_cancel, &call);
    (void)wait_until(t, UINT64_MAX);
}

static llm_status
converse(struct lli_node *node, struct lli_link *link, struct lli_transfer_args *args)
{
    struct transfer *t;
    LLI_TRY(new_transfer(link, args, false, &t));
    // It has a hold of its own, which it may have to let go before it ends.
    lli_registry_put(node->registry, args->cache);
    args->cache = NULL;
    launch(t);
    llm_status given_up = LLM_TRANSFER_PENDING;
    while (given_up == LLM_TRANSFER_PENDING) {
        if (wait_until(t, lli_interrupt_slice(&args->interrupt, args->deadline_ns)))
            break;
        given_up = lli_interrupt_ask(&args->interrupt, args->deadline_ns);
    }
    if (given_up != LLM_TRANSFER_PENDING)
        cancel_and_wait(node, t, given_up);
    llm_status status = t->status;
    if (status != LLM_SUCCESS)
        lli_describe_failure(args, status, t->text);
    if (args->progress != NULL)
        *args->progress = t->progress;
    put(t);
    return status;
}

static bool
reads_memory(const struct lli_link *link, const struct lli_transfer_args *args)
{
    return link->view != NULL && (args->push ? link->peer_can_read : link->view->can_read);
}

// It goes another way from now on, perhaps over the link that takes the place of this one.
static bool
has_lost_reading(struct lli_link *link, const struct lli_transfer_args *args, bool could_read)
{
    pthread_mutex_lock(&link->node->links_lock);
    bool lacks_data = link->lacks_data;
    pthread_mutex_unlock(&link->node->links_lock);
    return lacks_data || (could_read && !reads_memory(link, args));
}

static llm_status
copy_here(struct lli_link *link, const struct lli_transfer_args *args)
{
    struct lli_transfer_args watched = *args;
    watched.interrupt.overdue = args->cache->registered ? &args->cache->overdue : NULL;
    llm_status status = lli_pull_here(link, &watched);
    lli_links_release(link);
    return status;
}

llm_status
lli_transfer_run(struct lli_node *node, struct lli_transfer_args *args)
{
    struct lli_link *link;
    LLI_TRY(lli_links_acquire(node, args->cluster_id, &link));
    bool could_read = reads_memory(link, args);
    lli_link_hold(link);
    llm_status status = can_copy(link, args) ? copy_here(link, args) : converse(node, link, args);
    args->lost_reading = status == LLM_FAILED && has_lost_reading(link, args, could_read);
    lli_link_put(link);
    return status;
}

// ---- asking alone ----

static llm_status
look_into_directory(struct lli_link *link, const struct lli_request *request,
                    struct lli_answer *ret_answer, char *why, size_t why_size)
{
    struct lli_source_cache source;
    llm_status status = lli_source_find_shape(link, request, &source, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    if (!lli_view_is_alive(link->view)) {
        snprintf(why, why_size, "the peer has died");
        return LLM_FAILED;
    }
    *ret_answer = (struct lli_answer){
        .cache_id = source.remote.cache_id,
        .slot = source.slot,
        .geometry = source.remote.geometry,
        .registered = (source.remote.flags & LLI_ENTRY_REGISTERED) != 0,
        .generation = source.remote.generation,
    };
    return LLM_SUCCESS;
}

llm_status
lli_transfer_query(struct lli_node *node, uint64_t cluster_id, const struct lli_request *request,
                   uint64_t deadline_ns, struct lli_answer *ret_answer)
{
    struct lli_link *link;
    char why[LLI_REASON_BYTES];
    static const struct lli_interrupt never;
    LLI_TRY(lli_links_acquire(node, cluster_id, &link));
    llm_status status = link->view != NULL
                            ? look_into_directory(link, request, ret_answer, why, sizeof(why))
                            : lli_ask_and_wait(link, LLI_QUERY, request, &never, deadline_ns,
                                               ret_answer, why, sizeof(why));
    lli_links_release(link);
    // A lease will do for a transfer; this is about the cache.
    if (status == LLM_SUCCESS && request->generation != 0 &&
        request->generation != ret_answer->generation) {
        status = LLM_CACHE_STALE;
        snprintf(why, sizeof(why), "generation %llu is not that of the cache",
                 (unsigned long long)request->generation);
    }
    if (status == LLM_SUCCESS && !lli_geometry_shape_is_sound(&ret_answer->geometry)) {
        status = LLM_FAILED;
        snprintf(why, sizeof(why), "it describes the shape of its cache in contradictions");
    }
    if (status != LLM_SUCCESS)
        return lli_fail(status, "transfer", "query of cluster %llu: %s",
                        (unsigned long long)cluster_id, why);
    return LLM_SUCCESS;
}

llm_status
lli_transfer_start(struct lli_node *node, const struct lli_transfer_args *args,
                   uint64_t *ret_transfer_id)
{
    struct lli_link *link;
    struct transfer *t;
    LLI_TRY(lli_links_acquire(node, args->cluster_id, &link));
    LLI_TRY(new_transfer(link, args, true, &t));
    *ret_transfer_id = t->id;
    launch(t);
    // Last: from now on another thread may release it, if it only guesses the name.
    pthread_mutex_lock(&node->links_lock);
    lli_list_append(&node->started, &t->in_started);
    pthread_mutex_unlock(&node->links_lock);
    return LLM_SUCCESS;
}

// ---- started transfers, by name ----

static struct transfer *
find_started_locked(struct lli_node *node, uint64_t id)
{
    LLI_LIST_FOR(item, &node->started) {
        struct transfer *t = LLI_LIST_ENTRY(item, struct transfer, in_started);
        if (t->id == id)
            return t;
    }
    return NULL;
}

// With a reference; `take` removes it from the table and hands over the table's.
static llm_status
find_started(struct lli_node *node, uint64_t id, bool take, struct transfer **ret_transfer)
{
    pthread_mutex_lock(&node->links_lock);
    struct transfer *t = find_started_locked(node, id);
    if (t != NULL && take)
        lli_list_remove(&t->in_started);
    else if (t != NULL)
        atomic_fetch_add(&t->references, 1);
    pthread_mutex_unlock(&node->links_lock);
    if (t == NULL)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "there is no started transfer %llu",
                        (unsigned long long)id);
    *ret_transfer = t;
    return LLM_SUCCESS;
}

struct look {
    struct transfer *transfer;
    llm_progress *progress;
};

// How far the loop's thread has come with what is under way.
static void
look_at_progress(void *arg)
{
    struct look *look = arg;
    struct transfer *t = look->transfer;
    if (t->in_stream && !t->push)
        note_progress(t, lli_stream_arrived(&t->link->stream, &t->job));
    if (t->in_copies && lli_source_is_good(&t->copy.source))
        note_progress(t, t->copy.copy.position);
    pthread_mutex_lock(&t->lock);
    *look->progress = t->progress;
    pthread_mutex_unlock(&t->lock);
    // A slot's length may be known to the peer alone.
    if (t->bytes_min == 0)
        look->progress->total_bytes = t->plan.total_bytes;
    if (t->generation != 0)
        look->progress->generation = t->generation;
}

llm_status
lli_transfer_wait(struct lli_node *node, uint64_t transfer_id, uint64_t deadline_ns)
{
    struct transfer *t;
    LLI_TRY(find_started(node, transfer_id, false, &t));
    llm_status status = LLM_TRANSFER_PENDING;
    if (wait_until(t, deadline_ns)) {
        status = t->status;
        if (status != LLM_SUCCESS)
            lli_set_last_error(t->text);
    }
    put(t);
    return status;
}

llm_status
lli_transfer_get_progress(struct lli_node *node, uint64_t transfer_id, llm_progress *ret_progress)
{
    struct transfer *t;
    LLI_TRY(find_started(node, transfer_id, false, &t));
    struct look look = {.transfer = t, .progress = ret_progress};
    lli_loop_call(node->loop, look_at_progress, &look);
    put(t);
    return LLM_SUCCESS;
}

llm_status
lli_transfer_cancel(struct lli_node *node, uint64_t transfer_id)
{
    struct transfer *t;
    LLI_TRY(find_started(node, transfer_id, false, &t));
    cancel_and_wait(node, t, LLM_TRANSFER_CANCELLED);
    put(t);
    return LLM_SUCCESS;
}

llm_status
lli_transfer_release(struct lli_node *node, uint64_t transfer_id)
{
    struct transfer *t;
    LLI_TRY(find_started(node, transfer_id, true, &t));
    cancel_and_wait(node, t, LLM_TRANSFER_CANCELLED);
    put(t);
    return LLM_SUCCESS;
}

void
lli_transfers_release_all(struct lli_node *node)
{
    LLI_LIST_FOR(item, &node->started) {
        struct transfer *t = LLI_LIST_ENTRY(item, struct transfer, in_started);
        lli_list_remove(&t->in_started);
        put(t);
    }
}

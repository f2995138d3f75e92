#include "transfer/transfer.h"

#include <stdio.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "transfer/source.h"
#include "transport/mapped.h"

// Fills the peer's side of the request; the runs are the request's to free.
static llm_status
make_request(const struct lli_transfer_args *args, struct lli_request *ret_request)
{
    struct lli_request request = {
        .push = args->push,
        .kind = args->kind,
        .cache_id = args->remote_cache_id,
        .first_tensor = args->remote_first_tensor,
        .num_tensors = args->num_tensors,
        .all_tensors = args->all_tensors,
        .tensors_per_layer = args->tensors_per_layer,
        .stride = args->cache->geometry.stride,
        .slot = args->remote_slot,
        .bytes = args->bytes,
    };
    if (args->kind == LLI_REQUEST_BLOCKS)
        LLI_TRY(lli_block_runs_merge(args->remote_blocks, args->num_blocks, &request.runs,
                                     &request.num_runs));
    *ret_request = request;
    return LLM_SUCCESS;
}

static size_t
num_local_tensors(const struct lli_transfer_args *args)
{
    return (size_t)args->num_tensors * args->cache->num_devices;
}

// The addresses of the selected local tensors, for every device.
static uintptr_t *
local_tensors(const struct lli_transfer_args *args)
{
    const struct lli_cache *cache = args->cache;
    uintptr_t *tensors = lli_malloc(num_local_tensors(args) * sizeof(*tensors));
    if (tensors == NULL)
        return NULL;
    for (size_t device = 0; device < cache->num_devices; device++) {
        for (uint32_t i = 0; i < args->num_tensors; i++) {
            size_t index =
                device * cache->geometry.num_tensors + args->local_first_tensor + i;
            tensors[device * args->num_tensors + i] = cache->addresses[index];
        }
    }
    return tensors;
}

static llm_status
no_memory(void)
{
    return lli_fail(LLM_OUT_OF_MEMORY, "transfer", "no memory to describe the transfer");
}

// ---- pulls on one host ----

static llm_status
plan_pull(const struct lli_transfer_args *args, const struct lli_geometry *remote,
          struct lli_plan *ret_plan)
{
    uint64_t stride = args->cache->geometry.stride;
    if (args->kind == LLI_REQUEST_SLOT)
        return lli_plan_slot(ret_plan, num_local_tensors(args), args->remote_slot * remote->stride,
                             args->local_slot * stride, args->bytes);
    return lli_plan_blocks(ret_plan, num_local_tensors(args), args->remote_blocks,
                           args->local_blocks, args->num_blocks, stride);
}

static llm_status
copy_from_source(const struct lli_transfer_args *args, struct lli_source_cache *source)
{
    struct lli_plan plan = {0};
    struct lli_mapped_copy copy;
    uintptr_t *tensors = local_tensors(args);
    llm_status status = tensors != NULL ? plan_pull(args, &source->remote.geometry, &plan)
                                        : no_memory();
    if (status == LLM_SUCCESS) {
        lli_mapped_copy_init(&copy, &plan, source->tensors, tensors);
        if (!lli_mapped_copy_all(&copy, args->deadline_ns))
            status = lli_fail(LLM_WAIT_PROC_TIMEOUT, "transfer",
                              "the time was up after %llu of %llu bytes",
                              (unsigned long long)copy.position,
                              (unsigned long long)plan.total_bytes);
    }
    lli_plan_fini(&plan);
    lli_free(tensors);
    return status;
}

static llm_status
pull_mapped(struct lli_link *link, const struct lli_transfer_args *args)
{
    struct lli_request request;
    struct lli_source_cache source;
    char why[LLI_REASON_BYTES];
    LLI_TRY(make_request(args, &request));
    llm_status status = lli_source_open(link, &request, &source, why, sizeof(why));
    lli_request_fini(&request);
    if (status != LLM_SUCCESS)
        return lli_fail(status, "transfer", "pull: %s", why);
    status = copy_from_source(args, &source);
    llm_status same = lli_source_close(&source);
    if (status == LLM_SUCCESS && same != LLM_SUCCESS)
        return lli_fail(same, "transfer",
                        "cluster %llu freed its cache %lld during the pull, and its memory was "
                        "reused",
                        (unsigned long long)args->cluster_id, (long long)args->remote_cache_id);
    return status;
}

// ---- conversations with the peer ----

struct transfer {
    struct lli_list node; // in link->transfers; the loop's thread
    uint64_t id;
    struct lli_link *link;
    bool push;
    struct lli_request request;
    struct lli_plan plan; // tcp: this side
    uintptr_t *tensors;   // tcp
    struct lli_task start;
    struct lli_task cancel;

    // The loop's thread.
    struct lli_stream_job job;
    bool in_stream;
    bool cancelled;
    uint64_t cancelled_tick;
    bool ended;
    // A push that has ended at the peer while frames that had begun are still leaving here.
    bool leaving;
    llm_status leaving_status;
    char leaving_text[LLI_REASON_BYTES];

    pthread_mutex_t lock;
    pthread_cond_t ended_cond;
    bool done;         // guarded by lock
    llm_status status; // guarded by lock
    char text[LLI_REASON_BYTES];
};

// The one end.  The caller may free the transfer as soon as it sees it.
static void
end(struct transfer *t, llm_status status, const char *text)
{
    lli_list_remove(&t->node);
    t->ended = true;
    pthread_mutex_lock(&t->lock);
    t->status = status;
    snprintf(t->text, sizeof(t->text), "%s", text);
    t->done = true;
    pthread_cond_signal(&t->ended_cond);
    pthread_mutex_unlock(&t->lock);
}

// Ends a transfer that may have bytes under way in the stream.
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
    }
    end(t, status, text);
}

static void
stream_done(struct lli_stream_job *job)
{
    struct transfer *t = LLI_CONTAINER_OF(job, struct transfer, job);
    t->in_stream = false;
    if (!t->push)
        end(t, LLM_SUCCESS, "");
    else if (t->leaving)
        end(t, t->leaving_status, t->leaving_text);
    // Otherwise the bytes have left, or no more will; the peer will say what became of them.
}

static void
join_stream(struct transfer *t)
{
    t->job = (struct lli_stream_job){
        .id = t->id,
        .plan = &t->plan,
        .tensors = t->tensors,
        .is_source = t->push,
        .done = stream_done,
    };
    lli_list_init(&t->job.node);
    t->in_stream = true;
    if (t->push)
        lli_stream_send(&t->link->stream, &t->job);
    else
        lli_stream_receive(&t->link->stream, &t->job);
}

static void
start(struct lli_task *task)
{
    struct transfer *t = LLI_CONTAINER_OF(task, struct transfer, start);
    struct lli_link *link = t->link;
    if (lli_link_is_broken(link)) {
        end(t, link->broken_status, link->broken_reason);
        return;
    }
    size_t bytes_max = lli_request_bytes(&t->request);
    uint8_t *bytes = bytes_max <= LLI_REQUEST_BODY_BYTES_MAX ? lli_malloc(bytes_max) : NULL;
    if (bytes == NULL) {
        end(t, bytes_max <= LLI_REQUEST_BODY_BYTES_MAX ? LLM_OUT_OF_MEMORY : LLM_PARAM_INVALID,
            "the list of blocks is too long for one request");
        return;
    }
    struct lli_writer w;
    lli_writer_init(&w, bytes, bytes_max);
    lli_request_write(&w, &t->request);
    lli_list_append(&link->transfers, &t->node);
    // The peer's bytes may arrive as soon as it has the request.
    if (!t->push && t->plan.total_bytes > 0)
        join_stream(t);
    lli_link_send(link, t->push ? LLI_PUSH : LLI_PULL, t->id, bytes, w.size);
    lli_free(bytes);
}

static void
cancel(struct lli_task *task)
{
    struct transfer *t = LLI_CONTAINER_OF(task, struct transfer, cancel);
    const char *text = "the time was up";
    if (t->ended || t->cancelled)
        return;
    t->cancelled = true;
    t->cancelled_tick = t->link->node->tick;
    lli_link_send(t->link, LLI_CANCEL, t->id, NULL, 0);
    // What is pulled is quiet now.  What is pushed lands at the peer: it must confirm.
    if (!t->push)
        stop_and_end(t, LLM_WAIT_PROC_TIMEOUT, text);
    else if (t->in_stream)
        lli_stream_cancel_send(&t->link->stream, &t->job);
}

static struct transfer *
find_transfer(struct lli_link *link, uint64_t id)
{
    LLI_LIST_FOR(node, &link->transfers) {
        struct transfer *t = LLI_LIST_ENTRY(node, struct transfer, node);
        if (t->id == id)
            return t;
    }
    return NULL;
}

bool
lli_transfers_message(struct lli_link *link, const struct lli_message_header *header,
                      struct lli_reader *body)
{
    struct transfer *t = find_transfer(link, header->transfer_id);
    struct lli_outcome outcome = {.status = LLM_WAIT_PROC_TIMEOUT, .text = "the time was up"};
    if (header->type == LLI_RESULT && !lli_outcome_read(body, &outcome))
        return false;
    // It may have been cancelled a moment ago.
    if (t == NULL)
        return true;
    switch (header->type) {
    case LLI_PUSH_ACCEPTED:
        if (!t->push || t->in_stream || t->plan.total_bytes == 0 || t->job.plan != NULL)
            return false;
        if (!t->cancelled)
            join_stream(t);
        return true;
    case LLI_RESULT:
        // Success of a push means that all bytes have landed, so all have left.
        if (outcome.status == LLM_SUCCESS && t->push && t->in_stream)
            return false;
        if (outcome.status == LLM_SUCCESS && !t->push && t->plan.total_bytes > 0)
            return false;
        stop_and_end(t, outcome.status, outcome.text);
        return true;
    case LLI_CANCELLED:
        if (!t->cancelled)
            return false;
        stop_and_end(t, outcome.status, outcome.text);
        return true;
    default:
        return false;
    }
}

void
lli_transfers_broken(struct lli_link *link, llm_status status)
{
    LLI_LIST_FOR(node, &link->transfers)
        end(LLI_LIST_ENTRY(node, struct transfer, node),
            LLI_LIST_ENTRY(node, struct transfer, node)->cancelled ? LLM_WAIT_PROC_TIMEOUT
                                                                   : status,
            link->broken_reason);
}

static struct lli_link *
find_unconfirmed(struct lli_node *node)
{
    struct lli_link *found = NULL;
    pthread_mutex_lock(&node->links_lock);
    LLI_LIST_FOR(item, &node->links) {
        struct lli_link *link = LLI_LIST_ENTRY(item, struct lli_link, in_table);
        LLI_LIST_FOR(inner, &link->transfers) {
            struct transfer *t = LLI_LIST_ENTRY(inner, struct transfer, node);
            if (found == NULL && t->cancelled &&
                node->tick - t->cancelled_tick > link->liveness_ticks) {
                found = link;
                lli_link_hold(link);
            }
        }
    }
    pthread_mutex_unlock(&node->links_lock);
    return found;
}

void
lli_transfers_tick(struct lli_node *node)
{
    for (struct lli_link *link; (link = find_unconfirmed(node)) != NULL;) {
        lli_link_break(link, LLM_WAIT_PROC_TIMEOUT, "the peer doesn't confirm a cancelled push");
        lli_link_put(link);
    }
}

static llm_status
plan_own_side(const struct lli_transfer_args *args, struct lli_plan *ret_plan)
{
    uint64_t stride = args->cache->geometry.stride;
    if (args->kind == LLI_REQUEST_SLOT)
        return lli_plan_slot(ret_plan, num_local_tensors(args), args->local_slot * stride,
                             args->local_slot * stride, args->bytes);
    struct lli_block_run *runs;
    size_t num_runs;
    LLI_TRY(lli_block_runs_merge(args->local_blocks, args->num_blocks, &runs, &num_runs));
    llm_status status = lli_plan_side(ret_plan, num_local_tensors(args), runs, num_runs, stride);
    lli_free(runs);
    return status;
}

// On one host the peer fetches what is pushed from our mapped memory.
static llm_status
describe_source(const struct lli_transfer_args *args, struct lli_request *request)
{
    request->fetch = true;
    request->source_cache_id = args->cache->id;
    request->source_first_tensor = args->local_first_tensor;
    request->source_slot = args->local_slot;
    if (args->kind == LLI_REQUEST_BLOCKS)
        return lli_block_runs_merge(args->local_blocks, args->num_blocks, &request->source_runs,
                                    &request->num_source_runs);
    return LLM_SUCCESS;
}

static llm_status
prepare(struct transfer *t, const struct lli_transfer_args *args)
{
    LLI_TRY(make_request(args, &t->request));
    if (t->link->view != NULL)
        return describe_source(args, &t->request);
    t->tensors = local_tensors(args);
    if (t->tensors == NULL)
        return no_memory();
    return plan_own_side(args, &t->plan);
}

static void
wait_for_end(struct transfer *t, uint64_t deadline_ns)
{
    bool in_time = true;
    pthread_mutex_lock(&t->lock);
    while (!t->done && in_time)
        in_time = lli_cond_wait_until(&t->ended_cond, &t->lock, deadline_ns);
    bool must_cancel = !t->done;
    pthread_mutex_unlock(&t->lock);
    if (must_cancel)
        lli_loop_post(t->link->node->loop, &t->cancel);
    pthread_mutex_lock(&t->lock);
    while (!t->done)
        pthread_cond_wait(&t->ended_cond, &t->lock);
    pthread_mutex_unlock(&t->lock);
    // The task may still be queued although the transfer has ended.
    if (must_cancel)
        lli_loop_flush(t->link->node->loop);
}

static llm_status
converse(struct lli_link *link, const struct lli_transfer_args *args)
{
    struct transfer t = {
        .link = link,
        .push = args->push,
        .start.run = start,
        .cancel.run = cancel,
    };
    // The two ends of a link number their transfers apart.
    t.id = atomic_fetch_add(&link->node->next_transfer, 1) * 2 + (link->connected_by_us ? 1 : 0);
    lli_list_init(&t.node);
    llm_status status = prepare(&t, args);
    if (status == LLM_SUCCESS) {
        pthread_mutex_init(&t.lock, NULL);
        lli_cond_init(&t.ended_cond);
        lli_loop_post(link->node->loop, &t.start);
        wait_for_end(&t, args->deadline_ns);
        status = t.status;
        if (status != LLM_SUCCESS)
            lli_fail(status, "transfer", "%s cluster %llu: %s", args->push ? "push to" : "pull from",
                     (unsigned long long)args->cluster_id, t.text);
        pthread_cond_destroy(&t.ended_cond);
        pthread_mutex_destroy(&t.lock);
    }
    lli_request_fini(&t.request);
    lli_plan_fini(&t.plan);
    lli_free(t.tensors);
    return status;
}

llm_status
lli_transfer_run(struct lli_node *node, const struct lli_transfer_args *args)
{
    struct lli_link *link;
    LLI_TRY(lli_links_acquire(node, args->cluster_id, &link));
    llm_status status = !args->push && link->view != NULL ? pull_mapped(link, args)
                                                          : converse(link, args);
    lli_links_release(link);
    return status;
}

#include "transfer/serve.h"

#include <stdio.h>

#include "base/log.h"
#include "base/mem.h"
#include "cache/keys.h"
#include "cache/leases.h"
#include "transfer/answer.h"
#include "transfer/copies.h"
#include "transfer/cuts.h"
#include "transfer/notify.h"
#include "transfer/request.h"

struct serve {
    struct lli_list node; // in link->serves
    struct lli_link *link;
    uint64_t id;
    struct lli_request request;
    struct lli_cache **caches; // num_caches, held
    size_t num_caches;
    struct lli_cache *only_cache; // where `caches` points to, unless there are several, by address
    uint64_t stride;              // of our side
    size_t num_devices;
    struct lli_lease *lease; // entered, or NULL
    struct lli_plan plan;
    uintptr_t *tensors;

    // Over tcp.
    struct lli_stream_job job;
    bool in_stream;
    bool tell_when_done; // the slot has a request key
    bool given_up;       // a pull whose last frames are leaving
    uint64_t given_up_tick;

    // On one host.
    bool fetching;
    struct lli_copy_job copy;
};

static void
free_serve(struct serve *serve)
{
    lli_list_remove(&serve->node);
    struct lli_registry *registry = serve->link->node->registry;
    if (serve->fetching)
        (void)lli_copies_cancel(&serve->copy);
    if (serve->lease != NULL)
        lli_leases_leave(registry, serve->lease);
    for (size_t i = 0; i < serve->num_caches; i++)
        lli_registry_put(registry, serve->caches[i]);
    if (serve->caches != &serve->only_cache)
        lli_free((void *)serve->caches);
    lli_plan_fini(&serve->plan);
    lli_free(serve->tensors);
    lli_request_fini(&serve->request);
    lli_free(serve);
}

static void
finish(struct serve *serve, llm_status status, const char *text)
{
    struct lli_link *link = serve->link;
    uint64_t id = serve->id;
    if (status == LLM_SUCCESS && serve->request.notification_bytes > 0 &&
        !lli_notifications_add(link->node->notifications, link->peer.cluster_id,
                               serve->request.notification, serve->request.notification_bytes)) {
        status = LLM_LINK_BUSY;
        text = "all bytes have arrived, but there was no room for the notification";
    }
    if (status != LLM_SUCCESS)
        lli_log(LLM_LOG_INFO, "transfer", "a %s of cluster %llu was answered with %s: %s",
                serve->request.push ? "push" : "pull", (unsigned long long)link->peer.cluster_id,
                llm_status_name(status), text);
    free_serve(serve);
    lli_link_send_outcome(link, LLI_RESULT, id, status, text);
}

static struct serve *
find_serve(struct lli_link *link, uint64_t id)
{
    LLI_LIST_FOR(node, &link->serves) {
        struct serve *serve = LLI_LIST_ENTRY(node, struct serve, node);
        if (serve->id == id)
            return serve;
    }
    return NULL;
}

// ---- over tcp ----

static void
stream_done(struct lli_stream_job *job)
{
    struct serve *serve = LLI_CONTAINER_OF(job, struct serve, job);
    serve->in_stream = false;
    char why[LLI_REASON_BYTES];
    if (job->is_corrupt)
        finish(serve,
               lli_source_describe_mismatch(&serve->plan, job->corrupt_position, why, sizeof(why)),
               why);
    else if (serve->request.push)
        finish(serve, LLM_SUCCESS, "");
    else
        // The puller counts the bytes itself.
        free_serve(serve);
}

static void
join_stream(struct serve *serve)
{
    struct lli_link *link = serve->link;
    serve->job = (struct lli_stream_job){
        .id = serve->id,
        .plan = &serve->plan,
        .tensors = serve->tensors,
        .is_source = !serve->request.push,
        .holes = link->node->holes,
        .start_position = serve->request.start_position,
        .flags = serve->tell_when_done ? LLI_FLAG_TELL_WHEN_DONE : 0,
        .done = stream_done,
    };
    lli_list_init(&serve->job.node);
    serve->in_stream = true;
    if (serve->request.push) {
        lli_stream_receive(&link->stream, &serve->job);
        lli_link_send(link, LLI_PUSH_ACCEPTED, serve->id, NULL, 0);
    } else {
        lli_stream_send(&link->stream, &serve->job);
    }
}

static llm_status
check_start(const struct serve *serve, char *why, size_t why_size)
{
    if (serve->request.start_position <= serve->plan.total_bytes)
        return LLM_SUCCESS;
    snprintf(why, why_size, "the transfer goes on at byte %llu, it has %llu",
             (unsigned long long)serve->request.start_position,
             (unsigned long long)serve->plan.total_bytes);
    return LLM_PARAM_INVALID;
}

static llm_status
begin_stream(struct serve *serve, char *why, size_t why_size)
{
    if (serve->link->stream.num_conns == 0) {
        snprintf(why, why_size, "this link has no data connections: link again");
        return LLM_FAILED;
    }
    llm_status status =
        lli_request_plan(&serve->request, serve->stride, serve->num_devices, &serve->plan);
    if (status != LLM_SUCCESS) {
        llm_last_error(why, why_size);
        return status;
    }
    status = check_start(serve, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    if (serve->plan.total_bytes == serve->request.start_position)
        finish(serve, LLM_SUCCESS, "");
    else
        join_stream(serve);
    return LLM_SUCCESS;
}

// ---- on one host ----

// What to read from the pusher, as a request to it.
static struct lli_request
mirror(const struct lli_request *request)
{
    return (struct lli_request){
        .kind = request->kind,
        .cache_id = request->source_cache_id,
        .first_tensor = request->source_first_tensor,
        .num_tensors = request->num_tensors,
        .stride = request->stride,
        .slot = request->source_slot,
        .bytes = request->bytes,
        .runs = request->source_runs,
        .num_runs = request->num_source_runs,
    };
}

static llm_status
plan_fetch(struct serve *serve)
{
    const struct lli_request *request = &serve->request;
    uint64_t num_tensors = (uint64_t)request->num_tensors * serve->num_devices;
    if (request->kind == LLI_REQUEST_SLOT)
        return lli_plan_slot(&serve->plan, num_tensors,
                             request->source_slot * serve->copy.source.remote.geometry.stride,
                             request->slot * serve->stride + request->offset, request->bytes);
    return lli_plan_pairs(&serve->plan, num_tensors, request->source_runs, request->num_source_runs,
                          request->runs, request->num_runs, serve->stride);
}

static void
fetch_done(struct lli_copy_job *job, llm_status status, const char *text)
{
    struct serve *serve = LLI_CONTAINER_OF(job, struct serve, copy);
    serve->fetching = false;
    // Before the outcome: the pusher goes another way then.
    if (status != LLM_SUCCESS)
        lli_link_tell_lost_reading(serve->link);
    finish(serve, status, text);
}

static llm_status
begin_fetch(struct serve *serve, char *why, size_t why_size)
{
    struct lli_request source_request = mirror(&serve->request);
    if (serve->link->view == NULL) {
        snprintf(why, why_size, "this link has no mapped memory");
        return LLM_FAILED;
    }
    llm_status status =
        lli_source_open(serve->link, &source_request, &serve->copy.source, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    lli_list_init(&serve->copy.node);
    serve->copy.done = fetch_done;
    serve->fetching = true;
    status = plan_fetch(serve);
    if (status != LLM_SUCCESS) {
        llm_last_error(why, why_size);
        return status;
    }
    status = check_start(serve, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    lli_copies_add(serve->link->node, &serve->copy, &serve->plan, serve->tensors,
                   serve->request.start_position);
    return LLM_SUCCESS;
}

// ---- requests ----

static llm_status
no_memory(char *why, size_t why_size)
{
    snprintf(why, why_size, "the peer is out of memory");
    return LLM_OUT_OF_MEMORY;
}

static llm_status
find_tensors(struct serve *serve, const struct lli_cache *cache, char *why, size_t why_size)
{
    uint32_t num_tensors = serve->request.num_tensors;
    serve->tensors = lli_malloc((size_t)num_tensors * cache->num_devices * sizeof(*serve->tensors));
    if (serve->tensors == NULL)
        return no_memory(why, why_size);
    for (size_t device = 0; device < cache->num_devices; device++) {
        for (uint32_t i = 0; i < num_tensors; i++)
            serve->tensors[device * num_tensors + i] =
                cache->addresses[device * cache->geometry.num_tensors +
                                 serve->request.first_tensor + i];
    }
    return LLM_SUCCESS;
}

static llm_status
enter_lease(struct serve *serve, struct lli_cache *cache, uint64_t lease, char *why,
            size_t why_size)
{
    const struct lli_request *request = &serve->request;
    uint64_t first = request->kind == LLI_REQUEST_SLOT ? request->slot : UINT64_MAX;
    uint64_t last = request->kind == LLI_REQUEST_SLOT ? request->slot : 0;
    for (size_t i = 0; i < request->num_runs; i++) {
        first = lli_min(first, request->runs[i].first);
        last = lli_max(last, request->runs[i].first + request->runs[i].count - 1);
    }
    if (lease == 0)
        return LLM_SUCCESS;
    serve->lease =
        lli_leases_enter(serve->link->node->registry, lease, cache, first, last - first + 1);
    if (serve->lease == NULL) {
        snprintf(why, why_size,
                 "generation %llu is not that of cache %lld, nor of a lease on those blocks",
                 (unsigned long long)lease, (long long)cache->id);
        return LLM_CACHE_STALE;
    }
    return LLM_SUCCESS;
}

// By id or by key.
static llm_status
find_cache(struct serve *serve, char *why, size_t why_size)
{
    struct lli_node *node = serve->link->node;
    struct lli_cache *cache;
    uint64_t lease;
    llm_status status = lli_answer_find(node, &serve->request, &cache, &lease, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    serve->only_cache = cache;
    serve->num_caches = 1;
    serve->stride = cache->geometry.stride;
    serve->num_devices = cache->num_devices;
    status = lli_request_check(&serve->request, &cache->geometry, why, why_size);
    if (status == LLM_SUCCESS)
        status = enter_lease(serve, cache, lease, why, why_size);
    if (status == LLM_SUCCESS)
        status = lli_request_check_type(&serve->request, cache->geometry.data_type, why, why_size);
    if (status == LLM_SUCCESS)
        status = find_tensors(serve, cache, why, why_size);
    serve->tell_when_done = serve->request.kind == LLI_REQUEST_SLOT && !serve->request.push &&
                            lli_keys_slot_has_request(node->registry, cache, serve->request.slot);
    return status;
}

// The bytes behind an address that a push touches; false if they are more than can be counted.
static bool
find_span(const struct lli_request *request, uint64_t *ret_bytes)
{
    uint64_t end = 0;
    if (request->kind == LLI_REQUEST_SLOT) {
        *ret_bytes = request->bytes;
        return true;
    }
    for (size_t i = 0; i < request->num_runs; i++) {
        uint64_t run_end;
        if (lli_add_overflow(request->runs[i].first, request->runs[i].count, &run_end))
            return false;
        end = lli_max(end, run_end);
    }
    return !lli_mul_overflow(end, request->stride, ret_bytes);
}

// As many as there were bytes for in the message.
static llm_status
find_addresses(struct serve *serve, char *why, size_t why_size)
{
    struct lli_registry *registry = serve->link->node->registry;
    const struct lli_request *request = &serve->request;
    uint64_t bytes = UINT64_MAX;
    bool known = find_span(request, &bytes);
    if (request->num_tensors > LLM_ADDRS_MAX) {
        snprintf(why, why_size, "%u addresses are named, at most %d in one request",
                 request->num_tensors, LLM_ADDRS_MAX);
        return LLM_PARAM_INVALID;
    }
    struct lli_cache **caches = lli_calloc(request->num_tensors, sizeof(struct lli_cache *));
    serve->tensors = lli_malloc(request->num_tensors * sizeof(*serve->tensors));
    if (caches != NULL)
        serve->caches = caches;
    if (caches == NULL || serve->tensors == NULL)
        return no_memory(why, why_size);
    serve->request.slot = serve->request.offset = 0;
    serve->stride = request->stride;
    serve->num_devices = 1;
    for (uint32_t i = 0; i < request->num_tensors; i++) {
        struct lli_cache *cache =
            known ? lli_registry_hold_range(registry, request->addresses[i], bytes,
                                            lli_request_data_type(request))
                  : NULL;
        if (cache == NULL) {
            snprintf(why, why_size, "no cache there holds the %llu bytes at address %#llx",
                     (unsigned long long)bytes, (unsigned long long)request->addresses[i]);
            return LLM_PARAM_INVALID;
        }
        serve->caches[serve->num_caches++] = cache;
        serve->tensors[i] = request->addresses[i];
    }
    llm_status status = LLM_SUCCESS;
    for (size_t i = 0; i < serve->num_caches && status == LLM_SUCCESS; i++)
        status =
            lli_request_check_type(request, serve->caches[i]->geometry.data_type, why, why_size);
    return status;
}

// Takes up a request.  On failure the caller answers.
static llm_status
begin(struct serve *serve, char *why, size_t why_size)
{
    struct lli_link *link = serve->link;
    llm_status status = serve->request.by == LLI_BY_ADDRESS ? find_addresses(serve, why, why_size)
                                                            : find_cache(serve, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    if (serve->request.notification_bytes > 0 &&
        !lli_notifications_have_room(link->node->notifications, link->peer.cluster_id)) {
        snprintf(why, why_size, "its application doesn't poll its notifications");
        return LLM_LINK_BUSY;
    }
    return serve->request.fetch ? begin_fetch(serve, why, why_size)
                                : begin_stream(serve, why, why_size);
}

static bool
is_crowded(const struct lli_link *link)
{
    size_t count = 0;
    size_t num_runs = 0;
    LLI_LIST_FOR(node, &link->serves) {
        const struct serve *serve = LLI_LIST_ENTRY(node, struct serve, node);
        count++;
        num_runs += serve->request.num_runs + serve->request.num_source_runs;
    }
    return count >= LLI_SERVES_PER_LINK_MAX || num_runs >= LLI_RUNS_PER_LINK_MAX;
}

static bool
take_request(struct lli_link *link, const struct lli_message_header *header,
             struct lli_reader *body)
{
    char why[LLI_REASON_BYTES];
    if (find_serve(link, header->transfer_id) != NULL)
        return false;
    // The peer may know of the end of a pull before the thread that sent its last bytes has said so.
    if (is_crowded(link))
        lli_stream_settle(&link->stream);
    struct serve *serve = is_crowded(link) ? NULL : lli_calloc(1, sizeof(*serve));
    if (serve == NULL) {
        lli_link_send_outcome(link, LLI_RESULT, header->transfer_id, LLM_LINK_BUSY,
                              "too many transfers on this link, or out of memory");
        return true;
    }
    lli_list_init(&serve->node);
    serve->link = link;
    serve->caches = &serve->only_cache;
    serve->id = header->transfer_id;
    // Only what is pushed is fetched: a pull must not write here.
    if (!lli_request_read(body, header->type == LLI_PUSH, &serve->request) ||
        ((serve->request.fetch || serve->request.by == LLI_BY_ADDRESS) && !serve->request.push)) {
        free_serve(serve);
        return false;
    }
    lli_list_append(&link->serves, &serve->node);
    llm_status status = begin(serve, why, sizeof(why));
    if (status != LLM_SUCCESS)
        finish(serve, status, why);
    return true;
}

// What a push has brought so far, for whoever goes on with it.
static void
keep_cut(struct serve *serve)
{
    uint64_t arrived = 0;
    if (serve->in_stream)
        arrived = lli_stream_arrived(&serve->link->stream, &serve->job);
    else if (serve->fetching && lli_source_is_good(&serve->copy.source))
        arrived = serve->copy.copy.position;
    if (serve->request.push && serve->num_caches == 1 && arrived > 0)
        lli_cuts_add(serve->link->node, serve->link->peer.incarnation, serve->id,
                     serve->caches[0]->generation, arrived);
}

static void
cancel(struct lli_link *link, uint64_t id)
{
    struct serve *serve = find_serve(link, id);
    bool push = serve == NULL || serve->request.push;
    if (serve != NULL && serve->in_stream && !serve->request.push) {
        // Ends when the frames that have begun are out.
        lli_stream_cancel_send(&link->stream, &serve->job);
    } else if (serve != NULL) {
        if (serve->in_stream)
            lli_stream_cancel_receive(&link->stream, &serve->job);
        keep_cut(serve);
        free_serve(serve);
    }
    // Also when it had ended already: the answer to a cancel is always a confirmation.
    if (push)
        lli_link_send(link, LLI_CANCELLED, id, NULL, 0);
}

// A notification of a pull that has ended.
static bool
take_notification(struct lli_link *link, struct lli_reader *body)
{
    if (body->size == 0 || body->size > LLM_NOTIFICATION_BYTES_MAX)
        return false;
    if (lli_notifications_add(link->node->notifications, link->peer.cluster_id, body->bytes,
                              body->size))
        return true;
    // Said of the first, the second, the fourth, ...: a peer can't fill the log.
    uint64_t dropped = ++link->notes_dropped;
    if ((dropped & (dropped - 1)) == 0)
        lli_log(LLM_LOG_WARN, "transfer",
                "%llu notification(s) of cluster %llu dropped: there is no room, poll more often",
                (unsigned long long)dropped, (unsigned long long)link->peer.cluster_id);
    return true;
}

bool
lli_serves_message(struct lli_link *link, const struct lli_message_header *header,
                   struct lli_reader *body)
{
    switch (header->type) {
    case LLI_PULL:
    case LLI_PUSH:
        return take_request(link, header, body);
    case LLI_CANCEL:
        cancel(link, header->transfer_id);
        return true;
    case LLI_NOTIFY:
        return take_notification(link, body);
    default:
        return false;
    }
}

void
lli_serves_broken(struct lli_link *link)
{
    LLI_LIST_FOR(node, &link->serves) {
        struct serve *serve = LLI_LIST_ENTRY(node, struct serve, node);
        keep_cut(serve);
        free_serve(serve);
    }
}

// ---- time ----

static bool
is_overdue(const struct serve *serve)
{
    // A frame that has begun gets the time of a tick or two, if the peer reads at all.
    if (serve->given_up && serve->link->node->tick - serve->given_up_tick < 2)
        return false;
    for (size_t i = 0; i < serve->num_caches; i++) {
        if (atomic_load(&serve->caches[i]->overdue))
            return true;
    }
    return serve->lease != NULL && lli_leases_is_overdue(serve->lease);
}

static struct serve *
find_overdue(struct lli_node *node)
{
    struct serve *found = NULL;
    pthread_mutex_lock(&node->links_lock);
    LLI_LIST_FOR(item, &node->links) {
        struct lli_link *link = LLI_LIST_ENTRY(item, struct lli_link, in_table);
        LLI_LIST_FOR(inner, &link->serves) {
            struct serve *serve = LLI_LIST_ENTRY(inner, struct serve, node);
            if (is_overdue(serve))
                found = serve;
        }
    }
    pthread_mutex_unlock(&node->links_lock);
    return found;
}

static void
give_up(struct serve *serve)
{
    struct lli_link *link = serve->link;
    char why[LLI_REASON_BYTES];
    if (serve->given_up) {
        // A frame that has begun can't be taken back, and the peer doesn't read it.
        snprintf(why, sizeof(why),
                 "cache %lld was freed or unregistered, or its lease has ended, and the peer takes "
                 "too long to read the rest of it",
                 (long long)serve->caches[0]->id);
        lli_link_break(link, LLM_FAILED, why);
        return;
    }
    llm_status status = serve->request.generation != 0 ? LLM_CACHE_STALE : LLM_KV_CACHE_NOT_EXIST;
    snprintf(why, sizeof(why),
             "cluster %llu freed or unregistered the cache, or ended its lease, during the "
             "transfer",
             (unsigned long long)link->node->identity.cluster_id);
    if (serve->in_stream && !serve->request.push) {
        serve->given_up = true;
        serve->given_up_tick = link->node->tick;
        lli_link_send_outcome(link, LLI_RESULT, serve->id, status, why);
        lli_stream_cancel_send(&link->stream, &serve->job);
        return;
    }
    if (serve->in_stream)
        lli_stream_cancel_receive(&link->stream, &serve->job);
    finish(serve, status, why);
}

void
lli_serves_tick(struct lli_node *node)
{
    for (struct serve *serve; (serve = find_overdue(node)) != NULL;)
        give_up(serve);
}

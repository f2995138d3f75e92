#include "transfer/serve.h"

#include <stdio.h>

#include "base/log.h"
#include "base/mem.h"
#include "transfer/copies.h"
#include "transfer/notify.h"
#include "transfer/request.h"

// What a peer may have asked for at a time; a request of runs alone may take 64 MiB.
enum { SERVES_PER_LINK_MAX = 1024, RUNS_PER_LINK_MAX = 4 << 20 };

struct serve {
    struct lli_list node; // in link->serves
    struct lli_link *link;
    uint64_t id;
    struct lli_request request;
    struct lli_cache *cache; // held
    struct lli_plan plan;
    uintptr_t *tensors;

    // Over tcp.
    struct lli_stream_job job;
    bool in_stream;

    // On one host.
    bool fetching;
    struct lli_copy_job copy;
};

static void
free_serve(struct serve *serve)
{
    lli_list_remove(&serve->node);
    if (serve->fetching)
        lli_copies_cancel(&serve->copy);
    if (serve->cache != NULL)
        lli_registry_put(serve->link->node->registry, serve->cache);
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
    if (serve->request.push)
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
begin_stream(struct serve *serve, char *why, size_t why_size)
{
    if (serve->link->stream.num_conns == 0) {
        snprintf(why, why_size, "this link has no data connections");
        return LLM_FAILED;
    }
    llm_status status = lli_request_plan(&serve->request, &serve->cache->geometry,
                                         serve->cache->num_devices, &serve->plan);
    if (status != LLM_SUCCESS) {
        llm_last_error(why, why_size);
        return status;
    }
    if (serve->plan.total_bytes == 0)
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
    const struct lli_geometry *geometry = &serve->cache->geometry;
    uint64_t num_tensors = (uint64_t)request->num_tensors * serve->cache->num_devices;
    if (request->kind == LLI_REQUEST_SLOT)
        return lli_plan_slot(&serve->plan, num_tensors,
                             request->source_slot * serve->copy.source.remote.geometry.stride,
                             request->slot * geometry->stride, request->bytes);
    return lli_plan_pairs(&serve->plan, num_tensors, request->source_runs, request->num_source_runs,
                          request->runs, request->num_runs, geometry->stride);
}

static void
fetch_done(struct lli_copy_job *job, llm_status status, const char *text)
{
    struct serve *serve = LLI_CONTAINER_OF(job, struct serve, copy);
    serve->fetching = false;
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
    lli_copies_add(serve->link->node, &serve->copy, &serve->plan, serve->tensors);
    return LLM_SUCCESS;
}

// ---- requests ----

static llm_status
find_tensors(struct serve *serve)
{
    const struct lli_cache *cache = serve->cache;
    uint32_t num_tensors = serve->request.num_tensors;
    serve->tensors = lli_malloc((size_t)num_tensors * cache->num_devices * sizeof(*serve->tensors));
    if (serve->tensors == NULL)
        return LLM_OUT_OF_MEMORY;
    for (size_t device = 0; device < cache->num_devices; device++) {
        for (uint32_t i = 0; i < num_tensors; i++)
            serve->tensors[device * num_tensors + i] =
                cache->addresses[device * cache->geometry.num_tensors +
                                 serve->request.first_tensor + i];
    }
    return LLM_SUCCESS;
}

// Takes up a request.  On failure the caller answers.
static llm_status
begin(struct serve *serve, char *why, size_t why_size)
{
    struct lli_link *link = serve->link;
    serve->cache = lli_registry_hold(link->node->registry, serve->request.cache_id);
    if (serve->cache == NULL) {
        snprintf(why, why_size, "cluster %llu has no cache with id %lld",
                 (unsigned long long)link->node->identity.cluster_id,
                 (long long)serve->request.cache_id);
        return LLM_KV_CACHE_NOT_EXIST;
    }
    if (serve->request.notification_bytes > 0 &&
        !lli_notifications_have_room(link->node->notifications)) {
        snprintf(why, why_size, "its application doesn't poll its notifications");
        return LLM_LINK_BUSY;
    }
    llm_status status = lli_request_check(&serve->request, &serve->cache->geometry, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    status = find_tensors(serve);
    if (status != LLM_SUCCESS) {
        snprintf(why, why_size, "the peer is out of memory");
        return status;
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
    return count >= SERVES_PER_LINK_MAX || num_runs >= RUNS_PER_LINK_MAX;
}

static bool
take_request(struct lli_link *link, const struct lli_message_header *header,
             struct lli_reader *body)
{
    char why[LLI_REASON_BYTES];
    if (find_serve(link, header->transfer_id) != NULL)
        return false;
    struct serve *serve = is_crowded(link) ? NULL : lli_calloc(1, sizeof(*serve));
    if (serve == NULL) {
        lli_link_send_outcome(link, LLI_RESULT, header->transfer_id, LLM_LINK_BUSY,
                              "too many transfers on this link, or out of memory");
        return true;
    }
    lli_list_init(&serve->node);
    serve->link = link;
    serve->id = header->transfer_id;
    // Only what is pushed is fetched: a pull must not write here.
    if (!lli_request_read(body, header->type == LLI_PUSH, &serve->request) ||
        (serve->request.fetch && !serve->request.push)) {
        free_serve(serve);
        return false;
    }
    lli_list_append(&link->serves, &serve->node);
    llm_status status = begin(serve, why, sizeof(why));
    if (status != LLM_SUCCESS)
        finish(serve, status, why);
    return true;
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
    if (!lli_notifications_add(link->node->notifications, link->peer.cluster_id, body->bytes,
                               body->size))
        lli_log(LLM_LOG_WARN, "transfer",
                "a notification of cluster %llu was dropped: there is no room, poll more often",
                (unsigned long long)link->peer.cluster_id);
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
    LLI_LIST_FOR(node, &link->serves)
        free_serve(LLI_LIST_ENTRY(node, struct serve, node));
}

// ---- time ----

static struct serve *
find_overdue(struct lli_node *node)
{
    struct serve *found = NULL;
    pthread_mutex_lock(&node->links_lock);
    LLI_LIST_FOR(item, &node->links) {
        struct lli_link *link = LLI_LIST_ENTRY(item, struct lli_link, in_table);
        LLI_LIST_FOR(inner, &link->serves) {
            struct serve *serve = LLI_LIST_ENTRY(inner, struct serve, node);
            if (atomic_load(&serve->cache->overdue))
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
    if (serve->in_stream && !serve->request.push && serve->job.num_frames > 0) {
        // A frame that has begun can't be taken back, and the peer doesn't read it.
        snprintf(why, sizeof(why),
                 "cache %lld was unregistered, and the peer takes too long to read the rest of it",
                 (long long)serve->cache->id);
        lli_link_break(link, LLM_FAILED, why);
        return;
    }
    snprintf(why, sizeof(why), "cluster %llu unregistered the cache during the transfer",
             (unsigned long long)link->node->identity.cluster_id);
    if (serve->in_stream && !serve->request.push) {
        lli_link_send_outcome(link, LLI_RESULT, serve->id, LLM_KV_CACHE_NOT_EXIST, why);
        lli_stream_cancel_send(&link->stream, &serve->job);
        return;
    }
    if (serve->in_stream)
        lli_stream_cancel_receive(&link->stream, &serve->job);
    finish(serve, LLM_KV_CACHE_NOT_EXIST, why);
}

void
lli_serves_tick(struct lli_node *node)
{
    for (struct serve *serve; (serve = find_overdue(node)) != NULL;)
        give_up(serve);
}

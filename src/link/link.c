#include "link/link.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "link/connect.h"
#include "link/events.h"
#include "link/paths.h"

// What a PING says, where other messages name a transfer.
// Readers skip what they don't know.
enum { PING_ALIVE = 0, PING_ANSWER_ME = 1, PING_CANT_READ = 2 };

void
lli_node_open(struct lli_node *node, uint32_t tick_ms)
{
    pthread_mutex_init(&node->links_lock, NULL);
    lli_cond_init(&node->links_changed);
    lli_cond_init(&node->linking_ended);
    lli_list_init(&node->links);
    lli_list_init(&node->events);
    lli_list_init(&node->pending);
    lli_list_init(&node->strangers);
    lli_list_init(&node->paused);
    lli_list_init(&node->copies);
    lli_list_init(&node->copies_waiting);
    lli_list_init(&node->cuts);
    lli_list_init(&node->started);
    node->tick_ms = tick_ms;
    node->num_asides = 0;
    node->closing = false;
    node->reserve_fd = lli_keep_fd(LLI_RETRY(open("/dev/null", O_RDONLY | O_CLOEXEC)));
}

void
lli_node_close(struct lli_node *node)
{
    if (node->reserve_fd >= 0)
        close(node->reserve_fd);
    lli_events_forget_all(node);
    pthread_cond_destroy(&node->linking_ended);
    pthread_cond_destroy(&node->links_changed);
    pthread_mutex_destroy(&node->links_lock);
}

static void
on_stream_failed(struct lli_stream *stream, const char *why)
{
    lli_link_break(stream->owner, LLM_FAILED, why);
}

struct lli_link *
lli_link_new(struct lli_node *node, const struct lli_identity *peer)
{
    size_t num_devices = node->options->num_devices;
    struct lli_link *link = lli_calloc(1, sizeof(*link));
    if (link == NULL)
        return NULL;
    link->node = node;
    atomic_init(&link->references, 1);
    link->peer = *peer;
    link->checksum = node->options->checksum || peer->checksum != 0;
    link->local = lli_calloc(num_devices, sizeof(*link->local));
    link->remote = lli_calloc(num_devices, sizeof(*link->remote));
    link->devices = lli_calloc(num_devices, sizeof(struct lli_conn *));
    lli_list_init(&link->in_table);
    lli_list_init(&link->events);
    lli_list_init(&link->transfers);
    lli_list_init(&link->waiting);
    lli_list_init(&link->serves);
    lli_list_init(&link->asks);
    lli_stream_init(&link->stream, node->lanes, link, on_stream_failed);
    link->stream.checked = link->checksum;
    link->stream.peer_probes = (peer->transports & LLI_PROBES) != 0;
    if (!lli_events_prepare(link, LLI_EVENTS_OF_EVERY_LINK) || link->local == NULL ||
        link->remote == NULL || link->devices == NULL) {
        lli_link_put(link);
        return NULL;
    }
    return link;
}

void
lli_link_hold(struct lli_link *link)
{
    atomic_fetch_add(&link->references, 1);
}

void
lli_link_put(struct lli_link *link)
{
    if (atomic_fetch_sub(&link->references, 1) > 1)
        return;
    lli_stream_fini(&link->stream);
    lli_view_unmap(link->view);
    lli_events_unprepare(link);
    lli_free(link->local);
    lli_free(link->remote);
    lli_free((void *)link->devices);
    lli_free(link);
}

// ---- connections (loop's thread) ----

static bool
lacks_data_now(struct lli_link *link)
{
    pthread_mutex_lock(&link->node->links_lock);
    if (!link->broken)
        link->lacks_data = link->stream.num_conns == 0;
    bool lacks_data = link->lacks_data;
    pthread_mutex_unlock(&link->node->links_lock);
    return lacks_data;
}

static void
on_cant_read(struct lli_link *link)
{
    if (link->view != NULL && atomic_exchange(&link->peer_can_read, false) && lacks_data_now(link))
        lli_link_renew_aside(link);
}

static void
on_message(struct lli_conn *conn, const struct lli_message_header *header, struct lli_reader *body)
{
    struct lli_link *link = conn->owner;
    if (header->type != LLI_PING)
        link->node->on_message(link, header, body);
    else if (header->transfer_id == PING_ANSWER_ME)
        lli_link_send(link, LLI_PING, PING_ALIVE, NULL, 0);
    else if (header->transfer_id == PING_CANT_READ)
        on_cant_read(link);
}

static void
on_closed(struct lli_conn *conn, const char *why)
{
    lli_link_break(conn->owner, LLM_FAILED, why);
}

void
lli_link_attach(struct lli_link *link, uint32_t device_index, struct lli_conn *conn)
{
    conn->owner = link;
    conn->on_message = on_message;
    conn->on_closed = on_closed;
    conn->body_bytes_max = LLI_REQUEST_BODY_BYTES_MAX;
    conn->must_be_sealed = link->checksum;
    if (device_index == 0)
        link->control = conn;
    else
        link->devices[device_index - 1] = conn;
}

static void
close_connections(struct lli_link *link)
{
    // When the peer hears of it, its pushes end: nothing may land here any more.
    lli_stream_stop(&link->stream);
    // The peer must hear of it now, while the view holds the connection still.
    if (link->view != NULL && link->view->life_line >= 0)
        shutdown(link->view->life_line, SHUT_RDWR);
    if (link->control != NULL)
        lli_conn_close(link->control);
    link->control = NULL;
    for (size_t i = 0; i + 1 < link->node->options->num_devices; i++) {
        if (link->devices[i] != NULL)
            lli_conn_close(link->devices[i]);
        link->devices[i] = NULL;
    }
    lli_stream_close(&link->stream);
}

void
lli_link_send(struct lli_link *link, enum lli_message_type type, uint64_t transfer_id,
              const void *body, size_t body_bytes)
{
    if (link->control == NULL)
        return;
    link->sent_tick = link->node->tick;
    lli_conn_send(link->control, type, transfer_id, body, body_bytes);
}

void
lli_link_send_outcome(struct lli_link *link, enum lli_message_type type, uint64_t transfer_id,
                      llm_status status, const char *text)
{
    uint8_t bytes[LLI_REASON_BYTES + 16];
    struct lli_outcome outcome = {.status = status};
    struct lli_writer w;
    snprintf(outcome.text, sizeof(outcome.text), "%s", text);
    lli_writer_init(&w, bytes, sizeof(bytes));
    lli_outcome_write(&w, &outcome);
    lli_link_send(link, type, transfer_id, bytes, w.size);
}

void
lli_link_break(struct lli_link *link, llm_status status, const char *why)
{
    struct lli_node *node = link->node;
    pthread_mutex_lock(&node->links_lock);
    bool first = !link->broken;
    // A peer that has been told to unlink closes its end.
    llm_log_level level = link->unlinking ? LLM_LOG_DEBUG : LLM_LOG_WARN;
    if (first) {
        link->broken = true;
        link->broken_status = status;
        snprintf(link->broken_reason, sizeof(link->broken_reason), "%s", why);
        if (!lli_list_empty(&link->in_table) && !link->unlinking)
            lli_events_add_locked(link, LLM_LINK_BROKEN);
    }
    // Whoever waits for an answer to an unlink won't get one.
    pthread_cond_broadcast(&node->links_changed);
    pthread_mutex_unlock(&node->links_lock);
    if (!first)
        return;
    lli_log(level, "link", "the link to cluster %llu is broken: %s",
            (unsigned long long)link->peer.cluster_id, why);
    close_connections(link);
    node->on_broken(link, status);
}

bool
lli_link_is_broken(struct lli_link *link)
{
    pthread_mutex_lock(&link->node->links_lock);
    bool broken = link->broken;
    pthread_mutex_unlock(&link->node->links_lock);
    return broken;
}

void
lli_link_tell_lost_reading(struct lli_link *link)
{
    if (link->view == NULL || link->view->can_read || link->told_lost_reading)
        return;
    link->told_lost_reading = true;
    lli_link_send(link, LLI_PING, PING_CANT_READ, NULL, 0);
}

static void
lost_reading(struct lli_task *task)
{
    struct lli_link *link = LLI_CONTAINER_OF(task, struct lli_link, lost_reading);
    lli_link_tell_lost_reading(link);
    if (lacks_data_now(link))
        lli_link_renew_aside(link);
    lli_link_put(link);
}

void
lli_link_lost_reading(struct lli_link *link)
{
    bool first = atomic_exchange(&link->view->can_read, false);
    (void)lacks_data_now(link);
    if (!first)
        return;
    lli_link_hold(link);
    link->lost_reading.run = lost_reading;
    lli_loop_post(link->node->loop, &link->lost_reading);
}

bool
lli_link_is_ready(struct lli_link *link)
{
    pthread_mutex_lock(&link->node->links_lock);
    bool ready = !link->broken && !link->suspect;
    pthread_mutex_unlock(&link->node->links_lock);
    return ready;
}

// ---- the table ----

static struct lli_link *
find_locked(struct lli_node *node, uint64_t cluster_id)
{
    LLI_LIST_FOR(item, &node->links) {
        struct lli_link *link = LLI_LIST_ENTRY(item, struct lli_link, in_table);
        if (link->peer.cluster_id == cluster_id)
            return link;
    }
    return NULL;
}

void
lli_links_insert(struct lli_link *link)
{
    struct lli_node *node = link->node;
    pthread_mutex_lock(&node->links_lock);
    struct lli_link *stale = find_locked(node, link->peer.cluster_id);
    if (stale != NULL)
        lli_link_hold(stale);
    pthread_mutex_unlock(&node->links_lock);
    if (stale != NULL) {
        lli_log(LLM_LOG_INFO, "link", "cluster %llu has come back: its old link is replaced",
                (unsigned long long)link->peer.cluster_id);
        lli_links_remove_here(stale);
        lli_link_put(stale);
    }

    lli_link_hold(link);
    link->heard_tick = link->sent_tick = node->tick;
    // Both ends beat as often as the more patient one needs it.  One more: the first may come at once.
    // No peer can ask for more patience than an option can.
    link->liveness_ms = (uint32_t)lli_max(node->options->liveness_ms,
                                          lli_min(link->peer.liveness_ms, LLI_LIVENESS_MS_MAX));
    link->liveness_ticks = link->liveness_ms / node->tick_ms + 1;
    link->dead_ticks = lli_max(node->options->dead_ms, link->liveness_ms) / node->tick_ms + 1;
    lli_paths_begin(link);
    if (link->view != NULL && link->control != NULL)
        lli_view_hold_life_line(link->view, link->control->source.fd);
    pthread_mutex_lock(&node->links_lock);
    lli_list_append(&node->links, &link->in_table);
    lli_events_add_locked(link, LLM_LINK_READY);
    pthread_cond_broadcast(&node->links_changed);
    pthread_mutex_unlock(&node->links_lock);
    lli_log(LLM_LOG_INFO, "link", "linked with cluster %llu over %s (%s)",
            (unsigned long long)link->peer.cluster_id, lli_transport_name(link->transport),
            link->reason);
}

llm_status
lli_links_acquire(struct lli_node *node, uint64_t cluster_id, struct lli_link **ret_link)
{
    llm_status status = LLM_SUCCESS;
    char why[LLI_REASON_BYTES] = "";
    pthread_mutex_lock(&node->links_lock);
    struct lli_link *link = find_locked(node, cluster_id);
    if (link == NULL) {
        status = LLM_NOT_YET_LINK;
    } else if (link->unlinking) {
        status = LLM_LINK_BUSY;
    } else if (link->broken) {
        status = link->broken_status;
        snprintf(why, sizeof(why), "%s", link->broken_reason);
    } else {
        link->num_active++;
        lli_link_hold(link);
        *ret_link = link;
    }
    pthread_mutex_unlock(&node->links_lock);
    if (status == LLM_NOT_YET_LINK)
        return lli_fail(status, "link", "there is no link to cluster %llu",
                        (unsigned long long)cluster_id);
    if (status == LLM_LINK_BUSY)
        return lli_fail(status, "link", "the link to cluster %llu is being unlinked",
                        (unsigned long long)cluster_id);
    if (status != LLM_SUCCESS)
        return lli_fail(status, "link", "the link to cluster %llu is broken: %s",
                        (unsigned long long)cluster_id, why);
    return LLM_SUCCESS;
}

void
lli_links_release(struct lli_link *link)
{
    pthread_mutex_lock(&link->node->links_lock);
    link->num_active--;
    pthread_mutex_unlock(&link->node->links_lock);
    lli_link_put(link);
}

struct lli_link *
lli_links_find(struct lli_node *node, uint64_t cluster_id)
{
    pthread_mutex_lock(&node->links_lock);
    struct lli_link *link = find_locked(node, cluster_id);
    if (link != NULL)
        lli_link_hold(link);
    pthread_mutex_unlock(&node->links_lock);
    return link;
}

struct lli_link *
lli_links_find_rival(struct lli_node *node, const struct lli_identity *peer)
{
    struct lli_link *rival = lli_links_find(node, peer->cluster_id);
    if (rival != NULL &&
        (rival->peer.incarnation == peer->incarnation || !lli_link_is_ready(rival))) {
        lli_link_put(rival);
        rival = NULL;
    }
    return rival;
}

size_t
lli_links_count(struct lli_node *node)
{
    size_t count = 0;
    pthread_mutex_lock(&node->links_lock);
    LLI_LIST_FOR(item, &node->links)
        count++;
    pthread_mutex_unlock(&node->links_lock);
    return count;
}

// Marks the link unusable without a word; true if it was usable.
static bool
retire(struct lli_link *link)
{
    struct lli_node *node = link->node;
    pthread_mutex_lock(&node->links_lock);
    bool was_usable = !link->broken;
    if (was_usable) {
        link->broken = true;
        link->broken_status = LLM_NOT_YET_LINK;
        snprintf(link->broken_reason, sizeof(link->broken_reason), "it has been unlinked");
    }
    // Whoever waits for an answer to an unlink has it, if the peer unlinks or links anew meanwhile.
    pthread_cond_broadcast(&node->links_changed);
    pthread_mutex_unlock(&node->links_lock);
    return was_usable;
}

// True if it was in the table: the caller then drops the table's reference.
static bool
take_out(struct lli_link *link)
{
    pthread_mutex_lock(&link->node->links_lock);
    bool was_in_table = !lli_list_empty(&link->in_table);
    lli_list_remove(&link->in_table);
    if (was_in_table)
        lli_events_add_locked(link, LLM_LINK_REMOVED);
    pthread_mutex_unlock(&link->node->links_lock);
    return was_in_table;
}

bool
lli_links_hide(struct lli_link *link)
{
    bool was_in_table = take_out(link);
    retire(link);
    return was_in_table;
}

void
lli_links_remove_here(struct lli_link *link)
{
    bool was_in_table = take_out(link);
    (void)retire(link);
    close_connections(link);
    // Also of a link that was hidden before: pushes that were left behind end with it.
    link->node->on_broken(link, LLM_FAILED);
    if (was_in_table)
        lli_link_put(link);
}

void
lli_link_unlink_answered(struct lli_link *link, llm_status status)
{
    pthread_mutex_lock(&link->node->links_lock);
    link->unlink_answered = true;
    link->unlink_answer = status;
    pthread_cond_broadcast(&link->node->links_changed);
    pthread_mutex_unlock(&link->node->links_lock);
}

static void
remove_call(void *arg)
{
    lli_links_remove_here(arg);
}

void
lli_links_remove(struct lli_link *link)
{
    lli_loop_call(link->node->loop, remove_call, link);
}

bool
lli_links_is_read(struct lli_node *node, uint64_t generation)
{
    bool is_read = false;
    pthread_mutex_lock(&node->links_lock);
    LLI_LIST_FOR(item, &node->links) {
        struct lli_link *link = LLI_LIST_ENTRY(item, struct lli_link, in_table);
        if (link->view != NULL && !link->broken &&
            lli_segment_is_read(link->view->segment, node->identity.incarnation, generation))
            is_read = true;
    }
    pthread_mutex_unlock(&node->links_lock);
    return is_read;
}

void
lli_link_ask_for_life(struct lli_link *link)
{
    lli_link_send(link, LLI_PING, PING_ANSWER_ME, NULL, 0);
}

// Every byte counts as a word: a message or a frame may take long to arrive.
static void
listen_to(struct lli_link *link)
{
    uint64_t bytes = atomic_load(&link->stream.bytes_in);
    if (link->control != NULL)
        bytes += link->control->bytes_in;
    if (bytes != link->bytes_heard)
        link->heard_tick = link->node->tick;
    link->bytes_heard = bytes;
}

// Silence is not death: the peer may be starved, stopped, or behind a bad network.
static void
suspect(struct lli_link *link)
{
    struct lli_node *node = link->node;
    char why[LLI_REASON_BYTES];
    snprintf(why, sizeof(why), "the peer has been silent for %u ms", link->liveness_ms);
    bool can_tell = lli_events_prepare(link, 1);
    pthread_mutex_lock(&node->links_lock);
    link->suspect = true;
    snprintf(link->broken_reason, sizeof(link->broken_reason), "%s", why);
    // Also while it is being unlinked, which may fail.
    if (can_tell && !lli_list_empty(&link->in_table))
        lli_events_add_locked(link, LLM_LINK_SUSPECT);
    pthread_mutex_unlock(&node->links_lock);
    lli_log(LLM_LOG_WARN, "link", "the link to cluster %llu is suspect: %s",
            (unsigned long long)link->peer.cluster_id, why);
}

static void
trust_again(struct lli_link *link)
{
    struct lli_node *node = link->node;
    bool can_tell = lli_events_prepare(link, 1);
    pthread_mutex_lock(&node->links_lock);
    link->suspect = false;
    if (can_tell && !lli_list_empty(&link->in_table))
        lli_events_add_locked(link, LLM_LINK_READY);
    pthread_mutex_unlock(&node->links_lock);
    lli_log(LLM_LOG_INFO, "link", "cluster %llu is heard again, its link is ready",
            (unsigned long long)link->peer.cluster_id);
}

static void
give_up(struct lli_link *link)
{
    char why[LLI_REASON_BYTES];
    snprintf(why, sizeof(why), "the peer has been silent for %llu ms",
             (unsigned long long)lli_max(link->node->options->dead_ms, link->liveness_ms));
    lli_link_break(link, LLM_WAIT_PROC_TIMEOUT, why);
}

// Its connections may be open still, held by a process that it forked.
static void
mourn(struct lli_link *link)
{
    lli_link_break(link, LLM_FAILED, "the peer's process has ended");
}

// What is to be done about a link whose silence has begun, has ended, or has lasted for too long.
static void (*judge(const struct lli_link *link))(struct lli_link *link)
{
    uint64_t ticks = link->node->tick - link->heard_tick;
    bool silent = ticks > link->liveness_ticks;
    if (link->view != NULL && lli_view_has_ended(link->view))
        return mourn;
    if (ticks > link->dead_ticks)
        return give_up;
    if (silent != link->suspect)
        return silent ? suspect : trust_again;
    return NULL;
}

// Silence is counted in ticks of our own, each of which comes after the sockets have been read: if
// this process was stopped or starved itself, the peer isn't blamed for it.
void
lli_links_tick(struct lli_node *node)
{
    node->tick++;
    for (;;) {
        struct lli_link *changed = NULL;
        void (*change)(struct lli_link * link) = NULL;
        pthread_mutex_lock(&node->links_lock);
        LLI_LIST_FOR(item, &node->links) {
            struct lli_link *link = LLI_LIST_ENTRY(item, struct lli_link, in_table);
            if (link->broken)
                continue;
            listen_to(link);
            if (changed == NULL && (change = judge(link)) != NULL) {
                changed = link;
                lli_link_hold(link);
            } else if (node->tick - link->sent_tick >= lli_max(link->liveness_ticks / 3, 1)) {
                lli_link_send(link, LLI_PING, PING_ALIVE, NULL, 0);
            }
        }
        pthread_mutex_unlock(&node->links_lock);
        if (changed == NULL)
            return;
        change(changed);
        lli_link_put(changed);
    }
}

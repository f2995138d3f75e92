// How a link is accepted:
//
//   stranger --HELLO(control)--> pending link --HELLO(device, data), memory files--> ...
//            --CHOOSE--> in the table, READY is sent
//
// A stranger or a pending link that takes longer than ten seconds, or says something else, is
// dropped; that is all it can cause.  A pending link with the cluster id of another instance's link
// waits until that one has broken, or is suspect; if it answers, two claim the id, and the newcomer is
// refused.
#include "link/accept.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "link/exchange.h"

enum {
    STRANGERS_MAX = 4096,
    PATIENCE_MS = 10000,
    // Then those who are there already get their turn.
    ACCEPTS_PER_EVENT = 32,
    LOOKUP_MS = 5000, // of the name of this host
};

// A connection that has not said who it is.  Over TCP it has a conn, over the host's socket a source.
struct stranger {
    struct lli_list node_list;
    struct lli_node *node;
    struct lli_listener *listener;
    struct lli_conn *conn;
    struct lli_source source;
    uint64_t since_tick;
};

// A link that is being made.
struct pending {
    struct lli_list node_list;
    struct lli_node *node;
    struct lli_link *link;
    uint64_t link_token;
    uint64_t since_tick;
    struct lli_conn *control;
    struct lli_conn *devices[LLI_NUM_DEVICES_MAX];
    size_t num_devices; // connections in `devices`
    bool contested;     // complete, but another instance has a link with that cluster id
    uint64_t contested_tick;
    struct lli_choose choice; // when contested
};

// ---- pending links ----

static struct pending *
find_pending(struct lli_node *node, uint64_t link_token, uint64_t incarnation)
{
    LLI_LIST_FOR(item, &node->pending) {
        struct pending *pending = LLI_LIST_ENTRY(item, struct pending, node_list);
        if (pending->link_token == link_token && pending->link->peer.incarnation == incarnation)
            return pending;
    }
    return NULL;
}

// Drops what a pending link still owns.
static void
drop_pending(struct pending *pending)
{
    lli_list_remove(&pending->node_list);
    if (pending->control != NULL)
        lli_conn_close(pending->control);
    for (size_t i = 0; i < LLI_NUM_DEVICES_MAX; i++) {
        if (pending->devices[i] != NULL)
            lli_conn_close(pending->devices[i]);
    }
    lli_stream_close(&pending->link->stream);
    lli_link_put(pending->link);
    lli_free(pending);
}

static void
pending_closed(struct lli_conn *conn, const char *why)
{
    struct pending *pending = conn->owner;
    lli_log(LLM_LOG_INFO, "link", "cluster %llu left while its link was being made: %s",
            (unsigned long long)pending->link->peer.cluster_id, why);
    if (pending->control == conn)
        pending->control = NULL;
    for (size_t i = 0; i < LLI_NUM_DEVICES_MAX; i++) {
        if (pending->devices[i] == conn)
            pending->devices[i] = NULL;
    }
    drop_pending(pending);
}

static void
unexpected_message(struct lli_conn *conn, const struct lli_message_header *header,
                   struct lli_reader *body)
{
    (void)header;
    (void)body;
    drop_pending(conn->owner);
}

static void
send_outcome(struct lli_conn *conn, enum lli_message_type type, llm_status status, const char *text)
{
    uint8_t bytes[LLI_REASON_BYTES + 16];
    struct lli_writer w;
    struct lli_outcome outcome = {.status = status};
    snprintf(outcome.text, sizeof(outcome.text), "%s", text);
    lli_writer_init(&w, bytes, sizeof(bytes));
    lli_outcome_write(&w, &outcome);
    lli_conn_send(conn, type, 0, bytes, w.size);
}

static const char *
check_choice(const struct pending *pending, const struct lli_choose *choose)
{
    const struct lli_link *link = pending->link;
    if (choose->transport >= LLI_NUM_TRANSPORTS ||
        (pending->node->identity.transports & 1u << choose->transport) == 0)
        return "this transport is not allowed here";
    if (choose->transport == LLI_TRANSPORT_TCP && link->stream.num_conns == 0)
        return "a tcp link needs data connections";
    if (choose->transport != LLI_TRANSPORT_TCP && link->view == NULL)
        return "memory files have not been exchanged";
    if (pending->num_devices + 1 != pending->node->options->num_devices)
        return "connections to some devices are missing";
    if (lli_link_is_broken(pending->link))
        return "a data connection has failed";
    return NULL;
}

static void
fill_addresses(struct lli_link *link, const struct pending *pending)
{
    for (size_t i = 0; i < pending->node->options->num_devices; i++) {
        const struct lli_conn *conn = i == 0 ? pending->control : pending->devices[i - 1];
        link->remote[i].address = conn->peer;
        (void)lli_socket_name(conn->source.fd, &link->local[i].address);
    }
}

static void
establish(struct pending *pending, const struct lli_choose *choose)
{
    struct lli_link *link = pending->link;
    struct lli_conn *control = pending->control;
    link->transport = (enum lli_transport_kind)choose->transport;
    snprintf(link->reason, sizeof(link->reason), "%s", choose->reason);
    link->peer_can_read = choose->can_read;
    fill_addresses(link, pending);
    lli_list_remove(&pending->node_list);
    for (uint32_t i = 0; i < pending->node->options->num_devices; i++)
        lli_link_attach(link, i, i == 0 ? control : pending->devices[i - 1]);
    // First the table, then the word: the connector may use the link at once, and so may we.
    lli_links_insert(link);
    send_outcome(control, LLI_READY, LLM_SUCCESS, "");
    lli_link_put(link);
    lli_free(pending);
}

static void
refuse_pending(struct pending *pending, const char *why)
{
    lli_log(LLM_LOG_WARN, "link", "a link from cluster %llu was refused: %s",
            (unsigned long long)pending->link->peer.cluster_id, why);
    send_outcome(pending->control, LLI_READY, LLM_LINK_FAILED, why);
    drop_pending(pending);
}

// A peer that has died and come back is told from an impostor by what is heard of the old link from
// now on: what arrives in the current tick may have been sent before.
static void
settle_contest(struct pending *pending)
{
    struct lli_node *node = pending->node;
    struct lli_link *rival = lli_links_find_rival(node, &pending->link->peer);
    if (rival != NULL && rival->heard_tick > pending->contested_tick + 1) {
        refuse_pending(pending, "another instance with that cluster id is linked, and alive");
    } else if (rival == NULL) {
        const char *wrong = check_choice(pending, &pending->choice);
        if (wrong == NULL)
            establish(pending, &pending->choice);
        else
            refuse_pending(pending, wrong);
    } else {
        // Ticks after the first one hear what was sent after the contest began.
        lli_link_ask_for_life(rival);
    }
    if (rival != NULL)
        lli_link_put(rival);
}

static void
pending_message(struct lli_conn *conn, const struct lli_message_header *header,
                struct lli_reader *body)
{
    struct pending *pending = conn->owner;
    struct lli_choose choose;
    if (header->type != LLI_CHOOSE || pending->contested || !lli_choose_read(body, &choose)) {
        drop_pending(pending);
        return;
    }
    const char *wrong = check_choice(pending, &choose);
    if (wrong != NULL) {
        refuse_pending(pending, wrong);
        return;
    }
    struct lli_link *rival = lli_links_find_rival(pending->node, &pending->link->peer);
    if (rival == NULL) {
        establish(pending, &choose);
        return;
    }
    lli_link_put(rival);
    pending->contested = true;
    pending->contested_tick = pending->node->tick;
    pending->choice = choose;
}

static void
settle_contests(struct lli_node *node)
{
    LLI_LIST_FOR(item, &node->pending) {
        struct pending *pending = LLI_LIST_ENTRY(item, struct pending, node_list);
        if (pending->contested)
            settle_contest(pending);
    }
}

// ---- strangers ----

static bool drop_oldest_stranger(struct lli_node *node);

static struct stranger *
new_stranger(struct lli_node *node)
{
    if (node->num_strangers >= STRANGERS_MAX)
        (void)drop_oldest_stranger(node);
    struct stranger *stranger = lli_calloc(1, sizeof(*stranger));
    if (stranger == NULL)
        return NULL;
    stranger->node = node;
    stranger->since_tick = node->tick;
    lli_list_append(&node->strangers, &stranger->node_list);
    node->num_strangers++;
    return stranger;
}

static void
forget_stranger(struct stranger *stranger)
{
    lli_list_remove(&stranger->node_list);
    stranger->node->num_strangers--;
    lli_free(stranger);
}

static void
drop_stranger(struct stranger *stranger)
{
    if (stranger->conn != NULL) {
        lli_conn_close(stranger->conn);
        forget_stranger(stranger);
    } else {
        // Its memory is freed by the loop.
        lli_list_remove(&stranger->node_list);
        stranger->node->num_strangers--;
        lli_loop_remove(stranger->node->loop, &stranger->source);
    }
}

// Whoever means it says so at once: the one that has been silent for longest makes room.
static bool
drop_oldest_stranger(struct lli_node *node)
{
    if (lli_list_empty(&node->strangers))
        return false;
    drop_stranger(LLI_LIST_ENTRY(node->strangers.next, struct stranger, node_list));
    return true;
}

static void
stranger_closed(struct lli_conn *conn, const char *why)
{
    lli_log(LLM_LOG_DEBUG, "link", "a connection ended before it said what it wants: %s", why);
    forget_stranger(conn->owner);
}

static void
reply_hello(struct lli_node *node, struct lli_conn *conn, llm_status status, const char *text)
{
    uint8_t bytes[LLI_HELLO_BODY_BYTES_MAX];
    struct lli_writer w;
    struct lli_hello_reply reply = {.status = status, .from = node->identity};
    snprintf(reply.text, sizeof(reply.text), "%s", text);
    lli_writer_init(&w, bytes, sizeof(bytes));
    lli_hello_reply_write(&w, &reply);
    lli_conn_send(conn, LLI_HELLO_REPLY, 0, bytes, w.size);
}

static void LLI_PRINTF(3, 4)
    refuse(struct stranger *stranger, const struct lli_hello *hello, const char *format, ...)
{
    char text[LLI_REASON_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    char from[LLI_ADDRESS_TEXT_BYTES];
    lli_address_format(&stranger->conn->peer, from);
    if (lli_hello_has_our_version(hello))
        lli_log(LLM_LOG_WARN, "link", "a link from cluster %llu at %s was refused: %s",
                (unsigned long long)hello->from.cluster_id, from, text);
    else
        lli_log(LLM_LOG_WARN, "link", "a link from %s was refused: %s", from, text);
    reply_hello(stranger->node, stranger->conn, LLM_LINK_FAILED, text);
    drop_stranger(stranger);
}

static void
greet_control(struct stranger *stranger, const struct lli_hello *hello)
{
    struct lli_node *node = stranger->node;
    struct lli_conn *conn = stranger->conn;
    if (hello->from.incarnation == node->identity.incarnation) {
        refuse(stranger, hello, "an instance can't be linked with itself");
        return;
    }
    if (hello->from.num_devices != node->options->num_devices) {
        refuse(stranger, hello, "it has %u devices, here are %zu", hello->from.num_devices,
               node->options->num_devices);
        return;
    }
    struct pending *pending = lli_calloc(1, sizeof(*pending));
    struct lli_link *link = lli_link_new(node, &hello->from);
    if (pending == NULL || link == NULL) {
        lli_free(pending);
        if (link != NULL)
            lli_link_put(link);
        refuse(stranger, hello, "out of memory");
        return;
    }
    pending->node = node;
    pending->link = link;
    pending->link_token = hello->link_token;
    pending->since_tick = node->tick;
    pending->control = conn;
    lli_list_append(&node->pending, &pending->node_list);
    conn->owner = pending;
    conn->on_message = pending_message;
    conn->on_closed = pending_closed;
    forget_stranger(stranger);
    reply_hello(node, conn, LLM_SUCCESS, "");
}

static void
greet_device(struct stranger *stranger, const struct lli_hello *hello, struct pending *pending)
{
    struct lli_conn *conn = stranger->conn;
    uint32_t index = hello->device_index;
    if (index == 0 || index >= pending->node->options->num_devices ||
        pending->devices[index - 1] != NULL) {
        refuse(stranger, hello, "device %u is out of place", index);
        return;
    }
    pending->devices[index - 1] = conn;
    pending->num_devices++;
    conn->owner = pending;
    conn->on_message = unexpected_message;
    conn->on_closed = pending_closed;
    forget_stranger(stranger);
    reply_hello(pending->node, conn, LLM_SUCCESS, "");
}

static void
greet_data(struct stranger *stranger, const struct lli_hello *hello, struct pending *pending)
{
    struct lli_conn *conn = stranger->conn;
    if (pending->link->stream.num_conns == LLI_NUM_STREAM_CONNS_MAX) {
        refuse(stranger, hello, "more than %d data connections", LLI_NUM_STREAM_CONNS_MAX);
        return;
    }
    reply_hello(stranger->node, conn, LLM_SUCCESS, "");
    // The reply is a few hundred bytes on a fresh connection: it has left, or the connection is bad.
    bool has_left = lli_list_empty(&conn->out) && conn->why == NULL;
    int fd = has_left ? lli_conn_detach(conn) : -1;
    // The connector counts on it by now: better no link than one that breaks once it is made.
    if (fd < 0 || lli_stream_add(&pending->link->stream, fd) != LLM_SUCCESS)
        drop_pending(pending);
    drop_stranger(stranger);
}

static void
stranger_message(struct lli_conn *conn, const struct lli_message_header *header,
                 struct lli_reader *body)
{
    struct stranger *stranger = conn->owner;
    struct lli_node *node = stranger->node;
    struct lli_hello hello;
    memset(&hello, 0, sizeof(hello));
    if (header->type != LLI_HELLO) {
        drop_stranger(stranger);
        return;
    }
    if (!lli_hello_read(body, &hello)) {
        refuse(stranger, &hello, "its hello can't be read");
        return;
    }
    if (header->version != LLI_MESSAGE_VERSION || !lli_hello_has_our_version(&hello)) {
        refuse(stranger, &hello,
               "the connector speaks versions %u to %u of the protocol, the listener version %u",
               hello.lowest_version, hello.highest_version, LLI_MESSAGE_VERSION);
        return;
    }
    if (!hello.any_cluster && hello.expected_cluster_id != node->identity.cluster_id) {
        refuse(stranger, &hello, "here is cluster %llu, it wants cluster %llu",
               (unsigned long long)node->identity.cluster_id,
               (unsigned long long)hello.expected_cluster_id);
        return;
    }
    if (hello.purpose == LLI_PURPOSE_CONTROL) {
        greet_control(stranger, &hello);
        return;
    }
    struct pending *pending = find_pending(node, hello.link_token, hello.from.incarnation);
    if (pending == NULL)
        refuse(stranger, &hello, "the link that the connection is for is not being made");
    else if (hello.purpose == LLI_PURPOSE_DEVICE)
        greet_device(stranger, &hello, pending);
    else if (hello.purpose == LLI_PURPOSE_DATA)
        greet_data(stranger, &hello, pending);
    else
        refuse(stranger, &hello, "unknown purpose %u", hello.purpose);
}

// ---- listeners ----

// Out of descriptors: spends the reserve to take the caller in and turn it away; otherwise the
// listener would report it again and again.  False if another thread has taken the reserve's place.
static bool
turn_away(struct lli_node *node, int listen_fd)
{
    if (node->reserve_fd < 0)
        node->reserve_fd = lli_keep_fd(LLI_RETRY(open("/dev/null", O_RDONLY | O_CLOEXEC)));
    if (node->reserve_fd < 0)
        return false;
    close(node->reserve_fd);
    int fd = lli_accept(listen_fd, NULL);
    if (fd >= 0)
        close(fd);
    node->reserve_fd = lli_keep_fd(LLI_RETRY(open("/dev/null", O_RDONLY | O_CLOEXEC)));
    if (fd >= 0)
        lli_log(LLM_LOG_ERROR, "link", "out of file descriptors: a connection was turned away");
    return fd >= 0;
}

static bool
is_short_of(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
}

static void
accept_failed(struct lli_node *node, struct lli_pause *pause)
{
    int error = errno;
    if (!is_short_of(error))
        return; // nobody is waiting, or who waited has left
    // The next attempt, after the others' turn, finds a descriptor.
    if ((error == EMFILE || error == ENFILE) &&
        (drop_oldest_stranger(node) || turn_away(node, pause->source->fd)))
        return;
    lli_log(LLM_LOG_ERROR, "link", "can't accept connections for now: %s", strerror(error));
    lli_list_append(&node->paused, &pause->in_node);
    lli_loop_change(node->loop, pause->source, 0);
}

static void
init_pause(struct lli_pause *pause, struct lli_source *source)
{
    lli_list_init(&pause->in_node);
    pause->source = source;
}

static void
end_pauses(struct lli_node *node)
{
    LLI_LIST_FOR(item, &node->paused) {
        struct lli_pause *pause = LLI_LIST_ENTRY(item, struct lli_pause, in_node);
        lli_list_remove(&pause->in_node);
        lli_loop_change(node->loop, pause->source, EPOLLIN);
    }
}

static void
accept_tcp(struct lli_source *source, uint32_t events)
{
    struct lli_listener *listener = LLI_CONTAINER_OF(source, struct lli_listener, source);
    struct lli_node *node = listener->node;
    (void)events;
    for (int i = 0; i < ACCEPTS_PER_EVENT; i++) {
        struct lli_address peer = {0};
        int fd = lli_accept(source->fd, &peer);
        if (fd < 0) {
            accept_failed(node, &listener->pause);
            return;
        }
        lli_tcp_tune(fd);
        struct stranger *stranger = new_stranger(node);
        if (stranger == NULL) {
            close(fd);
            continue;
        }
        stranger->listener = listener;
        stranger->conn = lli_conn_open(node->loop, fd, stranger, stranger_message, stranger_closed);
        if (stranger->conn == NULL)
            forget_stranger(stranger);
        else
            stranger->conn->peer = peer;
    }
}

static struct lli_listener *
find_listener(struct lli_listeners *listeners, const struct lli_endpoint *place,
              const struct lli_endpoint *places)
{
    for (size_t i = 0; i < listeners->num_devices; i++) {
        if (lli_endpoint_equal(&places[i], place))
            return listeners->of_device[i];
    }
    return NULL;
}

// At the first address of a place that can be had.
static int
listen_at(const struct lli_endpoint *place, uint16_t *ret_port, char *why, size_t why_size)
{
    struct lli_address addresses[LLI_LOOKUP_MAX];
    bool timed_out;
    int fd = -1;
    size_t num_addresses = lli_endpoint_resolve(place, lli_deadline_after_ms(LOOKUP_MS), addresses,
                                                &timed_out, why, why_size);
    for (size_t i = 0; i < num_addresses && fd < 0; i++)
        fd = lli_tcp_listen(&addresses[i], ret_port);
    if (fd < 0 && num_addresses > 0)
        snprintf(why, why_size, "%s", strerror(errno));
    return fd;
}

static llm_status
open_listener(struct lli_node *node, const struct lli_endpoint *place,
              struct lli_listener **ret_listener)
{
    char text[LLI_ADDRESS_TEXT_BYTES];
    char why[LLI_REASON_BYTES];
    struct lli_listener *listener = lli_calloc(1, sizeof(*listener));
    if (listener == NULL)
        return lli_fail(LLM_FAILED, "link", "no memory for a listener");
    listener->node = node;
    listener->place = *place;
    int fd = listen_at(place, &listener->place.port, why, sizeof(why));
    if (fd < 0) {
        lli_free(listener);
        return lli_fail(LLM_FAILED, "link", "can't listen at %s: %s",
                        lli_endpoint_format(place, text), why);
    }
    listener->source = (struct lli_source){.fd = fd, .events = EPOLLIN, .ready = accept_tcp};
    init_pause(&listener->pause, &listener->source);
    *ret_listener = listener;
    return LLM_SUCCESS;
}

static void
free_listener(struct lli_source *source)
{
    lli_free(LLI_CONTAINER_OF(source, struct lli_listener, source));
}

static void
close_listener(struct lli_listener *listener)
{
    lli_list_remove(&listener->pause.in_node);
    if (listener->source.added) {
        listener->source.free = free_listener;
        lli_loop_remove(listener->node->loop, &listener->source);
    } else {
        close(listener->source.fd);
        lli_free(listener);
    }
}

llm_status
lli_listeners_open(struct lli_node *node, const struct lli_endpoint *places, size_t num_places,
                   struct lli_listeners *ret_listeners)
{
    struct lli_listeners opened = {0};
    for (size_t i = 0; i < num_places; i++) {
        struct lli_listener *listener = find_listener(&opened, &places[i], places);
        if (listener == NULL) {
            llm_status status = open_listener(node, &places[i], &listener);
            if (status != LLM_SUCCESS) {
                lli_listeners_close(node, &opened);
                return status;
            }
            opened.listeners[opened.num_listeners++] = listener;
        }
        opened.of_device[opened.num_devices++] = listener;
    }
    *ret_listeners = opened;
    return LLM_SUCCESS;
}

llm_status
lli_listeners_start(struct lli_listeners *listeners)
{
    char text[LLI_ADDRESS_TEXT_BYTES];
    for (size_t i = 0; i < listeners->num_listeners; i++) {
        struct lli_listener *listener = listeners->listeners[i];
        LLI_TRY(lli_loop_add(listener->node->loop, &listener->source));
        lli_log(LLM_LOG_INFO, "link", "cluster %llu listens at %s",
                (unsigned long long)listener->node->identity.cluster_id,
                lli_endpoint_format(&listener->place, text));
    }
    return LLM_SUCCESS;
}

void
lli_listeners_close(struct lli_node *node, struct lli_listeners *listeners)
{
    (void)node;
    for (size_t i = 0; i < listeners->num_listeners; i++)
        close_listener(listeners->listeners[i]);
    memset(listeners, 0, sizeof(*listeners));
}

// ---- the exchange of memory files ----

static void
free_stranger_source(struct lli_source *source)
{
    lli_free(LLI_CONTAINER_OF(source, struct stranger, source));
}

static void
take_offer(struct stranger *stranger, struct lli_exchange_offer *offer)
{
    struct lli_node *node = stranger->node;
    char why[LLI_REASON_BYTES] = "no link with this token is being made";
    struct pending *pending = find_pending(node, offer->link_token, offer->incarnation);
    if (pending != NULL && pending->link->view == NULL)
        pending->link->view =
            lli_view_map(offer->fds, offer->num_fds, offer->incarnation, node->options->num_devices,
                         offer->pid, why, sizeof(why));
    bool ok = pending != NULL && pending->link->view != NULL;
    if (ok)
        lli_exchange_watch(stranger->source.fd, pending->link->view);
    if (ok && pending->link->view->can_read)
        why[0] = '\0';
    lli_exchange_answer(node, stranger->source.fd, ok ? LLM_SUCCESS : LLM_FAILED, why);
}

static void
exchange_ready(struct lli_source *source, uint32_t events)
{
    struct stranger *stranger = LLI_CONTAINER_OF(source, struct stranger, source);
    struct lli_exchange_offer offer;
    char why[LLI_REASON_BYTES] = "";
    (void)events;
    if (lli_exchange_receive(source->fd, &offer, why, sizeof(why))) {
        take_offer(stranger, &offer);
        lli_exchange_offer_fini(&offer);
    } else {
        lli_exchange_answer(stranger->node, source->fd, LLM_FAILED, why);
    }
    drop_stranger(stranger);
}

static void
accept_exchange(struct lli_source *source, uint32_t events)
{
    struct lli_exchange_listener *listener =
        LLI_CONTAINER_OF(source, struct lli_exchange_listener, source);
    (void)events;
    for (int i = 0; i < ACCEPTS_PER_EVENT; i++) {
        int fd = lli_accept(source->fd, NULL);
        if (fd < 0) {
            accept_failed(listener->node, &listener->pause);
            return;
        }
        struct stranger *stranger = new_stranger(listener->node);
        if (stranger == NULL) {
            close(fd);
            continue;
        }
        stranger->source = (struct lli_source){
            .fd = fd,
            .events = EPOLLIN,
            .ready = exchange_ready,
            .free = free_stranger_source,
        };
        if (lli_loop_add(listener->node->loop, &stranger->source) != LLM_SUCCESS) {
            close(fd);
            forget_stranger(stranger);
        }
    }
}

llm_status
lli_exchange_listen(struct lli_node *node, struct lli_exchange_listener *listener)
{
    memset(listener, 0, sizeof(*listener));
    listener->node = node;
    int fd = lli_unix_listen(node->identity.unix_name, sizeof(node->identity.unix_name));
    if (fd < 0)
        return lli_fail(LLM_FAILED, "link", "can't open a Unix socket: %s", strerror(errno));
    listener->source = (struct lli_source){.fd = fd, .events = EPOLLIN, .ready = accept_exchange};
    init_pause(&listener->pause, &listener->source);
    llm_status status = lli_loop_add(node->loop, &listener->source);
    if (status != LLM_SUCCESS)
        close(fd);
    else
        listener->open = true;
    return status;
}

void
lli_exchange_listener_close(struct lli_exchange_listener *listener)
{
    if (listener->open) {
        lli_list_remove(&listener->pause.in_node);
        lli_loop_remove(listener->node->loop, &listener->source);
    }
    listener->open = false;
}

// ---- time ----

static void
end_older_than(struct lli_node *node, uint64_t ticks)
{
    LLI_LIST_FOR(item, &node->strangers) {
        struct stranger *stranger = LLI_LIST_ENTRY(item, struct stranger, node_list);
        if (node->tick - stranger->since_tick >= ticks)
            drop_stranger(stranger);
    }
    LLI_LIST_FOR(item, &node->pending) {
        struct pending *pending = LLI_LIST_ENTRY(item, struct pending, node_list);
        if (node->tick - pending->since_tick >= ticks)
            drop_pending(pending);
    }
}

void
lli_accept_tick(struct lli_node *node)
{
    end_pauses(node);
    settle_contests(node);
    end_older_than(node, PATIENCE_MS / node->tick_ms);
}

void
lli_accept_end_all(struct lli_node *node)
{
    end_older_than(node, 0);
}

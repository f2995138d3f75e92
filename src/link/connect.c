#include "link/connect.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "link/exchange.h"

// A link being made.
struct attempt {
    struct lli_node *node;
    const struct lli_link_target *target;
    uint64_t deadline_ns;
    uint64_t until_ns; // of the step under way
    uint64_t link_token;
    struct lli_identity peer;
    int fds[LLI_NUM_DEVICES_MAX];                  // -1 = not yet
    struct lli_address local[LLI_NUM_DEVICES_MAX]; // that did, of the places given
    struct lli_address remote[LLI_NUM_DEVICES_MAX];
    int data_fds[LLI_NUM_STREAM_CONNS_MAX];
    size_t num_data_fds;
    struct lli_view *view;
    bool peer_can_read;
    enum lli_transport_kind transport;
    char reason[LLI_REASON_BYTES];
    char registered_reason[LLI_REASON_BYTES]; // why registered memory goes over tcp; "" if not
    char why[LLI_REASON_BYTES + 64];          // it failed
    bool timed_out;
    llm_status adopted;      // LLM_PROCESSING_LINK: ask again in a tick
    bool contested;          // the peer has linked with us meanwhile
    uint64_t contested_tick; // since when that is known
};

// ---- blocking input and output with a deadline ----

static bool
has_time(struct attempt *a)
{
    a->timed_out = lli_ms_until(a->until_ns) == 0;
    if (a->timed_out)
        snprintf(a->why, sizeof(a->why), "the time is up");
    return !a->timed_out;
}

static bool
wait_for(struct attempt *a, int fd, short events)
{
    struct pollfd wait = {.fd = fd, .events = events};
    int result = LLI_RETRY(poll(&wait, 1, lli_ms_until(a->until_ns)));
    if (result == 0) {
        a->timed_out = true;
        snprintf(a->why, sizeof(a->why), "the time is up");
    } else if (result < 0) {
        snprintf(a->why, sizeof(a->why), "poll: %s", strerror(errno));
    }
    return result > 0;
}

static bool
send_all(struct attempt *a, int fd, const uint8_t *bytes, size_t num_bytes)
{
    while (num_bytes > 0) {
        ssize_t sent = send(fd, bytes, num_bytes, MSG_NOSIGNAL);
        if (sent > 0) {
            bytes += sent;
            num_bytes -= (size_t)sent;
        } else if (errno == EAGAIN) {
            if (!wait_for(a, fd, POLLOUT))
                return false;
        } else if (errno != EINTR) {
            snprintf(a->why, sizeof(a->why), "%s", strerror(errno));
            return false;
        }
    }
    return true;
}

static bool
receive_all(struct attempt *a, int fd, uint8_t *bytes, size_t num_bytes, size_t *ret_got)
{
    *ret_got = 0;
    while (*ret_got < num_bytes) {
        ssize_t received = recv(fd, bytes + *ret_got, num_bytes - *ret_got, 0);
        if (received > 0) {
            *ret_got += (size_t)received;
        } else if (received == 0) {
            snprintf(a->why, sizeof(a->why), "the peer closed the connection");
            return false;
        } else if (errno == EAGAIN) {
            if (!wait_for(a, fd, POLLIN))
                return false;
        } else if (errno != EINTR) {
            snprintf(a->why, sizeof(a->why), "%s", strerror(errno));
            return false;
        }
    }
    return true;
}

static bool
send_message(struct attempt *a, int fd, enum lli_message_type type, const struct lli_writer *body)
{
    uint8_t bytes[LLI_MESSAGE_HEADER_BYTES + LLI_HELLO_BODY_BYTES_MAX];
    struct lli_message_header header = {
        .type = (uint8_t)type,
        .body_bytes = (uint32_t)body->size,
    };
    lli_message_header_write(bytes, &header);
    memcpy(bytes + LLI_MESSAGE_HEADER_BYTES, body->bytes, body->size);
    lli_message_seal(bytes, body->bytes, body->size);
    return send_all(a, fd, bytes, LLI_MESSAGE_HEADER_BYTES + body->size);
}

// Whoever listens there has not answered as we do: says what it did, and what it may be.
static void
doubt_listener(struct attempt *a, const uint8_t *head, size_t num_bytes)
{
    char said[LLI_MESSAGE_HEADER_BYTES + 1];
    if (num_bytes == 0) {
        size_t length = strlen(a->why);
        snprintf(a->why + length, sizeof(a->why) - length,
                 " before it said anything: it may not be an llm-datadist");
        return;
    }
    memcpy(said, head, num_bytes);
    said[num_bytes] = '\0';
    said[strcspn(said, "\r\n")] = '\0';
    lli_clean_text(said);
    snprintf(a->why, sizeof(a->why), "it is not an llm-datadist: it says \"%s\"", said);
}

static bool
receive_header(struct attempt *a, int fd, uint8_t *head, struct lli_message_header *ret_header)
{
    size_t got;
    if (!receive_all(a, fd, head, LLI_MESSAGE_HEADER_BYTES, &got)) {
        if (a->peer.incarnation == 0)
            doubt_listener(a, head, got);
        return false;
    }
    const char *wrong = lli_message_header_read(head, ret_header);
    if (wrong == NULL)
        return true;
    if (lli_message_has_magic(head))
        snprintf(a->why, sizeof(a->why), "%s: %u, here is %u", wrong, head[LLI_MESSAGE_VERSION_AT],
                 LLI_MESSAGE_VERSION);
    else
        doubt_listener(a, head, got);
    return false;
}

// Waits for one message of that type; `body` has room for LLI_HELLO_BODY_BYTES_MAX.
static bool
receive_message(struct attempt *a, int fd, enum lli_message_type type, uint8_t *body,
                struct lli_reader *ret_reader)
{
    uint8_t head[LLI_MESSAGE_HEADER_BYTES];
    struct lli_message_header header;
    size_t got;
    if (!receive_header(a, fd, head, &header))
        return false;
    if (header.type != type || header.body_bytes > LLI_HELLO_BODY_BYTES_MAX) {
        snprintf(a->why, sizeof(a->why), "it answered with an unexpected message");
        return false;
    }
    if (!receive_all(a, fd, body, header.body_bytes, &got))
        return false;
    if (!lli_message_is_intact(head, body, header.body_bytes)) {
        snprintf(a->why, sizeof(a->why),
                 "its answer has arrived with another checksum than it was sent with");
        return false;
    }
    lli_reader_init(ret_reader, body, header.body_bytes);
    return true;
}

// ---- steps ----

// What a source address has to do with it is told with the address.
static void
explain_start(struct attempt *a, const struct lli_address *local, bool bound, int error)
{
    char text[LLI_ADDRESS_TEXT_BYTES];
    lli_address_format(local, text);
    if (error == ECONNREFUSED || (bound && lli_address_is_any(local)))
        snprintf(a->why, sizeof(a->why), "%s", strerror(error));
    else if (!bound && lli_address_port(local) != 0 && error != EADDRNOTAVAIL)
        snprintf(a->why, sizeof(a->why),
                 "can't connect from port %u of %s: %s; port 0 lets the system choose",
                 lli_address_port(local), text, strerror(error));
    else
        snprintf(a->why, sizeof(a->why),
                 "can't connect from %s: %s; 0.0.0.0 lets the system choose", text,
                 strerror(error));
}

// Connects once.  On failure -1, and *ret_port_taken if another source port may do.
static int
dial_once(struct attempt *a, const struct lli_address *local, const struct lli_address *remote,
          bool *ret_port_taken)
{
    bool bound;
    int error = 0;
    socklen_t bytes = sizeof(error);
    int fd = lli_tcp_connect_start(local, remote, &bound);
    *ret_port_taken = fd < 0 && bound && errno == EADDRNOTAVAIL && lli_address_port(local) != 0;
    if (fd < 0) {
        explain_start(a, local, bound, errno);
        return -1;
    }
    if (!wait_for(a, fd, POLLOUT)) {
        close(fd);
        return -1;
    }
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
    *ret_port_taken = error == 0 && lli_tcp_is_with_itself(fd);
    if (*ret_port_taken) {
        lli_tcp_abort(fd);
        return -1;
    }
    if (error != 0) {
        snprintf(a->why, sizeof(a->why), "%s", strerror(error));
        close(fd);
        return -1;
    }
    return fd;
}

// A source port can be used once towards the same listener, and not while what was connected that way
// before lingers in TIME_WAIT: then the system chooses another one, as it does when a connection has
// met itself.
static int
dial_from(struct attempt *a, struct lli_address local, const struct lli_address *remote)
{
    bool port_taken = true;
    int fd = -1;
    while (port_taken && has_time(a)) {
        fd = dial_once(a, &local, remote, &port_taken);
        if (port_taken && lli_address_port(&local) != 0)
            lli_log(LLM_LOG_WARN, "link",
                    "source port %u can't be used towards port %u now: the system chooses another "
                    "one",
                    lli_address_port(&local), lli_address_port(remote));
        lli_address_set_port(&local, 0);
    }
    return fd;
}

// Where a connection to that address comes from: what was given, if it is of the same family.
static bool
choose_source(struct attempt *a, const struct lli_endpoint *given, const struct lli_address *remote,
              struct lli_address *ret_local)
{
    char text[LLI_ADDRESS_TEXT_BYTES];
    struct lli_address found[LLI_LOOKUP_MAX];
    size_t num_found =
        lli_endpoint_resolve(given, a->until_ns, found, &a->timed_out, a->why, sizeof(a->why));
    for (size_t i = 0; i < num_found; i++) {
        *ret_local = found[i];
        if (lli_address_is_any(&found[i])) {
            memset(ret_local, 0, sizeof(*ret_local));
            ret_local->any.sa_family = remote->any.sa_family;
            lli_address_set_port(ret_local, given->port);
        }
        if (ret_local->any.sa_family == remote->any.sa_family)
            return true;
    }
    if (num_found > 0)
        snprintf(
            a->why, sizeof(a->why),
            "can't connect from %s to %s: one is IPv4, the other IPv6; 0.0.0.0 lets the system "
            "choose",
            given->host, lli_address_format(remote, text));
    return false;
}

// Tries the addresses of a device's listener, each with its share of the time that is left.
static int
dial_place(struct attempt *a, uint32_t device_index)
{
    char text[LLI_ADDRESS_TEXT_BYTES];
    char why[sizeof(a->why)];
    struct lli_address local = {0};
    struct lli_address found[LLI_LOOKUP_MAX];
    size_t num_found = lli_endpoint_resolve(&a->target->remote[device_index], a->deadline_ns, found,
                                            &a->timed_out, a->why, sizeof(a->why));
    int fd = -1;
    for (size_t i = 0; i < num_found && fd < 0; i++) {
        uint64_t now_ns = lli_now_ns();
        uint64_t left_ns = a->deadline_ns > now_ns ? a->deadline_ns - now_ns : 0;
        a->until_ns = now_ns + left_ns / (num_found - i);
        if (choose_source(a, &a->target->local[device_index], &found[i], &local))
            fd = dial_from(a, local, &found[i]);
        a->local[device_index] = local;
        a->remote[device_index] = found[i];
        if (fd < 0 && num_found > 1) {
            memcpy(why, a->why, sizeof(why));
            snprintf(a->why, sizeof(a->why), "%s, at last: %s", lli_address_format(&found[i], text),
                     why);
        }
    }
    a->until_ns = a->deadline_ns;
    return fd;
}

// The first connection to a device finds the way.  Only that one may ask for a source port.
static int
dial(struct attempt *a, enum lli_connection_purpose purpose, uint32_t device_index)
{
    if (purpose != LLI_PURPOSE_DATA)
        return dial_place(a, device_index);
    struct lli_address local = a->local[device_index];
    lli_address_set_port(&local, 0);
    return dial_from(a, local, &a->remote[device_index]);
}

static bool
check_peer(struct attempt *a, const struct lli_hello_reply *reply, bool is_first)
{
    if (reply->status != LLM_SUCCESS) {
        snprintf(a->why, sizeof(a->why), "the peer refused: %s", reply->text);
        return false;
    }
    if (!a->target->any_cluster && reply->from.cluster_id != a->target->cluster_id) {
        snprintf(a->why, sizeof(a->why), "it is cluster %llu",
                 (unsigned long long)reply->from.cluster_id);
        return false;
    }
    if (is_first && a->target->cluster_id != 0 && reply->from.cluster_id != a->target->cluster_id)
        lli_log(LLM_LOG_WARN, "link", "asked for cluster %llu, but cluster %llu answers there",
                (unsigned long long)a->target->cluster_id,
                (unsigned long long)reply->from.cluster_id);
    if (a->target->incarnation != 0 && reply->from.incarnation != a->target->incarnation) {
        snprintf(a->why, sizeof(a->why), "another instance answers: the peer has been restarted");
        return false;
    }
    if (!is_first && reply->from.incarnation != a->peer.incarnation) {
        snprintf(a->why, sizeof(a->why), "the addresses belong to different instances");
        return false;
    }
    if (reply->from.num_devices != a->node->options->num_devices) {
        snprintf(a->why, sizeof(a->why), "it has %u devices, here are %zu", reply->from.num_devices,
                 a->node->options->num_devices);
        return false;
    }
    return true;
}

// Opens one connection and says what it is for.  -1 on failure.
static int
greet(struct attempt *a, enum lli_connection_purpose purpose, uint32_t device_index)
{
    uint8_t body[LLI_HELLO_BODY_BYTES_MAX];
    struct lli_writer w;
    struct lli_reader r;
    struct lli_hello hello = {
        .link_token = a->link_token,
        .expected_cluster_id = a->target->cluster_id,
        .any_cluster = a->target->any_cluster,
        .purpose = purpose,
        .device_index = device_index,
        .from = a->node->identity,
    };
    struct lli_hello_reply reply;
    int fd = dial(a, purpose, device_index);
    if (fd < 0)
        return -1;
    lli_writer_init(&w, body, sizeof(body));
    lli_hello_write(&w, &hello);
    if (!send_message(a, fd, LLI_HELLO, &w) || !receive_message(a, fd, LLI_HELLO_REPLY, body, &r))
        goto close_fd;
    if (!lli_hello_reply_read(&r, &reply)) {
        snprintf(a->why, sizeof(a->why), "its answer can't be read");
        goto close_fd;
    }
    if (!check_peer(a, &reply, purpose == LLI_PURPOSE_CONTROL))
        goto close_fd;
    if (purpose == LLI_PURPOSE_CONTROL)
        a->peer = reply.from;
    return fd;

close_fd:
    close(fd);
    return -1;
}

static bool
open_data_connections(struct attempt *a, char *why, size_t why_size)
{
    while (a->num_data_fds < a->node->options->tcp_connections) {
        int fd = greet(a, LLI_PURPOSE_DATA, 0);
        if (fd < 0) {
            snprintf(why, why_size, "%s", a->why);
            return false;
        }
        a->data_fds[a->num_data_fds++] = fd;
    }
    return true;
}

// Where either side can't read the other's registered memory, that goes over data connections, with
// its owner's help.
static bool
map_memory(struct attempt *a, char *why, size_t why_size)
{
    a->view = lli_exchange_connect(a->node, &a->peer, a->link_token, a->deadline_ns,
                                   &a->peer_can_read, why, why_size);
    if (a->view == NULL)
        return false;
    if (a->view->can_read && a->peer_can_read)
        return true;
    snprintf(a->registered_reason, sizeof(a->registered_reason), "%s", why);
    if (open_data_connections(a, why, why_size))
        return true;
    lli_view_unmap(a->view);
    a->view = NULL;
    return false;
}

static bool
knows_host(const struct lli_identity *identity)
{
    static const uint8_t unknown[16];
    return memcmp(identity->boot_id, unknown, sizeof(unknown)) != 0;
}

static bool
is_same_host(const struct attempt *a)
{
    const struct lli_identity *us = &a->node->identity;
    return knows_host(us) && memcmp(us->boot_id, a->peer.boot_id, sizeof(us->boot_id)) == 0;
}

static bool
try_transport(struct attempt *a, enum lli_transport_kind kind, char *why, size_t why_size)
{
    if ((a->peer.transports & 1u << kind) == 0) {
        snprintf(why, why_size, "the peer doesn't allow it");
        return false;
    }
    switch (kind) {
    case LLI_TRANSPORT_LOCAL:
        if (a->peer.process_token == a->node->identity.process_token)
            return map_memory(a, why, why_size);
        snprintf(why, why_size, "the peer is another process");
        return false;
    case LLI_TRANSPORT_SHM:
        if (is_same_host(a))
            return map_memory(a, why, why_size);
        snprintf(
            why, why_size, "%s",
            knows_host(&a->node->identity) && knows_host(&a->peer)
                ? "the peer is on another host"
                : "/proc, which tells whether the peer is on this host, is missing there or here");
        return false;
    case LLI_TRANSPORT_TCP:
        return open_data_connections(a, why, why_size);
    default:
        snprintf(why, why_size, "unknown");
        return false;
    }
}

static void
note(struct attempt *a, const char *transport, const char *what)
{
    size_t length = strlen(a->reason);
    snprintf(a->reason + length, sizeof(a->reason) - length, "%s%s: %s", length > 0 ? "; " : "",
             transport, what);
}

// Both allow shared memory, and it doesn't work: whoever expects it should find out why.
static void
warn_of_tcp(const struct attempt *a)
{
    lli_log(LLM_LOG_WARN, "link", "cluster %llu is on this host, but linked over tcp: %s",
            (unsigned long long)a->peer.cluster_id, a->reason);
}

static bool
choose_transport(struct attempt *a)
{
    char why[LLI_REASON_BYTES];
    bool without_shm = false;
    for (size_t i = 0; i < a->node->options->num_transports; i++) {
        enum lli_transport_kind kind = a->node->options->transports[i];
        if (try_transport(a, kind, why, sizeof(why))) {
            a->transport = kind;
            note(a, lli_transport_name(kind), "chosen");
            if (a->registered_reason[0] != '\0')
                note(a, "registered memory over tcp", a->registered_reason);
            if (kind == LLI_TRANSPORT_TCP && without_shm)
                warn_of_tcp(a);
            return true;
        }
        if (a->timed_out)
            return false;
        note(a, lli_transport_name(kind), why);
        without_shm |=
            kind == LLI_TRANSPORT_SHM && is_same_host(a) && (a->peer.transports & 1u << kind) != 0;
    }
    snprintf(a->why, sizeof(a->why), "no transport works: %s", a->reason);
    return false;
}

static bool
conclude(struct attempt *a)
{
    uint8_t body[LLI_HELLO_BODY_BYTES_MAX];
    struct lli_writer w;
    struct lli_reader r;
    struct lli_outcome outcome;
    struct lli_choose choose = {
        .transport = a->transport,
        .can_read = a->view != NULL && a->view->can_read,
    };
    memcpy(choose.reason, a->reason, sizeof(choose.reason));
    lli_writer_init(&w, body, sizeof(body));
    lli_choose_write(&w, &choose);
    if (!send_message(a, a->fds[0], LLI_CHOOSE, &w) ||
        !receive_message(a, a->fds[0], LLI_READY, body, &r))
        return false;
    if (!lli_outcome_read(&r, &outcome) || outcome.status != LLM_SUCCESS) {
        snprintf(a->why, sizeof(a->why), "the peer refused: %s", outcome.text);
        return false;
    }
    return true;
}

// ---- handing over to the loop's thread ----

static llm_status
attach_connections(struct attempt *a, struct lli_link *link)
{
    // The new connections report to nobody until all are there.
    for (uint32_t i = 0; i < a->node->options->num_devices; i++) {
        struct lli_conn *conn = lli_conn_open(a->node->loop, a->fds[i], link, NULL, NULL);
        a->fds[i] = -1;
        if (conn == NULL)
            return LLM_FAILED;
        lli_link_attach(link, i, conn);
    }
    for (size_t i = 0; i < a->num_data_fds; i++) {
        int fd = a->data_fds[i];
        a->data_fds[i] = -1;
        LLI_TRY(lli_stream_add(&link->stream, fd));
    }
    return LLM_SUCCESS;
}

// The link that the same instance has made to us meanwhile, if ours may have to give way to it.  Of
// two that link each other at once one keeps its own link, so that the other must find out.
static struct lli_link *
find_crossing(const struct attempt *a)
{
    struct lli_link *link = lli_links_find(a->node, a->peer.cluster_id);
    if (link == NULL)
        return NULL;
    if (!link->connected_by_us && link->peer.incarnation == a->peer.incarnation &&
        a->node->identity.incarnation < a->peer.incarnation && lli_link_is_ready(link))
        return link;
    lli_link_put(link);
    return NULL;
}

// If the peer has replaced its own link by ours, that one is closed, and never answers; if it answers,
// ours is closed.  What arrives in the current tick may have been sent before.
static bool
give_way(struct attempt *a)
{
    struct lli_node *node = a->node;
    struct lli_link *crossing = find_crossing(a);
    if (crossing == NULL)
        return false;
    if (!a->contested)
        a->contested_tick = node->tick;
    a->contested = true;
    bool is_settled =
        crossing->heard_tick > a->contested_tick + 1 || lli_now_ns() >= a->deadline_ns;
    a->adopted = is_settled ? LLM_SUCCESS : LLM_PROCESSING_LINK;
    if (!is_settled)
        lli_link_ask_for_life(crossing);
    lli_link_put(crossing);
    return true;
}

// Until a link breaks, but no longer than a tick.
static void
wait_for_news(struct lli_node *node)
{
    pthread_mutex_lock(&node->links_lock);
    (void)lli_cond_wait_until(&node->links_changed, &node->links_lock,
                              lli_deadline_after_ms(node->tick_ms));
    pthread_mutex_unlock(&node->links_lock);
}

static void
adopt(void *arg)
{
    struct attempt *a = arg;
    struct lli_link *rival = lli_links_find_rival(a->node, &a->peer);
    a->adopted = LLM_FAILED;
    if (rival != NULL) {
        snprintf(a->why, sizeof(a->why),
                 "cluster %llu answered, whose link with another instance of that id lives",
                 (unsigned long long)a->peer.cluster_id);
        lli_link_put(rival);
        return;
    }
    if (give_way(a))
        return;
    struct lli_link *link = lli_link_new(a->node, &a->peer);
    if (link == NULL)
        return;
    link->connected_by_us = true;
    link->transport = a->transport;
    memcpy(link->reason, a->reason, sizeof(link->reason));
    link->view = a->view;
    link->peer_can_read = a->peer_can_read;
    a->view = NULL;
    for (size_t i = 0; i < a->node->options->num_devices; i++) {
        link->local[i] = a->target->local[i];
        link->local[i].address = a->local[i];
        link->local[i].port = 0; // it may be in use when the link is made anew
        link->remote[i] = a->target->remote[i];
        link->remote[i].address = a->remote[i];
    }
    a->adopted = attach_connections(a, link);
    if (a->adopted == LLM_SUCCESS)
        lli_links_insert(link);
    else
        lli_links_remove_here(link);
    lli_link_put(link);
}

static bool
establish(struct attempt *a, uint32_t *ret_device_index)
{
    for (uint32_t i = 0; i < a->node->options->num_devices; i++) {
        *ret_device_index = i;
        a->fds[i] = greet(a, i == 0 ? LLI_PURPOSE_CONTROL : LLI_PURPOSE_DEVICE, i);
        if (a->fds[i] < 0)
            return false;
    }
    *ret_device_index = 0;
    if (!choose_transport(a) || !conclude(a))
        return false;
    a->why[0] = '\0';
    lli_loop_call(a->node->loop, adopt, a);
    while (a->adopted == LLM_PROCESSING_LINK) {
        wait_for_news(a->node);
        lli_loop_call(a->node->loop, adopt, a);
    }
    if (a->adopted != LLM_SUCCESS && a->why[0] == '\0')
        snprintf(a->why, sizeof(a->why), "out of memory or descriptors");
    return a->adopted == LLM_SUCCESS;
}

static void
clean_up(struct attempt *a)
{
    for (size_t i = 0; i < a->node->options->num_devices; i++) {
        if (a->fds[i] >= 0)
            close(a->fds[i]);
    }
    for (size_t i = 0; i < a->num_data_fds; i++) {
        if (a->data_fds[i] >= 0)
            close(a->data_fds[i]);
    }
    lli_view_unmap(a->view);
}

llm_status
lli_link_connect(struct lli_node *node, const struct lli_link_target *target, uint64_t deadline_ns)
{
    uint32_t device_index = 0;
    struct attempt a = {
        .node = node,
        .target = target,
        .deadline_ns = deadline_ns,
        .until_ns = deadline_ns,
        .link_token = lli_random_u64(),
    };
    for (size_t i = 0; i < LLI_NUM_DEVICES_MAX; i++)
        a.fds[i] = -1;
    bool ok = establish(&a, &device_index);
    // An adoption has taken everything.
    clean_up(&a);
    if (ok)
        return LLM_SUCCESS;
    char text[LLI_ADDRESS_TEXT_BYTES];
    char who[40] = "whoever listens";
    if (!target->any_cluster || target->cluster_id != 0)
        snprintf(who, sizeof(who), "cluster %llu", (unsigned long long)target->cluster_id);
    return lli_fail(a.timed_out ? LLM_WAIT_PROC_TIMEOUT : LLM_LINK_FAILED, "link",
                    "can't link with %s at %s (device %u): %s", who,
                    lli_endpoint_format(&target->remote[device_index], text), device_index, a.why);
}

// ---- making a broken link anew ----

static bool
is_to_be_renewed_locked(const struct lli_link *link)
{
    return (link->broken || link->lacks_data) && !link->unlinking &&
           !lli_list_empty(&link->in_table);
}

static bool
is_linked_locked(struct lli_node *node, uint64_t cluster_id)
{
    LLI_LIST_FOR(item, &node->links) {
        if (LLI_LIST_ENTRY(item, struct lli_link, in_table)->peer.cluster_id == cluster_id)
            return true;
    }
    return false;
}

// True for the one who makes the attempt.
static bool
begin_renewal(struct lli_link *link, uint64_t deadline_ns)
{
    struct lli_node *node = link->node;
    bool in_time = true;
    pthread_mutex_lock(&node->links_lock);
    unsigned before = link->num_renewals;
    while (is_to_be_renewed_locked(link) && node->linking && in_time)
        in_time = lli_cond_wait_until(&node->linking_ended, &node->links_lock, deadline_ns);
    bool mine = is_to_be_renewed_locked(link) && !node->linking && link->num_renewals == before;
    if (mine)
        node->linking = true;
    pthread_mutex_unlock(&node->links_lock);
    return mine;
}

static void
end_renewal(struct lli_link *link)
{
    struct lli_node *node = link->node;
    pthread_mutex_lock(&node->links_lock);
    link->num_renewals++;
    node->linking = false;
    pthread_cond_broadcast(&node->linking_ended);
    pthread_mutex_unlock(&node->links_lock);
}

void
lli_link_renew(struct lli_node *node, uint64_t cluster_id, uint64_t deadline_ns)
{
    struct lli_link *link = lli_links_find(node, cluster_id);
    if (link == NULL)
        return;
    if (link->connected_by_us && begin_renewal(link, deadline_ns)) {
        struct lli_link_target target = {
            .cluster_id = cluster_id,
            .local = link->local,
            .remote = link->remote,
            .incarnation = link->peer.incarnation,
        };
        (void)lli_link_connect(node, &target, deadline_ns);
        end_renewal(link);
    }
    lli_link_put(link);
}

struct aside {
    struct lli_node *node;
    uint64_t cluster_id;
    uint64_t deadline_ns;
};

static void
leave(struct lli_node *node)
{
    pthread_mutex_lock(&node->links_lock);
    node->num_asides--;
    pthread_cond_broadcast(&node->linking_ended);
    pthread_mutex_unlock(&node->links_lock);
}

static void *
renew_aside(void *arg)
{
    struct aside aside = *(struct aside *)arg;
    lli_free(arg);
    lli_link_renew(aside.node, aside.cluster_id, aside.deadline_ns);
    leave(aside.node);
    return NULL;
}

void
lli_link_renew_aside(struct lli_link *link)
{
    struct lli_node *node = link->node;
    if (!link->connected_by_us || node->options->relink == LLI_RELINK_NEVER)
        return;
    pthread_mutex_lock(&node->links_lock);
    bool enters = !node->closing;
    node->num_asides += enters;
    pthread_mutex_unlock(&node->links_lock);
    if (!enters)
        return;
    pthread_t thread;
    struct aside *aside = lli_malloc(sizeof(*aside));
    if (aside != NULL)
        *aside = (struct aside){.node = node,
                                .cluster_id = link->peer.cluster_id,
                                .deadline_ns = lli_deadline_after_ms(link->liveness_ms)};
    if (aside != NULL && lli_thread_start(&thread, "llm-relink", renew_aside, aside) == 0) {
        pthread_detach(thread);
        return;
    }
    // The next transfer that waits makes the link anew.
    lli_free(aside);
    leave(node);
}

void
lli_link_end_asides(struct lli_node *node)
{
    pthread_mutex_lock(&node->links_lock);
    node->closing = true;
    while (node->num_asides > 0)
        pthread_cond_wait(&node->linking_ended, &node->links_lock);
    pthread_mutex_unlock(&node->links_lock);
}

void
lli_link_await_data(struct lli_node *node, uint64_t cluster_id, uint64_t deadline_ns)
{
    uint64_t until_ns = lli_min(deadline_ns, lli_deadline_after_ms(node->options->liveness_ms));
    bool in_time = true;
    struct lli_link *link = lli_links_find(node, cluster_id);
    if (link == NULL)
        return;
    pthread_mutex_lock(&node->links_lock);
    // Out of the table: the new one comes at once.
    while (!link->connected_by_us && link->lacks_data && in_time &&
           (lli_list_empty(&link->in_table) ? !is_linked_locked(node, cluster_id) : !link->broken))
        in_time = lli_cond_wait_until(&node->links_changed, &node->links_lock, until_ns);
    pthread_mutex_unlock(&node->links_lock);
    lli_link_put(link);
}

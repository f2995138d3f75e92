#include "link/conn.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"

enum {
    // A peer that asks and doesn't read its answers is no longer read either.  Requests of our own
    // don't count: two ends that ask a lot of each other at once would wait for each other.  An end
    // that asks no more than LLI_SERVES_PER_LINK_MAX (serve.h) at a time never comes here: their
    // answers are shorter.
    OUT_BYTES_MAX = 1 << 20,
    OUT_NOTES_MAX = 16384,
    // Then the others get their turn.
    MESSAGES_PER_EVENT = 64,
};

struct out_message {
    struct lli_list node;
    size_t bytes;
    size_t sent;
    bool is_answer; // counts in conn->out_bytes
    bool is_note;   // counts in conn->out_notes
    uint8_t data[];
};

static bool
is_answer(enum lli_message_type type)
{
    switch (type) {
    case LLI_RESULT:
    case LLI_ANSWER:
    case LLI_CANCELLED:
    case LLI_UNLINK_REPLY:
    case LLI_PING:
    case LLI_PUSH_ACCEPTED:
        return true;
    default:
        return false;
    }
}

static void
free_conn(struct lli_source *source)
{
    struct lli_conn *conn = LLI_CONTAINER_OF(source, struct lli_conn, source);
    LLI_LIST_FOR(node, &conn->out)
        lli_free(LLI_LIST_ENTRY(node, struct out_message, node));
    lli_free(conn->body);
    lli_free(conn);
}

void
lli_conn_close(struct lli_conn *conn)
{
    if (conn->closed)
        return;
    conn->closed = true;
    lli_loop_remove(conn->loop, &conn->source);
}

static void
end(struct lli_conn *conn, const char *why)
{
    if (conn->closed)
        return;
    void (*on_closed)(struct lli_conn *, const char *) = conn->on_closed;
    lli_conn_close(conn);
    on_closed(conn, why);
}

// Ends the connection from where the caller can't take the news: the socket will report it.
static void
end_later(struct lli_conn *conn, const char *why)
{
    conn->why = why;
    shutdown(conn->source.fd, SHUT_RDWR);
    LLI_LIST_FOR(node, &conn->out) {
        lli_list_remove(node);
        lli_free(LLI_LIST_ENTRY(node, struct out_message, node));
    }
    conn->out_bytes = 0;
    conn->out_notes = 0;
}

static void
update_interest(struct lli_conn *conn)
{
    if (conn->closed)
        return;
    uint32_t events = conn->out_bytes < OUT_BYTES_MAX ? EPOLLIN : 0;
    if (!lli_list_empty(&conn->out))
        events |= EPOLLOUT;
    lli_loop_change(conn->loop, &conn->source, events | EPOLLRDHUP);
}

static void
flush(struct lli_conn *conn)
{
    while (!lli_list_empty(&conn->out)) {
        struct out_message *message = LLI_LIST_ENTRY(conn->out.next, struct out_message, node);
        ssize_t sent = send(conn->source.fd, message->data + message->sent,
                            message->bytes - message->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN)
                end_later(conn, "sending failed");
            break;
        }
        message->sent += (size_t)sent;
        if (message->is_answer)
            conn->out_bytes -= (size_t)sent;
        if (message->sent == message->bytes) {
            conn->out_notes -= message->is_note;
            lli_list_remove(&message->node);
            lli_free(message);
        }
    }
    update_interest(conn);
}

void
lli_conn_send(struct lli_conn *conn, enum lli_message_type type, uint64_t transfer_id,
              const void *body, size_t body_bytes)
{
    if (conn->closed || conn->why != NULL)
        return;
    // The peer is stopped, and wouldn't keep more of them.
    if (type == LLI_NOTIFY && conn->out_notes >= OUT_NOTES_MAX) {
        lli_log(LLM_LOG_WARN, "link", "a notification is dropped: %u wait for their peer to read",
                conn->out_notes);
        return;
    }
    size_t bytes = LLI_MESSAGE_HEADER_BYTES + body_bytes;
    struct out_message *message = lli_malloc(sizeof(*message) + bytes);
    if (message == NULL) {
        end_later(conn, "out of memory");
        return;
    }
    struct lli_message_header header = {
        .type = (uint8_t)type,
        .body_bytes = (uint32_t)body_bytes,
        .transfer_id = transfer_id,
    };
    lli_message_header_write(message->data, &header);
    if (body_bytes > 0)
        memcpy(message->data + LLI_MESSAGE_HEADER_BYTES, body, body_bytes);
    lli_message_seal(message->data, body, body_bytes);
    message->bytes = bytes;
    message->sent = 0;
    lli_list_append(&conn->out, &message->node);
    message->is_note = type == LLI_NOTIFY;
    conn->out_notes += message->is_note;
    message->is_answer = is_answer(type);
    if (message->is_answer)
        conn->out_bytes += bytes;
    flush(conn);
}

// Reads at most `bytes`; false when there is no more now, or when the connection has ended.
static bool
receive(struct lli_conn *conn, uint8_t *to, size_t bytes, size_t *got)
{
    while (*got < bytes) {
        ssize_t received = recv(conn->source.fd, to + *got, bytes - *got, MSG_DONTWAIT);
        if (received > 0) {
            *got += (size_t)received;
            conn->bytes_in += (uint64_t)received;
        } else if (received == 0) {
            end(conn, conn->why != NULL ? conn->why : "the peer closed the connection");
            return false;
        } else if (errno != EINTR) {
            if (errno != EAGAIN)
                end(conn, strerror(errno));
            return false;
        }
    }
    return true;
}

static bool
begin_body(struct lli_conn *conn)
{
    const char *wrong = lli_message_header_read(conn->head, &conn->header);
    if (wrong == NULL && conn->header.body_bytes > conn->body_bytes_max)
        wrong = "it sent a message that is too long";
    if (wrong != NULL) {
        end(conn, wrong);
        return false;
    }
    conn->body = lli_malloc(conn->header.body_bytes);
    conn->body_got = 0;
    if (conn->body == NULL)
        end(conn, "out of memory");
    return conn->body != NULL;
}

static bool
receive_message(struct lli_conn *conn)
{
    if (conn->body == NULL) {
        if (!receive(conn, conn->head, sizeof(conn->head), &conn->head_got) || !begin_body(conn))
            return false;
    }
    if (!receive(conn, conn->body, conn->header.body_bytes, &conn->body_got))
        return false;

    struct lli_message_header header = conn->header;
    struct lli_reader body;
    uint8_t *bytes = conn->body;
    if ((conn->must_be_sealed && (header.flags & LLI_FLAG_SEALED) == 0) ||
        !lli_message_is_intact(conn->head, bytes, header.body_bytes)) {
        end(conn, "a message has arrived with another checksum than it was sent with");
        return false;
    }
    lli_reader_init(&body, bytes, header.body_bytes);
    conn->body = NULL;
    conn->head_got = 0;
    conn->on_message(conn, &header, &body);
    lli_free(bytes);
    return !conn->closed;
}

static void
ready(struct lli_source *source, uint32_t events)
{
    struct lli_conn *conn = LLI_CONTAINER_OF(source, struct lli_conn, source);
    if ((events & EPOLLOUT) != 0)
        flush(conn);
    if (conn->out_bytes >= OUT_BYTES_MAX) {
        if ((events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)) != 0)
            end(conn, "the peer closed the connection");
        return;
    }
    for (int i = 0; i < MESSAGES_PER_EVENT && receive_message(conn); i++) {
    }
}

struct lli_conn *
lli_conn_open(struct lli_loop *loop, int fd, void *owner,
              void (*on_message)(struct lli_conn *conn, const struct lli_message_header *header,
                                 struct lli_reader *body),
              void (*on_closed)(struct lli_conn *conn, const char *why))
{
    struct lli_conn *conn = lli_calloc(1, sizeof(*conn));
    if (conn == NULL) {
        close(fd);
        return NULL;
    }
    conn->loop = loop;
    conn->owner = owner;
    conn->on_message = on_message;
    conn->on_closed = on_closed;
    conn->body_bytes_max = LLI_HELLO_BODY_BYTES_MAX;
    lli_list_init(&conn->out);
    conn->source = (struct lli_source){
        .fd = fd,
        .events = EPOLLIN | EPOLLRDHUP,
        .ready = ready,
        .free = free_conn,
    };
    if (lli_loop_add(loop, &conn->source) != LLM_SUCCESS) {
        close(fd);
        lli_free(conn);
        return NULL;
    }
    return conn;
}

int
lli_conn_detach(struct lli_conn *conn)
{
    int fd = LLI_RETRY(fcntl(conn->source.fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
    lli_conn_close(conn);
    return fd;
}

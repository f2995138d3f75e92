#include "transport/stream.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"

static const uint64_t frame_bytes_max = 512 << 10;
// What one connection may move before the others, and the control connections, get their turn.
static const uint64_t turn_bytes_max = 1 << 20;
// What the system may hold of a connection before it is under way: a small transfer that begins
// now waits behind no more.
static const int unsent_bytes_max = 256 << 10;

enum { PIECES_PER_CALL = 256, DISCARD_BYTES = 16 << 10 };

void
lli_stream_init(struct lli_stream *stream, struct lli_loop *loop, void *owner,
                void (*on_failed)(struct lli_stream *stream, const char *why))
{
    memset(stream, 0, sizeof(*stream));
    stream->loop = loop;
    stream->owner = owner;
    stream->on_failed = on_failed;
    lli_list_init(&stream->sending);
    lli_list_init(&stream->receiving);
}

static void
fail(struct lli_stream *stream, const char *why)
{
    if (stream->failed)
        return;
    stream->failed = true;
    stream->on_failed(stream, why);
}

// The pieces of the job's memory that hold the stream's bytes from `position` on, at most `bytes`.
static size_t
gather(const struct lli_stream_job *job, uint64_t position, uint64_t bytes, struct iovec *pieces,
       size_t num_pieces_max)
{
    const struct lli_plan *plan = job->plan;
    struct lli_place place = lli_plan_locate(plan, position);
    size_t num_pieces = 0;
    while (bytes > 0 && num_pieces < num_pieces_max) {
        const struct lli_run *run = &plan->runs[place.run];
        uint64_t offset = (job->is_source ? run->src_offset : run->dst_offset) + place.offset;
        uint64_t piece_bytes = lli_min(run->bytes - place.offset, bytes);
        pieces[num_pieces++] = (struct iovec){
            .iov_base = (void *)(job->tensors[place.tensor] + offset),
            .iov_len = piece_bytes,
        };
        bytes -= piece_bytes;
        place.offset = 0;
        if (++place.run == plan->num_runs) {
            place.run = 0;
            place.tensor++;
        }
    }
    return num_pieces;
}

// ---- sending ----

// Takes the next frame of the job whose turn it is.  False if nobody has anything to send.
static bool
begin_frame(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    if (lli_list_empty(&stream->sending))
        return false;
    struct lli_stream_job *job = LLI_LIST_ENTRY(stream->sending.next, struct lli_stream_job, node);
    uint64_t bytes = lli_min(frame_bytes_max, job->plan->total_bytes - job->position);
    struct lli_message_header header = {
        .type = LLI_DATA,
        .body_bytes = (uint32_t)bytes,
        .transfer_id = job->id,
        .argument = job->position,
    };
    lli_message_header_write(conn->out_head, &header);
    conn->out_head_sent = 0;
    conn->out_job = job;
    conn->out_position = job->position;
    conn->out_left = bytes;
    job->position += bytes;
    job->num_frames++;
    lli_list_remove(&job->node);
    if (job->position < job->plan->total_bytes)
        lli_list_append(&stream->sending, &job->node);
    return true;
}

static void
end_frame(struct lli_stream_conn *conn)
{
    struct lli_stream_job *job = conn->out_job;
    conn->out_job = NULL;
    job->num_frames--;
    if (job->num_frames == 0 && (job->cancelled || job->position == job->plan->total_bytes))
        job->done(job);
}

// One system call's worth of the current frame; -1 with errno, or the bytes sent.
static ssize_t
send_some(struct lli_stream_conn *conn)
{
    struct iovec pieces[1 + PIECES_PER_CALL];
    size_t num_pieces = 0;
    if (conn->out_head_sent < sizeof(conn->out_head))
        pieces[num_pieces++] = (struct iovec){
            .iov_base = conn->out_head + conn->out_head_sent,
            .iov_len = sizeof(conn->out_head) - conn->out_head_sent,
        };
    num_pieces += gather(conn->out_job, conn->out_position, conn->out_left, pieces + num_pieces,
                         PIECES_PER_CALL);
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = num_pieces};
    ssize_t sent = sendmsg(conn->source.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0)
        return sent;
    uint64_t head_bytes = lli_min((uint64_t)sent, sizeof(conn->out_head) - conn->out_head_sent);
    conn->out_head_sent += head_bytes;
    conn->out_position += (uint64_t)sent - head_bytes;
    conn->out_left -= (uint64_t)sent - head_bytes;
    return sent;
}

static void
send_turn(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    uint64_t turn_bytes = 0;
    bool blocked = false;
    while (!blocked && turn_bytes < turn_bytes_max) {
        if (conn->out_job == NULL && !begin_frame(conn))
            break;
        ssize_t sent = send_some(conn);
        if (sent >= 0) {
            turn_bytes += (uint64_t)sent;
            if (conn->out_left == 0 && conn->out_head_sent == sizeof(conn->out_head))
                end_frame(conn);
        } else if (errno == EAGAIN) {
            blocked = true;
        } else if (errno != EINTR) {
            fail(stream, strerror(errno));
            return;
        }
        if (stream->failed)
            return;
    }
    bool has_more = conn->out_job != NULL || !lli_list_empty(&stream->sending);
    lli_loop_change(stream->loop, &conn->source, has_more ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

void
lli_stream_send(struct lli_stream *stream, struct lli_stream_job *job)
{
    lli_list_append(&stream->sending, &job->node);
    for (size_t i = 0; i < stream->num_conns; i++)
        lli_loop_change(stream->loop, &stream->conns[i]->source, EPOLLIN | EPOLLOUT);
}

void
lli_stream_cancel_send(struct lli_stream *stream, struct lli_stream_job *job)
{
    (void)stream;
    job->cancelled = true;
    lli_list_remove(&job->node);
    if (job->num_frames == 0)
        job->done(job);
}

// ---- receiving ----

static struct lli_stream_job *
find_receiving(struct lli_stream *stream, uint64_t id)
{
    LLI_LIST_FOR(node, &stream->receiving) {
        struct lli_stream_job *job = LLI_LIST_ENTRY(node, struct lli_stream_job, node);
        if (job->id == id)
            return job;
    }
    return NULL;
}

// A header is complete: whose bytes follow, and where do they belong?
static bool
begin_body(struct lli_stream_conn *conn)
{
    struct lli_message_header header;
    const char *wrong = lli_message_header_read(conn->in_head, &header);
    if (wrong == NULL && (header.type != LLI_DATA || header.body_bytes > LLI_DATA_BODY_BYTES_MAX))
        wrong = "it sent something else than data on a data connection";
    if (wrong == NULL) {
        conn->in_job = find_receiving(conn->stream, header.transfer_id);
        conn->in_position = header.argument;
        conn->in_left = header.body_bytes;
        // Every byte once: the sum of the frames tells when all have arrived.
        if (conn->in_job != NULL &&
            (header.argument > conn->in_job->plan->total_bytes ||
             header.body_bytes > conn->in_job->plan->total_bytes - header.argument ||
             header.body_bytes > conn->in_job->plan->total_bytes - conn->in_job->position))
            wrong = "it sent data beyond the end of a transfer";
    }
    if (wrong != NULL) {
        conn->in_job = NULL;
        fail(conn->stream, wrong);
        return false;
    }
    if (conn->in_job != NULL)
        conn->in_job->position += header.body_bytes;
    if (conn->in_job != NULL)
        conn->in_job->num_frames++;
    return true;
}

static void
end_body(struct lli_stream_conn *conn)
{
    struct lli_stream_job *job = conn->in_job;
    conn->in_head_got = 0;
    conn->in_job = NULL;
    if (job == NULL)
        return;
    job->num_frames--;
    if (job->num_frames == 0 && job->position == job->plan->total_bytes) {
        lli_list_remove(&job->node);
        job->done(job);
    }
}

static ssize_t
receive_body(struct lli_stream_conn *conn)
{
    uint8_t unwanted[DISCARD_BYTES];
    struct iovec pieces[PIECES_PER_CALL];
    size_t num_pieces = 1;
    if (conn->in_job == NULL)
        pieces[0] = (struct iovec){unwanted, lli_min(conn->in_left, sizeof(unwanted))};
    else
        num_pieces =
            gather(conn->in_job, conn->in_position, conn->in_left, pieces, PIECES_PER_CALL);
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = num_pieces};
    ssize_t received = recvmsg(conn->source.fd, &message, MSG_DONTWAIT);
    if (received > 0) {
        conn->in_position += (uint64_t)received;
        conn->in_left -= (uint64_t)received;
    }
    return received;
}

static ssize_t
receive_some(struct lli_stream_conn *conn)
{
    if (conn->in_head_got == sizeof(conn->in_head) && conn->in_left > 0)
        return receive_body(conn);
    ssize_t received = recv(conn->source.fd, conn->in_head + conn->in_head_got,
                            sizeof(conn->in_head) - conn->in_head_got, MSG_DONTWAIT);
    if (received > 0) {
        conn->in_head_got += (size_t)received;
        if (conn->in_head_got == sizeof(conn->in_head) && !begin_body(conn)) {
            errno = EPROTO;
            return -1;
        }
    }
    return received;
}

static void
receive_turn(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    uint64_t turn_bytes = 0;
    while (turn_bytes < turn_bytes_max && !stream->failed) {
        ssize_t received = receive_some(conn);
        if (received > 0) {
            turn_bytes += (uint64_t)received;
            stream->bytes_in += (uint64_t)received;
            if (conn->in_head_got == sizeof(conn->in_head) && conn->in_left == 0)
                end_body(conn);
        } else if (received == 0) {
            fail(stream, "the peer closed a data connection");
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR) {
            fail(stream, strerror(errno));
        }
    }
}

void
lli_stream_receive(struct lli_stream *stream, struct lli_stream_job *job)
{
    lli_list_append(&stream->receiving, &job->node);
}

void
lli_stream_cancel_receive(struct lli_stream *stream, struct lli_stream_job *job)
{
    lli_list_remove(&job->node);
    for (size_t i = 0; i < stream->num_conns; i++) {
        if (stream->conns[i]->in_job == job)
            stream->conns[i]->in_job = NULL;
    }
    job->num_frames = 0;
}

// ---- connections ----

static void
ready(struct lli_source *source, uint32_t events)
{
    struct lli_stream_conn *conn = LLI_CONTAINER_OF(source, struct lli_stream_conn, source);
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
        receive_turn(conn);
    if ((events & EPOLLOUT) != 0 && source->added)
        send_turn(conn);
}

static void
free_conn(struct lli_source *source)
{
    lli_free(LLI_CONTAINER_OF(source, struct lli_stream_conn, source));
}

llm_status
lli_stream_add(struct lli_stream *stream, int fd)
{
    struct lli_stream_conn *conn = lli_calloc(1, sizeof(*conn));
    if (conn == NULL || stream->num_conns == LLI_NUM_STREAM_CONNS_MAX) {
        lli_free(conn);
        close(fd);
        return lli_fail(LLM_FAILED, "tcp", "can't take %zu data connections on one link",
                        stream->num_conns + 1);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_bytes_max, sizeof(unsent_bytes_max));
    conn->stream = stream;
    conn->source = (struct lli_source){
        .fd = fd,
        .events = EPOLLIN,
        .ready = ready,
        .free = free_conn,
    };
    llm_status status = lli_loop_add(stream->loop, &conn->source);
    if (status != LLM_SUCCESS) {
        close(fd);
        lli_free(conn);
        return status;
    }
    stream->conns[stream->num_conns++] = conn;
    return LLM_SUCCESS;
}

void
lli_stream_close(struct lli_stream *stream)
{
    stream->failed = true;
    for (size_t i = 0; i < stream->num_conns; i++)
        lli_loop_remove(stream->loop, &stream->conns[i]->source);
    stream->num_conns = 0;
    LLI_LIST_FOR(node, &stream->sending)
        lli_list_remove(node);
    LLI_LIST_FOR(node, &stream->receiving)
        lli_list_remove(node);
}

#include "transport/stream.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "base/unwatched.h"

static const uint64_t frame_bytes_max = 512 << 10;
// What one connection may move before the others, and the control connections, get their turn.
static const uint64_t turn_bytes_max = 1 << 20;
// What the system may hold of a connection before it is under way: a small transfer that begins
// now waits behind no more.
static const int unsent_bytes_max = 256 << 10;
static const uint64_t small_bytes_max = 64 << 10;

enum { PIECES_PER_CALL = 256, DISCARD_BYTES = 16 << 10 };

// What a probe says, where other frames have their position.
enum { PROBE_ALIVE = 0, PROBE_ANSWER_ME = 1 };

static void run_news(struct lli_task *task);

void
lli_stream_init(struct lli_stream *stream, struct lli_lanes *lanes, void *owner,
                void (*on_failed)(struct lli_stream *stream, const char *why))
{
    memset(stream, 0, sizeof(*stream));
    stream->loop = lanes->main;
    stream->lanes = lanes;
    stream->owner = owner;
    stream->on_failed = on_failed;
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->call_ended, NULL);
    lli_list_init(&stream->sending);
    lli_list_init(&stream->receiving);
    lli_list_init(&stream->finished);
    lli_list_init(&stream->news.node);
    stream->news.run = run_news;
}

void
lli_stream_fini(struct lli_stream *stream)
{
    pthread_cond_destroy(&stream->call_ended);
    pthread_mutex_destroy(&stream->lock);
}

// ---- taking a job away from the connections ----

// No connection begins to write into the job's memory any more.
static void
unhook_locked(struct lli_stream *stream, struct lli_stream_job *job)
{
    lli_list_remove(&job->node);
    for (size_t i = 0; i < stream->num_conns; i++) {
        if (stream->conns[i]->in_job == job)
            stream->conns[i]->in_job = NULL;
    }
}

// None is writing into it.  A call that has begun ends soon: it doesn't wait for bytes.  Only the
// instance's thread waits, so that two threads never wait for each other.
static void
wait_for_calls_locked(struct lli_stream *stream, const struct lli_stream_job *job)
{
    for (size_t i = 0; i < stream->num_conns; i++) {
        while (stream->conns[i]->in_call == job)
            pthread_cond_wait(&stream->call_ended, &stream->lock);
    }
}

// ---- telling the instance's thread ----

static void
post_news_locked(struct lli_stream *stream)
{
    if (!stream->news_posted)
        lli_loop_post(stream->loop, &stream->news);
    stream->news_posted = true;
}

static struct lli_stream_job *
take_finished(struct lli_stream *stream)
{
    struct lli_stream_job *job = NULL;
    pthread_mutex_lock(&stream->lock);
    if (!lli_list_empty(&stream->finished)) {
        job = LLI_LIST_ENTRY(stream->finished.next, struct lli_stream_job, node);
        lli_list_remove(&job->node);
        wait_for_calls_locked(stream, job);
        lli_arrival_fini(&job->arrival);
    }
    pthread_mutex_unlock(&stream->lock);
    return job;
}

static void
call_done(struct lli_stream *stream)
{
    for (struct lli_stream_job *job; (job = take_finished(stream)) != NULL;)
        job->done(job);
}

static void
run_news(struct lli_task *task)
{
    struct lli_stream *stream = LLI_CONTAINER_OF(task, struct lli_stream, news);
    pthread_mutex_lock(&stream->lock);
    stream->news_posted = false;
    bool has_failed = stream->failed && !stream->failure_is_told;
    stream->failure_is_told |= has_failed;
    pthread_mutex_unlock(&stream->lock);
    call_done(stream);
    if (has_failed)
        stream->on_failed(stream, stream->why);
}

static void
fail(struct lli_stream *stream, const char *why)
{
    pthread_mutex_lock(&stream->lock);
    if (!stream->failed) {
        stream->failed = true;
        snprintf(stream->why, sizeof(stream->why), "%s", why);
        post_news_locked(stream);
    }
    pthread_mutex_unlock(&stream->lock);
}

// The job is through; its connection calls tell_finished next.
static void
finish_locked(struct lli_stream_conn *conn, struct lli_stream_job *job)
{
    struct lli_stream *stream = conn->stream;
    lli_list_remove(&job->node);
    lli_list_append(&stream->finished, &job->node);
    if (conn->loop != stream->loop)
        post_news_locked(stream);
}

static void
tell_finished(struct lli_stream_conn *conn)
{
    if (conn->loop == conn->stream->loop)
        call_done(conn->stream);
}

static bool
may_have_holes(const struct lli_stream_job *job)
{
    return job->is_source && job->holes.num_files > 0 &&
           job->plan->total_bytes >= LLI_LOOKED_AT_BYTES_MIN;
}

// A piece of memory, or zeros in the place of a hole there; *looks becomes false where there is none.
static struct iovec
piece_at(const struct lli_stream_job *job, uintptr_t address, uint64_t bytes, bool *looks)
{
    uint64_t hole_bytes = *looks ? lli_hole_bytes(&job->holes, address, bytes) : 0;
    *looks = hole_bytes > 0;
    return (struct iovec){
        .iov_base = *looks ? (void *)(uintptr_t)lli_zeros() : (void *)address,
        .iov_len = *looks ? lli_min(hole_bytes, LLI_ZERO_BYTES) : bytes,
    };
}

// The pieces of the job's memory that hold the stream's bytes from `position` on, at most `bytes`;
// returns how many bytes they hold.  Holes are looked for up to the first memory.
static uint64_t
gather(const struct lli_stream_job *job, uint64_t position, uint64_t bytes, struct iovec *pieces,
       size_t num_pieces_max, size_t *ret_num_pieces)
{
    const struct lli_plan *plan = job->plan;
    struct lli_place place = lli_plan_locate(plan, position);
    uint64_t bytes_left = bytes;
    size_t num_pieces = 0;
    bool looks = may_have_holes(job);
    while (bytes_left > 0 && num_pieces < num_pieces_max) {
        const struct lli_run *run = &plan->runs[place.run];
        uint64_t offset = (job->is_source ? run->src_offset : run->dst_offset) + place.offset;
        uint64_t piece_bytes = lli_min(run->bytes - place.offset, bytes_left);
        struct iovec piece =
            piece_at(job, job->tensors[place.tensor] + offset, piece_bytes, &looks);
        pieces[num_pieces++] = piece;
        bytes_left -= piece.iov_len;
        place.offset += piece.iov_len;
        if (place.offset < run->bytes)
            continue;
        place.offset = 0;
        if (++place.run == plan->num_runs) {
            place.run = 0;
            place.tensor++;
        }
    }
    *ret_num_pieces = num_pieces;
    return bytes - bytes_left;
}

// ---- sending ----

// The next frame of the job whose turn it is.
static void
take_frame_locked(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    struct lli_stream_job *job = LLI_LIST_ENTRY(stream->sending.next, struct lli_stream_job, node);
    uint64_t bytes = lli_min(frame_bytes_max, job->plan->total_bytes - job->position);
    struct lli_message_header header = {
        .type = LLI_DATA,
        .flags = job->flags,
        .body_bytes = (uint32_t)bytes,
        .transfer_id = job->id,
        .argument = job->position,
    };
    lli_message_header_write(conn->out_head, &header);
    conn->out_head_sent = 0;
    conn->out_sums_bytes = conn->out_sums_sent = 0;
    conn->out_job = job;
    conn->out_position = job->position;
    conn->out_left = bytes;
    job->position += bytes;
    job->num_frames++;
    lli_list_remove(&job->node);
    if (job->position < job->plan->total_bytes)
        lli_list_append(&stream->sending, &job->node);
}

// The memory is the sender's while the frame is under way.
static void
sum_frame(struct lli_stream_conn *conn)
{
    const struct lli_stream_job *job = conn->out_job;
    conn->out_sums_bytes = lli_cells_count(conn->out_position, conn->out_left) * LLI_CELL_SUM_BYTES;
    lli_cells_sum(job->plan, job->tensors, true, may_have_holes(job) ? &job->holes : NULL,
                  conn->out_position, conn->out_left, conn->out_sums);
    lli_message_seal(conn->out_head, NULL, 0);
}

static void
take_probe_locked(struct lli_stream_conn *conn)
{
    struct lli_message_header header = {
        .type = LLI_DATA,
        .argument = conn->asks_for_probe ? PROBE_ANSWER_ME : PROBE_ALIVE,
    };
    lli_message_header_write(conn->out_head, &header);
    lli_message_seal(conn->out_head, NULL, 0);
    conn->out_head_sent = 0;
    conn->out_sums_bytes = conn->out_sums_sent = 0;
    conn->probing = true;
    conn->owes_probe = conn->asks_for_probe = false;
}

// False if nobody has anything to send: then the connection waits to be woken up.
static bool
begin_frame(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    pthread_mutex_lock(&stream->lock);
    bool has_data = !lli_list_empty(&stream->sending);
    if (has_data)
        take_frame_locked(conn);
    else if (conn->owes_probe)
        take_probe_locked(conn);
    else
        lli_loop_change(conn->loop, &conn->source, EPOLLIN);
    pthread_mutex_unlock(&stream->lock);
    if (has_data && stream->checked)
        sum_frame(conn);
    return has_data || conn->probing;
}

static void
end_frame(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    struct lli_stream_job *job = conn->out_job;
    if (conn->probing) {
        conn->probing = false;
        return;
    }
    pthread_mutex_lock(&stream->lock);
    conn->out_job = NULL;
    job->num_frames--;
    if (job->num_frames == 0 && (job->cancelled || job->position == job->plan->total_bytes))
        finish_locked(conn, job);
    pthread_mutex_unlock(&stream->lock);
    tell_finished(conn);
}

static struct iovec
rest_of(uint8_t *bytes, size_t num_bytes, size_t done)
{
    return (struct iovec){.iov_base = bytes + done, .iov_len = num_bytes - done};
}

static bool
has_left(const struct lli_stream_conn *conn)
{
    return conn->out_left == 0 && conn->out_head_sent == sizeof(conn->out_head) &&
           conn->out_sums_sent == conn->out_sums_bytes;
}

// One system call's worth of the current frame; -1 with errno, or the bytes sent.
static ssize_t
send_some(struct lli_stream_conn *conn)
{
    struct iovec pieces[2 + PIECES_PER_CALL];
    size_t num_pieces = 0;
    size_t num_data = 0;
    if (conn->out_head_sent < sizeof(conn->out_head))
        pieces[num_pieces++] = rest_of(conn->out_head, sizeof(conn->out_head), conn->out_head_sent);
    uint64_t gathered = 0;
    if (!conn->probing)
        gathered = gather(conn->out_job, conn->out_position, conn->out_left, pieces + num_pieces,
                          PIECES_PER_CALL, &num_data);
    num_pieces += num_data;
    if (gathered == conn->out_left && conn->out_sums_sent < conn->out_sums_bytes)
        pieces[num_pieces++] = rest_of(conn->out_sums, conn->out_sums_bytes, conn->out_sums_sent);
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = num_pieces};
    ssize_t sent = sendmsg(conn->source.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0)
        return sent;
    atomic_fetch_add_explicit(&conn->bytes_out, (uint64_t)sent, memory_order_relaxed);
    uint64_t head_bytes = lli_min((uint64_t)sent, sizeof(conn->out_head) - conn->out_head_sent);
    uint64_t data_bytes = lli_min((uint64_t)sent - head_bytes, conn->out_left);
    conn->out_head_sent += head_bytes;
    conn->out_position += data_bytes;
    conn->out_left -= data_bytes;
    conn->out_sums_sent += (uint64_t)sent - head_bytes - data_bytes;
    return sent;
}

static void
send_more_later(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    pthread_mutex_lock(&stream->lock);
    lli_loop_change(conn->loop, &conn->source, EPOLLIN | EPOLLOUT);
    pthread_mutex_unlock(&stream->lock);
}

static void
send_turn(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    uint64_t turn_bytes = 0;
    while (turn_bytes < turn_bytes_max) {
        if (conn->out_job == NULL && !conn->probing && !begin_frame(conn))
            return;
        ssize_t sent = send_some(conn);
        if (sent >= 0) {
            turn_bytes += (uint64_t)sent;
            if (has_left(conn))
                end_frame(conn);
        } else if (errno == EAGAIN) {
            break;
        } else if (errno != EINTR) {
            fail(stream, strerror(errno));
        }
        if (!conn->source.added || stream->failed)
            return;
    }
    send_more_later(conn);
}

// Wakes up as many idle connections as there are frames.  The busy ones look by themselves.
static void
wake_senders_locked(struct lli_stream *stream, uint64_t num_frames)
{
    for (size_t i = 0; i < stream->num_conns && num_frames > 0; i++) {
        struct lli_stream_conn *conn = stream->conns[i];
        if (conn->out_job != NULL) // NOLINT: so many are there
            continue;
        lli_loop_change(conn->loop, &conn->source, EPOLLIN | EPOLLOUT);
        num_frames--;
    }
}

void
lli_stream_send(struct lli_stream *stream, struct lli_stream_job *job)
{
    pthread_mutex_lock(&stream->lock);
    job->position = job->start_position;
    uint64_t bytes = job->plan->total_bytes - job->position;
    lli_list_append(&stream->sending, &job->node);
    // What is small leaves from here: waking a thread, this one too, takes longer.
    struct lli_stream_conn *own = stream->num_conns > 0 ? stream->conns[0] : NULL;
    bool here = bytes <= small_bytes_max && own != NULL && own->loop == stream->loop &&
                own->out_job == NULL && !stream->failed;
    if (!here)
        wake_senders_locked(stream, (bytes + frame_bytes_max - 1) / frame_bytes_max);
    pthread_mutex_unlock(&stream->lock);
    if (here)
        send_turn(own);
}

void
lli_stream_cancel_send(struct lli_stream *stream, struct lli_stream_job *job)
{
    pthread_mutex_lock(&stream->lock);
    job->cancelled = true;
    lli_list_remove(&job->node);
    bool is_done = job->num_frames == 0;
    pthread_mutex_unlock(&stream->lock);
    if (is_done)
        job->done(job);
}

bool
lli_stream_is_under_way(struct lli_stream *stream, const struct lli_stream_job *job)
{
    pthread_mutex_lock(&stream->lock);
    bool is_under_way = job->num_frames > 0;
    pthread_mutex_unlock(&stream->lock);
    return is_under_way;
}

bool
lli_stream_has_begun_all(struct lli_stream *stream, const struct lli_stream_job *job)
{
    pthread_mutex_lock(&stream->lock);
    bool has_begun_all = job->position == job->plan->total_bytes;
    pthread_mutex_unlock(&stream->lock);
    return has_begun_all;
}

uint64_t
lli_stream_arrived(struct lli_stream *stream, const struct lli_stream_job *job)
{
    pthread_mutex_lock(&stream->lock);
    uint64_t arrived = job->arrival.prefix;
    pthread_mutex_unlock(&stream->lock);
    return arrived;
}

// ---- receiving ----

static struct lli_stream_job *
find_receiving_locked(struct lli_stream *stream, uint64_t id)
{
    LLI_LIST_FOR(node, &stream->receiving) {
        struct lli_stream_job *job = LLI_LIST_ENTRY(node, struct lli_stream_job, node);
        if (job->id == id)
            return job;
    }
    return NULL;
}

// Bytes of a wanted transfer follow.  NULL, or what is wrong with them.
static const char *
claim_frame_locked(struct lli_stream_job *job, const struct lli_message_header *header)
{
    uint64_t total_bytes = job->plan->total_bytes;
    if (header->argument > total_bytes || header->body_bytes > total_bytes - header->argument)
        return "it sent data beyond the end of a transfer";
    job->flags |= header->flags;
    if (header->body_bytes == 0)
        return NULL;
    return lli_arrival_claim(&job->arrival, header->argument, header->body_bytes);
}

static void
owe_probe_locked(struct lli_stream_conn *conn, bool asks)
{
    conn->owes_probe = true;
    conn->asks_for_probe |= asks;
    // Looks by itself when the frame that it is sending has left.
    if (conn->out_job == NULL)
        lli_loop_change(conn->loop, &conn->source, EPOLLIN | EPOLLOUT);
}

static void
take_in_probe(struct lli_stream_conn *conn, const struct lli_message_header *header)
{
    struct lli_stream *stream = conn->stream;
    if (header->argument != PROBE_ANSWER_ME)
        return;
    pthread_mutex_lock(&stream->lock);
    if (!stream->failed)
        owe_probe_locked(conn, false);
    pthread_mutex_unlock(&stream->lock);
}

// A header is complete: whose bytes follow, and where do they belong?
static void
begin_body(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    struct lli_message_header header;
    const char *wrong = lli_message_header_read(conn->in_head, &header);
    conn->in_head_got = 0;
    if (wrong == NULL && ((stream->checked && (header.flags & LLI_FLAG_SEALED) == 0) ||
                          !lli_message_is_intact(conn->in_head, NULL, 0)))
        wrong = "the header of a frame has arrived with another checksum than it was sent with";
    if (wrong == NULL && (header.type != LLI_DATA || header.body_bytes > LLI_DATA_BODY_BYTES_MAX))
        wrong = "it sent something else than data on a data connection";
    if (wrong == NULL && header.argument > UINT64_MAX - header.body_bytes)
        wrong = "it sent data beyond the end of every transfer";
    if (wrong == NULL) {
        pthread_mutex_lock(&stream->lock);
        struct lli_stream_job *job =
            stream->failed ? NULL : find_receiving_locked(stream, header.transfer_id);
        if (job != NULL)
            wrong = claim_frame_locked(job, &header);
        if (wrong == NULL && header.body_bytes > 0)
            conn->in_job = job;
        pthread_mutex_unlock(&stream->lock);
    }
    if (wrong != NULL) {
        fail(stream, wrong);
        return;
    }
    if (header.transfer_id == 0 && header.body_bytes == 0)
        take_in_probe(conn, &header);
    conn->in_first = conn->in_position = header.argument;
    conn->in_left = header.body_bytes;
    conn->in_sums_got = 0;
    conn->in_sums_bytes = 0;
    if (stream->checked && header.body_bytes > 0)
        conn->in_sums_bytes =
            lli_cells_count(header.argument, header.body_bytes) * LLI_CELL_SUM_BYTES;
}

// Between these two this thread may touch the job's memory.
static struct lli_stream_job *
begin_call(struct lli_stream_conn *conn)
{
    pthread_mutex_lock(&conn->stream->lock);
    struct lli_stream_job *job = conn->in_call = conn->in_job;
    pthread_mutex_unlock(&conn->stream->lock);
    return job;
}

static void
end_call(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    pthread_mutex_lock(&stream->lock);
    if (conn->in_call != conn->in_job)
        pthread_cond_broadcast(&stream->call_ended);
    conn->in_call = NULL;
    pthread_mutex_unlock(&stream->lock);
}

static ssize_t
receive_pieces(int fd, struct iovec *pieces, size_t num_pieces)
{
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = num_pieces};
    LLI_UNWATCHED_BEGIN();
    ssize_t received = recvmsg(fd, &message, MSG_DONTWAIT);
    LLI_UNWATCHED_END();
    return received;
}

// True if what has arrived of the frame is what was sent, or nobody wants it.
static bool
check_frame(struct lli_stream_conn *conn, uint64_t *ret_corrupt_position)
{
    uint8_t sums[LLI_FRAME_SUMS_BYTES_MAX];
    size_t at = 0;
    struct lli_stream_job *job = begin_call(conn);
    if (job != NULL) {
        lli_cells_sum(job->plan, job->tensors, false, NULL, conn->in_first,
                      conn->in_position - conn->in_first, sums);
        while (at < conn->in_sums_bytes && sums[at] == conn->in_sums[at])
            at++;
    }
    end_call(conn);
    uint64_t cell = at / LLI_CELL_SUM_BYTES;
    *ret_corrupt_position =
        cell == 0 ? conn->in_first : (conn->in_first / LLI_CELL_BYTES + cell) * LLI_CELL_BYTES;
    return job == NULL || at == conn->in_sums_bytes;
}

static void
end_body(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    uint64_t corrupt_position = 0;
    bool is_sound = conn->in_sums_bytes == 0 || check_frame(conn, &corrupt_position);
    pthread_mutex_lock(&stream->lock);
    struct lli_stream_job *job = conn->in_job;
    conn->in_job = NULL;
    if (job != NULL && is_sound) {
        lli_arrival_settle(&job->arrival, conn->in_first);
        if (job->arrival.prefix == job->plan->total_bytes)
            finish_locked(conn, job);
    } else if (job != NULL) {
        unhook_locked(stream, job);
        job->is_corrupt = true;
        job->corrupt_position = corrupt_position;
        finish_locked(conn, job);
    }
    pthread_mutex_unlock(&stream->lock);
    tell_finished(conn);
}

// One system call's worth: of the current frame and, behind it, the next header.  *ret_asked: what
// there was room for.
static ssize_t
receive_some(struct lli_stream_conn *conn, uint64_t *ret_asked)
{
    uint8_t unwanted[DISCARD_BYTES];
    struct iovec pieces[PIECES_PER_CALL + 2];
    size_t num_pieces = 0;
    uint64_t asked = 0;
    bool in_body = conn->in_left > 0;
    struct lli_stream_job *job = in_body ? begin_call(conn) : NULL;
    if (job != NULL) {
        asked = gather(job, conn->in_position, conn->in_left, pieces, PIECES_PER_CALL, &num_pieces);
    } else if (in_body) {
        asked = lli_min(conn->in_left, sizeof(unwanted));
        pieces[num_pieces++] = (struct iovec){unwanted, asked};
    }
    if (asked == conn->in_left) {
        if (conn->in_sums_got < conn->in_sums_bytes)
            pieces[num_pieces++] = rest_of(conn->in_sums, conn->in_sums_bytes, conn->in_sums_got);
        pieces[num_pieces++] = rest_of(conn->in_head, sizeof(conn->in_head), conn->in_head_got);
        asked +=
            conn->in_sums_bytes - conn->in_sums_got + sizeof(conn->in_head) - conn->in_head_got;
    }
    ssize_t received = receive_pieces(conn->source.fd, pieces, num_pieces);
    int error = errno;
    if (in_body)
        end_call(conn);
    errno = error;
    *ret_asked = asked;
    return received;
}

static void
take_in(struct lli_stream_conn *conn, uint64_t bytes)
{
    bool in_frame = conn->in_left > 0 || conn->in_sums_got < conn->in_sums_bytes;
    uint64_t body_bytes = lli_min(bytes, conn->in_left);
    uint64_t sums_bytes = lli_min(bytes - body_bytes, conn->in_sums_bytes - conn->in_sums_got);
    atomic_fetch_add_explicit(&conn->bytes_in, bytes, memory_order_relaxed);
    // Probes are no sign of life but of the connection's own.
    atomic_fetch_add_explicit(&conn->stream->bytes_in, body_bytes + sums_bytes,
                              memory_order_relaxed);
    conn->in_position += body_bytes;
    conn->in_left -= body_bytes;
    conn->in_sums_got += sums_bytes;
    conn->in_head_got += bytes - body_bytes - sums_bytes;
    if (in_frame && conn->in_left == 0 && conn->in_sums_got == conn->in_sums_bytes)
        end_body(conn);
    if (conn->source.added && conn->in_head_got == sizeof(conn->in_head))
        begin_body(conn);
}

static void
receive_turn(struct lli_stream_conn *conn)
{
    struct lli_stream *stream = conn->stream;
    uint64_t turn_bytes = 0;
    while (turn_bytes < turn_bytes_max && conn->source.added && !stream->failed) {
        uint64_t asked;
        ssize_t received = receive_some(conn, &asked);
        if (received > 0) {
            turn_bytes += (uint64_t)received;
            take_in(conn, (uint64_t)received);
            // There is no more, or the loop will come back at once.
            if ((uint64_t)received < asked)
                return;
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
    pthread_mutex_lock(&stream->lock);
    lli_arrival_init(&job->arrival, job->start_position);
    lli_list_append(&stream->receiving, &job->node);
    pthread_mutex_unlock(&stream->lock);
}

void
lli_stream_cancel_receive(struct lli_stream *stream, struct lli_stream_job *job)
{
    pthread_mutex_lock(&stream->lock);
    unhook_locked(stream, job);
    wait_for_calls_locked(stream, job);
    lli_arrival_fini(&job->arrival);
    pthread_mutex_unlock(&stream->lock);
}

// ---- watching ----

// How often the peer must have been heard elsewhere before a connection's silence counts: it may have
// been starved with all of its threads, and the first of them to run again isn't the one that sends here.
enum { TICKS_SPOKEN_MIN = 3 };

static void
look(struct lli_stream_sight *sight, uint64_t bytes, bool peer_speaks)
{
    if (bytes != sight->bytes) {
        *sight = (struct lli_stream_sight){.bytes = bytes};
        return;
    }
    sight->ticks_still++;
    sight->ticks_spoken += peer_speaks;
    sight->ticks_mute = peer_speaks ? 0 : sight->ticks_mute + 1;
    sight->outage_ticks = lli_max(sight->outage_ticks, sight->ticks_mute);
}

// After an outage of the whole path TCP sends again, on each connection by itself, when as much time
// again has passed at the latest.
static bool
is_still(const struct lli_stream_sight *sight, uint64_t ticks, uint64_t pause_ticks)
{
    uint64_t outage_ticks = sight->outage_ticks > pause_ticks ? sight->outage_ticks : 0;
    return sight->ticks_still > ticks + 2 * outage_ticks && sight->ticks_spoken >= TICKS_SPOKEN_MIN;
}

// Bytes that have come, and that a starved thread of this process has not fetched.
static bool
has_bytes_waiting(const struct lli_stream_conn *conn)
{
    uint8_t byte;
    ssize_t got = recv(conn->source.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return got >= 0 || errno != EAGAIN;
}

static const char *
watch_conn(struct lli_stream_conn *conn, bool peer_speaks, uint64_t silent_ticks,
           uint64_t stuck_ticks)
{
    struct lli_stream *stream = conn->stream;
    look(&conn->in, atomic_load_explicit(&conn->bytes_in, memory_order_relaxed), peer_speaks);
    look(&conn->out, atomic_load_explicit(&conn->bytes_out, memory_order_relaxed), peer_speaks);
    uint64_t beat_ticks = lli_max(silent_ticks / 3, 1);
    pthread_mutex_lock(&stream->lock);
    bool in_frame = conn->out_job != NULL;
    if (conn->out.ticks_still >= beat_ticks)
        owe_probe_locked(conn, false);
    pthread_mutex_unlock(&stream->lock);
    if (stream->peer_probes && is_still(&conn->in, silent_ticks, silent_ticks / 2) &&
        !has_bytes_waiting(conn))
        return "nothing comes any more on a data connection, although the peer is heard elsewhere";
    if (in_frame && is_still(&conn->out, stuck_ticks, silent_ticks / 2))
        return "the peer takes nothing from a data connection, although it is heard elsewhere";
    return NULL;
}

const char *
lli_stream_watch(struct lli_stream *stream, bool peer_speaks, uint64_t silent_ticks,
                 uint64_t stuck_ticks)
{
    const char *why = NULL;
    for (size_t i = 0; i < stream->num_conns && why == NULL && !stream->failed; i++)
        why = watch_conn(stream->conns[i], peer_speaks, silent_ticks, stuck_ticks);
    return why;
}

void
lli_stream_ask_for_life(struct lli_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    for (size_t i = 0; i < stream->num_conns && !stream->failed; i++)
        owe_probe_locked(stream->conns[i], true);
    pthread_mutex_unlock(&stream->lock);
}

// ---- connections ----

static void
ready(struct lli_source *source, uint32_t events)
{
    struct lli_stream_conn *conn = LLI_CONTAINER_OF(source, struct lli_stream_conn, source);
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
        receive_turn(conn);
    if ((events & EPOLLOUT) != 0 && source->added && !conn->stream->failed)
        send_turn(conn);
    if (source->added && conn->stream->failed) {
        // Soon closed.  Until then a connection that hangs up must not report it without end.
        pthread_mutex_lock(&conn->stream->lock);
        lli_loop_mute(conn->loop, source);
        pthread_mutex_unlock(&conn->stream->lock);
    }
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
    conn->loop = lli_lanes_take(stream->lanes, stream->num_conns);
    conn->source = (struct lli_source){
        .fd = fd,
        .events = EPOLLIN,
        .ready = ready,
        .free = free_conn,
    };
    llm_status status = lli_loop_add(conn->loop, &conn->source);
    if (status != LLM_SUCCESS) {
        lli_lanes_give_back(stream->lanes, conn->loop);
        close(fd);
        lli_free(conn);
        return status;
    }
    stream->conns[stream->num_conns++] = conn;
    return LLM_SUCCESS;
}

static void
remove_conn(void *arg)
{
    struct lli_stream_conn *conn = arg;
    lli_loop_remove(conn->loop, &conn->source);
}

static void
close_conn(struct lli_stream *stream, struct lli_stream_conn *conn)
{
    struct lli_loop *loop = conn->loop;
    if (loop == stream->loop)
        remove_conn(conn);
    else
        lli_loop_call(loop, remove_conn, conn);
    lli_lanes_give_back(stream->lanes, loop);
}

static void
forget(struct lli_list *jobs)
{
    LLI_LIST_FOR(node, jobs) {
        lli_list_remove(node);
        lli_arrival_fini(&LLI_LIST_ENTRY(node, struct lli_stream_job, node)->arrival);
    }
}

void
lli_stream_stop(struct lli_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    stream->failed = true;
    stream->failure_is_told = true;
    for (size_t i = 0; i < stream->num_conns; i++)
        stream->conns[i]->in_job = NULL;
    for (size_t i = 0; i < stream->num_conns; i++) {
        while (stream->conns[i]->in_call != NULL)
            pthread_cond_wait(&stream->call_ended, &stream->lock);
    }
    pthread_mutex_unlock(&stream->lock);
}

void
lli_stream_close(struct lli_stream *stream)
{
    // All before the first is closed: the peer takes that for the end.
    lli_stream_stop(stream);
    for (size_t i = 0; i < stream->num_conns; i++)
        close_conn(stream, stream->conns[i]);
    stream->num_conns = 0;
    // Nobody else knows the stream any more.
    lli_loop_unpost(stream->loop, &stream->news);
    stream->news_posted = false;
    forget(&stream->sending);
    forget(&stream->receiving);
    forget(&stream->finished);
}

void
lli_stream_settle(struct lli_stream *stream)
{
    for (size_t i = 0; i < stream->num_conns; i++) {
        if (stream->conns[i]->loop != stream->loop)
            lli_loop_flush(stream->conns[i]->loop);
    }
    call_done(stream);
}

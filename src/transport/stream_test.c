// The data of a tcp link: many transfers over many connections, cancelled in the middle, in any
// order, from peers that don't play by the rules.  Everything is tried with one thread for all
// connections, and with several.
#include "transport/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "unit/unit.h"

// ---- two ends, and what happens at them ----

struct end {
    struct lli_stream stream;
    _Atomic unsigned num_failed;
    char why[128];
};

static struct lli_loop loop;
static struct lli_lanes lanes;
static struct end ends[2];

// As a link does it: a stream that failed is closed.
static void
on_failed(struct lli_stream *stream, const char *why)
{
    struct end *end = stream->owner;
    assert_true(pthread_equal(pthread_self(), loop.thread));
    end->num_failed++;
    snprintf(end->why, sizeof(end->why), "%s", why);
    lli_stream_close(stream);
}

static int
open_ends(size_t num_lanes)
{
    llm_set_log_level(LLM_LOG_OFF);
    memset(ends, 0, sizeof(ends));
    if (lli_loop_open(&loop, 0, NULL, NULL, NULL) != LLM_SUCCESS)
        return -1;
    lli_lanes_init(&lanes, &loop, num_lanes);
    for (size_t i = 0; i < LLI_COUNT(ends); i++)
        lli_stream_init(&ends[i].stream, &lanes, &ends[i], on_failed);
    return lli_loop_start(&loop) == LLM_SUCCESS ? 0 : -1;
}

static int
setup_one_lane(void **state)
{
    (void)state;
    return open_ends(1);
}

static int
setup_lanes(void **state)
{
    (void)state;
    return open_ends(3);
}

static int
teardown(void **state)
{
    (void)state;
    lli_mem_fail_after(0);
    lli_loop_stop(&loop);
    for (size_t i = 0; i < LLI_COUNT(ends); i++) {
        lli_stream_close(&ends[i].stream);
        lli_stream_fini(&ends[i].stream);
    }
    lli_loop_close(&loop);
    return 0;
}

static int
reopen(void)
{
    size_t num_lanes = lanes.num_lanes;
    (void)teardown(NULL);
    return open_ends(num_lanes);
}

// ---- one side of a transfer ----

enum { NUM_TENSORS = 2 };

// One side of a transfer with memory of its own.
struct side {
    struct lli_stream_job job;
    struct lli_plan plan;
    uint8_t *bytes;
    uint64_t num_bytes;
    uintptr_t tensors[NUM_TENSORS];
    _Atomic unsigned num_done;
    _Atomic bool is_cancelled; // what is received
};

static struct side *
side_of(struct lli_stream_job *job)
{
    return LLI_CONTAINER_OF(job, struct side, job);
}

// ---- things done on the loop's thread ----

enum action { ADD, SEND, RECEIVE, CANCEL_SEND, CANCEL_RECEIVE, CANCEL_AND_WIPE, CLOSE };

struct order {
    enum action action;
    struct lli_stream *stream;
    struct lli_stream_job *job;
    int fd;
    llm_status status;
};

static void
wipe(struct side *side)
{
    uint64_t from = side->job.arrival.prefix;
    memset(side->bytes + from, 0, side->num_bytes - from);
    memset(side->bytes, 0, from);
}

static void
obey(void *arg)
{
    struct order *order = arg;
    switch (order->action) {
    case ADD:
        order->status = lli_stream_add(order->stream, order->fd);
        break;
    case SEND:
        lli_stream_send(order->stream, order->job);
        break;
    case RECEIVE:
        lli_stream_receive(order->stream, order->job);
        break;
    // Only what is in the stream can be cancelled.
    case CANCEL_SEND:
        if (side_of(order->job)->num_done == 0)
            lli_stream_cancel_send(order->stream, order->job);
        break;
    case CANCEL_RECEIVE:
        side_of(order->job)->is_cancelled = side_of(order->job)->num_done == 0;
        if (side_of(order->job)->is_cancelled)
            lli_stream_cancel_receive(order->stream, order->job);
        break;
    // At once, from where a byte may land next.
    case CANCEL_AND_WIPE:
        if (side_of(order->job)->num_done == 0)
            lli_stream_cancel_receive(order->stream, order->job);
        wipe(side_of(order->job));
        break;
    case CLOSE:
        lli_stream_close(order->stream);
        break;
    }
}

static void
give(enum action action, struct end *end, struct lli_stream_job *job)
{
    struct order order = {.action = action, .stream = &end->stream, .job = job};
    lli_loop_call(&loop, obey, &order);
}

static llm_status
add(struct end *end, int fd)
{
    struct order order = {.action = ADD, .stream = &end->stream, .fd = fd};
    lli_loop_call(&loop, obey, &order);
    return order.status;
}

struct question {
    bool (*ask)(const void *arg);
    const void *arg;
    bool answer;
};

static void
answer(void *arg)
{
    struct question *question = arg;
    question->answer = question->ask(question->arg);
}

// Waits until something is true on the loop's thread.
static void
await(bool (*ask)(const void *arg), const void *arg)
{
    struct question question = {.ask = ask, .arg = arg};
    uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
    do
        lli_loop_call(&loop, answer, &question);
    while (!question.answer && lli_now_ns() < deadline);
    assert_true(question.answer);
}

static bool
has_failed(const void *arg)
{
    return ((const struct end *)arg)->num_failed > 0;
}

// Nothing can be read from a connection of that end any more, and no thread is about to handle what
// it has read: what was sent has been handled.
static bool
has_read_everything(const void *arg)
{
    struct end *end = (struct end *)arg;
    for (size_t i = 0; i < end->stream.num_conns; i++) {
        struct pollfd wait = {.fd = end->stream.conns[i]->source.fd, .events = POLLIN};
        if (poll(&wait, 1, 0) > 0)
            return false;
    }
    lli_stream_settle(&end->stream);
    return true;
}

// ---- transfers ----

static void
done(struct lli_stream_job *job)
{
    assert_true(pthread_equal(pthread_self(), loop.thread));
    side_of(job)->num_done++;
}

static bool
is_done(const void *arg)
{
    return ((const struct side *)arg)->num_done > 0;
}

// `room` blocks per tensor, of which those in `runs` are transferred.
static void
open_side(struct side *side, uint64_t id, bool is_source, uint64_t room, uint64_t stride,
          const struct lli_block_run *runs, size_t num_runs)
{
    memset(side, 0, sizeof(*side));
    side->num_bytes = room * stride * NUM_TENSORS;
    side->bytes = unit_alloc(side->num_bytes);
    for (size_t i = 0; i < NUM_TENSORS; i++)
        side->tensors[i] = (uintptr_t)side->bytes + i * room * stride;
    if (is_source)
        unit_fill(side->bytes, side->num_bytes, id);
    assert_true(lli_plan_side(&side->plan, NUM_TENSORS, runs, num_runs, stride) == LLM_SUCCESS);
    side->job = (struct lli_stream_job){
        .id = id,
        .plan = &side->plan,
        .tensors = side->tensors,
        .is_source = is_source,
        .done = done,
    };
    lli_list_init(&side->job.node);
}

static void
close_side(struct side *side)
{
    lli_plan_fini(&side->plan);
    free(side->bytes);
}

// One run over everything.
static void
open_plain(struct side *side, uint64_t id, bool is_source, uint64_t tensor_bytes)
{
    const struct lli_block_run all = {0, tensor_bytes};
    open_side(side, id, is_source, tensor_bytes, 1, &all, 1);
}

static uint8_t *
byte_at(const struct side *side, uint64_t position)
{
    struct lli_place place = lli_plan_locate(&side->plan, position);
    return (uint8_t *)side->tensors[place.tensor] + side->plan.runs[place.run].src_offset +
           place.offset;
}

// The streams are equal, and what isn't in the sink's stream is still zero.
static void
assert_arrived(const struct side *source, const struct side *sink)
{
    uint8_t *rest = unit_alloc(sink->num_bytes);
    memcpy(rest, sink->bytes, sink->num_bytes);
    assert_int_equal(source->plan.total_bytes, sink->plan.total_bytes);
    for (uint64_t position = 0; position < source->plan.total_bytes;) {
        struct lli_place a = lli_plan_locate(&source->plan, position);
        struct lli_place b = lli_plan_locate(&sink->plan, position);
        uint64_t bytes = lli_min(source->plan.runs[a.run].bytes - a.offset,
                                 sink->plan.runs[b.run].bytes - b.offset);
        uint8_t *to = byte_at(sink, position);
        assert_int_equal(memcmp(byte_at(source, position), to, bytes), 0);
        memset(rest + (to - sink->bytes), 0, bytes);
        position += bytes;
    }
    for (uint64_t i = 0; i < sink->num_bytes; i++) {
        if (rest[i] != 0)
            fail_msg("byte %llu was written although it is in no block", (unsigned long long)i);
    }
    free(rest);
}

static void
assert_all_zero(const struct side *side)
{
    for (uint64_t i = 0; i < side->num_bytes; i++) {
        if (side->bytes[i] != 0)
            fail_msg("byte %llu was written", (unsigned long long)i);
    }
}

// ---- connections ----

static void
pair(int ret_fds[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ret_fds),
                     0);
}

static void
connect_ends(size_t num_conns, int buffer_bytes)
{
    for (size_t i = 0; i < num_conns; i++) {
        int fds[2];
        pair(fds);
        for (size_t e = 0; e < 2; e++) {
            if (buffer_bytes > 0)
                setsockopt(fds[e], SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes));
            assert_true(add(&ends[e], fds[e]) == LLM_SUCCESS);
        }
    }
}

// A connection whose other end the test itself reads and writes, waiting.
static int
connect_raw(struct end *end)
{
    int fds[2];
    struct timeval patience = {.tv_sec = UNIT_PATIENCE_MS / 1000};
    pair(fds);
    assert_true(add(end, fds[0]) == LLM_SUCCESS);
    assert_int_equal(fcntl(fds[1], F_SETFL, 0), 0);
    assert_int_equal(setsockopt(fds[1], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
    return fds[1];
}

static void
write_raw(int fd, const void *bytes, size_t num_bytes)
{
    const uint8_t *from = bytes;
    while (num_bytes > 0) {
        ssize_t sent = send(fd, from, num_bytes, MSG_NOSIGNAL);
        assert_true(sent > 0);
        from += sent;
        num_bytes -= (size_t)sent;
    }
}

static void
read_raw(int fd, void *bytes, size_t num_bytes)
{
    uint8_t *to = bytes;
    while (num_bytes > 0) {
        ssize_t got = recv(fd, to, num_bytes, 0);
        assert_true(got > 0);
        to += got;
        num_bytes -= (size_t)got;
    }
}

static void
write_header(int fd, uint8_t type, uint64_t id, uint64_t position, uint32_t bytes)
{
    uint8_t head[LLI_MESSAGE_HEADER_BYTES];
    lli_message_header_write(head, &(struct lli_message_header){
                                       .type = type,
                                       .body_bytes = bytes,
                                       .transfer_id = id,
                                       .argument = position,
                                   });
    write_raw(fd, head, sizeof(head));
}

// Bytes of the stream of `side`, as its frame.
static void
write_frame(int fd, const struct side *side, uint64_t position, uint32_t bytes)
{
    write_header(fd, LLI_DATA, side->job.id, position, bytes);
    while (bytes > 0) {
        struct lli_place place = lli_plan_locate(&side->plan, position);
        uint64_t piece = lli_min(side->plan.runs[place.run].bytes - place.offset, bytes);
        write_raw(fd, byte_at(side, position), piece);
        position += piece;
        bytes -= (uint32_t)piece;
    }
}

// The same at once: where the header alone may end the stream.  Of a stream in one piece.
static void
write_whole_frame(int fd, const struct side *side, uint64_t position, uint32_t bytes)
{
    uint8_t frame[LLI_MESSAGE_HEADER_BYTES + 2000];
    assert_true(bytes <= 2000);
    lli_message_header_write(frame, &(struct lli_message_header){
                                        .type = LLI_DATA,
                                        .body_bytes = bytes,
                                        .transfer_id = side->job.id,
                                        .argument = position,
                                    });
    memcpy(frame + LLI_MESSAGE_HEADER_BYTES, byte_at(side, position), bytes);
    write_raw(fd, frame, LLI_MESSAGE_HEADER_BYTES + bytes);
}

static struct lli_message_header
read_frame(int fd, uint8_t *body)
{
    uint8_t head[LLI_MESSAGE_HEADER_BYTES];
    struct lli_message_header header;
    read_raw(fd, head, sizeof(head));
    assert_null(lli_message_header_read(head, &header));
    assert_int_equal(header.type, LLI_DATA);
    assert_true(header.body_bytes <= LLI_DATA_BODY_BYTES_MAX);
    read_raw(fd, body, header.body_bytes);
    return header;
}

// ---- many transfers side by side ----

enum { NUM_JOBS = 8 };

// Transfer i: lists of blocks that have little in common, and sizes from a few bytes to megabytes.
static void
open_both_sides(unsigned i, struct side *source, struct side *sink)
{
    static const uint64_t strides[] = {1, 3, 100, 5000, 70000, 4096, 7, 300000};
    const struct lli_block_run from[] = {{0, 3}, {7, 1}, {5, 2}};
    const struct lli_block_run to[] = {{9, 1}, {2, 4}, {7, 1}};
    open_side(source, 100 + i, true, 10, strides[i % NUM_JOBS], from, LLI_COUNT(from));
    open_side(sink, 100 + i, false, 10, strides[i % NUM_JOBS], to, LLI_COUNT(to));
}

static void
transfer_many(size_t num_conns, int buffer_bytes)
{
    struct side sources[NUM_JOBS];
    struct side sinks[NUM_JOBS];
    connect_ends(num_conns, buffer_bytes);
    for (unsigned i = 0; i < NUM_JOBS; i++) {
        open_both_sides(i, &sources[i], &sinks[i]);
        // Every third the other way.
        give(RECEIVE, &ends[i % 3 != 0], &sinks[i].job);
    }
    for (unsigned i = 0; i < NUM_JOBS; i++)
        give(SEND, &ends[i % 3 == 0], &sources[i].job);
    for (unsigned i = 0; i < NUM_JOBS; i++) {
        await(is_done, &sources[i]);
        await(is_done, &sinks[i]);
    }
    for (unsigned i = 0; i < NUM_JOBS; i++) {
        assert_int_equal(sources[i].num_done, 1);
        assert_int_equal(sinks[i].num_done, 1);
        assert_arrived(&sources[i], &sinks[i]);
        close_side(&sources[i]);
        close_side(&sinks[i]);
    }
    assert_int_equal(ends[0].num_failed + ends[1].num_failed, 0);
}

static void
test_many_transfers_over_one_connection(void **state)
{
    (void)state;
    transfer_many(1, 0);
}

static void
test_many_transfers_over_two_connections(void **state)
{
    (void)state;
    transfer_many(2, 0);
}

static void
test_many_transfers_over_all_connections(void **state)
{
    (void)state;
    transfer_many(LLI_NUM_STREAM_CONNS_MAX, 0);
}

static void
test_many_transfers_through_small_buffers(void **state)
{
    (void)state;
    transfer_many(3, 2048);
}

static void
test_one_transfer_after_the_other_on_the_same_connections(void **state)
{
    (void)state;
    connect_ends(2, 0);
    for (unsigned i = 0; i < 100; i++) {
        struct side source;
        struct side sink;
        open_plain(&source, i, true, 1 + i * 37);
        open_plain(&sink, i, false, 1 + i * 37);
        give(RECEIVE, &ends[1], &sink.job);
        give(SEND, &ends[0], &source.job);
        await(is_done, &sink);
        await(is_done, &source);
        assert_arrived(&source, &sink);
        close_side(&source);
        close_side(&sink);
    }
}

// ---- what is sent ----

static void
test_transfers_take_turns_frame_by_frame(void **state)
{
    struct side large;
    struct side small;
    uint8_t *body = unit_alloc(LLI_DATA_BODY_BYTES_MAX);
    unsigned frames_before = 0;
    bool small_came = false;
    (void)state;
    open_plain(&large, 1, true, (uint64_t)3 << 20);
    open_plain(&small, 2, true, 100);
    int fd = connect_raw(&ends[0]);
    give(SEND, &ends[0], &large.job);
    give(SEND, &ends[0], &small.job);
    for (uint64_t left = large.plan.total_bytes + small.plan.total_bytes; left > 0;) {
        struct lli_message_header header = read_frame(fd, body);
        left -= header.body_bytes;
        if (header.transfer_id == 2)
            small_came = true;
        else if (!small_came)
            frames_before++;
    }
    assert_true(small_came);
    // One was on its way, and one more may have been taken before the second call.
    assert_true(frames_before <= 2);
    await(is_done, &large);
    await(is_done, &small);
    close(fd);
    close_side(&large);
    close_side(&small);
    free(body);
}

static void
test_what_is_sent_says_where_it_belongs(void **state)
{
    const struct lli_block_run runs[] = {{6, 2}, {0, 1}, {3, 2}};
    struct side source;
    uint8_t *body = unit_alloc(LLI_DATA_BODY_BYTES_MAX);
    uint64_t next = 0;
    (void)state;
    open_side(&source, 77, true, 8, 100000, runs, LLI_COUNT(runs));
    int fd = connect_raw(&ends[0]);
    give(SEND, &ends[0], &source.job);
    while (next < source.plan.total_bytes) {
        struct lli_message_header header = read_frame(fd, body);
        assert_int_equal(header.transfer_id, 77);
        assert_int_equal(header.argument, next);
        for (uint32_t i = 0; i < header.body_bytes; i += 999)
            assert_int_equal(body[i], *byte_at(&source, next + i));
        next += header.body_bytes;
    }
    assert_int_equal(next, source.plan.total_bytes);
    await(is_done, &source);
    close(fd);
    close_side(&source);
    free(body);
}

static void
test_a_job_may_begin_in_the_middle_of_the_stream(void **state)
{
    (void)state;
    connect_ends(2, 0);
    for (uint64_t start = 0; start < 2000000; start = start * 3 + 1) {
        struct side source;
        struct side sink;
        open_plain(&source, 50 + start, true, 1000000);
        open_plain(&sink, 50 + start, false, 1000000);
        source.job.start_position = sink.job.start_position = start;
        // What came before is here already.
        memcpy(sink.bytes, source.bytes, start);
        memset(source.bytes, 0xee, start);
        memset(sink.bytes, 0xee, start);
        give(RECEIVE, &ends[1], &sink.job);
        give(SEND, &ends[0], &source.job);
        await(is_done, &sink);
        await(is_done, &source);
        assert_memory_equal(source.bytes, sink.bytes, sink.num_bytes);
        assert_int_equal(sink.job.arrival.prefix, 2000000);
        close_side(&source);
        close_side(&sink);
    }
    assert_int_equal(ends[0].num_failed + ends[1].num_failed, 0);
}

static void
test_only_what_comes_from_the_start_on_is_sent(void **state)
{
    struct side source;
    uint8_t *body = unit_alloc(LLI_DATA_BODY_BYTES_MAX);
    (void)state;
    open_plain(&source, 3, true, 1000);
    source.job.start_position = 1777;
    int fd = connect_raw(&ends[0]);
    give(SEND, &ends[0], &source.job);
    struct lli_message_header header = read_frame(fd, body);
    assert_int_equal(header.argument, 1777);
    assert_int_equal(header.body_bytes, 223);
    assert_memory_equal(body, source.bytes + 1777, 223);
    await(is_done, &source);
    close(fd);
    close_side(&source);
    free(body);
}

static void
test_flags_travel_with_the_data(void **state)
{
    (void)state;
    connect_ends(2, 0);
    // All but the seal, which the stream itself gives and takes.
    for (uint16_t flags = 0; flags < 2; flags++) {
        struct side source;
        struct side sink;
        open_plain(&source, 10 + flags, true, 1000);
        open_plain(&sink, 10 + flags, false, 1000);
        source.job.flags = flags;
        give(RECEIVE, &ends[1], &sink.job);
        give(SEND, &ends[0], &source.job);
        await(is_done, &sink);
        await(is_done, &source);
        assert_int_equal(sink.job.flags, flags);
        close_side(&source);
        close_side(&sink);
    }
}

// ---- cancelling what is sent ----

static void
test_a_send_cancelled_before_it_began_is_done_at_once(void **state)
{
    struct side source;
    (void)state;
    open_plain(&source, 1, true, 1000);
    give(SEND, &ends[0], &source.job);
    give(CANCEL_SEND, &ends[0], &source.job);
    assert_int_equal(source.num_done, 1);
    // A connection that comes later finds nothing to send.
    int fd = connect_raw(&ends[0]);
    await(has_read_everything, &ends[0]);
    uint8_t byte;
    assert_int_equal(recv(fd, &byte, 1, MSG_DONTWAIT), -1);
    assert_int_equal(errno, EAGAIN);
    close(fd);
    close_side(&source);
}

static bool
has_two_frames_under_way(const void *arg)
{
    const struct side *side = arg;
    pthread_mutex_lock(&ends[0].stream.lock);
    bool has_two = side->job.num_frames == 2;
    pthread_mutex_unlock(&ends[0].stream.lock);
    return has_two;
}

static void
test_a_cancelled_send_completes_the_frames_that_have_begun(void **state)
{
    struct side source;
    struct side next;
    uint8_t *body = unit_alloc(LLI_DATA_BODY_BYTES_MAX);
    int fds[2];
    uint8_t byte;
    (void)state;
    open_plain(&source, 1, true, (uint64_t)8 << 20);
    open_plain(&next, 2, true, 500);
    for (size_t i = 0; i < 2; i++)
        fds[i] = connect_raw(&ends[0]);
    give(SEND, &ends[0], &source.job);
    // Nobody reads: each connection gets stuck in its first frame.
    await(has_two_frames_under_way, &source);
    uint64_t begun = source.job.position;
    assert_true(begun < source.plan.total_bytes);
    give(CANCEL_SEND, &ends[0], &source.job);
    assert_int_equal(source.num_done, 0);

    uint64_t received = 0;
    for (size_t i = 0; i < 2; i++) {
        struct lli_message_header header = read_frame(fds[i], body);
        assert_int_equal(header.transfer_id, 1);
        assert_memory_equal(body, byte_at(&source, header.argument), header.body_bytes);
        received += header.body_bytes;
        if (i == 0)
            assert_int_equal(source.num_done, 0);
    }
    assert_int_equal(received, begun);
    await(is_done, &source);
    assert_int_equal(source.num_done, 1);
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(recv(fds[i], &byte, 1, MSG_DONTWAIT), -1);

    // The connections are as good as before.
    give(SEND, &ends[0], &next.job);
    await(is_done, &next);
    struct pollfd waits[2] = {{.fd = fds[0], .events = POLLIN}, {.fd = fds[1], .events = POLLIN}};
    assert_int_equal(poll(waits, 2, UNIT_PATIENCE_MS), 1);
    struct lli_message_header header = read_frame(fds[waits[0].revents != 0 ? 0 : 1], body);
    assert_int_equal(header.transfer_id, 2);
    assert_int_equal(header.body_bytes, 1000);
    for (size_t i = 0; i < 2; i++)
        close(fds[i]);
    close_side(&source);
    close_side(&next);
    free(body);
}

// ---- what is received ----

static void
test_frames_may_come_in_every_order_over_any_connection(void **state)
{
    // Positions and lengths of four frames that make up 200 bytes.
    static const uint32_t starts[] = {0, 1, 90, 150};
    static const uint32_t lengths[] = {1, 89, 60, 50};
    const struct lli_block_run from[] = {{0, 100}};
    const struct lli_block_run to[] = {{60, 40}, {0, 30}, {110, 30}};
    int fds[2];
    (void)state;
    fds[0] = connect_raw(&ends[0]);
    fds[1] = connect_raw(&ends[0]);
    for (unsigned order = 0; order < 24; order++) {
        struct side source;
        struct side sink;
        unsigned left[] = {0, 1, 2, 3};
        unsigned code = order;
        open_side(&source, 500 + order, true, 100, 1, from, LLI_COUNT(from));
        open_side(&sink, 500 + order, false, 140, 1, to, LLI_COUNT(to));
        give(RECEIVE, &ends[0], &sink.job);
        for (unsigned num_left = 4; num_left > 0; num_left--) {
            unsigned pick = code % num_left;
            unsigned frame = left[pick];
            code /= num_left;
            left[pick] = left[num_left - 1];
            assert_int_equal(sink.num_done, 0);
            write_frame(fds[(order + frame) % 2], &source, starts[frame], lengths[frame]);
        }
        await(is_done, &sink);
        assert_arrived(&source, &sink);
        assert_int_equal(sink.num_done, 1);
        close_side(&source);
        close_side(&sink);
    }
    assert_int_equal(ends[0].num_failed, 0);
    close(fds[0]);
    close(fds[1]);
}

static void
test_frames_that_drip_in_byte_by_byte_arrive(void **state)
{
    struct side source;
    struct side sink;
    uint8_t bytes[LLI_MESSAGE_HEADER_BYTES + 20];
    (void)state;
    open_plain(&source, 9, true, 20);
    open_plain(&sink, 9, false, 20);
    int fd = connect_raw(&ends[0]);
    give(RECEIVE, &ends[0], &sink.job);
    for (uint64_t half = 0; half < 2; half++) {
        lli_message_header_write(bytes, &(struct lli_message_header){
                                            .type = LLI_DATA,
                                            .body_bytes = 20,
                                            .transfer_id = 9,
                                            .argument = half * 20,
                                        });
        memcpy(bytes + LLI_MESSAGE_HEADER_BYTES, byte_at(&source, half * 20), 20);
        for (size_t i = 0; i < sizeof(bytes); i++) {
            assert_int_equal(sink.num_done, 0);
            write_raw(fd, &bytes[i], 1);
            await(has_read_everything, &ends[0]);
        }
    }
    await(is_done, &sink);
    assert_arrived(&source, &sink);
    close(fd);
    close_side(&source);
    close_side(&sink);
}

static void
test_frames_without_bytes_change_nothing(void **state)
{
    struct side source;
    struct side sink;
    (void)state;
    open_plain(&source, 9, true, 20);
    open_plain(&sink, 9, false, 20);
    int fd = connect_raw(&ends[0]);
    give(RECEIVE, &ends[0], &sink.job);
    write_header(fd, LLI_DATA, 9, 0, 0);
    write_header(fd, LLI_DATA, 9, 40, 0);
    write_header(fd, LLI_DATA, 10, 0, 0);
    await(has_read_everything, &ends[0]);
    assert_int_equal(sink.num_done, 0);
    write_frame(fd, &source, 0, 40);
    await(is_done, &sink);
    write_header(fd, LLI_DATA, 9, 0, 0);
    await(has_read_everything, &ends[0]);
    assert_int_equal(sink.num_done, 1);
    assert_arrived(&source, &sink);
    assert_int_equal(ends[0].num_failed, 0);
    close(fd);
    close_side(&source);
    close_side(&sink);
}

static void
test_data_that_nobody_wants_is_skipped(void **state)
{
    struct side unwanted;
    struct side source;
    struct side sink;
    (void)state;
    open_plain(&unwanted, 8, true, 50000);
    open_plain(&source, 9, true, 20);
    open_plain(&sink, 9, false, 20);
    int fd = connect_raw(&ends[0]);
    give(RECEIVE, &ends[0], &sink.job);
    write_frame(fd, &unwanted, 0, 100000);
    write_header(fd, LLI_DATA, 8, UINT64_MAX, 0);
    write_frame(fd, &source, 0, 40);
    await(is_done, &sink);
    assert_arrived(&source, &sink);
    close(fd);
    close_side(&unwanted);
    close_side(&source);
    close_side(&sink);
}

// ---- cancelling what is received ----

static void
test_after_a_cancelled_receive_no_byte_lands(void **state)
{
    struct side source;
    struct side sink;
    struct side next_source;
    struct side next_sink;
    (void)state;
    open_plain(&source, 1, true, 1000);
    open_plain(&next_source, 2, true, 700);
    int fd = connect_raw(&ends[0]);
    // Cancelled with each part of a frame there: nothing, half a header, a header, half a body.
    static const uint64_t parts[] = {0, 16, 32, 33, 500};
    for (size_t i = 0; i < LLI_COUNT(parts); i++) {
        uint8_t frame[LLI_MESSAGE_HEADER_BYTES + 1000];
        lli_message_header_write(frame, &(struct lli_message_header){
                                            .type = LLI_DATA,
                                            .body_bytes = 1000,
                                            .transfer_id = 1,
                                            .argument = 0,
                                        });
        memcpy(frame + LLI_MESSAGE_HEADER_BYTES, source.bytes, 1000);
        open_plain(&sink, 1, false, 1000);
        open_plain(&next_sink, 2, false, 700);
        give(RECEIVE, &ends[0], &sink.job);
        give(RECEIVE, &ends[0], &next_sink.job);
        write_raw(fd, frame, parts[i]);
        await(has_read_everything, &ends[0]);
        give(CANCEL_RECEIVE, &ends[0], &sink.job);
        uint64_t landed = parts[i] > 32 ? parts[i] - 32 : 0;
        assert_memory_equal(sink.bytes, source.bytes, landed);
        memset(sink.bytes, 0, sink.num_bytes);

        write_raw(fd, frame + parts[i], sizeof(frame) - parts[i]);
        write_frame(fd, &source, 1000, 1000);
        write_frame(fd, &next_source, 0, 1400);
        await(is_done, &next_sink);
        assert_all_zero(&sink);
        assert_int_equal(sink.num_done, 0);
        assert_arrived(&next_source, &next_sink);
        close_side(&sink);
        close_side(&next_sink);
    }
    assert_int_equal(ends[0].num_failed, 0);
    close(fd);
    close_side(&source);
    close_side(&next_source);
}

static void
test_cancels_while_everything_runs(void **state)
{
    (void)state;
    connect_ends(2, 0);
    for (unsigned round = 0; round < 10; round++) {
        struct side sources[NUM_JOBS];
        struct side sinks[NUM_JOBS];
        for (unsigned i = 0; i < NUM_JOBS; i++) {
            open_both_sides(i, &sources[i], &sinks[i]);
            give(RECEIVE, &ends[1], &sinks[i].job);
        }
        for (unsigned i = 0; i < NUM_JOBS; i++)
            give(SEND, &ends[0], &sources[i].job);
        // The two largest are cancelled, first at the receiver, then at the sender.
        give(CANCEL_RECEIVE, &ends[1], &sinks[7].job);
        uint8_t *frozen = unit_alloc(sinks[7].num_bytes);
        memcpy(frozen, sinks[7].bytes, sinks[7].num_bytes);
        give(CANCEL_SEND, &ends[0], &sources[7].job);
        for (unsigned i = 0; i < NUM_JOBS; i++) {
            await(is_done, &sources[i]);
            if (i != 7)
                await(is_done, &sinks[i]);
        }
        await(has_read_everything, &ends[1]);
        for (unsigned i = 0; i < NUM_JOBS; i++) {
            if (i != 7)
                assert_arrived(&sources[i], &sinks[i]);
        }
        assert_memory_equal(frozen, sinks[7].bytes, sinks[7].num_bytes);
        free(frozen);
        for (unsigned i = 0; i < NUM_JOBS; i++) {
            close_side(&sources[i]);
            close_side(&sinks[i]);
        }
    }
    assert_int_equal(ends[0].num_failed + ends[1].num_failed, 0);
}

// What of a job has arrived, in one piece.
struct progress {
    struct end *end;
    struct side *side;
    uint64_t wanted;
};

static bool
has_arrived(const void *arg)
{
    const struct progress *progress = arg;
    pthread_mutex_lock(&progress->end->stream.lock);
    bool has_arrived = progress->side->job.arrival.prefix >= progress->wanted;
    pthread_mutex_unlock(&progress->end->stream.lock);
    return has_arrived;
}

static void
test_progress_is_what_has_arrived_in_one_piece(void **state)
{
    struct side source;
    struct side sink;
    int fds[2];
    (void)state;
    open_plain(&source, 1, true, 1000);
    open_plain(&sink, 1, false, 1000);
    for (size_t i = 0; i < 2; i++)
        fds[i] = connect_raw(&ends[0]);
    give(RECEIVE, &ends[0], &sink.job);
    write_frame(fds[0], &source, 1000, 1000);
    await(has_read_everything, &ends[0]);
    assert_int_equal(sink.job.arrival.prefix, 0);
    write_frame(fds[1], &source, 0, 400);
    await(has_arrived, &(struct progress){&ends[0], &sink, 400});
    assert_int_equal(sink.job.arrival.prefix, 400);
    write_frame(fds[1], &source, 400, 600);
    await(is_done, &sink);
    assert_arrived(&source, &sink);
    for (size_t i = 0; i < 2; i++)
        close(fds[i]);
    close_side(&source);
    close_side(&sink);
}

// While other threads are in the middle of receiving.
static void
test_after_a_cancel_in_the_middle_no_byte_lands(void **state)
{
    struct side source;
    (void)state;
    connect_ends(4, 4 << 20);
    open_plain(&source, 0, true, (uint64_t)4 << 20);
    for (unsigned round = 0; round < 50; round++) {
        struct side sink;
        open_plain(&sink, round, false, (uint64_t)4 << 20);
        source.job = (struct lli_stream_job){
            .id = round,
            .plan = &source.plan,
            .tensors = source.tensors,
            .is_source = true,
            .done = done,
        };
        lli_list_init(&source.job.node);
        source.num_done = 0;
        give(RECEIVE, &ends[1], &sink.job);
        give(SEND, &ends[0], &source.job);
        await(has_arrived, &(struct progress){&ends[1], &sink, 1});
        give(CANCEL_AND_WIPE, &ends[1], &sink.job);
        await(is_done, &source);
        await(has_read_everything, &ends[1]);
        assert_all_zero(&sink);
        close_side(&sink);
    }
    assert_int_equal(ends[0].num_failed + ends[1].num_failed, 0);
    close_side(&source);
}

// Its memory is gone when close has returned.
static void
test_a_stream_can_be_closed_while_everything_runs(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 20; round++) {
        struct side sources[NUM_JOBS];
        struct side sinks[NUM_JOBS];
        unsigned num_done[NUM_JOBS];
        struct end *end = &ends[round % 2];
        struct side *sides = round % 2 == 0 ? sources : sinks;
        connect_ends(4, 0);
        for (unsigned i = 0; i < NUM_JOBS; i++) {
            open_both_sides(i, &sources[i], &sinks[i]);
            give(RECEIVE, &ends[1], &sinks[i].job);
        }
        for (unsigned i = 0; i < NUM_JOBS; i++)
            give(SEND, &ends[0], &sources[i].job);
        if (round % 4 < 2)
            await(has_arrived, &(struct progress){&ends[1], &sinks[7], 1});
        give(CLOSE, end, NULL);
        for (unsigned i = 0; i < NUM_JOBS; i++) {
            num_done[i] = sides[i].num_done;
            memset(sides[i].bytes, 0, sides[i].num_bytes);
        }
        // The other end hears of it.
        await(has_failed, &ends[round % 2 == 0]);
        for (unsigned i = 0; i < NUM_JOBS; i++) {
            assert_int_equal(sides[i].num_done, num_done[i]);
            assert_all_zero(&sides[i]);
            close_side(&sources[i]);
            close_side(&sinks[i]);
        }
        assert_int_equal(end->num_failed, 0);
        assert_int_equal(reopen(), 0);
    }
}

enum { NUM_FLOODS = 2 };

// Frames of one transfer, until the stream is closed.
struct flood {
    pthread_t thread;
    const struct side *source;
    uint64_t first;
    uint64_t bytes;
    int fd;
};

static void *
send_flood(void *arg)
{
    struct flood *flood = arg;
    uint32_t bytes;
    for (uint64_t at = 0; at < flood->bytes; at += bytes) {
        uint8_t head[LLI_MESSAGE_HEADER_BYTES];
        bytes = (uint32_t)lli_min(flood->bytes - at, LLI_DATA_BODY_BYTES_MAX);
        const uint8_t *from = byte_at(flood->source, flood->first + at);
        lli_message_header_write(head, &(struct lli_message_header){
                                           .type = LLI_DATA,
                                           .body_bytes = bytes,
                                           .transfer_id = flood->source->job.id,
                                           .argument = flood->first + at,
                                       });
        if (send(flood->fd, head, sizeof(head), MSG_NOSIGNAL) != sizeof(head))
            break;
        for (uint32_t left = bytes; left > 0;) {
            ssize_t sent = send(flood->fd, from + (bytes - left), left, MSG_NOSIGNAL);
            if (sent <= 0)
                return NULL;
            left -= (uint32_t)sent;
        }
    }
    return NULL;
}

// How much of a flood has landed, which it does in order.
static uint64_t
landed(const struct flood *flood, const struct side *sink)
{
    uint64_t least = 0;
    uint64_t most = flood->bytes;
    while (least < most) {
        uint64_t middle = (least + most + 1) / 2;
        uint64_t last = flood->first + middle - 1;
        // No byte of the source is 0.
        if (*(volatile uint8_t *)byte_at(sink, last) != 0)
            least = middle;
        else
            most = middle - 1;
    }
    return least;
}

struct witness {
    pthread_t thread;
    const struct flood *floods;
    const struct side *sink;
    uint64_t landed[NUM_FLOODS]; // when the peer could know
    int fd;
};

static void *
await_close(void *arg)
{
    struct witness *witness = arg;
    struct pollfd wait = {.fd = witness->fd, .events = POLLIN};
    while (poll(&wait, 1, 0) == 0) {
    }
    for (unsigned i = 0; i < NUM_FLOODS; i++)
        witness->landed[i] = landed(&witness->floods[i], witness->sink);
    return NULL;
}

static void
test_nothing_lands_once_the_peer_can_know_that_the_stream_is_closed(void **state)
{
    enum { TENSOR_BYTES = 4 << 20 };
    (void)state;
    for (unsigned round = 0; round < 40; round++) {
        struct side source;
        struct side sink;
        struct flood floods[NUM_FLOODS];
        struct witness witness = {.floods = floods, .sink = &sink, .fd = connect_raw(&ends[0])};
        open_plain(&source, 1, true, TENSOR_BYTES);
        open_plain(&sink, 1, false, TENSOR_BYTES);
        for (uint64_t i = 0; i < source.num_bytes; i++)
            source.bytes[i] |= 1;
        give(RECEIVE, &ends[0], &sink.job);
        for (unsigned i = 0; i < NUM_FLOODS; i++) {
            floods[i] = (struct flood){.source = &source,
                                       .first = i * (uint64_t)TENSOR_BYTES,
                                       .bytes = TENSOR_BYTES,
                                       .fd = connect_raw(&ends[0])};
            assert_int_equal(pthread_create(&floods[i].thread, NULL, send_flood, &floods[i]), 0);
        }
        assert_int_equal(pthread_create(&witness.thread, NULL, await_close, &witness), 0);
        await(has_arrived, &(struct progress){&ends[0], &sink, 1});
        give(CLOSE, &ends[0], NULL);
        assert_int_equal(pthread_join(witness.thread, NULL), 0);
        for (unsigned i = 0; i < NUM_FLOODS; i++) {
            assert_int_equal(pthread_join(floods[i].thread, NULL), 0);
            assert_int_equal(landed(&floods[i], &sink), witness.landed[i]);
            close(floods[i].fd);
        }
        close(witness.fd);
        close_side(&source);
        close_side(&sink);
        assert_int_equal(reopen(), 0);
    }
}

// ---- peers that break the rules, or go away ----

struct hostile {
    const char *name;
    uint64_t position;
    uint64_t id;
    uint32_t bytes;
    uint8_t type;
};

static void
test_hostile_frames_end_the_stream_and_nothing_lands(void **state)
{
    static const struct hostile frames[] = {
        {"type 0", 0, 1, 10, 0},
        {"another type", 0, 1, 0, LLI_PING},
        {"a request", 0, 1, 10, LLI_PULL},
        {"unknown type", 0, 1, 10, 255},
        {"too long", 0, 1, LLI_DATA_BODY_BYTES_MAX + 1, LLI_DATA},
        {"too long for nobody", 0, 2, LLI_DATA_BODY_BYTES_MAX + 1, LLI_DATA},
        {"longest", 0, 1, UINT32_MAX, LLI_DATA},
        {"beyond the end", 2000, 1, 1, LLI_DATA},
        {"over the end", 1999, 1, 2, LLI_DATA},
        {"far beyond", UINT64_MAX, 1, 1, LLI_DATA},
        {"wraps around", UINT64_MAX - 5, 1, 10, LLI_DATA},
        {"wraps around for nobody", UINT64_MAX - 5, 2, 10, LLI_DATA},
        {"empty beyond the end", 2001, 1, 0, LLI_DATA},
        {"longer than all", 0, 1, 2001, LLI_DATA},
    };
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(frames); i++) {
        struct side sink;
        open_plain(&sink, 1, false, 1000);
        int fd = connect_raw(&ends[0]);
        int other = connect_raw(&ends[0]);
        give(RECEIVE, &ends[0], &sink.job);
        write_header(fd, frames[i].type, frames[i].id, frames[i].position, frames[i].bytes);
        await(has_failed, &ends[0]);
        if (ends[0].num_failed != 1 || sink.num_done != 0)
            fail_msg("%s: failed %u times, done %u times", frames[i].name, ends[0].num_failed,
                     sink.num_done);
        assert_true(ends[0].why[0] != '\0');
        assert_all_zero(&sink);
        // Both connections are closed.
        uint8_t byte;
        assert_true(recv(fd, &byte, 1, 0) <= 0);
        assert_true(recv(other, &byte, 1, 0) <= 0);
        close(fd);
        close(other);
        close_side(&sink);
        assert_int_equal(reopen(), 0);
    }
}

struct overlap {
    const char *name;
    uint64_t start;
    uint64_t position;
    uint32_t bytes;
};

// 2,000 bytes, of which [500, 900) and [1000, 1200) have come, and [1400, 1500) is under way.
static void
test_the_same_bytes_twice_end_the_stream_and_do_not_land(void **state)
{
    static const struct overlap overlaps[] = {
        {"the same frame", 0, 500, 400},
        {"the first byte", 0, 499, 2},
        {"the last byte", 0, 899, 1},
        {"all of it", 0, 0, 2000},
        {"two frames", 0, 899, 102},
        {"what is under way", 0, 1450, 10},
        {"the end of what is under way", 0, 1499, 2},
        {"around what is under way", 0, 1300, 300},
        {"before the start", 300, 299, 1},
        {"over the start", 300, 200, 101},
        {"before the start, far", 300, 0, 1},
    };
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(overlaps); i++) {
        const struct overlap *o = &overlaps[i];
        struct side source;
        struct side sink;
        int fds[2];
        open_plain(&source, 1, true, 1000);
        open_plain(&sink, 1, false, 1000);
        sink.job.start_position = o->start;
        for (size_t c = 0; c < LLI_COUNT(fds); c++)
            fds[c] = connect_raw(&ends[0]);
        give(RECEIVE, &ends[0], &sink.job);
        write_frame(fds[0], &source, 500, 400);
        write_frame(fds[0], &source, 1000, 200);
        write_header(fds[0], LLI_DATA, 1, 1400, 100);
        await(has_read_everything, &ends[0]);
        assert_int_equal(ends[0].num_failed, 0);
        uint8_t *before = unit_alloc(sink.num_bytes);
        memcpy(before, sink.bytes, sink.num_bytes);
        write_whole_frame(fds[1], &source, o->position, o->bytes);
        await(has_failed, &ends[0]);
        if (ends[0].num_failed != 1 || sink.num_done != 0)
            fail_msg("%s: failed %u times, done %u times", o->name, ends[0].num_failed,
                     sink.num_done);
        assert_memory_equal(sink.bytes, before, sink.num_bytes);
        free(before);
        for (size_t c = 0; c < LLI_COUNT(fds); c++)
            close(fds[c]);
        close_side(&source);
        close_side(&sink);
        assert_int_equal(reopen(), 0);
    }
}

static void
test_too_many_holes_end_the_stream(void **state)
{
    struct side source;
    struct side sink;
    (void)state;
    open_plain(&source, 1, true, 2000);
    open_plain(&sink, 1, false, 2000);
    int fd = connect_raw(&ends[0]);
    give(RECEIVE, &ends[0], &sink.job);
    for (unsigned i = 1; i <= LLI_ARRIVAL_RANGES_MAX; i++)
        write_frame(fd, &source, i * 2, 1);
    await(has_read_everything, &ends[0]);
    assert_int_equal(ends[0].num_failed, 0);
    write_whole_frame(fd, &source, LLI_ARRIVAL_RANGES_MAX * 2 + 2, 1);
    await(has_failed, &ends[0]);
    assert_int_equal(sink.num_done, 0);
    close(fd);
    close_side(&source);
    close_side(&sink);
}

static void
test_every_wrong_byte_of_the_protocol_ends_the_stream(void **state)
{
    (void)state;
    for (size_t at = 0; at <= 5; at++) {
        uint8_t head[LLI_MESSAGE_HEADER_BYTES];
        int fd = connect_raw(&ends[0]);
        lli_message_header_write(head, &(struct lli_message_header){.type = LLI_DATA});
        head[at] ^= 0x20;
        write_raw(fd, head, sizeof(head));
        await(has_failed, &ends[0]);
        assert_int_equal(ends[0].num_failed, 1);
        close(fd);
        assert_int_equal(reopen(), 0);
    }
}

static void
test_a_peer_that_goes_away_is_noticed_at_every_byte(void **state)
{
    (void)state;
    for (size_t cut = 0; cut <= LLI_MESSAGE_HEADER_BYTES + 19; cut++) {
        struct side sink;
        uint8_t frame[LLI_MESSAGE_HEADER_BYTES + 20] = {0};
        open_plain(&sink, 1, false, 10);
        int fd = connect_raw(&ends[0]);
        give(RECEIVE, &ends[0], &sink.job);
        lli_message_header_write(frame, &(struct lli_message_header){
                                            .type = LLI_DATA,
                                            .body_bytes = 20,
                                            .transfer_id = 1,
                                        });
        write_raw(fd, frame, cut);
        close(fd);
        await(has_failed, &ends[0]);
        assert_int_equal(ends[0].num_failed, 1);
        assert_int_equal(sink.num_done, 0);
        close_side(&sink);
        assert_int_equal(reopen(), 0);
    }
}

static void
test_a_peer_that_goes_away_while_it_is_sent_to_is_noticed(void **state)
{
    struct side source;
    (void)state;
    open_plain(&source, 1, true, (uint64_t)8 << 20);
    int fds[2] = {connect_raw(&ends[0]), connect_raw(&ends[0])};
    give(SEND, &ends[0], &source.job);
    await(has_two_frames_under_way, &source);
    close(fds[0]);
    await(has_failed, &ends[0]);
    assert_int_equal(ends[0].num_failed, 1);
    assert_int_equal(source.num_done, 0);
    close(fds[1]);
    close_side(&source);
}

// ---- streams with checksums ----

// A sealed frame of one cell, with the sums of `side`; the bit that is flipped isn't in them.
static void
write_sealed_frame(int fd, const struct side *side, uint64_t position, uint32_t bytes,
                   uint32_t flip_at)
{
    uint8_t frame[LLI_MESSAGE_HEADER_BYTES + 2000 + LLI_CELL_SUM_BYTES];
    assert_true(bytes <= 2000);
    lli_message_header_write(frame, &(struct lli_message_header){
                                        .type = LLI_DATA,
                                        .body_bytes = bytes,
                                        .transfer_id = side->job.id,
                                        .argument = position,
                                    });
    lli_message_seal(frame, NULL, 0);
    uint8_t *body = frame + LLI_MESSAGE_HEADER_BYTES;
    memcpy(body, byte_at(side, position), bytes);
    lli_cells_sum(&side->plan, side->tensors, true, NULL, position, bytes, body + bytes);
    if (flip_at < bytes)
        body[flip_at] ^= 0x10;
    write_raw(fd, frame, LLI_MESSAGE_HEADER_BYTES + bytes + LLI_CELL_SUM_BYTES);
}

static void
test_a_frame_that_was_altered_ends_its_transfer_alone(void **state)
{
    struct side sources[2];
    struct side sinks[2];
    (void)state;
    ends[0].stream.checked = true;
    int fd = connect_raw(&ends[0]);
    int other = connect_raw(&ends[0]);
    for (unsigned i = 0; i < 2; i++) {
        open_plain(&sources[i], 1 + i, true, 1000);
        open_plain(&sinks[i], 1 + i, false, 1000);
        give(RECEIVE, &ends[0], &sinks[i].job);
    }
    write_sealed_frame(fd, &sources[0], 0, 700, UINT32_MAX);
    await(has_read_everything, &ends[0]);
    write_sealed_frame(other, &sources[0], 900, 700, 300);
    await(is_done, &sinks[0]);
    assert_true(sinks[0].job.is_corrupt);
    assert_int_equal(sinks[0].job.corrupt_position, 900);
    assert_int_equal(sinks[0].job.arrival.prefix, 700);
    write_sealed_frame(other, &sources[1], 0, 2000, UINT32_MAX);
    await(is_done, &sinks[1]);
    assert_false(sinks[1].job.is_corrupt);
    assert_arrived(&sources[1], &sinks[1]);
    assert_int_equal(sinks[0].num_done, 1);
    assert_int_equal(ends[0].num_failed, 0);
    close(fd);
    close(other);
    for (unsigned i = 0; i < 2; i++) {
        close_side(&sources[i]);
        close_side(&sinks[i]);
    }
}

static void
set_call(struct end *end, size_t conn, struct lli_stream_job *job)
{
    pthread_mutex_lock(&end->stream.lock);
    end->stream.conns[conn]->in_call = job;
    pthread_cond_broadcast(&end->stream.call_ended);
    pthread_mutex_unlock(&end->stream.lock);
}

static bool
is_in_no_list(struct end *end)
{
    pthread_mutex_lock(&end->stream.lock);
    bool answer = lli_list_empty(&end->stream.receiving) && lli_list_empty(&end->stream.finished);
    pthread_mutex_unlock(&end->stream.lock);
    return answer;
}

static bool
is_corrupt(struct end *end, const struct side *side)
{
    pthread_mutex_lock(&end->stream.lock);
    bool answer = side->job.is_corrupt;
    pthread_mutex_unlock(&end->stream.lock);
    return answer;
}

static void *
cancel_receive(void *arg)
{
    give(CANCEL_RECEIVE, &ends[0], arg);
    return NULL;
}

// One connection finds that its frame was altered, another is writing into the same memory, and the
// transfer is cancelled: it ends once, and nobody touches the job afterwards.
static void
test_a_cancel_beside_an_altered_frame_ends_the_job_once(void **state)
{
    struct side source;
    struct side sink;
    pthread_t canceller;
    (void)state;
    ends[0].stream.checked = true;
    int fds[3];
    for (size_t i = 0; i < LLI_COUNT(fds); i++)
        fds[i] = connect_raw(&ends[0]);
    open_plain(&source, 1, true, 1000);
    open_plain(&sink, 1, false, 1000);
    give(RECEIVE, &ends[0], &sink.job);
    set_call(&ends[0], 1, &sink.job);
    write_sealed_frame(fds[2], &source, 0, 700, 5);
    while (!is_in_no_list(&ends[0]))
        sched_yield();
    assert_int_equal(pthread_create(&canceller, NULL, cancel_receive, &sink.job), 0);
    while (!sink.is_cancelled && !is_corrupt(&ends[0], &sink))
        sched_yield();
    set_call(&ends[0], 1, NULL);
    assert_int_equal(pthread_join(canceller, NULL), 0);
    await(has_read_everything, &ends[0]);
    assert_int_equal(sink.num_done, sink.is_cancelled ? 0 : 1);
    for (size_t i = 0; i < LLI_COUNT(fds); i++)
        close(fds[i]);
    close_side(&source);
    close_side(&sink);
}

// ---- adding connections ----

static void
test_there_is_a_limit_of_connections(void **state)
{
    int raw[LLI_NUM_STREAM_CONNS_MAX];
    int fds[2];
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(raw); i++)
        raw[i] = connect_raw(&ends[1]);
    pair(fds);
    assert_true(add(&ends[1], fds[0]) == LLM_FAILED);
    // It was taken over all the same.
    assert_int_equal(fcntl(fds[0], F_GETFD), -1);
    close(fds[1]);
    for (size_t i = 0; i < LLI_COUNT(raw); i++)
        close(raw[i]);
}

static void
test_without_memory_a_connection_is_closed(void **state)
{
    int fds[2];
    (void)state;
    pair(fds);
    lli_mem_fail_after(1);
    assert_true(add(&ends[0], fds[0]) == LLM_FAILED);
    assert_int_equal(lli_mem_fail_after(0), 0);
    assert_int_equal(fcntl(fds[0], F_GETFD), -1);
    assert_int_equal(ends[0].stream.num_conns, 0);
    close(fds[1]);
}

#define TEST(name)                                                                                 \
    {#name, name, setup_one_lane, teardown, NULL},                                                 \
    {                                                                                              \
#name " (lanes)", name, setup_lanes, teardown, NULL                                        \
    }

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_many_transfers_over_one_connection),
        TEST(test_many_transfers_over_two_connections),
        TEST(test_many_transfers_over_all_connections),
        TEST(test_many_transfers_through_small_buffers),
        TEST(test_one_transfer_after_the_other_on_the_same_connections),
        TEST(test_transfers_take_turns_frame_by_frame),
        TEST(test_what_is_sent_says_where_it_belongs),
        TEST(test_a_job_may_begin_in_the_middle_of_the_stream),
        TEST(test_only_what_comes_from_the_start_on_is_sent),
        TEST(test_flags_travel_with_the_data),
        TEST(test_a_send_cancelled_before_it_began_is_done_at_once),
        TEST(test_a_cancelled_send_completes_the_frames_that_have_begun),
        TEST(test_frames_may_come_in_every_order_over_any_connection),
        TEST(test_frames_that_drip_in_byte_by_byte_arrive),
        TEST(test_frames_without_bytes_change_nothing),
        TEST(test_data_that_nobody_wants_is_skipped),
        TEST(test_after_a_cancelled_receive_no_byte_lands),
        TEST(test_cancels_while_everything_runs),
        TEST(test_progress_is_what_has_arrived_in_one_piece),
        TEST(test_after_a_cancel_in_the_middle_no_byte_lands),
        TEST(test_a_stream_can_be_closed_while_everything_runs),
        TEST(test_nothing_lands_once_the_peer_can_know_that_the_stream_is_closed),
        TEST(test_hostile_frames_end_the_stream_and_nothing_lands),
        TEST(test_the_same_bytes_twice_end_the_stream_and_do_not_land),
        TEST(test_too_many_holes_end_the_stream),
        TEST(test_every_wrong_byte_of_the_protocol_ends_the_stream),
        TEST(test_a_peer_that_goes_away_is_noticed_at_every_byte),
        TEST(test_a_peer_that_goes_away_while_it_is_sent_to_is_noticed),
        TEST(test_a_frame_that_was_altered_ends_its_transfer_alone),
        // Needs a connection that is served beside the instance's thread.
        {"test_a_cancel_beside_an_altered_frame_ends_the_job_once",
         test_a_cancel_beside_an_altered_frame_ends_the_job_once, setup_lanes, teardown, NULL},
        TEST(test_there_is_a_limit_of_connections),
        TEST(test_without_memory_a_connection_is_closed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

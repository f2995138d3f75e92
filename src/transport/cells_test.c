// Checksums of data on its way: cells against a plain sum, and a relay between two ends of a stream
// that flips one bit after the other.
#include "transport/cells.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/wire.h"
#include "device/crc32c.h"
#include "transport/stream.h"
#include "unit/unit.h"

enum { NUM_TENSORS = 2, STRIDE = 5000, NUM_BLOCKS = 9, TENSOR_BYTES = STRIDE * NUM_BLOCKS };

static const uint64_t src_blocks[] = {8, 0, 1, 2, 5};
static const uint64_t dst_blocks[] = {1, 7, 8, 0, 4};
enum { NUM_MOVED = LLI_COUNT(src_blocks), TOTAL_BYTES = NUM_TENSORS * NUM_MOVED * STRIDE };

struct memory {
    uint8_t *bytes;
    uintptr_t tensors[NUM_TENSORS];
};

static struct memory
new_memory(uint64_t seed)
{
    struct memory memory = {.bytes = unit_alloc((size_t)NUM_TENSORS * TENSOR_BYTES)};
    unit_fill(memory.bytes, (size_t)NUM_TENSORS * TENSOR_BYTES, seed);
    for (size_t i = 0; i < NUM_TENSORS; i++)
        memory.tensors[i] = (uintptr_t)memory.bytes + i * TENSOR_BYTES;
    return memory;
}

// The stream of one side, in one piece.
static uint8_t *
flatten(const struct memory *memory, const uint64_t *blocks)
{
    uint8_t *flat = unit_alloc(TOTAL_BYTES);
    uint8_t *to = flat;
    for (size_t t = 0; t < NUM_TENSORS; t++) {
        for (size_t i = 0; i < NUM_MOVED; i++, to += STRIDE)
            memcpy(to, (const void *)(memory->tensors[t] + blocks[i] * STRIDE), STRIDE);
    }
    return flat;
}

static struct lli_plan
new_plan(void)
{
    struct lli_plan plan;
    assert_true(lli_plan_blocks(&plan, NUM_TENSORS, src_blocks, dst_blocks, NUM_MOVED, STRIDE) ==
                LLM_SUCCESS);
    return plan;
}

static void
test_cells_are_counted(void **state)
{
    (void)state;
    assert_int_equal(lli_cells_count(0, 1), 1);
    assert_int_equal(lli_cells_count(0, LLI_CELL_BYTES), 1);
    assert_int_equal(lli_cells_count(0, LLI_CELL_BYTES + 1), 2);
    assert_int_equal(lli_cells_count(LLI_CELL_BYTES - 1, 2), 2);
    assert_int_equal(lli_cells_count(5, (uint64_t)3 * LLI_CELL_BYTES), 4);
}

static void
test_each_cell_has_the_sum_of_its_bytes(void **state)
{
    struct memory memory = new_memory(1);
    struct lli_plan plan = new_plan();
    uint8_t *flat = flatten(&memory, src_blocks);
    (void)state;
    for (uint64_t first = 0; first < TOTAL_BYTES; first += 3331) {
        for (uint64_t bytes = 1; bytes <= TOTAL_BYTES - first; bytes = bytes * 2 + 7) {
            uint8_t sums[64];
            struct lli_reader r;
            lli_cells_sum(&plan, memory.tensors, true, NULL, first, bytes, sums);
            lli_reader_init(&r, sums, sizeof(sums));
            for (uint64_t at = first; at < first + bytes;) {
                uint64_t end = lli_min((at / LLI_CELL_BYTES + 1) * LLI_CELL_BYTES, first + bytes);
                assert_int_equal(lli_read_u32(&r), lli_crc32c_plain(0, flat + at, end - at));
                at = end;
            }
            assert_int_equal(r.position, lli_cells_count(first, bytes) * LLI_CELL_SUM_BYTES);
        }
    }
    free(flat);
    free(memory.bytes);
    lli_plan_fini(&plan);
}

// ---- a relay that flips bits ----

static struct lli_loop loop;
static struct lli_lanes lanes;

struct end {
    struct lli_stream stream;
    struct lli_stream_job job;
    int fd;
    _Atomic bool is_done;
    _Atomic bool has_failed;
};

static void
on_failed(struct lli_stream *stream, const char *why)
{
    struct end *end = stream->owner;
    (void)why;
    lli_stream_close(stream);
    end->has_failed = true;
}

static void
on_done(struct lli_stream_job *job)
{
    LLI_CONTAINER_OF(job, struct end, job)->is_done = true;
}

static void
begin(void *arg)
{
    struct end *end = arg;
    lli_stream_init(&end->stream, &lanes, end, on_failed);
    end->stream.checked = true;
    assert_true(lli_stream_add(&end->stream, end->fd) == LLM_SUCCESS);
    if (end->job.is_source)
        lli_stream_send(&end->stream, &end->job);
    else
        lli_stream_receive(&end->stream, &end->job);
}

static void
finish(void *arg)
{
    struct end *end = arg;
    if (!end->has_failed)
        lli_stream_close(&end->stream);
    lli_stream_fini(&end->stream);
}

// What one end has sent, as it stands on the wire.
static uint8_t *
read_all(int fd, size_t num_bytes)
{
    uint8_t *bytes = unit_alloc(num_bytes);
    for (size_t got = 0; got < num_bytes;) {
        ssize_t more = read(fd, bytes + got, num_bytes - got);
        assert_true(more > 0);
        got += (size_t)more;
    }
    return bytes;
}

static void
write_all(int fd, const uint8_t *bytes, size_t num_bytes)
{
    for (size_t sent = 0; sent < num_bytes;) {
        // The other end may have closed its side by now.
        ssize_t more = send(fd, bytes + sent, num_bytes - sent, MSG_NOSIGNAL);
        if (more < 0)
            return;
        sent += (size_t)more;
    }
}

static void
pair(int ret_fds[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ret_fds), 0);
    assert_int_equal(fcntl(ret_fds[0], F_SETFL, O_NONBLOCK), 0);
}

static uint8_t *
record(const struct lli_plan *plan, const struct memory *source, size_t num_bytes)
{
    int fds[2];
    pair(fds);
    struct end end = {.fd = fds[0], .job = {.id = 7, .plan = plan, .is_source = true}};
    end.job.tensors = source->tensors;
    end.job.done = on_done;
    lli_list_init(&end.job.node);
    lli_loop_call(&loop, begin, &end);
    uint8_t *wire = read_all(fds[1], num_bytes);
    while (!end.is_done)
        lli_loop_flush(&loop);
    lli_loop_call(&loop, finish, &end);
    close(fds[1]);
    return wire;
}

// Receives what is on the wire; true if the job ended.
static bool
replay(const struct lli_plan *plan, const struct memory *sink, const uint8_t *wire,
       size_t num_bytes, struct lli_stream_job *ret_job)
{
    int fds[2];
    pair(fds);
    struct end end = {.fd = fds[0], .job = {.id = 7, .plan = plan}};
    end.job.tensors = sink->tensors;
    end.job.done = on_done;
    lli_list_init(&end.job.node);
    lli_loop_call(&loop, begin, &end);
    write_all(fds[1], wire, num_bytes);
    // A length that was changed may make it wait for more than there is.
    shutdown(fds[1], SHUT_WR);
    while (!end.is_done && !end.has_failed)
        lli_loop_flush(&loop);
    lli_loop_call(&loop, finish, &end);
    close(fds[1]);
    *ret_job = end.job;
    return end.is_done;
}

static void
test_every_flipped_bit_is_found(void **state)
{
    struct memory source = new_memory(2);
    struct memory sink = new_memory(3);
    struct lli_plan plan = new_plan();
    struct lli_stream_job job;
    // One frame holds it all.
    size_t num_sums = lli_cells_count(0, TOTAL_BYTES) * LLI_CELL_SUM_BYTES;
    size_t num_bytes = LLI_MESSAGE_HEADER_BYTES + TOTAL_BYTES + num_sums;
    size_t sums_at = LLI_MESSAGE_HEADER_BYTES + TOTAL_BYTES;
    (void)state;
    assert_int_equal(lli_loop_open(&loop, 0, NULL, NULL, NULL), LLM_SUCCESS);
    lli_lanes_init(&lanes, &loop, 1);
    assert_int_equal(lli_loop_start(&loop), LLM_SUCCESS);
    uint8_t *wire = record(&plan, &source, num_bytes);
    assert_true(replay(&plan, &sink, wire, num_bytes, &job));
    assert_false(job.is_corrupt);
    uint8_t *sent = flatten(&source, src_blocks);
    uint8_t *arrived = flatten(&sink, dst_blocks);
    assert_memory_equal(sent, arrived, TOTAL_BYTES);
    free(sent);
    free(arrived);

    for (size_t bit = 0; bit < num_bytes * 8; bit += bit < 256 || bit / 8 >= sums_at ? 1 : 4999) {
        size_t at = bit / 8;
        wire[at] ^= (uint8_t)(1 << bit % 8);
        bool ended = replay(&plan, &sink, wire, num_bytes, &job);
        wire[at] ^= (uint8_t)(1 << bit % 8);
        if (at < LLI_MESSAGE_HEADER_BYTES) {
            assert_false(ended); // the stream has failed
            continue;
        }
        assert_true(ended && job.is_corrupt);
        uint64_t cell = at < sums_at ? (at - LLI_MESSAGE_HEADER_BYTES) / LLI_CELL_BYTES
                                     : (at - sums_at) / LLI_CELL_SUM_BYTES;
        assert_int_equal(job.corrupt_position, cell * LLI_CELL_BYTES);
    }
    lli_loop_stop(&loop);
    lli_loop_close(&loop);
    free(wire);
    free(source.bytes);
    free(sink.bytes);
    lli_plan_fini(&plan);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cells_are_counted),
        cmocka_unit_test(test_each_cell_has_the_sum_of_its_bytes),
        cmocka_unit_test(test_every_flipped_bit_is_found),
    };
    llm_set_log_level(LLM_LOG_OFF);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

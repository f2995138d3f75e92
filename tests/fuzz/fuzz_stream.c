// Whatever comes over data connections, and in whichever order: no byte lands outside the memory of the
// transfers that wait, none after a transfer has ended, and one that ends well has got what was sent.
//
// Input: a letter of flags (1: checked, 2: two connections, 4: the first transfer goes on from the
// middle), then orders: F frame, P frame of which a part comes later, R raw bytes, X cancel, S send,
// C close a connection, else a turn.
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "fuzz/fuzz.h"
#include "transport/stream.h"

enum { JOBS = 3, TENSORS = 2, TENSOR_BYTES = 18100, CONNS = 2, GUARD = 0xee, ORDERS_MAX = 64 };
enum { FRAME_BYTES_MAX = 40000, START = 5000 };

struct job {
    struct lli_stream_job job;
    struct lli_plan plan;
    size_t tensor_bytes; // its own
    uint8_t bytes[TENSORS][TENSOR_BYTES];
    uintptr_t tensors[TENSORS];
    uint64_t next; // where the next frame begins, if it is a good one
    unsigned num_done;
    bool cancelled;
};

static struct lli_loop loop;
static struct job jobs[JOBS];
static struct job sent;
static struct lli_stream stream;
static int ends[CONNS];
static size_t num_ends;
static struct {
    const uint8_t *bytes;
    size_t num_bytes;
    size_t conn;
} rest;              // of a frame
static bool is_pure; // whatever has landed, or passed its checksum, was the transfer's own

static uint8_t
byte_of(size_t job, uint64_t position)
{
    return (uint8_t)(position * 31 + (position >> 8) + job * 7);
}

static void
done(struct lli_stream_job *job)
{
    struct job *its = LLI_CONTAINER_OF(job, struct job, job);
    its->num_done++;
    MUST(its->num_done == 1);
    MUST(its == &sent || !its->cancelled);
}

static void
on_failed(struct lli_stream *failed, const char *why)
{
    (void)why;
    lli_stream_close(failed);
}

static void
wipe(struct job *its)
{
    for (size_t t = 0; t < TENSORS; t++)
        memset(its->bytes[t], GUARD, its->tensor_bytes);
}

static void
make_plans(void)
{
    static const uint64_t src_blocks[] = {0, 1, 2};
    static const uint64_t dst_blocks[] = {3, 0, 2};
    MUST(lli_plan_slot(&jobs[0].plan, TENSORS, 0, 7, 18000) == LLM_SUCCESS);
    MUST(lli_plan_blocks(&jobs[1].plan, TENSORS, src_blocks, dst_blocks, 3, 1000) == LLM_SUCCESS);
    MUST(lli_plan_slot(&jobs[2].plan, TENSORS, 0, 100, 1) == LLM_SUCCESS);
    jobs[0].tensor_bytes = TENSOR_BYTES;
    jobs[1].tensor_bytes = 4100;
    jobs[2].tensor_bytes = 200;
    sent.tensor_bytes = 2100;
    MUST(lli_plan_slot(&sent.plan, TENSORS, 100, 0, 2000) == LLM_SUCCESS);
}

static void
open_all(unsigned flags)
{
    static struct lli_lanes lanes;
    if (loop.wake.ready == NULL) {
        MUST(lli_loop_open(&loop, 0, NULL, NULL, NULL) == LLM_SUCCESS);
        lli_lanes_init(&lanes, &loop, 1);
        make_plans();
    }
    lli_stream_init(&stream, &lanes, NULL, on_failed);
    stream.checked = (flags & 1) != 0;
    num_ends = (flags & 2) != 0 ? 2 : 1;
    is_pure = true;
    rest.num_bytes = 0;
    for (size_t i = 0; i < num_ends; i++) {
        int pair[2];
        MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
        ends[i] = pair[0];
        MUST(lli_stream_add(&stream, pair[1]) == LLM_SUCCESS);
    }
    for (size_t i = 0; i <= JOBS; i++) {
        struct job *its = i < JOBS ? &jobs[i] : &sent;
        wipe(its);
        for (size_t t = 0; t < TENSORS; t++)
            its->tensors[t] = (uintptr_t)its->bytes[t];
        its->num_done = 0;
        its->cancelled = false;
        its->next = i == 0 && (flags & 4) != 0 ? START : 0;
        its->job = (struct lli_stream_job){
            .id = i + 1,
            .plan = &its->plan,
            .tensors = its->tensors,
            .is_source = i == JOBS,
            .start_position = its->next,
            .done = done,
        };
        lli_list_init(&its->job.node);
        if (i < JOBS)
            lli_stream_receive(&stream, &its->job);
    }
    sent.cancelled = true; // not sent yet
}

static void
turn(void)
{
    uint8_t drained[4096];
    struct lli_source *sources[CONNS];
    size_t num_sources = stream.num_conns;
    for (size_t i = 0; i < num_sources; i++)
        sources[i] = &stream.conns[i]->source;
    turn_by_hand(&loop, sources, num_sources);
    for (size_t i = 0; i < num_ends; i++) {
        while (recv(ends[i], drained, sizeof(drained), MSG_DONTWAIT) > 0) {
        }
    }
}

static void
deliver(size_t conn, const uint8_t *bytes, size_t num_bytes)
{
    for (size_t at = 0; at < num_bytes && stream.num_conns > 0;) {
        ssize_t put = send(ends[conn], bytes + at, num_bytes - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (put > 0)
            at += (size_t)put;
        else if (stream.failed || num_bytes == 0)
            return;
        turn();
        if (put <= 0 && stream.num_conns > 0 && !stream.conns[conn]->source.added)
            return;
    }
}

static void
deliver_rest(void)
{
    size_t num_bytes = rest.num_bytes;
    rest.num_bytes = 0;
    deliver(rest.conn, rest.bytes, num_bytes);
}

// In a checked stream the sums of each cell's bytes.
static size_t
append_sums(const uint8_t *body, uint64_t first, uint64_t num_bytes, uint8_t *ret_sums)
{
    uintptr_t tensor = (uintptr_t)body;
    struct lli_run run = {.bytes = first + num_bytes};
    struct lli_plan plan = {.num_tensors = 1,
                            .runs = &run,
                            .num_runs = 1,
                            .tensor_bytes = run.bytes,
                            .total_bytes = run.bytes};
    tensor -= first;
    lli_cells_sum(&plan, &tensor, true, NULL, first, num_bytes, ret_sums);
    return lli_cells_count(first, num_bytes) * LLI_CELL_SUM_BYTES;
}

// A good frame, unless the input wants something else about it.
static void
frame(struct input *input, size_t first_part)
{
    deliver_rest();
    static uint8_t bytes[LLI_MESSAGE_HEADER_BYTES + FRAME_BYTES_MAX + LLI_FRAME_SUMS_BYTES_MAX];
    uint8_t *body = bytes + LLI_MESSAGE_HEADER_BYTES;
    unsigned how = (unsigned)take_number(input, 1);
    size_t which = (size_t)take_number(input, 1) % (JOBS + 1);
    uint64_t next = which < JOBS ? jobs[which].next : 0;
    uint64_t total = which < JOBS ? jobs[which].plan.total_bytes : UINT64_MAX;
    uint64_t first = (how & 1) != 0 ? take_number(input, (how & 2) != 0 ? 8 : 3) : next;
    uint64_t left = first < total ? total - first : 0;
    uint64_t num_bytes = take_number(input, 2) % FRAME_BYTES_MAX;
    if ((how & 4) == 0)
        num_bytes = lli_min(num_bytes, left);
    struct lli_message_header header = {
        .type = (how & 8) != 0 ? (uint8_t)take_number(input, 1) : LLI_DATA,
        .flags = (how & 16) != 0 ? LLI_FLAG_TELL_WHEN_DONE : 0,
        .body_bytes = (uint32_t)num_bytes,
        .transfer_id = which + 1,
        .argument = first,
    };
    lli_message_header_write(bytes, &header);
    for (uint64_t i = 0; i < num_bytes; i++)
        body[i] = byte_of(which, first + i);
    size_t num_sums = 0;
    if (stream.checked && first <= UINT64_MAX - num_bytes && num_bytes > 0)
        num_sums = append_sums(body, first, num_bytes, body + num_bytes);
    if (stream.checked && (how & 32) == 0)
        lli_message_seal(bytes, NULL, 0);
    if ((how & 64) != 0 && num_bytes > 0) {
        body[take_number(input, 2) % num_bytes] ^= 1 + (take_number(input, 1) & 0xfe);
        is_pure = is_pure && stream.checked;
    }
    if (which < JOBS && first == next)
        jobs[which].next = lli_min(next + num_bytes, total);
    size_t conn = (how & 128) != 0 ? num_ends - 1 : 0;
    size_t whole = LLI_MESSAGE_HEADER_BYTES + num_bytes + num_sums;
    first_part = lli_min(first_part, whole);
    deliver(conn, bytes, first_part);
    rest.bytes = bytes + first_part;
    rest.num_bytes = whole - first_part;
    rest.conn = conn;
}

static void
cancel(struct input *input)
{
    size_t which = (size_t)take_number(input, 1) % (JOBS + 1);
    struct job *its = which < JOBS ? &jobs[which] : &sent;
    if (stream.num_conns == 0 || its->cancelled || its->num_done > 0)
        return;
    its->cancelled = true;
    if (which == JOBS) {
        lli_stream_cancel_send(&stream, &its->job);
        return;
    }
    lli_stream_cancel_receive(&stream, &its->job);
    // It's somebody else's from now on.
    wipe(its);
}

static void
obey(struct input *input)
{
    size_t num_bytes;
    switch (take_number(input, 1)) {
    case 'F':
        frame(input, SIZE_MAX);
        break;
    case 'P':
        num_bytes = (size_t)take_number(input, 2);
        frame(input, num_bytes);
        break;
    case 'R':
        num_bytes = lli_min(take_number(input, 1), input->size);
        is_pure = is_pure && num_bytes == 0;
        deliver_rest();
        deliver(0, input->data, num_bytes);
        input->data += num_bytes;
        input->size -= num_bytes;
        break;
    case 'X':
        cancel(input);
        break;
    case 'S':
        if (stream.num_conns > 0 && sent.cancelled && sent.job.plan != NULL && sent.num_done == 0 &&
            sent.job.position == 0) {
            sent.cancelled = false;
            lli_stream_send(&stream, &sent.job);
        }
        break;
    case 'C':
        shutdown(ends[take_number(input, 1) % num_ends], SHUT_WR);
        break;
    default:
        turn();
    }
}

// The bytes up to `end` are the transfer's, those outside its places nobody's.
static void
check(size_t which, uint64_t end)
{
    static uint8_t expected[TENSORS][TENSOR_BYTES];
    static uint8_t is_its[TENSORS][TENSOR_BYTES];
    const struct job *its = &jobs[which];
    for (size_t t = 0; t < TENSORS; t++)
        memset(is_its[t], 0, its->tensor_bytes);
    for (uint64_t p = 0, t = 0; t < TENSORS; t++) {
        for (size_t r = 0; r < its->plan.num_runs; r++) {
            const struct lli_run *run = &its->plan.runs[r];
            for (uint64_t i = 0; i < run->bytes; i++, p++) {
                bool has_come = p >= its->job.start_position && p < end;
                is_its[t][run->dst_offset + i] = p < its->job.start_position ? 0
                                                 : has_come && is_pure       ? 1
                                                                             : 2;
                expected[t][run->dst_offset + i] = byte_of(which, p);
            }
        }
    }
    for (size_t t = 0; t < TENSORS; t++) {
        for (size_t i = 0; i < its->tensor_bytes; i++) {
            MUST(is_its[t][i] != 0 || its->bytes[t][i] == GUARD);
            MUST(is_its[t][i] != 1 || its->bytes[t][i] == expected[t][i]);
            MUST(!its->cancelled || its->bytes[t][i] == GUARD);
        }
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint64_t arrived[JOBS];
    llm_set_log_level(LLM_LOG_OFF);
    open_all((unsigned)take_number(&input, 1));
    for (int i = 0; i < ORDERS_MAX && input.size > 0; i++)
        obey(&input);
    deliver_rest();
    turn();
    for (size_t i = 0; i < JOBS; i++) {
        const struct job *its = &jobs[i];
        bool waits = stream.num_conns > 0 && its->num_done == 0 && !its->cancelled;
        arrived[i] = waits ? lli_stream_arrived(&stream, &its->job) : its->job.start_position;
        if (its->num_done > 0 && !its->job.is_corrupt)
            arrived[i] = its->plan.total_bytes;
        MUST(arrived[i] >= its->job.start_position && arrived[i] <= its->plan.total_bytes);
    }
    lli_stream_close(&stream);
    free_dead_by_hand(&loop);
    lli_stream_fini(&stream);
    for (size_t i = 0; i < num_ends; i++)
        close(ends[i]);
    for (size_t i = 0; i < JOBS; i++)
        check(i, arrived[i]);
    return 0;
}

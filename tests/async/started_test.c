// Transfers that are started now and awaited later, over every transport.
#include <poll.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "registered/kit.h"

enum { HERE = 91, THERE = 92, SEED = 3 };
enum { TENSORS = 4, SLOTS = 16, STRIDE = SCALED(1 << 17, 1 << 15) + 1 };
enum { FROM = 0, TO = 1 };

// An instance and its peer in the same process, with a cache each.
struct bed {
    struct end end;
    struct end peer;
    struct kv own;
    struct kv theirs;
};

static void
open_bed(struct bed *bed, uint64_t num_slots, uint64_t stride)
{
    struct end_setup setup = {.id = HERE};
    end_open(&bed->end, &setup);
    setup = (struct end_setup){.id = THERE, .listens = true};
    end_open(&bed->peer, &setup);
    assert_ok(end_link(&bed->end, THERE, bed->peer.port));
    kv_open(&bed->own, &bed->end, TENSORS, num_slots, stride);
    kv_open(&bed->theirs, &bed->peer, TENSORS, num_slots, stride);
}

static void
close_bed(struct bed *bed)
{
    end_close(&bed->end);
    end_close(&bed->peer);
    kv_free(&bed->own);
    kv_free(&bed->theirs);
}

// A pull of the peer's whole cache, or a push of ours.
static struct job
whole(const struct bed *bed, bool push)
{
    return (struct job){
        .push = push, .peer = THERE, .remote = bed->theirs.id, .count = bed->own.num_slots};
}

static struct kv *
source_of(struct bed *bed, bool push)
{
    return push ? &bed->own : &bed->theirs;
}

static struct kv *
target_of(struct bed *bed, bool push)
{
    return push ? &bed->theirs : &bed->own;
}

static int64_t
now_us(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * INT64_C(1000000) + now.tv_nsec / 1000;
}

static bool
is_readable(int fd, int timeout_ms)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    return poll(&wait, 1, timeout_ms) == 1;
}

static void
reset(int fd)
{
    uint64_t count;
    assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
}

// ---- one transfer ----

static void
live_once(bool push)
{
    struct bed bed;
    uint64_t id = 0;
    open_bed(&bed, SLOTS, STRIDE);
    int fd = llm_transfer_fd(bed.end.dd);
    assert_true(fd >= 0);
    assert_false(is_readable(fd, 0));
    kv_fill(source_of(&bed, push), SEED);
    struct job job = whole(&bed, push);
    assert_ok(job_start(&job, &bed.end, &bed.own, &id));
    // The eventfd tells that something has ended, and the result is there by then.
    assert_true(is_readable(fd, PATIENCE_MS));
    reset(fd);
    assert_false(is_readable(fd, 0));
    for (unsigned i = 0; i < 3; i++) {
        assert_ok(llm_transfer_poll(bed.end.dd, id));
        assert_ok(llm_transfer_wait(bed.end.dd, id, 0));
        assert_ok(llm_transfer_wait(bed.end.dd, id, -1));
    }
    assert_true(kv_holds(target_of(&bed, push), SEED, SLOTS, 0));
    // Too late to cancel: the result stays.
    assert_ok(llm_transfer_cancel(bed.end.dd, id));
    assert_ok(llm_transfer_poll(bed.end.dd, id));
    assert_false(is_readable(fd, 0));
    assert_ok(llm_transfer_release(bed.end.dd, id));
    assert_status(llm_transfer_poll(bed.end.dd, id), LLM_PARAM_INVALID);
    assert_status(llm_transfer_wait(bed.end.dd, id, -1), LLM_PARAM_INVALID);
    assert_status(llm_transfer_cancel(bed.end.dd, id), LLM_PARAM_INVALID);
    assert_status(llm_transfer_release(bed.end.dd, id), LLM_PARAM_INVALID);
    close_bed(&bed);
}

static void
test_a_transfer_from_its_start_to_its_release(void **state)
{
    (void)state;
    live_once(false);
    live_once(true);
}

static void
test_names_that_nobody_has(void **state)
{
    (void)state;
    struct bed bed;
    assert_int_equal(llm_transfer_fd(NULL), -1);
    open_bed(&bed, 1, 8);
    for (uint64_t id = 0; id < 4; id++)
        assert_status(llm_transfer_poll(bed.end.dd, id), LLM_PARAM_INVALID);
    assert_status(llm_transfer_wait(bed.end.dd, 4711, -2), LLM_PARAM_INVALID);
    llm_finalize(bed.end.dd);
    assert_int_equal(llm_transfer_fd(bed.end.dd), -1);
    assert_status(llm_transfer_poll(bed.end.dd, 1), LLM_FAILED);
    assert_status(llm_transfer_wait(bed.end.dd, 1, 0), LLM_FAILED);
    assert_status(llm_transfer_cancel(bed.end.dd, 1), LLM_FAILED);
    assert_status(llm_transfer_release(bed.end.dd, 1), LLM_FAILED);
    close_bed(&bed);
}

// What is wrong with the arguments is said by the start, and then there is no transfer.
static void
test_a_start_says_at_once_what_is_wrong(void **state)
{
    (void)state;
    struct bed bed;
    uint64_t id = 4711;
    open_bed(&bed, SLOTS, 64);
    for (unsigned push = 0; push < 2; push++) {
        struct job good = whole(&bed, push != 0);
        struct job job = good;
        job.peer = 4711;
        assert_status(job_start(&job, &bed.end, &bed.own, &id), LLM_NOT_YET_LINK);
        job = good;
        job.count = SLOTS + 1;
        assert_status(job_start(&job, &bed.end, &bed.own, &id), LLM_PARAM_INVALID);
        job = good;
        job.count = 0;
        assert_status(job_start(&job, &bed.end, &bed.own, &id), LLM_PARAM_INVALID);
        job = good;
        job.slot = true;
        job.count = job.shift = SLOTS;
        assert_status(job_start(&job, &bed.end, &bed.own, &id), LLM_PARAM_INVALID);
        struct kv unknown = bed.own;
        unknown.id = 4711;
        assert_status(job_start(&good, &bed.end, &unknown, &id), LLM_KV_CACHE_NOT_EXIST);
        job = good;
        job.note = "x";
        job.note_bytes = LLM_NOTIFICATION_BYTES_MAX + 1;
        assert_status(job_start(&job, &bed.end, &bed.own, &id), LLM_PARAM_INVALID);
    }
    assert_int_equal(id, 4711);
    // What only the peer knows may be said by the start or be the result.
    for (unsigned push = 0; push < 2; push++) {
        struct job job = whole(&bed, push != 0);
        job.remote = 4711;
        llm_status status = job_start(&job, &bed.end, &bed.own, &id);
        if (status == LLM_SUCCESS) {
            status = llm_transfer_wait(bed.end.dd, id, -1);
            assert_ok(llm_transfer_release(bed.end.dd, id));
        }
        assert_status(status, LLM_KV_CACHE_NOT_EXIST);
    }
    llm_cache cache = kv_cache(&bed.own);
    llm_cache_index index = {.struct_size = sizeof(index), .cluster_id = THERE, .cache_id = 1};
    assert_status(llm_start_pull_kv_cache(bed.end.dd, &index, &cache, 0, -1, NULL, NULL),
                  LLM_PARAM_INVALID);
    llm_finalize(bed.end.dd);
    assert_status(llm_start_pull_kv_cache(bed.end.dd, &index, &cache, 0, -1, NULL, &id),
                  LLM_FAILED);
    close_bed(&bed);
}

// All arguments but the caches may go when the start has returned.
static void
test_arguments_are_not_kept(void **state)
{
    (void)state;
    struct bed bed;
    uint64_t ids[2];
    uint64_t from[SLOTS];
    uint64_t to[SLOTS];
    uint8_t note[64];
    open_bed(&bed, SLOTS, STRIDE);
    kv_fill(&bed.theirs, SEED);
    llm_cache cache = kv_cache(&bed.own);
    llm_cache_index index = {
        .struct_size = sizeof(index), .cluster_id = THERE, .cache_id = bed.theirs.id};
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    param.notification = note;
    param.notification_bytes = sizeof(note);
    memset(note, 1, sizeof(note));
    for (uint64_t i = 0; i < SLOTS; i++) {
        from[i] = i;
        to[i] = SLOTS - 1 - i;
    }
    assert_ok(llm_start_pull_kv_blocks(bed.end.dd, &index, &cache, from, SLOTS, to, SLOTS, &param,
                                       &ids[0]));
    memset(from, 0xff, sizeof(from));
    memset(to, 0xff, sizeof(to));
    memset(note, 0xff, sizeof(note));
    memset(&cache, 0xff, sizeof(cache));
    memset(&index, 0xff, sizeof(index));
    memset(&param, 0xff, sizeof(param));
    assert_ok(llm_transfer_wait(bed.end.dd, ids[0], -1));
    for (uint32_t t = 0; t < TENSORS; t++) {
        for (uint64_t i = 0; i < SLOTS; i++)
            assert_true(kv_slot_holds(&bed.own, t, SLOTS - 1 - i, SEED, t, i));
    }
    memset(note, 1, sizeof(note));
    await_note(&bed.peer, HERE, note, sizeof(note));
    assert_ok(llm_transfer_release(bed.end.dd, ids[0]));
    close_bed(&bed);
}

// ---- many ----

static void
run_side_by_side(bool push)
{
    enum { MANY = 300 };
    struct bed bed;
    uint64_t ids[MANY];
    open_bed(&bed, MANY, 777);
    kv_fill(source_of(&bed, push), SEED);
    for (uint32_t i = 0; i < MANY; i++) {
        struct job job = whole(&bed, push);
        job.slot = true;
        job.count = i;
        job.shift = MANY - 1 - i;
        assert_ok(job_start(&job, &bed.end, &bed.own, &ids[i]));
        for (uint32_t j = i > 5 ? i - 5 : 0; j < i; j++)
            assert_int_not_equal(ids[i], ids[j]);
    }
    for (uint32_t i = MANY; i-- > 0;)
        assert_ok(llm_transfer_wait(bed.end.dd, ids[i], -1));
    for (uint32_t i = 0; i < MANY; i++) {
        for (uint32_t t = 0; t < TENSORS; t++)
            assert_true(kv_slot_holds(target_of(&bed, push), t, MANY - 1 - i, SEED, t, i));
        assert_ok(llm_transfer_release(bed.end.dd, ids[i]));
    }
    assert_true(kv_is_intact_around(target_of(&bed, push)));
    close_bed(&bed);
}

static void
test_hundreds_of_transfers_on_one_link(void **state)
{
    (void)state;
    run_side_by_side(false);
    run_side_by_side(true);
}

// More than a peer can announce at once (64), none of which is over after its first portion.
static void
run_long_side_by_side(bool push)
{
    enum { MANY = 100 };
    struct bed bed;
    uint64_t ids[MANY];
    open_bed(&bed, 4, SCALED(1 << 17, 1 << 16));
    kv_fill(source_of(&bed, push), SEED);
    struct job job = whole(&bed, push);
    job.repeat = SCALED(3, 6);
    for (uint32_t i = 0; i < MANY; i++)
        assert_ok(job_start(&job, &bed.end, &bed.own, &ids[i]));
    for (uint32_t i = 0; i < MANY; i++) {
        assert_ok(llm_transfer_wait(bed.end.dd, ids[i], -1));
        assert_ok(llm_transfer_release(bed.end.dd, ids[i]));
    }
    assert_true(kv_holds(target_of(&bed, push), SEED, 4, 0));
    close_bed(&bed);
}

static void
test_more_long_transfers_than_may_be_announced(void **state)
{
    (void)state;
    run_long_side_by_side(false);
    run_long_side_by_side(true);
}

// On one host the thread that pulls must announce itself beside all those.
static void
test_a_pull_is_not_held_up_by_more_long_ones_than_may_be_announced(void **state)
{
    enum { MANY = 100 };
    struct bed bed;
    struct kv own;
    uint64_t ids[MANY];
    (void)state;
    open_bed(&bed, 4, 1 << 17);
    kv_open(&own, &bed.end, TENSORS, 4, 1 << 17);
    kv_fill(source_of(&bed, false), SEED);
    struct job job = whole(&bed, false);
    job.repeat = 2000;
    for (uint32_t i = 0; i < MANY; i++)
        assert_ok(job_start(&job, &bed.end, &bed.own, &ids[i]));
    job = whole(&bed, false);
    job.repeat = 1;
    for (uint32_t i = 0; i < 100; i++)
        assert_ok(job_run(&job, &bed.end, &own));
    for (uint32_t i = 0; i < MANY; i++)
        assert_status(llm_transfer_poll(bed.end.dd, ids[i]), LLM_TRANSFER_PENDING);
    for (uint32_t i = 0; i < MANY; i++)
        assert_ok(llm_transfer_release(bed.end.dd, ids[i]));
    close_bed(&bed);
    kv_free(&own);
}

static void
test_a_start_with_112000_blocks_returns_quickly(void **state)
{
    (void)state;
    enum { BLOCKS = 112000 };
    struct bed bed;
    uint64_t id;
    uint64_t *from = calloc(BLOCKS, sizeof(*from));
    uint64_t *to = calloc(BLOCKS, sizeof(*to));
    assert_true(from != NULL && to != NULL);
    open_bed(&bed, BLOCKS, 8);
    kv_fill(&bed.theirs, SEED);
    // A permutation without neighbours.
    for (uint64_t i = 0; i < BLOCKS; i++) {
        from[i] = i * 5741 % BLOCKS;
        to[i] = (i * 31 + 7) % BLOCKS;
    }
    llm_cache cache = kv_cache(&bed.own);
    llm_cache_index index = {
        .struct_size = sizeof(index), .cluster_id = THERE, .cache_id = bed.theirs.id};
    int64_t begin_us = now_us(CLOCK_MONOTONIC);
    int64_t begin_cpu_us = now_us(CLOCK_THREAD_CPUTIME_ID);
    assert_ok(
        llm_start_pull_kv_blocks(bed.end.dd, &index, &cache, from, BLOCKS, to, BLOCKS, NULL, &id));
    print_message("a start with %d blocks took %d us, %d us of them busy\n", BLOCKS,
                  (int)(now_us(CLOCK_MONOTONIC) - begin_us),
                  (int)(now_us(CLOCK_THREAD_CPUTIME_ID) - begin_cpu_us));
    assert_ok(llm_transfer_wait(bed.end.dd, id, -1));
    for (uint64_t i = 0; i < BLOCKS; i++)
        assert_true(kv_slot_holds(&bed.own, i % TENSORS, to[i], SEED, i % TENSORS, from[i]));
    assert_ok(llm_transfer_release(bed.end.dd, id));
    close_bed(&bed);
    free(from);
    free(to);
}

struct waiter {
    pthread_t thread;
    llm_datadist *dd;
    uint64_t id;
    llm_status status;
};

static void *
wait_for_end(void *arg)
{
    struct waiter *waiter = arg;
    waiter->status = llm_transfer_wait(waiter->dd, waiter->id, -1);
    return NULL;
}

static void
test_several_threads_wait_for_one_transfer(void **state)
{
    (void)state;
    struct bed bed;
    struct waiter waiters[4];
    open_bed(&bed, SLOTS, STRIDE);
    kv_fill(&bed.theirs, SEED);
    struct job job = whole(&bed, false);
    uint64_t id;
    assert_ok(job_start(&job, &bed.end, &bed.own, &id));
    for (size_t i = 0; i < LENGTH(waiters); i++) {
        waiters[i] = (struct waiter){.dd = bed.end.dd, .id = id};
        assert_int_equal(pthread_create(&waiters[i].thread, NULL, wait_for_end, &waiters[i]), 0);
    }
    for (size_t i = 0; i < LENGTH(waiters); i++) {
        pthread_join(waiters[i].thread, NULL);
        assert_ok(waiters[i].status);
    }
    assert_ok(llm_transfer_release(bed.end.dd, id));
    close_bed(&bed);
}

// ---- cancelling ----

// Something else moves over the link.
static void
make_traffic(struct bed *bed, struct kv *own, struct kv *theirs)
{
    for (unsigned push = 0; push < 2; push++) {
        struct job job = {
            .push = push != 0, .peer = THERE, .remote = theirs->id, .count = own->num_slots};
        kv_fill(push ? own : theirs, SEED + 7);
        kv_fill(push ? theirs : own, 0);
        assert_ok(job_run(&job, &bed->end, own));
        assert_true(kv_holds(push ? theirs : own, SEED + 7, own->num_slots, 0));
    }
}

enum ending { ENDING_CANCEL, ENDING_RELEASE };

// Lets the transfer run for a while.
static void
spin(int64_t us)
{
    int64_t end = now_us(CLOCK_MONOTONIC) + us;
    while (now_us(CLOCK_MONOTONIC) < end) {
    }
}

static llm_status
end_early(struct bed *bed, uint64_t id, enum ending ending)
{
    llm_status status = LLM_TRANSFER_CANCELLED;
    if (ending == ENDING_CANCEL) {
        assert_ok(llm_transfer_cancel(bed->end.dd, id));
        status = llm_transfer_poll(bed->end.dd, id);
        assert_int_not_equal(status, LLM_TRANSFER_PENDING);
    } else {
        assert_ok(llm_transfer_release(bed->end.dd, id));
        assert_status(llm_transfer_poll(bed->end.dd, id), LLM_PARAM_INVALID);
    }
    return status;
}

// Ends a transfer after a while that grows from round to round: nothing lands afterwards.
static void
end_many_early(bool push, enum ending ending)
{
    struct bed bed;
    struct kv own;
    struct kv theirs;
    unsigned num_cancelled = 0;
    const unsigned rounds = SCALED(40, 12);
    open_bed(&bed, SLOTS, STRIDE);
    kv_open(&own, &bed.end, 2, 8, 1000);
    kv_open(&theirs, &bed.peer, 2, 8, 1000);
    kv_fill(source_of(&bed, push), SEED);
    struct kv *target = target_of(&bed, push);
    for (unsigned round = 0; round < rounds; round++) {
        uint64_t id;
        struct job job = whole(&bed, push);
        job.repeat = 8;
        kv_fill(target, 0);
        assert_ok(job_start(&job, &bed.end, &bed.own, &id));
        spin(round * SCALED(60, 200));
        llm_status status = end_early(&bed, id, ending);
        num_cancelled += status == LLM_TRANSFER_CANCELLED;
        if (status == LLM_SUCCESS)
            assert_true(kv_holds(target, SEED, SLOTS, 0));
        else
            assert_status(status, LLM_TRANSFER_CANCELLED);
        assert_true(kv_is_intact_around(target));
        // The memory is the caller's again.
        kv_fill(target, SEED + 1);
        make_traffic(&bed, &own, &theirs);
        assert_true(kv_holds(target, SEED + 1, SLOTS, 0));
        if (ending == ENDING_CANCEL)
            assert_ok(llm_transfer_release(bed.end.dd, id));
    }
    print_message("%u of %u were cancelled\n", num_cancelled, rounds);
    assert_int_equal(end_state(&bed.end, THERE, NULL), LLM_LINK_READY);
    close_bed(&bed);
    kv_free(&own);
    kv_free(&theirs);
}

static void
test_nothing_lands_after_a_cancelled_pull(void **state)
{
    (void)state;
    end_many_early(false, ENDING_CANCEL);
}

static void
test_nothing_lands_after_a_cancelled_push(void **state)
{
    (void)state;
    end_many_early(true, ENDING_CANCEL);
}

static void
test_nothing_lands_after_a_release(void **state)
{
    (void)state;
    end_many_early(false, ENDING_RELEASE);
    end_many_early(true, ENDING_RELEASE);
}

// Of hundreds, every third is cancelled while the others run on.
static void
test_cancelling_some_of_many(void **state)
{
    (void)state;
    enum { MANY = 240 };
    struct bed bed;
    uint64_t ids[MANY];
    open_bed(&bed, MANY, 5000);
    for (unsigned push = 0; push < 2; push++) {
        kv_fill(source_of(&bed, push != 0), SEED + push);
        kv_fill(target_of(&bed, push != 0), 0);
        for (uint32_t i = 0; i < MANY; i++) {
            struct job job = whole(&bed, push != 0);
            job.slot = true;
            job.count = job.shift = i;
            assert_ok(job_start(&job, &bed.end, &bed.own, &ids[i]));
        }
        for (uint32_t i = 0; i < MANY; i += 3)
            assert_ok(llm_transfer_cancel(bed.end.dd, ids[i]));
        for (uint32_t i = 0; i < MANY; i++) {
            llm_status status = llm_transfer_wait(bed.end.dd, ids[i], -1);
            if (i % 3 != 0 || status != LLM_TRANSFER_CANCELLED) {
                assert_ok(status);
                assert_true(kv_slot_holds(target_of(&bed, push != 0), 1, i, SEED + push, 1, i));
            }
            assert_ok(llm_transfer_release(bed.end.dd, ids[i]));
        }
    }
    close_bed(&bed);
}

// Whoever waits is woken by somebody else's cancel.
static void
test_a_cancel_wakes_who_waits(void **state)
{
    (void)state;
    struct bed bed;
    struct waiter waiter;
    uint64_t id;
    open_bed(&bed, SLOTS, STRIDE);
    struct job job = whole(&bed, true);
    job.repeat = 500;
    assert_ok(job_start(&job, &bed.end, &bed.own, &id));
    waiter = (struct waiter){.dd = bed.end.dd, .id = id};
    assert_int_equal(pthread_create(&waiter.thread, NULL, wait_for_end, &waiter), 0);
    assert_status(llm_transfer_wait(bed.end.dd, id, 1), LLM_TRANSFER_PENDING);
    assert_ok(llm_transfer_cancel(bed.end.dd, id));
    pthread_join(waiter.thread, NULL);
    assert_status(waiter.status, LLM_TRANSFER_CANCELLED);
    assert_ok(llm_transfer_release(bed.end.dd, id));
    close_bed(&bed);
}

// ---- ends of the instance, of the link, of the cache ----

static void
test_finalize_with_transfers_that_nobody_released(void **state)
{
    (void)state;
    for (unsigned push = 0; push < 2; push++) {
        struct bed bed;
        uint64_t id;
        open_bed(&bed, SLOTS, STRIDE);
        struct job job = whole(&bed, push != 0);
        job.note = "done";
        job.note_bytes = 4;
        for (unsigned i = 0; i < 5; i++)
            assert_ok(job_start(&job, &bed.end, &bed.own, &id));
        assert_ok(llm_transfer_wait(bed.end.dd, id, -1));
        job.repeat = 100;
        for (unsigned i = 0; i < 70; i++)
            assert_ok(job_start(&job, &bed.end, &bed.own, &id));
        llm_finalize(bed.end.dd);
        // The memory is the caller's again.
        kv_unmap(&bed.own);
        assert_status(llm_transfer_poll(bed.end.dd, id), LLM_FAILED);
        AWAIT(end_state(&bed.peer, HERE, NULL) != LLM_LINK_READY);
        close_bed(&bed);
    }
}

static void
test_unlinking_is_refused_while_a_transfer_runs(void **state)
{
    (void)state;
    struct bed bed;
    uint64_t id;
    open_bed(&bed, SLOTS, STRIDE);
    struct job job = whole(&bed, false);
    job.repeat = 500;
    assert_ok(job_start(&job, &bed.end, &bed.own, &id));
    assert_status(end_unlink(&bed.end, THERE, bed.peer.port, false), LLM_LINK_BUSY);
    assert_ok(llm_transfer_cancel(bed.end.dd, id));
    // Not released, but over.
    AWAIT(end_unlink(&bed.end, THERE, bed.peer.port, false) == LLM_SUCCESS);
    // On a busy machine it may have ended before this thread got to cancel it.
    llm_status status = llm_transfer_poll(bed.end.dd, id);
    assert_true(status == LLM_TRANSFER_CANCELLED || status == LLM_SUCCESS);
    assert_ok(llm_transfer_release(bed.end.dd, id));
    close_bed(&bed);
}

static void
test_the_peer_finalizes_under_transfers(void **state)
{
    (void)state;
    enum { MANY = 40 };
    for (unsigned push = 0; push < 2; push++) {
        struct bed bed;
        uint64_t ids[MANY];
        open_bed(&bed, SLOTS, STRIDE);
        struct job job = whole(&bed, push != 0);
        job.repeat = 50;
        for (unsigned i = 0; i < MANY; i++)
            assert_ok(job_start(&job, &bed.end, &bed.own, &ids[i]));
        llm_finalize(bed.peer.dd);
        kv_unmap(&bed.theirs);
        for (unsigned i = 0; i < MANY; i++) {
            // The first may have been faster.
            llm_status status = llm_transfer_wait(bed.end.dd, ids[i], PATIENCE_MS);
            assert_int_not_equal(status, LLM_TRANSFER_PENDING);
            assert_status(llm_transfer_poll(bed.end.dd, ids[i]), status);
            assert_ok(llm_transfer_release(bed.end.dd, ids[i]));
        }
        close_bed(&bed);
    }
}

// ---- another process ----

static void
open_other(struct end *here, struct other *there, struct kv *own, int64_t *ret_remote,
           unsigned liveness_ms)
{
    struct end_setup setup = {.id = HERE, .liveness_ms = liveness_ms};
    end_open(here, &setup);
    setup = (struct end_setup){.id = THERE, .listens = true, .liveness_ms = liveness_ms};
    *there = (struct other){0};
    other_open(there, &setup);
    assert_ok(end_link(here, THERE, there->port));
    kv_open(own, here, TENSORS, SLOTS, 4096);
    *ret_remote = other_cache(there, FROM, true, TENSORS, SLOTS, 4096);
}

static void
test_every_transfer_ends_when_the_peer_is_killed(void **state)
{
    (void)state;
    enum { MANY = 120 };
    struct end here;
    struct other there;
    struct kv own;
    uint64_t ids[MANY];
    int64_t remote;
    if (is_transport("local"))
        skip();
    open_other(&here, &there, &own, &remote, 0);
    for (unsigned i = 0; i < MANY; i++) {
        struct job job = {
            .push = i % 2 != 0, .peer = THERE, .remote = remote, .count = SLOTS, .repeat = 500};
        assert_ok(job_start(&job, &here, &own, &ids[i]));
    }
    process_kill(&there.process);
    for (unsigned i = 0; i < MANY; i++) {
        llm_status status = llm_transfer_wait(here.dd, ids[i], PATIENCE_MS);
        assert_int_not_equal(status, LLM_TRANSFER_PENDING);
        // One or the other may have been faster.
        if (status != LLM_SUCCESS)
            assert_status(status, LLM_FAILED);
        assert_status(llm_transfer_poll(here.dd, ids[i]), status);
        assert_ok(llm_transfer_release(here.dd, ids[i]));
    }
    end_close(&here);
    kv_free(&own);
}

// The liveness time is far away: it's the transfer's own time that ends it.
static void
test_a_deadline_ends_a_transfer_to_a_stopped_peer(void **state)
{
    (void)state;
    struct end here;
    struct other there;
    struct kv own;
    int64_t remote;
    if (is_transport("local"))
        skip();
    for (unsigned push = 0; push < 2; push++) {
        uint64_t id;
        // On one host a pull needs nobody.
        if (!push && is_transport("shm"))
            continue;
        // A push that isn't confirmed to be over ends after the liveness time.
        open_other(&here, &there, &own, &remote, push ? 2000 : 60000);
        process_stop(&there.process);
        struct job job = {
            .push = push != 0, .peer = THERE, .remote = remote, .count = SLOTS, .timeout_ms = 100};
        uint64_t begin_ms = now_ms();
        assert_ok(job_start(&job, &here, &own, &id));
        assert_status(llm_transfer_poll(here.dd, id), LLM_TRANSFER_PENDING);
        assert_status(llm_transfer_wait(here.dd, id, -1), LLM_TIMEOUT);
        unsigned took_ms = (unsigned)(now_ms() - begin_ms);
        print_message("a %s of 100 ms ended after %u ms\n", push ? "push" : "pull", took_ms);
        assert_true(took_ms >= 100 && took_ms < 10000);
        assert_ok(llm_transfer_release(here.dd, id));
        process_continue(&there.process);
        job.timeout_ms = 0;
        if (push) {
            assert_ok(job_run(&job, &here, &own));
        } else {
            // The late bytes go nowhere, and the link works on.
            assert_true(kv_holds(&own, 0, 0, 0));
            other_fill(&there, FROM, SEED);
            assert_ok(job_run(&job, &here, &own));
            assert_true(kv_holds(&own, SEED, SLOTS, 0));
        }
        assert_true(process_join(&there.process));
        end_close(&here);
        kv_free(&own);
    }
}

static void
test_a_cancelled_pull_from_a_stopped_peer_ends_at_once(void **state)
{
    (void)state;
    struct end here;
    struct other there;
    struct kv own;
    int64_t remote;
    uint64_t id;
    if (!is_transport("tcp"))
        skip();
    open_other(&here, &there, &own, &remote, 60000);
    other_fill(&there, FROM, SEED);
    process_stop(&there.process);
    struct job job = {.peer = THERE, .remote = remote, .count = SLOTS};
    assert_ok(job_start(&job, &here, &own, &id));
    assert_ok(llm_transfer_cancel(here.dd, id));
    assert_status(llm_transfer_poll(here.dd, id), LLM_TRANSFER_CANCELLED);
    process_continue(&there.process);
    // What the peer sends all the same lands nowhere.
    assert_int_equal(other_ask(&there, "state %d", HERE), LLM_LINK_READY);
    struct kv other_own;
    kv_open(&other_own, &here, TENSORS, SLOTS, 4096);
    assert_ok(job_run(&job, &here, &other_own));
    assert_true(kv_holds(&other_own, SEED, SLOTS, 0));
    assert_true(kv_holds(&own, 0, 0, 0));
    assert_ok(llm_transfer_release(here.dd, id));
    assert_true(process_join(&there.process));
    end_close(&here);
    kv_free(&own);
    kv_free(&other_own);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_a_transfer_from_its_start_to_its_release),
        KIT_TEST(test_names_that_nobody_has),
        KIT_TEST(test_a_start_says_at_once_what_is_wrong),
        KIT_TEST(test_arguments_are_not_kept),
        KIT_TEST(test_hundreds_of_transfers_on_one_link),
        KIT_TEST(test_more_long_transfers_than_may_be_announced),
        KIT_TEST(test_a_pull_is_not_held_up_by_more_long_ones_than_may_be_announced),
        KIT_TEST(test_a_start_with_112000_blocks_returns_quickly),
        KIT_TEST(test_several_threads_wait_for_one_transfer),
        KIT_TEST(test_nothing_lands_after_a_cancelled_pull),
        KIT_TEST(test_nothing_lands_after_a_cancelled_push),
        KIT_TEST(test_nothing_lands_after_a_release),
        KIT_TEST(test_cancelling_some_of_many),
        KIT_TEST(test_a_cancel_wakes_who_waits),
        KIT_TEST(test_finalize_with_transfers_that_nobody_released),
        KIT_TEST(test_unlinking_is_refused_while_a_transfer_runs),
        KIT_TEST(test_the_peer_finalizes_under_transfers),
        KIT_TEST(test_every_transfer_ends_when_the_peer_is_killed),
        KIT_TEST(test_a_deadline_ends_a_transfer_to_a_stopped_peer),
        KIT_TEST(test_a_cancelled_pull_from_a_stopped_peer_ends_at_once),
    };
    return kit_main(argc, argv, tests, LENGTH(tests));
}

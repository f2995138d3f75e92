// A peer that gets no processor for five seconds, ten times the liveness time: its process is stopped,
// frozen, or has a small share.  No link is lost, and no transfer whose time limit is longer.
#include <poll.h>

#include "fault/cage.h"
#include "registered/kit.h"

enum { HERE = 21, THERE = 11, FROM = 0, TO = 1, TENSORS = 2, SLOTS = 16, STRIDE = 64 << 10 };
enum { STARVE_MS = 5000, LONG_MS = 60000, RUNS = 3 };

struct bed {
    struct end here;
    struct other there;
    struct kv from;
    struct kv to[2 * RUNS];
    int64_t remote_from;
    int64_t remote_to;
    uint64_t pulls[2 * RUNS];
    uint64_t pushes[2 * RUNS];
    struct cage cage;
};

static void
open_bed(struct bed *bed)
{
    struct end_setup setup = {.id = THERE, .listens = true, .liveness_ms = 500};
    memset(bed, 0, sizeof(*bed));
    other_open(&bed->there, &setup);
    setup.id = HERE;
    setup.listens = false;
    end_open(&bed->here, &setup);
    bed->remote_from = other_cache(&bed->there, FROM, true, TENSORS, SLOTS, STRIDE);
    bed->remote_to = other_cache(&bed->there, TO, true, TENSORS, SLOTS, STRIDE);
    other_fill(&bed->there, FROM, 5);
    kv_open(&bed->from, &bed->here, TENSORS, SLOTS, STRIDE);
    kv_fill(&bed->from, 6);
    for (unsigned i = 0; i < 2 * RUNS; i++)
        kv_open(&bed->to[i], &bed->here, TENSORS, SLOTS, STRIDE);
    assert_ok(end_link(&bed->here, THERE, bed->there.port));
}

static void
close_bed(struct bed *bed)
{
    assert_true(process_join(&bed->there.process));
    cage_close(&bed->cage);
    end_close(&bed->here);
    kv_free(&bed->from);
    for (unsigned i = 0; i < 2 * RUNS; i++)
        kv_free(&bed->to[i]);
}

static void
start_some(struct bed *bed, unsigned first)
{
    for (unsigned i = first; i < first + RUNS; i++) {
        struct job pull = {.peer = THERE,
                           .remote = bed->remote_from,
                           .count = SLOTS,
                           .shift = i,
                           .timeout_ms = LONG_MS};
        struct job push = {.push = true,
                           .peer = THERE,
                           .remote = bed->remote_to,
                           .count = SLOTS,
                           .timeout_ms = LONG_MS};
        assert_ok(job_start(&pull, &bed->here, &bed->to[i], &bed->pulls[i]));
        assert_ok(job_start(&push, &bed->here, &bed->from, &bed->pushes[i]));
    }
}

static void
end_all(struct bed *bed)
{
    for (unsigned i = 0; i < 2 * RUNS; i++) {
        assert_ok(llm_transfer_wait(bed->here.dd, bed->pulls[i], -1));
        assert_ok(llm_transfer_wait(bed->here.dd, bed->pushes[i], -1));
        assert_ok(llm_transfer_release(bed->here.dd, bed->pulls[i]));
        assert_ok(llm_transfer_release(bed->here.dd, bed->pushes[i]));
        assert_true(kv_holds(&bed->to[i], 5, SLOTS, i));
    }
    assert_true(other_holds(&bed->there, TO, 6, SLOTS, 0));
}

// Ready, then suspect and ready in turns.
static unsigned
count_suspicions(struct bed *bed)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    unsigned count = 0;
    uint32_t before = LLM_LINK_SUSPECT;
    while (llm_poll_link_event(bed->here.dd, &info) == LLM_SUCCESS) {
        assert_int_equal(info.state, before == LLM_LINK_READY ? LLM_LINK_SUSPECT : LLM_LINK_READY);
        count += info.state == LLM_LINK_SUSPECT;
        before = info.state;
    }
    return count;
}

static void
wait_until(uint64_t time_ms)
{
    while (now_ms() < time_ms)
        (void)poll(NULL, 0, (int)(time_ms - now_ms()));
}

// `starved` has begun; the peer says nothing at all.
static void
sit_it_out(struct bed *bed, uint64_t start)
{
    start_some(bed, RUNS);
    AWAIT(end_state(&bed->here, THERE, NULL) == LLM_LINK_SUSPECT);
    // A short time is up; the link stays.
    struct job push = {
        .push = true, .peer = THERE, .remote = bed->remote_to, .count = SLOTS, .timeout_ms = 50};
    assert_status(job_run(&push, &bed->here, &bed->from), LLM_TIMEOUT);
    assert_status(llm_check_link_status(bed->here.dd, THERE), LLM_TIMEOUT);
    wait_until(start + STARVE_MS);
    assert_int_equal(end_state(&bed->here, THERE, NULL), LLM_LINK_SUSPECT);
}

static void
check_after(struct bed *bed)
{
    end_all(bed);
    AWAIT(end_state(&bed->here, THERE, NULL) == LLM_LINK_READY);
    assert_int_equal(other_ask(&bed->there, "state %d", HERE), LLM_LINK_READY);
}

static void
test_a_stopped_peer_loses_nothing(void **state)
{
    struct bed bed;
    (void)state;
    open_bed(&bed);
    start_some(&bed, 0);
    process_stop(&bed.there.process);
    sit_it_out(&bed, now_ms());
    process_continue(&bed.there.process);
    check_after(&bed);
    assert_int_equal(count_suspicions(&bed), 1);
    close_bed(&bed);
}

static void
test_a_frozen_peer_is_suspect_and_loses_nothing(void **state)
{
    struct bed bed;
    (void)state;
    open_bed(&bed);
    if (!cage_open(&bed.cage, "freezer", bed.there.process.pid)) {
        print_message("no cgroup to freeze a process in: %s\n", strerror(errno));
        close_bed(&bed);
        skip();
    }
    start_some(&bed, 0);
    assert_true(cage_freeze(&bed.cage, true));
    uint64_t start = now_ms();
    AWAIT(end_state(&bed.here, THERE, NULL) == LLM_LINK_SUSPECT);
    assert_true(now_ms() - start < SCALED(1500, 5000));
    sit_it_out(&bed, start);
    assert_true(cage_freeze(&bed.cage, false));
    check_after(&bed);
    assert_int_equal(count_suspicions(&bed), 1);
    close_bed(&bed);
}

// A twentieth of a processor, in portions of a second.
static void
test_a_starved_peer_loses_nothing(void **state)
{
    struct bed bed;
    (void)state;
    open_bed(&bed);
    if (!cage_open(&bed.cage, "cpu", bed.there.process.pid) || !cage_allow(&bed.cage, 5)) {
        print_message("no cgroup to starve a process in: %s\n", strerror(errno));
        close_bed(&bed);
        skip();
    }
    start_some(&bed, 0);
    uint64_t until = now_ms() + STARVE_MS;
    start_some(&bed, RUNS);
    unsigned num_done = 0;
    while (now_ms() < until) {
        struct job pull = {
            .peer = THERE, .remote = bed.remote_from, .count = SLOTS, .timeout_ms = LONG_MS};
        struct kv *to = &bed.to[0];
        // The first has its own to do until then.
        if (num_done++ == 0)
            assert_ok(llm_transfer_wait(bed.here.dd, bed.pulls[0], -1));
        assert_ok(job_run(&pull, &bed.here, to));
    }
    assert_true(cage_allow(&bed.cage, 100));
    check_after(&bed);
    print_message("%u pulls, %u times suspect\n", num_done, count_suspicions(&bed));
    close_bed(&bed);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_a_stopped_peer_loses_nothing),
        KIT_TEST(test_a_frozen_peer_is_suspect_and_loses_nothing),
        KIT_TEST(test_a_starved_peer_loses_nothing),
    };
    return kit_main(argc, argv, tests, LENGTH(tests));
}

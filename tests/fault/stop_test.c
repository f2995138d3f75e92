// SIGSTOP of a peer in the middle of a transfer: the call ends in time, and what it leaves behind is
// quiet, also when the peer goes on.
#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "fault/accomplice.h"

enum { PROMPT = 11, DECODER = 21 };
enum { SOURCE = 0, TARGET = 1, SMALL = 2 };
enum { TENSORS = 4, SLOTS = 64, STRIDE = SCALED(256 << 10, 64 << 10), LONG = 256 };
// A short time that is up, and a long one that isn't.  Sanitized processes are slow, not dead.
enum {
    SHORT_MS = SCALED(700, 2000),
    LONG_MS = SCALED(8000, 60000),
    SLACK_MS = SCALED(2500, 20000)
};

static int
end_processes(void **state)
{
    (void)state;
    process_kill_all();
    return 0;
}

static void
check_time(uint64_t start, uint64_t least_ms)
{
    uint64_t took = now_ms() - start;
    if (took + 50 < least_ms || took > least_ms + SLACK_MS)
        fail_msg("it took %llu ms, expected about %llu", (unsigned long long)took,
                 (unsigned long long)least_ms);
}

struct both {
    struct member here;
    struct process there;
    struct transfer t;
    uint16_t ports[MEMBER_DEVICES_MAX];
};

// A decoder here that pulls what a prompt there has.
static void
open_puller(struct both *b, const char *transports, unsigned sync_ms, unsigned liveness_ms,
            unsigned dead_ms)
{
    struct member_setup setup = {
        .cluster_id = PROMPT,
        .role = LLM_ROLE_PROMPT,
        .transports = transports,
        .liveness_ms = liveness_ms,
        .dead_ms = dead_ms,
    };
    remote_open(&b->there, &setup, b->ports);
    setup.cluster_id = DECODER;
    setup.role = LLM_ROLE_DECODER;
    setup.sync_ms = sync_ms;
    member_open(&b->here, &setup);
    member_allocate(&b->here, TARGET, TENSORS, SLOTS, STRIDE);
    member_allocate(&b->here, SMALL, TENSORS, SLOTS, STRIDE);
    member_fill(&b->here, TARGET, 0);
    b->t = (struct transfer){
        .kind = TRANSFER_PULL_BLOCKS,
        .cluster_id = PROMPT,
        .remote_cache = remote_allocate(&b->there, SOURCE, TENSORS, SLOTS, STRIDE),
        .index = TARGET,
        .count = SLOTS,
        .step = 1,
        .repeat = LONG,
    };
    remote_fill(&b->there, SOURCE, 5);
    assert_int_equal(member_link(&b->here, PROMPT, b->ports, PATIENCE_MS), LLM_SUCCESS);
}

// A prompt here that pushes into a decoder there.
static void
open_pusher(struct both *b, const char *transports, unsigned sync_ms, unsigned liveness_ms,
            unsigned dead_ms)
{
    struct member_setup setup = {
        .cluster_id = PROMPT,
        .role = LLM_ROLE_PROMPT,
        .transports = transports,
        .sync_ms = sync_ms,
        .liveness_ms = liveness_ms,
        .dead_ms = dead_ms,
    };
    member_open(&b->here, &setup);
    setup.cluster_id = DECODER;
    setup.role = LLM_ROLE_DECODER;
    remote_open(&b->there, &setup, NULL);
    member_allocate(&b->here, SOURCE, TENSORS, SLOTS, STRIDE);
    member_fill(&b->here, SOURCE, 5);
    b->t = (struct transfer){
        .kind = TRANSFER_PUSH_BLOCKS,
        .cluster_id = DECODER,
        .remote_cache = remote_allocate(&b->there, TARGET, TENSORS, SLOTS, STRIDE),
        .index = SOURCE,
        .count = SLOTS,
        .step = 1,
        .repeat = LONG,
    };
    remote_fill(&b->there, TARGET, 0);
    assert_int_equal(remote_link(&b->there, PROMPT, b->here.ports, 1), LLM_SUCCESS);
}

// The owner of what is pulled stands still for longer than the call may take.
static void
test_slow_owner_tcp(void **state)
{
    struct both b;
    (void)state;
    open_puller(&b, "tcp", SHORT_MS, LONG_MS, 0);
    struct accomplice stopper = {
        .victim = &b.there, .deed = process_stop, .member = &b.here, .index = TARGET};
    accomplice_start(&stopper);
    uint64_t start = now_ms();
    assert_int_equal(member_transfer(&b.here, &b.t), LLM_WAIT_PROC_TIMEOUT);
    check_time(start, SHORT_MS);
    uint64_t sum = member_checksum(&b.here, TARGET);
    accomplice_join(&stopper);
    assert_int_equal(member_link_state(&b.here, PROMPT, NULL), LLM_LINK_READY);

    // It goes on, and what was on its way arrives before its next answer does: nowhere.
    process_continue(&b.there);
    b.t.index = SMALL;
    b.t.repeat = 1;
    llm_status status;
    do { // the short time may not be enough to get rid of the old bytes first
        status = member_transfer(&b.here, &b.t);
    } while (status == LLM_WAIT_PROC_TIMEOUT &&
             member_link_state(&b.here, PROMPT, NULL) == LLM_LINK_READY);
    assert_int_equal(status, LLM_SUCCESS);
    assert_true(member_holds_all(&b.here, SMALL, 5));
    assert_true(member_checksum(&b.here, TARGET) == sum);
    assert_int_equal(remote_link_state(&b.there, DECODER), LLM_LINK_READY);
    member_close(&b.here);
    assert_true(process_join(&b.there));
}

// The owner stands still for longer than the dead time.
static void
test_dead_owner_tcp(void **state)
{
    struct both b;
    (void)state;
    open_puller(&b, "tcp", LONG_MS, SHORT_MS / 2, SHORT_MS);
    struct accomplice stopper = {
        .victim = &b.there, .deed = process_stop, .member = &b.here, .index = TARGET};
    accomplice_start(&stopper);
    assert_int_equal(member_transfer(&b.here, &b.t), LLM_WAIT_PROC_TIMEOUT);
    accomplice_join(&stopper);
    check_time(stopper.done_ms, SHORT_MS);
    assert_int_equal(member_link_state(&b.here, PROMPT, NULL), LLM_LINK_BROKEN);
    uint64_t sum = member_checksum(&b.here, TARGET);

    process_continue(&b.there);
    AWAIT(remote_link_state(&b.there, DECODER) == LLM_LINK_BROKEN);
    assert_int_equal(member_unlink(&b.here, PROMPT, b.ports, PATIENCE_MS, true), LLM_SUCCESS);
    assert_int_equal(member_link(&b.here, PROMPT, b.ports, PATIENCE_MS), LLM_SUCCESS);
    b.t.index = SMALL;
    b.t.repeat = 1;
    assert_int_equal(member_transfer(&b.here, &b.t), LLM_SUCCESS);
    assert_true(member_holds_all(&b.here, SMALL, 5));
    assert_true(member_checksum(&b.here, TARGET) == sum);
    member_close(&b.here);
    assert_true(process_join(&b.there));
}

// An idle link notices as well: first it is suspect, and ready again if the peer goes on; then broken.
static void
idle_peer_stops(const char *transports)
{
    struct both b;
    open_puller(&b, transports, LONG_MS, SHORT_MS, 3 * SHORT_MS);
    process_stop(&b.there);
    uint64_t start = now_ms();
    member_await_state(&b.here, PROMPT, LLM_LINK_SUSPECT);
    check_time(start, SHORT_MS);
    assert_int_equal(llm_check_link_status(b.here.dd, PROMPT), LLM_WAIT_PROC_TIMEOUT);
    process_continue(&b.there);
    member_await_state(&b.here, PROMPT, LLM_LINK_READY);
    assert_int_equal(llm_check_link_status(b.here.dd, PROMPT), LLM_SUCCESS);
    assert_int_equal(remote_link_state(&b.there, DECODER), LLM_LINK_READY);

    process_stop(&b.there);
    start = now_ms();
    member_await_state(&b.here, PROMPT, LLM_LINK_BROKEN);
    check_time(start, 3 * SHORT_MS);
    for (size_t i = 0; i < 5; i++) {
        static const unsigned states[] = {LLM_LINK_READY, LLM_LINK_SUSPECT, LLM_LINK_READY,
                                          LLM_LINK_SUSPECT, LLM_LINK_BROKEN};
        llm_link_info info = {.struct_size = sizeof(info)};
        assert_int_equal(llm_poll_link_event(b.here.dd, &info), LLM_SUCCESS);
        assert_int_equal(info.state, states[i]);
        if (states[i] != LLM_LINK_READY)
            assert_non_null(strstr(info.reason, "silent"));
    }
    process_continue(&b.there);
    AWAIT(remote_link_state(&b.there, DECODER) == LLM_LINK_BROKEN);
    assert_int_equal(member_link(&b.here, PROMPT, b.ports, PATIENCE_MS), LLM_SUCCESS);
    member_close(&b.here);
    assert_true(process_join(&b.there));
}

// An unlink may fail: a silence that begins while it waits is told all the same.
static void
test_a_peer_stops_before_an_unlink(void **state)
{
    static const unsigned states[] = {LLM_LINK_READY, LLM_LINK_SUSPECT, LLM_LINK_REMOVED};
    struct both b;
    (void)state;
    open_puller(&b, "shm", LONG_MS, SHORT_MS, 0);
    process_stop(&b.there);
    assert_int_not_equal(member_unlink(&b.here, PROMPT, b.ports, 4 * SHORT_MS, false), LLM_SUCCESS);
    for (size_t i = 0; i < 3; i++) {
        llm_link_info info = {.struct_size = sizeof(info)};
        assert_int_equal(llm_poll_link_event(b.here.dd, &info), LLM_SUCCESS);
        assert_int_equal(info.state, states[i]);
    }
    process_continue(&b.there);
    member_close(&b.here);
    assert_true(process_join(&b.there));
}

static void
test_idle_peer_stops_shm(void **state)
{
    (void)state;
    idle_peer_stops("shm");
}

static void
test_idle_peer_stops_tcp(void **state)
{
    (void)state;
    idle_peer_stops("tcp");
}

// The decoder stands still while it is being pushed into.
static void
pushed_into_stopped(const char *transports, unsigned sync_ms, unsigned liveness_ms,
                    unsigned dead_ms, uint64_t expected_ms)
{
    struct both b;
    bool dies = dead_ms != 0;
    open_pusher(&b, transports, sync_ms, liveness_ms, dead_ms);
    struct accomplice stopper = {.victim = &b.there, .deed = process_stop, .index = TARGET};
    accomplice_start(&stopper);
    uint64_t start = now_ms();
    llm_status status = member_transfer(&b.here, &b.t);
    accomplice_join(&stopper);
    assert_int_equal(status, LLM_WAIT_PROC_TIMEOUT);
    check_time(dies ? stopper.done_ms : start, expected_ms);
    // The peer could not confirm that it forgot the push; it may do so later.
    assert_true(dies == (member_link_state(&b.here, DECODER, NULL) == LLM_LINK_BROKEN));

    // What is pushed may be used again; nothing of it arrives there behind what comes later.
    member_fill(&b.here, SOURCE, 6);
    process_continue(&b.there);
    if (dies) {
        AWAIT(remote_link_state(&b.there, PROMPT) == LLM_LINK_BROKEN);
        assert_int_equal(remote_link(&b.there, PROMPT, b.here.ports, 1), LLM_SUCCESS);
    }
    int64_t small = remote_allocate(&b.there, SMALL, TENSORS, SLOTS, STRIDE);
    b.t.remote_cache = small;
    b.t.repeat = 1;
    // The times are short, and a machine may be busy.
    uint64_t deadline = now_ms() + PATIENCE_MS;
    llm_status again;
    do {
        again = member_transfer(&b.here, &b.t);
    } while (again == LLM_WAIT_PROC_TIMEOUT && now_ms() < deadline);
    assert_int_equal(again, LLM_SUCCESS);
    char holds[LINE_BYTES];
    process_ask(&b.there, holds, "holds %d 6", SMALL);
    assert_string_equal(holds, "yes");
    uint64_t sum = remote_checksum(&b.there, TARGET);
    b.t.repeat = 1;
    assert_int_equal(member_transfer(&b.here, &b.t), LLM_SUCCESS);
    assert_true(remote_checksum(&b.there, TARGET) == sum);
    // A busy machine is silent now and then.
    AWAIT(member_link_state(&b.here, DECODER, NULL) == LLM_LINK_READY);
    member_close(&b.here);
    assert_true(process_join(&b.there));
}

// A push has its time limit for every layer, of which there are TENSORS / 2; after that the peer has
// the liveness time to confirm the end.
static void
test_push_time_is_up_tcp(void **state)
{
    (void)state;
    pushed_into_stopped("tcp", SHORT_MS / 2, SHORT_MS, 0, SHORT_MS / 2 * (TENSORS / 2) + SHORT_MS);
}

static void
test_push_time_is_up_shm(void **state)
{
    (void)state;
    pushed_into_stopped("shm", SHORT_MS / 2, SHORT_MS, 0, SHORT_MS / 2 * (TENSORS / 2) + SHORT_MS);
}

static void
test_push_peer_is_dead_tcp(void **state)
{
    (void)state;
    pushed_into_stopped("tcp", LONG_MS, SHORT_MS / 2, SHORT_MS, SHORT_MS);
}

static void
test_push_peer_is_dead_shm(void **state)
{
    (void)state;
    pushed_into_stopped("shm", LONG_MS, SHORT_MS / 2, SHORT_MS, SHORT_MS);
}

// A puller stands still in the middle of reading the prompt's memory: the prompt frees it and uses it
// again in bounded time, and the puller, when it goes on, doesn't take it for what it wanted.
static void
stopped_puller(const char *transports)
{
    enum { ATTEMPTS = SCALED(3, 2) };
    struct member prompt;
    struct member_setup setup = {
        .cluster_id = PROMPT,
        .role = LLM_ROLE_PROMPT,
        .transports = transports,
        .sync_ms = 1,
        .liveness_ms = SHORT_MS,
    };
    member_open(&prompt, &setup);
    for (unsigned attempt = 0; attempt < ATTEMPTS; attempt++) {
        struct process decoder;
        setup = (struct member_setup){
            .cluster_id = DECODER,
            .role = LLM_ROLE_DECODER,
            .transports = transports,
            .liveness_ms = SHORT_MS,
        };
        remote_open(&decoder, &setup, NULL);
        remote_allocate(&decoder, TARGET, TENSORS, SLOTS, STRIDE);
        int64_t id = member_allocate(&prompt, SOURCE, TENSORS, SLOTS, STRIDE);
        member_fill(&prompt, SOURCE, 5);
        assert_int_equal(remote_link(&decoder, PROMPT, prompt.ports, 1), LLM_SUCCESS);
        PROCESS_EXPECT(&decoder, "begun", "forever %d %d %lld %d %d 1 0 8 0 0 0 0 0",
                       TRANSFER_PULL_BLOCKS, PROMPT, (long long)id, TARGET, SLOTS);
        process_stop(&decoder);
        uint64_t start = now_ms();
        member_deallocate(&prompt, SOURCE);
        assert_true(now_ms() - start < SLACK_MS);
        // Suspect, or broken for what it holds up.
        AWAIT(member_link_state(&prompt, DECODER, NULL) != LLM_LINK_READY);
        // The same memory, or soon will be.
        AWAIT((member_allocate(&prompt, SOURCE, TENSORS, SLOTS, STRIDE),
               member_fill(&prompt, SOURCE, 6), member_deallocate(&prompt, SOURCE),
               now_ms() - start > SHORT_MS));
        process_continue(&decoder);
        llm_status status = remote_end_transfer(&decoder);
        if (status != LLM_KV_CACHE_NOT_EXIST && status != LLM_WAIT_PROC_TIMEOUT)
            assert_int_equal(status, LLM_FAILED);
        assert_true(process_join(&decoder));
    }
    member_close(&prompt);
}

static void
test_stopped_puller_shm(void **state)
{
    (void)state;
    stopped_puller("shm");
}

static void
test_stopped_puller_tcp(void **state)
{
    (void)state;
    stopped_puller("tcp");
}

#define TEST(name) cmocka_unit_test_teardown(name, end_processes)

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk))
        return member_serve(&talk);
    const struct CMUnitTest tests[] = {
        TEST(test_slow_owner_tcp),
        TEST(test_dead_owner_tcp),
        TEST(test_idle_peer_stops_shm),
        TEST(test_idle_peer_stops_tcp),
        TEST(test_a_peer_stops_before_an_unlink),
        TEST(test_push_time_is_up_tcp),
        TEST(test_push_time_is_up_shm),
        TEST(test_push_peer_is_dead_tcp),
        TEST(test_push_peer_is_dead_shm),
        TEST(test_stopped_puller_shm),
        TEST(test_stopped_puller_tcp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

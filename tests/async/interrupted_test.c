// Transfers whose caller is asked now and then whether to go on, over every transport.
#include <pthread.h>

#include "registered/kit.h"

enum { HERE = 93, THERE = 94, SEED = 5 };
enum { TENSORS = 4, SLOTS = 16, STRIDE = SCALED(1 << 17, 1 << 15) };

// What a transfer asks.
struct asked {
    pthread_t caller;
    unsigned count;
    unsigned stop_at; // the answer that ends it; 0: none
    bool elsewhere;   // on another thread than the caller's
};

static int
answer(void *arg)
{
    struct asked *asked = arg;
    asked->count++;
    asked->elsewhere |= !pthread_equal(asked->caller, pthread_self());
    return asked->count == asked->stop_at;
}

static llm_status
run_asking(const struct job *job, struct end *end, const struct kv *local, struct asked *asked)
{
    struct job asking = *job;
    asking.interrupted = answer;
    asking.interrupted_arg = asked;
    asked->caller = pthread_self();
    llm_status status = job_run(&asking, end, local);
    assert_false(asked->elsewhere);
    return status;
}

// Longer and longer ones, until one lasts until it is asked so often.
static void
interrupt_long_ones(bool push)
{
    struct end here;
    struct end there;
    struct kv own;
    struct kv theirs;
    // A list that names blocks several times is no work for several threads.
    struct end_setup setup = {.id = HERE, .copies_alone = true};
    end_open(&here, &setup);
    setup = (struct end_setup){.id = THERE, .listens = true};
    end_open(&there, &setup);
    assert_ok(end_link(&here, THERE, there.port));
    kv_open(&own, &here, TENSORS, SLOTS, STRIDE);
    kv_open(&theirs, &there, TENSORS, SLOTS, STRIDE);
    struct kv *target = push ? &theirs : &own;
    struct job job = {.push = push,
                      .peer = THERE,
                      .remote = theirs.id,
                      .count = SLOTS,
                      .repeat = 16,
                      .timeout_ms = PATIENCE_MS};
    kv_fill(push ? &own : &theirs, SEED);
    for (unsigned stop_at = 1; stop_at <= 3; stop_at += 2) {
        llm_status status = LLM_SUCCESS;
        while (status == LLM_SUCCESS) {
            struct asked asked = {.stop_at = stop_at};
            status = run_asking(&job, &here, &own, &asked);
            if (status == LLM_SUCCESS) {
                // It may have ended just when it was to be ended.
                assert_true(asked.count <= stop_at);
                assert_true(job.repeat < 8192);
                job.repeat *= 2;
            } else {
                assert_status(status, LLM_TRANSFER_CANCELLED);
                assert_int_equal(asked.count, stop_at);
            }
        }
        // The memory is the caller's again, and the link works on.
        kv_fill(target, SEED + 1);
        assert_int_equal(end_state(&here, THERE, NULL), LLM_LINK_READY);
        assert_true(kv_is_intact_around(target));
        assert_true(kv_holds(target, SEED + 1, SLOTS, 0));
    }
    // Other answers let it go on.
    struct asked asked = {0};
    job.repeat = 1;
    assert_ok(run_asking(&job, &here, &own, &asked));
    assert_true(kv_holds(target, SEED, SLOTS, 0));
    end_close(&here);
    end_close(&there);
    kv_free(&own);
    kv_free(&theirs);
}

static void
test_a_pull_ends_when_its_caller_says_so(void **state)
{
    (void)state;
    interrupt_long_ones(false);
}

static void
test_a_push_ends_when_its_caller_says_so(void **state)
{
    (void)state;
    interrupt_long_ones(true);
}

static void
test_a_caller_who_waits_for_a_stopped_peer_is_asked(void **state)
{
    (void)state;
    struct end here;
    struct other there = {0};
    struct kv own;
    if (!is_transport("tcp"))
        skip();
    struct end_setup setup = {.id = HERE, .liveness_ms = 60000};
    end_open(&here, &setup);
    setup = (struct end_setup){.id = THERE, .listens = true, .liveness_ms = 60000};
    other_open(&there, &setup);
    assert_ok(end_link(&here, THERE, there.port));
    kv_open(&own, &here, TENSORS, SLOTS, 4096);
    struct job job = {.peer = THERE,
                      .remote = other_cache(&there, 0, true, TENSORS, SLOTS, 4096),
                      .count = SLOTS,
                      .timeout_ms = 60000};
    other_fill(&there, 0, SEED);
    process_stop(&there.process);
    struct asked asked = {.stop_at = 3};
    assert_status(run_asking(&job, &here, &own, &asked), LLM_TRANSFER_CANCELLED);
    assert_int_equal(asked.count, 3);
    process_continue(&there.process);
    // What the peer sends all the same lands nowhere.
    assert_int_equal(other_ask(&there, "state %d", HERE), LLM_LINK_READY);
    assert_true(kv_holds(&own, 0, 0, 0));
    assert_ok(job_run(&job, &here, &own));
    assert_true(kv_holds(&own, SEED, SLOTS, 0));
    assert_true(process_join(&there.process));
    end_close(&here);
    kv_free(&own);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_a_pull_ends_when_its_caller_says_so),
        KIT_TEST(test_a_push_ends_when_its_caller_says_so),
        KIT_TEST(test_a_caller_who_waits_for_a_stopped_peer_is_asked),
    };
    return kit_main(argc, argv, tests, LENGTH(tests));
}

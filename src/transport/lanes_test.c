// The threads of data connections: how many there are, when they start, and what if they can't.
#include "transport/lanes.h"

#include <sys/resource.h>

#include "unit/unit.h"

static struct lli_loop main_loop;
static struct lli_lanes lanes;

static int
setup(void **state)
{
    (void)state;
    llm_set_log_level(LLM_LOG_OFF);
    return lli_loop_open(&main_loop, 0, NULL, NULL, NULL) == LLM_SUCCESS ? 0 : -1;
}

static int
teardown(void **state)
{
    (void)state;
    lli_lanes_close(&lanes);
    lli_loop_close(&main_loop);
    return 0;
}

static void
test_the_first_lane_is_the_instances_own(void **state)
{
    (void)state;
    for (size_t num_lanes = 0; num_lanes <= 2; num_lanes++) {
        lli_lanes_open(&lanes, &main_loop, num_lanes);
        assert_ptr_equal(lli_lanes_pick(&lanes, 0), &main_loop);
        assert_int_equal(lanes.num_more, 0);
    }
}

static void
test_with_one_lane_no_thread_is_started(void **state)
{
    (void)state;
    lli_lanes_open(&lanes, &main_loop, 1);
    for (size_t i = 0; i < 10; i++)
        assert_ptr_equal(lli_lanes_pick(&lanes, i), &main_loop);
    assert_int_equal(lanes.num_more, 0);
}

static void
note_thread(void *arg)
{
    *(pthread_t *)arg = pthread_self();
}

static void
test_connections_are_spread_over_threads_that_start_when_needed(void **state)
{
    struct lli_loop *picked[6];
    pthread_t threads[6];
    (void)state;
    lli_lanes_open(&lanes, &main_loop, 3);
    for (size_t i = 0; i < LLI_COUNT(picked); i++) {
        picked[i] = lli_lanes_pick(&lanes, i);
        assert_int_equal(lanes.num_more, lli_min(i, 2));
        if (picked[i] != &main_loop)
            lli_loop_call(picked[i], note_thread, &threads[i]);
    }
    for (size_t i = 0; i < 3; i++)
        assert_ptr_equal(picked[i], picked[i + 3]);
    assert_false(pthread_equal(threads[1], threads[2]));
    assert_false(pthread_equal(threads[1], pthread_self()));
}

static void
test_more_lanes_than_there_may_be_are_not_started(void **state)
{
    (void)state;
    lli_lanes_open(&lanes, &main_loop, 1000);
    for (size_t i = 0; i < 100; i++)
        assert_non_null(lli_lanes_pick(&lanes, i));
    assert_int_equal(lanes.num_more, LLI_NUM_LANES_MAX - 1);
}

static void
test_without_descriptors_connections_share_the_instances_thread(void **state)
{
    struct rlimit limit;
    (void)state;
    lli_lanes_open(&lanes, &main_loop, 3);
    struct lli_loop *first = lli_lanes_pick(&lanes, 1);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    struct rlimit none = {.rlim_cur = 0, .rlim_max = limit.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    struct lli_loop *second = lli_lanes_pick(&lanes, 2);
    struct lli_loop *again = lli_lanes_pick(&lanes, 1);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_ptr_equal(second, &main_loop);
    assert_ptr_equal(again, first);
    // When there are descriptors again, the thread is started after all.
    assert_ptr_not_equal(lli_lanes_pick(&lanes, 2), &main_loop);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_the_first_lane_is_the_instances_own),
        TEST(test_with_one_lane_no_thread_is_started),
        TEST(test_connections_are_spread_over_threads_that_start_when_needed),
        TEST(test_more_lanes_than_there_may_be_are_not_started),
        TEST(test_without_descriptors_connections_share_the_instances_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

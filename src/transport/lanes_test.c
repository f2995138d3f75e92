// The threads of data connections: how many there are, how long they live, and what if there are
// none.
#include "transport/lanes.h"

#include <dirent.h>
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
    lli_loop_close(&main_loop);
    return 0;
}

static size_t
count_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    size_t count = 0;
    assert_non_null(dir);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

static void
test_the_first_lane_is_the_instances_own(void **state)
{
    (void)state;
    for (size_t num_lanes = 0; num_lanes <= 2; num_lanes++) {
        lli_lanes_init(&lanes, &main_loop, num_lanes);
        assert_ptr_equal(lli_lanes_take(&lanes, 0), &main_loop);
        lli_lanes_give_back(&lanes, &main_loop);
    }
}

static void
test_with_one_lane_there_is_no_other_thread(void **state)
{
    (void)state;
    lli_lanes_init(&lanes, &main_loop, 1);
    for (size_t i = 0; i < 10; i++)
        assert_ptr_equal(lli_lanes_take(&lanes, i), &main_loop);
}

static void
note_thread(void *arg)
{
    *(pthread_t *)arg = pthread_self();
}

static void
test_connections_are_spread_over_threads(void **state)
{
    struct lli_loop *taken[6];
    pthread_t threads[6];
    (void)state;
    lli_lanes_init(&lanes, &main_loop, 3);
    for (size_t i = 0; i < LLI_COUNT(taken); i++) {
        taken[i] = lli_lanes_take(&lanes, i);
        if (taken[i] != &main_loop)
            lli_loop_call(taken[i], note_thread, &threads[i]);
    }
    for (size_t i = 0; i < 3; i++)
        assert_ptr_equal(taken[i], taken[i + 3]);
    assert_ptr_equal(taken[0], &main_loop);
    assert_false(pthread_equal(threads[1], threads[2]));
    assert_false(pthread_equal(threads[1], pthread_self()));
    for (size_t i = 0; i < LLI_COUNT(taken); i++)
        lli_lanes_give_back(&lanes, taken[i]);
}

static void
test_a_thread_lives_until_its_last_connection_is_gone(void **state)
{
    pthread_t threads[2];
    (void)state;
    lli_lanes_init(&lanes, &main_loop, 2);
    size_t num_descriptors = count_descriptors();
    for (unsigned round = 0; round < 3; round++) {
        struct lli_loop *loop = lli_lanes_take(&lanes, 1);
        assert_ptr_equal(lli_lanes_take(&lanes, 3), loop);
        lli_loop_call(loop, note_thread, &threads[0]);
        lli_lanes_give_back(&lanes, loop);
        lli_loop_call(loop, note_thread, &threads[1]);
        assert_true(pthread_equal(threads[0], threads[1]));
        lli_lanes_give_back(&lanes, loop);
        assert_int_equal(count_descriptors(), num_descriptors);
    }
}

static void
test_more_lanes_than_there_may_be_are_not_started(void **state)
{
    struct lli_loop *taken[20];
    (void)state;
    lli_lanes_init(&lanes, &main_loop, 1000);
    for (size_t i = 0; i < LLI_COUNT(taken); i++)
        taken[i] = lli_lanes_take(&lanes, i);
    assert_ptr_equal(taken[LLI_NUM_LANES_MAX], &main_loop);
    for (size_t i = 0; i < LLI_COUNT(taken); i++)
        lli_lanes_give_back(&lanes, taken[i]);
}

static void
test_without_descriptors_connections_share_the_instances_thread(void **state)
{
    struct rlimit limit;
    (void)state;
    lli_lanes_init(&lanes, &main_loop, 3);
    struct lli_loop *first = lli_lanes_take(&lanes, 1);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    struct rlimit none = {.rlim_cur = 0, .rlim_max = limit.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    struct lli_loop *second = lli_lanes_take(&lanes, 2);
    struct lli_loop *third = lli_lanes_take(&lanes, 4);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_ptr_equal(second, &main_loop);
    assert_ptr_equal(third, first);
    // When there are descriptors again, there is a thread after all.
    struct lli_loop *fourth = lli_lanes_take(&lanes, 5);
    assert_ptr_not_equal(fourth, &main_loop);
    lli_lanes_give_back(&lanes, second);
    lli_lanes_give_back(&lanes, first);
    lli_lanes_give_back(&lanes, third);
    lli_lanes_give_back(&lanes, fourth);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_the_first_lane_is_the_instances_own),
        TEST(test_with_one_lane_there_is_no_other_thread),
        TEST(test_connections_are_spread_over_threads),
        TEST(test_a_thread_lives_until_its_last_connection_is_gone),
        TEST(test_more_lanes_than_there_may_be_are_not_started),
        TEST(test_without_descriptors_connections_share_the_instances_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

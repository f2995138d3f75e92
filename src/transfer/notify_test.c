// Notifications: the oldest first, whole or not at all, as many as there is room for.
#include "transfer/notify.h"

#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include "base/mem.h"
#include "unit/unit.h"

static struct lli_notifications *notifications;

static int
setup(void **state)
{
    (void)state;
    llm_set_log_level(LLM_LOG_OFF);
    notifications = lli_notifications_open();
    return notifications != NULL ? 0 : -1;
}

static int
teardown(void **state)
{
    (void)state;
    lli_mem_fail_after(0);
    lli_notifications_close(notifications);
    return 0;
}

static bool
is_readable(void)
{
    struct pollfd wait = {.fd = lli_notifications_fd(notifications), .events = POLLIN};
    return poll(&wait, 1, 0) == 1;
}

static void
test_nothing_has_arrived(void **state)
{
    uint64_t cluster = 7;
    size_t bytes = 7;
    char to[8] = "same";
    (void)state;
    assert_false(is_readable());
    assert_true(lli_notifications_take(notifications, &cluster, to, sizeof(to), &bytes) ==
                LLM_NO_NOTIFICATION);
    assert_true(cluster == 7 && bytes == 7);
    assert_string_equal(to, "same");
}

static void
test_they_come_out_as_they_went_in(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 100; i++)
        assert_true(lli_notifications_add(notifications, 1000 + i, &i, i % 9));
    assert_true(is_readable());
    for (uint64_t i = 0; i < 100; i++) {
        uint64_t cluster;
        size_t bytes;
        uint8_t to[9];
        memset(to, 0xa5, sizeof(to));
        assert_true(lli_notifications_take(notifications, &cluster, to, 8, &bytes) == LLM_SUCCESS);
        assert_int_equal(cluster, 1000 + i);
        assert_int_equal(bytes, i % 9);
        assert_memory_equal(to, &i, bytes);
        assert_int_equal(to[bytes], 0xa5);
    }
    assert_true(lli_notifications_take(notifications, NULL, NULL, 0, &(size_t){0}) ==
                LLM_NO_NOTIFICATION);
}

static void
test_one_that_does_not_fit_stays(void **state)
{
    uint64_t cluster = 7;
    size_t bytes;
    char to[6] = "same";
    (void)state;
    assert_true(lli_notifications_add(notifications, 1, "first", 6));
    for (size_t size = 0; size < 6; size++) {
        bytes = 0;
        assert_true(lli_notifications_take(notifications, &cluster, to, size, &bytes) ==
                    LLM_PARAM_INVALID);
        assert_int_equal(bytes, 6);
        assert_int_equal(cluster, 7);
        assert_string_equal(to, "same");
    }
    assert_true(lli_notifications_take(notifications, NULL, to, 6, &bytes) == LLM_SUCCESS);
    assert_string_equal(to, "first");
}

static void
test_room_ends_and_comes_back(void **state)
{
    size_t bytes;
    char to;
    size_t count = 0;
    (void)state;
    while (lli_notifications_have_room(notifications, 1)) {
        assert_true(lli_notifications_add(notifications, 1, "x", 1));
        count++;
        assert_true(count < 1000000);
    }
    assert_true(count >= 1000);
    assert_false(lli_notifications_add(notifications, 1, "y", 1));
    assert_true(lli_notifications_take(notifications, NULL, &to, 1, &bytes) == LLM_SUCCESS);
    assert_true(lli_notifications_have_room(notifications, 1));
    assert_true(lli_notifications_add(notifications, 1, "z", 1));
    assert_false(lli_notifications_have_room(notifications, 1));
}

static void
test_a_peer_takes_nobody_elses_room(void **state)
{
    size_t bytes;
    uint64_t cluster = 0;
    char to;
    (void)state;
    while (lli_notifications_have_room(notifications, 1))
        assert_true(lli_notifications_add(notifications, 1, "x", 1));
    assert_true(lli_notifications_have_room(notifications, 2));
    assert_true(lli_notifications_add(notifications, 2, "y", 1));
    assert_false(lli_notifications_add(notifications, 1, "x", 1));
    // In the order in which they have come, whoever sent them.
    while (lli_notifications_take(notifications, &cluster, &to, 1, &bytes) == LLM_SUCCESS)
        assert_int_equal(to, cluster == 1 ? 'x' : 'y');
    assert_int_equal(cluster, 2);
    assert_true(lli_notifications_have_room(notifications, 1));
}

static void
test_without_memory_there_is_no_notification(void **state)
{
    (void)state;
    lli_mem_fail_after(1);
    assert_null(lli_notifications_open());
    for (unsigned n = 1; n <= 2; n++) {
        lli_mem_fail_after(n);
        assert_false(lli_notifications_add(notifications, 1, "x", 1));
        assert_int_equal(lli_mem_fail_after(0), 0);
    }
    assert_false(is_readable());
    lli_notifications_close(NULL);
}

static void *
add_many(void *arg)
{
    uint64_t cluster = *(const uint64_t *)arg;
    for (uint64_t i = 0; i < 1000; i++) {
        if (!lli_notifications_add(notifications, cluster, &i, sizeof(i)))
            break;
    }
    return NULL;
}

static void
test_many_threads_add_while_one_takes(void **state)
{
    pthread_t threads[3];
    uint64_t clusters[] = {0, 1, 2};
    uint64_t next[] = {0, 0, 0};
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, add_many, &clusters[i]), 0);
    for (unsigned taken = 0; taken < 3000;) {
        uint64_t cluster;
        uint64_t number;
        size_t bytes;
        struct pollfd wait = {.fd = lli_notifications_fd(notifications), .events = POLLIN};
        uint64_t wakes;
        // Waiting for the descriptor misses nothing.
        assert_int_equal(poll(&wait, 1, UNIT_PATIENCE_MS), 1);
        assert_int_equal(read(wait.fd, &wakes, sizeof(wakes)), sizeof(wakes));
        while (lli_notifications_take(notifications, &cluster, &number, sizeof(number), &bytes) ==
               LLM_SUCCESS) {
            assert_true(cluster < 3);
            assert_int_equal(number, next[cluster]++);
            taken++;
        }
    }
    for (size_t i = 0; i < LLI_COUNT(threads); i++)
        pthread_join(threads[i], NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_nothing_has_arrived),
        TEST(test_they_come_out_as_they_went_in),
        TEST(test_one_that_does_not_fit_stays),
        TEST(test_room_ends_and_comes_back),
        TEST(test_a_peer_takes_nobody_elses_room),
        TEST(test_without_memory_there_is_no_notification),
        TEST(test_many_threads_add_while_one_takes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

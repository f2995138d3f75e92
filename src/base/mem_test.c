// The only malloc: the countdown of tests, and sizes of zero.
#include "base/mem.h"

#include <pthread.h>
#include <stdatomic.h>

#include "unit/unit.h"

static int
teardown(void **state)
{
    (void)state;
    lli_mem_fail_after(0);
    return 0;
}

static void
test_allocation_fails_exactly_once_at_the_countdown(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 8; n++) {
        lli_mem_fail_after(n);
        for (uint64_t i = 1; i <= 10; i++) {
            void *memory = lli_malloc(1);
            assert_int_equal(memory == NULL, i == n);
            lli_free(memory);
        }
        assert_int_equal(lli_mem_fail_after(0), 0);
    }
}

static void
test_every_kind_of_allocation_counts_and_fails(void **state)
{
    (void)state;
    lli_mem_fail_after(1);
    assert_null(lli_malloc(1));
    lli_mem_fail_after(1);
    assert_null(lli_calloc(1, 1));
    lli_mem_fail_after(1);
    assert_null(lli_strdup("text"));
    char *old = lli_strdup("text");
    assert_non_null(old);
    lli_mem_fail_after(1);
    assert_null(lli_realloc(old, 100));
    assert_string_equal(old, "text");
    lli_free(old);
}

static void
test_countdown_returns_what_was_left(void **state)
{
    (void)state;
    assert_int_equal(lli_mem_fail_after(5), 0);
    lli_free(lli_malloc(1));
    lli_free(lli_malloc(1));
    assert_int_equal(lli_mem_fail_after(7), 3);
    assert_int_equal(lli_mem_fail_after(0), 7);
    assert_int_equal(lli_mem_fail_after(0), 0);
}

static void
test_nothing_counts_when_switched_off(void **state)
{
    (void)state;
    lli_mem_fail_after(1);
    lli_mem_fail_after(0);
    void *memory = lli_malloc(1);
    assert_non_null(memory);
    lli_free(memory);
}

static void
test_size_zero_is_memory(void **state)
{
    (void)state;
    void *plain = lli_malloc(0);
    void *zeroed = lli_calloc(0, 8);
    void *grown = lli_realloc(NULL, 0);
    assert_non_null(plain);
    assert_non_null(zeroed);
    assert_non_null(grown);
    lli_free(plain);
    lli_free(zeroed);
    lli_free(grown);
    lli_free(NULL);
}

static _Atomic unsigned num_failed;

static void *
allocate_many(void *arg)
{
    (void)arg;
    for (int i = 0; i < 2000; i++) {
        void *memory = lli_malloc(8);
        if (memory == NULL)
            atomic_fetch_add(&num_failed, 1);
        lli_free(memory);
    }
    return NULL;
}

static void
test_one_of_many_threads_gets_the_failure(void **state)
{
    pthread_t threads[4];
    (void)state;
    atomic_store(&num_failed, 0);
    lli_mem_fail_after(4000);
    for (size_t i = 0; i < LLI_COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, allocate_many, NULL), 0);
    for (size_t i = 0; i < LLI_COUNT(threads); i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&num_failed), 1);
    assert_int_equal(lli_mem_fail_after(0), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_allocation_fails_exactly_once_at_the_countdown, teardown),
        cmocka_unit_test_teardown(test_every_kind_of_allocation_counts_and_fails, teardown),
        cmocka_unit_test_teardown(test_countdown_returns_what_was_left, teardown),
        cmocka_unit_test_teardown(test_nothing_counts_when_switched_off, teardown),
        cmocka_unit_test_teardown(test_size_zero_is_memory, teardown),
        cmocka_unit_test_teardown(test_one_of_many_threads_gets_the_failure, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

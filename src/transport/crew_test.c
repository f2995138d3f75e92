// Copies by several threads: every byte once, whoever helps; deadlines and errors end them.
#include "transport/crew.h"

#include <unistd.h>

#include "unit/unit.h"

enum { NUM_TENSORS = 2, NUM_CALLERS = 4 };

// The thread sanitizer looks at every byte.
#if defined(__SANITIZE_THREAD__)
enum { SIZE_STEP = 3, NUM_ROUNDS = 1 };
#else
enum { SIZE_STEP = 1, NUM_ROUNDS = 4 };
#endif

// From this size on helpers are called.
static const uint64_t shared_bytes = 8 << 20;

// Whose proof is a number of its own.
static struct lli_process
this_process(void)
{
    static const uint64_t proof = 4711;
    return (struct lli_process){getpid(), (uintptr_t)&proof, proof};
}

struct work {
    struct lli_crew *crew;
    uint8_t *src;
    uint8_t *dst;
    uint64_t tensor_bytes;
    uintptr_t src_tensors[NUM_TENSORS];
    uintptr_t dst_tensors[NUM_TENSORS];
    struct lli_plan plan;
    struct lli_mapped_copy copy;
    bool in_time;
};

static void
open_work(struct work *work, struct lli_crew *crew, uint64_t tensor_bytes, uint64_t seed)
{
    *work = (struct work){.crew = crew, .tensor_bytes = tensor_bytes};
    work->src = unit_alloc(tensor_bytes * NUM_TENSORS);
    work->dst = unit_alloc(tensor_bytes * NUM_TENSORS);
    unit_fill(work->src, tensor_bytes * NUM_TENSORS, seed);
    for (size_t i = 0; i < NUM_TENSORS; i++) {
        work->src_tensors[i] = (uintptr_t)work->src + i * tensor_bytes;
        work->dst_tensors[i] = (uintptr_t)work->dst + i * tensor_bytes;
    }
    assert_true(lli_plan_slot(&work->plan, NUM_TENSORS, 0, 0, tensor_bytes) == LLM_SUCCESS);
    lli_mapped_copy_init(&work->copy, &work->plan, work->src_tensors, work->dst_tensors);
}

static void
close_work(struct work *work)
{
    lli_plan_fini(&work->plan);
    free(work->src);
    free(work->dst);
}

static void
assert_copied(const struct work *work)
{
    assert_true(work->in_time);
    assert_int_equal(work->copy.error, 0);
    assert_int_equal(work->copy.position, work->plan.total_bytes);
    assert_int_equal(memcmp(work->src, work->dst, work->plan.total_bytes), 0);
}

static void
test_every_size_and_number_of_threads(void **state)
{
    (void)state;
    for (size_t num_threads = 1; num_threads <= 4; num_threads++) {
        struct lli_crew crew;
        lli_crew_open(&crew, num_threads);
        static const int64_t differences[] = {-(4 << 20), -1, 0, 1, 70000, (1 << 20) + 3};
        for (size_t i = 0; i < LLI_COUNT(differences); i += SIZE_STEP) {
            struct work work;
            uint64_t bytes = (uint64_t)((int64_t)shared_bytes / NUM_TENSORS + differences[i]);
            open_work(&work, &crew, lli_max(bytes, 1), i);
            work.in_time = lli_crew_copy(&crew, &work.copy, UINT64_MAX);
            assert_copied(&work);
            close_work(&work);
        }
        assert_true(crew.num_threads <= num_threads - 1);
        lli_crew_close(&crew);
    }
}

static void
test_more_threads_than_there_can_be(void **state)
{
    struct lli_crew crew;
    struct work work;
    (void)state;
    lli_crew_open(&crew, 1000);
    open_work(&work, &crew, shared_bytes, 1);
    work.in_time = lli_crew_copy(&crew, &work.copy, UINT64_MAX);
    assert_copied(&work);
    close_work(&work);
    lli_crew_close(&crew);
}

static void
test_a_crew_that_never_worked_can_be_closed(void **state)
{
    struct lli_crew crew;
    (void)state;
    lli_crew_open(&crew, 4);
    assert_int_equal(crew.num_threads, 0);
    lli_crew_close(&crew);
}

static void *
call(void *arg)
{
    struct work *work = arg;
    work->in_time = lli_crew_copy(work->crew, &work->copy, UINT64_MAX);
    return NULL;
}

static void
test_several_callers_share_the_helpers(void **state)
{
    struct lli_crew crew;
    (void)state;
    lli_crew_open(&crew, 3);
    for (int round = 0; round < NUM_ROUNDS; round++) {
        struct work work[NUM_CALLERS];
        pthread_t threads[NUM_CALLERS];
        for (size_t i = 0; i < NUM_CALLERS; i++)
            open_work(&work[i], &crew, shared_bytes / NUM_TENSORS + i * 12345, i);
        for (size_t i = 0; i < NUM_CALLERS; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, call, &work[i]), 0);
        for (size_t i = 0; i < NUM_CALLERS; i++) {
            pthread_join(threads[i], NULL);
            assert_copied(&work[i]);
            close_work(&work[i]);
        }
    }
    assert_true(crew.num_threads <= 2);
    lli_crew_close(&crew);
}

// What is before copy->position has been copied, without a gap.
static void
assert_copied_so_far(const struct work *work)
{
    assert_true(work->copy.position <= work->plan.total_bytes);
    assert_int_equal(memcmp(work->src, work->dst, work->copy.position), 0);
}

static void
test_a_copy_goes_on_from_any_position(void **state)
{
    struct lli_crew crew;
    (void)state;
    lli_crew_open(&crew, 3);
    static const uint64_t positions[] = {1, (4 << 20) + 1, (10 << 20) - 1, 10 << 20};
    for (size_t i = 0; i < LLI_COUNT(positions); i++) {
        struct work work;
        open_work(&work, &crew, (uint64_t)5 << 20, i);
        work.copy.position = positions[i];
        work.in_time = lli_crew_copy(&crew, &work.copy, UINT64_MAX);
        assert_true(work.in_time);
        assert_int_equal(work.copy.position, work.plan.total_bytes);
        for (uint64_t k = 0; k < positions[i]; k++) {
            if (work.dst[k] != 0)
                fail_msg("byte %llu before the beginning was written", (unsigned long long)k);
        }
        assert_int_equal(memcmp(work.src + positions[i], work.dst + positions[i],
                                work.plan.total_bytes - positions[i]),
                         0);
        close_work(&work);
    }
    lli_crew_close(&crew);
}

// Out of time again and again, it arrives all the same.
static void
test_after_every_deadline_the_beginning_is_there_without_a_gap(void **state)
{
    (void)state;
    for (size_t num_threads = 1; num_threads <= 4; num_threads++) {
        struct lli_crew crew;
        struct work work;
        unsigned num_calls = 0;
        lli_crew_open(&crew, num_threads);
        open_work(&work, &crew, (uint64_t)8 << 20, num_threads);
        while (!lli_crew_copy(&crew, &work.copy, 0)) {
            assert_copied_so_far(&work);
            num_calls++;
        }
        assert_copied_so_far(&work);
        assert_int_equal(work.copy.position, work.plan.total_bytes);
        assert_true(num_calls > 1);
        close_work(&work);
        lli_crew_close(&crew);
    }
}

static void
test_after_a_read_error_the_beginning_is_there_without_a_gap(void **state)
{
    (void)state;
    for (size_t num_threads = 1; num_threads <= 4; num_threads++) {
        struct lli_crew crew;
        struct work work;
        lli_crew_open(&crew, num_threads);
        open_work(&work, &crew, (uint64_t)6 << 20, num_threads);
        work.src_tensors[1] = 4096; // nobody maps the first pages
        work.copy.owner = this_process();
        assert_true(lli_crew_copy(&crew, &work.copy, UINT64_MAX));
        assert_int_not_equal(work.copy.error, 0);
        assert_int_equal(work.copy.position, (uint64_t)6 << 20);
        assert_copied_so_far(&work);
        close_work(&work);
        lli_crew_close(&crew);
    }
}

static void
test_after_the_deadline_nothing_more_is_written(void **state)
{
    struct lli_crew crew;
    struct work work;
    (void)state;
    lli_crew_open(&crew, 3);
    open_work(&work, &crew, (uint64_t)8 << 20, 3);
    work.in_time = lli_crew_copy(&crew, &work.copy, 0);
    assert_false(work.in_time);
    assert_true(work.copy.position < work.plan.total_bytes);
    // Nobody is at it any more: the thread sanitizer watches this write, we what comes after.
    memset(work.dst, 0, work.plan.total_bytes);
    struct work next;
    open_work(&next, &crew, shared_bytes, 4);
    next.in_time = lli_crew_copy(&crew, &next.copy, UINT64_MAX);
    assert_copied(&next);
    for (uint64_t i = 0; i < work.plan.total_bytes; i++) {
        if (work.dst[i] != 0)
            fail_msg("byte %llu was written after the return", (unsigned long long)i);
    }
    close_work(&work);
    close_work(&next);
    lli_crew_close(&crew);
}

static void
test_a_read_that_fails_ends_the_copy(void **state)
{
    struct lli_crew crew;
    struct work work;
    (void)state;
    lli_crew_open(&crew, 3);
    open_work(&work, &crew, shared_bytes, 5);
    for (size_t i = 0; i < NUM_TENSORS; i++)
        work.src_tensors[i] = 4096; // nobody maps the first pages
    work.copy.owner = this_process();
    assert_true(lli_crew_copy(&crew, &work.copy, UINT64_MAX));
    assert_int_not_equal(work.copy.error, 0);
    assert_true(work.copy.position < work.plan.total_bytes);
    close_work(&work);
    lli_crew_close(&crew);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_size_and_number_of_threads),
        cmocka_unit_test(test_more_threads_than_there_can_be),
        cmocka_unit_test(test_a_crew_that_never_worked_can_be_closed),
        cmocka_unit_test(test_several_callers_share_the_helpers),
        cmocka_unit_test(test_a_copy_goes_on_from_any_position),
        cmocka_unit_test(test_after_every_deadline_the_beginning_is_there_without_a_gap),
        cmocka_unit_test(test_after_a_read_error_the_beginning_is_there_without_a_gap),
        cmocka_unit_test(test_after_the_deadline_nothing_more_is_written),
        cmocka_unit_test(test_a_read_that_fails_ends_the_copy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

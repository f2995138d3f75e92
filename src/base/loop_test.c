// The loop: order of tasks, calls, removal of sources whose events are pending, many posters.
#include "base/loop.h"

#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "unit/unit.h"

static _Atomic unsigned num_ticks;
static _Atomic unsigned num_idles;
static _Atomic unsigned idles_wanted;

static void
tick(void *arg, uint64_t now_ns)
{
    (void)arg;
    (void)now_ns;
    atomic_fetch_add(&num_ticks, 1);
}

static bool
idle(void *arg)
{
    (void)arg;
    return atomic_fetch_add(&num_idles, 1) + 1 < atomic_load(&idles_wanted);
}

static void
open_loop(struct lli_loop *loop, uint32_t tick_ms)
{
    atomic_store(&num_ticks, 0);
    atomic_store(&num_idles, 0);
    atomic_store(&idles_wanted, 0);
    assert_true(lli_loop_open(loop, tick_ms, tick, idle, NULL) == LLM_SUCCESS);
}

// ---- tasks ----

enum { LOG_MAX = 64 };

struct numbered {
    struct lli_task task;
    struct lli_loop *loop;
    struct numbered *posts; // posted by the task itself
    int number;
};

static int ran[LOG_MAX];
static size_t num_ran;

static void
run_numbered(struct lli_task *task)
{
    struct numbered *numbered = LLI_CONTAINER_OF(task, struct numbered, task);
    ran[num_ran++] = numbered->number;
    if (numbered->posts != NULL)
        lli_loop_post(numbered->loop, &numbered->posts->task);
}

static void
fill_numbered(struct numbered *numbered, size_t count, struct lli_loop *loop)
{
    num_ran = 0;
    for (size_t i = 0; i < count; i++)
        numbered[i] = (struct numbered){.task.run = run_numbered, .loop = loop, .number = (int)i};
}

static void
assert_ran_in_order(size_t count)
{
    assert_int_equal(num_ran, count);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(ran[i], i);
}

static void
test_a_loop_that_never_starts_can_be_closed(void **state)
{
    struct lli_loop loop;
    (void)state;
    open_loop(&loop, 1000);
    lli_loop_stop(&loop);
    lli_loop_close(&loop);
}

static void
test_tasks_posted_before_the_start_run_in_order(void **state)
{
    struct lli_loop loop;
    struct numbered tasks[10];
    (void)state;
    open_loop(&loop, 1000);
    fill_numbered(tasks, LLI_COUNT(tasks), &loop);
    for (size_t i = 0; i < LLI_COUNT(tasks); i++)
        lli_loop_post(&loop, &tasks[i].task);
    assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
    lli_loop_flush(&loop);
    assert_ran_in_order(LLI_COUNT(tasks));
    lli_loop_stop(&loop);
    lli_loop_close(&loop);
}

static void
test_tasks_of_a_loop_that_never_starts_run_at_its_close(void **state)
{
    struct lli_loop loop;
    struct numbered tasks[3];
    (void)state;
    open_loop(&loop, 1000);
    fill_numbered(tasks, LLI_COUNT(tasks), &loop);
    for (size_t i = 0; i < LLI_COUNT(tasks); i++)
        lli_loop_post(&loop, &tasks[i].task);
    lli_loop_close(&loop);
    assert_ran_in_order(LLI_COUNT(tasks));
}

static void
test_stop_runs_what_was_posted_before(void **state)
{
    (void)state;
    for (int round = 0; round < 50; round++) {
        struct lli_loop loop;
        struct numbered tasks[20];
        open_loop(&loop, 1000);
        fill_numbered(tasks, LLI_COUNT(tasks), &loop);
        assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
        for (size_t i = 0; i < LLI_COUNT(tasks); i++)
            lli_loop_post(&loop, &tasks[i].task);
        lli_loop_stop(&loop);
        assert_ran_in_order(LLI_COUNT(tasks));
        lli_loop_close(&loop);
    }
}

static void
test_a_task_may_post_the_next(void **state)
{
    struct lli_loop loop;
    struct numbered tasks[20];
    (void)state;
    open_loop(&loop, 1000);
    fill_numbered(tasks, LLI_COUNT(tasks), &loop);
    for (size_t i = 0; i + 1 < LLI_COUNT(tasks); i++)
        tasks[i].posts = &tasks[i + 1];
    assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
    lli_loop_post(&loop, &tasks[0].task);
    lli_loop_stop(&loop);
    assert_ran_in_order(LLI_COUNT(tasks));
    lli_loop_close(&loop);
}

struct call_facts {
    pthread_t thread;
    unsigned count;
};

static void
note_thread(void *arg)
{
    struct call_facts *facts = arg;
    facts->thread = pthread_self();
    facts->count++;
}

static void
test_a_call_runs_on_the_loops_thread_and_is_waited_for(void **state)
{
    struct lli_loop loop;
    struct call_facts facts = {.thread = pthread_self()};
    (void)state;
    open_loop(&loop, 1000);
    assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
    for (unsigned i = 1; i <= 200; i++) {
        lli_loop_call(&loop, note_thread, &facts);
        assert_int_equal(facts.count, i);
        assert_true(pthread_equal(facts.thread, loop.thread));
        assert_false(pthread_equal(facts.thread, pthread_self()));
    }
    lli_loop_stop(&loop);
    lli_loop_close(&loop);
}

// Counts up; the order within one poster must be kept.
struct counted {
    struct lli_task task;
    unsigned poster;
    unsigned number;
};

enum { NUM_POSTERS = 4, TASKS_PER_POSTER = 1500 };

static struct counted counted[NUM_POSTERS][TASKS_PER_POSTER];
static unsigned next_number[NUM_POSTERS]; // the loop's thread
static unsigned num_disordered;
static struct lli_loop shared_loop;

static void
run_counted(struct lli_task *task)
{
    const struct counted *c = LLI_CONTAINER_OF(task, struct counted, task);
    if (next_number[c->poster]++ != c->number)
        num_disordered++;
}

static void *
post_many(void *arg)
{
    unsigned poster = *(unsigned *)arg;
    for (unsigned i = 0; i < TASKS_PER_POSTER; i++) {
        counted[poster][i] =
            (struct counted){.task.run = run_counted, .poster = poster, .number = i};
        lli_loop_post(&shared_loop, &counted[poster][i].task);
        if (i % 100 == 0)
            lli_loop_flush(&shared_loop);
    }
    return NULL;
}

static void
test_tasks_of_many_threads_all_run_in_each_ones_order(void **state)
{
    pthread_t threads[NUM_POSTERS];
    unsigned posters[NUM_POSTERS];
    (void)state;
    memset(next_number, 0, sizeof(next_number));
    num_disordered = 0;
    open_loop(&shared_loop, 1000);
    assert_true(lli_loop_start(&shared_loop) == LLM_SUCCESS);
    for (unsigned i = 0; i < NUM_POSTERS; i++) {
        posters[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, post_many, &posters[i]), 0);
    }
    for (unsigned i = 0; i < NUM_POSTERS; i++)
        pthread_join(threads[i], NULL);
    lli_loop_stop(&shared_loop);
    lli_loop_close(&shared_loop);
    assert_int_equal(num_disordered, 0);
    for (unsigned i = 0; i < NUM_POSTERS; i++)
        assert_int_equal(next_number[i], TASKS_PER_POSTER);
}

// ---- ticks and idle work ----

static void
test_the_tick_comes_again_and_again(void **state)
{
    struct lli_loop loop;
    (void)state;
    open_loop(&loop, 1);
    assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
    uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
    while (atomic_load(&num_ticks) < 5 && lli_now_ns() < deadline)
        lli_loop_flush(&loop);
    lli_loop_stop(&loop);
    lli_loop_close(&loop);
    assert_true(atomic_load(&num_ticks) >= 5);
}

static void
test_idle_work_goes_on_without_events(void **state)
{
    struct lli_loop loop;
    (void)state;
    // The next tick is an hour away: only idle's answer makes the loop turn.
    open_loop(&loop, 3600 * 1000);
    atomic_store(&idles_wanted, 100);
    assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
    lli_loop_flush(&loop);
    uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
    while (atomic_load(&num_idles) < 100 && lli_now_ns() < deadline)
        sched_yield();
    assert_true(atomic_load(&num_idles) >= 100);
    lli_loop_stop(&loop);
    lli_loop_close(&loop);
}

// ---- sources ----

struct signal_source {
    struct lli_source source;
    struct lli_loop *loop;
    struct signal_source *removes; // when ready
    unsigned num_ready;
    unsigned num_freed;
    uint32_t events;
};

static void
on_ready(struct lli_source *source, uint32_t events)
{
    struct signal_source *s = LLI_CONTAINER_OF(source, struct signal_source, source);
    uint64_t value;
    s->num_ready++;
    s->events = events;
    if ((events & EPOLLIN) != 0 && read(source->fd, &value, sizeof(value)) < 0)
        abort();
    if (s->removes != NULL)
        lli_loop_remove(s->loop, &s->removes->source);
}

static void
on_free(struct lli_source *source)
{
    struct signal_source *s = LLI_CONTAINER_OF(source, struct signal_source, source);
    s->num_freed++;
}

static void
open_source(struct signal_source *s, struct lli_loop *loop, unsigned value, uint32_t events)
{
    *s = (struct signal_source){
        .loop = loop,
        .source = {.fd = eventfd(value, EFD_NONBLOCK | EFD_CLOEXEC),
                   .events = events,
                   .ready = on_ready,
                   .free = on_free},
    };
    assert_true(s->source.fd >= 0);
}

static void
test_a_removed_source_gets_no_event_that_was_pending(void **state)
{
    (void)state;
    // Whichever of the two comes first removes the other, whose event is in the same round.
    for (int round = 0; round < 20; round++) {
        struct lli_loop loop;
        struct signal_source a;
        struct signal_source b;
        open_loop(&loop, 1000);
        open_source(&a, &loop, 1, EPOLLIN);
        open_source(&b, &loop, 1, EPOLLIN);
        a.removes = &b;
        b.removes = &a;
        assert_true(lli_loop_add(&loop, &a.source) == LLM_SUCCESS);
        assert_true(lli_loop_add(&loop, &b.source) == LLM_SUCCESS);
        assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
        lli_loop_flush(&loop);
        lli_loop_stop(&loop);
        assert_int_equal(a.num_ready + b.num_ready, 1);
        assert_int_equal(a.source.added + b.source.added, 1);
        lli_loop_remove(&loop, &a.source);
        lli_loop_remove(&loop, &b.source);
        lli_loop_close(&loop);
        assert_int_equal(a.num_freed, 1);
        assert_int_equal(b.num_freed, 1);
    }
}

static void
test_a_source_may_remove_itself_twice(void **state)
{
    struct lli_loop loop;
    struct signal_source s;
    (void)state;
    open_loop(&loop, 1000);
    open_source(&s, &loop, 1, EPOLLIN);
    s.removes = &s;
    int fd = s.source.fd;
    assert_true(lli_loop_add(&loop, &s.source) == LLM_SUCCESS);
    assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
    lli_loop_flush(&loop);
    lli_loop_stop(&loop);
    assert_int_equal(s.num_ready, 1);
    assert_int_equal(s.source.fd, -1);
    assert_int_equal(close(fd), -1);
    lli_loop_remove(&loop, &s.source);
    lli_loop_close(&loop);
    assert_int_equal(s.num_freed, 1);
}

struct removal {
    struct lli_loop *loop;
    struct signal_source *source;
    unsigned freed_at_once;
};

static void
remove_now(void *arg)
{
    struct removal *removal = arg;
    lli_loop_remove(removal->loop, &removal->source->source);
    removal->freed_at_once = removal->source->num_freed;
}

static void
test_a_removed_source_is_freed_later_and_not_at_once(void **state)
{
    struct lli_loop loop;
    struct signal_source s;
    (void)state;
    open_loop(&loop, 1000);
    open_source(&s, &loop, 0, EPOLLIN);
    assert_true(lli_loop_add(&loop, &s.source) == LLM_SUCCESS);
    assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
    struct removal removal = {.loop = &loop, .source = &s};
    lli_loop_call(&loop, remove_now, &removal);
    lli_loop_stop(&loop);
    lli_loop_close(&loop);
    assert_int_equal(removal.freed_at_once, 0);
    assert_int_equal(s.num_freed, 1);
}

static void
change_to_out(void *arg)
{
    struct signal_source *s = arg;
    lli_loop_change(s->loop, &s->source, EPOLLOUT);
    // No news: nothing to do.
    lli_loop_change(s->loop, &s->source, EPOLLOUT);
}

static void
test_interest_can_be_changed(void **state)
{
    struct lli_loop loop;
    struct signal_source s;
    (void)state;
    open_loop(&loop, 1000);
    // An eventfd of 0 is writable, not readable.
    open_source(&s, &loop, 0, EPOLLIN);
    s.removes = &s;
    lli_loop_change(&loop, &s.source, EPOLLOUT);
    assert_int_equal(s.source.events, EPOLLIN);
    assert_true(lli_loop_add(&loop, &s.source) == LLM_SUCCESS);
    assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
    lli_loop_call(&loop, change_to_out, &s);
    uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
    struct call_facts facts = {0};
    // The event needs one more turn of the loop, which nothing of ours must cause.
    do
        lli_loop_call(&loop, note_thread, &facts);
    while (facts.count < 50 && lli_now_ns() < deadline);
    lli_loop_stop(&loop);
    lli_loop_remove(&loop, &s.source);
    lli_loop_close(&loop);
    assert_int_equal(s.num_ready, 1);
    assert_int_equal(s.events, EPOLLOUT);
}

static void
test_adding_what_cannot_be_waited_for_fails(void **state)
{
    struct lli_loop loop;
    struct signal_source s = {.source = {.fd = -1, .events = EPOLLIN, .ready = on_ready}};
    (void)state;
    open_loop(&loop, 1000);
    llm_set_log_level(LLM_LOG_OFF);
    assert_true(lli_loop_add(&loop, &s.source) == LLM_FAILED);
    assert_false(s.source.added);
    lli_loop_remove(&loop, &s.source);
    lli_loop_close(&loop);
}

static void
test_a_task_that_is_taken_back_does_not_run(void **state)
{
    struct lli_loop loop;
    struct numbered tasks[3];
    (void)state;
    open_loop(&loop, 1000);
    fill_numbered(tasks, LLI_COUNT(tasks), &loop);
    for (size_t i = 0; i < LLI_COUNT(tasks); i++)
        lli_loop_post(&loop, &tasks[i].task);
    lli_loop_unpost(&loop, &tasks[2].task);
    lli_loop_unpost(&loop, &tasks[2].task);
    lli_loop_close(&loop);
    assert_ran_in_order(2);
}

static struct numbered *taken_back;

static void
take_back(struct lli_task *task)
{
    struct numbered *numbered = LLI_CONTAINER_OF(task, struct numbered, task);
    run_numbered(task);
    lli_loop_unpost(numbered->loop, &taken_back->task);
}

static void
test_a_task_may_take_back_one_that_would_run_next(void **state)
{
    struct lli_loop loop;
    struct numbered tasks[3];
    (void)state;
    open_loop(&loop, 1000);
    fill_numbered(tasks, LLI_COUNT(tasks), &loop);
    tasks[1].task.run = take_back;
    taken_back = &tasks[2];
    for (size_t i = 0; i < LLI_COUNT(tasks); i++)
        lli_loop_post(&loop, &tasks[i].task);
    assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
    lli_loop_flush(&loop);
    lli_loop_stop(&loop);
    lli_loop_close(&loop);
    assert_ran_in_order(2);
}

static void
mute(void *arg)
{
    struct signal_source *s = arg;
    lli_loop_mute(s->loop, &s->source);
    lli_loop_change(s->loop, &s->source, EPOLLIN | EPOLLOUT);
}

static void
test_a_mute_source_is_silent_and_can_be_removed(void **state)
{
    struct lli_loop loop;
    struct signal_source s;
    struct call_facts facts = {0};
    (void)state;
    open_loop(&loop, 1000);
    open_source(&s, &loop, 0, EPOLLIN);
    assert_true(lli_loop_add(&loop, &s.source) == LLM_SUCCESS);
    assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
    lli_loop_call(&loop, mute, &s);
    assert_int_equal(eventfd_write(s.source.fd, 1), 0);
    while (facts.count < 50)
        lli_loop_call(&loop, note_thread, &facts);
    lli_loop_stop(&loop);
    lli_loop_remove(&loop, &s.source);
    lli_loop_close(&loop);
    assert_int_equal(s.num_ready, 0);
    assert_int_equal(s.num_freed, 1);
}

static void
test_a_loop_without_tick_and_idle_work_serves_sources_and_tasks(void **state)
{
    struct lli_loop loop;
    struct signal_source s;
    struct call_facts facts = {0};
    (void)state;
    assert_true(lli_loop_open(&loop, 0, NULL, NULL, NULL) == LLM_SUCCESS);
    open_source(&s, &loop, 1, EPOLLIN);
    s.removes = &s;
    assert_true(lli_loop_start(&loop) == LLM_SUCCESS);
    // Added while the loop's thread runs, by another.
    assert_true(lli_loop_add(&loop, &s.source) == LLM_SUCCESS);
    uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
    do
        lli_loop_call(&loop, note_thread, &facts);
    while (facts.count < 50 && lli_now_ns() < deadline);
    lli_loop_stop(&loop);
    lli_loop_close(&loop);
    assert_int_equal(s.num_ready, 1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_loop_that_never_starts_can_be_closed),
        cmocka_unit_test(test_tasks_posted_before_the_start_run_in_order),
        cmocka_unit_test(test_tasks_of_a_loop_that_never_starts_run_at_its_close),
        cmocka_unit_test(test_stop_runs_what_was_posted_before),
        cmocka_unit_test(test_a_task_may_post_the_next),
        cmocka_unit_test(test_a_call_runs_on_the_loops_thread_and_is_waited_for),
        cmocka_unit_test(test_tasks_of_many_threads_all_run_in_each_ones_order),
        cmocka_unit_test(test_the_tick_comes_again_and_again),
        cmocka_unit_test(test_idle_work_goes_on_without_events),
        cmocka_unit_test(test_a_removed_source_gets_no_event_that_was_pending),
        cmocka_unit_test(test_a_source_may_remove_itself_twice),
        cmocka_unit_test(test_a_removed_source_is_freed_later_and_not_at_once),
        cmocka_unit_test(test_interest_can_be_changed),
        cmocka_unit_test(test_adding_what_cannot_be_waited_for_fails),
        cmocka_unit_test(test_a_task_that_is_taken_back_does_not_run),
        cmocka_unit_test(test_a_task_may_take_back_one_that_would_run_next),
        cmocka_unit_test(test_a_mute_source_is_silent_and_can_be_removed),
        cmocka_unit_test(test_a_loop_without_tick_and_idle_work_serves_sources_and_tasks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

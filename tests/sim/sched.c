// Coroutines and the scheduler: who goes on, and when the clock moves.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "coro.h"
#include "sim.h"

enum { COROS_MAX = 256 };

struct sim_coro {
    uint64_t id;
    struct sim_process *process;
    char name[16];
    void *(*entry)(void *);
    void *arg;
    struct coro_stack stack;
    bool runnable;
    bool finished;
    bool timed_out;
    const void *waits_for;
    const char *why;
    uint64_t deadline_ns;
    int saved_errno;
    uint8_t tls[SIM_TLS_MAX];
};

static struct sim_coro *coros[COROS_MAX];
static size_t num_coros;
static uint64_t next_id;

// ---- events: a heap by time, then by age ----

struct event {
    uint64_t when_ns;
    uint64_t number;
    void (*run)(void *a, uint64_t b);
    void *a;
    uint64_t b;
};

static struct event *events;
static size_t num_events;
static size_t room_for_events;
static uint64_t next_event;

static bool
is_before(const struct event *a, const struct event *b)
{
    return a->when_ns != b->when_ns ? a->when_ns < b->when_ns : a->number < b->number;
}

void
sim_at(uint64_t when_ns, void (*run)(void *a, uint64_t b), void *a, uint64_t b)
{
    if (num_events == room_for_events) {
        room_for_events = room_for_events * 2 + 64;
        events = realloc(events, room_for_events * sizeof(*events));
    }
    struct event event = {.when_ns = when_ns, .number = next_event++, .run = run, .a = a, .b = b};
    size_t i = num_events++;
    for (; i > 0 && is_before(&event, &events[(i - 1) / 2]); i = (i - 1) / 2)
        events[i] = events[(i - 1) / 2];
    events[i] = event;
}

static struct event
take_event(void)
{
    struct event first = events[0];
    struct event last = events[--num_events];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= num_events)
            break;
        if (child + 1 < num_events && is_before(&events[child + 1], &events[child]))
            child++;
        if (!is_before(&events[child], &last))
            break;
        events[i] = events[child];
        i = child;
    }
    if (num_events > 0)
        events[i] = last;
    return first;
}

// ---- coroutines ----

static void
coro_main(void *arg)
{
    struct sim_coro *coro = arg;
    errno = 0;
    coro->entry(coro->arg);
    coro->finished = true;
    coro->runnable = false;
    sim_wake_all(coro);
    coro_leave_for_good(&coro->stack);
}

struct sim_coro *
sim_spawn(struct sim_process *process, const char *name, void *(*entry)(void *), void *arg)
{
    if (num_coros == COROS_MAX) {
        sim_fail("more than %d threads", COROS_MAX);
        return NULL;
    }
    struct sim_coro *coro = calloc(1, sizeof(*coro));
    coro->id = ++next_id;
    coro->process = process;
    snprintf(coro->name, sizeof(coro->name), "%s", name);
    coro->entry = entry;
    coro->arg = arg;
    coro->runnable = true;
    coro->deadline_ns = SIM_NEVER;
    memcpy(coro->tls, process->module->tls_fresh, process->module->tls_bytes);
    coro_prepare(&coro->stack, coro_main, coro);
    coros[num_coros++] = coro;
    return coro;
}

uint64_t
sim_coro_id(const struct sim_coro *coro)
{
    return coro->id;
}

struct sim_process *
sim_coro_process(const struct sim_coro *coro)
{
    return coro->process;
}

static struct sim_coro *
find_coro(uint64_t id)
{
    for (size_t i = 0; i < num_coros; i++) {
        if (coros[i]->id == id)
            return coros[i];
    }
    return NULL;
}

bool
sim_coro_done(uint64_t id)
{
    return find_coro(id) == NULL;
}

void
sim_join(uint64_t id)
{
    while (find_coro(id) != NULL)
        sim_wait("waits for a thread's end", find_coro(id), SIM_NEVER);
}

void
sim_coro_rename(uint64_t id, const char *name)
{
    struct sim_coro *coro = find_coro(id);
    if (coro != NULL)
        snprintf(coro->name, sizeof(coro->name), "%s", name);
}

static void
forget(size_t index)
{
    struct sim_coro *coro = coros[index];
    if (coro->process->tls_of == coro)
        coro->process->tls_of = NULL;
    coro_release(&coro->stack);
    free(coro);
    // The order stays: it is part of what a seed means.
    memmove(&coros[index], &coros[index + 1], (num_coros - index - 1) * sizeof(struct sim_coro *));
    num_coros--;
}

void
sim_coros_kill(struct sim_process *process)
{
    for (size_t i = num_coros; i-- > 0;) {
        if (coros[i]->process == process)
            forget(i);
    }
}

size_t
sim_coros_count(const struct sim_process *process)
{
    size_t count = 0;
    for (size_t i = 0; i < num_coros; i++)
        count += coros[i]->process == process;
    return count;
}

void
sim_coros_describe(const struct sim_process *process)
{
    for (size_t i = 0; i < num_coros; i++) {
        const struct sim_coro *coro = coros[i];
        if (process == NULL || coro->process == process)
            printf("    %s/%s: %s%s\n", coro->process->name, coro->name,
                   coro->runnable ? "can go on" : coro->why,
                   coro->process->stopped ? ", its process is stopped" : "");
    }
}

void
sim_sched_reset(void)
{
    while (num_coros > 0)
        forget(num_coros - 1);
    num_events = 0;
    next_event = 0;
    next_id = 0;
    sim.current = NULL;
}

// ---- switching ----

static void
put_tls_in_place(struct sim_coro *coro)
{
    struct sim_process *process = coro->process;
    if (process->tls_of == coro)
        return;
    if (process->tls_of != NULL)
        memcpy(process->tls_of->tls, process->module->tls, process->module->tls_bytes);
    memcpy(process->module->tls, coro->tls, process->module->tls_bytes);
    process->tls_of = coro;
}

static void
go_on(struct sim_coro *coro)
{
    put_tls_in_place(coro);
    sim.current = coro;
    errno = coro->saved_errno;
    coro_enter(&coro->stack);
    sim.current = NULL;
    if (coro->finished) {
        for (size_t i = 0; i < num_coros; i++) {
            if (coros[i] == coro)
                forget(i);
        }
    }
}

void
sim_yield(void)
{
    struct sim_coro *coro = sim.current;
    coro->saved_errno = errno;
    do
        coro_leave(&coro->stack);
    while (sim.failed);
    errno = coro->saved_errno;
}

static void
point(uint64_t ambush_one_in)
{
    if (sim.current == NULL)
        return;
    sim.now_ns += 20;
    if (sim_chance(ambush_one_in))
        sim.ambush();
    else if (sim_chance(sim.yield_one_in))
        sim_yield();
}

void
sim_point(void)
{
    point(sim.ambush_one_in);
}

void
sim_critical_point(void)
{
    point(sim.critical_ambush_one_in);
}

bool
sim_wait(const char *why, const void *what, uint64_t deadline_ns)
{
    struct sim_coro *coro = sim.current;
    if (coro == NULL) {
        sim_fail("the scheduler would wait for %s", why);
        return false;
    }
    coro->runnable = false;
    coro->timed_out = false;
    coro->waits_for = what;
    coro->why = why;
    coro->deadline_ns = deadline_ns;
    sim_yield();
    coro->waits_for = NULL;
    coro->deadline_ns = SIM_NEVER;
    return !coro->timed_out;
}

void
sim_sleep(uint64_t ns)
{
    sim_wait("sleeps", NULL, sim.now_ns + ns);
}

static char stalled;

void
sim_stall(uint64_t ns)
{
    struct sim_coro *coro = sim.current;
    sim_trace("%s/%s is stalled for %llu ms", coro->process->name, coro->name,
              (unsigned long long)(ns / SIM_MS));
    sim_process_hinder(coro->process);
    sim_wait("is stalled", &stalled, sim.now_ns + ns);
    sim_process_unhinder(coro->process);
}

void
sim_end_stalls(void)
{
    sim_wake_all(&stalled);
}

static void
wake(struct sim_coro *coro)
{
    coro->runnable = true;
    coro->waits_for = NULL;
}

void
sim_wake_all(const void *what)
{
    for (size_t i = 0; i < num_coros; i++) {
        if (!coros[i]->runnable && coros[i]->waits_for == what)
            wake(coros[i]);
    }
}

void
sim_wake_one(const void *what)
{
    size_t count = 0;
    struct sim_coro *chosen = NULL;
    for (size_t i = 0; i < num_coros; i++) {
        if (!coros[i]->runnable && coros[i]->waits_for == what && sim_below(++count) == 0)
            chosen = coros[i];
    }
    if (chosen != NULL)
        wake(chosen);
}

bool
sim_is_awaited(const void *what)
{
    for (size_t i = 0; i < num_coros; i++) {
        if (!coros[i]->runnable && coros[i]->waits_for == what)
            return true;
    }
    return false;
}

// ---- the scheduler ----

static void
run_due_events(void)
{
    while (num_events > 0 && events[0].when_ns <= sim.now_ns && !sim.failed) {
        struct event event = take_event();
        event.run(event.a, event.b);
    }
}

static void
wake_due(void)
{
    for (size_t i = 0; i < num_coros; i++) {
        struct sim_coro *coro = coros[i];
        if (!coro->runnable && coro->deadline_ns <= sim.now_ns) {
            wake(coro);
            coro->timed_out = true;
        }
    }
}

static struct sim_coro *
choose(void)
{
    struct sim_coro *candidates[COROS_MAX];
    size_t count = 0;
    for (size_t i = 0; i < num_coros; i++) {
        const struct sim_process *process = coros[i]->process;
        if (coros[i]->runnable && !process->stopped && process->rests_until <= sim.now_ns)
            candidates[count++] = coros[i];
    }
    return count > 0 ? candidates[sim_below(count)] : NULL;
}

static uint64_t
next_moment(void)
{
    uint64_t next = num_events > 0 ? events[0].when_ns : SIM_NEVER;
    for (size_t i = 0; i < num_coros; i++) {
        const struct sim_coro *coro = coros[i];
        uint64_t moment = coro->deadline_ns;
        if (coro->process->stopped)
            continue;
        if (coro->runnable)
            moment = coro->process->rests_until;
        if (moment < next)
            next = moment;
    }
    return next;
}

static void
rest(struct sim_process *process)
{
    if (process->alive && process->slow_ns > 0)
        process->rests_until = sim.now_ns + sim_below(process->slow_ns);
}

void
sim_run(bool (*done)(void), void (*every_step)(void))
{
    while (!sim.failed && !done()) {
        run_due_events();
        wake_due();
        struct sim_coro *coro = sim.failed ? NULL : choose();
        if (coro == NULL) {
            uint64_t next = next_moment();
            if (sim.failed)
                return;
            if (next == SIM_NEVER) {
                sim_fail("nobody can ever go on");
                return;
            }
            if (next > sim.now_ns)
                sim.now_ns = next;
            continue;
        }
        sim.now_ns += 200 + sim_below(800);
        sim.steps++;
        sim.trace_hash = sim_hash(sim.trace_hash, coro->id ^ sim.now_ns << 12);
        struct sim_process *process = coro->process;
        go_on(coro);
        rest(process);
        every_step();
    }
}

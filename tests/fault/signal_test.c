// Signals that the application handles come in the threads that pull, push and link, a thousand a second
// in each, with handlers that restart system calls and with handlers that don't: no call fails.
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "registered/kit.h"

enum { OWNER = 11, GUEST = 12, USER = 21, TENSORS = 2, SLOTS = 4, STRIDE = 4096 };
enum { SIGNALS = 500, RATE_NS = 1000000 };

static _Thread_local atomic_uint num_signals;

static void
handle(int number)
{
    (void)number;
    atomic_fetch_add_explicit(&num_signals, 1, memory_order_relaxed);
}

static timer_t
start_timer(void)
{
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM};
    struct itimerspec rate = {{0, RATE_NS}, {0, RATE_NS}};
    event._sigev_un._tid = gettid();
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 ||
        timer_settime(timer, 0, &rate, NULL) != 0)
        abort();
    return timer;
}

// ---- threads ----

struct work {
    const char *what;
    struct end *user;
    int64_t remote;
    uint16_t port;
    bool registered;
    unsigned num_calls;
    unsigned num_failed;
    llm_status status; // of the first that failed
    char why[512];
};

static llm_status
transfer(struct work *work, const struct kv *kv, bool push)
{
    struct job job = {.push = push, .peer = OWNER, .remote = work->remote, .count = SLOTS};
    return job_run(&job, work->user, kv);
}

static llm_status
link_and_unlink(struct work *work)
{
    llm_status status = end_link(work->user, GUEST, work->port);
    if (status != LLM_SUCCESS)
        return status;
    return end_unlink(work->user, GUEST, work->port, false);
}

static void
note(struct work *work, llm_status status)
{
    work->num_calls++;
    if (status == LLM_SUCCESS)
        return;
    if (work->num_failed++ == 0) {
        work->status = status;
        llm_last_error(work->why, sizeof(work->why));
    }
}

static void *
be_interrupted(void *arg)
{
    struct work *work = arg;
    struct kv kv;
    bool links = work->remote == 0;
    bool push = strcmp(work->what, "push") == 0;
    if (!links && work->registered)
        kv_open(&kv, work->user, TENSORS, SLOTS, STRIDE);
    else if (!links)
        kv_allocate(&kv, work->user, TENSORS, SLOTS, STRIDE);
    timer_t timer = start_timer();
    while (num_signals < SIGNALS)
        note(work, links ? link_and_unlink(work) : transfer(work, &kv, push));
    timer_delete(timer);
    num_signals = 0;
    if (!links)
        kv_free(&kv);
    return NULL;
}

// ---- tests ----

// Where the ends are: in another process, or for local ones here.
struct peer {
    struct other other;
    struct end end;
    struct kv kv;
    int64_t cache;
    uint16_t port;
};

static void
peer_open(struct peer *peer, uint64_t id, bool registered)
{
    struct end_setup setup = {.id = id, .listens = true};
    memset(peer, 0, sizeof(*peer));
    if (is_transport("local")) {
        end_open(&peer->end, &setup);
        peer->port = peer->end.port;
        if (registered)
            kv_open(&peer->kv, &peer->end, TENSORS, SLOTS, STRIDE);
        else
            kv_allocate(&peer->kv, &peer->end, TENSORS, SLOTS, STRIDE);
        peer->cache = peer->kv.id;
        return;
    }
    setup.transports = transport;
    other_open(&peer->other, &setup);
    peer->port = peer->other.port;
    peer->cache = other_cache(&peer->other, 0, registered, TENSORS, SLOTS, STRIDE);
}

static void
peer_close(struct peer *peer)
{
    if (peer->end.dd != NULL) {
        end_close(&peer->end);
        kv_free(&peer->kv);
    } else {
        assert_true(process_join(&peer->other.process));
    }
}

static void
nothing_fails(int flags, bool registered)
{
    struct peer owner;
    struct peer guest;
    struct end user;
    struct end_setup setup = {.id = USER};
    struct sigaction action = {.sa_handler = handle, .sa_flags = flags};
    assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
    peer_open(&owner, OWNER, registered);
    peer_open(&guest, GUEST, false);
    end_open(&user, &setup);
    assert_ok(end_link(&user, OWNER, owner.port));

    struct work works[] = {{.what = "pull"}, {.what = "push"}, {.what = "link"}};
    pthread_t threads[LENGTH(works)];
    for (size_t i = 0; i < LENGTH(works); i++) {
        bool links = strcmp(works[i].what, "link") == 0;
        works[i].user = &user;
        works[i].registered = registered;
        works[i].remote = links ? 0 : owner.cache;
        works[i].port = links ? guest.port : owner.port;
        assert_int_equal(pthread_create(&threads[i], NULL, be_interrupted, &works[i]), 0);
    }
    for (size_t i = 0; i < LENGTH(works); i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (size_t i = 0; i < LENGTH(works); i++) {
        print_message("%s: %u calls, %d signals\n", works[i].what, works[i].num_calls, SIGNALS);
        if (works[i].num_failed > 0)
            fail_msg("%s: %u of %u calls failed, the first with %s: %s", works[i].what,
                     works[i].num_failed, works[i].num_calls, llm_status_name(works[i].status),
                     works[i].why);
    }
    assert_int_equal(end_state(&user, OWNER, NULL), LLM_LINK_READY);
    end_close(&user);
    peer_close(&guest);
    peer_close(&owner);
}

static void
test_signals_that_restart_calls(void **state)
{
    (void)state;
    nothing_fails(SA_RESTART, false);
    nothing_fails(SA_RESTART, true);
}

static void
test_signals_that_interrupt_calls(void **state)
{
    (void)state;
    nothing_fails(0, false);
    nothing_fails(0, true);
}

int
main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        KIT_TEST(test_signals_that_restart_calls),
        KIT_TEST(test_signals_that_interrupt_calls),
    };
    return kit_main(argc, argv, tests, LENGTH(tests));
}

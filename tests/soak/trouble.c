// What the program around the library does: signals that it handles come in all its threads, and it forks.
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "multi/process.h"
#include "soak/thread.h"

enum { SIGNAL_NS = 1000000, HELPER_MS_MAX = 3000 };

// ---- signals ----

static _Thread_local volatile sig_atomic_t num_signals;

static void
handle(int number)
{
    (void)number;
    num_signals = num_signals + 1;
}

void
trouble_choose(uint64_t *dice)
{
    struct sigaction action = {.sa_handler = handle};
    if (roll(dice, 2) == 0)
        action.sa_flags = SA_RESTART;
    if (sigaction(SIGALRM, &action, NULL) != 0)
        abort();
}

void
trouble_start(struct thread *th)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM};
    struct itimerspec rate = {{0, SIGNAL_NS}, {0, SIGNAL_NS}};
    th->is_signalled = roll(&th->dice, 2) == 0;
    if (!th->is_signalled)
        return;
    event._sigev_un._tid = gettid();
    if (timer_create(CLOCK_MONOTONIC, &event, &th->timer) != 0 ||
        timer_settime(th->timer, 0, &rate, NULL) != 0)
        abort();
}

static void
count_signals(void)
{
    count(COUNT_signals, (uint64_t)num_signals);
    num_signals = 0;
}

// ---- forks ----

static bool is_child;

// A leak sanitizer that runs in a child doesn't see what its parent's other threads hold.
__attribute__((visibility("default"))) int __lsan_is_turned_off(void);
int
__lsan_is_turned_off(void)
{
    return is_child;
}

static llm_datadist *inherited;

static void
destroy_inherited(void)
{
    llm_destroy(inherited);
}

static void
be_child(struct seat *seat, bool lives_on, int helper_ms)
{
    is_child = true;
    signal(SIGALRM, SIG_DFL);
    // One that hangs is a finding of its parent's.
    alarm(PATIENCE_MS / 1000);
    if (lives_on) {
        (void)poll(NULL, 0, helper_ms);
        _exit(0);
    }
    inherited = seat->dd;
    atexit(destroy_inherited);
    exit(0);
}

static void
reap(struct thread *th, int flags)
{
    int status;
    pid_t pid;
    while (th->child > 0 && (pid = waitpid(th->child, &status, flags)) != 0) {
        if (pid < 0)
            continue; // a signal
        WRONG_UNLESS(status == 0, "a forked child ended with status 0x%x", (unsigned)status);
        th->child = 0;
    }
}

void
fork_off(struct thread *th, struct seat *seat)
{
    bool lives_on = roll(&th->dice, 2) == 0;
    int helper_ms = 1 + (int)roll(&th->dice, HELPER_MS_MAX);
    if (th->child > 0)
        return;
    AT(th);
    pid_t pid = fork();
    if (pid == 0)
        be_child(seat, lives_on, helper_ms);
    if (WRONG_UNLESS(pid > 0, "fork failed"))
        return;
    th->child = pid;
    count(COUNT_forks, 1);
    if (!lives_on)
        reap(th, 0);
}

// ---- after each step, and at the end ----

void
trouble_look(struct thread *th)
{
    count_signals();
    reap(th, WNOHANG);
}

void
trouble_stop(struct thread *th)
{
    if (th->is_signalled)
        timer_delete(th->timer);
    count_signals();
    reap(th, 0);
}

// Random calls under random faults, for as long as told: processes with several threads each
// allocate, register, link, pull, push, start, cancel, copy, notify, finalize and begin again, over
// every transport, while they are killed, stopped, cut off, interrupted by signals and forked, and while
// paths swallow what they should carry.  Every byte that moves is checked.
//
//     soak [--seconds N] [--seed N] [--workers N] [--json]
//
// The exit code is 0 if nothing was wrong.  The same seed makes the same choices, as far as the
// scheduling of threads permits.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "multi/process.h"
#include "soak/board.h"

// A step that takes longer hangs: none has to wait longer than a few times the wait times of the
// library.
enum { STEP_MS_MAX = SCALED(60000, 180000), END_MS_MAX = SCALED(60000, 240000) };
enum { PROGRESS_MS = 5000, BOARD_FD = 3, RSS_SLACK_KB = 64 * 1024 };

struct board *board;

uint64_t
soak_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void
tell_wrong(const char *format, ...)
{
    bool none = false;
    va_list args;
    if (!atomic_compare_exchange_strong(&board->is_wrong, &none, true))
        return;
    va_start(args, format);
    vsnprintf(board->wrong, sizeof(board->wrong), format, args);
    va_end(args);
    atomic_store(&board->is_told, true);
}

// ---- the driver ----

struct worker {
    pid_t pid;
    int pidfd;
    bool stopped;
    uint64_t continue_ms;
};

struct driver {
    unsigned seconds;
    bool json;
    uint64_t dice;
    uint64_t began_ms;
    uint64_t next_fault_ms;
    uint64_t next_progress_ms;
    uint64_t num_kills;
    uint64_t num_stops;
    uint64_t num_long_stops;
    struct worker workers[WORKERS_MAX];
    struct worker forwarder;
};

static bool
start_process(struct worker *worker, char *argument)
{
    pid_t parent = getpid();
    char *arguments[] = {(char *)(uintptr_t) "soak", argument, NULL};
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        execv("/proc/self/exe", arguments);
        _exit(127);
    }
    *worker = (struct worker){.pid = pid, .pidfd = (int)syscall(SYS_pidfd_open, pid, 0)};
    return pid > 0 && worker->pidfd >= 0;
}

static bool
start_worker(struct driver *driver, unsigned index)
{
    char argument[32];
    snprintf(argument, sizeof(argument), "--worker=%u", index);
    for (unsigned i = 0; i < THREADS; i++)
        atomic_store(&board->workers[index].threads[i].began_ms, 0);
    return start_process(&driver->workers[index], argument);
}

static bool
start_forwarder(struct driver *driver)
{
    char argument[] = "--forwarder";
    return start_process(&driver->forwarder, argument);
}

static void
kill_worker(struct worker *worker)
{
    if (worker->pid <= 0)
        return;
    kill(worker->pid, SIGKILL);
    while (waitpid(worker->pid, NULL, 0) < 0 && errno == EINTR) {
    }
    close(worker->pidfd);
    worker->pid = 0;
}

static void
stop_worker(struct driver *driver, struct worker *worker)
{
    kill(worker->pid, SIGSTOP);
    worker->stopped = true;
    bool is_long = roll(&driver->dice, 3) == 0;
    worker->continue_ms = soak_now_ms() + (is_long ? 1100 + roll(&driver->dice, 1900)
                                                   : 20 + roll(&driver->dice, 1500));
    driver->num_stops++;
    driver->num_long_stops += is_long;
}

static void
continue_worker(struct driver *driver, unsigned index)
{
    struct worker *worker = &driver->workers[index];
    // What it stood still for isn't its fault.
    for (unsigned i = 0; i < THREADS; i++) {
        uint64_t began = atomic_load(&board->workers[index].threads[i].began_ms);
        if (began != 0)
            atomic_compare_exchange_strong(&board->workers[index].threads[i].began_ms, &began,
                                           soak_now_ms());
    }
    kill(worker->pid, SIGCONT);
    worker->stopped = false;
}

// Worker 0 is never killed, so that its memory can be watched; but under the thread sanitizer it is, whose
// own mappings grow by a hundred a second, until there are as many as a process may have.
static const bool spares_worker_0 = !UNDER_TSAN;

static void
make_fault(struct driver *driver)
{
    unsigned index = (unsigned)roll(&driver->dice, board->num_workers);
    struct worker *worker = &driver->workers[index];
    uint64_t number = roll(&driver->dice, 10);
    if (number < 4) {
        atomic_fetch_add(&board->workers[index].cuts_wanted, 1 + roll(&driver->dice, 3));
    } else if (number < 7 || (index == 0 && spares_worker_0)) {
        if (!worker->stopped)
            stop_worker(driver, worker);
    } else {
        kill_worker(worker);
        driver->num_kills++;
        if (!start_worker(driver, index))
            tell_wrong("a worker can't be started: %s", strerror(errno));
    }
}

// A worker that ends before it's told to is a finding: a sanitizer has spoken, or it crashed.
static void
look_for_deaths(struct driver *driver)
{
    for (unsigned i = 0; i < board->num_workers; i++) {
        int status;
        struct worker *worker = &driver->workers[i];
        if (worker->pid == 0 || waitpid(worker->pid, &status, WNOHANG) != worker->pid)
            continue;
        worker->pid = 0;
        close(worker->pidfd);
        if (WIFSIGNALED(status))
            tell_wrong("worker %u died of signal %d", i, WTERMSIG(status));
        else
            tell_wrong("worker %u ended with exit code %d", i, WEXITSTATUS(status));
    }
    if (waitpid(driver->forwarder.pid, NULL, WNOHANG) != 0)
        tell_wrong("the forwarder has ended");
}

static void
look_for_hangs(struct driver *driver)
{
    for (unsigned i = 0; i < board->num_workers; i++) {
        for (unsigned j = 0; j < THREADS && !driver->workers[i].stopped; j++) {
            struct thread_board *thread = &board->workers[i].threads[j];
            uint64_t began = atomic_load(&thread->began_ms);
            uint64_t now = soak_now_ms();
            if (began == 0 || now < began + STEP_MS_MAX)
                continue;
            tell_wrong("worker %u (pid %d), thread %u hangs for %" PRIu64 " ms, tests/soak line %u",
                       i, (int)driver->workers[i].pid, j, now - began, atomic_load(&thread->line));
        }
    }
}

static uint64_t
counted(enum counter counter)
{
    return atomic_load(&board->counters[counter]);
}

static uint64_t
num_faults(const struct driver *driver)
{
    return driver->num_kills + driver->num_stops + counted(COUNT_cuts) + counted(COUNT_swallowed) +
           counted(COUNT_forks) + counted(COUNT_pulled_rug);
}

static void
show_progress(const struct driver *driver)
{
    uint64_t seconds = (soak_now_ms() - driver->began_ms) / 1000;
    fprintf(stderr,
            "soak: %" PRIu64 " s, %" PRIu64 " transfers, %" PRIu64 " MB, %" PRIu64
            " failed, %" PRIu64 " timed out, %" PRIu64 " faults\n",
            seconds, counted(COUNT_transfers), counted(COUNT_bytes) / 1000000,
            counted(COUNT_failed), counted(COUNT_timed_out), num_faults(driver));
}

// Until the next event that is due, or until a worker ends.
static void
wait_for_event(const struct driver *driver)
{
    struct pollfd waits[WORKERS_MAX];
    nfds_t num_waits = 0;
    uint64_t now = soak_now_ms();
    uint64_t due = driver->next_fault_ms;
    for (unsigned i = 0; i < board->num_workers; i++) {
        const struct worker *worker = &driver->workers[i];
        if (worker->pid == 0)
            continue;
        waits[num_waits++] = (struct pollfd){.fd = worker->pidfd, .events = POLLIN};
        if (worker->stopped && worker->continue_ms < due)
            due = worker->continue_ms;
    }
    (void)poll(waits, num_waits, due > now ? (int)(due - now) : 0);
}

static void
drive(struct driver *driver)
{
    uint64_t end_ms = driver->began_ms + (uint64_t)driver->seconds * 1000;
    while (soak_now_ms() < end_ms && !atomic_load(&board->is_wrong)) {
        wait_for_event(driver);
        look_for_deaths(driver);
        look_for_hangs(driver);
        uint64_t now = soak_now_ms();
        for (unsigned i = 0; i < board->num_workers; i++) {
            if (driver->workers[i].stopped && now >= driver->workers[i].continue_ms)
                continue_worker(driver, i);
        }
        if (now >= driver->next_fault_ms) {
            make_fault(driver);
            driver->next_fault_ms = now + SCALED(50, 200) + roll(&driver->dice, SCALED(600, 1500));
        }
        if (now >= driver->next_progress_ms) {
            show_progress(driver);
            driver->next_progress_ms = now + PROGRESS_MS;
        }
    }
}

// All finish what they are at, close their instances and end with exit code 0.
static void
finish(struct driver *driver)
{
    uint64_t deadline = soak_now_ms() + END_MS_MAX;
    atomic_store(&board->over, true);
    for (unsigned i = 0; i < board->num_workers; i++) {
        if (driver->workers[i].stopped)
            continue_worker(driver, i);
    }
    for (unsigned i = 0; i < board->num_workers; i++) {
        struct worker *worker = &driver->workers[i];
        int status = 0;
        if (worker->pid == 0)
            continue;
        struct pollfd wait = {.fd = worker->pidfd, .events = POLLIN};
        uint64_t now = soak_now_ms();
        if (poll(&wait, 1, deadline > now ? (int)(deadline - now) : 0) != 1)
            tell_wrong("worker %u doesn't end", i);
        else if (waitpid(worker->pid, &status, 0) == worker->pid && status != 0)
            tell_wrong("worker %u ended with status 0x%x", i, (unsigned)status);
        else
            worker->pid = 0;
        kill_worker(worker);
    }
    kill_worker(&driver->forwarder);
}

static void
check_memory(void)
{
    const struct worker_board *worker = &board->workers[0];
    if (UNDER_ASAN || UNDER_TSAN || atomic_load(&worker->rests) < 2)
        return;
    if (worker->last.rss_kb > worker->first.rss_kb + RSS_SLACK_KB)
        tell_wrong("the memory of worker 0 grew from %" PRIu64 " to %" PRIu64 " KB",
                   worker->first.rss_kb, worker->last.rss_kb);
}

static const char *const counter_names[COUNTERS] = {
#define COUNTER_NAME_(name) #name,
    COUNTER_MAP(COUNTER_NAME_)
#undef COUNTER_NAME_
};

static void
report_json(const struct driver *driver, bool clean)
{
    const struct worker_board *worker = &board->workers[0];
    printf("{\"seed\": %" PRIu64 ", \"seconds\": %u, \"clean\": %s", board->seed, driver->seconds,
           clean ? "true" : "false");
    for (unsigned i = 0; i < COUNTERS; i++)
        printf(", \"%s\": %" PRIu64, counter_names[i], counted((enum counter)i));
    printf(", \"kills\": %" PRIu64 ", \"stops\": %" PRIu64 ", \"long_stops\": %" PRIu64,
           driver->num_kills, driver->num_stops, driver->num_long_stops);
    printf(", \"rests\": %u, \"rss_kb\": [%" PRIu64 ", %" PRIu64 "]", atomic_load(&worker->rests),
           worker->first.rss_kb, worker->last.rss_kb);
    printf(", \"descriptors\": [%" PRIu64 ", %" PRIu64 "], \"threads\": [%" PRIu64 ", %" PRIu64
           "]}\n",
           worker->first.descriptors, worker->last.descriptors, worker->first.threads,
           worker->last.threads);
}

static void
report(const struct driver *driver, bool clean)
{
    const struct worker_board *worker = &board->workers[0];
    for (unsigned i = 0; i < COUNTERS; i++)
        printf("%s %" PRIu64 "%s", counter_names[i], counted((enum counter)i),
               i + 1 < COUNTERS ? ", " : "\n");
    printf("kills %" PRIu64 ", stops %" PRIu64 ", %" PRIu64
           " of them longer than the liveness times\n",
           driver->num_kills, driver->num_stops, driver->num_long_stops);
    printf("worker 0 at rest, first and last of %u times: %" PRIu64 " and %" PRIu64
           " KB resident, %" PRIu64 " and %" PRIu64 " descriptors, %" PRIu64 " and %" PRIu64
           " threads\n",
           atomic_load(&worker->rests), worker->first.rss_kb, worker->last.rss_kb,
           worker->first.descriptors, worker->last.descriptors, worker->first.threads,
           worker->last.threads);
    printf("soak: %s: %" PRIu64 " transfers, %" PRIu64 " bytes, %" PRIu64 " faults, wrong bytes %s"
           " (seed %" PRIu64 ")\n",
           clean ? "clean" : "NOT CLEAN", counted(COUNT_transfers), counted(COUNT_bytes),
           num_faults(driver), clean ? "= 0" : "or worse, see above", board->seed);
}

static int
run(struct driver *driver)
{
    driver->dice = mix(board->seed);
    driver->began_ms = soak_now_ms();
    driver->next_progress_ms = driver->began_ms + PROGRESS_MS;
    driver->next_fault_ms = driver->began_ms + SCALED(300, 2000);
    fprintf(stderr, "soak: seed %" PRIu64 ", %u workers, %u s\n", board->seed, board->num_workers,
            driver->seconds);
    if (!start_forwarder(driver))
        tell_wrong("the forwarder can't be started: %s", strerror(errno));
    for (unsigned i = 0; i < board->num_workers; i++) {
        if (!start_worker(driver, i))
            tell_wrong("a worker can't be started: %s", strerror(errno));
    }
    drive(driver);
    finish(driver);
    check_memory();
    bool clean = !atomic_load(&board->is_wrong);
    if (!clean)
        fprintf(stderr, "soak: WRONG: %s\n",
                atomic_load(&board->is_told) ? board->wrong : "its finder died");
    if (driver->json)
        report_json(driver, clean);
    else
        report(driver, clean);
    return clean ? 0 : 1;
}

// ---- main ----

static bool
map_board(int fd)
{
    board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return board != MAP_FAILED;
}

static bool
make_board(void)
{
    int fd = (int)syscall(SYS_memfd_create, "soak", 0);
    if (fd < 0 || ftruncate(fd, sizeof(*board)) != 0)
        return false;
    if (fd != BOARD_FD && (dup2(fd, BOARD_FD) != BOARD_FD || close(fd) != 0))
        return false;
    return map_board(BOARD_FD);
}

static bool
read_number(const char *argument, const char *name, uint64_t *ret_number)
{
    size_t length = strlen(name);
    char *end;
    if (strncmp(argument, name, length) != 0 || argument[length] != '=')
        return false;
    errno = 0;
    *ret_number = strtoull(argument + length + 1, &end, 0);
    return errno == 0 && end != argument + length + 1 && *end == '\0';
}

static int
usage(void)
{
    fprintf(stderr, "usage: soak [--seconds=N] [--seed=N] [--workers=2..%d] [--json]\n",
            WORKERS_MAX);
    return 2;
}

int
main(int argc, char **argv)
{
    struct driver driver = {.seconds = 10};
    uint64_t number = 0;
    uint64_t seed = 0;
    uint64_t num_workers = 3;
    signal(SIGPIPE, SIG_IGN);
    if (argc == 2 && read_number(argv[1], "--worker", &number) && number < WORKERS_MAX)
        return map_board(BOARD_FD) && fcntl(BOARD_FD, F_SETFD, FD_CLOEXEC) == 0
                   ? worker_run((unsigned)number)
                   : 2;
    if (argc == 2 && strcmp(argv[1], "--forwarder") == 0)
        return map_board(BOARD_FD) ? forwarder_run() : 2;
    (void)!getrandom(&seed, sizeof(seed), 0);
    seed &= 0xffffffff;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            driver.json = true;
        else if (read_number(argv[i], "--seconds", &number) && number > 0 && number < 1000000)
            driver.seconds = (unsigned)number;
        else if (!read_number(argv[i], "--seed", &seed) &&
                 !read_number(argv[i], "--workers", &num_workers))
            return usage();
    }
    if (num_workers < 2 || num_workers > WORKERS_MAX)
        return usage();
    if (!make_board()) {
        fprintf(stderr, "soak: no shared memory: %s\n", strerror(errno));
        return 1;
    }
    board->seed = seed;
    board->num_workers = (unsigned)num_workers;
    return run(&driver);
}

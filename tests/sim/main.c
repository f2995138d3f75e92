// sim_test [--seeds FIRST..LAST] [--seed N] [--trace] [--seconds N]
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "scenario.h"

enum { DEFAULT_SEEDS = 3000 };

static const char *program;

static void
say_how_to_replay(uint64_t seed)
{
    printf("    replay: %s --seed %llu --trace\n", program, (unsigned long long)seed);
}

static void
on_crash(int number)
{
    char text[256];
    int bytes =
        snprintf(text, sizeof(text),
                 "seed %llu: FAILED after %.3f ms: signal %d\n    replay: %s --seed %llu --trace\n",
                 (unsigned long long)sim.seed, (double)sim.now_ns / 1e6, number, program,
                 (unsigned long long)sim.seed);
    fflush(stdout);
    ssize_t written = write(STDOUT_FILENO, text, (size_t)bytes);
    (void)written;
    signal(number, SIG_DFL);
    raise(number);
}

static bool
run_seed(uint64_t seed, bool tracing, struct scenario_totals *totals)
{
    if (scenario_run(seed, tracing, totals))
        return true;
    printf("seed %llu: FAILED after %.3f ms: %s\n", (unsigned long long)seed,
           (double)sim.now_ns / 1e6, sim.failure);
    say_how_to_replay(seed);
    fflush(stdout);
    return false;
}

// The same seed tells the same story.
static bool
is_deterministic(uint64_t seed, struct scenario_totals *totals)
{
    bool ok = run_seed(seed, false, totals);
    uint64_t hash = sim.trace_hash;
    uint64_t steps = sim.steps;
    ok &= run_seed(seed, false, totals);
    if (hash == sim.trace_hash && steps == sim.steps)
        return ok;
    printf("seed %llu: two runs differ: %llu and %llu steps\n", (unsigned long long)seed,
           (unsigned long long)steps, (unsigned long long)sim.steps);
    return false;
}

static double
seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int
usage(void)
{
    fprintf(stderr, "usage: %s [--seeds FIRST..LAST] [--seconds N] | --seed N [--trace]\n",
            program);
    return 2;
}

int
main(int argc, char **argv)
{
    unsigned long long first = 1;
    unsigned long long last = DEFAULT_SEEDS;
    double seconds = 100;
    bool tracing = false;
    unsigned failures_max = 5;
    struct scenario_totals totals = {0};
    program = argv[0];
#ifdef __SANITIZE_THREAD__
    puts("skipped: all threads of the simulation are one, the thread sanitizer would find nothing");
    return 77;
#endif
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--trace") == 0)
            tracing = true;
        else if (strcmp(argv[i], "--stop") == 0)
            failures_max = 1;
        else if (i + 1 < argc && strcmp(argv[i], "--seed") == 0)
            first = last = strtoull(argv[++i], NULL, 10);
        else if (i + 1 < argc && strcmp(argv[i], "--seconds") == 0)
            seconds = strtod(argv[++i], NULL);
        else if (i + 1 >= argc || strcmp(argv[i], "--seeds") != 0 ||
                 sscanf(argv[++i], "%llu..%llu", &first, &last) != 2)
            return usage();
    }
    signal(SIGSEGV, on_crash);
    signal(SIGABRT, on_crash);
    signal(SIGBUS, on_crash);
    signal(SIGFPE, on_crash);
    double start = seconds_now();
    unsigned long long num_runs = 0;
    unsigned num_failed = 0;
    for (unsigned long long seed = first; seed <= last && num_failed < failures_max; seed++) {
        bool twice = (seed - first) % 100 == 0 && !tracing;
        num_failed += !(twice ? is_deterministic(seed, &totals) : run_seed(seed, tracing, &totals));
        num_runs++;
        if (seconds_now() - start > seconds)
            break;
    }
    printf("%llu seeds from %llu on in %.1f s, %u failed: %llu steps, %llu transfers of which %llu "
           "succeeded, %llu links, %llu notifications, %llu faults, %llu signals, %llu restarts\n",
           num_runs, first, seconds_now() - start, num_failed, (unsigned long long)totals.steps,
           (unsigned long long)totals.ops, (unsigned long long)totals.successes,
           (unsigned long long)totals.links, (unsigned long long)totals.notes,
           (unsigned long long)totals.faults, (unsigned long long)totals.signals,
           (unsigned long long)totals.restarts);
    return num_failed > 0;
}

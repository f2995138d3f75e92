// What the tables shall show, and whether they do.
#include "bench.h"

#include <string.h>

enum { WALL_ONLY = true };

// Everything with one copy thread, but where two are named.
#define LEAST(table, series, than, bound)                                                          \
    {                                                                                              \
        table, series, than, bound, false, false                                                   \
    }
#define MOST(table, series, than, bound)                                                           \
    {                                                                                              \
        table, series, than, bound, true, false                                                    \
    }
#define OWNED(table, copy, plain, threads)                                                         \
    LEAST(table, "shm pull, 1 thread", "streaming copy", copy),                                    \
        LEAST(table, "shm pull, 1 thread", "memcpy", plain),                                       \
        LEAST(table, "shm pull, 1 thread", "ucx, detects failures", 10),                           \
    {                                                                                              \
        table, "shm pull, 2 threads", "shm pull, 1 thread", threads, false, WALL_ONLY              \
    }
#define STREAMS(table, n)                                                                          \
    LEAST(table, "tcp pull x" n, "raw tcp x" n, 0.9),                                              \
        LEAST(table, "tcp push x" n, "raw tcp x" n, 0.9)
#define TCP(table)                                                                                 \
    STREAMS(table, "1"), STREAMS(table, "2"), STREAMS(table, "4"), STREAMS(table, "8")

const struct bench_goal bench_goals[] = {
    OWNED("block-16k", 0.95, 1.2, 1.5),
    OWNED("block-64k", 0.95, 1.3, 1.4),
    OWNED("block-1m", 0.95, 1.6, 1.2),
    LEAST("registered-16k", "shm pull, 1 thread", "process_vm_readv", 0.95),
    LEAST("registered-16k", "shm pull, 1 thread", "ucx cma", 1.4),
    // As it comes: two threads are the default.
    {"registered-16k", "shm pull, 2 threads", "ucx cma", 1.4, false, WALL_ONLY},
    LEAST("registered-64k", "shm pull, 1 thread", "process_vm_readv", 0.95),
    LEAST("registered-64k", "shm pull, 1 thread", "ucx cma", 1.1),
    {"registered-64k", "shm pull, 2 threads", "ucx cma", 1.1, false, WALL_ONLY},
    TCP("block-16k"),
    TCP("block-64k"),
    LEAST("block-64k", "tcp pull x2", "ucx tcp", 4),
    TCP("block-1m"),
    // The library copies such pieces with memcpy, and larger ones past the caches.
    LEAST("block-584", "shm pull, 1 thread", "memcpy", 0.8),
    LEAST("block-4k", "shm pull, 1 thread", "streaming copy", 0.8),
    MOST("latency", "shm pull, p50", NULL, 2),
    MOST("latency", "shm pull, p50", "bare copy, p50", 2.5),
    MOST("storm-plan", "112,000 x 1 byte", "112,000 x 44 KiB", 0.02),
    MOST("start", "shm 112,000 in a row", NULL, 200),
    MOST("start", "tcp 112,000 in a row", NULL, 200),
    MOST("start", "shm 112,000 scattered", NULL, 2000),
    MOST("start", "tcp 112,000 scattered", NULL, 2000),
    // An idle instance isn't quite still: it sends heartbeats.
    MOST("owner-cpu", "during shm pulls", "idle for as long", 1.25),
    MOST("links-shm-512", "link, ms each", NULL, 0.5),
    MOST("links-shm-512", "memory here, KiB each", NULL, 64),
    MOST("links-shm-512", "memory there, KiB each", NULL, 64),
    MOST("links-tcp-512", "link, ms each", NULL, 0.5),
    MOST("links-tcp-512", "memory here, KiB each", NULL, 64),
    MOST("links-tcp-512", "memory there, KiB each", NULL, 64),
    // A small pull doesn't wait for a large one on the same link.
    MOST("beside", "local, busy link, p99", "local, the large pull", 0.05),
    MOST("beside", "shm, busy link, p99", "shm, the large pull", 0.05),
    MOST("beside", "tcp x2, busy link, p99", "tcp x2, the large pull", 0.05),
};

const size_t bench_num_goals = sizeof(bench_goals) / sizeof(bench_goals[0]);

static const struct bench_table *
find_table(const char *name, const struct bench_table *tables, size_t num_tables)
{
    for (size_t i = 0; i < num_tables; i++) {
        if (strcmp(tables[i].name, name) == 0)
            return &tables[i];
    }
    return NULL;
}

bool
bench_goal_measure(const struct bench_goal *goal, const struct bench_options *options,
                   const struct bench_table *tables, size_t num_tables, double *ret_value)
{
    const struct bench_table *table = find_table(goal->table, tables, num_tables);
    if (table == NULL || (goal->wall_only && options->cpu_clock))
        return false;
    const struct bench_series *series = bench_find(table, goal->series);
    const struct bench_series *than = goal->than != NULL ? bench_find(table, goal->than) : NULL;
    if (series == NULL || (goal->than != NULL && than == NULL))
        return false;
    *ret_value = than != NULL ? bench_ratio(series, than) : bench_summarize(series).median;
    return true;
}

bool
bench_goal_met(const struct bench_goal *goal, double value)
{
    return goal->at_most ? value <= goal->bound : value >= goal->bound;
}

static void
print_goal(FILE *out, const struct bench_goal *goal, const struct bench_table *table, double value)
{
    bool times = goal->than != NULL;
    fprintf(out, "  %-8s%9.4g  %s %-6g %s%s%s: %s%s%s\n",
            bench_goal_met(goal, value) ? "met" : "NOT met", value,
            goal->at_most ? "at most" : "at least", goal->bound, times ? "times" : table->unit,
            times || table->unit[0] != '\0' ? ", " : "", goal->table, goal->series,
            times ? " / " : "", times ? goal->than : "");
}

void
bench_print_goals(FILE *out, const struct bench_options *options, const struct bench_table *tables,
                  size_t num_tables)
{
    bool first = true;
    for (size_t i = 0; i < bench_num_goals; i++) {
        const struct bench_goal *goal = &bench_goals[i];
        double value;
        if (!bench_goal_measure(goal, options, tables, num_tables, &value))
            continue;
        if (first)
            fprintf(out, "goals: what these tables shall show\n");
        first = false;
        print_goal(out, goal, find_table(goal->table, tables, num_tables), value);
    }
    fflush(out);
}

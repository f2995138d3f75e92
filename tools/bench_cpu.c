// What a pull costs the owner, who makes no call.
#include "bench.h"

#include <stdlib.h>
#include <time.h>

enum { PULLS_PER_ROUND = 8 };

static bool
owner_cpu(struct bench *bench, uint64_t *ret_ns)
{
    struct bench_order order = {.kind = BENCH_ORDER_CPU};
    return bench_owner_order(&bench->owner, &order, ret_ns, NULL, 0, &bench->error);
}

static bool
pull_some(struct bench_setup *setup, struct bench_node *node)
{
    for (unsigned i = 0; i < PULLS_PER_ROUND; i++) {
        if (!bench_node_pull(node, BENCH_OWNER_CLUSTER, &setup->owner_memory, setup->work,
                             &setup->blocks, &setup->bench->error))
            return false;
    }
    return true;
}

static void
sleep_ns(uint64_t ns)
{
    struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

// The owner's CPU time in percent of the time that passes; node NULL: nothing is pulled.
static bool
measure(struct bench_setup *setup, struct bench_node *node, uint64_t idle_ns, double *ret_percent,
        uint64_t *ret_wall_ns)
{
    uint64_t before, after;
    if (!owner_cpu(setup->bench, &before))
        return false;
    uint64_t begin = bench_now_ns();
    if (node == NULL)
        sleep_ns(idle_ns);
    else if (!pull_some(setup, node))
        return false;
    *ret_wall_ns = bench_now_ns() - begin;
    if (!owner_cpu(setup->bench, &after))
        return false;
    *ret_percent = 100.0 * (double)(after - before) / (double)*ret_wall_ns;
    return true;
}

static bool
run_round(struct bench_setup *setup, struct bench_table *table, unsigned round)
{
    struct bench_node *nodes[] = {&setup->host[2], NULL, &setup->tcp[2]};
    uint64_t wall_ns = 0;
    bench_progress(setup->bench, table, round);
    for (size_t i = 0; i < 3; i++) {
        double percent;
        if (!measure(setup, nodes[i], wall_ns, &percent, &wall_ns))
            return false;
        if (round > 0)
            bench_add(&table->series[i], percent);
    }
    return true;
}

bool
bench_run_owner_cpu(struct bench *bench, struct bench_table *table)
{
    struct bench_setup *setup = calloc(1, sizeof(*setup));
    struct bench_work work = {.parts = {{64 << 10, 4096, 4096, 1}}, .num_parts = 1};
    if (setup == NULL)
        return bench_fail(&bench->error, "out of memory");
    table->unit = "%";
    table->less_is_better = true;
    bench_compare(bench_table_add(table, "during shm pulls", false), "idle for as long");
    bench_table_add(table, "idle for as long", true);
    bench_table_add(table, "during tcp pulls x2", false);
    bool ok = bench_setup_open(setup, bench, &work, 1u << 2, 1u << 2);
    if (ok) {
        for (unsigned round = 0; ok && round <= bench->options->rounds; round++)
            ok = run_round(setup, table, round);
        bench_setup_close(setup);
    }
    free(setup);
    return ok;
}

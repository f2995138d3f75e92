// What it costs to say what is to move: starting a transfer side by side, and planning the storm.
#include "bench.h"

#include <stdlib.h>

enum { STORM_BLOCKS = 112000, STORM_BLOCK_BYTES = 44 << 10 };

// ---- starting ----

struct list {
    const char *name;
    size_t num_blocks;
    bool scattered;
};

static const struct list lists[] = {
    {"1 block", 1, false},
    {"1,000 scattered", 1000, true},
    {"10,000 scattered", 10000, true},
    {"112,000 scattered", STORM_BLOCKS, true},
    {"112,000 in a row", STORM_BLOCKS, false},
};

enum { NUM_LISTS = sizeof(lists) / sizeof(lists[0]) };

// Microseconds until the start has returned; the transfer itself is then cancelled.
static bool
start_one(struct bench_setup *setup, struct bench_node *node, const struct list *list,
          const uint64_t *row, double *ret_us)
{
    llm_cache_index src = {
        .struct_size = sizeof(src),
        .cluster_id = BENCH_OWNER_CLUSTER,
        .cache_id = setup->owner_memory.parts[0].cache_id,
    };
    llm_cache dst = {.struct_size = sizeof(dst), .cache_id = node->memory.parts[0].cache_id};
    uint64_t id;
    uint64_t begin = bench_now_ns();
    llm_status status = llm_start_pull_kv_blocks(
        node->dd, &src, &dst, list->scattered ? setup->blocks.src[0] : row, list->num_blocks,
        list->scattered ? setup->blocks.dst[0] : row, list->num_blocks, NULL, &id);
    *ret_us = (double)(bench_now_ns() - begin) / 1e3;
    if (status == LLM_SUCCESS)
        status = llm_transfer_release(node->dd, id);
    return status == LLM_SUCCESS ||
           bench_fail_status(&setup->bench->error, status, "llm_start_pull_kv_blocks");
}

static bool
start_rounds(struct bench_setup *setup, struct bench_table *table, const uint64_t *row)
{
    struct bench_node *nodes[] = {&setup->host[2], &setup->tcp[2]};
    for (unsigned round = 0; round <= setup->bench->options->rounds; round++) {
        bench_progress(setup->bench, table, round);
        for (size_t i = 0; i < (size_t)2 * NUM_LISTS; i++) {
            double us;
            if (!start_one(setup, nodes[i / NUM_LISTS], &lists[i % NUM_LISTS], row, &us))
                return false;
            if (round > 0)
                bench_add(&table->series[i], us);
        }
    }
    return true;
}

bool
bench_run_start(struct bench *bench, struct bench_table *table)
{
    struct bench_setup *setup = calloc(1, sizeof(*setup));
    uint64_t *row = malloc(STORM_BLOCKS * sizeof(*row));
    // Small blocks: only the lists count.
    struct bench_work work = {.parts = {{512, STORM_BLOCKS, STORM_BLOCKS, 1}}, .num_parts = 1};
    bool ok = setup != NULL && row != NULL;
    if (!ok)
        bench_fail(&bench->error, "out of memory");
    for (uint64_t i = 0; ok && i < STORM_BLOCKS; i++)
        row[i] = i;
    table->unit = "us";
    table->less_is_better = true;
    for (size_t i = 0; i < (size_t)2 * NUM_LISTS; i++) {
        char name[40];
        snprintf(name, sizeof(name), "%s %s", i < NUM_LISTS ? "shm" : "tcp",
                 lists[i % NUM_LISTS].name);
        bench_table_add(table, name, false);
    }
    if (ok && (ok = bench_setup_open(setup, bench, &work, 1u << 2, 1u << 2))) {
        ok = start_rounds(setup, table, row);
        bench_setup_close(setup);
    }
    free(row);
    free(setup);
    return ok;
}

// ---- planning ----

static bool
plan_round(struct bench_setup *setup, double *ret_ms)
{
    uint64_t begin = bench_now_ns();
    bool ok = bench_node_pull(&setup->host[2], BENCH_OWNER_CLUSTER, &setup->owner_memory,
                              setup->work, &setup->blocks, &setup->bench->error);
    *ret_ms = (double)(bench_now_ns() - begin) / 1e6;
    return ok;
}

static bool
plan_rounds(struct bench_setup *tiny, struct bench_setup *storm, struct bench_table *table)
{
    for (unsigned round = 0; round <= tiny->bench->options->rounds; round++) {
        double tiny_ms, storm_ms;
        bench_progress(tiny->bench, table, round);
        if (!plan_round(tiny, &tiny_ms) || !plan_round(storm, &storm_ms))
            return false;
        if (round > 0) {
            bench_add(&table->series[0], storm_ms);
            bench_add(&table->series[1], tiny_ms);
        }
    }
    return true;
}

// A pull of as many blocks of one byte: no more than planning, and 112,000 copies of a byte.
bool
bench_run_plan(struct bench *bench, struct bench_table *table)
{
    struct bench_setup *setups = calloc(2, sizeof(*setups));
    uint64_t slots = (512u << 20) / STORM_BLOCK_BYTES;
    struct bench_work tiny = {.parts = {{1, STORM_BLOCKS, STORM_BLOCKS, 1}}, .num_parts = 1};
    struct bench_work storm = {
        .parts = {{STORM_BLOCK_BYTES, slots, STORM_BLOCKS, 1}},
        .num_parts = 1,
    };
    if (setups == NULL)
        return bench_fail(&bench->error, "out of memory");
    table->unit = "ms";
    table->less_is_better = true;
    bench_table_add(table, "112,000 x 44 KiB", true);
    bench_compare(bench_table_add(table, "112,000 x 1 byte", false), "112,000 x 44 KiB");
    // One owner: the second setup would take the first one's place, so each has its own.
    struct bench second = *bench;
    bool ok = bench_owner_start(&second.owner, &bench->error);
    if (ok) {
        ok = bench_setup_open(&setups[0], bench, &tiny, 1u << 2, 0);
        if (ok && (ok = bench_setup_open(&setups[1], &second, &storm, 1u << 2, 0))) {
            ok = plan_rounds(&setups[0], &setups[1], table);
            bench_setup_close(&setups[1]);
        }
        if (setups[0].work != NULL)
            bench_setup_close(&setups[0]);
        bench_owner_stop(&second.owner);
    }
    if (!ok && bench->error.text[0] == '\0')
        bench->error = second.error;
    free(setups);
    return ok;
}

// How long one block of 4 KiB takes: alone, and beside a large transfer on the same link.
#include "bench.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 2000, SLOW_SAMPLES = 300, SMALL_BYTES = 4096, NUM_SMALL = 16384 };

// One small read, however it is done.
struct reader {
    const char *name;
    struct bench_setup *setup;
    struct bench_node *node; // NULL: no call of the library
    uint64_t cluster_id;
    uint32_t part;
    bool readv;
    unsigned samples;
};

// Which block is next, over all readers: none finds what another has just brought into the caches.
static uint64_t next_block;

static bool
read_one(const struct reader *reader)
{
    struct bench_setup *setup = reader->setup;
    uint32_t p = reader->part;
    uint64_t i = next_block++ % setup->work->parts[p].num_blocks;
    uint64_t src = setup->blocks.src[p][i];
    uint64_t dst = setup->blocks.dst[p][i];
    bool local = reader->cluster_id == BENCH_LOCAL_CLUSTER;
    const struct bench_memory *from = local ? &setup->local_prompt.memory : &setup->owner_memory;
    if (reader->node != NULL)
        return bench_node_pull_one(reader->node, reader->cluster_id, from->parts[p].cache_id, p,
                                   src, dst) == LLM_SUCCESS ||
               bench_fail(&setup->bench->error, "%s failed", reader->name);
    struct iovec to = {(void *)(setup->host[2].memory.parts[p].tensors[0] + dst * SMALL_BYTES),
                       SMALL_BYTES};
    struct iovec at = {(void *)(from->parts[p].tensors[0] + src * SMALL_BYTES), SMALL_BYTES};
    if (reader->readv)
        return bench_readv(setup->bench->owner.pid, &(struct bench_pieces){&at, 1},
                           &(struct bench_pieces){&to, 1}, &setup->bench->error);
    bench_copy_plain(to.iov_base, at.iov_base, SMALL_BYTES);
    return true;
}

// Microseconds, one for each read; `samples` of them.
static bool
sample(const struct reader *reader, double *us)
{
    for (unsigned i = 0; i < reader->samples; i++) {
        uint64_t begin = bench_now_ns();
        if (!read_one(reader))
            return false;
        us[i] = (double)(bench_now_ns() - begin) / 1e3;
    }
    return true;
}

// Adds a round's p50 and p99 to two series.
static bool
run_reader(const struct reader *reader, unsigned round, struct bench_series *p50,
           struct bench_series *p99)
{
    double us[SAMPLES];
    if (!sample(reader, us))
        return false;
    if (round > 0) {
        bench_add(p50, bench_quantile(us, reader->samples, 0.5));
        bench_add(p99, bench_quantile(us, reader->samples, 0.99));
    }
    return true;
}

static void
add_series(struct bench_table *table, const char *name, bool yardstick)
{
    static const char *const quantiles[] = {"p50", "p99"};
    for (size_t i = 0; i < 2; i++) {
        char text[40];
        snprintf(text, sizeof(text), "%s, %s", name, quantiles[i]);
        bench_table_add(table, text, yardstick);
    }
}

static void
compare_both(struct bench_table *table, size_t reader, const char *with)
{
    char text[40];
    snprintf(text, sizeof(text), "%s, p50", with);
    bench_compare(&table->series[2 * reader], text);
    snprintf(text, sizeof(text), "%s, p99", with);
    bench_compare(&table->series[2 * reader + 1], text);
}

static bool
run_rounds(struct bench *bench, struct bench_table *table, const struct reader *readers,
           size_t num_readers)
{
    for (unsigned round = 0; round <= bench->options->rounds; round++) {
        bench_progress(bench, table, round);
        for (size_t i = 0; i < num_readers; i++) {
            if (!run_reader(&readers[i], round, &table->series[2 * i], &table->series[2 * i + 1]))
                return false;
        }
    }
    return true;
}

bool
bench_run_latency(struct bench *bench, struct bench_table *table)
{
    struct bench_setup *setup = calloc(1, sizeof(*setup));
    struct bench_work work = {.parts = {{SMALL_BYTES, NUM_SMALL, NUM_SMALL, 1}}, .num_parts = 1};
    if (setup == NULL)
        return bench_fail(&bench->error, "out of memory");
    struct reader readers[] = {
        {"bare copy", setup, NULL, BENCH_LOCAL_CLUSTER, 0, false, SAMPLES},
        {"process_vm_readv", setup, NULL, BENCH_OWNER_CLUSTER, 0, true, SAMPLES},
        {"local pull", setup, &setup->host[2], BENCH_LOCAL_CLUSTER, 0, false, SAMPLES},
        {"shm pull", setup, &setup->host[2], BENCH_OWNER_CLUSTER, 0, false, SAMPLES},
        {"tcp pull x2", setup, &setup->tcp[2], BENCH_OWNER_CLUSTER, 0, false, SLOW_SAMPLES},
    };
    size_t num_readers = sizeof(readers) / sizeof(readers[0]);
    table->unit = "us";
    table->less_is_better = true;
    for (size_t i = 0; i < num_readers; i++)
        add_series(table, readers[i].name, readers[i].node == NULL);
    compare_both(table, 2, "bare copy");
    compare_both(table, 3, "bare copy");
    compare_both(table, 3, "process_vm_readv");
    bool ok = bench_setup_open(setup, bench, &work, 1u << 2, 1u << 2);
    if (ok) {
        ok = run_rounds(bench, table, readers, num_readers);
        bench_setup_close(setup);
    }
    free(setup);
    return ok;
}

// ---- beside a large one ----

enum { SERIES_BESIDE = 5 }; // of each transport

struct large {
    const struct reader *beside;
    atomic_bool stop;
    uint64_t num_pulls, ns;
    bool ok;
};

static void *
pull_large(void *arg)
{
    struct large *large = arg;
    const struct reader *beside = large->beside;
    struct bench_setup *setup = beside->setup;
    bool local = beside->cluster_id == BENCH_LOCAL_CLUSTER;
    struct bench_work only_large = *setup->work;
    struct bench_error error;
    only_large.num_parts = 1;
    uint64_t begin = bench_now_ns();
    large->ok = true;
    while (large->ok && !atomic_load(&large->stop)) {
        large->ok = bench_node_pull(beside->node, beside->cluster_id,
                                    local ? &setup->local_prompt.memory : &setup->owner_memory,
                                    &only_large, &setup->blocks, &error);
        large->num_pulls++;
    }
    large->ns = bench_now_ns() - begin;
    return NULL;
}

static bool
run_beside(const struct reader *reader, unsigned round, struct bench_series *p50,
           struct bench_series *p99, struct bench_series *whole)
{
    struct large large = {.beside = reader};
    pthread_t thread;
    if (pthread_create(&thread, NULL, pull_large, &large) != 0)
        return bench_fail(&reader->setup->bench->error, "can't start a thread");
    bool ok = run_reader(reader, round, p50, p99);
    atomic_store(&large.stop, true);
    pthread_join(thread, NULL);
    if (round > 0 && large.num_pulls > 0)
        bench_add(whole, (double)large.ns / 1e3 / (double)large.num_pulls);
    return ok && (large.ok || bench_fail(&reader->setup->bench->error, "the large pull failed"));
}

static bool
run_beside_rounds(struct bench *bench, struct bench_table *table, const struct reader *readers,
                  size_t num_readers)
{
    for (unsigned round = 0; round <= bench->options->rounds; round++) {
        bench_progress(bench, table, round);
        for (size_t i = 0; i < num_readers; i++) {
            struct bench_series *series = &table->series[SERIES_BESIDE * i];
            if (!run_reader(&readers[i], round, &series[0], &series[1]) ||
                !run_beside(&readers[i], round, &series[2], &series[3], &series[4]))
                return false;
        }
    }
    return true;
}

bool
bench_run_beside(struct bench *bench, struct bench_table *table)
{
    struct bench_setup *setup = calloc(1, sizeof(*setup));
    // 1 GiB, out of and into 256 MiB.
    struct bench_work work = {
        .parts = {{64 << 10, 4096, 16384, 1}, {SMALL_BYTES, NUM_SMALL, NUM_SMALL, 1}},
        .num_parts = 2,
    };
    if (setup == NULL)
        return bench_fail(&bench->error, "out of memory");
    struct reader readers[] = {
        {"local", setup, &setup->host[2], BENCH_LOCAL_CLUSTER, 1, false, SAMPLES},
        {"shm", setup, &setup->host[2], BENCH_OWNER_CLUSTER, 1, false, SAMPLES},
        {"tcp x2", setup, &setup->tcp[2], BENCH_OWNER_CLUSTER, 1, false, SLOW_SAMPLES},
    };
    size_t num_readers = sizeof(readers) / sizeof(readers[0]);
    table->unit = "us";
    table->less_is_better = true;
    for (size_t i = 0; i < num_readers; i++) {
        char name[32];
        snprintf(name, sizeof(name), "%s, idle link", readers[i].name);
        add_series(table, name, false);
        snprintf(name, sizeof(name), "%s, busy link", readers[i].name);
        add_series(table, name, false);
        snprintf(name, sizeof(name), "%s, the large pull", readers[i].name);
        bench_compare(&table->series[SERIES_BESIDE * i + 3], name);
        bench_table_add(table, name, false);
    }
    bool ok = bench_setup_open(setup, bench, &work, 1u << 2, 1u << 2);
    if (ok) {
        ok = run_beside_rounds(bench, table, readers, num_readers);
        bench_setup_close(setup);
    }
    free(setup);
    return ok;
}

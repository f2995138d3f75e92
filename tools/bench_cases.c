// The tables that can be asked for.
#include "bench.h"

#include <string.h>

static const uint64_t kib = 1024;

// So many slots that a transfer moves about `bytes`, over all parts alike.
static uint64_t
slots_for(uint64_t bytes, uint64_t bytes_per_slot)
{
    return bytes / bytes_per_slot > 2 // NOLINT: no part is empty
               ? bytes / bytes_per_slot
               : 2;
}

static bool
run_blocks(struct bench *bench, struct bench_table *table, const struct bench_case *which)
{
    char size[16], total[16];
    uint64_t slots = slots_for(bench->options->bytes, which->number);
    struct bench_work work = {.parts = {{which->number, slots, slots, 1}}, .num_parts = 1};
    snprintf(table->title, sizeof(table->title), "%llu scattered blocks of %s, %s a transfer",
             (unsigned long long)slots, bench_size(which->number, size),
             bench_size(bench_work_bytes(&work), total));
    bool ucx = bench->options->long_set || which->number >= 16 * kib;
    bool checked = which->number == 64 * kib || which->number == 1024 * kib;
    return bench_run_copy(bench, table, &work,
                          BENCH_OWN_WAYS | (ucx ? BENCH_UCX : 0) | (checked ? BENCH_CHECKED : 0));
}

static bool
run_registered(struct bench *bench, struct bench_table *table, const struct bench_case *which)
{
    char size[16], total[16];
    uint64_t slots = slots_for(bench->options->bytes, which->number);
    struct bench_work work = {
        .parts = {{which->number, slots, slots, 1}},
        .num_parts = 1,
        .registered = true,
    };
    snprintf(table->title, sizeof(table->title),
             "registered memory, %llu scattered blocks of %s, %s a transfer",
             (unsigned long long)slots, bench_size(which->number, size),
             bench_size(bench_work_bytes(&work), total));
    unsigned ways = bench->options->long_set
                        ? BENCH_OWN_WAYS | BENCH_UCX
                        : BENCH_HOST | BENCH_READV | BENCH_PUSHES | BENCH_UCX_HOST;
    bool checked = which->number == 64 * kib;
    return bench_run_copy(bench, table, &work, ways | (checked ? BENCH_CHECKED : 0));
}

// ---- models ----

struct model {
    const char *name;
    const char *title;
    uint32_t num_parts;
    struct {
        uint64_t block_bytes;
        uint32_t num_tensors;
        uint32_t blocks_per_unit; // beside so many of the other parts
    } parts[BENCH_PARTS_MAX];
};

static const struct model models[] = {
    {"llama-3.1-8b",
     "Llama-3.1-8B: 32 layers, K and V of 32 KiB for 16 tokens",
     1,
     {{32 << 10, 64, 1}}},
    {"llama-3.1-70b",
     "Llama-3.1-70B, one rank of 4: 80 layers, K and V of 8 KiB for 16 tokens",
     1,
     {{8 << 10, 160, 1}}},
    {"qwen3-235b",
     "Qwen3-235B: 94 layers, K and V of 16 KiB for 16 tokens",
     1,
     {{16 << 10, 188, 1}}},
    {"deepseek-r1",
     "DeepSeek-R1: 61 layers, rope of 16 KiB and latent of 128 KiB for 128 tokens",
     2,
     {{16 << 10, 61, 1}, {128 << 10, 61, 1}}},
    {"hybrid",
     "an uneven hybrid: pieces of 584 bytes, 8,448 bytes, 64 KiB and 1 MiB",
     4,
     {{584, 31, 64}, {8448, 31, 8}, {64 << 10, 10, 4}, {1 << 20, 4, 1}}},
};

static bool
run_model(struct bench *bench, struct bench_table *table, const struct bench_case *which)
{
    const struct model *model = models;
    struct bench_work work = {.num_parts = 0};
    char total[16];
    uint64_t unit_bytes = 0;
    while (strcmp(model->name, which->text) != 0)
        model++;
    for (uint32_t p = 0; p < model->num_parts; p++)
        unit_bytes += model->parts[p].block_bytes * model->parts[p].num_tensors *
                      model->parts[p].blocks_per_unit;
    uint64_t units = slots_for(bench->options->bytes, unit_bytes);
    for (uint32_t p = 0; p < model->num_parts; p++) {
        uint64_t slots = units * model->parts[p].blocks_per_unit;
        work.parts[p] = (struct bench_part){model->parts[p].block_bytes, slots, slots,
                                            model->parts[p].num_tensors};
    }
    work.num_parts = model->num_parts;
    snprintf(table->title, sizeof(table->title), "%.100s; %s", model->title,
             bench_size(bench_work_bytes(&work), total));
    return bench_run_copy(bench, table, &work,
                          BENCH_HOST | BENCH_READV | BENCH_TCP |
                              (bench->options->long_set ? BENCH_PUSHES | BENCH_UCX : 0));
}

// ---- the storm ----

static bool
run_storm(struct bench *bench, struct bench_table *table, const struct bench_case *which)
{
    enum { NUM_BLOCKS = 112000 };
    char total[16], pool[16];
    uint64_t block_bytes = which->number * kib;
    // Five pools of it, two that own and three that pull, and room for everything else.
    uint64_t room = bench_available_bytes() / 7;
    if (!bench->options->long_set && room > UINT64_C(1) << 30)
        room = UINT64_C(1) << 30;
    uint64_t slots = slots_for(room, block_bytes);
    if (slots > NUM_BLOCKS)
        slots = NUM_BLOCKS;
    // Whoever asks for small transfers wants a quick answer.
    uint64_t blocks = bench->options->bytes < 64 << 20
                          ? slots_for(bench->options->bytes, block_bytes)
                          : NUM_BLOCKS;
    if (slots > blocks)
        slots = blocks;
    struct bench_work work = {.parts = {{block_bytes, slots, blocks, 1}}, .num_parts = 1};
    snprintf(table->title, sizeof(table->title),
             "%llu scattered blocks of 44 KiB, %s, out of and into %s", (unsigned long long)blocks,
             bench_size(bench_work_bytes(&work), total),
             bench_size(bench_work_memory(&work), pool));
    return bench_run_copy(
        bench, table, &work,
        bench->options->long_set ? BENCH_HOST | BENCH_READV | BENCH_TCP | BENCH_FEW : BENCH_HOST);
}

static bool
run_plan(struct bench *bench, struct bench_table *table, const struct bench_case *which)
{
    (void)which;
    snprintf(table->title, sizeof(table->title),
             "what planning 112,000 blocks costs at most, beside copying them");
    return bench_run_plan(bench, table);
}

static bool
run_start(struct bench *bench, struct bench_table *table, const struct bench_case *which)
{
    (void)which;
    snprintf(table->title, sizeof(table->title),
             "until llm_start_pull_kv_blocks has returned, by number of blocks");
    return bench_run_start(bench, table);
}

static bool
run_latency(struct bench *bench, struct bench_table *table, const struct bench_case *which)
{
    (void)which;
    snprintf(table->title, sizeof(table->title), "one block of 4 KiB");
    return bench_run_latency(bench, table);
}

static bool
run_beside(struct bench *bench, struct bench_table *table, const struct bench_case *which)
{
    (void)which;
    snprintf(table->title, sizeof(table->title),
             "one block of 4 KiB, on an idle link and while 1 GiB is being pulled over it");
    return bench_run_beside(bench, table);
}

static bool
run_owner_cpu(struct bench *bench, struct bench_table *table, const struct bench_case *which)
{
    (void)which;
    snprintf(table->title, sizeof(table->title),
             "CPU time of the owner's process while 2 GiB are pulled, in %% of that time");
    return bench_run_owner_cpu(bench, table);
}

static bool
run_links(struct bench *bench, struct bench_table *table, const struct bench_case *which)
{
    snprintf(table->title, sizeof(table->title), "%llu links over %s, from one decoder",
             (unsigned long long)which->number, which->text);
    return bench_run_links(bench, table, (unsigned)which->number, which->text);
}

#define BLOCKS(name, bytes, long_only)                                                             \
    {                                                                                              \
        name, "scattered blocks, every transport", long_only, run_blocks, bytes, NULL              \
    }
#define MODEL(name)                                                                                \
    {                                                                                              \
        name, "the geometry of a model", false, run_model, 0, name                                 \
    }
#define LINKS(name, number, transport, long_only)                                                  \
    {                                                                                              \
        name, "time and memory of links", long_only, run_links, number, transport                  \
    }

const struct bench_case bench_cases[] = {
    BLOCKS("block-584", 584, false),
    BLOCKS("block-4k", 4 << 10, false),
    BLOCKS("block-16k", 16 << 10, false),
    BLOCKS("block-64k", 64 << 10, false),
    BLOCKS("block-256k", 256 << 10, true),
    BLOCKS("block-1m", 1 << 20, false),
    BLOCKS("block-4m", 4 << 20, true),
    {"registered-16k", "memory that the caller registered", false, run_registered, 16 << 10, NULL},
    {"registered-64k", "memory that the caller registered", false, run_registered, 64 << 10, NULL},
    {"storm", "112,000 blocks of 44 KiB", false, run_storm, 44, NULL},
    {"storm-plan", "what planning the storm costs", false, run_plan, 0, NULL},
    {"start", "starting a transfer side by side", false, run_start, 0, NULL},
    MODEL("llama-3.1-8b"),
    MODEL("llama-3.1-70b"),
    MODEL("qwen3-235b"),
    MODEL("deepseek-r1"),
    MODEL("hybrid"),
    {"latency", "one block of 4 KiB: p50 and p99", false, run_latency, 0, NULL},
    {"beside", "small pulls beside a large one", false, run_beside, 0, NULL},
    {"owner-cpu", "what pulls cost the owner", false, run_owner_cpu, 0, NULL},
    LINKS("links-shm-1", 1, "shm", false),
    LINKS("links-shm-64", 64, "shm", false),
    LINKS("links-shm-512", 512, "shm", false),
    LINKS("links-shm-4096", 4096, "shm", true),
    LINKS("links-tcp-1", 1, "tcp", false),
    LINKS("links-tcp-64", 64, "tcp", false),
    LINKS("links-tcp-512", 512, "tcp", true),
    LINKS("links-tcp-4096", 4096, "tcp", true),
};

const size_t bench_num_cases = sizeof(bench_cases) / sizeof(bench_cases[0]);

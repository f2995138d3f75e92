// One work, moved every way, round by round: a table of speeds.
#include "bench.h"

#include <stdlib.h>
#include <string.h>

enum way_kind { PULL, PUSH, COPY_PLAIN, COPY_STREAM, READV, RAW_TCP };
enum way_transport { LOCAL, SHM, TCP };

struct way {
    const char *name;
    unsigned needs; // BENCH_HOST, ...
    enum way_kind kind;
    enum way_transport transport;
    unsigned connections; // tcp
    bool long_only;
    const char *compared[BENCH_YARDSTICKS_MAX];
};

static const struct way all_ways[] = {
    {"memcpy", BENCH_HOST, COPY_PLAIN, LOCAL, 0, false, {NULL}},
    {"streaming copy", BENCH_HOST, COPY_STREAM, LOCAL, 0, false, {NULL}},
    {"process_vm_readv", BENCH_READV, READV, SHM, 0, false, {NULL}},
    {"local pull", BENCH_HOST, PULL, LOCAL, 0, false, {"memcpy", "streaming copy"}},
    {"local push", BENCH_HOST | BENCH_PUSHES, PUSH, LOCAL, 0, true, {"memcpy", "streaming copy"}},
    {"shm pull", BENCH_HOST, PULL, SHM, 0, false, {"memcpy", "streaming copy", "process_vm_readv"}},
    {"shm push", BENCH_HOST | BENCH_PUSHES, PUSH, SHM, 0, false, {"memcpy", "streaming copy"}},
    {"raw tcp x1", BENCH_TCP, RAW_TCP, TCP, 1, false, {NULL}},
    {"tcp pull x1", BENCH_TCP, PULL, TCP, 1, false, {"raw tcp x1"}},
    {"tcp push x1", BENCH_TCP | BENCH_PUSHES, PUSH, TCP, 1, false, {"raw tcp x1"}},
    {"raw tcp x2", BENCH_TCP, RAW_TCP, TCP, 2, false, {NULL}},
    {"tcp pull x2", BENCH_TCP, PULL, TCP, 2, false, {"raw tcp x2"}},
    {"tcp push x2", BENCH_TCP | BENCH_PUSHES, PUSH, TCP, 2, false, {"raw tcp x2"}},
    {"raw tcp x4", BENCH_TCP, RAW_TCP, TCP, 4, true, {NULL}},
    {"tcp pull x4", BENCH_TCP, PULL, TCP, 4, true, {"raw tcp x4"}},
    {"tcp push x4", BENCH_TCP | BENCH_PUSHES, PUSH, TCP, 4, true, {"raw tcp x4"}},
    {"raw tcp x8", BENCH_TCP, RAW_TCP, TCP, 8, true, {NULL}},
    {"tcp pull x8", BENCH_TCP, PULL, TCP, 8, true, {"raw tcp x8"}},
    {"tcp push x8", BENCH_TCP | BENCH_PUSHES, PUSH, TCP, 8, true, {"raw tcp x8"}},
};

enum { NUM_WAYS = sizeof(all_ways) / sizeof(all_ways[0]) };

// The ways of one table.
struct contest {
    struct bench_setup setup;
    struct bench_table *table;
    const struct way *ways[NUM_WAYS];
    size_t num_ways;
    double gigabytes;
};

static struct bench_node *
receiver(struct contest *c, const struct way *way)
{
    return way->transport == TCP ? &c->setup.tcp[way->connections] : &c->setup.host;
}

static bool
pull(struct contest *c, const struct way *way)
{
    bool local = way->transport == LOCAL;
    return bench_node_pull(receiver(c, way), local ? BENCH_LOCAL_CLUSTER : BENCH_OWNER_CLUSTER,
                           local ? &c->setup.local_prompt.memory : &c->setup.owner_memory,
                           c->setup.work, &c->setup.blocks, &c->setup.bench->error);
}

// The owner measures by itself.
static bool
push(struct contest *c, const struct way *way, uint64_t *ns)
{
    struct bench_node *node = receiver(c, way);
    struct bench_order order = {.kind = BENCH_ORDER_PUSH, .cluster_id = node->cluster_id};
    if (way->transport == LOCAL)
        return bench_node_push(&c->setup.local_prompt, node->cluster_id, &node->memory,
                               c->setup.work, &c->setup.blocks, &c->setup.bench->error);
    for (size_t i = 0; i < BENCH_PARTS_MAX; i++)
        order.ids[i] = node->memory.parts[i].cache_id;
    return bench_owner_order(&c->setup.bench->owner, &order, ns, NULL, 0, &c->setup.bench->error);
}

static bool
copy(struct contest *c, bench_copy how)
{
    bench_copy_work(c->setup.work, &c->setup.blocks, &c->setup.local_prompt.memory,
                    &c->setup.host.memory, how);
    return true;
}

static bool
raw_tcp(struct contest *c, const struct way *way)
{
    struct bench *bench = c->setup.bench;
    struct bench_order order = {.kind = BENCH_ORDER_RAW_SEND, .count = way->connections};
    struct bench_answer answer;
    if (!bench_send_all(bench->owner.fd, &order, sizeof(order)) ||
        !bench_raw_move(&c->setup.raw[way->connections], &c->setup.tcp_pieces[way->connections],
                        false, &bench->error))
        return false;
    return (bench_receive_all(bench->owner.fd, &answer, sizeof(answer)) && answer.ok) ||
           bench_fail(&bench->error, "owner: raw stream: %.250s", answer.error.text);
}

static bool
move(struct contest *c, const struct way *way, uint64_t *ret_ns)
{
    uint64_t owner_ns = 0;
    bool ok = false;
    uint64_t begin = bench_now_ns();
    switch (way->kind) {
    case PULL:
        ok = pull(c, way);
        break;
    case PUSH:
        ok = push(c, way, &owner_ns);
        break;
    case COPY_PLAIN:
        ok = copy(c, bench_copy_plain);
        break;
    case COPY_STREAM:
        ok = copy(c, bench_copy_stream);
        break;
    case READV:
        ok = bench_readv(c->setup.bench->owner.pid, &c->setup.owner_pieces, &c->setup.host_pieces,
                         &c->setup.bench->error);
        break;
    case RAW_TCP:
        ok = raw_tcp(c, way);
        break;
    }
    *ret_ns = owner_ns > 0 ? owner_ns : bench_now_ns() - begin;
    return ok;
}

// CPU time of both processes so far.
static bool
both_cpu(struct contest *c, uint64_t *ret_ns)
{
    struct bench_order order = {.kind = BENCH_ORDER_CPU};
    uint64_t owner_ns;
    if (!bench_owner_order(&c->setup.bench->owner, &order, &owner_ns, NULL, 0,
                           &c->setup.bench->error))
        return false;
    *ret_ns = bench_cpu_ns() + owner_ns;
    return true;
}

// By the clock that was asked for.
static bool
measure(struct contest *c, const struct way *way, uint64_t *ret_ns)
{
    uint64_t before, after, wall_ns;
    if (!c->setup.bench->options->cpu_clock)
        return move(c, way, ret_ns);
    if (!both_cpu(c, &before) || !move(c, way, &wall_ns) || !both_cpu(c, &after))
        return false;
    *ret_ns = after - before;
    return true;
}

// process_vm_readv may be forbidden; then its row is missing, and why is said.
static bool
is_possible(struct contest *c, const struct way *way)
{
    uint64_t ns;
    struct bench_error *error = &c->setup.bench->error;
    if (way->kind != READV || move(c, way, &ns))
        return true;
    snprintf(c->table->note, sizeof(c->table->note), "%.200s", error->text);
    return false;
}

static bool
choose_ways(struct contest *c, unsigned ways)
{
    bool long_set = c->setup.bench->options->long_set;
    for (size_t i = 0; i < NUM_WAYS; i++) {
        const struct way *way = &all_ways[i];
        if ((way->needs & ~ways) != 0 || (way->long_only && !long_set) || !is_possible(c, way))
            continue;
        if (way->kind == RAW_TCP && !bench_setup_raw(&c->setup, way->connections))
            return false;
        struct bench_series *series =
            bench_table_add(c->table, way->name, way->compared[0] == NULL);
        for (size_t k = 0; k < BENCH_YARDSTICKS_MAX && way->compared[k] != NULL; k++)
            bench_compare(series, way->compared[k]);
        c->ways[c->num_ways++] = way;
    }
    return true;
}

// Round 0 warms up.  Each round begins with another way, so that none always follows the same one.
static bool
run_rounds(struct contest *c)
{
    for (unsigned round = 0; round <= c->setup.bench->options->rounds; round++) {
        bench_progress(c->setup.bench, c->table, round);
        for (size_t i = 0; i < c->num_ways; i++) {
            size_t which = (i + round) % c->num_ways;
            uint64_t ns;
            if (!measure(c, c->ways[which], &ns))
                return false;
            if (round > 0)
                bench_add(&c->table->series[which], c->gigabytes / ((double)ns / 1e9));
        }
    }
    return true;
}

// After timing: each way once more, into memory that held something else.
static bool
verify(struct contest *c)
{
    struct bench_setup *setup = &c->setup;
    struct bench_error *error = &setup->bench->error;
    for (size_t i = 0; i < c->num_ways; i++) {
        uint64_t ns;
        struct bench_error wrong;
        struct bench_node *node = receiver(c, c->ways[i]);
        bench_clear(setup->work, &node->memory);
        if (!move(c, c->ways[i], &ns))
            return false;
        if (!bench_verify(setup->work, &setup->blocks, &node->memory, &wrong))
            return bench_fail(error, "%s: %.250s", c->ways[i]->name, wrong.text);
        c->table->series[i].verified = true;
    }
    return true;
}

static unsigned
wanted_connections(const struct bench *bench, unsigned ways)
{
    if ((ways & BENCH_TCP) == 0)
        return 0;
    return bench->options->long_set ? 1u << 1 | 1u << 2 | 1u << 4 | 1u << 8 : 1u << 1 | 1u << 2;
}

bool
bench_run_copy(struct bench *bench, struct bench_table *table, const struct bench_work *work,
               unsigned ways)
{
    struct contest *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return bench_fail(&bench->error, "out of memory");
    table->unit = bench->options->cpu_clock ? "GB/CPU s" : "GB/s";
    c->table = table;
    c->gigabytes = (double)bench_work_bytes(work) / 1e9;
    bool ok = bench_setup_open(&c->setup, bench, work, (ways & BENCH_HOST) != 0,
                               wanted_connections(bench, ways));
    if (ok) {
        ok = choose_ways(c, ways) && run_rounds(c) && verify(c);
        bench_setup_close(&c->setup);
    }
    free(c);
    return ok;
}

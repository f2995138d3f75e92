// One work, moved every way, round by round: a table of speeds.
#include "bench.h"

#include <stdlib.h>
#include <string.h>

enum way_kind { PULL, PUSH, COPY_PLAIN, COPY_STREAM, READV, RAW_TCP, UCX };
enum way_transport { LOCAL, SHM, TCP };

struct way {
    const char *name;
    unsigned needs; // BENCH_HOST, ...
    enum way_kind kind;
    enum way_transport transport;
    unsigned number; // of threads (local, shm), of connections (tcp), or an enum bench_ucx_way
    bool long_only;
    const char *compared[BENCH_YARDSTICKS_MAX];
};

#define COPIES "memcpy", "streaming copy"
#define TCP_WAYS(n, text)                                                                          \
    {"raw tcp x" text, BENCH_TCP, RAW_TCP, TCP, n, false, {NULL}},                                 \
        {"tcp pull x" text, BENCH_TCP, PULL, TCP, n, false, {"raw tcp x" text, "ucx tcp"}},        \
    {                                                                                              \
        "tcp push x" text, BENCH_TCP | BENCH_PUSHES, PUSH, TCP, n, false,                          \
        {                                                                                          \
            "raw tcp x" text                                                                       \
        }                                                                                          \
    }

static const struct way all_ways[] = {
    {"memcpy", BENCH_HOST, COPY_PLAIN, LOCAL, 1, false, {NULL}},
    {"streaming copy", BENCH_HOST, COPY_STREAM, LOCAL, 1, false, {NULL}},
    {"process_vm_readv", BENCH_READV, READV, SHM, 1, false, {NULL}},
    {"ucx cma", BENCH_UCX_HOST, UCX, SHM, BENCH_UCX_CMA, false, {NULL}},
    {"ucx tcp", BENCH_UCX_NET, UCX, TCP, BENCH_UCX_TCP, false, {NULL}},
    {"ucx, detects failures", BENCH_UCX_NET, UCX, SHM, BENCH_UCX_DETECT, false, {NULL}},
    {"local pull, 1 thread", BENCH_HOST, PULL, LOCAL, 1, false, {COPIES}},
    {"local pull, 2 threads", BENCH_HOST, PULL, LOCAL, 2, true, {"local pull, 1 thread"}},
    {"local push", BENCH_HOST | BENCH_PUSHES, PUSH, LOCAL, 1, true, {COPIES}},
    {"shm pull, 1 thread",
     BENCH_HOST,
     PULL,
     SHM,
     1,
     false,
     {COPIES, "process_vm_readv", "ucx cma", "ucx, detects failures"}},
    {"shm pull, 2 threads", BENCH_HOST, PULL, SHM, 2, false, {"shm pull, 1 thread", "ucx cma"}},
    {"shm push", BENCH_HOST | BENCH_PUSHES, PUSH, SHM, 1, false, {COPIES}},
    TCP_WAYS(1, "1"),
    TCP_WAYS(2, "2"),
    TCP_WAYS(4, "4"),
    TCP_WAYS(8, "8"),
    {"shm pull, crc32c", BENCH_HOST | BENCH_CHECKED, PULL, SHM, 1, false, {"shm pull, 1 thread"}},
    {"tcp pull x2, crc32c", BENCH_TCP | BENCH_CHECKED, PULL, TCP, 2, false, {"tcp pull x2"}},
    {"tcp push x2, crc32c",
     BENCH_TCP | BENCH_PUSHES | BENCH_CHECKED,
     PUSH,
     TCP,
     2,
     false,
     {"tcp push x2"}},
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
    if (way->kind == COPY_PLAIN || way->kind == COPY_STREAM || way->kind == READV)
        return &c->setup.host[1];
    if ((way->needs & BENCH_CHECKED) != 0)
        return way->transport == TCP ? &c->setup.checked_tcp : &c->setup.checked_host;
    return way->transport == TCP ? &c->setup.tcp[way->number] : &c->setup.host[way->number];
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
                    &c->setup.host[1].memory, how);
    return true;
}

static bool
raw_tcp(struct contest *c, const struct way *way)
{
    struct bench *bench = c->setup.bench;
    struct bench_order order = {.kind = BENCH_ORDER_RAW_SEND, .count = way->number};
    struct bench_answer answer;
    if (!bench_send_all(bench->owner.fd, &order, sizeof(order)) ||
        !bench_raw_move(&c->setup.raw[way->number], &c->setup.tcp_pieces[way->number], false,
                        &bench->error))
        return false;
    return (bench_receive_all(bench->owner.fd, &answer, sizeof(answer)) && answer.ok) ||
           bench_fail(&bench->error, "owner: raw stream: %.250s", answer.error.text);
}

static bool
ucx(struct contest *c, const struct way *way, enum bench_order_kind kind, uint64_t *ret_ns)
{
    struct bench *bench = c->setup.bench;
    struct bench_order order = {.kind = kind, .count = way->number};
    return bench_owner_order(&bench->ucx, &order, ret_ns, NULL, 0, &bench->error);
}

static bool
move(struct contest *c, const struct way *way, uint64_t *ret_ns)
{
    uint64_t their_ns = 0; // who measures by himself
    bool ok = false;
    uint64_t begin = bench_now_ns();
    switch (way->kind) {
    case PULL:
        ok = pull(c, way);
        break;
    case PUSH:
        ok = push(c, way, &their_ns);
        break;
    case COPY_PLAIN:
        ok = copy(c, bench_copy_plain);
        break;
    case COPY_STREAM:
        ok = copy(c, bench_copy_stream);
        break;
    case READV:
        ok = bench_readv(c->setup.bench->owner.pid, &c->setup.owner_pieces,
                         &c->setup.host_pieces[1], &c->setup.bench->error);
        break;
    case RAW_TCP:
        ok = raw_tcp(c, way);
        break;
    case UCX:
        ok = ucx(c, way, BENCH_ORDER_UCX_GET, &their_ns);
        break;
    }
    *ret_ns = their_ns > 0 ? their_ns : bench_now_ns() - begin;
    return ok;
}

// CPU time so far of the two processes at work.
static bool
both_cpu(struct contest *c, const struct way *way, uint64_t *ret_ns)
{
    struct bench *bench = c->setup.bench;
    struct bench_order order = {.kind = BENCH_ORDER_CPU};
    uint64_t their_ns;
    struct bench_owner *other = way->kind == UCX ? &bench->ucx : &bench->owner;
    if (!bench_owner_order(other, &order, &their_ns, NULL, 0, &bench->error))
        return false;
    *ret_ns = their_ns + (way->kind == UCX ? 0 : bench_cpu_ns());
    return true;
}

// By the clock that was asked for.
static bool
measure(struct contest *c, const struct way *way, uint64_t *ret_ns)
{
    uint64_t before, after, wall_ns;
    if (!c->setup.bench->options->cpu_clock)
        return move(c, way, ret_ns);
    if (!both_cpu(c, way, &before) || !move(c, way, &wall_ns) || !both_cpu(c, way, &after))
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

// A bit for each number of tcp connections.
static unsigned
wanted_connections(const struct bench *bench, unsigned ways)
{
    if ((ways & BENCH_TCP) == 0)
        return 0;
    if ((ways & BENCH_FEW) != 0)
        return 1u << 2;
    return bench->options->long_set ? 1u << 1 | 1u << 2 | 1u << 4 | 1u << 8 : 1u << 1 | 1u << 2;
}

static bool
is_wanted(const struct contest *c, const struct way *way, unsigned ways)
{
    const struct bench *bench = c->setup.bench;
    if ((way->needs & ~ways) != 0 || (way->long_only && !bench->options->long_set))
        return false;
    return (way->needs & BENCH_TCP) == 0 ||
           (wanted_connections(bench, ways) >> way->number & 1) != 0;
}

static bool
choose_ways(struct contest *c, unsigned ways)
{
    for (size_t i = 0; i < NUM_WAYS; i++) {
        const struct way *way = &all_ways[i];
        if (!is_wanted(c, way, ways) || !is_possible(c, way))
            continue;
        if (way->kind == RAW_TCP && !bench_setup_raw(&c->setup, way->number))
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
        if (c->ways[i]->kind == UCX) {
            if (!ucx(c, c->ways[i], BENCH_ORDER_UCX_CHECK, &ns))
                return false;
            c->table->series[i].verified = true;
            continue;
        }
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

// Where there is no UCX its rows are missing; bench says so once.
static unsigned
open_ucx(struct contest *c, unsigned ways)
{
    struct bench *bench = c->setup.bench;
    struct bench_order open = {.kind = BENCH_ORDER_OPEN, .work = *c->setup.work};
    if ((ways & BENCH_UCX) == 0 || bench->ucx_missing[0] != '\0')
        return ways & ~(unsigned)BENCH_UCX;
    if (bench_ucx_start(&bench->ucx, &bench->error) &&
        bench_owner_order(&bench->ucx, &open, NULL, bench->ucx_version, BENCH_UCX_VERSION_BYTES,
                          &bench->error))
        return ways;
    snprintf(c->table->note, sizeof(c->table->note), "no rows of UCX: %.200s", bench->error.text);
    return ways & ~(unsigned)BENCH_UCX;
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
    bool ok =
        bench_setup_open(&c->setup, bench, work, (ways & BENCH_HOST) != 0 ? 1u << 1 | 1u << 2 : 0,
                         wanted_connections(bench, ways));
    if (ok) {
        ok = ((ways & BENCH_CHECKED) == 0 ||
              bench_setup_checked(&c->setup, (ways & BENCH_HOST) != 0, (ways & BENCH_TCP) != 0)) &&
             choose_ways(c, open_ucx(c, ways)) && run_rounds(c) && verify(c);
        bench_owner_stop(&bench->ucx);
        bench_setup_close(&c->setup);
    }
    free(c);
    return ok;
}

// The owner's process: does what it is told until the other end hangs up.
#include "bench.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "tools.h"

struct owner {
    int fd;
    struct bench_work work;
    struct bench_blocks blocks;
    struct bench_node node;
    struct bench_pieces pieces;
    struct bench_raw raw[1 + BENCH_CONNECTIONS_MAX];
    struct bench_node *many;
    uint32_t num_many;
    // Of the answer.
    uint64_t value;
    const void *payload;
    uint32_t payload_bytes;
};

static void
close_prompt(struct owner *owner)
{
    bench_node_close(&owner->node);
    bench_blocks_fini(&owner->blocks);
    bench_pieces_fini(&owner->pieces);
    for (unsigned i = 0; i <= BENCH_CONNECTIONS_MAX; i++)
        bench_raw_close(&owner->raw[i]);
}

static bool
open_prompt(struct owner *owner, const struct bench_order *order, struct bench_error *error)
{
    struct bench_node_options options = {.cluster_id = order->cluster_id, .prompt = true};
    close_prompt(owner);
    owner->work = order->work;
    if (!bench_blocks_init(&owner->blocks, &owner->work, error) ||
        !bench_node_open(&owner->node, &options, error) ||
        !bench_node_caches(&owner->node, &owner->work, error) ||
        !bench_pieces_init(&owner->pieces, &owner->work, owner->blocks.src, &owner->node.memory,
                           error))
        return false;
    bench_fill(&owner->work, &owner->node.memory);
    owner->value = owner->node.port;
    owner->payload = &owner->node.memory;
    owner->payload_bytes = sizeof(owner->node.memory);
    return true;
}

static bool
push(struct owner *owner, const struct bench_order *order, struct bench_error *error)
{
    struct bench_memory remote;
    for (size_t i = 0; i < BENCH_PARTS_MAX; i++)
        remote.parts[i].cache_id = order->ids[i];
    uint64_t begin = bench_now_ns();
    bool ok = bench_node_push(&owner->node, order->cluster_id, &remote, &owner->work,
                              &owner->blocks, error);
    owner->value = bench_now_ns() - begin;
    return ok;
}

static void
close_many(struct owner *owner)
{
    for (uint32_t i = 0; i < owner->num_many; i++)
        bench_node_close(&owner->many[i]);
    free(owner->many);
    owner->many = NULL;
    owner->num_many = 0;
}

static bool
open_many(struct owner *owner, const struct bench_order *order, struct bench_error *error)
{
    static uint16_t ports[BENCH_CLUSTERS_MAX];
    close_many(owner);
    owner->many = calloc(order->count, sizeof(*owner->many));
    if (owner->many == NULL || order->count > BENCH_CLUSTERS_MAX)
        return bench_fail(error, "no memory for %u instances", order->count);
    for (uint32_t i = 0; i < order->count; i++) {
        struct bench_node_options options = {
            .cluster_id = order->cluster_id + i,
            .prompt = true,
            .pool_bytes = 1 << 20,
        };
        if (!bench_node_open(&owner->many[i], &options, error))
            return false;
        owner->num_many++;
        ports[i] = owner->many[i].port;
    }
    owner->payload = ports;
    owner->payload_bytes = order->count * (uint32_t)sizeof(ports[0]);
    return true;
}

static bool
raw_listen(struct owner *owner, uint32_t which, struct bench_error *error)
{
    uint16_t port;
    if (!bench_raw_listen(&owner->raw[which], &port, error))
        return false;
    owner->value = port;
    return true;
}

static bool
obey(struct owner *owner, const struct bench_order *order, struct bench_error *error)
{
    uint32_t count = order->count;
    switch (order->kind) {
    case BENCH_ORDER_OPEN:
        return open_prompt(owner, order, error);
    case BENCH_ORDER_PUSH:
        return push(owner, order, error);
    case BENCH_ORDER_RAW_LISTEN:
        return raw_listen(owner, count, error);
    case BENCH_ORDER_RAW_ACCEPT:
        return bench_raw_accept(&owner->raw[count], count, error);
    case BENCH_ORDER_RAW_SEND:
        return bench_raw_move(&owner->raw[count], &owner->pieces, true, error);
    case BENCH_ORDER_CLOSE:
        close_prompt(owner);
        return true;
    case BENCH_ORDER_CPU:
        owner->value = bench_cpu_ns();
        return true;
    case BENCH_ORDER_MEMORY:
        owner->value = bench_memory_bytes();
        return true;
    case BENCH_ORDER_MANY_OPEN:
        return open_many(owner, order, error);
    case BENCH_ORDER_MANY_CLOSE:
        close_many(owner);
        return true;
    default:
        return bench_fail(error, "an order that nobody knows: %u", order->kind);
    }
}

static bool
answer(struct owner *owner, bool ok, const struct bench_error *error)
{
    struct bench_answer said = {
        .ok = ok,
        .error = *error,
        .value = owner->value,
        .payload_bytes = ok ? owner->payload_bytes : 0,
    };
    return bench_send_all(owner->fd, &said, sizeof(said)) &&
           bench_send_all(owner->fd, owner->payload, said.payload_bytes);
}

int
bench_owner_main(int fd)
{
    static struct owner owner;
    struct bench_order order;
    bool talking = true;
    bench_raise_descriptor_limit();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    owner.fd = fd;
    for (unsigned i = 0; i <= BENCH_CONNECTIONS_MAX; i++)
        owner.raw[i].listener = -1;
    while (talking && bench_receive_all(fd, &order, sizeof(order))) {
        struct bench_error error = {""};
        owner.value = 0;
        owner.payload_bytes = 0;
        talking = answer(&owner, obey(&owner, &order, &error), &error);
    }
    close_many(&owner);
    close_prompt(&owner);
    return TOOL_OK;
}

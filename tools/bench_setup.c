// Both processes made ready to move a work.
#include "bench.h"

#include <string.h>

static bool
open_owner(struct bench_setup *setup)
{
    struct bench_order order = {
        .kind = BENCH_ORDER_OPEN,
        .cluster_id = BENCH_OWNER_CLUSTER,
        .work = *setup->work,
    };
    uint64_t port;
    if (!bench_owner_order(&setup->bench->owner, &order, &port, &setup->owner_memory,
                           sizeof(setup->owner_memory), &setup->bench->error))
        return false;
    setup->owner_port = (uint16_t)port;
    return bench_pieces_init(&setup->owner_pieces, setup->work, setup->blocks.src,
                             &setup->owner_memory, &setup->bench->error);
}

static bool
open_node(struct bench_setup *setup, struct bench_node *node,
          const struct bench_node_options *options, struct bench_pieces *pieces)
{
    struct bench_error *error = &setup->bench->error;
    return bench_node_open(node, options, error) && bench_node_caches(node, setup->work, error) &&
           bench_node_link(node, BENCH_OWNER_CLUSTER, setup->owner_port, error) &&
           bench_pieces_init(pieces, setup->work, setup->blocks.dst, &node->memory, error);
}

static bool
open_local_prompt(struct bench_setup *setup)
{
    struct bench_error *error = &setup->bench->error;
    struct bench_node_options prompt = {.cluster_id = BENCH_LOCAL_CLUSTER, .prompt = true};
    if (!bench_node_open(&setup->local_prompt, &prompt, error) ||
        !bench_node_caches(&setup->local_prompt, setup->work, error))
        return false;
    bench_fill(setup->work, &setup->local_prompt.memory);
    return true;
}

static bool
open_host(struct bench_setup *setup, unsigned threads)
{
    struct bench_node *node = &setup->host[threads];
    struct bench_node_options decoder = {
        .cluster_id = BENCH_HOST_CLUSTER + threads,
        .transports = "local,shm",
        .threads = threads,
    };
    return open_node(setup, node, &decoder, &setup->host_pieces[threads]) &&
           bench_node_link(node, BENCH_LOCAL_CLUSTER, setup->local_prompt.port,
                           &setup->bench->error);
}

static bool
open_tcp(struct bench_setup *setup, unsigned connections)
{
    struct bench_node_options decoder = {
        .cluster_id = BENCH_TCP_CLUSTER + connections,
        .transports = "tcp",
        .connections = connections,
    };
    return open_node(setup, &setup->tcp[connections], &decoder, &setup->tcp_pieces[connections]);
}

static bool
open_checked(struct bench_setup *setup, struct bench_node *node,
             const struct bench_node_options *options)
{
    struct bench_error *error = &setup->bench->error;
    return bench_node_open(node, options, error) && bench_node_caches(node, setup->work, error) &&
           bench_node_link(node, BENCH_OWNER_CLUSTER, setup->owner_port, error);
}

bool
bench_setup_checked(struct bench_setup *setup, bool host, bool tcp)
{
    struct bench_node_options one_thread = {
        .cluster_id = BENCH_CHECKED_CLUSTER,
        .transports = "shm",
        .threads = 1,
        .checked = true,
    };
    struct bench_node_options two_connections = {
        .cluster_id = BENCH_CHECKED_CLUSTER + 1,
        .transports = "tcp",
        .connections = 2,
        .checked = true,
    };
    return (!host || open_checked(setup, &setup->checked_host, &one_thread)) &&
           (!tcp || open_checked(setup, &setup->checked_tcp, &two_connections));
}

bool
bench_setup_raw(struct bench_setup *setup, unsigned connections)
{
    struct bench *bench = setup->bench;
    struct bench_order listen = {.kind = BENCH_ORDER_RAW_LISTEN, .count = connections};
    struct bench_order accept = {.kind = BENCH_ORDER_RAW_ACCEPT, .count = connections};
    uint64_t port;
    return bench_owner_order(&bench->owner, &listen, &port, NULL, 0, &bench->error) &&
           bench_raw_connect(&setup->raw[connections], connections, (uint16_t)port,
                             &bench->error) &&
           bench_owner_order(&bench->owner, &accept, NULL, NULL, 0, &bench->error);
}

bool
bench_setup_open(struct bench_setup *setup, struct bench *bench, const struct bench_work *work,
                 unsigned threads, unsigned connections)
{
    memset(setup, 0, sizeof(*setup));
    setup->bench = bench;
    setup->work = work;
    for (unsigned n = 0; n <= BENCH_CONNECTIONS_MAX; n++)
        setup->raw[n].listener = -1;
    bool ok = bench_blocks_init(&setup->blocks, work, &bench->error) && open_owner(setup) &&
              (threads == 0 || open_local_prompt(setup));
    for (unsigned n = 1; ok && n <= BENCH_THREADS_MAX; n++) {
        if ((threads >> n & 1) != 0)
            ok = open_host(setup, n);
    }
    for (unsigned n = 1; ok && n <= BENCH_CONNECTIONS_MAX; n++) {
        if ((connections >> n & 1) != 0)
            ok = open_tcp(setup, n);
    }
    if (!ok)
        bench_setup_close(setup);
    return ok;
}

void
bench_setup_close(struct bench_setup *setup)
{
    struct bench_order close = {.kind = BENCH_ORDER_CLOSE};
    struct bench_error ignored;
    for (unsigned n = 1; n <= BENCH_THREADS_MAX; n++) {
        bench_node_close(&setup->host[n]);
        bench_pieces_fini(&setup->host_pieces[n]);
    }
    for (unsigned n = 1; n <= BENCH_CONNECTIONS_MAX; n++) {
        bench_node_close(&setup->tcp[n]);
        bench_pieces_fini(&setup->tcp_pieces[n]);
        bench_raw_close(&setup->raw[n]);
    }
    bench_node_close(&setup->checked_host);
    bench_node_close(&setup->checked_tcp);
    bench_node_close(&setup->local_prompt);
    bench_pieces_fini(&setup->owner_pieces);
    bench_blocks_fini(&setup->blocks);
    bench_owner_order(&setup->bench->owner, &close, NULL, NULL, 0, &ignored);
}

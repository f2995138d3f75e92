// What links cost: time to make them, memory to keep them.
#include "bench.h"

#include <stdlib.h>
#include <string.h>

// Of the owner, which has an instance of its own for each link.
enum { DESCRIPTORS_PER_LINK = 14 };

enum { LINKS_PER_CALL = 16, FIRST_CLUSTER = 1000, LINK_TIMEOUT_MS = 30000 };

static bool
change(llm_datadist *dd, const uint16_t *ports, unsigned num_links, bool link,
       struct bench_error *error)
{
    llm_ip_info local = {"127.0.0.1", 0};
    llm_ip_info remote[LINKS_PER_CALL];
    llm_cluster_info clusters[LINKS_PER_CALL];
    for (unsigned first = 0; first < num_links; first += LINKS_PER_CALL) {
        unsigned count = num_links - first < LINKS_PER_CALL ? num_links - first : LINKS_PER_CALL;
        for (unsigned i = 0; i < count; i++) {
            remote[i] = (llm_ip_info){"127.0.0.1", ports[first + i]};
            clusters[i] = (llm_cluster_info){
                .struct_size = sizeof(clusters[i]),
                .remote_cluster_id = FIRST_CLUSTER + first + i,
                .local_ip_infos = &local,
                .num_local_ip_infos = 1,
                .remote_ip_infos = &remote[i],
                .num_remote_ip_infos = 1,
            };
        }
        llm_status status =
            link ? llm_link_clusters(dd, clusters, count, NULL, NULL, LINK_TIMEOUT_MS)
                 : llm_unlink_clusters(dd, clusters, count, NULL, NULL, LINK_TIMEOUT_MS, 0);
        if (status != LLM_SUCCESS)
            return bench_fail_status(error, status,
                                     link ? "llm_link_clusters" : "llm_unlink_clusters");
    }
    return true;
}

static bool
owner_memory(struct bench *bench, uint64_t *ret_bytes)
{
    struct bench_order order = {.kind = BENCH_ORDER_MEMORY};
    return bench_owner_order(&bench->owner, &order, ret_bytes, NULL, 0, &bench->error);
}

static double
kib_each(uint64_t before, uint64_t after, unsigned num_links)
{
    return after > before ? (double)(after - before) / 1024 / num_links : 0;
}

static bool
run_round(struct bench *bench, struct bench_table *table, llm_datadist *dd, const uint16_t *ports,
          unsigned num_links, unsigned round)
{
    uint64_t owner_before, owner_after;
    if (!owner_memory(bench, &owner_before))
        return false;
    uint64_t before = bench_memory_bytes();
    uint64_t begin = bench_now_ns();
    if (!change(dd, ports, num_links, true, &bench->error))
        return false;
    uint64_t linked = bench_now_ns();
    uint64_t after = bench_memory_bytes();
    if (!owner_memory(bench, &owner_after))
        return false;
    uint64_t unlinking = bench_now_ns();
    if (!change(dd, ports, num_links, false, &bench->error))
        return false;
    uint64_t end = bench_now_ns();
    bench_add(&table->series[0], (double)(linked - begin) / 1e6 / num_links);
    bench_add(&table->series[1], (double)(end - unlinking) / 1e6 / num_links);
    // Later rounds reuse what the first one took.
    if (round == 0) {
        bench_add(&table->series[2], kib_each(before, after, num_links));
        bench_add(&table->series[3], kib_each(owner_before, owner_after, num_links));
    }
    return true;
}

static bool
run_rounds(struct bench *bench, struct bench_table *table, const uint16_t *ports,
           unsigned num_links, const char *transport)
{
    struct bench_node node;
    struct bench_node_options options = {
        .cluster_id = BENCH_HOST_CLUSTER,
        .transports = transport,
        .pool_bytes = 1 << 20,
    };
    if (!bench_node_open(&node, &options, &bench->error))
        return false;
    bool ok = true;
    for (unsigned round = 0; ok && round < bench->options->rounds; round++) {
        bench_progress(bench, table, round);
        ok = run_round(bench, table, node.dd, ports, num_links, round);
    }
    bench_node_close(&node);
    return ok;
}

bool
bench_run_links(struct bench *bench, struct bench_table *table, unsigned num_links,
                const char *transport)
{
    static uint16_t ports[BENCH_CLUSTERS_MAX];
    struct bench_order open = {
        .kind = BENCH_ORDER_MANY_OPEN,
        .count = num_links,
        .cluster_id = FIRST_CLUSTER,
    };
    struct bench_order close = {.kind = BENCH_ORDER_MANY_CLOSE};
    uint64_t limit = bench_raise_descriptor_limit();
    table->unit = "";
    table->less_is_better = true;
    if (limit < (uint64_t)num_links * DESCRIPTORS_PER_LINK) {
        snprintf(table->note, sizeof(table->note),
                 "left out: %u links need about %u open files in one process, the limit is %llu",
                 num_links, num_links * DESCRIPTORS_PER_LINK, (unsigned long long)limit);
        return true;
    }
    bench_table_add(table, "link, ms each", false);
    bench_table_add(table, "unlink, ms each", false);
    bench_table_add(table, "memory here, KiB each", false);
    bench_table_add(table, "memory there, KiB each", false);
    bool ok = bench_owner_order(&bench->owner, &open, NULL, ports, num_links * sizeof(ports[0]),
                                &bench->error) &&
              run_rounds(bench, table, ports, num_links, transport);
    struct bench_error ignored;
    bench_owner_order(&bench->owner, &close, NULL, NULL, 0, &ignored);
    return ok;
}

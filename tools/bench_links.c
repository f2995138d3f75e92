// What links cost: time to make them, memory to keep them.
#include "bench.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

// Open files, of the one that links, and of the owners, who have an instance for each link.
enum { DESCRIPTORS_HERE = 4, DESCRIPTORS_THERE = 18, DESCRIPTORS_ELSE = 64 };

// Owners' processes, each with as many instances as it may open files for.
enum { OWNERS_MAX = 64 };

struct owners {
    struct bench_owner list[OWNERS_MAX];
    unsigned num;
};

enum { LINKS_PER_CALL = 16, FIRST_CLUSTER = 1000, LINK_TIMEOUT_MS = 30000 };

static bool
change(llm_datadist *dd, const uint16_t *ports, unsigned num_links, bool link,
       struct bench_error *error)
{
    llm_ip_info local = {"0.0.0.0", 0};
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
owner_memory(struct owners *owners, uint64_t *ret_bytes, struct bench_error *error)
{
    struct bench_order order = {.kind = BENCH_ORDER_MEMORY};
    *ret_bytes = 0;
    for (unsigned i = 0; i < owners->num; i++) {
        uint64_t bytes;
        if (!bench_owner_order(&owners->list[i], &order, &bytes, NULL, 0, error))
            return false;
        *ret_bytes += bytes;
    }
    return true;
}

static double
kib_each(uint64_t before, uint64_t after, unsigned num_links)
{
    return after > before ? (double)(after - before) / 1024 / num_links : 0;
}

static bool
run_round(struct bench *bench, struct bench_table *table, struct owners *owners, llm_datadist *dd,
          const uint16_t *ports, unsigned num_links, unsigned round)
{
    uint64_t owner_before, owner_after;
    // What earlier tables have freed would be taken first, and not be seen.
    malloc_trim(0);
    if (!owner_memory(owners, &owner_before, &bench->error))
        return false;
    uint64_t before = bench_memory_bytes();
    uint64_t begin = bench_now_ns();
    if (!change(dd, ports, num_links, true, &bench->error))
        return false;
    uint64_t linked = bench_now_ns();
    uint64_t after = bench_memory_bytes();
    if (!owner_memory(owners, &owner_after, &bench->error))
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
run_rounds(struct bench *bench, struct bench_table *table, struct owners *owners,
           const uint16_t *ports, unsigned num_links, const char *transport)
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
        ok = run_round(bench, table, owners, node.dd, ports, num_links, round);
    }
    bench_node_close(&node);
    return ok;
}

static bool
open_owners(struct owners *owners, uint16_t *ports, unsigned num_links, unsigned per_owner,
            struct bench_error *error)
{
    for (unsigned first = 0; first < num_links; first += per_owner) {
        struct bench_owner *owner = &owners->list[owners->num];
        unsigned count = num_links - first < per_owner ? num_links - first : per_owner;
        struct bench_order open = {
            .kind = BENCH_ORDER_MANY_OPEN,
            .count = count,
            .cluster_id = FIRST_CLUSTER + first,
        };
        if (!bench_owner_start(owner, error))
            return false;
        owners->num++;
        if (!bench_owner_order(owner, &open, NULL, ports + first, count * sizeof(ports[0]), error))
            return false;
    }
    return true;
}

static void
stop_owners(struct owners *owners)
{
    for (unsigned i = 0; i < owners->num; i++)
        bench_owner_stop(&owners->list[i]);
}

bool
bench_run_links(struct bench *bench, struct bench_table *table, unsigned num_links,
                const char *transport)
{
    static uint16_t ports[BENCH_CLUSTERS_MAX];
    struct owners owners = {.num = 0};
    uint64_t limit = bench_raise_descriptor_limit();
    uint64_t per_owner =
        limit > DESCRIPTORS_ELSE ? (limit - DESCRIPTORS_ELSE) / DESCRIPTORS_THERE : 0;
    table->unit = "";
    table->less_is_better = true;
    if (limit < (uint64_t)num_links * DESCRIPTORS_HERE + DESCRIPTORS_ELSE ||
        per_owner * OWNERS_MAX < num_links) {
        snprintf(table->note, sizeof(table->note),
                 "left out: %u links need about %u open files in one process, the limit is %llu",
                 num_links, num_links * DESCRIPTORS_HERE + DESCRIPTORS_ELSE,
                 (unsigned long long)limit);
        return true;
    }
    bench_table_add(table, "link, ms each", false);
    bench_table_add(table, "unlink, ms each", false);
    bench_table_add(table, "memory here, KiB each", false);
    bench_table_add(table, "memory there, KiB each", false);
    bool ok = open_owners(&owners, ports, num_links, (unsigned)per_owner, &bench->error) &&
              run_rounds(bench, table, &owners, ports, num_links, transport);
    stop_owners(&owners);
    return ok;
}

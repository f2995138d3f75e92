// Instances of the library, as a program makes them.
#include "bench.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static const int32_t link_timeout_ms = 10000;

static size_t
fill_options(const struct bench_node_options *wanted, llm_option *options, char connections[8],
             char threads[8], char pool[64])
{
    size_t n = 0;
    options[n++] = (llm_option){LLM_OPTION_DEVICE_ID, "0"};
    options[n++] = (llm_option){LLM_OPTION_SYNC_CACHE_WAIT_TIME, "60000"};
    // The machine is overloaded on purpose: silence is no sign of death.
    options[n++] = (llm_option){LLM_OPTION_LIVENESS_TIME, "30000"};
    if (wanted->prompt)
        options[n++] = (llm_option){LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"};
    if (wanted->transports != NULL)
        options[n++] = (llm_option){LLM_OPTION_TRANSPORTS, wanted->transports};
    if (wanted->checked)
        options[n++] = (llm_option){LLM_OPTION_CHECKSUM, "crc32c"};
    if (wanted->connections > 0) {
        snprintf(connections, 8, "%u", wanted->connections);
        options[n++] = (llm_option){LLM_OPTION_TCP_CONNECTIONS, connections};
    }
    if (wanted->threads > 0) {
        snprintf(threads, 8, "%u", wanted->threads);
        options[n++] = (llm_option){LLM_OPTION_COPY_THREADS, threads};
    }
    if (wanted->pool_bytes > 0) {
        snprintf(pool, 64, "{\"buf_pool_size\": %llu}", (unsigned long long)wanted->pool_bytes);
        options[n++] = (llm_option){LLM_OPTION_BUF_POOL_CFG, pool};
    }
    return n;
}

bool
bench_node_open(struct bench_node *node, const struct bench_node_options *wanted,
                struct bench_error *error)
{
    char connections[8], threads[8], pool[64];
    llm_option options[9];
    memset(node, 0, sizeof(*node));
    node->cluster_id = wanted->cluster_id;
    llm_status status = llm_create(wanted->cluster_id,
                                   wanted->prompt ? LLM_ROLE_PROMPT : LLM_ROLE_DECODER, &node->dd);
    if (status != LLM_SUCCESS)
        return bench_fail_status(error, status, "llm_create");
    size_t num_options = fill_options(wanted, options, connections, threads, pool);
    status = llm_initialize(node->dd, options, num_options);
    if (status == LLM_SUCCESS && wanted->prompt)
        status = llm_get_listen_port(node->dd, 0, &node->port);
    if (status == LLM_SUCCESS)
        return true;
    bench_fail_status(error, status, "llm_initialize");
    bench_node_close(node);
    return false;
}

void
bench_node_close(struct bench_node *node)
{
    llm_destroy(node->dd);
    node->dd = NULL;
    for (size_t p = 0; p < BENCH_PARTS_MAX; p++) {
        if (node->own[p] != NULL)
            munmap(node->own[p], node->own_bytes[p]);
        node->own[p] = NULL;
    }
}

// desc->shape points to shape.
static void
describe(const struct bench_part *part, int64_t shape[2], llm_cache_desc *desc)
{
    shape[0] = (int64_t)part->num_slots;
    shape[1] = (int64_t)part->block_bytes;
    *desc = (llm_cache_desc){
        .struct_size = sizeof(*desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = part->num_tensors,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = 2,
    };
}

static bool
allocate(struct bench_node *node, const struct bench_work *work, struct bench_error *error)
{
    for (uint32_t p = 0; p < work->num_parts; p++) {
        int64_t shape[2];
        llm_cache_desc desc;
        llm_cache cache = {
            .struct_size = sizeof(cache),
            .tensor_addrs = node->memory.parts[p].tensors,
            .num_tensor_addrs = BENCH_TENSORS_MAX,
        };
        describe(&work->parts[p], shape, &desc);
        llm_status status = llm_allocate_cache(node->dd, &desc, &cache);
        if (status != LLM_SUCCESS)
            return bench_fail_status(error, status, "llm_allocate_cache");
        node->memory.parts[p].cache_id = cache.cache_id;
    }
    return true;
}

static bool
register_own(struct bench_node *node, const struct bench_work *work, struct bench_error *error)
{
    for (uint32_t p = 0; p < work->num_parts; p++) {
        const struct bench_part *part = &work->parts[p];
        int64_t shape[2];
        uint64_t addresses[BENCH_TENSORS_MAX];
        llm_cache_desc desc;
        size_t bytes = part->num_slots * part->block_bytes;
        void *own = mmap(NULL, bytes * part->num_tensors, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (own == MAP_FAILED)
            return bench_fail(error, "mmap: %s", strerror(errno));
        node->own[p] = own;
        node->own_bytes[p] = bytes * part->num_tensors;
        for (uint32_t t = 0; t < part->num_tensors; t++) {
            node->memory.parts[p].tensors[t] = (uintptr_t)own + t * bytes;
            addresses[t] = node->memory.parts[p].tensors[t];
        }
        describe(part, shape, &desc);
        llm_status status = llm_register_kv_cache(node->dd, &desc, addresses, part->num_tensors,
                                                  &node->memory.parts[p].cache_id);
        if (status != LLM_SUCCESS)
            return bench_fail_status(error, status, "llm_register_kv_cache");
    }
    return true;
}

bool
bench_node_caches(struct bench_node *node, const struct bench_work *work, struct bench_error *error)
{
    return work->registered ? register_own(node, work, error) : allocate(node, work, error);
}

bool
bench_node_link(struct bench_node *node, uint64_t cluster_id, uint16_t port,
                struct bench_error *error)
{
    llm_ip_info local = {"0.0.0.0", 0};
    llm_ip_info remote = {"127.0.0.1", port};
    llm_cluster_info cluster = {
        .struct_size = sizeof(cluster),
        .remote_cluster_id = cluster_id,
        .local_ip_infos = &local,
        .num_local_ip_infos = 1,
        .remote_ip_infos = &remote,
        .num_remote_ip_infos = 1,
    };
    llm_status status = llm_link_clusters(node->dd, &cluster, 1, NULL, NULL, link_timeout_ms);
    return status == LLM_SUCCESS || bench_fail_status(error, status, "llm_link_clusters");
}

// A layer of one tensor where two don't divide the cache.
static llm_kv_cache_ext_param
all_layers(const struct bench_part *part)
{
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    param.tensor_num_per_layer = part->num_tensors % 2 == 0 ? 2 : 1;
    return param;
}

bool
bench_node_pull(struct bench_node *node, uint64_t cluster_id, const struct bench_memory *remote,
                const struct bench_work *work, const struct bench_blocks *blocks,
                struct bench_error *error)
{
    for (uint32_t p = 0; p < work->num_parts; p++) {
        llm_cache_index src = {
            .struct_size = sizeof(src),
            .cluster_id = cluster_id,
            .cache_id = remote->parts[p].cache_id,
        };
        llm_cache dst = {
            .struct_size = sizeof(dst),
            .cache_id = node->memory.parts[p].cache_id,
        };
        size_t num_blocks = work->parts[p].num_blocks;
        llm_kv_cache_ext_param param = all_layers(&work->parts[p]);
        llm_status status = llm_pull_kv_blocks(node->dd, &src, &dst, blocks->src[p], num_blocks,
                                               blocks->dst[p], num_blocks, &param);
        if (status != LLM_SUCCESS)
            return bench_fail_status(error, status, "llm_pull_kv_blocks");
    }
    return true;
}

bool
bench_node_push(struct bench_node *node, uint64_t cluster_id, const struct bench_memory *remote,
                const struct bench_work *work, const struct bench_blocks *blocks,
                struct bench_error *error)
{
    for (uint32_t p = 0; p < work->num_parts; p++) {
        llm_cache src = {
            .struct_size = sizeof(src),
            .cache_id = node->memory.parts[p].cache_id,
        };
        llm_cache_index dst = {
            .struct_size = sizeof(dst),
            .cluster_id = cluster_id,
            .cache_id = remote->parts[p].cache_id,
        };
        size_t num_blocks = work->parts[p].num_blocks;
        llm_kv_cache_ext_param param = all_layers(&work->parts[p]);
        llm_status status = llm_push_kv_blocks(node->dd, &src, &dst, blocks->src[p], num_blocks,
                                               blocks->dst[p], num_blocks, &param);
        if (status != LLM_SUCCESS)
            return bench_fail_status(error, status, "llm_push_kv_blocks");
    }
    return true;
}

llm_status
bench_node_pull_one(struct bench_node *node, uint64_t cluster_id, int64_t remote_id, uint32_t part,
                    uint64_t src_block, uint64_t dst_block)
{
    llm_cache_index src = {
        .struct_size = sizeof(src),
        .cluster_id = cluster_id,
        .cache_id = remote_id,
    };
    llm_cache dst = {
        .struct_size = sizeof(dst),
        .cache_id = node->memory.parts[part].cache_id,
    };
    return llm_pull_kv_blocks(node->dd, &src, &dst, &src_block, 1, &dst_block, 1, NULL);
}

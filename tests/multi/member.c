#include "multi/member.h"

#include <inttypes.h>
#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// What the library's thread writes and reads for a peer is ordered by what the peers tell each other,
// which the thread sanitizer can't see.
#define QUIET __attribute__((no_sanitize("thread")))

static const char loopback[] = "127.0.0.1";

// ---- life ----

llm_status
member_try_open(struct member *member, const struct member_setup *setup)
{
    char listen[256] = "";
    char devices[64] = "";
    char sync_ms[16];
    char liveness_ms[16];
    char pool[64];
    char dead_ms[16];
    unsigned liveness = setup->liveness_ms != 0 ? setup->liveness_ms : SCALED(5000u, 20000u);
    memset(member, 0, sizeof(*member));
    member->cluster_id = setup->cluster_id;
    member->num_devices = setup->num_devices != 0 ? setup->num_devices : 1;
    for (size_t i = 0; i < member->num_devices; i++) {
        const char *separator = i > 0 ? ";" : "";
        snprintf(devices + strlen(devices), sizeof(devices) - strlen(devices), "%s%zu", separator,
                 i);
        snprintf(listen + strlen(listen), sizeof(listen) - strlen(listen), "%s127.0.0.%zu:%u",
                 separator, i + 1, i == 0 ? setup->port : 0);
    }
    snprintf(pool, sizeof(pool), "{\"buf_pool_size\": %" PRIu64 "}", setup->pool_bytes);
    snprintf(sync_ms, sizeof(sync_ms), "%u", setup->sync_ms != 0 ? setup->sync_ms : 60000);
    snprintf(liveness_ms, sizeof(liveness_ms), "%u", liveness);
    snprintf(dead_ms, sizeof(dead_ms), "%u", setup->dead_ms != 0 ? setup->dead_ms : 10000);
    llm_option options[] = {
        {LLM_OPTION_LISTEN_IP_INFO, listen},
        {LLM_OPTION_DEVICE_ID, devices},
        {LLM_OPTION_SYNC_CACHE_WAIT_TIME, sync_ms},
        {LLM_OPTION_LIVENESS_TIME, liveness_ms},
        {LLM_OPTION_DEAD_TIME, dead_ms},
        {LLM_OPTION_TRANSPORTS, setup->transports != NULL ? setup->transports : "auto"},
        {LLM_OPTION_LOG_LEVEL, setup->warns ? "warn" : "off"},
        {LLM_OPTION_CHECKSUM, setup->checksum ? "crc32c" : "none"},
        {LLM_OPTION_BUF_POOL_CFG, pool}, // the last one, which may be left out
    };
    size_t num_options = sizeof(options) / sizeof(options[0]) - (setup->pool_bytes == 0);
    llm_status status = llm_create(setup->cluster_id, setup->role, &member->dd);
    if (status == LLM_SUCCESS)
        status = llm_initialize(member->dd, options, num_options);
    for (size_t i = 0;
         status == LLM_SUCCESS && setup->role == LLM_ROLE_PROMPT && i < member->num_devices; i++)
        status = llm_get_listen_port(member->dd, i, &member->ports[i]);
    return status;
}

void
member_open(struct member *member, const struct member_setup *setup)
{
    assert_int_equal(member_try_open(member, setup), LLM_SUCCESS);
}

void
member_close(struct member *member)
{
    llm_destroy(member->dd);
    member->dd = NULL;
}

// ---- caches ----

int64_t
member_allocate(struct member *member, size_t index, uint32_t num_tensors, uint64_t num_slots,
                uint64_t stride)
{
    struct member_cache *cache = &member->caches[index];
    int64_t shape[] = {(int64_t)num_slots, (int64_t)stride};
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = num_tensors,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = 2,
    };
    memset(cache, 0, sizeof(*cache));
    cache->cache.struct_size = sizeof(cache->cache);
    cache->cache.tensor_addrs = cache->addresses;
    cache->cache.num_tensor_addrs = sizeof(cache->addresses) / sizeof(cache->addresses[0]);
    assert_int_equal(llm_allocate_cache(member->dd, &desc, &cache->cache), LLM_SUCCESS);
    cache->cache.desc = NULL; // it was on this stack
    cache->num_slots = num_slots;
    cache->stride = stride;
    cache->num_tensors = num_tensors;
    return cache->cache.cache_id;
}

void
member_deallocate(struct member *member, size_t index)
{
    assert_int_equal(llm_deallocate_cache(member->dd, member->caches[index].cache.cache_id),
                     LLM_SUCCESS);
}

// The first word of a tensor; the others count up in odd steps.
static uint64_t
first_word(uint64_t seed, size_t device, uint32_t tensor)
{
    uint64_t word = seed * UINT64_C(0x9e3779b97f4a7c15) + device * 1000003 + tensor + 1;
    word = (word ^ word >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    word = (word ^ word >> 27) * UINT64_C(0x94d049bb133111eb);
    return word ^ word >> 31;
}

static const uint64_t step_word = UINT64_C(0xd1342543de82ef95);

static uint64_t *
words_of(const struct member_cache *cache, size_t device, uint32_t tensor)
{
    return (uint64_t *)cache->addresses[device * cache->num_tensors + tensor];
}

QUIET void
member_fill(struct member *member, size_t index, uint64_t seed)
{
    const struct member_cache *cache = &member->caches[index];
    for (size_t device = 0; device < member->num_devices; device++) {
        for (uint32_t tensor = 0; tensor < cache->num_tensors; tensor++) {
            uint64_t *words = words_of(cache, device, tensor);
            uint64_t first = first_word(seed, device, tensor);
            uint64_t num_words = cache->num_slots * cache->stride / 8;
            for (uint64_t i = 0; i < num_words; i++)
                words[i] = seed == 0 ? 0 : first + i * step_word;
        }
    }
}

QUIET bool
member_holds(const struct member *member, size_t index, size_t device, uint32_t tensor,
             uint64_t slot, uint64_t seed, uint32_t seed_tensor, uint64_t seed_slot)
{
    const struct member_cache *cache = &member->caches[index];
    uint64_t num_words = cache->stride / 8;
    const uint64_t *words = words_of(cache, device, tensor) + slot * num_words;
    uint64_t first = first_word(seed, device, seed_tensor) + seed_slot * num_words * step_word;
    for (uint64_t i = 0; i < num_words; i++) {
        if (words[i] != (seed == 0 ? 0 : first + i * step_word))
            return false;
    }
    return true;
}

bool
member_holds_all(struct member *member, size_t index, uint64_t seed)
{
    const struct member_cache *cache = &member->caches[index];
    bool all = true;
    for (size_t device = 0; device < member->num_devices; device++) {
        for (uint32_t tensor = 0; tensor < cache->num_tensors; tensor++) {
            for (uint64_t slot = 0; slot < cache->num_slots; slot++)
                all = all && member_holds(member, index, device, tensor, slot, seed, tensor, slot);
        }
    }
    return all;
}

QUIET uint64_t
member_checksum(struct member *member, size_t index)
{
    const struct member_cache *cache = &member->caches[index];
    uint64_t sum = 14695981039346656037u;
    for (size_t device = 0; device < member->num_devices; device++) {
        for (uint32_t tensor = 0; tensor < cache->num_tensors; tensor++) {
            const uint64_t *words = words_of(cache, device, tensor);
            uint64_t num_words = cache->num_slots * cache->stride / 8;
            for (uint64_t i = 0; i < num_words; i++)
                sum = (sum ^ words[i]) * 1099511628211u;
        }
    }
    return sum;
}

QUIET uint64_t
member_peek(const struct member *member, size_t index, size_t device, uint32_t tensor)
{
    return *(volatile uint64_t *)words_of(&member->caches[index], device, tensor);
}

// ---- links ----

// 127.0.0.1 for the first device and so on.
static void
fill_cluster(const struct member *member, uint64_t cluster_id, const uint16_t *ports,
             llm_cluster_info *ret_cluster, llm_ip_info *local, llm_ip_info *remote)
{
    static const char *const addresses[MEMBER_DEVICES_MAX] = {
        "127.0.0.1",
        "127.0.0.2",
        "127.0.0.3",
        "127.0.0.4",
    };
    for (size_t i = 0; i < member->num_devices; i++) {
        local[i] = (llm_ip_info){.ip = loopback};
        remote[i] = (llm_ip_info){.ip = addresses[i], .port = ports != NULL ? ports[i] : 0};
    }
    *ret_cluster = (llm_cluster_info){
        .struct_size = sizeof(*ret_cluster),
        .remote_cluster_id = cluster_id,
        .local_ip_infos = local,
        .num_local_ip_infos = member->num_devices,
        .remote_ip_infos = remote,
        .num_remote_ip_infos = member->num_devices,
    };
}

llm_status
member_link(struct member *member, uint64_t cluster_id, const uint16_t *ports, int32_t timeout_ms)
{
    llm_cluster_info cluster;
    llm_ip_info local[MEMBER_DEVICES_MAX];
    llm_ip_info remote[MEMBER_DEVICES_MAX];
    fill_cluster(member, cluster_id, ports, &cluster, local, remote);
    return llm_link_clusters(member->dd, &cluster, 1, NULL, NULL, timeout_ms);
}

llm_status
member_unlink(struct member *member, uint64_t cluster_id, const uint16_t *ports, int32_t timeout_ms,
              bool force)
{
    llm_cluster_info cluster;
    llm_ip_info local[MEMBER_DEVICES_MAX];
    llm_ip_info remote[MEMBER_DEVICES_MAX];
    fill_cluster(member, cluster_id, ports, &cluster, local, remote);
    // To a prompt, the decoder is where its connections come from.
    for (size_t i = 0; ports == NULL && i < member->num_devices; i++)
        remote[i].ip = loopback;
    return llm_unlink_clusters(member->dd, &cluster, 1, NULL, NULL, timeout_ms, force);
}

unsigned
member_link_state(struct member *member, uint64_t cluster_id, char transport[16])
{
    llm_link_info info = {.struct_size = sizeof(info)};
    if (llm_get_link_info(member->dd, cluster_id, &info) != LLM_SUCCESS)
        return 0;
    if (transport != NULL)
        memcpy(transport, info.transport, sizeof(info.transport));
    return info.state;
}

void
member_await_state(struct member *member, uint64_t cluster_id, unsigned state)
{
    AWAIT(member_link_state(member, cluster_id, NULL) == state);
}

// ---- transfers ----

static void
list_blocks(const struct transfer *transfer, uint64_t **ret_src, uint64_t **ret_dst,
            size_t *ret_num)
{
    size_t num = transfer->count * (transfer->repeat != 0 ? transfer->repeat : 1);
    uint64_t *src = calloc(num, sizeof(*src));
    uint64_t *dst = calloc(num, sizeof(*dst));
    assert_true(src != NULL && dst != NULL);
    for (size_t i = 0; i < num; i++) {
        src[i] = i % transfer->count;
        dst[i] = (src[i] * transfer->step + transfer->shift) % transfer->count;
    }
    *ret_src = src;
    *ret_dst = dst;
    *ret_num = num;
}

static llm_status
transfer_blocks(struct member *member, const struct transfer *transfer,
                const llm_cache_index *remote, const llm_kv_cache_ext_param *param)
{
    uint64_t *src;
    uint64_t *dst;
    size_t num;
    const llm_cache *local = &member->caches[transfer->index].cache;
    list_blocks(transfer, &src, &dst, &num);
    llm_status status =
        transfer->kind == TRANSFER_PULL_BLOCKS
            ? llm_pull_kv_blocks(member->dd, remote, local, src, num, dst, num, param)
            : llm_push_kv_blocks(member->dd, local, remote, src, num, dst, num, param);
    free(src);
    free(dst);
    return status;
}

llm_status
member_transfer(struct member *member, const struct transfer *transfer)
{
    const llm_cache *local = &member->caches[transfer->index].cache;
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    llm_cache_index remote = {
        .struct_size = sizeof(remote),
        .cluster_id = transfer->cluster_id,
        .cache_id = transfer->remote_cache,
    };
    if (transfer->has_layers) {
        memcpy(param.src_layer_range, transfer->src_layers, sizeof(param.src_layer_range));
        memcpy(param.dst_layer_range, transfer->dst_layers, sizeof(param.dst_layer_range));
    }
    switch (transfer->kind) {
    case TRANSFER_PULL_SLOT:
        remote.batch_index = (uint32_t)transfer->count;
        return llm_pull_kv_cache(member->dd, &remote, local, (uint32_t)transfer->shift, -1, &param);
    case TRANSFER_PUSH_SLOT:
        remote.batch_index = (uint32_t)transfer->shift;
        return llm_push_kv_cache(member->dd, local, &remote, (uint32_t)transfer->count, -1, &param);
    default:
        return transfer_blocks(member, transfer, &remote, &param);
    }
}

// ---- in another process: the commands ----

static void
serve_open(struct member *member, struct talk *talk, const char *words)
{
    char transports[32];
    unsigned role;
    unsigned port;
    struct member_setup setup = {.transports = transports};
    assert_int_equal(sscanf(words, "%" SCNu64 " %u %31s %u %u %u %u %u", &setup.cluster_id, &role,
                            transports, &setup.num_devices, &setup.sync_ms, &setup.liveness_ms,
                            &setup.dead_ms, &port),
                     8);
    setup.role = (llm_role)role;
    setup.port = (uint16_t)port;
    llm_status status = member_try_open(member, &setup);
    talk_say(talk, "%u %u %u %u %u", status, member->ports[0], member->ports[1], member->ports[2],
             member->ports[3]);
}

static void
serve_cache(struct member *member, struct talk *talk, const char *command, const char *words)
{
    size_t index;
    uint32_t num_tensors = 0;
    uint64_t a = 0;
    uint64_t b = 0;
    if (strcmp(command, "allocate") == 0) {
        assert_int_equal(
            sscanf(words, "%zu %" SCNu32 " %" SCNu64 " %" SCNu64, &index, &num_tensors, &a, &b), 4);
        talk_say(talk, "%" PRId64, member_allocate(member, index, num_tensors, a, b));
        return;
    }
    assert_true(sscanf(words, "%zu %" SCNu64, &index, &a) >= 1);
    if (strcmp(command, "await") == 0) {
        // Until somebody writes into a cache that was filled with zeros.
        AWAIT(member_peek(member, index, 0, 0) != 0);
        talk_say(talk, "ok");
    } else if (strcmp(command, "fill") == 0) {
        member_fill(member, index, a);
        talk_say(talk, "ok");
    } else if (strcmp(command, "checksum") == 0) {
        talk_say(talk, "%" PRIu64, member_checksum(member, index));
    } else if (strcmp(command, "holds") == 0) {
        talk_say(talk, "%s", member_holds_all(member, index, a) ? "yes" : "no");
    } else {
        member_deallocate(member, index);
        talk_say(talk, "ok");
    }
}

static void
serve_link(struct member *member, struct talk *talk, const char *command, const char *words)
{
    uint64_t cluster_id;
    unsigned p[MEMBER_DEVICES_MAX] = {0};
    uint16_t ports[MEMBER_DEVICES_MAX];
    assert_true(sscanf(words, "%" SCNu64 " %u %u %u %u", &cluster_id, &p[0], &p[1], &p[2], &p[3]) >=
                1);
    for (size_t i = 0; i < MEMBER_DEVICES_MAX; i++)
        ports[i] = (uint16_t)p[i];
    if (strcmp(command, "link") == 0)
        talk_say(talk, "%u", member_link(member, cluster_id, ports, PATIENCE_MS));
    else if (strcmp(command, "unlink") == 0)
        talk_say(talk, "%u",
                 member_unlink(member, cluster_id, p[0] != 0 ? ports : NULL, PATIENCE_MS, false));
    else
        talk_say(talk, "%u", member_link_state(member, cluster_id, NULL));
}

static void
serve_transfer(struct member *member, struct talk *talk, const char *words, bool forever)
{
    unsigned kind;
    int has_layers;
    unsigned num_done = 0;
    struct transfer t = {0};
    assert_int_equal(sscanf(words,
                            "%u %" SCNu64 " %" SCNd64 " %zu %" SCNu64 " %" SCNu64 " %" SCNu64
                            " %u %d %d %d %d %d",
                            &kind, &t.cluster_id, &t.remote_cache, &t.index, &t.count, &t.step,
                            &t.shift, &t.repeat, &t.src_layers[0], &t.src_layers[1],
                            &t.dst_layers[0], &t.dst_layers[1], &has_layers),
                     13);
    t.kind = (enum transfer_kind)kind;
    t.has_layers = has_layers != 0;
    llm_status status = member_transfer(member, &t);
    while (forever && status == LLM_SUCCESS) {
        if (num_done++ == 0)
            talk_say(talk, "begun");
        status = member_transfer(member, &t);
    }
    talk_say(talk, "%u", status);
}

int
member_serve(struct talk *talk)
{
    char line[LINE_BYTES];
    char command[32];
    struct member member = {0};
    while (talk_hear(talk, line, -1)) {
        int used = 0;
        assert_int_equal(sscanf(line, "%31s %n", command, &used), 1);
        const char *words = line + used;
        if (strcmp(command, "open") == 0)
            serve_open(&member, talk, words);
        else if (strstr(command, "link") != NULL || strcmp(command, "state") == 0)
            serve_link(&member, talk, command, words);
        else if (strcmp(command, "transfer") == 0 || strcmp(command, "forever") == 0)
            serve_transfer(&member, talk, words, command[0] == 'f');
        else
            serve_cache(&member, talk, command, words);
    }
    if (member.dd != NULL)
        member_close(&member);
    return 0;
}

// ---- in another process: asking for it ----

static uint64_t
number(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 10);
    assert_true(end != text && *end == '\0');
    return value;
}

void
remote_open(struct process *process, const struct member_setup *setup,
            uint16_t ports[MEMBER_DEVICES_MAX])
{
    char answer[LINE_BYTES];
    unsigned status;
    unsigned p[MEMBER_DEVICES_MAX];
    process_start(process, "member");
    process_ask(process, answer, "open %" PRIu64 " %u %s %u %u %u %u %u", setup->cluster_id,
                (unsigned)setup->role, setup->transports != NULL ? setup->transports : "auto",
                setup->num_devices, setup->sync_ms, setup->liveness_ms, setup->dead_ms,
                setup->port);
    assert_int_equal(sscanf(answer, "%u %u %u %u %u", &status, &p[0], &p[1], &p[2], &p[3]), 5);
    assert_int_equal(status, LLM_SUCCESS);
    for (size_t i = 0; ports != NULL && i < MEMBER_DEVICES_MAX; i++)
        ports[i] = (uint16_t)p[i];
}

int64_t
remote_allocate(struct process *process, size_t index, uint32_t num_tensors, uint64_t num_slots,
                uint64_t stride)
{
    char answer[LINE_BYTES];
    process_ask(process, answer, "allocate %zu %" PRIu32 " %" PRIu64 " %" PRIu64, index,
                num_tensors, num_slots, stride);
    return (int64_t)number(answer);
}

void
remote_fill(struct process *process, size_t index, uint64_t seed)
{
    PROCESS_EXPECT(process, "ok", "fill %zu %" PRIu64, index, seed);
}

llm_status
remote_link(struct process *process, uint64_t cluster_id, const uint16_t *ports, unsigned num_ports)
{
    char answer[LINE_BYTES];
    uint16_t p[MEMBER_DEVICES_MAX] = {0};
    memcpy(p, ports, num_ports * sizeof(*ports));
    process_ask(process, answer, "link %" PRIu64 " %u %u %u %u", cluster_id, p[0], p[1], p[2],
                p[3]);
    return (llm_status)number(answer);
}

static void
say_transfer(struct process *process, const char *command, const struct transfer *t)
{
    talk_say(&process->talk,
             "%s %u %" PRIu64 " %" PRId64 " %zu %" PRIu64 " %" PRIu64 " %" PRIu64
             " %u %d %d %d %d %d",
             command, (unsigned)t->kind, t->cluster_id, t->remote_cache, t->index, t->count,
             t->step, t->shift, t->repeat, t->src_layers[0], t->src_layers[1], t->dst_layers[0],
             t->dst_layers[1], t->has_layers);
}

void
remote_begin_transfer(struct process *process, const struct transfer *transfer)
{
    say_transfer(process, "transfer", transfer);
}

llm_status
remote_end_transfer(struct process *process)
{
    char answer[LINE_BYTES];
    if (!talk_hear(&process->talk, answer, PATIENCE_MS))
        fail_msg("the process ended during a transfer");
    return (llm_status)number(answer);
}

llm_status
remote_transfer(struct process *process, const struct transfer *transfer)
{
    remote_begin_transfer(process, transfer);
    return remote_end_transfer(process);
}

unsigned
remote_link_state(struct process *process, uint64_t cluster_id)
{
    char answer[LINE_BYTES];
    process_ask(process, answer, "state %" PRIu64, cluster_id);
    return (unsigned)number(answer);
}

uint64_t
remote_checksum(struct process *process, size_t index)
{
    char answer[LINE_BYTES];
    process_ask(process, answer, "checksum %zu", index);
    return number(answer);
}

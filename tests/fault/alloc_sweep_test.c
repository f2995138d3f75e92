// Every allocation of every call fails once: the first, the second, ... until none is left to fail.
// Each time the call must end in time with a status that says so, write no output, change nothing
// else; and the same call works when it is repeated with memory.
//
// Both ends of a link live in this process and share the countdown, so the peer's allocations fail
// as well, now and then that of a heartbeat.  The liveness time is the longest there is: nothing may
// depend on a silence to end.
#include <dirent.h>
#include <sched.h>

#include "base/log.h"
#include "base/mem.h"
#include "engine/engine.h"
#include "unit/unit.h"

enum {
    PROMPT = 1,
    DECODER = 2,
    NUM_TENSORS = 4,
    NUM_SLOTS = 4,
    SLOT_BYTES = 3000,
    TENSOR_BYTES = NUM_SLOTS * SLOT_BYTES,
    SWEEP_MAX = 500,
    LINK_MS = 5000,
    UNWRITTEN = 0x5a,
};

// ---- instances ----

struct instance {
    llm_datadist *dd;
    size_t num_devices;
    uint16_t ports[2];
};

static void
finish_setting_up(struct instance *instance, llm_role role)
{
    for (size_t i = 0; role == LLM_ROLE_PROMPT && i < instance->num_devices; i++)
        assert_true(llm_get_listen_port(instance->dd, i, &instance->ports[i]) == LLM_SUCCESS);
}

// The options of an instance; `ret_options` has room for 8.
static size_t
list_options(llm_role role, size_t num_devices, const char *transports, llm_option *ret_options)
{
    size_t count = 0;
    ret_options[count++] = (llm_option){LLM_OPTION_DEVICE_ID, num_devices == 2 ? "0;1" : "0"};
    if (role == LLM_ROLE_PROMPT)
        ret_options[count++] =
            (llm_option){LLM_OPTION_LISTEN_IP_INFO,
                         num_devices == 2 ? "127.0.0.1:0;127.0.0.2:0" : "127.0.0.1:0"};
    ret_options[count++] = (llm_option){LLM_OPTION_SYNC_CACHE_WAIT_TIME, "3000"};
    ret_options[count++] = (llm_option){LLM_OPTION_LIVENESS_TIME, "600000"};
    ret_options[count++] = (llm_option){LLM_OPTION_ENABLE_SET_ROLE, "1"};
    ret_options[count++] = (llm_option){
        LLM_OPTION_BUF_POOL_CFG,
        "{\"buf_cfg\":[{\"total_size\":2097152,\"blk_size\":256,\"max_buf_size\":65536}]}"};
    if (transports != NULL)
        ret_options[count++] = (llm_option){LLM_OPTION_TRANSPORTS, transports};
    return count;
}

static void
open_instance(struct instance *instance, uint64_t id, llm_role role, size_t num_devices,
              const char *transports)
{
    llm_option options[8];
    size_t num_options = list_options(role, num_devices, transports, options);
    *instance = (struct instance){.num_devices = num_devices};
    assert_true(llm_create(id, role, &instance->dd) == LLM_SUCCESS);
    assert_true(llm_initialize(instance->dd, options, num_options) == LLM_SUCCESS);
    finish_setting_up(instance, role);
}

static size_t
num_descriptors(void)
{
    size_t count = 0;
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

// ---- the sweep ----

// Makes the n-th allocation fail and everything before and behind it work.
struct sweep {
    uint64_t n;
    unsigned num_struck;
    struct instance *instances[2];
};

// What is still going on at either end comes to rest, as far as it does without waiting.
static void
settle(const struct sweep *sweep)
{
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < LLI_COUNT(sweep->instances); i++) {
            if (sweep->instances[i] != NULL && sweep->instances[i]->dd->initialized)
                lli_loop_flush(&sweep->instances[i]->dd->loop);
        }
    }
}

static void
arm(struct sweep *sweep)
{
    settle(sweep);
    sweep->n++;
    if (sweep->n > SWEEP_MAX)
        fail_msg("still failing after %d allocations", SWEEP_MAX);
    lli_mem_fail_after(sweep->n);
}

// True if the failure has struck; else the sweep is over.
static bool
disarm(struct sweep *sweep)
{
    settle(sweep);
    bool struck = lli_mem_fail_after(0) == 0;
    sweep->num_struck += struck;
    return struck;
}

static bool
is_one_of(llm_status status, const llm_status *allowed)
{
    for (size_t i = 0; allowed[i] != LLM_SUCCESS; i++) {
        if (status == allowed[i])
            return true;
    }
    return false;
}

#define assert_status(sweep, status, ...)                                                          \
    do {                                                                                           \
        const llm_status allowed_[] = {__VA_ARGS__, LLM_SUCCESS};                                  \
        if (!is_one_of((status), allowed_))                                                        \
            fail_msg("allocation %llu: %s", (unsigned long long)(sweep)->n,                        \
                     llm_status_name(status));                                                     \
    } while (0)

static void
assert_explained(const struct sweep *sweep)
{
    if (llm_last_error(NULL, 0) == 0)
        fail_msg("allocation %llu: no explanation", (unsigned long long)sweep->n);
    lli_set_last_error("");
}

static void
assert_unwritten(const void *memory, size_t num_bytes)
{
    for (size_t i = 0; i < num_bytes; i++)
        assert_int_equal(((const uint8_t *)memory)[i], UNWRITTEN);
}

// ---- life cycle ----

static void
test_create(void **state)
{
    struct sweep sweep = {0};
    (void)state;
    for (;;) {
        llm_datadist *dd = NULL;
        llm_datadist *const none = NULL;
        arm(&sweep);
        llm_status status = llm_create(1, LLM_ROLE_PROMPT, &dd);
        if (!disarm(&sweep)) {
            assert_true(status == LLM_SUCCESS);
            llm_destroy(dd);
            break;
        }
        assert_true(status == LLM_OUT_OF_MEMORY);
        assert_ptr_equal(dd, none);
        assert_explained(&sweep);
    }
    assert_int_equal(sweep.num_struck, 1);
}

static void
sweep_initialize(llm_role role, size_t num_devices)
{
    struct sweep sweep = {0};
    llm_option options[8];
    llm_datadist *dd;
    size_t num_options = list_options(role, num_devices, NULL, options);
    size_t descriptors = num_descriptors();
    assert_true(llm_create(1, role, &dd) == LLM_SUCCESS);
    for (;;) {
        int64_t size;
        arm(&sweep);
        llm_status status = llm_initialize(dd, options, num_options);
        if (!disarm(&sweep)) {
            assert_true(status == LLM_SUCCESS);
            break;
        }
        assert_status(&sweep, status, LLM_FAILED);
        assert_explained(&sweep);
        // Not initialized, and nothing is left open.
        assert_true(llm_list_links(dd, NULL, 0, (size_t *)&size) == LLM_FAILED);
        assert_int_equal(num_descriptors(), descriptors);
        if (sweep.n % 4 == 0) {
            assert_true(llm_initialize(dd, options, num_options) == LLM_SUCCESS);
            llm_finalize(dd);
            assert_int_equal(num_descriptors(), descriptors);
        }
    }
    assert_true(sweep.num_struck >= 5);
    llm_destroy(dd);
    assert_int_equal(num_descriptors(), descriptors);
}

static void
test_initialize_a_prompt(void **state)
{
    (void)state;
    sweep_initialize(LLM_ROLE_PROMPT, 1);
    sweep_initialize(LLM_ROLE_PROMPT, 2);
}

static void
test_initialize_a_decoder(void **state)
{
    (void)state;
    sweep_initialize(LLM_ROLE_DECODER, 1);
    sweep_initialize(LLM_ROLE_DECODER, 2);
}

static void
test_initialize_a_mix(void **state)
{
    (void)state;
    sweep_initialize(LLM_ROLE_MIX, 1);
}

static void
test_set_role(void **state)
{
    static const llm_option address[] = {{LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"}};
    struct instance instance;
    struct sweep sweep = {.instances = {&instance}};
    uint16_t port;
    (void)state;
    open_instance(&instance, 1, LLM_ROLE_DECODER, 1, NULL);
    for (;;) {
        arm(&sweep);
        llm_status status = llm_set_role(instance.dd, LLM_ROLE_PROMPT, address, 1);
        if (!disarm(&sweep)) {
            assert_true(status == LLM_SUCCESS);
            break;
        }
        assert_status(&sweep, status, LLM_FAILED);
        assert_explained(&sweep);
        assert_int_equal(instance.dd->role, LLM_ROLE_DECODER);
        assert_true(llm_get_listen_port(instance.dd, 0, &port) == LLM_PARAM_INVALID);
    }
    assert_true(sweep.num_struck >= 1);
    assert_true(llm_get_listen_port(instance.dd, 0, &port) == LLM_SUCCESS);
    // A prompt that changes its listener keeps the old one.
    sweep.n = 0;
    for (;;) {
        uint16_t now;
        arm(&sweep);
        llm_status status = llm_set_role(instance.dd, LLM_ROLE_PROMPT, address, 1);
        if (!disarm(&sweep)) {
            assert_true(status == LLM_SUCCESS);
            break;
        }
        assert_status(&sweep, status, LLM_FAILED);
        assert_true(llm_get_listen_port(instance.dd, 0, &now) == LLM_SUCCESS);
        assert_int_equal(now, port);
    }
    llm_destroy(instance.dd);
}

// ---- caches ----

static const int64_t shape[] = {NUM_SLOTS, SLOT_BYTES};

static const llm_cache_desc desc = {
    .struct_size = sizeof(llm_cache_desc),
    .placement = LLM_PLACEMENT_DEVICE,
    .num_tensors = NUM_TENSORS,
    .data_type = LLM_DT_INT8,
    .shape = shape,
    .num_dims = LLI_COUNT(shape),
};

static void
test_allocate_cache(void **state)
{
    struct instance instance;
    struct sweep sweep = {.instances = {&instance}};
    uintptr_t addresses[2 * NUM_TENSORS];
    (void)state;
    open_instance(&instance, 1, LLM_ROLE_PROMPT, 2, NULL);
    for (;;) {
        llm_cache cache = {
            .struct_size = sizeof(cache),
            .cache_id = -5,
            .tensor_addrs = addresses,
            .num_tensor_addrs = LLI_COUNT(addresses),
        };
        const llm_cache before = cache;
        memset(addresses, UNWRITTEN, sizeof(addresses));
        uint64_t used = instance.dd->pools[0].bytes_used + instance.dd->pools[1].bytes_used;
        arm(&sweep);
        llm_status status = llm_allocate_cache(instance.dd, &desc, &cache);
        if (!disarm(&sweep)) {
            assert_true(status == LLM_SUCCESS);
            assert_true(llm_deallocate_cache(instance.dd, cache.cache_id) == LLM_SUCCESS);
            break;
        }
        if (status == LLM_SUCCESS) {
            assert_true(llm_deallocate_cache(instance.dd, cache.cache_id) == LLM_SUCCESS);
            continue;
        }
        assert_status(&sweep, status, LLM_DEVICE_OUT_OF_MEMORY);
        assert_explained(&sweep);
        assert_memory_equal(&cache, &before, sizeof(cache));
        assert_unwritten(addresses, sizeof(addresses));
        assert_int_equal(instance.dd->pools[0].bytes_used + instance.dd->pools[1].bytes_used, used);
        assert_int_equal(instance.dd->registry.num_caches, 0);
    }
    assert_true(sweep.num_struck >= 3);
    llm_destroy(instance.dd);
}

static void
test_register_kv_cache(void **state)
{
    static uint8_t memory[TENSOR_BYTES];
    struct instance instance;
    struct sweep sweep = {.instances = {&instance}};
    uint64_t addresses[NUM_TENSORS];
    (void)state;
    for (size_t i = 0; i < NUM_TENSORS; i++)
        addresses[i] = (uintptr_t)memory;
    open_instance(&instance, 1, LLM_ROLE_PROMPT, 1, NULL);
    for (;;) {
        int64_t id = -5;
        arm(&sweep);
        llm_status status = llm_register_kv_cache(instance.dd, &desc, addresses, NUM_TENSORS, &id);
        bool struck = disarm(&sweep);
        if (status == LLM_SUCCESS)
            assert_true(llm_unregister_kv_cache(instance.dd, id) == LLM_SUCCESS);
        if (!struck)
            break;
        if (status == LLM_SUCCESS)
            continue;
        assert_status(&sweep, status, LLM_OUT_OF_MEMORY);
        assert_explained(&sweep);
        assert_int_equal(id, -5);
        assert_int_equal(instance.dd->registry.num_caches, 0);
    }
    assert_true(sweep.num_struck >= 3);
    llm_destroy(instance.dd);
}

// ---- two linked instances ----

struct cache {
    int64_t id;
    uintptr_t addresses[2 * NUM_TENSORS];
    uint8_t *registered; // NULL if allocated
};

struct pair {
    struct instance prompt;
    struct instance decoder;
    struct cache prompt_cache;
    struct cache decoder_cache;
    uint64_t lease; // on the prompt's cache, or 0
    struct sweep sweep;
};

static struct cache
open_cache(struct instance *instance, bool registered)
{
    struct cache cache = {0};
    if (registered) {
        uint64_t addresses[NUM_TENSORS];
        cache.registered = unit_alloc((size_t)NUM_TENSORS * TENSOR_BYTES);
        for (size_t i = 0; i < NUM_TENSORS; i++) {
            cache.addresses[i] = (uintptr_t)cache.registered + i * TENSOR_BYTES;
            addresses[i] = cache.addresses[i];
        }
        assert_true(llm_register_kv_cache(instance->dd, &desc, addresses, NUM_TENSORS, &cache.id) ==
                    LLM_SUCCESS);
        return cache;
    }
    llm_cache allocated = {
        .struct_size = sizeof(allocated),
        .tensor_addrs = cache.addresses,
        .num_tensor_addrs = LLI_COUNT(cache.addresses),
    };
    assert_true(llm_allocate_cache(instance->dd, &desc, &allocated) == LLM_SUCCESS);
    cache.id = allocated.cache_id;
    return cache;
}

static void
open_pair(struct pair *pair, const char *transport, size_t num_devices, bool registered)
{
    memset(pair, 0, sizeof(*pair));
    open_instance(&pair->prompt, PROMPT, LLM_ROLE_PROMPT, num_devices, transport);
    open_instance(&pair->decoder, DECODER, LLM_ROLE_DECODER, num_devices, transport);
    pair->prompt_cache = open_cache(&pair->prompt, registered);
    pair->decoder_cache = open_cache(&pair->decoder, registered);
    pair->sweep.instances[0] = &pair->prompt;
    pair->sweep.instances[1] = &pair->decoder;
}

static void
close_pair(struct pair *pair)
{
    llm_destroy(pair->decoder.dd);
    llm_destroy(pair->prompt.dd);
    free(pair->prompt_cache.registered);
    free(pair->decoder_cache.registered);
}

struct addresses {
    llm_ip_info local[2];
    llm_ip_info remote[2];
    llm_cluster_info info;
};

// How the decoder names the prompt.
static void
name_prompt(const struct pair *pair, struct addresses *ret)
{
    static const char *const ips[] = {"127.0.0.1", "127.0.0.2"};
    for (size_t i = 0; i < 2; i++) {
        ret->local[i] = (llm_ip_info){.ip = ips[i]};
        ret->remote[i] = (llm_ip_info){.ip = ips[i], .port = pair->prompt.ports[i]};
    }
    ret->info = (llm_cluster_info){
        .struct_size = sizeof(ret->info),
        .remote_cluster_id = PROMPT,
        .local_ip_infos = ret->local,
        .num_local_ip_infos = pair->prompt.num_devices,
        .remote_ip_infos = ret->remote,
        .num_remote_ip_infos = pair->prompt.num_devices,
    };
}

static llm_status
link_pair(struct pair *pair, llm_status *ret_result, size_t *ret_num)
{
    struct addresses names;
    name_prompt(pair, &names);
    return llm_link_clusters(pair->decoder.dd, &names.info, 1, ret_result, ret_num, LINK_MS);
}

static llm_status
unlink_pair(struct pair *pair, llm_status *ret_result, size_t *ret_num, int force)
{
    struct addresses names;
    name_prompt(pair, &names);
    return llm_unlink_clusters(pair->decoder.dd, &names.info, 1, ret_result, ret_num, LINK_MS,
                               force);
}

// 0: no link; else its state.
static uint32_t
link_state(const struct instance *instance, uint64_t peer)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    llm_status status = llm_get_link_info(instance->dd, peer, &info);
    assert_true(status == LLM_SUCCESS || status == LLM_NOT_YET_LINK);
    return status == LLM_SUCCESS ? info.state : 0;
}

static void
await_not_ready(const struct instance *instance, uint64_t peer)
{
    uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
    while (link_state(instance, peer) == LLM_LINK_READY && lli_now_ns() < deadline)
        lli_loop_flush(&instance->dd->loop);
    assert_int_not_equal(link_state(instance, peer), LLM_LINK_READY);
}

// Whatever is left of a link goes, at the decoder, and a new one is made.
static void
relink(struct pair *pair)
{
    llm_status result;
    size_t num;
    (void)unlink_pair(pair, &result, &num, 1);
    assert_int_equal(link_state(&pair->decoder, PROMPT), 0);
    llm_status status = link_pair(pair, &result, &num);
    if (status != LLM_SUCCESS || result != LLM_SUCCESS)
        fail_msg("after allocation %llu: can't link again: %s, %s",
                 (unsigned long long)pair->sweep.n, llm_status_name(status),
                 llm_status_name(result));
    assert_int_equal(link_state(&pair->decoder, PROMPT), LLM_LINK_READY);
    assert_int_equal(link_state(&pair->prompt, DECODER), LLM_LINK_READY);
}

static void
sweep_link(const char *transport, size_t num_devices)
{
    struct pair pair;
    size_t descriptors = num_descriptors();
    open_pair(&pair, transport, num_devices, false);
    for (;;) {
        llm_status result = 77;
        size_t num = 77;
        arm(&pair.sweep);
        llm_status status = link_pair(&pair, &result, &num);
        bool struck = disarm(&pair.sweep);
        if (status == LLM_SUCCESS) {
            assert_true(result == LLM_SUCCESS);
            assert_int_equal(num, 1);
            // A link that was reported as made works, whatever failed on the way.
            uint32_t here = link_state(&pair.decoder, PROMPT);
            uint32_t there = link_state(&pair.prompt, DECODER);
            if (here != LLM_LINK_READY || there != LLM_LINK_READY)
                fail_msg("%s, allocation %llu: linked, but the states are %u and %u", transport,
                         (unsigned long long)pair.sweep.n, here, there);
            (void)unlink_pair(&pair, &result, &num, 0);
            if (!struck)
                break;
            continue;
        }
        assert_true(struck);
        assert_status(&pair.sweep, status, LLM_LINK_FAILED, LLM_OUT_OF_MEMORY);
        assert_explained(&pair.sweep);
        if (status == LLM_OUT_OF_MEMORY) {
            assert_int_equal(num, 0);
            assert_int_equal(result, 77);
        } else {
            assert_int_equal(num, 1);
            assert_true(result == LLM_LINK_FAILED);
        }
        assert_int_equal(link_state(&pair.decoder, PROMPT), 0);
        relink(&pair);
        assert_true(unlink_pair(&pair, &result, &num, 0) == LLM_SUCCESS);
        assert_int_equal(link_state(&pair.prompt, DECODER), 0);
    }
    assert_true(pair.sweep.num_struck >= 10);
    close_pair(&pair);
    assert_int_equal(num_descriptors(), descriptors);
}

static void
test_link_over_local(void **state)
{
    (void)state;
    sweep_link("local", 1);
}

static void
test_link_over_shm(void **state)
{
    (void)state;
    sweep_link("shm", 1);
}

static void
test_link_over_tcp(void **state)
{
    (void)state;
    sweep_link("tcp", 1);
}

static void
test_link_with_two_devices(void **state)
{
    (void)state;
    sweep_link("local,shm,tcp", 2);
}

static void
sweep_unlink(const char *transport, int force)
{
    struct pair pair;
    size_t descriptors = num_descriptors();
    open_pair(&pair, transport, 1, false);
    for (;;) {
        llm_status result = 77;
        size_t num = 77;
        relink(&pair);
        arm(&pair.sweep);
        llm_status status = unlink_pair(&pair, &result, &num, force);
        bool struck = disarm(&pair.sweep);
        if (!struck) {
            assert_true(status == LLM_SUCCESS && result == LLM_SUCCESS);
            break;
        }
        if (status != LLM_SUCCESS) {
            assert_status(&pair.sweep, status, LLM_UNLINK_FAILED, LLM_OUT_OF_MEMORY);
            assert_explained(&pair.sweep);
        }
        // Either the call failed as a whole, and nothing has changed, or the link is gone here.
        if (status == LLM_OUT_OF_MEMORY) {
            assert_int_equal(num, 0);
            assert_int_equal(result, 77);
            assert_int_equal(link_state(&pair.decoder, PROMPT), LLM_LINK_READY);
            assert_true(unlink_pair(&pair, &result, &num, force) == LLM_SUCCESS);
        }
        assert_int_equal(link_state(&pair.decoder, PROMPT), 0);
        // The peer has removed its end too, or it was the one that failed and knows it.
        if (status == LLM_SUCCESS && force == 0)
            await_not_ready(&pair.prompt, DECODER);
    }
    assert_true(pair.sweep.num_struck >= 1);
    close_pair(&pair);
    assert_int_equal(num_descriptors(), descriptors);
}

static void
test_unlink(void **state)
{
    (void)state;
    sweep_unlink("local", 0);
    sweep_unlink("shm", 0);
    sweep_unlink("tcp", 0);
    sweep_unlink("tcp", 1);
}

// ---- transfers ----

enum kind {
    PULL_CACHE,
    PULL_BLOCKS,
    PUSH_CACHE,
    PUSH_BLOCKS,
    START_PULL_CACHE,
    START_PULL_BLOCKS,
    START_PUSH_CACHE,
    START_PUSH_BLOCKS,
    NUM_KINDS
};

static const char *const kind_names[] = {
    "pull cache",       "pull blocks",       "push cache",       "push blocks",
    "start pull cache", "start pull blocks", "start push cache", "start push blocks",
};

static const uint64_t from_blocks[] = {3, 0, 1};
static const uint64_t to_blocks[] = {0, 2, 3};

static bool
is_push(enum kind kind)
{
    return kind % 4 >= PUSH_CACHE;
}

static bool
is_blocks(enum kind kind)
{
    return kind % 2 == 1;
}

static bool
is_started(enum kind kind)
{
    return kind >= START_PULL_CACHE;
}

// Slots of the destination that a transfer writes.
static bool
is_written(enum kind kind, uint64_t slot)
{
    return is_blocks(kind) ? slot != 1 : slot == 2;
}

static uint8_t *
slot_at(const struct cache *cache, size_t tensor, uint64_t slot)
{
    return (uint8_t *)cache->addresses[tensor] + slot * SLOT_BYTES;
}

// Pulls and pushes alike move from the prompt's cache into the decoder's.
static void
fill_caches(struct pair *pair)
{
    // Bytes that have arrived over a socket have been read before; the thread sanitizer wants more.
    settle(&pair->sweep);
    for (size_t t = 0; t < NUM_TENSORS; t++) {
        unit_fill((void *)pair->prompt_cache.addresses[t], TENSOR_BYTES, pair->sweep.n * 10 + t);
        memset((void *)pair->decoder_cache.addresses[t], 0xcc, TENSOR_BYTES);
    }
}

static bool
has_arrived(const struct pair *pair, enum kind kind)
{
    for (size_t t = 0; t < NUM_TENSORS; t++) {
        size_t count = is_blocks(kind) ? LLI_COUNT(from_blocks) : 1;
        for (size_t i = 0; i < count; i++) {
            uint64_t from = is_blocks(kind) ? from_blocks[i] : 1;
            uint64_t to = is_blocks(kind) ? to_blocks[i] : 2;
            if (memcmp(slot_at(&pair->decoder_cache, t, to), slot_at(&pair->prompt_cache, t, from),
                       SLOT_BYTES) != 0)
                return false;
        }
    }
    return true;
}

static void
assert_rest_untouched(const struct pair *pair, enum kind kind)
{
    for (size_t t = 0; t < NUM_TENSORS; t++) {
        for (uint64_t slot = 0; slot < NUM_SLOTS; slot++) {
            for (size_t i = 0; !is_written(kind, slot) && i < SLOT_BYTES; i++)
                assert_int_equal(slot_at(&pair->decoder_cache, t, slot)[i], 0xcc);
        }
    }
}

static const char note[] = "from the other end";

// What a transfer has besides.
enum extra {
    EXTRA_NONE,
    EXTRA_NOTE,  // a notification
    EXTRA_NAMES, // a key, a lease that it releases, and progress, so that the peer is asked and told
};

static const llm_cache_key blocks_key = {.struct_size = sizeof(blocks_key), .kind = LLM_KEY_BLOCKS};
static const llm_cache_key slot_key = {
    .struct_size = sizeof(slot_key), .kind = LLM_KEY_REQUEST, .id = 7};

static void
open_names(struct pair *pair)
{
    const llm_cache_key keys[] = {{.struct_size = sizeof(keys[0])}, slot_key};
    llm_lease_desc lease = {
        .struct_size = sizeof(lease), .cache_id = pair->prompt_cache.id, .duration_ms = 3600000};
    llm_datadist *prompt = pair->prompt.dd;
    assert_true(llm_bind_cache_keys(prompt, pair->prompt_cache.id, keys, 2) == LLM_SUCCESS);
    assert_true(llm_bind_cache_keys(prompt, pair->prompt_cache.id, &blocks_key, 1) == LLM_SUCCESS);
    assert_true(llm_bind_cache_keys(pair->decoder.dd, pair->decoder_cache.id, &blocks_key, 1) ==
                LLM_SUCCESS);
    assert_true(llm_lease_open(prompt, &lease, &pair->lease) == LLM_SUCCESS);
}

// Runs a transfer to its end.
static llm_status
transfer(struct pair *pair, enum kind kind, enum extra extra)
{
    llm_progress progress = {.struct_size = sizeof(progress)};
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    llm_datadist *dd = is_push(kind) ? pair->prompt.dd : pair->decoder.dd;
    llm_cache local = {
        .struct_size = sizeof(local),
        .cache_id = is_push(kind) ? pair->prompt_cache.id : pair->decoder_cache.id,
        .desc = is_push(kind) ? &desc : NULL,
    };
    llm_cache_index remote = {
        .struct_size = sizeof(remote),
        .cluster_id = is_push(kind) ? DECODER : PROMPT,
        .cache_id = is_push(kind) ? pair->decoder_cache.id : pair->prompt_cache.id,
    };
    const size_t count = LLI_COUNT(from_blocks);
    uint64_t id = UINT64_MAX;
    llm_status status = LLM_FAILED;
    if (extra == EXTRA_NOTE) {
        param.notification = note;
        param.notification_bytes = sizeof(note);
    }
    if (!is_blocks(kind))
        remote.batch_index = is_push(kind) ? 2 : 1;
    if (extra == EXTRA_NAMES) {
        param.progress = &progress;
        param.keep_key = 1;
        param.release_lease = !is_push(kind);
        remote.generation = is_push(kind) ? 0 : pair->lease;
        if (is_blocks(kind))
            remote.key = &blocks_key;
        else if (!is_push(kind))
            remote.key = &slot_key;
    }
    switch (kind) {
    case PULL_CACHE:
        return llm_pull_kv_cache(dd, &remote, &local, 2, -1, &param);
    case PULL_BLOCKS:
        return llm_pull_kv_blocks(dd, &remote, &local, from_blocks, count, to_blocks, count,
                                  &param);
    case PUSH_CACHE:
        return llm_push_kv_cache(dd, &local, &remote, 1, -1, &param);
    case PUSH_BLOCKS:
        return llm_push_kv_blocks(dd, &local, &remote, from_blocks, count, to_blocks, count,
                                  &param);
    case START_PULL_CACHE:
        status = llm_start_pull_kv_cache(dd, &remote, &local, 2, -1, &param, &id);
        break;
    case START_PULL_BLOCKS:
        status = llm_start_pull_kv_blocks(dd, &remote, &local, from_blocks, count, to_blocks, count,
                                          &param, &id);
        break;
    case START_PUSH_CACHE:
        status = llm_start_push_kv_cache(dd, &local, &remote, 1, -1, &param, &id);
        break;
    case START_PUSH_BLOCKS:
        status = llm_start_push_kv_blocks(dd, &local, &remote, from_blocks, count, to_blocks, count,
                                          &param, &id);
        break;
    default:
        break;
    }
    if (status != LLM_SUCCESS) {
        assert_true(id == UINT64_MAX);
        return status;
    }
    status = llm_transfer_wait(dd, id, LINK_MS);
    assert_true(status != LLM_TRANSFER_PENDING);
    assert_true(llm_transfer_release(dd, id) == LLM_SUCCESS);
    return status;
}

static size_t
take_notifications(struct pair *pair, enum kind kind)
{
    llm_datadist *dd = is_push(kind) ? pair->decoder.dd : pair->prompt.dd;
    char text[LLM_NOTIFICATION_BYTES_MAX];
    size_t bytes;
    uint64_t cluster;
    size_t count = 0;
    while (llm_poll_notification(dd, &cluster, text, sizeof(text), &bytes) == LLM_SUCCESS) {
        assert_int_equal(bytes, sizeof(note));
        assert_memory_equal(text, note, sizeof(note));
        count++;
    }
    return count;
}

static bool
links_are_ready(const struct pair *pair)
{
    return link_state(&pair->decoder, PROMPT) == LLM_LINK_READY &&
           link_state(&pair->prompt, DECODER) == LLM_LINK_READY;
}

// Repeats a transfer with memory, over a new link if the old one broke.
static void
retry(struct pair *pair, enum kind kind, enum extra extra)
{
    llm_status status = LLM_FAILED;
    for (int attempt = 0; attempt < 2 && status != LLM_SUCCESS; attempt++) {
        // A link that breaks at one end is noticed at the other a moment later.
        if (attempt > 0 || !links_are_ready(pair))
            relink(pair);
        status = transfer(pair, kind, extra);
    }
    if (status != LLM_SUCCESS)
        fail_msg("%s, after allocation %llu: can't be repeated: %s", kind_names[kind],
                 (unsigned long long)pair->sweep.n, llm_status_name(status));
    assert_true(has_arrived(pair, kind));
    assert_rest_untouched(pair, kind);
}

static void
sweep_transfer(const char *transport, enum kind kind, bool registered, enum extra extra)
{
    struct pair pair;
    unsigned num_strays = 0;
    size_t descriptors = num_descriptors();
    open_pair(&pair, transport, 1, registered);
    if (extra == EXTRA_NAMES)
        open_names(&pair);
    relink(&pair);
    for (;;) {
        fill_caches(&pair);
        (void)take_notifications(&pair, kind);
        arm(&pair.sweep);
        uint64_t start = lli_now_ns();
        llm_status status = transfer(&pair, kind, extra);
        uint64_t end = lli_now_ns();
        bool struck = disarm(&pair.sweep);
        if (status == LLM_SUCCESS) {
            assert_true(has_arrived(&pair, kind));
            assert_rest_untouched(&pair, kind);
            if (!struck)
                break;
            if (!links_are_ready(&pair))
                relink(&pair);
            continue;
        }
        if (!struck) {
            // A heartbeat failed a moment ago, and the link broke now: this number again.
            assert_true(++num_strays <= 3);
            relink(&pair);
            pair.sweep.n--;
            continue;
        }
        if (end - start > LLI_MS_TO_NS(2000))
            fail_msg("%s over %s, allocation %llu: it took %llu ms", kind_names[kind], transport,
                     (unsigned long long)pair.sweep.n, (unsigned long long)(end - start) / 1000000);
        assert_status(&pair.sweep, status, LLM_OUT_OF_MEMORY, LLM_FAILED, LLM_LINK_BUSY);
        if (!is_started(kind))
            assert_explained(&pair.sweep);
        assert_rest_untouched(&pair, kind);
        // Quiet after return: nothing lands any more.
        fill_caches(&pair);
        settle(&pair.sweep);
        for (size_t t = 0; t < NUM_TENSORS; t++) {
            for (size_t i = 0; i < TENSOR_BYTES; i++)
                assert_int_equal(((uint8_t *)pair.decoder_cache.addresses[t])[i], 0xcc);
        }
        retry(&pair, kind, extra);
        assert_int_equal(pair.prompt.dd->registry.num_caches, 1);
        assert_int_equal(pair.decoder.dd->registry.num_caches, 1);
    }
    assert_true(pair.sweep.num_struck >= 2);
    close_pair(&pair);
    assert_int_equal(num_descriptors(), descriptors);
}

static void
sweep_all_transfers(const char *transport, bool registered)
{
    for (unsigned kind = 0; kind < NUM_KINDS; kind++)
        sweep_transfer(transport, (enum kind)kind, registered, EXTRA_NONE);
}

static void
test_transfers_over_local(void **state)
{
    (void)state;
    sweep_all_transfers("local", false);
}

static void
test_transfers_over_shm(void **state)
{
    (void)state;
    sweep_all_transfers("shm", false);
}

static void
test_transfers_over_tcp(void **state)
{
    (void)state;
    sweep_all_transfers("tcp", false);
}

static void
test_transfers_of_registered_memory(void **state)
{
    (void)state;
    sweep_all_transfers("local", true);
    sweep_all_transfers("tcp", true);
}

static void
test_transfers_with_notifications(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < NUM_KINDS; kind++) {
        sweep_transfer("local", (enum kind)kind, false, EXTRA_NOTE);
        sweep_transfer("tcp", (enum kind)kind, false, EXTRA_NOTE);
    }
}

static void
test_transfers_by_key_and_under_a_lease(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < NUM_KINDS; kind++) {
        sweep_transfer("local", (enum kind)kind, false, EXTRA_NAMES);
        sweep_transfer("tcp", (enum kind)kind, false, EXTRA_NAMES);
    }
}

// ---- keys, leases, questions ----

static void
test_binding_keys_and_opening_leases(void **state)
{
    struct instance instance;
    struct sweep sweep = {.instances = {&instance}};
    (void)state;
    open_instance(&instance, 1, LLM_ROLE_PROMPT, 1, NULL);
    struct cache cache = open_cache(&instance, false);
    llm_lease_desc lease = {
        .struct_size = sizeof(lease), .cache_id = cache.id, .duration_ms = 3600000};
    for (;;) {
        const llm_cache_key keys[] = {slot_key, {.struct_size = sizeof(keys[0])}, slot_key};
        uint64_t generation = UNWRITTEN;
        arm(&sweep);
        llm_status bound = llm_bind_cache_keys(instance.dd, cache.id, keys, 3);
        llm_status opened = llm_lease_open(instance.dd, &lease, &generation);
        bool struck = disarm(&sweep);
        if (bound != LLM_SUCCESS || opened != LLM_SUCCESS)
            assert_explained(&sweep);
        if (bound != LLM_SUCCESS)
            assert_status(&sweep, bound, LLM_OUT_OF_MEMORY);
        assert_true(llm_remove_cache_key(instance.dd, &slot_key) == LLM_SUCCESS);
        if (opened == LLM_SUCCESS) {
            assert_true(llm_lease_close(instance.dd, generation) == LLM_SUCCESS);
        } else {
            assert_status(&sweep, opened, LLM_OUT_OF_MEMORY);
            assert_int_equal(generation, UNWRITTEN);
        }
        if (!struck)
            break;
    }
    assert_true(sweep.num_struck >= 3);
    llm_destroy(instance.dd);
}

static void
sweep_query(const char *transport)
{
    struct pair pair;
    open_pair(&pair, transport, 1, false);
    relink(&pair);
    for (;;) {
        llm_cache_index index = {
            .struct_size = sizeof(index),
            .cluster_id = PROMPT,
            .cache_id = pair.prompt_cache.id,
        };
        llm_cache_info info = {.struct_size = sizeof(info), .cache_id = UNWRITTEN};
        arm(&pair.sweep);
        llm_status status = llm_query_cache(pair.decoder.dd, &index, &info);
        bool struck = disarm(&pair.sweep);
        if (status == LLM_SUCCESS) {
            assert_int_equal(info.num_slots, NUM_SLOTS);
        } else {
            assert_status(&pair.sweep, status, LLM_OUT_OF_MEMORY, LLM_FAILED);
            assert_explained(&pair.sweep);
            assert_int_equal(info.cache_id, UNWRITTEN);
        }
        if (!struck)
            break;
        if (!links_are_ready(&pair))
            relink(&pair);
    }
    close_pair(&pair);
}

static void
test_queries(void **state)
{
    (void)state;
    sweep_query("local");
    sweep_query("tcp");
}

// ---- local copies ----

static void
test_local_copies(void **state)
{
    const uint64_t *const lists[] = {to_blocks, from_blocks};
    const size_t lengths[] = {LLI_COUNT(to_blocks), LLI_COUNT(from_blocks)};
    struct pair pair;
    (void)state;
    for (int blocks = 0; blocks <= 1; blocks++) {
        open_pair(&pair, "local", 1, false);
        struct cache other = open_cache(&pair.prompt, false);
        llm_cache src = {.struct_size = sizeof(src),
                         .desc = &desc,
                         .tensor_addrs = pair.prompt_cache.addresses,
                         .num_tensor_addrs = NUM_TENSORS};
        llm_cache dst = src;
        dst.tensor_addrs = other.addresses;
        for (;;) {
            fill_caches(&pair);
            arm(&pair.sweep);
            llm_status status = blocks
                                    ? llm_copy_kv_blocks(pair.prompt.dd, &src, &dst, from_blocks,
                                                         LLI_COUNT(from_blocks), lists, lengths, 2)
                                    : llm_copy_kv_cache(pair.prompt.dd, &src, &dst, 1, 2, 0, -1);
            if (!disarm(&pair.sweep)) {
                assert_true(status == LLM_SUCCESS);
                break;
            }
            if (status != LLM_SUCCESS) {
                assert_status(&pair.sweep, status, LLM_OUT_OF_MEMORY);
                assert_explained(&pair.sweep);
            }
        }
        // Block 0 was copied to block 2 by the first list and stayed there.
        assert_memory_equal(slot_at(&other, 0, 2), slot_at(&pair.prompt_cache, 0, blocks ? 0 : 1),
                            SLOT_BYTES);
        assert_true(pair.sweep.num_struck >= 1);
        close_pair(&pair);
    }
}

// ---- the end ----

static void
test_finalize_needs_no_memory(void **state)
{
    static const char *const transports[] = {"local", "shm", "tcp"};
    size_t descriptors = num_descriptors();
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(transports) * 2; i++) {
        bool clean = false;
        // A heartbeat may take the failure.
        for (int attempt = 0; attempt < 5 && !clean; attempt++) {
            struct pair pair;
            open_pair(&pair, transports[i / 2], 1, false);
            relink(&pair);
            settle(&pair.sweep);
            lli_mem_fail_after(1);
            llm_finalize(i % 2 == 0 ? pair.prompt.dd : pair.decoder.dd);
            llm_finalize(i % 2 == 0 ? pair.decoder.dd : pair.prompt.dd);
            clean = lli_mem_fail_after(0) == 1;
            close_pair(&pair);
        }
        assert_true(clean);
    }
    assert_int_equal(num_descriptors(), descriptors);
}

static int
setup(void **state)
{
    (void)state;
    // Lines are made, and looked at by nobody: their making must not allocate either.
    llm_set_log_level(LLM_LOG_OFF);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    lli_mem_fail_after(0);
    return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_create),
        TEST(test_initialize_a_prompt),
        TEST(test_initialize_a_decoder),
        TEST(test_initialize_a_mix),
        TEST(test_set_role),
        TEST(test_allocate_cache),
        TEST(test_register_kv_cache),
        TEST(test_link_over_local),
        TEST(test_link_over_shm),
        TEST(test_link_over_tcp),
        TEST(test_link_with_two_devices),
        TEST(test_unlink),
        TEST(test_transfers_over_local),
        TEST(test_transfers_over_shm),
        TEST(test_transfers_over_tcp),
        TEST(test_transfers_of_registered_memory),
        TEST(test_transfers_with_notifications),
        TEST(test_transfers_by_key_and_under_a_lease),
        TEST(test_binding_keys_and_opening_leases),
        TEST(test_queries),
        TEST(test_local_copies),
        TEST(test_finalize_needs_no_memory),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}

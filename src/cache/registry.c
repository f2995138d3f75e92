#include "cache/registry.h"

#include "base/lock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "cache/holds.h"
#include "cache/keys.h"
#include "cache/leases.h"

void
lli_registry_open(struct lli_registry *registry, struct lli_segment *segment,
                  struct lli_pool *pools, size_t num_devices, uint64_t patience_ns,
                  bool (*is_read)(void *arg, uint64_t generation), void *arg)
{
    pthread_mutex_init(&registry->lock, NULL);
    lli_cond_init(&registry->changed);
    for (size_t i = 0; i < LLI_NUM_CACHE_BUCKETS; i++)
        lli_list_init(&registry->buckets[i]);
    for (size_t i = 0; i < LLI_NUM_KEY_BUCKETS; i++)
        lli_list_init(&registry->keys[i]);
    lli_list_init(&registry->unnamed);
    lli_list_init(&registry->retired);
    lli_list_init(&registry->held);
    lli_list_init(&registry->holds);
    for (size_t i = 0; i < LLI_NUM_LEASE_BUCKETS; i++)
        lli_list_init(&registry->leases[i]);
    registry->num_caches = 0;
    registry->next_id = 1;
    registry->segment = segment;
    registry->pools = pools;
    registry->num_devices = num_devices;
    registry->patience_ns = patience_ns;
    registry->is_read = is_read;
    registry->on_lease_ended = NULL;
    registry->arg = arg;
}

static struct lli_list *
bucket_of(struct lli_registry *registry, int64_t id)
{
    return &registry->buckets[(uint64_t)id % LLI_NUM_CACHE_BUCKETS];
}

struct lli_cache *
lli_registry_find_locked(struct lli_registry *registry, int64_t id)
{
    LLI_LIST_FOR(node, bucket_of(registry, id)) {
        struct lli_cache *cache = LLI_LIST_ENTRY(node, struct lli_cache, node);
        if (cache->id == id)
            return cache;
    }
    return NULL;
}

static size_t
num_addresses(const struct lli_cache *cache)
{
    return (size_t)cache->geometry.num_tensors * cache->num_devices;
}

static void
free_struct(struct lli_cache *cache)
{
    lli_free(cache->addresses);
    lli_free(cache->offsets);
    lli_free(cache);
}

static struct lli_cache *
new_struct(const struct lli_geometry *geometry, size_t num_devices)
{
    struct lli_cache *cache = lli_calloc(1, sizeof(*cache));
    if (cache == NULL)
        return NULL;
    lli_list_init(&cache->node);
    lli_list_init(&cache->keys);
    lli_list_init(&cache->leases);
    cache->geometry = *geometry;
    cache->num_devices = num_devices;
    cache->addresses = lli_calloc(num_addresses(cache), sizeof(*cache->addresses));
    cache->offsets = lli_calloc(num_addresses(cache), sizeof(*cache->offsets));
    if (cache->addresses == NULL || cache->offsets == NULL) {
        free_struct(cache);
        return NULL;
    }
    return cache;
}

static void
free_tensors_locked(struct lli_registry *registry, struct lli_cache *cache, size_t num_tensors)
{
    for (size_t i = num_tensors; i-- > 0;)
        lli_pool_free(&registry->pools[i / cache->geometry.num_tensors], cache->offsets[i],
                      cache->geometry.tensor_bytes);
}

static llm_status
alloc_tensors_locked(struct lli_registry *registry, struct lli_cache *cache)
{
    for (size_t i = 0; i < num_addresses(cache); i++) {
        size_t device = i / cache->geometry.num_tensors;
        struct lli_pool *pool = &registry->pools[device];
        if (!lli_pool_alloc(pool, cache->geometry.tensor_bytes, &cache->offsets[i])) {
            free_tensors_locked(registry, cache, i);
            return lli_fail(LLM_DEVICE_OUT_OF_MEMORY, "cache",
                            "no room for tensor %zu of %u (%llu bytes each) on device %zu: %llu of "
                            "%llu bytes of its pool are in use",
                            i % cache->geometry.num_tensors, cache->geometry.num_tensors,
                            (unsigned long long)cache->geometry.tensor_bytes, device,
                            (unsigned long long)pool->bytes_used, (unsigned long long)pool->bytes);
        }
        cache->addresses[i] = (uintptr_t)(pool->base + cache->offsets[i]);
    }
    return LLM_SUCCESS;
}

static void
enter_locked(struct lli_registry *registry, struct lli_cache *cache)
{
    lli_list_append(bucket_of(registry, cache->id), &cache->node);
    registry->num_caches++;
}

static int64_t
take_id_locked(struct lli_registry *registry)
{
    int64_t id = lli_segment_next_id(registry->segment, registry->next_id);
    registry->next_id = id + 1;
    return id;
}

static llm_status
allocate_locked(struct lli_registry *registry, struct lli_cache *cache)
{
    cache->id = take_id_locked(registry);
    LLI_TRY(alloc_tensors_locked(registry, cache));
    if (!lli_segment_publish(registry->segment, cache->id, &cache->geometry, cache->num_devices, 0,
                             cache->offsets, &cache->entry, &cache->generation)) {
        free_tensors_locked(registry, cache, num_addresses(cache));
        return lli_fail(LLM_DEVICE_OUT_OF_MEMORY, "cache",
                        "the directory of caches is full: %zu caches live, at most %d with %d "
                        "tensors in all",
                        registry->num_caches, LLI_NUM_ENTRIES, LLI_NUM_ADDRESSES);
    }
    enter_locked(registry, cache);
    return LLM_SUCCESS;
}

llm_status
lli_registry_allocate(struct lli_registry *registry, const struct lli_geometry *geometry,
                      int64_t *ret_id, uintptr_t *ret_addresses)
{
    struct lli_cache *cache = NULL;
    uint64_t num_tensors = (uint64_t)geometry->num_tensors * registry->num_devices;
    if (num_tensors <= LLI_NUM_ADDRESSES)
        cache = new_struct(geometry, registry->num_devices);
    if (cache == NULL)
        return lli_fail(LLM_DEVICE_OUT_OF_MEMORY, "cache", "no memory to describe %llu tensors",
                        (unsigned long long)num_tensors);

    lli_registry_collect(registry);
    lli_lock(&registry->lock);
    llm_status status = allocate_locked(registry, cache);
    if (status == LLM_SUCCESS) {
        *ret_id = cache->id;
        memcpy(ret_addresses, cache->addresses, num_addresses(cache) * sizeof(*ret_addresses));
    }
    lli_unlock(&registry->lock);
    if (status != LLM_SUCCESS)
        free_struct(cache);
    return status;
}

static void
free_locked(struct lli_registry *registry, struct lli_cache *cache)
{
    lli_list_remove(&cache->node);
    lli_segment_erase(registry->segment, cache->entry);
    pthread_cond_broadcast(&registry->changed);
    if (cache->holds > 0) {
        cache->freed = true;
        lli_list_append(&registry->held, &cache->node);
        return;
    }
    if (!cache->registered)
        free_tensors_locked(registry, cache, num_addresses(cache));
    free_struct(cache);
}

void
lli_registry_let_go(struct lli_registry *registry, struct lli_cache *cache)
{
    lli_lock(&registry->lock);
    cache->holds--;
    if (cache->holds == 0 && cache->freed) {
        lli_list_remove(&cache->node);
        free_tensors_locked(registry, cache, num_addresses(cache));
        free_struct(cache);
    }
    lli_unlock(&registry->lock);
}

bool
lli_registry_is_read_here(const struct lli_registry *registry, const struct lli_cache *cache,
                          uint64_t generation)
{
    return cache->registered &&
           lli_segment_is_read_here(registry->segment->layout->header.incarnation, generation);
}

static bool
is_used_here(const struct lli_registry *registry, const struct lli_cache *cache)
{
    return cache->references > 0 || lli_registry_is_read_here(registry, cache, cache->generation);
}

void
lli_registry_collect_locked(struct lli_registry *registry)
{
    uint64_t now = lli_now_ns();
    lli_leases_collect_locked(registry, now);
    LLI_LIST_FOR(node, &registry->retired) {
        struct lli_cache *cache = LLI_LIST_ENTRY(node, struct lli_cache, node);
        bool late = now - cache->retired_ns >= registry->patience_ns;
        if (cache->references > 0 && late)
            atomic_store(&cache->overdue, true);
        if (is_used_here(registry, cache))
            continue;
        bool is_read = registry->is_read(registry->arg, cache->generation);
        if (is_read && !late)
            continue;
        if (is_read)
            lli_log(LLM_LOG_WARN, "cache",
                    "cache %lld is freed although a peer has been reading it for %llu ms: that "
                    "pull will fail",
                    (long long)cache->id,
                    (unsigned long long)((now - cache->retired_ns) / 1000000));
        free_locked(registry, cache);
    }
}

void
lli_registry_retire_locked(struct lli_registry *registry, struct lli_cache *cache)
{
    lli_keys_drop_locked(registry, cache);
    lli_leases_end_all_locked(registry, cache);
    lli_list_remove(&cache->node);
    registry->num_caches--;
    cache->retired_ns = lli_now_ns();
    lli_list_append(&registry->retired, &cache->node);
    lli_segment_retire(registry->segment, cache->entry);
}

llm_status
lli_registry_deallocate(struct lli_registry *registry, int64_t id)
{
    lli_lock(&registry->lock);
    struct lli_cache *cache = lli_registry_find_locked(registry, id);
    if (cache == NULL || cache->registered) {
        lli_unlock(&registry->lock);
        return lli_fail(LLM_KV_CACHE_NOT_EXIST, "cache", "there is no allocated cache with id %lld",
                        (long long)id);
    }
    lli_keys_drop_blocks_locked(registry, cache);
    if (lli_list_empty(&cache->keys)) {
        lli_registry_retire_locked(registry, cache);
        lli_registry_collect_locked(registry);
    } else {
        lli_segment_mark(registry->segment, cache->entry, LLI_ENTRY_UNNAMED);
        lli_list_remove(&cache->node);
        lli_list_append(&registry->unnamed, &cache->node);
    }
    lli_unlock(&registry->lock);
    return LLM_SUCCESS;
}

llm_status
lli_registry_register(struct lli_registry *registry, const struct lli_geometry *geometry,
                      const uint64_t *addresses, int64_t *ret_id)
{
    struct lli_cache *cache = NULL;
    if (geometry->num_tensors <= LLI_NUM_ADDRESSES)
        cache = new_struct(geometry, 1);
    if (cache == NULL)
        return lli_fail(LLM_OUT_OF_MEMORY, "cache", "no memory to describe %u tensors",
                        geometry->num_tensors);
    cache->registered = true;
    for (size_t i = 0; i < geometry->num_tensors; i++)
        cache->addresses[i] = (uintptr_t)addresses[i];

    lli_registry_collect(registry);
    lli_lock(&registry->lock);
    cache->id = take_id_locked(registry);
    bool published =
        lli_segment_publish(registry->segment, cache->id, geometry, 1, LLI_ENTRY_REGISTERED,
                            addresses, &cache->entry, &cache->generation);
    if (published) {
        enter_locked(registry, cache);
        *ret_id = cache->id;
    }
    size_t num_caches = registry->num_caches;
    lli_unlock(&registry->lock);
    if (!published) {
        free_struct(cache);
        return lli_fail(LLM_OUT_OF_MEMORY, "cache",
                        "the directory of caches is full: %zu caches live, at most %d with %d "
                        "tensors in all",
                        num_caches, LLI_NUM_ENTRIES, LLI_NUM_ADDRESSES);
    }
    return LLM_SUCCESS;
}

void
lli_registry_look_again_later_locked(struct lli_registry *registry)
{
    (void)lli_cond_wait_until(&registry->changed, &registry->lock, lli_now_ns() + LLI_MS_TO_NS(1));
}

static bool
is_retired_locked(struct lli_registry *registry, int64_t id)
{
    LLI_LIST_FOR(node, &registry->retired) {
        const struct lli_cache *cache = LLI_LIST_ENTRY(node, struct lli_cache, node);
        if (cache->registered && cache->id == id)
            return true;
    }
    return false;
}

void
lli_registry_unregister(struct lli_registry *registry, int64_t id)
{
    lli_lock(&registry->lock);
    struct lli_cache *cache = lli_registry_find_locked(registry, id);
    if (cache != NULL && cache->registered) {
        lli_registry_retire_locked(registry, cache);
        lli_registry_collect_locked(registry);
    }
    // Also when another thread has begun to unregister it.
    while (is_retired_locked(registry, id)) {
        lli_registry_look_again_later_locked(registry);
        lli_registry_collect_locked(registry);
    }
    lli_unlock(&registry->lock);
}

struct lli_cache *
lli_registry_hold(struct lli_registry *registry, int64_t id)
{
    lli_lock(&registry->lock);
    struct lli_cache *cache = lli_registry_find_locked(registry, id);
    if (cache != NULL)
        cache->references++;
    lli_unlock(&registry->lock);
    return cache;
}

void
lli_registry_hold_again(struct lli_registry *registry, struct lli_cache *cache)
{
    lli_lock(&registry->lock);
    cache->references++;
    lli_unlock(&registry->lock);
}

void
lli_registry_put_locked(struct lli_registry *registry, struct lli_cache *cache)
{
    cache->references--;
    if (cache->references == 0 && cache->retired_ns != 0)
        lli_registry_collect_locked(registry);
}

void
lli_registry_put(struct lli_registry *registry, struct lli_cache *cache)
{
    if (cache == NULL)
        return;
    lli_lock(&registry->lock);
    lli_registry_put_locked(registry, cache);
    lli_unlock(&registry->lock);
}

// Does one of the cache's tensors hold these bytes?
static bool
has_range(const struct lli_cache *cache, uintptr_t address, uint64_t bytes)
{
    for (size_t i = 0; i < num_addresses(cache); i++) {
        uint64_t offset = address - cache->addresses[i];
        if (address >= cache->addresses[i] && offset <= cache->geometry.tensor_bytes &&
            bytes <= cache->geometry.tensor_bytes - offset)
            return true;
    }
    return false;
}

static struct lli_cache *
find_range_locked(struct lli_registry *registry, uintptr_t address, uint64_t bytes,
                  int32_t data_type)
{
    struct lli_cache *found = NULL;
    for (size_t i = 0; i <= LLI_NUM_CACHE_BUCKETS; i++) {
        struct lli_list *list =
            i < LLI_NUM_CACHE_BUCKETS ? &registry->buckets[i] : &registry->unnamed;
        LLI_LIST_FOR(node, list) {
            struct lli_cache *cache = LLI_LIST_ENTRY(node, struct lli_cache, node);
            if (!has_range(cache, address, bytes))
                continue;
            if (lli_data_types_agree(cache->geometry.data_type, data_type))
                return cache;
            found = cache;
        }
    }
    return found;
}

struct lli_cache *
lli_registry_hold_range(struct lli_registry *registry, uintptr_t address, uint64_t bytes,
                        int32_t data_type)
{
    lli_lock(&registry->lock);
    struct lli_cache *cache = find_range_locked(registry, address, bytes, data_type);
    if (cache != NULL)
        cache->references++;
    lli_unlock(&registry->lock);
    return cache;
}

void
lli_registry_collect(struct lli_registry *registry)
{
    lli_lock(&registry->lock);
    lli_registry_collect_locked(registry);
    lli_unlock(&registry->lock);
}

static void
retire_all_locked(struct lli_registry *registry, struct lli_list *list)
{
    LLI_LIST_FOR(node, list)
        lli_registry_retire_locked(registry, LLI_LIST_ENTRY(node, struct lli_cache, node));
}

void
lli_registry_close(struct lli_registry *registry)
{
    lli_holds_detach_all(registry);
    lli_lock(&registry->lock);
    for (size_t i = 0; i < LLI_NUM_CACHE_BUCKETS; i++)
        retire_all_locked(registry, &registry->buckets[i]);
    retire_all_locked(registry, &registry->unnamed);
    lli_leases_forget_all_locked(registry);
    LLI_LIST_FOR(node, &registry->retired) {
        struct lli_cache *cache = LLI_LIST_ENTRY(node, struct lli_cache, node);
        while (lli_registry_is_read_here(registry, cache, cache->generation))
            lli_registry_look_again_later_locked(registry);
        free_locked(registry, cache);
    }
    // Their memory goes with the mapping, which the holds keep.
    LLI_LIST_FOR(node, &registry->held) {
        lli_list_remove(node);
        free_struct(LLI_LIST_ENTRY(node, struct lli_cache, node));
    }
    lli_unlock(&registry->lock);
    pthread_cond_destroy(&registry->changed);
    pthread_mutex_destroy(&registry->lock);
}

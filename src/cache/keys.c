#include "cache/keys.h"

#include "base/lock.h"
#include "base/log.h"
#include "base/mem.h"

struct binding {
    struct lli_list in_bucket; // registry->keys
    struct lli_list in_cache;  // cache->keys
    struct lli_key key;        // with its stamp
    struct lli_cache *cache;
    uint64_t slot;
    uint32_t num_taken; // tensors
    uint8_t taken[];    // a byte per tensor
};

static struct lli_list *
bucket_of(struct lli_registry *registry, const struct lli_key *key)
{
    return &registry->keys[lli_key_hash(key) % LLI_NUM_KEY_BUCKETS];
}

static struct binding *
find_locked(struct lli_registry *registry, const struct lli_key *key)
{
    LLI_LIST_FOR(node, bucket_of(registry, key)) {
        struct binding *binding = LLI_LIST_ENTRY(node, struct binding, in_bucket);
        if (lli_key_equal(&binding->key, key))
            return key->stamp == 0 || key->stamp == binding->key.stamp ? binding : NULL;
    }
    return NULL;
}

// The cache stays, also when nothing leads to it any more.
static void
erase_locked(struct lli_registry *registry, struct binding *binding)
{
    lli_names_erase_key(registry->segment, &binding->key);
    lli_list_remove(&binding->in_bucket);
    lli_list_remove(&binding->in_cache);
    lli_free(binding);
}

// A deallocated cache goes with its last key.
static void
release_locked(struct lli_registry *registry, struct binding *binding)
{
    struct lli_cache *cache = binding->cache;
    bool unnamed = lli_registry_find_locked(registry, cache->id) != cache;
    erase_locked(registry, binding);
    if (unnamed && lli_list_empty(&cache->keys)) {
        lli_registry_retire_locked(registry, cache);
        lli_registry_collect_locked(registry);
    }
}

void
lli_keys_drop_locked(struct lli_registry *registry, struct lli_cache *cache)
{
    LLI_LIST_FOR(node, &cache->keys)
        erase_locked(registry, LLI_LIST_ENTRY(node, struct binding, in_cache));
}

void
lli_keys_drop_blocks_locked(struct lli_registry *registry, struct lli_cache *cache)
{
    LLI_LIST_FOR(node, &cache->keys) {
        struct binding *binding = LLI_LIST_ENTRY(node, struct binding, in_cache);
        if (binding->key.kind == LLM_KEY_BLOCKS)
            erase_locked(registry, binding);
    }
}

// ---- binding ----

static llm_status
bind_one_locked(struct lli_registry *registry, struct lli_cache *cache, const struct lli_key *key,
                uint64_t slot)
{
    struct binding *binding = lli_calloc(1, sizeof(*binding) + cache->geometry.num_tensors);
    if (binding == NULL)
        return LLM_OUT_OF_MEMORY;
    binding->key = *key;
    binding->cache = cache;
    binding->slot = slot;
    if (!lli_names_put_key(registry->segment, key, cache->entry, cache->generation, slot,
                           &binding->key.stamp)) {
        lli_free(binding);
        return LLM_OUT_OF_MEMORY;
    }
    lli_list_append(bucket_of(registry, key), &binding->in_bucket);
    lli_list_append(&cache->keys, &binding->in_cache);
    if (key->kind == LLM_KEY_REQUEST)
        lli_segment_mark(registry->segment, cache->entry, LLI_ENTRY_HAS_REQUESTS);
    return LLM_SUCCESS;
}

static llm_status
check_free_locked(struct lli_registry *registry, const struct lli_key *keys, size_t num_keys)
{
    for (size_t i = 0; i < num_keys; i++) {
        const struct binding *bound =
            keys[i].kind == LLM_KEY_NONE ? NULL : find_locked(registry, &keys[i]);
        if (bound != NULL)
            return lli_fail(LLM_CACHE_KEY_ALREADY_EXIST, "cache",
                            "keys[%zu] (kind %u, id %llu, model %llu) names slot %llu of cache "
                            "%lld already",
                            i, keys[i].kind, (unsigned long long)keys[i].id,
                            (unsigned long long)keys[i].model_id, (unsigned long long)bound->slot,
                            (long long)bound->cache->id);
    }
    return LLM_SUCCESS;
}

// Undoes what this call has bound: the last keys of the cache's list.
static void
unbind_locked(struct lli_registry *registry, struct lli_cache *cache, size_t num_bound)
{
    while (num_bound-- > 0)
        erase_locked(registry, LLI_LIST_ENTRY(cache->keys.prev, struct binding, in_cache));
}

static llm_status
bind_locked(struct lli_registry *registry, int64_t cache_id, const struct lli_key *keys,
            size_t num_keys)
{
    struct lli_cache *cache = lli_registry_find_locked(registry, cache_id);
    if (cache == NULL)
        return lli_fail(LLM_KV_CACHE_NOT_EXIST, "cache", "there is no cache with id %lld",
                        (long long)cache_id);
    if (keys[0].kind != LLM_KEY_BLOCKS && num_keys > cache->geometry.num_slots)
        return lli_fail(LLM_PARAM_INVALID, "cache", "there are %zu keys, cache %lld has %llu slots",
                        num_keys, (long long)cache_id,
                        (unsigned long long)cache->geometry.num_slots);
    LLI_TRY(check_free_locked(registry, keys, num_keys));
    size_t num_bound = 0;
    // Of equal keys the last one counts: from behind, what is there already stays.
    for (size_t i = num_keys; i-- > 0;) {
        if (keys[i].kind == LLM_KEY_NONE || find_locked(registry, &keys[i]) != NULL)
            continue;
        if (bind_one_locked(registry, cache, &keys[i], i) != LLM_SUCCESS) {
            unbind_locked(registry, cache, num_bound);
            return lli_fail(
                LLM_OUT_OF_MEMORY, "cache",
                "no room for keys[%zu] of %zu: the host is out of memory, or there are the %d keys "
                "that an instance may have",
                i, num_keys, LLI_NUM_KEY_ENTRIES);
        }
        num_bound++;
    }
    return LLM_SUCCESS;
}

llm_status
lli_keys_bind(struct lli_registry *registry, int64_t cache_id, const struct lli_key *keys,
              size_t num_keys)
{
    lli_lock(&registry->lock);
    llm_status status = bind_locked(registry, cache_id, keys, num_keys);
    lli_unlock(&registry->lock);
    return status;
}

void
lli_keys_remove(struct lli_registry *registry, const struct lli_key *key)
{
    lli_lock(&registry->lock);
    struct binding *binding = find_locked(registry, key);
    if (binding != NULL)
        release_locked(registry, binding);
    lli_unlock(&registry->lock);
}

// ---- finding and taking ----

struct lli_cache *
lli_keys_hold(struct lli_registry *registry, const struct lli_key *key, uint64_t *ret_slot)
{
    struct lli_cache *cache = NULL;
    lli_lock(&registry->lock);
    const struct binding *binding = find_locked(registry, key);
    if (binding != NULL) {
        cache = binding->cache;
        cache->references++;
        *ret_slot = binding->slot;
    }
    lli_unlock(&registry->lock);
    return cache;
}

uint64_t
lli_keys_stamp(struct lli_registry *registry, const struct lli_key *key)
{
    lli_lock(&registry->lock);
    const struct binding *binding = find_locked(registry, key);
    uint64_t stamp = binding == NULL ? 0 : binding->key.stamp;
    lli_unlock(&registry->lock);
    return stamp;
}

static bool
is_request_of(const struct binding *binding, uint64_t slot)
{
    return binding->key.kind == LLM_KEY_REQUEST && binding->slot == slot;
}

bool
lli_keys_slot_has_request(struct lli_registry *registry, const struct lli_cache *cache,
                          uint64_t slot)
{
    bool found = false;
    lli_lock(&registry->lock);
    LLI_LIST_FOR(node, &cache->keys)
        found = found || is_request_of(LLI_LIST_ENTRY(node, struct binding, in_cache), slot);
    lli_unlock(&registry->lock);
    return found;
}

static void
take_locked(struct lli_registry *registry, struct binding *binding, const struct lli_taken *taken)
{
    uint32_t num_tensors = binding->cache->geometry.num_tensors;
    uint64_t end = lli_min((uint64_t)taken->first_tensor + taken->num_tensors, num_tensors);
    for (uint64_t i = taken->first_tensor; i < end; i++) {
        binding->num_taken += binding->taken[i] == 0;
        binding->taken[i] = 1;
    }
    if (binding->num_taken == num_tensors)
        release_locked(registry, binding);
}

static llm_status
take_key_locked(struct lli_registry *registry, const struct lli_taken *taken)
{
    struct binding *binding = find_locked(registry, &taken->key);
    if (binding == NULL ||
        (taken->generation != 0 && binding->cache->generation != taken->generation))
        return LLM_KV_CACHE_NOT_EXIST;
    if (binding->key.kind == LLM_KEY_REQUEST)
        take_locked(registry, binding, taken);
    return LLM_SUCCESS;
}

// It may have been deallocated during the pull.
static struct lli_cache *
find_cache_locked(struct lli_registry *registry, int64_t id)
{
    struct lli_cache *cache = lli_registry_find_locked(registry, id);
    LLI_LIST_FOR(node, &registry->unnamed) {
        struct lli_cache *unnamed = LLI_LIST_ENTRY(node, struct lli_cache, node);
        if (unnamed->id == id)
            cache = unnamed;
    }
    return cache;
}

static void
take_slot_locked(struct lli_registry *registry, const struct lli_taken *taken)
{
    struct lli_cache *cache = find_cache_locked(registry, taken->cache_id);
    if (cache == NULL || (taken->generation != 0 && cache->generation != taken->generation))
        return;
    // Several keys may name the slot; it must not go with the last one while we look at them.
    cache->references++;
    LLI_LIST_FOR(node, &cache->keys) {
        struct binding *binding = LLI_LIST_ENTRY(node, struct binding, in_cache);
        if (is_request_of(binding, taken->slot))
            take_locked(registry, binding, taken);
    }
    lli_registry_put_locked(registry, cache);
}

llm_status
lli_keys_take(struct lli_registry *registry, const struct lli_taken *taken)
{
    llm_status status = LLM_SUCCESS;
    lli_lock(&registry->lock);
    if (taken->by_key)
        status = take_key_locked(registry, taken);
    else
        take_slot_locked(registry, taken);
    lli_unlock(&registry->lock);
    return status;
}

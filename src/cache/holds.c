#include "cache/holds.h"

#include "base/lock.h"
#include "base/log.h"
#include "base/mem.h"

struct llm_memory_hold {
    struct lli_list node;          // in the registry's; guarded by holds_lock
    struct lli_registry *registry; // NULL once it has closed; guarded by holds_lock
    struct lli_cache *cache;
    size_t num_mappings;
    struct lli_mapping *mappings[];
};

// Of all registries, because it outlives them.  Comes before registry->lock.
static pthread_mutex_t holds_lock = PTHREAD_MUTEX_INITIALIZER;

void
lli_holds_in_child(void)
{
    pthread_mutex_init(&holds_lock, NULL);
}

llm_status
lli_holds_take(struct lli_registry *registry, int64_t id, llm_memory_hold **ret_hold)
{
    size_t num_mappings = registry->num_devices;
    struct llm_memory_hold *hold =
        lli_calloc(1, sizeof(*hold) + num_mappings * sizeof(hold->mappings[0]));
    if (hold == NULL)
        return lli_fail(LLM_OUT_OF_MEMORY, "cache", "no memory to hold cache %lld", (long long)id);
    lli_lock(&holds_lock);
    lli_lock(&registry->lock);
    struct lli_cache *cache = lli_registry_find_locked(registry, id);
    if (cache != NULL && cache->registered)
        cache = NULL;
    if (cache != NULL) {
        cache->holds++;
        hold->registry = registry;
        hold->cache = cache;
        hold->num_mappings = num_mappings;
        for (size_t i = 0; i < num_mappings; i++)
            hold->mappings[i] = lli_mapping_hold(registry->pools[i].mapping);
        lli_list_append(&registry->holds, &hold->node);
    }
    lli_unlock(&registry->lock);
    lli_unlock(&holds_lock);
    if (cache == NULL) {
        lli_free(hold);
        return lli_fail(LLM_KV_CACHE_NOT_EXIST, "cache", "there is no allocated cache with id %lld",
                        (long long)id);
    }
    *ret_hold = hold;
    return LLM_SUCCESS;
}

void
lli_holds_release(llm_memory_hold *hold)
{
    if (hold == NULL)
        return;
    lli_lock(&holds_lock);
    if (hold->registry != NULL) {
        lli_list_remove(&hold->node);
        lli_registry_let_go(hold->registry, hold->cache);
    }
    lli_unlock(&holds_lock);
    for (size_t i = 0; i < hold->num_mappings; i++)
        lli_mapping_put(hold->mappings[i]);
    lli_free(hold);
}

void
lli_holds_detach_all(struct lli_registry *registry)
{
    lli_lock(&holds_lock);
    LLI_LIST_FOR(node, &registry->holds) {
        LLI_LIST_ENTRY(node, struct llm_memory_hold, node)->registry = NULL;
        lli_list_remove(node);
    }
    lli_unlock(&holds_lock);
}

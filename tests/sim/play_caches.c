// Caches come and go.
#include <string.h>

#include "play.h"

static llm_cache_desc
describe(const struct cache *cache, int64_t shape[2])
{
    shape[0] = cache->num_slots;
    shape[1] = (int64_t)cache->stride;
    return (llm_cache_desc){.struct_size = sizeof(llm_cache_desc),
                            .placement = LLM_PLACEMENT_DEVICE,
                            .num_tensors = cache->num_tensors,
                            .data_type = LLM_DT_UINT8,
                            .shape = shape,
                            .num_dims = 2};
}

struct cache *
play_new_cache(struct node *node, bool target)
{
    return model_cache_new(node, sim_current_process(), node->cluster_id, target,
                           scenario.num_tensors, (uint32_t)sim_between(2, SLOTS_MAX),
                           scenario.stride);
}

bool
play_allocate_cache(struct node *node, struct cache *cache)
{
    int64_t shape[2];
    uintptr_t addresses[TENSORS_MAX];
    uint8_t *tensors[TENSORS_MAX];
    llm_cache_desc desc = describe(cache, shape);
    llm_cache made = {sizeof(made), 0, NULL, addresses, TENSORS_MAX};
    llm_status status = play_api()->llm_allocate_cache(node->dd, &desc, &made);
    if (!scenario.faults.memory)
        EXPECT("llm_allocate_cache", status, LLM_SUCCESS);
    if (status != LLM_SUCCESS)
        return false;
    for (uint32_t t = 0; t < cache->num_tensors; t++)
        tensors[t] = (uint8_t *)addresses[t];
    model_cache_born(cache, made.cache_id, tensors);
    return true;
}

static bool
register_cache(struct node *node, struct cache *cache)
{
    int64_t shape[2];
    uint64_t addresses[TENSORS_MAX];
    uint8_t *tensors[TENSORS_MAX];
    int64_t id;
    llm_cache_desc desc = describe(cache, shape);
    cache->registered = true;
    for (uint32_t t = 0; t < cache->num_tensors; t++) {
        tensors[t] = sim_alloc(sim_current_process(), cache->num_slots * cache->stride);
        memset(tensors[t], 0, cache->num_slots * cache->stride);
        addresses[t] = (uintptr_t)tensors[t];
    }
    llm_status status =
        play_api()->llm_register_kv_cache(node->dd, &desc, addresses, cache->num_tensors, &id);
    if (!scenario.faults.memory)
        EXPECT("llm_register_kv_cache", status, LLM_SUCCESS);
    if (status == LLM_SUCCESS) {
        model_cache_born(cache, id, tensors);
        return true;
    }
    for (uint32_t t = 0; t < cache->num_tensors; t++)
        sim_dealloc(tensors[t]);
    return false;
}

void
play_learn_generation(struct node *node, struct cache *cache)
{
    llm_cache_info info = {.struct_size = sizeof(info)};
    llm_status status = play_api()->llm_get_cache_info(node->dd, cache->id, &info);
    // Another worker may free it already.
    EXPECT("llm_get_cache_info", status, LLM_SUCCESS, LLM_KV_CACHE_NOT_EXIST);
    cache->generation = info.generation;
}

struct cache *
play_make_cache(struct node *node, bool target)
{
    struct cache *cache = play_new_cache(node, target);
    bool made = scenario.version_2 && sim_chance(2) ? register_cache(node, cache)
                                                    : play_allocate_cache(node, cache);
    if (made) {
        play_learn_generation(node, cache);
        sim_trace("%s: %s %s cache %lld is #%u", sim_current_process()->name,
                  cache->registered ? "registered" : "allocated", target ? "target" : "source",
                  (long long)cache->id, cache->number);
        return cache;
    }
    cache->end_ns = sim.now_ns;
    cache->ending = true;
    return NULL;
}

// The memory is the caller's again: nobody may write there.
static void
guard_memory(const struct cache *cache)
{
    struct cache *guard = model_cache_new(cache->node, cache->process, 0, false, cache->num_tensors,
                                          cache->num_slots, cache->stride);
    guard->registered = true;
    guard->ending = true;
    model_cache_born(guard, 0, cache->tensors);
    if (sim_chance(2))
        return;
    guard->readable = false;
    for (uint32_t t = 0; t < cache->num_tensors; t++)
        sim_dealloc(cache->tensors[t]);
}

void
play_free_cache(struct node *node, struct cache *cache)
{
    struct watch watch = play_watch_begin();
    model_cache_ends(cache);
    sim_trace("%s: frees cache #%u", sim_current_process()->name, cache->number);
    if (!cache->registered) {
        EXPECT("llm_deallocate_cache", play_api()->llm_deallocate_cache(node->dd, cache->id),
               LLM_SUCCESS);
        model_cache_ended(cache);
        play_watch_end(watch, "llm_deallocate_cache", 50 * SIM_MS);
        return;
    }
    EXPECT("llm_unregister_kv_cache", play_api()->llm_unregister_kv_cache(node->dd, cache->id),
           LLM_SUCCESS);
    model_cache_ended(cache);
    play_watch_end(watch, "llm_unregister_kv_cache",
                   (node->sync_ms + 2 * node->liveness_ms) * SIM_MS + 4 * play_tick_ns(node) +
                       200 * SIM_MS);
    guard_memory(cache);
}

void
play_free_guards(void)
{
    for (struct cache *cache = model_caches(); cache != NULL; cache = cache->next) {
        if (cache->process != sim_current_process() || !cache->registered || !cache->readable)
            continue;
        cache->readable = false;
        for (uint32_t t = 0; t < cache->num_tensors; t++)
            sim_dealloc(cache->tensors[t]);
    }
}

// A random cache of a node's present process; NULL if there is none.
struct cache *
play_some_cache(const struct node *node, bool target, bool leased)
{
    struct cache *chosen = NULL;
    uint64_t count = 0;
    for (struct cache *cache = model_caches(); cache != NULL; cache = cache->next) {
        if (cache->node == node && cache->target == target && cache->readable && cache->id != 0 &&
            !cache->ending && cache->process->alive && (leased || !cache->leased) &&
            sim_below(++count) == 0)
            chosen = cache;
    }
    return chosen;
}

size_t
play_count_caches(const struct node *node, bool target)
{
    size_t count = 0;
    for (const struct cache *cache = model_caches(); cache != NULL; cache = cache->next)
        count += cache->node == node && cache->target == target && !cache->leased &&
                 cache->readable && cache->id != 0;
    return count;
}

// A cache of whatever process the node has had.
struct cache *
play_some_old_cache(const struct node *node, bool target)
{
    struct cache *chosen = NULL;
    uint64_t count = 0;
    for (struct cache *cache = model_caches(); cache != NULL; cache = cache->next) {
        if (cache->node == node && cache->target == target && cache->id != 0 && !cache->lent &&
            sim_below(++count) == 0)
            chosen = cache;
    }
    return chosen;
}

// What a push under a name from earlier times finds: the target that has the name now, or nothing, and
// nothing will come.  NULL: something else has it, or may get it.
struct cache *
play_pushed_by_name(struct cache *old)
{
    const struct sim_process *process = old->node->seat->process;
    bool used_up = false;
    for (struct cache *cache = model_caches(); cache != NULL; cache = cache->next) {
        if (cache->node != old->node || cache->process != process)
            continue;
        if (cache->id == old->id && (cache->lent || !cache->ending))
            return cache->target ? cache : NULL;
        used_up |= cache->id >= old->id;
    }
    return used_up ? old : NULL;
}

// Blocks lent to peers, for a while.
#include <string.h>

#include "play.h"

// The memory is the owner's again: whoever read for too long must not have a success with this.
static void
overwrite(const struct cache *cache)
{
    for (uint32_t t = 0; t < cache->num_tensors; t++)
        memset(cache->tensors[t], 0xdd, cache->num_slots * cache->stride);
}

static void
await_lease(struct node *node, struct cache *lease)
{
    llm_status status = LLM_LEASE_ACTIVE;
    while (status == LLM_LEASE_ACTIVE && !sim_chance(10)) {
        if (sim_chance(5))
            EXPECT("llm_lease_renew",
                   play_api()->llm_lease_renew(node->dd, lease->generation,
                                               (uint32_t)sim_between(1, 50)),
                   LLM_SUCCESS, LLM_CACHE_STALE);
        status = play_api()->llm_lease_wait(node->dd, lease->generation, (int32_t)sim_below(30));
        EXPECT("llm_lease_wait", status, LLM_LEASE_ACTIVE, LLM_SUCCESS, LLM_LEASE_EXPIRED);
    }
    model_cache_ends(lease);
    struct watch watch = play_watch_begin();
    if (status == LLM_LEASE_ACTIVE)
        EXPECT("llm_lease_close", play_api()->llm_lease_close(node->dd, lease->generation),
               LLM_SUCCESS);
    play_watch_end(watch, "llm_lease_close",
                   (node->sync_ms + node->liveness_ms) * SIM_MS + 4 * play_tick_ns(node) +
                       100 * SIM_MS);
    model_cache_ended(lease);
    overwrite(lease);
    if (status != LLM_LEASE_ACTIVE)
        EXPECT("llm_lease_close", play_api()->llm_lease_close(node->dd, lease->generation),
               LLM_SUCCESS);
}

// Lends the blocks of a cache of this worker's, for a while, again and again with new contents.
void
play_lend(struct node *node, struct worker *worker)
{
    uint64_t generation;
    if (worker->lent == NULL) {
        worker->lent = play_new_cache(node, false);
        if (!play_allocate_cache(node, worker->lent)) {
            model_cache_ends(worker->lent);
            worker->lent = NULL;
            return;
        }
        worker->lent->lent = true;
        model_cache_ends(worker->lent);
        play_learn_generation(node, worker->lent);
    }
    const struct cache *lent = worker->lent;
    llm_lease_desc desc = {.struct_size = sizeof(desc),
                           .cache_id = lent->id,
                           .duration_ms = (uint32_t)sim_between(1, 100),
                           .num_releases = (uint32_t)sim_below(3)};
    llm_status status = play_api()->llm_lease_open(node->dd, &desc, &generation);
    if (!scenario.faults.memory)
        EXPECT("llm_lease_open", status, LLM_SUCCESS);
    if (status != LLM_SUCCESS)
        return;
    struct cache *lease = model_cache_new(node, sim_current_process(), node->cluster_id, false,
                                          lent->num_tensors, lent->num_slots, lent->stride);
    lease->leased = true;
    lease->generation = generation;
    model_cache_born(lease, lent->id, lent->tensors);
    sim_trace("%s: lease %llu on cache %lld is #%u", sim_current_process()->name,
              (unsigned long long)generation, (long long)lease->id, lease->number);
    await_lease(node, lease);
}

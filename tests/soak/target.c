// Caches that a thread pulls into: what is there may not change after the call.
#include "soak/thread.h"

static void
refill(struct target *target, uint64_t *dice)
{
    target->background = roll(dice, 1 << 20);
    memory_fill(&target->cache.memory, NO_SEAT, 0, target->background);
}

struct target *
take_target(struct thread *th, struct seat *seat, unsigned number, unsigned stride_class)
{
    unsigned place = seat->index % SEATS_PER_WORKER;
    struct target *target = &th->targets[place][number];
    struct cache *cache = &target->cache;
    bool is_old = target->life != seat->life;
    bool is_ours = cache->id != 0 && (!is_old || cache->registered);
    if (is_ours) {
        count(COUNT_late_checks, 1);
        WRONG_UNLESS(memory_checksum(&cache->memory) == target->checksum,
                     "cluster %llu: bytes landed in cache %lld after the call had returned%s",
                     (unsigned long long)seat_cluster(seat->index), (long long)cache->id,
                     is_old ? ", or after finalize" : "");
    }
    if (is_old) {
        memory_unmap(&cache->memory);
        cache->id = 0;
    }
    if (cache->id != 0 && (cache->memory.stride_class != stride_class || roll(&th->dice, 50) == 0))
        cache_close(seat, cache, NULL, &th->dice);
    target->life = seat->life;
    if (cache->id == 0) {
        if (!cache_open(seat, cache, stride_class, 0, false, &th->dice))
            return NULL;
    }
    refill(target, &th->dice);
    target->checksum = memory_checksum(&cache->memory);
    return target;
}

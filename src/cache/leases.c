#include "cache/leases.h"

#include "base/lock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"

enum state { LIVES, ENDING, ENDED };

struct lli_lease {
    struct lli_list node;     // in registry->leases
    struct lli_list in_cache; // in cache->leases while it lives
    uint64_t lease;           // its generation
    uint32_t lease_entry;
    struct lli_lease_range range;
    bool registered; // memory of the user's
    enum state state;
    llm_status result; // why it is ending
    uint64_t deadline_ns;
    uint64_t ending_ns;
    uint32_t releases_left; // 0: it isn't ended by releases
    unsigned readers;       // that are served here
    _Atomic bool overdue;   // it has been ending for long enough
};

static struct lli_list *
bucket_of(struct lli_registry *registry, uint64_t lease)
{
    return &registry->leases[lease / 2 % LLI_NUM_LEASE_BUCKETS];
}

static struct lli_lease *
find_locked(struct lli_registry *registry, uint64_t lease)
{
    LLI_LIST_FOR(node, bucket_of(registry, lease)) {
        struct lli_lease *found = LLI_LIST_ENTRY(node, struct lli_lease, node);
        if (found->lease == lease)
            return found;
    }
    return NULL;
}

static llm_status
no_such_lease(uint64_t lease)
{
    return lli_fail(LLM_PARAM_INVALID, "lease", "there is no lease with generation %llu",
                    (unsigned long long)lease);
}

static void
end_locked(struct lli_registry *registry, struct lli_lease *lease, llm_status result)
{
    lease->state = ENDING;
    lease->result = result;
    lease->ending_ns = lli_now_ns();
    lli_list_remove(&lease->in_cache);
    lli_names_retire_lease(registry->segment, lease->lease_entry);
    pthread_cond_broadcast(&registry->changed);
}

static bool
is_read_here(const struct lli_registry *registry, const struct lli_lease *lease)
{
    return lease->registered &&
           lli_segment_is_read_here(registry->segment->layout->header.incarnation, lease->lease);
}

// An ending lease ends once nobody reads under it, or its readers had their time.
static void
try_to_end_locked(struct lli_registry *registry, struct lli_lease *lease, uint64_t now_ns)
{
    // It may have begun to end a moment after `now_ns`.
    bool late = now_ns >= lease->ending_ns + registry->patience_ns;
    if (late)
        atomic_store(&lease->overdue, true);
    if (lease->readers > 0 || is_read_here(registry, lease))
        return;
    bool is_read = registry->is_read(registry->arg, lease->lease);
    if (is_read && !late)
        return;
    if (is_read)
        lli_log(LLM_LOG_WARN, "lease",
                "lease %llu ends although a peer has been reading under it for %llu ms: that pull "
                "will fail",
                (unsigned long long)lease->lease,
                (unsigned long long)((now_ns - lease->ending_ns) / 1000000));
    lease->state = ENDED;
    lli_names_erase_lease(registry->segment, lease->lease_entry);
    pthread_cond_broadcast(&registry->changed);
    if (registry->on_lease_ended != NULL)
        registry->on_lease_ended(registry->arg);
}

static void
collect_one_locked(struct lli_registry *registry, struct lli_lease *lease, uint64_t now_ns)
{
    if (lease->state == LIVES && now_ns >= lease->deadline_ns)
        end_locked(registry, lease, LLM_LEASE_EXPIRED);
    if (lease->state == ENDING)
        try_to_end_locked(registry, lease, now_ns);
}

void
lli_leases_collect_locked(struct lli_registry *registry, uint64_t now_ns)
{
    for (size_t i = 0; i < LLI_NUM_LEASE_BUCKETS; i++) {
        LLI_LIST_FOR(node, &registry->leases[i])
            collect_one_locked(registry, LLI_LIST_ENTRY(node, struct lli_lease, node), now_ns);
    }
}

void
lli_leases_end_all_locked(struct lli_registry *registry, struct lli_cache *cache)
{
    LLI_LIST_FOR(node, &cache->leases)
        end_locked(registry, LLI_LIST_ENTRY(node, struct lli_lease, in_cache),
                   LLM_KV_CACHE_NOT_EXIST);
}

static void
forget_locked(struct lli_lease *lease)
{
    lli_list_remove(&lease->node);
    lli_free(lease);
}

void
lli_leases_forget_all_locked(struct lli_registry *registry)
{
    for (size_t i = 0; i < LLI_NUM_LEASE_BUCKETS; i++) {
        LLI_LIST_FOR(node, &registry->leases[i])
            forget_locked(LLI_LIST_ENTRY(node, struct lli_lease, node));
    }
}

// ---- the owner's calls ----

static llm_status
find_range_locked(struct lli_registry *registry, const llm_lease_desc *desc,
                  struct lli_cache **ret_cache, struct lli_lease_range *ret_range)
{
    struct lli_cache *cache = lli_registry_find_locked(registry, desc->cache_id);
    if (cache == NULL)
        return lli_fail(LLM_KV_CACHE_NOT_EXIST, "lease", "there is no cache with id %lld",
                        (long long)desc->cache_id);
    uint64_t num_slots = cache->geometry.num_slots;
    uint64_t num_blocks = desc->num_blocks;
    if (num_blocks == 0 && desc->first_block < num_slots)
        num_blocks = num_slots - desc->first_block;
    if (desc->first_block >= num_slots || num_blocks > num_slots - desc->first_block)
        return lli_fail(LLM_PARAM_INVALID, "lease",
                        "blocks %llu and on, %llu of them, are out of range: cache %lld has %llu",
                        (unsigned long long)desc->first_block, (unsigned long long)num_blocks,
                        (long long)desc->cache_id, (unsigned long long)num_slots);
    *ret_cache = cache;
    *ret_range = (struct lli_lease_range){
        .generation = cache->generation,
        .first_slot = desc->first_block,
        .num_slots = num_blocks,
    };
    return LLM_SUCCESS;
}

// `lease` is new and empty.
static llm_status
open_locked(struct lli_registry *registry, const llm_lease_desc *desc, struct lli_lease *lease)
{
    struct lli_cache *cache = NULL;
    LLI_TRY(find_range_locked(registry, desc, &cache, &lease->range));
    if (!lli_names_put_lease(registry->segment, &lease->range, &lease->lease, &lease->lease_entry))
        return lli_fail(LLM_OUT_OF_MEMORY, "lease",
                        "there are %d leases that haven't ended, which is the most",
                        LLI_NUM_LEASE_ENTRIES);
    lease->registered = cache->registered;
    lease->releases_left = desc->num_releases;
    lease->deadline_ns = lli_deadline_after_ms(desc->duration_ms);
    lli_list_append(&cache->leases, &lease->in_cache);
    lli_list_append(bucket_of(registry, lease->lease), &lease->node);
    return LLM_SUCCESS;
}

static llm_status
check_duration(uint32_t duration_ms)
{
    if (duration_ms > 0)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "lease", "duration_ms is 0, expected 1 or more");
}

llm_status
lli_leases_open(struct lli_registry *registry, const llm_lease_desc *desc, uint64_t *ret_lease)
{
    LLI_TRY(check_duration(desc->duration_ms));
    struct lli_lease *lease = lli_calloc(1, sizeof(*lease));
    if (lease == NULL)
        return lli_fail(LLM_OUT_OF_MEMORY, "lease", "no memory for a lease");
    lli_lock(&registry->lock);
    llm_status status = open_locked(registry, desc, lease);
    if (status == LLM_SUCCESS)
        *ret_lease = lease->lease;
    else
        lli_free(lease);
    lli_unlock(&registry->lock);
    return status;
}

static llm_status
renew_locked(struct lli_registry *registry, uint64_t lease, uint32_t duration_ms)
{
    struct lli_lease *found = find_locked(registry, lease);
    if (found == NULL)
        return no_such_lease(lease);
    collect_one_locked(registry, found, lli_now_ns());
    if (found->state != LIVES)
        return lli_fail(LLM_CACHE_STALE, "lease", "lease %llu can't be renewed, it has ended",
                        (unsigned long long)lease);
    found->deadline_ns = lli_deadline_after_ms(duration_ms);
    return LLM_SUCCESS;
}

llm_status
lli_leases_renew(struct lli_registry *registry, uint64_t lease, uint32_t duration_ms)
{
    LLI_TRY(check_duration(duration_ms));
    lli_lock(&registry->lock);
    llm_status status = renew_locked(registry, lease, duration_ms);
    lli_unlock(&registry->lock);
    return status;
}

// Nobody tells when a peer has finished reading; everything else wakes us.
static bool
wait_for_change_locked(struct lli_registry *registry, const struct lli_lease *lease,
                       uint64_t deadline_ns)
{
    if (lli_now_ns() >= deadline_ns)
        return false;
    if (lease->state == ENDING)
        lli_registry_look_again_later_locked(registry);
    else
        (void)lli_cond_wait_until(&registry->changed, &registry->lock,
                                  lli_min(deadline_ns, lease->deadline_ns));
    return true;
}

static llm_status
wait_locked(struct lli_registry *registry, uint64_t lease, uint64_t deadline_ns)
{
    for (;;) {
        struct lli_lease *found = find_locked(registry, lease);
        if (found == NULL)
            return no_such_lease(lease);
        collect_one_locked(registry, found, lli_now_ns());
        if (found->state == ENDED)
            return found->result;
        if (!wait_for_change_locked(registry, found, deadline_ns))
            return LLM_LEASE_ACTIVE;
    }
}

llm_status
lli_leases_wait(struct lli_registry *registry, uint64_t lease, uint64_t deadline_ns)
{
    lli_lock(&registry->lock);
    llm_status status = wait_locked(registry, lease, deadline_ns);
    lli_unlock(&registry->lock);
    return status;
}

llm_status
lli_leases_close(struct lli_registry *registry, uint64_t lease)
{
    lli_lock(&registry->lock);
    struct lli_lease *found = find_locked(registry, lease);
    if (found != NULL && found->state == LIVES)
        end_locked(registry, found, LLM_SUCCESS);
    while (found != NULL && found->state != ENDED) {
        try_to_end_locked(registry, found, lli_now_ns());
        if (found->state == ENDED)
            break;
        lli_registry_look_again_later_locked(registry);
        // Another thread may have closed it meanwhile.
        found = find_locked(registry, lease);
    }
    if (found != NULL) {
        forget_locked(found);
        pthread_cond_broadcast(&registry->changed);
    }
    lli_unlock(&registry->lock);
    return found != NULL ? LLM_SUCCESS : no_such_lease(lease);
}

// ---- for peers that are served here ----

struct lli_lease *
lli_leases_enter(struct lli_registry *registry, uint64_t lease, const struct lli_cache *cache,
                 uint64_t first_slot, uint64_t num_slots)
{
    lli_lock(&registry->lock);
    struct lli_lease *found = find_locked(registry, lease);
    if (found != NULL && (found->state != LIVES || found->range.generation != cache->generation ||
                          !lli_lease_range_holds(&found->range, first_slot, num_slots)))
        found = NULL;
    if (found != NULL)
        found->readers++;
    lli_unlock(&registry->lock);
    return found;
}

void
lli_leases_leave(struct lli_registry *registry, struct lli_lease *lease)
{
    lli_lock(&registry->lock);
    if (--lease->readers == 0 && lease->state == ENDING)
        try_to_end_locked(registry, lease, lli_now_ns());
    lli_unlock(&registry->lock);
}

bool
lli_leases_is_overdue(const struct lli_lease *lease)
{
    return atomic_load(&lease->overdue);
}

bool
lli_leases_live(struct lli_registry *registry, uint64_t lease, const struct lli_cache *cache)
{
    lli_lock(&registry->lock);
    const struct lli_lease *found = find_locked(registry, lease);
    bool lives =
        found != NULL && found->state == LIVES && found->range.generation == cache->generation;
    lli_unlock(&registry->lock);
    return lives;
}

void
lli_leases_release(struct lli_registry *registry, uint64_t lease)
{
    lli_lock(&registry->lock);
    struct lli_lease *found = find_locked(registry, lease);
    if (found != NULL && found->state == LIVES && found->releases_left > 0 &&
        --found->releases_left == 0) {
        end_locked(registry, found, LLM_SUCCESS);
        try_to_end_locked(registry, found, lli_now_ns());
    }
    lli_unlock(&registry->lock);
}

#include "cache/names.h"

static uint64_t
mix(uint64_t z)
{
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint64_t
lli_key_hash(const struct lli_key *key)
{
    return mix(mix(mix(key->id) + key->model_id) + key->kind);
}

// ---- keys ----

static uint32_t
distance(uint64_t from, uint64_t to)
{
    return (uint32_t)(to - from) % LLI_NUM_KEY_ENTRIES;
}

static struct lli_key_entry *
key_at(struct lli_segment *segment, uint64_t place)
{
    return &segment->layout->keys[place % LLI_NUM_KEY_ENTRIES];
}

// Where its search begins.
static uint64_t
home_of(const struct lli_key_entry *at)
{
    struct lli_key key = {
        .kind = (uint32_t)LLI_LOAD(at->kind),
        .id = LLI_LOAD(at->id),
        .model_id = LLI_LOAD(at->model_id),
    };
    return lli_key_hash(&key);
}

// A search that comes by in the meantime finds the key here or there: it goes the same way.
static void
move_key_up(struct lli_key_entry *from, struct lli_key_entry *to)
{
    LLI_STORE(to->kind, LLI_LOAD(from->kind));
    LLI_STORE(to->id, LLI_LOAD(from->id));
    LLI_STORE(to->model_id, LLI_LOAD(from->model_id));
    LLI_STORE(to->entry, LLI_LOAD(from->entry));
    LLI_STORE(to->generation, LLI_LOAD(from->generation));
    LLI_STORE(to->slot, LLI_LOAD(from->slot));
    atomic_store_explicit(&to->stamp, LLI_LOAD(from->stamp), memory_order_release);
    atomic_store(&from->stamp, 0);
    atomic_thread_fence(memory_order_seq_cst);
}

// Brings the free place within `probes` of `home`, by moving keys that are nearer to their own
// homes up into it.  False when none can go so far.
static bool
bring_near(struct lli_segment *segment, uint64_t home, uint32_t probes, uint64_t *free_place)
{
    while (distance(home, *free_place) >= probes) {
        uint64_t place = *free_place - (probes - 1);
        while (place != *free_place &&
               distance(home_of(key_at(segment, place)), *free_place) >= probes)
            place++;
        if (place == *free_place)
            return false;
        move_key_up(key_at(segment, place), key_at(segment, *free_place));
        *free_place = place;
    }
    return true;
}

// Searches go farther only in a table that is nearly full: those of older readers end sooner.
static void
announce_probes(struct lli_segment *segment, uint32_t probes)
{
    if (probes > LLI_KEY_PROBES && probes > LLI_LOAD(segment->layout->header.key_probes))
        atomic_store(&segment->layout->header.key_probes, probes);
}

// There is a free place.
static struct lli_key_entry *
make_room(struct lli_segment *segment, uint64_t home)
{
    uint32_t probes = LLI_KEY_PROBES;
    uint64_t place = home;
    while (LLI_LOAD(key_at(segment, place)->stamp) != 0)
        place++;
    while (!bring_near(segment, home, probes, &place)) {
        probes *= 2;
        announce_probes(segment, probes);
    }
    return key_at(segment, place);
}

bool
lli_names_put_key(struct lli_segment *segment, const struct lli_key *key, uint32_t entry,
                  uint64_t generation, uint64_t slot, uint64_t *ret_stamp)
{
    if (segment->num_keys == LLI_NUM_KEY_ENTRIES)
        return false;
    struct lli_key_entry *at = make_room(segment, lli_key_hash(key));
    LLI_STORE(at->kind, key->kind);
    LLI_STORE(at->id, key->id);
    LLI_STORE(at->model_id, key->model_id);
    LLI_STORE(at->entry, entry);
    LLI_STORE(at->generation, generation);
    LLI_STORE(at->slot, slot);
    *ret_stamp = segment->next_stamp++;
    atomic_store_explicit(&at->stamp, *ret_stamp, memory_order_release);
    segment->num_keys++;
    return true;
}

static uint32_t
probes_of(const struct lli_segment_layout *layout)
{
    uint64_t probes = LLI_LOAD(layout->header.key_probes);
    return (uint32_t)lli_min(lli_max(probes, LLI_KEY_PROBES), LLI_NUM_KEY_ENTRIES);
}

void
lli_names_erase_key(struct lli_segment *segment, const struct lli_key *key)
{
    uint64_t home = lli_key_hash(key);
    for (uint32_t probe = 0; probe < probes_of(segment->layout); probe++) {
        struct lli_key_entry *at = key_at(segment, home + probe);
        if (LLI_LOAD(at->stamp) != key->stamp)
            continue;
        atomic_store(&at->stamp, 0);
        // What is written into the entry from now on comes after its end.
        atomic_thread_fence(memory_order_seq_cst);
        segment->num_keys--;
        return;
    }
}

static bool
read_key(const struct lli_key_entry *at, const struct lli_key *key, uint64_t *ret_entry,
         uint64_t *ret_generation, uint64_t *ret_slot, uint64_t *ret_stamp)
{
    uint64_t stamp = *ret_stamp = atomic_load_explicit(&at->stamp, memory_order_acquire);
    if (stamp == 0 || LLI_LOAD(at->id) != key->id || LLI_LOAD(at->model_id) != key->model_id ||
        LLI_LOAD(at->kind) != key->kind)
        return false;
    *ret_entry = LLI_LOAD(at->entry);
    *ret_generation = LLI_LOAD(at->generation);
    *ret_slot = LLI_LOAD(at->slot);
    // What was read belongs together only if the entry is still the same.
    atomic_thread_fence(memory_order_acquire);
    return atomic_load(&at->stamp) == stamp;
}

bool
lli_names_find_key(const struct lli_segment_layout *peer, const struct lli_key *key,
                   struct lli_remote_cache *ret_cache, uint64_t *ret_slot)
{
    uint64_t hash = lli_key_hash(key);
    // How far is asked anew each time: a key that moves beyond is told first.
    for (uint32_t probe = 0; probe < probes_of(peer); probe++) {
        uint64_t entry;
        uint64_t generation;
        uint64_t stamp;
        if (read_key(&peer->keys[(uint32_t)(hash + probe) % LLI_NUM_KEY_ENTRIES], key, &entry,
                     &generation, ret_slot, &stamp) &&
            lli_segment_find_entry(peer, entry, generation, ret_cache)) {
            ret_cache->key_stamp = stamp;
            return true;
        }
    }
    return false;
}

// ---- leases ----

// Each generation has one place; those whose place is taken are left out.
static uint32_t
lease_place(uint64_t lease)
{
    return (uint32_t)(lease / 2) % LLI_NUM_LEASE_ENTRIES;
}

bool
lli_names_put_lease(struct lli_segment *segment, const struct lli_lease_range *range,
                    uint64_t *ret_lease, uint32_t *ret_lease_entry)
{
    uint64_t lease = segment->next_generation;
    for (uint32_t i = 0; i < LLI_NUM_LEASE_ENTRIES; i++, lease += 2) {
        struct lli_lease_entry *at = &segment->layout->leases[lease_place(lease)];
        if (LLI_LOAD(at->lease) != 0)
            continue;
        LLI_STORE(at->generation, range->generation);
        LLI_STORE(at->first_slot, range->first_slot);
        LLI_STORE(at->num_slots, range->num_slots);
        segment->next_generation = lease + 2;
        atomic_store_explicit(&at->lease, lease, memory_order_release);
        *ret_lease = lease;
        *ret_lease_entry = lease_place(lease);
        return true;
    }
    return false;
}

void
lli_names_retire_lease(struct lli_segment *segment, uint32_t lease_entry)
{
    atomic_fetch_or(&segment->layout->leases[lease_entry].lease, LLI_GENERATION_RETIRED);
    atomic_thread_fence(memory_order_seq_cst);
}

void
lli_names_erase_lease(struct lli_segment *segment, uint32_t lease_entry)
{
    atomic_store(&segment->layout->leases[lease_entry].lease, 0);
    // What is written into its slots from now on comes after the lease's end.
    atomic_thread_fence(memory_order_seq_cst);
}

bool
lli_names_find_lease(const struct lli_segment_layout *peer, uint64_t lease,
                     struct lli_lease_range *ret_range, uint32_t *ret_lease_entry)
{
    uint32_t index = lease_place(lease);
    const struct lli_lease_entry *at = &peer->leases[index];
    if (lease == 0 || (lease & LLI_GENERATION_RETIRED) != 0 ||
        atomic_load_explicit(&at->lease, memory_order_acquire) != lease)
        return false;
    *ret_range = (struct lli_lease_range){
        .generation = LLI_LOAD(at->generation),
        .first_slot = LLI_LOAD(at->first_slot),
        .num_slots = LLI_LOAD(at->num_slots),
    };
    *ret_lease_entry = index;
    return lli_names_lease_still_live(peer, lease, index);
}

bool
lli_names_lease_still_live(const struct lli_segment_layout *peer, uint64_t lease,
                           uint32_t lease_entry)
{
    // What has been read comes before this load.
    atomic_thread_fence(memory_order_acquire);
    return atomic_load(&peer->leases[lease_entry].lease) == lease;
}

bool
lli_names_lease_still_same(const struct lli_segment_layout *peer, uint64_t lease,
                           uint32_t lease_entry)
{
    // The loads of the copy come before this one.
    atomic_thread_fence(memory_order_acquire);
    return (atomic_load(&peer->leases[lease_entry].lease) & ~LLI_GENERATION_RETIRED) == lease;
}

// The other ways to a cache in the directory that peers map: keys, which lead to a slot, and leases,
// which stand for some slots for a time.  Both are tables of fixed size.
#ifndef LLI_NAMES_H
#define LLI_NAMES_H

#include "cache/segment.h"

// What the application calls a slot or a cache.
struct lli_key {
    uint32_t kind; // llm_key_kind
    uint64_t id;
    uint64_t model_id;
    uint64_t stamp; // of what it was bound to when it was found; 0: of whatever it is
};

static inline bool
lli_key_equal(const struct lli_key *a, const struct lli_key *b)
{
    return a->kind == b->kind && a->id == b->id && a->model_id == b->model_id;
}

uint64_t lli_key_hash(const struct lli_key *key);

// A range of slots of the cache with that generation.
struct lli_lease_range {
    uint64_t generation; // of the cache
    uint64_t first_slot;
    uint64_t num_slots;
};

static inline bool
lli_lease_range_holds(const struct lli_lease_range *range, uint64_t first_slot, uint64_t num_slots)
{
    return first_slot >= range->first_slot && num_slots <= range->num_slots &&
           first_slot - range->first_slot <= range->num_slots - num_slots;
}

// The owner's side; the caller serialises all of it.
// False when there are LLI_NUM_KEY_ENTRIES keys.  The stamp is the binding's from now on.
bool lli_names_put_key(struct lli_segment *segment, const struct lli_key *key, uint32_t entry,
                       uint64_t generation, uint64_t slot, uint64_t *ret_stamp);
// That of key->stamp.
void lli_names_erase_key(struct lli_segment *segment, const struct lli_key *key);
// Takes one of the next generations for the lease.  False when there is no room.
bool lli_names_put_lease(struct lli_segment *segment, const struct lli_lease_range *range,
                         uint64_t *ret_lease, uint32_t *ret_lease_entry);
// As lli_segment_retire and lli_segment_erase.
void lli_names_retire_lease(struct lli_segment *segment, uint32_t lease_entry);
void lli_names_erase_lease(struct lli_segment *segment, uint32_t lease_entry);

// The puller's side.
bool lli_names_find_key(const struct lli_segment_layout *peer, const struct lli_key *key,
                        struct lli_remote_cache *ret_cache, uint64_t *ret_slot);
bool lli_names_find_lease(const struct lli_segment_layout *peer, uint64_t lease,
                          struct lli_lease_range *ret_range, uint32_t *ret_lease_entry);
// As lli_segment_still_live and lli_segment_still_same.
bool lli_names_lease_still_live(const struct lli_segment_layout *peer, uint64_t lease,
                                uint32_t lease_entry);
bool lli_names_lease_still_same(const struct lli_segment_layout *peer, uint64_t lease,
                                uint32_t lease_entry);

#endif

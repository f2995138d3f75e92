// Keys that the application binds to slots and caches: the owner's table, of which peers see the copy
// in the segment (names.h).
//
// A deallocated cache lives on while request or prefix keys lead to it.  A request key goes when a
// pull has taken every tensor of its slot; each pull says what it has taken, when it has arrived.
#ifndef LLI_KEYS_H
#define LLI_KEYS_H

#include "cache/names.h"
#include "cache/registry.h"

// Key i names slot i, or the only key all blocks.  Kinds and number have been checked.
// LLM_KV_CACHE_NOT_EXIST, LLM_CACHE_KEY_ALREADY_EXIST, LLM_OUT_OF_MEMORY: then nothing is bound.
llm_status lli_keys_bind(struct lli_registry *registry, int64_t cache_id,
                         const struct lli_key *keys, size_t num_keys);
// An unknown key is fine.
void lli_keys_remove(struct lli_registry *registry, const struct lli_key *key);

// Finds the cache, live or unnamed, to which the key leads, and takes a reference; NULL if there is
// none.
struct lli_cache *lli_keys_hold(struct lli_registry *registry, const struct lli_key *key,
                                uint64_t *ret_slot);
// What the key is bound to now; 0 if it isn't.
uint64_t lli_keys_stamp(struct lli_registry *registry, const struct lli_key *key);
// Would a pull by id of that slot take a request key?
bool lli_keys_slot_has_request(struct lli_registry *registry, const struct lli_cache *cache,
                               uint64_t slot);

// What a pull has taken.
struct lli_taken {
    bool by_key;
    struct lli_key key;
    int64_t cache_id;    // else
    uint64_t slot;       // else
    uint64_t generation; // of the cache; 0: whichever it is
    uint32_t first_tensor;
    uint32_t num_tensors;
};

// By key: LLM_KV_CACHE_NOT_EXIST if the key doesn't lead there any more, or was bound anew: somebody
// else has taken it.  By id: LLM_SUCCESS, whatever there is.
llm_status lli_keys_take(struct lli_registry *registry, const struct lli_taken *taken);

// ---- for the files of this room, with the lock held ----

void lli_keys_drop_locked(struct lli_registry *registry, struct lli_cache *cache);
void lli_keys_drop_blocks_locked(struct lli_registry *registry, struct lli_cache *cache);

#endif

// The caches of an instance, by id, with references that keep their memory alive.
//
// A cache is *live* from its creation to its deallocation; then it is *retired*: unknown to new
// calls, its memory kept for the transfers that run on it, here (references) and in the peers that
// map it (reader slots).  When the last has ended, or the peers had their time, it is freed.  In
// between a cache can be *unnamed*: deallocated, but found by the keys that it still has (keys.h).
#ifndef LLI_REGISTRY_H
#define LLI_REGISTRY_H

#include <pthread.h>

#include "base/base.h"
#include "cache/geometry.h"
#include "cache/pool.h"
#include "cache/segment.h"

enum { LLI_NUM_CACHE_BUCKETS = 1024, LLI_NUM_KEY_BUCKETS = 4096, LLI_NUM_LEASE_BUCKETS = 1024 };

struct lli_cache {
    // In a bucket while live, then in `unnamed` or in `retired`; guarded by lock.
    struct lli_list node;
    int64_t id;
    struct lli_geometry geometry;
    size_t num_devices;
    uintptr_t *addresses; // num_tensors * num_devices
    uint64_t *offsets;    // likewise, into the pools
    uint32_t entry;
    uint64_t generation;
    bool registered; // the memory is the user's
    // Retired, and still referenced after the patience: what peers do with it must end now.  If it is
    // registered, whose user waits, what this side does as well.
    _Atomic bool overdue;
    // Guarded by lock.
    unsigned references;
    unsigned holds; // of the memory alone (holds.h)
    bool freed;     // but for the memory, which is held
    uint64_t retired_ns;
    struct lli_list keys;   // that lead to it (keys.h)
    struct lli_list leases; // on it that live (leases.h)
};

struct lli_registry {
    pthread_mutex_t lock;
    struct lli_list buckets[LLI_NUM_CACHE_BUCKETS]; // guarded by lock
    struct lli_list unnamed;                        // guarded by lock
    struct lli_list retired;                        // guarded by lock
    struct lli_list held;                           // freed, but for the memory; guarded by lock
    struct lli_list holds;                          // see holds.c
    struct lli_list keys[LLI_NUM_KEY_BUCKETS];      // guarded by lock (keys.h)
    struct lli_list leases[LLI_NUM_LEASE_BUCKETS];  // guarded by lock (leases.h)
    pthread_cond_t changed;                         // a retired cache was freed, or a lease changed
    size_t num_caches;                              // not retired; guarded by lock
    int64_t next_id;                                // guarded by lock
    struct lli_segment *segment;
    struct lli_pool *pools; // num_devices; guarded by lock
    size_t num_devices;
    // How long a retired cache waits for a peer that still reads it.
    uint64_t patience_ns;
    // Does any peer announce that it reads this generation, a cache's or a lease's?  Called with the
    // lock held.
    bool (*is_read)(void *arg, uint64_t generation);
    // A lease has ended; or NULL.  Called with the lock held.
    void (*on_lease_ended)(void *arg);
    void *arg; // of both
};

void lli_registry_open(struct lli_registry *registry, struct lli_segment *segment,
                       struct lli_pool *pools, size_t num_devices, uint64_t patience_ns,
                       bool (*is_read)(void *arg, uint64_t generation), void *arg);
// Frees every cache, whoever reads it: readers find out.  Waits only for those of this process that
// read registered memory.
void lli_registry_close(struct lli_registry *registry);

// Allocates from every pool and publishes.  The id counts up even when this fails (§7.1).
llm_status lli_registry_allocate(struct lli_registry *registry, const struct lli_geometry *geometry,
                                 int64_t *ret_id, uintptr_t *ret_addresses);
// LLM_KV_CACHE_NOT_EXIST if the id is unknown, or names the other kind of cache.
llm_status lli_registry_deallocate(struct lli_registry *registry, int64_t id);

// Publishes memory of the user's: geometry->num_tensors addresses, on the one device there is.
llm_status lli_registry_register(struct lli_registry *registry, const struct lli_geometry *geometry,
                                 const uint64_t *addresses, int64_t *ret_id);
// Returns when nobody touches the memory any more, or the peers had their time.  An unknown id is
// fine.
void lli_registry_unregister(struct lli_registry *registry, int64_t id);

// Finds a live cache and takes a reference; NULL if there is none.
struct lli_cache *lli_registry_hold(struct lli_registry *registry, int64_t id);
// One more reference to a cache that the caller holds already.
void lli_registry_hold_again(struct lli_registry *registry, struct lli_cache *cache);
// The memory is freed with the last reference to a retired cache.  NULL is fine.
void lli_registry_put(struct lli_registry *registry, struct lli_cache *cache);

// The live or unnamed cache of which `bytes` from `address` on are part, within one tensor; with a
// reference, NULL if there is none.  Of several, one whose elements agree with that type, if there is one.
struct lli_cache *lli_registry_hold_range(struct lli_registry *registry, uintptr_t address,
                                          uint64_t bytes, int32_t data_type);

// Frees retired caches that nobody uses any more, and ends leases whose time is up.  Called now and
// then.
void lli_registry_collect(struct lli_registry *registry);

// ---- for the files of this room, with the lock held ----

struct lli_cache *lli_registry_find_locked(struct lli_registry *registry, int64_t id);
void lli_registry_put_locked(struct lli_registry *registry, struct lli_cache *cache);
// For holds.c, without the lock: one hold less.
void lli_registry_let_go(struct lli_registry *registry, struct lli_cache *cache);
// Unknown to new calls from now on; its keys are gone, its leases are about to end.
void lli_registry_retire_locked(struct lli_registry *registry, struct lli_cache *cache);
void lli_registry_collect_locked(struct lli_registry *registry);
// Does a thread of this process read that generation where the user has put it?  That thread ends by
// itself, and would crash if the memory went away.
bool lli_registry_is_read_here(const struct lli_registry *registry, const struct lli_cache *cache,
                               uint64_t generation);
// Whoever reads doesn't tell when it has finished: waits about a millisecond.
void lli_registry_look_again_later_locked(struct lli_registry *registry);

#endif

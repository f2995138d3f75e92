// The caches of an instance, by id, with references that keep their memory alive.
//
// A cache is *live* from its creation to its deallocation; then it is *retired*: unknown to new
// calls, its memory kept for the transfers that run on it, here (references) and in the peers that
// map it (reader slots).  When the last has ended, or the peers had their time, it is freed.
#ifndef LLI_REGISTRY_H
#define LLI_REGISTRY_H

#include <pthread.h>

#include "base/base.h"
#include "cache/geometry.h"
#include "cache/pool.h"
#include "cache/segment.h"

enum { LLI_NUM_CACHE_BUCKETS = 1024 };

struct lli_cache {
    struct lli_list node; // in a bucket while live, in `retired` afterwards; guarded by lock
    int64_t id;
    struct lli_geometry geometry;
    size_t num_devices;
    uintptr_t *addresses; // num_tensors * num_devices
    uint64_t *offsets;    // likewise, into the pools
    uint32_t entry;
    uint64_t generation;
    bool registered;     // the memory is the user's
    unsigned references; // guarded by lock
    uint64_t retired_ns; // guarded by lock
    // Registered, retired, and still referenced after the patience: the user waits for it, so what
    // peers do with it must end now.
    _Atomic bool overdue;
};

struct lli_registry {
    pthread_mutex_t lock;
    struct lli_list buckets[LLI_NUM_CACHE_BUCKETS]; // guarded by lock
    struct lli_list retired;                        // guarded by lock
    pthread_cond_t changed;                         // a retired cache has been freed
    size_t num_caches;                              // live ones; guarded by lock
    int64_t next_id;                                // guarded by lock
    struct lli_segment *segment;
    struct lli_pool *pools; // num_devices; guarded by lock
    size_t num_devices;
    // How long a retired cache waits for a peer that still reads it.
    uint64_t patience_ns;
    // Does any peer announce that it reads this generation?  Called with the lock held.
    bool (*is_read)(void *arg, uint64_t generation);
    void *is_read_arg;
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
// The memory is freed with the last reference to a retired cache.
void lli_registry_put(struct lli_registry *registry, struct lli_cache *cache);

// Frees retired caches that nobody uses any more.  Called now and then.
void lli_registry_collect(struct lli_registry *registry);

#endif

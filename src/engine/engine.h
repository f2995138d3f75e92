// One instance: opens and closes the rooms in order, holds their state, introduces them to each
// other.
#ifndef LLI_ENGINE_H
#define LLI_ENGINE_H

#include <pthread.h>
#include <sys/types.h>

#include "base/loop.h"
#include "cache/pool.h"
#include "cache/registry.h"
#include "cache/segment.h"
#include "link/accept.h"
#include "link/link.h"
#include "options/options.h"
#include "transport/crew.h"
#include "transport/lanes.h"

struct llm_datadist {
    uint64_t cluster_id;
    _Atomic int role;          // llm_role, or what the caller took for one
    pthread_mutex_t life_lock; // serialises initialize, and what may change the listeners
    _Atomic bool initialized;
    _Atomic bool version_2; // the rules of §13
    pid_t pid;              // of the process that initialized it
    unsigned num_forks;     // lli_fork_count there

    // Open while initialized.
    struct lli_options options;
    struct lli_pool *pools;         // one per device
    struct lli_memory_file *memory; // likewise: the pools, to look for holes
    struct lli_segment segment;
    struct lli_registry registry;
    struct lli_loop loop;
    struct lli_node node;
    struct lli_lanes lanes;
    struct lli_crew crew;
    struct lli_exchange_listener exchange;
    struct lli_listeners listeners;
};

// Opens everything; on failure nothing stays open.
llm_status lli_engine_open(struct llm_datadist *dd, const llm_option *options, size_t num_options);
void lli_engine_close(struct llm_datadist *dd);
// In a forked child, of the parent's instance: lets go of it, and does nothing that the parent could
// notice.
void lli_engine_forget(struct llm_datadist *dd);

// Replaces the listeners by one at `place`, or by none if it is NULL.  On failure the old ones go
// on listening.
llm_status lli_engine_relisten(struct llm_datadist *dd, const struct lli_endpoint *place);

// Are there transfers on the link that this side has begun?
bool lli_engine_link_is_active(struct lli_link *link);
// Is anything going on that an unlink would cut?  [loop's thread]
bool lli_engine_link_has_work(struct lli_link *link);

#endif

// What the players do, in parts: each call judged by what it returns, how long it takes, and what it
// leaves in memory.
#ifndef SIM_PLAY_H
#define SIM_PLAY_H

#include "scenario.h"

// The current process' own copy of the library.
const struct sim_api *play_api(void);

#define EXPECT(call, status, ...)                                                                  \
    do {                                                                                           \
        const llm_status allowed_[] = {__VA_ARGS__};                                               \
        if (!play_is_any(status, allowed_, SIM_COUNT(allowed_)))                                   \
            sim_fail("%s: %s returned %s, which it must not", sim_current_process()->name, call,   \
                     play_api()->llm_status_name(status));                                         \
    } while (0)

bool play_is_any(llm_status status, const llm_status *allowed, size_t num_allowed);

// ---- bounds ----

struct watch {
    uint64_t start_ns;
    uint64_t hindered_ns;
};

struct watch play_watch_begin(void);
void play_watch_end(struct watch watch, const char *call, uint64_t bound_ns);
uint64_t play_tick_ns(const struct node *node);
// How long the death of a peer may go unnoticed.
uint64_t play_notice_ns(const struct node *node, const struct node *peer);

// ---- caches ----

// NULL: it could not be made, for want of memory.
struct cache *play_make_cache(struct node *node, bool target);
struct cache *play_new_cache(struct node *node, bool target);
bool play_allocate_cache(struct node *node, struct cache *cache);
void play_learn_generation(struct node *node, struct cache *cache);
void play_free_cache(struct node *node, struct cache *cache);
// What is left of registered memory.
void play_free_guards(void);

// A random cache of a node's present process; NULL if there is none.
struct cache *play_some_cache(const struct node *node, bool target, bool leased);
size_t play_count_caches(const struct node *node, bool target);
// A cache of whatever process the node has had.
struct cache *play_some_old_cache(const struct node *node, bool target);
// What a push under such a name finds; NULL: something else has it, or may get it.
struct cache *play_pushed_by_name(struct cache *old);

// ---- links ----

void play_host_text(int host, char text[16]);
struct node *play_some_peer(const struct node *node);
llm_status play_link_with(struct node *node, struct node *peer, int32_t timeout_ms);
void play_unlink_from(struct node *node, struct node *peer, bool force);
// llm_link_state, or 0 without a link.
uint32_t play_link_state(const struct node *node, const struct node *peer);
bool play_is_ready(const struct node *node, const struct node *peer);
// Looks at the link to a peer, and what it must know about it.
void play_probe(const struct node *node, const struct node *peer);

// ---- transfers and leases ----

bool play_can_pull(const struct node *node);
bool play_can_push(const struct node *node);
// LLM_TRANSFER_PENDING: there is no room for one at the moment.
llm_status play_transfer(struct node *node, struct node *peer, bool push, struct cache *here,
                         struct cache *there);
void play_some_transfer(struct node *node);

struct worker {
    struct node *node;
    unsigned number;
    uint64_t thread;
    struct cache *lent; // the cache that it opens leases on
};

// Lends the blocks of a cache of this worker's, for a while.
void play_lend(struct node *node, struct worker *worker);

#endif

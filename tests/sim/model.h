// What must be true: caches with known contents, operations on them, and the comparison.
//
// Sources hold a pattern that says which cache, tensor, slot and word it is, and never change.  Targets
// hold what the last operation that ended left there; a slot belongs to at most one operation.
#ifndef SIM_MODEL_H
#define SIM_MODEL_H

#include "api.h"
#include "sim.h"

enum { TENSORS_MAX = 6, SLOTS_MAX = 8, BLOCKS_MAX = 4 };

struct node;
struct op;

struct cache {
    struct cache *next;
    unsigned number; // of all caches of the run
    const struct node *node;
    struct sim_process *process;
    uint64_t cluster_id;
    int64_t id;
    uint64_t generation; // 0: not known yet
    bool registered;
    bool target; // else a source
    bool lent;   // its contents change from lease to lease: to be pulled under one alone
    bool leased; // a lease on such a cache
    uint32_t num_tensors;
    uint32_t num_slots;
    uint64_t stride;
    uint8_t *tensors[TENSORS_MAX];
    uint8_t *expected;          // num_tensors * num_slots * stride
    struct op *busy[SLOTS_MAX]; // written by an operation that has not ended
    // A push that ended with its link, or with the pusher, or whose end this side didn't confirm: here it
    // may go on until this side notices.
    struct doubt {
        uint64_t from; // cluster; 0: none
        uint64_t since_ns;
        uint64_t hindered_ns;  // of the cache's process, then
        uint64_t link_gone_ns; // when the link was seen to be gone; 0: not yet
        uint64_t dead_ns;      // what the pusher takes for death, after which it breaks the link
    } doubts[SLOTS_MAX];
    bool readable;      // its memory may be looked at
    bool ending;        // a call that frees it has begun
    uint64_t born_ns;   // when the call that made it began
    uint64_t filled_ns; // when it got its contents
    uint64_t end_ns;    // when the call that freed it returned, or its process died
    unsigned num_users;
};

struct op {
    struct op *next;
    uint64_t serial;
    const struct node *node;
    struct sim_process *process;
    bool push;
    bool whole_slot; // a batch slot, else blocks
    struct cache *local;
    uint64_t cluster_id; // of the peer
    int64_t remote_id;
    uint64_t generation; // of the peer's cache; 0: any
    size_t num_slots;
    uint64_t local_slots[BLOCKS_MAX];
    uint64_t remote_slots[BLOCKS_MAX];
    uint32_t local_tensor, remote_tensor, num_tensors;
    uint64_t bytes; // per slot
    bool leased;    // under a lease
    bool cancelled;
    unsigned links_made; // between the two ends, before it began
    bool notified;       // carries a notification with its serial number
    uint64_t start_ns;
    uint64_t hindered_ns; // of its process, at the start
    uint64_t bound_ns;
    uint64_t timeout_ns;
    uint64_t cancelled_ns; // when it was
};

struct cache *model_cache_new(const struct node *node, struct sim_process *process,
                              uint64_t cluster_id, bool target, uint32_t num_tensors,
                              uint32_t num_slots, uint64_t stride);
// It has an id and memory now: fills it.
void model_cache_born(struct cache *cache, int64_t id, uint8_t *const *tensors);
// The call that frees it begins: nobody looks at its memory any more.
void model_cache_ends(struct cache *cache);
void model_cache_ended(struct cache *cache);
struct cache *model_caches(void);

// Begins an operation: takes the slots that it will write.
struct op *model_op_begin(const struct op *template);
// It has ended; judges status and bytes, and takes down what is there now.
void model_op_ended(struct op *op, llm_status status);
// Goes on with it, after an attempt that has failed.
void model_op_again(struct op *op, bool in_doubt);
// The first so many bytes of it have arrived, it is said.
void model_op_check_progress(const struct op *op, uint64_t bytes);
// Lets go of it.  in_doubt: its peer may not know yet.
void model_op_forget(struct op *op, bool in_doubt);
// The state of the link from `from` to this node, 0 if there is none; it has been made at `link_ns`.
void model_link_seen(const struct node *node, uint64_t from, uint32_t state, uint64_t link_ns);
// Does a free slot for writing exist?  Picks `count` different ones.
bool model_pick_slots(const struct cache *cache, size_t count, uint64_t *ret_slots);
// Has what the operation writes arrived?  For operations that are known still.
bool model_op_arrived(const struct op *op);
struct op *model_op_find(uint64_t serial);

void model_process_died(struct sim_process *process);
// Compares everything that nobody may be writing.
void model_check(void);
void model_reset(void);

#endif

// A cluster in a test: an instance with its caches, whose bytes follow from a seed and a place, so
// that every byte can be told from every other.  The test's own process uses these functions; other
// processes run member_serve and do the same by commands.
#ifndef LLM_TEST_MEMBER_H
#define LLM_TEST_MEMBER_H

#include <poll.h>

#include "llm_datadist/llm_datadist_c.h"
#include "multi/process.h"

enum { MEMBER_DEVICES_MAX = 4, MEMBER_TENSORS_MAX = 16, MEMBER_CACHES_MAX = 16 };

struct member_cache {
    llm_cache cache;
    uint64_t num_slots;
    uint64_t stride;
    uint32_t num_tensors; // per device
    uintptr_t addresses[MEMBER_DEVICES_MAX * MEMBER_TENSORS_MAX];
};

struct member {
    llm_datadist *dd;
    uint64_t cluster_id;
    size_t num_devices;
    uint16_t ports[MEMBER_DEVICES_MAX];
    struct member_cache caches[MEMBER_CACHES_MAX];
};

struct member_setup {
    uint64_t cluster_id;
    llm_role role;
    const char *transports;
    unsigned num_devices; // 0 means 1
    unsigned sync_ms;     // 0 means long
    unsigned liveness_ms; // 0 means long: a busy machine is slow, not dead
    unsigned dead_ms;     // 0 means the default
    uint16_t port;        // of the first device
    bool warns;           // in the log
    bool checksum;        // of this process' members only
    uint64_t pool_bytes;  // of each device; 0 means the default; of this process' members only
};

llm_status member_try_open(struct member *member, const struct member_setup *setup);
void member_open(struct member *member, const struct member_setup *setup);
void member_close(struct member *member);

// A cache in place `index` of member->caches; its id.
int64_t member_allocate(struct member *member, size_t index, uint32_t num_tensors,
                        uint64_t num_slots, uint64_t stride);
void member_deallocate(struct member *member, size_t index);

// Fills the cache with what `seed` stands for; 0 stands for zeros.
void member_fill(struct member *member, size_t index, uint64_t seed);
// Does slot `slot` of a tensor hold what `seed` stands for at that other place?
bool member_holds(const struct member *member, size_t index, size_t device, uint32_t tensor,
                  uint64_t slot, uint64_t seed, uint32_t seed_tensor, uint64_t seed_slot);
// All tensors and slots.
bool member_holds_all(struct member *member, size_t index, uint64_t seed);
uint64_t member_checksum(struct member *member, size_t index);
// The first word of a tensor, looked at while somebody may be writing it.
uint64_t member_peek(const struct member *member, size_t index, size_t device, uint32_t tensor);

// Ports of the peer, one per device.
llm_status member_link(struct member *member, uint64_t cluster_id, const uint16_t *ports,
                       int32_t timeout_ms);
llm_status member_unlink(struct member *member, uint64_t cluster_id, const uint16_t *ports,
                         int32_t timeout_ms, bool force);

// A transfer between cache `index` here and a cache of the peer.
enum transfer_kind {
    TRANSFER_PULL_BLOCKS,
    TRANSFER_PULL_SLOT,
    TRANSFER_PUSH_BLOCKS,
    TRANSFER_PUSH_SLOT
};

struct transfer {
    enum transfer_kind kind;
    uint64_t cluster_id;
    int64_t remote_cache;
    size_t index;
    // Block i of the source goes to block (i * step + shift) % count of the destination, for i in
    // 0..count-1; kind slot: from slot `count` to slot `shift`.
    uint64_t count;
    uint64_t step;
    uint64_t shift;
    unsigned repeat;       // kind blocks: the list so many times over; 0 means once
    int32_t src_layers[2]; // used if has_layers
    int32_t dst_layers[2];
    bool has_layers;
};

llm_status member_transfer(struct member *member, const struct transfer *transfer);

// LLM_LINK_READY, _SUSPECT, _BROKEN, or 0 without a link; the transport may be NULL.
unsigned member_link_state(struct member *member, uint64_t cluster_id, char transport[16]);
// Waits until the link has that state; it must come.
void member_await_state(struct member *member, uint64_t cluster_id, unsigned state);

// ---- in another process ----

// Runs commands until the other end closes.  The exit code.
int member_serve(struct talk *talk);

// Opens a member in another process; its ports.
void remote_open(struct process *process, const struct member_setup *setup,
                 uint16_t ports[MEMBER_DEVICES_MAX]);
int64_t remote_allocate(struct process *process, size_t index, uint32_t num_tensors,
                        uint64_t num_slots, uint64_t stride);
void remote_fill(struct process *process, size_t index, uint64_t seed);
llm_status remote_link(struct process *process, uint64_t cluster_id, const uint16_t *ports,
                       unsigned num_ports);
void remote_begin_transfer(struct process *process, const struct transfer *transfer);
llm_status remote_end_transfer(struct process *process);
llm_status remote_transfer(struct process *process, const struct transfer *transfer);
unsigned remote_link_state(struct process *process, uint64_t cluster_id);
uint64_t remote_checksum(struct process *process, size_t index);

// Waits for an event by looking again and again; it must come.
#define AWAIT(condition)                                                                           \
    do {                                                                                           \
        uint64_t await_deadline_ = now_ms() + PATIENCE_MS;                                         \
        while (!(condition)) {                                                                     \
            if (now_ms() > await_deadline_)                                                        \
                fail_msg("%s:%d: %s did not come", __FILE__, __LINE__, #condition);                \
            (void)poll(NULL, 0, 1);                                                                \
        }                                                                                          \
    } while (0)

#endif

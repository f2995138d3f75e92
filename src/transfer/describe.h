// What a caller asks for, turned into what travels and what is copied.
#ifndef LLI_DESCRIBE_H
#define LLI_DESCRIBE_H

#include "link/link.h"
#include "transfer/interrupt.h"
#include "transfer/request.h"
#include "transfer/source.h"

// What the caller asks for.  The local side has been checked.
struct lli_transfer_args {
    bool push;
    bool version_2; // the peer answers by the rules of version 2
    enum lli_request_kind kind;
    uint64_t cluster_id;
    enum lli_request_by by;
    int64_t remote_cache_id;
    struct lli_key key;
    const uint64_t *remote_addresses; // num_tensors
    uint64_t generation;              // of the remote cache or a lease on it; 0: any
    struct lli_cache *cache;          // local, held by the caller during the call
    uint32_t local_first_tensor;
    uint32_t remote_first_tensor;
    uint32_t num_tensors;
    bool all_tensors;
    uint32_t tensors_per_layer;
    uint64_t local_slot; // kind slot
    uint64_t remote_slot;
    uint64_t local_offset; // into the slot
    uint64_t remote_offset;
    uint64_t bytes;
    uint64_t bytes_min;           // not 0: what the remote slot has, between this and `bytes`
    const uint64_t *local_blocks; // kind blocks; kind slot: what the slot is cut into, or NULL
    const uint64_t *remote_blocks;
    size_t num_blocks;
    bool keep_key;
    bool release_lease;
    bool allow_other_type;
    llm_progress *progress; // or NULL; of a started transfer only read
    uint64_t deadline_ns;
    struct lli_interrupt interrupt;
    const void *notification; // for the peer, when all has arrived
    size_t notification_bytes;
    bool lost_reading; // set by a transfer that may go another way now
};

// What it asks for, without blocks and addresses: nothing to free.
struct lli_request lli_describe_names(const struct lli_transfer_args *args);
// The request to the peer, the caller's to free.
llm_status lli_describe_request(const struct lli_transfer_args *args,
                                struct lli_request *ret_request);
// Adds to the request of a push what its receiver fetches from our memory, on one host.
llm_status lli_describe_fetch(const struct lli_transfer_args *args, struct lli_request *request);

// The addresses of the selected local tensors, for every device; the caller's to free.
llm_status lli_describe_tensors(const struct lli_transfer_args *args, uintptr_t **ret_tensors);

// The plan from the peer's tensors to ours; our side alone, as if `bytes` were what there is.
llm_status lli_describe_pull(const struct lli_transfer_args *args,
                             const struct lli_source_cache *source, struct lli_plan *ret_plan);
llm_status lli_describe_side(const struct lli_transfer_args *args, struct lli_plan *ret_plan);

// Where in the stream of `total_bytes` a transfer goes on, and with which cache of the peer's.
// LLM_CACHE_STALE if that, or what its key leads to, is another by now; `why` says what is wrong.
llm_status lli_describe_resume(llm_progress *progress, const struct lli_request *request,
                               uint64_t generation, uint64_t total_bytes, char *why,
                               size_t why_size);

// Must the owner be told when a pull has arrived?  `slot_has_request`: as far as is known.
bool lli_describe_tells(const struct lli_request *request, bool slot_has_request);
// What it is told: what was pulled, from the cache of that generation.
struct lli_request lli_describe_done(const struct lli_request *request, uint64_t generation);

// Opens the peer's cache for reading by this process.
llm_status lli_describe_source(struct lli_link *link, const struct lli_transfer_args *args,
                               struct lli_source_cache *ret_source);

// Logs why a transfer failed, and returns the status.
llm_status lli_describe_failure(const struct lli_transfer_args *args, llm_status status,
                                const char *why);

#endif

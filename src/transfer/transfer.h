// A transfer that this side begins, from its start to its one end.
//
// A pull on one host is a copy in the caller's thread.  Everything else is a conversation with the
// peer, led by the loop's thread while the caller waits.
#ifndef LLI_TRANSFER_H
#define LLI_TRANSFER_H

#include "link/link.h"
#include "transfer/request.h"

// What the caller asks for.  The local side has been checked.
struct lli_transfer_args {
    bool push;
    enum lli_request_kind kind;
    uint64_t cluster_id;
    int64_t remote_cache_id;
    struct lli_cache *cache; // local, held by the caller during the call
    uint32_t local_first_tensor;
    uint32_t remote_first_tensor;
    uint32_t num_tensors;
    bool all_tensors;
    uint32_t tensors_per_layer;
    uint64_t local_slot; // kind slot
    uint64_t remote_slot;
    uint64_t bytes;
    const uint64_t *local_blocks; // kind blocks
    const uint64_t *remote_blocks;
    size_t num_blocks;
    uint64_t deadline_ns;
};

// Runs a transfer to its end.
llm_status lli_transfer_run(struct lli_node *node, const struct lli_transfer_args *args);

// ---- for the loop's thread ----

// Handles RESULT, PUSH_ACCEPTED and CANCELLED.  False if the message is malformed.
bool lli_transfers_message(struct lli_link *link, const struct lli_message_header *header,
                           struct lli_reader *body);
// Ends all transfers of the link.
void lli_transfers_broken(struct lli_link *link, llm_status status);
// Breaks links whose peers don't confirm a cancel.
void lli_transfers_tick(struct lli_node *node);

#endif

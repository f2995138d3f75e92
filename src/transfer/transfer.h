// A transfer that this side begins, from its start to its one end.
//
// A pull on one host that its caller waits for is a copy in the caller's thread.  Everything else is
// led by the loop's thread: a conversation with the peer, or a copy in portions.
#ifndef LLI_TRANSFER_H
#define LLI_TRANSFER_H

#include "link/link.h"
#include "transfer/describe.h"

// Runs a transfer to its end.  May let go of args->cache, which is NULL then.
llm_status lli_transfer_run(struct lli_node *node, struct lli_transfer_args *args);

// Starts one.  LLM_SUCCESS: it has a name, and will end.
llm_status lli_transfer_start(struct lli_node *node, const struct lli_transfer_args *args,
                              uint64_t *ret_transfer_id);

// What a linked peer has under the name that the request gives.
llm_status lli_transfer_query(struct lli_node *node, uint64_t cluster_id,
                              const struct lli_request *request, uint64_t deadline_ns,
                              struct lli_answer *ret_answer);

// Of a started transfer, by name; LLM_PARAM_INVALID if there is none.  [any thread but the loop's]
llm_status lli_transfer_wait(struct lli_node *node, uint64_t transfer_id, uint64_t deadline_ns);
llm_status lli_transfer_get_progress(struct lli_node *node, uint64_t transfer_id,
                                     llm_progress *ret_progress);
llm_status lli_transfer_cancel(struct lli_node *node, uint64_t transfer_id);
llm_status lli_transfer_release(struct lli_node *node, uint64_t transfer_id);
// Releases all of them; their links are gone.
void lli_transfers_release_all(struct lli_node *node);

// Makes the eventfd readable: something that was begun has ended.  [any thread]
void lli_transfer_announce_end(struct lli_node *node);

// ---- for the loop's thread ----

// Handles RESULT, PUSH_ACCEPTED and CANCELLED.  False if the message is malformed.
bool lli_transfers_message(struct lli_link *link, const struct lli_message_header *header,
                           struct lli_reader *body);
// Ends all transfers of the link.
void lli_transfers_broken(struct lli_link *link, llm_status status);
// Ends what has run out of time, breaks links whose peers don't confirm a cancel.
void lli_transfers_tick(struct lli_node *node, uint64_t now_ns);

#endif

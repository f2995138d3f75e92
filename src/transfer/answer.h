// Answers what peers ask: what is there under a name, and that a pull of theirs has arrived.
#ifndef LLI_ANSWER_H
#define LLI_ANSWER_H

#include "link/link.h"
#include "transfer/request.h"

// Finds the cache that a request names, with a reference, and the slot that a key leads to.  Checks
// the generation if it is the cache's; one of a lease must then be entered (leases.h): *ret_lease.
// On failure `why` says what is wrong.
llm_status lli_answer_find(struct lli_node *node, struct lli_request *request,
                           struct lli_cache **ret_cache, uint64_t *ret_lease, char *why,
                           size_t why_size);

// Handles QUERY and DONE.  False if the message is malformed.
bool lli_answers_message(struct lli_link *link, const struct lli_message_header *header,
                         struct lli_reader *body);

#endif

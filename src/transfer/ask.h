// Questions to the peer, each with one answer: QUERY and DONE.
#ifndef LLI_ASK_H
#define LLI_ASK_H

#include "link/link.h"
#include "transfer/interrupt.h"
#include "transfer/request.h"

struct lli_ask {
    struct lli_list node; // in link->asks
    uint64_t id;
    // The one end: the peer's answer, or what broke the link.
    void (*answered)(struct lli_ask *ask, llm_status status, const char *text,
                     const struct lli_answer *answer);
};

// Asks, with those fields of a request that name something; its blocks don't travel.  [loop's thread]
void lli_ask_send(struct lli_link *link, struct lli_ask *ask, enum lli_message_type type,
                  const struct lli_request *request);
// The answer isn't wanted any more.  Harmless if it has come.  [loop's thread]
void lli_ask_forget(struct lli_ask *ask);

// Asks and waits for the answer: the peer's status, a broken link's, LLM_WAIT_PROC_TIMEOUT or
// LLM_TRANSFER_CANCELLED, with `why` filled in.  The link is acquired.  [any thread but the loop's]
llm_status lli_ask_and_wait(struct lli_link *link, enum lli_message_type type,
                            const struct lli_request *request,
                            const struct lli_interrupt *interrupt, uint64_t deadline_ns,
                            struct lli_answer *ret_answer, char *why, size_t why_size);

// Handles ANSWER.  False if it is malformed.  [loop's thread]
bool lli_asks_message(struct lli_link *link, const struct lli_message_header *header,
                      struct lli_reader *body);
// Ends all questions of the link.  [loop's thread]
void lli_asks_broken(struct lli_link *link, llm_status status);

#endif

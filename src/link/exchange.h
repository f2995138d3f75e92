// Memory files change hands over an abstract Unix socket of the host: one message each way, with the
// descriptors of the directory and of the pools.  What makes the transports local and shm possible.
#ifndef LLI_EXCHANGE_H
#define LLI_EXCHANGE_H

#include "link/link.h"

// The connector's side: sends ours, maps the peer's.  NULL, with the reason in `why`.
struct lli_view *lli_exchange_connect(struct lli_node *node, const struct lli_identity *peer,
                                      uint64_t link_token, uint64_t deadline_ns, char *why,
                                      size_t why_size);

// What has arrived at the listener's side.
struct lli_exchange_offer {
    uint64_t link_token;
    uint64_t incarnation;
    int fds[LLI_NUM_VIEW_FDS_MAX];
    size_t num_fds;
};

// Reads an offer from an accepted socket.  False if it is none, or from another user: `why` says so.
bool lli_exchange_receive(int fd, struct lli_exchange_offer *ret_offer, char *why,
                          size_t why_size);
void lli_exchange_offer_fini(struct lli_exchange_offer *offer);
// Answers with our own memory files, or with a refusal.
void lli_exchange_answer(struct lli_node *node, int fd, llm_status status, const char *text);

#endif

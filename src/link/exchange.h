// Memory files change hands over an abstract Unix socket of the host: one message each way, with the
// descriptors of the directory and of the pools.  What makes the transports local and shm possible.
#ifndef LLI_EXCHANGE_H
#define LLI_EXCHANGE_H

#include "link/link.h"

// The connector's side: sends ours, maps the peer's.  NULL, with the reason in `why`.
// *ret_peer_can_read: the peer can read this process' memory, for caches that are registered.  On
// success `why` is empty, or says why registered memory goes another way.
struct lli_view *lli_exchange_connect(struct lli_node *node, const struct lli_identity *peer,
                                      uint64_t link_token, uint64_t deadline_ns,
                                      bool *ret_peer_can_read, char *why, size_t why_size);

// Lets the view watch the process at the other end of the exchange's socket, also one in another pid
// namespace, or where pidfd_open isn't permitted; since Linux 6.5.  Else it gets a life line
// (transport/view.h).
void lli_exchange_watch(int fd, struct lli_view *view);

// What has arrived at the listener's side.
struct lli_exchange_offer {
    uint64_t link_token;
    uint64_t incarnation;
    pid_t pid; // 0: unknown here
    int fds[LLI_NUM_VIEW_FDS_MAX];
    size_t num_fds;
};

// Reads an offer from an accepted socket.  False if it is none, or from another user: `why` says so.
bool lli_exchange_receive(int fd, struct lli_exchange_offer *ret_offer, char *why, size_t why_size);
void lli_exchange_offer_fini(struct lli_exchange_offer *offer);
// Answers with our own memory files, or with a refusal.  `text`: why it is refused, or why this side
// can't read the peer's registered memory; "" if it can.
void lli_exchange_answer(struct lli_node *node, int fd, llm_status status, const char *text);

#endif

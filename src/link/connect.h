// Making a link to a listener, in the caller's thread.
#ifndef LLI_CONNECT_H
#define LLI_CONNECT_H

#include "link/link.h"

struct lli_link_target {
    uint64_t cluster_id;
    bool any_cluster; // take whoever answers; the link gets the id that the peer announces
    const struct lli_endpoint *local;  // per device; port 0 = any
    const struct lli_endpoint *remote; // per device
    uint64_t incarnation;              // of the instance that must answer; 0: any
};

// Looks names up, connects, shakes hands, chooses the transport and puts the link into the table; the listener has
// it in its own table then.  LLM_SUCCESS, LLM_LINK_FAILED or LLM_WAIT_PROC_TIMEOUT, explained in the
// log.  On failure nothing is left at either end.
llm_status lli_link_connect(struct lli_node *node, const struct lli_link_target *target,
                            uint64_t deadline_ns);

// If the link to that cluster is broken, or lacks the data connections that it has come to need, and was
// made from here, makes it anew, with the same instance alone: what the application knows of its caches
// holds still.  One attempt for all that wait for it.
void lli_link_renew(struct lli_node *node, uint64_t cluster_id, uint64_t deadline_ns);
// The same without a caller who waits, in a thread of its own, for a link that lacks data connections,
// unless the options forbid it.  [loop's thread]
void lli_link_renew_aside(struct lli_link *link);
// Waits, for no longer than the liveness time, for the peer to do that.
void lli_link_await_data(struct lli_node *node, uint64_t cluster_id, uint64_t deadline_ns);
// There are no such threads any more, and won't be.  [any thread but the loop's, which runs]
void lli_link_end_asides(struct lli_node *node);

#endif

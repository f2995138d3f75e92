// Transfers that the peer has begun, served by the loop's thread: sending what it pulls, taking in
// what it pushes, and, on one host, fetching what it pushes from its memory.
#ifndef LLI_SERVE_H
#define LLI_SERVE_H

#include "link/link.h"

// What a peer may have asked for at a time; a request of runs alone may take 64 MiB.  Nobody honest asks
// for more.
enum { LLI_SERVES_PER_LINK_MAX = 1024, LLI_RUNS_PER_LINK_MAX = 4 << 20 };

// Handles PULL, PUSH, CANCEL and NOTIFY.  False if the message is malformed.
bool lli_serves_message(struct lli_link *link, const struct lli_message_header *header,
                        struct lli_reader *body);
// Drops everything that is being served on the link.
void lli_serves_broken(struct lli_link *link);
// Ends what peers do with caches that are overdue, if need be with their links.
void lli_serves_tick(struct lli_node *node);

#endif

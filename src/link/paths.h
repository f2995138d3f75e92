// Looks after the data connections of links: a path may die under them while the control connection
// lives.  A link whose data can't move is broken, since nobody could use it.
#ifndef LLI_PATHS_H
#define LLI_PATHS_H

#include "link/link.h"

// The link has come into the table.  [loop's thread]
void lli_paths_begin(struct lli_link *link);
// Probes, and the end of links with a dead data connection.  After lli_links_tick.  [loop's thread]
void lli_paths_tick(struct lli_node *node);
// Asks for life on all connections: a transfer has waited in vain.  [loop's thread]
void lli_paths_suspect(struct lli_link *link);

#endif

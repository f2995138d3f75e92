// Changes of links, waiting to be polled.
#ifndef LLI_EVENTS_H
#define LLI_EVENTS_H

#include "link/link.h"

// What is known of a link now, for people.  node->links_lock is held.
void lli_link_describe_locked(const struct lli_link *link, llm_link_info *ret_info);

// It becomes ready, breaks and is removed, all of which must be told.
enum { LLI_EVENTS_OF_EVERY_LINK = 3 };

// Memory for so many more events of the link; false if there is none.  [loop's thread, or before the
// link enters the table]
bool lli_events_prepare(struct lli_link *link, unsigned count);
// Frees what has not happened.
void lli_events_unprepare(struct lli_link *link);

// Keeps a change of the link; the oldest of too many makes room.  node->links_lock is held.
void lli_events_add_locked(struct lli_link *link, llm_link_state state);
// Takes the oldest; false if there is none.  [any thread]
bool lli_events_take(struct lli_node *node, llm_link_info *ret_info);
// When nobody uses the node any more.
void lli_events_forget_all(struct lli_node *node);

#endif

// What peers' pushes had brought when their links broke: whoever pushed may go on from there.
// Belongs to the loop's thread.
#ifndef LLI_CUTS_H
#define LLI_CUTS_H

#include "link/link.h"

// Keeps that so many bytes of that push, into the cache of that generation, have arrived.  The oldest
// of many makes room.
void lli_cuts_add(struct lli_node *node, uint64_t incarnation, uint64_t transfer_id,
                  uint64_t generation, uint64_t bytes_arrived);
// And forgets it; 0 if nothing is known.
uint64_t lli_cuts_take(struct lli_node *node, uint64_t incarnation, uint64_t transfer_id,
                       uint64_t generation);
void lli_cuts_forget_all(struct lli_node *node);

#endif

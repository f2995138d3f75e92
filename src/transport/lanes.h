// The threads that move the data of tcp links: the instance's loop, and beside it a few more for
// links with more than one data connection.  Those are started when first needed and sleep while
// nothing is to be moved.
#ifndef LLI_LANES_H
#define LLI_LANES_H

#include "base/loop.h"

enum { LLI_NUM_LANES_MAX = 8 };

// Belongs to the instance's thread.
struct lli_lanes {
    struct lli_loop *main;
    size_t num_lanes; // wanted, `main` included
    struct lli_loop more[LLI_NUM_LANES_MAX - 1];
    size_t num_more; // started
};

void lli_lanes_open(struct lli_lanes *lanes, struct lli_loop *main, size_t num_lanes);
// Nothing is left on them.
void lli_lanes_close(struct lli_lanes *lanes);

// Where a link's data connection number `index` belongs.  Where no more threads can be had, that is
// the instance's loop.
struct lli_loop *lli_lanes_pick(struct lli_lanes *lanes, size_t index);

#endif

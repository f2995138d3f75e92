// The threads that move the data of tcp links: the instance's loop, and beside it a few more for
// links with more than one data connection.  Each of those lives while a connection needs it, and
// sleeps while nothing is to be moved.
#ifndef LLI_LANES_H
#define LLI_LANES_H

#include "base/loop.h"

enum { LLI_NUM_LANES_MAX = 8 };

struct lli_lane {
    struct lli_loop loop; // open and started while somebody uses it
    size_t num_users;
};

// Belongs to the instance's thread.
struct lli_lanes {
    struct lli_loop *main;
    size_t num_lanes; // wanted, `main` included
    struct lli_lane more[LLI_NUM_LANES_MAX - 1];
};

void lli_lanes_init(struct lli_lanes *lanes, struct lli_loop *main, size_t num_lanes);

// Where a link's data connection number `index` belongs, until it is given back.  Where no more
// threads can be had, that is the instance's loop.
struct lli_loop *lli_lanes_take(struct lli_lanes *lanes, size_t index);
// The connection has been removed.
void lli_lanes_give_back(struct lli_lanes *lanes, struct lli_loop *loop);

#endif

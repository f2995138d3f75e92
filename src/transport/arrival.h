// Which bytes of a stream have come, when its frames may take any way and come in any order.
//
// Frames are claimed when they begin to arrive and settled when they are complete.  What has come is
// a prefix of the stream and, as long as some frame is late, a short list of ranges ahead of it.
#ifndef LLI_ARRIVAL_H
#define LLI_ARRIVAL_H

#include "base/base.h"

// A connection that is stuck holds back every frame it has taken, while the others go on: as many
// as fit the buffers of both systems.  A peer that leaves more holes than that is up to something.
enum { LLI_ARRIVAL_RANGES_MAX = 1024 };

struct lli_arrival_range {
    uint64_t first;
    uint64_t end;
    bool complete; // else its frame is under way
};

struct lli_arrival {
    uint64_t prefix;                 // everything before it has come
    struct lli_arrival_range *ahead; // sorted, apart from each other, from `prefix` on
    size_t num_ahead;
    size_t capacity;
};

// The stream begins at `start`: what is before counts as arrived.
void lli_arrival_init(struct lli_arrival *arrival, uint64_t start);
void lli_arrival_fini(struct lli_arrival *arrival);

// A frame of `bytes` > 0 begins.  NULL, or why it is refused.
const char *lli_arrival_claim(struct lli_arrival *arrival, uint64_t first, uint64_t bytes);
// A claimed frame is complete.
void lli_arrival_settle(struct lli_arrival *arrival, uint64_t first);

#endif

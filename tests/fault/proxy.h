// A network that misbehaves, for a test over tcp: another process that listens, passes every
// connection on, and does one thing to one of them at one byte of its stream.
#ifndef LLM_TEST_PROXY_H
#define LLM_TEST_PROXY_H

#include "multi/process.h"

enum proxy_fault {
    PROXY_NONE,
    PROXY_CUT,      // both ends are closed there
    PROXY_TRUNCATE, // what follows is dropped; the receiver sees the end, the sender doesn't
    PROXY_DELAY,    // it stays there for a while
    PROXY_FLIP,     // a bit of it is inverted
    NUM_PROXY_FAULTS
};

enum { PROXY_CONNS_MAX = 3, PROXY_DIRECTIONS = 2 }; // 0: to the listener, 1: back

struct proxy_plan {
    enum proxy_fault fault;
    unsigned conn;      // 0: the first that comes from now on
    unsigned direction; // 0: to the listener, 1: back
    uint64_t offset;    // bytes that pass before
    unsigned delay_ms;
};

struct proxy {
    struct process process;
    uint16_t port;
};

// In the other process.
int proxy_serve(struct talk *talk);

// In the test.
void proxy_start(struct proxy *proxy, uint16_t target_port);
void proxy_plan(struct proxy *proxy, const struct proxy_plan *plan);
// Of the connections that there are by now, but for the first one since the last plan, nothing arrives
// any more on these ways.
void proxy_swallow(struct proxy *proxy, bool to_listener, bool back);
// Was it done?  And how many bytes have passed on each of the connections since.
bool proxy_report(struct proxy *proxy, uint64_t ret_passed[PROXY_CONNS_MAX][PROXY_DIRECTIONS]);

#endif

// A network of two ends in network namespaces of their own, and the wire between them in the test's
// hands: it delays, loses, throttles and cuts.  Real packets of the system's own TCP; no tools, no
// names that could be left behind: everything is gone with the processes.
#ifndef LLM_TEST_WIRE_H
#define LLM_TEST_WIRE_H

#include "multi/process.h"

// What every packet meets, in either direction.
struct wire_state {
    unsigned delay_ms;
    unsigned loss_percent;
    unsigned kbit_per_s; // 0: no limit
    bool cut;
};

// In the process of an end, before it has threads: puts it into a network namespace with one interface
// of that address, a.b.c.1 or .2 of 255.255.255.0.  The interface's descriptor, or -1 with the reason.
int wire_enter(const char *address, char *why, size_t why_size);

// In the test: lays the wire between the interfaces of two such processes.  False with the reason.
bool wire_open(pid_t pids[2], const int fds[2], char *why, size_t why_size);
void wire_close(void);
void wire_set(const struct wire_state *state);

#endif

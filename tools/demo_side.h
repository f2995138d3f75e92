// The side channel: how the two sides of the demo talk about a request, one line at a time over TCP.
// Serving engines have such a channel of their own; llm-datadist moves the KV cache only.
#ifndef LLM_TOOLS_DEMO_SIDE_H
#define LLM_TOOLS_DEMO_SIDE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "demo.h"
#include "demo_fields.h"

typedef struct demo_side {
    int fd;                      // -1 when closed
    const char *peer;            // "the decoder", for messages
    uint32_t timeout_s;          // a peer that is silent for longer has failed
    char remote[LLI_HOST_BYTES]; // the peer's address
    char line[DEMO_LINE_BYTES];  // the line received last
    char input[DEMO_LINE_BYTES];
    size_t input_length;
} demo_side;

// Opens a listener and replaces port 0 by the one that the system chose.  -1 and the reason in error.
int demo_side_listen(struct lli_endpoint *at, demo_error *error);

// Waits for the peer; without a limit if timeout_s is 0.  Closes the listener.
bool demo_side_accept(demo_side *side, int listener, uint32_t timeout_s, demo_error *error);

bool demo_side_connect(demo_side *side, const struct lli_endpoint *to, demo_error *error);

// Sends a line; the newline is added.
__attribute__((format(printf, 3, 4))) bool demo_side_send(demo_side *side, demo_error *error,
                                                          const char *format, ...);

// Receives a line that must begin with `verb` into side->line.  What the peer says in a line "error
// ..." becomes the reason.
bool demo_side_receive(demo_side *side, const char *verb, demo_error *error);

// Tells the peer why this side gives up, if it can still be told.
void demo_side_send_error(demo_side *side, const char *reason);

void demo_side_close(demo_side *side);

#endif

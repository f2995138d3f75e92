// The listening side: one listener per distinct address, and one for the exchange of memory files.
#ifndef LLI_ACCEPT_H
#define LLI_ACCEPT_H

#include "link/link.h"

// A listener that can't accept for want of descriptors or memory, and would be reported again and
// again, isn't looked at until the next tick.
struct lli_pause {
    struct lli_list in_node; // empty: it isn't paused
    struct lli_source *source;
};

struct lli_listener {
    struct lli_source source;
    struct lli_pause pause;
    struct lli_node *node;
    struct lli_endpoint place; // port: the actual one
};

// The listeners of an instance.  Several devices may share one.
struct lli_listeners {
    struct lli_listener *listeners[LLI_NUM_DEVICES_MAX]; // distinct ones
    size_t num_listeners;
    struct lli_listener *of_device[LLI_NUM_DEVICES_MAX];
    size_t num_devices; // 0: not listening
};

// Opens sockets at `places`, one per device, without accepting from them yet.  Names are looked up.
// On failure nothing stays open.  [any thread]
llm_status lli_listeners_open(struct lli_node *node, const struct lli_endpoint *places,
                              size_t num_places, struct lli_listeners *ret_listeners);
// Starts accepting.  [loop's thread, or before the loop starts]
llm_status lli_listeners_start(struct lli_listeners *listeners);
// Closes the listeners and ends links that are half made.  [as above]
void lli_listeners_close(struct lli_node *node, struct lli_listeners *listeners);

// The socket on which memory files change hands; its name goes into the node's identity.
struct lli_exchange_listener {
    struct lli_source source;
    struct lli_pause pause;
    struct lli_node *node;
    bool open;
};

llm_status lli_exchange_listen(struct lli_node *node, struct lli_exchange_listener *listener);
void lli_exchange_listener_close(struct lli_exchange_listener *listener);

// Ends strangers and half-made links that take too long; paused listeners go on.  [loop's thread]
void lli_accept_tick(struct lli_node *node);
// Ends all of them.  [loop's thread, or after it has stopped]
void lli_accept_end_all(struct lli_node *node);

#endif

// The links of an instance: a table, the connections below each link, their life and death.
//
// A link is made by one of two roads: lli_link_connect (connect.c, in the caller's thread) or the
// listener (accept.c, in the loop's thread).  From then on its connections belong to the loop's
// thread.  It is READY while the peer is heard, and SUSPECT while the peer is silent: transfers then
// wait for it.  When a connection ends, the peer misbehaves or is silent for too long, it is BROKEN, and
// stays in the table until it is unlinked or replaced.
#ifndef LLI_LINK_H
#define LLI_LINK_H

#include <pthread.h>

#include "base/loop.h"
#include "cache/registry.h"
#include "link/conn.h"
#include "options/options.h"
#include "transport/message.h"
#include "transport/stream.h"
#include "transport/view.h"

struct lli_node;

struct lli_link {
    struct lli_node *node;
    struct lli_list in_table; // guarded by node->links_lock
    _Atomic unsigned references;

    // Fixed before the link enters the table.
    struct lli_identity peer;
    bool connected_by_us; // else accepted by the listener
    enum lli_transport_kind transport;
    char reason[LLI_REASON_BYTES]; // why the transports before it were passed over
    struct lli_view *view;         // local and shm
    _Atomic bool peer_can_read;    // this process' registered memory, as far as is known
    bool checksum;                 // either end wants blocks and messages to be checked
    struct lli_endpoint *local;    // per device: what was given, if we connected, and what that was
    struct lli_endpoint *remote;

    // Guarded by node->links_lock.
    struct lli_list events; // that may happen yet (events.h)
    bool suspect;           // written by the loop's thread alone
    bool broken;
    llm_status broken_status;             // what transfers get from now on
    char broken_reason[LLI_REASON_BYTES]; // or why it is suspect
    bool unlinking;
    unsigned num_active;   // transfers that this side has begun
    unsigned num_renewals; // attempts to make it anew
    bool lacks_data;       // registered memory can't be read any more, and there is no other way
    struct lli_task lost_reading; // posted once
    bool unlink_answered;
    llm_status unlink_answer;

    // Belongs to the loop's thread.
    struct lli_conn *control;
    struct lli_conn **devices;    // num_devices - 1, to devices 1 and up
    struct lli_stream stream;     // tcp
    uint32_t liveness_ms;         // the longer of both ends'
    uint64_t liveness_ticks;      // of ours
    uint64_t dead_ticks;          // silent for longer: the link is broken
    uint64_t bytes_heard;         // received when it was last looked at
    uint64_t control_bytes_heard; // likewise, over the control connection (paths.c)
    bool told_lost_reading;       // to the peer
    const char *dead_path;        // or NULL: why a data connection is dead
    uint64_t heard_tick;          // node->tick when the peer was last heard
    uint64_t sent_tick;           // when it was last sent something
    struct lli_list transfers;    // begun here, under way (transfer room)
    struct lli_list waiting;      // likewise, for their turn: the peer has enough to do
    unsigned num_asked;           // of `transfers`, those that the peer knows of
    size_t num_runs_asked;        // in their requests
    bool admitting;
    struct lli_list serves; // begun by the peer, under way (transfer room)
    struct lli_list asks;   // questions of ours that the peer has not answered (transfer room)
    uint64_t notes_dropped; // notifications, for want of room (transfer room)
};

// What this room needs of an instance, and what it tells the rooms above.
struct lli_node {
    const struct lli_options *options;
    struct lli_loop *loop;
    struct lli_lanes *lanes; // for data connections; the first is `loop`
    struct lli_registry *registry;
    struct lli_segment *segment;
    const struct lli_pool *pools; // options->num_devices
    struct lli_holes holes;       // in them
    struct lli_crew *crew;        // helps with large copies
    struct lli_identity identity; // role changes with llm_set_role

    pthread_mutex_t links_lock;
    pthread_cond_t links_changed; // an unlink was answered
    struct lli_list links;        // guarded by links_lock
    struct lli_list events;       // changes of links (events.h); guarded by links_lock
    size_t num_events;            // guarded by links_lock
    int event_fd;                 // eventfd: a link has changed

    // One link or unlink call at a time (§10.2).
    bool linking; // guarded by links_lock
    pthread_cond_t linking_ended;
    unsigned num_asides; // threads that make links anew (connect.c); guarded by links_lock
    bool closing;        // there are no more of them; guarded by links_lock

    // Belongs to the loop's thread.
    uint64_t tick; // counts
    uint32_t tick_ms;
    struct lli_list pending;   // links being accepted (accept.c)
    struct lli_list strangers; // connections that have not said who they are (accept.c)
    unsigned num_strangers;
    struct lli_list paused; // listeners that try again with the next tick (accept.c)
    int reserve_fd;         // closed when descriptors run out, so that a caller can be turned away

    _Atomic uint64_t next_transfer; // numbers transfers (transfer room)
    struct lli_list copies;         // that this thread makes in portions (transfer room), in turns
    unsigned num_copies;            // in that list
    struct lli_list copies_waiting; // until there are fewer
    struct lli_list started;        // by llm_start_*, not yet released; guarded by links_lock
    struct lli_list cuts;           // pushes of peers that were cut (transfer room)
    int transfer_fd;                // eventfd: a started transfer, or a lease, has ended
    struct lli_notifications *notifications; // that have arrived (transfer room)

    // The transfer room's ears; called on the loop's thread.
    void (*on_message)(struct lli_link *link, const struct lli_message_header *header,
                       struct lli_reader *body);
    // The link has become unusable: end everything on it with `status`.
    void (*on_broken)(struct lli_link *link, llm_status status);
};

// `tick_ms`: how often lli_links_tick will be called.
void lli_node_open(struct lli_node *node, uint32_t tick_ms);
void lli_node_close(struct lli_node *node);

// Makes an empty link with one reference, and frees it with the last one.
struct lli_link *lli_link_new(struct lli_node *node, const struct lli_identity *peer);
void lli_link_hold(struct lli_link *link);
void lli_link_put(struct lli_link *link);

// Makes a connection the link's connection to a device.  [loop's thread]
void lli_link_attach(struct lli_link *link, uint32_t device_index, struct lli_conn *conn);

// The link to another instance that has this cluster id and is heard, with a reference, or NULL.
struct lli_link *lli_links_find_rival(struct lli_node *node, const struct lli_identity *peer);

// Puts a link into the table, which takes a reference of its own; a link with the same cluster id
// is replaced, its transfers end.  [loop's thread]
void lli_links_insert(struct lli_link *link);

// Finds a usable link, takes a reference and counts the caller as active: LLM_SUCCESS;
// LLM_NOT_YET_LINK; LLM_LINK_BUSY while it is being unlinked; a broken link's status.
llm_status lli_links_acquire(struct lli_node *node, uint64_t cluster_id,
                             struct lli_link **ret_link);
void lli_links_release(struct lli_link *link);

// The link with that id in whatever state, with a reference; NULL if there is none.
struct lli_link *lli_links_find(struct lli_node *node, uint64_t cluster_id);
size_t lli_links_count(struct lli_node *node);

// Takes the link out of the table and closes its connections; transfers on it end.  Returns when
// that is done.  [any thread but the loop's]
void lli_links_remove(struct lli_link *link);
// The same, on the loop's thread.
void lli_links_remove_here(struct lli_link *link);
// Takes an idle link out of the table while its connections stay open, for a last word.  True if it
// was there: the caller then has the table's reference.  [loop's thread]
bool lli_links_hide(struct lli_link *link);

// The peer has answered our unlink.  [loop's thread]
void lli_link_unlink_answered(struct lli_link *link, llm_status status);

// Declares the link unusable and explains why.  [loop's thread]
void lli_link_break(struct lli_link *link, llm_status status, const char *why);
bool lli_link_is_broken(struct lli_link *link);
// The peer's registered memory could be read, and can't be any more: it goes over data connections.  The
// peer is told, and if there are none, whoever had linked makes the link anew.  [any thread]
void lli_link_lost_reading(struct lli_link *link);
// The peer is told at once, before anything else that it is sent.  [loop's thread]
void lli_link_tell_lost_reading(struct lli_link *link);
// Neither broken nor suspect.
bool lli_link_is_ready(struct lli_link *link);

// Sends a message to the peer.  [loop's thread]
void lli_link_send(struct lli_link *link, enum lli_message_type type, uint64_t transfer_id,
                   const void *body, size_t body_bytes);
void lli_link_send_outcome(struct lli_link *link, enum lli_message_type type, uint64_t transfer_id,
                           llm_status status, const char *text);

// Asks the peer for a heartbeat at once.  [loop's thread]
void lli_link_ask_for_life(struct lli_link *link);
// Heartbeats, silence and its end.  [loop's thread]
void lli_links_tick(struct lli_node *node);

// Does any peer announce that it reads this generation of a cache of ours?  [any thread]
bool lli_links_is_read(struct lli_node *node, uint64_t generation);

#endif

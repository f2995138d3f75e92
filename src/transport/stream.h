// The data of a tcp link: one or more connections that carry DATA messages of many transfers side by
// side.
//
// A frame is a header and up to a few hundred KiB of one transfer's stream; the sender gathers it
// from the tensors, the receiver scatters it straight into them.  Frames of one transfer may take
// any connection and arrive in any order: each says where it belongs.  Transfers take turns frame by
// frame, so that a large one doesn't hold up a small one.
//
// Every function is called on the instance's thread, and so are `done` and `on_failed`.  The
// connections are served by several threads (lanes.h).  They meet under the stream's lock, where a
// frame begins and where it ends; bytes move without it.
//
// A path may die under a connection that has nothing to say, and only on one way.  So each end sends a
// *probe* where it has sent nothing for a while, a frame without data of transfer 0, and knows a dead
// connection by the silence of a peer that it hears elsewhere.
//
// In a checked stream headers are sealed, and behind the data of each frame come the checksums of its
// cells (cells.h): of the sender's memory, compared with the receiver's.
#ifndef LLI_STREAM_H
#define LLI_STREAM_H

#include <stdatomic.h>

#include "base/loop.h"
#include "transport/arrival.h"
#include "transport/cells.h"
#include "transport/holes.h"
#include "transport/lanes.h"
#include "transport/message.h"
#include "transport/plan.h"

enum {
    LLI_NUM_STREAM_CONNS_MAX = 8,
    LLI_FRAME_SUMS_BYTES_MAX = (LLI_DATA_BODY_BYTES_MAX / LLI_CELL_BYTES + 2) * LLI_CELL_SUM_BYTES,
};

// One transfer's stream, at one end.
struct lli_stream_job {
    uint64_t id;
    const struct lli_plan *plan;
    const uintptr_t *tensors; // addresses on this side; plan->num_tensors
    bool is_source;           // use the plan's src_offset, else dst_offset
    struct lli_holes holes;   // in a source
    uint64_t start_position;  // where the stream begins: what is before has arrived already
    // All bytes are sent or have arrived, or, after a cancel, the last frame has left, or something
    // has arrived that is not what was sent.  Not called when the stream fails.
    void (*done)(struct lli_stream_job *job);

    // Guarded by the stream's lock.
    struct lli_list node; // in one of the stream's lists
    uint64_t position;    // sending: handed to connections
    unsigned num_frames;  // sending: on the way in some connection
    bool cancelled;
    struct lli_arrival arrival; // receiving
    uint16_t flags;             // LLI_FLAG_...: to be sent; or that have come
    bool is_corrupt;            // receiving: the checksum of the cell at
    uint64_t corrupt_position;  // is another
};

struct lli_stream;

// One direction of a connection, looked at once a tick.
struct lli_stream_sight {
    uint64_t bytes;
    uint64_t ticks_still;  // since it has moved
    uint64_t ticks_spoken; // of these, those in which the peer was heard on its control connection
    uint64_t ticks_mute;   // in a row: the peer isn't heard elsewhere either
    uint64_t outage_ticks; // the longest such row
};

struct lli_stream_conn {
    struct lli_source source; // its events change under the stream's lock
    struct lli_loop *loop;    // whose thread serves it
    struct lli_stream *stream;

    // Belongs to that thread.
    uint8_t in_head[LLI_MESSAGE_HEADER_BYTES];
    size_t in_head_got;
    uint64_t in_first; // of the frame in the stream
    uint64_t in_position;
    uint64_t in_left;
    size_t in_sums_bytes; // behind the data
    size_t in_sums_got;
    uint8_t in_sums[LLI_FRAME_SUMS_BYTES_MAX];
    uint8_t out_head[LLI_MESSAGE_HEADER_BYTES];
    size_t out_head_sent;
    uint64_t out_position;
    uint64_t out_left;
    size_t out_sums_bytes;
    size_t out_sums_sent;
    uint8_t out_sums[LLI_FRAME_SUMS_BYTES_MAX];
    bool probing; // out_head is a probe's

    _Atomic uint64_t bytes_in;
    _Atomic uint64_t bytes_out;

    // Of whoever watches, on the instance's thread.
    struct lli_stream_sight in;
    struct lli_stream_sight out;

    // Guarded by the stream's lock.
    bool owes_probe;
    bool asks_for_probe;            // one that asks for one in return
    struct lli_stream_job *in_job;  // NULL with in_left > 0: bytes that nobody wants
    struct lli_stream_job *in_call; // into whose memory the system may be writing right now
    struct lli_stream_job *out_job;
};

struct lli_stream {
    struct lli_loop *loop; // the instance's
    struct lli_lanes *lanes;
    bool checked;     // set before the first connection
    bool peer_probes; // likewise
    struct lli_stream_conn *conns[LLI_NUM_STREAM_CONNS_MAX];
    size_t num_conns;
    void *owner;
    // A connection broke or its peer misbehaved.  Called once; the owner then closes the stream.
    void (*on_failed)(struct lli_stream *stream, const char *why);

    _Atomic uint64_t bytes_in; // of transfers, received in all
    _Atomic bool failed;       // every thread leaves off; set under the lock

    pthread_mutex_t lock;
    pthread_cond_t call_ended; // of a cancelled job
    // Guarded by lock.
    struct lli_list sending; // jobs with bytes not yet handed to a connection
    struct lli_list receiving;
    struct lli_list finished; // `done` is due
    char why[96];             // it failed
    bool failure_is_told;
    struct lli_task news; // brings what is finished or has failed to the instance's thread
    bool news_posted;
};

void lli_stream_init(struct lli_stream *stream, struct lli_lanes *lanes, void *owner,
                     void (*on_failed)(struct lli_stream *stream, const char *why));
// After close.
void lli_stream_fini(struct lli_stream *stream);
// Takes the descriptor over, also on failure.
llm_status lli_stream_add(struct lli_stream *stream, int fd);
// No byte lands any more, and none will.  The connections stay open, so that the peer doesn't know yet.
void lli_stream_stop(struct lli_stream *stream);
// Stops, closes the connections and forgets the jobs, without calling done.  When it returns no thread
// touches them any more.
void lli_stream_close(struct lli_stream *stream);

// `start_position` < `plan->total_bytes`.  `done` may be called before these return.
void lli_stream_send(struct lli_stream *stream, struct lli_stream_job *job);
void lli_stream_receive(struct lli_stream *stream, struct lli_stream_job *job);

// A sender finishes the frames that have begun, then calls done.
void lli_stream_cancel_send(struct lli_stream *stream, struct lli_stream_job *job);
// When it returns nothing more is written to the job's tensors.  Does not call done.
void lli_stream_cancel_receive(struct lli_stream *stream, struct lli_stream_job *job);

// All bytes of the stream before this position have arrived.
uint64_t lli_stream_arrived(struct lli_stream *stream, const struct lli_stream_job *job);
// Has a frame of a job that is being sent begun and not left?
bool lli_stream_is_under_way(struct lli_stream *stream, const struct lli_stream_job *job);
// May the peer have received all bytes of a job that is being sent?
bool lli_stream_has_begun_all(struct lli_stream *stream, const struct lli_stream_job *job);
// To be called once a tick.  `peer_speaks`: its control connection was heard since the last time.  Sends
// probes, and says why a connection is dead, or NULL: silent for `silent_ticks`, or without taking a
// byte of a frame for `stuck_ticks`.
const char *lli_stream_watch(struct lli_stream *stream, bool peer_speaks, uint64_t silent_ticks,
                             uint64_t stuck_ticks);
// Asks the peer for a probe on each connection, now.
void lli_stream_ask_for_life(struct lli_stream *stream);
// Calls done for what was sent or has arrived, as seen from outside, before this call.
void lli_stream_settle(struct lli_stream *stream);

#endif

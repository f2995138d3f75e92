// The data of a tcp link: one or more connections that carry DATA messages of many transfers side by
// side.  Belongs to the loop's thread, wholly.
//
// A frame is a header and up to a few hundred KiB of one transfer's stream; the sender gathers it
// from the tensors, the receiver scatters it straight into them.  Frames of one transfer may take
// any connection and arrive in any order: each says where it belongs.  Transfers take turns frame by
// frame, so that a large one doesn't hold up a small one.
#ifndef LLI_STREAM_H
#define LLI_STREAM_H

#include "base/loop.h"
#include "transport/message.h"
#include "transport/plan.h"

enum { LLI_NUM_STREAM_CONNS_MAX = 8 };

// One transfer's stream, at one end.
struct lli_stream_job {
    struct lli_list node;
    uint64_t id;
    const struct lli_plan *plan;
    const uintptr_t *tensors; // addresses on this side; plan->num_tensors
    bool is_source;           // use the plan's src_offset, else dst_offset
    uint64_t start_position;  // where the stream begins: what is before has arrived already
    uint64_t arrived;         // receiving: all bytes before have arrived
    uint16_t flags;           // LLI_FLAG_...: to be sent; or that have come
    uint64_t position;        // sending: handed to connections; receiving: bytes arrived
    unsigned num_frames;      // on the way in some connection
    bool cancelled;
    // All bytes are sent or have arrived, or, after a cancel, the last frame has left.  Not called
    // when the stream fails.
    void (*done)(struct lli_stream_job *job);
};

struct lli_stream;

struct lli_stream_conn {
    struct lli_source source;
    struct lli_stream *stream;
    uint8_t in_head[LLI_MESSAGE_HEADER_BYTES];
    size_t in_head_got;
    struct lli_stream_job *in_job; // NULL with in_left > 0: bytes that nobody wants
    uint64_t in_position;
    uint64_t in_left;
    uint8_t out_head[LLI_MESSAGE_HEADER_BYTES];
    size_t out_head_sent;
    struct lli_stream_job *out_job;
    uint64_t out_position;
    uint64_t out_left;
};

struct lli_stream {
    struct lli_loop *loop;
    struct lli_stream_conn *conns[LLI_NUM_STREAM_CONNS_MAX];
    size_t num_conns;
    struct lli_list sending; // jobs with bytes not yet handed to a connection
    struct lli_list receiving;
    uint64_t bytes_in; // received in all
    bool failed;
    void *owner;
    // A connection broke or its peer misbehaved.  Called once; the owner then closes the stream.
    void (*on_failed)(struct lli_stream *stream, const char *why);
};

void lli_stream_init(struct lli_stream *stream, struct lli_loop *loop, void *owner,
                     void (*on_failed)(struct lli_stream *stream, const char *why));
// Takes the descriptor over, also on failure.
llm_status lli_stream_add(struct lli_stream *stream, int fd);
// Closes the connections and forgets the jobs, without calling done.
void lli_stream_close(struct lli_stream *stream);

// `plan->total_bytes` > 0.  `done` may be called before these return.
void lli_stream_send(struct lli_stream *stream, struct lli_stream_job *job);
void lli_stream_receive(struct lli_stream *stream, struct lli_stream_job *job);

// A sender finishes the frames that have begun, then calls done.
void lli_stream_cancel_send(struct lli_stream *stream, struct lli_stream_job *job);
// Nothing more is written to the job's tensors.  Does not call done.
void lli_stream_cancel_receive(struct lli_stream *stream, struct lli_stream_job *job);

#endif

// A control connection: whole messages in, whole messages out.  Belongs to the loop's thread.
#ifndef LLI_CONN_H
#define LLI_CONN_H

#include "base/address.h"
#include "base/loop.h"
#include "transport/message.h"

struct lli_conn {
    struct lli_source source;
    struct lli_loop *loop;
    struct lli_address peer;

    uint8_t head[LLI_MESSAGE_HEADER_BYTES];
    size_t head_got;
    struct lli_message_header header; // of the message being read
    uint8_t *body;
    size_t body_got;
    uint32_t body_bytes_max; // longer ones end the connection
    bool must_be_sealed;     // a message without a checksum ends the connection

    uint64_t bytes_in;   // received in all
    struct lli_list out; // messages to be sent
    size_t out_bytes;    // of answers
    unsigned out_notes;  // NOTIFYs in `out`

    bool closed;
    const char *why; // not NULL: it is about to end, for this reason
    void *owner;
    // A message has arrived; the body is valid during the call.  May close the connection.
    void (*on_message)(struct lli_conn *conn, const struct lli_message_header *header,
                       struct lli_reader *body);
    // The connection is gone, by the peer or an error: `why` says which.  Called once, and not after
    // lli_conn_close.
    void (*on_closed)(struct lli_conn *conn, const char *why);
};

// Takes the descriptor over, also on failure.  NULL on failure.
struct lli_conn *lli_conn_open(struct lli_loop *loop, int fd, void *owner,
                               void (*on_message)(struct lli_conn *conn,
                                                  const struct lli_message_header *header,
                                                  struct lli_reader *body),
                               void (*on_closed)(struct lli_conn *conn, const char *why));

// Queues a message; the body is copied.  If it can't be sent the connection ends, but not from here:
// on_closed is called later.
void lli_conn_send(struct lli_conn *conn, enum lli_message_type type, uint64_t transfer_id,
                   const void *body, size_t body_bytes);

// Closes quietly; the memory is freed when no event can name it.
void lli_conn_close(struct lli_conn *conn);

// Detaches the descriptor from the connection and closes the rest.  Nothing may be queued or half
// read.  -1 on failure.
int lli_conn_detach(struct lli_conn *conn);

#endif

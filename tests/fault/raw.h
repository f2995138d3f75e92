// A peer made by hand: sockets and messages, right ones and wrong ones.
#ifndef LLM_TEST_RAW_H
#define LLM_TEST_RAW_H

#include "multi/process.h"
#include "transfer/request.h"
#include "transport/message.h"

enum { RAW_PROMPT = 11, RAW_DECODER = 21, RAW_STRANGER = 66, RAW_BYTES_MAX = 1 << 16 };

// A message with its header, ready to be spoilt.
struct raw_message {
    uint8_t bytes[RAW_BYTES_MAX];
    size_t size;
};

// Blocking, with a time limit on every read and write.
int raw_connect(uint16_t port);
// All of it; false if the peer has closed.
bool raw_send(int fd, const void *bytes, size_t size);
void raw_make(struct raw_message *message, enum lli_message_type type, uint64_t transfer_id,
              uint64_t argument, const void *body, size_t body_bytes);
bool raw_say(int fd, enum lli_message_type type, uint64_t transfer_id, const void *body,
             size_t body_bytes);
// The next message but a PING; false if the peer has closed.  The body is cut off at 4096 bytes.
bool raw_hear(int fd, struct lli_message_header *ret_header, uint8_t body[4096]);
// The status of the RESULT to a transfer, of a READY, or of a HELLO_REPLY; UINT32_MAX: closed.
llm_status raw_hear_status(int fd, enum lli_message_type type, uint64_t transfer_id);
// Reads until the peer closes, which it must do.
void raw_expect_closed(int fd);

struct lli_hello raw_hello(enum lli_connection_purpose purpose);
void raw_make_hello(struct raw_message *message, const struct lli_hello *hello);
void raw_make_request(struct raw_message *message, uint64_t transfer_id,
                      const struct lli_request *request);

// A tcp link with a prompt of one device.
struct raw_link {
    int control;
    int data;
};
void raw_link_open(struct raw_link *link, uint16_t port, uint64_t cluster_id);
void raw_link_close(struct raw_link *link);

#endif

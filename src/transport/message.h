// What travels between two instances: a header of 32 bytes, little-endian, and a body.
//
//   0  u32 magic      "LDD1"
//   4  u8  version    1
//   5  u8  type       enum lli_message_type
//   6  u16 flags      LLI_FLAG_...
//   8  u32 body bytes
//  12  u32 checksum   with LLI_FLAG_SEALED CRC32C of header and body, the field itself taken for 0
//  16  u64 transfer   chosen by the side that began it, unique on the link in its direction
//  24  u64 argument   DATA: position in the transfer's stream; otherwise 0
//
// Sealed DATA has a checksum of its header alone; behind its body stand CRC32Cs of the body, one for
// each cell of the stream that it touches (stream.h).
//
// A body may be longer than its reader knows: the rest is skipped, so that later versions may append.
// HELLO carries a range of versions and a field for authentication; its header is read whatever version
// it has, so that who comes with another one can be told.
#ifndef LLI_MESSAGE_H
#define LLI_MESSAGE_H

#include "base/base.h"
#include "base/wire.h"
#include "cache/geometry.h"

#define LLI_MESSAGE_MAGIC 0x3144444cu // "LDD1"
#define LLI_MESSAGE_VERSION 1u

enum {
    LLI_MESSAGE_HEADER_BYTES = 32,
    LLI_MESSAGE_VERSION_AT = 4,            // in the header, of every version
    LLI_HELLO_BODY_BYTES_MAX = 4096,       // of everything before the link is ready
    LLI_REQUEST_BODY_BYTES_MAX = 64 << 20, // afterwards
    LLI_DATA_BODY_BYTES_MAX = 4 << 20,
};

enum lli_message_type {
    LLI_HELLO = 1,         // connector -> listener: who I am, what this connection is for
    LLI_HELLO_REPLY = 2,   // status, who I am
    LLI_CHOOSE = 3,        // connector -> listener: the transport of the link, and why
    LLI_READY = 4,         // listener -> connector: the link stands
    LLI_PING = 5,          // I am alive
    LLI_PULL = 6,          // send me bytes of a cache of yours
    LLI_PUSH = 7,          // take bytes into a cache of yours
    LLI_PUSH_ACCEPTED = 8, // send them
    LLI_DATA = 9,          // bytes of a transfer's stream
    LLI_RESULT = 10,       // a transfer asked for by the receiver of this has ended: status, text
    LLI_CANCEL = 11,       // forget a transfer that I asked for
    LLI_CANCELLED = 12,    // it is forgotten, none of its bytes moves any more
    LLI_UNLINK = 13,       // remove the link
    LLI_UNLINK_REPLY = 14, // status
    LLI_NOTIFY = 15,       // bytes for the peer's application, after a pull
    LLI_QUERY = 16,        // what is there under this name?
    LLI_DONE = 17,         // a pull has arrived: take its request key, release its lease
    LLI_ANSWER = 18,       // to either: status, text, a cache
};

enum {
    LLI_FLAG_TELL_WHEN_DONE = 1, // DATA: the slot has a request key, which a pull takes
    LLI_FLAG_SEALED = 2,         // the checksum counts
};

struct lli_message_header {
    uint8_t version; // that was read; what is written has ours
    uint8_t type;
    uint16_t flags;
    uint32_t body_bytes;
    uint64_t transfer_id;
    uint64_t argument;
};

void lli_message_header_write(uint8_t bytes[LLI_MESSAGE_HEADER_BYTES],
                              const struct lli_message_header *header);
// Seals a header that has been written, with the body that it goes before.
void lli_message_seal(uint8_t bytes[LLI_MESSAGE_HEADER_BYTES], const void *body, size_t body_bytes);
// False if it is sealed and the checksum is another.
bool lli_message_is_intact(const uint8_t bytes[LLI_MESSAGE_HEADER_BYTES], const void *body,
                           size_t body_bytes);

// Is it of this protocol, in whatever version?
bool lli_message_has_magic(const uint8_t bytes[LLI_MESSAGE_HEADER_BYTES]);
// NULL, or what is wrong with it.
const char *lli_message_header_read(const uint8_t bytes[LLI_MESSAGE_HEADER_BYTES],
                                    struct lli_message_header *ret_header);

// What a connection is for.
enum lli_connection_purpose {
    LLI_PURPOSE_CONTROL = 0, // the first of a link, to device 0
    LLI_PURPOSE_DEVICE = 1,  // one for each further device
    LLI_PURPOSE_DATA = 2,    // carries DATA of a tcp link
};

// In an identity's `transports`, where no transport has its bit: data connections are probed (stream.h).
#define LLI_PROBES (1u << 31)

enum { LLI_UNIX_NAME_BYTES = 64, LLI_REASON_BYTES = 232 };

// One end of a link describes itself.
struct lli_identity {
    uint64_t cluster_id;
    uint64_t incarnation;   // of the instance, random: a restarted peer has another
    uint64_t process_token; // random, the same for all instances of a process
    uint8_t boot_id[16];    // the same for all processes of a running machine; zero = unknown
    uint32_t num_devices;
    uint32_t transports; // bit per enum lli_transport_kind that this end may use, and LLI_PROBES
    uint32_t liveness_ms;
    uint32_t role;
    uint32_t checksum;                   // 1: it wants links to be checked
    char unix_name[LLI_UNIX_NAME_BYTES]; // where memory files are exchanged; "" = nowhere
};

struct lli_hello {
    uint16_t lowest_version;      // of the protocol, that it speaks
    uint16_t highest_version;     // likewise
    uint64_t link_token;          // random, names the link while it is being set up
    uint64_t expected_cluster_id; // who the connector believes to talk to
    uint32_t any_cluster;         // but it takes whoever answers
    uint32_t purpose;             // enum lli_connection_purpose
    uint32_t device_index;        // of this connection
    uint32_t num_connections;     // of the whole link
    struct lli_identity from;
};

void lli_hello_write(struct lli_writer *w, const struct lli_hello *hello);
// Of a hello in other versions the range alone is read.
bool lli_hello_read(struct lli_reader *r, struct lli_hello *ret_hello);
bool lli_hello_has_our_version(const struct lli_hello *hello);

struct lli_hello_reply {
    llm_status status;
    char text[LLI_REASON_BYTES]; // why not
    struct lli_identity from;
};

void lli_hello_reply_write(struct lli_writer *w, const struct lli_hello_reply *reply);
bool lli_hello_reply_read(struct lli_reader *r, struct lli_hello_reply *ret_reply);

struct lli_choose {
    uint32_t transport;
    uint32_t can_read; // the connector can read the listener's registered memory
    char reason[LLI_REASON_BYTES];
};

void lli_choose_write(struct lli_writer *w, const struct lli_choose *choose);
bool lli_choose_read(struct lli_reader *r, struct lli_choose *ret_choose);

// RESULT, UNLINK_REPLY and READY.
struct lli_outcome {
    llm_status status;
    char text[LLI_REASON_BYTES];
};

// ANSWER, behind an outcome: the cache that was asked about.
struct lli_answer {
    int64_t cache_id;
    uint64_t slot;
    struct lli_geometry geometry;
    bool registered;
    bool slot_has_request; // key
    uint64_t generation;
    uint64_t bytes_arrived; // of the push that the question named
    uint64_t key_stamp;     // of the key that the question named
};

void lli_answer_write(struct lli_writer *w, const struct lli_answer *answer);
bool lli_answer_read(struct lli_reader *r, struct lli_answer *ret_answer);

void lli_outcome_write(struct lli_writer *w, const struct lli_outcome *outcome);
bool lli_outcome_read(struct lli_reader *r, struct lli_outcome *ret_outcome);

#endif

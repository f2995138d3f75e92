// Whatever comes over a control connection gives whole messages within its bounds, or ends it, once.
//
// Input: a letter of flags (1: messages must be sealed, 2: long ones are allowed), then orders: M a good
// message, B one that is altered on its way, R raw bytes, A answers, C close by the peer, else a turn.
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "fuzz/fuzz.h"
#include "link/conn.h"

enum { ORDERS_MAX = 64, BODY_BYTES_MAX = 255 };

static struct lli_loop loop;
static struct lli_conn *conn; // NULL: closed
static int end;
static unsigned num_closed;
static unsigned num_sent;
static unsigned num_come;
static bool is_pure;    // only messages were sent
static bool is_altered; // one of them was not what had been sealed

static uint8_t
byte_of(uint64_t message, size_t position)
{
    return (uint8_t)(message * 7 + position * 31);
}

static void
on_message(struct lli_conn *from, const struct lli_message_header *header, struct lli_reader *body)
{
    MUST(from == conn && num_closed == 0);
    MUST(body->size == header->body_bytes && body->size <= from->body_bytes_max);
    MUST(!from->must_be_sealed || (header->flags & LLI_FLAG_SEALED) != 0);
    // Every byte can be read.
    uint64_t sum = 0;
    for (size_t i = 0; i < body->size; i++)
        sum += body->bytes[i];
    MUST(!is_pure || (!is_altered && header->transfer_id == num_come));
    for (size_t i = 0; is_pure && i < body->size; i++)
        MUST(body->bytes[i] == byte_of(num_come, i));
    num_come++;
    if (header->type == LLI_PING && (sum & 1) == 0)
        lli_conn_send(from, LLI_PING, 0, NULL, 0);
    if (header->type == LLI_UNLINK && is_pure) {
        lli_conn_close(from);
        conn = NULL;
    }
}

static void
on_closed(struct lli_conn *from, const char *why)
{
    MUST(from == conn && why != NULL);
    num_closed++;
    MUST(num_closed == 1);
    conn = NULL;
}

static void
turn(void)
{
    uint8_t drained[4096];
    struct lli_source *source = conn != NULL ? &conn->source : NULL;
    turn_by_hand(&loop, &source, source != NULL ? 1 : 0);
    MUST(conn == NULL || conn->body == NULL || conn->header.body_bytes <= conn->body_bytes_max);
    while (recv(end, drained, sizeof(drained), MSG_DONTWAIT) > 0) {
    }
}

static void
deliver(const uint8_t *bytes, size_t num_bytes, size_t piece)
{
    for (size_t at = 0; at < num_bytes && conn != NULL;) {
        ssize_t put = send(end, bytes + at, lli_min(piece, num_bytes - at), MSG_NOSIGNAL);
        if (put <= 0)
            return;
        at += (size_t)put;
        turn();
    }
}

static void
message(struct input *input, bool alter)
{
    uint8_t bytes[LLI_MESSAGE_HEADER_BYTES + BODY_BYTES_MAX];
    uint8_t *body = bytes + LLI_MESSAGE_HEADER_BYTES;
    unsigned how = (unsigned)take_number(input, 1);
    struct lli_message_header header = {
        .type = (uint8_t)take_number(input, 1),
        .body_bytes = (uint32_t)take_number(input, 1),
        .transfer_id = num_sent,
        .argument = take_number(input, 1),
    };
    for (size_t i = 0; i < header.body_bytes; i++)
        body[i] = byte_of(num_sent, i);
    lli_message_header_write(bytes, &header);
    lli_message_seal(bytes, body, header.body_bytes);
    size_t num_bytes = LLI_MESSAGE_HEADER_BYTES + header.body_bytes;
    if (alter) {
        size_t at = (size_t)take_number(input, 2) % num_bytes;
        bytes[at] ^= (uint8_t)(1u << how % 8);
        // Without the flag that it is sealed nothing vouches for the rest.
        is_pure = is_pure && (conn->must_be_sealed || at != 6 || how % 8 != 1);
        is_altered = true;
    }
    num_sent++;
    deliver(bytes, num_bytes, 1 + how / 8);
    // Who asks and doesn't read the answers isn't read.
    bool is_read = conn != NULL && lli_list_empty(&conn->out);
    MUST(!is_pure || is_altered || !is_read || num_come == num_sent);
}

static void
answer(struct input *input)
{
    static const uint8_t body[4096];
    for (uint64_t i = take_number(input, 1); i > 0 && conn != NULL; i--)
        lli_conn_send(conn, LLI_ANSWER, i, body, (size_t)take_number(input, 1) * 16);
}

static void
obey(struct input *input)
{
    size_t num_bytes;
    switch (take_number(input, 1)) {
    case 'M':
        message(input, false);
        break;
    case 'B':
        message(input, true);
        break;
    case 'R':
        num_bytes = lli_min(take_number(input, 1), input->size);
        is_pure = is_pure && num_bytes == 0;
        deliver(input->data, num_bytes, SIZE_MAX);
        input->data += num_bytes;
        input->size -= num_bytes;
        break;
    case 'A':
        answer(input);
        break;
    case 'C':
        shutdown(end, SHUT_WR);
        turn();
        break;
    default:
        turn();
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    unsigned flags = (unsigned)take_number(&input, 1);
    int pair[2];
    llm_set_log_level(LLM_LOG_OFF);
    if (loop.wake.ready == NULL)
        MUST(lli_loop_open(&loop, 0, NULL, NULL, NULL) == LLM_SUCCESS);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
    end = pair[0];
    conn = lli_conn_open(&loop, pair[1], NULL, on_message, on_closed);
    MUST(conn != NULL);
    conn->must_be_sealed = (flags & 1) != 0;
    if ((flags & 2) != 0)
        conn->body_bytes_max = LLI_REQUEST_BODY_BYTES_MAX;
    num_closed = num_sent = num_come = 0;
    is_pure = true;
    is_altered = false;
    for (int i = 0; i < ORDERS_MAX && input.size > 0 && conn != NULL; i++)
        obey(&input);
    turn();
    if (conn != NULL)
        lli_conn_close(conn);
    conn = NULL;
    free_dead_by_hand(&loop);
    close(end);
    return 0;
}

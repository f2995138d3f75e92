#include "fault/raw.h"

#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/os.h"
#include "options/options.h"

int
raw_connect(uint16_t port)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct timeval limit = {.tv_sec = PATIENCE_MS / 1000};
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(fd, (struct sockaddr *)&name, sizeof(name)) != 0)
        fail_msg("connect: %s", strerror(errno));
    return fd;
}

bool
raw_send(int fd, const void *bytes, size_t size)
{
    const uint8_t *from = bytes;
    while (size > 0) {
        ssize_t sent = send(fd, from, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return false;
        from += sent;
        size -= (size_t)sent;
    }
    return true;
}

void
raw_make(struct raw_message *message, enum lli_message_type type, uint64_t transfer_id,
         uint64_t argument, const void *body, size_t body_bytes)
{
    struct lli_message_header header = {
        .type = (uint8_t)type,
        .body_bytes = (uint32_t)body_bytes,
        .transfer_id = transfer_id,
        .argument = argument,
    };
    assert_true(body_bytes <= RAW_BYTES_MAX - LLI_MESSAGE_HEADER_BYTES);
    lli_message_header_write(message->bytes, &header);
    if (body_bytes > 0)
        memcpy(message->bytes + LLI_MESSAGE_HEADER_BYTES, body, body_bytes);
    message->size = LLI_MESSAGE_HEADER_BYTES + body_bytes;
}

bool
raw_say(int fd, enum lli_message_type type, uint64_t transfer_id, const void *body,
        size_t body_bytes)
{
    struct raw_message message;
    raw_make(&message, type, transfer_id, 0, body, body_bytes);
    return raw_send(fd, message.bytes, message.size);
}

static bool
receive(int fd, uint8_t *to, size_t size)
{
    while (size > 0) {
        ssize_t got = recv(fd, to, size, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            fail_msg("the peer neither answers nor closes");
        if (got <= 0)
            return false;
        to += got;
        size -= (size_t)got;
    }
    return true;
}

bool
raw_hear(int fd, struct lli_message_header *ret_header, uint8_t body[4096])
{
    uint8_t head[LLI_MESSAGE_HEADER_BYTES];
    do {
        if (!receive(fd, head, sizeof(head)))
            return false;
        assert_null(lli_message_header_read(head, ret_header));
        assert_true(ret_header->body_bytes <= 4096);
        if (!receive(fd, body, ret_header->body_bytes))
            return false;
    } while (ret_header->type == LLI_PING);
    return true;
}

llm_status
raw_hear_status(int fd, enum lli_message_type type, uint64_t transfer_id)
{
    struct lli_message_header header;
    struct lli_reader r;
    uint8_t body[4096];
    do {
        if (!raw_hear(fd, &header, body))
            return UINT32_MAX;
    } while (header.type != type || header.transfer_id != transfer_id);
    lli_reader_init(&r, body, header.body_bytes);
    return lli_read_u32(&r);
}

void
raw_expect_closed(int fd)
{
    uint8_t bytes[4096];
    ssize_t got;
    do {
        got = recv(fd, bytes, sizeof(bytes), 0);
        if (got < 0 && errno == EAGAIN)
            fail_msg("the peer doesn't close the connection");
    } while (got > 0 || (got < 0 && errno == EINTR));
    close(fd);
}

struct lli_hello
raw_hello(enum lli_connection_purpose purpose)
{
    return (struct lli_hello){
        .link_token = lli_random_u64(),
        .expected_cluster_id = RAW_PROMPT,
        .purpose = purpose,
        .from =
            {
                .cluster_id = RAW_STRANGER,
                // Always the same instance: it may link as often as it likes.
                .incarnation = UINT64_C(0x5757575757575757),
                .process_token = lli_random_u64(),
                .num_devices = 1,
                .transports = 1u << LLI_TRANSPORT_TCP,
                .liveness_ms = 60000,
                .role = LLM_ROLE_DECODER,
            },
    };
}

void
raw_make_hello(struct raw_message *message, const struct lli_hello *hello)
{
    uint8_t body[LLI_HELLO_BODY_BYTES_MAX];
    struct lli_writer w;
    lli_writer_init(&w, body, sizeof(body));
    lli_hello_write(&w, hello);
    raw_make(message, LLI_HELLO, 0, 0, body, w.size);
}

void
raw_make_request(struct raw_message *message, uint64_t transfer_id,
                 const struct lli_request *request)
{
    uint8_t body[RAW_BYTES_MAX - LLI_MESSAGE_HEADER_BYTES];
    struct lli_writer w;
    lli_writer_init(&w, body, sizeof(body));
    lli_request_write(&w, request);
    assert_false(w.failed);
    raw_make(message, request->push ? LLI_PUSH : LLI_PULL, transfer_id, 0, body, w.size);
}

void
raw_link_open(struct raw_link *link, uint16_t port, uint64_t cluster_id)
{
    struct raw_message message;
    uint8_t body[512];
    struct lli_writer w;
    struct lli_choose choose = {.transport = LLI_TRANSPORT_TCP, .reason = "by hand"};
    struct lli_hello hello = raw_hello(LLI_PURPOSE_CONTROL);
    hello.from.cluster_id = cluster_id;
    raw_make_hello(&message, &hello);
    link->control = raw_connect(port);
    assert_true(raw_send(link->control, message.bytes, message.size));
    assert_int_equal(raw_hear_status(link->control, LLI_HELLO_REPLY, 0), LLM_SUCCESS);
    hello.purpose = LLI_PURPOSE_DATA;
    raw_make_hello(&message, &hello);
    link->data = raw_connect(port);
    assert_true(raw_send(link->data, message.bytes, message.size));
    assert_int_equal(raw_hear_status(link->data, LLI_HELLO_REPLY, 0), LLM_SUCCESS);
    lli_writer_init(&w, body, sizeof(body));
    lli_choose_write(&w, &choose);
    assert_true(raw_say(link->control, LLI_CHOOSE, 0, body, w.size));
    assert_int_equal(raw_hear_status(link->control, LLI_READY, 0), LLM_SUCCESS);
}

void
raw_link_close(struct raw_link *link)
{
    close(link->control);
    close(link->data);
}

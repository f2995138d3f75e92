// Hostile peers against a prompt: whatever they send costs their own connection, and a good link
// beside them keeps working all the time.  The prompt is another process; a crash of it, or a leak,
// fails the test.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/os.h"
#include "cache/segment.h"
#include "fault/raw.h"
#include "multi/member.h"
#include "options/options.h"

enum { TENSORS = 4, SLOTS = 8, STRIDE = 4096, SOURCE = 0, TARGET = 1 };

// The prompt, and the good link to it.
static struct process prompt;
static struct member decoder;
static uint16_t ports[MEMBER_DEVICES_MAX];
static int64_t source;
static int silent_fd;

static void
check_good_link(void)
{
    struct transfer t = {
        .kind = TRANSFER_PULL_BLOCKS,
        .cluster_id = RAW_PROMPT,
        .remote_cache = source,
        .index = TARGET,
        .count = SLOTS,
        .step = 1,
    };
    member_fill(&decoder, TARGET, 0);
    assert_int_equal(member_transfer(&decoder, &t), LLM_SUCCESS);
    assert_true(member_holds_all(&decoder, TARGET, 5));
    // And nobody has written into what it was pulled from.
    PROCESS_EXPECT(&prompt, "yes", "holds %d 5", SOURCE);
}

static int
open_good_link(void **state)
{
    (void)state;
    struct member_setup setup = {
        .cluster_id = RAW_PROMPT, .role = LLM_ROLE_PROMPT, .transports = "tcp,shm"};
    remote_open(&prompt, &setup, ports);
    source = remote_allocate(&prompt, SOURCE, TENSORS, SLOTS, STRIDE);
    remote_fill(&prompt, SOURCE, 5);
    setup.cluster_id = RAW_DECODER;
    setup.role = LLM_ROLE_DECODER;
    setup.transports = "tcp";
    member_open(&decoder, &setup);
    member_allocate(&decoder, TARGET, TENSORS, SLOTS, STRIDE);
    assert_int_equal(member_link(&decoder, RAW_PROMPT, ports, PATIENCE_MS), LLM_SUCCESS);
    silent_fd = raw_connect(ports[0]);
    return 0;
}

static int
close_good_link(void **state)
{
    (void)state;
    member_close(&decoder);
    bool ended_well = process_join(&prompt);
    process_kill_all();
    return ended_well ? 0 : 1;
}

static int
after_each(void **state)
{
    (void)state;
    check_good_link();
    return 0;
}

// ---- strangers ----

// Sends it on a new connection.  It must be refused: closed, perhaps after a reply that says no.
static void
expect_refused(const void *bytes, size_t size)
{
    int fd = raw_connect(ports[0]);
    (void)raw_send(fd, bytes, size);
    llm_status status = raw_hear_status(fd, LLI_HELLO_REPLY, 0);
    assert_true(status != LLM_SUCCESS);
    raw_expect_closed(fd);
}

static void
test_garbage(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 50; round++) {
        uint8_t bytes[512];
        for (size_t i = 0; i < sizeof(bytes); i++)
            bytes[i] = (uint8_t)(lli_random_u64() >> 8);
        expect_refused(bytes, sizeof(bytes));
    }
    static const char http[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    expect_refused(http, sizeof(http) - 1);
}

static void
test_wrong_headers(void **state)
{
    (void)state;
    struct lli_hello hello = raw_hello(LLI_PURPOSE_CONTROL);
    static const uint32_t lengths[] = {0, 1, 4, 50, 4097, 1 << 26, 0x7fffffff, 0xffffffff};
    struct raw_message good;
    raw_make_hello(&good, &hello);
    // Magic and version; every other type.
    for (size_t i = 0; i < 5; i++) {
        struct raw_message bad = good;
        bad.bytes[i] ^= 0x40;
        expect_refused(bad.bytes, bad.size);
    }
    for (unsigned type = 0; type < 256; type++) {
        struct raw_message bad = good;
        bad.bytes[5] = (uint8_t)type;
        if (type != LLI_HELLO)
            expect_refused(bad.bytes, bad.size);
    }
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct raw_message bad = good;
        memcpy(bad.bytes + 8, &lengths[i], 4);
        expect_refused(bad.bytes, bad.size);
    }
}

// The text of the refusal of a hello.
static void
expect_told(const struct raw_message *message, const char *what)
{
    struct lli_message_header header;
    struct lli_hello_reply reply;
    struct lli_reader r;
    uint8_t body[4096];
    int fd = raw_connect(ports[0]);
    assert_true(raw_send(fd, message->bytes, message->size));
    assert_true(raw_hear(fd, &header, body));
    lli_reader_init(&r, body, header.body_bytes);
    assert_true(lli_hello_reply_read(&r, &reply));
    assert_int_equal(reply.status, LLM_LINK_FAILED);
    assert_string_equal(reply.text, what);
    raw_expect_closed(fd);
}

static void
test_a_connector_of_other_versions_is_told_which_are_spoken(void **state)
{
    struct lli_hello hello = raw_hello(LLI_PURPOSE_CONTROL);
    struct raw_message message;
    (void)state;
    raw_make_hello(&message, &hello);
    message.bytes[4] = 3; // its header's version
    message.bytes[LLI_MESSAGE_HEADER_BYTES] = 2;
    message.bytes[LLI_MESSAGE_HEADER_BYTES + 2] = 3;
    expect_told(&message, "the connector speaks versions 2 to 3 of the protocol, the listener "
                          "version 1");
    message.bytes[4] = 1;
    expect_told(&message, "the connector speaks versions 2 to 3 of the protocol, the listener "
                          "version 1");
}

static void
expect_hello_refused(const struct lli_hello *hello)
{
    struct raw_message message;
    raw_make_hello(&message, hello);
    expect_refused(message.bytes, message.size);
}

static void
test_wrong_hellos(void **state)
{
    (void)state;
    static const uint32_t counts[] = {0, 2, 64, 65, 0x80000000, 0xffffffff};
    static const uint32_t purposes[] = {LLI_PURPOSE_DEVICE, LLI_PURPOSE_DATA, 3, 255, 0xffffffff};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        struct lli_hello hello = raw_hello(LLI_PURPOSE_CONTROL);
        hello.from.num_devices = counts[i];
        expect_hello_refused(&hello);
    }
    // No link with such a token is being made.
    for (size_t i = 0; i < sizeof(purposes) / sizeof(purposes[0]); i++) {
        struct lli_hello hello = raw_hello((enum lli_connection_purpose)purposes[i]);
        expect_hello_refused(&hello);
    }
    struct lli_hello hello = raw_hello(LLI_PURPOSE_CONTROL);
    hello.expected_cluster_id = RAW_PROMPT + 1;
    expect_hello_refused(&hello);
    // Versions: only ours is spoken.
    struct raw_message message;
    hello = raw_hello(LLI_PURPOSE_CONTROL);
    raw_make_hello(&message, &hello);
    for (unsigned i = 0; i < 2; i++) {
        struct raw_message bad = message;
        bad.bytes[LLI_MESSAGE_HEADER_BYTES + 0] = i == 0 ? 2 : 0; // lowest
        bad.bytes[LLI_MESSAGE_HEADER_BYTES + 2] = i == 0 ? 9 : 0; // highest
        expect_refused(bad.bytes, bad.size);
    }
}

// Cut off anywhere, with a header that says so and with one that doesn't.
static void
test_truncated_hellos(void **state)
{
    (void)state;
    struct raw_message message;
    struct lli_hello hello = raw_hello(LLI_PURPOSE_CONTROL);
    raw_make_hello(&message, &hello);
    // The last two bytes are the length of the authentication, which isn't read yet.
    for (size_t size = 0; size < message.size - 2; size++) {
        int fd = raw_connect(ports[0]);
        (void)raw_send(fd, message.bytes, size);
        shutdown(fd, SHUT_WR);
        raw_expect_closed(fd);
        if (size < LLI_MESSAGE_HEADER_BYTES)
            continue;
        struct raw_message shorter = message;
        uint32_t body_bytes = (uint32_t)(size - LLI_MESSAGE_HEADER_BYTES);
        memcpy(shorter.bytes + 8, &body_bytes, 4);
        expect_refused(shorter.bytes, size);
    }
}

static void
test_one_byte_at_a_time(void **state)
{
    (void)state;
    struct raw_message message;
    struct lli_hello hello = raw_hello(LLI_PURPOSE_CONTROL);
    int fd = raw_connect(ports[0]);
    raw_make_hello(&message, &hello);
    for (size_t i = 0; i < message.size; i++)
        assert_true(raw_send(fd, &message.bytes[i], 1));
    assert_int_equal(raw_hear_status(fd, LLI_HELLO_REPLY, 0), LLM_SUCCESS);
    close(fd);
}

// A right hello, then everything but a right choice.
static void
test_after_hello(void **state)
{
    (void)state;
    struct raw_message message;
    struct lli_hello hello = raw_hello(LLI_PURPOSE_CONTROL);
    for (unsigned type = 0; type < 20; type++) {
        int fd = raw_connect(ports[0]);
        raw_make_hello(&message, &hello);
        assert_true(raw_send(fd, message.bytes, message.size));
        assert_int_equal(raw_hear_status(fd, LLI_HELLO_REPLY, 0), LLM_SUCCESS);
        message.bytes[5] = (uint8_t)type; // type HELLO: a second one
        (void)raw_send(fd, message.bytes, message.size);
        raw_expect_closed(fd);
    }
    // Transports without what they need.
    static const uint32_t transports[] = {0, 1, 2, 3, 31, 32, 33, 0xffffffff};
    for (size_t i = 0; i < sizeof(transports) / sizeof(transports[0]); i++) {
        uint8_t body[64];
        struct lli_writer w;
        struct lli_choose choose = {.transport = transports[i]};
        int fd = raw_connect(ports[0]);
        raw_make_hello(&message, &hello);
        assert_true(raw_send(fd, message.bytes, message.size));
        lli_writer_init(&w, body, sizeof(body));
        lli_choose_write(&w, &choose);
        (void)raw_say(fd, LLI_CHOOSE, 0, body, w.size);
        assert_true(raw_hear_status(fd, LLI_READY, 0) != LLM_SUCCESS);
        raw_expect_closed(fd);
    }
}

static void
test_too_many_data_connections(void **state)
{
    (void)state;
    struct raw_message message;
    int fds[12];
    struct lli_hello hello = raw_hello(LLI_PURPOSE_CONTROL);
    fds[0] = raw_connect(ports[0]);
    raw_make_hello(&message, &hello);
    assert_true(raw_send(fds[0], message.bytes, message.size));
    assert_int_equal(raw_hear_status(fds[0], LLI_HELLO_REPLY, 0), LLM_SUCCESS);
    hello.purpose = LLI_PURPOSE_DATA;
    raw_make_hello(&message, &hello);
    for (unsigned i = 1; i < 12; i++) {
        fds[i] = raw_connect(ports[0]);
        assert_true(raw_send(fds[i], message.bytes, message.size));
        assert_true((raw_hear_status(fds[i], LLI_HELLO_REPLY, 0) == LLM_SUCCESS) == (i <= 8));
    }
    // Data that nobody asked for is thrown away, and garbage ends the half-made link.
    uint8_t zeros[100] = {0};
    assert_true(raw_say(fds[1], LLI_DATA, 1, zeros, sizeof(zeros)));
    (void)raw_send(fds[2], zeros, sizeof(zeros));
    raw_expect_closed(fds[1]);
    for (unsigned i = 0; i < 12; i++) {
        if (i != 1)
            close(fds[i]);
    }
}

// Thousands at once, silent ones and ones that leave at once.
static void
test_flood_of_connections(void **state)
{
    enum { FLOOD = SCALED(3000, 1000) };
    static int fds[FLOOD];
    (void)state;
    for (unsigned i = 0; i < FLOOD; i++) {
        fds[i] = raw_connect(ports[0]);
        if (i % 3 == 0) {
            struct linger reset = {.l_onoff = 1};
            setsockopt(fds[i], SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
            close(fds[i]);
            fds[i] = -1;
        }
        if (i % 500 == 0)
            check_good_link();
    }
    check_good_link();
    for (unsigned i = 0; i < FLOOD; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
}

// ---- linked ones ----

static struct lli_request
good_request(bool push, struct lli_block_run *runs, size_t num_runs)
{
    return (struct lli_request){
        .push = push,
        .kind = LLI_REQUEST_BLOCKS,
        .cache_id = source,
        .num_tensors = TENSORS,
        .tensors_per_layer = 2,
        .stride = STRIDE,
        .runs = runs,
        .num_runs = num_runs,
    };
}

// It's answered with a failure, or costs the link.
static void
expect_request_refused(const struct lli_request *request)
{
    struct raw_link link;
    struct raw_message message;
    raw_link_open(&link, ports[0], RAW_STRANGER);
    raw_make_request(&message, 7, request);
    assert_true(raw_send(link.control, message.bytes, message.size));
    assert_true(raw_hear_status(link.control, LLI_RESULT, 7) != LLM_SUCCESS);
    raw_link_close(&link);
}

static void
refused_requests(bool push)
{
    static const struct lli_block_run bad_runs[] = {
        {SLOTS, 1},      {0, SLOTS + 1},           {SLOTS - 1, 2},         {0, UINT64_MAX},
        {UINT64_MAX, 1}, {UINT64_MAX, UINT64_MAX}, {1, UINT64_MAX},        {0, 0},
        {1, 0},          {UINT64_C(1) << 63, 1},   {0, UINT64_C(1) << 52}, {4, UINT64_MAX - 3},
    };
    for (size_t i = 0; i < sizeof(bad_runs) / sizeof(bad_runs[0]); i++) {
        struct lli_block_run runs[] = {{0, 1}, bad_runs[i]};
        struct lli_request request = good_request(push, runs, 2);
        expect_request_refused(&request);
        request.fetch = true;
        request.source_cache_id = 1;
        request.source_runs = runs;
        request.num_source_runs = 2;
        expect_request_refused(&request);
    }
    struct lli_block_run runs[] = {{0, SLOTS}};
    for (unsigned i = 0; i < 12; i++) {
        struct lli_request request = good_request(push, runs, 1);
        switch (i) {
        case 0:
            request.cache_id = source + 1;
            break;
        case 1:
            request.cache_id = INT64_MIN;
            break;
        case 2:
            request.num_tensors = UINT32_MAX;
            break;
        case 3:
            request.num_tensors = TENSORS + 1;
            break;
        case 4:
            request.first_tensor = 1;
            break;
        case 5:
            request.first_tensor = UINT32_MAX;
            break;
        case 6:
            request.tensors_per_layer = 3;
            break;
        case 7:
            request.stride = STRIDE - 1;
            break;
        case 8:
            request.num_runs = 0;
            break;
        case 9:
            request = (struct lli_request){
                .push = push, .cache_id = source, .num_tensors = 1, .slot = SLOTS, .bytes = 1};
            break;
        case 10:
            request = (struct lli_request){
                .push = push, .cache_id = source, .num_tensors = 1, .bytes = STRIDE + 1};
            break;
        default:
            request.kind = (enum lli_request_kind)7;
            break;
        }
        expect_request_refused(&request);
    }
}

static void
test_refused_pulls(void **state)
{
    (void)state;
    refused_requests(false);
    // A pull that would write here.
    struct lli_block_run runs[] = {{0, SLOTS}};
    struct lli_request request = good_request(false, runs, 1);
    request.fetch = true;
    request.source_cache_id = 1;
    request.source_runs = runs;
    request.num_source_runs = 1;
    expect_request_refused(&request);
}

static void
test_refused_pushes(void **state)
{
    (void)state;
    refused_requests(true);
}

// The number of runs says more than there are; the body is cut off anywhere.
static void
test_truncated_requests(void **state)
{
    (void)state;
    struct lli_block_run runs[] = {{0, 1}, {2, 1}};
    struct lli_request request = good_request(false, runs, 2);
    struct raw_message message;
    raw_make_request(&message, 7, &request);
    // Without its last field, the type of the elements, it is whole: as an older peer sends it.
    size_t older_size = message.size - sizeof(uint32_t);
    for (size_t size = LLI_MESSAGE_HEADER_BYTES; size < older_size; size += 3) {
        struct raw_link link;
        struct raw_message shorter = message;
        uint32_t body_bytes = (uint32_t)(size - LLI_MESSAGE_HEADER_BYTES);
        memcpy(shorter.bytes + 8, &body_bytes, 4);
        raw_link_open(&link, ports[0], RAW_STRANGER);
        assert_true(raw_send(link.control, shorter.bytes, size));
        raw_expect_closed(link.control);
        close(link.data);
    }
}

// Every type with every kind of body: answered, ignored, or the end of this link alone.
static void
test_any_message_when_linked(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 31, 96, 4096};
    uint8_t body[4096];
    for (unsigned type = 0; type < 24; type++) {
        struct raw_link link;
        raw_link_open(&link, ports[0], RAW_STRANGER);
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            memset(body, i % 2 == 0 ? 0 : 0xff, sizeof(body));
            (void)raw_say(link.control, (enum lli_message_type)type, i, body, sizes[i]);
            (void)raw_say(link.data, (enum lli_message_type)type, i, body, sizes[i]);
        }
        raw_link_close(&link);
    }
}

// Answers to what was never asked.
static void
test_answers_to_nothing(void **state)
{
    (void)state;
    static const enum lli_message_type types[] = {LLI_CANCELLED, LLI_PUSH_ACCEPTED, LLI_CANCEL,
                                                  LLI_UNLINK_REPLY};
    uint8_t success[6] = {0};
    struct raw_link link;
    raw_link_open(&link, ports[0], RAW_STRANGER);
    for (uint64_t id = 0; id < 10; id++) {
        for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
            assert_true(raw_say(link.control, types[i], id, success, sizeof(success)));
        assert_true(raw_say(link.control, LLI_RESULT, id, success, sizeof(success)));
    }
    // Still a link: a cancel is always confirmed.
    struct lli_message_header header;
    uint8_t body[4096];
    for (unsigned i = 0; i < 10; i++) {
        assert_true(raw_hear(link.control, &header, body));
        assert_int_equal(header.type, LLI_CANCELLED);
    }
    raw_link_close(&link);
}

// A push that is accepted, and then more data than was announced, elsewhere than was announced.
static void
test_data_beyond_the_end(void **state)
{
    (void)state;
    static const struct {
        uint64_t position;
        size_t bytes;
    } frames[] = {{0, 5000},       {4096, 1}, {4097, 0},
                  {UINT64_MAX, 1}, {1, 4096}, {UINT64_MAX - 10, 100}};
    int64_t other = remote_allocate(&prompt, TARGET, TENSORS, SLOTS, STRIDE);
    remote_fill(&prompt, TARGET, 0);
    for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++) {
        static uint8_t bytes[8192];
        struct raw_link link;
        struct raw_message message;
        struct lli_message_header header;
        uint8_t body[4096];
        struct lli_block_run runs[] = {{3, 1}};
        struct lli_request request = good_request(true, runs, 1);
        request.cache_id = other;
        request.num_tensors = 1;
        request.tensors_per_layer = 0;
        memset(bytes, 0xee, sizeof(bytes));
        raw_link_open(&link, ports[0], RAW_STRANGER);
        raw_make_request(&message, 7, &request);
        assert_true(raw_send(link.control, message.bytes, message.size));
        assert_true(raw_hear(link.control, &header, body));
        assert_int_equal(header.type, LLI_PUSH_ACCEPTED);
        raw_make(&message, LLI_DATA, 7, frames[i].position, bytes, frames[i].bytes);
        assert_true(raw_send(link.data, message.bytes, message.size));
        raw_expect_closed(link.control);
        close(link.data);
    }
    PROCESS_EXPECT(&prompt, "yes", "holds %d 0", TARGET);
    PROCESS_EXPECT(&prompt, "ok", "deallocate %d", TARGET);
}

// Asks and asks, and reads neither answers nor data.
static void
test_flood_of_requests(void **state)
{
    enum { FLOOD = SCALED(20000, 5000) };
    (void)state;
    for (unsigned known = 0; known < 2; known++) {
        struct raw_link link;
        struct raw_message message;
        struct lli_block_run runs[] = {{0, SLOTS}};
        struct lli_request request = good_request(false, runs, 1);
        request.cache_id = known ? source : source + 1;
        raw_link_open(&link, ports[0], RAW_STRANGER);
        fcntl(link.control, F_SETFL, O_NONBLOCK);
        for (unsigned i = 0; i < FLOOD; i++) {
            raw_make_request(&message, i, &request);
            // The prompt stops reading from us at some time; that's right.
            if (!raw_send(link.control, message.bytes, message.size))
                break;
            if (i % (FLOOD / 4) == 0)
                check_good_link();
        }
        check_good_link();
        raw_link_close(&link);
    }
}

// The same cluster again and again: each replaces the one before.
static void
test_links_replaced(void **state)
{
    enum { LINKS = SCALED(200, 50) };
    static struct raw_link links[LINKS];
    (void)state;
    for (unsigned i = 0; i < LINKS; i++)
        raw_link_open(&links[i], ports[0], RAW_STRANGER);
    for (unsigned i = 0; i < LINKS; i++)
        raw_link_close(&links[i]);
}

// ---- keys, addresses, positions ----

static void
make_question(struct raw_message *message, enum lli_message_type type,
              const struct lli_request *request)
{
    uint8_t body[4096];
    struct lli_writer w;
    lli_writer_init(&w, body, sizeof(body));
    lli_request_write(&w, request);
    assert_false(w.failed);
    raw_make(message, type, 7, 0, body, w.size);
}

// What it answers; UINT32_MAX: with the end of the link.
static llm_status
ask(const struct raw_link *link, enum lli_message_type type, const struct lli_request *request)
{
    struct raw_message message;
    make_question(&message, type, request);
    assert_true(raw_send(link->control, message.bytes, message.size));
    return raw_hear_status(link->control, LLI_ANSWER, 7);
}

static void
test_questions_about_what_is_not_there(void **state)
{
    (void)state;
    static const struct lli_key keys[] = {{LLM_KEY_REQUEST, 1, 0, 0},
                                          {LLM_KEY_PREFIX, UINT64_MAX, UINT64_MAX, 0},
                                          {LLM_KEY_BLOCKS, 0, 0, 0},
                                          {LLM_KEY_NONE, 0, 0, 0}};
    static const uint64_t slots[] = {0, SLOTS, UINT64_MAX};
    struct raw_link link;
    raw_link_open(&link, ports[0], RAW_STRANGER);
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        struct lli_request request = {.by = LLI_BY_KEY, .key = keys[i], .num_tensors = UINT32_MAX};
        assert_int_equal(ask(&link, LLI_QUERY, &request), LLM_KV_CACHE_NOT_EXIST);
        // Nor can it be taken by somebody who never pulled it.
        assert_int_equal(ask(&link, LLI_DONE, &request), LLM_KV_CACHE_NOT_EXIST);
        request.generation = 2;
        assert_int_equal(ask(&link, LLI_QUERY, &request), LLM_CACHE_STALE);
        request.release_lease = true;
        request.token = UINT64_MAX;
        assert_int_equal(ask(&link, LLI_DONE, &request), LLM_KV_CACHE_NOT_EXIST);
    }
    for (size_t i = 0; i < sizeof(slots) / sizeof(slots[0]); i++) {
        struct lli_request request = {
            .cache_id = source,
            .slot = slots[i],
            .first_tensor = UINT32_MAX,
            .num_tensors = UINT32_MAX,
            .token = 4711,
        };
        assert_int_equal(ask(&link, LLI_QUERY, &request), LLM_SUCCESS);
        assert_int_equal(ask(&link, LLI_DONE, &request), LLM_SUCCESS);
        request.cache_id = INT64_MIN;
        assert_int_equal(ask(&link, LLI_QUERY, &request), LLM_KV_CACHE_NOT_EXIST);
        assert_int_equal(ask(&link, LLI_DONE, &request), LLM_SUCCESS);
    }
    raw_link_close(&link);
}

// Cut off anywhere, and with kinds that don't exist.
static void
test_malformed_questions(void **state)
{
    (void)state;
    static const enum lli_message_type types[] = {LLI_QUERY, LLI_DONE};
    struct lli_request request = {.by = LLI_BY_KEY, .key = {LLM_KEY_REQUEST, 1, 2, 0}};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        struct raw_message message;
        struct raw_link link;
        make_question(&message, types[i], &request);
        for (size_t size = LLI_MESSAGE_HEADER_BYTES; size < message.size; size += 5) {
            struct raw_message shorter = message;
            uint32_t body_bytes = (uint32_t)(size - LLI_MESSAGE_HEADER_BYTES);
            memcpy(shorter.bytes + 8, &body_bytes, 4);
            raw_link_open(&link, ports[0], RAW_STRANGER);
            assert_true(raw_send(link.control, shorter.bytes, size));
            raw_expect_closed(link.control);
            close(link.data);
        }
        for (uint32_t wrong = LLM_KEY_BLOCKS + 1; wrong != 0; wrong <<= 1) {
            struct lli_request bad = request;
            bad.key.kind = wrong;
            raw_link_open(&link, ports[0], RAW_STRANGER);
            assert_int_equal(ask(&link, types[i], &bad), UINT32_MAX);
            raw_link_close(&link);
        }
        struct lli_request bad = request;
        bad.by = (enum lli_request_by)3;
        raw_link_open(&link, ports[0], RAW_STRANGER);
        assert_int_equal(ask(&link, types[i], &bad), UINT32_MAX);
        raw_link_close(&link);
    }
}

static void
test_answers_to_questions_never_asked(void **state)
{
    (void)state;
    uint8_t body[512];
    struct lli_writer w;
    struct raw_link link;
    struct lli_outcome outcome = {.status = LLM_SUCCESS, .text = ""};
    struct lli_answer answer = {.geometry = {.num_tensors = UINT32_MAX, .stride = UINT64_MAX}};
    raw_link_open(&link, ports[0], RAW_STRANGER);
    lli_writer_init(&w, body, sizeof(body));
    lli_outcome_write(&w, &outcome);
    size_t outcome_bytes = w.size;
    lli_answer_write(&w, &answer);
    for (uint64_t id = 0; id < 20; id++)
        assert_true(raw_say(link.control, LLI_ANSWER, id, body, w.size));
    // Still a link.
    struct lli_request request = {.cache_id = source};
    assert_int_equal(ask(&link, LLI_QUERY, &request), LLM_SUCCESS);
    // Half an answer isn't one.
    assert_true(raw_say(link.control, LLI_ANSWER, 3, body, outcome_bytes + 9));
    raw_expect_closed(link.control);
    close(link.data);
}

static void
test_addresses_out_of_range(void **state)
{
    (void)state;
    static const uint64_t wrong[] = {0, 1, 4096, UINT64_MAX, UINT64_C(1) << 63};
    uint64_t addresses[TENSORS];
    struct lli_block_run runs[] = {{0, 1}};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        for (size_t k = 0; k < TENSORS; k++)
            addresses[k] = wrong[i];
        struct lli_request request = good_request(true, runs, 1);
        request.by = LLI_BY_ADDRESS;
        request.addresses = addresses;
        expect_request_refused(&request);
        request.stride = UINT64_MAX;
        expect_request_refused(&request);
        request.kind = LLI_REQUEST_SLOT;
        request.num_runs = 0;
        request.bytes = UINT64_MAX;
        expect_request_refused(&request);
        request.bytes = 0;
        expect_request_refused(&request);
        // Nobody pulls from addresses.
        request.push = false;
        expect_request_refused(&request);
    }
}

// Each would be looked for among all caches, by the thread that serves everybody.
static void
test_more_addresses_than_one_request_may_name(void **state)
{
    static uint64_t many[LLM_ADDRS_MAX + 1];
    struct lli_block_run runs[] = {{0, 1}};
    struct lli_request request = good_request(true, runs, 1);
    (void)state;
    request.by = LLI_BY_ADDRESS;
    request.addresses = many;
    request.num_tensors = LLM_ADDRS_MAX + 1;
    expect_request_refused(&request);
}

// So many addresses as there aren't bytes for.
static void
test_more_addresses_than_were_sent(void **state)
{
    (void)state;
    static const uint32_t counts[] = {0, TENSORS + 1, 1 << 20, 0x80000000, UINT32_MAX};
    uint64_t addresses[TENSORS] = {0};
    struct lli_request request = {
        .push = true, .by = LLI_BY_ADDRESS, .addresses = addresses, .num_tensors = TENSORS};
    enum { NUM_TENSORS_AT = LLI_MESSAGE_HEADER_BYTES + 20 };
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        struct raw_message message;
        struct raw_link link;
        raw_make_request(&message, 7, &request);
        uint32_t sent;
        memcpy(&sent, message.bytes + NUM_TENSORS_AT, 4);
        assert_int_equal(sent, TENSORS);
        memcpy(message.bytes + NUM_TENSORS_AT, &counts[i], 4);
        raw_link_open(&link, ports[0], RAW_STRANGER);
        assert_true(raw_send(link.control, message.bytes, message.size));
        raw_expect_closed(link.control);
        close(link.data);
    }
}

static void
test_positions_beyond_the_end(void **state)
{
    (void)state;
    static const uint64_t beyond[] = {(uint64_t)TENSORS * SLOTS * STRIDE + 1, UINT64_MAX,
                                      UINT64_C(1) << 63};
    struct lli_block_run runs[] = {{0, SLOTS}};
    for (size_t i = 0; i < sizeof(beyond) / sizeof(beyond[0]); i++) {
        for (int push = 0; push <= 1; push++) {
            struct lli_request request = good_request(push, runs, 1);
            request.start_position = beyond[i];
            expect_request_refused(&request);
        }
        struct lli_request slot = {.cache_id = source, .num_tensors = TENSORS, .bytes = 1};
        slot.offset = beyond[i];
        expect_request_refused(&slot);
    }
    // At the end nothing is left to do.
    struct raw_link link;
    struct raw_message message;
    raw_link_open(&link, ports[0], RAW_STRANGER);
    for (int push = 0; push <= 1; push++) {
        struct lli_request request = good_request(push, runs, 1);
        request.start_position = beyond[0] - 1;
        raw_make_request(&message, 9, &request);
        assert_true(raw_send(link.control, message.bytes, message.size));
        assert_int_equal(raw_hear_status(link.control, LLI_RESULT, 9), LLM_SUCCESS);
    }
    raw_link_close(&link);
}

// ---- memory files ----

// Begins a link and learns where memory files are exchanged.
static int
begin_link(struct lli_hello *ret_hello, char name[LLI_UNIX_NAME_BYTES])
{
    struct raw_message message;
    struct lli_message_header header;
    struct lli_reader r;
    struct lli_hello_reply reply;
    uint8_t body[4096];
    int fd = raw_connect(ports[0]);
    *ret_hello = raw_hello(LLI_PURPOSE_CONTROL);
    raw_make_hello(&message, ret_hello);
    assert_true(raw_send(fd, message.bytes, message.size));
    assert_true(raw_hear(fd, &header, body));
    lli_reader_init(&r, body, header.body_bytes);
    assert_true(lli_hello_reply_read(&r, &reply));
    memcpy(name, reply.from.unix_name, LLI_UNIX_NAME_BYTES);
    return fd;
}

// Offers these files; what the prompt says of them.
static llm_status
offer(const char *name, const void *bytes, size_t size, const int *fds, size_t num_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(128 * sizeof(int))];
    } control;
    uint8_t answer[512];
    struct iovec piece = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    struct lli_reader r;
    int fd = lli_unix_connect(name);
    assert_true(fd >= 0);
    if (num_fds > 0) {
        memset(&control, 0, sizeof(control));
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(num_fds * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(num_fds * sizeof(int));
        memcpy(CMSG_DATA(rights), fds, num_fds * sizeof(int));
    }
    assert_true(sendmsg(fd, &message, MSG_NOSIGNAL) == (ssize_t)size);
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    assert_true(poll(&wait, 1, PATIENCE_MS) == 1);
    ssize_t got = recv(fd, answer, sizeof(answer), 0);
    close(fd);
    lli_reader_init(&r, answer, got > 0 ? (size_t)got : 0);
    return got > 0 ? lli_read_u32(&r) : UINT32_MAX;
}

static void
test_memory_files(void **state)
{
    (void)state;
    void *base;
    void *pool_base;
    char name[LLI_UNIX_NAME_BYTES];
    struct lli_hello hello;
    size_t bytes = sizeof(struct lli_segment_layout);
    int control = begin_link(&hello, name);
    uint64_t ids[2] = {hello.link_token, hello.from.incarnation};
    int good = lli_memory_file_create("directory", bytes, &base);
    int pool = lli_memory_file_create("pool", 1 << 20, &pool_base);
    int small = lli_memory_file_create("small", 4096, &(void *){NULL});
    int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int pipe_fds[2];
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_true(good >= 0 && pool >= 0 && small >= 0 && unsealed >= 0 && null >= 0);
    assert_int_equal(pipe(pipe_fds), 0);
    assert_int_equal(ftruncate(unsealed, (off_t)bytes), 0);
    struct lli_segment_header *header = base;
    header->magic = LLI_SEGMENT_MAGIC;
    header->version = LLI_SEGMENT_VERSION;
    header->num_devices = 1;
    header->incarnation = hello.from.incarnation + 2; // lies

    const int offers[][2] = {{small, pool}, {unsealed, pool}, {null, pool}, {pipe_fds[0], pool},
                             {good, pool},  {good, good},     {pool, good}};
    for (size_t i = 0; i < sizeof(offers) / sizeof(offers[0]); i++)
        assert_true(offer(name, ids, sizeof(ids), offers[i], 2) != LLM_SUCCESS);
    header->incarnation = hello.from.incarnation;
    for (unsigned i = 0; i < 4; i++) {
        struct lli_segment_header right = *header;
        header->magic ^= i == 0;
        header->version ^= i == 1;
        header->num_devices = i == 2 ? 64 : i == 3 ? 0 : 1;
        assert_true(offer(name, ids, sizeof(ids), (int[]){good, pool}, 2) != LLM_SUCCESS);
        *header = right;
    }
    assert_true(offer(name, ids, sizeof(ids), (int[]){good, null}, 2) != LLM_SUCCESS);
    assert_true(offer(name, ids, sizeof(ids), (int[]){good, unsealed}, 2) != LLM_SUCCESS);
    // Too few files, too many, far too many; too short, and from nobody.
    int many[100];
    for (size_t i = 0; i < 100; i++)
        many[i] = null;
    assert_true(offer(name, ids, sizeof(ids), NULL, 0) != LLM_SUCCESS);
    assert_true(offer(name, ids, sizeof(ids), &good, 1) != LLM_SUCCESS);
    assert_true(offer(name, ids, sizeof(ids), (int[]){good, pool, pool}, 3) != LLM_SUCCESS);
    assert_true(offer(name, ids, sizeof(ids), many, 100) != LLM_SUCCESS);
    assert_true(offer(name, ids, 7, (int[]){good, pool}, 2) != LLM_SUCCESS);
    assert_true(offer(name, (uint64_t[]){1, 2}, 16, (int[]){good, pool}, 2) != LLM_SUCCESS);
    // And at last the right ones.
    assert_int_equal(offer(name, ids, sizeof(ids), (int[]){good, pool}, 2), LLM_SUCCESS);
    close(control);
    munmap(base, bytes);
    munmap(pool_base, 1 << 20);
    int all[] = {good, pool, small, unsealed, pipe_fds[0], pipe_fds[1], null};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        close(all[i]);
}

// Last: the one that never said a word has been sent away meanwhile, or soon will be.
static void
test_silence(void **state)
{
    (void)state;
    raw_expect_closed(silent_fd);
}

#define TEST(name) cmocka_unit_test_teardown(name, after_each)

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk))
        return member_serve(&talk);
    const struct CMUnitTest tests[] = {
        TEST(test_garbage),
        TEST(test_wrong_headers),
        TEST(test_a_connector_of_other_versions_is_told_which_are_spoken),
        TEST(test_wrong_hellos),
        TEST(test_truncated_hellos),
        TEST(test_one_byte_at_a_time),
        TEST(test_after_hello),
        TEST(test_too_many_data_connections),
        TEST(test_flood_of_connections),
        TEST(test_refused_pulls),
        TEST(test_refused_pushes),
        TEST(test_truncated_requests),
        TEST(test_any_message_when_linked),
        TEST(test_answers_to_nothing),
        TEST(test_data_beyond_the_end),
        TEST(test_flood_of_requests),
        TEST(test_links_replaced),
        TEST(test_questions_about_what_is_not_there),
        TEST(test_malformed_questions),
        TEST(test_answers_to_questions_never_asked),
        TEST(test_addresses_out_of_range),
        TEST(test_more_addresses_than_one_request_may_name),
        TEST(test_more_addresses_than_were_sent),
        TEST(test_positions_beyond_the_end),
        TEST(test_memory_files),
        TEST(test_silence),
    };
    return cmocka_run_group_tests(tests, open_good_link, close_good_link);
}

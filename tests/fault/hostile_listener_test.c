// A listener that is no prompt, or a bad one: linking fails in time, a pull ends with a status, and
// not a byte lands outside of what the pull named.
#include <arpa/inet.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/os.h"
#include "fault/raw.h"
#include "multi/member.h"
#include "options/options.h"

enum { TENSORS = 2, SLOTS = 8, STRIDE = 4096, TARGET = 0, DATA_CONNECTIONS = 2 };
enum { SHORT_MS = 400, BOUND_MS = SCALED(4000, 20000) };

// One visit: what the listener does to whoever links, in a thread of its own.
struct visit {
    void (*behave)(struct visit *visit);
    unsigned variant;
    int listen_fd;
    uint16_t port;
    int control;
    int data[DATA_CONNECTIONS];
    pthread_t thread;
};

static void *
visit_main(void *arg)
{
    struct visit *visit = arg;
    struct timeval limit = {.tv_sec = 2};
    visit->control = accept(visit->listen_fd, NULL, NULL);
    setsockopt(visit->control, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    visit->behave(visit);
    return NULL;
}

static void
visit_begin(struct visit *visit, void (*behave)(struct visit *visit), unsigned variant)
{
    struct sockaddr_in name = {.sin_family = AF_INET};
    socklen_t bytes = sizeof(name);
    memset(visit, 0, sizeof(*visit));
    visit->behave = behave;
    visit->variant = variant;
    for (unsigned i = 0; i < DATA_CONNECTIONS; i++)
        visit->data[i] = -1;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    visit->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(visit->listen_fd, (struct sockaddr *)&name, sizeof(name)), 0);
    assert_int_equal(listen(visit->listen_fd, 8), 0);
    assert_int_equal(getsockname(visit->listen_fd, (struct sockaddr *)&name, &bytes), 0);
    visit->port = ntohs(name.sin_port);
    assert_int_equal(pthread_create(&visit->thread, NULL, visit_main, visit), 0);
}

static void
visit_end(struct visit *visit)
{
    pthread_join(visit->thread, NULL);
    close(visit->control);
    for (unsigned i = 0; i < DATA_CONNECTIONS; i++) {
        if (visit->data[i] >= 0)
            close(visit->data[i]);
    }
    close(visit->listen_fd);
}

static void
skip_message(int fd)
{
    struct lli_message_header header;
    uint8_t body[4096];
    (void)raw_hear(fd, &header, body);
}

static struct lli_hello_reply
good_reply(void)
{
    return (struct lli_hello_reply){
        .from =
            {
                .cluster_id = RAW_PROMPT,
                .incarnation = 77,
                .num_devices = 1,
                .transports = 1u << LLI_TRANSPORT_TCP,
                .liveness_ms = 60000,
            },
    };
}

static void
make_reply(struct raw_message *message, const struct lli_hello_reply *reply)
{
    uint8_t body[LLI_HELLO_BODY_BYTES_MAX];
    struct lli_writer w;
    lli_writer_init(&w, body, sizeof(body));
    lli_hello_reply_write(&w, reply);
    raw_make(message, LLI_HELLO_REPLY, 0, 0, body, w.size);
}

// ---- before there is a link ----

enum { FIRST_WORDS = 16 };

static void
say_first_words(struct visit *visit)
{
    struct raw_message message;
    struct lli_hello_reply reply = good_reply();
    skip_message(visit->control);
    switch (visit->variant) {
    case 0:
        shutdown(visit->control, SHUT_RDWR);
        return;
    case 1:
        reply.from.cluster_id++;
        break;
    case 2:
        reply.from.num_devices = 2;
        break;
    case 3:
        reply.from.num_devices = UINT32_MAX;
        break;
    case 4:
        reply.from.transports = 0;
        break;
    case 5:
        reply.from.transports = 0xfffffff8; // none that exists
        break;
    case 6: // this host, but nobody is where memory files are exchanged
        reply.from.transports = 1u << LLI_TRANSPORT_SHM;
        (void)lli_boot_id(reply.from.boot_id);
        snprintf(reply.from.unix_name, sizeof(reply.from.unix_name), "nobody");
        break;
    case 7:
        reply.status = LLM_LINK_FAILED;
        snprintf(reply.text, sizeof(reply.text), "no\nsecond line\x1b[31m");
        break;
    default:
        break;
    }
    make_reply(&message, &reply);
    if (visit->variant == 8)
        memset(message.bytes + 8, 0xff, 4); // 4 GiB
    if (visit->variant == 9)
        message.bytes[5] = LLI_READY;
    if (visit->variant == 10)
        message.bytes[4] = 9;
    if (visit->variant == 11)
        memset(message.bytes, 0xa5, message.size);
    if (visit->variant >= 12) // cut off
        message.size = message.size * (visit->variant - 11) / 6;
    (void)raw_send(visit->control, message.bytes, message.size);
    if (visit->variant >= 12)
        shutdown(visit->control, SHUT_RDWR);
}

static void
say_nothing(struct visit *visit)
{
    (void)visit;
}

static void
test_first_words(void **state)
{
    struct member decoder;
    struct member_setup setup = {.cluster_id = RAW_DECODER, .role = LLM_ROLE_DECODER};
    (void)state;
    member_open(&decoder, &setup);
    for (unsigned variant = 0; variant < FIRST_WORDS; variant++) {
        struct visit visit;
        visit_begin(&visit, say_first_words, variant);
        uint64_t start = now_ms();
        assert_int_equal(member_link(&decoder, RAW_PROMPT, &visit.port, BOUND_MS), LLM_LINK_FAILED);
        assert_true(now_ms() - start < BOUND_MS);
        assert_int_equal(member_link_state(&decoder, RAW_PROMPT, NULL), 0);
        visit_end(&visit);
    }
    struct visit visit;
    visit_begin(&visit, say_nothing, 0);
    uint64_t start = now_ms();
    assert_int_equal(member_link(&decoder, RAW_PROMPT, &visit.port, SHORT_MS), LLM_LINK_FAILED);
    assert_true(now_ms() - start >= SHORT_MS && now_ms() - start < BOUND_MS);
    visit_end(&visit);
    member_close(&decoder);
}

// ---- no llm-datadist, or another one ----

static const struct {
    const char *says; // NULL: nothing
    bool closes;
    const char *reason;
} others[] = {
    {"HTTP/1.1 400 Bad Request\r\nServer: else\r\n\r\n", true,
     "it is not an llm-datadist: it says \"HTTP/1.1 400 Bad Request\""},
    {"-ERR\r\n", true, "it is not an llm-datadist: it says \"-ERR\""},
    {"\x1b[2J and thirty-two bytes of controls", false,
     "it is not an llm-datadist: it says \"?[2J and"},
    {NULL, true, "the peer closed the connection before it said anything: it may not be"},
    {NULL, false, "the time is up before it said anything: it may not be an llm-datadist"},
};

static void
be_another(struct visit *visit)
{
    const char *says = others[visit->variant].says;
    skip_message(visit->control);
    if (says != NULL)
        (void)raw_send(visit->control, says, strlen(says));
    if (others[visit->variant].closes)
        shutdown(visit->control, SHUT_RDWR);
}

static void
speak_version_9(struct visit *visit)
{
    struct raw_message message;
    struct lli_hello_reply reply = good_reply();
    skip_message(visit->control);
    make_reply(&message, &reply);
    message.bytes[4] = 9;
    (void)raw_send(visit->control, message.bytes, message.size);
}

static void
expect_reason(struct member *decoder, void (*behave)(struct visit *visit), unsigned variant,
              const char *reason)
{
    struct visit visit;
    char text[1024];
    visit_begin(&visit, behave, variant);
    assert_int_equal(member_link(decoder, RAW_PROMPT, &visit.port, SHORT_MS), LLM_LINK_FAILED);
    llm_last_error(text, sizeof(text));
    if (strstr(text, reason) == NULL)
        fail_msg("\"%s\" doesn't say \"%s\"", text, reason);
    visit_end(&visit);
}

static void
test_a_listener_that_is_something_else_is_named(void **state)
{
    struct member decoder;
    struct member_setup setup = {.cluster_id = RAW_DECODER, .role = LLM_ROLE_DECODER};
    (void)state;
    member_open(&decoder, &setup);
    for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        expect_reason(&decoder, be_another, i, others[i].reason);
    expect_reason(&decoder, speak_version_9, 0,
                  "it speaks another version of the protocol: 9, here is 1");
    member_close(&decoder);
}

// ---- up to the link ----

// Everything right until the choice has been heard.
static void
be_good(struct visit *visit)
{
    struct raw_message message;
    struct lli_hello_reply reply = good_reply();
    make_reply(&message, &reply);
    skip_message(visit->control);
    (void)raw_send(visit->control, message.bytes, message.size);
    for (unsigned i = 0; i < DATA_CONNECTIONS; i++) {
        visit->data[i] = accept(visit->listen_fd, NULL, NULL);
        skip_message(visit->data[i]);
        (void)raw_send(visit->data[i], message.bytes, message.size);
    }
    skip_message(visit->control);
}

static void
answer_choice(struct visit *visit)
{
    uint8_t zeros[6] = {0};
    uint8_t failure[6] = {0x09, 0xb0, 0x10, 0x50};
    be_good(visit);
    switch (visit->variant) {
    case 0:
        shutdown(visit->control, SHUT_RDWR);
        break;
    case 1:
        (void)raw_say(visit->control, LLI_READY, 0, failure, sizeof(failure));
        break;
    case 2:
        (void)raw_say(visit->control, LLI_READY, 0, zeros, 3);
        break;
    case 3:
        (void)raw_say(visit->control, LLI_HELLO_REPLY, 0, zeros, sizeof(zeros));
        break;
    default:
        (void)raw_send(visit->control, "garbage, and long enough to be a header", 39);
        break;
    }
}

static void
test_choice(void **state)
{
    struct member decoder;
    struct member_setup setup = {
        .cluster_id = RAW_DECODER, .role = LLM_ROLE_DECODER, .transports = "tcp"};
    (void)state;
    member_open(&decoder, &setup);
    for (unsigned variant = 0; variant < 5; variant++) {
        struct visit visit;
        visit_begin(&visit, answer_choice, variant);
        assert_int_equal(member_link(&decoder, RAW_PROMPT, &visit.port, BOUND_MS), LLM_LINK_FAILED);
        assert_int_equal(member_link_state(&decoder, RAW_PROMPT, NULL), 0);
        visit_end(&visit);
    }
    member_close(&decoder);
}

// ---- a pull ----

enum { PULL_ANSWERS = 12 };

static void
send_data(struct visit *visit, unsigned which, uint64_t id, uint64_t position, size_t bytes)
{
    static const uint8_t content[3 * STRIDE] = {0xee};
    struct raw_message message;
    raw_make(&message, LLI_DATA, id, position, content, bytes);
    (void)raw_send(visit->data[which], message.bytes, message.size);
}

static void
answer_pull(struct visit *visit)
{
    struct lli_message_header header = {0};
    uint8_t body[4096];
    uint8_t zeros[64] = {0};
    be_good(visit);
    (void)raw_say(visit->control, LLI_READY, 0, zeros, 6);
    if (!raw_hear(visit->control, &header, body))
        return;
    uint64_t id = header.transfer_id;
    switch (visit->variant) {
    case 0: // a pull's success is counted in bytes
        (void)raw_say(visit->control, LLI_RESULT, id, zeros, 6);
        break;
    case 1:
        send_data(visit, 0, id, 2 * STRIDE - 10, 11);
        break;
    case 2:
        send_data(visit, 0, id, UINT64_MAX, 1);
        break;
    case 3:
        send_data(visit, 0, id, 0, 2 * STRIDE);
        send_data(visit, 1, id, 0, 2 * STRIDE);
        break;
    case 4:
        send_data(visit, 0, id + 2, 0, 2 * STRIDE); // nobody's
        shutdown(visit->data[0], SHUT_WR);
        break;
    case 5:
        (void)raw_say(visit->control, LLI_DATA, id, zeros, sizeof(zeros));
        break;
    case 6:
        (void)raw_say(visit->data[0], LLI_RESULT, id, zeros, sizeof(zeros));
        break;
    case 7:
        send_data(visit, 0, id, 0, 100);
        shutdown(visit->control, SHUT_RDWR);
        break;
    case 8:
        (void)raw_send(visit->control, "garbage, and long enough to be a header", 39);
        break;
    case 9:
        (void)raw_say(visit->control, LLI_PUSH_ACCEPTED, id, NULL, 0);
        break;
    case 10:
        (void)raw_say(visit->control, LLI_CANCELLED, id, zeros, 6);
        break;
    default: // a part of it, again and again the same
        for (unsigned i = 0; i < 3; i++)
            send_data(visit, i % 2, id, 0, STRIDE);
        break;
    }
}

static void
test_pull(void **state)
{
    (void)state;
    for (unsigned variant = 0; variant < PULL_ANSWERS; variant++) {
        struct member decoder;
        struct visit visit;
        struct member_setup setup = {
            .cluster_id = RAW_DECODER,
            .role = LLM_ROLE_DECODER,
            .transports = "tcp",
            .sync_ms = BOUND_MS / 2,
        };
        member_open(&decoder, &setup);
        member_allocate(&decoder, TARGET, TENSORS, SLOTS, STRIDE);
        member_fill(&decoder, TARGET, 9);
        visit_begin(&visit, answer_pull, variant);
        assert_int_equal(member_link(&decoder, RAW_PROMPT, &visit.port, BOUND_MS), LLM_SUCCESS);
        struct transfer t = {
            .kind = TRANSFER_PULL_SLOT,
            .cluster_id = RAW_PROMPT,
            .remote_cache = 1,
            .index = TARGET,
            .shift = 3,
        };
        uint64_t start = now_ms();
        llm_status status = member_transfer(&decoder, &t);
        assert_true(now_ms() - start < BOUND_MS);
        // Twice the same bytes count for all: a prompt that lies about its own bytes can't be found
        // out, one that writes elsewhere can.
        if (variant != 3 && variant != 11)
            assert_true(status != LLM_SUCCESS);
        for (uint32_t tensor = 0; tensor < TENSORS; tensor++) {
            for (uint64_t slot = 0; slot < SLOTS; slot++)
                assert_true(slot == 3 ||
                            member_holds(&decoder, TARGET, 0, tensor, slot, 9, tensor, slot));
        }
        visit_end(&visit);
        member_close(&decoder);
    }
}

// ---- a started pull ----

// It has ended, says the listener, with "not ended".
static void
answer_pending(struct visit *visit)
{
    struct lli_message_header header = {0};
    struct lli_outcome outcome = {.status = LLM_TRANSFER_PENDING, .text = "later"};
    uint8_t body[4096];
    uint8_t zeros[6] = {0};
    struct lli_writer w;
    be_good(visit);
    (void)raw_say(visit->control, LLI_READY, 0, zeros, sizeof(zeros));
    if (!raw_hear(visit->control, &header, body))
        return;
    lli_writer_init(&w, body, sizeof(body));
    lli_outcome_write(&w, &outcome);
    (void)raw_say(visit->control, LLI_RESULT, header.transfer_id, body, w.size);
}

static void
test_a_result_that_is_no_end(void **state)
{
    struct member decoder;
    struct visit visit;
    struct member_setup setup = {
        .cluster_id = RAW_DECODER, .role = LLM_ROLE_DECODER, .transports = "tcp"};
    llm_cache_index from = {.struct_size = sizeof(from), .cluster_id = RAW_PROMPT, .cache_id = 1};
    uint64_t id = 0;
    (void)state;
    member_open(&decoder, &setup);
    member_allocate(&decoder, TARGET, TENSORS, SLOTS, STRIDE);
    visit_begin(&visit, answer_pending, 0);
    assert_int_equal(member_link(&decoder, RAW_PROMPT, &visit.port, BOUND_MS), LLM_SUCCESS);
    assert_int_equal(
        llm_start_pull_kv_cache(decoder.dd, &from, &decoder.caches[TARGET].cache, 3, -1, NULL, &id),
        LLM_SUCCESS);
    assert_int_equal(llm_transfer_wait(decoder.dd, id, PATIENCE_MS), LLM_FAILED);
    assert_int_equal(llm_transfer_release(decoder.dd, id), LLM_SUCCESS);
    visit_end(&visit);
    member_close(&decoder);
}

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk))
        return member_serve(&talk);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_words),
        cmocka_unit_test(test_a_listener_that_is_something_else_is_named),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_pull),
        cmocka_unit_test(test_a_result_that_is_no_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Messages there and back, cut at every byte, longer than expected, and of other protocols.
#include "transport/message.h"

#include "unit/unit.h"

enum { ROOM = 2048 };

static struct lli_identity
identity(uint64_t seed)
{
    struct lli_identity id = {
        .cluster_id = unit_random(&seed),
        .incarnation = unit_random(&seed),
        .process_token = unit_random(&seed),
        .num_devices = (uint32_t)unit_random(&seed),
        .transports = (uint32_t)unit_random(&seed),
        .liveness_ms = (uint32_t)unit_random(&seed),
        .role = (uint32_t)unit_random(&seed),
        .checksum = (uint32_t)unit_random(&seed),
    };
    unit_fill(id.boot_id, sizeof(id.boot_id), seed);
    snprintf(id.unix_name, sizeof(id.unix_name), "name-%llu", (unsigned long long)seed % 1000);
    return id;
}

static void
assert_same_identity(const struct lli_identity *a, const struct lli_identity *b)
{
    assert_true(a->cluster_id == b->cluster_id && a->incarnation == b->incarnation &&
                a->process_token == b->process_token);
    assert_memory_equal(a->boot_id, b->boot_id, sizeof(a->boot_id));
    assert_int_equal(a->num_devices, b->num_devices);
    assert_int_equal(a->transports, b->transports);
    assert_int_equal(a->liveness_ms, b->liveness_ms);
    assert_int_equal(a->role, b->role);
    assert_int_equal(a->checksum, b->checksum);
    assert_string_equal(a->unix_name, b->unix_name);
}

static void
fill_text(char *text, size_t size, size_t length)
{
    memset(text, 0, size);
    memset(text, 'x', length);
}

// ---- header ----

static void
test_a_header_comes_back(void **state)
{
    uint64_t random = 1;
    (void)state;
    for (int i = 0; i < 1000; i++) {
        uint8_t bytes[LLI_MESSAGE_HEADER_BYTES];
        struct lli_message_header in = {
            .type = (uint8_t)unit_random(&random),
            .flags = (uint16_t)unit_random(&random),
            .body_bytes = (uint32_t)unit_random(&random),
            .transfer_id = unit_random(&random),
            .argument = unit_random(&random),
        };
        struct lli_message_header out;
        lli_message_header_write(bytes, &in);
        assert_null(lli_message_header_read(bytes, &out));
        assert_int_equal(out.type, in.type);
        assert_int_equal(out.flags, in.flags);
        assert_int_equal(out.body_bytes, in.body_bytes);
        assert_true(out.transfer_id == in.transfer_id);
        assert_true(out.argument == in.argument);
    }
}

static void
test_a_header_lies_as_documented(void **state)
{
    static const uint8_t expected[LLI_MESSAGE_HEADER_BYTES] = {
        'L', 'D', 'D', '1', 1, 9, 0, 0, 0x44, 0x33, 0x22, 0x11, 0,    0,    0,    0,
        8,   7,   6,   5,   4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
    };
    uint8_t bytes[LLI_MESSAGE_HEADER_BYTES];
    (void)state;
    lli_message_header_write(bytes, &(struct lli_message_header){
                                        .type = LLI_DATA,
                                        .body_bytes = 0x11223344,
                                        .transfer_id = UINT64_C(0x0102030405060708),
                                        .argument = UINT64_C(0x1112131415161718),
                                    });
    assert_memory_equal(bytes, expected, sizeof(expected));
}

static void
test_a_seal_finds_every_flipped_bit(void **state)
{
    uint8_t message[LLI_MESSAGE_HEADER_BYTES + 50];
    uint8_t *body = message + LLI_MESSAGE_HEADER_BYTES;
    const struct lli_message_header header = {.type = LLI_PUSH, .body_bytes = 50, .transfer_id = 9};
    (void)state;
    unit_fill(body, 50, 1);
    lli_message_header_write(message, &header);
    // Without a seal nothing is promised.
    assert_true(lli_message_is_intact(message, body, 50));
    lli_message_seal(message, body, 50);
    assert_true(lli_message_is_intact(message, body, 50));
    for (size_t bit = 0; bit < sizeof(message) * 8; bit++) {
        struct lli_message_header seen;
        message[bit / 8] ^= (uint8_t)(1 << bit % 8);
        // One bit takes the seal away, which whoever demands seals sees.
        bool sealed =
            lli_message_header_read(message, &seen) != NULL || (seen.flags & LLI_FLAG_SEALED) != 0;
        assert_true(!sealed || !lli_message_is_intact(message, body, 50));
        message[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

static void
test_every_other_magic_or_version_is_refused(void **state)
{
    uint8_t bytes[LLI_MESSAGE_HEADER_BYTES];
    struct lli_message_header header = {.type = LLI_PING};
    struct lli_message_header out;
    (void)state;
    for (size_t at = 0; at < sizeof(bytes); at++) {
        for (unsigned flip = 1; flip < 256; flip++) {
            lli_message_header_write(bytes, &header);
            bytes[at] ^= (uint8_t)flip;
            const char *wrong = lli_message_header_read(bytes, &out);
            assert_int_equal(wrong != NULL, at <= 4);
            if (at == 4)
                assert_non_null(strstr(wrong, "version"));
        }
    }
}

// ---- bodies ----

// Reads what `size` bytes hold, and gives back how it went.
typedef bool (*read_function)(struct lli_reader *r);

static bool
read_hello(struct lli_reader *r)
{
    struct lli_hello hello;
    return lli_hello_read(r, &hello);
}

static bool
read_reply(struct lli_reader *r)
{
    struct lli_hello_reply reply;
    return lli_hello_reply_read(r, &reply);
}

static bool
read_choose(struct lli_reader *r)
{
    struct lli_choose choose;
    return lli_choose_read(r, &choose);
}

static bool
read_outcome(struct lli_reader *r)
{
    struct lli_outcome outcome;
    return lli_outcome_read(r, &outcome);
}

// Cut anywhere it is refused, except for the bytes behind what this version reads; appended to, it
// is read as before.
static void
check_lengths(const struct lli_writer *w, size_t unread, read_function read)
{
    struct lli_reader r;
    assert_false(w->failed);
    for (size_t cut = 0; cut <= w->size; cut++) {
        // A block of its own, so that AddressSanitizer sees a read beyond it.
        uint8_t *bytes = unit_alloc(cut);
        memcpy(bytes, w->bytes, cut);
        lli_reader_init(&r, bytes, cut);
        assert_int_equal(read(&r), cut + unread >= w->size);
        free(bytes);
    }
    uint8_t *longer = unit_alloc(w->size + 100);
    memcpy(longer, w->bytes, w->size);
    lli_reader_init(&r, longer, w->size + 100);
    assert_true(read(&r));
    free(longer);
}

static void
test_a_hello_comes_back_and_is_refused_when_cut(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        uint8_t bytes[ROOM];
        struct lli_writer w;
        struct lli_reader r;
        uint64_t random = seed;
        struct lli_hello in = {
            .link_token = unit_random(&random),
            .expected_cluster_id = unit_random(&random),
            .any_cluster = (uint32_t)unit_random(&random),
            .purpose = (uint32_t)unit_random(&random),
            .device_index = (uint32_t)unit_random(&random),
            .num_connections = (uint32_t)unit_random(&random),
            .from = identity(seed),
        };
        struct lli_hello out;
        memset(&out, 0x5a, sizeof(out));
        lli_writer_init(&w, bytes, sizeof(bytes));
        lli_hello_write(&w, &in);
        assert_true(w.size <= LLI_HELLO_BODY_BYTES_MAX);
        lli_reader_init(&r, bytes, w.size);
        assert_true(lli_hello_read(&r, &out));
        assert_true(out.link_token == in.link_token);
        assert_true(out.expected_cluster_id == in.expected_cluster_id);
        assert_int_equal(out.any_cluster, in.any_cluster);
        assert_int_equal(out.purpose, in.purpose);
        assert_int_equal(out.device_index, in.device_index);
        assert_int_equal(out.num_connections, in.num_connections);
        assert_same_identity(&out.from, &in.from);
        // The two bytes for authentication aren't looked at.
        check_lengths(&w, 2, read_hello);
    }
}

static void
test_a_hello_in_any_version_tells_which_it_speaks(void **state)
{
    (void)state;
    for (uint16_t lowest = 0; lowest <= 3; lowest++) {
        for (uint16_t highest = 0; highest <= 3; highest++) {
            uint8_t bytes[ROOM];
            struct lli_writer w;
            struct lli_reader r;
            struct lli_hello hello = {.from = identity(1)};
            lli_writer_init(&w, bytes, sizeof(bytes));
            lli_hello_write(&w, &hello);
            bytes[0] = (uint8_t)lowest;
            bytes[2] = (uint8_t)highest;
            lli_reader_init(&r, bytes, w.size);
            assert_true(lli_hello_read(&r, &hello));
            assert_int_equal(hello.lowest_version, lowest);
            assert_int_equal(hello.highest_version, highest);
            assert_int_equal(lli_hello_has_our_version(&hello),
                             lowest <= LLI_MESSAGE_VERSION && highest >= LLI_MESSAGE_VERSION);
        }
    }
}

static void
test_a_reply_comes_back_with_a_text_of_any_length(void **state)
{
    (void)state;
    for (size_t length = 0; length < LLI_REASON_BYTES; length += 7) {
        uint8_t bytes[ROOM];
        struct lli_writer w;
        struct lli_reader r;
        struct lli_hello_reply in = {.status = LLM_LINK_FAILED, .from = identity(length)};
        struct lli_hello_reply out;
        fill_text(in.text, sizeof(in.text), length);
        lli_writer_init(&w, bytes, sizeof(bytes));
        lli_hello_reply_write(&w, &in);
        lli_reader_init(&r, bytes, w.size);
        assert_true(lli_hello_reply_read(&r, &out));
        assert_true(out.status == in.status);
        assert_string_equal(out.text, in.text);
        assert_same_identity(&out.from, &in.from);
        check_lengths(&w, 2, read_reply);
    }
}

static void
test_a_choice_and_an_outcome_come_back(void **state)
{
    (void)state;
    for (size_t length = 0; length < LLI_REASON_BYTES; length += 11) {
        uint8_t bytes[ROOM];
        struct lli_writer w;
        struct lli_reader r;
        struct lli_choose choose = {.transport = 2, .can_read = 1};
        struct lli_choose chosen;
        struct lli_outcome outcome = {.status = LLM_LINK_BUSY};
        struct lli_outcome out;
        fill_text(choose.reason, sizeof(choose.reason), length);
        fill_text(outcome.text, sizeof(outcome.text), length);
        lli_writer_init(&w, bytes, sizeof(bytes));
        lli_choose_write(&w, &choose);
        lli_reader_init(&r, bytes, w.size);
        assert_true(lli_choose_read(&r, &chosen));
        assert_int_equal(chosen.transport, 2);
        assert_int_equal(chosen.can_read, 1);
        assert_string_equal(chosen.reason, choose.reason);
        check_lengths(&w, 0, read_choose);

        lli_writer_init(&w, bytes, sizeof(bytes));
        lli_outcome_write(&w, &outcome);
        lli_reader_init(&r, bytes, w.size);
        assert_true(lli_outcome_read(&r, &out));
        assert_true(out.status == LLM_LINK_BUSY);
        assert_string_equal(out.text, outcome.text);
        check_lengths(&w, 0, read_outcome);
    }
}

static void
test_an_outcome_is_never_pending(void **state)
{
    uint8_t bytes[ROOM];
    struct lli_writer w;
    struct lli_reader r;
    struct lli_outcome in = {.status = LLM_TRANSFER_PENDING, .text = "soon"};
    struct lli_outcome out;
    (void)state;
    lli_writer_init(&w, bytes, sizeof(bytes));
    lli_outcome_write(&w, &in);
    lli_reader_init(&r, bytes, w.size);
    assert_true(lli_outcome_read(&r, &out));
    assert_true(out.status == LLM_FAILED);
    assert_string_equal(out.text, "soon");
}

static bool
read_answer(struct lli_reader *r)
{
    struct lli_answer answer;
    return lli_answer_read(r, &answer);
}

// What answers had before they told of types and dimensions.
enum { OLD_ANSWER_BYTES = 76 };

static void
check_cut_answer(const struct lli_writer *w, size_t cut)
{
    struct lli_reader r;
    struct lli_answer answer;
    uint8_t *bytes = unit_alloc(cut);
    memcpy(bytes, w->bytes, cut);
    lli_reader_init(&r, bytes, cut);
    assert_int_equal(lli_answer_read(&r, &answer), cut == OLD_ANSWER_BYTES);
    if (cut == OLD_ANSWER_BYTES) {
        assert_int_equal(answer.geometry.data_type, LLM_DT_UNDEFINED);
        assert_int_equal(answer.geometry.num_dims, 0);
    }
    free(bytes);
}

static void
test_an_answer_comes_back(void **state)
{
    uint64_t random = 5;
    (void)state;
    for (unsigned i = 0; i < 16; i++) {
        uint8_t bytes[ROOM];
        struct lli_writer w;
        struct lli_reader r;
        struct lli_answer out;
        struct lli_answer in = {
            .cache_id = (int64_t)unit_random(&random),
            .slot = unit_random(&random),
            .geometry = {.placement = (uint32_t)unit_random(&random),
                         .num_tensors = (uint32_t)unit_random(&random),
                         .data_type = (int32_t)i * 2,
                         .num_slots = unit_random(&random),
                         .stride = unit_random(&random),
                         .tensor_bytes = unit_random(&random),
                         .num_dims = i * 2 + 1},
            .registered = i % 2 == 1,
            .slot_has_request = i / 2 % 2 == 1,
            .generation = unit_random(&random),
            .bytes_arrived = unit_random(&random),
            .key_stamp = unit_random(&random),
        };
        unit_fill(in.geometry.dims, in.geometry.num_dims * sizeof(in.geometry.dims[0]), i);
        memset(&out, 0, sizeof(out));
        lli_writer_init(&w, bytes, sizeof(bytes));
        lli_answer_write(&w, &in);
        assert_false(w.failed);
        lli_reader_init(&r, bytes, w.size);
        assert_true(lli_answer_read(&r, &out));
        assert_true(out.cache_id == in.cache_id && out.slot == in.slot);
        assert_int_equal(out.registered, in.registered);
        assert_int_equal(out.slot_has_request, in.slot_has_request);
        assert_true(out.generation == in.generation && out.bytes_arrived == in.bytes_arrived &&
                    out.key_stamp == in.key_stamp);
        assert_memory_equal(&out.geometry, &in.geometry, sizeof(in.geometry));
        for (size_t cut = 0; cut < w.size; cut++)
            check_cut_answer(&w, cut);
    }
}

static void
test_an_answer_of_a_shape_that_cannot_be_is_refused(void **state)
{
    uint8_t bytes[ROOM];
    struct lli_writer w;
    struct lli_reader r;
    struct lli_answer answer = {.geometry = {.num_dims = LLI_NUM_DIMS_MAX}};
    (void)state;
    lli_writer_init(&w, bytes, sizeof(bytes));
    lli_answer_write(&w, &answer);
    bytes[OLD_ANSWER_BYTES + 4] = LLI_NUM_DIMS_MAX + 1;
    lli_reader_init(&r, bytes, sizeof(bytes));
    assert_false(lli_answer_read(&r, &answer));
}

static void
test_a_text_longer_than_its_room_is_refused(void **state)
{
    (void)state;
    for (size_t length = LLI_REASON_BYTES - 1; length < LLI_REASON_BYTES + 3; length++) {
        uint8_t bytes[ROOM];
        char text[LLI_REASON_BYTES + 4];
        struct lli_writer w;
        struct lli_reader r;
        struct lli_outcome out;
        fill_text(text, sizeof(text), length);
        lli_writer_init(&w, bytes, sizeof(bytes));
        lli_write_u32(&w, LLM_FAILED);
        lli_write_text(&w, text);
        lli_reader_init(&r, bytes, w.size);
        assert_int_equal(lli_outcome_read(&r, &out), length < LLI_REASON_BYTES);
        // Whatever happened, it is a text.
        assert_true(strlen(out.text) < LLI_REASON_BYTES);
    }
}

static void
test_any_bytes_are_read_without_harm(void **state)
{
    static const read_function reads[] = {read_hello, read_reply, read_choose, read_outcome,
                                          read_answer};
    uint64_t random = 2;
    (void)state;
    for (int i = 0; i < 20000; i++) {
        size_t size = unit_random(&random) % 300;
        uint8_t *bytes = unit_alloc(size);
        unit_fill(bytes, size, unit_random(&random));
        // Lengths of texts that are plausible, now and then.
        for (size_t at = 1; at < size && i % 2 == 0; at += 2)
            bytes[at] = 0;
        struct lli_reader r;
        lli_reader_init(&r, bytes, size);
        (void)reads[i % LLI_COUNT(reads)](&r);
        assert_true(r.position <= size);
        free(bytes);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_header_comes_back),
        cmocka_unit_test(test_a_header_lies_as_documented),
        cmocka_unit_test(test_a_seal_finds_every_flipped_bit),
        cmocka_unit_test(test_every_other_magic_or_version_is_refused),
        cmocka_unit_test(test_a_hello_comes_back_and_is_refused_when_cut),
        cmocka_unit_test(test_a_hello_in_any_version_tells_which_it_speaks),
        cmocka_unit_test(test_a_reply_comes_back_with_a_text_of_any_length),
        cmocka_unit_test(test_a_choice_and_an_outcome_come_back),
        cmocka_unit_test(test_an_outcome_is_never_pending),
        cmocka_unit_test(test_an_answer_comes_back),
        cmocka_unit_test(test_an_answer_of_a_shape_that_cannot_be_is_refused),
        cmocka_unit_test(test_a_text_longer_than_its_room_is_refused),
        cmocka_unit_test(test_any_bytes_are_read_without_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

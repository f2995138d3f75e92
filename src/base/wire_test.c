// The bounded writer and reader: every width at every distance from the end.
#include "base/wire.h"

#include "unit/unit.h"

enum { GUARD = 0xa5, ROOM = 24 };

static void
test_writer_stops_at_its_capacity(void **state)
{
    (void)state;
    for (size_t capacity = 0; capacity <= ROOM; capacity++) {
        for (size_t width = 1; width <= 8; width++) {
            uint8_t bytes[ROOM + 8];
            struct lli_writer w;
            size_t fit = capacity / width;
            memset(bytes, GUARD, sizeof(bytes));
            lli_writer_init(&w, bytes, capacity);
            for (size_t i = 0; i < fit; i++)
                lli_write_uint(&w, 0, width);
            assert_false(w.failed);
            assert_int_equal(w.size, fit * width);
            lli_write_uint(&w, 0, width);
            assert_true(w.failed);
            assert_int_equal(w.size, fit * width);
            for (size_t i = fit * width; i < sizeof(bytes); i++)
                assert_int_equal(bytes[i], GUARD);
        }
    }
}

static void
test_writer_stays_failed_when_a_smaller_write_fits(void **state)
{
    uint8_t bytes[4];
    struct lli_writer w;
    (void)state;
    lli_writer_init(&w, bytes, sizeof(bytes));
    lli_write_u64(&w, 1);
    lli_write_u16(&w, 1);
    assert_true(w.failed);
}

static void
test_writer_is_little_endian(void **state)
{
    static const uint8_t expected[] = {0x22, 0x11, 0x66, 0x55, 0x44, 0x33, 8, 7, 6, 5, 4, 3, 2, 1};
    uint8_t bytes[sizeof(expected)];
    struct lli_writer w;
    (void)state;
    lli_writer_init(&w, bytes, sizeof(bytes));
    lli_write_u16(&w, 0x1122);
    lli_write_u32(&w, 0x33445566);
    lli_write_u64(&w, UINT64_C(0x0102030405060708));
    assert_false(w.failed);
    assert_memory_equal(bytes, expected, sizeof(expected));
}

static void
test_bytes_are_written_whole_or_not_at_all(void **state)
{
    static const uint8_t data[ROOM] = {1, 2, 3};
    (void)state;
    for (size_t capacity = 0; capacity <= ROOM; capacity++) {
        for (size_t size = 0; size <= ROOM; size++) {
            uint8_t bytes[ROOM + 1];
            struct lli_writer w;
            memset(bytes, GUARD, sizeof(bytes));
            lli_writer_init(&w, bytes, capacity);
            lli_write_bytes(&w, data, size);
            assert_int_equal(w.failed, size > capacity);
            assert_int_equal(w.size, size > capacity ? 0 : size);
            assert_int_equal(bytes[w.size], GUARD);
        }
    }
}

static void
test_writing_no_bytes_needs_no_memory(void **state)
{
    struct lli_writer w;
    (void)state;
    lli_writer_init(&w, NULL, 0);
    lli_write_bytes(&w, NULL, 0);
    assert_false(w.failed);
}

static void
test_reader_gives_back_what_was_written(void **state)
{
    static const uint64_t values[] = {0,      1,          0x80,       0xff,
                                      0x8000, UINT32_MAX, UINT64_MAX, UINT64_C(0x0123456789abcdef)};
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(values); i++) {
        for (size_t width = 1; width <= 8; width++) {
            uint8_t bytes[8];
            struct lli_writer w;
            struct lli_reader r;
            uint64_t mask = width == 8 ? UINT64_MAX : (UINT64_C(1) << 8 * width) - 1;
            lli_writer_init(&w, bytes, sizeof(bytes));
            lli_write_uint(&w, values[i], width);
            lli_reader_init(&r, bytes, w.size);
            assert_true(lli_read_uint(&r, width) == (values[i] & mask));
            assert_false(r.failed);
            assert_int_equal(lli_read_left(&r), 0);
        }
    }
}

static void
test_reader_stops_at_the_end(void **state)
{
    uint8_t bytes[ROOM];
    (void)state;
    memset(bytes, 0xff, sizeof(bytes));
    for (size_t size = 0; size <= ROOM; size++) {
        for (size_t width = 1; width <= 8; width++) {
            struct lli_reader r;
            size_t fit = size / width;
            lli_reader_init(&r, bytes, size);
            for (size_t i = 0; i < fit; i++)
                assert_true(lli_read_uint(&r, width) != 0);
            assert_false(r.failed);
            assert_true(lli_read_uint(&r, width) == 0);
            assert_true(r.failed);
            assert_int_equal(r.position, fit * width);
            // Sticky, although a byte may be left.
            (void)lli_read_uint(&r, 1);
            assert_true(r.failed);
        }
    }
}

static void
test_bytes_beyond_the_end_read_as_zero(void **state)
{
    uint8_t to[8];
    struct lli_reader r;
    (void)state;
    lli_reader_init(&r, "abc", 3);
    memset(to, GUARD, sizeof(to));
    lli_read_bytes(&r, to, 4);
    assert_true(r.failed);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(to[i], 0);
    assert_int_equal(to[4], GUARD);
}

// Every length of a text, in every room for it, cut at every byte.
static void
test_text_is_read_whole_and_closed_or_rejected(void **state)
{
    enum { LENGTH_MAX = 12 };
    (void)state;
    for (size_t length = 0; length <= LENGTH_MAX; length++) {
        char text[LENGTH_MAX + 1] = "";
        uint8_t bytes[2 + LENGTH_MAX];
        struct lli_writer w;
        memset(text, 'x', length);
        lli_writer_init(&w, bytes, sizeof(bytes));
        lli_write_text(&w, text);
        assert_false(w.failed);
        assert_int_equal(w.size, 2 + length);
        for (size_t room = 1; room <= LENGTH_MAX + 1; room++) {
            for (size_t cut = 0; cut <= w.size; cut++) {
                char to[LENGTH_MAX + 2];
                struct lli_reader r;
                memset(to, GUARD, sizeof(to));
                lli_reader_init(&r, bytes, cut);
                lli_read_text(&r, to, room);
                bool ok = cut == w.size && length < room;
                assert_int_equal(r.failed, !ok);
                assert_string_equal(to, ok ? text : "");
                assert_int_equal((uint8_t)to[room], GUARD);
            }
        }
    }
}

static void
test_text_longer_than_16_bits_is_rejected(void **state)
{
    struct lli_writer w;
    char *text = unit_alloc(UINT16_MAX + 2);
    uint8_t *bytes = unit_alloc(UINT16_MAX + 16);
    (void)state;
    memset(text, 'x', UINT16_MAX);
    lli_writer_init(&w, bytes, UINT16_MAX + 16);
    lli_write_text(&w, text);
    assert_false(w.failed);
    assert_int_equal(w.size, 2 + UINT16_MAX);
    text[UINT16_MAX] = 'x';
    lli_writer_init(&w, bytes, UINT16_MAX + 16);
    lli_write_text(&w, text);
    assert_true(w.failed);
    free(text);
    free(bytes);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writer_stops_at_its_capacity),
        cmocka_unit_test(test_writer_stays_failed_when_a_smaller_write_fits),
        cmocka_unit_test(test_writer_is_little_endian),
        cmocka_unit_test(test_bytes_are_written_whole_or_not_at_all),
        cmocka_unit_test(test_writing_no_bytes_needs_no_memory),
        cmocka_unit_test(test_reader_gives_back_what_was_written),
        cmocka_unit_test(test_reader_stops_at_the_end),
        cmocka_unit_test(test_bytes_beyond_the_end_read_as_zero),
        cmocka_unit_test(test_text_is_read_whole_and_closed_or_rejected),
        cmocka_unit_test(test_text_longer_than_16_bits_is_rejected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

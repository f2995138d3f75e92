// CRC32C: known sums, and each way that this CPU has against the tables at every length and alignment.
#include "device/crc32c.h"

#include "unit/unit.h"

static void
test_known_sums(void **state)
{
    uint8_t bytes[32];
    (void)state;
    assert_int_equal(lli_crc32c(0, NULL, 0), 0);
    assert_int_equal(lli_crc32c(0, "123456789", 9), 0xe3069283u);
    // RFC 3720, B.4.
    memset(bytes, 0, sizeof(bytes));
    assert_int_equal(lli_crc32c(0, bytes, sizeof(bytes)), 0x8a9136aau);
    memset(bytes, 0xff, sizeof(bytes));
    assert_int_equal(lli_crc32c(0, bytes, sizeof(bytes)), 0x62a8ab43u);
    for (int i = 0; i < 32; i++)
        bytes[i] = (uint8_t)i;
    assert_int_equal(lli_crc32c(0, bytes, sizeof(bytes)), 0x46dd794eu);
}

static void
test_every_length_and_alignment_gives_what_the_tables_give(void **state)
{
    static uint8_t bytes[20000];
    (void)state;
    unit_fill(bytes, sizeof(bytes), 1);
    for (size_t at = 0; at < 9; at++) {
        for (size_t length = 0; length < 1200; length++)
            assert_int_equal(lli_crc32c(7, bytes + at, length),
                             lli_crc32c_plain(7, bytes + at, length));
        for (size_t length = 3000; length < 19000; length += 977)
            assert_int_equal(lli_crc32c(0, bytes + at, length),
                             lli_crc32c_plain(0, bytes + at, length));
    }
}

static void
test_parts_one_after_the_other_give_the_whole(void **state)
{
    static uint8_t bytes[10000];
    (void)state;
    unit_fill(bytes, sizeof(bytes), 2);
    uint32_t whole = lli_crc32c(0, bytes, sizeof(bytes));
    for (size_t cut = 0; cut <= sizeof(bytes); cut += 331)
        assert_int_equal(lli_crc32c(lli_crc32c(0, bytes, cut), bytes + cut, sizeof(bytes) - cut),
                         whole);
}

static void
test_every_flipped_bit_changes_the_sum(void **state)
{
    uint8_t bytes[4096];
    (void)state;
    unit_fill(bytes, sizeof(bytes), 3);
    uint32_t sum = lli_crc32c(0, bytes, sizeof(bytes));
    for (size_t bit = 0; bit < sizeof(bytes) * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_true(lli_crc32c(0, bytes, sizeof(bytes)) != sum);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

static void
test_one_that_the_cpu_has_not_got_is_not_used(void **state)
{
    const char *before = lli_crc32c_kernel_name();
    (void)state;
    assert_false(lli_crc32c_use("abacus"));
    assert_string_equal(lli_crc32c_kernel_name(), before);
}

int
main(void)
{
    static const char *const names[] = {"table", "sse4.2", "avx512", "armv8"};
    int failed = 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_sums),
        cmocka_unit_test(test_every_length_and_alignment_gives_what_the_tables_give),
        cmocka_unit_test(test_parts_one_after_the_other_give_the_whole),
        cmocka_unit_test(test_every_flipped_bit_changes_the_sum),
        cmocka_unit_test(test_one_that_the_cpu_has_not_got_is_not_used),
    };
    for (size_t i = 0; i < LLI_COUNT(names); i++) {
        if (lli_crc32c_use(names[i]))
            failed += cmocka_run_group_tests_name(names[i], tests, NULL, NULL);
    }
    return failed;
}

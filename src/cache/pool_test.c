// The memory of a device: alignment, tiers, exhaustion, reuse, pages that go back.
#include "cache/pool.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "unit/unit.h"

enum { PAGE = 4096 };

static int
setup(void **state)
{
    (void)state;
    llm_set_log_level(LLM_LOG_OFF);
    return 0;
}

static void
open_pool(struct lli_pool *pool, uint64_t bytes, const struct lli_pool_tier *tiers,
          size_t num_tiers)
{
    assert_true(lli_pool_open(pool, bytes, tiers, num_tiers) == LLM_SUCCESS);
}

static uint64_t
pages_in_memory(const struct lli_pool *pool)
{
    struct stat info;
    assert_int_equal(fstat(pool->fd, &info), 0);
    return (uint64_t)info.st_blocks * 512 / PAGE;
}

// ---- without tiers ----

static void
test_allocations_are_aligned_and_apart(void **state)
{
    struct lli_pool pool;
    uint64_t last_end = 0;
    (void)state;
    open_pool(&pool, 1 << 20, NULL, 0);
    for (uint64_t bytes = 1; bytes <= 1100; bytes += 9) {
        uint64_t offset;
        assert_true(lli_pool_alloc(&pool, bytes, &offset));
        assert_int_equal(offset % LLI_POOL_ALIGN, 0);
        assert_int_equal((uintptr_t)(pool.base + offset) % LLI_POOL_ALIGN, 0);
        assert_true(offset >= last_end);
        last_end = offset + bytes;
    }
    lli_pool_close(&pool);
}

static void
test_the_whole_pool_can_be_used_and_used_again(void **state)
{
    struct lli_pool pool;
    uint64_t offsets[64];
    uint64_t more;
    (void)state;
    open_pool(&pool, 64 * PAGE, NULL, 0);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < LLI_COUNT(offsets); i++)
            assert_true(lli_pool_alloc(&pool, PAGE, &offsets[i]));
        assert_int_equal(pool.bytes_used, 64 * PAGE);
        more = 7;
        assert_false(lli_pool_alloc(&pool, 1, &more));
        assert_int_equal(more, 7);
        for (size_t i = 0; i < LLI_COUNT(offsets); i++)
            lli_pool_free(&pool, offsets[(i * 37) % LLI_COUNT(offsets)], PAGE);
        assert_int_equal(pool.bytes_used, 0);
        assert_true(lli_pool_alloc(&pool, 64 * PAGE, &more));
        assert_int_equal(more, 0);
        lli_pool_free(&pool, more, 64 * PAGE);
    }
    lli_pool_close(&pool);
}

static void
test_a_pool_is_as_large_as_asked_to_the_byte(void **state)
{
    (void)state;
    for (uint64_t bytes = 1; bytes < 3 * PAGE; bytes += 255) {
        struct lli_pool pool;
        uint64_t offset;
        uint64_t num_allocated = 0;
        open_pool(&pool, bytes, NULL, 0);
        while (lli_pool_alloc(&pool, LLI_POOL_ALIGN, &offset)) {
            assert_true(offset + LLI_POOL_ALIGN <= bytes);
            num_allocated++;
        }
        assert_int_equal(num_allocated, bytes / LLI_POOL_ALIGN);
        lli_pool_close(&pool);
    }
}

static void
test_sizes_beyond_the_pool_are_refused(void **state)
{
    struct lli_pool pool;
    uint64_t offset;
    (void)state;
    open_pool(&pool, PAGE, NULL, 0);
    assert_false(lli_pool_alloc(&pool, PAGE + 1, &offset));
    assert_false(lli_pool_alloc(&pool, UINT64_MAX, &offset));
    assert_false(lli_pool_alloc(&pool, UINT64_MAX - 511, &offset));
    assert_false(lli_pool_alloc(&pool, (uint64_t)INT64_MAX + 1, &offset));
    assert_int_equal(pool.bytes_used, 0);
    lli_pool_close(&pool);
}

static void
test_only_touched_memory_is_taken_and_freed_pages_go_back(void **state)
{
    struct lli_pool pool;
    uint64_t offset;
    (void)state;
    open_pool(&pool, UINT64_C(1) << 33, NULL, 0);
    assert_true(lli_pool_alloc(&pool, 64 * PAGE, &offset));
    assert_int_equal(pages_in_memory(&pool), 0);
    memset(pool.base + offset, 0xff, 64 * PAGE);
    assert_int_equal(pages_in_memory(&pool), 64);
    lli_pool_free(&pool, offset, 64 * PAGE);
    assert_int_equal(pages_in_memory(&pool), 0);
    // Whoever still looks sees zeros.
    for (size_t i = 0; i < 64 * PAGE; i++)
        assert_int_equal(pool.base[offset + i], 0);
    lli_pool_close(&pool);
}

static void
assert_zeros(const struct lli_pool *pool, uint64_t offset, uint64_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(pool->base[offset + i], 0);
}

static void
test_freed_bytes_are_cleared_where_pages_cannot_go_back(void **state)
{
    struct lli_pool pool;
    uint64_t offset;
    (void)state;
    open_pool(&pool, 16 * PAGE, NULL, 0);
    // The system takes no pages that are locked in memory.
    if (mlock(pool.base, 16 * PAGE) != 0) {
        lli_pool_close(&pool);
        skip();
    }
    for (int round = 0; round < 2; round++) {
        assert_true(lli_pool_alloc(&pool, 5 * PAGE + 700, &offset));
        memset(pool.base + offset, 0xff, 5 * PAGE + 700);
        lli_pool_free(&pool, offset, 5 * PAGE + 700);
        assert_zeros(&pool, offset, 5 * PAGE + 700);
    }
    lli_pool_close(&pool);
}

static void
test_freed_bytes_beside_a_neighbour_are_cleared(void **state)
{
    static const uint64_t sizes[] = {600, PAGE - 100, PAGE, PAGE + 1, 3 * PAGE + 513};
    struct lli_pool pool;
    (void)state;
    open_pool(&pool, 64 * PAGE, NULL, 0);
    for (size_t i = 0; i < LLI_COUNT(sizes); i++) {
        uint64_t before;
        uint64_t offset;
        uint64_t after;
        assert_true(lli_pool_alloc(&pool, 100, &before));
        assert_true(lli_pool_alloc(&pool, sizes[i], &offset));
        assert_true(lli_pool_alloc(&pool, 100, &after));
        memset(pool.base + before, 1, 100);
        memset(pool.base + offset, 0xff, sizes[i]);
        memset(pool.base + after, 2, 100);
        lli_pool_free(&pool, offset, sizes[i]);
        assert_zeros(&pool, offset, sizes[i]);
        assert_int_equal(pool.base[before + 99], 1);
        assert_int_equal(pool.base[after], 2);
        lli_pool_free(&pool, before, 100);
        lli_pool_free(&pool, after, 100);
    }
    lli_pool_close(&pool);
}

static void
test_freeing_leaves_neighbours_on_the_same_page_alone(void **state)
{
    struct lli_pool pool;
    uint64_t offsets[24];
    uint8_t expected[LLI_POOL_ALIGN];
    (void)state;
    open_pool(&pool, 16 * PAGE, NULL, 0);
    for (size_t i = 0; i < LLI_COUNT(offsets); i++) {
        // Sizes of less and of more than a page, so that their edges lie anywhere in pages.
        assert_true(lli_pool_alloc(&pool, i % 3 == 1 ? 5000 : 512, &offsets[i]));
        unit_fill(pool.base + offsets[i], LLI_POOL_ALIGN, i);
    }
    for (size_t i = 1; i < LLI_COUNT(offsets); i += 3)
        lli_pool_free(&pool, offsets[i], 5000);
    for (size_t i = 0; i < LLI_COUNT(offsets); i++) {
        if (i % 3 == 1)
            continue;
        unit_fill(expected, sizeof(expected), i);
        assert_memory_equal(pool.base + offsets[i], expected, sizeof(expected));
    }
    lli_pool_close(&pool);
}

static void
test_random_allocations_never_overlap(void **state)
{
    enum { LIVE_MAX = 200, POOL = 1 << 20 };
    struct live {
        uint64_t offset;
        uint64_t bytes;
    } live[LIVE_MAX];
    static uint8_t owner[POOL / LLI_POOL_ALIGN];
    const struct lli_pool_tier tiers[] = {
        {.total_bytes = 64 << 10, .block_bytes = 256, .buffer_bytes_max = 4096},
        {.total_bytes = 256 << 10, .block_bytes = 4096, .buffer_bytes_max = 100000},
    };
    (void)state;
    for (size_t num_tiers = 0; num_tiers <= LLI_COUNT(tiers); num_tiers++) {
        struct lli_pool pool;
        size_t num_live = 0;
        uint64_t random = num_tiers;
        uint64_t used = 0;
        open_pool(&pool, POOL, tiers, num_tiers);
        memset(owner, 0, sizeof(owner));
        for (int i = 0; i < 4000; i++) {
            uint64_t pick = unit_random(&random);
            if (num_live == LIVE_MAX || (num_live > 0 && pick % 2 == 0)) {
                struct live *victim = &live[(pick >> 8) % num_live];
                for (uint64_t b = 0; b < victim->bytes; b += LLI_POOL_ALIGN)
                    owner[(victim->offset + b) / LLI_POOL_ALIGN] = 0;
                lli_pool_free(&pool, victim->offset, victim->bytes);
                used -= victim->bytes;
                *victim = live[--num_live];
            } else {
                struct live *next = &live[num_live];
                next->bytes = 1 + (pick >> 8) % ((pick >> 40) % 5 == 0 ? 60000 : 3000);
                if (lli_pool_alloc(&pool, next->bytes, &next->offset)) {
                    assert_int_equal(next->offset % LLI_POOL_ALIGN, 0);
                    assert_true(next->offset + next->bytes <= POOL);
                    for (uint64_t b = 0; b < next->bytes; b += LLI_POOL_ALIGN) {
                        assert_int_equal(owner[(next->offset + b) / LLI_POOL_ALIGN], 0);
                        owner[(next->offset + b) / LLI_POOL_ALIGN] = 1;
                    }
                    used += next->bytes;
                    num_live++;
                }
            }
            assert_int_equal(pool.bytes_used, used);
        }
        lli_pool_close(&pool);
    }
}

// ---- tiers ----

static void
test_a_pool_without_a_size_is_the_sum_of_its_tiers(void **state)
{
    const struct lli_pool_tier tiers[] = {
        {.total_bytes = 8192, .block_bytes = 256, .buffer_bytes_max = 1024},
        {.total_bytes = 65536, .block_bytes = 4096, .buffer_bytes_max = 32768},
    };
    struct lli_pool pool;
    (void)state;
    open_pool(&pool, 0, tiers, 2);
    assert_int_equal(pool.bytes, 8192 + 65536);
    lli_pool_close(&pool);
    assert_true(lli_pool_size(0, NULL, 0) == 0);
}

static void
test_each_size_comes_from_the_smallest_tier_that_serves_it(void **state)
{
    const struct lli_pool_tier tiers[] = {
        {.total_bytes = 4096, .block_bytes = 512, .buffer_bytes_max = 1024},
        {.total_bytes = 16384, .block_bytes = 4096, .buffer_bytes_max = 8192},
    };
    struct lli_pool pool;
    uint64_t offset;
    unsigned num_small = 0;
    (void)state;
    open_pool(&pool, 4096 + 16384, tiers, 2);
    // Four times 1024 fill the small tier; the large one doesn't help out, nor does the rest.
    while (lli_pool_alloc(&pool, 1024, &offset))
        num_small++;
    // The pool has room for as many chunks of the small tier as fit.
    assert_int_equal(num_small, (4096 + 16384) / 1024);
    lli_pool_close(&pool);

    open_pool(&pool, 4096 + 16384, tiers, 2);
    assert_true(lli_pool_alloc(&pool, 8192, &offset));
    assert_true(lli_pool_alloc(&pool, 8192, &offset));
    assert_false(lli_pool_alloc(&pool, 8192, &offset));
    assert_false(lli_pool_alloc(&pool, 1025, &offset));
    // The small tier still gets its chunk.
    assert_true(lli_pool_alloc(&pool, 1024, &offset));
    lli_pool_close(&pool);
}

static void
test_no_tier_serves_what_is_larger_than_all(void **state)
{
    const struct lli_pool_tier tier = {
        .total_bytes = 1 << 20, .block_bytes = 256, .buffer_bytes_max = 4096};
    struct lli_pool pool;
    uint64_t offset;
    (void)state;
    open_pool(&pool, 4 << 20, &tier, 1);
    assert_true(lli_pool_alloc(&pool, 4096, &offset));
    assert_false(lli_pool_alloc(&pool, 4097, &offset));
    lli_pool_close(&pool);
}

static void
test_a_tier_hands_out_whole_blocks(void **state)
{
    const struct lli_pool_tier tier = {
        .total_bytes = 65536, .block_bytes = 8192, .buffer_bytes_max = 32768};
    struct lli_pool pool;
    uint64_t offsets[9];
    (void)state;
    open_pool(&pool, 65536, &tier, 1);
    for (size_t i = 0; i < 8; i++)
        assert_true(lli_pool_alloc(&pool, 1, &offsets[i]));
    assert_false(lli_pool_alloc(&pool, 1, &offsets[8]));
    lli_pool_free(&pool, offsets[3], 1);
    assert_true(lli_pool_alloc(&pool, 8192, &offsets[8]));
    assert_int_equal(offsets[8], offsets[3]);
    assert_int_equal(pool.bytes_used, 7 + 8192);
    lli_pool_close(&pool);
}

// ---- failures ----

static void
test_a_pool_that_cannot_be_mapped_is_refused(void **state)
{
    struct lli_pool pool;
    (void)state;
    assert_true(lli_pool_open(&pool, UINT64_MAX, NULL, 0) == LLM_FAILED);
    assert_true(lli_pool_open(&pool, INT64_MAX, NULL, 0) == LLM_FAILED);
}

static void
test_a_pool_beyond_the_limit_of_file_sizes_is_refused(void **state)
{
    struct rlimit before;
    struct lli_pool pool;
    char why[256];
    (void)state;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    struct rlimit limit = {1 << 20, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    llm_status status = lli_pool_open(&pool, (1 << 20) + 1, NULL, 0);
    llm_last_error(why, sizeof(why));
    llm_status fits = lli_pool_open(&pool, 1 << 20, NULL, 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(status, LLM_FAILED);
    assert_non_null(strstr(why, "1048576 bytes here (RLIMIT_FSIZE"));
    assert_int_equal(fits, LLM_SUCCESS);
    lli_pool_close(&pool);
}

static void
test_opening_without_memory_leaves_nothing_open(void **state)
{
    const struct lli_pool_tier tier = {
        .total_bytes = 65536, .block_bytes = 8192, .buffer_bytes_max = 32768};
    unsigned num_failures = 0;
    (void)state;
    for (uint64_t n = 1;; n++) {
        struct lli_pool pool;
        lli_mem_fail_after(n);
        llm_status status = lli_pool_open(&pool, 1 << 20, &tier, 1);
        bool struck = lli_mem_fail_after(0) == 0;
        assert_true(status == (struck ? LLM_FAILED : LLM_SUCCESS));
        // Harmless after a failure.
        lli_pool_close(&pool);
        if (!struck)
            break;
        num_failures++;
    }
    assert_true(num_failures >= 2);
}

static void
test_an_allocation_without_memory_can_be_repeated(void **state)
{
    const struct lli_pool_tier tier = {
        .total_bytes = 8192, .block_bytes = 512, .buffer_bytes_max = 1024};
    (void)state;
    for (size_t num_tiers = 0; num_tiers <= 1; num_tiers++) {
        for (uint64_t n = 1; n <= 40; n++) {
            struct lli_pool pool;
            uint64_t offsets[64];
            size_t num_allocated = 0;
            bool failed = false;
            open_pool(&pool, 16 * 1024, &tier, num_tiers);
            lli_mem_fail_after(n);
            while (num_allocated < 16) {
                if (lli_pool_alloc(&pool, 1024, &offsets[num_allocated])) {
                    num_allocated++;
                } else {
                    assert_false(failed);
                    failed = true;
                }
                assert_int_equal(pool.bytes_used, num_allocated * 1024);
            }
            uint64_t more;
            lli_mem_fail_after(0);
            assert_false(lli_pool_alloc(&pool, 1024, &more));
            while (num_allocated > 0)
                lli_pool_free(&pool, offsets[--num_allocated], 1024);
            lli_pool_close(&pool);
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_allocations_are_aligned_and_apart),
        cmocka_unit_test(test_the_whole_pool_can_be_used_and_used_again),
        cmocka_unit_test(test_a_pool_is_as_large_as_asked_to_the_byte),
        cmocka_unit_test(test_sizes_beyond_the_pool_are_refused),
        cmocka_unit_test(test_only_touched_memory_is_taken_and_freed_pages_go_back),
        cmocka_unit_test(test_freed_bytes_are_cleared_where_pages_cannot_go_back),
        cmocka_unit_test(test_freed_bytes_beside_a_neighbour_are_cleared),
        cmocka_unit_test(test_freeing_leaves_neighbours_on_the_same_page_alone),
        cmocka_unit_test(test_random_allocations_never_overlap),
        cmocka_unit_test(test_a_pool_without_a_size_is_the_sum_of_its_tiers),
        cmocka_unit_test(test_each_size_comes_from_the_smallest_tier_that_serves_it),
        cmocka_unit_test(test_no_tier_serves_what_is_larger_than_all),
        cmocka_unit_test(test_a_tier_hands_out_whole_blocks),
        cmocka_unit_test(test_a_pool_that_cannot_be_mapped_is_refused),
        cmocka_unit_test(test_a_pool_beyond_the_limit_of_file_sizes_is_refused),
        cmocka_unit_test(test_opening_without_memory_leaves_nothing_open),
        cmocka_unit_test(test_an_allocation_without_memory_can_be_repeated),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}

// Every kernel that this CPU can run, against memcpy: all sizes, all alignments, nothing beside.
//
// The file is included and not linked, so that the kernels can be called one by one.
#include "device/copy.c" // NOLINT(bugprone-suspicious-include)

#include "unit/unit.h"

enum { GUARD = 0xa5, SIZE_MAX_SMALL = 4096, OFFSETS = 128, MARGIN = 256 };

// The thread sanitizer looks at every byte, and no thread is involved.
#if defined(__SANITIZE_THREAD__)
enum { SIZE_STEP = 13, OFFSET_STEP = 17 };
#else
enum { SIZE_STEP = 1, OFFSET_STEP = 3 };
#endif

struct named_kernel {
    const char *name;
    stream_kernel run;
};

// What choose_kernel may choose here.
static size_t
list_kernels(struct named_kernel *ret_kernels)
{
    size_t count = 0;
    ret_kernels[count++] = (struct named_kernel){"memcpy", copy_plain};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        ret_kernels[count++] = (struct named_kernel){"avx2", copy_avx2};
    if (__builtin_cpu_supports("avx512f"))
        ret_kernels[count++] = (struct named_kernel){"avx512", copy_avx512};
#elif defined(__aarch64__)
    ret_kernels[count++] = (struct named_kernel){"neon", copy_neon};
#endif
    return count;
}

static struct named_kernel kernels[4];
static size_t num_kernels;

static int
setup(void **state)
{
    (void)state;
    num_kernels = list_kernels(kernels);
    // Chosen once; from here on a test may put another one in its place.
    (void)lli_copy_kernel_name();
    return 0;
}

static uint8_t src[SIZE_MAX_SMALL + OFFSETS] __attribute__((aligned(128)));
static uint8_t dst[MARGIN + SIZE_MAX_SMALL + OFFSETS + MARGIN] __attribute__((aligned(128)));
static uint8_t guard[sizeof(dst)];

// Copies once, compares, checks the bytes around, and puts the guard back.
static bool
copies_exactly(void (*copy)(void *, const void *, size_t), size_t size, size_t dst_offset,
               size_t src_offset)
{
    uint8_t *to = dst + MARGIN + dst_offset;
    size_t before = (size_t)(to - dst);
    copy(to, src + src_offset, size);
    lli_copy_fence();
    bool ok = memcmp(to, src + src_offset, size) == 0 && memcmp(dst, guard, before) == 0 &&
              memcmp(to + size, guard, sizeof(dst) - before - size) == 0;
    memset(to, GUARD, size);
    return ok;
}

static void
check_small(void (*copy)(void *, const void *, size_t), size_t size_first, size_t size_step,
            const char *name)
{
    unit_fill(src, sizeof(src), 7);
    memset(dst, GUARD, sizeof(dst));
    memset(guard, GUARD, sizeof(guard));
    for (size_t size = size_first; size <= SIZE_MAX_SMALL; size += size_step) {
        for (size_t offset = 0; offset < OFFSETS; offset++) {
            // Source alignments change with every copy, and all come up for every destination's.
            size_t src_offset = (offset * 37 + size) % OFFSETS;
            if (!copies_exactly(copy, size, offset, src_offset))
                fail_msg("%s: %zu bytes from offset %zu to offset %zu", name, size, src_offset,
                         offset);
        }
    }
}

// What is fetched ahead may be memory that nobody has.
static void
stream(void *to, const void *from, size_t size)
{
    lli_copy_streaming(to, from, size, size % 2 == 0 ? NULL : (const void *)(uintptr_t)size);
}

static void
test_cached_copies_are_exact(void **state)
{
    (void)state;
    check_small(lli_copy_cached, 0, 7, "cached");
    check_small(lli_copy_cached, SIZE_MAX_SMALL, 1, "cached");
}

static void
test_streaming_copies_are_exact_for_every_size_and_offset(void **state)
{
    (void)state;
    // Below the size from which a kernel is used at all, one pass says everything.
    check_small(stream, 0, SIZE_STEP, kernel_name);
    for (size_t i = 0; i < num_kernels; i++) {
        kernel = kernels[i].run;
        check_small(stream, STREAM_PIECE_BYTES_MIN, SIZE_STEP, kernels[i].name);
    }
}

static void
test_streaming_copies_are_exact_for_every_pair_of_offsets(void **state)
{
    static const size_t sizes[] = {1023, 1024, 1025, 1279, 1280, 1536, 2047, 2111, 4095, 4096};
    (void)state;
    unit_fill(src, sizeof(src), 8);
    memset(dst, GUARD, sizeof(dst));
    memset(guard, GUARD, sizeof(guard));
    for (size_t k = 0; k < num_kernels; k++) {
        kernel = kernels[k].run;
        for (size_t i = 0; i < LLI_COUNT(sizes); i++) {
            for (size_t to = 0; to < OFFSETS; to++) {
                for (size_t from = 0; from < OFFSETS; from += OFFSET_STEP) {
                    if (!copies_exactly(stream, sizes[i], to, from))
                        fail_msg("%s: %zu bytes from offset %zu to offset %zu", kernels[k].name,
                                 sizes[i], from, to);
                }
            }
        }
    }
}

static void
test_large_copies_are_exact(void **state)
{
    static const size_t sizes[] = {(1 << 20) - 1, 1 << 20, (1 << 20) + 255, (3 << 20) + 1};
    static const size_t offsets[] = {0, 1, 63, 64, 100};
    size_t room = (4 << 20) + 2 * MARGIN;
    uint8_t *from = unit_alloc(room);
    uint8_t *to = unit_alloc(room);
    (void)state;
    unit_fill(from, room, 9);
    for (size_t k = 0; k < num_kernels; k++) {
        kernel = kernels[k].run;
        for (size_t i = 0; i < LLI_COUNT(sizes); i++) {
            for (size_t j = 0; j < LLI_COUNT(offsets); j++) {
                uint8_t *start = to + MARGIN + offsets[j];
                memset(to, GUARD, room);
                stream(start, from + j, sizes[i]);
                lli_copy_fence();
                assert_int_equal(memcmp(start, from + j, sizes[i]), 0);
                assert_int_equal(start[-1], GUARD);
                assert_int_equal(start[sizes[i]], GUARD);
            }
        }
    }
    free(from);
    free(to);
}

static void
test_cached_copies_may_overlap(void **state)
{
    uint8_t bytes[256];
    uint8_t expected[256];
    (void)state;
    for (size_t shift = 0; shift <= 64; shift++) {
        unit_fill(bytes, sizeof(bytes), shift);
        memcpy(expected, bytes, sizeof(bytes));
        memmove(expected + shift, expected, 128);
        lli_copy_cached(bytes + shift, bytes, 128);
        assert_memory_equal(bytes, expected, sizeof(bytes));
        memmove(expected, expected + shift, 128);
        lli_copy_cached(bytes, bytes + shift, 128);
        assert_memory_equal(bytes, expected, sizeof(bytes));
    }
}

static void
test_the_chosen_kernel_is_the_best_there_is(void **state)
{
    (void)state;
    assert_string_equal(lli_copy_kernel_name(), kernels[num_kernels - 1].name);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cached_copies_are_exact),
        cmocka_unit_test(test_streaming_copies_are_exact_for_every_size_and_offset),
        cmocka_unit_test(test_streaming_copies_are_exact_for_every_pair_of_offsets),
        cmocka_unit_test(test_large_copies_are_exact),
        cmocka_unit_test(test_cached_copies_may_overlap),
        cmocka_unit_test(test_the_chosen_kernel_is_the_best_there_is),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}

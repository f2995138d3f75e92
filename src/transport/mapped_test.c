// Copying by a plan, in portions of every size, against copying byte by byte.
#include "transport/mapped.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device/copy.h"
#include "unit/unit.h"

enum { NUM_TENSORS = 3, NUM_BLOCKS = 8, BLOCK_BYTES_MAX = 2048 };

struct memory {
    uint8_t *bytes;
    uint64_t tensor_bytes;
    uintptr_t tensors[NUM_TENSORS];
};

// Whose proof is a number of its own.
static struct lli_process
this_process(void)
{
    static const uint64_t proof = 4711;
    return (struct lli_process){getpid(), (uintptr_t)&proof, proof};
}

static struct memory
new_memory(uint64_t stride, uint64_t seed)
{
    struct memory memory = {.tensor_bytes = stride * NUM_BLOCKS};
    memory.bytes = unit_alloc(memory.tensor_bytes * NUM_TENSORS);
    unit_fill(memory.bytes, memory.tensor_bytes * NUM_TENSORS, seed);
    // Not in order, as tensors may lie anywhere.
    for (size_t i = 0; i < NUM_TENSORS; i++)
        memory.tensors[i] = (uintptr_t)memory.bytes + (i + 1) % NUM_TENSORS * memory.tensor_bytes;
    return memory;
}

static void
copy_naively(const struct memory *src, const struct memory *dst, const uint64_t *src_blocks,
             const uint64_t *dst_blocks, size_t count, uint64_t stride)
{
    for (size_t t = 0; t < NUM_TENSORS; t++) {
        for (size_t i = 0; i < count; i++)
            memcpy((uint8_t *)dst->tensors[t] + dst_blocks[i] * stride,
                   (const uint8_t *)src->tensors[t] + src_blocks[i] * stride, stride);
    }
}

static const uint64_t src_blocks[] = {0, 1, 2, 7, 5, 4, 4, 3};
static const uint64_t dst_blocks[] = {3, 4, 5, 0, 1, 2, 7, 6};

enum how { CACHED, STREAMING, PROCESS, CHECKED, CHECKED_PROCESS };

static void
check_portions(uint64_t stride, uint64_t portion, enum how how)
{
    struct memory src = new_memory(stride, 1);
    struct memory dst = new_memory(stride, 2);
    struct memory expected = new_memory(stride, 2);
    struct lli_plan plan;
    struct lli_mapped_copy copy;
    copy_naively(&src, &expected, src_blocks, dst_blocks, NUM_BLOCKS, stride);
    assert_true(lli_plan_blocks(&plan, NUM_TENSORS, src_blocks, dst_blocks, NUM_BLOCKS, stride) ==
                LLM_SUCCESS);
    lli_mapped_copy_init(&copy, &plan, src.tensors, dst.tensors);
    assert_false(copy.streaming);
    copy.streaming = how == STREAMING;
    if (how == PROCESS || how == CHECKED_PROCESS)
        copy.owner = this_process();
    copy.checked = how == CHECKED || how == CHECKED_PROCESS;
    uint64_t num_portions = 1;
    while (!lli_mapped_copy_some(&copy, portion)) {
        assert_true(copy.position <= num_portions * portion);
        num_portions++;
    }
    assert_int_equal(copy.error, 0);
    assert_int_equal(num_portions, (plan.total_bytes + portion - 1) / portion);
    assert_int_equal(copy.position, plan.total_bytes);
    assert_memory_equal(dst.bytes, expected.bytes, dst.tensor_bytes * NUM_TENSORS);
    // Once more is nothing more.
    assert_true(lli_mapped_copy_some(&copy, portion));
    lli_plan_fini(&plan);
    free(src.bytes);
    free(dst.bytes);
    free(expected.bytes);
}

static void
test_portions_of_every_size_copy_the_same(void **state)
{
    (void)state;
    for (uint64_t stride = 1; stride <= 17; stride += 4) {
        for (uint64_t portion = 1; portion <= stride * NUM_BLOCKS * NUM_TENSORS + 1; portion++) {
            check_portions(stride, portion, CACHED);
            check_portions(stride, portion, STREAMING);
        }
    }
}

static void
test_portions_of_large_blocks_copy_the_same(void **state)
{
    static const uint64_t portions[] = {1000, 1024, 1500, 4096, 5001, 16384, 100000};
    (void)state;
    for (uint64_t stride = 1020; stride <= BLOCK_BYTES_MAX; stride += 257) {
        for (size_t i = 0; i < LLI_COUNT(portions); i++) {
            check_portions(stride, portions[i], CACHED);
            check_portions(stride, portions[i], STREAMING);
        }
    }
}

// ---- another process' memory, or our own by the same way ----

// Says whether the system permits it at all.
static bool
can_read_processes(void)
{
    uint8_t from = 5;
    uint8_t to = 0;
    uintptr_t src = (uintptr_t)&from;
    uintptr_t dst = (uintptr_t)&to;
    struct lli_plan plan;
    struct lli_mapped_copy copy;
    assert_true(lli_plan_slot(&plan, 1, 0, 0, 1) == LLM_SUCCESS);
    lli_mapped_copy_init(&copy, &plan, &src, &dst);
    copy.owner = this_process();
    assert_true(lli_mapped_copy_some(&copy, 1));
    lli_plan_fini(&plan);
    return copy.error == 0;
}

static void
test_reading_a_process_copies_the_same(void **state)
{
    (void)state;
    if (!can_read_processes())
        skip();
    for (uint64_t stride = 1; stride <= 17; stride += 8) {
        for (uint64_t portion = 1; portion <= stride * NUM_BLOCKS * NUM_TENSORS + 1; portion += 3)
            check_portions(stride, portion, PROCESS);
    }
    check_portions(BLOCK_BYTES_MAX, 5001, PROCESS);
}

static void
test_more_pieces_than_one_read_takes(void **state)
{
    enum { COUNT = 3000 };
    static uint64_t from[COUNT];
    static uint64_t to[COUNT];
    struct lli_plan plan;
    struct lli_mapped_copy copy;
    (void)state;
    if (!can_read_processes())
        skip();
    uint8_t *src = unit_alloc(COUNT * 8);
    uint8_t *dst = unit_alloc(COUNT * 8);
    uintptr_t src_tensor = (uintptr_t)src;
    uintptr_t dst_tensor = (uintptr_t)dst;
    unit_fill(src, COUNT * 8, 3);
    for (uint64_t i = 0; i < COUNT; i++) {
        from[i] = COUNT - 1 - i;
        to[i] = i;
    }
    assert_true(lli_plan_blocks(&plan, 1, from, to, COUNT, 8) == LLM_SUCCESS);
    assert_int_equal(plan.num_runs, COUNT);
    lli_mapped_copy_init(&copy, &plan, &src_tensor, &dst_tensor);
    copy.owner = this_process();
    assert_true(lli_mapped_copy_all(&copy, UINT64_MAX));
    assert_int_equal(copy.error, 0);
    for (size_t i = 0; i < COUNT; i++)
        assert_memory_equal(dst + i * 8, src + (COUNT - 1 - i) * 8, 8);
    lli_plan_fini(&plan);
    free(src);
    free(dst);
}

static void
test_memory_without_the_proof_ends_the_copy_with_an_error(void **state)
{
    uint8_t from[64] = {5};
    uint8_t to[64];
    uintptr_t src = (uintptr_t)from;
    uintptr_t dst = (uintptr_t)to;
    struct lli_plan plan;
    (void)state;
    if (!can_read_processes())
        skip();
    assert_true(lli_plan_slot(&plan, 1, 0, 0, sizeof(from)) == LLM_SUCCESS);
    for (unsigned checked = 0; checked < 2; checked++) {
        struct lli_mapped_copy copy;
        lli_mapped_copy_init(&copy, &plan, &src, &dst);
        copy.checked = checked;
        copy.owner = this_process();
        copy.owner.proof++;
        assert_true(lli_mapped_copy_some(&copy, UINT64_MAX));
        assert_int_equal(copy.error, ESRCH);
        assert_int_equal(copy.position, 0);
        copy = (struct lli_mapped_copy){0};
        lli_mapped_copy_init(&copy, &plan, &src, &dst);
        copy.checked = checked;
        copy.owner = this_process();
        copy.owner.proof_at = 64;
        assert_true(lli_mapped_copy_some(&copy, UINT64_MAX));
        assert_int_equal(copy.error, EFAULT);
    }
    lli_plan_fini(&plan);
}

static void *
read_scattered(void *arg)
{
    enum { COUNT = 2000 };
    static uint64_t blocks[COUNT];
    static uint8_t src[2 * COUNT];
    static uint8_t dst[2 * COUNT];
    uintptr_t src_tensor = (uintptr_t)src;
    uintptr_t dst_tensor = (uintptr_t)dst;
    struct lli_plan plan;
    struct lli_mapped_copy copy;
    for (uint64_t i = 0; i < COUNT; i++)
        blocks[i] = i * 7 % COUNT;
    if (lli_plan_blocks(&plan, 1, blocks, blocks, COUNT, 2) != LLM_SUCCESS)
        return NULL;
    lli_mapped_copy_init(&copy, &plan, &src_tensor, &dst_tensor);
    copy.owner = this_process();
    copy.checked = arg != NULL;
    bool is_read = lli_mapped_copy_all(&copy, UINT64_MAX) && copy.error == 0;
    lli_plan_fini(&plan);
    return is_read ? dst : NULL;
}

static void
test_a_thread_with_a_small_stack_can_read(void **state)
{
    (void)state;
    if (!can_read_processes())
        skip();
    for (uintptr_t checked = 0; checked < 2; checked++) {
        pthread_attr_t attributes;
        pthread_t thread;
        void *result = NULL;
        pthread_attr_init(&attributes);
        // With the least that a thread may have, and as much again.
        assert_int_equal(pthread_attr_setstacksize(&attributes, (size_t)2 * PTHREAD_STACK_MIN), 0);
        assert_int_equal(pthread_create(&thread, &attributes, read_scattered, (void *)checked), 0);
        assert_int_equal(pthread_join(thread, &result), 0);
        assert_non_null(result);
        pthread_attr_destroy(&attributes);
    }
}

static void
test_memory_that_is_not_there_ends_the_copy_with_an_error(void **state)
{
    uint8_t to[64] = {0};
    uintptr_t src = 4096; // nobody maps the first pages
    uintptr_t dst = (uintptr_t)to;
    struct lli_plan plan;
    struct lli_mapped_copy copy;
    (void)state;
    assert_true(lli_plan_slot(&plan, 1, 0, 0, sizeof(to)) == LLM_SUCCESS);
    lli_mapped_copy_init(&copy, &plan, &src, &dst);
    copy.owner = this_process();
    assert_true(lli_mapped_copy_all(&copy, UINT64_MAX));
    assert_int_not_equal(copy.error, 0);
    assert_true(copy.position < plan.total_bytes);
    lli_plan_fini(&plan);
}

// ---- deadlines, sizes ----

static void
test_large_copies_stream_and_stop_at_the_deadline(void **state)
{
    const uint64_t bytes = (uint64_t)9 << 20;
    uint8_t *src = unit_alloc(bytes);
    uint8_t *dst = unit_alloc(bytes);
    uintptr_t src_tensor = (uintptr_t)src;
    uintptr_t dst_tensor = (uintptr_t)dst;
    struct lli_plan plan;
    struct lli_mapped_copy copy;
    (void)state;
    unit_fill(src, bytes, 4);
    assert_true(lli_plan_slot(&plan, 1, 0, 0, bytes) == LLM_SUCCESS);
    lli_mapped_copy_init(&copy, &plan, &src_tensor, &dst_tensor);
    assert_true(copy.streaming);
    // The time is up already: some was copied, the rest isn't touched.
    assert_false(lli_mapped_copy_all(&copy, 0));
    assert_true(copy.position > 0 && copy.position < bytes);
    assert_memory_equal(dst, src, copy.position);
    for (uint64_t i = copy.position; i < bytes; i++) {
        if (dst[i] != 0)
            fail_msg("byte %llu was written after the deadline", (unsigned long long)i);
    }
    assert_true(lli_mapped_copy_all(&copy, UINT64_MAX));
    assert_int_equal(memcmp(dst, src, bytes), 0);
    lli_plan_fini(&plan);
    free(src);
    free(dst);
}

static void
test_checked_copies_copy_the_same(void **state)
{
    (void)state;
    for (uint64_t stride = 1; stride <= BLOCK_BYTES_MAX; stride = stride * 2 + 5) {
        check_portions(stride, stride * 3 + 1, CHECKED);
        check_portions(stride, UINT64_C(1) << 40, CHECKED);
        check_portions(stride, stride + 1, CHECKED_PROCESS);
    }
    check_portions(80000, 70001, CHECKED);
    check_portions(80000, UINT64_C(1) << 40, CHECKED_PROCESS);
}

enum { ALIAS_BYTES = 1 << 16, BEHIND = 64, MOVED_BYTES = 40000 };

// Copies within one piece of memory that has two addresses, to `dst` from `src`, where what is written
// changes what is still to be read and no address tells.  A sound tensor comes before.
static void
copy_aliased(const uint8_t *alias, const uint8_t *src, uint8_t *dst, bool checked,
             struct lli_mapped_copy *ret_copy)
{
    struct lli_plan plan;
    uint8_t *sound = unit_alloc(MOVED_BYTES);
    uintptr_t srcs[] = {(uintptr_t)alias + ALIAS_BYTES, (uintptr_t)src};
    uintptr_t dsts[] = {(uintptr_t)sound, (uintptr_t)dst};
    assert_true(lli_plan_slot(&plan, 2, 0, 0, MOVED_BYTES) == LLM_SUCCESS);
    lli_mapped_copy_init(ret_copy, &plan, srcs, dsts);
    ret_copy->checked = checked;
    assert_true(lli_mapped_copy_all(ret_copy, UINT64_MAX));
    assert_memory_equal(sound, alias + ALIAS_BYTES, MOVED_BYTES);
    lli_plan_fini(&plan);
    free(sound);
}

static void
test_a_source_that_changes_during_the_copy_is_found(void **state)
{
    void *base;
    struct lli_mapped_copy forth;
    struct lli_mapped_copy back;
    (void)state;
    int fd = lli_memory_file_create("alias", 2 * ALIAS_BYTES, &base);
    const uint8_t *alias = lli_memory_file_map(fd, 2 * ALIAS_BYTES);
    uint8_t *bytes = base;
    assert_non_null(alias);
    unit_fill(base, 2 * ALIAS_BYTES, 5);
    // Whichever way memmove goes, one of these changes its own source.
    copy_aliased(alias, alias, bytes + BEHIND, true, &forth);
    copy_aliased(alias, alias + BEHIND, bytes, true, &back);
    assert_true(forth.error == EBADMSG || back.error == EBADMSG);
    const struct lli_mapped_copy *found = forth.error != 0 ? &forth : &back;
    assert_in_range(found->position, MOVED_BYTES, 2 * MOVED_BYTES - 1);
    // Without the check nobody notices.
    copy_aliased(alias, alias, bytes + BEHIND, false, &forth);
    copy_aliased(alias, alias + BEHIND, bytes, false, &back);
    assert_true(forth.error == 0 && back.error == 0);
    munmap(base, 2 * ALIAS_BYTES);
    munmap((void *)(uintptr_t)alias, 2 * ALIAS_BYTES);
    close(fd);
}

// ---- memory that nobody has written ----

enum { FILE_BYTES = 16 << 20, PAGE = 4096, PIECE = 37 * 1024 };

static uint64_t
pages_of(int fd)
{
    struct stat info;
    assert_int_equal(fstat(fd, &info), 0);
    return (uint64_t)info.st_blocks * 512 / PAGE;
}

// The file from its `first` byte on, in runs of `run_bytes`, into memory that holds something else.
static void
copy_file(const struct lli_memory_file *file, uint64_t first, uint64_t run_bytes, bool checked,
          const uint8_t *expected)
{
    uint8_t *dst = unit_alloc(FILE_BYTES);
    uintptr_t src_tensor = (uintptr_t)file->base;
    uintptr_t dst_tensor = (uintptr_t)dst;
    uint64_t num_runs = (FILE_BYTES - first) / run_bytes;
    uint64_t *blocks = unit_alloc(num_runs * sizeof(*blocks));
    struct lli_plan plan;
    struct lli_mapped_copy copy;
    memset(dst, 0xee, FILE_BYTES);
    // Of two neighbours the second first, or they would be one run.
    for (uint64_t i = 0; i < num_runs; i++)
        blocks[i] = (i ^ 1) < num_runs ? i ^ 1 : i;
    src_tensor += first;
    assert_true(lli_plan_blocks(&plan, 1, blocks, blocks, num_runs, run_bytes) == LLM_SUCCESS);
    lli_mapped_copy_init(&copy, &plan, &src_tensor, &dst_tensor);
    copy.holes = (struct lli_holes){.files = file, .num_files = 1};
    copy.checked = checked;
    while (!lli_mapped_copy_some(&copy, 3 << 20)) {
    }
    assert_int_equal(copy.error, 0);
    assert_memory_equal(dst, expected + first, num_runs * run_bytes);
    lli_plan_fini(&plan);
    free(blocks);
    free(dst);
}

static void
check_holes(const uint64_t *written, size_t num_written, uint64_t run_bytes, bool checked,
            uint64_t pages_max)
{
    uint8_t *expected = unit_alloc(FILE_BYTES);
    struct lli_memory_file file = {.bytes = FILE_BYTES};
    void *base;
    int fd = lli_memory_file_create("holes", FILE_BYTES, &base);
    assert_true(fd >= 0);
    file.base = lli_memory_file_map(fd, FILE_BYTES);
    file.fd = lli_memory_file_open_again(fd);
    assert_non_null(file.base);
    assert_true(file.fd >= 0);
    for (size_t i = 0; i < num_written; i++) {
        unit_fill((uint8_t *)base + written[i], PAGE, i);
        unit_fill(expected + written[i], PAGE, i);
    }
    // The second time changes nothing.
    for (int round = 0; round < 2; round++)
        copy_file(&file, num_written > 0 ? 0 : 700, run_bytes, checked, expected);
    assert_in_range(pages_of(fd), num_written, pages_max);
    close(file.fd);
    munmap((void *)(uintptr_t)file.base, FILE_BYTES);
    munmap(base, FILE_BYTES);
    close(fd);
    free(expected);
}

static void
test_holes_of_the_source_arrive_as_zeros_and_stay_holes(void **state)
{
    static const uint64_t run_sizes[] = {FILE_BYTES - PAGE, 1 << 20, PIECE, 3 * PAGE, 1000};
    static const uint64_t written[] = {0, 3 << 20, (5 << 20) + 2 * PAGE, FILE_BYTES - 2 * PAGE};
    (void)state;
    for (size_t i = 0; i < 2 * LLI_COUNT(run_sizes); i++) {
        bool checked = i % 2 == 1;
        check_holes(NULL, 0, run_sizes[i / 2], checked, 0);
        // Up to a MiB behind what was written is read with it; blocks that share pages with others, and
        // come in another order than they lie, may all be.
        bool shares_pages = run_sizes[i / 2] % PAGE != 0;
        check_holes(written, LLI_COUNT(written), run_sizes[i / 2], checked,
                    shares_pages ? FILE_BYTES / PAGE : 5 * (1 << 20) / PAGE);
    }
}

static void
test_nothing_is_copied_at_once(void **state)
{
    uintptr_t tensor = 0;
    struct lli_plan plan;
    struct lli_mapped_copy copy;
    (void)state;
    assert_true(lli_plan_slot(&plan, 1, 0, 0, 0) == LLM_SUCCESS);
    lli_mapped_copy_init(&copy, &plan, &tensor, &tensor);
    assert_true(lli_mapped_copy_all(&copy, 0));
    lli_plan_fini(&plan);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_portions_of_every_size_copy_the_same),
        cmocka_unit_test(test_portions_of_large_blocks_copy_the_same),
        cmocka_unit_test(test_reading_a_process_copies_the_same),
        cmocka_unit_test(test_more_pieces_than_one_read_takes),
        cmocka_unit_test(test_memory_without_the_proof_ends_the_copy_with_an_error),
        cmocka_unit_test(test_a_thread_with_a_small_stack_can_read),
        cmocka_unit_test(test_memory_that_is_not_there_ends_the_copy_with_an_error),
        cmocka_unit_test(test_large_copies_stream_and_stop_at_the_deadline),
        cmocka_unit_test(test_checked_copies_copy_the_same),
        cmocka_unit_test(test_a_source_that_changes_during_the_copy_is_found),
        cmocka_unit_test(test_holes_of_the_source_arrive_as_zeros_and_stay_holes),
        cmocka_unit_test(test_nothing_is_copied_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Plans against a naive model: byte by byte, for every small list of blocks.
#include "transport/plan.h"

#include "base/mem.h"
#include "unit/unit.h"

enum { BYTES_MAX = 4096 };

// The stream of one tensor, as pairs of offsets.
struct stream {
    uint64_t src[BYTES_MAX];
    uint64_t dst[BYTES_MAX];
    uint64_t bytes;
};

static void
append_block(struct stream *stream, uint64_t src_block, uint64_t dst_block, uint64_t stride)
{
    for (uint64_t i = 0; i < stride; i++) {
        stream->src[stream->bytes] = src_block * stride + i;
        stream->dst[stream->bytes] = dst_block * stride + i;
        stream->bytes++;
    }
}

static bool
agrees(const struct lli_plan *plan, const struct stream *model, uint64_t num_tensors)
{
    uint64_t position = 0;
    if (plan->num_tensors != num_tensors || plan->tensor_bytes != model->bytes ||
        plan->total_bytes != model->bytes * num_tensors)
        return false;
    for (size_t i = 0; i < plan->num_runs; i++) {
        const struct lli_run *run = &plan->runs[i];
        if (run->position != position || run->bytes == 0)
            return false;
        for (uint64_t b = 0; b < run->bytes; b++, position++) {
            if (position >= model->bytes || run->src_offset + b != model->src[position] ||
                run->dst_offset + b != model->dst[position])
                return false;
        }
    }
    return position == model->bytes;
}

// Every position of the stream is found where walking leads.
static bool
locates_everything(const struct lli_plan *plan)
{
    uint64_t position = 0;
    for (uint64_t tensor = 0; tensor < plan->num_tensors; tensor++) {
        for (size_t run = 0; run < plan->num_runs; run++) {
            for (uint64_t offset = 0; offset < plan->runs[run].bytes; offset++, position++) {
                struct lli_place place = lli_plan_locate(plan, position);
                if (place.tensor != tensor || place.run != run || place.offset != offset)
                    return false;
            }
        }
    }
    return position == plan->total_bytes;
}

// As few runs as there can be without changing the order.
static size_t
fewest_runs(const struct stream *model)
{
    size_t count = 0;
    for (uint64_t i = 0; i < model->bytes; i++) {
        count += i == 0 || model->src[i] != model->src[i - 1] + 1 ||
                 model->dst[i] != model->dst[i - 1] + 1;
    }
    return count;
}

// ---- slots ----

static void
test_a_slot_is_one_run(void **state)
{
    (void)state;
    for (uint64_t tensors = 1; tensors <= 4; tensors++) {
        for (uint64_t bytes = 1; bytes <= 64; bytes++) {
            struct lli_plan plan;
            assert_true(lli_plan_slot(&plan, tensors, 100, 7, bytes) == LLM_SUCCESS);
            assert_int_equal(plan.num_runs, 1);
            assert_int_equal(plan.runs[0].src_offset, 100);
            assert_int_equal(plan.runs[0].dst_offset, 7);
            assert_int_equal(plan.total_bytes, tensors * bytes);
            assert_true(locates_everything(&plan));
            lli_plan_fini(&plan);
            assert_null(plan.runs);
            lli_plan_fini(&plan);
        }
    }
}

static void
test_a_slot_of_no_bytes_is_an_empty_stream(void **state)
{
    struct lli_plan plan;
    (void)state;
    assert_true(lli_plan_slot(&plan, 3, 0, 0, 0) == LLM_SUCCESS);
    assert_int_equal(plan.total_bytes, 0);
    lli_plan_fini(&plan);
}

// ---- pairs of blocks ----

// Digits of `number` to the base `base`.
static void
digits(unsigned number, unsigned base, uint64_t *ret, size_t count)
{
    for (size_t i = 0; i < count; i++, number /= base)
        ret[i] = number % base;
}

static unsigned
power(unsigned base, size_t exponent)
{
    unsigned value = 1;
    while (exponent-- > 0)
        value *= base;
    return value;
}

static void
check_blocks(const uint64_t *src, const uint64_t *dst, size_t count, uint64_t stride,
             uint64_t tensors)
{
    struct lli_plan plan;
    struct stream model;
    model.bytes = 0;
    for (size_t i = 0; i < count; i++)
        append_block(&model, src[i], dst[i], stride);
    assert_true(lli_plan_blocks(&plan, tensors, src, dst, count, stride) == LLM_SUCCESS);
    if (!agrees(&plan, &model, tensors) || plan.num_runs != fewest_runs(&model) ||
        !locates_everything(&plan))
        fail_msg("%zu blocks of %llu bytes, from %llu to %llu first", count,
                 (unsigned long long)stride, (unsigned long long)src[0],
                 (unsigned long long)dst[0]);
    lli_plan_fini(&plan);
}

static void
test_every_small_pair_of_lists(void **state)
{
    enum { BLOCKS = 4 };
    (void)state;
    for (size_t count = 1; count <= 4; count++) {
        for (unsigned i = 0; i < power(BLOCKS, count); i++) {
            for (unsigned j = 0; j < power(BLOCKS, count); j++) {
                uint64_t src[4];
                uint64_t dst[4];
                digits(i, BLOCKS, src, count);
                digits(j, BLOCKS, dst, count);
                check_blocks(src, dst, count, 1 + (i + j) % 3, 1 + i % 2);
            }
        }
    }
}

static void
test_a_long_row_that_breaks_at_any_block_on_either_side(void **state)
{
    enum { COUNT = 70 };
    uint64_t row[COUNT];
    uint64_t broken[COUNT];
    (void)state;
    for (size_t at = 0; at <= COUNT; at++) {
        for (uint64_t i = 0; i < COUNT; i++) {
            row[i] = i;
            broken[i] = i >= at ? i + 3 : i;
        }
        check_blocks(row, broken, COUNT, 2, 1);
        check_blocks(broken, row, COUNT, 2, 1);
        check_blocks(broken, broken, COUNT, 2, 1);
    }
}

static void
test_long_random_lists(void **state)
{
    uint64_t random = 5;
    (void)state;
    for (int round = 0; round < 300; round++) {
        uint64_t src[256];
        uint64_t dst[256];
        uint64_t stride = 1 + unit_random(&random) % 16;
        size_t count = 1 + unit_random(&random) % LLI_COUNT(src);
        for (size_t i = 0; i < count; i++) {
            // Mostly neighbours.
            bool jump = i == 0 || unit_random(&random) % 8 == 0;
            src[i] = jump ? unit_random(&random) % 1000 : src[i - 1] + 1;
            dst[i] = jump ? unit_random(&random) % 1000 : dst[i - 1] + 1;
        }
        check_blocks(src, dst, count, stride, 1 + unit_random(&random) % 3);
    }
}

// ---- runs of blocks ----

enum { RUNS = 3, FIRSTS = 3, COUNTS = 3 };

struct run_list {
    struct lli_block_run runs[RUNS];
    size_t num_runs;
    uint64_t num_blocks;
};

// All lists of up to three runs.
static size_t
every_run_list(struct run_list *ret)
{
    size_t num_lists = 0;
    for (size_t num_runs = 1; num_runs <= RUNS; num_runs++) {
        for (unsigned i = 0; i < power(FIRSTS * COUNTS, num_runs); i++) {
            struct run_list *list = &ret[num_lists++];
            uint64_t parts[RUNS];
            digits(i, FIRSTS * COUNTS, parts, num_runs);
            *list = (struct run_list){.num_runs = num_runs};
            for (size_t r = 0; r < num_runs; r++) {
                list->runs[r].first = parts[r] % FIRSTS * 2;
                list->runs[r].count = 1 + parts[r] / FIRSTS;
                list->num_blocks += list->runs[r].count;
            }
        }
    }
    return num_lists;
}

static size_t
expand(const struct run_list *list, uint64_t *ret_blocks)
{
    size_t count = 0;
    for (size_t r = 0; r < list->num_runs; r++) {
        for (uint64_t i = 0; i < list->runs[r].count; i++)
            ret_blocks[count++] = list->runs[r].first + i;
    }
    return count;
}

static struct run_list lists[9 + 81 + 729];

static void
test_one_side_of_every_small_list_of_runs(void **state)
{
    (void)state;
    size_t num_lists = every_run_list(lists);
    assert_int_equal(num_lists, LLI_COUNT(lists));
    for (size_t i = 0; i < num_lists; i++) {
        for (uint64_t stride = 1; stride <= 5; stride += 2) {
            uint64_t blocks[RUNS * COUNTS] = {0};
            struct lli_plan plan;
            struct stream model = {.bytes = 0};
            size_t count = expand(&lists[i], blocks);
            for (size_t b = 0; b < count; b++)
                append_block(&model, blocks[b], blocks[b], stride);
            assert_true(lli_plan_side(&plan, 2, lists[i].runs, lists[i].num_runs, stride) ==
                        LLM_SUCCESS);
            assert_true(agrees(&plan, &model, 2));
            assert_true(locates_everything(&plan));
            lli_plan_fini(&plan);
        }
    }
}

static void
test_every_small_pair_of_lists_of_runs(void **state)
{
    (void)state;
    size_t num_lists = every_run_list(lists);
    for (size_t i = 0; i < num_lists; i++) {
        uint64_t src[RUNS * COUNTS] = {0};
        size_t count = expand(&lists[i], src);
        for (size_t j = 0; j < num_lists; j++) {
            uint64_t dst[RUNS * COUNTS] = {0};
            struct lli_plan plan;
            struct stream model;
            if (lists[j].num_blocks != lists[i].num_blocks)
                continue;
            expand(&lists[j], dst);
            model.bytes = 0;
            for (size_t b = 0; b < count; b++)
                append_block(&model, src[b], dst[b], 2);
            assert_true(lli_plan_pairs(&plan, 1, lists[i].runs, lists[i].num_runs, lists[j].runs,
                                       lists[j].num_runs, 2) == LLM_SUCCESS);
            if (!agrees(&plan, &model, 1) || plan.num_runs > lists[i].num_runs + lists[j].num_runs)
                fail_msg("list %zu to list %zu", i, j);
            lli_plan_fini(&plan);
        }
    }
}

// Both ends of a connection make their plan alone: the streams must be the same.
static void
test_each_side_alone_sees_the_same_stream(void **state)
{
    uint64_t random = 6;
    (void)state;
    for (int round = 0; round < 500; round++) {
        uint64_t src[40];
        uint64_t dst[40];
        struct lli_block_run *src_runs;
        struct lli_block_run *dst_runs;
        size_t num_src;
        size_t num_dst;
        struct lli_plan both;
        struct lli_plan source;
        struct lli_plan sink;
        size_t count = 1 + unit_random(&random) % 40;
        for (size_t i = 0; i < count; i++) {
            src[i] =
                i > 0 && unit_random(&random) % 4 > 0 ? src[i - 1] + 1 : unit_random(&random) % 99;
            dst[i] =
                i > 0 && unit_random(&random) % 4 > 0 ? dst[i - 1] + 1 : unit_random(&random) % 99;
        }
        assert_true(lli_plan_blocks(&both, 2, src, dst, count, 8) == LLM_SUCCESS);
        assert_true(lli_block_runs_merge(src, count, &src_runs, &num_src) == LLM_SUCCESS);
        assert_true(lli_block_runs_merge(dst, count, &dst_runs, &num_dst) == LLM_SUCCESS);
        assert_true(lli_plan_side(&source, 2, src_runs, num_src, 8) == LLM_SUCCESS);
        assert_true(lli_plan_side(&sink, 2, dst_runs, num_dst, 8) == LLM_SUCCESS);
        assert_int_equal(both.total_bytes, source.total_bytes);
        assert_int_equal(both.total_bytes, sink.total_bytes);
        for (uint64_t position = 0; position < both.total_bytes; position++) {
            struct lli_place a = lli_plan_locate(&both, position);
            struct lli_place b = lli_plan_locate(&source, position);
            struct lli_place c = lli_plan_locate(&sink, position);
            assert_true(a.tensor == b.tensor && a.tensor == c.tensor);
            assert_int_equal(both.runs[a.run].src_offset + a.offset,
                             source.runs[b.run].src_offset + b.offset);
            assert_int_equal(both.runs[a.run].dst_offset + a.offset,
                             sink.runs[c.run].dst_offset + c.offset);
        }
        lli_plan_fini(&both);
        lli_plan_fini(&source);
        lli_plan_fini(&sink);
        lli_free(src_runs);
        lli_free(dst_runs);
    }
}

static void
test_merging_keeps_every_small_list(void **state)
{
    enum { BLOCKS = 4, LENGTH = 5 };
    (void)state;
    for (size_t count = 1; count <= LENGTH; count++) {
        for (unsigned i = 0; i < power(BLOCKS, count); i++) {
            uint64_t blocks[LENGTH] = {0};
            struct lli_block_run *runs;
            size_t num_runs;
            size_t at = 0;
            digits(i, BLOCKS, blocks, count);
            assert_true(lli_block_runs_merge(blocks, count, &runs, &num_runs) == LLM_SUCCESS);
            for (size_t r = 0; r < num_runs; r++) {
                assert_true(runs[r].count > 0);
                if (r > 0)
                    assert_true(runs[r].first != runs[r - 1].first + runs[r - 1].count);
                for (uint64_t b = 0; b < runs[r].count; b++, at++) {
                    assert_true(at < count);
                    assert_int_equal(blocks[at], runs[r].first + b);
                }
            }
            assert_int_equal(at, count);
            lli_free(runs);
        }
    }
}

// ---- a slot, cut into pieces ----

static void
check_scatter(const uint64_t *blocks, size_t count, uint64_t stride, uint64_t bytes, uint64_t cut)
{
    enum { FROM = 1000, SLOT_TENSORS = 2 };
    struct lli_plan plan;
    struct stream model;
    model.bytes = 0;
    for (uint64_t i = 0; i < lli_min(bytes, cut); i++) {
        model.src[i] = FROM + i;
        model.dst[i] = blocks[i / stride] * stride + i % stride;
        model.bytes++;
    }
    assert_true(lli_plan_scatter(&plan, SLOT_TENSORS, FROM, blocks, count, stride, bytes) ==
                LLM_SUCCESS);
    lli_plan_truncate(&plan, cut);
    if (!agrees(&plan, &model, SLOT_TENSORS) || plan.num_runs != fewest_runs(&model) ||
        !locates_everything(&plan))
        fail_msg("%llu bytes, cut at %llu, into %zu blocks of %llu bytes, %llu first",
                 (unsigned long long)bytes, (unsigned long long)cut, count,
                 (unsigned long long)stride, (unsigned long long)blocks[0]);
    lli_plan_fini(&plan);
}

static void
test_a_slot_goes_into_every_small_list_of_blocks(void **state)
{
    enum { BLOCKS = 4, LENGTH = 4, STRIDE = 3 };
    (void)state;
    for (size_t count = 1; count <= LENGTH; count++) {
        for (unsigned i = 0; i < power(BLOCKS, count); i++) {
            uint64_t blocks[LENGTH] = {0};
            digits(i, BLOCKS, blocks, count);
            // Whole blocks, a shorter last piece, blocks that stay empty.
            for (uint64_t bytes = 1; bytes <= count * STRIDE; bytes++)
                check_scatter(blocks, count, STRIDE, bytes, UINT64_MAX);
        }
    }
}

static void
test_a_plan_is_cut_at_any_byte(void **state)
{
    enum { LENGTH = 4, STRIDE = 3 };
    static const uint64_t samples[][LENGTH] = {
        {0, 1, 2, 3}, {3, 2, 1, 0}, {2, 3, 0, 1}, {5, 5, 6, 9}};
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(samples); i++) {
        for (uint64_t cut = 0; cut <= LENGTH * STRIDE + 1; cut++)
            check_scatter(samples[i], LENGTH, STRIDE, LENGTH * STRIDE, cut);
    }
    struct lli_plan plan;
    assert_true(lli_plan_slot(&plan, 3, 5, 7, 100) == LLM_SUCCESS);
    lli_plan_truncate(&plan, 40);
    assert_int_equal(plan.total_bytes, 120);
    assert_int_equal(plan.runs[0].bytes, 40);
    lli_plan_fini(&plan);
}

// ---- too much ----

static void
test_a_stream_longer_than_64_bits_is_rejected(void **state)
{
    struct lli_plan plan = {0};
    uint64_t block = 0;
    struct lli_block_run runs[3] = {{0, UINT64_C(1) << 62}, {0, UINT64_C(1) << 62}, {0, 1}};
    (void)state;
    assert_true(lli_plan_slot(&plan, 2, 0, 0, UINT64_C(1) << 63) == LLM_PARAM_INVALID);
    assert_null(plan.runs);
    assert_true(lli_plan_slot(&plan, UINT64_MAX, 0, 0, 2) == LLM_PARAM_INVALID);
    assert_true(lli_plan_blocks(&plan, 4, &block, &block, 1, UINT64_C(1) << 62) ==
                LLM_PARAM_INVALID);
    assert_true(lli_plan_scatter(&plan, 4, 0, &block, 1, UINT64_C(1) << 62, UINT64_C(1) << 62) ==
                LLM_PARAM_INVALID);
    assert_true(lli_plan_side(&plan, 1, runs, 2, 2) == LLM_PARAM_INVALID);
    assert_true(lli_plan_side(&plan, 2, runs, 2, 1) == LLM_PARAM_INVALID);
    assert_true(lli_plan_side(&plan, 1, runs, 1, 2) == LLM_SUCCESS);
    assert_true(plan.total_bytes == UINT64_C(1) << 63);
    lli_plan_fini(&plan);
    assert_true(lli_plan_pairs(&plan, 1, runs, 2, runs, 2, 2) == LLM_PARAM_INVALID);
    assert_true(lli_plan_pairs(&plan, 1, runs, 3, runs, 3, 1) == LLM_SUCCESS);
    lli_plan_fini(&plan);
}

static void
test_without_memory_there_is_no_plan(void **state)
{
    static const uint64_t blocks[] = {1, 2, 3};
    struct lli_block_run run = {1, 3};
    struct lli_block_run *runs;
    size_t num_runs;
    struct lli_plan plan;
    (void)state;
    lli_mem_fail_after(1);
    assert_true(lli_plan_slot(&plan, 1, 0, 0, 1) == LLM_OUT_OF_MEMORY);
    lli_mem_fail_after(1);
    assert_true(lli_plan_blocks(&plan, 1, blocks, blocks, 3, 1) == LLM_OUT_OF_MEMORY);
    lli_mem_fail_after(1);
    assert_true(lli_plan_scatter(&plan, 1, 0, blocks, 3, 1, 3) == LLM_OUT_OF_MEMORY);
    lli_mem_fail_after(1);
    assert_true(lli_plan_side(&plan, 1, &run, 1, 1) == LLM_OUT_OF_MEMORY);
    lli_mem_fail_after(1);
    assert_true(lli_plan_pairs(&plan, 1, &run, 1, &run, 1, 1) == LLM_OUT_OF_MEMORY);
    lli_mem_fail_after(1);
    assert_true(lli_block_runs_merge(blocks, 3, &runs, &num_runs) == LLM_OUT_OF_MEMORY);
    assert_int_equal(lli_mem_fail_after(0), 0);
}

static void
test_a_plan_that_cannot_shrink_is_as_good(void **state)
{
    static const uint64_t blocks[] = {1, 2, 3, 4, 5, 6};
    struct lli_plan plan;
    (void)state;
    lli_mem_fail_after(2);
    assert_true(lli_plan_blocks(&plan, 1, blocks, blocks, LLI_COUNT(blocks), 4) == LLM_SUCCESS);
    assert_int_equal(lli_mem_fail_after(0), 0);
    assert_int_equal(plan.num_runs, 1);
    assert_int_equal(plan.total_bytes, 24);
    lli_plan_fini(&plan);
}

static int
setup(void **state)
{
    (void)state;
    llm_set_log_level(LLM_LOG_OFF);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_slot_is_one_run),
        cmocka_unit_test(test_a_slot_of_no_bytes_is_an_empty_stream),
        cmocka_unit_test(test_every_small_pair_of_lists),
        cmocka_unit_test(test_long_random_lists),
        cmocka_unit_test(test_a_long_row_that_breaks_at_any_block_on_either_side),
        cmocka_unit_test(test_one_side_of_every_small_list_of_runs),
        cmocka_unit_test(test_every_small_pair_of_lists_of_runs),
        cmocka_unit_test(test_each_side_alone_sees_the_same_stream),
        cmocka_unit_test(test_merging_keeps_every_small_list),
        cmocka_unit_test(test_a_slot_goes_into_every_small_list_of_blocks),
        cmocka_unit_test(test_a_plan_is_cut_at_any_byte),
        cmocka_unit_test(test_a_stream_longer_than_64_bits_is_rejected),
        cmocka_unit_test(test_without_memory_there_is_no_plan),
        cmocka_unit_test(test_a_plan_that_cannot_shrink_is_as_good),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}

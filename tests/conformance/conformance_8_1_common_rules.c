// §8.1 What all transfers share: which tensors are meant, layers, what keeps the link.
#include "bed.h"

enum { MANY = 80 };

// ---- which tensors ----

struct selection {
    uint32_t per_layer;
    int32_t src[2];
    int32_t dst[2];
    llm_status status;
    // On success: src_first .. + count -> dst_first
    uint32_t src_first;
    uint32_t dst_first;
    uint32_t count;
};

struct wide_bed {
    struct party prompt;
    struct party decoder;
    struct kv src;
    struct kv dst;
};

static void
open_wide(struct wide_bed *bed, uint32_t src_tensors, uint32_t dst_tensors)
{
    struct party_options options = {.num_devices = 1};
    open_party_with(&bed->prompt, 1, LLM_ROLE_PROMPT, &options);
    open_party_with(&bed->decoder, 2, LLM_ROLE_DECODER, &options);
    link_parties(&bed->decoder, &bed->prompt);
    open_bytes(&bed->src, &bed->prompt, src_tensors, 3, 16);
    open_bytes(&bed->dst, &bed->decoder, dst_tensors, 3, 16);
}

static void
close_wide(struct wide_bed *bed)
{
    close_party(&bed->decoder);
    close_party(&bed->prompt);
    forget_kv(&bed->src);
    forget_kv(&bed->dst);
}

static void
check_selection(struct wide_bed *bed, bool push, bool blocks, const struct selection *s)
{
    llm_kv_cache_ext_param param = layers(s->src[0], s->src[1], s->dst[0], s->dst[1], s->per_layer);
    llm_cache_index from = index_of(&bed->prompt, &bed->src, blocks ? 0 : 2);
    llm_cache_index to = index_of(&bed->decoder, &bed->dst, blocks ? 0 : 1);
    uint64_t src_block = 2;
    uint64_t dst_block = 1;
    llm_status status;
    fill_kv(&bed->src, s->per_layer * 100 + (uint64_t)push * 2 + blocks);
    if (push && blocks)
        status = llm_push_kv_blocks(bed->prompt.dd, &bed->src.cache, &to, &src_block, 1, &dst_block,
                                    1, &param);
    else if (push)
        status = llm_push_kv_cache(bed->prompt.dd, &bed->src.cache, &to, 2, -1, &param);
    else if (blocks)
        status = llm_pull_kv_blocks(bed->decoder.dd, &from, &bed->dst.cache, &src_block, 1,
                                    &dst_block, 1, &param);
    else
        status = llm_pull_kv_cache(bed->decoder.dd, &from, &bed->dst.cache, 1, -1, &param);
    if (status != s->status)
        print_error("n = %u, src {%d, %d}, dst {%d, %d}, push %d, blocks %d\n", s->per_layer,
                    s->src[0], s->src[1], s->dst[0], s->dst[1], push, blocks);
    assert_status(status, s->status);
    for (uint32_t i = 0; s->status == LLM_SUCCESS && i < s->count; i++)
        expect_slot(&bed->dst, s->dst_first + i, 1, &bed->src, s->src_first + i, 2, 16);
    assert_kv(&bed->dst);
    assert_kv(&bed->src);
}

static void
check_selections(uint32_t src_tensors, uint32_t dst_tensors, bool push,
                 const struct selection *selections, size_t count)
{
    struct wide_bed bed;
    open_wide(&bed, src_tensors, dst_tensors);
    for (size_t i = 0; i < count; i++) {
        check_selection(&bed, push, false, &selections[i]);
        check_selection(&bed, push, true, &selections[i]);
    }
    close_wide(&bed);
}
#define CHECK_SELECTIONS(src_tensors, dst_tensors, push, selections)                               \
    check_selections((src_tensors), (dst_tensors), (push), (selections), COUNT_OF(selections))

static void
conformance_8_1_row_01_pull_of_both_ranges_pairs_tensors_in_order(void **state)
{
    static const struct selection selections[] = {
        {2, {0, 0}, {0, 0}, LLM_SUCCESS, 0, 0, 2},
        {2, {0, 1}, {0, 1}, LLM_SUCCESS, 0, 0, 4},
        {2, {39, 39}, {0, 0}, LLM_SUCCESS, 78, 0, 2},
        {2, {0, 1}, {38, 39}, LLM_SUCCESS, 0, 76, 4},
        {1, {0, 1}, {0, 1}, LLM_SUCCESS, 0, 0, 2},
        {1, {79, 79}, {3, 3}, LLM_SUCCESS, 79, 3, 1},
        {80, {0, 0}, {0, 0}, LLM_SUCCESS, 0, 0, 80},
        {2, {0, 39}, {0, 39}, LLM_SUCCESS, 0, 0, 80},
        {2, {39, 40}, {0, 1}, LLM_PARAM_INVALID, 0, 0, 0},
        {2, {0, 1}, {39, 40}, LLM_PARAM_INVALID, 0, 0, 0},
        {2, {INT32_MAX - 1, INT32_MAX}, {0, 1}, LLM_PARAM_INVALID, 0, 0, 0},
    };
    (void)state;
    CHECK_SELECTIONS(MANY, MANY, false, selections);
}

static void
conformance_8_1_row_02_both_defaults_are_all_tensors(void **state)
{
    static const struct selection even[] = {{2, {-1, -1}, {-1, -1}, LLM_SUCCESS, 0, 0, 80}};
    static const struct selection by_one[] = {{1, {-1, -1}, {-1, -1}, LLM_SUCCESS, 0, 0, 5}};
    (void)state;
    CHECK_SELECTIONS(MANY, MANY, false, even);
    CHECK_SELECTIONS(MANY, MANY, true, even);
    CHECK_SELECTIONS(5, 5, false, by_one);
    CHECK_SELECTIONS(5, 5, true, by_one);
}

static void
conformance_8_1_row_03_pull_with_one_default_ignores_both_ranges(void **state)
{
    static const struct selection selections[] = {
        {2, {-1, -1}, {0, 0}, LLM_SUCCESS, 0, 0, 80}, {2, {3, 4}, {-1, -1}, LLM_SUCCESS, 0, 0, 80},
        {2, {-1, 5}, {0, 0}, LLM_SUCCESS, 0, 0, 80},  {2, {0, 0}, {-1, 7}, LLM_SUCCESS, 0, 0, 80},
        {2, {-1, 5}, {-1, 9}, LLM_SUCCESS, 0, 0, 80},
    };
    (void)state;
    CHECK_SELECTIONS(MANY, MANY, false, selections);
}

static void
conformance_8_1_row_04_push_with_one_default(void **state)
{
    static const struct selection selections[] = {
        // The source alone decides; the other range must have its size.
        {2, {-1, -1}, {3, 3}, LLM_SUCCESS, 0, 0, 80},
        {2, {-1, 1}, {0, 2}, LLM_SUCCESS, 0, 0, 80},
        {2, {-1, -1}, {0, 1}, LLM_PARAM_INVALID, 0, 0, 0},
        {2, {4, 4}, {-1, -1}, LLM_PARAM_INVALID, 0, 0, 0},
        {2, {4, 5}, {-1, -1}, LLM_PARAM_INVALID, 0, 0, 0},
    };
    (void)state;
    CHECK_SELECTIONS(MANY, MANY, true, selections);
}

static void
conformance_8_1_row_05_ranges_of_different_length_are_param_invalid(void **state)
{
    static const struct selection selections[] = {
        {2, {0, 1}, {0, 2}, LLM_PARAM_INVALID, 0, 0, 0},
        {2, {0, 2}, {0, 1}, LLM_PARAM_INVALID, 0, 0, 0},
    };
    (void)state;
    CHECK_SELECTIONS(MANY, MANY, false, selections);
    CHECK_SELECTIONS(MANY, MANY, true, selections);
}

static void
conformance_8_1_row_06_tensors_per_layer_must_divide_the_tensors(void **state)
{
    static const struct selection seven[] = {
        {7, {0, 1}, {0, 1}, LLM_PARAM_INVALID, 0, 0, 0},
        {7, {-1, -1}, {-1, -1}, LLM_PARAM_INVALID, 0, 0, 0},
        {255, {-1, -1}, {-1, -1}, LLM_PARAM_INVALID, 0, 0, 0},
    };
    static const struct selection two[] = {
        {2, {0, 0}, {0, 0}, LLM_PARAM_INVALID, 0, 0, 0},
    };
    static const struct selection pull_two[] = {
        // Where no range speaks of layers, the default need not divide.
        {2, {-1, -1}, {-1, -1}, LLM_SUCCESS, 0, 0, 5},
    };
    static const struct selection push_two[] = {
        {2, {-1, -1}, {-1, -1}, LLM_PARAM_INVALID, 0, 0, 0},
    };
    static const struct selection one_pulled[] = {
        {2, {-1, -1}, {-1, -1}, LLM_SUCCESS, 0, 0, 1},
        {1, {-1, -1}, {-1, -1}, LLM_SUCCESS, 0, 0, 1},
    };
    static const struct selection one_pushed[] = {
        {2, {-1, -1}, {-1, -1}, LLM_PARAM_INVALID, 0, 0, 0},
        {1, {-1, -1}, {-1, -1}, LLM_SUCCESS, 0, 0, 1},
    };
    (void)state;
    CHECK_SELECTIONS(MANY, MANY, false, seven);
    CHECK_SELECTIONS(MANY, MANY, true, seven);
    CHECK_SELECTIONS(5, 5, false, two);
    CHECK_SELECTIONS(5, 5, true, two);
    CHECK_SELECTIONS(5, 5, false, pull_two);
    CHECK_SELECTIONS(5, 5, true, push_two);
    CHECK_SELECTIONS(1, 1, false, one_pulled);
    CHECK_SELECTIONS(1, 1, true, one_pushed);
    // On the other side too: 4 tensors here, 5 there.
    CHECK_SELECTIONS(5, 4, false, two);
    CHECK_SELECTIONS(4, 5, true, two);
}

static void
conformance_8_1_row_07_push_checks_every_layer_before_any_moves(void **state)
{
    static const struct selection selections[] = {
        {2, {0, 0}, {0, 0}, LLM_SUCCESS, 0, 0, 2},
        {2, {0, 1}, {0, 1}, LLM_SUCCESS, 0, 0, 4},
        {2, {39, 39}, {0, 0}, LLM_SUCCESS, 78, 0, 2},
        {1, {0, 1}, {0, 1}, LLM_SUCCESS, 0, 0, 2},
        // The reference pushes layer 39 before it finds that there is no layer 40.
        {2, {39, 40}, {0, 1}, LLM_PARAM_INVALID, 0, 0, 0},
        {2, {0, 1}, {39, 40}, LLM_PARAM_INVALID, 0, 0, 0},
    };
    (void)state;
    CHECK_SELECTIONS(MANY, MANY, true, selections);
}

static void
conformance_8_1_row_08_push_of_all_layers_goes_by_the_callers_num_tensors(void **state)
{
    struct wide_bed bed;
    (void)state;
    open_wide(&bed, 8, 8);
    llm_cache_index to = index_of(&bed.decoder, &bed.dst, 1);
    llm_cache_desc desc = bed.src.desc;
    llm_cache src = bed.src.cache;
    src.desc = &desc;
    desc.num_tensors = 3;
    // Layers 0 and 1.
    assert_ok(llm_push_kv_cache(bed.prompt.dd, &src, &to, 2, -1, NULL));
    for (uint32_t t = 0; t < 4; t++)
        expect_slot(&bed.dst, t, 1, &bed.src, t, 2, 16);
    assert_kv(&bed.dst);
    desc.num_tensors = 9;
    assert_status(llm_push_kv_cache(bed.prompt.dd, &src, &to, 2, -1, NULL), LLM_PARAM_INVALID);
    desc.num_tensors = UINT32_MAX;
    assert_status(llm_push_kv_cache(bed.prompt.dd, &src, &to, 2, -1, NULL), LLM_PARAM_INVALID);
    assert_kv(&bed.dst);
    close_wide(&bed);
}

// ---- the checks of KvCacheExtParam, in their order ----

struct call {
    struct bed *bed;
    unsigned kind; // pull cache, pull blocks, push cache, push blocks
    llm_kv_cache_ext_param param;
};

static void
reset(void *arg)
{
    struct call *call = arg;
    call->param = layers(0, 0, 0, 0, 2);
}

static llm_status
run(void *arg)
{
    struct call *call = arg;
    struct bed *bed = call->bed;
    llm_cache_index from = index_of(&bed->prompt, &bed->on_prompt, 0);
    llm_cache_index to = index_of(&bed->decoder, &bed->on_decoder, 0);
    uint64_t block = 1;
    switch (call->kind) {
    case 0:
        return llm_pull_kv_cache(bed->decoder.dd, &from, &bed->on_decoder.cache, 1, -1,
                                 &call->param);
    case 1:
        return llm_pull_kv_blocks(bed->decoder.dd, &from, &bed->on_decoder.cache, &block, 1, &block,
                                  1, &call->param);
    case 2:
        return llm_push_kv_cache(bed->prompt.dd, &bed->on_prompt.cache, &to, 1, -1, &call->param);
    default:
        return llm_push_kv_blocks(bed->prompt.dd, &bed->on_prompt.cache, &to, &block, 1, &block, 1,
                                  &call->param);
    }
}

static void
unharmed(void *arg)
{
    struct call *call = arg;
    assert_bed(call->bed);
}

COMMIT(src_first_below, call->param.src_layer_range[0] = -2;)
COMMIT(src_second_below, call->param.src_layer_range[0] = -2; call->param.src_layer_range[1] = -2;)
COMMIT(src_least, call->param.src_layer_range[0] = INT32_MIN;)
COMMIT(src_reversed, call->param.src_layer_range[0] = 1;)
COMMIT(src_half_default, call->param.src_layer_range[1] = -1;)
COMMIT(dst_first_below, call->param.dst_layer_range[0] = -2;)
COMMIT(dst_second_below, call->param.dst_layer_range[0] = -2; call->param.dst_layer_range[1] = -2;)
COMMIT(dst_reversed, call->param.dst_layer_range[0] = 1;)
COMMIT(no_tensors_per_layer, call->param.tensor_num_per_layer = 0;)
COMMIT(many_tensors_per_layer, call->param.tensor_num_per_layer = 256;)
COMMIT(longer_src, call->param.src_layer_range[1] = 1;)
COMMIT(longer_dst, call->param.dst_layer_range[1] = 1;)

enum { SRC = 1, DST = 2 };

static const struct breach breaches[] = {
    {1, LLM_PARAM_INVALID, "src_layer_range is", SRC, src_first_below},
    {1, LLM_PARAM_INVALID, "src_layer_range is", SRC, src_second_below},
    {1, LLM_PARAM_INVALID, "src_layer_range is", SRC, src_least},
    {1, LLM_PARAM_INVALID, "src_layer_range is", SRC, src_reversed},
    {1, LLM_PARAM_INVALID, "src_layer_range is", SRC, src_half_default},
    {2, LLM_PARAM_INVALID, "dst_layer_range is", DST, dst_first_below},
    {2, LLM_PARAM_INVALID, "dst_layer_range is", DST, dst_second_below},
    {2, LLM_PARAM_INVALID, "dst_layer_range is", DST, dst_reversed},
    {3, LLM_PARAM_INVALID, "tensor_num_per_layer is 0", 0, no_tensors_per_layer},
    {3, LLM_PARAM_INVALID, "tensor_num_per_layer is 256", 0, many_tensors_per_layer},
    {4, LLM_PARAM_INVALID, "different lengths", SRC | DST, longer_src},
    {4, LLM_PARAM_INVALID, "different lengths", SRC | DST, longer_dst},
};

static void
prove(void **state, unsigned check)
{
    struct bed *bed = *state;
    for (unsigned kind = 0; kind < 4; kind++) {
        struct call call = {.bed = bed, .kind = kind};
        struct proof proof = {
            .breaches = breaches,
            .num_breaches = COUNT_OF(breaches),
            .call = &call,
            .reset = reset,
            .run = run,
            .unharmed = unharmed,
        };
        prove_check(&proof, check);
        bool is_block = kind % 2 == 1;
        for (uint32_t t = 0; t < 2; t++)
            expect_slot(&bed->on_decoder, t, kind == 2 ? 0 : 1, &bed->on_prompt, t,
                        is_block || kind == 2 ? 1 : 0, STRIDE);
        assert_bed(bed);
    }
}

PROVE(conformance_8_1_check_01_bad_src_layer_range_is_param_invalid, 1)
PROVE(conformance_8_1_check_02_bad_dst_layer_range_is_param_invalid, 2)
PROVE(conformance_8_1_check_03_tensors_per_layer_outside_1_to_255_is_param_invalid, 3)
PROVE(conformance_8_1_check_04_ranges_of_unequal_length_are_param_invalid, 4)

// ---- the rest ----

static void
conformance_8_1_rule_01_pulling_does_not_consume(void **state)
{
    struct bed *bed = *state;
    for (int i = 0; i < 5; i++)
        assert_link_works(bed);
}

static void
conformance_8_1_rule_02_negative_answers_keep_the_link(void **state)
{
    struct bed *bed = *state;
    llm_cache_index from = index_of(&bed->prompt, &bed->on_prompt, 0);
    llm_cache_index to = index_of(&bed->decoder, &bed->on_decoder, 0);
    uint64_t block = SLOTS;
    uint64_t good = 0;
    for (int i = 0; i < 3; i++) {
        from.cache_id = NO_CACHE;
        assert_status(
            llm_pull_kv_cache(bed->decoder.dd, &from, &bed->on_decoder.cache, 0, -1, NULL),
            LLM_KV_CACHE_NOT_EXIST);
        from.cache_id = bed->on_prompt.cache.cache_id;
        from.batch_index = SLOTS;
        assert_status(
            llm_pull_kv_cache(bed->decoder.dd, &from, &bed->on_decoder.cache, 0, -1, NULL),
            LLM_KV_CACHE_NOT_EXIST);
        from.batch_index = 0;
        assert_status(llm_pull_kv_blocks(bed->decoder.dd, &from, &bed->on_decoder.cache, &block, 1,
                                         &good, 1, NULL),
                      LLM_PARAM_INVALID);
        to.cache_id = NO_CACHE;
        assert_status(llm_push_kv_cache(bed->prompt.dd, &bed->on_prompt.cache, &to, 0, -1, NULL),
                      LLM_KV_CACHE_NOT_EXIST);
        to.cache_id = bed->on_decoder.cache.cache_id;
        assert_status(llm_push_kv_blocks(bed->prompt.dd, &bed->on_prompt.cache, &to, &good, 1,
                                         &block, 1, NULL),
                      LLM_PARAM_INVALID);
        assert_true(is_linked(&bed->decoder, bed->prompt.id));
        assert_true(is_linked(&bed->prompt, bed->decoder.id));
        assert_link_works(bed);
    }
}

static void
conformance_8_1_rule_03_the_remote_side_is_found_by_cluster_and_cache_id(void **state)
{
    struct bed *bed = *state;
    struct party other;
    struct party_options options = {.num_devices = 1};
    struct kv theirs;
    open_party_with(&other, 9, LLM_ROLE_PROMPT, &options);
    open_bytes(&theirs, &other, TENSORS, SLOTS, STRIDE);
    link_parties(&bed->decoder, &other);
    llm_cache_index from = index_of(&other, &theirs, 3);
    assert_ok(llm_pull_kv_cache(bed->decoder.dd, &from, &bed->on_decoder.cache, 0, -1, NULL));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->on_decoder, t, 0, &theirs, t, 3, STRIDE);
    assert_bed(bed);
    assert_link_works(bed);
    close_party(&other);
    forget_kv(&theirs);
}

#define TEST(test) cmocka_unit_test(test)

static const struct CMUnitTest tests[] = {
    PUSH_TEST(conformance_8_1_check_01_bad_src_layer_range_is_param_invalid),
    PUSH_TEST(conformance_8_1_check_02_bad_dst_layer_range_is_param_invalid),
    PUSH_TEST(conformance_8_1_check_03_tensors_per_layer_outside_1_to_255_is_param_invalid),
    PUSH_TEST(conformance_8_1_check_04_ranges_of_unequal_length_are_param_invalid),
    TEST(conformance_8_1_row_01_pull_of_both_ranges_pairs_tensors_in_order),
    TEST(conformance_8_1_row_02_both_defaults_are_all_tensors),
    TEST(conformance_8_1_row_03_pull_with_one_default_ignores_both_ranges),
    TEST(conformance_8_1_row_04_push_with_one_default),
    TEST(conformance_8_1_row_05_ranges_of_different_length_are_param_invalid),
    TEST(conformance_8_1_row_06_tensors_per_layer_must_divide_the_tensors),
    TEST(conformance_8_1_row_07_push_checks_every_layer_before_any_moves),
    TEST(conformance_8_1_row_08_push_of_all_layers_goes_by_the_callers_num_tensors),
    PUSH_TEST(conformance_8_1_rule_01_pulling_does_not_consume),
    PUSH_TEST(conformance_8_1_rule_02_negative_answers_keep_the_link),
    PUSH_TEST(conformance_8_1_rule_03_the_remote_side_is_found_by_cluster_and_cache_id),
};
CONFORMANCE_MAIN("8.1 Common rules", tests)

// §8.3 PullKvBlocks.
#include "bed.h"

enum { BLOCKS_MAX = 8 };

struct call {
    struct bed *bed;
    llm_datadist *dd;
    llm_cache_index src;
    llm_cache dst;
    uint64_t src_blocks[BLOCKS_MAX];
    uint64_t dst_blocks[BLOCKS_MAX];
    size_t num_src;
    size_t num_dst;
    bool no_src;
    llm_kv_cache_ext_param param;
};

static void
reset(void *arg)
{
    struct call *call = arg;
    struct bed *bed = call->bed;
    *call = (struct call){
        .bed = bed,
        .dd = bed->decoder.dd,
        .src = index_of(&bed->prompt, &bed->on_prompt, 0),
        .dst = bed->on_decoder.cache,
        .src_blocks = {3, 0, 1},
        .dst_blocks = {0, 2, 3},
        .num_src = 3,
        .num_dst = 3,
        .param = layers(-1, -1, -1, -1, 2),
    };
}

static llm_status
run(void *arg)
{
    struct call *call = arg;
    return llm_pull_kv_blocks(call->dd, &call->src, &call->dst,
                              call->no_src ? NULL : call->src_blocks, call->num_src,
                              call->dst_blocks, call->num_dst, &call->param);
}

static void
unharmed(void *arg)
{
    struct call *call = arg;
    assert_bed(call->bed);
}

COMMIT(not_initialized, call->dd = call->bed->blank;)
COMMIT(batch_one, call->src.batch_index = 1;)
COMMIT(batch_huge, call->src.batch_index = UINT32_MAX;)
COMMIT(src_below, call->param.src_layer_range[0] = -2;)
COMMIT(src_reversed, call->param.src_layer_range[0] = 1; call->param.src_layer_range[1] = 0;)
COMMIT(dst_below, call->param.dst_layer_range[1] = -2;)
COMMIT(dst_reversed, call->param.dst_layer_range[0] = 1; call->param.dst_layer_range[1] = 0;)
COMMIT(no_tensors_per_layer, call->param.tensor_num_per_layer = 0;)
COMMIT(many_tensors_per_layer, call->param.tensor_num_per_layer = 256;)
COMMIT(unequal_lengths, call->param = layers(0, 1, 0, 0, call->param.tensor_num_per_layer);)
COMMIT(role_prompt, call->dd = call->bed->prompt.dd;)
COMMIT(role_mix, call->dd = call->bed->mix.dd;)
COMMIT(no_blocks, call->num_src = 0;)
COMMIT(no_list, call->no_src = true;)
COMMIT(no_blocks_at_all, call->num_src = 0; call->num_dst = 0;)
COMMIT(fewer_src, call->num_src = 2; call->num_dst = 3;)
COMMIT(fewer_dst, call->num_src = 3; call->num_dst = 2;)
COMMIT(none_dst, call->num_src = 3; call->num_dst = 0;)
COMMIT(local_unknown, call->dst.cache_id = NO_CACHE;)
COMMIT(local_zero, call->dst.cache_id = 0;)
COMMIT(dst_end, call->dst_blocks[1] = SLOTS;)
COMMIT(dst_huge, call->dst_blocks[1] = UINT64_MAX;)
COMMIT(local_tensor, call->param = layers(0, 0, TENSORS / 2, TENSORS / 2, 2);)
COMMIT(local_tensor_huge, call->param = layers(0, 0, INT32_MAX, INT32_MAX, 255);)
COMMIT(indivisible, call->param = layers(0, 0, 0, 0, 3);)
COMMIT(not_linked, call->src.cluster_id = NOBODY;)
COMMIT(remote_unknown, call->src.cache_id = NO_CACHE;)
COMMIT(remote_negative, call->src.cache_id = INT64_MIN;)
COMMIT(stride_wide, call->src.cache_id = call->bed->wide_on_prompt.cache.cache_id;)
COMMIT(stride_narrow, call->src.cache_id = call->bed->narrow_on_prompt.cache.cache_id;)
COMMIT(src_end, call->src_blocks[2] = SLOTS;)
COMMIT(src_huge, call->src_blocks[2] = UINT64_MAX;)
COMMIT(src_huge_first, call->src_blocks[0] = UINT64_MAX - 1; call->src_blocks[1] = UINT64_MAX;)
COMMIT(remote_tensor, call->param = layers(TENSORS / 2, TENSORS / 2, 0, 0, 2);)
COMMIT(remote_count_less, call->src.cache_id = call->bed->few_on_prompt.cache.cache_id;)
COMMIT(remote_count_more, call->src.cache_id = call->bed->many_on_prompt.cache.cache_id;)

enum { RANGES = 1, REMOTE = 2, SRC = 4, NUMBER = 8 };

static const struct breach breaches[] = {
    {1, LLM_FAILED, "not initialized", 0, not_initialized},
    {2, LLM_PARAM_INVALID, "batch_index is 1", 0, batch_one},
    {2, LLM_PARAM_INVALID, "batch_index is 4294967295", 0, batch_huge},
    {3, LLM_PARAM_INVALID, "src_layer_range is", 0, src_below},
    {3, LLM_PARAM_INVALID, "src_layer_range is", 0, src_reversed},
    {3, LLM_PARAM_INVALID, "dst_layer_range is", 0, dst_below},
    {3, LLM_PARAM_INVALID, "dst_layer_range is", 0, dst_reversed},
    {3, LLM_PARAM_INVALID, "tensor_num_per_layer is 0", 0, no_tensors_per_layer},
    {3, LLM_PARAM_INVALID, "tensor_num_per_layer is 256", 0, many_tensors_per_layer},
    {3, LLM_PARAM_INVALID, "different lengths", 0, unequal_lengths},
    {4, LLM_PARAM_INVALID, "Prompt", 0, role_prompt},
    {4, LLM_PARAM_INVALID, "Mix", 0, role_mix},
    {5, LLM_PARAM_INVALID, "src_blocks is empty", NUMBER, no_blocks},
    {5, LLM_PARAM_INVALID, "src_blocks is empty", 0, no_list},
    {5, LLM_PARAM_INVALID, "src_blocks is empty", NUMBER, no_blocks_at_all},
    {6, LLM_PARAM_INVALID, "src_blocks has 2 entries, dst_blocks 3", NUMBER, fewer_src},
    {6, LLM_PARAM_INVALID, "src_blocks has 3 entries, dst_blocks 2", NUMBER, fewer_dst},
    {6, LLM_PARAM_INVALID, "src_blocks has 3 entries, dst_blocks 0", NUMBER, none_dst},
    {7, LLM_KV_CACHE_NOT_EXIST, "local cache", 0, local_unknown},
    {7, LLM_KV_CACHE_NOT_EXIST, "local cache", 0, local_zero},
    {8, LLM_PARAM_INVALID, "dst_blocks[1] is 4", 0, dst_end},
    {8, LLM_PARAM_INVALID, "dst_blocks[1] is 18446744073709551615", 0, dst_huge},
    {9, LLM_PARAM_INVALID, "the local cache has 4 tensors", RANGES, local_tensor},
    {9, LLM_PARAM_INVALID, "the local cache has 4 tensors", RANGES, local_tensor_huge},
    {9, LLM_PARAM_INVALID, "doesn't divide", RANGES, indivisible},
    {11, LLM_NOT_YET_LINK, "no link", 0, not_linked},
    {12, LLM_KV_CACHE_NOT_EXIST, "no cache with id 987654", REMOTE, remote_unknown},
    {12, LLM_KV_CACHE_NOT_EXIST, "no cache with id -9223372036854775808", REMOTE, remote_negative},
    {13, LLM_PARAM_INVALID, "block sizes differ", REMOTE, stride_wide},
    {13, LLM_PARAM_INVALID, "block sizes differ", REMOTE, stride_narrow},
    {14, LLM_PARAM_INVALID, "remote block 4 is out of range", SRC, src_end},
    {14, LLM_PARAM_INVALID, "is out of range", SRC, src_huge},
    {14, LLM_PARAM_INVALID, "is out of range", SRC, src_huge_first},
    {15, LLM_PARAM_INVALID, "remote tensor", RANGES, remote_tensor},
    {15, LLM_PARAM_INVALID, "remote tensor", RANGES | REMOTE, remote_count_less},
    {15, LLM_PARAM_INVALID, "tensors, the remote one 6", RANGES | REMOTE, remote_count_more},
};

static void
prove(void **state, unsigned check)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    struct proof proof = {
        .breaches = breaches,
        .num_breaches = COUNT_OF(breaches),
        .call = &call,
        .reset = reset,
        .run = run,
        .unharmed = unharmed,
    };
    prove_check(&proof, check);
    for (uint32_t t = 0; t < TENSORS; t++) {
        for (size_t i = 0; i < 3; i++)
            expect_slot(&bed->on_decoder, t, call.dst_blocks[i], &bed->on_prompt, t,
                        call.src_blocks[i], STRIDE);
    }
    assert_bed(bed);
}

PROVE(conformance_8_3_check_01_not_initialized_is_failed, 1)
PROVE(conformance_8_3_check_02_batch_index_other_than_0_is_param_invalid, 2)
PROVE(conformance_8_3_check_03_bad_ext_param_is_param_invalid, 3)
PROVE(conformance_8_3_check_04_other_roles_than_decoder_are_param_invalid, 4)
PROVE(conformance_8_3_check_05_empty_src_blocks_are_param_invalid, 5)
PROVE(conformance_8_3_check_06_lists_of_unequal_length_are_param_invalid, 6)
PROVE(conformance_8_3_check_07_unknown_local_cache_is_kv_cache_not_exist, 7)
PROVE(conformance_8_3_check_08_dst_block_out_of_range_is_param_invalid, 8)
PROVE(conformance_8_3_check_09_local_tensor_out_of_range_is_param_invalid, 9)
PROVE(conformance_8_3_check_11_no_link_is_not_yet_link, 11)
PROVE(conformance_8_3_check_12_unknown_remote_cache_is_kv_cache_not_exist, 12)
PROVE(conformance_8_3_check_13_unequal_strides_are_param_invalid, 13)
PROVE(conformance_8_3_check_14_src_block_out_of_range_is_param_invalid, 14)
PROVE(conformance_8_3_check_15_remote_tensors_out_of_range_or_unequal_are_param_invalid, 15)

static void
pull_pairs(struct bed *bed, const uint64_t *src_blocks, const uint64_t *dst_blocks, size_t count)
{
    llm_cache_index from = index_of(&bed->prompt, &bed->on_prompt, 0);
    assert_ok(llm_pull_kv_blocks(bed->decoder.dd, &from, &bed->on_decoder.cache, src_blocks, count,
                                 dst_blocks, count, NULL));
    for (uint32_t t = 0; t < TENSORS; t++) {
        for (size_t i = 0; i < count; i++)
            expect_slot(&bed->on_decoder, t, dst_blocks[i], &bed->on_prompt, t, src_blocks[i],
                        STRIDE);
    }
    assert_bed(bed);
}

static void
conformance_8_3_rule_01_pairs_in_any_order_on_every_device(void **state)
{
    struct bed *bed = *state;
    pull_pairs(bed, (uint64_t[]){0, 1, 2, 3}, (uint64_t[]){0, 1, 2, 3}, 4);
    fill_kv(&bed->on_prompt, 1);
    pull_pairs(bed, (uint64_t[]){3, 2, 1, 0}, (uint64_t[]){0, 1, 2, 3}, 4);
    fill_kv(&bed->on_prompt, 2);
    pull_pairs(bed, (uint64_t[]){2, 3, 0}, (uint64_t[]){1, 2, 0}, 3);
    fill_kv(&bed->on_prompt, 3);
    pull_pairs(bed, (uint64_t[]){1}, (uint64_t[]){3}, 1);
}

static void
conformance_8_3_rule_02_repeated_source_blocks_are_fine(void **state)
{
    struct bed *bed = *state;
    pull_pairs(bed, (uint64_t[]){2, 2, 2, 2}, (uint64_t[]){0, 1, 2, 3}, 4);
    // A destination named twice has one of the two.
    pull_pairs(bed, (uint64_t[]){1, 1}, (uint64_t[]){3, 3}, 2);
}

static void
conformance_8_3_rule_03_equal_strides_alone_are_required(void **state)
{
    struct bed *bed = *state;
    llm_cache_index from = index_of(&bed->prompt, &bed->on_prompt, 0);
    struct kv longer;
    open_kv(&longer, &bed->decoder, TENSORS, LLM_DT_UINT8, 11, STRIDE);
    assert_ok(llm_pull_kv_blocks(bed->decoder.dd, &from, &longer.cache, (uint64_t[]){3, 1}, 2,
                                 (uint64_t[]){10, 4}, 2, NULL));
    for (uint32_t t = 0; t < TENSORS; t++) {
        expect_slot(&longer, t, 10, &bed->on_prompt, t, 3, STRIDE);
        expect_slot(&longer, t, 4, &bed->on_prompt, t, 1, STRIDE);
    }
    assert_kv(&longer);
    assert_bed(bed);
    forget_kv(&longer);
}

static void
conformance_8_3_rule_04_blocks_are_not_cut_out_of_a_contiguous_source(void **state)
{
    struct bed *bed = *state;
    llm_cache_index from = index_of(&bed->prompt, &bed->on_prompt, 0);
    assert_status(llm_pull_kv_blocks(bed->decoder.dd, &from, &bed->on_decoder.cache, NULL, 0,
                                     (uint64_t[]){0, 1}, 2, NULL),
                  LLM_PARAM_INVALID);
    assert_bed(bed);
    assert_link_works(bed);
}

static const struct CMUnitTest tests[] = {
    BED_TEST(conformance_8_3_check_01_not_initialized_is_failed),
    BED_TEST(conformance_8_3_check_02_batch_index_other_than_0_is_param_invalid),
    BED_TEST(conformance_8_3_check_03_bad_ext_param_is_param_invalid),
    BED_TEST(conformance_8_3_check_04_other_roles_than_decoder_are_param_invalid),
    BED_TEST(conformance_8_3_check_05_empty_src_blocks_are_param_invalid),
    BED_TEST(conformance_8_3_check_06_lists_of_unequal_length_are_param_invalid),
    BED_TEST(conformance_8_3_check_07_unknown_local_cache_is_kv_cache_not_exist),
    BED_TEST(conformance_8_3_check_08_dst_block_out_of_range_is_param_invalid),
    BED_TEST(conformance_8_3_check_09_local_tensor_out_of_range_is_param_invalid),
    BED_TEST(conformance_8_3_check_11_no_link_is_not_yet_link),
    BED_TEST(conformance_8_3_check_12_unknown_remote_cache_is_kv_cache_not_exist),
    BED_TEST(conformance_8_3_check_13_unequal_strides_are_param_invalid),
    BED_TEST(conformance_8_3_check_14_src_block_out_of_range_is_param_invalid),
    BED_TEST(conformance_8_3_check_15_remote_tensors_out_of_range_or_unequal_are_param_invalid),
    BED_TEST(conformance_8_3_rule_01_pairs_in_any_order_on_every_device),
    BED_TEST(conformance_8_3_rule_02_repeated_source_blocks_are_fine),
    BED_TEST(conformance_8_3_rule_03_equal_strides_alone_are_required),
    BED_TEST(conformance_8_3_rule_04_blocks_are_not_cut_out_of_a_contiguous_source),
};
CONFORMANCE_MAIN("8.3 PullKvBlocks", tests)

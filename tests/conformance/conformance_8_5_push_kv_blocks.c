// §8.5 PushKvBlocks.
#include "bed.h"

enum { BLOCKS_MAX = 8 };

struct call {
    struct bed *bed;
    struct party *two_devices;
    llm_datadist *dd;
    llm_cache src;
    llm_cache_desc desc;
    llm_cache_index dst;
    uint64_t src_blocks[BLOCKS_MAX];
    uint64_t dst_blocks[BLOCKS_MAX];
    size_t num_src;
    size_t num_dst;
    llm_kv_cache_ext_param param;
};

static void
reset(void *arg)
{
    struct call *call = arg;
    struct bed *bed = call->bed;
    *call = (struct call){
        .bed = bed,
        .two_devices = call->two_devices,
        .dd = bed->prompt.dd,
        .src = bed->on_prompt.cache,
        .desc = bed->on_prompt.desc,
        .dst = index_of(&bed->decoder, &bed->on_decoder, 0),
        .src_blocks = {3, 0, 1},
        .dst_blocks = {0, 2, 3},
        .num_src = 3,
        .num_dst = 3,
        .param = layers(-1, -1, -1, -1, 2),
    };
    call->src.desc = &call->desc;
}

static llm_status
run(void *arg)
{
    struct call *call = arg;
    return llm_push_kv_blocks(call->dd, &call->src, &call->dst, call->src_blocks, call->num_src,
                              call->dst_blocks, call->num_dst, &call->param);
}

static void
unharmed(void *arg)
{
    struct call *call = arg;
    assert_bed(call->bed);
}

COMMIT(not_initialized, call->dd = call->bed->blank;)
COMMIT(placement_host, call->desc.placement = LLM_PLACEMENT_HOST;)
COMMIT(no_blocks, call->num_src = 0;)
COMMIT(no_blocks_at_all, call->num_src = 0; call->num_dst = 0;)
COMMIT(fewer_src, call->num_src = 2; call->num_dst = 3;)
COMMIT(fewer_dst, call->num_src = 3; call->num_dst = 2;)
COMMIT(batch_one, call->dst.batch_index = 1;)
COMMIT(batch_huge, call->dst.batch_index = UINT32_MAX;)
COMMIT(src_below, call->param.src_layer_range[0] = -2;)
COMMIT(dst_reversed, call->param.dst_layer_range[0] = 1; call->param.dst_layer_range[1] = 0;)
COMMIT(no_tensors_per_layer, call->param.tensor_num_per_layer = 0;)
COMMIT(many_tensors_per_layer, call->param.tensor_num_per_layer = 256;)
COMMIT(unequal_lengths, call->param = layers(0, 0, 0, 1, call->param.tensor_num_per_layer);)
COMMIT(no_tensors, call->desc.num_tensors = 0;)
COMMIT(two_devices, call->dd = call->two_devices->dd;)
COMMIT(role_decoder, call->dd = call->bed->decoder.dd;)
COMMIT(role_mix, call->dd = call->bed->mix.dd;)
COMMIT(local_unknown, call->src.cache_id = NO_CACHE;)
COMMIT(src_layer, call->param = layers(2, 2, 0, 0, 2);)
COMMIT(dst_layer, call->param = layers(0, 0, 2, 2, 2);)
COMMIT(indivisible, call->param = layers(0, 0, 0, 0, 3);)
COMMIT(src_end, call->src_blocks[2] = SLOTS;)
COMMIT(src_huge, call->src_blocks[2] = UINT64_MAX;)
COMMIT(not_linked, call->dst.cluster_id = NOBODY;)
COMMIT(remote_unknown, call->dst.cache_id = NO_CACHE;)
COMMIT(remote_negative, call->dst.cache_id = -7;)
COMMIT(stride_wide, call->dst.cache_id = call->bed->wide_on_decoder.cache.cache_id;)
COMMIT(stride_narrow, call->dst.cache_id = call->bed->narrow_on_decoder.cache.cache_id;)
COMMIT(dst_end, call->dst_blocks[1] = SLOTS;)
COMMIT(dst_huge, call->dst_blocks[1] = UINT64_MAX;)
COMMIT(dst_late, call->dst_blocks[2] = SLOTS + 1;)
COMMIT(remote_layer, call->dst.cache_id = call->bed->few_on_decoder.cache.cache_id;)

enum { RANGES = 1, REMOTE = 2, NUMBER = 4, DEVICES = 8, COUNT = 16 };

static const struct breach breaches[] = {
    {1, LLM_FAILED, "not initialized", 0, not_initialized},
    {2, LLM_PARAM_INVALID, "placement", 0, placement_host},
    {3, LLM_PARAM_INVALID, "src_blocks is empty", COUNT, no_blocks},
    {3, LLM_PARAM_INVALID, "src_blocks is empty", COUNT, no_blocks_at_all},
    {4, LLM_PARAM_INVALID, "src_blocks has 2 entries, dst_blocks 3", COUNT, fewer_src},
    {4, LLM_PARAM_INVALID, "src_blocks has 3 entries, dst_blocks 2", COUNT, fewer_dst},
    {5, LLM_PARAM_INVALID, "batch_index is 1", 0, batch_one},
    {5, LLM_PARAM_INVALID, "batch_index is 4294967295", 0, batch_huge},
    {6, LLM_PARAM_INVALID, "src_layer_range is", 0, src_below},
    {6, LLM_PARAM_INVALID, "dst_layer_range is", 0, dst_reversed},
    {6, LLM_PARAM_INVALID, "tensor_num_per_layer is 0", 0, no_tensors_per_layer},
    {6, LLM_PARAM_INVALID, "tensor_num_per_layer is 256", 0, many_tensors_per_layer},
    {6, LLM_PARAM_INVALID, "different lengths", 0, unequal_lengths},
    {6, LLM_PARAM_INVALID, "num_tensors of the source is 0", RANGES | NUMBER, no_tensors},
    {7, LLM_FEATURE_NOT_ENABLED, "one device", DEVICES, two_devices},
    {7, LLM_PARAM_INVALID, "Decoder", DEVICES, role_decoder},
    {7, LLM_PARAM_INVALID, "Mix", DEVICES, role_mix},
    {7, LLM_KV_CACHE_NOT_EXIST, "local cache", 0, local_unknown},
    {7, LLM_PARAM_INVALID, "source layer 2", RANGES, src_layer},
    {7, LLM_PARAM_INVALID, "dst_layer_range {2, 2} is out of range", RANGES, dst_layer},
    {7, LLM_PARAM_INVALID, "doesn't divide the cache's", RANGES, indivisible},
    {8, LLM_PARAM_INVALID, "src_blocks[2] is 4", 0, src_end},
    {8, LLM_PARAM_INVALID, "src_blocks[2] is 18446744073709551615", 0, src_huge},
    {9, LLM_NOT_YET_LINK, "no link", 0, not_linked},
    {10, LLM_KV_CACHE_NOT_EXIST, "no cache with id 987654", REMOTE, remote_unknown},
    {10, LLM_KV_CACHE_NOT_EXIST, "no cache with id -7", REMOTE, remote_negative},
    {11, LLM_PARAM_INVALID, "block sizes differ", REMOTE, stride_wide},
    {11, LLM_PARAM_INVALID, "block sizes differ", REMOTE, stride_narrow},
    {11, LLM_PARAM_INVALID, "remote block 4 is out of range", REMOTE, dst_end},
    {11, LLM_PARAM_INVALID, "is out of range", REMOTE, dst_huge},
    {11, LLM_PARAM_INVALID, "remote block 5 is out of range", REMOTE, dst_late},
    {11, LLM_PARAM_INVALID, "remote tensor", REMOTE | RANGES | NUMBER, remote_layer},
};

static void
prove(void **state, unsigned check)
{
    struct bed *bed = *state;
    struct party wide;
    struct party_options options = {.num_devices = 2};
    struct call call = {.bed = bed, .two_devices = &wide};
    struct proof proof = {
        .breaches = breaches,
        .num_breaches = COUNT_OF(breaches),
        .call = &call,
        .reset = reset,
        .run = run,
        .unharmed = unharmed,
    };
    open_party_with(&wide, 5, LLM_ROLE_DECODER, &options);
    prove_check(&proof, check);
    for (uint32_t t = 0; t < TENSORS; t++) {
        for (size_t i = 0; i < 3; i++)
            expect_slot(&bed->on_decoder, t, call.dst_blocks[i], &bed->on_prompt, t,
                        call.src_blocks[i], STRIDE);
    }
    assert_bed(bed);
    close_party(&wide);
}

PROVE(conformance_8_5_check_01_not_initialized_is_failed, 1)
PROVE(conformance_8_5_check_02_placement_host_is_param_invalid, 2)
PROVE(conformance_8_5_check_03_empty_src_blocks_are_param_invalid, 3)
PROVE(conformance_8_5_check_04_lists_of_unequal_length_are_param_invalid, 4)
PROVE(conformance_8_5_check_05_batch_index_other_than_0_is_param_invalid, 5)
PROVE(conformance_8_5_check_06_bad_ext_param_is_param_invalid, 6)
PROVE(conformance_8_5_check_07_devices_role_cache_and_layers_as_push_kv_cache, 7)
PROVE(conformance_8_5_check_08_src_block_out_of_range_is_param_invalid, 8)
PROVE(conformance_8_5_check_09_no_link_is_not_yet_link, 9)
PROVE(conformance_8_5_check_10_unknown_remote_cache_is_answered_and_link_kept, 10)
PROVE(conformance_8_5_check_11_remote_block_stride_or_layers_out_of_range_are_param_invalid, 11)

static void
push_pairs(struct bed *bed, const uint64_t *src_blocks, const uint64_t *dst_blocks, size_t count)
{
    llm_cache_index to = index_of(&bed->decoder, &bed->on_decoder, 0);
    assert_ok(llm_push_kv_blocks(bed->prompt.dd, &bed->on_prompt.cache, &to, src_blocks, count,
                                 dst_blocks, count, NULL));
    for (uint32_t t = 0; t < TENSORS; t++) {
        for (size_t i = 0; i < count; i++)
            expect_slot(&bed->on_decoder, t, dst_blocks[i], &bed->on_prompt, t, src_blocks[i],
                        STRIDE);
    }
    assert_bed(bed);
}

static void
conformance_8_5_rule_01_every_dst_block_is_checked_against_the_remote_shape(void **state)
{
    struct bed *bed = *state;
    llm_cache_index to = index_of(&bed->decoder, &bed->on_decoder, 0);
    // A later, larger index must not hide behind an earlier one.
    for (size_t at = 0; at < SLOTS; at++) {
        uint64_t dst_blocks[SLOTS] = {0, 1, 2, 3};
        dst_blocks[at] = SLOTS + at;
        assert_status_says(llm_push_kv_blocks(bed->prompt.dd, &bed->on_prompt.cache, &to,
                                              (uint64_t[]){0, 1, 2, 3}, SLOTS, dst_blocks, SLOTS,
                                              NULL),
                           LLM_PARAM_INVALID, "is out of range");
        assert_bed(bed);
    }
    assert_link_works(bed);
}

static void
conformance_8_5_rule_02_pairs_in_any_order(void **state)
{
    struct bed *bed = *state;
    push_pairs(bed, (uint64_t[]){0, 1, 2, 3}, (uint64_t[]){0, 1, 2, 3}, 4);
    fill_kv(&bed->on_prompt, 1);
    push_pairs(bed, (uint64_t[]){3, 2, 1, 0}, (uint64_t[]){0, 1, 2, 3}, 4);
    fill_kv(&bed->on_prompt, 2);
    push_pairs(bed, (uint64_t[]){2, 3, 0}, (uint64_t[]){1, 2, 0}, 3);
    fill_kv(&bed->on_prompt, 3);
    push_pairs(bed, (uint64_t[]){2, 2, 2, 2}, (uint64_t[]){3, 2, 1, 0}, 4);
}

static const struct CMUnitTest tests[] = {
    PUSH_TEST(conformance_8_5_check_01_not_initialized_is_failed),
    PUSH_TEST(conformance_8_5_check_02_placement_host_is_param_invalid),
    PUSH_TEST(conformance_8_5_check_03_empty_src_blocks_are_param_invalid),
    PUSH_TEST(conformance_8_5_check_04_lists_of_unequal_length_are_param_invalid),
    PUSH_TEST(conformance_8_5_check_05_batch_index_other_than_0_is_param_invalid),
    PUSH_TEST(conformance_8_5_check_06_bad_ext_param_is_param_invalid),
    PUSH_TEST(conformance_8_5_check_07_devices_role_cache_and_layers_as_push_kv_cache),
    PUSH_TEST(conformance_8_5_check_08_src_block_out_of_range_is_param_invalid),
    PUSH_TEST(conformance_8_5_check_09_no_link_is_not_yet_link),
    PUSH_TEST(conformance_8_5_check_10_unknown_remote_cache_is_answered_and_link_kept),
    PUSH_TEST(
        conformance_8_5_check_11_remote_block_stride_or_layers_out_of_range_are_param_invalid),
    PUSH_TEST(conformance_8_5_rule_01_every_dst_block_is_checked_against_the_remote_shape),
    PUSH_TEST(conformance_8_5_rule_02_pairs_in_any_order),
};
CONFORMANCE_MAIN("8.5 PushKvBlocks", tests)

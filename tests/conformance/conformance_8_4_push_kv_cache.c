// §8.4 PushKvCache.
#include "bed.h"

struct call {
    struct bed *bed;
    struct party *two_devices;
    llm_datadist *dd;
    llm_cache src;
    llm_cache_desc desc;
    llm_cache_index dst;
    uint32_t batch_index;
    int64_t size;
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
        .dst = index_of(&bed->decoder, &bed->on_decoder, 3),
        .batch_index = 1,
        .size = -1,
        .param = layers(-1, -1, -1, -1, 2),
    };
    call->src.desc = &call->desc;
}

static llm_status
run(void *arg)
{
    struct call *call = arg;
    return llm_push_kv_cache(call->dd, &call->src, &call->dst, call->batch_index, call->size,
                             &call->param);
}

static void
unharmed(void *arg)
{
    struct call *call = arg;
    assert_bed(call->bed);
}

COMMIT(not_initialized, call->dd = call->bed->blank;)
COMMIT(placement_host, call->desc.placement = LLM_PLACEMENT_HOST;)
COMMIT(size_positive, call->size = STRIDE;)
COMMIT(size_zero, call->size = 0;)
COMMIT(size_minus_two, call->size = -2;)
COMMIT(src_below, call->param.src_layer_range[0] = -2;)
COMMIT(src_reversed, call->param.src_layer_range[0] = 1; call->param.src_layer_range[1] = 0;)
COMMIT(dst_below, call->param.dst_layer_range[0] = -2;)
COMMIT(dst_reversed, call->param.dst_layer_range[0] = 1; call->param.dst_layer_range[1] = 0;)
COMMIT(no_tensors_per_layer, call->param.tensor_num_per_layer = 0;)
COMMIT(many_tensors_per_layer, call->param.tensor_num_per_layer = 256;)
COMMIT(unequal_lengths, call->param = layers(0, 0, 0, 1, call->param.tensor_num_per_layer);)
COMMIT(default_against_two, call->param = layers(-1, -1, 0, 1, call->param.tensor_num_per_layer);)
COMMIT(no_tensors, call->desc.num_tensors = 0;)
COMMIT(two_devices, call->dd = call->two_devices->dd;)
COMMIT(role_decoder, call->dd = call->bed->decoder.dd;)
COMMIT(role_mix, call->dd = call->bed->mix.dd;)
COMMIT(local_unknown, call->src.cache_id = NO_CACHE;)
COMMIT(local_zero, call->src.cache_id = 0;)
COMMIT(local_negative, call->src.cache_id = -1;)
COMMIT(batch_end, call->batch_index = SLOTS;)
COMMIT(batch_huge, call->batch_index = UINT32_MAX;)
COMMIT(src_layer, call->param = layers(2, 2, 0, 0, 2);)
COMMIT(src_layer_second, call->param = layers(1, 2, 0, 1, 2);)
COMMIT(both_layers, call->param = layers(2, 2, 2, 2, 2);)
COMMIT(src_layer_huge, call->param = layers(INT32_MAX, INT32_MAX, 0, 0, 2);)
COMMIT(dst_layer, call->param = layers(0, 0, 2, 2, 2);)
COMMIT(dst_layer_default, call->param = layers(0, 0, -1, -1, 2);)
COMMIT(one_layer_too_many, call->desc.num_tensors = TENSORS + 1;)
COMMIT(indivisible, call->param = layers(0, 0, 0, 0, 3);)
COMMIT(indivisible_more, call->param = layers(0, 0, 0, 0, 5);)
COMMIT(not_linked, call->dst.cluster_id = NOBODY;)
COMMIT(remote_unknown, call->dst.cache_id = NO_CACHE;)
COMMIT(remote_zero, call->dst.cache_id = 0;)
COMMIT(remote_negative, call->dst.cache_id = -7;)
COMMIT(remote_batch_end, call->dst.batch_index = SLOTS;)
COMMIT(remote_batch_huge, call->dst.batch_index = UINT32_MAX;)
COMMIT(remote_stride, call->dst.cache_id = call->bed->narrow_on_decoder.cache.cache_id;)
COMMIT(remote_layer, call->dst.cache_id = call->bed->few_on_decoder.cache.cache_id;)

enum { RANGES = 1, REMOTE = 2, NUMBER = 4, DEVICES = 8 };

static const struct breach breaches[] = {
    {1, LLM_FAILED, "not initialized", 0, not_initialized},
    {2, LLM_PARAM_INVALID, "placement", 0, placement_host},
    {3, LLM_PARAM_INVALID, "size is 64", 0, size_positive},
    {3, LLM_PARAM_INVALID, "size is 0", 0, size_zero},
    {3, LLM_PARAM_INVALID, "size is -2", 0, size_minus_two},
    {4, LLM_PARAM_INVALID, "src_layer_range is", 0, src_below},
    {4, LLM_PARAM_INVALID, "src_layer_range is", 0, src_reversed},
    {4, LLM_PARAM_INVALID, "dst_layer_range is", 0, dst_below},
    {4, LLM_PARAM_INVALID, "dst_layer_range is", 0, dst_reversed},
    {4, LLM_PARAM_INVALID, "tensor_num_per_layer is 0", 0, no_tensors_per_layer},
    {4, LLM_PARAM_INVALID, "tensor_num_per_layer is 256", 0, many_tensors_per_layer},
    {4, LLM_PARAM_INVALID, "different lengths", 0, unequal_lengths},
    {4, LLM_PARAM_INVALID, "different lengths", 0, default_against_two},
    {5, LLM_PARAM_INVALID, "num_tensors of the source is 0", RANGES | NUMBER, no_tensors},
    {6, LLM_FEATURE_NOT_ENABLED, "one device", DEVICES, two_devices},
    {7, LLM_PARAM_INVALID, "Decoder", DEVICES, role_decoder},
    {7, LLM_PARAM_INVALID, "Mix", DEVICES, role_mix},
    {8, LLM_KV_CACHE_NOT_EXIST, "local cache", 0, local_unknown},
    {8, LLM_KV_CACHE_NOT_EXIST, "local cache", 0, local_zero},
    {8, LLM_KV_CACHE_NOT_EXIST, "local cache", 0, local_negative},
    {9, LLM_PARAM_INVALID, "batch_index is 4", 0, batch_end},
    {9, LLM_PARAM_INVALID, "batch_index is 4294967295", 0, batch_huge},
    {10, LLM_PARAM_INVALID, "source layer 2", RANGES, src_layer},
    {10, LLM_PARAM_INVALID, "source layer 2", RANGES, src_layer_second},
    {10, LLM_PARAM_INVALID, "source layer 2", RANGES, both_layers},
    {10, LLM_PARAM_INVALID, "source layer 2147483647", RANGES, src_layer_huge},
    {10, LLM_PARAM_INVALID, "dst_layer_range {2, 2} is out of range", RANGES, dst_layer},
    {10, LLM_PARAM_INVALID, "dst_layer_range {-1, -1} is out of range", RANGES, dst_layer_default},
    {10, LLM_PARAM_INVALID, "source layer 2", RANGES | NUMBER, one_layer_too_many},
    {11, LLM_PARAM_INVALID, "doesn't divide the cache's", RANGES, indivisible},
    {11, LLM_PARAM_INVALID, "doesn't divide the cache's", RANGES, indivisible_more},
    {12, LLM_NOT_YET_LINK, "no link", 0, not_linked},
    {13, LLM_KV_CACHE_NOT_EXIST, "no cache with id 987654", REMOTE, remote_unknown},
    {13, LLM_KV_CACHE_NOT_EXIST, "no cache with id 0", REMOTE, remote_zero},
    {13, LLM_KV_CACHE_NOT_EXIST, "no cache with id -7", REMOTE, remote_negative},
    {13, LLM_KV_CACHE_NOT_EXIST, "batch_index is 4", 0, remote_batch_end},
    {13, LLM_KV_CACHE_NOT_EXIST, "batch_index is 4294967295", 0, remote_batch_huge},
    {14, LLM_PARAM_INVALID, "remote stride", REMOTE, remote_stride},
    {14, LLM_PARAM_INVALID, "remote tensor", REMOTE | RANGES | NUMBER, remote_layer},
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
    // Not a Prompt: the number of devices comes before the role.
    open_party_with(&wide, 5, LLM_ROLE_DECODER, &options);
    prove_check(&proof, check);
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->on_decoder, t, 3, &bed->on_prompt, t, 1, STRIDE);
    assert_bed(bed);
    close_party(&wide);
}

PROVE(conformance_8_4_check_01_not_initialized_is_failed, 1)
PROVE(conformance_8_4_check_02_placement_host_is_param_invalid, 2)
PROVE(conformance_8_4_check_03_size_other_than_default_is_param_invalid, 3)
PROVE(conformance_8_4_check_04_bad_ext_param_is_param_invalid, 4)
PROVE(conformance_8_4_check_05_all_layers_of_no_tensors_are_param_invalid, 5)
PROVE(conformance_8_4_check_06_several_devices_are_feature_not_enabled, 6)
PROVE(conformance_8_4_check_07_other_roles_than_prompt_are_param_invalid, 7)
PROVE(conformance_8_4_check_08_unknown_local_cache_is_kv_cache_not_exist, 8)
PROVE(conformance_8_4_check_09_src_batch_index_out_of_range_is_param_invalid, 9)
PROVE(conformance_8_4_check_10_layer_out_of_the_local_range_is_param_invalid, 10)
PROVE(conformance_8_4_check_11_indivisible_number_of_tensors_is_param_invalid, 11)
PROVE(conformance_8_4_check_12_no_link_is_not_yet_link, 12)
PROVE(conformance_8_4_check_13_missing_remote_cache_or_batch_is_answered_and_link_kept, 13)
PROVE(conformance_8_4_check_14_remote_stride_or_layers_too_small_is_param_invalid, 14)

static llm_status
push(struct bed *bed, const struct kv *src, uint32_t src_slot, const struct kv *dst,
     uint32_t dst_slot, const llm_kv_cache_ext_param *param)
{
    llm_cache_index to = index_of(&bed->decoder, dst, dst_slot);
    return llm_push_kv_cache(bed->prompt.dd, &src->cache, &to, src_slot, -1, param);
}

static void
conformance_8_4_rule_01_copies_the_slot_of_every_tensor(void **state)
{
    struct bed *bed = *state;
    for (uint32_t from = 0; from < SLOTS; from++) {
        for (uint32_t to = 0; to < SLOTS; to++) {
            fill_kv(&bed->on_prompt, from * 100 + to);
            assert_ok(push(bed, &bed->on_prompt, from, &bed->on_decoder, to, NULL));
            for (uint32_t t = 0; t < TENSORS; t++)
                expect_slot(&bed->on_decoder, t, to, &bed->on_prompt, t, from, STRIDE);
            assert_bed(bed);
        }
    }
}

static void
conformance_8_4_rule_02_the_local_stride_must_fit_the_remote_one(void **state)
{
    struct bed *bed = *state;
    // Smaller: the start of the slot is written, the rest and the next slot are not.
    assert_ok(push(bed, &bed->on_prompt, 0, &bed->wide_on_decoder, 3, NULL));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->wide_on_decoder, t, 3, &bed->on_prompt, t, 0, STRIDE);
    assert_bed(bed);
    // Larger, though the tensor as a whole has room.
    assert_status(push(bed, &bed->wide_on_prompt, 0, &bed->on_decoder, 0, NULL), LLM_PARAM_INVALID);
    assert_bed(bed);
    assert_link_works(bed);
}

static void
conformance_8_4_rule_03_layers_beyond_the_local_number_cannot_be_addressed(void **state)
{
    struct bed *bed = *state;
    llm_kv_cache_ext_param beyond = layers(0, 0, 2, 2, 2);
    llm_kv_cache_ext_param within = layers(0, 0, 1, 1, 2);
    assert_status(push(bed, &bed->on_prompt, 0, &bed->many_on_decoder, 0, &beyond),
                  LLM_PARAM_INVALID);
    assert_bed(bed);
    assert_ok(push(bed, &bed->on_prompt, 0, &bed->many_on_decoder, 1, &within));
    expect_slot(&bed->many_on_decoder, 2, 1, &bed->on_prompt, 0, 0, STRIDE);
    expect_slot(&bed->many_on_decoder, 3, 1, &bed->on_prompt, 1, 0, STRIDE);
    assert_bed(bed);
}

static void
conformance_8_4_rule_04_negative_remote_id_is_kv_cache_not_exist(void **state)
{
    struct bed *bed = *state;
    llm_cache_index to = index_of(&bed->decoder, &bed->on_decoder, 0);
    to.cache_id = -1;
    assert_status(llm_push_kv_cache(bed->prompt.dd, &bed->on_prompt.cache, &to, 0, -1, NULL),
                  LLM_KV_CACHE_NOT_EXIST);
    assert_bed(bed);
    assert_link_works(bed);
}

static void
conformance_8_4_rule_05_a_push_right_after_link_works(void **state)
{
    struct bed *bed = *state;
    for (unsigned i = 0; i < rounds(20); i++) {
        unlink_parties(&bed->decoder, &bed->prompt);
        assert_false(is_linked(&bed->prompt, bed->decoder.id));
        link_parties(&bed->decoder, &bed->prompt);
        assert_ok(push(bed, &bed->on_prompt, i % SLOTS, &bed->on_decoder, 0, NULL));
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_slot(&bed->on_decoder, t, 0, &bed->on_prompt, t, i % SLOTS, STRIDE);
        assert_bed(bed);
    }
}

static void
conformance_8_4_rule_06_a_large_slot_arrives_whole(void **state)
{
    struct bed *bed = *state;
    struct kv src;
    struct kv dst;
    open_bytes(&src, &bed->prompt, 2, 2, 3000017);
    open_bytes(&dst, &bed->decoder, 2, 2, 3000017);
    assert_ok(push(bed, &src, 1, &dst, 0, NULL));
    for (uint32_t t = 0; t < 2; t++)
        expect_slot(&dst, t, 0, &src, t, 1, 3000017);
    assert_kv(&dst);
    assert_kv(&src);
    assert_bed(bed);
    forget_kv(&src);
    forget_kv(&dst);
}

static const struct CMUnitTest tests[] = {
    PUSH_TEST(conformance_8_4_check_01_not_initialized_is_failed),
    PUSH_TEST(conformance_8_4_check_02_placement_host_is_param_invalid),
    PUSH_TEST(conformance_8_4_check_03_size_other_than_default_is_param_invalid),
    PUSH_TEST(conformance_8_4_check_04_bad_ext_param_is_param_invalid),
    PUSH_TEST(conformance_8_4_check_05_all_layers_of_no_tensors_are_param_invalid),
    PUSH_TEST(conformance_8_4_check_06_several_devices_are_feature_not_enabled),
    PUSH_TEST(conformance_8_4_check_07_other_roles_than_prompt_are_param_invalid),
    PUSH_TEST(conformance_8_4_check_08_unknown_local_cache_is_kv_cache_not_exist),
    PUSH_TEST(conformance_8_4_check_09_src_batch_index_out_of_range_is_param_invalid),
    PUSH_TEST(conformance_8_4_check_10_layer_out_of_the_local_range_is_param_invalid),
    PUSH_TEST(conformance_8_4_check_11_indivisible_number_of_tensors_is_param_invalid),
    PUSH_TEST(conformance_8_4_check_12_no_link_is_not_yet_link),
    PUSH_TEST(conformance_8_4_check_13_missing_remote_cache_or_batch_is_answered_and_link_kept),
    PUSH_TEST(conformance_8_4_check_14_remote_stride_or_layers_too_small_is_param_invalid),
    PUSH_TEST(conformance_8_4_rule_01_copies_the_slot_of_every_tensor),
    PUSH_TEST(conformance_8_4_rule_02_the_local_stride_must_fit_the_remote_one),
    PUSH_TEST(conformance_8_4_rule_03_layers_beyond_the_local_number_cannot_be_addressed),
    PUSH_TEST(conformance_8_4_rule_04_negative_remote_id_is_kv_cache_not_exist),
    PUSH_TEST(conformance_8_4_rule_05_a_push_right_after_link_works),
    PUSH_TEST(conformance_8_4_rule_06_a_large_slot_arrives_whole),
};
CONFORMANCE_MAIN("8.4 PushKvCache", tests)

// §8.2 PullKvCache.
#include "bed.h"

struct call {
    struct bed *bed;
    llm_datadist *dd;
    llm_cache_index src;
    llm_cache dst;
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
        .dd = bed->decoder.dd,
        .src = index_of(&bed->prompt, &bed->on_prompt, 3),
        .dst = bed->on_decoder.cache,
        .batch_index = 1,
        .size = -1,
        .param = layers(-1, -1, -1, -1, 2),
    };
}

static llm_status
run(void *arg)
{
    struct call *call = arg;
    return llm_pull_kv_cache(call->dd, &call->src, &call->dst, call->batch_index, call->size,
                             &call->param);
}

static void
unharmed(void *arg)
{
    struct call *call = arg;
    assert_bed(call->bed);
}

// ---- the breaches ----

COMMIT(not_initialized, call->dd = call->bed->blank;)
COMMIT(no_instance, call->dd = NULL;)
COMMIT(size_zero, call->size = 0;)
COMMIT(size_minus_two, call->size = -2;)
COMMIT(size_least, call->size = INT64_MIN;)
COMMIT(src_below, call->param.src_layer_range[0] = -2;)
COMMIT(src_reversed, call->param.src_layer_range[0] = 1; call->param.src_layer_range[1] = 0;)
COMMIT(src_second_default, call->param.src_layer_range[0] = 0; call->param.src_layer_range[1] = -1;)
COMMIT(dst_below, call->param.dst_layer_range[0] = -2;)
COMMIT(dst_reversed, call->param.dst_layer_range[0] = 1; call->param.dst_layer_range[1] = 0;)
COMMIT(no_tensors_per_layer, call->param.tensor_num_per_layer = 0;)
COMMIT(many_tensors_per_layer, call->param.tensor_num_per_layer = 256;)
COMMIT(unequal_lengths, call->param = layers(0, 0, 0, 1, call->param.tensor_num_per_layer);)
COMMIT(role_prompt, call->dd = call->bed->prompt.dd;)
COMMIT(role_mix, call->dd = call->bed->mix.dd;)
COMMIT(local_unknown, call->dst.cache_id = NO_CACHE;)
COMMIT(local_zero, call->dst.cache_id = 0;)
COMMIT(local_negative, call->dst.cache_id = -1;)
COMMIT(batch_end, call->batch_index = SLOTS;)
COMMIT(batch_huge, call->batch_index = UINT32_MAX;)
COMMIT(local_tensor, call->param = layers(0, 0, TENSORS, TENSORS, 2);)
COMMIT(local_tensor_huge, call->param = layers(0, 0, INT32_MAX, INT32_MAX, 255);)
COMMIT(indivisible, call->param = layers(0, 0, 0, 0, 3);)
COMMIT(indivisible_default, call->param = layers(-1, -1, -1, -1, 3);)
COMMIT(size_beyond_local, call->size = STRIDE * 2 + 1;)
COMMIT(size_huge, call->size = INT64_MAX;)
COMMIT(not_linked, call->src.cluster_id = NOBODY;)
COMMIT(remote_unknown, call->src.cache_id = NO_CACHE;)
COMMIT(remote_zero, call->src.cache_id = 0;)
COMMIT(remote_negative, call->src.cache_id = -7;)
COMMIT(remote_batch_end, call->src.batch_index = SLOTS;)
COMMIT(remote_batch_huge, call->src.batch_index = UINT32_MAX;)
COMMIT(size_beyond_remote, call->dst = call->bed->wide_on_decoder.cache; call->size = STRIDE + 1;)
COMMIT(stride_beyond_remote, call->dst = call->bed->wide_on_decoder.cache; call->size = -1;)
COMMIT(remote_tensor, call->param = layers(TENSORS / 2, TENSORS / 2, 0, 0, 2);)
COMMIT(remote_tensor_huge, call->param = layers(1 << 30, 1 << 30, 0, 0, 2);)
COMMIT(remote_tensor_greatest, call->param = layers(INT32_MAX, INT32_MAX, 0, 0, 2);)
COMMIT(remote_count_less, call->src.cache_id = call->bed->few_on_prompt.cache.cache_id;)
COMMIT(remote_count_more, call->src.cache_id = call->bed->many_on_prompt.cache.cache_id;)

enum { RANGES = 1, REMOTE = 2, LOCAL = 4, SIZE = 8 };

static const struct breach breaches[] = {
    {1, LLM_FAILED, "not initialized", 0, not_initialized},
    {1, LLM_FAILED, "NULL", 0, no_instance},
    {2, LLM_PARAM_INVALID, "size is 0", 0, size_zero},
    {2, LLM_PARAM_INVALID, "size is -2", 0, size_minus_two},
    {2, LLM_PARAM_INVALID, "size is -9223372036854775808", 0, size_least},
    {3, LLM_PARAM_INVALID, "src_layer_range is", 0, src_below},
    {3, LLM_PARAM_INVALID, "src_layer_range is", 0, src_reversed},
    {3, LLM_PARAM_INVALID, "src_layer_range is", 0, src_second_default},
    {3, LLM_PARAM_INVALID, "dst_layer_range is", 0, dst_below},
    {3, LLM_PARAM_INVALID, "dst_layer_range is", 0, dst_reversed},
    {3, LLM_PARAM_INVALID, "tensor_num_per_layer is 0", 0, no_tensors_per_layer},
    {3, LLM_PARAM_INVALID, "tensor_num_per_layer is 256", 0, many_tensors_per_layer},
    {3, LLM_PARAM_INVALID, "different lengths", 0, unequal_lengths},
    {4, LLM_PARAM_INVALID, "Prompt", 0, role_prompt},
    {4, LLM_PARAM_INVALID, "Mix", 0, role_mix},
    {5, LLM_KV_CACHE_NOT_EXIST, "local cache", LOCAL, local_unknown},
    {5, LLM_KV_CACHE_NOT_EXIST, "local cache", LOCAL, local_zero},
    {5, LLM_KV_CACHE_NOT_EXIST, "local cache", LOCAL, local_negative},
    {6, LLM_PARAM_INVALID, "batch_index is 4", 0, batch_end},
    {6, LLM_PARAM_INVALID, "batch_index is 4294967295", 0, batch_huge},
    {7, LLM_PARAM_INVALID, "the local cache has 4 tensors", RANGES, local_tensor},
    {7, LLM_PARAM_INVALID, "the local cache has 4 tensors", RANGES, local_tensor_huge},
    {7, LLM_PARAM_INVALID, "doesn't divide", RANGES, indivisible},
    {7, LLM_PARAM_INVALID, "doesn't divide", RANGES, indivisible_default},
    {8, LLM_PARAM_INVALID, "stride of the local cache", SIZE, size_beyond_local},
    {8, LLM_PARAM_INVALID, "stride of the local cache", SIZE, size_huge},
    {9, LLM_NOT_YET_LINK, "no link", 0, not_linked},
    {11, LLM_KV_CACHE_NOT_EXIST, "no cache with id 987654", REMOTE, remote_unknown},
    {11, LLM_KV_CACHE_NOT_EXIST, "no cache with id 0", REMOTE, remote_zero},
    {11, LLM_KV_CACHE_NOT_EXIST, "no cache with id -7", REMOTE, remote_negative},
    {12, LLM_KV_CACHE_NOT_EXIST, "batch_index is 4", 0, remote_batch_end},
    {12, LLM_KV_CACHE_NOT_EXIST, "batch_index is 4294967295", 0, remote_batch_huge},
    {13, LLM_PARAM_INVALID, "remote stride", SIZE, size_beyond_remote},
    {13, LLM_PARAM_INVALID, "remote stride", SIZE, stride_beyond_remote},
    {14, LLM_PARAM_INVALID, "remote tensor", RANGES, remote_tensor},
    {14, LLM_PARAM_INVALID, "remote tensor", RANGES, remote_tensor_huge},
    {14, LLM_PARAM_INVALID, "remote tensor", RANGES, remote_tensor_greatest},
    {14, LLM_PARAM_INVALID, "remote tensor", RANGES | REMOTE, remote_count_less},
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
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->on_decoder, t, 1, &bed->on_prompt, t, 3, STRIDE);
    assert_bed(bed);
}

PROVE(conformance_8_2_check_01_not_initialized_is_failed, 1)
PROVE(conformance_8_2_check_02_size_neither_default_nor_positive_is_param_invalid, 2)
PROVE(conformance_8_2_check_03_bad_ext_param_is_param_invalid, 3)
PROVE(conformance_8_2_check_04_other_roles_than_decoder_are_param_invalid, 4)
PROVE(conformance_8_2_check_05_unknown_local_cache_is_kv_cache_not_exist, 5)
PROVE(conformance_8_2_check_06_batch_index_out_of_range_is_param_invalid, 6)
PROVE(conformance_8_2_check_07_local_tensor_out_of_range_is_param_invalid, 7)
PROVE(conformance_8_2_check_08_size_beyond_the_local_stride_is_param_invalid, 8)
PROVE(conformance_8_2_check_09_no_link_is_not_yet_link, 9)
PROVE(conformance_8_2_check_11_unknown_remote_cache_is_kv_cache_not_exist, 11)
PROVE(conformance_8_2_check_12_remote_batch_index_out_of_range_is_kv_cache_not_exist, 12)
PROVE(conformance_8_2_check_13_size_beyond_the_remote_stride_is_param_invalid, 13)
PROVE(conformance_8_2_check_14_remote_tensor_out_of_range_is_param_invalid, 14)
PROVE(conformance_8_2_check_15_unequal_numbers_of_tensors_are_param_invalid, 15)

// ---- what it does ----

static llm_status
pull(struct bed *bed, const struct kv *src, uint32_t src_slot, struct kv *dst, uint32_t dst_slot,
     int64_t size)
{
    llm_cache_index from = index_of(&bed->prompt, src, src_slot);
    return llm_pull_kv_cache(bed->decoder.dd, &from, &dst->cache, dst_slot, size, NULL);
}

static void
conformance_8_2_rule_01_copies_the_slot_of_every_tensor_on_every_device(void **state)
{
    struct bed *bed = *state;
    for (uint32_t from = 0; from < SLOTS; from++) {
        for (uint32_t to = 0; to < SLOTS; to++) {
            fill_kv(&bed->on_prompt, from * 100 + to);
            assert_ok(pull(bed, &bed->on_prompt, from, &bed->on_decoder, to, -1));
            for (uint32_t t = 0; t < TENSORS; t++)
                expect_slot(&bed->on_decoder, t, to, &bed->on_prompt, t, from, STRIDE);
            assert_bed(bed);
        }
    }
}

static void
conformance_8_2_rule_02_default_size_is_the_local_stride_so_a_prefix_arrives(void **state)
{
    struct bed *bed = *state;
    assert_ok(pull(bed, &bed->wide_on_prompt, 2, &bed->on_decoder, 1, -1));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->on_decoder, t, 1, &bed->wide_on_prompt, t, 2, STRIDE);
    assert_bed(bed);
    // The other way round the default is more than there is.
    assert_status(pull(bed, &bed->narrow_on_prompt, 0, &bed->on_decoder, 1, -1), LLM_PARAM_INVALID);
    assert_bed(bed);
    assert_ok(pull(bed, &bed->narrow_on_prompt, 0, &bed->on_decoder, 1, STRIDE / 2));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->on_decoder, t, 1, &bed->narrow_on_prompt, t, 0, STRIDE / 2);
    assert_bed(bed);
}

static void
conformance_8_2_rule_03_only_sizes_in_bytes_are_compared_if_another_type_is_allowed(void **state)
{
    struct bed *bed = *state;
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    llm_cache_index from = index_of(&bed->prompt, &bed->on_prompt, 3);
    struct kv doubles;
    open_kv(&doubles, &bed->decoder, TENSORS, LLM_DT_DOUBLE, 9, STRIDE / 8);
    assert_status_says(pull(bed, &bed->on_prompt, 3, &doubles, 8, -1), LLM_PARAM_INVALID,
                       "data types differ");
    assert_kv(&doubles);
    param.allow_other_type = 1;
    assert_ok(llm_pull_kv_cache(bed->decoder.dd, &from, &doubles.cache, 8, -1, &param));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&doubles, t, 8, &bed->on_prompt, t, 3, STRIDE);
    assert_kv(&doubles);
    assert_bed(bed);
    forget_kv(&doubles);
}

static void
conformance_8_2_rule_04_a_smaller_size_leaves_the_rest_of_the_slot(void **state)
{
    struct bed *bed = *state;
    for (int64_t size = 1; size <= STRIDE; size += 21) {
        assert_ok(pull(bed, &bed->on_prompt, 0, &bed->on_decoder, 3, size));
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_slot(&bed->on_decoder, t, 3, &bed->on_prompt, t, 0, (size_t)size);
        assert_bed(bed);
    }
}

static void
conformance_8_2_rule_05_addresses_and_description_of_the_struct_are_ignored(void **state)
{
    struct bed *bed = *state;
    llm_cache_index from = index_of(&bed->prompt, &bed->on_prompt, 1);
    llm_cache bare = {.struct_size = sizeof(bare), .cache_id = bed->on_decoder.cache.cache_id};
    assert_ok(llm_pull_kv_cache(bed->decoder.dd, &from, &bare, 2, -1, NULL));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->on_decoder, t, 2, &bed->on_prompt, t, 1, STRIDE);
    assert_bed(bed);
}

static void
conformance_8_2_rule_06_a_large_slot_arrives_whole(void **state)
{
    struct bed *bed = *state;
    struct kv src;
    struct kv dst;
    open_bytes(&src, &bed->prompt, 2, 2, 1000003);
    open_bytes(&dst, &bed->decoder, 2, 2, 1000003);
    assert_ok(pull(bed, &src, 1, &dst, 0, -1));
    for (uint32_t t = 0; t < 2; t++)
        expect_slot(&dst, t, 0, &src, t, 1, 1000003);
    assert_kv(&dst);
    assert_kv(&src);
    assert_bed(bed);
    forget_kv(&src);
    forget_kv(&dst);
}

static void
conformance_8_2_rule_07_a_freed_remote_cache_is_kv_cache_not_exist(void **state)
{
    struct bed *bed = *state;
    assert_ok(pull(bed, &bed->many_on_prompt, 0, &bed->many_on_decoder, 0, -1));
    for (uint32_t t = 0; t < 6; t++)
        expect_slot(&bed->many_on_decoder, t, 0, &bed->many_on_prompt, t, 0, STRIDE);
    assert_ok(llm_deallocate_cache(bed->prompt.dd, bed->many_on_prompt.cache.cache_id));
    assert_status(pull(bed, &bed->many_on_prompt, 0, &bed->many_on_decoder, 1, -1),
                  LLM_KV_CACHE_NOT_EXIST);
    assert_kv(&bed->many_on_decoder);
    // The memory is the library's again; the model must not look.
    forget_kv(&bed->many_on_prompt);
    assert_ok(pull(bed, &bed->on_prompt, 0, &bed->on_decoder, 0, -1));
}

static const struct CMUnitTest tests[] = {
    BED_TEST(conformance_8_2_check_01_not_initialized_is_failed),
    BED_TEST(conformance_8_2_check_02_size_neither_default_nor_positive_is_param_invalid),
    BED_TEST(conformance_8_2_check_03_bad_ext_param_is_param_invalid),
    BED_TEST(conformance_8_2_check_04_other_roles_than_decoder_are_param_invalid),
    BED_TEST(conformance_8_2_check_05_unknown_local_cache_is_kv_cache_not_exist),
    BED_TEST(conformance_8_2_check_06_batch_index_out_of_range_is_param_invalid),
    BED_TEST(conformance_8_2_check_07_local_tensor_out_of_range_is_param_invalid),
    BED_TEST(conformance_8_2_check_08_size_beyond_the_local_stride_is_param_invalid),
    BED_TEST(conformance_8_2_check_09_no_link_is_not_yet_link),
    BED_TEST(conformance_8_2_check_11_unknown_remote_cache_is_kv_cache_not_exist),
    BED_TEST(conformance_8_2_check_12_remote_batch_index_out_of_range_is_kv_cache_not_exist),
    BED_TEST(conformance_8_2_check_13_size_beyond_the_remote_stride_is_param_invalid),
    BED_TEST(conformance_8_2_check_14_remote_tensor_out_of_range_is_param_invalid),
    BED_TEST(conformance_8_2_check_15_unequal_numbers_of_tensors_are_param_invalid),
    BED_TEST(conformance_8_2_rule_01_copies_the_slot_of_every_tensor_on_every_device),
    BED_TEST(conformance_8_2_rule_02_default_size_is_the_local_stride_so_a_prefix_arrives),
    BED_TEST(conformance_8_2_rule_03_only_sizes_in_bytes_are_compared_if_another_type_is_allowed),
    BED_TEST(conformance_8_2_rule_04_a_smaller_size_leaves_the_rest_of_the_slot),
    BED_TEST(conformance_8_2_rule_05_addresses_and_description_of_the_struct_are_ignored),
    BED_TEST(conformance_8_2_rule_06_a_large_slot_arrives_whole),
    BED_TEST(conformance_8_2_rule_07_a_freed_remote_cache_is_kv_cache_not_exist),
};
CONFORMANCE_MAIN("8.2 PullKvCache", tests)

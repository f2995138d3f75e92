// §9 Local copies.
#include "suite.h"

// What both calls work on: caches of an instance, and host memory made by hand.
struct bed {
    struct party party; // a Mix: no role matters
    llm_datadist *blank;
    struct kv device;
    struct kv device_too;
    struct kv wide;
    struct kv host;
    struct kv host_too;
};

enum { TENSORS = 3, SLOTS = 4, STRIDE = 64 };

static int
set_up(void **state)
{
    struct bed *bed = calloc(1, sizeof(*bed));
    assert_non_null(bed);
    *state = bed;
    open_party(&bed->party, 1, LLM_ROLE_MIX);
    assert_ok(llm_create(2, LLM_ROLE_DECODER, &bed->blank));
    open_bytes(&bed->device, &bed->party, TENSORS, SLOTS, STRIDE);
    open_bytes(&bed->device_too, &bed->party, TENSORS, SLOTS + 2, STRIDE);
    open_bytes(&bed->wide, &bed->party, TENSORS, SLOTS, STRIDE * 2);
    make_bytes(&bed->host, LLM_PLACEMENT_HOST, suite.num_devices, TENSORS, SLOTS, STRIDE);
    make_bytes(&bed->host_too, LLM_PLACEMENT_HOST, suite.num_devices, TENSORS, SLOTS, STRIDE);
    return 0;
}

static void
check_bed(const struct bed *bed, const char *file, int line)
{
    check_kv(&bed->device, file, line);
    check_kv(&bed->device_too, file, line);
    check_kv(&bed->wide, file, line);
    check_kv(&bed->host, file, line);
    check_kv(&bed->host_too, file, line);
}
#define assert_bed(bed) check_bed((bed), __FILE__, __LINE__)

static int
tear_down(void **state)
{
    struct bed *bed = *state;
    close_party(&bed->party);
    llm_destroy(bed->blank);
    forget_kv(&bed->device);
    forget_kv(&bed->device_too);
    forget_kv(&bed->wide);
    forget_kv(&bed->host);
    forget_kv(&bed->host_too);
    free(bed);
    return 0;
}

// ---- the calls ----

enum { ADDRESSES_MAX = 32, BLOCKS_MAX = 4, LISTS_MAX = 3 };

struct side {
    llm_cache cache;
    llm_cache_desc desc;
    int64_t shape[2];
    uintptr_t addresses[ADDRESSES_MAX];
};

struct call {
    struct bed *bed;
    llm_datadist *dd;
    struct side src;
    struct side dst;
    uint32_t src_batch_index;
    uint32_t dst_batch_index;
    uint64_t offset;
    int64_t size;
    uint64_t src_blocks[BLOCKS_MAX];
    size_t num_src_blocks;
    uint64_t dst_blocks[LISTS_MAX][BLOCKS_MAX];
    size_t num_dst_blocks[LISTS_MAX];
    size_t num_lists;
};

static void
take(struct side *side, const struct kv *kv)
{
    side->desc = kv->desc;
    memcpy(side->shape, kv->shape, sizeof(side->shape));
    side->desc.shape = side->shape;
    memcpy(side->addresses, kv->addresses, TENSORS * suite.num_devices * sizeof(uintptr_t));
    side->cache = kv->cache;
    side->cache.desc = &side->desc;
    side->cache.tensor_addrs = side->addresses;
}

static void
reset(void *arg)
{
    struct call *call = arg;
    struct bed *bed = call->bed;
    call->dd = bed->party.dd;
    take(&call->src, &bed->device);
    take(&call->dst, &bed->device_too);
    call->src_batch_index = 1;
    call->dst_batch_index = 2;
    call->offset = 0;
    call->size = -1;
    call->num_src_blocks = 2;
    call->src_blocks[0] = 3;
    call->src_blocks[1] = 0;
    call->num_lists = 2;
    for (size_t j = 0; j < LISTS_MAX; j++) {
        call->num_dst_blocks[j] = 2;
        call->dst_blocks[j][0] = j * 2;
        call->dst_blocks[j][1] = j * 2 + 1;
    }
}

static llm_status
run_cache(void *arg)
{
    struct call *call = arg;
    return llm_copy_kv_cache(call->dd, &call->src.cache, &call->dst.cache, call->src_batch_index,
                             call->dst_batch_index, call->offset, call->size);
}

static llm_status
run_blocks(void *arg)
{
    struct call *call = arg;
    const uint64_t *lists[LISTS_MAX];
    for (size_t j = 0; j < LISTS_MAX; j++)
        lists[j] = call->dst_blocks[j];
    return llm_copy_kv_blocks(call->dd, &call->src.cache, &call->dst.cache, call->src_blocks,
                              call->num_src_blocks, lists, call->num_dst_blocks, call->num_lists);
}

static void
unharmed(void *arg)
{
    struct call *call = arg;
    assert_bed(call->bed);
}

COMMIT(not_initialized, call->dd = call->bed->blank;)
COMMIT(src_host, call->src.desc.placement = LLM_PLACEMENT_HOST;)
COMMIT(src_dim_zero, call->src.shape[1] = 0;)
COMMIT(src_dim_negative, call->src.shape[0] = -1;)
COMMIT(src_overflow, call->src.shape[0] = INT64_MAX; call->src.shape[1] = 2;)
COMMIT(src_type, call->src.desc.data_type = LLM_DT_UNDEFINED;)
COMMIT(src_bytes_overflow, call->src.shape[0] = INT64_MAX; call->src.shape[1] = 1;
       call->src.desc.data_type = LLM_DT_STRING;)
COMMIT(src_addresses_fewer, call->src.cache.num_tensor_addrs--;)
COMMIT(src_addresses_more, call->src.cache.num_tensor_addrs++;)
COMMIT(src_address_zero, call->src.addresses[1] = 0;)
COMMIT(dst_dim_zero, call->dst.shape[1] = 0;)
COMMIT(dst_type, call->dst.desc.data_type = 42;)
COMMIT(dst_addresses_fewer, call->dst.cache.num_tensor_addrs--;)
COMMIT(dst_address_zero, call->dst.addresses[0] = 0;)
COMMIT(size_zero, call->size = 0;)
COMMIT(size_minus_two, call->size = -2;)
COMMIT(src_batch_end, call->src_batch_index = SLOTS;)
COMMIT(src_batch_huge, call->src_batch_index = UINT32_MAX;)
COMMIT(dst_batch_end, call->dst_batch_index = SLOTS + 2;)
COMMIT(dst_batch_huge, call->dst_batch_index = UINT32_MAX;)
COMMIT(offset_end, call->offset = STRIDE;)
COMMIT(offset_huge, call->offset = UINT64_MAX;)
COMMIT(offset_beyond_dst, take(&call->src, &call->bed->wide); call->offset = STRIDE;)
COMMIT(size_beyond_src, call->size = STRIDE + 1;)
COMMIT(size_beyond_rest, call->offset = 60; call->size = 5;)
COMMIT(size_huge, call->size = INT64_MAX;)
COMMIT(stride_beyond_dst, take(&call->src, &call->bed->wide);)
COMMIT(fewer_tensors, call->dst.desc.num_tensors--;
       call->dst.cache.num_tensor_addrs -= suite.num_devices;)
COMMIT(more_tensors, call->src.desc.num_tensors--;
       call->src.cache.num_tensor_addrs -= suite.num_devices;)

enum { SRC = 1, DST = 2, SPAN = 4, OFFSET = 8 };

static const struct breach cache_breaches[] = {
    {1, LLM_FAILED, "not initialized", 0, not_initialized},
    {2, LLM_PARAM_INVALID, "src is host memory", SRC, src_host},
    {3, LLM_PARAM_INVALID, "shape[1] is 0", SRC | SPAN, src_dim_zero},
    {3, LLM_PARAM_INVALID, "shape[0] is -1", SRC | SPAN, src_dim_negative},
    {3, LLM_PARAM_INVALID, "overflows", SRC | SPAN, src_overflow},
    {3, LLM_PARAM_INVALID, "data_type is 28", SRC | SPAN, src_type},
    {3, LLM_PARAM_INVALID, "overflows", SRC | SPAN, src_bytes_overflow},
    {3, LLM_PARAM_INVALID, "src: there are", SRC | SPAN, src_addresses_fewer},
    {3, LLM_PARAM_INVALID, "src: there are", SRC | SPAN, src_addresses_more},
    {3, LLM_PARAM_INVALID, "src: tensor address 1 is 0", SRC | SPAN, src_address_zero},
    {3, LLM_PARAM_INVALID, "shape[1] is 0", DST, dst_dim_zero},
    {3, LLM_PARAM_INVALID, "data_type is 42", DST, dst_type},
    {3, LLM_PARAM_INVALID, "dst: there are", DST, dst_addresses_fewer},
    {3, LLM_PARAM_INVALID, "dst: tensor address 0 is 0", DST, dst_address_zero},
    {4, LLM_PARAM_INVALID, "size is 0", 0, size_zero},
    {4, LLM_PARAM_INVALID, "size is -2", 0, size_minus_two},
    {5, LLM_PARAM_INVALID, "src_batch_index is 4", 0, src_batch_end},
    {5, LLM_PARAM_INVALID, "src_batch_index is 4294967295", 0, src_batch_huge},
    {6, LLM_PARAM_INVALID, "dst_batch_index is 6", 0, dst_batch_end},
    {6, LLM_PARAM_INVALID, "dst_batch_index is 4294967295", 0, dst_batch_huge},
    {7, LLM_PARAM_INVALID, "offset is 64, the stride of src is 64", SPAN | OFFSET, offset_end},
    {7, LLM_PARAM_INVALID, "the stride of src is 64", SPAN | OFFSET, offset_huge},
    {7, LLM_PARAM_INVALID, "the stride of dst is 64", SPAN | OFFSET, offset_beyond_dst},
    {8, LLM_PARAM_INVALID, "don't fit the stride of src", SPAN, size_beyond_src},
    {8, LLM_PARAM_INVALID, "don't fit the stride of src", SPAN | OFFSET, size_beyond_rest},
    {8, LLM_PARAM_INVALID, "don't fit the stride of src", SPAN, size_huge},
    {8, LLM_PARAM_INVALID, "don't fit the stride of dst", SPAN, stride_beyond_dst},
    {9, LLM_PARAM_INVALID, "tensors, dst has 2", SRC | DST | SPAN, fewer_tensors},
    {9, LLM_PARAM_INVALID, "src has 2 tensors", SRC | DST | SPAN, more_tensors},
};

static void
prove_with(struct bed *bed, const struct breach *breaches, size_t num_breaches, unsigned check,
           llm_status (*run)(void *call), struct call *call)
{
    struct proof proof = {
        .breaches = breaches,
        .num_breaches = num_breaches,
        .call = call,
        .reset = reset,
        .run = run,
        .unharmed = unharmed,
    };
    call->bed = bed;
    prove_check(&proof, check);
}

static void
prove(void **state, unsigned check)
{
    struct call call = {0};
    struct bed *bed = *state;
    prove_with(bed, cache_breaches, COUNT_OF(cache_breaches), check, run_cache, &call);
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->device_too, t, 2, &bed->device, t, 1, STRIDE);
    assert_bed(bed);
}

PROVE(conformance_9_3_check_01_not_initialized_is_failed, 1)
PROVE(conformance_9_3_check_02_host_source_is_param_invalid, 2)
PROVE(conformance_9_3_check_03_entry_check_of_src_then_dst_is_param_invalid, 3)
PROVE(conformance_9_3_check_04_size_neither_default_nor_positive_is_param_invalid, 4)
PROVE(conformance_9_3_check_05_src_batch_index_out_of_range_is_param_invalid, 5)
PROVE(conformance_9_3_check_06_dst_batch_index_out_of_range_is_param_invalid, 6)
PROVE(conformance_9_3_check_07_offset_beyond_a_stride_is_param_invalid, 7)
PROVE(conformance_9_3_check_08_bytes_beyond_a_stride_are_param_invalid, 8)
PROVE(conformance_9_2_rule_02_unequal_numbers_of_tensors_are_param_invalid, 9)

// ---- blocks ----

COMMIT(no_blocks, call->num_src_blocks = 0;)
COMMIT(no_lists, call->num_lists = 0;)
COMMIT(strides_differ, take(&call->dst, &call->bed->wide);)
COMMIT(both_host, take(&call->src, &call->bed->host); take(&call->dst, &call->bed->host_too);)
COMMIT(first_list_short, call->num_dst_blocks[0] = 1;)
COMMIT(last_list_long, call->num_dst_blocks[1] = 3;)
COMMIT(last_list_empty, call->num_dst_blocks[1] = 0;)
COMMIT(src_block_end, call->src_blocks[1] = SLOTS;)
COMMIT(src_block_huge, call->src_blocks[1] = UINT64_MAX;)
COMMIT(dst_block_end, call->dst_blocks[1][1] = SLOTS + 2;)
COMMIT(dst_block_huge, call->dst_blocks[1][1] = UINT64_MAX;)

enum { LISTS = 16 };

static const struct breach block_breaches[] = {
    {1, LLM_FAILED, "not initialized", 0, not_initialized},
    {2, LLM_PARAM_INVALID, "src_blocks is empty", LISTS, no_blocks},
    {3, LLM_PARAM_INVALID, "dst_blocks_list is empty", LISTS, no_lists},
    {4, LLM_PARAM_INVALID, "shape[1] is 0", SRC | SPAN, src_dim_zero},
    {4, LLM_PARAM_INVALID, "data_type is 28", SRC | SPAN, src_type},
    {4, LLM_PARAM_INVALID, "src: there are", SRC | SPAN, src_addresses_more},
    {4, LLM_PARAM_INVALID, "src: tensor address 1 is 0", SRC | SPAN, src_address_zero},
    {4, LLM_PARAM_INVALID, "shape[1] is 0", DST, dst_dim_zero},
    {4, LLM_PARAM_INVALID, "dst: there are", DST, dst_addresses_fewer},
    {5, LLM_PARAM_INVALID, "block sizes differ", DST, strides_differ},
    {6, LLM_PARAM_INVALID, "both host", SRC | DST, both_host},
    {7, LLM_PARAM_INVALID, "dst_blocks_list[0] has 1", LISTS, first_list_short},
    {7, LLM_PARAM_INVALID, "dst_blocks_list[1] has 3", LISTS, last_list_long},
    {7, LLM_PARAM_INVALID, "dst_blocks_list[1] has 0", LISTS, last_list_empty},
    {8, LLM_PARAM_INVALID, "a source block is 4", SRC | DST, src_block_end},
    {8, LLM_PARAM_INVALID, "a source block is 18446744073709551615", SRC | DST, src_block_huge},
    {8, LLM_PARAM_INVALID, "a destination block is 6", SRC | DST, dst_block_end},
    {8, LLM_PARAM_INVALID, "a destination block is 18446744073709551615", SRC | DST,
     dst_block_huge},
    {9, LLM_PARAM_INVALID, "tensors, dst has 2", SRC | DST, fewer_tensors},
    {9, LLM_PARAM_INVALID, "src has 2 tensors", SRC | DST, more_tensors},
};

static void
expect_lists(struct kv *dst, const struct kv *src, const struct call *call)
{
    for (uint32_t t = 0; t < TENSORS; t++) {
        for (size_t j = 0; j < call->num_lists; j++) {
            for (size_t k = 0; k < call->num_src_blocks; k++)
                expect_slot(dst, t, call->dst_blocks[j][k], src, t, call->src_blocks[k], STRIDE);
        }
    }
}

static void
prove_blocks(void **state, unsigned check)
{
    struct call call = {0};
    struct bed *bed = *state;
    prove_with(bed, block_breaches, COUNT_OF(block_breaches), check, run_blocks, &call);
    expect_lists(&bed->device_too, &bed->device, &call);
    assert_bed(bed);
}

#define PROVE_BLOCKS(name, check)                                                                  \
    static void name(void **state)                                                                 \
    {                                                                                              \
        prove_blocks(state, (check));                                                              \
    }

PROVE_BLOCKS(conformance_9_4_check_01_not_initialized_is_failed, 1)
PROVE_BLOCKS(conformance_9_4_check_02_empty_src_blocks_are_param_invalid, 2)
PROVE_BLOCKS(conformance_9_4_check_03_empty_dst_blocks_list_is_param_invalid, 3)
PROVE_BLOCKS(conformance_9_4_check_04_entry_check_of_src_then_dst_is_param_invalid, 4)
PROVE_BLOCKS(conformance_9_4_check_05_unequal_strides_are_param_invalid, 5)
PROVE_BLOCKS(conformance_9_4_check_06_host_to_host_is_param_invalid, 6)
PROVE_BLOCKS(conformance_9_4_check_07_group_of_another_size_is_param_invalid_and_none_copied, 7)
PROVE_BLOCKS(conformance_9_4_check_08_index_out_of_range_is_param_invalid_and_none_copied, 8)
PROVE_BLOCKS(conformance_9_4_rule_01_unequal_numbers_of_tensors_are_param_invalid, 9)

// ---- what they do ----

static llm_status
copy_cache(struct bed *bed, const struct kv *src, const struct kv *dst, uint32_t from, uint32_t to,
           uint64_t offset, int64_t size)
{
    return llm_copy_kv_cache(bed->party.dd, &src->cache, &dst->cache, from, to, offset, size);
}

static void
conformance_9_1_rule_01_copy_kv_cache_copies_from_devices_only(void **state)
{
    struct bed *bed = *state;
    assert_ok(copy_cache(bed, &bed->device, &bed->device_too, 0, 5, 0, -1));
    assert_ok(copy_cache(bed, &bed->device, &bed->host, 3, 1, 0, -1));
    for (uint32_t t = 0; t < TENSORS; t++) {
        expect_slot(&bed->device_too, t, 5, &bed->device, t, 0, STRIDE);
        expect_slot(&bed->host, t, 1, &bed->device, t, 3, STRIDE);
    }
    assert_bed(bed);
    assert_status(copy_cache(bed, &bed->host, &bed->device, 0, 0, 0, -1), LLM_PARAM_INVALID);
    assert_status(copy_cache(bed, &bed->host, &bed->host_too, 0, 0, 0, -1), LLM_PARAM_INVALID);
    assert_bed(bed);
}

static void
conformance_9_1_rule_02_copy_kv_blocks_copies_all_but_host_to_host(void **state)
{
    struct bed *bed = *state;
    struct kv *pairs[][2] = {{&bed->device, &bed->device_too},
                             {&bed->device, &bed->host},
                             {&bed->host_too, &bed->device}};
    struct call call = {.bed = bed};
    for (size_t i = 0; i < COUNT_OF(pairs); i++) {
        reset(&call);
        take(&call.src, pairs[i][0]);
        take(&call.dst, pairs[i][1]);
        assert_ok(run_blocks(&call));
        expect_lists(pairs[i][1], pairs[i][0], &call);
        assert_bed(bed);
    }
    take(&call.src, &bed->host);
    take(&call.dst, &bed->host_too);
    assert_status(run_blocks(&call), LLM_PARAM_INVALID);
    assert_bed(bed);
}

static void
conformance_9_2_rule_01_an_empty_shape_is_one_element_in_one_batch(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    call.src.desc.num_dims = 0;
    call.dst.desc.num_dims = 0;
    call.src.desc.data_type = call.dst.desc.data_type = LLM_DT_DOUBLE;
    call.src_batch_index = call.dst_batch_index = 0;
    assert_ok(run_cache(&call));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_copy(&bed->device_too, t, 0, &bed->device, t, 0, 8);
    assert_bed(bed);
    call.src_batch_index = 1;
    assert_status(run_cache(&call), LLM_PARAM_INVALID);
}

static void
conformance_9_2_rule_03_no_tensors_and_no_addresses_copy_nothing(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    call.src.desc.num_tensors = call.dst.desc.num_tensors = 0;
    call.src.cache.num_tensor_addrs = call.dst.cache.num_tensor_addrs = 0;
    assert_ok(run_cache(&call));
    assert_ok(run_blocks(&call));
    call.src.cache.tensor_addrs = call.dst.cache.tensor_addrs = NULL;
    assert_ok(run_cache(&call));
    assert_bed(bed);
}

static void
conformance_9_2_rule_04_address_0_is_param_invalid(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    for (size_t i = 0; i < TENSORS * suite.num_devices; i++) {
        reset(&call);
        call.src.addresses[i] = 0;
        assert_status_says(run_cache(&call), LLM_PARAM_INVALID, "tensor address");
        reset(&call);
        call.dst.addresses[i] = 0;
        assert_status_says(run_blocks(&call), LLM_PARAM_INVALID, "tensor address");
    }
    assert_bed(bed);
}

static void
conformance_9_2_rule_05_caches_made_by_hand_and_any_sized_type(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    for (int32_t type = 0; type <= 42; type++) {
        reset(&call);
        call.src.cache.cache_id = call.dst.cache.cache_id = -99;
        call.src.desc.data_type = call.dst.desc.data_type = type;
        // One element, up to 16 bytes, of each of 4 slots.
        call.src.shape[1] = call.dst.shape[1] = 1;
        size_t stride = ((size_t)SLOTS * llm_data_type_bits(type) + 7) / 8 / SLOTS;
        size_t dst_stride = ((size_t)(SLOTS + 2) * llm_data_type_bits(type) + 7) / 8 / (SLOTS + 2);
        if (llm_data_type_bits(type) == 0) {
            assert_status(run_cache(&call), LLM_PARAM_INVALID);
            continue;
        }
        assert_ok(run_cache(&call));
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_copy(&bed->device_too, t, 2 * dst_stride, &bed->device, t, stride, stride);
        assert_bed(bed);
    }
}

static void
conformance_9_3_rule_01_the_example_of_the_specification(void **state)
{
    struct bed *bed = *state;
    struct kv src;
    struct kv dst;
    open_kv(&src, &bed->party, 2, LLM_DT_INT32, 4, 4);
    open_kv(&dst, &bed->party, 2, LLM_DT_INT32, 4, 8);
    assert_ok(copy_cache(bed, &src, &dst, 1, 2, 0, -1));
    for (uint32_t t = 0; t < 2; t++)
        expect_copy(&dst, t, 16 * 4, &src, t, 4 * 4, 16);
    assert_kv(&dst);
    assert_ok(copy_cache(bed, &src, &dst, 2, 0, 4, 8));
    for (uint32_t t = 0; t < 2; t++)
        expect_copy(&dst, t, 1 * 4, &src, t, 9 * 4, 8);
    assert_kv(&dst);
    assert_kv(&src);
    assert_bed(bed);
    forget_kv(&src);
    forget_kv(&dst);
}

static void
conformance_9_3_rule_02_default_size_is_the_rest_of_the_source_slot(void **state)
{
    struct bed *bed = *state;
    for (uint64_t offset = 0; offset < STRIDE; offset += 9) {
        assert_ok(copy_cache(bed, &bed->device, &bed->wide, 1, 3, offset, -1));
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_copy(&bed->wide, t, 3 * STRIDE * 2 + offset, &bed->device, t, STRIDE + offset,
                        STRIDE - offset);
        assert_bed(bed);
    }
    // The source's, even where only a part would fit.
    assert_status(copy_cache(bed, &bed->wide, &bed->device, 0, 0, 0, -1), LLM_PARAM_INVALID);
    assert_ok(copy_cache(bed, &bed->wide, &bed->device, 0, 0, 0, STRIDE));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->device, t, 0, &bed->wide, t, 0, STRIDE);
    assert_bed(bed);
}

static void
conformance_9_3_rule_03_the_same_cache_on_both_sides(void **state)
{
    struct bed *bed = *state;
    assert_ok(copy_cache(bed, &bed->device, &bed->device, 0, 3, 0, -1));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->device, t, 3, &bed->device, t, 0, STRIDE);
    assert_bed(bed);
    // Onto itself.
    assert_ok(copy_cache(bed, &bed->device, &bed->device, 1, 1, 0, -1));
    assert_bed(bed);
}

static void
conformance_9_4_rule_02_one_source_list_to_each_destination_list(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    call.num_lists = 3;
    assert_ok(run_blocks(&call));
    expect_lists(&bed->device_too, &bed->device, &call);
    assert_bed(bed);
}

static void
conformance_9_4_rule_03_src_and_dst_may_be_the_same_cache(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    take(&call.dst, &bed->device);
    call.num_src_blocks = 1;
    call.num_lists = 2;
    call.src_blocks[0] = 0;
    for (size_t j = 0; j < 2; j++) {
        call.num_dst_blocks[j] = 1;
        call.dst_blocks[j][0] = j + 1;
    }
    assert_ok(run_blocks(&call));
    expect_lists(&bed->device, &bed->device, &call);
    assert_bed(bed);
}

static void
conformance_9_4_rule_04_the_numbers_of_blocks_may_differ(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    // 4 blocks here, 6 there; and back.
    assert_ok(run_blocks(&call));
    expect_lists(&bed->device_too, &bed->device, &call);
    take(&call.src, &bed->device_too);
    take(&call.dst, &bed->device);
    call.num_lists = 1;
    call.src_blocks[0] = 5;
    assert_ok(run_blocks(&call));
    expect_lists(&bed->device, &bed->device_too, &call);
    assert_bed(bed);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

static const struct CMUnitTest tests[] = {
    TEST(conformance_9_1_rule_01_copy_kv_cache_copies_from_devices_only),
    TEST(conformance_9_1_rule_02_copy_kv_blocks_copies_all_but_host_to_host),
    TEST(conformance_9_2_rule_01_an_empty_shape_is_one_element_in_one_batch),
    TEST(conformance_9_2_rule_02_unequal_numbers_of_tensors_are_param_invalid),
    TEST(conformance_9_2_rule_03_no_tensors_and_no_addresses_copy_nothing),
    TEST(conformance_9_2_rule_04_address_0_is_param_invalid),
    TEST(conformance_9_2_rule_05_caches_made_by_hand_and_any_sized_type),
    TEST(conformance_9_3_check_01_not_initialized_is_failed),
    TEST(conformance_9_3_check_02_host_source_is_param_invalid),
    TEST(conformance_9_3_check_03_entry_check_of_src_then_dst_is_param_invalid),
    TEST(conformance_9_3_check_04_size_neither_default_nor_positive_is_param_invalid),
    TEST(conformance_9_3_check_05_src_batch_index_out_of_range_is_param_invalid),
    TEST(conformance_9_3_check_06_dst_batch_index_out_of_range_is_param_invalid),
    TEST(conformance_9_3_check_07_offset_beyond_a_stride_is_param_invalid),
    TEST(conformance_9_3_check_08_bytes_beyond_a_stride_are_param_invalid),
    TEST(conformance_9_3_rule_01_the_example_of_the_specification),
    TEST(conformance_9_3_rule_02_default_size_is_the_rest_of_the_source_slot),
    TEST(conformance_9_3_rule_03_the_same_cache_on_both_sides),
    TEST(conformance_9_4_check_01_not_initialized_is_failed),
    TEST(conformance_9_4_check_02_empty_src_blocks_are_param_invalid),
    TEST(conformance_9_4_check_03_empty_dst_blocks_list_is_param_invalid),
    TEST(conformance_9_4_check_04_entry_check_of_src_then_dst_is_param_invalid),
    TEST(conformance_9_4_check_05_unequal_strides_are_param_invalid),
    TEST(conformance_9_4_check_06_host_to_host_is_param_invalid),
    TEST(conformance_9_4_check_07_group_of_another_size_is_param_invalid_and_none_copied),
    TEST(conformance_9_4_check_08_index_out_of_range_is_param_invalid_and_none_copied),
    TEST(conformance_9_4_rule_01_unequal_numbers_of_tensors_are_param_invalid),
    TEST(conformance_9_4_rule_02_one_source_list_to_each_destination_list),
    TEST(conformance_9_4_rule_03_src_and_dst_may_be_the_same_cache),
    TEST(conformance_9_4_rule_04_the_numbers_of_blocks_may_differ),
};
CONFORMANCE_MAIN("9 Local copies", tests)

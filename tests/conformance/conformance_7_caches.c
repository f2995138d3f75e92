// §7 Cache memory, and what §1 says about its layout.
#include "suite.h"

struct call {
    struct party *party;
    llm_datadist *blank;
    llm_datadist *dd;
    llm_cache_desc desc;
    int64_t shape[40];
    uintptr_t addresses[64];
    llm_cache cache;
};

static void
reset(void *arg)
{
    struct call *call = arg;
    call->dd = call->party->dd;
    for (size_t i = 0; i < COUNT_OF(call->shape); i++)
        call->shape[i] = 1;
    call->shape[0] = 4;
    call->shape[1] = 8;
    call->desc = (llm_cache_desc){
        .struct_size = sizeof(call->desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = 3,
        .data_type = LLM_DT_FLOAT16,
        .shape = call->shape,
        .num_dims = 2,
    };
    memset(call->addresses, 0x11, sizeof(call->addresses));
    call->cache = (llm_cache){
        .struct_size = sizeof(call->cache),
        .cache_id = SENTINEL,
        .tensor_addrs = call->addresses,
        .num_tensor_addrs = COUNT_OF(call->addresses),
    };
}

static llm_status
run(void *arg)
{
    struct call *call = arg;
    return llm_allocate_cache(call->dd, &call->desc, &call->cache);
}

// On failure the struct is as it was.
static void
unharmed(void *arg)
{
    struct call *call = arg;
    uintptr_t untouched;
    memset(&untouched, 0x11, sizeof(untouched));
    assert_int_equal(call->cache.cache_id, SENTINEL);
    assert_null(call->cache.desc);
    assert_int_equal(call->cache.num_tensor_addrs, COUNT_OF(call->addresses));
    for (size_t i = 0; i < COUNT_OF(call->addresses); i++)
        assert_true(call->addresses[i] == untouched);
}

COMMIT(not_initialized, call->dd = call->blank;)
COMMIT(no_tensors, call->desc.num_tensors = 0;)
COMMIT(placement_host, call->desc.placement = LLM_PLACEMENT_HOST;)
COMMIT(placement_other, call->desc.placement = 2;)
COMMIT(no_dims, call->desc.num_dims = 0;)
COMMIT(dims_32, call->desc.num_dims = 32;)
COMMIT(dim_zero, call->shape[1] = 0;)
COMMIT(dim_negative, call->shape[0] = -1;)
COMMIT(dims_overflow, call->shape[0] = INT64_MAX; call->shape[1] = 3;)
COMMIT(bytes_overflow, call->shape[0] = INT64_MAX; call->shape[1] = 1;
       call->desc.data_type = LLM_DT_DOUBLE;)
COMMIT(type_undefined, call->desc.data_type = LLM_DT_UNDEFINED;)
COMMIT(type_hole, call->desc.data_type = 5;)
COMMIT(type_unknown, call->desc.data_type = 43;)
COMMIT(too_large, call->shape[0] = (int64_t)1 << 40;)

enum { SHAPE = 1, TYPE = 2 };

static const struct breach breaches[] = {
    {1, LLM_FAILED, "not initialized", 0, not_initialized},
    {2, LLM_PARAM_INVALID, "num_tensors is 0", 0, no_tensors},
    {3, LLM_PARAM_INVALID, "placement is 0", 0, placement_host},
    {3, LLM_PARAM_INVALID, "placement is 2", 0, placement_other},
    {4, LLM_PARAM_INVALID, "0 dimensions", 0, no_dims},
    {4, LLM_PARAM_INVALID, "32 dimensions", 0, dims_32},
    {5, LLM_PARAM_INVALID, "shape[1] is 0", SHAPE, dim_zero},
    {5, LLM_PARAM_INVALID, "shape[0] is -1", SHAPE, dim_negative},
    {5, LLM_PARAM_INVALID, "overflows 64 bits", SHAPE, dims_overflow},
    {5, LLM_PARAM_INVALID, "overflows 64 bits", SHAPE | TYPE, bytes_overflow},
    {5, LLM_PARAM_INVALID, "data_type is 28", TYPE, type_undefined},
    {5, LLM_PARAM_INVALID, "data_type is 5", TYPE, type_hole},
    {5, LLM_PARAM_INVALID, "data_type is 43", TYPE, type_unknown},
    {6, LLM_DEVICE_OUT_OF_MEMORY, "no room", SHAPE, too_large},
};

static void
prove(void **state, unsigned check)
{
    struct party party;
    struct call call = {.party = &party};
    struct proof proof = {
        .breaches = breaches,
        .num_breaches = COUNT_OF(breaches),
        .call = &call,
        .reset = reset,
        .run = run,
        .unharmed = unharmed,
    };
    (void)state;
    open_party(&party, 1, LLM_ROLE_DECODER);
    assert_ok(llm_create(2, LLM_ROLE_DECODER, &call.blank));
    prove_check(&proof, check);
    llm_destroy(call.blank);
    close_party(&party);
}

PROVE(conformance_7_1_check_01_not_initialized_is_failed, 1)
PROVE(conformance_7_1_check_02_no_tensors_are_param_invalid, 2)
PROVE(conformance_7_1_check_03_other_placements_than_device_are_param_invalid, 3)
PROVE(conformance_7_1_check_04_shape_of_other_than_1_to_31_dimensions_is_param_invalid, 4)
PROVE(conformance_7_1_check_05_bad_dimension_overflow_or_type_is_param_invalid, 5)
PROVE(conformance_7_1_check_06_no_room_is_device_out_of_memory, 6)

static void
conformance_7_1_rule_01_addresses_of_all_devices_are_given_and_aligned_to_512(void **state)
{
    struct party party;
    struct call call = {.party = &party};
    (void)state;
    open_party(&party, 1, LLM_ROLE_MIX);
    reset(&call);
    assert_ok(run(&call));
    assert_int_equal(call.cache.cache_id, 1);
    assert_ptr_equal(call.cache.desc, &call.desc);
    assert_int_equal(call.cache.num_tensor_addrs, 3 * suite.num_devices);
    for (size_t i = 0; i < call.cache.num_tensor_addrs; i++) {
        assert_int_equal(call.addresses[i] % 512, 0);
        // Memory of its own: 64 bytes that overlap with no other tensor.
        for (size_t k = 0; k < i; k++) {
            uintptr_t apart = call.addresses[i] > call.addresses[k]
                                  ? call.addresses[i] - call.addresses[k]
                                  : call.addresses[k] - call.addresses[i];
            assert_true(apart >= 64);
        }
        memset((void *)call.addresses[i], 0xAB, 64);
    }
    close_party(&party);
}

static void
conformance_7_1_rule_02_ids_grow_and_are_never_reused(void **state)
{
    struct party party;
    struct call call = {.party = &party};
    int64_t last = 0;
    (void)state;
    open_party(&party, 1, LLM_ROLE_DECODER);
    for (int i = 0; i < 50; i++) {
        reset(&call);
        if (i % 7 == 3) {
            // A failure may leave a gap.
            too_large(&call);
            assert_status(run(&call), LLM_DEVICE_OUT_OF_MEMORY);
            continue;
        }
        assert_ok(run(&call));
        assert_true(call.cache.cache_id > last);
        last = call.cache.cache_id;
        if (i % 2 == 0)
            assert_ok(llm_deallocate_cache(party.dd, last));
    }
    close_party(&party);
}

static void
conformance_7_1_rule_03_addresses_are_replaced_not_appended(void **state)
{
    struct party party;
    struct call call = {.party = &party};
    (void)state;
    open_party(&party, 1, LLM_ROLE_DECODER);
    reset(&call);
    assert_ok(run(&call));
    uintptr_t first = call.addresses[0];
    call.cache.num_tensor_addrs = COUNT_OF(call.addresses);
    assert_ok(run(&call));
    assert_int_equal(call.cache.num_tensor_addrs, 3 * suite.num_devices);
    assert_true(call.addresses[0] != first);
    // Too little room for them is an error of this API's own.
    reset(&call);
    call.cache.num_tensor_addrs = 3 * suite.num_devices - 1;
    assert_status_says(run(&call), LLM_PARAM_INVALID, "room for");
    close_party(&party);
}

static void
conformance_7_1_rule_04_a_partial_failure_on_several_devices_leaks_nothing(void **state)
{
    struct party party;
    struct call call = {.party = &party};
    (void)state;
    open_party(&party, 1, LLM_ROLE_DECODER);
    for (unsigned i = 0; i < rounds(50); i++) {
        // Two of three tensors fit each device's 64 MiB.
        reset(&call);
        call.shape[0] = 15 << 20;
        call.shape[1] = 1;
        call.desc.num_tensors = 3;
        assert_status(run(&call), LLM_DEVICE_OUT_OF_MEMORY);
        unharmed(&call);
    }
    reset(&call);
    call.shape[0] = 15 << 20;
    call.shape[1] = 1;
    call.desc.num_tensors = 2;
    assert_ok(run(&call));
    close_party(&party);
}

static void
conformance_7_1_rule_05_any_role_and_no_link(void **state)
{
    llm_role roles[] = {LLM_ROLE_PROMPT, LLM_ROLE_DECODER, LLM_ROLE_MIX};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(roles); i++) {
        struct party party;
        struct kv kv;
        open_party(&party, 1, roles[i]);
        open_bytes(&kv, &party, 2, 2, 16);
        assert_ok(llm_deallocate_cache(party.dd, kv.cache.cache_id));
        forget_kv(&kv);
        close_party(&party);
    }
}

static void
conformance_7_1_rule_06_1_to_31_dimensions(void **state)
{
    struct party party;
    struct call call = {.party = &party};
    (void)state;
    open_party(&party, 1, LLM_ROLE_DECODER);
    for (size_t num_dims = 1; num_dims <= 31; num_dims++) {
        reset(&call);
        call.desc.num_dims = num_dims;
        assert_ok(run(&call));
        assert_ok(llm_deallocate_cache(party.dd, call.cache.cache_id));
    }
    close_party(&party);
}

static void
conformance_7_2_check_01_not_initialized_is_failed(void **state)
{
    llm_datadist *blank;
    (void)state;
    assert_ok(llm_create(1, LLM_ROLE_DECODER, &blank));
    assert_status_says(llm_deallocate_cache(blank, 4711), LLM_FAILED, "not initialized");
    llm_destroy(blank);
}

static void
conformance_7_2_check_02_unknown_or_freed_id_is_kv_cache_not_exist(void **state)
{
    int64_t unknown[] = {0, -1, 2, 4711, INT64_MAX, INT64_MIN};
    struct party party;
    struct kv kv;
    (void)state;
    open_party(&party, 1, LLM_ROLE_DECODER);
    open_bytes(&kv, &party, 2, 2, 16);
    assert_int_equal(kv.cache.cache_id, 1);
    for (size_t i = 0; i < COUNT_OF(unknown); i++)
        assert_status(llm_deallocate_cache(party.dd, unknown[i]), LLM_KV_CACHE_NOT_EXIST);
    assert_ok(llm_deallocate_cache(party.dd, 1));
    assert_status(llm_deallocate_cache(party.dd, 1), LLM_KV_CACHE_NOT_EXIST);
    forget_kv(&kv);
    close_party(&party);
}

static void
conformance_7_2_rule_01_the_memory_can_be_allocated_again(void **state)
{
    struct party party;
    struct call call = {.party = &party};
    (void)state;
    open_party(&party, 1, LLM_ROLE_DECODER);
    for (unsigned i = 0; i < rounds(50); i++) {
        // All of it, or nearly.
        reset(&call);
        call.shape[0] = 15 << 20;
        call.shape[1] = 1;
        call.desc.num_tensors = 2;
        assert_ok(run(&call));
        assert_ok(llm_deallocate_cache(party.dd, call.cache.cache_id));
    }
    close_party(&party);
}

// ---- §1 ----

static void
conformance_1_rule_01_stride_is_tensor_bytes_by_the_first_dimension(void **state)
{
    struct party decoder;
    struct party prompt;
    struct kv local;
    struct kv remote;
    (void)state;
    open_party(&prompt, 1, LLM_ROLE_PROMPT);
    open_party(&decoder, 2, LLM_ROLE_DECODER);
    link_parties(&decoder, &prompt);
    // int4 {3,5}: 8 bytes, stride 2, slots at 0, 2, 4; the last 2 bytes belong to none.
    open_kv(&remote, &prompt, 2, LLM_DT_INT4, 3, 5);
    open_kv(&local, &decoder, 2, LLM_DT_INT4, 8, 4);
    assert_int_equal(remote.tensor_bytes, 8);
    assert_int_equal(remote.stride, 2);
    llm_cache_index from = index_of(&prompt, &remote, 0);
    assert_ok(llm_pull_kv_blocks(decoder.dd, &from, &local.cache, (uint64_t[]){0, 1, 2}, 3,
                                 (uint64_t[]){7, 5, 3}, 3, NULL));
    for (uint32_t t = 0; t < 2; t++) {
        expect_copy(&local, t, 14, &remote, t, 0, 2);
        expect_copy(&local, t, 10, &remote, t, 2, 2);
        expect_copy(&local, t, 6, &remote, t, 4, 2);
    }
    assert_kv(&local);
    assert_status(llm_pull_kv_blocks(decoder.dd, &from, &local.cache, (uint64_t[]){3}, 1,
                                     (uint64_t[]){0}, 1, NULL),
                  LLM_PARAM_INVALID);
    close_party(&decoder);
    close_party(&prompt);
    forget_kv(&local);
    forget_kv(&remote);
}

static void
conformance_1_rule_02_addresses_are_device_major(void **state)
{
    struct party decoder;
    struct party prompt;
    struct kv local;
    struct kv remote;
    (void)state;
    open_party(&prompt, 1, LLM_ROLE_PROMPT);
    open_party(&decoder, 2, LLM_ROLE_DECODER);
    link_parties(&decoder, &prompt);
    open_bytes(&remote, &prompt, 3, 1, 16);
    open_bytes(&local, &decoder, 3, 1, 16);
    // Tensor t of device d is entry d * N + t: a pull of one layer shows which those are.
    llm_cache_index from = index_of(&prompt, &remote, 0);
    llm_kv_cache_ext_param param = layers(2, 2, 0, 0, 1);
    assert_ok(llm_pull_kv_cache(decoder.dd, &from, &local.cache, 0, -1, &param));
    for (size_t d = 0; d < suite.num_devices; d++)
        memcpy(local.expected + d * 3 * 16, (void *)remote.addresses[d * 3 + 2], 16);
    assert_kv(&local);
    close_party(&decoder);
    close_party(&prompt);
    forget_kv(&local);
    forget_kv(&remote);
}

#define TEST(test) cmocka_unit_test(test)

static const struct CMUnitTest tests[] = {
    TEST(conformance_1_rule_01_stride_is_tensor_bytes_by_the_first_dimension),
    TEST(conformance_1_rule_02_addresses_are_device_major),
    TEST(conformance_7_1_check_01_not_initialized_is_failed),
    TEST(conformance_7_1_check_02_no_tensors_are_param_invalid),
    TEST(conformance_7_1_check_03_other_placements_than_device_are_param_invalid),
    TEST(conformance_7_1_check_04_shape_of_other_than_1_to_31_dimensions_is_param_invalid),
    TEST(conformance_7_1_check_05_bad_dimension_overflow_or_type_is_param_invalid),
    TEST(conformance_7_1_check_06_no_room_is_device_out_of_memory),
    TEST(conformance_7_1_rule_01_addresses_of_all_devices_are_given_and_aligned_to_512),
    TEST(conformance_7_1_rule_02_ids_grow_and_are_never_reused),
    TEST(conformance_7_1_rule_03_addresses_are_replaced_not_appended),
    TEST(conformance_7_1_rule_04_a_partial_failure_on_several_devices_leaks_nothing),
    TEST(conformance_7_1_rule_05_any_role_and_no_link),
    TEST(conformance_7_1_rule_06_1_to_31_dimensions),
    TEST(conformance_7_2_check_01_not_initialized_is_failed),
    TEST(conformance_7_2_check_02_unknown_or_freed_id_is_kv_cache_not_exist),
    TEST(conformance_7_2_rule_01_the_memory_can_be_allocated_again),
};
CONFORMANCE_MAIN("7 Caches", tests)

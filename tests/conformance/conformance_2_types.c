// §2 Public types, and §3 Status codes.
#include "suite.h"

// ---- §2 ----

// In conformance_2_1_layouts.cc, whose compilation is the proof.
int layouts_are_checked(void);

#ifdef WITH_CXX
static void
conformance_2_1_rule_01_layouts_of_the_cxx_structs_are_asserted_at_compile_time(void **state)
{
    (void)state;
    assert_int_equal(layouts_are_checked(), 1);
}
#endif

static void
conformance_2_2_rule_01_values_of_the_enums(void **state)
{
    (void)state;
    assert_int_equal(LLM_ROLE_PROMPT, 1);
    assert_int_equal(LLM_ROLE_DECODER, 2);
    assert_int_equal(LLM_ROLE_MIX, 3);
    assert_int_equal(LLM_PLACEMENT_HOST, 0);
    assert_int_equal(LLM_PLACEMENT_DEVICE, 1);
}

// The specification's table, in bits; 0 where there is no size.
static const unsigned bits[] = {
    32, 16, 8,  32,  8,  0,  16, 16, 32, 64, 64, 64, 8,  128, 8, 8, 64, 128, 8, 16, 32,
    8,  16, 64, 128, 40, 64, 16, 0,  4,  1,  2,  2,  32, 8,   8, 8, 8,  6,   6, 4,  4,
};

static void
conformance_2_3_row_00_to_41_numbers_and_sizes_of_the_types(void **state)
{
    static const int32_t values[] = {
        LLM_DT_FLOAT,          LLM_DT_FLOAT16,     LLM_DT_INT8,
        LLM_DT_INT32,          LLM_DT_UINT8,       5,
        LLM_DT_INT16,          LLM_DT_UINT16,      LLM_DT_UINT32,
        LLM_DT_INT64,          LLM_DT_UINT64,      LLM_DT_DOUBLE,
        LLM_DT_BOOL,           LLM_DT_STRING,      LLM_DT_DUAL_SUB_INT8,
        LLM_DT_DUAL_SUB_UINT8, LLM_DT_COMPLEX64,   LLM_DT_COMPLEX128,
        LLM_DT_QINT8,          LLM_DT_QINT16,      LLM_DT_QINT32,
        LLM_DT_QUINT8,         LLM_DT_QUINT16,     LLM_DT_RESOURCE,
        LLM_DT_STRING_REF,     LLM_DT_DUAL,        LLM_DT_VARIANT,
        LLM_DT_BF16,           LLM_DT_UNDEFINED,   LLM_DT_INT4,
        LLM_DT_UINT1,          LLM_DT_INT2,        LLM_DT_UINT2,
        LLM_DT_COMPLEX32,      LLM_DT_HIFLOAT8,    LLM_DT_FLOAT8_E5M2,
        LLM_DT_FLOAT8_E4M3FN,  LLM_DT_FLOAT8_E8M0, LLM_DT_FLOAT6_E3M2,
        LLM_DT_FLOAT6_E2M3,    LLM_DT_FLOAT4_E2M1, LLM_DT_FLOAT4_E1M2,
    };
    (void)state;
    assert_int_equal(COUNT_OF(values), COUNT_OF(bits));
    for (size_t i = 0; i < COUNT_OF(values); i++) {
        assert_int_equal(values[i], i);
        assert_int_equal(llm_data_type_bits(values[i]), bits[i]);
    }
}

// A cache of one tensor {slots, elements}: is its size as it should be?  The slots of a copy tell.
static void
check_allocation(const struct party *party, int32_t type, int64_t slots, int64_t elements,
                 size_t stride)
{
    struct kv kv;
    open_kv(&kv, party, 2, type, slots, elements);
    assert_int_equal(kv.stride, stride);
    for (int64_t slot = 0; slot < slots && stride > 0; slot++) {
        uint32_t at = (uint32_t)slot;
        assert_ok(llm_copy_kv_cache(party->dd, &kv.cache, &kv.cache, at, 0, 0, (int64_t)stride));
        for (uint32_t t = 0; t < 2; t++)
            expect_slot(&kv, t, 0, &kv, t, at, stride);
        assert_kv(&kv);
        assert_status(
            llm_copy_kv_cache(party->dd, &kv.cache, &kv.cache, at, 0, 0, (int64_t)stride + 1),
            LLM_PARAM_INVALID);
    }
    assert_status(llm_copy_kv_cache(party->dd, &kv.cache, &kv.cache, (uint32_t)slots, 0, 0, 1),
                  LLM_PARAM_INVALID);
    assert_kv(&kv);
    assert_ok(llm_deallocate_cache(party->dd, kv.cache.cache_id));
    forget_kv(&kv);
}

static void
conformance_2_3_rule_01_every_type_with_a_size_can_be_allocated_and_copied(void **state)
{
    struct party party;
    (void)state;
    open_party(&party, 1, LLM_ROLE_DECODER);
    for (int32_t type = 0; type < (int32_t)COUNT_OF(bits); type++) {
        if (bits[type] > 0)
            check_allocation(&party, type, 3, 8, bits[type]);
    }
    close_party(&party);
}

static void
conformance_2_3_rule_02_types_without_a_size_are_param_invalid(void **state)
{
    static const int32_t unsized[] = {-1, 5, 28, 42, 43, 44, 1000, 1004, INT32_MAX, INT32_MIN};
    struct party party;
    struct kv kv;
    (void)state;
    open_party(&party, 1, LLM_ROLE_DECODER);
    open_bytes(&kv, &party, 1, 1, 8);
    for (size_t i = 0; i < COUNT_OF(unsized); i++) {
        assert_int_equal(llm_data_type_bits(unsized[i]), 0);
        kv.desc.data_type = unsized[i];
        llm_cache cache = kv.cache;
        assert_status(llm_allocate_cache(party.dd, &kv.desc, &cache), LLM_PARAM_INVALID);
        assert_status(llm_copy_kv_cache(party.dd, &kv.cache, &kv.cache, 0, 0, 0, -1),
                      LLM_PARAM_INVALID);
    }
    close_party(&party);
    forget_kv(&kv);
}

static void
conformance_2_3_rule_03_bytes_of_sub_byte_types_are_rounded_up_once_per_tensor(void **state)
{
    struct party party;
    (void)state;
    open_party(&party, 1, LLM_ROLE_DECODER);
    check_allocation(&party, LLM_DT_INT4, 1, 3, 2);  // 12 bits
    check_allocation(&party, LLM_DT_UINT1, 1, 1, 1); // 1 bit
    check_allocation(&party, LLM_DT_INT4, 3, 5, 2);  // 60 bits: 8 bytes, of which 2 are no slot's
    check_allocation(&party, LLM_DT_FLOAT6_E3M2, 4, 5, 3); // 120 bits: 15 bytes
    check_allocation(&party, LLM_DT_UINT1, 16, 4, 0);      // 8 bytes for 16 slots
    close_party(&party);
}

static void
conformance_2_3_rule_04_more_than_2_to_the_31_bits_per_tensor(void **state)
{
    struct party party;
    llm_option options[] = {{LLM_OPTION_DEVICE_ID, "0"}};
    int64_t shape[] = {4, ((int64_t)1 << 31) + 2};
    uintptr_t address = 0;
    (void)state;
    // Address space alone: nobody touches the gigabyte.
    party = (struct party){.num_devices = 1};
    assert_ok(llm_create(1, LLM_ROLE_DECODER, &party.dd));
    assert_ok(llm_initialize(party.dd, options, 1));
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = 1,
        .data_type = LLM_DT_UINT1,
        .shape = shape,
        .num_dims = 2,
    };
    llm_cache cache = {
        .struct_size = sizeof(cache), .tensor_addrs = &address, .num_tensor_addrs = 1};
    uint8_t *bytes;
    assert_ok(llm_allocate_cache(party.dd, &desc, &cache));
    bytes = (uint8_t *)address;
    // The last slot's last byte, and its first.
    size_t stride = ((size_t)4 * (size_t)shape[1] + 7) / 8 / 4;
    bytes[3 * stride] = 0x12;
    assert_ok(llm_copy_kv_cache(party.dd, &cache, &cache, 3, 0, 0, 1));
    assert_int_equal(bytes[0], 0x12);
    bytes[4 * stride - 1] = 0x34;
    assert_ok(llm_copy_kv_cache(party.dd, &cache, &cache, 3, 1, stride - 1, 1));
    assert_int_equal(bytes[2 * stride - 1], 0x34);
    close_party(&party);
}

// ---- §3 ----

struct code {
    unsigned number;
    llm_status status;
    const char *name;
    int recoverable;
};

static const struct code codes[] = {
    {1, LLM_WAIT_PROC_TIMEOUT, "LLM_WAIT_PROC_TIMEOUT", 1},
    {2, LLM_KV_CACHE_NOT_EXIST, "LLM_KV_CACHE_NOT_EXIST", 1},
    {3, LLM_REPEAT_REQUEST, "LLM_REPEAT_REQUEST", 1},
    {4, LLM_REQUEST_ALREADY_COMPLETED, "LLM_REQUEST_ALREADY_COMPLETED", 1},
    {5, LLM_PARAM_INVALID, "LLM_PARAM_INVALID", 1},
    {6, LLM_ENGINE_FINALIZED, "LLM_ENGINE_FINALIZED", 0},
    {7, LLM_NOT_YET_LINK, "LLM_NOT_YET_LINK", 1},
    {8, LLM_ALREADY_LINK, "LLM_ALREADY_LINK", 1},
    {9, LLM_LINK_FAILED, "LLM_LINK_FAILED", 1},
    {10, LLM_UNLINK_FAILED, "LLM_UNLINK_FAILED", 1},
    {11, LLM_NOTIFY_PROMPT_UNLINK_FAILED, "LLM_NOTIFY_PROMPT_UNLINK_FAILED", 1},
    {12, LLM_CLUSTER_NUM_EXCEED_LIMIT, "LLM_CLUSTER_NUM_EXCEED_LIMIT", 1},
    {13, LLM_PROCESSING_LINK, "LLM_PROCESSING_LINK", 1},
    {14, LLM_DEVICE_OUT_OF_MEMORY, "LLM_DEVICE_OUT_OF_MEMORY", 1},
    {15, LLM_PREFIX_ALREADY_EXIST, "LLM_PREFIX_ALREADY_EXIST", 1},
    {16, LLM_PREFIX_NOT_EXIST, "LLM_PREFIX_NOT_EXIST", 1},
    {17, LLM_SEQ_LEN_OVER_LIMIT, "LLM_SEQ_LEN_OVER_LIMIT", 1},
    {18, LLM_NO_FREE_BLOCK, "LLM_NO_FREE_BLOCK", 1},
    {19, LLM_BLOCKS_OUT_OF_MEMORY, "LLM_BLOCKS_OUT_OF_MEMORY", 1},
    {24, LLM_EXIST_LINK, "LLM_EXIST_LINK", 1},
    {25, LLM_FEATURE_NOT_ENABLED, "LLM_FEATURE_NOT_ENABLED", 1},
    {26, LLM_TIMEOUT, "LLM_TIMEOUT", 0},
    {27, LLM_LINK_BUSY, "LLM_LINK_BUSY", 1},
    {28, LLM_OUT_OF_MEMORY, "LLM_OUT_OF_MEMORY", 1},
};

static void
conformance_3_row_00_to_28_values_and_names_of_the_statuses(void **state)
{
    (void)state;
    assert_true(LLM_SUCCESS == 0);
    assert_true(LLM_FAILED == 0xFFFFFFFFu);
    assert_true(LLM_WAIT_PROC_TIMEOUT == 1343270913u);
    for (size_t i = 0; i < COUNT_OF(codes); i++) {
        assert_true(codes[i].status == 0x5010B000u + codes[i].number);
        assert_string_equal(llm_status_name(codes[i].status), codes[i].name);
        assert_true(strlen(llm_status_text(codes[i].status)) > 0);
    }
    assert_string_equal(llm_status_name(0x5010B014u), "LLM_STATUS_UNKNOWN");
}

static void
conformance_3_rule_01_recoverability(void **state)
{
    (void)state;
    assert_int_equal(llm_status_recoverable(LLM_FAILED), 0);
    for (size_t i = 0; i < COUNT_OF(codes); i++) {
        // Of an engine that has ended the specification says no more than "never returned".
        if (codes[i].status != LLM_ENGINE_FINALIZED)
            assert_int_equal(llm_status_recoverable(codes[i].status), codes[i].recoverable);
    }
}

#define TEST(test) cmocka_unit_test(test)

static const struct CMUnitTest tests[] = {
#ifdef WITH_CXX
    TEST(conformance_2_1_rule_01_layouts_of_the_cxx_structs_are_asserted_at_compile_time),
#endif
    TEST(conformance_2_2_rule_01_values_of_the_enums),
    TEST(conformance_2_3_row_00_to_41_numbers_and_sizes_of_the_types),
    TEST(conformance_2_3_rule_01_every_type_with_a_size_can_be_allocated_and_copied),
    TEST(conformance_2_3_rule_02_types_without_a_size_are_param_invalid),
    TEST(conformance_2_3_rule_03_bytes_of_sub_byte_types_are_rounded_up_once_per_tensor),
    TEST(conformance_2_3_rule_04_more_than_2_to_the_31_bits_per_tensor),
    TEST(conformance_3_row_00_to_28_values_and_names_of_the_statuses),
    TEST(conformance_3_rule_01_recoverability),
};
CONFORMANCE_MAIN("2 Types and 3 Statuses", tests)

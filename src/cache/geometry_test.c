// Shapes in bytes (§1, §2.3), and the order of the checks (§9.2).
#include "cache/geometry.h"

#include "unit/unit.h"

static llm_status
compute(int32_t data_type, const int64_t *shape, size_t num_dims, struct lli_geometry *ret)
{
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = 6,
        .data_type = data_type,
        .shape = shape,
        .num_dims = num_dims,
    };
    memset(ret, 0x5a, sizeof(*ret));
    return lli_geometry_compute(&desc, ret);
}

#define SHAPE(...) (const int64_t[]){__VA_ARGS__}, LLI_COUNT(((const int64_t[]){__VA_ARGS__}))

static int
setup(void **state)
{
    (void)state;
    llm_set_log_level(LLM_LOG_OFF);
    return 0;
}

static bool
error_names(const char *text)
{
    char last[512];
    llm_last_error(last, sizeof(last));
    return strstr(last, text) != NULL;
}

static void
test_a_plain_shape(void **state)
{
    struct lli_geometry g;
    (void)state;
    assert_true(compute(LLM_DT_FLOAT16, SHAPE(4, 8, 16, 128), &g) == LLM_SUCCESS);
    assert_int_equal(g.placement, LLM_PLACEMENT_DEVICE);
    assert_int_equal(g.num_tensors, 6);
    assert_int_equal(g.data_type, LLM_DT_FLOAT16);
    assert_int_equal(g.num_slots, 4);
    assert_int_equal(g.tensor_bytes, 4 * 8 * 16 * 128 * 2);
    assert_int_equal(g.stride, 8 * 16 * 128 * 2);
}

static void
test_no_dimensions_are_one_element_in_one_slot(void **state)
{
    struct lli_geometry g;
    (void)state;
    assert_true(compute(LLM_DT_DOUBLE, NULL, 0, &g) == LLM_SUCCESS);
    assert_int_equal(g.num_slots, 1);
    assert_int_equal(g.stride, 8);
    assert_int_equal(g.tensor_bytes, 8);
}

// Every sized type with every small shape: rounded up once per tensor, stride rounded down.
static void
test_every_type_and_small_shape(void **state)
{
    struct lli_geometry g;
    (void)state;
    for (int32_t type = 0; type <= LLM_DT_FLOAT4_E1M2; type++) {
        uint64_t bits = llm_data_type_bits(type);
        if (bits == 0)
            continue;
        for (int64_t slots = 1; slots <= 9; slots++) {
            for (int64_t rest = 1; rest <= 17; rest++) {
                uint64_t bytes = ((uint64_t)(slots * rest) * bits + 7) / 8;
                assert_true(compute(type, SHAPE(slots, rest), &g) == LLM_SUCCESS);
                assert_int_equal(g.num_slots, slots);
                assert_int_equal(g.tensor_bytes, bytes);
                assert_int_equal(g.stride, bytes / (uint64_t)slots);
                assert_true(g.num_slots * g.stride <= g.tensor_bytes);
            }
        }
    }
}

static void
test_sub_byte_types_round_up_once_per_tensor(void **state)
{
    struct lli_geometry g;
    (void)state;
    assert_true(compute(LLM_DT_INT4, SHAPE(3), &g) == LLM_SUCCESS);
    assert_int_equal(g.tensor_bytes, 2);
    assert_int_equal(g.stride, 0);
    assert_true(compute(LLM_DT_UINT1, SHAPE(1), &g) == LLM_SUCCESS);
    assert_int_equal(g.tensor_bytes, 1);
    assert_true(compute(LLM_DT_FLOAT6_E3M2, SHAPE(2, 5), &g) == LLM_SUCCESS);
    assert_int_equal(g.tensor_bytes, 8);
    assert_int_equal(g.stride, 4);
    // More than 2^31 bits.
    assert_true(compute(LLM_DT_INT4, SHAPE(2, INT64_C(1) << 32), &g) == LLM_SUCCESS);
    assert_true(g.tensor_bytes == UINT64_C(1) << 32);
}

static void
test_types_without_a_size_are_rejected(void **state)
{
    struct lli_geometry g;
    static const int32_t types[] = {5, LLM_DT_UNDEFINED, 42, 43, -1, INT32_MAX, INT32_MIN};
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(types); i++) {
        assert_true(compute(types[i], SHAPE(1, 2), &g) == LLM_PARAM_INVALID);
        assert_true(error_names("data_type"));
    }
}

static void
test_a_dimension_that_is_not_positive_is_named(void **state)
{
    struct lli_geometry g;
    (void)state;
    for (size_t at = 0; at < 4; at++) {
        static const int64_t wrong[] = {0, -1, INT64_MIN};
        for (size_t i = 0; i < LLI_COUNT(wrong); i++) {
            int64_t shape[] = {2, 2, 2, 2};
            char name[16];
            shape[at] = wrong[i];
            snprintf(name, sizeof(name), "shape[%zu]", at);
            assert_true(compute(LLM_DT_INT8, shape, 4, &g) == LLM_PARAM_INVALID);
            assert_true(error_names(name));
        }
    }
}

static void
test_products_that_overflow_are_rejected(void **state)
{
    struct lli_geometry g;
    (void)state;
    assert_true(compute(LLM_DT_INT8, SHAPE(INT64_MAX, 2), &g) == LLM_PARAM_INVALID);
    assert_true(compute(LLM_DT_INT8, SHAPE(INT64_C(1) << 32, INT64_C(1) << 31), &g) ==
                LLM_PARAM_INVALID);
    assert_true(compute(LLM_DT_INT8, SHAPE(INT64_C(1) << 32, INT64_C(1) << 32, 1), &g) ==
                LLM_PARAM_INVALID);
    assert_true(compute(LLM_DT_INT8, SHAPE(INT64_MAX, INT64_MAX, INT64_MAX), &g) ==
                LLM_PARAM_INVALID);
    // The largest number of elements, but not in bits.
    assert_true(compute(LLM_DT_INT8, SHAPE(INT64_MAX), &g) == LLM_PARAM_INVALID);
    assert_true(compute(LLM_DT_UINT1, SHAPE(INT64_MAX), &g) == LLM_SUCCESS);
    assert_true(g.tensor_bytes == UINT64_C(1) << 60);
    assert_true(compute(LLM_DT_INT2, SHAPE(INT64_MAX - 3), &g) == LLM_SUCCESS);
    assert_true(g.tensor_bytes == (UINT64_C(1) << 61) - 1);
    assert_true(compute(LLM_DT_INT4, SHAPE(INT64_MAX), &g) == LLM_PARAM_INVALID);
    // The edge: bits rounded up must fit as well.
    assert_true(compute(LLM_DT_INT8, SHAPE((INT64_C(1) << 61) - 1), &g) == LLM_SUCCESS);
    assert_true(g.tensor_bytes == (UINT64_C(1) << 61) - 1);
    assert_true(compute(LLM_DT_INT8, SHAPE(INT64_C(1) << 61), &g) == LLM_PARAM_INVALID);
}

static void
test_checks_come_in_order(void **state)
{
    struct lli_geometry g;
    (void)state;
    // A bad dimension before an overflow behind it, both before the type.
    assert_true(compute(5, SHAPE(0, INT64_MAX, INT64_MAX), &g) == LLM_PARAM_INVALID);
    assert_true(error_names("shape[0]"));
    assert_true(compute(5, SHAPE(INT64_MAX, INT64_MAX), &g) == LLM_PARAM_INVALID);
    assert_true(error_names("overflows"));
    assert_true(compute(5, SHAPE(1), &g) == LLM_PARAM_INVALID);
    assert_true(error_names("data_type"));
}

static void
test_dimensions_are_kept_as_far_as_a_cache_may_have_them(void **state)
{
    struct lli_geometry g;
    int64_t ones[LLI_NUM_DIMS_MAX + 1];
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(ones); i++)
        ones[i] = 1;
    assert_true(compute(LLM_DT_BF16, SHAPE(4, 3, 2), &g) == LLM_SUCCESS);
    assert_int_equal(g.num_dims, 3);
    assert_true(g.dims[0] == 4 && g.dims[1] == 3 && g.dims[2] == 2 && g.dims[3] == 0);
    assert_true(compute(LLM_DT_BF16, ones, LLI_NUM_DIMS_MAX, &g) == LLM_SUCCESS);
    assert_int_equal(g.num_dims, LLI_NUM_DIMS_MAX);
    assert_true(compute(LLM_DT_BF16, ones, LLI_NUM_DIMS_MAX + 1, &g) == LLM_SUCCESS);
    assert_int_equal(g.num_dims, 0);
}

static void
test_dimensions_that_contradict_the_sizes_are_found(void **state)
{
    struct lli_geometry good;
    (void)state;
    assert_true(compute(LLM_DT_INT4, SHAPE(3, 5), &good) == LLM_SUCCESS);
    assert_true(lli_geometry_shape_is_sound(&good));
    struct lli_geometry g = good;
    g.num_dims = 0;
    assert_true(lli_geometry_shape_is_sound(&g));
    g = good;
    g.data_type = LLM_DT_UNDEFINED;
    assert_true(lli_geometry_shape_is_sound(&g));
    g.dims[0] = 4;
    assert_false(lli_geometry_shape_is_sound(&g));
    static const int64_t bad[] = {0, -5, 4, 7, INT64_MAX};
    for (size_t i = 0; i < LLI_COUNT(bad); i++) {
        g = good;
        g.dims[1] = bad[i];
        assert_false(lli_geometry_shape_is_sound(&g));
    }
    g = good;
    g.data_type = LLM_DT_INT8;
    assert_false(lli_geometry_shape_is_sound(&g));
}

static void
test_which_types_agree(void **state)
{
    static const int32_t signed_types[] = {LLM_DT_INT2, LLM_DT_INT8, LLM_DT_INT16, LLM_DT_INT32,
                                           LLM_DT_INT64};
    static const int32_t unsigned_types[] = {LLM_DT_UINT2, LLM_DT_UINT8, LLM_DT_UINT16,
                                             LLM_DT_UINT32, LLM_DT_UINT64};
    (void)state;
    for (int32_t a = -1; a < 45; a++) {
        for (int32_t b = -1; b < 45; b++) {
            bool agree = a == b || a == LLM_DT_UNDEFINED || b == LLM_DT_UNDEFINED;
            for (size_t i = 0; i < LLI_COUNT(signed_types); i++)
                agree |= (a == signed_types[i] && b == unsigned_types[i]) ||
                         (b == signed_types[i] && a == unsigned_types[i]);
            assert_int_equal(lli_data_types_agree(a, b), agree);
        }
    }
    assert_string_equal(lli_data_type_name(LLM_DT_FLOAT8_E4M3FN), "LLM_DT_FLOAT8_E4M3FN");
    assert_string_equal(lli_data_type_name(4711), "an unknown data type");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_plain_shape),
        cmocka_unit_test(test_no_dimensions_are_one_element_in_one_slot),
        cmocka_unit_test(test_every_type_and_small_shape),
        cmocka_unit_test(test_sub_byte_types_round_up_once_per_tensor),
        cmocka_unit_test(test_types_without_a_size_are_rejected),
        cmocka_unit_test(test_a_dimension_that_is_not_positive_is_named),
        cmocka_unit_test(test_products_that_overflow_are_rejected),
        cmocka_unit_test(test_checks_come_in_order),
        cmocka_unit_test(test_dimensions_are_kept_as_far_as_a_cache_may_have_them),
        cmocka_unit_test(test_dimensions_that_contradict_the_sizes_are_found),
        cmocka_unit_test(test_which_types_agree),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}

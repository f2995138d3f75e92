// Every status has a name and a text; every data type has the size of the specification (§2.3, §3).
#include "base/base.h"

#include "unit/unit.h"

static const struct {
    const char *name;
    const char *text;
    const char *remedy;
    llm_status value;
    int recoverable;
} rows[] = {
#define X(name, value, text, recoverable, remedy) {#name, text, remedy, value, recoverable},
    LLM_STATUS_MAP(X)
#undef X
};

static void
test_every_status_has_its_name_and_text(void **state)
{
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(rows); i++) {
        const char *text = llm_status_text(rows[i].value);
        assert_string_equal(llm_status_name(rows[i].value), rows[i].name);
        assert_non_null(strstr(text, rows[i].text));
        assert_non_null(strstr(text, rows[i].remedy));
        assert_int_equal(strstr(text, "not recoverable") == NULL, rows[i].recoverable);
        assert_null(strchr(text, '\n'));
        assert_int_equal(llm_status_recoverable(rows[i].value), rows[i].recoverable);
    }
}

static void
test_names_and_numbers_are_unique(void **state)
{
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(rows); i++) {
        for (size_t j = 0; j < i; j++) {
            assert_true(rows[i].value != rows[j].value);
            assert_string_not_equal(rows[i].name, rows[j].name);
        }
    }
}

static bool
is_known(llm_status status)
{
    for (size_t i = 0; i < LLI_COUNT(rows); i++) {
        if (rows[i].value == status)
            return true;
    }
    return false;
}

static void
test_other_numbers_are_unknown(void **state)
{
    (void)state;
    for (llm_status status = 0x5010afff; status <= 0x5010ffff; status++) {
        bool unknown = strcmp(llm_status_name(status), "LLM_STATUS_UNKNOWN") == 0;
        assert_int_equal(unknown, !is_known(status));
        if (unknown) {
            assert_string_equal(llm_status_text(status), "not a status of this library");
            assert_int_equal(llm_status_recoverable(status), 0);
        }
    }
    assert_string_equal(llm_status_name(1), "LLM_STATUS_UNKNOWN");
    assert_string_equal(llm_status_name(UINT32_MAX - 1), "LLM_STATUS_UNKNOWN");
}

static void
test_numbers_are_those_of_the_original_library(void **state)
{
    (void)state;
    assert_true(LLM_SUCCESS == 0);
    assert_true(LLM_FAILED == UINT32_MAX);
    assert_true(LLM_WAIT_PROC_TIMEOUT == 0x5010b001);
    assert_true(LLM_PARAM_INVALID == 0x5010b005);
    assert_true(LLM_DEVICE_OUT_OF_MEMORY == 0x5010b00e);
    assert_true(LLM_EXIST_LINK == 0x5010b018);
    assert_true(LLM_LINK_BUSY == 0x5010b01b);
    assert_true(LLM_OUT_OF_MEMORY == 0x5010b01c);
}

// Bits by number, written down from the specification and not from the header.
static const uint32_t bits[] = {
    32, 16, 8,  32,  8,  0,  16, 16, 32, 64, 64, 64, 8,  128, 8, 8, 64, 128, 8, 16, 32,
    8,  16, 64, 128, 40, 64, 16, 0,  4,  1,  2,  2,  32, 8,   8, 8, 8,  6,   6, 4,  4,
};

static void
test_data_types_have_the_bits_of_the_specification(void **state)
{
    (void)state;
    assert_int_equal(LLI_COUNT(bits), LLM_DT_FLOAT4_E1M2 + 1);
    for (int32_t type = 0; type < (int32_t)LLI_COUNT(bits); type++)
        assert_int_equal(llm_data_type_bits(type), bits[type]);
}

static void
test_other_data_types_have_no_size(void **state)
{
    (void)state;
    for (int32_t type = 42; type < 3000; type++)
        assert_int_equal(llm_data_type_bits(type), 0);
    for (int32_t type = -3000; type < 0; type++)
        assert_int_equal(llm_data_type_bits(type), 0);
    assert_int_equal(llm_data_type_bits(INT32_MIN), 0);
    assert_int_equal(llm_data_type_bits(INT32_MAX), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_status_has_its_name_and_text),
        cmocka_unit_test(test_names_and_numbers_are_unique),
        cmocka_unit_test(test_other_numbers_are_unknown),
        cmocka_unit_test(test_numbers_are_those_of_the_original_library),
        cmocka_unit_test(test_data_types_have_the_bits_of_the_specification),
        cmocka_unit_test(test_other_data_types_have_no_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

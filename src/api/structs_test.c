// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on

#include "api/structs.h"

// A struct that was published with `first`, and has grown twice.
struct grown {
    size_t struct_size;
    uint64_t first;
    uint64_t second;
    uint64_t third;
};

enum { FIRST_BYTES = offsetof(struct grown, second), SECOND_BYTES = offsetof(struct grown, third) };

static llm_status
check(const void *caller, struct grown *ret)
{
    return lli_check_struct(caller, "grown", FIRST_BYTES, sizeof(*ret), ret);
}

static void
what_an_older_caller_does_not_have_reads_as_zero(void **state)
{
    (void)state;
    struct grown known;
    const struct grown of_first = {FIRST_BYTES, 1, 2, 3};
    const struct grown of_zero = {0, 1, 2, 3};
    const struct grown of_second = {SECOND_BYTES, 1, 2, 3};
    assert_int_equal(check(&of_first, &known), LLM_SUCCESS);
    assert_int_equal(known.first, 1);
    assert_int_equal(known.second, 0);
    assert_int_equal(known.third, 0);
    assert_int_equal(check(&of_zero, &known), LLM_SUCCESS);
    assert_int_equal(known.first, 1);
    assert_int_equal(known.second, 0);
    assert_int_equal(check(&of_second, &known), LLM_SUCCESS);
    assert_int_equal(known.second, 2);
    assert_int_equal(known.third, 0);
}

static void
what_a_newer_caller_has_must_be_zero(void **state)
{
    (void)state;
    struct grown known;
    struct {
        struct grown grown;
        uint64_t fourth;
    } caller = {{sizeof(caller), 1, 2, 3}, 0};
    assert_int_equal(check(&caller, &known), LLM_SUCCESS);
    assert_int_equal(known.third, 3);
    caller.fourth = 1;
    assert_int_equal(check(&caller, &known), LLM_PARAM_INVALID);
}

static void
sizes_that_never_were_are_refused(void **state)
{
    (void)state;
    struct grown known;
    struct grown caller = {FIRST_BYTES - 1, 1, 2, 3};
    assert_int_equal(check(&caller, &known), LLM_PARAM_INVALID);
    caller.struct_size = 65537;
    assert_int_equal(check(&caller, &known), LLM_PARAM_INVALID);
    assert_int_equal(check(NULL, &known), LLM_PARAM_INVALID);
}

static void
nothing_is_written_behind_what_the_caller_has(void **state)
{
    (void)state;
    const struct grown known = {4711, 1, 2, 3};
    const size_t sizes[] = {0, FIRST_BYTES, SECOND_BYTES, sizeof(known), sizeof(known) + 8};
    for (size_t i = 0; i < LLI_COUNT(sizes); i++) {
        struct {
            struct grown grown;
            uint64_t guard;
        } caller = {{sizes[i], 99, 99, 99}, 99};
        lli_write_struct(&known, FIRST_BYTES, sizeof(known), &caller);
        assert_int_equal(caller.grown.struct_size, sizes[i]);
        assert_int_equal(caller.grown.first, 1);
        assert_int_equal(caller.grown.second, sizes[i] >= SECOND_BYTES ? 2 : 99);
        assert_int_equal(caller.grown.third, sizes[i] >= sizeof(known) ? 3 : 99);
        assert_int_equal(caller.guard, 99);
    }
}

static void
an_array_steps_by_the_callers_size(void **state)
{
    (void)state;
    const uint64_t array[] = {FIRST_BYTES, 10, FIRST_BYTES, 11, FIRST_BYTES, 12};
    uint64_t of_zero[] = {0, 10, 0, 11, 0, 12};
    for (size_t i = 0; i < 3; i++) {
        struct grown known;
        assert_int_equal(check(lli_struct_at(array, FIRST_BYTES, i), &known), LLM_SUCCESS);
        assert_int_equal(known.first, 10 + i);
        assert_int_equal(check(lli_struct_at(of_zero, FIRST_BYTES, i), &known), LLM_SUCCESS);
        assert_int_equal(known.first, 10 + i);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_an_older_caller_does_not_have_reads_as_zero),
        cmocka_unit_test(what_a_newer_caller_has_must_be_zero),
        cmocka_unit_test(sizes_that_never_were_are_refused),
        cmocka_unit_test(nothing_is_written_behind_what_the_caller_has),
        cmocka_unit_test(an_array_steps_by_the_callers_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

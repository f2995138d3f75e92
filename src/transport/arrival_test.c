// Which bytes have come, against a model that remembers every byte.
#include "transport/arrival.h"

#include "base/mem.h"
#include "unit/unit.h"

enum { STREAM_BYTES = 200, UNDER_WAY_MAX = 8 };

enum fate { MISSING, CLAIMED, COME };

struct frame {
    uint64_t first;
    uint64_t bytes;
};

static uint64_t
model_prefix(const enum fate *model)
{
    uint64_t prefix = 0;
    while (prefix < STREAM_BYTES && model[prefix] == COME)
        prefix++;
    return prefix;
}

static bool
model_claim(enum fate *model, const struct frame *frame)
{
    for (uint64_t i = 0; i < frame->bytes; i++) {
        if (model[frame->first + i] != MISSING)
            return false;
    }
    for (uint64_t i = 0; i < frame->bytes; i++)
        model[frame->first + i] = CLAIMED;
    return true;
}

// Ranges are sorted, apart, and tell exactly what the model knows behind the prefix.
static void
assert_agrees(const struct lli_arrival *arrival, const enum fate *model)
{
    enum fate seen[STREAM_BYTES] = {MISSING};
    assert_int_equal(arrival->prefix, model_prefix(model));
    for (uint64_t i = 0; i < arrival->prefix; i++)
        seen[i] = COME;
    for (size_t i = 0; i < arrival->num_ahead; i++) {
        const struct lli_arrival_range *range = &arrival->ahead[i];
        const struct lli_arrival_range *before = i > 0 ? range - 1 : NULL;
        assert_true(range->first < range->end);
        assert_true(range->first >= (before != NULL ? before->end : arrival->prefix));
        // What is complete and touches is one range.
        if (before != NULL && before->complete && range->complete)
            assert_true(before->end < range->first);
        for (uint64_t b = range->first; b < range->end; b++)
            seen[b] = range->complete ? COME : CLAIMED;
    }
    for (uint64_t i = 0; i < STREAM_BYTES; i++)
        assert_int_equal(seen[i], model[i]);
}

static void
test_every_mix_of_frames_agrees_with_the_model(void **state)
{
    uint64_t random = 1;
    unsigned num_refused = 0;
    (void)state;
    for (unsigned round = 0; round < 300; round++) {
        enum fate model[STREAM_BYTES] = {MISSING};
        struct frame under_way[UNDER_WAY_MAX];
        size_t num_under_way = 0;
        struct lli_arrival arrival;
        lli_arrival_init(&arrival, 0);
        for (unsigned step = 0; step < 400; step++) {
            if (num_under_way < UNDER_WAY_MAX && unit_random(&random) % 2 == 0) {
                struct frame frame = {.first = unit_random(&random) % STREAM_BYTES};
                frame.bytes = 1 + unit_random(&random) % lli_min(STREAM_BYTES - frame.first, 12);
                bool taken = model_claim(model, &frame);
                assert_true((lli_arrival_claim(&arrival, frame.first, frame.bytes) == NULL) ==
                            taken);
                if (taken)
                    under_way[num_under_way++] = frame;
                num_refused += !taken;
            } else if (num_under_way > 0) {
                struct frame *frame = &under_way[unit_random(&random) % num_under_way];
                lli_arrival_settle(&arrival, frame->first);
                for (uint64_t i = 0; i < frame->bytes; i++)
                    model[frame->first + i] = COME;
                *frame = under_way[--num_under_way];
            }
            assert_agrees(&arrival, model);
        }
        lli_arrival_fini(&arrival);
    }
    assert_true(num_refused > 1000);
}

static void
test_frames_in_order_leave_no_ranges(void **state)
{
    struct lli_arrival arrival;
    (void)state;
    lli_arrival_init(&arrival, 0);
    for (uint64_t i = 0; i < 10000; i++) {
        assert_null(lli_arrival_claim(&arrival, i * 7, 7));
        assert_int_equal(arrival.prefix, i * 7);
        lli_arrival_settle(&arrival, i * 7);
        assert_int_equal(arrival.num_ahead, 0);
    }
    lli_arrival_fini(&arrival);
}

static void
test_what_lies_before_the_start_is_refused(void **state)
{
    struct lli_arrival arrival;
    (void)state;
    lli_arrival_init(&arrival, 100);
    assert_int_equal(arrival.prefix, 100);
    assert_non_null(lli_arrival_claim(&arrival, 0, 1));
    assert_non_null(lli_arrival_claim(&arrival, 99, 2));
    assert_null(lli_arrival_claim(&arrival, 100, 5));
    lli_arrival_settle(&arrival, 100);
    assert_int_equal(arrival.prefix, 105);
    lli_arrival_fini(&arrival);
}

static void
test_positions_up_to_the_end_of_64_bits_are_exact(void **state)
{
    struct lli_arrival arrival;
    (void)state;
    lli_arrival_init(&arrival, UINT64_MAX - 10);
    assert_null(lli_arrival_claim(&arrival, UINT64_MAX - 5, 5));
    assert_non_null(lli_arrival_claim(&arrival, UINT64_MAX - 10, 6));
    assert_null(lli_arrival_claim(&arrival, UINT64_MAX - 10, 5));
    lli_arrival_settle(&arrival, UINT64_MAX - 5);
    lli_arrival_settle(&arrival, UINT64_MAX - 10);
    assert_true(arrival.prefix == UINT64_MAX);
    lli_arrival_fini(&arrival);
}

static void
test_a_peer_may_leave_many_holes_but_not_any_number(void **state)
{
    struct lli_arrival arrival;
    (void)state;
    lli_arrival_init(&arrival, 0);
    for (uint64_t i = 1; i <= LLI_ARRIVAL_RANGES_MAX; i++) {
        assert_null(lli_arrival_claim(&arrival, i * 2, 1));
        lli_arrival_settle(&arrival, i * 2);
    }
    assert_non_null(lli_arrival_claim(&arrival, 1, 1));
    assert_int_equal(arrival.prefix, 0);
    assert_int_equal(arrival.num_ahead, LLI_ARRIVAL_RANGES_MAX);
    lli_arrival_fini(&arrival);
}

static void
test_without_memory_a_frame_is_refused_and_nothing_changes(void **state)
{
    struct lli_arrival arrival;
    uint64_t next = 2;
    unsigned num_refused = 0;
    (void)state;
    lli_arrival_init(&arrival, 0);
    // Wherever the list has to grow.
    while (next < 200) {
        lli_mem_fail_after(1);
        bool refused = lli_arrival_claim(&arrival, next, 1) != NULL;
        assert_true(refused == (lli_mem_fail_after(0) == 0));
        num_refused += refused;
        if (refused)
            assert_null(lli_arrival_claim(&arrival, next, 1));
        next += 2;
        assert_int_equal(arrival.num_ahead, next / 2 - 1);
    }
    assert_true(num_refused >= 2);
    lli_arrival_fini(&arrival);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_mix_of_frames_agrees_with_the_model),
        cmocka_unit_test(test_frames_in_order_leave_no_ranges),
        cmocka_unit_test(test_what_lies_before_the_start_is_refused),
        cmocka_unit_test(test_positions_up_to_the_end_of_64_bits_are_exact),
        cmocka_unit_test(test_a_peer_may_leave_many_holes_but_not_any_number),
        cmocka_unit_test(test_without_memory_a_frame_is_refused_and_nothing_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

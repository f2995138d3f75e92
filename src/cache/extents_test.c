// Free ranges against a naive model: a map of single units, searched from the front.
#include "cache/extents.h"

#include "base/mem.h"
#include "unit/unit.h"

enum { UNITS_MAX = 4096 };

struct taken {
    uint64_t offset;
    uint64_t size;
};

struct model {
    bool is_free[UNITS_MAX];
    size_t num_units;
    struct taken taken[UNITS_MAX];
    size_t num_taken;
};

// The first of the smallest ranges in which an aligned piece fits.
static bool
model_take(struct model *model, uint64_t size, uint64_t align, uint64_t *ret_offset)
{
    uint64_t best_size = UINT64_MAX;
    for (size_t start = 0; start < model->num_units; start++) {
        if (!model->is_free[start] || (start > 0 && model->is_free[start - 1]))
            continue;
        size_t end = start;
        while (end < model->num_units && model->is_free[end])
            end++;
        uint64_t offset = (start + align - 1) / align * align;
        if (offset + size <= end && end - start < best_size) {
            best_size = end - start;
            *ret_offset = offset;
        }
    }
    if (best_size == UINT64_MAX)
        return false;
    for (uint64_t i = 0; i < size; i++)
        model->is_free[*ret_offset + i] = false;
    model->taken[model->num_taken++] = (struct taken){*ret_offset, size};
    return true;
}

static struct taken
model_give(struct model *model, size_t index)
{
    struct taken given = model->taken[index];
    for (uint64_t i = 0; i < given.size; i++)
        model->is_free[given.offset + i] = true;
    model->taken[index] = model->taken[--model->num_taken];
    return given;
}

// The list must be the maximal free ranges, in order.
static void
assert_same(const struct lli_extents *extents, const struct model *model)
{
    size_t next = 0;
    for (size_t start = 0; start < model->num_units; start++) {
        if (!model->is_free[start] || (start > 0 && model->is_free[start - 1]))
            continue;
        size_t end = start;
        while (end < model->num_units && model->is_free[end])
            end++;
        assert_true(next < extents->num_free);
        assert_int_equal(extents->free[next].offset, start);
        assert_int_equal(extents->free[next].size, end - start);
        next++;
    }
    assert_int_equal(extents->num_free, next);
    assert_int_equal(extents->num_taken, model->num_taken);
    // Giving everything back must not need memory.
    assert_true(extents->capacity >= extents->num_free + extents->num_taken);
}

static void
assert_take(struct lli_extents *extents, struct model *model, uint64_t size, uint64_t align)
{
    uint64_t expected = 0;
    uint64_t offset = 12345;
    bool ok = model_take(model, size, align, &expected);
    assert_int_equal(lli_extents_take(extents, size, align, &offset), ok);
    assert_int_equal(offset, ok ? expected : 12345);
}

static struct lli_extents
copy_of(const struct lli_extents *extents)
{
    struct lli_extents copy = *extents;
    copy.free = lli_malloc(extents->capacity * sizeof(*copy.free));
    assert_non_null(copy.free);
    memcpy(copy.free, extents->free, extents->num_free * sizeof(*copy.free));
    return copy;
}

static unsigned num_states;

// All sequences of takes and gives up to `depth`.
static void
explore(const struct lli_extents *extents, const struct model *model, unsigned depth)
{
    num_states++;
    assert_same(extents, model);
    if (depth == 0)
        return;
    for (uint64_t size = 1; size <= 3; size++) {
        for (uint64_t align = 1; align <= 4; align *= 2) {
            struct lli_extents next = copy_of(extents);
            struct model next_model = *model;
            assert_take(&next, &next_model, size, align);
            if (next_model.num_taken != model->num_taken)
                explore(&next, &next_model, depth - 1);
            lli_extents_fini(&next);
        }
    }
    for (size_t i = 0; i < model->num_taken; i++) {
        struct lli_extents next = copy_of(extents);
        struct model next_model = *model;
        struct taken given = model_give(&next_model, i);
        lli_extents_give(&next, given.offset, given.size);
        explore(&next, &next_model, depth - 1);
        lli_extents_fini(&next);
    }
}

static void
add_range(struct lli_extents *extents, struct model *model, uint64_t offset, uint64_t size)
{
    assert_true(lli_extents_add(extents, offset, size) == LLM_SUCCESS);
    for (uint64_t i = 0; i < size; i++)
        model->is_free[offset + i] = true;
}

static struct model *
new_model(size_t num_units)
{
    struct model *model = unit_alloc(sizeof(*model));
    model->num_units = num_units;
    return model;
}

static void
test_every_short_sequence_agrees_with_the_model(void **state)
{
    (void)state;
    // One piece, and two with a hole between.
    for (int pieces = 1; pieces <= 2; pieces++) {
        struct model *model = new_model(9);
        struct lli_extents extents;
        lli_extents_init(&extents);
        if (pieces == 1) {
            add_range(&extents, model, 1, 8);
        } else {
            add_range(&extents, model, 5, 4);
            add_range(&extents, model, 0, 4);
        }
        explore(&extents, model, 4);
        lli_extents_fini(&extents);
        free(model);
    }
    assert_true(num_states > 2000);
}

// Seven neighbouring pieces, added in every order, are one range at the end.
static void
add_in_every_order(struct lli_extents *extents, struct model *model, unsigned left)
{
    if (left == 0) {
        assert_int_equal(extents->num_free, 1);
        return;
    }
    for (unsigned i = 0; i < 7; i++) {
        if ((left & 1u << i) == 0)
            continue;
        struct lli_extents next = copy_of(extents);
        struct model next_model = *model;
        add_range(&next, &next_model, i, 1);
        assert_same(&next, &next_model);
        add_in_every_order(&next, &next_model, left & ~(1u << i));
        lli_extents_fini(&next);
    }
}

static void
test_pieces_merge_in_whatever_order_they_come(void **state)
{
    struct model *model = new_model(9);
    struct lli_extents extents;
    (void)state;
    lli_extents_init(&extents);
    extents.free = lli_malloc(16 * sizeof(*extents.free));
    assert_non_null(extents.free);
    extents.capacity = 16;
    add_in_every_order(&extents, model, 0x7f);
    lli_extents_fini(&extents);
    free(model);
}

static void
test_long_random_sequences_agree_with_the_model(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct model *model = new_model(UNITS_MAX);
        struct lli_extents extents;
        uint64_t random = seed;
        lli_extents_init(&extents);
        add_range(&extents, model, 0, UNITS_MAX);
        for (int i = 0; i < 6000; i++) {
            uint64_t pick = unit_random(&random);
            if (pick % 100 < 55 || model->num_taken == 0) {
                assert_take(&extents, model, 1 + (pick >> 8) % 60,
                            UINT64_C(1) << ((pick >> 20) % 8));
            } else {
                struct taken given = model_give(model, (pick >> 8) % model->num_taken);
                lli_extents_give(&extents, given.offset, given.size);
            }
            if (i % 16 == 0)
                assert_same(&extents, model);
        }
        while (model->num_taken > 0) {
            struct taken given = model_give(model, model->num_taken - 1);
            lli_extents_give(&extents, given.offset, given.size);
        }
        assert_same(&extents, model);
        assert_int_equal(extents.num_free, 1);
        lli_extents_fini(&extents);
        free(model);
    }
}

static void
test_giving_back_needs_no_memory(void **state)
{
    struct lli_extents extents;
    uint64_t offsets[512];
    (void)state;
    lli_extents_init(&extents);
    assert_true(lli_extents_add(&extents, 0, LLI_COUNT(offsets)) == LLM_SUCCESS);
    for (size_t i = 0; i < LLI_COUNT(offsets); i++)
        assert_true(lli_extents_take(&extents, 1, 1, &offsets[i]));
    // Every second first: the most ranges that there can be.
    lli_mem_fail_after(1);
    for (size_t i = 0; i < LLI_COUNT(offsets); i += 2)
        lli_extents_give(&extents, offsets[i], 1);
    assert_int_equal(extents.num_free, LLI_COUNT(offsets) / 2);
    for (size_t i = 1; i < LLI_COUNT(offsets); i += 2)
        lli_extents_give(&extents, offsets[i], 1);
    assert_int_equal(lli_mem_fail_after(0), 1);
    assert_int_equal(extents.num_free, 1);
    lli_extents_fini(&extents);
}

static void
test_without_memory_nothing_is_taken_or_added(void **state)
{
    struct lli_extents extents;
    uint64_t offset;
    (void)state;
    lli_extents_init(&extents);
    lli_mem_fail_after(1);
    assert_true(lli_extents_add(&extents, 0, 8) == LLM_OUT_OF_MEMORY);
    assert_int_equal(extents.num_free, 0);
    assert_true(lli_extents_add(&extents, 0, 8) == LLM_SUCCESS);
    unsigned num_taken = 0;
    bool struck = false;
    lli_mem_fail_after(1);
    while (num_taken < 8 && !struck) {
        bool ok = lli_extents_take(&extents, 1, 1, &offset);
        struck = !ok;
        num_taken += ok;
    }
    assert_int_equal(lli_mem_fail_after(0), 0);
    assert_true(struck);
    assert_int_equal(extents.num_taken, num_taken);
    // The failure has left everything as it was.
    assert_true(lli_extents_take(&extents, 1, 1, &offset));
    assert_int_equal(offset, num_taken);
    lli_extents_fini(&extents);
}

static void
test_nothing_is_taken_from_nothing(void **state)
{
    struct lli_extents extents;
    uint64_t offset;
    (void)state;
    lli_extents_init(&extents);
    assert_false(lli_extents_take(&extents, 1, 1, &offset));
    assert_false(lli_extents_take(&extents, UINT64_MAX, 1, &offset));
    lli_extents_fini(&extents);
    lli_extents_fini(&extents);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_short_sequence_agrees_with_the_model),
        cmocka_unit_test(test_pieces_merge_in_whatever_order_they_come),
        cmocka_unit_test(test_long_random_sequences_agree_with_the_model),
        cmocka_unit_test(test_giving_back_needs_no_memory),
        cmocka_unit_test(test_without_memory_nothing_is_taken_or_added),
        cmocka_unit_test(test_nothing_is_taken_from_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

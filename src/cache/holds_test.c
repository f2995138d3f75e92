// Memory that somebody still looks at, beyond its cache and its registry.
#include "cache/holds.h"

#include "base/mem.h"
#include "unit/unit.h"

enum { POOL_BYTES = 1 << 20, NUM_DEVICES = 2 };

static struct lli_segment segment;
static struct lli_pool pools[NUM_DEVICES];
static struct lli_registry registry;
static bool is_open;

static const struct lli_geometry geometry = {
    .placement = LLM_PLACEMENT_DEVICE,
    .num_tensors = 1,
    .data_type = LLM_DT_INT8,
    .num_slots = 4,
    .stride = 1024,
    .tensor_bytes = 4096,
};

static bool
nobody_reads(void *arg, uint64_t generation)
{
    (void)arg;
    (void)generation;
    return false;
}

static int
setup(void **state)
{
    (void)state;
    if (lli_segment_open(&segment, 1, 2, NUM_DEVICES) != LLM_SUCCESS)
        return -1;
    for (size_t i = 0; i < NUM_DEVICES; i++) {
        if (lli_pool_open(&pools[i], POOL_BYTES, NULL, 0) != LLM_SUCCESS)
            return -1;
    }
    lli_registry_open(&registry, &segment, pools, NUM_DEVICES, 0, nobody_reads, NULL);
    is_open = true;
    return 0;
}

static void
close_all(void)
{
    if (!is_open)
        return;
    is_open = false;
    lli_registry_close(&registry);
    for (size_t i = 0; i < NUM_DEVICES; i++)
        lli_pool_close(&pools[i]);
    lli_segment_close(&segment);
}

static int
teardown(void **state)
{
    (void)state;
    lli_mem_fail_after(0);
    close_all();
    return 0;
}

static int64_t
allocate(uint8_t **ret_memory)
{
    int64_t id = 0;
    uintptr_t addresses[NUM_DEVICES];
    assert_true(lli_registry_allocate(&registry, &geometry, &id, addresses) == LLM_SUCCESS);
    for (size_t i = 0; i < NUM_DEVICES; i++)
        ret_memory[i] = (uint8_t *)addresses[i]; // NOLINT: as callers do
    return id;
}

static llm_memory_hold *
hold(int64_t id)
{
    llm_memory_hold *held = NULL;
    assert_true(lli_holds_take(&registry, id, &held) == LLM_SUCCESS);
    return held;
}

static void
test_held_memory_outlives_its_cache_and_is_nobody_elses(void **state)
{
    uint8_t *mine[NUM_DEVICES], *other[NUM_DEVICES];
    (void)state;
    int64_t id = allocate(mine);
    llm_memory_hold *one = hold(id), *two = hold(id);
    memset(mine[1], 7, geometry.tensor_bytes);
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    assert_null(lli_registry_hold(&registry, id));
    lli_holds_release(one);
    // Another cache lies elsewhere.
    int64_t next = allocate(other);
    memset(other[1], 9, geometry.tensor_bytes);
    assert_ptr_not_equal(mine[1], other[1]);
    assert_int_equal(mine[1][geometry.tensor_bytes - 1], 7);
    assert_int_equal(pools[1].bytes_used, 2 * geometry.tensor_bytes);
    lli_holds_release(two);
    assert_int_equal(pools[1].bytes_used, geometry.tensor_bytes);
    assert_true(lli_registry_deallocate(&registry, next) == LLM_SUCCESS);
    assert_int_equal(pools[0].bytes_used + pools[1].bytes_used, 0);
}

static void
test_a_hold_that_ends_first_changes_nothing(void **state)
{
    uint8_t *mine[NUM_DEVICES];
    (void)state;
    int64_t id = allocate(mine);
    lli_holds_release(hold(id));
    mine[0][0] = 5;
    assert_int_equal(pools[0].bytes_used, geometry.tensor_bytes);
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    assert_int_equal(pools[0].bytes_used, 0);
}

static void
test_held_memory_outlives_the_registry_and_the_pools(void **state)
{
    uint8_t *live[NUM_DEVICES], *freed[NUM_DEVICES];
    (void)state;
    int64_t id = allocate(live), gone = allocate(freed);
    llm_memory_hold *one = hold(id), *two = hold(gone);
    memset(live[0], 3, geometry.tensor_bytes);
    memset(freed[1], 4, geometry.tensor_bytes);
    assert_true(lli_registry_deallocate(&registry, gone) == LLM_SUCCESS);
    close_all();
    assert_int_equal(live[0][0], 3);
    assert_int_equal(freed[1][geometry.tensor_bytes - 1], 4);
    lli_holds_release(one);
    freed[1][0] = 6; // the mapping is still there
    assert_int_equal(freed[1][0], 6);
    lli_holds_release(two);
    lli_holds_release(NULL);
}

static void
test_what_is_unknown_or_registered_cannot_be_held(void **state)
{
    uint8_t *mine[NUM_DEVICES];
    llm_memory_hold *held = NULL;
    (void)state;
    int64_t id = allocate(mine);
    assert_true(lli_holds_take(&registry, id + 1, &held) == LLM_KV_CACHE_NOT_EXIST);
    lli_mem_fail_after(1);
    assert_true(lli_holds_take(&registry, id, &held) == LLM_OUT_OF_MEMORY);
    lli_mem_fail_after(0);
    assert_null(held);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_held_memory_outlives_its_cache_and_is_nobody_elses),
        TEST(test_a_hold_that_ends_first_changes_nothing),
        TEST(test_held_memory_outlives_the_registry_and_the_pools),
        TEST(test_what_is_unknown_or_registered_cannot_be_held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Caches by id: references keep memory, peers that read keep it for a while, failures keep nothing.
#include "cache/registry.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/mem.h"
#include "unit/unit.h"

enum { POOL_BYTES = 1 << 20, NUM_DEVICES = 2, FOREVER = 3600 };

static struct lli_segment segment;
static struct lli_pool pools[NUM_DEVICES];
static struct lli_registry registry;
static _Atomic uint64_t read_generation; // what a peer announces to read; 0 = nothing
static _Atomic unsigned num_warnings;

static const struct lli_geometry geometry = {
    .placement = LLM_PLACEMENT_DEVICE,
    .num_tensors = 3,
    .data_type = LLM_DT_INT8,
    .num_slots = 4,
    .stride = 1024,
    .tensor_bytes = 4096,
};

static bool
is_read(void *arg, uint64_t generation)
{
    assert_ptr_equal(arg, &registry);
    return generation == atomic_load(&read_generation);
}

static void
count_warnings(void *arg, llm_log_level level, const char *line)
{
    (void)arg;
    (void)line;
    if (level == LLM_LOG_WARN)
        atomic_fetch_add(&num_warnings, 1);
}

static int
open_with(size_t num_devices, uint64_t patience_ns)
{
    atomic_store(&read_generation, 0);
    atomic_store(&num_warnings, 0);
    llm_set_log_sink(count_warnings, NULL);
    if (lli_segment_open(&segment, 1, 2, num_devices) != LLM_SUCCESS)
        return -1;
    for (size_t i = 0; i < num_devices; i++) {
        if (lli_pool_open(&pools[i], POOL_BYTES, NULL, 0) != LLM_SUCCESS)
            return -1;
    }
    lli_registry_open(&registry, &segment, pools, num_devices, patience_ns, is_read, &registry);
    return 0;
}

static int
setup(void **state)
{
    (void)state;
    return open_with(NUM_DEVICES, LLI_MS_TO_NS(FOREVER * UINT64_C(1000)));
}

static int
setup_impatient(void **state)
{
    (void)state;
    return open_with(NUM_DEVICES, 0);
}

static int
setup_one_device(void **state)
{
    (void)state;
    return open_with(1, LLI_MS_TO_NS(FOREVER * UINT64_C(1000)));
}

static int
teardown(void **state)
{
    (void)state;
    lli_mem_fail_after(0);
    lli_registry_close(&registry);
    for (size_t i = 0; i < registry.num_devices; i++) {
        // Everything has come back.
        if (pools[i].bytes_used != 0 || pools[i].extents.num_free != 1)
            return -1;
        lli_pool_close(&pools[i]);
    }
    lli_segment_close(&segment);
    llm_set_log_sink(NULL, NULL);
    return 0;
}

static int64_t
allocate(void)
{
    int64_t id = 0;
    uintptr_t addresses[3 * NUM_DEVICES];
    assert_true(lli_registry_allocate(&registry, &geometry, &id, addresses) == LLM_SUCCESS);
    return id;
}

static uint64_t
generation_of(int64_t id)
{
    struct lli_remote_cache found;
    assert_true(lli_segment_find(segment.layout, id, &found));
    return found.generation;
}

static void
test_a_cache_has_its_tensors_on_every_device(void **state)
{
    int64_t id = 0;
    uintptr_t addresses[3 * NUM_DEVICES] = {0};
    struct lli_remote_cache found;
    (void)state;
    assert_true(lli_registry_allocate(&registry, &geometry, &id, addresses) == LLM_SUCCESS);
    assert_int_equal(id, 1);
    assert_true(lli_segment_find(segment.layout, id, &found));
    for (size_t i = 0; i < LLI_COUNT(addresses); i++) {
        const struct lli_pool *pool = &pools[i / 3];
        assert_true(addresses[i] >= (uintptr_t)pool->base);
        assert_true(addresses[i] + 4096 <= (uintptr_t)pool->base + pool->bytes);
        assert_true(segment.layout->addresses[found.first_address + i] ==
                    addresses[i] - (uintptr_t)pool->base);
        for (size_t j = 0; j < i; j++)
            assert_true(addresses[j] != addresses[i]);
    }
    assert_int_equal(pools[0].bytes_used, 3 * 4096);
    assert_int_equal(pools[1].bytes_used, 3 * 4096);
}

static void
test_ids_count_up_also_over_failures(void **state)
{
    struct lli_geometry huge = geometry;
    int64_t id = -5;
    uintptr_t addresses[3 * NUM_DEVICES] = {0};
    (void)state;
    assert_int_equal(allocate(), 1);
    assert_int_equal(allocate(), 2);
    huge.tensor_bytes = POOL_BYTES / 2;
    assert_true(lli_registry_allocate(&registry, &huge, &id, addresses) ==
                LLM_DEVICE_OUT_OF_MEMORY);
    assert_int_equal(id, -5);
    for (size_t i = 0; i < LLI_COUNT(addresses); i++)
        assert_int_equal(addresses[i], 0);
    assert_int_equal(pools[0].bytes_used, 2 * 3 * 4096);
    assert_int_equal(pools[1].bytes_used, 2 * 3 * 4096);
    assert_int_equal(allocate(), 4);
}

static void
test_more_tensors_than_the_directory_describes_are_refused(void **state)
{
    struct lli_geometry wide = geometry;
    int64_t id = -5;
    (void)state;
    wide.num_tensors = UINT32_MAX;
    assert_true(lli_registry_allocate(&registry, &wide, &id, NULL) == LLM_DEVICE_OUT_OF_MEMORY);
    wide.num_tensors = LLI_NUM_ADDRESSES / NUM_DEVICES + 1;
    assert_true(lli_registry_allocate(&registry, &wide, &id, NULL) == LLM_DEVICE_OUT_OF_MEMORY);
    assert_int_equal(id, -5);
}

static void
test_unknown_ids_cannot_be_held_or_freed(void **state)
{
    static const int64_t ids[] = {0, -1, 2, 1 + LLI_NUM_CACHE_BUCKETS, INT64_MAX, INT64_MIN};
    (void)state;
    allocate();
    for (size_t i = 0; i < LLI_COUNT(ids); i++) {
        assert_null(lli_registry_hold(&registry, ids[i]));
        assert_true(lli_registry_deallocate(&registry, ids[i]) == LLM_KV_CACHE_NOT_EXIST);
    }
    assert_int_equal(registry.num_caches, 1);
}

static void
test_a_cache_is_freed_once(void **state)
{
    (void)state;
    int64_t id = allocate();
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    assert_int_equal(pools[0].bytes_used, 0);
    assert_true(lli_registry_deallocate(&registry, id) == LLM_KV_CACHE_NOT_EXIST);
    assert_null(lli_registry_hold(&registry, id));
    assert_int_equal(registry.num_caches, 0);
}

static void
test_references_keep_the_memory_of_a_freed_cache(void **state)
{
    (void)state;
    int64_t id = allocate();
    struct lli_cache *first = lli_registry_hold(&registry, id);
    struct lli_cache *second = lli_registry_hold(&registry, id);
    assert_non_null(first);
    assert_ptr_equal(first, second);
    memset((void *)first->addresses[0], 0x77, 4096);
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    assert_null(lli_registry_hold(&registry, id));
    lli_registry_collect(&registry);
    lli_registry_put(&registry, first);
    lli_registry_collect(&registry);
    assert_int_equal(pools[0].bytes_used, 3 * 4096);
    assert_int_equal(*(const uint8_t *)second->addresses[0], 0x77);
    lli_registry_put(&registry, second);
    assert_int_equal(pools[0].bytes_used, 0);
}

static void
test_references_to_a_live_cache_change_nothing(void **state)
{
    (void)state;
    int64_t id = allocate();
    for (int i = 0; i < 3; i++)
        lli_registry_put(&registry, lli_registry_hold(&registry, id));
    assert_int_equal(pools[0].bytes_used, 3 * 4096);
    assert_int_equal(registry.num_caches, 1);
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
}

static void
test_a_peer_that_reads_keeps_the_memory_until_it_has_ended(void **state)
{
    struct lli_remote_cache found;
    (void)state;
    int64_t id = allocate();
    int64_t other = allocate();
    assert_true(lli_segment_find(segment.layout, id, &found));
    atomic_store(&read_generation, found.generation);
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    assert_true(lli_registry_deallocate(&registry, other) == LLM_SUCCESS);
    lli_registry_collect(&registry);
    assert_int_equal(pools[0].bytes_used, 3 * 4096);
    // Nobody else gets in, and the reader's copy is good.
    assert_null(lli_registry_hold(&registry, id));
    assert_false(lli_segment_still_live(segment.layout, &found));
    assert_true(lli_segment_still_same(segment.layout, &found));
    atomic_store(&read_generation, 0);
    lli_registry_collect(&registry);
    assert_int_equal(pools[0].bytes_used, 0);
    assert_false(lli_segment_still_same(segment.layout, &found));
    assert_int_equal(atomic_load(&num_warnings), 0);
}

static void
test_memory_that_a_peer_has_left_is_there_for_the_next_allocation(void **state)
{
    struct lli_geometry all = geometry;
    int64_t id;
    int64_t next;
    uintptr_t addresses[3 * NUM_DEVICES];
    (void)state;
    all.tensor_bytes = POOL_BYTES / 4;
    assert_true(lli_registry_allocate(&registry, &all, &id, addresses) == LLM_SUCCESS);
    atomic_store(&read_generation, generation_of(id));
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    assert_true(lli_registry_allocate(&registry, &all, &next, addresses) ==
                LLM_DEVICE_OUT_OF_MEMORY);
    atomic_store(&read_generation, 0);
    assert_true(lli_registry_allocate(&registry, &all, &next, addresses) == LLM_SUCCESS);
}

static void
test_a_peer_that_never_ends_loses_the_memory_and_finds_out(void **state)
{
    struct lli_remote_cache found;
    (void)state;
    int64_t id = allocate();
    assert_true(lli_segment_find(segment.layout, id, &found));
    atomic_store(&read_generation, found.generation);
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    lli_registry_collect(&registry);
    assert_int_equal(pools[0].bytes_used, 0);
    assert_false(lli_segment_still_same(segment.layout, &found));
    assert_int_equal(atomic_load(&num_warnings), 1);
}

static void
test_a_reference_is_never_lost_to_impatience(void **state)
{
    (void)state;
    int64_t id = allocate();
    struct lli_cache *held = lli_registry_hold(&registry, id);
    atomic_store(&read_generation, generation_of(id));
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    lli_registry_collect(&registry);
    assert_int_equal(pools[0].bytes_used, 3 * 4096);
    lli_registry_put(&registry, held);
    assert_int_equal(pools[0].bytes_used, 0);
}

static void
test_many_caches_of_one_bucket_are_told_apart(void **state)
{
    struct lli_geometry small = geometry;
    uintptr_t addresses[3 * NUM_DEVICES];
    (void)state;
    small.num_tensors = 1;
    small.tensor_bytes = 1;
    for (int64_t i = 1; i <= 2000; i++) {
        int64_t id;
        assert_true(lli_registry_allocate(&registry, &small, &id, addresses) == LLM_SUCCESS);
        assert_int_equal(id, i);
    }
    for (int64_t i = 1; i <= 2000; i++) {
        struct lli_cache *cache = lli_registry_hold(&registry, i);
        assert_non_null(cache);
        assert_int_equal(cache->id, i);
        lli_registry_put(&registry, cache);
    }
    for (int64_t i = 2000; i >= 1; i -= 2)
        assert_true(lli_registry_deallocate(&registry, i) == LLM_SUCCESS);
    for (int64_t i = 1; i <= 2000; i++) {
        struct lli_cache *cache = lli_registry_hold(&registry, i);
        assert_int_equal(cache != NULL, i % 2 == 1);
        if (cache != NULL)
            lli_registry_put(&registry, cache);
    }
}

// What a server does: caches of its own that stay, and one for each request.
static void
test_ids_go_round_the_directory_past_caches_that_stay(void **state)
{
    enum { NUM_STAYING = 200, ROUNDS = 10 };
    uint8_t memory[64];
    uint64_t addresses[3] = {(uintptr_t)memory, (uintptr_t)memory, (uintptr_t)memory};
    struct lli_geometry small = geometry;
    int64_t staying[NUM_STAYING];
    int64_t last = 0;
    (void)state;
    small.num_slots = 1;
    small.stride = small.tensor_bytes = sizeof(memory);
    for (int i = 0; i < NUM_STAYING; i++)
        assert_true(lli_registry_register(&registry, &small, addresses, &staying[i]) ==
                    LLM_SUCCESS);
    for (int64_t i = 0; i < (int64_t)ROUNDS * LLI_NUM_ENTRIES; i++) {
        int64_t id = 0;
        assert_true(lli_registry_register(&registry, &small, addresses, &id) == LLM_SUCCESS);
        assert_true(id > last);
        last = id;
        if (i % 97 == 0)
            assert_true(generation_of(id) != 0);
        lli_registry_unregister(&registry, id);
    }
    assert_true(last > (int64_t)ROUNDS * LLI_NUM_ENTRIES);
    for (int i = 0; i < NUM_STAYING; i++) {
        assert_true(generation_of(staying[i]) != 0);
        lli_registry_unregister(&registry, staying[i]);
    }
}

static void
test_closing_frees_what_is_live_and_what_is_read(void **state)
{
    (void)state;
    int64_t id = allocate();
    allocate();
    atomic_store(&read_generation, generation_of(id));
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    // The teardown closes and looks at the pools.
}

// ---- registered memory ----

static void
test_registered_memory_is_published_as_it_is(void **state)
{
    static uint8_t memory[3][4096];
    uint64_t addresses[3];
    struct lli_remote_cache found;
    int64_t id = 0;
    (void)state;
    for (size_t i = 0; i < 3; i++)
        addresses[i] = (uintptr_t)memory[i];
    assert_true(lli_registry_register(&registry, &geometry, addresses, &id) == LLM_SUCCESS);
    assert_int_equal(id, 1);
    assert_true(lli_segment_find(segment.layout, id, &found));
    assert_true((found.flags & UINT32_MAX) == LLI_ENTRY_REGISTERED);
    struct lli_cache *cache = lli_registry_hold(&registry, id);
    assert_non_null(cache);
    for (size_t i = 0; i < 3; i++) {
        assert_true(cache->addresses[i] == (uintptr_t)memory[i]);
        assert_true(segment.layout->addresses[found.first_address + i] == addresses[i]);
    }
    lli_registry_put(&registry, cache);
    assert_int_equal(pools[0].bytes_used, 0);
    assert_true(lli_registry_deallocate(&registry, id) == LLM_KV_CACHE_NOT_EXIST);
    lli_registry_unregister(&registry, id);
    assert_null(lli_registry_hold(&registry, id));
    lli_registry_unregister(&registry, id);
    lli_registry_unregister(&registry, 77);
    assert_int_equal(allocate(), 2);
    // An allocated cache isn't unregistered.
    lli_registry_unregister(&registry, 2);
    assert_int_equal(registry.num_caches, 1);
}

static _Atomic bool unregistered;

static void *
unregister(void *arg)
{
    lli_registry_unregister(&registry, *(const int64_t *)arg);
    atomic_store(&unregistered, true);
    return NULL;
}

static void
test_unregistering_waits_for_references_and_for_peers(void **state)
{
    static uint8_t memory[3][4096];
    uint64_t addresses[3];
    (void)state;
    for (size_t i = 0; i < 3; i++)
        addresses[i] = (uintptr_t)memory[i];
    for (int peer = 0; peer <= 1; peer++) {
        int64_t id;
        pthread_t thread;
        assert_true(lli_registry_register(&registry, &geometry, addresses, &id) == LLM_SUCCESS);
        struct lli_cache *held = lli_registry_hold(&registry, id);
        assert_non_null(held);
        if (peer)
            atomic_store(&read_generation, generation_of(id));
        atomic_store(&unregistered, false);
        assert_int_equal(pthread_create(&thread, NULL, unregister, &id), 0);
        uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
        bool gone = false;
        // It is unknown to new calls at once...
        while (!gone && lli_now_ns() < deadline) {
            struct lli_cache *cache = lli_registry_hold(&registry, id);
            gone = cache == NULL;
            if (!gone)
                lli_registry_put(&registry, cache);
        }
        assert_true(gone);
        // ...and not returned while it is used.
        assert_false(atomic_load(&unregistered));
        lli_registry_put(&registry, held);
        if (peer)
            assert_false(atomic_load(&unregistered));
        atomic_store(&read_generation, 0);
        pthread_join(thread, NULL);
    }
}

// ---- failures ----

static void
test_without_memory_nothing_is_allocated_and_a_retry_works(void **state)
{
    unsigned num_failures = 0;
    (void)state;
    for (uint64_t n = 1;; n++) {
        int64_t id = -5;
        uintptr_t addresses[3 * NUM_DEVICES] = {0};
        uint64_t used[] = {pools[0].bytes_used, pools[1].bytes_used};
        lli_mem_fail_after(n);
        llm_status status = lli_registry_allocate(&registry, &geometry, &id, addresses);
        bool struck = lli_mem_fail_after(0) == 0;
        if (!struck) {
            assert_true(status == LLM_SUCCESS);
            break;
        }
        num_failures++;
        assert_true(status == LLM_DEVICE_OUT_OF_MEMORY);
        assert_int_equal(id, -5);
        assert_int_equal(addresses[0], 0);
        assert_int_equal(pools[0].bytes_used, used[0]);
        assert_int_equal(pools[1].bytes_used, used[1]);
    }
    assert_true(num_failures >= 3);
    allocate();
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_cache_has_its_tensors_on_every_device),
        TEST(test_ids_count_up_also_over_failures),
        TEST(test_more_tensors_than_the_directory_describes_are_refused),
        TEST(test_unknown_ids_cannot_be_held_or_freed),
        TEST(test_a_cache_is_freed_once),
        TEST(test_references_keep_the_memory_of_a_freed_cache),
        TEST(test_references_to_a_live_cache_change_nothing),
        TEST(test_a_peer_that_reads_keeps_the_memory_until_it_has_ended),
        TEST(test_memory_that_a_peer_has_left_is_there_for_the_next_allocation),
        cmocka_unit_test_setup_teardown(test_a_peer_that_never_ends_loses_the_memory_and_finds_out,
                                        setup_impatient, teardown),
        cmocka_unit_test_setup_teardown(test_a_reference_is_never_lost_to_impatience,
                                        setup_impatient, teardown),
        TEST(test_many_caches_of_one_bucket_are_told_apart),
        cmocka_unit_test_setup_teardown(test_ids_go_round_the_directory_past_caches_that_stay,
                                        setup_one_device, teardown),
        TEST(test_closing_frees_what_is_live_and_what_is_read),
        cmocka_unit_test_setup_teardown(test_registered_memory_is_published_as_it_is,
                                        setup_one_device, teardown),
        cmocka_unit_test_setup_teardown(test_unregistering_waits_for_references_and_for_peers,
                                        setup_one_device, teardown),
        TEST(test_without_memory_nothing_is_allocated_and_a_retry_works),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

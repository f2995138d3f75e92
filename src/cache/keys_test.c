// Keys: what binding refuses and undoes, what pulls take, and the memory that keys keep.
#include "cache/keys.h"

#include "base/mem.h"
#include "unit/unit.h"

enum {
    POOL_BYTES = 1 << 20,
    NUM_DEVICES = 2,
    TENSORS = 3,
    SLOTS = 4,
    CACHE_BYTES = TENSORS * 4096
};

static struct lli_segment segment;
static struct lli_pool pools[NUM_DEVICES];
static struct lli_registry registry;
static uint64_t read_generation; // what a peer announces to read; 0 = nothing

static const struct lli_geometry geometry = {
    .placement = LLM_PLACEMENT_DEVICE,
    .num_tensors = TENSORS,
    .data_type = LLM_DT_INT8,
    .num_slots = SLOTS,
    .stride = 1024,
    .tensor_bytes = 4096,
};

static bool
is_read(void *arg, uint64_t generation)
{
    (void)arg;
    return generation == read_generation;
}

static int
open_with(size_t num_devices)
{
    llm_set_log_level(LLM_LOG_OFF);
    read_generation = 0;
    if (lli_segment_open(&segment, 1, 2, num_devices) != LLM_SUCCESS)
        return -1;
    for (size_t i = 0; i < num_devices; i++) {
        if (lli_pool_open(&pools[i], POOL_BYTES, NULL, 0) != LLM_SUCCESS)
            return -1;
    }
    lli_registry_open(&registry, &segment, pools, num_devices, LLI_MS_TO_NS(UINT64_C(3600000)),
                      is_read, &registry);
    return 0;
}

static int
setup(void **state)
{
    (void)state;
    return open_with(NUM_DEVICES);
}

static int
setup_one_device(void **state)
{
    (void)state;
    return open_with(1);
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
    return 0;
}

static int64_t
allocate(void)
{
    int64_t id = 0;
    uintptr_t addresses[TENSORS * NUM_DEVICES];
    assert_true(lli_registry_allocate(&registry, &geometry, &id, addresses) == LLM_SUCCESS);
    return id;
}

static struct lli_key
request_key(uint64_t id)
{
    return (struct lli_key){.kind = LLM_KEY_REQUEST, .id = id};
}

static struct lli_key
prefix_key(uint64_t id)
{
    return (struct lli_key){.kind = LLM_KEY_PREFIX, .id = id};
}

static const struct lli_key no_key = {.kind = LLM_KEY_NONE};
static const struct lli_key blocks_key = {.kind = LLM_KEY_BLOCKS, .model_id = 8};

static llm_status
bind_keys(int64_t id, const struct lli_key *keys, size_t num_keys)
{
    return lli_keys_bind(&registry, id, keys, num_keys);
}

static void
must_bind(int64_t id, struct lli_key key)
{
    assert_true(bind_keys(id, &key, 1) == LLM_SUCCESS);
}

// The owner and its peers must agree: the id of the cache to which the key leads, 0: none.
static int64_t
follow(struct lli_key key, uint64_t *ret_slot)
{
    struct lli_remote_cache found;
    uint64_t slot = UINT64_MAX;
    uint64_t remote_slot = UINT64_MAX;
    bool is_found = lli_names_find_key(segment.layout, &key, &found, &remote_slot);
    struct lli_cache *cache = lli_keys_hold(&registry, &key, &slot);
    assert_int_equal(cache != NULL, is_found);
    if (cache == NULL)
        return 0;
    int64_t id = cache->id;
    assert_int_equal(found.cache_id, id);
    assert_int_equal(remote_slot, slot);
    lli_registry_put(&registry, cache);
    *ret_slot = slot;
    return id;
}

static bool
leads_to(struct lli_key key, int64_t id, uint64_t slot)
{
    uint64_t found_slot = UINT64_MAX;
    return follow(key, &found_slot) == id && found_slot == slot;
}

static bool
is_bound(struct lli_key key)
{
    uint64_t slot;
    return follow(key, &slot) != 0;
}

static uint64_t
generation_of(struct lli_key key)
{
    struct lli_remote_cache found;
    uint64_t slot;
    assert_true(lli_names_find_key(segment.layout, &key, &found, &slot));
    return found.generation;
}

static llm_status
take(struct lli_key key, uint64_t generation, uint32_t first_tensor, uint32_t num_tensors)
{
    struct lli_taken taken = {
        .by_key = true,
        .key = key,
        .generation = generation,
        .first_tensor = first_tensor,
        .num_tensors = num_tensors,
    };
    return lli_keys_take(&registry, &taken);
}

static void
take_by_id(int64_t id, uint64_t slot, uint64_t generation)
{
    struct lli_taken taken = {
        .cache_id = id, .slot = slot, .generation = generation, .num_tensors = TENSORS};
    assert_true(lli_keys_take(&registry, &taken) == LLM_SUCCESS);
}

// ---- binding ----

static void
test_key_i_names_slot_i(void **state)
{
    int64_t id = allocate();
    struct lli_key keys[] = {request_key(5), no_key, prefix_key(5)};
    (void)state;
    assert_true(bind_keys(id, keys, 3) == LLM_SUCCESS);
    assert_true(leads_to(keys[0], id, 0));
    assert_false(is_bound(no_key));
    assert_true(leads_to(keys[2], id, 2));
    // Another call adds keys; a slot may have several.
    must_bind(id, request_key(6));
    assert_true(leads_to(request_key(6), id, 0));
    assert_true(leads_to(request_key(5), id, 0));
}

static void
test_more_keys_than_slots_are_refused(void **state)
{
    int64_t id = allocate();
    struct lli_key keys[SLOTS + 1];
    (void)state;
    for (uint64_t i = 0; i <= SLOTS; i++)
        keys[i] = request_key(i);
    assert_true(bind_keys(id, keys, SLOTS + 1) == LLM_PARAM_INVALID);
    for (uint64_t i = 0; i <= SLOTS; i++)
        assert_false(is_bound(keys[i]));
    assert_true(bind_keys(id, keys, SLOTS) == LLM_SUCCESS);
    assert_true(bind_keys(id + 1, keys, 1) == LLM_KV_CACHE_NOT_EXIST);
}

static void
test_of_equal_keys_the_last_one_counts(void **state)
{
    int64_t id = allocate();
    struct lli_key keys[] = {request_key(1), request_key(1), no_key, request_key(1)};
    (void)state;
    assert_true(bind_keys(id, keys, 4) == LLM_SUCCESS);
    assert_true(leads_to(request_key(1), id, 3));
    lli_keys_remove(&registry, &keys[0]);
    assert_false(is_bound(request_key(1)));
}

static void
test_a_bound_key_is_refused_with_all_others_of_the_call(void **state)
{
    int64_t first = allocate();
    int64_t second = allocate();
    struct lli_key keys[] = {request_key(1), request_key(2), request_key(3)};
    (void)state;
    must_bind(first, request_key(3));
    assert_true(bind_keys(second, keys, 3) == LLM_CACHE_KEY_ALREADY_EXIST);
    assert_false(is_bound(keys[0]));
    assert_false(is_bound(keys[1]));
    assert_true(leads_to(keys[2], first, 0));
    // Also on the same cache.
    assert_true(bind_keys(first, keys, 3) == LLM_CACHE_KEY_ALREADY_EXIST);
    assert_false(is_bound(keys[0]));
    assert_true(leads_to(keys[2], first, 0));
}

static void
test_without_memory_nothing_is_bound_and_a_retry_works(void **state)
{
    int64_t id = allocate();
    struct lli_key keys[] = {request_key(1), prefix_key(2), request_key(3)};
    unsigned num_failures = 0;
    (void)state;
    must_bind(id, request_key(9));
    for (uint64_t n = 1;; n++) {
        lli_mem_fail_after(n);
        llm_status status = bind_keys(id, keys, 3);
        bool struck = lli_mem_fail_after(0) == 0;
        if (!struck) {
            assert_true(status == LLM_SUCCESS);
            break;
        }
        num_failures++;
        assert_true(status == LLM_OUT_OF_MEMORY);
        for (size_t i = 0; i < 3; i++)
            assert_false(is_bound(keys[i]));
        assert_true(leads_to(request_key(9), id, 0));
    }
    assert_int_equal(num_failures, 3);
    assert_true(leads_to(keys[0], id, 0));
}

static void
test_too_many_keys_are_refused_and_undone(void **state)
{
    struct lli_geometry wide = {
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = 1,
        .data_type = LLM_DT_INT8,
        .num_slots = LLI_NUM_KEY_ENTRIES + 1,
        .stride = 1,
        .tensor_bytes = LLI_NUM_KEY_ENTRIES + 1,
    };
    struct lli_key *keys = unit_alloc((LLI_NUM_KEY_ENTRIES + 1) * sizeof(*keys));
    uintptr_t addresses[NUM_DEVICES];
    int64_t id;
    (void)state;
    for (uint64_t i = 0; i <= LLI_NUM_KEY_ENTRIES; i++)
        keys[i] = request_key(i);
    assert_true(lli_registry_allocate(&registry, &wide, &id, addresses) == LLM_SUCCESS);
    assert_true(bind_keys(id, keys, LLI_NUM_KEY_ENTRIES + 1) == LLM_OUT_OF_MEMORY);
    for (uint64_t i = 0; i <= LLI_NUM_KEY_ENTRIES; i += 101)
        assert_false(is_bound(keys[i]));
    assert_true(bind_keys(id, keys, 1000) == LLM_SUCCESS);
    assert_true(leads_to(keys[999], id, 999));
    free(keys);
}

// ---- taking ----

static void
test_a_request_key_is_taken_once(void **state)
{
    int64_t id = allocate();
    (void)state;
    must_bind(id, request_key(1));
    uint64_t generation = generation_of(request_key(1));
    assert_true(take(request_key(1), generation, 0, TENSORS) == LLM_SUCCESS);
    assert_false(is_bound(request_key(1)));
    assert_true(take(request_key(1), generation, 0, TENSORS) == LLM_KV_CACHE_NOT_EXIST);
    // It can be bound again.
    must_bind(id, request_key(1));
    assert_true(take(request_key(1), 0, 0, TENSORS) == LLM_SUCCESS);
}

static void
test_a_key_that_leads_to_another_cache_by_now_is_not_taken(void **state)
{
    int64_t first = allocate();
    int64_t second = allocate();
    (void)state;
    must_bind(first, request_key(1));
    uint64_t generation = generation_of(request_key(1));
    lli_keys_remove(&registry, &(struct lli_key){.kind = LLM_KEY_REQUEST, .id = 1});
    must_bind(second, request_key(1));
    assert_true(take(request_key(1), generation, 0, TENSORS) == LLM_KV_CACHE_NOT_EXIST);
    assert_true(leads_to(request_key(1), second, 0));
}

static void
test_a_key_that_was_bound_anew_is_not_taken_by_an_earlier_pull(void **state)
{
    int64_t id = allocate();
    struct lli_key key = request_key(1);
    (void)state;
    must_bind(id, request_key(1));
    key.stamp = lli_keys_stamp(&registry, &key);
    assert_true(key.stamp != 0);
    lli_keys_remove(&registry, &key);
    assert_int_equal(lli_keys_stamp(&registry, &key), 0);
    // The same name of the same slot of the same cache, for other contents.
    must_bind(id, request_key(1));
    uint64_t slot;
    assert_null(lli_keys_hold(&registry, &key, &slot));
    assert_true(take(key, generation_of(request_key(1)), 0, TENSORS) == LLM_KV_CACHE_NOT_EXIST);
    assert_true(is_bound(request_key(1)));
    key = request_key(1);
    key.stamp = lli_keys_stamp(&registry, &key);
    assert_true(take(key, generation_of(request_key(1)), 0, TENSORS) == LLM_SUCCESS);
    assert_false(is_bound(request_key(1)));
}

static void
test_some_tensors_are_taken_alone(void **state)
{
    int64_t id = allocate();
    (void)state;
    must_bind(id, request_key(1));
    assert_true(take(request_key(1), 0, 0, 2) == LLM_SUCCESS);
    assert_true(is_bound(request_key(1)));
    // The same ones again add nothing.
    assert_true(take(request_key(1), 0, 0, 2) == LLM_SUCCESS);
    assert_true(take(request_key(1), 0, 1, 1) == LLM_SUCCESS);
    assert_true(take(request_key(1), 0, 0, 0) == LLM_SUCCESS);
    assert_true(is_bound(request_key(1)));
    // Beyond the end nothing happens; what overlaps counts.
    assert_true(take(request_key(1), 0, TENSORS, UINT32_MAX) == LLM_SUCCESS);
    assert_true(take(request_key(1), 0, UINT32_MAX, UINT32_MAX) == LLM_SUCCESS);
    assert_true(is_bound(request_key(1)));
    assert_true(take(request_key(1), 0, 1, UINT32_MAX) == LLM_SUCCESS);
    assert_false(is_bound(request_key(1)));
}

static void
test_prefix_and_blocks_keys_are_never_taken(void **state)
{
    int64_t id = allocate();
    int64_t blocks = allocate();
    (void)state;
    must_bind(id, prefix_key(1));
    must_bind(blocks, blocks_key);
    for (int i = 0; i < 3; i++) {
        assert_true(take(prefix_key(1), 0, 0, TENSORS) == LLM_SUCCESS);
        assert_true(take(blocks_key, 0, 0, TENSORS) == LLM_SUCCESS);
    }
    take_by_id(id, 0, 0);
    take_by_id(blocks, 0, 0);
    assert_true(is_bound(prefix_key(1)));
    assert_true(is_bound(blocks_key));
}

static void
test_a_pull_by_id_takes_every_request_key_of_its_slot(void **state)
{
    int64_t id = allocate();
    struct lli_key keys[] = {request_key(1), request_key(2)};
    (void)state;
    assert_true(bind_keys(id, keys, 2) == LLM_SUCCESS);
    must_bind(id, request_key(3));
    must_bind(id, prefix_key(4));
    struct lli_cache *cache = lli_registry_hold(&registry, id);
    assert_true(lli_keys_slot_has_request(&registry, cache, 0));
    assert_true(lli_keys_slot_has_request(&registry, cache, 1));
    assert_false(lli_keys_slot_has_request(&registry, cache, 2));
    take_by_id(id, 0, cache->generation + 2);
    take_by_id(id + 1, 0, 0);
    take_by_id(id, 3, 0);
    assert_true(is_bound(request_key(1)));
    take_by_id(id, 0, cache->generation);
    assert_false(is_bound(request_key(1)));
    assert_true(is_bound(request_key(2)));
    assert_false(is_bound(request_key(3)));
    assert_true(is_bound(prefix_key(4)));
    assert_false(lli_keys_slot_has_request(&registry, cache, 0));
    lli_registry_put(&registry, cache);
}

// ---- memory ----

static void
test_keys_keep_the_memory_of_a_deallocated_cache(void **state)
{
    int64_t id = allocate();
    struct lli_key keys[] = {request_key(1), prefix_key(2)};
    struct lli_key request = request_key(1);
    struct lli_key prefix = prefix_key(2);
    (void)state;
    assert_true(bind_keys(id, keys, 2) == LLM_SUCCESS);
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    assert_null(lli_registry_hold(&registry, id));
    assert_true(lli_registry_deallocate(&registry, id) == LLM_KV_CACHE_NOT_EXIST);
    assert_true(bind_keys(id, &(struct lli_key){.kind = LLM_KEY_REQUEST, .id = 9}, 1) ==
                LLM_KV_CACHE_NOT_EXIST);
    assert_true(leads_to(request, id, 0));
    assert_true(leads_to(prefix, id, 1));
    assert_int_equal(pools[0].bytes_used, CACHE_BYTES);
    assert_true(take(request, 0, 0, TENSORS) == LLM_SUCCESS);
    assert_int_equal(pools[1].bytes_used, CACHE_BYTES);
    assert_true(is_bound(prefix));
    lli_keys_remove(&registry, &prefix);
    assert_int_equal(pools[0].bytes_used, 0);
    assert_int_equal(pools[1].bytes_used, 0);
    assert_int_equal(registry.num_caches, 0);
}

static void
test_the_last_key_waits_for_who_uses_the_memory(void **state)
{
    uint64_t slot;
    struct lli_key key = request_key(1);
    (void)state;
    for (int peer = 0; peer <= 1; peer++) {
        int64_t id = allocate();
        must_bind(id, key);
        assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
        struct lli_cache *held = lli_keys_hold(&registry, &key, &slot);
        assert_non_null(held);
        if (peer)
            read_generation = held->generation;
        assert_true(take(key, held->generation, 0, TENSORS) == LLM_SUCCESS);
        assert_false(is_bound(key));
        assert_int_equal(pools[0].bytes_used, CACHE_BYTES);
        lli_registry_put(&registry, held);
        assert_int_equal(pools[0].bytes_used, peer ? CACHE_BYTES : 0);
        read_generation = 0;
        lli_registry_collect(&registry);
        assert_int_equal(pools[0].bytes_used, 0);
    }
}

static void
test_a_blocks_key_goes_with_its_cache(void **state)
{
    int64_t id = allocate();
    (void)state;
    must_bind(id, blocks_key);
    assert_true(leads_to(blocks_key, id, 0));
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    assert_false(is_bound(blocks_key));
    assert_int_equal(pools[0].bytes_used, 0);
    // Beside other keys it goes alone.
    id = allocate();
    must_bind(id, blocks_key);
    must_bind(id, request_key(1));
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    assert_false(is_bound(blocks_key));
    assert_true(is_bound(request_key(1)));
    // And removing it frees nothing.
    id = allocate();
    must_bind(id, blocks_key);
    lli_keys_remove(&registry, &blocks_key);
    assert_false(is_bound(blocks_key));
    assert_non_null(lli_registry_find_locked(&registry, id));
}

// A pull by id that began before the deallocation and arrives after it has taken the key all the
// same; otherwise nobody ever would.
static void
test_a_pull_by_id_that_ends_after_the_deallocation_takes_the_keys(void **state)
{
    int64_t id = allocate();
    struct lli_key keys[] = {request_key(1), request_key(2)};
    (void)state;
    assert_true(bind_keys(id, keys, 2) == LLM_SUCCESS);
    must_bind(id, request_key(3));
    uint64_t generation = generation_of(keys[0]);
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    take_by_id(id, 0, generation);
    assert_false(is_bound(request_key(1)));
    assert_false(is_bound(request_key(3)));
    assert_true(is_bound(request_key(2)));
    assert_int_equal(pools[0].bytes_used, CACHE_BYTES);
    // Several keys of one slot are the last ones.
    assert_true(bind_keys(id, keys, 1) == LLM_KV_CACHE_NOT_EXIST);
    take_by_id(id, 1, generation);
    assert_int_equal(pools[0].bytes_used, 0);
    id = allocate();
    must_bind(id, request_key(4));
    must_bind(id, request_key(5));
    must_bind(id, request_key(6));
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    take_by_id(id, 0, 0);
    assert_int_equal(pools[0].bytes_used, 0);
    assert_false(is_bound(request_key(6)));
}

static void
test_registered_memory_can_have_keys_that_go_with_it(void **state)
{
    static uint8_t memory[TENSORS][4096];
    uint64_t addresses[TENSORS];
    int64_t id;
    (void)state;
    for (size_t i = 0; i < TENSORS; i++)
        addresses[i] = (uintptr_t)memory[i];
    assert_true(lli_registry_register(&registry, &geometry, addresses, &id) == LLM_SUCCESS);
    must_bind(id, request_key(1));
    must_bind(id, blocks_key);
    assert_true(leads_to(request_key(1), id, 0));
    lli_registry_unregister(&registry, id);
    assert_false(is_bound(request_key(1)));
    assert_false(is_bound(blocks_key));
    // Unregistering doesn't wait for keys, but removing one of them doesn't end the registration.
    assert_true(lli_registry_register(&registry, &geometry, addresses, &id) == LLM_SUCCESS);
    must_bind(id, request_key(1));
    assert_true(take(request_key(1), 0, 0, TENSORS) == LLM_SUCCESS);
    assert_int_equal(registry.num_caches, 1);
    lli_registry_unregister(&registry, id);
}

static void
test_unknown_keys_can_be_removed(void **state)
{
    struct lli_key key = request_key(1);
    (void)state;
    lli_keys_remove(&registry, &key);
    lli_keys_remove(&registry, &no_key);
    lli_keys_remove(&registry, &blocks_key);
}

static void
test_closing_frees_what_only_keys_lead_to(void **state)
{
    (void)state;
    int64_t id = allocate();
    must_bind(id, request_key(1));
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    must_bind(allocate(), prefix_key(1));
    // The teardown closes and looks at the pools.
}

static void
test_memory_behind_an_address_is_found_also_without_an_id(void **state)
{
    int64_t id = allocate();
    uint64_t slot;
    struct lli_key key = request_key(1);
    (void)state;
    must_bind(id, key);
    struct lli_cache *cache = lli_keys_hold(&registry, &key, &slot);
    uintptr_t at = cache->addresses[TENSORS]; // the first of device 1
    lli_registry_put(&registry, cache);
    for (int unnamed = 0; unnamed <= 1; unnamed++) {
        static const struct {
            int64_t offset;
            uint64_t bytes;
            bool found;
        } ranges[] = {
            {0, 4096, true},   {0, 4097, false},       {4095, 1, true}, {4096, 0, true},
            {-1, 2, false},    {4095, 2, false},       {1, 4095, true}, {1, UINT64_MAX, false},
            {100, 1000, true}, {0, UINT64_MAX, false},
        };
        for (size_t i = 0; i < LLI_COUNT(ranges); i++) {
            struct lli_cache *found = lli_registry_hold_range(
                &registry, at + (uintptr_t)ranges[i].offset, ranges[i].bytes, LLM_DT_UNDEFINED);
            // Whoever lies behind it begins where this tensor ends.
            if (ranges[i].bytes > 0)
                assert_ptr_equal(found, ranges[i].found ? cache : NULL);
            if (found != NULL)
                lli_registry_put(&registry, found);
        }
        if (unnamed == 0)
            assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    }
    lli_keys_remove(&registry, &key);
    assert_null(lli_registry_hold_range(&registry, at, 1, LLM_DT_UNDEFINED));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_key_i_names_slot_i),
        TEST(test_more_keys_than_slots_are_refused),
        TEST(test_of_equal_keys_the_last_one_counts),
        TEST(test_a_bound_key_is_refused_with_all_others_of_the_call),
        TEST(test_without_memory_nothing_is_bound_and_a_retry_works),
        TEST(test_too_many_keys_are_refused_and_undone),
        TEST(test_a_request_key_is_taken_once),
        TEST(test_a_key_that_leads_to_another_cache_by_now_is_not_taken),
        TEST(test_a_key_that_was_bound_anew_is_not_taken_by_an_earlier_pull),
        TEST(test_some_tensors_are_taken_alone),
        TEST(test_prefix_and_blocks_keys_are_never_taken),
        TEST(test_a_pull_by_id_takes_every_request_key_of_its_slot),
        TEST(test_keys_keep_the_memory_of_a_deallocated_cache),
        TEST(test_the_last_key_waits_for_who_uses_the_memory),
        TEST(test_a_blocks_key_goes_with_its_cache),
        TEST(test_a_pull_by_id_that_ends_after_the_deallocation_takes_the_keys),
        cmocka_unit_test_setup_teardown(test_registered_memory_can_have_keys_that_go_with_it,
                                        setup_one_device, teardown),
        TEST(test_unknown_keys_can_be_removed),
        TEST(test_closing_frees_what_only_keys_lead_to),
        TEST(test_memory_behind_an_address_is_found_also_without_an_id),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

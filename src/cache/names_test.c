// Keys and leases in the directory: found by peers, erased, round the end of the tables, and full.
#include "cache/names.h"

#include <pthread.h>
#include <sys/mman.h>

#include "unit/unit.h"

static const struct lli_geometry geometry = {
    .placement = LLM_PLACEMENT_DEVICE,
    .num_tensors = 2,
    .data_type = LLM_DT_INT8,
    .num_slots = 4,
    .stride = 100,
    .tensor_bytes = 400,
};

static struct lli_segment segment;
static const struct lli_segment_layout *peer_view;

// Every test looks through a second mapping, as a peer would.
static int
setup(void **state)
{
    (void)state;
    llm_set_log_level(LLM_LOG_OFF);
    if (lli_segment_open(&segment, 7, 99, 1) != LLM_SUCCESS)
        return -1;
    peer_view = lli_memory_file_map(segment.fd, sizeof(struct lli_segment_layout));
    return peer_view != NULL ? 0 : -1;
}

static int
teardown(void **state)
{
    (void)state;
    munmap((void *)(uintptr_t)peer_view, sizeof(struct lli_segment_layout));
    lli_segment_close(&segment);
    return 0;
}

struct published {
    uint32_t entry;
    uint64_t generation;
};

static struct published
publish(int64_t id)
{
    struct published cache;
    uint64_t addresses[] = {0, 512};
    assert_true(lli_segment_publish(&segment, id, &geometry, 1, 0, addresses, &cache.entry,
                                    &cache.generation));
    return cache;
}

static struct lli_key
request_key(uint64_t id)
{
    return (struct lli_key){.kind = LLM_KEY_REQUEST, .id = id};
}

static void
must_put(struct lli_key *key, const struct published *cache, uint64_t slot)
{
    assert_true(
        lli_names_put_key(&segment, key, cache->entry, cache->generation, slot, &key->stamp));
}

// Where the key is; LLI_NUM_KEY_ENTRIES if it is nowhere.
static uint32_t
place_of(const struct lli_key *key)
{
    uint32_t place = 0;
    while (place < LLI_NUM_KEY_ENTRIES && LLI_LOAD(peer_view->keys[place].stamp) != key->stamp)
        place++;
    return place;
}

static bool
leads_to(const struct lli_key *key, int64_t id, uint64_t slot)
{
    struct lli_remote_cache found;
    uint64_t found_slot = UINT64_MAX;
    return lli_names_find_key(peer_view, key, &found, &found_slot) && found.cache_id == id &&
           found_slot == slot;
}

static bool
is_there(const struct lli_key *key)
{
    struct lli_remote_cache found;
    uint64_t slot;
    return lli_names_find_key(peer_view, key, &found, &slot);
}

// ---- keys ----

static void
test_a_key_leads_to_its_slot_until_it_is_erased(void **state)
{
    struct published cache = publish(3);
    struct lli_key key = request_key(17);
    (void)state;
    assert_false(is_there(&key));
    must_put(&key, &cache, 2);
    assert_true(leads_to(&key, 3, 2));
    lli_names_erase_key(&segment, &key);
    assert_false(is_there(&key));
    must_put(&key, &cache, 1);
    assert_true(leads_to(&key, 3, 1));
    lli_names_erase_key(&segment, &key);
}

static void
test_kind_id_and_model_make_the_key(void **state)
{
    struct published cache = publish(3);
    struct lli_key keys[] = {
        {LLM_KEY_REQUEST, 1, 0, 0},
        {LLM_KEY_PREFIX, 1, 0, 0},
        {LLM_KEY_REQUEST, 2, 0, 0},
        {LLM_KEY_REQUEST, 1, 1, 0},
        {LLM_KEY_REQUEST, 0, 1, 0},
        {LLM_KEY_BLOCKS, 0, 1, 0},
        {LLM_KEY_REQUEST, UINT64_MAX, UINT64_MAX, 0},
    };
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(keys); i++) {
        for (size_t j = i; j < LLI_COUNT(keys); j++)
            assert_false(is_there(&keys[j]));
        must_put(&keys[i], &cache, i);
        for (size_t j = 0; j <= i; j++) {
            assert_true(leads_to(&keys[j], 3, j));
            assert_int_equal(lli_key_equal(&keys[i], &keys[j]), i == j);
        }
    }
}

static void
test_a_key_of_a_cache_that_is_gone_leads_nowhere(void **state)
{
    struct published cache = publish(3);
    struct lli_key key = request_key(1);
    (void)state;
    must_put(&key, &cache, 0);
    lli_segment_mark(&segment, cache.entry, LLI_ENTRY_UNNAMED);
    assert_true(leads_to(&key, 3, 0));
    lli_segment_retire(&segment, cache.entry);
    assert_false(is_there(&key));
    lli_segment_erase(&segment, cache.entry);
    assert_false(is_there(&key));
    // The entry has another cache now.
    struct published next = publish(3);
    assert_int_equal(next.entry, cache.entry);
    assert_false(is_there(&key));
}

static void
test_an_unnamed_cache_has_keys_but_no_id(void **state)
{
    struct published cache = publish(3);
    struct lli_key key = request_key(1);
    struct lli_remote_cache found;
    (void)state;
    must_put(&key, &cache, 0);
    assert_true(lli_segment_find(peer_view, 3, &found));
    lli_segment_mark(&segment, cache.entry, LLI_ENTRY_UNNAMED);
    assert_false(lli_segment_find(peer_view, 3, &found));
    assert_true(lli_segment_find_entry(peer_view, cache.entry, cache.generation, &found));
    assert_true((found.flags & LLI_ENTRY_UNNAMED) != 0);
    assert_true(leads_to(&key, 3, 0));
}

// Keys whose first place is the same, found by trying.
static void
find_colliding(uint32_t place, struct lli_key *keys, size_t num_keys)
{
    size_t found = 0;
    for (uint64_t id = 0; found < num_keys; id++) {
        struct lli_key key = request_key(id);
        if (lli_key_hash(&key) % LLI_NUM_KEY_ENTRIES == place)
            keys[found++] = key;
    }
}

static void
test_colliding_keys_are_told_apart_also_round_the_end(void **state)
{
    enum { NUM_KEYS = 5 };
    static const uint32_t places[] = {77, LLI_NUM_KEY_ENTRIES - 2};
    struct published cache = publish(3);
    struct lli_key keys[NUM_KEYS];
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(places); i++) {
        find_colliding(places[i], keys, NUM_KEYS);
        for (uint32_t k = 0; k < NUM_KEYS; k++) {
            must_put(&keys[k], &cache, k);
            assert_int_equal(place_of(&keys[k]), (places[i] + k) % LLI_NUM_KEY_ENTRIES);
        }
        // A gap in the row hides nobody behind it.
        lli_names_erase_key(&segment, &keys[1]);
        assert_false(is_there(&keys[1]));
        for (uint32_t k = 0; k < NUM_KEYS; k++)
            assert_int_equal(leads_to(&keys[k], 3, k), k != 1);
        for (uint32_t k = 0; k < NUM_KEYS; k++) {
            if (k != 1)
                lli_names_erase_key(&segment, &keys[k]);
        }
    }
}

// As readers look that know nothing of farther places.
static bool
is_near(const struct lli_key *key)
{
    uint64_t home = lli_key_hash(key);
    uint32_t probe = 0;
    while (probe < LLI_KEY_PROBES &&
           LLI_LOAD(peer_view->keys[(home + probe) % LLI_NUM_KEY_ENTRIES].stamp) != key->stamp)
        probe++;
    return probe < LLI_KEY_PROBES;
}

static void
test_the_table_of_keys_takes_what_it_promises(void **state)
{
    struct published cache = publish(3);
    struct lli_key *keys = unit_alloc(LLI_NUM_KEY_ENTRIES * sizeof(*keys));
    uint64_t num_near = 0;
    (void)state;
    for (uint64_t i = 0; i < LLI_NUM_KEY_ENTRIES; i++) {
        keys[i] = request_key(i);
        must_put(&keys[i], &cache, i);
        if (LLI_LOAD(peer_view->header.key_probes) == 0)
            num_near = i + 1;
    }
    struct lli_key one_more = request_key(LLI_NUM_KEY_ENTRIES);
    assert_false(
        lli_names_put_key(&segment, &one_more, cache.entry, cache.generation, 0, &one_more.stamp));
    for (uint64_t i = 0; i < LLI_NUM_KEY_ENTRIES; i++)
        assert_true(leads_to(&keys[i], 3, i));
    assert_false(is_there(&one_more));
    // All the same after a change of the last moment.
    lli_names_erase_key(&segment, &keys[77]);
    assert_false(is_there(&keys[77]));
    must_put(&one_more, &cache, 4);
    assert_true(leads_to(&one_more, 3, 4));
    // Readers of old find everything while one place in eight is free.
    assert_true(num_near > LLI_NUM_KEY_ENTRIES / 8 * 7);
    free(keys);
}

static void
test_keys_stay_near_their_places_until_the_table_is_nearly_full(void **state)
{
    enum { NUM_KEYS = LLI_NUM_KEY_ENTRIES / 8 * 7 };
    struct published cache = publish(3);
    struct lli_key *keys = unit_alloc(NUM_KEYS * sizeof(*keys));
    (void)state;
    for (uint64_t i = 0; i < NUM_KEYS; i++) {
        keys[i] = request_key(i);
        must_put(&keys[i], &cache, i);
    }
    for (uint64_t i = 0; i < NUM_KEYS; i++)
        assert_true(is_near(&keys[i]));
    free(keys);
}

// ---- leases ----

struct lease {
    uint64_t generation;
    uint32_t entry;
};

static struct lease
must_lease(const struct lli_lease_range *range)
{
    struct lease lease = {0};
    assert_true(lli_names_put_lease(&segment, range, &lease.generation, &lease.entry));
    return lease;
}

static bool
is_lease(uint64_t generation)
{
    struct lli_lease_range range;
    uint32_t entry;
    return lli_names_find_lease(peer_view, generation, &range, &entry);
}

static void
test_a_lease_lives_is_ending_and_ends(void **state)
{
    struct lli_lease_range range = {.generation = 1000, .first_slot = 3, .num_slots = 4};
    struct lli_lease_range found;
    uint32_t entry;
    (void)state;
    struct lease lease = must_lease(&range);
    assert_true(lli_names_find_lease(peer_view, lease.generation, &found, &entry));
    assert_int_equal(found.generation, 1000);
    assert_int_equal(found.first_slot, 3);
    assert_int_equal(found.num_slots, 4);
    assert_int_equal(entry, lease.entry);
    assert_true(lli_names_lease_still_live(peer_view, lease.generation, entry));
    assert_true(lli_names_lease_still_same(peer_view, lease.generation, entry));
    // Ending: nobody new gets in, who reads has read the right bytes.
    lli_names_retire_lease(&segment, lease.entry);
    assert_false(is_lease(lease.generation));
    assert_false(is_lease(lease.generation | LLI_GENERATION_RETIRED));
    assert_false(lli_names_lease_still_live(peer_view, lease.generation, entry));
    assert_true(lli_names_lease_still_same(peer_view, lease.generation, entry));
    lli_names_erase_lease(&segment, lease.entry);
    assert_false(is_lease(lease.generation));
    assert_false(lli_names_lease_still_same(peer_view, lease.generation, entry));
    assert_false(is_lease(0));
}

static void
test_leases_and_caches_never_share_a_generation(void **state)
{
    struct lli_lease_range range = {.generation = 2, .num_slots = 1};
    uint64_t last = 0;
    (void)state;
    for (int64_t i = 1; i <= 50; i++) {
        struct published cache = publish(i);
        struct lease lease = must_lease(&range);
        assert_true(cache.generation > last && lease.generation > cache.generation);
        assert_int_equal(cache.generation % 2, 0);
        assert_int_equal(lease.generation % 2, 0);
        last = lease.generation;
    }
}

static void
test_a_row_of_old_leases_is_in_nobodys_way(void **state)
{
    enum { OLD = 200 };
    struct lli_lease_range range = {.generation = 2, .num_slots = 1};
    struct lease old[OLD];
    (void)state;
    for (size_t i = 0; i < OLD; i++)
        old[i] = must_lease(&range);
    // So many generations later the table has come round to them.
    for (uint32_t i = 0; i < 2 * LLI_NUM_LEASE_ENTRIES; i++) {
        struct lease lease = must_lease(&range);
        assert_true(is_lease(lease.generation));
        lli_names_erase_lease(&segment, lease.entry);
    }
    for (size_t i = 0; i < OLD; i++)
        assert_true(is_lease(old[i].generation));
}

static void
test_the_table_of_leases_can_be_filled(void **state)
{
    struct lli_lease_range range = {.generation = 2, .num_slots = 1};
    struct lease lease = {0};
    struct lease first = must_lease(&range);
    (void)state;
    for (uint32_t i = 1; i < LLI_NUM_LEASE_ENTRIES; i++)
        assert_true(lli_names_put_lease(&segment, &range, &lease.generation, &lease.entry));
    assert_false(lli_names_put_lease(&segment, &range, &lease.generation, &lease.entry));
    lli_names_erase_lease(&segment, first.entry);
    lease = must_lease(&range);
    assert_int_equal(lease.entry, first.entry);
    assert_true(is_lease(lease.generation));
    assert_false(is_lease(first.generation));
}

static void
test_a_range_holds_what_lies_in_it(void **state)
{
    (void)state;
    for (uint64_t first = 0; first < 5; first++) {
        for (uint64_t count = 1; count < 5; count++) {
            struct lli_lease_range range = {.first_slot = first, .num_slots = count};
            for (uint64_t at = 0; at < 10; at++) {
                for (uint64_t n = 1; n < 6; n++)
                    assert_int_equal(lli_lease_range_holds(&range, at, n),
                                     at >= first && at + n <= first + count);
            }
            assert_false(lli_lease_range_holds(&range, first, UINT64_MAX));
            assert_false(lli_lease_range_holds(&range, UINT64_MAX, 1));
            assert_false(lli_lease_range_holds(&range, UINT64_MAX, UINT64_MAX));
        }
    }
    struct lli_lease_range all = {.first_slot = 0, .num_slots = UINT64_MAX};
    assert_true(lli_lease_range_holds(&all, UINT64_MAX - 1, 1));
    assert_false(lli_lease_range_holds(&all, UINT64_MAX, 1));
}

// ---- while it changes ----

enum { CHURN_CACHES = 8, CHURN_ROUNDS = 3000 };

static struct published churned[CHURN_CACHES];
static _Atomic bool over;
static _Atomic uint64_t num_found;
static _Atomic uint64_t num_wrong;

// One key goes from cache to cache; the slot is that of the cache.
static void *
look(void *arg)
{
    struct lli_key key = request_key(5);
    (void)arg;
    while (!atomic_load(&over)) {
        struct lli_remote_cache found;
        uint64_t slot;
        if (!lli_names_find_key(peer_view, &key, &found, &slot))
            continue;
        atomic_fetch_add(&num_found, 1);
        if (slot != (uint64_t)found.cache_id ||
            found.generation != churned[found.cache_id - 1].generation)
            atomic_fetch_add(&num_wrong, 1);
    }
    return NULL;
}

static void
test_whoever_looks_during_a_change_finds_all_or_nothing(void **state)
{
    struct lli_key key = request_key(5);
    struct lli_key other = request_key(6);
    pthread_t thread;
    (void)state;
    for (int64_t i = 0; i < CHURN_CACHES; i++)
        churned[i] = publish(i + 1);
    atomic_store(&over, false);
    assert_int_equal(pthread_create(&thread, NULL, look, NULL), 0);
    uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
    for (uint64_t i = 0;
         (i < CHURN_ROUNDS || atomic_load(&num_found) == 0) && lli_now_ns() < deadline; i++) {
        uint64_t at = i % CHURN_CACHES;
        must_put(&key, &churned[at], at + 1);
        lli_names_erase_key(&segment, &key);
        // The same entry for another key in between.
        must_put(&other, &churned[at], 0);
        lli_names_erase_key(&segment, &other);
    }
    atomic_store(&over, true);
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&num_wrong), 0);
    assert_true(atomic_load(&num_found) > 0);
}

enum { CROWD_KEYS = LLI_NUM_KEY_ENTRIES / 16 * 15, CROWD_ROUNDS = 100000 };

// Keys that all stay bound.
static void *
look_in_a_crowd(void *arg)
{
    (void)arg;
    for (uint64_t i = 0; !atomic_load(&over); i += 7919) {
        struct lli_key key = request_key(i % CROWD_KEYS);
        if (is_there(&key))
            atomic_fetch_add(&num_found, 1);
        else
            atomic_fetch_add(&num_wrong, 1);
    }
    return NULL;
}

static void
test_keys_that_make_room_for_others_are_found_all_the_time(void **state)
{
    struct published cache = publish(3);
    pthread_t thread;
    (void)state;
    for (uint64_t i = 0; i < CROWD_KEYS; i++) {
        struct lli_key key = request_key(i);
        must_put(&key, &cache, i);
    }
    atomic_store(&over, false);
    atomic_store(&num_found, 0);
    atomic_store(&num_wrong, 0);
    assert_int_equal(pthread_create(&thread, NULL, look_in_a_crowd, NULL), 0);
    uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
    for (uint64_t i = 0;
         (i < CROWD_ROUNDS || atomic_load(&num_found) == 0) && lli_now_ns() < deadline; i++) {
        struct lli_key key = request_key(CROWD_KEYS + i);
        must_put(&key, &cache, 0);
        lli_names_erase_key(&segment, &key);
    }
    atomic_store(&over, true);
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&num_wrong), 0);
    assert_true(atomic_load(&num_found) > 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_key_leads_to_its_slot_until_it_is_erased),
        TEST(test_kind_id_and_model_make_the_key),
        TEST(test_a_key_of_a_cache_that_is_gone_leads_nowhere),
        TEST(test_an_unnamed_cache_has_keys_but_no_id),
        TEST(test_colliding_keys_are_told_apart_also_round_the_end),
        TEST(test_the_table_of_keys_takes_what_it_promises),
        TEST(test_keys_stay_near_their_places_until_the_table_is_nearly_full),
        TEST(test_keys_that_make_room_for_others_are_found_all_the_time),
        TEST(test_a_lease_lives_is_ending_and_ends),
        TEST(test_leases_and_caches_never_share_a_generation),
        TEST(test_a_row_of_old_leases_is_in_nobodys_way),
        TEST(test_the_table_of_leases_can_be_filled),
        TEST(test_a_range_holds_what_lies_in_it),
        TEST(test_whoever_looks_during_a_change_finds_all_or_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

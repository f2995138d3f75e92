// The directory that peers map: publishing, finding, retiring, reader slots, what fills up.
#include "cache/segment.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "unit/unit.h"

enum { CLUSTER = 7, INCARNATION = 99, PEER = 1234 };

static const struct lli_geometry geometry = {
    .placement = LLM_PLACEMENT_DEVICE,
    .num_tensors = 2,
    .data_type = LLM_DT_INT8,
    .num_slots = 4,
    .stride = 100,
    .tensor_bytes = 400,
    .num_dims = 2,
    .dims = {4, 100},
};

static struct lli_segment segment;
static const struct lli_segment_layout *peer_view;

// Every test looks through a second mapping, as a peer would.
static int
setup(void **state)
{
    (void)state;
    llm_set_log_level(LLM_LOG_OFF);
    if (lli_segment_open(&segment, CLUSTER, INCARNATION, 1) != LLM_SUCCESS)
        return -1;
    peer_view = lli_memory_file_map(segment.fd, sizeof(struct lli_segment_layout));
    return peer_view != NULL ? 0 : -1;
}

static int
teardown(void **state)
{
    (void)state;
    lli_mem_fail_after(0);
    munmap((void *)(uintptr_t)peer_view, sizeof(struct lli_segment_layout));
    lli_segment_close(&segment);
    lli_segment_close(&segment);
    return 0;
}

static bool
publish(int64_t id, uint32_t *ret_entry, uint64_t *ret_generation)
{
    uint64_t addresses[] = {(uint64_t)id * 1000, (uint64_t)id * 1000 + 512};
    return lli_segment_publish(&segment, id, &geometry, 1, 0, addresses, ret_entry, ret_generation);
}

static uint32_t
must_publish(int64_t id)
{
    uint32_t entry = 0;
    uint64_t generation;
    assert_true(publish(id, &entry, &generation));
    return entry;
}

static bool
is_there(int64_t id)
{
    struct lli_remote_cache found;
    return lli_segment_find(peer_view, id, &found);
}

static void
test_the_header_says_whose_directory_it_is(void **state)
{
    (void)state;
    assert_true(peer_view->header.magic == LLI_SEGMENT_MAGIC);
    assert_int_equal(peer_view->header.version, LLI_SEGMENT_VERSION);
    assert_int_equal(peer_view->header.num_devices, 1);
    assert_int_equal(peer_view->header.incarnation, INCARNATION);
    assert_int_equal(peer_view->header.cluster_id, CLUSTER);
    assert_true(peer_view->header.bytes == sizeof(struct lli_segment_layout));
}

static void
test_what_is_published_is_found_with_all_its_numbers(void **state)
{
    struct lli_remote_cache found;
    uint32_t entry;
    uint64_t generation;
    (void)state;
    assert_true(publish(5, &entry, &generation));
    assert_true(lli_segment_find(peer_view, 5, &found));
    assert_int_equal(found.entry, entry);
    assert_int_equal(found.generation, generation);
    assert_int_equal(found.flags & UINT32_MAX, 0);
    assert_int_equal(found.geometry.placement, geometry.placement);
    assert_int_equal(found.geometry.num_tensors, geometry.num_tensors);
    assert_int_equal(found.geometry.num_slots, geometry.num_slots);
    assert_int_equal(found.geometry.stride, geometry.stride);
    assert_int_equal(found.geometry.tensor_bytes, geometry.tensor_bytes);
    assert_int_equal(peer_view->addresses[found.first_address], 5000);
    assert_int_equal(peer_view->addresses[found.first_address + 1], 5512);
    assert_true(lli_segment_still_live(peer_view, &found));
    assert_true(lli_segment_still_same(peer_view, &found));
    assert_int_equal(found.geometry.data_type, LLM_DT_INT8);
    assert_int_equal(found.geometry.num_dims, 0);
    assert_true(lli_segment_read_dims(peer_view, 1, &found));
    assert_memory_equal(&found.geometry, &geometry, sizeof(geometry));
}

static void
test_dimensions_of_a_cache_that_is_gone_are_not_read(void **state)
{
    struct lli_remote_cache found;
    (void)state;
    uint32_t entry = must_publish(5);
    assert_true(lli_segment_find(peer_view, 5, &found));
    lli_segment_retire(&segment, entry);
    assert_false(lli_segment_read_dims(peer_view, 1, &found));
}

// Its entries have no type and no dimensions; what it knows of ours lies where it always did.
static void
test_directories_of_before_types_are_read_and_read_ours(void **state)
{
    struct lli_remote_cache found;
    (void)state;
    struct lli_entry *entry = &segment.layout->entries[must_publish(5)];
    assert_int_equal(entry->placement_and_tensors, UINT64_C(1) << 32 | 2);
    assert_int_equal(entry->flags & 7, 0);
    assert_int_equal(sizeof(struct lli_segment_layout),
                     4096 + 64 * LLI_NUM_ENTRIES + 64 * LLI_NUM_KEY_ENTRIES +
                         32 * LLI_NUM_LEASE_ENTRIES + 8 * (8 << 20));
    entry->flags = LLI_ENTRY_REGISTERED;
    assert_true(lli_segment_find(peer_view, 5, &found));
    assert_int_equal(found.flags, LLI_ENTRY_REGISTERED);
    assert_int_equal(found.geometry.data_type, LLM_DT_UNDEFINED);
    assert_true(lli_segment_read_dims(peer_view, 1, &found));
    assert_int_equal(found.geometry.num_dims, 0);
}

static void
test_dimensions_outside_the_directory_are_none(void **state)
{
    struct lli_remote_cache found;
    (void)state;
    struct lli_entry *entry = &segment.layout->entries[must_publish(5)];
    uint64_t flags = entry->flags;
    entry->first_address = LLI_NUM_ADDRESSES - 3;
    assert_true(lli_segment_find(peer_view, 5, &found));
    assert_true(lli_segment_read_dims(peer_view, 1, &found));
    assert_int_equal(found.geometry.num_dims, 0);
    entry->first_address = UINT64_MAX - 1;
    assert_true(lli_segment_find(peer_view, 5, &found));
    assert_true(lli_segment_read_dims(peer_view, 1, &found));
    assert_int_equal(found.geometry.num_dims, 0);
    entry->first_address = 0;
    entry->flags = flags | UINT64_C(255) << LLI_ENTRY_DIMS_SHIFT;
    assert_true(lli_segment_find(peer_view, 5, &found));
    assert_true(lli_segment_read_dims(peer_view, 1, &found));
    assert_int_equal(found.geometry.num_dims, 0);
}

static void
test_unknown_ids_are_not_found(void **state)
{
    static const int64_t ids[] = {0, -1, 1, 6, INT64_MAX, INT64_MIN, 5 + LLI_NUM_ENTRIES};
    (void)state;
    must_publish(5);
    for (size_t i = 0; i < LLI_COUNT(ids); i++)
        assert_false(is_there(ids[i]));
}

static void
test_a_retired_cache_lets_nobody_in_but_stays_the_same(void **state)
{
    struct lli_remote_cache found;
    (void)state;
    uint32_t entry = must_publish(5);
    assert_true(lli_segment_find(peer_view, 5, &found));
    lli_segment_retire(&segment, entry);
    assert_false(is_there(5));
    assert_false(lli_segment_still_live(peer_view, &found));
    assert_true(lli_segment_still_same(peer_view, &found));
    lli_segment_erase(&segment, entry);
    assert_false(lli_segment_still_live(peer_view, &found));
    assert_false(lli_segment_still_same(peer_view, &found));
}

static void
test_the_same_entry_again_is_another_generation(void **state)
{
    struct lli_remote_cache old;
    uint32_t entry = 0;
    uint64_t last = 0;
    (void)state;
    entry = must_publish(5);
    assert_true(lli_segment_find(peer_view, 5, &old));
    for (int i = 0; i < 1000; i++) {
        uint64_t generation;
        uint32_t again;
        lli_segment_retire(&segment, entry);
        lli_segment_erase(&segment, entry);
        assert_true(publish(5, &again, &generation));
        assert_int_equal(again, entry);
        assert_true(generation > last);
        assert_int_equal(generation & LLI_GENERATION_RETIRED, 0);
        assert_false(lli_segment_still_live(peer_view, &old));
        assert_false(lli_segment_still_same(peer_view, &old));
        last = generation;
    }
}

// ---- ids that meet in one place ----

static int64_t
colliding(unsigned i)
{
    return (int64_t)i * LLI_NUM_ENTRIES + 10;
}

static void
test_colliding_ids_are_all_found_until_the_probes_end(void **state)
{
    uint32_t entries[LLI_ENTRY_PROBES];
    uint32_t entry;
    uint64_t generation;
    (void)state;
    for (unsigned i = 0; i < LLI_ENTRY_PROBES; i++)
        entries[i] = must_publish(colliding(i));
    assert_false(publish(colliding(LLI_ENTRY_PROBES), &entry, &generation));
    // The one behind them is displaced, not lost.
    entry = must_publish(11);
    assert_int_equal(entry, 10 + LLI_ENTRY_PROBES);
    assert_true(is_there(11));
    for (unsigned i = 0; i < LLI_ENTRY_PROBES; i++)
        assert_true(is_there(colliding(i)));
    assert_false(is_there(colliding(LLI_ENTRY_PROBES)));

    // A hole hides nobody, and is filled.
    for (unsigned hole = 0; hole < LLI_ENTRY_PROBES; hole++) {
        int64_t newcomer = colliding(1000 + hole);
        lli_segment_retire(&segment, entries[hole]);
        assert_false(publish(newcomer, &entry, &generation));
        lli_segment_erase(&segment, entries[hole]);
        for (unsigned i = 0; i < LLI_ENTRY_PROBES; i++)
            assert_int_equal(is_there(i < hole ? colliding(1000 + i) : colliding(i)), i != hole);
        assert_true(publish(newcomer, &entry, &generation));
        assert_int_equal(entry, entries[hole]);
        assert_true(is_there(newcomer));
    }
}

static void
test_probing_goes_round_the_end(void **state)
{
    (void)state;
    for (int64_t i = 0; i < 8; i++) {
        uint32_t entry = must_publish(i * LLI_NUM_ENTRIES + LLI_NUM_ENTRIES - 3);
        assert_int_equal(entry, (LLI_NUM_ENTRIES - 3 + i) % LLI_NUM_ENTRIES);
    }
    for (int64_t i = 0; i < 8; i++)
        assert_true(is_there(i * LLI_NUM_ENTRIES + LLI_NUM_ENTRIES - 3));
}

// ---- fullness ----

static void
test_a_full_directory_refuses_and_takes_again(void **state)
{
    uint32_t entry;
    uint64_t generation;
    (void)state;
    for (int64_t id = 1; id <= LLI_NUM_ENTRIES; id++)
        assert_true(publish(id, &entry, &generation));
    assert_false(publish(LLI_NUM_ENTRIES + 1, &entry, &generation));
    for (int64_t id = 1; id <= LLI_NUM_ENTRIES; id += 997)
        assert_true(is_there(id));
    // The place of id 1, where the next id belongs.
    lli_segment_retire(&segment, 1);
    lli_segment_erase(&segment, 1);
    assert_true(publish(LLI_NUM_ENTRIES + 1, &entry, &generation));
    assert_int_equal(entry, 1);
}

static void
test_the_next_id_is_the_first_that_has_room(void **state)
{
    enum { ROW = 200 };
    const int64_t around = LLI_NUM_ENTRIES;
    uint32_t entry;
    uint64_t generation;
    (void)state;
    assert_true(lli_segment_next_id(&segment, 1) == 1);
    for (int64_t id = 1; id <= ROW; id++)
        must_publish(id);
    // Near the end of the row there is room within reach.
    assert_true(lli_segment_next_id(&segment, around + ROW) == around + ROW);
    assert_true(publish(around + ROW, &entry, &generation));
    // Far from it none is: the next id is that of the first free place, here the one behind.
    assert_false(publish(around + 1, &entry, &generation));
    assert_true(lli_segment_next_id(&segment, around + 1) == around + ROW + 2);
    assert_true(publish(around + ROW + 2, &entry, &generation));
    assert_true(is_there(around + ROW + 2) && is_there(around + ROW));
}

static void
test_addresses_run_out_and_come_back(void **state)
{
    struct lli_geometry wide = geometry;
    uint64_t *addresses = unit_alloc(LLI_NUM_ADDRESSES * sizeof(*addresses));
    uint32_t entry;
    uint32_t other;
    uint64_t generation;
    (void)state;
    wide.num_tensors = LLI_NUM_ADDRESSES;
    for (int round = 0; round < 2; round++) {
        assert_true(lli_segment_publish(&segment, 1, &wide, 1, 0, addresses, &entry, &generation));
        assert_false(publish(2, &other, &generation));
        assert_false(is_there(2));
        lli_segment_retire(&segment, entry);
        lli_segment_erase(&segment, entry);
        assert_true(publish(2, &other, &generation));
        assert_false(lli_segment_publish(&segment, 1, &wide, 1, 0, addresses, &entry, &generation));
        lli_segment_retire(&segment, other);
        lli_segment_erase(&segment, other);
    }
    wide.num_tensors = LLI_NUM_ADDRESSES + 1;
    assert_false(lli_segment_publish(&segment, 1, &wide, 1, 0, addresses, &entry, &generation));
    free(addresses);
}

// ---- readers ----

static void
test_a_reader_is_seen_from_enter_to_leave(void **state)
{
    (void)state;
    assert_false(lli_segment_is_read(peer_view, PEER, 0));
    int slot = lli_segment_reader_enter(&segment, PEER, 6, 0);
    assert_true(slot >= 0);
    assert_true(lli_segment_is_read(peer_view, PEER, 6));
    assert_true(lli_segment_is_read(peer_view, PEER, 0));
    assert_false(lli_segment_is_read(peer_view, PEER, 4));
    assert_false(lli_segment_is_read(peer_view, PEER + 1, 6));
    assert_false(lli_segment_is_read(peer_view, PEER + 1, 0));
    lli_segment_reader_leave(&segment, slot);
    assert_false(lli_segment_is_read(peer_view, PEER, 6));
    assert_false(lli_segment_is_read(peer_view, PEER, 0));
}

static void
test_two_readers_of_one_cache_are_counted_apart(void **state)
{
    (void)state;
    int first = lli_segment_reader_enter(&segment, PEER, 6, 0);
    int second = lli_segment_reader_enter(&segment, PEER, 6, 0);
    assert_int_not_equal(first, second);
    lli_segment_reader_leave(&segment, first);
    assert_true(lli_segment_is_read(peer_view, PEER, 6));
    lli_segment_reader_leave(&segment, second);
    assert_false(lli_segment_is_read(peer_view, PEER, 6));
}

static void
test_a_reader_under_a_lease_is_seen_by_both_names(void **state)
{
    enum { CACHE = 6, LEASE = 20, OTHER = 22 };
    (void)state;
    int under = lli_segment_reader_enter(&segment, PEER, CACHE, LEASE);
    int plain = lli_segment_reader_enter(&segment, PEER, CACHE, 0);
    assert_true(lli_segment_is_read(peer_view, PEER, CACHE));
    assert_true(lli_segment_is_read(peer_view, PEER, LEASE));
    assert_false(lli_segment_is_read(peer_view, PEER, OTHER));
    assert_false(lli_segment_is_read(peer_view, PEER + 1, LEASE));
    assert_true(lli_segment_is_read_here(PEER, LEASE));
    assert_false(lli_segment_is_read_here(PEER, OTHER));
    lli_segment_reader_leave(&segment, under);
    assert_false(lli_segment_is_read(peer_view, PEER, LEASE));
    assert_true(lli_segment_is_read(peer_view, PEER, CACHE));
    lli_segment_reader_leave(&segment, plain);
    // The same slot without a lease doesn't remember the old one.
    under = lli_segment_reader_enter(&segment, PEER, CACHE, 0);
    assert_false(lli_segment_is_read(peer_view, PEER, LEASE));
    lli_segment_reader_leave(&segment, under);
    assert_false(lli_segment_is_read_here(PEER, 0));
}

static void
test_generations_of_another_instance_are_others(void **state)
{
    struct lli_segment other;
    uint64_t ours;
    uint64_t theirs;
    uint32_t entry;
    uint64_t addresses[] = {0, 512};
    (void)state;
    assert_true(lli_segment_open(&other, CLUSTER, INCARNATION, 1) == LLM_SUCCESS);
    assert_true(publish(1, &entry, &ours));
    assert_true(lli_segment_publish(&other, 1, &geometry, 1, 0, addresses, &entry, &theirs));
    // Far apart, so that neither reaches the other's in a lifetime.
    uint64_t distance = ours > theirs ? ours - theirs : theirs - ours;
    assert_true(distance > UINT64_C(1) << 32);
    assert_true(ours != 0 && theirs != 0 && ours % 2 == 0 && theirs % 2 == 0);
    lli_segment_close(&other);
}

static void
test_there_are_as_many_readers_as_slots(void **state)
{
    bool used[LLI_NUM_READER_SLOTS] = {false};
    (void)state;
    for (int i = 0; i < LLI_NUM_READER_SLOTS; i++) {
        int slot = lli_segment_reader_enter(&segment, PEER, 2 * (uint64_t)i + 2, 0);
        assert_in_range(slot, 0, LLI_NUM_READER_SLOTS - 1);
        assert_false(used[slot]);
        used[slot] = true;
    }
    for (uint64_t i = 0; i < LLI_NUM_READER_SLOTS; i++)
        assert_true(lli_segment_is_read(peer_view, PEER, 2 * i + 2));
    assert_int_equal(lli_segment_reader_enter(&segment, PEER, 2, 0), -1);
    lli_segment_reader_leave(&segment, 17);
    assert_int_equal(lli_segment_reader_enter(&segment, PEER, 1000, 0), 17);
    for (int i = 0; i < LLI_NUM_READER_SLOTS; i++)
        lli_segment_reader_leave(&segment, i);
    assert_false(lli_segment_is_read(peer_view, PEER, 0));
}

static _Atomic unsigned slot_users[LLI_NUM_READER_SLOTS];
static _Atomic unsigned num_clashes;

static void *
enter_and_leave(void *arg)
{
    (void)arg;
    for (int i = 0; i < 2000; i++) {
        int slots[20];
        for (size_t j = 0; j < LLI_COUNT(slots); j++) {
            slots[j] = lli_segment_reader_enter(&segment, PEER, 2, 0);
            if (slots[j] >= 0 && atomic_fetch_add(&slot_users[slots[j]], 1) != 0)
                atomic_fetch_add(&num_clashes, 1);
        }
        for (size_t j = 0; j < LLI_COUNT(slots); j++) {
            if (slots[j] < 0)
                continue;
            atomic_fetch_sub(&slot_users[slots[j]], 1);
            lli_segment_reader_leave(&segment, slots[j]);
        }
    }
    return NULL;
}

static void
test_many_threads_never_share_a_slot(void **state)
{
    pthread_t threads[4];
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, enter_and_leave, NULL), 0);
    for (size_t i = 0; i < LLI_COUNT(threads); i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&num_clashes), 0);
    assert_true(atomic_load(&segment.reader_slots_taken) == 0);
    assert_false(lli_segment_is_read(peer_view, PEER, 0));
}

// ---- failures ----

static void
test_without_memory_the_directory_does_not_open(void **state)
{
    struct lli_segment other;
    (void)state;
    lli_mem_fail_after(1);
    assert_true(lli_segment_open(&other, CLUSTER, INCARNATION, 1) == LLM_FAILED);
    assert_int_equal(lli_mem_fail_after(0), 0);
}

static void
test_publishing_without_memory_shows_nothing(void **state)
{
    uint32_t entry;
    uint64_t generation;
    unsigned num_failed = 0;
    // Dimensions are left out without a word.
    struct lli_geometry bare = geometry;
    (void)state;
    bare.num_dims = 0;
    lli_mem_fail_after(1);
    for (int64_t id = 1; id <= 100; id++) {
        const uint64_t addresses[] = {1, 2};
        bool ok = lli_segment_publish(&segment, id, &bare, 1, 0, addresses, &entry, &generation);
        assert_int_equal(is_there(id), ok);
        num_failed += !ok;
        if (!ok)
            assert_true(publish(id, &entry, &generation));
        assert_true(is_there(id));
    }
    assert_int_equal(num_failed, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_the_header_says_whose_directory_it_is),
        TEST(test_what_is_published_is_found_with_all_its_numbers),
        TEST(test_dimensions_of_a_cache_that_is_gone_are_not_read),
        TEST(test_directories_of_before_types_are_read_and_read_ours),
        TEST(test_dimensions_outside_the_directory_are_none),
        TEST(test_unknown_ids_are_not_found),
        TEST(test_a_retired_cache_lets_nobody_in_but_stays_the_same),
        TEST(test_the_same_entry_again_is_another_generation),
        TEST(test_colliding_ids_are_all_found_until_the_probes_end),
        TEST(test_probing_goes_round_the_end),
        TEST(test_a_full_directory_refuses_and_takes_again),
        TEST(test_the_next_id_is_the_first_that_has_room),
        TEST(test_addresses_run_out_and_come_back),
        TEST(test_a_reader_is_seen_from_enter_to_leave),
        TEST(test_two_readers_of_one_cache_are_counted_apart),
        TEST(test_a_reader_under_a_lease_is_seen_by_both_names),
        TEST(test_generations_of_another_instance_are_others),
        TEST(test_there_are_as_many_readers_as_slots),
        TEST(test_many_threads_never_share_a_slot),
        TEST(test_without_memory_the_directory_does_not_open),
        TEST(test_publishing_without_memory_shows_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

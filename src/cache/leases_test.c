// Leases: ranges, time, releases, readers here and at peers, and everything that ends them.
#include "cache/leases.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/mem.h"
#include "unit/unit.h"

enum { POOL_BYTES = 1 << 20, TENSORS = 2, SLOTS = 8, LONG_MS = 3600000 };

static struct lli_segment segment;
static struct lli_pool pool;
static struct lli_registry registry;
static _Atomic uint64_t read_generation; // what a peer announces to read; 0 = nothing
static _Atomic unsigned num_ended;
static _Atomic unsigned num_warnings;

static const struct lli_geometry geometry = {
    .placement = LLM_PLACEMENT_DEVICE,
    .num_tensors = TENSORS,
    .data_type = LLM_DT_INT8,
    .num_slots = SLOTS,
    .stride = 512,
    .tensor_bytes = 4096,
};

static bool
is_read(void *arg, uint64_t generation)
{
    (void)arg;
    return generation == atomic_load(&read_generation);
}

static void
ended(void *arg)
{
    assert_ptr_equal(arg, &registry);
    atomic_fetch_add(&num_ended, 1);
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
open_with(uint64_t patience_ns)
{
    atomic_store(&read_generation, 0);
    atomic_store(&num_ended, 0);
    atomic_store(&num_warnings, 0);
    llm_set_log_sink(count_warnings, NULL);
    if (lli_segment_open(&segment, 1, 2, 1) != LLM_SUCCESS ||
        lli_pool_open(&pool, POOL_BYTES, NULL, 0) != LLM_SUCCESS)
        return -1;
    lli_registry_open(&registry, &segment, &pool, 1, patience_ns, is_read, &registry);
    registry.on_lease_ended = ended;
    return 0;
}

static int
setup(void **state)
{
    (void)state;
    return open_with(LLI_MS_TO_NS(UINT64_C(3600000)));
}

static int
setup_impatient(void **state)
{
    (void)state;
    return open_with(0);
}

static int
teardown(void **state)
{
    (void)state;
    lli_mem_fail_after(0);
    lli_registry_close(&registry);
    bool all_back = pool.bytes_used == 0 && pool.extents.num_free == 1;
    lli_pool_close(&pool);
    lli_segment_close(&segment);
    llm_set_log_sink(NULL, NULL);
    return all_back ? 0 : -1;
}

static int64_t
allocate(void)
{
    int64_t id = 0;
    uintptr_t addresses[TENSORS];
    assert_true(lli_registry_allocate(&registry, &geometry, &id, addresses) == LLM_SUCCESS);
    return id;
}

static llm_lease_desc
lease_of(int64_t id, uint64_t first, uint64_t count, uint32_t num_releases)
{
    return (llm_lease_desc){
        .struct_size = sizeof(llm_lease_desc),
        .cache_id = id,
        .first_block = first,
        .num_blocks = count,
        .duration_ms = LONG_MS,
        .num_releases = num_releases,
    };
}

static uint64_t
must_open(const llm_lease_desc *desc)
{
    uint64_t lease = 0;
    assert_true(lli_leases_open(&registry, desc, &lease) == LLM_SUCCESS);
    assert_true(lease != 0);
    return lease;
}

static uint64_t
open_all(int64_t id)
{
    llm_lease_desc desc = lease_of(id, 0, 0, 0);
    return must_open(&desc);
}

static llm_status
look(uint64_t lease)
{
    return lli_leases_wait(&registry, lease, 0);
}

static void
must_close(uint64_t lease)
{
    assert_true(lli_leases_close(&registry, lease) == LLM_SUCCESS);
}

static bool
is_shown(uint64_t lease)
{
    struct lli_lease_range range;
    uint32_t entry;
    return lli_names_find_lease(segment.layout, lease, &range, &entry);
}

// ---- opening ----

static void
test_ranges_are_checked(void **state)
{
    int64_t id = allocate();
    static const struct {
        uint64_t first;
        uint64_t count;
        uint64_t slots; // 0: refused
    } ranges[] = {
        {0, 0, SLOTS},
        {0, SLOTS, SLOTS},
        {0, 1, 1},
        {SLOTS - 1, 1, 1},
        {SLOTS - 1, 0, 1},
        {3, 0, SLOTS - 3},
        {0, SLOTS + 1, 0},
        {SLOTS, 0, 0},
        {SLOTS, 1, 0},
        {1, SLOTS, 0},
        {UINT64_MAX, 0, 0},
        {UINT64_MAX, 1, 0},
        {UINT64_MAX, UINT64_MAX, 0},
        {1, UINT64_MAX, 0},
        {SLOTS - 1, 2, 0},
    };
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(ranges); i++) {
        llm_lease_desc desc = lease_of(id, ranges[i].first, ranges[i].count, 0);
        uint64_t lease = 4711;
        struct lli_lease_range range;
        uint32_t entry;
        llm_status status = lli_leases_open(&registry, &desc, &lease);
        assert_true(status == (ranges[i].slots > 0 ? LLM_SUCCESS : LLM_PARAM_INVALID));
        if (status != LLM_SUCCESS) {
            assert_int_equal(lease, 4711);
            continue;
        }
        assert_true(lli_names_find_lease(segment.layout, lease, &range, &entry));
        assert_int_equal(range.first_slot, ranges[i].first);
        assert_int_equal(range.num_slots, ranges[i].slots);
        must_close(lease);
    }
    llm_lease_desc desc = lease_of(id + 1, 0, 0, 0);
    uint64_t lease;
    assert_true(lli_leases_open(&registry, &desc, &lease) == LLM_KV_CACHE_NOT_EXIST);
    desc = lease_of(id, 0, 0, 0);
    desc.duration_ms = 0;
    assert_true(lli_leases_open(&registry, &desc, &lease) == LLM_PARAM_INVALID);
}

static void
test_without_memory_no_lease_is_opened(void **state)
{
    int64_t id = allocate();
    llm_lease_desc desc = lease_of(id, 0, 0, 0);
    uint64_t lease = 4711;
    (void)state;
    lli_mem_fail_after(1);
    assert_true(lli_leases_open(&registry, &desc, &lease) == LLM_OUT_OF_MEMORY);
    assert_int_equal(lli_mem_fail_after(0), 0);
    assert_int_equal(lease, 4711);
    must_close(open_all(id));
}

static void
test_many_leases_are_told_apart(void **state)
{
    enum { MANY = 3000 };
    uint64_t *leases = unit_alloc(MANY * sizeof(*leases));
    int64_t id = allocate();
    (void)state;
    for (size_t i = 0; i < MANY; i++)
        leases[i] = open_all(id);
    for (size_t i = 0; i < MANY; i += 2)
        must_close(leases[i]);
    for (size_t i = 0; i < MANY; i++) {
        assert_int_equal(is_shown(leases[i]), i % 2 == 1);
        assert_true(look(leases[i]) == (i % 2 == 1 ? LLM_LEASE_ACTIVE : LLM_PARAM_INVALID));
    }
    for (size_t i = 1; i < MANY; i += 2)
        must_close(leases[i]);
    free(leases);
}

static void
test_names_that_no_lease_has(void **state)
{
    uint64_t lease = open_all(allocate());
    static const uint64_t names[] = {0, 1, 2, UINT64_MAX, UINT64_MAX - 1};
    (void)state;
    for (size_t i = 0; i <= LLI_COUNT(names); i++) {
        uint64_t name = i < LLI_COUNT(names) ? names[i] : lease | 1;
        assert_true(lli_leases_renew(&registry, name, 1) == LLM_PARAM_INVALID);
        assert_true(lli_leases_wait(&registry, name, UINT64_MAX) == LLM_PARAM_INVALID);
        assert_true(lli_leases_close(&registry, name) == LLM_PARAM_INVALID);
        lli_leases_release(&registry, name);
    }
    assert_true(lli_leases_renew(&registry, lease, 0) == LLM_PARAM_INVALID);
    must_close(lease);
    assert_true(lli_leases_close(&registry, lease) == LLM_PARAM_INVALID);
}

// ---- the ways to end ----

static void
test_time_ends_a_lease(void **state)
{
    int64_t id = allocate();
    llm_lease_desc desc = lease_of(id, 0, 0, 3);
    (void)state;
    desc.duration_ms = 1;
    uint64_t lease = must_open(&desc);
    assert_true(lli_leases_wait(&registry, lease, UINT64_MAX) == LLM_LEASE_EXPIRED);
    assert_true(look(lease) == LLM_LEASE_EXPIRED);
    assert_false(is_shown(lease));
    assert_true(lli_leases_renew(&registry, lease, LONG_MS) == LLM_CACHE_STALE);
    assert_int_equal(atomic_load(&num_ended), 1);
    must_close(lease);
    // Nobody need wait: the loop looks now and then.
    lease = must_open(&desc);
    uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
    while (is_shown(lease) && lli_now_ns() < deadline)
        lli_registry_collect(&registry);
    assert_false(is_shown(lease));
    assert_int_equal(atomic_load(&num_ended), 2);
    must_close(lease);
}

static void
test_a_renewed_lease_lives_on(void **state)
{
    llm_lease_desc desc = lease_of(allocate(), 0, 0, 0);
    (void)state;
    desc.duration_ms = 60000;
    uint64_t lease = must_open(&desc);
    assert_true(lli_leases_renew(&registry, lease, LONG_MS) == LLM_SUCCESS);
    assert_true(look(lease) == LLM_LEASE_ACTIVE);
    // It may be shortened as well.
    assert_true(lli_leases_renew(&registry, lease, 1) == LLM_SUCCESS);
    assert_true(lli_leases_wait(&registry, lease, UINT64_MAX) == LLM_LEASE_EXPIRED);
    must_close(lease);
}

static void
test_as_many_releases_as_wanted_end_a_lease(void **state)
{
    int64_t id = allocate();
    llm_lease_desc desc = lease_of(id, 0, 0, 3);
    uint64_t lease = must_open(&desc);
    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_true(look(lease) == LLM_LEASE_ACTIVE);
        assert_true(is_shown(lease));
        lli_leases_release(&registry, lease);
    }
    assert_true(look(lease) == LLM_SUCCESS);
    assert_false(is_shown(lease));
    assert_int_equal(atomic_load(&num_ended), 1);
    // One more does nothing.
    lli_leases_release(&registry, lease);
    assert_true(look(lease) == LLM_SUCCESS);
    assert_true(lli_leases_renew(&registry, lease, LONG_MS) == LLM_CACHE_STALE);
    must_close(lease);
    // Without a number releases don't count.
    lease = open_all(id);
    for (int i = 0; i < 5; i++)
        lli_leases_release(&registry, lease);
    assert_true(look(lease) == LLM_LEASE_ACTIVE);
    must_close(lease);
}

static void
test_the_end_of_the_cache_ends_its_leases(void **state)
{
    int64_t id = allocate();
    int64_t other = allocate();
    uint64_t first = open_all(id);
    uint64_t second = open_all(id);
    uint64_t of_other = open_all(other);
    (void)state;
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    assert_false(is_shown(first));
    assert_true(look(first) == LLM_KV_CACHE_NOT_EXIST);
    assert_true(look(second) == LLM_KV_CACHE_NOT_EXIST);
    assert_true(look(of_other) == LLM_LEASE_ACTIVE);
    assert_int_equal(atomic_load(&num_ended), 2);
    must_close(first);
    must_close(second);
    must_close(of_other);
}

static void
test_the_end_of_the_registry_ends_all(void **state)
{
    int64_t id = allocate();
    (void)state;
    open_all(id);
    uint64_t lease = open_all(id);
    struct lli_cache *cache = lli_registry_hold(&registry, id);
    struct lli_lease *entered = lli_leases_enter(&registry, lease, cache, 0, 1);
    assert_non_null(entered);
    lli_leases_leave(&registry, entered);
    lli_registry_put(&registry, cache);
    // The teardown closes; the sanitizer counts.
}

// ---- readers ----

static void
test_only_a_lease_that_lives_and_holds_the_slots_is_entered(void **state)
{
    int64_t id = allocate();
    struct lli_cache *cache = lli_registry_hold(&registry, id);
    struct lli_cache *other = lli_registry_hold(&registry, allocate());
    llm_lease_desc desc = lease_of(id, 2, 3, 0);
    uint64_t lease = must_open(&desc);
    (void)state;
    assert_null(lli_leases_enter(&registry, lease, cache, 1, 2));
    assert_null(lli_leases_enter(&registry, lease, cache, 4, 2));
    assert_null(lli_leases_enter(&registry, lease, other, 2, 3));
    assert_null(lli_leases_enter(&registry, lease + 2, cache, 2, 3));
    assert_true(lli_leases_live(&registry, lease, cache));
    assert_false(lli_leases_live(&registry, lease, other));
    assert_false(lli_leases_live(&registry, lease + 2, cache));
    struct lli_lease *entered = lli_leases_enter(&registry, lease, cache, 2, 3);
    assert_non_null(entered);
    assert_true(lli_leases_renew(&registry, lease, 1) == LLM_SUCCESS);
    uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
    while (is_shown(lease) && lli_now_ns() < deadline)
        lli_registry_collect(&registry);
    // It is ending: nobody new gets in, and it hasn't ended while somebody is in there.
    assert_null(lli_leases_enter(&registry, lease, cache, 2, 3));
    assert_false(lli_leases_live(&registry, lease, cache));
    assert_true(look(lease) == LLM_LEASE_ACTIVE);
    assert_true(lli_leases_renew(&registry, lease, LONG_MS) == LLM_CACHE_STALE);
    assert_false(lli_leases_is_overdue(entered));
    assert_int_equal(atomic_load(&num_ended), 0);
    lli_leases_leave(&registry, entered);
    assert_true(look(lease) == LLM_LEASE_EXPIRED);
    assert_int_equal(atomic_load(&num_ended), 1);
    must_close(lease);
    lli_registry_put(&registry, cache);
    lli_registry_put(&registry, other);
}

static void
test_a_peer_that_reads_is_waited_for(void **state)
{
    llm_lease_desc desc = lease_of(allocate(), 0, 0, 1);
    uint64_t lease = must_open(&desc);
    (void)state;
    atomic_store(&read_generation, lease);
    lli_leases_release(&registry, lease);
    assert_false(is_shown(lease));
    for (int i = 0; i < 3; i++)
        assert_true(look(lease) == LLM_LEASE_ACTIVE);
    atomic_store(&read_generation, 0);
    assert_true(look(lease) == LLM_SUCCESS);
    assert_int_equal(atomic_load(&num_warnings), 0);
    must_close(lease);
}

static void
test_a_peer_that_never_ends_loses_the_lease_and_finds_out(void **state)
{
    uint64_t lease = open_all(allocate());
    struct lli_lease_range range;
    uint32_t entry;
    (void)state;
    assert_true(lli_names_find_lease(segment.layout, lease, &range, &entry));
    atomic_store(&read_generation, lease);
    must_close(lease);
    assert_false(lli_names_lease_still_same(segment.layout, lease, entry));
    assert_int_equal(atomic_load(&num_warnings), 1);
}

static void
test_who_is_served_is_told_to_end_and_never_lost(void **state)
{
    int64_t id = allocate();
    struct lli_cache *cache = lli_registry_hold(&registry, id);
    llm_lease_desc desc = lease_of(id, 0, 0, 1);
    uint64_t lease = must_open(&desc);
    struct lli_lease *entered = lli_leases_enter(&registry, lease, cache, 0, 1);
    (void)state;
    assert_false(lli_leases_is_overdue(entered));
    lli_leases_release(&registry, lease);
    lli_registry_collect(&registry);
    assert_true(lli_leases_is_overdue(entered));
    assert_true(look(lease) == LLM_LEASE_ACTIVE);
    lli_leases_leave(&registry, entered);
    assert_true(look(lease) == LLM_SUCCESS);
    must_close(lease);
    lli_registry_put(&registry, cache);
}

// Memory of the user's is read directly in this process, so that every reader is waited for.
static void
test_readers_of_this_process_are_waited_for_where_the_memory_is_the_users(void **state)
{
    static uint8_t memory[TENSORS][4096];
    uint64_t addresses[TENSORS];
    int64_t id;
    (void)state;
    for (size_t i = 0; i < TENSORS; i++)
        addresses[i] = (uintptr_t)memory[i];
    assert_true(lli_registry_register(&registry, &geometry, addresses, &id) == LLM_SUCCESS);
    llm_lease_desc desc = lease_of(id, 0, 0, 1);
    uint64_t lease = must_open(&desc);
    struct lli_cache *cache = lli_registry_hold(&registry, id);
    int slot = lli_segment_reader_enter(&segment, segment.layout->header.incarnation,
                                        cache->generation, lease);
    lli_registry_put(&registry, cache);
    assert_true(slot >= 0);
    lli_leases_release(&registry, lease);
    for (int i = 0; i < 3; i++)
        assert_true(look(lease) == LLM_LEASE_ACTIVE);
    lli_segment_reader_leave(&segment, slot);
    assert_true(look(lease) == LLM_SUCCESS);
    must_close(lease);
    lli_registry_unregister(&registry, id);
}

// ---- several threads ----

struct caller {
    uint64_t lease;
    llm_status (*call)(uint64_t lease);
    llm_status status;
    _Atomic bool done;
    pthread_t thread;
};

static llm_status
wait_for(uint64_t lease)
{
    return lli_leases_wait(&registry, lease, UINT64_MAX);
}

static llm_status
close_it(uint64_t lease)
{
    return lli_leases_close(&registry, lease);
}

static void *
run(void *arg)
{
    struct caller *caller = arg;
    caller->status = caller->call(caller->lease);
    atomic_store(&caller->done, true);
    return NULL;
}

static void
start(struct caller *caller, uint64_t lease, llm_status (*call)(uint64_t lease))
{
    *caller = (struct caller){.lease = lease, .call = call};
    assert_int_equal(pthread_create(&caller->thread, NULL, run, caller), 0);
}

static llm_status
join(struct caller *caller)
{
    pthread_join(caller->thread, NULL);
    return caller->status;
}

static void
test_whoever_waits_is_woken_by_the_end(void **state)
{
    int64_t id = allocate();
    llm_lease_desc desc = lease_of(id, 0, 0, 1);
    struct caller caller;
    (void)state;
    uint64_t lease = must_open(&desc);
    start(&caller, lease, wait_for);
    assert_false(atomic_load(&caller.done));
    lli_leases_release(&registry, lease);
    assert_true(join(&caller) == LLM_SUCCESS);
    must_close(lease);
    lease = must_open(&desc);
    start(&caller, lease, wait_for);
    assert_true(lli_registry_deallocate(&registry, id) == LLM_SUCCESS);
    assert_true(join(&caller) == LLM_KV_CACHE_NOT_EXIST);
    must_close(lease);
    // Closed under the waiter's hands: it has ended, or is unknown already.
    desc.cache_id = allocate();
    lease = must_open(&desc);
    start(&caller, lease, wait_for);
    must_close(lease);
    llm_status status = join(&caller);
    assert_true(status == LLM_SUCCESS || status == LLM_PARAM_INVALID);
}

static void
test_closing_returns_when_nobody_reads(void **state)
{
    int64_t id = allocate();
    struct lli_cache *cache = lli_registry_hold(&registry, id);
    struct caller callers[2];
    (void)state;
    for (int peer = 0; peer <= 1; peer++) {
        uint64_t lease = open_all(id);
        struct lli_lease *entered = lli_leases_enter(&registry, lease, cache, 0, 1);
        if (peer)
            atomic_store(&read_generation, lease);
        // From two threads: both wait, one of them closes it.
        for (size_t i = 0; i < 2; i++)
            start(&callers[i], lease, close_it);
        uint64_t deadline = lli_deadline_after_ms(UNIT_PATIENCE_MS);
        while (is_shown(lease) && lli_now_ns() < deadline) {
        }
        assert_false(is_shown(lease));
        for (size_t i = 0; i < 2; i++)
            assert_false(atomic_load(&callers[i].done));
        lli_leases_leave(&registry, entered);
        if (peer) {
            for (size_t i = 0; i < 2; i++)
                assert_false(atomic_load(&callers[i].done));
        }
        atomic_store(&read_generation, 0);
        llm_status first = join(&callers[0]);
        llm_status second = join(&callers[1]);
        assert_true((first == LLM_SUCCESS && second == LLM_PARAM_INVALID) ||
                    (first == LLM_PARAM_INVALID && second == LLM_SUCCESS));
    }
    lli_registry_put(&registry, cache);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define IMPATIENT_TEST(name) cmocka_unit_test_setup_teardown(name, setup_impatient, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_ranges_are_checked),
        TEST(test_without_memory_no_lease_is_opened),
        TEST(test_many_leases_are_told_apart),
        TEST(test_names_that_no_lease_has),
        TEST(test_time_ends_a_lease),
        TEST(test_a_renewed_lease_lives_on),
        TEST(test_as_many_releases_as_wanted_end_a_lease),
        TEST(test_the_end_of_the_cache_ends_its_leases),
        TEST(test_the_end_of_the_registry_ends_all),
        TEST(test_only_a_lease_that_lives_and_holds_the_slots_is_entered),
        TEST(test_a_peer_that_reads_is_waited_for),
        IMPATIENT_TEST(test_a_peer_that_never_ends_loses_the_lease_and_finds_out),
        IMPATIENT_TEST(test_who_is_served_is_told_to_end_and_never_lost),
        IMPATIENT_TEST(test_readers_of_this_process_are_waited_for_where_the_memory_is_the_users),
        TEST(test_whoever_waits_is_woken_by_the_end),
        TEST(test_closing_returns_when_nobody_reads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

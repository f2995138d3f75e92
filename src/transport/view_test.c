// A peer's memory as it is mapped here: what is refused, and numbers that lead outside.
#include "transport/view.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"
#include "cache/pool.h"
#include "unit/unit.h"

enum { NUM_DEVICES = 2, POOL_BYTES = 1 << 16, TENSOR_BYTES = 4096, INCARNATION = 99 };

static struct lli_segment segment;
static struct lli_pool pools[NUM_DEVICES];
static int fds[1 + NUM_DEVICES];
static char why[256];

static int
setup(void **state)
{
    (void)state;
    llm_set_log_level(LLM_LOG_OFF);
    if (lli_segment_open(&segment, 1, INCARNATION, NUM_DEVICES) != LLM_SUCCESS)
        return -1;
    fds[0] = segment.fd;
    for (size_t i = 0; i < NUM_DEVICES; i++) {
        if (lli_pool_open(&pools[i], POOL_BYTES, NULL, 0) != LLM_SUCCESS)
            return -1;
        fds[1 + i] = pools[i].fd;
    }
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    lli_mem_fail_after(0);
    for (size_t i = 0; i < NUM_DEVICES; i++)
        lli_pool_close(&pools[i]);
    lli_segment_close(&segment);
    return 0;
}

static struct lli_view *
map(const int *files, size_t num_files, uint64_t incarnation, size_t num_devices)
{
    return lli_view_map(files, num_files, incarnation, num_devices, getpid(), why, sizeof(why));
}

static struct lli_view *
must_map(void)
{
    struct lli_view *view = map(fds, 1 + NUM_DEVICES, INCARNATION, NUM_DEVICES);
    assert_non_null(view);
    return view;
}

static void
test_what_the_peer_writes_is_seen_here(void **state)
{
    (void)state;
    struct lli_view *view = must_map();
    assert_int_equal(view->num_devices, NUM_DEVICES);
    for (size_t i = 0; i < NUM_DEVICES; i++) {
        unit_fill(pools[i].base, POOL_BYTES, i);
        assert_int_equal(view->pools[i].bytes, POOL_BYTES);
        assert_ptr_not_equal(view->pools[i].base, pools[i].base);
        assert_memory_equal(view->pools[i].base, pools[i].base, POOL_BYTES);
    }
    assert_true(view->same_process && view->can_read);
    assert_true(lli_view_is_alive(view));
    lli_view_unmap(view);
}

static void
test_a_wrong_number_of_files_is_refused(void **state)
{
    int many[LLI_NUM_VIEW_FDS_MAX + 1];
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(many); i++)
        many[i] = fds[i == 0 ? 0 : 1];
    for (size_t num_fds = 0; num_fds <= 5; num_fds++) {
        if (num_fds != 1 + NUM_DEVICES)
            assert_null(map(many, num_fds, INCARNATION, NUM_DEVICES));
    }
    assert_null(map(many, 1, INCARNATION, 0));
    assert_null(map(many, LLI_NUM_DEVICES_MAX + 2, INCARNATION, LLI_NUM_DEVICES_MAX + 1));
}

static void
test_another_owner_or_layout_is_refused(void **state)
{
    struct lli_segment_header *header = &segment.layout->header;
    (void)state;
    assert_null(map(fds, 1 + NUM_DEVICES, INCARNATION + 1, NUM_DEVICES));
    assert_null(map(fds, NUM_DEVICES, INCARNATION, NUM_DEVICES - 1));
    header->version++;
    assert_null(map(fds, 1 + NUM_DEVICES, INCARNATION, NUM_DEVICES));
    assert_non_null(strstr(why, "layout"));
    header->version--;
    header->magic ^= 1;
    assert_null(map(fds, 1 + NUM_DEVICES, INCARNATION, NUM_DEVICES));
    header->magic ^= 1;
    lli_view_unmap(must_map());
}

static void
test_files_that_are_not_sealed_memory_are_refused(void **state)
{
    (void)state;
    int unsealed = memfd_create("llm-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(ftruncate(unsealed, POOL_BYTES), 0);
    const int wrong[] = {unsealed, null, -1, pools[0].fd};
    for (size_t i = 0; i < LLI_COUNT(wrong); i++) {
        // In the place of the directory, and of each pool.
        for (size_t at = 0; at < 1 + NUM_DEVICES; at++) {
            int files[1 + NUM_DEVICES];
            memcpy(files, fds, sizeof(files));
            files[at] = wrong[i];
            struct lli_view *view = map(files, 1 + NUM_DEVICES, INCARNATION, NUM_DEVICES);
            bool is_pool = at > 0 && wrong[i] == pools[0].fd;
            assert_int_equal(view != NULL, is_pool);
            lli_view_unmap(view);
        }
    }
    close(unsealed);
    close(null);
}

static void
test_a_peer_of_unknown_pid_cannot_be_read(void **state)
{
    (void)state;
    struct lli_view *view =
        lli_view_map(fds, 1 + NUM_DEVICES, INCARNATION, NUM_DEVICES, 0, why, sizeof(why));
    assert_non_null(view);
    assert_false(view->can_read || view->same_process);
    assert_int_equal(view->pidfd, -1);
    assert_non_null(strstr(why, "pid"));
    lli_view_unmap(view);
}

static void
test_without_memory_nothing_stays_mapped(void **state)
{
    unsigned num_failures = 0;
    (void)state;
    for (uint64_t n = 1;; n++) {
        lli_mem_fail_after(n);
        struct lli_view *view = map(fds, 1 + NUM_DEVICES, INCARNATION, NUM_DEVICES);
        bool struck = lli_mem_fail_after(0) == 0;
        assert_int_equal(view == NULL, struck);
        lli_view_unmap(view);
        if (!struck)
            break;
        num_failures++;
    }
    assert_int_equal(num_failures, 2);
}

// ---- addresses ----

// A cache of three tensors per device, as a peer would describe it.
static struct lli_remote_cache
describe(uint64_t first_address, const uint64_t *offsets)
{
    for (uint64_t i = 0; i < 3 * NUM_DEVICES; i++)
        segment.layout->addresses[first_address + i] = offsets[i];
    return (struct lli_remote_cache){
        .first_address = first_address,
        .geometry = {.num_tensors = 3, .tensor_bytes = TENSOR_BYTES},
    };
}

static const uint64_t good_offsets[3 * NUM_DEVICES] = {
    0, 512, POOL_BYTES - TENSOR_BYTES, 1024, 0, 4096,
};

static void
test_every_choice_of_tensors_is_found_on_every_device(void **state)
{
    uintptr_t tensors[3 * NUM_DEVICES];
    (void)state;
    struct lli_view *view = must_map();
    struct lli_remote_cache cache = describe(100, good_offsets);
    for (uint32_t first = 0; first <= 4; first++) {
        for (uint32_t count = 0; count <= 4; count++) {
            bool ok = lli_view_resolve(view, &cache, first, count, tensors);
            assert_int_equal(ok, first + count <= 3);
            for (size_t i = 0; ok && i < (size_t)count * NUM_DEVICES; i++) {
                size_t device = i / count;
                assert_true(tensors[i] == (uintptr_t)view->pools[device].base +
                                              good_offsets[device * 3 + first + i % count]);
            }
        }
    }
    assert_false(lli_view_resolve(view, &cache, UINT32_MAX, 1, tensors));
    assert_false(lli_view_resolve(view, &cache, 1, UINT32_MAX, tensors));
    lli_view_unmap(view);
}

static void
test_an_offset_outside_the_pool_is_refused(void **state)
{
    static const uint64_t wrong[] = {POOL_BYTES - TENSOR_BYTES + 1, POOL_BYTES, POOL_BYTES + 1,
                                     UINT64_MAX, UINT64_MAX - TENSOR_BYTES + 1};
    uintptr_t tensors[3 * NUM_DEVICES];
    (void)state;
    struct lli_view *view = must_map();
    for (size_t at = 0; at < LLI_COUNT(good_offsets); at++) {
        for (size_t i = 0; i < LLI_COUNT(wrong); i++) {
            uint64_t offsets[LLI_COUNT(good_offsets)];
            memcpy(offsets, good_offsets, sizeof(offsets));
            offsets[at] = wrong[i];
            struct lli_remote_cache cache = describe(0, offsets);
            assert_false(lli_view_resolve(view, &cache, 0, 3, tensors));
        }
    }
    struct lli_remote_cache cache = describe(0, good_offsets);
    cache.geometry.tensor_bytes = UINT64_MAX;
    assert_false(lli_view_resolve(view, &cache, 0, 3, tensors));
    lli_view_unmap(view);
}

static void
test_an_index_outside_the_addresses_is_refused(void **state)
{
    static const uint64_t wrong[] = {LLI_NUM_ADDRESSES - 5, LLI_NUM_ADDRESSES,
                                     LLI_NUM_ADDRESSES + 1, UINT64_MAX};
    uintptr_t tensors[3 * NUM_DEVICES];
    (void)state;
    struct lli_view *view = must_map();
    struct lli_remote_cache cache = describe(LLI_NUM_ADDRESSES - 6, good_offsets);
    assert_true(lli_view_resolve(view, &cache, 0, 3, tensors));
    for (size_t i = 0; i < LLI_COUNT(wrong); i++) {
        cache.first_address = wrong[i];
        assert_false(lli_view_resolve(view, &cache, 0, 3, tensors));
    }
    cache.first_address = 0;
    cache.geometry.num_tensors = UINT32_MAX;
    assert_false(lli_view_resolve(view, &cache, 0, 1, tensors));
    lli_view_unmap(view);
}

// Of two such pools, the second has no room beside the first.
static void
test_pools_of_peers_leave_room_for_the_program(void **state)
{
    const uint64_t bytes = UINT64_C(40) << 40;
    struct lli_pool large;
    (void)state;
    // The sanitizers keep the address space to themselves.
    if (lli_pool_open(&large, bytes, NULL, 0) != LLM_SUCCESS)
        skip();
    int files[] = {segment.fd, large.fd, pools[1].fd};
    struct lli_view *first = map(files, 3, INCARNATION, NUM_DEVICES);
    if (first == NULL) {
        lli_pool_close(&large);
        skip();
    }
    for (int round = 0; round < 3; round++) {
        assert_null(map(files, 3, INCARNATION, NUM_DEVICES));
        assert_non_null(strstr(why, "doesn't fit"));
        lli_view_unmap(must_map());
    }
    lli_view_unmap(first);
    // What has gone counts no longer.
    first = map(files, 3, INCARNATION, NUM_DEVICES);
    assert_non_null(first);
    lli_view_unmap(first);
    lli_pool_close(&large);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_the_peer_writes_is_seen_here),
        TEST(test_a_wrong_number_of_files_is_refused),
        TEST(test_another_owner_or_layout_is_refused),
        TEST(test_files_that_are_not_sealed_memory_are_refused),
        TEST(test_a_peer_of_unknown_pid_cannot_be_read),
        TEST(test_without_memory_nothing_stays_mapped),
        TEST(test_every_choice_of_tensors_is_found_on_every_device),
        TEST(test_an_offset_outside_the_pool_is_refused),
        TEST(test_pools_of_peers_leave_room_for_the_program),
        TEST(test_an_index_outside_the_addresses_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

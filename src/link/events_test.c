// Changes of links: in order, with their reasons, the oldest dropped, and never lost to a lack of memory.
#include "link/events.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "base/mem.h"
#include "unit/unit.h"

enum { KEPT = 1024, PER_LINK = LLI_EVENTS_OF_EVERY_LINK };

static struct lli_options options = {.num_devices = 2};
static struct lli_node node;

static int
setup(void **state)
{
    (void)state;
    memset(&node, 0, sizeof(node));
    node.options = &options;
    node.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    lli_node_open(&node, 100);
    return node.event_fd >= 0 ? 0 : -1;
}

static int
teardown(void **state)
{
    (void)state;
    lli_mem_fail_after(0);
    lli_node_close(&node);
    close(node.event_fd);
    return 0;
}

static void
open_link(struct lli_link *link, uint64_t cluster_id)
{
    *link = (struct lli_link){
        .node = &node,
        .peer = {.cluster_id = cluster_id},
        .transport = LLI_TRANSPORT_SHM,
        .reason = "because",
    };
    lli_list_init(&link->events);
    assert_true(lli_events_prepare(link, PER_LINK));
}

static void
add(struct lli_link *link, llm_link_state state)
{
    pthread_mutex_lock(&node.links_lock);
    lli_events_add_locked(link, state);
    pthread_mutex_unlock(&node.links_lock);
}

static bool
is_signalled(void)
{
    uint64_t count;
    return read(node.event_fd, &count, sizeof(count)) == sizeof(count);
}

static void
expect(uint64_t cluster_id, llm_link_state state, const char *reason)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    assert_true(lli_events_take(&node, &info));
    assert_int_equal(info.cluster_id, cluster_id);
    assert_int_equal(info.state, state);
    assert_int_equal(info.num_devices, 2);
    assert_string_equal(info.transport, "shm");
    assert_string_equal(info.reason, reason);
}

static void
expect_none(void)
{
    llm_link_info info = {.struct_size = 4711};
    assert_false(lli_events_take(&node, &info));
    assert_int_equal(info.struct_size, 4711);
}

static void
test_changes_come_in_their_order_with_their_reasons(void **state)
{
    struct lli_link first;
    struct lli_link second;
    (void)state;
    open_link(&first, 1);
    open_link(&second, 2);
    expect_none();
    assert_false(is_signalled());
    add(&first, LLM_LINK_READY);
    assert_true(is_signalled());
    add(&second, LLM_LINK_READY);
    snprintf(first.broken_reason, sizeof(first.broken_reason), "it fell silent");
    first.broken = true;
    add(&first, LLM_LINK_BROKEN);
    add(&second, LLM_LINK_REMOVED);
    assert_true(is_signalled());
    assert_false(is_signalled());
    expect(1, LLM_LINK_READY, "because");
    expect(2, LLM_LINK_READY, "because");
    expect(1, LLM_LINK_BROKEN, "it fell silent");
    lli_events_unprepare(&first);
    lli_events_unprepare(&second);
    // What has happened outlives the link.
    expect(2, LLM_LINK_REMOVED, "it was unlinked, or replaced");
    expect_none();
}

static void
test_the_oldest_of_too_many_make_room(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < KEPT + 10; i++) {
        struct lli_link link;
        open_link(&link, i);
        add(&link, LLM_LINK_READY);
        lli_events_unprepare(&link);
    }
    for (uint64_t i = 10; i < KEPT + 10; i++)
        expect(i, LLM_LINK_READY, "because");
    expect_none();
}

static void
test_what_nobody_polls_is_freed(void **state)
{
    struct lli_link link;
    (void)state;
    open_link(&link, 1);
    add(&link, LLM_LINK_READY);
    lli_events_unprepare(&link);
    // The teardown closes; the sanitizer counts.
}

static void
test_without_memory_a_link_is_not_made(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= PER_LINK + 1; n++) {
        struct lli_link link = {.node = &node};
        lli_list_init(&link.events);
        lli_mem_fail_after(n);
        bool ok = lli_events_prepare(&link, PER_LINK);
        lli_mem_fail_after(0);
        assert_int_equal(ok, n > PER_LINK);
        // Then every change of the link has its memory.
        lli_mem_fail_after(1);
        for (int i = 0; ok && i < PER_LINK; i++)
            add(&link, LLM_LINK_READY);
        assert_int_equal(lli_mem_fail_after(0), 1);
        assert_int_equal(node.num_events, ok ? PER_LINK : 0);
        lli_events_unprepare(&link);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_changes_come_in_their_order_with_their_reasons),
        TEST(test_the_oldest_of_too_many_make_room),
        TEST(test_what_nobody_polls_is_freed),
        TEST(test_without_memory_a_link_is_not_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

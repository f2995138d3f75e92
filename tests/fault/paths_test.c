// The path under the data connections of a link dies, one way or both, while its control connection
// lives: both ends notice, whether something is to be moved or not, and say so; the two link again.
#include "fault/proxy.h"
#include "registered/kit.h"

enum { OWNER = 11, USER = 21, SOURCE = 0, TARGET = 1, TENSORS = 2, SLOTS = 16, STRIDE = 64 << 10 };
enum { SYNC_MS = 1000, LIVENESS_MS = SCALED(500, 1500) };
// The liveness time, and a margin for a busy machine.
enum { BOUND_MS = LIVENESS_MS + SCALED(4000, 20000) };

struct bed {
    struct other owner;
    struct proxy proxy;
    struct end user;
    struct kv kv;
};

static void
bed_open(struct bed *bed)
{
    struct end_setup setup = {
        .id = OWNER,
        .transports = "tcp",
        .listens = true,
        .sync_ms = SYNC_MS,
        .liveness_ms = LIVENESS_MS,
    };
    memset(bed, 0, sizeof(*bed));
    other_open(&bed->owner, &setup);
    other_cache(&bed->owner, SOURCE, false, TENSORS, SLOTS, STRIDE);
    other_fill(&bed->owner, SOURCE, 5);
    proxy_start(&bed->proxy, bed->owner.port);
    setup.id = USER;
    setup.listens = false;
    end_open(&bed->user, &setup);
    kv_allocate(&bed->kv, &bed->user, TENSORS, SLOTS, STRIDE);
}

static void
bed_close(struct bed *bed)
{
    end_close(&bed->user);
    kv_free(&bed->kv);
    assert_true(process_join(&bed->owner.process));
    assert_true(process_join(&bed->proxy.process));
}

static llm_status
pull(struct bed *bed, uint32_t timeout_ms)
{
    struct job job = {.peer = OWNER, .remote = 1, .count = SLOTS, .timeout_ms = timeout_ms};
    return job_run(&job, &bed->user, &bed->kv);
}

static void
link_anew(struct bed *bed)
{
    proxy_plan(&bed->proxy, &(struct proxy_plan){.fault = PROXY_NONE});
    assert_ok(end_link(&bed->user, OWNER, bed->proxy.port));
    kv_fill(&bed->kv, 0);
    assert_ok(pull(bed, PATIENCE_MS));
    assert_true(kv_holds(&bed->kv, 5, SLOTS, 0));
}

static void
await_the_end(struct bed *bed, uint64_t start)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    AWAIT(end_state(&bed->user, OWNER, &info) == LLM_LINK_BROKEN);
    assert_true(now_ms() - start <= BOUND_MS);
    AWAIT(other_ask(&bed->owner, "state %d", USER) == LLM_LINK_BROKEN);
    assert_true(now_ms() - start <= BOUND_MS);
    // The first that notices closes the connection of which the other hears.
    if (strstr(info.reason, "data connection") == NULL && strstr(info.reason, "closed") == NULL)
        fail_msg("the reason is '%s'", info.reason);
}

// Each way, and both; idle, and with a pull that waits for its bytes.
static void
test_a_dead_path_ends_the_link(void **state)
{
    struct bed bed;
    (void)state;
    bed_open(&bed);
    for (int ways = 1; ways < 4; ways++) {
        for (int idle = 0; idle < 2; idle++) {
            link_anew(&bed);
            proxy_swallow(&bed.proxy, (ways & 1) != 0, (ways & 2) != 0);
            uint64_t start = now_ms();
            // The requests go another way; what they ask for can't come.
            if (!idle && (ways & 2) != 0)
                assert_true(pull(&bed, PATIENCE_MS) != LLM_SUCCESS);
            await_the_end(&bed, start);
        }
    }
    link_anew(&bed);
    bed_close(&bed);
}

// On the first data connection, one way.
static uint64_t
bytes_passed(struct bed *bed, unsigned direction)
{
    uint64_t passed[PROXY_CONNS_MAX][PROXY_DIRECTIONS];
    (void)proxy_report(&bed->proxy, passed);
    return passed[1][direction];
}

static void
test_a_living_path_is_left_alone(void **state)
{
    enum { PROBES = 10, PROBE_BYTES = 32 };
    struct bed bed;
    (void)state;
    bed_open(&bed);
    link_anew(&bed);
    // While it is idle probes pass, both ways.
    for (unsigned direction = 0; direction < PROXY_DIRECTIONS; direction++) {
        uint64_t before = bytes_passed(&bed, direction);
        AWAIT(bytes_passed(&bed, direction) >= before + (uint64_t)PROBES * PROBE_BYTES);
    }
    for (uint64_t start = now_ms(); now_ms() - start < 3 * LIVENESS_MS;)
        assert_ok(pull(&bed, PATIENCE_MS));
    assert_int_equal(end_state(&bed.user, OWNER, NULL), LLM_LINK_READY);
    bed_close(&bed);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_a_dead_path_ends_the_link),
        KIT_TEST(test_a_living_path_is_left_alone),
    };
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk))
        return strcmp(role, "proxy") == 0 ? proxy_serve(&talk) : kit_serve(&talk);
    transport = "tcp";
    return kit_main(argc, argv, tests, LENGTH(tests));
}

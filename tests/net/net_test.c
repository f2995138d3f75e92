// Two processes with a network between them that is slow, loses packets, is narrow, or is cut: slow is
// not dead, what is cut is noticed, and when it's whole again everything works as before.
#include <inttypes.h>
#include <poll.h>

#include "net/wire.h"
#include "registered/kit.h"

enum { OWNER = 11, USER = 21, SOURCE = 0, TARGET = 1, TENSORS = 2, SLOTS = 16 };
enum { LIVENESS_MS = SCALED(1000, 2000), DEAD_MS = 3 * LIVENESS_MS };
enum { MARGIN_MS = SCALED(2500, 20000) };
enum { SKIPPED = 77 };

// Both are other processes; their ids of caches are 1 and 2.
struct net {
    struct other owner;
    struct other user;
};

static bool
obeys(struct talk *talk, const char *command, const char *words)
{
    static char own[32];
    static char peer[32];
    char why[256] = "";
    if (strcmp(command, "network") != 0)
        return false;
    assert_int_equal(sscanf(words, "%31s %31s", own, peer), 2);
    own_ip = own;
    peer_ip = peer;
    talk_say(talk, "%d %s", wire_enter(own, why, sizeof(why)), why);
    return true;
}

// False, with the reason, where this isn't permitted.
static bool
enter(struct other *other, const char *own, const char *peer, int *ret_fd, char *why,
      size_t why_size)
{
    char answer[LINE_BYTES];
    other_start(other);
    process_ask(&other->process, answer, "network %s %s", own, peer);
    *ret_fd = (int)strtol(answer, NULL, 10);
    snprintf(why, why_size, "%s", strchr(answer, ' ') + 1);
    return *ret_fd >= 0;
}

static bool
try_open(struct net *net, char *why, size_t why_size)
{
    int fds[2];
    memset(net, 0, sizeof(*net));
    if (!enter(&net->owner, "198.51.100.1", "198.51.100.2", &fds[0], why, why_size) ||
        !enter(&net->user, "198.51.100.2", "198.51.100.1", &fds[1], why, why_size))
        return false;
    pid_t pids[] = {net->owner.process.pid, net->user.process.pid};
    return wire_open(pids, fds, why, why_size);
}

static void
net_open(struct net *net, uint64_t stride)
{
    char why[256];
    struct end_setup setup = {.id = OWNER,
                              .transports = "tcp",
                              .listens = true,
                              .liveness_ms = LIVENESS_MS,
                              .dead_ms = DEAD_MS};
    if (!try_open(net, why, sizeof(why)))
        fail_msg("%s", why);
    other_open(&net->owner, &setup);
    setup.id = USER;
    setup.listens = false;
    other_open(&net->user, &setup);
    for (unsigned i = 0; i < 2; i++) {
        struct other *other = i == 0 ? &net->owner : &net->user;
        other_cache(other, SOURCE, true, TENSORS, SLOTS, stride);
        other_cache(other, TARGET, true, TENSORS, SLOTS, stride);
        other_fill(other, SOURCE, 5 + i);
    }
}

static int
tear_down(void **state)
{
    (void)state;
    wire_close();
    process_kill_all();
    return 0;
}

static void
net_close(struct net *net)
{
    wire_close();
    assert_true(process_join(&net->user.process));
    assert_true(process_join(&net->owner.process));
}

static void
link_ends(struct net *net)
{
    assert_status((llm_status)other_link(&net->user, OWNER, net->owner.port), LLM_SUCCESS);
}

static unsigned
state_of(struct other *other, uint64_t peer)
{
    return (unsigned)other_ask(other, "state %" PRIu64, peer);
}

static void
assert_linked(struct net *net)
{
    assert_int_equal(state_of(&net->user, OWNER), LLM_LINK_READY);
    assert_int_equal(state_of(&net->owner, USER), LLM_LINK_READY);
}

static struct job
job_of(bool push, unsigned repeat)
{
    return (struct job){
        .push = push,
        .peer = OWNER,
        .remote = push ? 2 : 1,
        .count = SLOTS,
        .shift = 3,
        .repeat = repeat,
        .timeout_ms = 2 * PATIENCE_MS,
    };
}

// A pull and a push, with the right bytes.
static void
check_transfers(struct net *net)
{
    struct job pull = job_of(false, 1);
    struct job push = job_of(true, 1);
    other_fill(&net->user, TARGET, 0);
    other_fill(&net->owner, TARGET, 0);
    assert_ok(other_run(&net->user, &pull, TARGET));
    assert_true(other_holds(&net->user, TARGET, 5, SLOTS, 3));
    assert_ok(other_run(&net->user, &push, SOURCE));
    assert_true(other_holds(&net->owner, TARGET, 6, SLOTS, 3));
}

// The link stays as it is for some time.
static void
watch(struct net *net, unsigned for_ms)
{
    uint64_t until = now_ms() + for_ms;
    while (now_ms() < until) {
        assert_linked(net);
        (void)poll(NULL, 0, 20);
    }
}

static void
test_long_and_lossy(void **state)
{
    struct net net;
    struct wire_state wire = {.delay_ms = 20, .loss_percent = 1};
    (void)state;
    net_open(&net, 8 << 10);
    wire_set(&wire);
    link_ends(&net);
    check_transfers(&net);
    watch(&net, 2 * LIVENESS_MS);
    check_transfers(&net);
    assert_linked(&net);
    net_close(&net);
}

// Transfers take several times the liveness time; what keeps the link alive waits behind their bytes.
static void
test_narrow(void **state)
{
    struct net net;
    struct wire_state wire = {.delay_ms = 5, .kbit_per_s = SCALED(1000, 400)};
    (void)state;
    net_open(&net, 6 << 10);
    wire_set(&wire);
    link_ends(&net);
    uint64_t start = now_ms();
    check_transfers(&net);
    assert_true(now_ms() - start > 2 * LIVENESS_MS);
    assert_linked(&net);
    net_close(&net);
}

static void
cut(void)
{
    struct wire_state wire = {.cut = true};
    wire_set(&wire);
}

static void
mend(void)
{
    struct wire_state wire = {0};
    wire_set(&wire);
}

// Both ends notice, the one as well as the other.
static void
await_notice(struct net *net, uint64_t start)
{
    while (state_of(&net->user, OWNER) == LLM_LINK_READY ||
           state_of(&net->owner, USER) == LLM_LINK_READY) {
        if (now_ms() - start > LIVENESS_MS + MARGIN_MS)
            fail_msg("the cut wasn't noticed within %d ms", LIVENESS_MS + MARGIN_MS);
        (void)poll(NULL, 0, 5);
    }
}

static void
test_cut_when_idle(void **state)
{
    struct net net;
    (void)state;
    net_open(&net, 4 << 10);
    link_ends(&net);
    check_transfers(&net);
    cut();
    uint64_t start = now_ms();
    await_notice(&net, start);
    if (now_ms() - start + 100 < LIVENESS_MS)
        fail_msg("the link was suspect after %" PRIu64 " ms", now_ms() - start);
    // A transfer waits for the peer until that is dead.
    struct job pull = job_of(false, 1);
    llm_status status = other_run(&net.user, &pull, TARGET);
    assert_true(status == LLM_TIMEOUT || status == LLM_WAIT_PROC_TIMEOUT || status == LLM_FAILED);
    mend();
    link_ends(&net);
    check_transfers(&net);
    net_close(&net);
}

static void
cut_during(bool push)
{
    struct net net;
    struct job job = job_of(push, 4096);
    struct other *receiver;
    net_open(&net, 64 << 10);
    receiver = push ? &net.owner : &net.user;
    link_ends(&net);
    uint64_t before = push ? other_ask(receiver, "checksum %d", TARGET) : 0;
    other_begin(&net.user, &job, push ? SOURCE : TARGET);
    // Under way: the receiver of a push sees bytes; a pull has none who could tell.
    if (push)
        AWAIT(other_ask(receiver, "checksum %d", TARGET) != before);
    else
        (void)poll(NULL, 0, 200);
    cut();
    uint64_t start = now_ms();
    llm_status status = other_end(&net.user);
    uint64_t took = now_ms() - start;
    if (status != LLM_TIMEOUT && status != LLM_WAIT_PROC_TIMEOUT && status != LLM_FAILED)
        fail_msg("it answers %s", llm_status_name(status));
    if (took > DEAD_MS + MARGIN_MS)
        fail_msg("it took %" PRIu64 " ms", took);
    await_notice(&net, start);
    // What was on its way, or is sent again when the wire is whole, lands nowhere.
    uint64_t sum = other_ask(receiver, "checksum %d", TARGET);
    mend();
    link_ends(&net);
    struct job again = job_of(push, 1);
    other_cache(receiver, 2, true, TENSORS, SLOTS, 64 << 10);
    again.remote = push ? 3 : 1;
    assert_ok(other_run(&net.user, &again, push ? SOURCE : 2));
    assert_true(other_holds(receiver, 2, push ? 6 : 5, SLOTS, 3));
    assert_true(other_ask(receiver, "checksum %d", TARGET) == sum);
    net_close(&net);
}

static void
test_cut_during_a_pull(void **state)
{
    (void)state;
    cut_during(false);
}

static void
test_cut_during_a_push(void **state)
{
    (void)state;
    cut_during(true);
}

// A cable that is plugged in again soon enough: nobody was gone.
static void
test_cut_for_a_moment(void **state)
{
    struct net net;
    struct job job = job_of(false, SCALED(32, 16));
    (void)state;
    net_open(&net, 64 << 10);
    link_ends(&net);
    other_begin(&net.user, &job, TARGET);
    (void)poll(NULL, 0, 50);
    cut();
    (void)poll(NULL, 0, LIVENESS_MS / 8);
    // It isn't over yet.
    struct pollfd wait = {.fd = net.user.process.talk.fd, .events = POLLIN};
    assert_int_equal(poll(&wait, 1, 0), 0);
    mend();
    assert_ok(other_end(&net.user));
    assert_true(other_holds(&net.user, TARGET, 5, SLOTS, 3));
    assert_linked(&net);
    net_close(&net);
}

// One that takes longer, but comes back: the link is suspect meanwhile, and nothing is lost.
static void
test_cut_for_longer(void **state)
{
    struct net net;
    struct job job = job_of(false, SCALED(32, 16));
    (void)state;
    net_open(&net, 64 << 10);
    link_ends(&net);
    other_begin(&net.user, &job, TARGET);
    (void)poll(NULL, 0, 50);
    cut();
    AWAIT(state_of(&net.owner, USER) == LLM_LINK_SUSPECT);
    mend();
    assert_ok(other_end(&net.user));
    assert_true(other_holds(&net.user, TARGET, 5, SLOTS, 3));
    AWAIT(state_of(&net.owner, USER) == LLM_LINK_READY);
    AWAIT(state_of(&net.user, OWNER) == LLM_LINK_READY);
    check_transfers(&net);
    net_close(&net);
}

#define TEST(name) cmocka_unit_test_teardown(name, tear_down)

int
main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        TEST(test_long_and_lossy),    TEST(test_narrow),
        TEST(test_cut_when_idle),     TEST(test_cut_during_a_pull),
        TEST(test_cut_during_a_push), TEST(test_cut_for_a_moment),
        TEST(test_cut_for_longer),
    };
    const char *role;
    struct talk talk;
    struct net net;
    char why[256];
    if (process_role(argc, argv, &role, &talk)) {
        kit_obeys = obeys;
        return kit_serve(&talk);
    }
    bool possible = try_open(&net, why, sizeof(why));
    (void)tear_down(NULL);
    if (!possible) {
        printf("network namespaces can't be used here: %s\n", why);
        return SKIPPED;
    }
    transport = "tcp";
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

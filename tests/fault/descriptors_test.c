// A prompt that runs out of file descriptors: the link that it has keeps working, new ones are turned
// away and not left waiting, nothing spins, and when descriptors are free again it's as before.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "fault/raw.h"
#include "multi/member.h"

enum { SOURCE = 0, TARGET = 1, TENSORS = 2, SLOTS = 8, STRIDE = 4096, DESCRIPTORS = 64 };

static int
end_processes(void **state)
{
    (void)state;
    process_kill_all();
    return 0;
}

static unsigned
cpu_ms(void)
{
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (unsigned)(used.tv_sec * 1000 + used.tv_nsec / 1000000);
}

// The prompt; "exhaust" opens files until no descriptor is left, "free" closes them, "cpu" says how
// long the process has computed.
static int
poor_prompt(struct talk *talk)
{
    char line[LINE_BYTES];
    struct rlimit limit = {.rlim_cur = DESCRIPTORS, .rlim_max = DESCRIPTORS};
    struct member member;
    int hoard[DESCRIPTORS];
    size_t num_hoarded = 0;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct member_setup setup = {
        .cluster_id = RAW_PROMPT, .role = LLM_ROLE_PROMPT, .transports = "tcp"};
    member_open(&member, &setup);
    int64_t id = member_allocate(&member, SOURCE, TENSORS, SLOTS, STRIDE);
    member_fill(&member, SOURCE, 5);
    talk_say(talk, "%u %lld", member.ports[0], (long long)id);
    while (talk_hear(talk, line, -1)) {
        if (strcmp(line, "exhaust") == 0) {
            while (num_hoarded < DESCRIPTORS &&
                   (hoard[num_hoarded] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
                num_hoarded++;
            talk_say(talk, "%zu", num_hoarded);
        } else if (strcmp(line, "free") == 0) {
            while (num_hoarded > 0)
                close(hoard[--num_hoarded]);
            talk_say(talk, "ok");
        } else {
            talk_say(talk, "%u", cpu_ms());
        }
    }
    member_close(&member);
    return 0;
}

static unsigned
ask_number(struct process *process, const char *question)
{
    char answer[LINE_BYTES];
    process_ask(process, answer, "%s", question);
    return (unsigned)strtoul(answer, NULL, 10);
}

static void
check_link(struct member *decoder, int64_t source)
{
    struct transfer t = {
        .kind = TRANSFER_PULL_BLOCKS,
        .cluster_id = RAW_PROMPT,
        .remote_cache = source,
        .index = TARGET,
        .count = SLOTS,
        .step = 1,
    };
    member_fill(decoder, TARGET, 0);
    assert_int_equal(member_transfer(decoder, &t), LLM_SUCCESS);
    assert_true(member_holds_all(decoder, TARGET, 5));
}

static void
test_out_of_descriptors(void **state)
{
    enum { IDLE_MS = 500 };
    struct process prompt;
    struct member good;
    struct member late;
    char answer[LINE_BYTES];
    unsigned port;
    long long source;
    (void)state;
    process_start(&prompt, "poor");
    assert_true(talk_hear(&prompt.talk, answer, PATIENCE_MS));
    assert_int_equal(sscanf(answer, "%u %lld", &port, &source), 2);
    uint16_t ports[MEMBER_DEVICES_MAX] = {(uint16_t)port};
    struct member_setup setup = {
        .cluster_id = RAW_DECODER, .role = LLM_ROLE_DECODER, .transports = "tcp"};
    member_open(&good, &setup);
    setup.cluster_id = RAW_DECODER + 1;
    member_open(&late, &setup);
    member_allocate(&good, TARGET, TENSORS, SLOTS, STRIDE);
    member_allocate(&late, TARGET, TENSORS, SLOTS, STRIDE);
    assert_int_equal(member_link(&good, RAW_PROMPT, ports, PATIENCE_MS), LLM_SUCCESS);

    assert_true(ask_number(&prompt, "exhaust") > 0);
    for (unsigned i = 0; i < 100; i++)
        raw_expect_closed(raw_connect(ports[0]));
    assert_int_equal(member_link(&late, RAW_PROMPT, ports, PATIENCE_MS), LLM_LINK_FAILED);
    check_link(&good, source);

    // Idle, with callers that wait to be let in: it doesn't compute.
    int callers[50];
    for (unsigned i = 0; i < 50; i++)
        callers[i] = raw_connect(ports[0]);
    unsigned before = ask_number(&prompt, "cpu");
    (void)poll(NULL, 0, IDLE_MS);
    unsigned computed = ask_number(&prompt, "cpu") - before;
    if (computed > IDLE_MS / 3)
        fail_msg("it computed for %u of %d ms", computed, IDLE_MS);
    for (unsigned i = 0; i < 50; i++)
        close(callers[i]);

    PROCESS_EXPECT(&prompt, "ok", "free");
    assert_int_equal(member_link(&late, RAW_PROMPT, ports, PATIENCE_MS), LLM_SUCCESS);
    check_link(&late, source);
    check_link(&good, source);
    member_close(&late);
    member_close(&good);
    assert_true(process_join(&prompt));
}

// Strangers who say nothing take all descriptors: whoever means it gets in nevertheless.
static void
test_silent_strangers(void **state)
{
    enum { STRANGERS = DESCRIPTORS * 3 };
    struct process prompt;
    struct member good;
    char answer[LINE_BYTES];
    unsigned port;
    long long source;
    int strangers[STRANGERS];
    (void)state;
    process_start(&prompt, "poor");
    assert_true(talk_hear(&prompt.talk, answer, PATIENCE_MS));
    assert_int_equal(sscanf(answer, "%u %lld", &port, &source), 2);
    uint16_t ports[MEMBER_DEVICES_MAX] = {(uint16_t)port};
    struct member_setup setup = {
        .cluster_id = RAW_DECODER, .role = LLM_ROLE_DECODER, .transports = "tcp"};
    member_open(&good, &setup);
    member_allocate(&good, TARGET, TENSORS, SLOTS, STRIDE);
    for (unsigned i = 0; i < STRANGERS; i++)
        strangers[i] = raw_connect(ports[0]);
    uint64_t start = now_ms();
    assert_int_equal(member_link(&good, RAW_PROMPT, ports, PATIENCE_MS), LLM_SUCCESS);
    assert_true(now_ms() - start < SCALED(3000, 8000));
    check_link(&good, source);
    for (unsigned i = 0; i < STRANGERS; i++)
        close(strangers[i]);
    member_close(&good);
    assert_true(process_join(&prompt));
}

#define TEST(name) cmocka_unit_test_teardown(name, end_processes)

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk))
        return poor_prompt(&talk);
    const struct CMUnitTest tests[] = {TEST(test_out_of_descriptors), TEST(test_silent_strangers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

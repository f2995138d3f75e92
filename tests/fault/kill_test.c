// SIGKILL of either side, at rest and in the middle of transfers: every call returns a status, the
// link is broken, and a new process takes the place of the dead one.
#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "fault/accomplice.h"

enum { PROMPT = 11, DECODER = 21 };
enum { SOURCE = 0, TARGET = 1, OTHER = 2 };
// One pass over the cache is 64 MiB; a long transfer makes many.
enum { TENSORS = 4, SLOTS = 64, STRIDE = SCALED(256 << 10, 64 << 10), LONG = SCALED(64, 16) };
enum { BOUND_MS = SCALED(5000, 30000) };

static int
end_processes(void **state)
{
    (void)state;
    process_kill_all();
    return 0;
}

static struct member_setup
setup_of(uint64_t cluster_id, llm_role role, const char *transports)
{
    return (struct member_setup){.cluster_id = cluster_id, .role = role, .transports = transports};
}

// A new prompt in the place of the dead one serves as well.
static void
relink_prompt(struct member *decoder, const char *transports)
{
    struct process prompt;
    uint16_t ports[MEMBER_DEVICES_MAX];
    struct member_setup setup = setup_of(PROMPT, LLM_ROLE_PROMPT, transports);
    remote_open(&prompt, &setup, ports);
    struct transfer t = {
        .kind = TRANSFER_PULL_BLOCKS,
        .cluster_id = PROMPT,
        .remote_cache = remote_allocate(&prompt, SOURCE, TENSORS, SLOTS, STRIDE),
        .index = TARGET,
        .count = SLOTS,
        .step = 1,
    };
    remote_fill(&prompt, SOURCE, 77);
    assert_int_equal(member_unlink(decoder, PROMPT, ports, BOUND_MS, true), LLM_SUCCESS);
    assert_int_equal(member_link_state(decoder, PROMPT, NULL), 0);
    assert_int_equal(member_link(decoder, PROMPT, ports, PATIENCE_MS), LLM_SUCCESS);
    assert_int_equal(member_transfer(decoder, &t), LLM_SUCCESS);
    assert_true(member_holds_all(decoder, TARGET, 77));
    assert_true(process_join(&prompt));
}

// Likewise for a decoder.
static void
relink_decoder(struct member *prompt, const char *transports)
{
    struct process decoder;
    struct member_setup setup = setup_of(DECODER, LLM_ROLE_DECODER, transports);
    remote_open(&decoder, &setup, NULL);
    struct transfer t = {
        .kind = TRANSFER_PUSH_BLOCKS,
        .cluster_id = DECODER,
        .remote_cache = remote_allocate(&decoder, TARGET, TENSORS, SLOTS, STRIDE),
        .index = SOURCE,
        .count = SLOTS,
        .step = 1,
    };
    uint64_t start = now_ms();
    assert_int_equal(member_unlink(prompt, DECODER, NULL, BOUND_MS, true), LLM_SUCCESS);
    assert_true(now_ms() - start < BOUND_MS);
    assert_int_equal(member_link_state(prompt, DECODER, NULL), 0);
    assert_int_equal(remote_link(&decoder, PROMPT, prompt->ports, 1), LLM_SUCCESS);
    member_fill(prompt, SOURCE, 77);
    assert_int_equal(member_transfer(prompt, &t), LLM_SUCCESS);
    PROCESS_EXPECT(&decoder, "yes", "holds %d 77", TARGET);
    assert_true(process_join(&decoder));
}

// A decoder here, a prompt there that holds a cache filled with 5.
static int64_t
open_decoder_here(struct member *decoder, struct process *prompt, const char *transports,
                  uint16_t ports[MEMBER_DEVICES_MAX])
{
    struct member_setup setup = setup_of(PROMPT, LLM_ROLE_PROMPT, transports);
    remote_open(prompt, &setup, ports);
    setup = setup_of(DECODER, LLM_ROLE_DECODER, transports);
    member_open(decoder, &setup);
    int64_t source = remote_allocate(prompt, SOURCE, TENSORS, SLOTS, STRIDE);
    remote_fill(prompt, SOURCE, 5);
    member_allocate(decoder, TARGET, TENSORS, SLOTS, STRIDE);
    member_fill(decoder, TARGET, 0);
    assert_int_equal(member_link(decoder, PROMPT, ports, PATIENCE_MS), LLM_SUCCESS);
    return source;
}

// A prompt here with a cache filled with 5, a decoder there.
static int64_t
open_prompt_here(struct member *prompt, struct process *decoder, const char *transports)
{
    struct member_setup setup = setup_of(PROMPT, LLM_ROLE_PROMPT, transports);
    member_open(prompt, &setup);
    setup = setup_of(DECODER, LLM_ROLE_DECODER, transports);
    remote_open(decoder, &setup, NULL);
    member_allocate(prompt, SOURCE, TENSORS, SLOTS, STRIDE);
    member_fill(prompt, SOURCE, 5);
    int64_t target = remote_allocate(decoder, TARGET, TENSORS, SLOTS, STRIDE);
    remote_fill(decoder, TARGET, 0);
    assert_int_equal(remote_link(decoder, PROMPT, prompt->ports, 1), LLM_SUCCESS);
    return target;
}

static void
await_broken(struct member *member, uint64_t cluster_id)
{
    uint64_t start = now_ms();
    member_await_state(member, cluster_id, LLM_LINK_BROKEN);
    assert_true(now_ms() - start < BOUND_MS);
}

// ---- at rest ----

static void
rest_prompt_dies(const char *transports)
{
    uint16_t ports[MEMBER_DEVICES_MAX];
    struct member decoder;
    struct process prompt;
    struct transfer t = {.kind = TRANSFER_PULL_SLOT, .cluster_id = PROMPT, .index = TARGET};
    t.remote_cache = open_decoder_here(&decoder, &prompt, transports, ports);
    process_kill(&prompt);
    // Perhaps before the library's thread has noticed.
    assert_int_equal(member_transfer(&decoder, &t), LLM_FAILED);
    member_fill(&decoder, TARGET, 0);
    await_broken(&decoder, PROMPT);
    assert_int_equal(member_transfer(&decoder, &t), LLM_FAILED);
    assert_true(member_holds_all(&decoder, TARGET, 0));
    relink_prompt(&decoder, transports);
    member_close(&decoder);
}

static void
rest_decoder_dies(const char *transports)
{
    struct member prompt;
    struct process decoder;
    struct transfer t = {.kind = TRANSFER_PUSH_SLOT, .cluster_id = DECODER, .index = SOURCE};
    t.remote_cache = open_prompt_here(&prompt, &decoder, transports);
    process_kill(&decoder);
    await_broken(&prompt, DECODER);
    assert_int_equal(member_transfer(&prompt, &t), LLM_FAILED);
    relink_decoder(&prompt, transports);
    member_close(&prompt);
}

// ---- in the middle of a transfer that the test has begun ----

static void
pull_prompt_dies(const char *transports)
{
    uint16_t ports[MEMBER_DEVICES_MAX];
    struct member decoder;
    struct process prompt;
    struct transfer t = {
        .kind = TRANSFER_PULL_BLOCKS,
        .cluster_id = PROMPT,
        .index = TARGET,
        .count = SLOTS,
        .step = 1,
        .repeat = LONG,
    };
    t.remote_cache = open_decoder_here(&decoder, &prompt, transports, ports);
    struct accomplice killer = {
        .victim = &prompt, .deed = process_kill, .member = &decoder, .index = TARGET};
    accomplice_start(&killer);
    llm_status status = member_transfer(&decoder, &t);
    uint64_t ended = now_ms();
    accomplice_join(&killer);
    // Over shm the bytes are all there, whoever is dead: they may arrive, but then rightly.
    if (strcmp(transports, "shm") == 0 && status == LLM_SUCCESS)
        assert_true(member_holds_all(&decoder, TARGET, 5));
    else
        assert_int_equal(status, LLM_FAILED);
    assert_true(ended < killer.done_ms + BOUND_MS);
    await_broken(&decoder, PROMPT);
    uint64_t sum = member_checksum(&decoder, TARGET);
    assert_int_equal(member_transfer(&decoder, &t), LLM_FAILED);
    assert_true(member_checksum(&decoder, TARGET) == sum);
    relink_prompt(&decoder, transports);
    member_close(&decoder);
}

static void
push_decoder_dies(const char *transports)
{
    struct member prompt;
    struct process decoder;
    struct transfer t = {
        .kind = TRANSFER_PUSH_BLOCKS,
        .cluster_id = DECODER,
        .index = SOURCE,
        .count = SLOTS,
        .step = 1,
        .repeat = LONG,
    };
    t.remote_cache = open_prompt_here(&prompt, &decoder, transports);
    struct accomplice killer = {.victim = &decoder, .deed = process_kill, .index = TARGET};
    accomplice_start(&killer);
    llm_status status = member_transfer(&prompt, &t);
    uint64_t ended = now_ms();
    accomplice_join(&killer);
    assert_int_equal(status, LLM_FAILED);
    assert_true(ended < killer.done_ms + BOUND_MS);
    assert_int_equal(member_link_state(&prompt, DECODER, NULL), LLM_LINK_BROKEN);
    relink_decoder(&prompt, transports);
    member_close(&prompt);
}

// ---- in the middle of transfers that the dead one had begun ----

static void
pull_decoder_dies(const char *transports)
{
    struct member prompt;
    struct process decoder;
    (void)open_prompt_here(&prompt, &decoder, transports);
    PROCESS_EXPECT(&decoder, "begun", "forever %d %d %lld %d %d 1 0 %d 0 0 0 0 0",
                   TRANSFER_PULL_BLOCKS, PROMPT, (long long)prompt.caches[SOURCE].cache.cache_id,
                   TARGET, SLOTS, 2);
    process_kill(&decoder);
    await_broken(&prompt, DECODER);
    // What the dead one was reading can be freed, and used again.
    member_deallocate(&prompt, SOURCE);
    member_allocate(&prompt, SOURCE, TENSORS, SLOTS, STRIDE);
    relink_decoder(&prompt, transports);
    member_close(&prompt);
}

static void
push_prompt_dies(const char *transports)
{
    uint16_t ports[MEMBER_DEVICES_MAX];
    struct member decoder;
    struct process prompt;
    struct transfer t = {
        .kind = TRANSFER_PUSH_BLOCKS,
        .cluster_id = DECODER,
        .index = SOURCE,
        .count = SLOTS,
        .step = 1,
        .repeat = LONG,
    };
    (void)open_decoder_here(&decoder, &prompt, transports, ports);
    t.remote_cache = decoder.caches[TARGET].cache.cache_id;
    remote_begin_transfer(&prompt, &t);
    AWAIT(member_peek(&decoder, TARGET, 0, 0) != 0);
    process_kill(&prompt);
    await_broken(&decoder, PROMPT);
    // The library's thread has let go of the cache once the unlink has returned.
    assert_int_equal(member_unlink(&decoder, PROMPT, ports, BOUND_MS, true), LLM_SUCCESS);
    member_fill(&decoder, TARGET, 9);
    member_allocate(&decoder, OTHER, TENSORS, SLOTS, STRIDE);
    assert_true(member_holds_all(&decoder, TARGET, 9));
    relink_prompt(&decoder, transports);
    member_close(&decoder);
}

// Killed as often as possible at arbitrary moments of linking and pulling: nothing gets stuck.
static void
killed_anywhere(const char *transports)
{
    enum { LIVES = SCALED(8, 4), SMALL_STRIDE = 16 << 10 };
    struct member prompt;
    struct member_setup setup = setup_of(PROMPT, LLM_ROLE_PROMPT, transports);
    member_open(&prompt, &setup);
    member_allocate(&prompt, SOURCE, TENSORS, SLOTS, SMALL_STRIDE);
    member_fill(&prompt, SOURCE, 5);
    for (unsigned life = 0; life < LIVES; life++) {
        struct process decoder;
        setup = setup_of(DECODER, LLM_ROLE_DECODER, transports);
        remote_open(&decoder, &setup, NULL);
        remote_allocate(&decoder, TARGET, TENSORS, SLOTS, SMALL_STRIDE);
        talk_say(&decoder.talk, "link %d %u 0 0 0", PROMPT, prompt.ports[0]);
        talk_say(&decoder.talk, "forever %d %d %lld %d %d 1 0 1 0 0 0 0 0", TRANSFER_PULL_BLOCKS,
                 PROMPT, (long long)prompt.caches[SOURCE].cache.cache_id, TARGET, SLOTS);
        for (unsigned turn = 0; turn < life * 30; turn++)
            sched_yield();
        process_kill(&decoder);
    }
    // The dead one's link, if there was one, is broken or about to be.
    AWAIT(member_link_state(&prompt, DECODER, NULL) != LLM_LINK_READY);
    member_allocate(&prompt, SOURCE, TENSORS, SLOTS, STRIDE);
    relink_decoder(&prompt, transports);
    member_close(&prompt);
}

#define ON_BOTH(name)                                                                              \
    static void test_##name##_shm(void **state)                                                    \
    {                                                                                              \
        (void)state;                                                                               \
        name("shm");                                                                               \
    }                                                                                              \
    static void test_##name##_tcp(void **state)                                                    \
    {                                                                                              \
        (void)state;                                                                               \
        name("tcp");                                                                               \
    }

ON_BOTH(rest_prompt_dies)
ON_BOTH(rest_decoder_dies)
ON_BOTH(pull_prompt_dies)
ON_BOTH(push_decoder_dies)
ON_BOTH(pull_decoder_dies)
ON_BOTH(push_prompt_dies)
ON_BOTH(killed_anywhere)

#define TESTS(name)                                                                                \
    cmocka_unit_test_teardown(test_##name##_shm, end_processes),                                   \
        cmocka_unit_test_teardown(test_##name##_tcp, end_processes)

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk))
        return member_serve(&talk);
    const struct CMUnitTest tests[] = {
        TESTS(rest_prompt_dies),  TESTS(rest_decoder_dies), TESTS(pull_prompt_dies),
        TESTS(push_decoder_dies), TESTS(pull_decoder_dies), TESTS(push_prompt_dies),
        TESTS(killed_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

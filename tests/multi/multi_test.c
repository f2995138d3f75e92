// Several processes, every transport: what is linked, pulled and pushed is there byte for byte.
#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "multi/member.h"

enum { PROMPT = 11, PROMPT_2 = 12, DECODER = 21, DECODER_2 = 22 };
enum { TENSORS = 6, SLOTS = 32, STRIDE = 4104 }; // not a multiple of a page
enum { SOURCE = 0, TARGET = 1 };

static int
end_processes(void **state)
{
    (void)state;
    process_kill_all();
    return 0;
}

// The transport that a forced choice, or "auto", must lead to between two processes.
static const char *
expected_transport(const char *transports)
{
    return strcmp(transports, "auto") == 0 ? "shm" : transports;
}

// A decoder here, linked with a prompt elsewhere that holds a filled cache in place SOURCE.
struct pair {
    struct member decoder;
    struct process prompt;
    uint16_t ports[MEMBER_DEVICES_MAX];
    int64_t remote_cache;
    unsigned num_devices;
};

static void
open_pair(struct pair *pair, const char *transports, unsigned num_devices)
{
    char transport[16] = "";
    struct member_setup decoder = {
        .cluster_id = DECODER,
        .role = LLM_ROLE_DECODER,
        .transports = transports,
        .num_devices = num_devices,
    };
    struct member_setup prompt = decoder;
    prompt.cluster_id = PROMPT;
    prompt.role = LLM_ROLE_PROMPT;
    pair->num_devices = num_devices;
    remote_open(&pair->prompt, &prompt, pair->ports);
    member_open(&pair->decoder, &decoder);
    assert_int_equal(member_link(&pair->decoder, PROMPT, pair->ports, PATIENCE_MS), LLM_SUCCESS);
    assert_int_equal(member_link_state(&pair->decoder, PROMPT, transport), LLM_LINK_READY);
    assert_string_equal(transport, expected_transport(transports));
    // After success both ends can use the link at once.
    assert_int_equal(remote_link_state(&pair->prompt, DECODER), LLM_LINK_READY);
}

static void
close_pair(struct pair *pair)
{
    assert_int_equal(member_unlink(&pair->decoder, PROMPT, pair->ports, PATIENCE_MS, false),
                     LLM_SUCCESS);
    assert_int_equal(remote_link_state(&pair->prompt, DECODER), 0);
    member_close(&pair->decoder);
    assert_true(process_join(&pair->prompt));
}

// Everything in the target: `t` has moved from seed 5, the rest is as it was with seed 9.
static void
check_target(struct pair *pair, const struct transfer *t)
{
    bool slot = t->kind == TRANSFER_PULL_SLOT || t->kind == TRANSFER_PUSH_SLOT;
    uint32_t first = t->has_layers ? (uint32_t)t->dst_layers[0] * 2 : 0;
    uint32_t end = t->has_layers ? (uint32_t)t->dst_layers[1] * 2 + 2 : TENSORS;
    int32_t offset = t->has_layers ? (t->src_layers[0] - t->dst_layers[0]) * 2 : 0;
    for (size_t device = 0; device < pair->num_devices; device++) {
        for (uint32_t tensor = 0; tensor < TENSORS; tensor++) {
            for (uint64_t i = 0; i < SLOTS; i++) {
                uint64_t dst = slot ? i : (i * t->step + t->shift) % SLOTS;
                uint64_t from = slot ? t->count : i;
                bool moved =
                    tensor >= first && tensor < end && (slot ? dst == t->shift : i < t->count);
                assert_true(moved ? member_holds(&pair->decoder, TARGET, device, tensor, dst, 5,
                                                 (uint32_t)((int32_t)tensor + offset), from)
                                  : member_holds(&pair->decoder, TARGET, device, tensor, dst, 9,
                                                 tensor, dst));
            }
        }
    }
}

static void
pull_and_push(const char *transports, unsigned num_devices)
{
    static const struct transfer transfers[] = {
        {.kind = TRANSFER_PULL_BLOCKS, .count = SLOTS, .step = 1},
        {.kind = TRANSFER_PULL_BLOCKS, .count = SLOTS, .step = 7, .shift = 3},
        {.kind = TRANSFER_PULL_BLOCKS, .count = SLOTS, .step = 5, .repeat = 3},
        {.kind = TRANSFER_PULL_BLOCKS,
         .count = SLOTS,
         .step = 31,
         .has_layers = true,
         .src_layers = {1, 2},
         .dst_layers = {0, 1}},
        {.kind = TRANSFER_PULL_SLOT, .count = 30, .shift = 2},
        {.kind = TRANSFER_PULL_SLOT,
         .count = 1,
         .shift = 31,
         .has_layers = true,
         .src_layers = {2, 2},
         .dst_layers = {1, 1}},
        {.kind = TRANSFER_PUSH_BLOCKS, .count = SLOTS, .step = 1},
        {.kind = TRANSFER_PUSH_BLOCKS, .count = SLOTS, .step = 9, .shift = 30},
        {.kind = TRANSFER_PUSH_BLOCKS,
         .count = SLOTS,
         .step = 3,
         .has_layers = true,
         .src_layers = {0, 1},
         .dst_layers = {1, 2}},
        {.kind = TRANSFER_PUSH_SLOT, .count = 3, .shift = 31},
        {.kind = TRANSFER_PUSH_SLOT,
         .count = 31,
         .shift = 0,
         .has_layers = true,
         .src_layers = {2, 2},
         .dst_layers = {0, 0}},
    };
    struct pair pair;
    open_pair(&pair, transports, num_devices);
    int64_t source = remote_allocate(&pair.prompt, SOURCE, TENSORS, SLOTS, STRIDE);
    int64_t target = member_allocate(&pair.decoder, TARGET, TENSORS, SLOTS, STRIDE);
    remote_fill(&pair.prompt, SOURCE, 5);
    for (size_t i = 0; i < sizeof(transfers) / sizeof(transfers[0]); i++) {
        struct transfer t = transfers[i];
        bool push = t.kind == TRANSFER_PUSH_BLOCKS || t.kind == TRANSFER_PUSH_SLOT;
        member_fill(&pair.decoder, TARGET, 9);
        t.cluster_id = push ? DECODER : PROMPT;
        t.remote_cache = push ? target : source;
        t.index = push ? SOURCE : TARGET;
        llm_status status =
            push ? remote_transfer(&pair.prompt, &t) : member_transfer(&pair.decoder, &t);
        // §8.4: with several devices there is no push.
        assert_int_equal(status, push && num_devices > 1 ? LLM_FEATURE_NOT_ENABLED : LLM_SUCCESS);
        if (status == LLM_SUCCESS)
            check_target(&pair, &t);
    }
    close_pair(&pair);
}

static void
test_shm(void **state)
{
    (void)state;
    pull_and_push("shm", 1);
}

static void
test_tcp(void **state)
{
    (void)state;
    pull_and_push("tcp", 1);
}

static void
test_auto(void **state)
{
    (void)state;
    pull_and_push("auto", 1);
}

static void
test_shm_three_devices(void **state)
{
    (void)state;
    pull_and_push("shm", 3);
}

static void
test_tcp_three_devices(void **state)
{
    (void)state;
    pull_and_push("tcp", 3);
}

// ---- what the peer refuses ----

static void
refused(const char *transports)
{
    struct pair pair;
    struct transfer t = {.kind = TRANSFER_PULL_BLOCKS, .cluster_id = PROMPT, .index = TARGET};
    open_pair(&pair, transports, 1);
    int64_t source = remote_allocate(&pair.prompt, SOURCE, TENSORS, SLOTS / 2, STRIDE);
    member_allocate(&pair.decoder, TARGET, TENSORS, SLOTS, STRIDE);
    member_fill(&pair.decoder, TARGET, 9);
    t.count = SLOTS;
    t.step = 1;
    t.remote_cache = source + 100;
    assert_int_equal(member_transfer(&pair.decoder, &t), LLM_KV_CACHE_NOT_EXIST);
    t.remote_cache = source; // has half the blocks
    assert_int_equal(member_transfer(&pair.decoder, &t), LLM_PARAM_INVALID);
    t.kind = TRANSFER_PULL_SLOT;
    t.count = SLOTS / 2;
    t.shift = 0;
    assert_int_equal(member_transfer(&pair.decoder, &t), LLM_KV_CACHE_NOT_EXIST);
    assert_true(member_holds_all(&pair.decoder, TARGET, 9));

    // The prompt frees it: gone for everybody.
    PROCESS_EXPECT(&pair.prompt, "ok", "deallocate %d", SOURCE);
    t.count = 0;
    assert_int_equal(member_transfer(&pair.decoder, &t), LLM_KV_CACHE_NOT_EXIST);
    assert_int_equal(member_link_state(&pair.decoder, PROMPT, NULL), LLM_LINK_READY);
    close_pair(&pair);
}

static void
test_refused_shm(void **state)
{
    (void)state;
    refused("shm");
}

static void
test_refused_tcp(void **state)
{
    (void)state;
    refused("tcp");
}

// ---- large ----

static void
large(const char *transports)
{
    enum { LARGE_TENSORS = 8, LARGE_SLOTS = SCALED(64, 8), LARGE_STRIDE = 512 << 10 };
    struct pair pair;
    struct transfer pull = {
        .kind = TRANSFER_PULL_BLOCKS,
        .cluster_id = PROMPT,
        .index = TARGET,
        .count = LARGE_SLOTS,
        .step = 1,
    };
    open_pair(&pair, transports, 1);
    pull.remote_cache =
        remote_allocate(&pair.prompt, SOURCE, LARGE_TENSORS, LARGE_SLOTS, LARGE_STRIDE);
    int64_t target =
        member_allocate(&pair.decoder, TARGET, LARGE_TENSORS, LARGE_SLOTS, LARGE_STRIDE);
    remote_fill(&pair.prompt, SOURCE, 5);
    assert_int_equal(member_transfer(&pair.decoder, &pull), LLM_SUCCESS);
    assert_true(member_holds_all(&pair.decoder, TARGET, 5));

    struct transfer push = pull;
    push.kind = TRANSFER_PUSH_BLOCKS;
    push.cluster_id = DECODER;
    push.remote_cache = target;
    push.index = SOURCE;
    remote_fill(&pair.prompt, SOURCE, 6);
    assert_int_equal(remote_transfer(&pair.prompt, &push), LLM_SUCCESS);
    assert_true(member_holds_all(&pair.decoder, TARGET, 6));
    close_pair(&pair);
}

static void
test_large_shm(void **state)
{
    (void)state;
    large("shm");
}

static void
test_large_tcp(void **state)
{
    (void)state;
    large("tcp");
}

// ---- three processes ----

static void
one_decoder_two_prompts(const char *transports)
{
    enum { REPETITIONS = 20 };
    struct process prompts[2];
    uint16_t ports[2][MEMBER_DEVICES_MAX];
    int64_t caches[2];
    struct member decoder;
    struct member_setup setup = {
        .cluster_id = DECODER, .role = LLM_ROLE_DECODER, .transports = transports};
    member_open(&decoder, &setup);
    setup.role = LLM_ROLE_PROMPT;
    for (unsigned i = 0; i < 2; i++) {
        setup.cluster_id = PROMPT + i;
        remote_open(&prompts[i], &setup, ports[i]);
        caches[i] = remote_allocate(&prompts[i], SOURCE, TENSORS, SLOTS, STRIDE);
        remote_fill(&prompts[i], SOURCE, 5 + i);
        member_allocate(&decoder, i, TENSORS, SLOTS, STRIDE);
        assert_int_equal(member_link(&decoder, PROMPT + i, ports[i], PATIENCE_MS), LLM_SUCCESS);
    }
    for (unsigned i = 0; i < REPETITIONS; i++) {
        unsigned which = i % 2;
        struct transfer t = {
            .kind = TRANSFER_PULL_BLOCKS,
            .cluster_id = PROMPT + which,
            .remote_cache = caches[which],
            .index = which,
            .count = SLOTS,
            .step = 1,
        };
        member_fill(&decoder, which, 9);
        assert_int_equal(member_transfer(&decoder, &t), LLM_SUCCESS);
        assert_true(member_holds_all(&decoder, which, 5 + which));
    }
    // One dies; the other doesn't notice.
    process_kill(&prompts[0]);
    member_await_state(&decoder, PROMPT, LLM_LINK_BROKEN);
    struct transfer t = {
        .kind = TRANSFER_PULL_SLOT,
        .cluster_id = PROMPT_2,
        .remote_cache = caches[1],
        .index = 1,
    };
    assert_int_equal(member_transfer(&decoder, &t), LLM_SUCCESS);
    member_close(&decoder);
    assert_true(process_join(&prompts[1]));
}

static void
test_two_prompts_shm(void **state)
{
    (void)state;
    one_decoder_two_prompts("shm");
}

static void
test_two_prompts_tcp(void **state)
{
    (void)state;
    one_decoder_two_prompts("tcp");
}

static void
one_prompt_two_decoders(const char *transports)
{
    struct process decoders[2];
    int64_t targets[2];
    struct member prompt;
    struct member_setup setup = {
        .cluster_id = PROMPT, .role = LLM_ROLE_PROMPT, .transports = transports};
    member_open(&prompt, &setup);
    int64_t source = member_allocate(&prompt, SOURCE, TENSORS, SLOTS, STRIDE);
    member_fill(&prompt, SOURCE, 5);
    setup.role = LLM_ROLE_DECODER;
    for (unsigned i = 0; i < 2; i++) {
        setup.cluster_id = DECODER + i;
        remote_open(&decoders[i], &setup, NULL);
        targets[i] = remote_allocate(&decoders[i], TARGET, TENSORS, SLOTS, STRIDE);
        assert_int_equal(remote_link(&decoders[i], PROMPT, prompt.ports, 1), LLM_SUCCESS);
    }
    struct transfer pull = {
        .kind = TRANSFER_PULL_BLOCKS,
        .cluster_id = PROMPT,
        .remote_cache = source,
        .index = TARGET,
        .count = SLOTS,
        .step = 1,
    };
    // Both at once.
    for (unsigned i = 0; i < 2; i++)
        remote_begin_transfer(&decoders[i], &pull);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(remote_end_transfer(&decoders[i]), LLM_SUCCESS);
        PROCESS_EXPECT(&decoders[i], "yes", "holds %d 5", TARGET);
    }
    member_fill(&prompt, SOURCE, 6);
    for (unsigned i = 0; i < 2; i++) {
        struct transfer push = pull;
        push.kind = TRANSFER_PUSH_BLOCKS;
        push.cluster_id = DECODER + i;
        push.remote_cache = targets[i];
        push.index = SOURCE;
        assert_int_equal(member_transfer(&prompt, &push), LLM_SUCCESS);
        PROCESS_EXPECT(&decoders[i], "yes", "holds %d 6", TARGET);
    }
    for (unsigned i = 0; i < 2; i++)
        assert_true(process_join(&decoders[i]));
    member_close(&prompt);
}

static void
test_two_decoders_shm(void **state)
{
    (void)state;
    one_prompt_two_decoders("shm");
}

static void
test_two_decoders_tcp(void **state)
{
    (void)state;
    one_prompt_two_decoders("tcp");
}

// ---- restarts ----

static void
prompt_restarts(const char *transports)
{
    struct member decoder;
    struct process prompt;
    uint16_t ports[MEMBER_DEVICES_MAX] = {0};
    struct member_setup setup = {
        .cluster_id = DECODER, .role = LLM_ROLE_DECODER, .transports = transports};
    member_open(&decoder, &setup);
    member_allocate(&decoder, TARGET, TENSORS, SLOTS, STRIDE);
    setup.cluster_id = PROMPT;
    setup.role = LLM_ROLE_PROMPT;
    for (unsigned life = 0; life < 4; life++) {
        setup.port = ports[0]; // the first one's, from then on
        remote_open(&prompt, &setup, ports);
        assert_true(setup.port == 0 || ports[0] == setup.port);
        struct transfer t = {
            .kind = TRANSFER_PULL_BLOCKS,
            .cluster_id = PROMPT,
            .remote_cache = remote_allocate(&prompt, SOURCE, TENSORS, SLOTS, STRIDE),
            .index = TARGET,
            .count = SLOTS,
            .step = 1,
        };
        remote_fill(&prompt, SOURCE, 5 + life);
        // Every second time the broken link is removed first, else it is replaced.
        if (life % 2 == 1)
            assert_int_equal(member_unlink(&decoder, PROMPT, ports, PATIENCE_MS, true),
                             LLM_SUCCESS);
        assert_int_equal(member_link(&decoder, PROMPT, ports, PATIENCE_MS), LLM_SUCCESS);
        assert_int_equal(member_transfer(&decoder, &t), LLM_SUCCESS);
        assert_true(member_holds_all(&decoder, TARGET, 5 + life));
        process_kill(&prompt);
        member_await_state(&decoder, PROMPT, LLM_LINK_BROKEN);
        // Its memory is still mapped here, and yet nothing comes out of it.
        assert_int_equal(member_transfer(&decoder, &t), LLM_FAILED);
    }
    member_close(&decoder);
}

static void
test_prompt_restarts_shm(void **state)
{
    (void)state;
    prompt_restarts("shm");
}

static void
test_prompt_restarts_tcp(void **state)
{
    (void)state;
    prompt_restarts("tcp");
}

static void
decoder_restarts(const char *transports)
{
    struct member prompt;
    struct process decoder;
    struct member_setup setup = {
        .cluster_id = PROMPT, .role = LLM_ROLE_PROMPT, .transports = transports};
    member_open(&prompt, &setup);
    member_allocate(&prompt, SOURCE, TENSORS, SLOTS, STRIDE);
    setup.cluster_id = DECODER;
    setup.role = LLM_ROLE_DECODER;
    for (unsigned life = 0; life < 4; life++) {
        remote_open(&decoder, &setup, NULL);
        struct transfer t = {
            .kind = TRANSFER_PUSH_BLOCKS,
            .cluster_id = DECODER,
            .remote_cache = remote_allocate(&decoder, TARGET, TENSORS, SLOTS, STRIDE),
            .index = SOURCE,
            .count = SLOTS,
            .step = 1,
        };
        member_fill(&prompt, SOURCE, 5 + life);
        // The link of the life before is broken, or, killed a moment ago, not yet.
        assert_int_equal(remote_link(&decoder, PROMPT, prompt.ports, 1), LLM_SUCCESS);
        assert_int_equal(member_link_state(&prompt, DECODER, NULL), LLM_LINK_READY);
        assert_int_equal(member_transfer(&prompt, &t), LLM_SUCCESS);
        char holds[LINE_BYTES];
        process_ask(&decoder, holds, "holds %d %u", TARGET, 5 + life);
        assert_string_equal(holds, "yes");
        if (life < 3)
            process_kill(&decoder);
    }
    assert_true(process_join(&decoder));
    member_close(&prompt);
}

static void
test_decoder_restarts_shm(void **state)
{
    (void)state;
    decoder_restarts("shm");
}

static void
test_decoder_restarts_tcp(void **state)
{
    (void)state;
    decoder_restarts("tcp");
}

// A decoder that stands still keeps its connections; its successor takes its place when the liveness
// time is over, and not before.
static void
test_stopped_decoder_is_replaced(void **state)
{
    enum { LIVENESS_MS = SCALED(1500, 4000) };
    (void)state;
    struct member prompt;
    struct process old;
    struct process successor;
    struct member_setup setup = {.cluster_id = PROMPT,
                                 .role = LLM_ROLE_PROMPT,
                                 .liveness_ms = LIVENESS_MS,
                                 .dead_ms = 600000};
    member_open(&prompt, &setup);
    setup.cluster_id = DECODER;
    setup.role = LLM_ROLE_DECODER;
    remote_open(&old, &setup, NULL);
    assert_int_equal(remote_link(&old, PROMPT, prompt.ports, 1), LLM_SUCCESS);
    remote_open(&successor, &setup, NULL);
    process_stop(&old);
    uint64_t start = now_ms();
    assert_int_equal(remote_link(&successor, PROMPT, prompt.ports, 1), LLM_SUCCESS);
    // What it said last may be a third of that time old.
    assert_true(now_ms() - start > LIVENESS_MS / 2);
    member_allocate(&prompt, SOURCE, TENSORS, SLOTS, STRIDE);
    member_fill(&prompt, SOURCE, 5);
    struct transfer t = {
        .kind = TRANSFER_PUSH_BLOCKS,
        .cluster_id = DECODER,
        .remote_cache = remote_allocate(&successor, TARGET, TENSORS, SLOTS, STRIDE),
        .index = SOURCE,
        .count = SLOTS,
        .step = 1,
    };
    assert_int_equal(member_transfer(&prompt, &t), LLM_SUCCESS);
    PROCESS_EXPECT(&successor, "yes", "holds %d 5", TARGET);
    // The old one finds out, and disturbs nobody.
    process_continue(&old);
    AWAIT(remote_link_state(&old, PROMPT) == LLM_LINK_BROKEN);
    assert_int_equal(member_link_state(&prompt, DECODER, NULL), LLM_LINK_READY);
    assert_true(process_join(&old));
    assert_int_equal(member_link_state(&prompt, DECODER, NULL), LLM_LINK_READY);
    assert_true(process_join(&successor));
    member_close(&prompt);
}

#define TEST(name) cmocka_unit_test_teardown(name, end_processes)

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk))
        return member_serve(&talk);
    const struct CMUnitTest tests[] = {
        TEST(test_shm),
        TEST(test_tcp),
        TEST(test_auto),
        TEST(test_shm_three_devices),
        TEST(test_tcp_three_devices),
        TEST(test_refused_shm),
        TEST(test_refused_tcp),
        TEST(test_large_shm),
        TEST(test_large_tcp),
        TEST(test_two_prompts_shm),
        TEST(test_two_prompts_tcp),
        TEST(test_two_decoders_shm),
        TEST(test_two_decoders_tcp),
        TEST(test_prompt_restarts_shm),
        TEST(test_prompt_restarts_tcp),
        TEST(test_decoder_restarts_shm),
        TEST(test_decoder_restarts_tcp),
        TEST(test_stopped_decoder_is_replaced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

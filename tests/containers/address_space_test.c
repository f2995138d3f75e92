// Peers with pools of many TiB: they don't take the address space that this program needs itself.
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "multi/member.h"

enum { READER = 100, NUM_OWNERS = 4, INDEX = 0, NUM_SLOTS = 4, SLOT_BYTES = 4096 };

// Each takes a fifth of what a program can have.
static const uint64_t pool_bytes = UINT64_C(25) << 40;

static int
end_processes(void **state)
{
    (void)state;
    process_kill_all();
    return 0;
}

static int
serve(struct talk *talk, uint64_t id)
{
    char line[LINE_BYTES];
    struct member member;
    struct member_setup setup = {
        .cluster_id = id, .role = LLM_ROLE_PROMPT, .pool_bytes = pool_bytes};
    if (member_try_open(&member, &setup) != LLM_SUCCESS) {
        talk_say(talk, "0 0");
        return 0;
    }
    int64_t cache = member_allocate(&member, INDEX, 1, NUM_SLOTS, SLOT_BYTES);
    member_fill(&member, INDEX, id);
    talk_say(talk, "%u %lld", member.ports[0], (long long)cache);
    while (talk_hear(talk, line, -1)) {
    }
    member_close(&member);
    return 0;
}

struct owner {
    struct process process;
    uint64_t id;
    uint16_t port;
    long long cache;
};

static void
start(struct owner *owner, uint64_t id)
{
    char role[16];
    char line[LINE_BYTES];
    unsigned port = 0;
    snprintf(role, sizeof(role), "%u", (unsigned)id);
    process_start(&owner->process, role);
    assert_true(talk_hear(&owner->process.talk, line, PATIENCE_MS));
    assert_int_equal(sscanf(line, "%u %lld", &port, &owner->cache), 2);
    if (port == 0) {
        printf("pools of %llu bytes can't be opened here\n", (unsigned long long)pool_bytes);
        skip();
    }
    owner->id = id;
    owner->port = (uint16_t)port;
}

// Links and pulls; is it over tcp, for want of addresses?
static bool
link_is_over_tcp(struct member *reader, const struct owner *owner)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    struct transfer transfer = {
        .kind = TRANSFER_PULL_BLOCKS,
        .cluster_id = owner->id,
        .remote_cache = owner->cache,
        .index = INDEX,
        .count = NUM_SLOTS,
        .step = 1,
    };
    assert_int_equal(member_link(reader, owner->id, &owner->port, PATIENCE_MS), LLM_SUCCESS);
    assert_int_equal(member_transfer(reader, &transfer), LLM_SUCCESS);
    assert_true(member_holds_all(reader, INDEX, owner->id));
    assert_int_equal(llm_get_link_info(reader->dd, owner->id, &info), LLM_SUCCESS);
    bool is_tcp = strcmp(info.transport, "tcp") == 0;
    if (is_tcp)
        assert_non_null(strstr(info.reason, "doesn't fit"));
    else
        assert_string_equal(info.transport, "shm");
    return is_tcp;
}

static void
test_peers_that_would_take_too_much_are_linked_over_tcp(void **state)
{
    struct owner owners[NUM_OWNERS];
    struct member reader;
    struct member_setup setup = {.cluster_id = READER, .role = LLM_ROLE_DECODER};
    size_t num_tcp = 0;
    (void)state;
    member_open(&reader, &setup);
    member_allocate(&reader, INDEX, 1, NUM_SLOTS, SLOT_BYTES);
    for (size_t i = 0; i < NUM_OWNERS; i++) {
        start(&owners[i], i + 1);
        num_tcp += link_is_over_tcp(&reader, &owners[i]);
    }
    assert_in_range(num_tcp, 1, NUM_OWNERS - 1);
    void *memory = malloc(UINT64_C(4) << 30);
    assert_non_null(memory);
    free(memory);
    member_close(&reader);
    for (size_t i = 0; i < NUM_OWNERS; i++)
        assert_true(process_join(&owners[i].process));
}

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_peers_that_would_take_too_much_are_linked_over_tcp,
                                  end_processes),
    };
    if (process_role(argc, argv, &role, &talk))
        return serve(&talk, strtoull(role, NULL, 10));
    // The sanitizers have plans of their own for the address space.
    if (UNDER_TSAN || UNDER_ASAN) {
        printf("a sanitizer keeps the address space to itself\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Caches that their owner has never written, or in part: what is transferred arrives as it is, zeros
// included, and takes no memory of the owner's pool.
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "engine/engine.h"
#include "multi/member.h"

enum { OWNER = 1, READER = 2, INDEX = 0, MIB = 1 << 20, NUM_SLOTS = SCALED(256, 64) };

static const char *transports;
static bool checked;

static bool
ends_checked(const char *word)
{
    const char *dash = strchr(word, '-');
    return dash != NULL && strcmp(dash, "-checked") == 0;
}

static const char *
transport_of(const char *word)
{
    return strncmp(word, "tcp", 3) == 0 ? "tcp" : "shm";
}

static int
end_processes(void **state)
{
    (void)state;
    process_kill_all();
    return 0;
}

// How much of the pool there is.
static unsigned
mib_in_memory(const struct member *member)
{
    struct stat info;
    assert_int_equal(fstat(member->dd->pools[0].fd, &info), 0);
    return (unsigned)((info.st_blocks + 2047) / 2048);
}

// A prompt with a cache; "memory", "write SLOT" writes its first page.
static int
serve_owner(struct talk *talk, const char *its_transports, bool is_checked)
{
    char line[LINE_BYTES];
    struct member member;
    struct member_setup setup = {
        .cluster_id = OWNER,
        .role = LLM_ROLE_PROMPT,
        .transports = its_transports,
        .checksum = is_checked,
    };
    member_open(&member, &setup);
    int64_t id = member_allocate(&member, INDEX, 1, NUM_SLOTS, MIB);
    talk_say(talk, "%u %lld", member.ports[0], (long long)id);
    while (talk_hear(talk, line, -1)) {
        if (strncmp(line, "write ", 6) == 0)
            memset((void *)(member.caches[INDEX].addresses[0] + strtoul(line + 6, NULL, 10) * MIB),
                   0xab, 4096);
        talk_say(talk, "%u", mib_in_memory(&member));
    }
    member_close(&member);
    return 0;
}

struct pair {
    struct process owner;
    struct member reader;
    int64_t remote;
};

static void
open_pair(struct pair *pair)
{
    char line[LINE_BYTES];
    char transport[16];
    struct member_setup setup = {
        .cluster_id = READER,
        .role = LLM_ROLE_DECODER,
        .transports = transports,
        .checksum = checked,
    };
    unsigned port;
    long long id;
    char role[32];
    snprintf(role, sizeof(role), "%s%s", transports, checked ? "-checked" : "");
    process_start(&pair->owner, role);
    assert_true(talk_hear(&pair->owner.talk, line, PATIENCE_MS));
    assert_int_equal(sscanf(line, "%u %lld", &port, &id), 2);
    pair->remote = id;
    member_open(&pair->reader, &setup);
    member_allocate(&pair->reader, INDEX, 1, NUM_SLOTS, MIB);
    uint16_t ports[] = {(uint16_t)port};
    assert_int_equal(member_link(&pair->reader, OWNER, ports, PATIENCE_MS), LLM_SUCCESS);
    assert_int_equal(member_link_state(&pair->reader, OWNER, transport), LLM_LINK_READY);
    assert_string_equal(transport, transports);
}

static void
close_pair(struct pair *pair)
{
    member_close(&pair->reader);
    assert_true(process_join(&pair->owner));
}

static void
pull(struct pair *pair, enum transfer_kind kind, uint64_t count)
{
    struct transfer transfer = {
        .kind = kind,
        .cluster_id = OWNER,
        .remote_cache = pair->remote,
        .index = INDEX,
        .count = count,
        .step = 1,
    };
    assert_int_equal(member_transfer(&pair->reader, &transfer), LLM_SUCCESS);
}

// Zeros, but for the first page of one that the owner has written.
static bool
slot_holds(const struct pair *pair, uint64_t slot, bool is_written)
{
    static uint8_t expected[MIB];
    memset(expected, is_written ? 0xab : 0, 4096);
    return memcmp((const uint8_t *)pair->reader.caches[INDEX].addresses[0] + slot * MIB, expected,
                  MIB) == 0;
}

static void
test_what_was_never_written_arrives_as_zeros_and_stays_unwritten(void **state)
{
    struct pair pair;
    (void)state;
    open_pair(&pair);
    member_fill(&pair.reader, INDEX, 5);
    pull(&pair, TRANSFER_PULL_BLOCKS, NUM_SLOTS);
    assert_true(member_holds_all(&pair.reader, INDEX, 0));
    PROCESS_EXPECT(&pair.owner, "0", "memory");
    // One slot alone.
    member_fill(&pair.reader, INDEX, 5);
    pull(&pair, TRANSFER_PULL_SLOT, 3);
    assert_true(slot_holds(&pair, 0, false));
    PROCESS_EXPECT(&pair.owner, "0", "memory");
    close_pair(&pair);
}

static void
test_of_what_was_written_in_part_the_rest_stays_unwritten(void **state)
{
    enum { NUM_WRITTEN = 4 };
    static const unsigned written[NUM_WRITTEN] = {0, 7, 8, NUM_SLOTS - 1};
    struct pair pair;
    char line[LINE_BYTES];
    (void)state;
    open_pair(&pair);
    for (size_t i = 0; i < NUM_WRITTEN; i++)
        process_ask(&pair.owner, line, "write %u", written[i]);
    for (int round = 0; round < 2; round++) {
        member_fill(&pair.reader, INDEX, 5);
        pull(&pair, TRANSFER_PULL_BLOCKS, NUM_SLOTS);
        for (unsigned slot = 0, next = 0; slot < NUM_SLOTS; slot++) {
            bool is_written = next < NUM_WRITTEN && written[next] == slot;
            next += is_written;
            if (!slot_holds(&pair, slot, is_written))
                fail_msg("slot %u", slot);
        }
    }
    // Each written page, and what is read with it.
    process_ask(&pair.owner, line, "memory");
    assert_in_range(strtoul(line, NULL, 10), 1, 2 * NUM_WRITTEN);
    close_pair(&pair);
}

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_what_was_never_written_arrives_as_zeros_and_stays_unwritten,
                                  end_processes),
        cmocka_unit_test_teardown(test_of_what_was_written_in_part_the_rest_stays_unwritten,
                                  end_processes),
    };
    if (process_role(argc, argv, &role, &talk))
        return serve_owner(&talk, transport_of(role), ends_checked(role));
    const char *how = argc > 1 ? argv[1] : "shm";
    checked = ends_checked(how);
    transports = transport_of(how);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

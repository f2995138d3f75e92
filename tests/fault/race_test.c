// Never somebody else's bytes: a prompt frees and allocates caches as fast as it can, each filled with
// what its id stands for before the id is told to anybody; decoders pull ids that are about to go.
// Whatever ends with success carries the bytes of the id that it named.
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "multi/member.h"

enum { PROMPT = 11, DECODER = 21 };
enum { TENSORS = 3, SLOTS = 8, STRIDE = 8 << 10 };
enum { PULLERS = 3, LIVE_CACHES = 3, RUN_MS = SCALED(2500, 4000) };

static int
end_processes(void **state)
{
    (void)state;
    process_kill_all();
    return 0;
}

// ---- the prompt ----

// Opens a cluster, says its port, waits for a word, and then says one id after the other.
static int
churn(struct talk *talk)
{
    char transports[LINE_BYTES];
    char line[LINE_BYTES];
    struct member member;
    if (!talk_hear(talk, transports, PATIENCE_MS))
        return 1;
    struct member_setup setup = {
        .cluster_id = PROMPT, .role = LLM_ROLE_PROMPT, .transports = transports};
    member_open(&member, &setup);
    talk_say(talk, "%u", member.ports[0]);
    if (!talk_hear(talk, line, PATIENCE_MS))
        return 1;
    for (unsigned i = 0;; i++) {
        unsigned place = i % LIVE_CACHES;
        struct pollfd end = {.fd = talk->fd, .events = POLLIN};
        if (i >= LIVE_CACHES)
            member_deallocate(&member, place);
        if (poll(&end, 1, 0) != 0)
            break;
        int64_t id = member_allocate(&member, place, TENSORS, SLOTS, STRIDE);
        member_fill(&member, place, (uint64_t)id);
        talk_say(talk, "%" PRId64, id);
    }
    member_close(&member);
    return 0;
}

// ---- the decoder ----

struct race {
    struct member decoder;
    struct talk *ids;
    _Atomic int64_t newest;
    _Atomic bool over;
    _Atomic unsigned num_right;
    _Atomic unsigned num_gone;
    _Atomic unsigned num_wrong;
    _Atomic unsigned num_other;
    _Atomic llm_status other;
};

struct puller {
    struct race *race;
    size_t index;
    pthread_t thread;
};

static void *
listen_to_ids(void *arg)
{
    struct race *race = arg;
    char line[LINE_BYTES];
    while (!atomic_load(&race->over) && talk_hear(race->ids, line, PATIENCE_MS))
        atomic_store(&race->newest, strtoll(line, NULL, 10));
    return NULL;
}

static void
count(struct race *race, llm_status status, size_t index, int64_t id)
{
    if (status == LLM_SUCCESS && member_holds_all(&race->decoder, index, (uint64_t)id)) {
        atomic_fetch_add(&race->num_right, 1);
    } else if (status == LLM_SUCCESS) {
        atomic_fetch_add(&race->num_wrong, 1);
    } else if (status == LLM_KV_CACHE_NOT_EXIST) {
        atomic_fetch_add(&race->num_gone, 1);
    } else {
        atomic_fetch_add(&race->num_other, 1);
        atomic_store(&race->other, status);
    }
}

static void *
pull(void *arg)
{
    struct puller *puller = arg;
    struct race *race = puller->race;
    for (uint64_t i = puller->index; !atomic_load(&race->over); i++) {
        int64_t newest = atomic_load(&race->newest);
        // One that is there, or one that is being freed, or a bit too late.
        int64_t id = newest - (int64_t)(i % (LIVE_CACHES + 1));
        if (id < 1)
            continue;
        struct transfer t = {
            .kind = TRANSFER_PULL_BLOCKS,
            .cluster_id = PROMPT,
            .remote_cache = id,
            .index = puller->index,
            .count = SLOTS,
            .step = 1,
        };
        count(race, member_transfer(&race->decoder, &t), puller->index, id);
    }
    return NULL;
}

static void
run_race(const char *transports)
{
    struct process prompt;
    struct race race;
    struct puller pullers[PULLERS];
    pthread_t listener;
    char answer[LINE_BYTES];
    memset(&race, 0, sizeof(race));
    struct member_setup setup = {
        .cluster_id = DECODER, .role = LLM_ROLE_DECODER, .transports = transports};
    member_open(&race.decoder, &setup);
    process_start(&prompt, "churn");
    process_ask(&prompt, answer, "%s", transports);
    uint16_t ports[MEMBER_DEVICES_MAX] = {(uint16_t)strtoul(answer, NULL, 10)};
    assert_int_equal(member_link(&race.decoder, PROMPT, ports, PATIENCE_MS), LLM_SUCCESS);
    race.ids = &prompt.talk;
    talk_say(&prompt.talk, "go");
    uint64_t start = now_ms();
    pthread_create(&listener, NULL, listen_to_ids, &race);
    for (size_t i = 0; i < PULLERS; i++) {
        member_allocate(&race.decoder, i, TENSORS, SLOTS, STRIDE);
        pullers[i] = (struct puller){.race = &race, .index = i};
        pthread_create(&pullers[i].thread, NULL, pull, &pullers[i]);
    }
    AWAIT(now_ms() - start > RUN_MS && atomic_load(&race.num_right) > 0 &&
          atomic_load(&race.num_gone) > 0);
    atomic_store(&race.over, true);
    pthread_join(listener, NULL);
    for (size_t i = 0; i < PULLERS; i++)
        pthread_join(pullers[i].thread, NULL);
    print_message("%s: %u pulls right, %u too late, %u wrong, %u other; %" PRId64 " caches\n",
                  transports, race.num_right, race.num_gone, race.num_wrong, race.num_other,
                  race.newest);
    assert_int_equal(race.num_wrong, 0);
    if (race.num_other > 0)
        fail_msg("%u pulls ended with %s", race.num_other, llm_status_name(race.other));
    assert_int_equal(member_link_state(&race.decoder, PROMPT, NULL), LLM_LINK_READY);
    member_close(&race.decoder);
    talk_say(&prompt.talk, "end");
    assert_true(process_join(&prompt));
}

static void
test_shm(void **state)
{
    (void)state;
    run_race("shm");
}

static void
test_tcp(void **state)
{
    (void)state;
    run_race("tcp");
}

#define TEST(name) cmocka_unit_test_teardown(name, end_processes)

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk))
        return churn(&talk);
    const struct CMUnitTest tests[] = {TEST(test_shm), TEST(test_tcp)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Blocks change hands: an owner fills a cache, leases it, tells the lease's generation, closes the
// lease and fills the cache with something else at once, again and again; decoders pull under leases
// that are about to end.  Whatever ends with success carries the bytes that the lease stood for.
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "multi/member.h"

enum { OWNER = 11, DECODER = 21 };
enum { TENSORS = 3, SLOTS = 8, STRIDE = 8 << 10, CACHE = 0 };
enum { PULLERS = 3, RUN_MS = SCALED(2000, 3000), REPEATS = 2000 };

static int
end_processes(void **state)
{
    (void)state;
    process_kill_all();
    return 0;
}

// ---- the owner ----

// Opens a cluster, says its port and its cache, waits for a word, and then says one lease after the
// other, with the seed of what it stands for.
static int
lend(struct talk *talk)
{
    char transports[LINE_BYTES];
    char line[LINE_BYTES];
    unsigned sync_ms;
    unsigned liveness_ms;
    struct member member;
    if (!talk_hear(talk, line, PATIENCE_MS) ||
        sscanf(line, "%31s %u %u", transports, &sync_ms, &liveness_ms) != 3)
        return 1;
    struct member_setup setup = {
        .cluster_id = OWNER,
        .role = LLM_ROLE_PROMPT,
        .transports = transports,
        .sync_ms = sync_ms,
        .liveness_ms = liveness_ms,
    };
    member_open(&member, &setup);
    int64_t id = member_allocate(&member, CACHE, TENSORS, SLOTS, STRIDE);
    talk_say(talk, "%u %" PRId64, member.ports[0], id);
    if (!talk_hear(talk, line, PATIENCE_MS))
        return 1;
    for (uint64_t seed = 1;; seed++) {
        struct pollfd end = {.fd = talk->fd, .events = POLLIN};
        llm_lease_desc desc = {.struct_size = sizeof(desc), .cache_id = id, .duration_ms = 3600000};
        uint64_t lease;
        member_fill(&member, CACHE, seed);
        if (llm_lease_open(member.dd, &desc, &lease) != LLM_SUCCESS)
            return 1;
        talk_say(talk, "%" PRIu64 " %" PRIu64, lease, seed);
        bool over = poll(&end, 1, (int)(seed % 3)) != 0;
        if (llm_lease_close(member.dd, lease) != LLM_SUCCESS)
            return 1;
        if (over)
            break;
    }
    member_close(&member);
    return 0;
}

// ---- the decoder ----

struct race {
    struct member decoder;
    struct talk *leases;
    int64_t cache;
    unsigned repeats;
    pthread_mutex_t lock;
    uint64_t newest; // guarded by lock, as its seed
    uint64_t seed;
    _Atomic bool over;
    _Atomic unsigned num_right;
    _Atomic unsigned num_stale;
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
listen_to_leases(void *arg)
{
    struct race *race = arg;
    char line[LINE_BYTES];
    while (!atomic_load(&race->over) && talk_hear(race->leases, line, PATIENCE_MS)) {
        uint64_t lease;
        uint64_t seed;
        if (sscanf(line, "%" SCNu64 " %" SCNu64, &lease, &seed) != 2)
            break;
        pthread_mutex_lock(&race->lock);
        race->newest = lease;
        race->seed = seed;
        pthread_mutex_unlock(&race->lock);
    }
    return NULL;
}

static void
count(struct race *race, llm_status status, size_t index, uint64_t seed)
{
    if (status == LLM_SUCCESS && member_holds_all(&race->decoder, index, seed)) {
        atomic_fetch_add(&race->num_right, 1);
    } else if (status == LLM_SUCCESS) {
        atomic_fetch_add(&race->num_wrong, 1);
    } else if (status == LLM_CACHE_STALE) {
        atomic_fetch_add(&race->num_stale, 1);
    } else {
        atomic_fetch_add(&race->num_other, 1);
        atomic_store(&race->other, status);
    }
}

static llm_status
pull_now(struct race *race, size_t index, uint64_t lease, bool starts, const uint64_t *blocks,
         size_t num_blocks)
{
    llm_cache_index from = {
        .struct_size = sizeof(from),
        .cluster_id = OWNER,
        .cache_id = race->cache,
        .generation = lease,
    };
    const llm_cache *to = &race->decoder.caches[index].cache;
    llm_datadist *dd = race->decoder.dd;
    uint64_t id;
    if (!starts)
        return llm_pull_kv_blocks(dd, &from, to, blocks, num_blocks, blocks, num_blocks, NULL);
    llm_status status =
        llm_start_pull_kv_blocks(dd, &from, to, blocks, num_blocks, blocks, num_blocks, NULL, &id);
    if (status != LLM_SUCCESS)
        return status;
    status = llm_transfer_wait(dd, id, -1);
    (void)llm_transfer_release(dd, id);
    return status;
}

static void *
pull(void *arg)
{
    struct puller *puller = arg;
    struct race *race = puller->race;
    size_t num_blocks = (size_t)SLOTS * race->repeats;
    uint64_t *blocks = calloc(num_blocks, sizeof(*blocks));
    for (size_t i = 0; blocks != NULL && i < num_blocks; i++)
        blocks[i] = i % SLOTS;
    for (uint64_t i = puller->index; blocks != NULL && !atomic_load(&race->over); i++) {
        pthread_mutex_lock(&race->lock);
        uint64_t lease = race->newest;
        uint64_t seed = race->seed;
        pthread_mutex_unlock(&race->lock);
        if (lease != 0)
            count(race, pull_now(race, puller->index, lease, i % 2 == 0, blocks, num_blocks),
                  puller->index, seed);
    }
    free(blocks);
    return NULL;
}

static void
run_race(const char *transports, unsigned sync_ms, unsigned liveness_ms, unsigned repeats)
{
    struct process owner;
    struct race race;
    struct puller pullers[PULLERS];
    pthread_t listener;
    char answer[LINE_BYTES];
    unsigned port;
    memset(&race, 0, sizeof(race));
    pthread_mutex_init(&race.lock, NULL);
    race.repeats = repeats;
    struct member_setup setup = {
        .cluster_id = DECODER, .role = LLM_ROLE_DECODER, .transports = transports};
    member_open(&race.decoder, &setup);
    process_start(&owner, "lend");
    process_ask(&owner, answer, "%s %u %u", transports, sync_ms, liveness_ms);
    assert_int_equal(sscanf(answer, "%u %" SCNd64, &port, &race.cache), 2);
    uint16_t ports[MEMBER_DEVICES_MAX] = {(uint16_t)port};
    assert_int_equal(member_link(&race.decoder, OWNER, ports, PATIENCE_MS), LLM_SUCCESS);
    race.leases = &owner.talk;
    talk_say(&owner.talk, "go");
    uint64_t start = now_ms();
    pthread_create(&listener, NULL, listen_to_leases, &race);
    for (size_t i = 0; i < PULLERS; i++) {
        member_allocate(&race.decoder, i, TENSORS, SLOTS, STRIDE);
        pullers[i] = (struct puller){.race = &race, .index = i};
        pthread_create(&pullers[i].thread, NULL, pull, &pullers[i]);
    }
    AWAIT(now_ms() - start > RUN_MS && atomic_load(&race.num_stale) > 0 &&
          (repeats > 1 || atomic_load(&race.num_right) > 0));
    atomic_store(&race.over, true);
    pthread_join(listener, NULL);
    for (size_t i = 0; i < PULLERS; i++)
        pthread_join(pullers[i].thread, NULL);
    print_message("%s%s: %u pulls right, %u stale, %u wrong, %u other; %" PRIu64 " leases\n",
                  transports, repeats > 1 ? ", an owner without patience" : "", race.num_right,
                  race.num_stale, race.num_wrong, race.num_other, race.seed);
    assert_int_equal(race.num_wrong, 0);
    if (race.num_other > 0)
        fail_msg("%u pulls ended with %s", race.num_other, llm_status_name(race.other));
    assert_int_equal(member_link_state(&race.decoder, OWNER, NULL), LLM_LINK_READY);
    talk_say(&owner.talk, "end");
    assert_true(process_join(&owner));
    member_close(&race.decoder);
    pthread_mutex_destroy(&race.lock);
}

static void
test_shm(void **state)
{
    (void)state;
    run_race("shm", 60000, 5000, 1);
}

static void
test_tcp(void **state)
{
    (void)state;
    run_race("tcp", 60000, 5000, 1);
}

// Pulls that take longer than the owner waits: most of them lose their lease in the middle.
static void
test_shm_without_patience(void **state)
{
    (void)state;
    run_race("shm", 1, 50, REPEATS);
}

#define TEST(name) cmocka_unit_test_teardown(name, end_processes)

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk))
        return lend(&talk);
    const struct CMUnitTest tests[] = {TEST(test_shm), TEST(test_tcp),
                                       TEST(test_shm_without_patience)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

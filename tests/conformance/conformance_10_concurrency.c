// §10.2 and §10.3: what runs beside what, and time limits.
//
// No call can be stopped half-way from outside, but every failing call writes a line to the log: a
// sink that holds that line back holds the thread that runs the transfer, or the peer's.
#include "bed.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>

// ---- the gate ----

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const char *text; // lines that contain it are held back
    unsigned num_held;
    bool shut;
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void
hold_back(void *arg, llm_log_level level, const char *line)
{
    (void)arg;
    (void)level;
    pthread_mutex_lock(&gate.lock);
    if (gate.shut && strstr(line, gate.text) != NULL) {
        gate.num_held++;
        pthread_cond_broadcast(&gate.changed);
        while (gate.shut)
            pthread_cond_wait(&gate.changed, &gate.lock);
        gate.num_held--;
    }
    pthread_mutex_unlock(&gate.lock);
}

static void
swallow(void *arg, llm_log_level level, const char *line)
{
    (void)arg;
    (void)level;
    (void)line;
}

static void
shut_gate(const char *text)
{
    gate.text = text;
    gate.num_held = 0;
    gate.shut = true;
    llm_set_log_level(LLM_LOG_INFO);
    llm_set_log_sink(hold_back, NULL);
}

static void
await_held(void)
{
    pthread_mutex_lock(&gate.lock);
    while (gate.num_held == 0)
        pthread_cond_wait(&gate.changed, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
}

static void
open_gate(void)
{
    pthread_mutex_lock(&gate.lock);
    gate.shut = false;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
    llm_set_log_sink(swallow, NULL);
    llm_set_log_level(LLM_LOG_WARN);
}

// ---- a transfer in another thread ----

struct job {
    struct bed *bed;
    bool push;
    int64_t remote_cache_id;
    uint32_t slot; // here and there
    llm_status status;
    pthread_t thread;
};

static llm_status
transfer(struct job *job)
{
    struct bed *bed = job->bed;
    llm_cache_index there = {
        .struct_size = sizeof(there),
        .cluster_id = job->push ? bed->decoder.id : bed->prompt.id,
        .cache_id = job->remote_cache_id,
        .batch_index = job->slot,
    };
    if (job->push)
        return llm_push_kv_cache(bed->prompt.dd, &bed->on_prompt.cache, &there, job->slot, -1,
                                 NULL);
    return llm_pull_kv_cache(bed->decoder.dd, &there, &bed->on_decoder.cache, job->slot, -1, NULL);
}

static void *
run_job(void *arg)
{
    struct job *job = arg;
    job->status = transfer(job);
    return NULL;
}

static void
start_job(struct job *job)
{
    assert_int_equal(pthread_create(&job->thread, NULL, run_job, job), 0);
}

static llm_status
end_job(struct job *job)
{
    pthread_join(job->thread, NULL);
    return job->status;
}

static int64_t
good_cache(const struct bed *bed, bool push)
{
    return push ? bed->on_decoder.cache.cache_id : bed->on_prompt.cache.cache_id;
}

// A transfer to a cache that doesn't exist, held back while it runs: a pull where memory is shared
// in its own thread, any other in the peer's.
static void
start_held(struct job *job, struct bed *bed, bool push)
{
    *job = (struct job){.bed = bed, .push = push, .remote_cache_id = NO_CACHE};
    shut_gate("has no cache with id 987654");
    start_job(job);
    await_held();
}

static bool
is_tcp(void)
{
    return strcmp(suite.transport, "tcp") == 0;
}

// ---- transfers and unlinks ----

static llm_status
unlink_now(struct bed *bed, bool from_prompt, llm_status *ret)
{
    llm_cluster_info there = cluster_of(&bed->prompt);
    llm_cluster_info back = cluster_back(&bed->decoder);
    *ret = SENTINEL;
    return from_prompt ? unlink_one(&bed->prompt, &back, false, ret)
                       : unlink_one(&bed->decoder, &there, false, ret);
}

static void
conformance_6_2_row_04_unlink_during_a_transfer_is_link_busy_and_link_kept(void **state)
{
    struct bed *bed = *state;
    struct job job;
    llm_status ret;
    for (int push = 0; push < 2; push++) {
        start_held(&job, bed, push);
        // The end that began it; where the other end's thread isn't the one that is held, that too.
        assert_status(unlink_now(bed, push, &ret), LLM_UNLINK_FAILED);
        assert_int_equal(ret, LLM_LINK_BUSY);
        open_gate();
        assert_status(end_job(&job), LLM_KV_CACHE_NOT_EXIST);
        assert_true(is_linked(&bed->decoder, bed->prompt.id));
        assert_true(is_linked(&bed->prompt, bed->decoder.id));
        assert_link_works(bed);
    }
    assert_ok(unlink_now(bed, false, &ret));
    assert_int_equal(ret, LLM_SUCCESS);
}

static void
conformance_10_2_row_07_unlink_while_the_peer_transfers_is_link_busy(void **state)
{
    struct bed *bed = *state;
    struct job job;
    llm_status ret;
    // The decoder's thread is held by the prompt's push; the prompt's isn't, and it refuses.
    start_held(&job, bed, true);
    assert_status(unlink_now(bed, true, &ret), LLM_UNLINK_FAILED);
    assert_int_equal(ret, LLM_LINK_BUSY);
    open_gate();
    assert_status(end_job(&job), LLM_KV_CACHE_NOT_EXIST);
    assert_link_works(bed);
    // A peer that serves a push over its own turn of the same link stays linked, too.
    assert_true(is_linked(&bed->decoder, bed->prompt.id));
}

struct unlinker {
    struct bed *bed;
    llm_status status;
    llm_status ret;
    int32_t timeout_ms;
    pthread_t thread;
};

static void *
run_unlink(void *arg)
{
    struct unlinker *unlinker = arg;
    llm_cluster_info there = cluster_of(&unlinker->bed->prompt);
    unlinker->status = llm_unlink_clusters(unlinker->bed->decoder.dd, &there, 1, &unlinker->ret,
                                           NULL, unlinker->timeout_ms, 0);
    return NULL;
}

static void
start_held_unlink(struct unlinker *unlinker, struct bed *bed, int32_t timeout_ms)
{
    *unlinker = (struct unlinker){.bed = bed, .ret = SENTINEL, .timeout_ms = timeout_ms};
    shut_gate("has unlinked");
    assert_int_equal(pthread_create(&unlinker->thread, NULL, run_unlink, unlinker), 0);
    await_held();
}

static void
conformance_8_2_check_10_pull_during_an_unlink_is_link_busy(void **state)
{
    struct bed *bed = *state;
    struct unlinker unlinker;
    struct job job = {.bed = bed, .remote_cache_id = NO_CACHE};
    uint64_t block = 0;
    start_held_unlink(&unlinker, bed, LINK_TIMEOUT_MS);
    // Before anything is asked of the peer.
    assert_status(transfer(&job), LLM_LINK_BUSY);
    job.remote_cache_id = good_cache(bed, false);
    assert_status(transfer(&job), LLM_LINK_BUSY);
    llm_cache_index from = index_of(&bed->prompt, &bed->on_prompt, 0);
    assert_status(llm_pull_kv_blocks(bed->decoder.dd, &from, &bed->on_decoder.cache, &block, 1,
                                     &block, 1, NULL),
                  LLM_LINK_BUSY);
    assert_bed(bed);
    open_gate();
    pthread_join(unlinker.thread, NULL);
    assert_status(unlinker.status, LLM_SUCCESS);
    assert_int_equal(unlinker.ret, LLM_SUCCESS);
    assert_status(transfer(&job), LLM_NOT_YET_LINK);
}

static void
conformance_6_2_row_06_a_peer_that_does_not_answer_in_time_is_wait_proc_timeout(void **state)
{
    struct bed *bed = *state;
    struct unlinker unlinker;
    start_held_unlink(&unlinker, bed, 200);
    pthread_join(unlinker.thread, NULL);
    assert_status(unlinker.status, LLM_UNLINK_FAILED);
    assert_int_equal(unlinker.ret, LLM_WAIT_PROC_TIMEOUT);
    // The local link is gone all the same.
    assert_int_equal(num_links(&bed->decoder), 0);
    open_gate();
    link_parties(&bed->decoder, &bed->prompt);
    assert_link_works(bed);
}

// ---- time limits ----

static int
set_up_quick(void **state)
{
    struct bed *bed = calloc(1, sizeof(*bed));
    struct party_options options = {.num_devices = 1, .sync_ms = "300", .liveness_ms = "300"};
    assert_non_null(bed);
    *state = bed;
    open_party_with(&bed->prompt, 1, LLM_ROLE_PROMPT, &options);
    open_party_with(&bed->decoder, 2, LLM_ROLE_DECODER, &options);
    open_bytes(&bed->on_prompt, &bed->prompt, TENSORS, SLOTS, STRIDE);
    open_bytes(&bed->on_decoder, &bed->decoder, TENSORS, SLOTS, STRIDE);
    link_parties(&bed->decoder, &bed->prompt);
    return 0;
}

static int
tear_down_quick(void **state)
{
    struct bed *bed = *state;
    close_party(&bed->decoder);
    close_party(&bed->prompt);
    forget_kv(&bed->on_decoder);
    forget_kv(&bed->on_prompt);
    free(bed);
    return 0;
}

static void
relink(struct bed *bed)
{
    llm_cluster_info there = cluster_of(&bed->prompt);
    (void)unlink_one(&bed->decoder, &there, true, NULL);
    link_parties(&bed->decoder, &bed->prompt);
}

static void
conformance_8_2_check_16_out_of_time_is_wait_proc_timeout_and_nothing_lands_later(void **state)
{
    struct bed *bed = *state;
    struct job held;
    struct job job = {.bed = bed, .remote_cache_id = good_cache(bed, false), .slot = 1};
    start_held(&held, bed, false);
    uint64_t start = now_ms();
    llm_status status = transfer(&job);
    uint64_t took = now_ms() - start;
    if (is_tcp()) {
        assert_status(status, LLM_WAIT_PROC_TIMEOUT);
        assert_true(took >= 299);
        assert_true(took < 5000);
        // The held one runs out of time as well.
        assert_status(end_job(&held), LLM_WAIT_PROC_TIMEOUT);
        open_gate();
    } else {
        // A pull from shared memory asks nobody.
        assert_ok(status);
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_slot(&bed->on_decoder, t, 1, &bed->on_prompt, t, 1, STRIDE);
        open_gate();
        assert_status(end_job(&held), LLM_KV_CACHE_NOT_EXIST);
    }
    assert_kv(&bed->on_decoder);
    relink(bed);
    assert_kv(&bed->on_decoder);
    job.slot = 2;
    assert_ok(transfer(&job));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->on_decoder, t, 2, &bed->on_prompt, t, 2, STRIDE);
    assert_kv(&bed->on_decoder);
}

static void
conformance_8_4_check_15_out_of_time_is_wait_proc_timeout_and_nothing_lands_later(void **state)
{
    struct bed *bed = *state;
    struct job held;
    struct job job = {
        .bed = bed, .push = true, .remote_cache_id = good_cache(bed, true), .slot = 1};
    start_held(&held, bed, true);
    uint64_t start = now_ms();
    assert_status(transfer(&job), LLM_WAIT_PROC_TIMEOUT);
    uint64_t took = now_ms() - start;
    // Two layers: twice the time.  A peer that doesn't confirm is given its liveness time more.
    assert_true(took >= 299);
    assert_true(took < 10000);
    assert_kv(&bed->on_decoder);
    assert_status(end_job(&held), LLM_WAIT_PROC_TIMEOUT);
    open_gate();
    relink(bed);
    assert_kv(&bed->on_decoder);
    job.slot = 2;
    assert_ok(transfer(&job));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->on_decoder, t, 2, &bed->on_prompt, t, 2, STRIDE);
    assert_kv(&bed->on_decoder);
}

static void
conformance_8_1_rule_04_a_broken_link_fails_transfers_at_once(void **state)
{
    struct bed *bed = *state;
    struct job job = {.bed = bed, .remote_cache_id = good_cache(bed, false), .slot = 1};
    close_party(&bed->prompt);
    while (is_linked(&bed->decoder, 1))
        sched_yield();
    uint64_t start = now_ms();
    for (int i = 0; i < 20; i++)
        assert_status(transfer(&job), LLM_FAILED);
    // Nowhere near the time limit of one of them.
    assert_true(now_ms() - start < 20 * 300);
    assert_kv(&bed->on_decoder);
}

// ---- many at once ----

enum { THREADS = 4 };

struct worker {
    struct bed *bed;
    unsigned number;
    bool push;
    unsigned count;
    llm_status status; // the first that isn't what it should be
    pthread_t thread;
};

static void
start_workers(struct worker *workers, size_t count, void *(*run)(void *arg), struct bed *bed)
{
    for (size_t i = 0; i < count; i++) {
        workers[i].bed = bed;
        workers[i].number = (unsigned)i;
        workers[i].count = rounds(200);
        assert_int_equal(pthread_create(&workers[i].thread, NULL, run, &workers[i]), 0);
    }
}

static void
end_workers(struct worker *workers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        pthread_join(workers[i].thread, NULL);
    for (size_t i = 0; i < count; i++)
        assert_status(workers[i].status, LLM_SUCCESS);
}

// Each has its slot on the far and on the near side.
static void *
run_transfers(void *arg)
{
    struct worker *worker = arg;
    struct job job = {
        .bed = worker->bed,
        .push = worker->push,
        .remote_cache_id = good_cache(worker->bed, worker->push),
        .slot = worker->number % SLOTS,
    };
    for (unsigned i = 0; i < worker->count && worker->status == LLM_SUCCESS; i++)
        worker->status = transfer(&job);
    return NULL;
}

static void
expect_slots(struct bed *bed)
{
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_slot(&bed->on_decoder, t, slot, &bed->on_prompt, t, slot, STRIDE);
    }
    assert_bed(bed);
}

static void
conformance_10_2_row_04_pulls_on_one_link_run_beside_each_other(void **state)
{
    struct worker workers[THREADS] = {0};
    start_workers(workers, THREADS, run_transfers, *state);
    end_workers(workers, THREADS);
    expect_slots(*state);
}

static void
conformance_10_2_row_05_pushes_on_one_link_run_beside_each_other(void **state)
{
    struct worker workers[THREADS] = {0};
    for (size_t i = 0; i < THREADS; i++)
        workers[i].push = true;
    start_workers(workers, THREADS, run_transfers, *state);
    end_workers(workers, THREADS);
    expect_slots(*state);
}

static void
conformance_10_2_row_06_both_directions_of_a_link_are_independent(void **state)
{
    struct bed *bed = *state;
    struct worker workers[THREADS] = {0};
    struct job held;
    for (size_t i = 0; i < THREADS; i++)
        workers[i].push = i % 2 == 1;
    start_workers(workers, THREADS, run_transfers, bed);
    end_workers(workers, THREADS);
    expect_slots(bed);
    // While one hangs in one direction, the other works; where its thread isn't needed for both.
    if (!is_tcp()) {
        start_held(&held, bed, true);
        struct job job = {.bed = bed, .remote_cache_id = good_cache(bed, false), .slot = 1};
        assert_ok(transfer(&job));
        open_gate();
        assert_status(end_job(&held), LLM_KV_CACHE_NOT_EXIST);
    }
    assert_bed(bed);
}

static void *
run_allocations(void *arg)
{
    struct worker *worker = arg;
    for (unsigned i = 0; i < worker->count && worker->status == LLM_SUCCESS; i++) {
        int64_t shape[2] = {2, 100 + worker->number};
        uintptr_t addresses[3 * DEVICES_MAX];
        llm_cache_desc desc = {
            .struct_size = sizeof(desc),
            .placement = LLM_PLACEMENT_DEVICE,
            .num_tensors = 3,
            .data_type = LLM_DT_INT8,
            .shape = shape,
            .num_dims = 2,
        };
        llm_cache cache = {
            .struct_size = sizeof(cache),
            .tensor_addrs = addresses,
            .num_tensor_addrs = COUNT_OF(addresses),
        };
        worker->status = llm_allocate_cache(worker->bed->decoder.dd, &desc, &cache);
        if (worker->status != LLM_SUCCESS)
            break;
        // Nobody else has this memory.
        memset((void *)addresses[2], (int)worker->number, 200);
        for (size_t k = 0; k < 200; k++) {
            if (((uint8_t *)addresses[2])[k] != worker->number)
                worker->status = LLM_FAILED;
        }
        if (worker->status == LLM_SUCCESS)
            worker->status = llm_deallocate_cache(worker->bed->decoder.dd, cache.cache_id);
    }
    return NULL;
}

static void
conformance_10_2_row_08_allocations_run_beside_each_other(void **state)
{
    struct worker workers[THREADS] = {0};
    start_workers(workers, THREADS, run_allocations, *state);
    end_workers(workers, THREADS);
    assert_bed((struct bed *)*state);
}

static void
conformance_10_2_row_09_deallocations_run_beside_allocations_and_transfers(void **state)
{
    struct bed *bed = *state;
    struct worker allocating[THREADS] = {0};
    struct worker moving[THREADS] = {0};
    for (size_t i = 0; i < THREADS; i++)
        moving[i].push = i % 2 == 1;
    start_workers(allocating, THREADS, run_allocations, bed);
    start_workers(moving, THREADS, run_transfers, bed);
    end_workers(allocating, THREADS);
    end_workers(moving, THREADS);
    expect_slots(bed);
}

static void
conformance_10_2_row_10_deallocate_during_a_transfer_returns_at_once(void **state)
{
    struct bed *bed = *state;
    struct job held;
    int64_t id = bed->on_decoder.cache.cache_id;
    start_held(&held, bed, false);
    assert_ok(llm_deallocate_cache(bed->decoder.dd, id));
    // New transfers don't find it any more.
    struct job job = {.bed = bed, .remote_cache_id = good_cache(bed, false)};
    assert_status(transfer(&job), LLM_KV_CACHE_NOT_EXIST);
    open_gate();
    assert_status(end_job(&held), LLM_KV_CACHE_NOT_EXIST);
    assert_status(llm_deallocate_cache(bed->decoder.dd, id), LLM_KV_CACHE_NOT_EXIST);
    assert_true(is_linked(&bed->decoder, bed->prompt.id));
}

static void *
run_copies(void *arg)
{
    struct worker *worker = arg;
    struct bed *bed = worker->bed;
    uint32_t slot = worker->number % SLOTS;
    for (unsigned i = 0; i < worker->count && worker->status == LLM_SUCCESS; i++)
        worker->status = llm_copy_kv_cache(bed->decoder.dd, &bed->on_decoder.cache,
                                           &bed->wide_on_decoder.cache, slot, slot, 0, -1);
    return NULL;
}

static void
expect_copies(struct bed *bed)
{
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_slot(&bed->wide_on_decoder, t, slot, &bed->on_decoder, t, slot, STRIDE);
    }
    assert_bed(bed);
}

static void
conformance_10_2_row_11_copies_run_beside_each_other(void **state)
{
    struct worker workers[THREADS] = {0};
    start_workers(workers, THREADS, run_copies, *state);
    end_workers(workers, THREADS);
    expect_copies(*state);
}

// Into a cache that nobody copies.
static void *
run_other_pulls(void *arg)
{
    struct worker *worker = arg;
    struct bed *bed = worker->bed;
    uint32_t slot = worker->number % SLOTS;
    llm_cache_index from = index_of(&bed->prompt, &bed->narrow_on_prompt, slot);
    for (unsigned i = 0; i < worker->count && worker->status == LLM_SUCCESS; i++)
        worker->status = llm_pull_kv_cache(bed->decoder.dd, &from, &bed->narrow_on_decoder.cache,
                                           slot, -1, NULL);
    return NULL;
}

static void
conformance_10_2_row_12_copies_and_transfers_are_independent(void **state)
{
    struct bed *bed = *state;
    struct worker copying[THREADS] = {0};
    struct worker pulling[THREADS] = {0};
    start_workers(copying, THREADS, run_copies, bed);
    start_workers(pulling, THREADS, run_other_pulls, bed);
    end_workers(copying, THREADS);
    end_workers(pulling, THREADS);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_slot(&bed->narrow_on_decoder, t, slot, &bed->narrow_on_prompt, t, slot,
                        STRIDE / 2);
    }
    expect_copies(bed);
}

static void *
run_relinks(void *arg)
{
    struct worker *worker = arg;
    llm_cluster_info there = cluster_of(&worker->bed->prompt);
    for (unsigned i = 0; i < worker->count / 4; i++) {
        llm_status linked = link_one(&worker->bed->decoder, &there, NULL);
        llm_status unlinked = unlink_one(&worker->bed->decoder, &there, i % 2 == 0, NULL);
        if (linked != LLM_SUCCESS && linked != LLM_ALREADY_LINK)
            worker->status = linked;
        else if (unlinked != LLM_SUCCESS)
            worker->status = unlinked;
    }
    return NULL;
}

static void
conformance_10_2_row_03_links_and_unlinks_take_turns(void **state)
{
    struct bed *bed = *state;
    struct worker workers[THREADS] = {0};
    start_workers(workers, THREADS, run_relinks, bed);
    end_workers(workers, THREADS);
    relink(bed);
    assert_link_works(bed);
}

#define QUICK_TEST(test) cmocka_unit_test_setup_teardown(test, set_up_quick, tear_down_quick)

static const struct CMUnitTest tests[] = {
    PUSH_TEST(conformance_6_2_row_04_unlink_during_a_transfer_is_link_busy_and_link_kept),
    PUSH_TEST(conformance_10_2_row_07_unlink_while_the_peer_transfers_is_link_busy),
    BED_TEST(conformance_8_2_check_10_pull_during_an_unlink_is_link_busy),
    BED_TEST(conformance_6_2_row_06_a_peer_that_does_not_answer_in_time_is_wait_proc_timeout),
    QUICK_TEST(conformance_8_2_check_16_out_of_time_is_wait_proc_timeout_and_nothing_lands_later),
    QUICK_TEST(conformance_8_4_check_15_out_of_time_is_wait_proc_timeout_and_nothing_lands_later),
    QUICK_TEST(conformance_8_1_rule_04_a_broken_link_fails_transfers_at_once),
    BED_TEST(conformance_10_2_row_03_links_and_unlinks_take_turns),
    BED_TEST(conformance_10_2_row_04_pulls_on_one_link_run_beside_each_other),
    PUSH_TEST(conformance_10_2_row_05_pushes_on_one_link_run_beside_each_other),
    PUSH_TEST(conformance_10_2_row_06_both_directions_of_a_link_are_independent),
    BED_TEST(conformance_10_2_row_08_allocations_run_beside_each_other),
    PUSH_TEST(conformance_10_2_row_09_deallocations_run_beside_allocations_and_transfers),
    BED_TEST(conformance_10_2_row_10_deallocate_during_a_transfer_returns_at_once),
    BED_TEST(conformance_10_2_row_11_copies_run_beside_each_other),
    BED_TEST(conformance_10_2_row_12_copies_and_transfers_are_independent),
};
CONFORMANCE_MAIN("10 Concurrency and time", tests)

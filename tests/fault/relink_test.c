// A link that has broken is made anew by the transfers that wait for it: once, with the same instance of
// the peer alone, by the end that had linked, and where the option allows it.
#include "engine/engine.h"
#include "registered/kit.h"

enum { HERE = 21, THERE = 11, FROM = 0, TO = 1, TENSORS = 2, SLOTS = 8, STRIDE = 4096 };
enum { THREADS = 6, ROUNDS = 5 };

struct bed {
    struct end here;
    struct other there;
    struct kv from;
    struct kv to[THREADS];
    int64_t remote_from;
    int64_t remote_to;
};

static void
open_bed(struct bed *bed, bool version_1)
{
    struct end_setup setup = {.id = THERE, .listens = true, .version_1 = version_1};
    memset(bed, 0, sizeof(*bed));
    other_open(&bed->there, &setup);
    setup.id = HERE;
    setup.listens = false;
    end_open(&bed->here, &setup);
    bed->remote_from = other_cache(&bed->there, FROM, false, TENSORS, SLOTS, STRIDE);
    bed->remote_to = other_cache(&bed->there, TO, false, TENSORS, SLOTS, STRIDE);
    other_fill(&bed->there, FROM, 5);
    kv_allocate(&bed->from, &bed->here, TENSORS, SLOTS, STRIDE);
    kv_fill(&bed->from, 6);
    for (unsigned i = 0; i < THREADS; i++)
        kv_allocate(&bed->to[i], &bed->here, TENSORS, SLOTS, STRIDE);
    assert_ok(end_link(&bed->here, THERE, bed->there.port));
}

static void
close_bed(struct bed *bed)
{
    assert_true(process_join(&bed->there.process));
    end_close(&bed->here);
    kv_free(&bed->from);
    for (unsigned i = 0; i < THREADS; i++)
        kv_free(&bed->to[i]);
}

static void
cut_here(void *arg)
{
    struct bed *bed = arg;
    struct lli_link *link = lli_links_find(&bed->here.dd->node, THERE);
    assert_non_null(link);
    lli_link_break(link, LLM_FAILED, "it was cut by the test");
    lli_link_put(link);
}

static void
cut(struct bed *bed)
{
    lli_loop_call(&bed->here.dd->loop, cut_here, bed);
}

static unsigned
count_ready(struct bed *bed)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    unsigned count = 0;
    while (llm_poll_link_event(bed->here.dd, &info) == LLM_SUCCESS)
        count += info.state == LLM_LINK_READY;
    return count;
}

static llm_status
pull(struct bed *bed, unsigned i)
{
    struct job job = {.peer = THERE,
                      .remote = bed->remote_from,
                      .count = SLOTS,
                      .shift = i,
                      .timeout_ms = PATIENCE_MS};
    return job_run(&job, &bed->here, &bed->to[i]);
}

struct puller {
    pthread_t thread;
    struct bed *bed;
    unsigned index;
    llm_status status;
};

static void *
pull_main(void *arg)
{
    struct puller *puller = arg;
    puller->status = pull(puller->bed, puller->index);
    return NULL;
}

static void
test_made_anew_once_for_all(void **state)
{
    struct bed bed;
    struct puller pullers[THREADS];
    (void)state;
    open_bed(&bed, false);
    assert_int_equal(count_ready(&bed), 1);
    for (unsigned round = 0; round < ROUNDS; round++) {
        cut(&bed);
        assert_int_equal(end_state(&bed.here, THERE, NULL), LLM_LINK_BROKEN);
        for (unsigned i = 0; i < THREADS; i++) {
            pullers[i] = (struct puller){.bed = &bed, .index = i};
            kv_fill(&bed.to[i], 0);
            pthread_create(&pullers[i].thread, NULL, pull_main, &pullers[i]);
        }
        for (unsigned i = 0; i < THREADS; i++) {
            pthread_join(pullers[i].thread, NULL);
            assert_ok(pullers[i].status);
            assert_true(kv_holds(&bed.to[i], 5, SLOTS, i));
        }
        assert_int_equal(count_ready(&bed), 1);
        assert_int_equal(other_ask(&bed.there, "state %d", HERE), LLM_LINK_READY);
    }
    close_bed(&bed);
}

static void
test_pushes_and_queries_make_it_anew(void **state)
{
    struct bed bed;
    llm_cache_info info = {.struct_size = sizeof(info)};
    (void)state;
    open_bed(&bed, false);
    cut(&bed);
    struct job push = {.push = true, .peer = THERE, .remote = bed.remote_to, .count = SLOTS};
    assert_ok(job_run(&push, &bed.here, &bed.from));
    assert_true(other_holds(&bed.there, TO, 6, SLOTS, 0));
    cut(&bed);
    llm_cache_index index = {
        .struct_size = sizeof(index), .cluster_id = THERE, .cache_id = bed.remote_from};
    assert_ok(llm_query_cache(bed.here.dd, &index, &info));
    assert_int_equal(info.num_slots, SLOTS);
    close_bed(&bed);
}

// Its caches have the same ids, and other contents.
static void
test_not_with_another_instance(void **state)
{
    struct bed bed;
    (void)state;
    open_bed(&bed, false);
    uint16_t port = bed.there.port;
    process_kill(&bed.there.process);
    AWAIT(end_state(&bed.here, THERE, NULL) == LLM_LINK_BROKEN);
    struct end_setup setup = {.id = THERE, .listens = true, .port = port};
    bed.there = (struct other){0};
    other_open(&bed.there, &setup);
    other_cache(&bed.there, FROM, false, TENSORS, SLOTS, STRIDE);
    other_fill(&bed.there, FROM, 7);
    assert_status(pull(&bed, 0), LLM_FAILED);
    assert_int_equal(end_state(&bed.here, THERE, NULL), LLM_LINK_BROKEN);
    assert_int_equal(other_ask(&bed.there, "state %d", HERE), 0);
    // Who knows of it links again.
    assert_ok(end_link(&bed.here, THERE, bed.there.port));
    assert_ok(pull(&bed, 0));
    assert_true(kv_holds(&bed.to[0], 7, SLOTS, 0));
    close_bed(&bed);
}

static void
test_only_by_the_end_that_had_linked(void **state)
{
    struct bed bed;
    (void)state;
    open_bed(&bed, false);
    cut(&bed);
    AWAIT(other_ask(&bed.there, "state %d", HERE) == LLM_LINK_BROKEN);
    struct job job = {.peer = HERE, .remote = bed.from.id, .count = SLOTS};
    assert_status(other_run(&bed.there, &job, TO), LLM_FAILED);
    assert_int_equal(end_state(&bed.here, THERE, NULL), LLM_LINK_BROKEN);
    close_bed(&bed);
}

static void
test_not_in_version_1(void **state)
{
    struct bed bed;
    (void)state;
    open_bed(&bed, true);
    cut(&bed);
    assert_status(pull(&bed, 0), LLM_FAILED);
    assert_int_equal(end_state(&bed.here, THERE, NULL), LLM_LINK_BROKEN);
    close_bed(&bed);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_made_anew_once_for_all),    KIT_TEST(test_pushes_and_queries_make_it_anew),
        KIT_TEST(test_not_with_another_instance), KIT_TEST(test_only_by_the_end_that_had_linked),
        KIT_TEST(test_not_in_version_1),
    };
    return kit_main(argc, argv, tests, LENGTH(tests));
}

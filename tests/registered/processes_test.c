// Memory that the user registered, between processes: read where the system permits it, otherwise
// moved with the owner's help; and owners that end without a word.
#include "registered/kit.h"

enum { HERE = 81, THERE = 82, THIRD = 83, SEED = 5 };
enum { TENSORS = 4, SLOTS = 16, STRIDE = 4099 };
// Places of caches in the other process.
enum { FROM = 0, TO = 1 };

static void
open_both(struct end *here, struct other *there, bool listens_here)
{
    struct end_setup setup = {.id = HERE, .listens = listens_here};
    end_open(here, &setup);
    setup = (struct end_setup){.id = THERE, .listens = !listens_here};
    other_open(there, &setup);
    if (listens_here)
        assert_status(other_link(there, HERE, here->port), LLM_SUCCESS);
    else
        assert_ok(end_link(here, THERE, there->port));
    llm_link_info info;
    assert_int_equal(end_state(here, THERE, &info), LLM_LINK_READY);
    assert_string_equal(info.transport, transport);
}

static void
close_both(struct end *here, struct other *there)
{
    assert_true(process_join(&there->process));
    end_close(here);
}

// From here to there and back, pulled and pushed by either side.
static void
move_both_ways(struct end *here, struct other *there, bool registered_here, bool registered_there)
{
    struct kv from;
    struct kv to;
    if (registered_here) {
        kv_open(&from, here, TENSORS, SLOTS, STRIDE);
        kv_open(&to, here, TENSORS, SLOTS, STRIDE);
    } else {
        kv_allocate(&from, here, TENSORS, SLOTS, STRIDE);
        kv_allocate(&to, here, TENSORS, SLOTS, STRIDE);
    }
    int64_t from_there = other_cache(there, FROM, registered_there, TENSORS, SLOTS, STRIDE);
    int64_t to_there = other_cache(there, TO, registered_there, TENSORS, SLOTS, STRIDE);
    kv_fill(&from, SEED);
    other_fill(there, FROM, SEED + 1);
    struct job pull = {.peer = THERE, .remote = from_there, .count = SLOTS, .shift = 3};
    assert_ok(job_run(&pull, here, &to));
    assert_true(kv_holds(&to, SEED + 1, SLOTS, 3));
    struct job push = {.push = true, .peer = THERE, .remote = to_there, .count = SLOTS, .shift = 7};
    assert_ok(job_run(&push, here, &from));
    assert_true(other_holds(there, TO, SEED, SLOTS, 7));
    kv_fill(&to, 0);
    other_fill(there, TO, 0);
    struct job pull_there = {.peer = HERE, .remote = from.id, .count = SLOTS, .shift = 5};
    assert_status(other_run(there, &pull_there, TO), LLM_SUCCESS);
    assert_true(other_holds(there, TO, SEED, SLOTS, 5));
    struct job push_there = {
        .push = true, .peer = HERE, .remote = to.id, .count = SLOTS, .shift = 9};
    assert_status(other_run(there, &push_there, FROM), LLM_SUCCESS);
    assert_true(kv_holds(&to, SEED + 1, SLOTS, 9));
    assert_true(kv_is_intact_around(&from));
    kv_free(&from);
    kv_free(&to);
}

static void
test_every_combination_in_both_directions(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        struct end here;
        struct other there = {0};
        open_both(&here, &there, (i & 1) != 0);
        move_both_ways(&here, &there, (i & 2) != 0, (i & 4) != 0);
        close_both(&here, &there);
    }
}

// Block lists of a cache per tensor, layer by layer.
static void
test_a_cache_per_tensor(void **state)
{
    (void)state;
    enum { ROUNDS = 200 };
    struct end here;
    struct other there = {0};
    struct kv to;
    open_both(&here, &there, false);
    kv_open(&to, &here, 1, SLOTS, STRIDE);
    uint64_t begin_ms = now_ms();
    for (uint64_t i = 1; i <= ROUNDS; i++) {
        struct job job = {
            .peer = THERE,
            .remote = other_cache(&there, FROM, true, 1, SLOTS, STRIDE),
            .count = SLOTS,
        };
        other_fill(&there, FROM, i);
        assert_ok(job_run(&job, &here, &to));
        assert_true(kv_holds(&to, i, SLOTS, 0));
        assert_int_equal(other_ask(&there, "unregister %d", FROM), LLM_SUCCESS);
        assert_status(job_run(&job, &here, &to), LLM_KV_CACHE_NOT_EXIST);
    }
    print_message("%d registrations seen in %u ms\n", ROUNDS, (unsigned)(now_ms() - begin_ms));
    close_both(&here, &there);
    kv_free(&to);
}

// ---- where reading is not permitted ----

static void
assert_says_why(const struct end *here, uint64_t peer)
{
    llm_link_info info;
    assert_int_equal(end_state(here, peer, &info), LLM_LINK_READY);
    assert_string_equal(info.transport, transport);
    if (!is_transport("shm"))
        return;
    assert_non_null(strstr(info.reason, "registered memory over tcp"));
    assert_non_null(strstr(info.reason, "process_vm_readv"));
}

static void
test_reading_is_forbidden_to_the_other(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        struct end here;
        struct other there;
        other_start(&there);
        if (other_ask(&there, "forbid") != 1)
            skip();
        open_both(&here, &there, (i & 1) != 0);
        assert_says_why(&here, THERE);
        move_both_ways(&here, &there, (i & 2) != 0, (i & 4) != 0);
        close_both(&here, &there);
    }
}

// Two processes of an ordinary user, of whom nobody, or one, may be read by the other.
static void
move_between_hidden(bool is_readable, bool reader_listens)
{
    struct other hidden;
    struct other reader;
    other_start(&hidden);
    other_start(&reader);
    if (other_ask(&hidden, "hide 0") != 1 || other_ask(&reader, "hide %d", is_readable) != 1)
        skip();
    struct end_setup setup = {.id = THERE, .listens = !reader_listens};
    other_open(&hidden, &setup);
    setup = (struct end_setup){.id = THIRD, .listens = reader_listens};
    other_open(&reader, &setup);
    if (reader_listens)
        assert_status(other_link(&hidden, THIRD, reader.port), LLM_SUCCESS);
    else
        assert_status(other_link(&reader, THERE, hidden.port), LLM_SUCCESS);
    int64_t in_hidden = other_cache(&hidden, FROM, true, TENSORS, SLOTS, STRIDE);
    int64_t in_reader = other_cache(&reader, TO, true, TENSORS, SLOTS, STRIDE);
    other_fill(&hidden, FROM, SEED);
    struct job pull = {.peer = THERE, .remote = in_hidden, .count = SLOTS, .shift = 1};
    assert_status(other_run(&reader, &pull, TO), LLM_SUCCESS);
    assert_true(other_holds(&reader, TO, SEED, SLOTS, 1));
    other_fill(&reader, TO, 0);
    struct job push = {
        .push = true, .peer = THIRD, .remote = in_reader, .count = SLOTS, .shift = 2};
    assert_status(other_run(&hidden, &push, FROM), LLM_SUCCESS);
    assert_true(other_holds(&reader, TO, SEED, SLOTS, 2));
    // The other way.
    other_fill(&reader, TO, SEED + 1);
    other_fill(&hidden, FROM, 0);
    pull = (struct job){.peer = THIRD, .remote = in_reader, .count = SLOTS, .shift = 3};
    assert_status(other_run(&hidden, &pull, FROM), LLM_SUCCESS);
    assert_true(other_holds(&hidden, FROM, SEED + 1, SLOTS, 3));
    other_fill(&hidden, FROM, 0);
    push =
        (struct job){.push = true, .peer = THERE, .remote = in_hidden, .count = SLOTS, .shift = 4};
    assert_status(other_run(&reader, &push, TO), LLM_SUCCESS);
    assert_true(other_holds(&hidden, FROM, SEED + 1, SLOTS, 4));
    assert_true(process_join(&hidden.process));
    assert_true(process_join(&reader.process));
}

static void
test_processes_that_may_not_be_read(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++)
        move_between_hidden((i & 1) != 0, (i & 2) != 0);
}

// What was permitted when the link was made is forbidden later: the owner sends its memory, whichever end
// had linked, and whoever asks.
static void
forbid_later(bool reader_listens, bool pushes)
{
    struct other owner;
    struct other reader;
    other_start(&owner);
    other_start(&reader);
    if (other_ask(&owner, "hide 1") != 1 || other_ask(&reader, "hide 1") != 1)
        skip();
    struct end_setup setup = {.id = THERE, .listens = !reader_listens};
    other_open(&owner, &setup);
    setup = (struct end_setup){.id = THIRD, .listens = reader_listens};
    other_open(&reader, &setup);
    assert_status(reader_listens ? other_link(&owner, THIRD, reader.port)
                                 : other_link(&reader, THERE, owner.port),
                  LLM_SUCCESS);
    int64_t from = other_cache(&owner, FROM, true, TENSORS, SLOTS, STRIDE);
    int64_t to = other_cache(&reader, TO, true, TENSORS, SLOTS, STRIDE);
    other_fill(&owner, FROM, SEED);
    struct job job = {.push = pushes,
                      .peer = pushes ? THIRD : THERE,
                      .remote = pushes ? to : from,
                      .count = SLOTS,
                      .shift = 1};
    for (unsigned i = 0; i < 4; i++) {
        other_fill(&reader, TO, 0);
        assert_status(pushes ? other_run(&owner, &job, FROM) : other_run(&reader, &job, TO),
                      LLM_SUCCESS);
        assert_true(other_holds(&reader, TO, SEED, SLOTS, 1));
        if (i == 0)
            assert_int_equal(other_ask(&owner, "hide 0"), 1);
    }
    assert_int_equal(other_ask(&reader, "state %d", THERE), LLM_LINK_READY);
    assert_int_equal(other_ask(&owner, "state %d", THIRD), LLM_LINK_READY);
    assert_true(process_join(&owner.process));
    assert_true(process_join(&reader.process));
}

static void
test_a_process_that_may_not_be_read_any_more(void **state)
{
    (void)state;
    forbid_later(false, false);
}

static void
test_nor_by_the_end_that_listens(void **state)
{
    (void)state;
    forbid_later(true, false);
}

static void
test_pushes_of_a_process_that_may_not_be_read_any_more(void **state)
{
    (void)state;
    forbid_later(true, true);
    forbid_later(false, true);
}

// A pull that was started, and notices, ends; those that come later go the other way.
static void
test_started_pulls_from_a_process_that_may_not_be_read_any_more(void **state)
{
    struct other owner;
    struct other reader;
    (void)state;
    other_start(&owner);
    other_start(&reader);
    if (other_ask(&owner, "hide 1") != 1 || other_ask(&reader, "hide 1") != 1)
        skip();
    struct end_setup setup = {.id = THERE, .listens = true};
    other_open(&owner, &setup);
    setup = (struct end_setup){.id = THIRD};
    other_open(&reader, &setup);
    assert_status(other_link(&reader, THERE, owner.port), LLM_SUCCESS);
    int64_t from = other_cache(&owner, FROM, true, TENSORS, SLOTS, STRIDE);
    other_cache(&reader, TO, true, TENSORS, SLOTS, STRIDE);
    other_fill(&owner, FROM, SEED);
    char pull[LINE_BYTES];
    snprintf(pull, sizeof(pull), "start %d 0 0 %d %lld %d 1 0 0", TO, THERE, (long long)from,
             SLOTS);
    assert_int_equal(other_ask(&reader, "%s", pull), LLM_SUCCESS);
    assert_int_equal(other_ask(&owner, "hide 0"), 1);
    other_fill(&reader, TO, 0);
    AWAIT(other_ask(&reader, "%s", pull) == LLM_SUCCESS);
    assert_true(other_holds(&reader, TO, SEED, SLOTS, 1));
    assert_int_equal(other_ask(&reader, "state %d", THERE), LLM_LINK_READY);
    assert_true(process_join(&owner.process));
    assert_true(process_join(&reader.process));
}

// ---- owners that end without a word ----

static void
assert_explained(llm_status status)
{
    char why[512];
    assert_status(status, LLM_FAILED);
    assert_true(llm_last_error(why, sizeof(why)) > 0);
    print_message("%s\n", why);
}

static void
test_the_owner_unmaps_without_unregistering(void **state)
{
    (void)state;
    struct end here;
    struct other there = {0};
    struct kv to;
    open_both(&here, &there, false);
    kv_open(&to, &here, TENSORS, SLOTS, STRIDE);
    struct job job = {
        .peer = THERE,
        .remote = other_cache(&there, FROM, true, TENSORS, SLOTS, STRIDE),
        .count = SLOTS,
    };
    other_ask(&there, "unmap %d", FROM);
    assert_explained(job_run(&job, &here, &to));
    assert_true(kv_is_intact_around(&to));
    // Both live on, and on one host the link as well.
    if (is_transport("shm")) {
        job.remote = other_cache(&there, TO, true, TENSORS, SLOTS, STRIDE);
        other_fill(&there, TO, SEED);
        assert_ok(job_run(&job, &here, &to));
        assert_true(kv_holds(&to, SEED, SLOTS, 0));
    }
    close_both(&here, &there);
    kv_free(&to);
}

static void
test_the_source_of_a_push_is_unmapped(void **state)
{
    (void)state;
    struct end here;
    struct other there = {0};
    struct kv from;
    open_both(&here, &there, false);
    kv_open(&from, &here, TENSORS, SLOTS, STRIDE);
    struct job job = {
        .push = true,
        .peer = THERE,
        .remote = other_cache(&there, TO, true, TENSORS, SLOTS, STRIDE),
        .count = SLOTS,
    };
    kv_unmap(&from);
    assert_explained(job_run(&job, &here, &from));
    assert_int_equal(other_ask(&there, "state %d", HERE) != 0, 1);
    close_both(&here, &there);
    kv_free(&from);
}

// The target of a push: the process there lives on and says no.
static void
test_the_target_of_a_push_is_unmapped(void **state)
{
    (void)state;
    struct end here;
    struct other there = {0};
    struct kv from;
    open_both(&here, &there, false);
    kv_open(&from, &here, TENSORS, SLOTS, STRIDE);
    struct job job = {
        .push = true,
        .peer = THERE,
        .remote = other_cache(&there, TO, true, TENSORS, SLOTS, STRIDE),
        .count = SLOTS,
    };
    other_ask(&there, "unmap %d", TO);
    assert_explained(job_run(&job, &here, &from));
    assert_int_equal(other_ask(&there, "state %d", HERE) != 0, 1);
    close_both(&here, &there);
    kv_free(&from);
}

// Pulls that race unregistering and unmapping: the bytes, or no such cache.
static void
test_the_owner_unregisters_under_a_pull(void **state)
{
    (void)state;
    struct end here;
    struct other there = {0};
    struct kv to;
    unsigned num_pulled = 0;
    char answer[LINE_BYTES];
    open_both(&here, &there, true);
    kv_open(&to, &here, TENSORS, SLOTS, STRIDE);
    for (uint64_t i = 1; i <= SCALED(60, 10); i++) {
        struct job job = {
            .peer = THERE,
            .remote = other_cache(&there, FROM, true, TENSORS, SLOTS, STRIDE),
            .count = SLOTS,
        };
        llm_status status;
        other_fill(&there, FROM, i);
        talk_say(&there.process.talk, "unregister %d", FROM);
        talk_say(&there.process.talk, "unmap %d", FROM);
        while ((status = job_run(&job, &here, &to)) == LLM_SUCCESS) {
            assert_true(kv_holds(&to, i, SLOTS, 0));
            num_pulled++;
        }
        assert_status(status, LLM_KV_CACHE_NOT_EXIST);
        assert_true(talk_hear(&there.process.talk, answer, PATIENCE_MS));
        assert_true(talk_hear(&there.process.talk, answer, PATIENCE_MS));
    }
    print_message("%u pulls were faster\n", num_pulled);
    close_both(&here, &there);
    kv_free(&to);
}

// Unregistering here waits for a pull into the cache whose peer stands still, and only that.
static void
test_unregistering_waits_for_a_peer_that_stands_still(void **state)
{
    (void)state;
    struct end here;
    struct other there = {0};
    struct kv to;
    struct kv bystander;
    uint64_t id;
    // On one host a pull needs nobody's help.
    if (!is_transport("tcp"))
        skip();
    open_both(&here, &there, false);
    kv_open(&to, &here, TENSORS, SLOTS, STRIDE);
    kv_open(&bystander, &here, 1, 1, 8);
    struct job job = {
        .peer = THERE,
        .remote = other_cache(&there, FROM, true, TENSORS, SLOTS, STRIDE),
        .count = SLOTS,
        .timeout_ms = 300,
    };
    process_stop(&there.process);
    assert_ok(job_start(&job, &here, &to, &id));
    assert_ok(llm_unregister_kv_cache(here.dd, bystander.id));
    assert_status(llm_transfer_poll(here.dd, id), LLM_TRANSFER_PENDING);
    uint64_t begin_ms = now_ms();
    assert_ok(llm_unregister_kv_cache(here.dd, to.id));
    print_message("unregistered after %u ms\n", (unsigned)(now_ms() - begin_ms));
    kv_unmap(&to);
    assert_status(llm_transfer_wait(here.dd, id, -1), LLM_TIMEOUT);
    assert_ok(llm_transfer_release(here.dd, id));
    // What was under way finds nobody.
    process_continue(&there.process);
    assert_int_equal(other_ask(&there, "state %d", HERE), LLM_LINK_READY);
    close_both(&here, &there);
    kv_free(&to);
    kv_free(&bystander);
}

// A reader that stands still in the middle costs its owner some time, but not all; its own pull is
// lost.
static void
test_unregistering_gives_up_a_reader_that_stands_still(void **state)
{
    (void)state;
    struct end here;
    struct other there = {0};
    struct kv from;
    // Of two writers of the same block it is unspecified who wins (§8.3), which the sanitizer minds.
    if (UNDER_TSAN)
        skip();
    struct end_setup setup = {
        .id = HERE, .listens = true, .sync_ms = 100, .liveness_ms = SCALED(300, 1000)};
    end_open(&here, &setup);
    setup = (struct end_setup){.id = THERE, .liveness_ms = setup.liveness_ms};
    other_open(&there, &setup);
    assert_status(other_link(&there, HERE, here.port), LLM_SUCCESS);
    kv_open(&from, &here, TENSORS, SLOTS, STRIDE);
    other_cache(&there, TO, true, TENSORS, SLOTS, STRIDE);
    // More than it can do in that time.
    struct job job = {.peer = HERE, .remote = from.id, .count = SLOTS, .repeat = 20000};
    other_begin(&there, &job, TO);
    for (uint64_t begin_ms = now_ms(); now_ms() < begin_ms + 50;)
        sched_yield();
    process_stop(&there.process);
    uint64_t begin_ms = now_ms();
    assert_ok(llm_unregister_kv_cache(here.dd, from.id));
    print_message("unregistered after %u ms\n", (unsigned)(now_ms() - begin_ms));
    kv_unmap(&from);
    process_continue(&there.process);
    llm_status status = other_end(&there);
    assert_true(status == LLM_KV_CACHE_NOT_EXIST || status == LLM_FAILED || status == LLM_TIMEOUT ||
                status == LLM_NOT_YET_LINK);
    close_both(&here, &there);
    kv_free(&from);
}

static void
test_the_owner_is_killed_under_a_pull(void **state)
{
    (void)state;
    struct end here;
    struct other there = {0};
    struct kv to;
    uint64_t id;
    open_both(&here, &there, false);
    kv_open(&to, &here, TENSORS, SLOTS, STRIDE);
    struct job job = {
        .peer = THERE,
        .remote = other_cache(&there, FROM, true, TENSORS, SLOTS, STRIDE),
        .count = SLOTS,
        .repeat = 2000,
    };
    assert_ok(job_start(&job, &here, &to, &id));
    process_kill(&there.process);
    assert_status(llm_transfer_wait(here.dd, id, -1), LLM_FAILED);
    assert_ok(llm_transfer_release(here.dd, id));
    AWAIT(end_state(&here, THERE, NULL) == LLM_LINK_BROKEN);
    // Another process may have its number by now: nobody is read.
    assert_status(job_run(&job, &here, &to), LLM_FAILED);
    assert_true(kv_is_intact_around(&to));
    end_close(&here);
    kv_free(&to);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_every_combination_in_both_directions),
        KIT_TEST(test_a_cache_per_tensor),
        KIT_TEST(test_reading_is_forbidden_to_the_other),
        KIT_TEST(test_processes_that_may_not_be_read),
        KIT_TEST(test_a_process_that_may_not_be_read_any_more),
        KIT_TEST(test_nor_by_the_end_that_listens),
        KIT_TEST(test_pushes_of_a_process_that_may_not_be_read_any_more),
        KIT_TEST(test_started_pulls_from_a_process_that_may_not_be_read_any_more),
        KIT_TEST(test_the_owner_unmaps_without_unregistering),
        KIT_TEST(test_the_source_of_a_push_is_unmapped),
        KIT_TEST(test_the_target_of_a_push_is_unmapped),
        KIT_TEST(test_the_owner_unregisters_under_a_pull),
        KIT_TEST(test_unregistering_waits_for_a_peer_that_stands_still),
        KIT_TEST(test_unregistering_gives_up_a_reader_that_stands_still),
        KIT_TEST(test_the_owner_is_killed_under_a_pull),
    };
    return kit_main(argc, argv, tests, LENGTH(tests));
}

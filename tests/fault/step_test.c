// A peer that dies, or stands still, at any step: the first of its system calls that talk to others,
// the second, the third, ... until a whole link with a pull, a push and an unlink gets by without
// reaching it.  Whoever is left returns from every call in time, with a status that says so or with
// the right bytes; it keeps nothing of the dead one, and links with the next one at the same place.
//
//     step_test DEED SHM-OR-TCP [EVERY [FIRST]]      DEED is kill or stop
//
// EVERY: so many steps further on each time; the ordinary run leaves some out.
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <sys/wait.h>

#include "fault/syscalls.h"
#include "registered/kit.h"

enum { VICTIM = 11, SURVIVOR = 21, SOURCE = 0, TARGET = 1 };
enum { TENSORS = 2, SLOTS = 8, STEPS_MAX = 1000 };
// Of calls to a peer that stands still.  One that dies is noticed at once, whatever the limits are.
enum { CALL_MS = SCALED(200, 1000), LIVENESS_MS = SCALED(200, 1000) };
enum { BOUND_MS = SCALED(4000, 30000) };

static bool stops;
static unsigned steps_apart = 1;
static unsigned first_step = 1;

// Over tcp enough for a transfer to take several steps.
static uint64_t
slot_bytes(void)
{
    return is_transport("tcp") ? 64 << 10 : 16 << 10;
}

// What is tried: who begins, and out of which memory.
struct scenario {
    bool victim_begins;
    bool registered;
};

struct survivor {
    struct scenario scenario;
    struct end end;
    struct kv source; // filled with 6
    struct kv target; // filled with 0, later with 9
    size_t num_descriptors;
    size_t num_mappings;
    uint64_t n; // the step
    bool after;
};

// ---- the victim's own commands ----

static bool
victim_obeys(struct talk *talk, const char *command, const char *words)
{
    if (strcmp(command, "arm") == 0) {
        struct syscalls_plan plan = {.messages = true};
        unsigned deed;
        assert_int_equal(sscanf(words, "%u %" SCNu64, &deed, &plan.n), 2);
        plan.deed = (enum syscalls_deed)deed;
        syscalls_arm(&plan);
        talk_say(talk, "0");
        return true;
    }
    if (strcmp(command, "disarm") == 0) {
        talk_say(talk, "%d", syscalls_disarm());
        return true;
    }
    return false;
}

enum heard { HEARD, GONE, STANDS };

// The next answer, or what became of the victim.
static enum heard
hear(struct other *victim, uint64_t *ret_number)
{
    struct talk *talk = &victim->process.talk;
    char line[LINE_BYTES];
    uint64_t deadline = now_ms() + PATIENCE_MS;
    while (now_ms() < deadline) {
        struct pollfd wait = {.fd = talk->fd, .events = POLLIN};
        int status;
        if (memchr(talk->buffer, '\n', talk->num_buffered) != NULL || poll(&wait, 1, 2) == 1) {
            if (!talk_hear(talk, line, PATIENCE_MS))
                return GONE;
            *ret_number = strtoull(line, NULL, 10);
            return HEARD;
        }
        if (waitpid(victim->process.pid, &status, WNOHANG | WUNTRACED) == victim->process.pid &&
            WIFSTOPPED(status))
            return STANDS;
    }
    fail_msg("the victim neither answers nor ends");
    return GONE;
}

static void
victim_open(struct survivor *s, struct other *victim, uint16_t port)
{
    struct end_setup setup = {
        .id = VICTIM,
        .listens = true,
        .port = port,
        .sync_ms = stops ? CALL_MS : 0,
        .liveness_ms = stops ? LIVENESS_MS : 0,
    };
    *victim = (struct other){0};
    other_open(victim, &setup);
    other_cache(victim, SOURCE, s->scenario.registered, TENSORS, SLOTS, slot_bytes());
    other_cache(victim, TARGET, s->scenario.registered, TENSORS, SLOTS, slot_bytes());
    other_fill(victim, SOURCE, 5);
}

// Ids of its caches: the first two.
enum { VICTIMS_SOURCE = 1, VICTIMS_TARGET = 2 };

// ---- the survivor ----

static void
open_cache(struct survivor *s, struct kv *kv, uint64_t seed)
{
    if (s->scenario.registered)
        kv_open(kv, &s->end, TENSORS, SLOTS, slot_bytes());
    else
        kv_allocate(kv, &s->end, TENSORS, SLOTS, slot_bytes());
    kv_fill(kv, seed);
}

#define fail_step(s, format, ...)                                                                  \
    fail_msg("%s, %s begins, %s memory, %s system call %" PRIu64 ": " format,                      \
             stops ? "stopped" : "killed", (s)->scenario.victim_begins ? "it" : "the other",       \
             (s)->scenario.registered ? "registered" : "allocated",                                \
             (s)->after ? "after" : "before", (s)->n, __VA_ARGS__)

static void
check_bound(const struct survivor *s, const char *what, uint64_t start)
{
    uint64_t took = now_ms() - start;
    if (took > BOUND_MS)
        fail_step(s, "%s took %" PRIu64 " ms", what, took);
}

static void
close_cache(struct survivor *s, struct kv *kv)
{
    uint64_t start = now_ms();
    if (s->scenario.registered)
        assert_ok(llm_unregister_kv_cache(s->end.dd, kv->id));
    else
        assert_ok(llm_deallocate_cache(s->end.dd, kv->id));
    check_bound(s, "giving back a cache", start);
    // Whoever still reads or writes it would crash, or fail.
    kv_free(kv);
}

static size_t
num_descriptors(void)
{
    size_t count = 0;
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

// Of memory files: the own ones, and those of peers.
static size_t
num_mappings(void)
{
    size_t count = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "re");
    assert_non_null(maps);
    while (fgets(line, sizeof(line), maps) != NULL)
        count += strstr(line, "/memfd:") != NULL;
    fclose(maps);
    return count;
}

static void
survivor_open(struct survivor *s, struct scenario scenario)
{
    struct end_setup setup = {
        .id = SURVIVOR,
        .listens = true,
        .sync_ms = stops ? CALL_MS : 0,
        .liveness_ms = stops ? LIVENESS_MS : 0,
    };
    *s = (struct survivor){.scenario = scenario};
    end_open(&s->end, &setup);
    s->num_descriptors = num_descriptors();
    s->num_mappings = num_mappings();
}

// ---- calls, and what they may answer when the peer dies or stops ----

static void
check_one_of(const struct survivor *s, const char *call, llm_status status)
{
    static const llm_status allowed[] = {LLM_SUCCESS,      LLM_FAILED,      LLM_TIMEOUT,
                                         LLM_NOT_YET_LINK, LLM_LINK_FAILED, LLM_WAIT_PROC_TIMEOUT};
    for (size_t i = 0; i < LENGTH(allowed); i++) {
        if (status == allowed[i])
            return;
    }
    fail_step(s, "%s answers %s", call, llm_status_name(status));
}

static llm_cluster_info
victim_at(llm_ip_info *local, llm_ip_info *remote, uint16_t port)
{
    *local = (llm_ip_info){.ip = "127.0.0.1"};
    *remote = (llm_ip_info){.ip = "127.0.0.1", .port = port};
    return (llm_cluster_info){
        .struct_size = sizeof(llm_cluster_info),
        .remote_cluster_id = VICTIM,
        .local_ip_infos = local,
        .num_local_ip_infos = 1,
        .remote_ip_infos = remote,
        .num_remote_ip_infos = 1,
    };
}

static llm_status
link_victim(struct survivor *s, uint16_t port)
{
    llm_ip_info local;
    llm_ip_info remote;
    llm_cluster_info info = victim_at(&local, &remote, port);
    uint64_t start = now_ms();
    llm_status status =
        llm_link_clusters(s->end.dd, &info, 1, NULL, NULL, stops ? CALL_MS : PATIENCE_MS);
    check_bound(s, "linking", start);
    check_one_of(s, "linking", status);
    return status;
}

// The link is gone here then, unless version 2 found it broken: that one must be forced.
static llm_status
unlink_victim(struct survivor *s, uint16_t port, bool force)
{
    llm_ip_info local;
    llm_ip_info remote;
    llm_cluster_info info = victim_at(&local, &remote, port);
    llm_status result = LLM_SUCCESS;
    uint64_t start = now_ms();
    llm_status status = llm_unlink_clusters(s->end.dd, &info, 1, &result, NULL,
                                            stops ? CALL_MS : PATIENCE_MS, force);
    check_bound(s, "unlinking", start);
    // Who is stopped as it reads is waited for, until it is dead; force ends that sooner.
    bool holds_on = stops && result == LLM_LINK_BUSY;
    if ((result == LLM_UNLINK_FAILED || holds_on) && !force) {
        assert_ok(unlink_victim(s, port, true));
        return status;
    }
    if (status != LLM_SUCCESS && result != LLM_NOTIFY_PROMPT_UNLINK_FAILED &&
        result != LLM_WAIT_PROC_TIMEOUT && result != LLM_TIMEOUT)
        fail_step(s, "unlinking answers %s, %s", llm_status_name(status), llm_status_name(result));
    if (end_state(&s->end, VICTIM, NULL) != 0)
        fail_step(s, "unlinking answers %s, and the link is still there", llm_status_name(result));
    return status;
}

static llm_status
transfer(struct survivor *s, bool push)
{
    struct job job = {
        .push = push,
        .peer = VICTIM,
        .remote = push ? VICTIMS_TARGET : VICTIMS_SOURCE,
        .count = SLOTS,
        .timeout_ms = stops ? CALL_MS : PATIENCE_MS,
    };
    uint64_t start = now_ms();
    llm_status status = job_run(&job, &s->end, push ? &s->source : &s->target);
    check_bound(s, push ? "a push" : "a pull", start);
    check_one_of(s, push ? "a push" : "a pull", status);
    if (status == LLM_SUCCESS && !push && !kv_holds(&s->target, 5, SLOTS, 0))
        fail_step(s, "%s", "a pull has claimed wrong bytes");
    return status;
}

static llm_status
query(struct survivor *s)
{
    llm_cache_index index = {
        .struct_size = sizeof(index), .cluster_id = VICTIM, .cache_id = VICTIMS_SOURCE};
    llm_cache_info info = {.struct_size = sizeof(info)};
    uint64_t start = now_ms();
    llm_status status = llm_query_cache(s->end.dd, &index, &info);
    check_bound(s, "a query", start);
    check_one_of(s, "a query", status);
    if (status == LLM_SUCCESS)
        assert_int_equal(info.num_slots, SLOTS);
    return status;
}

// The survivor begins.  True if all went well.
static bool
call_all(struct survivor *s, const struct other *victim)
{
    llm_status linked = link_victim(s, victim->port);
    llm_status found = query(s);
    llm_status pulled = transfer(s, false);
    llm_status pushed = transfer(s, true);
    llm_status unlinked = unlink_victim(s, victim->port, false);
    return linked == LLM_SUCCESS && found == LLM_SUCCESS && pulled == LLM_SUCCESS &&
           pushed == LLM_SUCCESS && unlinked == LLM_SUCCESS;
}

// The victim begins: it's told what to do, and answers, or doesn't.
static void
tell_all(struct survivor *s, struct other *victim)
{
    struct talk *talk = &victim->process.talk;
    unsigned timeout_ms = stops ? CALL_MS : PATIENCE_MS;
    talk_say(talk, "link %d %u", SURVIVOR, s->end.port);
    talk_say(talk, "run %d 0 0 %d %" PRId64 " %d 0 %u 1", TARGET, SURVIVOR, s->source.id, SLOTS,
             timeout_ms);
    talk_say(talk, "run %d 1 0 %d %" PRId64 " %d 0 %u 1", SOURCE, SURVIVOR, s->target.id, SLOTS,
             timeout_ms);
}

// Its answers so far; those that say success must be true.  What became of it in the end.
static enum heard
hear_all(struct survivor *s, struct other *victim, bool goes_on, unsigned *num_heard,
         llm_status statuses[4])
{
    while (*num_heard < 4) {
        uint64_t number = 0;
        enum heard heard = hear(victim, &number);
        if (heard != HEARD)
            return heard;
        statuses[*num_heard] = (llm_status)number;
        // The survivor may have freed what it wants.
        if (*num_heard < 3 && (statuses[*num_heard] != LLM_KV_CACHE_NOT_EXIST || !stops))
            check_one_of(s, "a call of the victim", statuses[*num_heard]);
        ++*num_heard;
        // It was reached in this moment: what comes next is its end, or its standing still.
        if (*num_heard == 4 && number != 0 && !goes_on)
            return hear(victim, &number);
    }
    return HEARD;
}

// ---- afterwards ----

static void
await_rest(struct survivor *s)
{
    uint64_t deadline = now_ms() + PATIENCE_MS;
    while (num_descriptors() != s->num_descriptors || num_mappings() != s->num_mappings) {
        if (now_ms() > deadline)
            fail_step(s, "%zu descriptors and %zu memory files are left, expected %zu and %zu",
                      num_descriptors(), num_mappings(), s->num_descriptors, s->num_mappings);
        sched_yield();
    }
}

// The next one, or the one that goes on, links and is pulled from, rightly.
static void
check_again(struct survivor *s, struct other *victim)
{
    struct kv again;
    llm_status status = LLM_FAILED;
    open_cache(s, &again, 0);
    // Times are short, and a machine may be busy.
    for (unsigned attempt = 0; attempt < (stops ? 10 : 1) && status != LLM_SUCCESS; attempt++) {
        struct job job = {
            .peer = VICTIM, .remote = VICTIMS_SOURCE, .count = SLOTS, .timeout_ms = PATIENCE_MS};
        if (s->scenario.victim_begins)
            status = other_link(victim, SURVIVOR, s->end.port);
        else
            status = link_victim(s, victim->port);
        if (status == LLM_SUCCESS || status == LLM_ALREADY_LINK)
            status = job_run(&job, &s->end, &again);
    }
    if (status != LLM_SUCCESS)
        fail_step(s, "afterwards a pull answers %s", llm_status_name(status));
    assert_true(kv_holds(&again, 5, SLOTS, 0));
    (void)unlink_victim(s, victim->port, true);
    close_cache(s, &again);
}

static void
after_death(struct survivor *s, struct other *victim)
{
    struct other next;
    uint64_t start = now_ms();
    while (end_state(&s->end, VICTIM, NULL) == LLM_LINK_READY) {
        check_bound(s, "noticing", start);
        sched_yield();
    }
    close_cache(s, &s->source);
    close_cache(s, &s->target);
    process_kill(&victim->process);
    victim_open(s, &next, victim->port);
    check_again(s, &next);
    process_kill(&next.process);
}

static void
after_stop(struct survivor *s, struct other *victim, unsigned num_heard, llm_status statuses[4])
{
    // All calls have returned: the memory is the survivor's to use and to unmap.
    bool pulled_into = !s->scenario.victim_begins;
    if (pulled_into)
        kv_fill(&s->target, 9);
    close_cache(s, &s->source);
    if (!pulled_into)
        close_cache(s, &s->target);
    process_continue(&victim->process);
    if (hear_all(s, victim, true, &num_heard, statuses) != HEARD)
        fail_step(s, "%s", "it doesn't go on");
    if (s->scenario.victim_begins && statuses[1] == LLM_SUCCESS &&
        !other_holds(victim, TARGET, 6, SLOTS, 0))
        fail_step(s, "%s", "its pull has claimed wrong bytes");
    check_again(s, victim);
    if (pulled_into && !kv_holds(&s->target, 9, SLOTS, 0))
        fail_step(s, "%s", "bytes have landed after the call had returned");
    if (pulled_into)
        close_cache(s, &s->target);
    assert_true(process_join(&victim->process));
}

// One run; false if the victim got through.
static bool
step(struct survivor *s, uint64_t n, bool after)
{
    struct other victim;
    unsigned num_heard = 0;
    llm_status statuses[4] = {0};
    bool well = true;
    enum syscalls_deed deed = stops   ? SYSCALLS_STOP_BEFORE
                              : after ? SYSCALLS_KILL_AFTER
                                      : SYSCALLS_KILL_BEFORE;
    s->n = n;
    s->after = after;
    victim_open(s, &victim, 0);
    open_cache(s, &s->source, 6);
    open_cache(s, &s->target, 0);
    other_ask(&victim, "arm %u %" PRIu64, deed, n);
    if (s->scenario.victim_begins) {
        tell_all(s, &victim);
    } else {
        well = call_all(s, &victim);
        num_heard = 3;
    }
    talk_say(&victim.process.talk, "disarm");
    enum heard heard = hear_all(s, &victim, false, &num_heard, statuses);
    if (heard == GONE) {
        after_death(s, &victim);
    } else if (heard == STANDS) {
        after_stop(s, &victim, num_heard, statuses);
    } else {
        // Not reached.  Then everything went as it should.
        for (unsigned i = 0; i < 3 && s->scenario.victim_begins; i++)
            well &= statuses[i] == LLM_SUCCESS;
        assert_int_equal(statuses[3], 0);
        if (!well && !stops)
            fail_step(s, "%s", "nothing has happened, and a call failed");
        if (well) {
            assert_true(other_holds(&victim, TARGET, 6, SLOTS, 0));
            assert_true(kv_holds(&s->target, 5, SLOTS, 0));
        }
        close_cache(s, &s->source);
        close_cache(s, &s->target);
        assert_true(process_join(&victim.process));
        (void)unlink_victim(s, victim.port, true);
    }
    await_rest(s);
    return heard != HEARD;
}

static void
sweep(struct scenario scenario)
{
    struct survivor s;
    uint64_t n = first_step;
    survivor_open(&s, scenario);
    for (; step(&s, n, false); n += steps_apart) {
        assert_true(n < STEPS_MAX);
        if (!stops)
            (void)step(&s, n, true);
    }
    print_message("%" PRIu64 " steps\n", n - 1);
    if (n < 15)
        fail_step(&s, "%s", "that is already more than there are");
    end_close(&s.end);
}

static void
test_it_answers_with_registered_memory(void **state)
{
    (void)state;
    sweep((struct scenario){.registered = true});
}

static void
test_it_answers_with_allocated_memory(void **state)
{
    (void)state;
    sweep((struct scenario){.registered = false});
}

static void
test_it_begins_with_registered_memory(void **state)
{
    (void)state;
    sweep((struct scenario){.victim_begins = true, .registered = true});
}

static void
test_it_begins_with_allocated_memory(void **state)
{
    (void)state;
    sweep((struct scenario){.victim_begins = true, .registered = false});
}

int
main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        KIT_TEST(test_it_answers_with_registered_memory),
        KIT_TEST(test_it_answers_with_allocated_memory),
        KIT_TEST(test_it_begins_with_registered_memory),
        KIT_TEST(test_it_begins_with_allocated_memory),
    };
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk)) {
        kit_obeys = victim_obeys;
        syscalls_exempt(talk.fd);
        return kit_serve(&talk);
    }
    if (argc < 3) {
        fprintf(stderr, "usage: step_test kill|stop shm|tcp [EVERY [FIRST]]\n");
        return 2;
    }
    stops = strcmp(argv[1], "stop") == 0;
    transport = argv[2];
    if (argc > 3)
        steps_apart = (unsigned)strtoul(argv[3], NULL, 10);
    if (argc > 4)
        first_step = (unsigned)strtoul(argv[4], NULL, 10);
    return _cmocka_run_group_tests(argv[1], tests, LENGTH(tests), NULL, NULL);
}

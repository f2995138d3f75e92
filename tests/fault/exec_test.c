// A process that goes on as another program, one whose main thread has left, a
// daemon, and one that sees no /proc.
//
// Who reads registered memory of a process that executes another program may find the next one's
// bytes, at the same addresses, under the same process number.  No pull succeeds with them.
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <unistd.h>

#include "base/loop.h"
#include "engine/engine.h"
#include "registered/kit.h"

enum { OWNER = 11, USER = 21, SLOTS = 4, STRIDE = 4096, ROUNDS = SCALED(30, 10) };

// ---- the owner: life after life of one process ----

static uint8_t memory[SLOTS * STRIDE] __attribute__((aligned(4096)));

static void
begin_life(const struct talk *talk, unsigned number)
{
    char text[16];
    char *arguments[] = {(char *)(uintptr_t) "test", (char *)(uintptr_t) "--role=life", NULL};
    snprintf(text, sizeof(text), "%u", number);
    setenv("LIFE", text, 1);
    fcntl(talk->fd, F_SETFD, 0);
    execv("/proc/self/exe", arguments);
    _exit(127);
}

static void
register_memory(struct end *end, int64_t *ret_id)
{
    int64_t shape[] = {SLOTS, STRIDE};
    uint64_t address = (uintptr_t)memory;
    llm_cache_desc desc = {sizeof(desc), LLM_PLACEMENT_HOST, 1, LLM_DT_INT8, shape, 2};
    assert_ok(llm_register_kv_cache(end->dd, &desc, &address, 1, ret_id));
}

static int
live(struct talk *talk)
{
    char line[LINE_BYTES];
    struct end end;
    struct end_setup setup = {.id = OWNER, .listens = true, .transports = "shm"};
    int64_t id;
    const char *life = getenv("LIFE");
    unsigned number = life != NULL ? (unsigned)atoi(life) : 0;
    memset(memory, (int)number, sizeof(memory));
    if (number == 0) {
        // From now on everything lies where it lay in the life before.
        if (personality(ADDR_NO_RANDOMIZE) < 0)
            return 1;
        begin_life(talk, 1);
    }
    end_open(&end, &setup);
    register_memory(&end, &id);
    talk_say(talk, "%u %lld", end.port, (long long)id);
    if (talk_hear(talk, line, -1))
        begin_life(talk, number + 1);
    end_close(&end);
    return 0;
}

// ---- the user ----

struct pair {
    struct process owner;
    struct end user;
    struct kv kv;
    uint16_t port;
    int64_t remote;
    unsigned life;
};

static bool
hear_of_life(struct pair *pair)
{
    char line[LINE_BYTES];
    long long id;
    unsigned port;
    pair->life++;
    if (!talk_hear(&pair->owner.talk, line, PATIENCE_MS) ||
        sscanf(line, "%u %lld", &port, &id) != 2)
        return false;
    pair->port = (uint16_t)port;
    pair->remote = id;
    return true;
}

static void
pair_open(struct pair *pair)
{
    struct end_setup setup = {.id = USER, .transports = "shm"};
    memset(pair, 0, sizeof(*pair));
    process_start(&pair->owner, "life");
    if (!hear_of_life(pair)) {
        print_message("addresses can't be kept the same here\n");
        skip();
    }
    end_open(&pair->user, &setup);
    kv_open(&pair->kv, &pair->user, 1, SLOTS, STRIDE);
    assert_ok(end_link(&pair->user, OWNER, pair->port));
}

static void
pair_close(struct pair *pair)
{
    end_close(&pair->user);
    kv_free(&pair->kv);
    process_kill(&pair->owner);
}

static llm_status
pull(struct pair *pair)
{
    struct job job = {.peer = OWNER, .remote = pair->remote, .count = SLOTS};
    llm_status status = job_run(&job, &pair->user, &pair->kv);
    const uint8_t *bytes = (const uint8_t *)(uintptr_t)pair->kv.addresses[0];
    for (size_t i = 0; status == LLM_SUCCESS && i < sizeof(memory); i++) {
        if (bytes[i] != pair->life)
            fail_msg("a pull from life %u succeeded with %u at byte %zu", pair->life, bytes[i], i);
    }
    return status;
}

static void
follow(struct pair *pair)
{
    assert_ok(end_unlink(&pair->user, OWNER, pair->port, true));
    assert_ok(end_link(&pair->user, OWNER, pair->port));
    assert_ok(pull(pair));
}

static void
test_a_pull_never_succeeds_with_the_next_programs_bytes(void **state)
{
    struct pair pair;
    unsigned num_pulls = 0;
    (void)state;
    pair_open(&pair);
    for (int round = 0; round < ROUNDS; round++) {
        talk_say(&pair.owner.talk, "next");
        while (pull(&pair) == LLM_SUCCESS)
            num_pulls++;
        assert_true(hear_of_life(&pair));
        follow(&pair);
    }
    print_message("%u pulls from %d lives\n", num_pulls, ROUNDS);
    pair_close(&pair);
}

struct hold {
    struct lli_task task;
    atomic_bool held;
    atomic_bool release;
};

static void
hold_loop(struct lli_task *task)
{
    struct hold *hold = LLI_CONTAINER_OF(task, struct hold, task);
    atomic_store(&hold->held, true);
    AWAIT(atomic_load(&hold->release));
}

// The thread that would see the connection close is busy elsewhere.
static void
test_a_pull_fails_before_the_loop_knows_of_the_next_program(void **state)
{
    struct pair pair;
    struct hold hold = {.task.run = hold_loop};
    struct pair next;
    (void)state;
    pair_open(&pair);
    assert_ok(pull(&pair));
    lli_loop_post(&pair.user.dd->loop, &hold.task);
    AWAIT(atomic_load(&hold.held));
    talk_say(&pair.owner.talk, "next");
    next = pair;
    assert_true(hear_of_life(&next));
    assert_status(pull(&pair), LLM_FAILED);
    atomic_store(&hold.release, true);
    follow(&next);
    pair_close(&next);
}

// ---- a daemon without standard input, output and error ----

static bool
count_standard(struct talk *talk, const char *command, const char *words)
{
    unsigned num_open = 0;
    (void)words;
    if (strcmp(command, "standard") != 0)
        return false;
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        num_open += fcntl(fd, F_GETFD) >= 0;
    talk_say(talk, "%u", num_open);
    return true;
}

static int
serve_as_daemon(struct talk *talk)
{
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        close(fd);
    kit_obeys = count_standard;
    return kit_serve(talk);
}

static void
test_a_daemon_s_standard_descriptors_stay_free(void **state)
{
    static const char *const transports[] = {"shm", "tcp"};
    (void)state;
    if (UNDER_TSAN) {
        print_message("the thread sanitizer loses an epoll that fcntl has moved\n");
        skip();
    }
    for (size_t i = 0; i < 2 * LENGTH(transports); i++) {
        struct other other = {0};
        struct end user;
        struct kv kv;
        struct end_setup setup = {.id = OWNER, .listens = true, .transports = transports[i / 2]};
        process_start(&other.process, "daemon");
        other_open(&other, &setup);
        int64_t remote = other_cache(&other, 0, false, 1, SLOTS, STRIDE);
        other_fill(&other, 0, 5);
        setup = (struct end_setup){.id = USER, .listens = true, .transports = transports[i / 2]};
        end_open(&user, &setup);
        kv_open(&kv, &user, 1, SLOTS, STRIDE);
        if (i % 2 == 0)
            assert_ok(end_link(&user, OWNER, other.port));
        else
            assert_ok(other_link(&other, USER, user.port));
        struct job job = {.peer = OWNER, .remote = remote, .count = SLOTS};
        assert_ok(job_run(&job, &user, &kv));
        assert_int_equal(other_ask(&other, "standard"), 0);
        end_close(&user);
        kv_free(&kv);
        assert_true(process_join(&other.process));
    }
}

// ---- a process without /proc ----

static int
serve_without_proc(struct talk *talk)
{
    // Another user than root may in a namespace of its own.
    if (unshare(geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER) != 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", "/proc", "tmpfs", 0, NULL) != 0)
        return 77;
    talk_say(talk, "hidden");
    return kit_serve(talk);
}

static void
test_without_proc_caches_are_allocated_registered_and_pulled(void **state)
{
    struct other other = {0};
    struct end user;
    struct kv kv;
    char line[LINE_BYTES];
    llm_link_info info = {.struct_size = sizeof(info)};
    struct end_setup setup = {.id = OWNER, .listens = true, .transports = "shm,tcp"};
    (void)state;
    process_start(&other.process, "procless");
    if (UNDER_TSAN || UNDER_ASAN || !talk_hear(&other.process.talk, line, PATIENCE_MS)) {
        print_message("/proc can't be hidden here\n");
        skip();
    }
    other_open(&other, &setup);
    setup = (struct end_setup){.id = USER, .transports = "shm,tcp"};
    end_open(&user, &setup);
    kv_open(&kv, &user, 1, SLOTS, STRIDE);
    assert_ok(end_link(&user, OWNER, other.port));
    assert_int_equal(end_state(&user, OWNER, &info), LLM_LINK_READY);
    if (strstr(info.reason, "/proc") == NULL)
        fail_msg("\"%s\" doesn't name /proc", info.reason);
    for (unsigned i = 0; i < 2; i++) {
        int64_t remote = other_cache(&other, i, i == 0, 1, SLOTS, STRIDE);
        other_fill(&other, i, 5 + i);
        struct job job = {.peer = OWNER, .remote = remote, .count = SLOTS};
        assert_ok(job_run(&job, &user, &kv));
        assert_true(kv_holds(&kv, 5 + i, SLOTS, 0));
    }
    end_close(&user);
    kv_free(&kv);
    assert_true(process_join(&other.process));
}

// ---- a main thread that has left ----

static void *
serve(void *arg)
{
    exit(kit_serve(arg));
}

static int
serve_without_main_thread(struct talk *talk)
{
    static struct talk copy;
    pthread_t thread;
    copy = *talk;
    if (pthread_create(&thread, NULL, serve, &copy) != 0)
        return 1;
    pthread_exit(NULL);
}

static char
state_of_main_thread(pid_t pid)
{
    char path[64];
    char text[256] = "";
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return '?';
    size_t length = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    const char *end = length > 0 ? strrchr(text, ')') : NULL;
    return end != NULL ? end[2] : '?';
}

static void
test_memory_is_read_of_a_process_whose_main_thread_has_left(void **state)
{
    struct other other = {0};
    struct end user;
    struct kv kv;
    llm_link_info info = {.struct_size = sizeof(info)};
    struct end_setup setup = {.id = OWNER, .listens = true, .transports = "shm"};
    (void)state;
    process_start(&other.process, "leaderless");
    other_open(&other, &setup);
    AWAIT(state_of_main_thread(other.process.pid) == 'Z');
    int64_t remote = other_cache(&other, 0, true, 1, SLOTS, STRIDE);
    other_fill(&other, 0, 5);
    setup = (struct end_setup){.id = USER, .transports = "shm"};
    end_open(&user, &setup);
    kv_open(&kv, &user, 1, SLOTS, STRIDE);
    assert_ok(end_link(&user, OWNER, other.port));
    assert_int_equal(end_state(&user, OWNER, &info), LLM_LINK_READY);
    // It says so where this end can't read the memory itself.
    if (strstr(info.reason, "registered") != NULL)
        fail_msg("%s", info.reason);
    struct job job = {.peer = OWNER, .remote = remote, .count = SLOTS};
    for (int i = 0; i < 100; i++)
        assert_ok(job_run(&job, &user, &kv));
    assert_true(kv_holds(&kv, 5, SLOTS, 0));
    end_close(&user);
    kv_free(&kv);
    assert_true(process_join(&other.process));
}

int
main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        KIT_TEST(test_a_pull_never_succeeds_with_the_next_programs_bytes),
        KIT_TEST(test_a_pull_fails_before_the_loop_knows_of_the_next_program),
        KIT_TEST(test_a_daemon_s_standard_descriptors_stay_free),
        KIT_TEST(test_without_proc_caches_are_allocated_registered_and_pulled),
        KIT_TEST(test_memory_is_read_of_a_process_whose_main_thread_has_left),
    };
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk)) {
        if (strcmp(role, "life") == 0)
            return live(&talk);
        if (strcmp(role, "procless") == 0)
            return serve_without_proc(&talk);
        if (strcmp(role, "daemon") == 0)
            return serve_as_daemon(&talk);
        return strcmp(role, "leaderless") == 0 ? serve_without_main_thread(&talk)
                                               : kit_serve(&talk);
    }
    transport = "shm";
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Forked children of a process with an instance: whatever they do, and however long they live, the
// parent and its peers notice nothing; and they hold nothing of a dead parent's.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "registered/kit.h"

enum { OWNER = 11, USER = 21, SLOTS = 4, STRIDE = 4096, FORKS = SCALED(100, 20) };

// ---- a parent, here, and its peer in another process ----

struct pair {
    struct end owner;
    struct kv of_owner;
    struct other user;
};

static void
pair_open(struct pair *pair)
{
    struct end_setup setup = {.id = OWNER, .listens = true};
    memset(pair, 0, sizeof(*pair));
    end_open(&pair->owner, &setup);
    kv_allocate(&pair->of_owner, &pair->owner, 1, SLOTS, STRIDE);
    kv_fill(&pair->of_owner, 5);
    setup = (struct end_setup){.id = USER};
    other_open(&pair->user, &setup);
    other_cache(&pair->user, 0, false, 1, SLOTS, STRIDE);
    assert_ok(other_link(&pair->user, OWNER, pair->owner.port));
}

static void
pair_close(struct pair *pair)
{
    assert_true(process_join(&pair->user.process));
    end_close(&pair->owner);
    kv_free(&pair->of_owner);
}

// What was linked works, and what wasn't can be linked.
static void
check_parent(struct pair *pair)
{
    struct other guest = {0};
    struct end_setup setup = {.id = USER + 1};
    struct job job = {.peer = OWNER, .remote = pair->of_owner.id, .count = SLOTS};
    other_fill(&pair->user, 0, 0);
    assert_ok(other_run(&pair->user, &job, 0));
    assert_true(other_holds(&pair->user, 0, 5, SLOTS, 0));
    other_open(&guest, &setup);
    other_cache(&guest, 0, false, 1, SLOTS, STRIDE);
    assert_ok(other_link(&guest, OWNER, pair->owner.port));
    assert_ok(other_run(&guest, &job, 0));
    assert_true(process_join(&guest.process));
    assert_int_equal(end_state(&pair->owner, USER, NULL), LLM_LINK_READY);
}

// The exit code of a child that does this; -1 if a signal ended it, or its time.
static int
in_child(void (*deed)(struct pair *pair), struct pair *pair)
{
    int status;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        // A child that hangs ends the test.
        alarm(PATIENCE_MS / 1000);
        deed(pair);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define must_be(condition)                                                                         \
    do {                                                                                           \
        if (!(condition))                                                                          \
            _exit(__LINE__ % 256);                                                                 \
    } while (0)

static void
call(struct pair *pair)
{
    char why[512] = "";
    size_t num_links;
    llm_option options[] = {{LLM_OPTION_DEVICE_ID, "0"}};
    must_be(llm_list_links(pair->owner.dd, NULL, 0, &num_links) == LLM_FAILED);
    llm_last_error(why, sizeof(why));
    must_be(strstr(why, "forked child") != NULL);
    must_be(llm_deallocate_cache(pair->owner.dd, pair->of_owner.id) == LLM_FAILED);
    must_be(llm_initialize(pair->owner.dd, options, 1) == LLM_FAILED);
}

static void
destroy(struct pair *pair)
{
    llm_destroy(pair->owner.dd);
}

// ... and begins anew.
static void
finalize(struct pair *pair)
{
    llm_option options[] = {{LLM_OPTION_DEVICE_ID, "0"},
                            {LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"}};
    size_t num_links = 7;
    llm_finalize(pair->owner.dd);
    must_be(llm_list_links(pair->owner.dd, NULL, 0, &num_links) == LLM_FAILED);
    must_be(llm_initialize(pair->owner.dd, options, 2) == LLM_SUCCESS);
    must_be(llm_list_links(pair->owner.dd, NULL, 0, &num_links) == LLM_SUCCESS && num_links == 0);
    llm_destroy(pair->owner.dd);
}

static llm_datadist *at_exit;

static void
destroy_at_exit(void)
{
    llm_destroy(at_exit);
}

static void
leave_by_exit(struct pair *pair)
{
    at_exit = pair->owner.dd;
    atexit(destroy_at_exit);
    exit(0);
}

static void
execute_another(struct pair *pair)
{
    (void)pair;
    execl("/bin/true", "true", (char *)NULL);
}

static void
open_one_of_its_own(struct pair *pair)
{
    struct end end;
    struct end_setup setup = {.id = OWNER + 1, .listens = true};
    (void)pair;
    must_be(end_try_open(&end, &setup) == LLM_SUCCESS);
    must_be(end_link(&end, USER, 1) != LLM_SUCCESS);
    llm_destroy(end.dd);
}

static void
test_children_leave_the_parent_alone(void **state)
{
    static void (*const deeds[])(struct pair * pair) = {
        call, destroy, leave_by_exit, execute_another, finalize, open_one_of_its_own,
    };
    // The thread sanitizer ends a child that starts a thread.
    size_t num_deeds = LENGTH(deeds) - (UNDER_TSAN ? 2 : 0);
    struct pair pair;
    (void)state;
    pair_open(&pair);
    for (size_t i = 0; i < num_deeds; i++) {
        int code = in_child(deeds[i], &pair);
        if (code != 0)
            fail_msg("child %zu ended with %d", i, code);
        check_parent(&pair);
    }
    pair_close(&pair);
}

// ---- forks beside calls ----

struct noise {
    struct pair *pair;
    atomic_bool stop;
};

static void *
make_noise(void *arg)
{
    struct noise *noise = arg;
    struct end *end = &noise->pair->owner;
    while (!atomic_load(&noise->stop)) {
        struct kv kv;
        size_t num_links;
        kv_allocate(&kv, end, 1, SLOTS, STRIDE);
        assert_ok(llm_list_links(end->dd, NULL, 0, &num_links));
        assert_status(llm_deallocate_cache(end->dd, 123456789), LLM_KV_CACHE_NOT_EXIST);
        assert_ok(llm_deallocate_cache(end->dd, kv.id));
        kv.id = 0;
        kv_free(&kv);
    }
    return NULL;
}

static void
test_a_child_ends_whatever_other_threads_were_doing(void **state)
{
    struct pair pair;
    struct noise noise = {.pair = &pair};
    pthread_t threads[3];
    (void)state;
    pair_open(&pair);
    for (size_t i = 0; i < LENGTH(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, make_noise, &noise), 0);
    for (int i = 0; i < FORKS; i++)
        assert_int_equal(in_child(i % 2 == 0 || UNDER_TSAN ? destroy : open_one_of_its_own, &pair),
                         0);
    atomic_store(&noise.stop, true);
    for (size_t i = 0; i < LENGTH(threads); i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    check_parent(&pair);
    pair_close(&pair);
}

// ---- a helper that lives longer ----

static bool
helper_obeys(struct talk *talk, const char *command, const char *words)
{
    if (strcmp(command, "helper") != 0)
        return false;
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        close(talk->fd);
        // Until the test lets go of the other end.
        while (read(atoi(words), &byte, 1) < 0 && errno == EINTR) {
        }
        _exit(0);
    }
    talk_say(talk, "%d", (int)pid);
    return true;
}

static bool
can_bind(uint16_t port)
{
    int one = 1;
    struct sockaddr_in name = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    bool bound = bind(fd, (struct sockaddr *)&name, sizeof(name)) == 0 && listen(fd, 1) == 0;
    close(fd);
    return bound;
}

static void
test_a_helper_holds_nothing_of_a_dead_parent(void **state)
{
    struct other parent = {0};
    struct end user;
    struct end_setup setup = {.id = OWNER, .listens = true, .liveness_ms = 600000};
    int ends[2];
    (void)state;
    assert_int_equal(pipe(ends), 0);
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    // Not where a process finds its end of the talk.
    int end = fcntl(ends[0], F_DUPFD, 10);
    other_open(&parent, &setup);
    setup = (struct end_setup){.id = USER, .liveness_ms = 600000};
    end_open(&user, &setup);
    assert_ok(end_link(&user, OWNER, parent.port));
    pid_t helper = (pid_t)other_ask(&parent, "helper %d", end);
    assert_true(helper > 0);
    process_kill(&parent.process);
    // At once, not after the liveness time.
    AWAIT(end_state(&user, OWNER, NULL) != LLM_LINK_READY);
    assert_true(can_bind(parent.port));
    assert_int_equal(kill(helper, 0), 0);
    close(end);
    close(ends[0]);
    close(ends[1]);
    end_close(&user);
}

int
main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        KIT_TEST(test_children_leave_the_parent_alone),
        KIT_TEST(test_a_child_ends_whatever_other_threads_were_doing),
        KIT_TEST(test_a_helper_holds_nothing_of_a_dead_parent),
    };
    kit_obeys = helper_obeys;
    return kit_main(argc, argv, tests, LENGTH(tests));
}

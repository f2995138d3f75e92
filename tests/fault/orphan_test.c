// An owner dies whose connections stay open: a process that it has forked, past the library's handlers,
// holds them.  Nobody believes what it left behind, in its own pid namespace or in another.
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "registered/kit.h"

enum { OWNER = 11, USER = 21, FROM = 0, TO = 1, TENSORS = 2, SLOTS = 8, STRIDE = 4096 };

// In the owner: the child keeps every descriptor.
static bool
obeys(struct talk *talk, const char *command, const char *words)
{
    (void)words;
    if (strcmp(command, "fork") != 0)
        return false;
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    while (pid == 0)
        (void)syscall(SYS_pause);
    talk_say(talk, "%ld", pid);
    return true;
}

static void
believe_nothing(struct other *owner, struct other *user)
{
    struct job job = {.peer = OWNER, .count = SLOTS};
    struct end_setup setup = {.id = USER, .transports = "shm", .liveness_ms = 500};
    other_open(user, &setup);
    other_cache(user, TO, false, TENSORS, SLOTS, STRIDE);
    job.remote = other_cache(owner, FROM, false, TENSORS, SLOTS, STRIDE);
    other_fill(owner, FROM, 5);
    assert_status(other_link(user, OWNER, owner->port), LLM_SUCCESS);
    assert_status(other_run(user, &job, TO), LLM_SUCCESS);
    pid_t child = (pid_t)other_ask(owner, "fork");
    process_kill(&owner->process);
    uint64_t start = now_ms();
    llm_status status = other_run(user, &job, TO);
    AWAIT(other_ask(user, "state %d", OWNER) == LLM_LINK_BROKEN);
    uint64_t took = now_ms() - start;
    kill(child, SIGKILL);
    assert_status(status, LLM_FAILED);
    assert_true(took < SCALED(450, 5000));
    assert_true(process_join(&user->process));
}

static void
open_owner(struct other *owner)
{
    struct end_setup setup = {
        .id = OWNER, .transports = "shm", .listens = true, .liveness_ms = 500};
    *owner = (struct other){0};
    other_open(owner, &setup);
}

static void
test_what_a_dead_owner_left_is_not_believed(void **state)
{
    struct other owner;
    struct other user = {0};
    (void)state;
    open_owner(&owner);
    believe_nothing(&owner, &user);
}

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

static bool
can_watch(void)
{
    int fds[2];
    int pidfd = -1;
    socklen_t bytes = sizeof(pidfd);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
        return false;
    bool can = getsockopt(fds[0], SOL_SOCKET, SO_PEERPIDFD, &pidfd, &bytes) == 0;
    close(fds[0]);
    close(fds[1]);
    if (can)
        close(pidfd);
    return can;
}

// Its number means nothing to the user.
static void
test_nor_in_another_pid_namespace(void **state)
{
    struct other owner;
    struct other user = {0};
    (void)state;
    open_owner(&owner);
    // The leak sanitizer can't look for leaks in a process whose children have a namespace.
    if (UNDER_ASAN || !can_watch() || unshare(CLONE_NEWPID) != 0) {
        print_message("no pid namespace here, a kernel before 6.5, or the address sanitizer\n");
        skip();
    }
    believe_nothing(&owner, &user);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_what_a_dead_owner_left_is_not_believed),
        KIT_TEST(test_nor_in_another_pid_namespace),
    };
    kit_obeys = obeys;
    return kit_main(argc, argv, tests, LENGTH(tests));
}

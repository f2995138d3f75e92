// Where the system gives no pidfd of a peer (a seccomp filter, an old kernel, another pid namespace) the
// link's own connection tells that it is dead.  The linker leads the calls here (CMakeLists.txt).
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "registered/kit.h"

enum {
    OWNER = 11,
    USER = 21,
    FROM = 0,
    TENSORS = 2,
    SLOTS = 8,
    STRIDE = 4096,
    PULLS = 100,
    LIVENESS_MS = 500,
    DEAD_MS = 3600000,
};

static _Atomic unsigned num_refused;
static atomic_bool held, fails;

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long
__wrap_syscall(long number, ...)
{
    va_list args;
    long a[6];
    va_start(args, number);
    for (unsigned i = 0; i < 6; i++)
        a[i] = va_arg(args, long);
    va_end(args);
    if (number != SYS_pidfd_open)
        return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    atomic_fetch_add(&num_refused, 1);
    errno = EPERM;
    return -1;
}

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

int __real_getsockopt(int fd, int level, int name, void *value, socklen_t *bytes);
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *bytes);
int
__wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *bytes)
{
    if (level != SOL_SOCKET || name != SO_PEERPIDFD)
        return __real_getsockopt(fd, level, name, value, bytes);
    errno = ENOPROTOOPT;
    return -1;
}

// The library's threads get no processor for a while: they notice nothing.
int __real_epoll_wait(int fd, struct epoll_event *events, int num_events, int timeout_ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int num_events, int timeout_ms);
int
__wrap_epoll_wait(int fd, struct epoll_event *events, int num_events, int timeout_ms)
{
    int count = __real_epoll_wait(fd, events, num_events, timeout_ms);
    while (atomic_load(&held))
        sched_yield();
    return count;
}

// A connection of this process fails here, and not at the peer.
ssize_t __real_recv(int fd, void *bytes, size_t num_bytes, int flags);
ssize_t __wrap_recv(int fd, void *bytes, size_t num_bytes, int flags);
ssize_t
__wrap_recv(int fd, void *bytes, size_t num_bytes, int flags)
{
    if (!atomic_load(&fails))
        return __real_recv(fd, bytes, num_bytes, flags);
    errno = EIO;
    return -1;
}

static void
open_both(struct other *owner, struct end *user, struct kv *to, struct job *job)
{
    struct end_setup setup = {.id = OWNER,
                              .transports = "shm",
                              .listens = true,
                              .liveness_ms = LIVENESS_MS,
                              .dead_ms = DEAD_MS};
    *owner = (struct other){0};
    other_open(owner, &setup);
    *job = (struct job){.peer = OWNER, .count = SLOTS};
    job->remote = other_cache(owner, FROM, false, TENSORS, SLOTS, STRIDE);
    other_fill(owner, FROM, 5);
    setup = (struct end_setup){
        .id = USER, .transports = "shm", .liveness_ms = LIVENESS_MS, .dead_ms = DEAD_MS};
    end_open(user, &setup);
    kv_allocate(to, user, TENSORS, SLOTS, STRIDE);
    assert_ok(end_link(user, OWNER, owner->port));
    assert_true(atomic_load(&num_refused) > 0);
    assert_ok(job_run(job, user, to));
    assert_true(kv_holds(to, 5, SLOTS, 0));
}

static void
close_user(struct end *user, struct kv *to)
{
    end_close(user);
    kv_free(to);
}

static void
test_a_dead_owner_is_not_believed(void **state)
{
    struct other owner;
    struct end user;
    struct kv to;
    struct job job;
    unsigned num_believed = 0;
    (void)state;
    open_both(&owner, &user, &to, &job);
    atomic_store(&held, true);
    process_kill(&owner.process);
    for (unsigned i = 0; i < PULLS; i++)
        num_believed += job_run(&job, &user, &to) != LLM_FAILED;
    atomic_store(&held, false);
    assert_int_equal(num_believed, 0);
    AWAIT(end_state(&user, OWNER, NULL) == LLM_LINK_BROKEN);
    close_user(&user, &to);
}

// A link that one end gives up ends at the other end too, though both hold its connection.
static void
test_the_end_of_a_link_is_heard(void **state)
{
    struct other owner;
    struct end user;
    struct kv to;
    struct job job;
    (void)state;
    open_both(&owner, &user, &to, &job);
    for (int force = 0; force < 2; force++) {
        assert_ok(end_unlink(&user, OWNER, owner.port, force != 0));
        AWAIT(other_ask(&owner, "state %d", USER) != LLM_LINK_READY);
        assert_ok(end_link(&user, OWNER, owner.port));
        assert_ok(job_run(&job, &user, &to));
    }
    atomic_store(&fails, true);
    AWAIT(end_state(&user, OWNER, NULL) == LLM_LINK_BROKEN);
    atomic_store(&fails, false);
    AWAIT(other_ask(&owner, "state %d", USER) == LLM_LINK_BROKEN);
    close_user(&user, &to);
    assert_true(process_join(&owner.process));
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_a_dead_owner_is_not_believed),
        KIT_TEST(test_the_end_of_a_link_is_heard),
    };
    return kit_main(argc, argv, tests, LENGTH(tests));
}

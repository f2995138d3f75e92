#include "fault/syscalls.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { ERRORS_MAX = 6 };

// X(name, does it talk to others?, may a signal interrupt it?, the other errors that it may have, the
// first ones best)
//
// Closing and unmapping don't fail in ways that a program can do anything about; what is written are
// eventfds, which fail when they are readable anyway; epoll_ctl fails when it adds, else it can't.
#define CALLS(X)                                                                                   \
    X(accept4, true, true, EMFILE, ENFILE, ENOMEM, ECONNABORTED)                                   \
    X(bind, false, false, EADDRINUSE, EADDRNOTAVAIL)                                               \
    X(close, true, false, 0)                                                                       \
    X(connect, true, true, ECONNREFUSED, EADDRNOTAVAIL, EAGAIN, ETIMEDOUT)                         \
    X(epoll_create1, false, false, EMFILE, ENOMEM)                                                 \
    X(epoll_ctl, false, false, ENOMEM, ENOSPC)                                                     \
    X(epoll_wait, false, true, 0)                                                                  \
    X(eventfd, false, false, EMFILE, ENOMEM)                                                       \
    X(fcntl, false, true, EMFILE, EPERM)                                                           \
    X(fstat, false, false, ENOMEM)                                                                 \
    X(fstatfs, false, true, ENOMEM)                                                                \
    X(ftruncate, false, true, ENOMEM, EPERM)                                                       \
    X(getpeername, false, false, ENOTCONN)                                                         \
    X(getrandom, false, true, 0)                                                                   \
    X(getsockname, false, false, ENOBUFS)                                                          \
    X(getsockopt, false, false, ENOBUFS)                                                           \
    X(listen, false, false, EADDRINUSE)                                                            \
    X(lseek, false, false, EINVAL)                                                                 \
    X(madvise, false, true, EINVAL)                                                                \
    X(memfd_create, false, false, EMFILE, ENOMEM)                                                  \
    X(mmap, false, false, ENOMEM)                                                                  \
    X(open, false, true, EMFILE, ENOENT, EACCES)                                                   \
    X(poll, false, true, ENOMEM)                                                                   \
    X(process_vm_readv, true, true, EPERM, ENOMEM, ENOSYS, ESRCH)                                  \
    X(pthread_create, false, false, EAGAIN)                                                        \
    X(read, false, true, EIO)                                                                      \
    X(recv, true, true, ECONNRESET, EAGAIN, ETIMEDOUT)                                             \
    X(recvmsg, true, true, ECONNRESET, EAGAIN, ENOMEM)                                             \
    X(send, true, true, ECONNRESET, EPIPE, EAGAIN)                                                 \
    X(sendmsg, true, true, EPIPE, EAGAIN, ENOBUFS)                                                 \
    X(setsockopt, false, false, ENOPROTOOPT)                                                       \
    X(shutdown, true, false, ENOTCONN)                                                             \
    X(socket, false, false, EMFILE, ENOBUFS)                                                       \
    X(syscall, false, true, ENOSYS, EPERM, EMFILE)                                                 \
    X(sysinfo, false, false, EFAULT)                                                               \
    X(write, false, true, 0)

enum call {
#define CALL_ENUM(name, ...) CALL_##name,
    CALLS(CALL_ENUM)
#undef CALL_ENUM
};

static const struct kind {
    const char *name;
    bool is_message;
    bool can_be_interrupted;
    int errors[ERRORS_MAX];
} kinds[] = {
#define CALL_KIND(name, is_message, can_be_interrupted, ...)                                       \
    {#name, is_message, can_be_interrupted, {__VA_ARGS__}},
    CALLS(CALL_KIND)
#undef CALL_KIND
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct syscalls_plan plan; // guarded by lock, as the others
static bool armed;
static uint64_t counted;
static int struck = -1; // enum call
static int struck_error;
static int exempt_fd = -1;

void
syscalls_arm(const struct syscalls_plan *wanted)
{
    pthread_mutex_lock(&lock);
    plan = *wanted;
    counted = 0;
    struck = -1;
    armed = true;
    pthread_mutex_unlock(&lock);
}

bool
syscalls_disarm(void)
{
    pthread_mutex_lock(&lock);
    armed = false;
    bool was_struck = struck >= 0;
    pthread_mutex_unlock(&lock);
    return was_struck;
}

static unsigned
num_errors(const struct kind *kind)
{
    unsigned count = 0;
    while (count < ERRORS_MAX && kind->errors[count] != 0)
        count++;
    return count;
}

const char *
syscalls_struck(int *ret_error, unsigned *ret_num_errors)
{
    pthread_mutex_lock(&lock);
    int call = struck;
    *ret_error = struck_error;
    pthread_mutex_unlock(&lock);
    *ret_num_errors = call < 0 ? 0 : plan.deed == SYSCALLS_INTERRUPT ? 1 : num_errors(&kinds[call]);
    return call < 0 ? "nothing" : kinds[call].name;
}

void
syscalls_exempt(int fd)
{
    exempt_fd = fd;
}

static bool
counts_in_plan(const struct kind *kind)
{
    if (plan.messages && !kind->is_message)
        return false;
    if (plan.deed == SYSCALLS_INTERRUPT)
        return kind->can_be_interrupted;
    return plan.deed != SYSCALLS_FAIL || num_errors(kind) > 0;
}

// Every other call of the thread, so that each works when it is made again.
static bool
is_next(void)
{
    static _Thread_local bool was_struck;
    was_struck = !was_struck;
    return was_struck;
}

// Is this the call?  If it must fail, with which error?
static bool
is_chosen(enum call call, enum syscalls_deed *ret_deed, int *ret_error)
{
    const struct kind *kind = &kinds[call];
    unsigned count = num_errors(kind);
    bool chosen = false;
    pthread_mutex_lock(&lock);
    if (armed && counts_in_plan(kind))
        chosen = plan.n == 0 ? is_next() : ++counted == plan.n;
    if (chosen) {
        struck = (int)call;
        struck_error = plan.deed == SYSCALLS_INTERRUPT
                           ? EINTR
                           : kind->errors[plan.variant < count ? plan.variant : 0];
        *ret_error = struck_error;
        *ret_deed = plan.deed;
    }
    pthread_mutex_unlock(&lock);
    return chosen;
}

// For a call that is about to be made.  True if it must fail, with errno set.
static bool
before(enum call call, bool counts, bool *ret_kill)
{
    enum syscalls_deed deed;
    int error;
    *ret_kill = false;
    if (!counts || !is_chosen(call, &deed, &error))
        return false;
    if (deed == SYSCALLS_KILL_BEFORE)
        raise(SIGKILL);
    if (deed == SYSCALLS_STOP_BEFORE)
        raise(SIGSTOP);
    *ret_kill = deed == SYSCALLS_KILL_AFTER;
    bool fails = deed == SYSCALLS_FAIL || deed == SYSCALLS_INTERRUPT;
    if (fails)
        errno = error;
    return fails;
}

// A function with these parameters, in the place of the system's; `counts`: which of its calls.
#define WRAP_AS(type, name, failure, counts, parameters, arguments)                                \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters                                                                  \
    {                                                                                              \
        bool kill_after;                                                                           \
        if (before(CALL_##name, (counts), &kill_after))                                            \
            return (failure);                                                                      \
        type result = __real_##name arguments;                                                     \
        if (kill_after)                                                                            \
            raise(SIGKILL);                                                                        \
        return result;                                                                             \
    }
#define WRAP(name, parameters, arguments) WRAP_AS(int, name, -1, true, parameters, arguments)
#define WRAP_IO(name, parameters, arguments)                                                       \
    WRAP_AS(ssize_t, name, -1, fd != exempt_fd, parameters, arguments)

WRAP(accept4, (int fd, struct sockaddr *name, socklen_t *bytes, int flags),
     (fd, name, bytes, flags))
WRAP(bind, (int fd, const struct sockaddr *name, socklen_t bytes), (fd, name, bytes))
WRAP(close, (int fd), (fd))
WRAP(connect, (int fd, const struct sockaddr *name, socklen_t bytes), (fd, name, bytes))
WRAP(epoll_create1, (int flags), (flags))
WRAP_AS(int, epoll_ctl, -1, op == EPOLL_CTL_ADD,
        (int epoll_fd, int op, int fd, struct epoll_event *event), (epoll_fd, op, fd, event))
WRAP(epoll_wait, (int fd, struct epoll_event *events, int num_events, int timeout),
     (fd, events, num_events, timeout))
WRAP(eventfd, (unsigned int value, int flags), (value, flags))
WRAP(fstat, (int fd, struct stat *info), (fd, info))
WRAP(fstatfs, (int fd, struct statfs *info), (fd, info))
WRAP(ftruncate, (int fd, off_t bytes), (fd, bytes))
WRAP_AS(ssize_t, getrandom, -1, true, (void *bytes, size_t size, unsigned int flags),
        (bytes, size, flags))
WRAP(getpeername, (int fd, struct sockaddr *name, socklen_t *bytes), (fd, name, bytes))
WRAP(getsockname, (int fd, struct sockaddr *name, socklen_t *bytes), (fd, name, bytes))
WRAP(getsockopt, (int fd, int level, int option, void *value, socklen_t *bytes),
     (fd, level, option, value, bytes))
WRAP(listen, (int fd, int backlog), (fd, backlog))
WRAP_AS(off_t, lseek, -1, true, (int fd, off_t offset, int whence), (fd, offset, whence))
WRAP(madvise, (void *base, size_t bytes, int advice), (base, bytes, advice))
WRAP(memfd_create, (const char *name, unsigned int flags), (name, flags))
WRAP_AS(void *, mmap, MAP_FAILED, true,
        (void *base, size_t bytes, int protection, int flags, int fd, off_t offset),
        (base, bytes, protection, flags, fd, offset))
WRAP_AS(int, poll, -1, fds->fd != exempt_fd, (struct pollfd * fds, nfds_t num_fds, int timeout),
        (fds, num_fds, timeout))
WRAP_AS(ssize_t, process_vm_readv, -1, true,
        (pid_t pid, const struct iovec *local, unsigned long num_local, const struct iovec *remote,
         unsigned long num_remote, unsigned long flags),
        (pid, local, num_local, remote, num_remote, flags))
WRAP_AS(int, pthread_create, errno, true,
        (pthread_t * thread, const pthread_attr_t *attributes, void *(*start)(void *), void *arg),
        (thread, attributes, start, arg))
WRAP_IO(read, (int fd, void *bytes, size_t size), (fd, bytes, size))
WRAP_IO(recv, (int fd, void *bytes, size_t size, int flags), (fd, bytes, size, flags))
WRAP_IO(recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags))
WRAP_IO(send, (int fd, const void *bytes, size_t size, int flags), (fd, bytes, size, flags))
WRAP_IO(sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
WRAP(setsockopt, (int fd, int level, int option, const void *value, socklen_t bytes),
     (fd, level, option, value, bytes))
WRAP(shutdown, (int fd, int how), (fd, how))
WRAP(socket, (int family, int type, int protocol), (family, type, protocol))
WRAP(sysinfo, (struct sysinfo * info), (info))
WRAP_IO(write, (int fd, const void *bytes, size_t size), (fd, bytes, size))

// The others take any arguments.

int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...);
int
__wrap_fcntl(int fd, int command, ...)
{
    va_list args;
    bool kill_after;
    va_start(args, command);
    long argument = va_arg(args, long);
    va_end(args);
    if (before(CALL_fcntl, true, &kill_after))
        return -1;
    return __real_fcntl(fd, command, argument);
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int
__wrap_open(const char *path, int flags, ...)
{
    va_list args;
    bool kill_after;
    va_start(args, flags);
    int mode = va_arg(args, int);
    va_end(args);
    if (before(CALL_open, true, &kill_after))
        return -1;
    return __real_open(path, flags, mode);
}

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long
__wrap_syscall(long number, ...)
{
    va_list args;
    long a[6];
    bool kill_after;
    va_start(args, number);
    for (unsigned i = 0; i < 6; i++)
        a[i] = va_arg(args, long);
    va_end(args);
    if (before(CALL_syscall, true, &kill_after))
        return -1;
    return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

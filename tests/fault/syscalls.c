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

// X(name, does it talk to others?, the errors that it may have, the first ones best)
//
// Closing and unmapping don't fail in ways that a program can do anything about; what is written are
// eventfds, which fail when they are readable anyway; epoll_ctl fails when it adds, else it can't.
#define CALLS(X)                                                                                   \
    X(accept4, true, EMFILE, ENFILE, ENOMEM, ECONNABORTED, EINTR)                                  \
    X(bind, false, EADDRINUSE, EADDRNOTAVAIL)                                                      \
    X(close, true, 0)                                                                              \
    X(connect, true, ECONNREFUSED, EADDRNOTAVAIL, EAGAIN, ETIMEDOUT)                               \
    X(epoll_create1, false, EMFILE, ENOMEM)                                                        \
    X(epoll_ctl, false, ENOMEM, ENOSPC)                                                            \
    X(epoll_wait, false, EINTR)                                                                    \
    X(eventfd, false, EMFILE, ENOMEM)                                                              \
    X(fcntl, false, EMFILE, EPERM)                                                                 \
    X(fstat, false, ENOMEM)                                                                        \
    X(fstatfs, false, ENOMEM)                                                                      \
    X(ftruncate, false, ENOMEM, EPERM)                                                             \
    X(getrandom, false, EINTR)                                                                     \
    X(getsockname, false, ENOBUFS)                                                                 \
    X(getsockopt, false, ENOBUFS)                                                                  \
    X(listen, false, EADDRINUSE)                                                                   \
    X(madvise, false, EINVAL)                                                                      \
    X(memfd_create, false, EMFILE, ENOMEM)                                                         \
    X(mmap, false, ENOMEM)                                                                         \
    X(open, false, EMFILE, ENOENT, EACCES)                                                         \
    X(poll, false, EINTR, ENOMEM)                                                                  \
    X(process_vm_readv, true, EPERM, ENOMEM, ENOSYS, ESRCH)                                        \
    X(pthread_create, false, EAGAIN)                                                               \
    X(read, false, EINTR, EIO)                                                                     \
    X(recv, true, ECONNRESET, EINTR, EAGAIN, ETIMEDOUT)                                            \
    X(recvmsg, true, ECONNRESET, EINTR, EAGAIN, ENOMEM)                                            \
    X(send, true, ECONNRESET, EPIPE, EINTR, EAGAIN)                                                \
    X(sendmsg, true, EPIPE, EINTR, EAGAIN, ENOBUFS)                                                \
    X(setsockopt, false, ENOPROTOOPT)                                                              \
    X(shutdown, true, ENOTCONN)                                                                    \
    X(socket, false, EMFILE, ENOBUFS)                                                              \
    X(syscall, false, ENOSYS, EPERM, EMFILE)                                                       \
    X(sysinfo, false, EFAULT)                                                                      \
    X(write, false, 0)

enum call {
#define CALL_ENUM(name, ...) CALL_##name,
    CALLS(CALL_ENUM)
#undef CALL_ENUM
};

static const struct kind {
    const char *name;
    bool is_message;
    int errors[ERRORS_MAX];
} kinds[] = {
#define CALL_KIND(name, is_message, ...) {#name, is_message, {__VA_ARGS__}},
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
    *ret_num_errors = call < 0 ? 0 : num_errors(&kinds[call]);
    return call < 0 ? "nothing" : kinds[call].name;
}

void
syscalls_exempt(int fd)
{
    exempt_fd = fd;
}

// Is this the call?  If it must fail, with which error?
static bool
is_chosen(enum call call, enum syscalls_deed *ret_deed, int *ret_error)
{
    const struct kind *kind = &kinds[call];
    unsigned count = num_errors(kind);
    bool chosen = false;
    pthread_mutex_lock(&lock);
    if (armed && (!plan.messages || kind->is_message) && (plan.deed != SYSCALLS_FAIL || count > 0))
        chosen = ++counted == plan.n;
    if (chosen) {
        struck = (int)call;
        struck_error = *ret_error = kind->errors[plan.variant < count ? plan.variant : 0];
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
    if (deed == SYSCALLS_FAIL)
        errno = error;
    return deed == SYSCALLS_FAIL;
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
WRAP(getsockname, (int fd, struct sockaddr *name, socklen_t *bytes), (fd, name, bytes))
WRAP(getsockopt, (int fd, int level, int option, void *value, socklen_t *bytes),
     (fd, level, option, value, bytes))
WRAP(listen, (int fd, int backlog), (fd, backlog))
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

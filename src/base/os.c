#include "base/os.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

uint64_t
lli_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t
lli_deadline_after_ms(uint64_t ms)
{
    uint64_t ns;
    uint64_t deadline;
    if (lli_mul_overflow(ms, 1000000, &ns) || lli_add_overflow(lli_now_ns(), ns, &deadline))
        return UINT64_MAX;
    return deadline;
}

int
lli_ms_until(uint64_t deadline_ns)
{
    uint64_t now = lli_now_ns();
    if (deadline_ns <= now)
        return 0;
    return (int)lli_min((deadline_ns - now + 999999) / 1000000, INT_MAX);
}

void
lli_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

bool
lli_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) {
        pthread_cond_wait(cond, lock);
        return true;
    }
    struct timespec when = {
        .tv_sec = (time_t)(deadline_ns / 1000000000u),
        .tv_nsec = (long)(deadline_ns % 1000000000u),
    };
    return pthread_cond_timedwait(cond, lock, &when) != ETIMEDOUT;
}

void
lli_event_signal(int fd)
{
    uint64_t one = 1;
    // Fails only when the counter is full, and then it is readable anyway.
    ssize_t written = LLI_RETRY(write(fd, &one, sizeof(one)));
    (void)written;
}

uint64_t
lli_random_u64(void)
{
    static _Atomic uint64_t count;
    uint64_t value = 0;
    ssize_t got = LLI_RETRY(getrandom(&value, sizeof(value), 0));
    if (got == (ssize_t)sizeof(value))
        return value;
    // Forbidden here: others than our own numbers differ by time and process at least.
    uint64_t z = lli_now_ns() + (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15) +
                 atomic_fetch_add(&count, 1) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static int
hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

bool
lli_boot_id(uint8_t ret_id[16])
{
    char text[64];
    int fd = LLI_RETRY(open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
    if (fd < 0)
        return false;
    ssize_t length = LLI_RETRY(read(fd, text, sizeof(text)));
    close(fd);

    size_t num_digits = 0;
    memset(ret_id, 0, 16);
    for (ssize_t i = 0; i < length && num_digits < 32; i++) {
        int digit = hex_digit(text[i]);
        if (digit < 0)
            continue;
        ret_id[num_digits / 2] = (uint8_t)(ret_id[num_digits / 2] << 4 | digit);
        num_digits++;
    }
    return num_digits == 32;
}

int
lli_thread_start(pthread_t *thread, const char *name, void *(*main)(void *), void *arg)
{
    // What a thread does itself stays open: the application's crash handlers run where the fault is.
    static const int own_doing[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    sigset_t others;
    sigset_t old;
    sigfillset(&others);
    for (size_t i = 0; i < LLI_COUNT(own_doing); i++)
        sigdelset(&others, own_doing[i]);
    pthread_sigmask(SIG_SETMASK, &others, &old);
    int error = pthread_create(thread, NULL, main, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error == 0)
        pthread_setname_np(*thread, name);
    return error;
}

uint64_t
lli_physical_memory_bytes(void)
{
    struct sysinfo info;
    if (sysinfo(&info) != 0)
        return UINT64_C(1) << 32;
    return (uint64_t)info.totalram * info.mem_unit;
}

int
lli_keep_fd(int fd)
{
    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    int higher = LLI_RETRY(fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
    int error = errno;
    close(fd);
    errno = error;
    return higher;
}

bool
lli_socket_name(int fd, struct lli_address *ret_name)
{
    socklen_t bytes = sizeof(*ret_name);
    memset(ret_name, 0, sizeof(*ret_name));
    if (getsockname(fd, &ret_name->any, &bytes) != 0)
        return false;
    lli_address_unmap(ret_name);
    return true;
}

int
lli_tcp_listen(const struct lli_address *address, uint16_t *ret_port)
{
    struct lli_address name;
    int one = 1;
    int zero = 0;
    int fd =
        lli_keep_fd(socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd < 0)
        return -1;
    // A restarted prompt gets its port back although old connections linger in TIME_WAIT.
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (address->any.sa_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
    if (bind(fd, &address->any, lli_address_bytes(address)) != 0 || listen(fd, 1024) != 0 ||
        !lli_socket_name(fd, &name)) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    *ret_port = lli_address_port(&name);
    return fd;
}

void
lli_tcp_tune(int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    // bbr paces; on fast local networks it reaches half of what cubic does.
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
}

void
lli_tcp_limit(int fd, unsigned limit_ms)
{
    int one = 1;
    int idle_s = (int)lli_max(limit_ms / 2000, 1);
    int interval_s = (int)lli_max(limit_ms / 8000, 1);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit_ms, sizeof(limit_ms));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
}

int
lli_tcp_connect_start(const struct lli_address *local, const struct lli_address *remote,
                      bool *ret_bound)
{
    int one = 1;
    *ret_bound = false;
    int fd =
        lli_keep_fd(socket(remote->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd < 0)
        return -1;
    lli_tcp_tune(fd);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (lli_address_port(local) == 0)
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
    *ret_bound = bind(fd, &local->any, lli_address_bytes(local)) == 0;
    if (!*ret_bound || (LLI_RETRY(connect(fd, &remote->any, lli_address_bytes(remote))) != 0 &&
                        errno != EINPROGRESS && errno != EALREADY && errno != EISCONN)) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

bool
lli_tcp_is_with_itself(int fd)
{
    struct lli_address local;
    struct lli_address remote = {0};
    socklen_t bytes = sizeof(remote);
    return lli_socket_name(fd, &local) && getpeername(fd, &remote.any, &bytes) == 0 &&
           lli_address_port(&local) == lli_address_port(&remote) &&
           lli_address_is_same_host(&local, &remote);
}

void
lli_tcp_abort(int fd)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(fd);
}

static socklen_t
abstract_name(struct sockaddr_un *address, const char *name)
{
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    size_t length = lli_min(strlen(name), sizeof(address->sun_path) - 1);
    memcpy(address->sun_path + 1, name, length);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

int
lli_unix_listen(char *ret_name, size_t name_size)
{
    struct sockaddr_un address;
    snprintf(ret_name, name_size, "llm-datadist-%016llx", (unsigned long long)lli_random_u64());
    socklen_t bytes = abstract_name(&address, ret_name);
    int fd = lli_keep_fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd < 0)
        return -1;
    if (bind(fd, (struct sockaddr *)&address, bytes) != 0 || listen(fd, 1024) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int
lli_unix_connect(const char *name)
{
    struct sockaddr_un address;
    socklen_t bytes = abstract_name(&address, name);
    int fd = lli_keep_fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd < 0)
        return -1;
    if (LLI_RETRY(connect(fd, (struct sockaddr *)&address, bytes)) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int
lli_accept(int listen_fd, struct lli_address *ret_peer)
{
    struct sockaddr_storage peer = {0};
    socklen_t bytes = sizeof(peer);
    int fd = lli_keep_fd(LLI_RETRY(
        accept4(listen_fd, (struct sockaddr *)&peer, &bytes, SOCK_CLOEXEC | SOCK_NONBLOCK)));
    if (fd < 0 || ret_peer == NULL || (peer.ss_family != AF_INET && peer.ss_family != AF_INET6))
        return fd;
    memcpy(ret_peer, &peer, sizeof(*ret_peer));
    lli_address_unmap(ret_peer);
    return fd;
}

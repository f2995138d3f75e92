#include "net/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

// What a narrow wire holds back is a fifth of a second's worth at 1 Mbit/s: behind a queue as long as the
// liveness time everybody looks dead.
enum { PACKET_BYTES = 2048, PACKETS_MAX = 2048, QUEUED_BYTES_MAX = 24 << 10 };

// ---- an end ----

static bool
own_namespace(void)
{
    // Whoever may not do the one may be allowed the other: there it is the superuser.
    return unshare(CLONE_NEWNET) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0;
}

static bool
bring_up(const char *name, const char *address)
{
    struct ifreq request = {0};
    struct sockaddr_in *in = (struct sockaddr_in *)(void *)&request.ifr_addr;
    bool ok = true;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    if (address != NULL) {
        in->sin_family = AF_INET;
        inet_pton(AF_INET, address, &in->sin_addr);
        ok = ioctl(fd, SIOCSIFADDR, &request) == 0;
        in->sin_addr.s_addr = htonl(0xffffff00);
        ok = ok && ioctl(fd, SIOCSIFNETMASK, &request) == 0;
    }
    ok = ok && ioctl(fd, SIOCGIFFLAGS, &request) == 0;
    request.ifr_flags |= IFF_UP | IFF_RUNNING;
    ok = ok && ioctl(fd, SIOCSIFFLAGS, &request) == 0;
    close(fd);
    return ok;
}

int
wire_enter(const char *address, char *why, size_t why_size)
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    snprintf(request.ifr_name, sizeof(request.ifr_name), "wire");
    if (!own_namespace()) {
        snprintf(why, why_size, "no network namespace: %s", strerror(errno));
        return -1;
    }
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) != 0) {
        snprintf(why, why_size, "/dev/net/tun: %s", strerror(errno));
    } else if (!bring_up("lo", NULL) || !bring_up("wire", address)) {
        snprintf(why, why_size, "can't bring the interface up: %s", strerror(errno));
    } else {
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

// ---- the wire ----

struct packet {
    uint64_t due_ns;
    size_t num_bytes;
    uint8_t bytes[PACKET_BYTES];
};

// From one end to the other.
struct line {
    int from;
    int to;
    struct packet packets[PACKETS_MAX]; // a ring
    size_t first;
    size_t num_packets;
    size_t queued_bytes;
    uint64_t free_ns; // when the wire has sent what it has
};

static struct line lines[2];
static pthread_t thread;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct wire_state state; // guarded by lock
static bool ends;               // guarded by lock
static int wake_fd = -1;
static uint64_t dice = 1;

static uint64_t
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

// The same in every run.
static bool
is_lost(const struct wire_state *now)
{
    dice = dice * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return now->cut || (dice >> 33) % 100 < now->loss_percent;
}

static void
take_packets(struct line *line, const struct wire_state *now)
{
    static uint8_t bytes[PACKET_BYTES];
    ssize_t got;
    while ((got = read(line->from, bytes, sizeof(bytes))) > 0) {
        bool is_full = line->num_packets == PACKETS_MAX ||
                       (now->kbit_per_s > 0 && line->queued_bytes > QUEUED_BYTES_MAX);
        if (is_full || is_lost(now))
            continue;
        struct packet *packet = &line->packets[(line->first + line->num_packets++) % PACKETS_MAX];
        memcpy(packet->bytes, bytes, (size_t)got);
        packet->num_bytes = (size_t)got;
        line->queued_bytes += packet->num_bytes;
        uint64_t start = now_ns();
        if (line->free_ns < start)
            line->free_ns = start;
        if (now->kbit_per_s > 0)
            line->free_ns += packet->num_bytes * 8 * 1000000u / now->kbit_per_s;
        packet->due_ns = line->free_ns + now->delay_ms * UINT64_C(1000000);
    }
}

// What is due arrives, or is on a wire that has been cut.  When the next one is due.
static uint64_t
deliver(struct line *line, const struct wire_state *now)
{
    while (line->num_packets > 0) {
        struct packet *packet = &line->packets[line->first];
        if (packet->due_ns > now_ns())
            return packet->due_ns;
        if (!now->cut) {
            ssize_t written = write(line->to, packet->bytes, packet->num_bytes);
            (void)written; // its end is gone, or has no room: lost
        }
        line->queued_bytes -= packet->num_bytes;
        line->first = (line->first + 1) % PACKETS_MAX;
        line->num_packets--;
    }
    return UINT64_MAX;
}

static void *
wire_main(void *arg)
{
    (void)arg;
    for (;;) {
        pthread_mutex_lock(&lock);
        struct wire_state now = state;
        bool over = ends;
        pthread_mutex_unlock(&lock);
        if (over)
            return NULL;
        uint64_t next = UINT64_MAX;
        for (unsigned i = 0; i < 2; i++) {
            take_packets(&lines[i], &now);
            uint64_t due = deliver(&lines[i], &now);
            next = due < next ? due : next;
        }
        struct pollfd fds[] = {{.fd = lines[0].from, .events = POLLIN},
                               {.fd = lines[1].from, .events = POLLIN},
                               {.fd = wake_fd, .events = POLLIN}};
        uint64_t at = now_ns();
        uint64_t wait = next == UINT64_MAX ? UINT64_C(1000000000) : next > at ? next - at : 0;
        struct timespec timeout = {.tv_sec = (time_t)(wait / 1000000000u),
                                   .tv_nsec = (long)(wait % 1000000000u)};
        (void)ppoll(fds, 3, &timeout, NULL);
        uint64_t count;
        while (read(wake_fd, &count, sizeof(count)) > 0) {
        }
    }
}

static void
wake(void)
{
    uint64_t one = 1;
    ssize_t written = write(wake_fd, &one, sizeof(one));
    (void)written;
}

bool
wire_open(pid_t pids[2], const int fds[2], char *why, size_t why_size)
{
    for (unsigned i = 0; i < 2; i++) {
        int pidfd = (int)syscall(SYS_pidfd_open, pids[i], 0);
        int fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, fds[i], 0);
        int error = errno;
        if (pidfd >= 0)
            close(pidfd);
        if (fd < 0) {
            snprintf(why, why_size, "pidfd_getfd: %s", strerror(error));
            return false;
        }
        lines[i].from = lines[1 - i].to = fd;
        lines[i].first = lines[i].num_packets = lines[i].queued_bytes = 0;
    }
    state = (struct wire_state){0};
    ends = false;
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_true(wake_fd >= 0);
    assert_int_equal(pthread_create(&thread, NULL, wire_main, NULL), 0);
    return true;
}

void
wire_close(void)
{
    if (wake_fd < 0)
        return;
    pthread_mutex_lock(&lock);
    ends = true;
    pthread_mutex_unlock(&lock);
    wake();
    pthread_join(thread, NULL);
    close(wake_fd);
    close(lines[0].from);
    close(lines[1].from);
    wake_fd = -1;
}

void
wire_set(const struct wire_state *wanted)
{
    pthread_mutex_lock(&lock);
    state = *wanted;
    pthread_mutex_unlock(&lock);
    wake();
}

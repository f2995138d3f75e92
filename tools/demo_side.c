// The side channel, over TCP.
#include "demo_side.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sockaddr_in
to_sockaddr(const demo_address *address)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(address->port)};
    inet_pton(AF_INET, address->ip, &sa.sin_addr);
    return sa;
}

static demo_address
from_sockaddr(const struct sockaddr_in *sa)
{
    demo_address address = {"", ntohs(sa->sin_port)};
    inet_ntop(AF_INET, &sa->sin_addr, address.ip, sizeof address.ip);
    return address;
}

static demo_address
name_of(int fd, int (*get_name)(int, struct sockaddr *, socklen_t *))
{
    struct sockaddr_in sa = {.sin_family = AF_INET};
    socklen_t size = sizeof sa;
    get_name(fd, (struct sockaddr *)&sa, &size);
    return from_sockaddr(&sa);
}

// Waits until fd can be read (or written); 0 ms once the deadline has passed.  false: it hasn't come.
static bool
wait_for(int fd, short events, double deadline)
{
    for (;;) {
        double left = deadline - demo_now_ms();
        struct pollfd p = {.fd = fd, .events = events};
        int n = poll(&p, 1, left < 0 ? 0 : (int)left + 1);
        if (n > 0 || (n == 0 && left <= 0))
            return n > 0;
        if (n < 0 && errno != EINTR)
            return false;
    }
}

int
demo_side_listen(demo_address *at, demo_error *error)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in sa = to_sockaddr(at);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(fd, (struct sockaddr *)&sa, sizeof sa) != 0 || listen(fd, 1) != 0) {
        demo_fail(error, "can't listen at %s:%u: %s", at->ip, (unsigned)at->port, strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    at->port = name_of(fd, getsockname).port;
    return fd;
}

static void
begin(demo_side *side, int fd)
{
    int on = 1;
    // Lines are small and waited for.
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    side->fd = fd;
    side->local = name_of(fd, getsockname);
    side->remote = name_of(fd, getpeername);
    side->input_length = 0;
}

bool
demo_side_accept(demo_side *side, int listener, uint32_t timeout_s, demo_error *error)
{
    double limit_ms = timeout_s == 0 ? 1e9 : timeout_s * 1e3;
    bool came = wait_for(listener, POLLIN, demo_now_ms() + limit_ms);
    int fd = came ? accept4(listener, NULL, NULL, SOCK_CLOEXEC) : -1;
    close(listener);
    if (!came)
        return demo_fail(error, "%s did not come within %u s", side->peer, (unsigned)timeout_s);
    if (fd < 0)
        return demo_fail(error, "can't accept %s: %s", side->peer, strerror(errno));
    begin(side, fd);
    return true;
}

// A connect that obeys the time limit.
static int
connect_within(int fd, const struct sockaddr_in *sa, uint32_t timeout_s)
{
    int result = 0;
    socklen_t size = sizeof result;
    if (connect(fd, (const struct sockaddr *)sa, sizeof *sa) == 0)
        return 0;
    if (errno != EINPROGRESS)
        return errno;
    if (!wait_for(fd, POLLOUT, demo_now_ms() + timeout_s * 1e3))
        return ETIMEDOUT;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &result, &size) == 0 ? result : errno;
}

bool
demo_side_connect(demo_side *side, const demo_address *to, demo_error *error)
{
    struct sockaddr_in sa = to_sockaddr(to);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int failure = fd < 0 ? errno : connect_within(fd, &sa, side->timeout_s);
    if (failure != 0) {
        if (fd >= 0)
            close(fd);
        return demo_fail(error,
                         "can't connect to %s:%u: %s (start 'llm-datadist demo prompt --listen "
                         "%s:%u' first)",
                         to->ip, (unsigned)to->port, strerror(failure), to->ip, (unsigned)to->port);
    }
    begin(side, fd);
    return true;
}

static bool
lost(const demo_side *side, const char *verb, demo_error *error)
{
    return demo_fail(error, "%s closed the connection before it said '%s': it has ended or died",
                     side->peer, verb);
}

static bool
send_all(demo_side *side, const char *bytes, size_t size)
{
    double deadline = demo_now_ms() + side->timeout_s * 1e3;
    while (size > 0) {
        ssize_t n = send(side->fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            bytes += n;
            size -= (size_t)n;
        } else if ((errno != EAGAIN && errno != EINTR) || !wait_for(side->fd, POLLOUT, deadline)) {
            return false;
        }
    }
    return true;
}

bool
demo_side_send(demo_side *side, demo_error *error, const char *format, ...)
{
    char line[DEMO_LINE_BYTES];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (length < 0 || (size_t)length >= sizeof line - 1)
        return demo_fail(error, "a message to %s is too long", side->peer);
    line[length] = '\n';
    if (!send_all(side, line, (size_t)length + 1))
        return demo_fail(error, "%s can't be reached any more: it has ended or died", side->peer);
    return true;
}

// Moves the first complete line of the input to side->line; false if there is none.
static bool
take_line(demo_side *side)
{
    char *newline = memchr(side->input, '\n', side->input_length);
    if (newline == NULL)
        return false;
    size_t length = (size_t)(newline - side->input);
    memcpy(side->line, side->input, length);
    side->line[length] = '\0';
    // Parts of it may end up on a terminal.
    for (size_t i = 0; i < length; i++)
        if (side->line[i] < ' ' || side->line[i] > '~')
            side->line[i] = '?';
    side->input_length -= length + 1;
    memmove(side->input, newline + 1, side->input_length);
    return true;
}

static bool
read_line(demo_side *side, const char *verb, demo_error *error)
{
    double deadline = demo_now_ms() + side->timeout_s * 1e3;
    while (!take_line(side)) {
        if (side->input_length == sizeof side->input)
            return demo_fail(error, "%s sent a line that is too long", side->peer);
        if (!wait_for(side->fd, POLLIN, deadline))
            return demo_fail(error, "%s did not say '%s' within %u s", side->peer, verb,
                             (unsigned)side->timeout_s);
        ssize_t n = recv(side->fd, side->input + side->input_length,
                         sizeof side->input - side->input_length, MSG_DONTWAIT);
        if (n > 0)
            side->input_length += (size_t)n;
        else if (n == 0 || (errno != EAGAIN && errno != EINTR))
            return lost(side, verb, error);
    }
    return true;
}

bool
demo_side_receive(demo_side *side, const char *verb, demo_error *error)
{
    size_t length = strlen(verb);
    if (!read_line(side, verb, error))
        return false;
    if (strncmp(side->line, "error ", 6) == 0)
        return demo_fail(error, "%s gave up: %.400s", side->peer, side->line + 6);
    char behind = strncmp(side->line, verb, length) == 0 ? side->line[length] : '?';
    if (behind != ' ' && behind != '\0')
        return demo_fail(error, "%s should have said '%s', but said \"%.100s\"", side->peer, verb,
                         side->line);
    return true;
}

void
demo_side_send_error(demo_side *side, const char *reason)
{
    demo_error ignored = {""};
    if (side->fd >= 0)
        demo_side_send(side, &ignored, "error %s", reason);
}

void
demo_side_close(demo_side *side)
{
    if (side->fd >= 0)
        close(side->fd);
    side->fd = -1;
}

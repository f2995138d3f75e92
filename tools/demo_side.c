// The side channel, over TCP.
#include "demo_side.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/os.h"

enum { LOOKUP_MS = 5000 };

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
demo_side_listen(struct lli_endpoint *at, demo_error *error)
{
    char text[LLI_ADDRESS_TEXT_BYTES], why[200] = "";
    struct lli_address found[LLI_LOOKUP_MAX];
    bool timed_out;
    int fd = -1;
    size_t num_found = lli_endpoint_resolve(at, lli_deadline_after_ms(LOOKUP_MS), found, &timed_out,
                                            why, sizeof why);
    for (size_t i = 0; i < num_found && fd < 0; i++)
        fd = lli_tcp_listen(&found[i], &at->port);
    if (fd < 0)
        demo_fail(error, "can't listen at %s: %s", lli_endpoint_format(at, text),
                  num_found > 0 ? strerror(errno) : why);
    return fd;
}

static void
begin(demo_side *side, int fd)
{
    char text[LLI_ADDRESS_TEXT_BYTES];
    struct lli_address peer = {0};
    socklen_t size = sizeof peer;
    int on = 1;
    // Lines are small and waited for.
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    side->fd = fd;
    getpeername(fd, &peer.any, &size);
    lli_address_unmap(&peer);
    snprintf(side->remote, sizeof side->remote, "%s", lli_address_format(&peer, text));
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

// A connect that obeys the time limit.  0, or why not.
static int
connect_within(const struct lli_address *to, double limit_ms, int *ret_fd)
{
    struct lli_address anywhere = {.any.sa_family = to->any.sa_family};
    bool bound;
    int failure = 0;
    socklen_t size = sizeof failure;
    int fd = lli_tcp_connect_start(&anywhere, to, &bound);
    if (fd < 0)
        return errno;
    if (!wait_for(fd, POLLOUT, demo_now_ms() + limit_ms))
        failure = ETIMEDOUT;
    else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &size) != 0)
        failure = errno;
    if (failure != 0)
        close(fd);
    else
        *ret_fd = fd;
    return failure;
}

bool
demo_side_connect(demo_side *side, const struct lli_endpoint *to, demo_error *error)
{
    char text[LLI_ADDRESS_TEXT_BYTES], why[200] = "";
    struct lli_address found[LLI_LOOKUP_MAX];
    bool timed_out;
    int failure = 0;
    int fd = -1;
    size_t num_found = lli_endpoint_resolve(to, lli_deadline_after_ms(1000 * side->timeout_s),
                                            found, &timed_out, why, sizeof why);
    for (size_t i = 0; i < num_found && fd < 0; i++)
        failure = connect_within(&found[i], side->timeout_s * 1e3 / (double)num_found, &fd);
    if (fd < 0) {
        lli_endpoint_format(to, text);
        return demo_fail(error,
                         "can't connect to %s: %s (start 'llm-datadist demo prompt --listen %s' "
                         "first)",
                         text, num_found > 0 ? strerror(failure) : why, text);
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

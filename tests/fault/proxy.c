#include "fault/proxy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

enum { PAIRS_MAX = 64, BUFFER_BYTES = 1 << 16 };

// One direction of a connection.
struct way {
    int from;
    int to;
    uint8_t bytes[BUFFER_BYTES];
    size_t num_bytes; // read and not yet passed on
    uint64_t passed;
    uint64_t held_until_ms;
    bool ended;
    bool drops;
    bool swallows; // all that comes is taken and lost, without a sign
};

struct pair {
    bool open;
    unsigned index;
    struct way ways[PROXY_DIRECTIONS];
};

static struct pair pairs[PAIRS_MAX];
static struct proxy_plan plan;
static unsigned num_conns;
static bool struck;
static uint64_t passed[PROXY_CONNS_MAX][PROXY_DIRECTIONS];

static struct sockaddr_in
loopback(uint16_t port)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return name;
}

static void
close_pair(struct pair *pair)
{
    close(pair->ways[0].from);
    close(pair->ways[0].to);
    pair->open = false;
}

static void
take_in(int listen_fd, uint16_t target_port)
{
    struct sockaddr_in name = loopback(target_port);
    int from = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
    int to = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;
    size_t i = 0;
    while (i < PAIRS_MAX && pairs[i].open)
        i++;
    if (i == PAIRS_MAX || connect(to, (struct sockaddr *)&name, sizeof(name)) != 0) {
        close(from);
        close(to);
        return;
    }
    setsockopt(from, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(to, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    struct pair *pair = &pairs[i];
    memset(pair, 0, sizeof(*pair));
    pair->open = true;
    pair->index = num_conns++;
    pair->ways[0].from = pair->ways[1].to = from;
    pair->ways[0].to = pair->ways[1].from = to;
}

static bool
is_planned(const struct pair *pair, unsigned direction)
{
    return plan.fault != PROXY_NONE && !struck && pair->index == plan.conn &&
           direction == plan.direction;
}

// Does to the bytes at hand what is planned; they begin at way->passed.  How many may go on.
static size_t
spoil(struct pair *pair, unsigned direction)
{
    struct way *way = &pair->ways[direction];
    if (!is_planned(pair, direction) || plan.offset >= way->passed + way->num_bytes)
        return way->num_bytes;
    size_t place = (size_t)(plan.offset - way->passed);
    // First what comes before.
    if (place > 0 && plan.fault != PROXY_FLIP)
        return place;
    struck = true;
    switch (plan.fault) {
    case PROXY_CUT:
        close_pair(pair);
        return 0;
    case PROXY_TRUNCATE:
        way->drops = true;
        shutdown(way->to, SHUT_WR);
        return 0;
    case PROXY_DELAY:
        way->held_until_ms = now_ms() + plan.delay_ms;
        return 0;
    default:
        way->bytes[place] ^= (uint8_t)(1u << plan.offset % 8);
        return way->num_bytes;
    }
}

static void
pass_on(struct pair *pair, unsigned direction)
{
    struct way *way = &pair->ways[direction];
    if (way->swallows)
        way->num_bytes = 0;
    while (pair->open && way->num_bytes > 0 && now_ms() >= way->held_until_ms) {
        size_t bytes = spoil(pair, direction);
        if (!pair->open || way->drops) {
            way->num_bytes = 0;
            return;
        }
        if (bytes == 0)
            return;
        ssize_t sent = send(way->to, way->bytes, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent <= 0) {
            // Gone: what it was told can't matter any more.
            if (errno != EAGAIN && errno != EINTR)
                way->num_bytes = 0;
            return;
        }
        way->num_bytes -= (size_t)sent;
        memmove(way->bytes, way->bytes + sent, way->num_bytes);
        way->passed += (uint64_t)sent;
        if (pair->index < PROXY_CONNS_MAX)
            passed[pair->index][direction] += (uint64_t)sent;
    }
    if (pair->open && way->num_bytes == 0 && way->ended)
        shutdown(way->to, SHUT_WR);
}

static void
take_some(struct pair *pair, unsigned direction)
{
    struct way *way = &pair->ways[direction];
    ssize_t got =
        recv(way->from, way->bytes + way->num_bytes, BUFFER_BYTES - way->num_bytes, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        way->ended = true;
    if (got > 0)
        way->num_bytes += (size_t)got;
}

// One round over all connections.  True if the test has said something.
static bool
run(int listen_fd, uint16_t target_port, const struct talk *talk)
{
    struct pollfd fds[2 + 2 * PAIRS_MAX] = {{.fd = talk->fd, .events = POLLIN},
                                            {.fd = listen_fd, .events = POLLIN}};
    bool waits = false;
    for (size_t i = 0; i < PAIRS_MAX; i++) {
        for (unsigned d = 0; d < PROXY_DIRECTIONS; d++) {
            struct way *way = &pairs[i].ways[d];
            bool reads = pairs[i].open && !way->ended && way->num_bytes < BUFFER_BYTES;
            fds[2 + 2 * i + d] = (struct pollfd){.fd = reads ? way->from : -1, .events = POLLIN};
            waits |= pairs[i].open && way->num_bytes > 0;
        }
    }
    (void)poll(fds, 2 + 2 * PAIRS_MAX, waits ? 2 : -1);
    if (fds[1].revents != 0)
        take_in(listen_fd, target_port);
    for (size_t i = 0; i < PAIRS_MAX; i++) {
        for (unsigned d = 0; d < PROXY_DIRECTIONS; d++) {
            if (pairs[i].open && fds[2 + 2 * i + d].fd >= 0 && fds[2 + 2 * i + d].revents != 0)
                take_some(&pairs[i], d);
            if (pairs[i].open)
                pass_on(&pairs[i], d);
        }
        if (pairs[i].open && pairs[i].ways[0].ended && pairs[i].ways[1].ended &&
            pairs[i].ways[0].num_bytes + pairs[i].ways[1].num_bytes == 0)
            close_pair(&pairs[i]);
    }
    return fds[0].revents != 0;
}

static void
swallow(unsigned to_listener, unsigned back)
{
    for (size_t i = 0; i < PAIRS_MAX; i++) {
        if (pairs[i].open && pairs[i].index > 0 && pairs[i].index != UINT32_MAX) {
            pairs[i].ways[0].swallows |= to_listener != 0;
            pairs[i].ways[1].swallows |= back != 0;
        }
    }
}

static void
answer(struct talk *talk, const char *line)
{
    unsigned fault;
    unsigned to_listener;
    unsigned back;
    if (sscanf(line, "swallow %u %u", &to_listener, &back) == 2) {
        swallow(to_listener, back);
        talk_say(talk, "0");
        return;
    }
    if (strcmp(line, "report") == 0) {
        talk_say(talk, "%d %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64,
                 struck, passed[0][0], passed[0][1], passed[1][0], passed[1][1], passed[2][0],
                 passed[2][1]);
        return;
    }
    assert_int_equal(sscanf(line, "plan %u %u %u %" SCNu64 " %u", &fault, &plan.conn,
                            &plan.direction, &plan.offset, &plan.delay_ms),
                     5);
    plan.fault = (enum proxy_fault)fault;
    // Connections from before don't count any more.
    for (size_t i = 0; i < PAIRS_MAX; i++)
        pairs[i].index = UINT32_MAX;
    num_conns = 0;
    struck = false;
    memset(passed, 0, sizeof(passed));
    talk_say(talk, "0");
}

int
proxy_serve(struct talk *talk)
{
    char line[LINE_BYTES];
    struct sockaddr_in name = loopback(0);
    socklen_t bytes = sizeof(name);
    int listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listen_fd, (struct sockaddr *)&name, sizeof(name)), 0);
    assert_int_equal(listen(listen_fd, 64), 0);
    assert_int_equal(getsockname(listen_fd, (struct sockaddr *)&name, &bytes), 0);
    if (!talk_hear(talk, line, -1))
        return 0;
    uint16_t target_port = (uint16_t)strtoul(line, NULL, 10);
    talk_say(talk, "%u", ntohs(name.sin_port));
    for (;;) {
        while (!run(listen_fd, target_port, talk)) {
        }
        if (!talk_hear(talk, line, -1))
            return 0;
        answer(talk, line);
    }
}

void
proxy_start(struct proxy *proxy, uint16_t target_port)
{
    char line[LINE_BYTES];
    process_start(&proxy->process, "proxy");
    process_ask(&proxy->process, line, "%u", target_port);
    proxy->port = (uint16_t)strtoul(line, NULL, 10);
}

void
proxy_plan(struct proxy *proxy, const struct proxy_plan *wanted)
{
    char line[LINE_BYTES];
    process_ask(&proxy->process, line, "plan %u %u %u %" PRIu64 " %u", wanted->fault, wanted->conn,
                wanted->direction, wanted->offset, wanted->delay_ms);
}

void
proxy_swallow(struct proxy *proxy, bool to_listener, bool back)
{
    char line[LINE_BYTES];
    process_ask(&proxy->process, line, "swallow %d %d", to_listener, back);
}

bool
proxy_report(struct proxy *proxy, uint64_t ret[PROXY_CONNS_MAX][PROXY_DIRECTIONS])
{
    char line[LINE_BYTES];
    unsigned was_struck;
    process_ask(&proxy->process, line, "report");
    assert_int_equal(
        sscanf(line, "%u %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64,
               &was_struck, &ret[0][0], &ret[0][1], &ret[1][0], &ret[1][1], &ret[2][0], &ret[2][1]),
        7);
    return was_struck != 0;
}

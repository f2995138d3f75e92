// A forwarder before every seat, which some links go through.  Now and then one of the connections that
// carry data loses all that comes from then on, one way or both, without a sign.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "multi/process.h"
#include "soak/board.h"
#include "transport/message.h"

enum { PAIRS_MAX = 256, BUFFER_BYTES = 1 << 16, RETRY_MS = 2, AGAIN_MS = 50 };
// Where the first message of a connection tells what it is for.
enum { PURPOSE_AT = LLI_MESSAGE_HEADER_BYTES + 24 };

// One direction of a connection.
struct way {
    int from;
    int to;
    uint8_t bytes[BUFFER_BYTES];
    size_t num_bytes; // read and not yet passed on
    bool ended;
    bool swallows;
};

struct pair {
    bool open;
    bool has_purpose;
    bool is_data;
    struct way ways[2]; // to the seat, and back
};

static struct pair pairs[PAIRS_MAX];
static int listen_fds[SEATS_MAX];

static struct sockaddr_in
loopback(unsigned port)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return name;
}

static bool
listen_for(unsigned seat)
{
    struct sockaddr_in name = loopback(0);
    socklen_t bytes = sizeof(name);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&name, bytes) != 0 || listen(fd, 64) != 0 ||
        getsockname(fd, (struct sockaddr *)&name, &bytes) != 0)
        return false;
    listen_fds[seat] = fd;
    atomic_store(&board->forward_ports[seat], ntohs(name.sin_port));
    return true;
}

static void
close_pair(struct pair *pair)
{
    close(pair->ways[0].from);
    close(pair->ways[0].to);
    pair->open = false;
}

static void
take_in(unsigned seat)
{
    struct sockaddr_in name = loopback(atomic_load(&board->seats[seat].port));
    int from = accept4(listen_fds[seat], NULL, NULL, SOCK_CLOEXEC);
    int to = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;
    size_t i = 0;
    while (i < PAIRS_MAX && pairs[i].open)
        i++;
    if (from < 0 || to < 0 || i == PAIRS_MAX || name.sin_port == 0 ||
        connect(to, (struct sockaddr *)&name, sizeof(name)) != 0) {
        close(from);
        close(to);
        return;
    }
    setsockopt(from, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(to, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    pairs[i].open = true;
    pairs[i].has_purpose = pairs[i].is_data = false;
    for (unsigned d = 0; d < 2; d++) {
        struct way *way = &pairs[i].ways[d];
        way->from = d == 0 ? from : to;
        way->to = d == 0 ? to : from;
        way->num_bytes = 0;
        way->ended = way->swallows = false;
    }
    count(COUNT_forwarded, 1);
}

// The first message stays here until it has told its purpose.
static bool
knows_purpose(struct pair *pair)
{
    const struct way *way = &pair->ways[0];
    if (!pair->has_purpose && way->num_bytes > PURPOSE_AT) {
        pair->has_purpose = true;
        pair->is_data = way->bytes[PURPOSE_AT] == LLI_PURPOSE_DATA;
    }
    return pair->has_purpose || way->ended;
}

static void
take_some(struct way *way)
{
    ssize_t got =
        recv(way->from, way->bytes + way->num_bytes, BUFFER_BYTES - way->num_bytes, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        way->ended = true;
    if (got > 0)
        way->num_bytes += (size_t)got;
}

static void
pass_on(struct way *way)
{
    if (way->swallows)
        way->num_bytes = 0;
    if (way->num_bytes > 0) {
        ssize_t sent = send(way->to, way->bytes, way->num_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            sent = (ssize_t)way->num_bytes; // nobody is there any more
        if (sent > 0) {
            way->num_bytes -= (size_t)sent;
            memmove(way->bytes, way->bytes + sent, way->num_bytes);
        }
    }
    if (way->num_bytes == 0 && way->ended)
        shutdown(way->to, SHUT_WR);
}

static void
serve(struct pair *pair, const struct pollfd waits[2])
{
    for (unsigned d = 0; d < 2; d++) {
        if (waits[d].fd >= 0 && waits[d].revents != 0)
            take_some(&pair->ways[d]);
        if (knows_purpose(pair))
            pass_on(&pair->ways[d]);
    }
    if (pair->ways[0].ended && pair->ways[1].ended &&
        pair->ways[0].num_bytes + pair->ways[1].num_bytes == 0)
        close_pair(pair);
}

// Until a connection has something, something could not go on, or it is time.
static void
run_once(uint64_t until_ms)
{
    static struct pollfd waits[SEATS_MAX + 2 * PAIRS_MAX];
    uint64_t now = soak_now_ms();
    int patience = until_ms > now ? (int)(until_ms - now) : 0;
    for (unsigned i = 0; i < SEATS_MAX; i++)
        waits[i] = (struct pollfd){.fd = listen_fds[i], .events = POLLIN};
    for (unsigned i = 0; i < 2 * PAIRS_MAX; i++) {
        const struct pair *pair = &pairs[i / 2];
        const struct way *way = &pair->ways[i % 2];
        bool reads = pair->open && !way->ended && way->num_bytes < BUFFER_BYTES;
        waits[SEATS_MAX + i] = (struct pollfd){.fd = reads ? way->from : -1, .events = POLLIN};
        if (pair->open && pair->has_purpose && way->num_bytes > 0 && patience > RETRY_MS)
            patience = RETRY_MS;
    }
    if (poll(waits, SEATS_MAX + 2 * PAIRS_MAX, patience) <= 0)
        memset(waits, 0, sizeof(waits));
    for (unsigned i = 0; i < PAIRS_MAX; i++) {
        if (pairs[i].open)
            serve(&pairs[i], &waits[SEATS_MAX + 2 * i]);
    }
    for (unsigned i = 0; i < SEATS_MAX; i++) {
        if (waits[i].revents != 0)
            take_in(i);
    }
}

// False: there is none.
static bool
swallow_one(uint64_t *dice)
{
    struct pair *chosen = NULL;
    uint64_t num_seen = 0;
    for (unsigned i = 0; i < PAIRS_MAX; i++) {
        struct pair *pair = &pairs[i];
        bool is_whole = !pair->ways[0].swallows && !pair->ways[1].swallows;
        if (pair->open && pair->is_data && is_whole && roll(dice, ++num_seen) == 0)
            chosen = pair;
    }
    if (chosen == NULL)
        return false;
    uint64_t ways = 1 + roll(dice, 3);
    chosen->ways[0].swallows = (ways & 1) != 0;
    chosen->ways[1].swallows = (ways & 2) != 0;
    count(COUNT_swallowed, 1);
    return true;
}

int
forwarder_run(void)
{
    uint64_t dice = mix(board->seed ^ mix(2000));
    for (unsigned i = 0; i < SEATS_MAX; i++) {
        if (!listen_for(i))
            return 1;
    }
    for (uint64_t wait_ms = 0;;) {
        uint64_t next_ms = soak_now_ms() + wait_ms;
        while (soak_now_ms() < next_ms)
            run_once(next_ms);
        wait_ms = swallow_one(&dice) ? 300 + roll(&dice, SCALED(1500, 4000)) : AGAIN_MS;
    }
}

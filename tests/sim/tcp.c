// TCP between simulated hosts: bytes arrive in order, when the network lets them.
//
// Within one direction of one connection nothing overtakes; connections overtake each other.  What is
// lost comes later.  A direction that is blocked delivers nothing until it is free again.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "sockets.h"

enum state { FRESH, LISTENING, CONNECTING, CONNECTED };
enum segment_kind { DATA, FIN, RST };

struct segment {
    struct segment *next;
    uint64_t arrival_ns;
    enum segment_kind kind;
    size_t bytes;
    uint8_t data[];
};

struct sim_tcp {
    struct sim_tcp *next;  // of all
    struct sim_file *file; // NULL: closed, or not yet accepted
    struct sim_process *process;
    int host;
    enum state state;
    struct sockaddr_in name;
    struct sockaddr_in remote;
    struct sim_tcp *peer;
    int error;
    bool gone;     // closed here: what arrives is answered with a reset
    bool vanished; // by power failure: without a word
    bool deaf;     // the way to this end has died, alone: nothing arrives, not even that it is read
    struct sim_deafness deafness; // since when
    uint64_t unread_until_ns;     // its process doesn't look at what arrives, until then
    bool got_fin;
    bool was_reset;
    bool shut_write;
    bool shut_read;

    // On the way to this end, then waiting to be read.
    struct segment *first, *last;
    uint64_t last_arrival_ns;
    uint8_t *ready;
    size_t ready_first, ready_bytes, ready_room;

    // On the way from this end, and not yet read.
    size_t window;
    size_t unread;
    size_t held_back; // read, but the news can't get through

    struct sim_tcp *first_waiting; // not yet accepted
    struct sim_tcp *next_waiting;
};

struct sim_net sim_net;

static struct sim_tcp *all;
static uint16_t next_port = 40000;

struct in_addr
sim_host_address(int host)
{
    return (struct in_addr){.s_addr = htonl(0x0a000001u + (uint32_t)host)};
}

static int
host_at(struct in_addr address)
{
    uint32_t host = ntohl(address.s_addr) - 0x0a000001u;
    return host < SIM_HOSTS_MAX ? (int)host : -1;
}

static uint64_t
delay(int from, int to)
{
    if (from == to)
        return sim_between(2 * SIM_US, 40 * SIM_US);
    uint64_t ns = sim_between(sim_net.delay_min_ns, sim_net.delay_max_ns);
    return sim_chance(sim_net.loss_one_in) ? ns + sim_between(200, 400) * SIM_MS : ns;
}

static struct sim_tcp *
new_tcp(struct sim_process *process)
{
    struct sim_tcp *tcp = calloc(1, sizeof(*tcp));
    tcp->process = process;
    tcp->host = process->host;
    tcp->window = sim_between(sim_net.window_min, sim_net.window_max);
    tcp->next = all;
    all = tcp;
    return tcp;
}

static void
drop_segments(struct sim_tcp *tcp)
{
    while (tcp->first != NULL) {
        struct segment *segment = tcp->first;
        tcp->first = segment->next;
        free(segment);
    }
    tcp->last = NULL;
}

void
sim_tcp_reset(void)
{
    while (all != NULL) {
        struct sim_tcp *tcp = all;
        all = tcp->next;
        drop_segments(tcp);
        free(tcp->ready);
        free(tcp);
    }
    next_port = 40000;
}

// ---- arriving ----

static void send_segment(struct sim_tcp *to, int from_host, enum segment_kind kind,
                         const uint8_t *data, size_t bytes);

static void
take_data(struct sim_tcp *to, const struct segment *segment)
{
    if (to->ready_first > 0) {
        memmove(to->ready, to->ready + to->ready_first, to->ready_bytes);
        to->ready_first = 0;
    }
    if (to->ready_bytes + segment->bytes > to->ready_room) {
        to->ready_room = 2 * to->ready_room + segment->bytes;
        to->ready = realloc(to->ready, to->ready_room);
    }
    memcpy(to->ready + to->ready_bytes, segment->data, segment->bytes);
    to->ready_bytes += segment->bytes;
}

static void
take_segment(struct sim_tcp *to, const struct segment *segment)
{
    if (sim_net.powered_off[to->host])
        return;
    if (to->gone || to->vanished) {
        if (segment->kind == DATA && to->peer != NULL && !to->peer->was_reset)
            send_segment(to->peer, to->host, RST, NULL, 0);
        return;
    }
    if (to->was_reset)
        return;
    switch (segment->kind) {
    case DATA:
        take_data(to, segment);
        break;
    case FIN:
        to->got_fin = true;
        break;
    case RST:
        to->was_reset = true;
        to->got_fin = true;
        to->error = ECONNRESET;
        break;
    }
    sim_file_changed(to->file);
}

static void
deliver(void *arg, uint64_t unused)
{
    struct sim_tcp *to = arg;
    (void)unused;
    int from_host = to->peer != NULL ? to->peer->host : to->host;
    while (to->first != NULL && to->first->arrival_ns <= sim.now_ns) {
        // It waits for sim_net_block to be lifted.
        if (sim_net.blocked[from_host][to->host] || to->deaf)
            return;
        struct segment *segment = to->first;
        to->first = segment->next;
        if (to->first == NULL)
            to->last = NULL;
        take_segment(to, segment);
        free(segment);
    }
}

static void
send_segment(struct sim_tcp *to, int from_host, enum segment_kind kind, const uint8_t *data,
             size_t bytes)
{
    struct segment *segment = malloc(sizeof(*segment) + bytes);
    uint64_t arrival_ns = sim.now_ns + delay(from_host, to->host);
    if (arrival_ns < to->last_arrival_ns)
        arrival_ns = to->last_arrival_ns;
    *segment = (struct segment){.arrival_ns = arrival_ns, .kind = kind, .bytes = bytes};
    if (bytes > 0)
        memcpy(segment->data, data, bytes);
    if (bytes > 0 && from_host != to->host && sim_chance(sim_net.flip_one_in)) {
        sim_trace("a bit is turned on the way from host %d to host %d", from_host, to->host);
        segment->data[sim_below(bytes)] ^= (uint8_t)(1u << sim_below(8));
    }
    if (to->last != NULL)
        to->last->next = segment;
    else
        to->first = segment;
    to->last = segment;
    to->last_arrival_ns = arrival_ns;
    sim_at(arrival_ns, deliver, to, 0);
}

// ---- faults ----

void
sim_net_block(int from, int to, bool blocked)
{
    if (sim_net.blocked[from][to] == blocked)
        return;
    sim_trace("from host %d to host %d everything %s", from, to,
              blocked ? "is lost" : "arrives again");
    sim_net.blocked[from][to] = blocked;
    sim_net.blocked_since[from][to] = sim.now_ns;
    if (blocked)
        return;
    for (struct sim_tcp *tcp = all; tcp != NULL; tcp = tcp->next) {
        if (tcp->peer == NULL)
            continue;
        // Retransmissions come some time after the way is free.
        if (tcp->host == to && tcp->peer->host == from && tcp->first != NULL) {
            uint64_t when_ns = sim.now_ns + sim_between(1, 200) * SIM_MS;
            for (struct segment *segment = tcp->first; segment != NULL; segment = segment->next) {
                if (segment->arrival_ns < when_ns)
                    segment->arrival_ns = when_ns;
            }
            if (tcp->last_arrival_ns < when_ns)
                tcp->last_arrival_ns = when_ns;
            sim_at(when_ns, deliver, tcp, 0);
        }
        if (tcp->host == to && tcp->peer->host == from && tcp->held_back > 0) {
            tcp->unread -= tcp->held_back;
            tcp->held_back = 0;
            sim_file_changed(tcp->file);
        }
    }
}

void
sim_net_power(int host, bool on)
{
    sim_trace("host %d %s", host, on ? "is powered on" : "loses power");
    sim_net.powered_off[host] = !on;
    if (on)
        sim_net.boots[host]++;
    for (struct sim_tcp *tcp = all; tcp != NULL && !on; tcp = tcp->next) {
        if (tcp->host == host)
            tcp->vanished = true;
    }
}

static struct sim_tcp *
some_connection(void)
{
    struct sim_tcp *chosen = NULL;
    size_t count = 0;
    for (struct sim_tcp *tcp = all; tcp != NULL; tcp = tcp->next) {
        if (tcp->state == CONNECTED && !tcp->gone && !tcp->was_reset && tcp->peer != NULL &&
            !tcp->peer->gone && tcp->host != tcp->peer->host && sim_below(++count) == 0)
            chosen = tcp;
    }
    return chosen;
}

static bool
is_open(const struct sim_tcp *tcp)
{
    return tcp->state == CONNECTED && !tcp->gone && !tcp->was_reset && !tcp->vanished &&
           tcp->file != NULL;
}

static void
is_read_again(void *arg, uint64_t unused)
{
    struct sim_tcp *tcp = arg;
    (void)unused;
    sim_file_changed(tcp->file);
}

void
sim_net_stop_reading(const struct sim_process *process, bool all_of_them, uint64_t until_ns)
{
    size_t count = 0;
    for (struct sim_tcp *tcp = all; tcp != NULL; tcp = tcp->next)
        count += tcp->process == process && is_open(tcp);
    size_t chosen = count > 0 ? sim_aside(count) : 0;
    for (struct sim_tcp *tcp = all; tcp != NULL; tcp = tcp->next) {
        if (tcp->process != process || !is_open(tcp) || (chosen-- != 0 && !all_of_them))
            continue;
        tcp->unread_until_ns = until_ns;
        if (until_ns != SIM_NEVER)
            sim_at(until_ns, is_read_again, tcp, 0);
    }
    if (count > 0)
        sim_trace("%s doesn't read %s for %s", process->name,
                  all_of_them ? "its connections" : "a connection",
                  until_ns == SIM_NEVER ? "good" : "a time");
}

// Both ends together.
static uint64_t
hindered_ns(const struct sim_tcp *tcp)
{
    return sim_process_hindered_ns(tcp->process) + sim_process_hindered_ns(tcp->peer->process);
}

bool
sim_net_deafen_one(void)
{
    struct sim_tcp *chosen = some_connection();
    if (chosen == NULL)
        return false;
    sim_trace("of a connection between hosts %d and %d one way dies", chosen->peer->host,
              chosen->host);
    chosen->deaf = true;
    chosen->deafness = (struct sim_deafness){sim.now_ns, hindered_ns(chosen)};
    return true;
}

struct sim_deafness
sim_net_deafness(const struct sim_process *from, const struct sim_process *to, uint16_t port)
{
    struct sim_deafness longest = {SIM_NEVER, 0};
    struct sim_deafness longest_but_oldest = longest;
    // The newest first.
    for (const struct sim_tcp *tcp = all; tcp != NULL; tcp = tcp->next) {
        if (tcp->process != from || tcp->remote.sin_port != htons(port) || tcp->peer == NULL ||
            tcp->peer->process != to || !is_open(tcp) || !is_open(tcp->peer))
            continue;
        longest_but_oldest = longest;
        const struct sim_tcp *deaf = tcp->deaf ? tcp : tcp->peer;
        if (deaf->deaf && deaf->deafness.since_ns < longest.since_ns)
            longest = (struct sim_deafness){deaf->deafness.since_ns,
                                            hindered_ns(tcp) - deaf->deafness.hindered_ns};
    }
    return longest_but_oldest;
}

bool
sim_net_reset_one(void)
{
    struct sim_tcp *chosen = some_connection();
    if (chosen == NULL)
        return false;
    sim_trace("a connection between hosts %d and %d is reset", chosen->host, chosen->peer->host);
    send_segment(chosen, chosen->peer->host, RST, NULL, 0);
    send_segment(chosen->peer, chosen->host, RST, NULL, 0);
    return true;
}

// ---- opening ----

int
sim_tcp_socket(bool nonblocking)
{
    struct sim_process *process = sim_current_process();
    struct sim_file *file = sim_file_new(SIM_FILE_TCP, process);
    file->nonblocking = nonblocking;
    file->tcp = new_tcp(process);
    file->tcp->file = file;
    return sim_fd_install(process, file);
}

static struct sim_tcp *
find_listener(struct in_addr address, uint16_t port)
{
    for (struct sim_tcp *tcp = all; tcp != NULL; tcp = tcp->next) {
        if (tcp->state == LISTENING && !tcp->gone && !tcp->vanished &&
            tcp->name.sin_addr.s_addr == address.s_addr && tcp->name.sin_port == port)
            return tcp;
    }
    return NULL;
}

int
sim_tcp_bind(struct sim_tcp *tcp, const struct sockaddr_in *address)
{
    tcp->name = *address;
    if (address->sin_addr.s_addr != htonl(INADDR_ANY) && host_at(address->sin_addr) != tcp->host) {
        errno = EADDRNOTAVAIL;
        return -1;
    }
    if (address->sin_port == 0)
        tcp->name.sin_port = htons(next_port++);
    return 0;
}

int
sim_tcp_listen(struct sim_tcp *tcp)
{
    if (find_listener(tcp->name.sin_addr, tcp->name.sin_port) != NULL) {
        errno = EADDRINUSE;
        return -1;
    }
    tcp->state = LISTENING;
    return 0;
}

static void
established(void *arg, uint64_t unused)
{
    struct sim_tcp *tcp = arg;
    (void)unused;
    if (sim_net.powered_off[tcp->host] || tcp->vanished)
        return;
    if (sim_net.blocked[tcp->peer->host][tcp->host]) {
        sim_at(sim.now_ns + 200 * SIM_MS, established, tcp, 0);
        return;
    }
    if (tcp->gone) {
        send_segment(tcp->peer, tcp->host, RST, NULL, 0);
        return;
    }
    tcp->state = CONNECTED;
    sim_file_changed(tcp->file);
}

static void
refused(void *arg, uint64_t error)
{
    struct sim_tcp *tcp = arg;
    if (tcp->gone)
        return;
    tcp->error = (int)error;
    tcp->was_reset = true;
    tcp->got_fin = true;
    sim_file_changed(tcp->file);
}

static void
arrive(void *arg, uint64_t attempt)
{
    struct sim_tcp *tcp = arg;
    int host = host_at(tcp->remote.sin_addr);
    if (tcp->gone || tcp->vanished)
        return;
    if (host < 0 || sim_net.blocked[tcp->host][host] || sim_net.powered_off[host]) {
        if (attempt == 5)
            refused(tcp, ETIMEDOUT);
        else
            sim_at(sim.now_ns + (SIM_MS << attempt) * 1000, arrive, tcp, attempt + 1);
        return;
    }
    struct sim_tcp *listener = find_listener(tcp->remote.sin_addr, tcp->remote.sin_port);
    uint64_t back_ns = sim.now_ns + delay(host, tcp->host);
    if (listener == NULL || (host != tcp->host && sim_chance(sim_net.refuse_one_in))) {
        sim_at(back_ns, refused, tcp, ECONNREFUSED);
        return;
    }
    struct sim_tcp *accepted = new_tcp(listener->process);
    accepted->state = CONNECTED;
    accepted->name = listener->name;
    accepted->remote = tcp->name;
    accepted->peer = tcp;
    tcp->peer = accepted;
    tcp->last_arrival_ns = back_ns;
    struct sim_tcp **last = &listener->first_waiting;
    while (*last != NULL)
        last = &(*last)->next_waiting;
    *last = accepted;
    sim_file_changed(listener->file);
    sim_at(back_ns, established, tcp, 0);
}

int
sim_tcp_connect(struct sim_tcp *tcp, const struct sockaddr_in *address)
{
    tcp->remote = *address;
    tcp->state = CONNECTING;
    if (tcp->name.sin_addr.s_addr == htonl(INADDR_ANY))
        tcp->name.sin_addr = sim_host_address(tcp->host);
    if (tcp->name.sin_port == 0)
        tcp->name.sin_port = htons(next_port++);
    tcp->name.sin_family = AF_INET;
    int host = host_at(address->sin_addr);
    sim_at(sim.now_ns + delay(tcp->host, host < 0 ? tcp->host : host), arrive, tcp, 0);
    errno = EINPROGRESS;
    return -1;
}

int
sim_tcp_accept(struct sim_tcp *listener, struct sockaddr_in *ret_peer)
{
    struct sim_tcp *tcp = listener->first_waiting;
    if (tcp == NULL) {
        errno = EAGAIN;
        return -1;
    }
    struct sim_file *file = sim_file_new(SIM_FILE_TCP, listener->process);
    file->nonblocking = true;
    int fd = sim_fd_install(listener->process, file);
    if (fd < 0)
        return -1;
    listener->first_waiting = tcp->next_waiting;
    tcp->next_waiting = NULL;
    file->tcp = tcp;
    tcp->file = file;
    *ret_peer = tcp->remote;
    return fd;
}

void
sim_tcp_name(const struct sim_tcp *tcp, bool remote, struct sockaddr_in *ret_name)
{
    *ret_name = remote ? tcp->remote : tcp->name;
    ret_name->sin_family = AF_INET;
}

// ---- closing ----

void
sim_tcp_close(struct sim_tcp *tcp)
{
    tcp->file = NULL;
    if (tcp->gone)
        return;
    tcp->gone = true;
    while (tcp->first_waiting != NULL) {
        struct sim_tcp *waiting = tcp->first_waiting;
        tcp->first_waiting = waiting->next_waiting;
        waiting->ready_bytes++; // ends with a reset
        sim_tcp_close(waiting);
    }
    if (tcp->vanished || tcp->state != CONNECTED || tcp->was_reset)
        return;
    if (tcp->ready_bytes > 0)
        send_segment(tcp->peer, tcp->host, RST, NULL, 0);
    else if (!tcp->shut_write)
        send_segment(tcp->peer, tcp->host, FIN, NULL, 0);
    tcp->ready_bytes = 0;
}

int
sim_tcp_shutdown(struct sim_tcp *tcp, int how)
{
    if (tcp->state != CONNECTED || tcp->was_reset) {
        errno = ENOTCONN;
        return -1;
    }
    if (how != SHUT_RD && !tcp->shut_write) {
        tcp->shut_write = true;
        send_segment(tcp->peer, tcp->host, FIN, NULL, 0);
    }
    if (how != SHUT_WR)
        tcp->shut_read = true;
    sim_file_changed(tcp->file);
    return 0;
}

int
sim_tcp_take_error(struct sim_tcp *tcp)
{
    int error = tcp->error;
    tcp->error = 0;
    return error;
}

// ---- sending and receiving ----

uint32_t
sim_tcp_events(const struct sim_tcp *tcp)
{
    uint32_t events = 0;
    if (tcp->state == LISTENING)
        return tcp->first_waiting != NULL ? EPOLLIN : 0;
    if (tcp->was_reset)
        return EPOLLIN | EPOLLOUT | EPOLLHUP | EPOLLRDHUP | (tcp->error != 0 ? EPOLLERR : 0);
    if (tcp->state != CONNECTED)
        return tcp->state == FRESH ? EPOLLOUT | EPOLLHUP : 0;
    bool is_read = sim.now_ns >= tcp->unread_until_ns;
    if (is_read && (tcp->ready_bytes > 0 || tcp->got_fin || tcp->shut_read))
        events |= EPOLLIN;
    if (is_read && (tcp->got_fin || tcp->shut_read))
        events |= EPOLLRDHUP;
    if ((tcp->got_fin || tcp->shut_read) && tcp->shut_write)
        events |= EPOLLHUP;
    // As the system does it: when a third of the room is free.
    if (tcp->unread * 3 <= tcp->window * 2)
        events |= EPOLLOUT;
    return events;
}

static size_t
gather(uint8_t *to, size_t room, const struct iovec *pieces, size_t num_pieces)
{
    size_t bytes = 0;
    for (size_t i = 0; i < num_pieces && bytes < room; i++) {
        size_t left = room - bytes;
        size_t some = pieces[i].iov_len < left ? pieces[i].iov_len : left;
        memcpy(to + bytes, pieces[i].iov_base, some);
        bytes += some;
    }
    return bytes;
}

ssize_t
sim_tcp_send(struct sim_tcp *tcp, const struct iovec *pieces, size_t num_pieces, int flags)
{
    if (tcp->was_reset || tcp->shut_write) {
        if ((flags & MSG_NOSIGNAL) == 0)
            sim_fail("SIGPIPE");
        errno = tcp->error != 0 ? sim_tcp_take_error(tcp) : EPIPE;
        return -1;
    }
    if (tcp->state != CONNECTED) {
        errno = tcp->state == CONNECTING ? EAGAIN : ENOTCONN;
        return -1;
    }
    size_t room = tcp->window > tcp->unread ? tcp->window - tcp->unread : 0;
    size_t wanted = 0;
    for (size_t i = 0; i < num_pieces; i++)
        wanted += pieces[i].iov_len;
    if (room == 0 && wanted > 0) {
        errno = EAGAIN;
        return -1;
    }
    size_t bytes = wanted < room ? wanted : room;
    uint8_t *data = malloc(bytes);
    gather(data, bytes, pieces, num_pieces);
    for (size_t done = 0; done < bytes;) {
        size_t some = 1 + (size_t)sim_below(bytes - done);
        send_segment(tcp->peer, tcp->host, DATA, data + done, some);
        done += some;
    }
    free(data);
    tcp->unread += bytes;
    return (ssize_t)bytes;
}

static void
window_opens(void *arg, uint64_t bytes)
{
    struct sim_tcp *sender = arg;
    if (sender->deaf)
        return;
    if (sim_net.blocked[sender->peer->host][sender->host]) {
        sender->held_back += bytes;
        return;
    }
    sender->unread -= bytes;
    sim_file_changed(sender->file);
}

static void
scatter(struct sim_tcp *tcp, size_t bytes, const struct iovec *pieces)
{
    for (size_t i = 0; bytes > 0; i++) {
        size_t some = pieces[i].iov_len < bytes ? pieces[i].iov_len : bytes;
        memcpy(pieces[i].iov_base, tcp->ready + tcp->ready_first, some);
        tcp->ready_first += some;
        tcp->ready_bytes -= some;
        bytes -= some;
    }
}

ssize_t
sim_tcp_peek(const struct sim_tcp *tcp)
{
    if (tcp->ready_bytes > 0)
        return 1;
    errno = EAGAIN;
    return -1;
}

ssize_t
sim_tcp_receive(struct sim_tcp *tcp, const struct iovec *pieces, size_t num_pieces)
{
    size_t bytes = 0;
    if (sim.now_ns < tcp->unread_until_ns && !tcp->was_reset) {
        errno = EAGAIN;
        return -1;
    }
    if (tcp->ready_bytes == 0) {
        if (tcp->error != 0) {
            errno = sim_tcp_take_error(tcp);
            return -1;
        }
        if (tcp->got_fin || tcp->shut_read)
            return 0;
        errno = EAGAIN;
        return -1;
    }
    for (size_t i = 0; i < num_pieces; i++)
        bytes += pieces[i].iov_len;
    if (bytes > tcp->ready_bytes)
        bytes = tcp->ready_bytes;
    if (bytes > 1 && sim_chance(8))
        bytes = 1 + (size_t)sim_below(bytes);
    scatter(tcp, bytes, pieces);
    if (tcp->peer != NULL)
        sim_at(sim.now_ns + delay(tcp->host, tcp->peer->host), window_opens, tcp->peer, bytes);
    return (ssize_t)bytes;
}

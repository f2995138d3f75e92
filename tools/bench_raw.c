// What the system's own ways between processes reach: process_vm_readv and plain TCP streams.
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PIECES_PER_CALL = 1024 };

bool
bench_pieces_init(struct bench_pieces *pieces, const struct bench_work *work,
                  uint64_t *const *blocks, const struct bench_memory *memory,
                  struct bench_error *error)
{
    pieces->count = 0;
    pieces->list = malloc(bench_work_blocks(work) * sizeof(*pieces->list));
    if (pieces->list == NULL)
        return bench_fail(error, "no memory for a list of %llu pieces",
                          (unsigned long long)bench_work_blocks(work));
    for (uint32_t p = 0; p < work->num_parts; p++) {
        const struct bench_part *part = &work->parts[p];
        for (uint32_t t = 0; t < part->num_tensors; t++) {
            for (uint64_t i = 0; i < part->num_blocks; i++)
                pieces->list[pieces->count++] = (struct iovec){
                    (void *)(memory->parts[p].tensors[t] + blocks[p][i] * part->block_bytes),
                    part->block_bytes};
        }
    }
    return true;
}

void
bench_pieces_fini(struct bench_pieces *pieces)
{
    free(pieces->list);
    *pieces = (struct bench_pieces){NULL, 0};
}

// Where in a list of pieces a move has got to.
struct cursor {
    const struct iovec *list;
    size_t count;
    size_t offset; // into list[0]
};

// What to pass to the next call: a stretch of the list itself, or the rest of a piece.
static struct cursor
next_call(const struct cursor *cursor, struct iovec *rest)
{
    if (cursor->offset == 0)
        return (struct cursor){
            cursor->list, cursor->count < PIECES_PER_CALL ? cursor->count : PIECES_PER_CALL, 0};
    *rest = (struct iovec){(uint8_t *)cursor->list->iov_base + cursor->offset,
                           cursor->list->iov_len - cursor->offset};
    return (struct cursor){rest, 1, 0};
}

static void
advance(struct cursor *cursor, size_t bytes)
{
    cursor->offset += bytes;
    while (cursor->count > 0 && cursor->offset >= cursor->list->iov_len) {
        cursor->offset -= cursor->list->iov_len;
        cursor->list++;
        cursor->count--;
    }
}

bool
bench_readv(int pid, const struct bench_pieces *src, const struct bench_pieces *dst,
            struct bench_error *error)
{
    struct cursor from = {src->list, src->count, 0};
    struct cursor to = {dst->list, dst->count, 0};
    while (to.count > 0) {
        struct iovec from_rest, to_rest;
        struct cursor remote = next_call(&from, &from_rest);
        struct cursor local = next_call(&to, &to_rest);
        ssize_t bytes =
            process_vm_readv(pid, local.list, local.count, remote.list, remote.count, 0);
        if (bytes <= 0)
            return bench_fail(error, "process_vm_readv: %s", strerror(errno));
        advance(&from, (size_t)bytes);
        advance(&to, (size_t)bytes);
    }
    return true;
}

// ---- streams ----

static int
stream_socket(void)
{
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    // The best there is on one host; where it is missing the system's default stays.
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
    return fd;
}

bool
bench_raw_listen(struct bench_raw *raw, uint16_t *ret_port, struct bench_error *error)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(at);
    raw->listener = stream_socket();
    if (raw->listener < 0 || bind(raw->listener, (struct sockaddr *)&at, sizeof(at)) != 0 ||
        listen(raw->listener, BENCH_CONNECTIONS_MAX) != 0 ||
        getsockname(raw->listener, (struct sockaddr *)&at, &size) != 0)
        return bench_fail(error, "can't listen for raw streams: %s", strerror(errno));
    *ret_port = ntohs(at.sin_port);
    return true;
}

bool
bench_raw_accept(struct bench_raw *raw, unsigned connections, struct bench_error *error)
{
    while (raw->num_fds < connections) {
        int fd = accept4(raw->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            return bench_fail(error, "can't accept a raw stream: %s", strerror(errno));
        raw->fds[raw->num_fds++] = fd;
    }
    return true;
}

bool
bench_raw_connect(struct bench_raw *raw, unsigned connections, uint16_t port,
                  struct bench_error *error)
{
    struct sockaddr_in to = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons(port),
    };
    while (raw->num_fds < connections) {
        int fd = stream_socket();
        if (fd >= 0)
            raw->fds[raw->num_fds++] = fd;
        if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0)
            return bench_fail(error, "can't connect a raw stream: %s", strerror(errno));
    }
    return true;
}

void
bench_raw_close(struct bench_raw *raw)
{
    for (unsigned i = 0; i < raw->num_fds; i++)
        close(raw->fds[i]);
    if (raw->listener >= 0)
        close(raw->listener);
    *raw = (struct bench_raw){.listener = -1};
}

// One connection's share.
struct share {
    pthread_t thread;
    int fd;
    bool send;
    struct cursor pieces;
    int error; // errno
};

static void *
move_share(void *arg)
{
    struct share *share = arg;
    while (share->pieces.count > 0) { // NOLINT: divide() gives every share its pieces
        struct iovec rest;
        struct cursor call = next_call(&share->pieces, &rest);
        struct msghdr message = {.msg_iov = (struct iovec *)call.list, .msg_iovlen = call.count};
        ssize_t bytes = share->send ? sendmsg(share->fd, &message, MSG_NOSIGNAL)
                                    : recvmsg(share->fd, &message, MSG_WAITALL);
        if (bytes <= 0) {
            share->error = bytes == 0 ? ECONNRESET : errno;
            break;
        }
        advance(&share->pieces, (size_t)bytes);
    }
    return NULL;
}

// Gives each connection about as many bytes; both ends come to the same shares.
static void
divide(struct share *shares, unsigned num_shares, const struct bench_pieces *pieces)
{
    uint64_t total = 0;
    uint64_t done = 0;
    size_t first = 0;
    for (size_t i = 0; i < pieces->count; i++)
        total += pieces->list[i].iov_len;
    for (unsigned k = 0; k < num_shares; k++) {
        size_t end = first;
        while (end < pieces->count && done < total / num_shares * (k + 1))
            done += pieces->list[end++].iov_len;
        if (k + 1 == num_shares)
            end = pieces->count;
        shares[k].pieces = (struct cursor){pieces->list + first, end - first, 0};
        first = end;
    }
}

bool
bench_raw_move(const struct bench_raw *raw, const struct bench_pieces *pieces, bool send,
               struct bench_error *error)
{
    struct share shares[BENCH_CONNECTIONS_MAX];
    unsigned started = 1;
    divide(shares, raw->num_fds, pieces);
    for (unsigned k = 0; k < raw->num_fds; k++) {
        shares[k].fd = raw->fds[k];
        shares[k].send = send;
        shares[k].error = 0;
    }
    while (started < raw->num_fds &&
           pthread_create(&shares[started].thread, NULL, move_share, &shares[started]) == 0)
        started++;
    if (started < raw->num_fds)
        shares[started].error = EAGAIN;
    else
        move_share(&shares[0]);
    for (unsigned k = 1; k < started; k++)
        pthread_join(shares[k].thread, NULL);
    for (unsigned k = 0; k < raw->num_fds; k++) {
        if (shares[k].error != 0)
            return bench_fail(error, "raw stream: %s", strerror(shares[k].error));
    }
    return true;
}

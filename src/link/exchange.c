#include "link/exchange.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/os.h"

enum { EXCHANGE_BYTES = LLI_REASON_BYTES + 64 };

union control_buffer {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(LLI_NUM_VIEW_FDS_MAX * sizeof(int))];
};

static bool
send_with_fds(int fd, const struct lli_writer *w, const int *fds, size_t num_fds)
{
    union control_buffer control;
    struct iovec piece = {.iov_base = w->bytes, .iov_len = w->size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (num_fds > 0) {
        memset(&control, 0, sizeof(control));
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(num_fds * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(num_fds * sizeof(int));
        memcpy(CMSG_DATA(rights), fds, num_fds * sizeof(int));
    }
    return LLI_RETRY(sendmsg(fd, &message, MSG_NOSIGNAL)) == (ssize_t)w->size;
}

static void
close_all(const int *fds, size_t num_fds)
{
    for (size_t i = 0; i < num_fds; i++)
        close(fds[i]);
}

// Reads one message.  Every descriptor that came is in ret_fds.  Bytes, or -1.
static ssize_t
receive_with_fds(int fd, void *bytes, size_t bytes_max, int ret_fds[LLI_NUM_VIEW_FDS_MAX],
                 size_t *ret_num_fds)
{
    union control_buffer control;
    struct iovec piece = {.iov_base = bytes, .iov_len = bytes_max};
    struct msghdr message = {
        .msg_iov = &piece,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    *ret_num_fds = 0;
    ssize_t received = LLI_RETRY(recvmsg(fd, &message, MSG_CMSG_CLOEXEC));
    if (received < 0)
        return -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c != NULL; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t num_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < num_fds; i++) {
            int received_fd;
            memcpy(&received_fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            if (*ret_num_fds < LLI_NUM_VIEW_FDS_MAX)
                ret_fds[(*ret_num_fds)++] = received_fd;
            else
                close(received_fd);
        }
    }
    if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || received == 0) {
        close_all(ret_fds, *ret_num_fds);
        *ret_num_fds = 0;
        return -1;
    }
    return received;
}

static size_t
own_fds(const struct lli_node *node, int fds[LLI_NUM_VIEW_FDS_MAX])
{
    size_t num_fds = 0;
    fds[num_fds++] = node->segment->fd;
    for (size_t i = 0; i < node->options->num_devices; i++)
        fds[num_fds++] = node->pools[i].fd;
    return num_fds;
}

// The process at the other end, if it runs as the same user.
static bool
is_same_user(int fd, pid_t *ret_pid)
{
    struct ucred credentials;
    socklen_t bytes = sizeof(credentials);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0 ||
        credentials.uid != geteuid())
        return false;
    *ret_pid = credentials.pid;
    return true;
}

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

void
lli_exchange_watch(int fd, struct lli_view *view)
{
    int pidfd = -1;
    socklen_t bytes = sizeof(pidfd);
    if (view->pidfd < 0 && getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &bytes) == 0)
        lli_view_watch(view, lli_keep_fd(pidfd));
}

static bool
wait_readable(int fd, uint64_t deadline_ns)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    return LLI_RETRY(poll(&wait, 1, lli_ms_until(deadline_ns))) > 0;
}

static struct lli_view *
receive_answer(int fd, const struct lli_node *node, const struct lli_identity *peer, pid_t pid,
               bool *ret_peer_can_read, char *why, size_t why_size)
{
    uint8_t bytes[EXCHANGE_BYTES];
    int fds[LLI_NUM_VIEW_FDS_MAX];
    size_t num_fds;
    struct lli_reader r;
    struct lli_outcome outcome;
    struct lli_view *view = NULL;
    ssize_t received = receive_with_fds(fd, bytes, sizeof(bytes), fds, &num_fds);
    lli_reader_init(&r, bytes, received > 0 ? (size_t)received : 0);
    if (!lli_outcome_read(&r, &outcome))
        snprintf(why, why_size, "the peer's answer about its memory can't be read");
    else if (outcome.status != LLM_SUCCESS)
        snprintf(why, why_size, "%s",
                 outcome.text[0] != '\0' ? outcome.text : "the peer refused and didn't say why");
    else
        view = lli_view_map(fds, num_fds, peer->incarnation, node->options->num_devices, pid, why,
                            why_size);
    *ret_peer_can_read = view != NULL && outcome.text[0] == '\0';
    if (view != NULL && !*ret_peer_can_read)
        snprintf(why, why_size, "%s", outcome.text);
    close_all(fds, num_fds);
    return view;
}

struct lli_view *
lli_exchange_connect(struct lli_node *node, const struct lli_identity *peer, uint64_t link_token,
                     uint64_t deadline_ns, bool *ret_peer_can_read, char *why, size_t why_size)
{
    pid_t pid = 0;
    uint8_t bytes[64];
    int fds[LLI_NUM_VIEW_FDS_MAX];
    struct lli_writer w;
    struct lli_view *view = NULL;
    int fd = lli_unix_connect(peer->unix_name);
    if (fd < 0) {
        snprintf(why, why_size, "its socket can't be reached: %s", strerror(errno));
        return NULL;
    }
    lli_writer_init(&w, bytes, sizeof(bytes));
    lli_write_u64(&w, link_token);
    lli_write_u64(&w, node->identity.incarnation);
    if (!is_same_user(fd, &pid))
        snprintf(why, why_size, "it belongs to another user");
    else if (!send_with_fds(fd, &w, fds, own_fds(node, fds)))
        snprintf(why, why_size, "can't send memory files: %s", strerror(errno));
    else if (!wait_readable(fd, deadline_ns))
        snprintf(why, why_size, "it didn't answer in time");
    else
        view = receive_answer(fd, node, peer, pid, ret_peer_can_read, why, why_size);
    if (view != NULL)
        lli_exchange_watch(fd, view);
    close(fd);
    return view;
}

bool
lli_exchange_receive(int fd, struct lli_exchange_offer *ret_offer, char *why, size_t why_size)
{
    uint8_t bytes[EXCHANGE_BYTES];
    struct lli_reader r;
    ssize_t received =
        receive_with_fds(fd, bytes, sizeof(bytes), ret_offer->fds, &ret_offer->num_fds);
    lli_reader_init(&r, bytes, received > 0 ? (size_t)received : 0);
    ret_offer->link_token = lli_read_u64(&r);
    ret_offer->incarnation = lli_read_u64(&r);
    ret_offer->pid = 0;
    if (r.failed || !is_same_user(fd, &ret_offer->pid)) {
        snprintf(why, why_size, r.failed ? "the offer can't be read" : "it is from another user");
        lli_exchange_offer_fini(ret_offer);
        return false;
    }
    return true;
}

void
lli_exchange_offer_fini(struct lli_exchange_offer *offer)
{
    close_all(offer->fds, offer->num_fds);
    offer->num_fds = 0;
}

void
lli_exchange_answer(struct lli_node *node, int fd, llm_status status, const char *text)
{
    uint8_t bytes[EXCHANGE_BYTES];
    int fds[LLI_NUM_VIEW_FDS_MAX];
    struct lli_writer w;
    struct lli_outcome outcome = {.status = status};
    snprintf(outcome.text, sizeof(outcome.text), "%s", text);
    lli_writer_init(&w, bytes, sizeof(bytes));
    lli_outcome_write(&w, &outcome);
    // If this fails the connector sees the socket close, and takes the next transport.
    (void)send_with_fds(fd, &w, fds, status == LLM_SUCCESS ? own_fds(node, fds) : 0);
}

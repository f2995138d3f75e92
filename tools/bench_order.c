// Starts the owner's process, gives it orders.
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

bool
bench_send_all(int fd, const void *bytes, size_t size)
{
    const uint8_t *from = bytes;
    while (size > 0) {
        ssize_t sent = send(fd, from, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        from += sent;
        size -= (size_t)sent;
    }
    return true;
}

bool
bench_receive_all(int fd, void *bytes, size_t size)
{
    uint8_t *to = bytes;
    while (size > 0) {
        ssize_t received = recv(fd, to, size, 0);
        if (received < 0 && errno == EINTR)
            continue;
        if (received <= 0)
            return false;
        to += received;
        size -= (size_t)received;
    }
    return true;
}

bool
bench_owner_start(struct bench_owner *owner, struct bench_error *error)
{
    int fds[2];
    char number[16];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return bench_fail(error, "socketpair: %s", strerror(errno));
    owner->pid = fork();
    if (owner->pid < 0) {
        close(fds[0]);
        close(fds[1]);
        return bench_fail(error, "fork: %s", strerror(errno));
    }
    if (owner->pid == 0) {
        fcntl(fds[1], F_SETFD, 0);
        snprintf(number, sizeof(number), "%d", fds[1]);
        execl("/proc/self/exe", "llm-datadist", "bench", "--owner-fd", number, (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    owner->fd = fds[0];
    return true;
}

void
bench_owner_stop(struct bench_owner *owner)
{
    if (owner->fd < 0)
        return;
    close(owner->fd);
    owner->fd = -1;
    waitpid(owner->pid, NULL, 0);
}

bool
bench_owner_order(struct bench_owner *owner, const struct bench_order *order, uint64_t *ret_value,
                  void *payload, size_t payload_bytes, struct bench_error *error)
{
    struct bench_answer answer;
    if (!bench_send_all(owner->fd, order, sizeof(*order)) ||
        !bench_receive_all(owner->fd, &answer, sizeof(answer)))
        return bench_fail(error, "the owner's process has ended");
    if (!answer.ok)
        return bench_fail(error, "owner: %.300s", answer.error.text);
    if (answer.payload_bytes != payload_bytes ||
        !bench_receive_all(owner->fd, payload, payload_bytes))
        return bench_fail(error, "the owner's answer has another length");
    if (ret_value != NULL)
        *ret_value = answer.value;
    return true;
}

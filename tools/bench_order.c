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

// Runs `program` with the arguments and, as the last one, the number of its end of a socket pair.
static bool
start(struct bench_owner *owner, const char *program, const char *const *args,
      struct bench_error *error)
{
    int fds[2];
    char number[16];
    const char *argv[8] = {NULL};
    size_t n = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return bench_fail(error, "socketpair: %s", strerror(errno));
    snprintf(number, sizeof(number), "%d", fds[1]);
    while (args[n] != NULL) {
        argv[n] = args[n];
        n++;
    }
    argv[n] = number;
    owner->pid = fork();
    if (owner->pid < 0) {
        close(fds[0]);
        close(fds[1]);
        return bench_fail(error, "fork: %s", strerror(errno));
    }
    if (owner->pid == 0) {
        fcntl(fds[1], F_SETFD, 0);
        execv(program, (char *const *)argv);
        _exit(127);
    }
    close(fds[1]);
    owner->fd = fds[0];
    return true;
}

bool
bench_owner_start(struct bench_owner *owner, struct bench_error *error)
{
    static const char *const args[] = {"llm-datadist", "bench", "--owner-fd", NULL};
    return start(owner, "/proc/self/exe", args, error);
}

bool
bench_ucx_exists(char path[4096])
{
    static const char name[] = "bench-ucx";
    ssize_t length = readlink("/proc/self/exe", path, 4096 - sizeof(name));
    while (length > 0 && path[length - 1] != '/')
        length--;
    memcpy(path + (length > 0 ? length : 0), name, sizeof(name));
    return access(path, X_OK) == 0;
}

bool
bench_ucx_start(struct bench_owner *ucx, struct bench_error *error)
{
    // UCX reads its environment before main: no handlers of signals, no words about these two.
    char path[4096];
    const char *const args[] = {"env", "UCX_HANDLE_ERRORS=none", "UCX_WARN_UNUSED_ENV_VARS=n", path,
                                NULL};
    if (!bench_ucx_exists(path))
        return bench_fail(error, "there is no %.250s", path);
    return start(ucx, "/usr/bin/env", args, error);
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

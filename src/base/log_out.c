// How not to block.  The descriptor is the application's, and shared with its parents and children:
// making it non-blocking would be felt by all of them.  So a pipe or a terminal is opened anew for
// each line, without blocking, under its name in /proc; a socket is asked per call; a file doesn't
// block.  Where /proc can't be had, what poll says of room must do.
#include "base/log_out.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_ulong num_lost;

static bool
has_room(void)
{
    struct pollfd wait = {.fd = STDERR_FILENO, .events = POLLOUT};
    return poll(&wait, 1, 0) == 1 && wait.revents == POLLOUT;
}

static bool
write_to_stream(const char *text, size_t bytes)
{
    // Nor is there room where nobody reads any more: writing would be answered with SIGPIPE.
    if (!has_room())
        return false;
    int fd = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd >= 0) {
        bool written = write(fd, text, bytes) > 0;
        close(fd);
        return written;
    }
    return write(STDERR_FILENO, text, bytes) > 0;
}

static bool
write_some(const char *text, size_t bytes)
{
    struct stat is;
    if (fstat(STDERR_FILENO, &is) != 0)
        return false;
    if (S_ISREG(is.st_mode))
        return write(STDERR_FILENO, text, bytes) > 0;
    if (S_ISSOCK(is.st_mode))
        return send(STDERR_FILENO, text, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) > 0;
    return write_to_stream(text, bytes);
}

static bool
tell_lost(unsigned long lost)
{
    char text[96];
    int bytes =
        snprintf(text, sizeof(text),
                 "llm_datadist warn log: %lu lines were lost: standard error was full\n", lost);
    return write_some(text, (size_t)bytes);
}

void
lli_log_out(const char *line, size_t bytes)
{
    int saved_errno = errno;
    unsigned long lost = atomic_exchange(&num_lost, 0);
    if ((lost > 0 && !tell_lost(lost)) || !write_some(line, bytes))
        atomic_fetch_add(&num_lost, lost + 1);
    errno = saved_errno;
}

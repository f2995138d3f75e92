#include "multi/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { PROCESSES_MAX = 32, CHILD_FD = 3 };

// By value: a test that fails leaves its stack behind, where the struct may have been.
static struct {
    pid_t pid; // 0: free
    int fd;
} running[PROCESSES_MAX];

uint64_t
now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

bool
process_role(int argc, char **argv, const char **ret_role, struct talk *ret_talk)
{
    static const char prefix[] = "--role=";
    signal(SIGPIPE, SIG_IGN);
    if (argc != 2 || strncmp(argv[1], prefix, sizeof(prefix) - 1) != 0)
        return false;
    *ret_role = argv[1] + sizeof(prefix) - 1;
    *ret_talk = (struct talk){.fd = CHILD_FD};
    // Not below this one's own children, nor memory files.
    fcntl(CHILD_FD, F_SETFD, FD_CLOEXEC);
    return true;
}

static void
become(const char *role, int fd, pid_t parent)
{
    char argument[64];
    // Were the test to die, it would have nobody left to end its processes.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // In a pid namespace of its own it doesn't see its parent.
    if (getppid() != parent && getppid() != 0)
        _exit(1);
    if (fd == CHILD_FD)
        fcntl(fd, F_SETFD, 0);
    else
        dup2(fd, CHILD_FD);
    snprintf(argument, sizeof(argument), "--role=%s", role);
    char *arguments[] = {(char *)(uintptr_t) "test", argument, NULL};
    execv("/proc/self/exe", arguments);
    _exit(127);
}

void
process_start(struct process *process, const char *role)
{
    int fds[2];
    size_t free_place = 0;
    pid_t parent = getpid();
    memset(process, 0, sizeof(*process));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    process->pid = fork();
    assert_true(process->pid >= 0);
    if (process->pid == 0)
        become(role, fds[1], parent);
    close(fds[1]);
    process->talk.fd = fds[0];
    while (free_place < PROCESSES_MAX && running[free_place].pid != 0)
        free_place++;
    assert_true(free_place < PROCESSES_MAX);
    running[free_place].pid = process->pid;
    running[free_place].fd = process->talk.fd;
}

static void
forget(struct process *process)
{
    for (size_t i = 0; i < PROCESSES_MAX; i++) {
        if (running[i].pid == process->pid)
            running[i].pid = 0;
    }
    close(process->talk.fd);
    process->talk.fd = -1;
    process->pid = 0;
}

static pid_t
wait_for(pid_t pid, int *ret_status, int options)
{
    pid_t waited;
    do {
        waited = waitpid(pid, ret_status, options);
    } while (waited < 0 && errno == EINTR);
    return waited;
}

void
process_kill(struct process *process)
{
    int status;
    // Not the whole group.
    assert_true(process->pid > 0);
    kill(process->pid, SIGKILL);
    wait_for(process->pid, &status, 0);
    forget(process);
}

void
process_stop(struct process *process)
{
    int status;
    kill(process->pid, SIGSTOP);
    assert_int_equal(wait_for(process->pid, &status, WUNTRACED), process->pid);
    assert_true(WIFSTOPPED(status));
}

void
process_continue(struct process *process)
{
    kill(process->pid, SIGCONT);
}

void
process_kill_all(void)
{
    for (size_t i = 0; i < PROCESSES_MAX; i++) {
        int status;
        if (running[i].pid == 0)
            continue;
        kill(running[i].pid, SIGKILL);
        wait_for(running[i].pid, &status, 0);
        close(running[i].fd);
        running[i].pid = 0;
    }
}

bool
process_join(struct process *process)
{
    char line[LINE_BYTES];
    int status = -1;
    // Its end closes the socket: that wait has a limit.
    shutdown(process->talk.fd, SHUT_WR);
    while (talk_hear(&process->talk, line, PATIENCE_MS)) {
    }
    wait_for(process->pid, &status, 0);
    forget(process);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void
talk_say(struct talk *talk, const char *format, ...)
{
    char line[LINE_BYTES];
    va_list args;
    va_start(args, format);
    int bytes = vsnprintf(line, sizeof(line) - 1, format, args);
    va_end(args);
    assert_true(bytes >= 0 && (size_t)bytes < sizeof(line) - 1);
    line[bytes++] = '\n';
    for (int sent = 0; sent < bytes;) {
        ssize_t now = send(talk->fd, line + sent, (size_t)(bytes - sent), MSG_NOSIGNAL);
        if (now < 0)
            return; // the end is seen when an answer is wanted
        sent += (int)now;
    }
}

static bool
take_line(struct talk *talk, char line[LINE_BYTES])
{
    char *end = memchr(talk->buffer, '\n', talk->num_buffered);
    if (end == NULL)
        return false;
    size_t bytes = (size_t)(end - talk->buffer);
    memcpy(line, talk->buffer, bytes);
    line[bytes] = '\0';
    talk->num_buffered -= bytes + 1;
    memmove(talk->buffer, end + 1, talk->num_buffered);
    return true;
}

bool
talk_hear(struct talk *talk, char line[LINE_BYTES], int timeout_ms)
{
    uint64_t deadline = now_ms() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms);
    while (!take_line(talk, line)) {
        uint64_t now = now_ms();
        struct pollfd wait = {.fd = talk->fd, .events = POLLIN};
        int result =
            poll(&wait, 1, timeout_ms < 0 ? -1 : (int)(deadline > now ? deadline - now : 0));
        if (result < 0 && errno == EINTR)
            continue;
        if (result == 0)
            fail_msg("no answer within %d ms", timeout_ms);
        ssize_t got = recv(talk->fd, talk->buffer + talk->num_buffered,
                           sizeof(talk->buffer) - talk->num_buffered, 0);
        if (got <= 0)
            return false;
        talk->num_buffered += (size_t)got;
    }
    return true;
}

void
process_ask(struct process *process, char answer[LINE_BYTES], const char *format, ...)
{
    char line[LINE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    talk_say(&process->talk, "%s", line);
    if (!talk_hear(&process->talk, answer, PATIENCE_MS))
        fail_msg("the process ended instead of answering \"%s\"", line);
}

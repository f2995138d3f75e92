// A part of the demo that runs as a process of its own.
#include "demo_child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_ARGUMENTS = 32 };

// In the child, between fork and exec.
__attribute__((noreturn)) static void
become(char *const *argv, pid_t parent, int report_fd)
{
    // No part outlives the main job, however that ends.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == parent) {
        fcntl(report_fd, F_SETFD, 0);
        execv("/proc/self/exe", argv);
    }
    _exit(127);
}

bool
demo_child_start(demo_child *child, const char *const *arguments, demo_error *error)
{
    char fd_text[16];
    const char *argv[MAX_ARGUMENTS + 5] = {"llm-datadist", "demo"};
    int ends[2], n = 2;
    if (pipe2(ends, O_CLOEXEC) != 0)
        return demo_fail(error, "can't make a pipe: %s", strerror(errno));
    while (*arguments != NULL && n < MAX_ARGUMENTS)
        argv[n++] = *arguments++;
    snprintf(fd_text, sizeof fd_text, "%d", ends[1]);
    argv[n++] = "--report-fd";
    argv[n++] = fd_text;
    fflush(stdout);
    pid_t parent = getpid();
    child->pid = fork();
    if (child->pid == 0)
        become((char *const *)argv, parent, ends[1]);
    close(ends[1]);
    child->fd = ends[0];
    if (child->pid > 0)
        return true;
    child->pid = 0;
    return demo_fail(error, "can't start a process: %s", strerror(errno));
}

// Takes the bytes of a KV cache from behind its line.  Returns how many; 0 if they aren't all here.
static size_t
take_kv(demo_child *c, const char *line, size_t line_bytes, demo_error *error)
{
    char name[16];
    uint64_t size;
    if (!demo_get_word(line, "name", name, sizeof name, error) ||
        !demo_get_u64(line, "size", 1u << 30, &size, error))
        return 0;
    if (c->input_length - line_bytes < size)
        return 0;
    demo_bytes *kv = strcmp(name, "prefill") == 0   ? &c->told.prefill
                     : strcmp(name, "arrived") == 0 ? &c->told.arrived
                                                    : &c->told.final;
    free(kv->data);
    kv->size = (size_t)size;
    kv->data = malloc(kv->size + 1);
    if (kv->data == NULL) {
        demo_fail(error, "out of memory for a KV cache of %zu bytes", kv->size);
        return 0;
    }
    memcpy(kv->data, c->input + line_bytes, kv->size);
    return line_bytes + kv->size;
}

static bool
take_fields(demo_told *told, const char *line, demo_error *e)
{
    uint64_t a = 0, b = 0;
    if (strncmp(line, "listening ", 10) == 0) {
        bool ok = demo_get_u64(line, "port", UINT16_MAX, &a, e);
        told->port = (uint16_t)a;
        return ok;
    }
    if (strncmp(line, "stage ", 6) == 0) {
        bool ok = demo_get_u64(line, "done", UINT32_MAX, &a, e) &&
                  demo_get_u64(line, "of", UINT32_MAX, &b, e);
        told->layers_done = (uint32_t)a;
        told->layers = (uint32_t)b;
        return ok;
    }
    if (strncmp(line, "link ", 5) == 0)
        return demo_get_word(line, "transport", told->transport, sizeof told->transport, e);
    if (strncmp(line, "first ", 6) == 0)
        return demo_get_u64(line, "us", UINT64_MAX, &told->first_us, e);
    if (strncmp(line, "moved ", 6) == 0)
        return demo_get_u64(line, "bytes", UINT64_MAX, &told->moved, e) &&
               demo_get_u64(line, "ns", UINT64_MAX, &told->moved_ns, e);
    if (strncmp(line, "tokens ", 7) == 0)
        return demo_get_bytes(line, "hex", told->tokens, sizeof told->tokens, &told->num_tokens, e);
    if (strncmp(line, "error ", 6) == 0) {
        snprintf(told->error, sizeof told->error, "%.600s", line + 6);
        return true;
    }
    told->done = strcmp(line, "done") == 0;
    return told->done || demo_fail(e, "it said \"%.100s\"", line);
}

// Takes one record.  Returns how many bytes it had; 0 if it isn't complete yet.
static size_t
take_record(demo_child *c, demo_error *error)
{
    char line[DEMO_LINE_BYTES];
    const char *newline = memchr(c->input, '\n', c->input_length);
    if (newline == NULL)
        return 0;
    size_t length = (size_t)(newline - c->input);
    if (length >= sizeof line) {
        demo_fail(error, "it said a line of %zu bytes", length);
        return 0;
    }
    memcpy(line, c->input, length);
    line[length] = '\0';
    if (strncmp(line, "kv ", 3) == 0)
        return take_kv(c, line, length + 1, error);
    return take_fields(&c->told, line, error) ? length + 1 : 0;
}

static void
take_records(demo_child *c)
{
    demo_error error = {""};
    for (size_t n = take_record(c, &error); n > 0; n = take_record(c, &error)) {
        c->input_length -= n;
        memmove(c->input, c->input + n, c->input_length);
    }
    if (error.text[0] != '\0') {
        c->spoilt = true;
        snprintf(c->told.error, sizeof c->told.error, "%s", error.text);
    }
}

static bool
make_room(demo_child *c)
{
    if (c->input_room - c->input_length >= 65536)
        return true;
    size_t room = 2 * c->input_room + 65536;
    char *input = realloc(c->input, room);
    if (input == NULL)
        return false;
    c->input = input;
    c->input_room = room;
    return true;
}

void
demo_child_read(demo_child *c)
{
    if (!make_room(c)) {
        c->spoilt = true;
        return;
    }
    ssize_t n = read(c->fd, c->input + c->input_length, c->input_room - c->input_length);
    if (n > 0) {
        c->input_length += (size_t)n;
        take_records(c);
    } else if (n == 0) {
        // Only its end closes the pipe, so this doesn't wait.
        waitpid(c->pid, &c->status, 0);
        c->pid = 0;
        close(c->fd);
        c->fd = -1;
    }
}

void
demo_child_close(demo_child *c)
{
    if (c->pid > 0) {
        kill(c->pid, SIGKILL);
        waitpid(c->pid, NULL, 0);
    }
    if (c->fd >= 0)
        close(c->fd);
    free(c->input);
    free(c->told.prefill.data);
    free(c->told.arrived.data);
    free(c->told.final.data);
    *c = (demo_child){.fd = -1};
}

bool
demo_child_was_killed(const demo_child *c)
{
    return c->fd < 0 && WIFSIGNALED(c->status);
}

bool
demo_child_failure(const demo_child *c, char *text, size_t size)
{
    if (c->name == NULL) // it was never started
        return false;
    if (demo_child_was_killed(c))
        snprintf(text, size, "%s was ended by signal %d (%s)", c->name, WTERMSIG(c->status),
                 strsignal(WTERMSIG(c->status)));
    else if (c->spoilt)
        snprintf(text, size, "%s can't be understood: %s", c->name, c->told.error);
    else if (c->told.error[0] != '\0')
        snprintf(text, size, "%s: %s", c->name, c->told.error);
    else if (c->fd < 0 && WEXITSTATUS(c->status) != 0)
        snprintf(text, size, "%s ended with exit status %d", c->name, WEXITSTATUS(c->status));
    else if (c->fd < 0 && !c->told.done)
        snprintf(text, size, "%s ended too early", c->name);
    else
        return false;
    return true;
}

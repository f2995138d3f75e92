// Descriptors, and the files behind them that are neither sockets nor epolls.
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "sim.h"

struct sim_file *
sim_file_new(enum sim_file_kind kind, struct sim_process *process)
{
    struct sim_file *file = calloc(1, sizeof(*file));
    file->kind = kind;
    file->references = 1;
    file->process = process;
    file->real_fd = -1;
    return file;
}

void
sim_file_put(struct sim_file *file)
{
    if (--file->references > 0)
        return;
    if (file->process != NULL)
        sim_epoll_forget(file->process, file);
    if (file->kind == SIM_FILE_MEMORY)
        close(file->real_fd);
    if (file->epoll != NULL)
        sim_epoll_free(file->epoll);
    if (file->tcp != NULL)
        sim_tcp_close(file->tcp);
    if (file->un != NULL)
        sim_unix_close(file->un);
    free(file);
}

int
sim_fd_install(struct sim_process *process, struct sim_file *file)
{
    for (size_t fd = 3; fd < process->num_fds_max; fd++) {
        if (process->fds[fd] == NULL) {
            process->fds[fd] = file;
            return (int)fd;
        }
    }
    sim_file_put(file);
    errno = EMFILE;
    return -1;
}

struct sim_file *
sim_fd_file(int fd)
{
    struct sim_process *process = sim_current_process();
    struct sim_file *file = fd >= 0 && fd < SIM_FDS_MAX ? process->fds[fd] : NULL;
    if (file == NULL) {
        // A program that uses descriptors it doesn't have may hit another thread's.
        sim_fail("%s uses descriptor %d, which is not open", process->name, fd);
        errno = EBADF;
    }
    return file;
}

void
sim_files_close_all(struct sim_process *process)
{
    for (size_t fd = 0; fd < SIM_FDS_MAX; fd++) {
        struct sim_file *file = process->fds[fd];
        process->fds[fd] = NULL;
        if (file != NULL)
            sim_file_put(file);
    }
}

size_t
sim_fds_count(const struct sim_process *process)
{
    size_t count = 0;
    for (size_t fd = 0; fd < SIM_FDS_MAX; fd++)
        count += process->fds[fd] != NULL;
    return count;
}

uint32_t
sim_file_events(const struct sim_file *file)
{
    switch (file->kind) {
    case SIM_FILE_EVENT:
        return EPOLLOUT | (file->counter > 0 ? EPOLLIN : 0);
    case SIM_FILE_PIDFD:
        return file->watched->alive ? 0 : EPOLLIN;
    case SIM_FILE_TCP:
        return sim_tcp_events(file->tcp);
    case SIM_FILE_UNIX:
        return sim_unix_events(file->un);
    default:
        return EPOLLIN | EPOLLOUT;
    }
}

// ---- opening ----

static int
open_text(const char *text)
{
    struct sim_process *process = sim_current_process();
    struct sim_file *file = sim_file_new(SIM_FILE_TEXT, process);
    snprintf(file->text, sizeof(file->text), "%s", text);
    file->text_bytes = strlen(file->text);
    return sim_fd_install(process, file);
}

static int
open_stat(int pid)
{
    char text[64];
    const struct sim_process *process = sim_process_by_pid(pid);
    if (process == NULL || !process->alive || process->host != sim_current_process()->host) {
        errno = ENOENT;
        return -1;
    }
    snprintf(text, sizeof(text), "%d (%s) %c 1 1 1", pid, process->name,
             process->stopped ? 'T' : 'S');
    return open_text(text);
}

static int
open_again(int fd)
{
    char path[64];
    struct sim_process *process = sim_current_process();
    struct sim_file *old = sim_fd_file(fd);
    if (old == NULL || old->kind != SIM_FILE_MEMORY) {
        errno = ENOENT;
        return -1;
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", old->real_fd);
    struct sim_file *file = sim_file_new(SIM_FILE_MEMORY, NULL);
    file->real_fd = open(path, O_RDONLY | O_CLOEXEC);
    return sim_fd_install(process, file);
}

SIM_CALL(int, open, const char *path, int flags, ...)
{
    struct sim_process *process = sim_current_process();
    int number;
    char after;
    char text[64];
    (void)flags;
    sim_point();
    if (sim_interrupted())
        return -1;
    if (strcmp(path, "/dev/null") == 0)
        return sim_fd_install(process, sim_file_new(SIM_FILE_NULL, process));
    if (strcmp(path, "/proc/sys/kernel/random/boot_id") == 0) {
        snprintf(text, sizeof(text), "%08x-0000-4000-8000-%012llx\n", process->host,
                 (unsigned long long)sim_net.boots[process->host]);
        return open_text(text);
    }
    if (sscanf(path, "/proc/self/fd/%d%c", &number, &after) == 1)
        return open_again(number);
    if (sscanf(path, "/proc/%d/sta%c", &number, &after) == 2)
        return open_stat(number);
    // A machine without control groups.
    if (strcmp(path, "/proc/self/cgroup") == 0 || strcmp(path, "/proc/self/mountinfo") == 0) {
        errno = ENOENT;
        return -1;
    }
    sim_fail("open of %s, which the simulation doesn't know", path);
    errno = ENOENT;
    return -1;
}

SIM_CALL(int, memfd_create, const char *name, unsigned flags)
{
    struct sim_process *process = sim_current_process();
    sim_point();
    struct sim_file *file = sim_file_new(SIM_FILE_MEMORY, NULL);
    file->real_fd = memfd_create(name, flags);
    return sim_fd_install(process, file);
}

SIM_CALL(int, eventfd, unsigned count, int flags)
{
    struct sim_process *process = sim_current_process();
    sim_point();
    struct sim_file *file = sim_file_new(SIM_FILE_EVENT, process);
    file->counter = count;
    file->nonblocking = (flags & EFD_NONBLOCK) != 0;
    return sim_fd_install(process, file);
}

SIM_CALL(int, close, int fd)
{
    struct sim_process *process = sim_current_process();
    struct sim_file *file = sim_fd_file(fd);
    if (file == NULL)
        return -1;
    process->fds[fd] = NULL;
    sim_file_put(file);
    sim_point();
    return 0;
}

SIM_CALL(int, fcntl, int fd, int command, ...)
{
    va_list args;
    va_start(args, command);
    int argument = va_arg(args, int);
    va_end(args);
    struct sim_file *file = sim_fd_file(fd);
    if (file == NULL)
        return -1;
    switch (command) {
    case F_DUPFD:
    case F_DUPFD_CLOEXEC:
        file->references++;
        return sim_fd_install(sim_current_process(), file);
    case F_ADD_SEALS:
    case F_GET_SEALS:
        return fcntl(file->real_fd, command, argument);
    case F_GETFD:
    case F_SETFD:
        return 0;
    default:
        sim_fail("fcntl %d, which the simulation doesn't know", command);
        errno = EINVAL;
        return -1;
    }
}

SIM_CALL(int, ftruncate, int fd, off_t bytes)
{
    if (sim_interrupted())
        return -1;
    struct sim_file *file = sim_fd_file(fd);
    return file == NULL ? -1 : ftruncate(file->real_fd, bytes);
}

SIM_CALL(int, fstat, int fd, struct stat *ret_info)
{
    struct sim_file *file = sim_fd_file(fd);
    return file == NULL ? -1 : fstat(file->real_fd, ret_info);
}

// Where memory has been written, or the end of it.
SIM_CALL(off_t, lseek, int fd, off_t offset, int whence)
{
    sim_point();
    struct sim_file *file = sim_fd_file(fd);
    if (file == NULL)
        return -1;
    if (file->kind != SIM_FILE_MEMORY || whence != SEEK_DATA) {
        sim_fail("lseek of something else than memory");
        return -1;
    }
    return lseek(file->real_fd, offset, whence);
}

SIM_CALL(int, fstatfs, int fd, struct statfs *ret_info)
{
    struct sim_file *file = sim_fd_file(fd);
    return file == NULL ? -1 : fstatfs(file->real_fd, ret_info);
}

// ---- reading and writing ----

SIM_CALL(ssize_t, read, int fd, void *bytes, size_t num_bytes)
{
    sim_point();
    if (sim_interrupted())
        return -1;
    struct sim_file *file = sim_fd_file(fd);
    if (file == NULL)
        return -1;
    if (file->kind == SIM_FILE_TEXT) {
        size_t got = num_bytes < file->text_bytes ? num_bytes : file->text_bytes;
        memcpy(bytes, file->text, got);
        file->text_bytes = 0;
        return (ssize_t)got;
    }
    if (file->kind != SIM_FILE_EVENT || num_bytes != sizeof(file->counter)) {
        sim_fail("read of something that can't be read");
        return -1;
    }
    if (file->counter == 0) {
        errno = EAGAIN;
        return -1;
    }
    memcpy(bytes, &file->counter, sizeof(file->counter));
    file->counter = 0;
    return sizeof(file->counter);
}

SIM_CALL(ssize_t, write, int fd, const void *bytes, size_t num_bytes)
{
    uint64_t count;
    struct sim_file *file = sim_fd_file(fd);
    if (sim_interrupted())
        return -1;
    if (file == NULL)
        return -1;
    if (file->kind != SIM_FILE_EVENT || num_bytes != sizeof(count)) {
        sim_fail("write to something that can't be written");
        return -1;
    }
    memcpy(&count, bytes, sizeof(count));
    file->counter += count;
    sim_file_changed(file);
    sim_point();
    return sizeof(count);
}

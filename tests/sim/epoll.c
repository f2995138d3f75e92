// Waiting for files: epoll, level-triggered, and poll.
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "sim.h"

struct entry {
    int fd;
    const struct sim_file *file;
    struct epoll_event event;
    uint32_t told; // with EPOLLET: what has been reported since it was last asked for
};

struct sim_epoll {
    struct sim_epoll *next; // of the process
    struct sim_process *process;
    struct entry entries[SIM_FDS_MAX];
    size_t num_entries;
};

void
sim_epoll_free(struct sim_epoll *epoll)
{
    struct sim_epoll **place = &epoll->process->epolls;
    while (*place != epoll)
        place = &(*place)->next;
    *place = epoll->next;
    free(epoll);
}

static struct entry *
find_entry(struct sim_epoll *epoll, int fd, const struct sim_file *file)
{
    for (size_t i = 0; i < epoll->num_entries; i++) {
        if (epoll->entries[i].file == file && (fd < 0 || epoll->entries[i].fd == fd))
            return &epoll->entries[i];
    }
    return NULL;
}

static void
remove_entry(struct sim_epoll *epoll, struct entry *entry)
{
    *entry = epoll->entries[--epoll->num_entries];
}

void
sim_epoll_forget(struct sim_process *process, const struct sim_file *file)
{
    for (struct sim_epoll *epoll = process->epolls; epoll != NULL; epoll = epoll->next) {
        for (struct entry *entry; (entry = find_entry(epoll, -1, file)) != NULL;)
            remove_entry(epoll, entry);
    }
}

void
sim_file_changed(const struct sim_file *file)
{
    if (file == NULL || file->process == NULL)
        return;
    sim_wake_all(file);
    for (struct sim_epoll *epoll = file->process->epolls; epoll != NULL; epoll = epoll->next) {
        if (find_entry(epoll, -1, file) != NULL)
            sim_wake_all(epoll);
    }
}

SIM_CALL(int, epoll_create1, int flags)
{
    struct sim_process *process = sim_current_process();
    (void)flags;
    sim_point();
    struct sim_file *file = sim_file_new(SIM_FILE_EPOLL, process);
    struct sim_epoll *epoll = calloc(1, sizeof(*epoll));
    epoll->process = process;
    epoll->next = process->epolls;
    process->epolls = epoll;
    file->epoll = epoll;
    return sim_fd_install(process, file);
}

SIM_CALL(int, epoll_ctl, int epoll_fd, int operation, int fd, struct epoll_event *event)
{
    struct sim_file *of = sim_fd_file(epoll_fd);
    struct sim_file *file = of != NULL ? sim_fd_file(fd) : NULL;
    if (file == NULL || of->epoll == NULL)
        return -1;
    struct sim_epoll *epoll = of->epoll;
    struct entry *entry = find_entry(epoll, fd, file);
    if (event != NULL && (event->events & (EPOLLONESHOT | EPOLLEXCLUSIVE)) != 0)
        sim_fail("epoll is asked for something that the simulation doesn't know");
    if ((operation == EPOLL_CTL_ADD) == (entry != NULL)) {
        errno = entry != NULL ? EEXIST : ENOENT;
        return -1;
    }
    if (operation == EPOLL_CTL_ADD && epoll->num_entries < SIM_FDS_MAX)
        epoll->entries[epoll->num_entries++] = (struct entry){fd, file, *event, 0};
    else if (operation == EPOLL_CTL_MOD)
        *entry = (struct entry){fd, file, *event, 0};
    else if (operation == EPOLL_CTL_DEL)
        remove_entry(epoll, entry);
    sim_wake_all(epoll);
    sim_point();
    return 0;
}

static int
collect(struct sim_epoll *epoll, struct epoll_event *ret_events, int num_events_max)
{
    int count = 0;
    size_t first = epoll->num_entries > 0 ? sim_below(epoll->num_entries) : 0;
    for (size_t i = 0; i < epoll->num_entries && count < num_events_max; i++) {
        struct entry *entry = &epoll->entries[(first + i) % epoll->num_entries];
        uint32_t wanted = entry->event.events | EPOLLHUP | EPOLLERR;
        uint32_t events = sim_file_events(entry->file) & wanted & ~entry->told;
        // Edges of what comes, goes and comes again are not needed by the library.
        if ((entry->event.events & EPOLLET) != 0)
            entry->told |= events;
        if (events != 0)
            ret_events[count++] = (struct epoll_event){.events = events, .data = entry->event.data};
    }
    return count;
}

static uint64_t
deadline_after(int timeout_ms)
{
    return timeout_ms < 0 ? SIM_NEVER : sim.now_ns + (uint64_t)timeout_ms * SIM_MS;
}

static uint64_t
sooner(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

// Nothing is there to be reported: is it for a signal that the call ends?
static bool
is_interrupted(uint64_t signal_ns)
{
    if (sim.now_ns < signal_ns)
        return false;
    errno = EINTR;
    return true;
}

SIM_CALL(int, epoll_wait, int epoll_fd, struct epoll_event *ret_events, int num_events_max,
         int timeout_ms)
{
    uint64_t deadline_ns = deadline_after(timeout_ms);
    sim_point();
    uint64_t signal_ns = sim_interrupted_at();
    for (;;) {
        struct sim_file *file = sim_fd_file(epoll_fd);
        if (file == NULL || file->epoll == NULL)
            return -1;
        int count = collect(file->epoll, ret_events, num_events_max);
        if (count > 0)
            return count;
        if (timeout_ms == 0 || sim.now_ns >= deadline_ns)
            return 0;
        if (is_interrupted(signal_ns))
            return -1;
        sim_wait("waits for events", file->epoll, sooner(deadline_ns, signal_ns));
    }
}

SIM_CALL(int, poll, struct pollfd *fds, nfds_t num_fds, int timeout_ms)
{
    uint64_t deadline_ns = deadline_after(timeout_ms);
    if (num_fds != 1) {
        sim_fail("poll of %zu descriptors, the simulation knows one", (size_t)num_fds);
        return -1;
    }
    sim_point();
    // Also of a call that doesn't wait: if there is nothing to report, the system looks for signals first.
    uint64_t signal_ns = timeout_ms == 0 && sim_interrupted() ? sim.now_ns : sim_interrupted_at();
    for (;;) {
        struct sim_file *file = sim_fd_file(fds->fd);
        if (file == NULL)
            return -1;
        uint32_t wanted = (uint32_t)(uint16_t)fds->events | EPOLLHUP | EPOLLERR;
        // The bits of poll and epoll are the same.
        fds->revents = (short)(sim_file_events(file) & wanted);
        if (fds->revents != 0)
            return 1;
        if (is_interrupted(signal_ns))
            return -1;
        if (timeout_ms == 0 || sim.now_ns >= deadline_ns)
            return 0;
        sim_wait("waits for a descriptor", file, sooner(deadline_ns, signal_ns));
    }
}

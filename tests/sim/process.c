// The process table.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "sim.h"

static struct sim_process *processes[SIM_PROCESSES_MAX];
static size_t num_processes;

struct sim_process *
sim_current_process(void)
{
    return sim.current != NULL ? sim_coro_process(sim.current) : NULL;
}

struct sim_process *
sim_process_start(int host, const char *name)
{
    if (num_processes == SIM_PROCESSES_MAX) {
        sim_fail("more than %d processes", SIM_PROCESSES_MAX);
        return NULL;
    }
    struct sim_process *process = calloc(1, sizeof(*process));
    process->pid = 1000 + (int)num_processes;
    process->host = host;
    process->alive = true;
    process->started_at = sim.now_ns;
    process->num_fds_max = SIM_FDS_MAX;
    process->can_read_others = true;
    snprintf(process->name, sizeof(process->name), "%s", name);
    process->module = sim_module_take();
    processes[num_processes++] = process;
    sim_trace("%s starts on host %d", process->name, host);
    return process;
}

struct sim_process *
sim_process_by_pid(int pid)
{
    size_t index = (size_t)(pid - 1000);
    return pid >= 1000 && index < num_processes ? processes[index] : NULL;
}

// Whoever watches it with a pidfd learns of its end.
static void
tell_watchers(const struct sim_process *dead)
{
    for (size_t i = 0; i < num_processes; i++) {
        for (size_t fd = 0; fd < SIM_FDS_MAX; fd++) {
            const struct sim_file *file = processes[i]->fds[fd];
            if (file != NULL && file->kind == SIM_FILE_PIDFD && file->watched == dead)
                sim_file_changed(file);
        }
    }
}

static void
end(struct sim_process *process)
{
    process->alive = false;
    process->died_at = sim.now_ns;
    sim_coros_kill(process);
    sim_files_close_all(process);
    sim_maps_release(process);
    sim_memory_release(process);
    sim_module_give(process->module);
    process->module = NULL;
    tell_watchers(process);
}

void
sim_process_kill(struct sim_process *process)
{
    if (!process->alive)
        return;
    sim_trace("%s is killed", process->name);
    end(process);
}

void
sim_process_exit(struct sim_process *process)
{
    size_t coros = sim_coros_count(process);
    size_t fds = sim_fds_count(process);
    size_t blocks = sim_memory_count(process);
    if (coros > 0 || fds > 0 || blocks > 0 || process->maps != NULL)
        sim_fail("%s left behind %zu threads, %zu descriptors, %zu blocks of memory%s",
                 process->name, coros, fds, blocks, process->maps != NULL ? ", mappings" : "");
    sim_trace("%s exits", process->name);
    process->exited = true;
    end(process);
}

void
sim_process_hinder(struct sim_process *process)
{
    if (process->num_hindrances++ == 0)
        process->hindered_since = sim.now_ns;
}

void
sim_process_unhinder(struct sim_process *process)
{
    if (--process->num_hindrances == 0)
        process->hindered_ns += sim.now_ns - process->hindered_since;
    process->marks[process->num_marks++ % SIM_COUNT(process->marks)] =
        (struct sim_mark){sim.now_ns, sim_process_hindered_ns(process)};
}

uint64_t
sim_process_hindered_lately_ns(const struct sim_process *process, uint64_t window_ns)
{
    uint64_t before_ns = 0;
    for (size_t i = 0; i < SIM_COUNT(process->marks); i++) {
        const struct sim_mark *mark = &process->marks[i];
        if (mark->when_ns + window_ns <= sim.now_ns && mark->hindered_ns > before_ns)
            before_ns = mark->hindered_ns;
    }
    return sim_process_hindered_ns(process) - before_ns;
}

uint64_t
sim_process_hindered_ns(const struct sim_process *process)
{
    uint64_t present_ns = process->num_hindrances > 0 ? sim.now_ns - process->hindered_since : 0;
    return process->hindered_ns + present_ns;
}

void
sim_process_stop(struct sim_process *process)
{
    if (!process->alive || process->stopped)
        return;
    sim_trace("%s is stopped", process->name);
    process->stopped = true;
    sim_process_hinder(process);
}

void
sim_process_continue(struct sim_process *process)
{
    if (!process->stopped)
        return;
    sim_trace("%s goes on", process->name);
    process->stopped = false;
    sim_process_unhinder(process);
}

void
sim_process_slow(struct sim_process *process, uint64_t rest_ns)
{
    if (!process->alive || process->slow_ns == rest_ns)
        return;
    sim_trace("%s rests up to %llu us after each step", process->name,
              (unsigned long long)(rest_ns / SIM_US));
    if (process->slow_ns == 0)
        sim_process_hinder(process);
    process->slow_ns = rest_ns;
    if (rest_ns == 0)
        sim_process_unhinder(process);
}

void
sim_processes_reset(void)
{
    for (size_t i = 0; i < num_processes; i++) {
        if (processes[i]->alive)
            end(processes[i]);
    }
    for (size_t i = 0; i < num_processes; i++)
        free(processes[i]);
    num_processes = 0;
}

// ---- what a process asks about itself and others ----

SIM_CALL(pid_t, getpid, void)
{
    return sim_current_process()->pid;
}

// A thread's number stands for its process, wherever one is asked for.
SIM_CALL(pid_t, gettid, void)
{
    return sim_current_process()->pid;
}

SIM_CALL(int, getrlimit, int resource, struct rlimit *limit)
{
    (void)resource;
    *limit = (struct rlimit){RLIM_INFINITY, RLIM_INFINITY};
    return 0;
}

SIM_CALL(uid_t, geteuid, void)
{
    return 1000;
}

SIM_CALL(char *, getenv, const char *name)
{
    (void)name;
    return NULL;
}

SIM_CALL(int, sysinfo, struct sysinfo *info)
{
    memset(info, 0, sizeof(*info));
    info->totalram = 64 << 20;
    info->mem_unit = 1;
    return 0;
}

SIM_CALL(long, syscall, long number, long a, long b)
{
    struct sim_process *process = sim_current_process();
    (void)b;
    sim_point();
    if (number != SYS_pidfd_open) {
        errno = ENOSYS;
        return -1;
    }
    struct sim_process *watched = sim_process_by_pid((int)a);
    if (watched == NULL || !watched->alive || watched->host != process->host) {
        errno = ESRCH;
        return -1;
    }
    struct sim_file *file = sim_file_new(SIM_FILE_PIDFD, process);
    file->watched = watched;
    return sim_fd_install(process, file);
}

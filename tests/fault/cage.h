// A cgroup for another process, version 2 or 1, where this machine permits it: its processor time, or
// all of it, can be taken away.
#ifndef LLM_TEST_CAGE_H
#define LLM_TEST_CAGE_H

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "multi/process.h"

struct cage {
    char path[128]; // "": none
    bool version_2;
};

static inline bool
cage_write(const struct cage *cage, const char *file, const char *text)
{
    char path[192];
    snprintf(path, sizeof(path), "%s/%s", cage->path, file);
    FILE *out = fopen(path, "w");
    if (out == NULL)
        return false;
    bool ok = fputs(text, out) >= 0;
    return fclose(out) == 0 && ok;
}

// `controller`: "cpu" or "freezer".  False if it isn't permitted here.
static inline bool
cage_open(struct cage *cage, const char *controller, pid_t pid)
{
    char number[16];
    snprintf(number, sizeof(number), "%d", (int)pid);
    cage->version_2 = access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0;
    snprintf(cage->path, sizeof(cage->path), "/sys/fs/cgroup/%s%sllm-test-%d",
             cage->version_2 ? "" : controller, cage->version_2 ? "" : "/", (int)pid);
    if (mkdir(cage->path, 0700) == 0 && cage_write(cage, "cgroup.procs", number))
        return true;
    (void)rmdir(cage->path);
    cage->path[0] = '\0';
    return false;
}

// Of a processor.
static inline bool
cage_allow(const struct cage *cage, unsigned percent)
{
    char text[32];
    snprintf(text, sizeof(text), cage->version_2 ? "%u 1000000" : "%u", percent * 10000);
    if (cage->version_2)
        return cage_write(cage, "cpu.max", text);
    return cage_write(cage, "cpu.cfs_period_us", "1000000") &&
           cage_write(cage, "cpu.cfs_quota_us", text);
}

static inline bool
cage_freeze(const struct cage *cage, bool frozen)
{
    return cage->version_2 ? cage_write(cage, "cgroup.freeze", frozen ? "1" : "0")
                           : cage_write(cage, "freezer.state", frozen ? "FROZEN" : "THAWED");
}

// Its process has ended.
static inline void
cage_close(struct cage *cage)
{
    if (cage->path[0] != '\0')
        (void)rmdir(cage->path);
    cage->path[0] = '\0';
}

#endif

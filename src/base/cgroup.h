// How much memory the system leaves to this process: what the machine has, or less where a control
// group, of version 1 or 2, sets a limit to it or to one of the groups that it is in.
#ifndef LLI_CGROUP_H
#define LLI_CGROUP_H

#include "base/base.h"

enum { LLI_CGROUP_PATH_BYTES = 4096, LLI_CGROUP_WHO_BYTES = 256 };

// `ret_who` says who sets the limit: "the machine's memory", or the file that says so.  False without
// memory to find out.
bool lli_memory_limit_bytes(uint64_t *ret_bytes, char ret_who[LLI_CGROUP_WHO_BYTES]);

// The folders of the process' memory group: from `folder`, for the innermost, up to the one that is
// its first `top` letters long.
struct lli_cgroup {
    char folder[LLI_CGROUP_PATH_BYTES];
    size_t top;
};

// ---- texts of the system ----

// From /proc/self/cgroup and /proc/self/mountinfo; version 1 or 2.  False if they say nothing of it.
bool lli_cgroup_find(const char *groups, const char *mounts, int version,
                     struct lli_cgroup *ret_group);
// What a file of limits says; UINT64_MAX: nothing, or that there is none.
uint64_t lli_cgroup_parse_limit(const char *text);

#endif

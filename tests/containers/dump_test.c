// Core dumps of a process that has a pool, and maps a peer's: neither is in there.
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "multi/member.h"

enum { OWNER = 1, READER = 2, POOL_MIB = 256, CORE_MIB_MAX = 64 };

static int
end_processes(void **state)
{
    (void)state;
    process_kill_all();
    return 0;
}

// Mappings of memory files, and how many of them a core dump leaves out.
static void
count_mappings(unsigned *ret_all, unsigned *ret_left_out)
{
    char line[512];
    bool ours = false;
    FILE *maps = fopen("/proc/self/smaps", "re");
    assert_non_null(maps);
    *ret_all = *ret_left_out = 0;
    while (fgets(line, sizeof(line), maps) != NULL) {
        unsigned long start;
        unsigned long end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
            ours = strstr(line, "/memfd:llm-datadist") != NULL;
            *ret_all += ours;
        } else if (ours && strncmp(line, "VmFlags:", 8) == 0) {
            *ret_left_out += strstr(line, " dd") != NULL;
        }
    }
    fclose(maps);
}

static void
dump_into(const char *folder)
{
    struct rlimit no_limit = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
    int fd = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);
    // Everything that is shared, too.
    if (fd >= 0 && write(fd, "0x3f", 4) == 4)
        close(fd);
    signal(SIGABRT, SIG_DFL);
    if (chdir(folder) == 0 && setrlimit(RLIMIT_CORE, &no_limit) == 0)
        abort();
    _exit(3); // no dump here
}

// "link PORT", "maps", "dump FOLDER".
static int
serve(uint64_t id, llm_role role, struct talk *talk)
{
    char line[LINE_BYTES];
    struct member member;
    struct member_setup setup = {
        .cluster_id = id,
        .role = role,
        .transports = "shm",
        .pool_bytes = (uint64_t)POOL_MIB << 20,
    };
    member_open(&member, &setup);
    talk_say(talk, "%u", member.ports[0]);
    while (talk_hear(talk, line, -1)) {
        if (strncmp(line, "link ", 5) == 0) {
            uint16_t port = (uint16_t)strtoul(line + 5, NULL, 10);
            talk_say(talk, "%x", member_link(&member, OWNER, &port, PATIENCE_MS));
        } else if (strcmp(line, "maps") == 0) {
            unsigned all;
            unsigned left_out;
            count_mappings(&all, &left_out);
            talk_say(talk, "%u of %u", left_out, all);
        } else {
            dump_into(line + 5);
        }
    }
    member_close(&member);
    return 0;
}

static void
start_pair(struct process *owner, struct process *reader)
{
    char line[LINE_BYTES];
    process_start(owner, "owner");
    process_start(reader, "reader");
    assert_true(talk_hear(&reader->talk, line, PATIENCE_MS));
    assert_true(talk_hear(&owner->talk, line, PATIENCE_MS));
    PROCESS_EXPECT(reader, "0", "link %s", line);
}

static void
test_pools_and_what_is_mapped_of_peers_are_left_out_of_core_dumps(void **state)
{
    struct process owner;
    struct process reader;
    (void)state;
    start_pair(&owner, &reader);
    // Each has a directory and a pool of its own, and those of the other.
    PROCESS_EXPECT(&owner, "4 of 4", "maps");
    PROCESS_EXPECT(&reader, "4 of 4", "maps");
}

// The dump is "core", or "core.PID", or goes elsewhere.
static bool
find_dump(const char *folder, pid_t pid, struct stat *ret_info)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/core", folder);
    bool found = stat(path, ret_info) == 0;
    if (!found) {
        snprintf(path, sizeof(path), "%s/core.%d", folder, (int)pid);
        found = stat(path, ret_info) == 0;
    }
    unlink(path);
    return found;
}

static void
test_a_core_dump_is_small_although_the_pools_are_large(void **state)
{
    struct process owner;
    struct process reader;
    struct stat info;
    int how = 0;
    char folder[] = "/tmp/llm-dump-XXXXXX";
    (void)state;
    // A sanitizer's own memory is in the dump.
    if (UNDER_TSAN || UNDER_ASAN || mkdtemp(folder) == NULL)
        skip();
    start_pair(&owner, &reader);
    pid_t pid = reader.pid;
    talk_say(&reader.talk, "dump %s", folder);
    assert_int_equal(waitpid(pid, &how, 0), pid);
    bool found = find_dump(folder, pid, &info);
    rmdir(folder);
    if (!found) {
        printf("core dumps don't come as files here\n");
        skip();
    }
    assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGABRT);
    if (info.st_blocks / 2048 >= CORE_MIB_MAX)
        fail_msg("the dump has %lld MiB", (long long)info.st_blocks / 2048);
}

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_pools_and_what_is_mapped_of_peers_are_left_out_of_core_dumps,
                                  end_processes),
        cmocka_unit_test_teardown(test_a_core_dump_is_small_although_the_pools_are_large,
                                  end_processes),
    };
    if (process_role(argc, argv, &role, &talk))
        return strcmp(role, "owner") == 0 ? serve(OWNER, LLM_ROLE_PROMPT, &talk)
                                          : serve(READER, LLM_ROLE_DECODER, &talk);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// A process in a group with a memory limit: its pools are as large as that, and who allocates more is
// told, not killed.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cgroup.h"
#include "multi/member.h"

enum { LIMIT_MIB = 128, BLOCK_BYTES = 1 << 20 };

static struct {
    char folder[LLI_CGROUP_PATH_BYTES + 64]; // "" if there is none
    const char *file;
} group;

static char *
read_file(const char *path)
{
    static char text[65536];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        close(fd);
    text[length < 0 ? 0 : length] = '\0';
    return strdup(text);
}

static bool
write_file(const char *name, const char *text)
{
    char path[LLI_CGROUP_PATH_BYTES + 128];
    snprintf(path, sizeof(path), "%s/%s", group.folder, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return ok;
}

static bool
try_version(int version, const char *file, const char *groups, const char *mounts)
{
    struct lli_cgroup found;
    char limit[32];
    if (!lli_cgroup_find(groups, mounts, version, &found))
        return false;
    snprintf(group.folder, sizeof(group.folder), "%s/llm-datadist-test-%d", found.folder,
             (int)getpid());
    snprintf(limit, sizeof(limit), "%d", LIMIT_MIB << 20);
    group.file = file;
    if (mkdir(group.folder, 0755) == 0 && write_file(file, limit))
        return true;
    printf("%s: %s\n", group.folder, strerror(errno));
    rmdir(group.folder);
    group.folder[0] = '\0';
    return false;
}

static bool
open_group(void)
{
    char *groups = read_file("/proc/self/cgroup");
    char *mounts = read_file("/proc/self/mountinfo");
    bool ok = try_version(1, "memory.limit_in_bytes", groups, mounts) ||
              try_version(2, "memory.max", groups, mounts);
    free(groups);
    free(mounts);
    return ok;
}

// ---- the process in the group ----

static char warning[LINE_BYTES];

static void
keep_warning(void *arg, llm_log_level level, const char *line)
{
    (void)arg;
    if (level == LLM_LOG_WARN)
        snprintf(warning, sizeof(warning), "%s", line);
}

static void
open_member(struct member *member, struct talk *talk, const char *words)
{
    struct member_setup setup = {
        .cluster_id = 1, .role = LLM_ROLE_DECODER, .transports = "local", .warns = true};
    unsigned mib = 0;
    sscanf(words, "%u %u", &setup.num_devices, &mib);
    setup.pool_bytes = (uint64_t)mib << 20;
    warning[0] = '\0';
    if (member->dd != NULL)
        member_close(member);
    member_open(member, &setup);
    talk_say(talk, "opened %s", warning);
}

static void
allocate(struct member *member, struct talk *talk, const char *words)
{
    int64_t shape[] = {strtol(words, NULL, 10), BLOCK_BYTES};
    uintptr_t addresses[MEMBER_DEVICES_MAX];
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = 1,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = 2,
    };
    llm_cache cache = {
        .struct_size = sizeof(cache),
        .tensor_addrs = addresses,
        .num_tensor_addrs = MEMBER_DEVICES_MAX,
    };
    llm_status status = llm_allocate_cache(member->dd, &desc, &cache);
    for (size_t i = 0; status == LLM_SUCCESS && i < member->num_devices; i++)
        memset((void *)addresses[i], 7, (size_t)shape[0] * BLOCK_BYTES); // NOLINT
    talk_say(talk, "%s", llm_status_name(status));
}

// "join FOLDER", "open DEVICES MIB", "allocate MIB": and fills that.
static int
serve(struct talk *talk)
{
    char line[LINE_BYTES];
    char pid[16];
    struct member member = {0};
    llm_set_log_sink(keep_warning, NULL);
    while (talk_hear(talk, line, -1)) {
        if (strncmp(line, "join ", 5) == 0) {
            snprintf(group.folder, sizeof(group.folder), "%s", line + 5);
            snprintf(pid, sizeof(pid), "%d", (int)getpid());
            talk_say(talk, write_file("cgroup.procs", pid) ? "joined" : "failed");
        } else if (strncmp(line, "open ", 5) == 0) {
            open_member(&member, talk, line + 5);
        } else {
            allocate(&member, talk, line + 9);
        }
    }
    if (member.dd != NULL)
        member_close(&member);
    return 0;
}

// ---- tests ----

static struct process process;

static int
setup(void **state)
{
    (void)state;
    process_start(&process, "limited");
    PROCESS_EXPECT(&process, "joined", "join %s", group.folder);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    process_kill_all();
    return 0;
}

static void
test_a_pool_is_as_large_as_the_group_and_more_is_refused(void **state)
{
    (void)state;
    PROCESS_EXPECT(&process, "opened ", "open 1 0");
    PROCESS_EXPECT(&process, "LLM_DEVICE_OUT_OF_MEMORY", "allocate %d", LIMIT_MIB + 1);
    PROCESS_EXPECT(&process, "LLM_SUCCESS", "allocate %d", LIMIT_MIB / 2);
    PROCESS_EXPECT(&process, "LLM_DEVICE_OUT_OF_MEMORY", "allocate %d", LIMIT_MIB / 2 + 1);
}

static void
test_devices_share_what_the_group_has(void **state)
{
    (void)state;
    PROCESS_EXPECT(&process, "opened ", "open 4 0");
    PROCESS_EXPECT(&process, "LLM_DEVICE_OUT_OF_MEMORY", "allocate %d", LIMIT_MIB / 4 + 1);
    PROCESS_EXPECT(&process, "LLM_SUCCESS", "allocate %d", LIMIT_MIB / 8);
}

static void
test_a_pool_that_may_grow_beyond_the_group_gets_a_warning(void **state)
{
    char line[LINE_BYTES];
    char expected[64];
    (void)state;
    PROCESS_EXPECT(&process, "opened ", "open 2 %d", LIMIT_MIB / 2);
    process_ask(&process, line, "open 2 %d", LIMIT_MIB);
    snprintf(expected, sizeof(expected), "2 pool(s) of %d bytes", LIMIT_MIB << 20);
    assert_non_null(strstr(line, expected));
    snprintf(expected, sizeof(expected), "leaves %d bytes", LIMIT_MIB << 20);
    assert_non_null(strstr(line, expected));
    assert_non_null(strstr(line, group.file));
}

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_pool_is_as_large_as_the_group_and_more_is_refused,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_devices_share_what_the_group_has, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_pool_that_may_grow_beyond_the_group_gets_a_warning,
                                        setup, teardown),
    };
    if (process_role(argc, argv, &role, &talk))
        return serve(&talk);
    // A sanitizer takes more memory than the group has.
    if (UNDER_TSAN || UNDER_ASAN || !open_group()) {
        printf("this process may not make groups with a memory limit\n");
        return 77;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    while (rmdir(group.folder) != 0 && errno == EBUSY)
        usleep(1000);
    return failed;
}

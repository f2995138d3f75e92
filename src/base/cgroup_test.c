// Limits of memory: what the system's texts say, in containers with and without namespaces of their own.
#include "base/cgroup.h"

#include "unit/unit.h"

static const char mounts_1[] =
    "23 1 0:21 / /proc rw - proc proc rw\n"
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "33 31 0:30 / /sys/fs/cgroup/cpu rw shared:7 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:8 master:2 - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
static const char groups_1[] = "9:name=systemd:/\n"
                               "5:cpu,cpuacct:/jobs\n"
                               "4:hugetlb,memory:/jobs/job 1\n"
                               "0::/other\n";

static void
assert_found(const char *groups, const char *mounts, int version, const char *folder, size_t top)
{
    struct lli_cgroup group;
    assert_true(lli_cgroup_find(groups, mounts, version, &group));
    assert_string_equal(group.folder, folder);
    assert_int_equal(group.top, top);
}

static void
test_both_versions_are_found_side_by_side(void **state)
{
    (void)state;
    assert_found(groups_1, mounts_1, 1, "/sys/fs/cgroup/memory/jobs/job 1", 21);
    assert_found(groups_1, mounts_1, 2, "/sys/fs/cgroup/unified/other", 22);
}

static void
test_version_2_alone(void **state)
{
    (void)state;
    assert_found("0::/user.slice/a.scope\n",
                 "30 22 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n", 2,
                 "/sys/fs/cgroup/user.slice/a.scope", 14);
    // In a namespace of its own, and without the last end of line.
    assert_found("0::/", "30 22 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw", 2, "/sys/fs/cgroup",
                 14);
}

static void
test_a_container_sees_its_own_part_of_the_tree(void **state)
{
    static const char mounts[] =
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
    (void)state;
    assert_found("4:memory:/docker/abc\n", mounts, 1, "/sys/fs/cgroup/memory", 21);
    assert_found("4:memory:/docker/abc/inner\n", mounts, 1, "/sys/fs/cgroup/memory/inner", 21);
    // Not below what is mounted: then the limit of that counts.
    assert_found("4:memory:/docker/abcd\n", mounts, 1, "/sys/fs/cgroup/memory", 21);
    assert_found("4:memory:/docker\n", mounts, 1, "/sys/fs/cgroup/memory", 21);
    assert_found("4:memory:/../other\n",
                 "35 31 0:32 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n", 1,
                 "/sys/fs/cgroup/memory", 21);
}

static void
test_names_with_spaces_are_read(void **state)
{
    (void)state;
    assert_found("0::/x\n", "30 22 0:26 / /mnt/my\\040groups rw - cgroup2 none rw\n", 2,
                 "/mnt/my groups/x", 14);
}

static void
test_texts_that_say_nothing_are_no_limits(void **state)
{
    static const char *const groups[] = {"",    "\n",    "4:memory",       "4:memory\n",     "x",
                                         "0::", ":::\n", "4:memoryx:/a\n", "4:cpu:/memory\n"};
    static const char *const mounts[] = {"",
                                         "\n",
                                         "31 23 0:28 /",
                                         "31 23 0:28 / /x rw - ",
                                         "31 23 0:28 / /x rw -",
                                         "31 23 0:28 / /x rw - cgroup",
                                         "31 23 0:28 / /x rw - cgroup ",
                                         "31 23 0:28 / /x rw - cgroup none",
                                         "31 23 0:28 / /x rw - cgroup none ",
                                         "31 23 0:28 / /x rw - cgroup none rw,cpu\n",
                                         "31 23 0:28 / /x rw\n32 1 0:1 / /y rw - tmpfs a memory\n"};
    struct lli_cgroup group;
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(groups); i++)
        assert_false(lli_cgroup_find(groups[i], mounts_1, 1, &group));
    for (size_t i = 0; i < LLI_COUNT(mounts); i++)
        assert_false(lli_cgroup_find(groups_1, mounts[i], 1, &group));
}

static void
test_paths_that_are_too_long_are_no_limits(void **state)
{
    enum { LENGTH = 2 * LLI_CGROUP_PATH_BYTES };
    struct lli_cgroup group;
    char *groups = unit_alloc(LENGTH + 16);
    (void)state;
    memcpy(groups, "4:memory:/", 10);
    memset(groups + 10, 'x', LENGTH);
    assert_false(lli_cgroup_find(groups, mounts_1, 1, &group));
    free(groups);
}

static void
test_limits_are_numbers(void **state)
{
    (void)state;
    assert_true(lli_cgroup_parse_limit("134217728\n") == 134217728);
    assert_true(lli_cgroup_parse_limit("0\n") == 0);
    assert_true(lli_cgroup_parse_limit("4096") == 4096);
    assert_true(lli_cgroup_parse_limit("max\n") == UINT64_MAX);
    assert_true(lli_cgroup_parse_limit("9223372036854771712\n") == UINT64_MAX);
    assert_true(lli_cgroup_parse_limit("99999999999999999999999\n") == UINT64_MAX);
    assert_true(lli_cgroup_parse_limit("") == UINT64_MAX);
    assert_true(lli_cgroup_parse_limit("-1\n") == UINT64_MAX);
    assert_true(lli_cgroup_parse_limit("12 k\n") == UINT64_MAX);
}

static void
test_there_is_a_limit_here_and_somebody_sets_it(void **state)
{
    char who[LLI_CGROUP_WHO_BYTES];
    (void)state;
    uint64_t bytes = 0;
    assert_true(lli_memory_limit_bytes(&bytes, who));
    assert_true(bytes > 0 && bytes <= lli_physical_memory_bytes());
    assert_true(who[0] == '/' || strcmp(who, "the machine's memory") == 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_versions_are_found_side_by_side),
        cmocka_unit_test(test_version_2_alone),
        cmocka_unit_test(test_a_container_sees_its_own_part_of_the_tree),
        cmocka_unit_test(test_names_with_spaces_are_read),
        cmocka_unit_test(test_texts_that_say_nothing_are_no_limits),
        cmocka_unit_test(test_paths_that_are_too_long_are_no_limits),
        cmocka_unit_test(test_limits_are_numbers),
        cmocka_unit_test(test_there_is_a_limit_here_and_somebody_sets_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

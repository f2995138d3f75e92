// A thousand links, made and removed again and again: descriptors and memory stay what they were.
#include "suite.h"

#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

enum { DECODERS = 250, PROMPTS = 4, LOOPS = 4, MB = 1 << 20 };

struct crowd {
    struct party decoders[DECODERS];
    struct party prompts[PROMPTS];
    llm_cluster_info clusters[PROMPTS];
    size_t num_decoders;
};

struct usage {
    size_t fds;
    size_t rss;
};

static struct usage
measure(void)
{
    struct usage usage = {0};
    unsigned long total = 0;
    unsigned long resident = 0;
    DIR *dir = opendir("/proc/self/fd");
    FILE *statm = fopen("/proc/self/statm", "r");
    assert_non_null(dir);
    assert_non_null(statm);
    while (readdir(dir) != NULL)
        usage.fds++;
    assert_int_equal(fscanf(statm, "%lu %lu", &total, &resident), 2);
    fclose(statm);
    closedir(dir);
    usage.rss = (size_t)resident * (size_t)sysconf(_SC_PAGESIZE);
    return usage;
}

// The last descriptors of a link are closed by the instances' own threads.
static struct usage
measure_at_rest(size_t fds)
{
    uint64_t end = now_ms() + 20000;
    struct usage usage = measure();
    while (usage.fds > fds && now_ms() < end) {
        sched_yield();
        usage = measure();
    }
    return usage;
}

static void
open_small(struct party *party, uint64_t id, llm_role role)
{
    llm_option options[] = {
        {LLM_OPTION_DEVICE_ID, "0"},
        {LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"},
        {LLM_OPTION_TRANSPORTS, suite.transport},
        {LLM_OPTION_TCP_CONNECTIONS, "1"},
        {LLM_OPTION_BUF_POOL_CFG, "{\"buf_pool_size\":1048576}"},
        {LLM_OPTION_LIVENESS_TIME, "60000"},
    };
    *party = (struct party){.id = id, .num_devices = 1};
    assert_ok(llm_create(id, role, &party->dd));
    assert_ok(llm_initialize(party->dd, options, COUNT_OF(options)));
    if (role == LLM_ROLE_PROMPT)
        read_ports(party);
}

static void
link_all(struct crowd *crowd)
{
    for (size_t i = 0; i < crowd->num_decoders; i++)
        assert_ok(
            llm_link_clusters(crowd->decoders[i].dd, crowd->clusters, PROMPTS, NULL, NULL, 60000));
}

static void
unlink_all(struct crowd *crowd)
{
    for (size_t i = 0; i < crowd->num_decoders; i++)
        assert_ok(llm_unlink_clusters(crowd->decoders[i].dd, crowd->clusters, PROMPTS, NULL, NULL,
                                      60000, 0));
}

static void
conformance_11_rule_02_a_thousand_links_come_and_go_without_growth(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    struct rlimit limit;
    struct usage linked = {0};
    struct usage first = {0};
    (void)state;
    assert_non_null(crowd);
    // 4 descriptors per link in this process, which has both ends, and some per instance.
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    crowd->num_decoders = rounds(DECODERS);
    if (limit.rlim_cur < 10000 && crowd->num_decoders > limit.rlim_cur / 40)
        crowd->num_decoders = limit.rlim_cur / 40;
    for (size_t i = 0; i < PROMPTS; i++) {
        open_small(&crowd->prompts[i], 1 + i, LLM_ROLE_PROMPT);
        crowd->clusters[i] = cluster_of(&crowd->prompts[i]);
    }
    for (size_t i = 0; i < crowd->num_decoders; i++)
        open_small(&crowd->decoders[i], 1000 + i, LLM_ROLE_DECODER);
    size_t num_all = crowd->num_decoders * PROMPTS;
    struct usage idle = measure();
    uint64_t start = now_ms();
    for (int i = 0; i < LOOPS; i++) {
        link_all(crowd);
        linked = measure();
        for (size_t k = 0; k < PROMPTS; k++)
            assert_int_equal(num_links(&crowd->prompts[k]), crowd->num_decoders);
        unlink_all(crowd);
        for (size_t k = 0; k < PROMPTS; k++)
            assert_int_equal(num_links(&crowd->prompts[k]), 0);
        struct usage now = measure_at_rest(idle.fds);
        assert_int_equal(now.fds, idle.fds);
        if (i == 0)
            first = now;
        // What one round has warmed up serves the next ones.
        if (suite.scale == 100)
            assert_true(now.rss < first.rss + 8 * MB);
    }
    uint64_t took = now_ms() - start;
    print_message("%zu links over %s, both ends: %zu descriptors and %zu bytes of memory each; "
                  "%d times made and removed in %llu ms, %llu us each\n",
                  num_all, suite.transport, (linked.fds - idle.fds) / num_all,
                  (linked.rss > idle.rss ? linked.rss - idle.rss : 0) / num_all, LOOPS,
                  (unsigned long long)took, (unsigned long long)(took * 1000 / (LOOPS * num_all)));
    for (size_t i = 0; i < crowd->num_decoders; i++)
        close_party(&crowd->decoders[i]);
    for (size_t i = 0; i < PROMPTS; i++)
        close_party(&crowd->prompts[i]);
    free(crowd);
}

#define TEST(test) cmocka_unit_test(test)

static const struct CMUnitTest tests[] = {
    TEST(conformance_11_rule_02_a_thousand_links_come_and_go_without_growth),
};
CONFORMANCE_MAIN("A thousand links", tests)

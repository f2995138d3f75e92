// Which peers on a host read each other's memory, and which take tcp: the table of docs/reliability.md,
// each row with real users and namespaces.
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "multi/member.h"
#include "net/wire.h"

enum { OWNER = 1, READER = 2, NUM_BLOCKS = 8, BLOCK_BYTES = 64 << 10, NOBODY = 65534 };

static int
tear_down(void **state)
{
    (void)state;
    wire_close();
    process_kill_all();
    return 0;
}

// ---- the processes ----

struct instance {
    llm_datadist *dd;
    int64_t cache;
    uint8_t *memory;
};

static char warning[LINE_BYTES];

static void
keep_warning(void *arg, llm_log_level level, const char *line)
{
    (void)arg;
    if (level == LLM_LOG_WARN)
        snprintf(warning, sizeof(warning), "%s", line);
}

static bool
open_instance(struct instance *instance, uint64_t id, const char *ip)
{
    char listen[64];
    uintptr_t address;
    int64_t shape[] = {NUM_BLOCKS, BLOCK_BYTES};
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = 1,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = 2,
    };
    llm_cache cache = {
        .struct_size = sizeof(cache), .tensor_addrs = &address, .num_tensor_addrs = 1};
    snprintf(listen, sizeof(listen), "%s:0", ip);
    llm_option options[] = {
        {LLM_OPTION_DEVICE_ID, "0"},         {LLM_OPTION_SYNC_CACHE_WAIT_TIME, "60000"},
        {LLM_OPTION_LIVENESS_TIME, "20000"}, {LLM_OPTION_LOG_LEVEL, "warn"},
        {LLM_OPTION_LISTEN_IP_INFO, listen},
    };
    llm_role role = id == OWNER ? LLM_ROLE_PROMPT : LLM_ROLE_DECODER;
    if (llm_create(id, role, &instance->dd) != LLM_SUCCESS ||
        llm_initialize(instance->dd, options, sizeof(options) / sizeof(options[0])) !=
            LLM_SUCCESS ||
        llm_allocate_cache(instance->dd, &desc, &cache) != LLM_SUCCESS)
        return false;
    instance->cache = cache.cache_id;
    instance->memory = (uint8_t *)address;
    memset(instance->memory, id == OWNER ? 0x5a : 0, (size_t)NUM_BLOCKS * BLOCK_BYTES);
    return true;
}

static llm_status
link_owner(const struct instance *instance, const char *words)
{
    char own[32];
    char peer[32];
    unsigned port;
    if (sscanf(words, "%31s %31s %u", own, peer, &port) != 3)
        return LLM_FAILED;
    llm_ip_info local = {.ip = own};
    llm_ip_info remote = {.ip = peer, .port = (uint16_t)port};
    llm_cluster_info cluster = {
        .struct_size = sizeof(cluster),
        .remote_cluster_id = OWNER,
        .local_ip_infos = &local,
        .num_local_ip_infos = 1,
        .remote_ip_infos = &remote,
        .num_remote_ip_infos = 1,
    };
    return llm_link_clusters(instance->dd, &cluster, 1, NULL, NULL, PATIENCE_MS);
}

static llm_status
pull(const struct instance *instance, int64_t remote)
{
    uint64_t blocks[NUM_BLOCKS] = {0, 1, 2, 3, 4, 5, 6, 7};
    llm_cache_index source = {
        .struct_size = sizeof(source), .cluster_id = OWNER, .cache_id = remote};
    llm_cache destination = {.struct_size = sizeof(destination), .cache_id = instance->cache};
    llm_status status = llm_pull_kv_blocks(instance->dd, &source, &destination, blocks, NUM_BLOCKS,
                                           blocks, NUM_BLOCKS, NULL);
    for (size_t i = 0; status == LLM_SUCCESS && i < (size_t)NUM_BLOCKS * BLOCK_BYTES; i++) {
        if (instance->memory[i] != 0x5a)
            return LLM_CHECKSUM_MISMATCH;
    }
    return status;
}

// False, with errno, where that isn't permitted.
static bool
become(const char *whom)
{
    if (strcmp(whom, "user") == 0)
        // Another user's process may be looked into by its own user again.
        return setgid(NOBODY) == 0 && setuid(NOBODY) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0;
    if (unshare(CLONE_NEWPID) != 0)
        return false;
    pid_t child = fork();
    if (child > 0) {
        int how;
        waitpid(child, &how, 0);
        _exit(WIFEXITED(how) ? WEXITSTATUS(how) : 1);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    return child == 0;
}

static void
obey(struct talk *talk, struct instance *instance, uint64_t id, const char *command,
     const char *words)
{
    char why[256] = "";
    llm_link_info info = {.struct_size = sizeof(info)};
    uint16_t port = 0;
    if (strcmp(command, "become") == 0) {
        bool ok = become(words);
        talk_say(talk, "%s", ok ? "ok" : strerror(errno));
    } else if (strcmp(command, "network") == 0) {
        talk_say(talk, "%d %s", wire_enter(words, why, sizeof(why)), why);
    } else if (strcmp(command, "open") == 0) {
        bool ok = open_instance(instance, id, words);
        (void)llm_get_listen_port(instance->dd, 0, &port);
        talk_say(talk, "%d %u %lld", ok, port, (long long)instance->cache);
    } else if (strcmp(command, "link") == 0) {
        talk_say(talk, "%s", llm_status_name(link_owner(instance, words)));
    } else if (strcmp(command, "transport") == 0) {
        (void)llm_get_link_info(instance->dd, OWNER, &info);
        talk_say(talk, "%s", info.transport);
    } else if (strcmp(command, "reason") == 0) {
        (void)llm_get_link_info(instance->dd, OWNER, &info);
        talk_say(talk, "%s", info.reason);
    } else if (strcmp(command, "warning") == 0) {
        talk_say(talk, "%s", warning);
    } else {
        talk_say(talk, "%s", llm_status_name(pull(instance, strtoll(words, NULL, 10))));
    }
}

static int
serve(struct talk *talk, uint64_t id)
{
    char line[LINE_BYTES];
    struct instance instance = {0};
    llm_set_log_sink(keep_warning, NULL);
    while (talk_hear(talk, line, -1)) {
        char command[16] = "";
        int length = 0;
        sscanf(line, "%15s %n", command, &length);
        obey(talk, &instance, id, command, line + length);
    }
    llm_destroy(instance.dd);
    return 0;
}

// ---- the table ----

struct pair {
    struct process owner;
    struct process reader;
    const char *owner_ip;
    const char *reader_ip;
};

static void
start(struct pair *pair)
{
    *pair = (struct pair){.owner_ip = "127.0.0.1", .reader_ip = "127.0.0.1"};
    process_start(&pair->owner, "owner");
    process_start(&pair->reader, "reader");
}

// What the reader is; the test is skipped where it may not become that.
static void
must_become(struct pair *pair, const char *whom)
{
    char answer[LINE_BYTES];
    process_ask(&pair->reader, answer, "become %s", whom);
    if (strcmp(answer, "ok") != 0) {
        printf("no process with another %s: %s\n", whom, answer);
        skip();
    }
}

static void
check_row(struct pair *pair, const char *transport, const char *reason, bool warns)
{
    char answer[LINE_BYTES];
    unsigned port;
    long long cache;
    process_ask(&pair->owner, answer, "open %s", pair->owner_ip);
    assert_int_equal(sscanf(answer, "1 %u %lld", &port, &cache), 2);
    process_ask(&pair->reader, answer, "open %s", pair->reader_ip);
    assert_true(answer[0] == '1');
    PROCESS_EXPECT(&pair->reader, "LLM_SUCCESS", "link %s %s %u", pair->reader_ip, pair->owner_ip,
                   port);
    PROCESS_EXPECT(&pair->reader, transport, "transport");
    process_ask(&pair->reader, answer, "reason");
    if (strstr(answer, reason) == NULL)
        fail_msg("\"%s\" isn't in the reason: %s", reason, answer);
    process_ask(&pair->reader, answer, "warning");
    if ((strstr(answer, "cluster 1 is on this host") != NULL) != warns)
        fail_msg("the log's last warning is: %s", answer);
    PROCESS_EXPECT(&pair->reader, "LLM_SUCCESS", "pull %lld", cache);
    assert_true(process_join(&pair->reader));
    assert_true(process_join(&pair->owner));
}

static void
test_one_user_and_one_network_share_memory(void **state)
{
    struct pair pair;
    (void)state;
    start(&pair);
    check_row(&pair, "shm", "shm: chosen", false);
}

static void
test_another_user_takes_tcp(void **state)
{
    struct pair pair;
    (void)state;
    start(&pair);
    must_become(&pair, "user");
    check_row(&pair, "tcp", "another user", true);
}

static void
test_an_own_pid_namespace_shares_caches_and_takes_tcp_for_registered_memory(void **state)
{
    struct pair pair;
    (void)state;
    start(&pair);
    must_become(&pair, "pids");
    check_row(&pair, "shm", "registered memory over tcp", false);
}

static bool
enter_network(struct process *process, const char *ip, int *ret_fd)
{
    char answer[LINE_BYTES];
    process_ask(process, answer, "network %s", ip);
    *ret_fd = (int)strtol(answer, NULL, 10);
    if (*ret_fd < 0)
        printf("no network namespace: %s\n", answer);
    return *ret_fd >= 0;
}

static void
test_another_network_namespace_takes_tcp(void **state)
{
    struct pair pair;
    char why[256];
    int fds[2];
    (void)state;
    start(&pair);
    pair.owner_ip = "198.51.100.1";
    pair.reader_ip = "198.51.100.2";
    if (!enter_network(&pair.owner, pair.owner_ip, &fds[0]) ||
        !enter_network(&pair.reader, pair.reader_ip, &fds[1]))
        skip();
    pid_t pids[] = {pair.owner.pid, pair.reader.pid};
    if (!wire_open(pids, fds, why, sizeof(why)))
        fail_msg("%s", why);
    check_row(&pair, "tcp", "its socket can't be reached", true);
}

int
main(int argc, char **argv)
{
    const char *role;
    struct talk talk;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_one_user_and_one_network_share_memory, tear_down),
        cmocka_unit_test_teardown(test_another_user_takes_tcp, tear_down),
        cmocka_unit_test_teardown(
            test_an_own_pid_namespace_shares_caches_and_takes_tcp_for_registered_memory, tear_down),
        cmocka_unit_test_teardown(test_another_network_namespace_takes_tcp, tear_down),
    };
    if (process_role(argc, argv, &role, &talk))
        return serve(&talk, strcmp(role, "owner") == 0 ? OWNER : READER);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Names of hosts: a mount namespace has an /etc/hosts of its own, that changes while it is used.
//
//     hosts_test --run PROGRAM ARGUMENTS...     runs a program there, with LLM_TEST_HOST=kv-host
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include "registered/kit.h"

enum { LISTENER = 61, CONNECTOR = 62 };

static char hosts[] = "/tmp/hosts_test.XXXXXX";

static bool
set_hosts(const char *lines)
{
    int fd = open(hosts, O_WRONLY | O_TRUNC | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, lines, strlen(lines)) == (ssize_t)strlen(lines);
    close(fd);
    return ok;
}

static bool
enter(void)
{
    int fd = mkstemp(hosts);
    close(fd);
    if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
        return false;
    return fd >= 0 && set_hosts("127.0.0.1 kv-host\n") &&
           mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount(hosts, "/etc/hosts", NULL, MS_BIND, NULL) == 0;
}

// ---- instances ----

static void
open_at(llm_datadist **ret_dd, uint64_t id, llm_role role, const char *listen)
{
    llm_option options[] = {
        {LLM_OPTION_DEVICE_ID, "0"},
        {LLM_OPTION_LOG_LEVEL, "off"},
        {LLM_OPTION_TRANSPORTS, transport},
        {LLM_OPTION_LISTEN_IP_INFO, listen},
    };
    assert_ok(llm_create(id, role, ret_dd));
    assert_ok(llm_initialize(*ret_dd, options, 4));
}

static uint16_t
port_of(llm_datadist *dd)
{
    uint16_t port = 0;
    assert_ok(llm_get_listen_port(dd, 0, &port));
    return port;
}

struct peer {
    llm_ip_info local;
    llm_ip_info remote;
    llm_cluster_info cluster;
};

static llm_cluster_info *
peer_at(struct peer *peer, const char *host, uint16_t port)
{
    peer->local = (llm_ip_info){"0.0.0.0", 0};
    peer->remote = (llm_ip_info){host, port};
    peer->cluster = (llm_cluster_info){
        .struct_size = sizeof(peer->cluster),
        .remote_cluster_id = LISTENER,
        .local_ip_infos = &peer->local,
        .num_local_ip_infos = 1,
        .remote_ip_infos = &peer->remote,
        .num_remote_ip_infos = 1,
    };
    return &peer->cluster;
}

static llm_status
link_at(llm_datadist *dd, const char *host, uint16_t port, int32_t timeout_ms)
{
    struct peer peer;
    return llm_link_clusters(dd, peer_at(&peer, host, port), 1, NULL, NULL, timeout_ms);
}

static llm_status
unlink_at(llm_datadist *dd, const char *host, uint16_t port)
{
    struct peer peer;
    return llm_unlink_clusters(dd, peer_at(&peer, host, port), 1, NULL, NULL, PATIENCE_MS, 0);
}

// ---- tests ----

static void
test_a_name_is_looked_up_at_every_link(void **state)
{
    (void)state;
    llm_datadist *listener;
    llm_datadist *connector;
    char listen[32];
    assert_true(set_hosts("127.0.0.1 kv-host\n"));
    open_at(&connector, CONNECTOR, LLM_ROLE_DECODER, "kv-host:0");
    open_at(&listener, LISTENER, LLM_ROLE_PROMPT, "kv-host:0");
    uint16_t port = port_of(listener);
    assert_ok(link_at(connector, "kv-host", port, PATIENCE_MS));
    // The pod comes back at another address.
    llm_destroy(listener);
    snprintf(listen, sizeof(listen), "127.0.0.3:%u", port);
    open_at(&listener, LISTENER, LLM_ROLE_PROMPT, listen);
    assert_true(set_hosts("127.0.0.3 kv-host\n"));
    AWAIT(llm_check_link_status(connector, LISTENER) != LLM_SUCCESS);
    assert_ok(link_at(connector, "kv-host", port, PATIENCE_MS));
    // In version 1 an unlink compares addresses: that of the link, under any name.
    assert_status(unlink_at(connector, "127.0.0.1", port), LLM_UNLINK_FAILED);
    assert_ok(unlink_at(connector, "127.0.0.3", port));
    // The name that was given still is that of the link when it leads elsewhere.
    assert_ok(link_at(connector, "kv-host", port, PATIENCE_MS));
    assert_true(set_hosts("127.0.0.1 kv-host\n127.0.0.3 alias\n"));
    assert_ok(unlink_at(connector, "kv-host", port));
    assert_ok(link_at(connector, "127.0.0.3", port, PATIENCE_MS));
    assert_status(unlink_at(connector, "kv-host", port), LLM_UNLINK_FAILED);
    assert_ok(unlink_at(connector, "alias", port));
    llm_destroy(listener);
    llm_destroy(connector);
}

static void
test_a_name_that_nobody_knows_is_told(void **state)
{
    (void)state;
    llm_datadist *connector;
    char why[512];
    open_at(&connector, CONNECTOR, LLM_ROLE_DECODER, "kv-host:0");
    assert_status(link_at(connector, "nobody.invalid", 1, PATIENCE_MS), LLM_LINK_FAILED);
    llm_last_error(why, sizeof(why));
    assert_non_null(strstr(why, "can't look up nobody.invalid"));
    llm_destroy(connector);
}

// A listener whose queue is full answers nobody.
static int
open_black_hole(const char *address, uint16_t port, int *clients, size_t num_clients)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &name.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    assert_int_equal(listen(fd, 0), 0);
    for (size_t i = 0; i < num_clients; i++) {
        clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)connect(clients[i], (struct sockaddr *)&name, sizeof(name));
    }
    return fd;
}

static void
test_an_address_that_does_not_answer_leaves_time_for_the_next(void **state)
{
    (void)state;
    llm_datadist *listener;
    llm_datadist *connector;
    int clients[4];
    open_at(&listener, LISTENER, LLM_ROLE_PROMPT, "127.0.0.1:0");
    open_at(&connector, CONNECTOR, LLM_ROLE_DECODER, "127.0.0.1:0");
    uint16_t port = port_of(listener);
    int hole = open_black_hole("127.0.0.2", port, clients, LENGTH(clients));
    for (unsigned i = 0; i < 2; i++) {
        assert_true(set_hosts(i == 0 ? "127.0.0.2 kv-two\n127.0.0.1 kv-two\n"
                                     : "127.0.0.1 kv-two\n127.0.0.2 kv-two\n"));
        assert_ok(link_at(connector, "kv-two", port, 4000));
        assert_ok(unlink_at(connector, "kv-two", port));
    }
    // Alone it takes the time that there is.
    assert_true(set_hosts("127.0.0.2 kv-two\n"));
    llm_status ret = LLM_SUCCESS;
    struct peer peer;
    assert_status(llm_link_clusters(connector, peer_at(&peer, "kv-two", port), 1, &ret, NULL, 200),
                  LLM_LINK_FAILED);
    assert_int_equal(ret, LLM_WAIT_PROC_TIMEOUT);
    for (size_t i = 0; i < LENGTH(clients); i++)
        close(clients[i]);
    close(hole);
    llm_destroy(listener);
    llm_destroy(connector);
}

static void
test_a_listener_for_both_families(void **state)
{
    (void)state;
    static const char *const hosts_of[] = {"::1", "127.0.0.1", "localhost"};
    llm_datadist *listener;
    llm_datadist *connector;
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 name = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool has_v6 = fd >= 0 && bind(fd, (struct sockaddr *)&name, sizeof(name)) == 0;
    close(fd);
    if (!has_v6)
        skip();
    assert_true(set_hosts("127.0.0.1 localhost\n"));
    open_at(&listener, LISTENER, LLM_ROLE_PROMPT, "[::]:0");
    open_at(&connector, CONNECTOR, LLM_ROLE_DECODER, "[::]:0");
    for (size_t i = 0; i < LENGTH(hosts_of); i++) {
        assert_ok(link_at(connector, hosts_of[i], port_of(listener), PATIENCE_MS));
        // The prompt, too, knows it by the plain address.
        struct peer peer;
        llm_cluster_info *back = peer_at(&peer, i == 0 ? "::1" : "127.0.0.1", 0);
        back->remote_cluster_id = CONNECTOR;
        llm_status ret = LLM_FAILED;
        assert_ok(llm_unlink_clusters(listener, back, 1, &ret, NULL, PATIENCE_MS, 0));
        assert_int_equal(ret, LLM_SUCCESS);
        AWAIT(llm_check_link_status(connector, LISTENER) != LLM_SUCCESS);
        (void)unlink_at(connector, hosts_of[i], port_of(listener));
    }
    // The families must match.
    struct peer peer;
    char why[512];
    llm_cluster_info *mixed = peer_at(&peer, "::1", port_of(listener));
    peer.local.ip = "127.0.0.1";
    assert_status(llm_link_clusters(connector, mixed, 1, NULL, NULL, PATIENCE_MS), LLM_LINK_FAILED);
    llm_last_error(why, sizeof(why));
    assert_non_null(strstr(why, "can't connect from 127.0.0.1 to ::1"));
    llm_destroy(listener);
    llm_destroy(connector);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_a_name_is_looked_up_at_every_link),
        KIT_TEST(test_a_name_that_nobody_knows_is_told),
        KIT_TEST(test_an_address_that_does_not_answer_leaves_time_for_the_next),
        KIT_TEST(test_a_listener_for_both_families),
    };
    if (!enter()) {
        unlink(hosts);
        printf("skipped: no mount namespace with an /etc/hosts of its own\n");
        return 77;
    }
    if (argc > 2 && strcmp(argv[1], "--run") == 0) {
        setenv("LLM_TEST_HOST", "kv-host", 1);
        execv(argv[2], argv + 2);
        return 1;
    }
    transport = "tcp";
    int result = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(hosts);
    return result;
}

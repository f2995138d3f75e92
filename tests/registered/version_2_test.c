// The second generation of the interface (§13): roles are labels, whoever listens can be linked.
#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "registered/kit.h"

enum { LISTENER = 51, CONNECTOR = 52, SEED = 4, SLOTS = 4, STRIDE = 100 };
enum { FROM = 0 };

static void
open_pair(struct end *listener, struct end *connector)
{
    struct end_setup setup = {.id = LISTENER, .listens = true};
    end_open(listener, &setup);
    setup = (struct end_setup){.id = CONNECTOR};
    end_open(connector, &setup);
}

// Pulls and pushes from this side.
static void
move_from(struct end *end, const struct end *peer, struct kv *own, struct kv *theirs)
{
    for (unsigned push = 0; push < 2; push++) {
        struct job job = {
            .push = push != 0,
            .peer = peer->id,
            .remote = theirs->id,
            .count = SLOTS,
            .shift = 1,
        };
        kv_fill(push ? own : theirs, SEED);
        kv_fill(push ? theirs : own, 0);
        assert_ok(job_run(&job, end, own));
        assert_true(kv_holds(push ? theirs : own, SEED, SLOTS, 1));
    }
}

// A port where nobody listens.
static uint16_t
dead_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t bytes = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &bytes), 0);
    close(fd);
    return ntohs(address.sin_port);
}

// Somebody listens there and says nothing.  The descriptor.
static int
silent_port(uint16_t *ret_port)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t bytes = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &bytes), 0);
    *ret_port = ntohs(address.sin_port);
    return fd;
}

static void
test_roles_are_labels(void **state)
{
    (void)state;
    for (unsigned a = LLM_ROLE_PROMPT; a <= LLM_ROLE_MIX; a++) {
        for (unsigned b = LLM_ROLE_PROMPT; b <= LLM_ROLE_MIX; b++) {
            struct end listener;
            struct end connector;
            struct kv in_listener;
            struct kv in_connector;
            struct end_setup setup = {.id = LISTENER, .role = a, .listens = true};
            end_open(&listener, &setup);
            setup = (struct end_setup){.id = CONNECTOR, .role = b};
            end_open(&connector, &setup);
            assert_ok(end_link(&connector, LISTENER, listener.port));
            kv_open(&in_listener, &listener, 2, SLOTS, STRIDE);
            kv_open(&in_connector, &connector, 2, SLOTS, STRIDE);
            move_from(&connector, &listener, &in_connector, &in_listener);
            move_from(&listener, &connector, &in_listener, &in_connector);
            assert_ok(end_unlink(&connector, LISTENER, listener.port, false));
            assert_int_equal(end_state(&listener, CONNECTOR, NULL), 0);
            end_close(&listener);
            end_close(&connector);
            kv_free(&in_listener);
            kv_free(&in_connector);
        }
    }
}

static void
test_the_listen_option_decides_who_listens(void **state)
{
    (void)state;
    struct end end;
    uint16_t port;
    struct end_setup setup = {.id = LISTENER, .role = LLM_ROLE_PROMPT};
    end_open(&end, &setup);
    assert_status(llm_get_listen_port(end.dd, 0, &port), LLM_PARAM_INVALID);
    end_close(&end);
    setup = (struct end_setup){.id = LISTENER, .role = LLM_ROLE_DECODER, .listens = true};
    end_open(&end, &setup);
    assert_int_not_equal(end.port, 0);
    end_close(&end);
    // In version 1 a Prompt must listen.
    setup = (struct end_setup){.id = LISTENER, .role = LLM_ROLE_PROMPT, .version_1 = true};
    assert_status(end_try_open(&end, &setup), LLM_PARAM_INVALID);
    end_close(&end);
}

// ---- what asks for version 2 ----

static llm_status
try_options(llm_role role, const llm_option *options, size_t num_options)
{
    llm_datadist *dd;
    assert_ok(llm_create(LISTENER, role, &dd));
    llm_status status = llm_initialize(dd, options, num_options);
    llm_destroy(dd);
    return status;
}

static void
test_options_of_version_2(void **state)
{
    (void)state;
    enum { DEVICE, LISTEN, OTHER, CONFIG };
    llm_option options[] = {
        [DEVICE] = {LLM_OPTION_DEVICE_ID, "0"},
        [LISTEN] = {LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"},
        [OTHER] = {LLM_OPTION_LOCAL_COMM_RES, "{not even JSON"},
        [CONFIG] = {LLM_OPTION_GLOBAL_RESOURCE_CONFIG, "{not JSON"},
    };
    // One device, one address; what the resources say is nobody's business here.
    assert_ok(try_options(LLM_ROLE_DECODER, options, 3));
    options[DEVICE].value = "0;1";
    assert_status(try_options(LLM_ROLE_DECODER, options, 3), LLM_PARAM_INVALID);
    options[LISTEN].value = "127.0.0.1:0;127.0.0.2:0";
    assert_status(try_options(LLM_ROLE_DECODER, options, 3), LLM_PARAM_INVALID);
    options[DEVICE].value = "0";
    assert_status(try_options(LLM_ROLE_DECODER, options, 3), LLM_PARAM_INVALID);
    options[LISTEN].value = "nonsense";
    assert_status(try_options(LLM_ROLE_DECODER, options, 3), LLM_PARAM_INVALID);
    // In version 1 a Decoder's address is not looked at.
    assert_ok(try_options(LLM_ROLE_DECODER, options, 2));
    options[LISTEN].value = "127.0.0.1:0";
    // The backend has one name and needs an address.
    options[OTHER] = (llm_option){LLM_OPTION_TRANSFER_BACKEND, "hixl"};
    assert_ok(try_options(LLM_ROLE_DECODER, options, 3));
    options[OTHER].value = "HIXL";
    assert_status(try_options(LLM_ROLE_DECODER, options, 3), LLM_PARAM_INVALID);
    options[OTHER].value = "";
    assert_status(try_options(LLM_ROLE_DECODER, options, 3), LLM_PARAM_INVALID);
    options[OTHER].value = "hixl";
    options[LISTEN].key = "llm.Unknown";
    assert_status(try_options(LLM_ROLE_DECODER, options, 3), LLM_PARAM_INVALID);
    options[LISTEN].key = LLM_OPTION_LISTEN_IP_INFO;
    options[DEVICE].value = "0;1";
    assert_status(try_options(LLM_ROLE_DECODER, options, 3), LLM_PARAM_INVALID);
    options[DEVICE].value = "0";
    // The configuration is read beside the backend only.
    assert_status(try_options(LLM_ROLE_DECODER, options, 4), LLM_PARAM_INVALID);
    options[OTHER] = (llm_option){LLM_OPTION_LOCAL_COMM_RES, ""};
    assert_ok(try_options(LLM_ROLE_DECODER, options, 4));
    options[OTHER] = (llm_option){LLM_OPTION_TRANSFER_BACKEND, "hixl"};
    options[CONFIG].value = "{\"comm_resource_config\": {}}";
    assert_ok(try_options(LLM_ROLE_DECODER, options, 4));
}

static void
test_registering_asks_for_version_2(void **state)
{
    (void)state;
    struct end prompt;
    struct end decoder;
    struct kv in_prompt;
    struct kv in_decoder;
    struct kv registered;
    struct end_setup setup = {.id = LISTENER, .listens = true, .version_1 = true};
    end_open(&prompt, &setup);
    setup = (struct end_setup){.id = CONNECTOR, .version_1 = true};
    end_open(&decoder, &setup);
    assert_ok(end_link(&decoder, LISTENER, prompt.port));
    kv_allocate(&in_prompt, &prompt, 2, SLOTS, STRIDE);
    kv_allocate(&in_decoder, &decoder, 2, SLOTS, STRIDE);
    struct job push = {
        .push = true, .peer = LISTENER, .remote = in_prompt.id, .count = SLOTS, .shift = 1};
    // A Decoder doesn't push, and says in its own words that a slot isn't there.
    assert_status(job_run(&push, &decoder, &in_decoder), LLM_PARAM_INVALID);
    struct job beyond = {
        .peer = LISTENER, .remote = in_prompt.id, .slot = true, .count = SLOTS, .shift = 0};
    assert_status(job_run(&beyond, &decoder, &in_decoder), LLM_KV_CACHE_NOT_EXIST);
    // A registration that fails changes nothing.
    int64_t id;
    assert_status(llm_register_kv_cache(decoder.dd, NULL, NULL, 0, &id), LLM_PARAM_INVALID);
    assert_status(job_run(&push, &decoder, &in_decoder), LLM_PARAM_INVALID);
    kv_open(&registered, &decoder, 2, SLOTS, STRIDE);
    kv_fill(&in_decoder, SEED);
    assert_ok(job_run(&push, &decoder, &in_decoder));
    assert_true(kv_holds(&in_prompt, SEED, SLOTS, 1));
    assert_status(job_run(&beyond, &decoder, &in_decoder), LLM_PARAM_INVALID);
    // And it stays that way, also for the links.
    assert_ok(llm_unregister_kv_cache(decoder.dd, registered.id));
    assert_ok(job_run(&push, &decoder, &in_decoder));
    // The peer is another instance, with its own rules.
    push.peer = CONNECTOR;
    push.remote = in_decoder.id;
    assert_ok(job_run(&push, &prompt, &in_prompt));
    struct job pull = {.peer = CONNECTOR, .remote = in_decoder.id, .count = SLOTS};
    assert_status(job_run(&pull, &prompt, &in_prompt), LLM_PARAM_INVALID);
    end_close(&prompt);
    end_close(&decoder);
    kv_free(&in_prompt);
    kv_free(&in_decoder);
    kv_free(&registered);
}

static llm_status
register_tensor(llm_datadist *dd, int64_t *ret_id)
{
    static uint8_t memory[64];
    int64_t shape[] = {1, sizeof(memory)};
    uint64_t addrs[] = {(uintptr_t)memory};
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .num_tensors = 1,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = 2,
    };
    return llm_register_kv_cache(dd, &desc, addrs, 1, ret_id);
}

// §13.3: the option makes any role a server, as soon as version 2 holds.
static void
test_registering_listens_where_the_option_said(void **state)
{
    (void)state;
    for (unsigned role = LLM_ROLE_DECODER; role <= LLM_ROLE_MIX; role++) {
        struct end listener;
        struct end connector;
        int64_t id = 0;
        uint16_t port = 0;
        end_open(&connector, &(struct end_setup){.id = CONNECTOR});
        struct end_setup setup = {.id = LISTENER, .role = role, .version_1 = true};
        setup.listens_later = true;
        end_open(&listener, &setup);
        assert_status(llm_get_listen_port(listener.dd, 0, &port), LLM_PARAM_INVALID);
        // What registers nothing changes nothing.
        assert_status(llm_register_kv_cache(listener.dd, NULL, NULL, 0, &id), LLM_PARAM_INVALID);
        assert_status(llm_get_listen_port(listener.dd, 0, &port), LLM_PARAM_INVALID);
        assert_ok(register_tensor(listener.dd, &id));
        assert_ok(llm_get_listen_port(listener.dd, 0, &port));
        assert_ok(end_link(&connector, LISTENER, port));
        assert_int_equal(end_state(&listener, CONNECTOR, NULL), LLM_LINK_READY);
        // The next one finds it listening.
        uint16_t same_port = 0;
        assert_ok(register_tensor(listener.dd, &id));
        assert_ok(llm_get_listen_port(listener.dd, 0, &same_port));
        assert_int_equal(same_port, port);
        end_close(&connector);
        end_close(&listener);
    }
}

static void
test_a_registration_that_can_not_listen_fails(void **state)
{
    (void)state;
    uint16_t port;
    char occupied[32];
    int fd = silent_port(&port);
    snprintf(occupied, sizeof(occupied), "127.0.0.1:%u", port);
    const char *const addresses[] = {occupied, "nonsense", "127.0.0.1:0;127.0.0.1:0"};
    for (unsigned i = 0; i < LENGTH(addresses); i++) {
        llm_datadist *dd;
        int64_t id = 4711;
        char why[512];
        llm_option options[] = {
            {LLM_OPTION_DEVICE_ID, "0"},
            {LLM_OPTION_LISTEN_IP_INFO, addresses[i]},
            {LLM_OPTION_ENABLE_SET_ROLE, "1"},
        };
        assert_ok(llm_create(LISTENER, LLM_ROLE_DECODER, &dd));
        assert_ok(llm_initialize(dd, options, LENGTH(options)));
        assert_status(register_tensor(dd, &id), i == 0 ? LLM_FAILED : LLM_PARAM_INVALID);
        llm_last_error(why, sizeof(why));
        assert_non_null(strstr(why, addresses[i]));
        assert_int_equal(id, 4711);
        // It still is version 1, and no id was spent.
        llm_option own[] = {{LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"}};
        assert_status(llm_set_role(dd, LLM_ROLE_PROMPT, NULL, 0), LLM_PARAM_INVALID);
        // A change of role is a newer word about listening.
        assert_ok(llm_set_role(dd, LLM_ROLE_PROMPT, own, 1));
        assert_ok(register_tensor(dd, &id));
        assert_int_equal(id, 1);
        llm_destroy(dd);
    }
    close(fd);
}

static void
test_several_devices_register_nothing(void **state)
{
    (void)state;
    llm_datadist *dd;
    llm_option options[] = {{LLM_OPTION_DEVICE_ID, "0;1"}};
    int64_t id;
    assert_ok(llm_create(LISTENER, LLM_ROLE_DECODER, &dd));
    assert_ok(llm_initialize(dd, options, 1));
    assert_status(register_tensor(dd, &id), LLM_FEATURE_NOT_ENABLED);
    llm_destroy(dd);
}

// ---- links ----

static void
test_a_link_has_the_id_that_the_peer_announces(void **state)
{
    (void)state;
    struct end listener;
    struct end connector;
    struct kv in_listener;
    struct kv in_connector;
    open_pair(&listener, &connector);
    kv_open(&in_listener, &listener, 2, SLOTS, STRIDE);
    kv_open(&in_connector, &connector, 2, SLOTS, STRIDE);
    assert_ok(end_link(&connector, 0, listener.port));
    assert_int_equal(end_state(&connector, LISTENER, NULL), LLM_LINK_READY);
    assert_int_equal(end_state(&connector, 0, NULL), 0);
    move_from(&connector, &listener, &in_connector, &in_listener);
    // Under the right id it is linked; under another one the link is replaced.
    assert_status(end_link(&connector, LISTENER, listener.port), LLM_ALREADY_LINK);
    assert_ok(end_link(&connector, 0, listener.port));
    assert_ok(end_link(&connector, 4711, listener.port));
    assert_int_equal(end_state(&connector, 4711, NULL), 0);
    size_t num_links = 0;
    assert_ok(llm_list_links(connector.dd, NULL, 0, &num_links));
    assert_int_equal(num_links, 1);
    move_from(&connector, &listener, &in_connector, &in_listener);
    move_from(&listener, &connector, &in_listener, &in_connector);
    end_close(&listener);
    end_close(&connector);
    kv_free(&in_listener);
    kv_free(&in_connector);
}

static void
fill_cluster(llm_cluster_info *cluster, uint64_t id, llm_ip_info *local, llm_ip_info *remote,
             uint16_t port)
{
    *local = (llm_ip_info){.ip = "127.0.0.1"};
    *remote = (llm_ip_info){.ip = "127.0.0.1", .port = port};
    *cluster = (llm_cluster_info){
        .struct_size = sizeof(*cluster),
        .remote_cluster_id = id,
        .local_ip_infos = local,
        .num_local_ip_infos = 1,
        .remote_ip_infos = remote,
        .num_remote_ip_infos = 1,
    };
}

static void
test_more_than_16_clusters_in_one_call(void **state)
{
    (void)state;
    enum { MANY = 20 };
    for (unsigned unnamed = 0; unnamed < 2; unnamed++) {
        struct end listeners[MANY];
        struct end connector;
        llm_cluster_info clusters[MANY + 1];
        llm_ip_info local[MANY + 1];
        llm_ip_info remote[MANY + 1];
        llm_status rets[MANY + 1];
        size_t num_rets = 0;
        struct end_setup setup = {.id = CONNECTOR};
        end_open(&connector, &setup);
        for (size_t i = 0; i < MANY; i++) {
            setup = (struct end_setup){.id = 100 + i, .listens = true};
            end_open(&listeners[i], &setup);
            fill_cluster(&clusters[i], unnamed ? 0 : 100 + i, &local[i], &remote[i],
                         listeners[i].port);
        }
        // One of them isn't there; the others are not rolled back, and its status is returned.
        fill_cluster(&clusters[MANY], 4711, &local[MANY], &remote[MANY], dead_port());
        assert_status(
            llm_link_clusters(connector.dd, clusters, MANY + 1, rets, &num_rets, PATIENCE_MS),
            LLM_LINK_FAILED);
        assert_int_equal(num_rets, MANY + 1);
        for (size_t i = 0; i < MANY; i++) {
            assert_int_equal(rets[i], LLM_SUCCESS);
            assert_int_equal(end_state(&connector, 100 + i, NULL), LLM_LINK_READY);
        }
        assert_int_equal(rets[MANY], LLM_LINK_FAILED);
        for (size_t i = 0; i < MANY; i++)
            clusters[i].remote_cluster_id = 100 + i;
        assert_ok(
            llm_unlink_clusters(connector.dd, clusters, MANY + 1, rets, &num_rets, PATIENCE_MS, 0));
        for (size_t i = 0; i < MANY + 1; i++)
            assert_int_equal(rets[i], LLM_SUCCESS);
        size_t num_links = 4711;
        assert_ok(llm_list_links(connector.dd, NULL, 0, &num_links));
        assert_int_equal(num_links, 0);
        end_close(&connector);
        for (size_t i = 0; i < MANY; i++)
            end_close(&listeners[i]);
    }
}

// Also if it was not the one that the caller's own thread linked with.
static void
test_the_reason_of_the_cluster_that_failed_is_told(void **state)
{
    (void)state;
    struct end listener;
    struct end connector;
    llm_cluster_info clusters[2];
    llm_ip_info local[2];
    llm_ip_info remote[2];
    llm_status rets[2];
    char why[512];
    open_pair(&listener, &connector);
    fill_cluster(&clusters[0], 815, &local[0], &remote[0], dead_port());
    fill_cluster(&clusters[1], LISTENER, &local[1], &remote[1], listener.port);
    assert_status(llm_link_clusters(connector.dd, clusters, 2, rets, NULL, PATIENCE_MS),
                  LLM_LINK_FAILED);
    assert_int_equal(rets[1], LLM_SUCCESS);
    llm_last_error(why, sizeof(why));
    assert_non_null(strstr(why, "cluster 815 "));
    end_close(&listener);
    end_close(&connector);
}

static void
test_a_link_that_runs_out_of_time(void **state)
{
    (void)state;
    struct end end;
    uint16_t port;
    llm_cluster_info cluster;
    llm_ip_info local;
    llm_ip_info remote;
    llm_status ret;
    size_t num_rets;
    int fd = silent_port(&port);
    for (unsigned version_1 = 0; version_1 < 2; version_1++) {
        struct end_setup setup = {.id = CONNECTOR, .version_1 = version_1 != 0};
        end_open(&end, &setup);
        fill_cluster(&cluster, LISTENER, &local, &remote, port);
        assert_status(llm_link_clusters(end.dd, &cluster, 1, &ret, &num_rets, 100),
                      version_1 ? LLM_LINK_FAILED : LLM_TIMEOUT);
        assert_int_equal(ret, version_1 ? LLM_WAIT_PROC_TIMEOUT : LLM_TIMEOUT);
        end_close(&end);
    }
    close(fd);
}

static void
test_the_addresses_of_a_link(void **state)
{
    (void)state;
    struct end listener;
    struct end connector;
    llm_cluster_info cluster;
    llm_ip_info local[2];
    llm_ip_info remote[2];
    open_pair(&listener, &connector);
    fill_cluster(&cluster, LISTENER, &local[0], &remote[0], listener.port);
    local[1] = local[0];
    remote[1] = remote[0];
    assert_status(llm_link_clusters(connector.dd, NULL, 0, NULL, NULL, 1000), LLM_PARAM_INVALID);
    cluster.num_remote_ip_infos = 2;
    assert_status(llm_link_clusters(connector.dd, &cluster, 1, NULL, NULL, PATIENCE_MS),
                  LLM_PARAM_INVALID);
    cluster.num_remote_ip_infos = 0;
    assert_status(llm_link_clusters(connector.dd, &cluster, 1, NULL, NULL, PATIENCE_MS),
                  LLM_PARAM_INVALID);
    cluster.num_remote_ip_infos = 1;
    cluster.num_local_ip_infos = 0;
    // Nothing else tells the source address: llm.LocalCommRes is empty here.
    assert_status(llm_link_clusters(connector.dd, &cluster, 1, NULL, NULL, PATIENCE_MS),
                  LLM_PARAM_INVALID);
    end_close(&connector);
    llm_option options[] = {
        {LLM_OPTION_DEVICE_ID, "0"},
        {LLM_OPTION_LOCAL_COMM_RES, "{\"version\": \"1.3\"}"},
        {LLM_OPTION_TRANSPORTS, transport},
    };
    assert_ok(llm_create(CONNECTOR, LLM_ROLE_PROMPT, &connector.dd));
    assert_ok(llm_initialize(connector.dd, options, LENGTH(options)));
    assert_ok(llm_link_clusters(connector.dd, &cluster, 1, NULL, NULL, PATIENCE_MS));
    // A forced unlink needs none at all.
    cluster.num_remote_ip_infos = 0;
    cluster.remote_ip_infos = NULL;
    cluster.local_ip_infos = NULL;
    assert_ok(llm_unlink_clusters(connector.dd, &cluster, 1, NULL, NULL, PATIENCE_MS, 1));
    assert_int_equal(end_state(&connector, LISTENER, NULL), 0);
    end_close(&listener);
    end_close(&connector);
}

static void
test_unlinking(void **state)
{
    (void)state;
    struct end listener;
    struct end connector;
    llm_cluster_info cluster;
    llm_ip_info local;
    llm_ip_info remote;
    llm_status ret = LLM_FAILED;
    size_t num_rets;
    open_pair(&listener, &connector);
    // Of what is not linked.
    for (int force = 0; force < 2; force++) {
        fill_cluster(&cluster, 4711, &local, &remote, listener.port);
        assert_ok(
            llm_unlink_clusters(connector.dd, &cluster, 1, &ret, &num_rets, PATIENCE_MS, force));
        assert_int_equal(ret, LLM_SUCCESS);
        assert_int_equal(num_rets, 1);
    }
    // Either side ends it, and tells the other.
    assert_ok(end_link(&connector, LISTENER, listener.port));
    assert_ok(end_unlink(&listener, CONNECTOR, 1, false));
    assert_int_equal(end_state(&listener, CONNECTOR, NULL), 0);
    AWAIT(end_state(&connector, LISTENER, NULL) == 0);
    assert_ok(end_link(&connector, LISTENER, listener.port));
    assert_ok(end_unlink(&connector, LISTENER, listener.port, false));
    assert_int_equal(end_state(&connector, LISTENER, NULL), 0);
    assert_int_equal(end_state(&listener, CONNECTOR, NULL), 0);
    // A peer that is gone can't be told: the link is kept, unless forced.
    assert_ok(end_link(&connector, LISTENER, listener.port));
    end_close(&listener);
    AWAIT(end_state(&connector, LISTENER, NULL) == LLM_LINK_BROKEN);
    assert_status(end_unlink(&connector, LISTENER, listener.port, false), LLM_UNLINK_FAILED);
    assert_int_equal(end_state(&connector, LISTENER, NULL), LLM_LINK_BROKEN);
    assert_ok(end_unlink(&connector, LISTENER, listener.port, true));
    assert_int_equal(end_state(&connector, LISTENER, NULL), 0);
    end_close(&connector);
}

// Its one link is found by the id; no address is needed, and a local one isn't even read.
static void
test_unlinking_by_the_id_alone(void **state)
{
    (void)state;
    struct end listener;
    struct end connector;
    llm_cluster_info cluster;
    llm_ip_info local;
    llm_ip_info remote[2];
    open_pair(&listener, &connector);
    for (unsigned i = 0; i < 3; i++) {
        assert_ok(end_link(&connector, LISTENER, listener.port));
        fill_cluster(&cluster, LISTENER, &local, &remote[0], listener.port);
        if (i != 2)
            cluster.num_local_ip_infos = 0;
        local.ip = "nonsense";
        if (i == 0) {
            cluster.remote_ip_infos = NULL;
            cluster.num_remote_ip_infos = 0;
        }
        llm_status ret = LLM_FAILED;
        assert_ok(llm_unlink_clusters(connector.dd, &cluster, 1, &ret, NULL, PATIENCE_MS, 0));
        assert_int_equal(ret, LLM_SUCCESS);
        assert_int_equal(end_state(&connector, LISTENER, NULL), 0);
        assert_int_equal(end_state(&listener, CONNECTOR, NULL), 0);
    }
    // What is given of the peer must make sense.
    assert_ok(end_link(&connector, LISTENER, listener.port));
    remote[1] = remote[0];
    cluster.num_remote_ip_infos = 2;
    assert_status(llm_unlink_clusters(connector.dd, &cluster, 1, NULL, NULL, PATIENCE_MS, 0),
                  LLM_PARAM_INVALID);
    cluster.num_remote_ip_infos = 1;
    remote[0].ip = "256.1.1.1";
    assert_status(llm_unlink_clusters(connector.dd, &cluster, 1, NULL, NULL, PATIENCE_MS, 0),
                  LLM_PARAM_INVALID);
    assert_int_equal(end_state(&connector, LISTENER, NULL), LLM_LINK_READY);
    end_close(&listener);
    end_close(&connector);
}

// Programs give the port at which they listen, one that they always give, or the peer's.
static void
test_the_port_of_a_local_address_is_not_used(void **state)
{
    (void)state;
    enum { ROUNDS = SCALED(200, 60) };
    struct end listener;
    struct end connector;
    llm_cluster_info cluster;
    llm_ip_info local;
    llm_ip_info remote;
    open_pair(&listener, &connector);
    end_close(&connector);
    end_open(&connector, &(struct end_setup){.id = CONNECTOR, .listens = true});
    const uint16_t ports[] = {connector.port, dead_port(), listener.port};
    for (unsigned i = 0; i < ROUNDS; i++) {
        fill_cluster(&cluster, LISTENER, &local, &remote, listener.port);
        local.port = ports[i % LENGTH(ports)];
        assert_ok(llm_link_clusters(connector.dd, &cluster, 1, NULL, NULL, PATIENCE_MS));
        assert_ok(llm_unlink_clusters(connector.dd, &cluster, 1, NULL, NULL, PATIENCE_MS,
                                      i / LENGTH(ports) % 2 == 0));
    }
    end_close(&listener);
    end_close(&connector);
}

static void
test_a_local_address_that_does_not_work_is_named(void **state)
{
    (void)state;
    struct end listener;
    struct end connector;
    llm_cluster_info cluster;
    llm_ip_info local;
    llm_ip_info remote;
    char why[512];
    open_pair(&listener, &connector);
    fill_cluster(&cluster, LISTENER, &local, &remote, listener.port);
    for (unsigned i = 0; i < 2; i++) {
        // An address of nobody's (RFC 5737), here and there.
        local.ip = i == 0 ? "192.0.2.7" : "127.0.0.1";
        remote.ip = i == 0 ? "127.0.0.1" : "192.0.2.7";
        assert_status(llm_link_clusters(connector.dd, &cluster, 1, NULL, NULL, PATIENCE_MS),
                      LLM_LINK_FAILED);
        llm_last_error(why, sizeof(why));
        assert_non_null(strstr(why, i == 0 ? "can't connect from 192.0.2.7: "
                                           : "can't connect from 127.0.0.1: "));
        assert_non_null(strstr(why, "; 0.0.0.0 lets the system choose"));
    }
    local.ip = "0.0.0.0";
    remote.ip = "127.0.0.1";
    assert_ok(llm_link_clusters(connector.dd, &cluster, 1, NULL, NULL, PATIENCE_MS));
    end_close(&listener);
    end_close(&connector);
}

// ---- both at once ----

struct meeting {
    struct end *end;
    uint64_t peer;
    uint16_t port;
    pthread_barrier_t *together;
    llm_status status;
    pthread_t thread;
};

static void *
meet(void *arg)
{
    struct meeting *meeting = arg;
    pthread_barrier_wait(meeting->together);
    meeting->status = end_link(meeting->end, meeting->peer, meeting->port);
    return NULL;
}

// Two that link each other at the same moment: whichever link stays, it is the same one at both ends.
static void
test_linking_each_other_at_once(void **state)
{
    (void)state;
    enum { MEETINGS = SCALED(30, 10) };
    struct end ends[2];
    struct kv kvs[2];
    struct meeting meetings[2];
    pthread_barrier_t together;
    for (unsigned i = 0; i < 2; i++) {
        end_open(&ends[i], &(struct end_setup){.id = LISTENER + i, .listens = true});
        kv_open(&kvs[i], &ends[i], 2, SLOTS, STRIDE);
    }
    assert_int_equal(pthread_barrier_init(&together, NULL, 2), 0);
    for (unsigned time = 0; time < MEETINGS; time++) {
        for (unsigned i = 0; i < 2; i++) {
            meetings[i] = (struct meeting){.end = &ends[i],
                                           .peer = LISTENER + 1 - i,
                                           .port = ends[1 - i].port,
                                           .together = &together};
            assert_int_equal(pthread_create(&meetings[i].thread, NULL, meet, &meetings[i]), 0);
        }
        for (unsigned i = 0; i < 2; i++)
            pthread_join(meetings[i].thread, NULL);
        // One may have been late, and have found the other's link.
        for (unsigned i = 0; i < 2; i++)
            assert_true(
                meetings[i].status == LLM_SUCCESS ||
                (meetings[i].status == LLM_ALREADY_LINK && meetings[1 - i].status == LLM_SUCCESS));
        for (unsigned i = 0; i < 2; i++)
            move_from(&ends[i], &ends[1 - i], &kvs[i], &kvs[1 - i]);
        assert_ok(end_unlink(&ends[0], LISTENER + 1, ends[1].port, false));
        assert_int_equal(end_state(&ends[0], LISTENER + 1, NULL), 0);
        assert_int_equal(end_state(&ends[1], LISTENER, NULL), 0);
    }
    pthread_barrier_destroy(&together);
    for (unsigned i = 0; i < 2; i++) {
        end_close(&ends[i]);
        kv_free(&kvs[i]);
    }
}

// ---- llm_set_role ----

static void
test_set_role_needs_no_option(void **state)
{
    (void)state;
    struct end listener;
    struct end connector;
    struct kv in_listener;
    struct kv in_connector;
    uint16_t port;
    llm_option listen[] = {{LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"}};
    open_pair(&listener, &connector);
    kv_open(&in_listener, &listener, 2, SLOTS, STRIDE);
    kv_open(&in_connector, &connector, 2, SLOTS, STRIDE);
    // Links are in the way, whatever the role.
    assert_ok(end_link(&connector, LISTENER, listener.port));
    assert_status(llm_set_role(connector.dd, LLM_ROLE_MIX, NULL, 0), LLM_EXIST_LINK);
    assert_status(llm_set_role(listener.dd, LLM_ROLE_DECODER, NULL, 0), LLM_EXIST_LINK);
    assert_ok(end_unlink(&connector, LISTENER, listener.port, false));
    // They change places; the caches stay.
    assert_ok(llm_set_role(listener.dd, LLM_ROLE_PROMPT, NULL, 0));
    assert_status(llm_get_listen_port(listener.dd, 0, &port), LLM_PARAM_INVALID);
    assert_status(end_link(&connector, LISTENER, listener.port), LLM_LINK_FAILED);
    assert_ok(llm_set_role(connector.dd, LLM_ROLE_DECODER, listen, 1));
    assert_ok(llm_get_listen_port(connector.dd, 0, &port));
    assert_ok(end_link(&listener, CONNECTOR, port));
    move_from(&listener, &connector, &in_listener, &in_connector);
    move_from(&connector, &listener, &in_connector, &in_listener);
    assert_status(llm_set_role(connector.dd, (llm_role)4, NULL, 0), LLM_PARAM_INVALID);
    end_close(&listener);
    end_close(&connector);
    kv_free(&in_listener);
    kv_free(&in_connector);
}

static void
test_set_role_moves_the_listener(void **state)
{
    (void)state;
    struct end listener;
    struct end connector;
    uint16_t port;
    char here[32];
    llm_option listen[] = {{LLM_OPTION_LISTEN_IP_INFO, here}};
    open_pair(&listener, &connector);
    // To where it is: nothing happens to it.
    snprintf(here, sizeof(here), "127.0.0.1:%u", (unsigned)listener.port);
    assert_ok(llm_set_role(listener.dd, LLM_ROLE_MIX, listen, 1));
    assert_ok(llm_get_listen_port(listener.dd, 0, &port));
    assert_int_equal(port, listener.port);
    assert_ok(end_link(&connector, LISTENER, port));
    assert_ok(end_unlink(&connector, LISTENER, port, false));
    // Elsewhere.
    snprintf(here, sizeof(here), "127.0.0.1:0");
    assert_ok(llm_set_role(listener.dd, LLM_ROLE_PROMPT, listen, 1));
    assert_ok(llm_get_listen_port(listener.dd, 0, &port));
    assert_int_not_equal(port, listener.port);
    assert_status(end_link(&connector, LISTENER, listener.port), LLM_LINK_FAILED);
    assert_ok(end_link(&connector, LISTENER, port));
    end_close(&listener);
    end_close(&connector);
}

static void
test_with_a_backend_the_address_stays(void **state)
{
    (void)state;
    llm_datadist *dd;
    char same[32];
    uint16_t port;
    uint16_t port_now;
    llm_option options[] = {
        {LLM_OPTION_DEVICE_ID, "0"},
        {LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"},
        {LLM_OPTION_TRANSFER_BACKEND, "hixl"},
    };
    llm_option listen[] = {{LLM_OPTION_LISTEN_IP_INFO, "127.0.0.2:0"}};
    assert_ok(llm_create(LISTENER, LLM_ROLE_PROMPT, &dd));
    assert_ok(llm_initialize(dd, options, LENGTH(options)));
    assert_ok(llm_get_listen_port(dd, 0, &port));
    assert_status(llm_set_role(dd, LLM_ROLE_MIX, listen, 1), LLM_FEATURE_NOT_ENABLED);
    snprintf(same, sizeof(same), "127.0.0.1:%u", dead_port());
    listen[0].value = same;
    assert_status(llm_set_role(dd, LLM_ROLE_MIX, listen, 1), LLM_FEATURE_NOT_ENABLED);
    // As it was given, and as it came out.
    for (unsigned i = 0; i < 2; i++) {
        snprintf(same, sizeof(same), "127.0.0.1:%u", i == 0 ? 0 : port);
        assert_ok(llm_set_role(dd, LLM_ROLE_MIX, listen, 1));
        assert_ok(llm_get_listen_port(dd, 0, &port_now));
        assert_int_equal(port_now, port);
    }
    assert_ok(llm_set_role(dd, LLM_ROLE_DECODER, NULL, 0));
    assert_status(llm_get_listen_port(dd, 0, &port_now), LLM_PARAM_INVALID);
    llm_destroy(dd);
}

// ---- transfers ----

static void
test_pulling_from_oneself(void **state)
{
    (void)state;
    struct end end;
    struct kv kv;
    uint64_t id;
    struct end_setup setup = {.id = CONNECTOR};
    end_open(&end, &setup);
    kv_open(&kv, &end, 2, SLOTS, STRIDE);
    struct job job = {.peer = CONNECTOR, .remote = kv.id, .count = SLOTS};
    assert_status(job_run(&job, &end, &kv), LLM_PARAM_INVALID);
    assert_status(job_start(&job, &end, &kv, &id), LLM_PARAM_INVALID);
    job.slot = true;
    job.count = 1;
    assert_status(job_run(&job, &end, &kv), LLM_PARAM_INVALID);
    assert_status(job_start(&job, &end, &kv, &id), LLM_PARAM_INVALID);
    end_close(&end);
    kv_free(&kv);
}

static void
test_the_id_is_all_that_a_push_needs(void **state)
{
    (void)state;
    struct end listener;
    struct end connector;
    struct kv own;
    struct kv theirs;
    open_pair(&listener, &connector);
    assert_ok(end_link(&connector, LISTENER, listener.port));
    kv_open(&own, &connector, 4, SLOTS, STRIDE);
    kv_open(&theirs, &listener, 4, SLOTS, STRIDE);
    kv_fill(&own, SEED);
    llm_cache_desc desc = {.struct_size = sizeof(desc), .placement = LLM_PLACEMENT_DEVICE};
    llm_cache cache = kv_cache(&own);
    llm_cache_index index = {
        .struct_size = sizeof(index), .cluster_id = LISTENER, .cache_id = theirs.id};
    // Without a description, with an empty one, with the number of the tensors.
    for (unsigned i = 0; i < 3; i++) {
        uint64_t from[] = {2};
        uint64_t to[] = {0};
        cache.desc = i == 0 ? NULL : &desc;
        desc.num_tensors = i == 2 ? 4 : 0;
        kv_fill(&theirs, 0);
        index.batch_index = 1;
        assert_ok(llm_push_kv_cache(connector.dd, &cache, &index, 3, -1, NULL));
        index.batch_index = 0;
        assert_ok(llm_push_kv_blocks(connector.dd, &cache, &index, from, 1, to, 1, NULL));
        for (uint32_t t = 0; t < 4; t++) {
            assert_true(kv_slot_holds(&theirs, t, 0, SEED, t, 2));
            assert_true(kv_slot_holds(&theirs, t, 1, SEED, t, 3));
            assert_true(kv_slot_holds(&theirs, t, 2, 0, 0, 0));
        }
    }
    // The first half of the layers, by the description's number.
    desc.num_tensors = 2;
    kv_fill(&theirs, 0);
    assert_ok(llm_push_kv_cache(connector.dd, &cache, &index, 3, -1, NULL));
    assert_true(kv_slot_holds(&theirs, 1, 0, SEED, 1, 3));
    assert_true(kv_slot_holds(&theirs, 2, 0, 0, 0, 0));
    // A push still insists on the placement in the caller's struct, where there is one (§13.5).
    desc.placement = LLM_PLACEMENT_HOST;
    assert_status(llm_push_kv_cache(connector.dd, &cache, &index, 3, -1, NULL), LLM_PARAM_INVALID);
    end_close(&listener);
    end_close(&connector);
    kv_free(&own);
    kv_free(&theirs);
}

static void
test_the_checks_of_transfers_in_order(void **state)
{
    (void)state;
    struct end listener;
    struct end connector;
    struct kv own;
    struct kv theirs;
    open_pair(&listener, &connector);
    kv_open(&own, &connector, 2, SLOTS, STRIDE);
    kv_open(&theirs, &listener, 2, SLOTS, STRIDE);
    struct kv unknown = own;
    unknown.id = 4711;
    // A push: first the local cache, then the link, then what is wrong with the numbers.
    struct job push = {.push = true,
                       .peer = LISTENER,
                       .remote = 4711,
                       .slot = true,
                       .count = SLOTS,
                       .shift = SLOTS};
    assert_status(job_run(&push, &connector, &unknown), LLM_KV_CACHE_NOT_EXIST);
    assert_status(job_run(&push, &connector, &own), LLM_NOT_YET_LINK);
    // A pull: the local numbers come before the link.
    struct job pull = push;
    pull.push = false;
    assert_status(job_run(&pull, &connector, &unknown), LLM_KV_CACHE_NOT_EXIST);
    assert_status(job_run(&pull, &connector, &own), LLM_PARAM_INVALID);
    pull.shift = 0;
    assert_status(job_run(&pull, &connector, &own), LLM_NOT_YET_LINK);
    assert_ok(end_link(&connector, LISTENER, listener.port));
    assert_status(job_run(&push, &connector, &own), LLM_PARAM_INVALID);
    push.count = 0;
    assert_status(job_run(&push, &connector, &own), LLM_KV_CACHE_NOT_EXIST);
    push.remote = theirs.id;
    assert_status(job_run(&push, &connector, &own), LLM_PARAM_INVALID);
    push.shift = 0;
    assert_ok(job_run(&push, &connector, &own));
    assert_status(job_run(&pull, &connector, &own), LLM_KV_CACHE_NOT_EXIST);
    pull.remote = theirs.id;
    assert_status(job_run(&pull, &connector, &own), LLM_PARAM_INVALID);
    pull.count = 0;
    assert_ok(job_run(&pull, &connector, &own));
    end_close(&listener);
    end_close(&connector);
    kv_free(&own);
    kv_free(&theirs);
}

// A peer that stands still: of version 2 a transfer ends with LLM_TIMEOUT, of version 1 not.
static void
test_a_transfer_that_runs_out_of_time(void **state)
{
    (void)state;
    if (is_transport("local"))
        skip();
    for (unsigned version_1 = 0; version_1 < 2; version_1++) {
        struct end here;
        struct other there = {0};
        struct kv own;
        llm_status expected = version_1 ? LLM_WAIT_PROC_TIMEOUT : LLM_TIMEOUT;
        struct end_setup setup = {.id = CONNECTOR,
                                  .liveness_ms = 1000,
                                  .sync_ms = 50,
                                  .listens = true,
                                  .version_1 = version_1 != 0};
        end_open(&here, &setup);
        setup.id = LISTENER;
        setup.listens = false;
        other_open(&there, &setup);
        assert_status(other_link(&there, CONNECTOR, here.port), LLM_SUCCESS);
        kv_allocate(&own, &here, 2, SLOTS, STRIDE);
        int64_t remote = other_cache(&there, FROM, false, 2, SLOTS, STRIDE);
        process_stop(&there.process);
        struct job push = {.push = true, .peer = LISTENER, .remote = remote, .count = SLOTS};
        assert_status(job_run(&push, &here, &own), expected);
        // By now the peer has been silent for some time.
        AWAIT(end_state(&here, LISTENER, NULL) == LLM_LINK_SUSPECT);
        assert_status(llm_check_link_status(here.dd, LISTENER), expected);
        assert_status(job_run(&push, &here, &own), expected);
        process_continue(&there.process);
        push.timeout_ms = PATIENCE_MS;
        assert_ok(job_run(&push, &here, &own));
        assert_true(process_join(&there.process));
        end_close(&here);
        kv_free(&own);
    }
}

// ---- what the original's second generation does otherwise, on purpose ----

// Allocation and local copies, which it refuses.
static void
test_allocating_and_copying_work_here(void **state)
{
    (void)state;
    struct end end;
    struct kv from;
    struct kv to;
    struct end_setup setup = {.id = CONNECTOR};
    end_open(&end, &setup);
    kv_allocate(&from, &end, 2, SLOTS, STRIDE);
    kv_allocate(&to, &end, 2, SLOTS, STRIDE);
    kv_fill(&from, SEED);
    kv_fill(&to, 0);
    int64_t shape[] = {SLOTS, STRIDE};
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = 2,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = LENGTH(shape),
    };
    llm_cache source = {.struct_size = sizeof(source),
                        .cache_id = from.id,
                        .desc = &desc,
                        .tensor_addrs = (uintptr_t *)from.addresses,
                        .num_tensor_addrs = 2};
    llm_cache target = source;
    target.cache_id = to.id;
    target.tensor_addrs = (uintptr_t *)to.addresses;
    uint64_t block = 1;
    const uint64_t *lists[] = {&(uint64_t){3}};
    assert_ok(llm_copy_kv_cache(end.dd, &source, &target, 2, 0, 0, -1));
    assert_ok(llm_copy_kv_blocks(end.dd, &source, &target, &block, 1, lists, &(size_t){1}, 1));
    for (uint32_t t = 0; t < 2; t++) {
        assert_true(kv_slot_holds(&to, t, 0, SEED, t, 2));
        assert_true(kv_slot_holds(&to, t, 1, 0, 0, 0));
        assert_true(kv_slot_holds(&to, t, 3, SEED, t, 1));
    }
    assert_ok(llm_deallocate_cache(end.dd, from.id));
    assert_status(llm_deallocate_cache(end.dd, from.id), LLM_KV_CACHE_NOT_EXIST);
    end_close(&end);
    kv_free(&from);
    kv_free(&to);
}

// The place of a remote slot is the remote stride's affair, whatever is the local one.
static void
test_a_slot_begins_by_the_stride_of_its_owner(void **state)
{
    (void)state;
    struct end listener;
    struct end connector;
    struct kv wide;
    struct kv narrow;
    open_pair(&listener, &connector);
    assert_ok(end_link(&connector, LISTENER, listener.port));
    kv_open(&wide, &listener, 2, SLOTS, 3 * (uint64_t)STRIDE);
    kv_open(&narrow, &connector, 2, SLOTS, STRIDE);
    kv_fill(&wide, SEED);
    kv_fill(&narrow, 0);
    llm_cache target = kv_cache(&narrow);
    llm_cache_index index = {.struct_size = sizeof(index),
                             .cluster_id = LISTENER,
                             .cache_id = wide.id,
                             .batch_index = 2};
    assert_ok(llm_pull_kv_cache(connector.dd, &index, &target, 1, -1, NULL));
    for (uint32_t t = 0; t < 2; t++) {
        // Slot 2 of three times the stride begins where slot 6 of the simple one would.
        assert_true(kv_slot_holds(&narrow, t, 1, SEED, t, 6));
        assert_true(kv_slot_holds(&narrow, t, 0, 0, 0, 0));
    }
    // Blocks are known by number alone, and some must be named.
    uint64_t block = 0;
    assert_status(llm_pull_kv_blocks(connector.dd, &index, &target, &block, 1, &block, 1, NULL),
                  LLM_PARAM_INVALID);
    index.batch_index = 0;
    assert_status(llm_pull_kv_blocks(connector.dd, &index, &target, NULL, 0, NULL, 0, NULL),
                  LLM_PARAM_INVALID);
    end_close(&listener);
    end_close(&connector);
    kv_free(&wide);
    kv_free(&narrow);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_roles_are_labels),
        KIT_TEST(test_the_listen_option_decides_who_listens),
        KIT_TEST(test_options_of_version_2),
        KIT_TEST(test_registering_asks_for_version_2),
        KIT_TEST(test_registering_listens_where_the_option_said),
        KIT_TEST(test_a_registration_that_can_not_listen_fails),
        KIT_TEST(test_several_devices_register_nothing),
        KIT_TEST(test_a_link_has_the_id_that_the_peer_announces),
        KIT_TEST(test_more_than_16_clusters_in_one_call),
        KIT_TEST(test_the_reason_of_the_cluster_that_failed_is_told),
        KIT_TEST(test_a_link_that_runs_out_of_time),
        KIT_TEST(test_the_addresses_of_a_link),
        KIT_TEST(test_unlinking),
        KIT_TEST(test_unlinking_by_the_id_alone),
        KIT_TEST(test_the_port_of_a_local_address_is_not_used),
        KIT_TEST(test_a_local_address_that_does_not_work_is_named),
        KIT_TEST(test_linking_each_other_at_once),
        KIT_TEST(test_set_role_needs_no_option),
        KIT_TEST(test_set_role_moves_the_listener),
        KIT_TEST(test_with_a_backend_the_address_stays),
        KIT_TEST(test_pulling_from_oneself),
        KIT_TEST(test_the_id_is_all_that_a_push_needs),
        KIT_TEST(test_the_checks_of_transfers_in_order),
        KIT_TEST(test_a_transfer_that_runs_out_of_time),
        KIT_TEST(test_allocating_and_copying_work_here),
        KIT_TEST(test_a_slot_begins_by_the_stride_of_its_owner),
    };
    return kit_main(argc, argv, tests, LENGTH(tests));
}

// §6 Links.
#include "suite.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PROMPTS = 3, CLUSTERS_MAX = 20 };

struct bed {
    struct party decoder;
    struct party prompts[PROMPTS];
    struct party mix;
    llm_datadist *blank;
};

static int
set_up(void **state)
{
    struct bed *bed = calloc(1, sizeof(*bed));
    assert_non_null(bed);
    *state = bed;
    open_party(&bed->decoder, 100, LLM_ROLE_DECODER);
    for (size_t i = 0; i < PROMPTS; i++)
        open_party(&bed->prompts[i], 1 + i, LLM_ROLE_PROMPT);
    open_party(&bed->mix, 200, LLM_ROLE_MIX);
    assert_ok(llm_create(300, LLM_ROLE_DECODER, &bed->blank));
    return 0;
}

static int
tear_down(void **state)
{
    struct bed *bed = *state;
    close_party(&bed->decoder);
    for (size_t i = 0; i < PROMPTS; i++)
        close_party(&bed->prompts[i]);
    close_party(&bed->mix);
    llm_destroy(bed->blank);
    free(bed);
    return 0;
}

// ---- a call of either kind, and its outputs ----

struct call {
    struct bed *bed;
    bool unlink;
    llm_datadist *dd;
    llm_cluster_info clusters[CLUSTERS_MAX];
    llm_ip_info local[CLUSTERS_MAX][DEVICES_MAX + 1];
    llm_ip_info remote[CLUSTERS_MAX][DEVICES_MAX + 1];
    size_t num_clusters;
    int32_t timeout_ms;
    llm_status rets[CLUSTERS_MAX];
    size_t num_rets;
    bool is_empty; // rets after the call: empty, not untouched
};

static void
name_prompt(struct call *call, size_t at, const struct party *prompt)
{
    memcpy(call->local[at], loopback, sizeof(loopback));
    memcpy(call->remote[at], prompt->address, sizeof(prompt->address));
    call->clusters[at] = cluster_of(prompt);
    call->clusters[at].local_ip_infos = call->local[at];
    call->clusters[at].remote_ip_infos = call->remote[at];
}

static void
clear_rets(struct call *call)
{
    call->num_rets = SENTINEL;
    for (size_t i = 0; i < CLUSTERS_MAX; i++)
        call->rets[i] = SENTINEL;
}

// Two clusters; nothing is linked before.
static void
reset(void *arg)
{
    struct call *call = arg;
    call->dd = call->bed->decoder.dd;
    call->num_clusters = 2;
    call->timeout_ms = LINK_TIMEOUT_MS;
    for (size_t i = 0; i < 2; i++)
        name_prompt(call, i, &call->bed->prompts[i]);
    clear_rets(call);
}

static llm_status
run(void *arg)
{
    struct call *call = arg;
    if (call->unlink)
        return llm_unlink_clusters(call->dd, call->clusters, call->num_clusters, call->rets,
                                   &call->num_rets, call->timeout_ms, 0);
    return llm_link_clusters(call->dd, call->clusters, call->num_clusters, call->rets,
                             &call->num_rets, call->timeout_ms);
}

static void
assert_untouched(const struct call *call)
{
    for (size_t i = 0; i < CLUSTERS_MAX; i++)
        assert_int_equal(call->rets[i], SENTINEL);
}

// rets is untouched by checks 1 to 4, empty after 5 to 8; no link comes or goes.
static void
unharmed(void *arg)
{
    struct call *call = arg;
    assert_untouched(call);
    assert_int_equal(call->num_rets, call->is_empty ? 0 : SENTINEL);
    assert_int_equal(num_links(&call->bed->decoder), call->unlink ? 2 : 0);
}

COMMIT(not_initialized, call->dd = call->bed->blank;)
COMMIT(timeout_zero, call->timeout_ms = 0;)
COMMIT(timeout_negative, call->timeout_ms = -1;)
COMMIT(timeout_least, call->timeout_ms = INT32_MIN;)
COMMIT(remote_ip_empty, call->remote[0][0].ip = "";)
COMMIT(remote_ip_null, call->remote[0][0].ip = NULL;)
COMMIT(remote_ip_name, call->remote[1][0].ip = "local host";)
COMMIT(remote_ip_zeros, call->remote[1][0].ip = "127.0.0.01";)
COMMIT(remote_ip_three, call->remote[1][0].ip = "1.2.3";)
COMMIT(remote_ip_port, call->remote[1][0].ip = "127.0.0.1:1";)
COMMIT(remote_ip_six, call->remote[1][0].ip = "::1::";)
COMMIT(local_ip_empty, call->local[0][0].ip = "";)
COMMIT(local_ip_long, call->local[1][0].ip = "127.0.0.1.1";)
COMMIT(local_ip_256, call->local[1][0].ip = "127.0.0.256";)
COMMIT(local_ip_blank, call->local[1][0].ip = " 127.0.0.1";)
COMMIT(role_prompt, call->dd = call->bed->prompts[2].dd;)
COMMIT(role_mix, call->dd = call->bed->mix.dd;)
COMMIT(no_clusters, call->num_clusters = 0;)
COMMIT(remote_list_empty, call->clusters[1].num_remote_ip_infos = 0;)
COMMIT(local_list_empty, call->clusters[1].num_local_ip_infos = 0;)
COMMIT(both_lists_empty, call->clusters[0].num_local_ip_infos = 0;
       call->clusters[0].num_remote_ip_infos = 0;)
COMMIT(remote_list_null, call->clusters[1].remote_ip_infos = NULL;)
COMMIT(lists_too_long, call->local[0][suite.num_devices] = loopback[0];
       call->remote[0][suite.num_devices] = loopback[0]; call->clusters[0].num_local_ip_infos++;
       call->clusters[0].num_remote_ip_infos++;)
COMMIT(sizes_differ, call->remote[0][suite.num_devices] = loopback[0];
       call->clusters[0].num_remote_ip_infos++;)
COMMIT(local_ips_differ, call->local[1][0].ip = "127.0.0.2";)
COMMIT(local_ports_differ, call->local[1][0].port = 12345;)
COMMIT(
    seventeen, call->num_clusters = 17; for (size_t i = 2; i < 17; i++) {
        name_prompt(call, i, &call->bed->prompts[0]);
        call->clusters[i].remote_cluster_id = 1000 + i;
    })

enum { LOCAL_IP = 1, LISTS = 2, NUMBER = 4 };

static const struct breach breaches[] = {
    {1, LLM_FAILED, "not initialized", 0, not_initialized},
    {2, LLM_PARAM_INVALID, "timeout is 0", 0, timeout_zero},
    {2, LLM_PARAM_INVALID, "timeout is -1", 0, timeout_negative},
    {2, LLM_PARAM_INVALID, "timeout is -2147483648", 0, timeout_least},
    {3, LLM_PARAM_INVALID, "remote_ip_infos[0].ip is \"\"", NUMBER | LISTS, remote_ip_empty},
    {3, LLM_PARAM_INVALID, "remote_ip_infos[0].ip is \"\"", NUMBER | LISTS, remote_ip_null},
    // Per cluster, the remote list first.
    {3, LLM_PARAM_INVALID, "clusters[0].local_ip_infos[0].ip is", NUMBER | LISTS, local_ip_empty},
    {3, LLM_PARAM_INVALID, "clusters[1].remote_ip_infos[0].ip is", NUMBER | LISTS, remote_ip_name},
    {3, LLM_PARAM_INVALID, "clusters[1].remote_ip_infos[0].ip is", NUMBER | LISTS, remote_ip_zeros},
    {3, LLM_PARAM_INVALID, "clusters[1].remote_ip_infos[0].ip is", NUMBER | LISTS, remote_ip_three},
    {3, LLM_PARAM_INVALID, "clusters[1].remote_ip_infos[0].ip is", NUMBER | LISTS, remote_ip_port},
    {3, LLM_PARAM_INVALID, "clusters[1].remote_ip_infos[0].ip is", NUMBER | LISTS, remote_ip_six},
    {3, LLM_PARAM_INVALID, "local_ip_infos[0].ip is", NUMBER | LISTS, local_ip_long},
    {3, LLM_PARAM_INVALID, "local_ip_infos[0].ip is", NUMBER | LISTS, local_ip_256},
    {3, LLM_PARAM_INVALID, "local_ip_infos[0].ip is", NUMBER | LISTS, local_ip_blank},
    {4, LLM_PARAM_INVALID, "can't link", 0, role_prompt},
    {4, LLM_PARAM_INVALID, "", 0, role_mix},
    {6, LLM_PARAM_INVALID, "clusters is empty", NUMBER, no_clusters},
    {7, LLM_PARAM_INVALID, "one per device", LISTS, remote_list_empty},
    {7, LLM_PARAM_INVALID, "one per device", LISTS, local_list_empty},
    {7, LLM_PARAM_INVALID, "one per device", LISTS, both_lists_empty},
    {7, LLM_PARAM_INVALID, "one per device", LISTS, remote_list_null},
    {7, LLM_PARAM_INVALID, "one per device", LISTS, lists_too_long},
    {7, LLM_PARAM_INVALID, "one per device", LISTS, sizes_differ},
    {7, LLM_PARAM_INVALID, "differ from those of clusters[0]", LISTS, local_ips_differ},
    {7, LLM_PARAM_INVALID, "differ from those of clusters[0]", LISTS, local_ports_differ},
    {8, LLM_CLUSTER_NUM_EXCEED_LIMIT, "17 clusters", NUMBER, seventeen},
};

static void
prove_call(struct bed *bed, unsigned check, bool unlink)
{
    struct call call = {.bed = bed, .unlink = unlink, .is_empty = check >= 5};
    struct breach mine[COUNT_OF(breaches)];
    size_t num_mine = 0;
    for (size_t i = 0; i < COUNT_OF(breaches); i++) {
        // Unlink has no check of the role but for Mix, which has no links.
        if (!unlink || breaches[i].commit != role_prompt)
            mine[num_mine++] = breaches[i];
    }
    struct proof proof = {
        .breaches = mine,
        .num_breaches = num_mine,
        .call = &call,
        .reset = reset,
        .run = run,
        .unharmed = unharmed,
    };
    for (size_t i = 0; unlink && i < 2; i++)
        link_parties(&bed->decoder, &bed->prompts[i]);
    prove_check(&proof, check);
    assert_int_equal(call.num_rets, 2);
    assert_int_equal(call.rets[0], LLM_SUCCESS);
    assert_int_equal(call.rets[1], LLM_SUCCESS);
    assert_int_equal(call.rets[2], SENTINEL);
    assert_int_equal(num_links(&bed->decoder), unlink ? 0 : 2);
}

static void
test_port_0_of_a_peer_is_refused_before_anything_is_tried(void **state)
{
    struct bed *bed = *state;
    size_t num_devices = suite.num_devices;
    llm_ip_info here[8];
    llm_ip_info there[8];
    size_t num_rets = 7;
    llm_status ret = SENTINEL;
    char text[512];
    for (size_t d = 0; d < num_devices; d++) {
        here[d] = (llm_ip_info){"127.0.0.1", 0};
        there[d] = (llm_ip_info){"127.0.0.1", (uint16_t)(d == 0 ? 1 : 0)};
    }
    there[0].port = num_devices == 1 ? 0 : 1;
    llm_cluster_info cluster = {sizeof(cluster), 1, 0, here, num_devices, there, num_devices};
    assert_int_equal(llm_link_clusters(bed->decoder.dd, &cluster, 1, &ret, &num_rets, 1000),
                     LLM_PARAM_INVALID);
    assert_int_equal(num_rets, 0);
    assert_true(ret == SENTINEL);
    llm_last_error(text, sizeof(text));
    assert_non_null(strstr(text, "port is 0, expected 1..65535"));
}

#define PROVE_LINK(name, check)                                                                    \
    static void name(void **state)                                                                 \
    {                                                                                              \
        prove_call(*state, (check), false);                                                        \
    }
#define PROVE_UNLINK(name, check)                                                                  \
    static void name(void **state)                                                                 \
    {                                                                                              \
        prove_call(*state, (check), true);                                                         \
    }

PROVE_LINK(conformance_6_1_check_01_not_initialized_is_failed, 1)
PROVE_LINK(conformance_6_1_check_02_timeout_not_positive_is_param_invalid, 2)
PROVE_LINK(conformance_6_1_check_03_ip_that_is_no_dotted_quad_is_param_invalid, 3)
PROVE_LINK(conformance_6_1_check_04_other_roles_than_decoder_are_param_invalid, 4)
PROVE_LINK(conformance_6_1_check_06_no_clusters_is_param_invalid_and_rets_empty, 6)
PROVE_LINK(conformance_6_1_check_07_wrong_address_lists_are_param_invalid_and_rets_empty, 7)
PROVE_LINK(conformance_6_1_check_08_seventeen_clusters_exceed_the_limit_and_rets_empty, 8)

PROVE_UNLINK(conformance_6_2_check_01_not_initialized_is_failed, 1)
PROVE_UNLINK(conformance_6_2_check_02_timeout_not_positive_is_param_invalid, 2)
PROVE_UNLINK(conformance_6_2_check_03_ip_that_is_no_dotted_quad_is_param_invalid, 3)
PROVE_UNLINK(conformance_6_2_check_06_no_clusters_is_param_invalid_and_rets_empty, 6)
PROVE_UNLINK(conformance_6_2_check_07_wrong_address_lists_are_param_invalid_and_rets_empty, 7)
PROVE_UNLINK(conformance_6_2_check_08_seventeen_clusters_exceed_the_limit_and_rets_empty, 8)

// ---- a call in which another one is under way ----

struct blocked {
    const struct party *decoder;
    llm_cluster_info cluster;
    int32_t timeout_ms;
    atomic_bool ended;
    llm_status status;
    llm_status ret;
    size_t num_rets;
    pthread_t thread;
};

static void *
run_blocked(void *arg)
{
    struct blocked *blocked = arg;
    blocked->status = llm_link_clusters(blocked->decoder->dd, &blocked->cluster, 1, &blocked->ret,
                                        &blocked->num_rets, blocked->timeout_ms);
    atomic_store(&blocked->ended, true);
    return NULL;
}

static void
start_blocked(struct blocked *blocked, const struct party *decoder, const llm_ip_info *silent,
              int listener, int32_t timeout_ms)
{
    *blocked = (struct blocked){
        .decoder = decoder,
        .cluster = cluster_at(77, silent, decoder->num_devices),
        .timeout_ms = timeout_ms,
    };
    assert_int_equal(pthread_create(&blocked->thread, NULL, run_blocked, blocked), 0);
    // It has the turn when its connection has arrived.
    int fd = accept(listener, NULL, NULL);
    assert_true(fd >= 0);
    close(listener);
    // Kept open by the caller of accept: nobody will ever answer.
    (void)fd;
}

static int
open_silence(llm_ip_info *silent)
{
    uint16_t port;
    int listener = open_silent_listener(&port);
    for (size_t i = 0; i < DEVICES_MAX; i++)
        silent[i] = (llm_ip_info){suite.host, port};
    return listener;
}

static void
prove_processing(struct bed *bed, bool unlink)
{
    llm_ip_info silent[DEVICES_MAX];
    struct blocked blocked;
    struct call call = {.bed = bed, .unlink = unlink};
    int listener = open_silence(silent);
    start_blocked(&blocked, &bed->decoder, silent, listener, 2000);
    reset(&call);
    call.timeout_ms = 100;
    // The lock comes before the lists.
    call.num_clusters = 0;
    uint64_t start = now_ms();
    assert_status(run(&call), LLM_PROCESSING_LINK);
    assert_true(now_ms() - start >= 100);
    assert_false(atomic_load(&blocked.ended));
    assert_untouched(&call);
    assert_int_equal(call.num_rets, 0);
    // With patience enough it gets its turn.
    reset(&call);
    assert_ok(run(&call));
    pthread_join(blocked.thread, NULL);
    assert_status(blocked.status, LLM_LINK_FAILED);
    assert_int_equal(blocked.num_rets, 1);
    assert_int_equal(blocked.ret, LLM_WAIT_PROC_TIMEOUT);
}

static void
conformance_6_1_check_05_link_while_another_link_runs_is_processing_link(void **state)
{
    prove_processing(*state, false);
}

static void
conformance_6_2_check_05_unlink_while_a_link_runs_is_processing_link(void **state)
{
    prove_processing(*state, true);
}

// ---- per-cluster results of Link ----

static void
conformance_6_1_check_09_one_entry_per_cluster_once_links_are_attempted(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    name_prompt(&call, 2, &bed->prompts[2]);
    call.num_clusters = 3;
    call.remote[1][0].port = closed_port();
    assert_status(run(&call), LLM_LINK_FAILED);
    assert_int_equal(call.num_rets, 3);
    assert_int_equal(call.rets[0], LLM_SUCCESS);
    assert_int_equal(call.rets[1], LLM_LINK_FAILED);
    assert_int_equal(call.rets[2], LLM_SUCCESS);
    assert_int_equal(call.rets[3], SENTINEL);
}

static void
conformance_6_1_row_01_linked_is_success_and_both_ends_are_usable(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    assert_ok(run(&call));
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(call.rets[i], LLM_SUCCESS);
        assert_true(is_linked(&bed->decoder, bed->prompts[i].id));
        assert_true(is_linked(&bed->prompts[i], bed->decoder.id));
    }
}

static void
conformance_6_1_row_02_there_is_no_cap_of_512_links(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    // 512 links and more: conformance_scale.  Here, 16 in one call are all attempted.
    reset(&call);
    for (size_t i = 0; i < 16; i++) {
        name_prompt(&call, i, &bed->prompts[0]);
        call.clusters[i].remote_cluster_id = 1000 + i;
    }
    call.num_clusters = 16;
    assert_status(run(&call), LLM_LINK_FAILED);
    assert_int_equal(call.num_rets, 16);
    for (size_t i = 0; i < 16; i++)
        assert_int_equal(call.rets[i], LLM_LINK_FAILED);
    assert_int_equal(num_links(&bed->decoder), 0);
}

static void
conformance_6_1_row_03_linked_already_is_already_link_and_the_others_are_linked(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    link_parties(&bed->decoder, &bed->prompts[0]);
    reset(&call);
    // Nothing is rolled back, so the entry's own code is returned (§11, 4).
    assert_status(run(&call), LLM_ALREADY_LINK);
    assert_int_equal(call.num_rets, 2);
    assert_int_equal(call.rets[0], LLM_ALREADY_LINK);
    assert_int_equal(call.rets[1], LLM_SUCCESS);
    assert_true(is_linked(&bed->decoder, bed->prompts[0].id));
    assert_true(is_linked(&bed->decoder, bed->prompts[1].id));
}

static void
conformance_6_1_row_04_the_same_cluster_again_is_repeat_request(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    name_prompt(&call, 2, &bed->prompts[0]);
    call.num_clusters = 3;
    assert_status(run(&call), LLM_REPEAT_REQUEST);
    assert_int_equal(call.rets[0], LLM_SUCCESS);
    assert_int_equal(call.rets[1], LLM_SUCCESS);
    assert_int_equal(call.rets[2], 0x5010B003);
    assert_int_equal(num_links(&bed->decoder), 2);
}

static void
conformance_6_1_row_05_nobody_listening_is_link_failed(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    for (size_t d = 0; d < suite.num_devices; d++)
        call.remote[0][d].port = closed_port();
    call.num_clusters = 1;
    assert_status(run(&call), LLM_LINK_FAILED);
    assert_int_equal(call.num_rets, 1);
    assert_int_equal(call.rets[0], LLM_LINK_FAILED);
    assert_int_equal(num_links(&bed->decoder), 0);
}

static void
conformance_6_1_row_07_out_of_time_is_wait_proc_timeout_and_link_failed(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    llm_ip_info silent[DEVICES_MAX];
    int listener = open_silence(silent);
    reset(&call);
    memcpy(call.remote[0], silent, sizeof(silent));
    call.timeout_ms = 300;
    uint64_t start = now_ms();
    assert_status(run(&call), LLM_LINK_FAILED);
    uint64_t took = now_ms() - start;
    assert_true(took >= 299 && took < 5000);
    assert_int_equal(call.num_rets, 2);
    assert_int_equal(call.rets[0], LLM_WAIT_PROC_TIMEOUT);
    // One budget, but one silent cluster doesn't take the others' time.
    assert_int_equal(call.rets[1], LLM_SUCCESS);
    assert_false(is_linked(&bed->decoder, bed->prompts[0].id));
    assert_true(is_linked(&bed->decoder, bed->prompts[1].id));
    close(listener);
}

// ---- Link, what else is said ----

static void
conformance_6_1_rule_01_a_failed_cluster_is_rolled_back_and_the_others_stay(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    call.clusters[0].remote_cluster_id = 999;
    assert_status(run(&call), LLM_LINK_FAILED);
    assert_int_equal(call.rets[0], LLM_LINK_FAILED);
    assert_int_equal(call.rets[1], LLM_SUCCESS);
    assert_int_equal(num_links(&bed->decoder), 1);
    assert_int_equal(num_links(&bed->prompts[0]), 0);
    assert_true(is_linked(&bed->decoder, bed->prompts[1].id));
    assert_true(is_linked(&bed->prompts[1], bed->decoder.id));
    // The corrected call.
    call.clusters[0].remote_cluster_id = bed->prompts[0].id;
    call.num_clusters = 1;
    assert_ok(run(&call));
}

static void
conformance_6_1_rule_02_rets_of_the_caller_are_replaced_not_appended_to(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    call.num_rets = 7;
    assert_ok(run(&call));
    assert_int_equal(call.num_rets, 2);
    assert_int_equal(call.rets[0], LLM_SUCCESS);
    assert_int_equal(call.rets[2], SENTINEL);
    // Whoever doesn't want them says NULL.
    llm_cluster_info third = cluster_of(&bed->prompts[2]);
    assert_ok(llm_link_clusters(bed->decoder.dd, &third, 1, NULL, NULL, LINK_TIMEOUT_MS));
}

static void
conformance_6_1_rule_03_every_device_is_linked_or_none(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    size_t last = suite.num_devices - 1;
    reset(&call);
    call.num_clusters = 1;
    call.remote[0][last].port = closed_port();
    assert_status(run(&call), LLM_LINK_FAILED);
    assert_int_equal(call.rets[0], LLM_LINK_FAILED);
    assert_int_equal(num_links(&bed->decoder), 0);
    reset(&call);
    assert_ok(run(&call));
    llm_link_info info = {.struct_size = sizeof(info)};
    assert_ok(llm_get_link_info(bed->decoder.dd, bed->prompts[0].id, &info));
    assert_int_equal(info.num_devices, suite.num_devices);
}

static void
conformance_6_1_rule_04_the_hello_is_acknowledged_before_link_returns(void **state)
{
    struct bed *bed = *state;
    for (unsigned i = 0; i < rounds(30); i++) {
        link_parties(&bed->decoder, &bed->prompts[0]);
        assert_true(is_linked(&bed->prompts[0], bed->decoder.id));
        unlink_parties(&bed->decoder, &bed->prompts[0]);
        assert_int_equal(num_links(&bed->prompts[0]), 0);
    }
}

static void
conformance_6_1_rule_05_the_remote_cluster_id_is_verified(void **state)
{
    struct bed *bed = *state;
    llm_cluster_info cluster = cluster_of(&bed->prompts[0]);
    llm_status ret = SENTINEL;
    cluster.remote_cluster_id = bed->prompts[1].id;
    assert_status(link_one(&bed->decoder, &cluster, &ret), LLM_LINK_FAILED);
    assert_int_equal(ret, LLM_LINK_FAILED);
    assert_int_equal(num_links(&bed->decoder), 0);
    assert_int_equal(num_links(&bed->prompts[0]), 0);
}

static void
conformance_6_1_rule_06_a_restarted_decoder_replaces_its_stale_link_at_once(void **state)
{
    struct bed *bed = *state;
    llm_cluster_info cluster = cluster_of(&bed->prompts[0]);
    link_parties(&bed->decoder, &bed->prompts[0]);
    // It ends without a word, and comes back before the prompt is asked for anything.
    uint64_t id = bed->decoder.id;
    close_party(&bed->decoder);
    open_party(&bed->decoder, id, LLM_ROLE_DECODER);
    assert_ok(link_one(&bed->decoder, &cluster, NULL));
    assert_true(is_linked(&bed->prompts[0], id));
    assert_int_equal(num_links(&bed->prompts[0]), 1);
}

static void
conformance_6_1_rule_06_a_living_decoders_link_is_not_taken_by_another_of_its_id(void **state)
{
    struct bed *bed = *state;
    llm_cluster_info cluster = cluster_of(&bed->prompts[0]);
    llm_link_info info = {.struct_size = sizeof(info)};
    link_parties(&bed->decoder, &bed->prompts[0]);
    struct party impostor;
    open_party(&impostor, bed->decoder.id, LLM_ROLE_DECODER);
    assert_status_says(link_one(&impostor, &cluster, NULL), LLM_LINK_FAILED, "alive");
    assert_int_equal(num_links(&impostor), 0);
    assert_int_equal(num_links(&bed->prompts[0]), 1);
    assert_ok(llm_get_link_info(bed->prompts[0].dd, bed->decoder.id, &info));
    assert_int_equal(info.state, LLM_LINK_READY);
    assert_ok(llm_check_link_status(bed->decoder.dd, bed->prompts[0].id));
    // Once the other one has gone the id is free.
    unlink_parties(&bed->decoder, &bed->prompts[0]);
    assert_ok(link_one(&impostor, &cluster, NULL));
    close_party(&impostor);
}

static void
conformance_6_1_rule_07_decoders_of_one_address_are_told_apart_by_their_ids(void **state)
{
    struct bed *bed = *state;
    struct party other;
    open_party(&other, 101, LLM_ROLE_DECODER);
    link_parties(&bed->decoder, &bed->prompts[0]);
    link_parties(&other, &bed->prompts[0]);
    assert_int_equal(num_links(&bed->prompts[0]), 2);
    assert_true(is_linked(&bed->decoder, bed->prompts[0].id));
    assert_true(is_linked(&other, bed->prompts[0].id));
    close_party(&other);
}

static void
conformance_6_1_rule_08_a_broken_link_is_replaced_by_link(void **state)
{
    struct bed *bed = *state;
    link_parties(&bed->decoder, &bed->prompts[0]);
    // The prompt restarts at the same address.
    struct party_options options = {0};
    char listen[128] = "";
    for (size_t d = 0; d < suite.num_devices; d++) {
        size_t length = strlen(listen);
        snprintf(listen + length, sizeof(listen) - length, "%s%s:%u", d > 0 ? ";" : "", suite.host,
                 bed->prompts[0].address[d].port);
    }
    options.listen = listen;
    close_party(&bed->prompts[0]);
    while (is_linked(&bed->decoder, 1))
        sched_yield();
    open_party_with(&bed->prompts[0], 1, LLM_ROLE_PROMPT, &options);
    link_parties(&bed->decoder, &bed->prompts[0]);
    assert_int_equal(num_links(&bed->decoder), 1);
}

static void
conformance_6_1_rule_09_remote_role_type_is_ignored(void **state)
{
    struct bed *bed = *state;
    llm_cluster_info cluster = cluster_of(&bed->prompts[0]);
    cluster.remote_role_type = 12345;
    assert_ok(link_one(&bed->decoder, &cluster, NULL));
    cluster.remote_role_type = -1;
    assert_ok(unlink_one(&bed->decoder, &cluster, false, NULL));
}

static void
conformance_6_1_rule_10_a_mismatch_of_devices_is_link_failed(void **state)
{
    struct bed *bed = *state;
    struct party other;
    struct party_options options = {.num_devices = suite.num_devices + 1};
    open_party_with(&other, 101, LLM_ROLE_DECODER, &options);
    llm_cluster_info cluster = cluster_of(&bed->prompts[0]);
    llm_ip_info remote[DEVICES_MAX];
    for (size_t d = 0; d < DEVICES_MAX; d++)
        remote[d] = bed->prompts[0].address[0];
    cluster = cluster_at(bed->prompts[0].id, remote, other.num_devices);
    assert_status(link_one(&other, &cluster, NULL), LLM_LINK_FAILED);
    assert_int_equal(num_links(&bed->prompts[0]), 0);
    close_party(&other);
}

// The first connection's; where it comes from is seen by whoever listens.
static void
conformance_6_1_rule_11_the_port_of_a_local_address_is_bound(void **state)
{
    struct bed *bed = *state;
    llm_ip_info silent[DEVICES_MAX];
    llm_ip_info local[DEVICES_MAX];
    struct sockaddr_in6 from; // IPv4 has its port in the same place
    socklen_t bytes = sizeof(from);
    int listener = open_silence(silent);
    struct blocked blocked = {
        .decoder = &bed->decoder,
        .cluster = cluster_at(77, silent, bed->decoder.num_devices),
        .timeout_ms = LINK_TIMEOUT_MS,
    };
    memcpy(local, loopback, sizeof(local));
    blocked.cluster.local_ip_infos = local;
    local[0].port = closed_port();
    assert_int_equal(pthread_create(&blocked.thread, NULL, run_blocked, &blocked), 0);
    int fd = accept(listener, (struct sockaddr *)&from, &bytes);
    assert_true(fd >= 0);
    assert_int_equal(ntohs(from.sin6_port), local[0].port);
    close(fd);
    close(listener);
    pthread_join(blocked.thread, NULL);
    assert_status(blocked.status, LLM_LINK_FAILED);
}

static void
conformance_6_1_rule_12_a_local_port_can_be_used_again_at_once(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    uint16_t port = closed_port();
    for (unsigned i = 0; i < rounds(200); i++) {
        for (size_t d = 0; d < suite.num_devices; d++)
            call.local[0][d].port = call.local[1][d].port = port;
        assert_ok(run(&call));
        assert_ok(llm_unlink_clusters(call.dd, call.clusters, 2, call.rets, NULL, LINK_TIMEOUT_MS,
                                      i % 2 == 0));
    }
}

// The system connects a socket to its own port, if nobody else is there.
static void
conformance_6_1_rule_13_a_connection_to_itself_is_nobody_listening(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed};
    reset(&call);
    call.num_clusters = 1;
    for (size_t d = 0; d < suite.num_devices; d++)
        call.remote[0][d].port = call.local[0][d].port = closed_port();
    assert_status_says(run(&call), LLM_LINK_FAILED, "refused");
    assert_int_equal(call.rets[0], LLM_LINK_FAILED);
}

// ---- Unlink ----

static void
conformance_6_2_rule_01_mix_has_no_links_and_is_param_invalid(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed, .unlink = true};
    reset(&call);
    call.dd = bed->mix.dd;
    assert_status(run(&call), LLM_PARAM_INVALID);
    assert_untouched(&call);
}

static void
conformance_6_2_row_01_not_linked_is_not_yet_link_and_success_overall(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed, .unlink = true};
    link_parties(&bed->decoder, &bed->prompts[0]);
    reset(&call);
    assert_ok(run(&call));
    assert_int_equal(call.num_rets, 2);
    assert_int_equal(call.rets[0], LLM_SUCCESS);
    assert_int_equal(call.rets[1], LLM_NOT_YET_LINK);
    // A prompt says the same.
    llm_cluster_info back = cluster_back(&bed->decoder);
    llm_status ret = SENTINEL;
    assert_ok(unlink_one(&bed->prompts[0], &back, false, &ret));
    assert_int_equal(ret, LLM_NOT_YET_LINK);
}

static void
conformance_6_2_row_02_the_same_cluster_again_is_repeat_request_at_a_decoder(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed, .unlink = true};
    link_parties(&bed->decoder, &bed->prompts[0]);
    reset(&call);
    name_prompt(&call, 1, &bed->prompts[0]);
    assert_status(run(&call), LLM_UNLINK_FAILED);
    assert_int_equal(call.rets[0], LLM_SUCCESS);
    assert_int_equal(call.rets[1], LLM_REPEAT_REQUEST);
    assert_int_equal(num_links(&bed->decoder), 0);
    // At a prompt the first one has removed it.
    link_parties(&bed->decoder, &bed->prompts[0]);
    llm_cluster_info twice[2] = {cluster_back(&bed->decoder), cluster_back(&bed->decoder)};
    llm_status rets[2] = {SENTINEL, SENTINEL};
    assert_ok(llm_unlink_clusters(bed->prompts[0].dd, twice, 2, rets, NULL, LINK_TIMEOUT_MS, 0));
    assert_int_equal(rets[0], LLM_SUCCESS);
    assert_int_equal(rets[1], LLM_NOT_YET_LINK);
}

static void
conformance_6_2_row_03_other_addresses_than_the_links_are_param_invalid_link_kept(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed, .unlink = true};
    link_parties(&bed->decoder, &bed->prompts[0]);
    reset(&call);
    call.num_clusters = 1;
    call.remote[0][suite.num_devices - 1].ip = "127.0.0.2";
    assert_status(run(&call), LLM_UNLINK_FAILED);
    assert_int_equal(call.rets[0], LLM_PARAM_INVALID);
    assert_true(is_linked(&bed->decoder, bed->prompts[0].id));
    reset(&call);
    call.num_clusters = 1;
    call.local[0][0].ip = "127.0.0.2";
    assert_status(run(&call), LLM_UNLINK_FAILED);
    assert_int_equal(call.rets[0], LLM_PARAM_INVALID);
    assert_true(is_linked(&bed->decoder, bed->prompts[0].id));
    // A prompt looks its links up by that address.
    llm_ip_info elsewhere[DEVICES_MAX];
    llm_status ret = SENTINEL;
    memcpy(elsewhere, loopback, sizeof(elsewhere));
    elsewhere[0].ip = "127.0.0.2";
    llm_cluster_info back = cluster_at(bed->decoder.id, elsewhere, suite.num_devices);
    assert_ok(unlink_one(&bed->prompts[0], &back, false, &ret));
    assert_int_equal(ret, LLM_NOT_YET_LINK);
    assert_true(is_linked(&bed->prompts[0], bed->decoder.id));
    // Ports are not compared.
    reset(&call);
    call.num_clusters = 1;
    for (size_t d = 0; d < suite.num_devices; d++) {
        call.remote[0][d].port = 1;
        call.local[0][d].port = 2;
    }
    assert_ok(run(&call));
    assert_int_equal(call.rets[0], LLM_SUCCESS);
}

static void
conformance_6_2_row_05_a_peer_that_is_gone_is_notify_prompt_unlink_failed(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed, .unlink = true};
    link_parties(&bed->decoder, &bed->prompts[0]);
    close_party(&bed->prompts[0]);
    while (is_linked(&bed->decoder, 1))
        sched_yield();
    reset(&call);
    call.num_clusters = 1;
    assert_status(run(&call), LLM_UNLINK_FAILED);
    assert_int_equal(call.rets[0], LLM_NOTIFY_PROMPT_UNLINK_FAILED);
    // The link is gone all the same.
    assert_int_equal(num_links(&bed->decoder), 0);
    clear_rets(&call);
    assert_ok(run(&call));
    assert_int_equal(call.rets[0], LLM_NOT_YET_LINK);
}

static void
conformance_6_2_row_08_a_good_link_is_removed_with_success(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed, .unlink = true};
    for (size_t i = 0; i < PROMPTS; i++)
        link_parties(&bed->decoder, &bed->prompts[i]);
    reset(&call);
    name_prompt(&call, 2, &bed->prompts[2]);
    call.num_clusters = 3;
    assert_ok(run(&call));
    assert_int_equal(call.num_rets, 3);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(call.rets[i], LLM_SUCCESS);
    assert_int_equal(num_links(&bed->decoder), 0);
}

static void
conformance_6_2_rule_02_any_entry_but_success_and_not_linked_is_unlink_failed(void **state)
{
    struct bed *bed = *state;
    struct call call = {.bed = bed, .unlink = true};
    link_parties(&bed->decoder, &bed->prompts[0]);
    link_parties(&bed->decoder, &bed->prompts[1]);
    reset(&call);
    name_prompt(&call, 2, &bed->prompts[2]);
    call.num_clusters = 3;
    call.remote[0][0].ip = "127.0.0.2";
    assert_status(run(&call), LLM_UNLINK_FAILED);
    assert_int_equal(call.rets[0], LLM_PARAM_INVALID);
    assert_int_equal(call.rets[1], LLM_SUCCESS);
    assert_int_equal(call.rets[2], LLM_NOT_YET_LINK);
    // Nothing is rolled back.
    assert_true(is_linked(&bed->decoder, bed->prompts[0].id));
    assert_false(is_linked(&bed->decoder, bed->prompts[1].id));
}

static void
conformance_6_2_rule_03_a_decoder_without_force_removes_both_ends(void **state)
{
    struct bed *bed = *state;
    link_parties(&bed->decoder, &bed->prompts[0]);
    unlink_parties(&bed->decoder, &bed->prompts[0]);
    assert_int_equal(num_links(&bed->decoder), 0);
    assert_int_equal(num_links(&bed->prompts[0]), 0);
}

static void
conformance_6_2_rule_04_force_removes_the_local_end_without_a_word(void **state)
{
    struct bed *bed = *state;
    llm_cluster_info cluster = cluster_of(&bed->prompts[0]);
    llm_cluster_info back = cluster_back(&bed->decoder);
    link_parties(&bed->decoder, &bed->prompts[0]);
    assert_ok(unlink_one(&bed->decoder, &cluster, true, NULL));
    assert_int_equal(num_links(&bed->decoder), 0);
    // The prompt keeps its end, broken as soon as it notices, until it unlinks too.
    assert_int_equal(num_links(&bed->prompts[0]), 1);
    while (is_linked(&bed->prompts[0], bed->decoder.id))
        sched_yield();
    assert_ok(unlink_one(&bed->prompts[0], &back, false, NULL));
    assert_int_equal(num_links(&bed->prompts[0]), 0);
}

static void
conformance_6_2_rule_05_a_prompt_removes_its_end_alone_whatever_force_says(void **state)
{
    struct bed *bed = *state;
    llm_cluster_info cluster = cluster_of(&bed->prompts[0]);
    llm_cluster_info back = cluster_back(&bed->decoder);
    for (int force = 0; force < 2; force++) {
        link_parties(&bed->decoder, &bed->prompts[0]);
        assert_ok(unlink_one(&bed->prompts[0], &back, force, NULL));
        assert_int_equal(num_links(&bed->prompts[0]), 0);
        assert_int_equal(num_links(&bed->decoder), 1);
        assert_ok(unlink_one(&bed->decoder, &cluster, true, NULL));
        assert_int_equal(num_links(&bed->decoder), 0);
    }
}

static void
conformance_6_2_rule_06_unlink_and_link_again_many_times(void **state)
{
    struct bed *bed = *state;
    llm_cluster_info cluster = cluster_of(&bed->prompts[0]);
    for (unsigned i = 0; i < rounds(30); i++) {
        link_parties(&bed->decoder, &bed->prompts[0]);
        assert_ok(unlink_one(&bed->decoder, &cluster, i % 2 == 0, NULL));
    }
    assert_int_equal(num_links(&bed->decoder), 0);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

static const struct CMUnitTest tests[] = {
    TEST(conformance_6_1_check_01_not_initialized_is_failed),
    TEST(conformance_6_1_check_02_timeout_not_positive_is_param_invalid),
    TEST(test_port_0_of_a_peer_is_refused_before_anything_is_tried),
    TEST(conformance_6_1_check_03_ip_that_is_no_dotted_quad_is_param_invalid),
    TEST(conformance_6_1_check_04_other_roles_than_decoder_are_param_invalid),
    TEST(conformance_6_1_check_05_link_while_another_link_runs_is_processing_link),
    TEST(conformance_6_1_check_06_no_clusters_is_param_invalid_and_rets_empty),
    TEST(conformance_6_1_check_07_wrong_address_lists_are_param_invalid_and_rets_empty),
    TEST(conformance_6_1_check_08_seventeen_clusters_exceed_the_limit_and_rets_empty),
    TEST(conformance_6_1_check_09_one_entry_per_cluster_once_links_are_attempted),
    TEST(conformance_6_1_row_01_linked_is_success_and_both_ends_are_usable),
    TEST(conformance_6_1_row_02_there_is_no_cap_of_512_links),
    TEST(conformance_6_1_row_03_linked_already_is_already_link_and_the_others_are_linked),
    TEST(conformance_6_1_row_04_the_same_cluster_again_is_repeat_request),
    TEST(conformance_6_1_row_05_nobody_listening_is_link_failed),
    TEST(conformance_6_1_row_07_out_of_time_is_wait_proc_timeout_and_link_failed),
    TEST(conformance_6_1_rule_01_a_failed_cluster_is_rolled_back_and_the_others_stay),
    TEST(conformance_6_1_rule_02_rets_of_the_caller_are_replaced_not_appended_to),
    TEST(conformance_6_1_rule_03_every_device_is_linked_or_none),
    TEST(conformance_6_1_rule_04_the_hello_is_acknowledged_before_link_returns),
    TEST(conformance_6_1_rule_05_the_remote_cluster_id_is_verified),
    TEST(conformance_6_1_rule_06_a_restarted_decoder_replaces_its_stale_link_at_once),
    TEST(conformance_6_1_rule_06_a_living_decoders_link_is_not_taken_by_another_of_its_id),
    TEST(conformance_6_1_rule_07_decoders_of_one_address_are_told_apart_by_their_ids),
    TEST(conformance_6_1_rule_08_a_broken_link_is_replaced_by_link),
    TEST(conformance_6_1_rule_09_remote_role_type_is_ignored),
    TEST(conformance_6_1_rule_10_a_mismatch_of_devices_is_link_failed),
    TEST(conformance_6_1_rule_11_the_port_of_a_local_address_is_bound),
    TEST(conformance_6_1_rule_12_a_local_port_can_be_used_again_at_once),
    TEST(conformance_6_1_rule_13_a_connection_to_itself_is_nobody_listening),
    TEST(conformance_6_2_check_01_not_initialized_is_failed),
    TEST(conformance_6_2_check_02_timeout_not_positive_is_param_invalid),
    TEST(conformance_6_2_check_03_ip_that_is_no_dotted_quad_is_param_invalid),
    TEST(conformance_6_2_check_05_unlink_while_a_link_runs_is_processing_link),
    TEST(conformance_6_2_check_06_no_clusters_is_param_invalid_and_rets_empty),
    TEST(conformance_6_2_check_07_wrong_address_lists_are_param_invalid_and_rets_empty),
    TEST(conformance_6_2_check_08_seventeen_clusters_exceed_the_limit_and_rets_empty),
    TEST(conformance_6_2_row_01_not_linked_is_not_yet_link_and_success_overall),
    TEST(conformance_6_2_row_02_the_same_cluster_again_is_repeat_request_at_a_decoder),
    TEST(conformance_6_2_row_03_other_addresses_than_the_links_are_param_invalid_link_kept),
    TEST(conformance_6_2_row_05_a_peer_that_is_gone_is_notify_prompt_unlink_failed),
    TEST(conformance_6_2_row_08_a_good_link_is_removed_with_success),
    TEST(conformance_6_2_rule_01_mix_has_no_links_and_is_param_invalid),
    TEST(conformance_6_2_rule_02_any_entry_but_success_and_not_linked_is_unlink_failed),
    TEST(conformance_6_2_rule_03_a_decoder_without_force_removes_both_ends),
    TEST(conformance_6_2_rule_04_force_removes_the_local_end_without_a_word),
    TEST(conformance_6_2_rule_05_a_prompt_removes_its_end_alone_whatever_force_says),
    TEST(conformance_6_2_rule_06_unlink_and_link_again_many_times),
};
CONFORMANCE_MAIN("6 Links", tests)

// §5 Life cycle.
#include "suite.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

enum { OPTIONS_MAX = 8 };

struct call {
    llm_datadist *dd;
    llm_datadist *invalid_role; // an instance that was made with no role at all
    llm_datadist *fresh;
    llm_option options[OPTIONS_MAX];
    size_t num_options;
};

static int
no_set_up(void **state)
{
    *state = NULL;
    return 0;
}

static void
set_option(struct call *call, const char *key, const char *value)
{
    size_t i = 0;
    while (i < call->num_options && strcmp(call->options[i].key, key) != 0)
        i++;
    assert_true(i < OPTIONS_MAX);
    call->options[i] = (llm_option){key, value};
    if (i == call->num_options)
        call->num_options++;
}

static void
remove_option(struct call *call, const char *key)
{
    for (size_t i = 0; i < call->num_options; i++) {
        if (strcmp(call->options[i].key, key) == 0)
            call->options[i] = call->options[--call->num_options];
    }
}

// ---- §5.3 Initialize ----

// A port that is taken, for as long as the test runs.
static char occupied[32];

static void
reset(void *arg)
{
    struct call *call = arg;
    call->num_options = 0;
    call->dd = call->fresh;
    llm_finalize(call->fresh);
    set_option(call, LLM_OPTION_DEVICE_ID, "0");
    set_option(call, LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0");
    set_option(call, LLM_OPTION_BUF_POOL_CFG, "{\"buf_pool_size\":67108864}");
}

static llm_status
run(void *arg)
{
    struct call *call = arg;
    return llm_initialize(call->dd, call->options, call->num_options);
}

// It is not initialised now.
static void
unharmed(void *arg)
{
    struct call *call = arg;
    assert_status(llm_deallocate_cache(call->dd, 1), LLM_FAILED);
}

COMMIT(role_invalid, call->dd = call->invalid_role;)
COMMIT(device_missing, remove_option(call, LLM_OPTION_DEVICE_ID);)
COMMIT(device_empty, set_option(call, LLM_OPTION_DEVICE_ID, "");)
COMMIT(device_word, set_option(call, LLM_OPTION_DEVICE_ID, "a");)
COMMIT(listen_missing, remove_option(call, LLM_OPTION_LISTEN_IP_INFO);)
COMMIT(listen_two, set_option(call, LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0;127.0.0.1:0");)
COMMIT(listen_name, set_option(call, LLM_OPTION_LISTEN_IP_INFO, "local host:0");)
COMMIT(pool_empty, set_option(call, LLM_OPTION_BUF_POOL_CFG, "");)
COMMIT(pool_broken, set_option(call, LLM_OPTION_BUF_POOL_CFG, "{");)
COMMIT(pool_zero, set_option(call, LLM_OPTION_BUF_POOL_CFG, "{\"buf_pool_size\":0}");)
COMMIT(set_role_word, set_option(call, LLM_OPTION_ENABLE_SET_ROLE, "true");)
COMMIT(sync_negative, set_option(call, LLM_OPTION_SYNC_CACHE_WAIT_TIME, "-1");)
COMMIT(device_unavailable, set_option(call, LLM_OPTION_DEVICE_TYPE, "ascend");)
COMMIT(tiers_empty, set_option(call, LLM_OPTION_BUF_POOL_CFG, "{\"buf_cfg\":[]}");)
COMMIT(listen_occupied, set_option(call, LLM_OPTION_LISTEN_IP_INFO, occupied);)
COMMIT(listen_foreign, set_option(call, LLM_OPTION_LISTEN_IP_INFO, "203.0.113.1:0");)

enum { DEVICE = 1, LISTEN = 2, POOL = 4, ROLE = 8 };

static const struct breach breaches[] = {
    {2, LLM_PARAM_INVALID, "role is 4", ROLE, role_invalid},
    {3, LLM_PARAM_INVALID, LLM_OPTION_DEVICE_ID, DEVICE, device_missing},
    {3, LLM_PARAM_INVALID, LLM_OPTION_DEVICE_ID, DEVICE, device_empty},
    {3, LLM_PARAM_INVALID, LLM_OPTION_DEVICE_ID, DEVICE, device_word},
    {4, LLM_PARAM_INVALID, LLM_OPTION_LISTEN_IP_INFO, LISTEN, listen_missing},
    {4, LLM_PARAM_INVALID, LLM_OPTION_LISTEN_IP_INFO, LISTEN, listen_two},
    {4, LLM_PARAM_INVALID, LLM_OPTION_LISTEN_IP_INFO, LISTEN, listen_name},
    {6, LLM_PARAM_INVALID, LLM_OPTION_BUF_POOL_CFG, POOL, pool_empty},
    {6, LLM_PARAM_INVALID, LLM_OPTION_BUF_POOL_CFG, POOL, pool_broken},
    {6, LLM_PARAM_INVALID, LLM_OPTION_BUF_POOL_CFG, POOL, pool_zero},
    {7, LLM_PARAM_INVALID, LLM_OPTION_ENABLE_SET_ROLE, 0, set_role_word},
    {8, LLM_PARAM_INVALID, LLM_OPTION_SYNC_CACHE_WAIT_TIME, 0, sync_negative},
    {9, LLM_FAILED, LLM_OPTION_DEVICE_TYPE, 0, device_unavailable},
    {10, LLM_PARAM_INVALID, "buf_cfg is", POOL, tiers_empty},
    {11, LLM_FAILED, "can't listen", LISTEN, listen_occupied},
    {11, LLM_FAILED, "can't listen", LISTEN, listen_foreign},
};

static void
prove_initialize(unsigned check)
{
    struct call call = {0};
    uint16_t port;
    int listener = open_silent_listener(&port);
    struct proof proof = {
        .breaches = breaches,
        .num_breaches = COUNT_OF(breaches),
        .call = &call,
        .reset = reset,
        .run = run,
        .unharmed = unharmed,
    };
    snprintf(occupied, sizeof(occupied), "127.0.0.1:%u", port);
    assert_ok(llm_create(1, LLM_ROLE_PROMPT, &call.fresh));
    assert_ok(llm_create(2, (llm_role)4, &call.invalid_role));
    prove_check(&proof, check);
    // After all these failures the last, correct call has worked on the same object.
    assert_status(llm_deallocate_cache(call.fresh, 1), LLM_KV_CACHE_NOT_EXIST);
    llm_destroy(call.fresh);
    llm_destroy(call.invalid_role);
    close(listener);
}

#define PROVE_INITIALIZE(name, check)                                                              \
    static void name(void **state)                                                                 \
    {                                                                                              \
        (void)state;                                                                               \
        prove_initialize(check);                                                                   \
    }

PROVE_INITIALIZE(conformance_5_3_check_02_role_that_is_none_is_param_invalid, 2)
PROVE_INITIALIZE(conformance_5_3_check_03_bad_device_ids_are_param_invalid, 3)
PROVE_INITIALIZE(conformance_5_3_check_04_bad_listen_addresses_of_a_prompt_are_param_invalid, 4)
PROVE_INITIALIZE(conformance_5_3_check_06_bad_pool_json_is_param_invalid, 6)
PROVE_INITIALIZE(conformance_5_3_check_07_bad_set_role_option_is_param_invalid, 7)
PROVE_INITIALIZE(conformance_5_3_check_08_bad_sync_time_is_param_invalid, 8)
PROVE_INITIALIZE(conformance_5_3_check_09_device_that_cannot_be_opened_is_failed, 9)
PROVE_INITIALIZE(conformance_5_3_check_10_bad_pool_tiers_are_param_invalid, 10)
PROVE_INITIALIZE(conformance_5_3_check_11_listener_that_cannot_bind_is_failed, 11)

static void
conformance_5_3_check_01_already_initialized_is_success_and_options_ignored(void **state)
{
    struct party party;
    llm_option nonsense[] = {{LLM_OPTION_DEVICE_ID, "a"}};
    (void)state;
    open_party(&party, 1, LLM_ROLE_PROMPT);
    uint16_t port = party.address[0].port;
    assert_ok(llm_initialize(party.dd, nonsense, 1));
    assert_ok(llm_initialize(party.dd, NULL, 0));
    read_ports(&party);
    assert_int_equal(party.address[0].port, port);
    close_party(&party);
}

static void
conformance_5_3_rule_01_after_finalize_it_can_be_initialized_again(void **state)
{
    struct call call = {0};
    (void)state;
    assert_ok(llm_create(1, LLM_ROLE_PROMPT, &call.fresh));
    for (int i = 0; i < 5; i++) {
        reset(&call);
        assert_ok(run(&call));
        assert_status(llm_deallocate_cache(call.fresh, 1), LLM_KV_CACHE_NOT_EXIST);
        llm_finalize(call.fresh);
        unharmed(&call);
    }
    llm_destroy(call.fresh);
}

static void
conformance_5_3_rule_02_after_a_failure_a_corrected_call_works(void **state)
{
    struct call call = {0};
    (void)state;
    assert_ok(llm_create(1, LLM_ROLE_PROMPT, &call.fresh));
    reset(&call);
    listen_missing(&call);
    assert_status(run(&call), LLM_PARAM_INVALID);
    unharmed(&call);
    reset(&call);
    assert_ok(run(&call));
    llm_destroy(call.fresh);
}

static void
conformance_5_3_rule_03_cache_ids_begin_at_1_again(void **state)
{
    struct party party;
    struct kv kv;
    llm_option options[] = {{LLM_OPTION_DEVICE_ID, "0"}};
    (void)state;
    open_party(&party, 1, LLM_ROLE_DECODER);
    for (int64_t i = 1; i <= 3; i++) {
        open_bytes(&kv, &party, 1, 1, 8);
        assert_int_equal(kv.cache.cache_id, i);
        forget_kv(&kv);
    }
    llm_finalize(party.dd);
    party.num_devices = 1;
    assert_ok(llm_initialize(party.dd, options, 1));
    open_bytes(&kv, &party, 1, 1, 8);
    assert_int_equal(kv.cache.cache_id, 1);
    forget_kv(&kv);
    close_party(&party);
}

struct initializer {
    struct call *call;
    llm_status status;
    pthread_t thread;
};

static void *
run_initialize(void *arg)
{
    struct initializer *initializer = arg;
    initializer->status = run(initializer->call);
    return NULL;
}

static void
conformance_5_3_rule_04_concurrent_calls_are_serialised_and_all_succeed(void **state)
{
    struct call call = {0};
    struct initializer initializers[4];
    (void)state;
    assert_ok(llm_create(1, LLM_ROLE_PROMPT, &call.fresh));
    reset(&call);
    for (size_t i = 0; i < 4; i++) {
        initializers[i].call = &call;
        assert_int_equal(
            pthread_create(&initializers[i].thread, NULL, run_initialize, &initializers[i]), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(initializers[i].thread, NULL);
        assert_status(initializers[i].status, LLM_SUCCESS);
    }
    llm_destroy(call.fresh);
}

static void
conformance_5_3_rule_05_the_role_of_a_set_role_survives_finalize(void **state)
{
    struct party party;
    struct party_options options = {.num_devices = 1, .set_role = true};
    llm_option listen[] = {{LLM_OPTION_DEVICE_ID, "0"}, {LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"}};
    (void)state;
    open_party_with(&party, 1, LLM_ROLE_DECODER, &options);
    assert_ok(llm_set_role(party.dd, LLM_ROLE_PROMPT, &listen[1], 1));
    llm_finalize(party.dd);
    // A Prompt needs an address, a Decoder doesn't.
    assert_status(llm_initialize(party.dd, listen, 1), LLM_PARAM_INVALID);
    assert_ok(llm_initialize(party.dd, listen, 2));
    read_ports(&party);
    close_party(&party);
}

static void
conformance_5_3_rule_06_a_prompt_listens_on_every_device(void **state)
{
    struct party party;
    (void)state;
    open_party(&party, 1, LLM_ROLE_PROMPT);
    for (size_t d = 0; d < suite.num_devices; d++)
        assert_true(party.address[d].port != 0);
    uint16_t port;
    assert_status(llm_get_listen_port(party.dd, suite.num_devices, &port), LLM_PARAM_INVALID);
    close_party(&party);
}

// ---- §5.1, §5.2, §5.4 ----

static void
conformance_5_1_rule_01_nothing_is_validated_or_opened(void **state)
{
    llm_datadist *dd = NULL;
    (void)state;
    for (int role = -1; role <= 5; role++) {
        assert_ok(llm_create(0, (llm_role)role, &dd));
        assert_non_null(dd);
        llm_destroy(dd);
    }
}

static void
conformance_5_1_rule_02_any_cluster_id_even_0(void **state)
{
    uint64_t ids[] = {0, 1, UINT64_MAX, (uint64_t)1 << 63};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        struct party decoder;
        struct party prompt;
        open_party(&prompt, ids[i], LLM_ROLE_PROMPT);
        open_party(&decoder, ids[i] + 7, LLM_ROLE_DECODER);
        link_parties(&decoder, &prompt);
        assert_true(is_linked(&prompt, ids[i] + 7));
        close_party(&decoder);
        close_party(&prompt);
    }
}

static void
conformance_5_2_rule_01_the_destructor_releases_everything(void **state)
{
    struct party party;
    struct party again;
    char listen[DEVICES_MAX * 32] = "";
    (void)state;
    open_party(&party, 1, LLM_ROLE_PROMPT);
    for (size_t d = 0; d < suite.num_devices; d++) {
        size_t length = strlen(listen);
        snprintf(listen + length, sizeof(listen) - length, "%s127.0.0.1:%u", d > 0 ? ";" : "",
                 party.address[d].port);
    }
    struct kv kv;
    open_bytes(&kv, &party, 3, 4, 100);
    close_party(&party);
    forget_kv(&kv);
    // The addresses are free.
    struct party_options options = {.listen = listen};
    open_party_with(&again, 1, LLM_ROLE_PROMPT, &options);
    assert_int_equal(again.address[0].port, party.address[0].port);
    close_party(&again);
    llm_destroy(NULL);
}

static void
conformance_5_4_rule_01_finalize_may_be_repeated_and_does_nothing_if_not_initialized(void **state)
{
    llm_datadist *dd;
    struct party party;
    (void)state;
    assert_ok(llm_create(1, LLM_ROLE_DECODER, &dd));
    llm_finalize(dd);
    llm_finalize(dd);
    llm_destroy(dd);
    open_party(&party, 1, LLM_ROLE_DECODER);
    llm_finalize(party.dd);
    llm_finalize(party.dd);
    assert_status(llm_deallocate_cache(party.dd, 1), LLM_FAILED);
    close_party(&party);
}

static void
conformance_5_4_rule_02_links_go_and_the_peer_sees_a_failure(void **state)
{
    struct party decoder;
    struct party prompt;
    struct kv local;
    struct kv remote;
    (void)state;
    open_party(&prompt, 1, LLM_ROLE_PROMPT);
    open_party(&decoder, 2, LLM_ROLE_DECODER);
    open_bytes(&local, &decoder, 2, 2, 8);
    open_bytes(&remote, &prompt, 2, 2, 8);
    link_parties(&decoder, &prompt);
    llm_cache_index from = index_of(&prompt, &remote, 0);
    assert_ok(llm_pull_kv_cache(decoder.dd, &from, &local.cache, 0, -1, NULL));
    llm_finalize(prompt.dd);
    while (is_linked(&decoder, prompt.id))
        sched_yield();
    assert_status(llm_pull_kv_cache(decoder.dd, &from, &local.cache, 0, -1, NULL), LLM_FAILED);
    // It stays in the table until it is unlinked.
    assert_int_equal(num_links(&decoder), 1);
    close_party(&decoder);
    close_party(&prompt);
    forget_kv(&local);
    forget_kv(&remote);
}

// ---- §5.5 SetRole ----

struct role_call {
    struct party party;   // a decoder that may change
    struct party without; // not enabled
    struct party several; // enabled, two devices
    struct party linked;  // enabled, with a link
    struct party prompt;  // the other end of that link
    llm_datadist *blank;
    llm_datadist *dd;
    llm_role role;
    llm_option listen;
    bool given;
};

static void
reset_role(void *arg)
{
    struct role_call *call = arg;
    call->dd = call->party.dd;
    call->role = LLM_ROLE_PROMPT;
    call->listen = (llm_option){LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"};
    call->given = true;
}

static llm_status
run_role(void *arg)
{
    struct role_call *call = arg;
    return llm_set_role(call->dd, call->role, call->given ? &call->listen : NULL, call->given);
}

// Still a Decoder: it doesn't listen.
static void
unharmed_role(void *arg)
{
    struct role_call *call = arg;
    uint16_t port;
    assert_status(llm_get_listen_port(call->party.dd, 0, &port), LLM_PARAM_INVALID);
    assert_true(is_linked(&call->linked, call->prompt.id));
}

#define COMMIT_ROLE(name, ...)                                                                     \
    static void name(void *arg)                                                                    \
    {                                                                                              \
        struct role_call *call = arg;                                                              \
        __VA_ARGS__                                                                                \
    }

COMMIT_ROLE(r_not_initialized, call->dd = call->blank;)
COMMIT_ROLE(r_role_zero, call->role = (llm_role)0;)
COMMIT_ROLE(r_role_end, call->role = (llm_role)4;)
COMMIT_ROLE(r_listen_empty, call->listen.value = "";)
COMMIT_ROLE(r_listen_two, call->listen.value = "127.0.0.1:0;127.0.0.1:0";)
COMMIT_ROLE(r_listen_port, call->listen.value = "127.0.0.1:65536";)
COMMIT_ROLE(r_listen_name, call->listen.value = "local host:1";)
// It is looked at for every role.
COMMIT_ROLE(r_listen_decoder, call->listen.value = "1:2:3"; call->role = LLM_ROLE_DECODER;)
COMMIT_ROLE(r_listen_mix, call->listen.value = "x"; call->role = LLM_ROLE_MIX;)
COMMIT_ROLE(r_not_enabled, call->dd = call->without.dd;)
COMMIT_ROLE(r_two_devices, call->dd = call->several.dd;)
COMMIT_ROLE(r_no_listen, call->given = false;)
COMMIT_ROLE(r_linked, call->dd = call->linked.dd;)
COMMIT_ROLE(r_occupied, call->listen.value = occupied;)

enum { DD = 1, ADDRESS = 2, NEW_ROLE = 4 };

static const struct breach role_breaches[] = {
    {1, LLM_FAILED, "not initialized", DD, r_not_initialized},
    {2, LLM_PARAM_INVALID, "role is 0", NEW_ROLE, r_role_zero},
    {2, LLM_PARAM_INVALID, "role is 4", NEW_ROLE, r_role_end},
    {3, LLM_PARAM_INVALID, LLM_OPTION_LISTEN_IP_INFO, ADDRESS, r_listen_empty},
    {3, LLM_PARAM_INVALID, LLM_OPTION_LISTEN_IP_INFO, ADDRESS, r_listen_two},
    {3, LLM_PARAM_INVALID, LLM_OPTION_LISTEN_IP_INFO, ADDRESS, r_listen_port},
    {3, LLM_PARAM_INVALID, LLM_OPTION_LISTEN_IP_INFO, ADDRESS, r_listen_name},
    {3, LLM_PARAM_INVALID, LLM_OPTION_LISTEN_IP_INFO, ADDRESS, r_listen_decoder},
    {3, LLM_PARAM_INVALID, LLM_OPTION_LISTEN_IP_INFO, ADDRESS, r_listen_mix},
    {4, LLM_FEATURE_NOT_ENABLED, LLM_OPTION_ENABLE_SET_ROLE, DD, r_not_enabled},
    {5, LLM_FEATURE_NOT_ENABLED, "one device", DD, r_two_devices},
    {6, LLM_PARAM_INVALID, "to become Prompt", ADDRESS, r_no_listen},
    {7, LLM_EXIST_LINK, "unlink first", DD, r_linked},
    {8, LLM_FAILED, "can't listen", ADDRESS, r_occupied},
};

static void
prove_role(unsigned check)
{
    struct role_call call = {0};
    uint16_t port;
    int listener = open_silent_listener(&port);
    struct party_options may = {.num_devices = 1, .set_role = true};
    struct party_options may_not = {.num_devices = 1};
    struct party_options several = {.num_devices = 2, .set_role = true};
    struct proof proof = {
        .breaches = role_breaches,
        .num_breaches = COUNT_OF(role_breaches),
        .call = &call,
        .reset = reset_role,
        .run = run_role,
        .unharmed = unharmed_role,
    };
    snprintf(occupied, sizeof(occupied), "127.0.0.1:%u", port);
    open_party_with(&call.party, 1, LLM_ROLE_DECODER, &may);
    open_party_with(&call.without, 2, LLM_ROLE_DECODER, &may_not);
    open_party_with(&call.several, 3, LLM_ROLE_DECODER, &several);
    open_party_with(&call.linked, 4, LLM_ROLE_DECODER, &may);
    open_party_with(&call.prompt, 5, LLM_ROLE_PROMPT, &may);
    assert_ok(llm_create(6, LLM_ROLE_DECODER, &call.blank));
    link_parties(&call.linked, &call.prompt);
    prove_check(&proof, check);
    read_ports(&call.party);
    close_party(&call.party);
    close_party(&call.without);
    close_party(&call.several);
    close_party(&call.linked);
    close_party(&call.prompt);
    llm_destroy(call.blank);
    close(listener);
}

#define PROVE_ROLE(name, check)                                                                    \
    static void name(void **state)                                                                 \
    {                                                                                              \
        (void)state;                                                                               \
        prove_role(check);                                                                         \
    }

PROVE_ROLE(conformance_5_5_check_01_not_initialized_is_failed, 1)
PROVE_ROLE(conformance_5_5_check_02_role_that_is_none_is_param_invalid, 2)
PROVE_ROLE(conformance_5_5_check_03_bad_address_is_param_invalid_for_every_role, 3)
PROVE_ROLE(conformance_5_5_check_04_not_enabled_is_feature_not_enabled, 4)
PROVE_ROLE(conformance_5_5_check_05_several_devices_are_feature_not_enabled, 5)
PROVE_ROLE(conformance_5_5_check_06_prompt_without_address_is_param_invalid, 6)
PROVE_ROLE(conformance_5_5_check_07_with_links_is_exist_link, 7)
PROVE_ROLE(conformance_5_5_check_08_listener_that_cannot_be_opened_is_failed, 8)

static void
become(struct party *party, llm_role role, const char *listen)
{
    llm_option option = {LLM_OPTION_LISTEN_IP_INFO, listen};
    assert_ok(llm_set_role(party->dd, role, &option, listen != NULL));
    if (role == LLM_ROLE_PROMPT)
        read_ports(party);
}

// What the roles can do tells them apart.
static void
assert_role(const struct party *party, llm_role role)
{
    llm_cache_index none = {.struct_size = sizeof(none), .cache_id = 4711};
    llm_cache cache = {.struct_size = sizeof(cache), .cache_id = 4711};
    assert_status(llm_pull_kv_cache(party->dd, &none, &cache, 0, -1, NULL),
                  role == LLM_ROLE_DECODER ? LLM_KV_CACHE_NOT_EXIST : LLM_PARAM_INVALID);
    assert_status(llm_push_kv_cache(party->dd, &cache, &none, 0, -1, NULL),
                  role == LLM_ROLE_PROMPT ? LLM_KV_CACHE_NOT_EXIST : LLM_PARAM_INVALID);
}

static void
conformance_5_5_rule_01_every_order_of_roles(void **state)
{
    static const llm_role orders[][6] = {
        // As the reference pins it, and every pair.
        {LLM_ROLE_MIX, LLM_ROLE_DECODER, LLM_ROLE_PROMPT, LLM_ROLE_MIX, LLM_ROLE_PROMPT,
         LLM_ROLE_DECODER},
        {LLM_ROLE_PROMPT, LLM_ROLE_PROMPT, LLM_ROLE_DECODER, LLM_ROLE_DECODER, LLM_ROLE_MIX,
         LLM_ROLE_MIX},
    };
    struct party_options options = {.num_devices = 1, .set_role = true};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(orders); i++) {
        struct party party;
        open_party_with(&party, 1, orders[i][0], &options);
        assert_role(&party, orders[i][0]);
        for (size_t k = 1; k < 6; k++) {
            become(&party, orders[i][k], orders[i][k] == LLM_ROLE_PROMPT ? "127.0.0.1:0" : NULL);
            assert_role(&party, orders[i][k]);
        }
        close_party(&party);
    }
}

static void
conformance_5_5_rule_02_the_old_listener_survives_a_failed_switch(void **state)
{
    struct party party;
    struct party decoder;
    struct party_options options = {.num_devices = 1, .set_role = true};
    uint16_t port;
    int listener = open_silent_listener(&port);
    (void)state;
    snprintf(occupied, sizeof(occupied), "127.0.0.1:%u", port);
    open_party_with(&party, 1, LLM_ROLE_PROMPT, &options);
    open_party_with(&decoder, 2, LLM_ROLE_DECODER, &options);
    uint16_t before = party.address[0].port;
    llm_option option = {LLM_OPTION_LISTEN_IP_INFO, occupied};
    assert_status(llm_set_role(party.dd, LLM_ROLE_PROMPT, &option, 1), LLM_FAILED);
    read_ports(&party);
    assert_int_equal(party.address[0].port, before);
    assert_role(&party, LLM_ROLE_PROMPT);
    link_parties(&decoder, &party);
    close_party(&decoder);
    close_party(&party);
    close(listener);
}

static void
conformance_5_5_rule_03_caches_survive(void **state)
{
    struct party party;
    struct party decoder;
    struct kv kv;
    struct kv local;
    struct party_options options = {.num_devices = 1, .set_role = true};
    (void)state;
    open_party_with(&party, 1, LLM_ROLE_DECODER, &options);
    open_party_with(&decoder, 2, LLM_ROLE_DECODER, &options);
    open_bytes(&kv, &party, 2, 3, 40);
    open_bytes(&local, &decoder, 2, 3, 40);
    become(&party, LLM_ROLE_MIX, NULL);
    become(&party, LLM_ROLE_PROMPT, "127.0.0.1:0");
    assert_kv(&kv);
    link_parties(&decoder, &party);
    llm_cache_index from = index_of(&party, &kv, 2);
    assert_ok(llm_pull_kv_cache(decoder.dd, &from, &local.cache, 0, -1, NULL));
    expect_slot(&local, 0, 0, &kv, 0, 2, 40);
    expect_slot(&local, 1, 0, &kv, 1, 2, 40);
    assert_kv(&local);
    assert_ok(llm_deallocate_cache(party.dd, kv.cache.cache_id));
    close_party(&decoder);
    close_party(&party);
    forget_kv(&kv);
    forget_kv(&local);
}

static void
conformance_5_5_rule_04_prompt_to_prompt_moves_the_listener(void **state)
{
    struct party party;
    struct party decoder;
    struct party_options options = {.num_devices = 1, .set_role = true};
    char same[32];
    (void)state;
    open_party_with(&party, 1, LLM_ROLE_PROMPT, &options);
    open_party_with(&decoder, 2, LLM_ROLE_DECODER, &options);
    struct party before = party;
    become(&party, LLM_ROLE_PROMPT, "127.0.0.1:0");
    assert_int_not_equal(party.address[0].port, before.address[0].port);
    llm_cluster_info old = cluster_of(&before);
    assert_status(link_one(&decoder, &old, NULL), LLM_LINK_FAILED);
    link_parties(&decoder, &party);
    unlink_parties(&decoder, &party);
    // To where it is.
    snprintf(same, sizeof(same), "127.0.0.1:%u", party.address[0].port);
    become(&party, LLM_ROLE_PROMPT, same);
    link_parties(&decoder, &party);
    close_party(&decoder);
    close_party(&party);
}

static void
conformance_5_5_rule_05_links_of_a_prompt_and_broken_links_count(void **state)
{
    struct party prompt;
    struct party decoder;
    struct party_options options = {.num_devices = 1, .set_role = true};
    (void)state;
    open_party_with(&prompt, 1, LLM_ROLE_PROMPT, &options);
    open_party_with(&decoder, 2, LLM_ROLE_DECODER, &options);
    link_parties(&decoder, &prompt);
    assert_status(llm_set_role(prompt.dd, LLM_ROLE_MIX, NULL, 0), LLM_EXIST_LINK);
    close_party(&prompt);
    while (is_linked(&decoder, 1))
        sched_yield();
    assert_status(llm_set_role(decoder.dd, LLM_ROLE_MIX, NULL, 0), LLM_EXIST_LINK);
    llm_cluster_info cluster = cluster_of(&prompt);
    assert_ok(unlink_one(&decoder, &cluster, true, NULL));
    assert_ok(llm_set_role(decoder.dd, LLM_ROLE_MIX, NULL, 0));
    close_party(&decoder);
}

#define TEST(test) cmocka_unit_test_setup(test, no_set_up)

static const struct CMUnitTest tests[] = {
    TEST(conformance_5_1_rule_01_nothing_is_validated_or_opened),
    TEST(conformance_5_1_rule_02_any_cluster_id_even_0),
    TEST(conformance_5_2_rule_01_the_destructor_releases_everything),
    TEST(conformance_5_3_check_01_already_initialized_is_success_and_options_ignored),
    TEST(conformance_5_3_check_02_role_that_is_none_is_param_invalid),
    TEST(conformance_5_3_check_03_bad_device_ids_are_param_invalid),
    TEST(conformance_5_3_check_04_bad_listen_addresses_of_a_prompt_are_param_invalid),
    TEST(conformance_5_3_check_06_bad_pool_json_is_param_invalid),
    TEST(conformance_5_3_check_07_bad_set_role_option_is_param_invalid),
    TEST(conformance_5_3_check_08_bad_sync_time_is_param_invalid),
    TEST(conformance_5_3_check_09_device_that_cannot_be_opened_is_failed),
    TEST(conformance_5_3_check_10_bad_pool_tiers_are_param_invalid),
    TEST(conformance_5_3_check_11_listener_that_cannot_bind_is_failed),
    TEST(conformance_5_3_rule_01_after_finalize_it_can_be_initialized_again),
    TEST(conformance_5_3_rule_02_after_a_failure_a_corrected_call_works),
    TEST(conformance_5_3_rule_03_cache_ids_begin_at_1_again),
    TEST(conformance_5_3_rule_04_concurrent_calls_are_serialised_and_all_succeed),
    TEST(conformance_5_3_rule_05_the_role_of_a_set_role_survives_finalize),
    TEST(conformance_5_3_rule_06_a_prompt_listens_on_every_device),
    TEST(conformance_5_4_rule_01_finalize_may_be_repeated_and_does_nothing_if_not_initialized),
    TEST(conformance_5_4_rule_02_links_go_and_the_peer_sees_a_failure),
    TEST(conformance_5_5_check_01_not_initialized_is_failed),
    TEST(conformance_5_5_check_02_role_that_is_none_is_param_invalid),
    TEST(conformance_5_5_check_03_bad_address_is_param_invalid_for_every_role),
    TEST(conformance_5_5_check_04_not_enabled_is_feature_not_enabled),
    TEST(conformance_5_5_check_05_several_devices_are_feature_not_enabled),
    TEST(conformance_5_5_check_06_prompt_without_address_is_param_invalid),
    TEST(conformance_5_5_check_07_with_links_is_exist_link),
    TEST(conformance_5_5_check_08_listener_that_cannot_be_opened_is_failed),
    TEST(conformance_5_5_rule_01_every_order_of_roles),
    TEST(conformance_5_5_rule_02_the_old_listener_survives_a_failed_switch),
    TEST(conformance_5_5_rule_03_caches_survive),
    TEST(conformance_5_5_rule_04_prompt_to_prompt_moves_the_listener),
    TEST(conformance_5_5_rule_05_links_of_a_prompt_and_broken_links_count),
};
CONFORMANCE_MAIN("5 Life cycle", tests)

// Every grammar of §4 with good and bad values, the order of the checks, and running out of memory.
#include "options/options.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/log.h"
#include "base/log_limit.h"
#include "base/mem.h"

#define DEVICE                                                                                     \
    {                                                                                              \
        LLM_OPTION_DEVICE_ID, "0"                                                                  \
    }
#define ADDRESS "10.0.0.1:26000"
#define TIER(total, block, max)                                                                    \
    "{\"total_size\":" #total ",\"blk_size\":" #block ",\"max_buf_size\":" #max "}"
#define TIERS(list) "{\"buf_cfg\":[" list "]}"

// ---- What was logged ----------------------------------------------------------------------------

static struct {
    size_t num_lines[LLM_LOG_DEBUG + 1];
    char last[LLM_LOG_DEBUG + 1][1200];
} logged;

static void
capture(void *arg, llm_log_level level, const char *line)
{
    (void)arg;
    logged.num_lines[level]++;
    snprintf(logged.last[level], sizeof(logged.last[level]), "%s", line);
}

static bool
was_logged(llm_log_level level, const char *text)
{
    return strstr(logged.last[level], text) != NULL;
}

#define assert_logged(level, text)                                                                 \
    do {                                                                                           \
        if (!was_logged((level), (text)))                                                          \
            fail_msg("expected \"%s\" in the line \"%s\"", (text), logged.last[(level)]);          \
    } while (0)

static int
setup(void **state)
{
    (void)state;
    memset(&logged, 0, sizeof(logged));
    llm_set_log_level(LLM_LOG_DEBUG);
    llm_set_log_sink(capture, NULL);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    llm_set_log_sink(NULL, NULL);
    lli_mem_fail_after(0);
    return 0;
}

// ---- Helpers ------------------------------------------------------------------------------------

static void
assert_empty(const struct lli_options *o)
{
    assert_null(o->device_ids);
    assert_null(o->listen);
    assert_null(o->tiers);
    assert_null(o->pool_json);
    assert_int_equal(o->num_devices + o->num_listen + o->num_tiers + o->num_transports, 0);
    assert_int_equal(o->sync_wait_ms + o->liveness_ms + o->tcp_connections, 0);
    assert_true(o->pool_bytes == 0 && !o->enable_set_role && !o->has_local_comm_res);
}

// Both halves, as the engine calls them.
static llm_status
parse(const llm_option *options, size_t num_options, llm_role role, struct lli_options *ret_options)
{
    memset(&logged, 0, sizeof(logged));
    lli_log_begin_anew();
    memset(ret_options, 0x5a, sizeof(*ret_options));
    llm_status status = lli_options_parse(options, num_options, role, ret_options);
    if (status != LLM_SUCCESS) {
        assert_empty(ret_options);
        return status;
    }
    status = lli_options_parse_tiers(ret_options);
    if (status != LLM_SUCCESS) {
        assert_null(ret_options->tiers);
        assert_int_equal(ret_options->num_tiers, 0);
        lli_options_fini(ret_options);
    }
    return status;
}

#define PARSE(role, ret_options, ...)                                                              \
    parse((const llm_option[]){__VA_ARGS__}, LLI_COUNT(((const llm_option[]){__VA_ARGS__})),       \
          (role), (ret_options))

static void
assert_explained(const char *key, const char *value)
{
    char text[1200];
    assert_int_equal(logged.num_lines[LLM_LOG_ERROR], 1);
    assert_logged(LLM_LOG_ERROR, key);
    assert_logged(LLM_LOG_ERROR, "expected");
    if (value != NULL)
        assert_logged(LLM_LOG_ERROR, value);
    llm_last_error(text, sizeof(text));
    assert_true(strncmp(logged.last[LLM_LOG_ERROR], text, strlen(text)) == 0);
}

struct value_case {
    const char *value;
    llm_status status;
};

#define GOOD LLM_SUCCESS
#define BAD LLM_PARAM_INVALID

// The option beside a device id, or alone if it is the device id.
static llm_status
parse_one(const char *key, const char *value, llm_role role, struct lli_options *ret_options)
{
    bool is_device = strcmp(key, LLM_OPTION_DEVICE_ID) == 0;
    llm_option options[] = {{key, value}, DEVICE};
    return parse(options, is_device ? 1 : 2, role, ret_options);
}

static void
check_values(const char *key, llm_role role, const struct value_case *cases, size_t num_cases)
{
    for (size_t i = 0; i < num_cases; i++) {
        struct lli_options o;
        llm_status status = parse_one(key, cases[i].value, role, &o);
        if (status != cases[i].status)
            fail_msg("%s=\"%s\" gives %s", key, cases[i].value, llm_status_name(status));
        if (status == LLM_SUCCESS)
            assert_int_equal(logged.num_lines[LLM_LOG_ERROR], 0);
        else
            assert_explained(key, cases[i].value);
        lli_options_fini(&o);
    }
}

#define CHECK_VALUES(key, role, cases) check_values((key), (role), (cases), LLI_COUNT(cases))

// ---- Device ids ---------------------------------------------------------------------------------

static void
device_ids_follow_the_number_grammar(void **state)
{
    (void)state;
    static const struct value_case cases[] = {
        {"0", GOOD},
        {"0;1;2", GOOD},
        {"1;1", BAD},
        {"1;0;+01", BAD},
        {"2147483647", GOOD},
        {" 1", GOOD},
        {"+1", GOOD},
        {"  +1", GOOD},
        {"007", GOOD},
        {"-0", GOOD},
        {"00000000000000000000000000000000000000000000000000000000000001", GOOD},
        {"", BAD},
        {" ", BAD},
        {"a", BAD},
        {"-1", BAD},
        {"1 ", BAD},
        {"1;", BAD},
        {";1", BAD},
        {"1;;2", BAD},
        {"1,2", BAD},
        {"1; 2 ", BAD},
        {"0x10", BAD},
        {"1.0", BAD},
        {"1e3", BAD},
        {"+", BAD},
        {"-", BAD},
        {"+-1", BAD},
        {"+ 1", BAD},
        {"--1", BAD},
        {"2147483648", BAD},
        {"4294967295", BAD},
        {"4294967296", BAD},
        {"18446744073709551617", BAD},
        {"99999999999999999999999999999999999999999", BAD},
        {"-99999999999999999999999999999999999999999", BAD},
    };
    CHECK_VALUES(LLM_OPTION_DEVICE_ID, LLM_ROLE_DECODER, cases);
}

static void
blanks_before_a_number_are_those_of_the_c_locale(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(parse_one(LLM_OPTION_DEVICE_ID, "\t\n\v\f\r 5", LLM_ROLE_MIX, &o), GOOD);
    assert_int_equal(o.device_ids[0], 5);
    lli_options_fini(&o);
    assert_int_equal(parse_one(LLM_OPTION_DEVICE_ID, "\xa0 5", LLM_ROLE_MIX, &o), BAD);
    assert_int_equal(parse_one(LLM_OPTION_DEVICE_ID, "5\n", LLM_ROLE_MIX, &o), BAD);
}

static void
device_ids_keep_their_order_and_stand_once(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(parse_one(LLM_OPTION_DEVICE_ID, "3;0;2147483647", LLM_ROLE_DECODER, &o), 0);
    assert_int_equal(o.num_devices, 3);
    const int32_t expected[] = {3, 0, INT32_MAX};
    assert_memory_equal(o.device_ids, expected, sizeof(expected));
    lli_options_fini(&o);
    assert_int_equal(parse_one(LLM_OPTION_DEVICE_ID, "3;0;3", LLM_ROLE_DECODER, &o), BAD);
    assert_explained(LLM_OPTION_DEVICE_ID, "each device once, but found 3 twice");
}

static void
a_missing_device_id_is_rejected(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(parse(NULL, 0, LLM_ROLE_DECODER, &o), LLM_PARAM_INVALID);
    assert_explained(LLM_OPTION_DEVICE_ID, "is missing");
}

static void
more_than_64_devices_are_rejected(void **state)
{
    char list[3 * 65 + 1] = "";
    struct lli_options o;
    (void)state;
    for (int i = 0; i < 65; i++)
        snprintf(list + 3 * i, 4, "%02d;", i);
    list[3 * 65 - 1] = '\0';
    assert_int_equal(parse_one(LLM_OPTION_DEVICE_ID, list, LLM_ROLE_DECODER, &o), BAD);
    assert_explained(LLM_OPTION_DEVICE_ID, "at most 64 devices, but these are 65");
    list[3 * 64 - 1] = '\0';
    assert_int_equal(parse_one(LLM_OPTION_DEVICE_ID, list, LLM_ROLE_DECODER, &o), GOOD);
    assert_int_equal(o.num_devices, 64);
    lli_options_fini(&o);
}

// ---- Listen addresses ---------------------------------------------------------------------------

static const struct value_case address_cases[] = {
    {"127.0.0.1:26000", GOOD},
    {"0.0.0.0:0", GOOD},
    {"255.255.255.255:65535", GOOD},
    {"127.0.0.1: +026000", GOOD},
    {"127.0.0.1:-0", GOOD},
    {"", BAD},
    {":", BAD},
    {"127.0.0.1", BAD},
    {"127.0.0.1:", BAD},
    {":26000", BAD},
    {"127.0.0.1:26000:1", BAD},
    {"127.0.0.1:26000 ", BAD},
    {"127.0.0.1:65536", BAD},
    {"127.0.0.1:4294967295", BAD},
    {"127.0.0.1:4294967296", BAD},
    {"127.0.0.1:-1", BAD},
    {"127.0.0.1:a", BAD},
    {"127.0.0.1:0x10", BAD},
    {"127.0.0:1", BAD},
    {"127.0.0.0.1:1", BAD},
    {"127.0.0.256:1", BAD},
    {"127.0.0.01:1", BAD},
    {"127.0.0.:1", BAD},
    {" 127.0.0.1:1", BAD},
    {"127.0.0.1 :1", BAD},
    {"1000.0000.0000.0001:1", BAD},
    {"localhost:1", GOOD},
    {"pod-0.prefill.svc.cluster.local:26000", GOOD},
    {"local host:1", BAD},
    {"[::1]:26000", GOOD},
    {"[::]:0", GOOD},
    {"[fe80::1%eth0]:26000", GOOD},
    {"[fe80::1%]:26000", BAD},
    {"[::1]26000", BAD},
    {"[::1]:", BAD},
    {"[::1:26000", BAD},
    {"[::1::]:26000", BAD},
    {"[127.0.0.1]:26000", BAD},
    {"::1:26000", BAD},
    {"127.0.0.1:1;", BAD},
    {";127.0.0.1:1", BAD},
    {"127.0.0.1:1;127.0.0.1:2", BAD},
};

static void
a_prompt_listens_at_an_address_or_name_and_port(void **state)
{
    (void)state;
    CHECK_VALUES(LLM_OPTION_LISTEN_IP_INFO, LLM_ROLE_PROMPT, address_cases);
}

static void
a_prompt_needs_one_address_per_device(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(PARSE(LLM_ROLE_PROMPT, &o, {LLM_OPTION_DEVICE_ID, "0;1"},
                           {LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:26000;127.0.0.1:26000"}),
                     LLM_SUCCESS);
    assert_int_equal(o.num_listen, 2);
    assert_string_equal(o.listen[1].host, "127.0.0.1");
    assert_false(o.listen[1].is_name);
    assert_int_equal(o.listen[1].port, 26000);
    lli_options_fini(&o);
    assert_int_equal(PARSE(LLM_ROLE_PROMPT, &o, {LLM_OPTION_DEVICE_ID, "0;1"},
                           {LLM_OPTION_LISTEN_IP_INFO, ADDRESS}),
                     LLM_PARAM_INVALID);
    assert_explained(LLM_OPTION_LISTEN_IP_INFO, ADDRESS);
    assert_int_equal(PARSE(LLM_ROLE_PROMPT, &o, DEVICE), LLM_PARAM_INVALID);
    assert_explained(LLM_OPTION_LISTEN_IP_INFO, "is missing");
}

static void
decoder_and_mix_do_not_read_the_listen_address(void **state)
{
    static const llm_role roles[] = {LLM_ROLE_DECODER, LLM_ROLE_MIX};
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(roles); i++) {
        struct lli_options o;
        assert_int_equal(parse_one(LLM_OPTION_LISTEN_IP_INFO, "nonsense", roles[i], &o), GOOD);
        assert_int_equal(o.num_listen, 0);
        assert_null(o.listen);
        lli_options_fini(&o);
    }
}

static void
the_bad_item_of_a_long_list_is_named(void **state)
{
    char list[64 * 18];
    char ids[64 * 3] = "40";
    size_t used = 0;
    struct lli_options o;
    (void)state;
    for (size_t i = 0; i < 40; i++) {
        used += (size_t)snprintf(list + used, sizeof(list) - used, "10.0.0.1:26000;");
        snprintf(ids + strlen(ids), sizeof(ids) - strlen(ids), ";%zu", i);
    }
    snprintf(list + used, sizeof(list) - used, "10.0.0.1:x");
    assert_int_equal(
        PARSE(LLM_ROLE_PROMPT, &o, {LLM_OPTION_DEVICE_ID, ids}, {LLM_OPTION_LISTEN_IP_INFO, list}),
        LLM_PARAM_INVALID);
    assert_explained(LLM_OPTION_LISTEN_IP_INFO, "10.0.0.1:26000;");
    assert_logged(LLM_LOG_ERROR, "...\"");
    assert_logged(LLM_LOG_ERROR, "found \"10.0.0.1:x\"");
}

// ---- The small ones -----------------------------------------------------------------------------

static void
sync_wait_is_digits_only(void **state)
{
    (void)state;
    static const struct value_case cases[] = {
        {"1", GOOD},
        {"1000", GOOD},
        {"2147483647", GOOD},
        {"0005", GOOD},
        {"0", BAD},
        {"000", BAD},
        {"", BAD},
        {"-1", BAD},
        {"+5", BAD},
        {" 5", BAD},
        {"5 ", BAD},
        {"1.5", BAD},
        {"1e3", BAD},
        {"2147483648", BAD},
        {"4294967297", BAD},
        {"99999999999999999999", BAD},
        {"0x10", BAD},
        {"1000ms", BAD},
    };
    CHECK_VALUES(LLM_OPTION_SYNC_CACHE_WAIT_TIME, LLM_ROLE_DECODER, cases);
}

static void
enable_set_role_is_0_or_1(void **state)
{
    (void)state;
    static const struct value_case cases[] = {
        {"0", GOOD}, {"1", GOOD}, {"", BAD},   {"2", BAD},  {"true", BAD},
        {"01", BAD}, {"+1", BAD}, {" 1", BAD}, {"1 ", BAD}, {"10", BAD},
    };
    CHECK_VALUES(LLM_OPTION_ENABLE_SET_ROLE, LLM_ROLE_DECODER, cases);
}

static void
transports_are_a_list_of_distinct_names(void **state)
{
    (void)state;
    static const struct value_case cases[] = {
        {"auto", GOOD},
        {"local", GOOD},
        {"shm", GOOD},
        {"tcp", GOOD},
        {"tcp,shm", GOOD},
        {"tcp,shm,local", GOOD},
        {"", BAD},
        {",", BAD},
        {"tcp,", BAD},
        {",tcp", BAD},
        {"tcp,,shm", BAD},
        {"tcp,tcp", BAD},
        {"tcp, shm", BAD},
        {"TCP", BAD},
        {"tc", BAD},
        {"tcp;shm", BAD},
        {"auto,tcp", BAD},
        {"rdma", BAD},
        {"local,shm,tcp,local", BAD},
    };
    CHECK_VALUES(LLM_OPTION_TRANSPORTS, LLM_ROLE_DECODER, cases);
}

static void
transports_keep_the_order_of_preference(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(parse_one(LLM_OPTION_TRANSPORTS, "tcp,local", LLM_ROLE_DECODER, &o), GOOD);
    assert_int_equal(o.num_transports, 2);
    assert_int_equal(o.transports[0], LLI_TRANSPORT_TCP);
    assert_int_equal(o.transports[1], LLI_TRANSPORT_LOCAL);
    lli_options_fini(&o);
    assert_string_equal(lli_transport_name(LLI_TRANSPORT_LOCAL), "local");
    assert_string_equal(lli_transport_name(LLI_TRANSPORT_SHM), "shm");
    assert_string_equal(lli_transport_name(LLI_TRANSPORT_TCP), "tcp");
    assert_string_equal(lli_transport_name(LLI_NUM_TRANSPORTS), "none");
}

static void
liveness_is_50_to_600000_ms(void **state)
{
    (void)state;
    static const struct value_case cases[] = {
        {"50", GOOD}, {"600000", GOOD}, {" +050", GOOD}, {"49", BAD},   {"600001", BAD},
        {"0", BAD},   {"-50", BAD},     {"", BAD},       {"50ms", BAD}, {"4294967346", BAD},
    };
    CHECK_VALUES(LLM_OPTION_LIVENESS_TIME, LLM_ROLE_DECODER, cases);
}

static void
dead_time_is_50_to_3600000_ms_and_no_less_than_liveness(void **state)
{
    (void)state;
    static const struct value_case cases[] = {
        {"50", GOOD}, {"3600000", GOOD}, {"49", BAD}, {"3600001", BAD}, {"", BAD}, {"10s", BAD},
    };
    struct lli_options o;
    CHECK_VALUES(LLM_OPTION_DEAD_TIME, LLM_ROLE_DECODER, cases);
    assert_int_equal(PARSE(LLM_ROLE_DECODER, &o, DEVICE, {LLM_OPTION_DEAD_TIME, "2000"},
                           {LLM_OPTION_LIVENESS_TIME, "3000"}),
                     LLM_SUCCESS);
    assert_int_equal(o.dead_ms, 3000);
    lli_options_fini(&o);
}

static void
relink_is_auto_0_or_1(void **state)
{
    (void)state;
    static const struct value_case cases[] = {
        {"auto", GOOD}, {"0", GOOD}, {"1", GOOD}, {"2", BAD}, {"", BAD}, {"yes", BAD},
    };
    struct lli_options o;
    CHECK_VALUES(LLM_OPTION_RELINK, LLM_ROLE_DECODER, cases);
    assert_int_equal(PARSE(LLM_ROLE_DECODER, &o, DEVICE), LLM_SUCCESS);
    assert_int_equal(o.relink, LLI_RELINK_IN_VERSION_2);
    lli_options_fini(&o);
}

static void
tcp_connections_are_1_to_8(void **state)
{
    (void)state;
    static const struct value_case cases[] = {
        {"1", GOOD}, {"8", GOOD}, {"0", BAD}, {"9", BAD}, {"-1", BAD}, {"", BAD}, {"two", BAD},
    };
    CHECK_VALUES(LLM_OPTION_TCP_CONNECTIONS, LLM_ROLE_DECODER, cases);
}

static void
device_type_is_auto_or_host_and_known_hardware_cannot_be_opened(void **state)
{
    (void)state;
    static const struct value_case cases[] = {
        {"auto", GOOD}, {"host", GOOD}, {"cuda", LLM_FAILED}, {"ascend", LLM_FAILED},
        {"", BAD},      {"Host", BAD},  {"gpu", BAD},         {"host ", BAD},
    };
    CHECK_VALUES(LLM_OPTION_DEVICE_TYPE, LLM_ROLE_DECODER, cases);
}

static void
log_level_is_a_word(void **state)
{
    (void)state;
    static const struct value_case bad[] = {{"", BAD}, {"Error", BAD}, {"3", BAD}, {"trace", BAD}};
    static const struct value_case good[] = {
        {"off", GOOD}, {"error", GOOD}, {"warn", GOOD}, {"info", GOOD}, {"debug", GOOD},
    };
    CHECK_VALUES(LLM_OPTION_LOG_LEVEL, LLM_ROLE_DECODER, bad);
    CHECK_VALUES(LLM_OPTION_LOG_LEVEL, LLM_ROLE_DECODER, good);
}

static void
log_level_changes_only_when_given_and_only_on_success(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(PARSE(LLM_ROLE_MIX, &o, DEVICE), LLM_SUCCESS);
    lli_options_fini(&o);
    assert_true(lli_log_enabled(LLM_LOG_DEBUG));
    assert_int_equal(
        PARSE(LLM_ROLE_MIX, &o, {LLM_OPTION_LOG_LEVEL, "error"}, {LLM_OPTION_DEVICE_ID, "x"}),
        LLM_PARAM_INVALID);
    assert_true(lli_log_enabled(LLM_LOG_DEBUG));
    assert_int_equal(PARSE(LLM_ROLE_MIX, &o, DEVICE, {LLM_OPTION_LOG_LEVEL, "error"}), LLM_SUCCESS);
    lli_options_fini(&o);
    assert_false(lli_log_enabled(LLM_LOG_WARN));
    assert_true(lli_log_enabled(LLM_LOG_ERROR));
}

static void
local_comm_res_is_noticed_unless_empty(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(parse_one(LLM_OPTION_LOCAL_COMM_RES, "", LLM_ROLE_MIX, &o), LLM_SUCCESS);
    assert_false(o.has_local_comm_res);
    lli_options_fini(&o);
    assert_int_equal(parse_one(LLM_OPTION_LOCAL_COMM_RES, "{oops", LLM_ROLE_MIX, &o), LLM_SUCCESS);
    assert_true(o.has_local_comm_res);
    lli_options_fini(&o);
}

static void
what_is_not_given_has_its_default(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(PARSE(LLM_ROLE_DECODER, &o, DEVICE), LLM_SUCCESS);
    assert_int_equal(o.sync_wait_ms, 1000);
    assert_int_equal(o.liveness_ms, 500);
    assert_int_equal(o.dead_ms, 10000);
    assert_int_equal(o.tcp_connections, 2);
    assert_false(o.enable_set_role || o.has_local_comm_res);
    assert_int_equal(o.pool_bytes, 0);
    assert_int_equal(o.num_tiers, 0);
    assert_int_equal(o.num_transports, LLI_NUM_TRANSPORTS);
    for (size_t i = 0; i < LLI_NUM_TRANSPORTS; i++)
        assert_int_equal(o.transports[i], i);
    lli_options_fini(&o);
}

static void
what_is_given_holds(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(PARSE(LLM_ROLE_DECODER, &o, DEVICE, {LLM_OPTION_SYNC_CACHE_WAIT_TIME, "250"},
                           {LLM_OPTION_LIVENESS_TIME, "60"}, {LLM_OPTION_TCP_CONNECTIONS, "3"},
                           {LLM_OPTION_ENABLE_SET_ROLE, "1"}),
                     LLM_SUCCESS);
    assert_int_equal(o.sync_wait_ms, 250);
    assert_int_equal(o.liveness_ms, 60);
    assert_int_equal(o.tcp_connections, 3);
    assert_true(o.enable_set_role);
    lli_options_fini(&o);
}

// ---- The pool -----------------------------------------------------------------------------------

static void
pool_json_is_accepted_as_in_the_specification(void **state)
{
    (void)state;
#define GOOD_TIER TIER(2097152, 256, 8192)
    static const struct value_case cases[] = {
        {"{\"buf_cfg\":[" GOOD_TIER "],\"buf_pool_size\":2147483648}", GOOD},
        {"{\"buf_cfg\":[" GOOD_TIER "],\"buf_pool_size\":1024}", GOOD},
        {TIERS(GOOD_TIER), GOOD},
        {" \n" TIERS(GOOD_TIER) " \t", GOOD},
        {TIERS(GOOD_TIER "," TIER(4194304, 512, 16384)), GOOD},
        {"{\"buf_cfg\":[" GOOD_TIER "],\"foo\":{\"bar\":[1.5,null]}}", GOOD},
        {"{\"buf_cfg\":[{\"x\":\"\\u0000\",\"total_size\":16,\"blk_size\":4,\"max_buf_size\":8}]}",
         GOOD},
        {"{\"buf_pool_size\":1}", GOOD},
        {"{\"buf_pool_size\":2,\"buf_pool_size\":1}", GOOD},
        {"{\"buf_pool_size\":9223372036854775807}", GOOD},
        {"", BAD},
        {" ", BAD},
        {"{", BAD},
        {"nonsense", BAD},
        {"{\"buf_pool_size\":1}x", BAD},
        {"{\"buf_pool_size\":1,}", BAD},
        {"{'buf_pool_size':1}", BAD},
        {"{\"buf_pool_size\":01}", BAD},
        {"{\"buf_pool_size\":0x10}", BAD},
        {"null", BAD},
        {"1024", BAD},
        {"\"text\"", BAD},
        {"[]", BAD},
        {"[" GOOD_TIER "]", BAD},
        {"{}", BAD},
        {"{\"foo\":1}", BAD},
        {"{\"buf_pool_size\":1024,\"foo\":1}", BAD},
        {"{\"buf_pool_size\":-1}", BAD},
        {"{\"buf_pool_size\":\"\"}", BAD},
        {"{\"buf_pool_size\":\"1\"}", BAD},
        {"{\"buf_pool_size\":1.0}", BAD},
        {"{\"buf_pool_size\":1e3}", BAD},
        {"{\"buf_pool_size\":null}", BAD},
        {"{\"buf_pool_size\":true}", BAD},
        {"{\"buf_pool_size\":[1]}", BAD},
        {"{\"buf_pool_size\":18446744073709551616}", BAD},
        {"{\"buf_pool_size\":1e999}", BAD},
        {"{\"buf_pool_size\":0}", BAD},
        {"{\"buf_pool_size\":-0}", BAD},
        {"{\"buf_pool_size\":1,\"buf_pool_size\":0}", BAD},
        {"{\"buf_cfg\":[" GOOD_TIER "],\"buf_pool_size\":0}", BAD},
    };
    CHECK_VALUES(LLM_OPTION_BUF_POOL_CFG, LLM_ROLE_DECODER, cases);
}

static void
pool_tiers_are_checked_as_in_the_specification(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        const char *explained; // NULL: accepted
    } cases[] = {
        {TIERS(TIER(3, 1, 2)), NULL},
        {TIERS(TIER(4096, 4096, 4095)), "max_buf_size >= blk_size"},
        {TIERS(TIER(8192, 256, 8192)), "total_size > max_buf_size"},
        {TIERS(TIER(8448, 256, 8192)), NULL},
        {TIERS(TIER(8448, 256, 256)), NULL},
        {TIERS(TIER(4294967295, 1, 4294967294)), NULL},
        {TIERS(TIER(4294965248, 2048, 4294963200)), NULL},
        {TIERS(TIER(4294967296, 256, 8192)), "total_size is 4294967296"},
        {TIERS(TIER(4297064448, 256, 8192)), "total_size is 4297064448"},
        {TIERS(TIER(2097152, 4294967296, 8192)), "blk_size is 4294967296"},
        {TIERS(TIER(2097152, 256, 4294967296)), "max_buf_size is 4294967296"},
        {TIERS(TIER(0, 256, 8192)), "total_size is 0"},
        {TIERS(TIER(2097152, 0, 8192)), "blk_size is 0"},
        {TIERS(TIER(2097152, 256, 0)), "max_buf_size is 0"},
        {TIERS(TIER(-2097152, 256, 8192)), "total_size is -2097152"},
        {TIERS(TIER(2097152, 256.0, 8192)), "blk_size is 256, not an integer"},
        {TIERS(TIER(2097152, 256, "8192")), "max_buf_size is the text \"8192\""},
        {TIERS(TIER(2097152, null, 8192)), "blk_size is null"},
        {TIERS(TIER(2097152, true, 8192)), "blk_size is a truth value"},
        {TIERS(TIER(2097152, [], 8192)), "blk_size is an empty array"},
        {TIERS(TIER(2097152, [1], 8192)), "blk_size is an array"},
        {TIERS(TIER(2097152, {}, 8192)), "blk_size is an object"},
        {TIERS("{\"total_size\":2097152,\"max_buf_size\":8192}"), "blk_size is missing"},
        {TIERS("{}"), "total_size is missing"},
        {TIERS("7"), "total_size is missing"},
        {TIERS(TIER(2097152, 384, 8192)), "power of two"},
        {TIERS(TIER(8388608, 2097152, 2097152)), NULL},
        {TIERS(TIER(8388608, 4194304, 4194304)), "blk_size <= 2097152"},
        {TIERS(TIER(2097153, 256, 8192)), "multiple of blk_size"},
        {TIERS(TIER(2097152, 256, 8192) "," TIER(2097152, 256, 8192)), "buf_cfg[1]"},
        {TIERS(TIER(2097152, 256, 8192) "," TIER(2097152, 256, 4096)), "the tier before"},
        {TIERS(TIER(2097152, 256, 8192) "," TIER(2097152, 256, 8193)), NULL},
        {TIERS(TIER(2097152, 256, 8192) ",null"), "buf_cfg[1].total_size is missing"},
        {"{\"buf_cfg\":[]}", "an empty array"},
        {"{\"buf_cfg\":{}}", "an object"},
        {"{\"buf_cfg\":null}", "null"},
        {"{\"buf_cfg\":\"x\",\"buf_pool_size\":1024}", "the text \"x\""},
        {"{\"buf_cfg\":1}", "buf_cfg is 1,"},
        {"{\"buf_cfg\":1.5}", "buf_cfg is 1.5"},
    };
    for (size_t i = 0; i < LLI_COUNT(cases); i++) {
        struct lli_options o;
        llm_option options[] = {DEVICE, {LLM_OPTION_BUF_POOL_CFG, cases[i].value}};
        memset(&logged, 0, sizeof(logged));
        lli_log_begin_anew();
        // The tiers are no business of the first half.
        assert_int_equal(lli_options_parse(options, 2, LLM_ROLE_DECODER, &o), LLM_SUCCESS);
        assert_non_null(o.pool_json);
        llm_status status = lli_options_parse_tiers(&o);
        if ((status == LLM_SUCCESS) != (cases[i].explained == NULL) ||
            (status != LLM_SUCCESS && status != LLM_PARAM_INVALID))
            fail_msg("%s gives %s", cases[i].value, llm_status_name(status));
        if (status != LLM_SUCCESS) {
            assert_explained(LLM_OPTION_BUF_POOL_CFG, cases[i].explained);
            assert_int_equal(lli_options_parse_tiers(&o), LLM_PARAM_INVALID);
        }
        lli_options_fini(&o);
        assert_empty(&o);
    }
}

static void
pool_values_arrive(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(parse_one(LLM_OPTION_BUF_POOL_CFG,
                               "{\"buf_pool_size\":5000000000,\"buf_cfg\":[" TIER(
                                   2097152, 256, 8192) "," TIER(4194304, 512, 16384) "]}",
                               LLM_ROLE_DECODER, &o),
                     LLM_SUCCESS);
    assert_int_equal(o.pool_bytes, 5000000000);
    assert_int_equal(o.num_tiers, 2);
    assert_int_equal(o.tiers[0].total_bytes, 2097152);
    assert_int_equal(o.tiers[0].block_bytes, 256);
    assert_int_equal(o.tiers[0].buffer_bytes_max, 8192);
    assert_int_equal(o.tiers[1].total_bytes, 4194304);
    assert_int_equal(o.tiers[1].block_bytes, 512);
    assert_int_equal(o.tiers[1].buffer_bytes_max, 16384);
    assert_null(o.pool_json);
    assert_int_equal(logged.num_lines[LLM_LOG_WARN], 0);
    // Once more changes nothing.
    assert_int_equal(lli_options_parse_tiers(&o), LLM_SUCCESS);
    assert_int_equal(o.num_tiers, 2);
    lli_options_fini(&o);
}

static void
an_odd_tier_size_is_a_single_warning(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(parse_one(LLM_OPTION_BUF_POOL_CFG,
                               TIERS(TIER(2097408, 256, 8192) "," TIER(2097408, 256, 16384)),
                               LLM_ROLE_DECODER, &o),
                     LLM_SUCCESS);
    assert_int_equal(logged.num_lines[LLM_LOG_WARN], 1);
    assert_logged(LLM_LOG_WARN, "buf_cfg[0].total_size is 2097408");
    lli_options_fini(&o);
}

static void
deeply_nested_json_is_refused_not_followed(void **state)
{
    enum { DEPTH = 100000 };
    char *value = lli_malloc(2 * DEPTH + 1);
    struct lli_options o;
    (void)state;
    assert_non_null(value);
    memset(value, '[', DEPTH);
    memset(value + DEPTH, ']', DEPTH);
    value[2 * DEPTH] = '\0';
    assert_int_equal(parse_one(LLM_OPTION_BUF_POOL_CFG, value, LLM_ROLE_DECODER, &o), BAD);
    assert_explained(LLM_OPTION_BUF_POOL_CFG, "[[[[");
    lli_free(value);
}

static void
broken_json_is_located(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(
        parse_one(LLM_OPTION_BUF_POOL_CFG, "{\n\"buf_pool_size\" 1}", LLM_ROLE_DECODER, &o), BAD);
    assert_explained(LLM_OPTION_BUF_POOL_CFG, "line 2, column 17");
}

// ---- Order --------------------------------------------------------------------------------------

// Every option is wrong.  Repaired one by one, they are named in the order of §5.3.
static void
the_first_check_decides(void **state)
{
    static const struct {
        const char *key;
        const char *bad;
        const char *good;
        llm_status status;
    } steps[] = {
        {LLM_OPTION_DEVICE_ID, "x", "0", BAD},
        {LLM_OPTION_LISTEN_IP_INFO, "x", ADDRESS, BAD},
        {LLM_OPTION_BUF_POOL_CFG, "{}", "{\"buf_cfg\":7}", BAD},
        {LLM_OPTION_ENABLE_SET_ROLE, "x", "1", BAD},
        {LLM_OPTION_SYNC_CACHE_WAIT_TIME, "x", "1", BAD},
        {LLM_OPTION_TRANSPORTS, "x", "tcp", BAD},
        {LLM_OPTION_LIVENESS_TIME, "x", "50", BAD},
        {LLM_OPTION_DEAD_TIME, "x", "50", BAD},
        {LLM_OPTION_RELINK, "x", "1", BAD},
        {LLM_OPTION_TCP_CONNECTIONS, "x", "1", BAD},
        {LLM_OPTION_LOG_LEVEL, "x", "debug", BAD},
        {LLM_OPTION_DEVICE_TYPE, "cuda", "host", LLM_FAILED},
    };
    (void)state;
    llm_option options[LLI_COUNT(steps)];
    for (size_t i = 0; i < LLI_COUNT(steps); i++) // given in the opposite order
        options[LLI_COUNT(steps) - 1 - i] = (llm_option){steps[i].key, steps[i].bad};
    for (size_t i = 0; i < LLI_COUNT(steps); i++) {
        struct lli_options o;
        assert_int_equal(parse(options, LLI_COUNT(steps), LLM_ROLE_PROMPT, &o), steps[i].status);
        assert_explained(steps[i].key, steps[i].bad);
        options[LLI_COUNT(steps) - 1 - i].value = steps[i].good;
    }
    // What is left is wrong with the tiers alone, which are looked at after everything else.
    struct lli_options o;
    assert_int_equal(parse(options, LLI_COUNT(steps), LLM_ROLE_PROMPT, &o), BAD);
    assert_explained(LLM_OPTION_BUF_POOL_CFG, "buf_cfg is 7");
}

// ---- Keys ---------------------------------------------------------------------------------------

static void
the_last_of_equal_keys_wins(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(PARSE(LLM_ROLE_MIX, &o, {LLM_OPTION_DEVICE_ID, "bad"}, DEVICE,
                           {LLM_OPTION_LIVENESS_TIME, "70"}, {LLM_OPTION_LIVENESS_TIME, "80"}),
                     LLM_SUCCESS);
    assert_int_equal(o.liveness_ms, 80);
    lli_options_fini(&o);
    assert_int_equal(PARSE(LLM_ROLE_MIX, &o, DEVICE, {LLM_OPTION_DEVICE_ID, "bad"}), BAD);
}

static void
null_arguments_are_rejected(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(parse(NULL, 1, LLM_ROLE_MIX, &o), LLM_PARAM_INVALID);
    assert_explained("options", "NULL");
    assert_int_equal(PARSE(LLM_ROLE_MIX, &o, DEVICE, {NULL, "1"}), LLM_PARAM_INVALID);
    assert_explained("options[1].key", "NULL");
    assert_int_equal(PARSE(LLM_ROLE_MIX, &o, DEVICE, {LLM_OPTION_LOG_LEVEL, NULL}),
                     LLM_PARAM_INVALID);
    assert_explained(LLM_OPTION_LOG_LEVEL, "NULL");
    assert_int_equal(PARSE(LLM_ROLE_MIX, &o, DEVICE, {"foreign", NULL}), LLM_PARAM_INVALID);
}

static void
unknown_keys_of_others_are_ignored_and_noted_at_debug(void **state)
{
    static const char *const keys[] = {"foo", "", "ge.exec.deviceId", "xlm.DeviceId"};
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(keys); i++) {
        struct lli_options o;
        assert_int_equal(parse_one(keys[i], "x", LLM_ROLE_MIX, &o), LLM_SUCCESS);
        lli_options_fini(&o);
        assert_int_equal(logged.num_lines[LLM_LOG_DEBUG], 1);
        assert_int_equal(logged.num_lines[LLM_LOG_WARN], 0);
        assert_logged(LLM_LOG_DEBUG, keys[i]);
    }
}

static void
unknown_keys_of_ours_are_ignored_with_a_warning(void **state)
{
    static const char *const keys[] = {"llm.", "llm.Foo", "LLM.foo", "llm.DeviceIdentification"};
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(keys); i++) {
        struct lli_options o;
        assert_int_equal(parse_one(keys[i], "x", LLM_ROLE_MIX, &o), LLM_SUCCESS);
        lli_options_fini(&o);
        assert_int_equal(logged.num_lines[LLM_LOG_WARN], 1);
        assert_logged(LLM_LOG_WARN, keys[i]);
    }
}

static void
misspelt_keys_get_a_suggestion(void **state)
{
    static const struct {
        const char *key;
        const char *meant;
    } cases[] = {
        {"llm.DeviceID", LLM_OPTION_DEVICE_ID},
        {"llm.DeviceIds", LLM_OPTION_DEVICE_ID},
        {"llm.listenIpInfo", LLM_OPTION_LISTEN_IP_INFO},
        {"LLM.LISTENIPINFO", LLM_OPTION_LISTEN_IP_INFO},
        {"llm.BufPoolConfig", NULL},
        {"llm.BufPoolCgf", LLM_OPTION_BUF_POOL_CFG},
        {"llm.Transport", LLM_OPTION_TRANSPORTS},
        {"llm.SyncKvCacheWaitTimes", LLM_OPTION_SYNC_CACHE_WAIT_TIME},
    };
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(cases); i++) {
        struct lli_options o;
        assert_int_equal(parse_one(cases[i].key, "x", LLM_ROLE_MIX, &o), LLM_SUCCESS);
        lli_options_fini(&o);
        assert_int_equal(logged.num_lines[LLM_LOG_WARN], 1);
        assert_logged(LLM_LOG_WARN, cases[i].key);
        if (cases[i].meant != NULL)
            assert_logged(LLM_LOG_WARN, cases[i].meant);
    }
}

static void
a_suggestion_comes_with_the_failure_it_explains(void **state)
{
    struct lli_options o;
    (void)state;
    assert_int_equal(PARSE(LLM_ROLE_MIX, &o, {"llm.DeviceID", "0"}), LLM_PARAM_INVALID);
    assert_explained(LLM_OPTION_DEVICE_ID, "is missing");
    assert_int_equal(logged.num_lines[LLM_LOG_WARN], 1);
    assert_logged(LLM_LOG_WARN, "did you mean llm.DeviceId?");
}

static void
options_of_other_hardware_are_accepted_and_noted_at_debug(void **state)
{
    static const char *const keys[] = {LLM_OPTION_LOCAL_COMM_RES, LLM_OPTION_GLOBAL_RESOURCE_CONFIG,
                                       "llm.RdmaTrafficClass", "llm.RdmaServiceLevel"};
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(keys); i++) {
        struct lli_options o;
        assert_int_equal(parse_one(keys[i], "{anything", LLM_ROLE_MIX, &o), LLM_SUCCESS);
        lli_options_fini(&o);
        assert_int_equal(logged.num_lines[LLM_LOG_DEBUG], 1);
        assert_int_equal(logged.num_lines[LLM_LOG_WARN], 0);
        assert_logged(LLM_LOG_DEBUG, keys[i]);
        assert_logged(LLM_LOG_DEBUG, "not needed");
    }
}

static void
version_2_is_asked_for_by_local_comm_res_even_empty_or_by_the_backend(void **state)
{
    const llm_option with_res[] = {{LLM_OPTION_DEVICE_ID, "0"}, {LLM_OPTION_LOCAL_COMM_RES, ""}};
    const llm_option with_backend[] = {{LLM_OPTION_DEVICE_ID, "0"},
                                       {LLM_OPTION_TRANSFER_BACKEND, "hixl"},
                                       {LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"},
                                       {LLM_OPTION_GLOBAL_RESOURCE_CONFIG, "{}"}};
    struct lli_options o;
    (void)state;
    assert_int_equal(lli_options_parse(with_res, 2, LLM_ROLE_PROMPT, &o), LLM_SUCCESS);
    assert_true(o.version_2);
    assert_int_equal(o.num_listen, 0); // optional there, also for a Prompt
    lli_options_fini(&o);
    assert_int_equal(lli_options_parse(with_backend, 4, LLM_ROLE_DECODER, &o), LLM_SUCCESS);
    assert_true(o.version_2);
    assert_int_equal(o.num_listen, 1);
    lli_options_fini(&o);
    assert_int_equal(lli_options_parse(with_res, 1, LLM_ROLE_DECODER, &o), LLM_SUCCESS);
    assert_false(o.version_2);
    lli_options_fini(&o);
}

static void
version_2_rejects_what_its_options_don_t_allow(void **state)
{
    static const llm_option bad[][4] = {
        {{LLM_OPTION_DEVICE_ID, "0;1"}, {LLM_OPTION_LOCAL_COMM_RES, ""}},
        {{LLM_OPTION_DEVICE_ID, "0"}, {LLM_OPTION_TRANSFER_BACKEND, "hixl"}},
        {{LLM_OPTION_DEVICE_ID, "0"},
         {LLM_OPTION_TRANSFER_BACKEND, "nixl"},
         {LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"}},
        {{LLM_OPTION_DEVICE_ID, "0"},
         {LLM_OPTION_TRANSFER_BACKEND, "hixl"},
         {LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"},
         {LLM_OPTION_GLOBAL_RESOURCE_CONFIG, "{"}},
    };
    static const size_t num_options[] = {2, 2, 3, 4};
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(bad); i++) {
        struct lli_options o;
        assert_int_equal(lli_options_parse(bad[i], num_options[i], LLM_ROLE_MIX, &o),
                         LLM_PARAM_INVALID);
        lli_options_fini(&o);
    }
}

static void
the_table_has_every_public_option_with_a_default_that_its_parser_accepts(void **state)
{
    static const char *const public_keys[] = {
        LLM_OPTION_LISTEN_IP_INFO, LLM_OPTION_DEVICE_ID,        LLM_OPTION_SYNC_CACHE_WAIT_TIME,
        LLM_OPTION_BUF_POOL_CFG,   LLM_OPTION_ENABLE_SET_ROLE,  LLM_OPTION_LOCAL_COMM_RES,
        LLM_OPTION_DEVICE_TYPE,    LLM_OPTION_TRANSPORTS,       LLM_OPTION_LIVENESS_TIME,
        LLM_OPTION_DEAD_TIME,      LLM_OPTION_RELINK,           LLM_OPTION_TCP_CONNECTIONS,
        LLM_OPTION_LOG_LEVEL,      LLM_OPTION_TRANSFER_BACKEND, LLM_OPTION_GLOBAL_RESOURCE_CONFIG,
        LLM_OPTION_COPY_THREADS,   LLM_OPTION_CHECKSUM,
    };
    size_t num_rows;
    const struct lli_option_row *rows = lli_option_table(&num_rows);
    (void)state;
    assert_int_equal(num_rows, LLI_COUNT(public_keys));
    for (size_t i = 0; i < LLI_COUNT(public_keys); i++) {
        const struct lli_option_row *row = rows;
        while (row < rows + num_rows && strcmp(row->key, public_keys[i]) != 0)
            row++;
        assert_true(row < rows + num_rows);
        assert_true(row->help[0] != '\0' && strchr(row->help, '\n') == NULL);
        if (row->value_default[0] == '\0')
            continue;
        struct lli_options given;
        struct lli_options missing;
        assert_int_equal(parse_one(row->key, row->value_default, LLM_ROLE_MIX, &given), GOOD);
        assert_int_equal(PARSE(LLM_ROLE_MIX, &missing, DEVICE), LLM_SUCCESS);
        assert_int_equal(given.sync_wait_ms, missing.sync_wait_ms);
        assert_int_equal(given.liveness_ms, missing.liveness_ms);
        assert_int_equal(given.tcp_connections, missing.tcp_connections);
        assert_int_equal(given.enable_set_role, missing.enable_set_role);
        assert_memory_equal(given.transports, missing.transports, sizeof(given.transports));
        lli_options_fini(&given);
        lli_options_fini(&missing);
    }
}

static void
a_long_value_is_cut_and_the_expectation_survives(void **state)
{
    enum { BYTES = 5000 };
    char value[BYTES + 1];
    struct lli_options o;
    (void)state;
    memset(value, 'z', BYTES);
    value[BYTES] = '\0';
    assert_int_equal(parse_one(LLM_OPTION_TRANSPORTS, value, LLM_ROLE_MIX, &o), BAD);
    assert_explained(LLM_OPTION_TRANSPORTS, "zzz...\"");
    assert_int_equal(parse_one(LLM_OPTION_BUF_POOL_CFG, value, LLM_ROLE_MIX, &o), BAD);
    assert_explained(LLM_OPTION_BUF_POOL_CFG, "zzz...\"");
    value[BYTES - 1] = '\0';
    assert_int_equal(parse_one(value, "1", LLM_ROLE_MIX, &o), GOOD);
    lli_options_fini(&o);
}

// ---- Set role -----------------------------------------------------------------------------------

static llm_status
parse_set_role(const char *value, bool *ret_given, struct lli_endpoint *ret_address)
{
    llm_option options[] = {{"llm.Other", "x"}, {LLM_OPTION_LISTEN_IP_INFO, value}};
    memset(&logged, 0, sizeof(logged));
    return lli_options_parse_set_role(options, 2, ret_given, ret_address);
}

static void
set_role_takes_exactly_one_address(void **state)
{
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(address_cases); i++) {
        bool given = true;
        struct lli_endpoint address;
        llm_status status = parse_set_role(address_cases[i].value, &given, &address);
        if (status != address_cases[i].status)
            fail_msg("\"%s\" gives %s", address_cases[i].value, llm_status_name(status));
        assert_int_equal(given, status == LLM_SUCCESS);
        if (status != LLM_SUCCESS)
            assert_explained(LLM_OPTION_LISTEN_IP_INFO, address_cases[i].value);
    }
}

static void
set_role_returns_the_address_or_that_there_is_none(void **state)
{
    bool given = false;
    struct lli_endpoint address;
    (void)state;
    assert_int_equal(parse_set_role("10.1.2.3:77", &given, &address), LLM_SUCCESS);
    assert_true(given);
    assert_string_equal(address.host, "10.1.2.3");
    assert_int_equal(address.port, 77);
    assert_int_equal(lli_options_parse_set_role(NULL, 0, &given, &address), LLM_SUCCESS);
    assert_false(given);
    llm_option other[] = {{LLM_OPTION_DEVICE_ID, "not read here"}, {"llm.listenIpInfo", ADDRESS}};
    assert_int_equal(lli_options_parse_set_role(other, 2, &given, &address), LLM_SUCCESS);
    assert_false(given);
    assert_logged(LLM_LOG_WARN, "did you mean llm.ListenIpInfo?");
}

static void
set_role_rejects_null_arguments(void **state)
{
    bool given;
    struct lli_endpoint address;
    llm_option no_key[] = {{NULL, ADDRESS}};
    (void)state;
    assert_int_equal(parse_set_role(NULL, &given, &address), LLM_PARAM_INVALID);
    assert_explained(LLM_OPTION_LISTEN_IP_INFO, "NULL");
    assert_int_equal(lli_options_parse_set_role(NULL, 1, &given, &address), LLM_PARAM_INVALID);
    assert_int_equal(lli_options_parse_set_role(no_key, 1, &given, &address), LLM_PARAM_INVALID);
}

// ---- Memory -------------------------------------------------------------------------------------

static llm_status
parse_everything(struct lli_options *ret_options)
{
    return PARSE(LLM_ROLE_PROMPT, ret_options, {LLM_OPTION_DEVICE_ID, "0;1"},
                 {LLM_OPTION_LISTEN_IP_INFO, ADDRESS ";" ADDRESS},
                 {LLM_OPTION_BUF_POOL_CFG,
                  "{\"buf_pool_size\":5000000000,\"buf_cfg\":[" TIER(2097152, 256, 8192) "]}"});
}

static void
every_failed_allocation_is_reported(void **state)
{
    struct lli_options o;
    size_t num_failures = 0;
    (void)state;
    for (uint64_t i = 1;; i++) {
        lli_mem_fail_after(i);
        llm_status status = parse_everything(&o);
        if (lli_mem_fail_after(0) != 0) { // it never struck
            assert_int_equal(status, LLM_SUCCESS);
            break;
        }
        assert_int_equal(status, LLM_FAILED);
        assert_int_equal(logged.num_lines[LLM_LOG_ERROR], 1);
        assert_logged(LLM_LOG_ERROR, "no memory");
        num_failures++;
    }
    assert_int_equal(num_failures, 3); // ids, addresses, tiers
    lli_options_fini(&o);
}

// Jansson's own allocations.  It can't always tell a lack of memory from a wrong text, so that the
// status may be LLM_PARAM_INVALID too, but nothing is leaked or half read.
static void
failed_allocations_inside_json_leave_nothing_behind(void **state)
{
    struct lli_options o;
    (void)state;
    json_set_alloc_funcs(lli_malloc, lli_free);
    for (uint64_t i = 1;; i++) {
        lli_mem_fail_after(i);
        llm_status status = parse_everything(&o);
        if (lli_mem_fail_after(0) != 0) {
            assert_int_equal(status, LLM_SUCCESS);
            break;
        }
        if (status == LLM_SUCCESS) { // Jansson coped
            assert_int_equal(o.pool_bytes, 5000000000);
            assert_int_equal(o.num_tiers, 1);
            assert_int_equal(o.tiers[0].total_bytes, 2097152);
        } else {
            assert_true(status == LLM_FAILED || status == LLM_PARAM_INVALID);
            assert_int_equal(logged.num_lines[LLM_LOG_ERROR], 1);
        }
        lli_options_fini(&o);
    }
    lli_options_fini(&o);
    json_set_alloc_funcs(malloc, free);
}

static void
fini_of_nothing_is_harmless(void **state)
{
    struct lli_options o = {0};
    (void)state;
    lli_options_fini(&o);
    lli_options_fini(&o);
    assert_empty(&o);
    assert_int_equal(lli_options_parse_tiers(&o), LLM_SUCCESS);
    assert_int_equal(parse_everything(&o), LLM_SUCCESS);
    lli_options_fini(&o);
    lli_options_fini(&o);
    assert_empty(&o);
}

static void
fini_between_the_halves_frees_the_json(void **state)
{
    llm_option options[] = {DEVICE, {LLM_OPTION_BUF_POOL_CFG, TIERS(TIER(16, 4, 8))}};
    struct lli_options o;
    (void)state;
    assert_int_equal(lli_options_parse(options, 2, LLM_ROLE_MIX, &o), LLM_SUCCESS);
    assert_non_null(o.pool_json);
    lli_options_fini(&o);
    assert_empty(&o);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(device_ids_follow_the_number_grammar),
        TEST(blanks_before_a_number_are_those_of_the_c_locale),
        TEST(device_ids_keep_their_order_and_stand_once),
        TEST(a_missing_device_id_is_rejected),
        TEST(more_than_64_devices_are_rejected),
        TEST(a_prompt_listens_at_an_address_or_name_and_port),
        TEST(a_prompt_needs_one_address_per_device),
        TEST(decoder_and_mix_do_not_read_the_listen_address),
        TEST(the_bad_item_of_a_long_list_is_named),
        TEST(sync_wait_is_digits_only),
        TEST(enable_set_role_is_0_or_1),
        TEST(transports_are_a_list_of_distinct_names),
        TEST(transports_keep_the_order_of_preference),
        TEST(liveness_is_50_to_600000_ms),
        TEST(dead_time_is_50_to_3600000_ms_and_no_less_than_liveness),
        TEST(relink_is_auto_0_or_1),
        TEST(tcp_connections_are_1_to_8),
        TEST(device_type_is_auto_or_host_and_known_hardware_cannot_be_opened),
        TEST(log_level_is_a_word),
        TEST(log_level_changes_only_when_given_and_only_on_success),
        TEST(local_comm_res_is_noticed_unless_empty),
        TEST(what_is_not_given_has_its_default),
        TEST(what_is_given_holds),
        TEST(pool_json_is_accepted_as_in_the_specification),
        TEST(pool_tiers_are_checked_as_in_the_specification),
        TEST(pool_values_arrive),
        TEST(an_odd_tier_size_is_a_single_warning),
        TEST(deeply_nested_json_is_refused_not_followed),
        TEST(broken_json_is_located),
        TEST(the_first_check_decides),
        TEST(the_last_of_equal_keys_wins),
        TEST(null_arguments_are_rejected),
        TEST(unknown_keys_of_others_are_ignored_and_noted_at_debug),
        TEST(unknown_keys_of_ours_are_ignored_with_a_warning),
        TEST(misspelt_keys_get_a_suggestion),
        TEST(a_suggestion_comes_with_the_failure_it_explains),
        TEST(options_of_other_hardware_are_accepted_and_noted_at_debug),
        TEST(version_2_is_asked_for_by_local_comm_res_even_empty_or_by_the_backend),
        TEST(version_2_rejects_what_its_options_don_t_allow),
        TEST(the_table_has_every_public_option_with_a_default_that_its_parser_accepts),
        TEST(a_long_value_is_cut_and_the_expectation_survives),
        TEST(set_role_takes_exactly_one_address),
        TEST(set_role_returns_the_address_or_that_there_is_none),
        TEST(set_role_rejects_null_arguments),
        TEST(every_failed_allocation_is_reported),
        TEST(failed_allocations_inside_json_leave_nothing_behind),
        TEST(fini_of_nothing_is_harmless),
        TEST(fini_between_the_halves_frees_the_json),
    };
    unsetenv("LLM_DATADIST_LOG_LEVEL"); // it would win over the levels that the tests set
    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}

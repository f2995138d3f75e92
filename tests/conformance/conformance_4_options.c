// §4 Options and grammars, as Initialize and SetRole see them.  Every odd value of each grammar is
// in src/options/options_test.c.
#include "suite.h"

#include <stdio.h>

static llm_status
initialize(llm_role role, const llm_option *options, size_t num_options)
{
    llm_datadist *dd;
    assert_ok(llm_create(1, role, &dd));
    llm_status status = llm_initialize(dd, options, num_options);
    llm_destroy(dd);
    return status;
}

// A decoder with one device and this option.
static llm_status
with(const char *key, const char *value)
{
    llm_option options[] = {{LLM_OPTION_DEVICE_ID, "0"}, {key, value}};
    return initialize(LLM_ROLE_DECODER, options, 2);
}

// A prompt with these devices and addresses.
static llm_status
prompt_with(const char *devices, const char *addresses)
{
    llm_option options[] = {{LLM_OPTION_DEVICE_ID, devices},
                            {LLM_OPTION_LISTEN_IP_INFO, addresses}};
    return initialize(LLM_ROLE_PROMPT, options, 2);
}

static void
check_values(const char *key, const char *const *values, size_t count, llm_status expected)
{
    for (size_t i = 0; i < count; i++) {
        llm_status status = with(key, values[i]);
        if (status != expected)
            print_error("%s = \"%s\"\n", key, values[i]);
        assert_status(status, expected);
    }
}
#define ACCEPTED(key, ...)                                                                         \
    check_values((key), (const char *const[]){__VA_ARGS__},                                        \
                 sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *), LLM_SUCCESS)
#define REJECTED(key, ...)                                                                         \
    check_values((key), (const char *const[]){__VA_ARGS__},                                        \
                 sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *), LLM_PARAM_INVALID)

static void
conformance_4_rule_01_unknown_keys_are_ignored(void **state)
{
    (void)state;
    ACCEPTED("llm.Nonsense", "", "x");
    ACCEPTED("", "x");
    ACCEPTED(LLM_OPTION_LOCAL_COMM_RES, "", "{", "anything");
}

static void
conformance_4_1_rule_01_blanks_plus_and_zeros_before_a_number_are_accepted(void **state)
{
    (void)state;
    ACCEPTED(LLM_OPTION_DEVICE_ID, " 1", "\t1", "+1", "007", "010;+0;  3", "2147483647");
    assert_ok(prompt_with("0", "127.0.0.1: 0"));
    assert_ok(prompt_with("0", "127.0.0.1:+000"));
}

static void
conformance_4_1_rule_02_anything_else_in_a_number_is_param_invalid(void **state)
{
    (void)state;
    REJECTED(LLM_OPTION_DEVICE_ID, "1 ", "1x", "0x1", "1.0", "1e3", "2147483648",
             "99999999999999999999", "+", " ", "--1", "+-1");
    assert_status(prompt_with("0", "127.0.0.1:0 "), LLM_PARAM_INVALID);
    assert_status(prompt_with("0", "127.0.0.1:0x0"), LLM_PARAM_INVALID);
    assert_status(prompt_with("0", "127.0.0.1:"), LLM_PARAM_INVALID);
}

static void
conformance_4_1_rule_03_empty_items_are_errors(void **state)
{
    (void)state;
    REJECTED(LLM_OPTION_DEVICE_ID, "1;", "1;;2", ";1", ";");
    assert_status(prompt_with("0", "127.0.0.1:0;"), LLM_PARAM_INVALID);
}

static void
conformance_4_2_rule_01_missing_empty_or_malformed_ids_are_param_invalid(void **state)
{
    (void)state;
    assert_status(initialize(LLM_ROLE_DECODER, NULL, 0), LLM_PARAM_INVALID);
    REJECTED(LLM_OPTION_DEVICE_ID, "", "a", "-1", "4294967295", "0,1");
}

static void
conformance_4_2_rule_02_ids_are_counted_and_stand_once(void **state)
{
    struct party party;
    struct party_options options = {.num_devices = 3};
    struct kv kv;
    (void)state;
    // "0;1;2"
    open_party_with(&party, 1, LLM_ROLE_DECODER, &options);
    open_bytes(&kv, &party, 2, 2, 8);
    assert_int_equal(kv.cache.num_tensor_addrs, 6);
    close_party(&party);
    forget_kv(&kv);
    llm_option twice = {LLM_OPTION_DEVICE_ID, "0;1;0"};
    llm_datadist *dd;
    assert_int_equal(llm_create(1, LLM_ROLE_DECODER, &dd), LLM_SUCCESS);
    assert_int_equal(llm_initialize(dd, &twice, 1), LLM_PARAM_INVALID);
    llm_destroy(dd);
}

static void
conformance_4_3_rule_01_one_item_per_device_is_required(void **state)
{
    (void)state;
    assert_status(prompt_with("0", ""), LLM_PARAM_INVALID);
    assert_status(prompt_with("0", "127.0.0.1:0;127.0.0.1:0"), LLM_PARAM_INVALID);
    assert_status(prompt_with("0;1", "127.0.0.1:0"), LLM_PARAM_INVALID);
    assert_ok(prompt_with("0;1", "127.0.0.1:0;127.0.0.1:0"));
}

static void
conformance_4_3_rule_02_two_parts_and_a_strict_dotted_quad(void **state)
{
    static const char *const bad[] = {
        "127.0.0.1",    "127.0.0.1:1:2", "[::1]0",        "::1:0",        "local host:0",
        "127.0.0.01:0", "127.0.0:0",     "127.0.0.256:0", " 127.0.0.1:0", "127.0.0.1 :0",
        ":0",           "1.2.3.4.5:0",   "0x7f.0.0.1:0",  "127.1:0",
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_status(prompt_with("0", bad[i]), LLM_PARAM_INVALID);
    assert_ok(prompt_with("0", "0.0.0.0:0"));
}

static void
conformance_4_3_rule_03_ports_0_to_65535(void **state)
{
    (void)state;
    assert_status(prompt_with("0", "127.0.0.1:65536"), LLM_PARAM_INVALID);
    assert_status(prompt_with("0", "127.0.0.1:4294967295"), LLM_PARAM_INVALID);
    assert_status(prompt_with("0", "127.0.0.1:-1"), LLM_PARAM_INVALID);
    assert_ok(prompt_with("0", "127.0.0.1:0"));
    // Somebody may have this one.
    llm_status status = prompt_with("0", "127.0.0.1:65535");
    assert_true(status == LLM_SUCCESS || status == LLM_FAILED);
}

static void
conformance_4_3_rule_04_the_same_address_for_all_devices_is_one_listener(void **state)
{
    struct party decoder;
    struct party prompt;
    char listen[64];
    struct party_options two = {.num_devices = 2};
    (void)state;
    uint16_t port = closed_port();
    snprintf(listen, sizeof(listen), "127.0.0.1:%u;127.0.0.1:%u", port, port);
    struct party_options same = {.num_devices = 2, .listen = listen};
    open_party_with(&prompt, 1, LLM_ROLE_PROMPT, &same);
    assert_int_equal(prompt.address[0].port, port);
    assert_int_equal(prompt.address[1].port, port);
    open_party_with(&decoder, 2, LLM_ROLE_DECODER, &two);
    link_parties(&decoder, &prompt);
    // Connections are told apart by device: each has its own memory.
    struct kv local;
    struct kv remote;
    open_bytes(&local, &decoder, 2, 1, 32);
    open_bytes(&remote, &prompt, 2, 1, 32);
    llm_cache_index from = index_of(&prompt, &remote, 0);
    assert_ok(llm_pull_kv_cache(decoder.dd, &from, &local.cache, 0, -1, NULL));
    for (uint32_t t = 0; t < 2; t++)
        expect_slot(&local, t, 0, &remote, t, 0, 32);
    assert_kv(&local);
    close_party(&decoder);
    close_party(&prompt);
    forget_kv(&local);
    forget_kv(&remote);
}

static void
conformance_4_3_rule_05_other_roles_do_not_read_it(void **state)
{
    llm_option options[] = {{LLM_OPTION_DEVICE_ID, "0"}, {LLM_OPTION_LISTEN_IP_INFO, "nonsense"}};
    (void)state;
    assert_ok(initialize(LLM_ROLE_DECODER, options, 2));
    assert_ok(initialize(LLM_ROLE_MIX, options, 2));
    assert_status(initialize(LLM_ROLE_PROMPT, options, 2), LLM_PARAM_INVALID);
}

static void
conformance_4_4_rule_01_digits_from_1_to_2147483647(void **state)
{
    (void)state;
    ACCEPTED(LLM_OPTION_SYNC_CACHE_WAIT_TIME, "1", "1000", "0005", "2147483647");
    REJECTED(LLM_OPTION_SYNC_CACHE_WAIT_TIME, "", "-1", "+5", " 5", "5 ", "1.5", "1e3", "0x10",
             "a");
}

static void
conformance_4_4_rule_02_0_and_more_than_2147483647_are_param_invalid(void **state)
{
    (void)state;
    REJECTED(LLM_OPTION_SYNC_CACHE_WAIT_TIME, "0", "000", "2147483648", "99999999999999999999");
}

static void
conformance_4_5_rule_01_exactly_0_or_1(void **state)
{
    (void)state;
    ACCEPTED(LLM_OPTION_ENABLE_SET_ROLE, "0", "1");
    REJECTED(LLM_OPTION_ENABLE_SET_ROLE, "", "true", "2", "01", " 1", "1 ");
}

#define POOL LLM_OPTION_BUF_POOL_CFG
#define TIER(total, block, max)                                                                    \
    "{\"total_size\":" #total ",\"blk_size\":" #block ",\"max_buf_size\":" #max "}"
#define TIERS(list) "{\"buf_cfg\":[" list "]}"

static void
conformance_4_6_check_01_empty_text_is_param_invalid(void **state)
{
    (void)state;
    REJECTED(POOL, "");
}

static void
conformance_4_6_check_02_not_json_is_param_invalid(void **state)
{
    (void)state;
    REJECTED(POOL, "{", "x", "{\"buf_pool_size\":1", "{'buf_pool_size':1}", "1", "[]", "null",
             "\"x\"");
}

static void
conformance_4_6_check_03_pool_size_that_is_no_unsigned_integer_is_param_invalid(void **state)
{
    (void)state;
    REJECTED(POOL, "{\"buf_pool_size\":-1}", "{\"buf_pool_size\":\"\"}",
             "{\"buf_pool_size\":\"1\"}", "{\"buf_pool_size\":1.0}", "{\"buf_pool_size\":1e3}",
             "{\"buf_pool_size\":null}", "{\"buf_pool_size\":99999999999999999999999}");
}

static void
conformance_4_6_check_04_pool_size_0_is_param_invalid(void **state)
{
    (void)state;
    REJECTED(POOL, "{\"buf_pool_size\":0}");
}

static void
conformance_4_6_check_05_pool_size_alone_or_else_buf_cfg(void **state)
{
    (void)state;
    ACCEPTED(POOL, "{\"buf_pool_size\":1024}",
             "{\"buf_cfg\":[" TIER(2097152, 256, 8192) "],\"foo\":1}",
             "{\"buf_cfg\":[{\"total_size\":2097152,\"blk_size\":256,\"max_buf_size\":8192,"
             "\"foo\":1}]}");
    REJECTED(POOL, "{}", "{\"foo\":1}", "{\"buf_pool_size\":1024,\"foo\":1}");
}

static void
conformance_4_6_check_06_buf_cfg_that_is_no_filled_array_is_param_invalid(void **state)
{
    (void)state;
    REJECTED(POOL, "{\"buf_cfg\":[]}", "{\"buf_cfg\":1}", "{\"buf_cfg\":{}}", "{\"buf_cfg\":null}",
             "{\"buf_cfg\":[],\"buf_pool_size\":1}");
}

static void
conformance_4_6_check_07_tiers(void **state)
{
    (void)state;
    ACCEPTED(POOL, TIERS(TIER(2097152, 256, 8192)), TIERS(TIER(2097152, 256, 256)),
             TIERS(TIER(2097152, 256, 8192) "," TIER(2097152, 4096, 16384)),
             "{\"buf_cfg\":[{\"total_size\":2097152,\"blk_size\":256,\"max_buf_size\":8192}],"
             "\"buf_pool_size\":2147483648}");
    REJECTED(POOL, TIERS("1"), TIERS("{}"), TIERS("{\"total_size\":2097152,\"blk_size\":256}"),
             TIERS(TIER(0, 256, 8192)), TIERS(TIER(2097152, 0, 8192)), TIERS(TIER(2097152, 256, 0)),
             TIERS(TIER(-2097152, 256, 8192)), TIERS(TIER("2097152", 256, 8192)),
             TIERS(TIER(8192, 256, 8192)),                                   // total > max
             TIERS(TIER(2097152, 16384, 8192)),                              // max >= block
             TIERS(TIER(2097152, 255, 8192)),                                // power of two
             TIERS(TIER(16777216, 4194304, 8388608)),                        // at most 2 MiB
             TIERS(TIER(2097153, 256, 8192)),                                // multiple
             TIERS(TIER(2097152, 256, 8192) "," TIER(2097152, 256, 8192)),   // growing
             TIERS(TIER(2097152, 256, 16384) "," TIER(2097152, 256, 8192))); // growing
}

static void
conformance_4_6_rule_01_above_0xffffffff_is_param_invalid(void **state)
{
    (void)state;
    REJECTED(POOL, TIERS(TIER(4294967296, 256, 8192)), TIERS(TIER(4297064448, 256, 8192)));
}

static void
conformance_4_6_rule_02_a_total_that_is_no_multiple_of_2_mib_is_tolerated(void **state)
{
    (void)state;
    ACCEPTED(POOL, TIERS(TIER(1048576, 256, 8192)));
}

static void
conformance_4_6_rule_03_a_tiny_pool_fails_at_allocation(void **state)
{
    llm_option options[] = {
        {LLM_OPTION_DEVICE_ID, "0"},
        {POOL, "{\"buf_cfg\":[" TIER(2097152, 256, 8192) "],\"buf_pool_size\":1024}"}};
    llm_datadist *dd;
    int64_t shape[] = {4, 1024};
    uintptr_t address;
    (void)state;
    assert_ok(llm_create(1, LLM_ROLE_DECODER, &dd));
    assert_ok(llm_initialize(dd, options, 2));
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = 1,
        .data_type = LLM_DT_INT8,
        .shape = shape,
        .num_dims = 2,
    };
    llm_cache cache = {
        .struct_size = sizeof(cache), .tensor_addrs = &address, .num_tensor_addrs = 1};
    assert_status(llm_allocate_cache(dd, &desc, &cache), LLM_DEVICE_OUT_OF_MEMORY);
    llm_destroy(dd);
}

static void
conformance_4_7_rule_01_internal_keys_have_no_effect(void **state)
{
    (void)state;
    ACCEPTED("llm.Role", "Prompt", "x");
    ACCEPTED("llm.ClusterInfo", "{");
    ACCEPTED("llm.ListenIp", "x");
    ACCEPTED("ge.exec.deviceId", "x");
}

#define TEST(test) cmocka_unit_test(test)

static const struct CMUnitTest tests[] = {
    TEST(conformance_4_rule_01_unknown_keys_are_ignored),
    TEST(conformance_4_1_rule_01_blanks_plus_and_zeros_before_a_number_are_accepted),
    TEST(conformance_4_1_rule_02_anything_else_in_a_number_is_param_invalid),
    TEST(conformance_4_1_rule_03_empty_items_are_errors),
    TEST(conformance_4_2_rule_01_missing_empty_or_malformed_ids_are_param_invalid),
    TEST(conformance_4_2_rule_02_ids_are_counted_and_stand_once),
    TEST(conformance_4_3_rule_01_one_item_per_device_is_required),
    TEST(conformance_4_3_rule_02_two_parts_and_a_strict_dotted_quad),
    TEST(conformance_4_3_rule_03_ports_0_to_65535),
    TEST(conformance_4_3_rule_04_the_same_address_for_all_devices_is_one_listener),
    TEST(conformance_4_3_rule_05_other_roles_do_not_read_it),
    TEST(conformance_4_4_rule_01_digits_from_1_to_2147483647),
    TEST(conformance_4_4_rule_02_0_and_more_than_2147483647_are_param_invalid),
    TEST(conformance_4_5_rule_01_exactly_0_or_1),
    TEST(conformance_4_6_check_01_empty_text_is_param_invalid),
    TEST(conformance_4_6_check_02_not_json_is_param_invalid),
    TEST(conformance_4_6_check_03_pool_size_that_is_no_unsigned_integer_is_param_invalid),
    TEST(conformance_4_6_check_04_pool_size_0_is_param_invalid),
    TEST(conformance_4_6_check_05_pool_size_alone_or_else_buf_cfg),
    TEST(conformance_4_6_check_06_buf_cfg_that_is_no_filled_array_is_param_invalid),
    TEST(conformance_4_6_check_07_tiers),
    TEST(conformance_4_6_rule_01_above_0xffffffff_is_param_invalid),
    TEST(conformance_4_6_rule_02_a_total_that_is_no_multiple_of_2_mib_is_tolerated),
    TEST(conformance_4_6_rule_03_a_tiny_pool_fails_at_allocation),
    TEST(conformance_4_7_rule_01_internal_keys_have_no_effect),
};
CONFORMANCE_MAIN("4 Options", tests)

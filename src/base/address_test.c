#include "base/address.h"

#include "base/os.h"
#include "unit/unit.h"

static struct lli_endpoint
place(const char *host, uint16_t port)
{
    struct lli_endpoint parsed;
    if (!lli_endpoint_parse(host, port, &parsed))
        fail_msg("%s is refused", host);
    return parsed;
}

static void
ipv4_is_a_strict_dotted_quad(void **state)
{
    static const char *const bad[] = {
        "",      "1.2.3",    "256.1.1.1",  "1.2.3.4 ", " 1.2.3.4",  "01.2.3.4",  "0x1.2.3.4",
        "127.1", "1.2.3.4.", "0x7f000001", "1",        "1.2.3.4.5", "[1.2.3.4]", "1.2.3.4:5"};
    struct lli_endpoint parsed;
    (void)state;
    parsed = place("1.2.3.4", 5);
    assert_false(parsed.is_name);
    assert_int_equal(parsed.address.v4.sin_addr.s_addr, htonl(0x01020304));
    assert_int_equal(lli_address_port(&parsed.address), 5);
    for (size_t i = 0; i < LLI_COUNT(bad); i++) {
        if (lli_endpoint_parse(bad[i], 0, &parsed))
            fail_msg("\"%s\" is taken", bad[i]);
    }
    assert_false(lli_endpoint_parse(NULL, 0, &parsed));
}

static void
ipv6_may_have_brackets_and_a_zone(void **state)
{
    static const char *const good[] = {"::",           "::1",         "[::1]",
                                       "fe80::1%eth0", "[fe80::1%2]", "2001:db8::1.2.3.4"};
    static const char *const bad[] = {"[]",
                                      "[::1",
                                      "::1]",
                                      ":",
                                      ":::",
                                      "::1%",
                                      "::1%a b",
                                      "1::2::3",
                                      "[[::1]]",
                                      "::g",
                                      "%eth0",
                                      "::1:26000x",
                                      "fe80::1%abcdefghijklmnop"};
    struct lli_endpoint parsed;
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(good); i++)
        assert_int_equal(place(good[i], 0).address.any.sa_family, AF_INET6);
    for (size_t i = 0; i < LLI_COUNT(bad); i++) {
        if (lli_endpoint_parse(bad[i], 0, &parsed))
            fail_msg("\"%s\" is taken", bad[i]);
    }
    // In the clothes of IPv6.
    parsed = place("::ffff:1.2.3.4", 7);
    assert_int_equal(parsed.address.any.sa_family, AF_INET);
    assert_int_equal(lli_address_port(&parsed.address), 7);
}

static void
names_are_those_of_hosts(void **state)
{
    static const char *const good[] = {
        "localhost", "a",      "pod-0.prefill.svc.cluster.local", "n1.", "under_score",
        "3com",      "1.2.3.x"};
    static const char *const bad[] = {"local host", "-a",  "a-",     "a..b",     ".a", "a/b",
                                      "a;b",        "a\n", "host.1", "\xc3\xa4", "."};
    char text[300];
    struct lli_endpoint parsed;
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(good); i++)
        assert_true(place(good[i], 0).is_name);
    for (size_t i = 0; i < LLI_COUNT(bad); i++) {
        if (lli_endpoint_parse(bad[i], 0, &parsed))
            fail_msg("\"%s\" is taken", bad[i]);
    }
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    assert_false(lli_endpoint_parse(text, 0, &parsed));
    text[64] = '\0';
    assert_false(lli_endpoint_parse(text, 0, &parsed));
    text[63] = '\0';
    assert_true(lli_endpoint_parse(text, 0, &parsed));
}

static void
a_place_is_split_at_the_colon_of_the_port(void **state)
{
    static const char *const texts[] = {"127.0.0.1:7", "[::1]:7", "name:7"};
    static const char *const bad[] = {"127.0.0.1", "[::1]", "::1:7", "[::1]7", ":7", "[::1:7", ""};
    char text[LLI_ADDRESS_TEXT_BYTES];
    struct lli_endpoint parsed;
    const char *port;
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(texts); i++) {
        assert_true(lli_endpoint_split(texts[i], texts[i] + strlen(texts[i]), &parsed, &port));
        assert_string_equal(port, "7");
        parsed.port = 7;
        assert_string_equal(lli_endpoint_format(&parsed, text), texts[i]);
    }
    for (size_t i = 0; i < LLI_COUNT(bad); i++)
        assert_false(lli_endpoint_split(bad[i], bad[i] + strlen(bad[i]), &parsed, &port));
}

static void
places_are_compared_by_what_is_known(void **state)
{
    struct lli_endpoint a = place("[0:0::1]", 7);
    struct lli_endpoint b = place("::1", 7);
    (void)state;
    assert_true(lli_endpoint_equal(&a, &b));
    b.port = 8;
    assert_false(lli_endpoint_equal(&a, &b));
    a = place("localhost", 7);
    b = place("localhost", 7);
    assert_true(lli_endpoint_equal(&a, &b));
    b = place("127.0.0.1", 7);
    assert_false(lli_endpoint_equal(&a, &b));
    a = place("0.0.0.0", 0);
    b = place("::", 0);
    assert_true(lli_address_is_any(&a.address) && lli_address_is_any(&b.address));
    assert_true(lli_address_is_same_host(&a.address, &b.address));
}

static size_t
resolve(const struct lli_endpoint *what, uint64_t deadline_ns, struct lli_address *found,
        bool *timed_out, char why[200])
{
    why[0] = '\0';
    return lli_endpoint_resolve(what, deadline_ns, found, timed_out, why, 200);
}

static void
a_name_is_looked_up(void **state)
{
    struct lli_address found[LLI_LOOKUP_MAX];
    char text[LLI_ADDRESS_TEXT_BYTES];
    char why[200];
    bool timed_out;
    struct lli_endpoint local = place("localhost", 26000);
    struct lli_endpoint nobody = place("nobody.invalid", 1);
    (void)state;
    size_t num_found =
        resolve(&local, lli_deadline_after_ms(UNIT_PATIENCE_MS), found, &timed_out, why);
    assert_true(num_found > 0);
    for (size_t i = 0; i < num_found; i++) {
        lli_address_format(&found[i], text);
        assert_true(strcmp(text, "127.0.0.1") == 0 || strcmp(text, "::1") == 0);
        assert_int_equal(lli_address_port(&found[i]), 26000);
    }
    assert_int_equal(
        resolve(&nobody, lli_deadline_after_ms(UNIT_PATIENCE_MS), found, &timed_out, why), 0);
    assert_non_null(strstr(why, "nobody.invalid"));
}

// The thread that looks it up is left alone, and ends by itself.
static void
a_lookup_that_takes_too_long_is_abandoned(void **state)
{
    struct lli_address found[LLI_LOOKUP_MAX];
    char why[200];
    struct lli_endpoint nobody = place("nobody.invalid", 1);
    (void)state;
    for (size_t i = 0; i < 10; i++) {
        bool timed_out;
        size_t num_found = resolve(&nobody, lli_now_ns(), found, &timed_out, why);
        assert_int_equal(num_found, 0);
        assert_non_null(strstr(why, "nobody.invalid"));
    }
}

static void
a_zone_is_an_interface_or_its_number(void **state)
{
    struct lli_address found[LLI_LOOKUP_MAX];
    char why[200];
    bool timed_out;
    struct lli_endpoint by_name = place("fe80::1%lo", 1);
    struct lli_endpoint by_number = place("fe80::1%1", 1);
    struct lli_endpoint nowhere = place("fe80::1%nowhere", 1);
    (void)state;
    if (resolve(&by_name, 0, found, &timed_out, why) == 1)
        assert_true(found[0].v6.sin6_scope_id > 0);
    assert_int_equal(resolve(&by_number, 0, found, &timed_out, why), 1);
    assert_int_equal(found[0].v6.sin6_scope_id, 1);
    assert_int_equal(resolve(&nowhere, 0, found, &timed_out, why), 0);
    assert_non_null(strstr(why, "no interface nowhere"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ipv4_is_a_strict_dotted_quad),
        cmocka_unit_test(ipv6_may_have_brackets_and_a_zone),
        cmocka_unit_test(names_are_those_of_hosts),
        cmocka_unit_test(a_place_is_split_at_the_colon_of_the_port),
        cmocka_unit_test(places_are_compared_by_what_is_known),
        cmocka_unit_test(a_name_is_looked_up),
        cmocka_unit_test(a_lookup_that_takes_too_long_is_abandoned),
        cmocka_unit_test(a_zone_is_an_interface_or_its_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Nothing is said while a lock of the library is held: a sink may take its time, or a lock of its own.
// The linker leads the library's locking here (CMakeLists.txt), and the sink looks at the count.
#include <pthread.h>
#include <stdatomic.h>

#include "multi/member.h"
#include "unit/unit.h"

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __real_pthread_mutex_trylock(pthread_mutex_t *mutex);
int __real_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);

static _Thread_local int num_held;

int
__wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    int result = __real_pthread_mutex_lock(mutex);
    num_held += result == 0;
    return result;
}

int
__wrap_pthread_mutex_trylock(pthread_mutex_t *mutex)
{
    int result = __real_pthread_mutex_trylock(mutex);
    num_held += result == 0;
    return result;
}

int
__wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    num_held--;
    return __real_pthread_mutex_unlock(mutex);
}

static _Atomic unsigned num_lines, num_under_locks;

static void
listen_to(void *arg, llm_log_level level, const char *line)
{
    (void)arg;
    (void)level;
    atomic_fetch_add(&num_lines, 1);
    if (num_held != 0) {
        atomic_fetch_add(&num_under_locks, 1);
        print_error("under a lock: %s\n", line);
    }
}

// What is said at the least; the tests below know what fails, not how often it is told.
static void
expect_lines(unsigned at_least)
{
    assert_int_equal(atomic_load(&num_under_locks), 0);
    assert_true(atomic_exchange(&num_lines, 0) >= at_least);
}

static void
test_opening_and_closing(void **state)
{
    struct member member = {0};
    struct member_setup setup = {.cluster_id = 1, .role = LLM_ROLE_PROMPT, .transports = "auto"};
    llm_datadist *dd;
    llm_option wrong = {LLM_OPTION_DEVICE_ID, "x"};
    (void)state;
    member_open(&member, &setup);
    member_close(&member);
    assert_int_equal(llm_create(1, LLM_ROLE_DECODER, &dd), LLM_SUCCESS);
    assert_int_equal(llm_initialize(dd, &wrong, 1), LLM_PARAM_INVALID);
    llm_destroy(dd);
    expect_lines(3);
}

static void
test_caches_keys_and_leases(void **state)
{
    struct member member = {0};
    struct member_setup setup = {
        .cluster_id = 1, .role = LLM_ROLE_DECODER, .transports = "auto", .pool_bytes = 1 << 21};
    llm_cache_key key = {sizeof(key), LLM_KEY_REQUEST, 7, 0};
    int64_t shape[] = {1, (int64_t)1 << 40};
    llm_cache_desc huge = {sizeof(huge), LLM_PLACEMENT_DEVICE, 1, LLM_DT_INT8, shape, 2};
    uintptr_t address;
    llm_cache cache = {sizeof(cache), 0, NULL, &address, 1};
    uint64_t lease;
    (void)state;
    member_open(&member, &setup);
    atomic_store(&num_lines, 0);
    assert_int_equal(llm_allocate_cache(member.dd, &huge, &cache), LLM_DEVICE_OUT_OF_MEMORY);
    expect_lines(1);

    int64_t id = member_allocate(&member, 0, 1, 4, 64);
    assert_int_equal(llm_bind_cache_keys(member.dd, id, &key, 1), LLM_SUCCESS);
    atomic_store(&num_lines, 0);
    assert_int_equal(llm_bind_cache_keys(member.dd, id, &key, 1), LLM_CACHE_KEY_ALREADY_EXIST);
    assert_int_equal(llm_bind_cache_keys(member.dd, 99, &key, 1), LLM_KV_CACHE_NOT_EXIST);
    expect_lines(2);

    llm_lease_desc desc = {.struct_size = sizeof(desc), .cache_id = 99, .num_blocks = 1};
    desc.duration_ms = 1000;
    assert_int_equal(llm_lease_open(member.dd, &desc, &lease), LLM_KV_CACHE_NOT_EXIST);
    desc.cache_id = id;
    desc.num_blocks = 5;
    assert_int_equal(llm_lease_open(member.dd, &desc, &lease), LLM_PARAM_INVALID);
    assert_int_equal(llm_lease_renew(member.dd, 12345, 1), LLM_PARAM_INVALID);
    expect_lines(3);
    member_close(&member);
    expect_lines(1);
}

static void
test_links_that_come_and_go(void **state)
{
    struct member prompt = {0};
    struct member decoder = {0};
    struct member_setup setup = {.cluster_id = 1, .role = LLM_ROLE_PROMPT, .transports = "auto"};
    (void)state;
    member_open(&prompt, &setup);
    setup.cluster_id = 2;
    setup.role = LLM_ROLE_DECODER;
    member_open(&decoder, &setup);
    llm_ip_info here = {"127.0.0.1", 0};
    llm_ip_info there = {"127.0.0.1", prompt.ports[0]};
    llm_cluster_info cluster = {sizeof(cluster), 1, 0, &here, 1, &there, 1};
    atomic_store(&num_lines, 0);
    assert_int_equal(llm_link_clusters(decoder.dd, &cluster, 1, NULL, NULL, 5000), LLM_SUCCESS);
    expect_lines(2);
    llm_finalize(prompt.dd); // without a word
    struct pollfd news = {.fd = llm_link_event_fd(decoder.dd), .events = POLLIN};
    llm_link_info info = {.struct_size = sizeof(info)};
    while (info.state != LLM_LINK_BROKEN) {
        assert_int_equal(poll(&news, 1, 10000), 1);
        while (llm_poll_link_event(decoder.dd, &info) == LLM_SUCCESS &&
               info.state != LLM_LINK_BROKEN)
            ;
    }
    expect_lines(1);
    member_close(&decoder);
    member_close(&prompt);
    expect_lines(1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opening_and_closing),
        cmocka_unit_test(test_caches_keys_and_leases),
        cmocka_unit_test(test_links_that_come_and_go),
    };
    llm_set_log_sink(listen_to, NULL);
    setenv("LLM_DATADIST_LOG_LEVEL", "debug", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// A program of the first release, compiled against its header (first/llm_datadist_c.h) and run with
// today's library: every call that takes a struct gets it in its first size, at the end of a page behind
// which there is no memory, so that one byte read or written too much ends the program.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "first/llm_datadist_c.h"

enum { PROMPT = 1, DECODER = 2, TENSORS = 2, SLOTS = 4, STRIDE = 64 };
// These two had grown before they were first published.
enum {
    INDEX_BYTES = offsetof(llm_cache_index, batch_index) + sizeof(uint32_t),
    PARAM_BYTES = offsetof(llm_kv_cache_ext_param, tensor_num_per_layer) + sizeof(uint32_t)
};

struct side {
    llm_datadist *dd;
    int64_t cache_id;
    uintptr_t addrs[TENSORS];
};

static struct side prompt;
static struct side decoder;
// What the structs of the current test say: their size, or 0, which stands for it.
static bool says_zero;

static const int64_t shape[] = {SLOTS, STRIDE};

// ---- structs without a byte behind them ----

// The pages of one struct each, until the test ends.
static void *held[64];
static size_t num_held;

static size_t
page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static void *
at_the_end(const void *content, size_t bytes)
{
    size_t page = page_bytes();
    char *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(pages != MAP_FAILED && num_held < sizeof(held) / sizeof(held[0]));
    assert_int_equal(mprotect(pages + page, page, PROT_NONE), 0);
    held[num_held++] = pages;
    return memcpy(pages + page - bytes, content, bytes);
}

static void *
alone(const void *content, size_t bytes)
{
    void *copy = at_the_end(content, bytes);
    size_t struct_size = says_zero ? 0 : bytes;
    memcpy(copy, &struct_size, sizeof(struct_size));
    return copy;
}
#define ALONE(type, ...) ((type *)alone(&(type){0, __VA_ARGS__}, sizeof(type)))

static const llm_cache_index *
index_of(const struct side *side, uint64_t cluster_id)
{
    llm_cache_index index = {.cluster_id = cluster_id, .cache_id = side->cache_id};
    return alone(&index, INDEX_BYTES);
}

static const llm_kv_cache_ext_param *
all_layers(void)
{
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    return alone(&param, PARAM_BYTES);
}

// As a program of the first release knows it.
static const llm_kv_cache_ext_param *
with_progress(llm_progress *progress)
{
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    param.progress = progress;
    return at_the_end(&param, sizeof(param));
}

static const llm_cache_desc *
device_desc(void)
{
    return ALONE(llm_cache_desc, LLM_PLACEMENT_DEVICE, TENSORS, LLM_DT_INT8, shape, 2);
}

static llm_cache *
cache_of(struct side *side)
{
    return ALONE(llm_cache, side->cache_id, device_desc(), side->addrs, TENSORS);
}

// ---- a prompt and a decoder ----

static void
open_side(struct side *side, uint64_t id, llm_role role)
{
    const llm_option options[] = {{LLM_OPTION_DEVICE_ID, "0"},
                                  {LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"},
                                  {LLM_OPTION_SYNC_CACHE_WAIT_TIME, "20000"}};
    assert_int_equal(llm_create(id, role, &side->dd), LLM_SUCCESS);
    assert_int_equal(llm_initialize(side->dd, options, 3), LLM_SUCCESS);
    llm_cache *cache = ALONE(llm_cache, 0, NULL, side->addrs, TENSORS);
    assert_int_equal(llm_allocate_cache(side->dd, device_desc(), cache), LLM_SUCCESS);
    assert_int_equal(cache->num_tensor_addrs, TENSORS);
    side->cache_id = cache->cache_id;
    for (int t = 0; t < TENSORS; t++)
        memset((void *)side->addrs[t], (int)id * 10 + t, SLOTS * STRIDE);
}

// The same cluster twice, so that the array has a step.
static const llm_cluster_info *
two_clusters(const llm_ip_info *here, const llm_ip_info *there)
{
    const llm_cluster_info infos[2] = {
        {says_zero ? 0 : sizeof(infos[0]), PROMPT, 0, here, 1, there, 1},
        {says_zero ? 0 : sizeof(infos[0]), PROMPT, 0, here, 1, there, 1},
    };
    return at_the_end(infos, sizeof(infos));
}

static void
link_sides(void)
{
    static const llm_ip_info here = {"127.0.0.1", 0};
    static llm_ip_info there = {"127.0.0.1", 0};
    llm_status rets[2];
    size_t num_rets;
    assert_int_equal(llm_get_listen_port(prompt.dd, 0, &there.port), LLM_SUCCESS);
    assert_int_equal(
        llm_link_clusters(decoder.dd, two_clusters(&here, &there), 2, rets, &num_rets, 20000),
        LLM_REPEAT_REQUEST);
    assert_int_equal(num_rets, 2);
    assert_int_equal(rets[0], LLM_SUCCESS);
    assert_int_equal(rets[1], LLM_REPEAT_REQUEST);
}

static int
setup(bool zero)
{
    says_zero = zero;
    open_side(&prompt, PROMPT, LLM_ROLE_PROMPT);
    open_side(&decoder, DECODER, LLM_ROLE_DECODER);
    link_sides();
    return 0;
}

static int
setup_with_sizes(void **state)
{
    (void)state;
    return setup(false);
}

static int
setup_with_zeros(void **state)
{
    (void)state;
    return setup(true);
}

static int
teardown(void **state)
{
    (void)state;
    llm_destroy(decoder.dd);
    llm_destroy(prompt.dd);
    while (num_held > 0)
        munmap(held[--num_held], 2 * page_bytes());
    return 0;
}

// ---- every call that takes a struct ----

static void
silence(void *arg, llm_log_level level, const char *line)
{
    (void)arg;
    (void)level;
    (void)line;
}

static void
assert_slot(const struct side *side, size_t slot, int value)
{
    for (int t = 0; t < TENSORS; t++)
        assert_int_equal(((const uint8_t *)side->addrs[t])[slot * STRIDE], value + t);
}

static void
pulls_are_as_they_were(void **state)
{
    (void)state;
    const uint64_t blocks[] = {1, 2};
    const llm_cache_index *index = index_of(&prompt, PROMPT);
    assert_int_equal(llm_pull_kv_cache(decoder.dd, index, cache_of(&decoder), 0, -1, all_layers()),
                     LLM_SUCCESS);
    assert_slot(&decoder, 0, PROMPT * 10);
    assert_int_equal(llm_pull_kv_blocks(decoder.dd, index, cache_of(&decoder), blocks, 2, blocks, 2,
                                        all_layers()),
                     LLM_SUCCESS);
    assert_slot(&decoder, 2, PROMPT * 10);
    assert_int_equal(llm_pull_kv_cache_to_blocks(decoder.dd, index, cache_of(&decoder), &blocks[0],
                                                 1, -1, all_layers()),
                     LLM_SUCCESS);
    assert_slot(&decoder, 3, DECODER * 10);
}

static void
pushes_are_as_they_were(void **state)
{
    (void)state;
    const uint64_t blocks[] = {1, 2};
    const llm_cache_index *index = index_of(&decoder, DECODER);
    assert_int_equal(llm_push_kv_cache(prompt.dd, cache_of(&prompt), index, 0, -1, all_layers()),
                     LLM_SUCCESS);
    assert_int_equal(
        llm_push_kv_blocks(prompt.dd, cache_of(&prompt), index, blocks, 2, blocks, 2, all_layers()),
        LLM_SUCCESS);
    assert_slot(&decoder, 0, PROMPT * 10);
    assert_slot(&decoder, 2, PROMPT * 10);
    assert_slot(&decoder, 3, DECODER * 10);
}

static void
end_started(llm_datadist *dd, llm_status started, const uint64_t *id)
{
    llm_progress *progress = ALONE(llm_progress, 0, 0, 0, 0, 0);
    assert_int_equal(started, LLM_SUCCESS);
    assert_int_equal(llm_transfer_wait(dd, *id, 20000), LLM_SUCCESS);
    assert_int_equal(llm_transfer_get_progress(dd, *id, progress), LLM_SUCCESS);
    assert_int_equal(progress->struct_size, says_zero ? 0 : sizeof(*progress));
    assert_true(progress->bytes_moved > 0);
    assert_int_equal(llm_transfer_release(dd, *id), LLM_SUCCESS);
}

static void
started_transfers_are_as_they_were(void **state)
{
    (void)state;
    const uint64_t block = 1;
    uint64_t id = 0;
    const llm_cache_index *there = index_of(&prompt, PROMPT);
    const llm_cache_index *back = index_of(&decoder, DECODER);
    llm_datadist *dd = decoder.dd;
    end_started(
        dd, llm_start_pull_kv_cache(dd, there, cache_of(&decoder), 0, -1, all_layers(), &id), &id);
    end_started(dd,
                llm_start_pull_kv_blocks(dd, there, cache_of(&decoder), &block, 1, &block, 1,
                                         all_layers(), &id),
                &id);
    end_started(dd,
                llm_start_pull_kv_cache_to_blocks(dd, there, cache_of(&decoder), &block, 1, -1,
                                                  all_layers(), &id),
                &id);
    dd = prompt.dd;
    end_started(dd, llm_start_push_kv_cache(dd, cache_of(&prompt), back, 0, -1, all_layers(), &id),
                &id);
    end_started(dd,
                llm_start_push_kv_blocks(dd, cache_of(&prompt), back, &block, 1, &block, 1,
                                         all_layers(), &id),
                &id);
}

static void
progress_is_written_and_nothing_behind_it(void **state)
{
    (void)state;
    llm_progress *progress = ALONE(llm_progress, 0, 0, 0, 0, 0);
    assert_int_equal(llm_pull_kv_cache(decoder.dd, index_of(&prompt, PROMPT), cache_of(&decoder), 0,
                                       -1, with_progress(progress)),
                     LLM_SUCCESS);
    assert_int_equal(progress->struct_size, says_zero ? 0 : sizeof(*progress));
    assert_int_equal(progress->bytes_arrived, TENSORS * STRIDE);
}

static void
assert_cache_info(const llm_cache_info *info, const struct side *side)
{
    assert_int_equal(info->struct_size, says_zero ? 0 : sizeof(*info));
    assert_int_equal(info->cache_id, side->cache_id);
    assert_int_equal(info->num_slots, SLOTS);
    assert_int_equal(info->tensor_bytes, SLOTS * STRIDE);
    assert_true(info->generation != 0);
}

static void
what_is_known_is_written_and_nothing_behind_it(void **state)
{
    (void)state;
    llm_cache_info *info = ALONE(llm_cache_info, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    llm_cache_info *at_peer = ALONE(llm_cache_info, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    llm_link_info *of_link = ALONE(llm_link_info, 0, 0, 0, "", "");
    llm_link_info *event = ALONE(llm_link_info, 0, 0, 0, "", "");
    llm_option_info *option = ALONE(llm_option_info, NULL, NULL, NULL);
    assert_int_equal(llm_get_cache_info(prompt.dd, prompt.cache_id, info), LLM_SUCCESS);
    assert_cache_info(info, &prompt);
    assert_int_equal(llm_query_cache(decoder.dd, index_of(&prompt, PROMPT), at_peer), LLM_SUCCESS);
    assert_cache_info(at_peer, &prompt);
    assert_int_equal(llm_get_link_info(decoder.dd, PROMPT, of_link), LLM_SUCCESS);
    assert_int_equal(of_link->state, LLM_LINK_READY);
    assert_int_equal(llm_poll_link_event(decoder.dd, event), LLM_SUCCESS);
    assert_int_equal(event->cluster_id, PROMPT);
    assert_int_equal(event->struct_size, says_zero ? 0 : sizeof(*event));
    assert_int_equal(llm_get_option_info(0, option), LLM_SUCCESS);
    assert_non_null(option->help);
}

static void
keys_and_leases_are_as_they_were(void **state)
{
    (void)state;
    uint64_t lease;
    size_t size = says_zero ? 0 : sizeof(llm_cache_key);
    const llm_cache_key keys[] = {{size, LLM_KEY_REQUEST, 7, 0}, {size, LLM_KEY_PREFIX, 8, 0}};
    const llm_cache_key *prefix = at_the_end(&keys[1], sizeof(keys[1]));
    llm_cache_index by_key = {.struct_size = sizeof(by_key), .cluster_id = PROMPT, .key = prefix};
    llm_cache_info *info = ALONE(llm_cache_info, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    assert_int_equal(
        llm_bind_cache_keys(prompt.dd, prompt.cache_id, at_the_end(keys, sizeof(keys)), 2),
        LLM_SUCCESS);
    assert_int_equal(llm_query_cache(decoder.dd, at_the_end(&by_key, sizeof(by_key)), info),
                     LLM_SUCCESS);
    assert_int_equal(info->batch_index, 1);
    assert_int_equal(llm_remove_cache_key(prompt.dd, prefix), LLM_SUCCESS);
    const llm_lease_desc *desc = ALONE(llm_lease_desc, prompt.cache_id, 0, 1, 60000, 0);
    assert_int_equal(llm_lease_open(prompt.dd, desc, &lease), LLM_SUCCESS);
    assert_int_equal(llm_lease_close(prompt.dd, lease), LLM_SUCCESS);
}

static void
copies_are_as_they_were(void **state)
{
    (void)state;
    const uint64_t block = 0;
    const uint64_t to = 3;
    const uint64_t *const lists[] = {&to};
    const size_t counts[] = {1};
    assert_int_equal(
        llm_copy_kv_cache(prompt.dd, cache_of(&prompt), cache_of(&decoder), 0, 2, 0, -1),
        LLM_SUCCESS);
    assert_int_equal(llm_copy_kv_blocks(prompt.dd, cache_of(&prompt), cache_of(&decoder), &block, 1,
                                        lists, counts, 1),
                     LLM_SUCCESS);
    assert_slot(&decoder, 2, PROMPT * 10);
    assert_slot(&decoder, 3, PROMPT * 10);
}

static void
registrations_and_unlinks_are_as_they_were(void **state)
{
    (void)state;
    static const llm_ip_info here = {"127.0.0.1", 0};
    static uint8_t memory[TENSORS][SLOTS * STRIDE];
    const uint64_t addrs[] = {(uintptr_t)memory[0], (uintptr_t)memory[1]};
    int64_t id;
    llm_ip_info there = {"127.0.0.1", 0};
    assert_int_equal(llm_get_listen_port(prompt.dd, 0, &there.port), LLM_SUCCESS);
    assert_int_equal(
        llm_unlink_clusters(decoder.dd, two_clusters(&here, &there), 1, NULL, NULL, 20000, 0),
        LLM_SUCCESS);
    assert_int_equal(llm_register_kv_cache(prompt.dd, device_desc(), addrs, TENSORS, &id),
                     LLM_SUCCESS);
    assert_int_equal(llm_unregister_kv_cache(prompt.dd, id), LLM_SUCCESS);
}

#define BOTH(test)                                                                                 \
    cmocka_unit_test_setup_teardown(test, setup_with_sizes, teardown),                             \
        cmocka_unit_test_setup_teardown(test, setup_with_zeros, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(pulls_are_as_they_were),
        BOTH(pushes_are_as_they_were),
        BOTH(started_transfers_are_as_they_were),
        BOTH(progress_is_written_and_nothing_behind_it),
        BOTH(what_is_known_is_written_and_nothing_behind_it),
        BOTH(keys_and_leases_are_as_they_were),
        BOTH(copies_are_as_they_were),
        BOTH(registrations_and_unlinks_are_as_they_were),
    };
    llm_set_log_sink(silence, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

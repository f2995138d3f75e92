// What a cache is made of travels: its data type and shape are told, and bytes of one type don't land
// as another (llm_kv_cache_ext_param.allow_other_type, llm_cache_info).
#include "suite.h"

enum { TENSORS = 2, SLOTS = 4, STRIDE = 64, PATIENCE_MS = 20000 };

static struct party prompt;
static struct party decoder;
// One type each, all of the same stride.
static struct kv theirs; // the prompt's
static struct kv ours;   // the decoder's

// Pushes, addresses and registered memory go with one device only.
static int
set_up(void **state)
{
    struct party_options options = {.num_devices = 1};
    (void)state;
    open_party_with(&prompt, 1, LLM_ROLE_PROMPT, &options);
    open_party_with(&decoder, 2, LLM_ROLE_DECODER, &options);
    link_parties(&decoder, &prompt);
    return 0;
}

static int
set_up_devices(void **state)
{
    (void)state;
    open_party(&prompt, 1, LLM_ROLE_PROMPT);
    open_party(&decoder, 2, LLM_ROLE_DECODER);
    link_parties(&decoder, &prompt);
    return 0;
}

static int
tear_down(void **state)
{
    (void)state;
    close_party(&decoder);
    close_party(&prompt);
    return 0;
}

static void
open_typed(struct kv *kv, const struct party *party, int32_t type)
{
    open_kv(kv, party, TENSORS, type, SLOTS, STRIDE * 8 / (int64_t)llm_data_type_bits(type));
    assert_int_equal(kv->stride, STRIDE);
}

static void
open_caches(int32_t their_type, int32_t our_type)
{
    open_typed(&theirs, &prompt, their_type);
    open_typed(&ours, &decoder, our_type);
}

static void
forget_caches(void)
{
    assert_ok(llm_deallocate_cache(prompt.dd, theirs.cache.cache_id));
    assert_ok(llm_deallocate_cache(decoder.dd, ours.cache.cache_id));
    forget_kv(&theirs);
    forget_kv(&ours);
}

// ---- every call that moves bytes between two instances ----

static const uint64_t blocks[] = {1, 2};

static llm_status
end(llm_datadist *dd, llm_status started, const uint64_t *id)
{
    if (started != LLM_SUCCESS)
        return started;
    llm_status status = llm_transfer_wait(dd, *id, PATIENCE_MS);
    assert_ok(llm_transfer_release(dd, *id));
    return status;
}

static llm_status
pull_slot(const llm_cache_index *from, const llm_kv_cache_ext_param *param)
{
    return llm_pull_kv_cache(decoder.dd, from, &ours.cache, 1, -1, param);
}

static llm_status
pull_blocks(const llm_cache_index *from, const llm_kv_cache_ext_param *param)
{
    return llm_pull_kv_blocks(decoder.dd, from, &ours.cache, blocks, 2, blocks, 2, param);
}

static llm_status
pull_to_blocks(const llm_cache_index *from, const llm_kv_cache_ext_param *param)
{
    return llm_pull_kv_cache_to_blocks(decoder.dd, from, &ours.cache, blocks, 1, -1, param);
}

static llm_status
start_pull_slot(const llm_cache_index *from, const llm_kv_cache_ext_param *param)
{
    uint64_t id;
    return end(decoder.dd,
               llm_start_pull_kv_cache(decoder.dd, from, &ours.cache, 1, -1, param, &id), &id);
}

static llm_status
start_pull_blocks(const llm_cache_index *from, const llm_kv_cache_ext_param *param)
{
    uint64_t id;
    return end(
        decoder.dd,
        llm_start_pull_kv_blocks(decoder.dd, from, &ours.cache, blocks, 2, blocks, 2, param, &id),
        &id);
}

static llm_status
start_pull_to_blocks(const llm_cache_index *from, const llm_kv_cache_ext_param *param)
{
    uint64_t id;
    return end(
        decoder.dd,
        llm_start_pull_kv_cache_to_blocks(decoder.dd, from, &ours.cache, blocks, 1, -1, param, &id),
        &id);
}

static llm_status
push_slot(const llm_cache_index *to, const llm_kv_cache_ext_param *param)
{
    return llm_push_kv_cache(prompt.dd, &theirs.cache, to, 1, -1, param);
}

static llm_status
push_blocks(const llm_cache_index *to, const llm_kv_cache_ext_param *param)
{
    return llm_push_kv_blocks(prompt.dd, &theirs.cache, to, blocks, 2, blocks, 2, param);
}

static llm_status
start_push_slot(const llm_cache_index *to, const llm_kv_cache_ext_param *param)
{
    uint64_t id;
    return end(prompt.dd, llm_start_push_kv_cache(prompt.dd, &theirs.cache, to, 1, -1, param, &id),
               &id);
}

static llm_status
start_push_blocks(const llm_cache_index *to, const llm_kv_cache_ext_param *param)
{
    uint64_t id;
    return end(
        prompt.dd,
        llm_start_push_kv_blocks(prompt.dd, &theirs.cache, to, blocks, 2, blocks, 2, param, &id),
        &id);
}

typedef llm_status (*mover)(const llm_cache_index *remote, const llm_kv_cache_ext_param *param);
struct way {
    mover move;
    size_t slot;    // that it moves among others
    uint32_t batch; // of the index
    uint32_t key;   // the kind that names the peer's cache, or slot
};
static const struct way pulls[] = {
    {pull_slot, 1, 1, LLM_KEY_PREFIX},         {pull_blocks, 1, 0, LLM_KEY_BLOCKS},
    {pull_to_blocks, 1, 1, LLM_KEY_REQUEST},   {start_pull_slot, 1, 1, LLM_KEY_REQUEST},
    {start_pull_blocks, 2, 0, LLM_KEY_BLOCKS}, {start_pull_to_blocks, 1, 1, LLM_KEY_PREFIX},
};
static const struct way pushes[] = {
    {push_slot, 1, 1, LLM_KEY_BLOCKS},
    {push_blocks, 1, 0, LLM_KEY_BLOCKS},
    {start_push_slot, 1, 1, LLM_KEY_BLOCKS},
    {start_push_blocks, 2, 0, LLM_KEY_BLOCKS},
};

static llm_cache_index
remote_of(const struct way *way, bool push)
{
    return push ? index_of(&decoder, &ours, way->batch) : index_of(&prompt, &theirs, way->batch);
}

static bool
has_arrived(const struct way *way)
{
    size_t at = way->slot * STRIDE;
    return memcmp((void *)(ours.addresses[0] + at), (void *)(theirs.addresses[0] + at), STRIDE) ==
           0;
}

// Refused with both names, nothing moved; with allow_other_type all of it moves.
static void
check_refused(const struct way *way, const llm_cache_index *remote, const char *here,
              const char *there)
{
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    fill_kv_with(&ours, 0xAA);
    fill_kv(&theirs, way->slot);
    assert_status_says(way->move(remote, NULL), LLM_PARAM_INVALID, here);
    assert_status_says(way->move(remote, &param), LLM_PARAM_INVALID, there);
    assert_kv(&ours);
    param.allow_other_type = 1;
    assert_ok(way->move(remote, &param));
    assert_true(has_arrived(way));
}

// ---- tests ----

static void
a_pull_of_another_type_is_refused_unless_it_is_allowed(void **state)
{
    (void)state;
    open_caches(LLM_DT_BF16, LLM_DT_FLOAT8_E4M3FN);
    for (size_t i = 0; i < sizeof(pulls) / sizeof(pulls[0]); i++) {
        llm_cache_index from = remote_of(&pulls[i], false);
        check_refused(&pulls[i], &from, "LLM_DT_FLOAT8_E4M3FN (36) here",
                      "LLM_DT_BF16 (27) at the peer");
    }
    forget_caches();
}

static void
a_push_of_another_type_is_refused_unless_it_is_allowed(void **state)
{
    (void)state;
    open_caches(LLM_DT_BF16, LLM_DT_FLOAT16);
    for (size_t i = 0; i < sizeof(pushes) / sizeof(pushes[0]); i++) {
        llm_cache_index to = remote_of(&pushes[i], true);
        check_refused(&pushes[i], &to, "LLM_DT_BF16 (27) here", "LLM_DT_FLOAT16 (1) at the peer");
    }
    forget_caches();
}

static void
keys_lead_to_the_same_check(void **state)
{
    (void)state;
    open_caches(LLM_DT_FLOAT, LLM_DT_INT32);
    for (size_t i = 0; i < sizeof(pulls) / sizeof(pulls[0]); i++) {
        llm_cache_key keys[] = {
            {.struct_size = sizeof(keys[0]), .kind = LLM_KEY_NONE},
            {.struct_size = sizeof(keys[0]), .kind = pulls[i].key, .id = 7},
        };
        llm_cache_index from = remote_of(&pulls[i], false);
        bool all = pulls[i].key == LLM_KEY_BLOCKS;
        keys[1].id = all ? 0 : 7;
        from.key = &keys[1];
        assert_ok(llm_bind_cache_keys(prompt.dd, theirs.cache.cache_id, all ? &keys[1] : keys,
                                      all ? 1 : 2));
        check_refused(&pulls[i], &from, "LLM_DT_INT32 (3) here", "LLM_DT_FLOAT (0) at the peer");
        assert_ok(llm_remove_cache_key(prompt.dd, &keys[1]));
    }
    llm_cache_key key = {.struct_size = sizeof(key), .kind = LLM_KEY_BLOCKS};
    assert_ok(llm_bind_cache_keys(decoder.dd, ours.cache.cache_id, &key, 1));
    for (size_t i = 0; i < sizeof(pushes) / sizeof(pushes[0]); i++) {
        llm_cache_index to = remote_of(&pushes[i], true);
        // A slot can't be chosen by a blocks key.
        if (pushes[i].batch != 0)
            continue;
        to.key = &key;
        check_refused(&pushes[i], &to, "LLM_DT_FLOAT (0) here", "LLM_DT_INT32 (3) at the peer");
    }
    forget_caches();
}

static void
addresses_lead_to_the_same_check(void **state)
{
    (void)state;
    open_caches(LLM_DT_BF16, LLM_DT_FLOAT8_E5M2);
    for (size_t i = 0; i < sizeof(pushes) / sizeof(pushes[0]); i++) {
        llm_cache_index to = remote_of(&pushes[i], true);
        size_t offset = pushes[i].batch * STRIDE;
        const uint64_t addrs[] = {ours.addresses[0] + offset, ours.addresses[1] + offset};
        to.addrs = addrs;
        to.num_addrs = TENSORS;
        check_refused(&pushes[i], &to, "LLM_DT_BF16 (27) here",
                      "LLM_DT_FLOAT8_E5M2 (35) at the peer");
    }
    forget_caches();
}

static void
equal_types_and_integers_of_one_width_agree(void **state)
{
    static const int32_t pairs[][2] = {
        {LLM_DT_BF16, LLM_DT_BF16},    {LLM_DT_INT8, LLM_DT_UINT8},
        {LLM_DT_UINT8, LLM_DT_INT8},   {LLM_DT_INT16, LLM_DT_UINT16},
        {LLM_DT_UINT32, LLM_DT_INT32}, {LLM_DT_INT64, LLM_DT_UINT64},
        {LLM_DT_UINT2, LLM_DT_INT2},   {LLM_DT_BOOL, LLM_DT_BOOL},
        {LLM_DT_INT4, LLM_DT_INT4},    {LLM_DT_FLOAT16, LLM_DT_FLOAT16},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        open_caches(pairs[i][0], pairs[i][1]);
        for (size_t k = 0; k < sizeof(pulls) / sizeof(pulls[0]); k++) {
            llm_cache_index from = remote_of(&pulls[k], false);
            fill_kv(&theirs, i * 10 + k);
            assert_ok(pulls[k].move(&from, NULL));
            assert_true(has_arrived(&pulls[k]));
        }
        forget_caches();
    }
}

static void
every_other_pair_of_types_differs(void **state)
{
    static const int32_t pairs[][2] = {
        {LLM_DT_FLOAT16, LLM_DT_INT16}, {LLM_DT_BF16, LLM_DT_UINT16},
        {LLM_DT_INT8, LLM_DT_BOOL},     {LLM_DT_FLOAT8_E4M3FN, LLM_DT_FLOAT8_E5M2},
        {LLM_DT_INT8, LLM_DT_INT16},    {LLM_DT_UINT8, LLM_DT_FLOAT8_E4M3FN},
        {LLM_DT_INT8, LLM_DT_QINT8},    {LLM_DT_FLOAT, LLM_DT_DOUBLE},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        open_caches(pairs[i][0], pairs[i][1]);
        llm_cache_index from = remote_of(&pulls[0], false);
        assert_status_says(pulls[0].move(&from, NULL), LLM_PARAM_INVALID, "data types differ");
        forget_caches();
    }
}

static void
what_is_wrong_with_sizes_and_places_is_said_first(void **state)
{
    (void)state;
    llm_kv_cache_ext_param layer_5 = layers(5, 5, 0, 0, 1);
    open_caches(LLM_DT_BF16, LLM_DT_FLOAT);
    llm_cache_index from = index_of(&prompt, &theirs, SLOTS);
    assert_status(pull_slot(&from, NULL), LLM_KV_CACHE_NOT_EXIST);
    from.batch_index = 0;
    assert_status_says(pull_slot(&from, &layer_5), LLM_PARAM_INVALID, "tensor 5");
    from.generation = 2;
    assert_status(pull_slot(&from, NULL), LLM_CACHE_STALE);
    from = index_of(&prompt, &theirs, 0);
    from.cache_id = 987654;
    assert_status(pull_slot(&from, NULL), LLM_KV_CACHE_NOT_EXIST);
    forget_caches();
}

static void
a_transfer_that_goes_on_is_checked_too(void **state)
{
    (void)state;
    llm_progress progress = {.struct_size = sizeof(progress)};
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    param.progress = &progress;
    open_caches(LLM_DT_BF16, LLM_DT_FLOAT);
    fill_kv(&theirs, 3);
    llm_cache_index from = remote_of(&pulls[0], false);
    assert_status_says(pull_slot(&from, &param), LLM_PARAM_INVALID, "data types differ");
    assert_int_equal(progress.bytes_arrived, 0);
    param.allow_other_type = 1;
    assert_ok(pull_slot(&from, &param));
    assert_int_equal(progress.bytes_arrived, TENSORS * STRIDE * suite.num_devices);
    assert_true(has_arrived(&pulls[0]));
    forget_caches();
}

static void
the_switch_is_0_or_1(void **state)
{
    (void)state;
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    open_caches(LLM_DT_BF16, LLM_DT_BF16);
    llm_cache_index from = remote_of(&pulls[0], false);
    param.allow_other_type = 2;
    assert_status_says(pull_slot(&from, &param), LLM_PARAM_INVALID, "allow_other_type is 2");
    param.allow_other_type = 1;
    param.reserved = 3;
    assert_status_says(pull_slot(&from, &param), LLM_PARAM_INVALID, "reserved is 3");
    forget_caches();
}

// ---- registered memory ----

static void
registered_memory_is_checked_too(void **state)
{
    static uint8_t memory[2][TENSORS][SLOTS * STRIDE];
    static const int64_t shape[] = {SLOTS, STRIDE / 2};
    (void)state;
    const uint64_t there[] = {(uintptr_t)memory[0][0], (uintptr_t)memory[0][1]};
    const uint64_t here[] = {(uintptr_t)memory[1][0], (uintptr_t)memory[1][1]};
    llm_cache_desc desc = {sizeof(desc), LLM_PLACEMENT_DEVICE, TENSORS, LLM_DT_FLOAT16, shape, 2};
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    int64_t at_prompt;
    int64_t at_decoder;
    assert_ok(llm_register_kv_cache(prompt.dd, &desc, there, TENSORS, &at_prompt));
    desc.data_type = LLM_DT_BF16;
    assert_ok(llm_register_kv_cache(decoder.dd, &desc, here, TENSORS, &at_decoder));
    llm_cache_index from = {.struct_size = sizeof(from), .cluster_id = 1, .cache_id = at_prompt};
    llm_cache_index to = {.struct_size = sizeof(to), .cluster_id = 2, .cache_id = at_decoder};
    llm_cache source = {.struct_size = sizeof(source), .cache_id = at_prompt};
    llm_cache target = {.struct_size = sizeof(target), .cache_id = at_decoder};
    memset(memory, 7, sizeof(memory[0]));
    assert_status_says(llm_pull_kv_cache(decoder.dd, &from, &target, 0, -1, NULL),
                       LLM_PARAM_INVALID, "LLM_DT_BF16 (27) here, LLM_DT_FLOAT16 (1) at the peer");
    assert_status_says(llm_push_kv_blocks(prompt.dd, &source, &to, blocks, 2, blocks, 2, NULL),
                       LLM_PARAM_INVALID, "LLM_DT_FLOAT16 (1) here, LLM_DT_BF16 (27) at the peer");
    assert_int_equal(memory[1][0][0], 0);
    assert_int_equal(memory[1][1][STRIDE], 0);
    param.allow_other_type = 1;
    assert_ok(llm_pull_kv_cache(decoder.dd, &from, &target, 0, -1, &param));
    assert_ok(llm_push_kv_blocks(prompt.dd, &source, &to, blocks, 2, blocks, 2, &param));
    assert_int_equal(memory[1][0][0], 7);
    assert_int_equal(memory[1][1][STRIDE], 7);
}

// ---- what is told ----

static void
check_told(const llm_cache_info *info, const llm_cache_desc *desc)
{
    assert_int_equal(info->data_type, desc->data_type);
    assert_int_equal(info->num_dims, desc->num_dims);
    for (size_t i = 0; i < LLM_DIMS_MAX; i++)
        assert_true(info->dims[i] == (i < desc->num_dims ? desc->shape[i] : 0));
}

static void
check_shape(int32_t type, const int64_t *shape, size_t num_dims)
{
    uintptr_t addrs[TENSORS * DEVICES_MAX];
    llm_cache_desc desc = {sizeof(desc), LLM_PLACEMENT_DEVICE, TENSORS, type, shape, num_dims};
    llm_cache cache = {sizeof(cache), 0, NULL, addrs, TENSORS * DEVICES_MAX};
    llm_cache_info here = {.struct_size = sizeof(here)};
    llm_cache_info there = {.struct_size = sizeof(there)};
    assert_ok(llm_allocate_cache(prompt.dd, &desc, &cache));
    assert_ok(llm_get_cache_info(prompt.dd, cache.cache_id, &here));
    check_told(&here, &desc);
    llm_cache_index index = {
        .struct_size = sizeof(index), .cluster_id = 1, .cache_id = cache.cache_id};
    assert_ok(llm_query_cache(decoder.dd, &index, &there));
    check_told(&there, &desc);
    assert_ok(llm_deallocate_cache(prompt.dd, cache.cache_id));
}

static void
data_type_and_shape_are_told_here_and_to_peers(void **state)
{
    int64_t ones[LLM_DIMS_MAX];
    (void)state;
    for (size_t i = 0; i < LLM_DIMS_MAX; i++)
        ones[i] = i % 7 == 0 ? 2 : 1;
    check_shape(LLM_DT_BF16, (const int64_t[]){16, 128, 8, 64}, 4);
    check_shape(LLM_DT_FLOAT8_E8M0, (const int64_t[]){3}, 1);
    check_shape(LLM_DT_INT4, (const int64_t[]){3, 5}, 2);
    check_shape(LLM_DT_STRING, ones, LLM_DIMS_MAX);
    check_shape(LLM_DT_FLOAT, ones, LLM_DIMS_MAX);
}

#define ONE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
#define ALL(test) cmocka_unit_test_setup_teardown(test, set_up_devices, tear_down)

static const struct CMUnitTest tests[] = {
    ALL(a_pull_of_another_type_is_refused_unless_it_is_allowed),
    ONE(a_push_of_another_type_is_refused_unless_it_is_allowed),
    ONE(keys_lead_to_the_same_check),
    ONE(addresses_lead_to_the_same_check),
    ALL(equal_types_and_integers_of_one_width_agree),
    ALL(every_other_pair_of_types_differs),
    ALL(what_is_wrong_with_sizes_and_places_is_said_first),
    ALL(a_transfer_that_goes_on_is_checked_too),
    ONE(the_switch_is_0_or_1),
    ONE(registered_memory_is_checked_too),
    ALL(data_type_and_shape_are_told_here_and_to_peers),
};

int
main(int argc, char **argv)
{
    return suite_main(argc, argv, "types", tests, sizeof(tests) / sizeof(tests[0]));
}

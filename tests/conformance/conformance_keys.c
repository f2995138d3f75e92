// Keys: names that the application gives to slots and caches (section 4 of the header).  Every pull
// is made twice, by the call that waits and by the one that starts it.
#include "suite.h"

#include <pthread.h>

#include "engine/engine.h"

enum { TENSORS = 4, SLOTS = 4, STRIDE = 96, GARBAGE = 987654, NOBODY = 4711 };

static struct party prompt;
static struct party decoder;
static struct party second;
static struct kv from;
static struct kv to;
static struct kv to_second;
static bool started;

static int
set_up_with(size_t num_devices)
{
    struct party_options options = {.num_devices = num_devices};
    open_party_with(&prompt, 1, LLM_ROLE_PROMPT, &options);
    open_party_with(&decoder, 2, LLM_ROLE_DECODER, &options);
    open_party_with(&second, 3, LLM_ROLE_DECODER, &options);
    open_bytes(&from, &prompt, TENSORS, SLOTS, STRIDE);
    open_bytes(&to, &decoder, TENSORS, SLOTS, STRIDE);
    open_bytes(&to_second, &second, TENSORS, SLOTS, STRIDE);
    link_parties(&decoder, &prompt);
    link_parties(&second, &prompt);
    return 0;
}

static int
set_up(void **state)
{
    (void)state;
    started = false;
    return set_up_with(suite.num_devices);
}

static int
set_up_started(void **state)
{
    (void)state;
    started = true;
    return set_up_with(suite.num_devices);
}

// Pushes and registered memory go with one device only.
static int
set_up_one(void **state)
{
    (void)state;
    started = false;
    return set_up_with(1);
}

static int
set_up_one_started(void **state)
{
    (void)state;
    started = true;
    return set_up_with(1);
}

static int
tear_down(void **state)
{
    (void)state;
    close_party(&decoder);
    close_party(&second);
    close_party(&prompt);
    forget_kv(&from);
    forget_kv(&to);
    forget_kv(&to_second);
    return 0;
}

// ---- keys ----

static llm_cache_key
key_of(uint32_t kind, uint64_t id)
{
    return (llm_cache_key){.struct_size = sizeof(llm_cache_key), .kind = kind, .id = id};
}

static llm_cache_key
request_key(uint64_t id)
{
    return key_of(LLM_KEY_REQUEST, id);
}

static llm_status
bind_keys(const struct kv *kv, const llm_cache_key *keys, size_t num_keys)
{
    return llm_bind_cache_keys(prompt.dd, kv->cache.cache_id, keys, num_keys);
}

static void
must_bind(const struct kv *kv, llm_cache_key key)
{
    assert_ok(bind_keys(kv, &key, 1));
}

static void
remove_key(llm_cache_key key)
{
    assert_ok(llm_remove_cache_key(prompt.dd, &key));
}

// What an index with a key says besides must not be looked at.
static llm_cache_index
index_by(const llm_cache_key *key)
{
    return (llm_cache_index){
        .struct_size = sizeof(llm_cache_index),
        .cluster_id = prompt.id,
        .cache_id = GARBAGE,
        .batch_index = GARBAGE,
        .key = key,
    };
}

static bool
leads_somewhere(const struct party *party, llm_cache_key key)
{
    llm_cache_index index = index_by(&key);
    llm_cache_info info = {.struct_size = sizeof(info)};
    llm_status status = llm_query_cache(party->dd, &index, &info);
    if (status != LLM_SUCCESS)
        assert_status(status, LLM_KV_CACHE_NOT_EXIST);
    return status == LLM_SUCCESS;
}

// ---- pulls ----

static llm_status
end_started(const struct party *party, llm_status status, const uint64_t *id)
{
    if (status != LLM_SUCCESS)
        return status;
    status = llm_transfer_wait(party->dd, *id, -1);
    assert_ok(llm_transfer_release(party->dd, *id));
    return status;
}

static llm_status
pull(const struct party *party, const llm_cache_index *src, const struct kv *dst, uint32_t slot,
     int64_t size, const llm_kv_cache_ext_param *param)
{
    uint64_t id = 0;
    if (!started)
        return llm_pull_kv_cache(party->dd, src, &dst->cache, slot, size, param);
    return end_started(
        party, llm_start_pull_kv_cache(party->dd, src, &dst->cache, slot, size, param, &id), &id);
}

static llm_status
pull_blocks(const struct party *party, const llm_cache_index *src, const struct kv *dst,
            const uint64_t *src_blocks, const uint64_t *dst_blocks, size_t count)
{
    uint64_t id = 0;
    if (!started)
        return llm_pull_kv_blocks(party->dd, src, &dst->cache, src_blocks, count, dst_blocks, count,
                                  NULL);
    return end_started(party,
                       llm_start_pull_kv_blocks(party->dd, src, &dst->cache, src_blocks, count,
                                                dst_blocks, count, NULL, &id),
                       &id);
}

static llm_status
pull_key(llm_cache_key key, uint32_t slot)
{
    llm_cache_index index = index_by(&key);
    return pull(&decoder, &index, &to, slot, -1, NULL);
}

static void
expect_pulled(uint32_t from_slot, uint32_t to_slot)
{
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&to, t, to_slot, &from, t, from_slot, STRIDE);
    assert_kv(&to);
    assert_kv(&from);
}

static void
test_a_request_key_is_taken_by_the_pull_that_uses_it(void **state)
{
    llm_cache_key keys[] = {request_key(100), request_key(101), request_key(102)};
    (void)state;
    assert_ok(bind_keys(&from, keys, 3));
    for (uint32_t slot = 0; slot < 3; slot++) {
        assert_ok(pull_key(keys[slot], slot + 1));
        expect_pulled(slot, slot + 1);
        assert_status_says(pull_key(keys[slot], 0), LLM_KV_CACHE_NOT_EXIST, "request key");
        assert_kv(&to);
    }
}

static void
test_padding_names_nothing_and_of_equal_keys_the_last_counts(void **state)
{
    llm_cache_key keys[] = {request_key(1), key_of(LLM_KEY_NONE, 5), request_key(1),
                            key_of(LLM_KEY_NONE, 0)};
    (void)state;
    assert_ok(bind_keys(&from, keys, 4));
    assert_status(pull_key(keys[1], 0), LLM_PARAM_INVALID);
    assert_ok(pull_key(keys[0], 1));
    expect_pulled(2, 1);
    assert_status(pull_key(keys[0], 1), LLM_KV_CACHE_NOT_EXIST);
    assert_ok(bind_keys(&from, &keys[1], 1));
    assert_ok(bind_keys(&from, keys, 1));
    assert_ok(pull_key(keys[0], 2));
    expect_pulled(0, 2);
}

static void
test_kinds_ids_and_models_are_different_keys(void **state)
{
    llm_cache_key keys[] = {request_key(1), key_of(LLM_KEY_PREFIX, 1), request_key(1),
                            request_key(2)};
    (void)state;
    keys[2].model_id = 9;
    assert_ok(bind_keys(&from, keys, 4));
    for (uint32_t slot = 0; slot < 4; slot++) {
        assert_ok(pull_key(keys[slot], slot));
        expect_pulled(slot, slot);
    }
    llm_cache_key other = request_key(2);
    other.model_id = 9;
    assert_status(pull_key(other, 0), LLM_KV_CACHE_NOT_EXIST);
}

static void
test_a_bound_key_is_refused_wherever_it_is_bound(void **state)
{
    llm_cache_key keys[] = {request_key(1), request_key(2)};
    struct kv more;
    (void)state;
    open_bytes(&more, &prompt, TENSORS, SLOTS, STRIDE);
    assert_ok(bind_keys(&from, &keys[1], 1));
    assert_status_says(bind_keys(&more, keys, 2), LLM_CACHE_KEY_ALREADY_EXIST, "keys[1]");
    assert_status_says(bind_keys(&from, keys, 2), LLM_CACHE_KEY_ALREADY_EXIST, "keys[1]");
    // All or none.
    assert_false(leads_somewhere(&decoder, keys[0]));
    assert_ok(pull_key(keys[1], 0));
    expect_pulled(0, 0);
    // Taken or removed, it can be bound again.
    assert_ok(bind_keys(&more, keys, 2));
    remove_key(keys[0]);
    must_bind(&from, keys[0]);
    assert_ok(pull_key(keys[0], 1));
    expect_pulled(0, 1);
    forget_kv(&more);
}

static void
test_prefix_keys_are_shared_until_they_are_removed(void **state)
{
    llm_cache_key keys[] = {key_of(LLM_KEY_NONE, 0), key_of(LLM_KEY_PREFIX, 7)};
    llm_cache_index index = index_by(&keys[1]);
    (void)state;
    assert_ok(bind_keys(&from, keys, 2));
    for (uint32_t round = 0; round < 3; round++) {
        assert_ok(pull_key(keys[1], round));
        expect_pulled(1, round);
        assert_ok(pull(&second, &index, &to_second, round, -1, NULL));
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_slot(&to_second, t, round, &from, t, 1, STRIDE);
        assert_kv(&to_second);
    }
    remove_key(keys[1]);
    assert_status(pull_key(keys[1], 0), LLM_KV_CACHE_NOT_EXIST);
    remove_key(keys[1]);
}

static void
test_a_pull_of_some_layers_takes_these_alone(void **state)
{
    llm_cache_key key = request_key(1);
    llm_cache_index index = index_by(&key);
    llm_kv_cache_ext_param first = layers(0, 0, 1, 1, 2);
    llm_kv_cache_ext_param last = layers(1, 1, 0, 0, 2);
    (void)state;
    must_bind(&from, key);
    for (int again = 0; again < 2; again++) {
        assert_ok(pull(&decoder, &index, &to, 0, -1, &first));
        expect_slot(&to, 2, 0, &from, 0, 0, STRIDE);
        expect_slot(&to, 3, 0, &from, 1, 0, STRIDE);
        assert_kv(&to);
        assert_true(leads_somewhere(&second, key));
    }
    // The other layer goes to the other decoder, and the key with it.
    assert_ok(pull(&second, &index, &to_second, 1, -1, &last));
    expect_slot(&to_second, 0, 1, &from, 2, 0, STRIDE);
    expect_slot(&to_second, 1, 1, &from, 3, 0, STRIDE);
    assert_kv(&to_second);
    assert_status(pull(&decoder, &index, &to, 0, -1, &last), LLM_KV_CACHE_NOT_EXIST);
    assert_false(leads_somewhere(&decoder, key));
    assert_kv(&to);
}

static void
test_keep_key_leaves_it_where_it_is(void **state)
{
    llm_cache_key keys[] = {request_key(1), request_key(2)};
    llm_cache_index by_key = index_by(&keys[0]);
    llm_cache_index by_id = index_of(&prompt, &from, 1);
    llm_kv_cache_ext_param keep = layers(-1, -1, -1, -1, 2);
    (void)state;
    keep.keep_key = 1;
    assert_ok(bind_keys(&from, keys, 2));
    for (int i = 0; i < 2; i++) {
        assert_ok(pull(&decoder, &by_key, &to, 0, -1, &keep));
        assert_ok(pull(&decoder, &by_id, &to, 1, -1, &keep));
    }
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&to, t, 0, &from, t, 0, STRIDE);
    expect_pulled(1, 1);
    assert_true(leads_somewhere(&decoder, keys[0]));
    assert_true(leads_somewhere(&decoder, keys[1]));
    keep.keep_key = 2;
    assert_status_says(pull(&decoder, &by_key, &to, 0, -1, &keep), LLM_PARAM_INVALID, "keep_key");
}

static void
test_a_pull_by_id_takes_the_slots_key(void **state)
{
    llm_cache_key keys[] = {request_key(1), request_key(2), key_of(LLM_KEY_PREFIX, 3)};
    llm_cache_key another = request_key(4);
    (void)state;
    assert_ok(bind_keys(&from, keys, 3));
    must_bind(&from, another);
    llm_cache_index index = index_of(&prompt, &from, 3);
    assert_ok(pull(&decoder, &index, &to, 3, -1, NULL));
    index.batch_index = 2;
    assert_ok(pull(&decoder, &index, &to, 2, -1, NULL));
    for (size_t i = 0; i < 3; i++)
        assert_true(leads_somewhere(&decoder, keys[i]));
    // Blocks have no key of this sort.
    index.batch_index = 0;
    assert_ok(pull_blocks(&decoder, &index, &to, (uint64_t[]){0, 1}, (uint64_t[]){1, 0}, 2));
    assert_true(leads_somewhere(&decoder, keys[0]));
    assert_ok(pull(&decoder, &index, &to, 0, -1, NULL));
    assert_false(leads_somewhere(&decoder, keys[0]));
    assert_false(leads_somewhere(&decoder, another));
    assert_true(leads_somewhere(&decoder, keys[1]));
    assert_true(leads_somewhere(&decoder, keys[2]));
    // The slot can be pulled by its id as often as one likes.
    assert_ok(pull(&decoder, &index, &to, 0, -1, NULL));
}

static void
test_a_pull_that_fails_takes_nothing(void **state)
{
    llm_cache_key key = request_key(1);
    llm_cache_index index = index_by(&key);
    llm_kv_cache_ext_param param = layers(0, 0, 0, 0, 3);
    struct kv wide;
    (void)state;
    open_bytes(&wide, &decoder, TENSORS, SLOTS, STRIDE * 2);
    must_bind(&from, key);
    assert_status(pull(&decoder, &index, &wide, 0, -1, NULL), LLM_PARAM_INVALID);
    assert_status(pull(&decoder, &index, &wide, 0, STRIDE + 1, NULL), LLM_PARAM_INVALID);
    assert_status(pull(&decoder, &index, &to, 0, -1, &param), LLM_PARAM_INVALID);
    param = layers(2, 2, 0, 0, 2);
    assert_status(pull(&decoder, &index, &to, 0, -1, &param), LLM_PARAM_INVALID);
    llm_cache_index stale = index;
    stale.generation = 2;
    assert_status(pull(&decoder, &stale, &to, 0, -1, NULL), LLM_CACHE_STALE);
    assert_kv(&to);
    assert_kv(&wide);
    assert_true(leads_somewhere(&decoder, key));
    // A part of the slot is a pull as well.
    assert_ok(pull(&decoder, &index, &wide, 1, 10, NULL));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&wide, t, 1, &from, t, 0, 10);
    assert_kv(&wide);
    assert_false(leads_somewhere(&decoder, key));
    forget_kv(&wide);
}

// ---- memory ----

static uint64_t
bytes_used(void)
{
    pthread_mutex_lock(&prompt.dd->registry.lock);
    uint64_t bytes = prompt.dd->pools[0].bytes_used;
    for (size_t i = 1; i < prompt.num_devices; i++)
        assert_int_equal(prompt.dd->pools[i].bytes_used, bytes);
    pthread_mutex_unlock(&prompt.dd->registry.lock);
    return bytes;
}

static void
test_keys_keep_the_memory_until_the_last_one_is_gone(void **state)
{
    llm_cache_key keys[] = {request_key(1), key_of(LLM_KEY_PREFIX, 2), request_key(3)};
    struct kv kept;
    (void)state;
    uint64_t before = bytes_used();
    open_bytes(&kept, &prompt, TENSORS, SLOTS, STRIDE);
    uint64_t with = bytes_used();
    assert_ok(bind_keys(&kept, keys, 3));
    assert_ok(llm_deallocate_cache(prompt.dd, kept.cache.cache_id));
    assert_status(llm_deallocate_cache(prompt.dd, kept.cache.cache_id), LLM_KV_CACHE_NOT_EXIST);
    assert_status(bind_keys(&kept, keys, 1), LLM_KV_CACHE_NOT_EXIST);
    // Nobody finds it by its id, here and there.
    llm_cache_index by_id = index_of(&prompt, &kept, 0);
    llm_cache_info info = {.struct_size = sizeof(info)};
    assert_status(pull(&decoder, &by_id, &to, 0, -1, NULL), LLM_KV_CACHE_NOT_EXIST);
    assert_status(llm_query_cache(decoder.dd, &by_id, &info), LLM_KV_CACHE_NOT_EXIST);
    assert_status(llm_get_cache_info(prompt.dd, kept.cache.cache_id, &info),
                  LLM_KV_CACHE_NOT_EXIST);
    for (uint32_t slot = 0; slot < 3; slot++) {
        assert_int_equal(bytes_used(), with);
        assert_ok(pull_key(keys[slot], slot));
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_slot(&to, t, slot, &kept, t, slot, STRIDE);
        assert_kv(&to);
    }
    // The prefix keeps it.
    assert_int_equal(bytes_used(), with);
    remove_key(keys[1]);
    assert_int_equal(bytes_used(), before);
    forget_kv(&kept);
}

static void
test_a_pull_of_the_last_key_frees_the_memory(void **state)
{
    llm_cache_key key = request_key(1);
    (void)state;
    uint64_t before = bytes_used();
    for (uint32_t round = 0; round < SLOTS; round++) {
        struct kv kept;
        open_bytes(&kept, &prompt, TENSORS, SLOTS, STRIDE);
        must_bind(&kept, key);
        assert_ok(llm_deallocate_cache(prompt.dd, kept.cache.cache_id));
        assert_true(bytes_used() > before);
        assert_ok(pull_key(key, round));
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_slot(&to, t, round, &kept, t, 0, STRIDE);
        assert_kv(&to);
        // When the pull has returned, the memory is there already.
        assert_int_equal(bytes_used(), before);
        forget_kv(&kept);
    }
}

// ---- who is first ----

enum { PULLERS = 6, CONTEST_STRIDE = 20000 };

struct puller {
    const struct party *party;
    struct kv kv;
    bool by_id;
    llm_cache_key key;
    const struct kv *source;
    pthread_barrier_t *begin;
    llm_status status;
    pthread_t thread;
};

static void *
run_puller(void *arg)
{
    struct puller *puller = arg;
    llm_cache_index index = index_by(&puller->key);
    if (puller->by_id)
        index = index_of(&prompt, puller->source, 0);
    pthread_barrier_wait(puller->begin);
    puller->status = pull(puller->party, &index, &puller->kv, 0, -1, NULL);
    return NULL;
}

// `num_by_id` of them name the slot by its id, and get it in any case.
static void
contest(unsigned num_by_id)
{
    struct puller pullers[PULLERS];
    pthread_barrier_t begin;
    pthread_barrier_init(&begin, NULL, PULLERS);
    for (size_t i = 0; i < PULLERS; i++) {
        pullers[i] = (struct puller){.party = i % 2 == 0 ? &decoder : &second, .begin = &begin};
        open_bytes(&pullers[i].kv, pullers[i].party, TENSORS, 1, CONTEST_STRIDE);
    }
    for (unsigned round = 0; round < rounds(40); round++) {
        struct kv source;
        unsigned num_right = 0;
        llm_cache_key key = request_key(1000 + round);
        open_bytes(&source, &prompt, TENSORS, 1, CONTEST_STRIDE);
        must_bind(&source, key);
        if (num_by_id == 0)
            assert_ok(llm_deallocate_cache(prompt.dd, source.cache.cache_id));
        for (size_t i = 0; i < PULLERS; i++) {
            pullers[i].key = key;
            pullers[i].by_id = i < num_by_id;
            pullers[i].source = &source;
            assert_int_equal(pthread_create(&pullers[i].thread, NULL, run_puller, &pullers[i]), 0);
        }
        for (size_t i = 0; i < PULLERS; i++) {
            struct puller *puller = &pullers[i];
            pthread_join(puller->thread, NULL);
            if (puller->status == LLM_SUCCESS) {
                for (uint32_t t = 0; t < TENSORS; t++)
                    expect_slot(&puller->kv, t, 0, &source, t, 0, CONTEST_STRIDE);
                assert_kv(&puller->kv);
                num_right += !puller->by_id;
            } else {
                // What a pull that failed has left is anything.
                assert_false(puller->by_id);
                assert_status(puller->status, LLM_KV_CACHE_NOT_EXIST);
            }
        }
        if (num_by_id == 0)
            assert_int_equal(num_right, 1);
        else
            assert_true(num_right <= 1);
        assert_false(leads_somewhere(&decoder, key));
        if (num_by_id > 0)
            assert_ok(llm_deallocate_cache(prompt.dd, source.cache.cache_id));
        forget_kv(&source);
    }
    for (size_t i = 0; i < PULLERS; i++)
        forget_kv(&pullers[i].kv);
    pthread_barrier_destroy(&begin);
}

static void
test_exactly_one_of_many_gets_a_request_key(void **state)
{
    (void)state;
    contest(0);
}

static void
test_at_most_one_gets_the_key_of_a_slot_that_is_pulled_by_id(void **state)
{
    (void)state;
    contest(2);
}

// ---- blocks ----

static const llm_cache_key blocks_key = {
    .struct_size = sizeof(llm_cache_key), .kind = LLM_KEY_BLOCKS, .model_id = 4};

static void
test_a_blocks_key_names_all_blocks_and_goes_with_the_cache(void **state)
{
    llm_cache_index index = index_by(&blocks_key);
    uint64_t src[] = {3, 0, 1};
    uint64_t dst[] = {1, 2, 0};
    struct kv more;
    (void)state;
    open_bytes(&more, &prompt, TENSORS, SLOTS, STRIDE);
    must_bind(&more, blocks_key);
    assert_status(bind_keys(&from, &blocks_key, 1), LLM_CACHE_KEY_ALREADY_EXIST);
    for (int i = 0; i < 3; i++) {
        assert_ok(pull_blocks(&decoder, &index, &to, src, dst, 3));
        for (uint32_t t = 0; t < TENSORS; t++) {
            for (size_t b = 0; b < 3; b++)
                expect_slot(&to, t, dst[b], &more, t, src[b], STRIDE);
        }
        assert_kv(&to);
        fill_kv(&more, (uint64_t)i);
    }
    // Slots take other keys, and blocks no others.
    assert_status_says(pull(&decoder, &index, &to, 0, -1, NULL), LLM_PARAM_INVALID, "key.kind");
    for (uint32_t kind = LLM_KEY_NONE; kind < LLM_KEY_BLOCKS; kind++) {
        llm_cache_key other = key_of(kind, 1);
        llm_cache_index by_other = index_by(&other);
        assert_status_says(pull_blocks(&decoder, &by_other, &to, src, dst, 3), LLM_PARAM_INVALID,
                           "key.kind");
    }
    assert_ok(llm_deallocate_cache(prompt.dd, more.cache.cache_id));
    assert_status(pull_blocks(&decoder, &index, &to, src, dst, 3), LLM_KV_CACHE_NOT_EXIST);
    must_bind(&from, blocks_key);
    assert_ok(pull_blocks(&decoder, &index, &to, src, dst, 3));
    forget_kv(&more);
}

static llm_status
push(const llm_cache_index *dst, const uint64_t *src_blocks, const uint64_t *dst_blocks,
     size_t count)
{
    uint64_t id = 0;
    if (!started)
        return llm_push_kv_blocks(prompt.dd, &from.cache, dst, src_blocks, count, dst_blocks, count,
                                  NULL);
    return end_started(&prompt,
                       llm_start_push_kv_blocks(prompt.dd, &from.cache, dst, src_blocks, count,
                                                dst_blocks, count, NULL, &id),
                       &id);
}

static void
test_a_push_finds_blocks_by_their_key(void **state)
{
    llm_cache_index index = index_by(&blocks_key);
    uint64_t src[] = {2, 3};
    uint64_t dst[] = {0, 3};
    (void)state;
    index.cluster_id = decoder.id;
    assert_status(push(&index, src, dst, 2), LLM_KV_CACHE_NOT_EXIST);
    assert_ok(llm_bind_cache_keys(decoder.dd, to.cache.cache_id, &blocks_key, 1));
    assert_ok(push(&index, src, dst, 2));
    for (uint32_t t = 0; t < TENSORS; t++) {
        for (size_t b = 0; b < 2; b++)
            expect_slot(&to, t, dst[b], &from, t, src[b], STRIDE);
    }
    assert_kv(&to);
    // A whole slot goes to the first block.
    assert_ok(llm_push_kv_cache(prompt.dd, &from.cache, &index, 1, -1, NULL));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&to, t, 0, &from, t, 1, STRIDE);
    assert_kv(&to);
    for (uint32_t kind = LLM_KEY_NONE; kind < LLM_KEY_BLOCKS; kind++) {
        llm_cache_key other = key_of(kind, 1);
        llm_cache_index by_other = index;
        by_other.key = &other;
        assert_status_says(push(&by_other, src, dst, 2), LLM_PARAM_INVALID, "key.kind");
    }
    assert_ok(llm_remove_cache_key(decoder.dd, &blocks_key));
    assert_status(push(&index, src, dst, 2), LLM_KV_CACHE_NOT_EXIST);
    assert_kv(&to);
}

// ---- registered memory ----

static void
test_registered_memory_can_have_keys(void **state)
{
    llm_cache_key keys[] = {request_key(1), key_of(LLM_KEY_PREFIX, 2), request_key(3)};
    struct kv own;
    (void)state;
    make_bytes(&own, LLM_PLACEMENT_DEVICE, 1, TENSORS, SLOTS, STRIDE);
    uint64_t addresses[TENSORS];
    for (size_t i = 0; i < TENSORS; i++)
        addresses[i] = own.addresses[i];
    assert_ok(llm_register_kv_cache(prompt.dd, &own.desc, addresses, TENSORS, &own.cache.cache_id));
    assert_ok(bind_keys(&own, keys, 3));
    must_bind(&own, blocks_key);
    for (uint32_t slot = 0; slot < 2; slot++) {
        assert_ok(pull_key(keys[slot], slot));
        for (uint32_t t = 0; t < TENSORS; t++)
            expect_slot(&to, t, slot, &own, t, slot, STRIDE);
        assert_kv(&to);
    }
    llm_cache_index index = index_by(&blocks_key);
    assert_ok(pull_blocks(&decoder, &index, &to, (uint64_t[]){3}, (uint64_t[]){3}, 1));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&to, t, 3, &own, t, 3, STRIDE);
    assert_kv(&to);
    assert_status(pull_key(keys[0], 0), LLM_KV_CACHE_NOT_EXIST);
    // Taking a key ends nothing; unregistering ends all of them.
    assert_ok(llm_unregister_kv_cache(prompt.dd, own.cache.cache_id));
    for (size_t i = 0; i < 3; i++)
        assert_false(leads_somewhere(&decoder, keys[i]));
    assert_false(leads_somewhere(&decoder, blocks_key));
    forget_kv(&own);
}

// ---- looking, removing, refusing ----

static void
test_a_query_tells_what_a_key_names(void **state)
{
    llm_cache_key keys[] = {key_of(LLM_KEY_NONE, 0), request_key(1), key_of(LLM_KEY_PREFIX, 1)};
    llm_cache_info here = {.struct_size = sizeof(here)};
    (void)state;
    assert_ok(bind_keys(&from, keys, 3));
    must_bind(&from, blocks_key);
    assert_ok(llm_get_cache_info(prompt.dd, from.cache.cache_id, &here));
    assert_int_equal(here.num_slots, SLOTS);
    assert_int_equal(here.stride, STRIDE);
    assert_int_equal(here.tensor_bytes, STRIDE * SLOTS);
    assert_int_equal(here.num_tensors, TENSORS);
    assert_int_equal(here.placement, LLM_PLACEMENT_DEVICE);
    assert_int_equal(here.registered, 0);
    assert_true(here.generation != 0);
    for (uint32_t i = 1; i <= 3; i++) {
        llm_cache_index index = index_by(i < 3 ? &keys[i] : &blocks_key);
        llm_cache_info info = {.struct_size = sizeof(info)};
        // Looking takes nothing.
        for (int again = 0; again < 2; again++)
            assert_ok(llm_query_cache(decoder.dd, &index, &info));
        here.batch_index = i % 3;
        assert_memory_equal(&info, &here, sizeof(info));
    }
    llm_cache_index index = index_of(&prompt, &from, 3);
    llm_cache_info info = {.struct_size = sizeof(info)};
    here.batch_index = 3;
    assert_ok(llm_query_cache(decoder.dd, &index, &info));
    assert_memory_equal(&info, &here, sizeof(info));
    index.generation = here.generation;
    assert_ok(llm_query_cache(decoder.dd, &index, &info));
    index.generation += 2;
    assert_status(llm_query_cache(decoder.dd, &index, &info), LLM_CACHE_STALE);
    index.cache_id = GARBAGE;
    assert_status(llm_query_cache(decoder.dd, &index, &info), LLM_CACHE_STALE);
    index.generation = 0;
    assert_status(llm_query_cache(decoder.dd, &index, &info), LLM_KV_CACHE_NOT_EXIST);
    index.cluster_id = NOBODY;
    assert_status(llm_query_cache(decoder.dd, &index, &info), LLM_NOT_YET_LINK);
    assert_status(llm_query_cache(decoder.dd, &index, NULL), LLM_PARAM_INVALID);
    assert_status(llm_query_cache(decoder.dd, NULL, &info), LLM_PARAM_INVALID);
    assert_memory_equal(&info, &here, sizeof(info));
    // Either side may ask.
    index = index_of(&decoder, &to, 0);
    assert_ok(llm_query_cache(prompt.dd, &index, &info));
    assert_int_equal(info.cache_id, to.cache.cache_id);
}

// A lease isn't the cache's generation, on no transport.
static void
test_a_query_under_a_lease_is_stale(void **state)
{
    llm_lease_desc desc = {
        .struct_size = sizeof(desc), .cache_id = from.cache.cache_id, .duration_ms = 3600000};
    llm_cache_index index = index_of(&prompt, &from, 0);
    llm_cache_info info = {.struct_size = sizeof(info)};
    (void)state;
    assert_ok(llm_lease_open(prompt.dd, &desc, &index.generation));
    assert_status(llm_query_cache(decoder.dd, &index, &info), LLM_CACHE_STALE);
    assert_ok(llm_lease_close(prompt.dd, index.generation));
}

static void
test_wrong_keys_are_refused_in_order(void **state)
{
    llm_datadist *blank;
    llm_cache_key key = request_key(1);
    llm_cache_key many[SLOTS + 1];
    (void)state;
    for (uint64_t i = 0; i <= SLOTS; i++)
        many[i] = request_key(i);
    assert_ok(llm_create(9, LLM_ROLE_PROMPT, &blank));
    int64_t id = from.cache.cache_id;
    assert_status(llm_bind_cache_keys(blank, 0, NULL, 0), LLM_FAILED);
    assert_status(llm_bind_cache_keys(NULL, id, &key, 1), LLM_FAILED);
    assert_status(llm_remove_cache_key(blank, NULL), LLM_FAILED);
    llm_destroy(blank);
    assert_status(llm_bind_cache_keys(prompt.dd, GARBAGE, NULL, 1), LLM_PARAM_INVALID);
    assert_status(llm_bind_cache_keys(prompt.dd, GARBAGE, &key, 0), LLM_PARAM_INVALID);
    assert_status(llm_remove_cache_key(prompt.dd, NULL), LLM_PARAM_INVALID);
    llm_cache_key bad = key_of(LLM_KEY_BLOCKS + 1, 1);
    assert_status_says(llm_bind_cache_keys(prompt.dd, GARBAGE, &bad, 1), LLM_PARAM_INVALID,
                       "key.kind is 4");
    assert_status(llm_remove_cache_key(prompt.dd, &bad), LLM_PARAM_INVALID);
    bad = key_of(LLM_KEY_BLOCKS, 1);
    assert_status_says(llm_bind_cache_keys(prompt.dd, GARBAGE, &bad, 1), LLM_PARAM_INVALID,
                       "blocks key is 1");
    bad = key;
    bad.struct_size = 8;
    assert_status_says(llm_bind_cache_keys(prompt.dd, GARBAGE, &bad, 1), LLM_PARAM_INVALID,
                       "struct_size");
    many[1] = blocks_key;
    assert_status_says(llm_bind_cache_keys(prompt.dd, GARBAGE, many, 2), LLM_PARAM_INVALID,
                       "keys[1] is a blocks key");
    many[1] = request_key(1);
    assert_status(llm_bind_cache_keys(prompt.dd, GARBAGE, many, SLOTS + 1), LLM_KV_CACHE_NOT_EXIST);
    assert_ok(llm_bind_cache_keys(prompt.dd, id, &key, 1));
    assert_status_says(llm_bind_cache_keys(prompt.dd, id, many, SLOTS + 1), LLM_PARAM_INVALID,
                       "5 keys");
    assert_status(llm_bind_cache_keys(prompt.dd, id, many, SLOTS), LLM_CACHE_KEY_ALREADY_EXIST);
}

static void
test_pulls_by_key_check_in_order(void **state)
{
    llm_cache_key key = key_of(LLM_KEY_BLOCKS, 0);
    llm_cache_index index = index_by(&key);
    llm_cache_index unlinked;
    (void)state;
    // The size and the ranges, then the key, then the local cache, ...
    assert_status_says(pull(&decoder, &index, &to, 0, 0, NULL), LLM_PARAM_INVALID, "size");
    llm_kv_cache_ext_param bad = layers(1, 0, 1, 0, 2);
    assert_status_says(pull(&decoder, &index, &to, 0, -1, &bad), LLM_PARAM_INVALID, "layer_range");
    struct kv unknown = to;
    unknown.cache.cache_id = GARBAGE;
    assert_status_says(pull(&decoder, &index, &unknown, 0, -1, NULL), LLM_PARAM_INVALID,
                       "key.kind");
    key = request_key(1);
    assert_status_says(pull(&decoder, &index, &unknown, 0, -1, NULL), LLM_KV_CACHE_NOT_EXIST,
                       "local cache");
    // ... the link, and at last what the peer has.
    unlinked = index;
    unlinked.cluster_id = NOBODY;
    assert_status_says(pull(&decoder, &unlinked, &to, SLOTS, -1, NULL), LLM_PARAM_INVALID,
                       "batch_index");
    assert_status(pull(&decoder, &unlinked, &to, 0, -1, NULL), LLM_NOT_YET_LINK);
    assert_status_says(pull(&decoder, &index, &to, 0, -1, NULL), LLM_KV_CACHE_NOT_EXIST,
                       "request key 1 of model 0");
    index.generation = 77;
    assert_status(pull(&decoder, &index, &to, 0, -1, NULL), LLM_CACHE_STALE);
    llm_kv_cache_ext_param release = layers(-1, -1, -1, -1, 2);
    release.release_lease = 1;
    index.generation = 0;
    assert_status_says(pull(&decoder, &index, &to, 0, -1, &release), LLM_PARAM_INVALID,
                       "release_lease");
    // Addresses are for pushes.
    uint64_t addresses[TENSORS] = {0};
    index.addrs = addresses;
    index.num_addrs = TENSORS;
    assert_status_says(pull(&decoder, &index, &to, 0, -1, NULL), LLM_PARAM_INVALID, "addrs");
    assert_kv(&to);
}

#define BOTH(test)                                                                                 \
    {#test, test, set_up, tear_down, NULL},                                                        \
    {                                                                                              \
#test "_started", test, set_up_started, tear_down, NULL                                    \
    }
#define BOTH_ONE(test)                                                                             \
    {#test, test, set_up_one, tear_down, NULL},                                                    \
    {                                                                                              \
#test "_started", test, set_up_one_started, tear_down, NULL                                \
    }

static const struct CMUnitTest tests[] = {
    BOTH(test_a_request_key_is_taken_by_the_pull_that_uses_it),
    BOTH(test_padding_names_nothing_and_of_equal_keys_the_last_counts),
    BOTH(test_kinds_ids_and_models_are_different_keys),
    BOTH(test_a_bound_key_is_refused_wherever_it_is_bound),
    BOTH(test_prefix_keys_are_shared_until_they_are_removed),
    BOTH(test_a_pull_of_some_layers_takes_these_alone),
    BOTH(test_keep_key_leaves_it_where_it_is),
    BOTH(test_a_pull_by_id_takes_the_slots_key),
    BOTH(test_a_pull_that_fails_takes_nothing),
    BOTH(test_keys_keep_the_memory_until_the_last_one_is_gone),
    BOTH(test_a_pull_of_the_last_key_frees_the_memory),
    BOTH(test_exactly_one_of_many_gets_a_request_key),
    BOTH(test_at_most_one_gets_the_key_of_a_slot_that_is_pulled_by_id),
    BOTH(test_a_blocks_key_names_all_blocks_and_goes_with_the_cache),
    BOTH_ONE(test_a_push_finds_blocks_by_their_key),
    BOTH_ONE(test_registered_memory_can_have_keys),
    cmocka_unit_test_setup_teardown(test_a_query_tells_what_a_key_names, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_a_query_under_a_lease_is_stale, set_up, tear_down),
    cmocka_unit_test_setup_teardown(test_wrong_keys_are_refused_in_order, set_up, tear_down),
    BOTH(test_pulls_by_key_check_in_order),
};
CONFORMANCE_MAIN("keys", tests)

// tiny_llm_test.c - the transformer and its paged KV cache.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tiny_llm.h"

extern const uint8_t tiny_weights[];
extern const uint8_t tiny_weights_end[];

static const char TEXT[] =
    "And the king said unto the man of God, Come home with me, and refresh thyself, and I will "
    "give "
    "thee a reward. And the man of God said unto the king, If thou wilt give me half thine house";

enum { BLOCKS = 16, MAX_TENSORS = 64 };

static tiny_llm *model;

// A cache of its own memory, with a block table.
typedef struct cache {
    uintptr_t tensors[MAX_TENSORS];
    uint64_t blocks[BLOCKS];
    tiny_kv kv;
} cache;

static size_t
weights_size(void)
{
    return (size_t)(tiny_weights_end - tiny_weights);
}

// Block i of the sequence is block (i * step + start) mod BLOCKS; step odd makes it a permutation.
static cache *
new_cache(uint64_t step, uint64_t start)
{
    cache *c = calloc(1, sizeof *c);
    assert_non_null(c);
    for (size_t t = 0; t < tiny_num_tensors(model); t++) {
        void *memory = malloc(BLOCKS * tiny_block_bytes(model));
        assert_non_null(memory);
        // What a fresh block holds must not matter.
        memset(memory, 0x7F, BLOCKS * tiny_block_bytes(model));
        c->tensors[t] = (uintptr_t)memory;
    }
    for (uint64_t i = 0; i < BLOCKS; i++)
        c->blocks[i] = (i * step + start) % BLOCKS;
    c->kv = (tiny_kv){c->tensors, c->blocks, BLOCKS};
    return c;
}

static void
free_cache(cache *c)
{
    for (size_t t = 0; t < tiny_num_tensors(model); t++)
        free((void *)c->tensors[t]);
    free(c);
}

// The row of one token in one tensor.
static const uint8_t *
row(const cache *c, size_t tensor, size_t position)
{
    size_t row_bytes = tiny_block_bytes(model) / TINY_BLOCK_TOKENS;
    size_t slot = c->blocks[position / TINY_BLOCK_TOKENS] * TINY_BLOCK_TOKENS;
    return (const uint8_t *)c->tensors[tensor] + (slot + position % TINY_BLOCK_TOKENS) * row_bytes;
}

static void
assert_same_rows(const cache *a, const cache *b, size_t tensor, size_t num_tokens)
{
    for (size_t i = 0; i < num_tokens; i++)
        assert_memory_equal(row(a, tensor, i), row(b, tensor, i),
                            tiny_block_bytes(model) / TINY_BLOCK_TOKENS);
}

static void
assert_same_cache(const cache *a, const cache *b, size_t num_tokens)
{
    for (size_t t = 0; t < tiny_num_tensors(model); t++)
        assert_same_rows(a, b, t, num_tokens);
}

static void
prefill(const cache *c, size_t num_tokens)
{
    assert_true(num_tokens < sizeof TEXT);
    assert_int_equal(tiny_prefill(model, &c->kv, (const uint8_t *)TEXT, num_tokens, NULL, NULL), 0);
}

static float *
copy_logits(void)
{
    float *copy = malloc(256 * sizeof *copy);
    assert_non_null(copy);
    return memcpy(copy, tiny_logits(model), 256 * sizeof *copy);
}

static void
assert_logits(const float *expected)
{
    assert_memory_equal(tiny_logits(model), expected, 256 * sizeof *expected);
}

// ---- the weights file ----------------------------------------------------------------------

static void
weights_load_and_are_small(void **state)
{
    (void)state;
    const tiny_dims *d = tiny_get_dims(model);
    assert_int_equal(d->vocab, 256);
    assert_true(d->kv_heads < d->heads);
    assert_true(tiny_num_tensors(model) <= MAX_TENSORS);
    assert_int_equal(tiny_block_bytes(model), 16 * d->kv_heads * d->head_dim * sizeof(float));
    assert_true(weights_size() <= 2u << 20);
}

static void
assert_refused(const uint8_t *bytes, size_t size, const char *because)
{
    char error[160] = "";
    assert_null(tiny_load(bytes, size, error, sizeof error));
    if (!strstr(error, because))
        fail_msg("\"%s\" doesn't say \"%s\"", error, because);
}

static void
corrupted_weights_are_refused(void **state)
{
    (void)state;
    static const struct {
        size_t offset;
        const char *because;
    } flips[] = {
        {0, "magic"},    {8, "version"}, {12, "64 bytes"}, {16, "weights"},  {20, "layers"},
        {24, "heads"},   {28, "heads"},  {32, "head_dim"}, {36, "weights"},  {40, "vocab"},
        {44, "context"}, {52, "fp16"},   {56, "weights"},  {60, "checksum"}, {64, "checksum"},
    };
    uint8_t *bytes = malloc(weights_size());
    assert_non_null(bytes);
    memcpy(bytes, tiny_weights, weights_size());
    for (size_t i = 0; i < sizeof flips / sizeof flips[0]; i++) {
        // 255 instead of each field's low byte is odd and too large, or simply another number.
        uint8_t was = bytes[flips[i].offset], was_high = bytes[flips[i].offset + 3];
        bytes[flips[i].offset] = 0xFF;
        if (flips[i].offset == 44)
            bytes[47] = 0xFF;
        assert_refused(bytes, weights_size(), flips[i].because);
        bytes[flips[i].offset] = was;
        bytes[flips[i].offset + 3] = was_high;
    }
    bytes[weights_size() - 1] ^= 1;
    assert_refused(bytes, weights_size(), "checksum");
    free(bytes);
}

static void
weights_of_the_wrong_size_are_refused(void **state)
{
    (void)state;
    assert_refused(tiny_weights, 0, "magic");
    assert_refused(tiny_weights, 63, "magic");
    assert_refused(tiny_weights, 64, "size");
    assert_refused(tiny_weights, weights_size() - 1, "size");
    assert_refused(tiny_weights, weights_size() + 1, "size");
}

// ---- prefill and decode --------------------------------------------------------------------

static void
prefill_equals_decoding_every_token(void **state)
{
    (void)state;
    enum { TOKENS = 100 };
    cache *whole = new_cache(1, 0), *single = new_cache(1, 0);
    prefill(whole, TOKENS);
    float *expected = copy_logits();
    for (size_t i = 0; i < TOKENS; i++)
        assert_int_equal(tiny_decode(model, &single->kv, (uint8_t)TEXT[i], i), 0);
    assert_logits(expected);
    assert_same_cache(whole, single, TOKENS);
    free(expected);
    free_cache(whole);
    free_cache(single);
}

static void
the_order_of_blocks_does_not_matter(void **state)
{
    (void)state;
    enum { TOKENS = 150 };
    cache *straight = new_cache(1, 0), *shuffled = new_cache(7, 5);
    prefill(straight, TOKENS);
    float *expected = copy_logits();
    prefill(shuffled, TOKENS);
    assert_logits(expected);
    assert_same_cache(straight, shuffled, TOKENS);
    free(expected);
    free_cache(straight);
    free_cache(shuffled);
}

static void
sequences_end_and_go_on_at_block_boundaries(void **state)
{
    (void)state;
    static const size_t lengths[] = {1, 15, 16, 17, 31, 32, 33};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        size_t length = lengths[i];
        cache *whole = new_cache(3, 1), *resumed = new_cache(5, 2);
        prefill(whole, length + 2);
        float *expected = copy_logits();
        prefill(resumed, length);
        for (size_t at = length; at < length + 2; at++)
            assert_int_equal(tiny_decode(model, &resumed->kv, (uint8_t)TEXT[at], at), 0);
        assert_logits(expected);
        assert_same_cache(whole, resumed, length + 2);
        free(expected);
        free_cache(whole);
        free_cache(resumed);
    }
}

static void
what_does_not_fit_is_refused(void **state)
{
    (void)state;
    cache *c = new_cache(1, 0);
    const uint8_t *text = (const uint8_t *)TEXT;
    tiny_kv two = {c->tensors, c->blocks, 2}, none = {c->tensors, c->blocks, 0};
    assert_int_equal(tiny_prefill(model, &two, text, 0, NULL, NULL), -1);
    assert_int_equal(tiny_prefill(model, &none, text, 1, NULL, NULL), -1);
    assert_int_equal(tiny_prefill(model, &two, text, 33, NULL, NULL), -1);
    assert_int_equal(tiny_prefill(model, &two, text, 32, NULL, NULL), 0);
    assert_int_equal(tiny_decode(model, &two, 'a', 32), -1);
    assert_int_equal(tiny_decode(model, &two, 'a', SIZE_MAX), -1);
    tiny_kv endless = {c->tensors, c->blocks, SIZE_MAX};
    assert_int_equal(tiny_decode(model, &endless, 'a', tiny_get_dims(model)->context), -1);
    free_cache(c);
}

// ---- layers ready one by one ---------------------------------------------------------------

typedef struct watch {
    const cache *at;
    const cache *expected;
    size_t num_tokens;
    uint32_t layers_seen;
    uint32_t stop_at;
} watch;

static int
check_layer(void *arg, uint32_t layer)
{
    watch *w = arg;
    assert_int_equal(layer, w->layers_seen++);
    if (w->expected) {
        assert_same_rows(w->at, w->expected, 2 * layer, w->num_tokens);
        assert_same_rows(w->at, w->expected, 2 * layer + 1, w->num_tokens);
    }
    return layer == w->stop_at ? 42 : 0;
}

static void
a_layer_is_complete_when_its_callback_runs(void **state)
{
    (void)state;
    enum { TOKENS = 40 };
    cache *before = new_cache(1, 0), *c = new_cache(9, 3);
    prefill(before, TOKENS);
    watch w = {c, before, TOKENS, 0, UINT32_MAX};
    assert_int_equal(tiny_prefill(model, &c->kv, (const uint8_t *)TEXT, TOKENS, check_layer, &w),
                     0);
    assert_int_equal(w.layers_seen, tiny_get_dims(model)->layers);
    free_cache(before);
    free_cache(c);
}

static void
a_callback_can_end_the_prefill(void **state)
{
    (void)state;
    cache *c = new_cache(1, 0);
    watch w = {c, NULL, 20, 0, 1};
    assert_int_equal(tiny_prefill(model, &c->kv, (const uint8_t *)TEXT, 20, check_layer, &w), 42);
    assert_int_equal(w.layers_seen, 2);
    free_cache(c);
}

// ---- handing over --------------------------------------------------------------------------

// What a transfer by block list does.
static void
copy_blocks(const cache *from, const cache *to, size_t num_blocks)
{
    size_t size = tiny_block_bytes(model);
    for (size_t t = 0; t < tiny_num_tensors(model); t++)
        for (size_t i = 0; i < num_blocks; i++)
            memcpy((uint8_t *)to->tensors[t] + to->blocks[i] * size,
                   (const uint8_t *)from->tensors[t] + from->blocks[i] * size, size);
}

static void
generate(const cache *c, const tiny_sampler *sampler, uint8_t *tokens, size_t from, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        tokens[i] = tiny_sample(model, sampler, from + i);
        assert_int_equal(tiny_decode(model, &c->kv, tokens[i], from + i), 0);
    }
}

static void
another_cache_goes_on_with_the_same_tokens(void **state)
{
    (void)state;
    enum { TOKENS = 120, COUNT = 60 };
    static const tiny_sampler sampler = {7, 20, 0.8f};
    uint8_t expected[COUNT], tokens[COUNT];
    cache *prompt = new_cache(7, 5), *decoder = new_cache(11, 2);
    prefill(prompt, TOKENS);
    copy_blocks(prompt, decoder, (TOKENS + 15) / TINY_BLOCK_TOKENS);
    generate(prompt, &sampler, expected, TOKENS, COUNT);

    tokens[0] = expected[0]; // handed over with the cache
    assert_int_equal(tiny_decode(model, &decoder->kv, tokens[0], TOKENS), 0);
    generate(decoder, &sampler, tokens + 1, TOKENS + 1, COUNT - 1);
    assert_memory_equal(tokens, expected, COUNT);
    assert_same_cache(prompt, decoder, TOKENS + COUNT);
    free_cache(prompt);
    free_cache(decoder);
}

// ---- sampling ------------------------------------------------------------------------------

static void
sampling_repeats_with_its_seed_and_differs_with_another(void **state)
{
    (void)state;
    enum { COUNT = 60 };
    tiny_sampler sampler = {1, 40, 1.0f};
    uint8_t first[COUNT], again[COUNT], other[COUNT];
    cache *c = new_cache(1, 0);
    prefill(c, 64);
    generate(c, &sampler, first, 64, COUNT);
    prefill(c, 64);
    generate(c, &sampler, again, 64, COUNT);
    assert_memory_equal(first, again, COUNT);
    sampler.seed = 2;
    prefill(c, 64);
    generate(c, &sampler, other, 64, COUNT);
    assert_memory_not_equal(first, other, COUNT);
    free_cache(c);
}

static void
without_temperature_the_likeliest_token_is_taken(void **state)
{
    (void)state;
    cache *c = new_cache(1, 0);
    prefill(c, 64);
    const float *logits = tiny_logits(model);
    uint8_t best = 0;
    for (unsigned i = 1; i < 256; i++)
        best = logits[i] > logits[best] ? (uint8_t)i : best;
    tiny_sampler cold = {1, 40, 0.0f}, narrow = {1, 1, 1.0f};
    assert_int_equal(tiny_sample(model, &cold, 64), best);
    assert_int_equal(tiny_sample(model, &narrow, 64), best);
    free_cache(c);
}

static void
it_writes_like_the_text_it_learnt(void **state)
{
    (void)state;
    static const char begin[] = "Thus saith the ", expected[] = "LORD of hosts, I will ";
    static const tiny_sampler likeliest = {0, 1, 0.0f};
    uint8_t tokens[sizeof expected - 1];
    cache *c = new_cache(5, 9);
    assert_int_equal(
        tiny_prefill(model, &c->kv, (const uint8_t *)begin, sizeof begin - 1, NULL, NULL), 0);
    generate(c, &likeliest, tokens, sizeof begin - 1, sizeof tokens);
    assert_memory_equal(tokens, expected, sizeof tokens);
    free_cache(c);
}

static int
load_model(void **state)
{
    (void)state;
    char error[160];
    model = tiny_load(tiny_weights, weights_size(), error, sizeof error);
    return model ? 0 : -1;
}

static int
free_model(void **state)
{
    (void)state;
    tiny_free(model);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_load_and_are_small),
        cmocka_unit_test(corrupted_weights_are_refused),
        cmocka_unit_test(weights_of_the_wrong_size_are_refused),
        cmocka_unit_test(prefill_equals_decoding_every_token),
        cmocka_unit_test(the_order_of_blocks_does_not_matter),
        cmocka_unit_test(sequences_end_and_go_on_at_block_boundaries),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(a_layer_is_complete_when_its_callback_runs),
        cmocka_unit_test(a_callback_can_end_the_prefill),
        cmocka_unit_test(another_cache_goes_on_with_the_same_tokens),
        cmocka_unit_test(sampling_repeats_with_its_seed_and_differs_with_another),
        cmocka_unit_test(it_writes_like_the_text_it_learnt),
        cmocka_unit_test(without_temperature_the_likeliest_token_is_taken),
    };
    return cmocka_run_group_tests_name("tiny_llm", tests, load_model, free_model);
}

// A text in the making.
#include "demo_sequence.h"

#include <stdlib.h>
#include <string.h>

// From weights.S.
extern const uint8_t tiny_weights[];
extern const uint8_t tiny_weights_end[];

// Chosen by reading: warmer texts ramble, cooler ones go in circles.
enum { TOP_K = 20 };
static const float TEMPERATURE = 0.6f;

bool
demo_sequence_open(demo_sequence *sequence, demo_error *error)
{
    char reason[160];
    size_t size = (size_t)(tiny_weights_end - tiny_weights);
    sequence->model = tiny_load(tiny_weights, size, reason, sizeof reason);
    if (sequence->model == NULL)
        return demo_fail(error, "the model in this program: %s", reason);
    if (tiny_num_tensors(sequence->model) > DEMO_MAX_TENSORS ||
        tiny_get_dims(sequence->model)->context > DEMO_MAX_TOKENS)
        return demo_fail(error, "the model in this program is too large for the demo");
    return true;
}

void
demo_sequence_close(demo_sequence *sequence)
{
    tiny_free(sequence->model);
    sequence->model = NULL;
}

bool
demo_sequence_plan(demo_sequence *sequence, size_t num_prompt, size_t num_generated, uint32_t seed,
                   demo_error *error)
{
    size_t context = tiny_get_dims(sequence->model)->context;
    if (num_prompt < 1 || num_generated < 1 || num_prompt > context ||
        num_generated > context - num_prompt)
        return demo_fail(error,
                         "%zu tokens of prompt and %zu to generate: expected 1 or more of each and "
                         "at most %zu together",
                         num_prompt, num_generated, context);
    sequence->num_prompt = num_prompt;
    sequence->num_wanted = num_prompt + num_generated;
    sequence->num_known = num_prompt;
    sequence->sampler = (tiny_sampler){.seed = seed, .top_k = TOP_K, .temperature = TEMPERATURE};
    if (seed == 0)
        sequence->sampler.temperature = 0;
    return true;
}

static tiny_kv
view(const demo_sequence *sequence)
{
    return (tiny_kv){sequence->kv.tensors, sequence->kv.blocks, DEMO_NUM_BLOCKS};
}

static void
choose_token(demo_sequence *s)
{
    s->tokens[s->num_known] = tiny_sample(s->model, &s->sampler, s->num_known);
    s->num_known++;
}

bool
demo_prefill(demo_sequence *s, const char *prompt, tiny_layer_done done, void *arg,
             demo_error *error)
{
    tiny_kv kv = view(s);
    memcpy(s->tokens, prompt, s->num_prompt);
    if (tiny_prefill(s->model, &kv, s->tokens, s->num_prompt, done, arg) != 0)
        return demo_fail(error, "the prefill of %zu tokens failed", s->num_prompt);
    choose_token(s);
    return true;
}

bool
demo_generate(demo_sequence *s, demo_error *error)
{
    tiny_kv kv = view(s);
    while (s->num_known < s->num_wanted) {
        size_t last = s->num_known - 1;
        if (tiny_decode(s->model, &kv, s->tokens[last], last) != 0)
            return demo_fail(error, "the decoding of token %zu failed", last);
        choose_token(s);
    }
    return true;
}

void
demo_spread_blocks(demo_kv *kv, unsigned way)
{
    // Odd steps visit every block of a power of two once.
    static const uint64_t steps[] = {37, 29, 5}, starts[] = {11, 50, 3};
    for (uint64_t i = 0; i < DEMO_NUM_BLOCKS; i++)
        kv->blocks[i] = (starts[way % 3] + i * steps[way % 3]) % DEMO_NUM_BLOCKS;
}

size_t
demo_blocks_for(size_t num_tokens)
{
    return (num_tokens + TINY_BLOCK_TOKENS - 1) / TINY_BLOCK_TOKENS;
}

// Where block i of the text lies in a tensor.
static const uint8_t *
block_at(const demo_sequence *s, size_t tensor, size_t i)
{
    return (const uint8_t *)s->kv.tensors[tensor] + s->kv.blocks[i] * tiny_block_bytes(s->model);
}

uint8_t *
demo_gather(const demo_sequence *s, size_t num_tokens, size_t *size)
{
    size_t block = tiny_block_bytes(s->model), num_blocks = demo_blocks_for(num_tokens);
    *size = tiny_num_tensors(s->model) * num_blocks * block;
    uint8_t *bytes = malloc(*size), *at = bytes;
    if (bytes == NULL)
        return NULL;
    for (size_t t = 0; t < tiny_num_tensors(s->model); t++) {
        for (size_t i = 0; i < num_blocks; i++, at += block)
            memcpy(at, block_at(s, t, i), block);
    }
    return bytes;
}

uint64_t
demo_hash_kv(const demo_sequence *s, size_t num_tokens)
{
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t t = 0; t < tiny_num_tensors(s->model); t++) {
        for (size_t i = 0; i < demo_blocks_for(num_tokens); i++) {
            const uint8_t *block = block_at(s, t, i);
            for (size_t j = 0; j < tiny_block_bytes(s->model); j++)
                hash = (hash ^ block[j]) * 0x100000001B3u;
        }
    }
    return hash;
}

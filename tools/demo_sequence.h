// A text in the making: the model, the tokens, and the KV cache that they are computed with.
#ifndef LLM_TOOLS_DEMO_SEQUENCE_H
#define LLM_TOOLS_DEMO_SEQUENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "demo.h"
#include "tiny_llm/tiny_llm.h"

enum {
    DEMO_NUM_BLOCKS = 64, // in each cache, twice what the longest text needs
    DEMO_MAX_TENSORS = 256,
    DEMO_MAX_TOKENS = 512
};

// A paged cache and the block table of the one text in it.
typedef struct demo_kv {
    uintptr_t tensors[DEMO_MAX_TENSORS];
    uint64_t blocks[DEMO_NUM_BLOCKS];
} demo_kv;

typedef struct demo_sequence {
    tiny_llm *model;
    tiny_sampler sampler;
    size_t num_prompt;               // tokens
    size_t num_wanted;               // tokens with the prompt, in the end
    size_t num_known;                // tokens with the prompt, now
    uint8_t tokens[DEMO_MAX_TOKENS]; // a decoder never learns the prompt's
    demo_kv kv;
} demo_sequence;

// Loads the model that is in the program.
bool demo_sequence_open(demo_sequence *sequence, demo_error *error);
void demo_sequence_close(demo_sequence *sequence);

// How long the text is to be, and how its tokens are chosen.
bool demo_sequence_plan(demo_sequence *sequence, size_t num_prompt, size_t num_generated,
                        uint32_t seed, demo_error *error);

// Computes the prompt's KV cache and the first token.
bool demo_prefill(demo_sequence *sequence, const char *prompt, tiny_layer_done done, void *arg,
                  demo_error *error);

// Computes the tokens that are still missing.
bool demo_generate(demo_sequence *sequence, demo_error *error);

// Spreads a text over the cache's blocks, differently for each way of spreading (0, 1, 2).
void demo_spread_blocks(demo_kv *kv, unsigned way);

// How many blocks so many tokens fill.
size_t demo_blocks_for(size_t num_tokens);

// The bytes of the first num_tokens tokens' whole blocks, tensor by tensor, blocks in the order of
// the text: what must be the same wherever the blocks lie.  Free the result; NULL without memory.
uint8_t *demo_gather(const demo_sequence *sequence, size_t num_tokens, size_t *size);

// FNV-1a of the same bytes.
uint64_t demo_hash_kv(const demo_sequence *sequence, size_t num_tokens);

#endif

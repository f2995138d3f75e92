// tiny_llm.h - a small but real transformer, for examples and tests.
//
// Byte-level (a token is a byte), RMSNorm, rotary positions, grouped-query attention, SwiGLU, one
// matrix for both embedding and output.  What matters here is its KV cache, which is laid out as
// serving engines do it:
//
//   - One K tensor and one V tensor per layer, each [blocks][16 tokens][kv_heads * head_dim] floats.
//     Tensor 2 * layer is K, tensor 2 * layer + 1 is V.
//   - A sequence owns any blocks, in any order: its block table says which.  Tokens 16 * i ... 16 * i
//     + 15 live in block blocks[i].
//   - The memory is the caller's, so that a transfer library can own it.
//
// Results depend on the weights, the tokens and the sampler alone: not on the process, the block
// table, or on whether a token came through tiny_prefill or tiny_decode.
#ifndef TINY_LLM_H
#define TINY_LLM_H

#include <stddef.h>
#include <stdint.h>

enum { TINY_BLOCK_TOKENS = 16 };

// The numbers that shape a model.
typedef struct tiny_dims {
    uint32_t dim;
    uint32_t layers;
    uint32_t heads;
    uint32_t kv_heads; // divides heads
    uint32_t head_dim; // even
    uint32_t hidden;
    uint32_t vocab;   // 256
    uint32_t context; // most tokens in one sequence
    uint32_t rope_theta;
} tiny_dims;

typedef struct tiny_llm tiny_llm;

// Makes a model from the bytes of a weights file (README.md says what is in it); they aren't kept.
// Returns NULL when they can't be used, or memory is short, and writes one line to error.
tiny_llm *tiny_load(const void *bytes, size_t size, char *error, size_t error_size);

void tiny_free(tiny_llm *model);

const tiny_dims *tiny_get_dims(const tiny_llm *model);

// The checksum of the weights: two processes with equal fingerprints compute the same.
uint32_t tiny_fingerprint(const tiny_llm *model);

// Bytes of one block of one tensor.
size_t tiny_block_bytes(const tiny_llm *model);

// 2 * layers.
size_t tiny_num_tensors(const tiny_llm *model);

// One sequence's view of a cache.  Nothing here is owned.
typedef struct tiny_kv {
    const uintptr_t *tensors; // 2 * layers addresses, aligned for float
    const uint64_t *blocks;   // the block table
    size_t num_blocks;
} tiny_kv;

// Called when every token's K and V of a layer are in the cache; not 0 ends the prefill.
typedef int (*tiny_layer_done)(void *arg, uint32_t layer);

// Computes a whole prompt, layer by layer: all tokens of layer 0, then all of layer 1, ...  done may
// be NULL.  Returns 0 and has tiny_logits ready for what follows the last token; -1 if num_tokens is
// 0 or more than the context or the block table holds; or what done returned.
int tiny_prefill(tiny_llm *model, const tiny_kv *kv, const uint8_t *tokens, size_t num_tokens,
                 tiny_layer_done done, void *arg);

// Computes one token; those at 0 ... position - 1 are in the cache.  Returns 0 or -1, as above.
int tiny_decode(tiny_llm *model, const tiny_kv *kv, uint8_t token, size_t position);

// vocab numbers, valid until the next prefill or decode.
const float *tiny_logits(const tiny_llm *model);

// How a token is chosen.  Temperature 0 takes the likeliest.
typedef struct tiny_sampler {
    uint64_t seed;
    uint32_t top_k; // 1 ... 256: only so many of the likeliest are considered
    float temperature;
} tiny_sampler;

// The token to put at `position`, from tiny_logits.  The random number is a function of seed and
// position, so that whoever goes on with a sequence needs no other state.
uint8_t tiny_sample(const tiny_llm *model, const tiny_sampler *sampler, size_t position);

#endif

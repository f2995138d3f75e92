// One side's llm-datadist instance, with a cache that is the model's KV cache.
#ifndef LLM_TOOLS_DEMO_CLUSTER_H
#define LLM_TOOLS_DEMO_CLUSTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "demo.h"
#include "demo_sequence.h"
#include "llm_datadist/llm_datadist_c.h"

enum { DEMO_PROMPT_CLUSTER = 1, DEMO_DECODER_CLUSTER = 2 };

typedef struct demo_cluster {
    llm_datadist *dd;
    llm_cache_desc desc;
    int64_t shape[2];
    llm_cache cache;
} demo_cluster;

// The reason why a call of the library failed.  Returns false.
bool demo_fail_call(demo_error *error, const char *call, llm_status status);

// Makes an instance, allocates the cache, and has the sequence compute in it.
// listen: for a Prompt, where the library shall listen, at a port of the system's choice.
bool demo_cluster_open(demo_cluster *cluster, llm_role role, const struct lli_endpoint *listen,
                       const demo_options *options, demo_sequence *sequence, demo_error *error);

void demo_cluster_close(demo_cluster *cluster);

// Bytes that a transfer of so many blocks moves, all layers together.
uint64_t demo_transfer_bytes(const demo_sequence *sequence, size_t num_blocks);

// Which transport the link to a cluster took: "shm".  Fails if another one was asked for.
bool demo_link_transport(const demo_cluster *cluster, uint64_t peer, const demo_options *options,
                         char transport[16], demo_error *error);

#endif

/*
 * pull_prompt.cc - the prefill side of a pull: Initialize as a Prompt, AllocateCache, and then
 * nothing at all, since a decoder that pulls needs no help.
 *
 *     pull_prompt LISTEN_IP:PORT
 *
 * Its partner is pull_decoder.cc.  Copyright the llm-datadist authors.  SPDX-License-Identifier:
 * Apache-2.0
 */
#include "example.h"

using namespace llm_datadist;
using namespace example;

int
main(int argc, char **argv)
{
    if (argc != 2) {
        Fail("usage: pull_prompt LISTEN_IP:PORT", 2);
    }

    /* A cluster has a number that no other cluster in the group has. */
    LlmDataDist dist(1, LlmRole::kPrompt);
    std::map<AscendString, AscendString> options;
    options[OPTION_DEVICE_ID] = "0";
    options[OPTION_LISTEN_IP_INFO] = argv[1];
    Require(dist.Initialize(options), "Initialize", 3);

    /* The memory of a cache belongs to the library; its addresses are in cache.tensor_addrs. */
    Cache cache;
    Require(dist.AllocateCache(PagedCacheDesc(), cache), "AllocateCache");

    /* Prefill: the prompt's tokens fill these blocks, in this order. */
    const std::vector<uint64_t> blocks = {5, 6, 7, 20, 3, 41};
    Clear(cache);
    for (size_t layer = 0; layer < kLayers; layer++) {
        ComputeLayer(cache, layer, blocks, 2024);
    }

    /* The router learns where the KV cache is: cache id, then the blocks. */
    std::vector<uint64_t> where = {static_cast<uint64_t>(cache.cache_id)};
    where.insert(where.end(), blocks.begin(), blocks.end());
    Say("prefilled", where);
    Tell("prompt: prefilled; waiting for the decoder");

    Hear("pulled");
    Require(dist.DeallocateCache(cache.cache_id), "DeallocateCache");
    dist.Finalize();
    Tell("prompt: ok");
    return 0;
}

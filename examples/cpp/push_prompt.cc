/*
 * push_prompt.cc - the prefill side of a push: PushKvBlocks sends each layer as soon as it is
 * computed, so that the transfer hides behind the computation.
 *
 *     push_prompt LISTEN_IP:PORT
 *
 * Its partner is push_decoder.cc.  Copyright the llm-datadist authors.  SPDX-License-Identifier:
 * Apache-2.0
 */
#include "example.h"

using namespace llm_datadist;
using namespace example;

int
main(int argc, char **argv)
{
    if (argc != 2) {
        Fail("usage: push_prompt LISTEN_IP:PORT", 2);
    }
    LlmDataDist dist(1, LlmRole::kPrompt);
    std::map<AscendString, AscendString> options;
    options[OPTION_DEVICE_ID] = "0";
    options[OPTION_LISTEN_IP_INFO] = argv[1];
    options[OPTION_SYNC_CACHE_WAIT_TIME] = "5000";
    Require(dist.Initialize(options), "Initialize", 3);

    Cache cache;
    Require(dist.AllocateCache(PagedCacheDesc(), cache), "AllocateCache");
    Clear(cache);

    /* A prompt can't link; it waits for decoders.  This one says who it is and which blocks of
     * which cache it has set aside: cluster id, cache id, blocks. */
    Say("listening");
    const std::vector<uint64_t> where = Hear("linked");
    if (where.size() < 3) {
        Fail("the decoder named no blocks");
    }
    CacheIndex target{};
    target.cluster_id = where[0];
    target.cache_id = static_cast<int64_t>(where[1]);
    const std::vector<uint64_t> decoder_blocks(where.begin() + 2, where.end());

    std::vector<uint64_t> own_blocks;
    for (size_t i = 0; i < decoder_blocks.size(); i++) {
        own_blocks.push_back(static_cast<uint64_t>(kBlocks) - 1 - 2 * i);
    }
    for (int32_t layer = 0; layer < kLayers; layer++) {
        ComputeLayer(cache, static_cast<size_t>(layer), own_blocks, 7);
        KvCacheExtParam one_layer;
        one_layer.src_layer_range = {layer, layer};
        one_layer.dst_layer_range = {layer, layer};
        Require(dist.PushKvBlocks(cache, target, own_blocks, decoder_blocks, one_layer),
                "PushKvBlocks");
        Tell("prompt: pushed layer " + std::to_string(layer));
    }

    /* Success means arrived, but nobody tells the decoder: that is the router's part. */
    Say("pushed", {own_blocks.size()});

    /* Once more with PushKvCache: one slot of all layers, named by batch_index on both sides. */
    Hear("seen");
    target.batch_index = static_cast<uint32_t>(decoder_blocks[0]);
    Require(dist.PushKvCache(cache, target, static_cast<uint32_t>(own_blocks[0])), "PushKvCache");
    Say("pushed", {1});

    Hear("seen");
    dist.Finalize();
    Tell("prompt: ok");
    return 0;
}

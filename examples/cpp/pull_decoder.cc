/*
 * pull_decoder.cc - the decode side of a pull: LinkLlmClusters, PullKvBlocks into blocks of its own
 * choice, PullKvCache, CopyKvBlocks for a second beam, UnlinkLlmClusters.
 *
 *     pull_decoder PROMPT_IP:PORT OWN_IP
 *
 * Its partner is pull_prompt.cc.  Copyright the llm-datadist authors.  SPDX-License-Identifier:
 * Apache-2.0
 */
#include "example.h"

using namespace llm_datadist;
using namespace example;

int
main(int argc, char **argv)
{
    if (argc != 3) {
        Fail("usage: pull_decoder PROMPT_IP:PORT OWN_IP", 2);
    }
    const std::vector<uint64_t> where = Hear("prefilled");
    if (where.size() < 2) {
        Fail("the prompt named no blocks");
    }
    const int64_t prompt_cache_id = static_cast<int64_t>(where[0]);
    const std::vector<uint64_t> prompt_blocks(where.begin() + 1, where.end());

    LlmDataDist dist(2, LlmRole::kDecoder);
    std::map<AscendString, AscendString> options;
    options[OPTION_DEVICE_ID] = "0";
    options[OPTION_SYNC_CACHE_WAIT_TIME] = "5000";
    Require(dist.Initialize(options), "Initialize");

    Cache cache;
    Require(dist.AllocateCache(PagedCacheDesc(), cache), "AllocateCache");
    Clear(cache);

    /* One address per device on each side; the results of the single clusters are in `rets`. */
    ClusterInfo prompt;
    prompt.remote_cluster_id = 1;
    prompt.remote_ip_infos.push_back(ParseAddress(argv[1]));
    prompt.local_ip_infos.push_back(ParseAddress(argv[2]));
    std::vector<Status> rets;
    Require(dist.LinkLlmClusters({prompt}, rets, 5000), "LinkLlmClusters");

    /* Block prompt_blocks[i] there becomes block own_blocks[i] here, in every tensor. */
    std::vector<uint64_t> own_blocks;
    for (size_t i = 0; i < prompt_blocks.size(); i++) {
        own_blocks.push_back(i + 1);
    }
    CacheIndex source{};
    source.cluster_id = 1;
    source.cache_id = prompt_cache_id;
    Require(dist.PullKvBlocks(source, cache, prompt_blocks, own_blocks), "PullKvBlocks");
    Verify(cache, own_blocks, 2024);
    Tell("decoder: the blocks are here");

    /* The same, one layer at a time, as an engine does that decodes while it still pulls. */
    Clear(cache);
    for (int32_t layer = 0; layer < kLayers; layer++) {
        KvCacheExtParam one_layer;
        one_layer.src_layer_range = {layer, layer};
        one_layer.dst_layer_range = {layer, layer};
        Require(dist.PullKvBlocks(source, cache, prompt_blocks, own_blocks, one_layer),
                "PullKvBlocks, one layer");
    }
    Verify(cache, own_blocks, 2024);
    Tell("decoder: the layers are here");

    /* A single slot of every tensor: PullKvCache names it by batch_index on both sides. */
    Clear(cache);
    source.batch_index = static_cast<uint32_t>(prompt_blocks[0]);
    Require(dist.PullKvCache(source, cache, 9), "PullKvCache");
    Verify(cache, {9}, 2024);

    /* A second beam gets copies of its own, without the network. */
    Require(dist.CopyKvBlocks(cache, cache, {9}, {{10}, {11}}), "CopyKvBlocks");
    for (size_t tensor = 0; tensor < cache.tensor_addrs.size(); tensor++) {
        const size_t bytes = kWordsPerBlock * sizeof(uint16_t);
        if (std::memcmp(BlockOf(cache, tensor, 9), BlockOf(cache, tensor, 10), bytes) != 0 ||
            std::memcmp(BlockOf(cache, tensor, 9), BlockOf(cache, tensor, 11), bytes) != 0) {
            Fail("a copied block differs from its source");
        }
    }

    Require(dist.UnlinkLlmClusters({prompt}, rets, 5000), "UnlinkLlmClusters");
    Say("pulled");
    dist.Finalize();
    Tell("decoder: ok");
    return 0;
}

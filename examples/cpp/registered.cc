/*
 * registered.cc - RegisterKvCache: the engine keeps its own memory, here one cache per layer, and the
 * library moves it.  No allocation, no roles to keep to: the decoder pulls the prompt's layers, then
 * pushes one back.
 *
 *     registered prompt  LISTEN_IP:PORT
 *     registered decoder PROMPT_IP:PORT OWN_IP
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include "example.h"

using namespace llm_datadist;
using namespace example;

namespace {

/* The engine's memory of one layer, keys and values, and the cache that the library knows it as.
 * tensor_addrs is for the helpers of example.h; the library needs the cache_id alone. */
struct Layer {
    std::vector<uint16_t> memory[2];
    Cache cache;
};

void
RegisterLayers(LlmDataDist &dist, std::vector<Layer> &layers)
{
    for (Layer &layer : layers) {
        std::vector<uint64_t> addrs;
        for (std::vector<uint16_t> &tensor : layer.memory) {
            tensor.assign(kBlocks * kWordsPerBlock, 0);
            addrs.push_back(reinterpret_cast<uintptr_t>(tensor.data()));
        }
        CacheDesc desc = PagedCacheDesc();
        desc.num_tensors = 2;
        Require(dist.RegisterKvCache(desc, addrs, RegisterCfg(), layer.cache.cache_id),
                "RegisterKvCache");
        layer.cache.tensor_addrs.assign(addrs.begin(), addrs.end());
        Clear(layer.cache);
    }
}

/* After this the engine may free its memory: nothing of a peer lands there any more. */
void
UnregisterLayers(LlmDataDist &dist, const std::vector<Layer> &layers)
{
    for (const Layer &layer : layers) {
        Require(dist.UnregisterKvCache(layer.cache.cache_id), "UnregisterKvCache");
    }
}

int
Prompt(const char *listen)
{
    LlmDataDist dist(1, LlmRole::kPrompt);
    std::map<AscendString, AscendString> options;
    options[OPTION_DEVICE_ID] = "0";
    options[OPTION_LISTEN_IP_INFO] = listen;
    Require(dist.Initialize(options), "Initialize", 3);
    std::vector<Layer> layers(kLayers);
    RegisterLayers(dist, layers);

    /* Prefill, then tell where: three blocks, and the cache of each layer. */
    const std::vector<uint64_t> blocks = {11, 12, 50};
    std::vector<uint64_t> where = blocks;
    for (size_t i = 0; i < layers.size(); i++) {
        ComputeLayer(layers[i].cache, 0, blocks, i);
        where.push_back(static_cast<uint64_t>(layers[i].cache.cache_id));
    }
    Say("prefilled", where);

    Hear("pushed");
    Verify(layers[0].cache, blocks, 99);
    Say("seen");
    Hear("unlinked");
    UnregisterLayers(dist, layers);
    dist.Finalize();
    Tell("prompt: ok");
    return 0;
}

int
Decoder(const char *prompt_address, const char *own_ip)
{
    const std::vector<uint64_t> where = Hear("prefilled");
    if (where.size() != 3 + kLayers) {
        Fail("expected three blocks and a cache per layer");
    }
    const std::vector<uint64_t> prompt_blocks(where.begin(), where.begin() + 3);

    LlmDataDist dist(2, LlmRole::kDecoder);
    std::map<AscendString, AscendString> options;
    options[OPTION_DEVICE_ID] = "0";
    Require(dist.Initialize(options), "Initialize");
    std::vector<Layer> layers(kLayers);
    RegisterLayers(dist, layers);

    ClusterInfo prompt;
    prompt.remote_cluster_id = 1;
    prompt.remote_ip_infos.push_back(ParseAddress(prompt_address));
    prompt.local_ip_infos.push_back(ParseAddress(own_ip));
    std::vector<Status> rets;
    Require(dist.LinkLlmClusters({prompt}, rets, 5000), "LinkLlmClusters");

    const std::vector<uint64_t> own_blocks = {0, 1, 2};
    CacheIndex index{};
    index.cluster_id = 1;
    for (size_t i = 0; i < layers.size(); i++) {
        index.cache_id = static_cast<int64_t>(where[3 + i]);
        Require(dist.PullKvBlocks(index, layers[i].cache, prompt_blocks, own_blocks),
                "PullKvBlocks");
        Verify(layers[i].cache, own_blocks, i);
    }
    Tell("decoder: the layers are here");

    /* The other direction: what was decoded goes back, for the next turn of the conversation. */
    ComputeLayer(layers[0].cache, 0, own_blocks, 99);
    index.cache_id = static_cast<int64_t>(where[3]);
    Require(dist.PushKvBlocks(layers[0].cache, index, own_blocks, prompt_blocks), "PushKvBlocks");
    Say("pushed");
    Hear("seen");

    Require(dist.UnlinkLlmClusters({prompt}, rets, 5000), "UnlinkLlmClusters");
    Say("unlinked");
    UnregisterLayers(dist, layers);
    dist.Finalize();
    Tell("decoder: ok");
    return 0;
}

} // namespace

int
main(int argc, char **argv)
{
    const std::string role = argc > 1 ? argv[1] : "";
    if (role == "prompt" && argc == 3) {
        return Prompt(argv[2]);
    }
    if (role == "decoder" && argc == 4) {
        return Decoder(argv[2], argv[3]);
    }
    Fail("usage: registered prompt LISTEN_IP:PORT | decoder PROMPT_IP:PORT OWN_IP", 2);
}

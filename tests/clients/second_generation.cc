/*
 * second_generation.cc - pairs of the second generation: both sides register their memory, one links to
 * the other, whatever their roles, and pulls or pushes blocks and a batch.
 *
 *     second_generation pull|push|switch prompt|decoder OWN_IP:PORT PEER_IP:PORT default|hixl [LOCAL_PORT]
 *
 * Such programs give a local address whose port they have no intention to come from: their own
 * listening port, or (LOCAL_PORT "peer") the one that the peer listens at.  They unlink without local
 * addresses, and some end without unlinking.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include "client.h"

using namespace llm_datadist;

namespace client {

constexpr uint64_t kPromptCluster = 0;
constexpr uint64_t kDecoderCluster = 1;
constexpr int64_t kFirstCache = 1; /* what both sides take each other's only cache for */
constexpr size_t kTensors = 4;
constexpr int64_t kBlocks = 8;
constexpr int64_t kWords = 16; /* of a block */

struct Side {
    Place own;
    Place peer;
    bool hixl;
    bool port_of_peer;

    LlmDataDist *dist;
    int64_t cache_id;
    std::vector<std::vector<int32_t>> memory;
};

void
Open(Side &side, bool listens)
{
    std::map<AscendString, AscendString> options;
    options[OPTION_DEVICE_ID] = "0";
    if (listens || side.hixl) {
        options[OPTION_LISTEN_IP_INFO] = Text(side.own).c_str();
    }
    if (side.hixl) {
        options[OPTION_TRANSFER_BACKEND] = "hixl";
        options[OPTION_LOCAL_COMM_RES] = "{\"version\":\"1.3\",\"endpoint_list\":[]}";
    }
    Require(side.dist->Initialize(options), "Initialize", kAddressTaken);
}

/* Word i of each tensor is i, or `filled` is false. */
void
Register(Side &side, bool filled)
{
    CacheDesc desc{};
    desc.num_tensors = kTensors;
    desc.data_type = DT_INT32;
    desc.shape = {kBlocks, kWords};
    std::vector<uint64_t> addrs;
    side.memory.assign(kTensors, std::vector<int32_t>(kBlocks * kWords, -1));
    for (std::vector<int32_t> &tensor : side.memory) {
        for (size_t i = 0; filled && i < tensor.size(); i++) {
            tensor[i] = static_cast<int32_t>(i);
        }
        addrs.push_back(reinterpret_cast<uintptr_t>(tensor.data()));
    }
    Require(side.dist->RegisterKvCache(desc, addrs, {}, side.cache_id), "RegisterKvCache",
            kAddressTaken);
    Expect(side.cache_id == kFirstCache, "the first cache isn't number 1");
}

/* Blocks first..first+3 have come, the others haven't been touched. */
void
Verify(const Side &side, size_t first)
{
    for (const std::vector<int32_t> &tensor : side.memory) {
        for (size_t block = first; block < first + 4; block++) {
            for (size_t i = block * kWords; i < (block + 1) * kWords; i++) {
                Expect(tensor[i] == static_cast<int32_t>(i), "block " + std::to_string(block));
            }
        }
    }
}

ClusterInfo
Peer(const Side &side, uint64_t cluster_id)
{
    ClusterInfo cluster;
    cluster.remote_cluster_id = cluster_id;
    cluster.remote_ip_infos.push_back(Ip(side.peer));
    return cluster;
}

void
Link(Side &side, uint64_t cluster_id)
{
    ClusterInfo cluster = Peer(side, cluster_id);
    cluster.local_ip_infos.push_back(
        Ip({side.own.ip, side.port_of_peer ? side.peer.port : side.own.port}));
    std::vector<Status> rets;
    Require(side.dist->LinkLlmClusters({cluster}, rets, 5000), "LinkLlmClusters");
    Expect(rets == std::vector<Status>{LLM_SUCCESS}, "rets of LinkLlmClusters");
}

void
Unlink(Side &side, uint64_t cluster_id)
{
    std::vector<Status> rets;
    Require(side.dist->UnlinkLlmClusters({Peer(side, cluster_id)}, rets, 5000),
            "UnlinkLlmClusters");
    Expect(rets == std::vector<Status>{LLM_SUCCESS}, "rets of UnlinkLlmClusters");
}

/* Blocks 1 to 3, then batch 0. */
void
Pull(Side &side)
{
    CacheIndex index = {};
    index.cluster_id = kPromptCluster;
    index.cache_id = kFirstCache;
    Cache cache{}; /* known by its id alone */
    cache.cache_id = side.cache_id;
    const std::vector<uint64_t> blocks{1, 2, 3};
    Require(side.dist->PullKvBlocks(index, cache, blocks, blocks), "PullKvBlocks");
    Require(side.dist->PullKvCache(index, cache, 0), "PullKvCache");
}

/* Blocks 5 to 7, tensor by tensor, then batch 4 of all tensors as one layer. */
void
Push(Side &side)
{
    CacheIndex index = {};
    index.cluster_id = kDecoderCluster;
    index.cache_id = kFirstCache;
    Cache cache{};
    cache.cache_id = side.cache_id;
    const std::vector<uint64_t> blocks{5, 6, 7};
    KvCacheExtParam param{};
    param.tensor_num_per_layer = 1;
    for (int32_t i = 0; i < static_cast<int32_t>(kTensors); i++) {
        param.src_layer_range = {i, i};
        param.dst_layer_range = {i, i};
        Require(side.dist->PushKvBlocks(cache, index, blocks, blocks, param), "PushKvBlocks");
    }
    index.batch_index = 4;
    param.src_layer_range = {0, 0};
    param.dst_layer_range = {0, 0};
    param.tensor_num_per_layer = kTensors;
    Require(side.dist->PushKvCache(cache, index, 4, -1, param), "PushKvCache");
}

void
Close(Side &side)
{
    Require(side.dist->UnregisterKvCache(side.cache_id), "UnregisterKvCache");
    side.dist->Finalize();
}

/* ---- the sequences ---- */

void
PulledFrom(Side &side)
{
    Open(side, true);
    Register(side, true);
    Say("ready");
    Hear("done");
    Close(side);
}

void
Puller(Side &side)
{
    Open(side, !side.port_of_peer);
    Register(side, false);
    Hear("ready");
    Link(side, kPromptCluster);
    Pull(side);
    Verify(side, 0);
    Unlink(side, kPromptCluster);
    Say("done");
    side.dist->Finalize(); /* and the cache with it */
}

void
Pusher(Side &side)
{
    Open(side, true);
    Register(side, true);
    Hear("ready");
    Link(side, kDecoderCluster);
    Push(side);
    Unlink(side, kDecoderCluster);
    Say("done");
    Close(side);
}

/* A Decoder that listens, by the option or from when it registers. */
void
PushedTo(Side &side)
{
    Open(side, true);
    Register(side, false);
    Say("ready");
    Hear("done");
    Verify(side, 4);
    Close(side);
}

void
SwitchingPrompt(Side &side)
{
    Open(side, true);
    Register(side, true);
    Say("ready");
    Hear("switched");
    Require(side.dist->SetRole(LlmRole::kDecoder), "SetRole"); /* and no longer listens */
    Link(side, kDecoderCluster);
    Push(side);
    Say("done");
    Hear("seen");
    side.dist->Finalize(); /* and the link with it */
}

void
SwitchingDecoder(Side &side)
{
    Open(side, false);
    Register(side, false);
    Hear("ready");
    Link(side, kPromptCluster);
    Pull(side);
    Verify(side, 0);
    Unlink(side, kPromptCluster);
    std::map<AscendString, AscendString> options;
    options[OPTION_LISTEN_IP_INFO] = Text(side.own).c_str();
    Require(side.dist->SetRole(LlmRole::kPrompt, options), "SetRole", kAddressTaken);
    Say("switched");
    Hear("done");
    Verify(side, 4);
    Say("seen");
    side.dist->Finalize();
}

} // namespace client

using namespace client;

int
main(int argc, char **argv)
{
    Expect(argc == 6 || argc == 7, "usage: see the head of second_generation.cc");
    const std::string sequence = argv[1];
    const bool prompt = std::string(argv[2]) == "prompt";
    LlmDataDist dist(prompt ? kPromptCluster : kDecoderCluster,
                     prompt ? LlmRole::kPrompt : LlmRole::kDecoder);
    Side side = {ParsePlace(argv[3]),
                 ParsePlace(argv[4]),
                 std::string(argv[5]) == "hixl",
                 argc == 7,
                 &dist,
                 -1,
                 {}};
    SkipWithoutFamilyOf(side.own);
    if (sequence == "pull") {
        prompt ? PulledFrom(side) : Puller(side);
    } else if (sequence == "push") {
        prompt ? Pusher(side) : PushedTo(side);
    } else {
        prompt ? SwitchingPrompt(side) : SwitchingDecoder(side);
    }
    return 0;
}

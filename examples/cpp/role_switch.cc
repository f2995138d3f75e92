/*
 * role_switch.cc - SetRole: two engines that change places when the load does, with their caches
 * kept.
 *
 *     role_switch first  OWN_IP:PORT PEER_IP:PORT
 *     role_switch second OWN_IP:PORT PEER_IP:PORT
 *
 * In round 0 `first` is the prompt and `second` pulls from it; in round 1 it is the other way about;
 * and so on.  SetRole needs OPTION_ENABLE_SET_ROLE, and that the links are gone.
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include "example.h"

using namespace llm_datadist;
using namespace example;

namespace {

constexpr int kRounds = 4;

/* The prompt's part of a round: prefill, say where, wait. */
void
Prefill(const Cache &cache, uint64_t seed)
{
    const std::vector<uint64_t> blocks = {seed, seed + 8, seed + 4};
    for (size_t layer = 0; layer < kLayers; layer++) {
        ComputeLayer(cache, layer, blocks, seed);
    }
    std::vector<uint64_t> where = {static_cast<uint64_t>(cache.cache_id)};
    where.insert(where.end(), blocks.begin(), blocks.end());
    Say("prefilled", where);
    Hear("pulled");
}

/* The decoder's part: link, pull, check, unlink. */
void
Decode(LlmDataDist &dist, const Cache &cache, const ClusterInfo &peer, uint64_t seed)
{
    const std::vector<uint64_t> where = Hear("prefilled");
    if (where.size() != 4) {
        Fail("expected a cache and three blocks");
    }
    std::vector<Status> rets;
    Require(dist.LinkLlmClusters({peer}, rets, 5000), "LinkLlmClusters");
    Clear(cache);
    CacheIndex source{};
    source.cluster_id = peer.remote_cluster_id;
    source.cache_id = static_cast<int64_t>(where[0]);
    const std::vector<uint64_t> own_blocks = {0, 1, 2};
    Require(dist.PullKvBlocks(source, cache, {where[1], where[2], where[3]}, own_blocks),
            "PullKvBlocks");
    Verify(cache, own_blocks, seed);

    /* With a link there is no other role. */
    if (dist.SetRole(LlmRole::kMix) != LLM_EXIST_LINK) {
        Fail("SetRole beside a link");
    }
    Require(dist.UnlinkLlmClusters({peer}, rets, 5000), "UnlinkLlmClusters");
    Say("pulled");
}

} // namespace

int
main(int argc, char **argv)
{
    const std::string which = argc == 4 ? argv[1] : "";
    if (which != "first" && which != "second") {
        Fail("usage: role_switch first|second OWN_IP:PORT PEER_IP:PORT", 2);
    }
    const bool is_first = which == "first";

    /* Mix: neither prompt nor decoder yet. */
    LlmDataDist dist(is_first ? 1 : 2, LlmRole::kMix);
    std::map<AscendString, AscendString> options;
    options[OPTION_DEVICE_ID] = "0";
    options[OPTION_ENABLE_SET_ROLE] = "1";
    Require(dist.Initialize(options), "Initialize");
    Cache cache;
    Require(dist.AllocateCache(PagedCacheDesc(), cache), "AllocateCache");

    /* Only the decoder of a round uses it, but it never changes. */
    ClusterInfo peer;
    peer.remote_cluster_id = is_first ? 2 : 1;
    peer.remote_ip_infos.push_back(ParseAddress(argv[3]));
    peer.local_ip_infos.push_back(ParseAddress(argv[2]));
    peer.local_ip_infos[0].port = 0; /* the source port doesn't matter */

    for (int round = 0; round < kRounds; round++) {
        const uint64_t seed = static_cast<uint64_t>(round) + 1;
        if (is_first == (round % 2 == 0)) {
            Require(dist.SetRole(LlmRole::kPrompt, {{OPTION_LISTEN_IP_INFO, argv[2]}}),
                    "SetRole to Prompt", 3);
            Prefill(cache, seed);
        } else {
            Require(dist.SetRole(LlmRole::kDecoder), "SetRole to Decoder");
            Decode(dist, cache, peer, seed);
        }
        Tell(which + ": round " + std::to_string(round) + " done");
    }
    Require(dist.DeallocateCache(cache.cache_id), "DeallocateCache");
    dist.Finalize();
    Tell(which + ": ok");
    return 0;
}

/*
 * transfer_class.cc - how serving engines wrap the class: an instance per worker, known by where it
 * listens, and links that are made and removed as instances come and go, always from the own listening
 * port as the programs believe.
 *
 *     transfer_class pull|push|push_back|mix prefill|decode OWN_IP:PORT PEER_IP:PORT ROUNDS
 *
 * pull: decode links and pulls; push: prefill links and pushes; push_back: decode, which doesn't listen,
 * links, and prefill pushes; mix: the same, between two that listen and have no role.  Each round links,
 * unlinks and links again five times in a row, moves all layers, and unlinks.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include <memory>

#include "client.h"

using llm_datadist::LlmRole;

namespace client {

constexpr size_t kLayers = 3;
constexpr int64_t kBlocks = 6;
constexpr int64_t kWords = 40; /* of a block */
constexpr int kRelinks = 5;
constexpr int32_t kLinkMillis = 60000;
constexpr int32_t kUnlinkMillis = 1000;

/* One tensor of one layer, a cache of its own. */
struct Tensor {
    std::vector<uint16_t> memory;
    llm_datadist::Cache cache;
};

uint64_t
ClusterId(const Place &place)
{
    uint64_t id = 0;
    for (const char c : place.ip) {
        id = id * 31 + static_cast<unsigned char>(c);
    }
    return id << 16 | place.port;
}

class Transfer {
public:
    Transfer(const Place &own, LlmRole role)
        : own_(own), dist_(std::make_shared<llm_datadist::LlmDataDist>(ClusterId(own), role))
    {
    }

    void Initialize(bool listens)
    {
        std::map<ge::AscendString, ge::AscendString> options;
        options[llm_datadist::OPTION_DEVICE_ID] = std::to_string(0).c_str();
        if (listens) {
            options[llm_datadist::OPTION_LISTEN_IP_INFO] = Text(own_).c_str();
        }
        Require(dist_->Initialize(options), "Initialize", kAddressTaken);
    }

    /* K and V of every layer, tensor by tensor. */
    void RegisterLayers()
    {
        tensors_.resize(2 * kLayers);
        for (Tensor &tensor : tensors_) {
            tensor.memory.assign(kBlocks * kWords, 0);
            const uintptr_t addr = reinterpret_cast<uintptr_t>(tensor.memory.data());
            tensor.cache.tensor_addrs = {addr};
            llm_datadist::CacheDesc &desc = tensor.cache.cache_desc;
            desc.num_tensors = 1;
            desc.data_type = ge::DT_BF16;
            desc.shape = {kBlocks, kWords};
            Require(dist_->RegisterKvCache(desc, {addr}, {}, tensor.cache.cache_id),
                    "RegisterKvCache", kAddressTaken);
        }
    }

    void Link(const Place &peer)
    {
        std::vector<llm_datadist::Status> rets;
        Require(dist_->LinkLlmClusters({Cluster(peer)}, rets, kLinkMillis), "LinkLlmClusters");
    }

    void Unlink(const Place &peer, bool force)
    {
        std::vector<llm_datadist::Status> rets;
        Require(dist_->UnlinkLlmClusters({Cluster(peer)}, rets, kUnlinkMillis, force),
                "UnlinkLlmClusters");
    }

    void Pull(const Place &from, const std::vector<uint64_t> &src, const std::vector<uint64_t> &dst)
    {
        for (const Tensor &tensor : tensors_) {
            llm_datadist::CacheIndex index{ClusterId(from), tensor.cache.cache_id, 0, {0}};
            Require(dist_->PullKvBlocks(index, tensor.cache, src, dst, OneLayer()), "PullKvBlocks");
        }
    }

    void Push(const Place &to, const std::vector<uint64_t> &src, const std::vector<uint64_t> &dst)
    {
        for (const Tensor &tensor : tensors_) {
            llm_datadist::CacheIndex index{ClusterId(to), tensor.cache.cache_id, 0, {0}};
            Require(dist_->PushKvBlocks(tensor.cache, index, src, dst, OneLayer()), "PushKvBlocks");
        }
    }

    /* What round `round` computes for block number `place` of a sequence. */
    void Compute(const std::vector<uint64_t> &blocks, int round)
    {
        ForEachWord(blocks, [round](uint16_t &word, size_t i) { word = Word(round, i); });
    }

    void Verify(const std::vector<uint64_t> &blocks, int round)
    {
        ForEachWord(blocks, [round](uint16_t &word, size_t i) {
            Expect(word == Word(round, i),
                   "word " + std::to_string(i) + " of round " + std::to_string(round));
        });
    }

    void Finalize()
    {
        dist_->Finalize();
    }

private:
    static uint16_t Word(int round, size_t i)
    {
        return static_cast<uint16_t>(static_cast<size_t>(round) * 7919 + i);
    }

    template <typename Visit> void ForEachWord(const std::vector<uint64_t> &blocks, Visit visit)
    {
        size_t i = 0;
        for (Tensor &tensor : tensors_) {
            for (const uint64_t block : blocks) {
                for (size_t word = 0; word < static_cast<size_t>(kWords); word++) {
                    visit(tensor.memory[block * kWords + word], i++);
                }
            }
        }
    }

    static llm_datadist::KvCacheExtParam OneLayer()
    {
        llm_datadist::KvCacheExtParam param{};
        param.src_layer_range = {0, 0};
        param.dst_layer_range = {0, 0};
        param.tensor_num_per_layer = 1;
        return param;
    }

    llm_datadist::ClusterInfo Cluster(const Place &peer) const
    {
        llm_datadist::ClusterInfo cluster;
        cluster.remote_cluster_id = ClusterId(peer);
        cluster.local_ip_infos.push_back(Ip(own_));
        cluster.remote_ip_infos.push_back(Ip(peer));
        return cluster;
    }

    Place own_;
    std::shared_ptr<llm_datadist::LlmDataDist> dist_;
    std::vector<Tensor> tensors_;
};

} // namespace client

using namespace client;

int
main(int argc, char **argv)
{
    Expect(argc == 6, "usage: see the head of transfer_class.cc");
    const std::string mode = argv[1];
    const bool prefill = std::string(argv[2]) == "prefill";
    const Place own = ParsePlace(argv[3]);
    const Place peer = ParsePlace(argv[4]);
    const int rounds = std::stoi(argv[5]);
    const bool links = prefill == (mode == "push");
    const bool moves = prefill == (mode != "pull");
    const std::vector<uint64_t> in_prefill{4, 0, 1};
    const std::vector<uint64_t> in_decode{2, 3, 5};

    const LlmRole role = prefill ? LlmRole::kPrompt : LlmRole::kDecoder;
    Transfer transfer(own, mode == "mix" ? LlmRole::kMix : role);
    transfer.Initialize(prefill || mode != "push_back");
    transfer.RegisterLayers();
    Say("open");
    Hear("open");
    for (int round = 0; round < rounds; round++) {
        if (prefill) {
            transfer.Compute(in_prefill, round);
        }
        if (links) {
            transfer.Link(peer);
            for (int i = 0; i < kRelinks; i++) {
                transfer.Unlink(peer, i % 2 != 0);
                transfer.Link(peer);
            }
        }
        Say("linked");
        Hear("linked");
        if (moves) {
            prefill ? transfer.Push(peer, in_prefill, in_decode)
                    : transfer.Pull(peer, in_prefill, in_decode);
        }
        Say("moved");
        Hear("moved");
        if (!prefill) {
            transfer.Verify(in_decode, round);
        }
        if (links) {
            transfer.Unlink(peer, false);
        }
    }
    Say("unlinked");
    Hear("unlinked");
    transfer.Finalize();
    return 0;
}

/*
 * two_instances.cc - a prompt and a decoder in one process, through the class, on every transport.
 *
 *     two_instances [TRANSPORTS]     default: auto
 *
 * What the statuses mean in detail is tested on the C API; here it is that every argument arrives
 * there and every result comes back.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include <cstring>

#include "check.h"

using namespace llm_datadist;

namespace {

constexpr uint64_t kPromptId = 0xA000000000000001;
constexpr uint64_t kDecoderId = 2;

std::string transports = "auto";

check::Options
BaseOptions()
{
    return {{OPTION_DEVICE_ID, "0"},
            {OPTION_ENABLE_SET_ROLE, "1"},
            {OPTION_TRANSPORTS, transports.c_str()},
            {OPTION_SYNC_CACHE_WAIT_TIME, "10000"}};
}

uint16_t
StartPrompt(LlmDataDist &prompt, check::Options options = BaseOptions())
{
    return check::Listen([&](const char *address) {
        options[OPTION_LISTEN_IP_INFO] = address;
        return prompt.Initialize(options);
    });
}

/* Small blocks of odd bytes: 6 slots of 3 * 5 bytes in each of 4 tensors. */
constexpr size_t kSlots = 6;
constexpr size_t kStride = 15;
constexpr size_t kTensors = 4;

CacheDesc
SmallDesc()
{
    CacheDesc desc;
    desc.num_tensors = kTensors;
    desc.data_type = DT_INT8;
    desc.shape = {kSlots, 3, 5};
    return desc;
}

uint8_t *
Slot(const Cache &cache, size_t tensor, size_t slot)
{
    return reinterpret_cast<uint8_t *>(cache.tensor_addrs.at(tensor)) + slot * kStride;
}

uint8_t
Pattern(uint8_t seed, size_t tensor, size_t slot)
{
    return static_cast<uint8_t>(seed + tensor * 16 + slot);
}

void
Fill(const Cache &cache, uint8_t seed)
{
    for (size_t tensor = 0; tensor < cache.tensor_addrs.size(); tensor++) {
        for (size_t slot = 0; slot < kSlots; slot++) {
            std::memset(Slot(cache, tensor, slot), Pattern(seed, tensor, slot), kStride);
        }
    }
}

/* The number of bytes of a slot that have the value, from its first byte on. */
size_t
Run(const Cache &cache, size_t tensor, size_t slot, uint8_t value)
{
    size_t n = 0;
    while (n < kStride && Slot(cache, tensor, slot)[n] == value) {
        n++;
    }
    return n;
}

#define CHECK_SLOT(cache, tensor, slot, value)                                                     \
    CHECK_EQ(Run((cache), (tensor), (slot), (value)), kStride)

/* A prompt with a cache of pattern 100 and a decoder with one of pattern 0, linked. */
struct Pair {
    Pair() : prompt(kPromptId, LlmRole::kPrompt), decoder(kDecoderId, LlmRole::kDecoder)
    {
        port = StartPrompt(prompt);
        REQUIRE_EQ(decoder.Initialize(BaseOptions()), LLM_SUCCESS);
        REQUIRE_EQ(prompt.AllocateCache(SmallDesc(), prompt_cache), LLM_SUCCESS);
        REQUIRE_EQ(decoder.AllocateCache(SmallDesc(), decoder_cache), LLM_SUCCESS);
        Fill(prompt_cache, 100);
        Fill(decoder_cache, 0);
        std::vector<Status> rets;
        REQUIRE_EQ(decoder.LinkLlmClusters({check::ClusterAt(kPromptId, port)}, rets, 5000),
                   LLM_SUCCESS);
        REQUIRE_EQ(rets.size(), 1);
        CHECK_EQ(rets[0], LLM_SUCCESS);
    }

    CacheIndex InPrompt(uint32_t batch_index = 0) const
    {
        return {kPromptId, prompt_cache.cache_id, batch_index, {0}};
    }
    CacheIndex InDecoder(uint32_t batch_index = 0) const
    {
        return {kDecoderId, decoder_cache.cache_id, batch_index, {0}};
    }

    LlmDataDist prompt;
    LlmDataDist decoder;
    Cache prompt_cache;
    Cache decoder_cache;
    uint16_t port = 0;
};

void
ObjectsCanBeInitializedAgain()
{
    LlmDataDist dist(kPromptId, LlmRole::kPrompt);
    CHECK_EQ(dist.Initialize({{OPTION_DEVICE_ID, "0"}}), LLM_PARAM_INVALID);
    CHECK_EQ(dist.DeallocateCache(1), LLM_FAILED);
    const uint16_t port = StartPrompt(dist);
    CHECK_EQ(dist.Initialize({}), LLM_SUCCESS);
    Cache cache;
    CHECK_EQ(dist.AllocateCache(SmallDesc(), cache), LLM_SUCCESS);
    CHECK_EQ(cache.cache_id, 1);
    dist.Finalize();
    dist.Finalize();
    CHECK_EQ(dist.AllocateCache(SmallDesc(), cache), LLM_FAILED);
    CHECK(StartPrompt(dist) != 0);
    CHECK_EQ(dist.AllocateCache(SmallDesc(), cache), LLM_SUCCESS);
    CHECK_EQ(cache.cache_id, 1);
    CHECK(port != 0);

    LlmDataDist wrong(kPromptId, LlmRole::kEnd);
    CHECK_EQ(wrong.Initialize({{OPTION_DEVICE_ID, "0"}}), LLM_PARAM_INVALID);
    LlmDataDist strange(kPromptId, static_cast<LlmRole>(-77));
    CHECK_EQ(strange.Initialize({{OPTION_DEVICE_ID, "0"}}), LLM_PARAM_INVALID);
}

void
AllocateReplacesOnSuccessAndOnlyThen()
{
    LlmDataDist dist(3, LlmRole::kMix);
    REQUIRE_EQ(dist.Initialize(BaseOptions()), LLM_SUCCESS);

    Cache cache;
    cache.cache_id = 99;
    cache.tensor_addrs = {1, 2, 3};
    cache.cache_desc.shape = {7};
    CacheDesc bad = SmallDesc();
    bad.placement = CachePlacement::kHost;
    CHECK_EQ(dist.AllocateCache(bad, cache), LLM_PARAM_INVALID);
    bad = SmallDesc();
    bad.num_tensors = 0;
    CHECK_EQ(dist.AllocateCache(bad, cache), LLM_PARAM_INVALID);
    bad = SmallDesc();
    bad.shape = {};
    CHECK_EQ(dist.AllocateCache(bad, cache), LLM_PARAM_INVALID);
    bad = SmallDesc();
    bad.data_type = ge::DT_MAX;
    CHECK_EQ(dist.AllocateCache(bad, cache), LLM_PARAM_INVALID);
    CHECK_EQ(cache.cache_id, 99);
    CHECK_EQ(cache.tensor_addrs.size(), 3);
    CHECK_EQ(cache.cache_desc.shape.size(), 1);

    CHECK_EQ(dist.AllocateCache(SmallDesc(), cache), LLM_SUCCESS);
    CHECK(cache.cache_id >= 1 && cache.cache_id != 99);
    REQUIRE_EQ(cache.tensor_addrs.size(), kTensors);
    for (uintptr_t address : cache.tensor_addrs) {
        CHECK(address != 0);
        CHECK_EQ(address % 512, 0);
    }
    CHECK_EQ(cache.cache_desc.num_tensors, kTensors);
    CHECK_EQ(cache.cache_desc.data_type, DT_INT8);
    REQUIRE_EQ(cache.cache_desc.shape.size(), 3);
    CHECK_EQ(cache.cache_desc.shape[2], 5);

    /* The description may be the one inside the cache. */
    const int64_t first_id = cache.cache_id;
    CHECK_EQ(dist.AllocateCache(cache.cache_desc, cache), LLM_SUCCESS);
    CHECK(cache.cache_id != first_id);
    CHECK_EQ(cache.tensor_addrs.size(), kTensors);
    CHECK_EQ(cache.cache_desc.shape.size(), 3);

    /* As many tensors as fit in no pool: a status, at the price of address space. */
    CacheDesc huge = SmallDesc();
    huge.num_tensors = 10000000;
    huge.shape = {1, int64_t{1} << 40};
    CHECK_EQ(dist.AllocateCache(huge, cache), LLM_DEVICE_OUT_OF_MEMORY);
    huge.placement = CachePlacement::kHost;
    CHECK_EQ(dist.AllocateCache(huge, cache), LLM_PARAM_INVALID);

    CHECK_EQ(dist.DeallocateCache(cache.cache_id), LLM_SUCCESS);
    CHECK_EQ(dist.DeallocateCache(cache.cache_id), LLM_KV_CACHE_NOT_EXIST);
    CHECK_EQ(dist.DeallocateCache(first_id), LLM_SUCCESS);
    CHECK_EQ(dist.DeallocateCache(-1), LLM_KV_CACHE_NOT_EXIST);
}

void
CachesOfSeveralDevicesAreDeviceMajor()
{
    check::Options options = BaseOptions();
    options[OPTION_DEVICE_ID] = "0;1;2";
    LlmDataDist dist(3, LlmRole::kDecoder);
    REQUIRE_EQ(dist.Initialize(options), LLM_SUCCESS);
    CHECK_EQ(dist.Initialize(BaseOptions()), LLM_SUCCESS); /* its device list doesn't count */
    Cache cache;
    CHECK_EQ(dist.AllocateCache(SmallDesc(), cache), LLM_SUCCESS);
    CHECK_EQ(cache.tensor_addrs.size(), 3 * kTensors);
    dist.Finalize();
    REQUIRE_EQ(dist.Initialize(BaseOptions()), LLM_SUCCESS);
    CHECK_EQ(dist.AllocateCache(SmallDesc(), cache), LLM_SUCCESS);
    CHECK_EQ(cache.tensor_addrs.size(), kTensors);
}

void
SeveralDevicesPullFromTheirLikes()
{
    check::Options options = BaseOptions();
    options[OPTION_DEVICE_ID] = "0;1";
    LlmDataDist prompt(kPromptId, LlmRole::kPrompt);
    LlmDataDist decoder(kDecoderId, LlmRole::kDecoder);
    const uint16_t port = check::Listen([&](const char *address) {
        options[OPTION_LISTEN_IP_INFO] = (std::string(address) + ";" + address).c_str();
        return prompt.Initialize(options);
    });
    REQUIRE_EQ(decoder.Initialize(options), LLM_SUCCESS);
    Cache source;
    Cache destination;
    REQUIRE_EQ(prompt.AllocateCache(SmallDesc(), source), LLM_SUCCESS);
    REQUIRE_EQ(decoder.AllocateCache(SmallDesc(), destination), LLM_SUCCESS);
    Fill(source, 100);
    Fill(destination, 0);
    std::vector<Status> rets;
    CHECK_EQ(decoder.LinkLlmClusters({check::ClusterAt(kPromptId, port)}, rets),
             LLM_PARAM_INVALID); /* one address, two devices */
    CHECK_EQ(rets.size(), 0);
    REQUIRE_EQ(decoder.LinkLlmClusters({check::ClusterAt(kPromptId, port, 2)}, rets, 5000),
               LLM_SUCCESS);
    const CacheIndex index{kPromptId, source.cache_id, 0, {0}};
    CHECK_EQ(decoder.PullKvBlocks(index, destination, {1, 2}, {5, 0}), LLM_SUCCESS);
    for (size_t tensor = 0; tensor < 2 * kTensors; tensor++) {
        CHECK_SLOT(destination, tensor, 5, Pattern(100, tensor, 1));
        CHECK_SLOT(destination, tensor, 0, Pattern(100, tensor, 2));
    }
    const CacheIndex back{kDecoderId, destination.cache_id, 0, {0}};
    CHECK_EQ(prompt.PushKvBlocks(source, back, {1}, {1}), LLM_FEATURE_NOT_ENABLED);
}

void
RetsAreLeftAloneOrReplaced()
{
    LlmDataDist prompt(kPromptId, LlmRole::kPrompt);
    LlmDataDist decoder(kDecoderId, LlmRole::kDecoder);
    const uint16_t port = StartPrompt(prompt);
    REQUIRE_EQ(decoder.Initialize(BaseOptions()), LLM_SUCCESS);
    const std::vector<Status> before = {7, 8, 9};
    const ClusterInfo good = check::ClusterAt(kPromptId, port);

    std::vector<Status> rets = before;
    CHECK_EQ(decoder.LinkLlmClusters({good}, rets, 0), LLM_PARAM_INVALID);
    CHECK(rets == before);
    ClusterInfo no_ip = good;
    no_ip.remote_ip_infos[0].ip = "1.2.3";
    CHECK_EQ(decoder.LinkLlmClusters({no_ip}, rets), LLM_PARAM_INVALID);
    CHECK(rets == before);
    CHECK_EQ(prompt.LinkLlmClusters({good}, rets), LLM_PARAM_INVALID);
    CHECK(rets == before);
    CHECK_EQ(decoder.UnlinkLlmClusters({good}, rets, -1), LLM_PARAM_INVALID);
    CHECK(rets == before);

    CHECK_EQ(decoder.LinkLlmClusters({}, rets), LLM_PARAM_INVALID);
    CHECK_EQ(rets.size(), 0);
    rets = before;
    CHECK_EQ(decoder.LinkLlmClusters(std::vector<ClusterInfo>(17, good), rets),
             LLM_CLUSTER_NUM_EXCEED_LIMIT);
    CHECK_EQ(rets.size(), 0);

    /* One result per cluster: linked, unreachable. */
    rets = before;
    const ClusterInfo nobody = check::ClusterAt(55, check::FreePort());
    CHECK_EQ(decoder.LinkLlmClusters({good, nobody}, rets, 3000), LLM_LINK_FAILED);
    REQUIRE_EQ(rets.size(), 2);
    CHECK_EQ(rets[0], LLM_SUCCESS);
    CHECK_EQ(rets[1], LLM_LINK_FAILED);

    CHECK_EQ(decoder.LinkLlmClusters({good}, rets, 3000), LLM_ALREADY_LINK);
    REQUIRE_EQ(rets.size(), 1);
    CHECK_EQ(rets[0], LLM_ALREADY_LINK);

    CHECK_EQ(decoder.UnlinkLlmClusters({good, nobody, good}, rets, 3000), LLM_UNLINK_FAILED);
    REQUIRE_EQ(rets.size(), 3);
    CHECK_EQ(rets[0], LLM_SUCCESS);
    CHECK_EQ(rets[1], LLM_NOT_YET_LINK);
    CHECK_EQ(rets[2], LLM_REPEAT_REQUEST);

    /* Forced: this end only. */
    CHECK_EQ(decoder.LinkLlmClusters({good}, rets, 3000), LLM_SUCCESS);
    CHECK_EQ(decoder.UnlinkLlmClusters({good}, rets, 3000, true), LLM_SUCCESS);
    CHECK_EQ(decoder.UnlinkLlmClusters({good}, rets), LLM_SUCCESS);
    REQUIRE_EQ(rets.size(), 1);
    CHECK_EQ(rets[0], LLM_NOT_YET_LINK);
}

void
PullMovesWhatTheArgumentsSay()
{
    Pair pair;

    CHECK_EQ(pair.decoder.PullKvCache(pair.InPrompt(4), pair.decoder_cache, 2), LLM_SUCCESS);
    for (size_t tensor = 0; tensor < kTensors; tensor++) {
        CHECK_SLOT(pair.decoder_cache, tensor, 2, Pattern(100, tensor, 4));
        CHECK_SLOT(pair.decoder_cache, tensor, 1, Pattern(0, tensor, 1));
        CHECK_SLOT(pair.decoder_cache, tensor, 3, Pattern(0, tensor, 3));
    }

    /* A part of a slot. */
    CHECK_EQ(pair.decoder.PullKvCache(pair.InPrompt(1), pair.decoder_cache, 0, 4), LLM_SUCCESS);
    CHECK_EQ(Run(pair.decoder_cache, 3, 0, Pattern(100, 3, 1)), 4);
    CHECK_EQ(Slot(pair.decoder_cache, 3, 0)[4], Pattern(0, 3, 0));

    /* Only the id of the destination counts. */
    Cache by_id;
    by_id.cache_id = pair.decoder_cache.cache_id;
    by_id.cache_desc.num_tensors = 12345;
    by_id.tensor_addrs = {8};
    Fill(pair.decoder_cache, 0);
    CHECK_EQ(pair.decoder.PullKvBlocks(pair.InPrompt(), by_id, {5, 0, 5}, {1, 2, 3}), LLM_SUCCESS);
    for (size_t tensor = 0; tensor < kTensors; tensor++) {
        CHECK_SLOT(pair.decoder_cache, tensor, 0, Pattern(0, tensor, 0));
        CHECK_SLOT(pair.decoder_cache, tensor, 1, Pattern(100, tensor, 5));
        CHECK_SLOT(pair.decoder_cache, tensor, 2, Pattern(100, tensor, 0));
        CHECK_SLOT(pair.decoder_cache, tensor, 3, Pattern(100, tensor, 5));
    }

    /* Layers: of 4 tensors, with 1 to a layer, 0..1 to 2..3. */
    Fill(pair.decoder_cache, 0);
    KvCacheExtParam param;
    param.src_layer_range = {0, 1};
    param.dst_layer_range = {2, 3};
    param.tensor_num_per_layer = 1;
    CHECK_EQ(pair.decoder.PullKvBlocks(pair.InPrompt(), by_id, {3}, {3}, param), LLM_SUCCESS);
    CHECK_SLOT(pair.decoder_cache, 0, 3, Pattern(0, 0, 3));
    CHECK_SLOT(pair.decoder_cache, 1, 3, Pattern(0, 1, 3));
    CHECK_SLOT(pair.decoder_cache, 2, 3, Pattern(100, 0, 3));
    CHECK_SLOT(pair.decoder_cache, 3, 3, Pattern(100, 1, 3));
    param.tensor_num_per_layer = 2;
    CHECK_EQ(pair.decoder.PullKvBlocks(pair.InPrompt(), by_id, {3}, {3}, param),
             LLM_PARAM_INVALID); /* now there are two layers only */
    CHECK_EQ(pair.decoder.PullKvCache(pair.InPrompt(), by_id, 0, -1, param), LLM_PARAM_INVALID);

    /* Statuses come back as they are. */
    const CacheIndex nowhere{kPromptId, 777, 0, {0}};
    CHECK_EQ(pair.decoder.PullKvCache(nowhere, by_id), LLM_KV_CACHE_NOT_EXIST);
    const CacheIndex unlinked{kPromptId + 1, 1, 0, {0}};
    CHECK_EQ(pair.decoder.PullKvCache(unlinked, by_id), LLM_NOT_YET_LINK);
    CHECK_EQ(pair.decoder.PullKvCache(pair.InPrompt(), Cache()), LLM_KV_CACHE_NOT_EXIST);
    CHECK_EQ(pair.decoder.PullKvCache(pair.InPrompt(), by_id, 0, 0), LLM_PARAM_INVALID);
    CHECK_EQ(pair.decoder.PullKvCache(pair.InPrompt(), by_id, kSlots), LLM_PARAM_INVALID);
    CHECK_EQ(pair.decoder.PullKvBlocks(pair.InPrompt(), by_id, {}, {}), LLM_PARAM_INVALID);
    CHECK_EQ(pair.decoder.PullKvBlocks(pair.InPrompt(), by_id, {1}, {1, 2}), LLM_PARAM_INVALID);
    CHECK_EQ(pair.prompt.PullKvCache(pair.InDecoder(), pair.prompt_cache), LLM_PARAM_INVALID);
}

void
PushMovesWhatTheArgumentsSay()
{
    Pair pair;

    CHECK_EQ(pair.prompt.PushKvCache(pair.prompt_cache, pair.InDecoder(5), 3), LLM_SUCCESS);
    for (size_t tensor = 0; tensor < kTensors; tensor++) {
        CHECK_SLOT(pair.decoder_cache, tensor, 5, Pattern(100, tensor, 3));
        CHECK_SLOT(pair.decoder_cache, tensor, 4, Pattern(0, tensor, 4));
    }

    CHECK_EQ(pair.prompt.PushKvBlocks(pair.prompt_cache, pair.InDecoder(), {0, 5}, {1, 0}),
             LLM_SUCCESS);
    for (size_t tensor = 0; tensor < kTensors; tensor++) {
        CHECK_SLOT(pair.decoder_cache, tensor, 1, Pattern(100, tensor, 0));
        CHECK_SLOT(pair.decoder_cache, tensor, 0, Pattern(100, tensor, 5));
    }

    /* The second of two layers to the first. */
    Fill(pair.decoder_cache, 0);
    KvCacheExtParam param;
    param.src_layer_range = {1, 1};
    param.dst_layer_range = {0, 0};
    CHECK_EQ(pair.prompt.PushKvBlocks(pair.prompt_cache, pair.InDecoder(), {2}, {2}, param),
             LLM_SUCCESS);
    CHECK_SLOT(pair.decoder_cache, 0, 2, Pattern(100, 2, 2));
    CHECK_SLOT(pair.decoder_cache, 1, 2, Pattern(100, 3, 2));
    CHECK_SLOT(pair.decoder_cache, 2, 2, Pattern(0, 2, 2));

    Cache on_host = pair.prompt_cache;
    on_host.cache_desc.placement = CachePlacement::kHost;
    CHECK_EQ(pair.prompt.PushKvCache(on_host, pair.InDecoder()), LLM_PARAM_INVALID);
    CHECK_EQ(pair.prompt.PushKvCache(pair.prompt_cache, pair.InDecoder(), 0, 5), LLM_PARAM_INVALID);
    CHECK_EQ(pair.prompt.PushKvBlocks(pair.prompt_cache, pair.InDecoder(1), {0}, {0}),
             LLM_PARAM_INVALID);
    CHECK_EQ(pair.decoder.PushKvCache(pair.decoder_cache, pair.InPrompt()), LLM_PARAM_INVALID);
    const CacheIndex missing{kDecoderId, 777, 0, {0}};
    CHECK_EQ(pair.prompt.PushKvCache(pair.prompt_cache, missing), LLM_KV_CACHE_NOT_EXIST);
    CHECK_EQ(pair.prompt.PushKvCache(pair.prompt_cache, pair.InDecoder()), LLM_SUCCESS);
}

void
CopiesWorkOnAddresses()
{
    LlmDataDist dist(3, LlmRole::kMix);
    REQUIRE_EQ(dist.Initialize(BaseOptions()), LLM_SUCCESS);
    Cache cache;
    REQUIRE_EQ(dist.AllocateCache(SmallDesc(), cache), LLM_SUCCESS);
    Fill(cache, 50);

    CHECK_EQ(dist.CopyKvCache(cache, cache, 1, 4), LLM_SUCCESS);
    CHECK_SLOT(cache, 2, 4, Pattern(50, 2, 1));
    CHECK_EQ(dist.CopyKvCache(cache, cache, 2, 5, 3, 4), LLM_SUCCESS);
    for (size_t i = 0; i < kStride; i++) {
        CHECK_EQ(Slot(cache, 0, 5)[i], Pattern(50, 0, i >= 3 && i < 7 ? 2 : 5));
    }
    CHECK_EQ(dist.CopyKvCache(cache, cache, 0, 1, kStride), LLM_PARAM_INVALID);
    CHECK_EQ(dist.CopyKvCache(cache, cache, kSlots, 1), LLM_PARAM_INVALID);
    CHECK_EQ(dist.CopyKvCache(cache, cache, 0, 1, 0, -2), LLM_PARAM_INVALID);

    CHECK_EQ(dist.CopyKvBlocks(cache, cache, {0, 1}, {{2, 3}, {4, 5}}), LLM_SUCCESS);
    for (size_t tensor = 0; tensor < kTensors; tensor++) {
        CHECK_SLOT(cache, tensor, 2, Pattern(50, tensor, 0));
        CHECK_SLOT(cache, tensor, 3, Pattern(50, tensor, 1));
        CHECK_SLOT(cache, tensor, 4, Pattern(50, tensor, 0));
        CHECK_SLOT(cache, tensor, 5, Pattern(50, tensor, 1));
    }
    CHECK_EQ(dist.CopyKvBlocks(cache, cache, {}, {{}}), LLM_PARAM_INVALID);
    CHECK_EQ(dist.CopyKvBlocks(cache, cache, {0}, {}), LLM_PARAM_INVALID);
    CHECK_EQ(dist.CopyKvBlocks(cache, cache, {0}, {{1}, {}}), LLM_PARAM_INVALID);

    /* Swapping out to memory of the caller's, and in again. */
    std::vector<std::vector<uint8_t>> memory(kTensors, std::vector<uint8_t>(2 * kStride));
    Cache host;
    host.cache_desc = SmallDesc();
    host.cache_desc.placement = CachePlacement::kHost;
    host.cache_desc.shape[0] = 2;
    for (std::vector<uint8_t> &tensor : memory) {
        host.tensor_addrs.push_back(reinterpret_cast<uintptr_t>(tensor.data()));
    }
    CHECK_EQ(dist.CopyKvBlocks(cache, host, {0, 1}, {{1, 0}}), LLM_SUCCESS);
    CHECK_SLOT(host, 3, 1, Pattern(50, 3, 0));
    CHECK_SLOT(host, 3, 0, Pattern(50, 3, 1));
    Fill(cache, 0);
    CHECK_EQ(dist.CopyKvBlocks(host, cache, {1}, {{4}}), LLM_SUCCESS);
    CHECK_SLOT(cache, 3, 4, Pattern(50, 3, 0));
    CHECK_EQ(dist.CopyKvBlocks(host, host, {1}, {{0}}), LLM_PARAM_INVALID);
    CHECK_EQ(dist.CopyKvCache(host, cache), LLM_PARAM_INVALID);
    CHECK_EQ(dist.CopyKvCache(cache, host, 4, 0), LLM_SUCCESS);
    CHECK_SLOT(host, 3, 0, Pattern(50, 3, 0));
    host.tensor_addrs.pop_back();
    CHECK_EQ(dist.CopyKvCache(cache, host, 4, 0), LLM_PARAM_INVALID);
}

void
RolesChangeWithTheOptionsOfTheCall()
{
    Pair pair;
    std::vector<Status> rets;
    CHECK_EQ(pair.decoder.SetRole(LlmRole::kMix), LLM_EXIST_LINK);
    CHECK_EQ(pair.decoder.SetRole(LlmRole::kEnd), LLM_PARAM_INVALID);
    CHECK_EQ(pair.decoder.UnlinkLlmClusters({check::ClusterAt(kPromptId, pair.port)}, rets, 5000),
             LLM_SUCCESS);

    CHECK_EQ(pair.prompt.SetRole(LlmRole::kDecoder), LLM_SUCCESS);
    CHECK_EQ(pair.decoder.SetRole(LlmRole::kPrompt), LLM_PARAM_INVALID);
    const uint16_t port = check::Listen([&](const char *address) {
        return pair.decoder.SetRole(LlmRole::kPrompt, {{OPTION_LISTEN_IP_INFO, address}});
    });

    /* The other way about. */
    CHECK_EQ(pair.prompt.LinkLlmClusters({check::ClusterAt(kDecoderId, port)}, rets, 5000),
             LLM_SUCCESS);
    Fill(pair.decoder_cache, 7);
    CHECK_EQ(pair.prompt.PullKvBlocks(pair.InDecoder(), pair.prompt_cache, {1}, {0}), LLM_SUCCESS);
    CHECK_SLOT(pair.prompt_cache, 3, 0, Pattern(7, 3, 1));

    LlmDataDist fixed(9, LlmRole::kMix);
    REQUIRE_EQ(fixed.Initialize({{OPTION_DEVICE_ID, "0"}}), LLM_SUCCESS);
    CHECK_EQ(fixed.SetRole(LlmRole::kDecoder), LLM_FEATURE_NOT_ENABLED);
}

/* Addresses of peers that are gone end in a status; the object lives on. */
void
PeersThatFinalizeLeaveAStatus()
{
    Pair pair;
    pair.prompt.Finalize();
    CHECK(pair.decoder.PullKvCache(pair.InPrompt(), pair.decoder_cache) != LLM_SUCCESS);
    std::vector<Status> rets;
    CHECK_EQ(
        pair.decoder.UnlinkLlmClusters({check::ClusterAt(kPromptId, pair.port)}, rets, 5000, true),
        LLM_SUCCESS);
    REQUIRE_EQ(rets.size(), 1);
    CHECK_EQ(rets[0], LLM_SUCCESS);
}

} // namespace

int
main(int argc, char **argv)
{
    if (argc > 1) {
        transports = argv[1];
    }
    ObjectsCanBeInitializedAgain();
    AllocateReplacesOnSuccessAndOnlyThen();
    CachesOfSeveralDevicesAreDeviceMajor();
    SeveralDevicesPullFromTheirLikes();
    RetsAreLeftAloneOrReplaced();
    PullMovesWhatTheArgumentsSay();
    PushMovesWhatTheArgumentsSay();
    CopiesWorkOnAddresses();
    RolesChangeWithTheOptionsOfTheCall();
    PeersThatFinalizeLeaveAStatus();
    return check::Result();
}

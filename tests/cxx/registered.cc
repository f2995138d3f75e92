/*
 * registered.cc - memory that the program owns (§13.2), through the class, on every transport:
 * registered before and after linking, one cache per tensor or one for all, pulled and pushed from
 * either side.
 *
 *     registered [TRANSPORTS]     default: auto
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include <atomic>
#include <thread>

#include "check.h"

using namespace llm_datadist;

namespace {

constexpr uint64_t kServerId = 21;
constexpr uint64_t kClientId = 22;
constexpr size_t kBlocks = 8;
constexpr size_t kBlockBytes = 96;

std::string transports = "auto";

/* A tensor in memory of ours, at an odd address. */
struct Tensor {
    Tensor() : bytes(kBlocks * kBlockBytes + 1)
    {
    }

    uint8_t *Block(size_t block)
    {
        return bytes.data() + 1 + block * kBlockBytes;
    }
    uint64_t Address()
    {
        return reinterpret_cast<uintptr_t>(Block(0));
    }
    void Fill(uint8_t seed)
    {
        for (size_t i = 0; i < kBlocks * kBlockBytes; i++) {
            Block(0)[i] = static_cast<uint8_t>(seed + i / kBlockBytes);
        }
    }
    /* How many bytes of a block have the value, from the first on. */
    size_t Run(size_t block, int value)
    {
        size_t n = 0;
        while (n < kBlockBytes && Block(block)[n] == static_cast<uint8_t>(value)) {
            n++;
        }
        return n;
    }

    std::vector<uint8_t> bytes;
};

#define CHECK_BLOCK(tensor, block, value) CHECK_EQ((tensor).Run((block), (value)), kBlockBytes)

CacheDesc
Desc(uint32_t num_tensors)
{
    CacheDesc desc;
    desc.num_tensors = num_tensors;
    desc.data_type = DT_FLOAT16;
    desc.shape = {kBlocks, kBlockBytes / 2};
    return desc;
}

std::vector<uint64_t>
Addresses(std::vector<Tensor> &tensors)
{
    std::vector<uint64_t> addrs;
    for (Tensor &tensor : tensors) {
        addrs.push_back(tensor.Address());
    }
    return addrs;
}

/* All that later calls need to know of a registered cache. */
Cache
ById(int64_t cache_id)
{
    Cache cache;
    cache.cache_id = cache_id;
    return cache;
}

#pragma GCC diagnostic ignored "-Wmissing-field-initializers" /* CacheIndex{cluster, cache} */

/* Two clusters with four registered tensors each, linked. */
struct Pair {
    explicit Pair(const char *log_level = "warn")
        : server_tensors(4), client_tensors(4), server(kServerId, LlmRole::kPrompt),
          client(kClientId, LlmRole::kDecoder)
    {
        check::Options options = {{OPTION_DEVICE_ID, "0"},
                                  {OPTION_LOG_LEVEL, log_level},
                                  {OPTION_TRANSPORTS, transports.c_str()},
                                  {OPTION_SYNC_CACHE_WAIT_TIME, "10000"}};
        REQUIRE_EQ(client.Initialize(options), LLM_SUCCESS);
        port = check::Listen([&](const char *address) {
            options[OPTION_LISTEN_IP_INFO] = address;
            return server.Initialize(options);
        });
        for (Tensor &tensor : client_tensors) {
            tensor.Fill(0);
        }
        for (size_t i = 0; i < 4; i++) {
            server_tensors[i].Fill(static_cast<uint8_t>(100 + 16 * i));
        }
        REQUIRE_EQ(server.RegisterKvCache(Desc(4), Addresses(server_tensors), {}, server_cache),
                   LLM_SUCCESS);
        REQUIRE_EQ(client.RegisterKvCache(Desc(4), Addresses(client_tensors), {}, client_cache),
                   LLM_SUCCESS);
        std::vector<Status> rets;
        REQUIRE_EQ(client.LinkLlmClusters({check::ClusterAt(kServerId, port)}, rets, 5000),
                   LLM_SUCCESS);
    }

    std::vector<Tensor> server_tensors; /* outlive the clusters that they are registered with */
    std::vector<Tensor> client_tensors;
    LlmDataDist server;
    LlmDataDist client;
    int64_t server_cache = 0;
    int64_t client_cache = 0;
    uint16_t port = 0;
};

void
BadRegistrationsLeaveTheIdAlone()
{
    LlmDataDist dist(kClientId, LlmRole::kMix);
    std::vector<Tensor> tensors(2);
    const std::vector<uint64_t> addrs = Addresses(tensors);
    int64_t id = -7;
    CHECK_EQ(dist.RegisterKvCache(Desc(2), addrs, {}, id), LLM_FAILED);
    CHECK_EQ(dist.UnregisterKvCache(1), LLM_FAILED);
    REQUIRE_EQ(dist.Initialize({{OPTION_DEVICE_ID, "0"}}), LLM_SUCCESS);
    CHECK_EQ(dist.RegisterKvCache(Desc(2), {}, {}, id), LLM_PARAM_INVALID);
    CHECK_EQ(dist.RegisterKvCache(Desc(3), addrs, {}, id), LLM_PARAM_INVALID);
    CHECK_EQ(dist.RegisterKvCache(Desc(2), {addrs[0], 0}, {}, id), LLM_PARAM_INVALID);
    CacheDesc desc = Desc(2);
    desc.shape = {};
    CHECK_EQ(dist.RegisterKvCache(desc, addrs, {}, id), LLM_PARAM_INVALID);
    desc = Desc(2);
    desc.data_type = DT_UNDEFINED;
    CHECK_EQ(dist.RegisterKvCache(desc, addrs, {}, id), LLM_PARAM_INVALID);
    CHECK_EQ(id, -7);

    Cache cache;
    CHECK_EQ(dist.RegisterKvCache(Desc(2), addrs, {}, id), LLM_SUCCESS);
    CHECK(id >= 1);
    CHECK_EQ(dist.AllocateCache(Desc(1), cache), LLM_SUCCESS); /* a superset of version 2 */

    /* Twice the same memory, and pieces of it, of either placement. */
    int64_t second = 0;
    CHECK_EQ(dist.RegisterKvCache(Desc(2), addrs, {}, second), LLM_SUCCESS);
    CHECK(second > id);
    desc = Desc(1);
    desc.placement = CachePlacement::kHost;
    desc.shape[0] = 1;
    CHECK_EQ(dist.RegisterKvCache(desc, {addrs[0] + 5}, {}, second), LLM_SUCCESS);
    CHECK_EQ(dist.UnregisterKvCache(second), LLM_SUCCESS);
    CHECK_EQ(dist.UnregisterKvCache(second), LLM_SUCCESS);
    CHECK_EQ(dist.UnregisterKvCache(424242), LLM_SUCCESS);
}

void
EitherSidePullsAndPushes()
{
    Pair pair;
    CHECK_EQ(pair.client.PullKvBlocks(CacheIndex{kServerId, pair.server_cache},
                                      ById(pair.client_cache), {1, 2, 7}, {4, 5, 0}),
             LLM_SUCCESS);
    for (size_t i = 0; i < 4; i++) {
        const int seed = static_cast<int>(100 + 16 * i);
        CHECK_BLOCK(pair.client_tensors[i], 4, seed + 1);
        CHECK_BLOCK(pair.client_tensors[i], 5, seed + 2);
        CHECK_BLOCK(pair.client_tensors[i], 0, seed + 7);
        CHECK_BLOCK(pair.client_tensors[i], 3, 3);
    }

    /* A decoder pushes. */
    pair.client_tensors[3].Fill(200);
    CHECK_EQ(pair.client.PushKvBlocks(ById(pair.client_cache),
                                      CacheIndex{kServerId, pair.server_cache}, {6}, {0}),
             LLM_SUCCESS);
    CHECK_BLOCK(pair.server_tensors[3], 0, 206);

    /* A prompt pulls, and pushes a slot of one layer. */
    pair.client_tensors[0].Fill(50);
    CHECK_EQ(pair.server.PullKvCache(CacheIndex{kClientId, pair.client_cache, 3},
                                     ById(pair.server_cache), 2),
             LLM_SUCCESS);
    CHECK_BLOCK(pair.server_tensors[0], 2, 53);
    KvCacheExtParam second_layer;
    second_layer.src_layer_range = {1, 1};
    second_layer.dst_layer_range = {1, 1};
    pair.server_tensors[0].Fill(1);
    pair.server_tensors[2].Fill(60);
    CHECK_EQ(pair.server.PushKvCache(ById(pair.server_cache),
                                     CacheIndex{kClientId, pair.client_cache, 7}, 5, -1,
                                     second_layer),
             LLM_SUCCESS);
    CHECK_BLOCK(pair.client_tensors[2], 7, 65);
    CHECK_BLOCK(pair.client_tensors[0], 7, 57); /* the first layer wasn't touched */
}

/* Version 2 appends what it has to say, and only then (§13.4). */
void
RetsAreAppendedTo()
{
    Pair pair;
    const ClusterInfo server = check::ClusterAt(kServerId, pair.port);
    const std::vector<Status> before = {7, 8};
    std::vector<Status> rets = before;
    CHECK_EQ(pair.client.LinkLlmClusters({server}, rets, 5000), LLM_ALREADY_LINK);
    CHECK(rets == (std::vector<Status>{7, 8, LLM_ALREADY_LINK}));
    rets = before;
    CHECK_EQ(pair.client.LinkLlmClusters({}, rets, 5000), LLM_PARAM_INVALID);
    CHECK(rets == before);
    ClusterInfo by_id;
    by_id.remote_cluster_id = kServerId;
    CHECK_EQ(pair.client.UnlinkLlmClusters({by_id, by_id}, rets, 5000), LLM_SUCCESS);
    CHECK_EQ(rets.size(), 4);
    CHECK_EQ(pair.client.LinkLlmClusters({server}, rets, 5000), LLM_SUCCESS);
    CHECK_EQ(rets.size(), 5);

    /* Asked for at initialization; finalized, it is version 1 again. */
    LlmDataDist asks(99, LlmRole::kDecoder);
    const check::Options options = {{OPTION_DEVICE_ID, "0"}, {OPTION_LOCAL_COMM_RES, ""}};
    for (int i = 0; i < 2; i++) {
        const check::Options plain = {{OPTION_DEVICE_ID, "0"}};
        REQUIRE_EQ(asks.Initialize(i == 0 ? options : plain), LLM_SUCCESS);
        rets = before;
        CHECK_EQ(asks.UnlinkLlmClusters({check::ClusterAt(1, pair.port)}, rets, 5000), LLM_SUCCESS);
        CHECK_EQ(rets.size(), i == 0 ? 3 : 1);
        asks.Finalize();
    }
}

/* As engines do that register tensor by tensor: pull the same blocks of each, in a loop. */
void
ACachePerTensorIsSeenWithoutRelinking()
{
    Pair pair;
    constexpr size_t num_caches = 300;
    std::vector<Tensor> theirs(num_caches);
    std::vector<Tensor> ours(num_caches);
    std::vector<int64_t> their_ids(num_caches);
    std::vector<int64_t> our_ids(num_caches);
    for (size_t i = 0; i < num_caches; i++) {
        theirs[i].Fill(static_cast<uint8_t>(i));
        REQUIRE_EQ(pair.server.RegisterKvCache(Desc(1), {theirs[i].Address()}, {}, their_ids[i]),
                   LLM_SUCCESS);
        REQUIRE_EQ(pair.client.RegisterKvCache(Desc(1), {ours[i].Address()}, {}, our_ids[i]),
                   LLM_SUCCESS);
    }
    for (size_t i = 0; i < num_caches; i++) {
        CHECK_EQ(pair.client.PullKvBlocks(CacheIndex{kServerId, their_ids[i]}, ById(our_ids[i]),
                                          {2, 3, 6}, {0, 1, 2}),
                 LLM_SUCCESS);
        CHECK_BLOCK(ours[i], 0, static_cast<int>(i + 2));
        CHECK_BLOCK(ours[i], 1, static_cast<int>(i + 3));
        CHECK_BLOCK(ours[i], 2, static_cast<int>(i + 6));
    }

    CHECK_EQ(pair.server.UnregisterKvCache(their_ids[0]), LLM_SUCCESS);
    CHECK_EQ(
        pair.client.PullKvBlocks(CacheIndex{kServerId, their_ids[0]}, ById(our_ids[0]), {0}, {0}),
        LLM_KV_CACHE_NOT_EXIST);
    CHECK_EQ(pair.client.UnregisterKvCache(our_ids[1]), LLM_SUCCESS);
    CHECK_EQ(
        pair.client.PullKvBlocks(CacheIndex{kServerId, their_ids[1]}, ById(our_ids[1]), {0}, {0}),
        LLM_KV_CACHE_NOT_EXIST);
}

/* After Unregister has returned the memory is the program's alone: what it writes there isn't
 * overwritten, and pulls yield a status or what was there while it was registered. */
void
UnregisteredMemoryIsQuiet()
{
    Pair pair("off"); /* most errors are what is wanted here */
    std::atomic<bool> done(false);
    std::atomic<int64_t> target(pair.client_cache);
    std::thread pusher([&] {
        while (!done) {
            const Status status = pair.server.PushKvBlocks(ById(pair.server_cache),
                                                           CacheIndex{kClientId, target}, {0}, {0});
            CHECK(status == LLM_SUCCESS || status == LLM_KV_CACHE_NOT_EXIST);
        }
    });
    Tensor tensor;
    for (int round = 0; round < 200; round++) {
        int64_t id = 0;
        tensor.Fill(9);
        REQUIRE_EQ(pair.client.RegisterKvCache(Desc(4), std::vector<uint64_t>(4, tensor.Address()),
                                               {}, id),
                   LLM_SUCCESS);
        target = id;
        if (round % 2 == 0) {
            std::this_thread::yield();
        }
        CHECK_EQ(pair.client.UnregisterKvCache(id), LLM_SUCCESS);
        tensor.Fill(77);
        std::this_thread::yield();
        CHECK_BLOCK(tensor, 0, 77);
    }
    done = true;
    pusher.join();
}

/* Several threads register, transfer and unregister while a peer comes and goes. */
void
ManyThreadsAndAPeerThatComesAndGoes()
{
    Pair pair("off"); /* most errors are what is wanted here */
    std::atomic<bool> done(false);
    std::atomic<int> pulled(0);
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; i++) {
        threads.emplace_back([&] {
            Tensor tensor;
            while (!done) {
                int64_t id = 0;
                tensor.Fill(0);
                CHECK_EQ(pair.client.RegisterKvCache(
                             Desc(4), std::vector<uint64_t>(4, tensor.Address()), {}, id),
                         LLM_SUCCESS);
                const Status status = pair.client.PullKvBlocks(
                    CacheIndex{kServerId, pair.server_cache}, ById(id), {1}, {2});
                CHECK(status == LLM_SUCCESS || status == LLM_NOT_YET_LINK ||
                      status == LLM_LINK_BUSY || status == LLM_FAILED);
                CHECK_EQ(pair.client.UnregisterKvCache(id), LLM_SUCCESS);
                pulled += status == LLM_SUCCESS ? 1 : 0;
            }
        });
    }
    std::vector<Status> rets;
    const ClusterInfo server = check::ClusterAt(kServerId, pair.port);
    for (int round = 0; round < 30; round++) {
        const int before = pulled;
        while (pulled < before + 3) {
            std::this_thread::yield();
        }
        Status status = LLM_UNLINK_FAILED;
        while (status != LLM_SUCCESS) { /* busy while a pull runs */
            status = pair.client.UnlinkLlmClusters({server}, rets, 5000, round % 2 == 0);
        }
        CHECK_EQ(pair.client.LinkLlmClusters({server}, rets, 5000), LLM_SUCCESS);
    }
    done = true;
    for (std::thread &thread : threads) {
        thread.join();
    }
}

} // namespace

int
main(int argc, char **argv)
{
    if (argc > 1) {
        transports = argv[1];
    }
    BadRegistrationsLeaveTheIdAlone();
    EitherSidePullsAndPushes();
    RetsAreAppendedTo();
    ACachePerTensorIsSeenWithoutRelinking();
    UnregisteredMemoryIsQuiet();
    ManyThreadsAndAPeerThatComesAndGoes();
    return check::Result();
}

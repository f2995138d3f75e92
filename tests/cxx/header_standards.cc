/*
 * header_standards.cc - what a program sees of the C++ header, built once per standard and with all
 * warnings being errors: no C name, the layouts, the constants, the strings, the default arguments.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include "llm_datadist/llm_datadist.h"

/* The include lines of existing programs. */
#include "external/ge_common/api_error_codes.h"
#include "external/ge_common/ge_api_error_codes.h"
#include "external/ge_common/ge_api_types.h"
#include "external/graph/ascend_string.h"
#include "external/graph/types.h"
#include "ge/ge_api_error_codes.h"
#include "ge/ge_api_types.h"
#include "ge_common/api_error_codes.h"
#include "ge_common/ge_api_error_codes.h"
#include "ge_common/ge_api_types.h"
#include "graph/ascend_string.h"
#include "graph/types.h"
#include "llm_datadist/llm_engine_types.h"
#include "llm_datadist/llm_error_codes.h"

#include <set>
#include <string>
#include <type_traits>
#include <unordered_map>

#include "check.h"
#include "layout_checks.h"

#if defined(LLM_API) || defined(LLM_STATUS_MAP) || defined(LLM_OPTION_DEVICE_ID) ||                \
    defined(LLM_VERSION_MAJOR) || defined(LLM_DATADIST_EXPORT_)
#error "a macro leaks"
#endif

/* If a name of the C API were visible these would be redefinitions. */
struct llm_cache {
    int a_name_of_ours;
};
enum { LLM_ROLE_PROMPT = 12345, LLM_DT_FLOAT };
static int
llm_create()
{
    return LLM_ROLE_PROMPT;
}
static int
llm_pull_kv_blocks(llm_cache cache)
{
    return cache.a_name_of_ours;
}

using namespace ge;
using namespace llm_datadist;

/* As programs do that bring their own list of codes. */
namespace mine {
GE_ERRORNO_DEFINE(1, 1, 0, 8, 11, NOT_YET_LINK, 7);
}

static void
ConstantsAreThere()
{
    static_assert(LLM_SUCCESS == 0 && LLM_FAILED == 0xFFFFFFFF, "");
    static_assert(LLM_PARAM_INVALID == 1343270917, "0x5010B000 + 5");
    static_assert(std::is_same<Status, uint32_t>::value, "Status of both namespaces");
    static_assert(DT_UNDEFINED == 28 && ge::DT_MAX == 43, "");
    static_assert(std::is_same<decltype(llm_datadist::DT_BF16), ge::DataType>::value, "");
    static_assert(kDefaultTensorNumPerLayer == 2, "");
    static_assert(std::is_same<decltype(kDefaultTensorNumPerLayer), const uint8_t>::value, "");

    /* Both namespaces are open, and each code is one. */
    static_assert(ge::LLM_NOT_YET_LINK == LLM_NOT_YET_LINK, "");
    static_assert(mine::NOT_YET_LINK == LLM_NOT_YET_LINK, "");
    static_assert(ge::LLM_WAIT_PROC_TIMEOUT == 0x5010B001 && ge::LLM_OUT_OF_MEMORY == 0x5010B01C,
                  "");
    static_assert(LLM_CACHE_INCOMPATIBLE == 0x5010B014 && LLM_CACHE_ID_ALREADY_EXIST == 0x5010B017,
                  "");
    static_assert(END_OF_SEQUENCE == 1343225863, "");
    CHECK(AscendString(llm::LLM_OPTION_SYNC_KV_CACHE_WAIT_TIME) == OPTION_SYNC_CACHE_WAIT_TIME);
    CHECK(AscendString(llm::LLM_OPTION_ENABLE_SWITCH_ROLE) == OPTION_ENABLE_SET_ROLE);
    CHECK(AscendString(llm::LLM_OPTION_BUF_POOL_CFG) == OPTION_BUF_POOL_CFG);
    CHECK(std::string(llm::kPrompt) == "Prompt" && std::string(llm::kDecoder) == "Decoder");

    const Status status = SUCCESS;
    CHECK_EQ(status, LLM_SUCCESS);
    CHECK_EQ(llm_create() + llm_pull_kv_blocks(llm_cache{1}), 12346);
}

static void
StringsBehave()
{
    const AscendString empty;
    const AscendString null(nullptr);
    const AscendString abc("abc");
    const AscendString abd = "abd";
    CHECK_EQ(empty.GetLength(), 0);
    CHECK(empty == null);
    CHECK(empty == "");
    CHECK(empty == nullptr);
    CHECK(std::string(empty.GetString()).empty());
    CHECK(abc == "abc");
    CHECK(abc != "ab");
    CHECK(abc != abd);
    CHECK(abc < abd);
    CHECK(abc <= abc);
    CHECK(abd > abc);
    CHECK(abd >= abc);
    CHECK(AscendString("ab") < abc);
    CHECK(empty < abc);
    CHECK(!(abc < empty));
    CHECK_EQ(abc.GetLength(), 3);

    AscendString copy = abc;
    copy = abd;
    CHECK(abc == "abc");
    CHECK(copy == abd);

    const AscendString two("a\0b", 3);
    CHECK_EQ(two.GetLength(), 3);
    CHECK(two != "a");
    CHECK(two > AscendString("a"));
    CHECK_EQ(AscendString("abcdef", 2).GetLength(), 2);

    CHECK_EQ(abc.Find("bc"), 1);
    CHECK_EQ(abc.Find("x"), std::string::npos);
    CHECK_EQ(abc.Find(""), 0);
    CHECK_EQ(empty.Find("a"), std::string::npos);

    CHECK_EQ(abc.Hash(), AscendString("abc").Hash());
    CHECK(abc.Hash() != abd.Hash());
    std::unordered_map<AscendString, int> numbers;
    numbers["abc"] = 1;
    numbers[abc]++;
    CHECK_EQ(numbers["abc"], 2);

    std::set<AscendString> sorted = {"b", "a", "", "ab"};
    CHECK(*sorted.begin() == "");
    CHECK(*sorted.rbegin() == "b");
}

static void
StructsHaveTheirDefaults()
{
    const IpInfo ip{};
    CHECK_EQ(ip.port, 0);
    const ClusterInfo cluster{};
    CHECK_EQ(cluster.remote_cluster_id, 0);
    const CacheDesc desc;
    CHECK(desc.placement == CachePlacement::kDevice);
    CHECK_EQ(desc.num_tensors, 0);
    CHECK_EQ(desc.data_type, DT_UNDEFINED);
    const Cache cache = {};
    CHECK_EQ(cache.cache_id, -1);
    const KvCacheExtParam param = {};
    CHECK_EQ(param.src_layer_range.first, -1);
    CHECK_EQ(param.dst_layer_range.second, -1);
    CHECK_EQ(param.tensor_num_per_layer, 2);
    const CacheIndex none{};
    CHECK_EQ(none.cluster_id, 0);

    /* An aggregate: what isn't named is zero.  -Wextra would have every member named. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
    const CacheIndex index{1, 2};
#pragma GCC diagnostic pop
    CHECK_EQ(index.cluster_id, 1);
    CHECK_EQ(index.cache_id, 2);
    CHECK_EQ(index.batch_index, 0);

    /* Copied structs are no reason for a warning, whatever is in the reserved bytes. */
    IpInfo from;
    from.ip = "127.0.0.1";
    std::vector<IpInfo> ips;
    ips.push_back(from);
    Cache original;
    Cache copied = original;
    copied.cache_desc = CacheDesc();
    CHECK_EQ(copied.cache_id, original.cache_id);
    CHECK(ips[0].ip == "127.0.0.1");
}

/* Every method, with as few arguments as it can be called with, before Initialize. */
static void
MethodsLink()
{
    static_assert(!std::is_copy_constructible<LlmDataDist>::value, "");
    LlmDataDist dist(7, LlmRole::kMix);
    std::vector<Status> rets = {1, 2, 3};
    Cache cache;
    int64_t cache_id = -5;
    const CacheIndex index{};
    dist.Finalize();
    CHECK_EQ(dist.SetRole(LlmRole::kDecoder), LLM_FAILED);
    CHECK_EQ(dist.LinkLlmClusters({}, rets), LLM_FAILED);
    CHECK_EQ(dist.UnlinkLlmClusters({}, rets), LLM_FAILED);
    CHECK_EQ(rets.size(), 3);
    CHECK_EQ(dist.AllocateCache({}, cache), LLM_FAILED);
    CHECK_EQ(dist.DeallocateCache(1), LLM_FAILED);
    CHECK_EQ(dist.PullKvCache(index, cache), LLM_FAILED);
    CHECK_EQ(dist.PullKvBlocks(index, cache, {}, {}), LLM_FAILED);
    CHECK_EQ(dist.PushKvCache(cache, index), LLM_FAILED);
    CHECK_EQ(dist.PushKvBlocks(cache, index, {}, {}), LLM_FAILED);
    CHECK_EQ(dist.CopyKvCache(cache, cache), LLM_FAILED);
    CHECK_EQ(dist.CopyKvBlocks(cache, cache, {}, {}), LLM_FAILED);
    CHECK(dist.RegisterKvCache({}, {}, {}, cache_id) != LLM_SUCCESS);
    CHECK(dist.UnregisterKvCache(1) != LLM_SUCCESS);
    CHECK_EQ(cache_id, -5);
    CHECK_EQ(dist.Initialize({}), LLM_PARAM_INVALID);
    const check::Options options = {{OPTION_DEVICE_ID, "0"}};
    CHECK_EQ(dist.Initialize(options), LLM_SUCCESS);
    CHECK_EQ(dist.Initialize({}), LLM_SUCCESS);
}

int
main()
{
    ConstantsAreThere();
    StringsBehave();
    StructsHaveTheirDefaults();
    MethodsLink();
    return check::Result();
}

/*
 * abi_checks.cc - what must never change: layouts (§2.1), numbers, and that the C++ constants are
 * those of the C API.  No code; a broken promise doesn't compile.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include "c_api.h"

#include <string_view>
#include <type_traits>

namespace llm_datadist {
namespace {

/* Layouts hold for LP64 with libstdc++; another library has other vectors. */
#if defined(__LP64__) && defined(__GLIBCXX__)
#define CHECK_SIZE(type, size) static_assert(sizeof(type) == (size), "size of " #type)
#define CHECK_OFFSET(type, field, offset)                                                          \
    static_assert(offsetof(type, field) == (offset), "offset of " #type "::" #field)

CHECK_SIZE(AscendString, 16);
CHECK_SIZE(DataType, 4);
CHECK_SIZE(LlmDataDist, 8);

CHECK_SIZE(IpInfo, 152);
CHECK_OFFSET(IpInfo, ip, 0);
CHECK_OFFSET(IpInfo, port, 16);
CHECK_OFFSET(IpInfo, reserved, 18);

CHECK_SIZE(ClusterInfo, 192);
CHECK_OFFSET(ClusterInfo, remote_cluster_id, 0);
CHECK_OFFSET(ClusterInfo, remote_role_type, 8);
CHECK_OFFSET(ClusterInfo, local_ip_infos, 16);
CHECK_OFFSET(ClusterInfo, remote_ip_infos, 40);
CHECK_OFFSET(ClusterInfo, reserved, 64);

CHECK_SIZE(CacheIndex, 152);
CHECK_OFFSET(CacheIndex, cluster_id, 0);
CHECK_OFFSET(CacheIndex, cache_id, 8);
CHECK_OFFSET(CacheIndex, batch_index, 16);
CHECK_OFFSET(CacheIndex, reserved, 20);

CHECK_SIZE(CacheDesc, 168);
CHECK_OFFSET(CacheDesc, placement, 0);
CHECK_OFFSET(CacheDesc, num_tensors, 4);
CHECK_OFFSET(CacheDesc, data_type, 8);
CHECK_OFFSET(CacheDesc, shape, 16);
CHECK_OFFSET(CacheDesc, reserved, 40);

CHECK_SIZE(Cache, 328);
CHECK_OFFSET(Cache, cache_id, 0);
CHECK_OFFSET(Cache, tensor_addrs, 8);
CHECK_OFFSET(Cache, cache_desc, 32);
CHECK_OFFSET(Cache, reserved, 200);

CHECK_SIZE(KvCacheExtParam, 144);
CHECK_OFFSET(KvCacheExtParam, src_layer_range, 0);
CHECK_OFFSET(KvCacheExtParam, dst_layer_range, 8);
CHECK_OFFSET(KvCacheExtParam, tensor_num_per_layer, 16);
CHECK_OFFSET(KvCacheExtParam, reserved, 17);

CHECK_SIZE(RegisterCfg, 128);
CHECK_OFFSET(RegisterCfg, reserved, 0);
#endif

static_assert(std::is_same<std::underlying_type<LlmRole>::type, int32_t>::value, "LlmRole");
static_assert(std::is_same<std::underlying_type<CachePlacement>::type, uint32_t>::value,
              "CachePlacement");
static_assert(!std::is_copy_constructible<LlmDataDist>::value, "LlmDataDist is not copied");

/* Every status of the C API exists here under its own name and number. */
#define CHECK_STATUS(name, value, text, recoverable, remedy)                                       \
    static_assert(::llm_datadist::name == (value), "value of " #name);
LLM_STATUS_MAP(CHECK_STATUS)

/* Every data type too. */
#define COUNT_TYPE(name, value, bits) +1
static_assert((0 LLM_DATA_TYPE_MAP(COUNT_TYPE)) == 41,
              "a data type was added: add it here and in ge_types.h");
#define CHECK_TYPE(type) static_assert(int(DT_##type) == int(::LLM_DT_##type), #type)
CHECK_TYPE(FLOAT);
CHECK_TYPE(FLOAT16);
CHECK_TYPE(INT8);
CHECK_TYPE(INT32);
CHECK_TYPE(UINT8);
CHECK_TYPE(INT16);
CHECK_TYPE(UINT16);
CHECK_TYPE(UINT32);
CHECK_TYPE(INT64);
CHECK_TYPE(UINT64);
CHECK_TYPE(DOUBLE);
CHECK_TYPE(BOOL);
CHECK_TYPE(STRING);
CHECK_TYPE(DUAL_SUB_INT8);
CHECK_TYPE(DUAL_SUB_UINT8);
CHECK_TYPE(COMPLEX64);
CHECK_TYPE(COMPLEX128);
CHECK_TYPE(QINT8);
CHECK_TYPE(QINT16);
CHECK_TYPE(QINT32);
CHECK_TYPE(QUINT8);
CHECK_TYPE(QUINT16);
CHECK_TYPE(RESOURCE);
CHECK_TYPE(STRING_REF);
CHECK_TYPE(DUAL);
CHECK_TYPE(VARIANT);
CHECK_TYPE(BF16);
CHECK_TYPE(UNDEFINED);
CHECK_TYPE(INT4);
CHECK_TYPE(UINT1);
CHECK_TYPE(INT2);
CHECK_TYPE(UINT2);
CHECK_TYPE(COMPLEX32);
CHECK_TYPE(HIFLOAT8);
CHECK_TYPE(FLOAT8_E5M2);
CHECK_TYPE(FLOAT8_E4M3FN);
CHECK_TYPE(FLOAT8_E8M0);
CHECK_TYPE(FLOAT6_E3M2);
CHECK_TYPE(FLOAT6_E2M3);
CHECK_TYPE(FLOAT4_E2M1);
CHECK_TYPE(FLOAT4_E1M2);

/* Option keys. */
#define CHECK_OPTION(option)                                                                       \
    static_assert(std::string_view(OPTION_##option) == LLM_OPTION_##option, #option)
CHECK_OPTION(LISTEN_IP_INFO);
CHECK_OPTION(DEVICE_ID);
CHECK_OPTION(SYNC_CACHE_WAIT_TIME);
CHECK_OPTION(BUF_POOL_CFG);
CHECK_OPTION(ENABLE_SET_ROLE);
CHECK_OPTION(LOCAL_COMM_RES);
CHECK_OPTION(DEVICE_TYPE);
CHECK_OPTION(TRANSPORTS);
CHECK_OPTION(LIVENESS_TIME);
CHECK_OPTION(TCP_CONNECTIONS);
CHECK_OPTION(LOG_LEVEL);

#define CHECK_ENUM(cxx, c) static_assert(int(cxx) == int(::c), #cxx)
CHECK_ENUM(LlmRole::kPrompt, LLM_ROLE_PROMPT);
CHECK_ENUM(LlmRole::kDecoder, LLM_ROLE_DECODER);
CHECK_ENUM(LlmRole::kMix, LLM_ROLE_MIX);
CHECK_ENUM(CachePlacement::kHost, LLM_PLACEMENT_HOST);
CHECK_ENUM(CachePlacement::kDevice, LLM_PLACEMENT_DEVICE);

} // namespace
} // namespace llm_datadist

/*
 * layout_checks.h - the layouts of the C++ API (§2.1) as static assertions, good for C++11, so that
 * the library and programs of every standard are held to the same.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#ifndef LLM_CXX_LAYOUT_CHECKS_H
#define LLM_CXX_LAYOUT_CHECKS_H

#include <cstddef>
#include <type_traits>

#include "llm_datadist/llm_datadist.h"

namespace llm_datadist {

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

#undef CHECK_OFFSET
#undef CHECK_SIZE
#endif

static_assert(std::is_same<std::underlying_type<LlmRole>::type, int32_t>::value, "LlmRole");
static_assert(std::is_same<std::underlying_type<CachePlacement>::type, uint32_t>::value,
              "CachePlacement");
static_assert(!std::is_copy_constructible<LlmDataDist>::value, "LlmDataDist is not copied");

} // namespace llm_datadist

#endif

/*
 * abi_checks.cc - what must never change: layouts, and that the C++ constants are those of the C
 * API.  No code; a broken promise doesn't compile.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include "c_api.h"

#include <string_view>

#include "layout_checks.h"

namespace llm_datadist {
namespace {

/* A status has one number in both.  Not every status of the C API is one of the class; where the
 * name is missing here the lookup finds the C one. */
#define CHECK_STATUS(name, value, text, recoverable, remedy)                                       \
    static_assert(name == (value), "value of " #name);
LLM_STATUS_MAP(CHECK_STATUS)

/* Every data type of the C API is one here. */
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
CHECK_OPTION(TRANSFER_BACKEND);
CHECK_OPTION(GLOBAL_RESOURCE_CONFIG);
CHECK_OPTION(DEVICE_TYPE);
CHECK_OPTION(TRANSPORTS);
CHECK_OPTION(LIVENESS_TIME);
CHECK_OPTION(DEAD_TIME);
CHECK_OPTION(RELINK);
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

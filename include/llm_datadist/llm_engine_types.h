/*
 * llm_engine_types.h - names of roles and options in namespace llm.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * C++ only, for sources that say llm::LLM_OPTION_SYNC_KV_CACHE_WAIT_TIME.  The options that this
 * library knows are in llm_datadist.h; role, cluster and output size are not among them.
 */
#ifndef LLM_DATADIST_LLM_ENGINE_TYPES_H
#define LLM_DATADIST_LLM_ENGINE_TYPES_H

#ifndef __cplusplus
#error "llm_engine_types.h is a C++ header; C programs include llm_datadist/llm_datadist.h"
#endif

namespace llm {

constexpr char kPrompt[] = "Prompt";
constexpr char kDecoder[] = "Decoder";

constexpr char LLM_OPTION_SYNC_KV_CACHE_WAIT_TIME[] = "llm.SyncKvCacheWaitTime";
constexpr char LLM_OPTION_ENABLE_SWITCH_ROLE[] = "llm.EnableSwitchRole";
constexpr char LLM_OPTION_BUF_POOL_CFG[] = "llm.BufPoolCfg";
constexpr char LLM_OPTION_CLUSTER_INFO[] = "llm.ClusterInfo";
constexpr char LLM_OPTION_ROLE[] = "llm.Role";
constexpr char LLM_OPTION_OUTPUT_MAX_SIZE[] = "llm.OutputMaxSize";

} // namespace llm

#endif

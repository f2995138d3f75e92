/*
 * llm_error_codes.h - the status codes under their names in namespace ge.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * C++ only, for sources that say ge::LLM_PARAM_INVALID.  The codes are those of llm_datadist.h, which
 * explains them: a program that opens both namespaces still finds one of each name.  Success and
 * failure in general are ge::SUCCESS and ge::FAILED.
 */
#ifndef LLM_DATADIST_LLM_ERROR_CODES_H
#define LLM_DATADIST_LLM_ERROR_CODES_H

#ifndef __cplusplus
#error "llm_error_codes.h is a C++ header; C programs include llm_datadist/llm_datadist.h"
#endif

#include "llm_datadist.h"

namespace ge {

using llm_datadist::LLM_ALREADY_LINK;
using llm_datadist::LLM_BLOCKS_OUT_OF_MEMORY;
using llm_datadist::LLM_CACHE_KEY_ALREADY_EXIST;
using llm_datadist::LLM_CLUSTER_NUM_EXCEED_LIMIT;
using llm_datadist::LLM_DEVICE_OUT_OF_MEMORY;
using llm_datadist::LLM_ENGINE_FINALIZED;
using llm_datadist::LLM_EXIST_LINK;
using llm_datadist::LLM_FEATURE_NOT_ENABLED;
using llm_datadist::LLM_KV_CACHE_NOT_EXIST;
using llm_datadist::LLM_LINK_BUSY;
using llm_datadist::LLM_LINK_FAILED;
using llm_datadist::LLM_NO_FREE_BLOCK;
using llm_datadist::LLM_NOT_YET_LINK;
using llm_datadist::LLM_NOTIFY_PROMPT_UNLINK_FAILED;
using llm_datadist::LLM_OUT_OF_MEMORY;
using llm_datadist::LLM_PARAM_INVALID;
using llm_datadist::LLM_PREFIX_ALREADY_EXIST;
using llm_datadist::LLM_PREFIX_NOT_EXIST;
using llm_datadist::LLM_PROCESSING_LINK;
using llm_datadist::LLM_REPEAT_REQUEST;
using llm_datadist::LLM_REQUEST_ALREADY_COMPLETED;
using llm_datadist::LLM_SEQ_LEN_OVER_LIMIT;
using llm_datadist::LLM_TIMEOUT;
using llm_datadist::LLM_UNLINK_FAILED;
using llm_datadist::LLM_WAIT_PROC_TIMEOUT;

/* No call returns these. */
constexpr Status LLM_CACHE_INCOMPATIBLE = 0x5010B014U;
constexpr Status LLM_COPY_CACHE_FAILED = 0x5010B016U;
constexpr Status LLM_CACHE_ID_ALREADY_EXIST = 0x5010B017U;

} // namespace ge

#endif

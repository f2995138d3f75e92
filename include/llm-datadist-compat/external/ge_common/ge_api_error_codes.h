/*
 * external/ge_common/ge_api_error_codes.h - an include line of existing programs.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * Only for sources that say so; the codes of ge are in ge_common/api_error_codes.h.
 */
#ifndef LLM_DATADIST_FORWARD_EXTERNAL_GE_COMMON_GE_API_ERROR_CODES_H
#define LLM_DATADIST_FORWARD_EXTERNAL_GE_COMMON_GE_API_ERROR_CODES_H

#include "../../ge_common/api_error_codes.h"

#endif

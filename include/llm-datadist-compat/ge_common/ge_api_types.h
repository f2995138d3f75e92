/*
 * ge_common/ge_api_types.h - an include line of existing programs.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * Only for sources that say so; what there is of ge is in llm_datadist/ge_types.h.
 */
#ifndef LLM_DATADIST_FORWARD_GE_COMMON_GE_API_TYPES_H
#define LLM_DATADIST_FORWARD_GE_COMMON_GE_API_TYPES_H

#include "../../llm_datadist/ge_types.h"

#endif

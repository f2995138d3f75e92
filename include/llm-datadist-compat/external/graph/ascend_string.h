/*
 * external/graph/ascend_string.h - an include line of existing programs.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * Only for sources that say so; ge::AscendString is in llm_datadist/ge_types.h.
 */
#ifndef LLM_DATADIST_FORWARD_EXTERNAL_GRAPH_ASCEND_STRING_H
#define LLM_DATADIST_FORWARD_EXTERNAL_GRAPH_ASCEND_STRING_H

#include "../../../llm_datadist/ge_types.h"

#endif

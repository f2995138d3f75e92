/*
 * ge_common/api_error_codes.h - an include line of existing programs.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * Only for sources that say so.  ge::Status, SUCCESS and FAILED are in llm_datadist/ge_types.h;
 * llm_datadist/llm_error_codes.h has the codes of this library.
 */
#ifndef LLM_DATADIST_FORWARD_GE_COMMON_API_ERROR_CODES_H
#define LLM_DATADIST_FORWARD_GE_COMMON_API_ERROR_CODES_H

#include "../../llm_datadist/ge_types.h"

/* Programs that bring their own list of codes write it with this macro.  A code has, from the top, 2
 * bits of run time, 2 of type, 3 of level, 8 of system, 5 of module and 12 of value. */
#ifndef GE_ERRORNO_DEFINE
#define GE_ERRORNO_DEFINE(runtime, type, level, system, module, name, value)                       \
    constexpr ge::Status name =                                                                    \
        (static_cast<uint32_t>(runtime) << 30) | (static_cast<uint32_t>(type) << 28) |             \
        (static_cast<uint32_t>(level) << 25) | (static_cast<uint32_t>(system) << 17) |             \
        (static_cast<uint32_t>(module) << 12) | static_cast<uint32_t>(value)
#endif

namespace ge {

constexpr Status END_OF_SEQUENCE = 0x50100007U;

} // namespace ge

#endif

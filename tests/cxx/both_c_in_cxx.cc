/* A C++ file of `both` that wants the C API: it includes that header by its own name.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0 */
#include <llm_datadist/llm_datadist_c.h>

#include "both.h"

const char *
both_status_name(unsigned status)
{
    return llm_status_name(status);
}

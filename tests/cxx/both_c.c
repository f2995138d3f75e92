/* The C part of `both`: the header's one name for both languages, seen from C.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0 */
#include <llm_datadist/llm_datadist.h>

#include "both.h"

/* An instance of the C API beside one of the class. */
unsigned
both_from_c(void)
{
    const llm_option options[] = {{LLM_OPTION_DEVICE_ID, "0"}};
    llm_datadist *dd = NULL;
    llm_status status = llm_create(11, LLM_ROLE_DECODER, &dd);
    if (status == LLM_SUCCESS) {
        status = llm_initialize(dd, options, 1);
    }
    llm_destroy(dd);
    return status;
}

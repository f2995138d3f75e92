/* What the three source files of `both` know of each other.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0 */
#ifndef LLM_TESTS_CXX_BOTH_H
#define LLM_TESTS_CXX_BOTH_H

#ifdef __cplusplus
extern "C" {
#endif

unsigned both_from_c(void);
const char *both_status_name(unsigned status);

#ifdef __cplusplus
}
#endif

#endif

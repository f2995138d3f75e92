/*
 * c_api.h - the C API as src/cxx sees it, beside the C++ header.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * `llm_datadist` is a type in the C header and a namespace in the C++ one.  Here alone both are
 * wanted in one translation unit, so the C type gets another name; the functions are extern "C",
 * whose linkage doesn't depend on the names of types.
 */
#ifndef LLM_CXX_C_API_H
#define LLM_CXX_C_API_H

#include "llm_datadist/llm_datadist.h"

#define llm_datadist llm_c_datadist
#include "llm_datadist/llm_datadist_c.h"
#undef llm_datadist

#endif

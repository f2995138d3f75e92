/*
 * both.cc - one program with the C++ header here, the C header in both_c.c and in both_c_in_cxx.cc.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include <llm_datadist/llm_datadist.h>

#include "both.h"
#include "check.h"

using namespace llm_datadist;

int
main()
{
    CHECK_EQ(both_from_c(), LLM_SUCCESS);
    CHECK(both_status_name(LLM_ALREADY_LINK) == std::string("LLM_ALREADY_LINK"));
    LlmDataDist dist(12, LlmRole::kDecoder);
    CHECK_EQ(dist.Initialize({{OPTION_DEVICE_ID, "0"}}), LLM_SUCCESS);
    return check::Result();
}

// A program as it was written for the original: its include lines, and -lllm_engine in its build line.
#include "external/ge_common/ge_api_error_codes.h"
#include "graph/ascend_string.h"
#include "graph/types.h"
#include "llm_datadist/llm_datadist.h"
#include "llm_datadist/llm_error_codes.h"

#include <cstdio>

int
main()
{
    llm_datadist::LlmDataDist nobody(1, llm_datadist::LlmRole::kEnd);
    const ge::AscendString device("0");
    ge::Status status = nobody.Initialize({{llm_datadist::OPTION_DEVICE_ID, device}});
    std::printf("no role: 0x%x\n", status);
    return status == ge::LLM_PARAM_INVALID ? 0 : 1;
}

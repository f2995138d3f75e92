#include "base/base.h"

const char *
llm_status_name(llm_status status)
{
    switch (status) {
#define X(name, value, text, recoverable, remedy)                                                  \
    case value:                                                                                    \
        return #name;
        LLM_STATUS_MAP(X)
#undef X
    default:
        return "LLM_STATUS_UNKNOWN";
    }
}

#define RECOVERABLE_0 "not recoverable"
#define RECOVERABLE_1 "recoverable"

const char *
llm_status_text(llm_status status)
{
    switch (status) {
#define X(name, value, text, recoverable, remedy)                                                  \
    case value:                                                                                    \
        return text "; " RECOVERABLE_##recoverable ": " remedy;
        LLM_STATUS_MAP(X)
#undef X
    default:
        return "not a status of this library";
    }
}

int
llm_status_recoverable(llm_status status)
{
    switch (status) {
#define X(name, value, text, recoverable, remedy)                                                  \
    case value:                                                                                    \
        return recoverable;
        LLM_STATUS_MAP(X)
#undef X
    default:
        return 0;
    }
}

uint32_t
llm_data_type_bits(int32_t data_type)
{
    switch (data_type) {
#define X(name, value, bits)                                                                       \
    case value:                                                                                    \
        return bits;
        LLM_DATA_TYPE_MAP(X)
#undef X
    default:
        return 0;
    }
}

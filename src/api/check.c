#include "api/check.h"

#include "base/log.h"

llm_status
lli_check_initialized(const llm_datadist *dd, const char *call)
{
    if (dd == NULL)
        return lli_fail(LLM_FAILED, "api", "%s: the instance is NULL", call);
    if (!atomic_load(&dd->initialized))
        return lli_fail(LLM_FAILED, "api", "%s: cluster %llu is not initialized", call,
                        (unsigned long long)dd->cluster_id);
    return LLM_SUCCESS;
}

llm_status
lli_check_struct(const void *caller, const char *name, size_t first_bytes, size_t known_bytes,
                 void *ret)
{
    size_t caller_bytes;
    if (caller == NULL)
        return lli_fail(LLM_PARAM_INVALID, "api", "%s is NULL", name);
    memcpy(&caller_bytes, caller, sizeof(caller_bytes));
    if (caller_bytes == 0)
        caller_bytes = first_bytes;
    if (caller_bytes < first_bytes || caller_bytes > 65536)
        return lli_fail(LLM_PARAM_INVALID, "api", "%s.struct_size is %zu, expected 0 or %zu..65536",
                        name, caller_bytes, first_bytes);
    for (size_t i = known_bytes; i < caller_bytes; i++) {
        if (((const uint8_t *)caller)[i] != 0)
            return lli_fail(LLM_PARAM_INVALID, "api",
                            "%s has fields that this version doesn't know: byte %zu is not zero",
                            name, i);
    }
    memset(ret, 0, known_bytes);
    memcpy(ret, caller, lli_min(caller_bytes, known_bytes));
    return LLM_SUCCESS;
}

const char *
lli_role_name(int role)
{
    switch (role) {
    case LLM_ROLE_PROMPT:
        return "Prompt";
    case LLM_ROLE_DECODER:
        return "Decoder";
    case LLM_ROLE_MIX:
        return "Mix";
    default:
        return "invalid";
    }
}

llm_status
lli_transfer_status(const llm_datadist *dd, llm_status status)
{
    bool version_2 = atomic_load(&dd->version_2);
    return version_2 && status == LLM_WAIT_PROC_TIMEOUT ? LLM_TIMEOUT : status;
}

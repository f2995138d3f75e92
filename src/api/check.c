#include "api/check.h"

#include "base/fork.h"
#include "base/log.h"

llm_status
lli_check_initialized(const llm_datadist *dd, const char *call)
{
    if (dd == NULL)
        return lli_fail(LLM_FAILED, "api", "%s: the instance is NULL", call);
    if (!atomic_load(&dd->initialized))
        return lli_fail(LLM_FAILED, "api", "%s: cluster %llu is not initialized", call,
                        (unsigned long long)dd->cluster_id);
    if (dd->num_forks != lli_fork_count())
        return lli_fail(LLM_FAILED, "api",
                        "%s: cluster %llu is an instance of process %d, of which this one is a "
                        "forked child: it needs one of its own",
                        call, (unsigned long long)dd->cluster_id, (int)dd->pid);
    lli_log_speak_for(dd->cluster_id);
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

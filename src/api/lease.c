// Leases.
#include "api/check.h"
#include "base/log.h"
#include "base/os.h"
#include "cache/leases.h"

llm_status
llm_lease_open(llm_datadist *dd, const llm_lease_desc *desc, uint64_t *ret_generation)
{
    llm_lease_desc known;
    LLI_TRY(lli_check_initialized(dd, "llm_lease_open"));
    LLI_TRY(LLI_CHECK_STRUCT(desc, llm_lease_desc, &known));
    if (ret_generation == NULL)
        return lli_fail(LLM_PARAM_INVALID, "lease", "ret_generation is NULL");
    return lli_leases_open(&dd->registry, &known, ret_generation);
}

llm_status
llm_lease_renew(llm_datadist *dd, uint64_t generation, uint32_t duration_ms)
{
    LLI_TRY(lli_check_initialized(dd, "llm_lease_renew"));
    return lli_leases_renew(&dd->registry, generation, duration_ms);
}

llm_status
llm_lease_wait(llm_datadist *dd, uint64_t generation, int32_t timeout_ms)
{
    LLI_TRY(lli_check_initialized(dd, "llm_lease_wait"));
    if (timeout_ms < -1)
        return lli_fail(LLM_PARAM_INVALID, "lease", "timeout is %d ms, expected -1 or more",
                        timeout_ms);
    uint64_t deadline_ns =
        timeout_ms == -1 ? UINT64_MAX : lli_deadline_after_ms((uint64_t)timeout_ms);
    return lli_leases_wait(&dd->registry, generation, deadline_ns);
}

llm_status
llm_lease_close(llm_datadist *dd, uint64_t generation)
{
    LLI_TRY(lli_check_initialized(dd, "llm_lease_close"));
    return lli_leases_close(&dd->registry, generation);
}

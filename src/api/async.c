// Started transfers and notifications.
#include "api/check.h"
#include "base/log.h"
#include "base/os.h"
#include "transfer/notify.h"
#include "transfer/transfer.h"

llm_status
llm_transfer_poll(llm_datadist *dd, uint64_t transfer_id)
{
    LLI_TRY(lli_check_initialized(dd, "llm_transfer_poll"));
    return lli_transfer_status(dd, lli_transfer_wait(&dd->node, transfer_id, 0));
}

llm_status
llm_transfer_wait(llm_datadist *dd, uint64_t transfer_id, int32_t timeout_ms)
{
    LLI_TRY(lli_check_initialized(dd, "llm_transfer_wait"));
    if (timeout_ms < -1)
        return lli_fail(LLM_PARAM_INVALID, "transfer", "timeout is %d ms, expected -1 or more",
                        timeout_ms);
    uint64_t deadline_ns =
        timeout_ms == -1 ? UINT64_MAX : lli_deadline_after_ms((uint64_t)timeout_ms);
    return lli_transfer_status(dd, lli_transfer_wait(&dd->node, transfer_id, deadline_ns));
}

llm_status
llm_transfer_get_progress(llm_datadist *dd, uint64_t transfer_id, llm_progress *progress)
{
    llm_progress known;
    LLI_TRY(lli_check_initialized(dd, "llm_transfer_get_progress"));
    LLI_TRY(LLI_CHECK_STRUCT(progress, llm_progress, &known));
    LLI_TRY(lli_transfer_get_progress(&dd->node, transfer_id, &known));
    LLI_WRITE_STRUCT(&known, llm_progress, progress);
    return LLM_SUCCESS;
}

llm_status
llm_transfer_cancel(llm_datadist *dd, uint64_t transfer_id)
{
    LLI_TRY(lli_check_initialized(dd, "llm_transfer_cancel"));
    return lli_transfer_cancel(&dd->node, transfer_id);
}

llm_status
llm_transfer_release(llm_datadist *dd, uint64_t transfer_id)
{
    LLI_TRY(lli_check_initialized(dd, "llm_transfer_release"));
    return lli_transfer_release(&dd->node, transfer_id);
}

int
llm_transfer_fd(llm_datadist *dd)
{
    if (lli_check_initialized(dd, "llm_transfer_fd") != LLM_SUCCESS)
        return -1;
    return dd->node.transfer_fd;
}

llm_status
llm_poll_notification(llm_datadist *dd, uint64_t *ret_cluster_id, void *buf, size_t size,
                      size_t *ret_bytes)
{
    LLI_TRY(lli_check_initialized(dd, "llm_poll_notification"));
    if (ret_bytes == NULL || (buf == NULL && size > 0))
        return lli_fail(LLM_PARAM_INVALID, "transfer", "llm_poll_notification: %s is NULL",
                        ret_bytes == NULL ? "ret_bytes" : "buf");
    return lli_notifications_take(dd->node.notifications, ret_cluster_id, buf, size, ret_bytes);
}

int
llm_notification_fd(llm_datadist *dd)
{
    if (lli_check_initialized(dd, "llm_notification_fd") != LLM_SUCCESS)
        return -1;
    return lli_notifications_fd(dd->node.notifications);
}

#include "transfer/pull_here.h"

#include <sched.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "transport/crew.h"

static llm_status
copy_entered(const struct lli_transfer_args *args, struct lli_source_cache *source,
             const struct lli_plan *plan, const uintptr_t *tensors, int *ret_error)
{
    struct lli_mapped_copy copy;
    lli_mapped_copy_init(&copy, plan, source->tensors, tensors);
    copy.pid = source->pid;
    bool in_time = lli_crew_copy(source->link->node->crew, &copy, args->deadline_ns);
    *ret_error = copy.error;
    if (in_time)
        return LLM_SUCCESS;
    return lli_fail(LLM_WAIT_PROC_TIMEOUT, "transfer",
                    "pull from cluster %llu: the time was up after %llu of %llu bytes",
                    (unsigned long long)args->cluster_id, (unsigned long long)copy.position,
                    (unsigned long long)plan->total_bytes);
}

static llm_status
enter_waiting(const struct lli_transfer_args *args, struct lli_source_cache *source)
{
    char why[LLI_REASON_BYTES];
    llm_status status = lli_source_enter(source, why, sizeof(why));
    while (status == LLM_LINK_BUSY && lli_now_ns() < args->deadline_ns) {
        sched_yield();
        status = lli_source_enter(source, why, sizeof(why));
    }
    if (status == LLM_LINK_BUSY)
        status = LLM_WAIT_PROC_TIMEOUT;
    return status == LLM_SUCCESS ? status : lli_describe_failure(args, status, why);
}

static llm_status
copy_from(const struct lli_transfer_args *args, struct lli_source_cache *source,
          const struct lli_plan *plan, const uintptr_t *tensors)
{
    int error = 0;
    char why[LLI_REASON_BYTES];
    llm_status status = enter_waiting(args, source);
    if (status == LLM_SUCCESS)
        status = copy_entered(args, source, plan, tensors, &error);
    llm_status after = lli_source_close(source, error, why, sizeof(why));
    if (status == LLM_SUCCESS && after != LLM_SUCCESS)
        return lli_describe_failure(args, after, why);
    return status;
}

struct notice {
    struct lli_link *link;
    const struct lli_transfer_args *args;
};

static void
send_notice(void *arg)
{
    struct notice *notice = arg;
    lli_link_send(notice->link, LLI_NOTIFY, 0, notice->args->notification,
                  notice->args->notification_bytes);
}

llm_status
lli_pull_here(struct lli_link *link, const struct lli_transfer_args *args)
{
    struct lli_source_cache source;
    struct lli_plan plan = {0};
    uintptr_t *tensors = NULL;
    char why[LLI_REASON_BYTES];
    LLI_TRY(lli_describe_source(link, args, &source));
    llm_status status = lli_describe_pull(args, &source.remote.geometry, &plan);
    if (status == LLM_SUCCESS)
        status = lli_describe_tensors(args, &tensors);
    if (status == LLM_SUCCESS)
        status = copy_from(args, &source, &plan, tensors);
    else
        (void)lli_source_close(&source, 0, why, sizeof(why));
    lli_plan_fini(&plan);
    lli_free(tensors);
    if (status == LLM_SUCCESS && args->notification != NULL) {
        struct notice notice = {.link = link, .args = args};
        lli_loop_call(link->node->loop, send_notice, &notice);
    }
    return status;
}

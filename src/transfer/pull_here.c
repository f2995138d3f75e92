#include "transfer/pull_here.h"

#include <sched.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "transfer/ask.h"
#include "transport/crew.h"

static llm_status
copy_entered(const struct lli_transfer_args *args, struct lli_source_cache *source,
             struct lli_mapped_copy *copy)
{
    copy->src_tensors = source->tensors;
    copy->owner = source->owner;
    copy->checked = source->link->checksum;
    copy->holes = lli_view_holes(source->link->view);
    llm_status status = LLM_TRANSFER_PENDING;
    while (status == LLM_TRANSFER_PENDING) {
        if (lli_crew_copy(source->link->node->crew, copy,
                          lli_interrupt_slice(&args->interrupt, args->deadline_ns)))
            return LLM_SUCCESS;
        status = lli_interrupt_ask(&args->interrupt, args->deadline_ns);
    }
    return lli_fail(status, "transfer", "pull from cluster %llu: %s after %llu of %llu bytes",
                    (unsigned long long)args->cluster_id, lli_interrupt_text(status),
                    (unsigned long long)copy->position,
                    (unsigned long long)copy->plan->total_bytes);
}

static llm_status
enter_waiting(const struct lli_transfer_args *args, struct lli_source_cache *source)
{
    char why[LLI_REASON_BYTES];
    llm_status status = lli_source_enter(source, why, sizeof(why));
    uint64_t slice_ns = lli_interrupt_slice(&args->interrupt, args->deadline_ns);
    while (status == LLM_LINK_BUSY) {
        if (lli_now_ns() >= slice_ns) {
            llm_status answer = lli_interrupt_ask(&args->interrupt, args->deadline_ns);
            if (answer != LLM_TRANSFER_PENDING)
                return lli_describe_failure(args, answer, why);
            slice_ns = lli_interrupt_slice(&args->interrupt, args->deadline_ns);
        }
        sched_yield();
        status = lli_source_enter(source, why, sizeof(why));
    }
    return status == LLM_SUCCESS ? status : lli_describe_failure(args, status, why);
}

static llm_status
copy_from(const struct lli_transfer_args *args, struct lli_source_cache *source,
          const struct lli_plan *plan, const uintptr_t *tensors)
{
    char why[LLI_REASON_BYTES];
    struct lli_mapped_copy copy;
    lli_mapped_copy_init(&copy, plan, source->tensors, tensors);
    if (args->progress != NULL)
        copy.position = args->progress->bytes_arrived;
    uint64_t first = copy.position;
    llm_status status = enter_waiting(args, source);
    if (status == LLM_SUCCESS)
        status = copy_entered(args, source, &copy);
    llm_status after = lli_source_close(source, &copy, why, sizeof(why));
    // What was copied counts if it was the right cache all the time.
    if (args->progress != NULL && after == LLM_SUCCESS) {
        args->progress->bytes_arrived = copy.position;
        args->progress->bytes_moved = copy.position - first;
    }
    if (status == LLM_SUCCESS && after != LLM_SUCCESS)
        return lli_describe_failure(args, after, why);
    return status;
}

// What is asked for, and to what its key has led.
static struct lli_request
names_of(const struct lli_transfer_args *args, const struct lli_source_cache *source)
{
    struct lli_request names = lli_describe_names(args);
    names.slot = source->slot;
    names.key.stamp = source->remote.key_stamp;
    return names;
}

// Tells the owner that all has arrived, if it must know.
static llm_status
tell_owner(struct lli_link *link, const struct lli_transfer_args *args,
           const struct lli_source_cache *source)
{
    char why[LLI_REASON_BYTES];
    struct lli_answer answer;
    struct lli_request request = names_of(args, source);
    if (!lli_describe_tells(&request, (source->remote.flags & LLI_ENTRY_HAS_REQUESTS) != 0))
        return LLM_SUCCESS;
    struct lli_request done = lli_describe_done(&request, source->remote.generation);
    llm_status status = lli_ask_and_wait(link, LLI_DONE, &done, &args->interrupt, args->deadline_ns,
                                         &answer, why, sizeof(why));
    return status == LLM_SUCCESS ? status : lli_describe_failure(args, status, why);
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

static llm_status
resume(const struct lli_transfer_args *args, const struct lli_source_cache *source,
       const struct lli_plan *plan)
{
    char why[LLI_REASON_BYTES];
    if (args->progress == NULL)
        return LLM_SUCCESS;
    struct lli_request request = names_of(args, source);
    llm_status status = lli_describe_resume(args->progress, &request, source->remote.generation,
                                            plan->total_bytes, why, sizeof(why));
    return status == LLM_SUCCESS ? status : lli_describe_failure(args, status, why);
}

llm_status
lli_pull_here(struct lli_link *link, const struct lli_transfer_args *args)
{
    struct lli_source_cache source;
    struct lli_plan plan = {0};
    uintptr_t *tensors = NULL;
    char why[LLI_REASON_BYTES];
    LLI_TRY(lli_describe_source(link, args, &source));
    llm_status status = lli_describe_pull(args, &source, &plan);
    if (status == LLM_SUCCESS)
        status = resume(args, &source, &plan);
    if (status == LLM_SUCCESS)
        status = lli_describe_tensors(args, &tensors);
    if (status == LLM_SUCCESS)
        status = copy_from(args, &source, &plan, tensors);
    else
        (void)lli_source_close(&source, NULL, why, sizeof(why));
    lli_plan_fini(&plan);
    lli_free(tensors);
    if (status == LLM_SUCCESS)
        status = tell_owner(link, args, &source);
    if (status == LLM_SUCCESS && args->notification != NULL) {
        struct notice notice = {.link = link, .args = args};
        lli_loop_call(link->node->loop, send_notice, &notice);
    }
    return status;
}

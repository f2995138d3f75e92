#include "transfer/copies.h"

// About a tenth of a millisecond's worth.
static const uint64_t portion_bytes = 1 << 20;

void
lli_copies_add(struct lli_node *node, struct lli_copy_job *job, const struct lli_plan *plan,
               const uintptr_t *dst_tensors, uint64_t position)
{
    lli_mapped_copy_init(&job->copy, plan, job->source.tensors, dst_tensors);
    job->copy.position = position;
    job->copy.pid = job->source.pid;
    job->copy.checked = job->source.link->checksum;
    lli_list_append(&node->copies, &job->node);
}

bool
lli_copies_cancel(struct lli_copy_job *job)
{
    char why[LLI_REASON_BYTES];
    lli_list_remove(&job->node);
    bool entered = job->source.reader_slot >= 0;
    return lli_source_close(&job->source, NULL, why, sizeof(why)) == LLM_SUCCESS && entered;
}

bool
lli_copies_idle(struct lli_node *node)
{
    if (lli_list_empty(&node->copies))
        return false;
    struct lli_copy_job *job = LLI_LIST_ENTRY(node->copies.next, struct lli_copy_job, node);
    char why[LLI_REASON_BYTES] = "";
    llm_status status = LLM_SUCCESS;
    lli_list_remove(&job->node);
    if (job->source.reader_slot < 0)
        status = lli_source_enter(&job->source, why, sizeof(why));
    if (status == LLM_LINK_BUSY ||
        (status == LLM_SUCCESS && !lli_mapped_copy_some(&job->copy, portion_bytes))) {
        // The others get their turn.
        lli_list_append(&node->copies, &job->node);
        return true;
    }
    llm_status after = lli_source_close(&job->source, &job->copy, why, sizeof(why));
    job->done(job, status != LLM_SUCCESS ? status : after, why);
    return !lli_list_empty(&node->copies);
}

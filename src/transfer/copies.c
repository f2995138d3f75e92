#include "transfer/copies.h"

// About a tenth of a millisecond's worth.
static const uint64_t portion_bytes = 1 << 20;

// How many take turns.  Each is announced until it is over; the rest of what an instance can announce
// is for the threads that copy themselves.
enum { TURNS_MAX = LLI_NUM_READER_SLOTS * 3 / 4 };

static void
give_turns(struct lli_node *node, struct lli_copy_job *job)
{
    job->has_turns = true;
    node->num_copies++;
    lli_list_append(&node->copies, &job->node);
}

// Out of its list; the next of those that wait takes its place.
static void
leave(struct lli_copy_job *job)
{
    struct lli_node *node = job->source.link->node;
    lli_list_remove(&job->node);
    if (!job->has_turns)
        return;
    job->has_turns = false;
    node->num_copies--;
    if (lli_list_empty(&node->copies_waiting))
        return;
    struct lli_list *first = node->copies_waiting.next;
    lli_list_remove(first);
    give_turns(node, LLI_LIST_ENTRY(first, struct lli_copy_job, node));
}

void
lli_copies_add(struct lli_node *node, struct lli_copy_job *job, const struct lli_plan *plan,
               const uintptr_t *dst_tensors, uint64_t position)
{
    lli_mapped_copy_init(&job->copy, plan, job->source.tensors, dst_tensors);
    job->copy.position = position;
    job->copy.owner = job->source.owner;
    job->copy.checked = job->source.link->checksum;
    job->copy.holes = lli_view_holes(job->source.link->view);
    job->has_turns = false;
    if (node->num_copies < TURNS_MAX)
        give_turns(node, job);
    else
        lli_list_append(&node->copies_waiting, &job->node);
}

bool
lli_copies_cancel(struct lli_copy_job *job)
{
    char why[LLI_REASON_BYTES];
    leave(job);
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
    if (job->source.reader_slot < 0)
        status = lli_source_enter(&job->source, why, sizeof(why));
    if (status == LLM_LINK_BUSY ||
        (status == LLM_SUCCESS && !lli_mapped_copy_some(&job->copy, portion_bytes))) {
        // The others get their turn.
        lli_list_remove(&job->node);
        lli_list_append(&node->copies, &job->node);
        return true;
    }
    leave(job);
    llm_status after = lli_source_close(&job->source, &job->copy, why, sizeof(why));
    job->done(job, status != LLM_SUCCESS ? status : after, why);
    return !lli_list_empty(&node->copies);
}

// Copies that the loop's thread makes in portions, so that its sockets are looked at in between:
// pulls that were started and are awaited later, and what peers push on this host.
#ifndef LLI_COPIES_H
#define LLI_COPIES_H

#include "link/link.h"
#include "transfer/source.h"
#include "transport/mapped.h"

struct lli_copy_job {
    struct lli_list node; // in node->copies, or waiting
    bool has_turns;       // in the former
    struct lli_source_cache source;
    struct lli_mapped_copy copy;
    // The copy is over, the source is closed: LLM_SUCCESS, or what went wrong.
    void (*done)(struct lli_copy_job *job, llm_status status, const char *text);
};

// Queues a copy by `plan` from the job's open source to `dst_tensors`, from a position of the stream
// on.
void lli_copies_add(struct lli_node *node, struct lli_copy_job *job, const struct lli_plan *plan,
                    const uintptr_t *dst_tensors, uint64_t position);
// Stops it and closes the source; `done` is not called.  True if what is before job->copy.position
// has arrived, of the right cache.
bool lli_copies_cancel(struct lli_copy_job *job);
// Goes on with one copy for a short while; true if there is more to do.
bool lli_copies_idle(struct lli_node *node);

#endif

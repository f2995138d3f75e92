// Copying by a plan between memory that this process can reach: the transports "local" and "shm",
// and copies within an instance.  The source may be another process' memory, which is read with
// process_vm_readv in batches.
#ifndef LLI_MAPPED_H
#define LLI_MAPPED_H

#include <sys/types.h>

#include "base/base.h"
#include "transport/holes.h"
#include "transport/plan.h"

// A process whose memory is read.
struct lli_process {
    pid_t thread;       // of it; 0: memory that is mapped here
    uintptr_t proof_at; // where its memory has the number `proof`; the memory of a program that it
    uint64_t proof;     // executes instead has not
};

// A copy in progress; it can be done in portions.
struct lli_mapped_copy {
    const struct lli_plan *plan;
    const uintptr_t *src_tensors; // addresses; plan->num_tensors
    const uintptr_t *dst_tensors; // likewise
    struct lli_holes holes;       // in the source
    uint64_t position;
    uint64_t looked_until;    // what is before that position is read without another look
    bool streaming;           // past the caches
    bool checked;             // every piece is compared with its source by CRC32C
    struct lli_process owner; // of the source addresses
    int error; // errno of a read that failed, EBADMSG after a check; the copy is then over
};

// Is it readable, and has the proof?  If not, errno says why.
bool lli_mapped_can_read(const struct lli_process *owner);

void lli_mapped_copy_init(struct lli_mapped_copy *copy, const struct lli_plan *plan,
                          const uintptr_t *src_tensors, const uintptr_t *dst_tensors);

// Copies up to about `bytes_max` more.  True when there is nothing more to do: everything has been
// copied and is visible to all, or a read has failed.
bool lli_mapped_copy_some(struct lli_mapped_copy *copy, uint64_t bytes_max);

// Copies everything, unless the deadline passes first: then false, and nothing more is written.
bool lli_mapped_copy_all(struct lli_mapped_copy *copy, uint64_t deadline_ns);

#endif

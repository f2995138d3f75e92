// The caller of a transfer that waits may want to be asked now and then whether to go on: a wait or a
// copy comes up for that, on the caller's thread.
#ifndef LLI_INTERRUPT_H
#define LLI_INTERRUPT_H

#include <stdatomic.h>

#include "base/base.h"
#include "base/os.h"

struct lli_interrupt {
    llm_interrupt interrupted; // NULL: never ask
    void *arg;
    const _Atomic bool *overdue; // or NULL; true: somebody waits for the local cache to be let go
};

// Until when to wait before asking.
static inline uint64_t
lli_interrupt_slice(const struct lli_interrupt *interrupt, uint64_t deadline_ns)
{
    const uint64_t interval_ns = 20 * 1000000;
    if (interrupt->interrupted == NULL && interrupt->overdue == NULL)
        return deadline_ns;
    return lli_min(deadline_ns, lli_now_ns() + interval_ns);
}

// After a slice in which nothing has ended: LLM_TRANSFER_PENDING to go on, LLM_WAIT_PROC_TIMEOUT,
// LLM_TRANSFER_CANCELLED, or LLM_KV_CACHE_NOT_EXIST.
static inline llm_status
lli_interrupt_ask(const struct lli_interrupt *interrupt, uint64_t deadline_ns)
{
    if (lli_now_ns() >= deadline_ns)
        return LLM_WAIT_PROC_TIMEOUT;
    if (interrupt->overdue != NULL && atomic_load(interrupt->overdue))
        return LLM_KV_CACHE_NOT_EXIST;
    return interrupt->interrupted != NULL && interrupt->interrupted(interrupt->arg)
               ? LLM_TRANSFER_CANCELLED
               : LLM_TRANSFER_PENDING;
}

static inline const char *
lli_interrupt_text(llm_status status)
{
    if (status == LLM_KV_CACHE_NOT_EXIST)
        return "the local cache was unregistered during the transfer";
    return status == LLM_TRANSFER_CANCELLED ? "it was cancelled" : "the time was up";
}

#endif

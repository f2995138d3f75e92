// A thread of the test that does something to another process in the middle of a transfer.
#ifndef LLM_TEST_ACCOMPLICE_H
#define LLM_TEST_ACCOMPLICE_H

#include <pthread.h>
#include <sched.h>

#include "multi/member.h"

struct accomplice {
    pthread_t thread;
    struct process *victim;
    void (*deed)(struct process *victim);
    // The first bytes: in this cache of the test's own, which was filled with zeros, ...
    const struct member *member;
    size_t index;
    // ... or, without a member, in such a cache of the victim's.
    uint64_t done_ms; // when it was done
};

static inline void *
accomplice_main(void *arg)
{
    struct accomplice *a = arg;
    char answer[LINE_BYTES];
    uint64_t deadline = now_ms() + PATIENCE_MS;
    if (a->member == NULL)
        talk_hear(&a->victim->talk, answer, PATIENCE_MS);
    else
        while (member_peek(a->member, a->index, 0, 0) == 0 && now_ms() < deadline)
            sched_yield();
    a->deed(a->victim);
    a->done_ms = now_ms();
    return NULL;
}

static inline void
accomplice_start(struct accomplice *a)
{
    if (a->member == NULL)
        talk_say(&a->victim->talk, "await %zu", a->index);
    pthread_create(&a->thread, NULL, accomplice_main, a);
}

static inline void
accomplice_join(struct accomplice *a)
{
    pthread_join(a->thread, NULL);
}

#endif

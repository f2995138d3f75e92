// Helpers for copies that one thread can't make at the memory's full speed.  They are started when
// first needed, sleep in between, and never outlive the call that they help.
#ifndef LLI_CREW_H
#define LLI_CREW_H

#include <pthread.h>

#include "base/base.h"
#include "transport/mapped.h"

enum { LLI_NUM_HELPERS_MAX = 15 };

struct lli_crew {
    size_t num_helpers; // wanted
    pthread_mutex_t lock;
    pthread_cond_t work_came; // or the end
    pthread_cond_t helper_left;
    struct lli_list tasks;                  // guarded by lock
    pthread_t threads[LLI_NUM_HELPERS_MAX]; // guarded by lock
    size_t num_threads;                     // started; guarded by lock
    bool stopping;                          // guarded by lock
};

// `num_threads`: how many may copy at once, the caller included.
void lli_crew_open(struct lli_crew *crew, size_t num_threads);
// Nobody is calling lli_crew_copy.
void lli_crew_close(struct lli_crew *crew);

// Copies everything from copy->position on with the calling thread and the helpers, unless the
// deadline passes first: then false, and nothing more is written.  copy->error tells the rest; all
// bytes before copy->position have been copied.
bool lli_crew_copy(struct lli_crew *crew, struct lli_mapped_copy *copy, uint64_t deadline_ns);

#endif

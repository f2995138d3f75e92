// Mutexes of the library.  A thread that holds one doesn't log: its lines wait until it holds none,
// because a sink may take its time, or a lock of its own (log.c).
#ifndef LLI_LOCK_H
#define LLI_LOCK_H

#include <pthread.h>

void lli_lock(pthread_mutex_t *mutex);
void lli_unlock(pthread_mutex_t *mutex);

#endif

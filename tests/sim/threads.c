// Threads, locks and clocks as the library sees them.
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "sim.h"

// Lives in the memory of a pthread_mutex_t; all zero is unlocked, as PTHREAD_MUTEX_INITIALIZER is.
struct lock {
    uint64_t owner;   // a coroutine's id
    uint64_t readers; // of a rwlock
};
_Static_assert(sizeof(struct lock) <= sizeof(pthread_mutex_t), "a lock in a mutex");
_Static_assert(sizeof(struct lock) <= sizeof(pthread_rwlock_t), "a lock in a rwlock");

static uint64_t
self(void)
{
    return sim.current != NULL ? sim_coro_id(sim.current) : 0;
}

static void
lock(struct lock *lock, const char *why)
{
    if (lock->owner == self())
        sim_fail("a thread locks twice");
    while (lock->owner != 0 || lock->readers > 0)
        sim_wait(why, lock, SIM_NEVER);
    lock->owner = self();
}

static void
unlock(struct lock *lock)
{
    if (lock->owner != self() && lock->readers == 0)
        sim_fail("a thread unlocks what it hasn't locked");
    if (lock->owner == self())
        lock->owner = 0;
    else
        lock->readers--;
    sim_wake_all(lock);
}

SIM_CALL(int, pthread_mutex_init, pthread_mutex_t *mutex, const pthread_mutexattr_t *attr)
{
    (void)attr;
    memset(mutex, 0, sizeof(*mutex));
    return 0;
}

SIM_CALL(int, pthread_mutex_destroy, pthread_mutex_t *mutex)
{
    if (((struct lock *)mutex)->owner != 0 || sim_is_awaited(mutex))
        sim_fail("a mutex is destroyed while it is locked");
    // Whoever uses it afterwards waits for ever.
    memset(mutex, 0xee, sizeof(*mutex));
    return 0;
}

SIM_CALL(int, pthread_mutex_lock, pthread_mutex_t *mutex)
{
    sim_point();
    lock((struct lock *)mutex, "waits for a mutex");
    return 0;
}

SIM_CALL(int, pthread_mutex_trylock, pthread_mutex_t *mutex)
{
    struct lock *l = (struct lock *)mutex;
    sim_point();
    if (l->owner != 0)
        return EBUSY;
    l->owner = self();
    return 0;
}

SIM_CALL(int, pthread_mutex_unlock, pthread_mutex_t *mutex)
{
    unlock((struct lock *)mutex);
    sim_point();
    return 0;
}

SIM_CALL(int, pthread_rwlock_rdlock, pthread_rwlock_t *rwlock)
{
    struct lock *l = (struct lock *)rwlock;
    while (l->owner != 0)
        sim_wait("waits for a rwlock", l, SIM_NEVER);
    l->readers++;
    return 0;
}

SIM_CALL(int, pthread_rwlock_wrlock, pthread_rwlock_t *rwlock)
{
    lock((struct lock *)rwlock, "waits for a rwlock");
    return 0;
}

SIM_CALL(int, pthread_rwlock_unlock, pthread_rwlock_t *rwlock)
{
    unlock((struct lock *)rwlock);
    return 0;
}

// ---- condition variables: nothing but an address to wait at ----

SIM_CALL(int, pthread_condattr_init, pthread_condattr_t *attr)
{
    memset(attr, 0, sizeof(*attr));
    return 0;
}

SIM_CALL(int, pthread_condattr_setclock, pthread_condattr_t *attr, clockid_t clock)
{
    (void)attr;
    return clock == CLOCK_MONOTONIC ? 0 : EINVAL;
}

SIM_CALL(int, pthread_condattr_destroy, pthread_condattr_t *attr)
{
    (void)attr;
    return 0;
}

SIM_CALL(int, pthread_cond_init, pthread_cond_t *cond, const pthread_condattr_t *attr)
{
    (void)attr;
    memset(cond, 0, sizeof(*cond));
    return 0;
}

SIM_CALL(int, pthread_cond_destroy, pthread_cond_t *cond)
{
    if (sim_is_awaited(cond))
        sim_fail("a condition variable is destroyed while somebody waits for it");
    return 0;
}

static int
wait_for_cond(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t deadline_ns)
{
    bool in_time = true;
    if (((struct lock *)mutex)->owner != self())
        sim_fail("a thread waits for a condition without holding its mutex");
    unlock((struct lock *)mutex);
    // Now and then it wakes for no reason.
    if (sim_chance(64))
        sim_yield();
    else
        in_time = sim_wait("waits for a condition", cond, deadline_ns);
    lock((struct lock *)mutex, "waits for a mutex after a condition");
    return in_time ? 0 : ETIMEDOUT;
}

SIM_CALL(int, pthread_cond_wait, pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    return wait_for_cond(cond, mutex, SIM_NEVER);
}

SIM_CALL(int, pthread_cond_timedwait, pthread_cond_t *cond, pthread_mutex_t *mutex,
         const struct timespec *when)
{
    uint64_t deadline_ns = (uint64_t)when->tv_sec * 1000000000u + (uint64_t)when->tv_nsec;
    if (deadline_ns > sim.now_ns)
        return wait_for_cond(cond, mutex, deadline_ns);
    unlock((struct lock *)mutex);
    sim_point();
    lock((struct lock *)mutex, "waits for a mutex after a condition");
    return ETIMEDOUT;
}

SIM_CALL(int, pthread_cond_signal, pthread_cond_t *cond)
{
    sim_wake_one(cond);
    return 0;
}

SIM_CALL(int, pthread_cond_broadcast, pthread_cond_t *cond)
{
    sim_wake_all(cond);
    return 0;
}

// ---- threads ----

__attribute__((visibility("default"))) int
sim_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*entry)(void *), void *arg)
{
    struct sim_process *process = sim_current_process();
    (void)attr;
    if (process->short_of_memory && sim_chance(sim.fault_rate))
        return EAGAIN;
    struct sim_coro *coro = sim_spawn(process, "thread", entry, arg);
    if (coro == NULL)
        return EAGAIN;
    *thread = (pthread_t)sim_coro_id(coro);
    sim_point();
    return 0;
}

SIM_CALL(int, pthread_join, pthread_t thread, void **ret_result)
{
    sim_join((uint64_t)thread);
    if (ret_result != NULL)
        *ret_result = NULL;
    return 0;
}

SIM_CALL(int, pthread_detach, pthread_t thread)
{
    (void)thread;
    sim_fail("a thread is let go: its end isn't simulated");
    return 0;
}

SIM_CALL(pthread_t, pthread_self, void)
{
    return (pthread_t)self();
}

SIM_CALL(int, pthread_setname_np, pthread_t thread, const char *name)
{
    sim_coro_rename((uint64_t)thread, name);
    return 0;
}

SIM_CALL(int, pthread_sigmask, int how, const sigset_t *set, sigset_t *old)
{
    (void)how;
    (void)set;
    if (old != NULL)
        sigemptyset(old);
    return 0;
}

// Nobody forks.
SIM_CALL(int, pthread_atfork, void (*prepare)(void), void (*parent)(void), void (*child)(void))
{
    (void)prepare;
    (void)parent;
    (void)child;
    return 0;
}

SIM_CALL(int, pthread_once, pthread_once_t *once, void (*run)(void))
{
    while (*once == 1)
        sim_wait("waits for a pthread_once", once, SIM_NEVER);
    if (*once == 0) {
        *once = 1;
        run();
        *once = 2;
        sim_wake_all(once);
    }
    return 0;
}

SIM_CALL(int, sched_yield, void)
{
    sim.now_ns += SIM_US;
    sim_yield();
    return 0;
}

// ---- time and chance ----

SIM_CALL(int, clock_gettime, clockid_t clock, struct timespec *ret_now)
{
    (void)clock;
    sim_point();
    ret_now->tv_sec = (time_t)(sim.now_ns / 1000000000u);
    ret_now->tv_nsec = (long)(sim.now_ns % 1000000000u);
    return 0;
}

SIM_CALL(ssize_t, getrandom, void *bytes, size_t num_bytes, unsigned flags)
{
    (void)flags;
    for (size_t i = 0; i < num_bytes; i++)
        ((uint8_t *)bytes)[i] = (uint8_t)sim_random();
    return (ssize_t)num_bytes;
}

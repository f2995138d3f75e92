// Part of each copy of the library: before the steps of the protocol that readers and owners of a cache
// follow in shared memory, another coroutine may go on, though no system call is made there.
#include <pthread.h>

#include "device/copy.h"

// memory.c copies in their stead.
_Static_assert(__builtin_types_compatible_p(__typeof__(lli_copy_cached),
                                            void(void *, const void *, size_t)) &&
                   __builtin_types_compatible_p(__typeof__(lli_copy_streaming),
                                                void(void *, const void *, size_t, const void *)),
               "the copies of the simulation");

int sim_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*entry)(void *),
                       void *arg);

// GCC's own library has one of this name, for split stacks.
int
__wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*entry)(void *),
                      void *arg)
{
    return sim_pthread_create(thread, attr, entry, arg);
}

// Whatever the function's arguments are, as long as registers hold them.
#if defined(__x86_64__)
#define STOP_OVER                                                                                  \
    "push %rdi\n push %rsi\n push %rdx\n push %rcx\n push %r8\n push %r9\n sub $8, %rsp\n"         \
    "call sim_critical_point@PLT\n"                                                                \
    "add $8, %rsp\n pop %r9\n pop %r8\n pop %rcx\n pop %rdx\n pop %rsi\n pop %rdi\n jmp "
#elif defined(__aarch64__)
#define STOP_OVER                                                                                  \
    "stp x0, x1, [sp, #-80]!\n stp x2, x3, [sp, #16]\n stp x4, x5, [sp, #32]\n"                    \
    "stp x6, x7, [sp, #48]\n str x30, [sp, #64]\n bl sim_critical_point\n"                         \
    "ldr x30, [sp, #64]\n ldp x6, x7, [sp, #48]\n ldp x4, x5, [sp, #32]\n"                         \
    "ldp x2, x3, [sp, #16]\n ldp x0, x1, [sp], #80\n b "
#endif
#define POINT_BEFORE(name)                                                                         \
    __asm__(".text\n.globl __wrap_" #name "\n.hidden __wrap_" #name "\n.type __wrap_" #name        \
            ", %function\n__wrap_" #name ":\n" STOP_OVER "__real_" #name "\n");

POINT_BEFORE(lli_segment_find)
POINT_BEFORE(lli_segment_reader_enter)
POINT_BEFORE(lli_segment_still_live)
POINT_BEFORE(lli_segment_still_same)
POINT_BEFORE(lli_segment_is_read)
POINT_BEFORE(lli_segment_retire)
POINT_BEFORE(lli_segment_erase)
POINT_BEFORE(lli_names_find_lease)
POINT_BEFORE(lli_names_lease_still_live)
POINT_BEFORE(lli_names_lease_still_same)
POINT_BEFORE(lli_names_retire_lease)
POINT_BEFORE(lli_names_erase_lease)
POINT_BEFORE(lli_names_find_key)

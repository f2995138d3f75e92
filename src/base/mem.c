#include "base/mem.h"

#include <stdatomic.h>
#include <stdlib.h>

static _Atomic uint64_t fail_countdown;

uint64_t
lli_mem_fail_after(uint64_t countdown)
{
    return atomic_exchange(&fail_countdown, countdown);
}

static bool
must_fail(void)
{
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) == 0)
        return false;
    uint64_t left = atomic_load(&fail_countdown);
    while (left > 0) {
        if (atomic_compare_exchange_weak(&fail_countdown, &left, left - 1))
            return left == 1;
    }
    return false;
}

void *
lli_malloc(size_t bytes)
{
    return must_fail() ? NULL : malloc(bytes > 0 ? bytes : 1);
}

void *
lli_calloc(size_t count, size_t bytes)
{
    return must_fail() ? NULL : calloc(count > 0 ? count : 1, bytes > 0 ? bytes : 1);
}

void *
lli_realloc(void *ptr, size_t bytes)
{
    return must_fail() ? NULL : realloc(ptr, bytes > 0 ? bytes : 1);
}

char *
lli_strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = lli_malloc(bytes);
    if (copy != NULL)
        memcpy(copy, text, bytes);
    return copy;
}

void
lli_free(void *ptr)
{
    free(ptr);
}

// The only malloc.  Failure is reported, never fatal.
#ifndef LLI_MEM_H
#define LLI_MEM_H

#include "base/base.h"

LLI_MUST_CHECK void *lli_malloc(size_t bytes);
LLI_MUST_CHECK void *lli_calloc(size_t count, size_t bytes);
// On failure the old block stays as it was.
LLI_MUST_CHECK void *lli_realloc(void *ptr, size_t bytes);
LLI_MUST_CHECK char *lli_strdup(const char *text);
void lli_free(void *ptr);

// For tests: the allocation `countdown` calls from now (1 = the next) fails, once, in any thread;
// 0 switches it off.  Returns what was left of the last countdown, so 0 means that it has struck.
uint64_t lli_mem_fail_after(uint64_t countdown);

#endif

// Copies within host memory, by the fastest way this CPU has.
#ifndef LLI_COPY_H
#define LLI_COPY_H

#include "base/base.h"

// "avx512", "avx2", "neon" or "memcpy": the streaming kernel chosen for this CPU.
const char *lli_copy_kernel_name(void);

// Copies `bytes` with ordinary, cached stores.
void lli_copy_cached(void *dst, const void *src, size_t bytes);

// Copies `bytes` past the caches where that pays; the destination is visible to others only after
// lli_copy_fence.  next: what will be copied after this, or NULL; its first bytes are fetched
// meanwhile.  It is never dereferenced, so it may be gone.
void lli_copy_streaming(void *dst, const void *src, size_t bytes, const void *next);

// Orders the streaming stores of this thread before everything that follows.
void lli_copy_fence(void);

// Above this many bytes in one transfer, streaming wins: the data would only push others out of
// the caches.
#define LLI_COPY_STREAMING_BYTES_MIN ((uint64_t)2 << 20)

#endif

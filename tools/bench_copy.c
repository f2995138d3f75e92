// What one thread of one process reaches with the same blocks: the yardstick copies.  Written apart
// from the library's own copies, so that a mistake there doesn't hide.
#include "bench.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__x86_64__)

__attribute__((target("avx512f"))) static void
stream_avx512(uint8_t *dst, const uint8_t *src, size_t lines)
{
    for (size_t i = 0; i < lines; i++)
        _mm512_stream_si512((void *)(dst + 64 * i), _mm512_loadu_si512(src + 64 * i));
}

__attribute__((target("avx2"))) static void
stream_avx2(uint8_t *dst, const uint8_t *src, size_t lines)
{
    for (size_t i = 0; i < 2 * lines; i++)
        _mm256_stream_si256((void *)(dst + 32 * i),
                            _mm256_loadu_si256((const void *)(src + 32 * i)));
}

static void
stream_sse2(uint8_t *dst, const uint8_t *src, size_t lines)
{
    for (size_t i = 0; i < 4 * lines; i++)
        _mm_stream_si128((void *)(dst + 16 * i), _mm_loadu_si128((const void *)(src + 16 * i)));
}

static void
stream_lines(uint8_t *dst, const uint8_t *src, size_t lines)
{
    if (__builtin_cpu_supports("avx512f"))
        stream_avx512(dst, src, lines);
    else if (__builtin_cpu_supports("avx2"))
        stream_avx2(dst, src, lines);
    else
        stream_sse2(dst, src, lines);
}

static void
fence(void)
{
    _mm_sfence();
}

#elif defined(__aarch64__)

static void
stream_lines(uint8_t *dst, const uint8_t *src, size_t lines)
{
    for (size_t i = 0; i < lines; i++)
        __asm__ volatile("ldp q0, q1, [%1]\n\tldp q2, q3, [%1, #32]\n\t"
                         "stnp q0, q1, [%0]\n\tstnp q2, q3, [%0, #32]"
                         :
                         : "r"(dst + 64 * i), "r"(src + 64 * i)
                         : "v0", "v1", "v2", "v3", "memory");
}

static void
fence(void)
{
    __asm__ volatile("dmb ishst" ::: "memory");
}

#else

static void
stream_lines(uint8_t *dst, const uint8_t *src, size_t lines)
{
    memcpy(dst, src, 64 * lines);
}

static void
fence(void)
{
}

#endif

void
bench_copy_stream(void *dst, const void *src, size_t bytes)
{
    uint8_t *to = dst;
    const uint8_t *from = src;
    size_t head = -(uintptr_t)to & 63;
    if (head > bytes)
        head = bytes;
    memcpy(to, from, head);
    size_t lines = (bytes - head) / 64;
    stream_lines(to + head, from + head, lines);
    head += 64 * lines;
    memcpy(to + head, from + head, bytes - head);
}

void
bench_copy_plain(void *dst, const void *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

void
bench_copy_work(const struct bench_work *work, const struct bench_blocks *blocks,
                const struct bench_memory *src, const struct bench_memory *dst, bench_copy copy)
{
    for (uint32_t p = 0; p < work->num_parts; p++) {
        const struct bench_part *part = &work->parts[p];
        for (uint32_t t = 0; t < part->num_tensors; t++) {
            uint8_t *to = (uint8_t *)dst->parts[p].tensors[t];
            const uint8_t *from = (const uint8_t *)src->parts[p].tensors[t];
            for (uint64_t i = 0; i < part->num_blocks; i++)
                copy(to + blocks->dst[p][i] * part->block_bytes,
                     from + blocks->src[p][i] * part->block_bytes, part->block_bytes);
        }
    }
    fence();
}

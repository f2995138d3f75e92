// The instruction takes 8 bytes in a cycle, but its result comes three cycles later: three lanes side
// by side keep it busy, and are then combined.  That a CRC is linear makes both tables: what a byte
// does, and what LANE_BYTES zeros behind a lane do to its sum.  Multiplications without carry, of
// lines of 64 bytes, are twice as fast, and three times on what isn't in the caches.
#include "device/crc32c.h"

#include <pthread.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define POLYNOMIAL_REVERSED 0x82f63b78u

enum { LANE_BYTES = 1024, NUM_LANES = 3 };

struct kernel {
    const char *name;
    uint32_t (*sum)(uint32_t crc, const uint8_t *bytes, size_t num_bytes);
};

static uint32_t byte_table[256];
static uint32_t lane_table[4][256];
static const struct kernel *kernel;
static pthread_once_t once = PTHREAD_ONCE_INIT;

// All of these work on the sum without its inversions.
static uint32_t
sum_plain(uint32_t crc, const uint8_t *bytes, size_t num_bytes)
{
    for (size_t i = 0; i < num_bytes; i++)
        crc = crc >> 8 ^ byte_table[(crc ^ bytes[i]) & 0xff];
    return crc;
}

static inline uint32_t
shift_lane(uint32_t crc)
{
    return lane_table[0][crc & 0xff] ^ lane_table[1][crc >> 8 & 0xff] ^
           lane_table[2][crc >> 16 & 0xff] ^ lane_table[3][crc >> 24];
}

#if defined(__x86_64__)
#define HAS_INSTRUCTION 1
#define TARGET __attribute__((target("sse4.2")))
TARGET static inline uint32_t
step8(uint32_t crc, const uint8_t *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof(word));
    return (uint32_t)_mm_crc32_u64(crc, word);
}

TARGET static inline uint32_t
step1(uint32_t crc, const uint8_t *bytes)
{
    return _mm_crc32_u8(crc, *bytes);
}
#elif defined(__aarch64__)
#define HAS_INSTRUCTION 1
#define TARGET __attribute__((target("+crc")))
TARGET static inline uint32_t
step8(uint32_t crc, const uint8_t *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof(word));
    return __crc32cd(crc, word);
}

TARGET static inline uint32_t
step1(uint32_t crc, const uint8_t *bytes)
{
    return __crc32cb(crc, *bytes);
}
#endif

#if defined(HAS_INSTRUCTION)
TARGET static uint32_t
sum_lanes(uint32_t crc, const uint8_t *bytes)
{
    uint32_t b = 0;
    uint32_t c = 0;
    for (size_t i = 0; i < LANE_BYTES; i += 8) {
        crc = step8(crc, bytes + i);
        b = step8(b, bytes + LANE_BYTES + i);
        c = step8(c, bytes + (size_t)2 * LANE_BYTES + i);
    }
    return shift_lane(shift_lane(crc) ^ b) ^ c;
}

TARGET static uint32_t
sum_fast(uint32_t crc, const uint8_t *bytes, size_t num_bytes)
{
    size_t i = 0;
    for (; num_bytes - i >= (size_t)NUM_LANES * LANE_BYTES; i += (size_t)NUM_LANES * LANE_BYTES)
        crc = sum_lanes(crc, bytes + i);
    for (; num_bytes - i >= 8; i += 8)
        crc = step8(crc, bytes + i);
    for (; i < num_bytes; i++)
        crc = step1(crc, bytes + i);
    return crc;
}
#endif

#if defined(__x86_64__)
// Four lines of 64 bytes, moved on by 256 bytes at a time with multiplications without carry: each
// quarter of a line is a polynomial of 128 bits, whose halves are multiplied by what moves them.
enum { LINE_BYTES = 64, WIDE_BYTES = 4 * LINE_BYTES };

struct shift {
    uint64_t low, high;
};

static struct shift shift_line, shift_wide;

// x^n modulo the polynomial, its bits reversed.
static uint32_t
power(unsigned n)
{
    uint32_t value = 0x80000000u;
    for (; n > 0; n--)
        value = value >> 1 ^ (value & 1 ? POLYNOMIAL_REVERSED : 0);
    return value;
}

// The product of reversed operands of 64 and 32 bits stands 33 bits too high; the low half begins
// 64 bits before the high one.
static struct shift
shift_by(unsigned num_bytes)
{
    return (struct shift){power(num_bytes * 8 + 64 - 33), power(num_bytes * 8 - 33)};
}

#define WIDE __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2")))

WIDE static inline __m512i
load_shift(struct shift shift)
{
    return _mm512_broadcast_i32x4(_mm_set_epi64x((long long)shift.high, (long long)shift.low));
}

WIDE static inline __m512i
fold(__m512i line, __m512i shift, __m512i next)
{
    __m512i low = _mm512_clmulepi64_epi128(line, shift, 0x00);
    __m512i high = _mm512_clmulepi64_epi128(line, shift, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96); // all three xored
}

WIDE static inline __m512i
load_line(const uint8_t *bytes)
{
    return _mm512_loadu_si512((const void *)bytes);
}

WIDE static uint32_t
sum_wide(uint32_t crc, const uint8_t *bytes, size_t num_bytes)
{
    uint8_t rest[LINE_BYTES];
    if (num_bytes < WIDE_BYTES)
        return sum_fast(crc, bytes, num_bytes);
    __m512i by_wide = load_shift(shift_wide);
    __m512i by_line = load_shift(shift_line);
    __m512i a =
        _mm512_xor_si512(load_line(bytes), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    __m512i b = load_line(bytes + LINE_BYTES);
    __m512i c = load_line(bytes + (size_t)2 * LINE_BYTES);
    __m512i d = load_line(bytes + (size_t)3 * LINE_BYTES);
    size_t i = WIDE_BYTES;
    for (; num_bytes - i >= WIDE_BYTES; i += WIDE_BYTES) {
        a = fold(a, by_wide, load_line(bytes + i));
        b = fold(b, by_wide, load_line(bytes + i + LINE_BYTES));
        c = fold(c, by_wide, load_line(bytes + i + (size_t)2 * LINE_BYTES));
        d = fold(d, by_wide, load_line(bytes + i + (size_t)3 * LINE_BYTES));
    }
    a = fold(fold(fold(a, by_line, b), by_line, c), by_line, d);
    for (; num_bytes - i >= LINE_BYTES; i += LINE_BYTES)
        a = fold(a, by_line, load_line(bytes + i));
    // What is left has the same sum as all that came before.
    _mm512_storeu_si512((void *)rest, a);
    return sum_fast(sum_fast(0, rest, sizeof(rest)), bytes + i, num_bytes - i);
}
#endif

static void
fill_tables(void)
{
    static const uint8_t zeros[LANE_BYTES];
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL_REVERSED : 0);
        byte_table[i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++) {
        for (int k = 0; k < 4; k++)
            lane_table[k][i] = sum_plain(i << (8 * k), zeros, sizeof(zeros));
    }
}

// Those that this CPU has, the best one last.
static struct kernel kernels[3];
static size_t num_kernels;

static void
find_kernels(void)
{
    kernels[num_kernels++] = (struct kernel){"table", sum_plain};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        kernels[num_kernels++] = (struct kernel){"sse4.2", sum_fast};
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("vpclmulqdq")) {
        shift_line = shift_by(LINE_BYTES);
        shift_wide = shift_by(WIDE_BYTES);
        kernels[num_kernels++] = (struct kernel){"avx512", sum_wide};
    }
#elif defined(__aarch64__)
    if ((getauxval(AT_HWCAP) & HWCAP_CRC32) != 0)
        kernels[num_kernels++] = (struct kernel){"armv8", sum_fast};
#endif
}

static void
choose_kernel(void)
{
    fill_tables();
    find_kernels();
    kernel = &kernels[num_kernels - 1];
}

uint32_t
lli_crc32c(uint32_t crc, const void *bytes, size_t num_bytes)
{
    pthread_once(&once, choose_kernel);
    return ~kernel->sum(~crc, bytes, num_bytes);
}

uint32_t
lli_crc32c_plain(uint32_t crc, const void *bytes, size_t num_bytes)
{
    pthread_once(&once, choose_kernel);
    return ~sum_plain(~crc, bytes, num_bytes);
}

const char *
lli_crc32c_kernel_name(void)
{
    pthread_once(&once, choose_kernel);
    return kernel->name;
}

bool
lli_crc32c_use(const char *kernel_name)
{
    pthread_once(&once, choose_kernel);
    for (size_t i = 0; i < num_kernels; i++) {
        if (strcmp(kernels[i].name, kernel_name) == 0)
            kernel = &kernels[i];
    }
    return strcmp(kernel->name, kernel_name) == 0;
}

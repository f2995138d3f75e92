// The instruction takes 8 bytes in a cycle, but its result comes three cycles later: three lanes side
// by side keep it busy, and are then combined.  That a CRC is linear makes both tables: what a byte
// does, and what LANE_BYTES zeros behind a lane do to its sum.
#include "device/crc32c.h"

#include <pthread.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define POLYNOMIAL_REVERSED 0x82f63b78u

enum { LANE_BYTES = 1024, NUM_LANES = 3 };

static uint32_t byte_table[256];
static uint32_t lane_table[4][256];
static uint32_t (*kernel)(uint32_t crc, const uint8_t *bytes, size_t num_bytes);
static const char *kernel_name;
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

static void
choose_kernel(void)
{
    fill_tables();
    kernel = sum_plain;
    kernel_name = "table";
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) {
        kernel = sum_fast;
        kernel_name = "sse4.2";
    }
#elif defined(__aarch64__)
    if ((getauxval(AT_HWCAP) & HWCAP_CRC32) != 0) {
        kernel = sum_fast;
        kernel_name = "armv8";
    }
#endif
}

uint32_t
lli_crc32c(uint32_t crc, const void *bytes, size_t num_bytes)
{
    pthread_once(&once, choose_kernel);
    return ~kernel(~crc, bytes, num_bytes);
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
    return kernel_name;
}

// CRC32C (Castagnoli), by the CPU's instruction where it has one.
#ifndef LLI_CRC32C_H
#define LLI_CRC32C_H

#include "base/base.h"

// The checksum of `bytes` behind what gave `crc`; begin with 0.
uint32_t lli_crc32c(uint32_t crc, const void *bytes, size_t num_bytes);

// "avx512", "sse4.2", "armv8" or "table".
const char *lli_crc32c_kernel_name(void);

// From now on by this one, as a test wants; false if the CPU hasn't got it.
bool lli_crc32c_use(const char *kernel_name);

// By tables, on every CPU: what the others are tested against.
uint32_t lli_crc32c_plain(uint32_t crc, const void *bytes, size_t num_bytes);

#endif

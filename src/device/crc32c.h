// CRC32C (Castagnoli), by the CPU's instruction where it has one.
#ifndef LLI_CRC32C_H
#define LLI_CRC32C_H

#include "base/base.h"

// The checksum of `bytes` behind what gave `crc`; begin with 0.
uint32_t lli_crc32c(uint32_t crc, const void *bytes, size_t num_bytes);

// "sse4.2", "armv8" or "table".
const char *lli_crc32c_kernel_name(void);

// By tables, on every CPU: what the others are tested against.
uint32_t lli_crc32c_plain(uint32_t crc, const void *bytes, size_t num_bytes);

#endif

// What nobody has written in a memory file: holes.  To read them there would make memory of them, on
// the account of whoever reads; they are zeros.
#ifndef LLI_HOLES_H
#define LLI_HOLES_H

#include "base/base.h"
#include "base/os.h"

// How many zeros lli_zeros() has.
enum { LLI_ZERO_BYTES = 256 << 10 };

// Transfers of less are read without a look: that costs a system call.
#define LLI_LOOKED_AT_BYTES_MIN ((uint64_t)1 << 20)

// Memory files in which a transfer's source may be.
struct lli_holes {
    const struct lli_memory_file *files;
    size_t num_files; // 0: nothing is looked at
};

// How many of the `bytes` at `address` were never written, from the first one on; 0 also where that
// can't be known.  Whoever writes at the same time may have done so before or after.
uint64_t lli_hole_bytes(const struct lli_holes *holes, uintptr_t address, uint64_t bytes);

// Zeros that take no memory.
const uint8_t *lli_zeros(void);

#endif

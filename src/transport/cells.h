// The checksums of data on its way: a CRC32C for each cell of a transfer's stream, so that the one
// that differs tells which block it is.
#ifndef LLI_CELLS_H
#define LLI_CELLS_H

#include "transport/holes.h"
#include "transport/plan.h"

enum { LLI_CELL_BYTES = 16 << 10, LLI_CELL_SUM_BYTES = 4 };

// The cells that `bytes` > 0 from `first` on touch.
static inline size_t
lli_cells_count(uint64_t first, uint64_t bytes)
{
    return (size_t)((first + bytes - 1) / LLI_CELL_BYTES - first / LLI_CELL_BYTES + 1);
}

// Sums up what lies in one side's tensors, for each of these cells as much of it as is in the range.
// is_source: use the plan's src_offset, else dst_offset.  Up to the first memory, what is a hole is not
// read; `holes` may be NULL.
void lli_cells_sum(const struct lli_plan *plan, const uintptr_t *tensors, bool is_source,
                   const struct lli_holes *holes, uint64_t first, uint64_t bytes,
                   uint8_t *ret_sums);

#endif

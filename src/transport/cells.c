#include "transport/cells.h"

#include "base/wire.h"
#include "device/crc32c.h"

// Where the piece begins in memory, or zeros in the place of a hole; *holes becomes NULL, and nothing is
// looked at any more, where there is none.
static const void *
piece_at(uintptr_t address, const struct lli_holes **holes, uint64_t *bytes)
{
    uint64_t hole_bytes = *holes != NULL ? lli_hole_bytes(*holes, address, *bytes) : 0;
    if (hole_bytes > 0) {
        *bytes = lli_min(hole_bytes, LLI_ZERO_BYTES);
        return lli_zeros();
    }
    *holes = NULL;
    return (const void *)address;
}

// The sum of one cell's bytes; *place moves behind them.
static uint32_t
sum_cell(const struct lli_plan *plan, const uintptr_t *tensors, bool is_source,
         const struct lli_holes **holes, uint64_t bytes, struct lli_place *place)
{
    uint32_t sum = 0;
    while (bytes > 0) {
        const struct lli_run *run = &plan->runs[place->run];
        uint64_t offset = (is_source ? run->src_offset : run->dst_offset) + place->offset;
        uint64_t piece_bytes = lli_min(run->bytes - place->offset, bytes);
        const void *piece = piece_at(tensors[place->tensor] + offset, holes, &piece_bytes);
        sum = lli_crc32c(sum, piece, piece_bytes);
        bytes -= piece_bytes;
        place->offset += piece_bytes;
        if (place->offset < run->bytes)
            continue;
        place->offset = 0;
        if (++place->run == plan->num_runs) {
            place->run = 0;
            place->tensor++;
        }
    }
    return sum;
}

void
lli_cells_sum(const struct lli_plan *plan, const uintptr_t *tensors, bool is_source,
              const struct lli_holes *holes, uint64_t first, uint64_t bytes, uint8_t *ret_sums)
{
    struct lli_place place = lli_plan_locate(plan, first);
    struct lli_writer w;
    uint64_t end = first + bytes;
    lli_writer_init(&w, ret_sums, lli_cells_count(first, bytes) * LLI_CELL_SUM_BYTES);
    while (first < end) {
        uint64_t cell_bytes = lli_min(LLI_CELL_BYTES - first % LLI_CELL_BYTES, end - first);
        lli_write_u32(&w, sum_cell(plan, tensors, is_source, &holes, cell_bytes, &place));
        first += cell_bytes;
    }
}

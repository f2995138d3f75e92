#include "transport/holes.h"

#include <errno.h>
#include <unistd.h>

static uint8_t zeros[LLI_ZERO_BYTES]; // never written

const uint8_t *
lli_zeros(void)
{
    return zeros;
}

static uint64_t
look(const struct lli_memory_file *file, uint64_t offset, uint64_t bytes)
{
    off_t data = lseek(file->fd, (off_t)offset, SEEK_DATA);
    // Nothing but a hole up to the end.
    if (data < 0)
        return errno == ENXIO ? bytes : 0;
    return (uint64_t)data <= offset ? 0 : lli_min((uint64_t)data - offset, bytes);
}

uint64_t
lli_hole_bytes(const struct lli_holes *holes, uintptr_t address, uint64_t bytes)
{
    for (size_t i = 0; i < holes->num_files; i++) {
        const struct lli_memory_file *file = &holes->files[i];
        uint64_t offset = address - (uintptr_t)file->base;
        if (address >= (uintptr_t)file->base && offset < file->bytes && file->fd >= 0)
            return look(file, offset, lli_min(bytes, file->bytes - offset));
    }
    return 0;
}

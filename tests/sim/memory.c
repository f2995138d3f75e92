// Memory with an owner: what a process has allocated or mapped goes with it, and is counted.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "sim.h"

// ---- blocks: an open hash table by address ----

struct block {
    void *start;
    size_t bytes;
    struct sim_process *process;
};

static struct block *blocks;
static size_t room_for_blocks;
static size_t num_blocks; // slots in use, erased ones included
static char erased;

static size_t
first_place(const void *start)
{
    return (size_t)sim_hash((uintptr_t)start, 0) & (room_for_blocks - 1);
}

static void
put_block(struct block block)
{
    size_t i = first_place(block.start);
    while (blocks[i].start != NULL)
        i = (i + 1) & (room_for_blocks - 1);
    blocks[i] = block;
    num_blocks++;
}

static void
make_room(void)
{
    if (num_blocks * 2 < room_for_blocks)
        return;
    struct block *old = blocks;
    size_t old_room = room_for_blocks;
    size_t live = 0;
    for (size_t i = 0; i < old_room; i++)
        live += old[i].start != NULL && old[i].start != &erased;
    room_for_blocks = 1024;
    while (room_for_blocks < live * 4)
        room_for_blocks *= 2;
    blocks = calloc(room_for_blocks, sizeof(*blocks));
    num_blocks = 0;
    for (size_t i = 0; i < old_room; i++) {
        if (old[i].start != NULL && old[i].start != &erased)
            put_block(old[i]);
    }
    free(old);
}

static struct block *
find_block(const void *start)
{
    if (room_for_blocks == 0)
        return NULL;
    for (size_t i = first_place(start); blocks[i].start != NULL;
         i = (i + 1) & (room_for_blocks - 1)) {
        if (blocks[i].start == start)
            return &blocks[i];
    }
    return NULL;
}

static void *
note_block(struct sim_process *process, void *start, size_t bytes)
{
    if (start == NULL || process == NULL)
        return start;
    make_room();
    put_block((struct block){.start = start, .bytes = bytes, .process = process});
    return start;
}

static void
forget_block(void *start)
{
    struct block *block = find_block(start);
    if (block != NULL)
        block->start = &erased;
}

void *
sim_alloc(struct sim_process *process, size_t bytes)
{
    return note_block(process, malloc(bytes), bytes);
}

void
sim_dealloc(void *start)
{
    forget_block(start);
    free(start);
}

size_t
sim_memory_count(const struct sim_process *process)
{
    size_t count = 0;
    for (size_t i = 0; i < room_for_blocks; i++)
        count +=
            blocks[i].start != NULL && blocks[i].start != &erased && blocks[i].process == process;
    return count;
}

void
sim_memory_release(struct sim_process *process)
{
    for (size_t i = 0; i < room_for_blocks; i++) {
        if (blocks[i].start == NULL || blocks[i].start == &erased || blocks[i].process != process)
            continue;
        free(blocks[i].start);
        blocks[i].start = &erased;
    }
}

static bool
is_refused(void)
{
    const struct sim_process *process = sim_current_process();
    return process != NULL && process->short_of_memory && sim_chance(sim.fault_rate);
}

SIM_CALL(void *, malloc, size_t bytes)
{
    return is_refused() ? NULL : note_block(sim_current_process(), malloc(bytes), bytes);
}

SIM_CALL(void *, calloc, size_t count, size_t bytes)
{
    return is_refused() ? NULL
                        : note_block(sim_current_process(), calloc(count, bytes), count * bytes);
}

SIM_CALL(void *, realloc, void *start, size_t bytes)
{
    if (is_refused())
        return NULL;
    struct block *block = start != NULL ? find_block(start) : NULL;
    struct sim_process *owner = block != NULL ? block->process : sim_current_process();
    if (block != NULL)
        block->start = &erased;
    return note_block(owner, realloc(start, bytes), bytes);
}

SIM_CALL(void, free, void *start)
{
    sim_dealloc(start);
}

// ---- mappings ----

struct sim_map {
    struct sim_map *next;
    uint8_t *base;
    size_t bytes;
};

void *
sim_map_file(struct sim_process *process, int real_fd, size_t bytes, int protection, int flags)
{
    void *base = mmap(NULL, bytes, protection, flags, real_fd, 0);
    if (base == MAP_FAILED)
        return base;
    struct sim_map *map = malloc(sizeof(*map));
    *map = (struct sim_map){.next = process->maps, .base = base, .bytes = bytes};
    process->maps = map;
    return base;
}

SIM_CALL(void *, mmap, void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    struct sim_process *process = sim_current_process();
    (void)address;
    sim_point();
    if ((flags & MAP_ANONYMOUS) != 0)
        return sim_map_file(process, -1, bytes, protection, flags);
    struct sim_file *file = sim_fd_file(fd);
    if (file == NULL)
        return MAP_FAILED;
    if (file->kind != SIM_FILE_MEMORY || offset != 0) {
        sim_fail("mmap of something that isn't a memory file");
        return MAP_FAILED;
    }
    return sim_map_file(process, file->real_fd, bytes, protection, flags);
}

SIM_CALL(int, munmap, void *base, size_t bytes)
{
    struct sim_process *process = sim_current_process();
    for (struct sim_map **place = &process->maps; *place != NULL; place = &(*place)->next) {
        struct sim_map *map = *place;
        if (map->base != base)
            continue;
        if (map->bytes != bytes)
            sim_fail("munmap of %zu bytes, mapped were %zu", bytes, map->bytes);
        *place = map->next;
        munmap(map->base, map->bytes);
        free(map);
        return 0;
    }
    sim_fail("munmap of what isn't mapped");
    return -1;
}

SIM_CALL(int, madvise, void *base, size_t bytes, int advice)
{
    return sim_interrupted() ? -1 : madvise(base, bytes, advice);
}

void
sim_maps_release(struct sim_process *process)
{
    while (process->maps != NULL) {
        struct sim_map *map = process->maps;
        process->maps = map->next;
        munmap(map->base, map->bytes);
        free(map);
    }
}

bool
sim_memory_is_readable(const struct sim_process *process, const void *from, size_t bytes)
{
    const uint8_t *first = from;
    for (const struct sim_map *map = process->maps; map != NULL; map = map->next) {
        if (first >= map->base && bytes <= map->bytes &&
            (size_t)(first - map->base) <= map->bytes - bytes)
            return true;
    }
    for (size_t i = 0; i < room_for_blocks; i++) {
        const struct block *block = &blocks[i];
        if (block->start == NULL || block->start == &erased || block->process != process)
            continue;
        const uint8_t *start = block->start;
        if (first >= start && bytes <= block->bytes &&
            (size_t)(first - start) <= block->bytes - bytes)
            return true;
    }
    return false;
}

// ---- copying takes time, and others go on meanwhile ----

static size_t
portion(size_t bytes)
{
    size_t most = bytes / 3 + 64;
    return bytes < most ? bytes : 1 + (size_t)sim_below(most);
}

static void
copy_in_portions(uint8_t *to, const uint8_t *from, size_t bytes)
{
    while (bytes > 0) {
        size_t some = portion(bytes);
        memcpy(to, from, some);
        to += some;
        from += some;
        bytes -= some;
        sim_critical_point();
    }
}

SIM_CALL(void, lli_copy_cached, void *to, const void *from, size_t bytes)
{
    copy_in_portions(to, from, bytes);
}

SIM_CALL(void, lli_copy_streaming, void *to, const void *from, size_t bytes, const void *next)
{
    (void)next;
    copy_in_portions(to, from, bytes);
}

// All or nothing of each piece, as far as they are readable; 0 is not an answer.  In the middle
// only a signal that kills ends it.
SIM_CALL(ssize_t, process_vm_readv, pid_t pid, const struct iovec *local, unsigned long num_local,
         const struct iovec *remote, unsigned long num_remote, unsigned long flags)
{
    struct sim_process *here = sim_current_process();
    ssize_t copied = 0;
    (void)flags;
    if (num_local != num_remote) {
        sim_fail("process_vm_readv with %lu and %lu pieces", num_local, num_remote);
        return -1;
    }
    if (sim_interrupted())
        return -1;
    for (unsigned long i = 0; i < num_local; i++) {
        sim_critical_point();
        struct sim_process *there = sim_process_by_pid(pid);
        errno = 0;
        if (there == NULL || !there->alive || there->host != here->host)
            errno = ESRCH;
        else if (!here->can_read_others && there != here)
            errno = EPERM;
        else if (!sim_memory_is_readable(there, remote[i].iov_base, remote[i].iov_len))
            errno = EFAULT;
        if (errno != 0)
            return copied > 0 ? copied : -1;
        memcpy(local[i].iov_base, remote[i].iov_base, local[i].iov_len);
        copied += (ssize_t)local[i].iov_len;
    }
    return copied;
}

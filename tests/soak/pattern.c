#include "soak/pattern.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

// The library's thread writes and reads for a peer; what orders that with the program is a word
// between processes, or between instances, which the thread sanitizer can't see.
#define QUIET __attribute__((no_sanitize("thread")))

enum { AROUND_BYTES = 128, AROUND = 0xa5 };

const uint64_t strides[CLASSES] = {3001, 16384, 131072};

// Words at any address.
struct __attribute__((packed)) word {
    uint64_t value;
};

uint64_t
mix(uint64_t word)
{
    word = (word ^ word >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    word = (word ^ word >> 27) * UINT64_C(0x94d049bb133111eb);
    return word ^ word >> 31;
}

uint64_t
roll(uint64_t *dice, uint64_t limit)
{
    return mix(*dice += UINT64_C(0x9e3779b97f4a7c15)) % limit;
}

uint64_t
name_of(unsigned seat, uint64_t incarnation, uint64_t serial, unsigned tensor, unsigned block)
{
    return (uint64_t)(seat + 1) << 56 | (incarnation & 0xfffff) << 36 | (serial & 0xfffff) << 16 |
           (uint64_t)tensor << 8 | block;
}

void
name_describe(uint64_t name, char text[96])
{
    unsigned seat = (unsigned)(name >> 56) - 1;
    if (seat > NO_SEAT || (name >> 8 & 0xff) >= TENSORS || (name & 0xff) >= BLOCKS)
        snprintf(text, 96, "%016llx", (unsigned long long)name);
    else if (seat == NO_SEAT)
        snprintf(text, 96, "background %u", (unsigned)(name >> 16 & 0xfffff));
    else
        snprintf(text, 96, "cluster %u.%u, cache %u, tensor %u, block %u", 100 + seat,
                 (unsigned)(name >> 36 & 0xfffff), (unsigned)(name >> 16 & 0xfffff),
                 (unsigned)(name >> 8 & 0xff), (unsigned)(name & 0xff));
}

// Every eighth word is the name itself.
static inline uint64_t
word_of(uint64_t name, uint64_t index)
{
    if (index % 8 == 0)
        return name;
    return (name ^ index * UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xd1342543de82ef95);
}

QUIET static void
write_block(uintptr_t address, uint64_t name, uint64_t num_bytes)
{
    uint64_t i = 0;
    for (; i + 8 <= num_bytes; i += 8)
        ((volatile struct word *)(address + i))->value = word_of(name, i / 8);
    for (; i < num_bytes; i++)
        *(volatile uint8_t *)(address + i) = (uint8_t)(word_of(name, i / 8) >> i % 8 * 8);
}

QUIET static uint8_t
read_byte(uintptr_t address)
{
    return *(const volatile uint8_t *)address;
}

QUIET static uint64_t
read_word(uintptr_t address)
{
    return ((const volatile struct word *)address)->value;
}

// Where `num_bytes` first differ from those of the name from byte `from` on; `num_bytes` if nowhere.
QUIET static uint64_t
find_difference(uintptr_t address, uint64_t name, uint64_t from, uint64_t num_bytes)
{
    uint64_t i = 0;
    while (i < num_bytes) {
        uint64_t place = from + i;
        if (place % 8 == 0 && i + 8 <= num_bytes) {
            if (read_word(address + i) != word_of(name, place / 8))
                return i;
            i += 8;
        } else {
            if (read_byte(address + i) != (uint8_t)(word_of(name, place / 8) >> place % 8 * 8))
                return i;
            i++;
        }
    }
    return num_bytes;
}

_Atomic uint64_t *memory_next_place;

// Where memory is that peers name by address; the thread sanitizer permits it there as well.
static const uint64_t places_begin = UINT64_C(0x7e9000000000);
static const uint64_t places_end = UINT64_C(0x7f0000000000);

// 0: there is none left.
static uint64_t
next_place(uint64_t num_bytes)
{
    uint64_t place =
        places_begin + atomic_fetch_add(memory_next_place, (num_bytes + 65535) / 65536 * 65536);
    return place + num_bytes < places_end ? place : 0;
}

static uint8_t *
map_at(uint64_t place, size_t num_bytes)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (place != 0 ? MAP_FIXED_NOREPLACE : 0);
    return mmap((void *)(uintptr_t)place, num_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
}

bool
memory_map(struct memory *memory, unsigned stride_class)
{
    size_t step = BLOCKS * strides[stride_class] + 4 * AROUND_BYTES;
    *memory = (struct memory){.stride_class = stride_class, .arena_bytes = TENSORS * step};
    memory->arena = map_at(next_place(memory->arena_bytes), memory->arena_bytes);
    memory->is_unique = (uintptr_t)memory->arena >= places_begin && memory->arena != MAP_FAILED &&
                        (uintptr_t)memory->arena < places_end;
    if (memory->arena == MAP_FAILED)
        memory->arena = map_at(0, memory->arena_bytes);
    if (memory->arena == MAP_FAILED)
        return false;
    memset(memory->arena, AROUND, memory->arena_bytes);
    for (unsigned t = 0; t < TENSORS; t++)
        memory->tensors[t] = (uintptr_t)memory->arena + t * step + AROUND_BYTES + 1 + 7 * t;
    return true;
}

void
memory_unmap(struct memory *memory)
{
    if (memory->arena != NULL)
        munmap(memory->arena, memory->arena_bytes);
    memset(memory, 0, sizeof(*memory));
}

void
memory_name(const struct memory *memory, unsigned tensor, unsigned block, uint64_t name)
{
    uint64_t stride = strides[memory->stride_class];
    write_block(memory->tensors[tensor] + block * stride, name, stride);
}

void
memory_fill(const struct memory *memory, unsigned seat, uint64_t incarnation, uint64_t serial)
{
    for (unsigned t = 0; t < TENSORS; t++) {
        for (unsigned b = 0; b < BLOCKS; b++)
            memory_name(memory, t, b, name_of(seat, incarnation, serial, t, b));
    }
}

QUIET uint64_t
memory_checksum(const struct memory *memory)
{
    uint64_t num_bytes = BLOCKS * strides[memory->stride_class];
    uint64_t sum = 14695981039346656037u;
    for (unsigned t = 0; t < TENSORS; t++) {
        uint64_t i = 0;
        for (; i + 8 <= num_bytes; i += 8)
            sum = (sum ^ read_word(memory->tensors[t] + i)) * 1099511628211u;
        for (; i < num_bytes; i++)
            sum = (sum ^ read_byte(memory->tensors[t] + i)) * 1099511628211u;
    }
    return sum;
}

bool
memory_is_intact_around(const struct memory *memory)
{
    uint64_t num_bytes = BLOCKS * strides[memory->stride_class];
    for (unsigned t = 0; memory->arena != NULL && t < TENSORS; t++) {
        for (unsigned i = 0; i < AROUND_BYTES / 2; i++) {
            if (read_byte(memory->tensors[t] - 1 - i) != AROUND ||
                read_byte(memory->tensors[t] + num_bytes + i) != AROUND)
                return false;
        }
    }
    return true;
}

// False: `why` says where the bytes differ, and whose name may be there.
static bool
part_holds(uintptr_t address, uint64_t name, uint64_t from, uint64_t at, uint64_t num_bytes,
           char why[256])
{
    char expected[96];
    char found[96];
    uint64_t offset = find_difference(address + at, name, from, num_bytes);
    if (offset == num_bytes)
        return true;
    // The word in its place from where the name is written again.
    uint64_t place = (from + offset) / 64 * 64;
    name_describe(name, expected);
    name_describe(read_word(address + at + (place >= from ? place - from : offset)), found);
    snprintf(why, 256, "byte %llu: expected %s (byte %llu), found %s",
             (unsigned long long)(at + offset), expected, (unsigned long long)(from + offset),
             found);
    return false;
}

static bool
block_holds(uintptr_t address, const struct piece *piece, uint64_t background, uint64_t stride,
            char why[256])
{
    uint64_t begin = piece->name != 0 ? piece->at : stride;
    uint64_t end = piece->name != 0 ? piece->at + piece->num_bytes : stride;
    return part_holds(address, background, 0, 0, begin, why) &&
           part_holds(address, piece->name, piece->from, begin, end - begin, why) &&
           part_holds(address, background, end, end, stride - end, why);
}

bool
memory_holds(const struct memory *memory, const struct content *content, uint64_t background,
             bool strictly, char why[256])
{
    uint64_t stride = strides[memory->stride_class];
    char what[256];
    for (unsigned t = 0; t < TENSORS; t++) {
        for (unsigned b = 0; b < BLOCKS; b++) {
            const struct piece *piece = &content->pieces[t][b];
            if (piece->name != 0 && (!strictly || piece->is_open))
                continue;
            if (!block_holds(memory->tensors[t] + b * stride, piece,
                             name_of(NO_SEAT, 0, background, t, b), stride, what)) {
                snprintf(why, 256, "tensor %u, block %u, %.200s", t, b, what);
                return false;
            }
        }
    }
    snprintf(why, 256, "bytes around a tensor were touched");
    return memory_is_intact_around(memory);
}

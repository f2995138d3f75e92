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

// Where the bytes from `begin` to `end` first differ from those of the name; `end` if nowhere.
QUIET static uint64_t
find_difference(uintptr_t address, uint64_t name, uint64_t begin, uint64_t end)
{
    uint64_t i = begin;
    while (i < end) {
        if (i % 8 == 0 && i + 8 <= end) {
            if (((const volatile struct word *)(address + i))->value != word_of(name, i / 8))
                return i;
            i += 8;
        } else {
            if (read_byte(address + i) != (uint8_t)(word_of(name, i / 8) >> i % 8 * 8))
                return i;
            i++;
        }
    }
    return end;
}

bool
memory_map(struct memory *memory, unsigned stride_class)
{
    size_t step = BLOCKS * strides[stride_class] + 4 * AROUND_BYTES;
    *memory = (struct memory){.stride_class = stride_class, .arena_bytes = TENSORS * step};
    memory->arena =
        mmap(NULL, memory->arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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
memory_fill(const struct memory *memory, unsigned seat, uint64_t incarnation, uint64_t serial)
{
    uint64_t stride = strides[memory->stride_class];
    for (unsigned t = 0; t < TENSORS; t++) {
        for (unsigned b = 0; b < BLOCKS; b++)
            write_block(memory->tensors[t] + b * stride, name_of(seat, incarnation, serial, t, b),
                        stride);
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

static void
explain(char why[256], uintptr_t address, uint64_t offset, uint64_t name)
{
    char expected[96];
    char found[96];
    name_describe(name, expected);
    name_describe(read_word(address + offset / 64 * 64), found);
    snprintf(why, 256, "byte %llu: expected %s, found %s", (unsigned long long)offset, expected,
             found);
}

static bool
block_holds(uintptr_t address, const struct content *content, uint64_t name, uint64_t background,
            uint64_t stride, char why[256])
{
    uint64_t part = name != 0 ? content->part : 0;
    uint64_t offset = name != 0 ? find_difference(address, name, 0, part) : 0;
    if (offset < part) {
        explain(why, address, offset, name);
        return false;
    }
    offset = find_difference(address, background, part, stride);
    if (offset < stride) {
        explain(why, address, offset, background);
        return false;
    }
    return true;
}

bool
memory_holds(const struct memory *memory, const struct content *content, uint64_t background,
             bool strictly, char why[256])
{
    uint64_t stride = strides[memory->stride_class];
    char what[256];
    for (unsigned t = 0; t < TENSORS; t++) {
        for (unsigned b = 0; b < BLOCKS; b++) {
            uint64_t name = content->names[t][b];
            if (name != 0 && !strictly)
                continue;
            if (!block_holds(memory->tensors[t] + b * stride, content, name,
                             name_of(NO_SEAT, 0, background, t, b), stride, what)) {
                snprintf(why, 256, "tensor %u, block %u, %.200s", t, b, what);
                return false;
            }
        }
    }
    snprintf(why, 256, "bytes around a tensor were touched");
    return memory_is_intact_around(memory);
}

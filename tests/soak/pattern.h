// What the bytes of a block say: who owns it, in which incarnation, which cache, tensor and block.
// Every word of a block follows from its name, so a block carries one name or it is wrong.
#ifndef LLM_SOAK_PATTERN_H
#define LLM_SOAK_PATTERN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Every cache has so many tensors and blocks, and one of these strides.
enum { TENSORS = 4, TENSORS_PER_LAYER = 2, LAYERS = 2, BLOCKS = 8, CLASSES = 3 };

extern const uint64_t strides[CLASSES];

// The numbers of its parts have 6, 20, 20, 8 and 8 bits; 0 is no name.
uint64_t name_of(unsigned seat, uint64_t incarnation, uint64_t serial, unsigned tensor,
                 unsigned block);
// "cluster 101.7, cache 12, tensor 3, block 5"
void name_describe(uint64_t name, char text[96]);

// A cache's memory: the caller's own, with bytes around every tensor that nobody may touch, or the
// library's.
struct memory {
    uintptr_t tensors[TENSORS];
    unsigned stride_class;
    uint8_t *arena; // NULL: the library's, or none
    size_t arena_bytes;
    bool is_unique; // no other memory of this worker will be there, in whichever life
};

// What a block must hold: `num_bytes` of a named block from byte `from` on, beginning at byte `at`, and
// the background around them; no name is background alone.
struct piece {
    uint64_t name;
    uint64_t from;
    uint64_t at;
    uint64_t num_bytes;
    bool is_open; // anything may be there
};

struct content {
    struct piece pieces[TENSORS][BLOCKS];
};

// Counts the bytes of memory that were ever given out.
extern _Atomic uint64_t *memory_next_place;

bool memory_map(struct memory *memory, unsigned stride_class);
void memory_unmap(struct memory *memory);
// Names every block, of a serial number's cache or of a background.
void memory_fill(const struct memory *memory, unsigned seat, uint64_t incarnation, uint64_t serial);
// Names one block.
void memory_name(const struct memory *memory, unsigned tensor, unsigned block, uint64_t name);
uint64_t memory_checksum(const struct memory *memory);
bool memory_is_intact_around(const struct memory *memory);
// Where the background is serial number `background` of no seat; `strictly` is false: named pieces
// are open.  False: `why` says what is wrong where.
bool memory_holds(const struct memory *memory, const struct content *content, uint64_t background,
                  bool strictly, char why[256]);

uint64_t mix(uint64_t word);
// The next number of a sequence, below `limit`.
uint64_t roll(uint64_t *dice, uint64_t limit);

enum { NO_SEAT = 63 };

#endif

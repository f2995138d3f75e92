// What is moved: caches on either side, scattered blocks, and bytes that tell where they belong.
#include "bench.h"

#include <stdlib.h>
#include <string.h>

uint64_t
bench_work_bytes(const struct bench_work *work)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < work->num_parts; i++)
        bytes +=
            work->parts[i].block_bytes * work->parts[i].num_blocks * work->parts[i].num_tensors;
    return bytes;
}

uint64_t
bench_work_memory(const struct bench_work *work)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < work->num_parts; i++)
        bytes += work->parts[i].block_bytes * work->parts[i].num_slots * work->parts[i].num_tensors;
    return bytes;
}

uint64_t
bench_work_blocks(const struct bench_work *work)
{
    uint64_t blocks = 0;
    for (size_t i = 0; i < work->num_parts; i++)
        blocks += work->parts[i].num_blocks * work->parts[i].num_tensors;
    return blocks;
}

// A generator that gives the same numbers in both processes (splitmix64).
static uint64_t
next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

// All slots in a random order, again from the front when there are more blocks than slots.
static uint64_t *
scatter(const struct bench_part *part, uint64_t seed)
{
    uint64_t longest = part->num_blocks > part->num_slots ? part->num_blocks : part->num_slots;
    uint64_t *list = malloc(longest * sizeof(*list));
    if (list == NULL)
        return NULL;
    for (uint64_t i = 0; i < part->num_slots; i++)
        list[i] = i;
    for (uint64_t i = part->num_slots; i > 1; i--) {
        uint64_t j = next_random(&seed) % i;
        uint64_t swapped = list[i - 1];
        list[i - 1] = list[j];
        list[j] = swapped;
    }
    for (uint64_t i = part->num_slots; i < longest; i++)
        list[i] = list[i - part->num_slots]; // NOLINT: filled above
    return list;
}

bool
bench_blocks_init(struct bench_blocks *blocks, const struct bench_work *work,
                  struct bench_error *error)
{
    memset(blocks, 0, sizeof(*blocks));
    for (uint32_t i = 0; i < work->num_parts; i++) {
        blocks->src[i] = scatter(&work->parts[i], 2 * i + 1);
        blocks->dst[i] = scatter(&work->parts[i], 2 * i + 2);
        if (blocks->src[i] == NULL || blocks->dst[i] == NULL) {
            bench_blocks_fini(blocks);
            return bench_fail(error, "no memory for the lists of blocks");
        }
    }
    return true;
}

void
bench_blocks_fini(struct bench_blocks *blocks)
{
    for (size_t i = 0; i < BENCH_PARTS_MAX; i++) {
        free(blocks->src[i]);
        free(blocks->dst[i]);
    }
    memset(blocks, 0, sizeof(*blocks));
}

// The first word of a slot; the others follow by steps.
static uint64_t
first_word(uint32_t part, uint32_t tensor, uint64_t slot)
{
    uint64_t state = (uint64_t)part << 56 | (uint64_t)tensor << 40 | slot;
    return next_random(&state);
}

static const uint64_t word_step = 0x9e3779b97f4a7c15u;

static void
fill_slot(uint8_t *bytes, size_t num_bytes, uint64_t word)
{
    for (; num_bytes >= sizeof(word); num_bytes -= sizeof(word), bytes += sizeof(word)) {
        memcpy(bytes, &word, sizeof(word));
        word += word_step;
    }
    memcpy(bytes, &word, num_bytes);
}

static bool
check_slot(const uint8_t *bytes, size_t num_bytes, uint64_t word)
{
    uint64_t wrong = 0;
    for (; num_bytes >= sizeof(word); num_bytes -= sizeof(word), bytes += sizeof(word)) {
        uint64_t found;
        memcpy(&found, bytes, sizeof(found));
        wrong |= found ^ word;
        word += word_step;
    }
    return wrong == 0 && memcmp(bytes, &word, num_bytes) == 0;
}

void
bench_fill(const struct bench_work *work, const struct bench_memory *memory)
{
    for (uint32_t p = 0; p < work->num_parts; p++) {
        const struct bench_part *part = &work->parts[p];
        for (uint32_t t = 0; t < part->num_tensors; t++) {
            uint8_t *tensor = (uint8_t *)memory->parts[p].tensors[t];
            for (uint64_t s = 0; s < part->num_slots; s++)
                fill_slot(tensor + s * part->block_bytes, part->block_bytes, first_word(p, t, s));
        }
    }
}

void
bench_clear(const struct bench_work *work, const struct bench_memory *memory)
{
    for (uint32_t p = 0; p < work->num_parts; p++) {
        const struct bench_part *part = &work->parts[p];
        for (uint32_t t = 0; t < part->num_tensors; t++)
            memset((void *)memory->parts[p].tensors[t], 0xa5, part->num_slots * part->block_bytes);
    }
}

bool
bench_verify(const struct bench_work *work, const struct bench_blocks *blocks,
             const struct bench_memory *memory, struct bench_error *error)
{
    for (uint32_t p = 0; p < work->num_parts; p++) {
        const struct bench_part *part = &work->parts[p];
        for (uint32_t t = 0; t < part->num_tensors; t++) {
            const uint8_t *tensor = (const uint8_t *)memory->parts[p].tensors[t];
            for (uint64_t i = 0; i < part->num_blocks; i++) {
                if (!check_slot(tensor + blocks->dst[p][i] * part->block_bytes, part->block_bytes,
                                first_word(p, t, blocks->src[p][i])))
                    return bench_fail(error, "wrong data in block %llu of tensor %u, cache %u",
                                      (unsigned long long)blocks->dst[p][i], t, p);
            }
        }
    }
    return true;
}

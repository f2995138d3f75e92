// What unit tests share: cmocka with what it needs, a small generator of numbers, and waiting.
#ifndef LLM_UNIT_H
#define LLM_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/base.h"
#include "base/os.h"

enum { UNIT_PATIENCE_MS = 20000 };

// The same numbers in every run: a failure can be repeated.
static inline uint64_t
unit_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static inline void
unit_fill(void *bytes, size_t num_bytes, uint64_t seed)
{
    uint8_t *to = bytes;
    uint64_t state = seed;
    size_t i = 0;
    for (; i + 8 <= num_bytes; i += 8) {
        uint64_t value = unit_random(&state);
        memcpy(to + i, &value, 8);
    }
    for (; i < num_bytes; i++)
        to[i] = (uint8_t)unit_random(&state);
}

// Never NULL.
static inline void *
unit_alloc(size_t bytes)
{
    void *memory = calloc(bytes > 0 ? bytes : 1, 1);
    assert_non_null(memory);
    return memory;
}

#endif

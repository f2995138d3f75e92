// Generated text may be any bytes.
#ifndef LLM_TOOLS_DEMO_UTF8_H
#define LLM_TOOLS_DEMO_UTF8_H

#include <stddef.h>
#include <stdint.h>

// The bytes of the UTF-8 character at `at`, 0 if there is none.
static inline size_t
demo_utf8_length(const uint8_t *at, size_t left)
{
    uint8_t a = left > 0 ? at[0] : 0xFF;
    size_t length = a < 0x80 ? 1 : a < 0xC2 ? 0 : a < 0xE0 ? 2 : a < 0xF0 ? 3 : a < 0xF5 ? 4 : 0;
    if (length > left)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((at[i] & 0xC0) != 0x80)
            return 0;
    // Overlong forms, surrogates, and what lies beyond U+10FFFF.
    if ((a == 0xE0 && at[1] < 0xA0) || (a == 0xED && at[1] > 0x9F) || (a == 0xF0 && at[1] < 0x90) ||
        (a == 0xF4 && at[1] > 0x8F))
        return 0;
    return length;
}

#endif

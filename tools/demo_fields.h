// Lines of the form "verb key=value key=value": what the demo's processes say to each other.
// Values have no blanks.
#ifndef LLM_TOOLS_DEMO_FIELDS_H
#define LLM_TOOLS_DEMO_FIELDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "demo.h"

enum { DEMO_LINE_BYTES = 8192 };

// Each finds a key in a line and reads its value; false, and the reason in error, if the key is
// missing or its value isn't as it should be.
bool demo_get_word(const char *line, const char *key, char *word, size_t size, demo_error *error);
bool demo_get_u64(const char *line, const char *key, uint64_t most, uint64_t *value,
                  demo_error *error);

// "3,1,2", at most `room` numbers below `limit`.
bool demo_get_list(const char *line, const char *key, uint64_t limit, uint64_t *list, size_t room,
                   size_t *length, demo_error *error);

// Bytes in hexadecimal, at most `room` of them.
bool demo_get_bytes(const char *line, const char *key, uint8_t *bytes, size_t room, size_t *length,
                    demo_error *error);

// The other way: values in text.  `text` must have room for 21 characters per number, 2 per byte,
// and one more.
void demo_put_list(char *text, size_t size, const uint64_t *list, size_t length);
void demo_put_bytes(char *text, size_t size, const uint8_t *bytes, size_t length);

#endif

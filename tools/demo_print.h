// What the demo shows: texts, progress, the table, JSON.
#ifndef LLM_TOOLS_DEMO_PRINT_H
#define LLM_TOOLS_DEMO_PRINT_H

#include <stddef.h>
#include <stdint.h>

#include "demo.h"
#include "demo_way.h"

// Prints tokens as text, the prompt (if any) and what was generated as paragraphs of their own.
void demo_print_text(const uint8_t *tokens, size_t num_prompt, size_t num_tokens);

// Replaces the last line of a terminal by how far the way is; nothing in a pipe.
void demo_print_progress(const demo_way *way);

// Removes that line.
void demo_clear_progress(void);

// "pull over shm".
void demo_way_label(const demo_way *way, char *label, size_t size);

// One row per way that ran.
void demo_print_table(const demo_way *ways, size_t num_ways);

// Everything as one JSON object.  failure: "" if there was none.
void demo_print_json(const demo_options *options, const demo_way *ways, size_t num_ways,
                     const char *failure);

#endif

// A part of the demo that runs as a process of its own, seen from the main job.
#ifndef LLM_TOOLS_DEMO_CHILD_H
#define LLM_TOOLS_DEMO_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "demo.h"
#include "demo_fields.h"
#include "demo_sequence.h"

typedef struct demo_bytes {
    uint8_t *data;
    size_t size;
} demo_bytes;

// What a part has told so far.
typedef struct demo_told {
    bool done;       // its last word: all went well
    char error[640]; // its last word otherwise
    uint16_t port;
    uint32_t layers_done, layers;
    char transport[16];
    uint64_t first_us;
    uint64_t moved, moved_ns;
    uint8_t tokens[DEMO_MAX_TOKENS];
    size_t num_tokens;
    demo_bytes prefill, arrived, final; // KV caches
} demo_told;

typedef struct demo_child {
    const char *name; // "the decoder process", for messages; NULL before its start
    pid_t pid;        // 0 before its start and after its end
    int fd;           // what it tells comes here; -1 after its end
    int status;       // after its end
    bool spoilt;      // what it told made no sense
    char *input;
    size_t input_length, input_room;
    demo_told told;
} demo_child;

// Starts this program anew as `llm-datadist demo ARGUMENT...`; arguments ends with NULL.
bool demo_child_start(demo_child *child, const char *const *arguments, demo_error *error);

// Reads what the child has told since; waits for nothing.  At the child's end, closes child->fd.
void demo_child_read(demo_child *child);

// Kills the child if it still runs, and frees everything.
void demo_child_close(demo_child *child);

// Why the child failed, in words; false if it didn't, or not yet.
bool demo_child_failure(const demo_child *child, char *text, size_t size);

// Whether it was a signal that ended it.
bool demo_child_was_killed(const demo_child *child);

#endif

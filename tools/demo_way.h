// One way of making the text, in processes of its own.
#ifndef LLM_TOOLS_DEMO_WAY_H
#define LLM_TOOLS_DEMO_WAY_H

#include <stdbool.h>

#include "demo.h"
#include "demo_child.h"

typedef struct demo_way {
    const char *name;      // "alone", "pull", "push"
    const char *transport; // NULL for alone
    bool ran;              // and all went well
    demo_child prompt;     // not for alone
    demo_child decoder;    // alone: the one process
} demo_way;

// Called whenever a process has told something.
typedef void (*demo_progress)(void *arg, const demo_way *way);

// Runs the processes to their end, within the time limit.
bool demo_way_run(demo_way *way, const demo_options *options, demo_progress progress, void *arg,
                  demo_error *error);

void demo_way_close(demo_way *way);

#endif

// What the files of `llm-datadist demo` share.
//
// Two rings.  The main job (demo_run.c) starts the processes, collects what they tell and compares.
// The processes play a part each (demo_prompt.c, demo_decoder.c, demo_alone.c): prefill, hand the KV
// cache over, decode.  A person can start the parts by hand; they don't know the difference but for
// --report-fd, which takes them to the parent.
#ifndef LLM_TOOLS_DEMO_H
#define LLM_TOOLS_DEMO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/address.h"

// Why something failed, in one line.
typedef struct demo_error {
    char text[640];
} demo_error;

// Writes the reason, unless one is there already (the first is the cause), and returns false.
__attribute__((format(printf, 2, 3))) bool demo_fail(demo_error *error, const char *format, ...);

// Milliseconds of a clock that only goes forward.
double demo_now_ms(void);

typedef enum demo_part {
    DEMO_PART_ALL = 1, // the main job
    DEMO_PART_PROMPT = 2,
    DEMO_PART_DECODER = 4,
    DEMO_PART_ALONE = 8
} demo_part;

typedef struct demo_options {
    demo_part part;
    bool help;
    bool json;
    bool push;             // the way: the prompt pushes, or the decoder pulls
    const char *transport; // "shm", "tcp", or NULL for the library's choice
    const char *prompt;
    uint32_t tokens; // to generate
    uint32_t seed;   // 0: always the likeliest token
    uint32_t repeat;
    uint32_t timeout_s;
    struct lli_endpoint listen; // host "" if none was given
    struct lli_endpoint connect;
    int report_fd; // -1: a person is watching
} demo_options;

// Reads the command line, argv[0] being "demo".  On a mistake: false, and the reason in error.
bool demo_parse(int argc, char **argv, demo_options *options, demo_error *error);

// Explains the part.
void demo_print_help(demo_part part);

// The parts.  Each returns an exit code.
int demo_run(const demo_options *options);
int demo_prompt(const demo_options *options);
int demo_decoder(const demo_options *options);
int demo_alone(const demo_options *options);

#endif

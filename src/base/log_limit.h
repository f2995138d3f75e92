// Repeats: a loop that fails a thousand times a second fills no disk.
#ifndef LLI_LOG_LIMIT_H
#define LLI_LOG_LIMIT_H

#include "base/base.h"

enum { LLI_LOG_GIST_BYTES = 160 };

// What a place in the code has left out.
struct lli_log_left_out {
    llm_log_level level;
    unsigned num_lines;
    char gist[LLI_LOG_GIST_BYTES]; // the beginning of the last one
};

// Whether a line of the place in the code that `format` stands for is said now: in one second, each
// text once, and LLI_LOG_TEXTS_PER_SECOND of them.  Never blocks.  [any thread]
enum { LLI_LOG_TEXTS_PER_SECOND = 50 };
bool lli_log_is_said(llm_log_level level, const char *format, const char *line, uint64_t now_ns);

// What was left out in a second that has passed; false if nothing.  [any thread]
bool lli_log_take_left_out(uint64_t now_ns, struct lli_log_left_out *ret_left_out);

// Forgets all that has been said.
void lli_log_begin_anew(void);
// In a forked child.
void lli_log_limit_in_child(void);

#endif

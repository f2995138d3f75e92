// Standard error, as the log uses it: a reader that doesn't read costs lines, never time.
#ifndef LLI_LOG_OUT_H
#define LLI_LOG_OUT_H

#include "base/base.h"

// Writes `bytes` at once or not at all (a terminal may take a part); never blocks.  What can't be
// written is counted, and told when there is room again.  Keeps errno.
void lli_log_out(const char *line, size_t bytes);

#endif

// One line per event, to a sink.  Nothing on the data path below debug.
//
// Levels: error = an operation failed; warn = degraded, still running; info = links and caches come
// and go; debug = per transfer.
#ifndef LLI_LOG_H
#define LLI_LOG_H

#include "base/base.h"

bool lli_log_enabled(llm_log_level level);

// `room` is the speaker: "options", "link", "tcp", ...
void lli_log(llm_log_level level, const char *room, const char *format, ...) LLI_PRINTF(3, 4);

// Explains a failure once: logs one line at error level, keeps it for llm_last_error, and returns
// `status`.  Called by the function that detects the fault; those above only pass the status on.
llm_status lli_fail(llm_status status, const char *room, const char *format, ...) LLI_PRINTF(3, 4);
#ifdef __clang_analyzer__
// It doesn't look into log.c: a failure is never LLM_SUCCESS.
#define lli_fail(status, ...) (lli_fail(status, __VA_ARGS__), (llm_status)(status))
#endif

// Lines of this thread name that instance from now on.
void lli_log_speak_for(uint64_t cluster_id);

// Tells what repeated itself too often to be said each time (log_limit.h).  Called now and then.
void lli_log_left_out(uint64_t now_ns);

// In a forked child: another thread of the parent's may have held the log's locks.
void lli_log_in_child(void);

// Control characters become '?': texts of peers and callers are shown, and returned.
void lli_clean_text(char *text);

// Same, without the log line: keeps the text of an error that another thread has logged.
void lli_set_last_error(const char *text);

// Parses "error", "warn", ...; false if it is none of them.
bool lli_log_level_parse(const char *text, llm_log_level *ret_level);

#endif

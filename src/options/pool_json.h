// Between the two files of this room; nobody else includes it.
#ifndef LLI_POOL_JSON_H
#define LLI_POOL_JSON_H

#include "options/options.h"

// How much of a caller's text goes into a log line, so that the expectation behind it still fits.
enum { LLI_SHOWN_BYTES = 200 };

// Logs `key is "value": <message>` and returns LLM_PARAM_INVALID.  A long value is cut.
llm_status lli_reject_option(const char *key, const char *value, const char *format, ...)
    LLI_PRINTF(3, 4);

// Steps 1 to 5 of §4.6: sets pool_bytes, and pool_json if there are tiers to be read later.
llm_status lli_pool_json_load(const char *value, struct lli_options *options);

#endif

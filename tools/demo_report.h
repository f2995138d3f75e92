// What a part of the demo tells: records to the main job that started it, or plain lines to a person.
#ifndef LLM_TOOLS_DEMO_REPORT_H
#define LLM_TOOLS_DEMO_REPORT_H

#include <stddef.h>
#include <stdint.h>

#include "demo.h"
#include "demo_sequence.h"

// A record for the main job, a line of demo_fields.h; nothing if a person is watching.
__attribute__((format(printf, 2, 3))) void demo_tell(const demo_options *options,
                                                     const char *format, ...);

// A line for a person; nothing under the main job.
__attribute__((format(printf, 2, 3))) void demo_say(const demo_options *options, const char *format,
                                                    ...);

// Tells the bytes of the KV cache under a name.
bool demo_tell_kv(const demo_options *options, const demo_sequence *sequence, const char *name,
                  size_t num_tokens, demo_error *error);

// Tells the tokens that were generated.
void demo_tell_tokens(const demo_options *options, const demo_sequence *sequence);

// The last words of a part; returns its exit code.
int demo_tell_end(const demo_options *options, const demo_error *error);

// The median of transfer times in nanoseconds; sorts them.
uint64_t demo_median(uint64_t *times, size_t count);

#endif

// What a part of the demo tells.
#include "demo_report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "demo_fields.h"
#include "tools.h"

// The main job reads all the time; if it doesn't any more, it has ended and so will this process.
static void
write_all(int fd, const void *bytes, size_t size)
{
    const char *at = bytes;
    while (size > 0) {
        ssize_t n = write(fd, at, size);
        if (n < 0 && errno != EINTR)
            return;
        if (n > 0) {
            at += n;
            size -= (size_t)n;
        }
    }
}

void
demo_tell(const demo_options *options, const char *format, ...)
{
    char line[DEMO_LINE_BYTES];
    if (options->report_fd < 0)
        return;
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (length < 0 || (size_t)length >= sizeof line - 1)
        return;
    line[length] = '\n';
    write_all(options->report_fd, line, (size_t)length + 1);
}

void
demo_say(const demo_options *options, const char *format, ...)
{
    if (options->report_fd >= 0)
        return;
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
}

bool
demo_tell_kv(const demo_options *options, const demo_sequence *sequence, const char *name,
             size_t num_tokens, demo_error *error)
{
    size_t size;
    if (options->report_fd < 0)
        return true;
    uint8_t *bytes = demo_gather(sequence, num_tokens, &size);
    if (bytes == NULL)
        return demo_fail(error, "out of memory for %zu bytes of KV cache", size);
    demo_tell(options, "kv name=%s size=%zu", name, size);
    write_all(options->report_fd, bytes, size);
    free(bytes);
    return true;
}

void
demo_tell_tokens(const demo_options *options, const demo_sequence *s)
{
    char hex[2 * DEMO_MAX_TOKENS + 1];
    demo_put_bytes(hex, sizeof hex, s->tokens + s->num_prompt, s->num_known - s->num_prompt);
    demo_tell(options, "tokens hex=%s", hex);
}

int
demo_tell_end(const demo_options *options, const demo_error *error)
{
    if (error->text[0] == '\0') {
        demo_tell(options, "done");
        return TOOL_OK;
    }
    demo_tell(options, "error %s", error->text);
    demo_say(options, "demo: FAILED: %s", error->text);
    return TOOL_FAILED;
}

static int
compare_times(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

uint64_t
demo_median(uint64_t *times, size_t count)
{
    qsort(times, count, sizeof *times, compare_times);
    return times[count / 2];
}

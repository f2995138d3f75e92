#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { LINE_BYTES = 1024 };

static const char *const level_names[] = {"off", "error", "warn", "info", "debug"};

static atomic_int current_level = LLM_LOG_WARN;
static bool level_from_environment;
static pthread_once_t environment_once = PTHREAD_ONCE_INIT;

// Guards the sink and its argument, so that llm_set_log_sink returns only when the old one is idle.
static pthread_rwlock_t sink_lock = PTHREAD_RWLOCK_INITIALIZER;
static llm_log_sink sink;
static void *sink_arg;

static _Thread_local char last_error[LINE_BYTES];

bool
lli_log_level_parse(const char *text, llm_log_level *ret_level)
{
    for (size_t i = 0; i < LLI_COUNT(level_names); i++) {
        if (strcmp(text, level_names[i]) == 0) {
            *ret_level = (llm_log_level)i;
            return true;
        }
    }
    return false;
}

static void
read_environment(void)
{
    const char *text = getenv("LLM_DATADIST_LOG_LEVEL");
    llm_log_level level;
    if (text == NULL || text[0] == '\0')
        return;
    if (lli_log_level_parse(text, &level)) {
        atomic_store(&current_level, (int)level);
        level_from_environment = true;
    } else {
        fprintf(stderr,
                "llm_datadist warn log: LLM_DATADIST_LOG_LEVEL is \"%s\", expected off, error, "
                "warn, info or debug\n",
                text);
    }
}

void
llm_set_log_level(llm_log_level level)
{
    pthread_once(&environment_once, read_environment);
    if (!level_from_environment && level >= LLM_LOG_OFF && level <= LLM_LOG_DEBUG)
        atomic_store(&current_level, (int)level);
}

void
llm_set_log_sink(llm_log_sink new_sink, void *arg)
{
    pthread_rwlock_wrlock(&sink_lock);
    sink = new_sink;
    sink_arg = arg;
    pthread_rwlock_unlock(&sink_lock);
}

bool
lli_log_enabled(llm_log_level level)
{
    pthread_once(&environment_once, read_environment);
    return (int)level <= atomic_load_explicit(&current_level, memory_order_relaxed);
}

static void
write_to_stderr(llm_log_level level, const char *line)
{
    struct timespec now;
    struct tm parts;
    char stamp[32];
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &parts);
    strftime(stamp, sizeof(stamp), "%H:%M:%S", &parts);
    fprintf(stderr, "%s.%03ld llm_datadist %s %s\n", stamp, now.tv_nsec / 1000000,
            level_names[level], line);
}

static void
emit(llm_log_level level, const char *line)
{
    pthread_rwlock_rdlock(&sink_lock);
    if (sink != NULL)
        sink(sink_arg, level, line);
    else
        write_to_stderr(level, line);
    pthread_rwlock_unlock(&sink_lock);
}

// Builds "room: message" and returns the message part.
static LLI_PRINTF(3, 0) const
    char *format_line(char *line, const char *room, const char *format, va_list args)
{
    int room_bytes = snprintf(line, LINE_BYTES, "%s: ", room);
    vsnprintf(line + room_bytes, LINE_BYTES - (size_t)room_bytes, format, args);
    // Peers and callers supply some of these texts: one event stays one line.
    for (char *c = line; *c != '\0'; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    }
    return line + room_bytes;
}

void
lli_log(llm_log_level level, const char *room, const char *format, ...)
{
    if (!lli_log_enabled(level))
        return;
    char line[LINE_BYTES];
    va_list args;
    va_start(args, format);
    format_line(line, room, format, args);
    va_end(args);
    emit(level, line);
}

#undef lli_fail
llm_status
lli_fail(llm_status status, const char *room, const char *format, ...)
{
    char line[LINE_BYTES];
    va_list args;
    va_start(args, format);
    format_line(line, room, format, args);
    va_end(args);
    lli_set_last_error(line);
    if (lli_log_enabled(LLM_LOG_ERROR)) {
        char with_status[LINE_BYTES + 64];
        snprintf(with_status, sizeof(with_status), "%s (%s)", line, llm_status_name(status));
        emit(LLM_LOG_ERROR, with_status);
    }
    return status;
}

void
lli_set_last_error(const char *text)
{
    snprintf(last_error, sizeof(last_error), "%s", text);
}

size_t
llm_last_error(char *buf, size_t size)
{
    if (buf != NULL && size > 0)
        snprintf(buf, size, "%s", last_error);
    return strlen(last_error);
}

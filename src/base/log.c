#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/lock.h"
#include "base/log_limit.h"
#include "base/log_out.h"
#include "base/mem.h"
#include "base/os.h"

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

// A line that waits until its thread holds no lock.
struct waiting_line {
    struct waiting_line *next;
    llm_log_level level;
    char text[LINE_BYTES];
};

static _Thread_local struct {
    unsigned num_locks; // held by this thread
    struct waiting_line *first;
    struct waiting_line **end;
} held;

static _Thread_local struct {
    bool is_known;
    uint64_t cluster_id;
} speaker;

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

void
lli_clean_text(char *text)
{
    for (char *c = text; *c != '\0'; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    }
}

static void
write_to_stderr(llm_log_level level, const char *line)
{
    struct timespec now;
    struct tm parts;
    char date[32];
    char zone[8];
    char text[LINE_BYTES + 128];
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &parts);
    strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &parts);
    strftime(zone, sizeof(zone), "%z", &parts);
    int bytes = snprintf(text, sizeof(text), "%s.%03ld%s llm_datadist[%d] %s %s\n", date,
                         now.tv_nsec / 1000000, zone, (int)getpid(), level_names[level], line);
    lli_log_out(text, (size_t)bytes);
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
        char line[LINE_BYTES];
        snprintf(line, sizeof(line),
                 "log: LLM_DATADIST_LOG_LEVEL is \"%s\", expected off, error, warn, info or debug",
                 text);
        lli_clean_text(line);
        write_to_stderr(LLM_LOG_WARN, line);
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
    lli_log_begin_anew();
    pthread_rwlock_unlock(&sink_lock);
}

void
lli_log_in_child(void)
{
    sink_lock = (pthread_rwlock_t)PTHREAD_RWLOCK_INITIALIZER;
    lli_log_limit_in_child();
}

bool
lli_log_enabled(llm_log_level level)
{
    pthread_once(&environment_once, read_environment);
    return (int)level <= atomic_load_explicit(&current_level, memory_order_relaxed);
}

static void
write_line(llm_log_level level, const char *line)
{
    pthread_rwlock_rdlock(&sink_lock);
    if (sink != NULL)
        sink(sink_arg, level, line);
    else
        write_to_stderr(level, line);
    pthread_rwlock_unlock(&sink_lock);
}

// Without memory for it the line is written at once.
static bool
keep_for_later(llm_log_level level, const char *line)
{
    struct waiting_line *waiting = lli_malloc(sizeof(*waiting));
    if (waiting == NULL)
        return false;
    waiting->next = NULL;
    waiting->level = level;
    snprintf(waiting->text, sizeof(waiting->text), "%s", line);
    *(held.first == NULL ? &held.first : held.end) = waiting;
    held.end = &waiting->next;
    return true;
}

static void
write_waiting(void)
{
    while (held.first != NULL) {
        struct waiting_line *waiting = held.first;
        held.first = waiting->next;
        write_line(waiting->level, waiting->text);
        lli_free(waiting);
    }
}

void
lli_lock(pthread_mutex_t *mutex)
{
    pthread_mutex_lock(mutex);
    held.num_locks++;
}

void
lli_unlock(pthread_mutex_t *mutex)
{
    pthread_mutex_unlock(mutex);
    if (--held.num_locks == 0 && held.first != NULL)
        write_waiting();
}

void
lli_log_left_out(uint64_t now_ns)
{
    struct lli_log_left_out left_out;
    while (lli_log_take_left_out(now_ns, &left_out)) {
        char line[LINE_BYTES];
        snprintf(line, sizeof(line), "%s [%u more like it, not shown]", left_out.gist,
                 left_out.num_lines);
        if (held.num_locks == 0 || !keep_for_later(left_out.level, line))
            write_line(left_out.level, line);
    }
}

// `format` stands for the place in the code.
static void
emit(llm_log_level level, const char *format, const char *line)
{
    if (level <= LLM_LOG_WARN) {
        uint64_t now_ns = lli_now_ns();
        lli_log_left_out(now_ns);
        if (!lli_log_is_said(level, format, line, now_ns))
            return;
    }
    if (held.num_locks == 0 || !keep_for_later(level, line))
        write_line(level, line);
}

void
lli_log_speak_for(uint64_t cluster_id)
{
    speaker.is_known = true;
    speaker.cluster_id = cluster_id;
}

// Builds "cluster 2: room: message" and returns where the room begins.
static LLI_PRINTF(3, 0) const
    char *format_line(char *line, const char *room, const char *format, va_list args)
{
    int speaker_bytes = 0;
    if (speaker.is_known)
        speaker_bytes =
            snprintf(line, LINE_BYTES, "cluster %llu: ", (unsigned long long)speaker.cluster_id);
    int bytes = speaker_bytes +
                snprintf(line + speaker_bytes, LINE_BYTES - (size_t)speaker_bytes, "%s: ", room);
    vsnprintf(line + bytes, LINE_BYTES - (size_t)bytes, format, args);
    // Peers and callers supply some of these texts: one event stays one line.
    lli_clean_text(line);
    return line + speaker_bytes;
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
    emit(level, format, line);
}

#undef lli_fail
llm_status
lli_fail(llm_status status, const char *room, const char *format, ...)
{
    char line[LINE_BYTES];
    va_list args;
    va_start(args, format);
    lli_set_last_error(format_line(line, room, format, args));
    va_end(args);
    if (lli_log_enabled(LLM_LOG_ERROR)) {
        char with_status[LINE_BYTES + 64];
        snprintf(with_status, sizeof(with_status), "%s (%s)", line, llm_status_name(status));
        emit(LLM_LOG_ERROR, format, with_status);
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

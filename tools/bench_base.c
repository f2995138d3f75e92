// Errors, clocks, memory, sizes.
#include "bench.h"

#include <string.h>
#include <sys/resource.h>
#include <time.h>

bool
bench_fail(struct bench_error *error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof(error->text), format, args);
    va_end(args);
    return false;
}

bool
bench_fail_status(struct bench_error *error, llm_status status, const char *what)
{
    char why[200];
    llm_last_error(why, sizeof(why));
    return bench_fail(error, "%s: %s (%s)", what, llm_status_name(status), why);
}

uint64_t
bench_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t
bench_cpu_ns(void)
{
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

// The number of KiB behind `key` in a file of lines "key:  number kB"; 0 if it isn't there.
static uint64_t
read_kib(const char *path, const char *key)
{
    char line[128];
    unsigned long long kib = 0;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return 0;
    while (fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, key, strlen(key)) == 0 && line[strlen(key)] == ':' &&
            sscanf(line + strlen(key) + 1, "%llu", &kib) == 1)
            break;
    }
    fclose(file);
    return kib;
}

uint64_t
bench_memory_bytes(void)
{
    return (read_kib("/proc/self/status", "VmRSS") + read_kib("/proc/self/status", "VmPTE")) << 10;
}

uint64_t
bench_available_bytes(void)
{
    return read_kib("/proc/meminfo", "MemAvailable") << 10;
}

uint64_t
bench_raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return 0;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_max;
}

const char *
bench_size(uint64_t bytes, char text[16])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double size = (double)bytes;
    size_t unit = 0;
    while (size >= 1024 && unit < 4) {
        size /= 1024;
        unit++;
    }
    bool whole = size == (double)(uint64_t)size || size >= 100;
    snprintf(text, 16, whole ? "%.0f %s" : "%.1f %s", size, units[unit]);
    return text;
}

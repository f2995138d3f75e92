// The command line of `llm-datadist bench`.
#include "bench.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "tools.h"

static const char *const names[] = {"--help",  "--list", "--set", "--only",  "--rounds",
                                    "--bytes", "--json", "--svg", "--clock", NULL};

static int usage(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int
usage(const char *format, ...)
{
    va_list args;
    fprintf(stderr, "llm-datadist bench: ");
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "; llm-datadist bench --help tells more\n");
    return TOOL_USAGE;
}

static bool
parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *ret_number)
{
    size_t digits = strspn(text, "0123456789");
    uint64_t factor = 1;
    if (digits == 0 || digits > 12)
        return false;
    switch (text[digits]) {
    case '\0':
        break;
    case 'K':
        factor = 1 << 10;
        break;
    case 'M':
        factor = 1 << 20;
        break;
    case 'G':
        factor = 1 << 30;
        break;
    default:
        return false;
    }
    if (factor > 1 && text[digits + 1] != '\0')
        return false;
    *ret_number = strtoull(text, NULL, 10) * factor;
    return *ret_number >= least && *ret_number <= most;
}

static bool
names_a_table(const char *pattern)
{
    for (size_t i = 0; i < bench_num_cases; i++) {
        if (fnmatch(pattern, bench_cases[i].name, 0) == 0)
            return true;
    }
    return false;
}

static int
take_only(struct bench_options *options, const char *value)
{
    if (!names_a_table(value))
        return usage("no table is called '%s' (--list lists them)", value);
    if (options->num_only == BENCH_ONLY_MAX)
        return usage("more than %d times --only", BENCH_ONLY_MAX);
    options->only[options->num_only++] = value;
    return TOOL_OK;
}

static int
take_value(struct bench_options *options, const char *name, const char *value)
{
    uint64_t number;
    if (strcmp(name, "--only") == 0)
        return take_only(options, value);
    if (strcmp(name, "--set") == 0) {
        options->long_set = strcmp(value, "long") == 0;
        if (!options->long_set && strcmp(value, "short") != 0)
            return usage("--set %s: expected short or long", value);
    } else if (strcmp(name, "--clock") == 0) {
        options->cpu_clock = strcmp(value, "cpu") == 0;
        if (!options->cpu_clock && strcmp(value, "wall") != 0)
            return usage("--clock %s: expected wall or cpu", value);
    } else if (strcmp(name, "--rounds") == 0) {
        if (!parse_number(value, 1, BENCH_ROUNDS_MAX, &number))
            return usage("--rounds %s: expected a number from 1 to %d", value, BENCH_ROUNDS_MAX);
        options->rounds = (unsigned)number;
    } else if (strcmp(name, "--bytes") == 0) {
        if (!parse_number(value, 1 << 20, UINT64_C(64) << 30, &options->bytes))
            return usage("--bytes %s: expected 1M to 64G", value);
    } else if (strcmp(name, "--svg") == 0) {
        options->svg = value;
    } else if (!parse_number(value, 0, 1 << 20, &number)) {
        return usage("--owner-fd %s: expected a descriptor", value);
    } else {
        options->owner_fd = (int)number;
    }
    return TOOL_OK;
}

static bool
take_flag(struct bench_options *options, const char *name)
{
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        options->help = true;
    else if (strcmp(name, "--list") == 0)
        options->list = true;
    else if (strcmp(name, "--json") == 0)
        options->json = true;
    else
        return false;
    return true;
}

static bool
takes_value(const char *name)
{
    static const char *const with_value[] = {"--set", "--only",  "--rounds",  "--bytes",
                                             "--svg", "--clock", "--owner-fd"};
    for (size_t i = 0; i < sizeof(with_value) / sizeof(with_value[0]); i++) {
        if (strcmp(name, with_value[i]) == 0)
            return true;
    }
    return false;
}

int
bench_parse(int argc, char **argv, struct bench_options *ret_options)
{
    struct bench_options options = {.rounds = 11, .bytes = 128 << 20, .owner_fd = -1};
    for (int i = 1; i < argc; i++) {
        if (take_flag(&options, argv[i]))
            continue;
        if (!takes_value(argv[i])) {
            const char *closest = tool_closest(argv[i], names);
            return closest != NULL ? usage("'%s' is unknown, did you mean '%s'?", argv[i], closest)
                                   : usage("'%s' is unknown", argv[i]);
        }
        if (i + 1 == argc)
            return usage("%s needs a value", argv[i]);
        int result = take_value(&options, argv[i], argv[i + 1]);
        if (result != TOOL_OK)
            return result;
        i++;
    }
    *ret_options = options;
    return TOOL_OK;
}

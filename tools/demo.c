// llm-datadist demo: finds out which part this process plays.
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "demo.h"
#include "tools.h"

bool
demo_fail(demo_error *error, const char *format, ...)
{
    if (error->text[0] != '\0')
        return false;
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
    return false;
}

double
demo_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static int
play(const demo_options *options)
{
    switch (options->part) {
    case DEMO_PART_PROMPT:
        return demo_prompt(options);
    case DEMO_PART_DECODER:
        return demo_decoder(options);
    case DEMO_PART_ALONE:
        return demo_alone(options);
    case DEMO_PART_ALL:
        break;
    }
    return demo_run(options);
}

int
tool_demo(int argc, char **argv)
{
    demo_options options;
    demo_error error = {""};
    if (!demo_parse(argc, argv, &options, &error)) {
        fprintf(stderr, "llm-datadist %s\n", error.text);
        return TOOL_USAGE;
    }
    if (options.help) {
        demo_print_help(options.part);
        return TOOL_OK;
    }
    return play(&options);
}

// The command llm-datadist: finds the subcommand and hands over to it.
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "llm_datadist/llm_datadist_c.h"
#include "tools.h"

static const struct subcommand {
    const char *name;
    const char *help;
    int (*run)(int argc, char **argv);
} subcommands[] = {
    {"bench", "how fast KV caches move, beside what the machine allows", tool_bench},
    {"demo", "a prompt process hands its KV cache to a decoder process", tool_demo},
    {"info", "the library, its transports and options, and what this machine allows", tool_info},
};

enum {
    NUM_SUBCOMMANDS = sizeof(subcommands) / sizeof(subcommands[0]),
    MAX_WORD = 24 // longer words resemble nothing
};

static void
print_help(FILE *out)
{
    fprintf(out, "llm-datadist moves KV caches between the processes that serve a language model.\n"
                 "\n"
                 "usage: llm-datadist SUBCOMMAND [ARGUMENT...]\n"
                 "\n");
    for (size_t i = 0; i < NUM_SUBCOMMANDS; i++)
        fprintf(out, "    %-10s%s\n", subcommands[i].name, subcommands[i].help);
    fprintf(out,
            "\n"
            "llm-datadist SUBCOMMAND --help explains one of them; --version tells the version.\n"
            "Begin with:\n"
            "\n"
            "    llm-datadist demo\n"
            "\n"
            "LLM_DATADIST_LOG_LEVEL=info in the environment shows how links come about.\n");
}

static size_t
min3(size_t a, size_t b, size_t c)
{
    size_t least = a < b ? a : b;
    return least < c ? least : c;
}

// How many letters to insert, delete or replace to turn one word into the other.
static size_t
edit_distance(const char *a, const char *b)
{
    size_t row[MAX_WORD + 1];
    size_t length_a = strlen(a);
    size_t length_b = strlen(b);
    if (length_a > MAX_WORD || length_b > MAX_WORD)
        return MAX_WORD;
    for (size_t j = 0; j <= length_b; j++)
        row[j] = j;
    for (size_t i = 1; i <= length_a; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= length_b; j++) {
            size_t above = row[j];
            row[j] = min3(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[length_b];
}

const char *
tool_closest(const char *word, const char *const *names)
{
    const char *closest = NULL;
    size_t closest_distance = 3; // further away is another word
    for (; *names != NULL; names++) {
        size_t distance = edit_distance(word, *names);
        if (distance < closest_distance && distance < strlen(*names)) {
            closest = *names;
            closest_distance = distance;
        }
    }
    return closest;
}

static int
unknown_subcommand(const char *word)
{
    const char *names[NUM_SUBCOMMANDS + 1] = {NULL};
    for (size_t i = 0; i < NUM_SUBCOMMANDS; i++)
        names[i] = subcommands[i].name;
    const char *closest = tool_closest(word, names);
    fprintf(stderr, "llm-datadist: there is no subcommand '%s'", word);
    if (closest != NULL)
        fprintf(stderr, "; did you mean '%s'?\n", closest);
    else
        fprintf(stderr, "; llm-datadist --help lists them\n");
    return TOOL_USAGE;
}

static void
end(int number)
{
    _exit(128 + number);
}

// The first process of a pid namespace, as in a container, is ended by no signal that it doesn't handle.
static void
end_as_first_process(void)
{
    static const int numbers[] = {SIGINT, SIGTERM};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        struct sigaction action;
        if (sigaction(numbers[i], NULL, &action) == 0 && action.sa_handler == SIG_DFL) {
            action.sa_handler = end;
            sigaction(numbers[i], &action, NULL);
        }
    }
}

int
main(int argc, char **argv)
{
    if (getpid() == 1)
        end_as_first_process();
    if (argc < 2) {
        print_help(stderr);
        return TOOL_USAGE;
    }
    const char *word = argv[1];
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        print_help(stdout);
        return TOOL_OK;
    }
    if (strcmp(word, "--version") == 0) {
        printf("llm-datadist %s\n", llm_version());
        return TOOL_OK;
    }
    for (size_t i = 0; i < NUM_SUBCOMMANDS; i++) {
        if (strcmp(word, subcommands[i].name) == 0)
            return subcommands[i].run(argc - 1, argv + 1);
    }
    return unknown_subcommand(word);
}

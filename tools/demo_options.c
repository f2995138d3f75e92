// The command line of `llm-datadist demo`: one table row per option.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "demo.h"
#include "tools.h"

// 178 bytes: eleven full KV blocks and a part of one.
#define DEFAULT_PROMPT                                                                             \
    "And it came to pass in those days, that a certain man went up early in the morning unto the " \
    "mountain; and he lifted up his eyes, and looked upon the sea, and he opened his mouth, "

// tiny_llm's context has 512 tokens; prompt and generated tokens share it.
enum { CONTEXT = 512, MOST_PROMPT = 448 };

typedef enum kind {
    KIND_FLAG,
    KIND_NUMBER,
    KIND_TEXT,
    KIND_TRANSPORT,
    KIND_WAY,
    KIND_LISTEN,
    KIND_CONNECT
} kind;

enum {
    ALL = DEMO_PART_ALL,
    PROMPT = DEMO_PART_PROMPT,
    DECODER = DEMO_PART_DECODER,
    ALONE = DEMO_PART_ALONE,
    EVERY = ALL | PROMPT | DECODER | ALONE
};

typedef struct row {
    const char *name;
    int parts; // those that have the option
    kind kind;
    size_t offset; // of its field, for KIND_FLAG, KIND_NUMBER, KIND_TEXT
    uint32_t least, most;
    const char *expected;
} row;

static const row rows[] = {
    {"--help", EVERY, KIND_FLAG, offsetof(demo_options, help), 0, 0, NULL},
    {"-h", EVERY, KIND_FLAG, offsetof(demo_options, help), 0, 0, NULL},
    {"--json", ALL, KIND_FLAG, offsetof(demo_options, json), 0, 0, NULL},
    {"--listen", PROMPT, KIND_LISTEN, 0, 0, 0, "HOST:PORT, such as 127.0.0.1:26000 (port 0: any)"},
    {"--connect", DECODER, KIND_CONNECT, 0, 0, 0, "HOST:PORT, such as 127.0.0.1:26000"},
    {"--transport", ALL | PROMPT | DECODER, KIND_TRANSPORT, 0, 0, 0, "shm or tcp"},
    {"--way", DECODER, KIND_WAY, 0, 0, 0, "pull or push"},
    {"--prompt", ALL | PROMPT | ALONE, KIND_TEXT, offsetof(demo_options, prompt), 1, MOST_PROMPT,
     "1 to 448 bytes of text"},
    {"--tokens", ALL | PROMPT | ALONE, KIND_NUMBER, offsetof(demo_options, tokens), 1, CONTEXT - 1,
     "a number from 1 to 511"},
    {"--seed", ALL | PROMPT | ALONE, KIND_NUMBER, offsetof(demo_options, seed), 0, 1000000,
     "a number from 0 to 1000000"},
    {"--repeat", ALL | PROMPT, KIND_NUMBER, offsetof(demo_options, repeat), 1, 10000,
     "a number from 1 to 10000"},
    {"--timeout", EVERY, KIND_NUMBER, offsetof(demo_options, timeout_s), 1, 3600,
     "a number of seconds from 1 to 3600"},
    // Not for people: where the parts report to the main job.
    {"--report-fd", PROMPT | DECODER | ALONE, KIND_NUMBER, offsetof(demo_options, report_fd), 0,
     1 << 20, "an open file descriptor"},
};

enum { NUM_ROWS = sizeof(rows) / sizeof(rows[0]) };

static const struct part_name {
    const char *name;
    demo_part part;
    const char *full; // as the user typed it
} part_names[] = {
    {"prompt", DEMO_PART_PROMPT, "demo prompt"},
    {"decoder", DEMO_PART_DECODER, "demo decoder"},
    {"alone", DEMO_PART_ALONE, "demo alone"},
    {NULL, DEMO_PART_ALL, "demo"},
};

enum { NUM_PARTS = sizeof(part_names) / sizeof(part_names[0]) };

static const struct part_name *
find_part(demo_part part)
{
    const struct part_name *name = part_names;
    while (name->part != part)
        name++;
    return name;
}

static bool
parse_number(const char *text, uint32_t least, uint32_t most, uint32_t *number)
{
    size_t digits = strspn(text, "0123456789");
    if (digits == 0 || digits > 9 || text[digits] != '\0')
        return false;
    *number = (uint32_t)strtoul(text, NULL, 10);
    return *number >= least && *number <= most;
}

static bool
parse_place(const char *text, uint32_t least_port, struct lli_endpoint *ret_place)
{
    const char *digits;
    uint32_t port;
    struct lli_endpoint place;
    if (!lli_endpoint_split(text, text + strlen(text), &place, &digits) ||
        !parse_number(digits, least_port, 65535, &port))
        return false;
    place.port = (uint16_t)port;
    *ret_place = place;
    return true;
}

static bool
set_transport(demo_options *o, const char *value)
{
    o->transport = value;
    return strcmp(value, "shm") == 0 || strcmp(value, "tcp") == 0;
}

static bool
set_way(demo_options *o, const char *value)
{
    o->push = strcmp(value, "push") == 0;
    return o->push || strcmp(value, "pull") == 0;
}

static bool
set_value(demo_options *o, const row *r, const char *value)
{
    char *field = (char *)o + r->offset;
    switch (r->kind) {
    case KIND_NUMBER:
        return parse_number(value, r->least, r->most, (uint32_t *)(void *)field);
    case KIND_TEXT:
        *(const char **)(void *)field = value;
        return strlen(value) >= r->least && strlen(value) <= r->most;
    case KIND_TRANSPORT:
        return set_transport(o, value);
    case KIND_WAY:
        return set_way(o, value);
    case KIND_LISTEN:
        return parse_place(value, 0, &o->listen);
    case KIND_CONNECT:
        return parse_place(value, 1, &o->connect);
    case KIND_FLAG:
        break;
    }
    return false;
}

static const row *
find_row(const char *word, size_t length, demo_part part)
{
    for (size_t i = 0; i < NUM_ROWS; i++) {
        if (strncmp(rows[i].name, word, length) == 0 && rows[i].name[length] == '\0' &&
            (rows[i].parts & (int)part) != 0)
            return &rows[i];
    }
    return NULL;
}

static bool
unknown_argument(const char *word, const struct part_name *part, demo_error *error)
{
    const char *names[NUM_ROWS + NUM_PARTS] = {NULL};
    size_t n = 0;
    for (size_t i = 0; part->part == DEMO_PART_ALL && part_names[i].name != NULL; i++)
        names[n++] = part_names[i].name;
    for (size_t i = 0; i < NUM_ROWS; i++) {
        if ((rows[i].parts & (int)part->part) != 0 && strcmp(rows[i].name, "--report-fd") != 0)
            names[n++] = rows[i].name;
    }
    const char *closest = tool_closest(word, names);
    if (closest != NULL)
        return demo_fail(error, "%s: there is no argument '%s'; did you mean '%s'?", part->full,
                         word, closest);
    return demo_fail(error, "%s: there is no argument '%s'; llm-datadist %s --help lists them",
                     part->full, word, part->full);
}

// Reads the option at argv[0] and returns how many words it took; 0 on a mistake.
static int
parse_option(int argc, char **argv, const struct part_name *part, demo_options *o,
             demo_error *error)
{
    const char *word = argv[0];
    size_t length = strcspn(word, "=");
    const row *r = find_row(word, length, part->part);
    if (r == NULL || (r->kind == KIND_FLAG && word[length] == '='))
        return unknown_argument(word, part, error);
    if (r->kind == KIND_FLAG) {
        *(bool *)((char *)o + r->offset) = true;
        return 1;
    }
    bool joined = word[length] == '=';
    if (!joined && argc < 2)
        return demo_fail(error, "%s: %s needs a value: expected %s", part->full, r->name,
                         r->expected);
    const char *value = joined ? word + length + 1 : argv[1];
    if (!set_value(o, r, value))
        return demo_fail(error, "%s: %s: '%s' is not allowed: expected %s", part->full, r->name,
                         value, r->expected);
    return joined ? 1 : 2;
}

// What no single option can know.
static bool
check_together(const demo_options *o, const struct part_name *part, demo_error *error)
{
    if (o->part == DEMO_PART_PROMPT && o->listen.host[0] == '\0')
        return demo_fail(error, "demo prompt: --listen HOST:PORT is missing");
    if (o->part == DEMO_PART_DECODER && o->connect.host[0] == '\0')
        return demo_fail(error, "demo decoder: --connect HOST:PORT is missing");
    size_t together = strlen(o->prompt) + o->tokens;
    if (together > CONTEXT)
        return demo_fail(error,
                         "%s: a prompt of %zu bytes and --tokens %u are %zu tokens together: "
                         "expected at most %d, the context of the model",
                         part->full, strlen(o->prompt), (unsigned)o->tokens, together, CONTEXT);
    return true;
}

static void
set_defaults(demo_options *o)
{
    *o = (demo_options){.part = DEMO_PART_ALL,
                        .prompt = DEFAULT_PROMPT,
                        .tokens = 240,
                        .seed = 1,
                        .repeat = 20,
                        .timeout_s = 30,
                        .report_fd = -1};
}

bool
demo_parse(int argc, char **argv, demo_options *options, demo_error *error)
{
    set_defaults(options);
    int at = 1;
    for (const struct part_name *p = part_names; argc > 1 && p->name != NULL; p++) {
        if (strcmp(argv[1], p->name) == 0) {
            options->part = p->part;
            at = 2;
        }
    }
    const struct part_name *part = find_part(options->part);
    while (at < argc) {
        int taken = parse_option(argc - at, argv + at, part, options, error);
        if (taken == 0)
            return false;
        at += taken;
    }
    return options->help || check_together(options, part, error);
}

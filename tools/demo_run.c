// llm-datadist demo: the main job.  Makes the text in every way and compares.
#include <stdio.h>
#include <string.h>

#include "demo.h"
#include "demo_print.h"
#include "demo_way.h"
#include "tools.h"

// Begins with "alone", which the others are compared with.
enum { MAX_WAYS = 5 };

typedef struct job {
    const demo_options *options;
    demo_error error;
    demo_way ways[MAX_WAYS];
    size_t num_ways;
} job;

static void
add_way(job *j, const char *name, const char *transport)
{
    if (transport == NULL || j->options->transport == NULL ||
        strcmp(transport, j->options->transport) == 0)
        j->ways[j->num_ways++] = (demo_way){
            .name = name, .transport = transport, .prompt = {.fd = -1}, .decoder = {.fd = -1}};
}

static void
list_ways(job *j)
{
    add_way(j, "alone", NULL);
    add_way(j, "pull", "shm");
    add_way(j, "pull", "tcp");
    add_way(j, "push", "shm");
    add_way(j, "push", "tcp");
}

static bool
compare_tokens(const demo_told *alone, const demo_told *told, demo_error *error)
{
    size_t n = alone->num_tokens < told->num_tokens ? alone->num_tokens : told->num_tokens;
    for (size_t i = 0; i < n; i++)
        if (alone->tokens[i] != told->tokens[i])
            return demo_fail(error, "generated token %zu is %u, and %u in one process alone", i,
                             told->tokens[i], alone->tokens[i]);
    return alone->num_tokens == told->num_tokens ||
           demo_fail(error, "%zu tokens were generated, and %zu in one process alone",
                     told->num_tokens, alone->num_tokens);
}

static bool
compare_kv(const char *which, const demo_bytes *alone, const demo_bytes *kv, demo_error *error)
{
    if (alone->size == 0 || alone->size != kv->size)
        return demo_fail(error, "%s has %zu bytes, and %zu in one process alone", which, kv->size,
                         alone->size);
    for (size_t i = 0; i < kv->size; i++)
        if (alone->data[i] != kv->data[i])
            return demo_fail(error, "byte %zu of %s differs from that of one process alone", i,
                             which);
    return true;
}

static bool
compare(const demo_way *alone_way, const demo_way *way, demo_error *error)
{
    const demo_told *alone = &alone_way->decoder.told;
    const demo_told *prompt = &way->prompt.told, *decoder = &way->decoder.told;
    if (way == alone_way)
        return true;
    return compare_kv("the prompt's KV cache", &alone->prefill, &prompt->prefill, error) &&
           compare_kv("the KV cache that arrived", &alone->prefill, &decoder->arrived, error) &&
           compare_tokens(alone, decoder, error) &&
           compare_kv("the decoder's KV cache at the end", &alone->final, &decoder->final, error);
}

static void
show_progress(void *arg, const demo_way *way)
{
    const job *j = arg;
    if (!j->options->json)
        demo_print_progress(way);
}

static void
show_result(const job *j, const demo_way *way)
{
    char label[32];
    const demo_told *told = &way->decoder.told;
    if (j->options->json)
        return;
    demo_clear_progress();
    demo_way_label(way, label, sizeof label);
    printf("%-15s %zu tokens, %zu KiB of KV cache%s\n", label, told->num_tokens,
           told->final.size / 1024, way->transport == NULL ? "" : ": identical");
    fflush(stdout);
}

static bool
run_way(job *j, demo_way *way)
{
    char label[32];
    demo_error error = {""};
    if (demo_way_run(way, j->options, show_progress, j, &error) &&
        compare(&j->ways[0], way, &error)) {
        show_result(j, way);
        return true;
    }
    way->ran = false;
    if (!j->options->json)
        demo_clear_progress();
    demo_way_label(way, label, sizeof label);
    return demo_fail(&j->error, "%s: %s", label, error.text);
}

static void
show_text(const job *j)
{
    const demo_told *alone = &j->ways[0].decoder.told;
    size_t num_prompt = strlen(j->options->prompt);
    uint8_t text[2 * DEMO_MAX_TOKENS];
    memcpy(text, j->options->prompt, num_prompt);
    memcpy(text + num_prompt, alone->tokens, alone->num_tokens);
    demo_print_text(text, num_prompt, num_prompt + alone->num_tokens);
}

static void
show_all(const job *j)
{
    if (j->options->json) {
        demo_print_json(j->options, j->ways, j->num_ways, j->error.text);
        return;
    }
    if (j->ways[0].ran) {
        putchar('\n');
        show_text(j);
        putchar('\n');
        demo_print_table(j->ways, j->num_ways);
        printf(
            "\nGB/s is the median of --repeat %u.  So small a cache stays in the processor's: this "
            "shows\nthat transfers work, not how fast memory is.\n",
            (unsigned)j->options->repeat);
    }
}

// The verdict is the last line; beside JSON it goes to standard error.
static int
conclude(const job *j)
{
    FILE *out = j->options->json ? stderr : stdout;
    fflush(stdout);
    if (j->error.text[0] != '\0') {
        fprintf(out, "demo: FAILED: %s\n", j->error.text);
        return TOOL_FAILED;
    }
    fprintf(out, "demo: ok, the same tokens and the same KV cache each of %zu times\n",
            j->num_ways);
    return TOOL_OK;
}

int
demo_run(const demo_options *options)
{
    job j = {.options = options};
    list_ways(&j);
    for (size_t i = 0; i < j.num_ways && run_way(&j, &j.ways[i]); i++)
        ;
    show_all(&j);
    int code = conclude(&j);
    for (size_t i = 0; i < j.num_ways; i++)
        demo_way_close(&j.ways[i]);
    return code;
}

// llm-datadist demo --json.
#include <stdio.h>
#include <string.h>

#include "demo_print.h"
#include "demo_utf8.h"

static void
print_string(const void *text, size_t size)
{
    const uint8_t *at = text;
    putchar('"');
    for (size_t i = 0; i < size;) {
        size_t length = demo_utf8_length(at + i, size - i);
        if (length == 0)
            fputs("\\ufffd", stdout);
        else if (at[i] == '"' || at[i] == '\\')
            printf("\\%c", at[i]);
        else if (at[i] < ' ' || at[i] == 0x7F)
            printf("\\u%04x", at[i]);
        else
            fwrite(at + i, 1, length, stdout);
        i += length == 0 ? 1 : length;
    }
    putchar('"');
}

static void
print_way(const demo_way *way)
{
    const demo_told *told = &way->decoder.told;
    printf("{\"way\": \"%s\", \"transport\": ", way->name);
    if (way->transport == NULL)
        printf("null, \"bytes_moved\": 0, \"gb_per_s\": null");
    else
        printf("\"%s\", \"bytes_moved\": %llu, \"gb_per_s\": %.4f", told->transport,
               (unsigned long long)told->moved,
               told->moved_ns == 0 ? 0.0 : (double)told->moved / (double)told->moved_ns);
    printf(", \"first_token_ms\": %.3f}", (double)told->first_us / 1e3);
}

void
demo_print_json(const demo_options *o, const demo_way *ways, size_t num_ways, const char *failure)
{
    const demo_told *alone = &ways[0].decoder.told;
    printf("{\"result\": \"%s\", \"failure\": ", failure[0] == '\0' ? "ok" : "failed");
    if (failure[0] == '\0')
        printf("null");
    else
        print_string(failure, strlen(failure));
    printf(",\n \"prompt\": ");
    print_string(o->prompt, strlen(o->prompt));
    printf(",\n \"generated\": ");
    print_string(alone->tokens, alone->num_tokens);
    printf(
        ",\n \"prompt_tokens\": %zu, \"generated_tokens\": %zu, \"kv_bytes\": %zu,\n \"ways\": [",
        strlen(o->prompt), alone->num_tokens, alone->final.size);
    for (size_t i = 0; i < num_ways && ways[i].ran; i++) {
        printf("%s\n  ", i == 0 ? "" : ",");
        print_way(&ways[i]);
    }
    printf("\n ]}\n");
}

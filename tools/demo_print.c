// What the demo shows to people.
#include "demo_print.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "demo_utf8.h"

enum { LABEL_WIDTH = 11, LINE_WIDTH = 80 };

// Prints one character, or '?' for what a terminal should not see.  Returns its bytes.
static size_t
print_character(const uint8_t *at, size_t left)
{
    size_t length = demo_utf8_length(at, left);
    if (length == 0 || *at < ' ' || *at == 0x7F)
        putchar('?');
    else
        fwrite(at, 1, length, stdout);
    return length == 0 ? 1 : length;
}

static size_t
word_length(const uint8_t *text, size_t left)
{
    size_t n = 0;
    while (n < left && text[n] != ' ' && text[n] != '\n')
        n++;
    return n;
}

// Filled lines behind a label, like the entries of a dictionary.
static void
print_paragraph(const char *label, const uint8_t *text, size_t size)
{
    size_t column = (size_t)printf("%-*s", LABEL_WIDTH, label), blanks = 0;
    for (size_t i = 0; i < size;) {
        size_t word = word_length(text + i, size - i);
        if (word == 0 && text[i] == ' ')
            blanks++; // printed before the next word, unless that begins a line
        if (text[i] == '\n' || (column > LABEL_WIDTH && column + blanks + word > LINE_WIDTH)) {
            column = (size_t)printf("\n%*s", LABEL_WIDTH, "") - 1;
            blanks = 0;
        }
        if (word > 0) {
            column += (size_t)printf("%*s", (int)blanks, "");
            blanks = 0;
        }
        size_t end = word > 0 ? i + word : i + 1;
        for (; i < end && word > 0; column++)
            i += print_character(text + i, end - i);
        i = end;
    }
    putchar('\n');
}

void
demo_print_text(const uint8_t *tokens, size_t num_prompt, size_t num_tokens)
{
    if (num_prompt > 0)
        print_paragraph("prompt", tokens, num_prompt);
    print_paragraph("generated", tokens + num_prompt, num_tokens - num_prompt);
}

void
demo_way_label(const demo_way *way, char *label, size_t size)
{
    if (way->transport == NULL)
        snprintf(label, size, "%s", way->name);
    else
        snprintf(label, size, "%s over %s", way->name, way->transport);
}

static const char *
stage_of(const demo_way *way)
{
    if (way->decoder.told.first_us != 0)
        return "decode";
    if (way->transport == NULL || way->prompt.told.layers_done > 0)
        return "prefill";
    return "link";
}

void
demo_print_progress(const demo_way *way)
{
    static char shown[80]; // what the terminal shows; there is one
    char label[32], bar[] = "--------------------", line[80];
    const demo_told *told = &way->prompt.told;
    size_t filled = 0, all = sizeof bar - 1;
    if (!isatty(STDOUT_FILENO))
        return;
    if (way->decoder.told.first_us != 0)
        filled = all;
    else if (told->layers > 0)
        filled = all * told->layers_done / told->layers;
    memset(bar, '#', filled);
    demo_way_label(way, label, sizeof label);
    snprintf(line, sizeof line, "%-15s [%s] %s", label, bar, stage_of(way));
    if (strcmp(line, shown) == 0)
        return;
    snprintf(shown, sizeof shown, "%s", line);
    printf("\r\033[K%s", line);
    fflush(stdout);
}

void
demo_clear_progress(void)
{
    if (isatty(STDOUT_FILENO))
        fputs("\r\033[K", stdout);
}

void
demo_print_table(const demo_way *ways, size_t num_ways)
{
    printf("%-6s %-9s %12s %8s %12s\n", "way", "transport", "moved", "GB/s", "first token");
    for (const demo_way *way = ways; way < ways + num_ways && way->ran; way++) {
        const demo_told *told = &way->decoder.told;
        char moved[24] = "-", speed[24] = "-";
        if (told->moved_ns > 0) {
            snprintf(moved, sizeof moved, "%.1f KiB", (double)told->moved / 1024);
            snprintf(speed, sizeof speed, "%.2f", (double)told->moved / (double)told->moved_ns);
        }
        printf("%-6s %-9s %12s %8s %9.1f ms\n", way->name,
               way->transport == NULL ? "-" : told->transport, moved, speed,
               (double)told->first_us / 1e3);
    }
}

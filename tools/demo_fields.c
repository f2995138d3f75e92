// Lines of the form "verb key=value key=value".
#include "demo_fields.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The value of a key, NULL if the line doesn't have it.
static const char *
find_value(const char *line, const char *key, size_t *length)
{
    size_t key_length = strlen(key);
    for (const char *at = strchr(line, ' '); at != NULL; at = strchr(at, ' ')) {
        at++;
        if (strncmp(at, key, key_length) == 0 && at[key_length] == '=') {
            at += key_length + 1;
            *length = strcspn(at, " ");
            return at;
        }
    }
    return NULL;
}

static bool
bad_value(const char *line, const char *key, demo_error *error)
{
    return demo_fail(error, "a message of the other side has no usable '%s': \"%.100s\"", key,
                     line);
}

bool
demo_get_word(const char *line, const char *key, char *word, size_t size, demo_error *error)
{
    size_t length;
    const char *value = find_value(line, key, &length);
    if (value == NULL || length == 0 || length >= size)
        return bad_value(line, key, error);
    memcpy(word, value, length);
    word[length] = '\0';
    return true;
}

// Reads digits up to `limit` and moves *at behind them.
static bool
read_number(const char **at, uint64_t most, uint64_t *value)
{
    char *end;
    if (**at < '0' || **at > '9')
        return false;
    errno = 0;
    *value = strtoull(*at, &end, 10);
    *at = end;
    return errno == 0 && *value <= most;
}

bool
demo_get_u64(const char *line, const char *key, uint64_t most, uint64_t *value, demo_error *error)
{
    size_t length;
    const char *at = find_value(line, key, &length);
    const char *end = at == NULL ? NULL : at + length;
    if (at == NULL || !read_number(&at, most, value) || at != end)
        return bad_value(line, key, error);
    return true;
}

bool
demo_get_list(const char *line, const char *key, uint64_t limit, uint64_t *list, size_t room,
              size_t *length, demo_error *error)
{
    size_t value_length;
    const char *at = find_value(line, key, &value_length);
    const char *end = at == NULL ? NULL : at + value_length;
    *length = 0;
    while (at != NULL && *length < room && read_number(&at, limit - 1, &list[*length])) {
        ++*length;
        if (at == end)
            return true;
        if (*at++ != ',')
            break;
    }
    return bad_value(line, key, error);
}

static int
hex_digit(char c)
{
    static const char digits[] = "0123456789abcdef";
    const char *at = c == '\0' ? NULL : strchr(digits, c);
    return at == NULL ? -1 : (int)(at - digits);
}

bool
demo_get_bytes(const char *line, const char *key, uint8_t *bytes, size_t room, size_t *length,
               demo_error *error)
{
    size_t digits;
    const char *at = find_value(line, key, &digits);
    if (at == NULL || digits % 2 != 0 || digits / 2 > room)
        return bad_value(line, key, error);
    for (size_t i = 0; i < digits / 2; i++) {
        int high = hex_digit(at[2 * i]), low = hex_digit(at[2 * i + 1]);
        if (high < 0 || low < 0)
            return bad_value(line, key, error);
        bytes[i] = (uint8_t)(16 * high + low);
    }
    *length = digits / 2;
    return true;
}

void
demo_put_list(char *text, size_t size, const uint64_t *list, size_t length)
{
    size_t at = 0;
    text[0] = '\0';
    for (size_t i = 0; i < length && at < size; i++)
        at += (size_t)snprintf(text + at, size - at, "%s%llu", i == 0 ? "" : ",",
                               (unsigned long long)list[i]);
}

void
demo_put_bytes(char *text, size_t size, const uint8_t *bytes, size_t length)
{
    text[0] = '\0';
    for (size_t i = 0; i < length && 2 * i + 2 < size; i++)
        snprintf(text + 2 * i, size - 2 * i, "%02x", bytes[i]);
}

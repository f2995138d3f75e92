#include "base/cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/os.h"

// ---- texts ----

// The next line; it ends with '\n' or with the text.
static const char *
next_line(const char *line)
{
    const char *end = strchr(line, '\n');
    return end != NULL ? end + 1 : line + strlen(line);
}

// A piece of text, not ended by a zero.
struct word {
    const char *start;
    size_t length;
};

static struct word
word_until(const char *text, const char *ends)
{
    return (struct word){.start = text, .length = strcspn(text, ends)};
}

static bool
word_is(struct word word, const char *text)
{
    return word.length == strlen(text) && memcmp(word.start, text, word.length) == 0;
}

// Is `item` one of the words that commas separate?
static bool
list_holds(struct word list, const char *item)
{
    const char *end = list.start + list.length;
    for (const char *at = list.start; at < end; at++) {
        struct word word = word_until(at, ", \n:");
        if (word_is(word, item))
            return true;
        at += word.length;
    }
    return false;
}

// "number:controllers:path"; version 2 has number 0 and no controllers.
static bool
find_path(const char *groups, int version, struct word *ret_path)
{
    for (const char *line = groups; *line != '\0'; line = next_line(line)) {
        struct word number = word_until(line, ":\n");
        if (number.start[number.length] != ':')
            continue;
        struct word controllers = word_until(number.start + number.length + 1, ":\n");
        if (controllers.start[controllers.length] != ':')
            continue;
        *ret_path = word_until(controllers.start + controllers.length + 1, "\n");
        if (version == 2 ? word_is(number, "0") && controllers.length == 0
                         : list_holds(controllers, "memory"))
            return true;
    }
    return false;
}

struct mount {
    struct word root; // what of the tree of groups is mounted
    struct word point;
};

// "id parent device root point options... - type source options"
static bool
read_mount(const char *line, int version, struct mount *ret_mount)
{
    struct word fields[5];
    const char *end = line + strcspn(line, "\n");
    for (size_t i = 0; i < LLI_COUNT(fields); i++) {
        fields[i] = word_until(line, " \n");
        line = fields[i].start + fields[i].length;
        if (*line != ' ')
            return false;
        line++;
    }
    *ret_mount = (struct mount){.root = fields[3], .point = fields[4]};
    const char *dash = strstr(line - 1, " - ");
    if (dash == NULL || dash >= end)
        return false;
    struct word type = word_until(dash + 3, " \n");
    if (version == 2)
        return word_is(type, "cgroup2");
    if (!word_is(type, "cgroup") || type.start + type.length == end)
        return false;
    struct word source = word_until(type.start + type.length + 1, " \n");
    return source.start + source.length < end &&
           list_holds(word_until(source.start + source.length + 1, "\n"), "memory");
}

static bool
is_octal(const char *digits)
{
    return strspn(digits, "01234567") >= 3;
}

// Appends a word in which the system writes some characters as \ooo.
static bool
append(char *to, size_t size, struct word word)
{
    size_t length = strlen(to);
    for (size_t i = 0; i < word.length; i++) {
        const char *at = word.start + i;
        char c = *at;
        if (c == '\\' && word.length - i >= 4 && is_octal(at + 1)) {
            c = (char)((at[1] - '0') << 6 | (at[2] - '0') << 3 | (at[3] - '0'));
            i += 3;
        }
        if (length + 1 >= size)
            return false;
        to[length++] = c;
    }
    to[length] = '\0';
    return true;
}

// What of the path lies below the root of the mount; nothing, if it lies elsewhere.
static struct word
path_below(struct word path, struct word root)
{
    struct word nothing = {.start = path.start, .length = 0};
    size_t length = word_is(root, "/") ? 0 : root.length;
    if (path.length < length || memcmp(path.start, root.start, length) != 0 ||
        (path.length > length && path.start[length] != '/'))
        return nothing;
    struct word below = {.start = path.start + length, .length = path.length - length};
    // A process outside its own namespace of groups.
    bool leads_up = below.length >= 3 && memcmp(below.start, "/..", 3) == 0;
    return leads_up || word_is(below, "/") ? nothing : below;
}

bool
lli_cgroup_find(const char *groups, const char *mounts, int version, struct lli_cgroup *ret_group)
{
    struct word path;
    if (!find_path(groups, version, &path))
        return false;
    for (const char *line = mounts; *line != '\0'; line = next_line(line)) {
        struct mount mount;
        char *folder = ret_group->folder;
        if (!read_mount(line, version, &mount))
            continue;
        folder[0] = '\0';
        if (!append(folder, sizeof(ret_group->folder), mount.point))
            return false;
        ret_group->top = strlen(folder);
        return append(folder, sizeof(ret_group->folder), path_below(path, mount.root));
    }
    return false;
}

uint64_t
lli_cgroup_parse_limit(const char *text)
{
    // Version 1 says "no limit" with the greatest number of pages.
    static const uint64_t bytes_max = UINT64_C(1) << 62;
    char *end;
    if (text[0] < '0' || text[0] > '9')
        return UINT64_MAX;
    errno = 0;
    unsigned long long bytes = strtoull(text, &end, 10);
    return errno != 0 || (*end != '\0' && *end != '\n') || bytes >= bytes_max ? UINT64_MAX : bytes;
}

// ---- files ----

enum { TEXT_BYTES_MAX = 4 << 20 };

// All of the file.  False without memory for it.
static bool
read_rest(int fd, char **text, size_t room)
{
    size_t length = 0;
    for (;;) {
        ssize_t got = LLI_RETRY(read(fd, *text + length, room - 1 - length));
        length += got > 0 ? (size_t)got : 0;
        (*text)[length] = '\0';
        if (got <= 0 || room >= TEXT_BYTES_MAX)
            return true;
        if (length < room - 1)
            continue;
        room *= 2;
        char *more = lli_realloc(*text, room);
        if (more == NULL)
            return false;
        *text = more;
    }
}

// What a file says; nothing, if there is none.  False without memory for it.
static bool
read_text(const char *path, char **ret_text)
{
    size_t room = 4096;
    *ret_text = lli_calloc(1, room);
    if (*ret_text == NULL)
        return false;
    int fd = (int)LLI_RETRY(open(path, O_RDONLY | O_CLOEXEC));
    if (fd < 0)
        return true;
    bool ok = read_rest(fd, ret_text, room);
    close(fd);
    if (!ok)
        lli_free(*ret_text);
    return ok;
}

// By those of the group and of all that it is in.
static bool
lower(struct lli_cgroup *group, const char *file, uint64_t *bytes, char who[LLI_CGROUP_WHO_BYTES])
{
    char path[LLI_CGROUP_PATH_BYTES + 32];
    for (;;) {
        char *text;
        snprintf(path, sizeof(path), "%s/%s", group->folder, file);
        if (!read_text(path, &text))
            return false;
        uint64_t limit = lli_cgroup_parse_limit(text);
        lli_free(text);
        if (limit < *bytes) {
            *bytes = limit;
            snprintf(who, LLI_CGROUP_WHO_BYTES, "%s", path);
        }
        char *slash = strrchr(group->folder + group->top, '/');
        if (slash == NULL)
            return true;
        *slash = '\0';
    }
}

static bool
lower_to_groups(const char *groups, const char *mounts, uint64_t *bytes,
                char who[LLI_CGROUP_WHO_BYTES])
{
    struct lli_cgroup group;
    return (!lli_cgroup_find(groups, mounts, 2, &group) ||
            lower(&group, "memory.max", bytes, who)) &&
           (!lli_cgroup_find(groups, mounts, 1, &group) ||
            lower(&group, "memory.limit_in_bytes", bytes, who));
}

bool
lli_memory_limit_bytes(uint64_t *ret_bytes, char ret_who[LLI_CGROUP_WHO_BYTES])
{
    char *groups;
    char *mounts;
    *ret_bytes = lli_physical_memory_bytes();
    snprintf(ret_who, LLI_CGROUP_WHO_BYTES, "the machine's memory");
    if (!read_text("/proc/self/cgroup", &groups))
        return false;
    bool ok = read_text("/proc/self/mountinfo", &mounts);
    if (ok) {
        ok = lower_to_groups(groups, mounts, ret_bytes, ret_who);
        lli_free(mounts);
    }
    lli_free(groups);
    return ok;
}

#include "base/log_limit.h"

#include <pthread.h>
#include <stdio.h>

enum { NUM_PLACES = 64 };

static const uint64_t SECOND_NS = 1000000000u;

// A place in the code, and its current second.
struct place {
    const char *format; // NULL: free
    uint64_t begin_ns;
    unsigned num_texts;
    uint32_t texts[LLI_LOG_TEXTS_PER_SECOND]; // hashes of what was said
    struct lli_log_left_out left_out;
};

static pthread_mutex_t places_lock = PTHREAD_MUTEX_INITIALIZER;
static struct place places[NUM_PLACES];

void
lli_log_limit_in_child(void)
{
    pthread_mutex_init(&places_lock, NULL);
}

static uint32_t
hash(const char *text)
{
    uint32_t h = 2166136261u; // FNV-1a
    for (; *text != '\0'; text++)
        h = (h ^ (uint8_t)*text) * 16777619u;
    return h;
}

static bool
is_over(const struct place *place, uint64_t now_ns)
{
    return now_ns - place->begin_ns >= SECOND_NS;
}

// The place's record, or NULL if another place has it for now.
static struct place *
find_place(const char *format, uint64_t now_ns)
{
    struct place *place = &places[((uintptr_t)format >> 3) % NUM_PLACES];
    // Of two that meet, one goes elsewhere.
    if (place->format != NULL && place->format != format)
        place = &places[((uintptr_t)format >> 9) % NUM_PLACES];
    bool is_ours = place->format == format;
    if (is_ours && !is_over(place, now_ns))
        return place;
    if (place->format != NULL && (!is_over(place, now_ns) || place->left_out.num_lines > 0))
        return is_ours ? place : NULL;
    place->format = format;
    place->begin_ns = now_ns;
    place->num_texts = 0;
    return place;
}

static bool
was_said(const struct place *place, uint32_t text)
{
    for (unsigned i = 0; i < place->num_texts; i++) {
        if (place->texts[i] == text)
            return true;
    }
    return false;
}

static bool
is_said_locked(llm_log_level level, const char *format, const char *line, uint64_t now_ns)
{
    struct place *place = find_place(format, now_ns);
    uint32_t text = hash(line);
    if (place == NULL)
        return true;
    if (place->num_texts < LLI_LOG_TEXTS_PER_SECOND && !was_said(place, text)) {
        place->texts[place->num_texts++] = text;
        return true;
    }
    place->left_out.level = level;
    place->left_out.num_lines++;
    snprintf(place->left_out.gist, sizeof(place->left_out.gist), "%s", line);
    return false;
}

bool
lli_log_is_said(llm_log_level level, const char *format, const char *line, uint64_t now_ns)
{
    // Whoever can't have the lock speaks: a forked child may find it held for ever.
    if (pthread_mutex_trylock(&places_lock) != 0)
        return true;
    bool said = is_said_locked(level, format, line, now_ns);
    pthread_mutex_unlock(&places_lock);
    return said;
}

bool
lli_log_take_left_out(uint64_t now_ns, struct lli_log_left_out *ret_left_out)
{
    bool found = false;
    if (pthread_mutex_trylock(&places_lock) != 0)
        return false;
    for (size_t i = 0; i < NUM_PLACES && !found; i++) {
        struct place *place = &places[i];
        found = place->left_out.num_lines > 0 && is_over(place, now_ns);
        if (found) {
            *ret_left_out = place->left_out;
            place->left_out.num_lines = 0;
        }
    }
    pthread_mutex_unlock(&places_lock);
    return found;
}

void
lli_log_begin_anew(void)
{
    if (pthread_mutex_trylock(&places_lock) != 0)
        return;
    memset(places, 0, sizeof(places));
    pthread_mutex_unlock(&places_lock);
}

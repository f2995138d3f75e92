#include "transport/arrival.h"

#include "base/mem.h"

enum { RANGES_AT_FIRST = 16 };

void
lli_arrival_init(struct lli_arrival *arrival, uint64_t start)
{
    *arrival = (struct lli_arrival){.prefix = start};
}

void
lli_arrival_fini(struct lli_arrival *arrival)
{
    lli_free(arrival->ahead);
    arrival->ahead = NULL;
    arrival->num_ahead = arrival->capacity = 0;
}

// The first range that begins at or behind `position`.
static size_t
find(const struct lli_arrival *arrival, uint64_t position)
{
    size_t low = 0;
    size_t high = arrival->num_ahead;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (arrival->ahead[middle].first < position)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static const char *
make_room(struct lli_arrival *arrival)
{
    if (arrival->num_ahead < arrival->capacity)
        return NULL;
    if (arrival->capacity == LLI_ARRIVAL_RANGES_MAX)
        return "it left too many holes in a transfer";
    size_t capacity = lli_max(arrival->capacity * 2, RANGES_AT_FIRST);
    struct lli_arrival_range *ahead =
        lli_realloc(arrival->ahead, capacity * sizeof(*arrival->ahead));
    if (ahead == NULL)
        return "out of memory";
    arrival->ahead = ahead;
    arrival->capacity = capacity;
    return NULL;
}

const char *
lli_arrival_claim(struct lli_arrival *arrival, uint64_t first, uint64_t bytes)
{
    size_t at = find(arrival, first);
    if (first < arrival->prefix || (at > 0 && arrival->ahead[at - 1].end > first) ||
        (at < arrival->num_ahead && arrival->ahead[at].first - first < bytes))
        return "it sent the same bytes of a transfer twice";
    const char *wrong = make_room(arrival);
    if (wrong != NULL)
        return wrong;
    struct lli_arrival_range *range = &arrival->ahead[at];
    memmove(range + 1, range, (arrival->num_ahead - at) * sizeof(*range));
    *range = (struct lli_arrival_range){.first = first, .end = first + bytes};
    arrival->num_ahead++;
    return NULL;
}

static void
drop(struct lli_arrival *arrival, size_t at)
{
    struct lli_arrival_range *range = &arrival->ahead[at];
    arrival->num_ahead--;
    memmove(range, range + 1, (arrival->num_ahead - at) * sizeof(*range));
}

static bool
touch(const struct lli_arrival_range *range, const struct lli_arrival_range *next)
{
    return range->complete && next->complete && range->end == next->first;
}

void
lli_arrival_settle(struct lli_arrival *arrival, uint64_t first)
{
    size_t at = find(arrival, first);
    struct lli_arrival_range *range = &arrival->ahead[at];
    range->complete = true;
    if (at + 1 < arrival->num_ahead && touch(range, range + 1)) {
        range->end = range[1].end;
        drop(arrival, at + 1);
    }
    if (at > 0 && touch(range - 1, range)) {
        range[-1].end = range->end;
        drop(arrival, at);
    }
    range = arrival->ahead;
    if (range->complete && range->first == arrival->prefix) {
        arrival->prefix = range->end;
        drop(arrival, 0);
    }
}

#include "cache/extents.h"

#include "base/mem.h"

void
lli_extents_init(struct lli_extents *extents)
{
    memset(extents, 0, sizeof(*extents));
}

void
lli_extents_fini(struct lli_extents *extents)
{
    lli_free(extents->free);
    memset(extents, 0, sizeof(*extents));
}

// Makes room for `more` new extents beside those that the taken ranges may become.
static bool
reserve(struct lli_extents *extents, size_t more)
{
    size_t needed = extents->num_free + extents->num_taken + more;
    if (needed <= extents->capacity)
        return true;
    size_t capacity = needed * 2;
    struct lli_extent *free = lli_realloc(extents->free, capacity * sizeof(*free));
    if (free == NULL)
        return false;
    extents->free = free;
    extents->capacity = capacity;
    return true;
}

static void
insert_at(struct lli_extents *extents, size_t index, uint64_t offset, uint64_t size)
{
    // NOLINTNEXTLINE: reserve() has made room
    memmove(&extents->free[index + 1], &extents->free[index],
            (extents->num_free - index) * sizeof(*extents->free));
    extents->free[index] = (struct lli_extent){.offset = offset, .size = size};
    extents->num_free++;
}

static void
remove_at(struct lli_extents *extents, size_t index)
{
    extents->num_free--;
    memmove(&extents->free[index], &extents->free[index + 1],
            (extents->num_free - index) * sizeof(*extents->free));
}

// The first extent behind `offset`.
static size_t
find_after(const struct lli_extents *extents, uint64_t offset)
{
    size_t low = 0;
    size_t high = extents->num_free;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (extents->free[middle].offset < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void
merge_in(struct lli_extents *extents, uint64_t offset, uint64_t size)
{
    size_t next = find_after(extents, offset);
    bool joins_next = next < extents->num_free && extents->free[next].offset == offset + size;
    struct lli_extent *before = next > 0 ? &extents->free[next - 1] : NULL;
    if (before != NULL && before->offset + before->size == offset) {
        before->size += size;
        if (joins_next) {
            before->size += extents->free[next].size;
            remove_at(extents, next);
        }
    } else if (joins_next) {
        extents->free[next].offset = offset;
        extents->free[next].size += size;
    } else {
        insert_at(extents, next, offset, size);
    }
}

llm_status
lli_extents_add(struct lli_extents *extents, uint64_t offset, uint64_t size)
{
    if (!reserve(extents, 1))
        return LLM_OUT_OF_MEMORY;
    merge_in(extents, offset, size);
    return LLM_SUCCESS;
}

bool
lli_extents_take(struct lli_extents *extents, uint64_t size, uint64_t align, uint64_t *ret_offset)
{
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < extents->num_free; i++) {
        const struct lli_extent *extent = &extents->free[i];
        uint64_t lead = lli_round_up(extent->offset, align) - extent->offset;
        if (extent->size < lead || extent->size - lead < size)
            continue;
        if (best == SIZE_MAX || extent->size < extents->free[best].size)
            best = i;
    }
    // One extent may fall in two, and what is taken may come back between two others.
    if (best == SIZE_MAX || !reserve(extents, 2))
        return false;

    struct lli_extent old = extents->free[best];
    uint64_t offset = lli_round_up(old.offset, align);
    uint64_t end = offset + size;
    remove_at(extents, best);
    if (old.offset + old.size > end)
        insert_at(extents, best, end, old.offset + old.size - end);
    if (offset > old.offset)
        insert_at(extents, best, old.offset, offset - old.offset);
    extents->num_taken++;
    *ret_offset = offset;
    return true;
}

void
lli_extents_give(struct lli_extents *extents, uint64_t offset, uint64_t size)
{
    extents->num_taken--;
    merge_in(extents, offset, size);
}

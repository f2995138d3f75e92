// A peer's directory of caches may hold anything: what is found in it leads to addresses inside the
// peer's pools, or to nothing.
//
// Input: words of 64 bits; first an id, then the fields of the entry where the id is looked for, then
// addresses.  A word too few counts as zero.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/log.h"
#include "cache/segment.h"
#include "transport/view.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DEVICES = 2, TENSORS_MAX = 64, POOL_BYTES = 1 << 16 };

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #condition);                  \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static uint64_t
take_word(const uint8_t **data, size_t *size)
{
    uint64_t word = 0;
    size_t bytes = lli_min(*size, sizeof(word));
    if (bytes > 0)
        memcpy(&word, *data, bytes);
    *data += bytes;
    *size -= bytes;
    return word;
}

// Mapped once; what a run writes is taken back after it.
static struct lli_segment_layout *
the_segment(void)
{
    static struct lli_segment_layout *segment;
    if (segment == NULL) {
        void *base = mmap(NULL, sizeof(*segment), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        MUST(base != MAP_FAILED);
        segment = base;
    }
    return segment;
}

static void
check_addresses(const struct lli_view *view, const struct lli_remote_cache *cache,
                uint32_t first_tensor, uint32_t num_tensors)
{
    uintptr_t tensors[DEVICES * TENSORS_MAX];
    if (!lli_view_resolve(view, cache, first_tensor, num_tensors, tensors))
        return;
    for (size_t device = 0; device < DEVICES; device++) {
        const struct lli_view_pool *pool = &view->pools[device];
        for (uint32_t i = 0; i < num_tensors; i++) {
            uintptr_t offset = tensors[device * num_tensors + i] - (uintptr_t)pool->base;
            MUST(offset <= pool->bytes && cache->geometry.tensor_bytes <= pool->bytes - offset);
        }
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t pools[DEVICES][POOL_BYTES];
    struct lli_view_pool view_pools[DEVICES] = {{pools[0], POOL_BYTES}, {pools[1], POOL_BYTES}};
    struct lli_segment_layout *segment = the_segment();
    struct lli_view view = {.segment = segment, .num_devices = DEVICES, .pools = view_pools};
    struct lli_remote_cache cache;
    int64_t id = (int64_t)take_word(&data, &size);
    uint32_t probe = (uint32_t)(take_word(&data, &size) % (LLI_ENTRY_PROBES + 1));
    struct lli_entry *entry = &segment->entries[((uint64_t)id + probe) % LLI_NUM_ENTRIES];
    llm_set_log_level(LLM_LOG_OFF);

    entry->generation = take_word(&data, &size);
    entry->cache_id = take_word(&data, &size) % 2 == 0 ? id : id ^ 1;
    entry->placement_and_tensors = take_word(&data, &size);
    entry->num_slots = take_word(&data, &size);
    entry->stride = take_word(&data, &size);
    entry->tensor_bytes = take_word(&data, &size);
    entry->first_address = take_word(&data, &size);
    entry->flags = take_word(&data, &size) & ~LLI_ENTRY_REGISTERED; // those aren't in the pools
    uint32_t first_tensor = (uint32_t)take_word(&data, &size);
    uint32_t num_tensors = (uint32_t)(take_word(&data, &size) % (TENSORS_MAX + 1));
    uint64_t first = entry->first_address;
    uint64_t num_addresses = 0;
    for (; size > 0 && first < LLI_NUM_ADDRESSES && num_addresses < LLI_NUM_ADDRESSES - first;
         num_addresses++)
        segment->addresses[first + num_addresses] = take_word(&data, &size);

    if (lli_segment_find(segment, id, &cache)) {
        MUST(probe < LLI_ENTRY_PROBES);
        MUST(cache.generation != 0 && (cache.generation & LLI_GENERATION_RETIRED) == 0);
        MUST(lli_segment_still_live(segment, &cache) && lli_segment_still_same(segment, &cache));
        check_addresses(&view, &cache, first_tensor, num_tensors);
        atomic_fetch_or(&entry->generation, LLI_GENERATION_RETIRED);
        MUST(!lli_segment_still_live(segment, &cache) && lli_segment_still_same(segment, &cache));
        entry->generation = 0;
        MUST(!lli_segment_still_same(segment, &cache));
    }
    memset((void *)entry, 0, sizeof(*entry));
    for (uint64_t i = 0; i < num_addresses; i++)
        segment->addresses[first + i] = 0;
    return 0;
}

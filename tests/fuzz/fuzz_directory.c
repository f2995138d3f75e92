// A peer's directory of caches may hold anything: what is found in it leads to addresses inside the
// peer's pools, or to nothing.
//
// Input: words of 64 bits; first an id, then the fields of the entry where the id is looked for, then
// addresses.  A word too few counts as zero.  If the second word says so, the words of a key and of a
// lease come before the addresses, and the cache is pulled by that key under that lease.
#include <sys/mman.h>

#include "base/log.h"
#include "cache/segment.h"
#include "fuzz/fuzz.h"
#include "transfer/source.h"
#include "transport/view.h"

enum { DEVICES = 2, TENSORS_MAX = 64, POOL_BYTES = 1 << 16 };

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
        const struct lli_memory_file *pool = &view->pools[device];
        for (uint32_t i = 0; i < num_tensors; i++) {
            uintptr_t offset = tensors[device * num_tensors + i] - (uintptr_t)pool->base;
            MUST(offset <= pool->bytes && cache->geometry.tensor_bytes <= pool->bytes - offset);
        }
    }
}

// A pull by key, perhaps under a lease: what it may read lies in the pools.
static void
check_source(struct lli_view *view, const struct lli_request *request)
{
    struct lli_link link = {.view = view};
    struct lli_source_cache source;
    char why[LLI_REASON_BYTES];
    uintptr_t tensors[DEVICES * TENSORS_MAX];
    if (lli_source_open(&link, request, &source, why, sizeof(why)) != LLM_SUCCESS)
        return;
    const struct lli_geometry *geometry = &source.remote.geometry;
    MUST(source.slot < geometry->num_slots);
    MUST(request->offset + request->bytes <= geometry->stride);
    MUST(source.lease == 0 || source.lease == request->generation);
    if (lli_view_resolve(view, &source.remote, request->first_tensor, request->num_tensors,
                         tensors)) {
        uint64_t end = source.slot * geometry->stride + request->offset + request->bytes;
        for (size_t i = 0; i < (size_t)DEVICES * request->num_tensors; i++) {
            const struct lli_memory_file *pool = &view->pools[i / request->num_tensors];
            MUST(tensors[i] - (uintptr_t)pool->base + end <= pool->bytes);
        }
    }
    (void)lli_source_close(&source, 0, why, sizeof(why));
}

// The tables of keys and leases lie too.
static void
try_names(struct lli_view *view, uint32_t entry, uint32_t first_tensor, uint32_t num_tensors,
          const uint8_t **data, size_t *size)
{
    struct lli_segment_layout *segment = (struct lli_segment_layout *)(uintptr_t)view->segment;
    struct lli_request request = {
        .kind = LLI_REQUEST_SLOT,
        .by = LLI_BY_KEY,
        .key = {.kind = (uint32_t)take_word(data, size), .id = take_word(data, size)},
        .first_tensor = first_tensor,
        .num_tensors = num_tensors,
    };
    struct lli_key_entry *key =
        &segment->keys[(lli_key_hash(&request.key) + take_word(data, size)) % LLI_NUM_KEY_ENTRIES];
    uint64_t at = take_word(data, size);
    uint64_t generation = take_word(data, size);
    key->stamp = 1;
    key->kind = request.key.kind;
    key->id = request.key.id;
    key->entry = at == 0 ? entry : at;
    key->generation = generation == 0 ? segment->entries[entry].generation : generation;
    key->slot = take_word(data, size);
    request.offset = take_word(data, size);
    request.bytes = take_word(data, size);
    request.generation = take_word(data, size);
    struct lli_lease_entry *lease =
        &segment->leases[request.generation / 2 % LLI_NUM_LEASE_ENTRIES];
    lease->lease = request.generation;
    lease->generation = segment->entries[entry].generation;
    lease->first_slot = take_word(data, size);
    lease->num_slots = take_word(data, size);
    check_source(view, &request);
    memset((void *)key, 0, sizeof(*key));
    memset((void *)lease, 0, sizeof(*lease));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t pools[DEVICES][POOL_BYTES];
    struct lli_memory_file view_pools[DEVICES] = {{pools[0], POOL_BYTES, -1},
                                                  {pools[1], POOL_BYTES, -1}};
    struct lli_segment_layout *segment = the_segment();
    struct lli_view view = {.segment = segment, .num_devices = DEVICES, .pools = view_pools};
    struct lli_remote_cache cache;
    int64_t id = (int64_t)take_word(&data, &size);
    uint64_t second = take_word(&data, &size);
    uint32_t probe = (uint32_t)(second % (LLI_ENTRY_PROBES + 1));
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
    if (second / (LLI_ENTRY_PROBES + 1) % 2 == 1)
        try_names(&view, (uint32_t)(entry - segment->entries), first_tensor, num_tensors, &data,
                  &size);
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
        MUST(lli_segment_read_dims(segment, DEVICES, &cache));
        MUST(cache.geometry.num_dims <= LLI_NUM_DIMS_MAX);
        (void)lli_geometry_shape_is_sound(&cache.geometry);
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

#include "cache/segment.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "base/os.h"

// The segments of all instances of this process.
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static struct lli_segment *open_segments; // guarded by open_lock

static void
enter_list(struct lli_segment *segment)
{
    pthread_mutex_lock(&open_lock);
    segment->next_open = open_segments;
    open_segments = segment;
    pthread_mutex_unlock(&open_lock);
}

// Harmless if it isn't in there.
static void
leave_list(struct lli_segment *segment)
{
    pthread_mutex_lock(&open_lock);
    struct lli_segment **place = &open_segments;
    while (*place != NULL && *place != segment)
        place = &(*place)->next_open;
    if (*place != NULL)
        *place = segment->next_open;
    pthread_mutex_unlock(&open_lock);
}

void
lli_segment_in_child(void)
{
    pthread_mutex_init(&open_lock, NULL);
    open_segments = NULL;
}

bool
lli_segment_is_read_here(uint64_t owner, uint64_t generation)
{
    bool is_read = false;
    pthread_mutex_lock(&open_lock);
    for (const struct lli_segment *segment = open_segments; segment != NULL && !is_read;
         segment = segment->next_open)
        is_read = lli_segment_is_read(segment->layout, owner, generation);
    pthread_mutex_unlock(&open_lock);
    return is_read;
}

llm_status
lli_segment_open(struct lli_segment *segment, uint64_t cluster_id, uint64_t incarnation,
                 size_t num_devices)
{
    void *base;
    char why[96];
    memset(segment, 0, sizeof(*segment));
    segment->fd =
        lli_memory_file_create("llm-datadist-directory", sizeof(struct lli_segment_layout), &base);
    if (segment->fd < 0) {
        lli_memory_file_explain(errno, why, sizeof(why));
        return lli_fail(LLM_FAILED, "segment",
                        "can't open the directory of caches, a file of %zu bytes: %s",
                        sizeof(struct lli_segment_layout), why);
    }
    segment->layout = base;
    segment->next_generation = (lli_random_u64() >> 2) * 2 + 2;
    segment->next_stamp = 1;
    lli_extents_init(&segment->addresses);
    if (lli_extents_add(&segment->addresses, 0, LLI_NUM_ADDRESSES) != LLM_SUCCESS) {
        lli_segment_close(segment);
        return lli_fail(LLM_FAILED, "segment", "out of memory while opening the directory");
    }
    struct lli_segment_header *header = &segment->layout->header;
    header->magic = LLI_SEGMENT_MAGIC;
    header->version = LLI_SEGMENT_VERSION;
    header->num_devices = (uint32_t)num_devices;
    header->incarnation = incarnation;
    header->cluster_id = cluster_id;
    header->bytes = sizeof(struct lli_segment_layout);
    header->own_address = (uintptr_t)header;
    enter_list(segment);
    return LLM_SUCCESS;
}

void
lli_segment_close(struct lli_segment *segment)
{
    if (segment->layout == NULL)
        return;
    leave_list(segment);
    lli_extents_fini(&segment->addresses);
    lli_memory_file_close(segment->fd, segment->layout, sizeof(*segment->layout));
    memset(segment, 0, sizeof(*segment));
}

// The first free entry from the id's place on, so many places behind it; LLI_NUM_ENTRIES: none is.
static uint32_t
free_entry_distance(const struct lli_segment *segment, int64_t cache_id)
{
    uint32_t distance = 0;
    while (distance < LLI_NUM_ENTRIES &&
           LLI_LOAD(segment->layout->entries[((uint64_t)cache_id + distance) % LLI_NUM_ENTRIES]
                        .generation) != 0)
        distance++;
    return distance;
}

// Ids count up for ever, and come by the places of caches that live long, which may be many in a row.
int64_t
lli_segment_next_id(const struct lli_segment *segment, int64_t id)
{
    uint32_t distance = free_entry_distance(segment, id);
    return distance < LLI_ENTRY_PROBES || distance == LLI_NUM_ENTRIES ? id : id + distance;
}

static struct lli_entry *
find_free_entry(struct lli_segment *segment, int64_t cache_id, uint32_t *ret_index)
{
    uint32_t distance = free_entry_distance(segment, cache_id);
    *ret_index = (uint32_t)((uint64_t)cache_id + distance) % LLI_NUM_ENTRIES;
    return distance < LLI_ENTRY_PROBES ? &segment->layout->entries[*ret_index] : NULL;
}

static uint64_t
field_of(uint64_t flags, unsigned shift, unsigned bits)
{
    return flags >> shift & ((UINT64_C(1) << bits) - 1);
}

static uint64_t
flags_with(uint64_t flags, const struct lli_geometry *geometry, uint64_t num_dims)
{
    uint64_t type = field_of((uint64_t)geometry->data_type + 1, 0, LLI_ENTRY_TYPE_BITS);
    return flags | type << LLI_ENTRY_TYPE_SHIFT | num_dims << LLI_ENTRY_DIMS_SHIFT;
}

// Room for the dimensions too, if there is any.
static bool
take_addresses(struct lli_segment *segment, uint64_t num_addresses, uint32_t *num_dims,
               uint64_t *ret_first)
{
    bool taken = lli_extents_take(&segment->addresses, num_addresses + *num_dims, 1, ret_first);
    if (taken || *num_dims == 0)
        return taken;
    *num_dims = 0;
    return lli_extents_take(&segment->addresses, num_addresses, 1, ret_first);
}

bool
lli_segment_publish(struct lli_segment *segment, int64_t cache_id,
                    const struct lli_geometry *geometry, size_t num_devices, uint64_t flags,
                    const uint64_t *addresses, uint32_t *ret_entry, uint64_t *ret_generation)
{
    uint64_t num_addresses = (uint64_t)geometry->num_tensors * num_devices;
    uint64_t first_address;
    uint32_t num_dims = geometry->num_dims;
    struct lli_entry *entry = find_free_entry(segment, cache_id, ret_entry);
    if (entry == NULL || !take_addresses(segment, num_addresses, &num_dims, &first_address))
        return false;

    for (uint64_t i = 0; i < num_addresses; i++)
        LLI_STORE(segment->layout->addresses[first_address + i], addresses[i]);
    for (uint32_t i = 0; i < num_dims; i++)
        LLI_STORE(segment->layout->addresses[first_address + num_addresses + i],
                  (uint64_t)geometry->dims[i]);
    LLI_STORE(entry->cache_id, cache_id);
    LLI_STORE(entry->placement_and_tensors,
              (uint64_t)geometry->placement << 32 | geometry->num_tensors);
    LLI_STORE(entry->num_slots, geometry->num_slots);
    LLI_STORE(entry->stride, geometry->stride);
    LLI_STORE(entry->tensor_bytes, geometry->tensor_bytes);
    LLI_STORE(entry->first_address, first_address);
    LLI_STORE(entry->flags, flags_with(flags, geometry, num_dims));
    *ret_generation = segment->next_generation;
    segment->next_generation += 2;
    atomic_store_explicit(&entry->generation, *ret_generation, memory_order_release);
    return true;
}

void
lli_segment_mark(struct lli_segment *segment, uint32_t index, uint64_t flags)
{
    atomic_fetch_or(&segment->layout->entries[index].flags, flags);
}

void
lli_segment_retire(struct lli_segment *segment, uint32_t index)
{
    atomic_fetch_or(&segment->layout->entries[index].generation, LLI_GENERATION_RETIRED);
    atomic_thread_fence(memory_order_seq_cst);
}

void
lli_segment_erase(struct lli_segment *segment, uint32_t index)
{
    struct lli_entry *entry = &segment->layout->entries[index];
    uint64_t num_addresses =
        (LLI_LOAD(entry->placement_and_tensors) & UINT32_MAX) * segment->layout->header.num_devices;
    uint64_t num_dims = field_of(LLI_LOAD(entry->flags), LLI_ENTRY_DIMS_SHIFT, LLI_ENTRY_DIMS_BITS);
    uint64_t first_address = LLI_LOAD(entry->first_address);
    atomic_store(&entry->generation, 0);
    // What is written into the memory from now on comes after the generation's end.
    atomic_thread_fence(memory_order_seq_cst);
    lli_extents_give(&segment->addresses, first_address, num_addresses + num_dims);
}

int
lli_segment_reader_enter(struct lli_segment *segment, uint64_t owner, uint64_t generation,
                         uint64_t lease)
{
    uint64_t taken = atomic_load(&segment->reader_slots_taken);
    int slot;
    do {
        if (taken == UINT64_MAX)
            return -1;
        slot = __builtin_ctzll(~taken);
    } while (!atomic_compare_exchange_weak(&segment->reader_slots_taken, &taken,
                                           taken | UINT64_C(1) << slot));
    struct lli_reader_slot *reader = &segment->layout->header.readers[slot];
    LLI_STORE(reader->owner, owner);
    LLI_STORE(reader->lease, lease);
    atomic_store(&reader->generation, generation);
    atomic_thread_fence(memory_order_seq_cst);
    return slot;
}

void
lli_segment_reader_leave(struct lli_segment *segment, int slot)
{
    struct lli_reader_slot *reader = &segment->layout->header.readers[slot];
    atomic_store_explicit(&reader->generation, 0, memory_order_release);
    atomic_fetch_and(&segment->reader_slots_taken, ~(UINT64_C(1) << slot));
}

bool
lli_segment_is_read(const struct lli_segment_layout *peer, uint64_t owner, uint64_t generation)
{
    for (unsigned i = 0; i < LLI_NUM_READER_SLOTS; i++) {
        const struct lli_reader_slot *reader = &peer->header.readers[i];
        uint64_t reads = atomic_load(&reader->generation);
        if (reads != 0 && LLI_LOAD(reader->owner) == owner &&
            (generation == 0 || reads == generation || LLI_LOAD(reader->lease) == generation))
            return true;
    }
    return false;
}

static int32_t
type_of(uint64_t flags)
{
    uint64_t type = field_of(flags, LLI_ENTRY_TYPE_SHIFT, LLI_ENTRY_TYPE_BITS);
    return type == 0 ? LLM_DT_UNDEFINED : (int32_t)type - 1;
}

bool
lli_segment_find_entry(const struct lli_segment_layout *peer, uint64_t index, uint64_t generation,
                       struct lli_remote_cache *ret_cache)
{
    if (index >= LLI_NUM_ENTRIES || generation == 0 || (generation & LLI_GENERATION_RETIRED) != 0)
        return false;
    const struct lli_entry *entry = &peer->entries[index];
    if (atomic_load_explicit(&entry->generation, memory_order_acquire) != generation)
        return false;
    uint64_t placement_and_tensors = LLI_LOAD(entry->placement_and_tensors);
    uint64_t flags = LLI_LOAD(entry->flags);
    *ret_cache = (struct lli_remote_cache){
        .entry = (uint32_t)index,
        .generation = generation,
        .flags = flags,
        .first_address = LLI_LOAD(entry->first_address),
        .cache_id = LLI_LOAD(entry->cache_id),
        .geometry =
            {
                .placement = (uint32_t)(placement_and_tensors >> 32),
                .num_tensors = (uint32_t)placement_and_tensors,
                .data_type = type_of(flags),
                .num_slots = LLI_LOAD(entry->num_slots),
                .stride = LLI_LOAD(entry->stride),
                .tensor_bytes = LLI_LOAD(entry->tensor_bytes),
            },
    };
    // What was read belongs together only if the entry is still the same.
    return lli_segment_still_live(peer, ret_cache);
}

bool
lli_segment_find(const struct lli_segment_layout *peer, int64_t cache_id,
                 struct lli_remote_cache *ret_cache)
{
    for (uint32_t probe = 0; probe < LLI_ENTRY_PROBES; probe++) {
        uint32_t index = (uint32_t)((uint64_t)cache_id + probe) % LLI_NUM_ENTRIES;
        const struct lli_entry *entry = &peer->entries[index];
        uint64_t generation = atomic_load_explicit(&entry->generation, memory_order_acquire);
        if (LLI_LOAD(entry->cache_id) == cache_id &&
            lli_segment_find_entry(peer, index, generation, ret_cache) &&
            ret_cache->cache_id == cache_id && (ret_cache->flags & LLI_ENTRY_UNNAMED) == 0)
            return true;
    }
    return false;
}

bool
lli_segment_read_dims(const struct lli_segment_layout *peer, size_t num_devices,
                      struct lli_remote_cache *cache)
{
    uint64_t num_addresses = (uint64_t)cache->geometry.num_tensors * num_devices;
    uint64_t num_dims = field_of(cache->flags, LLI_ENTRY_DIMS_SHIFT, LLI_ENTRY_DIMS_BITS);
    if (num_dims <= LLI_NUM_DIMS_MAX && cache->first_address <= LLI_NUM_ADDRESSES &&
        num_addresses + num_dims <= LLI_NUM_ADDRESSES - cache->first_address)
        cache->geometry.num_dims = (uint32_t)num_dims;
    for (uint32_t i = 0; i < cache->geometry.num_dims; i++)
        cache->geometry.dims[i] =
            (int64_t)LLI_LOAD(peer->addresses[cache->first_address + num_addresses + i]);
    return lli_segment_still_live(peer, cache);
}

bool
lli_segment_still_live(const struct lli_segment_layout *peer, const struct lli_remote_cache *cache)
{
    // What has been read comes before this load.
    atomic_thread_fence(memory_order_acquire);
    return atomic_load(&peer->entries[cache->entry].generation) == cache->generation;
}

bool
lli_segment_still_same(const struct lli_segment_layout *peer, const struct lli_remote_cache *cache)
{
    // The loads of the copy come before this one.
    atomic_thread_fence(memory_order_acquire);
    uint64_t generation = atomic_load(&peer->entries[cache->entry].generation);
    return (generation & ~LLI_GENERATION_RETIRED) == cache->generation;
}

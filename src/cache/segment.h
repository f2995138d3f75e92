// What an instance shows to the peers on its host: a memory file that it alone writes and that they
// map read-only.  It holds the directory of its caches, and the slots in which it announces what it
// is reading from others.  No process ever maps another's memory writable.
//
// How a pull stays safe without waking the owner:
//
//   puller                                      owner, freeing the cache
//   ------                                      ------------------------
//   finds the entry, generation G, live         marks the entry retired: nobody new gets in
//   writes (owner, G) into a slot of its own    fence
//   fence                                       looks into the slots of all its peers
//   entry still live?  else: no such cache        nobody reads G: the memory is free
//   copies                                        somebody does: keep the memory, look again later;
//   entry still G (live or retired)?                after a bound, set the entry's generation to 0
//     else: no such cache                           and free the memory all the same
//   clears the slot
//
// A lease on some of a cache's slots is looked after in the same way: its reader announces it beside
// the cache's generation, and checks it before and after.
//
// Either the owner sees the slot, or the puller sees the retirement; and a reader that the owner
// could not wait for finds out after its copy.  So success never carries somebody else's bytes.
#ifndef LLI_SEGMENT_H
#define LLI_SEGMENT_H

#include <stdatomic.h>

#include "base/base.h"
#include "cache/extents.h"
#include "cache/geometry.h"

#define LLI_SEGMENT_MAGIC UINT64_C(0x31676573646c6c6c) // "lldseg1" and a version
#define LLI_SEGMENT_VERSION 1u

enum {
    LLI_NUM_READER_SLOTS = 64,
    LLI_NUM_ENTRIES = 65536,      // a power of two: caches at a time
    LLI_ENTRY_PROBES = 64,        // an id is found within so many entries
    LLI_NUM_ADDRESSES = 8 << 20,  // tensors of all caches
    LLI_NUM_KEY_ENTRIES = 131072, // a power of two
    LLI_KEY_PROBES = 64,          // a key is found within so many, or header.key_probes
    LLI_NUM_LEASE_ENTRIES = 65536,
};

// Generations, of caches and of leases, are even.  They begin at a random number, so that those of a
// restarted instance are others, and never repeat.  This bit marks what is going away.
#define LLI_GENERATION_RETIRED UINT64_C(1)

// Fields that one process writes and others read; what orders them is said where it matters.
#define LLI_STORE(field, value) atomic_store_explicit(&(field), (value), memory_order_relaxed)
#define LLI_LOAD(field) atomic_load_explicit(&(field), memory_order_relaxed)

struct lli_reader_slot {
    _Atomic uint64_t owner;      // incarnation of the instance that is being read
    _Atomic uint64_t generation; // of the cache; 0: the slot is idle
    _Atomic uint64_t lease;      // generation of the lease, or 0
    uint64_t reserved;
};

struct lli_entry {
    _Atomic uint64_t generation; // 0: free
    _Atomic int64_t cache_id;
    _Atomic uint64_t placement_and_tensors; // placement in the upper half, num_tensors in the lower
    _Atomic uint64_t num_slots;
    _Atomic uint64_t stride;
    _Atomic uint64_t tensor_bytes;
    // Index into the addresses: num_tensors for each device, and behind them the shape's dimensions.
    _Atomic uint64_t first_address;
    _Atomic uint64_t flags; // LLI_ENTRY_...
};

// The addresses are those of the owner's process, not offsets into its pools.
#define LLI_ENTRY_REGISTERED UINT64_C(1)
// Some slot has, or had, a request key: whoever pulls by id tells the owner.
#define LLI_ENTRY_HAS_REQUESTS UINT64_C(2)
// The id has been deallocated; keys still lead here.
#define LLI_ENTRY_UNNAMED UINT64_C(4)
// Fields among the flags: llm_data_type + 1, and the number of dimensions.  Directories of before
// these were known have 0 in both, and their readers look at neither.
enum { LLI_ENTRY_TYPE_SHIFT = 32, LLI_ENTRY_TYPE_BITS = 16 };
enum { LLI_ENTRY_DIMS_SHIFT = 48, LLI_ENTRY_DIMS_BITS = 8 };

struct lli_key_entry {
    _Atomic uint64_t stamp; // 0: free; never repeats
    _Atomic uint64_t kind;  // llm_key_kind
    _Atomic uint64_t id;
    _Atomic uint64_t model_id;
    _Atomic uint64_t entry; // of the cache
    _Atomic uint64_t generation;
    _Atomic uint64_t slot;
    uint64_t reserved;
};

struct lli_lease_entry {
    _Atomic uint64_t lease;      // its generation; 0: free
    _Atomic uint64_t generation; // of the cache
    _Atomic uint64_t first_slot;
    _Atomic uint64_t num_slots;
};

struct lli_segment_header {
    uint64_t magic;
    uint32_t version;
    uint32_t num_devices;
    uint64_t incarnation;
    uint64_t cluster_id;
    uint64_t bytes;
    uint64_t own_address; // of this header in the owner's process: proves who can be read there
    _Atomic uint64_t key_probes; // how far from its place a key may be; 0: LLI_KEY_PROBES
    // A thread of the owner's that lives as long as the instance, as the main thread need not: peers
    // read the owner's memory by this number.  0: by that of the process.
    _Atomic uint64_t own_thread;
    struct lli_reader_slot readers[LLI_NUM_READER_SLOTS];
    uint8_t reserved[4096 - 64 - 32 * LLI_NUM_READER_SLOTS];
};

struct lli_segment_layout {
    struct lli_segment_header header;
    struct lli_entry entries[LLI_NUM_ENTRIES];
    struct lli_key_entry keys[LLI_NUM_KEY_ENTRIES];
    struct lli_lease_entry leases[LLI_NUM_LEASE_ENTRIES];
    _Atomic uint64_t addresses[LLI_NUM_ADDRESSES];
};

_Static_assert(sizeof(struct lli_reader_slot) == 32, "shared layout");
_Static_assert(sizeof(struct lli_entry) == 64, "shared layout");
_Static_assert(sizeof(struct lli_key_entry) == 64, "shared layout");
_Static_assert(sizeof(struct lli_lease_entry) == 32, "shared layout");
_Static_assert(offsetof(struct lli_segment_header, readers) == 64, "shared layout");
_Static_assert(sizeof(struct lli_segment_header) == 4096, "shared layout");

// The owner's side.
struct lli_segment {
    int fd;
    struct lli_segment_layout *layout;
    uint64_t next_generation;            // guarded by the registry's lock
    uint64_t next_stamp;                 // of keys; likewise
    size_t num_keys;                     // likewise
    struct lli_extents addresses;        // likewise
    _Atomic uint64_t reader_slots_taken; // a bit per slot
    struct lli_segment *next_open;       // in the list of this process
};

llm_status lli_segment_open(struct lli_segment *segment, uint64_t cluster_id, uint64_t incarnation,
                            size_t num_devices);
// Readers that still map it find every cache gone.
void lli_segment_close(struct lli_segment *segment);
// In a forked child: forgets the parent's segments, whose memory isn't there.
void lli_segment_in_child(void);

// The first id from `id` on that has room in the directory; `id` itself if none has.
int64_t lli_segment_next_id(const struct lli_segment *segment, int64_t id);
// Publishes a cache; `addresses` are geometry->num_tensors * num_devices.  False when there is no room
// for that id, or for so many addresses; when there is none for the dimensions alone, they are left out.
// The caller serialises publish, retire and erase.
bool lli_segment_publish(struct lli_segment *segment, int64_t cache_id,
                         const struct lli_geometry *geometry, size_t num_devices, uint64_t flags,
                         const uint64_t *addresses, uint32_t *ret_entry, uint64_t *ret_generation);
// Sets flags of a live entry.
void lli_segment_mark(struct lli_segment *segment, uint32_t entry, uint64_t flags);
// Nobody new gets in.  The caller then asks lli_segment_is_read of every peer's segment.
void lli_segment_retire(struct lli_segment *segment, uint32_t entry);
// The entry is gone for good, and its memory may be used again.
void lli_segment_erase(struct lli_segment *segment, uint32_t entry);

// Announces that this instance reads generation `generation` of `owner`, under `lease` or 0.  The
// number of the slot, or -1 if all are taken.
int lli_segment_reader_enter(struct lli_segment *segment, uint64_t owner, uint64_t generation,
                             uint64_t lease);
void lli_segment_reader_leave(struct lli_segment *segment, int slot);

// Does the peer whose segment this is announce that it reads that generation, a cache's or a lease's,
// of ours?  generation 0: anything of ours.
bool lli_segment_is_read(const struct lli_segment_layout *peer, uint64_t owner,
                         uint64_t generation);

// Does any instance of this process announce it?  Linked or not: memory that the user registered is
// read directly there, so that whoever reads must be waited for.
bool lli_segment_is_read_here(uint64_t owner, uint64_t generation);

// A peer's cache, copied out of its directory and not yet checked against anything; without its
// dimensions, which a transfer doesn't need.
struct lli_remote_cache {
    uint32_t entry;
    uint64_t generation;
    uint64_t flags;
    uint64_t first_address;
    int64_t cache_id;
    uint64_t key_stamp; // of the key by which it was found, or 0
    struct lli_geometry geometry;
};

// Looks an id up in a peer's directory.  False: not there.
bool lli_segment_find(const struct lli_segment_layout *peer, int64_t cache_id,
                      struct lli_remote_cache *ret_cache);
// The live cache of that generation in that entry, whatever its id.  False: not there.
bool lli_segment_find_entry(const struct lli_segment_layout *peer, uint64_t entry,
                            uint64_t generation, struct lli_remote_cache *ret_cache);
// Adds its dimensions, as far as the directory says them.  False: it isn't there any more.
bool lli_segment_read_dims(const struct lli_segment_layout *peer, size_t num_devices,
                           struct lli_remote_cache *cache);
// After the announcement: may the cache still be entered?
bool lli_segment_still_live(const struct lli_segment_layout *peer,
                            const struct lli_remote_cache *cache);
// After the copy: was it the same cache all the time?
bool lli_segment_still_same(const struct lli_segment_layout *peer,
                            const struct lli_remote_cache *cache);

#endif

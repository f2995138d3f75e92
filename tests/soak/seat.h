// One cluster of a worker: an instance that is opened and finalized again and again, the caches
// that others pull from, and the goals that others push to.
#ifndef LLM_SOAK_SEAT_H
#define LLM_SOAK_SEAT_H

#include <pthread.h>

#include "llm_datadist/llm_datadist_c.h"
#include "soak/board.h"

// Says what went wrong unless the condition holds; true if it doesn't hold.
#define WRONG_UNLESS(condition, ...) ((condition) ? false : (tell_wrong(__VA_ARGS__), true))

struct cache {
    int64_t id; // 0: none
    bool registered;
    struct memory memory;
};

// Memory whose cache has ended: it may not change any more.
struct grave {
    struct memory memory;
    uint64_t checksum;
};

enum { GRAVES = 4 };

struct source {
    pthread_mutex_t lock;
    struct cache cache;
};

struct goal {
    pthread_mutex_t lock;
    struct cache cache;
    uint64_t background;
    bool has_checksum; // after a failed push; has been seen once
    uint64_t checksum;
    uint64_t seen_ms;   // when it was taken first
    struct grave grave; // of the goal before this one
};

// A cache with keys.
struct shelf {
    pthread_mutex_t lock;
    struct cache cache; // 0 while the keys alone keep it
    uint64_t serial;
    bool is_kept;
};

// A cache with a lease.
struct loan {
    pthread_mutex_t lock;
    struct cache cache;
    uint64_t serial;
    uint64_t lease; // its generation
};

struct seat {
    unsigned index;
    struct seat_board *board;
    pthread_rwlock_t lock; // for reading: calls on the instance; for writing: its life
    llm_datadist *dd;
    uint64_t life;        // of the instance; guarded by lock
    uint64_t incarnation; // likewise
    bool version_2;       // likewise
    unsigned role;        // likewise
    unsigned dead_ms;     // likewise
    _Atomic uint64_t serial;
    struct source sources[SOURCES];
    struct goal goals[GOALS];
    struct shelf shelves[SHELVES];
    struct loan loans[LOANS];
    pthread_mutex_t events_lock;
    uint32_t link_states[SEATS_MAX]; // as the events tell; guarded by events_lock
    // Bits of peers that were silent and are heard again, with the link that they had.
    _Atomic unsigned heard_again;
};

bool seat_init(struct seat *seat, unsigned index);
void seat_destroy(struct seat *seat);
// For writing.  False: told already.
bool seat_open(struct seat *seat, uint64_t *dice);
void seat_close(struct seat *seat, uint64_t *dice);
void seat_change_role(struct seat *seat, uint64_t *dice);

uint64_t seat_cluster(unsigned index);
// Any class if `stride_class` is CLASSES.
bool cache_open(struct seat *seat, struct cache *cache, unsigned stride_class, uint64_t serial,
                bool named, uint64_t *dice);
// Ends it; registered memory becomes a grave, if `grave` is given.
bool cache_close(struct seat *seat, struct cache *cache, struct grave *grave, uint64_t *dice);
void grave_dig(struct grave *grave, struct memory *memory);
void grave_check(struct grave *grave);

// Replaces a source, or a goal; looks at what has come to a goal.
void seat_change_source(struct seat *seat, uint64_t *dice);
void seat_change_goal(struct seat *seat, uint64_t *dice);
void seat_check_goals(struct seat *seat);

// Likewise shelves and loans; the first two while nobody else uses the seat.
void shelf_open(struct seat *seat, unsigned index, uint64_t *dice);
void loan_open(struct seat *seat, unsigned index, uint64_t *dice);
void shelf_hide(struct seat *seat, unsigned index);
void loan_hide(struct seat *seat, unsigned index);
void shelf_change(struct seat *seat, uint64_t *dice);
void loan_change(struct seat *seat, uint64_t *dice);

// Links to the seat with that index, maybe through the forwarder.
llm_status seat_link(struct seat *seat, unsigned to, bool forwarded, int timeout_ms);
llm_status seat_unlink(struct seat *seat, unsigned from, int timeout_ms, bool force);

#endif

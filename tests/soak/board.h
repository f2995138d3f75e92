// What the processes of the soak know of each other: shared memory that the driver makes and every
// worker maps.  A worker may be killed at any instruction, so whatever must be read together is one
// atomic word.
#ifndef LLM_SOAK_BOARD_H
#define LLM_SOAK_BOARD_H

#include <stdatomic.h>

#include "multi/process.h"
#include "soak/pattern.h"

// A worker is a process; each of its seats is a cluster, in one incarnation after another.
enum { WORKERS_MAX = 4, SEATS_PER_WORKER = 2, SEATS_MAX = WORKERS_MAX * SEATS_PER_WORKER };
enum { THREADS = 4, SOURCES = 6, GOALS = 6, PUSHES = 8, FIRST_CLUSTER = 100 };
enum { SHELVES = 3, LOANS = 3 };
// The dead times of seats: no stop lasts as long as the longer one.
enum { DEAD_MS = 1000, PATIENT_DEAD_MS = SCALED(6000, 20000) };

// A cache that others may name, in one word: id, serial number, class.  0 = none.
static inline uint64_t
card_of(int64_t id, uint64_t serial, unsigned stride_class)
{
    return (uint64_t)id << 32 | (serial & 0xfffff) << 8 | stride_class;
}

static inline int64_t
card_id(uint64_t card)
{
    return (int64_t)(card >> 32);
}

static inline uint64_t
card_serial(uint64_t card)
{
    return card >> 8 & 0xfffff;
}

static inline unsigned
card_class(uint64_t card)
{
    return (unsigned)(card & 0xff);
}

// A goal of pushes goes around: free, taken by a pusher, and then its owner looks what has arrived.
enum goal_phase { GOAL_CLOSED = 0, GOAL_FREE, GOAL_TAKEN, GOAL_ARRIVED, GOAL_FAILED };

// The state of a goal in one word: phase, and whose push it is.
static inline uint64_t
goal_state(enum goal_phase phase, unsigned seat, unsigned thread, unsigned slot,
           uint64_t incarnation, uint64_t serial)
{
    return (uint64_t)phase << 60 | (uint64_t)seat << 56 | (uint64_t)thread << 52 |
           (uint64_t)slot << 48 | (incarnation & 0xffff) << 32 | (serial & 0xffffffff);
}

struct goal_board {
    _Atomic uint64_t card;
    _Atomic uint64_t state;
    _Atomic uint64_t addresses[TENSORS]; // good while the card stays the same; 0: not told
};

// A cache with keys.  As long as the card is there no key has been removed by the owner.
struct shelf_board {
    _Atomic uint64_t card;
    _Atomic uint64_t kept_card; // deallocated: by key alone from now on
    // What has become of each slot's key: whose it is (40 bits), attempts (16), whether one pull by
    // key got it whole (4), layers that were taken (4).
    _Atomic uint64_t keys[BLOCKS];
};

// A cache with a lease.  As long as the card is there the owner hasn't closed it.
struct loan_board {
    _Atomic uint64_t card;
    // Good while the card stays the same.
    _Atomic uint64_t lease;
    _Atomic uint64_t generation; // of the cache
    _Atomic uint64_t releases;   // attempts: whose lease it is (40 bits), how many (24)
};

// Whose a count is: incarnation and serial number.
static inline uint64_t
tag_of(uint64_t incarnation, uint64_t serial)
{
    return (incarnation & 0xfffff) << 44 | (serial & 0xfffff) << 24;
}

// Changes what lies below the tag, unless it is another's by now; what was there, 0 if another's.
static inline uint64_t
tagged_add(_Atomic uint64_t *word, uint64_t tag, uint64_t add, uint64_t set)
{
    uint64_t old = atomic_load(word);
    do {
        if (old >> 24 != tag >> 24)
            return 0;
    } while (!atomic_compare_exchange_weak(word, &old, (old + add) | set));
    return old;
}

// A push that the goal's owner has to check; the goal's state says that it is still of interest.
struct push_board {
    uint64_t state; // the goal's while it is taken; the pusher's alone
    unsigned seat;  // the goal's
    unsigned goal;
    struct content content;
    char how[256];     // it ended, and over which transport
    bool is_uncertain; // its link broke or was removed: the peer may not know yet
};

struct seat_board {
    _Atomic uint64_t incarnation; // counts on before each initialization
    _Atomic unsigned port;        // 0: doesn't listen
    _Atomic uint64_t sources[SOURCES];
    struct goal_board goals[GOALS];
    struct shelf_board shelves[SHELVES];
    struct loan_board loans[LOANS];
    struct push_board pushes[THREADS][PUSHES];
};

// X(name): what is counted.
#define COUNTER_MAP(X)                                                                             \
    X(steps)                                                                                       \
    X(transfers)                                                                                   \
    X(bytes)                                                                                       \
    X(failed)                                                                                      \
    X(timed_out)                                                                                   \
    X(cancelled)                                                                                   \
    X(links)                                                                                       \
    X(unlinks)                                                                                     \
    X(caches)                                                                                      \
    X(copies)                                                                                      \
    X(notifications)                                                                               \
    X(events)                                                                                      \
    X(continued)                                                                                   \
    X(resumed_bytes)                                                                               \
    X(into_blocks)                                                                                 \
    X(by_address)                                                                                  \
    X(by_key)                                                                                      \
    X(keys_taken)                                                                                  \
    X(keys_gone)                                                                                   \
    X(caches_kept)                                                                                 \
    X(leases)                                                                                      \
    X(leases_expired)                                                                              \
    X(leases_released)                                                                             \
    X(under_lease)                                                                                 \
    X(stale)                                                                                       \
    X(checked_lives)                                                                               \
    X(lives)                                                                                       \
    X(roles)                                                                                       \
    X(cuts)                                                                                        \
    X(signals)                                                                                     \
    X(forks)                                                                                       \
    X(forwarded)                                                                                   \
    X(swallowed)                                                                                   \
    X(silences)                                                                                    \
    X(heard_again)                                                                                 \
    X(after_silence)                                                                               \
    X(pulled_rug)                                                                                  \
    X(late_checks)                                                                                 \
    X(unjudged)                                                                                    \
    X(over_local)                                                                                  \
    X(over_shm)                                                                                    \
    X(over_tcp)

enum counter {
#define COUNTER_ENUM_(name) COUNT_##name,
    COUNTER_MAP(COUNTER_ENUM_)
#undef COUNTER_ENUM_
        COUNTERS
};

// Taken when no instance is open.
struct rest {
    uint64_t rss_kb;
    uint64_t descriptors;
    uint64_t threads;
};

struct thread_board {
    _Atomic uint64_t began_ms; // its present step
    _Atomic unsigned line;     // of the call that it is in
};

struct worker_board {
    _Atomic uint64_t life;
    _Atomic unsigned cuts_wanted;
    _Atomic uint64_t next_place; // for memory, in all lives
    struct thread_board threads[THREADS];
    _Atomic unsigned rests; // of this life
    struct rest first;
    struct rest last;
};

struct board {
    uint64_t seed;
    unsigned num_workers;
    _Atomic bool over;
    _Atomic bool is_wrong; // `wrong` tells what; the first finding counts
    _Atomic bool is_told;
    char wrong[1024];
    _Atomic uint64_t counters[COUNTERS];
    struct worker_board workers[WORKERS_MAX];
    struct seat_board seats[SEATS_MAX];
    _Atomic unsigned forward_ports[SEATS_MAX]; // where the forwarder listens for each
};

// The board of this process.
extern struct board *board;

static inline void
count(enum counter counter, uint64_t number)
{
    atomic_fetch_add_explicit(&board->counters[counter], number, memory_order_relaxed);
}

void tell_wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));

uint64_t soak_now_ms(void);

// One process' work, until the board says that it's over; the exit code.
int worker_run(unsigned index);
// The forwarder's, until it is killed.
int forwarder_run(void);

#endif

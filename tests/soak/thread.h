// A worker's threads: each makes one random call after the other.
#ifndef LLM_SOAK_THREAD_H
#define LLM_SOAK_THREAD_H

#include <sys/types.h>
#include <time.h>

#include "soak/seat.h"

enum { TARGETS = 4, STARTED_MAX = 4, LINK_MS = 3000 };

// A cache that one thread alone pulls into.
struct target {
    struct cache cache;
    uint64_t life; // of the instance that it belongs to
    uint64_t background;
    uint64_t checksum; // after the last call that could write here
};

struct thread {
    pthread_t handle;
    struct worker *worker;
    struct thread_board *board;
    unsigned number;
    uint64_t dice;
    uint64_t num_pushes;
    bool is_signalled;
    timer_t timer;
    pid_t child; // 0: none
    struct target targets[SEATS_PER_WORKER][TARGETS];
};

// Where a thread is, for the driver's complaint about one that stays there.
#define AT(thread) atomic_store(&(thread)->board->line, __LINE__)

// What was the target's must have stayed as it was; the target is fresh afterwards.  NULL: told.
struct target *take_target(struct thread *th, struct seat *seat, unsigned number,
                           unsigned stride_class);

unsigned choose_peer(const struct seat *seat, uint64_t *dice);
void link_to(struct thread *th, struct seat *seat, unsigned peer);
// Sometimes, if there is no link.
void perhaps_link(struct thread *th, struct seat *seat, unsigned peer);
void unlink_from(struct thread *th, struct seat *seat);

// How this process handles the signals that come, before its threads start.
void trouble_choose(uint64_t *dice);
// Of a thread: in its beginning, after each step, in its end.
void trouble_start(struct thread *th);
void trouble_look(struct thread *th);
void trouble_stop(struct thread *th);

// One step each, with the seat's lock held for reading.
void pull(struct thread *th, struct seat *seat);
void pull_on(struct thread *th, struct seat *seat);
void pull_side_by_side(struct thread *th, struct seat *seat);
void pull_the_rug(struct thread *th, struct seat *seat);
void fork_off(struct thread *th, struct seat *seat);
void push(struct thread *th, struct seat *seat);
void pull_by_key(struct thread *th, struct seat *seat);
void pull_under_lease(struct thread *th, struct seat *seat);
void copy_here(struct thread *th, struct seat *seat);
void poll_notes(struct thread *th, struct seat *seat);
void poll_events(struct thread *th, struct seat *seat);
void look_inside(struct thread *th, struct seat *seat);

#endif

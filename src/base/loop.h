// One thread that waits for sockets and runs tasks: the worker of an instance.
//
// Everything a source or a task touches belongs to this thread, unless a comment says otherwise.
// Other threads hand work over whole, with lli_loop_post.
#ifndef LLI_LOOP_H
#define LLI_LOOP_H

#include <pthread.h>

#include "base/base.h"

struct lli_loop;

// A file descriptor with interest in events.  `ready` runs on the loop's thread.
struct lli_source {
    int fd;
    uint32_t events; // EPOLLIN and so on
    bool added;
    void (*ready)(struct lli_source *source, uint32_t events);
    struct lli_list dead; // in loop->dead while its memory waits to be freed
    void (*free)(struct lli_source *source);
};

// Work handed over.  The task's memory is its poster's until `run` is called, then the task's own.
struct lli_task {
    struct lli_list node;
    void (*run)(struct lli_task *task);
};

struct lli_loop {
    int epoll_fd;
    pthread_t thread;
    bool started;
    struct lli_source wake;
    uint64_t tick_ns;
    void (*tick)(void *arg, uint64_t now_ns); // or NULL
    void *tick_arg;
    // Something wants to go on without waiting for an event.  Or NULL.
    bool (*idle)(void *arg);
    struct lli_list dead;

    pthread_mutex_t lock;
    struct lli_list tasks; // guarded by lock
    bool stopping;         // guarded by lock
};

// Opens the loop; the thread starts with lli_loop_start.  `tick` is called about every tick_ms.
// `idle` is called between waits and returns true while it has more to do.  Either may be NULL.
llm_status lli_loop_open(struct lli_loop *loop, uint32_t tick_ms,
                         void (*tick)(void *arg, uint64_t now_ns), bool (*idle)(void *arg),
                         void *arg);
llm_status lli_loop_start(struct lli_loop *loop);
// Runs what was posted before, then ends the thread.  [any thread but the loop's]
void lli_loop_stop(struct lli_loop *loop);
// After stop.  Sources have been removed.
void lli_loop_close(struct lli_loop *loop);

// [any thread]  Also before start and from the loop's own thread.
void lli_loop_post(struct lli_loop *loop, struct lli_task *task);
// Takes back a task that may have been posted and hasn't run.  [the loop's thread]
void lli_loop_unpost(struct lli_loop *loop, struct lli_task *task);
// Runs `run(arg)` on the loop's thread and waits for it.  [any thread but the loop's]
void lli_loop_call(struct lli_loop *loop, void (*run)(void *arg), void *arg);
// Returns when everything posted before has run.  [any thread but the loop's]
void lli_loop_flush(struct lli_loop *loop);

// [any thread]
llm_status lli_loop_add(struct lli_loop *loop, struct lli_source *source);
// [any thread, one at a time, while nobody removes the source]
void lli_loop_change(struct lli_loop *loop, struct lli_source *source, uint32_t events);
// Nothing is reported any more, not even that the descriptor hangs up.  For good.  [as change]
void lli_loop_mute(struct lli_loop *loop, struct lli_source *source);
// [the loop's thread, or any before start and after stop]  Removes the source, closes its descriptor, and calls source->free once no event can name it.
void lli_loop_remove(struct lli_loop *loop, struct lli_source *source);

#endif

#include "base/loop.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/os.h"

enum { EVENTS_PER_WAIT = 64 };

static void
drain_wake(struct lli_source *source, uint32_t events)
{
    uint64_t count;
    (void)events;
    while (LLI_RETRY(read(source->fd, &count, sizeof(count))) == (ssize_t)sizeof(count)) {
    }
}

llm_status
lli_loop_open(struct lli_loop *loop, uint32_t tick_ms, void (*tick)(void *arg, uint64_t now_ns),
              bool (*idle)(void *arg), void *arg)
{
    memset(loop, 0, sizeof(*loop));
    lli_list_init(&loop->tasks);
    lli_list_init(&loop->dead);
    loop->tick_ns = LLI_MS_TO_NS(tick_ms);
    loop->tick = tick;
    loop->idle = idle;
    loop->tick_arg = arg;

    loop->epoll_fd = lli_keep_fd(epoll_create1(EPOLL_CLOEXEC));
    if (loop->epoll_fd < 0)
        return lli_fail(LLM_FAILED, "loop", "epoll_create1: %s", strerror(errno));
    loop->wake = (struct lli_source){
        .fd = lli_keep_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        .events = EPOLLIN,
        .ready = drain_wake,
    };
    if (loop->wake.fd < 0) {
        close(loop->epoll_fd);
        return lli_fail(LLM_FAILED, "loop", "eventfd: %s", strerror(errno));
    }
    pthread_mutex_init(&loop->lock, NULL);
    lli_fork_watch(loop->epoll_fd);
    llm_status status = lli_loop_add(loop, &loop->wake);
    if (status != LLM_SUCCESS) {
        lli_fork_unwatch(loop->epoll_fd);
        close(loop->wake.fd);
        close(loop->epoll_fd);
        pthread_mutex_destroy(&loop->lock);
    }
    return status;
}

llm_status
lli_loop_add(struct lli_loop *loop, struct lli_source *source)
{
    struct epoll_event event = {.events = source->events, .data.ptr = source};
    // First: the loop's thread may have an event before this returns.
    source->added = true;
    lli_list_init(&source->dead);
    lli_fork_watch(source->fd);
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, source->fd, &event) == 0)
        return LLM_SUCCESS;
    lli_fork_unwatch(source->fd);
    source->added = false;
    return lli_fail(LLM_FAILED, "loop", "epoll_ctl: %s", strerror(errno));
}

void
lli_loop_change(struct lli_loop *loop, struct lli_source *source, uint32_t events)
{
    if (!source->added || source->events == events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = source};
    source->events = events;
    // Fails only if the source was never added, or is mute.
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, source->fd, &event);
}

void
lli_loop_mute(struct lli_loop *loop, struct lli_source *source)
{
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
}

void
lli_loop_remove(struct lli_loop *loop, struct lli_source *source)
{
    if (!source->added)
        return;
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    lli_fork_unwatch(source->fd);
    close(source->fd);
    source->fd = -1;
    source->added = false;
    // An event of this round may still point to it.
    lli_list_append(&loop->dead, &source->dead);
}

static void
free_dead(struct lli_loop *loop)
{
    LLI_LIST_FOR(node, &loop->dead) {
        struct lli_source *source = LLI_LIST_ENTRY(node, struct lli_source, dead);
        lli_list_remove(node);
        if (source->free != NULL)
            source->free(source);
    }
}

// Moves all nodes of one list to the end of another, which is empty.
static void
take_all(struct lli_list *to, struct lli_list *from)
{
    lli_list_init(to);
    LLI_LIST_FOR(node, from) {
        lli_list_remove(node);
        lli_list_append(to, node);
    }
}

static void
run_all(struct lli_list *tasks)
{
    while (!lli_list_empty(tasks)) {
        struct lli_task *task = LLI_LIST_ENTRY(tasks->next, struct lli_task, node);
        lli_list_remove(&task->node);
        task->run(task);
    }
}

// Runs what is queued now, and not what is queued meanwhile: callers who never stop must not keep the
// loop from its sockets.  True when the loop must end, after everything has run.
static bool
run_tasks(struct lli_loop *loop)
{
    for (;;) {
        struct lli_list tasks;
        pthread_mutex_lock(&loop->lock);
        bool stopping = loop->stopping;
        take_all(&tasks, &loop->tasks);
        pthread_mutex_unlock(&loop->lock);
        bool is_idle = lli_list_empty(&tasks);
        run_all(&tasks);
        if (!stopping || is_idle)
            return stopping;
    }
}

static void
handle_events(struct lli_loop *loop, int timeout_ms)
{
    struct epoll_event events[EVENTS_PER_WAIT];
    int num_events = epoll_wait(loop->epoll_fd, events, EVENTS_PER_WAIT, timeout_ms);
    for (int i = 0; i < num_events; i++) {
        struct lli_source *source = events[i].data.ptr;
        if (source->added)
            source->ready(source, events[i].events);
    }
}

static int
ms_to_wait(uint64_t next_tick)
{
    return next_tick != UINT64_MAX ? lli_ms_until(next_tick) : -1;
}

static void *
loop_main(void *arg)
{
    struct lli_loop *loop = arg;
    uint64_t next_tick = loop->tick != NULL ? lli_now_ns() + loop->tick_ns : UINT64_MAX;
    bool busy = false;
    for (;;) {
        handle_events(loop, busy ? 0 : ms_to_wait(next_tick));
        if (run_tasks(loop))
            break;
        busy = loop->idle != NULL && loop->idle(loop->tick_arg);
        uint64_t now = next_tick != UINT64_MAX ? lli_now_ns() : 0;
        if (now >= next_tick) {
            loop->tick(loop->tick_arg, now);
            next_tick = now + loop->tick_ns;
        }
        free_dead(loop);
    }
    return NULL;
}

llm_status
lli_loop_start(struct lli_loop *loop)
{
    int error = lli_thread_start(&loop->thread, "llm-datadist", loop_main, loop);
    if (error != 0)
        return lli_fail(LLM_FAILED, "loop", "can't start a thread: %s", strerror(error));
    loop->started = true;
    return LLM_SUCCESS;
}

void
lli_loop_stop(struct lli_loop *loop)
{
    if (!loop->started)
        return;
    pthread_mutex_lock(&loop->lock);
    loop->stopping = true;
    pthread_mutex_unlock(&loop->lock);
    lli_event_signal(loop->wake.fd);
    pthread_join(loop->thread, NULL);
    loop->started = false;
}

void
lli_loop_close(struct lli_loop *loop)
{
    // What was queued after the end runs here.
    loop->stopping = true;
    (void)run_tasks(loop);
    lli_loop_remove(loop, &loop->wake);
    free_dead(loop);
    lli_fork_unwatch(loop->epoll_fd);
    close(loop->epoll_fd);
    pthread_mutex_destroy(&loop->lock);
}

void
lli_loop_post(struct lli_loop *loop, struct lli_task *task)
{
    pthread_mutex_lock(&loop->lock);
    lli_list_append(&loop->tasks, &task->node);
    pthread_mutex_unlock(&loop->lock);
    lli_event_signal(loop->wake.fd);
}

void
lli_loop_unpost(struct lli_loop *loop, struct lli_task *task)
{
    // What the loop has taken off its queue is this thread's own.
    pthread_mutex_lock(&loop->lock);
    lli_list_remove(&task->node);
    pthread_mutex_unlock(&loop->lock);
}

struct call {
    struct lli_task task;
    void (*run)(void *arg);
    void *arg;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done;
};

static void
run_call(struct lli_task *task)
{
    struct call *call = LLI_CONTAINER_OF(task, struct call, task);
    call->run(call->arg);
    pthread_mutex_lock(&call->lock);
    call->done = true;
    // Under the lock: the caller's stack is gone once it sees `done`.
    pthread_cond_signal(&call->changed);
    pthread_mutex_unlock(&call->lock);
}

void
lli_loop_call(struct lli_loop *loop, void (*run)(void *arg), void *arg)
{
    struct call call = {.task.run = run_call, .run = run, .arg = arg};
    pthread_mutex_init(&call.lock, NULL);
    lli_cond_init(&call.changed);
    lli_loop_post(loop, &call.task);
    pthread_mutex_lock(&call.lock);
    while (!call.done)
        pthread_cond_wait(&call.changed, &call.lock);
    pthread_mutex_unlock(&call.lock);
    pthread_cond_destroy(&call.changed);
    pthread_mutex_destroy(&call.lock);
}

static void
nothing(void *arg)
{
    (void)arg;
}

void
lli_loop_flush(struct lli_loop *loop)
{
    lli_loop_call(loop, nothing, NULL);
}

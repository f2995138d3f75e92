#include "transport/crew.h"

#include <stdatomic.h>

#include "base/os.h"

// Waking a helper costs as much as copying about a MiB; below this the caller is as fast alone.
static const uint64_t shared_bytes_min = 8 << 20;
// What one thread takes at a time.
static const uint64_t share_bytes = 512 << 10;

// A copy that several threads make, each taking the next share of the stream.
struct task {
    struct lli_list node; // in crew->tasks
    unsigned num_active;  // helpers at it; guarded by crew->lock
    const struct lli_mapped_copy *copy;
    uint64_t deadline_ns;
    _Atomic uint64_t
        next; // position of the next share; shares before it are copied, or being copied
    _Atomic uint64_t failed; // the first position that could not be copied
    _Atomic bool stop;       // error or deadline
    _Atomic int error;
};

void
lli_crew_open(struct lli_crew *crew, size_t num_threads)
{
    memset(crew, 0, sizeof(*crew));
    crew->num_helpers = lli_min(num_threads - 1, LLI_NUM_HELPERS_MAX);
    pthread_mutex_init(&crew->lock, NULL);
    pthread_cond_init(&crew->work_came, NULL);
    pthread_cond_init(&crew->helper_left, NULL);
    lli_list_init(&crew->tasks);
}

void
lli_crew_close(struct lli_crew *crew)
{
    pthread_mutex_lock(&crew->lock);
    crew->stopping = true;
    pthread_cond_broadcast(&crew->work_came);
    pthread_mutex_unlock(&crew->lock);
    for (size_t i = 0; i < crew->num_threads; i++)
        pthread_join(crew->threads[i], NULL);
    pthread_cond_destroy(&crew->helper_left);
    pthread_cond_destroy(&crew->work_came);
    pthread_mutex_destroy(&crew->lock);
}

static void
note_failure(struct task *task, uint64_t position)
{
    uint64_t failed = atomic_load(&task->failed);
    while (position < failed && !atomic_compare_exchange_weak(&task->failed, &failed, position)) {
    }
}

// Returns when no share is left to take.
static void
take_shares(struct task *task)
{
    uint64_t total_bytes = task->copy->plan->total_bytes;
    while (!atomic_load(&task->stop)) {
        struct lli_mapped_copy share = *task->copy;
        share.position = atomic_fetch_add(&task->next, share_bytes);
        if (share.position >= total_bytes)
            return;
        (void)lli_mapped_copy_some(&share, share_bytes);
        if (share.error != 0) {
            note_failure(task, share.position);
            atomic_store(&task->error, share.error);
            atomic_store(&task->stop, true);
        } else if (lli_now_ns() >= task->deadline_ns) {
            atomic_store(&task->stop, true);
        }
    }
}

static void *
helper_main(void *arg)
{
    struct lli_crew *crew = arg;
    pthread_mutex_lock(&crew->lock);
    while (!crew->stopping) {
        if (lli_list_empty(&crew->tasks)) {
            pthread_cond_wait(&crew->work_came, &crew->lock);
            continue;
        }
        struct task *task = LLI_LIST_ENTRY(crew->tasks.next, struct task, node);
        // To the end of the queue, so that the next helper looks after another caller.
        lli_list_remove(&task->node);
        lli_list_append(&crew->tasks, &task->node);
        task->num_active++;
        pthread_mutex_unlock(&crew->lock);
        take_shares(task);
        pthread_mutex_lock(&crew->lock);
        // Nothing is left of it: off the queue, if the caller has not taken it off already.
        lli_list_remove(&task->node);
        task->num_active--;
        pthread_cond_broadcast(&crew->helper_left);
    }
    pthread_mutex_unlock(&crew->lock);
    return NULL;
}

static void
call_helpers(struct lli_crew *crew, struct task *task)
{
    pthread_mutex_lock(&crew->lock);
    // If one can't be started the others, or the caller alone, do the work.
    while (crew->num_threads < crew->num_helpers &&
           lli_thread_start(&crew->threads[crew->num_threads], "llm-copy", helper_main, crew) == 0)
        crew->num_threads++;
    lli_list_append(&crew->tasks, &task->node);
    pthread_cond_broadcast(&crew->work_came);
    pthread_mutex_unlock(&crew->lock);
}

static void
dismiss_helpers(struct lli_crew *crew, struct task *task)
{
    pthread_mutex_lock(&crew->lock);
    lli_list_remove(&task->node);
    while (task->num_active > 0)
        pthread_cond_wait(&crew->helper_left, &crew->lock);
    pthread_mutex_unlock(&crew->lock);
}

bool
lli_crew_copy(struct lli_crew *crew, struct lli_mapped_copy *copy, uint64_t deadline_ns)
{
    uint64_t total_bytes = copy->plan->total_bytes;
    if (crew->num_helpers == 0 || total_bytes - copy->position < shared_bytes_min)
        return lli_mapped_copy_all(copy, deadline_ns);
    struct task task = {
        .copy = copy,
        .deadline_ns = deadline_ns,
        .next = copy->position,
        .failed = total_bytes,
    };
    lli_list_init(&task.node);
    call_helpers(crew, &task);
    take_shares(&task);
    dismiss_helpers(crew, &task);
    // All shares that were taken have been copied, up to the first failure.
    copy->position = lli_min(atomic_load(&task.next), atomic_load(&task.failed));
    copy->error = atomic_load(&task.error);
    return copy->error != 0 || copy->position == total_bytes;
}

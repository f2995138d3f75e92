// Pulls from the sources of the peers: one, several at once, and such as go on after a failure.
#include "multi/process.h"
#include "soak/job.h"

static bool
choose_source(struct thread *th, struct seat *seat, struct job *job)
{
    unsigned peer = choose_peer(seat, &th->dice);
    struct seat_board *shown = &board->seats[peer];
    if (!seat->version_2 && seat->role != LLM_ROLE_DECODER)
        return false;
    uint64_t incarnation = atomic_load(&shown->incarnation);
    uint64_t card = atomic_load(&shown->sources[roll(&th->dice, SOURCES)]);
    if (card == 0)
        return false;
    *job = job_of_pull(peer, incarnation, card);
    job->shape = (enum shape)roll(&th->dice, 3);
    perhaps_link(th, seat, peer);
    return true;
}

static bool
prepare(struct thread *th, struct seat *seat, unsigned target_number, struct job *job)
{
    return choose_source(th, seat, job) && job_choose_pull(th, seat, target_number, job);
}

// Asks for the cache's generation, sometimes, and will have no other.
static void
perhaps_pin(struct thread *th, struct seat *seat, struct job *job)
{
    llm_cache_index index = job_index(job);
    llm_cache_info info = {.struct_size = sizeof(info)};
    if (roll(&th->dice, 8) != 0)
        return;
    AT(th);
    if (llm_query_cache(seat->dd, &index, &info) != LLM_SUCCESS || !job_same_peer(job))
        return;
    WRONG_UNLESS(info.cache_id == index.cache_id && info.num_slots == BLOCKS &&
                     info.num_tensors == TENSORS &&
                     info.stride == strides[card_class(job->remote_card)] && info.generation != 0,
                 "a query tells of another cache than %lld", (long long)index.cache_id);
    job->generation = info.generation;
}

void
pull(struct thread *th, struct seat *seat)
{
    struct job job;
    if (!prepare(th, seat, 0, &job))
        return;
    perhaps_pin(th, seat, &job);
    AT(th);
    llm_status status = job_call(seat, &job, NULL);
    job_count(seat, &job, status);
    job_judge_pull(seat, &job, status);
}

// ---- going on ----

// One attempt, which is probably cut short.
static llm_status
attempt(struct thread *th, struct seat *seat, struct job *job, llm_progress *progress)
{
    static const uint32_t timeouts[] = {1, 1, 2, 5, 20, 0};
    uint64_t transfer;
    uint64_t goal = progress->bytes_arrived + 1 + roll(&th->dice, job->num_bytes);
    job->param.progress = progress;
    job->param.timeout_ms = timeouts[roll(&th->dice, 6)];
    job->patience = 1 + roll(&th->dice, 3);
    AT(th);
    if (roll(&th->dice, 2) == 0)
        return job_call(seat, job, NULL);
    // A start only reads it.
    progress->bytes_moved = 0;
    llm_status status = job_call(seat, job, &transfer);
    if (status != LLM_SUCCESS)
        return status;
    // Cut in the middle, if we are quick enough.
    while (progress->bytes_arrived < goal &&
           llm_transfer_poll(seat->dd, transfer) == LLM_TRANSFER_PENDING)
        (void)llm_transfer_get_progress(seat->dd, transfer, progress);
    AT(th);
    WRONG_UNLESS(llm_transfer_cancel(seat->dd, transfer) == LLM_SUCCESS, "cancel");
    status = llm_transfer_poll(seat->dd, transfer);
    WRONG_UNLESS(llm_transfer_get_progress(seat->dd, transfer, progress) == LLM_SUCCESS,
                 "the progress of a transfer that has ended");
    WRONG_UNLESS(llm_transfer_release(seat->dd, transfer) == LLM_SUCCESS, "release");
    return status;
}

// What has arrived must be there, whatever the status.  Then it's taken away: it may not come again.
static void
take_what_has_arrived(struct job *job, uint64_t num_bytes)
{
    struct target *target = job->target;
    unsigned first = job->dst_layer < 0 ? 0 : (unsigned)job->dst_layer * TENSORS_PER_LAYER;
    unsigned num_tensors = job->src_layer < 0 ? TENSORS : TENSORS_PER_LAYER;
    struct content arrived = job->content;
    uint64_t position = 0;
    char why[256];
    for (unsigned t = first; t < first + num_tensors; t++) {
        for (size_t i = 0; i < job->num_blocks; i++) {
            struct piece *piece = &arrived.pieces[t][job->dst_blocks[i]];
            position += piece->num_bytes;
            // A list may name a block several times: as long as it will be written again it may hold
            // anything, also what a copy that failed has brought.
            piece->is_open = position > num_bytes;
            if (i + job->num_once >= job->num_blocks && position <= num_bytes)
                job->content.pieces[t][job->dst_blocks[i]].name = 0;
        }
    }
    WRONG_UNLESS(memory_holds(&target->cache.memory, &arrived, target->background, true, why),
                 "%llu of %llu bytes have arrived from cluster %llu: %s",
                 (unsigned long long)num_bytes, (unsigned long long)job->num_bytes,
                 (unsigned long long)seat_cluster(job->peer), why);
    for (unsigned t = 0; t < TENSORS; t++) {
        for (unsigned b = 0; b < BLOCKS; b++) {
            if (arrived.pieces[t][b].name != 0 && job->content.pieces[t][b].name == 0)
                memory_name(&target->cache.memory, t, b,
                            name_of(NO_SEAT, 0, target->background, t, b));
        }
    }
}

static void
judge_progress(const struct job *job, const llm_progress *progress, uint64_t before,
               llm_status status)
{
    bool is_right = progress->bytes_arrived >= before &&
                    progress->bytes_arrived <= job->num_bytes &&
                    progress->bytes_moved <= job->num_bytes - before &&
                    (progress->total_bytes == 0 || progress->total_bytes == job->num_bytes) &&
                    (status != LLM_SUCCESS || progress->bytes_arrived == job->num_bytes);
    WRONG_UNLESS(
        is_right || !job_same_peer(job),
        "a pull that went on from byte %llu of %llu ended with %s: %llu arrived, %llu moved, "
        "%llu in total",
        (unsigned long long)before, (unsigned long long)job->num_bytes, llm_status_name(status),
        (unsigned long long)progress->bytes_arrived, (unsigned long long)progress->bytes_moved,
        (unsigned long long)progress->total_bytes);
}

void
pull_on(struct thread *th, struct seat *seat)
{
    struct job job;
    llm_progress progress = {.struct_size = sizeof(progress)};
    llm_status status = LLM_FAILED;
    if (!choose_source(th, seat, &job))
        return;
    // Long ones, which can be cut in the middle.  Two threads may write the same bytes into a block
    // that is named twice, which the thread sanitizer doesn't permit.
    if (roll(&th->dice, 4) != 0) {
        job.shape = SHAPE_BLOCKS;
        job_choose_blocks(&job, &th->dice);
        job_repeat(&job, UNDER_TSAN ? 1 : 1 + (unsigned)roll(&th->dice, LIST_MAX / BLOCKS));
    }
    if (!job_choose_pull(th, seat, 0, &job))
        return;
    for (unsigned i = 0; i < 6 && status != LLM_SUCCESS && job_same_peer(&job); i++) {
        uint64_t before = progress.bytes_arrived;
        status = attempt(th, seat, &job, &progress);
        job_count(seat, &job, status);
        if (!job_same_peer(&job))
            break;
        judge_progress(&job, &progress, before, status);
        count(COUNT_continued, before > 0);
        count(COUNT_resumed_bytes, before);
        if (status == LLM_CACHE_STALE)
            break;
        if (status != LLM_SUCCESS)
            take_what_has_arrived(&job, progress.bytes_arrived);
        perhaps_link(th, seat, job.peer);
    }
    job_judge_pull(seat, &job, status);
}

// ---- several at once ----

size_t
start_pulls(struct thread *th, struct seat *seat, struct job jobs[STARTED_MAX],
            uint64_t transfers[STARTED_MAX])
{
    size_t num_started = 0;
    for (unsigned i = 0; i < STARTED_MAX; i++) {
        transfers[i] = 0;
        if (!prepare(th, seat, i % TARGETS, &jobs[i]))
            continue;
        AT(th);
        llm_status status = job_call(seat, &jobs[i], &transfers[i]);
        if (status == LLM_SUCCESS) {
            num_started++;
            continue;
        }
        transfers[i] = 0;
        job_count(seat, &jobs[i], status);
        job_judge_pull(seat, &jobs[i], status);
    }
    return num_started;
}

void
pull_side_by_side(struct thread *th, struct seat *seat)
{
    struct job jobs[STARTED_MAX];
    uint64_t transfers[STARTED_MAX];
    (void)start_pulls(th, seat, jobs, transfers);
    for (unsigned i = 0; i < STARTED_MAX; i++) {
        if (transfers[i] == 0)
            continue;
        if (roll(&th->dice, 6) == 0) {
            // Forgotten: nothing may land any more, whatever has landed.
            AT(th);
            WRONG_UNLESS(llm_transfer_release(seat->dd, transfers[i]) == LLM_SUCCESS, "release");
            count(COUNT_cancelled, 1);
            job_judge_pull(seat, &jobs[i], LLM_TRANSFER_CANCELLED);
            continue;
        }
        llm_status status = job_end(th, seat, transfers[i]);
        job_count(seat, &jobs[i], status);
        job_judge_pull(seat, &jobs[i], status);
    }
}

// While pulls are under way either what they go to ends, or the link that they take.
void
pull_the_rug(struct thread *th, struct seat *seat)
{
    struct job jobs[STARTED_MAX];
    uint64_t transfers[STARTED_MAX];
    bool unlinks = roll(&th->dice, 2) == 0;
    (void)start_pulls(th, seat, jobs, transfers);
    for (unsigned i = 0; i < STARTED_MAX; i++) {
        struct target *target = jobs[i].target;
        if (transfers[i] == 0)
            continue;
        count(COUNT_pulled_rug, 1);
        AT(th);
        if (unlinks)
            (void)seat_unlink(seat, jobs[i].peer, LINK_MS, true);
        else
            cache_close(seat, &target->cache, NULL, &th->dice);
        llm_status status = job_end(th, seat, transfers[i]);
        job_count(seat, &jobs[i], status);
        if (unlinks)
            job_judge_pull(seat, &jobs[i], status);
    }
}

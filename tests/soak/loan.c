// Caches under leases: the owner writes something else into the blocks the moment a lease has ended.
#include "soak/job.h"

enum { HOUR_MS = 3600000, RELEASE = 1 };

// All follows from the serial number: how the lease ends, and what it is for.
enum ending { CLOSED, EXPIRES, RELEASED };

static enum ending
ending_of(uint64_t serial)
{
    return (enum ending)(mix(serial) % 3);
}

static uint64_t
first_block_of(uint64_t serial)
{
    return mix(serial + 1) % BLOCKS;
}

static uint64_t
num_blocks_of(uint64_t serial)
{
    return 1 + mix(serial + 2) % (BLOCKS - first_block_of(serial));
}

static uint32_t
num_releases_of(uint64_t serial)
{
    return ending_of(serial) == RELEASED ? 1 + (uint32_t)(mix(serial + 3) % 3) : 0;
}

// ---- the owner ----

static void
lend(struct seat *seat, unsigned index, uint64_t *dice)
{
    struct loan *loan = &seat->loans[index];
    struct loan_board *shown = &seat->board->loans[index];
    uint64_t serial = atomic_fetch_add(&seat->serial, 1) + 1;
    llm_lease_desc desc = {
        .struct_size = sizeof(desc),
        .cache_id = loan->cache.id,
        .first_block = first_block_of(serial),
        .num_blocks = num_blocks_of(serial),
        .duration_ms = ending_of(serial) == EXPIRES ? 1 + (uint32_t)roll(dice, 50) : HOUR_MS,
        .num_releases = num_releases_of(serial),
    };
    loan->serial = serial;
    memory_fill(&loan->cache.memory, seat->index, seat->incarnation, serial);
    llm_status status = llm_lease_open(seat->dd, &desc, &loan->lease);
    if (WRONG_UNLESS(status == LLM_SUCCESS, "llm_lease_open: %s", llm_status_name(status)))
        return;
    count(COUNT_leases, 1);
    atomic_store(&shown->lease, loan->lease);
    atomic_store(&shown->releases, tag_of(seat->incarnation, serial));
    atomic_store(&shown->card, card_of(loan->cache.id, serial, loan->cache.memory.stride_class));
}

void
loan_open(struct seat *seat, unsigned index, uint64_t *dice)
{
    struct loan *loan = &seat->loans[index];
    llm_cache_info info = {.struct_size = sizeof(info)};
    loan->lease = 0;
    if (!cache_open(seat, &loan->cache, CLASSES, 0, true, dice))
        return;
    WRONG_UNLESS(llm_get_cache_info(seat->dd, loan->cache.id, &info) == LLM_SUCCESS, "info");
    atomic_store(&seat->board->loans[index].generation, info.generation);
    lend(seat, index, dice);
}

void
loan_hide(struct seat *seat, unsigned index)
{
    atomic_store(&seat->board->loans[index].card, 0);
}

// The blocks are used for something else at once.
static void
overwrite(struct loan *loan, uint64_t *dice)
{
    memory_fill(&loan->cache.memory, NO_SEAT, 0, roll(dice, 1 << 20));
}

static void
close_lease(struct seat *seat, struct loan *loan)
{
    llm_status status = llm_lease_close(seat->dd, loan->lease);
    WRONG_UNLESS(status == LLM_SUCCESS, "llm_lease_close: %s", llm_status_name(status));
    loan->lease = 0;
}

static void
judge_end(struct seat *seat, unsigned index, llm_status status)
{
    struct loan *loan = &seat->loans[index];
    uint64_t releases = atomic_load(&seat->board->loans[index].releases) & 0xffffff;
    bool is_right = (status == LLM_LEASE_EXPIRED && ending_of(loan->serial) == EXPIRES) ||
                    (status == LLM_SUCCESS && ending_of(loan->serial) == RELEASED &&
                     releases >= num_releases_of(loan->serial));
    count(COUNT_leases_expired, status == LLM_LEASE_EXPIRED);
    count(COUNT_leases_released, status == LLM_SUCCESS);
    WRONG_UNLESS(is_right, "a lease ended with %s after %llu releases of %u",
                 llm_status_name(status), (unsigned long long)releases,
                 num_releases_of(loan->serial));
}

// False: it lives on.
static bool
end_lease(struct seat *seat, unsigned index, uint64_t *dice)
{
    struct loan *loan = &seat->loans[index];
    llm_status status = llm_lease_wait(seat->dd, loan->lease, (int32_t)roll(dice, 3));
    if (status == LLM_LEASE_ACTIVE) {
        if (ending_of(loan->serial) == EXPIRES && roll(dice, 4) == 0) {
            status = llm_lease_renew(seat->dd, loan->lease, 1 + (uint32_t)roll(dice, 50));
            WRONG_UNLESS(status == LLM_SUCCESS || status == LLM_CACHE_STALE, "llm_lease_renew: %s",
                         llm_status_name(status));
        }
        if (ending_of(loan->serial) != CLOSED && roll(dice, 8) != 0)
            return false;
        loan_hide(seat, index);
        close_lease(seat, loan);
        overwrite(loan, dice);
        return true;
    }
    overwrite(loan, dice);
    judge_end(seat, index, status);
    loan_hide(seat, index);
    close_lease(seat, loan);
    return true;
}

// The lease goes with the cache.
static void
change_cache(struct seat *seat, unsigned index, uint64_t *dice)
{
    struct loan *loan = &seat->loans[index];
    loan_hide(seat, index);
    cache_close(seat, &loan->cache, NULL, dice);
    llm_status status = llm_lease_wait(seat->dd, loan->lease, -1);
    WRONG_UNLESS(status == LLM_KV_CACHE_NOT_EXIST || status == LLM_LEASE_EXPIRED ||
                     status == LLM_SUCCESS,
                 "a lease whose cache was freed ended with %s", llm_status_name(status));
    close_lease(seat, loan);
    loan_open(seat, index, dice);
}

void
loan_change(struct seat *seat, uint64_t *dice)
{
    unsigned index = (unsigned)roll(dice, LOANS);
    struct loan *loan = &seat->loans[index];
    if (pthread_mutex_trylock(&loan->lock) != 0)
        return;
    if (loan->lease != 0 && roll(dice, 20) == 0)
        change_cache(seat, index, dice);
    else if (loan->lease != 0 && end_lease(seat, index, dice))
        lend(seat, index, dice);
    pthread_mutex_unlock(&loan->lock);
}

// ---- the peers ----

// Blocks, or a slot, that the lease is for; false: one of them isn't.
static bool
choose_leased(struct job *job, uint64_t serial, uint64_t *dice)
{
    job_choose_blocks(job, dice);
    for (size_t i = 0; i < job->num_blocks; i++)
        job->src_blocks[i] = first_block_of(serial) + roll(dice, num_blocks_of(serial));
    if (num_blocks_of(serial) == BLOCKS || roll(dice, 16) != 0)
        return true;
    job->src_blocks[0] = (first_block_of(serial) + num_blocks_of(serial)) % BLOCKS;
    return false;
}

// The peer that we are linked to is the one that lends.
static bool
is_there(struct thread *th, struct seat *seat, const struct job *job, uint64_t generation)
{
    llm_cache_index index = job_index(job);
    llm_cache_info info = {.struct_size = sizeof(info)};
    index.generation = 0;
    AT(th);
    return llm_query_cache(seat->dd, &index, &info) == LLM_SUCCESS && info.generation == generation;
}

void
pull_under_lease(struct thread *th, struct seat *seat)
{
    struct job job;
    unsigned peer = choose_peer(seat, &th->dice);
    struct loan_board *loan = &board->seats[peer].loans[roll(&th->dice, LOANS)];
    if (!seat->version_2 && seat->role != LLM_ROLE_DECODER)
        return;
    uint64_t incarnation = atomic_load(&board->seats[peer].incarnation);
    uint64_t card = atomic_load(&loan->card);
    uint64_t serial = card_serial(card);
    job = job_of_pull(peer, incarnation, card);
    job.generation = atomic_load(&loan->lease);
    uint64_t generation = atomic_load(&loan->generation);
    if (card == 0 || atomic_load(&loan->card) != card)
        return;
    job.shape = (enum shape)roll(&th->dice, 3);
    bool within = choose_leased(&job, serial, &th->dice);
    perhaps_link(th, seat, peer);
    if (!job_choose_pull(th, seat, 0, &job))
        return;
    bool asked = roll(&th->dice, 2) == 0 && is_there(th, seat, &job, generation);
    job.param.release_lease = roll(&th->dice, 2) == 0;
    if (job.param.release_lease)
        tagged_add(&loan->releases, tag_of(incarnation, serial), RELEASE, 0);
    AT(th);
    llm_status status = job_call(seat, &job, NULL);
    job_count(seat, &job, status);
    job_judge_pull(seat, &job, status);
    count(COUNT_under_lease, status == LLM_SUCCESS);
    WRONG_UNLESS(within || status != LLM_SUCCESS,
                 "a pull of blocks that the lease isn't for succeeded");
    WRONG_UNLESS(status != LLM_CACHE_STALE || !within || !asked || ending_of(serial) != CLOSED ||
                     atomic_load(&loan->card) != card || !job_same_peer(&job),
                 "a lease of cluster %llu that nobody has ended is stale",
                 (unsigned long long)seat_cluster(peer));
}

// Caches with keys: one pull gets a request key, a prefix key never goes, and the keys keep the memory
// of a cache that was deallocated.
#include "soak/job.h"

// What is counted of a key, below its tag.
enum {
    ALL_LAYERS = (1 << LAYERS) - 1,
    WHOLE_BY_KEY = 1 << 4,
    ATTEMPT = 1 << 8,
    ATTEMPTS = 0xffff00
};

// What a slot's key is follows from the cache's serial number: one in four is named as a whole.
static llm_cache_key
key_of(uint64_t incarnation, uint64_t serial, unsigned slot)
{
    static const uint32_t kinds[] = {LLM_KEY_NONE, LLM_KEY_PREFIX, LLM_KEY_REQUEST,
                                     LLM_KEY_REQUEST};
    uint64_t tag = tag_of(incarnation, serial);
    llm_cache_key key = {.struct_size = sizeof(key), .model_id = tag};
    if (serial % 4 == 0) {
        key.kind = LLM_KEY_BLOCKS;
        return key;
    }
    key.kind = kinds[mix(tag + slot) % 4];
    // Half of them differ by the model alone.
    key.id = tag | slot / 2;
    key.model_id += slot % 2;
    return key;
}

// ---- the owner ----

static void
bind_keys(struct seat *seat, struct shelf *shelf, uint64_t serial)
{
    llm_cache_key keys[BLOCKS];
    for (unsigned i = 0; i < BLOCKS; i++)
        keys[i] = key_of(seat->incarnation, serial, i);
    llm_status status = llm_bind_cache_keys(seat->dd, shelf->cache.id, keys,
                                            keys[0].kind == LLM_KEY_BLOCKS ? 1 : BLOCKS);
    WRONG_UNLESS(status == LLM_SUCCESS, "llm_bind_cache_keys: %s", llm_status_name(status));
    status = llm_bind_cache_keys(seat->dd, shelf->cache.id, keys, 1);
    WRONG_UNLESS(status == LLM_CACHE_KEY_ALREADY_EXIST || keys[0].kind == LLM_KEY_NONE,
                 "a key is bound twice: %s", llm_status_name(status));
}

void
shelf_open(struct seat *seat, unsigned index, uint64_t *dice)
{
    struct shelf *shelf = &seat->shelves[index];
    struct shelf_board *shown = &seat->board->shelves[index];
    uint64_t serial = atomic_fetch_add(&seat->serial, 1) + 1;
    shelf->serial = serial;
    shelf->is_kept = false;
    if (!cache_open(seat, &shelf->cache, CLASSES, serial, true, dice))
        return;
    bind_keys(seat, shelf, serial);
    for (unsigned i = 0; i < BLOCKS; i++)
        atomic_store(&shown->keys[i], tag_of(seat->incarnation, serial));
    atomic_store(&shown->card, card_of(shelf->cache.id, serial, shelf->cache.memory.stride_class));
}

void
shelf_hide(struct seat *seat, unsigned index)
{
    atomic_store(&seat->board->shelves[index].card, 0);
    atomic_store(&seat->board->shelves[index].kept_card, 0);
}

static void
remove_keys(struct seat *seat, struct shelf *shelf)
{
    for (unsigned i = 0; i < BLOCKS; i++) {
        llm_cache_key key = key_of(seat->incarnation, shelf->serial, i);
        llm_status status = llm_remove_cache_key(seat->dd, &key);
        WRONG_UNLESS(status == LLM_SUCCESS || key.kind == LLM_KEY_NONE, "llm_remove_cache_key: %s",
                     llm_status_name(status));
    }
}

// By its keys alone it's found from now on.
static void
keep_by_keys(struct seat *seat, unsigned index, uint64_t *dice)
{
    struct shelf *shelf = &seat->shelves[index];
    struct shelf_board *shown = &seat->board->shelves[index];
    llm_cache_info info = {.struct_size = sizeof(info)};
    int64_t id = shelf->cache.id;
    cache_close(seat, &shelf->cache, NULL, dice);
    atomic_store(&shown->kept_card, atomic_load(&shown->card));
    shelf->is_kept = true;
    count(COUNT_caches_kept, 1);
    WRONG_UNLESS(llm_get_cache_info(seat->dd, id, &info) == LLM_KV_CACHE_NOT_EXIST,
                 "a deallocated cache is found by its id");
}

void
shelf_change(struct seat *seat, uint64_t *dice)
{
    unsigned index = (unsigned)roll(dice, SHELVES);
    struct shelf *shelf = &seat->shelves[index];
    if (pthread_mutex_trylock(&shelf->lock) != 0)
        return;
    bool may_keep = shelf->cache.id != 0 && !shelf->cache.registered && shelf->serial % 4 != 0;
    if (may_keep && roll(dice, 2) == 0) {
        keep_by_keys(seat, index, dice);
    } else {
        shelf_hide(seat, index);
        if (shelf->is_kept || roll(dice, 2) == 0)
            remove_keys(seat, shelf);
        cache_close(seat, &shelf->cache, NULL, dice);
        // A blocks key has gone with the cache, the others may keep it.
        remove_keys(seat, shelf);
        shelf_open(seat, index, dice);
    }
    pthread_mutex_unlock(&shelf->lock);
}

// ---- the peers ----

// A pull by key, and what is known of the key from before it.
struct claim {
    struct shelf_board *shelf;
    _Atomic uint64_t *word;
    uint64_t tag;
    uint64_t before; // the word
    uint64_t layers; // that it takes, as bits
    bool was_kept;
    bool was_there; // the peer answered that it has the key
};

static void
query_key(struct thread *th, struct seat *seat, struct job *job, struct claim *claim)
{
    llm_cache_index index = job_index(job);
    llm_cache_info info = {.struct_size = sizeof(info)};
    AT(th);
    llm_status status = llm_query_cache(seat->dd, &index, &info);
    claim->was_there = status == LLM_SUCCESS;
    if (!claim->was_there)
        return;
    WRONG_UNLESS(info.cache_id == card_id(job->remote_card) &&
                     (job->shape == SHAPE_BLOCKS || info.batch_index == job->src_blocks[0]) &&
                     info.stride == strides[card_class(job->remote_card)],
                 "a key names slot %u of cache %lld, expected %llu of %lld", info.batch_index,
                 (long long)info.cache_id, (unsigned long long)job->src_blocks[0],
                 (long long)card_id(job->remote_card));
}

static bool
prepare(struct thread *th, struct seat *seat, struct job *job, struct claim *claim)
{
    unsigned peer = choose_peer(seat, &th->dice);
    struct shelf_board *shelf = &board->seats[peer].shelves[roll(&th->dice, SHELVES)];
    unsigned slot = (unsigned)roll(&th->dice, BLOCKS);
    if (!seat->version_2 && seat->role != LLM_ROLE_DECODER)
        return false;
    uint64_t incarnation = atomic_load(&board->seats[peer].incarnation);
    uint64_t card = atomic_load(&shelf->card);
    *job = job_of_pull(peer, incarnation, card);
    job->key = key_of(incarnation, card_serial(card), slot);
    if (card == 0 || job->key.kind == LLM_KEY_NONE)
        return false;
    job->shape = roll(&th->dice, 2) == 0 ? SHAPE_SLOT : SHAPE_SLOT_TO_BLOCKS;
    if (job->key.kind == LLM_KEY_BLOCKS)
        job->shape = SHAPE_BLOCKS;
    job_choose_blocks(job, &th->dice);
    if (job->shape != SHAPE_BLOCKS)
        job->src_blocks[0] = slot;
    job->by_key = true;
    perhaps_link(th, seat, peer);
    *claim = (struct claim){
        .shelf = shelf, .word = &shelf->keys[slot], .tag = tag_of(incarnation, card_serial(card))};
    return job_choose_pull(th, seat, 0, job);
}

// A key is gone with its last layer: nobody gets it afterwards, and never do two get it whole.
static void
judge_taken(struct job *job, const struct claim *claim)
{
    if (job->key.kind != LLM_KEY_REQUEST)
        return;
    WRONG_UNLESS(!job->by_key || (claim->before & ALL_LAYERS) != ALL_LAYERS,
                 "a pull from cluster %llu got a request key that was gone before it began",
                 (unsigned long long)seat_cluster(job->peer));
    if (job->param.keep_key)
        return;
    bool is_whole = job->by_key && claim->layers == ALL_LAYERS;
    uint64_t old =
        tagged_add(claim->word, claim->tag, 0, claim->layers | (is_whole ? WHOLE_BY_KEY : 0));
    WRONG_UNLESS(!is_whole || (old & WHOLE_BY_KEY) == 0,
                 "two pulls from cluster %llu got the same request key",
                 (unsigned long long)seat_cluster(job->peer));
    count(COUNT_keys_taken, job->by_key);
}

// Nobody but us has tried, the owner has left it where it is, and it was there: then it is.
static void
judge_missing(const struct job *job, const struct claim *claim)
{
    uint64_t after = atomic_load(claim->word);
    bool ours_alone = job->key.kind != LLM_KEY_REQUEST || (after & ATTEMPTS) == ATTEMPT;
    count(COUNT_keys_gone, 1);
    WRONG_UNLESS(!claim->was_there || !ours_alone || after >> 24 != claim->tag >> 24 ||
                     atomic_load(&claim->shelf->card) != job->remote_card || !job_same_peer(job),
                 "a key of cluster %llu, kind %u, isn't found, which nobody has taken",
                 (unsigned long long)seat_cluster(job->peer), job->key.kind);
}

void
pull_by_key(struct thread *th, struct seat *seat)
{
    struct job job;
    struct claim claim;
    if (!prepare(th, seat, &job, &claim))
        return;
    if (roll(&th->dice, 2) == 0)
        query_key(th, seat, &job, &claim);
    claim.layers = job.src_layer < 0 ? ALL_LAYERS : 1u << job.src_layer;
    claim.before = tagged_add(claim.word, claim.tag, ATTEMPT, 0);
    claim.was_kept = atomic_load(&claim.shelf->kept_card) == job.remote_card;
    if (claim.before == 0 || (claim.before & ATTEMPTS) == ATTEMPTS)
        return;
    job.by_key = roll(&th->dice, 6) != 0;
    job.param.keep_key = roll(&th->dice, 4) == 0;
    AT(th);
    llm_status status = job_call(seat, &job, NULL);
    job_count(seat, &job, status);
    job_judge_pull(seat, &job, status);
    WRONG_UNLESS(job.by_key || !claim.was_kept || status != LLM_SUCCESS,
                 "a pull by id from cluster %llu found a deallocated cache",
                 (unsigned long long)seat_cluster(job.peer));
    if (status == LLM_SUCCESS)
        judge_taken(&job, &claim);
    else if (status == LLM_KV_CACHE_NOT_EXIST && job.by_key)
        judge_missing(&job, &claim);
}

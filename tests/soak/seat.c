#include "soak/seat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "multi/process.h"

// What a peer's silence is noticed after, beside the dead time.
enum { LAST_WHY = 256, NOTICE_MS = SCALED(1000, 7000) };

uint64_t
seat_cluster(unsigned index)
{
    return FIRST_CLUSTER + index;
}

static void
explain_last(char why[LAST_WHY])
{
    llm_last_error(why, LAST_WHY);
}

// A call on one's own instance that nothing in the world may make fail.
static bool
must(llm_status status, const char *what)
{
    char why[LAST_WHY];
    explain_last(why);
    return !WRONG_UNLESS(status == LLM_SUCCESS, "%s: %s: %s", what, llm_status_name(status), why);
}

// ---- graves ----

void
grave_dig(struct grave *grave, struct memory *memory)
{
    grave_check(grave);
    grave->memory = *memory;
    grave->checksum = memory_checksum(memory);
    *memory = (struct memory){0};
}

void
grave_check(struct grave *grave)
{
    if (grave->memory.arena == NULL)
        return;
    count(COUNT_late_checks, 1);
    WRONG_UNLESS(memory_checksum(&grave->memory) == grave->checksum &&
                     memory_is_intact_around(&grave->memory),
                 "memory changed after its cache had ended");
    memory_unmap(&grave->memory);
}

// ---- caches ----

static unsigned
choose_class(uint64_t *dice)
{
    uint64_t number = roll(dice, 8);
    return number < 4 ? 0 : number < 7 ? 1 : 2;
}

static bool
allocate(struct seat *seat, struct cache *cache, const llm_cache_desc *desc)
{
    llm_cache answer = {
        .struct_size = sizeof(answer),
        .tensor_addrs = cache->memory.tensors,
        .num_tensor_addrs = TENSORS,
    };
    if (!must(llm_allocate_cache(seat->dd, desc, &answer), "llm_allocate_cache"))
        return false;
    cache->id = answer.cache_id;
    return true;
}

static bool
register_memory(struct seat *seat, struct cache *cache, const llm_cache_desc *desc)
{
    uint64_t addresses[TENSORS];
    for (unsigned t = 0; t < TENSORS; t++)
        addresses[t] = cache->memory.tensors[t];
    return must(llm_register_kv_cache(seat->dd, desc, addresses, TENSORS, &cache->id),
                "llm_register_kv_cache");
}

bool
cache_open(struct seat *seat, struct cache *cache, unsigned stride_class, uint64_t serial,
           bool named, uint64_t *dice)
{
    stride_class = stride_class == CLASSES ? choose_class(dice) : stride_class;
    int64_t shape[] = {BLOCKS, (int64_t)strides[stride_class]};
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = TENSORS,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = 2,
    };
    unsigned owner = named ? seat->index : NO_SEAT;
    uint64_t incarnation = named ? seat->incarnation : 0;
    *cache = (struct cache){.registered = seat->version_2 && roll(dice, 2) == 0};
    count(COUNT_caches, 1);
    if (!cache->registered) {
        cache->memory.stride_class = stride_class;
        if (!allocate(seat, cache, &desc))
            return false;
        memory_fill(&cache->memory, owner, incarnation, serial);
        return true;
    }
    if (WRONG_UNLESS(memory_map(&cache->memory, stride_class), "no memory"))
        return false;
    memory_fill(&cache->memory, owner, incarnation, serial);
    return register_memory(seat, cache, &desc);
}

bool
cache_close(struct seat *seat, struct cache *cache, struct grave *grave, uint64_t *dice)
{
    if (cache->id == 0)
        return true;
    bool good = cache->registered
                    ? must(llm_unregister_kv_cache(seat->dd, cache->id), "llm_unregister_kv_cache")
                    : must(llm_deallocate_cache(seat->dd, cache->id), "llm_deallocate_cache");
    if (cache->registered) {
        // It's ours alone again: nobody may bring home what is written now.
        memory_fill(&cache->memory, NO_SEAT, 0, roll(dice, 1 << 20));
        if (grave != NULL)
            grave_dig(grave, &cache->memory);
        else
            memory_unmap(&cache->memory);
    }
    memset(cache, 0, sizeof(*cache));
    return good;
}

// ---- sources ----

static void
open_source(struct seat *seat, unsigned index, uint64_t *dice)
{
    uint64_t serial = atomic_fetch_add(&seat->serial, 1) + 1;
    struct cache *cache = &seat->sources[index].cache;
    if (cache_open(seat, cache, CLASSES, serial, true, dice))
        atomic_store(&seat->board->sources[index],
                     card_of(cache->id, serial, cache->memory.stride_class));
}

void
seat_change_source(struct seat *seat, uint64_t *dice)
{
    unsigned index = (unsigned)roll(dice, SOURCES);
    struct source *source = &seat->sources[index];
    if (pthread_mutex_trylock(&source->lock) != 0)
        return;
    // Sometimes the others still read of it on the board.
    bool hide_first = roll(dice, 2) == 0;
    if (hide_first)
        atomic_store(&seat->board->sources[index], 0);
    cache_close(seat, &source->cache, NULL, dice);
    atomic_store(&seat->board->sources[index], 0);
    open_source(seat, index, dice);
    pthread_mutex_unlock(&source->lock);
}

// ---- goals ----

static void
fill_goal(struct goal *goal, uint64_t *dice)
{
    goal->background = roll(dice, 1 << 20);
    goal->has_checksum = false;
    memory_fill(&goal->cache.memory, NO_SEAT, 0, goal->background);
}

static void
open_goal(struct seat *seat, unsigned index, uint64_t *dice)
{
    struct goal *goal = &seat->goals[index];
    struct goal_board *shown = &seat->board->goals[index];
    goal->background = roll(dice, 1 << 20);
    goal->has_checksum = false;
    if (!cache_open(seat, &goal->cache, CLASSES, goal->background, false, dice))
        return;
    for (unsigned t = 0; t < TENSORS; t++)
        atomic_store(&shown->addresses[t],
                     goal->cache.memory.is_unique ? goal->cache.memory.tensors[t] : 0);
    atomic_store(&shown->card,
                 card_of(goal->cache.id, goal->background, goal->cache.memory.stride_class));
    atomic_store(&shown->state, goal_state(GOAL_FREE, 0, 0, 0, 0, goal->background));
}

static void
hide_goal(struct seat *seat, unsigned index)
{
    atomic_store(&seat->board->goals[index].state, 0);
    atomic_store(&seat->board->goals[index].card, 0);
}

void
seat_change_goal(struct seat *seat, uint64_t *dice)
{
    unsigned index = (unsigned)roll(dice, GOALS);
    struct goal *goal = &seat->goals[index];
    if (pthread_mutex_trylock(&goal->lock) != 0)
        return;
    hide_goal(seat, index);
    cache_close(seat, &goal->cache, &goal->grave, dice);
    open_goal(seat, index, dice);
    pthread_mutex_unlock(&goal->lock);
}

static const struct push_board *
find_push(uint64_t state)
{
    return &board->seats[state >> 56 & 0xf].pushes[state >> 52 & 0xf][state >> 48 & 0xf];
}

static void
check_goal(struct seat *seat, unsigned index)
{
    struct goal *goal = &seat->goals[index];
    struct goal_board *shown = &seat->board->goals[index];
    uint64_t state = atomic_load(&shown->state);
    enum goal_phase phase = (enum goal_phase)(state >> 60);
    const struct push_board *push = find_push(state);
    uint64_t dice = state;
    char why[256];
    if (goal->cache.id == 0 || (phase != GOAL_ARRIVED && phase != GOAL_FAILED))
        return;
    uint64_t checksum = memory_checksum(&goal->cache.memory);
    bool is_right = memory_holds(&goal->cache.memory, &push->content, goal->background,
                                 phase == GOAL_ARRIVED, why);
    WRONG_UNLESS(is_right, "a push from cluster %llu, which ended with %s; %s",
                 (unsigned long long)seat_cluster((unsigned)(state >> 56 & 0xf)), push->how, why);
    if (goal->has_checksum && push->is_uncertain &&
        soak_now_ms() < goal->seen_ms + seat->dead_ms + NOTICE_MS) {
        // We may not have noticed yet that the link is gone.
        goal->checksum = checksum;
        return;
    }
    if (goal->has_checksum) {
        count(COUNT_late_checks, 1);
        WRONG_UNLESS(checksum == goal->checksum,
                     "bytes of a push from cluster %llu landed after its end, %s",
                     (unsigned long long)seat_cluster((unsigned)(state >> 56 & 0xf)), push->how);
    } else {
        // The first time; what lands from now on is seen at the next.
        goal->checksum = checksum;
        goal->has_checksum = true;
        goal->seen_ms = soak_now_ms();
        return;
    }
    fill_goal(goal, &dice);
    atomic_store(&shown->state, goal_state(GOAL_FREE, 0, 0, 0, 0, goal->background));
}

// Its pusher is dead: only a new cache is surely nobody's.
static bool
is_orphaned(struct seat *seat, unsigned index)
{
    uint64_t state = atomic_load(&seat->board->goals[index].state);
    if (state >> 60 != GOAL_TAKEN)
        return false;
    uint64_t incarnation = atomic_load(&board->seats[state >> 56 & 0xf].incarnation);
    return (incarnation & 0xffff) != (state >> 32 & 0xffff);
}

void
seat_check_goals(struct seat *seat)
{
    uint64_t dice = atomic_load(&seat->serial);
    for (unsigned i = 0; i < GOALS; i++) {
        struct goal *goal = &seat->goals[i];
        if (pthread_mutex_trylock(&goal->lock) != 0)
            continue;
        if (is_orphaned(seat, i)) {
            hide_goal(seat, i);
            cache_close(seat, &goal->cache, &goal->grave, &dice);
            open_goal(seat, i, &dice);
        } else {
            check_goal(seat, i);
        }
        pthread_mutex_unlock(&goal->lock);
    }
}

// ---- life ----

static const char *const transports[] = {"auto",      "auto", "auto",    "shm,tcp",
                                         "local,shm", "tcp",  "tcp,shm", "shm"};

struct settings {
    llm_option options[16];
    size_t num_options;
    char sync_ms[16];
    char liveness_ms[16];
    char dead_ms[16];
    char listen[32];
};

static void
add_option(struct settings *settings, const char *key, const char *value)
{
    settings->options[settings->num_options++] = (llm_option){key, value};
}

static void
choose_settings(struct seat *seat, struct settings *settings, unsigned port, uint64_t *dice)
{
    static const unsigned sync[] = {300, 1000, 1000, 3000};
    static const unsigned liveness[] = {300, 500, 500, 1000};
    settings->num_options = 0;
    snprintf(settings->sync_ms, sizeof(settings->sync_ms), "%u", sync[roll(dice, 4)]);
    snprintf(settings->liveness_ms, sizeof(settings->liveness_ms), "%u", liveness[roll(dice, 4)]);
    seat->dead_ms = roll(dice, 2) == 0 ? DEAD_MS : PATIENT_DEAD_MS;
    snprintf(settings->dead_ms, sizeof(settings->dead_ms), "%u", seat->dead_ms);
    snprintf(settings->listen, sizeof(settings->listen), "127.0.0.1:%u", port);
    add_option(settings, LLM_OPTION_DEVICE_ID, "0");
    add_option(settings, LLM_OPTION_SYNC_CACHE_WAIT_TIME, settings->sync_ms);
    add_option(settings, LLM_OPTION_LIVENESS_TIME, settings->liveness_ms);
    add_option(settings, LLM_OPTION_DEAD_TIME, settings->dead_ms);
    add_option(settings, LLM_OPTION_TRANSPORTS, transports[roll(dice, 8)]);
    add_option(settings, LLM_OPTION_TCP_CONNECTIONS, roll(dice, 2) == 0 ? "1" : "3");
    add_option(settings, LLM_OPTION_COPY_THREADS, roll(dice, 2) == 0 ? "1" : "2");
    add_option(settings, LLM_OPTION_ENABLE_SET_ROLE, "1");
    add_option(settings, LLM_OPTION_LOG_LEVEL, "off");
    if (roll(dice, 3) == 0) {
        add_option(settings, LLM_OPTION_CHECKSUM, "crc32c");
        count(COUNT_checked_lives, 1);
    }
    if (seat->version_2)
        add_option(settings, LLM_OPTION_LOCAL_COMM_RES, "");
    if (seat->version_2 || seat->role == LLM_ROLE_PROMPT)
        add_option(settings, LLM_OPTION_LISTEN_IP_INFO, settings->listen);
}

// Preferably at the port of the life before.
static bool
initialize(struct seat *seat, uint64_t *dice)
{
    struct settings settings;
    unsigned port = atomic_load(&seat->board->port);
    choose_settings(seat, &settings, port, dice);
    llm_status status = llm_initialize(seat->dd, settings.options, settings.num_options);
    if (status == LLM_FAILED && port != 0) {
        snprintf(settings.listen, sizeof(settings.listen), "127.0.0.1:0");
        status = llm_initialize(seat->dd, settings.options, settings.num_options);
    }
    return must(status, "llm_initialize");
}

static void
show_port(struct seat *seat)
{
    uint16_t port = 0;
    if (llm_get_listen_port(seat->dd, 0, &port) == LLM_SUCCESS)
        atomic_store(&seat->board->port, port);
}

bool
seat_open(struct seat *seat, uint64_t *dice)
{
    seat->version_2 = roll(dice, 4) != 0;
    seat->role = roll(dice, 2) == 0 ? LLM_ROLE_PROMPT : LLM_ROLE_DECODER;
    if (!must(llm_create(seat_cluster(seat->index), (llm_role)seat->role, &seat->dd), "llm_create"))
        return false;
    seat->incarnation = atomic_fetch_add(&seat->board->incarnation, 1) + 1;
    seat->life++;
    atomic_store(&seat->serial, 0);
    count(COUNT_lives, 1);
    if (!initialize(seat, dice))
        return false;
    show_port(seat);
    for (unsigned i = 0; i < SOURCES; i++)
        open_source(seat, i, dice);
    for (unsigned i = 0; i < GOALS; i++)
        open_goal(seat, i, dice);
    for (unsigned i = 0; i < SHELVES; i++)
        shelf_open(seat, i, dice);
    for (unsigned i = 0; i < LOANS; i++)
        loan_open(seat, i, dice);
    return true;
}

static void
hide_all(struct seat *seat)
{
    for (unsigned i = 0; i < SOURCES; i++)
        atomic_store(&seat->board->sources[i], 0);
    for (unsigned i = 0; i < GOALS; i++)
        hide_goal(seat, i);
}

// What is shown of these two promises that it is there.
static void
hide_promises(struct seat *seat)
{
    for (unsigned i = 0; i < SHELVES; i++)
        shelf_hide(seat, i);
    for (unsigned i = 0; i < LOANS; i++)
        loan_hide(seat, i);
}

// What finalize has left to us.
static void
forget(struct cache *cache)
{
    memory_unmap(&cache->memory);
    cache->id = 0;
}

void
seat_close(struct seat *seat, uint64_t *dice)
{
    hide_promises(seat);
    if (roll(dice, 2) == 0)
        hide_all(seat);
    llm_finalize(seat->dd);
    hide_all(seat);
    for (unsigned i = 0; i < SOURCES; i++)
        forget(&seat->sources[i].cache);
    for (unsigned i = 0; i < SHELVES; i++)
        forget(&seat->shelves[i].cache);
    for (unsigned i = 0; i < LOANS; i++)
        forget(&seat->loans[i].cache);
    memset(seat->link_states, 0, sizeof(seat->link_states));
    atomic_store(&seat->heard_again, 0);
    for (unsigned i = 0; i < GOALS; i++) {
        struct goal *goal = &seat->goals[i];
        if (goal->cache.registered && goal->cache.id != 0)
            grave_dig(&goal->grave, &goal->cache.memory);
        goal->cache = (struct cache){0};
    }
    llm_destroy(seat->dd);
    seat->dd = NULL;
}

bool
seat_init(struct seat *seat, unsigned index)
{
    pthread_rwlockattr_t attributes;
    *seat = (struct seat){.index = index, .board = &board->seats[index]};
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&seat->lock, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    for (unsigned i = 0; i < SOURCES; i++)
        pthread_mutex_init(&seat->sources[i].lock, NULL);
    for (unsigned i = 0; i < GOALS; i++)
        pthread_mutex_init(&seat->goals[i].lock, NULL);
    for (unsigned i = 0; i < SHELVES; i++)
        pthread_mutex_init(&seat->shelves[i].lock, NULL);
    for (unsigned i = 0; i < LOANS; i++)
        pthread_mutex_init(&seat->loans[i].lock, NULL);
    pthread_mutex_init(&seat->events_lock, NULL);
    // What a process that was killed has left behind.
    hide_promises(seat);
    hide_all(seat);
    return true;
}

void
seat_destroy(struct seat *seat)
{
    for (unsigned i = 0; i < SOURCES; i++)
        pthread_mutex_destroy(&seat->sources[i].lock);
    for (unsigned i = 0; i < GOALS; i++) {
        grave_check(&seat->goals[i].grave);
        pthread_mutex_destroy(&seat->goals[i].lock);
    }
    for (unsigned i = 0; i < SHELVES; i++)
        pthread_mutex_destroy(&seat->shelves[i].lock);
    for (unsigned i = 0; i < LOANS; i++)
        pthread_mutex_destroy(&seat->loans[i].lock);
    pthread_mutex_destroy(&seat->events_lock);
    pthread_rwlock_destroy(&seat->lock);
}

static void
unlink_all(struct seat *seat)
{
    uint64_t ids[SEATS_MAX];
    size_t num_ids = 0;
    (void)llm_list_links(seat->dd, ids, SEATS_MAX, &num_ids);
    for (size_t i = 0; i < num_ids && i < SEATS_MAX; i++)
        (void)seat_unlink(seat, (unsigned)(ids[i] - FIRST_CLUSTER), 1000, true);
}

void
seat_change_role(struct seat *seat, uint64_t *dice)
{
    char listen[32];
    char why[LAST_WHY];
    snprintf(listen, sizeof(listen), "127.0.0.1:0");
    llm_option option = {LLM_OPTION_LISTEN_IP_INFO, listen};
    unsigned role = seat->role == LLM_ROLE_PROMPT ? LLM_ROLE_DECODER : LLM_ROLE_PROMPT;
    bool listens = seat->version_2 || role == LLM_ROLE_PROMPT;
    if (roll(dice, 4) != 0)
        unlink_all(seat);
    llm_status status = llm_set_role(seat->dd, (llm_role)role, &option, listens ? 1 : 0);
    explain_last(why);
    WRONG_UNLESS(status == LLM_SUCCESS || status == LLM_EXIST_LINK, "llm_set_role: %s: %s",
                 llm_status_name(status), why);
    if (status != LLM_SUCCESS)
        return;
    seat->role = role;
    count(COUNT_roles, 1);
    show_port(seat);
}

// ---- links ----

static llm_cluster_info
describe(unsigned index, bool forwarded, llm_ip_info ips[2])
{
    ips[0] = (llm_ip_info){.ip = "127.0.0.1"};
    unsigned port = forwarded ? atomic_load(&board->forward_ports[index]) : 0;
    if (port == 0)
        port = atomic_load(&board->seats[index].port);
    // One that was never there is as one that has gone: nobody listens.
    if (port == 0)
        port = 1;
    ips[1] = (llm_ip_info){.ip = "127.0.0.1", .port = (uint16_t)port};
    return (llm_cluster_info){
        .struct_size = sizeof(llm_cluster_info),
        .remote_cluster_id = seat_cluster(index),
        .local_ip_infos = &ips[0],
        .num_local_ip_infos = 1,
        .remote_ip_infos = &ips[1],
        .num_remote_ip_infos = 1,
    };
}

llm_status
seat_link(struct seat *seat, unsigned to, bool forwarded, int timeout_ms)
{
    llm_ip_info ips[2];
    llm_cluster_info peer = describe(to, forwarded, ips);
    return llm_link_clusters(seat->dd, &peer, 1, NULL, NULL, timeout_ms);
}

llm_status
seat_unlink(struct seat *seat, unsigned from, int timeout_ms, bool force)
{
    llm_ip_info ips[2];
    llm_cluster_info peer = describe(from, false, ips);
    return llm_unlink_clusters(seat->dd, &peer, 1, NULL, NULL, timeout_ms, force);
}

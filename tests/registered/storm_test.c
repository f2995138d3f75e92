// Registrations, their ends, transfers of every kind from several threads, while peers come and go.
// What ends well must have brought the right bytes; whatever else may only fail.
#include <pthread.h>
#include <stdatomic.h>

#include "registered/kit.h"

enum { A = 1, B = 2, VISITORS = 1000 };
enum { WORKERS = 6, STEPS = SCALED(5000, 400) };
enum { TRANSFERS_PER_FLAP = 60, TRANSFERS_PER_VISIT = 100 };
enum { TENSORS = 2, SLOTS = 8, STRIDE = 3001, MINE_MAX = 4, BOARD_MAX = 32, STARTED_MAX = 6 };

// What has been registered somewhere lately; some of it is gone by now.
struct entry {
    uint64_t owner;
    int64_t id;
    uint64_t seed;
};

static struct {
    struct end a;
    struct end b;
    pthread_mutex_t lock;
    struct entry board[BOARD_MAX]; // guarded by lock
    size_t num_entries;            // guarded by lock; counts on
    _Atomic bool over;
    _Atomic int failed_line;
    _Atomic unsigned failed_status;
    _Atomic unsigned num_right;
    _Atomic unsigned num_failed;
    _Atomic unsigned num_flaps;
    _Atomic unsigned num_visits;
} storm;

// In a thread nothing may be asserted: the first failure is kept for the test.
#define EXPECT(condition, status)                                                                  \
    do {                                                                                           \
        if (!(condition))                                                                          \
            note_failure(__LINE__, (status));                                                      \
    } while (0)

static void
note_failure(int line, llm_status status)
{
    int none = 0;
    if (atomic_compare_exchange_strong(&storm.failed_line, &none, line))
        atomic_store(&storm.failed_status, status);
}

static uint64_t
roll(uint64_t *dice)
{
    uint64_t z = *dice += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static void
post(uint64_t owner, int64_t id, uint64_t seed)
{
    pthread_mutex_lock(&storm.lock);
    storm.board[storm.num_entries++ % BOARD_MAX] = (struct entry){owner, id, seed};
    pthread_mutex_unlock(&storm.lock);
}

// False: the board is empty.
static bool
look_up(uint64_t *dice, struct entry *ret_entry)
{
    pthread_mutex_lock(&storm.lock);
    size_t num = storm.num_entries < BOARD_MAX ? storm.num_entries : BOARD_MAX;
    if (num > 0)
        *ret_entry = storm.board[roll(dice) % num];
    pthread_mutex_unlock(&storm.lock);
    return num > 0;
}

// Nobody's fault in such a weather.
static bool
may_happen(llm_status status)
{
    switch (status) {
    case LLM_SUCCESS:
    case LLM_FAILED:
    case LLM_KV_CACHE_NOT_EXIST:
    case LLM_NOT_YET_LINK:
    case LLM_LINK_BUSY:
        return true;
    default:
        return false;
    }
}

// ---- workers ----

struct worker {
    pthread_t thread;
    uint64_t dice;
    struct end *end;
    struct end *peer;
    struct kv mine[MINE_MAX]; // come and go
    struct kv target;         // of pulls
    struct kv source;         // of pushes; at the peer's end lies their goal
    struct kv goal;
    unsigned number;
};

// Registration without assertions; the memory is filled before anybody sees it.
static bool
try_register(struct kv *kv, struct end *end, uint64_t seed)
{
    int64_t shape[] = {SLOTS, STRIDE};
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_HOST,
        .num_tensors = TENSORS,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = 2,
    };
    kv_map(kv, LAYOUT_ODD, TENSORS, SLOTS, STRIDE);
    kv_fill(kv, seed);
    llm_status status = llm_register_kv_cache(end->dd, &desc, kv->addresses, TENSORS, &kv->id);
    EXPECT(status == LLM_SUCCESS, status);
    return status == LLM_SUCCESS;
}

static void
change_mine(struct worker *w)
{
    struct kv *kv = &w->mine[roll(&w->dice) % MINE_MAX];
    if (kv->id != 0) {
        llm_status status = llm_unregister_kv_cache(w->end->dd, kv->id);
        EXPECT(status == LLM_SUCCESS, status);
        kv_free(kv);
        return;
    }
    uint64_t seed = roll(&w->dice) | 1;
    if (try_register(kv, w->end, seed))
        post(w->end->id, kv->id, seed);
}

static void
count(llm_status status)
{
    EXPECT(may_happen(status), status);
    if (status == LLM_SUCCESS)
        atomic_fetch_add(&storm.num_right, 1);
    else
        atomic_fetch_add(&storm.num_failed, 1);
}

static void
pull_something(struct worker *w)
{
    struct entry entry;
    uint64_t id = w->number;
    if (!look_up(&w->dice, &entry) || entry.owner == w->end->id)
        return;
    struct job job = {
        .peer = entry.owner,
        .remote = entry.id,
        .count = SLOTS,
        .shift = roll(&w->dice) % SLOTS,
        .note = &id,
        .note_bytes = roll(&w->dice) % 2 * sizeof(id),
    };
    kv_fill(&w->target, 0);
    llm_status status;
    if (roll(&w->dice) % 2 == 0) {
        status = job_run(&job, w->end, &w->target);
    } else {
        uint64_t transfer;
        status = job_start(&job, w->end, &w->target, &transfer);
        if (status == LLM_SUCCESS) {
            status = llm_transfer_wait(w->end->dd, transfer, -1);
            EXPECT(llm_transfer_release(w->end->dd, transfer) == LLM_SUCCESS, status);
        }
    }
    count(status);
    if (status == LLM_SUCCESS)
        EXPECT(kv_holds(&w->target, entry.seed, SLOTS, job.shift), status);
    EXPECT(kv_is_intact_around(&w->target), status);
}

static void
push_something(struct worker *w)
{
    uint64_t id = w->number;
    uint64_t seed = roll(&w->dice) | 1;
    struct job job = {
        .push = true,
        .peer = w->peer->id,
        .remote = w->goal.id,
        .count = SLOTS,
        .shift = roll(&w->dice) % SLOTS,
        .note = &id,
        .note_bytes = roll(&w->dice) % 2 * sizeof(id),
    };
    kv_fill(&w->source, seed);
    kv_fill(&w->goal, 0);
    llm_status status = job_run(&job, w->end, &w->source);
    count(status);
    if (status == LLM_SUCCESS)
        EXPECT(kv_holds(&w->goal, seed, SLOTS, job.shift), status);
    EXPECT(kv_is_intact_around(&w->goal), status);
}

// Several at once, of which some are cancelled and some forgotten.
static void
start_and_stop(struct worker *w)
{
    uint64_t transfers[STARTED_MAX];
    struct entry entry;
    for (size_t i = 0; i < STARTED_MAX; i++) {
        transfers[i] = 0;
        if (!look_up(&w->dice, &entry) || entry.owner == w->end->id)
            continue;
        struct job job = {
            .peer = entry.owner, .remote = entry.id, .count = SLOTS, .repeat = 1 + i * 3};
        llm_status status = job_start(&job, w->end, &w->target, &transfers[i]);
        count(status);
        if (status != LLM_SUCCESS)
            transfers[i] = 0;
    }
    for (size_t i = 0; i < STARTED_MAX; i++) {
        if (transfers[i] == 0)
            continue;
        llm_status status = LLM_SUCCESS;
        uint64_t fate = roll(&w->dice) % 3;
        if (fate == 0)
            status = llm_transfer_cancel(w->end->dd, transfers[i]);
        EXPECT(status == LLM_SUCCESS, status);
        if (fate == 1) {
            status = llm_transfer_wait(w->end->dd, transfers[i], -1);
            EXPECT(may_happen(status), status);
        }
        status = llm_transfer_release(w->end->dd, transfers[i]);
        EXPECT(status == LLM_SUCCESS, status);
    }
    // All have ended: the memory is the worker's alone.
    kv_fill(&w->target, 1);
    EXPECT(kv_holds(&w->target, 1, SLOTS, 0), LLM_SUCCESS);
}

static void
poll_notes(struct worker *w)
{
    uint64_t note;
    size_t num_bytes;
    while (llm_poll_notification(w->end->dd, NULL, &note, sizeof(note), &num_bytes) == LLM_SUCCESS)
        EXPECT(num_bytes == sizeof(note) && note < WORKERS, LLM_SUCCESS);
}

static void *
work(void *arg)
{
    struct worker *w = arg;
    for (unsigned step = 0; step < STEPS; step++) {
        switch (roll(&w->dice) % 8) {
        case 0:
        case 1:
            change_mine(w);
            break;
        case 2:
        case 3:
        case 4:
            pull_something(w);
            break;
        case 5:
            push_something(w);
            break;
        case 6:
            start_and_stop(w);
            break;
        default:
            poll_notes(w);
            break;
        }
    }
    return NULL;
}

// ---- those who come and go ----

// Lets the others make so many transfers.
static void
let_others_work(unsigned num_transfers)
{
    unsigned begin = atomic_load(&storm.num_right);
    while (atomic_load(&storm.num_right) - begin < num_transfers && !atomic_load(&storm.over))
        sched_yield();
}

// B's link ends and comes back.
static void *
flap(void *arg)
{
    (void)arg;
    for (unsigned i = 0; !atomic_load(&storm.over); i++) {
        let_others_work(TRANSFERS_PER_FLAP);
        llm_status status = end_unlink(&storm.b, A, storm.a.port, i % 2 != 0);
        EXPECT(status == LLM_SUCCESS || status == LLM_LINK_BUSY || status == LLM_UNLINK_FAILED,
               status);
        status = end_link(&storm.b, A, storm.a.port);
        EXPECT(status == LLM_SUCCESS || status == LLM_ALREADY_LINK, status);
        atomic_fetch_add(&storm.num_flaps, 1);
    }
    return NULL;
}

// One visitor after another links with A, offers something, takes something, and is gone.
static void *
visit(void *arg)
{
    uint64_t dice = 7;
    (void)arg;
    for (unsigned i = 0; !atomic_load(&storm.over); i++) {
        struct end visitor;
        struct kv offered;
        struct kv taken;
        struct entry entry;
        struct end_setup setup = {.id = VISITORS + i};
        llm_status status = end_try_open(&visitor, &setup);
        EXPECT(status == LLM_SUCCESS, status);
        uint64_t seed = roll(&dice) | 1;
        bool registered = try_register(&offered, &visitor, seed);
        registered = try_register(&taken, &visitor, 0) && registered;
        status = end_link(&visitor, i % 2 == 0 ? A : 0, storm.a.port);
        EXPECT(status == LLM_SUCCESS && registered, status);
        post(visitor.id, offered.id, seed);
        let_others_work(TRANSFERS_PER_VISIT);
        for (unsigned j = 0; j < 20; j++) {
            if (!look_up(&dice, &entry) || entry.owner != A)
                continue;
            struct job job = {.peer = A, .remote = entry.id, .count = SLOTS, .shift = j % SLOTS};
            kv_fill(&taken, 0);
            status = job_run(&job, &visitor, &taken);
            count(status);
            if (status == LLM_SUCCESS)
                EXPECT(kv_holds(&taken, entry.seed, SLOTS, job.shift), status);
        }
        // In good order, or suddenly.
        if (i % 3 == 0)
            (void)end_unlink(&visitor, A, storm.a.port, false);
        if (i % 3 == 1)
            (void)llm_unregister_kv_cache(visitor.dd, offered.id);
        end_close(&visitor);
        atomic_fetch_add(&storm.num_visits, 1);
        kv_free(&offered);
        kv_free(&taken);
    }
    return NULL;
}

static void
open_worker(struct worker *w, unsigned number)
{
    memset(w, 0, sizeof(*w));
    w->number = number;
    w->dice = number * 1000 + 1;
    w->end = number % 2 == 0 ? &storm.b : &storm.a;
    w->peer = number % 2 == 0 ? &storm.a : &storm.b;
    kv_open(&w->target, w->end, TENSORS, SLOTS, STRIDE);
    kv_open(&w->source, w->end, TENSORS, SLOTS, STRIDE);
    kv_open(&w->goal, w->peer, TENSORS, SLOTS, STRIDE);
}

static void
close_worker(struct worker *w)
{
    for (size_t i = 0; i < MINE_MAX; i++) {
        if (w->mine[i].id != 0)
            kv_free(&w->mine[i]);
    }
    kv_free(&w->target);
    kv_free(&w->source);
    kv_free(&w->goal);
}

static void
test_everything_at_once(void **state)
{
    (void)state;
    struct worker workers[WORKERS];
    pthread_t flapper;
    pthread_t host;
    memset(&storm, 0, sizeof(storm));
    pthread_mutex_init(&storm.lock, NULL);
    struct end_setup setup = {.id = A, .listens = true};
    end_open(&storm.a, &setup);
    setup = (struct end_setup){.id = B};
    end_open(&storm.b, &setup);
    assert_ok(end_link(&storm.b, A, storm.a.port));
    for (unsigned i = 0; i < WORKERS; i++)
        open_worker(&workers[i], i);
    for (unsigned i = 0; i < WORKERS; i++)
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    assert_int_equal(pthread_create(&flapper, NULL, flap, NULL), 0);
    assert_int_equal(pthread_create(&host, NULL, visit, NULL), 0);
    for (unsigned i = 0; i < WORKERS; i++)
        pthread_join(workers[i].thread, NULL);
    atomic_store(&storm.over, true);
    pthread_join(flapper, NULL);
    pthread_join(host, NULL);
    print_message("%u transfers were right, %u failed; %u new links, %u visitors\n",
                  atomic_load(&storm.num_right), atomic_load(&storm.num_failed),
                  atomic_load(&storm.num_flaps), atomic_load(&storm.num_visits));
    if (atomic_load(&storm.failed_line) != 0)
        fail_msg("line %d, %s", atomic_load(&storm.failed_line),
                 llm_status_name(atomic_load(&storm.failed_status)));
    end_close(&storm.b);
    end_close(&storm.a);
    for (unsigned i = 0; i < WORKERS; i++)
        close_worker(&workers[i]);
    pthread_mutex_destroy(&storm.lock);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_everything_at_once),
    };
    return kit_main(argc, argv, tests, LENGTH(tests));
}

// Memory that the user registered, between two instances of one process, over every transport.
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "registered/kit.h"

enum { LISTENER = 71, CONNECTOR = 72, SEED = 9 };

struct pair {
    struct end listener;
    struct end connector;
};

static void
open_pair_with(struct pair *pair, const struct end_setup *common)
{
    struct end_setup setup = *common;
    setup.id = LISTENER;
    setup.listens = true;
    end_open(&pair->listener, &setup);
    setup.id = CONNECTOR;
    setup.listens = false;
    end_open(&pair->connector, &setup);
}

static void
link_pair(struct pair *pair)
{
    llm_link_info info;
    assert_ok(end_link(&pair->connector, LISTENER, pair->listener.port));
    assert_int_equal(end_state(&pair->connector, LISTENER, &info), LLM_LINK_READY);
    assert_string_equal(info.transport, transport);
}

static void
open_pair(struct pair *pair)
{
    static const struct end_setup common = {0};
    open_pair_with(pair, &common);
    link_pair(pair);
}

static void
close_pair(struct pair *pair)
{
    end_close(&pair->connector);
    end_close(&pair->listener);
}

// The other of the two.
static struct end *
peer_of(struct pair *pair, const struct end *end)
{
    return end == &pair->listener ? &pair->connector : &pair->listener;
}

// Moves a whole cache in every way from `from` to `to`, pulled by its reader, pushed by its owner.
static void
move_everything(struct end *owner, struct kv *from, struct end *reader, struct kv *to)
{
    for (unsigned push = 0; push < 2; push++) {
        struct job job = {
            .push = push != 0,
            .peer = push ? reader->id : owner->id,
            .remote = push ? to->id : from->id,
            .count = from->num_slots,
            .shift = 5,
        };
        kv_fill(to, 0);
        assert_ok(job_run(&job, push ? owner : reader, push ? from : to));
        assert_true(kv_holds(to, SEED, job.count, job.shift));
        kv_fill(to, 0);
        job.slot = true;
        job.count = 2;
        job.shift = from->num_slots - 1;
        assert_ok(job_run(&job, push ? owner : reader, push ? from : to));
        for (uint32_t t = 0; t < to->num_tensors; t++) {
            assert_true(kv_slot_holds(to, t, job.shift, SEED, t, job.count));
            assert_true(kv_slot_holds(to, t, 0, 0, 0, 0));
        }
        assert_true(kv_is_intact_around(to));
        assert_true(kv_is_intact_around(from));
    }
}

static void
move_between(struct pair *pair, bool from_registered, bool to_registered, bool upstream,
             uint64_t stride)
{
    struct kv from;
    struct kv to;
    struct end *owner = upstream ? &pair->connector : &pair->listener;
    struct end *reader = peer_of(pair, owner);
    if (from_registered)
        kv_open(&from, owner, 6, 16, stride);
    else
        kv_allocate(&from, owner, 6, 16, stride);
    if (to_registered)
        kv_open(&to, reader, 6, 16, stride);
    else
        kv_allocate(&to, reader, 6, 16, stride);
    kv_fill(&from, SEED);
    move_everything(owner, &from, reader, &to);
    kv_free(&from);
    kv_free(&to);
}

static void
test_every_combination_in_both_directions(void **state)
{
    (void)state;
    static const uint64_t strides[] = {1, 61, 4097, 65536};
    for (size_t s = 0; s < LENGTH(strides); s++) {
        struct pair pair;
        open_pair(&pair);
        for (unsigned i = 0; i < 8; i++)
            move_between(&pair, (i & 1) != 0, (i & 2) != 0, (i & 4) != 0, strides[s]);
        close_pair(&pair);
    }
}

// The smallest and the largest misalignment there is between source and destination.
static void
test_every_alignment(void **state)
{
    (void)state;
    struct pair pair;
    static uint8_t source[256];
    static uint8_t target[256];
    int64_t shape[] = {3, 33};
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .num_tensors = 1,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = 2,
    };
    open_pair(&pair);
    for (size_t i = 0; i < sizeof(source); i++)
        source[i] = (uint8_t)(i * 7 + 1);
    for (uint64_t i = 0; i < 64; i++) {
        uint64_t from = (uintptr_t)source + i;
        uint64_t to = (uintptr_t)target + 3 + (i * 29 + 1) % 64;
        struct kv local = {.num_tensors = 1};
        struct job job = {.peer = LISTENER, .count = 3};
        memset(target, 0, sizeof(target));
        assert_ok(llm_register_kv_cache(pair.listener.dd, &desc, &from, 1, &job.remote));
        assert_ok(llm_register_kv_cache(pair.connector.dd, &desc, &to, 1, &local.id));
        assert_ok(job_run(&job, &pair.connector, &local));
        assert_memory_equal((void *)(uintptr_t)to, source + i, 99);
        assert_int_equal(((uint8_t *)(uintptr_t)to)[-1], 0);
        assert_int_equal(((uint8_t *)(uintptr_t)to)[99], 0);
        assert_ok(llm_unregister_kv_cache(pair.listener.dd, job.remote));
        assert_ok(llm_unregister_kv_cache(pair.connector.dd, local.id));
    }
    close_pair(&pair);
}

static void
test_a_thousand_tensors_in_one_cache(void **state)
{
    (void)state;
    struct pair pair;
    struct kv from;
    struct kv to;
    open_pair(&pair);
    kv_open(&from, &pair.listener, 1000, 8, 517);
    kv_open(&to, &pair.connector, 1000, 8, 517);
    kv_fill(&from, SEED);
    move_everything(&pair.listener, &from, &pair.connector, &to);
    close_pair(&pair);
    kv_free(&from);
    kv_free(&to);
}

// One cache per tensor, of which block lists are pulled layer by layer.
static void
test_a_cache_per_tensor(void **state)
{
    (void)state;
    enum { CACHES = 1000, SLOTS = 8, STRIDE = 256 };
    struct pair pair;
    struct kv *from = calloc(CACHES, sizeof(*from));
    struct kv *to = calloc(CACHES, sizeof(*to));
    assert_true(from != NULL && to != NULL);
    static const struct end_setup common = {0};
    open_pair_with(&pair, &common);
    for (size_t i = 0; i < CACHES; i++) {
        // Half of them are there before there is a link.
        if (i == CACHES / 2)
            link_pair(&pair);
        kv_open(&from[i], &pair.listener, 1, SLOTS, STRIDE);
        kv_open(&to[i], &pair.connector, 1, SLOTS, STRIDE);
        kv_fill(&from[i], i + 1);
    }
    uint64_t begin_ms = now_ms();
    for (size_t i = 0; i < CACHES; i++) {
        struct job job = {.peer = LISTENER, .remote = from[i].id, .count = SLOTS, .shift = 3};
        assert_ok(job_run(&job, &pair.connector, &to[i]));
    }
    print_message("%d caches pulled in %u ms\n", CACHES, (unsigned)(now_ms() - begin_ms));
    for (size_t i = 0; i < CACHES; i++)
        assert_true(kv_holds(&to[i], i + 1, SLOTS, 3));
    for (size_t i = 0; i < CACHES; i += 2)
        assert_ok(llm_unregister_kv_cache(pair.listener.dd, from[i].id));
    for (size_t i = 0; i < CACHES; i++) {
        struct job job = {.peer = LISTENER, .remote = from[i].id, .count = SLOTS};
        assert_status(job_run(&job, &pair.connector, &to[i]),
                      i % 2 == 0 ? LLM_KV_CACHE_NOT_EXIST : LLM_SUCCESS);
    }
    close_pair(&pair);
    for (size_t i = 0; i < CACHES; i++) {
        kv_free(&from[i]);
        kv_free(&to[i]);
    }
    free(from);
    free(to);
}

static void
test_a_registration_is_visible_at_once(void **state)
{
    (void)state;
    struct pair pair;
    struct kv to;
    open_pair(&pair);
    kv_open(&to, &pair.connector, 2, 4, 100);
    for (uint64_t i = 1; i <= 100; i++) {
        struct kv from;
        kv_open(&from, &pair.listener, 2, 4, 100);
        kv_fill(&from, i);
        struct job job = {.peer = LISTENER, .remote = from.id, .count = 4};
        assert_ok(job_run(&job, &pair.connector, &to));
        assert_true(kv_holds(&to, i, 4, 0));
        assert_ok(llm_unregister_kv_cache(pair.listener.dd, from.id));
        kv_unmap(&from);
        assert_status(job_run(&job, &pair.connector, &to), LLM_KV_CACHE_NOT_EXIST);
        // A push into it, likewise.
        job.push = true;
        assert_status(job_run(&job, &pair.connector, &to), LLM_KV_CACHE_NOT_EXIST);
        kv_free(&from);
    }
    close_pair(&pair);
    kv_free(&to);
}

static void
test_ids_count_up_and_end_with_the_registration(void **state)
{
    (void)state;
    struct pair pair;
    struct kv first;
    struct kv second;
    open_pair(&pair);
    kv_open(&first, &pair.listener, 1, 1, 8);
    kv_open(&second, &pair.listener, 1, 1, 8);
    assert_int_equal(first.id, 1);
    assert_int_equal(second.id, 2);
    // Nobody deallocates what he registered, nor the other way round.
    assert_status(llm_deallocate_cache(pair.listener.dd, first.id), LLM_KV_CACHE_NOT_EXIST);
    struct kv allocated;
    kv_allocate(&allocated, &pair.listener, 1, 1, 8);
    assert_ok(llm_unregister_kv_cache(pair.listener.dd, allocated.id));
    assert_ok(llm_deallocate_cache(pair.listener.dd, allocated.id));
    // Unknown ids, and ids of yesterday.
    assert_ok(llm_unregister_kv_cache(pair.listener.dd, 4711));
    assert_ok(llm_unregister_kv_cache(pair.listener.dd, 0));
    assert_ok(llm_unregister_kv_cache(pair.listener.dd, -1));
    assert_ok(llm_unregister_kv_cache(pair.listener.dd, first.id));
    assert_ok(llm_unregister_kv_cache(pair.listener.dd, first.id));
    struct job job = {.push = true, .peer = CONNECTOR, .remote = 1, .count = 1};
    assert_status(job_run(&job, &pair.listener, &first), LLM_KV_CACHE_NOT_EXIST);
    close_pair(&pair);
    kv_free(&first);
    kv_free(&second);
    kv_free(&allocated);
}

static void
test_the_same_range_twice_and_overlapping_ranges(void **state)
{
    (void)state;
    struct pair pair;
    struct kv whole;
    struct kv again;
    struct kv to;
    open_pair(&pair);
    kv_open(&whole, &pair.listener, 2, 8, 96);
    again = whole;
    kv_register(&again, &pair.listener);
    assert_int_not_equal(again.id, whole.id);
    // Two tensors that are one; and a third that begins in the middle of it.
    struct kv same = whole;
    uint64_t addresses[] = {whole.addresses[0], whole.addresses[0], whole.addresses[0] + 96};
    same.addresses = addresses;
    same.num_tensors = 3;
    same.num_slots = 7;
    kv_register(&same, &pair.listener);
    kv_fill(&whole, SEED);
    kv_open(&to, &pair.connector, 3, 7, 96);
    struct job job = {.peer = LISTENER, .remote = same.id, .count = 7};
    assert_ok(job_run(&job, &pair.connector, &to));
    for (uint64_t slot = 0; slot < 7; slot++) {
        assert_true(kv_slot_holds(&to, 0, slot, SEED, 0, slot));
        assert_true(kv_slot_holds(&to, 1, slot, SEED, 0, slot));
        assert_true(kv_slot_holds(&to, 2, slot, SEED, 0, slot + 1));
    }
    // The end of one registration is not the end of the other.
    assert_ok(llm_unregister_kv_cache(pair.listener.dd, whole.id));
    struct kv two;
    kv_open(&two, &pair.connector, 2, 8, 96);
    job = (struct job){.peer = LISTENER, .remote = again.id, .count = 8};
    assert_ok(job_run(&job, &pair.connector, &two));
    assert_true(kv_holds(&two, SEED, 8, 0));
    close_pair(&pair);
    kv_free(&whole);
    kv_free(&to);
    kv_free(&two);
}

// Beyond what is copied through the caches.
static void
test_a_large_cache(void **state)
{
    (void)state;
    struct pair pair;
    struct kv from;
    struct kv to;
    open_pair(&pair);
    kv_open(&from, &pair.listener, 4, 16, SCALED(1 << 18, 1 << 16) + 3);
    kv_open(&to, &pair.connector, 4, 16, from.stride);
    kv_fill(&from, SEED);
    move_everything(&pair.listener, &from, &pair.connector, &to);
    close_pair(&pair);
    kv_free(&from);
    kv_free(&to);
}

// ---- the checks of a registration, in their order (§13.2) ----

static void
test_the_checks_of_a_registration_in_order(void **state)
{
    (void)state;
    struct end end;
    int64_t id = 4711;
    uint64_t addrs[2] = {4096, 8192};
    int64_t shape[32];
    struct end_setup setup = {.id = LISTENER, .listens = true};
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .num_tensors = 2,
        .data_type = LLM_DT_UNDEFINED,
        .shape = shape,
        .num_dims = 0,
    };
    for (size_t i = 0; i < LENGTH(shape); i++)
        shape[i] = 1;
    assert_ok(llm_create(LISTENER, LLM_ROLE_PROMPT, &end.dd));
    // Not initialized comes before everything else.
    assert_status(llm_register_kv_cache(end.dd, NULL, NULL, 0, NULL), LLM_FAILED);
    assert_status(llm_unregister_kv_cache(end.dd, 1), LLM_FAILED);
    end_close(&end);
    end_open(&end, &setup);
    // Each line repairs what the line before was told off for.
    assert_status(llm_register_kv_cache(end.dd, &desc, addrs, 0, &id), LLM_PARAM_INVALID);
    assert_status(llm_register_kv_cache(end.dd, &desc, NULL, 2, &id), LLM_PARAM_INVALID);
    assert_status(llm_register_kv_cache(end.dd, &desc, addrs, 1, &id), LLM_PARAM_INVALID);
    addrs[1] = 0;
    assert_status(llm_register_kv_cache(end.dd, &desc, addrs, 2, &id), LLM_PARAM_INVALID);
    addrs[1] = 8192;
    assert_status(llm_register_kv_cache(end.dd, &desc, addrs, 2, &id), LLM_PARAM_INVALID);
    desc.num_dims = 32;
    assert_status(llm_register_kv_cache(end.dd, &desc, addrs, 2, &id), LLM_PARAM_INVALID);
    desc.num_dims = 31;
    shape[30] = 0;
    assert_status(llm_register_kv_cache(end.dd, &desc, addrs, 2, &id), LLM_PARAM_INVALID);
    shape[30] = 1;
    assert_status(llm_register_kv_cache(end.dd, &desc, addrs, 2, &id), LLM_PARAM_INVALID);
    desc.data_type = LLM_DT_UINT8;
    desc.placement = 2;
    assert_status(llm_register_kv_cache(end.dd, &desc, addrs, 2, &id), LLM_PARAM_INVALID);
    desc.placement = LLM_PLACEMENT_DEVICE;
    assert_status(llm_register_kv_cache(end.dd, &desc, addrs, 2, NULL), LLM_PARAM_INVALID);
    addrs[1] = UINT64_MAX;
    shape[0] = 2;
    assert_status(llm_register_kv_cache(end.dd, &desc, addrs, 2, &id), LLM_PARAM_INVALID);
    addrs[1] = 8192;
    assert_int_equal(id, 4711);
    assert_ok(llm_register_kv_cache(end.dd, &desc, addrs, 2, &id));
    assert_int_equal(id, 1);
    end_close(&end);
}

// ---- the end of a registration ----

enum { LARGE_TENSORS = 4, LARGE_SLOTS = 16, LARGE_STRIDE = SCALED(1 << 19, 1 << 17) };

struct unregistering {
    pthread_t thread;
    struct end *end;
    struct kv *kv;
    _Atomic bool returned;
    llm_status status;
};

static void *
unregister(void *arg)
{
    struct unregistering *u = arg;
    u->status = llm_unregister_kv_cache(u->end->dd, u->kv->id);
    atomic_store(&u->returned, true);
    return NULL;
}

// The side that gives the bytes ends its registration while they move.
static void
end_source_while_it_moves(bool push)
{
    struct pair pair;
    struct kv from;
    struct kv to;
    struct kv bystander;
    uint64_t id;
    open_pair(&pair);
    kv_open(&from, &pair.listener, LARGE_TENSORS, LARGE_SLOTS, LARGE_STRIDE);
    kv_open(&to, &pair.connector, LARGE_TENSORS, LARGE_SLOTS, LARGE_STRIDE);
    kv_open(&bystander, &pair.listener, 1, 1, 8);
    kv_fill(&from, SEED);
    struct job job = {
        .push = push,
        .peer = push ? CONNECTOR : LISTENER,
        .remote = push ? to.id : from.id,
        .count = LARGE_SLOTS,
    };
    struct end *begins = push ? &pair.listener : &pair.connector;
    assert_ok(job_start(&job, begins, push ? &from : &to, &id));
    struct unregistering u = {.end = &pair.listener, .kv = &from};
    assert_int_equal(pthread_create(&u.thread, NULL, unregister, &u), 0);
    // Who has nothing to do with the transfer doesn't wait for it.
    assert_ok(llm_unregister_kv_cache(pair.listener.dd, bystander.id));
    bool was_running = llm_transfer_poll(begins->dd, id) == LLM_TRANSFER_PENDING;
    pthread_join(u.thread, NULL);
    assert_ok(u.status);
    // From here on the memory is the test's alone.
    kv_unmap(&from);
    llm_status status = llm_transfer_wait(begins->dd, id, -1);
    if (status == LLM_SUCCESS)
        assert_true(kv_holds(&to, SEED, LARGE_SLOTS, 0));
    else
        assert_status(status, LLM_KV_CACHE_NOT_EXIST);
    print_message("unregistered while it moved: %s, then %s\n", was_running ? "yes" : "no",
                  llm_status_name(status));
    assert_ok(llm_transfer_release(begins->dd, id));
    close_pair(&pair);
    kv_free(&from);
    kv_free(&to);
    kv_free(&bystander);
}

static void
test_unregistering_waits_for_a_pull_from_it(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++)
        end_source_while_it_moves(false);
}

static void
test_unregistering_waits_for_a_push_from_it(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++)
        end_source_while_it_moves(true);
}

// The side that takes the bytes.
static void
end_target_while_it_moves(bool push)
{
    struct pair pair;
    struct kv from;
    struct kv to;
    uint64_t id;
    open_pair(&pair);
    kv_open(&from, &pair.listener, LARGE_TENSORS, LARGE_SLOTS, LARGE_STRIDE);
    kv_open(&to, &pair.connector, LARGE_TENSORS, LARGE_SLOTS, LARGE_STRIDE);
    kv_fill(&from, SEED);
    struct job job = {
        .push = push,
        .peer = push ? CONNECTOR : LISTENER,
        .remote = push ? to.id : from.id,
        .count = LARGE_SLOTS,
    };
    struct end *begins = push ? &pair.listener : &pair.connector;
    assert_ok(job_start(&job, begins, push ? &from : &to, &id));
    struct unregistering u = {.end = &pair.connector, .kv = &to};
    assert_int_equal(pthread_create(&u.thread, NULL, unregister, &u), 0);
    pthread_join(u.thread, NULL);
    assert_ok(u.status);
    // Nothing lands any more: what is there now stays.
    uint64_t sum = kv_checksum(&to);
    llm_status status = llm_transfer_wait(begins->dd, id, -1);
    if (status == LLM_SUCCESS)
        assert_true(kv_holds(&to, SEED, LARGE_SLOTS, 0));
    else
        assert_status(status, LLM_KV_CACHE_NOT_EXIST);
    assert_int_equal(kv_checksum(&to), sum);
    assert_ok(llm_transfer_release(begins->dd, id));
    close_pair(&pair);
    kv_free(&from);
    kv_free(&to);
}

static void
test_unregistering_waits_for_what_comes_in(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++)
        end_target_while_it_moves(i % 2 != 0);
}

// Whoever unregisters the same cache at the same time waits as well.
static void
test_two_threads_unregister_the_same(void **state)
{
    (void)state;
    struct pair pair;
    struct kv from;
    struct kv to;
    uint64_t id;
    open_pair(&pair);
    kv_open(&from, &pair.listener, LARGE_TENSORS, LARGE_SLOTS, LARGE_STRIDE);
    kv_open(&to, &pair.connector, LARGE_TENSORS, LARGE_SLOTS, LARGE_STRIDE);
    kv_fill(&from, SEED);
    struct job job = {.peer = LISTENER, .remote = from.id, .count = LARGE_SLOTS};
    assert_ok(job_start(&job, &pair.connector, &to, &id));
    struct unregistering u = {.end = &pair.listener, .kv = &from};
    assert_int_equal(pthread_create(&u.thread, NULL, unregister, &u), 0);
    assert_ok(llm_unregister_kv_cache(pair.listener.dd, from.id));
    // Whichever of the two came second.
    kv_unmap(&from);
    pthread_join(u.thread, NULL);
    llm_status status = llm_transfer_wait(pair.connector.dd, id, -1);
    if (status == LLM_SUCCESS)
        assert_true(kv_holds(&to, SEED, LARGE_SLOTS, 0));
    else
        assert_status(status, LLM_KV_CACHE_NOT_EXIST);
    assert_ok(llm_transfer_release(pair.connector.dd, id));
    close_pair(&pair);
    kv_free(&from);
    kv_free(&to);
}

// ---- memory that goes away under a pull ----

struct puller {
    pthread_t thread;
    struct end *end;
    struct kv *to;
    struct job job;
    _Atomic unsigned num_begun;
    _Atomic bool stop;
    llm_status last;
};

// Pulls until that fails or it has been told to stop.
static void *
pull_on(void *arg)
{
    struct puller *p = arg;
    do {
        atomic_fetch_add(&p->num_begun, 1);
        p->last = job_run(&p->job, p->end, p->to);
    } while (p->last == LLM_SUCCESS && !atomic_load(&p->stop));
    return NULL;
}

static void
start_puller(struct puller *p, struct end *end, struct kv *to, int64_t remote, unsigned repeat)
{
    memset(p, 0, sizeof(*p));
    p->end = end;
    p->to = to;
    p->job =
        (struct job){.peer = LISTENER, .remote = remote, .count = LARGE_SLOTS, .repeat = repeat};
    assert_int_equal(pthread_create(&p->thread, NULL, pull_on, p), 0);
    AWAIT(atomic_load(&p->num_begun) > (repeat > 1 ? 0 : 1));
}

enum farewell {
    FAREWELL_UNREGISTER, // in good order
    FAREWELL_IMPATIENT,  // the owner's time is short, the pulls are long
    FAREWELL_UNLINK,     // the owner has forgotten the link before
    FAREWELL_FINALIZE,   // the owner ends
    NUM_FAREWELLS
};

// The owner ends the registration in one way or another and unmaps, while the peer pulls on and on.
static void
take_leave(enum farewell farewell)
{
    struct pair pair;
    struct kv from;
    struct kv to;
    struct puller puller;
    struct end_setup setup = {.id = LISTENER, .listens = true};
    // Of two writers of the same block it is unspecified who wins (§8.3), which the sanitizer minds.
    unsigned repeat = farewell == FAREWELL_IMPATIENT && !UNDER_TSAN ? 20 : 1;
    if (farewell == FAREWELL_IMPATIENT) {
        setup.sync_ms = 1;
        setup.liveness_ms = 50;
    }
    end_open(&pair.listener, &setup);
    setup = (struct end_setup){.id = CONNECTOR};
    end_open(&pair.connector, &setup);
    link_pair(&pair);
    kv_open(&from, &pair.listener, LARGE_TENSORS, LARGE_SLOTS, LARGE_STRIDE);
    kv_open(&to, &pair.connector, LARGE_TENSORS, LARGE_SLOTS, LARGE_STRIDE);
    start_puller(&puller, &pair.connector, &to, from.id, repeat);
    // While one is running it is LLM_LINK_BUSY.
    if (farewell == FAREWELL_UNLINK)
        AWAIT(end_unlink(&pair.listener, CONNECTOR, 0, true) == LLM_SUCCESS);
    if (farewell == FAREWELL_FINALIZE)
        llm_finalize(pair.listener.dd);
    else
        assert_ok(llm_unregister_kv_cache(pair.listener.dd, from.id));
    kv_unmap(&from);
    atomic_store(&puller.stop, true);
    pthread_join(puller.thread, NULL);
    assert_int_not_equal(puller.last, LLM_WAIT_PROC_TIMEOUT);
    close_pair(&pair);
    kv_free(&from);
    kv_free(&to);
}

static void
test_memory_may_go_when_the_call_has_returned(void **state)
{
    (void)state;
    for (unsigned i = 0; i < NUM_FAREWELLS; i++) {
        for (unsigned round = 0; round < SCALED(3, 2); round++)
            take_leave((enum farewell)i);
    }
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_every_combination_in_both_directions),
        KIT_TEST(test_every_alignment),
        KIT_TEST(test_a_thousand_tensors_in_one_cache),
        KIT_TEST(test_a_cache_per_tensor),
        KIT_TEST(test_a_registration_is_visible_at_once),
        KIT_TEST(test_ids_count_up_and_end_with_the_registration),
        KIT_TEST(test_the_same_range_twice_and_overlapping_ranges),
        KIT_TEST(test_a_large_cache),
        KIT_TEST(test_the_checks_of_a_registration_in_order),
        KIT_TEST(test_unregistering_waits_for_a_pull_from_it),
        KIT_TEST(test_unregistering_waits_for_a_push_from_it),
        KIT_TEST(test_unregistering_waits_for_what_comes_in),
        KIT_TEST(test_two_threads_unregister_the_same),
        KIT_TEST(test_memory_may_go_when_the_call_has_returned),
    };
    return kit_main(argc, argv, tests, LENGTH(tests));
}

// What an owner calls ends within a bound, whatever its peers do: registered memory is given back
// although a peer reads or writes it a byte at a time, or stands still, and although transfers of the
// owner's own run; deallocated memory comes back; a forced unlink removes the link; deallocating and
// finalizing wait for nobody.
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "engine/engine.h"
#include "fault/raw.h"
#include "registered/kit.h"

enum { HONEST = 21, SYNC_MS = 200, LIVENESS_MS = 300 };
// What the owner may take: its patience, and a margin for a busy machine.
enum { BOUND_MS = SYNC_MS + LIVENESS_MS + SCALED(3000, 20000) };
// More than sockets hold.
enum { TENSORS = 2, SLOTS = 64, STRIDE = SCALED(512 << 10, 256 << 10) };

// ---- a peer by hand that keeps its link alive and does nothing else quickly ----

struct trickler {
    struct raw_link link;
    bool writes; // else reads
    bool idles;  // neither
    pthread_t thread;
    _Atomic bool stop;
};

static void *
trickle(void *arg)
{
    struct trickler *t = arg;
    uint64_t give_up = now_ms() + 2 * BOUND_MS;
    uint8_t byte = 0xee;
    bool open = true;
    while (open && !atomic_load(&t->stop) && now_ms() < give_up) {
        open = raw_say(t->link.control, LLI_PING, 0, NULL, 0);
        if (!t->idles && t->writes)
            open &= send(t->link.data, &byte, 1, MSG_NOSIGNAL) == 1;
        else if (!t->idles)
            open &= recv(t->link.data, &byte, 1, 0) == 1;
        (void)poll(NULL, 0, 20);
    }
    return NULL;
}

static void
trickler_start(struct trickler *t, bool writes)
{
    t->writes = writes;
    assert_int_equal(pthread_create(&t->thread, NULL, trickle, t), 0);
}

static void
trickler_join(struct trickler *t)
{
    atomic_store(&t->stop, true);
    pthread_join(t->thread, NULL);
    raw_link_close(&t->link);
}

static void
ask_under(struct trickler *t, uint64_t lease, int64_t cache_id, bool push, uint64_t id,
          struct lli_block_run *run)
{
    struct raw_message message;
    int one = 1;
    struct lli_request request = {
        .push = push,
        .version_2 = true,
        .kind = LLI_REQUEST_BLOCKS,
        .cache_id = cache_id,
        .generation = lease,
        .num_tensors = TENSORS,
        .tensors_per_layer = 2,
        .stride = STRIDE,
        .runs = run,
        .num_runs = 1,
    };
    // At the owner when this returns, not held back by Nagle.
    setsockopt(t->link.control, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    raw_make_request(&message, id, &request);
    assert_true(raw_send(t->link.control, message.bytes, message.size));
}

static void
ask(struct trickler *t, int64_t cache_id, bool push, uint64_t id, struct lli_block_run *run)
{
    ask_under(t, 0, cache_id, push, id, run);
}

// ---- the owner, and an honest peer beside ----

struct bed {
    struct end owner;
    struct end honest;
    struct kv kv;    // registered at the owner, for the slow one
    struct kv other; // likewise, for the honest one
    struct kv target;
};

static void
bed_open(struct bed *bed)
{
    struct end_setup setup = {
        .id = RAW_PROMPT,
        .transports = "tcp",
        .listens = true,
        .sync_ms = SYNC_MS,
        .liveness_ms = LIVENESS_MS,
    };
    end_open(&bed->owner, &setup);
    end_open(&bed->honest, &(struct end_setup){.id = HONEST, .transports = "tcp"});
    kv_open(&bed->kv, &bed->owner, TENSORS, SLOTS, STRIDE);
    kv_fill(&bed->kv, 5);
    kv_open(&bed->other, &bed->owner, TENSORS, 8, 4096);
    kv_fill(&bed->other, 6);
    kv_open(&bed->target, &bed->honest, TENSORS, 8, 4096);
    assert_ok(end_link(&bed->honest, RAW_PROMPT, bed->owner.port));
}

static void
check_honest(struct bed *bed)
{
    struct job job = {.peer = RAW_PROMPT, .remote = bed->other.id, .count = 8};
    kv_fill(&bed->target, 0);
    assert_ok(job_run(&job, &bed->honest, &bed->target));
    assert_true(kv_holds(&bed->target, 6, 8, 0));
    assert_int_equal(end_state(&bed->honest, RAW_PROMPT, NULL), LLM_LINK_READY);
}

static void
bed_close(struct bed *bed)
{
    check_honest(bed);
    end_close(&bed->honest);
    end_close(&bed->owner);
    kv_free(&bed->kv);
    kv_free(&bed->other);
    kv_free(&bed->target);
}

static void
unregister_in_time(struct bed *bed)
{
    uint64_t start = now_ms();
    assert_ok(llm_unregister_kv_cache(bed->owner.dd, bed->kv.id));
    uint64_t took = now_ms() - start;
    if (took > BOUND_MS)
        fail_msg("it took %llu ms, expected at most %d", (unsigned long long)took, BOUND_MS);
    if (took + 50 < SYNC_MS + LIVENESS_MS)
        fail_msg("it took %llu ms: nobody was in the way", (unsigned long long)took);
    // The memory is the test's alone: whoever still touched it would crash.
    kv_unmap(&bed->kv);
}

static void
test_unregister_while_a_peer_reads_a_trickle(void **state)
{
    struct bed bed;
    struct trickler t = {0};
    (void)state;
    bed_open(&bed);
    raw_link_open(&t.link, bed.owner.port, RAW_STRANGER);
    struct lli_block_run all = {0, SLOTS};
    ask(&t, bed.kv.id, false, 7, &all);
    trickler_start(&t, false);
    check_honest(&bed);
    unregister_in_time(&bed);
    // A frame had begun: only the end of the link ends it.
    assert_int_equal(end_state(&bed.owner, RAW_STRANGER, NULL), LLM_LINK_BROKEN);
    llm_link_info info = {.struct_size = sizeof(info)};
    (void)end_state(&bed.owner, RAW_STRANGER, &info);
    assert_non_null(strstr(info.reason, "unregistered"));
    trickler_join(&t);
    bed_close(&bed);
}

static void
test_unregister_while_a_peer_writes_a_trickle(void **state)
{
    struct bed bed;
    struct trickler t = {0};
    struct raw_message frame;
    struct lli_message_header header;
    uint8_t body[4096];
    (void)state;
    bed_open(&bed);
    raw_link_open(&t.link, bed.owner.port, RAW_STRANGER);
    struct lli_block_run all = {0, SLOTS};
    ask(&t, bed.kv.id, true, 7, &all);
    assert_true(raw_hear(t.link.control, &header, body));
    assert_int_equal(header.type, LLI_PUSH_ACCEPTED);
    // A frame of which but a little comes.
    raw_make(&frame, LLI_DATA, 7, 0, NULL, 0);
    frame.bytes[10] = 1; // 64 KiB
    assert_true(raw_send(t.link.data, frame.bytes, frame.size));
    trickler_start(&t, true);
    check_honest(&bed);
    unregister_in_time(&bed);
    // It is told, and keeps its link.
    assert_int_equal(raw_hear_status(t.link.control, LLI_RESULT, 7), LLM_KV_CACHE_NOT_EXIST);
    assert_int_equal(end_state(&bed.owner, RAW_STRANGER, NULL), LLM_LINK_READY);
    trickler_join(&t);
    bed_close(&bed);
}

// Nothing of it has begun to leave: the connection is full of another transfer's bytes.
static void
test_unregister_while_a_pull_waits_for_its_turn(void **state)
{
    struct bed bed;
    struct trickler t = {0};
    struct kv first;
    int few_bytes = 32 << 10;
    (void)state;
    bed_open(&bed);
    kv_open(&first, &bed.owner, TENSORS, SLOTS, STRIDE);
    raw_link_open(&t.link, bed.owner.port, RAW_STRANGER);
    setsockopt(t.link.data, SOL_SOCKET, SO_RCVBUF, &few_bytes, sizeof(few_bytes));
    struct lli_block_run all = {0, SLOTS};
    ask(&t, first.id, false, 7, &all);
    ask(&t, bed.kv.id, false, 9, &all);
    trickler_start(&t, false);
    check_honest(&bed);
    unregister_in_time(&bed);
    // It is told, and the other transfer goes on.
    assert_int_equal(raw_hear_status(t.link.control, LLI_RESULT, 9), LLM_KV_CACHE_NOT_EXIST);
    assert_int_equal(end_state(&bed.owner, RAW_STRANGER, NULL), LLM_LINK_READY);
    trickler_join(&t);
    bed_close(&bed);
    kv_free(&first);
}

static void
test_a_lease_is_closed_while_a_peer_reads_a_trickle(void **state)
{
    struct bed bed;
    struct trickler t = {0};
    uint64_t lease = 0;
    (void)state;
    bed_open(&bed);
    llm_lease_desc desc = {
        .struct_size = sizeof(desc), .cache_id = bed.kv.id, .duration_ms = 600000};
    assert_ok(llm_lease_open(bed.owner.dd, &desc, &lease));
    raw_link_open(&t.link, bed.owner.port, RAW_STRANGER);
    struct lli_block_run all = {0, SLOTS};
    ask_under(&t, lease, bed.kv.id, false, 7, &all);
    trickler_start(&t, false);
    check_honest(&bed);
    uint64_t start = now_ms();
    assert_ok(llm_lease_close(bed.owner.dd, lease));
    uint64_t took = now_ms() - start;
    if (took > BOUND_MS || took + 50 < SYNC_MS + LIVENESS_MS)
        fail_msg("it took %llu ms", (unsigned long long)took);
    assert_int_equal(end_state(&bed.owner, RAW_STRANGER, NULL), LLM_LINK_BROKEN);
    trickler_join(&t);
    bed_close(&bed);
}

// ---- a peer that says that it lives, and reads and sends nothing ----

static uint64_t
bytes_used(struct end *end)
{
    struct lli_registry *registry = &end->dd->registry;
    pthread_mutex_lock(&registry->lock);
    uint64_t bytes = registry->pools[0].bytes_used;
    pthread_mutex_unlock(&registry->lock);
    return bytes;
}

static void
idler_open(struct trickler *t, struct bed *bed)
{
    *t = (struct trickler){.idles = true};
    raw_link_open(&t->link, bed->owner.port, RAW_STRANGER);
    trickler_start(t, false);
}

static void
test_memory_comes_back_although_a_peer_reads_nothing_of_it(void **state)
{
    struct bed bed;
    struct trickler t;
    struct kv kv;
    (void)state;
    bed_open(&bed);
    kv_allocate(&kv, &bed.owner, TENSORS, SLOTS, STRIDE);
    idler_open(&t, &bed);
    struct lli_block_run all = {0, SLOTS};
    ask(&t, kv.id, false, 7, &all);
    check_honest(&bed);
    uint64_t start = now_ms();
    assert_ok(llm_deallocate_cache(bed.owner.dd, kv.id));
    assert_true(now_ms() - start < SYNC_MS);
    assert_true(bytes_used(&bed.owner) > 0);
    AWAIT(bytes_used(&bed.owner) == 0 || now_ms() - start > BOUND_MS);
    assert_int_equal(bytes_used(&bed.owner), 0);
    trickler_join(&t);
    bed_close(&bed);
    kv_free(&kv);
}

static void
test_a_forced_unlink_ends_what_a_peer_reads_nothing_of(void **state)
{
    struct bed bed;
    struct trickler t;
    (void)state;
    bed_open(&bed);
    idler_open(&t, &bed);
    struct lli_block_run all = {0, SLOTS};
    ask(&t, bed.kv.id, false, 7, &all);
    check_honest(&bed);
    uint64_t start = now_ms();
    assert_status(end_unlink(&bed.owner, RAW_STRANGER, 0, false), LLM_LINK_BUSY);
    assert_ok(end_unlink(&bed.owner, RAW_STRANGER, 0, true));
    uint64_t took = now_ms() - start;
    if (took > BOUND_MS || took + 50 < SYNC_MS + LIVENESS_MS)
        fail_msg("it took %llu ms", (unsigned long long)took);
    assert_int_equal(end_state(&bed.owner, RAW_STRANGER, NULL), 0);
    trickler_join(&t);
    bed_close(&bed);
}

// Own transfers keep the link, forced or not.
static void
test_a_forced_unlink_leaves_own_transfers_alone(void **state)
{
    struct bed bed;
    struct trickler t;
    uint64_t id;
    struct job job = {.peer = RAW_STRANGER, .remote = 1, .count = 8, .timeout_ms = PATIENCE_MS};
    (void)state;
    bed_open(&bed);
    idler_open(&t, &bed);
    assert_ok(job_start(&job, &bed.owner, &bed.kv, &id));
    assert_status(end_unlink(&bed.owner, RAW_STRANGER, 0, true), LLM_LINK_BUSY);
    assert_status(llm_transfer_poll(bed.owner.dd, id), LLM_TRANSFER_PENDING);
    assert_ok(llm_transfer_release(bed.owner.dd, id));
    assert_ok(end_unlink(&bed.owner, RAW_STRANGER, 0, true));
    trickler_join(&t);
    bed_close(&bed);
}

static void
test_a_forced_unlink_leaves_an_announced_reader_behind(void **state)
{
    struct end owner;
    struct end reader;
    struct kv kv;
    struct end_setup setup = {.id = RAW_PROMPT,
                              .transports = "local",
                              .listens = true,
                              .sync_ms = SYNC_MS,
                              .liveness_ms = LIVENESS_MS};
    (void)state;
    end_open(&owner, &setup);
    end_open(&reader, &(struct end_setup){.id = HONEST, .transports = "local"});
    kv_open(&kv, &owner, TENSORS, SLOTS, 4096);
    assert_ok(end_link(&reader, RAW_PROMPT, owner.port));
    // It never takes that back.
    assert_true(lli_segment_reader_enter(&reader.dd->segment, owner.dd->node.identity.incarnation,
                                         4711, 0) >= 0);
    uint64_t start = now_ms();
    assert_status(end_unlink(&owner, HONEST, 0, false), LLM_LINK_BUSY);
    assert_ok(end_unlink(&owner, HONEST, 0, true));
    assert_true(now_ms() - start < BOUND_MS);
    assert_int_equal(end_state(&owner, HONEST, NULL), 0);
    end_close(&reader);
    end_close(&owner);
    kv_free(&kv);
}

struct caller {
    struct bed *bed;
    struct job job;
    llm_status status;
};

static void *
call_and_wait(void *arg)
{
    struct caller *caller = arg;
    caller->status = job_run(&caller->job, &caller->bed->owner, &caller->bed->kv);
    return NULL;
}

// Transfers of its own, started ones and one that its caller waits for, of a memory that is
// unregistered meanwhile.
static void
unregister_with_own(bool push)
{
    struct bed bed;
    struct trickler t;
    pthread_t thread;
    uint64_t ids[3];
    struct caller caller = {
        .bed = &bed,
        .job = {.push = push,
                .peer = RAW_STRANGER,
                .remote = 1,
                .count = SLOTS,
                .timeout_ms = 3 * PATIENCE_MS},
    };
    bed_open(&bed);
    idler_open(&t, &bed);
    for (size_t i = 0; i < LENGTH(ids); i++)
        assert_ok(job_start(&caller.job, &bed.owner, &bed.kv, &ids[i]));
    assert_int_equal(pthread_create(&thread, NULL, call_and_wait, &caller), 0);
    AWAIT(bed.owner.dd->node.next_transfer > LENGTH(ids)); // the caller's has begun
    check_honest(&bed);
    unregister_in_time(&bed);
    pthread_join(thread, NULL);
    assert_true(caller.status != LLM_SUCCESS);
    for (size_t i = 0; i < LENGTH(ids); i++) {
        llm_status status = llm_transfer_wait(bed.owner.dd, ids[i], PATIENCE_MS);
        if (!push)
            assert_status(status, LLM_KV_CACHE_NOT_EXIST);
        assert_true(status != LLM_SUCCESS && status != LLM_TRANSFER_PENDING);
        assert_ok(llm_transfer_release(bed.owner.dd, ids[i]));
    }
    trickler_join(&t);
    bed_close(&bed);
}

static void
test_unregister_while_an_own_pull_gets_nothing(void **state)
{
    (void)state;
    unregister_with_own(false);
}

static void
test_unregister_while_an_own_push_is_not_answered(void **state)
{
    (void)state;
    unregister_with_own(true);
}

// ---- a peer that says nothing, and asks for patience ----

// It reads nothing and answers nothing; only its own liveness time, of a minute, keeps it alive.
static void
test_push_to_a_peer_that_never_answers(void **state)
{
    struct bed bed;
    struct raw_link link;
    struct job job = {
        .push = true, .peer = RAW_STRANGER, .remote = 1, .count = SLOTS, .timeout_ms = SYNC_MS};
    (void)state;
    bed_open(&bed);
    raw_link_open(&link, bed.owner.port, RAW_STRANGER);
    uint64_t start = now_ms();
    llm_status status = job_run(&job, &bed.owner, &bed.kv);
    uint64_t took = now_ms() - start;
    assert_status(status, LLM_TIMEOUT);
    if (took > BOUND_MS)
        fail_msg("it took %llu ms, expected at most %d", (unsigned long long)took, BOUND_MS);
    // It may confirm later; that it hasn't doesn't keep the memory.
    assert_int_equal(end_state(&bed.owner, RAW_STRANGER, NULL), LLM_LINK_READY);
    start = now_ms();
    assert_ok(llm_unregister_kv_cache(bed.owner.dd, bed.kv.id));
    assert_true(now_ms() - start < BOUND_MS);
    raw_link_close(&link);
    bed_close(&bed);
}

// It asks and asks, and never reads an answer: it's no longer listened to, and the honest one is.
static void
test_a_peer_that_never_reads_its_answers(void **state)
{
    enum { REQUESTS = SCALED(100000, 20000) };
    struct bed bed;
    struct raw_link link;
    struct raw_message message;
    struct lli_block_run all = {0, SLOTS};
    struct lli_request request = {
        .version_2 = true,
        .kind = LLI_REQUEST_BLOCKS,
        .cache_id = 77,
        .num_tensors = TENSORS,
        .stride = STRIDE,
        .runs = &all,
        .num_runs = 1,
    };
    unsigned sent = 0;
    (void)state;
    bed_open(&bed);
    raw_link_open(&link, bed.owner.port, RAW_STRANGER);
    raw_make_request(&message, 7, &request);
    for (bool room = true; room && sent < REQUESTS; sent++) {
        size_t done = 0;
        struct pollfd wait = {.fd = link.control, .events = POLLOUT};
        while (room && done < message.size) {
            ssize_t now = send(link.control, message.bytes + done, message.size - done,
                               MSG_NOSIGNAL | MSG_DONTWAIT);
            done += now > 0 ? (size_t)now : 0;
            room = now > 0 || poll(&wait, 1, 300) == 1;
        }
        if (sent % (REQUESTS / 8) == 0)
            check_honest(&bed);
    }
    check_honest(&bed);
    assert_true(sent < REQUESTS || UNDER_TSAN || UNDER_ASAN);
    // All that concerns it ends nevertheless.
    uint64_t start = now_ms();
    assert_ok(end_unlink(&bed.owner, RAW_STRANGER, 0, true));
    assert_ok(llm_unregister_kv_cache(bed.owner.dd, bed.kv.id));
    assert_true(now_ms() - start < BOUND_MS);
    raw_link_close(&link);
    bed_close(&bed);
}

// ---- a puller on the host that stands still in the middle of its copy ----

static void
stopped_puller(bool registered, bool finalize)
{
    struct end owner;
    struct kv kv;
    struct other puller = {0};
    struct end_setup setup = {
        .id = RAW_PROMPT,
        .transports = "shm",
        .listens = true,
        .sync_ms = SYNC_MS,
        .liveness_ms = LIVENESS_MS,
    };
    end_open(&owner, &setup);
    if (registered)
        kv_open(&kv, &owner, TENSORS, SLOTS, STRIDE);
    else
        kv_allocate(&kv, &owner, TENSORS, SLOTS, STRIDE);
    kv_fill(&kv, 5);
    setup = (struct end_setup){.id = HONEST, .transports = "shm", .liveness_ms = LIVENESS_MS};
    other_open(&puller, &setup);
    other_cache(&puller, 0, registered, TENSORS, SLOTS, STRIDE);
    assert_status((llm_status)other_link(&puller, RAW_PROMPT, owner.port), LLM_SUCCESS);
    struct job job = {.peer = RAW_PROMPT,
                      .remote = kv.id,
                      .count = SLOTS,
                      .repeat = 96,
                      .timeout_ms = 2 * PATIENCE_MS};
    other_begin(&puller, &job, 0);
    AWAIT(lli_links_is_read(&owner.dd->node, 0));
    process_stop(&puller.process);

    uint64_t start = now_ms();
    if (finalize)
        llm_finalize(owner.dd);
    else if (registered)
        assert_ok(llm_unregister_kv_cache(owner.dd, kv.id));
    else
        assert_ok(llm_deallocate_cache(owner.dd, kv.id));
    uint64_t took = now_ms() - start;
    if (took > BOUND_MS)
        fail_msg("it took %llu ms, expected at most %d", (unsigned long long)took, BOUND_MS);
    // The memory is somebody else's, or nobody's.
    kv_unmap(&kv);
    if (!finalize && !registered) {
        struct kv next;
        AWAIT(bytes_used(&owner) == 0);
        kv_allocate(&next, &owner, TENSORS, SLOTS, STRIDE);
        kv_fill(&next, 6);
        kv_free(&next);
    }
    process_continue(&puller.process);
    llm_status status = other_end(&puller);
    if (status != LLM_KV_CACHE_NOT_EXIST && status != LLM_FAILED)
        fail_msg("the pull answers %s", llm_status_name(status));
    assert_true(process_join(&puller.process));
    end_close(&owner);
    kv_free(&kv);
}

static void
test_a_puller_stops_and_memory_is_deallocated(void **state)
{
    (void)state;
    stopped_puller(false, false);
}

static void
test_a_puller_stops_and_memory_is_unregistered(void **state)
{
    (void)state;
    stopped_puller(true, false);
}

static void
test_a_puller_stops_and_its_owner_is_finalized(void **state)
{
    (void)state;
    stopped_puller(false, true);
    stopped_puller(true, true);
}

// ---- both ends unlink at once ----

static void *
unlink_stranger(void *arg)
{
    struct end *owner = arg;
    return (void *)(uintptr_t)end_unlink(owner, RAW_STRANGER, 0, false);
}

// Each end hears the other's word before the answer to its own, and closes the connection on which
// that would have come.
static void
cross_unlinks(struct end *owner)
{
    struct raw_link link;
    struct lli_message_header header;
    uint8_t body[4096];
    pthread_t thread;
    void *status;
    raw_link_open(&link, owner->port, RAW_STRANGER);
    uint64_t start = now_ms();
    assert_int_equal(pthread_create(&thread, NULL, unlink_stranger, owner), 0);
    assert_true(raw_hear(link.control, &header, body));
    assert_int_equal(header.type, LLI_UNLINK);
    assert_true(raw_say(link.control, LLI_UNLINK, 0, NULL, 0));
    assert_int_equal(raw_hear_status(link.control, LLI_UNLINK_REPLY, 0), LLM_SUCCESS);
    pthread_join(thread, &status);
    uint64_t took = now_ms() - start;
    assert_status((llm_status)(uintptr_t)status, LLM_SUCCESS);
    if (took > BOUND_MS)
        fail_msg("it took %llu ms, expected at most %d", (unsigned long long)took, BOUND_MS);
    raw_link_close(&link);
}

static void
test_unlinks_that_cross(void **state)
{
    struct bed bed;
    (void)state;
    bed_open(&bed);
    // Most of the times the caller waits already when the other's word comes.
    for (int i = 0; i < 100; i++)
        cross_unlinks(&bed.owner);
    bed_close(&bed);
}

static const struct CMUnitTest tests[] = {
    KIT_TEST(test_a_forced_unlink_ends_what_a_peer_reads_nothing_of),
    KIT_TEST(test_a_forced_unlink_leaves_an_announced_reader_behind),
    KIT_TEST(test_a_forced_unlink_leaves_own_transfers_alone),
    KIT_TEST(test_memory_comes_back_although_a_peer_reads_nothing_of_it),
    KIT_TEST(test_unregister_while_an_own_pull_gets_nothing),
    KIT_TEST(test_unregister_while_an_own_push_is_not_answered),
    KIT_TEST(test_a_lease_is_closed_while_a_peer_reads_a_trickle),
    KIT_TEST(test_push_to_a_peer_that_never_answers),
    KIT_TEST(test_a_peer_that_never_reads_its_answers),
    KIT_TEST(test_a_puller_stops_and_memory_is_deallocated),
    KIT_TEST(test_a_puller_stops_and_memory_is_unregistered),
    KIT_TEST(test_a_puller_stops_and_its_owner_is_finalized),
    KIT_TEST(test_unlinks_that_cross),
    KIT_TEST(test_unregister_while_a_peer_reads_a_trickle),
    KIT_TEST(test_unregister_while_a_peer_writes_a_trickle),
    KIT_TEST(test_unregister_while_a_pull_waits_for_its_turn),
};

int
main(int argc, char **argv)
{
    return kit_main(argc, argv, tests, LENGTH(tests));
}

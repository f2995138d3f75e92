// Notifications: what the peer's application gets once the last byte of a transfer has arrived.
#include <poll.h>
#include <unistd.h>

#include "registered/kit.h"

enum { HERE = 61, THERE = 62, THIRD = 63, SEED = 8 };
enum { TENSORS = 4, SLOTS = 16, STRIDE = 4099 };
enum { FROM = 0, TO = 1 };
enum { NOTIFICATIONS_MAX = 16384 };

struct bed {
    struct end end;
    struct end peer;
    struct kv own;
    struct kv theirs;
};

static void
open_bed(struct bed *bed, uint64_t stride)
{
    struct end_setup setup = {.id = HERE};
    end_open(&bed->end, &setup);
    setup = (struct end_setup){.id = THERE, .listens = true};
    end_open(&bed->peer, &setup);
    assert_ok(end_link(&bed->end, THERE, bed->peer.port));
    kv_open(&bed->own, &bed->end, TENSORS, SLOTS, stride);
    kv_open(&bed->theirs, &bed->peer, TENSORS, SLOTS, stride);
}

static void
close_bed(struct bed *bed)
{
    end_close(&bed->end);
    end_close(&bed->peer);
    kv_free(&bed->own);
    kv_free(&bed->theirs);
}

static llm_status
run_or_start(const struct job *job, struct end *end, const struct kv *local, bool started)
{
    uint64_t id;
    if (!started)
        return job_run(job, end, local);
    assert_ok(job_start(job, end, local, &id));
    llm_status status = llm_transfer_wait(end->dd, id, -1);
    assert_ok(llm_transfer_release(end->dd, id));
    return status;
}

static void
assert_no_note(struct end *end)
{
    uint8_t bytes[LLM_NOTIFICATION_BYTES_MAX];
    size_t num_bytes;
    assert_status(llm_poll_notification(end->dd, NULL, bytes, sizeof(bytes), &num_bytes),
                  LLM_NO_NOTIFICATION);
}

static struct job
note_of(const struct bed *bed, bool push, const void *note, size_t note_bytes)
{
    return (struct job){
        .push = push,
        .peer = THERE,
        .remote = bed->theirs.id,
        .count = SLOTS,
        .note = note,
        .note_bytes = note_bytes,
    };
}

static void
test_every_kind_of_transfer_notifies(void **state)
{
    (void)state;
    struct bed bed;
    open_bed(&bed, STRIDE);
    for (unsigned i = 0; i < 8; i++) {
        bool push = (i & 1) != 0;
        char note[32];
        snprintf(note, sizeof(note), "transfer %u", i);
        struct job job = note_of(&bed, push, note, strlen(note));
        job.slot = (i & 4) != 0;
        if (job.slot)
            job.count = job.shift = 3;
        kv_fill(push ? &bed.own : &bed.theirs, SEED + i);
        kv_fill(push ? &bed.theirs : &bed.own, 0);
        assert_ok(run_or_start(&job, &bed.end, &bed.own, (i & 2) != 0));
        await_note(&bed.peer, HERE, note, strlen(note));
        assert_true(kv_slot_holds(push ? &bed.theirs : &bed.own, 2, 3, SEED + i, 2, 3));
        assert_no_note(&bed.peer);
        assert_no_note(&bed.end);
    }
    close_bed(&bed);
}

// The receiver of a push looks at its memory when the notification is there, and at nothing else.
static void
test_the_bytes_are_there_when_the_notification_is(void **state)
{
    (void)state;
    struct bed bed;
    open_bed(&bed, SCALED(1 << 16, 1 << 14) + 1);
    for (uint64_t i = 1; i <= SCALED(20, 6); i++) {
        uint64_t id;
        struct job job = note_of(&bed, true, &i, sizeof(i));
        kv_fill(&bed.own, i);
        kv_fill(&bed.theirs, 0);
        assert_ok(job_start(&job, &bed.end, &bed.own, &id));
        await_note(&bed.peer, HERE, &i, sizeof(i));
        assert_true(kv_holds(&bed.theirs, i, SLOTS, 0));
        assert_ok(llm_transfer_wait(bed.end.dd, id, -1));
        assert_ok(llm_transfer_release(bed.end.dd, id));
    }
    close_bed(&bed);
}

// One after the other, in the order in which the transfers have ended.
static void
test_notifications_keep_their_order(void **state)
{
    (void)state;
    enum { MANY = 200 };
    struct bed bed;
    open_bed(&bed, 64);
    for (uint32_t i = 0; i < MANY; i++) {
        struct job job = note_of(&bed, i % 3 == 0, &i, sizeof(i));
        assert_ok(run_or_start(&job, &bed.end, &bed.own, i % 2 == 0));
    }
    for (uint32_t i = 0; i < MANY; i++)
        await_note(&bed.peer, HERE, &i, sizeof(i));
    assert_no_note(&bed.peer);
    close_bed(&bed);
}

static void
test_sizes_from_nothing_to_the_limit(void **state)
{
    (void)state;
    struct bed bed;
    uint8_t note[LLM_NOTIFICATION_BYTES_MAX + 1];
    static const size_t sizes[] = {1, 2, 7, 4095, 4096};
    for (size_t i = 0; i < sizeof(note); i++)
        note[i] = (uint8_t)(i * 31 + 5);
    open_bed(&bed, 64);
    for (unsigned i = 0; i < 4; i++) {
        bool push = (i & 1) != 0;
        bool started = (i & 2) != 0;
        uint64_t id = 4711;
        for (size_t j = 0; j < LENGTH(sizes); j++) {
            struct job job = note_of(&bed, push, note, sizes[j]);
            assert_ok(run_or_start(&job, &bed.end, &bed.own, started));
            await_note(&bed.peer, HERE, note, sizes[j]);
        }
        // No bytes are no notification, with or without an address.
        struct job job = note_of(&bed, push, note, 0);
        assert_ok(run_or_start(&job, &bed.end, &bed.own, started));
        job = note_of(&bed, push, NULL, 0);
        assert_ok(run_or_start(&job, &bed.end, &bed.own, started));
        // Too many, or bytes from nowhere: nothing moves.
        kv_fill(push ? &bed.own : &bed.theirs, SEED);
        kv_fill(push ? &bed.theirs : &bed.own, 0);
        job = note_of(&bed, push, note, LLM_NOTIFICATION_BYTES_MAX + 1);
        assert_status(job_run(&job, &bed.end, &bed.own), LLM_PARAM_INVALID);
        assert_status(job_start(&job, &bed.end, &bed.own, &id), LLM_PARAM_INVALID);
        job = note_of(&bed, push, NULL, 1);
        assert_status(job_run(&job, &bed.end, &bed.own), LLM_PARAM_INVALID);
        assert_status(job_start(&job, &bed.end, &bed.own, &id), LLM_PARAM_INVALID);
        assert_true(kv_holds(push ? &bed.theirs : &bed.own, 0, 0, 0));
        assert_int_equal(id, 4711);
    }
    assert_no_note(&bed.peer);
    close_bed(&bed);
}

static void
test_too_little_room_keeps_the_notification(void **state)
{
    (void)state;
    struct bed bed;
    uint8_t got[16];
    uint64_t from = 4711;
    size_t num_bytes = 4711;
    open_bed(&bed, 64);
    assert_status(llm_poll_notification(bed.peer.dd, &from, got, sizeof(got), &num_bytes),
                  LLM_NO_NOTIFICATION);
    assert_int_equal(from, 4711);
    struct job job = note_of(&bed, true, "0123456789", 10);
    assert_ok(job_run(&job, &bed.end, &bed.own));
    memset(got, 0x77, sizeof(got));
    assert_status(llm_poll_notification(bed.peer.dd, &from, got, 9, &num_bytes), LLM_PARAM_INVALID);
    assert_int_equal(num_bytes, 10);
    assert_int_equal(got[0], 0x77);
    num_bytes = 0;
    assert_status(llm_poll_notification(bed.peer.dd, &from, NULL, 0, &num_bytes),
                  LLM_PARAM_INVALID);
    assert_int_equal(num_bytes, 10);
    assert_status(llm_poll_notification(bed.peer.dd, &from, NULL, 10, &num_bytes),
                  LLM_PARAM_INVALID);
    assert_status(llm_poll_notification(bed.peer.dd, &from, got, 10, NULL), LLM_PARAM_INVALID);
    assert_ok(llm_poll_notification(bed.peer.dd, &from, got, 10, &num_bytes));
    assert_int_equal(from, HERE);
    assert_int_equal(num_bytes, 10);
    assert_memory_equal(got, "0123456789", 10);
    assert_int_equal(got[10], 0x77);
    assert_no_note(&bed.peer);
    close_bed(&bed);
}

static void
test_the_eventfd_of_notifications(void **state)
{
    (void)state;
    struct bed bed;
    uint64_t count;
    assert_int_equal(llm_notification_fd(NULL), -1);
    open_bed(&bed, 64);
    struct pollfd wait = {.fd = llm_notification_fd(bed.peer.dd), .events = POLLIN};
    assert_true(wait.fd >= 0);
    assert_int_equal(poll(&wait, 1, 0), 0);
    for (unsigned push = 0; push < 2; push++) {
        struct job job = note_of(&bed, push != 0, "x", 1);
        assert_ok(job_run(&job, &bed.end, &bed.own));
        assert_int_equal(poll(&wait, 1, PATIENCE_MS), 1);
        assert_int_equal(read(wait.fd, &count, sizeof(count)), sizeof(count));
        assert_int_equal(poll(&wait, 1, 0), 0);
        await_note(&bed.peer, HERE, "x", 1);
    }
    llm_finalize(bed.peer.dd);
    assert_int_equal(llm_notification_fd(bed.peer.dd), -1);
    size_t num_bytes;
    assert_status(llm_poll_notification(bed.peer.dd, NULL, NULL, 0, &num_bytes), LLM_FAILED);
    close_bed(&bed);
}

static void
test_a_failed_transfer_notifies_nobody(void **state)
{
    (void)state;
    struct bed bed;
    uint64_t id;
    open_bed(&bed, 4096);
    for (unsigned push = 0; push < 2; push++) {
        struct job job = note_of(&bed, push != 0, "failed", 6);
        job.remote = 4711;
        assert_status(job_run(&job, &bed.end, &bed.own), LLM_KV_CACHE_NOT_EXIST);
        job = note_of(&bed, push != 0, "failed", 6);
        job.repeat = 2000;
        assert_ok(job_start(&job, &bed.end, &bed.own, &id));
        assert_ok(llm_transfer_cancel(bed.end.dd, id));
        assert_status(llm_transfer_poll(bed.end.dd, id), LLM_TRANSFER_CANCELLED);
        assert_ok(llm_transfer_release(bed.end.dd, id));
        // What comes next is the next.
        job = note_of(&bed, push != 0, "fine", 4);
        assert_ok(job_run(&job, &bed.end, &bed.own));
        await_note(&bed.peer, HERE, "fine", 4);
    }
    assert_no_note(&bed.peer);
    close_bed(&bed);
}

static void
test_notifications_of_several_peers_name_their_senders(void **state)
{
    (void)state;
    struct bed bed;
    struct end third;
    struct kv of_third;
    unsigned num_notes = 0;
    open_bed(&bed, 64);
    struct end_setup setup = {.id = THIRD};
    end_open(&third, &setup);
    assert_ok(end_link(&third, THERE, bed.peer.port));
    kv_open(&of_third, &third, TENSORS, SLOTS, 64);
    struct job job = note_of(&bed, true, NULL, 0);
    for (uint64_t i = 0; i < 20; i++) {
        uint64_t id = i % 2 == 0 ? HERE : THIRD;
        job.note = &id;
        job.note_bytes = sizeof(id);
        job.push = i % 3 != 0;
        assert_ok(i % 2 == 0 ? job_run(&job, &bed.end, &bed.own)
                             : job_run(&job, &third, &of_third));
    }
    while (num_notes < 20) {
        uint64_t from = 0;
        uint64_t said = 1;
        size_t num_bytes;
        llm_status status =
            llm_poll_notification(bed.peer.dd, &from, &said, sizeof(said), &num_bytes);
        if (status == LLM_NO_NOTIFICATION)
            continue;
        assert_ok(status);
        assert_int_equal(from, said);
        num_notes++;
    }
    end_close(&third);
    kv_free(&of_third);
    close_bed(&bed);
}

// The peer's application never polls: pushes are told so, and the link bears no grudge.
static void
test_a_peer_that_never_polls(void **state)
{
    (void)state;
    struct bed bed;
    llm_status status = LLM_SUCCESS;
    unsigned num_taken = 0;
    open_bed(&bed, 8);
    for (uint32_t i = 0; i < NOTIFICATIONS_MAX; i++) {
        struct job job = note_of(&bed, true, &i, sizeof(i));
        job.slot = true;
        job.count = 0;
        assert_ok(job_run(&job, &bed.end, &bed.own));
    }
    kv_fill(&bed.own, SEED);
    kv_fill(&bed.theirs, 0);
    struct job one = note_of(&bed, true, "more", 4);
    assert_status(job_run(&one, &bed.end, &bed.own), LLM_LINK_BUSY);
    assert_status(run_or_start(&one, &bed.end, &bed.own, true), LLM_LINK_BUSY);
    assert_int_equal(end_state(&bed.end, THERE, NULL), LLM_LINK_READY);
    // Nothing has moved, and what carries no notification moves on.
    assert_true(kv_holds(&bed.theirs, 0, 0, 0));
    struct job silent = note_of(&bed, true, NULL, 0);
    assert_ok(job_run(&silent, &bed.end, &bed.own));
    // A pull has its bytes in any case; only its notification has nowhere to go.
    struct job pull = note_of(&bed, false, "pull", 4);
    status = job_run(&pull, &bed.end, &bed.own);
    print_message("a pull with a notification that finds no room: %s\n", llm_status_name(status));
    assert_true(status == LLM_SUCCESS || status == LLM_LINK_BUSY);
    // The notification of a pull may still be on its way; a push comes after it.
    assert_ok(job_run(&silent, &bed.end, &bed.own));
    for (uint32_t i = 0; i < NOTIFICATIONS_MAX; i++) {
        await_note(&bed.peer, HERE, &i, sizeof(i));
        if (num_taken++ == 0)
            assert_ok(job_run(&one, &bed.end, &bed.own));
    }
    await_note(&bed.peer, HERE, "more", 4);
    assert_no_note(&bed.peer);
    assert_int_equal(end_state(&bed.end, THERE, NULL), LLM_LINK_READY);
    close_bed(&bed);
}

// ---- between processes ----

static void
notify_between(bool registered)
{
    struct end here;
    struct other there = {0};
    struct kv own;
    struct end_setup setup = {.id = HERE};
    end_open(&here, &setup);
    setup = (struct end_setup){.id = THERE, .listens = true};
    other_open(&there, &setup);
    assert_ok(end_link(&here, THERE, there.port));
    if (registered)
        kv_open(&own, &here, TENSORS, SLOTS, STRIDE);
    else
        kv_allocate(&own, &here, TENSORS, SLOTS, STRIDE);
    int64_t remote = other_cache(&there, FROM, registered, TENSORS, SLOTS, STRIDE);
    for (unsigned i = 0; i < 40; i++) {
        uint8_t note[100] = {0};
        uint64_t id;
        bool push = i % 2 != 0;
        struct job job = {
            .push = push,
            .peer = THERE,
            .remote = remote,
            .count = SLOTS,
            .note = note,
            .note_bytes = i + 1,
        };
        other_fill(&there, FROM, push ? 0 : i + 1);
        kv_fill(&own, push ? i + 1 : 0);
        assert_ok(job_start(&job, &here, &own, &id));
        // The process there knows when it has the bytes without another word from here.
        uint64_t length;
        AWAIT((length = other_ask(&there, "note")) != 0);
        assert_int_equal(length, i + 1);
        assert_true(other_holds(&there, FROM, i + 1, SLOTS, 0));
        assert_ok(llm_transfer_wait(here.dd, id, -1));
        assert_true(kv_holds(&own, i + 1, SLOTS, 0));
        assert_ok(llm_transfer_release(here.dd, id));
    }
    assert_int_equal(other_ask(&there, "note"), 0);
    assert_true(process_join(&there.process));
    end_close(&here);
    kv_free(&own);
}

static void
test_notifications_between_processes(void **state)
{
    (void)state;
    if (is_transport("local"))
        skip();
    notify_between(true);
    notify_between(false);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_every_kind_of_transfer_notifies),
        KIT_TEST(test_the_bytes_are_there_when_the_notification_is),
        KIT_TEST(test_notifications_keep_their_order),
        KIT_TEST(test_sizes_from_nothing_to_the_limit),
        KIT_TEST(test_too_little_room_keeps_the_notification),
        KIT_TEST(test_the_eventfd_of_notifications),
        KIT_TEST(test_a_failed_transfer_notifies_nobody),
        KIT_TEST(test_notifications_of_several_peers_name_their_senders),
        KIT_TEST(test_a_peer_that_never_polls),
        KIT_TEST(test_notifications_between_processes),
    };
    return kit_main(argc, argv, tests, LENGTH(tests));
}

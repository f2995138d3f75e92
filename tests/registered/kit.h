// A cluster in a test of registered memory: an instance, memory of the test's own at odd addresses,
// and bytes that follow from a seed and a place.  Around every tensor lie bytes that nobody may
// touch.  Another process does the same by commands: kit_serve.
#ifndef LLM_TEST_KIT_H
#define LLM_TEST_KIT_H

#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "llm_datadist/llm_datadist_c.h"
#include "multi/process.h"

// The library's thread writes and reads for a peer; what orders that with the test is a word between
// processes, or between instances, which the thread sanitizer can't see.
#define QUIET __attribute__((no_sanitize("thread")))

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define assert_ok(call) assert_status((call), LLM_SUCCESS)
#define assert_status(call, expected) check_status((call), (expected), #call, __FILE__, __LINE__)
void check_status(llm_status status, llm_status expected, const char *call, const char *file,
                  int line);

// Waits for an event by looking again and again; it must come.
#define AWAIT(condition)                                                                           \
    do {                                                                                           \
        uint64_t await_deadline_ = now_ms() + PATIENCE_MS;                                         \
        while (!(condition)) {                                                                     \
            if (now_ms() > await_deadline_)                                                        \
                fail_msg("%s:%d: %s did not come", __FILE__, __LINE__, #condition);                \
            sched_yield();                                                                         \
        }                                                                                          \
    } while (0)

// ---- instances ----

struct end {
    llm_datadist *dd;
    uint64_t id;
    uint16_t port; // 0: doesn't listen
};

struct end_setup {
    uint64_t id;
    unsigned role; // 0 means Prompt for one that listens, else Decoder
    const char *transports;
    bool version_1; // nothing asks for version 2
    bool listens;
    bool listens_later;   // once version 2 holds
    bool checksum;        // asks for crc32c
    bool copies_alone;    // one thread copies a pull; of this process' ends only
    uint16_t port;        // at which it listens, if that is free; 0 means any
    unsigned sync_ms;     // 0 means long
    unsigned liveness_ms; // 0 means long enough for a slow machine
    unsigned dead_ms;     // 0 means the default
};

llm_status end_try_open(struct end *end, const struct end_setup *setup);
void end_open(struct end *end, const struct end_setup *setup);
void end_close(struct end *end);

// Who listens is linked by who doesn't; as_id: the peer's id, or 0.
llm_status end_link(struct end *end, uint64_t as_id, uint16_t port);
llm_status end_unlink(struct end *end, uint64_t id, uint16_t port, bool force);
// LLM_LINK_READY, _SUSPECT, _BROKEN, or 0 without a link; info may be NULL.
unsigned end_state(const struct end *end, uint64_t id, llm_link_info *info);

// ---- caches ----

struct kv {
    int64_t id; // 0: none
    uint32_t num_tensors;
    uint64_t num_slots;
    uint64_t stride;
    uint64_t *addresses; // num_tensors
    uint8_t *arena;      // of registered memory; NULL: unmapped, or the library's
    size_t arena_bytes;
};

enum layout {
    LAYOUT_ODD = 0,   // every tensor at another distance from any alignment
    LAYOUT_PAGES = 1, // page-aligned
};

// Memory for a cache, not yet registered.
void kv_map(struct kv *kv, enum layout layout, uint32_t num_tensors, uint64_t num_slots,
            uint64_t stride);
void kv_register(struct kv *kv, struct end *end);
// Both at once, at odd addresses.
void kv_open(struct kv *kv, struct end *end, uint32_t num_tensors, uint64_t num_slots,
             uint64_t stride);
void kv_allocate(struct kv *kv, struct end *end, uint32_t num_tensors, uint64_t num_slots,
                 uint64_t stride);
void kv_unmap(struct kv *kv);
// Forgets, and unmaps what is mapped.
void kv_free(struct kv *kv);
// A cache in a call: the id alone.
llm_cache kv_cache(const struct kv *kv);

// 0 stands for zeros.
void kv_fill(struct kv *kv, uint64_t seed);
// Does the slot hold what `seed` stands for at that other place?
bool kv_slot_holds(const struct kv *kv, uint32_t tensor, uint64_t slot, uint64_t seed,
                   uint32_t seed_tensor, uint64_t seed_slot);
// Slot (i + shift) % count holds slot i of the seed, for i < count, the others zeros; nothing around
// the tensors was touched.
bool kv_holds(const struct kv *kv, uint64_t seed, uint64_t count, uint64_t shift);
bool kv_is_intact_around(const struct kv *kv);
uint64_t kv_checksum(const struct kv *kv);

// ---- transfers ----

struct job {
    bool push;
    bool slot;      // slot `count` to slot `shift`; otherwise blocks as in kv_holds
    uint64_t peer;  // cluster
    int64_t remote; // cache
    uint64_t count;
    uint64_t shift;
    unsigned repeat;  // the list of blocks so many times over; 0 means once
    const void *note; // notification
    size_t note_bytes;
    uint32_t timeout_ms;
    llm_interrupt interrupted;
    void *interrupted_arg;
};

llm_status job_run(const struct job *job, struct end *end, const struct kv *local);
llm_status job_start(const struct job *job, struct end *end, const struct kv *local,
                     uint64_t *ret_id);
// Polls until it has come; its bytes must be these.
void await_note(struct end *end, uint64_t from, const void *bytes, size_t num_bytes);

// ---- another process ----

int kit_serve(struct talk *talk);
// For commands of a test's own: true if it was one of them.
extern bool (*kit_obeys)(struct talk *talk, const char *command, const char *words);

struct other {
    struct process process;
    uint64_t id;
    uint16_t port;
};

// Says a line and expects a number.
uint64_t other_ask(struct other *other, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void other_start(struct other *other);
void other_open(struct other *other, const struct end_setup *setup);
// Caches have small numbers there; the id.
int64_t other_cache(struct other *other, unsigned index, bool registered, uint32_t num_tensors,
                    uint64_t num_slots, uint64_t stride);
void other_fill(struct other *other, unsigned index, uint64_t seed);
bool other_holds(struct other *other, unsigned index, uint64_t seed, uint64_t count,
                 uint64_t shift);
llm_status other_link(struct other *other, uint64_t as_id, uint16_t port);
// Runs a transfer there, without a notification.
llm_status other_run(struct other *other, const struct job *job, unsigned index);
void other_begin(struct other *other, const struct job *job, unsigned index);
llm_status other_end(struct other *other);

// Where this process' instances listen and link from, and where they find their peers.
extern const char *own_ip;
extern const char *peer_ip;

// The programs: the role of another process, or the transport in argv[1].
extern const char *transport;
bool is_transport(const char *name);
int kit_tear_down(void **state);
#define KIT_TEST(test) cmocka_unit_test_teardown(test, kit_tear_down)
int kit_main(int argc, char **argv, const struct CMUnitTest *tests, size_t num_tests);

#endif

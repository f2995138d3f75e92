// What the conformance tests share: instances, links, caches with a model of their bytes, and the
// proof that checks come in the specification's order.
//
// Every program takes a transport and a number of devices:  conformance_6_links tcp 2
#ifndef LLM_CONFORMANCE_SUITE_H
#define LLM_CONFORMANCE_SUITE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "llm_datadist/llm_datadist_c.h"

enum { DEVICES_MAX = 4, LINK_TIMEOUT_MS = 20000, SENTINEL = 0x5E47 };

struct suite {
    const char *transport; // "local", "shm" or "tcp"
    size_t num_devices;    // of the instances that tests link with each other
    uint64_t seed;         // for the randomised ones
    const char *host;      // "127.0.0.1", or what LLM_TEST_HOST says
    unsigned scale;        // percent of the usual number of rounds; less under sanitizers
};
extern struct suite suite;

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

// Reads the command line and runs the tests: CONFORMANCE_MAIN(tests) is a program's main.
int suite_main(int argc, char **argv, const char *name, const struct CMUnitTest *tests,
               size_t num_tests);
#define CONFORMANCE_MAIN(name, tests)                                                              \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        return suite_main(argc, argv, (name), (tests), COUNT_OF(tests));                           \
    }

// `count`, fewer where everything is slower, at least one.
unsigned rounds(unsigned count);

// ---- statuses ----

void check_status(llm_status actual, llm_status expected, const char *says, const char *file,
                  int line);
#define assert_status(actual, expected) check_status((actual), (expected), NULL, __FILE__, __LINE__)
#define assert_ok(actual) assert_status((actual), LLM_SUCCESS)
// The explanation of the failure must contain `text` too.
#define assert_status_says(actual, expected, text)                                                 \
    check_status((actual), (expected), (text), __FILE__, __LINE__)

// ---- instances ----

struct party {
    llm_datadist *dd; // NULL when closed
    uint64_t id;
    size_t num_devices;
    llm_ip_info address[DEVICES_MAX]; // where it listens
};

struct party_options {
    size_t num_devices;      // 0: the suite's
    const char *transports;  // NULL: the suite's
    const char *sync_ms;     // NULL: enough for a slow machine
    const char *listen;      // NULL: any port on the loopback, for every device
    const char *liveness_ms; // NULL: enough for a slow machine
    bool set_role;
};

void open_party(struct party *party, uint64_t id, llm_role role);
void open_party_with(struct party *party, uint64_t id, llm_role role,
                     const struct party_options *options);
void close_party(struct party *party);
// After a change of listener.
void read_ports(struct party *party);

extern llm_ip_info loopback[DEVICES_MAX];
// How a decoder names a prompt.
llm_cluster_info cluster_of(const struct party *prompt);
llm_cluster_info cluster_at(uint64_t id, const llm_ip_info *address, size_t num_devices);
// How a prompt names a decoder.
llm_cluster_info cluster_back(const struct party *decoder);

// One cluster per call; `ret` may be NULL.
llm_status link_one(const struct party *decoder, const llm_cluster_info *cluster, llm_status *ret);
llm_status unlink_one(const struct party *party, const llm_cluster_info *cluster, bool force,
                      llm_status *ret);
void link_parties(const struct party *decoder, const struct party *prompt);
void unlink_parties(const struct party *decoder, const struct party *prompt);
bool is_linked(const struct party *party, uint64_t cluster_id);
size_t num_links(const struct party *party);

// A socket that is connected to by the kernel and never says a word; returns its port.
int open_silent_listener(uint16_t *ret_port);
// A port at which nobody listens.
uint16_t closed_port(void);

uint64_t now_ms(void);

// ---- caches, and what their bytes should be ----

struct kv {
    llm_cache cache;
    llm_cache_desc desc;
    int64_t shape[2];
    uintptr_t *addresses;
    size_t num_devices;
    size_t tensor_bytes;
    size_t stride;
    uint8_t *expected; // all tensors, one after the other
    bool by_hand;
};

void open_kv(struct kv *kv, const struct party *party, uint32_t num_tensors, int32_t data_type,
             int64_t num_slots, int64_t slot_elements);
// With int8 elements: the stride in bytes.
void open_bytes(struct kv *kv, const struct party *party, uint32_t num_tensors, int64_t num_slots,
                int64_t stride);
// Made by hand, out of the test's own memory.
void make_bytes(struct kv *kv, llm_placement placement, size_t num_devices, uint32_t num_tensors,
                int64_t num_slots, int64_t stride);
// Frees the structs alone; the cache goes with its instance.
void forget_kv(struct kv *kv);
// Other bytes in every place, known to the model.
void fill_kv(struct kv *kv, uint64_t seed);
// The same byte everywhere.
void fill_kv_with(struct kv *kv, uint8_t byte);
// The model's copy, between tensors of all devices.
void expect_copy(struct kv *dst, uint32_t dst_tensor, size_t dst_offset, const struct kv *src,
                 uint32_t src_tensor, size_t src_offset, size_t bytes);
void expect_slot(struct kv *dst, uint32_t dst_tensor, size_t dst_slot, const struct kv *src,
                 uint32_t src_tensor, size_t src_slot, size_t bytes);
// Is every byte what the model says?
void check_kv(const struct kv *kv, const char *file, int line);
#define assert_kv(kv) check_kv((kv), __FILE__, __LINE__)

llm_cache_index index_of(const struct party *party, const struct kv *kv, uint32_t batch_index);
llm_kv_cache_ext_param layers(int32_t src_first, int32_t src_last, int32_t dst_first,
                              int32_t dst_last, uint32_t tensors_per_layer);

// ---- the order of checks ----

// One way to violate one check of a call.
struct breach {
    unsigned check;
    llm_status status;
    const char *says;   // part of the explanation, so that two checks with one status differ
    unsigned conflicts; // breaches that share a bit can't be committed together
    void (*commit)(void *call);
};

struct proof {
    const struct breach *breaches; // in the order of the checks
    size_t num_breaches;
    void *call;                // the arguments
    void (*reset)(void *call); // makes them valid
    llm_status (*run)(void *call);
    void (*unharmed)(void *call); // asserts that nothing has moved; NULL = nothing to look at
};

// Every breach of this check has its status, alone and together with any breach of a later check.
void prove_check(const struct proof *proof, unsigned check);

// A file with such a proof has a `struct call` and a function prove(void **state, unsigned check).
#define COMMIT(name, ...)                                                                          \
    static void name(void *arg)                                                                    \
    {                                                                                              \
        struct call *call = arg;                                                                   \
        __VA_ARGS__                                                                                \
    }
#define PROVE(name, check)                                                                         \
    static void name(void **state)                                                                 \
    {                                                                                              \
        prove(state, (check));                                                                     \
    }

// ---- randomness ----

struct dice {
    uint64_t state;
};
uint64_t roll(struct dice *dice);
uint64_t roll_below(struct dice *dice, uint64_t end);
bool roll_chance(struct dice *dice, unsigned percent);

#endif

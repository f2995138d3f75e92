// A decoder and a prompt, linked, with caches: what the tests of transfers lie on.
#ifndef LLM_CONFORMANCE_BED_H
#define LLM_CONFORMANCE_BED_H

#include "suite.h"

enum { TENSORS = 4, SLOTS = 4, STRIDE = 64, NO_CACHE = 987654, NOBODY = 4711 };

struct bed {
    struct party decoder;
    struct party prompt;
    struct party mix;
    llm_datadist *blank; // never initialised
    // TENSORS tensors of SLOTS slots of STRIDE bytes
    struct kv on_decoder;
    struct kv on_prompt;
    // the same with another stride: 2 * STRIDE, STRIDE / 2
    struct kv wide_on_decoder;
    struct kv wide_on_prompt;
    struct kv narrow_on_decoder;
    struct kv narrow_on_prompt;
    // as wide, with 2 tensors
    struct kv few_on_decoder;
    struct kv few_on_prompt;
    // STRIDE, 6 tensors
    struct kv many_on_decoder;
    struct kv many_on_prompt;
};

// For cmocka: *state is the bed.
int set_up_bed(void **state);
// Pushes work with one device only.
int set_up_push_bed(void **state);
int tear_down_bed(void **state);
#define BED_TEST(test) cmocka_unit_test_setup_teardown(test, set_up_bed, tear_down_bed)
#define PUSH_TEST(test) cmocka_unit_test_setup_teardown(test, set_up_push_bed, tear_down_bed)

// Every byte of every cache is what the model says.
void check_bed(const struct bed *bed, const char *file, int line);
#define assert_bed(bed) check_bed((bed), __FILE__, __LINE__)

// The link carries a whole pull, whatever has happened before.
void assert_link_works(struct bed *bed);

#endif

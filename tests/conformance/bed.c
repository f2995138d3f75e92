#include "bed.h"

static int
open_bed(void **state, size_t num_devices)
{
    struct bed *bed = calloc(1, sizeof(*bed));
    struct party_options options = {.num_devices = num_devices};
    assert_non_null(bed);
    *state = bed;
    open_party_with(&bed->prompt, 1, LLM_ROLE_PROMPT, &options);
    open_party_with(&bed->decoder, 2, LLM_ROLE_DECODER, &options);
    open_party_with(&bed->mix, 3, LLM_ROLE_MIX, &options);
    assert_ok(llm_create(4, LLM_ROLE_DECODER, &bed->blank));
    // The ids of the two differ, so that one is not taken for the other.
    for (int i = 0; i < 20; i++) {
        struct kv kv;
        open_bytes(&kv, &bed->decoder, 1, 1, 8);
        assert_ok(llm_deallocate_cache(bed->decoder.dd, kv.cache.cache_id));
        forget_kv(&kv);
    }
    open_bytes(&bed->on_decoder, &bed->decoder, TENSORS, SLOTS, STRIDE);
    open_bytes(&bed->on_prompt, &bed->prompt, TENSORS, SLOTS, STRIDE);
    open_bytes(&bed->wide_on_decoder, &bed->decoder, TENSORS, SLOTS, STRIDE * 2);
    open_bytes(&bed->wide_on_prompt, &bed->prompt, TENSORS, SLOTS, STRIDE * 2);
    open_bytes(&bed->narrow_on_decoder, &bed->decoder, TENSORS, SLOTS, STRIDE / 2);
    open_bytes(&bed->narrow_on_prompt, &bed->prompt, TENSORS, SLOTS, STRIDE / 2);
    open_bytes(&bed->few_on_decoder, &bed->decoder, 2, SLOTS, STRIDE);
    open_bytes(&bed->few_on_prompt, &bed->prompt, 2, SLOTS, STRIDE);
    open_bytes(&bed->many_on_decoder, &bed->decoder, 6, SLOTS, STRIDE);
    open_bytes(&bed->many_on_prompt, &bed->prompt, 6, SLOTS, STRIDE);
    link_parties(&bed->decoder, &bed->prompt);
    return 0;
}

int
set_up_bed(void **state)
{
    return open_bed(state, suite.num_devices);
}

int
set_up_push_bed(void **state)
{
    return open_bed(state, 1);
}

int
tear_down_bed(void **state)
{
    struct bed *bed = *state;
    close_party(&bed->decoder);
    close_party(&bed->prompt);
    close_party(&bed->mix);
    llm_destroy(bed->blank);
    forget_kv(&bed->on_decoder);
    forget_kv(&bed->on_prompt);
    forget_kv(&bed->wide_on_decoder);
    forget_kv(&bed->wide_on_prompt);
    forget_kv(&bed->narrow_on_decoder);
    forget_kv(&bed->narrow_on_prompt);
    forget_kv(&bed->few_on_decoder);
    forget_kv(&bed->few_on_prompt);
    forget_kv(&bed->many_on_decoder);
    forget_kv(&bed->many_on_prompt);
    free(bed);
    return 0;
}

void
check_bed(const struct bed *bed, const char *file, int line)
{
    check_kv(&bed->on_decoder, file, line);
    check_kv(&bed->on_prompt, file, line);
    check_kv(&bed->wide_on_decoder, file, line);
    check_kv(&bed->wide_on_prompt, file, line);
    check_kv(&bed->narrow_on_decoder, file, line);
    check_kv(&bed->narrow_on_prompt, file, line);
    check_kv(&bed->few_on_decoder, file, line);
    check_kv(&bed->few_on_prompt, file, line);
    check_kv(&bed->many_on_decoder, file, line);
    check_kv(&bed->many_on_prompt, file, line);
}

void
assert_link_works(struct bed *bed)
{
    llm_cache_index from = index_of(&bed->prompt, &bed->on_prompt, 1);
    assert_ok(llm_pull_kv_cache(bed->decoder.dd, &from, &bed->on_decoder.cache, 2, -1, NULL));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_slot(&bed->on_decoder, t, 2, &bed->on_prompt, t, 1, STRIDE);
    assert_bed(bed);
}

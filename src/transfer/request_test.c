// What one side asks of the other: there and back, cut at every byte, and checked in order.
#include "transfer/request.h"

#include "base/mem.h"
#include "unit/unit.h"

enum { NUM_ADDRESSES = 3, ELEMENT_TYPE_BYTES = 4 };

static char why[256];
static uint64_t addresses[NUM_ADDRESSES] = {4096, UINT64_MAX, 1};

// ---- there and back ----

static struct lli_request
random_request(uint64_t seed, bool blocks, bool fetch, struct lli_block_run *runs,
               struct lli_block_run *source_runs)
{
    uint64_t random = seed;
    struct lli_request request = {
        .push = seed % 2 == 0,
        .version_2 = seed % 3 == 0,
        .kind = blocks ? LLI_REQUEST_BLOCKS : LLI_REQUEST_SLOT,
        .cache_id = (int64_t)unit_random(&random),
        .first_tensor = (uint32_t)unit_random(&random),
        .num_tensors = (uint32_t)unit_random(&random),
        .all_tensors = seed % 5 < 2,
        .tensors_per_layer = (uint32_t)unit_random(&random),
        .stride = unit_random(&random),
        .slot = unit_random(&random),
        .bytes = unit_random(&random),
        .fetch = fetch,
        .source_cache_id = (int64_t)unit_random(&random),
        .source_first_tensor = (uint32_t)unit_random(&random),
        .source_slot = unit_random(&random),
        .by = (enum lli_request_by)(seed % 3),
        .key = {.kind = (uint32_t)seed % 4,
                .id = unit_random(&random),
                .model_id = unit_random(&random),
                .stamp = unit_random(&random)},
        .generation = unit_random(&random),
        .offset = unit_random(&random),
        .start_position = unit_random(&random),
        .keep_key = seed % 11 < 5,
        .release_lease = seed % 13 < 6,
        .token = unit_random(&random),
        .element_type = (uint32_t)unit_random(&random),
    };
    if (request.by == LLI_BY_ADDRESS) {
        request.num_tensors = NUM_ADDRESSES;
        request.addresses = addresses;
    }
    if (blocks) {
        // Two runs on one side, three with as many blocks on the other.
        runs[0] = (struct lli_block_run){unit_random(&random), 5};
        runs[1] = (struct lli_block_run){unit_random(&random), 4};
        request.runs = runs;
        request.num_runs = 2;
        if (fetch) {
            for (size_t i = 0; i < 3; i++)
                source_runs[i] = (struct lli_block_run){unit_random(&random), 3};
            request.source_runs = source_runs;
            request.num_source_runs = 3;
        }
    }
    return request;
}

static void
assert_same_runs(const struct lli_block_run *a, const struct lli_block_run *b, size_t count)
{
    for (size_t i = 0; i < count; i++)
        assert_true(a[i].first == b[i].first && a[i].count == b[i].count);
}

static void
assert_same(const struct lli_request *a, const struct lli_request *b)
{
    assert_int_equal(a->push, b->push);
    assert_int_equal(a->version_2, b->version_2);
    assert_int_equal(a->kind, b->kind);
    assert_true(a->cache_id == b->cache_id);
    assert_int_equal(a->first_tensor, b->first_tensor);
    assert_int_equal(a->num_tensors, b->num_tensors);
    assert_int_equal(a->all_tensors, b->all_tensors);
    assert_int_equal(a->tensors_per_layer, b->tensors_per_layer);
    assert_true(a->stride == b->stride && a->slot == b->slot && a->bytes == b->bytes);
    assert_int_equal(a->num_runs, b->num_runs);
    assert_same_runs(a->runs, b->runs, a->num_runs);
    assert_int_equal(a->fetch, b->fetch);
    assert_true(a->source_cache_id == b->source_cache_id);
    assert_int_equal(a->source_first_tensor, b->source_first_tensor);
    assert_true(a->source_slot == b->source_slot);
    assert_int_equal(a->num_source_runs, b->num_source_runs);
    assert_same_runs(a->source_runs, b->source_runs, a->num_source_runs);
    assert_int_equal(a->by, b->by);
    assert_true(lli_key_equal(&a->key, &b->key) && a->key.stamp == b->key.stamp);
    assert_true(a->generation == b->generation && a->offset == b->offset);
    assert_true(a->start_position == b->start_position && a->token == b->token);
    assert_int_equal(a->keep_key, b->keep_key);
    assert_int_equal(a->release_lease, b->release_lease);
    assert_int_equal(a->element_type, b->element_type);
    if (a->by == LLI_BY_ADDRESS)
        assert_memory_equal(a->addresses, b->addresses, sizeof(addresses));
    assert_int_equal(a->notification_bytes, b->notification_bytes);
    if (a->notification_bytes > 0)
        assert_memory_equal(a->notification, b->notification, a->notification_bytes);
}

// The bytes of a request, allocated to the byte.
static uint8_t *
write_request(const struct lli_request *request, size_t *ret_size)
{
    struct lli_writer w;
    uint8_t *bytes = unit_alloc(lli_request_bytes(request));
    lli_writer_init(&w, bytes, lli_request_bytes(request));
    lli_request_write(&w, request);
    assert_false(w.failed);
    *ret_size = w.size;
    return bytes;
}

static bool
reads(const uint8_t *bytes, size_t size)
{
    struct lli_reader r;
    struct lli_request request;
    // A block of its own, so that AddressSanitizer sees a read beyond it.
    uint8_t *copy = unit_alloc(size);
    memcpy(copy, bytes, size);
    lli_reader_init(&r, copy, size);
    bool ok = lli_request_read(&r, true, &request);
    if (ok)
        lli_request_fini(&request);
    free(copy);
    return ok;
}

static void
test_a_request_comes_back_and_is_refused_when_cut(void **state)
{
    static const uint8_t notification[] = "the cache of request 7";
    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        struct lli_block_run runs[2];
        struct lli_block_run source_runs[3];
        struct lli_request in = random_request(seed, seed % 4 > 0, seed % 4 > 1, runs, source_runs);
        struct lli_request out;
        struct lli_reader r;
        size_t size;
        if (seed % 7 == 0) {
            in.notification = notification;
            in.notification_bytes = sizeof(notification);
        }
        uint8_t *bytes = write_request(&in, &size);
        lli_reader_init(&r, bytes, size);
        assert_true(lli_request_read(&r, in.push, &out));
        assert_int_equal(lli_read_left(&r), 0);
        assert_same(&in, &out);
        lli_request_fini(&out);
        assert_null(out.runs);
        lli_request_fini(&out);
        // Those of before it had a type end there.
        for (size_t cut = 0; cut < size; cut++)
            assert_int_equal(reads(bytes, cut), cut == size - ELEMENT_TYPE_BYTES);
        lli_reader_init(&r, bytes, size - ELEMENT_TYPE_BYTES);
        assert_true(lli_request_read(&r, in.push, &out));
        assert_int_equal(lli_request_data_type(&out), LLM_DT_UNDEFINED);
        lli_request_fini(&out);
        free(bytes);
    }
}

static void
test_bytes_of_later_versions_behind_it_are_skipped(void **state)
{
    struct lli_request in = random_request(1, false, false, NULL, NULL);
    size_t size;
    (void)state;
    uint8_t *bytes = write_request(&in, &size);
    uint8_t *longer = unit_alloc(size + 50);
    memcpy(longer, bytes, size);
    assert_true(reads(longer, size + 50));
    free(longer);
    free(bytes);
}

// ---- what is malformed ----

static bool
reads_back(const struct lli_request *request)
{
    size_t size;
    uint8_t *bytes = write_request(request, &size);
    bool ok = reads(bytes, size);
    free(bytes);
    return ok;
}

static void
test_kinds_and_runs_must_go_together(void **state)
{
    struct lli_block_run runs[] = {{1, 2}, {5, 1}};
    struct lli_request request = {.kind = LLI_REQUEST_SLOT};
    (void)state;
    assert_true(reads_back(&request));
    request.runs = runs;
    request.num_runs = 2;
    assert_false(reads_back(&request));
    request.kind = LLI_REQUEST_BLOCKS;
    assert_true(reads_back(&request));
    request.num_runs = 0;
    assert_false(reads_back(&request));
    request.num_runs = 2;
    request.kind = (enum lli_request_kind)2;
    assert_false(reads_back(&request));
    request.kind = LLI_REQUEST_SLOT;
    request.num_runs = 0;
    request.source_runs = runs;
    request.num_source_runs = 1;
    assert_false(reads_back(&request));
}

static void
test_runs_of_no_blocks_are_malformed(void **state)
{
    (void)state;
    for (size_t at = 0; at < 4; at++) {
        struct lli_block_run runs[] = {{1, 2}, {5, 1}};
        struct lli_block_run source_runs[] = {{1, 1}, {5, 2}};
        struct lli_request request = {
            .kind = LLI_REQUEST_BLOCKS,
            .fetch = true,
            .runs = runs,
            .num_runs = 2,
            .source_runs = source_runs,
            .num_source_runs = 2,
        };
        assert_true(reads_back(&request));
        (at < 2 ? &runs[at] : &source_runs[at - 2])->count = 0;
        assert_false(reads_back(&request));
    }
}

static void
test_both_sides_of_a_fetch_name_as_many_blocks(void **state)
{
    (void)state;
    for (uint64_t a = 1; a <= 5; a++) {
        for (uint64_t b = 1; b <= 5; b++) {
            struct lli_block_run runs[] = {{0, a}, {9, 1}};
            struct lli_block_run source_runs[] = {{0, b}};
            struct lli_request request = {
                .kind = LLI_REQUEST_BLOCKS,
                .fetch = true,
                .runs = runs,
                .num_runs = 2,
                .source_runs = source_runs,
                .num_source_runs = 1,
            };
            assert_int_equal(reads_back(&request), a + 1 == b);
        }
    }
}

static void
test_a_number_of_runs_is_believed_as_far_as_there_are_bytes(void **state)
{
    struct lli_block_run runs[] = {{1, 2}, {5, 1}};
    struct lli_request request = {.kind = LLI_REQUEST_BLOCKS, .runs = runs, .num_runs = 2};
    static const uint32_t numbers[] = {0, 1, 3, 100, UINT32_MAX, UINT32_MAX / 16 + 1, 1u << 28};
    size_t size;
    (void)state;
    uint8_t *bytes = write_request(&request, &size);
    // The number stands before its runs, the empty list of the source, no notification, the names, and
    // the type.
    size_t at = size - ELEMENT_TYPE_BYTES - 64 - 4 - 4 - 2 * 16 - 4;
    assert_int_equal(bytes[at], 2);
    for (size_t i = 0; i < LLI_COUNT(numbers); i++) {
        struct lli_writer w;
        lli_writer_init(&w, bytes + at, 4);
        lli_write_u32(&w, numbers[i]);
        assert_false(reads(bytes, size));
    }
    free(bytes);
}

static void
test_any_bytes_are_read_without_harm(void **state)
{
    uint64_t random = 3;
    (void)state;
    for (int i = 0; i < 20000; i++) {
        uint8_t bytes[200];
        size_t size = unit_random(&random) % sizeof(bytes);
        unit_fill(bytes, size, unit_random(&random));
        // Plausible kinds and numbers of runs, else nothing would get far.
        if (size > 80 && i % 2 == 0) {
            memset(bytes, 0, 4);
            bytes[0] = i % 4 == 0;
            memset(bytes + 72, 0, 4);
            bytes[72] = (uint8_t)(unit_random(&random) % 5);
        }
        (void)reads(bytes, size);
    }
}

static void
test_without_memory_a_request_is_not_read(void **state)
{
    struct lli_block_run runs[2];
    struct lli_block_run source_runs[3];
    struct lli_request in = random_request(3, true, true, runs, source_runs);
    unsigned num_failures = 0;
    size_t size;
    (void)state;
    in.notification = (const uint8_t *)"note";
    in.notification_bytes = 4;
    uint8_t *bytes = write_request(&in, &size);
    for (uint64_t n = 1;; n++) {
        lli_mem_fail_after(n);
        bool ok = reads(bytes, size);
        bool struck = lli_mem_fail_after(0) == 0;
        assert_int_equal(ok, !struck);
        if (!struck)
            break;
        num_failures++;
    }
    assert_int_equal(num_failures, 3);
    free(bytes);
}

static void
test_blocks_are_counted_without_overflow(void **state)
{
    struct lli_block_run runs[] = {{0, 1}, {7, 2}, {0, UINT64_MAX - 3}, {0, 1}};
    (void)state;
    assert_int_equal(lli_block_runs_count(runs, 0), 0);
    assert_int_equal(lli_block_runs_count(runs, 2), 3);
    assert_true(lli_block_runs_count(runs, 3) == UINT64_MAX);
    assert_true(lli_block_runs_count(runs, 4) == UINT64_MAX);
}

// ---- the owner's checks ----

static const struct lli_geometry geometry = {
    .num_tensors = 6,
    .num_slots = 4,
    .stride = 100,
    .tensor_bytes = 400,
};

static llm_status
check(const struct lli_request *request)
{
    why[0] = '\0';
    llm_status status = lli_request_check(request, &geometry, why, sizeof(why));
    assert_int_equal(why[0] != '\0', status != LLM_SUCCESS);
    return status;
}

static struct lli_request
good_slot(void)
{
    return (struct lli_request){.kind = LLI_REQUEST_SLOT, .num_tensors = 6, .bytes = 100};
}

static void
test_types_are_compared_if_both_are_known(void **state)
{
    struct lli_request request = {.element_type = LLM_DT_BF16 + 1};
    (void)state;
    assert_true(lli_request_check_type(&request, LLM_DT_BF16, why, sizeof(why)) == LLM_SUCCESS);
    assert_true(lli_request_check_type(&request, LLM_DT_UNDEFINED, why, sizeof(why)) ==
                LLM_SUCCESS);
    assert_true(lli_request_check_type(&request, LLM_DT_FLOAT16, why, sizeof(why)) ==
                LLM_PARAM_INVALID);
    assert_non_null(strstr(why, "LLM_DT_BF16 (27) here, LLM_DT_FLOAT16 (1) at the peer"));
    // One that only a later version knows is one type like others.
    request.element_type = 4711;
    assert_true(lli_request_check_type(&request, 4710, why, sizeof(why)) == LLM_SUCCESS);
    assert_true(lli_request_check_type(&request, LLM_DT_FLOAT, why, sizeof(why)) ==
                LLM_PARAM_INVALID);
    assert_non_null(strstr(why, "an unknown data type (4710) here"));
    request.element_type = 0;
    assert_true(lli_request_check_type(&request, LLM_DT_FLOAT, why, sizeof(why)) == LLM_SUCCESS);
}

static void
test_slots_and_sizes(void **state)
{
    (void)state;
    for (uint64_t slot = 0; slot <= 6; slot++) {
        for (uint64_t bytes = 0; bytes <= 200; bytes += 50) {
            struct lli_request request = good_slot();
            request.slot = slot;
            request.bytes = bytes;
            llm_status expected = slot >= 4     ? LLM_KV_CACHE_NOT_EXIST
                                  : bytes > 100 ? LLM_PARAM_INVALID
                                                : LLM_SUCCESS;
            assert_true(check(&request) == expected);
            // §13.5 calls a batch that isn't there a wrong argument.
            request.version_2 = true;
            assert_true(check(&request) ==
                        (expected == LLM_SUCCESS ? LLM_SUCCESS : LLM_PARAM_INVALID));
        }
    }
    struct lli_request request = good_slot();
    request.slot = UINT64_MAX;
    assert_true(check(&request) == LLM_KV_CACHE_NOT_EXIST);
    request = good_slot();
    request.bytes = UINT64_MAX;
    assert_true(check(&request) == LLM_PARAM_INVALID);
}

static void
test_offsets_into_a_slot(void **state)
{
    static const struct {
        uint64_t offset;
        uint64_t bytes;
        bool good;
    } cases[] = {
        {0, 100, true},         {1, 99, true},
        {99, 1, true},          {100, 0, true},
        {1, 100, false},        {100, 1, false},
        {101, 0, false},        {UINT64_MAX, 1, false},
        {1, UINT64_MAX, false}, {UINT64_MAX, UINT64_MAX, false},
    };
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(cases); i++) {
        struct lli_request request = good_slot();
        struct lli_plan plan;
        request.slot = 3;
        request.offset = cases[i].offset;
        request.bytes = cases[i].bytes;
        assert_int_equal(check(&request) == LLM_SUCCESS, cases[i].good);
        if (!cases[i].good) {
            assert_true(check(&request) == LLM_PARAM_INVALID);
            continue;
        }
        assert_true(lli_request_plan(&request, geometry.stride, 1, &plan) == LLM_SUCCESS);
        if (plan.num_runs > 0)
            assert_int_equal(plan.runs[0].src_offset, 300 + cases[i].offset);
        assert_int_equal(plan.tensor_bytes, cases[i].bytes);
        lli_plan_fini(&plan);
    }
}

static void
test_a_request_is_within_a_lease_with_all_its_slots(void **state)
{
    struct lli_lease_range range = {.first_slot = 2, .num_slots = 3};
    (void)state;
    for (uint64_t slot = 0; slot < 8; slot++) {
        struct lli_request request = good_slot();
        request.slot = slot;
        assert_int_equal(lli_request_is_within(&request, &range), slot >= 2 && slot < 5);
    }
    for (uint64_t a = 0; a < 8; a++) {
        for (uint64_t b = 0; b < 8; b++) {
            struct lli_block_run runs[] = {{a, 1}, {b, 2}};
            struct lli_request request = {
                .kind = LLI_REQUEST_BLOCKS, .runs = runs, .num_runs = LLI_COUNT(runs)};
            assert_int_equal(lli_request_is_within(&request, &range),
                             a >= 2 && a < 5 && b >= 2 && b + 1 < 5);
        }
    }
    struct lli_block_run run = {UINT64_MAX, UINT64_MAX};
    struct lli_request request = {.kind = LLI_REQUEST_BLOCKS, .runs = &run, .num_runs = 1};
    assert_false(lli_request_is_within(&request, &range));
}

static void
test_every_name_can_be_said_to_people(void **state)
{
    char text[96];
    struct lli_request request = good_slot();
    (void)state;
    request.cache_id = -17;
    lli_request_describe(&request, text, sizeof(text));
    assert_string_equal(text, "cache with id -17");
    request.by = LLI_BY_KEY;
    for (uint32_t kind = 0; kind < 6; kind++) {
        request.key = (struct lli_key){kind, UINT64_MAX, UINT64_MAX, 0};
        lli_request_describe(&request, text, sizeof(text));
        assert_non_null(strstr(text, "key 18446744073709551615 of model 18446744073709551615"));
    }
    request.by = LLI_BY_ADDRESS;
    lli_request_describe(&request, text, sizeof(text));
    assert_non_null(strstr(text, "addresses"));
}

static void
test_every_choice_of_tensors(void **state)
{
    (void)state;
    for (uint32_t first = 0; first <= 7; first++) {
        for (uint32_t count = 1; count <= 7; count++) {
            for (int all = 0; all <= 1; all++) {
                for (uint32_t per_layer = 0; per_layer <= 7; per_layer++) {
                    struct lli_request request = good_slot();
                    request.first_tensor = first;
                    request.num_tensors = count;
                    request.all_tensors = all != 0;
                    request.tensors_per_layer = per_layer;
                    bool ok = first + count <= 6 && (all == 0 || count == 6) &&
                              (per_layer == 0 || 6 % per_layer == 0);
                    assert_true(check(&request) == (ok ? LLM_SUCCESS : LLM_PARAM_INVALID));
                }
            }
        }
    }
    struct lli_request request = good_slot();
    request.first_tensor = UINT32_MAX;
    request.num_tensors = UINT32_MAX;
    assert_true(check(&request) == LLM_PARAM_INVALID);
}

static void
test_every_run_of_blocks(void **state)
{
    (void)state;
    for (uint64_t first = 0; first <= 5; first++) {
        for (uint64_t count = 1; count <= 5; count++) {
            struct lli_block_run runs[] = {{0, 1}, {first, count}};
            struct lli_request request = {
                .kind = LLI_REQUEST_BLOCKS,
                .num_tensors = 6,
                .stride = 100,
                .runs = runs,
                .num_runs = 2,
            };
            assert_true(check(&request) == (first + count <= 4 ? LLM_SUCCESS : LLM_PARAM_INVALID));
        }
    }
    static const struct lli_block_run wrong[] = {
        {UINT64_MAX, 1}, {UINT64_MAX, UINT64_MAX}, {1, UINT64_MAX}, {0, UINT64_MAX}, {4, 1}};
    for (size_t i = 0; i < LLI_COUNT(wrong); i++) {
        struct lli_block_run run = wrong[i];
        struct lli_request request = {
            .kind = LLI_REQUEST_BLOCKS,
            .num_tensors = 6,
            .stride = 100,
            .runs = &run,
            .num_runs = 1,
        };
        assert_true(check(&request) == LLM_PARAM_INVALID);
    }
}

static void
test_block_sizes_must_be_equal(void **state)
{
    struct lli_block_run run = {0, 1};
    struct lli_request request = {
        .kind = LLI_REQUEST_BLOCKS, .num_tensors = 6, .runs = &run, .num_runs = 1};
    (void)state;
    for (uint64_t stride = 0; stride <= 201; stride++) {
        request.stride = stride;
        assert_true(check(&request) == (stride == 100 ? LLM_SUCCESS : LLM_PARAM_INVALID));
    }
}

static void
test_checks_come_in_the_specified_order(void **state)
{
    struct lli_block_run run = {9, 1};
    (void)state;
    // A slot: the batch, then its size, then the tensors.
    struct lli_request request = good_slot();
    request.slot = 9;
    request.bytes = 1000;
    request.num_tensors = 99;
    assert_true(check(&request) == LLM_KV_CACHE_NOT_EXIST);
    request.slot = 0;
    assert_true(check(&request) == LLM_PARAM_INVALID);
    assert_non_null(strstr(why, "stride"));
    request.bytes = 1;
    assert_true(check(&request) == LLM_PARAM_INVALID);
    assert_non_null(strstr(why, "tensor"));

    // Blocks: the sizes, then the indices, then the tensors.
    request = (struct lli_request){
        .kind = LLI_REQUEST_BLOCKS, .stride = 7, .runs = &run, .num_runs = 1, .num_tensors = 99};
    assert_true(check(&request) == LLM_PARAM_INVALID);
    assert_non_null(strstr(why, "sizes differ"));
    request.stride = 100;
    assert_true(check(&request) == LLM_PARAM_INVALID);
    assert_non_null(strstr(why, "block 9"));
    run.first = 0;
    assert_true(check(&request) == LLM_PARAM_INVALID);
    assert_non_null(strstr(why, "tensor"));
}

static void
test_the_owners_plan(void **state)
{
    struct lli_block_run runs[] = {{2, 2}, {0, 1}};
    struct lli_request request = good_slot();
    struct lli_plan plan;
    (void)state;
    request.slot = 3;
    request.bytes = 40;
    assert_true(lli_request_plan(&request, geometry.stride, 2, &plan) == LLM_SUCCESS);
    assert_int_equal(plan.num_tensors, 12);
    assert_int_equal(plan.num_runs, 1);
    assert_int_equal(plan.runs[0].src_offset, 300);
    assert_int_equal(plan.runs[0].dst_offset, 300);
    assert_int_equal(plan.total_bytes, 12 * 40);
    lli_plan_fini(&plan);

    request = (struct lli_request){
        .kind = LLI_REQUEST_BLOCKS, .num_tensors = 3, .stride = 100, .runs = runs, .num_runs = 2};
    assert_true(lli_request_plan(&request, geometry.stride, 1, &plan) == LLM_SUCCESS);
    assert_int_equal(plan.num_tensors, 3);
    assert_int_equal(plan.num_runs, 2);
    assert_int_equal(plan.runs[0].src_offset, 200);
    assert_int_equal(plan.runs[0].bytes, 200);
    assert_int_equal(plan.runs[1].src_offset, 0);
    assert_int_equal(plan.runs[1].position, 200);
    lli_plan_fini(&plan);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_request_comes_back_and_is_refused_when_cut),
        cmocka_unit_test(test_bytes_of_later_versions_behind_it_are_skipped),
        cmocka_unit_test(test_kinds_and_runs_must_go_together),
        cmocka_unit_test(test_runs_of_no_blocks_are_malformed),
        cmocka_unit_test(test_both_sides_of_a_fetch_name_as_many_blocks),
        cmocka_unit_test(test_a_number_of_runs_is_believed_as_far_as_there_are_bytes),
        cmocka_unit_test(test_any_bytes_are_read_without_harm),
        cmocka_unit_test(test_without_memory_a_request_is_not_read),
        cmocka_unit_test(test_blocks_are_counted_without_overflow),
        cmocka_unit_test(test_types_are_compared_if_both_are_known),
        cmocka_unit_test(test_slots_and_sizes),
        cmocka_unit_test(test_offsets_into_a_slot),
        cmocka_unit_test(test_a_request_is_within_a_lease_with_all_its_slots),
        cmocka_unit_test(test_every_name_can_be_said_to_people),
        cmocka_unit_test(test_every_choice_of_tensors),
        cmocka_unit_test(test_every_run_of_blocks),
        cmocka_unit_test(test_block_sizes_must_be_equal),
        cmocka_unit_test(test_checks_come_in_the_specified_order),
        cmocka_unit_test(test_the_owners_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

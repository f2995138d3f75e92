// How far transfers have come, where they go on, and the other ways to say what moves: offsets, slots
// into blocks, addresses (sections 6 and 7 of the header); what links and caches tell of themselves.
#include "suite.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "engine/engine.h"

enum { TENSORS = 2, SLOTS = 8, STRIDE = 256 << 10, SMALL = 64, NO_CACHE = 987654, NOBODY = 4711 };
enum { PATIENCE_MS = 60000, OLD = 1, NEW = 2 };

static struct party prompt;
static struct party decoder;
static struct kv on_prompt;
static struct kv on_decoder;
static bool started;

enum { REPEATS_MAX = 512 };

static const uint64_t src_order[SLOTS] = {3, 4, 5, 0, 7, 1, 2, 6};
static const uint64_t dst_order[SLOTS] = {0, 1, 7, 6, 2, 3, 5, 4};
static size_t repeats = 1; // of the lists, for a transfer that takes its time
static uint64_t src_list[SLOTS * REPEATS_MAX];
static uint64_t dst_list[SLOTS * REPEATS_MAX];

static void
set_repeats(size_t count)
{
    repeats = count;
    for (size_t i = 0; i < SLOTS * count; i++) {
        src_list[i] = src_order[i % SLOTS];
        dst_list[i] = dst_order[i % SLOTS];
    }
}

static void
open_all(size_t num_devices, int64_t stride)
{
    struct party_options options = {.num_devices = num_devices};
    open_party_with(&prompt, 1, LLM_ROLE_PROMPT, &options);
    open_party_with(&decoder, 2, LLM_ROLE_DECODER, &options);
    open_bytes(&on_prompt, &prompt, TENSORS, SLOTS, stride);
    open_bytes(&on_decoder, &decoder, TENSORS, SLOTS, stride);
    link_parties(&decoder, &prompt);
}

#define SET_UP(name, is_started, num_devices, stride)                                              \
    static int name(void **state)                                                                  \
    {                                                                                              \
        (void)state;                                                                               \
        started = (is_started);                                                                    \
        set_repeats(1);                                                                            \
        open_all((num_devices), (stride));                                                         \
        return 0;                                                                                  \
    }
SET_UP(set_up, false, suite.num_devices, STRIDE)
SET_UP(set_up_started, true, suite.num_devices, STRIDE)
SET_UP(set_up_small, false, suite.num_devices, SMALL)
SET_UP(set_up_small_started, true, suite.num_devices, SMALL)
// Pushes and registered memory go with one device only.
SET_UP(set_up_one, false, 1, STRIDE)
SET_UP(set_up_one_started, true, 1, STRIDE)
SET_UP(set_up_small_one, false, 1, SMALL)
SET_UP(set_up_small_one_started, true, 1, SMALL)

static int
tear_down(void **state)
{
    (void)state;
    close_party(&decoder);
    close_party(&prompt);
    forget_kv(&on_prompt);
    forget_kv(&on_decoder);
    return 0;
}

// ---- transfers of all blocks, in an order of their own ----

struct task {
    bool push;
    const llm_cache_key *key; // or by id
    llm_progress *progress;
    uint32_t timeout_ms;
};

static const struct party *
party_of(const struct task *task)
{
    return task->push ? &prompt : &decoder;
}

static llm_status
start_task(const struct task *task, uint64_t *ret_id)
{
    llm_kv_cache_ext_param param = layers(-1, -1, -1, -1, 2);
    llm_cache_index index =
        task->push ? index_of(&decoder, &on_decoder, 0) : index_of(&prompt, &on_prompt, 0);
    param.timeout_ms = task->timeout_ms > 0 ? task->timeout_ms : PATIENCE_MS;
    param.progress = task->progress;
    index.key = task->key;
    size_t count = SLOTS * repeats;
    if (task->push && ret_id == NULL)
        return llm_push_kv_blocks(prompt.dd, &on_prompt.cache, &index, src_list, count, dst_list,
                                  count, &param);
    if (task->push)
        return llm_start_push_kv_blocks(prompt.dd, &on_prompt.cache, &index, src_list, count,
                                        dst_list, count, &param, ret_id);
    if (ret_id == NULL)
        return llm_pull_kv_blocks(decoder.dd, &index, &on_decoder.cache, src_list, count, dst_list,
                                  count, &param);
    return llm_start_pull_kv_blocks(decoder.dd, &index, &on_decoder.cache, src_list, count,
                                    dst_list, count, &param, ret_id);
}

static llm_progress
look_at(const struct party *party, uint64_t id)
{
    llm_progress progress = {.struct_size = sizeof(progress)};
    assert_ok(llm_transfer_get_progress(party->dd, id, &progress));
    assert_int_equal(progress.struct_size, sizeof(progress));
    return progress;
}

// Of a started one the progress is asked for at its end.
static llm_status
end_task(const struct task *task, uint64_t id)
{
    const struct party *party = party_of(task);
    llm_status status = llm_transfer_wait(party->dd, id, -1);
    if (task->progress != NULL)
        *task->progress = look_at(party, id);
    assert_ok(llm_transfer_release(party->dd, id));
    return status;
}

static llm_status
run_task(const struct task *task)
{
    uint64_t id;
    if (!started)
        return start_task(task, NULL);
    llm_status status = start_task(task, &id);
    return status == LLM_SUCCESS ? end_task(task, id) : status;
}

static uint64_t
total_bytes(void)
{
    return on_prompt.num_devices * TENSORS * SLOTS * repeats * (uint64_t)on_prompt.stride;
}

// What is in the model of the prompt at these places of the stream is in that of the decoder now.
static void
expect_stream(uint64_t begin, uint64_t end)
{
    size_t stride = on_prompt.stride;
    for (uint64_t at = begin; at < end;) {
        uint64_t block = at / stride;
        uint64_t offset = at % stride;
        uint64_t bytes = stride - offset < end - at ? stride - offset : end - at;
        size_t tensor = block / (SLOTS * repeats);
        memcpy(on_decoder.expected + tensor * on_decoder.tensor_bytes +
                   dst_order[block % SLOTS] * stride + offset,
               on_prompt.expected + tensor * on_prompt.tensor_bytes +
                   src_order[block % SLOTS] * stride + offset,
               bytes);
        at += bytes;
    }
}

static llm_progress
no_progress(void)
{
    return (llm_progress){.struct_size = sizeof(llm_progress)};
}

static void
test_progress_of_a_whole_transfer(void **state)
{
    (void)state;
    for (int push = 0; push <= (prompt.num_devices == 1); push++) {
        llm_progress progress = no_progress();
        llm_cache_info info = {.struct_size = sizeof(info)};
        struct task task = {.push = push, .progress = &progress};
        fill_kv(&on_prompt, (uint64_t)push + 5);
        assert_ok(run_task(&task));
        expect_stream(0, total_bytes());
        assert_kv(&on_decoder);
        assert_int_equal(progress.bytes_arrived, total_bytes());
        assert_int_equal(progress.total_bytes, total_bytes());
        assert_int_equal(progress.bytes_moved, total_bytes());
        assert_ok(llm_get_cache_info(push ? decoder.dd : prompt.dd,
                                     push ? on_decoder.cache.cache_id : on_prompt.cache.cache_id,
                                     &info));
        assert_true(progress.generation == info.generation);
        // Once more: nothing is left to move.
        fill_kv(&on_prompt, (uint64_t)push + 6);
        assert_ok(run_task(&task));
        assert_kv(&on_decoder);
        assert_int_equal(progress.bytes_arrived, total_bytes());
        assert_int_equal(progress.bytes_moved, 0);
        // From anywhere; a push is believed as well.
        for (uint64_t from = 1; from < total_bytes(); from += total_bytes() / 3) {
            progress.bytes_arrived = from;
            fill_kv(&on_prompt, from);
            assert_ok(run_task(&task));
            expect_stream(from, total_bytes());
            assert_kv(&on_decoder);
            assert_int_equal(progress.bytes_moved, total_bytes() - from);
        }
    }
}

static void
test_progress_that_makes_no_sense_is_refused(void **state)
{
    (void)state;
    for (int push = 0; push <= (prompt.num_devices == 1); push++) {
        llm_progress progress = no_progress();
        struct task task = {.push = push, .progress = &progress};
        progress.bytes_arrived = total_bytes() + 1;
        assert_status_says(run_task(&task), LLM_PARAM_INVALID, "another one");
        progress = no_progress();
        progress.total_bytes = total_bytes() - 1;
        assert_status_says(run_task(&task), LLM_PARAM_INVALID, "another one");
        progress = no_progress();
        progress.bytes_arrived = UINT64_MAX;
        assert_status(run_task(&task), LLM_PARAM_INVALID);
        progress = no_progress();
        progress.generation = 77;
        assert_status_says(run_task(&task), LLM_CACHE_STALE, "generation 77");
        progress.struct_size = 8;
        assert_status_says(run_task(&task), LLM_PARAM_INVALID, "struct_size");
        assert_kv(&on_decoder);
        // A token that nobody has means that nothing is known.
        progress = no_progress();
        progress.token = 4711;
        assert_ok(run_task(&task));
        assert_int_equal(progress.bytes_moved, total_bytes());
        expect_stream(0, total_bytes());
        assert_kv(&on_decoder);
    }
}

static void
test_the_peers_cache_is_another_one_by_then(void **state)
{
    llm_cache_key key = {.struct_size = sizeof(key), .kind = LLM_KEY_BLOCKS, .model_id = 3};
    (void)state;
    for (int push = 0; push <= (prompt.num_devices == 1); push++) {
        const struct party *owner = push ? &decoder : &prompt;
        struct kv *first = push ? &on_decoder : &on_prompt;
        llm_progress progress = no_progress();
        struct task task = {.push = push, .progress = &progress, .key = &key};
        struct kv second;
        assert_ok(llm_bind_cache_keys(owner->dd, first->cache.cache_id, &key, 1));
        assert_ok(run_task(&task));
        expect_stream(0, total_bytes());
        progress.bytes_arrived = total_bytes() / 2;
        open_bytes(&second, owner, TENSORS, SLOTS, STRIDE);
        assert_ok(llm_remove_cache_key(owner->dd, &key));
        assert_ok(llm_bind_cache_keys(owner->dd, second.cache.cache_id, &key, 1));
        assert_status(run_task(&task), LLM_CACHE_STALE);
        if (!started)
            assert_int_equal(progress.bytes_moved, 0);
        assert_kv(&on_decoder);
        assert_kv(&second);
        assert_ok(llm_deallocate_cache(owner->dd, second.cache.cache_id));
        forget_kv(&second);
    }
}

// The slot may hold something else since.
static void
test_a_key_that_was_bound_anew_names_something_else(void **state)
{
    llm_cache_key key = {.struct_size = sizeof(key), .kind = LLM_KEY_BLOCKS, .model_id = 4};
    llm_progress progress = no_progress();
    struct task task = {.progress = &progress, .key = &key};
    (void)state;
    assert_ok(llm_bind_cache_keys(prompt.dd, on_prompt.cache.cache_id, &key, 1));
    assert_ok(run_task(&task));
    expect_stream(0, total_bytes());
    progress.bytes_arrived = total_bytes() / 2;
    llm_progress half = progress;
    assert_ok(run_task(&task));
    assert_ok(llm_remove_cache_key(prompt.dd, &key));
    assert_ok(llm_bind_cache_keys(prompt.dd, on_prompt.cache.cache_id, &key, 1));
    assert_status(run_task(&(struct task){.progress = &half, .key = &key}), LLM_CACHE_STALE);
    // From the beginning it works.
    progress = no_progress();
    assert_ok(run_task(&task));
    assert_kv(&on_decoder);
}

// ---- out of time, cancelled, cut ----

// Until it works; every call moves only what was missing before it.
static void
test_a_transfer_that_runs_out_of_time_goes_on(void **state)
{
    (void)state;
    for (int push = 0; push <= (prompt.num_devices == 1); push++) {
        unsigned num_timeouts = 0;
        for (size_t count = 1; num_timeouts == 0 && count <= REPEATS_MAX; count *= 2) {
            llm_progress progress = no_progress();
            struct task task = {.push = push, .progress = &progress};
            llm_status status = LLM_WAIT_PROC_TIMEOUT;
            set_repeats(count);
            for (uint64_t round = 0; status == LLM_WAIT_PROC_TIMEOUT; round++) {
                uint64_t before = progress.bytes_arrived;
                fill_kv(&on_prompt, round);
                task.timeout_ms = round < 3 ? 1 : PATIENCE_MS;
                status = run_task(&task);
                num_timeouts += status == LLM_WAIT_PROC_TIMEOUT;
                assert_true(progress.bytes_arrived >= before);
                // What has arrived of a push is known when the next one asks for it.
                if (!push)
                    assert_int_equal(progress.bytes_arrived - before, progress.bytes_moved);
                if (!push)
                    expect_stream(before, progress.bytes_arrived);
            }
            assert_ok(status);
            assert_int_equal(progress.bytes_arrived, total_bytes());
            assert_true(progress.bytes_moved <= total_bytes());
            if (!push)
                assert_kv(&on_decoder);
        }
        assert_true(num_timeouts > 0);
        // The model knows everything again.
        set_repeats(1);
        fill_kv(&on_decoder, 1);
    }
}

struct link_cut {
    struct lli_node *node;
    uint64_t cluster_id;
};

static void
cut_here(void *arg)
{
    struct link_cut *cut = arg;
    struct lli_link *link = lli_links_find(cut->node, cut->cluster_id);
    if (link == NULL)
        return;
    lli_link_break(link, LLM_FAILED, "it was cut by the test");
    lli_link_put(link);
}

// As if the network had gone, at one end; the other end sees the connections close.
static void
cut_link(const struct party *party, uint64_t cluster_id)
{
    struct link_cut cut = {.node = &party->dd->node, .cluster_id = cluster_id};
    lli_loop_call(&party->dd->loop, cut_here, &cut);
}

static void
relink(void)
{
    uint64_t deadline = now_ms() + PATIENCE_MS;
    while ((is_linked(&decoder, 1) || is_linked(&prompt, 2)) && now_ms() < deadline)
        sched_yield();
    link_parties(&decoder, &prompt);
}

// The library writes meanwhile; a byte is a byte.
static __attribute__((no_sanitize("thread"))) bool
has_come(uint64_t position)
{
    uint64_t block = position / STRIDE;
    size_t tensor = block / SLOTS;
    uint64_t at = dst_order[block % SLOTS] * STRIDE + position % STRIDE;
    size_t from = src_order[block % SLOTS] * STRIDE + position % STRIDE;
    return *((volatile const uint8_t *)on_decoder.addresses[tensor] + at) ==
           on_prompt.expected[tensor * on_prompt.tensor_bytes + from];
}

struct runner {
    struct task task;
    llm_status status;
    pthread_t thread;
};

static void *
run_in_thread(void *arg)
{
    struct runner *runner = arg;
    runner->status = run_task(&runner->task);
    return NULL;
}

// Where the stream at the decoder changes from one byte to the other; it must do so once.
static uint64_t
find_change(uint8_t before, uint8_t after)
{
    uint64_t change = 0;
    bool changed = false;
    for (uint64_t block = 0; block < total_bytes() / STRIDE; block++) {
        const uint8_t *bytes = (const uint8_t *)on_decoder.addresses[block / SLOTS] +
                               dst_order[block % SLOTS] * STRIDE;
        for (uint64_t i = 0; i < STRIDE; i++) {
            if (!changed && bytes[i] == before) {
                change = block * STRIDE + i + 1;
                continue;
            }
            changed = true;
            if (bytes[i] != after)
                fail_msg("byte %llu is %u", (unsigned long long)(block * STRIDE + i), bytes[i]);
        }
    }
    return change;
}

// A transfer whose link is cut in the middle, and that goes on over the next link.  True if it was
// cut in time, and the beginning had not to be moved again.
static bool
cut_and_go_on(bool push, bool cut_at_prompt, uint64_t position)
{
    llm_progress progress = no_progress();
    struct runner runner = {.task = {.push = push, .progress = &progress}};
    uint64_t deadline = now_ms() + PATIENCE_MS;
    fill_kv_with(&on_prompt, 1);
    fill_kv_with(&on_decoder, 0);
    assert_int_equal(pthread_create(&runner.thread, NULL, run_in_thread, &runner), 0);
    while (!has_come(position) && now_ms() < deadline) {
    }
    cut_link(cut_at_prompt ? &prompt : &decoder, cut_at_prompt ? 2 : 1);
    pthread_join(runner.thread, NULL);
    // Quiet after return: what has come till now stays as it is.
    relink();
    if (runner.status == LLM_SUCCESS)
        return false;
    assert_status(runner.status, LLM_FAILED);
    uint64_t arrived = progress.bytes_arrived;
    // All may have come without anybody having said so.
    assert_true(arrived <= total_bytes());
    if (!push)
        assert_int_equal(progress.bytes_moved, arrived);
    fill_kv_with(&on_prompt, 2);
    assert_ok(run_task(&runner.task));
    assert_int_equal(progress.bytes_arrived, total_bytes());
    uint64_t begun_at = total_bytes() - progress.bytes_moved;
    if (!push)
        assert_int_equal(begun_at, arrived);
    // What was there has stayed, what is new has come.
    assert_int_equal(find_change(1, 2), begun_at);
    return begun_at > 0 && begun_at < total_bytes();
}

static void
test_a_transfer_goes_on_after_its_link_was_cut(void **state)
{
    (void)state;
    // A pull on one host whose caller waits doesn't need the link.
    bool pull_needs_link = started || strcmp(suite.transport, "tcp") == 0;
    for (unsigned i = pull_needs_link ? 0 : 2; i < 4; i++) {
        uint64_t deadline = now_ms() + PATIENCE_MS;
        bool went_on = false;
        while (!went_on && now_ms() < deadline)
            went_on = cut_and_go_on(i / 2 == 1, i % 2 == 1, total_bytes() / 4);
        assert_true(went_on);
    }
}

static void
test_progress_can_be_looked_at_all_the_time(void **state)
{
    (void)state;
    for (int push = 0; push <= (prompt.num_devices == 1); push++) {
        struct task task = {.push = push};
        uint64_t id = 0;
        uint64_t before = 0;
        const struct party *party = party_of(&task);
        fill_kv(&on_prompt, (uint64_t)push);
        assert_ok(start_task(&task, &id));
        while (llm_transfer_poll(party->dd, id) == LLM_TRANSFER_PENDING) {
            llm_progress progress = look_at(party, id);
            assert_int_equal(progress.total_bytes, total_bytes());
            assert_true(progress.bytes_arrived >= before);
            assert_true(progress.bytes_arrived <= total_bytes());
            assert_int_equal(progress.bytes_moved, progress.bytes_arrived);
            before = progress.bytes_arrived;
        }
        llm_progress progress = look_at(party, id);
        assert_int_equal(progress.bytes_arrived, total_bytes());
        assert_int_equal(progress.bytes_moved, total_bytes());
        expect_stream(0, total_bytes());
        assert_kv(&on_decoder);
        assert_status(llm_transfer_get_progress(party->dd, id, NULL), LLM_PARAM_INVALID);
        assert_status(llm_transfer_get_progress(party->dd, id + 1, &progress), LLM_PARAM_INVALID);
        assert_ok(llm_transfer_release(party->dd, id));
        assert_status(llm_transfer_get_progress(party->dd, id, &progress), LLM_PARAM_INVALID);
        assert_status(llm_transfer_get_progress(NULL, id, &progress), LLM_FAILED);
        // A cancelled one tells how far it had come.
        assert_ok(start_task(&task, &id));
        assert_ok(llm_transfer_cancel(party->dd, id));
        progress = look_at(party, id);
        assert_true(progress.bytes_arrived <= total_bytes());
        assert_ok(llm_transfer_release(party->dd, id));
    }
}

// ---- offsets ----

static llm_status
pull_slot(uint32_t src_slot, uint32_t dst_slot, int64_t size, uint64_t src_offset,
          uint64_t dst_offset)
{
    uint64_t id = 0;
    llm_cache_index index = index_of(&prompt, &on_prompt, src_slot);
    llm_kv_cache_ext_param param = layers(-1, -1, -1, -1, 2);
    param.src_offset = src_offset;
    param.dst_offset = dst_offset;
    if (!started)
        return llm_pull_kv_cache(decoder.dd, &index, &on_decoder.cache, dst_slot, size, &param);
    llm_status status =
        llm_start_pull_kv_cache(decoder.dd, &index, &on_decoder.cache, dst_slot, size, &param, &id);
    return status == LLM_SUCCESS ? end_task(&(struct task){.push = false}, id) : status;
}

static void
test_a_slot_is_pulled_from_and_to_offsets(void **state)
{
    static const uint64_t offsets[] = {0, 1, 31, SMALL - 1, SMALL, SMALL + 1, UINT64_MAX};
    static const int64_t sizes[] = {-1, 1, 33, SMALL - 1, SMALL, SMALL + 1, INT64_MAX};
    (void)state;
    for (size_t a = 0; a < COUNT_OF(offsets); a++) {
        for (size_t b = 0; b < COUNT_OF(offsets); b++) {
            for (size_t c = 0; c < COUNT_OF(sizes); c++) {
                uint64_t src = offsets[a];
                uint64_t dst = offsets[b];
                bool dst_good = dst < SMALL;
                uint64_t size = sizes[c] == -1 && dst_good ? SMALL - dst : (uint64_t)sizes[c];
                bool good = dst_good && size <= SMALL - dst && src <= SMALL && size <= SMALL - src;
                fill_kv(&on_prompt, a * 100 + b * 10 + c);
                assert_status(pull_slot(2, 5, sizes[c], src, dst),
                              good ? LLM_SUCCESS : LLM_PARAM_INVALID);
                for (uint32_t t = 0; good && t < TENSORS; t++)
                    expect_copy(&on_decoder, t, 5 * SMALL + dst, &on_prompt, t, 2 * SMALL + src,
                                size);
                assert_kv(&on_decoder);
            }
        }
    }
    // Blocks and pushes have none.
    llm_kv_cache_ext_param param = layers(-1, -1, -1, -1, 2);
    llm_cache_index index = index_of(&prompt, &on_prompt, 0);
    uint64_t block = 0;
    for (int i = 0; i < 2; i++) {
        param.src_offset = i;
        param.dst_offset = !i;
        assert_status_says(
            llm_pull_kv_blocks(decoder.dd, &index, &on_decoder.cache, &block, 1, &block, 1, &param),
            LLM_PARAM_INVALID, "offset");
        index = index_of(&decoder, &on_decoder, 0);
        assert_status_says(llm_push_kv_cache(prompt.dd, &on_prompt.cache, &index, 0, -1, &param),
                           LLM_PARAM_INVALID, "offset");
        index = index_of(&prompt, &on_prompt, 0);
    }
    assert_kv(&on_decoder);
}

// ---- a slot into blocks ----

static llm_status
pull_to_blocks(const struct kv *src, uint32_t slot, const uint64_t *blocks, size_t count,
               int64_t size, uint64_t src_offset, llm_progress *progress)
{
    uint64_t id = 0;
    llm_cache_index index = index_of(&prompt, src, slot);
    llm_kv_cache_ext_param param = layers(-1, -1, -1, -1, 2);
    param.src_offset = src_offset;
    param.progress = progress;
    if (!started)
        return llm_pull_kv_cache_to_blocks(decoder.dd, &index, &on_decoder.cache, blocks, count,
                                           size, &param);
    llm_status status = llm_start_pull_kv_cache_to_blocks(decoder.dd, &index, &on_decoder.cache,
                                                          blocks, count, size, &param, &id);
    return status == LLM_SUCCESS ? end_task(&(struct task){.progress = progress}, id) : status;
}

static void
expect_scattered(const struct kv *src, uint32_t slot, uint64_t src_offset, const uint64_t *blocks,
                 uint64_t bytes)
{
    for (uint32_t t = 0; t < TENSORS; t++) {
        for (uint64_t at = 0; at < bytes; at += SMALL) {
            uint64_t piece = bytes - at < SMALL ? bytes - at : SMALL;
            expect_copy(&on_decoder, t, blocks[at / SMALL] * SMALL, src, t,
                        slot * src->stride + src_offset + at, piece);
        }
    }
    assert_kv(&on_decoder);
}

static void
test_a_slot_is_cut_into_blocks(void **state)
{
    enum { LONG = 3 * SMALL + 20 };
    static const uint64_t blocks[] = {6, 7, 2, 0, 1};
    struct kv source;
    (void)state;
    open_bytes(&source, &prompt, TENSORS, 3, LONG);
    for (size_t count = 1; count <= COUNT_OF(blocks); count++) {
        for (uint64_t offset = 0; offset <= LONG; offset += 20) {
            uint64_t left = LONG - offset;
            uint64_t room = count * SMALL;
            fill_kv(&source, offset + count);
            // What the blocks hold, or what there is, at least a block.
            bool good = left >= SMALL;
            llm_progress progress = no_progress();
            assert_status(pull_to_blocks(&source, 1, blocks, count, -1, offset, &progress),
                          good ? LLM_SUCCESS : LLM_PARAM_INVALID);
            if (good) {
                uint64_t bytes = left < room ? left : room;
                expect_scattered(&source, 1, offset, blocks, bytes);
                assert_int_equal(progress.total_bytes, bytes * TENSORS * prompt.num_devices);
                assert_int_equal(progress.bytes_moved, progress.total_bytes);
            }
            for (int64_t size = 1; size <= LONG + 1; size += 41) {
                good = (uint64_t)size <= left && (uint64_t)size <= room;
                assert_status(pull_to_blocks(&source, 2, blocks, count, size, offset, NULL),
                              good ? LLM_SUCCESS : LLM_PARAM_INVALID);
                if (good)
                    expect_scattered(&source, 2, offset, blocks, (uint64_t)size);
            }
        }
    }
    assert_kv(&on_decoder);
    forget_kv(&source);
}

static void
test_a_slot_into_blocks_checks_its_arguments(void **state)
{
    uint64_t blocks[] = {0, SLOTS};
    llm_cache_index index = index_of(&prompt, &on_prompt, 0);
    llm_kv_cache_ext_param param = layers(-1, -1, -1, -1, 2);
    (void)state;
    assert_status_says(pull_to_blocks(&on_prompt, 0, blocks, 2, -1, 0, NULL), LLM_PARAM_INVALID,
                       "dst_blocks[1] is 8");
    assert_status_says(pull_to_blocks(&on_prompt, 0, NULL, 2, -1, 0, NULL), LLM_PARAM_INVALID,
                       "dst_blocks is empty");
    assert_status_says(pull_to_blocks(&on_prompt, 0, blocks, 0, -1, 0, NULL), LLM_PARAM_INVALID,
                       "dst_blocks is empty");
    assert_status_says(pull_to_blocks(&on_prompt, 0, blocks, 1, 0, 0, NULL), LLM_PARAM_INVALID,
                       "size");
    assert_status_says(pull_to_blocks(&on_prompt, 0, blocks, 1, SMALL + 1, 0, NULL),
                       LLM_PARAM_INVALID, "hold");
    assert_status(pull_to_blocks(&on_prompt, SLOTS, blocks, 1, -1, 0, NULL),
                  LLM_KV_CACHE_NOT_EXIST);
    assert_status(pull_to_blocks(&on_prompt, 0, blocks, 1, -1, UINT64_MAX, NULL),
                  LLM_PARAM_INVALID);
    param.dst_offset = 1;
    assert_status_says(
        llm_pull_kv_cache_to_blocks(decoder.dd, &index, &on_decoder.cache, blocks, 1, -1, &param),
        LLM_PARAM_INVALID, "dst_offset");
    assert_status(
        llm_pull_kv_cache_to_blocks(prompt.dd, &index, &on_decoder.cache, blocks, 1, -1, NULL),
        LLM_PARAM_INVALID);
    index.cluster_id = NOBODY;
    assert_status(
        llm_pull_kv_cache_to_blocks(decoder.dd, &index, &on_decoder.cache, blocks, 1, -1, NULL),
        LLM_NOT_YET_LINK);
    index.cache_id = NO_CACHE;
    index.cluster_id = prompt.id;
    assert_status(
        llm_pull_kv_cache_to_blocks(decoder.dd, &index, &on_decoder.cache, blocks, 1, -1, NULL),
        LLM_KV_CACHE_NOT_EXIST);
    assert_kv(&on_decoder);
}

// ---- pushes by address ----

static llm_cache_index
index_at(const uint64_t *addresses, size_t count)
{
    return (llm_cache_index){
        .struct_size = sizeof(llm_cache_index),
        .cluster_id = decoder.id,
        .cache_id = NO_CACHE,
        .batch_index = 77,
        .addrs = addresses,
        .num_addrs = count,
    };
}

static llm_status
push_slot(const uint64_t *addresses, size_t count, uint32_t slot,
          const llm_kv_cache_ext_param *param)
{
    uint64_t id = 0;
    llm_cache_index index = index_at(addresses, count);
    if (!started)
        return llm_push_kv_cache(prompt.dd, &on_prompt.cache, &index, slot, -1, param);
    llm_status status =
        llm_start_push_kv_cache(prompt.dd, &on_prompt.cache, &index, slot, -1, param, &id);
    return status == LLM_SUCCESS ? end_task(&(struct task){.push = true}, id) : status;
}

static llm_status
push_blocks(const uint64_t *addresses, size_t count, const uint64_t *src, const uint64_t *dst,
            size_t num_blocks)
{
    uint64_t id = 0;
    llm_cache_index index = index_at(addresses, count);
    if (!started)
        return llm_push_kv_blocks(prompt.dd, &on_prompt.cache, &index, src, num_blocks, dst,
                                  num_blocks, NULL);
    llm_status status = llm_start_push_kv_blocks(prompt.dd, &on_prompt.cache, &index, src,
                                                 num_blocks, dst, num_blocks, NULL, &id);
    return status == LLM_SUCCESS ? end_task(&(struct task){.push = true}, id) : status;
}

static void
test_a_push_goes_to_addresses(void **state)
{
    (void)state;
    // Anywhere in a tensor, of any alignment, also crosswise.
    for (uint64_t offset = 0; offset <= (SLOTS - 1) * SMALL; offset += 37) {
        uint64_t addresses[] = {on_decoder.addresses[1] + offset, on_decoder.addresses[0]};
        fill_kv(&on_prompt, offset);
        assert_ok(push_slot(addresses, 2, 3, NULL));
        expect_copy(&on_decoder, 1, offset, &on_prompt, 0, 3 * SMALL, SMALL);
        expect_copy(&on_decoder, 0, 0, &on_prompt, 1, 3 * SMALL, SMALL);
        assert_kv(&on_decoder);
    }
    uint64_t addresses[] = {on_decoder.addresses[0] + SMALL, on_decoder.addresses[1]};
    uint64_t src[] = {7, 1, 2};
    uint64_t dst[] = {0, 6, 3};
    assert_ok(push_blocks(addresses, 2, src, dst, 3));
    for (size_t i = 0; i < 3; i++) {
        expect_copy(&on_decoder, 0, (dst[i] + 1) * SMALL, &on_prompt, 0, src[i] * SMALL, SMALL);
        expect_copy(&on_decoder, 1, dst[i] * SMALL, &on_prompt, 1, src[i] * SMALL, SMALL);
    }
    assert_kv(&on_decoder);
    // Some layers: as many addresses as tensors.
    llm_kv_cache_ext_param one = layers(1, 1, 0, 0, 1);
    assert_ok(push_slot(addresses, 1, 5, &one));
    expect_copy(&on_decoder, 0, SMALL, &on_prompt, 1, 5 * SMALL, SMALL);
    assert_kv(&on_decoder);
}

static void
test_only_memory_of_caches_can_be_reached(void **state)
{
    static uint8_t outside[SMALL * 2];
    uint64_t good = on_decoder.addresses[0];
    uint64_t end = on_decoder.addresses[1] + SLOTS * SMALL; // nothing lies behind it
    uint64_t bad[] = {0,
                      1,
                      UINT64_MAX,
                      UINT64_MAX - SMALL,
                      (uint64_t)(uintptr_t)outside,
                      good - 1,
                      end - SMALL + 1,
                      end};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        for (int last = 0; last <= 1; last++) {
            uint64_t addresses[] = {last ? good : bad[i], last ? bad[i] : good};
            assert_status_says(push_slot(addresses, 2, 0, NULL), LLM_PARAM_INVALID, "address");
            assert_kv(&on_decoder);
        }
    }
    // The last of the blocks must lie there too.
    uint64_t addresses[] = {good, on_decoder.addresses[1]};
    uint64_t src[] = {0, 1};
    static const uint64_t beyond[] = {SLOTS, UINT64_MAX, UINT64_MAX / SMALL, UINT64_MAX / 2};
    for (size_t i = 0; i < COUNT_OF(beyond); i++) {
        uint64_t dst[] = {0, beyond[i]};
        assert_status(push_blocks(addresses, 2, src, dst, 2), LLM_PARAM_INVALID);
        assert_kv(&on_decoder);
    }
    // A cache that is gone is nobody's memory.
    struct kv other;
    open_bytes(&other, &decoder, TENSORS, SLOTS, SMALL);
    uint64_t at_other[] = {other.addresses[0], good};
    assert_ok(push_slot(at_other, 2, 1, NULL));
    expect_copy(&other, 0, 0, &on_prompt, 0, SMALL, SMALL);
    expect_copy(&on_decoder, 0, 0, &on_prompt, 1, SMALL, SMALL);
    assert_kv(&other);
    assert_kv(&on_decoder);
    assert_ok(llm_deallocate_cache(decoder.dd, other.cache.cache_id));
    assert_status(push_slot(at_other, 2, 1, NULL), LLM_PARAM_INVALID);
    assert_kv(&on_decoder);
    forget_kv(&other);
}

static void
test_pushes_to_addresses_check_their_arguments(void **state)
{
    uint64_t addresses[] = {on_decoder.addresses[0], on_decoder.addresses[1]};
    llm_kv_cache_ext_param param = layers(-1, -1, -1, -1, 2);
    llm_progress progress = no_progress();
    (void)state;
    assert_status_says(push_slot(addresses, 1, 0, NULL), LLM_PARAM_INVALID, "1 addrs for 2");
    assert_status_says(push_slot(addresses, 3, 0, NULL), LLM_PARAM_INVALID, "3 addrs for 2");
    param.progress = &progress;
    assert_status_says(push_slot(addresses, 2, 0, &param), LLM_PARAM_INVALID, "progress");
    llm_cache_index index = index_at(addresses, 2);
    index.generation = 2;
    assert_status_says(llm_push_kv_cache(prompt.dd, &on_prompt.cache, &index, 0, -1, NULL),
                       LLM_PARAM_INVALID, "generation");
    // The key isn't read, nor is the destination's range.
    llm_cache_key key = {.struct_size = 1, .kind = 99};
    param = layers(0, 0, 5, 9, 2);
    index = index_at(addresses, 2);
    index.key = &key;
    assert_ok(llm_push_kv_cache(prompt.dd, &on_prompt.cache, &index, 2, -1, &param));
    for (uint32_t t = 0; t < TENSORS; t++)
        expect_copy(&on_decoder, t, 0, &on_prompt, t, 2 * SMALL, SMALL);
    assert_kv(&on_decoder);
}

static void
test_a_push_reaches_registered_memory_by_its_address(void **state)
{
    struct kv own;
    uint64_t addresses[TENSORS];
    (void)state;
    make_bytes(&own, LLM_PLACEMENT_DEVICE, 1, TENSORS, SLOTS, SMALL);
    for (size_t i = 0; i < TENSORS; i++)
        addresses[i] = own.addresses[i];
    assert_status(push_slot(addresses, TENSORS, 0, NULL), LLM_PARAM_INVALID);
    assert_kv(&own);
    assert_ok(
        llm_register_kv_cache(decoder.dd, &own.desc, addresses, TENSORS, &own.cache.cache_id));
    addresses[1] += 17;
    assert_ok(push_slot(addresses, TENSORS, 4, NULL));
    expect_copy(&own, 0, 0, &on_prompt, 0, 4 * SMALL, SMALL);
    expect_copy(&own, 1, 17, &on_prompt, 1, 4 * SMALL, SMALL);
    assert_kv(&own);
    assert_ok(llm_unregister_kv_cache(decoder.dd, own.cache.cache_id));
    assert_status(push_slot(addresses, TENSORS, 4, NULL), LLM_PARAM_INVALID);
    assert_kv(&own);
    forget_kv(&own);
}

// ---- links ----

static bool
is_readable(int fd, int timeout_ms)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    return poll(&wait, 1, timeout_ms) == 1;
}

static llm_link_info
next_event(const struct party *party)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    uint64_t deadline = now_ms() + PATIENCE_MS;
    llm_status status;
    while ((status = llm_poll_link_event(party->dd, &info)) == LLM_NO_LINK_EVENT &&
           now_ms() < deadline)
        (void)is_readable(llm_link_event_fd(party->dd), 1);
    assert_ok(status);
    return info;
}

static void
expect_event(const struct party *party, uint64_t cluster_id, llm_link_state state,
             const char *reason)
{
    llm_link_info info = next_event(party);
    assert_int_equal(info.cluster_id, cluster_id);
    assert_int_equal(info.state, state);
    assert_int_equal(info.num_devices, party->num_devices);
    assert_string_equal(info.transport, suite.transport);
    if (reason != NULL && strstr(info.reason, reason) == NULL)
        fail_msg("\"%s\" doesn't say \"%s\"", info.reason, reason);
}

static void
expect_no_event(const struct party *party)
{
    llm_link_info info = {.struct_size = sizeof(info), .cluster_id = 4711};
    assert_status(llm_poll_link_event(party->dd, &info), LLM_NO_LINK_EVENT);
    assert_int_equal(info.cluster_id, 4711);
}

static void
test_links_tell_when_they_change(void **state)
{
    uint64_t count;
    (void)state;
    int fd = llm_link_event_fd(decoder.dd);
    assert_true(is_readable(fd, 0));
    assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
    assert_false(is_readable(fd, 0));
    expect_event(&decoder, 1, LLM_LINK_READY, NULL);
    expect_event(&prompt, 2, LLM_LINK_READY, NULL);
    for (unsigned i = 0; i < 5; i++) {
        assert_ok(llm_check_link_status(decoder.dd, 1));
        assert_ok(llm_check_link_status(prompt.dd, 2));
        // In good order nothing breaks.
        unlink_parties(&decoder, &prompt);
        assert_true(is_readable(fd, 0));
        expect_event(&decoder, 1, LLM_LINK_REMOVED, NULL);
        expect_event(&prompt, 2, LLM_LINK_REMOVED, NULL);
        assert_status(llm_check_link_status(decoder.dd, 1), LLM_NOT_YET_LINK);
        assert_status(llm_check_link_status(prompt.dd, 2), LLM_NOT_YET_LINK);
        link_parties(&decoder, &prompt);
        expect_event(&decoder, 1, LLM_LINK_READY, NULL);
        expect_event(&prompt, 2, LLM_LINK_READY, NULL);
        assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
    }
    cut_link(&decoder, 1);
    expect_event(&decoder, 1, LLM_LINK_BROKEN, "cut by the test");
    expect_event(&prompt, 2, LLM_LINK_BROKEN, "closed");
    assert_status_says(llm_check_link_status(decoder.dd, 1), LLM_LINK_FAILED, "cut by the test");
    // The next one replaces it, at both ends.
    link_parties(&decoder, &prompt);
    for (int i = 0; i < 2; i++) {
        const struct party *party = i == 0 ? &decoder : &prompt;
        expect_event(party, i == 0 ? 1 : 2, LLM_LINK_REMOVED, NULL);
        expect_event(party, i == 0 ? 1 : 2, LLM_LINK_READY, NULL);
        expect_no_event(party);
    }
    // A peer that ends without a word.
    llm_finalize(prompt.dd);
    expect_event(&decoder, 1, LLM_LINK_BROKEN, NULL);
    assert_status(llm_check_link_status(decoder.dd, 1), LLM_LINK_FAILED);
    llm_link_info info = {.struct_size = sizeof(info)};
    assert_status(llm_poll_link_event(prompt.dd, &info), LLM_FAILED);
    assert_status(llm_check_link_status(prompt.dd, 2), LLM_FAILED);
    assert_int_equal(llm_link_event_fd(prompt.dd), -1);
    assert_status(llm_poll_link_event(decoder.dd, NULL), LLM_PARAM_INVALID);
    expect_no_event(&decoder);
}

#define BOTH(test, before)                                                                         \
    {#test, test, before, tear_down, NULL},                                                        \
    {                                                                                              \
#test "_started", test, before##_started, tear_down, NULL                                  \
    }

static const struct CMUnitTest tests[] = {
    BOTH(test_progress_of_a_whole_transfer, set_up),
    BOTH(test_progress_that_makes_no_sense_is_refused, set_up),
    BOTH(test_a_key_that_was_bound_anew_names_something_else, set_up),
    BOTH(test_the_peers_cache_is_another_one_by_then, set_up),
    BOTH(test_a_transfer_that_runs_out_of_time_goes_on, set_up),
    BOTH(test_a_transfer_goes_on_after_its_link_was_cut, set_up_one),
    cmocka_unit_test_setup_teardown(test_progress_can_be_looked_at_all_the_time, set_up, tear_down),
    BOTH(test_a_slot_is_pulled_from_and_to_offsets, set_up_small),
    BOTH(test_a_slot_is_cut_into_blocks, set_up_small),
    BOTH(test_a_slot_into_blocks_checks_its_arguments, set_up_small),
    BOTH(test_a_push_goes_to_addresses, set_up_small_one),
    BOTH(test_only_memory_of_caches_can_be_reached, set_up_small_one),
    BOTH(test_pushes_to_addresses_check_their_arguments, set_up_small_one),
    BOTH(test_a_push_reaches_registered_memory_by_its_address, set_up_small_one),
    cmocka_unit_test_setup_teardown(test_links_tell_when_they_change, set_up_small, tear_down),
};
CONFORMANCE_MAIN("progress", tests)

#include "transport/plan.h"

#include "base/log.h"
#include "base/mem.h"

static llm_status
no_memory(size_t num_runs)
{
    return lli_fail(LLM_OUT_OF_MEMORY, "plan", "no memory for a plan of %zu runs", num_runs);
}

// The stream's length must fit 64 bits; a peer may ask for anything.
static llm_status
finish(struct lli_plan *plan)
{
    if (!lli_mul_overflow(plan->tensor_bytes, plan->num_tensors, &plan->total_bytes))
        return LLM_SUCCESS;
    lli_plan_fini(plan);
    return lli_fail(LLM_PARAM_INVALID, "plan", "the transfer is longer than 64 bits can count");
}

llm_status
lli_plan_slot(struct lli_plan *ret_plan, uint64_t num_tensors, uint64_t src_offset,
              uint64_t dst_offset, uint64_t bytes)
{
    struct lli_run *run = lli_malloc(sizeof(*run));
    if (run == NULL)
        return no_memory(1);
    *run = (struct lli_run){.src_offset = src_offset, .dst_offset = dst_offset, .bytes = bytes};
    *ret_plan = (struct lli_plan){
        .num_tensors = num_tensors,
        .runs = run,
        .num_runs = 1,
        .tensor_bytes = bytes,
    };
    return finish(ret_plan);
}

// Shrinks to what was used; a plan may live as long as a transfer.
static struct lli_run *
shrink(struct lli_run *runs, size_t num_runs)
{
    struct lli_run *smaller = lli_realloc(runs, num_runs * sizeof(*runs));
    return smaller != NULL ? smaller : runs;
}

// Lists of blocks are long and often in a row: that is found out for so many at a time.
enum { ROW_STEP = 16 };

// Whether the ROW_STEP blocks behind the first one follow it one by one.
static inline bool
goes_on(const uint64_t *blocks)
{
    uint64_t wrong = 0;
    for (size_t i = 0; i < ROW_STEP; i++)
        wrong |= blocks[i + 1] - blocks[i] - 1;
    return wrong == 0;
}

static size_t
count_row(const uint64_t *a, const uint64_t *b, size_t num_blocks)
{
    size_t count = 1;
    while (count < num_blocks && a[count] == a[count - 1] + 1 && b[count] == b[count - 1] + 1) {
        count++;
        while (count + ROW_STEP <= num_blocks && goes_on(a + count - 1) && goes_on(b + count - 1))
            count += ROW_STEP;
    }
    return count;
}

// How many blocks at the front are neighbours in both lists.  Scattered ones pass by quickly.
static inline size_t
row_length(const uint64_t *a, const uint64_t *b, size_t num_blocks)
{
    bool alone = num_blocks == 1 || a[1] != a[0] + 1 || b[1] != b[0] + 1;
    return alone ? 1 : count_row(a, b, num_blocks);
}

llm_status
lli_plan_blocks(struct lli_plan *ret_plan, uint64_t num_tensors, const uint64_t *src_blocks,
                const uint64_t *dst_blocks, size_t num_blocks, uint64_t stride)
{
    struct lli_run *runs = lli_malloc(num_blocks * sizeof(*runs));
    if (runs == NULL)
        return no_memory(num_blocks);
    size_t num_runs = 0;
    for (size_t i = 0, length; i < num_blocks; i += length) {
        length = row_length(src_blocks + i, dst_blocks + i, num_blocks - i);
        runs[num_runs++] = (struct lli_run){
            .src_offset = src_blocks[i] * stride,
            .dst_offset = dst_blocks[i] * stride,
            .bytes = length * stride,
            .position = i * stride,
        };
    }
    *ret_plan = (struct lli_plan){
        .num_tensors = num_tensors,
        .runs = num_runs < num_blocks / 2 ? shrink(runs, num_runs) : runs,
        .num_runs = num_runs,
        .tensor_bytes = num_blocks * stride,
    };
    return finish(ret_plan);
}

llm_status
lli_plan_scatter(struct lli_plan *ret_plan, uint64_t num_tensors, uint64_t src_offset,
                 const uint64_t *dst_blocks, size_t num_blocks, uint64_t stride, uint64_t bytes)
{
    struct lli_run *runs = lli_malloc(num_blocks * sizeof(*runs));
    if (runs == NULL)
        return no_memory(num_blocks);
    size_t num_runs = 0;
    uint64_t position = 0;
    for (size_t i = 0; i < num_blocks && position < bytes; i++) {
        uint64_t piece_bytes = lli_min(stride, bytes - position);
        if (i > 0 && dst_blocks[i] == dst_blocks[i - 1] + 1) {
            runs[num_runs - 1].bytes += piece_bytes;
        } else {
            runs[num_runs++] = (struct lli_run){
                .src_offset = src_offset + position,
                .dst_offset = dst_blocks[i] * stride,
                .bytes = piece_bytes,
                .position = position,
            };
        }
        position += piece_bytes;
    }
    *ret_plan = (struct lli_plan){
        .num_tensors = num_tensors,
        .runs = runs,
        .num_runs = num_runs,
        .tensor_bytes = position,
    };
    return finish(ret_plan);
}

void
lli_plan_truncate(struct lli_plan *plan, uint64_t tensor_bytes)
{
    if (tensor_bytes >= plan->tensor_bytes)
        return;
    while (plan->num_runs > 0 && plan->runs[plan->num_runs - 1].position >= tensor_bytes)
        plan->num_runs--;
    if (plan->num_runs > 0) {
        struct lli_run *last = &plan->runs[plan->num_runs - 1];
        last->bytes = lli_min(last->bytes, tensor_bytes - last->position);
    }
    plan->tensor_bytes = tensor_bytes;
    plan->total_bytes = tensor_bytes * plan->num_tensors;
}

llm_status
lli_plan_side(struct lli_plan *ret_plan, uint64_t num_tensors, const struct lli_block_run *blocks,
              size_t num_runs, uint64_t stride)
{
    struct lli_run *runs = lli_malloc(num_runs * sizeof(*runs));
    if (runs == NULL)
        return no_memory(num_runs);
    uint64_t position = 0;
    for (size_t i = 0; i < num_runs; i++) {
        runs[i] = (struct lli_run){
            .src_offset = blocks[i].first * stride,
            .dst_offset = blocks[i].first * stride,
            .bytes = blocks[i].count * stride,
            .position = position,
        };
        if (lli_add_overflow(position, runs[i].bytes, &position)) {
            lli_free(runs);
            return lli_fail(LLM_PARAM_INVALID, "plan", "the blocks add up to more than 64 bits");
        }
    }
    *ret_plan = (struct lli_plan){
        .num_tensors = num_tensors,
        .runs = runs,
        .num_runs = num_runs,
        .tensor_bytes = position,
    };
    return finish(ret_plan);
}

llm_status
lli_plan_pairs(struct lli_plan *ret_plan, uint64_t num_tensors, const struct lli_block_run *src,
               size_t num_src, const struct lli_block_run *dst, size_t num_dst, uint64_t stride)
{
    struct lli_run *runs = lli_malloc((num_src + num_dst) * sizeof(*runs));
    if (runs == NULL)
        return no_memory(num_src + num_dst);
    size_t num_runs = 0;
    uint64_t position = 0;
    uint64_t src_done = 0; // blocks of the current source run
    uint64_t dst_done = 0;
    for (size_t i = 0, j = 0; i < num_src && j < num_dst;) {
        uint64_t count = lli_min(src[i].count - src_done, dst[j].count - dst_done);
        runs[num_runs] = (struct lli_run){
            .src_offset = (src[i].first + src_done) * stride,
            .dst_offset = (dst[j].first + dst_done) * stride,
            .bytes = count * stride,
            .position = position,
        };
        if (lli_add_overflow(position, runs[num_runs].bytes, &position)) {
            lli_free(runs);
            return lli_fail(LLM_PARAM_INVALID, "plan", "the blocks add up to more than 64 bits");
        }
        num_runs++;
        src_done += count;
        dst_done += count;
        if (src_done == src[i].count) {
            src_done = 0;
            i++;
        }
        if (dst_done == dst[j].count) {
            dst_done = 0;
            j++;
        }
    }
    *ret_plan = (struct lli_plan){
        .num_tensors = num_tensors,
        .runs = runs,
        .num_runs = num_runs,
        .tensor_bytes = position,
    };
    return finish(ret_plan);
}

void
lli_plan_fini(struct lli_plan *plan)
{
    lli_free(plan->runs);
    memset(plan, 0, sizeof(*plan));
}

struct lli_place
lli_plan_locate(const struct lli_plan *plan, uint64_t position)
{
    struct lli_place place = {.tensor = position / plan->tensor_bytes};
    uint64_t within = position % plan->tensor_bytes;
    size_t low = 0;
    size_t high = plan->num_runs;
    // The last run that begins at or before `within`.
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (plan->runs[middle].position <= within)
            low = middle;
        else
            high = middle;
    }
    place.run = low;
    place.offset = within - plan->runs[low].position;
    return place;
}

llm_status
lli_block_runs_merge(const uint64_t *blocks, size_t num_blocks, struct lli_block_run **ret_runs,
                     size_t *ret_num_runs)
{
    struct lli_block_run *runs = lli_malloc(num_blocks * sizeof(*runs));
    if (runs == NULL)
        return no_memory(num_blocks);
    size_t num_runs = 0;
    for (size_t i = 0, length; i < num_blocks; i += length) {
        length = row_length(blocks + i, blocks + i, num_blocks - i);
        runs[num_runs++] = (struct lli_block_run){.first = blocks[i], .count = length};
    }
    *ret_runs = runs;
    *ret_num_runs = num_runs;
    return LLM_SUCCESS;
}

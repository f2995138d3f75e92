// Calls with random arguments against a small model of the specification: the status and every byte
// of every cache must be what the model says.
//
//   conformance_fuzz_calls tcp 2 --seed 1234    repeats a run
#include "suite.h"

enum { CACHES_MAX = 12, BLOCKS_MAX = 6, LISTS_MAX = 3 };

// ---- the model ----

struct entry {
    struct kv kv;
    bool live;
};

struct side {
    struct party party;
    llm_role role;
    struct entry entries[CACHES_MAX];
    int64_t last_id; // the ids that can't be ours any more
};

struct world {
    struct dice dice;
    struct side decoder;
    struct side prompt;
    struct side mix;
    llm_datadist *blank;
    struct kv hosts[3];
    bool linked;
    size_t num_calls[12];
    size_t num_successes[12];
};

static struct entry *
find_entry(struct side *side, int64_t id)
{
    for (size_t i = 0; i < CACHES_MAX; i++) {
        if (side->entries[i].live && side->entries[i].kv.cache.cache_id == id)
            return &side->entries[i];
    }
    return NULL;
}

static struct entry *
any_entry(struct world *world, struct side *side)
{
    size_t at = roll_below(&world->dice, CACHES_MAX);
    for (size_t i = 0; i < CACHES_MAX; i++) {
        struct entry *entry = &side->entries[(at + i) % CACHES_MAX];
        if (entry->live)
            return entry;
    }
    return NULL;
}

static struct side *
any_side(struct world *world, struct side *usual)
{
    if (!roll_chance(&world->dice, 4))
        return usual;
    struct side *sides[] = {&world->decoder, &world->prompt, &world->mix};
    return sides[roll_below(&world->dice, 3)];
}

static int64_t
any_id(struct world *world, struct side *side)
{
    static const int64_t odd[] = {0, -1, INT64_MAX, INT64_MIN, 1, 2};
    struct entry *entry = any_entry(world, side);
    if (entry == NULL || roll_chance(&world->dice, 5))
        return odd[roll_below(&world->dice, COUNT_OF(odd))];
    if (roll_chance(&world->dice, 3))
        return side->last_id + 1;
    return entry->kv.cache.cache_id;
}

// An index below `end` as a rule.
static uint64_t
any_index(struct world *world, uint64_t end, uint64_t max)
{
    if (!roll_chance(&world->dice, 3))
        return roll_below(&world->dice, end);
    uint64_t odd[] = {end, end + 1, max, max - 1};
    return odd[roll_below(&world->dice, 4)];
}

static int64_t
any_size(struct world *world, size_t stride)
{
    if (roll_chance(&world->dice, 50))
        return -1;
    if (roll_chance(&world->dice, 90))
        return (int64_t)(1 + roll_below(&world->dice, stride + 2));
    int64_t odd[] = {0, -2, INT64_MAX, INT64_MIN, (int64_t)stride + 1};
    return odd[roll_below(&world->dice, COUNT_OF(odd))];
}

// ---- layers ----

static llm_kv_cache_ext_param
any_layers(struct world *world)
{
    static const uint32_t numbers[] = {1, 2, 2, 2, 1, 3, 2, 1, 4, 0, 255, 256};
    struct dice *dice = &world->dice;
    uint32_t per_layer = roll_chance(dice, 85) ? 2 : numbers[roll_below(dice, COUNT_OF(numbers))];
    if (roll_chance(dice, 50))
        return layers(-1, -1, -1, -1, per_layer);
    int32_t first = (int32_t)roll_below(dice, 2);
    int32_t length = roll_chance(dice, 80) ? 0 : (int32_t)roll_below(dice, 3);
    int32_t dst = (int32_t)roll_below(dice, 2);
    llm_kv_cache_ext_param param = layers(first, first + length, dst, dst + length, per_layer);
    int32_t *odd[] = {&param.src_layer_range[0], &param.src_layer_range[1],
                      &param.dst_layer_range[0], &param.dst_layer_range[1]};
    static const int32_t values[] = {-1, -1, -2, 0, 1, 5, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < 4; i++) {
        if (roll_chance(dice, 4))
            *odd[i] = values[roll_below(dice, COUNT_OF(values))];
    }
    return param;
}

static bool
is_bad_range(const int32_t *range)
{
    return range[0] < -1 || range[1] < -1 || range[0] > range[1];
}

static bool
is_given(const int32_t *range)
{
    return range[0] >= 0 && range[1] >= 0;
}

static bool
have_equal_length(const llm_kv_cache_ext_param *param)
{
    return (int64_t)param->src_layer_range[1] - param->src_layer_range[0] ==
           (int64_t)param->dst_layer_range[1] - param->dst_layer_range[0];
}

static bool
is_bad_param(const llm_kv_cache_ext_param *param)
{
    return is_bad_range(param->src_layer_range) || is_bad_range(param->dst_layer_range) ||
           param->tensor_num_per_layer < 1 || param->tensor_num_per_layer > 255;
}

// Tensors [src_first, +count) -> [dst_first, +count).
struct span {
    uint64_t src_first;
    uint64_t dst_first;
    uint64_t count;
};

// §8.1, Pull.  The local side is dst.
static bool
select_pulled(const llm_kv_cache_ext_param *param, uint64_t num_local, struct span *span)
{
    uint64_t n = param->tensor_num_per_layer;
    if (!is_given(param->src_layer_range) || !is_given(param->dst_layer_range)) {
        *span = (struct span){0, 0, num_local};
        return n == 2 || num_local % n == 0;
    }
    span->src_first = (uint64_t)param->src_layer_range[0] * n;
    span->dst_first = (uint64_t)param->dst_layer_range[0] * n;
    int64_t num_layers = (int64_t)param->dst_layer_range[1] - param->dst_layer_range[0] + 1;
    span->count = (uint64_t)num_layers * n;
    return span->dst_first + span->count <= num_local && num_local % n == 0;
}

static bool
fits_pulled(const llm_kv_cache_ext_param *param, uint64_t num_remote, const struct span *span)
{
    if (!is_given(param->src_layer_range) || !is_given(param->dst_layer_range))
        return num_remote == span->count;
    return num_remote % param->tensor_num_per_layer == 0 &&
           span->src_first + span->count <= num_remote;
}

// §8.4, checks 10 and 11.
static bool
select_pushed(const llm_kv_cache_ext_param *param, uint64_t num_named, uint64_t num_local,
              struct span *span)
{
    int64_t n = param->tensor_num_per_layer;
    int64_t num_layers = (int64_t)num_local < n ? 1 : (int64_t)num_local / n;
    int64_t src = param->src_layer_range[0];
    int64_t dst = param->dst_layer_range[0];
    int64_t count = (int64_t)param->src_layer_range[1] - src + 1;
    if (!is_given(param->src_layer_range)) {
        src = dst = 0;
        count = ((int64_t)num_named + n - 1) / n;
    }
    *span = (struct span){(uint64_t)(src * n), (uint64_t)(dst * n), (uint64_t)(count * n)};
    return src + count <= num_layers && dst >= 0 && dst + count <= num_layers &&
           (int64_t)num_local % n == 0;
}

// ---- blocks ----

struct blocks {
    uint64_t src[BLOCKS_MAX];
    uint64_t dst[BLOCKS_MAX];
    size_t num_src;
    size_t num_dst;
};

// Destinations differ from each other: of two with one, either may win.
static void
any_blocks(struct world *world, size_t src_slots, size_t dst_slots, struct blocks *blocks)
{
    struct dice *dice = &world->dice;
    size_t most = dst_slots < BLOCKS_MAX ? dst_slots : BLOCKS_MAX;
    size_t count = 1 + roll_below(dice, most);
    size_t start = roll_below(dice, dst_slots);
    size_t step = roll_chance(dice, 50) ? 1 : dst_slots - 1;
    blocks->num_src = blocks->num_dst = count;
    for (size_t i = 0; i < count; i++) {
        blocks->src[i] = any_index(world, src_slots, UINT64_MAX);
        blocks->dst[i] = (start + i * (step == 0 ? 1 : step)) % dst_slots;
    }
    if (roll_chance(dice, 3))
        blocks->dst[roll_below(dice, count)] = any_index(world, dst_slots, UINT64_MAX) + dst_slots;
    if (roll_chance(dice, 2))
        blocks->num_src = roll_below(dice, BLOCKS_MAX);
    if (roll_chance(dice, 2))
        blocks->num_dst = roll_below(dice, BLOCKS_MAX);
    for (size_t i = count; i < BLOCKS_MAX; i++)
        blocks->src[i] = blocks->dst[i] = UINT64_MAX;
}

static bool
are_below(const uint64_t *list, size_t count, int64_t end)
{
    for (size_t i = 0; i < count; i++) {
        if (list[i] >= (uint64_t)end)
            return false;
    }
    return true;
}

// ---- transfers ----

enum {
    PULL_CACHE,
    PULL_BLOCKS,
    PUSH_CACHE,
    PUSH_BLOCKS,
    COPY_CACHE,
    COPY_BLOCKS,
    ALLOCATE,
    DEALLOCATE,
    LINK,
    UNLINK
};

// What the specification says about the link and the far side of a transfer, after the near side's
// own checks.
static llm_status
expect_far(struct world *world, uint64_t cluster_id, struct side *far, int64_t id,
           struct entry **ret_entry)
{
    if (!world->linked || cluster_id != far->party.id)
        return LLM_NOT_YET_LINK;
    *ret_entry = find_entry(far, id);
    return *ret_entry == NULL ? LLM_KV_CACHE_NOT_EXIST : LLM_SUCCESS;
}

struct transfer {
    bool blank;
    bool blocks;
    struct side *near; // who calls
    llm_cache_index far_index;
    int64_t near_id;
    uint32_t slot;
    int64_t size;
    llm_kv_cache_ext_param param;
    struct blocks list;
    llm_cache_desc desc; // push: the caller's
};

static llm_status
expect_pull(struct world *world, const struct transfer *t, struct entry **near, struct entry **far,
            struct span *span, size_t *bytes)
{
    if (t->blank)
        return LLM_FAILED;
    if (!t->blocks && t->size != -1 && t->size <= 0)
        return LLM_PARAM_INVALID;
    if (t->blocks && t->far_index.batch_index != 0)
        return LLM_PARAM_INVALID;
    if (is_bad_param(&t->param))
        return LLM_PARAM_INVALID;
    if (is_given(t->param.src_layer_range) && is_given(t->param.dst_layer_range) &&
        !have_equal_length(&t->param))
        return LLM_PARAM_INVALID;
    if (t->near->role != LLM_ROLE_DECODER)
        return LLM_PARAM_INVALID;
    if (t->blocks && (t->list.num_src == 0 || t->list.num_src != t->list.num_dst))
        return LLM_PARAM_INVALID;
    *near = find_entry(t->near, t->near_id);
    if (*near == NULL)
        return LLM_KV_CACHE_NOT_EXIST;
    const struct kv *local = &(*near)->kv;
    if (!t->blocks && t->slot >= local->shape[0])
        return LLM_PARAM_INVALID;
    if (t->blocks && !are_below(t->list.dst, t->list.num_dst, local->shape[0]))
        return LLM_PARAM_INVALID;
    if (!select_pulled(&t->param, local->desc.num_tensors, span))
        return LLM_PARAM_INVALID;
    if (!t->blocks && t->size > 0 && (uint64_t)t->size > local->stride)
        return LLM_PARAM_INVALID;
    *bytes = t->blocks || t->size == -1 ? local->stride : (size_t)t->size;
    llm_status status =
        expect_far(world, t->far_index.cluster_id, &world->prompt, t->far_index.cache_id, far);
    if (status != LLM_SUCCESS)
        return status;
    const struct kv *remote = &(*far)->kv;
    if (!t->blocks && t->far_index.batch_index >= remote->shape[0])
        return LLM_KV_CACHE_NOT_EXIST;
    if (!t->blocks && *bytes > remote->stride)
        return LLM_PARAM_INVALID;
    if (t->blocks && local->stride != remote->stride)
        return LLM_PARAM_INVALID;
    if (t->blocks && !are_below(t->list.src, t->list.num_src, remote->shape[0]))
        return LLM_PARAM_INVALID;
    return fits_pulled(&t->param, remote->desc.num_tensors, span) ? LLM_SUCCESS : LLM_PARAM_INVALID;
}

static llm_status
expect_push(struct world *world, const struct transfer *t, struct entry **near, struct entry **far,
            struct span *span)
{
    if (t->blank)
        return LLM_FAILED;
    if (t->desc.placement != LLM_PLACEMENT_DEVICE)
        return LLM_PARAM_INVALID;
    if (!t->blocks && t->size != -1)
        return LLM_PARAM_INVALID;
    if (t->blocks && (t->list.num_src == 0 || t->list.num_src != t->list.num_dst ||
                      t->far_index.batch_index != 0))
        return LLM_PARAM_INVALID;
    if (is_bad_param(&t->param) || !have_equal_length(&t->param))
        return LLM_PARAM_INVALID;
    if (t->param.src_layer_range[0] == -1 && t->desc.num_tensors == 0)
        return LLM_PARAM_INVALID;
    if (t->near->party.num_devices > 1)
        return LLM_FEATURE_NOT_ENABLED;
    if (t->near->role != LLM_ROLE_PROMPT)
        return LLM_PARAM_INVALID;
    *near = find_entry(t->near, t->near_id);
    if (*near == NULL)
        return LLM_KV_CACHE_NOT_EXIST;
    const struct kv *local = &(*near)->kv;
    if (!t->blocks && t->slot >= local->shape[0])
        return LLM_PARAM_INVALID;
    if (!select_pushed(&t->param, t->desc.num_tensors, local->desc.num_tensors, span))
        return LLM_PARAM_INVALID;
    if (t->blocks && !are_below(t->list.src, t->list.num_src, local->shape[0]))
        return LLM_PARAM_INVALID;
    llm_status status =
        expect_far(world, t->far_index.cluster_id, &world->decoder, t->far_index.cache_id, far);
    if (status != LLM_SUCCESS)
        return status;
    const struct kv *remote = &(*far)->kv;
    if (!t->blocks && t->far_index.batch_index >= remote->shape[0])
        return LLM_KV_CACHE_NOT_EXIST;
    if (!t->blocks && local->stride > remote->stride)
        return LLM_PARAM_INVALID;
    if (t->blocks && local->stride != remote->stride)
        return LLM_PARAM_INVALID;
    if (t->blocks && !are_below(t->list.dst, t->list.num_dst, remote->shape[0]))
        return LLM_PARAM_INVALID;
    uint64_t num_remote = remote->desc.num_tensors;
    return num_remote % t->param.tensor_num_per_layer == 0 &&
                   span->dst_first + span->count <= num_remote
               ? LLM_SUCCESS
               : LLM_PARAM_INVALID;
}

static void
check_call(struct world *world, unsigned kind, llm_status actual, llm_status expected)
{
    char why[1024] = "";
    world->num_calls[kind]++;
    world->num_successes[kind] += actual == LLM_SUCCESS;
    if (actual != LLM_SUCCESS)
        llm_last_error(why, sizeof(why));
    if (actual != expected)
        print_error("call %u: the model says %s\n", kind, llm_status_name(expected));
    assert_status(actual, expected);
    // Never in version 1; and nobody fails without a word.
    assert_true(actual != LLM_TIMEOUT);
    assert_true(actual == LLM_SUCCESS || why[0] != '\0');
}

static void
try_transfer(struct world *world, unsigned kind)
{
    struct dice *dice = &world->dice;
    bool push = kind == PUSH_CACHE || kind == PUSH_BLOCKS;
    struct side *near_side = push ? &world->prompt : &world->decoder;
    struct side *far_side = push ? &world->decoder : &world->prompt;
    struct entry *near = NULL;
    struct entry *far = NULL;
    struct span span = {0};
    size_t bytes = 0;
    struct transfer t = {
        .blank = roll_chance(dice, 1),
        .blocks = kind == PULL_BLOCKS || kind == PUSH_BLOCKS,
        .near = any_side(world, near_side),
        .near_id = any_id(world, near_side),
        .param = any_layers(world),
        .desc = {.struct_size = sizeof(t.desc), .placement = LLM_PLACEMENT_DEVICE},
    };
    t.far_index = (llm_cache_index){
        .struct_size = sizeof(t.far_index),
        .cluster_id = roll_chance(dice, 2) ? 4711 : far_side->party.id,
        .cache_id = any_id(world, far_side),
    };
    // What fits the two caches, as a rule.
    struct entry *guess_near = find_entry(near_side, t.near_id);
    struct entry *guess_far = find_entry(far_side, t.far_index.cache_id);
    size_t near_slots = guess_near != NULL ? (size_t)guess_near->kv.shape[0] : 4;
    size_t far_slots = guess_far != NULL ? (size_t)guess_far->kv.shape[0] : 4;
    size_t near_stride = guess_near != NULL ? guess_near->kv.stride : 16;
    if (guess_near != NULL)
        t.desc.num_tensors = guess_near->kv.desc.num_tensors;
    if (roll_chance(dice, 3))
        t.desc.num_tensors = (uint32_t)roll_below(dice, 9);
    if (roll_chance(dice, 1))
        t.desc.placement = LLM_PLACEMENT_HOST;
    t.slot = (uint32_t)any_index(world, near_slots, UINT32_MAX);
    t.size = push && roll_chance(dice, 97) ? -1 : any_size(world, near_stride);
    if (!t.blocks || roll_chance(dice, 2))
        t.far_index.batch_index = (uint32_t)any_index(world, far_slots, UINT32_MAX);
    any_blocks(world, push ? near_slots : far_slots, push ? far_slots : near_slots, &t.list);

    llm_datadist *dd = t.blank ? world->blank : t.near->party.dd;
    llm_cache near_cache = {
        .struct_size = sizeof(near_cache),
        .cache_id = t.near_id,
        .desc = push ? &t.desc : NULL,
    };
    llm_status expected;
    llm_status actual;
    if (push)
        expected = expect_push(world, &t, &near, &far, &span);
    else
        expected = expect_pull(world, &t, &near, &far, &span, &bytes);
    switch (kind) {
    case PULL_CACHE:
        actual = llm_pull_kv_cache(dd, &t.far_index, &near_cache, t.slot, t.size, &t.param);
        break;
    case PULL_BLOCKS:
        actual = llm_pull_kv_blocks(dd, &t.far_index, &near_cache, t.list.src, t.list.num_src,
                                    t.list.dst, t.list.num_dst, &t.param);
        break;
    case PUSH_CACHE:
        actual = llm_push_kv_cache(dd, &near_cache, &t.far_index, t.slot, t.size, &t.param);
        break;
    default:
        actual = llm_push_kv_blocks(dd, &near_cache, &t.far_index, t.list.src, t.list.num_src,
                                    t.list.dst, t.list.num_dst, &t.param);
    }
    if (actual != expected)
        print_error("%s %s: near %lld, far %lld, layers {%d, %d} {%d, %d} by %u\n",
                    push ? "push" : "pull", t.blocks ? "blocks" : "slot", (long long)t.near_id,
                    (long long)t.far_index.cache_id, t.param.src_layer_range[0],
                    t.param.src_layer_range[1], t.param.dst_layer_range[0],
                    t.param.dst_layer_range[1], t.param.tensor_num_per_layer);
    check_call(world, kind, actual, expected);
    if (expected == LLM_SUCCESS) {
        const struct kv *src = push ? &near->kv : &far->kv;
        struct kv *dst = push ? &far->kv : &near->kv;
        for (uint64_t i = 0; i < span.count; i++) {
            uint32_t from = (uint32_t)(span.src_first + i);
            uint32_t to = (uint32_t)(span.dst_first + i);
            if (t.blocks) {
                for (size_t k = 0; k < t.list.num_src; k++)
                    expect_slot(dst, to, t.list.dst[k], src, from, t.list.src[k], src->stride);
            } else if (push) {
                expect_slot(dst, to, t.far_index.batch_index, src, from, t.slot, src->stride);
            } else {
                expect_slot(dst, to, t.slot, src, from, t.far_index.batch_index, bytes);
            }
        }
        assert_kv(src);
        assert_kv(dst);
    } else if (near != NULL && far != NULL) {
        assert_kv(&near->kv);
        assert_kv(&far->kv);
    }
}

// ---- copies ----

static struct kv *
any_kv(struct world *world)
{
    struct entry *entry = any_entry(world, &world->decoder);
    if (entry == NULL || roll_chance(&world->dice, 30))
        return &world->hosts[roll_below(&world->dice, COUNT_OF(world->hosts))];
    return &entry->kv;
}

// A struct of the caller's, damaged now and then in one place.
struct copied {
    struct kv *kv;
    llm_cache cache;
    llm_cache_desc desc;
    int64_t shape[2];
    bool bad;
};

static void
take(struct world *world, struct copied *copied)
{
    struct dice *dice = &world->dice;
    copied->kv = any_kv(world);
    copied->cache = copied->kv->cache;
    copied->desc = copied->kv->desc;
    memcpy(copied->shape, copied->kv->shape, sizeof(copied->shape));
    copied->desc.shape = copied->shape;
    copied->cache.desc = &copied->desc;
    copied->bad = roll_chance(dice, 3);
    if (!copied->bad)
        return;
    switch (roll_below(dice, 5)) {
    case 0:
        copied->shape[roll_below(dice, 2)] = 0;
        break;
    case 1:
        copied->shape[0] = INT64_MAX;
        copied->shape[1] = 2;
        break;
    case 2:
        copied->desc.data_type = LLM_DT_UNDEFINED;
        break;
    case 3:
        copied->cache.num_tensor_addrs--;
        break;
    default:
        copied->cache.num_tensor_addrs++;
    }
}

static llm_status
expect_copy_cache(const struct copied *src, const struct copied *dst, uint32_t from, uint32_t to,
                  uint64_t offset, int64_t size, size_t *bytes)
{
    if (src->desc.placement == LLM_PLACEMENT_HOST || src->bad || dst->bad)
        return LLM_PARAM_INVALID;
    if ((size != -1 && size <= 0) || from >= src->shape[0] || to >= dst->shape[0])
        return LLM_PARAM_INVALID;
    if (offset > 0 && (offset >= src->kv->stride || offset >= dst->kv->stride))
        return LLM_PARAM_INVALID;
    *bytes = size == -1 ? src->kv->stride - offset : (size_t)size;
    if (*bytes > src->kv->stride - offset || *bytes > dst->kv->stride - offset)
        return LLM_PARAM_INVALID;
    return src->desc.num_tensors == dst->desc.num_tensors ? LLM_SUCCESS : LLM_PARAM_INVALID;
}

static void
try_copy_cache(struct world *world)
{
    struct dice *dice = &world->dice;
    struct copied src;
    struct copied dst;
    size_t bytes = 0;
    take(world, &src);
    take(world, &dst);
    uint32_t from = (uint32_t)any_index(world, (size_t)src.kv->shape[0], UINT32_MAX);
    uint32_t to = (uint32_t)any_index(world, (size_t)dst.kv->shape[0], UINT32_MAX);
    uint64_t offset = roll_chance(dice, 50) ? 0 : any_index(world, src.kv->stride, UINT64_MAX);
    int64_t size = any_size(world, src.kv->stride);
    bool blank = roll_chance(dice, 1);
    llm_status expected =
        blank ? LLM_FAILED : expect_copy_cache(&src, &dst, from, to, offset, size, &bytes);
    llm_status actual = llm_copy_kv_cache(blank ? world->blank : world->decoder.party.dd,
                                          &src.cache, &dst.cache, from, to, offset, size);
    check_call(world, COPY_CACHE, actual, expected);
    for (uint32_t t = 0; expected == LLM_SUCCESS && t < src.desc.num_tensors; t++)
        expect_copy(dst.kv, t, to * dst.kv->stride + offset, src.kv, t,
                    from * src.kv->stride + offset, bytes);
    assert_kv(src.kv);
    assert_kv(dst.kv);
}

static void
try_copy_blocks(struct world *world)
{
    struct dice *dice = &world->dice;
    struct copied src;
    struct copied dst;
    take(world, &src);
    take(world, &dst);
    if (src.kv == dst.kv)
        return; // which of two pairs is first is nobody's promise
    struct blocks lists[LISTS_MAX];
    const uint64_t *dst_lists[LISTS_MAX];
    size_t num_dst[LISTS_MAX];
    size_t num_lists = roll_chance(dice, 2) ? 0 : 1 + roll_below(dice, LISTS_MAX);
    any_blocks(world, (size_t)src.kv->shape[0], (size_t)dst.kv->shape[0], &lists[0]);
    for (size_t j = 0; j < LISTS_MAX; j++) {
        if (j > 0)
            lists[j] = lists[0];
        // Lists may name one block twice: the same source, or it isn't tried.
        dst_lists[j] = lists[j].dst;
        num_dst[j] = lists[j].num_dst;
    }
    bool blank = roll_chance(dice, 1);
    llm_status expected = LLM_SUCCESS;
    if (blank)
        expected = LLM_FAILED;
    else if (lists[0].num_src == 0 || num_lists == 0 || src.bad || dst.bad ||
             src.kv->stride != dst.kv->stride)
        expected = LLM_PARAM_INVALID;
    else if (src.desc.placement == LLM_PLACEMENT_HOST && dst.desc.placement == LLM_PLACEMENT_HOST)
        expected = LLM_PARAM_INVALID;
    else if (lists[0].num_src != lists[0].num_dst ||
             !are_below(lists[0].src, lists[0].num_src, src.shape[0]) ||
             !are_below(lists[0].dst, lists[0].num_dst, dst.shape[0]) ||
             src.desc.num_tensors != dst.desc.num_tensors)
        expected = LLM_PARAM_INVALID;
    llm_status actual =
        llm_copy_kv_blocks(blank ? world->blank : world->decoder.party.dd, &src.cache, &dst.cache,
                           lists[0].src, lists[0].num_src, dst_lists, num_dst, num_lists);
    check_call(world, COPY_BLOCKS, actual, expected);
    for (uint32_t t = 0; expected == LLM_SUCCESS && t < src.desc.num_tensors; t++) {
        for (size_t k = 0; k < lists[0].num_src; k++)
            expect_slot(dst.kv, t, lists[0].dst[k], src.kv, t, lists[0].src[k], src.kv->stride);
    }
    assert_kv(src.kv);
    assert_kv(dst.kv);
}

// ---- caches and links ----

static void
try_allocate(struct world *world, struct side *side)
{
    static const int64_t strides[] = {16, 16, 16, 16, 16, 16, 8, 48};
    static const uint32_t numbers[] = {2, 2, 2, 2, 4, 4, 1, 6, 5};
    struct dice *dice = &world->dice;
    struct entry *entry = NULL;
    for (size_t i = 0; i < CACHES_MAX && entry == NULL; i++) {
        if (!side->entries[i].live)
            entry = &side->entries[i];
    }
    if (entry == NULL)
        return;
    if (roll_chance(dice, 80)) {
        open_bytes(&entry->kv, &side->party, numbers[roll_below(dice, COUNT_OF(numbers))],
                   1 + (int64_t)roll_below(dice, 6), strides[roll_below(dice, COUNT_OF(strides))]);
        entry->live = true;
        assert_true(entry->kv.cache.cache_id > side->last_id);
        side->last_id = entry->kv.cache.cache_id;
        world->num_calls[ALLOCATE]++;
        world->num_successes[ALLOCATE]++;
        return;
    }
    int64_t shape[2] = {4, 4};
    uintptr_t addresses[8 * DEVICES_MAX] = {0};
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = 2,
        .data_type = LLM_DT_INT8,
        .shape = shape,
        .num_dims = 2,
    };
    llm_cache cache = {
        .struct_size = sizeof(cache),
        .cache_id = SENTINEL,
        .tensor_addrs = addresses,
        .num_tensor_addrs = COUNT_OF(addresses),
    };
    llm_status expected = LLM_PARAM_INVALID;
    switch (roll_below(dice, 7)) {
    case 0:
        desc.num_tensors = 0;
        break;
    case 1:
        desc.placement = LLM_PLACEMENT_HOST;
        break;
    case 2:
        desc.num_dims = roll_chance(dice, 50) ? 0 : 32 + roll_below(dice, 1000);
        break;
    case 3:
        shape[roll_below(dice, 2)] = -(int64_t)roll_below(dice, 3);
        break;
    case 4:
        shape[0] = INT64_MAX - (int64_t)roll_below(dice, 3);
        break;
    case 5:
        desc.data_type = roll_chance(dice, 50) ? 5 : 42 + (int32_t)roll_below(dice, 100);
        break;
    default:
        shape[0] = (int64_t)1 << (28 + roll_below(dice, 20));
        expected = LLM_DEVICE_OUT_OF_MEMORY;
    }
    check_call(world, ALLOCATE, llm_allocate_cache(side->party.dd, &desc, &cache), expected);
    assert_int_equal(cache.cache_id, SENTINEL);
    assert_true(addresses[0] == 0);
}

static void
try_deallocate(struct world *world, struct side *side)
{
    int64_t id = any_id(world, side);
    struct entry *entry = find_entry(side, id);
    check_call(world, DEALLOCATE, llm_deallocate_cache(side->party.dd, id),
               entry != NULL ? LLM_SUCCESS : LLM_KV_CACHE_NOT_EXIST);
    if (entry != NULL) {
        forget_kv(&entry->kv);
        entry->live = false;
    }
}

static void
try_link(struct world *world)
{
    llm_cluster_info cluster = cluster_of(&world->prompt.party);
    llm_status ret = SENTINEL;
    llm_status expected = world->linked ? LLM_ALREADY_LINK : LLM_SUCCESS;
    check_call(world, LINK, link_one(&world->decoder.party, &cluster, &ret), expected);
    assert_int_equal(ret, expected);
    world->linked = true;
}

static void
try_unlink(struct world *world)
{
    llm_cluster_info cluster = cluster_of(&world->prompt.party);
    llm_status ret = SENTINEL;
    check_call(world, UNLINK, unlink_one(&world->decoder.party, &cluster, false, &ret),
               LLM_SUCCESS);
    assert_int_equal(ret, world->linked ? LLM_SUCCESS : LLM_NOT_YET_LINK);
    world->linked = false;
}

// ---- the run ----

static void
check_side(const struct side *side)
{
    for (size_t i = 0; i < CACHES_MAX; i++) {
        if (side->entries[i].live)
            assert_kv(&side->entries[i].kv);
    }
}

static void
check_world(const struct world *world)
{
    check_side(&world->decoder);
    check_side(&world->prompt);
    for (size_t i = 0; i < COUNT_OF(world->hosts); i++)
        assert_kv(&world->hosts[i]);
}

static void
open_side(struct side *side, uint64_t id, llm_role role)
{
    side->role = role;
    open_party(&side->party, id, role);
}

static void
close_side(struct side *side)
{
    close_party(&side->party);
    for (size_t i = 0; i < CACHES_MAX; i++) {
        if (side->entries[i].live)
            forget_kv(&side->entries[i].kv);
    }
}

static void
step(struct world *world)
{
    struct dice *dice = &world->dice;
    uint64_t choice = roll_below(dice, 100);
    struct side *side = roll_chance(dice, 50) ? &world->decoder : &world->prompt;
    if (choice < 68)
        try_transfer(world, (unsigned)roll_below(dice, 4));
    else if (choice < 78)
        try_copy_cache(world);
    else if (choice < 88)
        try_copy_blocks(world);
    else if (choice < 93)
        try_allocate(world, side);
    else if (choice < 96)
        try_deallocate(world, side);
    else if (choice < 99)
        try_link(world);
    else if (roll_chance(dice, 30))
        try_unlink(world);
}

static void
conformance_11_rule_01_random_calls_answer_as_the_model_says(void **state)
{
    static const char *const names[] = {"pull_kv_cache",  "pull_kv_blocks",   "push_kv_cache",
                                        "push_kv_blocks", "copy_kv_cache",    "copy_kv_blocks",
                                        "allocate_cache", "deallocate_cache", "link_clusters",
                                        "unlink_clusters"};
    struct world *world = calloc(1, sizeof(*world));
    (void)state;
    assert_non_null(world);
    print_message("replay with --seed %llu\n", (unsigned long long)suite.seed);
    world->dice.state = suite.seed;
    open_side(&world->decoder, 2, LLM_ROLE_DECODER);
    open_side(&world->prompt, 1, LLM_ROLE_PROMPT);
    open_side(&world->mix, 3, LLM_ROLE_MIX);
    assert_ok(llm_create(4, LLM_ROLE_DECODER, &world->blank));
    make_bytes(&world->hosts[0], LLM_PLACEMENT_HOST, suite.num_devices, 2, 4, 16);
    make_bytes(&world->hosts[1], LLM_PLACEMENT_HOST, suite.num_devices, 4, 5, 16);
    make_bytes(&world->hosts[2], LLM_PLACEMENT_HOST, suite.num_devices, 2, 3, 48);
    for (int i = 0; i < 6; i++) {
        try_allocate(world, &world->decoder);
        try_allocate(world, &world->prompt);
    }
    for (unsigned i = 0; i < rounds(40000); i++) {
        step(world);
        if (i % 64 == 0)
            check_world(world);
    }
    check_world(world);
    for (size_t i = 0; i < COUNT_OF(names); i++)
        print_message("%-16s %6zu calls, %6zu successful\n", names[i], world->num_calls[i],
                      world->num_successes[i]);
    close_side(&world->decoder);
    close_side(&world->prompt);
    close_side(&world->mix);
    llm_destroy(world->blank);
    for (size_t i = 0; i < COUNT_OF(world->hosts); i++)
        forget_kv(&world->hosts[i]);
    free(world);
}

#define TEST(test) cmocka_unit_test(test)

static const struct CMUnitTest tests[] = {
    TEST(conformance_11_rule_01_random_calls_answer_as_the_model_says),
};
CONFORMANCE_MAIN("Random calls", tests)

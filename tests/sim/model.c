#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scenario.h"

static struct cache *caches;
static struct op *ops;
static unsigned next_number;
static uint64_t next_serial;

// ---- patterns ----

static uint64_t
word_of(const struct cache *cache, uint32_t tensor, uint32_t slot, uint64_t word)
{
    return (uint64_t)cache->number << 40 | (uint64_t)tensor << 36 | (uint64_t)slot << 32 | word;
}

static uint8_t *
expected_at(const struct cache *cache, uint32_t tensor, uint64_t slot)
{
    return cache->expected + ((uint64_t)tensor * cache->num_slots + slot) * cache->stride;
}

static uint8_t *
memory_at(const struct cache *cache, uint32_t tensor, uint64_t slot)
{
    return cache->tensors[tensor] + slot * cache->stride;
}

static void
complain(const struct cache *cache, uint32_t tensor, uint64_t slot, const uint8_t *wanted,
         uint64_t bytes, const char *when)
{
    const uint8_t *found = memory_at(cache, tensor, slot);
    uint64_t offset = 0;
    uint64_t word;
    while (offset < bytes && found[offset] == wanted[offset])
        offset++;
    memcpy(&word, found + offset / 8 * 8, sizeof(word));
    sim_fail("%s: %s cache #%u (id %lld of cluster %llu) tensor %u slot %llu byte %llu is not what "
             "it should be: it looks like cache #%llu tensor %llu slot %llu word %llu",
             when, cache->target ? "target" : "source", cache->number, (long long)cache->id,
             (unsigned long long)cache->cluster_id, tensor, (unsigned long long)slot,
             (unsigned long long)offset, (unsigned long long)(word >> 40),
             (unsigned long long)(word >> 36 & 15), (unsigned long long)(word >> 32 & 15),
             (unsigned long long)(word & UINT32_MAX));
}

// ---- caches ----

struct cache *
model_cache_new(const struct node *node, struct sim_process *process, uint64_t cluster_id,
                bool target, uint32_t num_tensors, uint32_t num_slots, uint64_t stride)
{
    struct cache *cache = calloc(1, sizeof(*cache));
    *cache = (struct cache){
        .next = caches,
        .number = ++next_number,
        .node = node,
        .process = process,
        .cluster_id = cluster_id,
        .target = target,
        .num_tensors = num_tensors,
        .num_slots = num_slots,
        .stride = stride,
        .born_ns = sim.now_ns,
        .end_ns = SIM_NEVER,
        .expected = malloc(num_tensors * num_slots * stride),
    };
    caches = cache;
    return cache;
}

static bool
is_named(const struct cache *cache, uint64_t cluster_id, int64_t id)
{
    return cache->cluster_id == cluster_id && cache->id == id;
}

void
model_cache_born(struct cache *cache, int64_t id, uint8_t *const *tensors)
{
    for (uint32_t t = 0; t < cache->num_tensors; t++) {
        cache->tensors[t] = tensors[t];
        for (uint32_t s = 0; s < cache->num_slots; s++) {
            uint64_t *words = (uint64_t *)(void *)expected_at(cache, t, s);
            for (uint64_t w = 0; w < cache->stride / 8; w++)
                words[w] = word_of(cache, t, s, w);
        }
        memcpy(tensors[t], expected_at(cache, t, 0), cache->num_slots * cache->stride);
    }
    cache->id = id;
    cache->readable = true;
    cache->filled_ns = sim.now_ns;
    // A push names cluster and cache: it may still be on its way to one of the same name.
    for (struct op *op = ops; op != NULL; op = op->next) {
        if (!op->push || !cache->target || !is_named(cache, op->cluster_id, op->remote_id))
            continue;
        for (size_t i = 0; i < op->num_slots; i++) {
            if (op->remote_slots[i] < cache->num_slots)
                cache->busy[op->remote_slots[i]] = op;
        }
    }
}

void
model_cache_ends(struct cache *cache)
{
    cache->ending = true;
    cache->readable = false;
}

void
model_cache_ended(struct cache *cache)
{
    cache->end_ns = sim.now_ns;
}

struct cache *
model_caches(void)
{
    return caches;
}

static bool
is_peers_cache(const struct cache *cache, const struct op *op)
{
    return is_named(cache, op->cluster_id, op->remote_id) &&
           (op->generation == 0 || cache->generation == 0 || op->generation == cache->generation);
}

static bool
was_live(const struct cache *cache, const struct op *op)
{
    return cache->id != 0 && cache->end_ns >= op->start_ns;
}

// ---- comparing ----

static void
check_cache(const struct cache *cache)
{
    for (uint32_t t = 0; t < cache->num_tensors; t++) {
        for (uint32_t s = 0; s < cache->num_slots; s++) {
            if (cache->busy[s] == NULL && cache->doubts[s].from == 0 &&
                memcmp(memory_at(cache, t, s), expected_at(cache, t, s), cache->stride) != 0)
                complain(cache, t, s, expected_at(cache, t, s), cache->stride,
                         "nobody may write there");
        }
    }
}

void
model_check(void)
{
    for (const struct cache *cache = caches; cache != NULL && !sim.failed; cache = cache->next) {
        if (cache->readable)
            check_cache(cache);
    }
}

// ---- operations ----

static bool
is_target_of(const struct cache *cache, const struct op *op)
{
    if (op->push)
        return cache->target && is_peers_cache(cache, op);
    return cache == op->local;
}

static const uint64_t *
written_slots(const struct op *op)
{
    return op->push ? op->remote_slots : op->local_slots;
}

struct op *
model_op_begin(const struct op *template)
{
    struct op *op = malloc(sizeof(*op));
    *op = *template;
    op->serial = ++next_serial;
    op->start_ns = sim.now_ns;
    op->hindered_ns = sim_process_hindered_ns(op->process);
    op->next = ops;
    ops = op;
    op->local->num_users++;
    for (struct cache *cache = caches; cache != NULL; cache = cache->next) {
        for (size_t i = 0; cache->readable && is_target_of(cache, op) && i < op->num_slots; i++) {
            if (written_slots(op)[i] < cache->num_slots)
                cache->busy[written_slots(op)[i]] = op;
        }
    }
    sim_trace("op %llu: %s %s %s cluster %llu cache %lld, %zu slots, %u tensors of %llu bytes",
              (unsigned long long)op->serial, op->process->name, op->push ? "pushes" : "pulls",
              op->push ? "to" : "from", (unsigned long long)op->cluster_id,
              (long long)op->remote_id, op->num_slots, op->num_tensors,
              (unsigned long long)op->bytes);
    return op;
}

bool
model_pick_slots(const struct cache *cache, size_t count, uint64_t *ret_slots)
{
    size_t found = 0;
    uint32_t first = (uint32_t)sim_below(cache->num_slots);
    uint32_t step = sim_chance(2) ? 1 : cache->num_slots - 1;
    for (uint32_t i = 0; i < cache->num_slots && found < count; i++) {
        uint32_t slot = (first + i * step) % cache->num_slots;
        if (cache->busy[slot] == NULL && cache->doubts[slot].from == 0)
            ret_slots[found++] = slot;
    }
    return found == count;
}

static bool
holds(const struct op *op, const struct cache *to, const struct cache *from)
{
    const uint64_t *from_slots = op->push ? op->local_slots : op->remote_slots;
    uint32_t from_tensor = op->push ? op->local_tensor : op->remote_tensor;
    uint32_t to_tensor = op->push ? op->remote_tensor : op->local_tensor;
    for (size_t i = 0; i < op->num_slots; i++) {
        if (from_slots[i] >= from->num_slots || written_slots(op)[i] >= to->num_slots)
            return false;
        for (uint32_t t = 0; t < op->num_tensors; t++) {
            if (memcmp(memory_at(to, to_tensor + t, written_slots(op)[i]),
                       expected_at(from, from_tensor + t, from_slots[i]), op->bytes) != 0)
                return false;
        }
    }
    return true;
}

// A name may be used again: who is early finds a cache that hasn't its contents yet.
static bool
may_be_unfilled(const struct op *op, const struct cache *cache)
{
    return cache->filled_ns >= op->start_ns;
}

static bool
holds_any_source(const struct op *op, const struct cache *to)
{
    if (may_be_unfilled(op, to))
        return true;
    if (op->push)
        return holds(op, to, op->local);
    for (const struct cache *from = caches; from != NULL; from = from->next) {
        if (from->cluster_id == op->cluster_id && !from->ending &&
            (from->id == 0 || (from->id == op->remote_id && may_be_unfilled(op, from))))
            return true;
        // Under an old name, and without a lease, one may find anything there.
        if (from->lent && is_peers_cache(from, op))
            return true;
        if (is_peers_cache(from, op) && was_live(from, op) && holds(op, to, from))
            return true;
    }
    return false;
}

bool
model_op_arrived(const struct op *op)
{
    bool known = false;
    for (const struct cache *cache = caches; cache != NULL; cache = cache->next) {
        if (!is_target_of(cache, op))
            continue;
        if (!cache->readable || holds_any_source(op, cache))
            return true;
        known = true;
    }
    return !known;
}

struct op *
model_op_find(uint64_t serial)
{
    for (struct op *op = ops; op != NULL; op = op->next) {
        if (op->serial == serial)
            return op;
    }
    return NULL;
}

// What the operation may not have touched: other tensors of its slots, and bytes behind its size.
static void
check_rest(const struct op *op, const struct cache *cache, uint64_t slot)
{
    uint32_t first = op->push ? op->remote_tensor : op->local_tensor;
    for (uint32_t t = 0; t < cache->num_tensors; t++) {
        bool named = t >= first && t < first + op->num_tensors;
        uint64_t skip = named ? op->bytes : 0;
        if (memcmp(memory_at(cache, t, slot) + skip, expected_at(cache, t, slot) + skip,
                   cache->stride - skip) != 0)
            complain(cache, t, slot, expected_at(cache, t, slot), cache->stride,
                     "an operation wrote more than it named");
    }
}

// From now on it holds what it holds now.
static void
take_down(struct cache *cache, uint64_t slot)
{
    for (uint32_t t = 0; cache->readable && t < cache->num_tensors; t++)
        memcpy(expected_at(cache, t, slot), memory_at(cache, t, slot), cache->stride);
}

static void
take_down_all(const struct op *op)
{
    for (struct cache *cache = caches; cache != NULL; cache = cache->next) {
        for (uint32_t slot = 0; slot < cache->num_slots; slot++) {
            if (cache->busy[slot] != op || !cache->readable)
                continue;
            check_rest(op, cache, slot);
            take_down(cache, slot);
        }
    }
}

static void
give_back_slots(const struct op *op, bool in_doubt)
{
    for (struct cache *cache = caches; cache != NULL; cache = cache->next) {
        for (uint32_t slot = 0; slot < cache->num_slots; slot++) {
            if (cache->busy[slot] != op)
                continue;
            cache->busy[slot] = NULL;
            if (in_doubt)
                cache->doubts[slot] =
                    (struct doubt){.from = op->node->cluster_id,
                                   .since_ns = sim.now_ns,
                                   .hindered_ns = sim_process_hindered_ns(cache->process),
                                   .dead_ns = (op->node->dead_ms + 500) * SIM_MS};
        }
    }
}

// Whoever broke a link for want of an answer has done so by now, if it was not answered.
static bool
is_answered(const struct cache *cache, const struct doubt *doubt)
{
    uint64_t hindered_ns = sim_process_hindered_ns(cache->process) - doubt->hindered_ns;
    return sim.now_ns - doubt->since_ns > doubt->dead_ns + hindered_ns;
}

void
model_link_seen(const struct node *node, uint64_t from, uint32_t state, uint64_t link_ns)
{
    for (struct cache *cache = caches; cache != NULL; cache = cache->next) {
        for (uint32_t slot = 0; slot < cache->num_slots; slot++) {
            struct doubt *doubt = &cache->doubts[slot];
            if (cache->node != node || doubt->from != from)
                continue;
            bool gone = state == 0 || state == LLM_LINK_BROKEN || link_ns > doubt->since_ns ||
                        (state == LLM_LINK_READY && is_answered(cache, doubt));
            if (gone && doubt->link_gone_ns == 0)
                doubt->link_gone_ns = sim.now_ns;
            if (doubt->link_gone_ns == 0 || sim.now_ns < doubt->link_gone_ns + 20 * SIM_MS)
                continue;
            *doubt = (struct doubt){0};
            take_down(cache, slot);
        }
    }
}

static void
check_success(const struct op *op)
{
    const struct cache *readable = NULL;
    bool gone = false;
    for (const struct cache *cache = caches; cache != NULL; cache = cache->next) {
        if (!is_target_of(cache, op) || !was_live(cache, op))
            continue;
        if (!cache->readable)
            gone = true;
        else if (holds_any_source(op, cache))
            return;
        else
            readable = cache;
    }
    if (gone)
        return;
    if (readable == NULL) {
        sim_fail("op %llu succeeded, but its target did not exist", (unsigned long long)op->serial);
        return;
    }
    uint64_t word;
    uint64_t slot = written_slots(op)[0];
    memcpy(&word, memory_at(readable, op->push ? op->remote_tensor : op->local_tensor, slot),
           sizeof(word));
    sim_fail("op %llu succeeded, but slot %llu of target cache #%u holds something else than the "
             "source did: it begins like cache #%llu tensor %llu slot %llu",
             (unsigned long long)op->serial, (unsigned long long)slot, readable->number,
             (unsigned long long)(word >> 40), (unsigned long long)(word >> 36 & 15),
             (unsigned long long)(word >> 32 & 15));
}

static void
check_bound(const struct op *op)
{
    uint64_t hindered_ns = sim_process_hindered_ns(op->process) - op->hindered_ns;
    uint64_t took_ns = sim.now_ns - op->start_ns;
    if (took_ns > op->bound_ns + hindered_ns)
        sim_fail("op %llu took %llu ms, %llu ms of them hindered; its bound is %llu ms",
                 (unsigned long long)op->serial, (unsigned long long)(took_ns / SIM_MS),
                 (unsigned long long)(hindered_ns / SIM_MS),
                 (unsigned long long)(op->bound_ns / SIM_MS));
}

void
model_op_ended(struct op *op, llm_status status)
{
    sim_trace("op %llu: %s", (unsigned long long)op->serial,
              op->process->module->api->llm_status_name(status));
    if (status == LLM_SUCCESS)
        check_success(op);
    check_bound(op);
    scenario_judge(op, status);
    take_down_all(op);
}

static void
remove_op(struct op *op)
{
    struct op **place = &ops;
    while (*place != op)
        place = &(*place)->next;
    *place = op->next;
    free(op);
}

// Between the end of an operation and now its slots were nobody else's, so they must be as they were.
static void
check_quiet(const struct op *op, bool in_doubt)
{
    for (struct cache *cache = caches; cache != NULL && !in_doubt; cache = cache->next) {
        for (uint32_t s = 0; s < cache->num_slots; s++) {
            for (uint32_t t = 0; cache->readable && cache->busy[s] == op && t < cache->num_tensors;
                 t++) {
                if (memcmp(memory_at(cache, t, s), expected_at(cache, t, s), cache->stride) != 0)
                    complain(cache, t, s, expected_at(cache, t, s), cache->stride,
                             "something landed after its call had returned");
            }
        }
    }
}

// The stream goes tensor by tensor, and in each slot by slot.
void
model_op_check_progress(const struct op *op, uint64_t bytes)
{
    const struct cache *to = NULL;
    const struct cache *from = NULL;
    for (const struct cache *cache = caches; cache != NULL; cache = cache->next) {
        if (is_target_of(cache, op) && cache->readable)
            to = cache;
        if (op->push ? cache == op->local
                     : is_peers_cache(cache, op) && !cache->target && !cache->lent &&
                           cache->generation == op->generation)
            from = cache;
    }
    if (to == NULL || from == NULL || op->generation == 0)
        return;
    uint32_t to_tensor = op->push ? op->remote_tensor : op->local_tensor;
    uint32_t from_tensor = op->push ? op->local_tensor : op->remote_tensor;
    for (uint32_t t = 0; t < op->num_tensors; t++) {
        for (size_t i = 0; i < op->num_slots; i++) {
            uint64_t some = bytes < op->bytes ? bytes : op->bytes;
            uint64_t slot = (op->push ? op->local_slots : op->remote_slots)[i];
            if (memcmp(memory_at(to, to_tensor + t, written_slots(op)[i]),
                       expected_at(from, from_tensor + t, slot), some) != 0)
                complain(to, to_tensor + t, written_slots(op)[i],
                         expected_at(from, from_tensor + t, slot), some,
                         "bytes are said to have arrived");
            bytes -= some;
        }
    }
}

void
model_op_again(struct op *op, bool in_doubt)
{
    check_quiet(op, in_doubt);
    op->start_ns = sim.now_ns;
    op->hindered_ns = sim_process_hindered_ns(op->process);
    sim_trace("op %llu: goes on", (unsigned long long)op->serial);
}

void
model_op_forget(struct op *op, bool in_doubt)
{
    check_quiet(op, in_doubt);
    give_back_slots(op, in_doubt);
    op->local->num_users--;
    remove_op(op);
}

void
model_process_died(struct sim_process *process)
{
    for (struct cache *cache = caches; cache != NULL; cache = cache->next) {
        if (cache->process != process || cache->end_ns != SIM_NEVER)
            continue;
        cache->readable = false;
        cache->end_ns = sim.now_ns;
    }
    for (struct op *op = ops, *next; op != NULL; op = next) {
        next = op->next;
        if (op->process != process)
            continue;
        give_back_slots(op, true);
        remove_op(op);
    }
}

void
model_reset(void)
{
    while (caches != NULL) {
        struct cache *cache = caches;
        caches = cache->next;
        free(cache->expected);
        free(cache);
    }
    while (ops != NULL) {
        struct op *op = ops;
        ops = op->next;
        free(op);
    }
    next_number = 0;
    next_serial = 0;
}

#include "transfer/answer.h"

#include <stdio.h>

#include "cache/keys.h"
#include "cache/leases.h"
#include "transfer/cuts.h"

static llm_status
not_there(struct lli_node *node, const struct lli_request *request, char *why, size_t why_size)
{
    char what[96];
    lli_request_describe(request, what, sizeof(what));
    snprintf(why, why_size, "cluster %llu has no %s%s",
             (unsigned long long)node->identity.cluster_id, what,
             request->generation != 0 ? " of that generation" : "");
    return request->generation != 0 ? LLM_CACHE_STALE : LLM_KV_CACHE_NOT_EXIST;
}

llm_status
lli_answer_find(struct lli_node *node, struct lli_request *request, struct lli_cache **ret_cache,
                uint64_t *ret_lease, char *why, size_t why_size)
{
    struct lli_cache *cache = request->by == LLI_BY_KEY
                                  ? lli_keys_hold(node->registry, &request->key, &request->slot)
                                  : lli_registry_hold(node->registry, request->cache_id);
    if (cache == NULL)
        return not_there(node, request, why, why_size);
    *ret_cache = cache;
    *ret_lease = request->generation != cache->generation ? request->generation : 0;
    return LLM_SUCCESS;
}

// ---- what is there? ----

static llm_status
answer_query(struct lli_link *link, struct lli_request *request, struct lli_answer *ret_answer,
             char *why, size_t why_size)
{
    struct lli_node *node = link->node;
    struct lli_cache *cache;
    uint64_t lease;
    // First the stamp: what is found is what was bound then.
    request->key.stamp =
        request->by == LLI_BY_KEY ? lli_keys_stamp(node->registry, &request->key) : 0;
    llm_status status = lli_answer_find(node, request, &cache, &lease, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    if (lease != 0 && !lli_leases_live(node->registry, lease, cache))
        status = not_there(node, request, why, why_size);
    *ret_answer = (struct lli_answer){
        .cache_id = cache->id,
        .slot = request->slot,
        .geometry = cache->geometry,
        .registered = cache->registered,
        .slot_has_request = lli_keys_slot_has_request(node->registry, cache, request->slot),
        .generation = cache->generation,
        .bytes_arrived =
            lli_cuts_take(node, link->peer.incarnation, request->token, cache->generation),
        .key_stamp = request->key.stamp,
    };
    lli_registry_put(node->registry, cache);
    return status;
}

// ---- it has arrived ----

static llm_status
answer_done(struct lli_link *link, const struct lli_request *request, char *why, size_t why_size)
{
    struct lli_registry *registry = link->node->registry;
    struct lli_taken taken = {
        .by_key = request->by == LLI_BY_KEY,
        .key = request->key,
        .cache_id = request->cache_id,
        .slot = request->slot,
        .generation = request->generation,
        .first_tensor = request->first_tensor,
        .num_tensors = request->num_tensors,
    };
    if (request->keep_key || lli_keys_take(registry, &taken) == LLM_SUCCESS) {
        if (request->release_lease)
            lli_leases_release(registry, request->token);
        return LLM_SUCCESS;
    }
    char what[96];
    lli_request_describe(request, what, sizeof(what));
    snprintf(why, why_size, "the %s has been taken by another pull, or removed", what);
    return LLM_KV_CACHE_NOT_EXIST;
}

bool
lli_answers_message(struct lli_link *link, const struct lli_message_header *header,
                    struct lli_reader *body)
{
    uint8_t bytes[LLI_REASON_BYTES + 512];
    struct lli_request request;
    struct lli_answer answer = {0};
    struct lli_outcome outcome = {.text = ""};
    struct lli_writer w;
    if (!lli_request_read(body, false, &request))
        return false;
    outcome.status = header->type == LLI_QUERY
                         ? answer_query(link, &request, &answer, outcome.text, sizeof(outcome.text))
                         : answer_done(link, &request, outcome.text, sizeof(outcome.text));
    lli_request_fini(&request);
    lli_writer_init(&w, bytes, sizeof(bytes));
    lli_outcome_write(&w, &outcome);
    lli_answer_write(&w, &answer);
    lli_link_send(link, LLI_ANSWER, header->transfer_id, bytes, w.size);
    return true;
}

#include "transfer/source.h"

#include <stdio.h>

#include "base/mem.h"

// The directory is the peer's: its numbers must not lead outside the tensors.
static bool
is_sound(const struct lli_geometry *geometry)
{
    uint64_t slots_bytes;
    return !lli_mul_overflow(geometry->num_slots, geometry->stride, &slots_bytes) &&
           slots_bytes <= geometry->tensor_bytes;
}

static llm_status
find(struct lli_link *link, const struct lli_request *request, struct lli_remote_cache *ret_remote,
     char *why, size_t why_size)
{
    if (!lli_segment_find(link->view->segment, request->cache_id, ret_remote)) {
        snprintf(why, why_size, "cluster %llu has no cache with id %lld",
                 (unsigned long long)link->peer.cluster_id, (long long)request->cache_id);
        return LLM_KV_CACHE_NOT_EXIST;
    }
    if (!is_sound(&ret_remote->geometry)) {
        snprintf(why, why_size, "cluster %llu describes its cache %lld in contradictions",
                 (unsigned long long)link->peer.cluster_id, (long long)request->cache_id);
        return LLM_FAILED;
    }
    return lli_request_check(request, &ret_remote->geometry, why, why_size);
}

static llm_status
enter(struct lli_source_cache *source, const struct lli_request *request, char *why,
      size_t why_size)
{
    struct lli_link *link = source->link;
    source->reader_slot = lli_segment_reader_enter(
        link->node->segment, link->peer.incarnation, source->remote.generation);
    if (!lli_segment_still_live(link->view->segment, &source->remote)) {
        snprintf(why, why_size, "cluster %llu has just freed its cache %lld",
                 (unsigned long long)link->peer.cluster_id, (long long)request->cache_id);
        return LLM_KV_CACHE_NOT_EXIST;
    }
    if (!lli_view_resolve(link->view, &source->remote, request->first_tensor,
                          request->num_tensors, source->tensors)) {
        snprintf(why, why_size, "cluster %llu describes its cache %lld outside its memory",
                 (unsigned long long)link->peer.cluster_id, (long long)request->cache_id);
        return LLM_FAILED;
    }
    return LLM_SUCCESS;
}

llm_status
lli_source_open(struct lli_link *link, const struct lli_request *request,
                struct lli_source_cache *ret_source, char *why, size_t why_size)
{
    struct lli_source_cache source = {.link = link};
    llm_status status = find(link, request, &source.remote, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    source.tensors = lli_malloc((size_t)request->num_tensors * link->view->num_devices *
                                sizeof(*source.tensors));
    if (source.tensors == NULL) {
        snprintf(why, why_size, "no memory for the addresses of %u tensors", request->num_tensors);
        return LLM_OUT_OF_MEMORY;
    }
    status = enter(&source, request, why, why_size);
    if (status != LLM_SUCCESS) {
        lli_segment_reader_leave(link->node->segment, source.reader_slot);
        lli_free(source.tensors);
        return status;
    }
    *ret_source = source;
    return LLM_SUCCESS;
}

llm_status
lli_source_close(struct lli_source_cache *source)
{
    bool same = lli_segment_still_same(source->link->view->segment, &source->remote);
    lli_segment_reader_leave(source->link->node->segment, source->reader_slot);
    lli_free(source->tensors);
    source->tensors = NULL;
    return same ? LLM_SUCCESS : LLM_KV_CACHE_NOT_EXIST;
}

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

bool
lli_source_needs_owner(struct lli_link *link, int64_t cache_id)
{
    struct lli_remote_cache remote;
    return !link->view->can_read && lli_segment_find(link->view->segment, cache_id, &remote) &&
           (remote.flags & LLI_ENTRY_REGISTERED) != 0;
}

static llm_status
find(struct lli_link *link, const struct lli_request *request, struct lli_remote_cache *ret_remote,
     char *why, size_t why_size)
{
    unsigned long long cluster_id = link->peer.cluster_id;
    if (!lli_segment_find(link->view->segment, request->cache_id, ret_remote)) {
        snprintf(why, why_size, "cluster %llu has no cache with id %lld", cluster_id,
                 (long long)request->cache_id);
        return LLM_KV_CACHE_NOT_EXIST;
    }
    if (!is_sound(&ret_remote->geometry)) {
        snprintf(why, why_size, "cluster %llu describes its cache %lld in contradictions",
                 cluster_id, (long long)request->cache_id);
        return LLM_FAILED;
    }
    if ((ret_remote->flags & LLI_ENTRY_REGISTERED) != 0 && !link->view->can_read) {
        snprintf(why, why_size, "the registered memory of cluster %llu can't be read from here",
                 cluster_id);
        return LLM_FAILED;
    }
    return lli_request_check(request, &ret_remote->geometry, why, why_size);
}

llm_status
lli_source_open(struct lli_link *link, const struct lli_request *request,
                struct lli_source_cache *ret_source, char *why, size_t why_size)
{
    struct lli_source_cache source = {
        .link = link,
        .first_tensor = request->first_tensor,
        .num_tensors = request->num_tensors,
        .reader_slot = -1,
    };
    llm_status status = find(link, request, &source.remote, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    if ((source.remote.flags & LLI_ENTRY_REGISTERED) != 0 && !link->view->same_process)
        source.pid = link->view->pid;
    source.tensors = lli_malloc((size_t)request->num_tensors * link->view->num_devices *
                                sizeof(*source.tensors));
    if (source.tensors == NULL) {
        snprintf(why, why_size, "no memory for the addresses of %u tensors", request->num_tensors);
        return LLM_OUT_OF_MEMORY;
    }
    *ret_source = source;
    return LLM_SUCCESS;
}

llm_status
lli_source_enter(struct lli_source_cache *source, char *why, size_t why_size)
{
    struct lli_link *link = source->link;
    unsigned long long cluster_id = link->peer.cluster_id;
    source->reader_slot = lli_segment_reader_enter(link->node->segment, link->peer.incarnation,
                                                   source->remote.generation);
    if (source->reader_slot < 0) {
        snprintf(why, why_size, "%d copies are running at once", LLI_NUM_READER_SLOTS);
        return LLM_LINK_BUSY;
    }
    if (!lli_segment_still_live(link->view->segment, &source->remote)) {
        snprintf(why, why_size, "cluster %llu has just freed the cache", cluster_id);
        return LLM_KV_CACHE_NOT_EXIST;
    }
    if (!lli_view_resolve(link->view, &source->remote, source->first_tensor, source->num_tensors,
                          source->tensors)) {
        snprintf(why, why_size, "cluster %llu describes a cache outside its memory", cluster_id);
        return LLM_FAILED;
    }
    return LLM_SUCCESS;
}

static llm_status
check_after(const struct lli_source_cache *source, int error, char *why, size_t why_size)
{
    struct lli_link *link = source->link;
    unsigned long long cluster_id = link->peer.cluster_id;
    bool same = lli_segment_still_same(link->view->segment, &source->remote);
    // What the dead have left is mapped here still, and may be stale: another process may have their
    // cluster id and cache ids by now, or their process number.
    if (!lli_view_is_alive(link->view)) {
        snprintf(why, why_size, "cluster %llu has died", cluster_id);
        return LLM_FAILED;
    }
    if (!same) {
        snprintf(why, why_size, "cluster %llu freed the cache during the transfer", cluster_id);
        return LLM_KV_CACHE_NOT_EXIST;
    }
    if (error != 0) {
        snprintf(why, why_size, "the registered memory of cluster %llu can't be read: %s",
                 cluster_id, strerror(error));
        return LLM_FAILED;
    }
    return LLM_SUCCESS;
}

llm_status
lli_source_close(struct lli_source_cache *source, int error, char *why, size_t why_size)
{
    llm_status status = LLM_SUCCESS;
    if (source->reader_slot >= 0) {
        status = check_after(source, error, why, why_size);
        lli_segment_reader_leave(source->link->node->segment, source->reader_slot);
    }
    source->reader_slot = -1;
    lli_free(source->tensors);
    source->tensors = NULL;
    return status;
}

#include "transfer/source.h"

#include <errno.h>
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

static bool
find_cache(const struct lli_segment_layout *peer, const struct lli_request *request,
           struct lli_source_cache *source)
{
    source->slot = request->slot;
    if (request->by == LLI_BY_KEY)
        return lli_names_find_key(peer, &request->key, &source->remote, &source->slot);
    return lli_segment_find(peer, request->cache_id, &source->remote);
}

// A generation that isn't the cache's is that of a lease on it.
static bool
find_lease(const struct lli_segment_layout *peer, const struct lli_request *request,
           struct lli_source_cache *source)
{
    struct lli_lease_range range;
    struct lli_request at = *request;
    if (request->generation == 0 || request->generation == source->remote.generation)
        return true;
    source->lease = request->generation;
    at.slot = source->slot;
    return lli_names_find_lease(peer, source->lease, &range, &source->lease_entry) &&
           range.generation == source->remote.generation && lli_request_is_within(&at, &range);
}

static llm_status
gone(const struct lli_source_cache *source)
{
    return source->named_generation ? LLM_CACHE_STALE : LLM_KV_CACHE_NOT_EXIST;
}

static llm_status
just_freed(const struct lli_source_cache *source, char *why, size_t why_size)
{
    snprintf(why, why_size, "cluster %llu has just freed the cache, or ended its lease",
             (unsigned long long)source->link->peer.cluster_id);
    return gone(source);
}

llm_status
lli_source_find(struct lli_link *link, const struct lli_request *request,
                struct lli_source_cache *ret_source, char *why, size_t why_size)
{
    unsigned long long cluster_id = link->peer.cluster_id;
    char what[96];
    *ret_source = (struct lli_source_cache){
        .link = link,
        .named_generation = request->generation != 0,
        .first_tensor = request->first_tensor,
        .num_tensors = request->num_tensors,
        .reader_slot = -1,
    };
    lli_request_describe(request, what, sizeof(what));
    if (!find_cache(link->view->segment, request, ret_source)) {
        snprintf(why, why_size, "cluster %llu has no %s", cluster_id, what);
        return request->generation != 0 ? LLM_CACHE_STALE : LLM_KV_CACHE_NOT_EXIST;
    }
    if (!is_sound(&ret_source->remote.geometry)) {
        snprintf(why, why_size, "cluster %llu describes its %s in contradictions", cluster_id,
                 what);
        return LLM_FAILED;
    }
    if (!find_lease(link->view->segment, request, ret_source)) {
        snprintf(why, why_size,
                 "generation %llu is not that of cluster %llu's %s, nor of a lease on those blocks",
                 (unsigned long long)request->generation, cluster_id, what);
        return LLM_CACHE_STALE;
    }
    return LLM_SUCCESS;
}

llm_status
lli_source_find_shape(struct lli_link *link, const struct lli_request *request,
                      struct lli_source_cache *ret_source, char *why, size_t why_size)
{
    llm_status status = lli_source_find(link, request, ret_source, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    if (lli_segment_read_dims(link->view->segment, link->view->num_devices, &ret_source->remote))
        return LLM_SUCCESS;
    return just_freed(ret_source, why, why_size);
}

bool
lli_source_needs_owner(struct lli_link *link, const struct lli_request *request)
{
    struct lli_source_cache source;
    return !link->view->can_read && find_cache(link->view->segment, request, &source) &&
           (source.remote.flags & LLI_ENTRY_REGISTERED) != 0;
}

static llm_status
open_source(struct lli_link *link, const struct lli_request *request,
            struct lli_source_cache *ret_source, char *why, size_t why_size)
{
    struct lli_source_cache source;
    llm_status status = lli_source_find(link, request, &source, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    bool registered = (source.remote.flags & LLI_ENTRY_REGISTERED) != 0;
    if (registered && !link->view->can_read) {
        snprintf(why, why_size, "the registered memory of cluster %llu can't be read from here",
                 (unsigned long long)link->peer.cluster_id);
        return LLM_FAILED;
    }
    struct lli_request at = *request;
    at.slot = source.slot;
    status = lli_request_check(&at, &source.remote.geometry, why, why_size);
    if (status == LLM_SUCCESS)
        status = lli_request_check_type(&at, source.remote.geometry.data_type, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    if (registered && !link->view->same_process)
        source.owner = link->view->owner;
    source.tensors = lli_malloc((size_t)request->num_tensors * link->view->num_devices *
                                sizeof(*source.tensors));
    if (source.tensors == NULL) {
        snprintf(why, why_size, "no memory for the addresses of %u tensors", request->num_tensors);
        return LLM_OUT_OF_MEMORY;
    }
    *ret_source = source;
    return LLM_SUCCESS;
}

static llm_status
died(const struct lli_link *link, char *why, size_t why_size)
{
    snprintf(why, why_size, "cluster %llu has died%s", (unsigned long long)link->peer.cluster_id,
             link->view->pidfd < 0 ? ", or has closed the link" : "");
    return LLM_FAILED;
}

llm_status
lli_source_open(struct lli_link *link, const struct lli_request *request,
                struct lli_source_cache *ret_source, char *why, size_t why_size)
{
    llm_status status = open_source(link, request, ret_source, why, why_size);
    // What the dead have left is mapped still, and tells nothing of who has their cluster id by now.
    if (status != LLM_SUCCESS && !lli_view_is_alive(link->view))
        return died(link, why, why_size);
    return status;
}

static bool
still_live(const struct lli_source_cache *source)
{
    const struct lli_segment_layout *peer = source->link->view->segment;
    return lli_segment_still_live(peer, &source->remote) &&
           (source->lease == 0 ||
            lli_names_lease_still_live(peer, source->lease, source->lease_entry));
}

static bool
still_same(const struct lli_source_cache *source)
{
    const struct lli_segment_layout *peer = source->link->view->segment;
    return lli_segment_still_same(peer, &source->remote) &&
           (source->lease == 0 ||
            lli_names_lease_still_same(peer, source->lease, source->lease_entry));
}

llm_status
lli_source_enter(struct lli_source_cache *source, char *why, size_t why_size)
{
    struct lli_link *link = source->link;
    unsigned long long cluster_id = link->peer.cluster_id;
    source->reader_slot = lli_segment_reader_enter(link->node->segment, link->peer.incarnation,
                                                   source->remote.generation, source->lease);
    if (source->reader_slot < 0) {
        snprintf(why, why_size, "%d copies are running at once", LLI_NUM_READER_SLOTS);
        return LLM_LINK_BUSY;
    }
    if (!still_live(source))
        return just_freed(source, why, why_size);
    if (!lli_view_resolve(link->view, &source->remote, source->first_tensor, source->num_tensors,
                          source->tensors)) {
        snprintf(why, why_size, "cluster %llu describes a cache outside its memory", cluster_id);
        return LLM_FAILED;
    }
    return LLM_SUCCESS;
}

bool
lli_source_is_good(const struct lli_source_cache *source)
{
    return source->reader_slot >= 0 && still_same(source) && lli_view_is_alive(source->link->view);
}

llm_status
lli_source_describe_mismatch(const struct lli_plan *plan, uint64_t position, char *why,
                             size_t why_size)
{
    struct lli_place place = lli_plan_locate(plan, position);
    snprintf(why, why_size,
             "checksums differ at byte %llu of tensor %llu of those that are transferred: what "
             "arrived there isn't what was sent",
             (unsigned long long)plan->runs[place.run].dst_offset + place.offset,
             (unsigned long long)place.tensor);
    return LLM_CHECKSUM_MISMATCH;
}

static llm_status
check_after(const struct lli_source_cache *source, const struct lli_mapped_copy *copy, char *why,
            size_t why_size)
{
    struct lli_link *link = source->link;
    unsigned long long cluster_id = link->peer.cluster_id;
    bool same = still_same(source);
    // What the dead have left is mapped here still, and may be stale: another process may have their
    // cluster id and cache ids by now, or their process number.
    if (!lli_view_is_alive(link->view))
        return died(link, why, why_size);
    if (!same) {
        snprintf(why, why_size,
                 "cluster %llu freed the cache, or ended its lease, during the transfer",
                 cluster_id);
        return gone(source);
    }
    if (copy != NULL && copy->error == EBADMSG)
        return lli_source_describe_mismatch(copy->plan, copy->position, why, why_size);
    // What was permitted when the link was made may be forbidden by now.
    if (copy != NULL && copy->error == EPERM)
        lli_link_lost_reading(link);
    if (copy != NULL && copy->error != 0) {
        snprintf(why, why_size, "the registered memory of cluster %llu can't be read: %s",
                 cluster_id, strerror(copy->error));
        return LLM_FAILED;
    }
    return LLM_SUCCESS;
}

llm_status
lli_source_close(struct lli_source_cache *source, const struct lli_mapped_copy *copy, char *why,
                 size_t why_size)
{
    llm_status status = LLM_SUCCESS;
    if (source->reader_slot >= 0) {
        status = check_after(source, copy, why, why_size);
        lli_segment_reader_leave(source->link->node->segment, source->reader_slot);
    }
    source->reader_slot = -1;
    lli_free(source->tensors);
    source->tensors = NULL;
    return status;
}

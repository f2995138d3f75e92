// Reading a peer's cache on the same host, straight from its mapped memory.  The protocol of
// segment.h: announce, check, copy, check again.
#ifndef LLI_SOURCE_H
#define LLI_SOURCE_H

#include "link/link.h"
#include "transfer/request.h"

// A peer's cache that this instance has announced to be reading.
struct lli_source_cache {
    struct lli_link *link;
    struct lli_remote_cache remote;
    uintptr_t *tensors; // addresses of the selected ones, for every device
    unsigned reader_slot;
};

// Finds the cache, checks the request against it, announces the reading, and finds the addresses of
// request->num_tensors tensors from request->first_tensor on.  On failure `why` says what is wrong,
// and nothing is announced.
llm_status lli_source_open(struct lli_link *link, const struct lli_request *request,
                           struct lli_source_cache *ret_source, char *why, size_t why_size);
// Ends the announcement.  LLM_SUCCESS if it was the same cache all the time, else
// LLM_KV_CACHE_NOT_EXIST: what was copied may be anything.
llm_status lli_source_close(struct lli_source_cache *source);

#endif

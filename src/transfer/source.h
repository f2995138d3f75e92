// Reading a peer's cache on the same host, straight from its memory.  The protocol of segment.h:
// announce, check, copy, check again.
#ifndef LLI_SOURCE_H
#define LLI_SOURCE_H

#include "link/link.h"
#include "transfer/request.h"
#include "transport/mapped.h"

struct lli_source_cache {
    struct lli_link *link;
    struct lli_remote_cache remote;
    uint64_t slot;         // that the request, or its key, names
    bool named_generation; // whatever goes wrong with the cache is staleness
    uint64_t lease;        // 0: none
    uint32_t lease_entry;
    uint32_t first_tensor;
    uint32_t num_tensors;
    uintptr_t *tensors;       // addresses of the selected ones, for every device; filled by enter
    struct lli_process owner; // of the addresses
    int reader_slot;          // -1: not announced
};

// Finds what a request names in the peer's directory, and its lease.  On failure `why` says what is
// wrong.
llm_status lli_source_find(struct lli_link *link, const struct lli_request *request,
                           struct lli_source_cache *ret_source, char *why, size_t why_size);

// And its dimensions.
llm_status lli_source_find_shape(struct lli_link *link, const struct lli_request *request,
                                 struct lli_source_cache *ret_source, char *why, size_t why_size);

// Is that cache registered memory which this process can't read itself?
bool lli_source_needs_owner(struct lli_link *link, const struct lli_request *request);

// Finds the cache and checks the request against it.  On failure `why` says what is wrong.
llm_status lli_source_open(struct lli_link *link, const struct lli_request *request,
                           struct lli_source_cache *ret_source, char *why, size_t why_size);
// Announces the reading and finds the addresses.  LLM_LINK_BUSY if too many readings are announced
// at the moment: try again.  The source stays open, whatever the answer.
llm_status lli_source_enter(struct lli_source_cache *source, char *why, size_t why_size);
// Entered, and still the same cache of a living peer: what has been copied by now is right.
bool lli_source_is_good(const struct lli_source_cache *source);
// Says where in the destination something else arrived than was sent: LLM_CHECKSUM_MISMATCH.
llm_status lli_source_describe_mismatch(const struct lli_plan *plan, uint64_t position, char *why,
                                        size_t why_size);
// Ends the announcement.  LLM_SUCCESS if it was the same cache of a living peer all the time, and
// `copy`, if there was one, has met no error; otherwise what was copied may be anything, and `why`
// says why.
llm_status lli_source_close(struct lli_source_cache *source, const struct lli_mapped_copy *copy,
                            char *why, size_t why_size);

#endif

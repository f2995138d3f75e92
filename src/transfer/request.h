// What one side asks of the other: which bytes of a cache of yours.  Checked by its owner, over the
// network, or against the owner's directory on the same host: the same checks in the same order.
//
// The same words serve for two other things: QUERY asks what there is under a name, and DONE says what
// of it a pull has taken.
#ifndef LLI_REQUEST_H
#define LLI_REQUEST_H

#include "base/base.h"
#include "base/wire.h"
#include "cache/geometry.h"
#include "cache/names.h"
#include "transport/plan.h"

enum lli_request_kind {
    LLI_REQUEST_SLOT = 0,  // one contiguous slot
    LLI_REQUEST_BLOCKS = 1 // runs of blocks
};

// How the cache is named.
enum lli_request_by {
    LLI_BY_ID = 0,
    LLI_BY_KEY = 1,
    LLI_BY_ADDRESS = 2 // a push: where the tensors are in the owner's process
};

// Sides are those of the owner who is asked.
struct lli_request {
    bool push;      // into the cache, else out of it
    bool version_2; // statuses of §13.5
    enum lli_request_kind kind;
    enum lli_request_by by;
    int64_t cache_id;    // by id
    struct lli_key key;  // by key
    uint64_t *addresses; // by address: num_tensors
    // Of the cache, or of a lease on it; 0: whichever it is.
    uint64_t generation;
    uint32_t first_tensor;
    uint32_t num_tensors;       // per device
    bool all_tensors;           // pull: the cache must have exactly num_tensors
    uint32_t tensors_per_layer; // must divide the cache's tensors; 0: no matter
    uint64_t stride;            // the asking side's; blocks: both must be equal
    uint32_t element_type;      // the asking side's llm_data_type + 1; 0: don't compare it
    uint64_t slot;              // kind slot; by key: the key says
    uint64_t offset;            // kind slot: of the bytes, in the slot
    uint64_t bytes;             // kind slot: per tensor
    uint64_t start_position;    // in the stream: what is before has arrived already
    bool keep_key;              // a pull: request keys stay
    bool release_lease;         // DONE: the lease counts one release
    uint64_t token;             // a push: its transfer, or the one that it goes on with; 0: neither
    struct lli_block_run *runs; // kind blocks
    size_t num_runs;

    // A push on one host: the owner fetches the bytes itself, from this cache of the asking side.
    bool fetch;
    int64_t source_cache_id;
    uint32_t source_first_tensor;
    uint64_t source_slot;              // kind slot
    struct lli_block_run *source_runs; // kind blocks
    size_t num_source_runs;

    // A push: what the owner's application gets when all has arrived.
    const uint8_t *notification;
    uint32_t notification_bytes;
    bool owns_notification;
};

void lli_request_fini(struct lli_request *request);

// Checks a request against the cache that it names, in the order of §8.2 to §8.5.  LLM_SUCCESS, or
// the status with `why` filled in.
llm_status lli_request_check(const struct lli_request *request, const struct lli_geometry *geometry,
                             char *why, size_t why_size);

// The asking side's data type; LLM_DT_UNDEFINED: not to be compared.
int32_t lli_request_data_type(const struct lli_request *request);
// The last check: is the type of its elements that of what it touches, if it asks?
llm_status lli_request_check_type(const struct lli_request *request, int32_t data_type, char *why,
                                  size_t why_size);

// Names what a request names, for people.
void lli_request_describe(const struct lli_request *request, char *text, size_t text_size);

// Are all slots that it touches in this range?
bool lli_request_is_within(const struct lli_request *request, const struct lli_lease_range *range);

// Bytes that the message body takes.
size_t lli_request_bytes(const struct lli_request *request);
void lli_request_write(struct lli_writer *w, const struct lli_request *request);
// False, with nothing to free, if the body is malformed or memory is short.
bool lli_request_read(struct lli_reader *r, bool push, struct lli_request *ret_request);

// The owner's side of the plan, in tensors of that stride.
llm_status lli_request_plan(const struct lli_request *request, uint64_t stride, size_t num_devices,
                            struct lli_plan *ret_plan);

// The total number of blocks in runs; UINT64_MAX if it overflows.
uint64_t lli_block_runs_count(const struct lli_block_run *runs, size_t num_runs);

#endif

// What the calls of pull.c and push.c share: reading their arguments, and the checks of the caller's
// side, in the specification's order.  Each call has one body; with a `ret_transfer_id` it starts the
// transfer, without one it runs it to its end.
#ifndef LLI_API_TRANSFER_H
#define LLI_API_TRANSFER_H

#include "api/check.h"
#include "transfer/transfer.h"

// A caller's llm_kv_cache_ext_param.
struct lli_layers {
    int32_t src_first;
    int32_t src_last;
    int32_t dst_first;
    int32_t dst_last;
    uint32_t tensors_per_layer;
    uint32_t timeout_ms; // 0: the option's
    const void *notification;
    size_t notification_bytes;
    uint64_t src_offset;
    uint64_t dst_offset;
    bool keep_key;
    bool release_lease;
    bool allow_other_type;
    llm_progress progress;
    llm_progress *callers_progress; // or NULL
    struct lli_interrupt interrupt;
};

bool lli_layers_given(int32_t first, int32_t last);
// Checks 1 to 3 of KvCacheExtParam.
llm_status lli_read_layers(const llm_kv_cache_ext_param *param, struct lli_layers *ret_layers);
llm_status lli_check_equal_length(const struct lli_layers *layers);
llm_status lli_check_divides(uint32_t tensors_per_layer, uint32_t num_tensors);
llm_status lli_check_no_offsets(const struct lli_layers *layers);

llm_status lli_read_index(const llm_cache_index *index, llm_cache_index *ret_index);
// The peer's cache by whatever names it.  args->push and args->kind are set.
llm_status lli_read_target(const llm_cache_index *index, const struct lli_layers *layers,
                           struct lli_transfer_args *args);

llm_status lli_check_start(const llm_datadist *dd, const char *call,
                           const uint64_t *ret_transfer_id);
llm_status lli_hold_local(llm_datadist *dd, int64_t cache_id, struct lli_cache **ret_cache);
llm_status lli_check_role(const llm_datadist *dd, int role, const char *what);
llm_status lli_check_slot(const char *name, uint64_t slot, const struct lli_geometry *geometry);
llm_status lli_check_blocks(const char *name, const uint64_t *blocks, size_t num_blocks,
                            const struct lli_geometry *geometry);
llm_status lli_check_lists(const uint64_t *src_blocks, size_t num_src_blocks,
                           const uint64_t *dst_blocks, size_t num_dst_blocks);
llm_status lli_check_no_batch(const llm_cache_index *index);

// Fills in what doesn't depend on the kind of transfer, and goes.
// Makes a broken link anew, if that is wanted, for a call that waits.
void lli_renew_link(llm_datadist *dd, uint64_t cluster_id, uint64_t deadline_ns);
llm_status lli_go(llm_datadist *dd, struct lli_transfer_args *args, const struct lli_layers *layers,
                  uint64_t start_ns, uint64_t *ret_transfer_id);

#endif

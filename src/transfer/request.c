#include "transfer/request.h"

#include <stdio.h>

#include "base/mem.h"

enum { RUN_BYTES = 16, ADDRESS_BYTES = 8, FIXED_BYTES = 192 };

enum {
    FLAG_ALL_TENSORS = 1,
    FLAG_FETCH = 2,
    FLAG_VERSION_2 = 4,
    FLAG_KEEP_KEY = 8,
    FLAG_RELEASE_LEASE = 16
};

void
lli_request_fini(struct lli_request *request)
{
    lli_free(request->runs);
    lli_free(request->source_runs);
    lli_free(request->addresses);
    if (request->owns_notification)
        lli_free((void *)(uintptr_t)request->notification);
    memset(request, 0, sizeof(*request));
}

uint64_t
lli_block_runs_count(const struct lli_block_run *runs, size_t num_runs)
{
    uint64_t count = 0;
    for (size_t i = 0; i < num_runs; i++) {
        if (lli_add_overflow(count, runs[i].count, &count))
            return UINT64_MAX;
    }
    return count;
}

#define NO(status, ...) (snprintf(why, why_size, __VA_ARGS__), (status))

static llm_status
check_slot(const struct lli_request *request, const struct lli_geometry *geometry, char *why,
           size_t why_size)
{
    if (request->slot >= geometry->num_slots)
        return NO(request->version_2 ? LLM_PARAM_INVALID : LLM_KV_CACHE_NOT_EXIST,
                  "remote batch_index is %llu, cache %lld has %llu batches",
                  (unsigned long long)request->slot, (long long)request->cache_id,
                  (unsigned long long)geometry->num_slots);
    if (request->offset > geometry->stride || request->bytes > geometry->stride - request->offset)
        return NO(LLM_PARAM_INVALID,
                  "%llu bytes at offset %llu don't fit the remote stride of %llu",
                  (unsigned long long)request->bytes, (unsigned long long)request->offset,
                  (unsigned long long)geometry->stride);
    return LLM_SUCCESS;
}

static llm_status
check_blocks(const struct lli_request *request, const struct lli_geometry *geometry, char *why,
             size_t why_size)
{
    if (request->stride != geometry->stride)
        return NO(LLM_PARAM_INVALID, "block sizes differ: %llu bytes here, %llu at the peer",
                  (unsigned long long)request->stride, (unsigned long long)geometry->stride);
    for (size_t i = 0; i < request->num_runs; i++) {
        const struct lli_block_run *run = &request->runs[i];
        uint64_t last;
        if (lli_add_overflow(run->first, run->count, &last) || last > geometry->num_slots)
            return NO(LLM_PARAM_INVALID, "remote block %llu is out of range, cache %lld has %llu",
                      (unsigned long long)lli_max(run->first, last - 1),
                      (long long)request->cache_id, (unsigned long long)geometry->num_slots);
    }
    return LLM_SUCCESS;
}

static llm_status
check_tensors(const struct lli_request *request, const struct lli_geometry *geometry, char *why,
              size_t why_size)
{
    if (request->tensors_per_layer > 0 && geometry->num_tensors % request->tensors_per_layer != 0)
        return NO(LLM_PARAM_INVALID,
                  "tensor_num_per_layer is %u, which doesn't divide the remote cache's %u tensors",
                  request->tensors_per_layer, geometry->num_tensors);
    if ((uint64_t)request->first_tensor + request->num_tensors > geometry->num_tensors)
        return NO(LLM_PARAM_INVALID, "remote tensor %llu is out of range, cache %lld has %u",
                  (unsigned long long)request->first_tensor + request->num_tensors - 1,
                  (long long)request->cache_id, geometry->num_tensors);
    if (request->all_tensors && request->num_tensors != geometry->num_tensors)
        return NO(LLM_PARAM_INVALID, "the local cache has %u tensors, the remote one %u",
                  request->num_tensors, geometry->num_tensors);
    return LLM_SUCCESS;
}

int32_t
lli_request_data_type(const struct lli_request *request)
{
    return request->element_type == 0 ? LLM_DT_UNDEFINED : (int32_t)(request->element_type - 1);
}

llm_status
lli_request_check_type(const struct lli_request *request, int32_t data_type, char *why,
                       size_t why_size)
{
    int32_t asking = lli_request_data_type(request);
    if (lli_data_types_agree(asking, data_type))
        return LLM_SUCCESS;
    return NO(
        LLM_PARAM_INVALID,
        "data types differ: %s (%d) here, %s (%d) at the peer; allow_other_type transfers the "
        "bytes all the same",
        lli_data_type_name(asking), asking, lli_data_type_name(data_type), data_type);
}

llm_status
lli_request_check(const struct lli_request *request, const struct lli_geometry *geometry, char *why,
                  size_t why_size)
{
    llm_status status = request->kind == LLI_REQUEST_SLOT
                            ? check_slot(request, geometry, why, why_size)
                            : check_blocks(request, geometry, why, why_size);
    if (status != LLM_SUCCESS)
        return status;
    return check_tensors(request, geometry, why, why_size);
}

void
lli_request_describe(const struct lli_request *request, char *text, size_t text_size)
{
    static const char *const kinds[] = {"no", "request", "prefix", "blocks"};
    if (request->by == LLI_BY_ADDRESS)
        snprintf(text, text_size, "cache at the addresses");
    else if (request->by == LLI_BY_ID)
        snprintf(text, text_size, "cache with id %lld", (long long)request->cache_id);
    else
        snprintf(text, text_size, "cache with %s key %llu of model %llu",
                 kinds[lli_min(request->key.kind, LLM_KEY_BLOCKS)],
                 (unsigned long long)request->key.id, (unsigned long long)request->key.model_id);
}

bool
lli_request_is_within(const struct lli_request *request, const struct lli_lease_range *range)
{
    if (request->kind == LLI_REQUEST_SLOT)
        return lli_lease_range_holds(range, request->slot, 1);
    for (size_t i = 0; i < request->num_runs; i++) {
        if (!lli_lease_range_holds(range, request->runs[i].first, request->runs[i].count))
            return false;
    }
    return true;
}

size_t
lli_request_bytes(const struct lli_request *request)
{
    size_t num_addresses = request->by == LLI_BY_ADDRESS ? request->num_tensors : 0;
    return FIXED_BYTES + RUN_BYTES * (request->num_runs + request->num_source_runs) +
           ADDRESS_BYTES * num_addresses + request->notification_bytes;
}

static void
runs_write(struct lli_writer *w, const struct lli_block_run *runs, size_t num_runs)
{
    lli_write_u32(w, (uint32_t)num_runs);
    for (size_t i = 0; i < num_runs; i++) {
        lli_write_u64(w, runs[i].first);
        lli_write_u64(w, runs[i].count);
    }
}

// The number of runs is believed only as far as there are bytes for them.
static bool
runs_read(struct lli_reader *r, struct lli_block_run **ret_runs, size_t *ret_num_runs)
{
    size_t num_runs = lli_read_u32(r);
    if (r->failed || num_runs > lli_read_left(r) / RUN_BYTES)
        return false;
    if (num_runs == 0)
        return true;
    struct lli_block_run *runs = lli_malloc(num_runs * sizeof(*runs));
    if (runs == NULL)
        return false;
    for (size_t i = 0; i < num_runs; i++) {
        runs[i].first = lli_read_u64(r);
        runs[i].count = lli_read_u64(r);
    }
    *ret_runs = runs;
    *ret_num_runs = num_runs;
    return true;
}

// How the cache is named, if not by its id alone, and where the transfer begins.
static void
names_write(struct lli_writer *w, const struct lli_request *request)
{
    lli_write_u32(w, request->by);
    lli_write_u32(w, request->key.kind);
    lli_write_u64(w, request->key.id);
    lli_write_u64(w, request->key.model_id);
    lli_write_u64(w, request->key.stamp);
    lli_write_u64(w, request->generation);
    lli_write_u64(w, request->offset);
    lli_write_u64(w, request->start_position);
    lli_write_u64(w, request->token);
    for (uint32_t i = 0; request->by == LLI_BY_ADDRESS && i < request->num_tensors; i++)
        lli_write_u64(w, request->addresses[i]);
    lli_write_u32(w, request->element_type);
}

static bool
addresses_read(struct lli_reader *r, struct lli_request *request)
{
    if (request->num_tensors == 0 || request->num_tensors > lli_read_left(r) / ADDRESS_BYTES)
        return false;
    request->addresses = lli_malloc(request->num_tensors * sizeof(*request->addresses));
    if (request->addresses == NULL)
        return false;
    for (uint32_t i = 0; i < request->num_tensors; i++)
        request->addresses[i] = lli_read_u64(r);
    return true;
}

static bool
names_read(struct lli_reader *r, struct lli_request *request)
{
    request->by = (enum lli_request_by)lli_read_u32(r);
    request->key.kind = lli_read_u32(r);
    request->key.id = lli_read_u64(r);
    request->key.model_id = lli_read_u64(r);
    request->key.stamp = lli_read_u64(r);
    request->generation = lli_read_u64(r);
    request->offset = lli_read_u64(r);
    request->start_position = lli_read_u64(r);
    request->token = lli_read_u64(r);
    if (r->failed || request->by > LLI_BY_ADDRESS || request->key.kind > LLM_KEY_BLOCKS)
        return false;
    if (request->by == LLI_BY_ADDRESS && !addresses_read(r, request))
        return false;
    // Peers of before it was sent don't have it.
    request->element_type = lli_read_left(r) > 0 ? lli_read_u32(r) : 0;
    return true;
}

static uint32_t
flags_of(const struct lli_request *request)
{
    return (request->all_tensors ? FLAG_ALL_TENSORS : 0u) | (request->fetch ? FLAG_FETCH : 0u) |
           (request->version_2 ? FLAG_VERSION_2 : 0u) | (request->keep_key ? FLAG_KEEP_KEY : 0u) |
           (request->release_lease ? FLAG_RELEASE_LEASE : 0u);
}

void
lli_request_write(struct lli_writer *w, const struct lli_request *request)
{
    lli_write_u32(w, request->kind);
    lli_write_u32(w, flags_of(request));
    lli_write_u64(w, (uint64_t)request->cache_id);
    lli_write_u32(w, request->first_tensor);
    lli_write_u32(w, request->num_tensors);
    lli_write_u32(w, request->tensors_per_layer);
    lli_write_u64(w, request->stride);
    lli_write_u64(w, request->slot);
    lli_write_u64(w, request->bytes);
    lli_write_u64(w, (uint64_t)request->source_cache_id);
    lli_write_u32(w, request->source_first_tensor);
    lli_write_u64(w, request->source_slot);
    runs_write(w, request->runs, request->num_runs);
    runs_write(w, request->source_runs, request->num_source_runs);
    lli_write_u32(w, request->notification_bytes);
    lli_write_bytes(w, request->notification, request->notification_bytes);
    names_write(w, request);
}

static bool
notification_read(struct lli_reader *r, struct lli_request *request)
{
    uint32_t num_bytes = lli_read_u32(r);
    if (r->failed || num_bytes > LLM_NOTIFICATION_BYTES_MAX || num_bytes > lli_read_left(r))
        return false;
    if (num_bytes == 0)
        return true;
    uint8_t *bytes = lli_malloc(num_bytes);
    if (bytes == NULL)
        return false;
    lli_read_bytes(r, bytes, num_bytes);
    request->notification = bytes;
    request->notification_bytes = num_bytes;
    request->owns_notification = true;
    return true;
}

static bool
is_sound(const struct lli_request *request)
{
    if (request->kind == LLI_REQUEST_SLOT)
        return request->num_runs == 0 && request->num_source_runs == 0;
    if (request->kind != LLI_REQUEST_BLOCKS || request->num_runs == 0)
        return false;
    for (size_t i = 0; i < request->num_runs; i++) {
        if (request->runs[i].count == 0)
            return false;
    }
    for (size_t i = 0; i < request->num_source_runs; i++) {
        if (request->source_runs[i].count == 0)
            return false;
    }
    return !request->fetch ||
           lli_block_runs_count(request->runs, request->num_runs) ==
               lli_block_runs_count(request->source_runs, request->num_source_runs);
}

bool
lli_request_read(struct lli_reader *r, bool push, struct lli_request *ret_request)
{
    struct lli_request request = {.push = push};
    request.kind = (enum lli_request_kind)lli_read_u32(r);
    uint32_t flags = lli_read_u32(r);
    request.all_tensors = (flags & FLAG_ALL_TENSORS) != 0;
    request.fetch = (flags & FLAG_FETCH) != 0;
    request.version_2 = (flags & FLAG_VERSION_2) != 0;
    request.keep_key = (flags & FLAG_KEEP_KEY) != 0;
    request.release_lease = (flags & FLAG_RELEASE_LEASE) != 0;
    request.cache_id = (int64_t)lli_read_u64(r);
    request.first_tensor = lli_read_u32(r);
    request.num_tensors = lli_read_u32(r);
    request.tensors_per_layer = lli_read_u32(r);
    request.stride = lli_read_u64(r);
    request.slot = lli_read_u64(r);
    request.bytes = lli_read_u64(r);
    request.source_cache_id = (int64_t)lli_read_u64(r);
    request.source_first_tensor = lli_read_u32(r);
    request.source_slot = lli_read_u64(r);
    if (!runs_read(r, &request.runs, &request.num_runs) ||
        !runs_read(r, &request.source_runs, &request.num_source_runs) ||
        !notification_read(r, &request) || !names_read(r, &request) || r->failed ||
        !is_sound(&request)) {
        lli_request_fini(&request);
        return false;
    }
    *ret_request = request;
    return true;
}

llm_status
lli_request_plan(const struct lli_request *request, uint64_t stride, size_t num_devices,
                 struct lli_plan *ret_plan)
{
    uint64_t num_tensors = (uint64_t)request->num_tensors * num_devices;
    if (request->kind == LLI_REQUEST_SLOT) {
        uint64_t offset = request->slot * stride + request->offset;
        return lli_plan_slot(ret_plan, num_tensors, offset, offset, request->bytes);
    }
    return lli_plan_side(ret_plan, num_tensors, request->runs, request->num_runs, stride);
}

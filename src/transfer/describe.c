#include "transfer/describe.h"

#include <stdio.h>

#include "base/log.h"
#include "base/mem.h"

struct lli_request
lli_describe_names(const struct lli_transfer_args *args)
{
    return (struct lli_request){
        .push = args->push,
        .version_2 = args->version_2,
        .kind = args->kind,
        .by = args->by,
        .cache_id = args->remote_cache_id,
        .key = args->key,
        .generation = args->generation,
        .first_tensor = args->remote_first_tensor,
        .num_tensors = args->num_tensors,
        .all_tensors = args->all_tensors,
        .tensors_per_layer = args->tensors_per_layer,
        .stride = args->cache->geometry.stride,
        .element_type = args->allow_other_type ? 0 : (uint32_t)args->cache->geometry.data_type + 1,
        .slot = args->remote_slot,
        .offset = args->remote_offset,
        .bytes = args->bytes,
        .keep_key = args->keep_key,
        .release_lease = args->release_lease,
    };
}

static llm_status
no_memory(void)
{
    return lli_fail(LLM_OUT_OF_MEMORY, "transfer", "no memory to describe the transfer");
}

static llm_status
copy_addresses(const struct lli_transfer_args *args, struct lli_request *request)
{
    size_t bytes = args->num_tensors * sizeof(*request->addresses);
    request->addresses = lli_malloc(bytes);
    if (request->addresses == NULL)
        return no_memory();
    memcpy(request->addresses, args->remote_addresses, bytes);
    return LLM_SUCCESS;
}

llm_status
lli_describe_request(const struct lli_transfer_args *args, struct lli_request *ret_request)
{
    struct lli_request request = lli_describe_names(args);
    if (args->by == LLI_BY_ADDRESS)
        LLI_TRY(copy_addresses(args, &request));
    if (args->kind == LLI_REQUEST_BLOCKS) {
        llm_status status = lli_block_runs_merge(args->remote_blocks, args->num_blocks,
                                                 &request.runs, &request.num_runs);
        if (status != LLM_SUCCESS) {
            lli_request_fini(&request);
            return status;
        }
    }
    *ret_request = request;
    return LLM_SUCCESS;
}

static uint64_t
find_last_block(const uint64_t *blocks, size_t num_blocks)
{
    // Four at a time, so that no comparison waits for the one before.
    uint64_t a = 0, b = 0, c = 0, d = 0;
    size_t i = 0;
    for (; i + 4 <= num_blocks; i += 4) {
        a = lli_max(a, blocks[i]);
        b = lli_max(b, blocks[i + 1]);
        c = lli_max(c, blocks[i + 2]);
        d = lli_max(d, blocks[i + 3]);
    }
    for (; i < num_blocks; i++)
        a = lli_max(a, blocks[i]);
    return lli_max(lli_max(a, b), lli_max(c, d));
}

static uint64_t
find_first_block(const uint64_t *blocks, size_t num_blocks)
{
    uint64_t first = blocks[0];
    for (size_t i = 1; i < num_blocks; i++)
        first = lli_min(first, blocks[i]);
    return first;
}

static size_t
num_local_tensors(const struct lli_transfer_args *args)
{
    return (size_t)args->num_tensors * args->cache->num_devices;
}

// The addresses of the selected local tensors, for every device.
llm_status
lli_describe_tensors(const struct lli_transfer_args *args, uintptr_t **ret_tensors)
{
    const struct lli_cache *cache = args->cache;
    uintptr_t *tensors = lli_malloc(num_local_tensors(args) * sizeof(*tensors));
    if (tensors == NULL)
        return no_memory();
    for (size_t device = 0; device < cache->num_devices; device++) {
        for (uint32_t i = 0; i < args->num_tensors; i++) {
            size_t index = device * cache->geometry.num_tensors + args->local_first_tensor + i;
            tensors[device * args->num_tensors + i] = cache->addresses[index];
        }
    }
    *ret_tensors = tensors;
    return LLM_SUCCESS;
}

static llm_status
plan_slot(const struct lli_transfer_args *args, uint64_t src_offset, uint64_t bytes,
          struct lli_plan *ret_plan)
{
    uint64_t stride = args->cache->geometry.stride;
    if (args->local_blocks != NULL)
        return lli_plan_scatter(ret_plan, num_local_tensors(args), src_offset, args->local_blocks,
                                args->num_blocks, stride, bytes);
    return lli_plan_slot(ret_plan, num_local_tensors(args), src_offset,
                         args->local_slot * stride + args->local_offset, bytes);
}

// From the peer's tensors to ours.
llm_status
lli_describe_pull(const struct lli_transfer_args *args, const struct lli_source_cache *source,
                  struct lli_plan *ret_plan)
{
    uint64_t remote_stride = source->remote.geometry.stride;
    if (args->kind == LLI_REQUEST_BLOCKS)
        return lli_plan_blocks(ret_plan, num_local_tensors(args), args->remote_blocks,
                               args->local_blocks, args->num_blocks, args->cache->geometry.stride);
    // That they fit was checked, as far as it was asked for.
    uint64_t bytes = lli_min(args->bytes, remote_stride - args->remote_offset);
    return plan_slot(args, source->slot * remote_stride + args->remote_offset, bytes, ret_plan);
}

// Our side alone.
llm_status
lli_describe_side(const struct lli_transfer_args *args, struct lli_plan *ret_plan)
{
    uint64_t stride = args->cache->geometry.stride;
    if (args->kind == LLI_REQUEST_BLOCKS)
        return lli_plan_blocks(ret_plan, num_local_tensors(args), args->local_blocks,
                               args->local_blocks, args->num_blocks, stride);
    // What is pulled lands there, what is pushed lies there.
    return plan_slot(args, args->local_slot * stride + args->local_offset, args->bytes, ret_plan);
}

llm_status
lli_describe_resume(llm_progress *progress, const struct lli_request *request, uint64_t generation,
                    uint64_t total_bytes, char *why, size_t why_size)
{
    if (progress->generation != 0 && progress->generation != generation) {
        snprintf(why, why_size,
                 "the transfer began with generation %llu of the peer's cache, now it is %llu",
                 (unsigned long long)progress->generation, (unsigned long long)generation);
        return LLM_CACHE_STALE;
    }
    // Half of what the key named and half of what it names would be neither.
    if (progress->generation != 0 && !request->push && progress->token != request->key.stamp) {
        snprintf(why, why_size, "the transfer began when the key was bound to something else");
        return LLM_CACHE_STALE;
    }
    if ((progress->total_bytes != 0 && progress->total_bytes != total_bytes) ||
        progress->bytes_arrived > total_bytes) {
        snprintf(why, why_size,
                 "progress tells of %llu of %llu bytes, this transfer has %llu: it is another one",
                 (unsigned long long)progress->bytes_arrived,
                 (unsigned long long)progress->total_bytes, (unsigned long long)total_bytes);
        return LLM_PARAM_INVALID;
    }
    progress->generation = generation;
    progress->total_bytes = total_bytes;
    if (!request->push)
        progress->token = request->key.stamp;
    return LLM_SUCCESS;
}

bool
lli_describe_tells(const struct lli_request *request, bool slot_has_request)
{
    bool takes =
        request->by == LLI_BY_KEY ? request->key.kind == LLM_KEY_REQUEST : slot_has_request;
    return !request->push && (request->release_lease ||
                              (takes && !request->keep_key && request->kind == LLI_REQUEST_SLOT));
}

struct lli_request
lli_describe_done(const struct lli_request *request, uint64_t generation)
{
    return (struct lli_request){
        .kind = LLI_REQUEST_SLOT,
        .by = request->by,
        .cache_id = request->cache_id,
        .key = request->key,
        .slot = request->slot,
        .generation = generation,
        .first_tensor = request->first_tensor,
        .num_tensors = request->num_tensors,
        .keep_key = request->keep_key || request->kind != LLI_REQUEST_SLOT,
        .release_lease = request->release_lease,
        .token = request->generation,
    };
}

llm_status
lli_describe_failure(const struct lli_transfer_args *args, llm_status status, const char *why)
{
    return lli_fail(status, "transfer", "%s cluster %llu: %s", args->push ? "push to" : "pull from",
                    (unsigned long long)args->cluster_id, why);
}

// Opens the peer's cache for reading by this process.
llm_status
lli_describe_source(struct lli_link *link, const struct lli_transfer_args *args,
                    struct lli_source_cache *ret_source)
{
    // All that must be known of the blocks here is whether they exist, and whether a lease holds them:
    // of the last one, and then of the first.
    struct lli_block_run ends[2] = {{.count = 1}, {.count = 1}};
    struct lli_request request = lli_describe_names(args);
    char why[LLI_REASON_BYTES];
    if (args->kind == LLI_REQUEST_BLOCKS) {
        ends[0].first = find_last_block(args->remote_blocks, args->num_blocks);
        if (args->generation != 0)
            ends[1].first = find_first_block(args->remote_blocks, args->num_blocks);
        request.runs = ends;
        request.num_runs = args->generation != 0 ? 2 : 1;
    }
    if (args->bytes_min != 0)
        request.bytes = args->bytes_min;
    llm_status status = lli_source_open(link, &request, ret_source, why, sizeof(why));
    return status == LLM_SUCCESS ? status : lli_describe_failure(args, status, why);
}

// On one host the peer fetches what is pushed from our memory.
llm_status
lli_describe_fetch(const struct lli_transfer_args *args, struct lli_request *request)
{
    request->fetch = true;
    request->source_cache_id = args->cache->id;
    request->source_first_tensor = args->local_first_tensor;
    request->source_slot = args->local_slot;
    if (args->kind == LLI_REQUEST_BLOCKS)
        return lli_block_runs_merge(args->local_blocks, args->num_blocks, &request->source_runs,
                                    &request->num_source_runs);
    return LLM_SUCCESS;
}

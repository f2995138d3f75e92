#include "transfer/describe.h"

#include "base/log.h"
#include "base/mem.h"

// The peer's side, but for its blocks.
static struct lli_request
request_without_blocks(const struct lli_transfer_args *args)
{
    return (struct lli_request){
        .push = args->push,
        .version_2 = args->version_2,
        .kind = args->kind,
        .cache_id = args->remote_cache_id,
        .first_tensor = args->remote_first_tensor,
        .num_tensors = args->num_tensors,
        .all_tensors = args->all_tensors,
        .tensors_per_layer = args->tensors_per_layer,
        .stride = args->cache->geometry.stride,
        .slot = args->remote_slot,
        .bytes = args->bytes,
    };
}

// The peer's side; the runs are the request's to free.
llm_status
lli_describe_request(const struct lli_transfer_args *args, struct lli_request *ret_request)
{
    struct lli_request request = request_without_blocks(args);
    if (args->kind == LLI_REQUEST_BLOCKS)
        LLI_TRY(lli_block_runs_merge(args->remote_blocks, args->num_blocks, &request.runs,
                                     &request.num_runs));
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

static size_t
num_local_tensors(const struct lli_transfer_args *args)
{
    return (size_t)args->num_tensors * args->cache->num_devices;
}

static llm_status
no_memory(void)
{
    return lli_fail(LLM_OUT_OF_MEMORY, "transfer", "no memory to describe the transfer");
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

// From the peer's tensors to ours.
llm_status
lli_describe_pull(const struct lli_transfer_args *args, const struct lli_geometry *remote,
                  struct lli_plan *ret_plan)
{
    uint64_t stride = args->cache->geometry.stride;
    if (args->kind == LLI_REQUEST_SLOT)
        return lli_plan_slot(ret_plan, num_local_tensors(args), args->remote_slot * remote->stride,
                             args->local_slot * stride, args->bytes);
    return lli_plan_blocks(ret_plan, num_local_tensors(args), args->remote_blocks,
                           args->local_blocks, args->num_blocks, stride);
}

// Our side alone.
llm_status
lli_describe_side(const struct lli_transfer_args *args, struct lli_plan *ret_plan)
{
    uint64_t stride = args->cache->geometry.stride;
    if (args->kind == LLI_REQUEST_SLOT)
        return lli_plan_slot(ret_plan, num_local_tensors(args), args->local_slot * stride,
                             args->local_slot * stride, args->bytes);
    return lli_plan_blocks(ret_plan, num_local_tensors(args), args->local_blocks,
                           args->local_blocks, args->num_blocks, stride);
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
    // All that must be known of the blocks here is whether they exist.
    struct lli_block_run extent = {.count = 1};
    struct lli_request request = request_without_blocks(args);
    char why[LLI_REASON_BYTES];
    if (args->kind == LLI_REQUEST_BLOCKS) {
        extent.first = find_last_block(args->remote_blocks, args->num_blocks);
        request.runs = &extent;
        request.num_runs = 1;
    }
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

// One side's llm-datadist instance.
#include "demo_cluster.h"

#include <stdio.h>
#include <string.h>

bool
demo_fail_call(demo_error *error, const char *call, llm_status status)
{
    char reason[400];
    llm_last_error(reason, sizeof reason);
    return demo_fail(error, "%s answered %s: %s", call, llm_status_name(status),
                     reason[0] != '\0' ? reason : llm_status_text(status));
}

static bool
initialize(demo_cluster *c, llm_role role, const struct lli_endpoint *listen, const demo_options *o,
           demo_error *error)
{
    char address[LLI_ADDRESS_TEXT_BYTES] = "0.0.0.0:0", wait_ms[16];
    struct lli_endpoint any_port = listen == NULL ? (struct lli_endpoint){0} : *listen;
    any_port.port = 0;
    if (listen != NULL)
        lli_endpoint_format(&any_port, address);
    snprintf(wait_ms, sizeof wait_ms, "%u", 1000 * (unsigned)o->timeout_s);
    const llm_option options[] = {
        {LLM_OPTION_DEVICE_ID, "0"},
        {LLM_OPTION_SYNC_CACHE_WAIT_TIME, wait_ms},
        {LLM_OPTION_TRANSPORTS, o->transport == NULL ? "auto" : o->transport},
        {LLM_OPTION_LISTEN_IP_INFO, address}, // a Decoder doesn't listen and doesn't read it
    };
    uint64_t id = role == LLM_ROLE_PROMPT ? DEMO_PROMPT_CLUSTER : DEMO_DECODER_CLUSTER;
    llm_status status = llm_create(id, role, &c->dd);
    if (status != LLM_SUCCESS)
        return demo_fail_call(error, "llm_create", status);
    status = llm_initialize(c->dd, options, sizeof options / sizeof options[0]);
    return status == LLM_SUCCESS || demo_fail_call(error, "llm_initialize", status);
}

static bool
allocate(demo_cluster *c, demo_sequence *s, demo_error *error)
{
    size_t num_tensors = tiny_num_tensors(s->model), block = tiny_block_bytes(s->model);
    c->shape[0] = DEMO_NUM_BLOCKS;
    c->shape[1] = (int64_t)(block / sizeof(float));
    c->desc = (llm_cache_desc){.struct_size = sizeof c->desc,
                               .placement = LLM_PLACEMENT_DEVICE,
                               .num_tensors = (uint32_t)num_tensors,
                               .data_type = LLM_DT_FLOAT,
                               .shape = c->shape,
                               .num_dims = 2};
    c->cache = (llm_cache){.struct_size = sizeof c->cache,
                           .tensor_addrs = s->kv.tensors,
                           .num_tensor_addrs = DEMO_MAX_TENSORS};
    llm_status status = llm_allocate_cache(c->dd, &c->desc, &c->cache);
    if (status != LLM_SUCCESS)
        return demo_fail_call(error, "llm_allocate_cache", status);
    // The demo compares whole blocks, with the rows that no token has filled yet.
    for (size_t t = 0; t < num_tensors; t++)
        memset((void *)s->kv.tensors[t], 0, DEMO_NUM_BLOCKS * block);
    return true;
}

bool
demo_cluster_open(demo_cluster *c, llm_role role, const struct lli_endpoint *listen,
                  const demo_options *o, demo_sequence *s, demo_error *error)
{
    demo_spread_blocks(&s->kv, role == LLM_ROLE_PROMPT ? 0 : 1);
    return initialize(c, role, listen, o, error) && allocate(c, s, error);
}

void
demo_cluster_close(demo_cluster *c)
{
    llm_destroy(c->dd);
    c->dd = NULL;
}

uint64_t
demo_transfer_bytes(const demo_sequence *s, size_t num_blocks)
{
    return (uint64_t)num_blocks * tiny_num_tensors(s->model) * tiny_block_bytes(s->model);
}

bool
demo_link_transport(const demo_cluster *c, uint64_t peer, const demo_options *o, char transport[16],
                    demo_error *error)
{
    llm_link_info info = {.struct_size = sizeof info};
    llm_status status = llm_get_link_info(c->dd, peer, &info);
    if (status != LLM_SUCCESS)
        return demo_fail_call(error, "llm_get_link_info", status);
    snprintf(transport, 16, "%s", info.transport);
    if (o->transport != NULL && strcmp(transport, o->transport) != 0)
        return demo_fail(error, "the link took the transport %s, not %s: %s", transport,
                         o->transport, info.reason);
    return true;
}

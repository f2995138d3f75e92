// llm-datadist demo decoder: gets a KV cache from a prompt side and goes on from it.
//
// demo_prompt.c has the conversation between the two.
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "demo.h"
#include "demo_cluster.h"
#include "demo_fields.h"
#include "demo_print.h"
#include "demo_report.h"
#include "demo_sequence.h"
#include "demo_side.h"

typedef struct decoder_side {
    const demo_options *options;
    demo_error error;
    demo_sequence sequence;
    demo_cluster cluster;
    demo_side side;
    uint64_t peer_cluster;
    llm_ip_info local;  // of the link
    llm_ip_info remote; // of the link
    uint16_t peer_port; // where the prompt side's llm-datadist listens
    int64_t peer_cache;
    uint64_t peer_blocks[DEMO_NUM_BLOCKS];
    size_t num_blocks;
    uint32_t repeat;
    char transport[16];
    double begin_ms; // of the request
    double first_ms; // from the request to the first token and the cache
} decoder_side;

static bool
hear_hello(decoder_side *d)
{
    demo_error *e = &d->error;
    const char *line = d->side.line;
    uint64_t version, weights, port, prompt, tokens, seed, repeat;
    if (!demo_side_receive(&d->side, "hello", e) ||
        !demo_get_u64(line, "version", 1, &version, e) ||
        !demo_get_u64(line, "weights", UINT32_MAX, &weights, e) ||
        !demo_get_u64(line, "cluster", UINT64_MAX, &d->peer_cluster, e) ||
        !demo_get_u64(line, "port", UINT16_MAX, &port, e) ||
        !demo_get_u64(line, "prompt", DEMO_MAX_TOKENS, &prompt, e) ||
        !demo_get_u64(line, "tokens", DEMO_MAX_TOKENS, &tokens, e) ||
        !demo_get_u64(line, "seed", UINT32_MAX, &seed, e) ||
        !demo_get_u64(line, "repeat", 1000000, &repeat, e))
        return false;
    if (weights != tiny_fingerprint(d->sequence.model))
        return demo_fail(e, "the prompt side has another model: both need the same version");
    d->peer_port = (uint16_t)port;
    d->repeat = repeat < 1 ? 1 : (uint32_t)repeat;
    d->num_blocks = demo_blocks_for((size_t)prompt);
    return demo_sequence_plan(&d->sequence, (size_t)prompt, (size_t)tokens, (uint32_t)seed, e);
}

// Names the prompt by the address that the side channel reached it at.
static llm_cluster_info
prompt_cluster(decoder_side *d)
{
    d->local = (llm_ip_info){"0.0.0.0", 0};
    d->remote = (llm_ip_info){d->side.remote, d->peer_port};
    return (llm_cluster_info){.struct_size = sizeof(llm_cluster_info),
                              .remote_cluster_id = d->peer_cluster,
                              .local_ip_infos = &d->local,
                              .num_local_ip_infos = 1,
                              .remote_ip_infos = &d->remote,
                              .num_remote_ip_infos = 1};
}

static bool
make_link(decoder_side *d)
{
    const llm_cluster_info cluster = prompt_cluster(d);
    llm_status status = llm_link_clusters(d->cluster.dd, &cluster, 1, NULL, NULL,
                                          1000 * (int32_t)d->options->timeout_s);
    if (status != LLM_SUCCESS)
        return demo_fail_call(&d->error, "llm_link_clusters", status);
    if (!demo_link_transport(&d->cluster, d->peer_cluster, d->options, d->transport, &d->error))
        return false;
    demo_tell(d->options, "link transport=%s", d->transport);
    demo_say(d->options, "linked to %s port %u over %s", d->side.remote, (unsigned)d->peer_port,
             d->transport);
    return true;
}

static bool
say_ready(decoder_side *d)
{
    char blocks[21 * DEMO_NUM_BLOCKS + 1];
    demo_put_list(blocks, sizeof blocks, d->sequence.kv.blocks, d->num_blocks);
    d->begin_ms = demo_now_ms();
    return demo_side_send(&d->side, &d->error,
                          "ready push=%d cluster=%d cache=%" PRId64 " blocks=%s", d->options->push,
                          DEMO_DECODER_CLUSTER, d->cluster.cache.cache_id, blocks);
}

static bool
hear_prefilled(decoder_side *d)
{
    demo_sequence *s = &d->sequence;
    uint64_t first, cache;
    size_t length;
    if (!demo_side_receive(&d->side, "prefilled", &d->error) ||
        !demo_get_u64(d->side.line, "first", 255, &first, &d->error) ||
        !demo_get_u64(d->side.line, "cache", INT64_MAX, &cache, &d->error) ||
        !demo_get_list(d->side.line, "blocks", UINT64_MAX, d->peer_blocks, DEMO_NUM_BLOCKS, &length,
                       &d->error))
        return false;
    if (length != d->num_blocks)
        return demo_fail(&d->error, "the prompt side offers %zu blocks for %zu", length,
                         d->num_blocks);
    d->peer_cache = (int64_t)cache;
    s->tokens[s->num_known++] = (uint8_t)first;
    return true;
}

static bool
pull(decoder_side *d)
{
    const llm_cache_index from = {
        .struct_size = sizeof from, .cluster_id = d->peer_cluster, .cache_id = d->peer_cache};
    llm_status status =
        llm_pull_kv_blocks(d->cluster.dd, &from, &d->cluster.cache, d->peer_blocks, d->num_blocks,
                           d->sequence.kv.blocks, d->num_blocks, NULL);
    return status == LLM_SUCCESS || demo_fail_call(&d->error, "llm_pull_kv_blocks", status);
}

// When this returns, the cache is here: pushes had ended when the prompt side said 'prefilled'.
static bool
get_cache(decoder_side *d)
{
    if (!d->options->push && !pull(d))
        return false;
    d->first_ms = demo_now_ms() - d->begin_ms;
    demo_tell(d->options, "first us=%.0f", d->first_ms * 1e3);
    return demo_side_send(&d->side, &d->error, "arrived kv=%" PRIu64,
                          demo_hash_kv(&d->sequence, d->sequence.num_prompt));
}

static bool
measure_pulls(decoder_side *d, uint64_t *median)
{
    bool ok = true;
    uint64_t *times = calloc(d->repeat, sizeof *times);
    if (times == NULL)
        return demo_fail(&d->error, "out of memory for %u times", (unsigned)d->repeat);
    for (uint32_t i = 0; ok && i < d->repeat; i++) {
        double begin = demo_now_ms();
        ok = pull(d);
        times[i] = (uint64_t)((demo_now_ms() - begin) * 1e6);
    }
    *median = demo_median(times, d->repeat);
    free(times);
    return ok;
}

// Tells the size and the speed of a transfer, whichever side moved it.
static bool
measure(decoder_side *d)
{
    uint64_t bytes, ns;
    if (!demo_side_receive(&d->side, "measured", &d->error) ||
        !demo_get_u64(d->side.line, "bytes", UINT64_MAX, &bytes, &d->error) ||
        !demo_get_u64(d->side.line, "ns", UINT64_MAX, &ns, &d->error))
        return false;
    if (!d->options->push) {
        bytes = demo_transfer_bytes(&d->sequence, d->num_blocks);
        if (!measure_pulls(d, &ns))
            return false;
    }
    demo_tell(d->options, "moved bytes=%" PRIu64 " ns=%" PRIu64, bytes, ns);
    demo_say(d->options, "%s %" PRIu64 " bytes of KV cache at %.2f GB/s; first token after %.1f ms",
             d->options->push ? "was pushed" : "pulled", bytes,
             (double)bytes / (double)(ns == 0 ? 1 : ns), d->first_ms);
    return true;
}

static bool
decode(decoder_side *d)
{
    demo_sequence *s = &d->sequence;
    char hex[2 * DEMO_MAX_TOKENS + 1];
    if (!demo_tell_kv(d->options, s, "arrived", s->num_prompt, &d->error) ||
        !demo_generate(s, &d->error))
        return false;
    demo_tell_tokens(d->options, s);
    if (d->options->report_fd < 0)
        demo_print_text(s->tokens + s->num_prompt, 0, s->num_known - s->num_prompt);
    demo_put_bytes(hex, sizeof hex, s->tokens + s->num_prompt, s->num_known - s->num_prompt);
    return demo_tell_kv(d->options, s, "final", s->num_known - 1, &d->error) &&
           demo_side_send(&d->side, &d->error, "result kv=%" PRIu64 " tokens=%s",
                          demo_hash_kv(s, s->num_known - 1), hex);
}

static bool
unlink_prompt(decoder_side *d)
{
    const llm_cluster_info cluster = prompt_cluster(d);
    llm_status status = llm_unlink_clusters(d->cluster.dd, &cluster, 1, NULL, NULL,
                                            1000 * (int32_t)d->options->timeout_s, 0);
    return status == LLM_SUCCESS || demo_fail_call(&d->error, "llm_unlink_clusters", status);
}

static bool
part(decoder_side *d)
{
    return demo_side_receive(&d->side, "verdict", &d->error) && unlink_prompt(d) &&
           demo_side_send(&d->side, &d->error, "bye");
}

static bool
work(decoder_side *d)
{
    const demo_options *o = d->options;
    return demo_sequence_open(&d->sequence, &d->error) &&
           demo_cluster_open(&d->cluster, LLM_ROLE_DECODER, NULL, o, &d->sequence, &d->error) &&
           demo_side_connect(&d->side, &o->connect, &d->error) && hear_hello(d) && make_link(d) &&
           say_ready(d) && hear_prefilled(d) && get_cache(d) && measure(d) && decode(d) && part(d);
}

int
demo_decoder(const demo_options *options)
{
    decoder_side d = {
        .options = options,
        .side = {.fd = -1, .peer = "the prompt side", .timeout_s = options->timeout_s}};
    signal(SIGPIPE, SIG_IGN);
    if (work(&d))
        demo_say(options, "demo: ok, %s over %s: the prompt side got the same tokens and KV cache",
                 options->push ? "push" : "pull", d.transport);
    else
        demo_side_send_error(&d.side, d.error.text);
    demo_side_close(&d.side);
    demo_cluster_close(&d.cluster);
    demo_sequence_close(&d.sequence);
    return demo_tell_end(options, &d.error);
}

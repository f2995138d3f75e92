// llm-datadist demo prompt: prefills, hands the KV cache over, and checks what the decoder made of it.
//
// The conversation, > from the decoder:
//
//     hello      the model, where llm-datadist listens, what to generate
//   > ready      how to hand over, and where in its cache the decoder wants the blocks
//     prefilled  the first token, and where in this cache the blocks are
//   > arrived    the decoder has them: the hash of their bytes
//     measured   the speed of pushes, if it was this side that moved the blocks
//   > result     the tokens and the hash of the whole cache
//     verdict    whether this side, going on by itself, gets the same
//   > bye        the link is gone
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "demo.h"
#include "demo_cluster.h"
#include "demo_fields.h"
#include "demo_print.h"
#include "demo_report.h"
#include "demo_sequence.h"
#include "demo_side.h"

typedef struct prompt_side {
    const demo_options *options;
    demo_error error;
    demo_sequence sequence;
    demo_cluster cluster;
    demo_side side;
    bool push;
    char transport[16];
    llm_cache_index peer_cache;
    uint64_t peer_blocks[DEMO_NUM_BLOCKS];
    size_t num_blocks;
    uint64_t *times;  // of each push of all layers, in nanoseconds
    double pass_ms;   // of the pass that is under way
    uint64_t kv_hash; // of the blocks that were handed over
} prompt_side;

static bool
prepare(prompt_side *p)
{
    const demo_options *o = p->options;
    p->times = calloc(o->repeat, sizeof *p->times);
    if (p->times == NULL)
        return demo_fail(&p->error, "out of memory for %u times", (unsigned)o->repeat);
    return demo_sequence_open(&p->sequence, &p->error) &&
           demo_sequence_plan(&p->sequence, strlen(o->prompt), o->tokens, o->seed, &p->error) &&
           demo_cluster_open(&p->cluster, LLM_ROLE_PROMPT, &o->listen, o, &p->sequence, &p->error);
}

static bool
wait_for_decoder(prompt_side *p)
{
    const demo_options *o = p->options;
    char text[LLI_ADDRESS_TEXT_BYTES];
    struct lli_endpoint at = o->listen;
    int listener = demo_side_listen(&at, &p->error);
    if (listener < 0)
        return false;
    demo_tell(o, "listening port=%u", (unsigned)at.port);
    demo_say(o, "waiting at %s; on another terminal or machine:", lli_endpoint_format(&at, text));
    if (!at.is_name && lli_address_is_any(&at.address))
        snprintf(text, sizeof text, "ADDRESS_OF_THIS_MACHINE:%u", (unsigned)at.port);
    demo_say(o, "    llm-datadist demo decoder --connect %s", text);
    // A person may take their time.
    uint32_t limit = o->report_fd < 0 ? 0 : o->timeout_s;
    if (!demo_side_accept(&p->side, listener, limit, &p->error))
        return false;
    demo_say(o, "the decoder came from %s", p->side.remote);
    return true;
}

static bool
say_hello(prompt_side *p)
{
    const demo_options *o = p->options;
    uint16_t port;
    llm_status status = llm_get_listen_port(p->cluster.dd, 0, &port);
    if (status != LLM_SUCCESS)
        return demo_fail_call(&p->error, "llm_get_listen_port", status);
    return demo_side_send(&p->side, &p->error,
                          "hello version=1 weights=%" PRIu32 " cluster=%d port=%u prompt=%zu "
                          "tokens=%u seed=%u repeat=%u",
                          tiny_fingerprint(p->sequence.model), DEMO_PROMPT_CLUSTER, (unsigned)port,
                          p->sequence.num_prompt, (unsigned)o->tokens, (unsigned)o->seed,
                          (unsigned)o->repeat);
}

// The decoder has linked by now.
static bool
hear_ready(prompt_side *p)
{
    demo_error *e = &p->error;
    uint64_t push, cache, cluster;
    size_t length;
    if (!demo_side_receive(&p->side, "ready", e) ||
        !demo_get_u64(p->side.line, "push", 1, &push, e) ||
        !demo_get_u64(p->side.line, "cluster", UINT64_MAX, &cluster, e) ||
        !demo_get_u64(p->side.line, "cache", INT64_MAX, &cache, e) ||
        !demo_get_list(p->side.line, "blocks", DEMO_NUM_BLOCKS, p->peer_blocks, DEMO_NUM_BLOCKS,
                       &length, e))
        return false;
    p->push = push != 0;
    p->num_blocks = demo_blocks_for(p->sequence.num_prompt);
    p->peer_cache = (llm_cache_index){
        .struct_size = sizeof p->peer_cache, .cluster_id = cluster, .cache_id = (int64_t)cache};
    if (length != p->num_blocks)
        return demo_fail(e, "the decoder offers %zu blocks for %zu", length, p->num_blocks);
    return demo_link_transport(&p->cluster, cluster, p->options, p->transport, e);
}

static bool
push_layer(prompt_side *p, uint32_t layer)
{
    llm_kv_cache_ext_param range = LLM_KV_CACHE_EXT_PARAM_INIT;
    range.src_layer_range[0] = range.src_layer_range[1] = (int32_t)layer;
    range.dst_layer_range[0] = range.dst_layer_range[1] = (int32_t)layer;
    double begin = demo_now_ms();
    llm_status status =
        llm_push_kv_blocks(p->cluster.dd, &p->cluster.cache, &p->peer_cache, p->sequence.kv.blocks,
                           p->num_blocks, p->peer_blocks, p->num_blocks, &range);
    p->pass_ms += demo_now_ms() - begin;
    return status == LLM_SUCCESS || demo_fail_call(&p->error, "llm_push_kv_blocks", status);
}

// Runs as soon as all tokens of a layer are computed, before the next layer is.
static int
layer_done(void *arg, uint32_t layer)
{
    prompt_side *p = arg;
    uint32_t layers = tiny_get_dims(p->sequence.model)->layers;
    demo_tell(p->options, "stage name=prefill done=%u of=%u", (unsigned)layer + 1,
              (unsigned)layers);
    return p->push && !push_layer(p, layer);
}

static bool
prefill(prompt_side *p)
{
    demo_sequence *s = &p->sequence;
    char blocks[21 * DEMO_NUM_BLOCKS + 1];
    double begin = demo_now_ms();
    if (!demo_prefill(s, p->options->prompt, layer_done, p, &p->error))
        return false;
    demo_say(p->options, "prefilled %zu tokens in %.1f ms%s", s->num_prompt, demo_now_ms() - begin,
             p->push ? ", pushing each layer when it was done" : "");
    demo_put_list(blocks, sizeof blocks, s->kv.blocks, p->num_blocks);
    return demo_side_send(&p->side, &p->error, "prefilled first=%u cache=%" PRId64 " blocks=%s",
                          (unsigned)s->tokens[s->num_prompt], p->cluster.cache.cache_id, blocks);
}

static bool
hear_arrived(prompt_side *p)
{
    demo_sequence *s = &p->sequence;
    uint64_t hash;
    if (!demo_side_receive(&p->side, "arrived", &p->error) ||
        !demo_get_u64(p->side.line, "kv", UINT64_MAX, &hash, &p->error) ||
        !demo_tell_kv(p->options, s, "prefill", s->num_prompt, &p->error))
        return false;
    if (hash != demo_hash_kv(s, s->num_prompt))
        return demo_fail(&p->error, "the KV cache that arrived is not the one that was sent");
    return true;
}

// Pushes everything again and again, to have more than one speed.
static bool
measure(prompt_side *p)
{
    uint64_t bytes = p->push ? demo_transfer_bytes(&p->sequence, p->num_blocks) : 0;
    for (uint32_t i = 0; p->push && i < p->options->repeat; i++) {
        for (uint32_t layer = 0; i > 0 && layer < tiny_get_dims(p->sequence.model)->layers; layer++)
            if (!push_layer(p, layer))
                return false;
        p->times[i] = (uint64_t)(p->pass_ms * 1e6);
        p->pass_ms = 0;
    }
    return demo_side_send(&p->side, &p->error, "measured bytes=%" PRIu64 " ns=%" PRIu64, bytes,
                          p->push ? demo_median(p->times, p->options->repeat) : 0);
}

// Nothing moves any more, so this side may go on in its own cache.
static bool
check_result(prompt_side *p)
{
    demo_sequence *s = &p->sequence;
    uint8_t theirs[DEMO_MAX_TOKENS];
    size_t length;
    uint64_t hash;
    if (!demo_side_receive(&p->side, "result", &p->error) ||
        !demo_get_bytes(p->side.line, "tokens", theirs, sizeof theirs, &length, &p->error) ||
        !demo_get_u64(p->side.line, "kv", UINT64_MAX, &hash, &p->error) ||
        !demo_generate(s, &p->error))
        return false;
    if (p->options->report_fd < 0)
        demo_print_text(s->tokens, s->num_prompt, s->num_known);
    if (length != s->num_known - s->num_prompt ||
        memcmp(theirs, s->tokens + s->num_prompt, length) != 0)
        return demo_fail(&p->error, "the decoder generated other tokens than this side");
    if (hash != demo_hash_kv(s, s->num_known - 1))
        return demo_fail(&p->error, "the decoder's KV cache differs from this side's at the end");
    return true;
}

static bool
part(prompt_side *p)
{
    return demo_side_send(&p->side, &p->error, "verdict same=1") &&
           demo_side_receive(&p->side, "bye", &p->error);
}

static bool
work(prompt_side *p)
{
    return prepare(p) && wait_for_decoder(p) && say_hello(p) && hear_ready(p) && prefill(p) &&
           hear_arrived(p) && measure(p) && check_result(p) && part(p);
}

int
demo_prompt(const demo_options *options)
{
    prompt_side p = {.options = options,
                     .side = {.fd = -1, .peer = "the decoder", .timeout_s = options->timeout_s}};
    signal(SIGPIPE, SIG_IGN);
    if (work(&p))
        demo_say(options, "demo: ok, %s over %s: %u tokens and the KV cache are identical",
                 p.push ? "push" : "pull", p.transport, (unsigned)options->tokens);
    else
        demo_side_send_error(&p.side, p.error.text);
    demo_side_close(&p.side);
    demo_cluster_close(&p.cluster);
    demo_sequence_close(&p.sequence);
    free(p.times);
    return demo_tell_end(options, &p.error);
}

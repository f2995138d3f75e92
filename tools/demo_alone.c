// llm-datadist demo alone: one process prefills and decodes, in memory of its own.
#include <stdlib.h>
#include <string.h>

#include "demo.h"
#include "demo_print.h"
#include "demo_report.h"
#include "demo_sequence.h"

typedef struct alone {
    const demo_options *options;
    demo_error error;
    demo_sequence sequence;
    void *memory; // of all tensors
} alone;

static bool
allocate(alone *a)
{
    demo_sequence *s = &a->sequence;
    size_t num_tensors = tiny_num_tensors(s->model);
    size_t tensor = DEMO_NUM_BLOCKS * tiny_block_bytes(s->model);
    a->memory = calloc(num_tensors, tensor);
    if (a->memory == NULL)
        return demo_fail(&a->error, "out of memory for a KV cache of %zu bytes",
                         num_tensors * tensor);
    for (size_t t = 0; t < num_tensors; t++)
        s->kv.tensors[t] = (uintptr_t)a->memory + t * tensor;
    demo_spread_blocks(&s->kv, 2);
    return true;
}

static bool
prefill(alone *a)
{
    demo_sequence *s = &a->sequence;
    double begin = demo_now_ms();
    if (!demo_prefill(s, a->options->prompt, NULL, NULL, &a->error))
        return false;
    double ms = demo_now_ms() - begin;
    demo_tell(a->options, "first us=%.0f", ms * 1e3);
    demo_say(a->options, "prefilled %zu tokens in %.1f ms", s->num_prompt, ms);
    return demo_tell_kv(a->options, s, "prefill", s->num_prompt, &a->error);
}

static bool
decode(alone *a)
{
    demo_sequence *s = &a->sequence;
    if (!demo_generate(s, &a->error))
        return false;
    demo_tell_tokens(a->options, s);
    if (a->options->report_fd < 0)
        demo_print_text(s->tokens, s->num_prompt, s->num_known);
    // The last token is known, but was never computed with: it has no place in the cache yet.
    return demo_tell_kv(a->options, s, "final", s->num_known - 1, &a->error);
}

static bool
work(alone *a)
{
    const demo_options *o = a->options;
    return demo_sequence_open(&a->sequence, &a->error) && allocate(a) &&
           demo_sequence_plan(&a->sequence, strlen(o->prompt), o->tokens, o->seed, &a->error) &&
           prefill(a) && decode(a);
}

int
demo_alone(const demo_options *options)
{
    alone a = {.options = options};
    if (work(&a))
        demo_say(options, "demo: ok, %u tokens in one process", (unsigned)options->tokens);
    demo_sequence_close(&a.sequence);
    free(a.memory);
    return demo_tell_end(options, &a.error);
}

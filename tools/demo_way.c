// One way of making the text, in processes of its own.
#include "demo_way.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

// When one process fails, the other usually has something to say about it soon.
static const double GRACE_MS = 2000;

// The numbers that the parts are started with, as text.
typedef struct texts {
    char tokens[16], seed[16], repeat[16], timeout[16], address[32];
} texts;

static texts
to_texts(const demo_options *o, unsigned port)
{
    texts t;
    snprintf(t.tokens, sizeof t.tokens, "%u", (unsigned)o->tokens);
    snprintf(t.seed, sizeof t.seed, "%u", (unsigned)o->seed);
    snprintf(t.repeat, sizeof t.repeat, "%u", (unsigned)o->repeat);
    snprintf(t.timeout, sizeof t.timeout, "%u", (unsigned)o->timeout_s);
    snprintf(t.address, sizeof t.address, "127.0.0.1:%u", port);
    return t;
}

static bool
start_alone(demo_way *w, const demo_options *o, demo_error *error)
{
    texts t = to_texts(o, 0);
    const char *arguments[] = {"alone",  "--prompt", o->prompt, "--tokens",
                               t.tokens, "--seed",   t.seed,    NULL};
    w->decoder.name = "the process";
    return demo_child_start(&w->decoder, arguments, error);
}

static bool
start_prompt(demo_way *w, const demo_options *o, demo_error *error)
{
    texts t = to_texts(o, 0);
    const char *arguments[] = {"prompt",     "--listen",  t.address, "--transport",
                               w->transport, "--prompt",  o->prompt, "--tokens",
                               t.tokens,     "--seed",    t.seed,    "--repeat",
                               t.repeat,     "--timeout", t.timeout, NULL};
    w->prompt.name = "the prompt process";
    return demo_child_start(&w->prompt, arguments, error);
}

static bool
start_decoder(demo_way *w, const demo_options *o, demo_error *error)
{
    texts t = to_texts(o, w->prompt.told.port);
    const char *arguments[] = {"decoder",     "--connect",  t.address,   "--way",   w->name,
                               "--transport", w->transport, "--timeout", t.timeout, NULL};
    w->decoder.name = "the decoder process";
    return demo_child_start(&w->decoder, arguments, error);
}

static bool
has_failed(const demo_way *w)
{
    char ignored[8];
    return demo_child_failure(&w->prompt, ignored, sizeof ignored) ||
           demo_child_failure(&w->decoder, ignored, sizeof ignored);
}

// The processes' own words; of two, those of the one that was killed, else the prompt's.
static bool
explain(const demo_way *w, demo_error *error)
{
    char text[600];
    const demo_child *first = demo_child_was_killed(&w->decoder) ? &w->decoder : &w->prompt;
    const demo_child *second = first == &w->prompt ? &w->decoder : &w->prompt;
    if (demo_child_failure(first, text, sizeof text) ||
        demo_child_failure(second, text, sizeof text))
        return demo_fail(error, "%s", text);
    return true;
}

// Waits for news of a running process and reads it; false if there was none until the deadline.
static bool
read_news(demo_way *w, double deadline)
{
    demo_child *children[] = {&w->prompt, &w->decoder};
    struct pollfd p[2];
    for (int i = 0; i < 2; i++)
        p[i] = (struct pollfd){.fd = children[i]->fd, .events = POLLIN}; // poll skips fd -1
    double left = deadline - demo_now_ms();
    int n = poll(p, 2, left < 0 ? 0 : (int)left + 1);
    for (int i = 0; n > 0 && i < 2; i++) {
        if (p[i].revents != 0)
            demo_child_read(children[i]);
    }
    return n != 0;
}

static bool
is_running(const demo_way *w)
{
    return w->prompt.fd >= 0 || w->decoder.fd >= 0;
}

static bool
timed_out(const demo_way *w, const demo_options *o, demo_error *error)
{
    bool both = w->prompt.fd >= 0 && w->decoder.fd >= 0;
    const demo_child *running = w->prompt.fd >= 0 ? &w->prompt : &w->decoder;
    return demo_fail(error, "%s%s%s had not ended after %u s", running->name, both ? " and " : "",
                     both ? w->decoder.name : "", (unsigned)o->timeout_s);
}

// Follows the processes to their end.
static bool
follow(demo_way *w, const demo_options *o, demo_progress progress, void *arg, demo_error *error)
{
    double deadline = demo_now_ms() + o->timeout_s * 1e3;
    bool failed = false, in_time = true;
    while (is_running(w) && in_time) {
        bool decoder_started = w->decoder.name != NULL;
        if (!decoder_started && w->prompt.told.port != 0 && !start_decoder(w, o, error))
            return false;
        in_time = read_news(w, deadline);
        if (!failed && has_failed(w)) {
            failed = true;
            double soon = demo_now_ms() + GRACE_MS;
            deadline = soon < deadline ? soon : deadline;
        }
        progress(arg, w);
    }
    if (!explain(w, error))
        return false;
    return in_time || timed_out(w, o, error);
}

bool
demo_way_run(demo_way *w, const demo_options *o, demo_progress progress, void *arg,
             demo_error *error)
{
    w->prompt.fd = w->decoder.fd = -1;
    bool started = w->transport == NULL ? start_alone(w, o, error) : start_prompt(w, o, error);
    w->ran = started && follow(w, o, progress, arg, error);
    return w->ran;
}

void
demo_way_close(demo_way *w)
{
    demo_child_close(&w->prompt);
    demo_child_close(&w->decoder);
}

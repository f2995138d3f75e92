// llm-datadist demo --help, for the main job and for each part.
#include <stdio.h>

#include "demo.h"

static const char help_all[] =
    "Lets one process prefill a prompt and another, which never saw it, go on with the same "
    "tokens.\n"
    "\n"
    "usage: llm-datadist demo [OPTION...]            the whole comparison, on this machine\n"
    "       llm-datadist demo prompt --listen HOST:PORT [OPTION...]      one side by hand\n"
    "       llm-datadist demo decoder --connect HOST:PORT [OPTION...]    and the other\n"
    "       llm-datadist demo alone [OPTION...]      both sides in one process, no transfer\n"
    "\n"
    "A small transformer (tiny_llm, in the program) writes a text on from a prompt, in these "
    "ways,\n"
    "each in processes of its own:\n"
    "\n"
    "    alone   one process prefills and decodes\n"
    "    pull    a prompt process prefills; then a decoder process pulls the KV cache's blocks\n"
    "            (llm_pull_kv_blocks) and decodes\n"
    "    push    the prompt process pushes each layer's blocks as soon as the layer is computed\n"
    "            (llm_push_kv_blocks); the decoder process decodes\n"
    "\n"
    "pull and push run over shared memory and over TCP.  Both sides keep the cache in blocks of "
    "16\n"
    "tokens that lie in different places, so only a right transfer gives right tokens.  At the "
    "end\n"
    "the tokens and the bytes of the KV caches must be the same each time: then the last line "
    "begins\n"
    "'demo: ok' and the exit status is 0; else it begins 'demo: FAILED' and the status is 1.\n"
    "\n"
    "    --transport shm|tcp  only this transport\n"
    "    --prompt TEXT        the text to begin with, 1 to 448 bytes\n"
    "    --tokens N           how many tokens (bytes) to generate, default 240; at most 512 with "
    "the\n"
    "                         prompt\n"
    "    --seed N             which of the possible texts, default 1; 0: always the likeliest "
    "byte\n"
    "    --repeat N           transfers to take the median speed of, default 20\n"
    "    --timeout SECONDS    limit for each way, default 30\n"
    "    --json               one JSON object on standard output, for programs; the verdict goes "
    "to\n"
    "                         standard error\n"
    "\n"
    "The columns of the table: 'moved' is the size of one transfer, 'GB/s' its median speed, "
    "'first\n"
    "token' the time from the request until the process that decodes has both the first token and\n"
    "the KV cache that it goes on from.\n";

static const char help_prompt[] =
    "The prompt side of the demo: waits for a decoder, prefills, and hands the KV cache over.\n"
    "\n"
    "usage: llm-datadist demo prompt --listen HOST:PORT [OPTION...]\n"
    "\n"
    "    --listen HOST:PORT   where to wait for the decoder; this machine's address, and port 0 "
    "for\n"
    "                         any free one; HOST is an IPv4 address, an [IPv6] one, or a name\n"
    "    --transport shm|tcp  allow only this transport\n"
    "    --prompt TEXT        the text to begin with, 1 to 448 bytes\n"
    "    --tokens N           how many tokens (bytes) to generate, default 240\n"
    "    --seed N             which of the possible texts, default 1; 0: always the likeliest "
    "byte\n"
    "    --repeat N           transfers to take the median speed of, default 20\n"
    "    --timeout SECONDS    how long the decoder may be silent, default 30; the wait for it to "
    "come\n"
    "                         has no limit\n"
    "\n"
    "On another terminal, or on another machine that reaches HOST:\n"
    "\n"
    "    llm-datadist demo decoder --connect HOST:PORT\n"
    "\n"
    "The two talk over this port about the request: which blocks, how many tokens.  The KV cache\n"
    "itself goes over llm-datadist, which listens at another port of the same address that the "
    "system\n"
    "chooses; a firewall between them must let both through.  Nothing is encrypted.\n"
    "\n"
    "When the decoder has its tokens, the prompt side generates them as well and compares.\n";

static const char help_decoder[] =
    "The decoder side of the demo: gets a KV cache from a prompt side and goes on from it.\n"
    "\n"
    "usage: llm-datadist demo decoder --connect HOST:PORT [OPTION...]\n"
    "\n"
    "    --connect HOST:PORT  where the prompt side waits; start it first:\n"
    "                         llm-datadist demo prompt --listen HOST:PORT\n"
    "    --way pull|push      pull the blocks after the prefill (default), or let the prompt side "
    "push\n"
    "                         each layer's blocks as soon as that layer is computed\n"
    "    --transport shm|tcp  allow only this transport; without it the best that both sides can "
    "use\n"
    "    --timeout SECONDS    how long the prompt side may be silent, default 30\n"
    "\n"
    "The last line begins 'demo: ok' and the exit status is 0 if the prompt side found the same\n"
    "tokens and the same bytes in the KV cache.\n";

static const char help_alone[] =
    "The demo without a transfer: one process prefills and decodes.\n"
    "\n"
    "usage: llm-datadist demo alone [OPTION...]\n"
    "\n"
    "    --prompt TEXT        the text to begin with, 1 to 448 bytes\n"
    "    --tokens N           how many tokens (bytes) to generate, default 240\n"
    "    --seed N             which of the possible texts, default 1; 0: always the likeliest "
    "byte\n";

void
demo_print_help(demo_part part)
{
    const char *help = part == DEMO_PART_PROMPT    ? help_prompt
                       : part == DEMO_PART_DECODER ? help_decoder
                       : part == DEMO_PART_ALONE   ? help_alone
                                                   : help_all;
    fputs(help, stdout);
}

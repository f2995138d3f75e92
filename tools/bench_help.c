// llm-datadist bench --help.
#include "bench.h"

void
bench_print_help(FILE *out)
{
    fputs(
        "Measures how fast KV caches move between two processes of this machine, and how fast the\n"
        "machine could at all.\n"
        "\n"
        "usage: llm-datadist bench [OPTION...]\n"
        "\n"
        "    --set short|long   which tables: short (default) takes about three minutes, long has\n"
        "                       more sizes, more connections and up to 4,096 links\n"
        "    --only NAME        only this table, or those that a pattern names ('block-*'); may "
        "be\n"
        "                       repeated\n"
        "    --list             the names of the tables, and what each is about\n"
        "    --rounds N         how often everything is measured, 1 to 101, default 11\n"
        "    --bytes SIZE       how much one transfer moves, such as 256M, which is the default;\n"
        "                       some tables have a size of their own\n"
        "    --json             one JSON object on standard output, with every value\n"
        "    --svg FILE         draw the speeds into a file\n"
        "\n"
        "What is compared.  One process owns a cache, another pulls blocks of it (or the owner\n"
        "pushes them) through the C API, over every transport.  The same blocks also move in ways\n"
        "that know nothing of this library, the yardsticks:\n"
        "\n"
        "    memcpy             a loop of memcpy in one thread of one process\n"
        "    streaming copy     the same with stores that go past the caches: as fast as memory "
        "is\n"
        "    process_vm_readv   the system call, with 1,024 blocks a call\n"
        "    raw tcp xN         N plain TCP connections (cubic) with a thread each at both ends\n"
        "\n"
        "Blocks are scattered on both sides.  Within a table everything is measured once a round,\n"
        "in turns, so that what disturbs the machine disturbs all alike: ratios are to be trusted\n"
        "more than numbers.  A line shows the median, the least and the most of the rounds, and "
        "the\n"
        "median ratio to yardsticks: '0.98 streaming copy' is 2 % slower than that one.  GB/s "
        "count\n"
        "each byte once.  After timing, every way moves the data once more into memory that held\n"
        "something else, and every block is checked.\n"
        "\n"
        "Exit status: 0; 1 if data was wrong or something failed; 2 for a wrong command line.\n"
        "\n"
        "    llm-datadist bench --only block-64k\n"
        "    llm-datadist bench --set long --json --svg speed.svg >speed.json\n",
        out);
}

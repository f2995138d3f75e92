// What the fuzz targets share: the input as numbers, and a loop without a thread.
#ifndef LLM_FUZZ_H
#define LLM_FUZZ_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/loop.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #condition);                  \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

struct input {
    const uint8_t *data;
    size_t size;
};

// Little-endian, of up to 8 bytes; bytes too few count as zero.
static inline uint64_t
take_number(struct input *input, size_t num_bytes)
{
    uint64_t number = 0;
    size_t taken = lli_min(num_bytes, input->size);
    if (taken > 0)
        memcpy(&number, input->data, taken);
    input->data += taken;
    input->size -= taken;
    return number;
}

// What the loop's thread would do, but for waiting.
static inline void
turn_by_hand(struct lli_loop *loop, struct lli_source *const *sources, size_t num_sources)
{
    for (size_t i = 0; i < num_sources; i++) {
        if (sources[i]->added)
            sources[i]->ready(sources[i], sources[i]->events & (EPOLLIN | EPOLLOUT));
    }
    while (!lli_list_empty(&loop->tasks)) {
        struct lli_task *task = LLI_LIST_ENTRY(loop->tasks.next, struct lli_task, node);
        lli_list_remove(&task->node);
        task->run(task);
    }
}

static inline void
free_dead_by_hand(struct lli_loop *loop)
{
    LLI_LIST_FOR(node, &loop->dead) {
        struct lli_source *source = LLI_LIST_ENTRY(node, struct lli_source, dead);
        lli_list_remove(node);
        source->free(source);
    }
}

#endif

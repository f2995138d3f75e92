// What every room uses: attributes, checked arithmetic, an intrusive list.
#ifndef LLI_BASE_H
#define LLI_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "llm_datadist/llm_datadist_c.h"

#define LLI_PRINTF(fmt_index, args_index) __attribute__((format(printf, fmt_index, args_index)))
#define LLI_MUST_CHECK __attribute__((warn_unused_result))
#define LLI_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define LLI_CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

// Returns on failure.  Only for functions that hold nothing yet.
#define LLI_TRY(call)                                                                              \
    do {                                                                                           \
        llm_status lli_try_ = (call);                                                              \
        if (lli_try_ != LLM_SUCCESS)                                                               \
            return lli_try_;                                                                       \
    } while (0)

static inline bool
lli_mul_overflow(uint64_t a, uint64_t b, uint64_t *ret)
{
    return __builtin_mul_overflow(a, b, ret);
}

static inline bool
lli_add_overflow(uint64_t a, uint64_t b, uint64_t *ret)
{
    return __builtin_add_overflow(a, b, ret);
}

static inline uint64_t
lli_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t
lli_max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

// Rounds up to a power of two.  The caller knows that it fits.
static inline uint64_t
lli_round_up(uint64_t value, uint64_t align)
{
    return (value + align - 1) & ~(align - 1);
}

// A doubly linked ring; an empty list points to itself.
struct lli_list {
    struct lli_list *next;
    struct lli_list *prev;
};

static inline void
lli_list_init(struct lli_list *list)
{
    list->next = list->prev = list;
}

static inline bool
lli_list_empty(const struct lli_list *list)
{
    return list->next == list;
}

static inline void
lli_list_append(struct lli_list *list, struct lli_list *node)
{
    node->prev = list->prev;
    node->next = list;
    list->prev->next = node;
    list->prev = node;
}

// Leaves the node pointing to itself, so that removing it twice is harmless.
static inline void
lli_list_remove(struct lli_list *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    node->next = node->prev = node;
}

#define LLI_LIST_ENTRY(node, type, member) LLI_CONTAINER_OF(node, type, member)

// Walks a list; the current node may be removed.
#define LLI_LIST_FOR(node, list)                                                                   \
    for (struct lli_list *node = (list)->next, *node##_next = node->next; node != (list);          \
         node = node##_next, node##_next = node->next)

#endif

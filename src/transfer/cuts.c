#include "transfer/cuts.h"

#include "base/mem.h"

enum { CUTS_MAX = 256 };

struct cut {
    struct lli_list node;
    uint64_t incarnation;
    uint64_t transfer_id;
    uint64_t generation;
    uint64_t bytes_arrived;
};

static void
forget(struct cut *cut)
{
    lli_list_remove(&cut->node);
    lli_free(cut);
}

void
lli_cuts_add(struct lli_node *node, uint64_t incarnation, uint64_t transfer_id, uint64_t generation,
             uint64_t bytes_arrived)
{
    size_t count = 0;
    LLI_LIST_FOR(item, &node->cuts)
        count++;
    if (count >= CUTS_MAX)
        forget(LLI_LIST_ENTRY(node->cuts.next, struct cut, node));
    struct cut *cut = lli_malloc(sizeof(*cut));
    // Without it the push begins anew.
    if (cut == NULL)
        return;
    *cut = (struct cut){
        .incarnation = incarnation,
        .transfer_id = transfer_id,
        .generation = generation,
        .bytes_arrived = bytes_arrived,
    };
    lli_list_append(&node->cuts, &cut->node);
}

uint64_t
lli_cuts_take(struct lli_node *node, uint64_t incarnation, uint64_t transfer_id,
              uint64_t generation)
{
    LLI_LIST_FOR(item, &node->cuts) {
        struct cut *cut = LLI_LIST_ENTRY(item, struct cut, node);
        if (cut->incarnation != incarnation || cut->transfer_id != transfer_id)
            continue;
        uint64_t bytes_arrived = cut->generation == generation ? cut->bytes_arrived : 0;
        forget(cut);
        return bytes_arrived;
    }
    return 0;
}

void
lli_cuts_forget_all(struct lli_node *node)
{
    LLI_LIST_FOR(item, &node->cuts)
        forget(LLI_LIST_ENTRY(item, struct cut, node));
}

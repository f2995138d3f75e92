// Memory of caches that somebody still looks at: it stays where it is, with its bytes, beyond the
// cache and beyond the instance.
#ifndef LLI_HOLDS_H
#define LLI_HOLDS_H

#include "cache/registry.h"

// As llm_hold_memory and llm_release_memory.
llm_status lli_holds_take(struct lli_registry *registry, int64_t id, llm_memory_hold **ret_hold);
void lli_holds_release(llm_memory_hold *hold);

// ---- for the registry ----

// Before it closes: the holds of its caches keep nothing but the mappings from now on.
void lli_holds_detach_all(struct lli_registry *registry);
// In a forked child: the lock may have been held by a thread that isn't here.
void lli_holds_in_child(void);

#endif

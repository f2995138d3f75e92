// Leases on slots of a cache: until when may peers read them, and does anybody still?
//
// A lease *lives*; then it is *ending*: nobody new gets in, those who read finish, or lose their time;
// then it has *ended*.  The owner's table, of which peers see the copy in the segment (names.h).
#ifndef LLI_LEASES_H
#define LLI_LEASES_H

#include "cache/names.h"
#include "cache/registry.h"

// As llm_lease_open and so on.
llm_status lli_leases_open(struct lli_registry *registry, const llm_lease_desc *desc,
                           uint64_t *ret_lease);
llm_status lli_leases_renew(struct lli_registry *registry, uint64_t lease, uint32_t duration_ms);
llm_status lli_leases_wait(struct lli_registry *registry, uint64_t lease, uint64_t deadline_ns);
llm_status lli_leases_close(struct lli_registry *registry, uint64_t lease);

// For peers that are served here.  Enters a lease that lives and holds all of these slots of the
// cache; NULL otherwise.  It doesn't end before lli_leases_leave.
struct lli_lease;
struct lli_lease *lli_leases_enter(struct lli_registry *registry, uint64_t lease,
                                   const struct lli_cache *cache, uint64_t first_slot,
                                   uint64_t num_slots);
void lli_leases_leave(struct lli_registry *registry, struct lli_lease *lease);
// Entered: has it been waiting for us for longer than its patience?
bool lli_leases_is_overdue(const struct lli_lease *lease);
// Does it live, on that cache?
bool lli_leases_live(struct lli_registry *registry, uint64_t lease, const struct lli_cache *cache);
// A pull under it has arrived and releases it.  An unknown one is fine.
void lli_leases_release(struct lli_registry *registry, uint64_t lease);

// ---- for the files of this room, with the lock held ----

void lli_leases_end_all_locked(struct lli_registry *registry, struct lli_cache *cache);
void lli_leases_collect_locked(struct lli_registry *registry, uint64_t now_ns);
void lli_leases_forget_all_locked(struct lli_registry *registry);

#endif

// How the players judge what a call returns, and how long it takes.
#include "play.h"

const struct sim_api *
play_api(void)
{
    return sim_current_process()->module->api;
}

bool
play_is_any(llm_status status, const llm_status *allowed, size_t num_allowed)
{
    for (size_t i = 0; i < num_allowed; i++) {
        if (allowed[i] == status)
            return true;
    }
    return false;
}

struct watch
play_watch_begin(void)
{
    return (struct watch){sim.now_ns, sim_process_hindered_ns(sim_current_process())};
}

void
play_watch_end(struct watch watch, const char *call, uint64_t bound_ns)
{
    uint64_t hindered_ns = sim_process_hindered_ns(sim_current_process()) - watch.hindered_ns;
    uint64_t took_ns = sim.now_ns - watch.start_ns;
    if (took_ns > bound_ns + hindered_ns)
        sim_fail("%s: %s took %llu ms, %llu of them hindered; its bound is %llu ms",
                 sim_current_process()->name, call, (unsigned long long)(took_ns / SIM_MS),
                 (unsigned long long)(hindered_ns / SIM_MS),
                 (unsigned long long)(bound_ns / SIM_MS));
}

uint64_t
play_tick_ns(const struct node *node)
{
    uint64_t tick_ms = node->liveness_ms / 5;
    return (tick_ms < 10 ? 10 : tick_ms > 100 ? 100 : tick_ms) * SIM_MS;
}

// How long the death of a peer may go unnoticed.
uint64_t
play_notice_ns(const struct node *node, const struct node *peer)
{
    uint64_t liveness_ms =
        node->liveness_ms > peer->liveness_ms ? node->liveness_ms : peer->liveness_ms;
    return liveness_ms * SIM_MS + 4 * play_tick_ns(node) + 100 * SIM_MS;
}

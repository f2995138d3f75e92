#include "link/paths.h"

#include "base/os.h"

enum {
    // However short the liveness time is: a thread of a busy machine may have to wait so long.
    SILENT_MS_MIN = 500,
    // A peer that reads slowly isn't dead: it has so many times as long to take a byte.
    PATIENCE_WITH_SLOW = 10,
    // What TCP itself may need to give a connection up whose bytes nobody acknowledges.
    TCP_LIMIT_MS_MIN = 10000,
};

void
lli_paths_begin(struct lli_link *link)
{
    const struct lli_options *options = link->node->options;
    unsigned limit_ms = lli_max(TCP_LIMIT_MS_MIN, lli_max(options->dead_ms, link->liveness_ms));
    if (link->control != NULL)
        lli_tcp_limit(link->control->source.fd, limit_ms);
    for (size_t i = 0; i + 1 < options->num_devices; i++) {
        if (link->devices[i] != NULL)
            lli_tcp_limit(link->devices[i]->source.fd, limit_ms);
    }
    for (size_t i = 0; i < link->stream.num_conns; i++)
        lli_tcp_limit(link->stream.conns[i]->source.fd, limit_ms);
}

static const char *
watch(struct lli_link *link)
{
    uint64_t silent_ticks = lli_max(link->liveness_ms, SILENT_MS_MIN) / link->node->tick_ms + 1;
    uint64_t bytes = link->control != NULL ? link->control->bytes_in : 0;
    bool peer_speaks = bytes != link->control_bytes_heard;
    link->control_bytes_heard = bytes;
    return lli_stream_watch(&link->stream, peer_speaks, silent_ticks,
                            silent_ticks * PATIENCE_WITH_SLOW);
}

// Watches every link, then breaks those that need it, one by one.
void
lli_paths_tick(struct lli_node *node)
{
    struct lli_link *dead;
    pthread_mutex_lock(&node->links_lock);
    LLI_LIST_FOR(item, &node->links) {
        struct lli_link *link = LLI_LIST_ENTRY(item, struct lli_link, in_table);
        if (!link->broken && link->stream.num_conns > 0)
            link->dead_path = watch(link);
    }
    do {
        dead = NULL;
        LLI_LIST_FOR(item, &node->links) {
            struct lli_link *link = LLI_LIST_ENTRY(item, struct lli_link, in_table);
            if (dead == NULL && !link->broken && link->dead_path != NULL)
                dead = link;
        }
        if (dead == NULL)
            break;
        lli_link_hold(dead);
        pthread_mutex_unlock(&node->links_lock);
        lli_link_break(dead, LLM_WAIT_PROC_TIMEOUT, dead->dead_path);
        lli_link_put(dead);
        pthread_mutex_lock(&node->links_lock);
    } while (true);
    pthread_mutex_unlock(&node->links_lock);
}

void
lli_paths_suspect(struct lli_link *link)
{
    lli_link_ask_for_life(link);
    lli_stream_ask_for_life(&link->stream);
}

#include "link/events.h"

#include <stdio.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/os.h"

enum { EVENTS_MAX = 1024 };

struct event {
    struct lli_list node;
    llm_link_info info;
};

void
lli_link_describe_locked(const struct lli_link *link, llm_link_info *ret_info)
{
    *ret_info = (llm_link_info){
        .struct_size = ret_info->struct_size,
        .cluster_id = link->peer.cluster_id,
        .state = link->broken    ? LLM_LINK_BROKEN
                 : link->suspect ? LLM_LINK_SUSPECT
                                 : LLM_LINK_READY,
        .num_devices = (uint32_t)link->node->options->num_devices,
    };
    snprintf(ret_info->transport, sizeof(ret_info->transport), "%s",
             lli_transport_name(link->transport));
    snprintf(ret_info->reason, sizeof(ret_info->reason), "%s",
             link->broken || link->suspect ? link->broken_reason : link->reason);
}

bool
lli_events_prepare(struct lli_link *link, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct event *event = lli_calloc(1, sizeof(*event));
        if (event == NULL)
            return false;
        lli_list_append(&link->events, &event->node);
    }
    return true;
}

void
lli_events_unprepare(struct lli_link *link)
{
    LLI_LIST_FOR(node, &link->events) {
        lli_list_remove(node);
        lli_free(LLI_LIST_ENTRY(node, struct event, node));
    }
}

static void
drop_oldest_locked(struct lli_node *node)
{
    struct lli_list *oldest = node->events.next;
    lli_list_remove(oldest);
    node->num_events--;
    lli_free(LLI_LIST_ENTRY(oldest, struct event, node));
}

void
lli_events_add_locked(struct lli_link *link, llm_link_state state)
{
    struct lli_node *node = link->node;
    if (lli_list_empty(&link->events))
        return;
    struct event *event = LLI_LIST_ENTRY(link->events.next, struct event, node);
    lli_list_remove(&event->node);
    lli_link_describe_locked(link, &event->info);
    event->info.state = state;
    if (state == LLM_LINK_REMOVED)
        snprintf(event->info.reason, sizeof(event->info.reason), "it was unlinked, or replaced");
    if (node->num_events == EVENTS_MAX)
        drop_oldest_locked(node);
    lli_list_append(&node->events, &event->node);
    node->num_events++;
    lli_event_signal(node->event_fd);
}

bool
lli_events_take(struct lli_node *node, llm_link_info *ret_info)
{
    pthread_mutex_lock(&node->links_lock);
    bool found = node->num_events > 0;
    if (found) {
        *ret_info = LLI_LIST_ENTRY(node->events.next, struct event, node)->info;
        drop_oldest_locked(node);
    }
    pthread_mutex_unlock(&node->links_lock);
    return found;
}

void
lli_events_forget_all(struct lli_node *node)
{
    while (node->num_events > 0)
        drop_oldest_locked(node);
}

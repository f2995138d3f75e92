// Links, and what is known about the peers.
#include <stdio.h>

#include "play.h"

struct addresses {
    char local_text[16], remote_text[16];
    llm_ip_info local, remote;
    llm_cluster_info cluster;
};

void
play_host_text(int host, char text[16])
{
    uint32_t ip = ntohl(sim_host_address(host).s_addr);
    snprintf(text, 16, "%u.%u.%u.%u", ip >> 24 & 255, ip >> 16 & 255, ip >> 8 & 255, ip & 255);
}

static void
fill_addresses(const struct node *node, const struct node *peer, struct addresses *ret)
{
    play_host_text(node->seat->host, ret->local_text);
    play_host_text(peer->seat->host, ret->remote_text);
    ret->local = (llm_ip_info){ret->local_text, 0};
    ret->remote = (llm_ip_info){ret->remote_text, peer->port};
    ret->cluster = (llm_cluster_info){.struct_size = sizeof(ret->cluster),
                                      .remote_cluster_id = peer->cluster_id,
                                      .local_ip_infos = &ret->local,
                                      .num_local_ip_infos = 1,
                                      .remote_ip_infos = &ret->remote,
                                      .num_remote_ip_infos = 1};
}

llm_status
play_link_with(struct node *node, struct node *peer, int32_t timeout_ms)
{
    struct addresses addresses;
    llm_status ret = LLM_FAILED;
    size_t num_rets = 0;
    struct pair *pair = scenario_pair(node, peer);
    struct watch watch = play_watch_begin();
    fill_addresses(node, peer, &addresses);
    pair->links_made++;
    llm_status status =
        play_api()->llm_link_clusters(node->dd, &addresses.cluster, 1, &ret, &num_rets, timeout_ms);
    pair->links_made++;
    play_watch_end(watch, "llm_link_clusters", (uint64_t)timeout_ms * SIM_MS + 200 * SIM_MS);
    sim_trace("%s: linking with cluster %llu: %s", sim_current_process()->name,
              (unsigned long long)peer->cluster_id, play_api()->llm_status_name(status));
    if (status == LLM_SUCCESS) {
        pair->link_ns = watch.start_ns;
        pair->linked = true;
        scenario.links++;
    }
    if (scenario.calm)
        EXPECT("llm_link_clusters", status, LLM_SUCCESS, LLM_ALREADY_LINK, LLM_PROCESSING_LINK);
    EXPECT("llm_link_clusters", status, LLM_SUCCESS, LLM_ALREADY_LINK, LLM_PROCESSING_LINK,
           LLM_LINK_FAILED, LLM_WAIT_PROC_TIMEOUT, LLM_TIMEOUT, LLM_FAILED, LLM_OUT_OF_MEMORY);
    return status;
}

void
play_unlink_from(struct node *node, struct node *peer, bool force)
{
    struct addresses addresses;
    llm_status ret = LLM_FAILED;
    size_t num_rets = 0;
    int32_t timeout_ms = (int32_t)sim_between(50, 1000);
    struct pair *pair = scenario_pair(node, peer);
    struct watch watch = play_watch_begin();
    fill_addresses(node, peer, &addresses);
    // A listener knows the link by the address that its peer came from, whatever the port.
    pair->linked = false;
    llm_status status = play_api()->llm_unlink_clusters(node->dd, &addresses.cluster, 1, &ret,
                                                        &num_rets, timeout_ms, force);
    play_watch_end(watch, "llm_unlink_clusters", (uint64_t)timeout_ms * SIM_MS + 200 * SIM_MS);
    sim_trace("%s: unlinking cluster %llu%s: %s", sim_current_process()->name,
              (unsigned long long)peer->cluster_id, force ? " by force" : "",
              play_api()->llm_status_name(status));
    EXPECT("llm_unlink_clusters", status, LLM_SUCCESS, LLM_UNLINK_FAILED, LLM_PROCESSING_LINK,
           LLM_NOT_YET_LINK, LLM_LINK_BUSY, LLM_WAIT_PROC_TIMEOUT, LLM_TIMEOUT,
           LLM_NOTIFY_PROMPT_UNLINK_FAILED, LLM_FAILED, LLM_OUT_OF_MEMORY);
}

uint32_t
play_link_state(const struct node *node, const struct node *peer)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    llm_status status = play_api()->llm_get_link_info(node->dd, peer->cluster_id, &info);
    EXPECT("llm_get_link_info", status, LLM_SUCCESS, LLM_NOT_YET_LINK);
    return status == LLM_SUCCESS ? info.state : 0;
}

bool
play_is_ready(const struct node *node, const struct node *peer)
{
    return play_link_state(node, peer) == LLM_LINK_READY;
}

static void
must_have_noticed(const struct node *node, const struct node *peer, uint64_t since_ns,
                  uint64_t hindered_then, const char *what)
{
    uint64_t hindered_ns = sim_process_hindered_ns(sim_current_process()) - hindered_then;
    if (sim.now_ns - since_ns > play_notice_ns(node, peer) + hindered_ns)
        sim_fail("%s takes the link to cluster %llu for good %llu ms after %s",
                 sim_current_process()->name, (unsigned long long)peer->cluster_id,
                 (unsigned long long)((sim.now_ns - since_ns) / SIM_MS), what);
}

// Which is known if there is one decoder alone, and nothing else keeps the link's bytes.
static struct sim_deafness
dead_path(const struct node *node, const struct node *peer)
{
    const struct fault_set *faults = &scenario.faults;
    const struct node *decoder = node->is_prompt ? peer : node;
    const struct node *prompt = node->is_prompt ? node : peer;
    if (decoder->seat->num_nodes > 1 || decoder->seat->process == NULL ||
        prompt->seat->process == NULL || faults->partitions || faults->losses || faults->power)
        return (struct sim_deafness){SIM_NEVER, 0};
    return sim_net_deafness(decoder->seat->process, prompt->seat->process, prompt->port);
}

// However short the liveness time is, a connection of its own may be silent for half a second.
static void
must_have_noticed_path(const struct node *node, const struct node *peer,
                       const struct sim_deafness *then)
{
    struct sim_deafness now = dead_path(node, peer);
    uint64_t bound_ns =
        play_notice_ns(node, peer) + 4 * play_tick_ns(peer) + 500 * SIM_MS + now.hindered_ns;
    if (now.since_ns == then->since_ns && sim.now_ns - now.since_ns > bound_ns)
        sim_fail("%s takes the link to cluster %llu for good %llu ms after one way of a data "
                 "connection died",
                 sim_current_process()->name, (unsigned long long)peer->cluster_id,
                 (unsigned long long)((sim.now_ns - now.since_ns) / SIM_MS));
}

// Looks at the link to a peer, and what it must know about it.
void
play_probe(const struct node *node, const struct node *peer)
{
    struct sim_deafness deafness = dead_path(node, peer);
    const struct seat *there = peer->seat;
    int from = there->host;
    int to = node->seat->host;
    bool is_dead = there->process == NULL || !there->process->alive;
    bool is_blocked = sim_net.blocked[from][to];
    uint64_t died_at = there->died_at;
    uint64_t blocked_since = sim_net.blocked_since[from][to];
    uint32_t state = play_link_state(node, peer);
    bool ready = state == LLM_LINK_READY;
    model_link_seen(node, peer->cluster_id, state, scenario_pair(node, peer)->link_ns);
    if (ready && is_dead && there->died_at == died_at && !there->process->alive)
        must_have_noticed(node, peer, died_at, there->hindered_then[node->seat->index],
                          "its process died");
    if (ready && is_blocked && sim_net.blocked[from][to] &&
        sim_net.blocked_since[from][to] == blocked_since)
        must_have_noticed(node, peer, blocked_since,
                          scenario.partition_hindered[from][to][node->seat->index],
                          "it fell silent");
    if (ready && deafness.since_ns != SIM_NEVER)
        must_have_noticed_path(node, peer, &deafness);
}

struct node *
play_some_peer(const struct node *node)
{
    struct node *chosen = NULL;
    uint64_t count = 0;
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        struct node *peer = &scenario.nodes[i];
        if (peer->is_prompt != node->is_prompt && sim_below(++count) == 0)
            chosen = peer;
    }
    return chosen;
}

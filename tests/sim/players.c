// What the processes do: random calls of the library, each judged by what it returns, how long it takes,
// and what it leaves in memory.
#include <stdio.h>
#include <string.h>

#include "notes.h"
#include "play.h"

static struct worker workers[NODES_MAX][WORKERS_PER_NODE];

// ---- notifications ----

static void
poll_notifications(struct node *node)
{
    uint8_t bytes[LLM_NOTIFICATION_BYTES_MAX];
    size_t num_bytes;
    uint64_t from;
    llm_status status;
    while ((status = play_api()->llm_poll_notification(node->dd, &from, bytes, sizeof(bytes),
                                                       &num_bytes)) == LLM_SUCCESS)
        notes_read(bytes, num_bytes, node, from);
    EXPECT("llm_poll_notification", status, LLM_NO_NOTIFICATION);
}

// ---- workers ----

static void
change_caches(struct node *node)
{
    bool target = !play_can_push(node) || (play_can_pull(node) && sim_chance(2));
    if (play_count_caches(node, target) >= 4 || (scenario.faults.churn && sim_chance(2))) {
        struct cache *cache = scenario.faults.churn ? play_some_cache(node, target, false) : NULL;
        if (cache != NULL)
            play_free_cache(node, cache);
        return;
    }
    (void)play_make_cache(node, target);
}

static void
act(struct worker *worker)
{
    struct node *node = worker->node;
    struct node *peer = play_some_peer(node);
    switch (sim_below(17)) {
    case 0:
    case 1:
        if (!node->is_prompt && !scenario_pair(node, peer)->linked && peer->up)
            (void)play_link_with(node, peer,
                                 scenario.calm ? 20000 : (int32_t)sim_between(20, 1500));
        break;
    case 2:
        if (!node->is_prompt && !scenario.calm)
            (void)play_link_with(node, peer, (int32_t)sim_between(20, 1500));
        break;
    case 3:
        if (scenario.faults.unlinks)
            play_unlink_from(node, peer, sim_chance(2));
        break;
    case 4:
        change_caches(node);
        break;
    case 5:
        poll_notifications(node);
        break;
    case 6:
    case 7:
        play_probe(node, peer);
        break;
    case 8:
        if (play_can_push(node) && !scenario.calm)
            play_lend(node, worker);
        break;
    default:
        play_some_transfer(node);
    }
}

static void *
worker_main(void *arg)
{
    struct worker *worker = arg;
    while (scenario.phase == CHAOS) {
        act(worker);
        sim_sleep(sim_below(2 * scenario.pause_ns));
    }
    return NULL;
}

// ---- the final round: nothing goes wrong any more, so everything works ----

static void
probe_all(const struct node *node)
{
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        if (scenario.nodes[i].is_prompt != node->is_prompt)
            play_probe(node, &scenario.nodes[i]);
    }
}

static void
final_transfer(struct node *node, struct node *peer, bool push)
{
    struct cache *here = play_make_cache(node, !push);
    struct cache *there = NULL;
    llm_status status = LLM_TRANSFER_PENDING;
    // Its slots may be waiting for the end of a push that took another cache's name for this one's.
    for (int i = 0; i < 10000 && status == LLM_TRANSFER_PENDING; i++) {
        there = play_some_cache(peer, push, false);
        if (here != NULL && there != NULL)
            status = play_transfer(node, peer, push, here, there);
        sim_sleep(SIM_MS);
        probe_all(node);
    }
    // It may have been cancelled by who started it, or run into a limit of a millisecond.
    if (status != LLM_SUCCESS && status != LLM_TRANSFER_CANCELLED &&
        status != LLM_WAIT_PROC_TIMEOUT && status != LLM_TIMEOUT)
        sim_fail("%s: a %s over a new link ended with %s, although nothing goes wrong any more",
                 sim_current_process()->name, push ? "push" : "pull",
                 play_api()->llm_status_name(status));
}

// A transfer that the peer has begun may keep the old link for a while.
static llm_status
relink(struct node *node, struct node *peer)
{
    llm_status status = LLM_ALREADY_LINK;
    uint64_t end_ns = sim.now_ns + 10000 * SIM_MS;
    while (status == LLM_ALREADY_LINK && sim.now_ns < end_ns) {
        play_unlink_from(node, peer, true);
        status = play_link_with(node, peer, 3000);
        sim_sleep(10 * SIM_MS);
    }
    return status;
}

static void
settle_decoder(struct node *node)
{
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        struct node *peer = &scenario.nodes[i];
        llm_status status = LLM_FAILED;
        if (!peer->is_prompt)
            continue;
        while (!peer->settling)
            sim_sleep(SIM_MS);
        if (!scenario.calm) {
            status = relink(node, peer);
            if (status != LLM_SUCCESS)
                sim_fail(
                    "%s can't link with cluster %llu, although nothing goes wrong any more: %s",
                    sim_current_process()->name, (unsigned long long)peer->cluster_id,
                    play_api()->llm_status_name(status));
        } else if (!scenario_pair(node, peer)->linked) {
            (void)play_link_with(node, peer, 3000);
        }
        if (play_can_pull(node))
            final_transfer(node, peer, false);
        scenario_pair(node, peer)->final_link = true;
    }
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        while (scenario.nodes[i].is_prompt && !scenario_pair(node, &scenario.nodes[i])->final_push)
            sim_sleep(SIM_MS);
    }
}

static void
settle_prompt(struct node *node)
{
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        struct node *peer = &scenario.nodes[i];
        if (peer->is_prompt)
            continue;
        while (!scenario_pair(node, peer)->final_link)
            sim_sleep(SIM_MS);
        final_transfer(node, peer, true);
        scenario_pair(node, peer)->final_push = true;
    }
}

static void
settle(struct node *node)
{
    // What peers take from here, or put there, for sure.
    while (scenario.phase == CHAOS)
        sim_sleep(SIM_MS);
    if (play_can_push(node))
        (void)play_make_cache(node, false);
    if (play_can_pull(node))
        (void)play_make_cache(node, true);
    node->settling = true;
    if (node->is_prompt)
        settle_prompt(node);
    else
        settle_decoder(node);
    scenario.num_settled++;
    while (scenario.phase != ENDING)
        sim_sleep(SIM_MS);
    // What is on its way arrives.
    sim_sleep(300 * SIM_MS);
    poll_notifications(node);
    notes_check(node);
    for (int i = 0; i < 2; i++) {
        probe_all(node);
        sim_sleep(30 * SIM_MS);
    }
}

// ---- the life of an instance ----

// Nobody is suspected, or taken for dead, without a cause: it was hindered, or we were, or the network.
static void
judge_silence(const struct node *node, const struct node *peer, uint64_t silence_ms)
{
    const struct sim_process *there = peer->seat->process;
    bool same_host = peer->seat->host == node->seat->host;
    uint64_t patience_ns = silence_ms * SIM_MS / 2;
    uint64_t window_ns = 3 * patience_ns;
    if (there == NULL || !there->alive || there->started_at + window_ns > sim.now_ns ||
        !scenario_reads(node) || !scenario_reads(peer) ||
        (!same_host &&
         (scenario.faults.partitions || scenario.faults.losses || scenario.faults.power)))
        return;
    if (sim_process_hindered_lately_ns(there, window_ns) +
            sim_process_hindered_lately_ns(sim_current_process(), window_ns) <
        patience_ns)
        sim_fail("%s has found cluster %llu silent for %llu ms, which is well",
                 sim_current_process()->name, (unsigned long long)peer->cluster_id,
                 (unsigned long long)silence_ms);
}

static void
log_line(void *arg, llm_log_level level, const char *line)
{
    unsigned long long silence_ms, about;
    sim_trace("  %s: %s", sim_current_process()->name, line);
    // Afterwards every call says so, as an error.
    if (level != LLM_LOG_WARN || strstr(line, "silent") == NULL ||
        sscanf(line, "link: the link to cluster %llu is %*[a-z]: the peer has been silent for %llu",
               &about, &silence_ms) != 2)
        return;
    const struct seat *seat = arg;
    // A line doesn't tell which instance of the process speaks.
    if (seat->num_nodes == 1 && scenario_node(about) != NULL)
        judge_silence(seat->nodes[0], scenario_node(about), silence_ms);
}

static bool
initialize(struct node *node)
{
    char listen[32], ip[16], sync[16], liveness[16], dead[16], connections[16];
    size_t count = 0;
    llm_option options[12];
    play_host_text(node->seat->host, ip);
    snprintf(listen, sizeof(listen), "%s:%u", ip, node->port);
    snprintf(sync, sizeof(sync), "%u", node->sync_ms);
    snprintf(liveness, sizeof(liveness), "%u", node->liveness_ms);
    snprintf(dead, sizeof(dead), "%u", node->dead_ms);
    snprintf(connections, sizeof(connections), "%u", (unsigned)sim_between(1, 4));
    options[count++] = (llm_option){LLM_OPTION_DEVICE_ID, "0"};
    options[count++] = (llm_option){LLM_OPTION_SYNC_CACHE_WAIT_TIME, sync};
    options[count++] = (llm_option){LLM_OPTION_LIVENESS_TIME, liveness};
    options[count++] = (llm_option){LLM_OPTION_DEAD_TIME, dead};
    options[count++] = (llm_option){LLM_OPTION_RELINK, node->relinks ? "1" : "0"};
    options[count++] = (llm_option){LLM_OPTION_TRANSPORTS, node->transports};
    options[count++] = (llm_option){LLM_OPTION_TCP_CONNECTIONS, connections};
    options[count++] = (llm_option){LLM_OPTION_LOG_LEVEL, "info"};
    if (node->is_prompt)
        options[count++] = (llm_option){LLM_OPTION_LISTEN_IP_INFO, listen};
    if (node->checksum)
        options[count++] = (llm_option){LLM_OPTION_CHECKSUM, "crc32c"};
    if (scenario.version_2)
        options[count++] = (llm_option){LLM_OPTION_LOCAL_COMM_RES, ""};
    llm_status status = play_api()->llm_initialize(node->dd, options, count);
    if (!scenario.faults.memory)
        EXPECT("llm_initialize", status, LLM_SUCCESS);
    return status == LLM_SUCCESS;
}

static void
open_node(struct node *node)
{
    while (play_api()->llm_create(node->cluster_id,
                                  node->is_prompt ? LLM_ROLE_PROMPT : LLM_ROLE_DECODER,
                                  &node->dd) != LLM_SUCCESS)
        sim_sleep(SIM_MS);
    while (!initialize(node))
        sim_sleep(SIM_MS);
    while (play_can_push(node) && play_make_cache(node, false) == NULL)
        sim_sleep(SIM_MS);
    while (play_can_pull(node) && play_make_cache(node, true) == NULL)
        sim_sleep(SIM_MS);
    node->up = true;
}

static void
close_node(struct node *node)
{
    if (sim_chance(3)) {
        struct node *peer = play_some_peer(node);
        play_unlink_from(node, peer, false);
    }
    struct watch watch = play_watch_begin();
    for (struct cache *cache = model_caches(); cache != NULL; cache = cache->next) {
        if (cache->node == node && cache->process == sim_current_process() && cache->id != 0 &&
            !cache->registered)
            model_cache_ends(cache);
    }
    if (sim_chance(2))
        play_api()->llm_finalize(node->dd);
    play_api()->llm_destroy(node->dd);
    node->dd = NULL;
    play_watch_end(watch, "llm_finalize", 200 * SIM_MS);
}

static void *
node_main(void *arg)
{
    struct node *node = arg;
    open_node(node);
    for (unsigned i = 0; i < WORKERS_PER_NODE; i++) {
        struct worker *worker = &workers[node->index][i];
        *worker = (struct worker){.node = node, .number = i};
        worker->thread =
            sim_coro_id(sim_spawn(sim_current_process(), "worker", worker_main, worker));
    }
    for (unsigned i = 0; i < WORKERS_PER_NODE; i++)
        sim_join(workers[node->index][i].thread);
    settle(node);
    close_node(node);
    return NULL;
}

void *
player_main(void *arg)
{
    struct seat *seat = arg;
    uint64_t threads[NODES_MAX];
    play_api()->llm_set_log_sink(log_line, seat);
    for (size_t i = 0; i < seat->num_nodes; i++) {
        seat->nodes[i]->up = false;
        seat->nodes[i]->settling = false;
        threads[i] =
            sim_coro_id(sim_spawn(sim_current_process(), "node", node_main, seat->nodes[i]));
    }
    for (size_t i = 0; i < seat->num_nodes; i++)
        sim_join(threads[i]);
    play_free_guards();
    seat->finished = true;
    return NULL;
}

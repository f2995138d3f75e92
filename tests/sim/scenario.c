#include "scenario.h"

#include <stdio.h>
#include <string.h>

#include "faults.h"
#include "notes.h"

struct scenario scenario;

struct node *
scenario_node(uint64_t cluster_id)
{
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        if (scenario.nodes[i].cluster_id == cluster_id)
            return &scenario.nodes[i];
    }
    return NULL;
}

struct pair *
scenario_pair(const struct node *a, const struct node *b)
{
    return a->index < b->index ? &scenario.pairs[a->index][b->index]
                               : &scenario.pairs[b->index][a->index];
}

bool
scenario_reads(const struct node *node)
{
    return !scenario.faults.unread || node->seat->index != scenario.non_reader;
}

bool
scenario_is_calm(const struct node *a, const struct node *b)
{
    return scenario.calm || (scenario.only_unread && scenario_reads(a) && scenario_reads(b));
}

// ---- statuses ----

// Could anything have freed the peer's cache, or ours, while the operation ran?
static bool
cache_may_be_gone(const struct op *op)
{
    for (const struct cache *cache = model_caches(); cache != NULL; cache = cache->next) {
        if (cache->cluster_id == op->cluster_id && cache->id == op->remote_id && !cache->ending &&
            cache->end_ns == SIM_NEVER && cache->born_ns < op->start_ns)
            return op->local->ending;
    }
    return true;
}

// Has the name been used by several caches, of one process after the other?
static bool
is_ambiguous(const struct op *op)
{
    unsigned count = 0;
    for (const struct cache *cache = model_caches(); cache != NULL; cache = cache->next)
        count += cache->cluster_id == op->cluster_id && cache->id == op->remote_id;
    return count > 1;
}

void
scenario_judge(const struct op *op, llm_status status)
{
    bool ok = false;
    bool calm = scenario_is_calm(op->node, scenario_node(op->cluster_id));
    scenario.ops++;
    scenario.successes += status == LLM_SUCCESS;
    switch (status) {
    case LLM_SUCCESS:
        ok = true;
        break;
    case LLM_KV_CACHE_NOT_EXIST:
        ok = cache_may_be_gone(op) || is_ambiguous(op);
        break;
    case LLM_TRANSFER_CANCELLED:
        ok = op->cancelled;
        break;
    case LLM_WAIT_PROC_TIMEOUT:
        ok = !calm;
        break;
    case LLM_TIMEOUT:
        ok = !calm && scenario.version_2;
        break;
    case LLM_FAILED:
    case LLM_NOT_YET_LINK:
    case LLM_LINK_BUSY:
        ok = !calm;
        break;
    case LLM_PARAM_INVALID:
        // It may be another cache's by now, which has fewer slots.
        ok = is_ambiguous(op);
        break;
    case LLM_CACHE_STALE:
        // A lease ends by itself.
        ok = op->leased || (op->generation != 0 && (cache_may_be_gone(op) || is_ambiguous(op)));
        break;
    case LLM_CHECKSUM_MISMATCH:
        ok = scenario.faults.flips;
        break;
    case LLM_OUT_OF_MEMORY:
        ok = scenario.faults.memory;
        break;
    default:
        break;
    }
    if (!ok)
        sim_fail("op %llu ended with %s, which it must not", (unsigned long long)op->serial,
                 op->process->module->api->llm_status_name(status));
}

// ---- the cast ----

void
scenario_start_seat(void *arg, uint64_t unused)
{
    struct seat *seat = arg;
    char name[16];
    (void)unused;
    if (scenario.phase != CHAOS || sim_net.powered_off[seat->host] ||
        (seat->process != NULL && seat->process->alive))
        return;
    snprintf(name, sizeof(name), "p%u.%u", seat->index, seat->num_starts++);
    seat->process = sim_process_start(seat->host, name);
    if (seat->process == NULL)
        return;
    seat->process->can_read_others = !scenario.faults.no_reading;
    if (scenario.signals && sim_aside(2) == 0)
        seat->process->signal_one_in = 2 + sim_aside(sim_aside(2) == 0 ? 10 : 300);
    seat->finished = false;
    scenario.restarts += seat->num_starts > 1;
    sim_spawn(seat->process, "main", player_main, seat);
}

static const char *
choose_transports(void)
{
    static const char *const all[] = {"auto", "tcp", "shm,tcp", "auto", "tcp"};
    return all[sim_below(SIM_COUNT(all))];
}

static void
draw_nodes(void)
{
    uint32_t liveness_ms = (uint32_t[]){50, 100, 200, 500}[sim_below(4)];
    uint32_t sync_ms = (uint32_t[]){100, 300, 1000}[sim_below(3)];
    const char *transports = choose_transports();
    for (size_t i = 0; i < scenario.num_nodes; i++) {
        struct node *node = &scenario.nodes[i];
        struct seat *seat =
            &scenario.seats[i < scenario.num_seats ? i : sim_below(scenario.num_seats)];
        *node = (struct node){
            .index = (unsigned)i,
            .cluster_id = 11 * (i + 1),
            .is_prompt = i % 2 == 0,
            .seat = seat,
            .port = (uint16_t)(26000 + i),
            .liveness_ms = sim_chance(4) ? 2 * liveness_ms : liveness_ms,
            .dead_ms = 2 * liveness_ms * (uint32_t)sim_between(1, 3),
            .relinks = sim_chance(3),
            .sync_ms = sync_ms,
            .checksum = scenario.faults.flips || sim_chance(6),
            .transports = sim_chance(4) ? choose_transports() : transports,
        };
        seat->nodes[seat->num_nodes++] = node;
    }
}

static void
draw_faults(void)
{
    struct fault_set *faults = &scenario.faults;
    scenario.calm = sim_chance(6);
    if (scenario.calm)
        return;
    *faults = (struct fault_set){
        .kills = sim_chance(2),
        .power = sim_chance(5),
        .stops = sim_chance(3),
        .stalls = sim_chance(3),
        .slowness = sim_chance(4),
        .partitions = sim_chance(3),
        .resets = sim_chance(4),
        .losses = sim_chance(4),
        .refusals = sim_chance(6),
        .flips = sim_chance(8),
        .memory = sim_chance(6),
        .churn = sim_chance(2),
        .unlinks = sim_chance(3),
        .dead_paths = sim_chance(3),
    };
}

static void
draw_network(void)
{
    sim_net = (struct sim_net){0};
    sim_net.delay_min_ns = sim_between(10, 200) * SIM_US;
    sim_net.delay_max_ns =
        sim_net.delay_min_ns + sim_between(10, sim_chance(4) ? 5000 : 300) * SIM_US;
    sim_net.window_min = (uint64_t[]){200, 2000, 64 << 10}[sim_below(3)];
    sim_net.window_max = sim_net.window_min * sim_between(1, 4);
    if (scenario.faults.losses)
        sim_net.loss_one_in = sim_between(20, 300);
    if (scenario.faults.flips)
        sim_net.flip_one_in = sim_between(20, 1000);
    if (scenario.faults.refusals)
        sim_net.refuse_one_in = sim_between(2, 6);
}

static void
nothing_but(struct fault_set faults)
{
    scenario.calm = false;
    scenario.faults = faults;
    sim_net.loss_one_in = sim_net.flip_one_in = sim_net.refuse_one_in = 0;
}

// From a stream of its own.  Some faults show best where nothing else goes wrong.
static void
draw_aside(void)
{
    scenario.signals = sim_aside(4) == 0;
    switch (sim_aside(32)) {
    case 0:
    case 1:
        nothing_but((struct fault_set){0});
        scenario.signals = scenario.calm = true;
        break;
    case 2:
        nothing_but((struct fault_set){.dead_paths = true});
        // Between hosts, and for as long as it may take to notice.
        scenario.num_hosts = 2;
        for (size_t i = 0; i < scenario.num_seats; i++)
            scenario.seats[i].host = (int)i % 2;
        scenario.chaos_ends_ns = 4000 * SIM_MS;
        scenario.pause_ns = 20 * SIM_MS;
        break;
    case 3: {
        nothing_but((struct fault_set){.churn = sim_aside(2) == 0});
        scenario.only_unread = true;
        // What a connection can't take at once, of caches that are waited for.
        scenario.version_2 = sim_aside(4) > 0;
        scenario.stride = 4096;
        sim_net.window_min = 2000;
        sim_net.window_max = 8000;
        bool tcp_alone = sim_aside(2) == 0;
        for (size_t i = 0; i < scenario.num_nodes && tcp_alone; i++)
            scenario.nodes[i].transports = "tcp";
        scenario.chaos_ends_ns = 3000 * SIM_MS;
        scenario.pause_ns = 20 * SIM_MS;
        break;
    }
    default:
        break;
    }
    scenario.faults.unread = scenario.only_unread || (!scenario.calm && sim_aside(8) == 0);
    scenario.non_reader = sim_aside(scenario.num_seats);
}

static void
draw(void)
{
    memset(&scenario, 0, sizeof(scenario));
    scenario.version_2 = sim_chance(3);
    scenario.num_hosts = (int)sim_between(1, 3);
    scenario.num_seats = sim_between(2, SEATS_MAX);
    scenario.num_nodes = sim_between(scenario.num_seats, scenario.num_seats + 1);
    for (size_t i = 0; i < scenario.num_seats; i++)
        scenario.seats[i] = (struct seat){.index = (unsigned)i,
                                          .host = (int)sim_below((uint64_t)scenario.num_hosts)};
    draw_faults();
    scenario.faults.no_reading = sim_chance(3);
    draw_nodes();
    draw_network();
    scenario.num_tensors = 2 * (uint32_t)sim_between(1, 3);
    scenario.stride = sim_chance(16) ? 4096 : (uint64_t)64 << 2 * sim_below(3);
    scenario.chaos_ends_ns = sim_between(200, 1000) * SIM_MS;
    scenario.pause_ns = sim_between(1, 20) * SIM_MS;
    sim.yield_one_in = (uint64_t[]){1, 2, 4, 16}[sim_below(4)];
    sim.fault_rate = sim_between(2, 40);
    draw_aside();
}

// ---- from chaos to the end ----

static void
begin_to_settle(void *arg, uint64_t unused)
{
    (void)arg;
    (void)unused;
    faults_end();
    scenario.phase = SETTLING;
}

static bool
is_over(void)
{
    if (scenario.phase == SETTLING && scenario.num_settled == scenario.num_nodes) {
        sim_trace("all have settled");
        scenario.phase = ENDING;
    }
    if (scenario.phase != ENDING)
        return false;
    bool over = true;
    for (size_t i = 0; i < scenario.num_seats; i++) {
        struct seat *seat = &scenario.seats[i];
        if (seat->process->alive && seat->finished && sim_coros_count(seat->process) == 0) {
            model_check();
            sim_process_exit(seat->process);
            model_process_died(seat->process);
        }
        over &= !seat->process->alive;
    }
    return over;
}

enum { SIMULATED_SECONDS_MAX = 60 };

static void
every_step(void)
{
    if (sim.steps % 256 == 0 || (sim.tracing && sim.steps % 8 == 0))
        model_check();
    if (sim.now_ns > SIMULATED_SECONDS_MAX * 1000 * SIM_MS)
        sim_fail("it doesn't end: somebody waits for ever");
    if (sim.steps > 4000000)
        sim_fail("it doesn't end: somebody is busy for ever");
}

bool
scenario_run(uint64_t seed, bool tracing, struct scenario_totals *totals)
{
    memset(&sim, 0, sizeof(sim));
    sim.seed = seed;
    sim.tracing = tracing;
    sim.now_ns = SIM_MS;
    sim_seed(seed);
    draw();
    for (size_t i = 0; i < scenario.num_seats; i++)
        scenario_start_seat(&scenario.seats[i], 0);
    sim_at(scenario.chaos_ends_ns, begin_to_settle, NULL, 0);
    faults_begin();
    sim_run(is_over, every_step);
    if (sim.failed && tracing)
        sim_coros_describe(NULL);
    bool ok = !sim.failed;
    totals->ops += scenario.ops;
    totals->successes += scenario.successes;
    totals->links += scenario.links;
    totals->restarts += scenario.restarts;
    totals->notes += scenario.notes;
    totals->faults += faults_count();
    totals->signals += sim.num_signals;
    totals->steps += sim.steps;
    sim_sched_reset();
    sim_processes_reset();
    sim_sockets_reset();
    // Closing has made events.
    sim_sched_reset();
    model_reset();
    notes_reset();
    return ok;
}

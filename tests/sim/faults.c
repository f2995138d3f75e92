#include "faults.h"

#include "scenario.h"

static uint64_t num_faults;

static struct seat *
any_seat(void)
{
    return &scenario.seats[sim_below(scenario.num_seats)];
}

static void
kill_seat(struct seat *seat)
{
    struct sim_process *process = seat->process;
    if (process == NULL || !process->alive)
        return;
    seat->died_at = sim.now_ns;
    for (size_t i = 0; i < scenario.num_seats; i++) {
        const struct sim_process *other = scenario.seats[i].process;
        seat->hindered_then[i] = other != NULL ? sim_process_hindered_ns(other) : 0;
    }
    sim_process_kill(process);
    model_process_died(process);
    for (size_t i = 0; i < seat->num_nodes; i++)
        seat->nodes[i]->up = false;
}

static void
go_on_again(void *arg, uint64_t pid)
{
    struct sim_process *process = sim_process_by_pid((int)pid);
    (void)arg;
    sim_process_continue(process);
}

static void
be_fast_again(void *arg, uint64_t pid)
{
    (void)arg;
    sim_process_slow(sim_process_by_pid((int)pid), 0);
}

static void
find_memory_again(void *arg, uint64_t pid)
{
    (void)arg;
    sim_process_by_pid((int)pid)->short_of_memory = false;
}

static void
unblock(void *arg, uint64_t hosts)
{
    (void)arg;
    sim_net_block((int)(hosts / SIM_HOSTS_MAX), (int)(hosts % SIM_HOSTS_MAX), false);
}

static void
power_on(void *arg, uint64_t host)
{
    (void)arg;
    if (!sim_net.powered_off[host])
        return;
    sim_net_power((int)host, true);
    for (size_t i = 0; i < scenario.num_seats; i++) {
        if (scenario.seats[i].host == (int)host)
            scenario_start_seat(&scenario.seats[i], 0);
    }
}

static void
fault_kill(void)
{
    struct seat *seat = any_seat();
    kill_seat(seat);
    sim_at(sim.now_ns + sim_between(1, 1500) * SIM_MS, scenario_start_seat, seat, 0);
}

static void
fault_power(void)
{
    int host = (int)sim_below((uint64_t)scenario.num_hosts);
    if (sim_net.powered_off[host])
        return;
    sim_net_power(host, false);
    for (size_t i = 0; i < scenario.num_seats; i++) {
        if (scenario.seats[i].host == host)
            kill_seat(&scenario.seats[i]);
    }
    sim_at(sim.now_ns + sim_between(100, 1500) * SIM_MS, power_on, NULL, (uint64_t)host);
}

static uint64_t
around_the_limits(void)
{
    uint64_t limit_ms = scenario.nodes[0].liveness_ms + scenario.nodes[0].sync_ms;
    return sim_between(1, sim_chance(2) ? 20 : 2 * limit_ms) * SIM_MS;
}

static void
fault_stop(void)
{
    struct sim_process *process = any_seat()->process;
    if (process == NULL || !process->alive)
        return;
    sim_process_stop(process);
    sim_at(sim.now_ns + around_the_limits(), go_on_again, NULL, (uint64_t)process->pid);
}

static struct seat *
seat_of(const struct sim_process *process)
{
    for (size_t i = 0; i < scenario.num_seats; i++) {
        if (scenario.seats[i].process == process)
            return &scenario.seats[i];
    }
    return NULL;
}

static void
kill_at_once(void *arg, uint64_t pid)
{
    struct seat *seat = arg;
    if (seat->process->pid == (int)pid)
        kill_seat(seat);
}

static void one_fault(void *arg, uint64_t unused);

// A misfortune seldom comes alone: most of what hurts takes two.
static void
another_may_follow(void)
{
    for (uint64_t i = sim_below(5); i > 2; i--)
        sim_at(sim.now_ns + sim_below(5 * SIM_MS), one_fault, NULL, 0);
}

// At whatever the current thread is doing.
static void
ambush(void)
{
    struct sim_process *process = sim_current_process();
    switch (sim_below(4)) {
    case 0:
        if (scenario.faults.kills && sim_chance(4)) {
            struct seat *seat = seat_of(process);
            num_faults++;
            sim_at(sim.now_ns, kill_at_once, seat, (uint64_t)process->pid);
            sim_at(sim.now_ns + sim_between(1, 800) * SIM_MS, scenario_start_seat, seat, 0);
            sim_yield();
        }
        break;
    case 1:
        if (scenario.faults.stops) {
            num_faults++;
            sim_process_stop(process);
            sim_at(sim.now_ns + around_the_limits(), go_on_again, NULL, (uint64_t)process->pid);
            sim_yield();
        }
        break;
    default:
        if (scenario.faults.stalls) {
            num_faults++;
            another_may_follow();
            // Now and then so long that the most patient owner gives up waiting for a reader.
            sim_stall(around_the_limits() * (sim_chance(3) ? 3 : 1));
        }
    }
}

static void
fault_slow(void)
{
    struct sim_process *process = any_seat()->process;
    if (process == NULL || !process->alive || process->slow_ns > 0)
        return;
    sim_process_slow(process, sim_between(10, 3000) * SIM_US);
    sim_at(sim.now_ns + sim_between(10, 600) * SIM_MS, be_fast_again, NULL, (uint64_t)process->pid);
}

static void
fault_memory(void)
{
    struct sim_process *process = any_seat()->process;
    if (process == NULL || !process->alive)
        return;
    sim_trace("%s runs out of memory", process->name);
    process->short_of_memory = true;
    sim_at(sim.now_ns + sim_between(1, 60) * SIM_MS, find_memory_again, NULL,
           (uint64_t)process->pid);
}

static void
block_for(int from, int to, uint64_t ns)
{
    if (sim_net.blocked[from][to])
        return;
    sim_net_block(from, to, true);
    for (size_t i = 0; i < scenario.num_seats; i++) {
        const struct sim_process *process = scenario.seats[i].process;
        scenario.partition_hindered[from][to][i] =
            process != NULL ? sim_process_hindered_ns(process) : 0;
    }
    sim_at(sim.now_ns + ns, unblock, NULL, (uint64_t)(from * SIM_HOSTS_MAX + to));
}

static void
fault_partition(void)
{
    if (scenario.num_hosts < 2)
        return;
    int a = (int)sim_below((uint64_t)scenario.num_hosts);
    int b = (a + 1 + (int)sim_below((uint64_t)scenario.num_hosts - 1)) % scenario.num_hosts;
    uint64_t ns = around_the_limits();
    block_for(a, b, ns);
    if (!sim_chance(4))
        block_for(b, a, ns);
}

static void
fault_reset(void)
{
    (void)sim_net_reset_one();
}

static void
fault_path(void)
{
    (void)sim_net_deafen_one();
}

// Of all that may go wrong in this run, one thing.
static void
one_fault(void *arg, uint64_t unused)
{
    const struct fault_set *faults = &scenario.faults;
    (void)arg;
    (void)unused;
    struct {
        bool may;
        void (*happen)(void);
    } choices[] = {
        {faults->kills, fault_kill},           {faults->power, fault_power},
        {faults->stops, fault_stop},           {faults->slowness, fault_slow},
        {faults->partitions, fault_partition}, {faults->resets, fault_reset},
        {faults->memory, fault_memory},        {faults->dead_paths, fault_path},
    };
    size_t i = sim_below(SIM_COUNT(choices));
    if (scenario.phase != CHAOS || !choices[i].may)
        return;
    num_faults++;
    choices[i].happen();
    another_may_follow();
}

static void
something_goes_wrong(void *arg, uint64_t mean_ns)
{
    one_fault(arg, 0);
    if (scenario.phase == CHAOS)
        sim_at(sim.now_ns + sim_below(2 * mean_ns), something_goes_wrong, NULL, mean_ns);
}

// By chance from aside: most seeds don't know it.
static void
something_isnt_read(void *arg, uint64_t unused)
{
    const struct sim_process *process = scenario.seats[scenario.non_reader].process;
    (void)arg;
    (void)unused;
    if (scenario.phase != CHAOS)
        return;
    if (process != NULL && process->alive) {
        uint64_t until_ns =
            sim_aside(3) == 0 ? SIM_NEVER : sim.now_ns + (1 + sim_aside(1500)) * SIM_MS;
        num_faults++;
        sim_net_stop_reading(process, sim_aside(2) == 0, until_ns);
    }
    sim_at(sim.now_ns + (50 + sim_aside(800)) * SIM_MS, something_isnt_read, NULL, 0);
}

void
faults_begin(void)
{
    const struct fault_set *faults = &scenario.faults;
    num_faults = 0;
    if (faults->kills || faults->stops || faults->stalls) {
        sim.ambush = ambush;
        sim.ambush_one_in = sim_between(1000, 20000);
        sim.critical_ambush_one_in = sim_between(20, 2000);
    }
    if (faults->unread)
        sim_at(sim.now_ns + (20 + sim_aside(300)) * SIM_MS, something_isnt_read, NULL, 0);
    something_goes_wrong(NULL, sim_between(20, 300) * SIM_MS);
}

void
faults_end(void)
{
    sim_trace("nothing goes wrong from now on");
    sim.ambush_one_in = sim.critical_ambush_one_in = 0;
    sim_end_stalls();
    sim_net.loss_one_in = 0;
    sim_net.refuse_one_in = 0;
    sim_net.flip_one_in = 0;
    for (int a = 0; a < scenario.num_hosts; a++) {
        for (int b = 0; b < scenario.num_hosts; b++)
            sim_net_block(a, b, false);
        power_on(NULL, (uint64_t)a);
    }
    for (size_t i = 0; i < scenario.num_seats; i++) {
        struct seat *seat = &scenario.seats[i];
        struct sim_process *process = seat->process;
        if (process == NULL || !process->alive) {
            scenario_start_seat(seat, 0);
            continue;
        }
        sim_process_continue(process);
        sim_process_slow(process, 0);
        process->short_of_memory = false;
    }
}

uint64_t
faults_count(void)
{
    return num_faults;
}

// What happens in a run, drawn from its seed: who is there, what they do, what goes wrong.
#ifndef SIM_SCENARIO_H
#define SIM_SCENARIO_H

#include "model.h"

enum { SEATS_MAX = 4, NODES_MAX = 5, WORKERS_PER_NODE = 2 };

// One cluster; its instance lives while its seat's process does.
struct node {
    unsigned index;
    uint64_t cluster_id;
    bool is_prompt;
    struct seat *seat;
    uint16_t port;
    uint32_t liveness_ms;
    uint32_t dead_ms;
    bool relinks; // transfers make a broken link anew
    uint32_t sync_ms;
    bool checksum;
    const char *transports;
    llm_datadist *dd; // of the process that lives now
    bool up;
    bool settling; // has what its peers need for the final round
};

// A place for processes, one after the other.
struct seat {
    unsigned index;
    int host;
    struct sim_process *process;
    struct node *nodes[NODES_MAX];
    size_t num_nodes;
    unsigned num_starts;
    uint64_t died_at;
    // What the others had been hindered when this one died.
    uint64_t hindered_then[SEATS_MAX];
    bool finished; // its process may exit
};

// What is known of a pair of clusters.
struct pair {
    unsigned links_made;
    uint64_t link_ns; // when the call that made the last link began
    bool linked;      // as far as the decoder's calls tell
    bool final_link, final_push;
};

enum phase { CHAOS, SETTLING, ENDING };

struct fault_set {
    bool kills, power, stops, stalls, slowness, partitions, resets, losses, flips, refusals, memory,
        churn, no_reading, unlinks, dead_paths, unread;
};

struct scenario {
    enum phase phase;
    bool version_2;
    bool calm; // nothing goes wrong
    struct fault_set faults;
    bool signals;      // in some processes; no misfortune: nothing fails for them
    size_t non_reader; // with unread faults: the seat whose process stops reading
    bool only_unread;  // nothing else goes wrong, and to nobody else
    struct seat seats[SEATS_MAX];
    size_t num_seats;
    struct node nodes[NODES_MAX];
    size_t num_nodes;
    int num_hosts;
    uint32_t num_tensors;
    uint64_t stride;
    uint64_t chaos_ends_ns;
    uint64_t pause_ns; // between a worker's calls, about
    struct pair pairs[NODES_MAX][NODES_MAX];
    unsigned num_settled; // nodes that have passed the final round
    uint64_t partition_hindered[SIM_HOSTS_MAX][SIM_HOSTS_MAX][SEATS_MAX];
    // How often what came out, to see that a seed does something.
    uint64_t ops, successes, links, restarts, notes;
};
extern struct scenario scenario;

struct scenario_totals {
    uint64_t ops, successes, links, restarts, notes, faults, signals, steps;
};

// Runs one seed to its end; false if an invariant broke: sim.failure says which.
bool scenario_run(uint64_t seed, bool tracing, struct scenario_totals *totals);

// Is that status allowed for that operation?
void scenario_judge(const struct op *op, llm_status status);

// A new process in that seat, unless there is one, or the host is off.
void scenario_start_seat(void *seat, uint64_t unused);

struct node *scenario_node(uint64_t cluster_id);
// Nothing goes wrong between the two.
bool scenario_is_calm(const struct node *a, const struct node *b);
bool scenario_reads(const struct node *node);
struct pair *scenario_pair(const struct node *a, const struct node *b);

// The life of a process (players.c): an instance per node, workers, the final round, the end.
void *player_main(void *seat);

#endif

// What the files of `llm-datadist bench` share.
//
// Two processes: this one pulls (a Decoder) and measures; the other, the *owner*, holds the caches
// that are pulled (a Prompt), pushes when told to, and sends the raw streams that the library is
// compared with.  They talk over a socket pair: an order, an answer.
#ifndef LLM_BENCH_H
#define LLM_BENCH_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/uio.h>

#include "llm_datadist/llm_datadist_c.h"

enum {
    BENCH_PARTS_MAX = 5,
    BENCH_TENSORS_MAX = 256,
    BENCH_ROUNDS_MAX = 101,
    BENCH_SERIES_MAX = 32,
    BENCH_YARDSTICKS_MAX = 5,
    BENCH_CONNECTIONS_MAX = 8,
    BENCH_THREADS_MAX = 2,
    BENCH_ONLY_MAX = 16
};

// ---- errors (bench_base.c) ----

struct bench_error {
    char text[320];
};

// Always false, so that a function can end with it.
bool bench_fail(struct bench_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
// The same for a call of the library; `what` says what was tried.
bool bench_fail_status(struct bench_error *error, llm_status status, const char *what);

uint64_t bench_now_ns(void);
// Of this process and all its threads, in user and kernel mode.
uint64_t bench_cpu_ns(void);
// Resident memory and page tables of this process.
uint64_t bench_memory_bytes(void);
// What the system can still give without swapping.
uint64_t bench_available_bytes(void);
// As many open files as this process may have; returns how many.
uint64_t bench_raise_descriptor_limit(void);
// "64 KiB", "1.5 MiB", "584 B"; returns `text`.
const char *bench_size(uint64_t bytes, char text[16]);

// ---- what is moved (bench_work.c) ----

// One cache on either side, and how many of its blocks move.
struct bench_part {
    uint64_t block_bytes;
    uint64_t num_slots;
    uint64_t num_blocks; // more than num_slots: slots repeat
    uint32_t num_tensors;
};

struct bench_work {
    struct bench_part parts[BENCH_PARTS_MAX];
    uint32_t num_parts;
    bool registered; // the caches are registered memory, not a pool's
};

// Addresses and ids of a work's caches in one process.
struct bench_memory {
    struct {
        int64_t cache_id;
        uintptr_t tensors[BENCH_TENSORS_MAX];
    } parts[BENCH_PARTS_MAX];
};

// Which block goes where: both sides scattered, the same in both processes.
struct bench_blocks {
    uint64_t *src[BENCH_PARTS_MAX];
    uint64_t *dst[BENCH_PARTS_MAX];
};

uint64_t bench_work_bytes(const struct bench_work *work);  // that a transfer moves
uint64_t bench_work_memory(const struct bench_work *work); // that its caches take on one side
uint64_t bench_work_blocks(const struct bench_work *work); // pieces, over all tensors

bool bench_blocks_init(struct bench_blocks *blocks, const struct bench_work *work,
                       struct bench_error *error);
void bench_blocks_fini(struct bench_blocks *blocks);

// Every slot of every tensor gets bytes of its own.
void bench_fill(const struct bench_work *work, const struct bench_memory *memory);
void bench_clear(const struct bench_work *work, const struct bench_memory *memory);
// Whether each destination block holds what its source block was filled with.
bool bench_verify(const struct bench_work *work, const struct bench_blocks *blocks,
                  const struct bench_memory *memory, struct bench_error *error);

// ---- instances (bench_node.c) ----

struct bench_node {
    llm_datadist *dd;
    uint64_t cluster_id;
    uint16_t port; // of a Prompt
    struct bench_memory memory;
    void *own[BENCH_PARTS_MAX]; // memory that was registered, one mapping a part
    size_t own_bytes[BENCH_PARTS_MAX];
};

struct bench_node_options {
    uint64_t cluster_id;
    bool prompt;
    const char *transports;
    unsigned connections; // 0: the default
    unsigned threads;     // that copy; 0: the default
    bool checked;         // with llm.Checksum
    uint64_t pool_bytes;  // 0: the default
};

bool bench_node_open(struct bench_node *node, const struct bench_node_options *options,
                     struct bench_error *error);
// Harmless on one that isn't open.
void bench_node_close(struct bench_node *node);
// The caches of a work: of the instance's pool, or of ordinary memory that is then registered.
bool bench_node_caches(struct bench_node *node, const struct bench_work *work,
                       struct bench_error *error);
bool bench_node_link(struct bench_node *node, uint64_t cluster_id, uint16_t port,
                     struct bench_error *error);
// The remote caches are those of `remote`, of which only the ids are read.
bool bench_node_pull(struct bench_node *node, uint64_t cluster_id,
                     const struct bench_memory *remote, const struct bench_work *work,
                     const struct bench_blocks *blocks, struct bench_error *error);
bool bench_node_push(struct bench_node *node, uint64_t cluster_id,
                     const struct bench_memory *remote, const struct bench_work *work,
                     const struct bench_blocks *blocks, struct bench_error *error);
// Block src of the peer to block dst here, of one part.
llm_status bench_node_pull_one(struct bench_node *node, uint64_t cluster_id, int64_t remote_id,
                               uint32_t part, uint64_t src, uint64_t dst);

// ---- yardsticks: no code of the library (bench_copy.c, bench_raw.c) ----

typedef void (*bench_copy)(void *dst, const void *src, size_t bytes);

// Stores past the caches.
void bench_copy_stream(void *dst, const void *src, size_t bytes);
void bench_copy_plain(void *dst, const void *src, size_t bytes);
void bench_copy_work(const struct bench_work *work, const struct bench_blocks *blocks,
                     const struct bench_memory *src, const struct bench_memory *dst,
                     bench_copy copy);

// The pieces of a work, in the order in which they move.
struct bench_pieces {
    struct iovec *list;
    size_t count;
};

bool bench_pieces_init(struct bench_pieces *pieces, const struct bench_work *work,
                       uint64_t *const *blocks, const struct bench_memory *memory,
                       struct bench_error *error);
void bench_pieces_fini(struct bench_pieces *pieces);

// process_vm_readv, 1024 pieces a call.
bool bench_readv(int pid, const struct bench_pieces *src, const struct bench_pieces *dst,
                 struct bench_error *error);

// Plain sockets, a thread each, every one with its share of the pieces.
struct bench_raw {
    int listener; // -1: none
    int fds[BENCH_CONNECTIONS_MAX];
    unsigned num_fds;
};

bool bench_raw_listen(struct bench_raw *raw, uint16_t *ret_port, struct bench_error *error);
bool bench_raw_accept(struct bench_raw *raw, unsigned connections, struct bench_error *error);
bool bench_raw_connect(struct bench_raw *raw, unsigned connections, uint16_t port,
                       struct bench_error *error);
void bench_raw_close(struct bench_raw *raw);
bool bench_raw_move(const struct bench_raw *raw, const struct bench_pieces *pieces, bool send,
                    struct bench_error *error);

// ---- the owner (bench_owner.c, bench_order.c) ----

enum bench_order_kind {
    BENCH_ORDER_OPEN = 1,   // make the Prompt with the work's caches: port, memory
    BENCH_ORDER_PUSH,       // to `cluster_id`, caches `ids`: nanoseconds
    BENCH_ORDER_RAW_LISTEN, // port
    BENCH_ORDER_RAW_ACCEPT, // `count` connections
    BENCH_ORDER_RAW_SEND,   // over them
    BENCH_ORDER_CLOSE,      // the Prompt and its caches
    BENCH_ORDER_CPU,        // nanoseconds
    BENCH_ORDER_MEMORY,     // bytes
    BENCH_ORDER_MANY_OPEN,  // `count` Prompts with ids from `cluster_id` on: ports
    BENCH_ORDER_MANY_CLOSE,
    // To bench-ucx alone, which also knows OPEN (its version) and CPU.
    BENCH_ORDER_UCX_GET,  // the way `count`: nanoseconds
    BENCH_ORDER_UCX_CHECK // the same into cleared memory, all bytes checked
};

// How UCX gets: of one host, of its TCP, and as it must when it is to notice that the peer has died.
enum bench_ucx_way { BENCH_UCX_CMA, BENCH_UCX_TCP, BENCH_UCX_DETECT, BENCH_UCX_WAYS };
enum { BENCH_UCX_VERSION_BYTES = 32 };

enum { BENCH_CLUSTERS_MAX = 4096 };

struct bench_order {
    uint32_t kind;
    uint32_t count;
    uint64_t cluster_id;
    int64_t ids[BENCH_PARTS_MAX];
    struct bench_work work;
};

struct bench_answer {
    bool ok;
    struct bench_error error;
    uint64_t value;
    uint32_t payload_bytes; // that follow
};

struct bench_owner {
    int pid;
    int fd; // -1: not started
};

bool bench_owner_start(struct bench_owner *owner, struct bench_error *error);
// bench-ucx (bench_ucx.c), which stands beside this program if UCX was there when it was built.
bool bench_ucx_start(struct bench_owner *ucx, struct bench_error *error);
bool bench_ucx_exists(char path[4096]);
void bench_owner_stop(struct bench_owner *owner);
// Gives an order and waits for its answer.  payload: room for exactly so much, or NULL and 0.
bool bench_owner_order(struct bench_owner *owner, const struct bench_order *order,
                       uint64_t *ret_value, void *payload, size_t payload_bytes,
                       struct bench_error *error);
// The life of the owner's process; returns its exit code.
int bench_owner_main(int fd);

bool bench_send_all(int fd, const void *bytes, size_t size);
bool bench_receive_all(int fd, void *bytes, size_t size);

// ---- results (bench_report.c, bench_json.c, bench_svg.c) ----

struct bench;
struct bench_options;

struct bench_series {
    char name[40];
    double values[BENCH_ROUNDS_MAX]; // in the table's unit, one per round
    unsigned num_values;
    bool yardstick;
    bool verified;
    char compared[BENCH_YARDSTICKS_MAX][40]; // the names of series of the same table
};

struct bench_table {
    const char *name;
    char title[128];
    char note[256]; // why something is missing, or ""
    const char *unit;
    bool less_is_better;
    struct bench_series series[BENCH_SERIES_MAX];
    size_t num_series;
};

struct bench_summary {
    double median, min, max, low, high; // low, high: the quartiles
};

struct bench_series *bench_table_add(struct bench_table *table, const char *name, bool yardstick);
void bench_compare(struct bench_series *series, const char *with);
void bench_add(struct bench_series *series, double value);
const struct bench_series *bench_find(const struct bench_table *table, const char *name);
struct bench_summary bench_summarize(const struct bench_series *series);
// The median over the rounds of series / yardstick.
double bench_ratio(const struct bench_series *series, const struct bench_series *yardstick);
double bench_quantile(double *values, size_t num_values, double quantile); // sorts them

void bench_print_table(FILE *out, const struct bench_table *table);
bool bench_print_json(FILE *out, const struct bench *bench, const struct bench_table *tables,
                      size_t num_tables, bool ok);
bool bench_write_svg(const char *path, const struct bench_table *tables, size_t num_tables,
                     struct bench_error *error);
// The machine, in one line.
const char *bench_machine(char *text, size_t size);

// ---- goals (bench_goals.c) ----

// Something that a table shall show.
struct bench_goal {
    const char *table;
    const char *series;
    const char *than; // a series that it is compared with; NULL: the number itself
    double bound;
    bool at_most;   // otherwise at least
    bool wall_only; // CPU time doesn't show it
};

extern const struct bench_goal bench_goals[];
extern const size_t bench_num_goals;

// False if nothing was measured for it.
bool bench_goal_measure(const struct bench_goal *goal, const struct bench_options *options,
                        const struct bench_table *tables, size_t num_tables, double *ret_value);
bool bench_goal_met(const struct bench_goal *goal, double value);
void bench_print_goals(FILE *out, const struct bench_options *options,
                       const struct bench_table *tables, size_t num_tables);

// ---- the command line (bench_options.c) ----

struct bench_options {
    bool help, list, json, long_set;
    bool cpu_clock;  // speeds by CPU time of both processes
    const char *svg; // or NULL
    const char *only[BENCH_ONLY_MAX];
    size_t num_only;
    unsigned rounds;
    uint64_t bytes; // that one transfer moves
    int owner_fd;   // not for people: -1, or this process is the owner
};

// TOOL_OK, or TOOL_USAGE after a line on standard error.
int bench_parse(int argc, char **argv, struct bench_options *ret_options);
void bench_print_help(FILE *out);

// ---- measuring (bench_run.c and the files named) ----

struct bench {
    const struct bench_options *options;
    struct bench_owner owner;
    struct bench_owner ucx;                    // while a table needs it
    char ucx_version[BENCH_UCX_VERSION_BYTES]; // "" as long as it hasn't been used
    char ucx_missing[200];                     // why it can't be, or ""
    struct bench_error error;
    size_t position; // of the table under way
    size_t total;
    bool terminal;
};

// Shows how far a table is, where somebody watches.
void bench_progress(const struct bench *bench, const struct bench_table *table, unsigned round);

// Which ways of moving a table compares.
enum {
    BENCH_HOST = 1,      // local, shm and the yardsticks of one host
    BENCH_TCP = 2,       // tcp and raw streams
    BENCH_PUSHES = 4,    // pushes as well
    BENCH_READV = 8,     // process_vm_readv
    BENCH_UCX_HOST = 16, // UCX over cma
    BENCH_UCX_NET = 32,  // UCX over tcp, and with failure detection
    BENCH_FEW = 64,      // of tcp only the default number of connections
    BENCH_CHECKED = 128, // those of one thread and of two connections with checksums as well
    BENCH_UCX = BENCH_UCX_HOST | BENCH_UCX_NET,
    BENCH_OWN_WAYS = 15 // all but UCX and checksums
};

// Both processes ready to move a work: instances, links, caches, raw connections.
struct bench_setup {
    struct bench *bench;
    const struct bench_work *work;
    struct bench_blocks blocks;
    uint16_t owner_port;
    struct bench_memory owner_memory;                 // addresses in the owner
    struct bench_node local_prompt;                   // a Prompt in this process
    struct bench_node host[1 + BENCH_THREADS_MAX];    // Decoders over local and shm, by threads
    struct bench_node tcp[1 + BENCH_CONNECTIONS_MAX]; // Decoders by number of connections
    struct bench_node checked_host;                   // with checksums: one thread
    struct bench_node checked_tcp;                    // two connections
    struct bench_raw raw[1 + BENCH_CONNECTIONS_MAX];
    struct bench_pieces owner_pieces;
    struct bench_pieces host_pieces[1 + BENCH_THREADS_MAX];
    struct bench_pieces tcp_pieces[1 + BENCH_CONNECTIONS_MAX];
};

enum {
    BENCH_OWNER_CLUSTER = 1,
    BENCH_LOCAL_CLUSTER = 2,
    BENCH_HOST_CLUSTER = 100,
    BENCH_TCP_CLUSTER = 200,
    BENCH_CHECKED_CLUSTER = 300 // and the next one
};

// A bit (1 << n) for each number n of copy threads, and of tcp connections, that is wanted.
bool bench_setup_open(struct bench_setup *setup, struct bench *bench, const struct bench_work *work,
                      unsigned threads, unsigned connections);
void bench_setup_close(struct bench_setup *setup);
bool bench_setup_raw(struct bench_setup *setup, unsigned connections);
// Decoders whose links are checked, of an open setup.
bool bench_setup_checked(struct bench_setup *setup, bool host, bool tcp);

// Moves `work` every way that `ways` names, round by round (bench_case.c).
bool bench_run_copy(struct bench *bench, struct bench_table *table, const struct bench_work *work,
                    unsigned ways);
bool bench_run_latency(struct bench *bench, struct bench_table *table); // bench_latency.c
bool bench_run_beside(struct bench *bench, struct bench_table *table);  // bench_latency.c
bool bench_run_links(struct bench *bench, struct bench_table *table, unsigned num_links,
                     const char *transport);                              // bench_links.c
bool bench_run_owner_cpu(struct bench *bench, struct bench_table *table); // bench_cpu.c
bool bench_run_start(struct bench *bench, struct bench_table *table);     // bench_start.c
bool bench_run_plan(struct bench *bench, struct bench_table *table);      // bench_start.c

// A table that can be asked for (bench_cases.c).
struct bench_case {
    const char *name;
    const char *help;
    bool long_only;
    bool (*run)(struct bench *bench, struct bench_table *table, const struct bench_case *which);
    uint64_t number; // block bytes, or links
    const char *text;
};

extern const struct bench_case bench_cases[];
extern const size_t bench_num_cases;

#endif

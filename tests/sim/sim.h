// A simulated machine room: clock, scheduler, processes, files, sockets, memory.  The library runs in it
// unmodified, and everything that happens follows from one seed.
//
// Every thread of every simulated process is a coroutine of one real thread.  Each call into the
// simulated system is a point at which another coroutine may go on; who does is drawn from the seed.
// When nobody can go on, the clock jumps to the next event.
#ifndef SIM_H
#define SIM_H

#include <netinet/in.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_NEVER UINT64_MAX
#define SIM_US UINT64_C(1000)
#define SIM_MS UINT64_C(1000000)
#define SIM_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define SIM_PRINTF(text, args) __attribute__((format(printf, text, args)))

// The name under which the library's copy of a system call arrives here (the linker's --wrap).
#define SIM_CALL(result, name, ...)                                                                \
    __attribute__((visibility("default"))) result __wrap_##name(__VA_ARGS__);                      \
    result __wrap_##name(__VA_ARGS__)

enum {
    SIM_HOSTS_MAX = 4,
    SIM_PROCESSES_MAX = 64, // over a whole run, dead ones included
    SIM_FDS_MAX = 256,
};

struct sim_process;
struct sim_coro;
struct sim_file;

// ---- chance (rng.c) ----

void sim_seed(uint64_t seed);
uint64_t sim_random(void);
uint64_t sim_below(uint64_t end); // 0..end-1; end > 0
uint64_t sim_between(uint64_t first, uint64_t last);
bool sim_chance(uint64_t one_in); // 0: never
uint64_t sim_hash(uint64_t a, uint64_t b);
// 0..end-1 from a second stream: what draws from it leaves the rest of a seed's story as it is.
uint64_t sim_aside(uint64_t end);

// ---- the run (world.c) ----

struct sim_world {
    uint64_t seed;
    uint64_t now_ns;
    uint64_t steps;
    uint64_t trace_hash; // of everything that happened
    bool tracing;
    bool failed;
    char failure[512];
    uint64_t yield_one_in; // at a scheduling point, another coroutine may go on with this chance
    uint64_t fault_rate;   // of calls that fail for want of memory, one in; 0: none
    uint64_t num_signals;
    struct sim_coro *current; // NULL: the scheduler
    // Something may go wrong at the very point where a thread is, one in so many; 0: never.
    void (*ambush)(void);
    uint64_t ambush_one_in;
    uint64_t critical_ambush_one_in; // in the middle of copies and of the protocol of readers
};
extern struct sim_world sim;

void sim_trace(const char *format, ...) SIM_PRINTF(1, 2);
// An invariant is broken: the run ends here.  Does not return when called from a coroutine.
void sim_fail(const char *format, ...) SIM_PRINTF(1, 2);

// ---- events and coroutines (sched.c) ----

void sim_at(uint64_t when_ns, void (*run)(void *a, uint64_t b), void *a, uint64_t b);

// Runs until `done` says so, nobody can go on any more, or the run has failed.
void sim_run(bool (*done)(void), void (*every_step)(void));
void sim_sched_reset(void);

struct sim_coro *sim_spawn(struct sim_process *process, const char *name, void *(*entry)(void *),
                           void *arg);
bool sim_coro_done(uint64_t id);
void sim_join(uint64_t id);
void sim_coro_rename(uint64_t id, const char *name);
uint64_t sim_coro_id(const struct sim_coro *coro);
struct sim_process *sim_coro_process(const struct sim_coro *coro);
void sim_coros_kill(struct sim_process *process);
size_t sim_coros_count(const struct sim_process *process);
void sim_coros_describe(const struct sim_process *process);

int sim_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*entry)(void *),
                       void *arg);

// Another coroutine may go on here.
__attribute__((visibility("default"))) void sim_point(void);
// The same, where a reader or an owner of a cache is most vulnerable.
__attribute__((visibility("default"))) void sim_critical_point(void);
void sim_yield(void);
// The system doesn't let the thread run, for so long.
void sim_stall(uint64_t ns);
void sim_end_stalls(void);
void sim_sleep(uint64_t ns);

// Waits until somebody wakes `what`; false when the deadline has passed.
bool sim_wait(const char *why, const void *what, uint64_t deadline_ns);
void sim_wake_all(const void *what);
void sim_wake_one(const void *what);
bool sim_is_awaited(const void *what);

// ---- processes (process.c) ----

struct sim_process {
    int pid;
    int host;
    char name[16];
    bool alive;
    bool stopped;
    bool exited;
    uint64_t slow_ns; // rests so long after each step, at most
    uint64_t rests_until;
    unsigned num_hindrances; // stopped, slow, threads stalled
    uint64_t hindered_since;
    uint64_t hindered_ns; // how long it could not run as it liked, before that
    struct sim_mark {
        uint64_t when_ns, hindered_ns;
    } marks[16]; // the last times when it could again
    size_t num_marks;
    uint64_t started_at;
    uint64_t died_at;
    bool can_read_others; // process_vm_readv is permitted
    bool short_of_memory;
    uint64_t signal_one_in; // of its system calls that a signal may interrupt; 0: none
    struct sim_module *module;
    struct sim_coro *tls_of; // whose thread-local storage is in place
    struct sim_file *fds[SIM_FDS_MAX];
    size_t num_fds_max;
    struct sim_map *maps;
    struct sim_epoll *epolls;
};

struct sim_process *sim_process_start(int host, const char *name);
// As kill -9.  Not from its own coroutines.
void sim_process_kill(struct sim_process *process);
void sim_process_stop(struct sim_process *process);
void sim_process_continue(struct sim_process *process);
void sim_process_slow(struct sim_process *process, uint64_t rest_ns);
void sim_process_hinder(struct sim_process *process);
void sim_process_unhinder(struct sim_process *process);
// How long it could not run freely, up to now.
uint64_t sim_process_hindered_ns(const struct sim_process *process);
// In the last so many nanoseconds, at most.
uint64_t sim_process_hindered_lately_ns(const struct sim_process *process, uint64_t window_ns);
// The process has ended in good order: nothing may be left.
void sim_process_exit(struct sim_process *process);
struct sim_process *sim_process_by_pid(int pid);
struct sim_process *sim_current_process(void);
void sim_processes_reset(void);

// ---- signals (signals.c) ----

// A signal interrupts the call that the current thread is about to do: errno is EINTR.
bool sim_interrupted(void);
// The same for a call that waits: when the signal comes; SIM_NEVER: none does.
uint64_t sim_interrupted_at(void);

// ---- the library's copies (module.c) ----

enum { SIM_TLS_MAX = 4096 };

struct sim_module {
    void *handle;
    bool busy;
    uint8_t *tls; // of the one real thread
    size_t tls_bytes;
    uint8_t tls_fresh[SIM_TLS_MAX];
    struct sim_area {
        uint8_t *base;
        size_t bytes;
        uint8_t *fresh;
    } areas[8]; // writable data, with what was in there at first
    size_t num_areas;
    struct sim_api *api;
};

struct sim_module *sim_module_take(void);
void sim_module_give(struct sim_module *module);
void sim_copy_raw(void *to, const void *from, size_t bytes); // unseen by sanitizers

// ---- memory (memory.c) ----

void *sim_alloc(struct sim_process *process, size_t bytes);
void sim_dealloc(void *block);
size_t sim_memory_count(const struct sim_process *process); // blocks
void sim_memory_release(struct sim_process *process);
bool sim_memory_is_readable(const struct sim_process *process, const void *from, size_t bytes);
void sim_maps_release(struct sim_process *process);
void *sim_map_file(struct sim_process *process, int real_fd, size_t bytes, int protection,
                   int flags);

// ---- files (files.c, sockets.c, epoll.c) ----

enum sim_file_kind {
    SIM_FILE_NULL,
    SIM_FILE_TEXT,
    SIM_FILE_MEMORY,
    SIM_FILE_EVENT,
    SIM_FILE_PIDFD,
    SIM_FILE_EPOLL,
    SIM_FILE_TCP,
    SIM_FILE_UNIX,
};

struct sim_file {
    enum sim_file_kind kind;
    unsigned references;
    struct sim_process *process; // who waits for it; memory files are anybody's
    bool nonblocking;
    int real_fd;      // memory
    uint64_t counter; // event
    char text[256];   // text
    size_t text_bytes;
    struct sim_process *watched; // pidfd
    struct sim_epoll *epoll;
    struct sim_tcp *tcp;
    struct sim_unix *un;
};

struct sim_file *sim_file_new(enum sim_file_kind kind, struct sim_process *process);
void sim_file_put(struct sim_file *file);                               // drops a reference
int sim_fd_install(struct sim_process *process, struct sim_file *file); // takes the reference
struct sim_file *sim_fd_file(int fd); // of the current process; NULL and EBADF
void sim_files_close_all(struct sim_process *process);
size_t sim_fds_count(const struct sim_process *process);
// EPOLLIN and so on, as things are now.
uint32_t sim_file_events(const struct sim_file *file);
// Whoever waits for the file looks again.
void sim_file_changed(const struct sim_file *file);

void sim_epoll_free(struct sim_epoll *epoll);
void sim_epoll_forget(struct sim_process *process, const struct sim_file *file);

uint32_t sim_tcp_events(const struct sim_tcp *tcp);
void sim_tcp_close(struct sim_tcp *tcp);
uint32_t sim_unix_events(const struct sim_unix *un);
void sim_unix_close(struct sim_unix *un);
void sim_sockets_reset(void);

// ---- the network (sockets.c) ----

struct sim_net {
    uint64_t delay_min_ns, delay_max_ns;        // between hosts
    uint64_t loss_one_in;                       // a segment is sent again later; 0: never
    uint64_t refuse_one_in;                     // a connection is refused
    uint64_t flip_one_in;                       // segments get a bit turned; 0: never
    uint64_t window_min, window_max;            // bytes on the way and not yet read, per connection
    bool blocked[SIM_HOSTS_MAX][SIM_HOSTS_MAX]; // from, to: nothing arrives
    uint64_t blocked_since[SIM_HOSTS_MAX][SIM_HOSTS_MAX];
    bool powered_off[SIM_HOSTS_MAX];
    uint64_t boots[SIM_HOSTS_MAX];
};
extern struct sim_net sim_net;

void sim_net_block(int from, int to, bool blocked);
void sim_net_power(int host, bool on);
// Resets one connection between hosts, somewhere in the middle.  False if there is none.
bool sim_net_reset_one(void);
// One way of one connection dies, for good and without a word: what is sent there is neither received
// nor read.  False if there is none.
bool sim_net_deafen_one(void);
// A process doesn't read one of its connections, or all, until then: who sends to it has no room soon.  It
// does everything else.
void sim_net_stop_reading(const struct sim_process *process, bool all_of_them, uint64_t until_ns);
struct sim_deafness {
    uint64_t since_ns;    // SIM_NEVER: it isn't
    uint64_t hindered_ns; // how long its two ends have been hindered, together
};
// Of the connections that `from` has opened to that port of `to`, but for the first, the one that has been
// dead one way for longest, if both ends have it still.
struct sim_deafness sim_net_deafness(const struct sim_process *from, const struct sim_process *to,
                                     uint16_t port);
struct in_addr sim_host_address(int host);

#endif

// The operating system's seam: clock, waiting, memory files, random numbers, sockets.
#ifndef LLI_OS_H
#define LLI_OS_H

#include <errno.h>
#include <pthread.h>

#include "base/address.h"
#include "base/base.h"

// The result of a system call that a signal doesn't end: it is made again.  The application's signals
// may come in any thread of its own, at any rate.
#define LLI_RETRY(call)                                                                            \
    __extension__({                                                                                \
        __typeof__(call) lli_result_;                                                              \
        do {                                                                                       \
            lli_result_ = (call);                                                                  \
        } while (lli_result_ < 0 && errno == EINTR);                                               \
        lli_result_;                                                                               \
    })

// Monotonic nanoseconds.  The one clock of the library.
uint64_t lli_now_ns(void);

#define LLI_MS_TO_NS(ms) ((uint64_t)(ms)*1000000u)

// now + ms, or the end of time when ms is UINT64_MAX.
uint64_t lli_deadline_after_ms(uint64_t ms);

// Milliseconds left until the deadline, rounded up, at most INT_MAX: what poll() takes.
int lli_ms_until(uint64_t deadline_ns);

// A condition variable on the library's clock.
void lli_cond_init(pthread_cond_t *cond);
// False when the deadline has passed.  May wake early.
bool lli_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t deadline_ns);

// The same file under a descriptor above standard input, output and error, which a daemon may have
// closed: others write there without asking.  Takes a fresh one over; -1 and errno as they came.
int lli_keep_fd(int fd);

// Makes an eventfd readable.
void lli_event_signal(int fd);

uint64_t lli_random_u64(void);

// 16 bytes that all processes of this boot of this machine agree on; false if unknown.
bool lli_boot_id(uint8_t ret_id[16]);

// Starts a thread with a name of at most 15 letters, and all signals blocked but those that a thread
// brings upon itself, such as SIGSEGV.
int lli_thread_start(pthread_t *thread, const char *name, void *(*main)(void *), void *arg);

uint64_t lli_physical_memory_bytes(void);

// A memory file of fixed size, mapped writable here.  The descriptor is for others: it is read-only,
// and the file can neither shrink nor grow.  Core dumps leave it out.  -1 and errno on failure.
int lli_memory_file_create(const char *name, uint64_t bytes, void **ret_base);
// Why that failed, after its errno.
void lli_memory_file_explain(int error, char *why, size_t why_size);
void lli_memory_file_close(int fd, void *base, uint64_t bytes);

// Maps somebody's memory file read-only, after checking that its size is `bytes` and can't shrink,
// and that it is of ordinary pages.  Core dumps leave it out.
// NULL and errno on failure.
const void *lli_memory_file_map(int fd, uint64_t bytes);

// Such a file as it is mapped here.
struct lli_memory_file {
    const uint8_t *base;
    uint64_t bytes;
    int fd; // a description of our own, which nobody else can hold up; -1: none could be opened
};

int lli_memory_file_open_again(int fd);
// Closes a descriptor of a memory file; -1 is none.
void lli_memory_file_let_go(int fd);

// Sockets: all close-on-exec and non-blocking.  -1 and errno on failure.
// `::` takes IPv4 as well.
int lli_tcp_listen(const struct lli_address *address, uint16_t *ret_port);
// *ret_bound: whether `local` could be had; what fails then fails on the way.
int lli_tcp_connect_start(const struct lli_address *local, const struct lli_address *remote,
                          bool *ret_bound);
// The system may give a connection the port that it is meant for, and join both of its ends.
bool lli_tcp_is_with_itself(int fd);
// Closes a connection so that nothing of it lingers.
void lli_tcp_abort(int fd);
void lli_tcp_tune(int fd);
// How long bytes may stay unacknowledged, or the peer's host silent, before the system ends the connection.
void lli_tcp_limit(int fd, unsigned limit_ms);
// An abstract Unix socket with a random name.
int lli_unix_listen(char *ret_name, size_t name_size);
int lli_unix_connect(const char *name);
int lli_accept(int listen_fd, struct lli_address *ret_peer);
// Of this end.
bool lli_socket_name(int fd, struct lli_address *ret_name);

#endif

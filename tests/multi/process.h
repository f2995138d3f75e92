// Other processes in a test: the test program starts itself again with --role=NAME, and the two talk
// over a socket pair in short lines.  Nothing here waits without a limit; whatever goes wrong ends
// the test, and the end of the test ends the processes.
#ifndef LLM_TEST_PROCESS_H
#define LLM_TEST_PROCESS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#else
#define UNDER_TSAN 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#else
#define UNDER_ASAN 0
#endif

// A number for the ordinary run, and one for the slow run under a sanitizer.
#define SCALED(ordinary, sanitized) (UNDER_TSAN || UNDER_ASAN ? (sanitized) : (ordinary))

enum { LINE_BYTES = 4096, PATIENCE_MS = SCALED(20000, 60000) };

// Two ends of a conversation in lines.
struct talk {
    int fd;
    char buffer[LINE_BYTES];
    size_t num_buffered;
};

struct process {
    struct talk talk;
    pid_t pid; // 0: not running
};

uint64_t now_ms(void);

// In main: the socket and the role of a process that was started by process_start; false in the one
// that runs the tests.
bool process_role(int argc, char **argv, const char **ret_role, struct talk *ret_talk);

void process_start(struct process *process, const char *role);
// SIGKILL, and waits until it's gone.
void process_kill(struct process *process);
// SIGSTOP, and waits until it stands still.
void process_stop(struct process *process);
void process_continue(struct process *process);
// For a teardown: kills whatever was started and still runs.
void process_kill_all(void);
// Waits for its end; false if it ended otherwise than with exit code 0.
bool process_join(struct process *process);

// One line without its end.
void talk_say(struct talk *talk, const char *format, ...) __attribute__((format(printf, 2, 3)));
// The next line; false if the other end is gone.
bool talk_hear(struct talk *talk, char line[LINE_BYTES], int timeout_ms);

// Says something and hears the answer, which must come.
void process_ask(struct process *process, char answer[LINE_BYTES], const char *format, ...)
    __attribute__((format(printf, 3, 4)));
// Likewise; the answer must be this one.
#define PROCESS_EXPECT(process, answer, ...)                                                       \
    do {                                                                                           \
        char process_answer_[LINE_BYTES];                                                          \
        process_ask((process), process_answer_, __VA_ARGS__);                                      \
        assert_string_equal(process_answer_, (answer));                                            \
    } while (0)

#endif

// The operating system's calls of a program under test, counted, and one of them spoilt: it fails, or
// its process dies or stands still there.  The linker leads every call of the program and of the
// library in it through here (--wrap, see CMakeLists.txt); nothing in the library knows.
#ifndef LLM_TEST_SYSCALLS_H
#define LLM_TEST_SYSCALLS_H

#include <stdbool.h>
#include <stdint.h>

enum syscalls_deed {
    SYSCALLS_FAIL,        // it isn't made, and answers with an error
    SYSCALLS_INTERRUPT,   // likewise, with EINTR: a signal has come
    SYSCALLS_KILL_BEFORE, // SIGKILL instead of it
    SYSCALLS_KILL_AFTER,  // it is made first
    SYSCALLS_STOP_BEFORE, // SIGSTOP first
};

struct syscalls_plan {
    enum syscalls_deed deed;
    uint64_t n; // the n-th call from now on, 1 = the next, in whatever thread; 0: every second
    unsigned variant; // to fail: which of the errors that this call may have
    bool messages;    // only calls that talk to others count
};

void syscalls_arm(const struct syscalls_plan *plan);
// Ends it.  Was there such a call?
bool syscalls_disarm(void);

// Of the call that was spoilt last: its name, the error's, and how many errors it may have.
const char *syscalls_struck(int *ret_error, unsigned *ret_num_errors);
// What a test's own conversation needs isn't counted.
void syscalls_exempt(int fd);

#endif

// Stacks, and switching between them and the scheduler's.
#ifndef SIM_CORO_H
#define SIM_CORO_H

#include <stddef.h>

struct coro_stack {
    void *memory; // with a guard page below
    void *context;
    void *fake_stack; // of the address sanitizer
    void (*entry)(void *);
    void *arg;
};

void coro_prepare(struct coro_stack *stack, void (*entry)(void *), void *arg);
void coro_release(struct coro_stack *stack); // for another one
void coro_enter(struct coro_stack *stack);   // from the scheduler
void coro_leave(struct coro_stack *stack);   // to the scheduler
void coro_leave_for_good(struct coro_stack *stack) __attribute__((noreturn));

#endif

#include "coro.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#define HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_ASAN 1
#endif
#endif
#ifdef HAS_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { STACK_BYTES = 512 << 10, GUARD_BYTES = 4096 };

// Stacks that wait to be used again.
static void *spare[256];
static size_t num_spare;

static const void *scheduler_bottom;
static size_t scheduler_bytes;
static void *scheduler_fake;

// ---- the switch: all that a callee must preserve ----

#ifdef __x86_64__
void sim_coro_switch(void **save, void *load);
__asm__(".text\n"
        ".globl sim_coro_switch\n"
        ".hidden sim_coro_switch\n"
        ".type sim_coro_switch, @function\n"
        "sim_coro_switch:\n"
        "    push %rbp\n    push %rbx\n    push %r12\n    push %r13\n    push %r14\n    push %r15\n"
        "    mov %rsp, (%rdi)\n"
        "    mov %rsi, %rsp\n"
        "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbx\n    pop %rbp\n"
        "    ret\n"
        ".size sim_coro_switch, . - sim_coro_switch\n");

static void *scheduler_context;

static void begin(void);

static void
prepare_context(struct coro_stack *stack)
{
    void **top = (void **)((char *)stack->memory + STACK_BYTES);
    // The entry finds the stack as after a call: a return address below 16 aligned bytes.
    *--top = NULL;
    *--top = (void *)(uintptr_t)begin;
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    stack->context = top;
}

static void
release_context(struct coro_stack *stack)
{
    stack->context = NULL;
}

static void
switch_to(struct coro_stack *stack)
{
    sim_coro_switch(&scheduler_context, stack->context);
}

static void
switch_back(struct coro_stack *stack)
{
    sim_coro_switch(&stack->context, scheduler_context);
}
#else
static ucontext_t scheduler_context;

static void begin(void);

static void
prepare_context(struct coro_stack *stack)
{
    ucontext_t *context = calloc(1, sizeof(*context));
    getcontext(context);
    context->uc_stack.ss_sp = stack->memory;
    context->uc_stack.ss_size = STACK_BYTES;
    makecontext(context, begin, 0);
    stack->context = context;
}

static void
release_context(struct coro_stack *stack)
{
    free(stack->context);
    stack->context = NULL;
}

static void
switch_to(struct coro_stack *stack)
{
    swapcontext(&scheduler_context, stack->context);
}

static void
switch_back(struct coro_stack *stack)
{
    swapcontext(stack->context, &scheduler_context);
}
#endif

// ---- the same for the address sanitizer ----

static void
leaving_scheduler(struct coro_stack *stack)
{
#ifdef HAS_ASAN
    __sanitizer_start_switch_fiber(&scheduler_fake, stack->memory, STACK_BYTES);
#else
    (void)stack;
#endif
}

static void
back_in_scheduler(void)
{
#ifdef HAS_ASAN
    __sanitizer_finish_switch_fiber(scheduler_fake, NULL, NULL);
#endif
}

static void
leaving_coroutine(struct coro_stack *stack, int for_good)
{
#ifdef HAS_ASAN
    __sanitizer_start_switch_fiber(for_good ? NULL : &stack->fake_stack, scheduler_bottom,
                                   scheduler_bytes);
#else
    (void)stack;
    (void)for_good;
#endif
}

static void
in_coroutine(struct coro_stack *stack)
{
#ifdef HAS_ASAN
    __sanitizer_finish_switch_fiber(stack->fake_stack, &scheduler_bottom, &scheduler_bytes);
#else
    (void)stack;
    (void)scheduler_bottom;
    (void)scheduler_bytes;
    (void)scheduler_fake;
#endif
}

static struct coro_stack *entering;

static void
begin(void)
{
    struct coro_stack *stack = entering;
    in_coroutine(stack);
    stack->entry(stack->arg);
    abort();
}

void
coro_prepare(struct coro_stack *stack, void (*entry)(void *), void *arg)
{
    if (num_spare > 0) {
        stack->memory = spare[--num_spare];
    } else {
        char *memory = mmap(NULL, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0) {
            perror("no memory for a stack");
            exit(1);
        }
        stack->memory = memory + GUARD_BYTES;
    }
#ifdef HAS_ASAN
    // Whoever used it before may have vanished in the middle of a function.
    __asan_unpoison_memory_region(stack->memory, STACK_BYTES);
#endif
    stack->entry = entry;
    stack->arg = arg;
    stack->fake_stack = NULL;
    prepare_context(stack);
}

void
coro_release(struct coro_stack *stack)
{
    release_context(stack);
    spare[num_spare++] = stack->memory;
    stack->memory = NULL;
}

void
coro_enter(struct coro_stack *stack)
{
    entering = stack;
    leaving_scheduler(stack);
    switch_to(stack);
    back_in_scheduler();
}

void
coro_leave(struct coro_stack *stack)
{
    leaving_coroutine(stack, 0);
    switch_back(stack);
    in_coroutine(stack);
}

void
coro_leave_for_good(struct coro_stack *stack)
{
    leaving_coroutine(stack, 1);
    switch_back(stack);
    abort();
}

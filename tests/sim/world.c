// Chance, the trace, and the end of a run that has failed.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "sim.h"

struct sim_world sim;

static uint64_t rng_state;
static uint64_t aside_state;

void
sim_seed(uint64_t seed)
{
    rng_state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    aside_state = ~rng_state;
}

// splitmix64
static uint64_t
draw(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint64_t
sim_random(void)
{
    return draw(&rng_state);
}

uint64_t
sim_aside(uint64_t end)
{
    return draw(&aside_state) % end;
}

uint64_t
sim_below(uint64_t end)
{
    return sim_random() % end;
}

uint64_t
sim_between(uint64_t first, uint64_t last)
{
    return first + sim_below(last - first + 1);
}

bool
sim_chance(uint64_t one_in)
{
    return one_in > 0 && sim_below(one_in) == 0;
}

uint64_t
sim_hash(uint64_t a, uint64_t b)
{
    uint64_t z = (a ^ b) * UINT64_C(0x9fb21c651e98df25) + (a >> 32) + UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
    return z ^ z >> 32;
}

static void
print_where(FILE *to)
{
    fprintf(to, "%10.3f ms  ", (double)sim.now_ns / 1e6);
}

void
sim_trace(const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    int bytes = vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    for (int i = 0; i < bytes && line[i] != '\0'; i++)
        sim.trace_hash = (sim.trace_hash ^ (uint8_t)line[i]) * UINT64_C(0x100000001b3);
    sim.trace_hash = sim_hash(sim.trace_hash, sim.now_ns);
    if (!sim.tracing)
        return;
    print_where(stdout);
    puts(line);
}

void
sim_fail(const char *format, ...)
{
    if (!sim.failed) {
        va_list args;
        va_start(args, format);
        vsnprintf(sim.failure, sizeof(sim.failure), format, args);
        va_end(args);
        if (sim.tracing) {
            print_where(stdout);
            printf("FAILED: %s\n", sim.failure);
        }
    }
    sim.failed = true;
    // The scheduler sees that the run has failed and never comes back here.
    if (sim.current != NULL)
        sim_yield();
}

#include "base/fork.h"

#include <stdatomic.h>
#include <unistd.h>

#include "base/base.h"

// Bits of a word, and descriptors that are remembered; a child keeps those beyond.
enum { BITS = 64, NUM_FDS = 1 << 20 };

static _Atomic uint64_t watched[NUM_FDS / BITS];
static atomic_int num_words; // in use, from the first
static atomic_uint num_forks;

void
lli_fork_watch(int fd)
{
    if (fd < 0 || fd >= NUM_FDS)
        return;
    int words = atomic_load(&num_words);
    while (words < fd / BITS + 1 &&
           !atomic_compare_exchange_weak(&num_words, &words, fd / BITS + 1)) {
    }
    atomic_fetch_or(&watched[fd / BITS], UINT64_C(1) << fd % BITS);
}

void
lli_fork_unwatch(int fd)
{
    if (fd >= 0 && fd < NUM_FDS)
        atomic_fetch_and(&watched[fd / BITS], ~(UINT64_C(1) << fd % BITS));
}

unsigned
lli_fork_count(void)
{
    return atomic_load_explicit(&num_forks, memory_order_relaxed);
}

void
lli_fork_in_child(void)
{
    atomic_fetch_add(&num_forks, 1);
    for (int i = 0; i < atomic_load(&num_words); i++) {
        uint64_t word = atomic_exchange(&watched[i], 0);
        for (int bit = 0; word != 0; bit++, word >>= 1) {
            if ((word & 1) != 0)
                close(i * BITS + bit);
        }
    }
}

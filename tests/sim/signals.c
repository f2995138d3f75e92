// Signals that the application handles: a call that one interrupts has done nothing, and says EINTR.
#include <errno.h>

#include "sim.h"

bool
sim_interrupted(void)
{
    const struct sim_process *process = sim_current_process();
    if (process->signal_one_in == 0 || sim_aside(process->signal_one_in) != 0)
        return false;
    sim.num_signals++;
    errno = EINTR;
    return true;
}

uint64_t
sim_interrupted_at(void)
{
    return sim_interrupted() ? sim.now_ns + sim_aside(UINT64_C(1) << sim_aside(25)) : SIM_NEVER;
}

#include "transport/lanes.h"

#include "base/log.h"

void
lli_lanes_open(struct lli_lanes *lanes, struct lli_loop *main, size_t num_lanes)
{
    lanes->main = main;
    lanes->num_lanes = lli_max(lli_min(num_lanes, LLI_NUM_LANES_MAX), 1);
    lanes->num_more = 0;
}

void
lli_lanes_close(struct lli_lanes *lanes)
{
    for (size_t i = 0; i < lanes->num_more; i++) {
        lli_loop_stop(&lanes->more[i]);
        lli_loop_close(&lanes->more[i]);
    }
    lanes->num_more = 0;
}

static bool
start_one(struct lli_lanes *lanes)
{
    struct lli_loop *loop = &lanes->more[lanes->num_more];
    if (lli_loop_open(loop, 0, NULL, NULL, NULL) != LLM_SUCCESS)
        return false;
    if (lli_loop_start(loop) != LLM_SUCCESS) {
        lli_loop_close(loop);
        return false;
    }
    lanes->num_more++;
    return true;
}

struct lli_loop *
lli_lanes_pick(struct lli_lanes *lanes, size_t index)
{
    size_t lane = index % lanes->num_lanes;
    while (lanes->num_more < lane) {
        if (!start_one(lanes)) {
            lli_log(LLM_LOG_WARN, "tcp", "data connections share a thread: no more can be started");
            return lanes->main;
        }
    }
    return lane == 0 ? lanes->main : &lanes->more[lane - 1];
}

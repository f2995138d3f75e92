#include "transport/lanes.h"

#include "base/log.h"

void
lli_lanes_init(struct lli_lanes *lanes, struct lli_loop *main, size_t num_lanes)
{
    memset(lanes, 0, sizeof(*lanes));
    lanes->main = main;
    lanes->num_lanes = lli_max(lli_min(num_lanes, LLI_NUM_LANES_MAX), 1);
}

static bool
start(struct lli_lane *lane)
{
    if (lli_loop_open(&lane->loop, 0, NULL, NULL, NULL) != LLM_SUCCESS)
        return false;
    if (lli_loop_start(&lane->loop) == LLM_SUCCESS)
        return true;
    lli_loop_close(&lane->loop);
    return false;
}

struct lli_loop *
lli_lanes_take(struct lli_lanes *lanes, size_t index)
{
    size_t number = index % lanes->num_lanes;
    if (number == 0)
        return lanes->main;
    struct lli_lane *lane = &lanes->more[number - 1];
    if (lane->num_users == 0 && !start(lane)) {
        lli_log(LLM_LOG_WARN, "tcp", "a data connection gets no thread of its own");
        return lanes->main;
    }
    lane->num_users++;
    return &lane->loop;
}

void
lli_lanes_give_back(struct lli_lanes *lanes, struct lli_loop *loop)
{
    if (loop == lanes->main)
        return;
    struct lli_lane *lane = LLI_CONTAINER_OF(loop, struct lli_lane, loop);
    if (--lane->num_users > 0)
        return;
    lli_loop_stop(loop);
    lli_loop_close(loop);
}

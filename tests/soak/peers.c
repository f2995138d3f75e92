// Links to the other seats, made and removed.
#include "soak/thread.h"

unsigned
choose_peer(const struct seat *seat, uint64_t *dice)
{
    unsigned num_seats = board->num_workers * SEATS_PER_WORKER;
    return (seat->index + 1 + (unsigned)roll(dice, num_seats - 1)) % num_seats;
}

static bool
is_linked(struct seat *seat, unsigned peer)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    return llm_get_link_info(seat->dd, seat_cluster(peer), &info) == LLM_SUCCESS &&
           info.state == LLM_LINK_READY;
}

void
link_to(struct thread *th, struct seat *seat, unsigned peer)
{
    char why[256];
    if (!seat->version_2 && seat->role != LLM_ROLE_DECODER)
        return;
    AT(th);
    llm_status status = seat_link(seat, peer, roll(&th->dice, 3) == 0, LINK_MS);
    llm_last_error(why, sizeof(why));
    WRONG_UNLESS(status == LLM_SUCCESS || status == LLM_ALREADY_LINK || status == LLM_LINK_FAILED ||
                     status == LLM_PROCESSING_LINK || status == LLM_WAIT_PROC_TIMEOUT ||
                     status == LLM_TIMEOUT,
                 "llm_link_clusters: %s: %s", llm_status_name(status), why);
    if (status == LLM_SUCCESS)
        count(COUNT_links, 1);
}

void
perhaps_link(struct thread *th, struct seat *seat, unsigned peer)
{
    if (!is_linked(seat, peer) && roll(&th->dice, 2) == 0)
        link_to(th, seat, peer);
}

// Version 2 answers with the cluster's own status, version 1 with LLM_UNLINK_FAILED.
static bool
may_end_unlink(const struct seat *seat, llm_status status)
{
    switch (status) {
    case LLM_SUCCESS:
    case LLM_UNLINK_FAILED:
    case LLM_PROCESSING_LINK:
        return true;
    case LLM_LINK_BUSY:
    case LLM_TIMEOUT:
    case LLM_NOTIFY_PROMPT_UNLINK_FAILED:
        return seat->version_2;
    default:
        return false;
    }
}

void
unlink_from(struct thread *th, struct seat *seat)
{
    char why[256];
    AT(th);
    llm_status status =
        seat_unlink(seat, choose_peer(seat, &th->dice), LINK_MS, roll(&th->dice, 2) == 0);
    llm_last_error(why, sizeof(why));
    WRONG_UNLESS(may_end_unlink(seat, status), "llm_unlink_clusters: %s: %s",
                 llm_status_name(status), why);
    count(COUNT_unlinks, status == LLM_SUCCESS);
}

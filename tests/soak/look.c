// What a thread does beside transfers: copies within the process, notifications, link events.
#include <string.h>

#include "soak/job.h"

// ---- copies within the process ----

static llm_cache
describe_cache(struct cache *cache, llm_cache_desc *desc, int64_t shape[2], bool host)
{
    shape[0] = BLOCKS;
    shape[1] = (int64_t)strides[cache->memory.stride_class];
    *desc = (llm_cache_desc){
        .struct_size = sizeof(*desc),
        .placement = host ? LLM_PLACEMENT_HOST : LLM_PLACEMENT_DEVICE,
        .num_tensors = TENSORS,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = 2,
    };
    return (llm_cache){
        .struct_size = sizeof(llm_cache),
        .cache_id = cache->id,
        .desc = desc,
        .tensor_addrs = cache->memory.tensors,
        .num_tensor_addrs = TENSORS,
    };
}

void
copy_here(struct thread *th, struct seat *seat)
{
    unsigned stride_class = (unsigned)roll(&th->dice, CLASSES);
    AT(th);
    struct target *from = take_target(th, seat, 0, stride_class);
    struct target *to = take_target(th, seat, 1, stride_class);
    llm_cache_desc descs[2];
    int64_t shapes[2][2];
    char why[256];
    if (from == NULL || to == NULL)
        return;
    llm_cache src = describe_cache(&from->cache, &descs[0], shapes[0], false);
    llm_cache dst = describe_cache(&to->cache, &descs[1], shapes[1], roll(&th->dice, 2) == 0);
    struct job job = job_of_pull(0, 0, 0);
    job.shape = roll(&th->dice, 2) == 0 ? SHAPE_SLOT : SHAPE_BLOCKS;
    job.source_name = name_of(NO_SEAT, 0, from->background, 0, 0);
    job_choose_blocks(&job, &th->dice);
    job_foresee(&job, stride_class, stride_class);
    const uint64_t *lists[1] = {job.dst_blocks};
    llm_status status = job.shape == SHAPE_SLOT
                            ? llm_copy_kv_cache(seat->dd, &src, &dst, (uint32_t)job.src_blocks[0],
                                                (uint32_t)job.dst_blocks[0], 0, -1)
                            : llm_copy_kv_blocks(seat->dd, &src, &dst, job.src_blocks,
                                                 job.num_blocks, lists, &job.num_blocks, 1);
    WRONG_UNLESS(status == LLM_SUCCESS, "a copy ended with %s", llm_status_name(status));
    WRONG_UNLESS(memory_holds(&to->cache.memory, &job.content, to->background, true, why),
                 "a copy: %s", why);
    to->checksum = memory_checksum(&to->cache.memory);
    count(COUNT_copies, 1);
}

// ---- notifications, events, and looking inside ----

void
poll_notes(struct thread *th, struct seat *seat)
{
    struct note note;
    uint64_t from;
    size_t num_bytes;
    AT(th);
    for (unsigned i = 0; i < 200; i++) {
        if (llm_poll_notification(seat->dd, &from, &note, sizeof(note), &num_bytes) != LLM_SUCCESS)
            return;
        WRONG_UNLESS(num_bytes >= 8 && note.magic == NOTE_MAGIC && seat_cluster(note.seat) == from,
                     "a notification of %zu bytes from cluster %llu isn't one", num_bytes,
                     (unsigned long long)from);
        count(COUNT_notifications, 1);
    }
}

// A link that works can become suspect, break or be removed; one that is suspect be ready again, break
// or be removed; one that has broken be removed or replaced.
static bool
may_follow(uint32_t before, uint32_t state)
{
    if (state == LLM_LINK_READY)
        return before != LLM_LINK_READY;
    if (state == LLM_LINK_SUSPECT)
        return before == LLM_LINK_READY;
    return before == LLM_LINK_READY || before == LLM_LINK_SUSPECT || before == LLM_LINK_BROKEN;
}

// A silence that is shorter than the dead time ends well.
static void
note_silence(struct seat *seat, unsigned peer, const llm_link_info *info)
{
    unsigned bit = 1u << peer;
    count(COUNT_silences, info->state == LLM_LINK_SUSPECT);
    if (info->state == LLM_LINK_READY && seat->link_states[peer] == LLM_LINK_SUSPECT) {
        count(COUNT_heard_again, 1);
        atomic_fetch_or(&seat->heard_again, bit);
    } else if (info->state != LLM_LINK_SUSPECT) {
        atomic_fetch_and(&seat->heard_again, ~bit);
    }
    WRONG_UNLESS(info->state != LLM_LINK_BROKEN || seat->dead_ms < PATIENT_DEAD_MS ||
                     strstr(info->reason, "has been silent") == NULL,
                 "cluster %llu gave up cluster %llu, which stood still for less than %u ms: %s",
                 (unsigned long long)seat_cluster(seat->index),
                 (unsigned long long)info->cluster_id, seat->dead_ms, info->reason);
}

void
poll_events(struct thread *th, struct seat *seat)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    AT(th);
    pthread_mutex_lock(&seat->events_lock);
    while (llm_poll_link_event(seat->dd, &info) == LLM_SUCCESS) {
        uint64_t peer = info.cluster_id - FIRST_CLUSTER;
        if (WRONG_UNLESS(info.state >= LLM_LINK_READY && info.state <= LLM_LINK_SUSPECT,
                         "an event of cluster %llu, state %u", (unsigned long long)info.cluster_id,
                         info.state))
            break;
        // Another program's, which has got the port of a seat that is gone: version 2 links with whoever
        // listens.
        if (peer >= SEATS_MAX)
            continue;
        WRONG_UNLESS(may_follow(seat->link_states[peer], info.state),
                     "cluster %llu: after state %u an event tells of state %u of cluster %llu: %s",
                     (unsigned long long)seat_cluster(seat->index), seat->link_states[peer],
                     info.state, (unsigned long long)info.cluster_id, info.reason);
        note_silence(seat, (unsigned)peer, &info);
        seat->link_states[peer] = info.state;
        count(COUNT_events, 1);
    }
    pthread_mutex_unlock(&seat->events_lock);
}

void
look_inside(struct thread *th, struct seat *seat)
{
    uint64_t ids[SEATS_MAX];
    size_t num_ids;
    AT(th);
    WRONG_UNLESS(llm_list_links(seat->dd, ids, SEATS_MAX, &num_ids) == LLM_SUCCESS,
                 "the list of links");
    WRONG_UNLESS(llm_transfer_poll(seat->dd, roll(&th->dice, UINT64_MAX)) == LLM_PARAM_INVALID,
                 "a transfer that doesn't exist");
}

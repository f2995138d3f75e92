// One transfer: what is asked, and what must have come after success.
#ifndef LLM_SOAK_JOB_H
#define LLM_SOAK_JOB_H

#include "soak/thread.h"

enum { NOTE_MAGIC = 0x50a4, LIST_MAX = 8 * BLOCKS };

struct note {
    uint32_t magic;
    uint32_t seat;
    uint64_t filler[16];
};

enum shape { SHAPE_BLOCKS, SHAPE_SLOT, SHAPE_SLOT_TO_BLOCKS };

struct job {
    bool push;
    enum shape shape;
    unsigned peer;
    uint64_t peer_incarnation;
    uint64_t remote_card;
    uint64_t generation; // 0: any
    bool by_key;
    llm_cache_key key;
    bool by_address;
    uint64_t addresses[TENSORS];
    int64_t local_id;
    struct target *target; // of a pull
    uint64_t source_name;  // seat, incarnation and serial number of what is moved
    uint64_t src_blocks[LIST_MAX];
    uint64_t dst_blocks[LIST_MAX];
    size_t num_blocks;
    size_t num_once; // after so many the list is repeated
    int src_layer;   // -1: all
    int dst_layer;
    int64_t size;
    struct note note;
    uint64_t patience; // answers until the caller has enough; 0: it has no end
    llm_kv_cache_ext_param param;
    struct content content;
    uint64_t num_bytes;
};

// A pull of the peer's cache with that card, read after its incarnation.  The shape may be changed
// before job_choose, which needs it.
struct job job_of_pull(unsigned peer, uint64_t incarnation, uint64_t card);
// Takes the target and chooses all that is still open.  False: told, or nothing to do.
bool job_choose_pull(struct thread *th, struct seat *seat, unsigned target_number, struct job *job);
void job_choose_blocks(struct job *job, uint64_t *dice);
// Makes the list of blocks longer: the same again, `times` times.
void job_repeat(struct job *job, unsigned times);
void job_choose_param(struct job *job, unsigned seat, uint64_t *dice);
// What the destination must hold afterwards.
void job_foresee(struct job *job, unsigned src_class, unsigned dst_class);

llm_cache_index job_index(const struct job *job);
llm_status job_call(struct seat *seat, const struct job *job, uint64_t *ret_transfer);
// Ends a started transfer, in one of several ways.
llm_status job_end(struct thread *th, struct seat *seat, uint64_t transfer);

// Starts pulls into different targets; those that could not begin have transfer 0.
size_t start_pulls(struct thread *th, struct seat *seat, struct job jobs[STARTED_MAX],
                   uint64_t transfers[STARTED_MAX]);

// The peer has been the same incarnation all the time, so names and sizes are what was read.
bool job_same_peer(const struct job *job);
void job_count(struct seat *seat, const struct job *job, llm_status status);
void job_judge_pull(struct seat *seat, const struct job *job, llm_status status);

#endif

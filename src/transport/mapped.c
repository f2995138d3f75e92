#include "transport/mapped.h"

#include <errno.h>
#include <sys/uio.h>

#include "base/os.h"
#include "base/unwatched.h"
#include "device/copy.h"
#include "device/crc32c.h"

// How much is copied between two looks at the clock: about half a millisecond's worth.
static const uint64_t portion_bytes = (uint64_t)4 << 20;

void
lli_mapped_copy_init(struct lli_mapped_copy *copy, const struct lli_plan *plan,
                     const uintptr_t *src_tensors, const uintptr_t *dst_tensors)
{
    *copy = (struct lli_mapped_copy){
        .plan = plan,
        .src_tensors = src_tensors,
        .dst_tensors = dst_tensors,
        .streaming = plan->total_bytes >= LLI_COPY_STREAMING_BYTES_MIN,
    };
}

static struct lli_place
next_place(const struct lli_plan *plan, struct lli_place place)
{
    bool last = place.run + 1 == plan->num_runs;
    return (struct lli_place){
        .tensor = last ? place.tensor + 1 : place.tensor,
        .run = last ? 0 : place.run + 1,
    };
}

static const void *
source_at(const struct lli_mapped_copy *copy, struct lli_place place)
{
    if (place.tensor == copy->plan->num_tensors)
        return NULL;
    const struct lli_run *run = &copy->plan->runs[place.run];
    return (const void *)(copy->src_tensors[place.tensor] + run->src_offset + place.offset);
}

static void
copy_piece(const struct lli_mapped_copy *copy, struct lli_place place, uint64_t bytes,
           struct lli_place next)
{
    const struct lli_run *run = &copy->plan->runs[place.run];
    void *dst = (void *)(copy->dst_tensors[place.tensor] + run->dst_offset + place.offset);
    const void *src = source_at(copy, place);
    if (copy->streaming)
        lli_copy_streaming(dst, src, bytes, source_at(copy, next));
    else
        lli_copy_cached(dst, src, bytes);
}

// Where a look has found memory, so much is read before the next one.
static const uint64_t look_bytes = (uint64_t)1 << 20;

// Writes the zeros of a hole at the current position, of at most `bytes`; how many it were, or 0.
static uint64_t
fill_hole(struct lli_mapped_copy *copy, struct lli_place place, uint64_t bytes)
{
    const struct lli_run *run = &copy->plan->runs[place.run];
    if (copy->holes.num_files == 0 || copy->position < copy->looked_until ||
        copy->plan->total_bytes < LLI_LOOKED_AT_BYTES_MIN)
        return 0;
    uintptr_t src = copy->src_tensors[place.tensor] + run->src_offset + place.offset;
    uint64_t hole_bytes = lli_hole_bytes(&copy->holes, src, bytes);
    if (hole_bytes == 0)
        copy->looked_until = copy->position + look_bytes;
    LLI_UNWATCHED_BEGIN();
    memset((void *)(copy->dst_tensors[place.tensor] + run->dst_offset + place.offset), 0,
           hole_bytes);
    LLI_UNWATCHED_END();
    return hole_bytes;
}

// How many of so many bytes are read before the next look.
static uint64_t
bytes_to_read(const struct lli_mapped_copy *copy, uint64_t bytes)
{
    return copy->looked_until > copy->position ? lli_min(bytes, copy->looked_until - copy->position)
                                               : bytes;
}

// Behind `bytes` of the run.
static struct lli_place
go_on(const struct lli_plan *plan, struct lli_place place, uint64_t bytes)
{
    place.offset += bytes;
    return place.offset == plan->runs[place.run].bytes ? next_place(plan, place) : place;
}

// They lie on the stack of a caller whose thread may have little of it.
enum { PIECES_PER_READ = 128 };

// Reads the pieces from 1 on; piece 0 is the proof.  Both in one call, which sees one memory: a process
// that executes another program keeps its number and its pidfd, and may have other bytes at the same
// addresses.  Bytes, or -1.
static ssize_t
read_proved(const struct lli_process *owner, struct iovec *local, struct iovec *remote,
            size_t num_pieces)
{
    uint64_t proof = ~owner->proof;
    local[0] = (struct iovec){.iov_base = &proof, .iov_len = sizeof(proof)};
    remote[0] = (struct iovec){.iov_base = (void *)owner->proof_at, .iov_len = sizeof(proof)};
    ssize_t got =
        LLI_RETRY(process_vm_readv(owner->thread, local, num_pieces, remote, num_pieces, 0));
    if (got >= 0 && proof != owner->proof)
        errno = ESRCH;
    if (got < 0 || proof != owner->proof)
        return -1;
    if (got == (ssize_t)sizeof(proof) && num_pieces > 1) {
        errno = EFAULT;
        return -1;
    }
    return got - (ssize_t)sizeof(proof);
}

bool
lli_mapped_can_read(const struct lli_process *owner)
{
    struct iovec local;
    struct iovec remote;
    return read_proved(owner, &local, &remote, 1) == 0;
}

// The pieces from the current position on, as many as one read takes, behind the proof.
static size_t
collect_pieces(const struct lli_mapped_copy *copy, uint64_t bytes, struct iovec *local,
               struct iovec *remote)
{
    const struct lli_plan *plan = copy->plan;
    struct lli_place place = lli_plan_locate(plan, copy->position);
    size_t num_pieces = 1;
    while (bytes > 0 && num_pieces < PIECES_PER_READ) {
        const struct lli_run *run = &plan->runs[place.run];
        uint64_t piece_bytes = lli_min(run->bytes - place.offset, bytes);
        uintptr_t dst = copy->dst_tensors[place.tensor] + run->dst_offset + place.offset;
        uintptr_t src = copy->src_tensors[place.tensor] + run->src_offset + place.offset;
        local[num_pieces] = (struct iovec){.iov_base = (void *)dst, .iov_len = piece_bytes};
        remote[num_pieces] = (struct iovec){.iov_base = (void *)src, .iov_len = piece_bytes};
        num_pieces++;
        bytes -= piece_bytes;
        place.offset = 0;
        if (++place.run == plan->num_runs) {
            place.run = 0;
            place.tensor++;
        }
    }
    return num_pieces;
}

static bool
read_some(struct lli_mapped_copy *copy, uint64_t end)
{
    struct iovec local[PIECES_PER_READ];
    struct iovec remote[PIECES_PER_READ];
    while (copy->position < end) {
        size_t num_pieces = collect_pieces(copy, end - copy->position, local, remote);
        ssize_t got = read_proved(&copy->owner, local, remote, num_pieces);
        if (got < 0) {
            copy->error = errno;
            return true;
        }
        copy->position += (uint64_t)got;
    }
    return copy->position == copy->plan->total_bytes;
}

// ---- with checksums ----

// What is summed up, copied and summed up again at a time: of mapped memory so much as stays in the
// first cache, three times, of another process' as much as makes a system call worth while and the
// caller's stack bears.
enum { CHECKED_BYTES = 4 << 10, CHECKED_READ_BYTES = 8 << 10 };

static bool
read_piece(const struct lli_process *owner, void *dst, uintptr_t src, size_t bytes)
{
    struct iovec local[2] = {[1] = {.iov_base = dst, .iov_len = bytes}};
    struct iovec remote[2] = {[1] = {.iov_base = (void *)src, .iov_len = bytes}};
    ssize_t got = read_proved(owner, local, remote, 2);
    if (got >= 0 && (size_t)got < bytes)
        errno = EFAULT;
    return got == (ssize_t)bytes;
}

// The sum of the source; of another process' memory that of what is read a second time.
static bool
sum_source(const struct lli_mapped_copy *copy, uintptr_t src, size_t bytes, uint32_t *ret_sum)
{
    uint8_t again[CHECKED_READ_BYTES];
    if (copy->owner.thread == 0) {
        *ret_sum = lli_crc32c(0, (const void *)src, bytes);
        return true;
    }
    if (!read_piece(&copy->owner, again, src, bytes))
        return false;
    *ret_sum = lli_crc32c(0, again, bytes);
    return true;
}

static int
copy_checked(const struct lli_mapped_copy *copy, struct lli_place place, size_t bytes)
{
    const struct lli_run *run = &copy->plan->runs[place.run];
    uint8_t *dst = (uint8_t *)(copy->dst_tensors[place.tensor] + run->dst_offset + place.offset);
    uintptr_t src = copy->src_tensors[place.tensor] + run->src_offset + place.offset;
    uint32_t sum;
    if (!sum_source(copy, src, bytes, &sum))
        return errno;
    if (copy->owner.thread == 0)
        lli_copy_cached(dst, (const void *)src, bytes);
    else if (!read_piece(&copy->owner, dst, src, bytes))
        return errno;
    return lli_crc32c(0, dst, bytes) == sum ? 0 : EBADMSG;
}

static bool
copy_checked_until(struct lli_mapped_copy *copy, uint64_t end)
{
    const struct lli_plan *plan = copy->plan;
    uint64_t bytes_max = copy->owner.thread == 0 ? CHECKED_BYTES : CHECKED_READ_BYTES;
    struct lli_place place = lli_plan_locate(plan, copy->position);
    while (copy->position < end) {
        uint64_t run_bytes = plan->runs[place.run].bytes;
        uint64_t bytes = lli_min(run_bytes - place.offset, end - copy->position);
        uint64_t hole_bytes = fill_hole(copy, place, bytes);
        bytes = hole_bytes > 0 ? hole_bytes : lli_min(bytes_to_read(copy, bytes), bytes_max);
        if (hole_bytes == 0)
            copy->error = copy_checked(copy, place, bytes);
        if (copy->error != 0)
            break;
        copy->position += bytes;
        place = go_on(plan, place, bytes);
    }
    return copy->error != 0 || copy->position == plan->total_bytes;
}

bool
lli_mapped_copy_some(struct lli_mapped_copy *copy, uint64_t bytes_max)
{
    const struct lli_plan *plan = copy->plan;
    uint64_t end = copy->position + lli_min(bytes_max, plan->total_bytes - copy->position);
    if (copy->position == end)
        return true;
    if (copy->checked)
        return copy_checked_until(copy, end);
    if (copy->owner.thread != 0)
        return read_some(copy, end);
    struct lli_place place = lli_plan_locate(plan, copy->position);
    while (copy->position < end) {
        uint64_t bytes = lli_min(plan->runs[place.run].bytes - place.offset, end - copy->position);
        uint64_t hole_bytes = fill_hole(copy, place, bytes);
        bytes = hole_bytes > 0 ? hole_bytes : bytes_to_read(copy, bytes);
        struct lli_place next = go_on(plan, place, bytes);
        if (hole_bytes == 0)
            copy_piece(copy, place, bytes, next);
        copy->position += bytes;
        place = next;
    }
    if (copy->streaming)
        lli_copy_fence();
    return copy->position == plan->total_bytes;
}

bool
lli_mapped_copy_all(struct lli_mapped_copy *copy, uint64_t deadline_ns)
{
    while (!lli_mapped_copy_some(copy, portion_bytes)) {
        if (lli_now_ns() >= deadline_ns)
            return false;
    }
    return true;
}

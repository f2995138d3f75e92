#include "transport/view.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/mem.h"
#include "base/os.h"

static bool
header_is_sound(const struct lli_segment_header *header, uint64_t incarnation, size_t num_devices)
{
    return header->magic == LLI_SEGMENT_MAGIC && header->version == LLI_SEGMENT_VERSION &&
           header->incarnation == incarnation && header->num_devices == num_devices;
}

// Of the pools of peers, in all views of this process.
static _Atomic uint64_t bytes_mapped;

void
lli_views_in_child(void)
{
    atomic_store(&bytes_mapped, 0);
}

// A power of two; mappings lie in its upper part, but under tools that run the program themselves.
static uint64_t
address_space_bytes(const void *mapping)
{
    return UINT64_C(2) << (63 - __builtin_clzll((uintptr_t)mapping | 1));
}

static bool
reserve(uint64_t bytes, const void *mapping, char *why, size_t why_size)
{
    uint64_t most = lli_max(address_space_bytes(mapping) / LLI_OWN_ADDRESS_SHARE,
                            2 * lli_physical_memory_bytes());
    uint64_t mapped = atomic_fetch_add(&bytes_mapped, bytes);
    if (mapped <= most && bytes <= most - mapped)
        return true;
    atomic_fetch_sub(&bytes_mapped, bytes);
    snprintf(
        why, why_size,
        "its pool of %llu bytes doesn't fit: %llu bytes of peers' pools are mapped, at most %llu",
        (unsigned long long)bytes, (unsigned long long)mapped, (unsigned long long)most);
    return false;
}

static bool
map_pool(struct lli_view *view, int fd, char *why, size_t why_size)
{
    struct lli_memory_file *pool = &view->pools[view->num_devices];
    struct stat info;
    if (fstat(fd, &info) != 0 || info.st_size <= 0) {
        snprintf(why, why_size, "can't look at the peer's pool %zu: %s", view->num_devices,
                 strerror(errno));
        return false;
    }
    pool->bytes = (uint64_t)info.st_size;
    if (!reserve(pool->bytes, view->segment, why, why_size))
        return false;
    pool->base = lli_memory_file_map(fd, pool->bytes);
    if (pool->base == NULL) {
        snprintf(why, why_size, "can't map the peer's pool %zu: %s", view->num_devices,
                 strerror(errno));
        atomic_fetch_sub(&bytes_mapped, pool->bytes);
        return false;
    }
    pool->fd = lli_memory_file_open_again(fd);
    view->num_devices++;
    return true;
}

static void
unmap_pool(struct lli_memory_file *pool)
{
    munmap((void *)(uintptr_t)pool->base, pool->bytes);
    atomic_fetch_sub(&bytes_mapped, pool->bytes);
    lli_memory_file_let_go(pool->fd);
}

// Reads the incarnation out of the peer's own directory, at the address that it names: proof that
// the system permits reading this process, and that it is the right one.
static bool
can_read_as(struct lli_view *view, pid_t thread)
{
    uint64_t address = view->segment->header.own_address;
    struct lli_process owner = {
        .thread = thread,
        .proof_at = address + offsetof(struct lli_segment_header, incarnation),
        .proof = view->incarnation,
    };
    if (!lli_mapped_can_read(&owner))
        return false;
    view->owner = owner;
    return true;
}

// By the thread that the peer names; where that number is nobody's, or a stranger's, by the process.
static bool
can_read_process(struct lli_view *view)
{
    pid_t thread = (pid_t)LLI_LOAD(view->segment->header.own_thread);
    // The number is the peer's word: it must be a thread of the process that the kernel has named.
    bool is_its_own = thread > 0 && syscall(SYS_tgkill, view->pid, thread, 0) == 0;
    return (is_its_own && can_read_as(view, thread)) || can_read_as(view, view->pid);
}

static void
prepare_reading(struct lli_view *view, pid_t pid, char *why, size_t why_size)
{
    view->pid = pid;
    view->pidfd = -1;
    view->same_process = pid == getpid();
    why[0] = '\0';
    if (view->same_process) {
        view->can_read = true;
        return;
    }
    // First the descriptor, then the proof: what has been proved is what the descriptor watches.
    if (pid > 0)
        view->pidfd = lli_keep_fd((int)LLI_RETRY(syscall(SYS_pidfd_open, pid, 0)));
    if (view->pidfd >= 0 && can_read_process(view)) {
        view->can_read = true;
        return;
    }
    int error = errno;
    snprintf(why, why_size, "process_vm_readv: %s",
             pid > 0 ? strerror(error) : "the peer is in another pid namespace");
    // Where reading isn't permitted, the descriptor still tells whether the peer lives.
    if (view->pidfd >= 0 && error != EPERM) {
        close(view->pidfd);
        view->pidfd = -1;
    }
}

void
lli_view_watch(struct lli_view *view, int pidfd)
{
    if (view->pidfd < 0 && !view->same_process)
        view->pidfd = pidfd;
    else if (pidfd >= 0)
        close(pidfd);
}

void
lli_view_hold_life_line(struct lli_view *view, int fd)
{
    if (view->pidfd >= 0 || view->same_process || view->life_line >= 0)
        return;
    view->life_line = LLI_RETRY(fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
    lli_fork_watch(view->life_line);
}

// Nothing but the descriptor's own word is an end.
static bool
tells_end(int fd, short events, short ends)
{
    struct pollfd wait = {.fd = fd, .events = events};
    return fd >= 0 && LLI_RETRY(poll(&wait, 1, 0)) > 0 && (wait.revents & ends) != 0;
}

bool
lli_view_has_ended(const struct lli_view *view)
{
    return tells_end(view->pidfd, POLLIN, POLLIN);
}

bool
lli_view_is_alive(const struct lli_view *view)
{
    return !lli_view_has_ended(view) &&
           !tells_end(view->life_line, POLLRDHUP, POLLRDHUP | POLLHUP | POLLERR);
}

struct lli_view *
lli_view_map(const int *fds, size_t num_fds, uint64_t incarnation, size_t num_devices, pid_t pid,
             char *why, size_t why_size)
{
    if (num_devices == 0 || num_devices > LLI_NUM_DEVICES_MAX || num_fds != 1 + num_devices) {
        snprintf(why, why_size, "the peer sent %zu memory files for %zu devices", num_fds,
                 num_devices);
        return NULL;
    }
    struct lli_view *view = lli_calloc(1, sizeof(*view));
    struct lli_memory_file *pools = lli_calloc(num_devices, sizeof(*pools));
    if (view == NULL || pools == NULL) {
        snprintf(why, why_size, "out of memory");
        lli_free(pools);
        lli_free(view);
        return NULL;
    }
    view->incarnation = incarnation;
    view->pools = pools;
    view->pidfd = view->life_line = -1;
    view->segment = lli_memory_file_map(fds[0], sizeof(struct lli_segment_layout));
    if (view->segment == NULL) {
        snprintf(why, why_size, "can't map the peer's directory: %s", strerror(errno));
        goto unmap;
    }
    if (!header_is_sound(&view->segment->header, incarnation, num_devices)) {
        snprintf(why, why_size, "the peer's directory has another layout or owner");
        goto unmap;
    }
    for (size_t i = 0; i < num_devices; i++) {
        if (!map_pool(view, fds[1 + i], why, why_size))
            goto unmap;
    }
    prepare_reading(view, pid, why, why_size);
    return view;

unmap:
    lli_view_unmap(view);
    return NULL;
}

void
lli_view_unmap(struct lli_view *view)
{
    if (view == NULL)
        return;
    for (size_t i = 0; i < view->num_devices; i++)
        unmap_pool(&view->pools[i]);
    if (view->segment != NULL)
        munmap((void *)(uintptr_t)view->segment, sizeof(*view->segment));
    if (view->pidfd >= 0)
        close(view->pidfd);
    lli_fork_unwatch(view->life_line);
    if (view->life_line >= 0)
        close(view->life_line);
    lli_free(view->pools);
    lli_free(view);
}

bool
lli_view_resolve(const struct lli_view *view, const struct lli_remote_cache *cache,
                 uint32_t first_tensor, uint32_t num_tensors, uintptr_t *ret_tensors)
{
    uint64_t all_tensors = cache->geometry.num_tensors;
    uint64_t num_addresses = all_tensors * view->num_devices;
    if (cache->first_address > LLI_NUM_ADDRESSES ||
        num_addresses > LLI_NUM_ADDRESSES - cache->first_address ||
        (uint64_t)first_tensor + num_tensors > all_tensors)
        return false;

    for (size_t device = 0; device < view->num_devices; device++) {
        const struct lli_memory_file *pool = &view->pools[device];
        for (uint32_t i = 0; i < num_tensors; i++) {
            uint64_t index = cache->first_address + device * all_tensors + first_tensor + i;
            uint64_t offset =
                atomic_load_explicit(&view->segment->addresses[index], memory_order_relaxed);
            if ((cache->flags & LLI_ENTRY_REGISTERED) != 0) {
                ret_tensors[device * num_tensors + i] = offset;
                continue;
            }
            if (offset > pool->bytes || cache->geometry.tensor_bytes > pool->bytes - offset)
                return false;
            ret_tensors[device * num_tensors + i] = (uintptr_t)(pool->base + offset);
        }
    }
    return true;
}

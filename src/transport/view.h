// A peer's memory on the same host, mapped read-only: its directory of caches and its pools.
//
// What is in there is the peer's to change at any moment: every value is copied out, then checked,
// then used.
#ifndef LLI_VIEW_H
#define LLI_VIEW_H

#include <sys/types.h>

#include "base/base.h"
#include "base/os.h"
#include "cache/segment.h"
#include "transport/mapped.h"

enum { LLI_NUM_DEVICES_MAX = 64, LLI_NUM_VIEW_FDS_MAX = 1 + LLI_NUM_DEVICES_MAX };

// All pools of peers that this process maps, together, leave so much of its address space to itself:
// one part in this many.
enum { LLI_OWN_ADDRESS_SHARE = 2 };

struct lli_view {
    const struct lli_segment_layout *segment;
    uint64_t incarnation; // of the peer
    size_t num_devices;
    struct lli_memory_file *pools; // num_devices

    // For memory that the peer's user registered, which isn't in the pools.
    bool same_process;
    _Atomic bool can_read; // by process_vm_readv, as far as is known, or because it is this process
    pid_t pid;             // of the peer
    int pidfd;             // tells whether it still is the peer's; -1: unknown, or this process
    int life_line;         // a connection to the peer, where there is no pidfd; -1: none
    struct lli_process owner; // of memory that is read
};

// Maps fds[0], the directory, and fds[1..], the pools, of the peer with that incarnation.  The
// descriptors stay the caller's.  `pid` is the peer's as the system knows it, 0 if it doesn't.  On
// failure `why` says what is wrong, and NULL is returned.  On success `why` says how registered
// memory will be read, if not with process_vm_readv.
struct lli_view *lli_view_map(const int *fds, size_t num_fds, uint64_t incarnation,
                              size_t num_devices, pid_t pid, char *why, size_t why_size);
void lli_view_unmap(struct lli_view *view);

// Watches the process with this pidfd, which is the view's from now on, unless it knows it already.
void lli_view_watch(struct lli_view *view, int pidfd);
// Without a pidfd: watches this connection to the peer, under a descriptor of the view's own.  The
// system closes the peer's end when it dies.  Who closes this end shuts it down.
void lli_view_hold_life_line(struct lli_view *view, int fd);
// Has the peer's process ended?  False if that can't be known.
bool lli_view_has_ended(const struct lli_view *view);
// False as well if the life line has ended: the peer has died, or has closed it.
bool lli_view_is_alive(const struct lli_view *view);

// Finds the addresses, in this process or for registered memory in the peer's, of `num_tensors` tensors of a cache from `first_tensor` on,
// for every device.  False if the directory points outside the pools.
bool lli_view_resolve(const struct lli_view *view, const struct lli_remote_cache *cache,
                      uint32_t first_tensor, uint32_t num_tensors, uintptr_t *ret_tensors);

// Holes in the peer's pools.
static inline struct lli_holes
lli_view_holes(const struct lli_view *view)
{
    return (struct lli_holes){.files = view->pools, .num_files = view->num_devices};
}

// In a forked child: it has none of its parent's mappings.
void lli_views_in_child(void);

#endif

// Memory files: what peers on this host map.
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/os.h"

// A core dump would bring in every page of a sparse file, and hold the caches of a peer.  A forked child
// would keep all of that memory when this process is dead.
static void
keep_here(void *base, uint64_t bytes)
{
    (void)madvise(base, bytes, MADV_DONTDUMP);
    (void)madvise(base, bytes, MADV_DONTFORK);
}

// A second descriptor for the same file that can't be mapped writable.
int
lli_memory_file_open_again(int fd)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int again = lli_keep_fd(LLI_RETRY(open(path, O_RDONLY | O_CLOEXEC)));
    lli_fork_watch(again);
    return again;
}

void
lli_memory_file_let_go(int fd)
{
    if (fd < 0)
        return;
    lli_fork_unwatch(fd);
    close(fd);
}

static uint64_t
file_size_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return UINT64_MAX;
    return limit.rlim_cur;
}

void
lli_memory_file_explain(int error, char *why, size_t why_size)
{
    if (error == EFBIG)
        snprintf(why, why_size, "files may have %llu bytes here (RLIMIT_FSIZE, ulimit -f)",
                 (unsigned long long)file_size_limit());
    else
        snprintf(why, why_size, "%s", strerror(error));
}

int
lli_memory_file_create(const char *name, uint64_t bytes, void **ret_base)
{
    int fd = lli_keep_fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd < 0)
        return -1;
    // The system would end this process with SIGXFSZ.
    if (bytes > file_size_limit()) {
        errno = EFBIG;
        goto close_fd;
    }
    if (bytes > INT64_MAX || LLI_RETRY(ftruncate(fd, (off_t)bytes)) != 0)
        goto close_fd;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED)
        goto close_fd;
    keep_here(base, bytes);
    // What peers get can only be read.  Without /proc a seal does that, which forbids returning pages too.
    int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    int read_only_fd = lli_memory_file_open_again(fd);
    bool has_proc = read_only_fd >= 0 || errno != ENOENT;
    if (has_proc && read_only_fd < 0)
        goto unmap;
    if (LLI_RETRY(fcntl(fd, F_ADD_SEALS, has_proc ? seals : seals | F_SEAL_FUTURE_WRITE)) != 0) {
        int reason = errno;
        lli_memory_file_let_go(read_only_fd);
        errno = reason;
        goto unmap;
    }
    *ret_base = base;
    if (!has_proc) {
        lli_log(
            LLM_LOG_WARN, "os",
            "/proc is not mounted: what is freed of %llu bytes of memory stays with this process, "
            "and peers on this host are reached over tcp",
            (unsigned long long)bytes);
        lli_fork_watch(fd);
        return fd;
    }
    close(fd);
    return read_only_fd;

unmap:;
    int reason = errno;
    munmap(base, bytes);
    errno = reason;
close_fd:;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

void
lli_memory_file_close(int fd, void *base, uint64_t bytes)
{
    munmap(base, bytes);
    lli_memory_file_let_go(fd);
}

const void *
lli_memory_file_map(int fd, uint64_t bytes)
{
    struct stat info;
    struct statfs system;
    int seals = LLI_RETRY(fcntl(fd, F_GET_SEALS));
    if (seals < 0 || fstat(fd, &info) != 0 || LLI_RETRY(fstatfs(fd, &system)) != 0)
        return NULL;
    // Without the seal the owner could shrink the file and kill us with SIGBUS; so could a file of huge
    // pages, of which there may be none when we look.
    if ((seals & F_SEAL_SHRINK) == 0 || system.f_type != TMPFS_MAGIC || info.st_size < 0 ||
        (uint64_t)info.st_size != bytes) {
        errno = EPROTO;
        return NULL;
    }
    void *base = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED)
        return NULL;
    keep_here(base, bytes);
    return base;
}

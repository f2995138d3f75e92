#include "cache/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"

static const uint64_t page_bytes = 4096;

struct lli_mapping {
    _Atomic unsigned references;
    int fd;
    void *base;
    uint64_t bytes;
};

// Takes the file and what is mapped there over, also when it fails.
static struct lli_mapping *
new_mapping(int fd, void *base, uint64_t bytes)
{
    struct lli_mapping *mapping = lli_calloc(1, sizeof(*mapping));
    if (mapping == NULL) {
        lli_memory_file_close(fd, base, bytes);
        return NULL;
    }
    mapping->references = 1;
    mapping->fd = fd;
    mapping->base = base;
    mapping->bytes = bytes;
    return mapping;
}

struct lli_mapping *
lli_mapping_hold(struct lli_mapping *mapping)
{
    atomic_fetch_add(&mapping->references, 1);
    return mapping;
}

void
lli_mapping_put(struct lli_mapping *mapping)
{
    if (atomic_fetch_sub(&mapping->references, 1) > 1)
        return;
    lli_memory_file_close(mapping->fd, mapping->base, mapping->bytes);
    lli_free(mapping);
}

uint64_t
lli_pool_size(uint64_t bytes, const struct lli_pool_tier *tiers, size_t num_tiers)
{
    if (bytes > 0)
        return bytes;
    for (size_t i = 0; i < num_tiers; i++)
        bytes += tiers[i].total_bytes;
    return bytes;
}

static llm_status
open_classes(struct lli_pool *pool, const struct lli_pool_tier *tiers, size_t num_tiers)
{
    if (num_tiers == 0)
        return LLM_SUCCESS;
    pool->classes = lli_calloc(num_tiers, sizeof(*pool->classes));
    if (pool->classes == NULL)
        return LLM_OUT_OF_MEMORY;
    for (size_t i = 0; i < num_tiers; i++) {
        pool->classes[i].tier = tiers[i];
        lli_extents_init(&pool->classes[i].extents);
    }
    pool->num_classes = num_tiers;
    return LLM_SUCCESS;
}

llm_status
lli_pool_open(struct lli_pool *pool, uint64_t bytes, const struct lli_pool_tier *tiers,
              size_t num_tiers)
{
    void *base;
    char why[96];
    memset(pool, 0, sizeof(*pool));
    bytes = lli_pool_size(bytes, tiers, num_tiers);
    uint64_t file_bytes = lli_round_up(lli_min(bytes, INT64_MAX - page_bytes), page_bytes);
    pool->fd = lli_memory_file_create("llm-datadist-pool", file_bytes, &base);
    if (pool->fd < 0) {
        lli_memory_file_explain(errno, why, sizeof(why));
        return lli_fail(LLM_FAILED, "pool", "can't open a memory pool of %llu bytes: %s",
                        (unsigned long long)bytes, why);
    }
    pool->mapping = new_mapping(pool->fd, base, file_bytes);
    if (pool->mapping == NULL)
        return lli_fail(LLM_FAILED, "pool", "out of memory while opening a memory pool");
    pool->base = base;
    pool->bytes = file_bytes;
    lli_extents_init(&pool->extents);
    if (open_classes(pool, tiers, num_tiers) != LLM_SUCCESS ||
        lli_extents_add(&pool->extents, 0, bytes) != LLM_SUCCESS) {
        lli_pool_close(pool);
        return lli_fail(LLM_FAILED, "pool", "out of memory while opening a memory pool");
    }
    return LLM_SUCCESS;
}

void
lli_pool_close(struct lli_pool *pool)
{
    if (pool->base == NULL)
        return;
    for (size_t i = 0; i < pool->num_classes; i++)
        lli_extents_fini(&pool->classes[i].extents);
    lli_free(pool->classes);
    lli_extents_fini(&pool->extents);
    lli_mapping_put(pool->mapping);
    memset(pool, 0, sizeof(*pool));
}

static struct lli_pool_class *
find_class(struct lli_pool *pool, uint64_t bytes)
{
    for (size_t i = 0; i < pool->num_classes; i++) {
        if (bytes <= pool->classes[i].tier.buffer_bytes_max)
            return &pool->classes[i];
    }
    return NULL;
}

static uint64_t
granule(const struct lli_pool_class *class)
{
    return lli_max(class->tier.block_bytes, LLI_POOL_ALIGN);
}

static bool
alloc_from_class(struct lli_pool *pool, struct lli_pool_class *class, uint64_t bytes,
                 uint64_t *ret_offset)
{
    uint64_t chunk;
    bytes = lli_round_up(bytes, granule(class));
    if (lli_extents_take(&class->extents, bytes, LLI_POOL_ALIGN, ret_offset))
        return true;
    if (!lli_extents_take(&pool->extents, class->tier.total_bytes, LLI_POOL_ALIGN, &chunk))
        return false;
    if (lli_extents_add(&class->extents, chunk, class->tier.total_bytes) != LLM_SUCCESS) {
        lli_extents_give(&pool->extents, chunk, class->tier.total_bytes);
        return false;
    }
    return lli_extents_take(&class->extents, bytes, LLI_POOL_ALIGN, ret_offset);
}

bool
lli_pool_alloc(struct lli_pool *pool, uint64_t bytes, uint64_t *ret_offset)
{
    bool ok;
    if (bytes > pool->bytes)
        return false;
    if (pool->num_classes == 0) {
        ok = lli_extents_take(&pool->extents, lli_round_up(bytes, LLI_POOL_ALIGN), LLI_POOL_ALIGN,
                              ret_offset);
    } else {
        struct lli_pool_class *class = find_class(pool, bytes);
        ok = class != NULL && alloc_from_class(pool, class, bytes, ret_offset);
    }
    if (ok)
        pool->bytes_used += bytes;
    return ok;
}

static void
return_pages(struct lli_pool *pool, uint64_t offset, uint64_t bytes)
{
    // MADV_REMOVE: fallocate would need a file that is not sealed against writing.
    if (LLI_RETRY(madvise(pool->base + offset, bytes, MADV_REMOVE)) == 0)
        return;
    int error = errno;
    memset(pool->base + offset, 0, bytes); // NOLINT: within the pool
    if (!pool->keeps_pages)
        lli_log(LLM_LOG_WARN, "pool",
                "the memory of freed caches doesn't go back to the system: %s", strerror(error));
    pool->keeps_pages = true;
}

// Whoever still looks sees zeros: whole pages go back to the system, others hold neighbours too.
static void
clear(struct lli_pool *pool, uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + bytes;
    uint64_t first_page = lli_min(lli_round_up(offset, page_bytes), end);
    uint64_t end_page = lli_max(end & ~(page_bytes - 1), first_page);
    memset(pool->base + offset, 0, first_page - offset);
    memset(pool->base + end_page, 0, end - end_page);
    if (end_page > first_page)
        return_pages(pool, first_page, end_page - first_page);
}

void
lli_pool_free(struct lli_pool *pool, uint64_t offset, uint64_t bytes)
{
    pool->bytes_used -= bytes;
    clear(pool, offset, bytes);
    if (pool->num_classes == 0) {
        lli_extents_give(&pool->extents, offset, lli_round_up(bytes, LLI_POOL_ALIGN));
        return;
    }
    struct lli_pool_class *class = find_class(pool, bytes);
    lli_extents_give(&class->extents, offset, lli_round_up(bytes, granule(class)));
}

/*
 * out_of_memory.cc - no exception leaves the library: each allocation of each method fails once, and
 * the method answers with a status and leaves its outputs alone.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include <new>

#include "check.h"

/* How many allocations of this thread succeed before one fails; negative: all. */
static thread_local int allocations_left = -1;

static void *
Allocate(size_t size)
{
    if (allocations_left >= 0 && allocations_left-- == 0) {
        return nullptr;
    }
    return std::malloc(size == 0 ? 1 : size);
}

/* The library's calls to operator new come here as well. */
void *
operator new(size_t size)
{
    void *memory = Allocate(size);
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
    return memory;
}

void *
operator new[](size_t size)
{
    return operator new(size);
}

void *
operator new(size_t size, const std::nothrow_t &) noexcept
{
    return Allocate(size);
}

void *
operator new[](size_t size, const std::nothrow_t &) noexcept
{
    return Allocate(size);
}

void
operator delete(void *memory) noexcept
{
    std::free(memory);
}

void
operator delete[](void *memory) noexcept
{
    std::free(memory);
}

void
operator delete(void *memory, size_t) noexcept
{
    std::free(memory);
}

void
operator delete[](void *memory, size_t) noexcept
{
    std::free(memory);
}

using namespace llm_datadist;

namespace {

/* Calls until a call ran without a failed allocation; returns how many it took. */
template <typename Call>
int
FailEach(const char *name, Status expected, Call call)
{
    for (int n = 0; n < 1000; n++) {
        allocations_left = n;
        Status status = LLM_SUCCESS;
        bool threw = false;
        try {
            status = call();
        } catch (...) {
            threw = true;
        }
        const bool all_succeeded = allocations_left >= 0;
        allocations_left = -1;
        if (threw) {
            std::cerr << name << ": an exception left with allocation " << n << " failing\n";
            check::Failures()++;
            return n;
        }
        if (all_succeeded) {
            if (!CHECK_EQ(status, expected)) {
                std::cerr << name << " with all allocations\n";
            }
            return n;
        }
        if (!CHECK_EQ(status, LLM_OUT_OF_MEMORY)) {
            std::cerr << name << " with allocation " << n << " failing\n";
        }
    }
    std::cerr << name << ": never enough memory\n";
    check::Failures()++;
    return -1;
}

} // namespace

int
main()
{
    check::Options options = {{OPTION_DEVICE_ID, "0"}, {OPTION_ENABLE_SET_ROLE, "1"}};
    CacheDesc desc;
    desc.num_tensors = 2;
    desc.data_type = DT_INT32;
    desc.shape = {4, 8};
    const CacheDesc no_tensors;
    std::vector<Status> rets = {1, 2};
    const std::vector<ClusterInfo> clusters = {check::ClusterAt(5, 1), check::ClusterAt(6, 1)};
    const std::vector<uint64_t> one_block = {0};
    const std::vector<std::vector<uint64_t>> two_lists = {{1}, {2}};

    /* A text for which there is no memory is empty. */
    allocations_left = 0;
    const AscendString no_text("a text");
    allocations_left = -1;
    CHECK(no_text == "");

    /* An object for which there is no memory answers LLM_FAILED. */
    allocations_left = 0;
    LlmDataDist nothing(1, LlmRole::kDecoder);
    allocations_left = -1;
    Cache cache;
    CHECK_EQ(nothing.Initialize(options), LLM_FAILED);
    CHECK_EQ(nothing.AllocateCache(desc, cache), LLM_FAILED);
    CHECK_EQ(nothing.UnlinkLlmClusters(clusters, rets), LLM_FAILED);
    nothing.Finalize();

    LlmDataDist dist(1, LlmRole::kDecoder);
    CHECK(FailEach("Initialize", LLM_SUCCESS, [&] { return dist.Initialize(options); }) > 0);

    /* cache_id 1 of a failed attempt that got past the core was given back. */
    CHECK(FailEach("AllocateCache", LLM_SUCCESS, [&] {
              const Status status = dist.AllocateCache(desc, cache);
              if (status != LLM_SUCCESS) {
                  CHECK_EQ(cache.cache_id, -1);
                  CHECK_EQ(cache.tensor_addrs.size(), 0);
                  CHECK_EQ(cache.cache_desc.shape.size(), 0);
              }
              return status;
          }) > 0);
    CHECK_EQ(cache.tensor_addrs.size(), 2);
    for (int64_t id = 1; id < cache.cache_id; id++) {
        CHECK_EQ(dist.DeallocateCache(id), LLM_KV_CACHE_NOT_EXIST);
    }

    CHECK(FailEach("SetRole", LLM_SUCCESS,
                   [&] { return dist.SetRole(LlmRole::kDecoder, options); }) > 0);
    CHECK(FailEach("LinkLlmClusters", LLM_PARAM_INVALID, [&] {
              const Status status = dist.LinkLlmClusters(clusters, rets, -1);
              CHECK_EQ(rets.size(), 2);
              return status;
          }) > 0);
    CHECK(FailEach("UnlinkLlmClusters", LLM_SUCCESS, [&] {
              const Status status = dist.UnlinkLlmClusters(clusters, rets);
              CHECK_EQ(rets.size(), 2);
              return status;
          }) > 0);
    CHECK(FailEach("CopyKvBlocks", LLM_SUCCESS,
                   [&] { return dist.CopyKvBlocks(cache, cache, one_block, two_lists); }) > 0);

    /* These need no memory. */
    const CacheIndex index{};
    CHECK_EQ(FailEach("PullKvBlocks", LLM_NOT_YET_LINK,
                      [&] { return dist.PullKvBlocks(index, cache, one_block, one_block); }),
             0);
    CHECK_EQ(
        FailEach("CopyKvCache", LLM_SUCCESS, [&] { return dist.CopyKvCache(cache, cache, 0, 1); }),
        0);
    return check::Result();
}

/*
 * llm_datadist.cc - llm_datadist::LlmDataDist over the C API.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * Each method translates its arguments, makes one call, and translates the results back; every check
 * is the core's.  The translated structs point into the caller's vectors, which is enough since the
 * core keeps no argument.  Reserved bytes are never touched: callers leave them uninitialized.
 *
 * No exception leaves: the only ones that can arise are those of our own vectors, which grow before
 * the core is called (or, in AllocateCache, after it, and then the cache is given back).
 */
#include "c_api.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <new>

namespace llm_datadist {

/* Hidden: a class inside an exported class would be exported with it. */
class __attribute__((visibility("hidden"))) LlmDataDist::Impl {
public:
    explicit Impl(::llm_c_datadist *instance) : dd(instance)
    {
    }
    ~Impl()
    {
        llm_destroy(dd);
    }
    Impl(const Impl &) = delete;
    Impl &operator=(const Impl &) = delete;

    ::llm_c_datadist *const dd;

    /* Guards num_devices against a second Initialize, whose options don't count. */
    std::mutex initialize_mutex;
    /* Addresses per tensor that AllocateCache makes room for; 0 while not initialized. */
    std::atomic<size_t> num_devices{0};
    /* The rules of version 2 hold: rets are appended to (§13.4). */
    std::atomic<bool> version_2{false};
};

namespace {

/* What rets' length is before the core has said anything about it. */
constexpr size_t kRetsUntouched = SIZE_MAX;

template <typename Call>
Status
WithoutExceptions(Call call) noexcept
{
    try {
        return call();
    } catch (const std::bad_alloc &) {
        return LLM_OUT_OF_MEMORY;
    } catch (...) {
        return LLM_FAILED;
    }
}

/* The C enum holds 0..3 only; 0 is as invalid as any other number the caller may have come up with. */
::llm_role
ToC(LlmRole role)
{
    switch (role) {
    case LlmRole::kPrompt:
        return LLM_ROLE_PROMPT;
    case LlmRole::kDecoder:
        return LLM_ROLE_DECODER;
    case LlmRole::kMix:
        return LLM_ROLE_MIX;
    default:
        return static_cast<::llm_role>(0);
    }
}

std::vector<::llm_option>
ToC(const std::map<AscendString, AscendString> &options)
{
    std::vector<::llm_option> c_options;
    c_options.reserve(options.size());
    for (const auto &option : options) {
        c_options.push_back({option.first.GetString(), option.second.GetString()});
    }
    return c_options;
}

::llm_cache_desc
ToC(const CacheDesc &desc)
{
    ::llm_cache_desc c_desc = {};
    c_desc.struct_size = sizeof(c_desc);
    c_desc.placement = static_cast<uint32_t>(desc.placement);
    c_desc.num_tensors = desc.num_tensors;
    c_desc.data_type = static_cast<int32_t>(desc.data_type);
    c_desc.shape = desc.shape.data();
    c_desc.num_dims = desc.shape.size();
    return c_desc;
}

/* A caller's Cache as the core reads it; the core writes through tensor_addrs in llm_allocate_cache
 * alone, which isn't called with one of these. */
struct CCache {
    explicit CCache(const Cache &source) : desc(ToC(source.cache_desc)), cache()
    {
        cache.struct_size = sizeof(cache);
        cache.cache_id = source.cache_id;
        cache.desc = &desc;
        cache.tensor_addrs = const_cast<uintptr_t *>(source.tensor_addrs.data());
        cache.num_tensor_addrs = source.tensor_addrs.size();
    }
    CCache(const CCache &) = delete;
    CCache &operator=(const CCache &) = delete;

    ::llm_cache_desc desc;
    ::llm_cache cache;
};

/* The destination of a pull is known by its id alone; what else is in the struct may be garbage. */
::llm_cache
CacheOfId(int64_t cache_id)
{
    ::llm_cache cache = {};
    cache.struct_size = sizeof(cache);
    cache.cache_id = cache_id;
    return cache;
}

::llm_cache_index
ToC(const CacheIndex &index)
{
    ::llm_cache_index c_index = {};
    c_index.struct_size = sizeof(c_index);
    c_index.cluster_id = index.cluster_id;
    c_index.cache_id = index.cache_id;
    c_index.batch_index = index.batch_index;
    return c_index;
}

::llm_kv_cache_ext_param
ToC(const KvCacheExtParam &param)
{
    ::llm_kv_cache_ext_param c_param = LLM_KV_CACHE_EXT_PARAM_INIT;
    c_param.src_layer_range[0] = param.src_layer_range.first;
    c_param.src_layer_range[1] = param.src_layer_range.second;
    c_param.dst_layer_range[0] = param.dst_layer_range.first;
    c_param.dst_layer_range[1] = param.dst_layer_range.second;
    c_param.tensor_num_per_layer = param.tensor_num_per_layer;
    return c_param;
}

/* Link and Unlink take the same lists and answer in the same way.  The structs of all clusters point
 * into one list of addresses, which therefore has its full length before the first pointer is taken. */
class ClusterCall {
public:
    explicit ClusterCall(const std::vector<ClusterInfo> &clusters) : results_(clusters.size())
    {
        size_t num_ips = 0;
        for (const ClusterInfo &cluster : clusters) {
            num_ips += cluster.local_ip_infos.size() + cluster.remote_ip_infos.size();
        }
        ips_.reserve(num_ips);
        clusters_.reserve(clusters.size());
        for (const ClusterInfo &cluster : clusters) {
            ::llm_cluster_info c_cluster = {};
            c_cluster.struct_size = sizeof(c_cluster);
            c_cluster.remote_cluster_id = cluster.remote_cluster_id;
            c_cluster.remote_role_type = cluster.remote_role_type;
            c_cluster.local_ip_infos = Append(cluster.local_ip_infos);
            c_cluster.num_local_ip_infos = cluster.local_ip_infos.size();
            c_cluster.remote_ip_infos = Append(cluster.remote_ip_infos);
            c_cluster.num_remote_ip_infos = cluster.remote_ip_infos.size();
            clusters_.push_back(c_cluster);
        }
    }

    /* call(clusters, num_clusters, rets, &num_rets) */
    template <typename Call> Status Run(std::vector<Status> &rets, bool appends, Call call)
    {
        size_t num_rets = kRetsUntouched;
        if (appends) {
            rets.reserve(rets.size() + results_.size());
        }
        const Status status = call(clusters_.data(), clusters_.size(), results_.data(), &num_rets);
        if (num_rets != kRetsUntouched) {
            results_.resize(std::min(num_rets, results_.size())); /* shrinks: never throws */
            if (appends) {
                rets.insert(rets.end(), results_.begin(), results_.end());
            } else {
                rets.swap(results_);
            }
        }
        return status;
    }

private:
    const ::llm_ip_info *Append(const std::vector<IpInfo> &infos)
    {
        const size_t first = ips_.size();
        for (const IpInfo &info : infos) {
            ips_.push_back({info.ip.GetString(), info.port});
        }
        return ips_.data() + first;
    }

    std::vector<::llm_ip_info> ips_;
    std::vector<::llm_cluster_info> clusters_;
    std::vector<Status> results_;
};

/* How many devices an accepted OPTION_DEVICE_ID names: the grammar has no empty items.  Not by
 * options.find, which would make a key, for which there may be no memory. */
size_t
CountDevices(const std::map<AscendString, AscendString> &options)
{
    size_t num_devices = 1;
    for (const auto &option : options) {
        if (option.first == OPTION_DEVICE_ID) {
            const char *ids = option.second.GetString();
            num_devices += static_cast<size_t>(std::count(ids, ids + std::strlen(ids), ';'));
        }
    }
    return num_devices;
}

bool
AsksForVersion2(const std::map<AscendString, AscendString> &options)
{
    return std::any_of(options.begin(), options.end(), [](const auto &option) {
        return option.first == OPTION_LOCAL_COMM_RES || option.first == OPTION_TRANSFER_BACKEND;
    });
}

} // namespace

LlmDataDist::LlmDataDist(uint64_t cluster_id, LlmRole role)
{
    ::llm_c_datadist *dd = nullptr;
    if (llm_create(cluster_id, ToC(role), &dd) != LLM_SUCCESS) {
        return;
    }
    impl_.reset(new (std::nothrow) Impl(dd));
    if (impl_ == nullptr) {
        llm_destroy(dd);
    }
}

LlmDataDist::~LlmDataDist() = default;

Status
LlmDataDist::Initialize(const std::map<AscendString, AscendString> &options)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    return WithoutExceptions([&] {
        const std::vector<::llm_option> c_options = ToC(options);
        const size_t num_devices = CountDevices(options);
        std::lock_guard<std::mutex> lock(impl_->initialize_mutex);
        const Status status = llm_initialize(impl_->dd, c_options.data(), c_options.size());
        if (status == LLM_SUCCESS && impl_->num_devices == 0) {
            impl_->num_devices = num_devices;
            impl_->version_2 = AsksForVersion2(options);
        }
        return status;
    });
}

void
LlmDataDist::Finalize()
{
    if (impl_ != nullptr) {
        llm_finalize(impl_->dd);
        impl_->num_devices = 0;
        impl_->version_2 = false;
    }
}

Status
LlmDataDist::SetRole(LlmRole role, const std::map<AscendString, AscendString> &options)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    return WithoutExceptions([&] {
        const std::vector<::llm_option> c_options = ToC(options);
        return llm_set_role(impl_->dd, ToC(role), c_options.data(), c_options.size());
    });
}

Status
LlmDataDist::LinkLlmClusters(const std::vector<ClusterInfo> &clusters, std::vector<Status> &rets,
                             int32_t timeout_in_millis)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    return WithoutExceptions([&] {
        const bool appends = impl_->version_2;
        return ClusterCall(clusters).Run(rets, appends,
                                         [&](const ::llm_cluster_info *c_clusters, size_t num,
                                             Status *c_rets, size_t *num_rets) {
                                             return llm_link_clusters(impl_->dd, c_clusters, num,
                                                                      c_rets, num_rets,
                                                                      timeout_in_millis);
                                         });
    });
}

Status
LlmDataDist::UnlinkLlmClusters(const std::vector<ClusterInfo> &clusters, std::vector<Status> &rets,
                               int32_t timeout_in_millis, bool force_flag)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    return WithoutExceptions([&] {
        const bool appends = impl_->version_2;
        return ClusterCall(clusters).Run(rets, appends,
                                         [&](const ::llm_cluster_info *c_clusters, size_t num,
                                             Status *c_rets, size_t *num_rets) {
                                             return llm_unlink_clusters(
                                                 impl_->dd, c_clusters, num, c_rets, num_rets,
                                                 timeout_in_millis, force_flag ? 1 : 0);
                                         });
    });
}

Status
LlmDataDist::AllocateCache(const CacheDesc &cache_desc, Cache &cache)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    return WithoutExceptions([&]() -> Status {
        std::vector<int64_t> shape(cache_desc.shape);
        const ::llm_cache_desc c_desc = ToC(cache_desc);

        /* Room that is not filled with zeros: a description with absurdly many tensors must get
         * its status from the core, at the price of address space only. */
        const size_t num_devices = std::max<size_t>(impl_->num_devices, 1);
        const size_t room = c_desc.num_tensors * num_devices;
        const std::unique_ptr<uintptr_t[]> addrs(new uintptr_t[std::max<size_t>(room, 1)]);

        ::llm_cache c_cache = {};
        c_cache.struct_size = sizeof(c_cache);
        c_cache.tensor_addrs = addrs.get();
        c_cache.num_tensor_addrs = room;
        const Status status = llm_allocate_cache(impl_->dd, &c_desc, &c_cache);
        if (status != LLM_SUCCESS) {
            return status;
        }
        std::vector<uintptr_t> tensor_addrs;
        try {
            tensor_addrs.assign(addrs.get(), addrs.get() + c_cache.num_tensor_addrs);
        } catch (...) {
            (void)llm_deallocate_cache(impl_->dd, c_cache.cache_id);
            throw;
        }

        /* Nothing fails from here on.  cache_desc may be the one inside `cache`. */
        cache.cache_id = c_cache.cache_id;
        cache.tensor_addrs.swap(tensor_addrs);
        cache.cache_desc.placement = cache_desc.placement;
        cache.cache_desc.num_tensors = cache_desc.num_tensors;
        cache.cache_desc.data_type = cache_desc.data_type;
        cache.cache_desc.shape.swap(shape);
        return LLM_SUCCESS;
    });
}

Status
LlmDataDist::DeallocateCache(int64_t cache_id)
{
    return impl_ == nullptr ? LLM_FAILED : llm_deallocate_cache(impl_->dd, cache_id);
}

Status
LlmDataDist::PullKvCache(const CacheIndex &src_cache_index, const Cache &dst_cache,
                         uint32_t batch_index, int64_t size, const KvCacheExtParam &ext_param)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    const ::llm_cache_index src = ToC(src_cache_index);
    const ::llm_cache dst = CacheOfId(dst_cache.cache_id);
    const ::llm_kv_cache_ext_param param = ToC(ext_param);
    return llm_pull_kv_cache(impl_->dd, &src, &dst, batch_index, size, &param);
}

Status
LlmDataDist::PullKvBlocks(const CacheIndex &src_cache_index, const Cache &dst_cache,
                          const std::vector<uint64_t> &src_blocks,
                          const std::vector<uint64_t> &dst_blocks, const KvCacheExtParam &ext_param)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    const ::llm_cache_index src = ToC(src_cache_index);
    const ::llm_cache dst = CacheOfId(dst_cache.cache_id);
    const ::llm_kv_cache_ext_param param = ToC(ext_param);
    return llm_pull_kv_blocks(impl_->dd, &src, &dst, src_blocks.data(), src_blocks.size(),
                              dst_blocks.data(), dst_blocks.size(), &param);
}

Status
LlmDataDist::CopyKvCache(const Cache &src_cache, const Cache &dst_cache, uint32_t src_batch_index,
                         uint32_t dst_batch_index, uint64_t offset, int64_t size)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    const CCache src(src_cache);
    const CCache dst(dst_cache);
    return llm_copy_kv_cache(impl_->dd, &src.cache, &dst.cache, src_batch_index, dst_batch_index,
                             offset, size);
}

Status
LlmDataDist::CopyKvBlocks(const Cache &src_cache, const Cache &dst_cache,
                          const std::vector<uint64_t> &src_blocks,
                          const std::vector<std::vector<uint64_t>> &dst_blocks_list)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    return WithoutExceptions([&] {
        std::vector<const uint64_t *> lists;
        std::vector<size_t> lengths;
        lists.reserve(dst_blocks_list.size());
        lengths.reserve(dst_blocks_list.size());
        for (const std::vector<uint64_t> &blocks : dst_blocks_list) {
            lists.push_back(blocks.data());
            lengths.push_back(blocks.size());
        }
        const CCache src(src_cache);
        const CCache dst(dst_cache);
        return llm_copy_kv_blocks(impl_->dd, &src.cache, &dst.cache, src_blocks.data(),
                                  src_blocks.size(), lists.data(), lengths.data(), lists.size());
    });
}

Status
LlmDataDist::PushKvCache(const Cache &src_cache, const CacheIndex &dst_cache_index,
                         uint32_t src_batch_index, int64_t size, const KvCacheExtParam &ext_param)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    const CCache src(src_cache);
    const ::llm_cache_index dst = ToC(dst_cache_index);
    const ::llm_kv_cache_ext_param param = ToC(ext_param);
    return llm_push_kv_cache(impl_->dd, &src.cache, &dst, src_batch_index, size, &param);
}

Status
LlmDataDist::PushKvBlocks(const Cache &src_cache, const CacheIndex &dst_cache_index,
                          const std::vector<uint64_t> &src_blocks,
                          const std::vector<uint64_t> &dst_blocks, const KvCacheExtParam &ext_param)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    const CCache src(src_cache);
    const ::llm_cache_index dst = ToC(dst_cache_index);
    const ::llm_kv_cache_ext_param param = ToC(ext_param);
    return llm_push_kv_blocks(impl_->dd, &src.cache, &dst, src_blocks.data(), src_blocks.size(),
                              dst_blocks.data(), dst_blocks.size(), &param);
}

/* RegisterCfg has nothing but reserved bytes. */
Status
LlmDataDist::RegisterKvCache(const CacheDesc &cache_desc, const std::vector<uint64_t> &addrs,
                             const RegisterCfg &, int64_t &cache_id)
{
    if (impl_ == nullptr) {
        return LLM_FAILED;
    }
    const ::llm_cache_desc c_desc = ToC(cache_desc);
    const Status status =
        llm_register_kv_cache(impl_->dd, &c_desc, addrs.data(), addrs.size(), &cache_id);
    if (status == LLM_SUCCESS) {
        impl_->version_2 = true;
    }
    return status;
}

Status
LlmDataDist::UnregisterKvCache(int64_t cache_id)
{
    return impl_ == nullptr ? LLM_FAILED : llm_unregister_kv_cache(impl_->dd, cache_id);
}

} // namespace llm_datadist

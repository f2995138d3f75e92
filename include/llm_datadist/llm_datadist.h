/*
 * llm_datadist.h - hand KV caches from prefill processes to decode processes.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * One include line for both languages.  C sees the C API (llm_datadist_c.h).  C++ (11 or later) sees
 * namespace llm_datadist with class LlmDataDist, and no name of the C API, so that a program may say
 *
 *     #include "llm_datadist/llm_datadist.h"
 *     using namespace llm_datadist;
 *     ... if (dist.Initialize(options) != LLM_SUCCESS) ...
 *
 * The class is a thin layer over the C API, and llm_datadist_c.h is the authority: it explains the
 * model, the promises and the order of checks, which are the same here.  The comments below say what
 * a C++ program needs daily.  § are sections of the LLM-DataDist C++ API, version 1, behavioural
 * specification.
 *
 * Link with libllm_datadist.so (-lllm_datadist).  Sources that include ge/, graph/ or external/ headers,
 * or build lines that say -lllm_engine, add what `pkg-config --cflags --libs llm-datadist-compat` prints,
 * or the CMake target LlmDatadist::llm_datadist_compat: an installed CANN toolkit has those names too.
 *
 * A translation unit can include this header or llm_datadist_c.h, not both, since `llm_datadist` is
 * a namespace here and a type there.  A program may use both in different source files.
 */
#ifndef LLM_DATADIST_LLM_DATADIST_H
#define LLM_DATADIST_LLM_DATADIST_H

#ifndef __cplusplus
#include "llm_datadist_c.h"
#else

#ifdef LLM_DATADIST_LLM_DATADIST_C_H
#error "include llm_datadist.h or llm_datadist_c.h in one C++ source file, not both"
#endif

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "ge_types.h"

#if defined(__GNUC__)
#define LLM_DATADIST_EXPORT_ __attribute__((visibility("default")))
#else
#define LLM_DATADIST_EXPORT_
#endif

namespace llm_datadist {

/* ============================================================================================
 * 1. Status codes (§3)
 * ============================================================================================ */

using Status = uint32_t;

constexpr Status LLM_SUCCESS = 0x0U;
/* Not initialized, or a resource or a peer failed; the log names it. */
constexpr Status LLM_FAILED = 0xFFFFFFFFU;
/* Out of time.  After a transfer: the link may have to be unlinked and linked again. */
constexpr Status LLM_WAIT_PROC_TIMEOUT = 0x5010B001U;
/* No such cache here or at the peer, or no such batch at the peer. */
constexpr Status LLM_KV_CACHE_NOT_EXIST = 0x5010B002U;
/* In `rets`: the cluster appeared earlier in the same call. */
constexpr Status LLM_REPEAT_REQUEST = 0x5010B003U;
constexpr Status LLM_REQUEST_ALREADY_COMPLETED = 0x5010B004U;
/* An argument, a role or an option. */
constexpr Status LLM_PARAM_INVALID = 0x5010B005U;
constexpr Status LLM_ENGINE_FINALIZED = 0x5010B006U;
constexpr Status LLM_NOT_YET_LINK = 0x5010B007U;
constexpr Status LLM_ALREADY_LINK = 0x5010B008U;
constexpr Status LLM_LINK_FAILED = 0x5010B009U;
constexpr Status LLM_UNLINK_FAILED = 0x5010B00AU;
/* The link is gone here, but the prompt could not be told: unlink there as well. */
constexpr Status LLM_NOTIFY_PROMPT_UNLINK_FAILED = 0x5010B00BU;
/* More than 16 clusters in one call. */
constexpr Status LLM_CLUSTER_NUM_EXCEED_LIMIT = 0x5010B00CU;
/* Another Link or Unlink call still runs. */
constexpr Status LLM_PROCESSING_LINK = 0x5010B00DU;
/* The memory pool is exhausted. */
constexpr Status LLM_DEVICE_OUT_OF_MEMORY = 0x5010B00EU;
constexpr Status LLM_PREFIX_ALREADY_EXIST = 0x5010B00FU;
constexpr Status LLM_PREFIX_NOT_EXIST = 0x5010B010U;
constexpr Status LLM_SEQ_LEN_OVER_LIMIT = 0x5010B011U;
constexpr Status LLM_NO_FREE_BLOCK = 0x5010B012U;
constexpr Status LLM_BLOCKS_OUT_OF_MEMORY = 0x5010B013U;
/* Of keys, which this class doesn't bind. */
constexpr Status LLM_CACHE_KEY_ALREADY_EXIST = 0x5010B015U;
/* SetRole while a link exists. */
constexpr Status LLM_EXIST_LINK = 0x5010B018U;
constexpr Status LLM_FEATURE_NOT_ENABLED = 0x5010B019U;
constexpr Status LLM_TIMEOUT = 0x5010B01AU;
constexpr Status LLM_LINK_BUSY = 0x5010B01BU;
/* The host is out of memory; nothing was done. */
constexpr Status LLM_OUT_OF_MEMORY = 0x5010B01CU;

/* ============================================================================================
 * 2. Options (§4): keys of the maps that Initialize and SetRole take.  Unknown keys are ignored.
 * ============================================================================================ */

/* "host:port" per device; the host "a.b.c.d", "[v6]" or a name, separated by ';'.  Required for a Prompt of version 1; in version
 * 2 one, and whoever gives it listens: a Decoder or Mix of version 1 once it registers memory. */
constexpr char OPTION_LISTEN_IP_INFO[] = "llm.ListenIpInfo";
/* Device ids, separated by ';'.  Required. */
constexpr char OPTION_DEVICE_ID[] = "llm.DeviceId";
/* Milliseconds that a Pull*, and each layer of a Push*, may take; "1000". */
constexpr char OPTION_SYNC_CACHE_WAIT_TIME[] = "llm.SyncKvCacheWaitTime";
/* JSON: size and tiers of the memory that caches are allocated from. */
constexpr char OPTION_BUF_POOL_CFG[] = "llm.BufPoolCfg";
/* "1" allows SetRole; "0". */
constexpr char OPTION_ENABLE_SET_ROLE[] = "llm.EnableSwitchRole";
/* Communication resources of Ascend hardware: not needed.  Given, it asks for version 2. */
constexpr char OPTION_LOCAL_COMM_RES[] = "llm.LocalCommRes";
/* "hixl": asks for version 2; needs OPTION_LISTEN_IP_INFO (§13.3). */
constexpr char OPTION_TRANSFER_BACKEND[] = "llm.TransferBackend";
/* JSON, only with OPTION_TRANSFER_BACKEND (§13.3). */
constexpr char OPTION_GLOBAL_RESOURCE_CONFIG[] = "llm.GlobalResourceConfig";

/* Options of this library alone; llm_datadist_c.h lists their values. */
constexpr char OPTION_DEVICE_TYPE[] = "llm.DeviceType";
constexpr char OPTION_TRANSPORTS[] = "llm.Transports";
constexpr char OPTION_LIVENESS_TIME[] = "llm.LivenessTime";
constexpr char OPTION_DEAD_TIME[] = "llm.DeadTime";
constexpr char OPTION_RELINK[] = "llm.Relink";
constexpr char OPTION_TCP_CONNECTIONS[] = "llm.TcpConnections";
/* Threads that copy a large pull on one host, the caller's included, 1..16.  Default 2. */
constexpr char OPTION_COPY_THREADS[] = "llm.CopyThreads";
constexpr char OPTION_CHECKSUM[] = "llm.Checksum";
constexpr char OPTION_LOG_LEVEL[] = "llm.LogLevel";

/* ============================================================================================
 * 3. Types (§2).  Sizes and offsets are ABI.  Reserved bytes are never read; they begin as zero only
 * so that a compiler doesn't take a copied struct for an uninitialized one.
 * ============================================================================================ */

using AscendString = ge::AscendString;
using DataType = ge::DataType;

using ge::DT_BF16;
using ge::DT_BOOL;
using ge::DT_COMPLEX128;
using ge::DT_COMPLEX32;
using ge::DT_COMPLEX64;
using ge::DT_DOUBLE;
using ge::DT_DUAL;
using ge::DT_DUAL_SUB_INT8;
using ge::DT_DUAL_SUB_UINT8;
using ge::DT_FLOAT;
using ge::DT_FLOAT16;
using ge::DT_FLOAT4_E1M2;
using ge::DT_FLOAT4_E2M1;
using ge::DT_FLOAT6_E2M3;
using ge::DT_FLOAT6_E3M2;
using ge::DT_FLOAT8_E4M3FN;
using ge::DT_FLOAT8_E5M2;
using ge::DT_FLOAT8_E8M0;
using ge::DT_HIFLOAT8;
using ge::DT_INT16;
using ge::DT_INT2;
using ge::DT_INT32;
using ge::DT_INT4;
using ge::DT_INT64;
using ge::DT_INT8;
using ge::DT_QINT16;
using ge::DT_QINT32;
using ge::DT_QINT8;
using ge::DT_QUINT16;
using ge::DT_QUINT8;
using ge::DT_RESOURCE;
using ge::DT_STRING;
using ge::DT_STRING_REF;
using ge::DT_UINT1;
using ge::DT_UINT16;
using ge::DT_UINT2;
using ge::DT_UINT32;
using ge::DT_UINT64;
using ge::DT_UINT8;
using ge::DT_UNDEFINED;
using ge::DT_VARIANT;

enum class LlmRole : int32_t {
    kPrompt = 1,  /* prefill: listens, may push */
    kDecoder = 2, /* decode: links, may pull */
    kMix = 3,     /* neither; a state from which SetRole moves on */
    kEnd = 4      /* not a role */
};

enum class CachePlacement : uint32_t { kHost = 0U, kDevice = 1U };

/* One end of a connection. */
struct IpInfo {
    AscendString ip; /* "192.0.2.7" */
    uint16_t port = 0U;
    uint8_t reserved[128] = {0};
};

/* A peer, as Link and Unlink name it. */
struct ClusterInfo {
    uint64_t remote_cluster_id = 0U;
    int32_t remote_role_type = 0;        /* 0 prompt, 1 decoder; only logged */
    std::vector<IpInfo> local_ip_infos;  /* source address per device; port 0 = any */
    std::vector<IpInfo> remote_ip_infos; /* the peer's listener per device */
    uint8_t reserved[128] = {0};
};

/* The remote side of a transfer.  An aggregate without defaults: write CacheIndex{cluster, cache}
 * or CacheIndex{}, since a plain `CacheIndex x;` is not initialized. */
struct CacheIndex {
    uint64_t cluster_id;
    int64_t cache_id;
    uint32_t batch_index; /* 0 for the Blocks calls */
    uint8_t reserved[128];
};

/* `num_tensors` tensors of one shape.  shape[0] counts batch slots or blocks, which are the same
 * thing; slot i of a tensor begins at byte i * (tensor bytes / shape[0]). */
struct CacheDesc {
    CachePlacement placement = CachePlacement::kDevice;
    uint32_t num_tensors = 0U;
    DataType data_type = DT_UNDEFINED;
    std::vector<int64_t> shape;
    uint8_t reserved[128] = {0};
};

/* A cache and where its tensors are: tensor t of device number d is tensor_addrs[d * num_tensors +
 * t].  The memory is the library's for allocated caches, the caller's otherwise. */
struct Cache {
    int64_t cache_id = -1;
    std::vector<uintptr_t> tensor_addrs;
    CacheDesc cache_desc;
    uint8_t reserved[128] = {0};
};

constexpr uint8_t kDefaultTensorNumPerLayer = 2U; /* K and V */

/* Which layers a transfer moves: inclusive ranges, {-1, -1} = all.  A layer is tensor_num_per_layer
 * consecutive tensors. */
struct KvCacheExtParam {
    std::pair<int32_t, int32_t> src_layer_range = {-1, -1};
    std::pair<int32_t, int32_t> dst_layer_range = {-1, -1};
    uint8_t tensor_num_per_layer = kDefaultTensorNumPerLayer;
    uint8_t reserved[127] = {0};
};

struct RegisterCfg {
    uint8_t reserved[128] = {0};
};

/* ============================================================================================
 * 4. The class
 * ============================================================================================ */

/* One cluster: an id, a role, devices, caches and links to other clusters.
 *
 * Every method but the constructor, the destructor, Initialize and Finalize answers LLM_FAILED
 * while the object is not initialized.  No method throws; LLM_OUT_OF_MEMORY says that an argument
 * could not be converted for want of memory, and then nothing was done.  Methods may be called from
 * any thread at any time, except that Finalize, SetRole and the destructor must not run beside
 * other calls on the object.
 *
 * Version 2 of the interface (§13) holds if OPTION_LOCAL_COMM_RES or OPTION_TRANSFER_BACKEND was
 * given to Initialize, or else from the first successful RegisterKvCache on: then the role is a
 * label, any side links, pulls and pushes, and rets is appended to. */
class LLM_DATADIST_EXPORT_ LlmDataDist {
public:
    /* Opens nothing and checks nothing (§5.1).
     * cluster_id: unique among all clusters that will ever be linked with each other. */
    LlmDataDist(uint64_t cluster_id, LlmRole role);

    /* Finalizes if need be. */
    ~LlmDataDist();

    LlmDataDist(const LlmDataDist &) = delete;
    LlmDataDist &operator=(const LlmDataDist &) = delete;

    /* Opens the devices and, for a Prompt, listens (§5.3).  On an initialized object: LLM_SUCCESS,
     * and the options are not looked at.  After a failure a corrected call works.
     * Returns LLM_SUCCESS; LLM_PARAM_INVALID (role or an option); LLM_FAILED (device, listener). */
    Status Initialize(const std::map<AscendString, AscendString> &options);

    /* Ends all links without telling the peers, frees all caches (§5.4).  May be repeated; the
     * object can be initialized again. */
    void Finalize();

    /* Changes the role; caches stay (§5.5).
     * options: OPTION_LISTEN_IP_INFO, required to become a Prompt.  On failure nothing changes.
     * Returns LLM_SUCCESS; LLM_FAILED (listener); LLM_PARAM_INVALID; LLM_FEATURE_NOT_ENABLED
     * (OPTION_ENABLE_SET_ROLE, several devices; with OPTION_TRANSFER_BACKEND another address than at
     * Initialize); LLM_EXIST_LINK. */
    Status SetRole(LlmRole role, const std::map<AscendString, AscendString> &options = {});

    /* Links a Decoder to 1..16 prompts (§6.1).  Both ends can use a link at once.
     *
     * clusters: both address lists hold one entry per device; local ones may be "0.0.0.0".  In version
     * 2 the port of a local one isn't used.
     * rets: replaced by one result per cluster; empty when the call fails before the first attempt;
     * left alone when the timeout, an address or the role is wrong, or the object not initialized.
     * timeout_in_millis: > 0, for the whole call.
     * Clusters that fail are rolled back, the others stay linked.
     * Returns LLM_SUCCESS (all linked); LLM_PARAM_INVALID; LLM_PROCESSING_LINK;
     * LLM_CLUSTER_NUM_EXCEED_LIMIT; LLM_LINK_FAILED (see rets); or, if nothing was rolled back, the
     * first failing entry of rets (LLM_ALREADY_LINK, LLM_REPEAT_REQUEST). */
    Status LinkLlmClusters(const std::vector<ClusterInfo> &clusters, std::vector<Status> &rets,
                           int32_t timeout_in_millis = 1000);

    /* Removes links (§6.2).  Parameters as above; in version 2 both address lists may be empty.
     *
     * force_flag: false on a Decoder tells the peer, so that both ends go; otherwise only this one.
     * rets: LLM_SUCCESS; LLM_NOT_YET_LINK (counts as success); LLM_LINK_BUSY (a transfer runs, link
     * kept); LLM_PARAM_INVALID (other addresses than the link's, link kept); LLM_REPEAT_REQUEST;
     * LLM_NOTIFY_PROMPT_UNLINK_FAILED and LLM_WAIT_PROC_TIMEOUT (gone here, peer not told).
     * Returns LLM_SUCCESS; LLM_PARAM_INVALID; LLM_PROCESSING_LINK; LLM_CLUSTER_NUM_EXCEED_LIMIT;
     * LLM_UNLINK_FAILED (see rets). */
    Status UnlinkLlmClusters(const std::vector<ClusterInfo> &clusters, std::vector<Status> &rets,
                             int32_t timeout_in_millis = 1000, bool force_flag = false);

    /* Allocates a cache from the library's memory on every device (§7.1).
     *
     * cache_desc: placement kDevice; every data type that has a size.
     * cache: replaced on success (id, addresses, description), unchanged on failure.  Tensors are
     * aligned to 512 bytes; their contents are unspecified.
     * Returns LLM_SUCCESS; LLM_PARAM_INVALID; LLM_DEVICE_OUT_OF_MEMORY. */
    Status AllocateCache(const CacheDesc &cache_desc, Cache &cache);

    /* Frees a cache (§7.2); transfers that run on it keep its memory until they end.
     * Returns LLM_SUCCESS; LLM_KV_CACHE_NOT_EXIST. */
    Status DeallocateCache(int64_t cache_id);

    /* Copies one batch slot of a prompt's cache to a slot of a local one, tensor by tensor (§8.2).
     * Decoder only.
     *
     * src_cache_index: the prompt, its cache and its slot.  dst_cache: only cache_id is read.
     * batch_index: the local slot.  size: bytes per tensor, > 0, or -1 for the local slot's size.
     * Returns LLM_SUCCESS; LLM_PARAM_INVALID; LLM_KV_CACHE_NOT_EXIST (either cache, remote slot);
     * LLM_NOT_YET_LINK; LLM_LINK_BUSY; LLM_WAIT_PROC_TIMEOUT; LLM_FAILED (the peer is gone). */
    Status PullKvCache(const CacheIndex &src_cache_index, const Cache &dst_cache,
                       uint32_t batch_index = 0U, int64_t size = -1,
                       const KvCacheExtParam &ext_param = {});

    /* Copies block src_blocks[i] of a prompt's cache to local block dst_blocks[i], for every tensor
     * (§8.3).  Decoder only.  Both caches have blocks of one size.
     * Returns as PullKvCache. */
    Status PullKvBlocks(const CacheIndex &src_cache_index, const Cache &dst_cache,
                        const std::vector<uint64_t> &src_blocks,
                        const std::vector<uint64_t> &dst_blocks,
                        const KvCacheExtParam &ext_param = {});

    /* Local copy of a batch slot, from byte `offset` of both slots (§9.3).  Works on the addresses
     * in the Cache structs alone.  Device to device, device to host.
     *
     * size: bytes per tensor, > 0, or -1 for the rest of the source slot.
     * Returns LLM_SUCCESS; LLM_PARAM_INVALID. */
    Status CopyKvCache(const Cache &src_cache, const Cache &dst_cache,
                       uint32_t src_batch_index = 0U, uint32_t dst_batch_index = 0U,
                       uint64_t offset = 0U, int64_t size = -1);

    /* Local copy of block src_blocks[k] to dst_blocks_list[j][k], for all j and k (§9.4): forks of
     * a beam, swapping out and in.  Every placement but host to host.
     * Returns LLM_SUCCESS; LLM_PARAM_INVALID. */
    Status CopyKvBlocks(const Cache &src_cache, const Cache &dst_cache,
                        const std::vector<uint64_t> &src_blocks,
                        const std::vector<std::vector<uint64_t>> &dst_blocks_list);

    /* Copies a local batch slot to a slot of a linked decoder's cache (§8.4).  Prompt with one
     * device only.
     *
     * src_cache: cache_id, and of cache_desc placement (kDevice) and num_tensors are read.
     * size: -1.
     * Returns as PullKvCache, and LLM_FEATURE_NOT_ENABLED (several devices). */
    Status PushKvCache(const Cache &src_cache, const CacheIndex &dst_cache_index,
                       uint32_t src_batch_index = 0U, int64_t size = -1,
                       const KvCacheExtParam &ext_param = {});

    /* Copies local block src_blocks[i] to block dst_blocks[i] of a linked decoder's cache (§8.5).
     * Prompt with one device only.  Returns as PushKvCache. */
    Status PushKvBlocks(const Cache &src_cache, const CacheIndex &dst_cache_index,
                        const std::vector<uint64_t> &src_blocks,
                        const std::vector<uint64_t> &dst_blocks,
                        const KvCacheExtParam &ext_param = {});

    /* Makes memory of the caller's a cache (§13.2), for one device.  Peers see it at once, over links
     * that stand as well.  Later calls need no more of its Cache than cache_id.
     *
     * cache_desc: either placement.  addrs: one address per tensor, of any alignment; the memory must
     * stay valid until UnregisterKvCache returns.  cfg: reserved.  cache_id: written on success.
     * Returns LLM_SUCCESS; LLM_PARAM_INVALID; LLM_FEATURE_NOT_ENABLED (several devices);
     * LLM_OUT_OF_MEMORY. */
    Status RegisterKvCache(const CacheDesc &cache_desc, const std::vector<uint64_t> &addrs,
                           const RegisterCfg &cfg, int64_t &cache_id);

    /* Ends a registration.  Waits for the transfers that touch the cache and for nothing else; then
     * the memory is the caller's alone.
     * Returns LLM_SUCCESS, for an unknown id too. */
    Status UnregisterKvCache(int64_t cache_id);

private:
    class Impl;
    std::unique_ptr<Impl> impl_; /* null if there was no memory for it */
};

} // namespace llm_datadist

#undef LLM_DATADIST_EXPORT_

#endif /* __cplusplus */

#endif

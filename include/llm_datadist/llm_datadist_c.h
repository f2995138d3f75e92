/*
 * llm_datadist_c.h - hand KV caches from prefill processes to decode processes.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * This header is the whole C API, in the order in which one uses it:
 *
 *   1. Status codes       what a call answers, and what to do about it
 *   2. Options            strings that configure an instance
 *   3. Life cycle         llm_create, llm_initialize, llm_finalize, llm_destroy, llm_set_role
 *   4. Caches             llm_allocate_cache, llm_register_kv_cache and their ends; keys
 *   5. Links              llm_link_clusters, llm_unlink_clusters
 *   6. Transfers          llm_pull_kv_blocks, llm_push_kv_cache, ...
 *   7. Side by side       llm_start_pull_kv_blocks, llm_transfer_wait, ...; notifications
 *   8. Leases             llm_lease_open, llm_lease_wait, ...
 *   9. Local copies       llm_copy_kv_cache, llm_copy_kv_blocks
 *  10. Looking inside     links, listeners, errors, logging, version
 *
 * The model.  An instance (llm_datadist *) is a *cluster*: it has a 64-bit id, a role, one or more
 * devices, caches, and links to other clusters.  A prefill process has role Prompt: it listens, and
 * it may push.  A decode process has role Decoder: it links to prompts, and it may pull.  The other
 * side of a transfer makes no call.  A cache is `num_tensors` tensors of one shape; the first
 * dimension counts batch slots or blocks, which are the same thing here: slot i of a tensor begins
 * at byte i * stride, with
 *
 *     tensor bytes = ceil(product(shape) * bits per element / 8)
 *     stride       = tensor bytes / shape[0]          (integer division)
 *
 * A *layer* is `tensor_num_per_layer` consecutive tensors (2 by default: K and V).
 *
 * Two generations.  Version 1 of the original interface knows allocated caches and strict roles.
 * Version 2 knows registered memory and lets any side link, pull and push; there the role is a label.
 * An instance follows version 2 from initialization on if LLM_OPTION_LOCAL_COMM_RES or
 * LLM_OPTION_TRANSFER_BACKEND is given, or else from its first successful llm_register_kv_cache on.
 * Where a link or a transfer runs out of time, version 2 says LLM_TIMEOUT and version 1
 * LLM_WAIT_PROC_TIMEOUT, which the comments below name.
 *
 * Promises, on every transport:
 *   - Never somebody else's bytes: a transfer that races the owner's free or reuse of a cache ends
 *     in a status, not in success with other data.
 *   - Quiet after return: once a call has returned, whatever its status, no byte of it lands.  (Of a
 *     push whose link broke or was removed, or whose peer was silent as it ended, bytes on their way
 *     may land at the peer until it notices the end as well; none lands behind a later transfer's.)
 *   - Success means arrived: the bytes are in the destination memory.
 *   - A dead peer is noticed: its transfers end with a status.  A silent one isn't dead: transfers wait
 *     for it, each within its own time limit.
 *
 * Threads.  Every function may be called from any thread at any time, unless its comment says
 * otherwise.  llm_finalize, llm_destroy and llm_set_role must not run beside other calls on the
 * same instance.  NULL for an instance is answered as one that is not initialized: LLM_FAILED.
 *
 * Signals.  No call fails, or ends early, because a signal arrives.  The library's own threads leave all
 * signals to the application's, but those that a thread brings upon itself, such as SIGSEGV; it installs
 * no handlers, and opens no descriptor below 3.
 *
 * fork.  A forked child doesn't have its parent's instances: every call on one fails there with
 * LLM_FAILED, llm_finalize and llm_destroy let go of it, their descriptors are closed, and the memory of
 * allocated caches is not there.  The parent and its peers don't notice what the child does, nor how long
 * it lives.  It may create instances of its own.
 *
 * Structs.  A struct that may grow begins with `struct_size`: set it to sizeof the struct (0 is read
 * as its first published size).  Fields past it count as zero and are never written, and an array steps
 * by it, so that an older program runs against a newer library; bytes that this library doesn't know
 * must be zero, else LLM_PARAM_INVALID.
 *
 * Outputs are written on success only, unless a comment says otherwise.  Inputs are read during the
 * call and never kept.
 *
 * Section numbers (§) are those of the LLM-DataDist C++ API, version 1, behavioural specification.
 */
#ifndef LLM_DATADIST_LLM_DATADIST_C_H
#define LLM_DATADIST_LLM_DATADIST_C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LLM_API __attribute__((visibility("default")))
#define LLM_EXTENSION_ __extension__
#else
#define LLM_API
#define LLM_EXTENSION_
#endif

/* ============================================================================================
 * 1. Status codes (§3)
 *
 * Every call answers with a status.  The numbers are ABI and are those of the original library;
 * codes of our own begin at 0x5010B801.
 * ============================================================================================ */

typedef uint32_t llm_status;

/* X(name, value, meaning, recoverable, what to do) */
#define LLM_STATUS_MAP(X)                                                                          \
    X(LLM_SUCCESS, 0x0u, "success", 1, "nothing to do")                                            \
    X(LLM_FAILED, 0xFFFFFFFFu, "the instance is not initialized, or a resource or peer failed", 0, \
      "read the log or llm_last_error; rebuild the link, or initialize again")                     \
    X(LLM_WAIT_PROC_TIMEOUT, 0x5010B001u, "the operation ran out of time", 1,                      \
      "after a transfer: unlink and link again if llm_get_link_info says the link is broken; "     \
      "otherwise enlarge the timeout and retry")                                                   \
    X(LLM_KV_CACHE_NOT_EXIST, 0x5010B002u, "no such cache or batch, here or at the peer", 1,       \
      "check the cache id and batch index; the owner may have freed the cache")                    \
    X(LLM_REPEAT_REQUEST, 0x5010B003u, "the same cluster appears twice in one call", 1,            \
      "name each cluster once")                                                                    \
    X(LLM_REQUEST_ALREADY_COMPLETED, 0x5010B004u, "the request has already completed", 1,          \
      "nothing to do")                                                                             \
    X(LLM_PARAM_INVALID, 0x5010B005u, "an argument, option or role is not allowed here", 1,        \
      "correct the value that the log names")                                                      \
    X(LLM_ENGINE_FINALIZED, 0x5010B006u, "the engine has been finalized", 0, "initialize again")   \
    X(LLM_NOT_YET_LINK, 0x5010B007u, "there is no link to this cluster", 1,                        \
      "link the clusters first")                                                                   \
    X(LLM_ALREADY_LINK, 0x5010B008u, "there is a link to this cluster already", 1,                 \
      "use it, or unlink first")                                                                   \
    X(LLM_LINK_FAILED, 0x5010B009u, "a link could not be established", 1,                          \
      "check that the peer listens at that address and has the expected cluster id, then retry")   \
    X(LLM_UNLINK_FAILED, 0x5010B00Au, "a link could not be removed in good order", 1,              \
      "look at the per-cluster results; retry, or force")                                          \
    X(LLM_NOTIFY_PROMPT_UNLINK_FAILED, 0x5010B00Bu,                                                \
      "the link is gone here, but the peer could not be told", 1, "unlink at the peer as well")    \
    X(LLM_CLUSTER_NUM_EXCEED_LIMIT, 0x5010B00Cu, "more than 16 clusters in one call", 1,           \
      "split the call")                                                                            \
    X(LLM_PROCESSING_LINK, 0x5010B00Du, "another link or unlink call is still running", 1,         \
      "retry, or enlarge the timeout")                                                             \
    X(LLM_DEVICE_OUT_OF_MEMORY, 0x5010B00Eu, "the device memory pool is exhausted", 1,             \
      "free caches, or enlarge llm.BufPoolCfg")                                                    \
    X(LLM_PREFIX_ALREADY_EXIST, 0x5010B00Fu, "the prefix exists already", 1, "use another id")     \
    X(LLM_PREFIX_NOT_EXIST, 0x5010B010u, "the prefix does not exist", 1, "check the prefix id")    \
    X(LLM_SEQ_LEN_OVER_LIMIT, 0x5010B011u, "the sequence is too long", 1, "shorten it")            \
    X(LLM_NO_FREE_BLOCK, 0x5010B012u, "no block is free", 1, "free blocks and retry")              \
    X(LLM_BLOCKS_OUT_OF_MEMORY, 0x5010B013u, "no memory for blocks", 1, "free blocks and retry")   \
    X(LLM_CACHE_KEY_ALREADY_EXIST, 0x5010B015u, "the key names a cache already", 1,                \
      "remove the key first, or choose another one")                                               \
    X(LLM_EXIST_LINK, 0x5010B018u, "links exist, the role cannot change", 1, "unlink first")       \
    X(LLM_FEATURE_NOT_ENABLED, 0x5010B019u, "the feature is not enabled for this instance", 1,     \
      "set the enabling option at initialization")                                                 \
    X(LLM_TIMEOUT, 0x5010B01Au, "the operation ran out of time", 0, "rebuild the link")            \
    X(LLM_LINK_BUSY, 0x5010B01Bu, "the link is busy", 1, "retry when the other operation is done") \
    X(LLM_OUT_OF_MEMORY, 0x5010B01Cu, "the host is out of memory", 1, "free memory and retry")     \
    X(LLM_TRANSFER_PENDING, 0x5010B801u, "the transfer has not ended yet", 1,                      \
      "poll or wait again")                                                                        \
    X(LLM_TRANSFER_CANCELLED, 0x5010B802u, "the transfer was cancelled", 1, "start it again")      \
    X(LLM_NO_NOTIFICATION, 0x5010B803u, "no notification has arrived", 1, "poll again")            \
    X(LLM_CACHE_STALE, 0x5010B804u, "the cache or lease of that generation is gone", 1,            \
      "ask the owner for what there is now")                                                       \
    X(LLM_LEASE_ACTIVE, 0x5010B805u, "the lease has not ended yet", 1, "wait again, or close it")  \
    X(LLM_LEASE_EXPIRED, 0x5010B806u, "the lease's time was up before it was released", 1,         \
      "close it; the blocks may be used again")                                                    \
    X(LLM_CHECKSUM_MISMATCH, 0x5010B807u, "what arrived is not what was sent", 1,                  \
      "transfer again; if it happens again, distrust the network or the memory")                   \
    X(LLM_NO_LINK_EVENT, 0x5010B808u, "no link has changed", 1, "poll again")

/* Unsigned, LLM_FAILED included, so that a status compares without a cast. */
LLM_EXTENSION_ enum {
#define LLM_STATUS_ENUM_(name, value, text, recoverable, remedy) name = (value),
    LLM_STATUS_MAP(LLM_STATUS_ENUM_)
#undef LLM_STATUS_ENUM_
};

/* The name of a status, "LLM_PARAM_INVALID"; "LLM_STATUS_UNKNOWN" for other numbers.  Static. */
LLM_API const char *llm_status_name(llm_status status);

/* What a status means, whether it can be recovered from, and what to do, in one line.  Static. */
LLM_API const char *llm_status_text(llm_status status);

/* 1 if the cause can be repaired and the call repeated on the same instance, 0 if not (§3). */
LLM_API int llm_status_recoverable(llm_status status);

/* ============================================================================================
 * 2. Options (§4)
 *
 * An option is a pair of strings.  Unknown keys are ignored.  A rejected option yields
 * LLM_PARAM_INVALID and one log line that names the option, the value and what was expected.
 * Numbers: decimal, leading blanks, '+' and zeros allowed, nothing behind the digits (§4.1); those of
 * LLM_OPTION_SYNC_CACHE_WAIT_TIME digits only.
 * ============================================================================================ */

typedef struct llm_option {
    const char *key;
    const char *value;
} llm_option;

/* "host:port" per device, separated by ';'; the host "a.b.c.d", "[v6]" or a name.  "[::]" takes IPv4 as
 * well.  Port 0 lets the system choose: llm_get_listen_port.
 * Version 1: required for role Prompt, not read for the other roles (§4.3).  Version 2: one address,
 * optional for every role (§13.3); of a Decoder or Mix that becomes version 2 by registering memory it
 * is read, and listened at, then. */
#define LLM_OPTION_LISTEN_IP_INFO "llm.ListenIpInfo"
/* Device ids, separated by ';', each 0..2147483647 and once, at most 64; version 2: one.  Required
 * (§4.2). */
#define LLM_OPTION_DEVICE_ID "llm.DeviceId"
/* Time limit in milliseconds, 1..2147483647, of a pull, of a query, and of each layer of a push: a push
 * of n layers has n times as long.  Default 1000 (§4.4).  The original's holds for allocate, deallocate
 * and set_role as well, which wait for nobody here. */
#define LLM_OPTION_SYNC_CACHE_WAIT_TIME "llm.SyncKvCacheWaitTime"
/* JSON: the size and the tiers of the device memory pool (§4.6).  Default: the devices' pools share
 * what there is: the machine's memory, or less where a control group of the process has a lower limit.
 * Only what is used of a pool is taken.  Pools that may grow beyond that limit get a warning. */
#define LLM_OPTION_BUF_POOL_CFG "llm.BufPoolCfg"
/* "1" allows llm_set_role.  Default "0" (§4.5). */
#define LLM_OPTION_ENABLE_SET_ROLE "llm.EnableSwitchRole"
/* Communication resources of Ascend hardware: not needed here; given, even empty, it asks for
 * version 2 (§13.3). */
#define LLM_OPTION_LOCAL_COMM_RES "llm.LocalCommRes"
/* "hixl": asks for version 2.  Needs LLM_OPTION_LISTEN_IP_INFO (§13.3). */
#define LLM_OPTION_TRANSFER_BACKEND "llm.TransferBackend"
/* JSON, with LLM_OPTION_TRANSFER_BACKEND only: checked, not needed here (§13.3). */
#define LLM_OPTION_GLOBAL_RESOURCE_CONFIG "llm.GlobalResourceConfig"

/* Options of this library alone. */

/* Memory that device ids speak of: "auto" (default) or "host".  "cuda" and "ascend", which this build
 * can't open, are LLM_FAILED. */
#define LLM_OPTION_DEVICE_TYPE "llm.DeviceType"
/* Transports a link may take, best first, separated by ',': "local", "shm", "tcp".
 * Default "auto", which is "local,shm,tcp".  A link takes the first that both ends can use. */
#define LLM_OPTION_TRANSPORTS "llm.Transports"
/* The link to a peer that is silent for so many milliseconds, 50..600000, is suspect until the peer is
 * heard again; of a link's two ends the longer one counts.  Default 500. */
#define LLM_OPTION_LIVENESS_TIME "llm.LivenessTime"
/* A peer that is silent for so many milliseconds, 50..3600000, is taken for dead, and the link breaks;
 * less than the liveness time counts as that.  Of a peer whose death is known, because its connections
 * close for instance, the link breaks at once.  Default 10000. */
#define LLM_OPTION_DEAD_TIME "llm.DeadTime"
/* "1": a transfer or query that waits, and finds the link broken, makes it anew within its own time limit:
 * once for all that wait, with the same instance of the peer alone, and only at the end that had linked.
 * "0": it fails at once.  Default "auto": "1" in version 2, "0" in version 1.  But for "0" that end also
 * makes a link anew, without a transfer, when registered memory may not be read over it any more. */
#define LLM_OPTION_RELINK "llm.Relink"
/* TCP connections that carry the data of one tcp link, 1..8.  Default 2. */
#define LLM_OPTION_TCP_CONNECTIONS "llm.TcpConnections"
/* Threads that copy a large pull on one host, the caller's included, 1..16.  Default 2. */
#define LLM_OPTION_COPY_THREADS "llm.CopyThreads"
/* "crc32c": every block of a transfer is checked against a CRC32C of the source's bytes, and every
 * message against one of its own; a difference ends as LLM_CHECKSUM_MISMATCH.  A link is checked if
 * either end asks for it.  Default "none". */
#define LLM_OPTION_CHECKSUM "llm.Checksum"
/* "error", "warn", "info", "debug" or "off"; the environment's LLM_DATADIST_LOG_LEVEL wins.
 * Applies to the whole process.  Default "warn". */
#define LLM_OPTION_LOG_LEVEL "llm.LogLevel"

/* One row of the table of options. */
typedef struct llm_option_info {
    size_t struct_size;
    const char *key;
    const char *default_value; /* "" = none */
    const char *help;          /* grammar and meaning, one line */
} llm_option_info;

/* The option number `index`, from 0 on, in the order in which they are checked; behind the last one
 * `key` is NULL.  Texts are static.
 * info: set struct_size before the call.
 * Returns LLM_SUCCESS; LLM_PARAM_INVALID. */
LLM_API llm_status llm_get_option_info(size_t index, llm_option_info *info);

/* ============================================================================================
 * 3. Life cycle (§5)
 * ============================================================================================ */

/* One cluster. Opaque. */
typedef struct llm_datadist llm_datadist;

typedef enum llm_role {
    LLM_ROLE_PROMPT = 1,  /* prefill: listens, may push */
    LLM_ROLE_DECODER = 2, /* decode: links, may pull */
    LLM_ROLE_MIX = 3      /* neither; a state from which llm_set_role moves on */
} llm_role;

/* Makes an instance; validates nothing and opens nothing (§5.1).
 *
 * cluster_id: any number, unique among the clusters that will ever be linked with each other.
 * role: checked by llm_initialize.
 * Returns LLM_SUCCESS, LLM_OUT_OF_MEMORY, LLM_PARAM_INVALID (ret_dd is NULL). */
LLM_API llm_status llm_create(uint64_t cluster_id, llm_role role, llm_datadist **ret_dd);

/* Finalizes if need be and frees the instance (§5.2).  NULL is allowed.  Not beside other calls. */
LLM_API void llm_destroy(llm_datadist *dd);

/* Opens devices and memory pools and, for a Prompt, listens at every device's address (§5.3).
 *
 * On an initialized instance: LLM_SUCCESS, and the options are not looked at.  After a failure the
 * instance is as before the call, and a corrected call works.
 * Returns LLM_SUCCESS; LLM_PARAM_INVALID (role or an option); LLM_FAILED (a device or a listener
 * can't be opened, or out of memory). */
LLM_API llm_status llm_initialize(llm_datadist *dd, const llm_option *options, size_t num_options);

/* Ends links without telling the peers, frees all caches, closes everything (§5.4).  The instance can
 * be initialized again.  Does nothing if not initialized, or NULL.  Not beside other calls. */
LLM_API void llm_finalize(llm_datadist *dd);

/* Changes the role; caches stay (§5.5).  Needs LLM_OPTION_ENABLE_SET_ROLE and one device; in version 2
 * neither.
 *
 * options: LLM_OPTION_LISTEN_IP_INFO with one address, required to become Prompt.  In version 2 any role
 * listens if it is given, and stops if it isn't (§13.4).  The new listener is opened before the old one
 * is closed; after a failure role and listener are as before.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized; the listener can't be opened);
 * LLM_PARAM_INVALID (role, address); LLM_FEATURE_NOT_ENABLED (option, several devices; with
 * LLM_OPTION_TRANSFER_BACKEND another address than at initialization);
 * LLM_EXIST_LINK (links, broken ones included; version 1: of a Prompt or Decoder).
 * Not beside link or transfer calls. */
LLM_API llm_status llm_set_role(llm_datadist *dd, llm_role role, const llm_option *options,
                                size_t num_options);

/* ============================================================================================
 * 4. Caches (§7)
 * ============================================================================================ */

typedef enum llm_placement { LLM_PLACEMENT_HOST = 0, LLM_PLACEMENT_DEVICE = 1 } llm_placement;

/* Element types (§2.3).  X(name, value, bits per element). */
#define LLM_DATA_TYPE_MAP(X)                                                                       \
    X(LLM_DT_FLOAT, 0, 32)                                                                         \
    X(LLM_DT_FLOAT16, 1, 16)                                                                       \
    X(LLM_DT_INT8, 2, 8)                                                                           \
    X(LLM_DT_INT32, 3, 32)                                                                         \
    X(LLM_DT_UINT8, 4, 8)                                                                          \
    X(LLM_DT_INT16, 6, 16)                                                                         \
    X(LLM_DT_UINT16, 7, 16)                                                                        \
    X(LLM_DT_UINT32, 8, 32)                                                                        \
    X(LLM_DT_INT64, 9, 64)                                                                         \
    X(LLM_DT_UINT64, 10, 64)                                                                       \
    X(LLM_DT_DOUBLE, 11, 64)                                                                       \
    X(LLM_DT_BOOL, 12, 8)                                                                          \
    X(LLM_DT_STRING, 13, 128)                                                                      \
    X(LLM_DT_DUAL_SUB_INT8, 14, 8)                                                                 \
    X(LLM_DT_DUAL_SUB_UINT8, 15, 8)                                                                \
    X(LLM_DT_COMPLEX64, 16, 64)                                                                    \
    X(LLM_DT_COMPLEX128, 17, 128)                                                                  \
    X(LLM_DT_QINT8, 18, 8)                                                                         \
    X(LLM_DT_QINT16, 19, 16)                                                                       \
    X(LLM_DT_QINT32, 20, 32)                                                                       \
    X(LLM_DT_QUINT8, 21, 8)                                                                        \
    X(LLM_DT_QUINT16, 22, 16)                                                                      \
    X(LLM_DT_RESOURCE, 23, 64)                                                                     \
    X(LLM_DT_STRING_REF, 24, 128)                                                                  \
    X(LLM_DT_DUAL, 25, 40)                                                                         \
    X(LLM_DT_VARIANT, 26, 64)                                                                      \
    X(LLM_DT_BF16, 27, 16)                                                                         \
    X(LLM_DT_UNDEFINED, 28, 0)                                                                     \
    X(LLM_DT_INT4, 29, 4)                                                                          \
    X(LLM_DT_UINT1, 30, 1)                                                                         \
    X(LLM_DT_INT2, 31, 2)                                                                          \
    X(LLM_DT_UINT2, 32, 2)                                                                         \
    X(LLM_DT_COMPLEX32, 33, 32)                                                                    \
    X(LLM_DT_HIFLOAT8, 34, 8)                                                                      \
    X(LLM_DT_FLOAT8_E5M2, 35, 8)                                                                   \
    X(LLM_DT_FLOAT8_E4M3FN, 36, 8)                                                                 \
    X(LLM_DT_FLOAT8_E8M0, 37, 8)                                                                   \
    X(LLM_DT_FLOAT6_E3M2, 38, 6)                                                                   \
    X(LLM_DT_FLOAT6_E2M3, 39, 6)                                                                   \
    X(LLM_DT_FLOAT4_E2M1, 40, 4)                                                                   \
    X(LLM_DT_FLOAT4_E1M2, 41, 4)

typedef enum llm_data_type {
#define LLM_DATA_TYPE_ENUM_(name, value, bits) name = value,
    LLM_DATA_TYPE_MAP(LLM_DATA_TYPE_ENUM_)
#undef LLM_DATA_TYPE_ENUM_
} llm_data_type;

/* Of a shape. */
#define LLM_DIMS_MAX 31

/* Bits per element, 0 for a type without a size or an unknown number. */
LLM_API uint32_t llm_data_type_bits(int32_t data_type);

/* What a cache looks like. */
typedef struct llm_cache_desc {
    size_t struct_size;
    uint32_t placement;   /* llm_placement; LLM_PLACEMENT_DEVICE to allocate */
    uint32_t num_tensors; /* 1 or more to allocate */
    int32_t data_type;    /* llm_data_type with a size */
    const int64_t *shape; /* num_dims numbers, each > 0; shape[0] = batch slots or blocks */
    size_t num_dims;      /* 1..31 to allocate; 0 (one element) is allowed in copies */
} llm_cache_desc;

/* A cache as the caller sees it. */
typedef struct llm_cache {
    size_t struct_size;
    int64_t cache_id;           /* 1 or more */
    const llm_cache_desc *desc; /* the caller's */
    /* num_tensors * D addresses on D devices: all tensors of the first device, then those of the
     * second, ...: tensor t of device d is entry d * num_tensors + t.  The array is the caller's,
     * the memory behind it is the library's. */
    uintptr_t *tensor_addrs;
    size_t num_tensor_addrs;
} llm_cache;

/* Allocates a cache from every device's pool (§7.1).
 *
 * cache: on entry `tensor_addrs` points to room for `num_tensor_addrs` >= num_tensors * D addresses.
 * On success cache_id is a new id, tensor_addrs is filled, num_tensor_addrs = num_tensors * D and
 * desc = the argument; on failure nothing is written.  Each tensor is aligned to 512 bytes; its
 * contents are unspecified.  Every data type that has a size is accepted.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID; LLM_DEVICE_OUT_OF_MEMORY (the
 * pool is full, or the directory: up to 65536 caches and 8388608 tensors). */
LLM_API llm_status llm_allocate_cache(llm_datadist *dd, const llm_cache_desc *desc,
                                      llm_cache *cache);

/* Frees a cache (§7.2).  Transfers that run on it keep its memory until they end, those of peers for the
 * sync wait time plus the liveness time at most: then they fail, with their link if a part of a pull is
 * stuck on its way over tcp.  New ones get LLM_KV_CACHE_NOT_EXIST, here and at the peers.  Request and
 * prefix keys keep it too: until the last of them has gone, peers find it by key, but nobody by its id.
 * A blocks key goes with it.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_KV_CACHE_NOT_EXIST (also of a registered one). */
LLM_API llm_status llm_deallocate_cache(llm_datadist *dd, int64_t cache_id);

typedef struct llm_memory_hold llm_memory_hold;

/* Keeps the memory of an allocated cache at its addresses, for whoever still looks at it: beyond
 * llm_deallocate_cache and beyond llm_finalize.  From then on it shows the bytes that it had, and no other
 * cache's; peers neither find it nor change it.  Until the release it counts as used in its pool; after
 * llm_finalize the address space of the whole pool stays with it.
 * ret_hold: belongs to the caller, who ends it with llm_release_memory.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID (ret_hold is NULL);
 * LLM_KV_CACHE_NOT_EXIST (also of a registered or deallocated one); LLM_OUT_OF_MEMORY. */
LLM_API llm_status llm_hold_memory(llm_datadist *dd, int64_t cache_id, llm_memory_hold **ret_hold);

/* Ends a hold, at any time, also after llm_destroy, on any thread; not in a child of fork.  NULL is fine. */
LLM_API void llm_release_memory(llm_memory_hold *hold);

/* Makes memory of the caller's a cache (§13.2).  One device only.
 *
 * desc: placement may be either.  addrs: desc->num_tensors addresses, none 0, of any alignment, each
 * of a whole tensor; they may overlap, and may be registered more than once.  The memory must stay
 * valid until llm_unregister_kv_cache returns; peers see the cache at once, also over links that
 * stand.  The instance follows version 2 from now on; a Decoder or Mix that gave
 * LLM_OPTION_LISTEN_IP_INFO begins to listen with its first registration, or else that fails and
 * changes nothing.
 * On one host peers read the memory with process_vm_readv where the system permits it, otherwise
 * with this process' help; llm_get_link_info tells which.  If it is forbidden later (setuid, prctl), the
 * link is made anew (LLM_OPTION_RELINK): a transfer that waits goes on over the new link, started ones
 * that run meanwhile end as LLM_FAILED.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized; can't listen); LLM_PARAM_INVALID;
 * LLM_FEATURE_NOT_ENABLED (several devices); LLM_OUT_OF_MEMORY (also too many caches or tensors, as in llm_allocate_cache). */
LLM_API llm_status llm_register_kv_cache(llm_datadist *dd, const llm_cache_desc *desc,
                                         const uint64_t *addrs, size_t num_addrs,
                                         int64_t *ret_cache_id);

/* Ends a registration, and every key of the cache.  Waits for the transfers that touch the cache, here
 * and at the peers, and for nothing else; those that don't end within the sync wait time plus the
 * liveness time fail, this side's with LLM_KV_CACHE_NOT_EXIST, and with their link if a part of one is
 * stuck on its way over tcp.  Afterwards the memory is the caller's alone.
 * Returns LLM_SUCCESS, also for an unknown id (§13.2); LLM_FAILED (not initialized). */
LLM_API llm_status llm_unregister_kv_cache(llm_datadist *dd, int64_t cache_id);

/* ---- keys ----
 *
 * A key is a name that the application chooses, for a slot of a cache or for a whole cache of blocks.
 * Peers find the cache by it, and need not learn ids.
 *
 * A request key is taken by the pull that uses it: one pull of one peer succeeds, the key is gone,
 * later ones get LLM_KV_CACHE_NOT_EXIST.  A pull of some layers takes these alone; the key goes with
 * the last layer.  A pull by id of a slot that has a request key takes it likewise.
 * llm_kv_cache_ext_param.keep_key leaves it where it is.  Prefix keys and blocks keys are never taken.
 * A pull that ran out of time, or lost its link, may have taken its key in the last moment. */

typedef enum llm_key_kind {
    LLM_KEY_NONE = 0,    /* padding: the slot has no name, nobody can pull it by key */
    LLM_KEY_REQUEST = 1, /* a slot, for one pull */
    LLM_KEY_PREFIX = 2,  /* a slot, for any number of pulls */
    LLM_KEY_BLOCKS = 3   /* all blocks of a cache, for any number of pulls and pushes */
} llm_key_kind;

typedef struct llm_cache_key {
    size_t struct_size;
    uint32_t kind;     /* llm_key_kind */
    uint64_t id;       /* of the request or the prefix; 0 for LLM_KEY_BLOCKS */
    uint64_t model_id; /* keys of different models are different */
} llm_cache_key;

/* Names slots of a cache: keys[i] names slot i, for 1..shape[0] keys; or one LLM_KEY_BLOCKS names it
 * all.  Of equal keys in one call the last one counts.  All are bound or none.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID (keys);
 * LLM_KV_CACHE_NOT_EXIST; LLM_CACHE_KEY_ALREADY_EXIST (a key is bound already);
 * LLM_OUT_OF_MEMORY (also too many keys: up to 131072 in all). */
LLM_API llm_status llm_bind_cache_keys(llm_datadist *dd, int64_t cache_id,
                                       const llm_cache_key *keys, size_t num_keys);

/* Removes a key.  A deallocated cache goes with its last one.  A pull that has found its slot by a prefix
 * or blocks key goes on; a lease (section 8) tells when nobody reads a slot any more.
 * Returns LLM_SUCCESS, also for an unknown key; LLM_FAILED (not initialized); LLM_PARAM_INVALID. */
LLM_API llm_status llm_remove_cache_key(llm_datadist *dd, const llm_cache_key *key);

/* What is known of a cache, here or at a peer. */
typedef struct llm_cache_info {
    size_t struct_size;
    int64_t cache_id;
    uint32_t batch_index;  /* the slot that the key names, else the one asked for */
    uint32_t placement;    /* llm_placement */
    uint32_t num_tensors;  /* per device */
    uint32_t registered;   /* 1: memory of the application's */
    uint64_t num_slots;    /* shape[0] */
    uint64_t stride;       /* bytes from slot to slot */
    uint64_t tensor_bytes; /* of one tensor */
    uint64_t generation;   /* never 0, and never again that of another cache */
    /* llm_data_type, and the shape.  LLM_DT_UNDEFINED and 0: the peer, of an older version, doesn't
     * say; or the shape had no room beside all the tensors that its instance has. */
    int32_t data_type;
    uint32_t num_dims;
    int64_t dims[LLM_DIMS_MAX]; /* those behind num_dims are 0 */
} llm_cache_info;

/* What is known of a cache of this instance; batch_index is 0.
 * info: set struct_size before the call.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID; LLM_KV_CACHE_NOT_EXIST. */
LLM_API llm_status llm_get_cache_info(llm_datadist *dd, int64_t cache_id, llm_cache_info *info);

/* ============================================================================================
 * 5. Links (§6)
 * ============================================================================================ */

typedef struct llm_ip_info {
    /* IPv4, strictly "a.b.c.d"; IPv6, "::1", "fe80::1%eth0" or in brackets; the name of a host, which is
     * looked up during the call. */
    const char *ip;
    uint16_t port; /* of a listener to link to: 1..65535 */
} llm_ip_info;

typedef struct llm_cluster_info {
    size_t struct_size;
    uint64_t remote_cluster_id;
    int32_t remote_role_type; /* 0 prompt, 1 decoder; only logged */
    const llm_ip_info
        *local_ip_infos;       /* source per device; "0.0.0.0", port 0 = the system's choice */
    size_t num_local_ip_infos; /* = device count; unlinking in version 2: not looked at */
    const llm_ip_info *remote_ip_infos; /* the prompt's listener per device */
    size_t num_remote_ip_infos;         /* = device count; unlinking in version 2: 0 or 1 */
} llm_cluster_info;

/* Source addresses.  "0.0.0.0" always does; another address must be one of this host's from which the
 * peer can be reached.  In version 1 a port other than 0 is the one that the first connection to each
 * device comes from; while an old connection from there to the same listener lingers, the system chooses
 * another one, with a warning.  In version 2 the port isn't looked at: programs give the one at which
 * they listen (§13.4). */

/* Links a Decoder to 1..16 prompts (§6.1); in version 2 any instance to any number of those that listen
 * (§13.4): the link then has the id that the peer announces, whatever remote_cluster_id says, and the
 * call returns the last entry of rets that isn't LLM_SUCCESS.
 *
 * rets: room for num_clusters results, or NULL.  ret_num_rets: how many were written, or NULL; it is
 * left untouched when the timeout, an address or the role is wrong, 0 when the call fails before
 * any attempt, else num_clusters.
 * timeout_ms: > 0, one budget for the whole call.
 * A cluster that fails is rolled back; the others stay linked.  After success both ends can use the
 * link at once.  A broken or suspect link to the same cluster is replaced, and so is that of a peer that
 * came back; while the peer is heard, another instance that claims its id is refused.
 * Returns LLM_SUCCESS (all linked); LLM_FAILED (not initialized); LLM_PARAM_INVALID;
 * LLM_PROCESSING_LINK; LLM_CLUSTER_NUM_EXCEED_LIMIT; LLM_OUT_OF_MEMORY; LLM_LINK_FAILED (see rets:
 * LLM_LINK_FAILED, LLM_WAIT_PROC_TIMEOUT); or, if nothing was rolled back, the first failing entry of
 * rets (LLM_ALREADY_LINK, LLM_REPEAT_REQUEST). */
LLM_API llm_status llm_link_clusters(llm_datadist *dd, const llm_cluster_info *clusters,
                                     size_t num_clusters, llm_status *rets, size_t *ret_num_rets,
                                     int32_t timeout_ms);

/* Removes links (§6.2).  Decoder or Prompt.
 *
 * rets, ret_num_rets, timeout_ms: as above.  force = 0 on a Decoder tells the peer, so that both ends
 * are removed; otherwise only the local end goes.
 * rets: LLM_SUCCESS; LLM_NOT_YET_LINK (counts as success); LLM_REPEAT_REQUEST; LLM_PARAM_INVALID (the
 * addresses are not the link's; link kept); LLM_LINK_BUSY (a transfer runs; link kept);
 * LLM_NOTIFY_PROMPT_UNLINK_FAILED and LLM_WAIT_PROC_TIMEOUT (the link is gone here).  In version 2
 * any role tells the peer, addresses aren't needed or compared, a link that isn't there is LLM_SUCCESS,
 * and one that is broken is removed by force = 1 alone: otherwise LLM_UNLINK_FAILED, and it is kept.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID; LLM_PROCESSING_LINK;
 * LLM_CLUSTER_NUM_EXCEED_LIMIT; LLM_OUT_OF_MEMORY; LLM_UNLINK_FAILED (see rets; version 2: the last
 * entry of rets that failed).
 * With force = 1 LLM_LINK_BUSY stands for transfers that this side has begun alone.  What the peer does
 * on the link is waited for, up to the sync wait time plus the liveness time, or timeout_ms if that is
 * less; then it ends with the link. */
LLM_API llm_status llm_unlink_clusters(llm_datadist *dd, const llm_cluster_info *clusters,
                                       size_t num_clusters, llm_status *rets, size_t *ret_num_rets,
                                       int32_t timeout_ms, int force);

/* ============================================================================================
 * 6. Transfers (§8)
 *
 * The local side is named by cache_id alone, the remote side by an llm_cache_index.  Calls on one
 * link may run side by side, however many: the peer is asked for 960 at a time, the others wait for
 * their turn in the order of their calls.  A transfer has no effect beyond the slots it names; after an
 * error their contents are undefined.
 *
 * Beside what the calls below list, each may return LLM_CACHE_STALE (if a generation or progress was
 * given), LLM_CHECKSUM_MISMATCH (LLM_OPTION_CHECKSUM), LLM_TRANSFER_CANCELLED (`interrupted`),
 * LLM_LINK_BUSY (a peer of another make, that serves fewer at a time) and LLM_OUT_OF_MEMORY.  On a link
 * that is suspect it waits for the peer within its own time limit, and ends as LLM_WAIT_PROC_TIMEOUT; the
 * link stays.  On one that is broken, and not made anew (LLM_OPTION_RELINK): LLM_WAIT_PROC_TIMEOUT if the
 * peer was silent for too long, else LLM_FAILED.  A push whose end the peer doesn't confirm returns a liveness time later.  In version 2
 * LLM_TIMEOUT stands for LLM_WAIT_PROC_TIMEOUT, the roles that are named restrict nobody, and an
 * instance's own cluster id is LLM_PARAM_INVALID in a pull.
 * ============================================================================================ */

typedef struct llm_cache_index {
    size_t struct_size;
    uint64_t cluster_id;  /* the peer */
    int64_t cache_id;     /* the peer's cache */
    uint32_t batch_index; /* the peer's slot; 0 for the Blocks calls */
    /* Not 0: the cache must have this generation (llm_cache_info), or the slots lie in the range of
     * the lease with this generation (llm_lease_open), from beginning to end of the transfer; else
     * LLM_CACHE_STALE. */
    uint64_t generation;
    /* Not NULL: the peer's cache, or slot, with this key; cache_id and batch_index are not read.
     * Blocks and pushes take LLM_KEY_BLOCKS, slots the other kinds. */
    const llm_cache_key *key;
    /* Pushes, not NULL: where the selected tensors are, by their addresses in the peer's process;
     * num_addrs is their number, at most LLM_ADDRS_MAX.  A slot goes to the address itself, block i to
     * i strides behind it.  Only memory of caches there can be reached, else LLM_PARAM_INVALID.
     * cache_id, batch_index, key and dst_layer_range are not read; generation must be 0, and progress
     * NULL. */
    const uint64_t *addrs;
    size_t num_addrs;
} llm_cache_index;

#define LLM_ADDRS_MAX 1024

/* How far a transfer has come.  Its bytes are counted as one stream: tensor after tensor (those of the
 * first device, then of the second, ...), and in each the blocks in the order of the lists.  So with
 * blocks of `stride` bytes, block number i of the list of tensor t has arrived when
 *
 *     bytes_arrived >= (t * num_blocks + i + 1) * stride
 *
 * A transfer that failed is continued by the same call with the same llm_progress: only what lies
 * behind bytes_arrived moves, so that nobody may have written to the destination meanwhile.  If the
 * peer's cache is another one by then, or the key of a pull was bound anew: LLM_CACHE_STALE, and nothing
 * moves.  Fill it with zeros, and set struct_size, before the first call. */
typedef struct llm_progress {
    size_t struct_size;
    uint64_t generation;    /* of the peer's cache */
    uint64_t bytes_arrived; /* from the beginning, without a gap; of a push, as far as known here */
    uint64_t total_bytes;   /* 0: not known yet */
    uint64_t bytes_moved;   /* by the last call */
    uint64_t token;         /* the library's: names a push that was cut, or what a key led to */
} llm_progress;

/* Whether the caller wants its transfer ended, because of a signal for instance: another answer than 0
 * ends it as LLM_TRANSFER_CANCELLED.  Called on the caller's thread; must not call the library. */
typedef int (*llm_interrupt)(void *arg);

/* Which layers.  Start from LLM_KV_CACHE_EXT_PARAM_INIT; NULL means the same.
 * Ranges are inclusive and begin at 0; {-1, -1} means all layers.  Source and destination ranges have
 * the same length; tensor_num_per_layer (1..255) must divide the number of tensors, but for the 2 of a
 * pull without ranges. */
typedef struct llm_kv_cache_ext_param {
    size_t struct_size;
    int32_t src_layer_range[2];
    int32_t dst_layer_range[2];
    uint32_t tensor_num_per_layer;
    /* Milliseconds for this transfer; 0 = LLM_OPTION_SYNC_CACHE_WAIT_TIME, per layer for a push. */
    uint32_t timeout_ms;
    /* Up to LLM_NOTIFICATION_BYTES_MAX bytes that the peer gets, by llm_poll_notification, once the
     * last byte of this transfer has arrived.  NULL = none.  A peer that holds 16384 of this cluster's
     * which it hasn't polled refuses pushes that carry one with LLM_LINK_BUSY; that of a pull is then
     * dropped, with a line in the peer's log. */
    const void *notification;
    size_t notification_bytes;
    /* llm_pull_kv_cache and llm_pull_kv_cache_to_blocks: the copy begins so many bytes into the
     * remote and the local slot; a size of -1 means what is left of the local slot then. */
    uint64_t src_offset;
    uint64_t dst_offset;
    /* 1: request keys stay (section 4). */
    uint32_t keep_key;
    /* Pulls; 1, with the generation of a lease: the owner is told when all has arrived, and the lease
     * counts one release. */
    uint32_t release_lease;
    /* Not NULL: where to go on, and on return, also of a failed call, how far it has come.  Of a
     * started transfer it is read only; ask llm_transfer_get_progress. */
    llm_progress *progress;
    /* Not NULL, of a call that waits: asked every 20 ms or so while the transfer runs. */
    llm_interrupt interrupted;
    void *interrupted_arg;
    /* 1: the bytes are transferred, whatever they mean at either end.  Otherwise the types of both
     * caches (llm_cache_desc.data_type) must be the same, or integers of the same width, signed or
     * not, else LLM_PARAM_INVALID; a peer of an older version is believed to have the same. */
    uint32_t allow_other_type;
    uint32_t reserved; /* 0 */
} llm_kv_cache_ext_param;

#define LLM_KV_CACHE_EXT_PARAM_INIT                                                                \
    {                                                                                              \
        sizeof(llm_kv_cache_ext_param), {-1, -1}, {-1, -1}, 2, 0, NULL, 0, 0, 0, 0, 0, NULL, NULL, \
            NULL, 0, 0                                                                             \
    }

#define LLM_NOTIFICATION_BYTES_MAX 4096

/* Copies a batch slot of a prompt's cache to a slot of a local cache, tensor by tensor (§8.2).
 * Decoder only.
 *
 * src: the prompt's cache and slot.  dst: only cache_id is read.  dst_batch_index: the local slot.
 * size: bytes per tensor, > 0, or -1 for the local stride.
 * Returns, in this order of checks: LLM_FAILED (not initialized); LLM_PARAM_INVALID (size, ranges,
 * role); LLM_KV_CACHE_NOT_EXIST (local cache); LLM_PARAM_INVALID (slot, layers, size beyond the
 * stride); LLM_NOT_YET_LINK; LLM_LINK_BUSY (being unlinked); LLM_KV_CACHE_NOT_EXIST (remote cache or
 * slot); LLM_PARAM_INVALID (size beyond the remote stride, remote layers, data types);
 * LLM_WAIT_PROC_TIMEOUT; LLM_FAILED (the peer is gone). */
LLM_API llm_status llm_pull_kv_cache(llm_datadist *dd, const llm_cache_index *src,
                                     const llm_cache *dst, uint32_t dst_batch_index, int64_t size,
                                     const llm_kv_cache_ext_param *param);

/* Copies a batch slot of a prompt's cache into blocks of a local cache, tensor by tensor: cut into
 * pieces of the local stride, which go to dst_blocks in their order.  Decoder only.
 *
 * size: bytes per tensor, > 0, or -1 for what the blocks hold, or the slot if it is shorter.  A last
 * piece that doesn't fill its block leaves the rest of it alone.  dst_offset must be 0.
 * Returns as llm_pull_kv_cache; LLM_PARAM_INVALID also if the remote slot, behind src_offset, is
 * shorter than a block, or than `size`, or the blocks are too few for `size`. */
LLM_API llm_status llm_pull_kv_cache_to_blocks(llm_datadist *dd, const llm_cache_index *src,
                                               const llm_cache *dst, const uint64_t *dst_blocks,
                                               size_t num_dst_blocks, int64_t size,
                                               const llm_kv_cache_ext_param *param);

/* Copies block src_blocks[i] of a prompt's cache to block dst_blocks[i] of a local cache, for every
 * selected tensor (§8.3).  Decoder only.  Both strides must be equal.  src->batch_index must be 0.
 * Returns, in this order: LLM_FAILED; LLM_PARAM_INVALID (batch_index, ranges, role, empty or unequal
 * lists); LLM_KV_CACHE_NOT_EXIST (local cache); LLM_PARAM_INVALID (dst_blocks, layers);
 * LLM_NOT_YET_LINK; LLM_LINK_BUSY; LLM_KV_CACHE_NOT_EXIST (remote cache); LLM_PARAM_INVALID (stride,
 * src_blocks, remote layers, data types); LLM_WAIT_PROC_TIMEOUT; LLM_FAILED (the peer is gone). */
LLM_API llm_status llm_pull_kv_blocks(llm_datadist *dd, const llm_cache_index *src,
                                      const llm_cache *dst, const uint64_t *src_blocks,
                                      size_t num_src_blocks, const uint64_t *dst_blocks,
                                      size_t num_dst_blocks, const llm_kv_cache_ext_param *param);

/* Copies a local batch slot to a slot of a linked decoder's cache, tensor by tensor (§8.4).  Prompt
 * with one device only.
 *
 * src: cache_id, and from desc (NULL: the allocated one's) placement and num_tensors are read.
 * size: must be -1, the local stride, which must not exceed the remote one.
 * Returns, in this order: LLM_FAILED; LLM_PARAM_INVALID (placement, size, ranges);
 * LLM_FEATURE_NOT_ENABLED (several devices); LLM_PARAM_INVALID (role); LLM_KV_CACHE_NOT_EXIST (local
 * cache); LLM_PARAM_INVALID (slot, layers); LLM_NOT_YET_LINK; LLM_LINK_BUSY; LLM_KV_CACHE_NOT_EXIST
 * (remote cache or slot); LLM_PARAM_INVALID (remote stride or layers, data types);
 * LLM_WAIT_PROC_TIMEOUT; LLM_FAILED (the peer is gone). */
LLM_API llm_status llm_push_kv_cache(llm_datadist *dd, const llm_cache *src,
                                     const llm_cache_index *dst, uint32_t src_batch_index,
                                     int64_t size, const llm_kv_cache_ext_param *param);

/* Copies local block src_blocks[i] to block dst_blocks[i] of a linked decoder's cache (§8.5).  Prompt
 * with one device only.  Both strides must be equal; every index is checked before a byte moves.
 * Returns as llm_push_kv_cache, and LLM_PARAM_INVALID for lists that are empty, unequal, or name a
 * block that doesn't exist. */
LLM_API llm_status llm_push_kv_blocks(llm_datadist *dd, const llm_cache *src,
                                      const llm_cache_index *dst, const uint64_t *src_blocks,
                                      size_t num_src_blocks, const uint64_t *dst_blocks,
                                      size_t num_dst_blocks, const llm_kv_cache_ext_param *param);

/* What a linked peer has under a name: an id, or a key.
 * index: as for a transfer, but addrs are not read; a generation must be the cache's.
 * info: set struct_size before the call.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized, the peer is gone); LLM_PARAM_INVALID;
 * LLM_NOT_YET_LINK; LLM_LINK_BUSY (being unlinked); LLM_KV_CACHE_NOT_EXIST; LLM_CACHE_STALE;
 * LLM_WAIT_PROC_TIMEOUT (after LLM_OPTION_SYNC_CACHE_WAIT_TIME); LLM_OUT_OF_MEMORY. */
LLM_API llm_status llm_query_cache(llm_datadist *dd, const llm_cache_index *index,
                                   llm_cache_info *info);

/* ============================================================================================
 * 7. Side by side
 *
 * The same transfers, started now and awaited later; several run side by side, also on one
 * link.  All arguments are read before the call returns, except the memory of the caches.  A start
 * makes the same checks as the call that waits and returns the same statuses for what it finds;
 * LLM_SUCCESS means that *ret_transfer_id names a transfer.  It ends exactly once, with one result,
 * also when the peer dies.  Release every transfer that was started.
 * ============================================================================================ */

LLM_API llm_status llm_start_pull_kv_cache(llm_datadist *dd, const llm_cache_index *src,
                                           const llm_cache *dst, uint32_t dst_batch_index,
                                           int64_t size, const llm_kv_cache_ext_param *param,
                                           uint64_t *ret_transfer_id);
LLM_API llm_status llm_start_pull_kv_cache_to_blocks(llm_datadist *dd, const llm_cache_index *src,
                                                     const llm_cache *dst,
                                                     const uint64_t *dst_blocks,
                                                     size_t num_dst_blocks, int64_t size,
                                                     const llm_kv_cache_ext_param *param,
                                                     uint64_t *ret_transfer_id);
LLM_API llm_status llm_start_pull_kv_blocks(llm_datadist *dd, const llm_cache_index *src,
                                            const llm_cache *dst, const uint64_t *src_blocks,
                                            size_t num_src_blocks, const uint64_t *dst_blocks,
                                            size_t num_dst_blocks,
                                            const llm_kv_cache_ext_param *param,
                                            uint64_t *ret_transfer_id);
LLM_API llm_status llm_start_push_kv_cache(llm_datadist *dd, const llm_cache *src,
                                           const llm_cache_index *dst, uint32_t src_batch_index,
                                           int64_t size, const llm_kv_cache_ext_param *param,
                                           uint64_t *ret_transfer_id);
LLM_API llm_status llm_start_push_kv_blocks(llm_datadist *dd, const llm_cache *src,
                                            const llm_cache_index *dst, const uint64_t *src_blocks,
                                            size_t num_src_blocks, const uint64_t *dst_blocks,
                                            size_t num_dst_blocks,
                                            const llm_kv_cache_ext_param *param,
                                            uint64_t *ret_transfer_id);

/* The transfer's result, or LLM_TRANSFER_PENDING.  Never blocks.
 * Also LLM_FAILED (not initialized); LLM_PARAM_INVALID (no such transfer). */
LLM_API llm_status llm_transfer_poll(llm_datadist *dd, uint64_t transfer_id);

/* Waits up to timeout_ms (-1: without limit; less: LLM_PARAM_INVALID) and returns as llm_transfer_poll. */
LLM_API llm_status llm_transfer_wait(llm_datadist *dd, uint64_t transfer_id, int32_t timeout_ms);

/* How far the transfer has come by now, or when it ended.
 * progress: set struct_size before the call.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID (no such transfer). */
LLM_API llm_status llm_transfer_get_progress(llm_datadist *dd, uint64_t transfer_id,
                                             llm_progress *progress);

/* Ends the transfer unless it has ended, and returns when no byte of it can land any more.  Its
 * result is then LLM_TRANSFER_CANCELLED, or whatever ended it before.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID (no such transfer). */
LLM_API llm_status llm_transfer_cancel(llm_datadist *dd, uint64_t transfer_id);

/* Forgets the transfer; one that has not ended is cancelled first.
 * Returns as llm_transfer_cancel. */
LLM_API llm_status llm_transfer_release(llm_datadist *dd, uint64_t transfer_id);

/* An eventfd that becomes readable when a started transfer, or a lease, ends; reading it resets it.  It
 * belongs to the instance and lives until llm_finalize.  -1 if not initialized. */
LLM_API int llm_transfer_fd(llm_datadist *dd);

/* Takes the oldest notification that has arrived.
 *
 * buf: room for `size` bytes; LLM_NOTIFICATION_BYTES_MAX always suffices.
 * ret_cluster_id: the peer that sent it, or NULL.  ret_bytes: its length.
 * Returns LLM_SUCCESS; LLM_NO_NOTIFICATION; LLM_PARAM_INVALID (too little room: *ret_bytes tells how
 * much it needs, and the notification stays); LLM_FAILED (not initialized). */
LLM_API llm_status llm_poll_notification(llm_datadist *dd, uint64_t *ret_cluster_id, void *buf,
                                         size_t size, size_t *ret_bytes);

/* An eventfd that becomes readable when a notification arrives; otherwise as llm_transfer_fd. */
LLM_API int llm_notification_fd(llm_datadist *dd);

/* ============================================================================================
 * 8. Leases
 *
 * A lease tells its owner when blocks may be used again.  The owner opens it on a range of a cache's
 * blocks and passes its generation on, together with cluster and cache id; peers name it in
 * llm_cache_index.generation, and pull from these blocks as long as the lease lives.  Afterwards they
 * get LLM_CACHE_STALE: also if the lease ended in the middle of a pull, so that success never stands
 * for blocks that somebody else has got meanwhile.
 *
 * A lease lives until it was released as often as wanted, its time is up, it is closed, or its cache
 * is freed.  It has *ended* once nobody reads under it any more; whoever reads for longer than the
 * sync wait time plus the liveness time after that loses its pull.  Close every lease that was opened.
 * ============================================================================================ */

typedef struct llm_lease_desc {
    size_t struct_size;
    int64_t cache_id;
    uint64_t first_block;  /* or slot */
    uint64_t num_blocks;   /* 0: all from first_block on */
    uint32_t duration_ms;  /* 1 or more */
    uint32_t num_releases; /* ends with so many pulls that release it; 0: pulls don't end it */
} llm_lease_desc;

/* Opens a lease; *ret_generation is its name.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID (range, duration);
 * LLM_KV_CACHE_NOT_EXIST; LLM_OUT_OF_MEMORY (also more than 65536 leases that haven't ended). */
LLM_API llm_status llm_lease_open(llm_datadist *dd, const llm_lease_desc *desc,
                                  uint64_t *ret_generation);

/* Lets a lease that lives end duration_ms from now.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID (no such lease; duration_ms is
 * 0); LLM_CACHE_STALE (it has ended, or is about to). */
LLM_API llm_status llm_lease_renew(llm_datadist *dd, uint64_t generation, uint32_t duration_ms);

/* Waits up to timeout_ms (-1: without limit, 0: not at all) until the lease has ended.
 * Returns LLM_SUCCESS (it was released as often as wanted); LLM_LEASE_EXPIRED (its time was up);
 * LLM_KV_CACHE_NOT_EXIST (its cache was freed); LLM_LEASE_ACTIVE (it has not ended);
 * LLM_FAILED (not initialized); LLM_PARAM_INVALID (no such lease; timeout_ms below -1). */
LLM_API llm_status llm_lease_wait(llm_datadist *dd, uint64_t generation, int32_t timeout_ms);

/* Ends the lease unless it has ended, forgets it, and returns when nobody reads under it any more.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID (no such lease). */
LLM_API llm_status llm_lease_close(llm_datadist *dd, uint64_t generation);

/* ============================================================================================
 * 9. Local copies (§9)
 *
 * They work on the addresses in the llm_cache structs alone, which may be made by hand, for host
 * memory for instance.  No role, no link, no time limit.  All indices are checked before the first
 * byte moves.
 * ============================================================================================ */

/* dst[dst slot][offset...] = src[src slot][offset...] for every tensor (§9.3).
 * Device to device and device to host.  size: bytes, > 0, or -1 for the rest of the source slot behind
 * `offset`, bytes too; what is copied must fit both strides.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID; LLM_OUT_OF_MEMORY. */
LLM_API llm_status llm_copy_kv_cache(llm_datadist *dd, const llm_cache *src, const llm_cache *dst,
                                     uint32_t src_batch_index, uint32_t dst_batch_index,
                                     uint64_t offset, int64_t size);

/* Block src_blocks[k] to dst_blocks_list[j][k], for all j and k (§9.4).  Every placement but host to
 * host.  num_dst_blocks[j] is the length of list j and must equal num_src_blocks; both strides must be
 * equal.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID; LLM_OUT_OF_MEMORY. */
LLM_API llm_status llm_copy_kv_blocks(llm_datadist *dd, const llm_cache *src, const llm_cache *dst,
                                      const uint64_t *src_blocks, size_t num_src_blocks,
                                      const uint64_t *const *dst_blocks_list,
                                      const size_t *num_dst_blocks, size_t num_dst_lists);

/* ============================================================================================
 * 10. Looking inside
 * ============================================================================================ */

typedef enum llm_link_state {
    LLM_LINK_READY = 1,   /* transfers work */
    LLM_LINK_BROKEN = 2,  /* the peer is dead, was silent for too long or misbehaved: link again */
    LLM_LINK_REMOVED = 3, /* unlinked, by either side, or replaced; of events alone */
    LLM_LINK_SUSPECT = 4  /* the peer is silent, but not known to be dead: transfers wait for it */
} llm_link_state;

typedef struct llm_link_info {
    size_t struct_size;
    uint64_t cluster_id;
    uint32_t state;       /* llm_link_state */
    uint32_t num_devices; /* connections, one per device */
    char transport[16];   /* "local", "shm" or "tcp" */
    char reason
        [232]; /* why the transports before it were passed over, or why it broke or is suspect */
} llm_link_info;

/* What is known about the link to a cluster.
 * info: set struct_size before the call.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_NOT_YET_LINK; LLM_PARAM_INVALID. */
LLM_API llm_status llm_get_link_info(llm_datadist *dd, uint64_t cluster_id, llm_link_info *info);

/* Does the link work, as far as is known?  Heartbeats tell, so that a silent peer is known within the
 * liveness time without a transfer.  Answers at once.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_NOT_YET_LINK; LLM_WAIT_PROC_TIMEOUT (it is
 * suspect); LLM_LINK_FAILED (it is broken: llm_get_link_info says why). */
LLM_API llm_status llm_check_link_status(llm_datadist *dd, uint64_t cluster_id);

/* Takes the oldest change of a link that has not been polled: it is ready, also again, suspect, broken or
 * removed.
 * Up to 1024 are kept; then the oldest are dropped.
 * info: set struct_size before the call; state and reason tell what happened.
 * Returns LLM_SUCCESS; LLM_NO_LINK_EVENT; LLM_FAILED (not initialized); LLM_PARAM_INVALID. */
LLM_API llm_status llm_poll_link_event(llm_datadist *dd, llm_link_info *info);

/* An eventfd that becomes readable when a link changes; otherwise as llm_transfer_fd. */
LLM_API int llm_link_event_fd(llm_datadist *dd);

/* The ids of all linked clusters.
 * cluster_ids: room for `room` ids, NULL if room is 0.  ret_num_links: how many links there are; if it
 * is more than `room`, only so many were written.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID. */
LLM_API llm_status llm_list_links(llm_datadist *dd, uint64_t *cluster_ids, size_t room,
                                  size_t *ret_num_links);

/* The port at which device number device_index (0 = first of LLM_OPTION_DEVICE_ID) listens.
 * Returns LLM_SUCCESS; LLM_FAILED (not initialized); LLM_PARAM_INVALID (no such device, or the
 * instance doesn't listen). */
LLM_API llm_status llm_get_listen_port(llm_datadist *dd, size_t device_index, uint16_t *ret_port);

/* The explanation of this thread's last failed call, the same text as in the log; "" if none failed.
 * Calls that wait or poll in vain (LLM_TRANSFER_PENDING, LLM_LEASE_ACTIVE, LLM_NO_...) leave it alone.
 * Writes at most `size` bytes with the closing zero; returns the length of the whole text. */
LLM_API size_t llm_last_error(char *buf, size_t size);

typedef enum llm_log_level {
    LLM_LOG_OFF = 0,
    LLM_LOG_ERROR = 1, /* an operation failed */
    LLM_LOG_WARN = 2,  /* degraded, still running */
    LLM_LOG_INFO = 3,  /* links and caches come and go */
    LLM_LOG_DEBUG = 4  /* per transfer */
} llm_log_level;

/* The log.  A line names the instance, the part that speaks, and the event: "cluster 2: link: ...".
 * On standard error date, time, zone, process and level come before it.  There nothing waits for a
 * reader: what a full pipe or terminal doesn't take is lost, and the next line says how many were.  Of
 * errors and warnings a place in the code says the same text once a second, and at most 50 texts; how
 * many were left out follows.  llm_last_error knows each failure all the same.
 *
 * A sink receives one line without a newline.  Called on any thread, several at once, and never under a
 * lock of the library's; must not call the library. */
typedef void (*llm_log_sink)(void *arg, llm_log_level level, const char *line);

/* Sends the log of this process to `sink`; NULL restores standard error. */
LLM_API void llm_set_log_sink(llm_log_sink sink, void *arg);

/* Sets the level for this process; what LLM_DATADIST_LOG_LEVEL says wins. */
LLM_API void llm_set_log_level(llm_log_level level);

#define LLM_VERSION_MAJOR 0
#define LLM_VERSION_MINOR 1
#define LLM_VERSION_PATCH 0

/* The library's version, "0.1.0". */
LLM_API const char *llm_version(void);

/* How the library was built and what it found, as lines of "name: value", for bug reports.
 * Writes at most `size` bytes with the closing zero; returns the length of the whole text. */
LLM_API size_t llm_describe(char *buf, size_t size);

#ifdef __cplusplus
}
#endif

#endif

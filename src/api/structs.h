// The public structs that may grow: how large each was when it was first published, which stays as it
// is for ever, and how those of a caller, of whatever version, are read and written.
#ifndef LLI_STRUCTS_H
#define LLI_STRUCTS_H

#include "base/base.h"

// X(struct, last field of its first published version, bytes up to its end on 64-bit machines)
#define LLI_STRUCT_MAP(X)                                                                          \
    X(llm_option_info, help, 32)                                                                   \
    X(llm_cache_desc, num_dims, 40)                                                                \
    X(llm_cache, num_tensor_addrs, 40)                                                             \
    X(llm_cache_key, model_id, 32)                                                                 \
    X(llm_cache_info, generation, 64)                                                              \
    X(llm_cluster_info, num_remote_ip_infos, 56)                                                   \
    X(llm_cache_index, batch_index, 28)                                                            \
    X(llm_progress, token, 48)                                                                     \
    X(llm_kv_cache_ext_param, tensor_num_per_layer, 28)                                            \
    X(llm_lease_desc, num_releases, 40)                                                            \
    X(llm_link_info, reason, 272)

enum {
#define LLI_STRUCT_FIRST_(type, last, bytes)                                                       \
    LLI_FIRST_BYTES_##type = offsetof(type, last) + sizeof(((type *)0)->last),
    LLI_STRUCT_MAP(LLI_STRUCT_FIRST_)
#undef LLI_STRUCT_FIRST_
};

#define LLI_STRUCT_FROZEN_(type, last, bytes)                                                      \
    _Static_assert(offsetof(type, struct_size) == 0, #type " begins with struct_size");            \
    _Static_assert(sizeof(void *) != 8 || LLI_FIRST_BYTES_##type == (bytes),                       \
                   "the first fields of " #type " stay where they are");
LLI_STRUCT_MAP(LLI_STRUCT_FROZEN_)
#undef LLI_STRUCT_FROZEN_

// Copies a caller's struct into `ret` of `known_bytes`: what the caller's version doesn't have reads as
// zero, what ours doesn't know must be zero.  A struct_size of 0 stands for `first_bytes`.
llm_status lli_check_struct(const void *caller, const char *name, size_t first_bytes,
                            size_t known_bytes, void *ret);
#define LLI_CHECK_STRUCT(caller, type, ret)                                                        \
    lli_check_struct((caller), #type, LLI_FIRST_BYTES_##type, sizeof(type), (ret))

// Writes `known` into a caller's struct that was checked: as much as the caller's version has, and
// never its struct_size.
void lli_write_struct(const void *known, size_t first_bytes, size_t known_bytes, void *caller);
#define LLI_WRITE_STRUCT(known, type, caller)                                                      \
    lli_write_struct((known), LLI_FIRST_BYTES_##type, sizeof(type), (caller))

// The struct number `index` of a caller's array, whose step is the size of its first.
const void *lli_struct_at(const void *array, size_t first_bytes, size_t index);
#define LLI_STRUCT_AT(array, type, index)                                                          \
    ((const type *)lli_struct_at((array), LLI_FIRST_BYTES_##type, (index)))

#endif

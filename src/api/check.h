// Small checks that several calls share.
#ifndef LLI_CHECK_H
#define LLI_CHECK_H

#include "base/base.h"
#include "cache/names.h"
#include "engine/engine.h"

// The universal first check (§0.3).
llm_status lli_check_initialized(const llm_datadist *dd, const char *call);

// Copies a caller's struct, of whatever version, into `ret` of `known_bytes`: what the caller's
// version doesn't have reads as zero, what ours doesn't know must be zero.  `first_bytes`: the size
// of its first published version, which a struct_size of 0 stands for.
llm_status lli_check_struct(const void *caller, const char *name, size_t first_bytes,
                            size_t known_bytes, void *ret);

#define LLI_CHECK_STRUCT(caller, type, ret)                                                        \
    lli_check_struct((caller), #type, sizeof(type), sizeof(type), (ret))

// A caller's key.
llm_status lli_read_key(const llm_cache_key *key, struct lli_key *ret_key);

const char *lli_role_name(int role);

// The status of a transfer or a link as this instance's version spells it: §13.4 and §13.5 have
// LLM_TIMEOUT.
llm_status lli_transfer_status(const llm_datadist *dd, llm_status status);

#endif

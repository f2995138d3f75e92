// Small checks that several calls share.
#ifndef LLI_CHECK_H
#define LLI_CHECK_H

#include "api/structs.h"
#include "base/base.h"
#include "cache/names.h"
#include "engine/engine.h"

// The universal first check (§0.3).
llm_status lli_check_initialized(const llm_datadist *dd, const char *call);

// A caller's key.
llm_status lli_read_key(const llm_cache_key *key, struct lli_key *ret_key);

const char *lli_role_name(int role);

// The status of a transfer or a link as this instance's version spells it: §13.4 and §13.5 have
// LLM_TIMEOUT.
llm_status lli_transfer_status(const llm_datadist *dd, llm_status status);

#endif

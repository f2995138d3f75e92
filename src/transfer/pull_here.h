// A pull on one host that its caller waits for: a copy in the caller's thread, which wakes nobody.
#ifndef LLI_PULL_HERE_H
#define LLI_PULL_HERE_H

#include "transfer/describe.h"

// The link is acquired, the peer's memory can be read from here.
llm_status lli_pull_here(struct lli_link *link, const struct lli_transfer_args *args);

#endif

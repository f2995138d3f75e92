// The assertions of §2.1; that this compiles is the proof.
#include "layout_checks.h"

extern "C" int layouts_are_checked(void);

extern "C" int
layouts_are_checked(void)
{
    return sizeof(llm_datadist::Cache) == 328 ? 1 : 0;
}

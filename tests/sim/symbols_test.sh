#!/usr/bin/env bash
# symbols_test.sh LIBRARY: whatever the simulated library still takes from the system itself must be
# harmless: text, memory, Jansson.  A new system call belongs into calls.txt, and into the simulation.
set -euo pipefail

harmless='^(_ITM_|__cxa_finalize$|__gmon_start__$|__errno_location$|__tls_get_addr$|__ctype_'
harmless+='|__stack_chk_fail$|__assert_fail$|abort$|json_|inet_[np]to[np]$|mem[a-z]+$|str[a-z]+$'
harmless+='|v?snprintf$|fprintf$|fputs$|fwrite$|stderr$|localtime_r$|sig(fill|del)set$|qsort$|sim_|__wrap_)'
found=$(nm -D --undefined-only "$1" | awk '{sub(/@.*/, "", $NF); print $NF}' |
    grep -Ev "$harmless" || true)
if [ -n "$found" ]; then
    echo "the library calls what the simulation doesn't know:" $found
    exit 1
fi

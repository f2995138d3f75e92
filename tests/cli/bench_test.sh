#!/bin/sh
# llm-datadist bench on tiny sizes: tables, JSON that parses and says that the data was right, a
# plot, exit codes.
#
#     bench_test.sh PROGRAM
set -u

program=$1
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
failures=0

fail() {
    echo "$*"
    failures=$((failures + 1))
}

# expect STATUS ARGUMENT...: the exit status, quickly.
expect() {
    status=$1
    shift
    "$program" bench "$@" >"$directory/out" 2>"$directory/err" </dev/null
    got=$?
    [ "$got" -eq "$status" ] || fail "bench $*: exit status $got, expected $status: $(cat "$directory/err")"
}

expect 0 --help
expect 0 --list
expect 2 --no-such-option
expect 2 --set huge
expect 2 --rounds 0
expect 2 --bytes x
expect 2 --only no-such-table
expect 2 --svg
expect 1 --only links-shm-1 --rounds 1 --svg /nonexistent/directory/x.svg

expect 0 --only block-64k --only registered-64k --only hybrid --rounds 1 --bytes 4M
grep -q 'shm pull, 1 thread .* streaming copy' "$directory/out" || fail "no line for shm pulls"
for way in 'shm pull, crc32c .* shm pull, 1 thread' 'tcp pull x2, crc32c .* tcp pull x2' \
    'tcp push x2, crc32c .* tcp push x2'; do
    grep -q "$way\$" "$directory/out" || fail "no line for '$way'"
done
[ "$(grep -c 'shm pull, crc32c ' "$directory/out")" -eq 2 ] || fail "not in the table of registered memory"
grep -q 'met .* at least 0.95 .*block-64k: shm pull, 1 thread / streaming copy' "$directory/out" ||
    fail "no line for a goal"
if [ -x "${program%/*}/bench-ucx" ]; then
    grep -q 'ucx cma ' "$directory/out" || fail "UCX is there, and no line for it"
else
    [ "$(grep -c '^ucx: not built in' "$directory/out")" -eq 1 ] || fail "not said that UCX is missing"
fi

expect 0 --only block-4k --only block-64k --only owner-cpu --only links-tcp-1 --rounds 2 --bytes 1M --json \
    --svg "$directory/plot.svg"
python3 - "$directory/out" "$directory/plot.svg" "${0%/*}/../../scripts/bench-table" <<'PYTHON' || fail "the results are not as expected"
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

results = json.load(open(sys.argv[1]))
assert results["ok"] is True
assert [table["name"] for table in results["tables"]] == ["block-4k", "block-64k", "owner-cpu", "links-tcp-1"]
blocks = {series["name"]: series for series in results["tables"][0]["series"]}
assert {"memcpy", "shm pull, 1 thread", "shm pull, 2 threads", "shm push", "tcp pull x2"} <= set(blocks)
for series in blocks.values():
    assert series["verified"] and len(series["values"]) == 2
    assert 0 < series["min"] <= series["median"] <= series["max"]
checked = {series["name"]: series for series in results["tables"][1]["series"]}["tcp pull x2, crc32c"]
assert checked["verified"] and checked["ratios"]["tcp pull x2"] > 0 and not checked["yardstick"]
pull = blocks["shm pull, 1 thread"]
assert pull["ratios"]["memcpy"] > 0
goals = {(goal["series"], goal["than"]): goal for goal in results["goals"]}
goal = goals["shm pull, 1 thread", "streaming copy"]
assert goal["table"] == "block-4k" and goal["bound"] == 0.8 and not goal["at_most"]
assert goal["measured"] == pull["ratios"]["streaming copy"]
assert all(goal["met"] == ((goal["measured"] <= goal["bound"]) if goal["at_most"]
                           else goal["measured"] >= goal["bound"]) for goal in results["goals"])
markdown = subprocess.run([sys.argv[3], sys.argv[1]], check=True, capture_output=True, text=True).stdout
assert "| *memcpy* |" in markdown and "| tcp push x2, crc32c |" in markdown and "| shm pull, 2 threads |" in markdown
assert "| block-4k: shm pull, 1 thread, at least 0.8 of streaming copy |" in markdown
assert ElementTree.parse(sys.argv[2]).getroot().tag.endswith("svg")
PYTHON
[ "$failures" -eq 0 ]

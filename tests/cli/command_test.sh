#!/bin/sh
# The command line of llm-datadist: help, version, misspelt subcommands, exit codes.
#
#     command_test.sh PROGRAM VERSION
set -u

program=$1
version=$2
failures=0

# expect STATUS PATTERN ARGUMENT...: the exit status, and a pattern that the output contains.
expect() {
    status=$1 pattern=$2
    shift 2
    output=$("$program" "$@" 2>&1 </dev/null)
    got=$?
    if [ "$got" -ne "$status" ] || ! printf '%s\n' "$output" | grep -q -- "$pattern"; then
        printf 'llm-datadist %s: exit status %d (expected %d), expected "%s" in:\n%s\n' \
            "$*" "$got" "$status" "$pattern" "$output"
        failures=$((failures + 1))
    fi
}

expect 2 'usage: llm-datadist'
expect 0 'usage: llm-datadist' --help
expect 0 '^    demo ' help
expect 0 "^llm-datadist $version\$" --version
expect 2 "did you mean 'demo'" dmeo
expect 2 "did you mean 'info'" inof
expect 2 'llm-datadist --help lists them' transmogrify
expect 2 'llm-datadist --help lists them' ''
expect 2 'llm-datadist --help lists them' --unknown
expect 0 'usage:' demo --help
expect 0 'usage:' info --help
expect 2 . demo --no-such-argument
expect 2 . info --no-such-argument
expect 0 "$version" info
expect 0 'usage:' info --json --help
expect 2 'is "local host:1", expected HOST:PORT' info --connect "local host:1"
expect 2 'is "127.0.0.1:70000", .* 1..65535' info --json --connect 127.0.0.1:70000
expect 2 'is "::1:26000"' info --connect ::1:26000
expect 2 'needs --connect' info --transports tcp
expect 2 'llm.Transports is "rdma": expected' info --transports rdma --connect 127.0.0.1:1
expect 1 "can't link" info --connect 127.0.0.1:1
expect 1 "can't link .* localhost:1" info --connect localhost:1
expect 1 "can't link .* .::1.:1" info --connect '[::1]:1'

# What is told to programs is JSON, also when there is no link to tell of.
for connect in '' '--connect 127.0.0.1:1'; do
    # shellcheck disable=SC2086 # two words, or none
    "$program" info --json $connect 2>/dev/null | python3 -c '
import json, sys
told = json.load(sys.stdin)
assert set(told) == {"library", "machine", "options"}
assert told["options"][0]["key"] == "llm.DeviceId"' || {
        echo "info --json $connect: not the JSON expected"
        failures=$((failures + 1))
    }
done

# As the first process of a pid namespace it ends on the signals that end it elsewhere.
if unshare --user --map-root-user --pid --fork true 2>/dev/null; then
    for signal in INT TERM; do
        # A background job of a script ignores SIGINT unless told otherwise.
        python3 - "$program" "$signal" <<'END' || failures=$((failures + 1))
import os, signal, subprocess, sys

program, name = sys.argv[1:]
number = getattr(signal, "SIG" + name)
signal.signal(signal.SIGINT, signal.SIG_DFL)
shell = subprocess.Popen(["unshare", "--user", "--map-root-user", "--pid", "--fork", program, "demo",
                          "prompt", "--listen", "127.0.0.1:0"], stdout=subprocess.DEVNULL)
path = f"/proc/{shell.pid}/task/{shell.pid}/children"
for _ in range(200):
    for child in open(path).read().split():
        os.kill(int(child), number)  # before its first instruction it is not heard
    try:
        code = shell.wait(0.1)
        break
    except subprocess.TimeoutExpired:
        pass
else:
    shell.kill()
    sys.exit(f"as process 1 it doesn't end on SIG{name}")
if code != 128 + number:
    sys.exit(f"as process 1, on SIG{name}: exit status {code}, expected {128 + number}")
END
    done
else
    echo "not tried as process 1: no pid namespace can be made here"
fi

# Nothing on standard error when all is well.
noise=$("$program" --help 2>&1 >/dev/null)
if [ -n "$noise" ]; then
    echo "--help writes to standard error: $noise"
    failures=$((failures + 1))
fi
[ "$failures" -eq 0 ]

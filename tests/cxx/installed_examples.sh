#!/bin/sh
# Installs a build into a fresh prefix, builds examples/cpp against it as a user's project of its own,
# and runs the programs as pairs of processes.
#
#     installed_examples.sh BUILD_DIRECTORY
#
# Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
set -eu

build=$1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

quietly() {
    "$@" >"$work/log" 2>&1 || {
        cat "$work/log"
        exit 1
    }
}
quietly cmake --install "$build" --prefix "$work/prefix"
quietly cmake -S "$here/../../examples/cpp" -B "$work/examples" -DCMAKE_PREFIX_PATH="$work/prefix"
quietly cmake --build "$work/examples"

cd "$work/examples"
pair="python3 $here/run_pair.py"
address1='127.0.0.1:{port1}'
address2='127.0.0.1:{port2}'
$pair ./pull_prompt "$address1" -- ./pull_decoder "$address1" 127.0.0.1
$pair ./push_prompt "$address1" -- ./push_decoder "$address1" 127.0.0.1
$pair ./role_switch first "$address1" "$address2" -- ./role_switch second "$address2" "$address1"
$pair ./registered prompt "$address1" -- ./registered decoder "$address1" 127.0.0.1

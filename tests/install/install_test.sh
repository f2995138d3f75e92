#!/bin/sh
# Installs a build into a fresh prefix, moves that elsewhere, and builds and runs programs against it
# as a user would: by pkg-config and by find_package, in C (the program that the README prints) and
# in C++.
#
#     install_test.sh BUILD_DIRECTORY
set -eu

build=$1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/staged" >"$work/install.log"
prefix=$work/prefix
mv "$work/staged" "$prefix" # nothing may point to where it was installed first
libdir=$(dirname "$(find "$prefix" -name libllm_datadist_c.so)")
export PKG_CONFIG_PATH="$libdir/pkgconfig"

cd "$work"
python3 "$here/../readme_block.py" "$here/../../README.md" handover.c >handover.c
cp "$here/CMakeLists.txt" "$here/link.cc" "$here/old_lines.cc" .

echo "== pkg-config"
warnings="-Wall -Wextra -Wpedantic -Werror"
# shellcheck disable=SC2046,SC2086 # lists of words
${CC:-cc} -std=c11 $warnings -o handover handover.c $(pkg-config --cflags --libs llm-datadist)
LD_LIBRARY_PATH=$libdir ./handover
# shellcheck disable=SC2046,SC2086
${CXX:-c++} -std=c++11 $warnings -o link link.cc $(pkg-config --cflags --libs llm-datadist-cxx)
LD_LIBRARY_PATH=$libdir ./link
# shellcheck disable=SC2046,SC2086
${CXX:-c++} -std=c++11 $warnings -o old_lines old_lines.cc \
    $(pkg-config --cflags --libs llm-datadist-compat) -lllm_engine
LD_LIBRARY_PATH=$libdir ./old_lines

echo "== a CANN toolkit's names stay its own, unless the program asks for ours"
mkdir -p toolkit/graph
echo '#define FROM_THE_TOOLKIT' >toolkit/graph/types.h
printf '#include "llm_datadist/llm_datadist.h"\n#include "graph/types.h"\n' >toolkit.cc
# shellcheck disable=SC2046
${CXX:-c++} -E -dM toolkit.cc $(pkg-config --cflags llm-datadist-cxx) -Itoolkit | grep -q FROM_THE_TOOLKIT
[ ! -e "$libdir/libllm_engine.so" ]
LD_LIBRARY_PATH=$libdir/llm-datadist-compat python3 -c '
import ctypes
ctypes.CDLL("libllm_engine.so")'

echo "== find_package"
cmake -S . -B consumer -DCMAKE_PREFIX_PATH="$prefix" >consumer.log || {
    cat consumer.log
    exit 1
}
cmake --build consumer >>consumer.log || {
    cat consumer.log
    exit 1
}
consumer/handover
consumer/link
consumer/old_lines

echo "== the command, which finds its library"
"$prefix/bin/llm-datadist" --version

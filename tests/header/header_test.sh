#!/bin/sh
# The public headers, each alone, under every language and compiler they are written for, without one
# warning.  Compilers that aren't here are passed over; gcc is always here.
#
#     header_test.sh INCLUDE_DIRECTORY
set -eu

include=$1
warnings="-Wall -Wextra -Wpedantic -Wshadow -Wundef -Wconversion -Werror -fsyntax-only"

# compile COMPILER LANGUAGE STANDARD HEADER
compile() {
    command -v "$1" >/dev/null || return 0
    strict=
    [ "$2" = c++ ] || strict=-Wstrict-prototypes
    # shellcheck disable=SC2086 # lists of words
    printf '#include <llm_datadist/%s>\n' "$4" |
        "$1" -x "$2" -std="$3" $warnings $strict -I"$include" -
    echo "$1 -std=$3: $4"
}

# Headers of C++ alone: those beside llm_datadist.h, and the old include lines, where one opts in.
for header in llm_error_codes.h llm_engine_types.h $(cd "$include/llm_datadist" &&
    find ../llm-datadist-compat -name '*.h'); do
    for compiler in g++ clang++; do
        compile $compiler c++ c++11 "$header"
    done
done
for header in llm_datadist_c.h llm_datadist.h; do
    for compiler in gcc clang; do
        for standard in c99 c11 c17; do
            compile $compiler c $standard $header
        done
        for standard in c++11 c++17 c++20; do
            compile ${compiler%cc}++ c++ $standard $header
        done
    done
done

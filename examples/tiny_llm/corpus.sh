#!/bin/sh
# Writes the training text of tiny_llm to standard output: one sentence-like verse per line, 4.2 MB.
#
# The text is the King James Bible as Debian ships it (its copyright has expired):
#
#     apt-get install bible-kjv bible-kjv-text
#     examples/tiny_llm/corpus.sh > corpus.txt
set -eu

if ! command -v bible >/dev/null; then
    echo "corpus.sh: the command 'bible' is missing: apt-get install bible-kjv bible-kjv-text" >&2
    exit 1
fi

# -f prints one verse per line behind its reference ("Ge1:1 In the beginning ..."), -l100000 keeps
# bible from breaking lines.  The model learns the words only.
bible -f -l100000 gen1:1-rev22:21 </dev/null | sed 's/^[^ ]* //'

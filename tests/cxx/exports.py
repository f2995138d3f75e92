#!/usr/bin/env python3
"""Compares what libllm_datadist.so exports with the list in exported_symbols.txt.

    exports.py LIBRARY LIST            fails when they differ
    exports.py --update LIBRARY LIST   writes the list; look at the difference before committing

Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
"""
import subprocess
import sys


def exported(library):
    """Mangled names with their version, sorted."""
    output = subprocess.run(["nm", "-D", "--defined-only", "--extern-only", library],
                            check=True, capture_output=True, text=True).stdout
    names = {line.split()[-1] for line in output.splitlines() if line.split()[-2] != "A"}
    return sorted(names)


def main():
    arguments = sys.argv[1:]
    update = arguments[:1] == ["--update"]
    library, list_file = arguments[1:] if update else arguments
    actual = exported(library)
    if update:
        with open(list_file, "w", encoding="ascii") as file:
            file.write("\n".join(actual) + "\n")
        return 0
    with open(list_file, encoding="ascii") as file:
        expected = file.read().split()
    for name in sorted(set(actual) - set(expected)):
        print(f"exported but not in the list: {name}")
    for name in sorted(set(expected) - set(actual)):
        print(f"in the list but not exported: {name}")
    print(f"{len(actual)} exported symbols")
    return 0 if actual == expected else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Compares the C library's binary interface with the one on record.

    abi_test.py HEADER LIBRARY RECORD [--update]

The record lists the exported functions with their symbol version, every public struct with its size
and the offsets of its fields, and every public constant.  The library must export exactly the
functions that the header declares.  A difference that is meant is recorded with --update; after 1.0
the record may only grow.
"""

import difflib
import os
import re
import subprocess
import sys
import tempfile


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def exported(library):
    """Names and versions, "llm_create@@LLM_DATADIST_0", of the symbols that others can link to."""
    rows = [line.split() for line in run("nm", "-D", "--defined-only", library).splitlines()]
    # Kind A is the version's own name.
    return sorted(row[2] for row in rows if row[1] != "A")


def enum_constants(source):
    for body in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", source):
        for item in body.split(","):
            name = re.match(r"\s*(\w+)", item)
            if name:
                yield name.group(1)


def struct_fields(source):
    for name, body in re.findall(r"\bstruct (\w+) \{([^}]*)\}", source):
        declarations = [part for part in body.split(";") if part.strip()]
        yield name, [re.search(r"(\w+)\s*(\[[^]]*\]\s*)*$", part).group(1) for part in declarations]


def layout(header, source):
    """What the compiler says about structs and constants, one line each."""
    program = ['#include "%s"' % header, "#include <stdio.h>", "int main(void) {"]
    for struct, fields in struct_fields(source):
        program.append(
            f'printf("struct {struct} %zu\\n", sizeof(struct {struct}));')
        for field in fields:
            program.append(
                f'printf("field {struct}.{field} %zu %zu\\n", offsetof(struct {struct}, {field}),'
                f" sizeof(((struct {struct} *)0)->{field}));")
    for name in enum_constants(source):
        program.append(f'printf("constant {name} %#llx\\n", (long long){name});')
    program.append("return 0; }")
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "layout")
        run("cc", "-x", "c", "-", "-o", path, input="\n".join(program))
        return run(path).splitlines()


def main():
    update = sys.argv[-1] == "--update"
    if len(sys.argv) != 4 + update:
        sys.exit(__doc__)
    header, library, record = (os.path.abspath(path) for path in sys.argv[1:4])
    if sys.maxsize < 2**32:
        print("the record is that of 64-bit machines")
        sys.exit(77)

    source = run("cc", "-E", "-P", header)
    declared = set(re.findall(r'__visibility__\("default"\)[^;]*?\b(llm_\w+)\s*\(',
                              source.replace('visibility("default")', '__visibility__("default")')))
    symbols = exported(library)
    names = {symbol.split("@")[0] for symbol in symbols}
    for name in sorted(declared - names):
        print(f"{name} is declared with LLM_API, but not exported")
    for name in sorted(names - declared):
        print(f"{name} is exported, but not declared with LLM_API in the header")

    lines = ["# The binary interface of libllm_datadist_c.so on 64-bit machines: abi_test.py writes this.",
             "# field: offset and size in bytes"]
    lines += [f"function {symbol}" for symbol in symbols] + layout(header, source)
    if update:
        with open(record, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    with open(record, encoding="utf-8") as file:
        recorded = file.read().splitlines()
    difference = list(difflib.unified_diff(recorded, lines, "on record", "now", lineterm="", n=0))
    print("\n".join(difference))
    if difference:
        print("If this is meant: abi_test.py HEADER LIBRARY RECORD --update")
    sys.exit(1 if difference or declared != names else 0)


main()

"""Writes the C source of llm_datadist._native, the module through which Python calls the library.

    build_native.py OUTPUT.c

cffi makes the source from cdef.h.  Compiled against the library it is one module for every CPython from
3.9 on (abi3); cffi releases the GIL around each call.  setup.py puts it into a wheel.
"""

import os
import sys

import cffi


def make_builder(**build_arguments):
    """The cffi builder; `build_arguments` are those of a setuptools Extension."""
    builder = cffi.FFI()
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "cdef.h"), encoding="utf-8") as file:
        builder.cdef(file.read())
    builder.set_source("llm_datadist._native", "#include <llm_datadist/llm_datadist_c.h>\n",
                       **build_arguments)
    return builder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make_builder().emit_c_code(sys.argv[1])

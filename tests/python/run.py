#!/usr/bin/env python3
"""Runs a Python program with the package, or says what is missing and exits with 77.

    run.py MISSING PACKAGES PYTHON ARGUMENT...

MISSING: why the package was not built, or "nothing".  PACKAGES: the directory to import it from.
"""

import os
import subprocess
import sys


def skip(reason):
    print(reason)
    sys.exit(77)


def main():
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    missing, packages, python = sys.argv[1:4]
    if missing != "nothing":
        skip(missing)
    for module in ("numpy",) + (("pytest",) if "pytest" in sys.argv else ()):
        if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode != 0:
            skip(f"{python} has no {module}")
    environment = dict(os.environ, PYTHONPATH=packages, PYTHONDONTWRITEBYTECODE="1",
                       LLM_DATADIST_LOG_LEVEL="off", ASCEND_GLOBAL_LOG_LEVEL="3")
    sys.exit(subprocess.run([python, *sys.argv[4:]], env=environment).returncode)


if __name__ == "__main__":
    main()

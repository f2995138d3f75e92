#!/usr/bin/env python3
"""`pip install .`, as a user would: a wheel, installed in an environment of its own, works there,
and passes the tests.

    wheel_test.py MISSING SOURCE PYTHON

Nothing is fetched: setuptools and numpy are the system's, and where one is missing the test is
skipped.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

PARTS = ["CMakeLists.txt", "LICENSE", "README.md", "bindings", "cmake", "examples", "include", "man",
         "pyproject.toml", "setup.py", "src", "tools"]


def skip(reason):
    print(reason)
    sys.exit(77)


def run(*command, **more):
    subprocess.run(command, check=True, **more)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    missing, source, python = sys.argv[1:]
    if missing != "nothing":
        skip(missing)
    for module in ("pip", "venv", "ensurepip", "setuptools", "wheel", "numpy", "pytest"):
        if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode != 0:
            skip(f"{python} has no {module}")
    environment = {key: value for key, value in os.environ.items()
                   if not key.startswith("PYTHON")}
    environment["CMAKE_BUILD_TYPE"] = "Debug"  # built sooner
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        tree = os.path.join(folder, "tree")
        os.mkdir(tree)
        for part in PARTS:
            copy = shutil.copytree if os.path.isdir(os.path.join(source, part)) else shutil.copy
            copy(os.path.join(source, part), os.path.join(tree, part))
        run(python, "-m", "pip", "wheel", "-q", "--no-index", "--no-build-isolation", "--no-deps",
            "-w", folder, tree, env=environment)
        wheel, = glob.glob(os.path.join(folder, "llm_datadist-*-cp39-abi3-linux_*.whl"))
        with zipfile.ZipFile(wheel) as inside:
            files = inside.namelist()
            if any("libjansson" in file for file in files):
                assert b"Petri Lehtinen" in inside.read("llm_datadist/jansson.LICENSE")
        shutil.rmtree(tree)  # nothing of it is needed
        venv = os.path.join(folder, "venv")
        run(python, "-m", "venv", "--system-site-packages", venv, env=environment)
        inner = os.path.join(venv, "bin", "python")
        run(inner, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel, env=environment)
        where = subprocess.run(
            [inner, "-c", "import llm_datadist, llm_datadist_v1; print(llm_datadist.__file__)"],
            check=True, capture_output=True, text=True, cwd=folder, env=environment).stdout
        assert where.startswith(venv), where
        needed = subprocess.run(
            [inner, "-c", "from importlib.metadata import requires; print(requires('llm-datadist'))"],
            check=True, capture_output=True, text=True, env=environment).stdout
        # Older setuptools write it as numpy (>=1.22).
        assert needed.strip() in ("['numpy>=1.22']", "['numpy (>=1.22)']"), needed
        for example in ("handover.py", "layerwise.py", "awaiting.py"):
            run(inner, os.path.join(source, "examples", "python", example), cwd=folder,
                env=environment)
        environment.update(LLM_DATADIST_LOG_LEVEL="off", PYTHONDONTWRITEBYTECODE="1")
        run(inner, "-m", "pytest", "-q", "-p", "no:cacheprovider",
            os.path.join(source, "tests", "python"), cwd=folder, env=environment)


if __name__ == "__main__":
    main()

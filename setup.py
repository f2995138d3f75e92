"""`pip install .`: a wheel with the C library inside, for every CPython from 3.9 on.

CMake builds the library and the module, as for the tests; here they are put together.  What can be said
without a program stands in pyproject.toml.  Needs what packages.txt lists for the build.
"""

import os
import re
import shutil
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70
    from wheel.bdist_wheel import bdist_wheel

ROOT = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(ROOT, "build", "wheel")


def version():
    with open(os.path.join(ROOT, "CMakeLists.txt"), encoding="utf-8") as file:
        return re.search(r"project\(llm_datadist VERSION (\S+)", file.read()).group(1)


def needed_library(library, name):
    """The path of the library `name`... that `library` loads, if it loads one."""
    output = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"({name}\S*) => (\S+)", output)
    return found.groups() if found else None


class BuildWithLibrary(build_py):
    """Python's sources, the module and the libraries that it needs."""

    def run(self):
        super().run()
        native = os.path.join(BUILD, "native")
        kind = os.environ.get("CMAKE_BUILD_TYPE", "Release")
        subprocess.run(["cmake", "-S", ROOT, "-B", native, "-DCMAKE_BUILD_TYPE=" + kind,
                        "-DBUILD_TESTING=OFF", "-DLLM_PYTHON=" + sys.executable,
                        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON"], check=True)
        subprocess.run(["cmake", "--build", native, "-j", str(os.cpu_count() or 1),
                        "--target", "llm_datadist_c", "llm_python_native"], check=True)
        package = os.path.join(self.build_lib, "llm_datadist")
        library = os.path.join(native, "lib", "libllm_datadist_c.so.0")
        shutil.copy(library, package)
        shutil.copy(os.path.join(native, "python", "llm_datadist", "_native.abi3.so"), package)
        jansson = needed_library(library, "libjansson.so")
        if jansson:
            shutil.copy(jansson[1], os.path.join(package, jansson[0]))
            # Who hands it on hands its licence on.
            shutil.copy(os.path.join(ROOT, "bindings", "python", "jansson.LICENSE"), package)


class Wheel(bdist_wheel):
    """One wheel for all CPythons: the module keeps to the stable ABI."""

    def get_tag(self):
        return ("cp39", "abi3", super().get_tag()[2])


class WithModule(Distribution):
    def has_ext_modules(self):
        return True


os.makedirs(BUILD, exist_ok=True)
setup(version=version(), distclass=WithModule,
      cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": Wheel},
      options={"egg_info": {"egg_base": BUILD}, "build": {"build_base": os.path.join(BUILD, "python")}})

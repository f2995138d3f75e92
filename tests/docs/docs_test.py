#!/usr/bin/env python3
"""What documents say about the code must hold.

    docs_test.py SOURCE_DIRECTORY [BUILD_DIRECTORY]

Links between files lead somewhere; README.md, both headers and the library know the same options;
both headers the same statuses; the manual page explains every subcommand; a room includes only rooms
below it; Debian's list of symbols is the recorded one; there is one version; packages.txt has every
group that is asked for, CONTRIBUTING.md every command of the Makefile; and
the tests that docs/reliability.md names exist.
"""

import glob
import os
import re
import subprocess
import sys

# From the bottom.  A room includes itself and what stands to its left; rooms in one pair of brackets
# don't know each other.  ARCHITECTURE.md says why.
ROOMS = [["base"], ["options", "device"], ["cache"], ["transport"], ["link"], ["transfer"], ["engine"],
         ["api"]]

# Statuses that the original library doesn't have.
OUR_STATUSES = range(0x5010B801, 0x5010C000)

problems = []


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def check_links():
    for path in glob.glob("*.md") + glob.glob("docs/**/*.md", recursive=True):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", read(path)):
            if "://" not in target and not os.path.exists(os.path.join(os.path.dirname(path), target)):
                problems.append(f"{path} links to {target}, which doesn't exist")


def check_options():
    c_header = read("include/llm_datadist/llm_datadist_c.h")
    cxx_header = read("include/llm_datadist/llm_datadist.h")
    keys = set(re.findall(r'#define LLM_OPTION_\w+ "(\S+)"', c_header))
    readme, python_part = read("README.md").split("\n## Python\n")
    readme_rows = re.findall(r"^\| `(llm\.\w+)` \|", readme, re.M)
    python_keys = set(re.findall(r'"(llm\.\w+)"', read("bindings/python/llm_datadist/_config.py"))) - keys
    for key in sorted(one for one in python_keys if f"`{one}`" not in python_part):
        problems.append(f"README.md has no row for Python's option {key}")
    for key in sorted(keys - set(readme_rows)):
        problems.append(f"README.md has no row for the option {key}")
    for key in sorted(set(readme_rows) - keys):
        problems.append(f"README.md has a row for {key}, which the C header doesn't have")
    for key in sorted(keys - set(re.findall(r'OPTION_\w+\[\] = "(\S+)"', cxx_header))):
        problems.append(f"llm_datadist.h lacks the option {key}")

    # The library's own table: X-macro rows that begin with the key's name.
    values = dict(re.findall(r'#define (LLM_OPTION_\w+) "(\S+)"', c_header))
    known = {values.get(name) for name in re.findall(r"\bLLM_OPTION_\w+", read("src/options/options.c"))}
    for key in sorted(keys - known):
        problems.append(f"src/options/options.c doesn't know {key}")


def check_statuses():
    cxx_header = read("include/llm_datadist/llm_datadist.h")
    for name, value in re.findall(r"X\((LLM_\w+), (0x[0-9A-Fa-f]+)u,",
                                  read("include/llm_datadist/llm_datadist_c.h")):
        same = re.search(rf"\b{name} = (0x[0-9A-Fa-f]+)U;", cxx_header)
        if same is None and int(value, 16) in OUR_STATUSES:
            continue  # the C++ class may have no call that returns it
        if same is None or int(same.group(1), 16) != int(value, 16):
            problems.append(f"llm_datadist.h and llm_datadist_c.h disagree about {name}")


def check_subcommands():
    manual = read("man/llm-datadist.1")
    for name in re.findall(r'^    \{"(\w+)", "', read("tools/main.c"), re.M):
        if f".B {name}\n" not in manual:
            problems.append(f"man/llm-datadist.1 doesn't explain the subcommand {name}")


def check_rooms():
    level = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}
    for path in sorted(glob.glob("src/*/*.[ch]")):
        room = path.split("/")[1]
        if room not in level:
            continue
        for other in re.findall(r'^#include "(\w+)/', read(path), re.M):
            if other in level and other != room and level[other] >= level[room]:
                problems.append(f"{path} includes room {other}, which is not below {room}")


def check_symbols():
    recorded = set(re.findall(r"^function (\S+)", read("tests/abi/llm_datadist_c.txt"), re.M))
    packaged = set(re.findall(r"^ (llm_\S+@\S+) ", read("debian/libllm-datadist0.symbols"), re.M))
    for name in sorted(recorded ^ {name.replace("@", "@@") for name in packaged}):
        problems.append(f"{name} is in one of tests/abi/llm_datadist_c.txt and "
                        "debian/libllm-datadist0.symbols only")


def check_versions():
    version = re.search(r"project\(llm_datadist VERSION (\S+)", read("CMakeLists.txt")).group(1)
    header = ".".join(re.findall(r"#define LLM_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)",
                                 read("include/llm_datadist/llm_datadist_c.h")))
    debian = re.search(r"\((\S+)\)", read("debian/changelog")).group(1)
    for where, other in (("llm_datadist_c.h", header), ("debian/changelog", debian)):
        if other != version:
            problems.append(f"CMakeLists.txt says version {version}, {where} says {other}")
    for path in ("CHANGELOG.md", "man/llm-datadist.1"):
        if version not in read(path):
            problems.append(f"{path} doesn't mention version {version}")


def check_commands():
    groups = re.findall(r"^\[(\w+)\]", read("packages.txt"), re.M)
    for path in ["Makefile", ".ci/run"] + glob.glob("docs/*.md") + glob.glob("*.md"):
        for names in re.findall(r"\bscripts/setup((?: \w+)+)", read(path)):
            for name in set(names.split()) - set(groups):
                problems.append(f"{path} asks for the packages of {name}, a group that packages.txt lacks")
    targets = re.search(r"^\.PHONY: (.*)", read("Makefile"), re.M).group(1).split()
    for name in sorted(set(targets) - {"build", "help", "setup", "install", "clean"}):
        if f"`make {name}`" not in read("CONTRIBUTING.md"):
            problems.append(f"CONTRIBUTING.md doesn't explain make {name}")


def check_tests(build_directory):
    """In the tables of docs/reliability.md: `test_...` is a function of some test, every other word is
    a test that ctest knows, or what several of them begin with."""
    listed = subprocess.run(["ctest", "-N"], cwd=build_directory, capture_output=True, text=True).stdout
    known = re.findall(r"^ *Test +#\d+: (\S+)", listed, re.M)
    functions = set()
    for path in glob.glob("src/*/*_test.c") + glob.glob("tests/*/*.c"):
        functions.update(re.findall(r"^(test_\w+)\(", read(path), re.M))
    for row in re.findall(r"^\|.*", read("docs/reliability.md"), re.M):
        for name in re.findall(r"`([\w-]+)`", row):
            if name.startswith("test_"):
                exists = name in functions
            elif "python" in name and not any("python" in test for test in known):
                exists = True  # the sanitizers' builds have no Python package
            else:
                exists = any(test == name or test.startswith(name + "_") for test in known)
            if not exists:
                problems.append(f"docs/reliability.md names the test {name}, which doesn't exist")


os.chdir(sys.argv[1])
check_links()
check_options()
check_statuses()
check_subcommands()
check_rooms()
check_symbols()
check_versions()
check_commands()
if len(sys.argv) > 2:
    check_tests(sys.argv[2])
print("\n".join(problems))
sys.exit(1 if problems else 0)

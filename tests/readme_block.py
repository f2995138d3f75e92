#!/usr/bin/env python3
"""Prints the code block of README.md that follows the comment "<!-- program: NAME ... -->".

    readme_block.py README.md NAME
"""

import re
import sys

path, name = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    text = file.read()
block = re.search(rf"<!-- program: {re.escape(name)}\b[^>]*-->\n```\w*\n(.*?)^```$", text, re.S | re.M)
if block is None:
    sys.exit(f"{path} has no program {name}")
sys.stdout.write(block.group(1))

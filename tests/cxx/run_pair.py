#!/usr/bin/env python3
"""Runs two programs of examples/cpp as a pair: what one says, the other hears.

    run_pair.py [--time SECONDS] FIRST [ARGUMENT...] -- SECOND [ARGUMENT...]

{port1} and {port2} in the arguments become ports that were free a moment ago.  When a program says
with exit code 3 that it could not have its port, the pair is run again with others.  Exit code 77 of a
program, which has said why, is that of the pair.

Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
"""
import os
import socket
import subprocess
import sys
import time

ADDRESS_TAKEN = 3
SKIPPED = 77
ATTEMPTS = 5


def free_ports(count):
    """Different ports: all are held before the first is given back."""
    sockets = []
    for _ in range(count):
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        sockets.append(listener)
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def run_once(commands, deadline):
    """The exit codes of both; whoever is left when the time is over is killed."""
    port1, port2 = free_ports(2)
    commands = [[argument.format(port1=port1, port2=port2) for argument in command]
                for command in commands]
    to_second, from_first = os.pipe()
    to_first, from_second = os.pipe()
    first = subprocess.Popen(commands[0], stdin=to_first, stdout=from_first)
    second = subprocess.Popen(commands[1], stdin=to_second, stdout=from_second)
    # Only the programs hold the pipes now, so that one hears when the other is gone.
    for fd in (to_second, from_first, to_first, from_second):
        os.close(fd)
    codes = []
    for process in (first, second):
        try:
            codes.append(process.wait(max(0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            codes.append("killed, out of time")
    return codes


def main():
    arguments = sys.argv[1:]
    seconds = 50
    if arguments[:1] == ["--time"]:
        seconds = float(arguments[1])
        arguments = arguments[2:]
    split = arguments.index("--")
    commands = [arguments[:split], arguments[split + 1:]]
    deadline = time.monotonic() + seconds
    codes = []
    for _ in range(ATTEMPTS):
        codes = run_once(commands, deadline)
        if ADDRESS_TAKEN not in codes:
            break
    if SKIPPED in codes:
        return SKIPPED
    print("exit codes:", *codes)
    return 0 if codes == [0, 0] else 1


if __name__ == "__main__":
    sys.exit(main())

"""Workers in processes of their own."""

import json
import os
import subprocess
import sys
import time

import pytest


class Worker:
    """worker.py: one line of JSON each way."""

    def __init__(self, role, cluster_id, **more):
        here = os.path.dirname(os.path.abspath(__file__))
        self.cluster_id = cluster_id
        self.process = subprocess.Popen([sys.executable, os.path.join(here, "worker.py")],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._write(dict(role=role, cluster_id=cluster_id, **more))
        self.hear()

    def _write(self, value):
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()

    def tell(self, call, *arguments):
        self._write([call, arguments])

    def hear(self):
        line = self.process.stdout.readline()
        assert line, "the worker has ended"
        return json.loads(line)

    def ask(self, call, *arguments):
        self.tell(call, *arguments)
        return self.hear()

    def leave(self):
        self.ask("finalize")
        self.process.stdin.close()
        assert self.process.wait(30) == 0

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def workers():
    started = []

    def start(*args, **more):
        started.append(Worker(*args, **more))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
        worker.process.stdout.close()
        if not worker.process.stdin.closed:
            worker.process.stdin.close()


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it didn't come true in time"
        time.sleep(0.005)


def values_of(value, blocks):
    """What a worker that was filled with `value` has in these blocks."""
    return [float(block + 10 * layer + 100 * model + value) for model in range(2) for layer in range(3)
            for block in blocks]

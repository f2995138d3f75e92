#!/usr/bin/env python3
"""What Python adds to the C calls.

    cmake --preset release -DLLM_PYTHON=/usr/bin/python3 && cmake --build --preset release
    PYTHONPATH=build/release/python /usr/bin/python3 tests/python/bench.py

"C" is the C call through the package's module, with arguments that were made before.  Both logs are
off.  Each figure is the best of several rounds; those that are compared alternate.
"""

import logging
import multiprocessing
import os
import threading
import time
import tracemalloc

os.environ.setdefault("LLM_DATADIST_LOG_LEVEL", "off")

# pylint: disable=wrong-import-position
import numpy as np

from llm_datadist import (CacheDesc, CacheKeyByIdAndIndex, DataType, LLMClusterInfo, LLMDataDist,
                          LLMException, LLMRole, _core)

BLOCKS = 10000
LARGE_MIB = 256


def best(*calls, count=200, rounds=9):
    """Microseconds per call, of each."""
    results = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(count):
                call()
            results[i] = min(results[i], (time.perf_counter() - start) / count)
    return [result * 1e6 for result in results]


def in_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def refused(function, *arguments):
    """What calls it and swallows its refusal."""
    def call():
        try:
            function(*arguments)
        except LLMException:
            pass
    return call


def row(name, c, python):
    print(f"  {name:38s} {c:9.2f} {python:9.2f} {python - c:11.2f}")


class Pair:
    """A prompt and a decoder of this process, linked, with a cache of one-byte blocks each."""

    def __init__(self, prompt, decoder):
        prompt.init({"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0"})
        decoder.init({"ge.exec.deviceId": "0"})
        decoder.link_clusters([cluster_info(prompt.listen_port())])
        desc = CacheDesc(1, [BLOCKS, 1], DataType.DT_INT8)
        self.source = prompt.kv_cache_manager.allocate_blocks_cache(desc)
        self.target = decoder.kv_cache_manager.allocate_blocks_cache(desc)
        self.decoder, self.manager = decoder, decoder.kv_cache_manager
        self.key = CacheKeyByIdAndIndex(1, self.source.cache_id)
        self.native = decoder._engine.native

    def pull(self, blocks):
        self.manager.pull_blocks(self.key, self.target, blocks, blocks)

    def pull_in_c(self, blocks):
        """A call of the module alone."""
        native, cache = self.native, self.target._struct(self.decoder._engine)
        index = _core.NativeIndex(1, self.source.cache_id)
        ready = _core.block_list("blocks", blocks)
        return lambda: native.transfer(_core.PULL_BLOCKS, cache, index, None, ready, ready)


def cluster_info(port):
    cluster = LLMClusterInfo()
    cluster.remote_cluster_id = 1
    cluster.append_local_ip_info("127.0.0.1", 0)
    cluster.append_remote_ip_info("127.0.0.1", port)
    return cluster


def calls(pair):
    print(f"{'calls that only validate, us':40s} {'C':>9s} {'Python':>9s} {'Python adds':>11s}")
    wrong = [BLOCKS]
    row("pull_blocks, refused by the C library",
        *best(pair.pull_in_c(wrong), refused(pair.pull, wrong)))
    row("check_link_status", *best(lambda: pair.native.link_info(1),
                                   lambda: pair.decoder.check_link_status(1)))
    print("pull of one block, us")
    one = [1]
    row("main thread, which Ctrl-C interrupts", *best(pair.pull_in_c(one), lambda: pair.pull(one)))
    row("another thread",
        *in_thread(lambda: best(pair.pull_in_c(one), lambda: pair.pull(one))))


def lists(pair):
    print(f"{BLOCKS} blocks given as                     reading, us    pull, us    "
          "bytes per block")
    numbers = list(range(BLOCKS))
    given = {"list": numbers, "tuple": tuple(numbers), "range": range(BLOCKS),
             "array of uint64": np.array(numbers, np.uint64), "array of int64": np.array(numbers)}
    # A list's numbers are there already: what is allocated is the array that C reads.
    for name, blocks in given.items():
        reading, = best(lambda blocks=blocks: _core.block_list("", blocks), count=20, rounds=40)
        pull, = in_thread(lambda blocks=blocks: best(lambda: pair.pull(blocks), count=20))
        tracemalloc.start()
        kept = _core.block_list("", blocks)
        allocated = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"  {name:38s} {reading:12.2f} {pull:11.2f} {allocated / len(kept):18.3f}")
    pull, = in_thread(lambda: best(pair.pull_in_c(numbers), count=20))
    print(f"  {'read before: C':38s} {0:12.2f} {pull:11.2f}")


def large_prompt(transport, answers, done):
    with LLMDataDist(LLMRole.PROMPT, 1) as prompt:
        prompt.init({"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0",
                     "llm.Transports": transport})
        cache = prompt.kv_cache_manager.allocate_blocks_cache(LARGE)
        for tensor in range(LARGE.num_tensors):
            cache.numpy(tensor)[:] = tensor
        answers.put((prompt.listen_port(), cache.cache_id))
        done.get()


LARGE = CacheDesc(4, [64, LARGE_MIB * 2**20 // 4 // 64], DataType.DT_INT8)


def large(transport):
    context = multiprocessing.get_context("spawn")
    answers, done = context.Queue(), context.Queue()
    other = context.Process(target=large_prompt, args=(transport, answers, done))
    other.start()
    port, cache_id = answers.get()
    with LLMDataDist(LLMRole.DECODER, 2) as decoder:
        decoder.init({"ge.exec.deviceId": "0", "llm.Transports": transport,
                      "llm.SyncKvCacheWaitTime": "20000"})
        decoder.link_clusters([cluster_info(port)])
        target = decoder.kv_cache_manager.allocate_blocks_cache(LARGE)
        blocks = np.arange(64, dtype=np.uint64)

        def pull():
            start = time.perf_counter()
            decoder.kv_cache_manager.pull_blocks(CacheKeyByIdAndIndex(1, cache_id), target, blocks,
                                                 blocks)
            return time.perf_counter() - start

        pull()
        pairs = [(pull(), in_thread(pull)) for _ in range(21)]
        for name, times in zip(("main thread", "another thread"), zip(*pairs)):
            median, least = sorted(times)[len(times) // 2], min(times)
            print(f"  {transport:6s} {name:31s} {median * 1e3:9.2f} {least * 1e3:9.2f} "
                  f"{LARGE_MIB * 2**20 / least / 1e9:9.1f}")
    done.put(True)
    other.join()


def main():
    logging.getLogger("LLM_ENGINE").setLevel(logging.CRITICAL)
    with LLMDataDist(LLMRole.PROMPT, 1) as prompt, LLMDataDist(LLMRole.DECODER, 2) as decoder:
        pair = Pair(prompt, decoder)
        calls(pair)
        lists(pair)
    print(f"{f'pull of {LARGE_MIB} MiB between processes':40s} median ms   best ms  best GB/s")
    for transport in ("shm", "tcp"):
        large(transport)


if __name__ == "__main__":
    main()

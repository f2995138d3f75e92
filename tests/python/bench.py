#!/usr/bin/env python3
"""What Python adds to the C calls.

    PYTHONPATH=build/dev/python /usr/bin/python3 tests/python/bench.py

Two clusters in one process; each figure is the best of several rounds.
"""

import threading
import time

import numpy as np

from llm_datadist import (CacheDesc, CacheKeyByIdAndIndex, DataType, LLMClusterInfo, LLMDataDist,
                          LLMRole, _core)
from llm_datadist._native import ffi, lib

BLOCKS = 10000


def best(call, count=200, rounds=7):
    """Microseconds per call."""
    result = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            call()
        result = min(result, (time.perf_counter() - start) / count)
    return result * 1e6


def main():
    desc = CacheDesc(1, [BLOCKS, 1], DataType.DT_INT8)
    with LLMDataDist(LLMRole.PROMPT, 1) as prompt, LLMDataDist(LLMRole.DECODER, 2) as decoder:
        prompt.init({"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0"})
        decoder.init({"ge.exec.deviceId": "0"})
        cluster = LLMClusterInfo()
        cluster.remote_cluster_id = 1
        cluster.append_local_ip_info("127.0.0.1", 0)
        cluster.append_remote_ip_info("127.0.0.1", prompt.listen_port())
        decoder.link_clusters([cluster])
        source = prompt.kv_cache_manager.allocate_blocks_cache(desc)
        target = decoder.kv_cache_manager.allocate_blocks_cache(desc)
        key = CacheKeyByIdAndIndex(1, source.cache_id)
        pull, one = decoder.kv_cache_manager.pull_blocks, [1]
        handle, struct = decoder._engine._handle, target._struct().struct
        index, (block, _) = _core.cache_index(1, source.cache_id), _core.block_list("", one)

        def in_c():
            lib.llm_pull_kv_blocks(handle, index, struct, block, 1, block, 1, ffi.NULL)

        print(f"pull of one block, C call through cffi     {best(in_c):8.2f} us")
        started = best(lambda: pull(key, target, one, one))
        print(f"  main thread (started, awaited: Ctrl-C)   {started:8.2f} us")
        other = []
        thread = threading.Thread(target=lambda: other.append(
            best(lambda: pull(key, target, one, one))))
        thread.start()
        thread.join()
        print(f"  another thread                           {other[0]:8.2f} us")
        print(f"reading {BLOCKS} blocks given as")
        numbers = list(range(BLOCKS))
        for name, blocks in (("list", numbers), ("tuple", tuple(numbers)), ("range", range(BLOCKS)),
                             ("array of uint64", np.array(numbers, np.uint64)),
                             ("array of int64", np.array(numbers))):
            print(f"  {name:40s} {best(lambda blocks=blocks: _core.block_list('', blocks)):8.2f} us")


if __name__ == "__main__":
    main()

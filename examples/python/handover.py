#!/usr/bin/env python3
"""A prompt process fills a KV cache with numpy, a decoder process pulls blocks of it.

    handover.py [--torch]       with --torch the decoder sees its cache as torch tensors

Both processes are started from here and meet on this machine.  Between machines each side runs its
function, with an address that the other one reaches; which blocks belong to a request travels with it,
as here through the queue.
"""

import multiprocessing
import sys

import numpy as np

from llm_datadist import (BlocksCacheKey, CacheDesc, DataType, LLMClusterInfo, LLMConfig, LLMDataDist,
                          LLMRole, LLMStatusCode)

LAYERS, BLOCKS, BLOCK = 4, 64, (16, 8, 32)  # tokens, heads, head size
DESC = CacheDesc(2 * LAYERS, [BLOCKS, *BLOCK], DataType.DT_FLOAT16)
KEY = BlocksCacheKey(1)  # of cluster 1, the prompt


def prompt(requests, done):
    config = LLMConfig()
    config.device_id = 0
    config.listen_ip_info = "127.0.0.1:0"  # the system chooses the port
    with LLMDataDist(LLMRole.PROMPT, 1) as datadist:
        datadist.init(config.generate_options())
        cache = datadist.kv_cache_manager.allocate_blocks_cache(DESC, KEY)
        blocks = [7, 3, 12]
        for tensor in range(DESC.num_tensors):
            view = cache.numpy(tensor)  # the cache's own memory
            for i, block in enumerate(blocks):
                view[block] = 10 * tensor + i
        requests.put((datadist.listen_port(), blocks))
        done.get()  # until then the decoder may pull; nothing of this process is needed for it


def decoder(requests, done, with_torch):
    port, blocks = requests.get()
    config = LLMConfig()
    config.device_id = 0
    with LLMDataDist(LLMRole.DECODER, 2) as datadist:
        datadist.init(config.generate_options())
        cluster = LLMClusterInfo()
        cluster.remote_cluster_id = 1
        cluster.append_local_ip_info("0.0.0.0", 0)
        cluster.append_remote_ip_info("127.0.0.1", port)
        overall, codes = datadist.link_clusters([cluster])
        if overall != LLMStatusCode.LLM_SUCCESS:
            sys.exit(f"can't link: {codes}")
        cache = datadist.kv_cache_manager.allocate_blocks_cache(DESC)
        mine = range(len(blocks))
        datadist.kv_cache_manager.pull_blocks(KEY, cache, blocks, mine)
        for tensor in range(DESC.num_tensors):
            view = cache.numpy(tensor)
            if with_torch:
                import torch
                view = torch.from_dlpack(view)  # the same memory again
            for i in mine:
                assert (view[i] == 10 * tensor + i).all()
        datadist.unlink_clusters([cluster])
        print(f"{len(blocks)} blocks of {DESC.num_tensors} tensors arrived, "
              f"as {type(view).__module__} sees them")
    done.put(True)


def main():
    with_torch = "--torch" in sys.argv[1:]
    if with_torch:
        try:
            import torch  # noqa: F401 # pylint: disable=unused-import
        except ImportError:
            print("skipped: there is no torch (python3-torch)")
            sys.exit(77)
    context = multiprocessing.get_context("spawn")
    requests, done = context.Queue(), context.Queue()
    sides = [context.Process(target=prompt, args=(requests, done)),
             context.Process(target=decoder, args=(requests, done, with_torch))]
    for side in sides:
        side.start()
    sides[1].join()
    done.put(True)  # also if the decoder has failed
    sides[0].join()
    sys.exit(max(abs(side.exitcode) for side in sides))


if __name__ == "__main__":
    np.seterr(all="raise")
    main()

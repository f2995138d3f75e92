#!/usr/bin/env python3
"""A prompt pushes each layer's KV cache while it computes the next one.

    layerwise.py

Both clusters live in this process, to keep it short; between processes nothing changes.
"""

import sys
import threading
import time

import numpy as np

from llm_datadist import (CacheDesc, CacheKeyByIdAndIndex, DataType, LayerSynchronizer,
                          LLMClusterInfo, LLMDataDist, LLMRole, LLMStatusCode,
                          TransferWithCacheKeyConfig)

LAYERS = 8
DESC = CacheDesc(2 * LAYERS, [4, 1024, 128], DataType.DT_FLOAT16)


class Computed(LayerSynchronizer):
    """Lets a layer go as soon as the model has computed it."""

    def __init__(self):
        self.layers = [threading.Event() for _ in range(LAYERS)]

    def synchronize_layer(self, layer_index, timeout_in_millis):
        self.layers[layer_index].wait()
        return True


def main():
    with LLMDataDist(LLMRole.PROMPT, 1) as prompt, LLMDataDist(LLMRole.DECODER, 2) as decoder:
        prompt.init({"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0"})
        decoder.init({"ge.exec.deviceId": "0"})
        cluster = LLMClusterInfo()
        cluster.remote_cluster_id = 1
        cluster.append_local_ip_info("0.0.0.0", 0)
        cluster.append_remote_ip_info("127.0.0.1", prompt.listen_port())
        decoder.link_clusters([cluster])
        source = prompt.kv_cache_manager.allocate_cache(DESC)
        target = decoder.kv_cache_manager.allocate_cache(DESC)

        computed = Computed()
        slot, there = 1, CacheKeyByIdAndIndex(2, target.cache_id, 3)
        task = prompt.kv_cache_manager.transfer_cache_async(source, computed, [
            TransferWithCacheKeyConfig(there, range(LAYERS), range(LAYERS), slot)])

        start = time.perf_counter()
        arrived_early = 0
        for layer in range(LAYERS):
            for tensor in (2 * layer, 2 * layer + 1):  # K and V: some work of numpy's
                source.numpy(tensor)[slot] = np.sqrt(np.full((1024, 128), (tensor + 1) ** 2))
            computed.layers[layer].set()
            time.sleep(0.01)  # the rest of the model, during which the layer travels
            arrived_early += bool((target.numpy(2 * layer + 1)[3] == 2 * layer + 2).all())
        computing = time.perf_counter() - start
        if task.synchronize(5000) != LLMStatusCode.LLM_SUCCESS:
            sys.exit(f"failed: {task.get_results()}")
        for tensor in range(DESC.num_tensors):
            assert (target.numpy(tensor)[3] == tensor + 1).all()
        total = time.perf_counter() - start
        print(f"{arrived_early} of {LAYERS} layers had arrived before the next one was computed; "
              f"computing took {computing * 1e3:.0f} ms, all together {total * 1e3:.0f} ms")


if __name__ == "__main__":
    main()

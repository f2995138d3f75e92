"""A worker of a serving system, led by lines of JSON: it calls the package as real connectors do."""

import concurrent.futures
import json
import sys

# The lines for the test go here, what is logged to standard error.
answers, sys.stdout = sys.stdout, sys.stderr

# pylint: disable=wrong-import-position
import numpy as np

from llm_datadist import (BlocksCacheKey, CacheDesc, DataType, LLMClusterInfo, LLMConfig, LLMDataDist,
                          LLMException, LLMRole, LLMStatusCode, RegisterMemStatus)

LAYERS, BLOCKS, BLOCK = 3, 8, 1024


class Worker:
    """K in one cache, V in another, registered by address and named by model, as of MLA models."""

    def __init__(self, role, cluster_id, listen=None, local_comm_res=None):
        self.cluster_id = cluster_id
        config = LLMConfig()
        config.device_id = 0
        config.sync_kv_timeout = 20000
        config.enable_switch_role = True
        config.link_total_time = 60
        if local_comm_res is None:
            config.enable_cache_manager = True
            config.enable_remote_cache_accessible = True
        else:
            config.local_comm_res = local_comm_res
        if listen is not None:
            config.listen_ip_info = listen
        self.datadist = LLMDataDist(LLMRole[role], cluster_id)
        self.datadist.init(config.generate_options())
        self.manager = self.datadist.cache_manager
        self.memory = [[np.zeros((BLOCKS, BLOCK), np.float16) for _ in range(LAYERS)] for _ in range(2)]
        self.caches = [self.manager.register_blocks_cache(
            CacheDesc(LAYERS, [BLOCKS, BLOCK], DataType.DT_FLOAT16),
            [tensor.ctypes.data for tensor in tensors], BlocksCacheKey(cluster_id, model))
                       for model, tensors in enumerate(self.memory)]
        self.comms = {}

    def port(self):
        return self.datadist.listen_port()

    def fill(self, value):
        for model, tensors in enumerate(self.memory):
            for layer, tensor in enumerate(tensors):
                tensor[:] = np.arange(BLOCKS).reshape(-1, 1) + 10 * layer + 100 * model + value

    def link(self, name, members, table):
        """Without a look at whether it has come about."""
        peers = [cluster for cluster, _ in members if cluster != self.cluster_id]
        self.comms[name] = self.datadist.link(name, dict(map(tuple, members)), table), peers

    def links(self, calls):
        """All at once, from threads."""
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda call: self.link(*call), calls))

    def status(self, name):
        return RegisterMemStatus(self.datadist.query_register_mem_status(self.comms[name][0])).name

    def pull(self, cluster, src_blocks, dst_blocks):
        """The first element of each block, layer after layer, K then V."""
        for model, cache in enumerate(self.caches):
            self.manager.pull_blocks(BlocksCacheKey(cluster, model), cache, src_blocks, dst_blocks)
        return [float(tensor[block, -1]) for tensors in self.memory for tensor in tensors
                for block in dst_blocks]

    def push(self, cluster, src_blocks, dst_blocks):
        for model, cache in enumerate(self.caches):
            self.manager.push_blocks(BlocksCacheKey(cluster, model), cache, src_blocks=src_blocks,
                                     dst_blocks=dst_blocks, tensor_num_per_layer=1)

    def read(self, blocks):
        return [float(tensor[block, -1]) for tensors in self.memory for tensor in tensors
                for block in blocks]

    def unlink(self, name):
        self.datadist.unlink(self.comms.pop(name)[0])

    def link_clusters(self, cluster, local, remote):
        info = LLMClusterInfo()
        info.remote_cluster_id = cluster
        info.append_local_ip_info(*local)
        info.append_remote_ip_info(*remote)
        overall, codes = self.datadist.link_clusters([info], 5000)
        return [overall.name] + [code.name for code in codes]

    def unlink_clusters(self, cluster, force):
        """By the cluster's id alone."""
        info = LLMClusterInfo()
        info.remote_cluster_id = cluster
        overall, codes = self.datadist.unlink_clusters([info], 5000, force=force)
        return [overall.name] + [code.name for code in codes]

    def finalize(self):
        for cache in self.caches:
            self.manager.unregister_cache(cache.cache_id)
        self.datadist.finalize()


def main():
    worker = Worker(**json.loads(sys.stdin.readline()))
    answer = None
    while True:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        line = sys.stdin.readline()
        if not line:
            break
        call, arguments = json.loads(line)
        try:
            answer = getattr(worker, call)(*arguments)
        except LLMException as error:
            answer = {"raised": LLMStatusCode(error.status_code).name, "text": str(error)}


if __name__ == "__main__":
    main()

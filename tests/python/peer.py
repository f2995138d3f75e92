"""The other process of a test: an engine with one cache, led by lines of JSON."""

import json
import os
import signal
import sys

# The lines for the test go here, what is logged to standard error.
answers, sys.stdout = sys.stdout, sys.stderr

# pylint: disable=wrong-import-position
import numpy as np

import llm_datadist as ld
from conftest import cluster_info
from llm_datadist import _core


def fill(views):
    for t, view in enumerate(views):
        view[:] = np.arange(view.shape[0]).reshape(-1, 1) + 100 * t


def manager_of(datadist, v2):
    return datadist.cache_manager if v2 else datadist.kv_cache_manager


def setup(role, cluster_id, options, shape, num_tensors=4, v2=False):
    datadist = ld.LLMDataDist(ld.LLMRole[role], cluster_id)
    datadist.init(options)
    desc = ld.CacheDesc(num_tensors, shape, ld.DataType.DT_FLOAT)
    memory = None
    if v2:
        memory = [np.zeros(shape, np.float32) for _ in range(num_tensors)]
        cache = datadist.cache_manager.register_blocks_cache(desc, [m.ctypes.data for m in memory])
        addrs = cache.tensor_addrs
    else:
        cache = datadist.kv_cache_manager.allocate_blocks_cache(desc)
        addrs = cache.per_device_tensor_addrs[0]
    views = [cache.numpy(t) for t in range(num_tensors)]
    fill(views)
    try:
        port = datadist.listen_port()
    except ld.LLMException:
        port = 0
    return datadist, cache, views, memory, {"cache_id": cache.cache_id, "port": port, "addrs": addrs,
                                            "pid": os.getpid()}


class More:
    """Caches beside the first one."""

    def __init__(self, manager, cluster_id):
        self.manager, self.cluster_id, self.caches, self.keys = manager, cluster_id, {}, []

    def allocate(self, shape, keys=(), blocks_model=None, num_tensors=4, seq_len_dim_index=-1):
        """keys: [[request, model, prefix], ...].  The new cache's id, or why there is none."""
        self.keys += keys
        desc = ld.CacheDesc(num_tensors, shape, ld.DataType.DT_FLOAT,
                            seq_len_dim_index=seq_len_dim_index)
        try:
            if blocks_model is not None:
                cache = self.manager.allocate_blocks_cache(
                    desc, ld.BlocksCacheKey(self.cluster_id, blocks_model))
            else:
                cache = self.manager.allocate_cache(
                    desc, [ld.CacheKey(self.cluster_id, *key) for key in keys])
        except ld.LLMException as error:
            return error.status_code.name
        fill([cache.numpy(t) for t in range(num_tensors)])
        self.caches[cache.cache_id] = cache
        return cache.cache_id

    def deallocate(self, cache_id):
        cache = self.caches.pop(cache_id)
        if isinstance(cache, ld.Cache) and cache.is_blocks_cache:
            self.manager.deallocate_blocks_cache(cache)
        else:
            self.manager.deallocate_cache(cache)

    def remove_key(self, key):
        self.manager.remove_cache_key(ld.CacheKey(self.cluster_id, *key))

    def reset(self):
        for key in self.keys:
            self.remove_key(key)
        for cache_id in list(self.caches):
            self.deallocate(cache_id)
        self.keys = []

    def pull(self, cluster, key, into):
        """A status' name."""
        try:
            self.manager.pull_cache(ld.CacheKey(cluster, *key), into)
        except ld.LLMException as error:
            return error.status_code.name
        return "LLM_SUCCESS"


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = json.loads(sys.stdin.readline())
    datadist, cache, views, memory, answer = setup(**first)
    more = More(manager_of(datadist, first.get("v2", False)), first["cluster_id"])
    comms = []
    while True:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        line = sys.stdin.readline()
        if not line:
            break
        question = json.loads(line)
        what = question.pop("what")
        if what == "read":
            answer = views[question["tensor"]][question["block"]].tolist()
        elif what == "link":
            members = {int(cluster): rank for cluster, rank in question["members"]}
            comms.append(datadist.link(question["name"], members, question["table"]))
            answer = comms[-1]
        elif what == "unlink":
            datadist.unlink(comms.pop())
            answer = None
        elif what == "status":
            answer = int(datadist.query_register_mem_status(comms[-1]))
        elif what == "link_to":
            answer = datadist.link_clusters([cluster_info(question["cluster"], question["port"])])[0]
        elif what == "stop_in_a_pull":
            blocks = _core.block_list("blocks", range(len(views[0])))
            datadist._engine.start("pull", _core.PULL_BLOCKS, cache._struct(datadist._engine), _core.NativeIndex(
                question["cluster"], question["cache_id"]), None, blocks, blocks)
            os.kill(os.getpid(), signal.SIGSTOP)
            answer = None
        elif what in ("allocate", "deallocate", "remove_key", "reset"):
            answer = getattr(more, what)(**question)
        elif what == "pull":
            answer = more.pull(into=cache, **question)
        elif what == "hold_gil":
            # A peer that computes: nothing of it may be needed for a pull.
            sys.setswitchinterval(1000)
            answers.write("null\n")
            answers.flush()
            while True:
                sum(range(10000))
    del memory


if __name__ == "__main__":
    main()

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


def setup(role, cluster_id, options, shape, num_tensors=4, v2=False):
    datadist = ld.LLMDataDist(ld.LLMRole[role], cluster_id)
    datadist.init(options)
    desc = ld.CacheDesc(num_tensors, shape, ld.DataType.DT_FLOAT)
    memory = None
    if v2:
        memory = [np.zeros(shape, np.float32) for _ in range(num_tensors)]
        cache = datadist.cache_manager.register_blocks_cache(desc, [m.ctypes.data for m in memory])
    else:
        cache = datadist.kv_cache_manager.allocate_blocks_cache(desc)
    views = [cache.numpy(t) for t in range(num_tensors)]
    fill(views)
    try:
        port = datadist.listen_port()
    except ld.LLMException:
        port = 0
    return datadist, cache, views, memory, {"cache_id": cache.cache_id, "port": port,
                                            "pid": os.getpid()}


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    datadist, cache, views, memory, answer = setup(**json.loads(sys.stdin.readline()))
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
            datadist._engine.start("pull", _core.PULL_BLOCKS, cache._struct(), _core.NativeIndex(
                question["cluster"], question["cache_id"]), None, blocks, blocks)
            os.kill(os.getpid(), signal.SIGSTOP)
            answer = None
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

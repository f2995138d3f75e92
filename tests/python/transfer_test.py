"""Pulls and pushes, of both generations, between processes."""

import asyncio
import gc
import io
import json
import os
import signal
import threading
import time

import numpy as np
import pytest

import llm_datadist as ld
from conftest import V2_OPTIONS, cluster_info, wait_for
from llm_datadist import LLMStatusCode, aio
from llm_datadist._status import log

SHAPE = [16, 64]
TRANSPORTS = ["shm", "tcp"]


def v1_prompt(peers, transport, **more):
    return peers(role="PROMPT", cluster_id=1, shape=SHAPE, options=dict(
        {"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0", "llm.Transports": transport},
        **more))


def v1_decoder(engines, peer, transport, **more):
    decoder = engines(ld.LLMRole.DECODER, 2, None, **{"llm.Transports": transport}, **more)
    cluster = cluster_info(1, peer.info["port"])
    assert decoder.link_clusters((cluster,)) == (LLMStatusCode.LLM_SUCCESS,
                                                 [LLMStatusCode.LLM_SUCCESS])
    assert decoder.link_info(1)["transport"] == transport
    return decoder, cluster


def own_cache(manager, num_tensors=4, shape=SHAPE):
    cache = manager.allocate_blocks_cache(ld.CacheDesc(num_tensors, shape, ld.DataType.DT_FLOAT))
    for t in range(num_tensors):
        cache.numpy(t)[:] = -1
    return cache


@pytest.mark.parametrize("transport,checked", [(one, two) for one in TRANSPORTS
                                               for two in ("none", "crc32c")])
def test_v1_pulls(peers, engines, transport, checked):
    peer = v1_prompt(peers, transport, **{"llm.Checksum": checked})
    decoder, cluster = v1_decoder(engines, peer, transport)
    decoder.check_link_status(1)
    cache = own_cache(decoder.kv_cache_manager)
    key = ld.CacheKeyByIdAndIndex(1, peer.info["cache_id"])
    decoder.kv_cache_manager.pull_blocks(key, cache, [3, 4], [0, 15])
    for t in range(4):
        assert (cache.numpy(t)[0] == 3 + 100 * t).all() and (cache.numpy(t)[15] == 4 + 100 * t).all()
        assert (cache.numpy(t)[1:15] == -1).all()
    decoder.kv_cache_manager.pull_cache(ld.CacheKeyByIdAndIndex(1, peer.info["cache_id"], 9), cache,
                                        batch_index=5, size=128, src_layer_range=range(1, 2),
                                        dst_layer_range=range(0, 1))
    assert (cache.numpy(1)[5][:32] == 309).all() and (cache.numpy(1)[5][32:] == -1).all()
    assert (cache.numpy(2)[5] == -1).all()
    assert decoder.unlink_clusters([cluster])[0] == LLMStatusCode.LLM_SUCCESS
    with pytest.raises(ld.LLMException) as raised:
        decoder.check_link_status(1)
    assert raised.value.status_code == LLMStatusCode.LLM_NOT_YET_LINK


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_v2_pulls_and_pushes(peers, engines, transport):
    options = dict(V2_OPTIONS, **{"llm.Transports": transport, "llm.listenIpInfo": "127.0.0.1:0"})
    peer = peers(role="DECODER", cluster_id=1, shape=SHAPE, v2=True, options=options)
    mine = engines(ld.LLMRole.PROMPT, 2, dict(V2_OPTIONS, **{"llm.Transports": transport}))
    assert mine.link_clusters([cluster_info(1, peer.info["port"])])[0] == 0
    manager = mine.cache_manager
    cache = own_cache(manager)
    key = ld.CacheKeyByIdAndIndex(1, peer.info["cache_id"])
    manager.pull_blocks(key, cache, (7, 8), (1, 2), src_layer_range=range(0, 1),
                        dst_layer_range=range(1, 2))
    assert (cache.numpy(2)[1] == 7).all() and (cache.numpy(3)[2] == 108).all()
    assert (cache.numpy(0) == -1).all()
    cache.numpy(0)[6] = 77
    manager.push_blocks(key, cache, [6], [11])
    assert peer.ask(what="read", tensor=0, block=11) == [77.0] * 64
    registered = manager.register_cache(ld.CacheDesc(4, SHAPE, ld.DataType.DT_FLOAT),
                                        cache.tensor_addrs)
    manager.push_cache(ld.CacheKeyByIdAndIndex(1, peer.info["cache_id"], 12), registered, 6,
                       range(0, 1), range(0, 1))
    assert peer.ask(what="read", tensor=0, block=12) == [77.0] * 64
    manager.unregister_cache(registered.cache_id)
    # A batch slot of the peer's cut into blocks of half its size.
    small = own_cache(manager, 4, [8, 32])
    manager.pull_blocks(ld.CacheKeyByIdAndIndex(1, peer.info["cache_id"], 5), small, (), [6, 1])
    assert (small.numpy(3)[6] == 305).all() and (small.numpy(0)[1] == 5).all()
    assert (small.numpy(0)[0] == -1).all()


def test_three_processes_meet_by_a_rank_table(peers, engines):
    table = json.dumps({"version": "1.0", "server_count": "1", "status": "completed", "server_list": [
        {"server_id": "127.0.0.1", "device": [
            {"device_id": str(i), "device_ip": "192.0.2.1", "rank_id": str(i)} for i in range(3)]}]})
    members = {10: 0, 11: 1, 12: 2}
    others = [peers(role="MIX", cluster_id=10 + i, shape=SHAPE, v2=True, options=V2_OPTIONS)
              for i in (0, 2)]
    mine = engines(ld.LLMRole.MIX, 11, V2_OPTIONS)
    name = f"comm-{os.getpid()}"
    threads = [threading.Thread(target=other.ask, kwargs={
        "what": "link", "name": name, "members": list(members.items()), "table": table})
        for other in others]
    for thread in threads:
        thread.start()
    comm = mine.link(name, members, table)
    for thread in threads:
        thread.join()
    wait_for(lambda: mine.query_register_mem_status(comm) == ld.RegisterMemStatus.OK)
    assert [other.ask(what="status") for other in others] == [0, 0]
    assert sorted(mine.links()) == [10, 12]
    cache = own_cache(mine.cache_manager)
    for other, cluster in zip(others, (10, 12)):
        mine.cache_manager.pull_blocks(ld.CacheKeyByIdAndIndex(cluster, other.info["cache_id"]), cache,
                                       [2], [3])
        assert (cache.numpy(1)[3] == 102).all()
    with pytest.raises(ld.LLMException, match="can't be True after link"):
        mine.cache_manager.register_cache(ld.CacheDesc(1, [1], ld.DataType.DT_INT8), [4096],
                                          remote_accessible=True)
    with pytest.raises(ld.LLMException) as raised:
        mine.link(name, members, table)
    assert raised.value.status_code == LLMStatusCode.LLM_ALREADY_LINK
    mine.unlink(comm)
    for other in others:
        other.ask(what="unlink")
    assert mine.links() == []
    with pytest.raises(ld.LLMException):
        mine.unlink(comm)


def test_link_without_the_others_ends_in_time(engines):
    mine = engines(ld.LLMRole.MIX, 11, dict(V2_OPTIONS, **{"llm.LinkTotalTime": "1"}))
    table = json.dumps({"server_list": [{"device": [{"rank_id": "0"}, {"rank_id": "1"}]}]})
    for members in ({11: 0, 12: 1}, {12: 0, 11: 1}):
        with pytest.raises(ld.LLMException) as raised:
            mine.link(f"alone-{os.getpid()}", members, table)
        assert raised.value.status_code == LLMStatusCode.LLM_TIMEOUT


PATIENT = {"llm.LivenessTime": "60000", "llm.SyncKvCacheWaitTime": "30000"}


def test_keyboard_interrupt_ends_a_pull(peers, engines):
    peer = v1_prompt(peers, "tcp", **PATIENT)
    decoder, _ = v1_decoder(engines, peer, "tcp", **PATIENT)
    cache = own_cache(decoder.kv_cache_manager)
    peer.stop()
    key = ld.CacheKeyByIdAndIndex(1, peer.info["cache_id"])
    for call in (lambda: decoder.kv_cache_manager.pull_blocks(key, cache, [1], [1]),
                 lambda: decoder.kv_cache_manager.pull_cache(key, cache)):
        assert interrupt(call) < 0.1
    peer.go()


def test_keyboard_interrupt_ends_a_push(peers, engines):
    options = dict(V2_OPTIONS, **PATIENT, **{"llm.Transports": "tcp"})
    peer = peers(role="DECODER", cluster_id=1, shape=SHAPE, v2=True,
                 options=dict(options, **{"llm.listenIpInfo": "127.0.0.1:0"}))
    mine = engines(ld.LLMRole.PROMPT, 2, options)
    assert mine.link_clusters([cluster_info(1, peer.info["port"])])[0] == 0
    manager, cache = mine.cache_manager, own_cache(mine.cache_manager)
    peer.stop()
    key = ld.CacheKeyByIdAndIndex(1, peer.info["cache_id"])
    assert interrupt(lambda: manager.push_blocks(key, cache, [1], [1])) < 0.1
    peer.go()


def test_keyboard_interrupt_ends_unregistering(peers, engines):
    blocks, size = 64, 2**18
    options = dict(V2_OPTIONS, **PATIENT, **{"llm.Transports": "tcp"})
    mine = engines(ld.LLMRole.MIX, 2, options, **{"llm.listenIpInfo": "127.0.0.1:0"})
    peer = peers(role="MIX", cluster_id=1, shape=[blocks, size], num_tensors=1, v2=True,
                 options=options)
    assert peer.ask(what="link_to", cluster=2, port=mine.listen_port()) == 0
    memory = np.zeros((blocks, size), np.float32)
    cache = mine.cache_manager.register_blocks_cache(
        ld.CacheDesc(1, [blocks, size], ld.DataType.DT_FLOAT), [memory.ctypes.data])
    peer.tell(what="stop_in_a_pull", cluster=2, cache_id=cache.cache_id)
    os.waitpid(peer.process.pid, os.WUNTRACED)
    assert interrupt(lambda: mine.cache_manager.unregister_cache(cache.cache_id)) < 0.1
    peer.go()
    assert peer.hear() is None


def test_keyboard_interrupt_ends_waiting_for_a_task(pair):
    prompt, decoder = pair
    source, target = (one.kv_cache_manager.allocate_cache(ld.CacheDesc(2, SHAPE, ld.DataType.DT_FLOAT))
                      for one in pair)
    gate = threading.Event()

    class Never(ld.LayerSynchronizer):
        def synchronize_layer(self, layer_index, timeout_in_millis):
            return not gate.wait()

    config = ld.TransferWithCacheKeyConfig(ld.CacheKeyByIdAndIndex(2, target.cache_id), range(1),
                                           range(1))
    task = prompt.kv_cache_manager.transfer_cache_async(source, Never(), [config])
    for wait in (task.synchronize, task.get_results, lambda: task.synchronize(60000)):
        assert interrupt(wait) < 0.1
    gate.set()
    assert task.synchronize() == LLMStatusCode.LLM_PARAM_INVALID


def test_keyboard_interrupt_ends_awaiting(peers, engines):
    peer = v1_prompt(peers, "tcp", **PATIENT)
    decoder, _ = v1_decoder(engines, peer, "tcp", **PATIENT)
    cache = own_cache(decoder.kv_cache_manager)
    peer.stop()
    assert interrupt(lambda: asyncio.run(
        aio.Link(decoder, 1).pull(peer.info["cache_id"], cache))) < 0.1
    other = engines(ld.LLMRole.DECODER, 3)
    assert interrupt(lambda: asyncio.run(
        aio.link(other, 1, ("127.0.0.1", peer.info["port"]), 20000))) < 0.1
    peer.go()
    for thread in other._engine._left_behind:
        thread.join()
    assert other.links() == []


def test_keyboard_interrupt_ends_linking(engines, peers):
    peer = v1_prompt(peers, "tcp")
    peer.stop()
    decoder = engines(ld.LLMRole.DECODER, 2)
    cluster = cluster_info(1, peer.info["port"])
    assert interrupt(lambda: decoder.link_clusters([cluster], 2000)) < 0.1
    peer.go()
    # What the call goes on to do behind our back is taken back.
    decoder._engine._left_behind[0].join()
    assert decoder.links() == []
    assert decoder.link_clusters([cluster])[0] == LLMStatusCode.LLM_SUCCESS


def test_keyboard_interrupt_ends_a_meeting(engines):
    mine = engines(ld.LLMRole.MIX, 11, V2_OPTIONS)
    table = json.dumps({"server_list": [{"device": [{"rank_id": "0"}, {"rank_id": "1"}]}]})
    assert interrupt(lambda: mine.link("never", {11: 0, 12: 1}, table)) < 0.1


def interrupt(call):
    """Seconds from Ctrl-C to the end of the call, of three tries the best: machines stutter."""
    best = 60.0
    for _ in range(3):
        at = []

        def fire():
            at.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(0.2, fire)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            call()
            timer.join()
            pytest.fail("the call ended by itself")
        best = min(best, time.monotonic() - at[0])
        timer.join()
        if best < 0.1:
            break
    return best


def test_the_gil_is_free_while_a_pull_waits(peers, engines):
    patient = {"llm.LivenessTime": "60000", "llm.SyncKvCacheWaitTime": "700"}
    peer = v1_prompt(peers, "tcp", **patient)
    decoder, _ = v1_decoder(engines, peer, "tcp", **patient)
    cache = own_cache(decoder.kv_cache_manager)
    peer.stop()
    results = []

    def pull():
        try:
            decoder.kv_cache_manager.pull_blocks(
                ld.CacheKeyByIdAndIndex(1, peer.info["cache_id"]), cache, [1], [1])
        except ld.LLMException as error:
            results.append(error.status_code)

    thread = threading.Thread(target=pull)
    thread.start()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    thread.join()
    peer.go()
    assert results == [LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT] and ticks > 50


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_peer_needs_no_gil(peers, engines, transport):
    peer = v1_prompt(peers, transport)
    decoder, _ = v1_decoder(engines, peer, transport)
    peer.ask(what="hold_gil")
    cache = own_cache(decoder.kv_cache_manager)
    key = ld.CacheKeyByIdAndIndex(1, peer.info["cache_id"])
    decoder.kv_cache_manager.pull_blocks(key, cache, [1], [2])
    assert (cache.numpy(3)[2] == 301).all()


def test_a_dead_peer_ends_a_pull(peers, engines):
    peer = v1_prompt(peers, "tcp")
    decoder, cluster = v1_decoder(engines, peer, "tcp")
    cache = own_cache(decoder.kv_cache_manager)
    peer.close()
    with pytest.raises(ld.LLMException):
        decoder.kv_cache_manager.pull_blocks(ld.CacheKeyByIdAndIndex(1, 1), cache, [1], [1])
    wait_for(lambda: decoder.link_info(1)["state"] == "broken")
    with pytest.raises(ld.LLMException) as raised:
        decoder.check_link_status(1)
    assert raised.value.status_code == LLMStatusCode.LLM_LINK_FAILED
    assert decoder.unlink_clusters([cluster], force=True)[0] == LLMStatusCode.LLM_SUCCESS


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda r: r,
                                  lambda r: np.array(r, dtype=np.uint64),
                                  lambda r: np.array(r, dtype=np.int32)])
def test_blocks_in_every_form(pair, make):
    prompt, decoder = pair
    source = own_cache(prompt.kv_cache_manager)
    source.numpy(0)[:] = np.arange(16).reshape(16, 1)
    target = own_cache(decoder.kv_cache_manager)
    decoder.kv_cache_manager.pull_blocks(ld.CacheKeyByIdAndIndex(1, source.cache_id), target,
                                         make(range(0, 8)), make(range(15, 7, -1)))
    assert target.numpy(0)[:, 0].tolist() == [-1] * 8 + [7, 6, 5, 4, 3, 2, 1, 0]


def test_blocks_of_the_wrong_form(pair):
    prompt, decoder = pair
    source, target = own_cache(prompt.kv_cache_manager), own_cache(decoder.kv_cache_manager)
    key = ld.CacheKeyByIdAndIndex(1, source.cache_id)

    def pull(*blocks):
        decoder.kv_cache_manager.pull_blocks(key, target, *blocks)

    for blocks in (["1"], [1.0], np.array([1.5]), 5, "1", np.array([[1]])):
        with pytest.raises(TypeError):
            pull(blocks, [1])
    for blocks in ([-1], [2**64], np.array([-1]), range(-1, 0)):
        with pytest.raises(ValueError, match="out of range"):
            pull(blocks, [1])
    for blocks in (([], []), ([1], [1, 2]), ([16], [0]), ([0], [16])):
        with pytest.raises(ld.LLMException) as raised:
            pull(*blocks)
        assert raised.value.status_code == LLMStatusCode.LLM_PARAM_INVALID


def test_several_engines_in_a_process(engines):
    prompts = [engines(ld.LLMRole.PROMPT, i, {"ge.exec.deviceId": "0",
                                              "llm.listenIpInfo": "127.0.0.1:0"}) for i in (1, 2, 3)]
    decoder = engines(ld.LLMRole.DECODER, 9)
    overall, codes = decoder.link_clusters(
        [cluster_info(p.cluster_id, p.listen_port()) for p in prompts])
    assert overall == 0 and codes == [0, 0, 0]
    target = own_cache(decoder.kv_cache_manager)
    for prompt in prompts:
        source = own_cache(prompt.kv_cache_manager)
        source.numpy(0)[0] = prompt.cluster_id
        decoder.kv_cache_manager.pull_blocks(
            ld.CacheKeyByIdAndIndex(prompt.cluster_id, source.cache_id), target, [0], [0])
        assert (target.numpy(0)[0] == prompt.cluster_id).all()


def test_a_forked_child_has_no_engine(pair):
    _, decoder = pair
    manager = decoder.kv_cache_manager
    caches = [own_cache(manager)]

    def child():
        caches.clear()  # nothing to free here, and nothing to say
        for call in (lambda: decoder.kv_cache_manager, lambda: decoder.check_link_status(1),
                     lambda: manager.allocate_cache(ld.CacheDesc(1, [1], ld.DataType.DT_INT8))):
            with pytest.raises(RuntimeError, match="llm datadist is not initialized"):
                call()
        decoder.finalize()
        decoder.init({"ge.exec.deviceId": "0"})
        own_cache(decoder.kv_cache_manager).numpy(0)[:] = 1
        assert decoder.links() == []
        decoder.finalize()

    pid = os.fork()
    if pid == 0:
        try:
            logged = io.StringIO()
            log.handlers[0].setStream(logged)
            child()
            assert logged.getvalue() == ""
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    decoder.check_link_status(1)
    decoder.kv_cache_manager.deallocate_cache(caches[0])


def test_a_cache_goes_with_its_last_reference(pair):
    prompt, decoder = pair
    source = own_cache(prompt.kv_cache_manager)
    key = ld.CacheKeyByIdAndIndex(1, source.cache_id)
    target = own_cache(decoder.kv_cache_manager)
    view = source.numpy(0)
    del source
    gc.collect()
    decoder.kv_cache_manager.pull_blocks(key, target, [0], [0])  # the view keeps it
    del view
    gc.collect()
    with pytest.raises(ld.LLMException) as raised:
        decoder.kv_cache_manager.pull_blocks(key, target, [0], [0])
    assert raised.value.status_code == LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


def test_other_types_are_refused_unless_they_are_allowed(pair):
    prompt, decoder = pair
    source = prompt.kv_cache_manager.allocate_blocks_cache(
        ld.CacheDesc(2, [4, 64], ld.DataType.DT_BF16), ld.BlocksCacheKey(1, 0))
    target = decoder.kv_cache_manager.allocate_blocks_cache(
        ld.CacheDesc(2, [4, 64], ld.DataType.DT_FLOAT16))
    there, here = (ld.CacheKeyByIdAndIndex(n, c.cache_id) for n, c in ((1, source), (2, target)))
    source.numpy(0)[:] = 7
    for call in (lambda **more: decoder.kv_cache_manager.pull_cache(there, target, **more),
                 lambda **more: decoder.kv_cache_manager.pull_blocks(there, target, [1], [2], **more),
                 lambda **more: prompt.kv_cache_manager.push_blocks(here, source, [1], [3], **more)):
        with pytest.raises(ld.LLMException, match="LLM_DT_.*16.* here, LLM_DT_.*16.* at the peer"
                           ) as raised:
            call()
        assert raised.value.status_code == ld.LLMStatusCode.LLM_PARAM_INVALID
        with pytest.raises(TypeError, match="allow_other_type"):
            call(allow_other_type=1)
        call(allow_other_type=True)
    assert (target.numpy(0)[[0, 2, 3]].view("u2") == 7).all()
    assert (target.numpy(0)[1].view("u2") == 0).all()


def test_other_types_of_registered_caches(pair_v2):
    one, two = pair_v2
    source, target = (engine.cache_manager.allocate_cache(ld.CacheDesc(2, [4, 64], data_type))
                      for engine, data_type in ((one, ld.DataType.DT_BF16), (two, ld.DataType.DT_INT16)))
    there, here = (ld.CacheKeyByIdAndIndex(n, cache.cache_id) for n, cache in ((1, source), (2, target)))
    for call in (lambda **more: two.cache_manager.pull_cache(there, target, **more),
                 lambda **more: one.cache_manager.push_cache(here, source, **more)):
        with pytest.raises(ld.LLMException, match="data types differ"):
            call()
        call(allow_other_type=True)

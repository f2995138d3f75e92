"""Caches: views, copies, tasks."""

import copy
import ctypes
import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import llm_datadist as ld
from conftest import V2_OPTIONS, cluster_info, wait_for
from llm_datadist import LLMStatusCode
from options_test import U64, refused

DESC = ld.CacheDesc(4, [8, 16], ld.DataType.DT_FLOAT)


def host_cache(cls, desc):
    desc = ld.CacheDesc(desc.num_tensors, desc.shape, desc.data_type, ld.Placement.HOST)
    arrays = [np.zeros(desc.shape, np.float32) for _ in range(desc.num_tensors)]
    return cls.create_cpu_cache(desc, [a.ctypes.data for a in arrays]), arrays


# ---- views ----

@pytest.mark.parametrize("data_type,dtype", [
    (ld.DataType.DT_FLOAT16, np.float16), (ld.DataType.DT_BF16, np.uint16),
    (ld.DataType.DT_BOOL, np.bool_), (ld.DataType.DT_INT64, np.int64),
    (ld.DataType.DT_FLOAT8_E4M3FN, np.uint8), (ld.DataType.DT_FLOAT8_E5M2, np.uint8),
    (ld.DataType.DT_FLOAT8_E8M0, np.uint8), (ld.DataType.DT_HIFLOAT8, np.uint8)])
def test_views_are_the_memory(engines, data_type, dtype):
    manager = engines(ld.LLMRole.DECODER, 1).kv_cache_manager
    cache = manager.allocate_cache(ld.CacheDesc(2, (2, 3, 4), data_type))
    view = cache.numpy(1)
    assert view.dtype == dtype and view.shape == (2, 3, 4) and view.flags.writeable
    assert view.ctypes.data == cache.per_device_tensor_addrs[0][1]
    view[:] = 1
    assert (cache.numpy(1) == 1).all()
    tensor = manager.get_cache_tensors(cache, 1)[0]
    assert tensor.tensor_desc.dtype is data_type and tensor.numpy().shape == (2, 3, 4)
    from_dlpack = getattr(np, "from_dlpack", None) or np._from_dlpack  # of numpy 1.22
    capsule = from_dlpack(view) if data_type is not ld.DataType.DT_BOOL else view
    assert capsule.ctypes.data == view.ctypes.data
    with pytest.raises(ld.LLMException):
        cache.numpy(2)
    refused(lambda: cache.numpy(0, 1))


def test_a_cache_keeps_its_shape(engines):
    manager = engines(ld.LLMRole.DECODER, 1).kv_cache_manager
    shape = [8, 16]
    desc = ld.CacheDesc(2, shape, ld.DataType.DT_FLOAT)
    first = manager.allocate_cache(desc)
    desc.update_dim(0, 16)  # for the next one
    second = manager.allocate_cache(desc)
    assert first.numpy(0).shape == (8, 16) and second.numpy(0).shape == (16, 16)
    assert manager.get_cache_tensors(first)[0].numpy().shape == (8, 16)
    cpu, _ = host_cache(ld.KvCache, desc)
    refused(lambda: manager.swap_blocks(first, cpu, {8: 0}))


def test_no_views_without_an_engine(engines):
    datadist = engines(ld.LLMRole.DECODER, 1)
    cache = datadist.kv_cache_manager.allocate_cache(DESC)
    datadist.finalize()
    with pytest.raises(RuntimeError, match="not initialized"):
        cache.numpy(0)
    cpu, arrays = host_cache(ld.KvCache, DESC)  # needs none
    assert cpu.numpy(3).ctypes.data == arrays[3].ctypes.data


POOL = ld.CacheDesc(1, [4, 4096], ld.DataType.DT_INT8)


def small_pool(engines, mode):
    """A manager whose pool has room for three such caches."""
    size = 3 * POOL.size
    if mode == "v1":
        return engines(ld.LLMRole.PROMPT, 1, {
            "ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0",
            "ge.flowGraphMemMaxSize": str(size)}).kv_cache_manager
    return engines(ld.LLMRole.MIX, 1, {
        "ge.exec.deviceId": "0", "llm.EnableCacheManager": "1",
        "llm.MemPoolConfig": f'{{"memory_size": {size}}}'}).cache_manager


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_a_view_that_outlives_deallocation_is_nobody_elses(engines, mode):
    manager = small_pool(engines, mode)
    cache = manager.allocate_cache(POOL)
    view, part = cache.numpy(0), cache.numpy(0)[2]
    view[:] = 7
    address = view.ctypes.data
    manager.deallocate_cache(cache)
    del cache, view
    others = [manager.allocate_cache(POOL) for _ in range(2)]
    for other in others:
        other.numpy(0)[:] = 9
    assert part.ctypes.data == address + 2 * 4096 and (part == 7).all()
    part[:] = 8
    assert all((other.numpy(0) == 9).all() for other in others)
    # Its memory is still in use, and goes back with the last view.
    with pytest.raises(ld.LLMException):
        manager.allocate_cache(POOL)
    del part
    gc.collect()
    assert manager.allocate_cache(POOL).numpy(0).ctypes.data == address


def test_a_view_of_a_host_cache_outlives_it(engines):
    manager = engines(ld.LLMRole.MIX, 1, V2_OPTIONS).cache_manager
    cache = manager.allocate_cache(ld.CacheDesc(1, [4, 4096], ld.DataType.DT_INT8, ld.Placement.HOST))
    view = cache.numpy(0)
    view[:] = 7
    manager.deallocate_cache(cache)
    del cache
    gc.collect()
    assert (view == 7).all()


@pytest.mark.parametrize("order", ["finalize", "deallocate first", "at exit"])
def test_a_view_that_outlives_finalize_does_no_harm(order):
    # In a process of its own, which would crash.
    program = f"""if True:
        import llm_datadist as ld
        mine = ld.LLMDataDist(ld.LLMRole.DECODER, 1)
        mine.init({{"ge.exec.deviceId": "0;1"}})
        manager = mine.kv_cache_manager
        desc = ld.CacheDesc(2, [4, 4096], ld.DataType.DT_FLOAT)
        first, second = manager.allocate_cache(desc), manager.allocate_cache(desc)
        views = [first.numpy(t, d) for t in range(2) for d in range(2)] + [second.numpy(0, 1)]
        for i, view in enumerate(views):
            view[:] = i
        if {order!r} == "deallocate first":
            manager.deallocate_cache(first)
        if {order!r} != "at exit":
            mine.finalize()
            del mine, manager, first, second
            again = ld.LLMDataDist(ld.LLMRole.DECODER, 1)
            again.init({{"ge.exec.deviceId": "0"}})
            again.kv_cache_manager.allocate_cache(desc).numpy(0)[:] = 99
        assert [view[3, 4095] for view in views] == [0, 1, 2, 3, 4]
        views.pop()[:] = 5
        print("good")"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "good\n"), ran.stderr


def test_a_forked_child_leaves_the_memory_to_its_parent(engines):
    manager = small_pool(engines, "v1")
    cache = manager.allocate_cache(POOL)
    view = cache.numpy(0)
    child = os.fork()
    if child == 0:
        del view
        cache._hold = None
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    view[:] = 3
    manager.deallocate_cache(cache)
    assert (view == 3).all()


def test_a_copied_object_is_the_same_cache(engines):
    manager = engines(ld.LLMRole.DECODER, 1).kv_cache_manager
    cache = manager.allocate_cache(DESC)
    copy.copy(cache)
    gc.collect()
    other = manager.allocate_cache(DESC)  # not in the same memory
    assert not set(other.per_device_tensor_addrs[0]) & set(cache.per_device_tensor_addrs[0])


def test_caches_of_another_engine_are_refused(pair, pair_v2):
    gone = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    prompt, decoder = (one.kv_cache_manager for one in pair)
    source, target = prompt.allocate_blocks_cache(DESC), decoder.allocate_blocks_cache(DESC)
    assert source.cache_id == target.cache_id
    key = ld.CacheKeyByIdAndIndex(1, source.cache_id)
    cpu, _ = host_cache(ld.KvCache, DESC)
    for call in (lambda: decoder.deallocate_cache(source),
                 lambda: decoder.pull_blocks(key, source, [1], [1]),
                 lambda: decoder.pull_cache(key, source),
                 lambda: decoder.copy_cache(target, source),
                 lambda: decoder.copy_blocks(source, {0: [1]}),
                 lambda: decoder.swap_blocks(source, cpu, {0: 1}),
                 lambda: decoder.get_cache_tensors(source),
                 lambda: prompt.transfer_cache_async(target, Layers(), [])):
        refused(call, gone)
    decoder.pull_blocks(key, target, [1], [1])
    one, two = (one.cache_manager for one in pair_v2)
    cache, other = one.allocate_blocks_cache(DESC), two.allocate_blocks_cache(DESC)
    refused(lambda: two.deallocate_blocks_cache(cache), gone)
    refused(lambda: two.push_blocks(key, cache, [1], [1]), gone)
    two.push_blocks(ld.CacheKeyByIdAndIndex(1, cache.cache_id), other, [1], [1])


def test_torch_takes_views(engines):
    torch = pytest.importorskip("torch")
    manager = engines(ld.LLMRole.DECODER, 1).kv_cache_manager
    cache = manager.allocate_cache(DESC)
    tensor = torch.from_dlpack(cache.numpy(0))
    assert tensor.data_ptr() == cache.per_device_tensor_addrs[0][0]
    tensor[3] = 7
    assert (cache.numpy(0)[3] == 7).all()
    # What numpy or torch 1.13 lack: the bits as integers that both know, named in torch again.
    for data_type, integer, named, bits in (
            (ld.DataType.DT_BF16, np.int16, torch.bfloat16, 0x3FC0),
            (ld.DataType.DT_BOOL, np.uint8, torch.bool, 1)):
        cache = manager.allocate_cache(ld.CacheDesc(1, [2, 8], data_type))
        tensor = torch.from_dlpack(cache.numpy(0).view(integer)).view(named)
        assert tensor.data_ptr() == cache.per_device_tensor_addrs[0][0]
        tensor[:] = 1.5
        assert (cache.numpy(0).view(integer) == bits).all()


def test_several_devices(engines):
    manager = engines(ld.LLMRole.DECODER, 1, {"ge.exec.deviceId": "0;1"}).kv_cache_manager
    cache = manager.allocate_cache(DESC)
    assert [len(addrs) for addrs in cache.per_device_tensor_addrs] == [4, 4]
    cache.numpy(0, 1)[:] = 5
    assert [t.numpy()[0, 0] for t in manager.get_cache_tensors(cache, 0)][1] == 5


# ---- v1 ----

def test_v1_caches(engines):
    manager = engines(ld.LLMRole.DECODER, 1).kv_cache_manager
    first, second = manager.allocate_cache(DESC), manager.allocate_blocks_cache(DESC)
    assert (first.cache_id, second.cache_id) == (1, 2) and first.cache_desc is DESC
    first.numpy(3)[1] = 3
    manager.copy_cache(second, first, 2, 1, offset=4, size=8)
    assert second.numpy(3)[2][1:3].tolist() == [3, 3]
    manager.copy_blocks(first, {1: [4, 5], 0: []})
    assert (first.numpy(3)[4:6] == 3).all()
    tensor, = manager.get_cache_tensors(first, 3)
    assert tensor.numpy().shape == (8, 16) and tensor.numpy()[1, 0] == 3
    cpu, arrays = host_cache(ld.KvCache, DESC)
    assert cpu.cache_id == -1
    manager.swap_blocks(first, cpu, {1: 7})
    assert (arrays[3][7] == 3).all()
    arrays[0][2] = 9
    manager.swap_blocks(cpu, first, {2: 0})
    assert (first.numpy(0)[0] == 9).all()
    for call in (lambda: manager.swap_blocks(first, second, {0: 0}),
                 lambda: manager.swap_blocks(first, cpu, {8: 0}),
                 lambda: manager.copy_cache(cpu, first), lambda: manager.copy_blocks(cpu, {0: [1]}),
                 lambda: manager.copy_blocks(first, {0: [8]}), lambda: manager.deallocate_cache(cpu),
                 lambda: manager.copy_cache(first, second, size=0),
                 lambda: manager.get_cache_tensors(first, 4),
                 lambda: manager.allocate_cache(ld.CacheDesc(0, [1], ld.DataType.DT_INT8)),
                 lambda: manager.allocate_cache(cpu.cache_desc),
                 lambda: manager.allocate_cache(DESC, [ld.CacheKey(1, 2)]),
                 lambda: manager.remove_cache_key(ld.CacheKey(1, 2)),
                 lambda: manager.transfer_cache_async(first, Layers(), [])):
        refused(call)
    manager.deallocate_cache(first)
    assert first.per_device_tensor_addrs == []
    manager.deallocate_cache(first)
    refused(lambda: manager.copy_cache(first, second), LLMStatusCode.LLM_KV_CACHE_NOT_EXIST)
    with pytest.raises(TypeError):
        manager.deallocate_cache(1)
    with pytest.raises(TypeError):
        manager.copy_blocks(second, {0: 1})
    with pytest.raises(ValueError):
        manager.copy_blocks(second, {-1: [1]})


def test_v1_pull_arguments(pair):
    _, decoder = pair
    manager = decoder.kv_cache_manager
    cache, key = manager.allocate_cache(DESC), ld.CacheKeyByIdAndIndex(1, 1)
    for keywords in ({"tensor_num_per_layer": 1.0}, {"tensor_num_per_layer": "x"},
                     {"src_layer_range": [0, 1]}, {"nonsense": 1}, {"batch_index": "0"}):
        with pytest.raises(TypeError):
            manager.pull_cache(key, cache, **keywords)
    with pytest.raises(ValueError):
        manager.pull_cache(key, cache, tensor_num_per_layer=-1)
    for keywords in ({"tensor_num_per_layer": 0}, {"size": 0}, {"size": -2},
                     {"src_layer_range": range(0, 2, 2)}, {"src_layer_range": range(0, 1),
                                                          "dst_layer_range": range(0, 2)}):
        refused(lambda keywords=keywords: manager.pull_cache(key, cache, **keywords))
    refused(lambda: manager.pull_cache(key, cache), LLMStatusCode.LLM_KV_CACHE_NOT_EXIST)
    refused(lambda: manager.pull_cache(ld.CacheKeyByIdAndIndex(5, 1), cache),
            LLMStatusCode.LLM_NOT_YET_LINK)
    refused(lambda: manager.pull_cache(ld.CacheKey(1, 2, 0, 3), cache), text="exactly one")
    refused(lambda: manager.pull_cache(ld.CacheKey(1, 2**64 - 1), cache), text="exactly one")
    gone = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    refused(lambda: manager.pull_cache(ld.CacheKey(1, 2), cache), gone)
    refused(lambda: manager.pull_blocks(ld.BlocksCacheKey(1), cache, [1], [1]), gone)
    with pytest.raises(ValueError):
        manager.pull_blocks(ld.BlocksCacheKey(1, -1), cache, [1], [1])


# ---- v2 ----

def test_v2_caches(engines):
    bare = engines(ld.LLMRole.DECODER, 1, {"ge.exec.deviceId": "0", "llm.EnableCacheManager": "1"})
    refused(lambda: bare.cache_manager.allocate_cache(DESC), text="MemPoolConfig")
    refused(lambda: bare.cache_manager.push_cache(
        ld.CacheKeyByIdAndIndex(1, 1), bare.cache_manager.register_cache(DESC, [4096] * 4)),
        text="Accessible")
    manager = engines(ld.LLMRole.DECODER, 2, V2_OPTIONS).cache_manager
    device, blocks = manager.allocate_cache(DESC), manager.allocate_blocks_cache(DESC)
    assert isinstance(device, ld.Cache) and len(device.tensor_addrs) == 4
    assert not device.is_blocks_cache and blocks.is_blocks_cache
    host = manager.allocate_blocks_cache(
        ld.CacheDesc(4, [8, 16], ld.DataType.DT_FLOAT, ld.Placement.HOST))
    host.numpy(2)[1] = 6
    manager.swap_blocks(host, blocks, {1: 3})
    assert (blocks.numpy(2)[3] == 6).all()
    manager.copy_blocks(blocks, {3: [4]})
    assert (blocks.numpy(2)[4] == 6).all()
    array = np.zeros((1, 4), np.float32)
    registered = manager.register_cache(ld.CacheDesc(1, [1, 4], ld.DataType.DT_FLOAT),
                                        [array.ctypes.data], [ld.CacheKey(1, 1)])
    for call in (lambda: manager.copy_cache(blocks, device), lambda: manager.copy_blocks(device, {}),
                 lambda: manager.swap_blocks(device, host, {0: 0}),
                 lambda: manager.deallocate_cache(blocks),
                 lambda: manager.deallocate_blocks_cache(device),
                 lambda: manager.deallocate_cache(registered),
                 lambda: manager.register_cache(DESC, [1, 2, 3]),
                 lambda: manager.register_cache(DESC, [1, 2, 3, 0]),
                 lambda: manager.transfer_cache_async(host, Layers(), [])):
        refused(call)
    refused(lambda: manager.allocate_cache(ld.CacheDesc(1, [10**8, 2], ld.DataType.DT_INT8,
                                                        ld.Placement.HOST)),
            LLMStatusCode.LLM_OUT_OF_MEMORY)
    with pytest.raises(TypeError):
        manager.pull_cache(ld.CacheKey(1, 1), device)
    with pytest.raises(TypeError):
        manager.register_cache(DESC, "1234")
    manager.unregister_cache(registered.cache_id)
    manager.unregister_cache(12345)
    manager.deallocate_cache(device)
    manager.deallocate_cache(device)
    manager.deallocate_blocks_cache(host)
    with manager.allocate_cache(DESC) as cache:
        pass
    assert cache.tensor_addrs == []
    manager.remap_registered_memory(ld.MemInfo(ld.Memtype.MEM_TYPE_DEVICE, 1, 1))
    for info in ((ld.Memtype.MEM_TYPE_HOST, 1, 1), (ld.Memtype.MEM_TYPE_DEVICE, 0, 1),
                 (ld.Memtype.MEM_TYPE_DEVICE, 1, 0)):
        refused(lambda info=info: manager.remap_registered_memory([ld.MemInfo(*info)]))
    for wrong in ("x", [1], None, 5, [None]):
        refused(lambda wrong=wrong: manager.remap_registered_memory(wrong))


def test_caches_of_the_wrong_kind_are_refused_before_the_link_is_looked_at(engines):
    mine = engines(ld.LLMRole.MIX, 1, V2_OPTIONS)
    manager, desc = mine.cache_manager, ld.CacheDesc(2, [8, 16], ld.DataType.DT_FLOAT)
    host = ld.CacheDesc(2, [8, 16], ld.DataType.DT_FLOAT, ld.Placement.HOST)
    slots, blocks = manager.allocate_cache(desc), manager.allocate_blocks_cache(desc)
    host_slots, host_blocks = manager.allocate_cache(host), manager.allocate_blocks_cache(host)
    there = ld.CacheKeyByIdAndIndex(2, 1)
    for call in (lambda: manager.pull_cache(there, blocks),
                 lambda: manager.pull_cache(there, host_blocks),
                 lambda: manager.pull_blocks(there, slots, [1], [1]),
                 lambda: manager.push_cache(there, blocks),
                 lambda: manager.push_cache(there, host_slots),
                 lambda: manager.push_blocks(there, slots, [1], [1]),
                 lambda: manager.push_blocks(there, host_blocks, [1], [1])):
        refused(call)
    for call in (lambda: manager.pull_cache(there, slots), lambda: manager.pull_cache(there, host_slots),
                 lambda: manager.pull_blocks(there, host_blocks, [1], [1]),
                 lambda: manager.push_cache(there, slots),
                 lambda: manager.push_blocks(there, blocks, [1], [1])):
        refused(call, LLMStatusCode.LLM_NOT_YET_LINK)


def test_a_host_cache_stays_until_it_is_deallocated(pair_v2):
    one, two = pair_v2
    host = ld.CacheDesc(2, [8, 16], ld.DataType.DT_FLOAT, ld.Placement.HOST)
    cache = one.cache_manager.allocate_blocks_cache(host, ld.BlocksCacheKey(1))
    addrs = cache.tensor_addrs
    del cache
    gc.collect()
    ctypes.memset(addrs[1], 1, 8 * 64)
    target = two.cache_manager.allocate_blocks_cache(ld.CacheDesc(2, [8, 16], ld.DataType.DT_FLOAT))
    two.cache_manager.pull_blocks(ld.BlocksCacheKey(1), target, [5], [2])
    assert (target.numpy(1)[2].view(np.uint8) == 1).all()


def test_push_arguments(pair_v2):
    manager = pair_v2[0].cache_manager
    ten = manager.allocate_cache(ld.CacheDesc(10, [1, 4], ld.DataType.DT_FLOAT))
    one = manager.allocate_cache(ld.CacheDesc(1, [1, 4], ld.DataType.DT_FLOAT))
    key = ld.CacheKeyByIdAndIndex(2, 1)
    refused(lambda: manager.push_cache(key, ten, tensor_num_per_layer=3))
    refused(lambda: manager.push_cache(key, one, 0, range(0, 1), range(0, 1)))
    refused(lambda: manager.push_cache(key, ten, size=4))
    refused(lambda: manager.push_blocks(key, ten, [0], [0]))
    refused(lambda: manager.push_cache(key, ten), LLMStatusCode.LLM_KV_CACHE_NOT_EXIST)


# ---- tasks ----

class Layers(ld.LayerSynchronizer):
    def __init__(self, answer=lambda layer: True):
        self.answer, self.asked = answer, []

    def synchronize_layer(self, layer_index, timeout_in_millis):
        assert timeout_in_millis is None
        self.asked.append(layer_index)
        return self.answer(layer_index)


@pytest.fixture
def task_pair(pair):
    prompt, decoder = pair
    source = prompt.kv_cache_manager.allocate_cache(DESC)
    target = decoder.kv_cache_manager.allocate_cache(DESC)
    for t in range(4):
        source.numpy(t)[:] = np.arange(8).reshape(8, 1) + 10 * t
        target.numpy(t)[:] = -1
    return prompt.kv_cache_manager, source, target


def config(target, src, dst, src_slot=0, dst_slot=0):
    return ld.TransferWithCacheKeyConfig(ld.CacheKeyByIdAndIndex(2, target.cache_id, dst_slot), src,
                                         dst, src_slot)


def test_layers_are_pushed_when_ready(task_pair):
    manager, source, target = task_pair
    gate = threading.Event()
    layers = Layers(lambda layer: gate.wait())
    # Counted from the start of the range: source layer 1 to destination layer 0.
    task = manager.transfer_cache_async(source, layers, [config(target, range(1, 2), range(0, 1), 3, 5)])
    assert task.synchronize(0) == LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT
    assert task.get_results(1) == [LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT]
    gate.set()
    assert task.synchronize() == LLMStatusCode.LLM_SUCCESS and layers.asked == [1]
    assert (target.numpy(0)[5] == 23).all() and (target.numpy(1)[5] == 33).all()
    assert (target.numpy(2) == -1).all()


def test_one_result_per_configuration(task_pair):
    manager, source, target = task_pair
    task = manager.transfer_cache_async(source, Layers(), [
        config(target, range(0, 1), range(0, 1)), config(target, range(0, 2), range(0, 2), 8)])
    assert task.get_results() == [LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_PARAM_INVALID]
    assert task.synchronize() == LLMStatusCode.LLM_PARAM_INVALID


def test_what_a_synchronizer_raises_is_a_failure(task_pair):
    manager, source, target = task_pair

    def fail(layer):
        raise KeyError(layer)

    everything = [config(target, range(0, 1), range(0, 1)), config(target, range(1, 2), range(1, 2))]
    task = manager.transfer_cache_async(source, Layers(fail), everything)
    assert task.get_results() == [LLMStatusCode.LLM_FAILED] * 2
    assert isinstance(task.exception, KeyError)
    task = manager.transfer_cache_async(source, Layers(lambda layer: layer == 0), everything)
    assert task.get_results() == [LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_PARAM_INVALID]


def test_tasks_refuse(task_pair):
    manager, source, target = task_pair
    good = [config(target, range(0, 1), range(0, 1))]
    refused(lambda: manager.transfer_cache_async(source, Layers(), [
        config(target, range(1, 3), range(0, 2))]))
    refused(lambda: manager.transfer_cache_async(source, Layers(), good, [1]))
    refused(lambda: manager.transfer_cache_async(source, Layers(), good, [1], [1, 2]))
    refused(lambda: manager.transfer_cache_async(source, Layers(), good, None, [1]))
    refused(lambda: manager.transfer_cache_async(source, Layers(), [
        ld.TransferConfig(2, [1])]))
    with pytest.raises(TypeError):
        manager.transfer_cache_async(source, None, good)


def test_tasks_push_to_addresses(task_pair):
    manager, source, target = task_pair
    addrs, slot_bytes = target.per_device_tensor_addrs[0], 64
    everything = ld.TransferConfig(2, [addr + 5 * slot_bytes for addr in addrs], None, 3)
    one = ld.TransferConfig(2, addrs[:2], range(1, 2), 4)
    task = manager.transfer_cache_async(source, Layers(), [everything, one])
    assert task.get_results() == [LLMStatusCode.LLM_SUCCESS] * 2
    # Counted from the start of the range: source layer 1 to the first two addresses.
    for t in range(4):
        assert (target.numpy(t)[5] == 3 + 10 * t).all()
        assert (target.numpy(t)[0] == (24 + 10 * t if t < 2 else -1)).all()
    assert everything.src_layer_range is None
    task = manager.transfer_cache_async(source, Layers(), [everything], [1, 2], [3, 0])
    # Blocks are counted from the address.
    assert task.get_results() == [LLMStatusCode.LLM_PARAM_INVALID]
    task = manager.transfer_cache_async(source, Layers(), [ld.TransferConfig(2, addrs)], [1, 2], [3, 0])
    assert task.synchronize() == LLMStatusCode.LLM_SUCCESS
    assert (target.numpy(3)[3] == 31).all() and (target.numpy(3)[0] == 32).all()
    for wrong in (1, addrs[0] + 7 * slot_bytes + 4, U64):
        task = manager.transfer_cache_async(source, Layers(), [
            ld.TransferConfig(2, [addrs[0], wrong], range(0, 1))])
        assert task.synchronize() == LLMStatusCode.LLM_PARAM_INVALID


def test_finalize_stops_tasks(task_pair, pair):
    manager, source, target = task_pair
    gate = threading.Event()
    task = manager.transfer_cache_async(source, Layers(lambda layer: gate.wait()),
                                        [config(target, range(0, 1), range(0, 1))])
    pair[0].finalize()
    gate.set()
    assert task.synchronize(5000) == LLMStatusCode.LLM_FAILED


def test_a_task_cuts_a_slot_into_blocks(pair_v2):
    one, two = pair_v2
    source = one.cache_manager.allocate_cache(DESC)
    target = two.cache_manager.allocate_blocks_cache(
        ld.CacheDesc(4, [32, 8], ld.DataType.DT_FLOAT))
    source.numpy(2)[6] = np.arange(16)
    task = one.cache_manager.transfer_cache_async(
        source, Layers(), [config(target, range(1, 2), range(0, 1), 6)], None, [9, 4], 32)
    assert task.synchronize() == LLMStatusCode.LLM_SUCCESS
    assert target.numpy(0)[[9, 4]].ravel().tolist() == list(range(16))


@pytest.mark.parametrize("registered", [False, True])
def test_a_cache_that_goes_ends_the_task_that_cuts_it(pair_v2, registered):
    one, two = pair_v2
    manager = one.cache_manager
    memory = [np.ones(DESC.shape, np.float32) for _ in range(4)]
    source = (manager.register_cache(DESC, [m.ctypes.data for m in memory]) if registered else
              manager.allocate_cache(DESC))
    target = two.cache_manager.allocate_blocks_cache(ld.CacheDesc(4, [32, 8], ld.DataType.DT_FLOAT))
    gate = threading.Event()
    task = manager.transfer_cache_async(
        source, Layers(lambda layer: gate.wait()), [config(target, range(0, 1), range(0, 1))], None,
        [9, 4], 32)
    if registered:
        manager.unregister_cache(source.cache_id)
    else:
        manager.deallocate_cache(source)
    gate.set()
    assert task.synchronize() == LLMStatusCode.LLM_FAILED
    assert (target.numpy(0) == 0).all()


def test_configurations_are_read_at_the_start(task_pair):
    manager, source, target = task_pair
    addrs = target.per_device_tensor_addrs[0]
    gate = threading.Event()
    one = ld.TransferConfig(2, list(addrs), None, 3)
    task = manager.transfer_cache_async(source, Layers(lambda layer: gate.wait()), [one])
    one.dst_addrs[:2] = [1, 1]
    one.dst_cluster_id, one.dst_addrs, one.src_batch_index = 9, [], 5
    gate.set()
    assert task.synchronize() == LLMStatusCode.LLM_SUCCESS
    assert (target.numpy(3)[0] == 33).all()


def test_v2_tasks_push_to_addresses(engines):
    options = dict(V2_OPTIONS, **{"llm.EnableRemoteCacheAccessible": "0"})
    one = engines(ld.LLMRole.PROMPT, 1, options, **{"llm.listenIpInfo": "127.0.0.1:0"})
    two = engines(ld.LLMRole.DECODER, 2, options)
    assert two.link_clusters([cluster_info(1, one.listen_port())])[0] == 0
    source = one.cache_manager.allocate_cache(DESC)
    target = two.cache_manager.allocate_blocks_cache(ld.CacheDesc(4, [32, 8], ld.DataType.DT_FLOAT))
    source.numpy(2)[6] = np.arange(16)
    task = one.cache_manager.transfer_cache_async(
        source, Layers(), [ld.TransferConfig(2, target.tensor_addrs[:2], range(1, 2), 6)], None,
        [9, 4], 32)
    assert task.synchronize() == LLMStatusCode.LLM_SUCCESS
    assert target.numpy(0)[[9, 4]].ravel().tolist() == list(range(16))
    with pytest.raises(TypeError):
        one.cache_manager.transfer_cache_async(source, Layers(), [config(target, range(1), range(1))])


def test_nothing_of_an_engine_is_left(engines):
    for _ in range(20):
        with ld.LLMDataDist(ld.LLMRole.DECODER, 1) as datadist:
            datadist.init({"ge.exec.deviceId": "0"})
    gc.collect()
    wait_for(lambda: threading.active_count() == 1)

"""Keys: caches that peers find by name, between processes."""

import numpy as np
import pytest

import llm_datadist as ld
from conftest import Peer, V2_OPTIONS, cluster_info, wait_for
from llm_datadist import LLMStatusCode
from options_test import U64, refused
from transfer_test import TRANSPORTS, own_cache, v1_decoder, v1_prompt

SHAPE = [4, 64]
GONE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


def slot(request, model=0):
    return ld.CacheKey(1, request, model)


@pytest.fixture(scope="module", params=TRANSPORTS)
def prompt_process(request):
    prompt = v1_prompt(Peer, request.param)
    yield prompt, request.param
    prompt.close()


@pytest.fixture
def prompt_and_decoder(prompt_process, engines):
    prompt, transport = prompt_process
    decoder, cluster = v1_decoder(engines, prompt, transport)
    manager = decoder.kv_cache_manager
    cache = manager.allocate_cache(ld.CacheDesc(4, SHAPE, ld.DataType.DT_FLOAT))
    for t in range(4):
        cache.numpy(t)[:] = -1
    yield prompt, manager, cache
    decoder.unlink_clusters([cluster])
    prompt.ask(what="reset")


def test_a_request_key_is_taken_by_one_pull(prompt_and_decoder, peers):
    prompt, manager, cache = prompt_and_decoder
    prompt.ask(what="allocate", shape=SHAPE, keys=[[11], [U64], [12, 3], [13]])
    manager.pull_cache(slot(11), cache, 2)
    assert (cache.numpy(3)[2] == 300).all() and (cache.numpy(3)[1] == -1).all()
    refused(lambda: manager.pull_cache(slot(11), cache), GONE)
    refused(lambda: manager.pull_cache(slot(12), cache), GONE)  # of another model
    manager.pull_cache(slot(12, 3), cache, 1)
    assert (cache.numpy(1)[1] == 102).all()
    # A third process takes the last one.
    other = peers(role="DECODER", cluster_id=3, shape=SHAPE, options={"ge.exec.deviceId": "0"})
    assert other.ask(what="link_to", cluster=1, port=prompt.info["port"]) == 0
    assert other.ask(what="pull", cluster=1, key=[13]) == "LLM_SUCCESS"
    assert other.ask(what="read", tensor=2, block=0) == [203.0] * 64
    refused(lambda: manager.pull_cache(slot(13), cache), GONE)
    assert other.ask(what="pull", cluster=1, key=[11]) == GONE.name


def test_keys_keep_the_memory_of_a_deallocated_cache(peers, engines):
    # The pool has room for one cache of four tensors of 1 MiB.
    prompt = v1_prompt(peers, "shm", **{"ge.flowGraphMemMaxSize": str(6 * 2**20)})
    decoder, _ = v1_decoder(engines, prompt, "shm")
    manager, shape = decoder.kv_cache_manager, [4, 65536]
    cache = manager.allocate_cache(ld.CacheDesc(4, shape, ld.DataType.DT_FLOAT))
    cache_id = prompt.ask(what="allocate", shape=shape, keys=[[1], [2], [3], [4]])
    prompt.ask(what="deallocate", cache_id=cache_id)
    full = LLMStatusCode.LLM_DEVICE_OUT_OF_MEMORY.name
    refused(lambda: manager.pull_cache(ld.CacheKeyByIdAndIndex(1, cache_id), cache), GONE)
    for request in (2, 1, 3):
        manager.pull_cache(slot(request), cache)
        assert (cache.numpy(2)[0] == 200 + request - 1).all()
        assert prompt.ask(what="allocate", shape=shape) == full
    prompt.ask(what="remove_key", key=[4])
    refused(lambda: manager.pull_cache(slot(4), cache), GONE)
    wait_for(lambda: prompt.ask(what="allocate", shape=shape) != full)


def test_an_offset_leaves_the_key(prompt_and_decoder):
    prompt, manager, cache = prompt_and_decoder
    prompt.ask(what="allocate", shape=SHAPE, keys=[[1], [2]])
    manager.pull_cache(slot(2), cache, src_cache_offset=0)
    manager.pull_cache(slot(2), cache, 3, 64, src_cache_offset=128, dst_cache_offset=32)
    assert (cache.numpy(0)[0] == 1).all()
    assert cache.numpy(0)[3].tolist() == [-1.0] * 8 + [1.0] * 16 + [-1.0] * 40
    manager.pull_cache(slot(2), cache, dst_cache_offset=128)  # what is left of the slot here
    for keywords in ({"src_cache_offset": 256}, {"dst_cache_offset": 256},
                     {"src_cache_offset": 255, "size": 2}):
        refused(lambda keywords=keywords: manager.pull_cache(slot(2), cache, **keywords))
    manager.pull_cache(slot(2), cache)
    refused(lambda: manager.pull_cache(slot(2), cache, src_cache_offset=0), GONE)
    with pytest.raises(ValueError):
        manager.pull_cache(slot(1), cache, src_cache_offset=-1)
    with pytest.raises(TypeError):
        manager.pull_cache(slot(1), cache, dst_cache_offset="0")


def test_the_last_layer_takes_the_key(prompt_and_decoder):
    prompt, manager, cache = prompt_and_decoder
    prompt.ask(what="allocate", shape=SHAPE, keys=[[1]])
    for layer in (1, 1, 0):
        manager.pull_cache(slot(1), cache, src_layer_range=range(layer, layer + 1),
                           dst_layer_range=range(layer, layer + 1))
    assert (cache.numpy(0)[0] == 0).all() and (cache.numpy(3)[0] == 300).all()
    refused(lambda: manager.pull_cache(slot(1), cache), GONE)


def test_a_pull_by_id_takes_the_slots_key(prompt_and_decoder):
    prompt, manager, cache = prompt_and_decoder
    cache_id = prompt.ask(what="allocate", shape=SHAPE, keys=[[1], [2]])
    manager.pull_cache(ld.CacheKeyByIdAndIndex(1, cache_id, 1), cache)
    refused(lambda: manager.pull_cache(slot(2), cache), GONE)
    manager.pull_cache(slot(1), cache)
    manager.pull_cache(ld.CacheKeyByIdAndIndex(1, cache_id, 1), cache)  # the cache is still there


def test_a_prefix_is_pulled_again_and_again(prompt_and_decoder, peers):
    prompt, manager, cache = prompt_and_decoder
    prefix = [U64, 0, 7]
    cache_id = prompt.ask(what="allocate", shape=SHAPE, keys=[[U64], prefix])
    prompt.ask(what="deallocate", cache_id=cache_id)
    other = peers(role="DECODER", cluster_id=3, shape=SHAPE, options={"ge.exec.deviceId": "0"})
    assert other.ask(what="link_to", cluster=1, port=prompt.info["port"]) == 0
    for _ in range(2):
        manager.pull_cache(ld.CacheKey(1, *prefix), cache)
        assert other.ask(what="pull", cluster=1, key=prefix) == "LLM_SUCCESS"
    assert (cache.numpy(1)[0] == 101).all()
    prompt.ask(what="remove_key", key=prefix)
    assert other.ask(what="pull", cluster=1, key=prefix) == GONE.name
    refused(lambda: manager.pull_cache(ld.CacheKey(1, *prefix), cache), GONE)


def test_a_blocks_key_stays_until_the_cache_goes(prompt_and_decoder):
    prompt, manager, cache = prompt_and_decoder
    cache_id = prompt.ask(what="allocate", shape=SHAPE, blocks_model=5)
    for _ in range(2):
        manager.pull_blocks(ld.BlocksCacheKey(1, 5), cache, [3, 1], [0, 2])
    assert (cache.numpy(2)[0] == 203).all() and (cache.numpy(2)[2] == 201).all()
    refused(lambda: manager.pull_blocks(ld.BlocksCacheKey(1), cache, [3], [0]), GONE)
    taken = LLMStatusCode.LLM_CACHE_KEY_EXIST.name
    assert prompt.ask(what="allocate", shape=SHAPE, blocks_model=5) == taken
    prompt.ask(what="deallocate", cache_id=cache_id)
    refused(lambda: manager.pull_blocks(ld.BlocksCacheKey(1, 5), cache, [3], [0]), GONE)
    assert isinstance(prompt.ask(what="allocate", shape=SHAPE, blocks_model=5), int)


def test_the_last_of_equal_keys_counts(prompt_and_decoder):
    prompt, manager, cache = prompt_and_decoder
    prompt.ask(what="allocate", shape=SHAPE, keys=[[1], [1], [1]])
    manager.pull_cache(slot(1), cache)
    assert (cache.numpy(0)[0] == 2).all()
    refused(lambda: manager.pull_cache(slot(1), cache), GONE)


def test_a_name_that_is_taken_binds_and_allocates_nothing(prompt_and_decoder):
    prompt, manager, cache = prompt_and_decoder
    first = prompt.ask(what="allocate", shape=SHAPE, keys=[[1]])
    taken = LLMStatusCode.LLM_CACHE_KEY_EXIST.name
    assert prompt.ask(what="allocate", shape=SHAPE, keys=[[2], [1]]) == taken
    refused(lambda: manager.pull_cache(slot(2), cache), GONE)
    refused(lambda: manager.pull_cache(ld.CacheKeyByIdAndIndex(1, first + 1), cache), GONE)
    manager.pull_cache(slot(1), cache)


def test_a_name_that_is_taken_is_named_with_the_call(engines):
    v1 = engines(ld.LLMRole.PROMPT, 1, {"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0"})
    v2 = engines(ld.LLMRole.PROMPT, 2, V2_OPTIONS)
    key, blocks = ld.CacheKey(1, 77, 3), ld.BlocksCacheKey(1, 5)
    desc = ld.CacheDesc(1, [4, 8], ld.DataType.DT_FLOAT)
    memory = np.zeros((4, 8), np.float32)
    kept = []
    for call, args in ((v1.kv_cache_manager.allocate_cache, (desc, [ld.CacheKey(1, U64), key])),
                       (v1.kv_cache_manager.allocate_blocks_cache, (desc, blocks)),
                       (v2.cache_manager.allocate_cache, (desc, [key])),
                       (v2.cache_manager.allocate_blocks_cache, (desc, blocks)),
                       (v2.cache_manager.register_cache, (desc, [memory.ctypes.data], [key])),
                       (v2.cache_manager.register_blocks_cache, (desc, [memory.ctypes.data], blocks))):
        for _ in range(1 if "register" in call.__name__ else 2):
            try:
                kept.append(call(*args))
            except ld.LLMException as error:
                assert error.status_code == LLMStatusCode.LLM_CACHE_KEY_EXIST
                assert str(error).startswith(f"{call.__name__} failed")
                assert repr(blocks if "blocks" in call.__name__ else key) in str(error)
                break
        else:
            pytest.fail(call.__name__)


@pytest.mark.parametrize("dimension", [-1, 1])
def test_the_requested_length_arrives(prompt_and_decoder, dimension):
    prompt, manager, cache = prompt_and_decoder
    prompt.ask(what="allocate", shape=SHAPE, keys=[[1], [2]], seq_len_dim_index=dimension)
    manager.pull_cache(slot(2), cache, 1, 100)
    assert cache.numpy(3)[1].tolist() == [301.0] * 25 + [-1.0] * 39


@pytest.fixture(params=TRANSPORTS)
def v2_pair(request, peers, engines):
    """Caches that are named by keys: not remote-accessible."""
    options = dict(V2_OPTIONS, **{"llm.EnableRemoteCacheAccessible": "0",
                                  "llm.Transports": request.param})
    peer = peers(role="PROMPT", cluster_id=1, shape=SHAPE, v2=True,
                 options=dict(options, **{"llm.listenIpInfo": "127.0.0.1:0"}))
    mine = engines(ld.LLMRole.DECODER, 2, options)
    assert mine.link_clusters([cluster_info(1, peer.info["port"])])[0] == 0
    return peer, mine


def test_v2_pulls_by_key(v2_pair):
    peer, mine = v2_pair
    manager = mine.cache_manager
    peer.ask(what="allocate", shape=SHAPE, keys=[[1], [2], [3]])
    memory = [np.full(SHAPE, -1, np.float32) for _ in range(4)]
    cache = manager.register_cache(ld.CacheDesc(4, SHAPE, ld.DataType.DT_FLOAT),
                                   [m.ctypes.data for m in memory])
    manager.pull_cache(slot(2), cache, 3)
    assert (memory[1][3] == 101).all()
    refused(lambda: manager.pull_cache(slot(2), cache), GONE)
    # A slot into blocks of half its size, and one that is shorter than the blocks.
    small = own_cache(manager, 4, [8, 32])
    manager.pull_blocks(slot(3), small, (), [6, 1], src_layer_range=range(0, 1),
                        dst_layer_range=range(1, 2))
    assert (small.numpy(2)[6] == 2).all() and (small.numpy(3)[1] == 102).all()
    assert (small.numpy(0) == -1).all() and (small.numpy(2)[0] == -1).all()
    manager.pull_blocks(slot(3), small, (), range(4), src_layer_range=range(1, 2),
                        dst_layer_range=range(0, 1))
    assert (small.numpy(0)[:2] == 202).all() and (small.numpy(0)[2:4] == -1).all()
    refused(lambda: manager.pull_blocks(slot(3), small, (), [0]), GONE)
    refused(lambda: manager.pull_blocks(slot(1), small, (), []))
    refused(lambda: manager.pull_blocks(slot(1), small, [1], [1]))
    peer.ask(what="allocate", shape=SHAPE, blocks_model=2)
    blocks = own_cache(manager, 4, SHAPE)
    manager.pull_blocks(ld.BlocksCacheKey(1, 2), blocks, [3], [0])
    assert (blocks.numpy(3)[0] == 303).all()


def test_unregistering_ends_the_keys(pair_v2):
    one, two = pair_v2
    memory = np.full((2, 8), 5, np.float32)
    desc = ld.CacheDesc(1, [2, 8], ld.DataType.DT_FLOAT)
    cache = one.cache_manager.register_blocks_cache(desc, [memory.ctypes.data],
                                                    ld.BlocksCacheKey(1, 9))
    target = two.cache_manager.allocate_blocks_cache(desc)
    two.cache_manager.pull_blocks(ld.BlocksCacheKey(1, 9), target, [0], [1])
    assert (target.numpy(0)[1] == 5).all()
    refused(lambda: one.cache_manager.register_blocks_cache(desc, [memory.ctypes.data],
                                                            ld.BlocksCacheKey(1, 9)),
            LLMStatusCode.LLM_CACHE_KEY_EXIST)
    one.cache_manager.unregister_cache(cache.cache_id)
    refused(lambda: two.cache_manager.pull_blocks(ld.BlocksCacheKey(1, 9), target, [0], [1]), GONE)


def test_pushes_find_blocks_by_key(pair_v2):
    one, two = pair_v2
    desc = ld.CacheDesc(2, [4, 8], ld.DataType.DT_FLOAT)
    target = two.cache_manager.allocate_blocks_cache(desc, ld.BlocksCacheKey(2, 1))
    target.numpy(0)[:] = 0
    source = one.cache_manager.allocate_blocks_cache(desc)
    source.numpy(0)[2] = 8
    one.cache_manager.push_blocks(ld.BlocksCacheKey(2, 1), source, [2], [3])
    assert (target.numpy(0)[3] == 8).all() and (target.numpy(0)[2] == 0).all()

    class Now(ld.LayerSynchronizer):
        def synchronize_layer(self, layer_index, timeout_in_millis):
            return True

    config = ld.TransferWithCacheKeyConfig(ld.BlocksCacheKey(2, 1), range(1), range(1))
    task = one.cache_manager.transfer_cache_async(source, Now(), [config], [2], [1])
    assert task.synchronize() == LLMStatusCode.LLM_SUCCESS and (target.numpy(0)[1] == 8).all()

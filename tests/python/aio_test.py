"""Transfers and leases to await."""

import asyncio
import time

import numpy as np
import pytest

import llm_datadist as ld
from conftest import V2_OPTIONS, cluster_info
from llm_datadist import LLMStatusCode, aio
from transfer_test import PATIENT, TRANSPORTS, interrupt, own_cache, v1_decoder, v1_prompt

DESC = ld.CacheDesc(4, [8, 16], ld.DataType.DT_FLOAT)


def test_transfers(engines):
    prompt = engines(ld.LLMRole.PROMPT, 1, {"ge.exec.deviceId": "0",
                                            "llm.listenIpInfo": "127.0.0.1:0"})
    decoder = engines(ld.LLMRole.DECODER, 2)
    source = prompt.kv_cache_manager.allocate_cache(DESC)
    target = decoder.kv_cache_manager.allocate_cache(DESC)
    for t in range(4):
        source.numpy(t)[:] = np.arange(8).reshape(8, 1)
        target.numpy(t)[:] = -1

    async def main():
        link = await aio.link(decoder, 1, ("127.0.0.1", prompt.listen_port()))
        await asyncio.gather(*(link.pull(source.cache_id, target, src_blocks=[i], dst_blocks=[7 - i])
                               for i in range(8)))
        assert target.numpy(3)[:, 0].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
        await link.pull(source.cache_id, target, src_slot=2, dst_slot=0, notification=b"done")
        assert (target.numpy(0)[0] == 2).all()
        async for cluster_id, text in aio.notifications(prompt):
            assert (cluster_id, text) == (2, b"done")
            break
        with pytest.raises(ld.LLMException) as raised:
            await link.pull(99, target)
        assert raised.value.status_code == LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
        await aio.Link(prompt, 2).push(target.cache_id, source, src_slot=5, dst_slot=6,
                                       src_layers=range(0, 1), dst_layers=range(1, 2))
        assert (target.numpy(2)[6] == 5).all()
        await link.close()

    asyncio.run(main())
    assert decoder.links() == []


def test_a_cancelled_await_cancels(engines, peers):
    patient = {"llm.LivenessTime": "60000", "llm.SyncKvCacheWaitTime": "30000",
               "llm.Transports": "tcp"}
    peer = peers(role="PROMPT", cluster_id=1, shape=[8, 16], options=dict(
        patient, **{"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0"}))
    decoder = engines(ld.LLMRole.DECODER, 2, None, **patient)
    cache = decoder.kv_cache_manager.allocate_cache(DESC)

    async def main():
        link = await aio.link(decoder, 1, ("127.0.0.1", peer.info["port"]))
        peer.stop()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(link.pull(peer.info["cache_id"], cache), 0.1)

    before = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - before < 5


async def refused(awaitable, code):
    with pytest.raises(ld.LLMException) as raised:
        await awaitable
    assert raised.value.status_code == code


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_caches_by_name(peers, engines, transport):
    peer = v1_prompt(peers, transport)
    decoder, _ = v1_decoder(engines, peer, transport)
    cache_id = peer.ask(what="allocate", shape=[4, 64], keys=[[1], [2]])
    blocks_id = peer.ask(what="allocate", shape=[4, 64], blocks_model=3)
    cache = own_cache(decoder.kv_cache_manager, 4, [8, 32])

    async def main():
        link = aio.Link(decoder, 1)
        info = await link.query(ld.CacheKey(1, 2))
        assert info[:6] == (cache_id, 1, 4, 4, 256, 1024) and info.generation > 0
        assert info[7:] == (ld.DataType.DT_FLOAT, (4, 64))
        assert (await link.query(ld.BlocksCacheKey(1, 3))).cache_id == blocks_id
        await refused(link.query(99), LLMStatusCode.LLM_KV_CACHE_NOT_EXIST)
        # A slot into blocks; the key stays if one wants.
        await link.pull(ld.CacheKey(1, 2), cache, dst_blocks=[7, 0], keep_key=True,
                        generation=info.generation)
        assert (cache.numpy(3)[[0, 7]] == 301).all()
        await link.pull(ld.CacheKey(1, 2), cache, dst_slot=1, size=64, src_offset=64)
        assert (cache.numpy(0)[1, :16] == 1).all() and (cache.numpy(0)[1, 16:] == -1).all()
        # An offset alone doesn't keep it here.
        await refused(link.pull(ld.CacheKey(1, 2), cache, size=64),
                      LLMStatusCode.LLM_KV_CACHE_NOT_EXIST)
        await refused(link.pull(blocks_id, cache, generation=info.generation, size=64),
                      LLMStatusCode.LLM_CACHE_STALE)

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_leases(engines, transport):
    options = dict(V2_OPTIONS, **{"llm.Transports": transport})
    owner = engines(ld.LLMRole.PROMPT, 1, options, **{"llm.listenIpInfo": "127.0.0.1:0"})
    puller = engines(ld.LLMRole.DECODER, 2, options)
    assert puller.link_clusters([cluster_info(1, owner.listen_port())])[0] == 0
    cache = owner.cache_manager.allocate_blocks_cache(DESC)
    target = puller.cache_manager.allocate_blocks_cache(DESC)

    async def main():
        link = aio.Link(puller, 1)

        async def pull(block, lease, **more):
            await link.pull(cache.cache_id, target, src_blocks=[block], dst_blocks=[0],
                            generation=lease.generation, **more)

        async with aio.Lease(owner, cache, 60000, first_block=2, num_blocks=2, releases=2) as lease:
            waiting = asyncio.create_task(lease.wait())
            await pull(2, lease)
            await refused(pull(4, lease), LLMStatusCode.LLM_CACHE_STALE)
            await pull(2, lease, release_lease=True)
            lease.renew(30000)
            assert not waiting.done()
            await pull(3, lease, release_lease=True)
            assert await asyncio.wait_for(waiting, 10)
            await refused(pull(3, lease), LLMStatusCode.LLM_CACHE_STALE)
            with pytest.raises(ld.LLMException):
                lease.renew(1000)
        short = aio.Lease(owner, cache, 1)
        assert not await asyncio.wait_for(short.wait(), 10)
        await short.close()
        await short.close()
        freed = aio.Lease(owner, cache, 60000)
        owner.cache_manager.deallocate_blocks_cache(cache)
        await refused(asyncio.wait_for(freed.wait(), 10), LLMStatusCode.LLM_KV_CACHE_NOT_EXIST)
        with pytest.raises(ld.LLMException):
            aio.Lease(owner, cache, 1000)

    asyncio.run(main())


def test_a_transfer_goes_on_where_it_has_stopped(peers, engines):
    peer = v1_prompt(peers, "tcp", **PATIENT)
    decoder, _ = v1_decoder(engines, peer, "tcp", **PATIENT)
    cache = own_cache(decoder.kv_cache_manager)
    progress = aio.Progress()
    assert (progress.bytes_arrived, progress.total_bytes) == (0, 0)

    async def pull(**more):
        await aio.Link(decoder, 1).pull(peer.info["cache_id"], cache, src_blocks=range(16),
                                        dst_blocks=range(16), progress=progress, **more)

    peer.stop()
    asyncio.run(refused(pull(timeout_ms=50), LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT))
    arrived, total = progress.bytes_arrived, 4 * 16 * 64 * 4
    assert arrived < total
    peer.go()
    asyncio.run(pull())
    assert (progress.bytes_arrived, progress.total_bytes) == (total, total)
    assert progress.bytes_moved == total - arrived
    assert (cache.numpy(3)[:, 0] == 300 + np.arange(16)).all()
    asyncio.run(pull())
    assert progress.bytes_moved == 0


def test_keyboard_interrupt_ends_waiting_for_a_lease(engines):
    owner = engines(ld.LLMRole.PROMPT, 1, V2_OPTIONS, **{"llm.listenIpInfo": "127.0.0.1:0"})
    lease = aio.Lease(owner, owner.cache_manager.allocate_cache(DESC), 600000)
    assert interrupt(lambda: asyncio.run(lease.wait())) < 0.1
    asyncio.run(lease.close())

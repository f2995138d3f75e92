#!/usr/bin/env python3
"""Pulls awaited side by side, with llm_datadist.aio; leases tell the prompt when they are over.

    awaiting.py
"""

import asyncio

from llm_datadist import CacheDesc, DataType, LLMDataDist, LLMRole, aio

DESC = CacheDesc(2, [8, 4096], DataType.DT_FLOAT16)


async def decode(decoder, port, offers):
    target = decoder.kv_cache_manager.allocate_blocks_cache(DESC)
    async with await aio.link(decoder, 1, ("127.0.0.1", port)) as link:
        await asyncio.gather(*(link.pull(cache_id, target, src_blocks=[0], dst_blocks=[i],
                                         generation=generation, release_lease=True)
                               for i, (cache_id, generation) in enumerate(offers)))
    assert target.numpy(0)[:3, 0].tolist() == [0, 1, 2]


async def main():
    with LLMDataDist(LLMRole.PROMPT, 1) as prompt, LLMDataDist(LLMRole.DECODER, 2) as decoder:
        prompt.init({"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0"})
        decoder.init({"ge.exec.deviceId": "0"})
        caches = [prompt.kv_cache_manager.allocate_blocks_cache(DESC) for _ in range(3)]
        for i, cache in enumerate(caches):
            cache.numpy(0)[:] = i
        # For five seconds at most block 0 of each belongs to whoever pulls it.
        leases = [aio.Lease(prompt, cache, 5000, num_blocks=1) for cache in caches]
        offers = [(cache.cache_id, lease.generation) for cache, lease in zip(caches, leases)]
        pulling = asyncio.create_task(decode(decoder, prompt.listen_port(), offers))
        released = await asyncio.gather(*(lease.wait() for lease in leases))
        await pulling
        for lease in leases:
            await lease.close()
        print(f"{sum(released)} of {len(leases)} leases were released: these blocks are free again")


if __name__ == "__main__":
    asyncio.run(main())

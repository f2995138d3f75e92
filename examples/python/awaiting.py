#!/usr/bin/env python3
"""Pulls awaited side by side, with llm_datadist.aio.

    awaiting.py
"""

import asyncio

from llm_datadist import CacheDesc, DataType, LLMDataDist, LLMRole, aio

DESC = CacheDesc(2, [8, 4096], DataType.DT_FLOAT16)


async def main():
    with LLMDataDist(LLMRole.PROMPT, 1) as prompt, LLMDataDist(LLMRole.DECODER, 2) as decoder:
        prompt.init({"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0"})
        decoder.init({"ge.exec.deviceId": "0"})
        sources = [prompt.kv_cache_manager.allocate_blocks_cache(DESC) for _ in range(3)]
        for i, source in enumerate(sources):
            source.numpy(0)[:] = i
        target = decoder.kv_cache_manager.allocate_blocks_cache(DESC)
        async with await aio.link(decoder, 1, ("127.0.0.1", prompt.listen_port())) as link:
            await asyncio.gather(*(link.pull(source.cache_id, target, src_blocks=[0],
                                             dst_blocks=[i], notification=b"%d" % i)
                                   for i, source in enumerate(sources)))
            assert target.numpy(0)[:3, 0].tolist() == [0, 1, 2]
            told = set()
            async for _, text in aio.notifications(prompt):
                told.add(text)
                if len(told) == len(sources):
                    break
            print(f"{len(told)} pulls have ended, and the prompt was told")


if __name__ == "__main__":
    asyncio.run(main())

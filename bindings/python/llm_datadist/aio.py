"""Transfers to await, over the C library's started transfers: no thread, no polling.

    link = await aio.link(decoder, 1, ("127.0.0.1", 26000))
    await asyncio.gather(link.pull(7, cache, src_blocks=[0, 1], dst_blocks=[5, 3]),
                         link.pull(8, other))

A cancelled await cancels its transfer; no byte of it lands afterwards.  An engine's transfers are awaited
in one event loop at a time.
"""

import asyncio
import os
import typing
import weakref

from . import _core
from ._caches import _AnyCache
from ._datadist import LLMDataDist
from ._status import LLMStatusCode, handle_llm_status, last_error, raise_if_false

Blocks = _core.Blocks
Layers = typing.Optional[range]


class _Waiter:
    """The transfers of one engine that one event loop waits for."""

    def __init__(self, engine: _core.Engine) -> None:
        self.engine = engine
        self.loop: typing.Optional[asyncio.AbstractEventLoop] = None
        self.fd = -1
        self.pending: typing.Dict[int, asyncio.Future] = {}

    async def wait(self, transfer_id: int, func: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self.loop is not loop:
                if self.pending:
                    raise RuntimeError("transfers of this engine are awaited in another event loop")
                self.loop = loop
            future = loop.create_future()
            if not self.pending:
                self.fd = self.engine.native.transfer_fd()
                loop.add_reader(self.fd, self._wake)
            self.pending[transfer_id] = future
            try:
                self._look()  # it may have ended before anybody watched
                status, error = await future
            finally:
                del self.pending[transfer_id]
                if not self.pending:
                    loop.remove_reader(self.fd)
        finally:
            self.engine.native.release(transfer_id)
        handle_llm_status(status, func, error)

    def _wake(self) -> None:
        try:
            os.read(self.fd, 8)
        except OSError:
            pass
        self._look()

    def _look(self) -> None:
        for transfer_id, future in self.pending.items():
            if future.done():
                continue
            status = self.engine.native.poll(transfer_id)
            if status != LLMStatusCode.LLM_TRANSFER_PENDING:
                future.set_result((status, last_error() if status != 0 else ""))


_waiters: "weakref.WeakKeyDictionary[_core.Engine, _Waiter]" = weakref.WeakKeyDictionary()


class Link:
    """A link to a cluster, whose caches are named by their ids there."""

    def __init__(self, datadist: LLMDataDist, cluster_id: int,
                 address: typing.Optional[typing.Tuple[str, int]] = None) -> None:
        """For a link that exists; `address` is needed to close it."""
        self._engine = datadist._ready()
        self.cluster_id = cluster_id
        self._peer = _peer(cluster_id, address) if address is not None else None

    async def pull(self, cache_id: int, into: _AnyCache, *, src_blocks: Blocks = (),
                   dst_blocks: Blocks = (), src_slot: int = 0, dst_slot: int = 0, size: int = -1,
                   src_layers: Layers = None, dst_layers: Layers = None,
                   tensor_num_per_layer: int = 2, timeout_ms: int = 0,
                   notification: typing.Optional[bytes] = None) -> None:
        """Copies blocks, or without blocks a batch slot, of the peer's cache `cache_id`.

        timeout_ms: 0 for the engine's.  notification: bytes that the peer gets once all has arrived.
        """
        await self._transfer("pull", cache_id, into, src_blocks, dst_blocks, src_slot, dst_slot, size,
                             _core.transfer_param(src_layers, dst_layers, tensor_num_per_layer,
                                                  timeout_ms, notification))

    async def push(self, cache_id: int, source: _AnyCache, *, src_blocks: Blocks = (),
                   dst_blocks: Blocks = (), src_slot: int = 0, dst_slot: int = 0,
                   src_layers: Layers = None, dst_layers: Layers = None,
                   tensor_num_per_layer: int = 2, timeout_ms: int = 0,
                   notification: typing.Optional[bytes] = None) -> None:
        """Copies blocks, or without blocks a batch slot, to the peer's cache `cache_id`."""
        await self._transfer("push", cache_id, source, src_blocks, dst_blocks, src_slot, dst_slot, -1,
                             _core.transfer_param(src_layers, dst_layers, tensor_num_per_layer,
                                                  timeout_ms, notification))

    async def _transfer(self, way: str, cache_id: int, cache: _AnyCache, src_blocks: Blocks,
                        dst_blocks: Blocks, src_slot: int, dst_slot: int, size: int,
                        param: typing.Any) -> None:
        pulls, by_blocks = way == "pull", len(src_blocks) > 0 or len(dst_blocks) > 0
        slot = 0 if by_blocks else src_slot if pulls else dst_slot
        index = _core.NativeIndex(self.cluster_id, cache_id, slot)
        rest: typing.Tuple[typing.Any, typing.Any]
        if by_blocks:
            kind = _core.PULL_BLOCKS if pulls else _core.PUSH_BLOCKS
            rest = (_core.block_list("src_blocks", src_blocks),
                    _core.block_list("dst_blocks", dst_blocks))
        else:
            kind = _core.PULL_CACHE if pulls else _core.PUSH_CACHE
            rest = (dst_slot if pulls else src_slot, size)
        waiter = _waiters.get(self._engine)
        if waiter is None:
            waiter = _waiters[self._engine] = _Waiter(self._engine)
        await waiter.wait(self._engine.start(way, kind, cache._struct(), index, param, *rest), way)

    async def close(self, timeout_ms: int = 3000) -> None:
        """Ends the link, on both sides if the peer is still there."""
        raise_if_false(self._peer is not None, "the side that has linked closes the link")
        assert self._peer is not None
        native = self._peer.native()
        overall, codes, error = _core.Engine.link_results([self._peer], *await _detached(
            self._engine, lambda: self._engine.native.unlink([native], timeout_ms, False)))
        handle_llm_status(int(codes[0] or overall), "close", error)

    async def __aenter__(self) -> "Link":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _peer(cluster_id: int, address: typing.Tuple[str, int]) -> _core.Peer:
    return _core.Peer(cluster_id, 0, [("0.0.0.0", 0)], [address])


async def _detached(engine: _core.Engine, call: typing.Callable[[], typing.Any],
                    undo: typing.Optional[typing.Callable[[typing.Any], None]] = None
                    ) -> typing.Tuple[typing.Any, str]:
    """Awaits a C call that can't be cancelled; if the await is, the call goes on and is undone."""
    loop = asyncio.get_running_loop()
    ended: "asyncio.Future[None]" = loop.create_future()

    def tell() -> None:
        try:
            loop.call_soon_threadsafe(lambda: ended.done() or ended.set_result(None))
        except RuntimeError:
            pass  # the loop was closed meanwhile

    detached = engine.detach(call, undo, tell)
    try:
        await ended
    except BaseException:
        detached.abandon()
        raise
    assert detached.result is not None
    return detached.result


async def link(datadist: LLMDataDist, cluster_id: int, address: typing.Tuple[str, int],
               timeout_ms: int = 3000) -> Link:
    """Links to the cluster that listens at `address`, ("ip", port)."""
    engine, peers = datadist._ready(), [_peer(cluster_id, address)]
    overall, _, error = _core.Engine.link_results(
        peers, *await _detached(engine, *engine.link_calls(peers, timeout_ms)))
    handle_llm_status(int(overall), "link", error)
    return Link(datadist, cluster_id, address)


async def notifications(datadist: LLMDataDist
                        ) -> typing.AsyncIterator[typing.Tuple[int, bytes]]:
    """Yields (cluster id, bytes) for each notification that a peer's transfer brings, without end."""
    engine, loop = datadist._ready(), asyncio.get_running_loop()
    fd, arrived = engine.native.notification_fd(), asyncio.Event()

    def wake() -> None:
        try:
            os.read(fd, 8)
        except OSError:
            pass
        arrived.set()

    loop.add_reader(fd, wake)
    try:
        while True:
            arrived.clear()
            one = engine.poll_notification()
            while one is not None:
                yield one
                one = engine.poll_notification()
            await arrived.wait()
    finally:
        loop.remove_reader(fd)


__all__ = ["Link", "link", "notifications"]

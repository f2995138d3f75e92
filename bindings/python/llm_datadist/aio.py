"""Transfers and leases to await, over the C library's started transfers: no thread, no polling.

    link = await aio.link(decoder, 1, ("127.0.0.1", 26000))
    await asyncio.gather(link.pull(7, cache, src_blocks=[0, 1], dst_blocks=[5, 3]),
                         link.pull(CacheKey(1, 42), other))

A cancelled await cancels its transfer; no byte of it lands afterwards.  An engine's transfers and leases
are awaited in one event loop at a time.
"""

import asyncio
import os
import typing
import weakref

from . import _core
from ._caches import _AnyCache
from ._check import check_int64
from ._datadist import LLMDataDist
from ._status import LLMStatusCode, handle_llm_status, last_error, raise_if_false
from ._types import BlocksCacheKey, CacheKey, DataType, native_key

Blocks = _core.Blocks
Layers = typing.Optional[range]
# A peer's cache: its id there, or a key, of which the cluster id doesn't matter.
Remote = typing.Union[int, CacheKey, BlocksCacheKey]


class _Waiter:
    """What one event loop waits for of one engine."""

    def __init__(self, engine: _core.Engine) -> None:
        self.engine = engine
        self.loop: typing.Optional[asyncio.AbstractEventLoop] = None
        self.fd = -1
        # Futures, with what asks for a status and the status that is no end.
        self.pending: typing.Dict[asyncio.Future, typing.Tuple[typing.Callable[[], int], int]] = {}

    async def wait(self, poll: typing.Callable[[], int], unended: int) -> typing.Tuple[int, str]:
        """What poll() says when it isn't `unended` any more, and the explanation."""
        loop = asyncio.get_running_loop()
        if self.loop is not loop:
            if self.pending:
                raise RuntimeError("transfers of this engine are awaited in another event loop")
            self.loop = loop
        future = loop.create_future()
        if not self.pending:
            self.fd = self.engine.native.transfer_fd()
            loop.add_reader(self.fd, self._wake)
        self.pending[future] = (poll, unended)
        try:
            self._look()  # it may have ended before anybody watched
            return await future
        finally:
            del self.pending[future]
            if not self.pending:
                loop.remove_reader(self.fd)

    def _wake(self) -> None:
        try:
            os.read(self.fd, 8)
        except OSError:
            pass
        self._look()

    def _look(self) -> None:
        for future, (poll, unended) in self.pending.items():
            if future.done():
                continue
            status = poll()
            if status != unended:
                future.set_result((status, last_error() if status != 0 else ""))


_waiters: "weakref.WeakKeyDictionary[_core.Engine, _Waiter]" = weakref.WeakKeyDictionary()


def _waiter(engine: _core.Engine) -> _Waiter:
    waiter = _waiters.get(engine)
    if waiter is None:
        waiter = _waiters[engine] = _Waiter(engine)
    return waiter


class Progress:
    """How far a transfer has come; `pull` and `push` take one.

    If the transfer fails, the same call with the same Progress goes on where it has stopped.
    """

    def __init__(self) -> None:
        self._native = _core.NativeProgress()
        self._running: typing.Optional[typing.Tuple[_core.Engine, int]] = None

    def _values(self) -> typing.Tuple[int, int, int]:
        if self._running is not None:
            engine, transfer_id = self._running
            engine.native.get_progress(transfer_id, self._native)
        return self._native.values()

    @property
    def bytes_arrived(self) -> int:
        """From the beginning, without a gap: tensor after tensor, each in the order of its blocks."""
        return self._values()[0]

    @property
    def total_bytes(self) -> int:
        """0 as long as it isn't known."""
        return self._values()[1]

    @property
    def bytes_moved(self) -> int:
        """By the last call alone."""
        return self._values()[2]


class CacheInfo(typing.NamedTuple):
    """What a peer says of a cache."""

    cache_id: int
    batch_index: int
    num_tensors: int
    num_slots: int
    stride: int
    tensor_bytes: int
    generation: int
    data_type: typing.Optional[DataType]  # None and (): a peer of another version doesn't say
    shape: typing.Tuple[int, ...]


class Link:
    """A link to a cluster.

    A `cache` of the peer's is named by its id there, or by a CacheKey or BlocksCacheKey.
    """

    def __init__(self, datadist: LLMDataDist, cluster_id: int,
                 address: typing.Optional[typing.Tuple[str, int]] = None) -> None:
        """For a link that exists; `address` is needed to close it."""
        self._engine = datadist._ready()
        self.cluster_id = cluster_id
        self._peer = _peer(cluster_id, address) if address is not None else None

    def _index(self, cache: Remote, slot: int = 0, generation: int = 0) -> _core.NativeIndex:
        if isinstance(cache, (CacheKey, BlocksCacheKey)):
            return _core.NativeIndex(self.cluster_id, 0, 0, generation, native_key(cache))
        check_int64("cache", cache)
        return _core.NativeIndex(self.cluster_id, cache, slot, generation)

    async def query(self, cache: Remote) -> CacheInfo:
        """Asks the peer what it has under an id or a key."""
        index = self._index(cache)
        (status, *values), error = await _detached(self._engine,
                                                   lambda: self._engine.native.query(index))
        handle_llm_status(status, "query", error)
        *numbers, data_type, shape = values
        return CacheInfo(*numbers, _data_type(data_type), shape)

    async def pull(self, cache: Remote, into: _AnyCache, *, src_blocks: Blocks = (),
                   dst_blocks: Blocks = (), src_slot: int = 0, dst_slot: int = 0, size: int = -1,
                   src_layers: Layers = None, dst_layers: Layers = None,
                   tensor_num_per_layer: int = 2, generation: int = 0,
                   progress: typing.Optional[Progress] = None, **more: typing.Any) -> None:
        """Copies from the peer's `cache`: blocks; or with dst_blocks alone a batch slot that is cut into
        them; or without blocks a batch slot into one of the same size.

        generation: of the cache (query) or of a lease; if it is over, LLM_CACHE_STALE.
        More keywords: timeout_ms, 0 for the engine's; notification, bytes that the peer gets once all has
        arrived; src_offset and dst_offset, bytes into the slots; keep_key=True, so that a CacheKey
        stays; release_lease=True, so that the lease counts one release; allow_other_type=True, so that
        the bytes are taken for another data type.
        """
        param = _param(src_layers, dst_layers, tensor_num_per_layer, progress, more)
        kind: int
        rest: typing.Tuple[typing.Any, typing.Any]
        if len(src_blocks) > 0:
            kind = _core.PULL_BLOCKS
            rest = (_core.block_list("src_blocks", src_blocks),
                    _core.block_list("dst_blocks", dst_blocks))
        elif len(dst_blocks) > 0:
            kind, rest = _core.PULL_TO_BLOCKS, (size, _core.block_list("dst_blocks", dst_blocks))
        else:
            kind, rest = _core.PULL_CACHE, (dst_slot, size)
        index = self._index(cache, 0 if kind == _core.PULL_BLOCKS else src_slot, generation)
        await self._run("pull", progress, kind, into._struct(self._engine), index, param, *rest)

    async def push(self, cache: Remote, source: _AnyCache, *, src_blocks: Blocks = (),
                   dst_blocks: Blocks = (), src_slot: int = 0, dst_slot: int = 0,
                   src_layers: Layers = None, dst_layers: Layers = None,
                   tensor_num_per_layer: int = 2, generation: int = 0,
                   progress: typing.Optional[Progress] = None, **more: typing.Any) -> None:
        """Copies blocks, or without blocks a batch slot, to the peer's `cache`.

        More keywords: timeout_ms, notification and allow_other_type, as of pull.
        """
        param = _param(src_layers, dst_layers, tensor_num_per_layer, progress, more)
        kind = _core.PUSH_CACHE
        rest: typing.Tuple[typing.Any, typing.Any] = (src_slot, -1)
        by_blocks = len(src_blocks) > 0 or len(dst_blocks) > 0
        if by_blocks:
            kind = _core.PUSH_BLOCKS
            rest = (_core.block_list("src_blocks", src_blocks),
                    _core.block_list("dst_blocks", dst_blocks))
        index = self._index(cache, 0 if by_blocks else dst_slot, generation)
        await self._run("push", progress, kind, source._struct(self._engine), index, param, *rest)

    async def _run(self, func: str, progress: typing.Optional[Progress], *arguments: typing.Any
                   ) -> None:
        engine = self._engine
        transfer_id = engine.start(func, *arguments)
        try:
            if progress is not None:
                progress._running = (engine, transfer_id)
            status, error = await _waiter(engine).wait(lambda: engine.native.poll(transfer_id),
                                                       LLMStatusCode.LLM_TRANSFER_PENDING)
        finally:
            if progress is not None:
                progress._values()
                progress._running = None
            engine.native.release(transfer_id)
        handle_llm_status(status, func, error)

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


def _param(src_layers: Layers, dst_layers: Layers, tensor_num_per_layer: int,
           progress: typing.Optional[Progress], more: typing.Dict[str, typing.Any]
           ) -> typing.Optional[_core.NativeParam]:
    if progress is not None:
        more["progress"] = progress._native
    return _core.transfer_param(src_layers, dst_layers, tensor_num_per_layer, **more)


def _data_type(value: int) -> typing.Optional[DataType]:
    try:
        return DataType(value)
    except ValueError:
        return None


def _peer(cluster_id: int, address: typing.Tuple[str, int]) -> _core.Peer:
    return _core.Peer(cluster_id, 0, [("0.0.0.0", 0)], [address])


async def _detached(engine: _core.Engine, call: typing.Callable[[], typing.Any],
                    undo: typing.Optional[typing.Callable[[typing.Any], None]] = None
                    ) -> typing.Tuple[typing.Any, str]:
    """Awaits a C call that can't be cancelled; if the await is, the call goes on and is undone."""
    loop = asyncio.get_running_loop()
    ended: "asyncio.Future[None]" = loop.create_future()

    def finish() -> None:
        if not ended.done():
            ended.set_result(None)

    def tell() -> None:
        try:
            loop.call_soon_threadsafe(finish)
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


class Lease:
    """Tells the owner of a cache when blocks may be used again.

        async with aio.Lease(prompt, cache, 5000, first_block=3, num_blocks=2) as lease:
            ...                      # tell a peer cache id and lease.generation; it pulls with both, and
            await lease.wait()       # with release_lease=True

    It lives for `duration_ms`, or until it was released `releases` times (0: pulls don't end it).  A pull that
    names its generation later gets LLM_CACHE_STALE.  num_blocks 0 means all from first_block on.
    """

    def __init__(self, datadist: LLMDataDist, cache: _AnyCache, duration_ms: int, *,
                 first_block: int = 0, num_blocks: int = 0, releases: int = 1) -> None:
        self._engine = datadist._ready()
        cache._struct(self._engine)
        status, self._generation = self._engine.native.lease_open(
            cache.cache_id, first_block, num_blocks, duration_ms, releases)
        if status != 0:
            handle_llm_status(status, "lease", last_error())
        self._closed = False

    @property
    def generation(self) -> int:
        """The lease's name, for the peers that pull under it."""
        return self._generation

    def renew(self, duration_ms: int) -> None:
        """Lets it end `duration_ms` from now; LLM_CACHE_STALE if it has ended."""
        status = self._engine.native.lease_renew(self._generation, duration_ms)
        if status != 0:
            handle_llm_status(status, "renew", last_error())

    async def wait(self) -> bool:
        """Waits until it has ended and nobody reads any more: True if it was released as often as
        wanted, False if its time was up."""
        native, generation = self._engine.native, self._generation
        status, error = await _waiter(self._engine).wait(lambda: native.lease_poll(generation),
                                                         LLMStatusCode.LLM_LEASE_ACTIVE)
        if status == LLMStatusCode.LLM_LEASE_EXPIRED:
            return False
        handle_llm_status(status, "lease", error)
        return True

    async def close(self) -> None:
        """Ends it, and returns when nobody reads under it any more."""
        if self._closed:
            return
        self._closed = True
        status, error = await _detached(
            self._engine, lambda: self._engine.native.lease_close(self._generation))
        handle_llm_status(status, "close", error)

    async def __aenter__(self) -> "Lease":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


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


__all__ = ["CacheInfo", "Lease", "Link", "Progress", "link", "notifications"]

"""One C instance, as thin as it can be: arguments in, LLMException out.

Every C call runs without the GIL.  Calls that may take long end soon after a signal whose Python handler
raises (Ctrl-C): transfers are cancelled; links are made in a thread that is left behind and clears up.
"""

import array
import os
import re
import threading
import typing
import weakref

import numpy as np

from . import _native
from ._native import Blocks as NativeBlocks
from ._native import Cache as NativeCache
from ._native import Index as NativeIndex
from ._native import Param as NativeParam
from ._native import Progress as NativeProgress
from ._status import LLMStatusCode, handle_llm_status, last_error, to_code

Blocks = typing.Union[typing.Sequence[int], range, "np.ndarray", "array.array"]

PULL_CACHE, PULL_BLOCKS, PULL_TO_BLOCKS = (_native.PULL_CACHE, _native.PULL_BLOCKS,
                                           _native.PULL_TO_BLOCKS)
PUSH_CACHE, PUSH_BLOCKS = _native.PUSH_CACHE, _native.PUSH_BLOCKS

# So long an interrupted push waits for its peer to confirm that no more bytes land.
_GIVE_UP_S = 0.03

_main_thread = threading.main_thread().ident
_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def block_list(name: str, blocks: Blocks) -> NativeBlocks:
    """Block indices as C has them.  Lists, tuples, ranges and arrays are read once, in C.

    TypeError for what isn't an index, ValueError for one out of range.
    """
    if type(blocks) is array.array:
        blocks = np.asarray(blocks)
    return NativeBlocks(name, blocks)


def transfer_param(src_layers: typing.Optional[range], dst_layers: typing.Optional[range],
                   tensor_num_per_layer: int = 2, **more: typing.Any
                   ) -> typing.Optional[NativeParam]:
    """What C calls the parameters, with `more` of Param's; None for all layers and nothing else."""
    if not src_layers and not dst_layers and tensor_num_per_layer == 2 and not more:
        return None
    return NativeParam(src_layers=(src_layers[0], src_layers[-1]) if src_layers else (-1, -1),
                       dst_layers=(dst_layers[0], dst_layers[-1]) if dst_layers else (-1, -1),
                       tensor_num_per_layer=tensor_num_per_layer, **more)


def _encode(options: typing.Dict[str, str]) -> typing.List[typing.Tuple[bytes, bytes]]:
    return [(key.encode(), value.encode()) for key, value in options.items()]


Address = typing.Tuple[str, int]


class Peer(typing.NamedTuple):
    """A cluster to link with or to part from."""

    cluster_id: int
    role: int
    local: typing.Sequence[Address]
    remote: typing.Sequence[Address]

    def native(self) -> typing.Tuple[typing.Any, ...]:
        return (self.cluster_id, self.role, [(ip.encode(), port) for ip, port in self.local],
                [(ip.encode(), port) for ip, port in self.remote])


LinkResult = typing.Tuple[LLMStatusCode, typing.List[LLMStatusCode], str]


class DetachedCall:
    """A C call that can't be cancelled, in a thread of its own.

    `result` is what it returned and its explanation.  Once abandon() was called, `undo` takes its effect
    back when it has ended.
    """

    def __init__(self, call: typing.Callable[[], typing.Any],
                 undo: typing.Optional[typing.Callable[[typing.Any], None]],
                 at_end: typing.Callable[[], None]) -> None:
        self._call, self._undo, self._at_end = call, undo, at_end
        self._lock = threading.Lock()
        self._abandoned = False
        self.result: typing.Optional[typing.Tuple[typing.Any, str]] = None
        self.thread = threading.Thread(target=self._run, name="llm-datadist-call", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        returned = self._call()
        error = last_error()
        with self._lock:
            self.result = (returned, error)
            undo = self._undo if self._abandoned else None
        if undo is not None:
            undo(returned)
        self._at_end()

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            undo = self._undo if self.result is not None else None
        if undo is not None and self.result is not None:
            undo(self.result[0])


class Engine:
    """One instance of the C library."""

    def __init__(self, cluster_id: int, role: int) -> None:
        self.cluster_id = cluster_id
        self.native = _native.Instance(cluster_id, role)
        self._left_behind: typing.List[threading.Thread] = []
        self._times_ready: typing.Dict[int, int] = {}
        self._lock = threading.Lock()  # of both
        _engines.add(self)

    @staticmethod
    def _must(status: int, func: str) -> None:
        if status != 0:
            handle_llm_status(status, func, last_error() or "no more is known")

    # ---- life cycle ----

    def initialize(self, options: typing.Dict[str, str]) -> None:
        self._must(self.native.initialize(_encode(options)), "initialize")

    def finalize(self) -> None:
        for thread in self._left_behind:
            thread.join()
        self._left_behind.clear()
        self.native.finalize()

    def set_role(self, role: int, options: typing.Dict[str, str]) -> None:
        self._must(self.native.set_role(role, _encode(options)), "switch_role")

    # ---- caches ----

    def allocate(self, num_tensors: int, shape: typing.Sequence[int], data_type: int, placement: int,
                 num_devices: int) -> NativeCache:
        cache = NativeCache(num_tensors, shape, data_type, placement, num_tensors * num_devices)
        self._must(self.native.allocate(cache), "allocate_cache")
        return cache

    def deallocate(self, cache_id: int) -> None:
        self._must(self.native.deallocate(cache_id), "deallocate_cache")

    def hold(self, cache_id: int) -> _native.Hold:
        """What keeps the memory of an allocated cache where it is, as long as it lives."""
        status, hold = self.native.hold(cache_id)
        self._must(status, "numpy")
        return hold

    def register(self, num_tensors: int, shape: typing.Sequence[int], data_type: int, placement: int,
                 addrs: typing.Sequence[int]) -> NativeCache:
        cache = NativeCache(num_tensors, shape, data_type, placement, addrs)
        self._must(self.native.register(cache), "register_cache")
        return cache

    def bind_keys(self, func: str, cache_id: int, keys: typing.List[typing.Tuple[int, int, int]],
                  name_of: typing.Callable[[int], str]) -> None:
        status = self.native.bind_keys(cache_id, keys)
        if status != 0:
            error = last_error()
            at = re.search(r"keys\[(\d+)\]", error)
            which = f"{name_of(int(at[1]))}: " if at else ""
            handle_llm_status(status, func, which + error)

    def remove_key(self, key: typing.Tuple[int, int, int]) -> None:
        self._must(self.native.remove_key(key), "remove_cache_key")

    def unregister(self, cache_id: int, memory: object = None) -> None:
        """`memory` is kept until it has ended, also when a signal's handler raises."""
        def call(_: object = memory) -> int:
            return self.native.unregister(cache_id)

        # Short unless a peer hangs in the middle of a pull.
        status, error = self._interruptible(call)
        if status != 0:
            handle_llm_status(status, "unregister_cache", error)

    # ---- links ----

    def link(self, peers: typing.Sequence[Peer], timeout_ms: int) -> LinkResult:
        """The overall result, one per peer, and the explanation of a failure."""
        call, undo = self.link_calls(peers, timeout_ms)
        return self.link_results(peers, *self._interruptible(call, undo))

    def link_calls(self, peers: typing.Sequence[Peer], timeout_ms: int
                   ) -> typing.Tuple[typing.Callable[[], typing.Any],
                                     typing.Callable[[typing.Any], None]]:
        """The C call, and what takes its effect back."""
        natives = [peer.native() for peer in peers]

        def undo(result: typing.Tuple[int, typing.List[int]]) -> None:
            made = [peer for peer, ret in zip(natives, result[1]) if ret == 0]
            if made:
                self.native.unlink(made, timeout_ms, False)

        return lambda: self.native.link(natives, timeout_ms), undo

    def unlink(self, peers: typing.Sequence[Peer], timeout_ms: int, force: bool) -> LinkResult:
        natives = [peer.native() for peer in peers]
        return self.link_results(peers, *self._interruptible(
            lambda: self.native.unlink(natives, timeout_ms, force)))

    @staticmethod
    def link_results(peers: typing.Sequence[Peer], result: typing.Tuple[int, typing.List[int]],
                     error: str) -> LinkResult:
        status, rets = result
        codes = [to_code(ret) for ret in rets]
        # The whole call failed: so did each of them.
        codes += [to_code(status)] * (len(peers) - len(codes))
        return to_code(status), codes, error

    def link_info(self, cluster_id: int) -> typing.Optional[typing.Dict[str, typing.Any]]:
        """None without a link; else its state ("ready", "suspect" or "broken"), transport and reason."""
        if cluster_id not in self.links():  # asking would log an error
            return None
        status, state, transport, reason = self.native.link_info(cluster_id)
        if status == LLMStatusCode.LLM_NOT_YET_LINK:
            return None
        self._must(status, "link_info")
        names = {_native.LINK_READY: "ready", _native.LINK_SUSPECT: "suspect"}
        return {"state": names.get(state, "broken"), "transport": transport,
                "reason": reason}

    def links(self) -> typing.List[int]:
        status, clusters = self.native.links()
        self._must(status, "links")
        return clusters

    def times_ready(self, cluster_id: int) -> int:
        """How often a link to this cluster was made, also if it has gone since."""
        with self._lock:
            while True:
                status, cluster, state = self.native.poll_link_event()
                if status == LLMStatusCode.LLM_NO_LINK_EVENT:
                    return self._times_ready.get(cluster_id, 0)
                self._must(status, "poll_link_event")
                if state == _native.LINK_READY:
                    self._times_ready[cluster] = self._times_ready.get(cluster, 0) + 1

    def check_link(self, cluster_id: int) -> None:
        self._must(self.native.check_link(cluster_id), "check_link_status")

    def listen_port(self, device_index: int = 0) -> int:
        status, port = self.native.listen_port(device_index)
        self._must(status, "listen_port")
        return port

    # ---- transfers ----

    def transfer(self, func: str, kind: int, *arguments: typing.Any) -> None:
        """Runs a transfer to its end.  In the main thread, where signals are handled, they end it."""
        give_up = self._give_up if threading.get_ident() == _main_thread else None
        status = self.native.transfer(kind, *arguments, give_up)  # type: ignore[call-arg]
        if status != 0:
            handle_llm_status(status, func, last_error())

    def _give_up(self, transfer_id: int) -> None:
        """Cancels a transfer, and doesn't wait long for a peer that hangs to confirm it."""
        self.detach(lambda: self.native.release(transfer_id), None, lambda: None
                    ).thread.join(_GIVE_UP_S)

    def start(self, func: str, kind: int, *arguments: typing.Any) -> int:
        """Starts a transfer and returns its id."""
        status, transfer_id = self.native.start(kind, *arguments)
        if status != 0:
            handle_llm_status(status, func, last_error())
        return transfer_id

    def poll_notification(self) -> typing.Optional[typing.Tuple[int, bytes]]:
        status, cluster_id, text = self.native.poll_notification()
        if status == LLMStatusCode.LLM_NO_NOTIFICATION:
            return None
        self._must(status, "poll_notification")
        return cluster_id, text

    # ---- local copies ----

    def copy_cache(self, src: NativeCache, dst: NativeCache, src_batch_index: int,
                   dst_batch_index: int, offset: int, size: int) -> None:
        self._must(self.native.copy_cache(src, dst, src_batch_index, dst_batch_index, offset, size),
                   "copy_cache")

    def copy_blocks(self, func: str, src: NativeCache, dst: NativeCache, src_blocks: Blocks,
                    dst_blocks: Blocks) -> None:
        self._must(self.native.copy_blocks(src, dst, block_list("src_blocks", src_blocks),
                                           block_list("dst_blocks", dst_blocks)), func)

    # ---- signals ----

    def detach(self, call: typing.Callable[[], typing.Any],
               undo: typing.Optional[typing.Callable[[typing.Any], None]],
               at_end: typing.Callable[[], None]) -> DetachedCall:
        """Runs `call` in a thread of its own, which finalize waits for."""
        detached = DetachedCall(call, undo, at_end)
        with self._lock:
            self._left_behind = [one for one in self._left_behind if one.is_alive()]
            self._left_behind.append(detached.thread)
        return detached

    def _interruptible(self, call: typing.Callable[[], typing.Any],
                       undo: typing.Optional[typing.Callable[[typing.Any], None]] = None
                       ) -> typing.Tuple[typing.Any, str]:
        """Runs a C call that can't be cancelled; returns what it returns, and its explanation.

        If a signal's handler raises meanwhile, it goes on by itself, and then `undo` takes its effect
        back.
        """
        if threading.get_ident() != _main_thread:
            return call(), last_error()
        ended = threading.Event()
        detached = self.detach(call, undo, ended.set)
        try:
            ended.wait()
        except BaseException:
            detached.abandon()
            raise
        detached.thread.join()
        assert detached.result is not None
        return detached.result


def _after_fork() -> None:
    global _main_thread
    _main_thread = threading.get_ident()
    for engine in list(_engines):
        engine.native.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Memory:
    """Memory of a cache, for numpy.  The array keeps it, and it keeps its owners."""

    def __init__(self, owner: object, address: int, shape: typing.Tuple[int, ...],
                 typestr: str) -> None:
        self._owner = owner
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": typestr,
                                    "version": 3}


def view(owner: object, address: int, shape: typing.Sequence[int], dtype: typing.Any) -> np.ndarray:
    """A writable array over memory at `address`, without a copy."""
    return np.asarray(_Memory(owner, address, tuple(shape), np.dtype(dtype).str))


def address_of(memory: typing.Any) -> int:
    """Where the bytes of an mmap or another buffer are."""
    return np.frombuffer(memory, np.uint8).__array_interface__["data"][0]


def data_type_bits(data_type: int) -> int:
    return _native.data_type_bits(data_type)


def version() -> str:
    """The version of the C library."""
    return _native.version()


def describe() -> str:
    """How the C library was built and what it found here, for bug reports."""
    return _native.describe()

"""One C instance, as thin as it can be: arguments in, LLMException out.

Every C call runs without the GIL.  Calls that may take long end soon after a signal whose Python handler
raises (Ctrl-C): transfers are started and awaited in slices, and cancelled; links are made in a thread
that is left behind and clears up.
"""

import array
import os
import threading
import typing
import weakref

import numpy as np

from ._native import ffi, lib
from ._status import LLMStatusCode, handle_llm_status, last_error, to_code

Blocks = typing.Union[typing.Sequence[int], range, "np.ndarray", "array.array"]

# So often a signal's handler gets its turn.
_SLICE_MS = 50

_new_uninitialized = ffi.new_allocator(should_clear_after_alloc=False)
_main_thread = threading.main_thread()
_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


class NativeCache:
    """The C structs of a cache, made once and passed to every call."""

    __slots__ = ("struct", "desc", "shape", "addrs")

    def __init__(self, num_tensors: int, shape: typing.Sequence[int], data_type: int, placement: int,
                 addrs: typing.Union[int, typing.Sequence[int]], cache_id: int = -1) -> None:
        """`addrs`: the addresses, or how many there is to be room for."""
        self.shape = ffi.new("int64_t[]", list(shape))
        self.desc = ffi.new("llm_cache_desc *", {
            "struct_size": ffi.sizeof("llm_cache_desc"), "placement": placement,
            "num_tensors": num_tensors, "data_type": data_type, "shape": self.shape,
            "num_dims": len(shape)})
        self.addrs = ffi.new("uintptr_t[]", addrs)
        self.struct = ffi.new("llm_cache *", {
            "struct_size": ffi.sizeof("llm_cache"), "cache_id": cache_id, "desc": self.desc,
            "tensor_addrs": self.addrs, "num_tensor_addrs": len(self.addrs)})


def block_list(name: str, blocks: Blocks) -> typing.Tuple[typing.Any, int]:
    """Block indices as C reads them, and their number.

    Arrays of uint64 are passed as they are; lists and tuples are read once, in C; a range is counted
    out by numpy.  TypeError for what isn't an index, ValueError for one out of range.
    """
    kind = type(blocks)
    if kind is list or kind is tuple:
        try:
            return _new_uninitialized("uint64_t[]", blocks), len(blocks)
        except OverflowError:
            raise ValueError(f"{name} value is out of range, expected 0..{2**64 - 1}.") from None
        except TypeError:
            wrong = next((type(one).__name__ for one in blocks if not hasattr(one, "__index__")),
                         "an object that is no int")
            raise TypeError(f"{name} inner type only support int, but got {wrong}.") from None
    if kind is range:
        low = min(blocks[0], blocks[-1]) if blocks else 0
        high = max(blocks[0], blocks[-1]) if blocks else 0
        if low < 0 or high > 2**63 - 1:
            raise ValueError(f"{name} value is out of range, expected 0..{2**63 - 1}.")
        blocks = np.arange(blocks.start, blocks.stop, blocks.step, dtype=np.int64).view(np.uint64)
    elif isinstance(blocks, np.ndarray):
        if blocks.ndim != 1:
            raise TypeError(f"{name} only support arrays of one dimension, but got {blocks.ndim}.")
        if blocks.dtype.kind not in "iu":
            raise TypeError(f"{name} inner type only support int, but got {blocks.dtype}.")
        if blocks.dtype.kind == "i" and blocks.size > 0 and int(blocks.min()) < 0:
            raise ValueError(f"{name} value is out of range, expected 0..{2**64 - 1}.")
        blocks = np.ascontiguousarray(blocks, dtype=np.uint64)
    elif isinstance(blocks, array.array):
        if blocks.typecode != "Q":
            return block_list(name, np.asarray(blocks))
    elif isinstance(blocks, (list, tuple)):
        return block_list(name, list(blocks))
    else:
        raise TypeError(f"{name} only support [list, tuple, range, numpy.ndarray, array.array], "
                        f"but got {kind.__name__}.")
    if len(blocks) == 0:
        return ffi.NULL, 0
    return ffi.from_buffer("uint64_t[]", blocks), len(blocks)


def transfer_param(src_layers: typing.Optional[range], dst_layers: typing.Optional[range],
                   tensor_num_per_layer: int = 2, timeout_ms: int = 0,
                   notification: typing.Optional[bytes] = None) -> typing.Any:
    """The C struct for these layers, NULL for all of them and nothing else."""
    if (not src_layers and not dst_layers and tensor_num_per_layer == 2 and timeout_ms == 0 and
            notification is None):
        return ffi.NULL
    param = ffi.new("llm_kv_cache_ext_param *")
    param.struct_size = ffi.sizeof("llm_kv_cache_ext_param")
    param.src_layer_range[0] = src_layers[0] if src_layers else -1
    param.src_layer_range[1] = src_layers[-1] if src_layers else -1
    param.dst_layer_range[0] = dst_layers[0] if dst_layers else -1
    param.dst_layer_range[1] = dst_layers[-1] if dst_layers else -1
    param.tensor_num_per_layer = tensor_num_per_layer
    param.timeout_ms = timeout_ms
    if notification is not None:
        buffer = ffi.from_buffer(notification)
        param.notification = buffer
        param.notification_bytes = len(notification)
        _keep_alive[param] = buffer
    return param


_keep_alive: "weakref.WeakKeyDictionary" = weakref.WeakKeyDictionary()


def cache_index(cluster_id: int, cache_id: int, batch_index: int = 0) -> typing.Any:
    return ffi.new("llm_cache_index *", (ffi.sizeof("llm_cache_index"), cluster_id, cache_id,
                                         batch_index))


class _OptionArray:
    def __init__(self, options: typing.Dict[str, str]) -> None:
        self.texts = [(ffi.new("char[]", key.encode()), ffi.new("char[]", value.encode()))
                      for key, value in options.items()]
        self.array = ffi.new("llm_option[]", self.texts)
        self.count = len(self.texts)


Address = typing.Tuple[str, int]


class Peer(typing.NamedTuple):
    """A cluster to link with or to part from."""

    cluster_id: int
    role: int
    local: typing.Sequence[Address]
    remote: typing.Sequence[Address]


class _PeerArray:
    def __init__(self, peers: typing.Sequence[Peer]) -> None:
        self.kept: typing.List[typing.Any] = []
        self.array = ffi.new("llm_cluster_info[]", len(peers))
        self.count = len(peers)
        for info, peer in zip(self.array, peers):
            info.struct_size = ffi.sizeof("llm_cluster_info")
            info.remote_cluster_id = peer.cluster_id
            info.remote_role_type = peer.role
            info.local_ip_infos = self._addresses(peer.local)
            info.num_local_ip_infos = len(peer.local)
            info.remote_ip_infos = self._addresses(peer.remote)
            info.num_remote_ip_infos = len(peer.remote)

    def _addresses(self, addresses: typing.Sequence[Address]) -> typing.Any:
        texts = [ffi.new("char[]", ip.encode()) for ip, _ in addresses]
        infos = ffi.new("llm_ip_info[]",
                        [(text, port) for text, (_, port) in zip(texts, addresses)])
        self.kept += [texts, infos]
        return infos


class Engine:
    """One instance of the C library."""

    def __init__(self, cluster_id: int, role: int) -> None:
        self.cluster_id = cluster_id
        self._handle = ffi.NULL
        self._left_behind: typing.List[threading.Thread] = []
        pointer = ffi.new("llm_datadist **")
        self._must(lib.llm_create(cluster_id, role, pointer), "create")
        self._handle = pointer[0]
        self._destroy = weakref.finalize(self, _destroy, self._handle, os.getpid())
        _engines.add(self)

    @staticmethod
    def _must(status: int, func: str) -> None:
        if status != 0:
            handle_llm_status(status, func, last_error() or "no more is known")

    # ---- life cycle ----

    def initialize(self, options: typing.Dict[str, str]) -> None:
        array_ = _OptionArray(options)
        self._must(lib.llm_initialize(self._handle, array_.array, array_.count), "initialize")

    def finalize(self) -> None:
        for thread in self._left_behind:
            thread.join()
        self._left_behind.clear()
        lib.llm_finalize(self._handle)

    def set_role(self, role: int, options: typing.Dict[str, str]) -> None:
        array_ = _OptionArray(options)
        self._must(lib.llm_set_role(self._handle, role, array_.array, array_.count), "switch_role")

    def forget(self) -> None:
        """In a forked child: the instance is the parent's."""
        self._handle = ffi.NULL
        self._destroy.detach()

    # ---- caches ----

    def allocate(self, num_tensors: int, shape: typing.Sequence[int], data_type: int, placement: int,
                 num_devices: int) -> NativeCache:
        cache = NativeCache(num_tensors, shape, data_type, placement, num_tensors * num_devices)
        self._must(lib.llm_allocate_cache(self._handle, cache.desc, cache.struct), "allocate_cache")
        return cache

    def deallocate(self, cache_id: int) -> None:
        self._must(lib.llm_deallocate_cache(self._handle, cache_id), "deallocate_cache")

    def register(self, num_tensors: int, shape: typing.Sequence[int], data_type: int, placement: int,
                 addrs: typing.Sequence[int]) -> NativeCache:
        cache = NativeCache(num_tensors, shape, data_type, placement, addrs)
        cache_id = ffi.new("int64_t *")
        self._must(lib.llm_register_kv_cache(self._handle, cache.desc,
                                             ffi.cast("const uint64_t *", cache.addrs),
                                             len(cache.addrs), cache_id), "register_cache")
        cache.struct.cache_id = cache_id[0]
        return cache

    def unregister(self, cache_id: int) -> None:
        # Short unless a peer hangs in the middle of a pull.
        status, error = self._interruptible(
            lambda: lib.llm_unregister_kv_cache(self._handle, cache_id))
        if status != 0:
            handle_llm_status(status, "unregister_cache", error)

    # ---- links ----

    def link(self, peers: typing.Sequence[Peer], timeout_ms: int
             ) -> typing.Tuple[LLMStatusCode, typing.List[LLMStatusCode], str]:
        """The overall result, one per peer, and the explanation of a failure."""
        array_, rets, num_rets = self._link_arguments(peers)

        def call() -> int:
            return lib.llm_link_clusters(self._handle, array_.array, array_.count, rets, num_rets,
                                         timeout_ms)

        def undo() -> None:
            made = [peer for peer, ret in zip(peers, rets[0:num_rets[0]]) if ret == 0]
            if made:
                again, undo_rets, num_undo = self._link_arguments(made)
                lib.llm_unlink_clusters(self._handle, again.array, again.count, undo_rets, num_undo,
                                        timeout_ms, 0)

        return self._link_results(peers, rets, num_rets, *self._interruptible(call, undo))

    def unlink(self, peers: typing.Sequence[Peer], timeout_ms: int, force: bool
               ) -> typing.Tuple[LLMStatusCode, typing.List[LLMStatusCode], str]:
        array_, rets, num_rets = self._link_arguments(peers)
        result = self._interruptible(
            lambda: lib.llm_unlink_clusters(self._handle, array_.array, array_.count, rets, num_rets,
                                            timeout_ms, int(force)))
        return self._link_results(peers, rets, num_rets, *result)

    @staticmethod
    def _link_arguments(peers: typing.Sequence[Peer]) -> typing.Tuple[typing.Any, ...]:
        return _PeerArray(peers), ffi.new("llm_status[]", max(1, len(peers))), ffi.new("size_t *")

    @staticmethod
    def _link_results(peers: typing.Sequence[Peer], rets: typing.Any, num_rets: typing.Any,
                      status: int, error: str
                      ) -> typing.Tuple[LLMStatusCode, typing.List[LLMStatusCode], str]:
        codes = [to_code(ret) for ret in rets[0:num_rets[0]]]
        # The whole call failed: so did each of them.
        codes += [to_code(status)] * (len(peers) - len(codes))
        return to_code(status), codes, error

    def link_info(self, cluster_id: int) -> typing.Optional[typing.Dict[str, typing.Any]]:
        """None without a link; else its state ("ready" or "broken"), transport and reason."""
        if cluster_id not in self.links():  # asking would log an error
            return None
        info = ffi.new("llm_link_info *")
        info.struct_size = ffi.sizeof("llm_link_info")
        status = lib.llm_get_link_info(self._handle, cluster_id, info)
        if status == LLMStatusCode.LLM_NOT_YET_LINK:
            return None
        self._must(status, "link_info")
        return {"state": "ready" if info.state == 1 else "broken",
                "transport": ffi.string(info.transport).decode(),
                "reason": ffi.string(info.reason).decode(errors="replace")}

    def links(self) -> typing.List[int]:
        room = 64
        while True:
            ids, count = ffi.new("uint64_t[]", room), ffi.new("size_t *")
            self._must(lib.llm_list_links(self._handle, ids, room, count), "links")
            if count[0] <= room:
                return list(ids[0:count[0]])
            room = count[0]

    def listen_port(self, device_index: int = 0) -> int:
        port = ffi.new("uint16_t *")
        self._must(lib.llm_get_listen_port(self._handle, device_index, port), "listen_port")
        return port[0]

    # ---- transfers ----

    def start(self, kind: str, func: str, *arguments: typing.Any) -> int:
        """Starts a transfer: `kind` is "pull_kv_blocks" and so on.  Returns its id."""
        transfer_id = ffi.new("uint64_t *")
        status = getattr(lib, "llm_start_" + kind)(self._handle, *arguments, transfer_id)
        if status != 0:
            handle_llm_status(status, func, last_error())
        return transfer_id[0]

    def transfer(self, kind: str, func: str, *arguments: typing.Any) -> None:
        """Runs a transfer to its end.  In the main thread, where signals are handled, in slices."""
        if threading.current_thread() is not _main_thread:
            status = getattr(lib, "llm_" + kind)(self._handle, *arguments)
        else:
            status = self._wait(self.start(kind, func, *arguments))
        if status != 0:
            handle_llm_status(status, func, last_error())

    def _wait(self, transfer_id: int) -> int:
        try:
            while True:
                status = lib.llm_transfer_wait(self._handle, transfer_id, _SLICE_MS)
                if status != lib.LLM_TRANSFER_PENDING:
                    return status
        finally:
            # Cancels it if a signal's handler has raised.
            lib.llm_transfer_release(self._handle, transfer_id)

    def poll(self, transfer_id: int) -> int:
        return lib.llm_transfer_poll(self._handle, transfer_id)

    def release(self, transfer_id: int) -> None:
        lib.llm_transfer_release(self._handle, transfer_id)

    def transfer_fd(self) -> int:
        return lib.llm_transfer_fd(self._handle)

    def notification_fd(self) -> int:
        return lib.llm_notification_fd(self._handle)

    def poll_notification(self) -> typing.Optional[typing.Tuple[int, bytes]]:
        buffer = ffi.new("char[]", lib.LLM_NOTIFICATION_BYTES_MAX)
        cluster_id, size = ffi.new("uint64_t *"), ffi.new("size_t *")
        status = lib.llm_poll_notification(self._handle, cluster_id, buffer, len(buffer), size)
        if status == lib.LLM_NO_NOTIFICATION:
            return None
        self._must(status, "poll_notification")
        return cluster_id[0], bytes(ffi.buffer(buffer, size[0]))

    # ---- local copies ----

    def copy_cache(self, src: NativeCache, dst: NativeCache, src_batch_index: int,
                   dst_batch_index: int, offset: int, size: int) -> None:
        self._must(lib.llm_copy_kv_cache(self._handle, src.struct, dst.struct, src_batch_index,
                                         dst_batch_index, offset, size), "copy_cache")

    def copy_blocks(self, func: str, src: NativeCache, dst: NativeCache, src_blocks: Blocks,
                    dst_blocks: Blocks) -> None:
        src_list, src_count = block_list("src_blocks", src_blocks)
        dst_list, dst_count = block_list("dst_blocks", dst_blocks)
        lists = ffi.new("const uint64_t *[]", [ffi.cast("const uint64_t *", dst_list)])
        self._must(lib.llm_copy_kv_blocks(self._handle, src.struct, dst.struct, src_list, src_count,
                                          lists, ffi.new("size_t[]", [dst_count]), 1), func)

    # ---- signals ----

    def _interruptible(self, call: typing.Callable[[], int],
                       undo: typing.Optional[typing.Callable[[], None]] = None
                       ) -> typing.Tuple[int, str]:
        """Runs a C call that can't be cancelled, and returns its status and explanation.

        If a signal's handler raises meanwhile, the call goes on in a thread of its own, then `undo`
        takes its effect back; finalize waits for that.
        """
        if threading.current_thread() is not _main_thread:
            status = call()
            return status, last_error() if status != 0 else ""
        result: typing.List[typing.Tuple[int, str]] = []
        lock = threading.Lock()
        abandoned = False
        ended = threading.Event()

        def run() -> None:
            status = call()
            error = last_error() if status != 0 else ""
            with lock:
                result.append((status, error))
                leave = abandoned
            ended.set()
            if leave and undo is not None:
                undo()

        thread = threading.Thread(target=run, name="llm-datadist-call", daemon=True)
        try:
            thread.start()
            ended.wait()
        except BaseException:
            with lock:
                abandoned = True
                late = bool(result)
            if late and undo is not None:
                undo()
            self._left_behind = [one for one in self._left_behind if one.is_alive()] + [thread]
            raise
        thread.join()
        return result[0]


def _destroy(handle: typing.Any, pid: int) -> None:
    if os.getpid() == pid:
        lib.llm_destroy(handle)


def _after_fork() -> None:
    for engine in list(_engines):
        engine.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Memory:
    """Memory of a cache, for numpy.  The array keeps it, and it keeps the cache."""

    def __init__(self, owner: object, address: int, shape: typing.Tuple[int, ...],
                 typestr: str) -> None:
        self._owner = owner
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": typestr,
                                    "version": 3}


def view(owner: object, address: int, shape: typing.Sequence[int], dtype: typing.Any) -> np.ndarray:
    """A writable array over memory at `address`, without a copy."""
    return np.asarray(_Memory(owner, address, tuple(shape), np.dtype(dtype).str))


def data_type_bits(data_type: int) -> int:
    return lib.llm_data_type_bits(data_type)


def version() -> str:
    """The version of the C library."""
    return ffi.string(lib.llm_version()).decode()


def describe() -> str:
    """How the C library was built and what it found here, for bug reports."""
    size = lib.llm_describe(ffi.NULL, 0) + 1
    buffer = ffi.new("char[]", size)
    lib.llm_describe(buffer, size)
    return ffi.string(buffer).decode(errors="replace")

"""Caches as Python holds them."""

import typing
import weakref

import numpy as np

from . import _core
from ._check import check_isinstance, check_uint32, check_uint64
from ._status import LLMException, LLMStatusCode, raise_if_false
from ._types import CacheDesc, Placement, stride, view_dtype

if typing.TYPE_CHECKING:
    from ._managers import _Manager


_Self = typing.TypeVar("_Self", bound="_AnyCache")


def native_struct(desc: CacheDesc, addrs: typing.Sequence[int], cache_id: int = -1
                  ) -> _core.NativeCache:
    return _core.NativeCache(desc.num_tensors, desc.shape, desc.data_type.value,
                             int(desc.placement), addrs, cache_id)


class _AnyCache:
    """What Cache and KvCache share."""

    def __init__(self, desc: CacheDesc, native: _core.NativeCache, is_blocks: bool,
                 manager: typing.Optional["_Manager"], memory: object = None) -> None:
        self._desc = desc
        # desc.shape is the caller's, who may change it for the next cache.
        self._shape = tuple(int(dim) for dim in desc.shape)
        self._native: typing.Optional[_core.NativeCache] = native
        self._cache_id: int = native.cache_id
        self._addrs: typing.List[int] = native.addrs
        self._is_blocks = is_blocks
        self._manager = None if manager is None else weakref.ref(manager)
        self._engine = None if manager is None else manager._engine
        # Memory of Python's, which lives as long as this object and the views of it.
        self._memory = memory
        # What views keep of memory of the library's, once there is a view.
        self._hold: typing.Optional[object] = None

    @property
    def cache_id(self) -> int:
        """The id by which peers name the cache, from 1 on; -1 for a CPU cache."""
        return self._cache_id

    @property
    def cache_desc(self) -> CacheDesc:
        """What the cache looks like."""
        return self._desc

    def numpy(self, tensor_index: int = 0, device_index: int = 0) -> np.ndarray:
        """One tensor as a writable array over the cache's own memory: nothing is copied.

        The array has the cache's shape and type, and speaks DLPack: torch.from_dlpack(cache.numpy(0))
        has the same address.  numpy has no bfloat16 and shows its bits as uint16, which older versions of
        torch don't know; torch gets it by way of integers that both have:

            torch.from_dlpack(cache.numpy(0).view("int16")).view(torch.bfloat16)

        (DT_BOOL likewise by "uint8" and torch.bool; FP8 is shown as uint8, and is
        torch.from_dlpack(cache.numpy(0)).view(torch.float8_e4m3fn) there.)  The array keeps the cache from being freed
        by the garbage collector.  Once the cache was deallocated, or the engine finalized, it shows the
        bytes of that moment, its own and no other cache's; nobody else sees them any more.  Their memory
        goes back with the last array.  (Of a cache that was registered, the memory is the caller's, who
        keeps it as long as there are arrays.)
        """
        manager = self._manager() if self._manager is not None else None
        if self._engine is not None and (manager is None or not manager.is_initialized()):
            raise RuntimeError("llm datadist is not initialized")
        check_uint32("tensor_index", tensor_index)
        raise_if_false(tensor_index < self._desc.num_tensors,
                       "tensor_index {} is out of range [0, {})", tensor_index,
                       self._desc.num_tensors)
        at = int(device_index) * self._desc.num_tensors + int(tensor_index)
        raise_if_false(0 <= at < len(self._addrs),
                       "the cache has no memory on device {}", device_index)
        dtype = view_dtype(self._desc.data_type)
        if self._hold is None:
            self._hold = self._hold_memory()
        return _core.view((self, self._hold), self._addrs[at], self._shape, dtype)

    def _hold_memory(self) -> object:
        """What keeps the memory; deallocation and finalize don't."""
        manager = self._manager() if self._manager is not None else None
        return self._memory if manager is None else manager._hold(self)

    def _spend(self) -> None:
        self._native = None
        self._addrs = []
        self._hold = self._memory = None  # from now on the views' alone

    @property
    def _stride(self) -> int:
        """Bytes from one batch slot or block to the next."""
        desc = self._desc
        return stride(CacheDesc(desc.num_tensors, self._shape, desc.data_type))

    def _struct(self, engine: _core.Engine) -> _core.NativeCache:
        """What C calls the cache.  Another engine has its own caches under the same ids."""
        if self._engine is not engine and self._engine is not None:
            raise LLMException(f"the cache {self._cache_id} is another engine's",
                               LLMStatusCode.LLM_KV_CACHE_NOT_EXIST)
        native = self._native
        if native is None:
            raise LLMException(f"the cache {self._cache_id} was deallocated",
                               LLMStatusCode.LLM_KV_CACHE_NOT_EXIST)
        return native

    def __copy__(self: _Self) -> _Self:
        return self  # a second object would free the memory of the first one

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        manager = self._manager() if self._manager is not None else None
        if manager is not None and manager.is_initialized() and self._native is not None:
            manager._release(self)

    def __repr__(self) -> str:
        kind = "blocks " if self._is_blocks else ""
        return f"{type(self).__name__}({kind}cache {self._cache_id}, {self._desc!r})"


class Cache(_AnyCache):
    """A cache of v2 mode, made by CacheManager."""

    @property
    def tensor_addrs(self) -> typing.List[int]:
        """One address per tensor."""
        return list(self._addrs)

    @property
    def is_blocks_cache(self) -> bool:
        """Was it made as a cache of blocks?"""
        return self._is_blocks

    @classmethod
    def create_cpu_cache(cls, cache_desc: CacheDesc, addrs: typing.Sequence[int]) -> "Cache":
        """A description of host memory of the caller's, for copy_* and swap_blocks."""
        check_isinstance("cache_desc", cache_desc, CacheDesc, allow_none=False)
        flat = _check_cpu_addrs(cache_desc, addrs)
        return cls(cache_desc, native_struct(cache_desc, flat), True, None)


class KvCache(_AnyCache):
    """A cache of v1 mode, made by KvCacheManager.  When the last reference goes, it is deallocated."""

    @property
    def per_device_tensor_addrs(self) -> typing.List[typing.List[int]]:
        """For each device the addresses of its tensors; [] once the cache was deallocated."""
        count = self._desc.num_tensors
        return [self._addrs[i:i + count] for i in range(0, len(self._addrs), count)]

    @classmethod
    def create_cpu_cache(cls, cache_desc: CacheDesc,
                         addrs: typing.Union[typing.List[int], typing.List[typing.List[int]]]
                         ) -> "KvCache":
        """A description of host memory of the caller's, for swap_blocks."""
        check_isinstance("cache_desc", cache_desc, CacheDesc, allow_none=False)
        flat = _check_cpu_addrs(cache_desc, addrs)
        return cls(cache_desc, native_struct(cache_desc, flat), True, None)

    def __del__(self) -> None:
        manager = getattr(self, "_manager", None)
        manager = manager() if manager is not None else None
        if manager is None or self._native is None or not manager.is_initialized():
            return
        try:
            manager._release(self)
        except Exception:  # pylint: disable=broad-except # the interpreter may be going down
            pass


def _check_cpu_addrs(desc: CacheDesc, addrs: typing.Any) -> typing.List[int]:
    raise_if_false(desc.placement == Placement.HOST, "a cpu cache's placement must be HOST")
    check_isinstance("addrs", addrs, [list, tuple], [int, list, tuple], allow_none=False)
    raise_if_false(len(addrs) > 0, "addrs must not be empty")
    nested = isinstance(addrs[0], (list, tuple))
    raise_if_false(all(isinstance(one, (list, tuple)) == nested for one in addrs),
                   "the types of addrs should be consistent")
    devices = addrs if nested else [addrs]
    flat: typing.List[int] = []
    for one in devices:
        raise_if_false(len(one) == desc.num_tensors, "there are {} addrs, expected {}", len(one),
                       desc.num_tensors)
        for addr in one:
            check_uint64("addrs", addr)
        flat += one
    return flat

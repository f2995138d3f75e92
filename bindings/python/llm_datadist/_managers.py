"""KvCacheManager of v1 mode and CacheManager of v2 mode."""

import mmap
import threading
import typing
import weakref

from . import _core
from ._caches import Cache, KvCache, _AnyCache
from ._check import (check_dict, check_int64, check_isinstance, check_keywords, check_uint32,
                     check_uint64)
from ._config import EngineOptions
from ._status import LLMStatusCode, raise_if_false, raise_if_true
from ._tasks import (CacheTask, Item, LayerSynchronizer, TransferConfig,
                     TransferWithCacheKeyConfig)
from ._tensor import Tensor, TensorDesc
from ._types import (AnyKey, BlocksCacheKey, CacheDesc, CacheKey, CacheKeyByIdAndIndex, DataType,
                     INVALID_ID, LLMRole, MemInfo, Memtype, Placement, native_key)

Blocks = _core.Blocks
_LAYER_KEYWORDS = ("src_layer_range", "dst_layer_range", "tensor_num_per_layer", "allow_other_type")


def _layers(name: str, value: typing.Optional[range]) -> typing.Optional[range]:
    """None for all layers."""
    if value is None:
        return None
    check_isinstance(name, value, range)
    raise_if_false(value.step == 1, "{} must have step 1, but has {}", name, value.step)
    raise_if_false(not value or 0 <= value.start, "{} {} must start at 0 or later", name, value)
    raise_if_false(not value or value.stop <= 2**31 - 1, "{} {} is too long", name, value)
    return value or None


def _check_per_layer(tensor_num_per_layer: int) -> None:
    check_uint32("tensor_num_per_layer", tensor_num_per_layer)
    raise_if_false(tensor_num_per_layer > 0, "tensor_num_per_layer must be more than 0")


def _check_size(size: int) -> None:
    check_int64("size", size)
    raise_if_false(size == -1 or size > 0, "size {} must be -1 or more than 0", size)


class _Manager:
    """What both share: transfers, copies and the references that keep a cache."""

    _cache_class: typing.Type[_AnyCache]
    _timeout_code: LLMStatusCode

    def __init__(self, engine: _core.Engine, options: EngineOptions, role: LLMRole) -> None:
        self._engine = engine
        self._options = options
        self._role = role
        self._initialized = True
        self._tasks: "weakref.WeakSet[CacheTask]" = weakref.WeakSet()

    def __repr__(self) -> str:
        state = "" if self._initialized else ", finalized"
        return f"{type(self).__name__}(cluster {self._engine.cluster_id}, {self._role}{state})"

    def is_initialized(self) -> bool:
        """False once the engine was finalized."""
        return self._initialized

    def _end(self) -> None:
        self._initialized = False
        for task in list(self._tasks):
            task._stop()

    def _check_alive(self) -> None:
        if not self._initialized:
            raise RuntimeError("llm datadist is not initialized")

    def _release(self, cache: _AnyCache) -> None:
        raise NotImplementedError

    def _hold(self, cache: _AnyCache) -> object:
        """What keeps the memory of a cache of this manager's for a view of it."""
        return self._engine.hold(cache.cache_id)

    def _check_cache(self, name: str, cache: typing.Any) -> None:
        if not isinstance(cache, self._cache_class):
            check_isinstance(name, cache, self._cache_class, allow_none=False)

    # ---- keys ----

    @staticmethod
    def _locate(key: AnyKey) -> _core.NativeIndex:
        """What C calls a peer's key."""
        if isinstance(key, CacheKeyByIdAndIndex):
            return _core.NativeIndex(key._cluster_id, key._cache_id, key._batch_index)
        return _core.NativeIndex(key._cluster_id, 0, 0, 0, native_key(key))

    def _bind(self, func: str, native: _core.NativeCache, keys: typing.Sequence[typing.Any],
              undo: typing.Callable[[int], None]) -> None:
        """Names a new cache; if a name is taken already, `undo` ends it."""
        if not keys:
            return
        try:
            self._engine.bind_keys(func, native.cache_id, [native_key(key) for key in keys],
                                   lambda i: repr(keys[i]))
        except BaseException:
            undo(native.cache_id)
            raise

    @staticmethod
    def _check_cache_key(key: AnyKey) -> None:
        if isinstance(key, CacheKey):
            raise_if_false((key.req_id == INVALID_ID) != (key.prefix_id == INVALID_ID),
                           "exactly one of req_id and prefix_id must be valid in {}", key)

    # ---- transfers ----

    def _param(self, local: CacheDesc, keywords: typing.Mapping[str, typing.Any], local_is_src: bool,
               **more: typing.Any) -> typing.Optional[_core.NativeParam]:
        if not keywords:
            return None
        src = _layers("src_layer_range", keywords.get("src_layer_range"))
        dst = _layers("dst_layer_range", keywords.get("dst_layer_range"))
        per_layer = keywords.get("tensor_num_per_layer", 2)
        _check_per_layer(per_layer)
        allow_other_type = keywords.get("allow_other_type", False)
        check_isinstance("allow_other_type", allow_other_type, bool, allow_none=False)
        if allow_other_type:
            more["allow_other_type"] = True
        if src is None and dst is None:
            # All layers.  A pull takes all tensors at once, however many a layer has.
            return _core.transfer_param(None, None, per_layer if local_is_src else 2, **more)
        # Where one range is given, "all tensors" of the local side is a range too.
        raise_if_false(local.num_tensors % per_layer == 0,
                       "{} tensors can't be divided into layers of {}", local.num_tensors, per_layer)
        everything = range(local.num_tensors // per_layer)
        if local_is_src:
            src = src or everything
        else:
            dst = dst or everything
        raise_if_true(src and dst and len(src) != len(dst),
                      "src_layer_range {} and dst_layer_range {} must have the same length", src, dst)
        return _core.transfer_param(src, dst, per_layer, **more)

    def _pull_cache(self, cache_key: AnyKey, cache: _AnyCache, batch_index: int, size: int,
                    keywords: typing.Mapping[str, typing.Any]) -> None:
        check_uint32("batch_index", batch_index)
        _check_size(size)
        self._check_cache_key(cache_key)
        param = self._param(cache.cache_desc, keywords, False, **self._offsets(keywords))
        self._engine.transfer("pull_cache", _core.PULL_CACHE, cache._struct(self._engine),
                              self._locate(cache_key), param, batch_index, size)

    @staticmethod
    def _offsets(keywords: typing.Mapping[str, typing.Any]) -> typing.Dict[str, typing.Any]:
        """Of Param's.  An offset that is given, be it 0, leaves the key where it is."""
        given = {}
        for name, offset in (("src_offset", keywords.get("src_cache_offset")),
                             ("dst_offset", keywords.get("dst_cache_offset"))):
            if offset is not None:
                check_uint64(name, offset)
                given[name] = offset
        if given:
            given["keep_key"] = True
        return given

    def _pull_blocks(self, cache_key: AnyKey, cache: _AnyCache, src_blocks: Blocks,
                     dst_blocks: Blocks, keywords: typing.Mapping[str, typing.Any]) -> None:
        src_list = _core.block_list("src_blocks", src_blocks)
        dst_list = _core.block_list("dst_blocks", dst_blocks)
        param = self._param(cache.cache_desc, keywords, False)
        self._engine.transfer("pull_blocks", _core.PULL_BLOCKS, cache._struct(self._engine),
                              self._locate(cache_key), param, src_list, dst_list)

    def _push_cache(self, dst_cache_key: AnyKey, src_cache: _AnyCache, src_batch_index: int,
                    size: int, keywords: typing.Mapping[str, typing.Any]) -> None:
        check_uint32("src_batch_index", src_batch_index)
        check_int64("size", size)
        raise_if_false(size == -1, "size {} must be -1", size)
        self._check_device("src_cache", src_cache)
        param = self._push_param(src_cache, keywords)
        self._engine.transfer("push_cache", _core.PUSH_CACHE, src_cache._struct(self._engine),
                              self._locate(dst_cache_key), param, src_batch_index, size)

    def _push_blocks(self, dst_cache_key: AnyKey, src_cache: _AnyCache, src_blocks: Blocks,
                     dst_blocks: Blocks, keywords: typing.Mapping[str, typing.Any]) -> None:
        src_list = _core.block_list("src_blocks", src_blocks)
        dst_list = _core.block_list("dst_blocks", dst_blocks)
        raise_if_false(len(dst_list) > 0, "dst_blocks must not be empty")
        raise_if_false(src_cache._is_blocks, "src_cache must be a blocks cache")
        self._check_device("src_cache", src_cache)
        param = self._push_param(src_cache, keywords)
        self._engine.transfer("push_blocks", _core.PUSH_BLOCKS, src_cache._struct(self._engine),
                              self._locate(dst_cache_key), param, src_list, dst_list)

    def _push_param(self, src_cache: _AnyCache, keywords: typing.Mapping[str, typing.Any]
                    ) -> typing.Any:
        per_layer = keywords.get("tensor_num_per_layer", 2)
        _check_per_layer(per_layer)
        count = src_cache.cache_desc.num_tensors
        raise_if_false(count % per_layer == 0 or not any(keywords.get(k) for k in _LAYER_KEYWORDS[:2])
                       and per_layer == 2,
                       "{} tensors can't be divided into layers of {}", count, per_layer)
        return self._param(src_cache.cache_desc, keywords, True)

    # ---- copies ----

    @staticmethod
    def _check_device(name: str, cache: _AnyCache) -> None:
        raise_if_false(cache.cache_desc.placement == Placement.DEVICE, "{} must be a device cache",
                       name)

    def _copy_cache(self, dst: _AnyCache, src: _AnyCache, dst_batch_index: int, src_batch_index: int,
                    offset: int, size: int, req_id: typing.Optional[int]) -> None:
        check_uint32("dst_batch_index", dst_batch_index)
        check_uint32("src_batch_index", src_batch_index)
        check_uint64("offset", offset)
        if req_id is not None:
            check_uint64("req_id", req_id)
        _check_size(size)
        self._check_device("src", src)
        self._check_device("dst", dst)
        self._engine.copy_cache(src._struct(self._engine), dst._struct(self._engine),
                                src_batch_index, dst_batch_index, offset, size)

    def _copy_blocks(self, cache: _AnyCache, copy_block_info: typing.Dict[int, typing.List[int]]
                     ) -> None:
        check_dict("copy_block_info", copy_block_info, int, [list, tuple], int)
        self._check_device("cache", cache)
        src_blocks: typing.List[int] = []
        dst_blocks: typing.List[int] = []
        for src_block, targets in copy_block_info.items():
            src_blocks += [src_block] * len(targets)
            dst_blocks += targets
        native = cache._struct(self._engine)
        self._engine.copy_blocks("copy_blocks", native, native, src_blocks, dst_blocks)

    def swap_blocks(self, src: typing.Any, dst: typing.Any, src_to_dst: typing.Dict[int, int]
                    ) -> None:
        """Copies blocks between host and device memory: {source block: destination block}."""
        self._check_alive()
        self._check_cache("src", src)
        self._check_cache("dst", dst)
        check_dict("src_to_dst", src_to_dst, int, int)
        self._check_swap(src, dst)
        raise_if_false(src.cache_desc.placement != dst.cache_desc.placement,
                       "one cache must be on the host, the other on the device")
        raise_if_false(src.cache_desc.num_tensors == dst.cache_desc.num_tensors,
                       "src has {} tensors, dst has {}", src.cache_desc.num_tensors,
                       dst.cache_desc.num_tensors)
        raise_if_false(src._stride == dst._stride, "a block of src has {} bytes, one of dst {}",
                       src._stride, dst._stride)
        for name, blocks, cache in (("src", src_to_dst.keys(), src), ("dst", src_to_dst.values(), dst)):
            count = cache._shape[0]
            raise_if_false(all(0 <= block < count for block in blocks),
                           "a {} block is out of range [0, {})", name, count)
        if src_to_dst:
            self._engine.copy_blocks("swap_blocks", src._struct(self._engine),
                                     dst._struct(self._engine), list(src_to_dst.keys()),
                                     list(src_to_dst.values()))

    def _check_swap(self, src: _AnyCache, dst: _AnyCache) -> None:
        pass

    # ---- layer by layer ----

    def _transfer_cache_async(self, src_cache: _AnyCache, layer_synchronizer: LayerSynchronizer,
                              transfer_configs: typing.Sequence[typing.Any],
                              src_block_indices: typing.Optional[Blocks],
                              dst_block_indices: typing.Optional[Blocks],
                              dst_block_memory_size: typing.Optional[int]) -> CacheTask:
        desc = src_cache.cache_desc
        if dst_block_memory_size is not None:
            check_uint64("dst_block_memory_size", dst_block_memory_size)
        src_list = _core.block_list("src_block_indices",
                                    [] if src_block_indices is None else src_block_indices)
        dst_list = _core.block_list("dst_block_indices",
                                    [] if dst_block_indices is None else dst_block_indices)
        src_count, dst_count = len(src_list), len(dst_list)
        raise_if_true(src_count > 0 and dst_count == 0, "transfer from blocks to cache is not "
                      "supported")
        raise_if_true(src_count > 0 and src_count != dst_count,
                      "there are {} source blocks and {} destination blocks", src_count, dst_count)
        raise_if_true(dst_block_memory_size and dst_count == 0,
                      "dst_block_memory_size needs dst_block_indices")
        raise_if_false(desc.num_tensors % 2 == 0, "num_tensors {} must be even", desc.num_tensors)
        num_layers = desc.num_tensors // 2
        for config in transfer_configs:
            if isinstance(config, TransferWithCacheKeyConfig):
                config._check()
            layers = config.src_layer_range or range(num_layers)
            raise_if_false(layers.stop <= num_layers, "src_layer_range {} is out of range [0, {})",
                           layers, num_layers)
            if isinstance(config, TransferConfig):
                raise_if_false(len(config.dst_addrs) == 2 * len(layers),
                               "there are {} dst_addrs for {} layers, expected {}",
                               len(config.dst_addrs), len(layers), 2 * len(layers))

        native, spread, at_end = src_cache._struct(self._engine), None, lambda: None
        aliased = None
        if dst_count > 0 and src_count == 0:
            native, spread, at_end = self._alias(src_cache, dst_block_memory_size, dst_count)
            aliased = src_cache.cache_id
        elif dst_block_memory_size:
            raise_if_false(dst_block_memory_size == src_cache._stride,
                           "dst_block_memory_size {} must be the source's block size {}",
                           dst_block_memory_size, src_cache._stride)

        def make_item(config: typing.Any) -> Item:
            layers = config.src_layer_range or range(num_layers)
            blocks = src_list if spread is None else spread(config.src_batch_index)
            by_address = isinstance(config, TransferConfig)
            index = None if by_address else self._locate(config.cache_key)
            # The caller may change the configuration meanwhile, for the next task.
            batch_index = config.src_batch_index
            cluster, addrs = ((config.dst_cluster_id, list(config.dst_addrs)) if by_address else
                              (0, []))

            def push(src_layer: int, dst_layer: int) -> None:
                there = index or _core.NativeIndex(cluster, 0, 0, 0, None,
                                                   addrs[2 * dst_layer:2 * dst_layer + 2])
                # Addresses need no destination layers, but as many.
                param = _core.transfer_param(range(src_layer, src_layer + 1),
                                             range(dst_layer, dst_layer + 1))
                if dst_count > 0:
                    self._engine.transfer("transfer_cache", _core.PUSH_BLOCKS, native, there, param,
                                          blocks, dst_list)
                else:
                    self._engine.transfer("transfer_cache", _core.PUSH_CACHE, native, there, param,
                                          batch_index, -1)

            return Item(layers, range(len(layers)) if by_address else config.dst_layer_range, push)

        try:
            items = [make_item(config) for config in transfer_configs]
            task = CacheTask(items, layer_synchronizer, self._timeout_code, at_end, aliased)
        except BaseException:
            at_end()
            raise
        self._tasks.add(task)
        return task

    def _end_aliases(self, cache_id: int) -> None:
        """Before the memory of a cache goes."""
        for task in list(self._tasks):
            if task._aliased == cache_id:
                task._stop()
                task._at_end()

    def _alias(self, src_cache: _AnyCache, block_bytes: typing.Optional[int], count: int
               ) -> typing.Tuple[_core.NativeCache, typing.Any, typing.Callable[[], None]]:
        """A second registration of the cache's memory, cut into blocks; which of them a batch slot's
        first `count` are; and what ends the registration."""
        desc = src_cache.cache_desc
        slot, num_slots = src_cache._stride, src_cache._shape[0]
        size = block_bytes or slot
        raise_if_false(slot % size == 0 and count <= slot // size,
                       "{} blocks of {} bytes don't fit a batch slot of {} bytes", count, size, slot)
        # Of the cache's type, unless a block ends within an element.
        data_type, bits = desc.data_type.value, _core.data_type_bits(desc.data_type.value)
        row = size * 8 // bits
        if size * 8 % bits != 0:
            data_type, row = DataType.DT_INT8.value, size
        native = self._engine.register(desc.num_tensors, (num_slots * (slot // size), row),
                                       data_type, int(desc.placement),
                                       src_cache._struct(self._engine).addrs)

        def spread(batch_index: int) -> _core.NativeBlocks:
            raise_if_false(batch_index < num_slots, "src_batch_index {} is out of range [0, {})",
                           batch_index, num_slots)
            first = batch_index * (slot // size)
            return _core.block_list("src_block_indices", range(first, first + count))

        return native, spread, lambda: self._engine.unregister(native.cache_id)


class KvCacheManager(_Manager):
    """Caches and transfers of v1 mode: `LLMDataDist.kv_cache_manager`.

    The library allocates; prompts may push, decoders pull.
    """

    _cache_class = KvCache
    _timeout_code = LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT

    def _check_role(self, func: str, role: LLMRole) -> None:
        if self._role is not role:
            raise_if_false(False, "{} is not supported by {}", func, self._role)

    # ---- caches ----

    def allocate_cache(self, cache_desc: CacheDesc,
                       cache_keys: typing.Union[typing.Tuple[CacheKey, ...], typing.List[CacheKey]] = ()
                       ) -> KvCache:
        """Allocates a cache of batch slots; key i names slot i."""
        check_isinstance("cache_desc", cache_desc, CacheDesc, allow_none=False)
        check_isinstance("cache_keys", cache_keys, [list, tuple], CacheKey, allow_none=False)
        if cache_keys:
            self._check_role("allocate_cache with cache_keys", LLMRole.PROMPT)
        return self._allocate(cache_desc, cache_keys, False)

    def allocate_blocks_cache(self, cache_desc: CacheDesc,
                              blocks_cache_key: typing.Optional[BlocksCacheKey] = None) -> KvCache:
        """Allocates a cache of cache_desc.shape[0] blocks."""
        check_isinstance("cache_desc", cache_desc, CacheDesc, allow_none=False)
        check_isinstance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
        if blocks_cache_key is not None:
            raise_if_true(self._role == LLMRole.DECODER,
                          "allocate_blocks_cache with blocks_cache_key is not supported by {}",
                          self._role)
        return self._allocate(cache_desc, [blocks_cache_key] if blocks_cache_key else [], True)

    def _allocate(self, desc: CacheDesc, keys: typing.Sequence[typing.Any], is_blocks: bool
                  ) -> KvCache:
        self._check_alive()
        raise_if_false(desc.num_tensors > 0, "num_tensors must be more than 0")
        self._check_device("cache_desc", typing.cast(_AnyCache, _DescOnly(desc)))
        raise_if_false(is_blocks or not keys or len(keys) <= desc.shape[0],
                       "there are {} cache_keys for {} batch slots", len(keys), desc.shape[0])
        native = self._engine.allocate(desc.num_tensors, desc.shape, desc.data_type.value,
                                       int(desc.placement), self._options.num_devices)
        self._bind("allocate_blocks_cache" if is_blocks else "allocate_cache", native, keys,
                   self._engine.deallocate)
        return KvCache(desc, native, is_blocks, self)

    def deallocate_cache(self, cache: KvCache) -> None:
        """Frees a cache; one that was freed before stays so.

        Memory that keys name is kept until the last of them was pulled or removed, for pulls by key
        alone; a blocks cache goes with its key."""
        self._check_cache("cache", cache)
        self._check_device("cache", cache)
        self._check_alive()
        if cache._native is not None:
            cache._struct(self._engine)
            self._release(cache)

    def _release(self, cache: _AnyCache) -> None:
        cache._spend()
        self._engine.deallocate(cache.cache_id)

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        """Removes a key; an unknown one is no mistake."""
        check_isinstance("cache_key", cache_key, CacheKey, allow_none=False)
        self._check_alive()
        self._check_role("remove_cache_key", LLMRole.PROMPT)
        self._engine.remove_key(native_key(cache_key))

    # ---- transfers ----

    def pull_cache(self, cache_key: typing.Union[CacheKey, CacheKeyByIdAndIndex], kv_cache: KvCache,
                   batch_index: int = 0, size: int = -1, **kwargs: typing.Any) -> None:
        """Copies a batch slot of a prompt's cache into slot `batch_index` of `kv_cache`.

        size: bytes per tensor, which arrive whatever the owner's seq_len_dim_index is; -1 for the whole
        slot of `kv_cache`.  Keywords: src_layer_range and dst_layer_range (range of layers, step 1),
        tensor_num_per_layer (2), src_cache_offset and dst_cache_offset (bytes into the slots),
        allow_other_type (False: caches of different data types are LLM_PARAM_INVALID).

        A CacheKey with a req_id is consumed, unless an offset is given; a pull of some layers consumes
        these, and the last of them the key.
        """
        check_isinstance("cache_key", cache_key, [CacheKey, CacheKeyByIdAndIndex], allow_none=False)
        self._check_cache("kv_cache", kv_cache)
        check_keywords("pull_cache", kwargs,
                       _LAYER_KEYWORDS + ("src_cache_offset", "dst_cache_offset"))
        self._check_alive()
        self._check_role("pull_cache", LLMRole.DECODER)
        self._pull_cache(cache_key, kv_cache, batch_index, size, kwargs)

    def pull_blocks(self, prompt_cache_key: typing.Union[BlocksCacheKey, CacheKeyByIdAndIndex],
                    decoder_kv_cache: KvCache, prompt_blocks: Blocks, decoder_blocks: Blocks,
                    **kwargs: typing.Any) -> None:
        """Copies block prompt_blocks[i] of a prompt's cache to block decoder_blocks[i].

        Blocks: a list, tuple, range or array.  CacheKeyByIdAndIndex, which the original refuses here,
        names the cache by its id.  Keywords: as pull_cache, without offsets.
        """
        check_isinstance("prompt_cache_key", prompt_cache_key,
                         (BlocksCacheKey, CacheKeyByIdAndIndex), allow_none=False)
        self._check_cache("decoder_kv_cache", decoder_kv_cache)
        if kwargs:
            check_keywords("pull_blocks", kwargs, _LAYER_KEYWORDS)
        self._check_alive()
        self._check_role("pull_blocks", LLMRole.DECODER)
        self._pull_blocks(prompt_cache_key, decoder_kv_cache, prompt_blocks, decoder_blocks, kwargs)

    def push_cache(self, dst_cache_key: CacheKeyByIdAndIndex, src_cache: KvCache,
                   src_batch_index: int = 0, size: int = -1, **kwargs: typing.Any) -> None:
        """Copies a batch slot to a decoder's cache.  The original has this in v2 mode only."""
        check_isinstance("dst_cache_key", dst_cache_key, CacheKeyByIdAndIndex, allow_none=False)
        self._check_cache("src_cache", src_cache)
        check_keywords("push_cache", kwargs, _LAYER_KEYWORDS)
        self._check_alive()
        self._check_role("push_cache", LLMRole.PROMPT)
        self._push_cache(dst_cache_key, src_cache, src_batch_index, size, kwargs)

    def push_blocks(self, dst_cache_key: typing.Union[BlocksCacheKey, CacheKeyByIdAndIndex],
                    src_cache: KvCache, src_blocks: Blocks = (), dst_blocks: Blocks = (),
                    **kwargs: typing.Any) -> None:
        """Copies blocks to a decoder's cache.  The original has this in v2 mode only."""
        check_isinstance("dst_cache_key", dst_cache_key, [BlocksCacheKey, CacheKeyByIdAndIndex],
                         allow_none=False)
        self._check_cache("src_cache", src_cache)
        check_keywords("push_blocks", kwargs, _LAYER_KEYWORDS)
        self._check_alive()
        self._check_role("push_blocks", LLMRole.PROMPT)
        self._push_blocks(dst_cache_key, src_cache, src_blocks, dst_blocks, kwargs)

    def transfer_cache_async(
            self, src_cache: KvCache, layer_synchronizer: LayerSynchronizer,
            transfer_configs: typing.Union[typing.List[typing.Any], typing.Tuple[typing.Any, ...]],
            src_block_indices: typing.Optional[Blocks] = None,
            dst_block_indices: typing.Optional[Blocks] = None,
            dst_block_memory_size: typing.Optional[int] = None) -> CacheTask:
        """Pushes layer by layer, as soon as `layer_synchronizer` says that a layer is computed.

        transfer_configs: of TransferConfig, or of TransferWithCacheKeyConfig, which the original takes
        in v2 mode only.
        """
        check_isinstance("src_cache", src_cache, KvCache, allow_none=False)
        check_isinstance("layer_synchronizer", layer_synchronizer, LayerSynchronizer,
                         allow_none=False)
        check_isinstance("transfer_configs", transfer_configs, [list, tuple],
                         [TransferConfig, TransferWithCacheKeyConfig], allow_none=False)
        self._check_alive()
        self._check_role("transfer_cache_async", LLMRole.PROMPT)
        raise_if_true(dst_block_indices is not None and len(dst_block_indices) > 0 and
                      (src_block_indices is None or len(src_block_indices) == 0),
                      "transfer from cache to blocks is not supported")
        return self._transfer_cache_async(src_cache, layer_synchronizer, transfer_configs,
                                          src_block_indices, dst_block_indices,
                                          dst_block_memory_size)

    # ---- copies ----

    def copy_cache(self, dst: KvCache, src: KvCache, dst_batch_index: int = 0,
                   src_batch_index: int = 0, offset: int = 0, size: int = -1,
                   req_id: typing.Optional[int] = None) -> None:
        """Copies a batch slot from `offset` on, between two device caches of this process."""
        self._check_cache("dst", dst)
        self._check_cache("src", src)
        self._check_alive()
        self._copy_cache(dst, src, dst_batch_index, src_batch_index, offset, size, req_id)

    def copy_blocks(self, cache: KvCache, copy_block_info: typing.Dict[int, typing.List[int]]
                    ) -> None:
        """Copies blocks within a cache: {source block: [destination block, ...]}."""
        self._check_cache("cache", cache)
        self._check_alive()
        self._copy_blocks(cache, copy_block_info)

    def get_cache_tensors(self, cache: KvCache, tensor_index: int = 0) -> typing.List[Tensor]:
        """A copy of one tensor, from each device.  KvCache.numpy gives a view instead."""
        self._check_cache("cache", cache)
        check_isinstance("tensor_index", tensor_index, int, allow_none=False)
        self._check_alive()
        desc = cache.cache_desc
        raise_if_false(0 <= tensor_index < desc.num_tensors,
                       "tensor_index {} is out of range [0, {})", tensor_index, desc.num_tensors)
        cache._struct(self._engine)
        tensors = []
        for device in range(len(cache.per_device_tensor_addrs)):
            data = cache.numpy(tensor_index, device)
            if desc.data_type is DataType.DT_BF16:
                data = data.view("float16")
            tensors.append(Tensor(data, TensorDesc(desc.data_type, cache._shape)))
        return tensors


class _DescOnly:
    """For the checks that read a cache's description."""

    def __init__(self, desc: CacheDesc) -> None:
        self.cache_desc = desc


class CacheManager(_Manager):
    """Caches and transfers of v2 mode: `LLMDataDist.cache_manager`.

    The caller registers memory of its own; any side pulls and pushes.
    """

    _cache_class = Cache
    _timeout_code = LLMStatusCode.LLM_TIMEOUT

    def __init__(self, engine: _core.Engine, options: EngineOptions, role: LLMRole) -> None:
        super().__init__(engine, options, role)
        self._linked = False  # link() was called
        self._host_bytes = 0
        self._lock = threading.Lock()
        self._kinds: typing.Dict[int, str] = {}  # cache id -> "allocated", "host" or "registered"
        # Of host caches, until they are deallocated, whoever still knows them.
        self._host_memory: typing.Dict[int, mmap.mmap] = {}

    # ---- caches ----

    def register_cache(self, cache_desc: CacheDesc, addrs: typing.Sequence[int],
                       cache_keys: typing.Union[typing.Tuple[CacheKey, ...], typing.List[CacheKey]] = (),
                       remote_accessible: typing.Optional[bool] = None) -> Cache:
        """Makes memory of the caller's, one address per tensor, a cache of batch slots.

        The memory must stay until unregister_cache has returned.  Peers see the cache at once.
        """
        check_isinstance("cache_keys", cache_keys, [list, tuple], CacheKey, allow_none=False)
        return self._register(cache_desc, addrs, cache_keys, remote_accessible, False)

    def register_blocks_cache(self, cache_desc: CacheDesc, addrs: typing.Sequence[int],
                              blocks_cache_key: typing.Optional[BlocksCacheKey] = None,
                              remote_accessible: typing.Optional[bool] = None) -> Cache:
        """As register_cache, for a cache of cache_desc.shape[0] blocks."""
        check_isinstance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
        return self._register(cache_desc, addrs, [blocks_cache_key] if blocks_cache_key else [],
                              remote_accessible, True)

    # The names of the C library.
    register_kv_cache = register_cache

    def _register(self, desc: CacheDesc, addrs: typing.Sequence[int],
                  keys: typing.Sequence[typing.Any], remote_accessible: typing.Optional[bool],
                  is_blocks: bool) -> Cache:
        check_isinstance("cache_desc", desc, CacheDesc, allow_none=False)
        check_isinstance("addrs", addrs, [list, tuple], int, allow_none=False)
        check_isinstance("remote_accessible", remote_accessible, bool)
        self._check_alive()
        for addr in addrs:
            check_uint64("addrs", addr)
        raise_if_false(len(addrs) == desc.num_tensors, "there are {} addrs for {} tensors",
                       len(addrs), desc.num_tensors)
        raise_if_false(all(addrs), "an address must not be 0")
        raise_if_true(remote_accessible and self._linked,
                      "remote_accessible can't be True after link")
        native = self._engine.register(desc.num_tensors, desc.shape, desc.data_type.value,
                                       int(desc.placement), addrs)
        self._bind("register_blocks_cache" if is_blocks else "register_cache", native, keys,
                   self._engine.unregister)
        return self._made(Cache(desc, native, is_blocks, self), "registered")

    def _made(self, cache: Cache, kind: str) -> Cache:
        with self._lock:
            self._kinds[cache.cache_id] = kind
        return cache

    def unregister_cache(self, cache_id: int) -> None:
        """Ends a registration and its keys; then the memory is the caller's alone.  Links may stand."""
        check_int64("cache_id", cache_id)
        self._check_alive()
        self._end_aliases(cache_id)
        self._engine.unregister(cache_id)
        with self._lock:
            self._kinds.pop(cache_id, None)

    def allocate_cache(self, cache_desc: CacheDesc,
                       cache_keys: typing.Union[typing.Tuple[CacheKey, ...], typing.List[CacheKey]] = ()
                       ) -> Cache:
        """Allocates a cache of batch slots from the pool of llm.MemPoolConfig (device) or
        llm.HostMemPoolConfig (host)."""
        check_isinstance("cache_desc", cache_desc, CacheDesc, allow_none=False)
        check_isinstance("cache_keys", cache_keys, [list, tuple], CacheKey, allow_none=False)
        return self._allocate(cache_desc, cache_keys, False)

    def allocate_blocks_cache(self, cache_desc: CacheDesc,
                              blocks_cache_key: typing.Optional[BlocksCacheKey] = None) -> Cache:
        """As allocate_cache, for a cache of cache_desc.shape[0] blocks."""
        check_isinstance("cache_desc", cache_desc, CacheDesc, allow_none=False)
        check_isinstance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
        return self._allocate(cache_desc, [blocks_cache_key] if blocks_cache_key else [], True)

    def _allocate(self, desc: CacheDesc, keys: typing.Sequence[typing.Any], is_blocks: bool) -> Cache:
        self._check_alive()
        raise_if_false(desc.num_tensors > 0, "num_tensors must be more than 0")
        raise_if_false(is_blocks or not keys or len(keys) <= desc.shape[0],
                       "there are {} cache_keys for {} batch slots", len(keys), desc.shape[0])
        on_host = desc.placement == Placement.HOST
        raise_if_false(self._options.host_pool_bytes > 0 if on_host else self._options.device_pool,
                       "allocation needs {}",
                       "llm.HostMemPoolConfig" if on_host else "llm.MemPoolConfig")
        if on_host:
            return self._allocate_host(desc, keys, is_blocks)
        native = self._engine.allocate(desc.num_tensors, desc.shape, desc.data_type.value,
                                       int(desc.placement), self._options.num_devices)
        self._bind("allocate_blocks_cache" if is_blocks else "allocate_cache", native, keys,
                   self._engine.deallocate)
        return self._made(Cache(desc, native, is_blocks, self), "allocated")

    def _allocate_host(self, desc: CacheDesc, keys: typing.Sequence[typing.Any], is_blocks: bool
                       ) -> Cache:
        tensor_bytes = (desc.size + 511) // 512 * 512
        size = tensor_bytes * desc.num_tensors
        with self._lock:
            raise_if_false(self._host_bytes + size <= self._options.host_pool_bytes,
                           "the host pool of {} bytes is exhausted", self._options.host_pool_bytes,
                           status_code=LLMStatusCode.LLM_OUT_OF_MEMORY)
            self._host_bytes += size
        try:
            memory = mmap.mmap(-1, size)
            start = _core.address_of(memory)
            native = self._engine.register(
                desc.num_tensors, desc.shape, desc.data_type.value, int(desc.placement),
                [start + i * tensor_bytes for i in range(desc.num_tensors)])
            self._bind("allocate_blocks_cache" if is_blocks else "allocate_cache", native, keys,
                       self._engine.unregister)
        except BaseException:
            with self._lock:
                self._host_bytes -= size
            raise
        with self._lock:
            self._host_memory[native.cache_id] = memory
        return self._made(Cache(desc, native, is_blocks, self, memory), "host")

    def deallocate_cache(self, cache: Cache) -> None:
        """Frees a cache of batch slots that was allocated; one that was freed before stays so.

        On the device, memory that keys name is kept until the last of them was pulled or removed."""
        self._check_cache("cache", cache)
        raise_if_true(cache.is_blocks_cache, "deallocate_cache doesn't take blocks caches")
        self._deallocate(cache)

    def deallocate_blocks_cache(self, cache: Cache) -> None:
        """Frees a cache of blocks that was allocated."""
        self._check_cache("cache", cache)
        raise_if_false(cache.is_blocks_cache, "deallocate_blocks_cache takes blocks caches")
        self._deallocate(cache)

    def _hold(self, cache: _AnyCache) -> object:
        is_pools = self._kinds.get(cache.cache_id) == "allocated"
        return self._engine.hold(cache.cache_id) if is_pools else cache._memory

    def _deallocate(self, cache: Cache) -> None:
        self._check_alive()
        if cache._native is None:
            return
        cache._struct(self._engine)
        raise_if_true(self._kinds.get(cache.cache_id) in (None, "registered"),
                      "cache {} was not allocated: unregister_cache ends a registration",
                      cache.cache_id)
        self._release(cache)

    def _release(self, cache: _AnyCache) -> None:
        cache._spend()
        self._end_aliases(cache.cache_id)
        with self._lock:
            kind = self._kinds.pop(cache.cache_id, None)
            memory = self._host_memory.pop(cache.cache_id, None)
            self._host_bytes -= len(memory or ())
        if kind == "allocated":
            self._engine.deallocate(cache.cache_id)
        elif kind is not None:
            self._engine.unregister(cache.cache_id, memory)

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        """Removes a key; an unknown one is no mistake."""
        check_isinstance("cache_key", cache_key, CacheKey, allow_none=False)
        self._check_alive()
        self._engine.remove_key(native_key(cache_key))

    # ---- transfers ----

    def _check_remote(self, func: str) -> None:
        raise_if_false(self._options.remote_accessible,
                       "{} needs llm.EnableRemoteCacheAccessible to be 1", func)

    def pull_cache(self, cache_key: typing.Union[CacheKey, CacheKeyByIdAndIndex], cache: Cache,
                   batch_index: int = 0, size: int = -1, **kwargs: typing.Any) -> None:
        """Copies a batch slot of a peer's cache into slot `batch_index` of `cache`.

        size: bytes per tensor, which arrive whatever the owner's seq_len_dim_index is; -1 for the whole
        slot of `cache`.  Keywords: src_layer_range and dst_layer_range (range of layers, step 1),
        tensor_num_per_layer (2), allow_other_type (False: caches of different data types are
        LLM_PARAM_INVALID).  A CacheKey with a req_id is consumed.
        """
        classes = ([CacheKeyByIdAndIndex] if self._options.remote_accessible else
                   [CacheKey, CacheKeyByIdAndIndex])
        check_isinstance("cache_key", cache_key, classes, allow_none=False)
        self._check_cache("cache", cache)
        check_keywords("pull_cache", kwargs, _LAYER_KEYWORDS)
        self._check_alive()
        raise_if_true(cache.is_blocks_cache, "pull_cache doesn't take blocks caches")
        self._pull_cache(cache_key, cache, batch_index, size, kwargs)

    def pull_blocks(self, src_cache_key: AnyKey, dst_cache: Cache, src_blocks: Blocks = (),
                    dst_blocks: Blocks = (), **kwargs: typing.Any) -> None:
        """Copies blocks of a peer's cache into blocks of `dst_cache`.

        With `src_blocks`, block src_blocks[i] goes to dst_blocks[i]; the original takes a
        BlocksCacheKey there, and this library CacheKeyByIdAndIndex as well.  Without them the source is
        the batch slot that the key names, from its beginning on, cut into blocks.
        """
        check_isinstance("src_cache_key", src_cache_key,
                         [CacheKey, CacheKeyByIdAndIndex, BlocksCacheKey], allow_none=False)
        self._check_cache("dst_cache", dst_cache)
        check_keywords("pull_blocks", kwargs, _LAYER_KEYWORDS)
        self._check_alive()
        raise_if_false(dst_cache.is_blocks_cache, "dst_cache must be a blocks cache")
        is_contiguous = not isinstance(src_cache_key, BlocksCacheKey) and len(src_blocks) == 0
        if isinstance(src_cache_key, BlocksCacheKey):
            raise_if_false(len(src_blocks) > 0, "src_blocks is required with a BlocksCacheKey")
        if isinstance(src_cache_key, CacheKey):
            raise_if_false(is_contiguous, "src_blocks must be empty with a CacheKey")
            self._check_cache_key(src_cache_key)
        if is_contiguous:
            self._engine.transfer("pull_blocks", _core.PULL_TO_BLOCKS, dst_cache._struct(self._engine),
                                  self._locate(src_cache_key),
                                  self._param(dst_cache.cache_desc, kwargs, False), -1,
                                  _core.block_list("dst_blocks", dst_blocks))
        else:
            self._pull_blocks(src_cache_key, dst_cache, src_blocks, dst_blocks, kwargs)

    def push_cache(self, dst_cache_key: CacheKeyByIdAndIndex, src_cache: Cache,
                   src_batch_index: int = 0, src_layer_range: typing.Optional[range] = None,
                   dst_layer_range: typing.Optional[range] = None, size: int = -1,
                   tensor_num_per_layer: int = 2, allow_other_type: bool = False) -> None:
        """Copies a batch slot of `src_cache` to a slot of a peer's cache.  size must be -1."""
        check_isinstance("dst_cache_key", dst_cache_key, CacheKeyByIdAndIndex, allow_none=False)
        self._check_cache("src_cache", src_cache)
        self._check_alive()
        self._check_remote("push_cache")
        raise_if_true(src_cache.is_blocks_cache, "push_cache doesn't take blocks caches")
        self._push_cache(dst_cache_key, src_cache, src_batch_index, size,
                         {"src_layer_range": src_layer_range, "dst_layer_range": dst_layer_range,
                          "tensor_num_per_layer": tensor_num_per_layer,
                          "allow_other_type": allow_other_type})

    def push_blocks(self, dst_cache_key: typing.Union[BlocksCacheKey, CacheKeyByIdAndIndex],
                    src_cache: Cache, src_blocks: Blocks = (), dst_blocks: Blocks = (),
                    src_layer_range: typing.Optional[range] = None,
                    dst_layer_range: typing.Optional[range] = None,
                    tensor_num_per_layer: int = 2, allow_other_type: bool = False) -> None:
        """Copies blocks of `src_cache` to blocks of a peer's cache.

        CacheKeyByIdAndIndex, which the original refuses here, names the cache by its id."""
        check_isinstance("dst_cache_key", dst_cache_key, [BlocksCacheKey, CacheKeyByIdAndIndex],
                         allow_none=False)
        self._check_cache("src_cache", src_cache)
        self._check_alive()
        self._check_remote("push_blocks")
        self._push_blocks(dst_cache_key, src_cache, src_blocks, dst_blocks,
                          {"src_layer_range": src_layer_range, "dst_layer_range": dst_layer_range,
                           "tensor_num_per_layer": tensor_num_per_layer,
                           "allow_other_type": allow_other_type})

    def transfer_cache_async(
            self, src_cache: Cache, layer_synchronizer: LayerSynchronizer,
            transfer_configs: typing.Union[typing.List[typing.Any], typing.Tuple[typing.Any, ...]],
            src_block_indices: typing.Optional[Blocks] = None,
            dst_block_indices: typing.Optional[Blocks] = None,
            dst_block_memory_size: typing.Optional[int] = None) -> CacheTask:
        """Pushes layer by layer, as soon as `layer_synchronizer` says that a layer is computed.

        With `dst_block_indices` alone a batch slot is cut into blocks of `dst_block_memory_size` bytes.
        """
        kind = (TransferWithCacheKeyConfig if self._options.remote_accessible else TransferConfig)
        check_isinstance("src_cache", src_cache, Cache, allow_none=False)
        check_isinstance("layer_synchronizer", layer_synchronizer, LayerSynchronizer,
                         allow_none=False)
        check_isinstance("transfer_configs", transfer_configs, [list, tuple], kind, allow_none=False)
        self._check_alive()
        self._check_device("src_cache", src_cache)
        return self._transfer_cache_async(src_cache, layer_synchronizer, transfer_configs,
                                          src_block_indices, dst_block_indices,
                                          dst_block_memory_size)

    # ---- copies ----

    def copy_cache(self, dst: Cache, src: Cache, dst_batch_index: int = 0, src_batch_index: int = 0,
                   offset: int = 0, size: int = -1, req_id: typing.Optional[int] = None) -> None:
        """Copies a batch slot from `offset` on, between two device caches of this process."""
        self._check_cache("dst", dst)
        self._check_cache("src", src)
        self._check_alive()
        raise_if_true(dst.is_blocks_cache or src.is_blocks_cache,
                      "copy_cache doesn't take blocks caches")
        self._copy_cache(dst, src, dst_batch_index, src_batch_index, offset, size, req_id)

    def copy_blocks(self, cache: Cache, copy_block_info: typing.Dict[int, typing.List[int]]) -> None:
        """Copies blocks within a cache: {source block: [destination block, ...]}."""
        self._check_cache("cache", cache)
        self._check_alive()
        raise_if_false(cache.is_blocks_cache, "copy_blocks takes blocks caches")
        self._copy_blocks(cache, copy_block_info)

    def _check_swap(self, src: _AnyCache, dst: _AnyCache) -> None:
        raise_if_false(src._is_blocks and dst._is_blocks, "swap_blocks takes blocks caches")

    def remap_registered_memory(self, mem_infos: typing.Union[MemInfo, typing.Sequence[MemInfo]]
                                ) -> None:
        """Checks its arguments.  Host memory stays mapped: there is nothing to repair."""
        infos = [mem_infos] if isinstance(mem_infos, MemInfo) else mem_infos
        # As the original: an LLMException, though it is about the form.
        raise_if_false(isinstance(infos, (list, tuple)) and all(isinstance(one, MemInfo) for one in infos),
                       "mem_infos only support MemInfo or a list of them, but got {!r}", mem_infos)
        self._check_alive()
        for info in infos:
            raise_if_false(info.mem_type == Memtype.MEM_TYPE_DEVICE, "{} must be device memory", info)
            raise_if_false(info.addr != 0, "the address must not be 0")
            raise_if_false(info.size > 0, "the size must be more than 0")

"""Transfers layer by layer, beside the computation that fills the layers."""

import abc
import threading
import time
import typing

from ._check import check_isinstance, check_list_uint64, check_uint32, check_uint64
from ._status import LLMException, LLMStatusCode, log, raise_if_false
from ._types import BlocksCacheKey, CacheKeyByIdAndIndex


class LayerSynchronizer(abc.ABC):
    """Derive from this class: synchronize_layer waits until a layer is computed."""

    @abc.abstractmethod
    def synchronize_layer(self, layer_index: int, timeout_in_millis: typing.Optional[int]) -> bool:
        """Returns True once layer `layer_index` may be transferred, False if that will not be.

        It is called in the task's thread.  `timeout_in_millis` is always None.  What it raises fails
        the task.
        """


def check_layer_range(name: str, value: typing.Optional[range], allow_none: bool = True) -> None:
    """A range of layers: step 1, from 0 on, not empty."""
    check_isinstance(name, value, range, allow_none=allow_none)
    if value is None:
        return
    raise_if_false(value.step == 1, "{} must have step 1, but has {}", name, value.step)
    raise_if_false(0 <= value.start < value.stop, "{} {} must be a range with 0 <= start < stop",
                   name, value)


class TransferConfig:
    """Which layers go to which addresses of which cluster."""

    def __init__(self, dst_cluster_id: int, dst_addrs: typing.Sequence[int],
                 src_layer_range: typing.Optional[range] = None, src_batch_index: int = 0) -> None:
        self.dst_cluster_id = dst_cluster_id
        self.dst_addrs = dst_addrs
        self.src_layer_range = src_layer_range
        self.src_batch_index = src_batch_index

    @property
    def dst_cluster_id(self) -> int:
        """The cluster to push to."""
        return self._dst_cluster_id

    @dst_cluster_id.setter
    def dst_cluster_id(self, dst_cluster_id: int) -> None:
        check_uint64("dst_cluster_id", dst_cluster_id)
        self._dst_cluster_id = int(dst_cluster_id)

    @property
    def dst_addrs(self) -> typing.Sequence[int]:
        """Two addresses per layer, there."""
        return self._dst_addrs

    @dst_addrs.setter
    def dst_addrs(self, dst_addrs: typing.Sequence[int]) -> None:
        check_isinstance("dst_addrs", dst_addrs, [list, tuple], int, allow_none=False)
        check_list_uint64("dst_addrs", dst_addrs)
        self._dst_addrs = dst_addrs

    @property
    def src_layer_range(self) -> typing.Optional[range]:
        """The layers to push; None for all."""
        return self._src_layer_range

    @src_layer_range.setter
    def src_layer_range(self, src_layer_range: typing.Optional[range]) -> None:
        check_layer_range("src_layer_range", src_layer_range)
        self._src_layer_range = src_layer_range

    @property
    def src_batch_index(self) -> int:
        """The batch slot to push."""
        return self._src_batch_index

    @src_batch_index.setter
    def src_batch_index(self, src_batch_index: int) -> None:
        check_uint32("src_batch_index", src_batch_index)
        self._src_batch_index = int(src_batch_index)

    def __repr__(self) -> str:
        return (f"TransferConfig(dst_cluster_id={self._dst_cluster_id}, "
                f"dst_addrs={[hex(addr) for addr in self._dst_addrs]}, "
                f"src_layer_range={self._src_layer_range}, src_batch_index={self._src_batch_index})")


class TransferWithCacheKeyConfig:
    """Which layers go to which layers of which cache of a peer.

    The properties are set one by one; that they fit each other is checked here and when a task starts.
    """

    def __init__(self, cache_key: typing.Union[BlocksCacheKey, CacheKeyByIdAndIndex],
                 src_layer_range: range, dst_layer_range: range, src_batch_index: int = 0) -> None:
        self.cache_key = cache_key
        self.src_layer_range = src_layer_range
        self.dst_layer_range = dst_layer_range
        self.src_batch_index = src_batch_index
        self._check()

    def _check(self) -> None:
        raise_if_false(len(self._src_layer_range) == len(self._dst_layer_range),
                       "src_layer_range {} and dst_layer_range {} must have the same length",
                       self._src_layer_range, self._dst_layer_range)
        self._check_batch_index(self._src_batch_index)

    def _check_batch_index(self, src_batch_index: int) -> None:
        raise_if_false(not isinstance(self._cache_key, BlocksCacheKey) or src_batch_index == 0,
                       "src_batch_index must be 0 with a BlocksCacheKey")

    @property
    def cache_key(self) -> typing.Union[BlocksCacheKey, CacheKeyByIdAndIndex]:
        """The cache to push to."""
        return self._cache_key

    @cache_key.setter
    def cache_key(self, cache_key: typing.Union[BlocksCacheKey, CacheKeyByIdAndIndex]) -> None:
        check_isinstance("cache_key", cache_key, [BlocksCacheKey, CacheKeyByIdAndIndex],
                         allow_none=False)
        self._cache_key = cache_key

    @property
    def src_layer_range(self) -> range:
        """The layers to push."""
        return self._src_layer_range

    @src_layer_range.setter
    def src_layer_range(self, src_layer_range: range) -> None:
        check_layer_range("src_layer_range", src_layer_range, allow_none=False)
        self._src_layer_range = src_layer_range

    @property
    def dst_layer_range(self) -> range:
        """The layers of the destination, as many."""
        return self._dst_layer_range

    @dst_layer_range.setter
    def dst_layer_range(self, dst_layer_range: range) -> None:
        check_layer_range("dst_layer_range", dst_layer_range, allow_none=False)
        self._dst_layer_range = dst_layer_range

    @property
    def src_batch_index(self) -> int:
        """The batch slot to push; 0 with a BlocksCacheKey."""
        return self._src_batch_index

    @src_batch_index.setter
    def src_batch_index(self, src_batch_index: int) -> None:
        check_uint32("src_batch_index", src_batch_index)
        self._check_batch_index(src_batch_index)
        self._src_batch_index = int(src_batch_index)

    def __repr__(self) -> str:
        return (f"TransferWithCacheKeyConfig(cache_key={self._cache_key!r}, "
                f"src_layer_range={self._src_layer_range}, dst_layer_range={self._dst_layer_range}, "
                f"src_batch_index={self._src_batch_index})")


class Item(typing.NamedTuple):
    """One configuration, ready to run."""

    src_layers: range
    dst_layers: range
    # Pushes source layer -> destination layer; raises LLMException.
    push: typing.Callable[[int, int], None]


class CacheTask:
    """A running transfer_cache_async.  One result per configuration, in their order."""

    def __init__(self, items: typing.Sequence[Item], synchronizer: LayerSynchronizer,
                 timeout_code: LLMStatusCode, at_end: typing.Callable[[], None],
                 aliased: typing.Optional[int] = None) -> None:
        self._items = list(items)
        self._synchronizer = synchronizer
        self._timeout_code = timeout_code
        self._at_end = at_end
        self._aliased = aliased  # the cache whose memory at_end() lets go
        self._results: typing.List[typing.Optional[LLMStatusCode]] = [None] * len(self._items)
        self._exception: typing.Optional[BaseException] = None
        self._ended = threading.Event()
        self._pushing = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="llm-datadist-task", daemon=True)
        self._thread.start()

    @property
    def exception(self) -> typing.Optional[BaseException]:
        """What made the task fail, if something was raised."""
        return self._exception

    def __repr__(self) -> str:
        state = "ended" if self._ended.is_set() else "running"
        return f"CacheTask({len(self._items)} configurations, {state})"

    def synchronize(self, timeout_in_millis: typing.Optional[int] = None) -> LLMStatusCode:
        """Waits for the end and returns success, or the first configuration's failure.

        After `timeout_in_millis` the answer is the timeout code; the task goes on."""
        if not self._wait(timeout_in_millis):
            return self._timeout_code
        return next((code for code in self._codes() if code != LLMStatusCode.LLM_SUCCESS),
                    LLMStatusCode.LLM_SUCCESS)

    def get_results(self, timeout_in_millis: typing.Optional[int] = None
                    ) -> typing.List[LLMStatusCode]:
        """Waits as synchronize() does and returns one code per configuration."""
        if not self._wait(timeout_in_millis):
            return [self._timeout_code] * len(self._items)
        return self._codes()

    def _wait(self, timeout_in_millis: typing.Optional[int]) -> bool:
        if timeout_in_millis is None:
            return self._ended.wait()
        check_uint32("timeout_in_millis", timeout_in_millis)
        return self._ended.wait(timeout_in_millis / 1000)

    def _codes(self) -> typing.List[LLMStatusCode]:
        # What wasn't reached has failed.
        return [LLMStatusCode.LLM_FAILED if code is None else code for code in self._results]

    def _stop(self) -> None:
        """No push is running and none will begin, once this has returned."""
        with self._pushing:
            self._stopped = True

    def _run(self) -> None:
        try:
            for layer in range(max((item.src_layers.stop for item in self._items), default=0)):
                wanting = [i for i, item in enumerate(self._items) if layer in item.src_layers]
                if wanting and not self._run_layer(layer, wanting):
                    break
        except BaseException as error:  # pylint: disable=broad-except # a failure, not silence
            self._exception = error
            log.exception("transfer_cache_async failed")
        finally:
            try:
                self._at_end()
            except LLMException:
                pass  # logged
            self._ended.set()

    def _run_layer(self, layer: int, wanting: typing.List[int]) -> bool:
        try:
            ready = self._synchronizer.synchronize_layer(layer, None)
        except BaseException:
            for i in wanting:
                self._results[i] = LLMStatusCode.LLM_FAILED
            raise
        if not ready:
            log.error("synchronize_layer(%d) is not ready", layer)
            for i in wanting:
                self._results[i] = LLMStatusCode.LLM_PARAM_INVALID
            return False
        for i in wanting:
            item = self._items[i]
            try:
                with self._pushing:
                    if self._stopped:
                        return False
                    item.push(layer, item.dst_layers[layer - item.src_layers.start])
            except LLMException as error:
                self._results[i] = error.status_code
                self._exception = error
                return False
            if layer == item.src_layers[-1]:
                self._results[i] = LLMStatusCode.LLM_SUCCESS
        return True


def wait_until(deadline: float) -> float:
    """Seconds left until `deadline` of the monotonic clock, 0 when it has passed."""
    return max(0.0, deadline - time.monotonic())

"""KV caches from prefill to decode: the package of LLM-DataDist, over the C library llm-datadist.

A *prompt* process fills a cache, a *decoder* links to it and pulls blocks over:

    from llm_datadist import (BlocksCacheKey, CacheDesc, DataType, LLMClusterInfo, LLMDataDist,
                              LLMRole)

    desc = CacheDesc(num_tensors=2, shape=[8, 1024], data_type=DataType.DT_FLOAT16)

    prompt = LLMDataDist(LLMRole.PROMPT, 1)
    prompt.init({"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:26000"})
    source = prompt.kv_cache_manager.allocate_blocks_cache(desc, BlocksCacheKey(1))
    source.numpy(0)[3] = 1.5                     # zero-copy

    decoder = LLMDataDist(LLMRole.DECODER, 2)    # in another process
    decoder.init({"ge.exec.deviceId": "0"})
    cluster = LLMClusterInfo()
    cluster.remote_cluster_id = 1
    cluster.append_local_ip_info("0.0.0.0", 0)   # the system chooses
    cluster.append_remote_ip_info("127.0.0.1", 26000)
    decoder.link_clusters([cluster])
    target = decoder.kv_cache_manager.allocate_blocks_cache(desc)
    decoder.kv_cache_manager.pull_blocks(BlocksCacheKey(1), target, [3], [0])

A peer's cache is named by BlocksCacheKey, its batch slots by CacheKey (a request's key goes with the pull
that takes it, a prefix' stays), or both by the cache's id, CacheKeyByIdAndIndex.

Errors: TypeError and ValueError for an argument's form, LLMException (with status_code) for its meaning
and for what fails, RuntimeError before init.  Blocking calls release the GIL and end with Ctrl-C.
`llm_datadist.aio` has transfers and leases to await.
"""

import typing

from ._caches import Cache, KvCache
from ._config import LLMConfig, LlmConfig
from ._core import describe, version
from ._datadist import LLMDataDist
from ._managers import CacheManager
from ._status import LLMException, LLMStatusCode, Status
from ._tasks import CacheTask, LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig
from ._types import (BlocksCacheKey, CacheDesc, CacheKey, CacheKeyByIdAndIndex, DataType,
                     LLMClusterInfo, LLMRole, MemInfo, Memtype, Placement, RegisterMemStatus)

if typing.TYPE_CHECKING:
    from ._managers import KvCacheManager
    from ._tensor import Tensor, TensorDesc

__version__ = version()

__all__ = [
    "BlocksCacheKey", "Cache", "CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "CacheManager",
    "CacheTask", "DataType", "KvCache", "KvCacheManager", "LLMClusterInfo", "LLMConfig",
    "LLMDataDist", "LLMException", "LLMRole", "LLMStatusCode", "LayerSynchronizer", "LlmConfig",
    "MemInfo", "Memtype", "Placement", "RegisterMemStatus", "Status", "Tensor", "TensorDesc",
    "TransferConfig", "TransferWithCacheKeyConfig", "describe", "version",
]

# Of version 1, brought when asked for.
_ON_DEMAND = {"KvCacheManager": "_managers", "Tensor": "_tensor", "TensorDesc": "_tensor"}


def __getattr__(name: str) -> typing.Any:
    if name in _ON_DEMAND:
        import importlib
        value = getattr(importlib.import_module(f"{__name__}.{_ON_DEMAND[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"Module '{__name__}' has no attribute '{name}'")


def __dir__() -> typing.List[str]:
    return sorted(set(globals()) | set(_ON_DEMAND))

"""Caches, keys and transfers, where the original has them."""

from .._caches import Cache, KvCache
from .._tasks import CacheTask, LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig
from .._types import (BlocksCacheKey, CacheDesc, CacheKey, CacheKeyByIdAndIndex, DataType, MemInfo,
                      Memtype, Placement, RegisterMemStatus)

__all__ = ["BlocksCacheKey", "Cache", "CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "CacheTask",
           "DataType", "KvCache", "LayerSynchronizer", "MemInfo", "Memtype", "Placement",
           "RegisterMemStatus", "TransferConfig", "TransferWithCacheKeyConfig"]

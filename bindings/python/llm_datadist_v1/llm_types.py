"""Caches, keys and transfers, where version 1 has them."""

from llm_datadist.v2.llm_types import (BlocksCacheKey, CacheDesc, CacheKey, CacheKeyByIdAndIndex,
                                       CacheTask, DataType, KvCache, LayerSynchronizer, MemInfo,
                                       Memtype, Placement, RegisterMemStatus, TransferConfig,
                                       TransferWithCacheKeyConfig)

__all__ = ["BlocksCacheKey", "CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "CacheTask", "DataType",
           "KvCache", "LayerSynchronizer", "MemInfo", "Memtype", "Placement", "RegisterMemStatus",
           "TransferConfig", "TransferWithCacheKeyConfig"]

"""The names of version 1, which are those of llm_datadist."""

from llm_datadist import (BlocksCacheKey, CacheDesc, CacheKey, CacheKeyByIdAndIndex, CacheTask,
                          DataType, KvCache, KvCacheManager, LLMClusterInfo, LLMConfig, LLMDataDist,
                          LLMException, LLMRole, LLMStatusCode, LayerSynchronizer, LlmConfig, MemInfo,
                          Memtype, Placement, RegisterMemStatus, Status, Tensor, TensorDesc,
                          TransferConfig, TransferWithCacheKeyConfig)

__all__ = [
    "BlocksCacheKey", "CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "CacheTask", "DataType",
    "KvCache", "KvCacheManager", "LLMClusterInfo", "LLMConfig", "LLMDataDist", "LLMException",
    "LLMRole", "LLMStatusCode", "LayerSynchronizer", "LlmConfig", "MemInfo", "Memtype", "Placement",
    "RegisterMemStatus", "Status", "Tensor", "TensorDesc", "TransferConfig",
    "TransferWithCacheKeyConfig",
]

"""KvCacheManager, where version 1 has it."""

from llm_datadist import KvCacheManager

__all__ = ["KvCacheManager"]

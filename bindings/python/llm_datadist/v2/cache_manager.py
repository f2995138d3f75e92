"""CacheManager, where the original has it."""

from .._managers import CacheManager

__all__ = ["CacheManager"]

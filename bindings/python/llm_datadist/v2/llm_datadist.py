"""LLMDataDist, where the original has it."""

from .._datadist import LLMDataDist

__all__ = ["LLMDataDist"]

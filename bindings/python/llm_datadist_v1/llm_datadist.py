"""LLMDataDist, where version 1 has it."""

from llm_datadist import LLMDataDist

__all__ = ["LLMDataDist"]

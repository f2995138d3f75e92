"""Statuses, where version 1 has them."""

from llm_datadist.status import LLMException, LLMStatusCode, Status

__all__ = ["LLMException", "LLMStatusCode", "Status"]

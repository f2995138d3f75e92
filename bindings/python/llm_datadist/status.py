"""Statuses, where the original has them."""

from ._status import LLMException, LLMStatusCode, Status

__all__ = ["LLMException", "LLMStatusCode", "Status"]

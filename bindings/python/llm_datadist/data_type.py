"""DataType, where the original has it."""

from ._types import DataType

__all__ = ["DataType"]

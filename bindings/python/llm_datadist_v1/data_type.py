"""DataType, where version 1 has it."""

from llm_datadist.data_type import DataType

__all__ = ["DataType"]

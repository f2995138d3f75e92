"""Tensor and TensorDesc, where version 1 has them."""

from llm_datadist import Tensor, TensorDesc

__all__ = ["Tensor", "TensorDesc"]

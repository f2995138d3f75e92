"""Configuration, where the original has it."""

from ._config import LLMConfig, LlmConfig
from ._types import LLMClusterInfo, LLMRole

__all__ = ["LLMClusterInfo", "LLMConfig", "LLMRole", "LlmConfig"]

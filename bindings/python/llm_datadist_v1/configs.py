"""Configuration, where version 1 has it."""

from llm_datadist.configs import LLMClusterInfo, LLMConfig, LLMRole, LlmConfig

__all__ = ["LLMClusterInfo", "LLMConfig", "LLMRole", "LlmConfig"]

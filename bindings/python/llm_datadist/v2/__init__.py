"""Modules of version 2, where the original has them."""

"""The original's package of helpers; see utils.utils."""

"""Version 1's package of helpers; see utils.utils."""

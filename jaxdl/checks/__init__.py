"""The checks of `check`, each a function of a `Subject`: see check.py."""

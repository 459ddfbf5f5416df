"""Sojourn: a managed agent runtime that you host yourself.

The rooms and their one direction are drawn in docs/ARCHITECTURE.md; `sojourn.loop` is pure and can be imported alone.
"""

__version__ = "0.1.0"

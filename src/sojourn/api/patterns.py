"""What ids, names and digests look like. Used by the shapes of requests, and by `route` for the parts of a path.

The rule: what a request holds is matched as a whole; `$` would let one newline pass.
"""

ID = "[0-9A-Za-z]{16,40}"
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
DIGEST = "sha256:[0-9a-f]{64}"


def whole(pattern: str) -> str:
    """Write a pattern of a text that is this and nothing else, as JSON Schema and Python both read it."""
    return rf"^{pattern}(?![\s\S])"

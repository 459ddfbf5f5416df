"""What ids, names and digests look like. Used by the shapes of requests, and by `route` for the parts of a path.

The rule: what a request holds is matched as a `whole`; `$` would let one newline pass.
"""

from sojourn.loop.moving.document import DIGEST, ISSUER, whole

__all__ = ["DIGEST", "ID", "ISSUER", "NAME", "whole"]

ID = "[0-9A-Za-z]{16,40}"
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

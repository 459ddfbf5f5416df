"""What a user may be called. Called by `issuers`, and by the API for its keys.

The rule: a name is of printable characters only, so none looks like another one or hides what stands beside it; and
without `|`, which stands between the fields of what is signed.
"""

import re

PATTERN = r"[^|\x00-\x1f\x7f]{1,200}"
"""What a pattern can say of it."""


def is_user(name: str) -> bool:
    """Say whether a user may be called so."""
    return re.fullmatch(PATTERN, name) is not None and name.isprintable()

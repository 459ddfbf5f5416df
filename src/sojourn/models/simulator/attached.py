"""Images and files in a request: checked as the providers do, and put into words for scripts.

Both dialects read their parts with it. The rule: what is no picture, or another than it says, is refused, because that
is what the real endpoints do.
"""

import re
from base64 import b64decode
from hashlib import sha256

BEGINNINGS = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "application/pdf": re.compile(rb"%PDF-"),
}
_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,(.*)", re.DOTALL)


def apart(url: str) -> tuple[str, str] | None:
    """Take a data URL apart into its media type and its base64; None for any other."""
    found = _DATA_URL.fullmatch(url)
    return (found[1], found[2]) if found else None


def described(media_type: str, encoded: str) -> str:
    """Say what an attachment is: `image/png 70 bytes sha256:c0ffee012345`. Raises ValueError for one that is none."""
    data = b64decode(encoded, validate=True)
    if not BEGINNINGS[media_type].match(data):
        raise ValueError(f"it does not begin as {media_type} does")
    return f"{media_type} {len(data)} bytes sha256:{sha256(data).hexdigest()[:12]}"

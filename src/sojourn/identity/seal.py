"""Signatures of exports: Ed25519, with keys and signatures as text. Called by the API.

The rule: a text is one spelling of its bytes, so that not a bit of it can be changed and still be good.
"""

import base64

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sojourn.errors import BadSeal

MARK = "ed25519:"
KEY_BYTES, SIGNATURE_BYTES = 32, 64


def new() -> tuple[str, bytes]:
    """Make a key: its public half as an issuer, and its secret half."""
    key = Ed25519PrivateKey.generate()
    return issuer(key.private_bytes_raw()), key.private_bytes_raw()


def issuer(secret: bytes) -> str:
    """The issuer whose secret half this is."""
    return MARK + _text(Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())


def sign(secret: bytes, data: bytes) -> str:
    """Sign bytes."""
    return _text(Ed25519PrivateKey.from_private_bytes(secret).sign(data))


def verify(issuer: str, sig: str, data: bytes) -> None:
    """Raise BadSeal unless the issuer signed exactly these bytes."""
    try:
        if not issuer.startswith(MARK):
            raise ValueError(issuer)
        key = Ed25519PublicKey.from_public_bytes(_bytes(issuer.removeprefix(MARK), KEY_BYTES))
        key.verify(_bytes(sig, SIGNATURE_BYTES), data)
    except (ValueError, InvalidSignature):
        raise BadSeal("The signature does not fit: the export was changed, or signed by somebody else.") from None


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str, length: int) -> bytes:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if len(data) != length or _text(data) != text:
        raise ValueError(text)
    return data

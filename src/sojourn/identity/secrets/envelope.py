"""Sealing: AES-256-GCM under a key, bound to what the value is. Called by `vault` and `rotation`.

The rule: a sealed value opens only under its key and for what it was sealed for, so a row that is moved to another
name, version or tenant opens nowhere.
"""

import os
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sojourn.errors import Unavailable
from sojourn.identity.secrets.roots import RootKeys
from sojourn.store.vault.sealed import Wrapped

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16


def seal(key: bytes, value: bytes, *bound: str) -> bytes:
    """Seal a value for what it is: a random nonce, the ciphertext and its tag.

    One key seals far fewer than 2**32 values, which is what random nonces allow. Source: NIST SP 800-38D, 8.3.
    """
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, value, _bound(bound))


def opened(key: bytes, sealed: bytes, *bound: str) -> bytes:
    """Open what was sealed for the same. Raises Unavailable where it was not, or was changed."""
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound(bound))
    except (InvalidTag, ValueError):
        raise Unavailable(
            "A secret of this installation does not open: the database was changed. Restore it from a backup, or put "
            "the secret in anew.",
            code="vault.damaged",
        ) from None


def wrap(roots: RootKeys, root: str, key: bytes, *, tenant: str, key_id: str) -> Wrapped:
    """Wrap a tenant's data key with a root key. Raises Unavailable without that."""
    return Wrapped(tenant, key_id, root, seal(roots.key(root), key, "data_key", tenant, key_id, root))


def unwrapped(roots: RootKeys, key: Wrapped) -> bytes:
    """The data key itself. Raises Unavailable without its root key."""
    return opened(roots.key(key.root_key), key.wrapped, "data_key", key.tenant, key.id, key.root_key)


def new_key(roots: RootKeys, root: str, tenant: str) -> tuple[Wrapped, bytes]:
    """Make up a data key: as it is kept, and itself."""
    key = secrets.token_bytes(KEY_BYTES)
    return wrap(roots, root, key, tenant=tenant, key_id=f"dk_{secrets.token_hex(10)}"), key


def _bound(words: tuple[str, ...]) -> bytes:
    """No two lists of words give the same bytes."""
    return b"".join(len(word.encode()).to_bytes(4) + word.encode() for word in words)

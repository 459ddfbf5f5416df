"""The root keys of a process: 32 bytes each, from the environment or a file. Called by the vault and the start.

The rules: a key is named by a hash of it, which tells nothing of it, and no message or log holds more. The file is read
again when a key is asked for that was not in it, so a rotation needs no restart.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from sojourn.errors import Invalid, Unavailable

KEY_BYTES, ID_CHARS = 32, 16


class RootKeys:
    """The root keys at hand."""

    def __init__(self, given: str, path: Path) -> None:
        """`given` is what the environment says, in base64 with commas between, and wins over the file at `path`.

        Raises Invalid where one of them is no key.
        """
        self.path = None if given else path
        self._keys = parsed(given, "SOJOURN_ROOT_KEY") if given else read(path)

    @property
    def ids(self) -> tuple[str, ...]:
        """The keys at hand by id, in the order in which they were given."""
        return tuple(self._keys)

    def has(self, root: str) -> bool:
        """Say whether a key is at hand, in the file as it is now."""
        if root not in self._keys and self.path is not None:
            with suppress(Invalid):  # somebody is writing it
                self._keys = {**read(self.path), **self._keys}
        return root in self._keys

    def key(self, root: str) -> bytes:
        """A key by its id. Raises Unavailable, naming it, where it is not at hand."""
        if not self.has(root):
            raise Unavailable(
                f"The root key {root} is wanted, and is not here. Give it to every API process: {self.where}.",
                code="vault.root_key",
            )
        return self._keys[root]

    @property
    def where(self) -> str:
        """Where a missing key belongs."""
        return f"in the file {self.path}" if self.path else "in SOJOURN_ROOT_KEY"

    def mac(self, root: str, digest: bytes) -> bytes:
        """Vouch for a digest, with a key that is made of the root key for nothing else. Raises Unavailable."""
        derived = hmac.digest(self.key(root), b"sojourn backup", "sha256")
        return hmac.digest(derived, digest, "sha256")


def root_id(key: bytes) -> str:
    """The name of a root key."""
    return hashlib.sha256(b"sojourn root key" + key).hexdigest()[:ID_CHARS]


def read(path: Path) -> dict[str, bytes]:
    """The keys in a file, one a line; none where there is no file. Raises Invalid."""
    try:
        return parsed(path.read_text().replace("\n", ","), str(path))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "it is no text")
        raise Invalid(f"The root key file {path} cannot be read: {reason}.", code="settings.root_key") from None


def parsed(text: str, where: str) -> dict[str, bytes]:
    """Read keys in base64 with commas between. Raises Invalid, without what it read."""
    found = {}
    for word in filter(None, map(str.strip, text.split(","))):
        try:
            key = base64.b64decode(word, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise Invalid(
                f"A root key in {where} is not 32 bytes in base64. `openssl rand -base64 32` makes one.",
                code="settings.root_key",
            )
        found[root_id(key)] = key
    return found


def make(path: Path) -> str:
    """Make a file with a new key that only its owner can read, unless there is one; give its first key's id."""
    if not read(path):
        write(path, secrets.token_bytes(KEY_BYTES), replace=False)
    return next(iter(read(path)))


def write(path: Path, *keys: bytes, replace: bool = True) -> None:
    """Write keys into a file that only its owner can read, whole or not at all; `replace` what is there, or keep it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, mode="wb") as draft:
        draft.write(b"".join(base64.b64encode(key) + b"\n" for key in keys))
        draft.flush()
        os.fsync(draft.fileno())
        if replace:
            fresh = Path(f"{draft.name}.new")
            fresh.hardlink_to(draft.name)
            fresh.replace(path)
            return
        try:
            path.hardlink_to(draft.name)
        except FileExistsError:
            return  # somebody else was first

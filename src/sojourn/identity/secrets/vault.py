"""The secrets of tenants, sealed in the database and opened here. Called by the API; the start makes it by `unlocked`.

    put, get, rotate     a value by name and version, in the scope of the caller's handle
    signing_key, ...     the key that the tenant signs exports with

The rules: a value is open only in the memory of an API process, for as long as it is used; workers, sandboxes and
models have no root key, and nothing that they say leads here. Whose secret it is, the database says and not the caller.
"""

from sojourn.errors import Invalid, Unavailable
from sojourn.identity import seal
from sojourn.identity.secrets import envelope
from sojourn.identity.secrets.roots import RootKeys, make
from sojourn.store.db import Connection, Database
from sojourn.store.tenant import issuers
from sojourn.store.tenant.issuers import Pair
from sojourn.store.vault import roots as kept_roots
from sojourn.store.vault import sealed
from sojourn.store.vault.sealed import Secret, Signing, Wrapped

VALUE_BYTES_MAX = 64 << 10


class Vault:
    """The vault of one process, which may have no root key; then it keeps nothing."""

    def __init__(self, roots: RootKeys) -> None:
        self._roots = roots

    async def put(self, conn: Connection, name: str, value: bytes) -> int:
        """Keep a value as the newest version of a secret; give its number. Raises Invalid, Unavailable."""
        if len(value) > VALUE_BYTES_MAX:
            raise Invalid(f"A secret has at most {VALUE_BYTES_MAX} bytes.")
        key = await self._data_key(conn)
        plain = envelope.unwrapped(self._roots, key)
        while True:
            version = await sealed.newest(conn, name) + 1
            ciphertext = envelope.seal(plain, value, *_secret(key, name, version))
            if await sealed.add(conn, Secret(name, version, ciphertext, key)):
                return version

    async def get(self, conn: Connection, name: str, version: int | None = None) -> bytes:
        """The value of a secret, of its newest version if none is given. Raises NotFound, Unavailable."""
        return opened(self._roots, await sealed.get(conn, name, version))

    async def rotate(self, conn: Connection, name: str, value: bytes) -> int:
        """Keep another value, and of those before only the last, for whoever is still using it. Raises as `put`."""
        version = await self.put(conn, name, value)
        await sealed.forget(conn, name, before=version - 1)
        return version

    async def signing_key(self, conn: Connection) -> Pair:
        """The key that the tenant signs with, made at the first use. Raises Forbidden, Unavailable."""
        found = await sealed.signing(conn)
        if found is None and await kept_roots.current(conn) is None:
            return await issuers.sealing(conn, seal.new())
        if found is None:
            issuer, secret = seal.new()
            key = await self._data_key(conn)
            await sealed.offer_signing(conn, issuer, self._sealed(key, issuer, secret), key)
            found = await sealed.signing(conn)
        assert found is not None
        return found.issuer, signing_secret(self._roots, found)

    async def rotate_signing_key(self, conn: Connection) -> None:
        """Sign with another key from now on. Raises Forbidden without admin:keys, and Unavailable."""
        issuer, secret = seal.new()
        if await kept_roots.current(conn) is None:
            await issuers.rotate(conn, (issuer, secret))
            return
        key = await self._data_key(conn)
        await sealed.rotate_signing(conn, issuer, self._sealed(key, issuer, secret), key)

    async def _data_key(self, conn: Connection) -> Wrapped:
        """The tenant's current data key, made at the first use. Raises Unavailable."""
        if found := await sealed.data_key(conn):
            return found
        root = await kept_roots.current(conn)
        if root is None:
            raise Unavailable(
                "There is no root key, so no secret can be kept. Give one to every API process: docs/operate/keys.md.",
                code="vault.root_key",
            )
        return await sealed.offer(conn, envelope.new_key(self._roots, root, await sealed.tenant(conn))[0])

    def _sealed(self, key: Wrapped, issuer: str, secret: bytes) -> bytes:
        return sealed_signing(envelope.unwrapped(self._roots, key), key, issuer, secret)


def opened(roots: RootKeys, secret: Secret) -> bytes:
    """The value of a secret."""
    plain = envelope.unwrapped(roots, secret.under)
    return envelope.opened(plain, secret.sealed, *_secret(secret.under, secret.name, secret.version))


def resealed(secret: Secret, value: bytes, key: Wrapped, plain: bytes) -> Secret:
    """The same version of a secret under another data key."""
    ciphertext = envelope.seal(plain, value, *_secret(key, secret.name, secret.version))
    return Secret(secret.name, secret.version, ciphertext, key)


def signing_secret(roots: RootKeys, found: Signing) -> bytes:
    """The secret half of a signing key."""
    if found.plain is not None:
        return found.plain
    assert found.sealed is not None and found.under is not None
    plain = envelope.unwrapped(roots, found.under)
    return envelope.opened(plain, found.sealed, "seal_key", found.tenant, found.issuer, found.under.id)


def sealed_signing(plain: bytes, key: Wrapped, issuer: str, secret: bytes) -> bytes:
    """A signing key's secret half as it is kept."""
    return envelope.seal(plain, secret, "seal_key", key.tenant, issuer, key.id)


def _secret(key: Wrapped, name: str, version: int) -> tuple[str, ...]:
    return "secret", key.tenant, name, str(version), key.id


async def unlocked(database: Database, roots: RootKeys, *, may_make: bool) -> Vault:
    """The vault of a process that starts: its root keys are those that the database wants, or the first ones.

    Without any root key one is made where it `may_make` one. Raises Invalid, naming the key that is missing.
    """
    if (await kept_roots.read(database)).current is None:
        if not roots.ids and may_make and roots.path is not None:
            roots.has(make(roots.path))
        if roots.ids:
            await kept_roots.register(database, roots.ids[0])
    if missing := missing_in(roots, await kept_roots.read(database)):
        raise Invalid(missing, code="settings.root_key")
    return Vault(roots)


def missing_in(roots: RootKeys, known: kept_roots.Roots) -> str:
    """Say which root key is wanted and not at hand, and where it belongs; empty where all are there."""
    missing = [root for root in known.wanted if not roots.has(root)]
    if not missing:
        return ""
    have = f"the one here is {roots.ids[0]}" if roots.ids else "there is none here"
    return (
        f"This installation's secrets are under the root key {missing[0]}, and {have}. Put that key {roots.where}, in "
        "base64. If it is lost for good: `sojourn keys rotate --help` says what --lost does."
    )

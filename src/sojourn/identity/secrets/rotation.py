"""Renewing the keys of an installation, step by step. Called by `sojourn keys rotate`.

The rule: whatever is sealed opens at every moment, for processes that know the old root key and for the others.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec

from sojourn.errors import Invalid
from sojourn.identity import seal
from sojourn.identity.secrets import envelope, roots, vault
from sojourn.identity.secrets.roots import RootKeys
from sojourn.store.audit.operator import operating
from sojourn.store.db import Connection
from sojourn.store.vault import rotation
from sojourn.store.vault.roots import Roots
from sojourn.store.vault.sealed import Signing


class Done(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step that is done."""

    what: str
    """scope, hooks, data, signing, root, wrapped, lost or swept."""
    id: str = ""
    """The new key's id; a signing key's is its public half."""
    tenant: str = ""
    count: int = 0
    """How many secrets were sealed anew, or keys wrapped anew or taken away."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be renewed."""

    scope: bool = False
    hooks: bool = False
    data: bool = False
    signing: tuple[str, ...] | None = None
    """The tenants whose signing keys; None is no tenant, () is all that have one."""
    root: Path | None = None
    lost: bool = False
    overlap: timedelta = timedelta(days=1)
    by: str = "setup"
    """Who wants it, for the audit log."""


async def renew(conn: Connection, keys: RootKeys, known: Roots, wanted: Wanted) -> AsyncIterator[Done]:
    """Do one step after the other, each whole. Raises NotFound, Invalid, Unavailable."""
    if wanted.scope:
        yield Done("scope", await rotation.scope(conn, by=wanted.by))
    if wanted.hooks:
        yield Done("hooks", await rotation.hooks(conn, wanted.overlap, by=wanted.by))
    root = known.current
    if wanted.root is not None:
        async for done in _root(conn, keys, wanted.root, lost=wanted.lost, by=wanted.by):
            root = done.id or root
            yield done
    tenants = await rotation.tenants(conn)
    if wanted.data and root is not None:
        for tenant in tenants:
            yield await _data(conn, keys, tenant, root, by=wanted.by)
    for tenant in await _signers(conn, tenants, wanted.signing):
        yield await _signing(conn, keys, tenant, root, by=wanted.by)
    if gone := await rotation.sweep(conn):
        yield Done("swept", count=gone)


async def _signers(conn: Connection, tenants: list[str], named: tuple[str, ...] | None) -> list[str]:
    """Whose signing keys are renewed."""
    if named is None or named:
        return list(named or ())
    async with operating(conn):
        return [tenant for tenant in tenants if await rotation.signing(conn, tenant)]


async def _data(conn: Connection, keys: RootKeys, tenant: str, root: str, *, by: str) -> Done:
    """Give a tenant a new data key, and seal all that it has under it."""
    key, plain = envelope.new_key(keys, root, tenant)
    count = 0
    async with operating(conn):
        await rotation.renew(conn, key)
        async for secret in rotation.secrets(conn, key):
            await rotation.reseal(conn, vault.resealed(secret, vault.opened(keys, secret), key, plain))
            count += 1
        if found := await rotation.signing(conn, tenant):
            half = vault.signing_secret(keys, found)
            await rotation.reseal_signing(conn, found.issuer, vault.sealed_signing(plain, key, found.issuer, half), key)
            count += 1
        await rotation.told(conn, "data_key.rotate", key.id, tenant=tenant, by=by)
    return Done("data", key.id, tenant, count)


async def _signing(conn: Connection, keys: RootKeys, tenant: str, root: str | None, *, by: str) -> Done:
    """Let a tenant sign exports with a new key."""
    issuer, half = seal.new()
    async with operating(conn):
        await rotation.exists(conn, tenant)
        key = await rotation.data_key(conn, tenant)
        if root is not None and key is None:
            key, _ = envelope.new_key(keys, root, tenant)
            await rotation.renew(conn, key)
        if key is None:
            new = Signing(tenant, issuer, half, None, None)
        else:
            sealed = vault.sealed_signing(envelope.unwrapped(keys, key), key, issuer, half)
            new = Signing(tenant, issuer, None, sealed, key)
        await rotation.sign_with(conn, new)
        await rotation.told(conn, "seal.rotate", issuer, tenant=tenant, by=by)
    return Done("signing", issuer, tenant)


def _add(path: Path, file: Path) -> None:
    """Put the keys of another file in front of those in a file. Raises Invalid where it cannot be written."""
    there = roots.read(path)
    more = {root: key for root, key in roots.read(file).items() if root not in there}
    try:
        if more:
            roots.write(path, *more.values(), *there.values())
    except OSError as error:
        raise Invalid(
            f"{path} cannot be written ({error.strerror}). Put the key of {file} into it, for every API process, and "
            "run this again.",
            code="settings.root_key",
        ) from None


async def _root(conn: Connection, keys: RootKeys, file: Path, *, lost: bool, by: str) -> AsyncIterator[Done]:
    """Put everything under another root key, which every process that opens secrets must have, too."""
    fresh = roots.make(file)
    if keys.path is None:
        if not keys.has(fresh):
            raise Invalid(
                f"The API's root keys are in SOJOURN_ROOT_KEY, and {fresh} is not among them. Add it there, for every "
                "API process and for this command, restart them one by one, and run this again.",
                code="settings.root_key",
            )
    else:
        _add(keys.path, file)
        keys.key(fresh)
    if lost:
        async with operating(conn):
            await rotation.give_up(conn)
            await rotation.told(conn, "root_key.give_up", fresh, by=by)
        yield Done("lost")
    async with operating(conn):
        await rotation.begin_root(conn, fresh)
        await rotation.told(conn, "root_key.rotate", fresh, by=by)
    yield Done("root", fresh)
    for tenant in await rotation.tenants(conn):
        async with operating(conn):
            older = await rotation.older_keys(conn, tenant, fresh)
            for key in older:
                plain = envelope.unwrapped(keys, key)
                await rotation.rewrap(conn, envelope.wrap(keys, fresh, plain, tenant=tenant, key_id=key.id))
        yield Done("wrapped", fresh, tenant, len(older))

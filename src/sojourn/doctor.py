"""What of Sojourn works on this machine, what not, and why. `sojourn doctor` prints it.

The rule: every part is really tried, each finding stands alone, and none says more of a key than whether there is one.
"""

import os
import platform
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from sojourn import __version__
from sojourn.errors import Invalid, SojournError, StoreUnavailable
from sojourn.guardrails.rules import Judge, decode
from sojourn.identity.issuers import Issuer
from sojourn.identity.jwks import KeySet
from sojourn.identity.secrets.vault import missing_in
from sojourn.settings import Settings
from sojourn.store import guardrails, health, migrate
from sojourn.store.db import Database
from sojourn.store.retention import sizes
from sojourn.store.vault import roots
from sojourn.wiring import open_database, open_sandboxes, root_keys

DISK_FREE_BYTES_MIN = 1 << 30


class Finding(msgspec.Struct, frozen=True):
    """One thing that was tried. `ok` is None where it is missing but not needed."""

    name: str
    ok: bool | None
    detail: str
    hint: str = ""


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Try every part, one after the other."""
    yield Finding("version", True, f"sojourn {__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield _data_folder(settings.data_path)
    yield _address(settings)
    async for finding in _database(settings):
        yield finding
    for finding in await _sandbox(settings):
        yield finding
    for endpoint in settings.endpoints:
        keys, needed = len(endpoint.keys), endpoint.key_required
        detail = f"{endpoint.base_url}, {keys} key{'s' * (keys != 1)}"
        hint = f"Set {endpoint.key_env} to use {endpoint.name}:* models." if needed and not keys else ""
        yield Finding(f"model provider {endpoint.name}", None if hint else True, detail, hint)
    for name, table in settings.issuers.items():
        yield await issuer(name, table)


def _data_folder(path: Path) -> Finding:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Finding("data folder", False, f"{path}: {error.strerror}", "Set SOJOURN_DATA_DIR to a folder of yours.")
    mode, mine = path.stat().st_mode & 0o777, os.access(path, os.W_OK)
    detail = f"{path}, mode {mode:o}, {free >> 30} GiB free"
    if not mine:
        return Finding("data folder", False, detail, "It cannot be written by this user.")
    if free < DISK_FREE_BYTES_MIN:
        return Finding("data folder", False, detail, "Free some space, or set SOJOURN_DATA_DIR to another disk.")
    return Finding("data folder", True, detail)


def _address(settings: Settings) -> Finding:
    """Whether the API could listen now; a Sojourn that listens there already is no trouble."""
    where = f"{settings.host}:{settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((settings.host, settings.port))
        except OSError as error:
            hint = "Another program listens there, perhaps a Sojourn; SOJOURN_PORT names another port."
            return Finding("address", None, f"{where}: {error.strerror}", hint)
    return Finding("address", True, f"{where} is free")


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    """Whether it answers, how far its schema is, and whether the walls between tenants stand."""
    kind = "SOJOURN_DATABASE_URL" if settings.database_url else "embedded"
    try:
        async with open_database(replace(settings, database_wait_s=0.0)) as database:
            async with database.api() as connection:
                version = connection.get_server_version()
            yield Finding("database", True, f"PostgreSQL {version.major}.{version.micro}, {kind}")
            yield await _schema(database)
            for finding in _walls(await health.walls(database)):
                yield finding
            if not await migrate.pending(database):
                yield await _root_key(database, settings)
                if (judges := await _judges(database, settings)) is not None:
                    yield judges
                yield await _sizes(database, settings)
    except SojournError as error:
        yield Finding("database", False, f"{kind}: {error}")


async def _schema(database: Database) -> Finding:
    """How far the migrations are."""
    try:
        missing = await migrate.pending(database)
    except StoreUnavailable as error:
        return Finding("database schema", False, str(error))
    known = len(migrate.load())
    detail = f"{known - len(missing)} of {known} migrations applied"
    if missing:
        return Finding("database schema", None, detail, "`sojourn serve` applies the rest.")
    return Finding("database schema", True, detail)


async def _root_key(database: Database, settings: Settings) -> Finding:
    """Whether the root keys are here that the database wants; a worker does without."""
    try:
        keys = root_keys(settings)
    except Invalid as error:
        return Finding("root key", False, str(error))
    known = await roots.read(database)
    if missing := missing_in(keys, known):
        return Finding(
            "root key", None, missing, "`sojourn serve` does not start here without it; a worker needs none."
        )
    if known.current is None:
        hint = "`sojourn keys rotate --root FILE` makes one: docs/operate/keys.md."
        return Finding("root key", None, "there is none, so tenants' signing keys are not sealed", hint)
    detail = f"{known.current}, {keys.where.removeprefix('in ')}"
    if keys.path is not None and keys.path.stat().st_mode & 0o077:
        return Finding("root key", None, detail, f"Others can read it: chmod 600 {keys.path}")
    hint = f"{known.plain} signing keys are not sealed: `sojourn keys rotate --data` seals them." if known.plain else ""
    return Finding("root key", None if hint else True, detail, hint)


async def _judges(database: Database, settings: Settings) -> Finding | None:
    """Whether the judges of all guardrails in force can be asked here; None where there is none."""
    _, latest = await guardrails.changes(database, None)
    asked: dict[str, str] = {}
    for one in latest:
        with suppress(msgspec.MsgspecError):  # a newer release wrote it
            rules = decode(one.spec).rules if one.spec is not None else ()
            asked |= {rule.model: f"{one.tenant}/{one.name}" for rule in rules if isinstance(rule, Judge)}
    if not asked:
        return None
    known = {endpoint.name for endpoint in settings.endpoints}
    gone = [f"{model} of {name}" for model, name in asked.items() if model.partition(":")[0] not in known]
    hint = "They let nothing pass: add the provider to the settings, or set these guardrails with another model."
    detail = f"{len(asked)} model{'s' * (len(asked) != 1)}" + (
        f"; no provider here for {', '.join(gone)}" if gone else ""
    )
    return Finding("guardrail judges", not gone, detail, hint if gone else "")


async def _sizes(database: Database, settings: Settings) -> Finding:
    """How large the largest tables are, and what is past its time."""
    tables = await sizes.tables(database)
    expired = await sizes.expired(database, kept_days=settings.runs_kept_days)
    progress = await sizes.progress(database)
    largest = ", ".join(f"{one.name} {one.bytes / 2**20:,.1f} MiB (about {one.rows:,} rows)" for one in tables[:4])
    since = f"the longest unused session since {progress.oldest_at:%Y-%m-%d}" if progress.oldest_at else "no session"
    kept = f"{settings.runs_kept_days} days" if settings.runs_kept_days else "for ever"
    whole = sum(one.bytes for one in tables) / 2**20
    detail = (
        f"{whole:,.1f} MiB: {largest}; {since}; runs are kept {kept}, or as their tenant says: "
        f"{expired:,} sessions and {progress.left:,} deleted runs wait for a worker to delete them"
    )
    return Finding("database size", True, detail)


def _walls(found: health.Walls) -> Iterator[Finding]:
    """Whether a role of ours could see what it should not, and what mends it."""
    lacking = [*(f"{name} is missing" for name in found.missing), *(f"{name} may do too much" for name in found.strong)]
    if lacking:
        mend = (
            f"An administrator runs: {found.mend_roles}" if found.strong else "`sojourn serve` makes what is missing."
        )
        yield Finding("database roles", False, ", ".join(lacking), mend)
    else:
        yield Finding("database roles", True, "owner, keyring, api and engine; none passes row level security")
    if found.logins:
        yield Finding(
            "database logins",
            None,
            f"{', '.join(found.logins)} could pass row level security",
            "Make a login that cannot, grant it sojourn_api or sojourn_engine, and name it in "
            "SOJOURN_DATABASE_URL_API and SOJOURN_DATABASE_URL_ENGINE.",
        )
    if found.open_tables:
        mend = f"Somebody changed the schema. Run as sojourn_owner: {found.mend_tables}"
        yield Finding("row level security", False, f"not forced on {', '.join(found.open_tables)}", mend)
    else:
        yield Finding("row level security", True, "forced on every table of tenants")


async def issuer(name: str, table: Issuer) -> Finding:
    """Whether the keys of an identity provider can be read, and which of its algorithms they serve."""
    source = table.source
    try:
        found = await KeySet(source, time.monotonic).read()
    except SojournError as error:
        return Finding(f"issuer {name}", False, f"{source.where}: {error}", "No token of it can be taken meanwhile.")
    served = [one for one in table.algorithms if any(key.fits(one) for key in found)]
    detail = (
        f"{source.where}, {len(found)} key{'s' * (len(found) != 1)} for {', '.join(served) or 'no algorithm of it'}"
    )
    return Finding(f"issuer {name}", bool(served), detail, "" if served else f"Set algorithms in [issuers.{name}].")


async def _sandbox(settings: Settings) -> list[Finding]:
    provider = open_sandboxes(settings)
    try:
        found = await provider.probe()
    except SojournError as error:
        return [Finding("sandbox", False, str(error))]
    finally:
        await provider.close()
    if not found.ready:
        return [Finding("sandbox", False, f"{found.provider}: {found.reason}")]
    limits = ", ".join(f"{limit} by {how}" for limit, how in found.enforced.items())
    return [
        Finding("sandbox", True, f"{found.provider}, isolation {found.isolation.name.lower()}"),
        Finding("sandbox limits", True, limits),
    ]

"""What of Sojourn works on this machine, what not, and why. `sojourn doctor` prints it.

The rule: every part is really tried, each finding stands alone, and none says more of a key than whether there is one.
"""

import os
import platform
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from sojourn import __version__
from sojourn.errors import SojournError
from sojourn.settings import Settings
from sojourn.wiring import open_database, open_sandboxes

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
    yield await _database(settings)
    for finding in await _sandbox(settings):
        yield finding
    for endpoint in settings.endpoints:
        keys, needed = len(endpoint.keys), endpoint.key_required
        detail = f"{endpoint.base_url}, {keys} key{'s' * (keys != 1)}"
        hint = f"Set {endpoint.key_env} to use {endpoint.name}:* models." if needed and not keys else ""
        yield Finding(f"model provider {endpoint.name}", None if hint else True, detail, hint)


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


async def _database(settings: Settings) -> Finding:
    kind = "SOJOURN_DATABASE_URL" if settings.database_url else "embedded"
    try:
        async with open_database(settings) as database, database.api() as connection:
            version = connection.get_server_version()
            return Finding("database", True, f"PostgreSQL {version.major}.{version.minor}, {kind}")
    except SojournError as error:
        return Finding("database", False, f"{kind}: {error}")


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

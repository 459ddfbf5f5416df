"""Builds every adapter from the settings: the only file that knows them all. The command line calls it.

    serve   the API, and a worker in the same process unless told otherwise
    work    a worker alone

`doctor.py` opens single parts with it. The rule: what is built last is closed first, and a part that cannot be built
stops the start with its reason.
"""

import asyncio
import errno
import logging
import os
import pwd
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from sojourn import logs
from sojourn.api.app import build
from sojourn.api.parts import Api
from sojourn.errors import Forbidden, Invalid, NotFound, StoreUnavailable
from sojourn.guardrails.in_force import InForce
from sojourn.identity.secrets.roots import RootKeys
from sojourn.identity.secrets.vault import Vault, unlocked
from sojourn.models.endpoints import Endpoints
from sojourn.models.prices import Prices, usd
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.sandbox import Provider, Spec
from sojourn.settings import Settings
from sojourn.store import embedded
from sojourn.store.commits import Committer
from sojourn.store.db import Database, Options, connect
from sojourn.store.deltas import DeltaWriter
from sojourn.store.doorbell import Doorbell
from sojourn.store.embedded.home import home_in
from sojourn.store.migrate import migrate
from sojourn.store.roles import Dsns
from sojourn.store.sharing import limits
from sojourn.store.sharing.rates import Limit
from sojourn.store.tenant import keys
from sojourn.tools import toolbox
from sojourn.tools.tool import Toolbox
from sojourn.worker.budgets.pools import DayPools
from sojourn.worker.parts import Parts
from sojourn.worker.shutdown import Shutdown
from sojourn.worker.slots import CallSlots
from sojourn.worker.tenure import Tenure
from sojourn.worker.worker import Worker

log = logging.getLogger("sojourn.wiring")

CHANNELS = (
    "sojourn_run", "sojourn_delta", "sojourn_work", "sojourn_inbox", "sojourn_wanted", "sojourn_schedule",
    "sojourn_stop", "sojourn_guardrail",
)  # fmt: skip
BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
DATABASE_RETRY_S = 1.0
REST_S = 1.0
SHUTDOWN_S = 5.0
"""How long open requests may take to end once the API stops."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What the API and the worker of one process share."""

    settings: Settings
    database: Database
    doorbell: Doorbell
    models: Endpoints
    sandboxes: Provider
    tools: Toolbox
    guardrails: InForce


async def serve(settings: Settings, *, worker: bool = True, ready: Callable[[str], None] | None = None) -> None:
    """Serve the API until SIGTERM or SIGINT; `ready` is called with its URL. Raises SojournError."""
    async with _world(settings) as world:
        shutdown = _shutdown_on_signal()
        vault = await unlocked(world.database, root_keys(settings), may_make=not settings.database_url)
        await _local_key(world)
        async with _listening(world, vault, shutdown.told) as url:
            if ready:
                ready(url)
            if worker:
                await _work(world, shutdown)
            await shutdown.over(settings.linger_s)
    await _end_rest()


async def work(settings: Settings) -> None:
    """Drive runs until SIGTERM or SIGINT, then finish or hand back what is held. Raises SojournError."""
    async with _world(settings) as world:
        await _work(world, _shutdown_on_signal())
    await _end_rest()


async def recover_key(settings: Settings) -> str:
    """Make the first key of an installation anew, and end the older ones. Raises SojournError."""
    async with existing_database(settings) as database:
        return await keys.recover(database, by=operator())


async def tenants(settings: Settings) -> list[limits.TenantRow]:
    """Read the tenants of an installation. Raises SojournError."""
    async with existing_database(settings) as database:
        return await limits.tenants(database)


async def set_tenant(
    settings: Settings, tenant: str, changes: Mapping[str, int | None], *, rates: Mapping[str, Limit | None]
) -> None:
    """Change a tenant's limits. Raises SojournError."""
    async with existing_database(settings) as database:
        if changes:
            await limits.set_limits(database, tenant, changes, by=operator())
        if rates:
            await limits.set_rates(database, tenant, rates, by=operator())


def operator() -> str:
    """Name whoever runs this process, for what an operator does to the database."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        name = f"uid-{os.getuid()}"
    return f"{name}@{socket.gethostname()}"


@asynccontextmanager
async def existing_database(settings: Settings) -> AsyncIterator[Database]:
    """Open the database of an installation for its operator, and make none. Raises SojournError."""
    try:
        if not settings.database_url and not home_in(settings.data_path).data.exists():
            raise NotFound(f"There is no installation in {settings.data_path}. Name its folder with SOJOURN_DATA_DIR.")
    except PermissionError:
        raise Forbidden(f"{settings.data_path} cannot be read. Run this as the user that runs the server.") from None
    async with open_database(settings) as database:
        yield database


def keep_local_key(settings: Settings, token: str) -> Path:
    """Leave a key where the command line looks."""
    path = settings.data_path / "local.key"
    _write_private(path, token)
    return path


# ---- the two plain functions that everybody is handed ----------------------------------------


def now() -> datetime:
    return datetime.now(UTC)


def new_id(prefix: str) -> str:
    """A fresh id: the prefix, `_`, and 26 characters that sort by time. Source: github.com/ulid/spec."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return prefix + "_" + "".join(BASE32[number >> shift & 31] for shift in range(125, -1, -5))


# ---- parts -----------------------------------------------------------------------------------


@asynccontextmanager
async def _world(settings: Settings) -> AsyncIterator[World]:
    logs.set_up(settings.log_level, settings.log_format)
    make_data_folder(settings.data_path)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        for name in await migrate(database):
            log.info("store.migrated", extra={"migration": name})
        doorbell = await stack.enter_async_context(Doorbell(database, CHANNELS))
        guardrails = await stack.enter_async_context(InForce(database, doorbell))
        models = Endpoints(settings.endpoints)
        stack.push_async_callback(models.close)
        sandboxes = open_sandboxes(settings)
        stack.push_async_callback(sandboxes.close)
        yield World(
            settings=settings,
            database=database,
            doorbell=doorbell,
            models=models,
            sandboxes=sandboxes,
            tools=toolbox.fill(said=settings.tools),
            guardrails=guardrails,
        )


def make_data_folder(path: Path) -> None:
    """Make the folder that only its owner can look into. Raises Invalid."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Invalid(
            f"The data folder {path} cannot be made ({error.strerror}). Set SOJOURN_DATA_DIR to a folder of yours.",
            code="settings.invalid",
        ) from None


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """The operator's PostgreSQL, or the embedded one of the data folder."""
    async with AsyncExitStack() as stack:
        if url := settings.database_url:
            server: Dsns | embedded.Cluster = Dsns(
                url,
                settings.database_url_api or url,
                settings.database_url_engine or url,
                settings.database_url_session,
            )
        else:
            server = await stack.enter_async_context(await embedded.start(settings.data_path))
        options = Options(connections_max=settings.database_connections_max, pooler=settings.database_pooler)
        yield await stack.enter_async_context(await _connected(server, options, settings.database_wait_s))


async def _connected(server: Dsns | embedded.Cluster, options: Options, wait_s: float) -> Database:
    """Connect, and try again for so long where nothing answers. Raises StoreUnavailable."""
    until, told = time.monotonic() + wait_s, False
    while True:
        try:
            return await connect(server, options)
        except StoreUnavailable as error:
            if error.code != StoreUnavailable.code or time.monotonic() >= until:
                raise
            if not told:
                log.warning("store.awaited", extra={"detail": str(error), "for_s": wait_s})
            told = True
        await asyncio.sleep(DATABASE_RETRY_S)


def root_keys(settings: Settings) -> RootKeys:
    """The root keys that this process was given. Raises Invalid."""
    return RootKeys(settings.root_key, settings.root_key_path)


def open_sandboxes(settings: Settings) -> Provider:
    """The sandboxes of this host."""
    return BwrapProvider(settings.data_path / "sandboxes")


@asynccontextmanager
async def _listening(world: World, vault: Vault, stopping: asyncio.Event) -> AsyncIterator[str]:
    """The API on its socket; the URL to reach it."""
    settings = world.settings
    application = build(
        Api(
            database=world.database,
            doorbell=world.doorbell,
            settings=settings,
            tools={name: tool.definition for name, tool in world.tools.items()},
            vault=vault,
            models=world.models,
            price=_prices(settings).cost_micros,
            sandboxes=world.sandboxes,
            guardrails=world.guardrails,
            host=host_name(settings),
            now=now,
            stopping=stopping,
            new_id=new_id,
        )
    )
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_S, lingering_time=1.0)
    await runner.setup()
    try:
        await _listen(runner, settings)
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: Settings) -> None:
    """Take the address. Raises OSError where it is taken already, and Invalid where it cannot be ours."""
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise
        raise Invalid(
            f"The server cannot listen on {settings.host}:{settings.port} ({error.strerror}). SOJOURN_HOST and "
            "SOJOURN_PORT name an address of this machine.",
            code="settings.invalid",
        ) from None


async def _work(world: World, shutdown: Shutdown) -> None:
    """Run a worker of this process until it is told to stop and has drained."""
    settings, ring = world.settings, world.doorbell.ring
    worker_id = f"{host_name(settings)}:{os.getpid()}:{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        committer = await stack.enter_async_context(Committer(world.database, worker_id, ring))
        deltas = DeltaWriter(world.database, ring, flush_s=settings.delta_flush_ms / 1000)
        stack.push_async_callback(deltas.close)
        parts = Parts(
            worker_id=worker_id,
            host=host_name(settings),
            settings=settings,
            database=world.database,
            doorbell=world.doorbell,
            committer=committer,
            deltas=deltas,
            models=world.models,
            tools=world.tools,
            sandboxes=world.sandboxes,
            guardrails=world.guardrails,
            sandbox_spec=Spec(limits=settings.sandbox_limits),
            prices=_prices(settings),
            calls=CallSlots(world.database, worker_id, _calls_max(settings), lease_s=settings.lease_s),
            pools=DayPools(world.database, worker_id, settings.day_defaults),
            now=now,
            tenure=Tenure(settings.lease_s),
        )
        await Worker(parts).run(shutdown)


def host_name(settings: Settings) -> str:
    return settings.host_name or socket.gethostname()


def _calls_max(settings: Settings) -> dict[str, int]:
    return {one.name: one.calls_max for one in settings.endpoints if one.calls_max is not None}


def _prices(settings: Settings) -> Prices:
    own = {
        name: usd(price.input, price.output, cache_read=price.cache_read, cache_write=price.cache_write)
        for name, price in settings.prices.items()
    }
    return Prices(settings.endpoints, own=own, windows=settings.windows, window_default=settings.window_tokens_default)


async def _local_key(world: World) -> None:
    """Make the first key of a new installation and leave it where the command line looks."""
    token = await keys.bootstrap(world.database, by=operator())
    if token is not None:
        log.info("keys.local_key_written", extra={"path": str(keep_local_key(world.settings, token))})


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(text + "\n")
    fresh.replace(path)


def _shutdown_on_signal() -> Shutdown:
    """SIGTERM and SIGINT end the process in good order; a second one hastens it, and a third one kills it."""
    shutdown, loop = Shutdown(), asyncio.get_running_loop()

    def tell() -> None:
        if shutdown.told.is_set():
            shutdown.hastened.set()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        shutdown.told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell)
    return shutdown


async def _end_rest() -> None:
    """End what would hold the process although all is handed back: a tool that does not let itself be cancelled."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left and (stuck := (await asyncio.wait(left, timeout=REST_S))[1]):
        log.error("process.tasks_stuck", extra={"tasks": len(stuck)})
        logging.shutdown()
        os._exit(0)

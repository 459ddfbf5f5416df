"""Where a session's files are: one host has the newest, whoever opens, puts away, dies or races."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.sandboxes.conftest import run
from tests.store.scripted_runs import new_id
from tests.worker.inside import Caller, ground

from sojourn.errors import SandboxUnavailable, TooLarge
from sojourn.sandboxes import placing
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.sandbox import ExecUnknown, Sandbox, Spec
from sojourn.store import queue
from sojourn.store.db import Database, Options, connect
from sojourn.store.roles import Dsns
from sojourn.store.rows import IdleSession, SessionRow
from sojourn.store.tenant import blobs, sessions


@dataclass
class Host:
    """A process on a host, with a session in its hands."""

    name: str
    provider: Any
    caller: Caller
    session_id: str

    def lend(self) -> Any:
        return self.caller.database.scoped(self.caller.principal.handle)

    async def open(self) -> placing.Opened:
        spec = Spec()
        return await placing.open_here(self.lend, self.provider, session_id=self.session_id, host=self.name, spec=spec)

    async def row(self) -> SessionRow:
        async with self.lend() as conn:
            return await sessions.get(conn, self.session_id)

    async def put_away(self) -> int | None:
        session = IdleSession("acme", self.session_id, (await self.row()).used_at)
        return await placing.put_away(self.lend, self.provider, session=session, host=self.name, spec=Spec())

    async def clear(self) -> bool:
        return await placing.clear(self.caller.database, self.provider, self.session_id, host=self.name)


class Held:
    """A provider that stops before one of its verbs until it is told to go on."""

    def __init__(self, provider: BwrapProvider, verb: str) -> None:
        self._provider, self._verb = provider, verb
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._provider, name)
        return self._stop(found) if name == self._verb else found

    def _stop(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        async def stopped(*args: Any, **values: Any) -> Any:
            self.reached.set()
            await self.go.wait()
            return await verb(*args, **values)

        return stopped


@pytest.fixture
async def providers(data_dir: Path) -> AsyncIterator[dict[str, BwrapProvider]]:
    """The sandboxes of two hosts; a second process of `north` has its own provider on the same folder."""
    async with AsyncExitStack() as stack:
        found = {}
        for name, folder in (("north", "n"), ("north2", "n"), ("south", "s")):
            found[name] = await stack.enter_async_context(ground(data_dir / folder))
        yield found


@pytest.fixture
async def hosts(database: Database, providers: dict[str, BwrapProvider]) -> dict[str, Host]:
    caller, session_id = await Caller.of(database), new_id("ses")
    async with database.scoped(caller.principal.handle) as conn:
        await sessions.create(conn, session_id)
    for name in ("north", "south"):
        life = await queue.register(database, name, host=name, pid=1, version="0")
        await life.close()
    return {name: Host(name.rstrip("2"), provider, caller, session_id) for name, provider in providers.items()}


async def test_files_go_from_host_to_host_through_the_archive(hosts: dict[str, Host]) -> None:
    north, south = hosts["north"], hosts["south"]
    opened = await north.open()
    assert opened.came == "opened" and opened.used_at == (await north.row()).used_at
    await opened.sandbox.write("note", b"from north")
    assert (await north.open()).came is None
    with pytest.raises(placing.Elsewhere, match="north"):
        await south.open()
    assert await north.put_away()
    back = await south.open()
    assert (back.came, await back.sandbox.read("note")) == ("restored", b"from north")
    await back.sandbox.write("note", b"from south")
    assert await south.put_away()
    again = await north.open()
    assert (again.came, await again.sandbox.read("note")) == ("restored", b"from south"), "not what lay here before"


@pytest.mark.parametrize("verb", ["create", "restore"])
async def test_no_connection_is_held_while_a_sandbox_is_made(dsns: Dsns, hosts: dict[str, Host], verb: str) -> None:
    north = hosts["north"]
    if verb == "restore":
        await (await north.open()).sandbox.write("note", b"1")
        await north.put_away()
    async with await connect(dsns, Options(connections_max=1, acquire_timeout_s=1.0)) as narrow:
        north.caller.database = narrow
        north.provider = held = Held(north.provider, verb)
        opening = asyncio.create_task(north.open())
        await held.reached.wait()
        await north.row()
        async with north.lend() as conn:
            await asyncio.wait_for(sessions.lock(conn, north.session_id), 5)
        held.go.set()
        assert (await opening).came == ("opened" if verb == "create" else "restored")


async def test_of_two_hosts_that_open_at_once_one_has_the_files(hosts: dict[str, Host]) -> None:
    north, south = hosts["north"], hosts["south"]
    await (await north.open()).sandbox.write("note", b"1")
    await north.put_away()
    await north.clear()
    north.provider = held = Held(north.provider, "restore")
    slow = asyncio.create_task(north.open())
    await held.reached.wait()
    await (await south.open()).sandbox.write("note", b"2")
    held.go.set()
    with pytest.raises(placing.Elsewhere, match="south"):
        await slow
    assert await held.sessions() == [], "what it had brought is gone"
    assert (await south.row()).host == "south"
    assert await (await south.open()).sandbox.read("note") == b"2"


async def test_a_host_that_was_overtaken_twice_does_not_take_an_older_archive(hosts: dict[str, Host]) -> None:
    north, south = hosts["north"], hosts["south"]
    await (await north.open()).sandbox.write("note", b"1")
    await north.put_away()
    north.provider = held = Held(north.provider, "restore")
    slow = asyncio.create_task(north.open())
    await held.reached.wait()
    await (await south.open()).sandbox.write("note", b"2")
    await south.put_away()
    held.go.set()
    with pytest.raises(placing.Elsewhere):
        await slow
    assert await (await north.open()).sandbox.read("note") == b"2"


async def test_processes_of_one_host_that_open_at_once_share_the_files(hosts: dict[str, Host]) -> None:
    await (await hosts["north"].open()).sandbox.write("note", b"1")
    await hosts["north"].put_away()

    async def use(n: int) -> placing.Opened:
        opened = await hosts["north2" if n % 2 else "north"].open()
        await opened.sandbox.write(f"by{n}", b"")
        return opened

    opened = await asyncio.gather(*map(use, range(12)))
    assert sorted(str(one.came) for one in opened) == ["None"] * 11 + ["restored"]
    names = {entry.path for entry in await opened[0].sandbox.list()}
    assert names == {"note", *(f"by{n}" for n in range(12))}, "nobody's files were replaced"


async def test_a_process_that_dies_while_it_opens_keeps_nobody_from_it(hosts: dict[str, Host]) -> None:
    north, south = hosts["north"], hosts["south"]
    await (await north.open()).sandbox.write("note", b"1")
    await north.put_away()
    dying = Host("north", Held(hosts["north2"].provider, "probe"), north.caller, north.session_id)
    opening = asyncio.create_task(dying.open())
    await dying.provider.reached.wait()  # the files are there, and the row does not know
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    assert (await north.row()).host is None
    await (await south.open()).sandbox.write("note", b"2")
    assert await north.provider.sessions() == [north.session_id]
    assert await north.clear() and await north.provider.sessions() == []
    assert await (await south.open()).sandbox.read("note") == b"2"


async def test_files_stay_until_their_archive_is_committed(
    hosts: dict[str, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    north = hosts["north"]
    await (await north.open()).sandbox.write("note", b"1")

    async def fails(*_: Any, **__: Any) -> None:
        raise SandboxUnavailable("now")

    with monkeypatch.context() as patched:
        patched.setattr(sessions, "save_workspace", fails)
        with pytest.raises(SandboxUnavailable):
            await north.put_away()
    assert (await north.row()).host == "north"
    assert not await north.clear()
    with monkeypatch.context() as patched:
        patched.setattr(placing, "ARCHIVE_BYTES_MAX", 100)
        used_at = (await north.row()).used_at
        with pytest.raises(TooLarge):
            await north.put_away()
        assert (await north.row()).used_at > used_at, "others come before it the next time"
    assert not await north.clear()
    opened = await north.open()
    assert (opened.came, await opened.sandbox.read("note")) == ("restored", b"1")


async def test_lost_files_are_replaced_by_the_last_archive(hosts: dict[str, Host]) -> None:
    north, south = hosts["north"], hosts["south"]
    await (await north.open()).sandbox.write("note", b"1")
    await north.put_away()
    await (await north.open()).sandbox.write("note", b"2")
    await north.provider.discard(north.session_id)
    assert await north.put_away() is None
    assert await (await south.open()).sandbox.read("note") == b"1"


async def begins(host: Host, exec_id: str) -> bool:
    """Whether a command, which an earlier attempt may have begun, is begun here."""
    try:
        return (await run((await host.open()).sandbox, "true", exec_id=exec_id, resume=True)).code == 0
    except ExecUnknown:
        return False


async def test_what_was_begun_is_known_wherever_the_files_go(hosts: dict[str, Host]) -> None:
    north, south = hosts["north"], hosts["south"]
    assert await begins(north, "one")
    await north.put_away()
    assert await begins(south, "two") and not await begins(south, "one")
    await south.put_away()
    assert [await begins(north, name) for name in ("one", "two", "three")] == [False, False, True]


async def test_nothing_is_certain_where_an_older_archive_is_used(hosts: dict[str, Host]) -> None:
    north, south = hosts["north"], hosts["south"]
    await north.open()
    await north.put_away()
    await run((await north.open()).sandbox, "true", exec_id="one")
    await north.provider.discard(north.session_id)
    assert await north.put_away() is None
    assert not await begins(south, "one")


@pytest.mark.parametrize("archived", [False, True])
async def test_nothing_is_certain_where_files_were_lost(hosts: dict[str, Host], archived: bool) -> None:
    north, south = hosts["north"], hosts["south"]
    await run((await north.open()).sandbox, "true", exec_id="one")
    await north.provider.discard(north.session_id)
    if archived:
        assert await north.put_away() is None
    assert not await begins(south if archived else north, "one")


async def test_nothing_is_certain_of_what_an_older_release_has_put_away(hosts: dict[str, Host]) -> None:
    north, south = hosts["north"], hosts["south"]
    await north.open()
    await north.put_away()
    await run((await north.open()).sandbox, "true", exec_id="one")
    archive = await (await north.provider.attach(north.session_id)).suspend()
    async with north.lend() as conn:
        digest = await blobs.put(conn, archive.data, bytes_max=1 << 20)
        as_it_did = "update session set workspace = $2, host = null, wanted_at = null where id = $1"
        await conn.execute(as_it_did, north.session_id, digest)
    assert not await begins(south, "one")


async def test_files_that_only_a_forgotten_host_could_have_are_kept(database: Database, hosts: dict[str, Host]) -> None:
    north = hosts["north"]
    await north.open()
    renamed = Host("a-new-name", north.provider, north.caller, north.session_id)
    assert await renamed.clear(), "north may have newer ones"
    await north.open()
    async with database.engine() as engine:
        await engine.execute("delete from worker")
    assert not await renamed.clear()


@pytest.mark.parametrize("seed", range(2))
async def test_no_file_is_ever_lost_whoever_opens_and_puts_away(hosts: dict[str, Host], seed: int) -> None:
    draw, written = random.Random(seed), 0
    over = asyncio.Event()

    async def disturb(host: Host) -> None:
        while not over.is_set():
            with suppress(SandboxUnavailable):
                await draw.choice([host.put_away, host.clear, host.put_away, host.row])()
            await asyncio.sleep(draw.random() / 50)

    async def use(sandbox: Sandbox, written: int) -> None:
        assert len(await sandbox.list()) == written
        await sandbox.write(f"file{written}", b"")

    disturbing = [asyncio.create_task(disturb(host)) for host in hosts.values()]
    while written < 60:
        host = hosts[draw.choice(["north", "north2", "south"])]
        try:
            opened = await host.open()
        except placing.Elsewhere:
            continue
        async with host.provider.alone(host.session_id):  # as a lease does
            if (await host.row()).host == host.name:
                await use(opened.sandbox, written)
                written += 1
    over.set()
    await asyncio.gather(*disturbing)

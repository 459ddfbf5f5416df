"""A command runs at most once, and is run where it is certain that it never was: whatever dies, is lost or lies."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.sandboxes.conftest import SMALL, run
from tests.sandboxes.test_crash import keeper_pid

from sojourn.errors import SandboxUnavailable
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.keeper import begun, protocol
from sojourn.sandboxes.sandbox import ExecUnknown, Sandbox

COUNT = ("sh", "-c", "echo x >> count")


@pytest.fixture
async def hosts(folder_of: Callable[[], Path]) -> AsyncIterator[tuple[BwrapProvider, BwrapProvider]]:
    """Two data folders of the test's own, as two machines have them."""
    made = BwrapProvider(folder_of(), idle_s=1.0), BwrapProvider(folder_of(), idle_s=1.0)
    yield made
    for provider in made:
        await provider.reap(frozenset())
        await provider.close()


def record_of(provider: BwrapProvider, session_id: str) -> Path:
    return provider._folder / protocol.BEGUN / session_id


async def ended(provider: BwrapProvider, session_id: str) -> Sandbox:
    """Kill the keeper, and open the session's sandbox again."""
    os.kill(keeper_pid(provider), signal.SIGKILL)
    return await provider.create(session_id, SMALL)


async def moved(sandbox: Sandbox, to: BwrapProvider) -> Sandbox:
    return await to.restore(sandbox.session_id, await sandbox.suspend(), SMALL)


async def test_a_record_goes_with_the_files_from_host_to_host(hosts: tuple[BwrapProvider, BwrapProvider]) -> None:
    north, south = hosts
    first = await north.create("ses_a", SMALL, first=True)
    await run(first, *COUNT, exec_id="one")
    second = await moved(first, south)
    await run(second, *COUNT, exec_id="two", resume=True)
    third = await moved(second, north)
    for exec_id in ("one", "two"):
        with pytest.raises(ExecUnknown):
            await run(third, *COUNT, exec_id=exec_id, resume=True)
    await run(third, *COUNT, exec_id="three", resume=True)
    assert await third.read("count") == b"x\n" * 3


def is_of_another_boot(record: Path) -> None:
    record.write_text(record.read_text().replace(begun._boot(), "1b4e28ba-2fa1-11d2-883f-0016d3cca427"))


def has_lost_its_beginning(record: Path) -> None:
    record.write_text("\n".join(record.read_text().split()[1:]))


@pytest.mark.parametrize("damage", [Path.unlink, is_of_another_boot, has_lost_its_beginning])
@pytest.mark.parametrize("moves", [False, True])
async def test_a_record_that_is_not_whole_makes_nothing_certain(
    hosts: tuple[BwrapProvider, BwrapProvider], damage: Callable[[Path], None], moves: bool
) -> None:
    north, south = hosts
    await run(await north.create("ses_a", SMALL, first=True), "true", exec_id="other")
    os.kill(keeper_pid(north), signal.SIGKILL)
    damage(record_of(north, "ses_a"))
    sandbox = await north.create("ses_a", SMALL)
    sandbox = await moved(sandbox, south) if moves else sandbox
    with pytest.raises(ExecUnknown):
        await run(sandbox, *COUNT, exec_id="new", resume=True)
    assert (await run(sandbox, *COUNT, exec_id="first try")).code == 0


async def test_files_that_were_lost_take_the_certainty_along(hosts: tuple[BwrapProvider, BwrapProvider]) -> None:
    north, _ = hosts
    await run(await north.create("ses_a", SMALL, first=True), *COUNT, exec_id="one")
    os.kill(keeper_pid(north), signal.SIGKILL)
    (north._folder / protocol.WORKSPACES / "ses_a").rename(north._folder / protocol.TRASH / "lost")
    sandbox = await north.create("ses_a", SMALL)
    with pytest.raises(ExecUnknown):
        await run(sandbox, *COUNT, exec_id="one", resume=True)
    assert await sandbox.list() == []


async def test_a_line_that_was_cut_off_hides_none_of_the_next(hosts: tuple[BwrapProvider, BwrapProvider]) -> None:
    north, _ = hosts
    sandbox = await north.create("ses_a", SMALL, first=True)
    with record_of(north, "ses_a").open("a") as record:
        record.write("\n6f6e")  # the disk was full
    await run(sandbox, *COUNT, exec_id="one")
    sandbox = await ended(north, "ses_a")
    with pytest.raises(ExecUnknown):
        await run(sandbox, *COUNT, exec_id="one", resume=True)
    assert await sandbox.read("count") == b"x\n"


async def test_a_program_that_cannot_be_written_down_does_not_begin(
    hosts: tuple[BwrapProvider, BwrapProvider],
) -> None:
    north, _ = hosts
    sandbox = await north.create("ses_a", SMALL, first=True)
    record = record_of(north, "ses_a")
    record.rename(record.with_name("aside"))
    record.mkdir()
    with pytest.raises(SandboxUnavailable, match="the host refused"):
        await run(sandbox, *COUNT, exec_id="one")
    assert await sandbox.list() == []
    record.rmdir()


@pytest.mark.parametrize("wait_s", [0.0, 0.002, 0.01])
async def test_a_keeper_killed_while_it_begins_a_command_does_not_have_it_run_twice(
    hosts: tuple[BwrapProvider, BwrapProvider], wait_s: float
) -> None:
    north, south = hosts
    sandbox = await north.create("ses_a", SMALL, first=True)
    beginning = asyncio.ensure_future(run(sandbox, *COUNT, exec_id="one"))
    await asyncio.sleep(wait_s)
    sandbox = await ended(north, "ses_a")
    await asyncio.gather(beginning, return_exceptions=True)
    sandbox = await moved(sandbox, south)
    certain = True
    try:
        await run(sandbox, *COUNT, exec_id="one", resume=True)
    except ExecUnknown:
        certain = False
    count = b"".join([await sandbox.read(entry.path) for entry in await sandbox.list()])
    assert count == b"x\n" if certain else count in (b"", b"x\n")


LIES = """
import os, pathlib
found = []
for name in ("begun", "begun/ses_a", "workspaces/ses_a"):
    for top in ("/", "..", "../..", "/proc/1/root", "/proc/1/cwd", "/proc/self/cwd/..", "{folder}"):
        path = pathlib.Path(top, name)
        try:
            if path.exists() and not path.resolve().is_relative_to("/workspace"):
                found.append(str(path))
            path.unlink()
        except OSError:
            pass
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{boot}")
        except OSError:
            pass
os.makedirs("begun", exist_ok=True)
pathlib.Path("begun/ses_a").write_text("{boot}")
pathlib.Path("count").open("a").write("x")
print(found)
"""


async def test_a_program_cannot_make_it_look_as_if_it_had_never_begun(
    hosts: tuple[BwrapProvider, BwrapProvider],
) -> None:
    north, south = hosts
    sandbox = await north.create("ses_a", SMALL, first=True)
    lies = ("python3", "-c", LIES.format(folder=north._folder, boot=begun._boot()))
    result = await run(sandbox, *lies, exec_id="liar")
    assert (result.stdout, result.code) == ("[]\n", 0)
    back = await ended(north, "ses_a")
    for resume in (True, False):
        with pytest.raises(ExecUnknown):
            await run(back, *lies, exec_id="liar", resume=resume)
    back = await moved(back, south)
    with pytest.raises(ExecUnknown):
        await run(back, *lies, exec_id="liar", resume=True)
    assert await back.read("count") == b"x"


async def test_a_program_that_ends_its_own_sandbox_is_not_begun_again(
    hosts: tuple[BwrapProvider, BwrapProvider],
) -> None:
    north, _ = hosts
    sandbox = await north.create("ses_a", SMALL, first=True)
    ends = ("sh", "-c", "echo x >> count; kill -9 1; kill -9 -1; echo alive")
    with contextlib.suppress(SandboxUnavailable):
        await run(sandbox, *ends, exec_id="ends")
    sandbox = await ended(north, "ses_a")
    with pytest.raises(ExecUnknown):
        await run(sandbox, *ends, exec_id="ends", resume=True)
    assert await sandbox.read("count") == b"x\n"

"""Workspaces that try to lead the host astray while it reads, writes, lists and removes."""

import asyncio
import os
import time
from pathlib import Path
from uuid import uuid4

import pytest
from tests.sandboxes.conftest import SMALL, python, run

from sojourn.errors import Invalid, NotFound, SojournError
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.sandbox import Sandbox

OUTSIDE = "of the host"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the host that must neither be read nor changed."""
    (tmp_path / "canary").write_text(OUTSIDE)
    return tmp_path


async def test_links_do_not_lead_out(sandbox: Sandbox, outside: Path) -> None:
    links = {
        "file": f"{outside}/canary",
        "folder": str(outside),
        "p": "/etc/passwd",
        "up": "../../..",
        "root": "/",
        "loop": "loop",
    }
    for name, target in links.items():
        await run(sandbox, "ln", "-s", target, name)
    for path in (
        "file",
        "folder/canary",
        "p",
        f"up{outside}/canary",
        f"root{outside}/canary",
        "loop",
        "../x",
        "a/../../x",
    ):
        with pytest.raises((Invalid, NotFound)):
            await sandbox.read(path)
    for path in ("folder/new", "up/new", "root/tmp/new", "loop/new", "../new"):
        for attempt in (sandbox.write(path, b"x"), sandbox.mkdir(path + "/d")):
            with pytest.raises((Invalid, NotFound)):
                await attempt
    for path in ("folder/canary", "up/canary", "../canary"):
        with pytest.raises((Invalid, NotFound)):
            await sandbox.remove(path)
    for path in ("folder", "up", "root"):
        with pytest.raises(Invalid):
            await sandbox.list(path)
    await sandbox.write("file", b"replaced the link, not what it named")
    assert (outside / "canary").read_text() == OUTSIDE
    assert [entry.name for entry in outside.iterdir()] == ["canary"]


async def test_links_that_stay_inside_are_followed(sandbox: Sandbox) -> None:
    await run(sandbox, "sh", "-c", "mkdir d; echo in > d/file; ln -s d/file link; ln -s d e")
    assert await sandbox.read("link") == b"in\n"
    assert await sandbox.read("e/file") == b"in\n"


async def test_doors_of_proc_are_not_doors(sandbox: Sandbox) -> None:
    doors = {
        "a": "/proc/self/environ",
        "b": "/proc/self/fd/0",
        "c": "/proc/self/root",
        "d": "/proc/1/cwd",
        "e": "/dev/zero",
    }
    for name, target in doors.items():
        await run(sandbox, "ln", "-s", target, name)
    for path in ("a", "b", "c/etc/passwd", "d/etc/passwd", "e"):
        with pytest.raises(Invalid):
            await sandbox.read(path)


async def test_absolute_and_broken_paths_are_refused(sandbox: Sandbox) -> None:
    for path in ("/etc/passwd", "/workspaces/x", "a\0b", "/".join("d" * 200), "x" * 300):
        with pytest.raises((Invalid, NotFound)):
            await sandbox.read(path)
        with pytest.raises(Invalid):
            await sandbox.write(path, b"")


async def test_pipes_sockets_and_devices_are_refused_at_once(sandbox: Sandbox) -> None:
    program = "import os,socket; os.mkfifo('pipe'); socket.socket(socket.AF_UNIX).bind('door'); os.link('pipe','hard')"
    await python(sandbox, program)
    async with asyncio.timeout(30):  # opening a pipe waits for ever
        for path in ("pipe", "door", "hard"):
            assert (await sandbox.stat(path)).kind == "other"
            with pytest.raises(Invalid):
                await sandbox.read(path)
            await sandbox.write(path, b"a file now")
            assert await sandbox.read(path) == b"a file now"


async def test_hard_links_to_the_system_cannot_be_made(sandbox: Sandbox) -> None:
    for target in ("/etc/passwd", "/usr/bin/id", "/proc/1/exe", "/dev/null"):
        assert (await run(sandbox, "ln", "-L", target, "hard")).code != 0
        assert (await run(sandbox, "ln", "-P", target, "hard")).code != 0


async def test_a_folder_that_turns_into_a_link_while_the_host_looks(sandbox: Sandbox, outside: Path) -> None:
    """The program swaps a folder and a link to the host's as fast as it can; the host never crosses."""
    flip = f"""
import os
os.makedirs("real"); open("real/canary", "w").write("of the sandbox"); os.symlink({str(outside)!r}, "bait")
print("up", flush=True)
while True:
    try:
        os.rename("real", "d"); os.rename("d", "real"); os.rename("bait", "d"); os.rename("d", "bait")
    except OSError: pass
"""
    stream = sandbox.exec(["python3", "-c", flip], exec_id="flip")
    await anext(stream)
    seen: set[bytes] = set()
    refused = 0
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        for attempt in (
            sandbox.read("d/canary"),
            sandbox.write("d/written", b"x"),
            sandbox.list("d"),
            sandbox.remove("d/x"),
        ):
            try:
                got = await attempt
                if isinstance(got, bytes):
                    seen.add(got)
            except SojournError:
                refused += 1
    await sandbox.kill("flip")
    await stream.aclose()
    assert seen <= {b"of the sandbox"}
    assert refused > 0
    assert [entry.name for entry in outside.iterdir()] == ["canary"]
    assert (outside / "canary").read_text() == OUTSIDE


async def test_files_written_by_the_host_belong_to_the_session(sandbox: Sandbox) -> None:
    await sandbox.write("a/b/file", b"")
    await sandbox.mkdir("c/d")
    owners = await run(sandbox, "stat", "-c", "%u:%g", "a", "a/b", "a/b/file", "c", "c/d")
    assert set(owners.stdout.split()) == {"1000:1000"}


async def test_a_workspace_is_closed_to_other_users(provider: BwrapProvider, sandbox: Sandbox) -> None:
    info = provider.files(sandbox.session_id)._top.stat()
    assert info.st_mode & 0o777 == 0o700
    if os.geteuid() == 0:
        other = await provider.create(f"ses_{uuid4().hex}", SMALL)
        uids = {info.st_uid, provider.files(other.session_id)._top.stat().st_uid}
        assert len(uids) == 2
        assert min(uids) >= 100_000
        await other.destroy()


async def test_deep_strange_and_closed_folders_are_listed_and_removed(provider: BwrapProvider) -> None:
    sandbox = await provider.create(f"ses_{uuid4().hex}", SMALL)
    program = r"""
import os
open(b"not-utf8-\xff", "w"); open("new\nline", "w"); open("-rf", "w")
os.makedirs("closed/inner"); open("closed/inner/file", "w"); os.chmod("closed/inner", 0); os.chmod("closed", 0)
for _ in range(900):
    os.mkdir("d"); os.chdir("d")
"""
    assert (await python(sandbox, program)).stderr == ""
    listed = await asyncio.wait_for(sandbox.list(depth=1000, limit=500), 20)
    assert {"not-utf8-\ufffd", "new\nline", "-rf", "d"} <= {entry.path for entry in listed}
    report = await sandbox.destroy()
    assert (report.files_left, report.processes_left) == (0, 0)
    assert provider.files(sandbox.session_id) is None


async def test_setuid_bits_and_devices_do_not_travel(sandbox: Sandbox, provider: BwrapProvider) -> None:
    await run(
        sandbox,
        "sh",
        "-c",
        "cp /usr/bin/id i; chmod 6755 i; mkfifo pipe; mkdir -m 1777 sticky; chmod 0 i; chmod 6111 i",
    )
    snapshot = await sandbox.suspend()
    back = await provider.restore(sandbox.session_id, snapshot, SMALL)
    modes = await run(back, "sh", "-c", "stat -c '%n %a' *")
    assert modes.stdout.split("\n")[:-1] == ["i 111", "sticky 777"]

"""kill -9 of a worker in the middle, and of the keeper: nothing runs twice, nothing is left."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest
from tests.sandboxes.conftest import SMALL, Result, collect, eventually, host_pids, run

from sojourn.errors import SandboxUnavailable
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.keeper import protocol
from sojourn.sandboxes.kernel import cgroups, tree
from sojourn.sandboxes.sandbox import ExecUnknown, Sandbox

WORKER = """
import asyncio, sys
from pathlib import Path
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.sandbox import Limits, Spec

async def main():
    provider = BwrapProvider(Path(sys.argv[1]), idle_s=1.0)
    print("create", flush=True)
    sandbox = await provider.create(sys.argv[2], Spec(limits=Limits(memory_bytes=256 << 20)))
    print("exec", flush=True)
    async for item in sandbox.exec(["sh", "-c", sys.argv[3]], exec_id="step"):
        print("item", flush=True)
    print("destroy", flush=True)
    await sandbox.destroy()
    print("done", flush=True)

asyncio.run(main())
"""
STEP = "echo began >> count; echo began; until [ -e go ]; do sleep 0.01; done; echo ended"


@pytest.fixture
async def provider(folder_of: Callable[[], Path]) -> AsyncIterator[BwrapProvider]:
    """A data folder of the test's own, so that its keeper may be killed."""
    provider = BwrapProvider(folder_of(), idle_s=1.0)
    yield provider
    await provider.reap(frozenset())
    assert list((provider._folder / protocol.WORKSPACES).iterdir()) == []
    await provider.close()


async def worker_killed_after(provider: BwrapProvider, session_id: str, word: str, *, wait_s: float = 0.0) -> None:
    """Run a worker and kill it as soon as it has said `word`, or a little later."""
    argv = [sys.executable, "-c", WORKER, str(provider._folder), session_id, STEP]
    worker = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    async with asyncio.timeout(30):
        while (await worker.stdout.readline()).decode().strip() != word:
            pass
    await asyncio.sleep(wait_s)
    worker.kill()
    await worker.wait()
    await worker.stdout.read()


def keeper_pid(provider: BwrapProvider) -> int:
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(provider._keeper._socket())
        return struct.unpack("=iii", door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


async def test_a_worker_killed_in_exec_is_followed_by_one_that_reads_on(provider: BwrapProvider) -> None:
    await worker_killed_after(provider, "ses_a", "item")
    sandbox = await provider.attach("ses_a")
    stream = sandbox.exec(["sh", "-c", STEP], exec_id="step")
    assert (await anext(stream)).data == b"began\n"
    await sandbox.write("go", b"")
    assert (await collect(stream)).stdout == "ended\n"
    assert await sandbox.read("count") == b"began\n"


@pytest.mark.parametrize("wait_s", [0.0, 0.002, 0.005, 0.01, 0.02, 0.05])
async def test_a_worker_killed_in_create_or_exec_leaves_one_sandbox_and_one_program(
    provider: BwrapProvider, wait_s: float
) -> None:
    for word in ("create", "exec"):
        await worker_killed_after(provider, "ses_b", word, wait_s=wait_s)
    sandbox = await provider.create("ses_b", SMALL)
    await sandbox.write("go", b"")
    assert (await run(sandbox, "sh", "-c", STEP, exec_id="step")).stdout == "began\nended\n"
    assert await sandbox.read("count") == b"began\n"


@pytest.mark.parametrize("wait_s", [0.0, 0.002, 0.01])
async def test_a_worker_killed_in_destroy_leaves_nothing_after_reap(provider: BwrapProvider, wait_s: float) -> None:
    sandbox = await provider.create("ses_c", SMALL)
    await sandbox.write("go", b"")
    for n in range(300):
        await sandbox.write(f"many/{n}", b"x")
    await worker_killed_after(provider, "ses_c", "destroy", wait_s=wait_s)
    await provider.reap(frozenset())
    assert provider.files("ses_c") is None
    assert await provider.attach("ses_c") is None


async def test_a_killed_keeper_takes_its_sandboxes_with_it_and_files_stay(provider: BwrapProvider) -> None:
    marker = uuid4().int % 10**9 + 10**9
    sandbox = await provider.create("ses_d", SMALL)
    await run(sandbox, "sh", "-c", f"echo kept > file; setsid sleep {marker} >/dev/null 2>&1 &")
    stream = sandbox.exec(["sleep", str(marker)], exec_id="cut")
    reading = asyncio.ensure_future(collect(stream))
    assert await eventually(lambda: len(host_pids(f"sleep {marker}")) == 2)
    os.kill(keeper_pid(provider), signal.SIGKILL)
    with pytest.raises(SandboxUnavailable):
        await reading
    assert await eventually(lambda: not host_pids(f"sleep {marker}"))
    assert provider.files("ses_d").read("file", offset=0, limit_bytes=100) == b"kept\n"
    assert await provider.attach("ses_d") is None
    again = await provider.create("ses_d", SMALL)
    assert again.created
    assert await again.read("file") == b"kept\n"
    with pytest.raises(ExecUnknown):
        await run(again, "sleep", str(marker), exec_id="cut", resume=True)


async def test_a_killed_porter_takes_its_sandbox_with_it(provider: BwrapProvider) -> None:
    sandbox = await provider.create("ses_p", SMALL)
    reading, marker = await sleeping(sandbox)
    os.kill(porter_of(marker), signal.SIGKILL)
    assert (await reading).exit.reason == "killed"
    assert await eventually(lambda: not host_pids(f"sleep {marker}"))
    with pytest.raises(SandboxUnavailable):
        await run(sandbox, "true")
    again = await provider.create("ses_p", SMALL)
    assert again.created
    assert (await run(again, "echo", "fine")).stdout == "fine\n"


async def test_a_sandbox_without_work_lets_its_porter_go_and_finds_another(folder_of: Callable[[], Path]) -> None:
    provider = BwrapProvider(folder_of(), idle_s=1.0, rest_s=0.1)
    sandbox = await provider.create("ses_r", SMALL)
    reading, marker = await sleeping(sandbox)
    first = porter_of(marker)
    await run(sandbox, "sh", "-c", "(until [ -e go ]; do sleep 0.01; done; echo daemon > proof) >/dev/null 2>&1 &")
    await sandbox.kill("sleeping")
    await reading
    assert await eventually(lambda: not Path(f"/proc/{first}").exists())
    reading, marker = await sleeping(sandbox, exec_id="again")
    assert porter_of(marker) != first
    await sandbox.write("go", b"")
    assert (await run(sandbox, "sh", "-c", "until [ -s proof ]; do sleep 0.01; done; cat proof")).stdout == "daemon\n"
    assert (await sandbox.destroy()).processes_left == 0
    assert (await reading).exit.reason == "killed"
    await provider.close()


async def sleeping(sandbox: Sandbox, *, exec_id: str = "sleeping") -> tuple[asyncio.Future[Result], int]:
    """Begin a program that sleeps; its end to come, and the number by which the host finds it."""
    marker = uuid4().int % 10**9 + 10**9
    reading = asyncio.ensure_future(run(sandbox, "sleep", str(marker), exec_id=exec_id))
    await eventually(lambda: host_pids(f"sleep {marker}"))
    return reading, marker


def porter_of(marker: int) -> int:
    """The process that started a program, as the host sees it."""
    [pid] = host_pids(f"sleep {marker}")
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_keeper_sweeps_what_nobody_fills(provider: BwrapProvider) -> None:
    await (await provider.create("ses_s", SMALL)).destroy()
    trash = provider._folder / protocol.TRASH
    for name in ("filled", "left"):
        (trash / name).mkdir()
    os.kill(keeper_pid(provider), signal.SIGKILL)
    with tree.held(trash / "filled"):
        await provider.reap(frozenset())
        await eventually(lambda: not (trash / "left").exists())
        assert (trash / "filled").exists()


async def test_after_a_killed_keeper_reap_leaves_no_folder_and_no_group(provider: BwrapProvider) -> None:
    for n in range(3):
        await (await provider.create(f"ses_{n}", SMALL)).write("file", b"x")
    (provider._folder / protocol.TRASH / "half-removed").mkdir()
    os.kill(keeper_pid(provider), signal.SIGKILL)
    assert await provider.reap(frozenset({"ses_1"})) == ["ses_0", "ses_2"]
    assert [entry.name for entry in (provider._folder / protocol.WORKSPACES).iterdir()] == ["ses_1"]
    assert await eventually(lambda: not list((provider._folder / protocol.TRASH).iterdir()))
    ours = cgroups.name_for(provider._folder)
    folders = (Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup"))  # it passes over what others remove
    groups = [folder / "cgroup.procs" for folder in folders if folder.parent.name == ours]
    assert [group for group in groups if not group.read_text()] == []


async def test_keepers_started_at_once_are_one(provider: BwrapProvider) -> None:
    program = "import asyncio,sys,json\nfrom pathlib import Path\nfrom sojourn.sandboxes.bwrap import BwrapProvider\n"
    program += "from sojourn.sandboxes.sandbox import Spec\n"
    program += "print(asyncio.run(BwrapProvider(Path(sys.argv[1]), idle_s=1.0).create('ses_e', Spec())).created)"
    argv = [sys.executable, "-c", program, str(provider._folder)]
    started = [await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE) for _ in range(5)]
    said = [(await process.communicate())[0].decode().strip() for process in started]
    assert sorted(said) == ["False"] * 4 + ["True"]


async def test_a_keeper_without_work_ends_and_the_next_request_starts_another(provider: BwrapProvider) -> None:
    sandbox = await provider.create("ses_f", SMALL)
    first = keeper_pid(provider)
    await sandbox.destroy()
    assert await eventually(lambda: not Path(f"/proc/{first}").exists())
    assert not (provider._folder / protocol.SOCKET).exists()
    await provider.create("ses_f", SMALL)
    assert keeper_pid(provider) != first


async def test_strangers_and_nonsense_do_not_hurt_the_keeper(provider: BwrapProvider) -> None:
    sandbox = await provider.create("ses_g", SMALL)
    keeper = keeper_pid(provider)
    nonsense = [
        b"",
        b"\0\0\0\1",
        b"\xff\xff\xff\xff",
        struct.pack(">I", 5) + b"hello",
        struct.pack(">I", 3) + b"\x81\xa4t",
    ]
    nonsense += [struct.pack(">I", 64) + os.urandom(64) for _ in range(50)]
    for words in nonsense:
        with socket.socket(socket.AF_UNIX) as door, contextlib.suppress(OSError):
            door.connect(provider._keeper._socket())
            door.sendall(words)
    for path in (provider._folder, provider._folder / protocol.SOCKET):
        assert path.stat().st_mode & 0o077 == 0
    assert (await run(sandbox, "echo", "fine")).stdout == "fine\n"
    assert keeper_pid(provider) == keeper


async def test_the_keeper_has_nothing_of_its_starters_environment(
    provider: BwrapProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-key")
    await provider.create("ses_h", SMALL)
    assert b"canary-key" not in Path(f"/proc/{keeper_pid(provider)}/environ").read_bytes()


async def test_without_a_usable_bubblewrap_the_probe_says_why(folder_of: Callable[[], Path]) -> None:
    folder = folder_of()
    fake = folder / "bwrap"
    for script, reason in (("echo bubblewrap 0.4.1", "older"), ("echo bubblewrap 0.11.0; exit 1", "did not start")):
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        provider = BwrapProvider(folder / "data", bwrap=fake, idle_s=1.0)
        capability = await provider.probe()
        assert not capability.ready
        assert reason in capability.reason
        with pytest.raises(SandboxUnavailable):
            await provider.create("ses_i", SMALL)
        await eventually(lambda: not (folder / "data" / protocol.SOCKET).exists())
    fake.chmod(0o4755)
    assert "setuid" in (await BwrapProvider(folder / "data", bwrap=fake, idle_s=1.0).probe()).reason

"""Programs that take more than their share of processes, memory, disk, processor, output; on each rung."""

import asyncio
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest
from tests.sandboxes.conftest import SMALL, python, run

from sojourn.errors import SandboxUnavailable
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.kernel import cgroups
from sojourn.sandboxes.sandbox import Limits, Sandbox, Spec

PROBE = cgroups.find(f"sojourn-probe-{os.getpid()}")  # a folder of its own: other test processes look at the same time
RUNGS = {"poller": False} | ({"cgroups": True} if PROBE.found else {})
PROBE.close()


@pytest.fixture(scope="session", params=RUNGS, ids=list(RUNGS))
async def provider(request: pytest.FixtureRequest, folder_of: Callable[[], Path]) -> AsyncIterator[BwrapProvider]:
    provider = BwrapProvider(folder_of(), idle_s=1.0, cgroups=RUNGS[request.param])
    yield provider
    assert await provider.reap(frozenset()) == []
    await provider.close()


async def test_a_fork_bomb_burns_out_and_the_sandbox_is_still_there(sandbox: Sandbox) -> None:
    marker = uuid4().hex
    bomb = f"import os\nwhile True:\n  try: os.fork()\n  except OSError: pass  # {marker}"
    result = await python(sandbox, bomb, timeout_s=1.0)
    assert result.exit.reason == "timeout"
    assert (await run(sandbox, "sh", "-c", "ps ax | wc -l")).stdout.strip() == "5"
    counted = "import os\nn = 0\ntry:\n  while os.fork(): n += 1\nexcept OSError: print(n)"
    result = await python(sandbox, counted + "\nelse:\n  import time; time.sleep(20)", timeout_s=10.0)
    assert int(result.stdout) < SMALL.limits.pids


async def test_a_bomb_that_hides_from_its_program_is_still_bounded(sandbox: Sandbox, provider: BwrapProvider) -> None:
    bomb = "import os\nwhile True:\n  try:\n    if not os.fork(): os.setsid()\n  except OSError: pass"
    await python(sandbox, bomb, timeout_s=0.5)
    result = await run(sandbox, "sh", "-c", "kill -9 -1")
    assert result.exit.duration_s < 20
    assert (await sandbox.destroy()).processes_left == 0


async def test_a_program_that_stops_all_others_stops_no_exec_for_good(sandbox: Sandbox) -> None:
    """Also not one that it meets between its fork and its exec, where whoever forked it waits for it."""
    attack = "import os,signal\nprint('up', flush=True)\nwhile True:\n  try: os.kill(-1, signal.SIGSTOP)\n"
    stream = sandbox.exec(["python3", "-c", attack + "  except OSError: pass"], exec_id="attack")
    await anext(stream)
    async with asyncio.timeout(60):
        results = await asyncio.gather(*(run(sandbox, "true", timeout_s=0.2) for _ in range(20)))
        assert {result.exit.reason for result in results} <= {"exited", "timeout"}
        await sandbox.kill("attack")
        assert (await run(sandbox, "echo", "fine")).stdout == "fine\n"
    await stream.aclose()


GREEDY = "import time\nkept = []\nwhile True:\n  kept.append(bytearray(8 << 20))\n  time.sleep(0.005)"


async def test_memory_in_one_process_ends_it(sandbox: Sandbox) -> None:
    result = await python(sandbox, GREEDY)
    assert (result.exit.reason, result.exit.signal) == ("memory", 9)
    assert (await run(sandbox, "echo", "fine")).stdout == "fine\n"


SIX = """
import os, time
parent = os.getpid()
for _ in range(5):
    if not os.fork(): break
kept = b"x" * {share}
if os.getpid() == parent:
    raise SystemExit(os.wait()[1] and 1)
while os.getppid() == parent:
    time.sleep(0.05)
"""


async def test_memory_in_six_processes_is_bounded_and_named(sandbox: Sandbox) -> None:
    """The poller ends all six; the kernel chooses some, and the first of them fails when another was chosen."""
    result = await python(sandbox, SIX.format(share=SMALL.limits.memory_bytes // 4))
    assert result.exit.reason == "memory"
    assert result.exit.code != 0


async def test_memory_in_shared_filesystems_is_bounded(sandbox: Sandbox) -> None:
    for folder in ("/dev/shm", "/tmp"):
        result = await run(
            sandbox,
            "sh",
            "-c",
            f"for n in a b; do dd if=/dev/zero of={folder}/$n bs=1M count=200; done; du -sm {folder}",
        )
        assert int(result.stdout.split()[0]) <= SMALL.limits.memory_bytes >> 22
    await run(sandbox, "sh", "-c", "rm /tmp/? /dev/shm/?")


async def test_memory_without_a_mapping_is_bounded(sandbox: Sandbox) -> None:
    program = """
import os, time
kept = []
try:
    for n in range(40):
        kept.append(os.memfd_create("x"))
        os.write(kept[-1], bytes(16 << 20))
    time.sleep(20)
except OSError as error:
    print(error.errno)
"""
    result = await python(sandbox, program)
    assert result.stdout == "38\n" or result.exit.reason == "memory"


async def test_one_file_ends_at_the_disk_limit(sandbox: Sandbox) -> None:
    await run(sandbox, "dd", "if=/dev/zero", "of=big", "bs=1M", "count=100")
    assert (await sandbox.stat("big")).size_bytes <= SMALL.limits.disk_bytes
    assert (await run(sandbox, "truncate", "-s", "100G", "sparse")).code != 0
    await run(sandbox, "sh", "-c", "rm *")


MANY_BYTES = (
    "import time\nfor n in range(100):\n  open(f'f{n}', 'wb').write(bytes(4 << 20)); time.sleep(0.02)\ntime.sleep(20)"
)
MANY_FILES = "import time\nfor n in range(20000):\n  open(f'f{n}', 'w'); n % 50 or time.sleep(0.002)\ntime.sleep(20)"
MANY_NAMES = """
import os, time
for n in range(20000):
    os.makedirs(f"d{n % 100}/{n}")
    n % 50 or time.sleep(0.002)
time.sleep(20)
"""
DELETED = """
import os, time
kept = []
for n in range(100):
    kept.append(open("f", "wb"))
    os.unlink("f")
    kept[-1].write(bytes(4 << 20))
    kept[-1].flush()
    time.sleep(0.02)
time.sleep(20)
"""


@pytest.mark.parametrize("program", [MANY_BYTES, MANY_FILES, MANY_NAMES, DELETED])
async def test_disk_in_many_pieces_ends_the_program(sandbox: Sandbox, program: str) -> None:
    result = await python(sandbox, program)
    assert result.exit.reason == "disk"
    cleaned = await run(sandbox, "sh", "-c", "rm -rf /workspace/*; echo cleaned")
    assert (cleaned.exit.reason, cleaned.stdout) == ("exited", "cleaned\n")
    assert (await run(sandbox, "sh", "-c", "echo x > file; cat file")).stdout == "x\n"


async def test_spinning_gets_the_processors_it_was_given(provider: BwrapProvider) -> None:
    sandbox = await provider.create(f"ses_{uuid4().hex}", Spec(limits=Limits(cpus=1.0)))
    program = """
import os, time
until = time.monotonic() + 1.0
for _ in range(3):
    if not os.fork(): break
while time.monotonic() < until: pass
if os.getppid() == 1 or True:
    try:
        while True: os.wait()
    except ChildProcessError: pass
print(sum(os.times()[:4])) if os.times().children_user else None
"""
    result = await python(sandbox, program)
    assert 0 < float(result.stdout) < 1.5
    await sandbox.destroy()


async def test_processors_that_cannot_be_shared_out_are_refused(provider: BwrapProvider) -> None:
    half = Spec(limits=Limits(cpus=0.5))
    if (await provider.probe()).enforced["cpus"].startswith("affinity"):
        with pytest.raises(SandboxUnavailable, match="whole number"):
            await provider.create("ses_half", half)
    else:
        sandbox = await provider.create("ses_half", half)
        await sandbox.destroy()


async def test_much_output_is_bounded_in_memory_and_the_program_is_not_blocked(sandbox: Sandbox) -> None:
    await run(sandbox, "true")
    keeper = keeper_of(sandbox)
    before = resident_bytes(keeper)
    result = await run(sandbox, "sh", "-c", "head -c 200000000 /dev/zero; echo end")
    assert result.exit.truncated_bytes == 200_000_004 - SMALL.limits.output_bytes
    assert result.stdout.endswith("end\n")
    assert result.exit.reason == "exited"
    assert resident_bytes(keeper) - before < 16 << 20


async def test_output_of_single_bytes_is_bounded_in_pieces(sandbox: Sandbox) -> None:
    program = "import os\nfor n in range(20000): os.write(1, b'x')"
    items = [item async for item in sandbox.exec(["python3", "-c", program], exec_id="bytes")]
    assert sum(len(item.data) for item in items[:-1]) == 20_000
    assert len(items) < 2_000


async def test_a_daemon_that_floods_its_output_does_not_keep_the_keeper_busy(sandbox: Sandbox) -> None:
    await run(sandbox, "sh", "-c", "yes & echo started")
    began = time.monotonic()
    for _ in range(5):
        assert (await run(sandbox, "echo", "quick")).stdout == "quick\n"
    assert time.monotonic() - began < 10


def keeper_of(sandbox: Sandbox) -> int:
    """The keeper's pid, told by the kernel of its socket."""
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(sandbox._keeper._socket())
        return struct.unpack("=iii", door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

"""Runs a bench in small size, as `make bench` starts it, and sees what it leaves. For the tests of the benches.

The rule: a bench has a folder for temporary files of its own, so that whatever it leaves can be told from all others'.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from tests.conftest import until

from bench import __main__ as benches
from bench.figure import Figure

ROOT = Path(__file__).parents[2]
RUN_S = 600.0
LARGE = ("across", "run", "takeover")
"""Half of the work, which has a lane of its own."""


async def run_small(name: str, folder: Path) -> list[Figure]:
    """Run a bench to its end and give its figures, or fail with what it said."""
    folder.chmod(0o711)  # root's database server passes it
    place, out, err = folder / "tmp", folder / "out", folder / "err"
    place.mkdir(mode=0o711)
    with out.open("wb") as said, err.open("wb") as wrong:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"bench.{name}", "--small", "--json"),
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(place)},
            stdout=said,
            stderr=wrong,
        )
    try:
        async with asyncio.timeout(RUN_S):
            assert await process.wait() == 0, err.read_text()
        with suppress(TimeoutError):
            await until(lambda: not living(place), 60)
        assert not (left := [*living(place).values(), *place.iterdir()]), left
    finally:
        for pid in living(place):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.wait()
    figures, unread = benches.read(out.read_bytes())
    assert not unread, unread
    return figures


def living(place: Path) -> dict[int, str]:
    """Find the processes that have this folder in their command or environment."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        for said in ("cmdline", "environ"):
            with suppress(OSError):
                if bytes(place) in (process / said).read_bytes():
                    found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
    return found

"""B7: what a sandbox costs, measured through the provider as a worker calls it.

`make bench` runs it. The rule: real sandboxes on this machine, one at a time, and every figure beside its target.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from bench.figure import Figure, report, spread
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.sandbox import Sandbox, Spec

_FILES, _FILE_BYTES = 1000, 50 << 10
_FILL = f"import os\nfor n in range({_FILES}): open(f'f{{n}}', 'wb').write(os.urandom({_FILE_BYTES}))"
_IDLE = 20
TARGETS: dict[str, tuple[float, float | None]] = {
    "create to first output": (10, 30),
    "warm exec": (3, 10),
    "4 KiB write": (0.3, None),
    "4 KiB read": (0.3, None),
    "destroy": (50, None),
    "suspend 1,000 files, 50 MiB": (300, None),
    "restore of the same": (300, None),
    "idle sandbox MB": (1, None),
}
"""The most that each may take, median and 99th percentile."""

T = TypeVar("T")


async def measure(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each operation, and megabytes of an idle sandbox, by name."""
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="sojourn-bench-") as folder:
        provider = BwrapProvider(Path(folder), idle_s=0.2)
        await provider.probe()
        for turn in range(rounds):
            await _one_life(provider, figures, turn)
        for turn in range(max(1, rounds // 10)):
            await _one_move(provider, figures, turn)
        figures["idle sandbox MB"] = await _idle_mb(provider)
        await provider.reap(frozenset())
        await provider.close()
        while (Path(folder) / "keeper.sock").exists():  # noqa: ASYNC110  another process removes it
            await asyncio.sleep(0.05)
    return figures


async def _one_life(provider: BwrapProvider, figures: dict[str, list[float]], turn: int) -> None:
    began = time.perf_counter()
    sandbox = await provider.create(f"life-{turn}", Spec())
    await _echo(sandbox, "first")
    figures.setdefault("create to first output", []).append((time.perf_counter() - began) * 1e3)
    await _timed(figures, "warm exec", _echo(sandbox, "warm"))
    await _timed(figures, "4 KiB write", sandbox.write("file", bytes(4096)))
    await _timed(figures, "4 KiB read", sandbox.read("file"))
    await _timed(figures, "destroy", sandbox.destroy())


async def _one_move(provider: BwrapProvider, figures: dict[str, list[float]], turn: int) -> None:
    sandbox = await provider.create(f"move-{turn}", Spec())
    async for _ in sandbox.exec(["python3", "-c", _FILL], exec_id="fill"):
        pass
    snapshot = await _timed(figures, "suspend 1,000 files, 50 MiB", sandbox.suspend())
    restored = await _timed(figures, "restore of the same", provider.restore(f"move-{turn}", snapshot, Spec()))
    await restored.destroy()


async def _echo(sandbox: Sandbox, exec_id: str) -> None:
    async for _ in sandbox.exec(["echo", "hello"], exec_id=exec_id):
        pass


async def _idle_mb(provider: BwrapProvider) -> list[float]:
    """What each of some idle sandboxes adds: its processes' own pages, and its share of the keeper."""
    before = _session_pages_mb()
    sandboxes = [await provider.create(f"idle-{turn}", Spec()) for turn in range(_IDLE)]
    each = (_session_pages_mb() - before) / _IDLE
    for sandbox in sandboxes:
        await sandbox.destroy()
    return [each]


def _session_pages_mb() -> float:
    """The proportional share of memory of every process on this host that bubblewrap or a keeper started."""
    total_kb = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            if b"sojourn.sandboxes.keeper" in command or b"--disable-userns" in command or command == b"/usr/bin/cat\0":
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:
            continue
    return total_kb / 1024


async def _timed(figures: dict[str, list[float]], name: str, work: Awaitable[T]) -> T:
    began = time.perf_counter()
    result = await work
    figures.setdefault(name, []).append((time.perf_counter() - began) * 1e3)
    return result


def figures(measured: dict[str, list[float]]) -> list[Figure]:
    """Put each figure beside its target."""
    return [
        spread("B7", name, "MB" if name.endswith("MB") else "ms", measured[name], most=most)
        for name, most in TARGETS.items()
    ]


if __name__ == "__main__":
    report(figures(asyncio.run(measure(100))))

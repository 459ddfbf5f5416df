"""A product as the harness sees it: its adapter, spoken to by lines, and what the kernel says of its processes.

`measures` talks to it. The rule: an adapter that ends, hangs or says Trouble raises PeerFailed, which stops the
measuring of one row or of one product and of nothing else.
"""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import msgspec

from bench.peers.adapter import ROOT
from bench.peers.verbs import (
    AddWorker,
    AnyAnswer,
    AnyVerb,
    Begin,
    Decide,
    Follow,
    KillWorker,
    Look,
    Place,
    Settle,
    Stop,
)
from bench.processor import family, family_s

ANSWER_S = 240.0
LINE_BYTES_MAX = 1 << 20

_answer = msgspec.json.Decoder(AnyAnswer)


class PeerFailed(Exception):
    """Something about a product that did not work."""


class Peer:
    """One adapter's process."""

    def __init__(self, child: asyncio.subprocess.Process, errors: Path) -> None:
        self._child = child
        self._errors = errors

    @classmethod
    async def start(cls, python: Path, module: str, place: Place) -> "Peer":
        """Start an adapter with the interpreter of its venv; `ready` hears whether it came up."""
        errors = Path(place.folder) / "adapter.log"
        with errors.open("wb") as stderr:
            child = await asyncio.create_subprocess_exec(
                *(str(python), "-m", module, msgspec.json.encode(place).decode()),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                limit=LINE_BYTES_MAX,
                start_new_session=True,  # so that `stop` finds whatever it started
            )
        return cls(child, errors)

    async def ready(self) -> Any:
        return await self._hear()

    async def _say(self, verb: AnyVerb) -> Any:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(msgspec.json.encode(verb) + b"\n")
            await self._child.stdin.drain()
        except ConnectionError:
            pass  # it has ended, and `_hear` says why
        return await self._hear()

    async def _hear(self) -> Any:
        assert self._child.stdout is not None
        try:
            line = await asyncio.wait_for(self._child.stdout.readline(), ANSWER_S)
        except TimeoutError:
            self._end()
            raise PeerFailed(f"its adapter said nothing for {ANSWER_S:.0f} s") from None
        if not line:
            raise PeerFailed(f"its adapter ended: {self._errors.read_text(errors='replace')[-2000:]}")
        answer = _answer.decode(line)
        if why := getattr(answer, "why", ""):
            raise PeerFailed(why)
        return answer

    async def begin(self, runs: list[str], kind: Any, **more: Any) -> dict[str, float]:
        """Ask for runs; when each was asked for."""
        at: dict[str, float] = (await self._say(Begin(runs=tuple(runs), kind=kind, **more))).at
        return at

    async def settle(self, runs: list[str], state: Any = "completed", within_s: float = 60.0) -> float:
        """Wait until all have a state; when the last was seen to. Raises PeerFailed when they have not."""
        settled = await self._say(Settle(runs=tuple(runs), state=state, within_s=within_s))
        if settled.others:
            states = sorted(set(settled.others.values()))
            raise PeerFailed(f"{len(settled.others)} of {len(runs)} runs are not {state} but {', '.join(states)[:500]}")
        return float(settled.at)

    async def states(self, runs: list[str]) -> dict[str, str]:
        """The states of runs, in the product's words, but for those that have completed."""
        others: dict[str, str] = (await self._say(Settle(runs=tuple(runs), within_s=0))).others
        return others

    async def decide(self, run: str) -> float:
        return float((await self._say(Decide(run=run))).at[run])

    async def follow(self, run: str) -> tuple[float, ...]:
        late_ms: tuple[float, ...] = (await self._say(Follow(run=run))).late_ms
        return late_ms

    async def add_worker(self, *, again: bool = False) -> float:
        return float((await self._say(AddWorker(again=again))).at)

    async def kill_worker(self) -> float:
        return float((await self._say(KillWorker())).at)

    async def cpu_s(self) -> float:
        """Processor time of all the product's processes and what they started."""
        return family_s((await self._say(Look())).everything)

    async def memory_kb(self) -> int:
        """The workers' own share of memory."""
        return sum(map(_memory_kb, family((await self._say(Look())).workers)))

    async def stop(self) -> None:
        """End the product, whatever state it is in."""
        with contextlib.suppress(PeerFailed):
            await self._say(Stop())
        self._end()
        await self._child.wait()

    def _end(self) -> None:
        """Kill what is left of the adapter and of what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)


def _memory_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

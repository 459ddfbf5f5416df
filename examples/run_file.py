"""A run in one file, and the shell round the loop that drives it. Both examples stand on it.

The rule of every such shell: announce, save, perform, save. So whatever a crash interrupted can be told from the file.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sojourn.loop import Effect, Kept, apply, due, dumps, events, in_flight, loads, phase, wake_at


class InOtherHands(Exception):
    """Another process drives this run."""


def now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def taken(path: Path, begun: Kept | None = None) -> Iterator["RunFile"]:
    """Take the run of a file, or put a new one there, and keep other processes off. Raises InOtherHands, Unreadable."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it dies with its holder
        except BlockingIOError:
            raise InOtherHands(f"Another process has {path} in its hands.") from None
        if begun is not None and path.exists():
            raise FileExistsError(f"{path} holds a run already.")
        file = RunFile(path, begun or loads(path.read_bytes()))
        if begun is not None:
            file.save()
        yield file


class RunFile:
    """A run, the agents that it is pinned to, and where both are kept."""

    def __init__(self, path: Path, kept: Kept) -> None:
        self.path, self.run, self.agents = path, kept.run, kept.agents

    def tell(self, *what: events.Event) -> bool:
        """Take in what has happened, and save it; false where it answers nothing that is open."""
        before = self.run
        for event in what:
            self.run = apply(self.agents, self.run, event)
        if self.run is before:
            return False
        self.save()
        return True

    def save(self) -> None:
        """Replace the file: after a crash, or a loss of power, it is the old one or this one, whole."""
        new = self.path.with_name(f"{self.path.name}.new")
        with new.open("wb") as file:
            file.write(dumps(self.run, self.agents))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


Perform = Callable[[Effect, RunFile], events.Event]
"""Do it, and say what came of it."""


def go_on(file: RunFile, perform: Perform) -> None:
    """Take the run as far as it goes. After a crash, a decision or a week it is the same: ask what is due, go on."""
    file.tell(*in_flight(file.run, now()), events.Ticked(at=now()))
    while phase(file.agents, file.run) == "running":
        if effects := due(file.agents, file.run):  # one after the other; what is due at once may run at once
            file.tell(effects[0].announced(now()))
            if not file.tell(perform(effects[0], file)):
                raise RuntimeError("The event that came back is not about what was asked for.")
        elif wake := wake_at(file.run):
            time.sleep(max(0.0, (wake - now()).total_seconds()))
            file.tell(events.Ticked(at=now()))

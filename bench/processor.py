"""Processor time of processes that are measured from outside, out of /proc. Called by the benches."""

import os
from pathlib import Path

from sojourn.store.embedded.home import home_in

_TICK = os.sysconf("SC_CLK_TCK")
LEAST_S = 1 / _TICK
"""The shortest time that the kernel tells: what took no time at all took this."""
_OWN, _WITH_ENDED_CHILDREN = slice(11, 13), slice(11, 15)
"""Places in /proc/PID/stat behind the name. Source: proc_pid_stat(5)."""


def own_s(pid: int) -> float:
    """Seconds that one process used so far."""
    return _seconds(pid, _OWN)


def family_s(pids: tuple[int, ...]) -> float:
    """Seconds of processes, of what they started, and of what they started that has ended."""
    total = 0.0
    for pid in family(pids):
        try:
            total += _seconds(pid, _WITH_ENDED_CHILDREN)
        except OSError:
            continue  # it has ended, and its parent counts it
    return total


def database_s(data_dir: Path) -> float:
    """Seconds that the embedded database of a data folder used so far."""
    return family_s((int((home_in(data_dir).data / "postmaster.pid").read_text().split()[0]),))


def family(pids: tuple[int, ...]) -> list[int]:
    """List processes and all that they started."""
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting += map(int, children.read_text().split())
            except OSError:
                continue  # the thread has ended
    return found


def _seconds(pid: int, fields: slice) -> float:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[fields])) / _TICK

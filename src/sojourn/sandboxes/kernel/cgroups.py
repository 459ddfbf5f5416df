"""The kernel's own accounts for memory and processor time, where this process may make them.

The keeper calls `find` once, then `Cgroups.create` per sandbox. The ladder is cgroup v2 (delegated, or as root), then
cgroup v1 as root, for each controller by itself; what neither gives is left to rlimits and the poller (`watch.py`). The
rule: a controller counts as found only after a group of ours was made under it and its limit file was there.
"""

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from sojourn.sandboxes.sandbox import Limits

_PERIOD_US = 100_000
_REMOVE_TRIES, _REMOVE_WAIT_S = 200, 0.005
_LIMIT_FILES = {
    ("cgroup v2", "memory"): "memory.max",
    ("cgroup v2", "cpu"): "cpu.max",
    ("cgroup v1", "memory"): "memory.limit_in_bytes",
    ("cgroup v1", "cpu"): "cpu.cfs_quota_us",
}
_COUNT_FILES = {"cgroup v2": "memory.events", "cgroup v1": "memory.oom_control"}


@dataclass(frozen=True, slots=True)
class Group:
    """The groups of one sandbox: (mechanism, controller) -> folder."""

    found: dict[tuple[str, str], Path]

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(self.found.values()))

    @property
    def joins(self) -> tuple[str, ...]:
        """A process joins by writing "0" to each of these files."""
        return tuple(str(path / "cgroup.procs") for path in self.paths)

    def limit(self, limits: Limits) -> None:
        """Write the limits. Raises OSError."""
        for kind, path in self.found.items():
            _limit(path, kind, limits)

    def oom_kills(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        for (mechanism, controller), path in self.found.items():
            if controller == "memory":
                with contextlib.suppress(OSError):
                    words = (path / _COUNT_FILES[mechanism]).read_bytes().split()
                    return int(words[words.index(b"oom_kill") + 1])
        return 0

    async def remove(self) -> None:
        """Remove the groups; the kernel may need a moment to see that their processes have gone."""
        for path in self.paths:
            for attempt in range(_REMOVE_TRIES):
                try:
                    path.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    await asyncio.sleep(_REMOVE_WAIT_S * min(1.0, attempt / 10))


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where groups can be made on this machine: controller -> (mechanism, folder)."""

    found: dict[str, tuple[str, Path]] = field(default_factory=dict)

    def mechanism(self, controller: str) -> str | None:
        return self.found[controller][0] if controller in self.found else None

    def create(self, name: str) -> Group:
        """Groups for one sandbox, without limits yet. Raises OSError."""
        group = Group(
            {(mechanism, controller): folder / name for controller, (mechanism, folder) in self.found.items()}
        )
        for path in group.paths:
            path.mkdir()
        return group

    def remove_leftovers(self) -> None:
        """Remove the empty groups of a keeper that was killed."""
        for _, folder in self.found.values():
            for child in folder.iterdir():
                if child.is_dir():
                    with contextlib.suppress(OSError):
                        child.rmdir()

    def close(self) -> None:
        """Remove our own folders when no sandbox is left in them."""
        for folder in {folder for _, folder in self.found.values()}:
            with contextlib.suppress(OSError):
                folder.rmdir()


def name_for(folder: Path) -> str:
    """The folder of groups that belongs to the sandboxes in `folder` on this machine, and to no others."""
    there = folder.stat()
    return f"sojourn-{there.st_dev:x}-{there.st_ino:x}"


def find(name: str) -> Cgroups:
    """Try each controller on each mechanism, strongest first; `name` is the folder that is made for us."""
    found: dict[str, tuple[str, Path]] = {}
    for controller in ("memory", "cpu"):
        for mechanism, base in _candidates(controller):
            folder = base / name
            if _usable(folder, mechanism, controller):
                found[controller] = (mechanism, folder)
                break
    return Cgroups(found)


def _limit(path: Path, kind: tuple[str, str], limits: Limits) -> None:
    quota = max(1000, int(limits.cpus * _PERIOD_US))
    match kind:
        case ("cgroup v2", "memory"):
            (path / "memory.max").write_text(str(limits.memory_bytes))
            if (path / "memory.swap.max").exists():
                (path / "memory.swap.max").write_text("0")
        case ("cgroup v1", "memory"):
            (path / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
            if (path / "memory.memsw.limit_in_bytes").exists():
                (path / "memory.memsw.limit_in_bytes").write_text(str(limits.memory_bytes))
        case ("cgroup v2", "cpu"):
            (path / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        case ("cgroup v1", "cpu"):
            (path / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (path / "cpu.cfs_quota_us").write_text(str(quota))


def _usable(folder: Path, mechanism: str, controller: str) -> bool:
    try:
        folder.mkdir(exist_ok=True)
        if mechanism == "cgroup v2":
            _delegate(folder.parent, controller)
            _delegate(folder, controller)
        probe = folder / "probe"
        probe.mkdir(exist_ok=True)
        usable = os.access(probe / _LIMIT_FILES[mechanism, controller], os.W_OK)
        probe.rmdir()
    except OSError:
        usable = False
    if not usable:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return usable


def _delegate(folder: Path, controller: str) -> None:
    if controller not in (folder / "cgroup.subtree_control").read_text().split():
        (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _candidates(controller: str) -> list[tuple[str, Path]]:
    """(mechanism, folder) pairs, from our own group upwards for v2, where a group with processes cannot be split."""
    mounts = _mounts()
    candidates: list[tuple[str, Path]] = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, own = line.split(":", 2)
        if names == "" and "cgroup2" in mounts:
            at = mounts["cgroup2"]
            here = at / own.lstrip("/")
            candidates[:0] = [
                ("cgroup v2", folder) for folder in dict.fromkeys([here, here.parent, at]) if _within(folder, at)
            ]
        elif controller in names.split(",") and controller in mounts:
            candidates.append(("cgroup v1", mounts[controller] / own.lstrip("/")))
    return candidates


def _within(folder: Path, top: Path) -> bool:
    return folder == top or top in folder.parents


def _mounts() -> dict[str, Path]:
    """Controller (or "cgroup2") -> where its hierarchy is mounted."""
    mounts: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        target, (kind, _, options) = left.split()[4], right.split()[:3]
        if kind == "cgroup2":
            mounts["cgroup2"] = Path(target)
        elif kind == "cgroup":
            mounts |= {name: Path(target) for name in options.split(",") if name in ("memory", "cpu")}
    return mounts

"""Walking and removing folders that a workload made, without trusting anything in them.

`watch.py` measures with it and `session.py` removes with it. The rule: every step is relative to an open descriptor and
follows no link, and the walk is a generator that gives the loop back after a slice of work.
"""

import contextlib
import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sojourn.sandboxes.kernel import calls

_SLICE = 256
_DEPTH_MAX = 256
_GET_FLAGS, _SET_FLAGS, _TOP_OF_HIERARCHIES = 0x80086601, 0x40086602, 0x20000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Usage:
    """What a tree takes on its disk; `too_deep` when folders are nested beyond what is walked."""

    disk_bytes: int = 0
    inodes: int = 0
    too_deep: bool = False
    _met: set[int] = field(default_factory=set)

    def add(self, info: os.stat_result) -> None:
        """Count one file; a file with several names, or none, is counted the first time that it is met."""
        if info.st_nlink != 1 and not stat.S_ISDIR(info.st_mode):
            if info.st_ino in self._met:
                return
            self._met.add(info.st_ino)
        self.disk_bytes += info.st_blocks * 512
        self.inodes += 1

    def exceeds(self, ceiling: "Usage") -> bool:
        return self.too_deep or self.disk_bytes > ceiling.disk_bytes or self.inodes > ceiling.inodes

    def at_least(self, disk_bytes: int, inodes: int) -> "Usage":
        """The ceiling for the next look: this usage, or the limits where they are higher."""
        return Usage(max(self.disk_bytes, disk_bytes), max(self.inodes, inodes))


def measure(top: Path, usage: Usage) -> Iterator[None]:
    """Add all below `top` to `usage`, a slice at a time; entries that vanish meanwhile are passed over."""
    stack: list[tuple[int, Iterator[str]]] = []
    seen = 0
    try:
        with contextlib.suppress(OSError):
            stack.append(_listing(os.open(top, _FOLDER)))
        while stack:
            folder, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            seen += 1
            if seen % _SLICE == 0:
                yield
            with contextlib.suppress(OSError):
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
                usage.add(info)
                if not stat.S_ISDIR(info.st_mode):
                    continue
                if len(stack) >= _DEPTH_MAX:
                    usage.too_deep = True
                else:
                    stack.append(_listing(os.open(name, _FOLDER, dir_fd=folder)))
    finally:
        for folder, _ in stack:
            os.close(folder)


def _listing(folder: int) -> tuple[int, Iterator[str]]:
    try:
        return folder, iter(calls.names_in(folder))
    except OSError:
        return folder, iter(())


def spread(top: Path) -> None:
    """Have ext4 lay the folders in this one apart; a filesystem that knows no such thing is left alone.

    Without a journal it skips what was freed in the last minute, inode by inode: a new file beside 1,000 removed ones
    takes 20 times as long. Source: chattr(1), "T"; fs/ext4/ialloc.c, recently_deleted (Linux 6.18).
    """
    fd = os.open(top, _FOLDER)
    try:
        with contextlib.suppress(OSError):
            flags = int.from_bytes(fcntl.ioctl(fd, _GET_FLAGS, bytes(8))[:4], sys.byteorder)
            fcntl.ioctl(fd, _SET_FLAGS, (flags | _TOP_OF_HIERARCHIES).to_bytes(8, sys.byteorder))
    finally:
        os.close(fd)


def give(top: Path, uid: int) -> None:
    """Make a uid the owner of a tree in which nothing runs; links are given themselves, not what they name."""
    os.chown(top, uid, uid, follow_symlinks=False)
    for _, folders, files, fd in os.fwalk(top):
        for name in (*folders, *files):
            os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a folder from others who would hold it, as long as this process lives. Raises BlockingIOError."""
    fd = os.open(folder, _FOLDER)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def remove(name: str | Path, *, dir_fd: int | None = None) -> Iterator[None]:
    """Remove a folder of any depth, a slice at a time, even while somebody still changes it.

    A folder inside a folder is moved up to the top before it is emptied, so that two descriptors are enough.
    Raises OSError.
    """
    top = _opened(name, dir_fd)
    moved = 0
    try:
        while entries := calls.names_in(top):
            for entry in entries:
                if _unlinked(entry, top):
                    continue
                folder = _opened(entry, top)
                try:
                    for inner in calls.names_in(folder):
                        moved += 1
                        if not _unlinked(inner, folder):
                            os.close(_opened(inner, folder))  # a folder that is closed to us cannot be moved
                            os.rename(inner, f".{os.urandom(8).hex()}", src_dir_fd=folder, dst_dir_fd=top)
                        if moved % _SLICE == 0:
                            yield
                finally:
                    os.close(folder)
                os.rmdir(entry, dir_fd=top)
            yield
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dir_fd)


def _unlinked(name: str, folder: int) -> bool:
    """Remove one entry; False for a folder."""
    try:
        os.unlink(name, dir_fd=folder)
    except (IsADirectoryError, PermissionError):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return False
        raise
    return True


def _opened(name: str | Path, folder: int | None) -> int:
    """Open a folder, also one that its owner has closed to himself."""
    path_fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        Path(f"/proc/self/fd/{path_fd}").chmod(0o700)
        return os.open(".", _FOLDER, dir_fd=path_fd)
    finally:
        os.close(path_fd)

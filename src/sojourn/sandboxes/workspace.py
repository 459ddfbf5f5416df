"""A session's files, read and written from the host while the workload may be changing them.

`bwrap.py` calls it, in whichever process asks: no keeper is needed, so files can be listed when the sandbox has ended.
The rule: a path is resolved by the kernel, in one step, beneath the workspace (openat2), and what was opened is looked
at before it is used. Nothing is checked first and opened later; only regular files are read; nothing is waited on.
"""

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from sojourn.errors import Invalid, NotFound, OverLimit, Unavailable
from sojourn.sandboxes.kernel import tree
from sojourn.sandboxes.kernel.calls import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, names_in, openat2
from sojourn.sandboxes.sandbox import WORKSPACE, FileStat

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
_DEPTH_MAX = 128
_TRIES = 16
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Workspace:
    """The files below one folder; every method is one blocking call, to be made in a thread."""

    def __init__(self, top: Path) -> None:
        self._top = top

    def read(self, path: str, *, offset: int, limit_bytes: int) -> bytes:
        """Up to `limit_bytes` of a regular file."""
        with self._at(path) as (top, relative), _closing(_open(top, relative, os.O_RDONLY | os.O_NONBLOCK)) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Invalid(f"{path} is not a regular file")
            pieces = []
            while limit_bytes > 0 and (piece := os.pread(fd, min(limit_bytes, 1 << 20), offset)):
                pieces.append(piece)
                offset += len(piece)
                limit_bytes -= len(piece)
            return b"".join(pieces)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file whole, atomically, making its folders; its permissions are kept."""
        with self._at(path) as (top, relative):
            folder, name = _split(relative, path)
            with _closing(_folder(top, folder)) as parent:
                _replace(parent, name, data, owner=os.fstat(top))

    def list(self, path: str, *, depth: int, limit: int) -> list[FileStat]:
        """Entries below a folder, each folder's in order of name, the near ones first; links are not followed."""
        found: list[FileStat] = []
        with self._at(path) as (top, relative):
            found += _entries(top, relative, flags=0)
            waiting = deque((entry.path, depth - 1) for entry in found if entry.kind == "directory")
            while waiting and len(found) < limit:
                folder, left = waiting.popleft()
                if left > 0:
                    with contextlib.suppress(OSError):  # it went away, became a link, or is closed to us
                        fresh = _entries(top, folder, flags=os.O_NOFOLLOW)
                        found += fresh
                        waiting += ((entry.path, left - 1) for entry in fresh if entry.kind == "directory")
        return found[:limit]

    def stat(self, path: str) -> FileStat:
        """One entry; of a link, the link itself."""
        with self._at(path) as (top, relative), _closing(_open(top, relative, os.O_PATH | os.O_NOFOLLOW)) as fd:
            return _described(relative, os.fstat(fd))

    def remove(self, path: str) -> None:
        """Remove a file, a link, or a folder with all in it."""
        with self._at(path) as (top, relative):
            folder, name = _split(relative, path)
            with _closing(_open(top, folder, _FOLDER)) as parent:
                try:
                    os.unlink(name, dir_fd=parent)
                except (IsADirectoryError, PermissionError):
                    for _ in tree.remove(name, dir_fd=parent):
                        pass

    def mkdir(self, path: str) -> None:
        """Make a folder and those above it; one that is there already is left as it is."""
        with self._at(path) as (top, relative):
            os.close(_folder(top, relative))

    @contextlib.contextmanager
    def _at(self, path: str) -> Iterator[tuple[int, str]]:
        """The workspace's descriptor and `path` relative to it; what the kernel says becomes an error of ours."""
        relative = _relative(path)
        try:
            top = os.open(self._top, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with _closing(top):
                yield top, relative
        except FileNotFoundError as error:
            raise NotFound(f"there is no {path} in this session's workspace") from error
        except OSError as error:
            raise _explained(error, path) from error


def _relative(path: str) -> str:
    if path == WORKSPACE or path.startswith(WORKSPACE + "/"):
        path = path[len(WORKSPACE) :].lstrip("/")
    if path.startswith("/") or "\0" in path:
        raise Invalid(f"a path is relative to the workspace, or begins with {WORKSPACE}/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) > _DEPTH_MAX:
        raise Invalid(f"a path has at most {_DEPTH_MAX} parts")
    return "/".join(parts) or "."


def _split(relative: str, path: str) -> tuple[str, str]:
    """The folder and the name of something that is made or removed in it."""
    folder, _, name = relative.rpartition("/")
    if name in (".", ".."):
        raise Invalid(f"{path} cannot be replaced or removed")
    return folder or ".", name


def _open(top: int, relative: str, flags: int) -> int:
    """Open beneath the workspace; the kernel asks to try again when a folder was moved in between."""
    name = os.fsencode(relative)
    for attempt in range(_TRIES):
        try:
            return openat2(name, flags, dir_fd=top, resolve=RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
        except BlockingIOError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError


def _entries(top: int, folder: str, *, flags: int) -> list[FileStat]:
    """What one folder holds, in order of name."""
    found = []
    with _closing(_open(top, folder, _FOLDER | flags)) as fd:
        for name in sorted(names_in(fd)):
            with contextlib.suppress(FileNotFoundError):
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                found.append(_described(name if folder == "." else f"{folder}/{name}", info))
    return found


def _folder(top: int, relative: str) -> int:
    """Open a folder, making it and those above it when they are missing."""
    try:
        return _open(top, relative, _FOLDER)
    except FileNotFoundError:
        above, name = _split(relative, relative)
        with _closing(_folder(top, above)) as parent, contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
            _own(parent, name, os.fstat(top))
    return _open(top, relative, _FOLDER)


def _replace(parent: int, name: str, data: bytes, *, owner: os.stat_result) -> None:
    temporary = f".{os.urandom(8).hex()}.partial"
    mode = 0o644
    with contextlib.suppress(FileNotFoundError):
        before = os.stat(name, dir_fd=parent, follow_symlinks=False)
        mode = stat.S_IMODE(before.st_mode) & 0o777 if stat.S_ISREG(before.st_mode) else mode
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=parent)
    try:
        with _closing(fd):
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]
            os.fchmod(fd, mode)
            if os.geteuid() == 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=parent)
        raise


def _own(parent: int, name: str, owner: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)


def _described(path: str, info: os.stat_result) -> FileStat:
    kind: Literal["file", "directory", "symlink", "other"] = "other"
    if stat.S_ISREG(info.st_mode):
        kind = "file"
    elif stat.S_ISDIR(info.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(info.st_mode):
        kind = "symlink"
    readable = os.fsencode(path).decode(errors="replace")
    return FileStat(path=readable, kind=kind, size_bytes=info.st_size, modified_at=info.st_mtime)


def _explained(error: OSError, path: str) -> Exception:
    if error.errno in _FULL:
        return OverLimit(f"the disk is full, so {path} was not written")
    if error.errno in (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO):
        return Unavailable(f"{path} cannot be opened now: {error.strerror}")
    if error.errno == errno.EXDEV:
        return Invalid(f"{path} leads out of the workspace")
    return Invalid(f"{path}: {error.strerror}")


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)

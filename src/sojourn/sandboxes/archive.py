"""A workspace as a tar, and back.

`bwrap.py` calls `pack` for a snapshot and `unpack` for a restore. The rule: the same files give the same bytes, and
nothing in an archive is believed: not its names, links, kinds, modes or sizes. Times are kept to the second.
"""

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from sojourn.errors import Invalid, OverLimit
from sojourn.sandboxes.kernel.calls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, names_in, openat2
from sojourn.sandboxes.sandbox import Limits, Snapshot

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH_MAX = 128
_UID = 1000  # as inside; it says nothing about this host
_KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)


def pack(top: Path, limits: Limits) -> Snapshot:
    """The folders, regular files and links below `top`; sockets, pipes and devices are left out.

    Raises OverLimit when there is more than the session's own limits allow, holes of sparse files included.
    """
    packing = _Packing(limits)
    fd = os.open(top, _FOLDER)
    try:
        packing.add_folder(fd, "", depth=0)
    finally:
        os.close(fd)
    packing.blocks.append(bytes(2 * tarfile.BLOCKSIZE))
    data = b"".join(packing.blocks)
    return Snapshot(digest=_digest(data), data=data)


def unpack(snapshot: Snapshot, top: Path, limits: Limits) -> None:
    """Fill the empty folder `top`.

    Raises Invalid for an archive that is not ours or means harm, OverLimit for one that is too large.
    """
    if _digest(snapshot.data) != snapshot.digest:
        raise Invalid("the snapshot's digest does not fit its content")
    fd = os.open(top, _FOLDER)
    try:
        with tarfile.open(fileobj=io.BytesIO(snapshot.data), mode="r:", errors="surrogateescape") as archive:
            members = list(_checked(archive, limits))
        with _Unpacking(fd, snapshot.data) as unpacking:
            for member in members:
                unpacking.place(member)
            for member in reversed(members):
                unpacking.finish(member)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        raise Invalid(f"the snapshot cannot be restored: {error}") from error
    finally:
        os.close(fd)


class _Packing:
    """The archive as it grows."""

    def __init__(self, limits: Limits) -> None:
        self.blocks: list[bytes] = []
        self.files = 0
        self.size_bytes = 0
        self._limits = limits
        self._first_names: dict[int, str] = {}

    def add_folder(self, folder: int, prefix: str, *, depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise OverLimit(f"folders are nested deeper than {_DEPTH_MAX}")
        for name in sorted(names_in(folder)):
            try:
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
                self._add(folder, name, prefix + name, info)
                if stat.S_ISDIR(info.st_mode):
                    fd = _opened(folder, name, _FOLDER, info)
                    try:
                        self.add_folder(fd, f"{prefix}{name}/", depth=depth + 1)
                    finally:
                        os.close(fd)
            except FileNotFoundError:
                continue  # it went away while we looked, which is its right

    def _add(self, folder: int, name: str, path: str, info: os.stat_result) -> None:
        member = tarfile.TarInfo(path)
        member.uid = member.gid = _UID
        member.mode = stat.S_IMODE(info.st_mode) & 0o777
        member.mtime = int(info.st_mtime)
        content = b""
        if stat.S_ISDIR(info.st_mode):
            member.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(info.st_mode):
            member.type, member.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=folder)
        elif not stat.S_ISREG(info.st_mode):
            return
        elif (first := self._first_names.setdefault(info.st_ino, path)) != path:
            member.type, member.linkname = tarfile.LNKTYPE, first
        else:
            self._count(info.st_size)
            content = _content(folder, name, info)
            member.size = len(content)
        self._count(0, files=1)
        padding = bytes(-len(content) % tarfile.BLOCKSIZE)
        self.blocks += (member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"), content, padding)

    def _count(self, size_bytes: int, *, files: int = 0) -> None:
        self.size_bytes += size_bytes
        self.files += files
        if self.size_bytes > self._limits.disk_bytes or self.files > self._limits.inodes:
            raise OverLimit("the workspace is larger than the session's limits, so it cannot be stored")


def _content(folder: int, name: str, info: os.stat_result) -> bytes:
    """A file's bytes, no more than it had when it was looked at."""
    fd = _opened(folder, name, _FILE, info)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(name)
        return file.read(info.st_size)


def _opened(folder: int, name: str, flags: int, info: os.stat_result) -> int:
    """Open an entry, also one that its owner has closed to himself; its mode is as before afterwards."""
    try:
        return os.open(name, flags, dir_fd=folder)
    except PermissionError:
        path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        at = Path(f"/proc/self/fd/{path_fd}")
        try:
            at.chmod(stat.S_IMODE(info.st_mode) | 0o700)
            return os.open(at, flags & ~os.O_NOFOLLOW)
        finally:
            at.chmod(stat.S_IMODE(info.st_mode))
            os.close(path_fd)


def _checked(archive: tarfile.TarFile, limits: Limits) -> Iterator[tarfile.TarInfo]:
    """The members, each proven to stay below the top and all within the limits."""
    kinds: dict[str, bytes] = {}
    size_bytes = 0
    for member in archive:
        parts = member.name.split("/")
        if member.type not in _KINDS or member.sparse is not None:
            raise Invalid("the snapshot holds something that is neither a file, a folder nor a link")
        if any(part in ("", ".", "..") for part in parts) or "\0" in member.name or len(parts) > _DEPTH_MAX + 1:
            raise Invalid("the snapshot holds a name that leads out of the workspace")
        if member.name in kinds:
            raise Invalid("the snapshot holds one name twice")
        if member.type == tarfile.LNKTYPE and kinds.get(member.linkname) not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise Invalid("the snapshot holds a hard link to something that is not a file before it")
        kinds[member.name] = member.type
        size_bytes += member.size
        if size_bytes > limits.disk_bytes or len(kinds) > limits.inodes:
            raise OverLimit("the snapshot is larger than the session's limits")
        yield member


class _Unpacking:
    """The folder as it is filled. Every entry is made in a folder that was reached without any link."""

    def __init__(self, top: int, data: bytes) -> None:
        self._top = top
        self._data = memoryview(data)
        self._folder, self._folder_fd = "", os.dup(top)

    def __enter__(self) -> "_Unpacking":
        return self

    def __exit__(self, *failure: object) -> None:
        os.close(self._folder_fd)

    def place(self, member: tarfile.TarInfo) -> None:
        """Make one entry; a folder is left open to us until `finish`."""
        parent, name = self._parent(member)
        if member.isdir():
            os.mkdir(name, 0o700, dir_fd=parent)
        elif member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
            os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)
        elif member.islnk():
            source = _beneath(self._top, member.linkname, os.O_PATH)
            os.link(f"/proc/self/fd/{source}", name, dst_dir_fd=parent, follow_symlinks=True)
            os.close(source)
        else:
            self._write(member, os.open(name, _NEW, 0o600, dir_fd=parent))

    def finish(self, member: tarfile.TarInfo) -> None:
        """Set a folder's times and permissions; called from the last entry to the first, when it has been filled."""
        if member.isdir():
            parent, name = self._parent(member)
            os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)
            os.chmod(name, member.mode & 0o777, dir_fd=parent)

    def _write(self, member: tarfile.TarInfo, fd: int) -> None:
        content = self._data[member.offset_data : member.offset_data + member.size]
        with os.fdopen(fd, "wb", buffering=0) as file:
            if len(content) != member.size or file.write(content) != member.size:
                raise EOFError(f"{member.size} bytes were announced and not found, or not written")
            os.utime(fd, (member.mtime, member.mtime))
            os.fchmod(fd, member.mode & 0o777)

    def _parent(self, member: tarfile.TarInfo) -> tuple[int, str]:
        """The folder of an entry, which is kept open for those that follow, and the entry's name in it."""
        folder, _, name = member.name.rpartition("/")
        if folder != self._folder:
            fd = _beneath(self._top, folder or ".", _FOLDER)
            os.close(self._folder_fd)
            self._folder, self._folder_fd = folder, fd
        return self._folder_fd, name


def _beneath(top: int, path: str, flags: int) -> int:
    return openat2(os.fsencode(path), flags, dir_fd=top, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()

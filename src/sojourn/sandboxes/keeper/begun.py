"""Which programs a session ever began: a file beside its workspace that outlives sandbox and keeper.

`session.py` asks it before a program begins; `bwrap.py` takes it along when the files go to another host. The rules: an
id is written before its program is forked; nothing in a sandbox reaches the file; and it says "never" only where it
goes back to the session's first sandbox, and no crash of the machine can have taken its last lines.
"""

import os
from pathlib import Path

_BYTES_MAX = 1 << 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Begun:
    """The exec ids of one session, one a line, in hex. A whole record has the machine's boot in its first line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = _boot()
        self._ids = set(path.read_text().split()) if path.exists() else set()

    @staticmethod
    def begin(path: Path, ids: str = "") -> None:
        """Start the whole record of a workspace that is made now, on which these were begun before."""
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(f"{_boot()}\n{ids}\n")

    def may_begin(self, exec_id: str, *, again: bool) -> bool:
        """Whether no program of this id was begun; `again` says that one may have been, and asks for certainty."""
        return _line(exec_id) not in self._ids and (self._whole or not again)

    def add(self, exec_id: str) -> None:
        """Write down that the program of this id begins. Raises OSError."""
        self._ids.add(_line(exec_id))
        with self._path.open("ab", buffering=0) as file:
            file.write(f"\n{_line(exec_id)}\n".encode())  # an end of line first: the last write may have been cut

    def carried(self) -> str | None:
        """Give the ids for another host to go on with; None where the record is not whole, or too long."""
        ids = "\n".join(sorted(self._ids - {self._boot}))
        return ids if self._whole and len(ids) <= _BYTES_MAX else None

    @property
    def _whole(self) -> bool:
        return self._boot in self._ids


def _boot() -> str:
    """Name this boot of the machine; where that is not known, by two words, which no record has as one."""
    return _BOOT.read_text().strip() if os.access(_BOOT, os.R_OK) else "unknown boot"


def _line(exec_id: str) -> str:
    return exec_id.encode(errors="surrogatepass").hex()

"""Which programs a session ever began on this host: a file beside its workspace that outlives sandbox and keeper.

`session.py` asks it when a program may have been begun before. The rule: an id is written before its program is forked,
and only a record as old as the workspace can say that one was never begun.
"""

from pathlib import Path


class Begun:
    """The exec ids of one session, one a line, in hex."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = path.exists()
        self._ids = set(path.read_text().split()) if self._whole else set()

    @staticmethod
    def begin(path: Path) -> None:
        """Start the record of a workspace that is made now."""
        path.touch(mode=0o600)

    def never(self, exec_id: str) -> bool:
        """Whether it is certain that no program of this id was begun on this workspace."""
        return self._whole and _line(exec_id) not in self._ids

    def add(self, exec_id: str) -> None:
        """Write down that the program of this id begins."""
        self._ids.add(_line(exec_id))
        if self._whole:
            with self._path.open("a") as file:
                file.write(_line(exec_id) + "\n")


def _line(exec_id: str) -> str:
    return exec_id.encode(errors="surrogatepass").hex()

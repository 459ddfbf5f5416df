"""A uid on the host for each session, when the keeper is root.

`server.py` claims one before a launch. The rule: the owner of a workspace folder is the record, so a claim survives the
keeper, and two sessions of one data folder never share a uid.
"""

import hashlib
import itertools
import os
from pathlib import Path

from sojourn.sandboxes.kernel import tree

# Source: systemd.io/UIDS-GIDS (2025-11): no software allocates from this range. A data folder gets a slice of it.
_FIRST, _SLICES, _SLICE = 1_879_048_192, 4096, 65_536
_WHOLE_MAP = 0xFFFFFFFF


class Uids:
    """Hands out the uids of one data folder's slice."""

    def __init__(self, workspaces: Path) -> None:
        self._workspaces = workspaces
        self._range = _slice(workspaces)
        self._next = self._range.start

    def claim(self, workspace: Path) -> int:
        """The uid of this workspace, made its owner now when it had none of ours. Raises OSError."""
        owner = workspace.stat().st_uid
        if owner in self._range:
            return owner
        taken = {entry.stat(follow_symlinks=False).st_uid for entry in os.scandir(self._workspaces)}
        candidates = itertools.chain(range(self._next, self._range.stop), self._range)
        free = (uid for uid in candidates if uid not in taken)
        uid = next(free, None)
        if uid is None:
            raise OSError(f"all {len(self._range)} session uids of this data folder are taken")
        self._next = uid + 1
        tree.give(workspace, uid)
        return uid


def _slice(workspaces: Path) -> range:
    """The data folder's own uids; the last ones that are mapped where this is a container with few."""
    _, _, count = (int(word) for word in Path("/proc/self/uid_map").read_text().split()[:3])
    if count < _WHOLE_MAP:
        return range(max(1000, count - 16_384), count - 1024)
    digest = hashlib.sha256(str(workspaces.absolute()).encode()).digest()
    start = _FIRST + int.from_bytes(digest[:4], "big") % _SLICES * _SLICE
    return range(start, start + _SLICE)

"""Carries what a program writes from its pipe into its transcript.

`running.py` makes one per stream. The rule: the program is never blocked for long and the keeper is never kept busy by
it, whether it writes one byte at a time or without end; the pipe stays open for daemons that outlive the program.
"""

import asyncio
import contextlib
import fcntl
import os

from sojourn.sandboxes.keeper.transcript import Stream, Transcript

_PIPE_BYTES = 256 << 10
_SMALL_BYTES = 4096
_DRAIN_READS = 64
_PAUSE_S, _PAUSE_S_MAX = 0.001, 0.05


class Pump:
    """The reading end of one pipe; `write_fd` is for the program and is closed by `opened`."""

    def __init__(self, transcript: Transcript, stream: Stream, uid: int | None) -> None:
        self._transcript: Transcript | None = transcript
        self._stream: Stream = stream
        self._fd, self.write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.write_fd, True)
        with contextlib.suppress(OSError):  # above the user's share of pipe pages the default size stays
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        if uid is not None:
            os.fchown(self.write_fd, uid, uid)  # so that /dev/stdout can be opened inside
        self._loop = asyncio.get_running_loop()

    def opened(self) -> None:
        """Close our copy of the program's end and begin to read."""
        os.close(self.write_fd)
        self._loop.add_reader(self._fd, self._read)

    def finish(self) -> None:
        """Take what is in the pipe now; what daemons write later is read and thrown away."""
        for _ in range(_DRAIN_READS):
            if not self._take():
                break
        self._transcript = None

    def close(self) -> None:
        """Let go of the pipe; it may be closed already."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        size = self._take()
        if size:
            self._pause(size)

    def _pause(self, size: int) -> None:
        """Rest a little, so that small writes gather and an endless one leaves the loop to others."""
        transcript = self._transcript
        if transcript is not None and not transcript.full and size >= _SMALL_BYTES:
            return
        pause_s = _PAUSE_S if transcript is not None and transcript.full else self._gather_s()
        self._loop.remove_reader(self._fd)
        self._loop.call_later(pause_s, self._resume)

    def _gather_s(self) -> float:
        """Longer the more pieces there are, which bounds their number."""
        pieces = self._transcript.pieces if self._transcript is not None else 1 << 10
        return min(_PAUSE_S_MAX, _PAUSE_S * (1 + pieces / 50))

    def _resume(self) -> None:
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._read)

    def _take(self) -> int:
        """Move one pipe full; 0 when there is nothing now, and at the end, where the pipe closes."""
        if self._fd < 0:
            return 0
        try:
            data = os.read(self._fd, _PIPE_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self.close()
        elif self._transcript is not None:
            self._transcript.add(self._stream, data)
        return len(data)

"""One reader for each run that is followed here, shared by all who follow it. `app` runs it, streams follow through it.

The rules: followers cost no query; a slow follower is never waited for, it falls behind and reads the journal again; a
doorbell is only a hint, so all runs are looked at now and then without one.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sojourn.api.events.sse import Attempt, Tape
from sojourn.api.http.codes import StreamsFull
from sojourn.api.parts import DELTA_BELL, RUN_BELL
from sojourn.errors import SojournError
from sojourn.loop.continuation import Continuation, frames
from sojourn.store import deltas, runs
from sojourn.store.db import Connection, Database
from sojourn.store.doorbell import Doorbell, Subscription
from sojourn.store.rows import Principal
from sojourn.store.tenant import catalog

log = logging.getLogger("sojourn.api")

POLL_S = 5.0
ROWS, PIECES = 200, 1000
"""How many are read at a time."""
HELD_BYTES_MAX = 1 << 20
"""How much is kept for a follower that still reads the past."""

Send = Callable[[bytes, bytes], bool]
"""Take a piece of the stream, plain and as an HTTP chunk; False when the client cannot keep up."""


class Follower:
    """One who follows a run. What it hears is held until it has read the past, and then sent at once."""

    def __init__(self, principal: Principal, send: Send) -> None:
        self.principal = principal
        self.seq = 0
        """Everything up to here was sent."""
        self.behind = self.ended = False
        self.woken = asyncio.Event()
        self._send = send
        self._held: bytearray | None = bytearray()

    def hear(self, plain: bytes, chunk: bytes, tape: Tape) -> None:
        """Take what is new, or fall behind."""
        if self.behind:
            return
        if self._held is not None:
            self._held += plain
            self.behind = len(self._held) > HELD_BYTES_MAX
        elif self._send(plain, chunk):
            self.seq = tape.seq
        else:
            self.behind = True
        self.ended = tape.ended
        if self.behind or self.ended:
            self.woken.set()

    def start(self) -> None:
        """Hold what is heard from now on."""
        self._held, self.behind = bytearray(), False

    def release(self, tape: Tape) -> bytes:
        """Give what was held; from now on it is sent at once."""
        held, self._held = bytes(self._held or b""), None
        self.seq = tape.seq
        return held

    def stop(self) -> None:
        """Let the stream end."""
        self.ended = True
        self.woken.set()


class Reader:
    """One run's place in the journal, and who follows it."""

    def __init__(self) -> None:
        self.followers: set[Follower] = set()
        self.tape: Tape | None = None
        self.starting = asyncio.Lock()


Due = tuple[Reader, Tape, bool, bool]
"""A run to be read: its reader and tape, and whether it has new rows and new deltas."""


class Hub:
    """The readers of one process, by tenant and run."""

    def __init__(self, database: Database, doorbell: Doorbell, followers_max: int) -> None:
        self._database, self._doorbell = database, doorbell
        self._readers: dict[tuple[str, str], Reader] = {}
        self._max = followers_max
        self._rows: set[str] = set()
        self._pieces: set[str] = set()
        """The runs that have new rows, and new deltas."""
        self._woken = asyncio.Event()
        self._closed = False
        self.count = 0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count one more stream. Raises StreamsFull."""
        if self.count >= self._max or self._closed:
            raise StreamsFull(f"This server holds {self.count} event streams, and may hold no more. Try again later.")
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    @contextmanager
    def follow(self, run_id: str, follower: Follower) -> Iterator[Reader]:
        """Have a run read for as long as somebody follows it."""
        key = (follower.principal.tenant, run_id)
        reader = self._readers.setdefault(key, Reader())
        reader.followers.add(follower)
        try:
            yield reader
        finally:
            reader.followers.discard(follower)
            if not reader.followers and self._readers.get(key) is reader:
                del self._readers[key]

    async def join(self, reader: Reader, run_id: str, follower: Follower) -> tuple[int, bytes]:
        """Let a follower hear what comes; returns how far the past goes and what is being made at this moment."""
        async with reader.starting:
            if reader.tape is None:
                async with self._database.scoped(follower.principal.handle) as connection:
                    reader.tape = await _begin(connection, run_id)
                self._rows.add(run_id)  # it may have rung while the reader began
                self._pieces.add(run_id)
                self._woken.set()
        tape = reader.tape
        follower.start()
        follower.ended = tape.ended
        return tape.seq, tape.catch_up()

    async def run(self) -> None:
        """Read whatever rings, for ever."""
        bell = self._doorbell
        with bell.subscribe(RUN_BELL) as rows, bell.subscribe(DELTA_BELL) as pieces:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(rows, self._rows))
                group.create_task(self._listen(pieces, self._pieces))
                while True:
                    await self._woken.wait()
                    self._woken.clear()
                    await self._read()

    async def _listen(self, ear: Subscription, due: set[str]) -> None:
        """Take note of the runs that ring, and now and then of all."""
        while True:
            rung = await ear.wait(POLL_S)
            due.update(rung or (run_id for _, run_id in self._readers))
            self._woken.set()

    def close(self) -> None:
        """End every stream: the process stops, and the clients come back elsewhere."""
        self._closed = True
        for reader in self._readers.values():
            for follower in reader.followers:
                follower.stop()

    async def _read(self) -> None:
        """Read what is due, one transaction a tenant."""
        rows, pieces = frozenset(self._rows), frozenset(self._pieces)
        self._rows.clear()
        self._pieces.clear()
        tenants: dict[str, list[Due]] = {}
        for (tenant, run_id), reader in self._readers.items():
            if reader.tape is not None and not reader.tape.ended and run_id in rows | pieces:
                tenants.setdefault(tenant, []).append((reader, reader.tape, run_id in rows, run_id in pieces))
        await asyncio.gather(*(self._read_tenant(some) for some in tenants.values()))

    async def _read_tenant(self, some: list[Due]) -> None:
        principals = (follower.principal for reader, *_ in some for follower in reader.followers)
        principal = max(principals, key=lambda one: one.expires_at, default=None)
        if principal is None:
            return
        try:
            async with self._database.scoped(principal.handle) as connection:
                for due in some:
                    await _advance(connection, due)
        except SojournError as error:
            log.warning("stream.waits", extra={"tenant": principal.tenant, "code": error.code})
        except Exception:
            log.exception("stream.bug", extra={"tenant": principal.tenant})


async def _begin(connection: Connection, run_id: str) -> Tape:
    """Start reading where the run stands now."""
    run = await runs.continuation(connection, run_id)
    agent = await catalog.spec(connection, run.root.agent.digest)
    tape = Tape(run_id, agent, run.rev, _running(run))
    tape.ended = run.root.ended
    while pieces := await deltas.read(connection, run_id, after=tape.delta, limit=PIECES):
        tape.take(pieces, ())
    return tape


def _running(run: Continuation) -> Iterator[Attempt]:
    """The attempts that were announced and have not ended."""
    for frame in frames(run.root):
        if frame.turn.sent and not frame.ended:
            yield frame.id, frame.step, frame.turn.attempt
        for call in frame.calls:
            if call.state == "intent":
                yield call.uid, -1, call.attempt


async def _advance(connection: Connection, due: Due) -> None:
    """Read what is new of a run and let every follower hear it.

    Deltas are read before rows, so that the row that announced their attempt is known; without them rows come alone.
    """
    reader, tape, has_rows, has_pieces = due
    while has_rows or has_pieces:
        pieces = await deltas.read(connection, tape.run_id, after=tape.delta, limit=PIECES) if has_pieces else []
        has_rows = has_rows or not all(tape.knows(batch) for batch in pieces)
        rows = await runs.events(connection, tape.run_id, after=tape.seq, limit=ROWS) if has_rows else []
        plain = tape.take(pieces, rows)
        if plain or tape.ended:
            chunk = b"%x\r\n%b\r\n" % (len(plain), plain) if plain else b""
            for follower in tuple(reader.followers):
                follower.hear(plain, chunk, tape)
        has_rows, has_pieces = len(rows) == ROWS, len(pieces) == PIECES

"""One reader for each run that is followed here, shared by all who follow it. `app` runs it, streams follow through it.

The rules: followers cost no query; a slow follower is never waited for, it falls behind and reads the journal again; a
doorbell is only a hint, so all runs are looked at now and then without one.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, takewhile
from typing import NamedTuple

from sojourn.api.events import sse
from sojourn.api.events.sse import Attempt, Row, Tape
from sojourn.api.http.codes import StreamsFull
from sojourn.api.parts import DELTA_BELL, RUN_BELL
from sojourn.errors import SojournError, StoreUnavailable
from sojourn.loop.continuation import Continuation, frames
from sojourn.store import deltas, runs
from sojourn.store.db import Connection, Database
from sojourn.store.doorbell import Doorbell, Subscription
from sojourn.store.rows import DeltaRow, Principal
from sojourn.store.tenant import catalog

log = logging.getLogger("sojourn.api")

POLL_S = 5.0
RETRY_S = 1.0
"""When the database is asked again after it failed."""
FULL_S = 5.0
"""When a caller may come back that was turned away."""
LINGER_S, HOLD_S = 0.1, 1.0
"""A transaction is kept open so long for the next ring, and so long altogether."""
HOLDERS = 2
"""If more tenants than these ring at once, connections are too dear to be held."""
ROWS, PIECES = 200, 200
"""How many of a run are read at a time."""
RUNS = 20
"""Of how many runs rows are read before all that streams is looked at again."""
HELD_BYTES_MAX = 256 << 10
"""How much is kept for a follower that still reads the past."""
UNSENT_BYTES_MAX = 256 << 10
"""A client with so much underway is behind."""


Wall = tuple[str, str | None]
"""A tenant, and the user where a caller is confined."""


class Follower:
    """One who follows a run. What it hears is held until it has read the past, and then written to its socket at once.

    It has slots, and the transport at hand: with a thousand of them, a look into one more object each is what costs.
    """

    __slots__ = ("_held", "_held_bytes", "behind", "chunked", "ended", "principal", "seq", "transport", "woken")

    def __init__(self, principal: Principal, transport: asyncio.Transport, *, chunked: bool) -> None:
        self.principal, self.transport, self.chunked = principal, transport, chunked
        self.seq = 0
        """Everything up to here was sent."""
        self.behind = self.ended = False
        self.woken = asyncio.Event()
        self._held: list[bytes] | None = []
        self._held_bytes = 0

    def hear(self, plain: bytes, chunk: bytes, tape: Tape) -> None:
        """Take what is new, plain or as an HTTP chunk, or fall behind; a slow client is never waited for."""
        if self.behind:
            return
        transport = self.transport
        if self._held is not None:
            self._held.append(plain)
            self._held_bytes += len(plain)
            self.behind = self._held_bytes > HELD_BYTES_MAX
        elif transport.get_write_buffer_size() > UNSENT_BYTES_MAX or transport.is_closing():
            self.behind = True
        else:
            transport.write(chunk if self.chunked else plain)
            self.seq = tape.seq
        self.ended |= tape.ended
        if self.behind or self.ended:
            self.woken.set()

    def start(self) -> None:
        """Hold what is heard from now on."""
        self._held, self._held_bytes, self.behind = [], 0, False
        self.woken.clear()

    def miss(self) -> None:
        """Fall behind."""
        self.behind = True
        self.woken.set()

    def release(self, tape: Tape) -> bytes:
        """Give what was held; from now on it is sent at once."""
        held, self._held = b"".join(self._held or ()), None
        self.seq = tape.seq
        return held

    def stop(self) -> None:
        """Let the stream end, wherever it is; nothing that it hears later takes that back."""
        self.ended = True
        self.woken.set()


class Reader:
    """One run's place in the journal, and who follows it."""

    def __init__(self) -> None:
        self.followers: set[Follower] = set()
        self.tape: Tape | None = None
        self.starting = asyncio.Lock()

    def begin(self, tape: Tape) -> None:
        """Go on from a new place; whoever followed from the one before reads the past again."""
        self.tape = tape
        for follower in self.followers:
            follower.miss()


class Due(NamedTuple):
    """A run to be read."""

    reader: Reader
    tape: Tape
    rows: bool
    """Whether it has new rows."""
    pieces: bool
    """Whether it has new deltas."""


class Desk:
    """The runs of one tenant that are followed here, and what rings of them."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.readers: dict[str, Reader] = {}
        self.rows: set[str] = set()
        self.pieces: set[str] = set()
        """The runs that have new rows, and new deltas."""
        self.woken = asyncio.Event()
        self.busy = False
        """Whether a task reads."""

    def all_due(self) -> None:
        """Take note that any of the runs may have something new."""
        self.rows.update(self.readers)
        self.pieces.update(self.readers)
        self.woken.set()

    def principal(self) -> Principal | None:
        """Name the follower whose handle is good for longest."""
        followers = (follower for reader in self.readers.values() for follower in reader.followers)
        return max((follower.principal for follower in followers), key=lambda one: one.expires_at, default=None)

    def take(self) -> list[Due]:
        """Say what is due; of rows some at a time, so that all that streams is soon looked at again."""
        rows, pieces = set(islice(self.rows, RUNS)), self.pieces
        self.rows, self.pieces = self.rows - rows, set()
        if not self.rows:
            self.woken.clear()
        found = ((run_id, self.readers.get(run_id)) for run_id in rows | pieces)
        return [
            Due(reader, reader.tape, run_id in rows, run_id in pieces)
            for run_id, reader in found
            if reader is not None and reader.tape is not None and not reader.tape.ended
        ]


class Hub:
    """The readers of one process, at a desk for each tenant, and for each of its users who is confined."""

    def __init__(self, database: Database, doorbell: Doorbell, *, followers_max: int, tenant_max: int) -> None:
        self._database, self._doorbell = database, doorbell
        self._desks: dict[Wall, Desk] = {}
        self._max, self._tenant_max = followers_max, tenant_max
        self._counts = Counter[str]()
        self._tasks: set[asyncio.Task[None]] = set()
        """Those that read; each is about to have a connection, or has one."""
        self.closed = False
        """The process stops."""

    @property
    def count(self) -> int:
        """How many streams are open."""
        return self._counts.total()

    @contextmanager
    def admit(self, tenant: str) -> Iterator[None]:
        """Count one more stream of a tenant. Raises StreamsFull."""
        places = ((self.count, self._max, ""), (self._counts[tenant], self._tenant_max, " of yours"))
        for held, most, whose in places:
            if held >= most or self.closed:
                self._let_go()
                raise StreamsFull(
                    f"This server holds {held} event streams{whose}, and may hold no more. Try again later.",
                    retry_after_s=FULL_S,
                )
        self._counts[tenant] += 1
        try:
            yield
        finally:
            self._counts[tenant] -= 1
            if not self._counts[tenant]:
                del self._counts[tenant]

    def _let_go(self) -> None:
        """Make room: a client that has gone from a silent stream would be noticed at the next comment."""
        for follower in self._followers():
            if follower.transport.is_closing():
                follower.stop()

    def _followers(self) -> Iterator[Follower]:
        return (one for desk in self._desks.values() for reader in desk.readers.values() for one in reader.followers)

    @contextmanager
    def follow(self, run_id: str, follower: Follower) -> Iterator[Reader]:
        """Have a run read for as long as somebody follows it."""
        wall = _wall(follower.principal)
        desk = self._desks.setdefault(wall, Desk(wall[0]))
        reader = desk.readers.setdefault(run_id, Reader())
        reader.followers.add(follower)
        try:
            yield reader
        finally:
            reader.followers.discard(follower)
            if not reader.followers and desk.readers.get(run_id) is reader:
                del desk.readers[run_id]
            if not desk.readers and self._desks.get(wall) is desk:
                del self._desks[wall]

    async def join(self, reader: Reader, run_id: str, follower: Follower) -> tuple[int, bytes]:
        """Let a follower hear what comes; returns how far the past goes and what is being made at this moment."""
        async with reader.starting:
            if reader.tape is None or reader.tape.seq < follower.seq:  # it heard more elsewhere than is known here
                async with self._database.scoped(follower.principal.handle) as connection:
                    reader.begin(await _begin(connection, run_id))
                desk = self._desks[_wall(follower.principal)]
                desk.rows.add(run_id)  # it may have rung while the reader began
                desk.pieces.add(run_id)
                self._wake(desk)
        tape = reader.tape
        assert tape is not None
        follower.start()
        follower.ended |= tape.ended or self.closed
        return tape.seq, tape.catch_up()

    async def run(self) -> None:
        """Read whatever rings, for ever."""
        bell = self._doorbell
        try:
            with bell.subscribe(RUN_BELL) as rows, bell.subscribe(DELTA_BELL) as pieces:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._listen(rows, lambda desk: desk.rows))
                    group.create_task(self._listen(pieces, lambda desk: desk.pieces))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """End every stream: the process stops, and the clients come back elsewhere."""
        self.closed = True
        for follower in self._followers():
            follower.stop()

    async def _listen(self, ear: Subscription, due: Callable[[Desk], set[str]]) -> None:
        """Take note of the runs that ring, and now and then of all."""
        while True:
            rung = await ear.wait(POLL_S)
            for desk in self._desks.values():
                if hit := desk.readers.keys() & rung if rung else desk.readers.keys():
                    due(desk).update(hit)
                    self._wake(desk)

    def _wake(self, desk: Desk) -> None:
        """See that a desk reads what is due."""
        desk.woken.set()
        if not desk.busy:
            desk.busy = True
            task = asyncio.create_task(self._work(desk), name="stream.read")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, desk: Desk) -> None:
        """Read until nothing has rung for a moment. After an outage all is read; what else fails waits for a ring."""
        try:
            while desk.woken.is_set() and (principal := desk.principal()):
                try:
                    async with self._database.scoped(principal.handle) as connection:
                        await self._read(desk, connection)
                except StoreUnavailable as error:
                    log.warning("stream.waits", extra={"tenant": desk.tenant, "code": error.code})
                    desk.all_due()
                    await asyncio.sleep(RETRY_S)
        except SojournError as error:
            log.warning("stream.waits", extra={"tenant": desk.tenant, "code": error.code})
        except Exception:
            log.exception("stream.bug", extra={"tenant": desk.tenant})
        finally:
            desk.busy = False

    async def _read(self, desk: Desk, connection: Connection) -> None:
        """Read what rings in one transaction, which costs four trips to the database and a read only one.

        It is read committed, so every statement sees what is new, and it holds no snapshot while it waits.
        """
        ends_at = time.monotonic() + HOLD_S
        while desk.woken.is_set():
            await _advance(connection, desk.take())
            if len(self._tasks) > HOLDERS or time.monotonic() > ends_at:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await desk.woken.wait()


def _wall(caller: Principal) -> Wall:
    """Whose handles are good for the same runs."""
    return caller.tenant, caller.user if caller.confined else None


async def _begin(connection: Connection, run_id: str) -> Tape:
    """Start reading where the run stands now."""
    run = await runs.continuation(connection, run_id)
    agent = await catalog.spec(connection, run.root.agent.digest)
    tape = Tape(run_id, agent, run.rev, _running(run))
    tape.ended = run.root.ended
    while pieces := (await deltas.read(connection, {run_id: tape.delta}, limit=PIECES))[run_id]:
        tape.take(known := list(takewhile(tape.knows, pieces)), ())
        if len(known) < len(pieces):
            break  # of an attempt that began since: the row that says so is read with them
    return tape


def _running(run: Continuation) -> Iterator[Attempt]:
    """The attempts that were announced and have not ended."""
    for frame in frames(run.root):
        if frame.turn.sent and not frame.ended:
            yield frame.id, frame.step, frame.turn.attempt
        for call in frame.calls:
            if call.state == "intent":
                yield call.uid, -1, call.attempt


async def _advance(connection: Connection, some: Sequence[Due]) -> None:
    """Read what is new of runs and let every follower hear it; those that only stream do not wait for the others.

    Deltas are read before rows, so that the row that announced their attempt is known; without them rows come alone.
    """
    while some:
        after = {due.tape.run_id: due.tape.delta for due in some if due.pieces}
        found = await deltas.read(connection, after, limit=PIECES) if after else {}
        quick: list[tuple[Due, list[DeltaRow]]] = []
        slow: list[tuple[Due, list[DeltaRow]]] = []
        for due in some:
            pieces = found.get(due.tape.run_id, [])
            (slow if due.rows or not all(map(due.tape.knows, pieces)) else quick).append((due, pieces))
        left = [_tell(due, pieces, []) for due, pieces in quick]
        quiet: dict[str, Due] = {}
        for due, pieces in slow:
            rows = await runs.events(connection, due.tape.run_id, after=due.tape.seq, limit=ROWS)
            left.append(_tell(due, pieces, rows))
            if not rows:
                quiet[due.tape.run_id] = due
        if quiet:  # it rang, and not for an event
            for run in await runs.dead(connection, quiet):
                _bury(quiet[run.id], sse.dead(run))
        some = [due for due in left if due.rows or due.pieces]


def _bury(due: Due, told: bytes) -> None:
    """Let the followers of a run hear that it is a dead letter, once."""
    if due.tape.dead != told:
        due.tape.dead = told
        _broadcast(due, told)


def _tell(due: Due, pieces: list[DeltaRow], rows: list[Row]) -> Due:
    """Let the followers of a run hear what is new, and say what is left."""
    plain = due.tape.take(pieces, rows)
    if plain or due.tape.ended:
        _broadcast(due, plain)
    return due._replace(rows=len(rows) == ROWS, pieces=len(pieces) == PIECES)


def _broadcast(due: Due, plain: bytes) -> None:
    if due.reader.tape is not due.tape:  # it was begun anew meanwhile
        return
    chunk = b"%x\r\n%b\r\n" % (len(plain), plain) if plain else b""
    for follower in tuple(due.reader.followers):
        follower.hear(plain, chunk, due.tape)

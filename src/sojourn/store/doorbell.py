"""Wakes whoever waits for a change: NOTIFY after a commit, LISTEN on one connection. Called by api and worker.

The rule: a ring carries ids and is only a hint. It may be lost with a connection, so a waiter who is told no id (after
a reconnect, an overflow or a time-out) looks at everything that it waits for. Ring after the commit and not inside it:
NOTIFY takes a lock of the whole server when its transaction commits.
"""

import asyncio
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from sojourn.errors import StoreUnavailable
from sojourn.store.db import Connection, Database, closed_on_error, edge

log = logging.getLogger("sojourn.store")

PAYLOAD_BYTES_MAX = 7_999  # Source: PostgreSQL 18, NOTIFY: shorter than 8000 bytes
IDS_MAX = 10_000
COALESCE_S = 0.003
HEARTBEAT_S = 30.0
CLOSE_S = 2.0
RETRY_S, RETRY_MAX_S = 0.05, 2.0
ID = re.compile(r"[!-~]{1,200}")
SEND = "select pg_notify(channel, payload) from unnest($1::text[], $2::text[]) as bell (channel, payload)"


class _Ids:
    """Ids that were rung; too many to remember are everything, which is written as no ids."""

    def __init__(self) -> None:
        self._some: set[str] = set()
        self._everything = False

    def add(self, ids: Collection[str]) -> None:
        """Remember ids; none is everything."""
        self._some.update(ids)
        if not ids or len(self._some) > IDS_MAX:
            self._everything = True
            self._some.clear()

    def take(self) -> frozenset[str]:
        """Return what was rung and forget it."""
        taken = frozenset[str]() if self._everything else frozenset(self._some)
        self._some.clear()
        self._everything = False
        return taken


class Subscription:
    """One waiter's ear; it remembers what is rung between two waits."""

    def __init__(self) -> None:
        self._ids, self._rung = _Ids(), asyncio.Event()

    async def wait(self, timeout_s: float) -> frozenset[str]:
        """Wait for a ring and return the ids since the last wait; no ids means: look at everything."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        self._rung.clear()
        return self._ids.take()

    def hear(self, ids: Collection[str]) -> None:
        """Take note of ids and wake the waiter."""
        self._ids.add(ids)
        self._rung.set()


class Doorbell:
    """The bell of one process, for the channels it is made with. Used as an async context manager."""

    def __init__(self, database: Database, channels: Collection[str]) -> None:
        self._database = database
        self._ears: dict[str, dict[str | None, set[Subscription]]] = {channel: {} for channel in channels}
        self._unsent: dict[str, _Ids] = {}
        self._due = asyncio.Event()
        self._connection: Connection = None
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def subscribe(self, channel: str, key: str | None = None) -> Iterator[Subscription]:
        """Listen to one id of a channel, or to all of them when there is no key."""
        ear, ears = Subscription(), self._ears[channel].setdefault(key, set())
        ears.add(ear)
        try:
            yield ear
        finally:
            ears.discard(ear)
            if not ears:
                self._ears[channel].pop(key, None)

    def ring(self, channel: str, ids: Collection[str]) -> None:
        """Wake who waits for these ids, in this process and all others; no ids means everything. It never waits.

        Raises ValueError for what is not an id: 1 to 200 printable ASCII characters without a space.
        """
        if not all(ID.fullmatch(id_) for id_ in ids):
            raise ValueError("a ring carries ids only")
        self._deliver(channel, ids)
        self._unsent.setdefault(channel, _Ids()).add(ids)
        self._due.set()

    async def __aenter__(self) -> Self:
        self._connection = await self._listen()
        self._task = asyncio.create_task(self._run(), name="doorbell")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            with suppress(StoreUnavailable), edge():
                async with asyncio.timeout(CLOSE_S):
                    await self._send(self._connection)
                    await self._connection.close()
        finally:
            self._connection.terminate()

    async def _run(self) -> None:
        """Send and listen, and begin again whenever that fails: a bell that died would go unnoticed."""
        while True:
            try:
                await self._send_while_connected(self._connection)
            except Exception as error:
                log.warning("doorbell.failed", extra={"error": type(error).__name__})
            self._connection.terminate()
            self._connection = await self._reconnect()
            for channel in self._ears:
                self._deliver(channel, ())
            log.info("doorbell.restored")

    async def _send_while_connected(self, connection: Connection) -> None:
        """Send what is rung, in batches some milliseconds apart; an empty batch now and then proves the connection."""
        while not connection.is_closed():
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._due.wait()
            self._due.clear()
            await self._send(connection)
            await asyncio.sleep(COALESCE_S)

    async def _send(self, connection: Connection) -> None:
        """Send all that is unsent; what fails is unsent again."""
        batch = [(channel, ids.take()) for channel, ids in self._unsent.items()]
        self._unsent = {}
        channels, payloads = [], []
        for channel, ids in batch:
            for payload in _payloads(ids):
                channels.append(channel)
                payloads.append(payload)
        try:
            await connection.execute(SEND, channels, payloads)
        except BaseException:
            for channel, ids in batch:
                self._unsent.setdefault(channel, _Ids()).add(ids)
            self._due.set()
            raise

    async def _reconnect(self) -> Connection:
        """Try until the database answers."""
        delay_s = RETRY_S
        while True:
            try:
                return await self._listen()
            except StoreUnavailable:
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_MAX_S)

    async def _listen(self) -> Connection:
        """Open a connection that hears every channel."""
        connection = await self._database.listener()
        connection.add_termination_listener(lambda _: self._due.set())
        with edge():
            async with closed_on_error(connection):
                for channel in self._ears:
                    await connection.add_listener(channel, self._hear)
        return connection

    def _hear(self, connection: Connection, pid: int, channel: str, payload: str) -> None:
        """Pass on what another process rang; what we rang ourselves was delivered at once."""
        if pid != connection.get_server_pid():
            self._deliver(channel, payload.split())

    def _deliver(self, channel: str, ids: Collection[str]) -> None:
        """Wake the waiters of these ids in this process."""
        ears = self._ears[channel]
        for key in (None, *ids) if ids else tuple(ears):
            for ear in ears.get(key, ()):
                ear.hear(ids if key is None or not ids else (key,))


def _payloads(ids: frozenset[str]) -> Iterator[str]:
    """Split ids over as few payloads as the limit allows; no ids is one empty payload."""
    part, size = list[str](), 0
    for id_ in ids:
        if size + len(id_) > PAYLOAD_BYTES_MAX:
            yield " ".join(part)
            part, size = [], 0
        part.append(id_)
        size += len(id_) + 1
    yield " ".join(part)

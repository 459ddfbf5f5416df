"""One follower's connection: the past out of the journal, then what the hub hears, until the run or the time has ended.

`routes` answers with it. The rules: each durable event is sent once and in order; a client that cannot keep up reads
the past again and is never waited for; no task of ours wakes for an event: the hub writes straight to the socket.
"""

import asyncio
import logging
import socket
import time
from typing import Any

from aiohttp import HttpVersion11, web

from sojourn.api.events import sse
from sojourn.api.events.hub import Follower, Reader
from sojourn.api.events.public import is_end
from sojourn.api.route import Ask
from sojourn.errors import NotFound, SojournError, Unreadable
from sojourn.loop.agent import Agent
from sojourn.store import runs
from sojourn.store.rows import RunRow

log = logging.getLogger("sojourn.api")

COMMENT_S = 15.0
STUCK_S = 60.0
"""A client that takes nothing for so long is gone."""
PAGE, PAGE_BYTES = 200, 128 << 10
"""How much of the past is in memory at a time."""
KERNEL_BYTES = 64 << 10
"""How much the system keeps for a client before the rest stays with us, where it is seen."""
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}


class Stream:
    """One open response."""

    def __init__(self, ask: Ask[Any, Any], run: RunRow, agent: Agent | None, after: int) -> None:
        self.ask, self.row, self.agent, self.run_id = ask, run, agent, run.id
        self.response = web.StreamResponse(headers=HEADERS)
        if ask.http.transport is None or ask.http.transport.is_closing():
            raise ConnectionResetError("The client has gone.")
        chunked = ask.http.version >= HttpVersion11
        self.follower = Follower(ask.principal, ask.http.transport, chunked=chunked)
        self.follower.seq = after
        self.life_s = ask.parts.settings.stream_life_s
        self.dies_at = time.monotonic() + self.life_s
        _bound(ask.http.transport)

    async def run(self) -> web.StreamResponse:
        """Send all there is, and what comes; a client that does not even take that in its time is cut off."""
        await self.response.prepare(self.ask.http)
        try:
            async with asyncio.timeout(self.life_s + STUCK_S):
                await self._send()
        except TimeoutError:
            self.follower.transport.abort()
        except SojournError as error:
            log.warning("stream.broken", extra={"run": self.run_id, "request": self.ask.request_id, "code": error.code})
        except ConnectionResetError:
            pass  # the client has gone
        return self.response

    async def _send(self) -> None:
        await self.response.write(b"retry: 1000\n\n")
        if self.row.finished_at is not None:
            await self.replay(until=self.row.seq)
            return
        try:
            with self.ask.live.hub.follow(self.run_id, self.follower) as reader:
                while not await self._follow(reader):
                    await self._drained()
        except Unreadable:
            await self.replay(until=self.row.seq)
            await self.response.write(sse.dead(self.row))
        if self.ask.live.hub.closed:
            await self.response.write(sse.COME_BACK)

    async def _follow(self, reader: Reader) -> bool:
        """Read the past, then stay with the present; false when the client fell behind and must read again."""
        follower = self.follower
        seq, made = await self.ask.live.hub.join(reader, self.run_id, follower)
        assert reader.tape is not None
        if await self.replay(until=seq):
            return True
        if follower.behind:
            return False
        await self.response.write(made + follower.release(reader.tape))
        while not (follower.ended or follower.behind):
            try:
                async with asyncio.timeout(min(COMMENT_S, max(0.0, self.dies_at - time.monotonic()))):
                    await follower.woken.wait()
            except TimeoutError:
                if time.monotonic() >= self.dies_at or self.follower.transport.is_closing():
                    return True
                follower.principal = await self.ask.live.tokens.principal(self.ask.token)
                await self.response.write(sse.COMMENT)
        return not follower.behind or self.follower.transport.is_closing()

    async def replay(self, *, until: int) -> bool:
        """Send the journal from where the follower stands, and no row that it will hear; true at the end of the run."""
        follower = self.follower
        while follower.seq < until:
            data, over = await self._page(until)
            if data:
                await self.response.write(data)
            if over:
                return True
        return False

    async def _page(self, until: int) -> tuple[bytes, bool]:
        """Write the next rows down; the rows themselves are forgotten before a slow client takes them."""
        follower = self.follower
        async with self.ask.parts.database.scoped(follower.principal.handle) as connection:
            rows = await runs.events(
                connection,
                self.run_id,
                after=follower.seq,
                limit=min(PAGE, until - follower.seq),
                bytes_max=PAGE_BYTES,
            )
        if not rows or rows[0][0] != follower.seq + 1:
            raise NotFound(f"Run {self.run_id} was deleted.")
        follower.seq = rows[-1][0]
        data = b"".join(sse.row(self.run_id, self.agent, seq, event) for seq, event in rows)
        return data, is_end(rows[-1][1])

    async def _drained(self) -> None:
        """Wait until a slow client has taken what was sent. Raises ConnectionResetError when it has gone."""
        transport, pause_s = self.follower.transport, 0.02
        while transport.get_write_buffer_size():
            if transport.is_closing():
                raise ConnectionResetError
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)


def _bound(transport: asyncio.Transport) -> None:
    """Have the system keep little for a slow client, and let go of one that takes nothing: it may be there no more."""
    options = {"TCP_NOTSENT_LOWAT": KERNEL_BYTES, "TCP_USER_TIMEOUT": int(STUCK_S * 1000)}
    for name, value in options.items():
        if hasattr(socket, name):  # not every system has both
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

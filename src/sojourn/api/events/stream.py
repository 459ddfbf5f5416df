"""One follower's connection: the past out of the journal, then what the hub hears, until the run or the time has ended.

`routes` answers with it. The rules: each durable event is sent once and in order; a client that cannot keep up reads
the past again and is never waited for; no task of ours wakes for an event: the hub writes straight to the socket.
"""

import asyncio
import logging
import time
from typing import Any

from aiohttp import HttpVersion11, web

from sojourn.api.events import sse
from sojourn.api.events.hub import Follower, Reader
from sojourn.api.events.public import is_end
from sojourn.api.route import Ask
from sojourn.errors import NotFound, SojournError
from sojourn.loop.agent import Agent
from sojourn.store import runs
from sojourn.store.rows import RunRow

log = logging.getLogger("sojourn.api")

COMMENT_S = 15.0
STUCK_S = 60.0
"""A client that takes nothing for so long is gone."""
PAGE = 200
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
        if ask.http.transport is None:
            raise ConnectionResetError("The client has gone.")
        chunked = ask.http.version >= HttpVersion11
        self.follower = Follower(ask.principal, ask.http.transport, chunked=chunked)
        self.follower.seq = after
        self.dies_at = time.monotonic() + ask.parts.settings.stream_life_s

    async def run(self) -> web.StreamResponse:
        """Send all there is, and what comes."""
        await self.response.prepare(self.ask.http)
        try:
            await self.response.write(b"retry: 1000\n\n")
            if self.row.finished_at is not None:
                await self.replay(until=self.row.seq)
                return self.response
            with self.ask.live.hub.follow(self.run_id, self.follower) as reader:
                while not await self._follow(reader):
                    await self._drained()
            if self.ask.live.hub.closed:
                await self.response.write(sse.COME_BACK)
        except SojournError as error:
            log.warning("stream.broken", extra={"run": self.run_id, "request": self.ask.request_id, "code": error.code})
        except ConnectionResetError:
            pass  # the client has gone
        return self.response

    async def _follow(self, reader: Reader) -> bool:
        """Read the past, then stay with the present; false when the client fell behind and must read again."""
        follower = self.follower
        follower.woken.clear()
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
            limit = min(PAGE, until - follower.seq)
            async with self.ask.parts.database.scoped(follower.principal.handle) as connection:
                rows = await runs.events(connection, self.run_id, after=follower.seq, limit=limit)
            if not rows or rows[0][0] != follower.seq + 1:
                raise NotFound(f"Run {self.run_id} was deleted.")
            if data := b"".join(sse.row(self.run_id, self.agent, seq, event) for seq, event in rows):
                await self.response.write(data)
            follower.seq = rows[-1][0]
            if is_end(rows[-1][1]):
                return True
        return False

    async def _drained(self) -> None:
        """Wait until a slow client has taken what was sent. Raises ConnectionResetError when it takes nothing."""
        transport = self.follower.transport
        left, since = None, time.monotonic()
        while size := transport.get_write_buffer_size():
            if size != left:
                left, since = size, time.monotonic()
            if time.monotonic() - since > STUCK_S or transport.is_closing():
                transport.abort()
                raise ConnectionResetError
            await asyncio.sleep(0.05)

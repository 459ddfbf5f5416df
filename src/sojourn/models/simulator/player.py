"""Plays a reply to the client: the pace, and the faults that strike while it streams.

The endpoint hands it a list of cues. The rule: a fault only rearranges cues, so every fault works on both dialects,
streamed or whole.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

from aiohttp import web

from sojourn.models.simulator.asked import Cue, Dice
from sojourn.models.simulator.script import Cut, Drip, ErrorEvent, Fault, Garbage, Pacing, Place, Reset, Stall

NO_LINGER = struct.pack("ii", 1, 0)


class Show:
    """A reply on its way out: its cues, and how it begins and ends."""

    def __init__(self, cues: list[Cue], pacing: Pacing) -> None:
        self.cues = cues
        self.pacing = pacing
        self.head = True
        """Whether the response begins at all."""
        self.head_after_s = 0.0
        self.reset = False
        self.broken = False
        """Whether a fault keeps the client from getting the reply."""

    def strike(self, fault: Fault, dice: Dice, error_event: Callable[[str, str], bytes]) -> None:
        """Rearrange the cues as `fault` says."""
        match fault:
            case Stall():
                self._stall(fault)
            case Reset() | Cut():
                self._stop(fault.after, reset=isinstance(fault, Reset))
            case ErrorEvent():
                self._stop(fault.after, reset=False)
                self.head = True
                self.cues.append(Cue(error_event(fault.code, fault.message)))
            case Garbage():
                text = b'data: {"' + dice.bytes("garbage") + b"\x00\xff\n\n"
                self.cues.insert(self._place(fault.after), Cue(text if fault.text is None else fault.text.encode()))
                self.broken = True
            case Drip():
                self._drip(fault)

    def _place(self, after: Place) -> int:
        match after:
            case "nothing" | "headers":
                return 0
            case "half":
                return len(self.cues) // 2
            case "all_but_last":
                return len(self.cues) - 1
        return min(after, len(self.cues))

    def _stall(self, fault: Stall) -> None:
        if fault.after == "nothing":
            self.head_after_s = fault.for_s
        else:
            self.cues.insert(self._place(fault.after), Cue(b"", pause_s=fault.for_s))

    def _stop(self, after: Place, *, reset: bool) -> None:
        self.head, self.reset, self.broken = after != "nothing", reset, True
        del self.cues[self._place(after) :]

    def _drip(self, fault: Drip) -> None:
        data = b"".join(cue.data for cue in self.cues)
        tells = any(cue.tells for cue in self.cues)
        parts = [data[start : start + fault.bytes] for start in range(0, len(data), fault.bytes)]
        self.cues = [Cue(part, pause_s=fault.pause_s) for part in parts]
        self.cues[-1] = self.cues[-1]._replace(tells=tells)


class Player:
    """Writes one show to one client and knows how far it came."""

    def __init__(self, request: web.Request, show: Show, dice: Dice) -> None:
        self._request = request
        self._show = show
        self._dice = dice
        self.sent = 0
        """Cues that are out."""

    @property
    def told(self) -> bool:
        """Whether the client knows the whole usage."""
        return any(cue.tells for cue in self._show.cues[: self.sent])

    @property
    def broken(self) -> bool:
        return self._show.broken

    @property
    def sent_tokens(self) -> int:
        return sum(cue.tokens for cue in self._show.cues[: self.sent])

    async def play(self, response: web.StreamResponse) -> None:
        """Play the show to its end. Raises ConnectionError when the client has gone."""
        show = self._show
        await asyncio.sleep(show.head_after_s)
        if show.head:
            await response.prepare(self._request)
            paused = show.pacing.tokens_per_s or any(cue.pause_s for cue in show.cues)
            if show.pacing.burst > 1 and not paused:
                await self._burst(response)
            else:
                await self._paced(response)
        if show.reset or not show.head:
            await self._hang_up(reset=show.reset)
        else:
            await response.write_eof()

    async def _burst(self, response: web.StreamResponse) -> None:
        cues, size = self._show.cues, self._show.pacing.burst
        await asyncio.sleep(self._show.pacing.first_token_s)
        while self.sent < len(cues):
            batch = cues[self.sent : self.sent + size]
            await asyncio.sleep(0)  # other streams have their turn
            await response.write(b"".join(cue.data for cue in batch))
            self.sent += len(batch)

    async def _paced(self, response: web.StreamResponse) -> None:
        """Write one event at a time; what is late is caught up with, so the pace holds on average."""
        now = asyncio.get_running_loop().time
        due = now() + self._show.pacing.first_token_s
        for index, cue in enumerate(self._show.cues):
            due += cue.pause_s + self._gap_s(index, cue)
            await asyncio.sleep(max(0.0, due - now()))
            if cue.data:
                await response.write(cue.data)
            self.sent = index + 1

    def _gap_s(self, index: int, cue: Cue) -> float:
        """Give the time that the cue's tokens take."""
        pacing = self._show.pacing
        if not cue.tokens or pacing.tokens_per_s is None:
            return 0.0
        gap_s = cue.tokens / pacing.tokens_per_s
        if not pacing.jitter:
            return gap_s
        return gap_s * (1 + pacing.jitter * (2 * self._dice.fraction(f"gap {index}") - 1))

    async def _hang_up(self, *, reset: bool) -> None:
        """Close the connection as it is: with a TCP reset, or cleanly but without an answer."""
        transport = self._request.transport
        if transport is None:
            return
        # What was written leaves first; no event tells when it has.
        while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            transport.abort()
        else:
            transport.close()

"""Reads server-sent events off an open response, as a client would."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from served_api import Served


@dataclass
class Frame:
    id: int | None
    event: str
    data: dict[str, Any]


@dataclass
class Reading:
    """One open stream."""

    response: aiohttp.ClientResponse
    frames: list[Frame] = field(default_factory=list)
    comments: int = 0

    async def next(self) -> Frame | None:
        """The next event; None at the end."""
        lines: list[str] = []
        while line := (await self.response.content.readline()).decode():
            if line != "\n":
                lines.append(line.rstrip("\n"))
                continue
            self.comments += sum(one.startswith(":") for one in lines)
            fields = dict(one.split(": ", 1) for one in lines if not one.startswith(":"))
            lines = []
            if "data" in fields:
                number = int(fields["id"]) if "id" in fields else None
                self.frames.append(Frame(number, fields["event"], msgspec.json.decode(fields["data"])))
                return self.frames[-1]
        return None

    async def until(self, event: str) -> Frame:
        """Read on to an event of this type."""
        while frame := await self.next():
            if frame.event == event:
                return frame
        raise AssertionError(f"the stream ended without {event}")

    async def rest(self) -> list[Frame]:
        """Read to the end; all frames so far."""
        while await self.next():
            pass
        return self.frames

    @property
    def names(self) -> list[str]:
        return [frame.event for frame in self.frames]


@asynccontextmanager
async def follow(api: Served, run_id: str, **headers: str) -> AsyncIterator[Reading]:
    """Open a run's stream."""
    wanted = {"Authorization": f"Bearer {api.key}", "Accept": "text/event-stream"}
    wanted |= {name.replace("_", "-"): value for name, value in headers.items()}
    async with api.http.get(f"{api.url}/v1/runs/{run_id}/events", headers=wanted) as response:
        assert response.status == 200, await response.text()
        yield Reading(response)

"""Who follows a run's event stream from API to API, as a client does; tests compare what it heard with the journal."""

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import msgspec

ENDS = ("run.completed", "run.failed", "run.cancelled")


class Reader:
    """One who follows a run, and comes back to the next API with the last id that it was given."""

    def __init__(self, http: aiohttp.ClientSession, run_id: str, urls: Iterator[str]) -> None:
        self.http, self.run_id, self.urls = http, run_id, urls
        self.durable: list[Any] = []
        self.deltas: list[Any] = []
        self.last = self.event = ""
        self.connections = 0

    async def read(self) -> None:
        """Read to the end of the run."""
        while not (self.durable and self.durable[-1]["type"] in ENDS):
            self.durable = [event for event in self.durable if event["seq"] <= int(self.last or 0)]  # whole rows
            wanted = {"Accept": "text/event-stream", **({"Last-Event-ID": self.last} if self.last else {})}
            try:
                async with self.http.get(f"{next(self.urls)}/v1/runs/{self.run_id}/events", headers=wanted) as response:
                    self.connections += response.status == 200
                    async for line in response.content:
                        self._take(line)
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                pass
            await asyncio.sleep(0.05)

    def _take(self, line: bytes) -> None:
        name, _, value = line.decode().strip().partition(": ")
        if name == "id":
            self.last = value
        elif name == "event":
            self.event = value
        elif name == "data":
            event = {"type": self.event, **msgspec.json.decode(value)}
            (self.durable if "seq" in event else self.deltas).append(event)

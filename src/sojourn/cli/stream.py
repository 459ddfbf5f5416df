"""Following a run: its events as they come, whatever happens to the connection or the server in between.

`run` and `logs` read it. The rule: every durable event comes exactly once and in order. Events of one journal row share
its seq, and only the last of them is a place to go on from; so an event's name is its seq and its number within.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple

from sojourn.cli.client import Client, Refusal, Unreachable, segment
from sojourn.cli.exits import OF_STATUS, Stop

Item = dict[str, Any]

ENDS = frozenset(("run.completed", "run.failed", "run.cancelled"))
ENDED = frozenset(status for status in OF_STATUS if status != "suspended")

LOST = "connection.lost"
"""An item of our own: deltas are told anew from here, if at all."""

BACKOFF_S = 0.25
BACKOFF_MAX_S = 5.0
PATIENCE_S = 300.0
"""How long a server may be away before the reader is sent away too."""


class Frame(NamedTuple):
    """One server-sent event."""

    id: str
    event: str
    data: str


def frames(lines: Iterable[bytes]) -> Iterator[Frame]:
    """Parse server-sent events. A frame that the stream breaks off in is not one. Source: the HTML standard, 9.2.6."""
    fields: dict[str, list[str]] = {}
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if line:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
            continue
        if "data" in fields:
            yield Frame(fields.get("id", [""])[-1], fields.get("event", [""])[-1], "\n".join(fields["data"]))
        fields = {}


def follow(
    client: Client, run_id: str, *, after: int = 0, fresh: bool = False, notice: Callable[[str], None]
) -> Iterator[Item]:
    """Yield a run's events after seq `after`, and its deltas, until it has ended.

    `fresh` says that the run was accepted a moment ago, so that a server that is away will be back.
    `notice` is told in words when the connection is lost. Raises Refusal, and Unreachable where the server stays away.
    """
    reader = Reader(client, run_id, after, fresh=fresh)
    away_since, pause_s, over = 0.0, BACKOFF_S, False
    while not reader.ended:
        before, trouble, wait_s = reader.frames, False, 0.0
        try:
            yield from reader.read()
        except (OSError, HTTPException, ValueError):
            trouble = True
        except Stop as error:
            if not (reader.known and _passing(error)):
                raise
            trouble, wait_s = True, getattr(error, "retry_after_s", None) or 0.0
        if reader.frames > before:
            away_since, pause_s = 0.0, BACKOFF_S
        elif not trouble:
            if over:
                return
            over = _over(client, run_id)
        if trouble and not away_since:
            away_since = time.monotonic()
            yield {"type": LOST}
            notice("The connection is lost; trying again. The run goes on without it.")
        if away_since and time.monotonic() - away_since > PATIENCE_S:
            raise Unreachable(
                f"{client.url} stays away. `sojourn logs -f {run_id} --after {reader.seq}` goes on later."
            )
        if not reader.ended:
            time.sleep(max(wait_s, pause_s * (0.5 + os.urandom(1)[0] / 512)))
            pause_s = min(pause_s * 2, BACKOFF_MAX_S)


def look(client: Client, run_id: str, notice: Callable[[str], None] | None = None) -> Item:
    """Read a run that was just followed; a server that is away is waited for. Raises Refusal and Unreachable."""
    ends_at, pause_s = time.monotonic() + PATIENCE_S, BACKOFF_S
    while True:
        try:
            run: Item = client.get(f"/v1/runs/{segment(run_id)}")
        except Stop as error:
            if not _passing(error) or time.monotonic() > ends_at:
                raise
            if notice and pause_s == BACKOFF_S:
                notice("The server is away; asking it again.")
        else:
            return run
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, BACKOFF_MAX_S)


class Reader:
    """One place in a run's stream; each `read` is a connection."""

    def __init__(self, client: Client, run_id: str, seq: int, *, fresh: bool) -> None:
        self.client = client
        self.path = f"/v1/runs/{segment(run_id)}/events"
        self.seq = seq
        """The last row that came whole."""
        self._place = (seq, sys.maxsize)
        """The last event that came: its row, and its number within the row."""
        self.frames = 0
        self.known = fresh
        """Whether the server has said that there is such a run."""
        self.ended = False

    def read(self) -> Iterator[Item]:
        """Connect and yield what is new, until the run has ended or the server closes."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(self.seq)} if self.seq else {})}
        with self.client.open("GET", self.path, headers=headers) as response:
            self.known = True
            place = (self.seq, 0)
            for frame in frames(_lines(response)):
                item = {"type": frame.event, **json.loads(frame.data)}
                self.frames += 1
                if (seq := item.get("seq")) is not None:
                    place = (seq, place[1] + 1 if seq == place[0] else 1)
                    if place <= self._place:
                        continue
                    self._place = place
                if frame.id:
                    self.seq = int(frame.id)
                    self._place = (self.seq, sys.maxsize)
                yield item
                if item["type"] in ENDS:
                    self.ended = True
                    return


def _lines(response: HTTPResponse) -> Iterator[bytes]:
    while line := response.readline():
        yield line


def _over(client: Client, run_id: str) -> bool:
    """Whether the run has ended; a server that is away says neither."""
    try:
        return client.get(f"/v1/runs/{segment(run_id)}")["status"] in ENDED
    except Stop as error:
        if not _passing(error):
            raise
        return False


def _passing(error: Stop) -> bool:
    return isinstance(error, Unreachable) or (isinstance(error, Refusal) and error.status in (429, 502, 503, 504))

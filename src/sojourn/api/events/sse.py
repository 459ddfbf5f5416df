"""Server-sent events as bytes, and what of a run is being made right now. The hub keeps one Tape for each run it reads.

The rule: everything is encoded once for all followers of a run; `id:` stands on the last event of a journal row only,
so a reader that comes back with it has missed nothing and sees nothing twice.
"""

from collections.abc import Iterable

import msgspec

from sojourn.api.events import kinds as k
from sojourn.api.events.public import is_end, project, quarantined
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent
from sojourn.store.rows import DeltaRow, RunRow

COMMENT = b": still here\n\n"
COME_BACK = b": this server stops; come back with Last-Event-ID\nretry: 500\n\n"
CATCH_UP_BYTES_MAX = 256 << 10
"""How much of what is being made a late follower is shown."""

Attempt = tuple[str, int, int]
"""A model attempt: frame, step, number. A tool attempt: call, -1, number."""
Row = tuple[int, ev.Event]

_encoder = msgspec.json.Encoder()


class Piece(msgspec.Struct, frozen=True):
    """A delta as the worker wrote it."""

    type: str
    text: str = ""
    index: int | None = None
    name: str | None = None
    call: str | None = None


_pieces = msgspec.json.Decoder(list[Piece])


def frame(kind: str, data: bytes, id_: int | None = None) -> bytes:
    """Write one server-sent event."""
    head = b"" if id_ is None else b"id: %d\n" % id_
    return b"%bevent: %b\ndata: %b\n\n" % (head, kind.encode(), data)


def dead(run: RunRow) -> bytes:
    """Write that a run is a dead letter; nothing of any other."""
    told = quarantined(run)
    return frame("run.quarantined", _encoder.encode(told)) if told else b""


def row(run_id: str, agent: Agent | None, seq: int, event: ev.Event) -> bytes:
    """Write one journal row; a row that callers see nothing of is empty."""
    seen = list(project(run_id, agent, seq, event))
    return b"".join(
        frame(one.__struct_config__.tag, _encoder.encode(one), seq if one is seen[-1] else None)  # type: ignore[arg-type]
        for one in seen
    )


class Tape:
    """One run as it goes on: where its reader stands, and the deltas of the attempts that have not ended."""

    def __init__(self, run_id: str, agent: Agent | None, seq: int, live: Iterable[Attempt]) -> None:
        self.run_id, self.agent = run_id, agent
        self.seq = seq
        self.delta = 0
        self.ended = False
        self.dead = b""
        """What is told of it while it is a dead letter."""
        self._made: dict[Attempt, bytearray | None] = {attempt: bytearray() for attempt in live}
        """The deltas of each running attempt; None where they are too many to be shown again."""
        self._broken: set[tuple[str, int]] = set()
        """Steps whose deltas were shown and came to nothing."""

    def take(self, deltas: Iterable[DeltaRow], rows: Iterable[Row]) -> bytes:
        """Write what is new. `deltas` must have been read before `rows`, so that every attempt's beginning is known.

        Deltas go out before the row that ends their attempt; those of an attempt that is over are dropped.
        """
        waiting: dict[Attempt, list[bytes]] = {}
        for batch in deltas:
            self.delta = max(self.delta, batch.id)
            for piece in _pieces.decode(batch.items):
                key = (piece.call, -1, batch.attempt) if piece.call else (batch.frame, batch.step, batch.attempt)
                waiting.setdefault(key, []).append(_delta(piece, batch))
        out: list[bytes] = []
        for seq, event in rows:
            begun, over = _begins(event), _ends(event)
            if over is not None:
                out += self._show(over, waiting.pop(over, []))
                self._end(over, event)
            if begun is not None:
                out += self._begin(begun)
            out.append(row(self.run_id, self.agent, seq, event))
            self.seq, self.ended, self.dead = seq, self.ended or is_end(event), b""
        for key, made in waiting.items():
            out += self._show(key, made)
        return b"".join(out)

    def knows(self, batch: DeltaRow) -> bool:
        """Say whether the attempt that these deltas belong to is running, as far as the tape goes."""
        calls = f"{batch.frame.rstrip('/')}/{batch.step}."
        model = (batch.frame, batch.step, batch.attempt)
        return model in self._made or any(step < 0 and call.startswith(calls) for call, step, _ in self._made)

    def catch_up(self) -> bytes:
        """Write what is being made right now, for a follower who comes in the middle; what it had of it is void."""
        return b"".join(_reset(attempt) + made for attempt, made in self._made.items() if made) + self.dead

    def _begin(self, attempt: Attempt) -> list[bytes]:
        self._made[attempt] = bytearray()
        if attempt[:2] not in self._broken:
            return []
        self._broken.discard(attempt[:2])
        return [_reset(attempt)]

    def _show(self, attempt: Attempt, made: list[bytes]) -> list[bytes]:
        """Remember and pass on deltas, where their attempt runs."""
        if attempt not in self._made or not made:
            return []
        kept = self._made[attempt]
        if kept is not None:
            kept += b"".join(made)
            if len(kept) > CATCH_UP_BYTES_MAX:
                self._made[attempt] = None
        return made

    def _end(self, attempt: Attempt, event: ev.Event) -> None:
        made = self._made.pop(attempt, b"")
        if made != b"" and isinstance(event, ev.ModelErred | ev.ModelLost):
            self._broken.add(attempt[:2])


def _begins(event: ev.Event) -> Attempt | None:
    match event:
        case ev.ModelAsked():
            return event.frame, event.step, event.attempt
        case ev.Intended():
            return event.call, -1, event.attempt
    return None


def _ends(event: ev.Event) -> Attempt | None:
    match event:
        case ev.Replied() | ev.ModelErred() | ev.ModelLost():
            return event.frame, event.step, event.attempt
        case ev.Returned() | ev.CallLost():
            return event.call, -1, event.attempt
    return None


def _delta(piece: Piece, batch: DeltaRow) -> bytes:
    kind = f"delta.{piece.type}"
    whole = k.Delta(
        frame=batch.frame,
        step=batch.step,
        attempt=batch.attempt,
        text=piece.text,
        index=piece.index,
        name=piece.name,
        call=piece.call,
    )
    return frame(kind, _encoder.encode(whole))


def _reset(attempt: Attempt) -> bytes:
    """Void the deltas of a model attempt; or those of a tool's, whose call says which frame and step asked for it."""
    place, step, number = attempt
    if step >= 0:
        return frame("delta.reset", _encoder.encode(k.Delta(frame=place, step=step, attempt=number)))
    above, _, last = place.rpartition("/")
    void = k.Delta(frame=above or "/", step=int(last.partition(".")[0]), attempt=number, call=place)
    return frame("delta.reset", _encoder.encode(void))

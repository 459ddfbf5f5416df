"""What a run's next commit says to the pools of the day. A drive keeps one for each commit; a stop that ends runs, too.

The rule: it is read off the run before and after each event, so a pool is charged what the run is charged, whatever
charged it.
"""

from msgspec.structs import replace

from sojourn.loop import events as ev
from sojourn.loop.continuation import Continuation, path
from sojourn.loop.machine import in_flight
from sojourn.store.rows import Paid, Starved

OfCall = ev.ModelAsked | ev.Replied | ev.ModelErred | ev.ModelLost | ev.Compacted | ev.Consulted


def call_name(call: OfCall) -> str:
    """Name a model call within its run."""
    if isinstance(call, ev.Consulted):
        return judge_name(call.frame, call.key)
    return f"{call.frame}#{call.step}@{call.attempt}"


def judge_name(frame: str, key: str) -> str:
    """Name a call to a judge within its run: the same for the same question, whoever asks it again."""
    return f"{frame}?{key}"


class Tally:
    """The model calls that were paid or ended, and those that found no room, since the last commit."""

    def __init__(self) -> None:
        self._paid: dict[str, Paid] = {}
        self._refused: list[ev.Unfunded] = []

    def take(self, before: Continuation, event: ev.Event, after: Continuation) -> None:
        """Take note of one event."""
        flying, still = _calls(before), _calls(after)
        for call in flying - still:
            self._pay(Paid(call=call))
        if isinstance(event, ev.Consulted):
            self._pay(Paid(call=call_name(event)))
        old, new = before.spent, after.spent
        usd_micros = new.usd_micros - old.usd_micros
        tokens = new.input_tokens + new.output_tokens - old.input_tokens - old.output_tokens
        if usd_micros or tokens:
            call = call_name(event) if isinstance(event, OfCall) else min(flying - still, default="/")
            self._pay(Paid(call=call, usd_micros=usd_micros, tokens=tokens, open=call in still))
        if isinstance(event, ev.Unfunded):
            self._refused.append(event)

    def _pay(self, more: Paid) -> None:
        had = self._paid.get(more.call, Paid(call=more.call))
        both = replace(more, usd_micros=had.usd_micros + more.usd_micros, tokens=had.tokens + more.tokens)
        self._paid[more.call] = both

    @property
    def paid(self) -> tuple[Paid, ...]:
        return tuple(self._paid.values())

    def starved(self, after: Continuation) -> tuple[Starved, ...]:
        """The waits of `after` that the refused calls have opened."""
        waits = ((path(after.root, event.frame)[-1:], event) for event in self._refused)
        return tuple(
            Starved(wait=frame.wait.id, held=event.held)
            for found, event in waits
            for frame in found
            if frame.wait is not None and frame.wait.kind == "day_budget"
        )


def _calls(state: Continuation) -> set[str]:
    """The model calls in flight."""
    return {call_name(lost) for lost in in_flight(state, state.updated_at) if isinstance(lost, ev.ModelLost)}

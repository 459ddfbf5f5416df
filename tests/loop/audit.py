"""The auditor of the random explorer: it hears every committed event and keeps books of its own beside the machine.

The world asks it with every commit. The rule: what it writes down comes from the events alone, so that it can be held
against what the machine made of them.
"""

import msgspec
from tests.loop.company import AGENTS, above
from tests.loop.rules import RULES, Books, Broken, Seen, every_call

from sojourn.loop import events as ev
from sojourn.loop.agent import digest
from sojourn.loop.budget import Spent
from sojourn.loop.continuation import Continuation, Floor, Flow, frames, fresh, path, pending
from sojourn.loop.machine import apply, begin, in_flight
from sojourn.loop.messages import Usage


class Audit:
    """Hears every committed event, in order, and folds the journal beside the machine's own snapshot."""

    def __init__(self, first: ev.Began) -> None:
        self.state = begin(first)
        self.books = Books()
        self.journal: list[ev.Event] = [first]

    def hear(self, event: ev.Event) -> None:
        """Take one event. Raises Broken, with the names of all rules that it broke."""
        before, self.state = self.state, apply(AGENTS, self.state, event)
        assert self.state is not before, ("an event that changes nothing is in the journal", event)
        self.journal.append(event)
        self._count(before, event)
        seen = Seen(before, event, self.state, self.books)
        if broken := {name for name, rule in RULES.items() if not rule(seen)}:
            raise Broken(broken, event)
        self._close(before, event)

    def _count(self, before: Continuation, event: ev.Event) -> None:
        """Write down what counts for the event itself."""
        self._age(before, event)
        self._read(before, event)
        match event:
            case ev.Replied(frame=place, message=message):
                usage, cost = (message and message.usage) or Usage(), event.usd_micros or 0
                self._charge(place, steps=1, input_tokens=usage.prompt, output_tokens=usage.output, usd_micros=cost)
                self.books.asked.pop((place, event.step, event.attempt), None)
                self.books.turns[place] += 1
                self._grants_used(place)
            case ev.ModelAsked(least=least) if self.state.rev > before.rev and self._flies(event):
                self.books.asked[event.frame, event.step, event.attempt] = least.usd_micros or 0 if least else 0
            case ev.ModelErred() | ev.ModelLost():
                self._ended(event)
            case ev.Intended(attempt=1, call=uid):
                self._charge(uid.rpartition("/")[0] or "/", tool_calls=1)
            case ev.Judged(verdict="ask", call=uid):
                self.books.yes.pop(uid, None)
                self.books.used.discard(uid)
                # A sub-agent that was to begin with the same commit was never written.
                self.books.places = {place for place in self.books.places if place[0] != uid}
            case ev.Decided():
                self._decided(before, event)
        self._sent()

    def _read(self, before: Continuation, event: ev.Event) -> None:
        """Write down what came back, with what it brought, and what went down and up with it."""
        read, floor = self.books.read, self.state.floor or Floor()
        old, new = ([frame.id for frame in frames(state.root)] for state in (before, self.state))
        if isinstance(event, ev.Returned):
            tool = next(call.tool.name for call in every_call(before.root) if call.uid == event.call)
            read[event.call.rpartition("/")[0] or "/"] |= set(floor.tools.get(tool, Flow()).taints)
        for gone in sorted(set(old) - set(new), key=len, reverse=True):
            if isinstance(event, ev.Judged) and gone == event.call:
                self._charge(gone.rpartition("/")[0] or "/", children=-1)
            else:
                read[gone.rpartition("/")[0] or "/"] |= read[gone]
        for begun in sorted(set(new) - set(old), key=len):
            read[begun] = set(read[begun.rpartition("/")[0] or "/"])
            self._charge(begun.rpartition("/")[0] or "/", children=1)

    def _sent(self) -> None:
        """Find the calls that were let run beforehand for what they send."""
        for call in every_call(self.state.root):
            if call.sending == "approved" and call.uid not in self.books.sent:
                self.books.sendable[call.uid.rpartition("/")[0] or "/"] -= 1
                self.books.sent.add(call.uid)
                self.books.used.add(call.uid)

    def _age(self, before: Continuation, event: ev.Event) -> None:
        passed_ms = int(max(0.0, (event.at - before.updated_at).total_seconds()) * 1000)
        busy: set[str] = set()
        for lost in in_flight(before, before.updated_at):
            place = lost.frame if isinstance(lost, ev.ModelLost) else lost.call.rpartition("/")[0] or "/"
            busy |= set(above(place))
        for place in busy:
            self._add(place, active_ms=passed_ms)

    def _flies(self, event: ev.ModelAsked) -> bool:
        """Whether the call was let go; where there is no room for it, it is not."""
        frame = path(self.state.root, event.frame)[-1:]
        return bool(frame) and frame[0].turn.sent and not frame[0].ended

    def _ended(self, event: ev.ModelErred | ev.ModelLost) -> None:
        """A call ends without a reply, and is paid for once."""
        self.books.asked.pop((event.frame, event.step, event.attempt), None)
        if (bill := event.bill) is not None:
            cost = bill.usd_micros or 0
            self.books.estimated += cost
            self._charge(event.frame, input_tokens=bill.usage.prompt, usd_micros=cost)

    def _charge(self, place: str, **more: int) -> None:
        for one in above(place):
            self._add(one, **more)

    def _add(self, place: str, **more: int) -> None:
        old = self.books.spent.get(place, Spent())
        new = {name: getattr(old, name) + n for name, n in more.items()}
        self.books.spent[place] = msgspec.structs.replace(old, **new)

    def _grants_used(self, place: str) -> None:
        """Find the calls that were let run though the policy asks, and nobody was asked."""
        for call in every_call(self.state.root):
            new = call.uid not in self.books.uids and call.uid.rpartition("/")[0] == place.rstrip("/")
            asked = call.gate is not None and call.gate.verdict == "ask" and call.state != "cancelled"
            if new and asked and call.sending is None and (call.wait is None or call.wait.kind != "approval"):
                self.books.granted[place] -= 1
                self.books.used.add(call.uid)

    def _decided(self, before: Continuation, event: ev.Decided) -> None:
        wait = next((wait for wait in pending(before) if wait.id == event.wait), None)
        if wait is None:
            return
        if wait.call is None:
            self.books.turns[wait.frame] *= event.decision != "approve" or wait.kind == "day_budget"
        elif event.decision == "retry":
            self.books.retries[wait.call] += 1
        elif event.decision in ("approve", "edit"):
            shown = digest(event.args) if event.decision == "edit" else wait.args_digest or ""
            self.books.yes[wait.call] = shown
            self.books.voters[wait.call, shown].add(event.by)
            sends = "It sends outward" in wait.title
            self.books.sent |= {wait.call} if sends else set()
            if event.grant is not None:
                granted = self.books.sendable if sends else self.books.granted
                granted[wait.frame] += event.grant.count

    def _close(self, before: Continuation, event: ev.Event) -> None:
        """Write down what must not come again."""
        if isinstance(event, ev.Intended):
            self.books.intents[event.call] = event.attempt
        open_now = {wait.id for wait in pending(self.state)}
        unbegun = event.call if isinstance(event, ev.Judged) else None  # and nobody was told of its questions
        self.books.closed |= {wait.id for wait in pending(before) if wait.frame != unbegun} - open_now
        self.books.uids |= {call.uid for call in every_call(self.state.root)}
        self.books.places |= {(frame, slot) for frame, slot, _ in fresh(before, self.state)}

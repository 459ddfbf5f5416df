"""The rules of a continuation, each as one function over one committed event: what was, what happened, what is.

`Audit`, in audit.py, hears every committed event, keeps the books, and names each rule that is broken.
Rule 16 (no secret anywhere) cannot be said of the pure machine, which never holds one: the gateway's canary shows it.
Of 1, 9, 17 and 18 the machine's side is here; the worker, the store and the explorer show theirs.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
from tests.loop.company import AGENTS, INITIATOR

from sojourn.loop import events as ev
from sojourn.loop.agent import digest
from sojourn.loop.budget import Held, Limits, Spent
from sojourn.loop.continuation import (
    Call,
    Continuation,
    Floor,
    Flow,
    Frame,
    Wait,
    detach,
    frames,
    fresh,
    path,
    pending,
)
from sojourn.loop.machine import apply, due, in_flight, link, phase, wake_at
from sojourn.loop.step.budgets import began
from sojourn.loop.step.decisions import refusal
from sojourn.loop.step.taints import read

ROW_BYTES_MAX = 16_000
TOOLS = {digest(agent): {tool.name: digest(tool) for tool in agent.tools} for agent in AGENTS.values()}


@dataclass
class Books:
    """What an auditor writes down beside the machine."""

    uids: set[str] = field(default_factory=set)
    places: set[tuple[str, int]] = field(default_factory=set)
    yes: dict[str, str] = field(default_factory=dict)
    """The calls that people let run, with the arguments that they saw or wrote."""
    voters: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    granted: Counter[str] = field(default_factory=Counter)
    """Further calls that were let run beforehand, by frame."""
    used: set[str] = field(default_factory=set)
    retries: Counter[str] = field(default_factory=Counter)
    intents: Counter[str] = field(default_factory=Counter)
    keys: dict[str, str] = field(default_factory=dict)
    spent: dict[str, Spent] = field(default_factory=dict)
    asked: dict[tuple[str, int, int], int] = field(default_factory=dict)
    """The model calls that were announced and have no end yet, with what they cost at least."""
    estimated: int = 0
    """What calls cost that had no reply."""
    turns: Counter[str] = field(default_factory=Counter)
    read: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """What came back in each frame and from below it, and what it began with."""
    sent: set[str] = field(default_factory=set)
    """The calls that people let run knowing what the frame had read."""
    sendable: Counter[str] = field(default_factory=Counter)
    """Further calls that were let run so beforehand, by frame."""
    closed: set[str] = field(default_factory=set)
    """Waits that were answered for good."""


@dataclass
class Seen:
    """One event and both sides of it."""

    before: Continuation
    event: ev.Event
    after: Continuation
    books: Books

    def wait(self) -> Wait | None:
        """The wait that the event decides."""
        named = self.event.wait if isinstance(self.event, ev.Decided) else None
        return next((wait for wait in pending(self.before) if wait.id == named), None)

    def intended(self) -> tuple[Frame, Call] | None:
        """The call that begins, as it stood."""
        if not isinstance(self.event, ev.Intended):
            return None
        place = path(self.before.root, self.event.call.rpartition("/")[0] or "/")
        found = [(place[-1], call) for call in place[-1].calls if call.uid == self.event.call] if place else []
        assert found, "an intent for no call"
        return found[0]


def every_call(root: Frame) -> Iterator[Call]:
    return (call for frame in frames(root) for call in frame.calls)


# ---- the rules -------------------------------------------------------------------------------


def rule_01_suspended_means_nothing_to_do_and_a_question(seen: Seen) -> bool:
    state, now = seen.after, phase(AGENTS, seen.after)
    idle = not due(AGENTS, state) and not in_flight(state, state.updated_at)
    if state.root.ended:
        return idle and not pending(state) and wake_at(state) is None and now != "suspended"
    pauses = state.wait is None and any(frame.turn.not_before for frame in frames(state.root))
    if idle and not pauses:
        return bool(pending(state)) and now == "suspended"
    return now == "running" and (not pauses or wake_at(state) is not None)


def rule_02_pending_is_what_the_tree_holds(seen: Seen) -> bool:
    def walk(place: Any) -> Iterator[str]:
        if place.wait is not None:
            yield place.wait.id
        for name in {"root", "child"} & set(place.__struct_fields__):
            yield from walk(getattr(place, name)) if getattr(place, name) is not None else ()
        for call in getattr(place, "calls", ()):
            yield from walk(call)

    ids = [wait.id for wait in pending(seen.after)]
    return sorted(ids) == sorted(walk(seen.after)) and len(set(ids)) == len(ids)


def rule_03_only_authorized_calls_run_and_a_decision_changes_one(seen: Seen) -> bool:
    if (place := seen.intended()) is not None:
        _, call = place
        allowed = call.gate is not None and call.gate.verdict == "allow"
        return call.state == "authorized" and (allowed or call.uid in seen.books.yes or call.uid in seen.books.used)
    wait = seen.wait()
    if wait is None or wait.call is None:
        return True
    alive = (frame for frame in frames(seen.after.root) if not frame.ended)  # a spent budget may end a frame
    now = {call.uid: call for frame in alive for call in frame.calls}
    return all(
        call == now[call.uid] or call.state == "authorized" or call.child is not None
        for call in every_call(seen.before.root)
        if call.uid in now and call.uid != wait.call
    )


def rule_04_nothing_that_is_said_decides(seen: Seen) -> bool:
    if not isinstance(
        seen.event, ev.Said | ev.Replied | ev.Returned | ev.ModelAsked | ev.Intended | ev.Noted | ev.Turned
    ):
        return True
    left = {wait.id for wait in pending(seen.after)}
    alive = {frame.id for frame in frames(seen.after.root) if not frame.ended}
    heard = {signal.name for signal in seen.before.signals}
    return all(
        wait.id in left
        or wait.frame not in alive
        or (wait.kind == "event" and wait.about in heard)
        or (wait.kind == "approval" and sends(seen, wait.frame, wait.call))
        for wait in pending(seen.before)
    )


def rule_05_what_runs_is_what_was_approved(seen: Seen) -> bool:
    place = seen.intended()
    if place is None:
        return True
    frame, call = place
    runs = call.args if call.args_effective is None else call.args_effective
    shown = seen.books.yes.get(call.uid, digest(call.args))
    return digest(runs) == shown and call.tool.digest == TOOLS[frame.agent.digest][call.tool.name]


def rule_06_a_yes_counts_once_from_the_right_people_in_time(seen: Seen) -> bool:
    event, books = seen.event, seen.books
    if any(wait.id in books.closed for wait in pending(seen.after)) or any(n < 0 for n in books.granted.values()):
        return False
    if isinstance(event, ev.Decided):
        wait = seen.wait()
        if wait is None or refusal(AGENTS, seen.before, event) is not None:
            return False
        if event.decision == "extend" and wait.kind != "budget":
            return wait.ask.may(event.by)
        late = wait.expires_at is not None and wait.expires_at <= event.at
        wrong = not wait.ask.may(event.by) or (wait.ask.exclude_initiator and event.by == INITIATOR)
        return not late and not wrong and apply(AGENTS, seen.after, event) is seen.after
    place = seen.intended()
    if place is None:
        return True
    _, call = place
    asked = call.gate.ask if call.gate is not None else None
    return (
        asked is None
        or call.uid in books.used
        or len(books.voters[call.uid, books.yes.get(call.uid, "")]) >= asked.need
    )


def rule_07_a_uid_names_one_call(seen: Seen) -> bool:
    now = [call.uid for call in every_call(seen.after.root)]
    old = {call.uid for call in every_call(seen.before.root)}
    return len(set(now)) == len(now) and not (set(now) - old) & seen.books.uids


def rule_08_every_call_has_one_observation_in_order(seen: Seen) -> bool:
    if not isinstance(seen.event, ev.ModelAsked):
        return True
    for frame in frames(seen.after.root):
        if not frame.turn.sent:
            continue
        open_ids: list[str] = []
        for message in frame.messages:
            if message.role == "tool":
                answered = [part.id for part in message.parts if hasattr(part, "error")]
                if len(answered) != 1 or not open_ids or open_ids.pop(0) != answered[0]:
                    return False
            elif open_ids:
                return False
            else:
                open_ids = [call.id for call in message.calls]
        if open_ids:
            return False
    return True


def rule_09_what_ran_was_intended_before(seen: Seen) -> bool:
    if not isinstance(seen.event, ev.Returned):
        return True
    return seen.books.intents[seen.event.call] == seen.event.attempt


def rule_10_another_try_is_what_the_tool_allows(seen: Seen) -> bool:
    if isinstance(seen.event, ev.CallLost):
        call = next((call for call in every_call(seen.after.root) if call.uid == seen.event.call), None)
        if call is None:
            return seen.after.root.ended
        asks = call.wait is not None and call.wait.kind == "outcome_unknown" and call.state == "unknown"
        return asks == (call.tool.effect == "at_most_once") and (asks or call.state == "authorized")
    place = seen.intended()
    if place is None:
        return True
    _, call = place
    again = call.tool.effect != "at_most_once" or seen.books.retries[call.uid] >= len(call.attempts)
    after = next((one for one in every_call(seen.after.root) if one.uid == call.uid), None)
    if after is None:
        return again  # with it a pool was spent, and its frame ended
    key = after.key
    minted = seen.books.keys.setdefault(call.uid, key or "")
    return again and key == minted and list(seen.books.keys.values()).count(minted) == 1


def rule_11_no_limit_is_passed(seen: Seen) -> bool:
    state = seen.after
    for frame in frames(state.root):
        whole = frame.id == state.root.id
        limits = state.limits if whole else frame.limits
        spent = state.spent if whole else frame.spent
        books = seen.books.spent.get(frame.id, Spent())
        counted = ("steps", "tool_calls", "input_tokens", "output_tokens", "usd_micros", "active_ms", "children")
        if limits is None or any(getattr(spent, name) != getattr(books, name) for name in counted):
            return False
        if not frame.ended and not (_within(frame, limits, spent) and _in_time(seen, frame, limits)):
            return False
    return all(frame.id.rstrip("/").count("/") <= state.limits.depth for frame in frames(state.root))


def _in_time(seen: Seen, frame: Frame, limits: Limits) -> bool:
    """Whether its wall time is not over, or somebody is asked; and whoever sleeps over it is woken."""
    if limits.wall_s is None or (isinstance(seen.event, ev.ModelLost) and seen.event.given_up):
        return True
    end = began(seen.after, frame) + timedelta(seconds=limits.wall_s)
    turn, wake = frame.turn, wake_at(seen.after)
    if limits.on_exhaust == "suspend" and (frame.wait is not None or turn.sent or turn.not_before is not None):
        return True
    return seen.event.at < end and wake is not None and wake <= end


def _within(frame: Frame, limits: Limits, spent: Spent) -> bool:
    sent = [one.turn.held for one in frames(frame) if one.turn.sent and not one.ended]
    held = sum(sent, Held())
    pairs = (
        (limits.steps, spent.steps + len(sent)),
        (limits.tool_calls, spent.tool_calls),
        (limits.usd_micros, spent.usd_micros + held.usd_micros),
        (limits.children, spent.children),
        (limits.active_s if limits.on_exhaust == "fail" else None, spent.active_ms / 1000 - 1e-3),
    )
    return all(limit is None or used <= limit for limit, used in pairs)


def rule_12_rules_of_suspension_count_in_the_object(seen: Seen) -> bool:
    if not isinstance(seen.event, ev.ModelAsked):
        return True
    frame = path(seen.after.root, seen.event.frame)[-1:]
    if not frame or not frame[0].turn.sent:
        return True
    every = AGENTS[frame[0].agent.digest].suspend.every_turns
    return every is None or seen.books.turns[frame[0].id] < every


def rule_13_every_event_is_in_the_chain(seen: Seen) -> bool:
    before, after = seen.before, seen.after
    linked = after.head == link(before.head, seen.event) and after.rev == before.rev + 1
    return linked and after.updated_at >= before.updated_at and after.spent.active_ms >= before.spent.active_ms


def rule_14_a_run_stays_whose_it_is(seen: Seen) -> bool:
    def whose(state: Continuation) -> tuple[object, ...]:
        return state.run_id, state.tenant, state.session_id, state.principal, state.root.agent, state.root.id

    return whose(seen.before) == whose(seen.after) and all(
        call.tool.digest in ("", TOOLS[frame.agent.digest].get(call.tool.name))
        for frame in frames(seen.after.root)
        for call in frame.calls
    )


def rule_15_what_is_over_or_on_hold_begins_nothing(seen: Seen) -> bool:
    if seen.after.root.ended and not all(frame.ended for frame in frames(seen.after.root)):
        return False
    begins = isinstance(seen.event, ev.Intended | ev.ModelAsked) or bool(due(AGENTS, seen.after))
    if not begins:
        return True
    if isinstance(seen.event, ev.Intended | ev.ModelAsked):
        place = seen.event.frame if isinstance(seen.event, ev.ModelAsked) else seen.event.call.rpartition("/")[0] or "/"
        above = path(seen.before.root, place)
        return bool(above) and seen.before.wait is None and not any(frame.ended for frame in above)
    return seen.after.wait is None and not seen.after.root.ended


def rule_18_a_row_does_not_grow_with_the_conversation(seen: Seen) -> bool:
    row = msgspec.json.encode(msgspec.structs.replace(seen.after, root=detach(seen.after.root), signals=(), heard=()))
    once = all((frame, slot) not in seen.books.places for frame, slot, _ in fresh(seen.before, seen.after))
    return once and len(row) <= ROW_BYTES_MAX + 2_000 * sum(1 for _ in every_call(seen.after.root))


def rule_19_what_is_set_aside_for_a_call_is_settled_or_released(seen: Seen) -> bool:
    """Every call that was announced is in flight, or ended by an event of its own that paid for it."""
    flying = {
        (lost.frame, lost.step, lost.attempt): lost.bill.usd_micros if lost.bill else 0
        for lost in in_flight(seen.after, seen.after.updated_at)
        if isinstance(lost, ev.ModelLost)
    }
    pins = [pin.model for pin in seen.after.prices]
    return seen.books.asked == flying and len(set(pins)) == len(pins)


def rule_20_what_was_read_is_never_forgotten(seen: Seen) -> bool:
    """A frame knows all that came back in it, whatever became of the calls since."""
    return all(
        {origin.taint for origin in read(frame)} == seen.books.read[frame.id]
        for frame in frames(seen.after.root)
        if not frame.ended
    )


def rule_21_nothing_is_sent_unseen(seen: Seen) -> bool:
    """No call that sends begins in a frame with both taints, but for those of which a person knew that."""
    place, floor = seen.intended(), seen.before.floor
    if place is None or floor is None or not sends(seen, place[0].id, place[1].uid):
        return True
    granted = all(left >= 0 for left in seen.books.sendable.values())
    return floor.outward == "ask" and place[1].uid in seen.books.sent and granted


def sends(seen: Seen, frame: str, uid: str | None) -> bool:
    """Whether a call sends outward what its frame has read."""
    call = next((one for one in every_call(seen.before.root) if one.uid == uid), None)
    floor = seen.before.floor or Floor()
    flow = floor.tools.get(call.tool.name, Flow()) if call is not None else Flow()
    return flow.outward and len(seen.books.read[frame]) == 2


Rule = Callable[[Seen], bool]
RULES: dict[str, Rule] = {name: rule for name, rule in list(globals().items()) if name.startswith("rule_")}


class Broken(AssertionError):
    """Rules that one event broke."""

    def __init__(self, rules: set[str], event: ev.Event) -> None:
        super().__init__(f"{sorted(rules)} broken by {event}")
        self.rules = {name[:7] if name.startswith("rule_") else name for name in rules}

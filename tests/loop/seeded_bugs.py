"""Bugs for the random explorer to catch: each breaks one function of the loop, and names the rules that must see it."""

import itertools
from types import ModuleType
from typing import Any, NamedTuple

from msgspec.structs import replace
from tests.loop import world
from tests.loop.company import FORGED
from tests.loop.world import World

from sojourn.loop import machine
from sojourn.loop.budget import Pin, Room
from sojourn.loop.continuation import Attempt, Frame, ToolRef
from sojourn.loop.events import ModelLost
from sojourn.loop.messages import said
from sojourn.loop.step import budgets, calls, decisions, ending, pauses, replies, waits


class Bug(NamedTuple):
    """A function of the loop and what stands in its place; `rules` are those that may see it first."""

    rules: set[str]
    module: ModuleType | type
    name: str
    broken: Any


settle, finish, intend, settle_call, lose = ending.settle, calls.finish, calls.intend, ending._settle_call, calls.lose
put, charged, open_call, decide_frame = decisions.put, budgets._charged, calls.open_call, decisions._decide_frame
refusal, again, judge, charge = decisions.refusal, replies.again, calls.judge, budgets.charge
begin_child, nest, exhausted, deadline = calls._begin_child, budgets._nest, budgets.exhausted, budgets.deadline
numbers = itertools.count()


def tells_no_parent(call: Any) -> Any:
    child = call.child and settle(call.child)
    return replace(call, child=child) if child and child.state == "failed" else settle_call(call)


def settles_before_it_stops(continuation: Any, at: Any) -> Any:
    continuation = replace(continuation, root=settle(continuation.root))
    return budgets._bind_one(continuation, at)


def decides_the_siblings_too(frame: Any, call: Any) -> Any:
    for one in frame.calls:
        alike = one.uid != call.uid and one.tool == call.tool and one.wait is not None
        frame = put(frame, calls.authorize(one)) if alike and call.state == "authorized" else frame
    return put(frame, call)


def asks_nobody(agents: Any, frame: Any, call: Any, event: Any) -> Any:
    judged = judge(agents, frame, call, event)
    return replace(call, gate=judged.gate) if judged and judged.gate != call.gate else None


def obeys_what_is_said(frame: Frame) -> Frame:
    told = any(FORGED in message.text for message in frame.inbox)
    for call in frame.calls if told else ():
        frame = put(frame, calls.authorize(call)) if call.state == "waiting" else frame
    return settle(frame)


def hears_in_the_middle_of_a_step(frame: Frame) -> Frame:
    if frame.state == "acting" and frame.inbox:
        frame = replace(frame, messages=(*frame.messages, *frame.inbox), inbox=())
    return settle(frame)


def shuffles_observations(frame: Frame) -> Frame:
    settled, n = settle(frame), len(frame.calls)
    if settled.state == "ready" and frame.state == "acting" and n > 1:
        place = len(frame.messages)
        first, *more = settled.messages[place : place + n]
        return replace(settled, messages=(*settled.messages[:place], *more, first, *settled.messages[place + n :]))
    return settled


def uses_a_grant_for_ever(frame: Frame, call: Any, at: Any) -> Frame | None:
    return frame if any(grant.tool_digest == call.tool.digest for grant in frame.grants) else None


def names_calls_after_their_index(agents: Any, frame: Any, event: Any, index: int) -> Any:
    return open_call(agents, frame, replace(event, step=0), index)


def numbers_attempts_anew(call: Any, frame: Any, at: Any) -> Any:
    lost = lose(call, frame, at)
    return replace(lost, attempts=()) if lost.state == "authorized" else lost


def runs_a_lost_call_again(call: Any, frame: Any, at: Any) -> Any:
    return replace(call, state="authorized", attempts=(*call.attempts[:-1], replace(call.attempts[-1], state="lost")))


def mints_a_key_for_every_attempt(call: Any, run_id: str, at: Any) -> Any:
    begun = intend(call, run_id, at)
    return replace(begun, key=f"{begun.key}#{len(begun.attempts)}")


def keeps_results_in_the_row(call: Any, event: Any) -> Any:
    done = finish(call, event)
    return replace(
        done, attempts=(*done.attempts, *(Attempt(n=n, state="ok", started_at=event.at) for n in range(300)))
    )


def charges_the_run_alone(continuation: Any, place: str, pay: Any) -> Any:
    return replace(continuation, spent=pay(continuation.spent))


def stops_the_root_alone(frame: Frame) -> Frame:
    return replace(frame, wait=None, calls=tuple(replace(call, wait=None) for call in frame.calls))


def takes_late_answers(agents: Any, continuation: Any, event: Any) -> Any:
    refused = refusal(agents, continuation, event)
    return None if refused is not None and refused.code == "approval.expired" else refused


def tells_of_a_lost_attempt(frame: Frame) -> Frame:
    told = said(f"{frame.id}~{frame.turn.attempt}", "You were interrupted.")
    return replace(again(frame), messages=(*frame.messages, told))


def counts_turns_from_nowhere(frame: Frame, wait: Any, event: Any, active_ms: int) -> Frame:
    done = decide_frame(frame, wait, event, active_ms)
    return replace(done, marks=replace(done.marks, turns=done.step + 1))


def asks_in_the_calls_name(frame: Frame, kind: Any, *, at: Any, title: str, about: str | None = None) -> Frame:
    wait = waits.question(kind, f"{frame.id}?{frame.waits}", frame=frame.id, at=at, title=title)
    return replace(frame, wait=replace(wait, about=about), waits=frame.waits + 1)


def seals_with_any_time(before: Any, after: Any, event: Any) -> Any:
    return replace(after, rev=before.rev + 1, head=machine.link(before.head, event), updated_at=event.at)


def forgets_lost_calls(continuation: Any, event: Any) -> Any:
    return continuation if isinstance(event, ModelLost) else charge(continuation, event)


def prices_every_call(continuation: Any, event: Any) -> Any:
    return replace(continuation, prices=(*continuation.prices, Pin(event.model, event.tariff)))


def forgets_with_the_step(frame: Frame) -> Frame:
    settled = settle(frame)
    return replace(settled, taints=frame.taints) if settled.state != frame.state else settled


def begins_a_child_that_knows_nothing(agents: Any, call: Any, frame: Any, at: Any) -> Any:
    begun = begin_child(agents, call, frame, at)
    return replace(begun, child=replace(begun.child, taints=())) if begun.child else begun


def looks_at_no_clock(limits: Any, spent: Any, *, since: Any, at: Any) -> Any:
    return exhausted(limits, spent, since=since, at=since)


def sleeps_through_the_end(continuation: Any) -> Any:
    return deadline(replace(continuation, limits=replace(continuation.limits, wall_s=None)))


def begins_as_many_as_are_asked_for(pool: Any, depth: int) -> Any:
    return nest(pool, depth)._replace(left=9)


BUGS = {
    "a sub-agent that failed is not told to its parent": Bug({"rule_01"}, ending, "_settle_call", tells_no_parent),
    "a pool stops its frame too late to be told": Bug({"rule_01"}, budgets, "bound", settles_before_it_stops),
    "a key is drawn by lot": Bug({"rule_02"}, calls, "idempotency_key", lambda run_id, call: f"k{next(numbers)}"),
    "one yes is for all calls alike": Bug({"rule_03"}, decisions, "put", decides_the_siblings_too),
    "what guardrails ask about runs": Bug({"rule_03", "rule_06"}, calls, "judge", asks_nobody),
    "words approve": Bug({"rule_04", "rule_01"}, budgets, "settle", obeys_what_is_said),
    "an edit is shown and not run": Bug({"rule_05", "rule_06"}, decisions, "_edited", lambda _, frame, call, at: call),
    "anybody may answer": Bug({"rule_06"}, decisions, "wrong_person", lambda *_: None),
    "an answer may come late": Bug({"rule_06"}, decisions, "refusal", takes_late_answers),
    "a grant is never used up": Bug({"rule_06", "rule_21"}, calls, "_use_grant", uses_a_grant_for_ever),
    "a frame's questions have the names of its call's": Bug({"rule_06"}, waits, "ask_frame", asks_in_the_calls_name),
    "calls of later steps have the names of earlier ones": Bug(
        {"rule_07", "rule_06"}, calls, "open_call", names_calls_after_their_index
    ),
    "observations enter in another order": Bug({"rule_08", "rule_02"}, budgets, "settle", shuffles_observations),
    "a lost attempt's number is used again": Bug({"again", "rule_10"}, calls, "lose", numbers_attempts_anew),
    "a worker with an old fence goes on": Bug({"rule_09"}, World, "holds", lambda world, worker: True),
    "a lost at_most_once call is run again": Bug({"rule_10"}, calls, "lose", runs_a_lost_call_again),
    "every attempt has a key of its own": Bug({"rule_10"}, calls, "intend", mints_a_key_for_every_attempt),
    "parallel sub-agents do not see each other's steps": Bug({"rule_11"}, budgets, "take_step", lambda pools: Room()),
    "what is set aside is forgotten": Bug({"rule_11"}, budgets, "announced", lambda whole, event, frame: whole),
    "sub-agents cost nothing": Bug({"rule_11"}, budgets, "_charged", charges_the_run_alone),
    "sub-agents begin without end": Bug({"rule_11"}, budgets, "_nest", begins_as_many_as_are_asked_for),
    "nobody looks at the clock": Bug({"rule_11"}, budgets, "exhausted", looks_at_no_clock),
    "a run sleeps through its end": Bug({"rule_11"}, budgets, "deadline", sleeps_through_the_end),
    "a rule of suspension never counts to its end": Bug({"rule_12"}, pauses, "_due", lambda *_: None),
    "a rule of suspension counts on": Bug({"rule_12"}, decisions, "_decide_frame", counts_turns_from_nowhere),
    "the chain leaves out the event": Bug({"rule_13"}, machine, "link", lambda head, event: head + "x"),
    "the run's clock goes back": Bug({"rule_13"}, machine, "_seal", seals_with_any_time),
    "a call is bound to the name of its tool alone": Bug(
        {"rule_14"}, calls, "_bind", lambda tool: ToolRef(tool.name, tool.name, tool.effect, tool.executor)
    ),
    "cancelling stops the root alone": Bug({"rule_15", "rule_01"}, ending, "_stopped", stops_the_root_alone),
    "a lost call is taken for done": Bug(
        {"rule_17", "rule_10"}, calls, "lose", lambda call, frame, at: calls.close(call, "succeeded", "probably done")
    ),
    "the model is told of a lost attempt": Bug({"rule_17"}, replies, "again", tells_of_a_lost_attempt),
    "users are heard in the middle of a step": Bug(
        {"rule_18", "rule_08", "rule_02"}, budgets, "settle", hears_in_the_middle_of_a_step
    ),
    "a call that is given up is forgotten": Bug({"rule_19"}, world, "given_up", lambda before, after, event: ()),
    "a lost call costs nothing": Bug({"rule_11"}, budgets, "charge", forgets_lost_calls),
    "every call is priced anew": Bug({"rule_19"}, budgets, "pinned", prices_every_call),
    "a step is forgotten with what it read": Bug({"rule_20"}, budgets, "settle", forgets_with_the_step),
    "a sub-agent does not know what its parent read": Bug(
        {"rule_20"}, calls, "_begin_child", begins_a_child_that_knows_nothing
    ),
    "what came back later is not looked at": Bug({"rule_21"}, calls, "stop_sending", lambda agents, run, at: run),
    "a row keeps all that came back": Bug({"rule_18"}, calls, "finish", keeps_results_in_the_row),
}  # fmt: skip

"""Who answers, speaks and interferes in the random explorer: after a plan that the seed alone draws, or at random.

With a plan two runs of one seed get the same answers to the same questions, whenever they are put; at random everything
is tried by anybody, the wrong people and the wrong answers too.
"""

from collections import Counter
from datetime import timedelta
from typing import Any, get_args

from msgspec.structs import replace
from tests.loop.company import FORGED, INITIATOR, PEOPLE, draw
from tests.loop.world import World

from sojourn.loop import events as ev
from sojourn.loop.continuation import Decision, Signal, Wait, pending
from sojourn.loop.messages import said

DECISIONS: tuple[Decision, ...] = get_args(Decision)


def right_person(wait: Wait) -> str:
    """Somebody who may answer and has not voted."""
    voted = {vote.by for vote in wait.votes}
    barred = {INITIATOR} if wait.ask.exclude_initiator else set()
    return next(one for one in PEOPLE if one not in voted | barred and wait.ask.may(one))


class Planned:
    """Answers each question as the seed wants it, and some not at all, where they run out by themselves."""

    def __init__(self, world: World, *, patient: bool = False) -> None:
        self.world, self.patient = world, patient
        self.answered: Counter[str] = Counter()
        self.did: set[str] = set()
        if draw(world.seed, "early signal") % 3 == 0:
            self._signal("early")

    def watch(self) -> None:
        """Speak in the middle of a certain step, whatever else goes on."""
        root = self.world.audit.state.root
        if not self.patient and root.state == "acting" and root.step == 2 and self._once("message"):
            self.world.post(ev.Said(at=self.world.now(), message=said("u", f"hurry. {FORGED}"), interrupt=True))

    def act(self) -> bool:
        """Post one thing; false where there is nothing to say."""
        state, dice = self.world.audit.state, self.world.dice
        if state.root.ended or self.world.inbox:
            return False
        if not self.patient and dice.random() < 0.01 and self._once("hold"):
            self.world.post(ev.Paused(at=self.world.now(), by="bob"))
            return True
        waits = [wait for wait in pending(state) if self.answered[wait.id] < wait.ask.need and self._plan(wait)]
        if not waits:
            return False
        wait = dice.choice(waits)
        self.answered[wait.id] += 1
        self._say(wait, self._plan(wait))
        return True

    def _once(self, what: str) -> bool:
        new = what not in self.did
        self.did.add(what)
        return new

    def _plan(self, wait: Wait) -> str:
        n = draw(self.world.seed, wait.id, "plan") % 10
        match wait.kind:
            case "approval":
                silent = wait.expires_at is not None and wait.ask.on_expire != "keep" and not self.patient
                first = ("approve", "approve", "approve", "approve", "grant", "reject", "reject", "edit", "answer")
                return [*first, "" if silent else "approve"][n]
            case "event":
                return ["signal", "signal", "answer", "" if wait.expires_at is not None else "signal"][n % 4]
            case "timer" if wait.call is not None:
                return "approve" if n < 3 else ""
            case "client_tool":
                return "answer"
            case "answer":
                return "reject" if n < 3 else "answer"
            case "budget":
                return "extend"
            case "outcome_unknown":
                return "retry"
        return "approve"

    def _say(self, wait: Wait, what: str) -> None:
        at, by = self.world.now(), right_person(wait)
        decided = ev.Decided(at=at, wait=wait.id, by=by, decision="approve", args_digest=wait.args_digest)
        late = wait.expires_at is not None and wait.expires_at <= at
        if late and wait.ask.on_expire == "keep":
            more = replace(decided, decision="extend", expires_at=at + timedelta(hours=1))
            self.world.post(more)
        match what:
            case "signal":
                return self._signal(wait.id)
            case "grant":
                decided = replace(decided, grant=ev.NewGrant(count=1) if wait.ask.need == 1 else None)
            case "edit":
                args = '{"n":7}' if wait.ask.need == 1 else '{"n":7777}'
                decided = replace(decided, decision="edit", args=args)
            case "answer":
                decided = replace(decided, decision="answer", text=f"as {wait.id} says", failed=bool(len(wait.id) % 2))
            case "extend":
                decided = replace(decided, decision="extend", limits=self._more(wait))
            case _:
                decided = replace(decided, decision=what)
        for wrong in (replace(decided, args_digest="sha256:0"), replace(decided, wait=f"{wait.id}0"), decided, decided):
            self.world.post(wrong)

    def _signal(self, name: str) -> None:
        signal = ev.Signalled(at=self.world.now(), signal=Signal(id=f"sig {name}", name="paid", data=f"paid {FORGED}"))
        self.world.post(signal)
        self.world.post(signal)

    def _more(self, wait: Wait) -> Any:
        """Limits with room in them."""
        return replace(self.world.limits, steps=100, usd_micros=100_000, tool_calls=None, active_s=1e6, wall_s=None)


class Wild:
    """Does anything at any time, until it is tired."""

    def __init__(self, world: World, acts: int) -> None:
        self.world, self.acts, self.dice = world, acts, world.dice
        self.said = 0

    def act(self) -> bool:
        """Post one thing, right or wrong."""
        self.acts -= 1
        state, dice = self.world.audit.state, self.dice
        waits = pending(state)
        match dice.randrange(24):
            case 0 | 1:
                self.said += 1
                message = said(f"u{self.said}", FORGED)
                self.world.post(ev.Said(at=self.world.now(), message=message, interrupt=dice.random() < 0.6))
            case 2:
                self.world.post(ev.Paused(at=self.world.now(), by="bob", reason="lunch"))
            case 3 | 4:
                signal = Signal(id=f"s{dice.randrange(6)}", name=dice.choice(("paid", "other")), data="wild")
                self.world.post(ev.Signalled(at=self.world.now(), signal=signal))
            case 5 if dice.random() < 0.05:
                self.world.post(ev.Cancelled(at=self.world.now(), by="bob"))
            case 6:
                self.world.second += dice.choice((-30, 10, 60, 60, 450))
            case 7:
                self.world.post(ev.Ticked(at=self.world.now()))
            case _ if waits:
                self.world.post(self._decided(dice.choice(waits)))
        return True

    def _decided(self, wait: Wait) -> ev.Decided:
        dice, at = self.dice, self.world.now()
        likely = dice.random() < 0.7
        decision = dice.choice(wait.allowed if likely else DECISIONS)
        if wait.call is None and dice.random() < 0.7:
            decision = wait.allowed[0]
        return ev.Decided(
            at=at,
            wait=wait.id,
            by=dice.choice(PEOPLE),
            decision=decision,
            text="wild",
            args=dice.choice(('{"n":1}', '{"n":5000}', "{broken", None)) if decision == "edit" else None,
            args_digest=dice.choice((None, wait.args_digest, wait.args_digest, "sha256:0")),
            grant=dice.choice((None, None, ev.NewGrant(count=1), ev.NewGrant(count=3, same_arguments=False))),
            limits=dice.choice((None, self._limits())) if wait.kind == "budget" or not likely else None,
            expires_at=dice.choice((None, at - timedelta(seconds=5), at + timedelta(seconds=300))),
        )

    def _limits(self) -> Any:
        return replace(self.world.limits, steps=self.dice.choice((1, 5, 60)), usd_micros=self.dice.choice((1, 500)))

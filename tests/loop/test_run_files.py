"""`sojourn.loop` for programs with a loop of their own: its names, answers to effects, and a run as a file's text."""

import json
import subprocess
import sys
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from run_kit import AGENT, HELPER, T0, Run, call

import sojourn.loop
from sojourn.errors import BadSeal, MissingPin, UnknownFormat, Unreadable
from sojourn.loop import (
    Agent,
    Asking,
    CallModel,
    CallTool,
    Failure,
    Message,
    Suspend,
    Text,
    apply,
    digest,
    due,
    dumps,
    events,
    frames,
    loads,
)


def nested() -> Run:
    """A run with an approval in its root, a sub-agent, and something that happened at a fraction of a second."""
    run = Run()
    run.reply(call("wire", '{"eur": 5e1}'), call("help", '{"input": "look"}', id="q"), call("pay", id="r"))
    run.tell(events.Ticked(at=T0 + timedelta(microseconds=1)))
    return run


def altered(text: bytes, **members: Any) -> bytes:
    return json.dumps({**json.loads(text), **members}).encode()


# ---- the text of a file ----------------------------------------------------------------------


def test_a_run_that_was_written_is_read_as_it_was_and_goes_on() -> None:
    run = nested()
    kept = loads(dumps(run.state, run.agents))
    assert kept == (run.state, run.agents)
    assert [frame.id for frame in frames(kept.run.root)] == ["/", "/0.1"]
    assert due(kept.agents, kept.run) == due(run.agents, run.state)
    assert dumps(*kept) == dumps(run.state, run.agents)


def test_only_the_agents_that_a_run_needs_are_written() -> None:
    run = nested()
    stranger = Agent(name="stranger", models=("m",))
    kept = loads(dumps(run.state, {**run.agents, digest(stranger): stranger}))
    assert kept.agents == {digest(one): one for one in (AGENT, HELPER)}


def test_a_text_may_be_laid_out_anew() -> None:
    run = nested()
    text = dumps(run.state, run.agents)
    assert loads(json.dumps(json.loads(text), indent=2, sort_keys=True).encode()).run == run.state


def test_every_flipped_bit_is_refused() -> None:
    run = Run()
    run.reply(call("wire", '{"eur": 50}'))
    text = dumps(run.state, run.agents)
    taken = []
    for place in range(len(text) * 8):
        flipped = bytearray(text)
        flipped[place // 8] ^= 1 << place % 8
        try:
            loads(bytes(flipped))
        except Unreadable:
            continue
        taken.append(bytes(flipped))
    assert not taken


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_text_that_was_cut_is_refused(cut: int) -> None:
    run = nested()
    with pytest.raises(Unreadable):
        loads(dumps(run.state, run.agents)[:cut])


def test_what_a_newer_release_wrote_is_refused_as_such_whatever_else_is_in_it() -> None:
    run = nested()
    with pytest.raises(UnknownFormat):
        loads(altered(dumps(run.state, run.agents), version=2, digest="other", agents=[], more=True))


@pytest.mark.parametrize("members", [{"format": "other"}, {"version": "1"}, {"version": True}])
def test_what_is_no_continuation_is_refused(members: dict[str, Any]) -> None:
    run = nested()
    with pytest.raises(Unreadable, match="This is no"):
        loads(altered(dumps(run.state, run.agents), **members))


@pytest.mark.parametrize("members", [{"digest": None}, {"digest": "sha256:0"}, {"more": True}, {"agents": {}}])
def test_what_was_changed_is_refused(members: dict[str, Any]) -> None:
    run = nested()
    with pytest.raises(BadSeal):
        loads(altered(dumps(run.state, run.agents), **members))


def test_a_run_without_one_of_its_agents_is_neither_written_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    run = nested()
    with pytest.raises(MissingPin, match=digest(HELPER)):
        dumps(run.state, {digest(AGENT): AGENT})
    with pytest.raises(MissingPin):
        dumps(run.state, {})
    monkeypatch.setattr("sojourn.loop.files._needed", lambda run, agents: set())
    text = dumps(run.state, run.agents)
    monkeypatch.undo()
    with pytest.raises(MissingPin):
        loads(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"\xff"',
        b"[" * 100_000,
        b'{"agents":' * 100_000,
        b'{"format":"sojourn.continuation","version":1,"agents":' + b'{"a":' * 900 + b"1" + b"}" * 901,
        b'{"format":"sojourn.continuation","version":1,"more":"\\ud800"}',
        b'{"format":"sojourn.continuation","version":1e400}',
        b'{"format":"sojourn.continuation","version":%d}' % 10**400,
        b'{"format":"sojourn.continuation","version":1,"more":%d}' % 10**30,
    ],
    ids=lambda text: text[:60],
)
def test_text_that_is_none_of_ours_is_refused_by_name(text: bytes) -> None:
    with pytest.raises(Unreadable):
        loads(text)


# ---- answers to effects ----------------------------------------------------------------------


def test_effects_make_the_events_that_announce_and_answer_them() -> None:
    run = Run()
    [ask] = due(run.agents, run.state)
    assert isinstance(ask, CallModel)
    assert run.tell(ask.announced(run.at()))
    assert run.tell(ask.erred(run.at(), Failure("model.failed", "busy"), retry=True, retry_after_s=1.0))
    assert run.tell(events.Ticked(at=run.root.turn.not_before or T0))
    [again] = due(run.agents, run.state)
    assert isinstance(again, CallModel)
    run.tell(again.announced(run.at()))
    assert not run.tell(ask.replied(run.at(), Message(id="m", role="assistant", parts=(Text("late"),))))
    assert run.tell(again.replied(run.at(), Message(id="m", role="assistant", parts=(call("pay"),)), usd_micros=7))
    assert run.state.spent.usd_micros == 7
    [pay] = due(run.agents, run.state)
    assert isinstance(pay, CallTool)
    assert run.tell(pay.announced(run.at()))
    assert run.tell(pay.returned(run.at(), "No money.", failed=True))
    assert run.last() == "No money."


def test_a_model_call_is_announced_with_what_it_may_cost() -> None:
    run = Run()
    [ask] = due(run.agents, run.state)
    assert isinstance(ask, CallModel)
    held = sojourn.loop.Held(output_tokens=9)
    assert ask.announced(T0, held).held == held
    assert apply(run.agents, run.state, ask.announced(T0, held)).root.turn.held == held


# ---- names -----------------------------------------------------------------------------------


def test_equal_agents_have_one_digest_however_their_numbers_were_written() -> None:
    whole, broken = (
        Agent(name="a", models=("m",), suspend=Suspend(after_active_s=number), tools=()) for number in (60, 60.0)
    )
    assert whole == broken
    assert digest(whole) == digest(broken) == digest(msgspec.json.decode(msgspec.json.encode(whole), type=Agent))
    assert digest(Asking(expires_s=60)) != digest(Asking(expires_s=61))


def test_the_loop_is_imported_alone() -> None:
    script = "import sys, sojourn.loop; print(*sorted(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout.decode().split()
    )
    assert not loaded & {"asyncio", "socket", "ssl", "aiohttp", "asyncpg", "logging", "random", "subprocess"}
    assert {name for name in loaded if name.startswith("sojourn.")} <= {"sojourn.errors", "sojourn.loop"} | {
        name for name in loaded if name.startswith("sojourn.loop.")
    }


def test_the_names_that_the_loop_gives_away_are_there_and_no_others() -> None:
    assert sorted(sojourn.loop.__all__) == sojourn.loop.__all__
    public = {name for name, value in vars(sojourn.loop).items() if not name.startswith("_")}
    modules = {name for name in public if f"sojourn.loop.{name}" in sys.modules} - {"events"}
    assert public - modules == set(sojourn.loop.__all__)

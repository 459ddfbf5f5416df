"""Exports: what is read back, what is refused and with which code, and what loads for ever."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from msgspec.structs import replace
from tests.loop.exported_runs import (
    BLOBS,
    FIXTURES,
    RUNS,
    SECRET,
    T0,
    WIRE,
    WORKSPACE,
    Tree,
    agent,
    blob_name,
    ended,
    export,
    exported,
    nested,
    sealed,
    starts,
)
from tests.loop.run_kit import call

from sojourn.errors import SojournError, UnknownFormat, Unreadable
from sojourn.identity import seal
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, digest, ref
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import VERSION, Call, Frame, ToolRef, frames
from sojourn.loop.messages import Native, Reasoning, ToolCall, ToolResult
from sojourn.loop.moving import document, reading
from sojourn.loop.moving.versions import STEPS, upgraded

SCHEMA = Path(__file__).parents[2] / "docs" / "continuation-v1.schema.json"


def read(data: bytes) -> document.Export:
    """Read an export as the API does."""
    opened = reading.opened(data)
    seal.verify(opened.issuer, opened.sig, opened.signed)
    return reading.whole(opened.plain).export


def refusal(data: bytes) -> str:
    """The code that an export is refused with."""
    with pytest.raises(SojournError) as refused:
        read(data)
    assert str(refused.value)
    return refused.value.code


def resealed(change: Callable[[Any], Any], data: bytes | None = None) -> bytes:
    """An export that was changed, and signed again by the same key: only its content is wrong."""
    plain = json.loads(data or exported(nested()))
    plain = change(plain) or plain
    plain["sig"] = seal.sign(SECRET, document.canonical(plain))
    return json.dumps(plain).encode()


# ---- the signature ---------------------------------------------------------------------------


def test_every_bit_flip_of_an_export_refused() -> None:
    small, middle, big = Tree(agent("one")), ended(), nested()
    flips = [(exported(small, workspace=False), 1), (exported(middle, workspace=False), 9), (exported(big), 67)]
    assert all(read(data) for data, _ in flips)
    places = [(data, bit) for data, every in flips for bit in range(0, len(data) * 8, every)]
    for data, bit in places:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SojournError):
            read(bytes(flipped))
            pytest.fail(f"bit {bit % 8} of byte {bit // 8}: {bytes(flipped[max(0, bit // 8 - 40) :][:80])!r}")


def test_every_beginning_of_an_export_is_refused_as_such() -> None:
    data = exported(ended(), workspace=False)
    for length in range(0, len(data), 7):
        assert refusal(data[:length]) == "continuation.unreadable"


def test_an_export_may_be_laid_out_anew() -> None:
    run = nested()
    plain = json.loads(exported(run))

    def as_a_script_writes_numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: as_a_script_writes_numbers(one) for name, one in reversed(value.items())}
        if isinstance(value, list):
            return [as_a_script_writes_numbers(one) for one in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    assert plain["continuation"]["limits"] and 3600.0 in (
        one["policy"]["rules"][0]["ask"]["expires_s"] for one in plain["agents"].values() if "policy" in one
    )
    written = (
        json.dumps(plain, indent=2),
        json.dumps(plain, sort_keys=True, ensure_ascii=False),
        json.dumps(as_a_script_writes_numbers(plain)),
    )
    for text in written:
        assert read(text.encode()).continuation == run.state


def test_what_is_signed_is_the_form_of_rfc_8785() -> None:
    plain = json.loads(exported(nested()))

    def canonical(value: Any) -> str:
        match value:
            case dict():
                return "{" + ",".join(f"{canonical(name)}:{canonical(value[name])}" for name in sorted(value)) + "}"
            case list():
                return "[" + ",".join(map(canonical, value)) + "]"
            case float():
                return str(int(value)) if value.is_integer() else repr(value)
        return json.dumps(value, ensure_ascii=False)

    sig = plain.pop("sig")
    assert document.canonical({**plain, "sig": sig}) == b"sojourn.continuation.v1\n" + canonical(plain).encode()


def test_another_keys_signature_is_none() -> None:
    made = export(nested().state, nested().agents)
    assert refusal(sealed(made, secret=bytes(32))) == "continuation.bad_seal"


# ---- what is read before it ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "unreadable"),
        (b"null", "unreadable"),
        (b"[]", "unreadable"),
        (b"{}", "unreadable"),
        (b"\xff", "unreadable"),
        (b"{'format':1}", "unreadable"),
        (b'{"format":"sojourn.continuation"}', "unreadable"),
        (b'{"format":"other","version":1}', "unreadable"),
        (b'{"format":"sojourn.continuation","version":2}', "unknown_format"),
        (b'{"format":"sojourn.continuation","version":true}', "unreadable"),
        (b'{"format":"sojourn.continuation","issuer":"ed25519:\\u0000","sig":""}', "unreadable"),
        (b'{"a":NaN}', "unreadable"),
        (b'{"a":-Infinity}', "unreadable"),
        (b'{"a":' + b"9" * 10_000 + b"}", "unreadable"),
        (b'{"a":1,"b":{"c":1,"c":1}}', "duplicate_name"),
        (b"[" * 5_000_000, "too_deep"),
        (b'{"a":' * 1_000_000, "too_deep"),
        (b'{"a\\"' + b"[" * 200 + b'":1}', "unreadable"),
        (b'"' + b'\\"' * 5_000_000, "unreadable"),
    ],
    ids=range(19),
)
def test_what_is_no_export_is_refused_by_its_own_code(data: bytes, code: str) -> None:
    assert refusal(data) == f"continuation.{code}"


@pytest.mark.parametrize("text", ["\\ud800", "\\udc00x"])
def test_half_a_character_is_no_text(text: str) -> None:
    data = exported(ended()).replace(b'"tenant":"t"', b'"tenant":"%s"' % text.encode())
    assert refusal(data) == "continuation.unreadable"


def test_a_number_beyond_all_numbers_is_none() -> None:
    data = exported(nested()).replace(b"3600.0", b"1e999")
    assert refusal(data) == "continuation.unreadable"


def tower(levels: int) -> Tree:
    """An agent that calls itself, so many levels below the root."""
    unbound = Limits(depth=99)
    chain = [agent("leaf", limits=unbound)]
    for _ in range(levels):
        chain.append(agent("a", starts(chain[-1]), limits=unbound))
    run = Tree(*reversed(chain), limits=unbound)
    for level in range(levels):
        below = chain[levels - level - 1]
        frame = [frame.id for frame in frames(run.root)][-1]
        assert run.reply(call(below.name, '{"input":"down"}'), frame=frame)
    return run


def test_depth_limit_and_json_depth_bomb_refused() -> None:
    deepest = tower(16)
    assert len([*frames(deepest.root)]) == 17
    assert read(exported(deepest)).continuation == deepest.state

    run = tower(17)
    assert len([*frames(run.root)]) == 17, "the machine begins no deeper one"
    leaf = next(one for one in run.agents.values() if one.name == "leaf")
    state = replace(run.state, root=with_child(run.root, leaf))
    assert refusal(sealed(export(state, run.agents))) == "continuation.too_deep"


def with_child(frame: Frame, leaf: Agent) -> Frame:
    """The tree with one more frame at its lower end, which the machine would not have begun."""
    if frame.calls and frame.calls[0].child is not None:
        below = replace(frame.calls[0], child=with_child(frame.calls[0].child, leaf))
        return replace(frame, calls=(below,))
    uid = f"{frame.id}/{frame.step - 1}.0"
    tool = starts(leaf)
    begun = Call(
        uid=uid,
        provider_id="p",
        index=0,
        tool=ToolRef(tool.name, digest(tool), tool.effect, tool.executor),
        args="{}",
        state="authorized",
        child=Frame(id=uid, agent=ref(leaf)),
    )
    return replace(frame, state="acting", calls=(begun,))


# ---- what is read after it -------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_an_export_is_read_as_it_was_made(name: str) -> None:
    run = RUNS[name]()
    made = export(run.state, run.agents)
    assert replace(read(sealed(made)), sig="") == made
    whole = reading.whole(reading.opened(sealed(made)).plain)
    assert whole.blobs[blob_name(WORKSPACE)] == WORKSPACE


def test_surrogates_nul_nan_bigint_in_args_and_results() -> None:
    run = nested()
    odd = run.root.messages[1].calls[1].arguments
    assert "\\u0000" in odd and "1e400" in odd and "9" * 400 in odd
    back = read(exported(run)).continuation.root
    assert back.messages[1].calls == run.root.messages[1].calls
    results = [one.result.parts[0].text for one in back.calls if one.result is not None]  # type: ignore[union-attr]
    assert results[0] == "NUL \0, bidi \u202e, a flag \U0001f1e9\U0001f1ea, \u2028 and \x7f"
    assert "surrogates" in results[1] or "not a JSON object" in results[1]
    assert ToolCall("p", "look", '{"x":"\\ud800"}') in back.messages[1].calls


def test_opaque_reasoning_items_preserved_byte_for_byte() -> None:
    thought, native = read(exported(nested())).continuation.root.messages[1].parts[:2]
    assert thought == Reasoning("hm", signature="c2lnbmVk==", redacted="b3BhcXVl")
    assert native == Native(
        "anthropic", '{"type":"server_tool_use","id":"x","input":{"q":1.50,"__class__":"os.system"}}'
    )


@pytest.mark.parametrize("name", ["__class__", "__proto__", "constructor", "$ref", "py/object", "__reduce__"])
def test_constructor_keys_in_json_are_inert(name: str) -> None:
    value = {"__init__": "x", "py/reduce": [{"py/type": "os.system"}, ["true"]]}
    for place in ("", "continuation", "root"):

        def plant(plain: Any, place: str = place) -> None:
            target = plain["continuation"]["root"] if place == "root" else plain[place] if place else plain
            target[name] = value

        assert refusal(resealed(plant)) == "continuation.unreadable"
    run = Tree(agent("one", WIRE))
    args = json.dumps({name: value})
    run.reply(call("wire", args))
    back = read(exported(run)).continuation.root.calls[0]
    assert (back.args, back.state) == (args, "authorized")


def drop(*path: Any) -> Callable[[Any], None]:
    def change(plain: Any) -> None:
        for step in path[:-1]:
            plain = plain[step]
        del plain[path[-1]]

    return change


def put(value: Any, *path: Any) -> Callable[[Any], None]:
    def change(plain: Any) -> None:
        for step in path[:-1]:
            plain = plain[step]
        plain[path[-1]] = value

    return change


ROOT = ("continuation", "root")
HELPER = digest(agent("helper"))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (put("x", "continuation", "tenant2"), "unreadable"),
        (put(None, "continuation"), "unreadable"),
        (put("other", "continuation", "format"), "unreadable"),
        (put(0, "continuation", "version"), "unreadable"),
        (put(VERSION + 1, "continuation", "version"), "unknown_format"),
        (put([{"run_id": "run_0", "start": 0, "stop": 1}], *ROOT, "history"), "unreadable"),
        (put(3, *ROOT, "stored"), "unreadable"),
        (put("/x", *ROOT, "id"), "unreadable"),
        (put({"model": 7}, *ROOT, "turn"), "unreadable"),
        (put("/0.9", *ROOT, "calls", 1, "uid"), "unreadable"),
        (put("authorized", *ROOT, "calls", 1, "state"), "unreadable"),
        (put("proposed", *ROOT, "calls", 1, "state"), "unreadable"),
        (put("/0.0", *ROOT, "calls", 1, "wait", "call"), "unreadable"),
        (put("read", *ROOT, "calls", 1, "tool", "effect"), "unreadable"),
        (put("not json", *ROOT, "calls", 1, "args_effective"), "unreadable"),
        (put("/0.1", *ROOT, "calls", 0, "child", "id"), "unreadable"),
        (drop(*ROOT, "calls", 2, "result"), "unreadable"),
        (put("2027-01-01T00:00:00Z", *ROOT, "calls", 0, "child", "since"), "unreadable"),
        (put(-1.0, "continuation", "limits", "wall_s"), "unreadable"),
        (put({}, "agents"), "missing_pin"),
        (put({"name": "helper", "models": ["sim:one"]}, "agents", HELPER), "missing_pin"),
        (drop("blobs", blob_name(WORKSPACE)), "bad_blob"),
        (drop("workspace"), "bad_blob"),
        (put("bm90IGl0", "blobs", blob_name(WORKSPACE)), "bad_blob"),
        (put("no base64!", "blobs", blob_name(WORKSPACE)), "bad_blob"),
        (put("AAAA", "blobs", "sha256:" + "0" * 64), "bad_blob"),
    ],
    ids=range(26),
)
def test_what_no_run_of_ours_looks_like_is_refused_whoever_signed_it(change: Callable[[Any], None], code: str) -> None:
    found = nested()
    assert "notes.txt" in str(found.root.inbox)
    found.state = replace(found.state, root=replace(found.root, inbox=()))
    assert refusal(resealed(change, exported(found))) == f"continuation.{code}"


def test_a_question_must_stand_where_it_asks() -> None:
    run = nested()
    wait = run.root.calls[1].wait
    assert wait is not None
    for state in (
        replace(run.state, wait=wait),
        replace(run.state, root=replace(run.root, wait=wait)),
    ):
        assert refusal(sealed(export(state, run.agents))) == "continuation.unreadable"


def test_an_attempt_that_never_began_is_not_in_flight() -> None:
    run = Tree(agent("one", WIRE))
    run.reply(call("wire"))
    calls = (replace(run.root.calls[0], state="intent"),)
    state = replace(run.state, root=replace(run.root, calls=calls))
    assert refusal(sealed(export(state, run.agents))) == "continuation.unreadable"


# ---- for ever --------------------------------------------------------------------------------


def golden() -> list[Path]:
    return sorted(FIXTURES.glob("continuation-v*.json"))


def test_golden_fixtures_of_all_versions_upgrade() -> None:
    found = {path.name for path in golden()}
    assert {f"continuation-v{version}-{name}.json" for version in range(1, VERSION + 1) for name in RUNS} <= found
    for path in golden():
        back = read(path.read_bytes())
        assert back.continuation.version == VERSION
        made = RUNS[path.stem.rpartition("-")[2]]()
        assert [frame.id for frame in frames(back.continuation.root)] == [frame.id for frame in frames(made.root)]


def test_the_published_schema_is_that_of_the_types_and_every_export_fits_it() -> None:
    schema = json.loads(SCHEMA.read_text())
    assert schema == json.loads(json.dumps(document.schema())), "run `make schema`"
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for data in (*(path.read_bytes() for path in golden()), *(exported(make()) for make in RUNS.values())):
        validator.validate(json.loads(data))
    wrong = json.loads(golden()[0].read_bytes())
    for broken in ({**wrong, "extra": 1}, {**wrong, "version": 2}, {**wrong, "issuer": "me"}):
        assert not validator.is_valid(broken)


def test_older_versions_go_up_step_by_step() -> None:
    assert sorted(STEPS) == list(range(1, VERSION))
    steps = {1: lambda plain: {**plain, "one": 1}, 2: lambda plain: {**plain, "two": plain["one"] + 1}}
    assert upgraded({"run_id": "r"}, steps=steps, to=3) == {"run_id": "r", "one": 1, "two": 2, "version": 3}
    assert upgraded({"version": 2, "one": 5}, steps=steps, to=3) == {"version": 3, "one": 5, "two": 6}
    with pytest.raises(UnknownFormat, match="version 4"):
        upgraded({"version": 4}, steps=steps, to=3)
    for other in ({"version": "1"}, {"version": 0}, {"format": "else"}):
        with pytest.raises(Unreadable):
            upgraded(other, steps=steps, to=3)


def test_what_is_named_is_what_is_needed() -> None:
    run = nested()
    assert document.referred(run.state, None).keys() == set(BLOBS)
    assert document.pinned(run.state, {}) == {frame.agent.digest for frame in frames(run.root)}
    late = ev.Said(at=T0 + timedelta(days=1), message=None)
    assert not run.tell(late)
    assert isinstance(run.root.calls[0].child, Frame) and isinstance(run.root.calls[1], Call)
    assert any(isinstance(part, ToolResult) for one in document.messages(run.state) for part in one.parts)

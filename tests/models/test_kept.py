"""What is kept of a transcript from call to call: the same bytes, written once, within bounds, while its run lives."""

import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from raw_server import RawServer, whole
from speaking import DIALECTS, REQUEST, SHELL, Spoken, ask, speaking
from transcripts import SOURCES, transcript

from sojourn.loop.messages import Image, Message, Source, Text, observed, said
from sojourn.models import anthropic, kept, openai
from sojourn.models.json_schema import JSON_SCHEMA
from sojourn.models.kept import PIECE_BYTES, Kept, Piece, Transcripts
from sojourn.models.model import Endpoint, Request
from sojourn.models.projection import Turn

TARGETS = [source for source in SOURCES if source is not None]
ANY = re.compile(".*", re.DOTALL)
PICTURE = Image(blob="sha256:1", media_type="image/png")


class Run:
    """Stands for a run."""


def written(target: Source, messages: list[Message], transcripts: Transcripts, **more: Any) -> bytes:
    """The body of a request; a tool_mode of json_schema is taken at its word."""
    request = Request(model=target.model, system="Be brief.", messages=tuple(messages), tools=(SHELL,), **more)
    endpoint = Endpoint(name=target.provider, dialect=target.dialect, base_url="https://x")  # type: ignore[arg-type]
    forced = request.tool_mode == "json_schema"
    dialect = anthropic.ANTHROPIC if target.dialect == "anthropic" else JSON_SCHEMA if forced else openai.OPENAI
    return b"".join(dialect.body(request, endpoint, transcripts))


def counting(turns: list[Turn], size: int = 10) -> Any:
    """A way to write turns that notes which ones it wrote."""

    def write(turn: Turn) -> Iterator[Piece]:
        turns.append(turn)
        yield Piece(turn.message.id.encode().ljust(size))

    return write


def steps(count: int, name: str = "") -> list[Message]:
    """A transcript of so many replies, each with an observation after it."""
    made = [said(f"{name}u", "Go.")]
    for number in range(count):
        made.append(Message(id=f"{name}a{number}", role="assistant", parts=(Text("Hm."),)))
        made.append(said(f"{name}t{number}", "done"))
    return made


def pieces(transcripts: Transcripts, messages: list[Message], write: Any, model: str = "m") -> list[Piece]:
    request = Request(model=model, system="", messages=tuple(messages))
    return transcripts.pieces(request, "p", id_pattern=ANY, write=write)


# ---- the same bytes --------------------------------------------------------------------------


@pytest.mark.parametrize("moves", [0.0, 0.3], ids=["one-model", "failover"])
def test_a_transcript_that_grows_is_written_as_it_would_be_anew(moves: float) -> None:
    for seed in range(300):
        dice, run, everything = random.Random(seed), Run(), Kept()
        messages = list(itertools.chain(*transcript(dice)))
        if dice.random() < 0.3:
            messages.insert(dice.randrange(len(messages)), said("picture", "Look.", PICTURE))
        target, mode = dice.choice(TARGETS), "native"
        for end in range(1, len(messages) + 1):  # also where a call is open, which the loop never sends
            if dice.random() < moves:
                target, mode = dice.choice(TARGETS), dice.choice(["native", "json_schema"])
            more = {"tool_mode": mode, "blobs": {"sha256:1": b"PNG"} if dice.random() < 0.9 else {}}
            body = written(target, messages[:end], everything.of(run), **more)
            assert body == written(target, messages[:end], Transcripts(), **more), (seed, end)


def test_another_transcript_that_begins_alike_is_written_as_its_own() -> None:
    for seed in range(200):
        dice, transcripts = random.Random(seed), Kept().of(run := Run())
        messages = list(itertools.chain(*transcript(dice)))
        written(TARGETS[2], messages, transcripts)
        for _ in range(10):
            start, end = sorted(dice.choices(range(1, len(messages) + 1), k=2))
            other = [*messages[:start], *messages[end:]]
            assert written(TARGETS[2], other, transcripts) == written(TARGETS[2], other, Transcripts()), seed
        del run


@pytest.mark.parametrize("spoken", DIALECTS, ids=lambda spoken: spoken.dialect)
async def test_calls_of_one_run_send_what_calls_of_no_run_send(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [whole(spoken.stream)]
    run, messages = Run(), list(REQUEST.messages)
    async with speaking(spoken, raw.url) as models:
        for number in range(5):
            request = msgspec.structs.replace(REQUEST, messages=tuple(messages))
            _, reply = await ask(models, request, run=run)
            await ask(models, request)
            reply = msgspec.structs.replace(reply, id=f"a{number}")
            messages += [reply, observed(f"t{number}", reply.calls[0].id, "x" * 100_000)]
    bodies = [seen.body for seen in raw.seen]
    assert bodies[::2] == bodies[1::2]
    assert len(bodies[-1]) > 400_000
    assert len(msgspec.json.decode(bodies[-1])["messages"]) >= 9


# ---- written once ----------------------------------------------------------------------------


def test_a_step_writes_only_what_is_new_since_the_reply_before() -> None:
    turns: list[Turn] = []
    transcripts, messages = Kept().of(run := Run()), steps(50)
    for end in range(1, len(messages) + 1, 2):
        turns.clear()
        pieces(transcripts, messages[:end], counting(turns))
        assert len(turns) <= 4
    assert [turn.message.id for turn in turns] == ["a48", "t48", "a49", "t49"]
    del run


def test_messages_that_are_made_again_are_known_again() -> None:
    turns: list[Turn] = []
    transcripts = Kept().of(run := Run())
    for _ in range(2):
        turns.clear()
        again = msgspec.json.decode(msgspec.json.encode(steps(50)), type=list[Message])
        pieces(transcripts, again, counting(turns))
    assert len(turns) == 2
    del run


def test_another_model_is_written_for_anew_and_the_first_is_forgotten() -> None:
    turns: list[Turn] = []
    everything, run = Kept(), Run()
    for model in ("m", "n", "m"):
        turns.clear()
        pieces(everything.of(run), steps(3), counting(turns), model)
        assert len(turns) == 7
        assert everything.bytes == everything.of(run).bytes == 5 * (10 + PIECE_BYTES)


# ---- bounds ----------------------------------------------------------------------------------


def test_everything_goes_when_the_run_goes() -> None:
    everything, runs = Kept(), [Run() for _ in range(3)]
    for run in runs:
        pieces(everything.of(run), steps(10), counting([]))
    del run
    each = 19 * (10 + PIECE_BYTES)
    assert everything.bytes == 3 * each
    for left in (2, 1, 0):
        runs.pop()
        assert everything.bytes == left * each


def test_a_first_call_keeps_nothing() -> None:
    everything = Kept()
    pieces(everything.of(run := Run()), [said("u", "Go.")], counting([]))
    assert everything.bytes == 0
    del run


def test_when_all_is_full_what_is_new_is_written_anew_and_right() -> None:
    everything = Kept(bytes_max=10 * (10 + PIECE_BYTES))
    full, late = Run(), Run()
    for _ in range(2):
        for run in (full, late):
            for count in range(8):
                turns: list[Turn] = []
                found = pieces(everything.of(run), steps(count), counting(turns))
                assert [piece.data.strip().decode() for piece in found] == [each.id for each in steps(count)]
                assert everything.bytes <= everything.bytes_max
    del run, full, late
    assert everything.bytes == 0


def test_a_run_has_its_share_and_gives_up_its_older_transcripts_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "RUN_BYTES_MAX", 20 * (10 + PIECE_BYTES))
    everything, run = Kept(), Run()
    first, second, long = steps(5, "1"), steps(8, "2"), steps(30, "3")
    for messages, written_anew in ((first, 11), (first, 2), (second, 17), (second, 2), (first, 11), (long, 61)):
        turns: list[Turn] = []
        pieces(everything.of(run), messages, counting(turns))
        assert len(turns) == written_anew, messages[0].id
        assert everything.bytes <= kept.RUN_BYTES_MAX

"""What a model is shown of a long transcript: whole steps, always the goal, and no more than there is room for."""

import random

from sojourn.loop.continuation import Compaction
from sojourn.loop.messages import Message, Text, ToolCall, observed, said
from sojourn.loop.window import LINE_CHARS, SPILL_CHARS, reduction, shown, transcript


def tokens(message: Message) -> int:
    return 10 + sum(len(str(part)) for part in message.parts)


def step(n: int, size: int, *, calls: int = 1) -> list[Message]:
    """A reply with calls, and what came back."""
    parts = tuple(ToolCall(f"c{n}.{i}", "look", f'{{"n":{n}}}') for i in range(calls))
    reply = Message(id=f"r{n}", role="assistant", parts=(Text(f"thought {n}"), *parts))
    return [reply, *(observed(f"/{n}.{i}", f"c{n}.{i}", f"{n}:" + "x" * size) for i in range(calls))]


def talk(steps: int, size: int, *, calls: int = 1) -> tuple[Message, ...]:
    return (said("in", "count the birds"), *(m for n in range(steps) for m in step(n, size, calls=calls)))


def paired(messages: tuple[Message, ...]) -> bool:
    """Whether each call is followed by its observation, in order, and nothing else has one."""
    asked = [call.id for message in messages for call in message.calls]
    answered = [part.id for message in messages if message.role == "tool" for part in message.parts]  # type: ignore[union-attr]
    return asked == answered


def test_what_fits_is_shown_as_it_is() -> None:
    messages = talk(3, 10)
    assert shown(messages, None) is messages
    found = reduction(messages, None, tokens=tokens, room=10**6)
    assert shown(messages, found.compaction) == messages and found.told == ()


def test_the_mildest_reduction_comes_first() -> None:
    messages = talk(10, 20_000)
    total = sum(map(tokens, messages))
    cut = reduction(messages, None, tokens=tokens, room=total // 2)
    assert cut.told == () and cut.compaction.cleared == 0 and cut.compaction.upto == 0 < cut.compaction.spilled
    seen = shown(messages, cut.compaction)
    assert seen[2].parts[0].text.startswith("0:xxx") and "characters left out: sha256:" in seen[2].parts[0].text  # type: ignore[union-attr]
    assert seen[-1] is messages[-1], "the newest is whole"
    lines = reduction(talk(10, SPILL_CHARS - 10), None, tokens=tokens, room=40_000)
    assert lines.told == () and 0 == lines.compaction.upto < lines.compaction.cleared
    assert "left out" in shown(talk(10, SPILL_CHARS - 10), lines.compaction)[2].parts[0].text  # type: ignore[union-attr]


def test_compaction_never_touches_open_calls_and_keeps_pairing() -> None:
    draw = random.Random(7)
    for _ in range(300):
        messages = talk(
            draw.randrange(1, 30), draw.choice((5, LINE_CHARS + 1, SPILL_CHARS + 1)), calls=draw.choice((1, 3))
        )
        before, room = None, draw.randrange(100, 60_000)
        for _ in range(3):
            found = reduction(messages, before, tokens=tokens, room=room)
            seen = shown(messages, found.compaction)
            assert paired(seen) and seen[0].role == "user" and seen[0].text.startswith("count the birds")
            assert seen[-1] == messages[-1], "the last step is whole"
            assert found.compaction.upto >= (before.upto if before else 0)
            assert messages[found.compaction.upto].role != "tool"
            told = (
                sum(map(tokens, seen)) <= room or found.told or found.compaction.upto == (before.upto if before else 0)
            )
            assert told, "what does not fit is to be summarised"
            before = found.compaction
            messages = (*messages, *step(99, draw.choice((5, 9000))))


def test_a_summary_stands_behind_the_goal_in_the_place_of_what_it_tells() -> None:
    messages = talk(6, 100)
    seen = shown(messages, Compaction(upto=7, summary="three were counted", cleared=7, spilled=7))
    assert seen[0].text.startswith("count the birds\n\n[What follows stands for 7 earlier messages")
    assert seen[0].text.endswith("three were counted") and seen[1:] == messages[7:]


def test_in_a_later_run_of_a_session_its_own_goal_is_kept() -> None:
    messages = (*talk(2, 10), said("in2", "now the bees"), *step(7, 10), *step(8, 10))
    goal = 5
    early = shown(messages, Compaction(upto=3, summary="birds"), goal)
    assert early[0].text.startswith("[What follows") and early[1:] == messages[3:]
    late = shown(messages, Compaction(upto=8, summary="birds"), goal)
    assert late[0].text.startswith("now the bees\n\n[What follows") and late[1:] == messages[8:]


def test_a_transcript_as_text_has_the_ends_of_each_message() -> None:
    text = transcript(talk(50, 5000), 20_000)
    assert len(text) <= 20_000 and 'called look {"n":3}' in text and "[...]" in text
    assert transcript(talk(2, 10), 1000).splitlines()[0] == "user: count the birds"
    assert transcript((), 10) == ""

"""Random transcripts, as runs leave them behind when they move from model to model."""

import random

from sojourn.loop.messages import (
    Message,
    Native,
    Part,
    Reasoning,
    Source,
    Text,
    ToolCall,
    Usage,
    observed,
    said,
)

SOURCES = (
    Source(dialect="openai", provider="openai", model="gpt-5"),
    Source(dialect="openai", provider="router", model="google/gemini-3-pro"),
    Source(dialect="anthropic", provider="anthropic", model="claude-sonnet-4-5"),
    Source(dialect="anthropic", provider="anthropic", model="claude-opus-4-5"),
    None,
)
IDS = ("call_1", "toolu_01", "", "bad id!", "ünïcode", "x" * 200, "a", "call_1", "5")
ARGUMENTS = (
    '{"command": "ls"}',
    "",
    "{}",
    '{"command": "l',
    "[1]",
    "null",
    ' {"a":1.50} ',
    '{"é":"\\u00e9"}',
    "[" * 2000,
)
WORDS = ("", " ", "\n", "Hello.", "ünï \U0001f600", "x" * 50)


def transcript(dice: random.Random, *, rounds: int = 6) -> list[list[Message]]:
    """Make a transcript in rounds; after each round no call is open."""
    made: list[list[Message]] = []
    for number in range(dice.randrange(1, rounds)):
        messages = [said(f"u{number}-{each}", dice.choice(WORDS)) for each in range(dice.randrange(3))]
        reply = _reply(dice, f"a{number}")
        messages.append(reply)
        results = [
            observed(f"t{number}-{index}", call.id, dice.choice(WORDS), error=dice.random() < 0.3)
            for index, call in enumerate(reply.calls)
        ]
        if results and dice.random() < 0.2:
            results.insert(dice.randrange(len(results)), said(f"s{number}", "And hurry."))
        if dice.random() < 0.1:
            results.append(observed(f"o{number}", "orphan", "of nobody"))
        made.append(messages + results)
    made[0].insert(0, said("first", "Begin."))
    made[-1].append(said("last", "Go on."))
    return made


def _reply(dice: random.Random, id: str) -> Message:
    source = dice.choice(SOURCES)
    parts: list[Part] = []
    if dice.random() < 0.5:
        parts.append(Reasoning(text="Hm.", signature=dice.choice([None, "c2ln+/==", "reasoning_content"])))
    if dice.random() < 0.2:
        parts.append(Reasoning(redacted="Zm9v"))
    if dice.random() < 0.6:
        parts.append(Text(dice.choice(WORDS)))
    if source and dice.random() < 0.3:
        data = '{"reasoning_details": [{"n":  1.50}]}' if source.dialect == "openai" else '{"type":"new",  "n": 1.50}'
        parts.append(Native(dialect=source.dialect, data=data))
    for _ in range(dice.choice([0, 0, 1, 1, 2, 4])):
        signature = dice.choice([None, '{"google":{"thought_signature":"c2ln"}}'])
        parts.append(ToolCall(id=dice.choice(IDS), name="shell", arguments=dice.choice(ARGUMENTS), signature=signature))
    return Message(id=id, role="assistant", parts=tuple(parts), source=source, stop="end", usage=Usage())

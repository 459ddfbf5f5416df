"""msgspec against pydantic on a run of 200,000 tokens: encode, decode, and one event applied.

`python -m bench.snapshot` prints the table of docs/decisions/0006-msgspec.md. Pydantic comes with `make examples`.

    python -m bench.snapshot [--small] [--json] [--tokens 200000] [--rounds 30]
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from bench.figure import Figure, chosen, report, spread
from sojourn.loop.agent import AgentRef
from sojourn.loop.continuation import Continuation, Frame, Principal
from sojourn.loop.messages import Message, Source, Text, ToolCall, Usage, observed, said

WORDS = "the quick brown fox jumps over the lazy dog and runs on through the night, "


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    tokens: int = 200_000
    rounds: int = 30


SMALL = Sizes(tokens=20_000, rounds=3)


def transcript(tokens: int) -> Continuation:
    """A run of `tokens` tokens (4 characters each) in steps of 2,000."""
    messages: list[Message] = [said("in", "go")]
    for step in range(tokens // 2000):
        text = (WORDS * 60)[:4000]
        messages.append(
            Message(
                id=f"/#{step}",
                role="assistant",
                parts=(Text(text), ToolCall(f"call_{step}", "shell", '{"command":"ls -la"}')),
                source=Source("openai", "openai", "gpt-x", f"resp_{step}"),
                stop="tool_calls",
                usage=Usage(input=10, output=1000),
            )
        )
        messages.append(observed(f"/{step}.0", f"call_{step}", text))
    at = datetime(2026, 1, 1, tzinfo=UTC)
    root = Frame(id="/", agent=AgentRef("a", 1, "sha256:0"), messages=tuple(messages), step=len(messages) // 2)
    return Continuation(
        run_id="run_1", tenant="t", session_id="s", principal=Principal("u"), created_at=at, updated_at=at, root=root
    )


def measure(what: str, rounds: int, work: Callable[[], object]) -> Figure:
    """Do some work again and again."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000)
    return spread("", what, "ms", times)


class Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PText(Closed):
    type: Literal["text"] = "text"
    text: str


class PCall(Closed):
    type: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    arguments: str


class PResult(Closed):
    type: Literal["tool_result"] = "tool_result"
    id: str
    text: str
    error: bool = False


class PUsage(Closed):
    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0


class PSource(Closed):
    dialect: str
    provider: str
    model: str
    response_id: str = ""


class PMessage(Closed):
    v: int = 1
    id: str
    role: Literal["user", "assistant", "tool"]
    parts: tuple[Annotated[PText | PCall | PResult, Field(discriminator="type")], ...]
    source: PSource | None = None
    stop: str | None = None
    usage: PUsage | None = None


class PRun(Closed):
    messages: tuple[PMessage, ...]


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What both are measured on: the messages alone."""

    messages: tuple[Message, ...]


def main(sizes: Sizes) -> None:
    frame, rounds = transcript(sizes.tokens).root, sizes.rounds
    run = Run(frame.messages)
    data = msgspec.json.encode(run)
    decoder, other = msgspec.json.Decoder(Run), PRun.model_validate_json(data)
    report(
        [
            measure(f"msgspec encode, {len(data):,} bytes", rounds, lambda: msgspec.json.encode(run)),
            measure("msgspec decode", rounds, lambda: decoder.decode(data)),
            measure("pydantic encode", rounds, lambda: other.model_dump_json(exclude_defaults=True)),
            measure("pydantic decode", rounds, lambda: PRun.model_validate_json(data)),
            measure("msgspec replace", rounds, lambda: msgspec.structs.replace(frame, step=1)),
            measure("pydantic model_copy", rounds, lambda: other.model_copy(update={"messages": other.messages})),
        ]
    )


if __name__ == "__main__":
    main(chosen(__doc__, Sizes(), SMALL))

"""msgspec against pydantic on a run of 200,000 tokens: encode, decode, and one event applied.

`python -m bench.snapshot` prints the table of docs/decisions/0006-msgspec.md. Pydantic is installed for this alone.
"""

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from sojourn.loop.agent import AgentRef
from sojourn.loop.continuation import Continuation, Frame, Principal
from sojourn.loop.messages import Message, Source, Text, ToolCall, Usage, observed, said

WORDS = "the quick brown fox jumps over the lazy dog and runs on through the night, "


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


def measure(work: Callable[[], object], rounds: int = 30) -> float:
    """The median in milliseconds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


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


def main() -> None:
    run = Run(transcript(200_000).root.messages)
    data = msgspec.json.encode(run)
    decoder = msgspec.json.Decoder(Run)
    rows = [("msgspec encode", measure(lambda: msgspec.json.encode(run)))]
    rows.append(("msgspec decode", measure(lambda: decoder.decode(data))))
    other = PRun.model_validate_json(data)
    rows.append(("pydantic encode", measure(lambda: other.model_dump_json(exclude_defaults=True))))
    rows.append(("pydantic decode", measure(lambda: PRun.model_validate_json(data))))
    frame = transcript(200_000).root
    rows.append(("msgspec replace", measure(lambda: msgspec.structs.replace(frame, step=1))))
    rows.append(("pydantic model_copy", measure(lambda: other.model_copy(update={"messages": other.messages}))))
    print(f"{len(data):,} bytes, {len(run.messages)} messages")
    for name, ms in rows:
        print(f"{name:20} {ms:8.3f} ms")


if __name__ == "__main__":
    main()

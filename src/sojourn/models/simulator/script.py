"""Scripts: what the simulated model says and what goes wrong, as data.

A script comes from a TOML or JSON file, from `POST /_sim/script`, or is built from these structs in Python;
docs/simulator.md explains it. The rule: a script that loads can be played; every mistake is refused by rule and field.
"""

import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from sojourn.errors import Invalid
from sojourn.loop.messages import Plain
from sojourn.models.simulator.asked import Asked, Dialect, Prompt, expand

Positive = Annotated[int, msgspec.Meta(ge=1)]
Whole = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Header = Annotated[str, msgspec.Meta(pattern=r"^[ -~]*(?![\s\S])")]
Stop = Literal["end", "tool_calls", "length", "content_filter", "refusal", "pause"]
Place = Whole | Literal["nothing", "headers", "half", "all_but_last"]
"""How much goes out first: not even the response's head, its head alone, half, all but the last event, or n events."""


class Pattern(Plain, frozen=True):
    """A regular expression, searched for anywhere in the text."""

    regex: str


class Range(Plain, frozen=True):
    """A count between two bounds, both included."""

    min: Whole = 0
    max: Whole | None = None


Words = str | Pattern
Count = Whole | Range


class When(Plain, frozen=True, kw_only=True):
    """What a request must look like. All that is given must hold; text is found as a substring."""

    dialect: Dialect | None = None
    model: str | None = None
    """A glob, such as `demo-*`."""
    key: str | None = None
    """A glob on the API key, such as `*-revoked`."""
    stream: bool | None = None
    system: Words | None = None
    user: Words | None = None
    """The text of the last user message."""
    tool: str | None = None
    """The tool whose result ends the transcript; the empty string where no result does."""
    result: Words | None = None
    """The text of the last tool result."""
    turn: Count | None = None
    """Assistant messages so far in the transcript."""
    step: Count | None = None
    """Assistant messages since the last user message."""
    attempt: Count | None = None
    """How often this very body was seen: 1 the first time, 2 for a retry."""
    nth: Count | None = None
    """The nth request that all the rest of this matched, from 1."""

    def fits(self, asked: Asked) -> bool:
        """Tell whether all but `nth` holds."""
        return (
            (self.dialect is None or self.dialect == asked.dialect)
            and (self.model is None or fnmatchcase(asked.model, self.model))
            and (self.key is None or fnmatchcase(asked.key, self.key))
            and (self.stream is None or self.stream == asked.stream)
            and (self.tool is None or self.tool == asked.tool)
            and counted(self.turn, asked.turn)
            and counted(self.step, asked.step)
            and counted(self.attempt, asked.attempt)
            and _found(self.system, asked.system)
            and _found(self.user, asked.user)
            and _found(self.result, asked.result)
        )


def counted(wanted: Count | None, number: int) -> bool:
    match wanted:
        case None:
            return True
        case Range():
            return wanted.min <= number and (wanted.max is None or number <= wanted.max)
    return number == wanted


def _found(words: Words | None, text: str) -> bool:
    match words:
        case None:
            return True
        case Pattern():
            return re.search(words.regex, text, re.MULTILINE) is not None
    return words in text


class Pacing(Plain, frozen=True, kw_only=True):
    """How fast a reply comes."""

    first_token_s: Seconds = 0.0
    tokens_per_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """None: as fast as the socket takes it."""
    chunk_tokens: Positive = 1
    """Tokens in one piece of text, reasoning or arguments."""
    jitter: Share = 0.0
    """Each gap differs by up to this share of itself, drawn from the seed."""
    burst: Positive = 1
    """Events in one socket write, where tokens_per_s is not given."""


class Call(Plain, frozen=True):
    """A tool call. `arguments` is a table, whose texts are filled and which becomes JSON, or raw text, as it is."""

    tool: str
    arguments: dict[str, Any] | str = {}
    id: str = ""


class Charge(Plain, frozen=True, kw_only=True):
    """Token counts to tell instead of the counted ones, in kinds that do not overlap."""

    input: Whole | None = None
    cache_read: Whole | None = None
    cache_write: Whole | None = None
    output: Whole | None = None
    reasoning: Whole | None = None


class Reply(Plain, frozen=True, kw_only=True):
    """What the model answers. Every text may hold `{{...}}` slots."""

    reasoning: str = ""
    redacted: str = ""
    """Anthropic: thinking that only the provider can read."""
    text: str = ""
    calls: tuple[Call, ...] = ()
    interleave: bool = False
    """OpenAI: the pieces of parallel calls come in turns."""
    stop: Stop | None = None
    """None: tool_calls where there are calls, otherwise end."""
    usage: Charge = Charge()
    pacing: Pacing | None = None
    """None: the script's."""


class Rule(Reply, frozen=True, kw_only=True):
    """A reply and the requests that it answers. The first rule that fits wins."""

    name: str = ""
    when: When = When()


class FaultBase(Plain, frozen=True, kw_only=True, tag_field="kind"):
    """Something that goes wrong, on top of whatever the rules say. The first fault that strikes is the only one."""

    name: str = ""
    when: When = When()
    times: Positive | None = None
    """Strike so often and never again."""
    probability: Share = 1.0
    """Strike this share of the matching requests, drawn from the seed."""

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)


class Status(FaultBase, frozen=True, tag="status"):
    """An HTTP error in the dialect's own body."""

    status: Annotated[int, msgspec.Meta(ge=400, le=599)]
    message: str | None = None
    code: str | None = None
    """OpenAI's `error.code`; Anthropic's `error.type`."""
    retry_after: float | Header | None = None
    """The Retry-After header: seconds, or any text as it is."""


class TooLong(FaultBase, frozen=True, tag="too_long"):
    """The HTTP 400 of a prompt that does not fit the model's window."""


class Stall(FaultBase, frozen=True, tag="stall"):
    """Silence in the middle; then the reply goes on."""

    after: Place = "half"
    for_s: Seconds = 3_600.0


class Reset(FaultBase, frozen=True, tag="reset"):
    """A TCP reset."""

    after: Place = "half"


class Cut(FaultBase, frozen=True, tag="cut"):
    """A clean end too early; by default only the terminal event is missing."""

    after: Place = "all_but_last"


class Garbage(FaultBase, frozen=True, tag="garbage"):
    """Bytes that are not of the protocol, then the rest of the reply."""

    after: Place = "half"
    text: str | None = None
    """None: an event of random bytes."""


class ErrorEvent(FaultBase, frozen=True, tag="error"):
    """The dialect's error event in the middle of the stream, which it ends; an HTTP 529 where nothing is streamed."""

    after: Place = "half"
    code: str = "overloaded_error"
    message: str = "Overloaded"


class Truncate(FaultBase, frozen=True, tag="truncate"):
    """The reply is cut at half of its last call or text and stops for length."""


class Drip(FaultBase, frozen=True, tag="drip"):
    """The same bytes in tiny writes that respect neither events nor characters."""

    bytes: Positive = 1
    pause_s: Seconds = 0.001


Fault = Status | TooLong | Stall | Reset | Cut | Garbage | ErrorEvent | Truncate | Drip


class Script(Plain, frozen=True, kw_only=True):
    """Everything that a simulator was told."""

    rules: tuple[Rule, ...] = ()
    faults: tuple[Fault, ...] = ()
    pacing: Pacing = Pacing()
    seed: Whole = 0
    """All chance comes from it. Two simulators with different seeds refuse each other's signed thinking."""
    keys: tuple[str, ...] = ()
    """The API keys that are accepted; none means that every key, or none at all, will do."""
    cache_tokens_min: Whole = 1_024
    """Shorter prefixes are not cached. Source: both providers' prompt caching pages, 2025."""
    context_tokens_max: Positive | None = None
    """Longer prompts are refused as the provider would."""
    openai_reasoning: Literal["reasoning_content", "reasoning", "hidden"] = "reasoning_content"
    """The field that carries reasoning on the OpenAI dialect; hidden as api.openai.com does."""


def load(path: Path | str) -> Script:
    """Read a script file, TOML or JSON by its ending. Raises Invalid."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Invalid(f"cannot read the script {path}: {error.strerror}") from None
    return parse(data, toml=path.suffix != ".json", name=path.name)


def parse(data: bytes, *, toml: bool, name: str = "script") -> Script:
    """Read a script. Raises Invalid that names the rule and the field."""
    try:
        raw = tomllib.loads(data.decode()) if toml else msgspec.json.decode(data)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{name} is not {'TOML' if toml else 'JSON'}: {error}") from None
    return _script(raw, name)


def checked(script: Script) -> Script:
    """Return a script that was built in Python if it is right. Raises Invalid as `parse` does."""
    return _script(msgspec.to_builtins(script), "script")


def _script(raw: Any, name: str) -> Script:
    blank = Asked(dialect="openai", model="", prompt=Prompt())
    try:
        script = msgspec.convert(raw, Script)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise _invalid(name, message, path.rstrip("`"), raw) from None
    for path, text in _texts(raw, ""):
        try:
            if path.endswith(".regex"):
                re.compile(text)
            elif ".when" not in path:
                expand(text, blank)
        except (ValueError, re.error) as error:
            raise _invalid(name, str(error), path, raw) from None
    return script


def _texts(value: Any, path: str) -> list[tuple[str, str]]:
    """List every text in a tree of plain data with the path that leads to it."""
    if isinstance(value, str):
        return [(path, value)]
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in _texts(item, f"{path}.{key}")]
    if isinstance(value, list | tuple):
        return [found for index, item in enumerate(value) for found in _texts(item, f"{path}[{index}]")]
    return []


def _invalid(name: str, message: str, path: str, raw: Any) -> Invalid:
    """Say which rule and which field; `path` is like `.rules[2].when.step`."""
    pointer = path.replace("[", ".").replace("]", "").replace(".", "/")
    where = path.lstrip(".") or "the top level"
    if entry := re.match(r"\.(rules|faults)\[(\d+)\]", path):
        kind, index = entry[1], int(entry[2])
        title = raw[kind][index].get("name") if isinstance(raw[kind][index], dict) else None
        field = path[entry.end() :].lstrip(".") or "the whole"
        where = f"{kind[:-1]} {index + 1}" + (f' "{title}"' if title else "") + f", {field}"
    return Invalid(f"{name}: {where}: {message}", pointer=pointer)

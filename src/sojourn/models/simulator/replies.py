"""Decides what a request gets: the reply of the first rule that fits, or of a built-in `sim-*` model, and the fault.

The endpoint asks the `Director` once for each request. The rule: a decision depends on the script, the seed, the
request and the counters of `nth`, `times` and `attempt`, and on nothing else.
"""

import re
from typing import Any

import msgspec

from sojourn.models.simulator.asked import TOKEN_CHARS, Asked, Dice, Rejection, expand, tokens_in
from sojourn.models.simulator.script import Call, Charge, Fault, Pacing, Reply, Script, When, counted

BUILT_IN = ("sim-echo", "sim-tokens-100", "sim-think-50", "sim-steps-3", "sim-calls-2", "sim-slow")
"""Examples of the built-in names, for the list of models."""

_WORDS = re.compile(r"-(echo|tokens|think|steps|calls|rate|slow|error)(?:-(\d{1,6}))?")
_FILLER = "the quick brown fox jumps over the lazy dog "


class SaidCall(msgspec.Struct, frozen=True):
    """A tool call as it goes out."""

    id: str
    name: str
    arguments: str

    @property
    def tokens(self) -> int:
        return tokens_in(self.name) + tokens_in(self.arguments)


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A reply as it goes out: slots filled, length limits applied."""

    id: str
    reasoning: str
    redacted: str
    text: str
    calls: tuple[SaidCall, ...]
    interleave: bool
    stop: str
    usage: Charge
    pacing: Pacing

    @property
    def tokens(self) -> int:
        thought = tokens_in(self.reasoning) + tokens_in(self.redacted)
        return thought + tokens_in(self.text) + sum(call.tokens for call in self.calls)


class Director:
    """Holds a script and its counters."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self._fitted = [0] * len(script.rules)
        self._struck = [0] * len(script.faults)
        self._offered = [0] * len(script.faults)

    def reply(self, asked: Asked) -> tuple[Reply, str]:
        """Choose the reply and name its rule. Raises Rejection when there is none."""
        for index, rule in enumerate(self.script.rules):
            if rule.when.fits(asked):
                self._fitted[index] += 1
                if counted(rule.when.nth, self._fitted[index]):
                    return rule, rule.name or f"rule {index + 1}"
        if asked.model.startswith("sim-"):
            return built_in(asked), asked.model
        if any(When(model=rule.when.model).fits(asked) for rule in self.script.rules):
            state = f"model {asked.model}, turn {asked.turn}, step {asked.step}, last tool {asked.tool or 'none'}"
            raise Rejection(400, f"No rule of the simulator's script fits this request ({state}).")
        raise Rejection(404)

    def fault(self, asked: Asked, dice: Dice) -> Fault | None:
        """Choose what goes wrong, if anything does."""
        for index, fault in enumerate(self.script.faults):
            if not fault.when.fits(asked):
                continue
            self._offered[index] += 1
            if (
                counted(fault.when.nth, self._offered[index])
                and (fault.times is None or self._struck[index] < fault.times)
                and dice.fraction(f"fault {index}") < fault.probability
            ):
                self._struck[index] += 1
                return fault
        return None


def resolve(reply: Reply, asked: Asked, dice: Dice, *, pacing: Pacing, truncate: bool) -> Said:
    """Fill the slots of `reply` and cut it to the length that the request allows."""
    start, length = ("call_", 24) if asked.dialect == "openai" else ("toolu_01", 22)
    calls = tuple(
        SaidCall(
            expand(call.id, asked) or start + dice.word(f"call {index}", length),
            expand(call.tool, asked),
            _arguments(call, asked),
        )
        for index, call in enumerate(reply.calls)
    )
    start, length = ("chatcmpl-", 29) if asked.dialect == "openai" else ("msg_01", 22)
    said = Said(
        id=start + dice.word("reply", length),
        reasoning=expand(reply.reasoning, asked),
        redacted=expand(reply.redacted, asked) if asked.dialect == "anthropic" else "",
        text=expand(reply.text, asked),
        calls=calls,
        interleave=reply.interleave,
        stop=reply.stop or ("tool_calls" if calls else "end"),
        usage=reply.usage,
        pacing=reply.pacing or pacing,
    )
    limit = asked.output_tokens_max
    if truncate:
        last = tokens_in(said.calls[-1].arguments) if said.calls else tokens_in(said.text)
        limit = min(said.tokens - (last + 1) // 2, limit or said.tokens)
    return said if limit is None or said.tokens <= limit else _shorten(said, limit)


def _arguments(call: Call, asked: Asked) -> str:
    if isinstance(call.arguments, str):
        return expand(call.arguments, asked)
    return msgspec.json.encode(_filled(call.arguments, asked)).decode()


def _filled(value: Any, asked: Asked) -> Any:
    match value:
        case str():
            return expand(value, asked)
        case dict():
            return {key: _filled(item, asked) for key, item in value.items()}
        case list():
            return [_filled(item, asked) for item in value]
    return value


def _shorten(said: Said, limit: int) -> Said:
    """Cut a reply at `limit` tokens, in the middle of a call's arguments where they are what is cut."""
    parts, calls = [], []
    for text in (said.reasoning, said.redacted, said.text):
        parts.append(text[: limit * TOKEN_CHARS])
        limit -= tokens_in(parts[-1])
    for call in said.calls:
        limit -= tokens_in(call.name)
        if limit < 0:
            break
        calls.append(SaidCall(call.id, call.name, call.arguments[: limit * TOKEN_CHARS]))
        limit -= tokens_in(calls[-1].arguments)
    reasoning, redacted, text = parts
    return msgspec.structs.replace(
        said, redacted=redacted, reasoning=reasoning, text=text, calls=tuple(calls), stop="length"
    )


def built_in(asked: Asked) -> Reply:
    """Answer as a `sim-*` model: the words of its name, each with an optional number, put together.

    Raises Rejection for a name that means nothing, and for `sim-error-<status>`.
    """
    words = dict(_WORDS.findall(asked.model.removeprefix("sim")))
    if "sim" + "".join(f"-{word}-{n}" if n else f"-{word}" for word, n in words.items()) != asked.model or not words:
        raise Rejection(404)
    number = {word: int(n or 1) for word, n in words.items()}
    if "error" in words:
        raise Rejection(number["error"] if 400 <= number["error"] <= 599 else 404)
    calls: tuple[Call, ...] = ()
    text = _prose(number.get("tokens", 0))
    steps = number.get("steps", int("calls" in words))
    if asked.step < steps and asked.tools:
        tool = asked.tools[0]
        names = [f"echo {asked.step + 1}.{index + 1}" for index in range(number.get("calls", 1))]
        calls = tuple(Call(_verbatim(tool.name), _example_json(tool.schema, name)) for name in names)
    elif asked.json_schema:
        text = _example_json(asked.json_schema, "sim", branch=0 if asked.turn < steps else -1)
    elif not text:
        text = f"Done after {asked.step} steps." if steps else "{{last_user}}"
    return Reply(text=text, reasoning=_prose(number.get("think", 0)), calls=calls, pacing=_pace(number))


def _pace(number: dict[str, int]) -> Pacing | None:
    if "slow" in number:
        return Pacing(first_token_s=1.0, tokens_per_s=number.get("rate", 10))
    return Pacing(tokens_per_s=number["rate"]) if number.get("rate") else None


def _prose(tokens: int) -> str:
    chars = tokens * TOKEN_CHARS
    return (_FILLER * (chars // len(_FILLER) + 1))[:chars]


def _verbatim(text: str) -> str:
    """Write text so that filling its slots gives it back."""
    return text.replace("{{", "{{{{")


def _example_json(schema: bytes, word: str, *, branch: int = 0) -> str:
    """Write an example as JSON, of the given branch where the schema has several."""
    wanted = msgspec.json.decode(schema)
    if isinstance(wanted, dict) and wanted.get("anyOf"):
        wanted = wanted["anyOf"][branch]
    return _verbatim(msgspec.json.encode(example(wanted, word)).decode())


def example(schema: Any, word: str) -> Any:
    """Make a value that a JSON Schema allows, with `word` where any text will do. Knows the common keywords only."""
    if not isinstance(schema, dict):
        return word
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    for choices in ("enum", "examples"):
        if schema.get(choices):
            return schema[choices][0]
    for branches in ("anyOf", "oneOf", "allOf"):
        if schema.get(branches):
            return example(schema[branches][0], word)
    kinds = schema.get("type", "object" if "properties" in schema else "string")
    match kinds if isinstance(kinds, str) else kinds[0]:
        case "object":
            properties = schema.get("properties", {})
            return {name: example(properties.get(name, {}), word) for name in schema.get("required", properties)}
        case "array":
            return [example(schema.get("items", {}), word)] * schema.get("minItems", 1)
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
    return word.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]

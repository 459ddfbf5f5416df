"""Scripts: which rule answers, what slots give, the built-in models, determinism, and mistakes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from simulator_client import DIALECTS, TOOLS, exchange, saying, simulated, user

from sojourn.errors import Invalid
from sojourn.models.simulator import Call, Pacing, Pattern, Range, Rule, Script, Status, When, load, parse

BOTH = pytest.mark.parametrize("dialect", DIALECTS)


def with_system(dialect: str, text: str) -> dict[str, Any]:
    """Put a system prompt where the dialect has it."""
    if dialect == "openai":
        return {"said": [{"role": "system", "content": text}, user("hi")]}
    return {"said": "hi", "system": text}


@BOTH
async def test_a_rule_answers_when_all_its_conditions_hold(dialect):
    talk = [
        user("first"),
        *exchange(dialect, ("look", "found 7")),
        {"role": "assistant", "content": "so"},
        user("last"),
    ]
    called = {"said": [*talk, *exchange(dialect, ("look", "a"), ("shell", "b\nexit 3"))]}
    talked, brief = {"said": talk}, with_system(dialect, "Be brief.")
    other = DIALECTS[dialect == "openai"]
    cases: list[tuple[When, When, dict[str, Any]]] = [  # what fits, what does not, the request
        (When(), When(dialect=other), {}),
        (When(dialect=dialect), When(dialect=dialect, model="x"), {}),
        (When(model="d*o"), When(model="d*e"), {"model": "demo"}),
        (When(key="sk-?"), When(key="sk"), {}),
        (When(stream=False), When(stream=True), {"stream": False}),
        (When(system="brief"), When(system="long"), brief),
        (When(system=Pattern(regex=r"^Be \w+\.$")), When(system=Pattern(regex="^brief")), brief),
        (When(user="las"), When(user="first"), talked),
        (When(tool="shell"), When(tool="look"), called),
        (When(tool=""), When(tool="look"), talked),
        (When(result=Pattern(regex=r"^exit \d")), When(result="found"), called),
        (When(turn=2, step=0), When(turn=2, step=2), talked),
        (When(turn=3, step=1), When(turn=1), called),
        (When(turn=Range(min=3, max=3), step=Range(max=1)), When(turn=Range(min=4)), called),
        (When(attempt=1, nth=1), When(nth=2), {}),
    ]
    for fits, not_so, asked in cases:
        rules = (Rule(when=not_so, text="no"), Rule(when=fits, text="yes", name="it"), Rule(text="neither"))
        async with simulated(Script(rules=rules)) as client:
            assert (await client.ask(dialect, **asked)).text == "yes", (fits, not_so)
            assert client.sim.requests()[0].rule == "it"


async def test_attempt_counts_a_body_and_nth_counts_a_rule():
    rules = (
        Rule(when=When(attempt=2), text="again"),
        Rule(when=When(user="a", nth=2), text="second a"),
        Rule(text="-"),
    )
    async with simulated(Script(rules=rules)) as client:
        texts = [(await client.ask("openai", text)).text for text in ("a", "b", "b", "ab", "b")]
        assert texts == ["-", "-", "again", "second a", "-"]
        client.sim.reset()
        assert (await client.ask("openai", "b")).text == "-" and len(client.sim.requests()) == 1


@BOTH
async def test_slots_are_filled_from_the_request(dialect):
    talk = [user("go"), *exchange(dialect, ("look", 'a "b" 12 cm {{turn}}'), ("shell", "ok"))]
    slots = {
        "{{last_user}}, {{model}}": "go, m",
        "{{last_tool_result}}|{{tool_result:look}}|{{tool_result:none}}": 'ok|a "b" 12 cm {{turn}}|',
        "{{turn}}{{step}}": "11",
        "{{find:tool_result:look~(\\d+) cm}} {{find:last_user~o}} {{find:last_user~x}}.": "12 o .",
        '{"q": {{json:tool_result:look}}}': '{"q": "a \\"b\\" 12 cm {{turn}}"}',
        "{{{{turn}} { {turn} }": "{{turn}} { {turn} }",
    }
    for slot, text in slots.items():
        async with simulated(saying(slot)) as client:
            assert (await client.ask(dialect, talk)).text == text


async def test_a_table_of_arguments_stays_json_whatever_fills_it():
    call = Call("{{last_user}}", {"a": ["{{last_tool_result}}", 3], "b": {"c": "{{step}}"}}, id="my-{{turn}}")
    async with simulated(saying(calls=(call,))) as client:
        answer = await client.ask("openai", [user("shell"), *exchange("openai", ("x", 'q"\\\n'))], stream=False)
    [said] = answer.json["choices"][0]["message"]["tool_calls"]
    assert (said["id"], said["function"]["name"]) == ("my-1", "shell")
    assert json.loads(said["function"]["arguments"]) == {"a": ['q"\\\n', 3], "b": {"c": "1"}}


async def test_a_request_that_no_rule_fits_is_told_why_and_an_unknown_model_is_not_found():
    for dialect in DIALECTS:
        async with simulated(Script(rules=(Rule(when=When(model="m", step=5), text="x"),))) as client:
            unfit = await client.ask(dialect)
            unknown = await client.ask(dialect, model="other")
        assert unfit.status == 400 and "(model m, turn 0, step 0, last tool none)" in unfit.json["error"]["message"]
        assert unknown.status == 404


@BOTH
async def test_built_in_models_do_what_their_names_say(dialect):
    async with simulated() as client:

        async def ask(model: str, said: Any = "hello {{turn}}", **fields: Any) -> Any:
            return await client.ask(dialect, said, model=model, **fields)

        assert (await ask("sim-echo")).text == "hello {{turn}}"
        tokens = await ask("sim-tokens-40")
        assert tokens.usage.output == 40 and len(tokens.text) == 160
        assert (await ask("sim-think-7-tokens-3")).usage.output == 10
        assert (await ask("sim-error-503")).status == 503
        for wrong in ("sim-", "sim-what", "sim-tokens-9999999", "sim-echo-", "simecho", "sim-error-200"):
            assert (await ask(wrong)).status == 404


@BOTH
async def test_steps_call_the_first_tool_until_they_are_done(dialect):
    async with simulated() as client:
        talk, calls = [user("go")], []
        for _ in range(3):
            answer = await client.ask(dialect, talk, model="sim-steps-2-calls-2", tools=TOOLS[dialect], stream=False)
            if dialect == "openai":
                message = answer.json["choices"][0]["message"]
                made = [(call["id"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
                talk += [message, *({"role": "tool", "tool_call_id": i, "content": "ok"} for i, _ in made)]
            else:
                made = [(b["id"], json.dumps(b["input"])) for b in answer.json["content"] if b["type"] == "tool_use"]
                results = [{"type": "tool_result", "tool_use_id": i, "content": "ok"} for i, _ in made]
                talk += [{"role": "assistant", "content": answer.json["content"]}, {"role": "user", "content": results}]
            calls.append([json.loads(arguments) for _, arguments in made])
    said = [[{"command": f"echo {step}.{index}"} for index in (1, 2)] for step in (1, 2)]
    assert calls == [*said, []] and answer.text == "Done after 2 steps."


async def test_built_in_models_make_arguments_that_the_schema_allows():
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["{{turn}}", "b"]},
            "count": {"type": "integer", "minimum": 3},
            "many": {"type": "array", "items": {"type": ["string", "null"]}, "minItems": 2},
            "deep": {"anyOf": [{"type": "object", "properties": {"on": {"type": "boolean"}}}, {"type": "null"}]},
            "fixed": {"default": {"a": ["{{x}}"]}},
            "short": {"type": "string", "maxLength": 3},
            "optional": {"type": "string"},
        },
        "required": ["kind", "count", "many", "deep", "fixed", "short"],
    }
    tools = [{"type": "function", "function": {"name": "t", "parameters": schema}}]
    async with simulated() as client:
        answer = await client.ask("openai", model="sim-steps-1", tools=tools, stream=False)
        forced = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        text = (await client.ask("openai", model="sim-echo", response_format=forced)).text
    made = json.loads(answer.json["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
    expected = {
        "kind": "{{turn}}",
        "count": 3,
        "many": ["echo 1.1"] * 2,
        "deep": {"on": True},
        "fixed": {"a": ["{{x}}"]},
    }
    assert made == expected | {"short": "ech"} and json.loads(text) == expected | {"many": ["sim"] * 2, "short": "sim"}


@BOTH
async def test_the_same_seed_gives_the_same_bytes_in_any_order_and_another_seed_does_not(dialect):
    script = saying("Hi {{last_user}}", reasoning="Hm", calls=(Call("shell", {}),))

    async def play(seed: int, texts: list[str]) -> dict[str, Any]:
        async with simulated(script, seed=seed) as client:
            answers = await asyncio.gather(*(client.ask(dialect, text) for text in texts))
        return {text: (answer.headers, answer.body) for text, answer in zip(texts, answers, strict=True)}

    texts = [f"t{index}" for index in range(8)]
    assert await play(1, texts) == await play(1, texts[::-1])
    assert (await play(1, texts))["t0"] != (await play(2, texts))["t0"]
    async with simulated(script) as client:
        once, again = await client.ask(dialect), await client.ask(dialect)
    assert once.body != again.body and once.text == again.text


async def test_the_pace_holds_whatever_the_jitter():
    loop = asyncio.get_running_loop()
    for stream in (True, False):
        async with simulated(
            saying("word" * 60, pacing=Pacing(first_token_s=0.1, tokens_per_s=200, jitter=0.5))
        ) as client:
            started = loop.time()
            answer = await client.ask("openai", stream=stream)
        assert answer.text == "word" * 60 and loop.time() - started >= 0.1 + 60 / 200 * 0.5


async def test_a_rule_s_pacing_wins_over_the_script_s():
    rule = Rule(text="word" * 100, pacing=Pacing(burst=1_000))
    async with simulated(Script(rules=(rule,), pacing=Pacing(first_token_s=3_600))) as client, asyncio.timeout(30):
        assert (await client.ask("anthropic")).ended


MISTAKES = [
    ("rules = 3", "script: rules: Expected `array`", "/rules"),
    ("rule = []", "the top level: Object contains unknown field `rule`", ""),
    (
        '[[rules]]\nname = "a"\n[[rules]]\nname = "b"\nwhen.step = "x"',
        'rule 2 "b", when.step: Expected',
        "/rules/1/when/step",
    ),
    ("[[rules]]\nwen = 1", "rule 1, the whole: Object contains unknown field `wen`", "/rules/0"),
    (
        "[[rules]]\ncalls = [{arguments = {}}]",
        "rule 1, calls[0]: Object missing required field `tool`",
        "/rules/0/calls/0",
    ),
    (
        '[[rules]]\nwhen.user = { regex = "(" }',
        "rule 1, when.user.regex: missing ), unterminated",
        "/rules/0/when/user/regex",
    ),
    ('[[rules]]\ntext = "{{lats_user}}"', "rule 1, text: there is no slot {{lats_user}}", "/rules/0/text"),
    ('[[rules]]\ntext = "{{find:last_user~(}}"', "rule 1, text: missing )", "/rules/0/text"),
    (
        '[[rules]]\ncalls = [{ tool = "t", arguments = { a = ["{{x}}"] } }]',
        "rule 1, calls[0].arguments.a[0]: there is no slot {{x}}",
        "/rules/0/calls/0/arguments/a/0",
    ),
    ('[[faults]]\nname = "f"\nkind = "explode"', 'fault 1 "f", kind: Invalid value', "/faults/0/kind"),
    ('[[faults]]\nkind = "status"', "fault 1, the whole: Object missing required field `status`", "/faults/0"),
    (
        '[[faults]]\nkind = "reset"\nprobability = 2',
        "fault 1, probability: Expected `float` <= 1",
        "/faults/0/probability",
    ),
    ('[[faults]]\nkind = "cut"\nafter = "often"', "fault 1, after: Invalid enum value 'often'", "/faults/0/after"),
    ("pacing.tokens_per_s = 0", "pacing.tokens_per_s: Expected `float` > 0", "/pacing/tokens_per_s"),
]


@pytest.mark.parametrize(("toml", "words", "pointer"), MISTAKES)
def test_a_mistake_is_refused_by_rule_and_field(toml, words, pointer):
    with pytest.raises(Invalid) as error:
        parse(toml.encode(), toml=True)
    assert words in str(error.value) and error.value.pointer == pointer


def test_a_file_that_cannot_be_read_or_is_no_script_says_so(tmp_path: Path):
    with pytest.raises(Invalid, match=r"cannot read the script .*none.toml: No such file"):
        load(tmp_path / "none.toml")
    for name, data, words in (
        ("a.toml", b"rules = [", "a.toml is not TOML"),
        ("a.json", b"{", "a.json is not JSON"),
        ("b.toml", b"\xff", "b.toml is not TOML"),
        ("c.json", b"[]", "c.json: the top level: Expected `object`"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Invalid, match=words):
            load(tmp_path / name)


def test_a_script_is_the_same_as_toml_json_or_python(tmp_path: Path):
    script = Script(
        rules=(Rule(when=When(step=Range(min=1)), calls=(Call("t", {"a": 1}),)),), faults=(Status(status=429),)
    )
    (tmp_path / "s.toml").write_text(
        '[[rules]]\nwhen.step.min = 1\ncalls = [{tool = "t", arguments.a = 1}]\n[[faults]]\n'
        'kind = "status"\nstatus = 429'
    )
    (tmp_path / "s.json").write_text(
        '{"rules": [{"when": {"step": {"min": 1}}, "calls": [{"tool": "t", "arguments": {"a": 1}}]}],'
        ' "faults": [{"kind": "status", "status": 429}]}'
    )
    assert load(tmp_path / "s.toml") == load(tmp_path / "s.json") == script


async def test_a_script_built_in_python_is_checked_too():
    for script, words in (
        (saying("{{nothing}}"), "rule 1, text: there is no slot"),
        (saying("x", faults=(Status(status=200),)), "fault 1, status"),
        (saying("x", faults=(Status(status=429, retry_after="a\nb"),)), "fault 1, retry_after"),
    ):
        with pytest.raises(Invalid, match=words):
            async with simulated(script):
                pass

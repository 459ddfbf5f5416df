"""Tools for servers that know none."""

from typing import Any

import msgspec
import pytest
from raw_server import RawServer, whole
from speaking import ANTHROPIC, OPENAI, REQUEST, SHELL, ask, chunk_of, event, speaking

from sojourn.errors import Invalid
from sojourn.loop.messages import Image, Message, Reasoning, Text, ToolCall, observed, said
from sojourn.models.json_schema import JSON_SCHEMA, reply_schema
from sojourn.models.model import ArgumentsDelta, ReasoningDelta, Request, TextDelta, ToolDefinition


def streamed(text: str, finish: str = "stop") -> bytes:
    words = [chunk_of({"content": text[at : at + 5]}) for at in range(0, len(text), 5)]
    return b"".join([*words, chunk_of({}, finish), event("[DONE]")])


async def asked(raw: RawServer, text: str, finish: str = "stop", request: Request = REQUEST) -> tuple[Any, Message]:
    """Let the server say this, and return the request that it saw and the message."""
    raw.scripts = [whole(streamed(text, finish))]
    async with speaking(OPENAI, raw.url, tool_mode="json_schema") as models:
        deltas, message = await ask(models, request)
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == message.text
    return msgspec.json.decode(raw.seen[-1].body), message


async def test_a_forced_call_becomes_a_tool_call(raw: RawServer) -> None:
    body, message = await asked(raw, '{"tool": "shell", "arguments": {"command":  "ls"}}')
    assert message.parts == (ToolCall(id="r1-0", name="shell", arguments='{"command":  "ls"}'),)
    assert message.stop == "tool_calls"
    assert "tools" not in body
    assert body["response_format"]["json_schema"]["schema"] == reply_schema((SHELL,))
    assert body["messages"][0]["content"].startswith(
        "Be brief.\n\nTools:\n"
        '{"tool": "shell", "arguments": {"command": string, "timeout_s"?: number}} Run a command.\n\nReply with'
    )


async def test_a_forced_answer_becomes_words(raw: RawServer) -> None:
    _, message = await asked(raw, '{"answer": "Two files."}')
    assert (message.parts, message.stop) == ((Text("Two files."),), "end")


async def test_the_answer_is_told_as_a_delta_when_it_is_whole(raw: RawServer) -> None:
    raw.scripts = [
        whole(chunk_of({"reasoning": "Hm."}) + streamed('{"answer": "Two."}')),
        whole(streamed('{"tool": "shell"}')),
    ]
    async with speaking(OPENAI, raw.url, tool_mode="json_schema") as models:
        deltas, message = await ask(models)
        assert deltas == [ReasoningDelta("Hm."), TextDelta("Two.")]
        assert message.parts == (Reasoning(text="Hm.", signature="reasoning"), Text("Two."))
        assert (await ask(models))[0] == [ArgumentsDelta(0, "shell", "{}")]


@pytest.mark.parametrize("text", ["It is done.", '{"other": 1}', "[1]", '{"answer": 7}', '{"tool": "shell", "argu'])
async def test_what_was_not_forced_stays_words(raw: RawServer, text: str) -> None:
    assert (await asked(raw, text))[1].parts == (Text(text),)


async def test_a_reply_that_is_cut_off_stops_for_length(raw: RawServer) -> None:
    assert (await asked(raw, '{"tool": "shell", "argu', "length"))[1].stop == "length"


async def test_json_in_a_fence_is_found(raw: RawServer) -> None:
    assert (await asked(raw, '```json\n{"answer": "Yes."}\n```\n'))[1].text == "Yes."


async def test_the_history_is_told_in_words_and_takes_turns(raw: RawServer) -> None:
    call = ToolCall(id="x", name="shell", arguments='{"command": "ls"}')
    messages = (
        said("u1", "What is here?"),
        Message(id="a1", role="assistant", parts=(call,)),
        observed("t1", call.id, "a.txt"),
        said("u2", "And then?"),
        Message(id="a2", role="assistant", parts=(Text("One file."),)),
        said("u3", "Thanks.", Image(blob="sha256:1", media_type="image/png")),
    )
    request = msgspec.structs.replace(REQUEST, messages=messages, blobs={"sha256:1": b"PNG"})
    body, _ = await asked(raw, '{"answer": "x"}', request=request)
    told = [(message["role"], message["content"]) for message in body["messages"][1:]]
    assert told[:4] == [
        ("user", "What is here?"),
        ("assistant", 'I use shell with {"command": "ls"}.'),
        ("user", "Result of shell:\na.txt\n\nAnd then?"),
        ("assistant", "One file."),
    ]
    assert [part["type"] for part in told[4][1]] == ["text", "image_url"]


async def test_a_request_may_want_it_where_the_endpoint_does_not(raw: RawServer) -> None:
    raw.scripts = [whole(streamed('{"answer": "x"}'))]
    async with speaking(OPENAI, raw.url) as models:
        assert (await ask(models, msgspec.structs.replace(REQUEST, tool_mode="json_schema")))[1].text == "x"


async def test_without_tools_nothing_is_forced(raw: RawServer) -> None:
    body, message = await asked(raw, "Hello.", request=msgspec.structs.replace(REQUEST, tools=()))
    assert "response_format" not in body
    assert message.text == "Hello."


async def test_anthropic_endpoints_have_tools_and_refuse_the_mode_as_a_setting(raw: RawServer) -> None:
    with pytest.raises(Invalid, match="json_schema"):
        async with speaking(ANTHROPIC, raw.url, tool_mode="json_schema"):
            pass
    raw.scripts = [whole(ANTHROPIC.stream)]
    async with speaking(ANTHROPIC, raw.url) as models:
        _, message = await ask(models, msgspec.structs.replace(REQUEST, tool_mode="json_schema"))
    assert message.calls and "tools" in msgspec.json.decode(raw.seen[0].body)


def test_the_schema_keeps_only_what_a_grammar_can_force() -> None:
    schema = {
        "type": "object",
        "$defs": {"x": {"type": "string"}},
        "title": "T",
        "properties": {
            "a": {"$ref": "#/$defs/x"},
            "b": {"type": "array", "items": {"type": "integer", "minimum": 1}, "description": "long"},
            "c": {"oneOf": [{"type": "string", "format": "uri"}, {"type": "null"}]},
            "d": True,
        },
        "required": ["a"],
    }
    tool = ToolDefinition(name="t", description="D", schema=msgspec.json.encode(schema).decode())
    call, answer = reply_schema((tool,))["anyOf"]
    assert call["properties"] == {
        "tool": {"const": "t"},
        "arguments": {
            "type": "object",
            "required": ["a"],
            "properties": {
                "a": {},
                "b": {"type": "array", "items": {"type": "integer"}},
                "c": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "d": {},
            },
        },
    }
    assert answer["required"] == ["answer"]
    assert JSON_SCHEMA.name == "openai"

"""What a Messages API stream may hold."""

from typing import Any

import msgspec
import pytest
from speaking import IMPOSSIBLE, REQUEST, begun, block, ended, typed

from sojourn.loop.messages import Message, Native, Reasoning, Text, ToolCall, Usage
from sojourn.models.anthropic.reply import MessagesReply
from sojourn.models.model import ArgumentsDelta, Delta, ModelFailed
from sojourn.models.wire.sse import EventParser


def read(*events: bytes) -> tuple[list[Delta], Message]:
    reply = MessagesReply(REQUEST, "p", message_id="r1")
    deltas = [delta for each in EventParser().feed(b"".join(events)) for delta in reply.feed(each.data)]
    return deltas, reply.message()


def text(index: int, *pieces: str) -> bytes:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": piece} for piece in pieces))


def tool(index: int, id: str, *pieces: str) -> bytes:
    deltas = ({"type": "input_json_delta", "partial_json": piece} for piece in pieces)
    return block(index, {"type": "tool_use", "id": id, "name": "shell", "input": {}}, *deltas)


def test_a_signature_is_kept_byte_for_byte() -> None:
    signature = 'EqQBCgIYAhIM/+a=\u00e9\\"\n ' * 50
    pieces = [signature[at : at + 100] for at in range(0, len(signature), 100)]
    thinking = block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm."},
        *({"type": "signature_delta", "signature": piece} for piece in pieces),
    )
    redacted = block(1, {"type": "redacted_thinking", "data": "Zm9v+/=="})
    assert read(begun(), thinking, redacted, ended())[1].parts == (
        Reasoning(text="Hm.", signature=signature),
        Reasoning(redacted="Zm9v+/=="),
    )


def test_thoughts_without_a_signature_have_none_when_they_were_cut_off() -> None:
    thinking = block(0, {"type": "thinking", "thinking": "Hm", "signature": ""})
    assert read(begun(), thinking, ended("max_tokens"))[1].parts == (Reasoning(text="Hm"),)
    assert read(begun(), thinking, ended())[1].parts == (Reasoning(text="Hm", signature=""),)


@pytest.mark.parametrize("pieces", [(), ("",), ("", "")])
def test_an_empty_input_is_an_empty_object(pieces: tuple[str, ...]) -> None:
    assert read(begun(), tool(0, "a", *pieces), ended("tool_use"))[1].calls[0].arguments == "{}"


def test_an_input_that_comes_whole_is_read() -> None:
    start = {"type": "tool_use", "id": "a", "name": "shell", "input": {"command": "ls"}}
    assert msgspec.json.decode(read(begun(), block(0, start), ended())[1].calls[0].arguments) == {"command": "ls"}


def test_arguments_stay_raw_when_the_reply_stops_for_length() -> None:
    message = read(begun(), text(0, "x"), tool(1, "a", '{"comm'), ended("max_tokens"))[1]
    assert message.stop == "length"
    assert message.parts == (Text("x"), ToolCall(id="a", name="shell", arguments='{"comm'))


def test_deltas_count_calls_and_not_blocks() -> None:
    deltas, message = read(begun(), text(0, "x"), tool(1, "a", "{}"), tool(2, "b", "{", "}"), ended("tool_use"))
    assert [each for each in deltas if isinstance(each, ArgumentsDelta)] == [
        ArgumentsDelta(0, "shell", "{}"),
        ArgumentsDelta(1, "shell", "{"),
        ArgumentsDelta(1, "shell", "}"),
    ]
    assert [call.id for call in message.calls] == ["a", "b"]


def test_unknown_blocks_are_kept_and_their_streamed_input_is_put_in() -> None:
    result = (
        '{"type": "web_search_tool_result",  "tool_use_id": "s", "content": [{"encrypted": "\\u00e9+/="}], "n": 1.50}'
    )
    whole = typed("content_block_start", index=1).replace(
        b'"index": 1', b'"index": 1, "content_block": ' + result.encode()
    )
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    pieces = ({"type": "input_json_delta", "partial_json": piece} for piece in ('{"query":', ' "x"}'))
    message = read(begun(), block(0, search, *pieces), whole, ended())[1]
    first, second = message.parts
    assert isinstance(first, Native) and '"input":{"query": "x"}' in first.data
    assert second == Native(dialect="anthropic", data=result)
    assert message.calls == ()


def test_empty_text_is_left_out_and_blocks_stand_in_order() -> None:
    assert read(begun(), text(2, "b"), text(0), text(1, "a"), ended())[1].parts == (Text("a"), Text("b"))


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        ("end_turn", "end"),
        ("stop_sequence", "end"),
        ("tool_use", "tool_calls"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
        ("pause_turn", "other"),
        ("something new", "other"),
    ],
)
def test_a_stop_reason_becomes_a_stop(reason: str, stop: str) -> None:
    assert read(begun(), text(0, "x"), ended(reason))[1].stop == stop


def test_usage_is_the_last_that_was_told() -> None:
    start = begun(input_tokens=5, cache_read_input_tokens=100, cache_creation_input_tokens=7, output_tokens=1)
    assert read(start, text(0, "x"), ended(output_tokens=42))[1].usage == Usage(
        input=5, cache_read=100, cache_write=7, output=42
    )
    assert read(start, ended(input_tokens=6, output_tokens=42))[1].usage == Usage(
        input=6, cache_read=100, cache_write=7, output=42
    )
    assert read(begun(), ended())[1].usage is None


@pytest.mark.parametrize("number", IMPOSSIBLE, ids=str)
def test_a_usage_that_cannot_be_true_is_no_usage_and_spoils_no_reply(number: Any) -> None:
    for start, end in (
        ({"input_tokens": number}, {"output_tokens": 2}),
        ({"input_tokens": 2}, {"output_tokens": number}),
    ):
        message = read(begun(**start), text(0, "x"), ended(**end))[1]
        assert (message.text, message.usage) == ("x", None)


def test_a_negative_count_is_none_at_all() -> None:
    assert read(begun(input_tokens=-5), ended(output_tokens=2.0))[1].usage == Usage(output=2)


def test_events_that_are_not_invented_yet_are_read_over() -> None:
    new = typed("brand_new", anything=[1]) + typed("content_block_delta", index=0, delta={"type": "new_delta", "x": 1})
    assert read(begun(), typed("ping"), text(0, "x"), new, ended())[1].text == "x"


@pytest.mark.parametrize(
    "events",
    [
        (ended(),),
        (begun(), typed("content_block_delta", index=3, delta={"type": "text_delta", "text": "x"})),
        (begun(), block(0, {"type": "tool_use", "id": "a"}), ended()),
        (begun(), typed("content_block_start", index=0)),
        (begun(), typed("content_block_start", index=0, content_block=7)),
    ],
)
def test_what_the_dialect_does_not_allow_is_a_failure(events: tuple[bytes, ...]) -> None:
    with pytest.raises(ModelFailed) as caught:
        read(*events)
    assert caught.value.kind == "protocol"


def test_a_stop_reason_without_message_stop_is_not_a_reply() -> None:
    with pytest.raises(ModelFailed) as caught:
        read(begun(), text(0, "x"), ended().removesuffix(typed("message_stop")))
    assert caught.value.kind == "interrupted"

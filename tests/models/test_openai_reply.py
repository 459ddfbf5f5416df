"""What OpenAI-compatible servers stream, with the liberties that they take."""

from typing import Any

import msgspec
import pytest
from speaking import IMPOSSIBLE, OPENAI, REQUEST, chunk_of, event, piece

from sojourn.loop.messages import Message, Native, Reasoning, Text, ToolCall, Usage
from sojourn.models.model import ArgumentsDelta, Delta, ModelFailed, ReasoningDelta, TextDelta
from sojourn.models.openai.reply import ChatReply
from sojourn.models.wire.sse import EventParser

DONE = event("[DONE]")


def read(*events: bytes) -> tuple[list[Delta], Message]:
    reply = ChatReply(REQUEST, "p", message_id="r1")
    deltas = [delta for each in EventParser().feed(b"".join(events)) for delta in reply.feed(each.data)]
    return deltas, reply.message()


def calls_of(*pieces: dict[str, Any], finish: str = "tool_calls") -> list[tuple[str, str, str]]:
    message = read(*map(chunk_of, pieces), chunk_of({}, finish), DONE)[1]
    return [(call.id, call.name, call.arguments) for call in message.calls]


def test_interleaved_calls_are_kept_apart_by_index() -> None:
    assert calls_of(
        piece(0, id="a", name="one", arguments=""),
        piece(1, id="b", name="two", arguments='{"x"'),
        piece(0, arguments='{"y":'),
        piece(1, arguments=":1}"),
        piece(0, arguments="2}"),
    ) == [("a", "one", '{"y":2}'), ("b", "two", '{"x":1}')]


def test_several_pieces_may_come_in_one_chunk() -> None:
    both = {
        "tool_calls": piece(0, id="a", name="one", arguments="{}")["tool_calls"]
        + piece(1, id="b", name="two")["tool_calls"]
    }
    assert calls_of(both) == [("a", "one", "{}"), ("b", "two", "")]


def test_an_id_and_a_name_may_be_repeated_in_every_piece() -> None:
    pieces = (piece(0, id="a", name="one", arguments=text) for text in ('{"x"', ":1}"))
    assert calls_of(*pieces) == [("a", "one", '{"x":1}')]


def test_calls_that_share_an_index_are_told_apart_by_their_ids() -> None:
    whole_calls = (piece(0, id=id, name="one", arguments=f'{{"x":"{id}"}}') for id in "ab")
    assert calls_of(*whole_calls) == [("a", "one", '{"x":"a"}'), ("b", "one", '{"x":"b"}')]


def test_calls_without_an_index_follow_each_other() -> None:
    assert calls_of(
        piece(None, id="a", name="one", arguments='{"x"'),
        piece(None, arguments=":1}"),
        piece(None, id="b", name="two", arguments="{}"),
        piece(None, name="three", arguments="{}"),
    ) == [("a", "one", '{"x":1}'), ("b", "two", "{}"), ("r1-2", "three", "{}")]


def test_a_missing_or_repeated_id_is_made_up() -> None:
    assert calls_of(piece(0, name="one"), piece(1, id="a", name="two"), piece(2, id="a", name="three")) == [
        ("r1-0", "one", ""),
        ("a", "two", ""),
        ("r1-2", "three", ""),
    ]


def test_arguments_may_be_an_object_and_malformed_ones_stay_as_they_are() -> None:
    assert calls_of(piece(0, id="a", name="one", arguments={"x": 1})) == [("a", "one", '{"x":1}')]
    assert calls_of(piece(0, id="a", name="one", arguments='{"x": tru')) == [("a", "one", '{"x": tru')]


def test_a_call_without_a_name_breaks_the_dialect() -> None:
    with pytest.raises(ModelFailed) as caught:
        calls_of(piece(0, id="a", arguments="{}"))
    assert caught.value.kind == "protocol"


@pytest.mark.parametrize(
    ("finish", "with_call", "stop"),
    [
        ("stop", False, "end"),
        ("stop", True, "tool_calls"),
        ("tool_calls", True, "tool_calls"),
        ("tool_calls", False, "end"),
        ("function_call", True, "tool_calls"),
        ("length", True, "length"),
        ("length", False, "length"),
        ("content_filter", False, "content_filter"),
        ("something new", True, "other"),
    ],
)
def test_a_finish_reason_becomes_a_stop(finish: str, with_call: bool, stop: str) -> None:
    said = piece(0, id="a", name="one", arguments='{"x') if with_call else {"content": "hi"}
    assert read(chunk_of(said), chunk_of({}, finish), DONE)[1].stop == stop


def test_a_stream_may_end_after_its_finish_reason_without_done() -> None:
    assert read(chunk_of({"content": "hi"}), chunk_of({}, "stop"))[1].text == "hi"


@pytest.mark.parametrize("end", [(), (DONE,)], ids=["nothing", "done"])
def test_a_stream_without_a_finish_reason_is_never_a_reply(end: tuple[bytes, ...]) -> None:
    with pytest.raises(ModelFailed) as caught:
        read(chunk_of({"content": "hi"}), *end)
    assert (caught.value.kind, caught.value.retry) == ("interrupted", True)


def test_a_refusal_is_words_and_a_stop() -> None:
    message = read(chunk_of({"refusal": "I will "}), chunk_of({"refusal": "not."}), chunk_of({}, "stop"), DONE)[1]
    assert (message.text, message.stop) == ("I will not.", "refusal")


@pytest.mark.parametrize("member", ["reasoning_content", "reasoning"])
def test_thoughts_are_read_under_both_names_and_remember_theirs(member: str) -> None:
    deltas, message = read(chunk_of({member: "Hm"}), chunk_of({member: "."}), chunk_of({"content": "x"}, "stop"), DONE)
    assert deltas[:2] == [ReasoningDelta("Hm"), ReasoningDelta(".")]
    assert message.parts == (Reasoning(text="Hm.", signature=member), Text("x"))


def test_typed_content_is_split_into_thoughts_and_words() -> None:
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "text", "text": "Yes."},
        {"type": "new"},
    ]
    deltas, message = read(chunk_of({"content": content}, "stop"), DONE)
    assert deltas == [ReasoningDelta("Hm."), TextDelta("Yes.")]
    assert message.text == "Yes."


def test_streamed_reasoning_details_are_joined_and_kept() -> None:
    def detail(index: int, **more: Any) -> bytes:
        return chunk_of({"reasoning": "Hm", "reasoning_details": [{"index": index, "type": "reasoning.text"} | more]})

    message = read(
        detail(0, text="a", format="f"),
        detail(0, text="b", signature=None),
        detail(0, signature="SIG=="),
        detail(1, text="c"),
        chunk_of({}, "stop"),
        DONE,
    )[1]
    native = next(part for part in message.parts if isinstance(part, Native))
    assert msgspec.json.decode(native.data) == {
        "reasoning_details": [
            {"index": 0, "type": "reasoning.text", "text": "ab", "format": "f", "signature": "SIG=="},
            {"index": 1, "type": "reasoning.text", "text": "c"},
        ]
    }
    assert isinstance(message.parts[0], Reasoning) and message.parts[0].signature is None


def test_a_signed_call_keeps_its_signature() -> None:
    extra = {"google": {"thought_signature": "c2ln"}}
    message = read(chunk_of(piece(0, id="a", name="one", extra_content=extra), "tool_calls"), DONE)[1]
    assert isinstance(message.parts[0], ToolCall)
    assert msgspec.json.decode(message.parts[0].signature or "") == extra


def counted(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion} | more


THOUGHT = {"completion_tokens_details": {"reasoning_tokens": 7}}
USAGES: dict[str, tuple[dict[str, Any], Usage]] = {
    "cached tokens are part of the prompt": (
        counted(100, 20, prompt_tokens_details={"cached_tokens": 60}),
        Usage(input=40, cache_read=60, output=20),
    ),
    "writes too": (
        counted(100, 1, prompt_tokens_details={"cached_tokens": 1, "cache_write_tokens": 9}),
        Usage(input=90, cache_read=1, cache_write=9, output=1),
    ),
    "DeepSeek's name": (counted(10, 2, prompt_cache_hit_tokens=4), Usage(input=6, cache_read=4, output=2)),
    "thoughts are part of the output": (
        counted(1, 9, total_tokens=10, **THOUGHT),
        Usage(input=1, output=9, reasoning=7),
    ),
    "thoughts that only the total counts": (
        counted(1, 2, total_tokens=10, **THOUGHT),
        Usage(input=1, output=9, reasoning=7),
    ),
    "nulls and nonsense": (
        counted(5, -3, prompt_tokens_details={"cached_tokens": 900}, total_tokens=None),
        Usage(cache_read=5),
    ),
}


@pytest.mark.parametrize("name", USAGES)
def test_usage_is_normalised(name: str) -> None:
    written, expected = USAGES[name]
    message = read(chunk_of({"content": "x"}, "stop"), chunk_of(usage=written), DONE)[1]
    assert message.usage == expected
    assert expected.prompt == written["prompt_tokens"]


@pytest.mark.parametrize("number", IMPOSSIBLE, ids=str)
def test_a_usage_that_cannot_be_true_is_no_usage_and_spoils_no_reply(
    number: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for told in (
        counted(number, 2),
        counted(1, number),
        counted(9, 2, prompt_tokens_details={"cached_tokens": number}),
    ):
        message = read(chunk_of({"content": "x"}, "stop"), chunk_of(usage=told), DONE)[1]
        assert (message.text, message.usage) == ("x", None)
    assert [record.message for record in caplog.records] == ["model.usage_unusable"] * 3


@pytest.mark.parametrize("told", ["none", 7, [1]])
def test_a_usage_that_is_no_object_is_no_usage(told: Any) -> None:
    assert read(chunk_of({"content": "x"}, "stop"), chunk_of(usage=told), DONE)[1].usage is None


def test_whole_numbers_may_be_written_as_floats() -> None:
    assert read(chunk_of({}, "stop"), chunk_of(usage=counted(3.0, 2.0)), DONE)[1].usage == Usage(input=3, output=2)


def test_usage_may_be_missing_null_or_in_every_chunk() -> None:
    assert read(chunk_of({"content": "x"}, "stop", usage=None), DONE)[1].usage is None
    running = (chunk_of({"content": "x"}, usage={"prompt_tokens": 3, "completion_tokens": count}) for count in (1, 2))
    assert read(*running, chunk_of({}, "stop"), DONE)[1].usage == Usage(input=3, output=2)


def test_missing_and_null_members_are_tolerated() -> None:
    odd = [{}, {"choices": None}, {"choices": []}, {"choices": [{}]}, {"choices": [{"delta": None}]}]
    nulls = {"delta": {"content": None, "tool_calls": None, "role": None}, "finish_reason": None}
    assert read(*map(event, odd), event({"choices": [nulls]}), chunk_of({"content": "x"}, "stop"), DONE)[1].text == "x"


def test_half_a_surrogate_pair_becomes_a_replacement_character() -> None:
    def raw(text: bytes) -> bytes:
        return b'data: {"choices":[{"delta":{"content":"' + text + b'"}}]}\n\n'

    message = read(raw(rb"\ud83d"), raw(rb"\ude00 \\ud83d \ud83d\ude00"), chunk_of({}, "stop"), DONE)[1]
    assert message.text == "\ufffd\ufffd \\ud83d \U0001f600"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429, "message": "slow down"}, "rate_limited"),
        ({"code": 502, "message": "provider"}, "server"),
        ({"code": "rate_limit_exceeded"}, "rate_limited"),
        ({"type": "server_error"}, "server"),
        ({"code": "context_length_exceeded"}, "too_long"),
        ("out of memory", "server"),
    ],
)
def test_an_error_in_the_stream_has_its_kind(error: Any, kind: str) -> None:
    with pytest.raises(ModelFailed) as caught:
        read(chunk_of({"content": "x"}), event({"error": error}))
    assert caught.value.kind == kind
    assert "slow down" not in str(caught.value)


def test_an_upstream_that_finished_with_an_error_is_a_failure() -> None:
    with pytest.raises(ModelFailed) as caught:
        read(chunk_of({"content": "x"}, "error"), DONE)
    assert caught.value.kind == "server"


def test_deltas_name_the_place_of_their_call() -> None:
    deltas, _ = read(*OPENAI.events[:5], chunk_of(piece(3, id="z", name="two", arguments="{}"), "tool_calls"))
    assert deltas[-2:] == [ArgumentsDelta(0, "shell", '{"comm'), ArgumentsDelta(1, "two", "{}")]

"""The simulator's Anthropic dialect, byte by byte."""

import json
import re

import pytest
from simulator_client import Answer, exchange, request, saying, simulated, user

from sojourn.loop.messages import Usage
from sojourn.models.simulator import Call, Charge, Rule, Script, When

LOOK = Call("shell", {"command": "ls"})
MARK = {"type": "ephemeral"}


def deltas(answer: Answer) -> list[dict]:
    return [event["delta"] for event in answer.events if event["type"] == "content_block_delta"]


async def test_a_stream_has_the_events_of_the_protocol_in_their_order():
    script = saying("Hi!", reasoning="Hm.", calls=(Call("shell", {}),))
    async with simulated(script) as client:
        answer = await client.ask("anthropic")
    assert answer.status == 200 and answer.ended
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert re.fullmatch(r"req_011C[A-Za-z0-9]{20}", answer.headers["request-id"])
    assert [(event["type"], event.get("index")) for event in answer.events] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("ping", None),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    names = re.findall(r"^event: (\w+)\ndata: {\"type\":\"(\w+)\"", answer.body.decode(), re.MULTILINE)
    assert len(names) == len(answer.events) and all(name == kind for name, kind in names)


async def test_a_message_starts_empty_and_says_its_input_and_ends_with_the_whole_usage():
    async with simulated(saying("Hello")) as client:
        answer = await client.ask("anthropic")
    message = answer.events[0]["message"]
    assert re.fullmatch(r"msg_01[A-Za-z0-9]{22}", message.pop("id"))
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 1,
            "service_tier": "standard",
        },
    }
    assert answer.events[-2] == {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 2,
        },
    }


async def test_thinking_ends_with_a_signature_and_redacted_thinking_comes_at_once():
    async with simulated(saying("yes", reasoning="because", redacted="secret")) as client:
        answer = await client.ask("anthropic")
    starts = [event["content_block"] for event in answer.events if event["type"] == "content_block_start"]
    assert [start["type"] for start in starts] == ["thinking", "redacted_thinking", "text"]
    assert starts[0] == {"type": "thinking", "thinking": "", "signature": ""}
    assert starts[1].keys() == {"type", "data"} and "secret" not in starts[1]["data"]
    assert [delta["type"] for delta in deltas(answer)] == [
        "thinking_delta",
        "thinking_delta",
        "signature_delta",
        "text_delta",
    ]


async def test_a_call_comes_as_pieces_of_json():
    async with simulated(saying(calls=(LOOK, Call("shell", "{broken")))) as client:
        answer = await client.ask("anthropic")
    starts = [event["content_block"] for event in answer.events if event["type"] == "content_block_start"]
    assert all(re.fullmatch(r"toolu_01[A-Za-z0-9]{22}", start.pop("id")) for start in starts)
    assert starts == [{"type": "tool_use", "name": "shell", "input": {}}] * 2
    joined = {0: "", 1: ""}
    for event in answer.events:
        if event["type"] == "content_block_delta":
            joined[event["index"]] += event["delta"]["partial_json"]
    assert joined == {0: '{"command":"ls"}', 1: "{broken"}
    assert deltas(answer)[0]["partial_json"] == ""
    assert answer.events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_a_whole_reply_has_the_same_content_as_the_stream():
    script = saying("Look.", reasoning="Hm.", redacted="x", calls=(LOOK, Call("shell", "{broken")))
    async with simulated(script) as client:
        streamed = await client.ask("anthropic")
        whole = await client.ask("anthropic", stream=False)
    thinking, redacted, text, call, broken = whole.json["content"]
    assert thinking["thinking"] == "Hm."
    assert thinking["signature"] == next(d["signature"] for d in deltas(streamed) if "signature" in d)
    assert redacted["type"] == "redacted_thinking" and text == {"type": "text", "text": "Look."}
    assert call["input"] == {"command": "ls"} and broken["input"] == {"INVALID_JSON": "{broken"}
    assert whole.json["stop_reason"] == "tool_use" and whole.usage == streamed.usage


async def test_every_stop_has_its_stop_reason():
    reasons = {
        "end": "end_turn",
        "tool_calls": "tool_use",
        "length": "max_tokens",
        "refusal": "refusal",
        "content_filter": "refusal",
        "pause": "pause_turn",
    }
    for stop, reason in reasons.items():
        async with simulated(saying("x", stop=stop)) as client:
            streamed, whole = await client.ask("anthropic"), await client.ask("anthropic", stream=False)
        assert streamed.events[-2]["delta"]["stop_reason"] == whole.json["stop_reason"] == reason


async def test_thinking_must_come_back_as_it_went_and_to_the_simulator_that_signed_it():
    script = saying("yes", reasoning="because", redacted="secret")
    async with simulated(script, seed=1) as client, simulated(script, seed=2) as stranger:
        content = (await client.ask("anthropic", stream=False)).json["content"]
        talk = [user("hi"), {"role": "assistant", "content": content}, user("why?")]
        assert (await client.ask("anthropic", talk)).ended
        assert (await stranger.ask("anthropic", talk)).status == 400
        for index, name in ((0, "thinking"), (0, "signature"), (1, "data")):
            changed = json.loads(json.dumps(talk))
            changed[1]["content"][index][name] = "QUFB" + changed[1]["content"][index][name]
            answer = await client.ask("anthropic", changed)
            assert answer.status == 400
            assert f"messages.1.content.{index}: Invalid" in answer.json["error"]["message"]


def marked(text: str, *, mark: bool = True) -> list[dict]:
    return [{"type": "text", "text": text} | ({"cache_control": MARK} if mark else {})]


async def test_the_cache_is_written_at_the_marks_and_read_by_the_next_step():
    system = marked("s" * 6_000)
    first = [{"role": "user", "content": marked("u" * 4_000)}]
    then = [
        {"role": "user", "content": marked("u" * 4_000, mark=False)},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": marked("v" * 400)},
    ]
    async with simulated(saying("ok")) as client:
        one = (await client.ask("anthropic", first, system=system)).usage
        two = (await client.ask("anthropic", then, system=system)).usage
        again = (await client.ask("anthropic", then, system=system)).usage
        other_key = (await client.ask("anthropic", then, system=system, key="sk-2")).usage
        unmarked = (await client.ask("anthropic", [user("u" * 4_000)], system="s" * 6_000)).usage
        new_system = (await client.ask("anthropic", then, system=marked("t" * 6_000))).usage
    assert (one.cache_read, one.input) == (0, 0) and 2_500 <= one.cache_write <= 2_510
    assert two.cache_read == one.cache_write and 100 <= two.cache_write < 120 and two.input == 0
    assert (again.cache_read, again.cache_write) == (two.prompt, 0)
    assert other_key.cache_read == unmarked.cache_read == unmarked.cache_write == new_system.cache_read == 0


async def test_a_mark_looks_twenty_blocks_back_and_no_further():
    first = [{"role": "user", "content": marked("u" * 8_000)}]
    for blocks, hit in ((19, True), (20, False)):
        more = [{"type": "text", "text": "more"}] * blocks
        later = [{"role": "user", "content": [*marked("u" * 8_000, mark=False), *more]}]
        later[0]["content"][-1] = later[0]["content"][-1] | {"cache_control": MARK}
        async with simulated(saying("ok")) as client:
            await client.ask("anthropic", first)
            assert bool((await client.ask("anthropic", later)).usage.cache_read) == hit


async def test_a_prefix_below_the_least_size_is_not_cached():
    talk = [{"role": "user", "content": marked("u" * 400)}]
    for tokens_min, read in ((1_024, 0), (0, 102)):
        async with simulated(saying("ok", cache_tokens_min=tokens_min)) as client:
            await client.ask("anthropic", talk)
            assert (await client.ask("anthropic", talk)).usage.cache_read == read


async def test_the_script_may_tell_any_usage():
    async with simulated(saying("ok", usage=Charge(input=9, cache_read=8, cache_write=7, output=6))) as client:
        answer = await client.ask("anthropic")
        assert client.sim.requests()[0].usage == answer.usage
    assert answer.usage == Usage(input=9, cache_read=8, cache_write=7, output=6)


async def test_what_the_real_endpoint_refuses_is_refused():
    call = exchange("anthropic", ("a", "1"))
    bad = {
        "not valid JSON": b"{",
        "missing required field `max_tokens`": json.dumps({"model": "m", "messages": [user("hi")]}).encode(),
        "at least one message": request("anthropic", []),
        "max_tokens: Input": request("anthropic", max_tokens=0),
        "messages.0.content.0: text content blocks must be non-empty": request("anthropic", ""),
        "without `tool_result` blocks immediately after: id-0": request("anthropic", [user("x"), call[0], user("y")]),
        "messages.1.content.0: unexpected `tool_use_id`": request("anthropic", [user("x"), call[1]]),
        "valid dictionary": request(
            "anthropic",
            [user("x"), {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "a", "input": "s"}]}],
        ),
    }
    async with simulated(saying("ok")) as client:
        for words, body in bad.items():
            answer = await client.send("anthropic", body)
            assert answer.status == 400, words
            assert answer.json["type"] == "error" and answer.json["request_id"] == answer.headers["request-id"]
            assert answer.json["error"]["type"] == "invalid_request_error"
            assert words in answer.json["error"]["message"]
        async with client.session.post(client.sim.url + "/v1/messages", json=request("anthropic")) as response:
            assert (await response.json())["error"]["message"] == "anthropic-version: header is required"


@pytest.mark.parametrize("content", ["4 files", [{"type": "text", "text": "4 "}, {"type": "text", "text": "files"}]])
async def test_results_come_back_as_text_or_blocks(content):
    talk = [user("hi"), *exchange("anthropic", ("shell", ""))]
    talk[-1]["content"][0]["content"] = content
    rules = (Rule(when=When(tool="shell"), text="I see {{last_tool_result}}"),)
    async with simulated(Script(rules=rules)) as client:
        assert (await client.ask("anthropic", talk)).text == "I see 4 files"

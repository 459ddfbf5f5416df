"""The simulator's OpenAI dialect, byte by byte."""

import json
import re

from pictures import PNG_BASE64
from simulator_client import exchange, request, saying, simulated, user

from sojourn.loop.messages import Usage
from sojourn.models.simulator import Call, Charge, Pacing, Rule, Script

LOOK = Call("shell", {"command": "ls"})


async def test_a_stream_is_made_of_chunks_of_one_id_and_ends_with_done():
    async with simulated(saying("Hello wörld")) as client:
        answer = await client.ask("openai")
    assert answer.status == 200 and answer.ended
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["X-Request-ID"])
    events = answer.events
    assert len({event["id"] for event in events}) == 1
    assert re.fullmatch(r"chatcmpl-[A-Za-z0-9]{29}", events[0]["id"])
    assert {(event["object"], event["model"]) for event in events} == {("chat.completion.chunk", "m")}
    assert answer.deltas == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hell"},
        {"content": "o wö"},
        {"content": "rld"},
        {},
    ]
    finishes = [event["choices"][0]["finish_reason"] for event in events if event["choices"]]
    assert finishes == [None, None, None, None, "stop"]


async def test_usage_comes_in_one_last_chunk_without_choices_and_is_null_before():
    async with simulated(saying("Hello")) as client:
        events = (await client.ask("openai")).events
    assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 2,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def test_without_include_usage_no_chunk_speaks_of_usage():
    async with simulated(saying("Hello")) as client:
        answer = await client.ask("openai", stream_options=None)
        assert answer.ended and all("usage" not in event for event in answer.events)
        entry = client.sim.requests()[0]
    assert entry.usage == Usage(input=2, output=2) and not entry.told


async def test_a_whole_reply_has_the_same_content_as_the_stream():
    script = saying("Look.", reasoning="Hm.", calls=(LOOK, Call("shell", "not json")))
    async with simulated(script) as client:
        streamed = await client.ask("openai")
        whole = await client.ask("openai", stream=False)
    assert whole.headers["Content-Type"] == "application/json"
    body = whole.json
    assert body["object"] == "chat.completion" and body["choices"][0]["finish_reason"] == "tool_calls"
    message = body["choices"][0]["message"]
    assert message["role"] == "assistant" and message["refusal"] is None
    assert message["content"] == "Look." == streamed.text
    assert message["reasoning_content"] == "Hm."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "shell", "arguments": '{"command":"ls"}'},
        {"name": "shell", "arguments": "not json"},
    ]
    assert whole.usage == streamed.usage


async def test_a_call_gives_its_id_and_name_in_the_first_piece_only():
    async with simulated(saying(calls=(LOOK,))) as client:
        answer = await client.ask("openai")
    assert answer.deltas[0] == {"role": "assistant", "content": None, "refusal": None}
    pieces = [delta["tool_calls"][0] for delta in answer.deltas if "tool_calls" in delta]
    assert re.fullmatch(r"call_[A-Za-z0-9]{24}", pieces[0].pop("id"))
    assert pieces[0] == {"index": 0, "type": "function", "function": {"name": "shell", "arguments": ""}}
    assert all(piece.keys() == {"index", "function"} for piece in pieces[1:])
    assert all(piece["function"].keys() == {"arguments"} for piece in pieces[1:])
    assert "".join(piece["function"]["arguments"] for piece in pieces) == '{"command":"ls"}'


async def test_parallel_calls_come_one_after_the_other_or_interleaved():
    calls = (Call("a", "12345678"), Call("b", "abcdefghij"), Call("c", ""))
    orders = []
    async with simulated(Script(rules=(Rule(calls=calls, interleave=True),))) as client:
        for _ in range(2):
            answer = await client.ask("openai")
            pieces = [delta["tool_calls"][0] for delta in answer.deltas if "tool_calls" in delta]
            orders.append([piece["index"] for piece in pieces])
            joined = ["", "", ""]
            for piece in pieces:
                joined[piece["index"]] += piece["function"]["arguments"]
            assert joined == ["12345678", "abcdefghij", ""]
            client.sim.load(Script(rules=(Rule(calls=calls),)))
    assert orders == [[0, 1, 2, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1, 2]]


async def test_reasoning_comes_in_the_field_that_the_script_names_or_stays_hidden():
    for field in ("reasoning_content", "reasoning", "hidden"):
        async with simulated(saying("yes", reasoning="because", openai_reasoning=field)) as client:
            answer = await client.ask("openai")
        thoughts = "".join(delta.get(field, "") for delta in answer.deltas)
        assert thoughts == ("" if field == "hidden" else "because")
        assert answer.usage == Usage(input=2, output=3, reasoning=2)


async def test_every_stop_has_its_finish_reason():
    reasons = {"end": "stop", "tool_calls": "tool_calls", "length": "length", "content_filter": "content_filter"}
    for stop, reason in reasons.items():
        async with simulated(saying("x", stop=stop)) as client:
            answer = await client.ask("openai")
            assert answer.events[-2]["choices"][0]["finish_reason"] == reason
    async with simulated(saying("I will not.", stop="refusal")) as client:
        streamed, whole = await client.ask("openai"), await client.ask("openai", stream=False)
    assert "".join(delta.get("refusal") or "" for delta in streamed.deltas) == "I will not."
    assert whole.json["choices"][0]["message"] | {"annotations": 0} == {
        "role": "assistant",
        "content": None,
        "refusal": "I will not.",
        "annotations": 0,
    }


async def test_the_request_s_limit_cuts_the_reply_in_the_middle_of_a_call():
    script = saying("Look now", calls=(Call("shell", {"command": "echo hello"}), LOOK))
    async with simulated(script) as client:
        answer = await client.ask("openai", max_completion_tokens=6)
    calls = [delta["tool_calls"][0] for delta in answer.deltas if "tool_calls" in delta]
    assert answer.text == "Look now" and {call["index"] for call in calls} == {0}
    assert "".join(call["function"]["arguments"] for call in calls) == '{"comman'
    assert answer.events[-2]["choices"][0]["finish_reason"] == "length"
    assert answer.usage.output == 6


async def test_a_long_prefix_seen_before_with_this_key_is_cached_in_steps_of_128():
    talk = [{"role": "system", "content": "s" * 8_000}, user("hi")]
    async with simulated(saying("ok")) as client:
        first = await client.ask("openai", talk)
        again = await client.ask("openai", [*talk, {"role": "assistant", "content": "ok"}, user("and now?")])
        stranger = await client.ask("openai", talk, key="sk-other")
        changed = await client.ask("openai", [{"role": "system", "content": "t" * 8_000}, user("hi")])
        short = await client.ask("openai", talk[1:])
    assert [answer.usage.cache_read for answer in (first, again, stranger, changed, short)] == [0, 1920, 0, 0, 0]
    assert again.usage.prompt > first.usage.prompt > 2_000


async def test_the_script_may_tell_any_usage():
    charge = Charge(input=1_000, cache_read=500, output=70, reasoning=20)
    async with simulated(saying("ok", usage=charge)) as client:
        answer = await client.ask("openai")
        assert client.sim.requests()[0].usage == answer.usage
    assert answer.usage == Usage(input=1_000, cache_read=500, output=70, reasoning=20)


async def test_the_size_of_pieces_is_the_pacing_s():
    async with simulated(saying("12345678901234567890", pacing=Pacing(chunk_tokens=2))) as client:
        answer = await client.ask("openai")
    assert [delta["content"] for delta in answer.deltas[1:-1]] == ["12345678", "90123456", "7890"]


async def test_what_the_real_endpoint_refuses_is_refused():
    unanswered = [user("hi"), exchange("openai", ("a", "1"), ("b", "2"))[0]]
    half = [user("hi"), *exchange("openai", ("a", "1"), ("b", "2"))[:2]]
    bad = {
        "parse the JSON body": b'{"model": "m", "messages": [',
        "Invalid request: ": json.dumps(request("openai") | {"messages": "hi"}).encode(),
        "minimum length 1": request("openai", []),
        "one choice": request("openai", n=3),
        "did not have response messages: id-0, id-1": request("openai", unanswered),
        "did not have response messages: id-1": request("openai", [*half, user("and?")]),
        "must be a response to": request("openai", [user("hi"), half[2] | {"tool_call_id": "x"}]),
        "got null": request("openai", [user("hi"), {"role": "assistant", "content": None}]),
    }
    async with simulated(saying("ok")) as client:
        for words, body in bad.items():
            answer = await client.send("openai", body)
            assert answer.status == 400 and answer.headers["Content-Type"] == "application/json"
            error = answer.json["error"]
            assert words in error["message"] and error["type"] == "invalid_request_error"
            assert error.keys() == {"message", "type", "param", "code"}
        deep = b'{"model":"m","messages":' + b"[" * 100_000
        assert (await client.send("openai", deep)).status == 400
        assert {entry.outcome for entry in client.sim.requests()} == {"refused"}


async def test_content_may_come_in_parts_and_images_are_counted():
    parts = [
        {"type": "text", "text": "look "},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG_BASE64}"}},
        {"type": "text", "text": "here"},
    ]
    async with simulated(saying("You said {{last_user}}")) as client:
        answer = await client.ask("openai", [{"role": "user", "content": parts}])
    assert answer.text == "You said look here" and answer.usage.input == 1_004

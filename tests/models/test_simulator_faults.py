"""Every fault of the simulator, in both dialects, streamed and whole; and when a fault strikes."""

import asyncio
import json
import time

import aiohttp
import pytest
from simulator_client import DIALECTS, ENDINGS, Client, request, saying, simulated, until

from sojourn.loop.messages import Usage
from sojourn.models.simulator import (
    Call,
    Cut,
    Drip,
    ErrorEvent,
    Garbage,
    Pacing,
    Range,
    Reset,
    Script,
    Stall,
    Status,
    TooLong,
    Truncate,
    When,
)

TEXT = "Every word of this reply is here, ünd it is long enough to be cut in the middle."
BOTH = pytest.mark.parametrize("dialect", DIALECTS)
STREAMED_OR_WHOLE = pytest.mark.parametrize("stream", [True, False])


def with_fault(fault, **fields) -> Script:
    return saying(TEXT, faults=(fault,), **fields)


async def good(client: Client, dialect: str) -> bytes:
    """The bytes of the reply when nothing goes wrong."""
    client.sim.load(saying(TEXT))
    return (await client.ask(dialect)).body


ERRORS = {
    "openai": {
        400: ("invalid_request_error", None),
        401: ("invalid_request_error", "invalid_api_key"),
        403: ("invalid_request_error", "model_not_found"),
        404: ("invalid_request_error", "model_not_found"),
        429: ("requests", "rate_limit_exceeded"),
        500: ("server_error", None),
        503: ("server_error", None),
        529: ("server_error", None),
    },
    "anthropic": {
        400: ("invalid_request_error", None),
        401: ("authentication_error", None),
        403: ("permission_error", None),
        404: ("not_found_error", None),
        429: ("rate_limit_error", None),
        500: ("api_error", None),
        503: ("api_error", None),
        529: ("overloaded_error", None),
    },
}


@BOTH
@STREAMED_OR_WHOLE
async def test_an_http_error_has_the_body_of_its_dialect_and_costs_nothing(dialect, stream):
    for status, (kind, code) in ERRORS[dialect].items():
        async with simulated(with_fault(Status(status=status))) as client:
            answer = await client.ask(dialect, stream=stream)
            entry = client.sim.requests()[0]
        assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
        error = answer.json["error"]
        assert error["type"] == kind and error["message"]
        if dialect == "openai":
            assert error["code"] == code and error.keys() == {"message", "type", "param", "code"}
            assert answer.headers["X-Request-ID"] == entry.request_id
        else:
            assert answer.json["type"] == "error" and answer.json["request_id"] == entry.request_id
            assert answer.headers["request-id"] == entry.request_id
        assert (entry.status, entry.outcome, entry.fault) == (status, "refused", "status")
        assert entry.usage == Usage() and not entry.told and "Retry-After" not in answer.headers


@BOTH
async def test_an_http_error_says_the_script_s_words_code_and_retry_after(dialect):
    for given, header in ((2, "2"), (0.25, "0.25"), ("Wed, 21 Oct 2099 07:28:00 GMT",) * 2, ("soon", "soon")):
        fault = Status(status=429, retry_after=given, message="No credit.", code="insufficient_quota")
        async with simulated(with_fault(fault)) as client:
            answer = await client.ask(dialect)
        assert answer.headers["Retry-After"] == header
        assert answer.json["error"]["message"] == "No credit."
        assert answer.json["error"]["code" if dialect == "openai" else "type"] == "insufficient_quota"


async def test_a_prompt_that_is_too_long_is_refused_in_the_provider_s_words():
    for script in (with_fault(TooLong()), saying(TEXT, context_tokens_max=20)):
        async with simulated(script) as client:
            ours = (await client.ask("openai", "long " * 50)).json["error"]
            theirs = (await client.ask("anthropic", "long " * 50)).json["error"]
            short = await client.ask("openai", "hi")
        assert ours["code"] == "context_length_exceeded" and "maximum context length is" in ours["message"]
        assert theirs["type"] == "invalid_request_error" and "prompt is too long: 65 tokens >" in theirs["message"]
        assert short.ended == (not script.faults)


@BOTH
async def test_a_cut_leaves_out_the_terminal_event_and_ends_cleanly(dialect):
    async with simulated(with_fault(Cut())) as client:
        answer = await client.ask(dialect)
        entry = client.sim.requests()[0]
        whole = await good(client, dialect)
    assert answer.error is None and answer.status == 200
    assert answer.body + ENDINGS[dialect] == whole
    assert (entry.outcome, entry.told) == ("failed", True)


@BOTH
async def test_a_cut_earlier_charges_what_was_sent_and_tells_nothing(dialect):
    async with simulated(with_fault(Cut(after=6))) as client:
        answer = await client.ask(dialect)
        entry = client.sim.requests()[0]
    assert answer.error is None and len(answer.events) == 6
    assert (entry.outcome, entry.told) == ("failed", False)
    assert entry.usage.output == len(answer.text) / 4 and entry.usage.input > 0


@BOTH
@STREAMED_OR_WHOLE
async def test_a_reset_breaks_the_connection_in_the_middle(dialect, stream):
    async with simulated(with_fault(Reset())) as client:
        answer = await client.ask(dialect, stream=stream)
        entry = client.sim.requests()[0]
    assert answer.status == 200 and answer.body and isinstance(answer.error, aiohttp.ClientPayloadError)
    assert entry.outcome == "failed" and not entry.told


@BOTH
async def test_a_reset_is_a_reset_on_the_wire(dialect):
    async with simulated(with_fault(Reset(after="nothing"))) as client:
        reader, writer = await asyncio.open_connection(*client.sim.url.removeprefix("http://").split(":"))
        body = json.dumps(request(dialect)).encode()
        path = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}[dialect]
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nanthropic-version: 1\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


@BOTH
@STREAMED_OR_WHOLE
async def test_a_connection_may_close_before_the_response_begins(dialect, stream):
    for fault in (Reset(after="nothing"), Cut(after="nothing")):
        async with simulated(with_fault(fault)) as client:
            answer = await client.ask(dialect, stream=stream)
            entry = client.sim.requests()[0]
        assert answer.status == 0 and not answer.body
        assert isinstance(answer.error, aiohttp.ClientConnectionError)
        assert (entry.outcome, entry.usage.output) == ("failed", 0)


@BOTH
async def test_a_stall_before_the_first_byte_gives_not_even_a_head(dialect):
    async with simulated(with_fault(Stall(after="nothing"))) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.ask(dialect), 0.2)
        await outcome_of(client, "aborted")


@BOTH
@STREAMED_OR_WHOLE
async def test_a_stall_in_the_middle_is_silence_and_the_log_says_that_the_client_went(dialect, stream):
    async with simulated(with_fault(Stall())) as client:
        async with client.post(dialect, request(dialect, stream=stream)) as response:
            received = await response.content.readany()
            with pytest.raises(TimeoutError):
                while not response.content.at_eof():
                    received += await asyncio.wait_for(response.content.readany(), 0.2)
            response.close()
        entry = await outcome_of(client, "aborted")
        if stream:
            assert (await good(client, dialect)).startswith(received) and 0 < entry.usage.output < 20
    assert received and not entry.told


@BOTH
async def test_a_burst_does_not_swallow_a_stall(dialect):
    async with simulated(with_fault(Stall(after=4), pacing=Pacing(burst=1_000))) as client:
        async with client.post(dialect, request(dialect)) as response:
            received = b""
            while received.count(b"data: ") < 4:
                received += await response.content.readany()
            assert client.sim.requests()[0].outcome == "open"
        await outcome_of(client, "aborted")


@BOTH
async def test_a_stall_that_ends_gives_the_whole_reply(dialect):
    async with simulated(with_fault(Stall(after="headers", for_s=0.2))) as client:
        started = time.monotonic()
        answer = await client.ask(dialect)
        assert time.monotonic() - started >= 0.2
        assert client.sim.requests()[0].outcome == "finished"
    assert answer.ended and answer.text == TEXT


@BOTH
async def test_garbage_stands_between_the_events(dialect):
    async with simulated(with_fault(Garbage(text="<html>"))) as client:
        answer = await client.ask(dialect)
        whole = await good(client, dialect)
    before, after = answer.body.split(b"<html>")
    assert before + after == whole and before.endswith(b"\n\n") and after

    async with simulated(with_fault(Garbage())) as client:
        random = await client.ask(dialect)
        assert client.sim.requests()[0].outcome == "failed"
    with pytest.raises(UnicodeDecodeError):
        random.body.decode()


@BOTH
async def test_an_error_event_ends_the_stream(dialect):
    async with simulated(with_fault(ErrorEvent(after=5, message="Too busy"))) as client:
        answer = await client.ask(dialect)
    assert answer.status == 200 and answer.error is None and len(answer.events) == 6
    if dialect == "openai":
        error = {"message": "Too busy", "type": "server_error", "param": None, "code": "overloaded_error"}
        assert answer.events[-1] == {"error": error}
    else:
        assert answer.events[-1] == {"type": "error", "error": {"type": "overloaded_error", "message": "Too busy"}}
        assert b"\n\nevent: error\ndata: " in answer.body


@BOTH
async def test_an_error_event_is_an_http_error_where_nothing_is_streamed(dialect):
    async with simulated(with_fault(ErrorEvent(message="Too busy"))) as client:
        answer = await client.ask(dialect, stream=False)
    assert answer.status == 529 and answer.json["error"]["message"] == "Too busy"


@BOTH
async def test_truncated_arguments_stop_for_length(dialect):
    script = saying("Look.", calls=(Call("shell", {"command": "echo hello world"}),), faults=(Truncate(),))
    async with simulated(script) as client:
        answer = await client.ask(dialect)
        entry = client.sim.requests()[0]
    if dialect == "openai":
        pieces = [delta["tool_calls"][0]["function"]["arguments"] for delta in answer.deltas if "tool_calls" in delta]
        reason = answer.events[-2]["choices"][0]["finish_reason"]
    else:
        pieces = [
            event["delta"].get("partial_json", "") for event in answer.events if "index" in event and "delta" in event
        ]
        reason = answer.events[-2]["delta"]["stop_reason"]
    assert "".join(pieces) == '{"command":"echo' and reason == {"openai": "length", "anthropic": "max_tokens"}[dialect]
    assert answer.ended and answer.usage == entry.usage and entry.outcome == "finished"


@BOTH
@STREAMED_OR_WHOLE
async def test_a_drip_gives_the_same_bytes_in_tiny_writes(dialect, stream):
    async with simulated(with_fault(Drip(bytes=7, pause_s=0.0))) as client:
        seen = set()
        async with client.post(dialect, request(dialect, stream=stream)) as response:
            body = b""
            async for data, _ in response.content.iter_chunks():
                seen.add(len(data))
                body += data
        assert client.sim.requests()[0].told
        client.sim.load(saying(TEXT))
        assert body == (await client.ask(dialect, stream=stream)).body
    assert max(seen) <= 7


async def test_a_fault_strikes_so_often_as_the_script_says():
    async with simulated(with_fault(Status(status=500, times=2))) as client:
        assert [(await client.ask("openai")).status for _ in range(4)] == [500, 500, 200, 200]


async def test_a_fault_strikes_the_nth_match_or_each_first_attempt():
    async with simulated(with_fault(Status(status=500, when=When(nth=Range(min=2, max=3))))) as client:
        assert [(await client.ask("openai")).status for _ in range(4)] == [200, 500, 500, 200]
    async with simulated(with_fault(Status(status=500, when=When(attempt=1)))) as client:
        asked = [(await client.ask("openai", text)).status for text in ("a", "b", "b", "a", "a")]
        assert asked == [500, 500, 200, 200, 200]


async def test_a_fault_may_hit_one_key_or_one_model_only():
    faults = (Status(status=401, when=When(key="*-revoked")), Status(status=429, when=When(model="busy")))
    async with simulated(saying(TEXT, faults=faults)) as client:
        statuses = [
            (await client.ask(dialect, key=key, model=model)).status
            for dialect in DIALECTS
            for key, model in (("sk-revoked", "m"), ("sk-good", "m"), ("sk-good", "busy"))
        ]
    assert statuses == [401, 200, 429] * 2


async def test_chance_comes_from_the_seed_and_not_from_the_order_of_arrival():
    async def struck(seed: int, texts: list[str]) -> set[str]:
        async with simulated(with_fault(Status(status=500, probability=0.5)), seed=seed) as client:
            answers = await asyncio.gather(*(client.ask("openai", text) for text in texts))
        return {text for text, answer in zip(texts, answers, strict=True) if answer.status == 500}

    texts = [f"question {index}" for index in range(60)]
    first = await struck(1, texts)
    assert 15 <= len(first) <= 45
    assert first == await struck(1, texts[::-1]) != await struck(2, texts)


async def test_only_the_keys_of_the_script_are_accepted():
    async with simulated(saying(TEXT, keys=("sk-1", "sk-2"))) as client:
        for dialect in DIALECTS:
            assert [(await client.ask(dialect, key=key)).status for key in ("sk-1", "sk-2", "sk-3")] == [200, 200, 401]


@BOTH
async def test_a_client_that_leaves_is_charged_for_what_was_sent(dialect):
    pacing = Pacing(tokens_per_s=200)
    async with simulated(saying("word" * 2_000, pacing=pacing)) as client:
        async with client.post(dialect, request(dialect)) as response:
            await response.content.readany()
            response.close()
        entry = await outcome_of(client, "aborted")
    assert 0 <= entry.usage.output < 2_000 and entry.usage.input > 0 and not entry.told


async def outcome_of(client: Client, outcome: str):
    """Wait until the first request has ended in this way."""
    await until(lambda: client.sim.requests()[0].outcome != "open")
    entry = client.sim.requests()[0]
    assert entry.outcome == outcome and entry.ended_at >= entry.received_at
    return entry

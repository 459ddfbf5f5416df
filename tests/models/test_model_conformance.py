"""What every adapter does, in both dialects, against a real socket."""

import asyncio
import gzip
import logging
import socket
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
from raw_server import END, RawServer, Step, chunk, head, whole
from speaking import DIALECTS, REQUEST, SECRET, Spoken, ask, event, speaking

from sojourn.errors import Invalid, LeaseLost
from sojourn.loop.messages import Reasoning, Text, ToolCall
from sojourn.models.model import ArgumentsDelta, Endpoint, ModelFailed, TextDelta, TimeOuts
from sojourn.models.wire import sse, transport

LONG = TimeOuts(connect_s=20, first_token_s=20, idle_s=20, total_s=20)

pytestmark = pytest.mark.parametrize("spoken", DIALECTS, ids=lambda spoken: spoken.dialect)


async def failing(
    spoken: Spoken, raw: RawServer, script: Sequence[Step], *, time_outs: TimeOuts = LONG, request=REQUEST
) -> ModelFailed:
    """Ask once and return how it failed; nothing of it may show a key or the prompt."""
    raw.scripts = [script]
    async with speaking(spoken, raw.url, time_outs=time_outs) as models:
        with pytest.raises(ModelFailed) as caught:
            await ask(models, request)
    assert_discreet(caught.value)
    return caught.value


def assert_discreet(failure: BaseException) -> None:
    """Check that neither the failure nor what it was raised from shows a key or a prompt."""
    seen: BaseException | None = failure
    while seen is not None:
        for shown in (str(seen), repr(seen), repr(vars(seen)), "".join(traceback.format_exception(seen))):
            assert SECRET not in shown
            assert "What is in the folder" not in shown
        seen = seen.__context__


async def test_a_reply_arrives_as_deltas_and_then_as_one_message(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [[head(), *(chunk(each) for each in spoken.events), END]]
    async with speaking(spoken, raw.url) as models:
        deltas, message = await ask(models)
    assert "".join(each.text for each in deltas if isinstance(each, TextDelta)) == "Looking."
    assert [each for each in deltas if isinstance(each, ArgumentsDelta)] == [
        ArgumentsDelta(0, "shell", '{"comm'),
        ArgumentsDelta(0, "shell", 'and":"ls"}'),
    ]
    thought, text, call = message.parts
    assert isinstance(thought, Reasoning) and thought.text == "Hm."
    assert text == Text("Looking.")
    assert call == ToolCall(id="call_1", name="shell", arguments='{"command":"ls"}')
    assert (message.id, message.role, message.stop) == ("r1", "assistant", "tool_calls")
    assert message.source is not None and message.source.provider == "p" and message.source.model == "m-1"
    assert message.usage is not None and message.usage.output == 20 and message.usage.cache_read == 60
    assert message.usage.input == 40
    seen = raw.seen[0]
    assert seen.line == f"POST {spoken.path} HTTP/1.1"
    assert SECRET in seen.headers[spoken.no_key_header]
    assert msgspec.json.decode(seen.body)["stream"] is True


async def test_the_network_may_cut_anywhere(spoken: Spoken, raw: RawServer) -> None:
    drip = [chunk(spoken.stream[at : at + 1]) for at in range(len(spoken.stream))]
    raw.scripts = [[head(), *drip, END], whole(spoken.stream), whole(spoken.stream.replace(b"\n", b"\r\n"))]
    async with speaking(spoken, raw.url) as models:
        replies = [await ask(models) for _ in range(3)]
    assert replies[0][1] == replies[1][1] == replies[2][1]


async def test_a_connection_is_used_again_after_a_whole_reply(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [[head(), chunk(spoken.stream), END]]
    async with speaking(spoken, raw.url) as models:
        for _ in range(3):
            await ask(models)
    assert (raw.connections, len(raw.seen)) == (1, 3)


async def test_a_kept_connection_that_turns_out_to_be_closed_costs_no_attempt(spoken: Spoken, raw: RawServer) -> None:
    for broken in ("close", "reset"):
        raw.scripts = [whole(spoken.stream), [broken], whole(spoken.stream)]
        raw.connections = 0
        async with speaking(spoken, raw.url) as models:
            assert (await ask(models))[1] == (await ask(models))[1]
        assert raw.connections == 2


async def test_a_new_connection_that_breaks_is_not_tried_again(spoken: Spoken, raw: RawServer) -> None:
    await failing(spoken, raw, ["close"])
    assert len(raw.seen) == 1


async def test_every_cut_between_two_events_fails_until_the_reply_is_whole(spoken: Spoken, raw: RawServer) -> None:
    ends = [at + 2 for at in range(len(spoken.stream)) if spoken.stream.startswith(b"\n\n", at)]
    whole_from = len(spoken.stream) if spoken.dialect == "anthropic" else spoken.stream.index(b'"tool_calls"}]')
    for end in ends:
        raw.scripts = [[head(), chunk(spoken.stream[:end]), END]]
        async with speaking(spoken, raw.url) as models:
            if end > whole_from or end == len(spoken.stream):
                assert (await ask(models))[1].stop == "tool_calls"
            else:
                with pytest.raises(ModelFailed) as caught:
                    await ask(models)
                assert (caught.value.kind, caught.value.retry) == ("interrupted", True)


HALF = 0.5
FAULTS: dict[str, tuple[Sequence[Step | float], str, bool]] = {
    "cut before the head": (["close"], "connect", True),
    "reset before the head": (["reset"], "connect", True),
    "half a head": ([b"HTTP/1.1 200 OK\r\nContent-", "close"], "connect", True),
    "cut before the body": ([head(), "close"], "interrupted", True),
    "cut in the middle of an event": ([head(), HALF, "close"], "interrupted", True),
    "reset in the middle": ([head(), HALF, "reset"], "interrupted", True),
    "clean end in the middle": ([head(), HALF, END], "interrupted", True),
    "nothing at all, cleanly": ([head(), END], "interrupted", True),
    "no HTTP": ([b"SSH-2.0-OpenSSH_9.6\r\n", "close"], "protocol", True),
    "broken chunk sizes": ([head(), b"zz\r\nhello\r\n", "close"], "protocol|interrupted", True),
    "an event that is no JSON": ([head(), chunk(event("{no json")), END], "protocol", True),
    "an event of another shape": ([head(), chunk(event([1, 2])), END], "protocol", True),
    "an event that is no text": ([head(), chunk(b"data: \xff\xfe\n\n"), END], "protocol", True),
    "another content type": (whole(b"<html>", kind="text/html"), "protocol", True),
    "a redirect": (whole(b"", "307 Temporary Redirect", extra="Location: http://127.0.0.1:9/\r\n"), "protocol", False),
    "gzip": (whole(gzip.compress(b"\0" * (64 << 20)), extra="Content-Encoding: gzip\r\n"), "protocol", True),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_of_the_network_has_its_kind(spoken: Spoken, raw: RawServer, name: str) -> None:
    script, kind, retry = FAULTS[name]
    half = chunk(spoken.stream[: len(spoken.stream) // 2])
    failure = await failing(spoken, raw, [half if step == HALF else step for step in script])  # type: ignore[misc]
    assert failure.kind in kind.split("|")  # broken framing that comes with the head is seen before the body is read
    assert (failure.code, failure.retry) == (f"model.{failure.kind}", retry)


STATUSES: dict[str, tuple[str, str, bool]] = {
    "400 Bad Request": ("refused_request", "invalid_request_error", False),
    "401 Unauthorized": ("no_key", "authentication_error", False),
    "402 Payment Required": ("refused_request", "billing_error", False),
    "403 Forbidden": ("no_key", "permission_error", False),
    "404 Not Found": ("not_found", "not_found_error", False),
    "408 Request Timeout": ("server", "timeout", True),
    "413 Content Too Large": ("too_long", "request_too_large", False),
    "422 Unprocessable": ("refused_request", "", False),
    "429 Too Many Requests": ("rate_limited", "rate_limit_error", True),
    "500 Internal Server Error": ("server", "api_error", True),
    "502 Bad Gateway": ("server", "", True),
    "503 Service Unavailable": ("overloaded", "", True),
    "529 Overloaded": ("overloaded", "overloaded_error", True),
}


@pytest.mark.parametrize("status", STATUSES)
async def test_a_status_has_its_kind_and_its_prose_stays_out(spoken: Spoken, raw: RawServer, status: str) -> None:
    kind, type, retry = STATUSES[status]
    body = {"type": "error", "error": {"type": type, "message": f"What is in the folder? {SECRET}"}}
    failure = await failing(spoken, raw, whole(msgspec.json.encode(body), status, kind="application/json"))
    assert (failure.kind, failure.retry) == (kind, retry)
    assert status[:3] in str(failure)


@pytest.mark.parametrize(
    "message",
    [
        "prompt is too long: 210000 tokens > 200000 maximum",
        "This model's maximum context length is 8192 tokens",
        "the request exceeds the available context size, try increasing it",
        "input length and `max_tokens` exceed context limit: 1 + 2 > 3",
    ],
)
async def test_a_prompt_beyond_the_window_is_too_long(spoken: Spoken, raw: RawServer, message: str) -> None:
    body = msgspec.json.encode({"error": {"type": "invalid_request_error", "message": message}})
    failure = await failing(spoken, raw, whole(body, "400 Bad Request", kind="application/json"))
    assert (failure.kind, failure.retry) == ("too_long", False)


async def test_a_parameter_that_is_refused_is_named(spoken: Spoken, raw: RawServer) -> None:
    body = msgspec.json.encode({"error": {"type": "invalid_request_error", "message": "temperature: not What is in"}})
    failure = await failing(spoken, raw, whole(body, "400 Bad Request", kind="application/json"))
    assert "(invalid_request_error, temperature)" in str(failure)


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b'{"error": 7}', b"\xff", b"[" * 60_000, b"x" * (1 << 20)])
async def test_a_refusal_with_any_body_keeps_its_kind(spoken: Spoken, raw: RawServer, body: bytes) -> None:
    failure = await failing(spoken, raw, whole(body, "500 Internal Server Error", kind="text/plain"))
    assert failure.kind == "server"


async def test_an_error_event_discards_the_reply(spoken: Spoken, raw: RawServer) -> None:
    failure = await failing(spoken, raw, [head(), *map(chunk, spoken.events[:3]), chunk(spoken.failing), END])
    assert (failure.kind, failure.retry) == ("overloaded", True)
    assert "overloaded_error" in str(failure)


async def test_an_error_as_a_plain_answer_is_read_too(spoken: Spoken, raw: RawServer) -> None:
    body = b'{"error": {"type": "overloaded_error", "message": "busy"}}'
    failure = await failing(spoken, raw, whole(body, kind="application/json"))
    assert failure.kind == "overloaded"


@pytest.mark.parametrize(
    ("wait", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("86400", 300.0), ("Fri, 01 Jan 2100 00:00:00 GMT", 300.0),
     ("Sat, 01 Jan 2000 00:00:00 GMT", 0.0), ("soon", None), ("-1", None), ("nan", None), ("", None)],
)  # fmt: skip
async def test_retry_after_is_read_and_clamped(
    spoken: Spoken, raw: RawServer, wait: str, seconds: float | None
) -> None:
    script = whole(b"", "429 Too Many Requests", extra=f"Retry-After: {wait}\r\n")
    failure = await failing(spoken, raw, script)
    assert failure.kind == "rate_limited"
    assert failure.retry_after_s == (None if seconds is None else pytest.approx(seconds, abs=0.1))


async def test_retry_after_counts_for_an_overload_too(spoken: Spoken, raw: RawServer) -> None:
    failure = await failing(spoken, raw, whole(b"", "529 Overloaded", extra="Retry-After: 11\r\n"))
    assert (failure.kind, failure.retry_after_s) == ("overloaded", 11.0)


async def test_an_endpoint_that_refuses_connections_is_a_connect_failure(spoken: Spoken) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with speaking(spoken, f"http://127.0.0.1:{closed.getsockname()[1]}") as models:
            with pytest.raises(ModelFailed) as caught:
                await ask(models)
    assert (caught.value.kind, caught.value.retry) == ("connect", True)
    assert_discreet(caught.value)


@asynccontextmanager
async def full_backlog() -> AsyncIterator[str]:
    """A port whose queue of connections is full, so that a new one gets no answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        clients = [socket.socket() for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        for client in clients:
            client.close()


async def test_a_host_that_does_not_answer_is_a_connect_time_out(spoken: Spoken) -> None:
    time_outs = msgspec.structs.replace(LONG, connect_s=0.2)
    async with full_backlog() as url, speaking(spoken, url, time_outs=time_outs) as models:
        with pytest.raises(ModelFailed) as caught:
            await ask(models)
    assert (caught.value.kind, caught.value.retry) == ("connect", True)
    assert "0.2 s" in str(caught.value)


async def test_a_host_without_tls_is_told_apart(spoken: Spoken) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, speaking(spoken, url) as models:
        with pytest.raises(ModelFailed, match="TLS") as caught:
            await ask(models)
    assert (caught.value.kind, caught.value.retry) == ("connect", False)
    assert_discreet(caught.value)


async def test_an_event_beyond_its_bound_is_refused(spoken: Spoken, raw: RawServer) -> None:
    huge = b"data: " + b"x" * (sse.EVENT_BYTES_MAX + 1)
    failure = await failing(spoken, raw, [head(), chunk(huge), "stall"])
    assert (failure.kind, failure.retry) == ("protocol", False)


async def test_an_answer_beyond_its_bound_is_refused(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [whole(b": nothing\n" * 2000 + spoken.stream)]
    async with speaking(spoken, raw.url, transport=transport.Transport(answer_bytes_max=10_000)) as models:
        with pytest.raises(ModelFailed) as caught:
            await ask(models)
    assert caught.value.kind == "protocol"


async def test_a_request_beyond_its_bound_is_not_sent(
    spoken: Spoken, raw: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "REQUEST_BYTES_MAX", 1000)
    raw.scripts = [whole(spoken.stream)]
    failure = await failing(spoken, raw, raw.scripts[0], request=msgspec.structs.replace(REQUEST, system="x" * 1001))
    assert (failure.kind, len(raw.seen)) == ("too_long", 0)


async def test_a_large_request_is_sent_whole(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [whole(spoken.stream)]
    async with speaking(spoken, raw.url) as models:
        await ask(models, msgspec.structs.replace(REQUEST, system="x" * (3 << 20)))
    assert len(raw.seen[0].body) > 3 << 20
    msgspec.json.decode(raw.seen[0].body)


async def test_a_cookie_and_a_proxy_of_the_environment_change_nothing(
    spoken: Spoken, raw: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    raw.scripts = [whole(spoken.stream, extra="Set-Cookie: who=me\r\n")]
    async with speaking(spoken, raw.url) as models:
        await ask(models)
        await ask(models)
    assert "cookie" not in raw.seen[1].headers


async def test_no_key_is_in_a_log_or_a_repr(spoken: Spoken, raw: RawServer, caplog: pytest.LogCaptureFixture) -> None:
    raw.scripts = [whole(b"", "401 Unauthorized"), whole(spoken.stream)]
    caplog.set_level(logging.DEBUG)
    async with speaking(spoken, raw.url, keys=(SECRET, "sk-secret-2"), headers={"X-Team": "sk-secret-3"}) as models:
        with pytest.raises(ModelFailed):
            await ask(models)
        await ask(models)
        shown = [repr(models), repr(models.endpoints()), repr(models.resolve("p:m-1")), repr(vars(models))]
    assert raw.seen[1].headers["x-team"] == "sk-secret-3"
    told = "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "model.key_refused" in told
    assert not any("sk-secret" in text for text in (*shown, told))


@pytest.mark.parametrize("base", ["", "/", "/v1", "/v1/", "/proxy/v3/x"])
async def test_a_base_url_may_name_its_version_or_not(spoken: Spoken, raw: RawServer, base: str) -> None:
    raw.scripts = [whole(spoken.stream)]
    async with speaking(spoken, raw.url + base) as models:
        await ask(models)
    expected = base.rstrip("/") if "v3" in base else "/v1"
    assert raw.seen[0].line == f"POST {expected}{spoken.path.removeprefix('/v1')} HTTP/1.1"


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://x/v1", "http://", "http://me:pw@x/v1", "http://x/v1?k=1", "http://x:99999", "http://[x/"]
)  # fmt: skip
async def test_a_base_url_that_cannot_be_one_is_refused_at_the_start(spoken: Spoken, url: str) -> None:
    with pytest.raises(Invalid, match="must look like"):
        async with speaking(spoken, url):
            pass


async def test_an_unknown_provider_is_invalid_and_the_known_ones_are_named(spoken: Spoken) -> None:
    async with speaking(spoken, "http://127.0.0.1:9") as models:
        for reference in ("q:m", "m", "", ":", "p:", "p"):
            with pytest.raises(Invalid, match="the providers here are p"):
                models.resolve(reference)
        assert models.resolve("p:llama3:8b")[1] == "llama3:8b"
        assert isinstance(models.endpoints()["p"], Endpoint)


async def test_a_request_of_large_and_small_pieces_arrives_whole(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [whole(spoken.stream)]
    body = [b"a", b"b" * 500_000, b"", b"c" * 70_000, *[b"d"] * 3000, b"e" * (128 << 10), b"f"]
    sender = transport.Transport()
    answer = await sender.post("p", f"{raw.url}/v1", headers={}, body=transport.Outgoing(body), time_outs=LONG)
    answer.close()
    await sender.close()
    assert raw.seen[0].body == b"".join(body)


async def test_nothing_is_sent_by_who_lost_the_right_to_it_while_it_was_connected(
    spoken: Spoken, raw: RawServer
) -> None:
    rights = [True, False, False]

    def may_send() -> None:
        if not rights.pop(0):
            raise LeaseLost

    raw.scripts = [whole(spoken.stream)]
    async with speaking(spoken, raw.url, time_outs=LONG) as models:
        await ask(models, may_send=may_send)
        for _ in range(2):  # on the connection that was kept, and on a new one
            with pytest.raises(ModelFailed) as caught:
                await ask(models, may_send=may_send)
            assert caught.value.retry
            assert_discreet(caught.value)
    assert (rights, len(raw.seen), raw.connections) == ([], 1, 2)

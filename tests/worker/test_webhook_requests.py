"""A request to a webhook: signed, to a public address alone, followed nowhere, and bounded whatever answers."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from tests.worker.receiver import Receiver, receiving

from sojourn.store.notices.deliveries import Delivery, Outcome
from sojourn.worker.notices import outgoing
from sojourn.worker.notices.outgoing import Outgoing

HERE = frozenset({"127.0.0.1"})


def message(url: str) -> Delivery:
    return Delivery(
        tenant="acme", id="msg_0123456789abcdef", webhook_id="whk_0123456789abcdef", url=url, type="run.failed",
        body='{"type":"run.failed"}', attempts=1, tries=1, sent_s=1, signature="v1,secret+signature",
    )  # fmt: skip


@pytest.fixture
def allowed() -> Iterator[Outgoing]:
    """Requests that may go to this machine."""
    out = Outgoing(http_allowed=True, hosts=HERE)
    yield out
    out.close()


@pytest.fixture
def strict() -> Iterator[Outgoing]:
    out = Outgoing(http_allowed=True, hosts=frozenset())
    yield out
    out.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@asynccontextmanager
async def speaking(said: bytes, *, again: bytes = b"") -> AsyncIterator[str]:
    """A server that says something to whoever connects, and then `again` for ever; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            while again:
                writer.write(again)
                await writer.drain()
            await reader.read()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


async def test_a_message_is_posted_with_its_headers_and_nothing_else_of_ours(
    allowed: Outgoing, receiver: Receiver
) -> None:
    assert await allowed.send(message(receiver.url)) == Outcome(status=204)
    ((headers, body),) = receiver.requests
    assert body == b'{"type":"run.failed"}'
    assert headers["webhook-id"] == "msg_0123456789abcdef" and headers["webhook-timestamp"] == "1"
    assert headers["webhook-signature"] == "v1,secret+signature" and headers["Content-Type"] == "application/json"
    assert not {"Authorization", "Cookie"} & headers.keys()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"],
)
async def test_this_machine_is_not_reached_by_any_of_its_names(strict: Outgoing, receiver: Receiver, host: str) -> None:
    outcome = await strict.send(message(receiver.url.replace("127.0.0.1", host)))
    assert outcome.error in ("the address is not allowed", "the URL cannot be used")
    assert receiver.requests == []


async def test_a_name_is_judged_by_the_address_that_it_leads_to_when_it_is_used(
    strict: Outgoing, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(receiver.url.split(":")[2].split("/")[0])
    asked: list[str] = []

    def rebound(host: str, *_: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    url = f"http://hooks.example.org:{port}/"
    assert await strict.send(message(url)) == Outcome(error="the address is not allowed")
    assert asked == ["hooks.example.org"] and receiver.requests == []
    listed = Outgoing(http_allowed=True, hosts=frozenset({"hooks.example.org"}))
    assert await listed.send(message(url)) == Outcome(status=204)
    listed.close()


async def test_plain_http_is_refused_where_it_was_allowed_before(receiver: Receiver) -> None:
    out = Outgoing(http_allowed=False, hosts=HERE)
    assert await out.send(message(receiver.url)) == Outcome(error="the URL is not allowed any more")
    out.close()
    assert receiver.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(allowed: Outgoing, receiver: Receiver, status: int) -> None:
    receiver.answer = lambda _: web.Response(status=status, headers={"Location": receiver.url + "/elsewhere"})
    assert await allowed.send(message(receiver.url)) == Outcome(status=status)
    assert len(receiver.requests) == 1


async def test_a_body_without_an_end_is_not_read(allowed: Outgoing) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"
    async with speaking(head, again=b"x" * 65536) as url, asyncio.timeout(60):
        assert await allowed.send(message(url)) == Outcome(status=200)


@pytest.mark.parametrize(
    ("said", "again"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\nX: ", b""),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["silent", "half a head", "only provisional answers"],
)
async def test_who_never_answers_is_given_up(
    allowed: Outgoing, said: bytes, again: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "TOTAL_S", 0.3)
    async with speaking(said, again=again) as url, asyncio.timeout(20):
        outcome = await allowed.send(message(url))
    assert outcome.status is None and outcome.error in ("no answer in time", "no answer that is HTTP")


@pytest.mark.parametrize("said", [b"220 mail ESMTP\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"])
async def test_what_is_no_answer_is_an_outcome(allowed: Outgoing, said: bytes) -> None:
    async with speaking(said) as url:
        assert await allowed.send(message(url)) == Outcome(error="no answer that is HTTP")


async def test_nobody_there_is_an_outcome(allowed: Outgoing, receiver: Receiver) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert await allowed.send(message(f"http://127.0.0.1:{port}/")) == Outcome(error="no connection")
    tls = receiver.url.replace("http:", "https:")
    assert (await allowed.send(message(tls))).error in ("the certificate is not accepted", "no connection")


async def test_no_log_line_holds_a_url_a_signature_or_a_body(
    allowed: Outgoing, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="sojourn"):
        await allowed.send(message(receiver.url + "?token=hidden"))
        await allowed.send(message("http://127.0.0.1:1/?token=hidden"))
    assert caplog.records
    for record in caplog.records:
        assert not any(word in str(vars(record)) for word in ("hidden", "secret+signature", '{"type'))

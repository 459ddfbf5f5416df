"""One HTTP session for all providers, and the one edge where network errors become ModelFailed.

The adapter posts through it and reads bytes. The rule: everything is bounded (four time-outs, the sizes of request and
answer), no redirect is followed with a key in hand, nothing is decompressed, closing an answer closes its connection.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from sojourn.models.model import Failure, ModelFailed, TimeOuts

REQUEST_BYTES_MAX = 64 << 20
ANSWER_BYTES_MAX = 64 << 20
ERROR_BYTES_MAX = 64 << 10
_DRAIN_S = 0.1
_KEEP_ALIVE_S = 4.0  # less than the 5 s after which common servers hang up
_PORTION_BYTES = 64 << 10
_STREAM = "text/event-stream"


class Outgoing(NamedTuple):
    """A request's body in pieces. `may_send` is asked with the connection at hand; where it raises, nothing is sent."""

    pieces: Sequence[bytes]
    may_send: Callable[[], None] = lambda: None


class Transport:
    """The shared session; it belongs to the event loop that first posts through it."""

    def __init__(self, *, answer_bytes_max: int = ANSWER_BYTES_MAX) -> None:
        self._answer_bytes_max = answer_bytes_max
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, provider: str, url: str, *, headers: Mapping[str, str], body: Outgoing, time_outs: TimeOuts
    ) -> "Answer":
        """Send one request and wait for the head of its answer. Raises ModelFailed."""
        if sum(map(len, body.pieces)) > REQUEST_BYTES_MAX:
            told = f"The request to '{provider}' is larger than {REQUEST_BYTES_MAX:,} bytes; shorten it."
            raise ModelFailed("too_long", told, retry=False)
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(time_outs.first_token_s, time_outs.total_s)):
                response = await self._send(url, headers=headers, body=body, connect_s=time_outs.connect_s)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # OSError holds TimeoutError
            failure = _before_the_answer(provider, error, time_outs=time_outs)
        else:
            return Answer(provider, response, time_outs=time_outs, started=started, bytes_max=self._answer_bytes_max)
        raise failure  # out here, so that no context is kept: aiohttp's errors carry the request's headers

    async def _send(
        self, url: str, *, headers: Mapping[str, str], body: Outgoing, connect_s: float
    ) -> aiohttp.ClientResponse:
        """Post, and post again when a connection that was kept from an earlier call turns out to be closed.

        llama.cpp promises to keep connections and hangs up after each stream. Each round uses up one kept connection.
        """
        session = self._open()
        while True:
            kept: list[bool] = []
            try:
                return await session.post(
                    url,
                    data=_Portions(body),
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, connect=connect_s),
                    trace_request_ctx=kept,
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not kept:
                    raise

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_connection_reuseconn.append(_note_kept)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"User-Agent": "sojourn", "Accept-Encoding": "identity", "Content-Type": "application/json"},
                trace_configs=[trace],
            )
        return self._session

    async def close(self) -> None:
        """Close every connection; streams that are open fail as interrupted."""
        if self._session is not None:
            await self._session.close()


class _Portions(Payload):
    """A request body that is written in portions and never put together, so that a long one holds up nothing."""

    _autoclose = True
    _value: Outgoing

    def __init__(self, body: Outgoing) -> None:
        super().__init__(body)
        self._size = sum(map(len, body.pieces))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._value.pieces).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._value.may_send()  # the head is buffered until the first portion
        written = 0
        for portion in _portions(self._value.pieces):
            if written:
                await asyncio.sleep(0)
            await writer.write(portion)
            written += len(portion)


def _portions(pieces: Sequence[bytes]) -> Iterator[memoryview]:
    """Join small pieces and cut large ones, so that no portion is larger than twice _PORTION_BYTES."""
    held: list[bytes] = []
    size = 0
    for place, piece in enumerate(pieces, 1):
        held.append(piece)
        size += len(piece)
        if size >= _PORTION_BYTES or place == len(pieces):
            joined = memoryview(b"".join(held))
            yield from (joined[start : start + 2 * _PORTION_BYTES] for start in range(0, size, 2 * _PORTION_BYTES))
            held, size = [], 0


class Answer:
    """The answer to one request: its head is here, its body comes in chunks, watched by one timer."""

    def __init__(
        self, provider: str, response: aiohttp.ClientResponse, *, time_outs: TimeOuts, started: float, bytes_max: int
    ) -> None:
        self._provider = provider
        self._response = response
        self._time_outs = time_outs
        self._bytes = 0
        self._bytes_max = bytes_max
        self._loop = asyncio.get_running_loop()
        self._total_at = started + time_outs.total_s
        self._phase: Failure = "first_token"
        self._limit_s = time_outs.first_token_s
        self._since: float | None = started  # since when we wait for the provider; None while it waits for us
        self._expired: Failure | None = None
        self._timer = self._loop.call_at(min(started + self._limit_s, self._total_at), self._look)

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    @property
    def streams(self) -> bool:
        """Tell whether the body is an event stream that we can read: nothing that we did not ask for unpacks itself."""
        kind = self.headers.get("Content-Type", _STREAM).partition(";")[0].strip().lower()
        return kind == _STREAM and self.headers.get("Content-Encoding", "identity").lower() == "identity"

    async def read(self) -> bytes:
        """Wait for the next bytes; empty at a clean end. Raises ModelFailed."""
        if self._since is None:
            self._since = self._loop.time()
        try:
            chunk = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            failure = self._while_reading(error)
        else:
            self._since = None
            if self._phase == "first_token":
                self._enter_idle()
            self._bytes += len(chunk)
            if self._bytes <= self._bytes_max:
                return chunk
            failure = self._failed("protocol", f"sent more than {self._bytes_max:,} bytes")
        raise failure

    async def read_error(self) -> bytes:
        """Read the first ERROR_BYTES_MAX of a refusal; what cannot be read does not matter beside its status."""
        body = b""
        try:
            while len(body) < ERROR_BYTES_MAX and (chunk := await self.read()):
                body += chunk
        except ModelFailed:
            pass
        return body[:ERROR_BYTES_MAX]

    async def drain(self) -> None:
        """Wait a moment for the end of a reply that is already whole, so that its connection can be used again."""
        content = self._response.content
        try:
            async with asyncio.timeout(_DRAIN_S):
                while not content.at_eof():
                    await content.readany()
        except (aiohttp.ClientError, OSError):
            return

    def close(self) -> None:
        """Give the connection back if the answer was read to its end, else close it."""
        self._timer.cancel()
        self._response.close()

    def _enter_idle(self) -> None:
        self._phase, self._limit_s = "idle", self._time_outs.idle_s
        self._timer.cancel()
        self._arm()

    def _arm(self) -> None:
        since = self._loop.time() if self._since is None else self._since
        self._timer = self._loop.call_at(min(since + self._limit_s, self._total_at), self._look)

    def _look(self) -> None:
        """Expire, or look again when the wait that is on now would be too long: a chunk costs no timer."""
        now = self._loop.time()
        if now >= self._total_at:
            self._expired = "total"
        elif self._since is not None and now >= self._since + self._limit_s:
            self._expired = self._phase
        else:
            return self._arm()
        self._response.close()  # wakes the reader with an error

    def _while_reading(self, error: Exception) -> ModelFailed:
        if self._expired:
            return _timed_out(self._provider, self._expired, time_outs=self._time_outs)
        return self._failed(
            "interrupted", f"broke off in the middle of its answer ({type(error).__name__})", retry=True
        )

    def _failed(self, kind: Failure, what: str, *, retry: bool = False) -> ModelFailed:
        return ModelFailed(kind, f"'{self._provider}' {what}.", retry=retry)


async def _note_kept(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
    context.trace_request_ctx.append(True)


def _before_the_answer(provider: str, error: Exception, *, time_outs: TimeOuts) -> ModelFailed:
    """Translate what went wrong before the head of the answer was here."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return _timed_out(provider, "connect", time_outs=time_outs)
        case TimeoutError():
            kind: Failure = "first_token" if time_outs.first_token_s <= time_outs.total_s else "total"
            return _timed_out(provider, kind, time_outs=time_outs)
        case aiohttp.ClientConnectorCertificateError() | ssl.SSLError() | aiohttp.ClientSSLError():
            told, kind, retry = "has a certificate that cannot be trusted, or speaks no TLS there", "connect", False
        case aiohttp.ClientConnectorDNSError():
            told, kind, retry = "has a host name that does not resolve", "connect", True
        case aiohttp.ClientConnectorError():
            told, kind, retry = f"does not accept connections ({type(error.os_error).__name__})", "connect", True
        case aiohttp.ClientResponseError() | ValueError():
            told, kind, retry = "does not answer in HTTP", "protocol", True
        case _:
            told, kind, retry = "hung up before it answered", "connect", True
    return ModelFailed(kind, f"'{provider}' {told}; check that its base URL is right and that it runs.", retry=retry)


def _timed_out(provider: str, kind: Failure, *, time_outs: TimeOuts) -> ModelFailed:
    told = {
        "connect": f"could not be connected to within {time_outs.connect_s:g} s",
        "first_token": f"sent nothing within {time_outs.first_token_s:g} s",
        "idle": f"fell silent for {time_outs.idle_s:g} s in the middle of its reply",
    }.get(kind, f"did not finish within {time_outs.total_s:g} s")
    return ModelFailed(kind, f"'{provider}' {told}.", retry=True)

"""One endpoint: takes a key, posts the request, reads the stream, hands out deltas and one message.

`Endpoints` makes one for each provider; the worker calls `stream`. The rule: one call is one attempt, and whatever
goes wrong in it leaves here as ModelFailed.
"""

import re
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

from sojourn.errors import Invalid
from sojourn.loop.messages import Message, Usage
from sojourn.models.dialect import Dialect, not_promised
from sojourn.models.kept import Kept
from sojourn.models.model import Delta, Endpoint, ModelFailed, Request
from sojourn.models.wire.failures import interrupted_by, problem, refused, retry_after_s
from sojourn.models.wire.keys import Key, Keys
from sojourn.models.wire.sse import Event, EventParser, EventTooLarge
from sojourn.models.wire.transport import Answer, Outgoing, Transport


class HttpModel:
    """A model port over HTTP; `dialects` are the plain one and that of requests whose tool_mode is json_schema."""

    def __init__(
        self, endpoint: Endpoint, dialects: tuple[Dialect, Dialect], *, transport: Transport, keys: Keys, kept: Kept
    ) -> None:
        self.provider = endpoint.name
        self.dialect = dialects[0].name
        self._endpoint = endpoint
        self._url = request_url(endpoint, dialects[0].path)
        self._dialects = dialects
        self._transport = transport
        self._keys = keys
        self._kept = kept

    async def stream(
        self,
        request: Request,
        *,
        message_id: str,
        run: object | None = None,
        may_send: Callable[[], None] = lambda: None,
        told: Callable[[Usage], None] = lambda _: None,
    ) -> AsyncIterator[Delta | Message]:
        """Make one attempt; see the port."""
        forced = "json_schema" in (request.tool_mode, self._endpoint.tool_mode) and bool(request.tools)
        dialect = self._dialects[forced]
        reply = dialect.reply(request, self.provider, message_id=message_id)
        answer = await self._ask(dialect, Outgoing(dialect.body(request, self._endpoint, self._kept.of(run)), may_send))
        del request  # its images and files are no more needed
        try:
            parser, known = EventParser(), None
            while not reply.done and (chunk := await answer.read()):
                for event in self._events(parser, chunk):
                    deltas = reply.feed(event.data)
                    if reply.told is not known and (known := reply.told):
                        told(known)
                    for delta in deltas:
                        yield delta
            message = reply.message()
            await answer.drain()
            yield message
        finally:
            answer.close()

    def _events(self, parser: EventParser, chunk: bytes) -> list[Event]:
        try:
            return parser.feed(chunk)
        except EventTooLarge as error:
            raise ModelFailed("protocol", f"'{self.provider}': {error}.", retry=False) from None

    async def _ask(self, dialect: Dialect, body: Outgoing) -> Answer:
        """Post the request; returns an answer that streams. Raises ModelFailed."""
        key = self._keys.take()
        headers = dialect.headers(key.secret if key else None) | self._endpoint.headers
        answer = await self._transport.post(
            self.provider, self._url, headers=headers, body=body, time_outs=self._endpoint.time_outs
        )
        if answer.status == 200 and answer.streams:
            return answer
        try:
            failure = self._refusal(answer, await answer.read_error(), key=key)
            failure.refused = answer.status != 200
            raise failure
        finally:
            answer.close()

    def _refusal(self, answer: Answer, body: bytes, *, key: Key | None) -> ModelFailed:
        """Translate an answer that is not a stream, and tell the keys how this one fared."""
        status = answer.status
        if status == 200:
            found = problem(body)
            if found.message or found.type:
                return interrupted_by(self.provider, found)
            return not_promised(self.provider, "answered with something that is not an event stream")
        if status in (401, 403):
            return self._keys.refuse(key, status)
        failure = refused(self.provider, status, body=body)
        failure.retry_after_s = retry_after_s(answer.headers)
        if failure.kind == "rate_limited":
            failure.retry_after_s = self._keys.cool(key, failure.retry_after_s)
        return failure


def request_url(endpoint: Endpoint, path: str) -> str:
    """Complete a base URL, with or without its version: `/v1` is put in where no part looks like a version.

    Raises Invalid for one that is no HTTP URL, or that carries a password or a query.
    """
    base = endpoint.base_url.strip().rstrip("/")
    try:
        parts = urlsplit(base)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.query or parts.fragment:
        raise Invalid(f"The base URL of provider '{endpoint.name}' must look like https://host[:port][/path].")
    if parts.path.endswith(f"/{path}"):
        return base
    versioned = any(re.match(r"v\d", part) for part in parts.path.split("/"))
    return f"{base}/{path}" if versioned else f"{base}/v1/{path}"

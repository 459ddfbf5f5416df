"""The simulated endpoint: one model request from its bytes to its log line, in either dialect.

The server routes `POST /v1/chat/completions` and `POST /v1/messages` here. The rule: whatever happens to a request, its
entry in the log is closed with how it ended and what it cost.
"""

from hashlib import blake2b
from types import ModuleType

import msgspec
from aiohttp import web

from sojourn.models.simulator import anthropic, openai
from sojourn.models.simulator.asked import Asked, Cue, Dialect, Dice, Rejection
from sojourn.models.simulator.ledger import Entry, PromptCache, Recent, RequestLog, bill
from sojourn.models.simulator.player import Player, Show
from sojourn.models.simulator.replies import Director, resolve
from sojourn.models.simulator.script import ErrorEvent, Fault, Script, Status, TooLong, Truncate

DIALECTS: dict[Dialect, ModuleType] = {"openai": openai, "anthropic": anthropic}
BODIES_REMEMBERED = 65_536
STILL = {"Server": "sojourn-simulator", "Date": "Wed, 01 Jan 2025 00:00:00 GMT"}
"""Headers that the HTTP server would otherwise fill with the time and its version."""


class Endpoint:
    """Plays one script: its counters, prompt cache and memory of bodies."""

    def __init__(self, script: Script, log: RequestLog) -> None:
        self.script = script
        self._log = log
        self._director = Director(script)
        self._cache = PromptCache(tokens_min=script.cache_tokens_min)
        self._bodies = Recent(BODIES_REMEMBERED)

    async def answer(self, request: web.Request, dialect: Dialect) -> web.StreamResponse:
        """Answer one request. A cancellation means that the client went."""
        api = DIALECTS[dialect]
        entry = self._log.open(dialect, api.key_of(request.headers))
        try:
            try:
                data = await request.read()
            except web.HTTPRequestEntityTooLarge:
                data = None
            digest = blake2b(data or b"", key=dialect.encode()).digest()
            entry.attempt = self._bodies.add(digest)
            dice = Dice(self.script.seed, digest, entry.attempt)
            entry.request_id = api.request_id(dice)
            try:
                return await self._perform(request, data, entry, dice)
            except Rejection as rejection:
                return _refusal(rejection, entry)
        finally:
            self._log.close(entry)

    async def _perform(self, request: web.Request, data: bytes | None, entry: Entry, dice: Dice) -> web.StreamResponse:
        """Give the reply that the script, or a built-in model, has for this request. Raises Rejection."""
        api = DIALECTS[entry.dialect]
        key = api.key_of(request.headers)
        if self.script.keys and key not in self.script.keys:
            raise Rejection(401)
        if data is None:
            raise Rejection(413)
        entry.body = msgspec.Raw(data) if self._log.keep_bodies else None
        asked: Asked = api.read(data, request.headers, self.script)
        asked.key, asked.attempt = key, entry.attempt
        entry.note(asked)
        fault = self._director.fault(asked, dice)
        entry.fault = fault.kind if fault else ""
        _refuse(fault, asked, self.script)
        show = self._show(asked, entry, fault, dice)
        if fault:
            show.strike(fault, dice, api.error_event)
        return await _play(Player(request, show, dice), entry, stream=asked.stream)

    def _show(self, asked: Asked, entry: Entry, fault: Fault | None, dice: Dice) -> Show:
        """Decide the reply, charge for it and render it."""
        api = DIALECTS[asked.dialect]
        reply, entry.rule = self._director.reply(asked)
        said = resolve(reply, asked, dice, pacing=self.script.pacing, truncate=isinstance(fault, Truncate))
        entry.response_id = said.id
        entry.usage = bill(asked, said, self._cache.charge(asked))
        if asked.stream:
            return Show(api.events(said, asked, entry.usage, self.script), said.pacing)
        body = api.whole(said, asked, entry.usage, self.script)
        half = len(body) // 2
        return Show([Cue(body[:half], said.tokens), Cue(body[half:], tells=True)], said.pacing)


def _refuse(fault: Fault | None, asked: Asked, script: Script) -> None:
    """Raise the Rejection of a fault that is an HTTP error, or of a prompt that does not fit."""
    match fault:
        case Status(retry_after=retry_after):
            wait = f"{retry_after:g}" if isinstance(retry_after, int | float) else retry_after
            raise Rejection(fault.status, fault.message, code=fault.code, retry_after=wait)
        case TooLong():
            raise DIALECTS[asked.dialect].too_long(asked, asked.prompt.tokens - 1)
        case ErrorEvent() if not asked.stream:
            raise Rejection(529, fault.message, code=fault.code)
    if script.context_tokens_max is not None and asked.prompt.tokens > script.context_tokens_max:
        raise DIALECTS[asked.dialect].too_long(asked, script.context_tokens_max)


def _refusal(rejection: Rejection, entry: Entry) -> web.Response:
    """Answer with the dialect's error body."""
    api = DIALECTS[entry.dialect]
    entry.status, entry.outcome = rejection.status, "refused"
    headers = STILL | {"Content-Type": "application/json"} | api.headers(entry.request_id)
    if rejection.retry_after is not None:
        headers["Retry-After"] = rejection.retry_after
    return web.Response(status=rejection.status, body=api.error_body(rejection, entry.request_id), headers=headers)


async def _play(player: Player, entry: Entry, *, stream: bool) -> web.StreamResponse:
    """Play the reply and note how far it came."""
    kind = "text/event-stream; charset=utf-8" if stream else "application/json"
    headers = STILL | {"Content-Type": kind, "Cache-Control": "no-cache"}
    response = web.StreamResponse(headers=headers | DIALECTS[entry.dialect].headers(entry.request_id))
    try:
        await player.play(response)
        entry.outcome = "failed" if player.broken else "finished"
    except ConnectionError:
        pass
    finally:
        entry.told = player.told
        if not entry.told and entry.outcome != "finished":
            entry.usage = msgspec.structs.replace(entry.usage, output=player.sent_tokens)
    return response

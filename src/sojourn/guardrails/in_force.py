"""The guardrails in force, of all tenants, as this process knows them.

`wiring` opens one, the API and the worker ask it. The rules: asking waits for no database; a change is known within a
second of its commit, by the doorbell or by looking; and a text that takes long is judged beside the event loop.
"""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from sojourn.errors import StoreUnavailable
from sojourn.guardrails.judging import EMPTY, Judged, Named, Ruleset
from sojourn.guardrails.policies.cedar import installed
from sojourn.guardrails.policies.engine import Origin
from sojourn.guardrails.rules import On
from sojourn.loop.messages import File as Document
from sojourn.loop.messages import Image, Message, Native, Part, Reasoning, Text, ToolCall
from sojourn.store import guardrails as store
from sojourn.store.db import Database
from sojourn.store.doorbell import Doorbell, Subscription

log = logging.getLogger("sojourn.guardrails")

BELL = "sojourn_guardrail"
POLL_S = 0.5
OVERLAP = timedelta(seconds=120)
"""A change is read again for so long: one that was made earlier may have been committed later."""
INLINE_MAX = 2_000_000
"""Instructions times characters that are judged on the spot: a few milliseconds, in the worst case 20."""
THREADS = 2


class InForce:
    """What is in force; used as an async context manager."""

    def __init__(self, database: Database, doorbell: Doorbell, *, poll_s: float = POLL_S) -> None:
        self._database, self._doorbell, self._poll_s = database, doorbell, poll_s
        self.engine = installed()
        self._known: dict[str, dict[str, store.Latest]] = {}
        """By tenant and name; the operator's under EVERYBODY."""
        self._ready: dict[str, Ruleset] = {}
        self._read_to: datetime | None = None
        self._reading = asyncio.Lock()
        self._stack = ExitStack()
        self._threads = ThreadPoolExecutor(THREADS, "guardrails")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        ear = self._stack.enter_context(self._doorbell.subscribe(BELL))
        await self.refresh()
        self._task = asyncio.create_task(self._listen(ear), name="guardrails")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._stack.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def refresh(self) -> None:
        """Read what has changed. Raises StoreUnavailable."""
        async with self._reading:
            since = self._read_to - OVERLAP if self._read_to is not None else None
            self._read_to, changed = await store.changes(self._database, since)
            for one in changed:
                of_tenant = self._known.setdefault(one.tenant, {})
                if one.name not in of_tenant or of_tenant[one.name].version < one.version:
                    of_tenant[one.name] = one
                    self._forget(one.tenant)

    def _forget(self, tenant: str) -> None:
        if tenant == store.EVERYBODY:
            self._ready.clear()
        else:
            self._ready.pop(tenant, None)

    async def _listen(self, ear: Subscription) -> None:
        away = False
        while True:
            await ear.wait(self._poll_s)
            try:
                await self.refresh()
                away = False
            except StoreUnavailable as error:
                if not away:
                    log.warning("guardrails.store_away", extra={"detail": str(error)})
                away = True
            except Exception:
                log.exception("guardrails.bug")

    # ---- asking ----

    def of(self, tenant: str) -> Ruleset:
        """The rules that a tenant's runs are judged by now."""
        found = self._ready.get(tenant)
        if found is None:
            own, operators = self._known.get(tenant), self._known.get(store.EVERYBODY)
            if not own and not operators:
                return EMPTY
            named = [*_named(operators or {}, operator=True), *_named(own or {}, operator=False)]
            found = Ruleset(named, self.engine) if named else EMPTY
            if named:
                self._ready[tenant] = found
        return found

    async def text(self, tenant: str, on: On, text: str) -> Judged:
        """Judge what is said, or what came back."""
        rules = self.of(tenant)
        return await self._judged(partial(rules.text, on, text), rules.cost(on) * len(text))

    async def call(self, tool: str, args: str, *, effect: str, origin: Origin) -> Judged:
        """Judge a call."""
        rules = self.of(origin.tenant)
        ask = partial(rules.call, tool, args, effect=effect, origin=origin)
        return await self._judged(ask, rules.cost("tool_arguments") * len(args))

    async def message(self, tenant: str, on: On, message: Message) -> tuple[Message, Judged]:
        """Judge a message, all its words as one text; where they are redacted they become one part.

        What else holds text (reasoning, items of a dialect) cannot be changed, so that it goes as a whole.
        """
        judged = await self.text(tenant, on, message.text)
        kept, beside = [], list[Judged]()
        for part in message.parts:
            seen = await self.text(tenant, on, _beside(part))
            beside.append(seen)
            if seen.verdict == "pass":
                kept.append(part)
        if judged.verdict == "redact":
            place = next(i for i, part in enumerate(kept) if isinstance(part, Text))
            rest = [part for part in kept[place:] if not isinstance(part, Text)]
            kept = [*kept[:place], Text(judged.text), *rest]
        found = tuple(dict.fromkeys(one for judged in (judged, *beside) for one in judged.found))
        return replace(message, parts=tuple(kept)), Judged(judged.text, found)

    async def _judged(self, ask: "partial[Judged]", cost: int) -> Judged:
        if cost <= INLINE_MAX:
            return ask()
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)


def _beside(part: Part) -> str:
    """The text of a part that is neither words nor a call."""
    match part:
        case Reasoning(text=text) | Native(data=text):
            return text
        case Document(name=name):
            return name
        case Text() | ToolCall() | Image():
            return ""
    return part.text


def _named(found: Mapping[str, store.Latest], *, operator: bool) -> list[Named]:
    return [Named(one.name, one.version, one.spec, operator) for one in found.values() if one.spec is not None]

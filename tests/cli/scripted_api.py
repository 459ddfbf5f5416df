"""A server that speaks the API on a real socket, with answers that a test wrote and a log of what was asked."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

AT = "2026-03-01T12:00:00Z"
FINAL = ("completed", "failed", "cancelled")
Answer = Any | Callable[["Seen"], Any]


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Problem(Exception):
    """An answer that refuses."""

    def __init__(self, status: int, code: str, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail, **more}


@dataclass
class Run:
    """A run that a test drives: what has happened, and what is on the wire just now."""

    id: str
    status: str = "running"
    output: str | None = None
    waits: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    streams: set[web.StreamResponse] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    deltas: list[dict[str, Any]] = field(default_factory=list)

    def event(self, type_: str, /, **data: Any) -> None:
        """Let something durable happen."""
        self.events.append({"seq": len(self.events) + 1, "type": type_, "at": AT, **data})
        if type_.removeprefix("run.") in FINAL:
            self.status = type_.removeprefix("run.")
        self._wake()

    def ask(self, **wait: Any) -> None:
        """Let it ask something, and wait for the answer."""
        self.waits.append({"path": "/", "call": None, "created_at": AT, **wait})
        self.event("approval.requested", **{"frame": "/", "call": None, "display": "", **wait, "wait": wait["id"]})

    def delta(self, kind: str, /, **data: Any) -> None:
        """Let a piece of a stream pass by, for those who listen now."""
        place = {"frame": "/", "step": 1, "attempt": 1}
        self.deltas.append({"type": f"delta.{kind}", "after": len(self.events), **place, **data})
        self._wake()

    def finish(self, text: str, **data: Any) -> None:
        self.output = text
        self.event("agent.message", text=text, frame="/", step=1, **data)
        self.event("run.completed")

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def document(self) -> dict[str, Any]:
        return {
            "id": self.id, "object": "run", "status": self.status, "session_id": "ses_1", "user_id": "local",
            "agent": {"name": "inline", "version": 0, "digest": "sha256:0"}, "input": "the goal", "output": self.output,
            "error": None, "waits": self.waits, "steps": 2, "limits": {}, "labels": {}, "rev": len(self.events),
            "usage": {"input_tokens": 1000, "cache_read_tokens": 234, "cache_write_tokens": 0, "output_tokens": 56},
            "cost": {"usd": "0.001234"}, "created_at": AT, "started_at": AT,
            "finished_at": "2026-03-01T12:00:41Z" if self.status in FINAL else None,
        }  # fmt: skip


def page(*objects: object) -> dict[str, object]:
    """A list of the API."""
    return {"data": list(objects), "has_more": False, "next": None}


class ScriptedApi:
    """The server. `answers` maps "METHOD /path" to a JSON value, or to a function that makes one of the request."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.seen: list[Seen] = []
        self.runs: dict[str, Run] = {}
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, run_id: str = "run_1", **fields: Any) -> Run:
        """Let there be a run."""
        self.runs[run_id] = Run(run_id, **fields)
        self.answers["POST /v1/runs"] = {"run_id": run_id, "session_id": "ses_1", "status": "queued"}
        return self.runs[run_id]

    def asked(self, line: str) -> list[Seen]:
        """Give the requests for "METHOD /path"."""
        return [one for one in self.seen if f"{one.method} {one.path}" == line]

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 25)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Go away as a killed process does: open streams break."""
        self.cut()
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def cut(self) -> None:
        """Break every open stream without a farewell."""
        for run in self.runs.values():
            for stream in run.streams:
                if stream._req is not None and stream._req.transport is not None:
                    stream._req.transport.abort()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.method, request.path, dict(request.query), dict(request.headers), await request.read())
        self.seen.append(seen)
        parts = request.path.split("/")
        try:
            if f"{seen.method} {seen.path}" not in self.answers and parts[:3] == ["", "v1", "runs"] and len(parts) > 3:
                return await self._run(request, parts)
            answer = self.answers[f"{seen.method} {seen.path}"]
            answer = answer(seen) if callable(answer) else answer
        except KeyError:
            return self._problem(Problem(404, "request.not_found", f"There is no {request.path}.", request_id="req_9"))
        except Problem as problem:
            return self._problem(problem)
        except ConnectionAbortedError:
            assert request.transport
            request.transport.abort()
            raise
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(body=answer) if isinstance(answer, bytes) else web.json_response(answer)

    def _problem(self, problem: Problem) -> web.Response:
        return web.json_response(problem.body, status=problem.status, content_type="application/problem+json")

    async def _run(self, request: web.Request, parts: list[str]) -> web.StreamResponse:
        run = self.runs[parts[3]]
        if request.method != "GET":
            raise KeyError(request.path)
        if len(parts) == 4:
            return web.json_response(run.document)
        after = int(request.query.get("after") or request.headers.get("Last-Event-ID") or 0)
        if "text/event-stream" in request.headers.get("Accept", ""):
            return await self._stream(request, run, after)
        limit = int(request.query.get("limit", "100"))
        page = run.events[after : after + limit]
        more = after + limit < len(run.events)
        return web.json_response({"data": page, "has_more": more, "next": page[-1]["seq"] if more else None})

    async def _stream(self, request: web.Request, run: Run, seq: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": hello\n\n")
        run.streams.add(response)
        told = len(run.deltas)
        try:
            running = [one for one in run.deltas if one["after"] == len(run.events) and one["type"] != "delta.reset"]
            if running and seq == len(run.events):
                place = {name: running[-1][name] for name in ("frame", "step", "attempt")}
                await response.write(f"event: delta.reset\ndata: {json.dumps(place)}\n\n".encode())
                for delta in [one for one in running if place.items() <= one.items()]:
                    await response.write(f"event: {delta['type']}\ndata: {json.dumps(delta)}\n\n".encode())
            while True:
                changed = run.changed
                for delta in [one for one in run.deltas[told:] if one["after"] <= seq]:
                    told += 1
                    await response.write(f"event: {delta['type']}\ndata: {json.dumps(delta)}\n\n".encode())
                if seq < len(run.events):
                    event = run.events[seq]
                    seq += 1
                    text = f"id: {event['seq']}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"
                    await response.write(text.encode())
                    continue
                if run.status in FINAL:
                    return response
                await changed.wait()
        finally:
            run.streams.discard(response)

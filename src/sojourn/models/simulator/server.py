"""The simulator as an HTTP server: the routes of both dialects, and the control routes under /_sim.

`Simulator` is what tests and benches use, `serve` what `sojourn simulate` and `python -m` run. The rule: it listens on
loopback unless it is told otherwise, because its control routes ask for no key.
"""

import asyncio
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from aiohttp import web

from sojourn.errors import Invalid
from sojourn.models.simulator.endpoint import DIALECTS, Endpoint
from sojourn.models.simulator.ledger import Entry, RequestLog
from sojourn.models.simulator.replies import BUILT_IN
from sojourn.models.simulator.script import Script, checked, load, parse

BODY_BYTES_MAX = 64 * 1024 * 1024
GRACE_S = 0.1
"""How long open streams may go on when the simulator closes."""
BACKLOG = 4_096
"""Connections that may wait to be accepted, so that a bench can open thousands at once."""


class Simulator:
    """A model endpoint of both dialects. `async with Simulator(script) as sim:` listens at `sim.url`."""

    def __init__(
        self,
        script: Script | Path | str | None = None,
        *,
        seed: int | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        log: RequestLog | None = None,
    ) -> None:
        """Take a script or the path of one; `seed` wins over the script's own. Raises Invalid."""
        self.log = log or RequestLog()
        self._seed = seed
        self._host, self._port = host, port
        self._runner: web.AppRunner | None = None
        self.load(script if isinstance(script, Script) else load(script) if script else Script())

    @property
    def url(self) -> str:
        """Where it listens; what ANTHROPIC_BASE_URL wants."""
        return f"http://{self._host}:{self._port}"

    @property
    def openai_url(self) -> str:
        """What OPENAI_BASE_URL wants."""
        return f"{self.url}/v1"

    def load(self, script: Script) -> None:
        """Take another script and forget counters and caches, but not the log. Raises Invalid."""
        seed = script.seed if self._seed is None else self._seed
        self._endpoint = Endpoint(msgspec.structs.replace(checked(script), seed=seed), self.log)

    def reset(self) -> None:
        """Forget counters, caches and the log."""
        self.load(self._endpoint.script)
        self.log.clear()

    def requests(self, **wanted: object) -> list[Entry]:
        """List the requests seen, oldest first, where every named field of the Entry has the wanted value."""
        return self.log.entries(**wanted)

    async def start(self) -> None:
        """Listen; port 0 becomes a free one. Raises Invalid when the address cannot be had."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_post("/v1/chat/completions", self._chat_completions)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/_sim/requests", self._list_requests)
        app.router.add_post("/_sim/script", self._load_script)
        app.router.add_post("/_sim/reset", self._reset)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=GRACE_S)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port, backlog=BACKLOG).start()
        except OSError as error:
            await self.close()
            raise Invalid(f"cannot listen on {self._host}:{self._port}: {error.strerror}; choose another") from None
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop; streams that are open break."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.log.close_file()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._endpoint.answer(request, "openai")

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        return await self._endpoint.answer(request, "anthropic")

    async def _models(self, request: web.Request) -> web.Response:
        """List the models of the script by name, and some of the built-in ones."""
        names = [rule.when.model for rule in self._endpoint.script.rules if rule.when.model]
        names = [name for name in dict.fromkeys(names) if not set(name) & set("*?[")]
        api = DIALECTS["anthropic" if "anthropic-version" in request.headers else "openai"]
        return web.Response(body=api.models([*names, *BUILT_IN]), content_type="application/json")

    async def _list_requests(self, request: web.Request) -> web.Response:
        """List logged requests; every query parameter but `after` (a seq) and `limit` is a field and its value."""
        wanted = dict(request.query)
        try:
            after, limit = int(wanted.pop("after", 0)), int(wanted.pop("limit", 1_000))
            entries = [
                entry
                for entry in self.log.entries()
                if entry.seq > after and all(str(getattr(entry, name)) == wanted[name] for name in wanted)
            ]
        except (ValueError, AttributeError) as error:
            return _json({"error": f"bad query: {error}"}, status=422)
        return _json({"requests": entries[:limit]})

    async def _load_script(self, request: web.Request) -> web.Response:
        """Load a script at run time: TOML, or JSON with its content type."""
        try:
            self.load(parse(await request.read(), toml="json" not in request.content_type))
        except Invalid as error:
            return _json({"error": str(error), "pointer": error.pointer}, status=422)
        script = self._endpoint.script
        return _json({"rules": len(script.rules), "faults": len(script.faults)})

    async def _reset(self, request: web.Request) -> web.Response:
        self.reset()
        return _json({})


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def serve(
    host: str = "127.0.0.1",
    port: int = 4010,
    *,
    script_path: Path | str | None = None,
    seed: int | None = None,
    log_path: Path | str | None = None,
) -> None:
    """Run a simulator until SIGTERM or SIGINT, and say on standard output where it listens. Raises Invalid."""
    log = RequestLog(path=log_path)
    async with Simulator(script_path, seed=seed, host=host, port=port, log=log) as simulator:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        print(f"simulator at {simulator.url}", f"OPENAI_BASE_URL={simulator.openai_url}", sep="\n")
        print(f"ANTHROPIC_BASE_URL={simulator.url}", flush=True)
        await stop.wait()

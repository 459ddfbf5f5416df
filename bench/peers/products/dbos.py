"""Pydantic AI with DBOS: an agent with the DBOSDurability capability inside a workflow of an HTTP application.

python -m bench.peers.products.dbos PLACE            the adapter
python -m bench.peers.products.dbos worker PLACE     the application: it takes requests and runs workflows
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, get_args

import msgspec
from aiohttp import web
from dbos import DBOS, DBOSClient, SetWorkflowID
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, RunContext
from pydantic_ai.durable_exec.dbos import DBOSDurability
from pydantic_ai.messages import ModelResponse, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.wrapper import WrapperModel

from bench.peers.adapter import Adapter, free_port, main, now
from bench.peers.verbs import Kind, Place

QUEUE = "runs"
WAIT_S = 3600.0
STATES = {"SUCCESS": "completed"}
SETUP = """\
One process that is HTTP application and worker, as DBOS is a library of the application: a request starts a workflow
in it, in which `agent.run` with the `DBOSDurability` capability makes every model request a step; `DBOSConfig` at its
defaults but for names, version and log level.
"""
NOTES = """\
- DBOS starts a run in the process that takes the request, so B1 has no hop to another process.
- DBOS records every model request. Its replies are read as streams inside that step, by a model of ours: an event
  handler, the integration's own way to stream, would make each event of a tool one more step. The tool is a plain
  function, which runs inside the workflow and is not recorded.
- DBOS keeps a workflow that waits for a person (`DBOS.recv`) in the worker's memory.
- DBOS recovers a worker's workflows when that worker starts again, which the second line of B5 measures. Another
  worker takes them over only where its Conductor, a service apart, tells it to: by its documentation after 60 s.
- DBOS is measured in B9 through its queue, from another process and at the queue's defaults: a look at the queue every
  second and no limit of concurrency. So nothing queues up, and the figure is the queue's delay, not its fairness.
- DBOS streams (B6) by `DBOS.write_stream` in the agent's event handler and `DBOS.read_stream` in a route of the
  application; each piece is a row of the database.
"""


class Streamed(WrapperModel):
    """A model whose replies are read as streams, also where nobody follows."""

    async def request(self, messages: Any, model_settings: Any, model_request_parameters: Any) -> ModelResponse:
        stream = self.wrapped.request_stream(messages, model_settings, model_request_parameters)
        async with stream as response:
            async for _ in response:
                pass
        return response.get()


async def _show(_: RunContext[None], events: AsyncIterable[Any]) -> None:
    """Write each piece of a reply to the workflow's stream."""
    async for event in events:
        match event:
            case PartStartEvent(part=TextPart(content=text)) | PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                await DBOS.write_stream_async("deltas", text)


def _agent(kind: str) -> Agent[None, Any]:
    agent: Agent[None, Any] = Agent(
        Streamed(OpenAIChatModel(kind)),
        name=kind,
        output_type=[str, DeferredToolRequests] if kind == "ask" else str,
        capabilities=[DBOSDurability(event_stream_handler=_show if kind == "ticks" else None)],
    )

    @agent.tool_plain(requires_approval=kind == "ask")
    def noop() -> str:
        return "done"

    return agent


def _application() -> web.Application:
    """Make agents, the workflow and its routes."""
    agents = {kind: _agent(kind) for kind in get_args(Kind)}

    @DBOS.workflow(name="work")
    async def work(run: str, kind: str) -> str:
        done = await agents[kind].run(f"bench {run}")
        while isinstance(done.output, DeferredToolRequests):
            await DBOS.set_event_async("state", "waiting")
            allowed = await DBOS.recv_async("decision", timeout_seconds=WAIT_S)
            results = DeferredToolResults(approvals={call.tool_call_id: allowed for call in done.output.approvals})
            done = await agents[kind].run(message_history=done.all_messages(), deferred_tool_results=results)
        return str(done.output)

    async def begin(request: web.Request) -> web.Response:
        body = await request.json()
        with SetWorkflowID(body["run"]):
            await DBOS.start_workflow_async(work, body["run"], body["kind"])
        return web.json_response({}, status=202)

    async def decide(request: web.Request) -> web.Response:
        await DBOS.send_async(request.match_info["run"], True, topic="decision")
        return web.json_response({}, status=202)

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for piece in DBOS.read_stream_async(request.match_info["run"], "deltas"):
            await response.write(f"data: {piece}\n\n".encode())
        return response

    async def up(_: web.Request) -> web.Response:
        return web.json_response({})

    application = web.Application()
    application.add_routes(
        [
            web.post("/runs", begin),
            web.post("/runs/{run}/decision", decide),
            web.get("/runs/{run}/stream", stream),
            web.get("/health", up),
        ]
    )
    return application


async def _work(place: Place) -> None:
    """Be the application: launch DBOS, then serve."""
    application = _application()
    DBOS(
        config={
            "name": "bench",
            "system_database_url": _url(place),
            "executor_id": os.environ["EXECUTOR"],
            "application_version": "1",
            "log_level": "WARNING",
        }
    )
    DBOS.launch()
    await DBOS.register_queue_async(QUEUE)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["PORT"]), backlog=1024).start()
    await asyncio.Event().wait()


def _url(place: Place) -> str:
    return place.database_url.replace("postgresql://", "postgresql+psycopg://")


class Dbos(Adapter):
    product = "Pydantic AI + DBOS"
    packages = ("dbos", "pydantic-ai-slim", "openai", "psycopg", "sqlalchemy")
    setup = SETUP
    notes = NOTES

    async def start(self) -> None:
        self.ports: dict[str, int] = {}
        await self.add_worker()
        self.client = DBOSClient(system_database_url=_url(self.place))

    async def add_worker(self, *, again: bool = False) -> None:
        name = "worker-1" if again or not self.ports else f"worker-{len(self.ports) + 1}"
        port = self.ports[name] = free_port()
        command = (sys.executable, "-m", __spec__.name, "worker", msgspec.json.encode(self.place).decode())
        env = {"EXECUTOR": name, "PORT": str(port)}
        worker = await self.spawn(command, log="worker", env=env, worker=True)
        self.url = f"http://127.0.0.1:{port}"
        await self.until_ready(worker, lambda: self.answers(f"{self.url}/health"))

    async def begin(self, run: str, kind: Kind, tenant: str) -> None:
        if kind == "slow" or tenant == "small":
            options: Any = {"queue_name": QUEUE, "workflow_name": "work", "workflow_id": run}
            await self.client.enqueue_async(options, run, kind)
            return
        async with self.http.post(f"{self.url}/runs", json={"run": run, "kind": kind}) as response:
            response.raise_for_status()

    async def state(self, run: str) -> str:
        handle: Any = await self.client.retrieve_workflow_async(run)
        status = (await handle.get_status()).status
        if status == "PENDING" and await self.client.get_event_async(run, "state", timeout_seconds=0):
            return "waiting"
        return STATES.get(status, status)

    async def decide(self, run: str) -> float:
        at = now()
        async with self.http.post(f"{self.url}/runs/{run}/decision") as response:
            response.raise_for_status()
        return at

    async def deltas(self, run: str) -> AsyncIterator[str]:
        await self.begin(run, "ticks", "big")
        async with self.http.get(f"{self.url}/runs/{run}/stream") as response:
            async for line in response.content:
                yield line.decode()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        asyncio.run(_work(msgspec.json.decode(sys.argv[2], type=Place)))
    else:
        main(Dbos)

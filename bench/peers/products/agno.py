"""Agno AgentOS: agents with checkpoints after each tool batch, and its durable job queue on PostgreSQL.

python -m bench.peers.products.agno PLACE            the adapter
python -m bench.peers.products.agno worker PLACE     a replica: it takes requests and runs agents
"""

import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any, get_args

import aiohttp
import msgspec
import uvicorn
from agno.agent import Agent
from agno.db.postgres import PostgresDb
from agno.job_queue import QueueConfig
from agno.models.openai import OpenAIChat
from agno.os import AgentOS
from agno.tools import tool

from bench.peers.adapter import Adapter, free_port, main, now
from bench.peers.verbs import Kind, Place

STATES = {"COMPLETED": "completed", "PAUSED": "waiting"}
SETUP = """\
One replica: `AgentOS` under uvicorn with `PostgresDb`, `QueueConfig(durable=True)` and `checkpoint="tool-batch"`, all
else at its defaults (32 runs at a time, one attempt); runs by `POST /agents/ID/runs` with `background=true`.
"""
NOTES = """\
- Agno's replica takes requests and runs agents in one process, so B1 has no hop to another process.
- Agno asks the model without streaming in a background run that nobody reads, so its replies come whole and not in 40
  pieces, except in B6.
- Agno gives a run one attempt by default: where its replica dies it ends as failed, by design, and nothing goes on.
  With more attempts a run begins anew from its input.
- Agno's stream (B6) is read from the replica that runs the agent, out of its memory.
- Agno's queue is in order of arrival; B9's second tenant is another `user_id`.
"""


@tool(name="noop")
def noop() -> str:
    """Nothing."""
    return "done"


@tool(name="noop", requires_confirmation=True)
def asked_noop() -> str:
    """Nothing."""
    return "done"


def _replica(place: Place) -> None:
    """Be one replica."""
    db = PostgresDb(db_url=place.database_url.replace("postgresql://", "postgresql+psycopg://"))
    agents = [
        Agent(
            id=kind,
            name=kind,
            model=OpenAIChat(id=kind),
            db=db,
            tools=[asked_noop if kind == "ask" else noop],
            telemetry=False,
        )
        for kind in get_args(Kind)
    ]
    system: Any = AgentOS(
        agents=agents, db=db, checkpoint="tool-batch", queue=QueueConfig(durable=True), telemetry=False
    )
    uvicorn.run(system.get_app(), host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")


class Agno(Adapter):
    product = "Agno AgentOS"
    packages = ("agno", "openai", "fastapi", "uvicorn", "sqlalchemy", "psycopg")
    setup = SETUP
    notes = NOTES
    lacks = {"restart": "a run whose replica died is failed, not continued"}

    async def start(self) -> None:
        self.names: dict[str, tuple[str, str]] = {}
        await self.add_worker()

    async def add_worker(self, *, again: bool = False) -> None:
        port = free_port()
        command = (sys.executable, "-m", __spec__.name, "worker", msgspec.json.encode(self.place).decode())
        env = {"PORT": str(port), "AGNO_TELEMETRY": "false"}
        worker = await self.spawn(command, log="worker", env=env, worker=True)
        self.url = f"http://127.0.0.1:{port}"
        await self.until_ready(worker, lambda: self.answers(f"{self.url}/health"))

    async def begin(self, run: str, kind: Kind, tenant: str) -> None:
        fields = {
            "message": f"bench {run}",
            "stream": "false",
            "background": "true",
            "session_id": run,
            "user_id": tenant,
        }
        async with self.http.post(f"{self.url}/agents/{kind}/runs", data=_form(fields)) as response:
            self.names[run] = kind, (await _answer(response))["run_id"]

    async def _run(self, run: str) -> Any:
        kind, run_id = self.names[run]
        url = f"{self.url}/agents/{kind}/runs/{run_id}"
        async with self.http.get(url, params={"session_id": run}) as response:
            return await _answer(response)

    async def state(self, run: str) -> str:
        status = (await self._run(run))["status"]
        return STATES.get(status, status)

    async def decide(self, run: str) -> float:
        tools = [tool | {"confirmed": True} for tool in (await self._run(run))["tools"]]
        kind, run_id = self.names[run]
        fields = {
            "tools": json.dumps(tools),
            "session_id": run,
            "stream": "false",
            "background": "true",
            "user_id": "big",
        }
        at = now()
        async with self.http.post(f"{self.url}/agents/{kind}/runs/{run_id}/continue", data=_form(fields)) as response:
            await _answer(response)
        return at

    async def deltas(self, run: str) -> AsyncIterator[str]:
        fields = {"message": f"bench {run}", "stream": "true", "background": "true", "session_id": run}
        async with self.http.post(f"{self.url}/agents/ticks/runs", data=_form(fields)) as response:
            async for line in response.content:
                yield line.decode()


def _form(fields: dict[str, str]) -> aiohttp.FormData:
    return aiohttp.FormData(fields, default_to_multipart=True)


async def _answer(response: aiohttp.ClientResponse) -> Any:
    text = await response.text()
    if not response.ok:
        raise RuntimeError(f"{response.status} {text}")
    return msgspec.json.decode(text)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        _replica(msgspec.json.decode(sys.argv[2], type=Place))
    else:
        main(Agno)

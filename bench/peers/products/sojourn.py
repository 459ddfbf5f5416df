"""Sojourn behind the same verbs as the others: an API process and one worker process, default settings."""

import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
from tests.installation import offer_tools

from bench.peers.adapter import Adapter, free_port, main, now
from bench.peers.verbs import Kind
from sojourn.store.db import connect
from sojourn.store.tenant import keys

NOOP = '''
from sojourn.tools.functions import tool

@tool(effect="read")
async def noop() -> str:
    """Nothing."""
    return "done"
'''
SETUP = """\
`sojourn serve --no-worker` and one `sojourn worker`, default settings but the log level; runs by `POST /v1/runs`.
"""


class Sojourn(Adapter):
    product = "Sojourn"
    packages = ("sojourn",)
    setup = SETUP

    async def start(self) -> None:
        self.names: dict[str, str] = {}
        tool = offer_tools(self.folder, NOOP, "noop")["PYTHONPATH"]
        self.env = {
            "SOJOURN_DATA_DIR": str(self.folder),
            "SOJOURN_DATABASE_URL": self.place.database_url,
            "SOJOURN_LOG_LEVEL": "warning",
            "SOJOURN_RATES_RUNS_USER": "1000000/1",
            "PYTHONPATH": tool,
        }
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        api = await self._sojourn("serve", "--no-worker", "--port", str(port), log="api")
        await self.until_ready(api, lambda: self.answers(f"{self.url}/readyz"))
        async with await connect(self.place.database_url) as database:
            small = await keys.bootstrap(database, tenant="small")
        big = (self.folder / "local.key").read_text().strip()
        self.keys = {"big": {"Authorization": f"Bearer {big}"}, "small": {"Authorization": f"Bearer {small}"}}
        await self.add_worker()

    async def _sojourn(self, *arguments: str, log: str, worker: bool = False) -> Any:
        return await self.spawn((sys.executable, "-m", "sojourn.cli", *arguments), log=log, env=self.env, worker=worker)

    async def add_worker(self, *, again: bool = False) -> None:
        count = len(self.workers) + 1

        async def counted() -> bool:
            async with self.http.get(f"{self.url}/metrics", headers=self.keys["big"]) as response:
                return f"sojourn_workers {count}" in (await response.text()).splitlines()

        await self.until_ready(await self._sojourn("worker", log="worker", worker=True), counted)

    async def begin(self, run: str, kind: Kind, tenant: str) -> None:
        policy: dict[str, Any] = {"otherwise": "ask"} if kind == "ask" else {"loop_guard": False}
        agent = {"model": f"openai:{kind}", "tools": ["noop"], "policy": policy}
        body = {"agent": agent, "input": f"bench {run}"}
        async with self.http.post(f"{self.url}/v1/runs", json=body, headers=self.keys[tenant]) as response:
            self.names[run] = (await _answer(response))["run_id"]

    async def _run(self, run: str) -> Any:
        async with self.http.get(f"{self.url}/v1/runs/{self.names[run]}", headers=self.keys["big"]) as response:
            return await _answer(response)

    async def state(self, run: str) -> str:
        status = (await self._run(run))["status"]
        return "waiting" if status == "suspended" else str(status)

    async def decide(self, run: str) -> float:
        (wait,) = (await self._run(run))["waits"]
        url = f"{self.url}/v1/approvals/{wait['approval']}"
        at = now()
        async with self.http.post(url, json={"decision": "approve"}, headers=self.keys["big"]) as response:
            await _answer(response)
        return at

    async def deltas(self, run: str) -> AsyncIterator[str]:
        await self.begin(run, "ticks", "big")
        headers = self.keys["big"] | {"Accept": "text/event-stream"}
        async with self.http.get(f"{self.url}/v1/runs/{self.names[run]}/events", headers=headers) as response:
            async for line in response.content:
                text = line.decode()
                yield text
                if text.startswith("event: run.completed"):
                    return


async def _answer(response: aiohttp.ClientResponse) -> Any:
    text = await response.text()
    if not response.ok:
        raise RuntimeError(f"{response.status} {text}")
    return msgspec.json.decode(text)


if __name__ == "__main__":
    main(Sojourn)

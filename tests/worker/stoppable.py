"""Runs in every state in which somebody may want them ended, in a company of real processes.

STATES   by name: what is asked for, and how the run stands once it is there
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from tests.conftest import until
from tests.worker.restarted import Company, asks, plays
from tests.worker.test_outside import running

from sojourn.models.simulator.script import Call, Pacing, Rule, When
from sojourn.store import embedded
from sojourn.store.db import Database, connect

SLEEP = "61.977"
SLOW = Pacing(first_token_s=0.0, tokens_per_s=2.0)
RULES = (
    Rule(when=When(model="talker", step=0), calls=(Call("charge", {"n": 1}),)),
    Rule(when=When(model="talker"), text="word " * 400, pacing=SLOW),
    *plays("stuck", (Call("shell", {"command": f"echo begun >> log; sleep {SLEEP}"}),)),
    *plays("hanging", (Call("hang", {}),)),
    *plays("charger", (Call("charge", {"n": 1}),)),
    Rule(when=When(model="boss", step=0), calls=(Call("digger", {"input": "dig"}),)),
    *plays("digger", (Call("charge", {"n": 1}),)),
    *plays("sleeper", (Call("sleep", {"seconds": 3600}),)),
    *plays("listener", (Call("wait_for_event", {"name": "news"}),)),
    Rule(text="all done"),
)


class State(NamedTuple):
    """How to bring a run there, and to see that it is."""

    body: dict[str, Any]
    there: Callable[[Company, str], Awaitable[object]]


async def _streams(here: Company, run_id: str) -> None:
    async with asyncio.timeout(60):
        while len(await here.of(run_id, "model.request_started")) < 2:  # noqa: ASYNC110 (its worker does it)
            await asyncio.sleep(0.02)
    await until(lambda: any(entry.outcome == "open" for entry in here.simulator.requests(model="talker")))


async def _hangs(here: Company, run_id: str) -> None:
    await until(lambda: here.done(run_id) == ["hang"])


async def _runs_a_command(here: Company, run_id: str) -> None:
    await here.begun(run_id)
    await until(lambda: running(SLEEP))


def _asks(kind: str) -> Callable[[Company, str], Awaitable[object]]:
    return lambda here, run_id: here.asked(run_id, kind)


STATES = {
    "its model speaks": State({"model": "openai:talker", "tools": ["charge"]}, _streams),
    "a command runs": State({"model": "openai:stuck", "tools": ["shell"]}, _runs_a_command),
    "a tool hangs": State({"model": "openai:hanging", "tools": ["hang"]}, _hangs),
    "it asks": State({"model": "openai:charger", "tools": ["charge"], "policy": asks("charge")}, _asks("approval")),
    "its sub-agent asks": State({"agent": "boss"}, _asks("approval")),
    "it sleeps": State({"model": "openai:sleeper", "tools": ["sleep"]}, _asks("timer")),
    "it listens": State({"model": "openai:listener", "tools": ["wait_for_event"]}, _asks("event")),
}


async def sub_agents(here: Company) -> None:
    """Make the agents that one of the states needs."""
    digger = {"name": "digger", "model": "openai:digger", "tools": ["charge"], "policy": asks("charge")}
    await here.post("/v1/agents", digger, expect=201)
    await here.post("/v1/agents", {"name": "boss", "model": "openai:boss", "tools": [{"agent": "digger"}]}, expect=201)


async def everywhere(here: Company) -> dict[str, str]:
    """A run in every state, by the name of the state."""

    async def bring(state: State) -> str:
        run_id = await here.run(**state.body, input="go")
        await state.there(here, run_id)
        return run_id

    return dict(zip(STATES, await asyncio.gather(*map(bring, STATES.values())), strict=True))


def left_by(here: Company) -> Iterator[str]:
    """What can be seen from outside of runs that were not ended."""
    yield from (f"an open stream of {one.model}" for one in here.simulator.requests() if one.outcome == "open")
    yield from ("a command that runs" for _ in range(1) if running(SLEEP))


@asynccontextmanager
async def database(here: Company) -> AsyncIterator[Database]:
    """The company's database, as another process of the machine opens it."""
    async with await embedded.start(here.data_dir) as cluster, await connect(cluster) as opened:
        yield opened

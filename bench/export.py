"""C1, C2: what it takes to export and to import a run of 200 turns in three nested frames, with 20 KB of files.

A caller in this process, the API in a second one, the embedded database. The exports that are imported are signed here,
each as another run.

    python -m bench.export [--small] [--json] [--rounds 60]
"""

import hashlib
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
import uvloop
from msgspec.structs import replace
from tests.installation import Installation

from bench.figure import Figure, chosen, report, spread
from bench.place import data_folder
from bench.thinker import Thinker
from sojourn.identity import seal
from sojourn.loop.agent import Agent, Tool, digest, ref
from sojourn.loop.budget import Spent
from sojourn.loop.continuation import Call, Continuation, Frame, Principal, ToolRef
from sojourn.loop.messages import Message, Source, Text, ToolCall, Usage, observed, said
from sojourn.loop.moving import document, reading
from sojourn.loop.step.waits import ask_frame

TURNS = (100, 60, 40)
"""Of the root and of the two frames below it."""
WORDS = ("the quick brown fox jumps over the lazy dog and runs on through the night, " * 30)[:2000]
AT = datetime(2026, 1, 1, tzinfo=UTC)
FILES = bytes(range(256)) * 80
WORKSPACE = "sha256:" + hashlib.sha256(FILES).hexdigest()


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    rounds: int = 60


def turns(count: int) -> tuple[Message, ...]:
    """A transcript of so many turns: 2 KB of reply and 2 KB of result each."""
    messages = [said("in", "go")]
    for step in range(count):
        request = ToolCall(f"call_{step}", "look", '{"path":"notes.txt"}')
        source, usage = Source("openai", "openai", "sim", f"resp_{step}"), Usage(input=900, output=500)
        parts = (Text(WORDS), request)
        messages.append(Message(id=f"m{step}", role="assistant", parts=parts, source=source, usage=usage))
        messages.append(observed(f"r{step}", f"call_{step}", WORDS))
    return tuple(messages)


def nested() -> tuple[Continuation, dict[str, Agent]]:
    """A run of three frames; the lowest one waits to be told to go on."""
    agents = [Agent(name="a0", models=("openai:sim",))]
    for level in range(1, len(TURNS)):
        tool = Tool(name="help", effect="read", executor="agent", agent=digest(agents[-1]))
        agents.append(Agent(name=f"a{level}", models=("openai:sim",), tools=(tool,)))
    agents.reverse()
    root = _frame(agents, 0, "/")
    spent = Spent(steps=sum(TURNS), usd_micros=1)
    where = {"run_id": "run_1", "tenant": "t", "session_id": "s", "principal": Principal("u")}
    whole = Continuation(**where, created_at=AT, updated_at=AT, spent=spent, rev=700, head="0" * 64, root=root)
    return whole, {digest(agent): agent for agent in agents}


def _frame(agents: list[Agent], level: int, id: str) -> Frame:
    frame = Frame(id=id, agent=ref(agents[level]), step=TURNS[level], messages=turns(TURNS[level]))
    if level + 1 == len(agents):
        return ask_frame(frame, "turns", at=AT, title="Go on?")
    uid, tool = f"{id.rstrip('/')}/{frame.step - 1}.0", agents[level].tools[0]
    bound = ToolRef(tool.name, digest(tool), tool.effect, tool.executor)
    child = _frame(agents, level + 1, uid)
    call = Call(uid=uid, provider_id="p", index=0, tool=bound, args="{}", state="authorized", child=child)
    return replace(frame, state="acting", calls=(call,))


async def measured(count: int, work: Callable[[int], Awaitable[object]]) -> list[float]:
    """The milliseconds that each round takes, but for the first few."""
    times = []
    for number in range(count + 5):
        began = time.perf_counter()
        await work(number)
        times.append((time.perf_counter() - began) * 1000)
    return times[5:]


async def bench(installation: Installation, rounds: int) -> list[Figure]:
    issuer, secret = seal.new()
    run, agents = nested()
    plain = document.Export(
        format="sojourn.continuation",
        version=1,
        exported_at=AT,
        issuer=issuer,
        continuation=run,
        agents=agents,
        workspace=WORKSPACE,
        blobs={WORKSPACE: document.blob_text(FILES)},
        sig="",
    )
    exports = [
        document.sealed(replace(plain, continuation=replace(run, run_id=f"run_{n}")), lambda b: seal.sign(secret, b))
        for n in range(rounds + 5)
    ]
    await installation.post("/v1/trust", {"issuer": issuer, "name": "bench"}, expect=201)
    made: list[str] = []

    async def bring(number: int) -> None:
        headers = {"Content-Type": "application/json"}
        async with installation.http.post("/v1/runs/import", data=exports[number], headers=headers) as response:
            made.append((await response.json())["run_id"])

    async def take(number: int) -> None:
        async with installation.http.get(f"/v1/runs/{made[number]}/continuation") as response:
            assert len(await response.read()) > len(exports[number]) - 2000

    async def check(number: int) -> None:
        opened = reading.opened(exports[number])
        seal.verify(opened.issuer, opened.sig, opened.signed)
        reading.whole(opened.plain)

    imports, takes = await measured(rounds, bring), await measured(rounds, take)
    alone = statistics.median(await measured(rounds, check))
    what = f"a run of {sum(TURNS)} turns, {len(exports[0]) / 1000:,.0f} KB"
    imported = spread("C2", f"import of {what}", "ms", imports)
    return [
        spread("C1", f"export of {what}", "ms", takes),
        replace(imported, floor=f"read and verify alone {alone:.1f}"),
    ]


async def main(sizes: Sizes) -> None:
    async with data_folder() as data_dir, Thinker() as thinker:
        installation = Installation(data_dir, thinker.url, {"SOJOURN_LOG_LEVEL": "warning"})
        try:
            await installation.start_api("--no-worker")
            report(await bench(installation, sizes.rounds))
        finally:
            await installation.stop()


if __name__ == "__main__":
    uvloop.run(main(chosen(__doc__, Sizes(), Sizes(rounds=3))))

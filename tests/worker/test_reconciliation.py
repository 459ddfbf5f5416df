"""The ledger against the simulator's own log of every request, through real processes: nothing is lost, nothing twice.

One run for each way in which a call can end; each has a model of its own, so that its requests are known by it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.conftest import until
from tests.installation import at
from tests.worker.restarted import Company, Follower

from sojourn.loop.messages import Usage
from sojourn.models.simulator import Simulator
from sojourn.models.simulator.ledger import Entry
from sojourn.models.simulator.script import Call, ErrorEvent, Pacing, Pattern, Reset, Rule, Script, Status, When
from sojourn.store.db import Database
from sojourn.store.roles import Dsns
from sojourn.store.rows import LedgerRow
from sojourn.store.tenant import keys, usage

LONG = " ".join(f"word{n:03}" for n in range(200))
SLOW = Pacing(tokens_per_s=25)
DIGS = 8
SCRIPT = Script(
    rules=(
        Rule(when=When(model="long", system="You keep the notes"), text="notes " * 40),
        *(
            Rule(
                when=When(model="long", tool="report" if n else "", result=Pattern(rf"\b{n - 1}\s*\Z") if n else None),
                text="because " * 250,
                calls=(Call("report", {"kb": n + 1}),),
            )
            for n in range(DIGS)
        ),
        Rule(
            when=When(model="boss", step=0), calls=(Call("scout", {"input": "look"}), Call("scout", {"input": "see"}))
        ),
        Rule(when=When(model="plain", step=0), calls=(Call("report", {"kb": 1}),)),
        *(
            Rule(when=When(model=model, nth=1), text=LONG, pacing=SLOW)
            for model in ("cancelled", "interrupted", "killed", "killed-claude")
        ),
        Rule(when=When(model="torn*"), text=LONG),
        Rule(text="all done"),
    ),
    faults=(
        Status(when=When(model="flaky", nth=1), status=500),
        Status(when=When(model="flaky", nth=1), status=429, retry_after=0.1),
        Reset(when=When(model="torn*"), after="half", times=2),
        ErrorEvent(when=When(model="spoilt"), after="half", code="invalid_request_error"),
        Status(when=When(model="gone"), status=404),
    ),
)
PRICES = "".join(
    f'[prices."{name}:*"]\ninput = 2.0\noutput = 8.0\ncache_read = 0.5\n' for name in ("openai", "anthropic")
)
WINDOWS = '[windows]\n"openai:long" = 6000\n'
SCOUT = {"name": "scout", "model": "openai:scout"}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"model": "openai:plain", "tools": ["report"]},
    "flaky": {"model": "openai:flaky"},
    "torn": {"model": "openai:torn"},
    "torn-claude": {"model": "anthropic:torn-claude"},
    "spoilt": {"models": ["openai:spoilt", "openai:gone", "openai:spare"]},
    "boss": {"model": "openai:boss", "tools": [{"agent": "scout"}]},
    "long": {"model": "openai:long", "system": "Dig.", "tools": ["report"]},
    "cancelled": {"model": "openai:cancelled"},
    "interrupted": {"model": "openai:interrupted"},
}


@asynccontextmanager
async def company(data_dir: Path, dsns: Dsns) -> AsyncIterator[Company]:
    """An installation over a database that the test reads, too."""
    (data_dir / "sojourn.toml").write_text(PRICES + WINDOWS)
    async with Simulator(SCRIPT) as simulator:
        made = Company(data_dir, simulator, **at(dsns))
        try:
            await made.start_api("--no-worker")
            await made.start_worker()
            yield made
        finally:
            await made.stop()


async def heard(here: Company, run_id: str, chars: int = 80) -> None:
    """Wait until a reader of the run was shown so much of its reply."""
    follower = Follower(here, run_id)
    reading = asyncio.create_task(follower.read("run.completed"))
    await until(lambda: len("".join(follower.said())) >= chars or reading.done(), 60)
    reading.cancel()


async def paid(here: Company, database: Database, run_id: str) -> list[LedgerRow]:
    principal = await keys.authenticate(database, (here.data_dir / "local.key").read_text().strip())
    async with database.scoped(principal.handle) as conn:
        return await usage.ledger(conn, run_id)


def reconcile(entries: list[Entry], rows: list[LedgerRow]) -> None:
    """Hold a run's rows against the requests that it made."""
    told = [entry for entry in entries if entry.outcome == "finished"]
    cut = [entry for entry in entries if entry.outcome in ("aborted", "failed")]
    assert sorted(map(counts, (entry.usage for entry in told))) == sorted(
        counts(row.usage) for row in rows if not row.estimated
    ), "a whole reply is in the ledger as it was counted"
    guesses = sorted((row for row in rows if row.estimated), key=lambda row: row.at)
    assert len(guesses) == len(cut), "one that was cut is in it once, and what was refused is not"
    for entry, row in zip(cut, guesses, strict=True):
        assert 0 <= row.usage.output <= entry.usage.output + 1, (
            "no more than was sent; the last piece may be on its way"
        )
        assert 0 < row.usage.prompt < 20 * entry.usage.prompt + 100
    assert all(row.usd_micros is not None for row in rows)


def counts(used: Usage) -> tuple[int, ...]:
    return used.input, used.cache_read, used.cache_write, used.output


async def test_the_ledger_is_what_the_provider_counted(data_dir: Path, dsns: Dsns, database: Database) -> None:
    async with company(data_dir, dsns) as here:
        await here.post("/v1/agents", SCOUT, expect=201)
        made = {name: await here.run(**body, input="go") for name, body in RUNS.items()}
        await asyncio.gather(*(heard(here, made[name]) for name in ("cancelled", "interrupted")))
        await here.post(f"/v1/runs/{made['cancelled']}/cancel", {})
        await here.post(f"/v1/runs/{made['interrupted']}/messages", {"input": "wait", "interrupt": True})
        for run_id in made.values():
            await here.until(run_id)
        made |= {name: await here.run(model=f"{provider}:{name}", input="go") for provider, name in KILLED}
        await asyncio.gather(*(heard(here, made[name]) for _, name in KILLED))
        await here.restart()
        runs = {name: await here.until(run_id) for name, run_id in made.items()}
        ends = {name: run["status"] for name, run in runs.items()}
        assert ends == {name: "cancelled" if name == "cancelled" else "completed" for name in ends}, here.tail()
        await until(lambda: all(entry.outcome != "open" for entry in here.simulator.requests()))
        ledger = {name: await paid(here, database, run_id) for name, run_id in made.items()}
        everything = await here.get("/v1/usage?by=agent,model")
        events = {name: await here.events(run_id) for name, run_id in made.items()}
    models = {name: {row.model for row in rows} | {name} for name, rows in ledger.items()}
    for name, rows in ledger.items():
        entries = [entry for entry in here.simulator.requests() if entry.model in models[name]]
        reconcile(entries, rows)
        run, end = runs[name], events[name][-1]
        assert run["cost"] == end["cost"] and run["usage"] == end["usage"] and run["steps"] == end.get("steps", 0), name
        assert run["cost"].get("estimated", False) == any(row.estimated for row in rows), name
        assert micros(run["cost"]["usd"]) == sum(row.usd_micros or 0 for row in rows), name
        assert run["usage"]["input_tokens"] == sum(row.usage.input for row in rows), name
        assert run["usage"]["output_tokens"] == sum(row.usage.output for row in rows), name
    rows = [row for some in ledger.values() for row in some]
    assert everything["total"]["calls"] == len(rows)
    assert micros(everything["total"]["cost"]["usd"]) == sum(row.usd_micros or 0 for row in rows)
    seen = {name: sum(row.usage.output for row in ledger[name] if row.estimated) for name in ledger}
    assert all(seen[name] > 0 for name in ("torn", "torn-claude", "spoilt", "cancelled", "interrupted", "killed"))
    exact = next(row for row in ledger["torn-claude"] if row.estimated)
    assert exact.usage.prompt == here.simulator.requests(model="torn-claude")[0].usage.prompt, (
        "the provider had said it"
    )
    assert any(event.get("usage") for event in events["long"] if event["type"] == "context.compacted"), (
        "notes were paid"
    )


KILLED = (("openai", "killed"), ("anthropic", "killed-claude"))


def micros(usd: str) -> int:
    return round(float(usd) * 10**6)

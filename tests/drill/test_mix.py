"""Everything at once: kills, stops, cuts, deploys and database restarts while callers start runs and follow them.

Each caller starts a run at whichever API answers, lets two readers follow it, one from each API, and answers for calls
whose outcome is unknown. `make drill` runs a thousand and writes docs/operate/drill.md; SOJOURN_DRILL_SEED is the dice.
"""

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.drill.faults import TABLE, Fault, decks
from tests.drill.fleet import Fleet, fleet
from tests.drill.orders import AGENT, check_effects, check_journal, check_sessions, counted, look
from tests.drill.page import Figures, pause_s, write
from tests.stream_reader import Reader

FULL = os.environ.get("SOJOURN_DRILL") == "full"
RUNS, DECKS, CALLERS = (1000, 25, 24) if FULL else (40, 1, 12)
SIDES = 3
"""Faults at a time."""
SEED = int(os.environ.get("SOJOURN_DRILL_SEED", "5"))
ANSWER_S, RUN_S = 10.0, 300.0
ENDED = ("completed", "failed", "cancelled")
GAPS = """
select run.id from run left join journal on journal.tenant = run.tenant and journal.run_id = run.id
group by run.tenant, run.id having count(*) <> run.seq or max(journal.seq) <> run.seq
"""


class Drill:
    """A fleet in trouble, and its callers."""

    def __init__(self, fleet: Fleet, effects: Path, http: aiohttp.ClientSession) -> None:
        self.fleet, self.effects, self.http = fleet, effects, http
        self.ended: list[Any] = []
        self.readers: list[Reader] = []
        self.faults: Counter[str] = Counter()
        self.log: list[str] = []
        self.began_s = time.monotonic()
        self.started = 0
        self.calm = asyncio.Event()

    async def run(self) -> None:
        """Deal faults and have runs, until there were enough of both and every run has ended."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.trouble())
            for number in range(CALLERS):
                group.create_task(self.call(self.fleet.urls(number), number))

    # ---- trouble ----

    async def trouble(self) -> None:
        numbers = count()
        for deck in islice(decks(random.Random(SEED)), DECKS):
            cards = zip(numbers, deck, strict=False)
            await asyncio.gather(*(self.side(cards) for _ in range(SIDES)))
        self.calm.set()

    async def side(self, cards: Iterator[tuple[int, Fault]]) -> None:
        """Play one card after the other."""
        for number, fault in cards:
            dice = random.Random(f"{SEED} {number}")
            await asyncio.sleep(dice.uniform(0, 1))
            self.note(f"{fault.__name__} begins")
            await fault(self.fleet, dice)
            self.note(f"{fault.__name__} is over")
            self.faults[fault.__name__] += 1

    def note(self, what: str) -> None:
        self.log.append(f"{time.monotonic() - self.began_s:8.2f} {what}")

    # ---- callers ----

    async def call(self, urls: Iterator[str], number: int) -> None:
        """Have one run after the other."""
        while self.started < RUNS or not self.calm.is_set():
            self.started += 1
            try:
                async with asyncio.timeout(RUN_S):
                    await self.order(urls, self.started, number)
            except TimeoutError:
                raise AssertionError(f"a run did not end\n{self.story()}") from None

    async def order(self, urls: Iterator[str], order: int, number: int) -> None:
        """Start a run once, follow it and answer for it until it has ended."""
        run_id = await self.start(urls, order)
        readers = [Reader(self.http, run_id, self.fleet.urls(number + side)) for side in range(2)]
        async with asyncio.TaskGroup() as group:
            for reader in readers:
                group.create_task(reader.read())
            self.ended.append(await self.answer(urls, run_id))
        self.readers += readers

    async def start(self, urls: Iterator[str], order: int) -> str:
        body, headers = {"agent": AGENT, "input": f"order {order}"}, {"Idempotency-Key": f"order-{order}"}
        while True:
            if told := await self.once(urls, "POST", "/v1/runs", json=body, headers=headers):
                return str(told["run_id"])
            await asyncio.sleep(0.1)

    async def answer(self, urls: Iterator[str], run_id: str) -> Any:
        """Look outside before every answer, for the one before may have been heard."""
        while True:
            run = await self.once(urls, "GET", f"/v1/runs/{run_id}")
            if run and run["status"] in ENDED:
                return run
            for wait in run["waits"] if run and run["status"] == "suspended" else ():
                said = look(self.effects, run_id, wait)
                await self.once(urls, "POST", f"/v1/approvals/{wait['approval']}", json=said)
            await asyncio.sleep(0.1)

    async def once(self, urls: Iterator[str], method: str, path: str, **more: Any) -> Any:
        """Ask the next API; None where nobody answers, or says that it may be asked again, or decided already."""
        try:
            async with self.http.request(method, next(urls) + path, **more) as answer:
                told = msgspec.json.decode(await answer.read())
                if answer.status < 300:
                    return told
                assert told["retryable"] or answer.status == 409, (path, told)
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            pass
        return None

    # ---- afterwards ----

    async def check(self) -> Figures:
        """See that nothing was lost, doubled or heard wrongly."""
        here = self.fleet.here
        here.http = here.caller(next(self.fleet.urls(0)))
        async with here.http:
            assert Counter(run["status"] for run in self.ended) == {"completed": self.started}, self.story()
            journals = {run["id"]: await here.events(run["id"]) for run in self.ended}
            assert len(journals) == self.started
            for events in journals.values():
                check_journal(events)
            for reader in self.readers:
                assert reader.durable == journals[reader.run_id], self.story()
            assert await self.fleet.postgres.say(GAPS) == []
            interrupted = await check_sessions(here, self.ended)
        return Figures(
            runs=self.started,
            faults=self.faults,
            effects=check_effects(self.effects, self.started),
            streams=len(self.readers),
            returns=sum(reader.connections - 1 for reader in self.readers),
            questions=sum(e["type"] == "approval.resolved" for events in journals.values() for e in events),
            interrupted=interrupted,
            pause_s=max(map(pause_s, journals.values())),
            took_s=time.monotonic() - self.began_s,
            seed=SEED,
        )

    def story(self) -> str:
        return "\n".join([*self.log, self.fleet.here.tail(5)])


@pytest.mark.drill
async def test_nothing_is_lost_or_doubled_or_heard_wrongly_whatever_happens_at_once(data_dir: Path) -> None:
    effects, env = counted(data_dir)
    async with fleet(data_dir, env) as made:
        key = (data_dir / "local.key").read_text().strip()
        headers, patience = {"Authorization": f"Bearer {key}"}, aiohttp.ClientTimeout(total=ANSWER_S)
        async with aiohttp.ClientSession(
            headers=headers, timeout=patience, connector=aiohttp.TCPConnector(limit=0)
        ) as http:
            drill = Drill(made, effects, http)
            try:
                await drill.run()
                figures = await drill.check()
            except BaseException:
                print(drill.story(), file=sys.stderr)
                raise
    assert all(figures.faults[fault.__name__] >= DECKS * number for fault, number in TABLE.items())
    assert figures.returns > 0 or not FULL, "no reader came back"
    print("\n" + "\n".join(figures.lines()), file=sys.stderr)
    if FULL:
        write(figures)

"""B9: a small tenant behind one with 50,000 queued runs: two real workers, and a model that answers at once.

    python -m bench.fair [--small] [--json] [--queued 50000] [--runs 100]

The large tenant's queue is written into the database; nothing of it has begun when the workers start. Then the small
tenant posts one run after the other, and what is measured is how long each waits for a worker.
"""

from datetime import datetime

import aiohttp
import asyncpg
import msgspec
import uvloop
from tests.installation import Installation, offer_tools

from bench.figure import chosen, report, spread
from bench.place import data_folder
from bench.run import NOOP, Bench
from bench.thinker import Thinker
from sojourn.store import embedded
from sojourn.store.db import connect
from sojourn.store.tenant import keys

TABLES = ("session", "run", "journal", "message")
# Copies of a run that was made over HTTP: the ids are as long as its own, so that they fit into its snapshot.
COPY = """
create temp table copies as
select 'run_' || lpad(n::text, 26, '0') as run_id, 'ses_' || lpad(n::text, 26, '0') as session_id
from generate_series(1, $1::int) n;
"""
FILL = """
insert into session (tenant, id, user_id) select s.tenant, c.session_id, s.user_id from session s, copies c
where s.tenant = 'large';
insert into journal (tenant, run_id, seq, at, kind, event) select j.tenant, c.run_id, j.seq, j.at, j.kind, j.event
from journal j, copies c where j.tenant = 'large';
insert into message (tenant, run_id, frame_id, slot, body) select m.tenant, c.run_id, m.frame_id, m.slot, m.body
from message m, copies c where m.tenant = 'large';
insert into run (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest, priority, due_at, ready, seq,
    input, limits, labels, snapshot)
select r.tenant, c.run_id, c.session_id, r.user_id, r.agent_name, r.agent_version, r.agent_digest, 9, now(), true,
    r.seq, r.input, r.limits, r.labels, convert_to(replace(replace(
        convert_from(r.snapshot, 'UTF8'), r.id, c.run_id), r.session_id, c.session_id), 'UTF8')
from run r, copies c where r.tenant = 'large';
analyze run;
"""


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    queued: int = 50_000
    """Runs of the large tenant."""
    runs: int = 100
    """Of the small one."""


SMALL = Sizes(queued=50, runs=3)


async def fill(installation: Installation, queued: int) -> None:
    """Give the tenant `large` so many queued runs of priority 9."""
    async with await embedded.start(installation.data_dir) as cluster, await connect(cluster) as db:
        token = await keys.bootstrap(db, tenant="large")
        headers = {"Authorization": f"Bearer {token}"}
        body = {"agent": {"model": "openai:0-1"}, "input": "bench n0"}
        async with (
            aiohttp.ClientSession(installation.url, headers=headers) as http,
            http.post("/v1/runs", json=body) as answer,
        ):
            assert answer.status == 202, await answer.text()
        async with db.migrator() as owner:
            for table in TABLES:
                await owner.execute(f"alter table {table} no force row level security")
            await owner.execute(COPY.replace("$1", str(queued)))
            await owner.execute(FILL)
            for table in TABLES:
                await owner.execute(f"alter table {table} force row level security")


async def waits(bench: Bench, runs: int) -> tuple[list[float], list[float]]:
    """Milliseconds in the queue, and from the POST to the model, of the small tenant's runs."""
    queued, whole = [], []
    for _ in range(runs):
        run_id, name, began = await bench.run("0-1")
        run = await bench.installation.until(run_id)
        created, started = (datetime.fromisoformat(run[key]) for key in ("created_at", "started_at"))
        queued.append((started - created).total_seconds() * 1000)
        whole.append((bench.thinker.asked[name][0] - began) * 1000)
    return queued, whole


async def left(installation: Installation) -> int:
    """How many of the large tenant's runs are still queued."""
    async with await embedded.start(installation.data_dir) as cluster:
        connection = await asyncpg.connect(cluster.dsns.engine)
        found: int = await connection.fetchval("select count(*) from run where tenant = 'large' and status = 'queued'")
        await connection.close()
    return found


async def main(sizes: Sizes) -> None:
    async with data_folder() as data_dir, Thinker() as thinker:
        offered = offer_tools(data_dir, NOOP.replace("{size}", "10"), "noop")
        env = {"OPENAI_BASE_URL": thinker.url, "SOJOURN_LOG_LEVEL": "warning", **offered}
        installation = Installation(data_dir, thinker.url, env)
        try:
            await installation.start_api("--no-worker")
            await fill(installation, sizes.queued)
            for _ in range(2):
                await installation.start_worker()
            waited, whole = await waits(Bench(installation, thinker), sizes.runs)
            behind = await left(installation)
        finally:
            await installation.stop()
    what = f"a small tenant's runs beside {sizes.queued:,} queued ones of another:"
    figure = spread("B9", f"{what} in the queue", "ms", waited, most=(1000, 1000))
    report(
        [
            msgspec.structs.replace(figure, floor=f"{behind:,} still queued at the end", met=figure.met and behind > 0),
            spread("B9", f"{what} POST to the model, two busy workers", "ms", whole),
        ]
    )


if __name__ == "__main__":
    uvloop.run(main(chosen(__doc__, Sizes(), SMALL)))

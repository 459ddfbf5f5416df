"""`make bench-peers`: measure Sojourn and the peers on the same work, one after the other, and write the page.

    python -m bench.peers [--out docs/benchmarks] [--small] [dbos temporal aegra agno ...]

Sojourn is always measured, first. A product that fails is reported as failed, with the reason.
"""

import argparse
import asyncio
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import uvloop

from bench.peers import chart, page
from bench.peers.adapter import ROOT
from bench.peers.database import SETTINGS, Server, started
from bench.peers.environment import python
from bench.peers.figures import Outcome, Report
from bench.peers.measures import Bench, Sizes, measure
from bench.peers.model import Model
from bench.peers.peer import Peer, PeerFailed
from bench.peers.verbs import Place

OURS = "sojourn"
PRODUCTS = "bench.peers.products"
PEERS = ("aegra", "dbos", "temporal", "agno")
SMALL = Sizes(
    first=12,
    single=1,
    many=20,
    one_step=20,
    waiting=20,
    decisions=5,
    killed=5,
    takeover_s=65,
    streams=1,
    queued=60,
    small=3,
)


async def run(modules: Sequence[str], sizes: Sizes) -> Outcome:
    """Measure the products of these adapters; the others are compared with the first."""
    load, at = os.getloadavg()[0], datetime.now(UTC)
    async with started() as server:
        reports = [await one(module, server, sizes) for module in modules]
        database = f"PostgreSQL {await server.version()}, {', '.join(f'{k}={v}' for k, v in SETTINGS.items() if v)}"
    return Outcome(
        at=f"{at:%Y-%m-%d %H:%M} UTC",
        machine=f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        load=load,
        cores=os.cpu_count() or 1,
        database=database,
        sizes=msgspec.to_builtins(sizes),
        reports=tuple(reports),
    )


async def one(module: str, server: Server, sizes: Sizes) -> Report:
    """Measure one product in a folder, a database and a model endpoint of its own."""
    name = module.rpartition(".")[2]
    print(f"{name} ...", file=sys.stderr, flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f"sojourn-peers-{name}-"))
    try:
        interpreter = await asyncio.to_thread(python, name)
        async with Model() as model:
            place = Place(folder=str(folder), model_url=model.url, database_url=await server.database(name))
            peer = await Peer.start(interpreter, module, place)
            try:
                ready = await peer.ready()
                bench = Bench(peer, model, database_pid=server.pid, sizes=sizes)
                bench.lacks = ready.lacks
                found = await measure(bench)
            finally:
                await peer.stop()
        return Report(
            name=name,
            product=ready.product,
            versions=ready.versions,
            setup=ready.setup,
            notes=ready.notes,
            figures=found,
        )
    except (PeerFailed, OSError) as error:  # a TimeoutError is an OSError
        print(f"{name} failed: {error}", file=sys.stderr, flush=True)
        return Report(name=name, product=name, failed=str(error) or type(error).__name__)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(outcome: Outcome, folder: Path) -> None:
    """Write the page, its chart and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.json").write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=1) + b"\n")
    (folder / "peers.svg").write_text(chart.draw(outcome.reports))
    (folder / "peers.md").write_text(page.write(outcome))


def main() -> int:
    """Run the target. Returns 1 if a product could not be measured at all."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="peer", help=f"which ones: {', '.join(PEERS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="where the page goes")
    parser.add_argument("--small", action="store_true", help="a quick look whose figures mean little")
    given = parser.parse_args()
    names = [name for part in given.names for name in part.split(",") if name != OURS]
    if unknown := set(names) - set(PEERS):
        parser.error(f"there is no peer {', '.join(sorted(unknown))}")
    modules = [f"{PRODUCTS}.{name}" for name in (OURS, *(names or PEERS))]
    outcome = uvloop.run(run(modules, SMALL if given.small else Sizes()))
    write(outcome, given.out)
    print(page.table(outcome.reports))
    return 1 if any(report.failed for report in outcome.reports) else 0


if __name__ == "__main__":
    sys.exit(main())

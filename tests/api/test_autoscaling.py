"""What an autoscaler reads: the page names metrics that there are, and its query says how many runs want a worker."""

import re
from pathlib import Path

from tests.api.played_worker import Player
from tests.api.served_api import Served

PAGE = Path(__file__).parents[2] / "docs/operate/kubernetes.md"
QUERY = re.compile(r"query: (.+)")
METRIC = re.compile(r"sojourn_[a-z_]+(?:\{[^}]*\})?")


async def measured(api: Served) -> dict[str, float]:
    text = (await api.get("/metrics")).body.decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines}


async def wanted(api: Served) -> float:
    """The page's query, asked of one API process: sums of maxima over one."""
    query = QUERY.search(PAGE.read_text())
    assert query
    values = await measured(api)
    terms = [re.fullmatch(r"max\((.+)\)", term) for term in query[1].split(" + ")]
    return sum(values[term[1]] for term in terms if term) if all(terms) else -1


async def test_every_metric_of_the_page_is_served(api: Served) -> None:
    served = await measured(api)
    named = set(METRIC.findall(PAGE.read_text()))
    assert len(named) >= 4 and named <= served.keys()


async def test_the_query_counts_what_is_held_or_could_be_and_nothing_that_waits(api: Served, player: Player) -> None:
    assert await wanted(api) == 0
    runs = [await api.start() for _ in range(5)]
    assert await wanted(api) == 5, "a queue asks for workers"
    hand = await player.take(runs[0])
    assert await wanted(api) == 5, "and what they took keeps them"
    await hand.finish("done")
    assert await wanted(api) == 4
    await api.post("/v1/runs", {"agent": {"model": "openai:gpt-5"}, "input": "later", "delay_s": 3600})
    assert await wanted(api) == 4, "a run that begins later holds nobody"

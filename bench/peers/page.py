"""docs/benchmarks/peers.md, written from what was measured. Called by `__main__`.

The rule: a figure that is no number says what it is instead, and what cannot be compared stands on the same page.
"""

from collections.abc import Sequence

from bench.peers.figures import ROWS, Figure, Outcome, Report, Row, ratio

HEAD = """\
# Sojourn beside others, on the same work

This page is written by `make bench-peers`. Its figures come from one run on one machine,
{at}; only their ratios mean anything.{busy}

- Machine: {cores} cores, {machine}; load {load:.1f} before. The caller, the model endpoint, the product and the
  database share its cores.
- Work: an agent whose model answers ten times, each time in 40 streamed pieces, and asks nine times for a tool that
  does nothing. All products ask the same scripted model over HTTP ([simulator](../simulator.md)).
- Database: {database}; one server, a database for each product.
- Each product is started as its documentation says for production, or as near to it as one machine allows, with its
  defaults; telemetry is off. Sojourn goes through the same harness. [How](#how) tells what is measured.

## Figures

The ratio in brackets is to Sojourn: how many times longer, larger or slower. Below 1 the other is better.

{table}

Medians, where there are many values; p99 and everything else is in [peers.json](peers.json).

![Ratios to Sojourn](peers.svg)
"""
BUSY = " **The machine was busy with other things: the figures of this run are worth little.**"
BUSY_LOAD = 0.25
"""Load for each core from which a machine counts as busy."""
HOW = """\
## How

- B1: {first} runs of one step, one after the other, the worker idle; from just before the request to the first byte at
  the model.
- B2: from the end of a reply to the next request, {single} runs of ten steps, alone. Then {many} runs at once on one
  worker, until the product says of the last that it has ended; a step is a reply with its tool call. CPU is that of all
  the product's processes and of the database server, without the caller and the model.
- B3: {one_step} runs of one step, asked for 32 at a time, until the product says of the last that it has ended.
- B4: {waiting} runs whose tool a person must allow; what the worker's own memory (PSS) grew by, for each. Then
  {decisions} decisions one after the other, from the request to the next one at the model, with the tool between.
- B5: {killed} runs on one worker, each in the middle of a reply; another worker starts and is idle; kill -9 of the
  first; until every run has asked the model again. Given {takeover_s} s. Where that did not help, the killed worker is
  started again, and the time counts from that start.
- B6: a reply whose pieces say when they were sent, 20 a second, read from the product's stream by one reader.
- B9: {queued} runs of one reply of two seconds, in four pieces, then {small} runs of another tenant at once; from the
  request to the model, given {small_s} s.
"""


def write(outcome: Outcome) -> str:
    """Write the whole page."""
    told = {name: getattr(outcome, name) for name in ("at", "machine", "cores", "load", "database")}
    busy = BUSY if outcome.load > BUSY_LOAD * outcome.cores else ""
    head = HEAD.format(**told, busy=busy, table=table(outcome.reports))
    sizes = {name: f"{value:g}" for name, value in outcome.sizes.items()}
    return "\n".join([head, HOW.format(**sizes), _setups(outcome.reports), _notes(outcome.reports)])


def table(reports: Sequence[Report]) -> str:
    """Lay the figures out as a Markdown table, a column for each product."""
    measured = [report for report in reports if not report.failed]
    lines = [["", "", "unit", *(report.product for report in measured)], ["---"] * 3 + ["---:"] * len(measured)]
    lines += [[row.id, row.what, row.unit, *_cells(row, measured)] for row in ROWS]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    failed = [f"{report.name} could not be measured: {_line(report.failed)}" for report in reports if report.failed]
    return "\n\n".join([text, *failed])


def _cells(row: Row, reports: Sequence[Report]) -> list[str]:
    ours = reports[0].figures.get(row.key) if reports else None
    return [_cell(row, report.figures.get(row.key), None if report is reports[0] else ours) for report in reports]


def _cell(row: Row, figure: Figure | None, ours: Figure | None) -> str:
    """Write a figure, and its ratio to ours where there is one."""
    if figure is None or (figure.value is None and figure.more_than is None):
        return "failed" if figure and figure.note.startswith("failed") else "-"
    value = number(figure.more_than if figure.value is None else figure.value)
    times = ratio(row, figure, ours)
    sign = "> " if figure.value is None else ""
    return sign + value + (f" ({sign}{number(times)}x)" if times is not None else "")


def number(value: float | None) -> str:
    """Write a number with three digits that mean something."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _setups(reports: Sequence[Report]) -> str:
    """Say how each product was set up, and in which versions."""
    lines = ["## Set-up", ""]
    for report in reports:
        versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
        lines.append(
            f"- **{report.product}**: {' '.join(report.setup.split()) or 'not measured.'}"
            + (f" Versions: {versions}." if versions else "")
        )
    return "\n".join([*lines, ""])


def _notes(reports: Sequence[Report]) -> str:
    """Say what is not comparable, and what stands behind a figure that is no number."""
    lines = ["## What is not comparable", "", *(report.notes.strip() for report in reports if report.notes)]
    for report in reports:
        for row in ROWS:
            figure = report.figures.get(row.key)
            if figure and figure.note:
                lines.append(f"- {report.product}, {row.id} ({row.what}): {_line(figure.note)}.")
    return "\n".join([*lines, ""])


def _line(text: str) -> str:
    """Make one short line of a text, without what would break a table."""
    return " ".join(text.split()).replace("|", "/")[:300]

"""The chart of docs/benchmarks/peers.md: a line for each row, a dot for each peer, a logarithmic scale of ratios.

Plain SVG; its colours follow the reader's light or dark setting. An arrow instead of a dot says that the time ran out.
"""

import math
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from bench.peers.figures import ROWS, Figure, Report, Row, ratio

WIDTH, LEFT, RIGHT, TOP, STEP = 940, 350, 40, 84, 40
LANE = 6
"""Between the dots of two peers, so that none hides another."""
COLOURS = ("#d1495b", "#2e86ab", "#e09f3e", "#7b5ea7", "#5b8e55")
DECADES_MIN = 2
STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #24292f }
.faint { fill: #57606a } .ours { fill: #1a7f37; font-weight: 600 }
.grid { stroke: #d0d7de } .one { stroke: #1a7f37; stroke-width: 2 }
.dot, .bound { fill-opacity: 0.9 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .faint { fill: #8d96a0 } .ours { fill: #3fb950 }
  .grid { stroke: #3d444d } .one { stroke: #3fb950 }
}"""

Dot = tuple[float, bool]
"""A ratio, and whether it is only a bound."""
Scale = Callable[[float], float]


def draw(reports: Sequence[Report]) -> str:
    """Draw the ratios to the first report."""
    measured = [report for report in reports if not report.failed]
    ours, peers = measured[:1], measured[1:]
    figures = ours[0].figures if ours else {}
    lines = [(row, [_dot(row, peer.figures.get(row.key), figures.get(row.key)) for peer in peers]) for row in ROWS]
    lines = [(row, dots) for row, dots in lines if any(dots)]
    ratios = [dot[0] for _, dots in lines for dot in dots if dot] or [1.0]
    low, high = math.floor(min(0.0, math.log10(min(ratios)))), math.ceil(max(DECADES_MIN, math.log10(max(ratios))))
    bottom = TOP + STEP * len(lines)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - low) / (high - low)

    parts = [_axis(x, range(low, high + 1), bottom)]
    parts += [_line(row, dots, TOP + STEP * (n + 0.5), x) for n, (row, dots) in enumerate(lines)]
    parts += [_key(peer.product, n) for n, peer in enumerate(peers)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 58}" role="img">',
            "<title>How many times worse than Sojourn, for each figure</title>",
            f"<style>{STYLE}</style>",
            *parts,
            "</svg>\n",
        ]
    )


def _dot(row: Row, figure: Figure | None, ours: Figure | None) -> Dot | None:
    times = ratio(row, figure, ours) if figure else None
    return None if times is None or figure is None else (times, figure.value is None)


def _axis(x: Scale, decades: range, bottom: float) -> str:
    """Draw the grid and what its lines mean."""
    parts = []
    for decade in decades:
        value = 10.0**decade
        kind = "one" if decade == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="faint" text-anchor="middle" x="{x(value):.1f}" y="{bottom + 20}">{value:g}x</text>')
    parts.append(f'<text class="ours" text-anchor="middle" x="{x(1):.1f}" y="{TOP - 10}">Sojourn = 1</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    words = "times Sojourn's figure; right of the line is slower, larger or less; an arrow ran out of time"
    parts.append(f'<text class="faint" text-anchor="middle" x="{middle:.1f}" y="{bottom + 44}">{words}</text>')
    return "\n".join(parts)


def _line(row: Row, dots: Sequence[Dot | None], y: float, x: Scale) -> str:
    """Draw one row: its words and its dots."""
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke-dasharray="2 4"/>',
        f'<text text-anchor="end" x="{LEFT - 14}" y="{y + 4.5:.1f}">'
        f'<tspan class="faint">{row.id}</tspan> {escape(row.what)}</text>',
    ]
    for n, dot in enumerate(dots):
        if dot is None:
            continue
        at, height = x(dot[0]), y + (n - (len(dots) - 1) / 2) * LANE
        shape = "l12 5.5 l-12 5.5 z" if dot[1] else "a5.5 5.5 0 1 1 0 11 a5.5 5.5 0 1 1 0 -11"
        kind = "bound" if dot[1] else "dot"
        parts.append(f'<path class="{kind}" d="M{at:.1f} {height - 5.5:.1f} {shape}" fill="{COLOURS[n]}"/>')
    return "\n".join(parts)


def _key(product: str, n: int) -> str:
    """Say whose colour it is."""
    at = 20 + n * 200
    dot = f'<circle cx="{at}" cy="24" r="6.5" fill="{COLOURS[n]}"/>'
    return f'{dot}<text x="{at + 13}" y="28.5">{escape(product)}</text>'

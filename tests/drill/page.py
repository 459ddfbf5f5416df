"""The report of the drill: what `docs/operate/drill.md` says, which a run at full size writes."""

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from sojourn import __version__
from sojourn.store.embedded import programs
from sojourn.store.embedded.home import Owner, home_in

PAGE = Path(__file__).parents[2] / "docs" / "operate" / "drill.md"
HEAD = """# The drill

What `make drill` did last to a whole installation, and what came of it. A run at full size writes this page.

Two API and three worker processes run over one PostgreSQL on one machine, and callers start runs. Meanwhile processes
are killed (-9), stopped for longer than the lease (SIGSTOP), cut off (a worker, where root allows, by pulling the cable
of its network namespace), and replaced by the next release and back; the database is restarted and crashed. Three such
faults are under way at a time. Each run charges
twice (`at_most_once`), ships once (`idempotent`) and runs two commands; the tools count in a file outside. Two
readers follow each run, from API to API with `Last-Event-ID`. Where the outcome of a charge is unknown, a caller
looks into the file, and answers `mark_done` or `retry`.

It fails unless every run completed, every charge was made and none twice, no command ran twice and each ran once or its
model was told that it may not have, every journal is whole, and every reader was told just what the journal says, once
and in order. `make drill` runs this and the other drills, `SOJOURN_DRILL_SEED` throws other dice, and `make test` has a
small one.
"""


@dataclass(frozen=True)
class Figures:
    """What was done and seen."""

    runs: int
    faults: Counter[str]
    effects: int
    streams: int
    returns: int
    questions: int
    interrupted: int
    pause_s: float
    took_s: float
    seed: int

    def lines(self) -> Iterator[str]:
        """The table: losses are 0, for a drill that finds any fails before this."""
        yield "| | |"
        yield "|---|---|"
        yield f"| date | {datetime.now(UTC):%Y-%m-%d} |"
        yield f"| machine | {os.cpu_count()} cores, {_memory_gib()} GiB, {platform.system()} {platform.machine()} |"
        yield f"| versions | Sojourn {__version__}, Python {platform.python_version()}, {_postgres()} |"
        yield f"| seed | {self.seed} |"
        yield f"| duration | {self.took_s:.0f} s |"
        yield f"| runs | {self.runs} |"
        yield f"| faults | {sum(self.faults.values())} |"
        for name, number in sorted(self.faults.items()):
            yield f"| — {name.replace('_', ' ')} | {number} |"
        yield f"| effects counted outside | {self.effects} |"
        yield f"| questions answered by people | {self.questions} |"
        yield f"| commands whose model was told that they may not have run | {self.interrupted} |"
        yield "| commands doubled, or missing unsaid | 0 |"
        yield "| runs lost | 0 |"
        yield "| `at_most_once` effects doubled or left out | 0 |"
        yield f"| streams compared with the journal | {self.streams}, whose readers came back {self.returns} times |"
        yield "| events missed or heard twice | 0 |"
        yield f"| longest time between two events of a run | {self.pause_s:.1f} s |"


def write(figures: Figures) -> None:
    """Write the page."""
    PAGE.write_text("\n".join([HEAD, *figures.lines()]) + "\n")


def pause_s(events: list[Any]) -> float:
    """The longest time between two events."""
    times = [datetime.fromisoformat(event["at"]) for event in events]
    return max((later - earlier).total_seconds() for earlier, later in pairwise(times))


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _postgres() -> str:
    program = programs.find(home_in(Path("/nowhere")), Owner(os.geteuid(), os.getegid())) / "postgres"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return " ".join(said.split()[0::2]).replace("postgres", "PostgreSQL")

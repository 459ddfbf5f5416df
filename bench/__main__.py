"""`make bench`: run every bench, one after the other, and print one table of figures beside their targets.

    python -m bench [--small] [--json] [name ...]

The rule: each bench has the machine to itself, in a process of its own, and one that fails is said to have failed.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from bench.figure import SMALL_RUN, Figure, number, table

TIME_OUT_S = 1800.0
APART = {"size": "it takes a quarter of an hour", "snapshot": "it needs pydantic, which comes with `make examples`"}
"""What runs only when it is named, and why."""
IMPORT = re.compile(r"^from bench\.figure import .*\breport\b", re.MULTILINE)

_line = msgspec.json.Decoder(Figure)


def main() -> int:
    """Run the benches. Returns 1 if one failed; a missed target is no failure."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    apart = "; ".join(f"{name} only where it is named, as {why}" for name, why in APART.items())
    parser.add_argument("names", nargs="*", metavar="name", help=f"which ones: {', '.join(names())} ({apart})")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument("--small", action="store_true", help=f"make {SMALL_RUN}")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names()):
        parser.error(f"there is no bench {', '.join(sorted(unknown))}")
    figures: list[Figure] = []
    failed: list[str] = []
    for name in given.names or [name for name in names() if name not in APART]:
        began = time.monotonic()
        found, wrong = measure(name, *(["--small"] if given.small else []))
        took_s = time.monotonic() - began
        told(f"{name:10}  {took_s:4.0f} s  {brief(found)}", *(f"{name} failed: {why}" for why in wrong))
        figures += found
        failed += [name] if wrong else []
    if given.json:
        print("\n".join(msgspec.json.encode(figure).decode() for figure in figures))
    else:
        print(f"\n{machine()}\n\n{table(figures)}\n\n{verdict(figures, failed)}")
    return 1 if failed else 0


def names() -> list[str]:
    """The benches that stand in this folder: the modules that import `report`."""
    modules = Path(__file__).parent.glob("[a-z]*.py")
    return sorted(path.stem for path in modules if IMPORT.search(path.read_text()))


def measure(name: str, *options: str) -> tuple[list[Figure], list[str]]:
    """Run one bench: the figures that it gave, and what went wrong with it."""
    command = [sys.executable, "-m", f"bench.{name}", "--json", *options]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=TIME_OUT_S, check=False)
    except subprocess.TimeoutExpired:
        return [], [f"it did not end within {TIME_OUT_S:.0f} s"]
    figures, wrong = read(done.stdout)
    if done.returncode:
        wrong.append(f"it ended with {done.returncode}; what it said stands above")
    elif not figures:
        wrong.append("it gave no figure")
    return figures, wrong


def read(printed: bytes) -> tuple[list[Figure], list[str]]:
    """Read what a bench printed: its figures, and what is wrong with the lines that are none."""
    figures: list[Figure] = []
    wrong: list[str] = []
    for line in printed.splitlines():
        try:
            figures.append(_line.decode(line))
        except msgspec.MsgspecError as error:
            wrong.append(f"this line of it is no figure ({error}): {line.decode(errors='replace')}")
    return figures, wrong


def brief(figures: list[Figure]) -> str:
    """One bench in a line: how much it found, and the first of it."""
    if not figures:
        return "nothing"
    first, more = figures[0], f", and {len(figures) - 1} more" if len(figures) > 1 else ""
    return f"{first.id} {first.what}: {number(first.median)} {first.unit}{more}".lstrip()


def told(*lines: str) -> None:
    """Say how far it is, beside the figures."""
    print("\n".join(lines), file=sys.stderr, flush=True)


def machine() -> str:
    """What the figures were measured on: they mean nothing without it."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {system}, Python {platform.python_version()}"


def verdict(figures: list[Figure], failed: list[str]) -> str:
    """One sentence on what was met, missed and not measured."""
    met = sum(figure.met is True for figure in figures)
    missed = [f"{figure.id} ({figure.what})" for figure in figures if figure.met is False]
    lines = [f"{met} of {met + len(missed)} targets met." if met or missed else "No target was judged."]
    lines += [f"Missed: {', '.join(missed)}."] if missed else []
    lines += [f"Failed: {', '.join(failed)}."] if failed else []
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

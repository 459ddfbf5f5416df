"""`make bench`: run every bench, one after the other, and print one table of figures beside their targets.

    python -m bench [--json] [name ...]

The rule: each bench has the machine to itself, in a process of its own, and one that fails is said to have failed.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import msgspec

from bench.figure import Figure, table

TIME_OUT_S = 900.0
IMPORT = re.compile(r"^from bench\.figure import .*\breport\b", re.MULTILINE)

_line = msgspec.json.Decoder(Figure)


def main() -> int:
    """Run the benches. Returns 1 if one failed; a missed target is no failure."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"which ones: {', '.join(names())}")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names()):
        parser.error(f"there is no bench {', '.join(sorted(unknown))}")
    figures: list[Figure] = []
    failed: list[str] = []
    for name in given.names or names():
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = measure(name)
        figures += found
        failed += [] if found else [name]
    if given.json:
        print("\n".join(msgspec.json.encode(figure).decode() for figure in figures))
    else:
        print(f"\n{machine()}\n\n{table(figures)}\n\n{verdict(figures, failed)}")
    return 1 if failed else 0


def names() -> list[str]:
    """The benches that stand in this folder: the modules that import `report`."""
    modules = Path(__file__).parent.glob("[a-z]*.py")
    return sorted(path.stem for path in modules if IMPORT.search(path.read_text()))


def measure(name: str) -> list[Figure]:
    """Run one bench and read its figures; nothing if it failed."""
    command = [sys.executable, "-m", f"bench.{name}", "--json"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=TIME_OUT_S, check=True)
        return [_line.decode(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    except (subprocess.SubprocessError, msgspec.MsgspecError) as error:
        print(f"{name} failed: {error}", file=sys.stderr)
        return []


def machine() -> str:
    """What the figures were measured on: they mean nothing without it."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {system}, Python {platform.python_version()}"


def verdict(figures: list[Figure], failed: list[str]) -> str:
    """One sentence on what was met, missed and not measured."""
    met = sum(figure.met is True for figure in figures)
    missed = [f"{figure.id} ({figure.what})" for figure in figures if figure.met is False]
    lines = [f"{met} of {met + len(missed)} targets met."]
    lines += [f"Missed: {', '.join(missed)}."] if missed else []
    lines += [f"Not measured, because they failed: {', '.join(failed)}."] if failed else []
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
